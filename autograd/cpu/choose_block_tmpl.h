/*
 * choose_block_tmpl.h -- the choice among the units of one block of one row, and its softmax.  Part
 * of choose_tmpl.c.
 */

/* The place of the largest z + f g, the first of equals; g may be NULL. */
static int32_t best_score(int64_t n, const float *z, const float *g, float f)
{
    vf top = vset(-__builtin_inff()), at = { 0 };
    FOR_VECTORS(j, n) {
        vf v = vload_to(z + j, n - j);
        if (g)
            v += vload_to(g + j, n - j) * f;
        v = vhead(v, n - j, -__builtin_inff());
        at = vselect(top, v, (vf)(vlane() + (int32_t)j), at);
        top = vselect(top, v, v, top);
    }
    return vfirst_equal(top, vset(vmaxall(top)), (vi)at);
}

/* e = exp((z - max) / t) replaces z; returns its sum: units 4 i + k for each k apart, in order. */
static float block_exp(int64_t n, float inv, float *z)
{
    vf top = vset(-__builtin_inff());
    FOR_VECTORS(j, n)
        top = vmax(vhead(vload_to(z + j, n - j), n - j, -__builtin_inff()), top);
    const float row_top = vmaxall(top);
    float s[4] = { 0 };
    FOR_VECTORS(j, n) {
        float e[VL];
        const vf v = vexp((vload_to(z + j, n - j) - row_top) * inv);
        vstore_to(z + j, v, n - j);
        vstore(e, vhead(v, n - j, 0.0f));
        for (int i = 0; i < VL; i += 4)
            for (int k = 0; k < 4; k++)
                s[k] += e[i + k];
    }
    return (s[0] + s[2]) + (s[1] + s[3]);
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

/* The picks and gates of one block from its z, which is changed; tmp[block] is scratch. */
static void choose_block(const ag_chooser *c, const choose_plan *p, int64_t i, int64_t b, float *z,
                         float *tmp, int32_t *choice, float *gate)
{
    const int64_t n = c->c.n, u0 = b * n;
    const float *g = NULL;
    if (has_noise(c)) {
        gumbel_columns(&c->c.noise, i, p->units, u0, u0 + n, tmp);
        g = tmp + u0 % CHOOSE_GROUP;
    }
    if (!c->c.given)
        *choice = best_score(n, z, g, noise_factor(c));
    if (is_soft_noise(c))
        FOR_VECTORS(j, n)
            vstore_to(z + j, vload_to(z + j, n - j) + vload_to(g + j, n - j), n - j);
    if (!c->c.given && c->picks > 1) {
        memcpy(tmp, z, (size_t)n * sizeof *z);
        list_picks(n, c->picks, tmp, choice);
    }
    memset(gate, 0, (size_t)gates_of(c) * sizeof *gate);
    float value = 1;
    if (c->gate != AG_GATE_ONE) {
        const float sum = block_exp(n, inv_t(c), z);
        value = z[*choice] / sum;
    }
    gate[c->all ? *choice : 0] = value;
}
