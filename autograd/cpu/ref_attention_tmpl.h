/*
 * ref_attention_tmpl.h -- the attention of ref_tmpl.c: one pair (query, key) at a time, no scratch
 * memory.
 *
 * For a query i of head h of item b, over the keys j that it sees (Vaswani et al., 1706.03762):
 *   s_j = scale q.k_j,  lse = log sum_j exp s_j,  p_j = exp(s_j - lse),  r_j = keep_j / (1 - drop)
 *   o = sum_j r_j p_j v_j
 * and backwards, with dp_j = r_j (do . v_j) and delta = sum_j p_j dp_j:
 *   ds_j = p_j (dp_j - delta),  dq = scale sum_j ds_j k_j,  dk_j = scale sum_i ds_ij q_i,
 *   dv_j = sum_i r p do_i
 * Sums over keys or queries run in double, for 64 columns of the output at once.
 */
enum { REF_COLS = 64 };

typedef struct pair { int64_t b, h, i, j; } pair;      /* item, head, query, key */

static const real *at_q(const ag_attention *a, const void *q, pair e)
{
    return (const real *)q + e.b * a->q_batch + e.i * a->q_row + e.h * a->d_qk;
}
static const real *at_k(const ag_attention *a, const void *k, pair e)
{
    return (const real *)k + e.b * a->k_batch + e.j * a->k_row + e.h * a->d_qk;
}
static const real *at_v(const ag_attention *a, const void *v, pair e)
{
    return (const real *)v + e.b * a->v_batch + e.j * a->v_row + e.h * a->d_v;
}
static const real *at_o(const ag_attention *a, const void *o, pair e)
{
    return (const real *)o + e.b * a->o_batch + e.i * a->o_row + e.h * a->d_v;
}
static int64_t stat_at(const ag_attention *a, pair e)
{
    return (e.b * a->heads + e.h) * a->tq + e.i;
}

static bool sees(const ag_attention *a, pair e)
{
    return (!a->causal || e.j <= e.i + a->q_pos0) && (!a->lengths || e.j < a->lengths[e.b]) &&
        (!a->pattern || ag_pattern_has(a->pattern, (int)e.h, e.i + a->q_pos0, e.j));
}

static double dot(int64_t n, const real *x, const real *y)
{
    double s = 0;
    for (int64_t d = 0; d < n; d++)
        s += (double)x[d] * (double)y[d];
    return s;
}

static double score(const ag_attention *a, pair e)
{
    return a->scale * dot(a->d_qk, at_q(a, a->q, e), at_k(a, a->k, e));
}

static double kept(const ag_attention *a, pair e)      /* r_j */
{
    if (!(a->drop > 0))
        return 1;
    return ag_noise_at(&a->noise, stat_at(a, e), e.j, a->tk) >= ag_drop_threshold(a->drop)
        ? 1 / (1 - a->drop) : 0;
}

static void attention_row(const ag_attention *a, pair e)
{
    double top = -INFINITY, s = 0;
    for (e.j = 0; e.j < a->tk; e.j++)
        if (sees(a, e))
            top = fmax(top, score(a, e));
    for (e.j = 0; e.j < a->tk; e.j++)
        if (sees(a, e))
            s += exp(score(a, e) - top);
    const double lse = s > 0 ? top + log(s) : (double)-INFINITY;
    ((real *)a->lse)[stat_at(a, e)] = R(lse);
    for (int64_t d0 = 0; d0 < a->d_v; d0 += REF_COLS) {
        const int64_t nd = a->d_v - d0 < REF_COLS ? a->d_v - d0 : REF_COLS;
        double o[REF_COLS] = { 0 };
        for (e.j = 0; e.j < a->tk; e.j++) {
            if (!sees(a, e))
                continue;
            const double p = exp(score(a, e) - lse) * kept(a, e);
            for (int64_t d = 0; d < nd; d++)
                o[d] += p * (double)at_v(a, a->v, e)[d0 + d];
        }
        for (int64_t d = 0; d < nd; d++)
            ((real *)at_o(a, a->o, e))[d0 + d] = R(o[d]);
    }
}

