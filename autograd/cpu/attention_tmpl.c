/*
 * attention_tmpl.c -- softmax attention for one instruction set: forward, decoding with a cache, backward.
 *
 * FlashAttention (2205.14135, 2307.08691): scores exist one tile at a time (attention_tile.h); forward keeps
 * a running maximum and sum per query and saves lse, the log of the sum of exp; backward recomputes
 * p = exp(s - lse).  With p~ = p * keep / (1 - drop):
 *
 *   o = p~ v        delta = sum(do * o)     dp = do v^T
 *   dv = p~^T do    ds = p~ * dp - p * delta     dq = scale ds k     dk = scale ds^T q
 *
 * Every sum runs in an order that sizes alone decide: over key tiles for o and dq, over query tiles for dk
 * and dv.  How the work is cut into tasks is therefore free, and chosen by the number of threads.
 */
#ifdef _OPENMP
#include <omp.h>
#endif
#include <stdlib.h>
#include "autograd/cpu/attention_tile.h"
#include "autograd/cpu/fast.h"

enum {
    MAX_HEAD = 256,                  /* wider heads are left to the specification */
    FEW      = 8,                    /* up to so many queries are taken one by one (decoding) */
    CHUNK    = 512,                  /* keys that one task takes where all queries fit in a tile */
};

static int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

static int n_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

/* One (batch, head), and the queries query0 .. query0 + n - 1 of it. */
typedef struct queries {
    const float *q, *k, *v;
    float       *o, *lse;
    int64_t      noise_row;          /* of query0 */
    int          n;                  /* up to TILE */
    int64_t      seen[TILE];         /* query sees keys 0 .. seen - 1 */
} queries;

static void queries_init(queries *x, const ag_attention *a, int64_t pair, int64_t query0)
{
    const int64_t b = pair / a->heads, h = pair % a->heads;
    x->q = (const float *)a->q + b * a->q_batch + query0 * a->q_row + h * a->d_qk;
    x->k = (const float *)a->k + b * a->k_batch + h * a->d_qk;
    x->v = (const float *)a->v + b * a->v_batch + h * a->d_v;
    x->o = (float *)a->o + b * a->o_batch + query0 * a->o_row + h * a->d_v;
    x->lse = (float *)a->lse + pair * a->tq + query0;
    x->noise_row = a->noise.row0 + pair * a->tq + query0;
    x->n = (int)min_of(TILE, a->tq - query0);
    for (int i = 0; i < x->n; i++) {
        const int64_t s = a->causal ? min_of(query0 + i + a->q_pos0 + 1, a->tk) : a->tk;
        x->seen[i] = s < 0 ? 0 : s;
    }
}

/* The Philox block of query0 and key0, a multiple of 64. */
static uint64_t noise_block(const tile_noise *z, const queries *x, int64_t key0)
{
    return (uint64_t)x->noise_row * z->row_blocks + (uint64_t)key0 / 4;
}

/* x^T with lanes of absent queries zero */
static void transpose_queries(int n, int64_t d, const float *x, int64_t ldx, float *y, float scale)
{
    if (n % GROUP)
        memset(y, 0, (size_t)d * TILE * sizeof *y);
    tile_transpose(n, d, x, ldx, y, TILE, scale);
}

/* ---- forward ---- */

typedef struct forward_tiles {
    float qt[MAX_HEAD * TILE], ot[MAX_HEAD * TILE];      /* q^T [d_qk][TILE], o^T [d_v][TILE] */
    float k[TILE * MAX_HEAD], v[TILE * MAX_HEAD];        /* of the tile: rows lie too far apart for the L1 cache */
    float s[TILE * TILE];
    float max[TILE], sum[TILE], alpha[TILE];             /* so far; what the last tile multiplied o by */
} forward_tiles;

