/*
 * attention_few_tmpl.h -- attention of up to 8 queries: decoding with a cache, bound by memory.
 *
 * Vectors lie along the head, and many heads are taken at once, 8 keys at a time, so that the cache
 * is read once, row after row, as it lies in memory.  Part of attention_tmpl.c.
 */
enum {
    FEW      = 8,                    /* queries */
    FEW_ROWS = 32,                   /* heads x queries at once */
    FEW_KEYS = 8,                    /* keys before the next head */
};

typedef struct few_state {
    float q[FEW_ROWS][MAX_HEAD], o[FEW_ROWS][MAX_HEAD];  /* padded to whole vectors */
    float s[FEW_ROWS][TILE];
    float max[FEW_ROWS], sum[FEW_ROWS];
} few_state;

INLINE void few_dots(const int n, int64_t d, const float *q, const float *k, int64_t k_row,
                     float *s)
{
    vf x[FEW_KEYS];
    UNROLL for (int j = 0; j < n; j++)
        x[j] = vset(0.0f);
    int64_t c = 0;
    for (; c + VL <= d; c += VL)
        UNROLL for (int j = 0; j < n; j++)
            x[j] = vfma(vload(q + c), vload(k + j * k_row + c), x[j]);
    if (c < d)
        UNROLL for (int j = 0; j < n; j++)
            x[j] = vfma(vload(q + c), vload_n(k + j * k_row + c, d - c), x[j]);
    UNROLL for (int j = 0; j < n; j++)
        s[j] = vsum(x[j]);
}

/* o += p v, n keys */
INLINE void few_values(const int n, int64_t d, const float *p, const float *v, int64_t v_row,
                       float *o)
{
    int64_t c = 0;
    for (; c + VL <= d; c += VL) {
        vf x = vload(o + c);
        UNROLL for (int j = 0; j < n; j++)
            x = vfma(vset(p[j]), vload(v + j * v_row + c), x);
        vstore(o + c, x);
    }
    if (c < d) {
        vf x = vload(o + c);
        UNROLL for (int j = 0; j < n; j++)
            x = vfma(vset(p[j]), vload_n(v + j * v_row + c, d - c), x);
        vstore(o + c, x);
    }
}

/* One row: s = exp2(s - max) over its first n scores, 0 over the rest; max, sum and o[d] carried
 * on. */
static void few_softmax(int n, int64_t d, float *s, float *max, float *sum, float *o)
{
    vf m = vset(*max), l = vset(0.0f);
    for (int j = n < 0 ? 0 : n; j < TILE; j++)
        s[j] = MASKED;
    for (int j = 0; j < TILE; j += VL)
        m = vmax(vload(s + j), m);
    const vf top = vset(vmaxall(m)), alpha = vexp2(vset(*max) - top);
    for (int j = 0; j < TILE; j += VL) {
        const vf p = vexp2(vload(s + j) - top);
        vstore(s + j, p);
        l += p;
    }
    for (int64_t c = 0; c < d; c += VL)
        vstore(o + c, vload(o + c) * alpha);
    *max = top[0];
    *sum = *sum * alpha[0] + vsum(l);
}

/* Where 8 keys from t on lie, if they are there and at equal distances; else step is 0. */
typedef struct few_row { int64_t first, step; } few_row;

static few_row few_rows(const int32_t *list, int64_t j, int64_t t, int64_t n)
{
    if (t + FEW_KEYS > n)
        return (few_row){ 0, 0 };
    if (!list)
        return (few_row){ j + t, 1 };
    const int64_t step = list[t + 1] - list[t];
    for (int64_t u = t + 2; u < t + FEW_KEYS; u++)
        if (list[u] - list[u - 1] != step)
            return (few_row){ 0, 0 };
    return (few_row){ list[t], step };
}

/* Row r of the noise, keys from key0, a multiple of 64. */
static void few_drop(const ag_attention *a, int64_t row, int64_t key0, uint32_t threshold, float *s)
{
    uint32_t bits[TILE];
    vnoise64(&a->noise, ag_noise_group(&a->noise, row, a->tk) + (uint64_t)key0 / 64, bits);
    for (int j = 0; j < TILE; j++)
        s[j] = bits[j] >= threshold ? s[j] : 0.0f;
}