static void attention_fwd(const ag_attention *a)
{
    for (int64_t b = 0; b < a->batch; b++)
        for (int64_t h = 0; h < a->heads; h++)
            for (int64_t i = 0; i < a->tq; i++)
                attention_row(a, (pair){ b, h, i, 0 });
}

/* ds of one pair, *ret_rp = r p */
static double score_grad(const ag_attention *a, const ag_attention_grad *g, pair e, double *ret_rp)
{
    const double p = exp(score(a, e) - (double)((const real *)a->lse)[stat_at(a, e)]),
        r = kept(a, e);
    *ret_rp = r * p;
    return p * (r * dot(a->d_v, at_o(a, g->do_, e), at_v(a, a->v, e)) -
                (double)((const real *)g->delta)[stat_at(a, e)]);
}

static void attention_delta(const ag_attention *a, const ag_attention_grad *g, pair e)
{
    double s = 0;
    for (e.j = 0; e.j < a->tk; e.j++)
        if (sees(a, e))
            s += exp(score(a, e) - (double)((const real *)a->lse)[stat_at(a, e)]) * kept(a, e) *
                 dot(a->d_v, at_o(a, g->do_, e), at_v(a, a->v, e));
    ((real *)g->delta)[stat_at(a, e)] = R(s);
}

/* dq of query e.i, columns d0 .. d0+nd */
static void attention_dq(const ag_attention *a, const ag_attention_grad *g, pair e, int64_t d0,
                         int64_t nd)
{
    double dq[REF_COLS] = { 0 }, rp;
    for (e.j = 0; e.j < a->tk; e.j++) {
        if (!sees(a, e))
            continue;
        const double ds = score_grad(a, g, e, &rp) * a->scale;
        for (int64_t d = 0; d < nd; d++)
            dq[d] += ds * (double)at_k(a, a->k, e)[d0 + d];
    }
    for (int64_t d = 0; d < nd; d++)
        put((real *)at_q(a, g->dq, e) + d0 + d, g->acc, dq[d]);
}

/* dk (want_v false) or dv of key e.j, columns d0 .. d0+nd */
static void attention_dkv(const ag_attention *a, const ag_attention_grad *g, bool want_v, pair e,
                          int64_t d0, int64_t nd)
{
    double sum_d[REF_COLS] = { 0 };
    for (e.i = 0; e.i < a->tq; e.i++) {
        double rp;
        if (!sees(a, e))
            continue;
        const double ds = score_grad(a, g, e, &rp) * a->scale;
        const real *from = want_v ? at_o(a, g->do_, e) : at_q(a, a->q, e);
        for (int64_t d = 0; d < nd; d++)
            sum_d[d] += (want_v ? rp : ds) * (double)from[d0 + d];
    }
    real *to = (real *)(want_v ? at_v(a, g->dv, e) : at_k(a, g->dk, e));
    for (int64_t d = 0; d < nd; d++)
        put(to + d0 + d, g->acc, sum_d[d]);
}

static void attention_bwd_head(const ag_attention *a, const ag_attention_grad *g, pair e)
{
    for (e.i = 0; e.i < a->tq; e.i++)
        attention_delta(a, g, e);
    for (e.i = 0; e.i < a->tq; e.i++)
        for (int64_t d = 0; d < a->d_qk; d += REF_COLS)
            attention_dq(a, g, e, d, a->d_qk - d < REF_COLS ? a->d_qk - d : REF_COLS);
    for (e.j = 0; e.j < a->tk; e.j++) {
        for (int64_t d = 0; d < a->d_qk; d += REF_COLS)
            attention_dkv(a, g, false, e, d, a->d_qk - d < REF_COLS ? a->d_qk - d : REF_COLS);
        for (int64_t d = 0; d < a->d_v; d += REF_COLS)
            attention_dkv(a, g, true, e, d, a->d_v - d < REF_COLS ? a->d_v - d : REF_COLS);
    }
}

static void attention_bwd(const ag_attention *a, const ag_attention_grad *g)
{
    for (int64_t b = 0; b < a->batch; b++)
        for (int64_t h = 0; h < a->heads; h++)
            attention_bwd_head(a, g, (pair){ b, h, 0, 0 });
}