/* s = exp2(s - max), with max and sum carried on over the keys of this tile */
static void softmax_tile(const tile_shape *t, forward_tiles *f)
{
    for (int i = 0; i < t->n_groups * GROUP; i += VL) {
        float *s = f->s + i;
        const int n = t->last[i / GROUP];
        const vf old = vload(f->max + i);
        vf m0 = old, m1 = old, m2 = old, m3 = old;
        int key = 0;
        for (; key + 4 <= n; key += 4) {
            m0 = vmax(vload(s + key * TILE), m0);
            m1 = vmax(vload(s + (key + 1) * TILE), m1);
            m2 = vmax(vload(s + (key + 2) * TILE), m2);
            m3 = vmax(vload(s + (key + 3) * TILE), m3);
        }
        for (; key < n; key++)
            m0 = vmax(vload(s + key * TILE), m0);
        const vf max = vmax(vmax(m0, m1), vmax(m2, m3)), alpha = vexp2(old - max);
        vf sum = vload(f->sum + i) * alpha;
        for (key = 0; key < n; key++) {
            const vf p = vexp2(vload(s + key * TILE) - max);
            vstore(s + key * TILE, p);
            sum += p;
        }
        vstore(f->max + i, max);
        vstore(f->sum + i, sum);
        vstore(f->alpha + i, alpha);
    }
}

static void drop_tile(const tile_shape *t, const tile_noise *z, uint64_t block, float *s)
{
    for (int i = 0; i < t->n_groups * GROUP; i += VL) {
        const int n = t->last[i / GROUP];
        for (int r = 0; r < 16 && r < n; r++) {
            vu bits[4];
            tile_bits(z, block + (uint64_t)i * z->row_blocks + (uint64_t)r, bits);
            for (int k = 0; k < 4; k++)
                if (16 * k + r < n) {
                    float *p = s + (16 * k + r) * TILE + i;
                    vstore(p, vkeep(bits[k], z->threshold, vload(p)));
                }
        }
    }
}

/* o[n][o_row] and lse[n] from keys key0 .. key1 - 1, key0 a multiple of 64 */
static void forward_keys(const ag_attention *a, const queries *x, const tile_noise *z, int64_t key0,
                         int64_t key1, float *o, int64_t o_row, float *lse)
{
    forward_tiles f __attribute__((aligned(64)));
    tile_shape t;
    const int64_t k_row = AG_ALIGN_UP(a->d_qk, GROUP), v_row = AG_ALIGN_UP(a->d_v, GROUP);
    transpose_queries(x->n, a->d_qk, x->q, a->q_row, f.qt, (float)(a->scale * LOG2_E));
    memset(f.ot, 0, (size_t)a->d_v * TILE * sizeof *f.ot);
    for (int i = 0; i < TILE; i++) {
        f.max[i] = NO_MAX;
        f.sum[i] = 0;
    }
    key1 = min_of(key1, x->seen[x->n - 1]);
    for (int64_t j = key0; j < key1; j += TILE) {
        const int64_t n_keys = min_of(TILE, key1 - j);
        tile_copy(n_keys, a->d_qk, x->k + j * a->k_row, a->k_row, f.k, k_row, 1.0f);
        tile_copy(n_keys, a->d_v, x->v + j * a->v_row, a->v_row, f.v, v_row, 1.0f);
        tile_shape_init(&t, x->n, x->seen, j, (int)n_keys);
        for (int b = 0; b < t.n_bands; b++) {
            const struct tile_band *e = &t.band[b];
            const tile_product st = { a->d_qk, f.k + e->key0 * k_row, k_row, 1, f.qt + e->group0 * GROUP,
                                      TILE, f.s + e->key0 * TILE + e->group0 * GROUP, TILE, TILE_SET, NULL };
            tile_multiply(&st, e->key1 - e->key0, (t.n_groups - e->group0) * GROUP);
        }
        tile_mask(&t, f.s);
        softmax_tile(&t, &f);
        if (z->threshold)
            drop_tile(&t, z, noise_block(z, x, j), f.s);
        for (int b = 0; b < t.n_bands; b++) {
            const struct tile_band *e = &t.band[b];
            const tile_product ot = { e->key1 - e->key0, f.v + e->key0 * v_row, 1, v_row,
                                      f.s + e->key0 * TILE + e->group0 * GROUP, TILE, f.ot + e->group0 * GROUP, TILE,
                                      b ? TILE_ADD : TILE_SCALE, f.alpha + e->group0 * GROUP };
            tile_multiply(&ot, a->d_v, (t.n_groups - e->group0) * GROUP);
        }
    }
    const float kept = (float)(1.0 / (1.0 - a->drop));
    for (int i = 0; i < x->n; i += VL) {
        const vf zero = vset(0.0f), sum = vload(f.sum + i);
        vstore(f.alpha + i, vselect(zero, sum, kept / sum, zero));
        vstore(f.max + i, vload(f.max + i) * (float)LN_2 + vlog(sum));
    }
    memcpy(lse, f.max, (size_t)x->n * sizeof *lse);
    tile_transpose_by(a->d_v, x->n, f.ot, TILE, o, o_row, f.alpha);
}