/* Up to 64 keys from key j on, or those of a list. */
static void few_tile(const ag_attention *a, const tile_noise *z, heads_of x, int64_t j, int64_t n,
                     const int32_t *list, few_state *f)
{
    const float *k = (const float *)a->k + x.b * a->k_batch + x.head0 * a->d_qk;
    const float *v = (const float *)a->v + x.b * a->v_batch + x.head0 * a->d_v;
    for (int64_t t = 0; t < n; t += FEW_KEYS) {
        const few_row at = few_rows(list, j, t, n);
        for (int64_t r = 0; r < x.heads * a->tq; r++) {
            const float *head = k + r / a->tq * a->d_qk;
            if (at.step)
                few_dots(FEW_KEYS, a->d_qk, f->q[r], head + at.first * a->k_row, at.step * a->k_row,
                         f->s[r] + t);
            else
                for (int64_t u = t; u < t + FEW_KEYS && u < n; u++)
                    few_dots(1, a->d_qk, f->q[r], head + (list ? list[u] : j + u) * a->k_row, 0,
                             f->s[r] + u);
        }
    }
    for (int64_t r = 0; r < x.heads * a->tq; r++) {
        const int seen = (int)(list ? n : min_of(n, keys_seen(a, x.b, r % a->tq) - j));
        few_softmax(seen, a->d_v, f->s[r], &f->max[r], &f->sum[r], f->o[r]);
        if (z->threshold)
            few_drop(a, (x.b * a->heads + x.head0) * a->tq + r, j, z->threshold, f->s[r]);
    }
    for (int64_t t = 0; t < n; t += FEW_KEYS) {
        const few_row at = few_rows(list, j, t, n);
        for (int64_t r = 0; r < x.heads * a->tq; r++) {
            const float *head = v + r / a->tq * a->d_v;
            if (at.step)
                few_values(FEW_KEYS, a->d_v, f->s[r] + t, head + at.first * a->v_row,
                           at.step * a->v_row, f->o[r]);
            else
                for (int64_t u = t; u < t + FEW_KEYS && u < n; u++)
                    few_values(1, a->d_v, f->s[r] + u, head + (list ? list[u] : j + u) * a->v_row,
                               0, f->o[r]);
        }
    }
}

static void few_begin(const ag_attention *a, heads_of x, few_state *f)
{
    for (int64_t r = 0; r < x.heads * a->tq; r++) {
        const float *q = (const float *)a->q + x.b * a->q_batch + r % a->tq * a->q_row +
                         (x.head0 + r / a->tq) * a->d_qk;
        tile_copy(1, a->d_qk, q, 0, f->q[r], AG_ALIGN_UP(a->d_qk, VL), (float)(a->scale * LOG2_E));
        memset(f->o[r], 0, (size_t)AG_ALIGN_UP(a->d_v, VL) * sizeof f->o[r][0]);
        f->max[r] = NO_MAX;
        f->sum[r] = 0;
    }
}

/* o[d_v] of row r; returns its lse */
static float few_end(const ag_attention *a, const few_state *f, int64_t r, float *o)
{
    const float by = f->sum[r] > 0 ? (float)(1.0 / (1.0 - a->drop)) / f->sum[r] : 0.0f;
    for (int64_t c = 0; c < a->d_v; c++)
        o[c] = f->o[r][c] * by;
    return f->max[r] * (float)LN_2 + ag_m_log(f->sum[r]);
}

/* part = lse[rows], o[rows][d_v] of keys key0 .. key1 - 1, where row = (head - head0) * tq +
 * query */
static void few_keys(const ag_attention *a, const tile_noise *z, heads_of x, int64_t key0,
                     int64_t key1, float *part)
{
    few_state f __attribute__((aligned(64)));
    const int64_t rows = x.heads * a->tq;
    few_begin(a, x, &f);
    key1 = min_of(key1, keys_seen(a, x.b, a->tq - 1));
    for (int64_t j = key0; j < key1; j += TILE)
        few_tile(a, z, x, j, min_of(TILE, key1 - j), NULL, &f);
    for (int64_t r = 0; r < rows; r++)
        part[r] = few_end(a, &f, r, part + rows + r * a->d_v);
}

/* ---- a pattern's rows: only the keys that a query sees are read ---- */

/* Query i of heads that share a layout. */
static void few_pattern_row(const ag_attention *a, const tile_noise *z, heads_of x, int64_t i)
{
    ag_attention one = *a;           /* that query alone */
    one.tq = 1;
    one.q = (const float *)a->q + i * a->q_row;
    few_state f __attribute__((aligned(64)));
    int32_t list[TILE];
    int64_t n = 0, begin, end;
    few_begin(&one, x, &f);
    for (int64_t from = 0; ag_pattern_run(a->pattern, (int)x.head0, i + a->q_pos0, from, &begin,
                                          &end); from = end)
        for (int64_t j = begin; j < end && j < a->tk; j++) {
            list[n++] = (int32_t)j;
            if (n == TILE) {
                few_tile(&one, z, x, 0, n, list, &f);
                n = 0;
            }
        }
    if (n)
        few_tile(&one, z, x, 0, n, list, &f);
    for (int64_t r = 0; r < x.heads; r++)
        ((float *)a->lse)[(x.b * a->heads + x.head0 + r) * a->tq + i] =
            few_end(a, &f, r, (float *)a->o + x.b * a->o_batch + i * a->o_row +
                              (x.head0 + r) * a->d_v);
}

static void few_pattern(const ag_attention *a, const tile_noise *z)
{
    int64_t at_once = a->pattern->layouts > 1 ? 1 : min_of(FEW_ROWS, a->heads);
    while (at_once > 1 && a->batch * a->tq * (a->heads / at_once) < n_threads())
        at_once /= 2;
    const int64_t groups = (a->heads + at_once - 1) / at_once, n = a->batch * a->tq * groups;
#pragma omp parallel for schedule(dynamic) if (n > 1)
    for (int64_t task = 0; task < n; task++) {
        const int64_t item = task / groups, head0 = task % groups * at_once;
        const heads_of x = { item / a->tq, head0, min_of(at_once, a->heads - head0) };
        few_pattern_row(a, z, x, item % a->tq);
    }
}
