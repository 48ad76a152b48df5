/*
 * attention_tmpl.c -- softmax attention for one instruction set: forward, decoding with a cache,
 * backward.
 *
 * FlashAttention (2205.14135, 2307.08691): scores exist one tile at a time (attention_tile.h);
 * forward keeps a running maximum and sum per query and saves lse, the log of the sum of exp;
 * backward recomputes p = exp(s - lse).  With p~ = p * keep / (1 - drop):
 *
 *   o = p~ v        delta = sum(do * o)     dp = do v^T
 *   dv = p~^T do    ds = p~ * dp - p * delta     dq = scale ds k     dk = scale ds^T q
 *
 * Every sum runs in an order that sizes alone decide: over key tiles for o and dq, over query tiles
 * for dk and dv.  How the work is cut into tasks is therefore free, and chosen by the number of
 * threads.
 */
#ifdef _OPENMP
#include <omp.h>
#endif
#include <stdlib.h>
#include "autograd/cpu/attention_tile.h"
#include "autograd/cpu/fast.h"

enum {
    MAX_HEAD = 256,                  /* wider heads are left to the specification */
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

/* A query sees keys 0 .. this - 1. */
static int64_t keys_seen(const ag_attention *a, int64_t query)
{
    const int64_t n = a->causal ? min_of(query + a->q_pos0 + 1, a->tk) : a->tk;
    return n < 0 ? 0 : n;
}

/* One (batch, head), and the queries query0 .. query0 + n - 1 of it. */
typedef struct queries {
    const float *q, *k, *v;
    float       *o, *lse;
    int64_t      noise_row;          /* of query0 */
    int          n;                  /* up to TILE */
    int64_t      seen[TILE];         /* keys_seen of each */
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
    for (int i = 0; i < x->n; i++)
        x->seen[i] = keys_seen(a, query0 + i);
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

/* Heads head0 .. head0 + heads - 1 of batch item b. */
typedef struct heads_of { int64_t b, head0, heads; } heads_of;

#include "autograd/cpu/attention_few_tmpl.h"

/* ---- forward ---- */

typedef struct forward_tiles {
    float qt[MAX_HEAD * TILE], ot[MAX_HEAD * TILE];      /* q^T [d_qk][TILE], o^T [d_v][TILE] */
    float k[TILE * MAX_HEAD], v[TILE * MAX_HEAD];        /* of the tile: rows lie too far apart for
                                                          * the L1 cache */
    float s[TILE * TILE];
    float max[TILE], sum[TILE], alpha[TILE];        /* so far; what the last tile multiplied o by */
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
        const int64_t n_keys = min_of(TILE, key1 - j), next = j + n_keys;
        fetch_rows(min_of(TILE, key1 - next), a->d_qk, x->k + next * a->k_row, a->k_row);
        fetch_rows(min_of(TILE, key1 - next), a->d_v, x->v + next * a->v_row, a->v_row);
        tile_copy(n_keys, a->d_qk, x->k + j * a->k_row, a->k_row, f.k, k_row, 1.0f);
        tile_copy(n_keys, a->d_v, x->v + j * a->v_row, a->v_row, f.v, v_row, 1.0f);
        tile_shape_init(&t, x->n, x->seen, j, (int)n_keys);
        for (int b = 0; b < t.n_bands; b++) {
            const struct tile_band *e = &t.band[b];
            const tile_product st =
                { a->d_qk, f.k + e->key0 * k_row, k_row, 1, f.qt + e->group0 * GROUP,
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
                                      f.s + e->key0 * TILE + e->group0 * GROUP, TILE,
                                      f.ot + e->group0 * GROUP, TILE,
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

/* ---- forward: the tasks ---- */

/* Some heads of a batch item, where all queries fit in a tile: a part holds lse[rows], then
 * o[rows][d_v]. */
static void forward_part(const ag_attention *a, const tile_noise *z, heads_of x, int64_t key0,
                         int64_t key1, float *part)
{
    if (a->tq <= FEW) {
        few_keys(a, z, x, key0, key1, part);
        return;
    }
    queries q;
    queries_init(&q, a, x.b * a->heads + x.head0, 0);
    forward_keys(a, &q, z, key0, key1, part + q.n, a->d_v, part);
}

/* Joins a part with what o and lse hold of earlier keys: the weights are exp(lse - joint lse). */
static void join_part(const ag_attention *a, heads_of x, bool first, const float *part)
{
    const float *part_lse = part;
    part += x.heads * a->tq;
    for (int64_t h = 0; h < x.heads; h++) {
        queries q;
        queries_init(&q, a, x.b * a->heads + x.head0 + h, 0);
        for (int i = 0; i < q.n; i++, part_lse++, part += a->d_v, q.o += a->o_row) {
            const float old = first ? -__builtin_inff() : q.lse[i],
                top = old > *part_lse ? old : *part_lse;
            if (first)
                memcpy(q.o, part, (size_t)a->d_v * sizeof *part);
            else if (top > -__builtin_inff()) {
                const float w = ag_m_exp(old - top), u = ag_m_exp(*part_lse - top), sum = w + u;
                for (int64_t c = 0; c < a->d_v; c++)
                    q.o[c] = (q.o[c] * w + part[c] * u) / sum;
                q.lse[i] = top + ag_m_log(sum);
                continue;
            }
            q.lse[i] = top;
        }
    }
}

/* Up to 64 queries with a cache of keys, in chunks of keys that only sizes decide.  With fewer
 * groups of heads than threads, chunks too go in parallel, if there is memory for their parts. */
static void forward_cached(const ag_attention *a, const tile_noise *z)
{
    const int64_t chunks = a->tk > CHUNK ? (a->tk + CHUNK - 1) / CHUNK : 1;
    int64_t at_once = a->tq <= FEW ? min_of(FEW_ROWS / a->tq, a->heads) : 1;
    while (at_once > 1 && a->batch * (a->heads / at_once) * chunks < n_threads())
        at_once /= 2;
    const int64_t groups = (a->heads + at_once - 1) / at_once, n = a->batch * groups;
    const int64_t size = at_once * a->tq * (a->d_v + 1);
    const bool worth = a->batch * a->heads * a->tq * a->tk > 2048;
    float *parts = worth && chunks > 1 && n < n_threads()
        ? malloc((size_t)(n * chunks * size) * sizeof *parts) : NULL;
    const int64_t cut = parts ? chunks : 1, span = chunks / cut;
#pragma omp parallel for schedule(dynamic) if (worth)
    for (int64_t task = 0; task < n * cut; task++) {
        const int64_t item = task / cut, head0 = item % groups * at_once;
        const heads_of x = { item / groups, head0, min_of(at_once, a->heads - head0) };
        float one[TILE * (MAX_HEAD + 1)];
        for (int64_t c = task % cut * span; c < (task % cut + 1) * span; c++) {
            float *part = parts ? parts + task * size : one;
            forward_part(a, z, x, c * CHUNK, min_of((c + 1) * CHUNK, a->tk), part);
            if (!parts)
                join_part(a, x, c == 0, part);
        }
    }
    for (int64_t task = 0; parts && task < n * chunks; task++) {
        const int64_t item = task / chunks, head0 = item % groups * at_once;
        const heads_of x = { item / groups, head0, min_of(at_once, a->heads - head0) };
        join_part(a, x, task % chunks == 0, parts + task * size);
    }
    free(parts);
}

void AG_NAME(attention_fwd)(const ag_attention *a)
{
    if (a->d_qk > MAX_HEAD || a->d_v > MAX_HEAD || a->pattern) {
        ag_kernels_ref(AG_F32)->attention_fwd(a);
        return;
    }
    tile_noise z;
    tile_noise_init(&z, &a->noise, a->drop, a->tk);
    const int64_t pairs = a->batch * a->heads, tiles = (a->tq + TILE - 1) / TILE;
    if (pairs * a->tq > 0 && (a->tq <= FEW || (a->tq <= TILE && a->tk > CHUNK))) {
        forward_cached(a, &z);
        return;
    }
    const int64_t at_once = pairs >= 8 * n_threads() ? tiles : 1;       /* whole heads, if many */
#pragma omp parallel for schedule(dynamic, at_once) if (pairs * a->tq * a->tk > 2048)
    for (int64_t task = 0; task < pairs * tiles; task++) {  /* the longest of a causal head first */
        queries x;
        queries_init(&x, a, task / tiles, (tiles - 1 - task % tiles) * TILE);
        if (task % tiles + 1 < tiles)
            fetch_rows(TILE, a->d_qk, x.q - TILE * a->q_row, a->q_row);
        forward_keys(a, &x, &z, 0, a->tk, x.o, a->o_row, x.lse);
    }
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

static void backward_load(const ag_attention *a, const queries *x, const float *grad,
                          const float *delta, backward_tiles *w)
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
        w->lse[i] = any ? x->lse[i] * (float)LOG2_E : -NO_MAX;     /* no key: p = exp2(-1e30) = 0 */
        w->delta[i] = any ? delta[i] : 0.0f;
    }
}

/* s, dp -> p~ (without 1/(1 - drop), which is in do), ds */
INLINE void grad_vector(float *s, float *dp, vf lse, vf delta, bool drop, vu bits,
                        uint32_t threshold)
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
                grad_vector(w->p + key * TILE + i, w->ds + key * TILE + i, lse, delta, false,
                            vset_u(0), 0);
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
static void backward_tile(const ag_attention *a, const queries *x, const tile_shape *t,
                          const tile_noise *z, int64_t j, const backward_part *part, float *dk,
                          float *dv, backward_tiles *w)
{
    for (int b = 0; b < t->n_bands; b++) {
        const struct tile_band *e = &t->band[b];
        const int64_t m = e->key1 - e->key0, lanes = (t->n_groups - e->group0) * GROUP;
        const int64_t at = e->key0 * TILE + e->group0 * GROUP;
        const tile_product s = { a->d_qk, w->k + e->key0 * w->k_row, w->k_row, 1,
                                 w->qt + e->group0 * GROUP, TILE, w->p + at, TILE, TILE_SET, NULL };
        const tile_product dp = { a->d_v, w->v + e->key0 * w->v_row, w->v_row, 1,
                                  w->dot + e->group0 * GROUP, TILE, w->ds + at, TILE, TILE_SET,
                                  NULL };
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

static void backward_task(const ag_attention *a, const ag_attention_grad *g,
                          const backward_part *part, const tile_noise *z)
{
    backward_tiles w __attribute__((aligned(64)));
    const int64_t b = part->pair / a->heads, h = part->pair % a->heads;
    float *dk = (float *)g->dk + b * a->k_batch + h * a->d_qk,
        *dv = (float *)g->dv + b * a->v_batch + h * a->d_v;
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
            (g->acc ? tile_transpose_add : tile_transpose)(a->d_qk, x.n, w.dqt, TILE, dq, a->q_row,
                                                           (float)a->scale);
        }
    }
}

/*
 * With many heads a task is a head: five products a tile.  With few, dq goes by query tiles and
 * then dk, dv by spans of keys: seven products, and no thread idle.
 */
void AG_NAME(attention_bwd)(const ag_attention *a, const ag_attention_grad *g)
{
    if (a->d_qk > MAX_HEAD || a->d_v > MAX_HEAD || a->pattern) {
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
    const int64_t span = (1 + pairs * key_tiles / (8 * threads)) * TILE,
        spans = (a->tk + span - 1) / span;
#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < pairs * tiles; task++) {
            const int64_t i = (tiles - 1 - task % tiles) * TILE;
            const backward_part some = { task / tiles, i, min_of(i + TILE, a->tq), 0, a->tk, true,
                                         false };
            backward_task(a, g, &some, &z);
        }
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < pairs * spans; task++) {
            const int64_t j = task % spans * span;
            const backward_part some = { task / spans, 0, a->tq, j, min_of(j + span, a->tk), false,
                                         true };
            backward_task(a, g, &some, &z);
        }
    }
}
