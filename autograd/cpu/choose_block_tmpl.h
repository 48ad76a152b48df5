/*
 * choose_block_tmpl.h -- the choice among the units of one block, and its softmax.  Part of
 * choose_tmpl.c.
 */

/* score = z + f g; returns the place of the largest, the first of equals */
static int32_t best_score(int64_t n, const float *z, const float *g, float f, float *score)
{
    vf top = vset(-__builtin_inff()), at = { 0 };
    FOR_VECTORS(j, n) {
        vf v = vload_to(z + j, n - j);
        if (g)
            v += vload_to(g + j, n - j) * f;
        vstore_to(score + j, v, n - j);
        v = vhead(v, n - j, -__builtin_inff());
        at = vselect(top, v, (vf)(vlane() + (int32_t)j), at);
        top = vselect(top, v, v, top);
    }
    return vfirst_equal(top, vset(vmaxall(top)), (vi)at);
}

/* The same with g = -log(-log u), which is made in g[n]. */
static int32_t best_noisy(int64_t n, const float *z, const float *u, float f, float *score,
                          float *g)
{
    FOR_VECTORS(j, n)
        vstore_to(g + j, -vlog_normal(-vlog_normal(vload_to(u + j, n - j))), n - j);
    return best_score(n, z, g, f, score);
}

/*
 * The largest of z + f g without the two logarithms of g = -log E, E = -log u, should bounds tell
 * it.  With v = 1 - u, E >= q = v + v^2/2 + v^3/3, and E <= 1.0076 q where v <= 0.3; a cubic gives
 * log q to 0.001.  So z + f (0.001 - log q) is an upper bound, and for such v at most 0.0096 f
 * above the score: a place that beats all other bounds by 0.01 f has the largest.
 */
static bool screen_best(int64_t n, const float *z, const float *u, float f, float *score,
                        int32_t *choice)
{
    vf top = vset(-__builtin_inff());
    FOR_VECTORS(j, n) {
        const vf v = 1.0f - vload_to(u + j, n - j), q = v * (1.0f + v * (0.5f + v * 0.33333333f));
        const vu k = (vu)q - 0x3f3504f3u;                 /* as vlog_normal */
        const vf x = (vf)((k & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
        const vf e = (vf)(((k + 0x40000000u) >> 23) | 0x4b000000u) - (8388608.0f + 128.0f);
        const vf log_q = e * 0.69314718f +
            x * (1.00170268f + x * (-0.52268839f + x * 0.30850513f));
        const vf s = vload_to(z + j, n - j) + f * (0.001f - log_q);
        vstore_to(score + j, s, n - j);
        top = vmax(vhead(s, n - j, -__builtin_inff()), top);
    }
    const float best = vmaxall(top), from = best - 0.01f * f - 1e-6f * __builtin_fabsf(best);
    vf found = { 0 };                /* sum of the places that reach `from`, each + SCREENED */
    FOR_VECTORS(j, n) {
        const vf place = __builtin_convertvector(vlane() + (int32_t)j + SCREENED, vf);
        found += vselect(vhead(vload_to(score + j, n - j), n - j, -__builtin_inff()), vset(from),
                         vset(0.0f), place);
    }
    const float sum = vsum(found);
    if (!(sum >= SCREENED && sum < 2 * SCREENED) || u[(int32_t)sum - SCREENED] < 0.7f)
        return false;
    *choice = (int32_t)sum - SCREENED;
    return true;
}

/* e = exp((z + g - max) / t), g may be NULL; returns its sum */
static float block_exp(int64_t n, const float *z, const float *g, float inv, float *e)
{
    vf top = vset(-__builtin_inff());
    FOR_VECTORS(j, n) {
        vf v = vload_to(z + j, n - j);
        if (g)
            v += vload_to(g + j, n - j);
        vstore_to(e + j, v, n - j);
        top = vmax(vhead(v, n - j, -__builtin_inff()), top);
    }
    const float row_top = vmaxall(top);
    vtree t;
    vtree_start(&t);
    FOR_RUNS(b, n) {
        vf s = { 0 };
        FOR_RUN(j, b, n) {
            const vf v = vexp((vload_to(e + j, n - j) - row_top) * inv);
            vstore_to(e + j, v, n - j);
            s += vhead(v, n - j, 0.0f);
        }
        vtree_add(&t, s);
    }
    return vtree_total(&t);
}

/* pick[1 ..]: those with the highest p, so the highest score, but pick[0]; score is changed */
static void list_picks(int64_t n, int64_t picks, float *score, int32_t *pick)
{
    for (int64_t k = 1; k < picks; k++) {
        score[pick[k - 1]] = -__builtin_inff();
        pick[k] = -1;
        for (int32_t j = 0; j < n; j++) {
            bool listed = false;
            for (int64_t l = 0; l < k; l++)
                listed = listed || pick[l] == j;
            if (!listed && (pick[k] < 0 || score[j] > score[pick[k]]))
                pick[k] = j;
        }
    }
}

/* The picks of one block; g is its noise, or u what that is made of, or neither is there. */
static void choose_block(const ag_chooser *c, const choose_plan *p, const float *z, const float *g,
                         const float *u, float *score, int32_t *choice)
{
    const int64_t n = c->c.n;
    const float f = c->c.relaxed ? 1.0f : (float)c->c.temperature;
    if (!u)
        *choice = best_score(n, z, g, f, score);
    else if (!screen_best(n, z, u, f, score, choice))
        *choice = best_noisy(n, z, u, f, score, score + p->width);
    if (c->picks == 1)
        return;
    if (has_noise(c) && !c->c.relaxed)
        best_score(n, z, NULL, 0, score);
    list_picks(n, c->picks, score, choice);
}