/* ---- few queries: lanes along the head, so that k and v are read once at the speed of memory ---- */

static void few_scores(int n, int64_t d, const float *q, const float *k, int64_t k_row, float *s)
{
    for (int j = 0; j < n; j++, k += k_row) {
        vf x = vset(0.0f);
        int64_t c = 0;
        for (; c + VL <= d; c += VL)
            x = vfma(vload(q + c), vload(k + c), x);
        if (c < d)
            x = vfma(vload(q + c), vload_n(k + c, d - c), x);
        s[j] = vsum(x);
    }
}

/* o = o * alpha + p v, o[d] padded to whole vectors */
static void few_values(int n, int64_t d, const float *p, const float *v, int64_t v_row, float alpha, float *o)
{
    int64_t c = 0;
    for (; c + 4 * VL <= d; c += 4 * VL) {
        vf x[4];
        UNROLL for (int u = 0; u < 4; u++)
            x[u] = vload(o + c + u * VL) * alpha;
        for (int j = 0; j < n; j++)
            UNROLL for (int u = 0; u < 4; u++)
                x[u] = vfma(vset(p[j]), vload(v + j * v_row + c + u * VL), x[u]);
        UNROLL for (int u = 0; u < 4; u++)
            vstore(o + c + u * VL, x[u]);
    }
    for (; c < d; c += VL) {
        vf x = vload(o + c) * alpha;
        for (int j = 0; j < n; j++)
            x = vfma(vset(p[j]), vload_n(v + j * v_row + c, min_of(VL, d - c)), x);
        vstore(o + c, x);
    }
}

/* One query and n keys from key0: s = exp2(s - max); returns what o must be multiplied by. */
static float few_softmax(int n, float *s, float *max, float *sum)
{
    vf m = vset(*max), l = vset(0.0f);
    for (int j = n; j < AG_ALIGN_UP(n, VL); j++)
        s[j] = MASKED;
    for (int j = 0; j < n; j += VL)
        m = vmax(vload(s + j), m);
    const vf top = vset(vmaxall(m));
    for (int j = 0; j < n; j += VL) {
        const vf p = vexp2(vload(s + j) - top);
        vstore(s + j, p);
        l += p;
    }
    const float alpha = vexp2(vset(*max) - top)[0];
    *max = top[0];
    *sum = *sum * alpha + vsum(l);
    return alpha;
}

static void few_drop(int n, const ag_noise *noise, uint64_t group, uint32_t threshold, float *s)
{
    uint32_t bits[TILE];
    vnoise64(noise, group, bits);
    for (int j = 0; j < n; j++)
        s[j] = bits[j] >= threshold ? s[j] : 0.0f;
}

