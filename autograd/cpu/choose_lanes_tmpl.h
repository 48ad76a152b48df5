/*
 * choose_lanes_tmpl.h -- the choice among the units of a block, its softmax and its gradient, for
 * VL rows at once.  Part of choose_tmpl.c.
 *
 * A lane is a row: the numbers of unit j for VL rows are one vector, so nothing is summed or
 * compared across lanes whatever the size of a block, and noise is made where it is used.
 */

/* A block of VL rows.  Lanes beyond m hold what does no harm. */
typedef struct lanes {
    int64_t m;
    const int64_t *row;              /* [m] */
    int64_t block, u0;               /* its first column */
    float *z;                        /* of unit j at z + j * CHOOSE_TILE; then what comes of it */
} lanes;

static float *unit_at(const lanes *l, int64_t j) { return l->z + j * CHOOSE_TILE; }

/* The first pick, and the first gate, of lane i. */
static int64_t pick_at(const ag_chooser *c, const lanes *l, int64_t i)
{
    return (l->row[i] * c->c.blocks + l->block) * c->picks;
}

static int64_t gate_at(const ag_chooser *c, const lanes *l, int64_t i)
{
    return (l->row[i] * c->c.blocks + l->block) * gates_of(c);
}

/* ---- noise ---- */

/* A group of 64 columns of noise for VL rows. */
typedef struct lane_noise {
    const ag_noise *noise;
    bool     logs;                   /* g = -log(-log u), else u */
    uint64_t start[VL];              /* Philox block where the noise of a lane's row begins */
    int64_t  group;                  /* that is held, or -1 */
    float   *held;                   /* [CHOOSE_GROUP, VL] */
} lane_noise;

static void noise_start(lane_noise *s, const ag_chooser *c, int64_t units, bool logs, int64_t m,
                        const int64_t *row, float *held)
{
    s->noise = &c->c.noise;
    s->logs = logs;
    s->group = -1;
    s->held = held;
    for (int64_t i = 0; i < VL; i++)
        s->start[i] = 16 * ag_noise_group(&c->c.noise, row[i < m ? i : 0], units);
}

static void noise_make(lane_noise *s, int64_t group)
{
    uint32_t low[VL], high[VL];
    for (int i = 0; i < VL; i++) {
        const uint64_t block = s->start[i] + 16 * (uint64_t)group;
        low[i] = (uint32_t)block;
        high[i] = (uint32_t)(block >> 32);
    }
    vu l, h;
    memcpy(&l, low, sizeof l);
    memcpy(&h, high, sizeof h);
    s->group = group;
    for (int i = 0; i < 16; i += 2) {                     /* columns i, i + 16, i + 32, i + 48 */
        vu w[2][4];
        FOR_EACH(j, 2) {
            w[j][0] = l + (uint32_t)(i + j);
            w[j][1] = h;
            w[j][2] = vset_u(s->noise->site);
            w[j][3] = vset_u(s->noise->step);
        }
        vphilox_rounds(2, s->noise->seed, w);
        FOR_EACH(j, 2) {
            vf u[4];
            FOR_EACH(k, 4) u[k] = gumbel_uniform(w[j][k]);
            if (s->logs) {
                gumbel_logs(u);
                gumbel_logs(u);
            }
            FOR_EACH(k, 4) vstore(s->held + (16 * k + i + j) * VL, u[k]);
        }
    }
}

/* The noise of column u on, as far as its group goes, at most n columns: returns how many. */
static int64_t noise_of(lane_noise *s, int64_t u, int64_t n, const float **ret)
{
    const int64_t at = u % CHOOSE_GROUP;
    if (s->group != u / CHOOSE_GROUP)
        noise_make(s, u / CHOOSE_GROUP);
    *ret = s->held + at * VL;
    return least(n, CHOOSE_GROUP - at);
}

/* z += g */
static void add_noise(int64_t n, const lanes *l, lane_noise *s)
{
    for (int64_t j = 0; j < n;) {
        const float *g;
        for (int64_t left = noise_of(s, l->u0 + j, n - j, &g); left; left--, j++, g += VL)
            vstore(unit_at(l, j), vload(unit_at(l, j)) + vload(g));
    }
}

/* ---- the choice ---- */

/* The place of the largest z, the first of equals. */
static vf best_lanes(int64_t n, const lanes *l)
{
    vf top = vset(-__builtin_inff()), place = vset(0.0f);
    for (int64_t j = 0; j < n; j++) {
        const vf s = vload(unit_at(l, j));
        place = vselect(top, s, vset((float)j), place);
        top = vmax(s, top);
    }
    return place;
}

/*
 * An upper bound of g = -log E, E = -log u, that costs one logarithm, of few terms.  With v = 1 -
 * u, E >= q = v + v^2/2 + v^3/3, and a cubic gives log q to 0.001.
 */