static void few_keys(const ag_attention *a, const queries *x, const tile_noise *z, int64_t key0, int64_t key1,
                     float *o, int64_t o_row, float *lse)
{
    float q[FEW][MAX_HEAD] __attribute__((aligned(64))), y[FEW][MAX_HEAD] __attribute__((aligned(64)));
    float s[TILE] __attribute__((aligned(64))), max[FEW], sum[FEW];
    memset(y, 0, sizeof y);
    for (int i = 0; i < x->n; i++) {
        tile_copy(1, a->d_qk, x->q + i * a->q_row, 0, q[i], AG_ALIGN_UP(a->d_qk, VL), (float)(a->scale * LOG2_E));
        max[i] = NO_MAX;
        sum[i] = 0;
    }
    for (int64_t j = key0; j < key1; j += TILE)
        for (int i = 0; i < x->n; i++) {
            const int n = (int)min_of(min_of(TILE, key1 - j), x->seen[i] - j);
            if (n <= 0)
                continue;
            few_scores(n, a->d_qk, q[i], x->k + j * a->k_row, a->k_row, s);
            const float alpha = few_softmax(n, s, &max[i], &sum[i]);
            if (z->threshold)
                few_drop(n, &a->noise, (noise_block(z, x, j) + (uint64_t)i * z->row_blocks) / 16, z->threshold, s);
            few_values(n, a->d_v, s, x->v + j * a->v_row, a->v_row, alpha, y[i]);
        }
    for (int i = 0; i < x->n; i++) {
        const float by = sum[i] > 0 ? (float)(1.0 / (1.0 - a->drop)) / sum[i] : 0.0f;
        for (int64_t c = 0; c < a->d_v; c++)
            o[i * o_row + c] = y[i][c] * by;
        lse[i] = max[i] * (float)LN_2 + ag_m_log(sum[i]);
    }
}

/* ---- forward: the tasks ---- */

static void forward_any(const ag_attention *a, const queries *x, const tile_noise *z, int64_t key0,
                        int64_t key1, float *o, int64_t o_row, float *lse)
{
    (a->tq <= FEW ? few_keys : forward_keys)(a, x, z, key0, key1, o, o_row, lse);
}

/* (o, lse) of some keys joined by (part, part_lse) of others: the weights are exp(lse - joint lse) */
static void join_chunk(int n, int64_t d, float *o, int64_t o_row, float *lse, const float *part,
                       const float *part_lse)
{
    for (int i = 0; i < n; i++, o += o_row, part += d) {
        const float top = lse[i] > part_lse[i] ? lse[i] : part_lse[i];
        if (top == -__builtin_inff())
            continue;
        const float w = ag_m_exp(lse[i] - top), u = ag_m_exp(part_lse[i] - top), sum = w + u;
        for (int64_t c = 0; c < d; c++)
            o[c] = (o[c] * w + part[c] * u) / sum;
        lse[i] = top + ag_m_log(sum);
    }
}

/* One task: all keys of up to 64 queries, in chunks where there is only this tile of queries. */
static void forward_task(const ag_attention *a, int64_t pair, int64_t query0, const tile_noise *z)
{
    queries x;
    queries_init(&x, a, pair, query0);
    const int64_t chunk = a->tq <= TILE && a->tk > CHUNK ? CHUNK : a->tk;
    forward_any(a, &x, z, 0, chunk, x.o, a->o_row, x.lse);
    for (int64_t j = chunk; j < a->tk; j += chunk) {
        float part[TILE * MAX_HEAD], lse[TILE];
        forward_any(a, &x, z, j, min_of(j + chunk, a->tk), part, a->d_v, lse);
        join_chunk(x.n, a->d_v, x.o, a->o_row, x.lse, part, lse);
    }
}

/* As forward_task for every pair, with chunks in parallel; false, with nothing done, if there is no memory. */
static bool forward_chunks(const ag_attention *a, const tile_noise *z)
{
    const int64_t pairs = a->batch * a->heads, chunks = (a->tk + CHUNK - 1) / CHUNK, size = a->tq * (a->d_v + 1);
    float *parts = malloc((size_t)(pairs * chunks * size) * sizeof *parts);
    if (!parts)
        return false;
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < pairs * chunks; task++) {
        queries x;
        queries_init(&x, a, task / chunks, 0);
        const int64_t j = task % chunks * CHUNK;
        float *part = parts + task * size;
        forward_any(a, &x, z, j, min_of(j + CHUNK, a->tk), part + x.n, a->d_v, part);
    }
    for (int64_t pair = 0; pair < pairs; pair++) {
        queries x;
        queries_init(&x, a, pair, 0);
        const float *part = parts + pair * chunks * size;
        for (int i = 0; i < x.n; i++)
            memcpy(x.o + i * a->o_row, part + x.n + i * a->d_v, (size_t)a->d_v * sizeof *part);
        memcpy(x.lse, part, (size_t)x.n * sizeof *part);
        for (int64_t c = 1; c < chunks; c++)
            join_chunk(x.n, a->d_v, x.o, a->o_row, x.lse, part + c * size + x.n, part + c * size);
    }
    free(parts);
    return true;
}