ALWAYS_INLINE vf noise_bound(vf u)
{
    const vf v = 1.0f - u, q = v * (1.0f + v * (0.5f + v * 0.33333333f));
    const vu k = (vu)q - 0x3f3504f3u;                     /* as vlog_normal */
    const vf x = (vf)((k & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    const vf e = (vf)(((k + 0x40000000u) >> 23) | 0x4b000000u) - (8388608.0f + 128.0f);
    return 0.001f - e * 0.69314718f -
        x * (1.00170268f + x * (-0.52268839f + x * 0.30850513f));
}

/*
 * The place of the largest z + f g, where bounds tell it: *ret_sure has a bit for each lane where
 * they do.  There the place with the largest bound has a score above all other bounds.
 */
static vf screen_lanes(int64_t n, float f, const lanes *l, lane_noise *noise, uint32_t *ret_sure)
{
    vf top = vset(-__builtin_inff()), second = top, place = vset(0.0f), top_u = vset(0.5f);
    for (int64_t j = 0; j < n;) {
        const float *p;
        for (int64_t left = noise_of(noise, l->u0 + j, n - j, &p); left; left--, j++, p += VL) {
            const vf u = vload(p), s = vload(unit_at(l, j)) + f * noise_bound(u);
            second = vmax(vmin(s, top), second);
            place = vselect(top, s, vset((float)j), place);
            top_u = vselect(top, s, u, top_u);
            top = vmax(s, top);
        }
    }
    const vf g = -vlog_normal(-vlog_normal(top_u)), score = top + f * (g - noise_bound(top_u));
    *ret_sure = vless(second, score - (1e-5f * f + 1e-6f * vmax(top, -top)));
    return place;
}

/* The same for one lane, with g as it is; tmp[2 * block] */
static int32_t best_of_lane(const ag_chooser *c, const choose_plan *p, const lanes *l, int64_t i,
                            float f, float *tmp)
{
    float *z = tmp + p->block;
    gumbel_columns(&c->c.noise, l->row[i], p->units, l->u0, l->u0 + c->c.n, tmp);
    for (int64_t j = 0; j < c->c.n; j++)
        z[j] = unit_at(l, j)[i];
    return best_score(c->c.n, z, tmp + l->u0 % CHOOSE_GROUP, f);
}

/* Is all of g wanted, as it is in p?  Then z + g replaces z. */
static bool adds_noise(const ag_chooser *c)
{
    return is_soft_noise(c) && (c->gate != AG_GATE_ONE || c->picks > 1);
}

static void choose_lanes(const ag_chooser *c, const choose_plan *p, const lanes *l,
                         lane_noise *noise, float *tmp, int32_t *choice)
{
    const int64_t n = c->c.n;
    const float f = noise_factor(c);
    uint32_t sure = ~0u;
    if (adds_noise(c))
        add_noise(n, l, noise);
    if (c->c.given)
        return;
    float place[VL];
    vstore(place, adds_noise(c) || !has_noise(c) ? best_lanes(n, l)
                                                 : screen_lanes(n, f, l, noise, &sure));
    for (int64_t i = 0; i < l->m; i++) {
        int32_t *pick = choice + pick_at(c, l, i);
        *pick = sure >> i & 1 ? (int32_t)place[i] : best_of_lane(c, p, l, i, f, tmp);
        if (c->picks == 1)
            continue;
        for (int64_t j = 0; j < n; j++)
            tmp[j] = unit_at(l, j)[i];
        list_picks(n, c->picks, tmp, pick);
    }
}

/* ---- softmax ---- */

ALWAYS_INLINE vf lanes_exp_unit(const lanes *l, int64_t j, vf top, float inv)
{
    const vf e = vexp((vload(unit_at(l, j)) - top) * inv);
    vstore(unit_at(l, j), e);
    return e;
}

/* e = exp((z - max) / t) replaces z; returns their sums, in the order of block_exp(). */
static vf lanes_exp(int64_t n, float inv, const lanes *l)
{
    vf top = vset(-__builtin_inff()), s[4] = { { 0 } };
    for (int64_t j = 0; j < n; j++)
        top = vmax(vload(unit_at(l, j)), top);
    int64_t j = 0;
    for (; j + 4 <= n; j += 4)
        FOR_EACH(i, 4) s[i] += lanes_exp_unit(l, j + i, top, inv);
    for (int64_t i = 0; j < n; i++, j++)
        s[i] += lanes_exp_unit(l, j, top, inv);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* e of the first picks; 1 in further lanes */
static vf lanes_picked(const ag_chooser *c, const lanes *l, const int32_t *choice)
{
    float v[VL];
    for (int64_t i = 0; i < VL; i++)
        v[i] = i < l->m ? unit_at(l, choice[pick_at(c, l, i)])[i] : 1.0f;
    return vload(v);
}

/* The gates of the choices, among zeros. */
static void gate_lanes(const ag_chooser *c, const lanes *l, const int32_t *choice, float *gate)
{
    float value[VL];
    vf v = vset(1.0f);
    if (c->gate != AG_GATE_ONE) {
        const vf sum = lanes_exp(c->c.n, inv_t(c), l);
        v = lanes_picked(c, l, choice) / sum;
    }
    vstore(value, v);
    for (int64_t i = 0; i < l->m; i++)
        gate[gate_at(c, l, i) + (c->all ? choice[pick_at(c, l, i)] : 0)] = value[i];
}

/* ---- gradient ---- */

/* Gate j of each lane, or 0. */
static vf lanes_gate(const ag_chooser *c, const lanes *l, const float *dgate, int64_t j)
{
    float v[VL] = { 0 };
    for (int64_t i = 0; i < l->m; i++)
        v[i] = dgate[gate_at(c, l, i) + j];
    return vload(v);
}

/* dp[n, VL] = the gradients of gates, of units that have one; with `all`, rows follow each other */
static void spread_gates(const ag_chooser *c, const lanes *l, const int32_t *choice,
                         const float *dgate, float *dp)
{
    const int64_t n = c->c.n;
    int64_t j = 0;
    if (!c->all) {
        memset(dp, 0, (size_t)(n * VL) * sizeof *dp);
        for (int64_t i = 0; i < l->m; i++)
            for (int64_t k = 0; k < c->picks; k++)
                dp[choice[pick_at(c, l, i) + k] * VL + i] = dgate[gate_at(c, l, i) + k];
        return;
    }
    for (; l->m == VL && j + 4 <= n; j += 4) {
        vf t[4];
        transpose_4(dgate + gate_at(c, l, 0) + j, c->c.blocks * n, t);
        FOR_EACH(i, 4) vstore(dp + (j + i) * VL, t[i]);
    }
    for (; j < n; j++)
        vstore(dp + j * VL, lanes_gate(c, l, dgate, j));
}

/* dz replaces z where one number of dp is not 0: that of the choice. */
static void lanes_dz_single(const ag_chooser *c, const lanes *l, const int32_t *choice,
                            const float *dgate)
{
    const int64_t n = c->c.n;
    const float inv = inv_t(c);
    const vf r = 1.0f / lanes_exp(n, inv, l), p = lanes_picked(c, l, choice) * r;
    vf d = vset(0.0f);
    if (c->all)
        for (int64_t i = 0; i < l->m; i++)
            d[i] = dgate[gate_at(c, l, i) + choice[pick_at(c, l, i)]];
    else
        d = lanes_gate(c, l, dgate, 0);
    d *= inv * (c->gate == AG_GATE_SCALED ? p : vset(1.0f));
    const vf f = -(p * d) * r;
    for (int64_t j = 0; j < n; j++)
        vstore(unit_at(l, j), vload(unit_at(l, j)) * f);
    float at[VL];
    vstore(at, p * (d - p * d));
    for (int64_t i = 0; i < l->m; i++)
        unit_at(l, choice[pick_at(c, l, i)])[i] = at[i];
}

/* dz replaces z; dp[n, VL] is scratch. */
static void lanes_dz(const ag_chooser *c, const lanes *l, const int32_t *choice,
                     const float *dgate, float *dp)
{
    const int64_t n = c->c.n;
    const float inv = inv_t(c);
    const vf r = 1.0f / lanes_exp(n, inv, l);
    const vf f = c->gate == AG_GATE_SCALED ? lanes_picked(c, l, choice) * r : vset(1.0f);
    vf s[2] = { { 0 } };
    spread_gates(c, l, choice, dgate, dp);
    for (int64_t j = 0; j < n; j++)
        s[j % 2] = vfma(vload(unit_at(l, j)), vload(dp + j * VL), s[j % 2]);
    const vf mean = (s[0] + s[1]) * r, g = r * inv * f;
    for (int64_t j = 0; j < n; j++)
        vstore(unit_at(l, j), vload(unit_at(l, j)) * (vload(dp + j * VL) - mean) * g);
}

/* dz of a block from its z, VL rows at once; dp[n, VL] is scratch. */
static void gradient_lanes(const ag_chooser *c, const lanes *l, lane_noise *noise,
                           const int32_t *choice, const float *dgate, float *dp)
{
    if (is_soft_noise(c))
        add_noise(c->c.n, l, noise);
    if (gates_of(c) == 1 || c->gate == AG_GATE_P)
        lanes_dz_single(c, l, choice, dgate);
    else
        lanes_dz(c, l, choice, dgate, dp);
}