void AG_NAME(attention_fwd)(const ag_attention *a)
{
    if (a->d_qk > MAX_HEAD || a->d_v > MAX_HEAD) {
        ag_kernels_ref(AG_F32)->attention_fwd(a);
        return;
    }
    tile_noise z;
    tile_noise_init(&z, &a->noise, a->drop, a->tk);
    const int64_t pairs = a->batch * a->heads, tiles = (a->tq + TILE - 1) / TILE;
    if (a->tq <= TILE && a->tk > CHUNK && pairs < n_threads() && forward_chunks(a, &z))
        return;
#pragma omp parallel for schedule(dynamic) if (pairs * a->tq * a->tk > 4096)
    for (int64_t task = 0; task < pairs * tiles; task++)     /* the longest of a causal head first */
        forward_task(a, task / tiles, (tiles - 1 - task % tiles) * TILE, &z);
}

/* ---- backward ---- */

typedef struct backward_tiles {
    float qt[MAX_HEAD * TILE], dot[MAX_HEAD * TILE];     /* q^T and do^T */
    float q[MAX_HEAD * TILE], k[MAX_HEAD * TILE];        /* [TILE][k_row] */
    float do_[MAX_HEAD * TILE], v[MAX_HEAD * TILE];      /* [TILE][v_row] */
    float dqt[MAX_HEAD * TILE];
    float p[TILE * TILE], ds[TILE * TILE];               /* first s and dp, transposed */
    float lse[TILE], delta[TILE];                        /* lse in base 2 */
    int64_t k_row, v_row;                                /* d_qk and d_v padded to GROUP */
} backward_tiles;

/* The part of a head's gradient that a task makes: these query tiles x these key tiles. */
typedef struct backward_part {
    int64_t pair, query0, query1, key0, key1;
    bool    dq, dkv;                                     /* which outputs */
} backward_part;

static float dot_rows(int64_t n, const float *x, const float *y)
{
    vf sum = vset(0.0f);
    int64_t c = 0;
    for (; c + VL <= n; c += VL)
        sum = vfma(vload(x + c), vload(y + c), sum);
    if (c < n)
        sum = vfma(vload_n(x + c, n - c), vload_n(y + c, n - c), sum);
    return vsum(sum);
}

static void backward_load(const ag_attention *a, const queries *x, const float *grad, const float *delta,
                          backward_tiles *w)
{
    const float kept = (float)(1.0 / (1.0 - a->drop));
    transpose_queries(x->n, a->d_qk, x->q, a->q_row, w->qt, (float)(a->scale * LOG2_E));
    transpose_queries(x->n, a->d_v, grad, a->o_row, w->dot, kept);
    w->k_row = AG_ALIGN_UP(a->d_qk, GROUP);
    w->v_row = AG_ALIGN_UP(a->d_v, GROUP);
    tile_copy(x->n, a->d_qk, x->q, a->q_row, w->q, w->k_row, (float)a->scale);
    tile_copy(x->n, a->d_v, grad, a->o_row, w->do_, w->v_row, kept);
    for (int i = 0; i < TILE; i++) {
        const bool any = i < x->n && x->lse[i] > -__builtin_inff();
        w->lse[i] = any ? x->lse[i] * (float)LOG2_E : -NO_MAX;       /* no key: p = exp2(-1e30) = 0 */
        w->delta[i] = any ? delta[i] : 0.0f;
    }
}

/* s, dp -> p~ (without 1/(1 - drop), which is in do), ds */
INLINE void grad_vector(float *s, float *dp, vf lse, vf delta, bool drop, vu bits, uint32_t threshold)
{
    const vf p = vexp2(vload(s) - lse), g = vload(dp);
    vstore(s, drop ? vkeep(bits, threshold, p) : p);
    vstore(dp, p * ((drop ? vkeep(bits, threshold, g) : g) - delta));
}

static void grad_tile(const tile_shape *t, const tile_noise *z, uint64_t block, backward_tiles *w)
{
    for (int i = 0; i < t->n_groups * GROUP; i += VL) {
        const int n = t->last[i / GROUP];
        const vf lse = vload(w->lse + i), delta = vload(w->delta + i);
        if (!z->threshold) {
            for (int key = 0; key < n; key++)
                grad_vector(w->p + key * TILE + i, w->ds + key * TILE + i, lse, delta, false, vset_u(0), 0);
            continue;
        }
        for (int r = 0; r < 16 && r < n; r++) {
            vu bits[4];
            tile_bits(z, block + (uint64_t)i * z->row_blocks + (uint64_t)r, bits);
            for (int k = 0; k < 4; k++)
                if (16 * k + r < n) {
                    const int at = (16 * k + r) * TILE + i;
                    grad_vector(w->p + at, w->ds + at, lse, delta, true, bits[k], z->threshold);
                }
        }
    }
}

/* One tile: p and ds, then what they give to dq, dk, dv (of key j on). */
static void backward_tile(const ag_attention *a, const queries *x, const tile_shape *t, const tile_noise *z,
                          int64_t j, const backward_part *part, float *dk, float *dv, backward_tiles *w)
{
    for (int b = 0; b < t->n_bands; b++) {
        const struct tile_band *e = &t->band[b];
        const int64_t m = e->key1 - e->key0, lanes = (t->n_groups - e->group0) * GROUP;
        const int64_t at = e->key0 * TILE + e->group0 * GROUP;
        const tile_product s = { a->d_qk, w->k + e->key0 * w->k_row, w->k_row, 1, w->qt + e->group0 * GROUP, TILE,
                                 w->p + at, TILE, TILE_SET, NULL };
        const tile_product dp = { a->d_v, w->v + e->key0 * w->v_row, w->v_row, 1, w->dot + e->group0 * GROUP, TILE,
                                  w->ds + at, TILE, TILE_SET, NULL };
        tile_multiply(&s, m, lanes);
        tile_multiply(&dp, m, lanes);
    }
    tile_mask(t, w->p);
    grad_tile(t, z, noise_block(z, x, j), w);
    for (int b = 0; b < t->n_bands; b++) {
        const struct tile_band *e = &t->band[b];
        const int64_t m = e->key1 - e->key0, query0 = e->group0 * GROUP, n = t->n_queries - query0;
        const int64_t at = e->key0 * TILE + query0;
        if (part->dkv) {
            const tile_product pv = { n, w->p + at, TILE, 1, w->do_ + query0 * w->v_row, w->v_row,
                                      dv + e->key0 * a->v_row, a->v_row, TILE_ADD, NULL };
            const tile_product pk = { n, w->ds + at, TILE, 1, w->q + query0 * w->k_row, w->k_row,
                                      dk + e->key0 * a->k_row, a->k_row, TILE_ADD, NULL };
            tile_multiply(&pv, m, a->d_v);
            tile_multiply(&pk, m, a->d_qk);
        }
        if (part->dq) {
            const tile_product pq = { m, w->k + e->key0 * w->k_row, 1, w->k_row, w->ds + at, TILE,
                                      w->dqt + query0, TILE, TILE_ADD, NULL };
            tile_multiply(&pq, a->d_qk, (t->n_groups - e->group0) * GROUP);
        }
    }
}

static void backward_task(const ag_attention *a, const ag_attention_grad *g, const backward_part *part,
                          const tile_noise *z)
{
    backward_tiles w __attribute__((aligned(64)));
    const int64_t b = part->pair / a->heads, h = part->pair % a->heads;
    float *dk = (float *)g->dk + b * a->k_batch + h * a->d_qk, *dv = (float *)g->dv + b * a->v_batch + h * a->d_v;
    if (part->dkv && !g->acc)
        for (int64_t j = part->key0; j < part->key1; j++) {
            memset(dk + j * a->k_row, 0, (size_t)a->d_qk * sizeof *dk);
            memset(dv + j * a->v_row, 0, (size_t)a->d_v * sizeof *dv);
        }
    for (int64_t i = part->query0; i < part->query1; i += TILE) {
        queries x;
        queries_init(&x, a, part->pair, i);
        const float *grad = (const float *)g->do_ + b * a->o_batch + i * a->o_row + h * a->d_v;
        float *delta = (float *)g->delta + part->pair * a->tq + i;
        const int64_t end = min_of(part->key1, x.seen[x.n - 1]);
        if (part->dq)
            for (int r = 0; r < x.n; r++)
                delta[r] = dot_rows(a->d_v, grad + r * a->o_row, x.o + r * a->o_row);
        else if (part->key0 >= end)
            continue;
        backward_load(a, &x, grad, delta, &w);
        if (part->dq)
            memset(w.dqt, 0, (size_t)a->d_qk * TILE * sizeof *w.dqt);
        for (int64_t j = part->key0; j < end; j += TILE) {
            tile_shape t;
            const int64_t n_keys = min_of(TILE, end - j);
            tile_copy(n_keys, a->d_qk, x.k + j * a->k_row, a->k_row, w.k, w.k_row, 1.0f);
            tile_copy(n_keys, a->d_v, x.v + j * a->v_row, a->v_row, w.v, w.v_row, 1.0f);
            tile_shape_init(&t, x.n, x.seen, j, (int)n_keys);
            backward_tile(a, &x, &t, z, j, part, dk + j * a->k_row, dv + j * a->v_row, &w);
        }
        if (part->dq) {
            float *dq = (float *)g->dq + b * a->q_batch + i * a->q_row + h * a->d_qk;
            (g->acc ? tile_transpose_add : tile_transpose)(a->d_qk, x.n, w.dqt, TILE, dq, a->q_row, (float)a->scale);
        }
    }
}

/*
 * With many heads a task is a head: five products a tile.  With few, dq goes by query tiles and then dk, dv
 * by spans of keys: seven products, and no thread idle.
 */
void AG_NAME(attention_bwd)(const ag_attention *a, const ag_attention_grad *g)
{
    if (a->d_qk > MAX_HEAD || a->d_v > MAX_HEAD) {
        ag_kernels_ref(AG_F32)->attention_bwd(a, g);
        return;
    }
    tile_noise z;
    tile_noise_init(&z, &a->noise, a->drop, a->tk);
    const int64_t pairs = a->batch * a->heads, threads = n_threads();
    const int64_t rounds = (pairs + threads - 1) / threads;
    const bool worth = pairs * a->tq * a->tk > 2048;
    if (!worth || 7 * pairs >= 5 * rounds * threads) {
#pragma omp parallel for schedule(dynamic) if (worth)
        for (int64_t pair = 0; pair < pairs; pair++) {
            const backward_part all = { pair, 0, a->tq, 0, a->tk, true, true };
            backward_task(a, g, &all, &z);
        }
        return;
    }
    const int64_t tiles = (a->tq + TILE - 1) / TILE, key_tiles = (a->tk + TILE - 1) / TILE;
    const int64_t span = (1 + pairs * key_tiles / (8 * threads)) * TILE, spans = (a->tk + span - 1) / span;
#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < pairs * tiles; task++) {
            const int64_t i = (tiles - 1 - task % tiles) * TILE;
            const backward_part some = { task / tiles, i, min_of(i + TILE, a->tq), 0, a->tk, true, false };
            backward_task(a, g, &some, &z);
        }
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < pairs * spans; task++) {
            const int64_t j = task % spans * span;
            const backward_part some = { task / spans, 0, a->tq, j, min_of(j + span, a->tk), false, true };
            backward_task(a, g, &some, &z);
        }
    }
}
