/*
 * attention_tmpl.c -- softmax attention for one instruction set, forward and decoding with a cache.
 *
 * FlashAttention (2205.14135, 2307.08691): scores exist one tile at a time (attention_tile.h), with
 * a running maximum and sum per query; lse, the log of the sum of exp, is kept for backward
 * (attention_grad_tmpl.c).
 *
 * Every sum runs over key tiles in an order that sizes alone decide.  How the work is cut into
 * tasks is therefore free, and chosen by the number of threads.
 */
#include <stdlib.h>

#include "autograd/cpu/attention_keys_tmpl.h"

enum { CHUNK = 512 };                /* keys of a task where all queries fit in a tile */

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
static void softmax_vector(int n, float *s, float *max_at, float *sum_at, float *alpha_at)
{
    const vf old = vload(max_at);
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
    vf sum = vload(sum_at) * alpha;
    for (key = 0; key < n; key++) {
        const vf p = vexp2(vload(s + key * TILE) - max);
        vstore(s + key * TILE, p);
        sum += p;
    }
    vstore(max_at, max);
    vstore(sum_at, sum);
    vstore(alpha_at, alpha);
}

static void softmax_tile(const tile_shape *t, forward_tiles *f)
{
    for (int i = 0; i < t->n_groups * GROUP; i += VL) {
        const int begin = t->begin[i / GROUP], n = t->end[i / GROUP] - begin;
        if (n > 0)
            softmax_vector(n, f->s + begin * TILE + i, f->max + i, f->sum + i, f->alpha + i);
        else
            vstore(f->alpha + i, vset(1.0f));
    }
}

/* Does one band have all groups that any has? */
static bool is_led(const tile_shape *t)
{
    for (int b = 1; b < t->n_bands; b++)
        if (t->band[b].group0 < t->band[0].group0 || t->band[b].group1 > t->band[0].group1)
            return false;
    return t->n_bands > 0;
}

/* o^T *= alpha */
static void scale_tile(int64_t d, forward_tiles *f)
{
    for (int64_t c = 0; c < d; c++)
        for (int i = 0; i < TILE; i += VL)
            vstore(f->ot + c * TILE + i, vload(f->ot + c * TILE + i) * vload(f->alpha + i));
}

static void drop_tile(const tile_shape *t, const tile_noise *z, uint64_t block, float *s)
{
    for (int i = 0; i < t->n_groups * GROUP; i += VL) {
        const int n = t->end[i / GROUP];
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

/* One tile: the scores of the keys from the j-th on, then what they add to o. */
static void forward_tile(const ag_attention *a, const queries *x, const tile_noise *z, int64_t j,
                         const tile_keys *keys, forward_tiles *f)
{
    const int64_t k_row = AG_ALIGN_UP(a->d_qk, GROUP), v_row = AG_ALIGN_UP(a->d_v, GROUP);
    tile_shape t;
    keys_load(keys, a->d_qk, x->k, a->k_row, f->k, k_row);
    keys_load(keys, a->d_v, x->v, a->v_row, f->v, v_row);
    tile_shape_init(&t, x, keys);
    for (int b = 0; b < t.n_bands; b++) {
        const struct tile_band *e = &t.band[b];
        const tile_product st =
            { a->d_qk, f->k + e->key0 * k_row, k_row, 1, f->qt + e->group0 * GROUP,
              TILE, f->s + e->key0 * TILE + e->group0 * GROUP, TILE, TILE_SET, NULL };
        tile_multiply(&st, e->key1 - e->key0, (e->group1 - e->group0) * GROUP);
    }
    tile_mask(&t, f->s);
    softmax_tile(&t, f);
    if (z->threshold)
        drop_tile(&t, z, noise_block(z, x, j), f->s);
    const bool led = is_led(&t);
    if (!led)
        scale_tile(a->d_v, f);
    for (int b = 0; b < t.n_bands; b++) {
        const struct tile_band *e = &t.band[b];
        const tile_product ot = { e->key1 - e->key0, f->v + e->key0 * v_row, 1, v_row,
                                  f->s + e->key0 * TILE + e->group0 * GROUP, TILE,
                                  f->ot + e->group0 * GROUP, TILE,
                                  b || !led ? TILE_ADD : TILE_SCALE,
                                  f->alpha + e->group0 * GROUP };
        tile_multiply(&ot, a->d_v, (e->group1 - e->group0) * GROUP);
    }
}

/* o^T and max, sum of keys key0 .. key1 - 1 (of those of x), key0 a multiple of 64.  Then max is
 * the log of the sum of exp, and alpha what o^T is still to be multiplied with. */
static void forward_keys(const ag_attention *a, const queries *x, const tile_noise *z, int64_t key0,
                         int64_t key1, forward_tiles *f)
{
    transpose_queries(x->n, a->d_qk, x->q, x->q_row, f->qt, (float)(a->scale * LOG2_E));
    clear_lanes(x->n, a->d_v, f->ot);
    for (int i = 0; i < TILE; i++) {
        f->max[i] = NO_MAX;
        f->sum[i] = 0;
    }
    key1 = min_of(key1, x->n_keys);
    tile_keys keys[2];               /* of this tile and the next */
    if (key0 < key1)
        keys_at(x, key0, min_of(TILE, key1 - key0), &keys[0]);
    for (int64_t j = key0, i = 0; j < key1; j += TILE, i = !i) {
        keys_at(x, j + TILE, j + TILE < key1 ? min_of(TILE, key1 - j - TILE) : 0, &keys[!i]);
        keys_fetch(&keys[!i], a->d_qk, x->k, a->k_row);
        keys_fetch(&keys[!i], a->d_v, x->v, a->v_row);
        forward_tile(a, x, z, j, &keys[i], f);
    }
    const float kept = (float)(1.0 / (1.0 - a->drop));
    for (int i = 0; i < x->n; i += VL) {
        const vf zero = vset(0.0f), sum = vload(f->sum + i);
        vstore(f->alpha + i, vselect(zero, sum, kept / sum, zero));
        vstore(f->max + i, vload(f->max + i) * (float)LN_2 + vlog(sum));
    }
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
    forward_tiles f __attribute__((aligned(64)));
    queries q;
    queries_init(&q, a, x.b * a->heads + x.head0, 0);
    forward_keys(a, &q, z, key0, key1, &f);
    memcpy(part, f.max, (size_t)q.n * sizeof *part);
    tile_transpose_by(a->d_v, q.n, f.ot, TILE, part + q.n, a->d_v, f.alpha);
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

/* For queries that no tile of the first part has, until other parts come. */
static void clear_output(const ag_attention *a, int64_t pair)
{
    if (has_all_queries(a, pair))
        return;
    const int64_t b = pair / a->heads, h = pair % a->heads;
    for (int64_t i = 0; i < a->tq; i++) {
        memset((float *)a->o + b * a->o_batch + i * a->o_row + h * a->d_v, 0,
               (size_t)a->d_v * sizeof(float));
        ((float *)a->lse)[pair * a->tq + i] = -__builtin_inff();
    }
}

/* o and lse of x, joined with what they hold of the parts of the pattern before: the weights are
 * exp(lse - joint lse). */
static void forward_join(const ag_attention *a, const queries *x, forward_tiles *f)
{
    for (int r = 0; r < x->n; r++) {
        float *lse = x->lse + r * x->step, *o = x->o + r * x->o_row;
        const float old = *lse, top = old > f->max[r] ? old : f->max[r];
        if (!(f->sum[r] > 0))
            continue;                /* nothing new; o^T is zero */
        const float w = ag_m_exp(old - top), u = ag_m_exp(f->max[r] - top), sum = w + u;
        for (int64_t c = 0; w > 0 && c < a->d_v; c++)
            o[c] *= w / sum;
        f->alpha[r] *= u / sum;
        *lse = top + ag_m_log(sum);
    }
    transpose(a->d_v, x->n, f->ot, TILE, x->o, x->o_row, 1.0f, f->alpha, true);
}

static void forward_queries(const ag_attention *a, const queries *x, const tile_noise *z,
                            bool join)
{
    forward_tiles f __attribute__((aligned(64)));
    forward_keys(a, x, z, 0, x->n_keys, &f);
    if (join) {
        forward_join(a, x, &f);
        return;
    }
    for (int r = 0; r < x->n; r++)
        x->lse[r * x->step] = f.max[r];
    tile_transpose_by(a->d_v, x->n, f.ot, TILE, x->o, x->o_row, f.alpha);
}

static void forward_pattern(const ag_attention *a, const tile_noise *z)
{
    const int64_t pairs = a->batch * a->heads;
    const tile_count c = count_tiles(a);
#pragma omp parallel
    {
#pragma omp for
        for (int64_t pair = 0; pair < pairs; pair++)
            clear_output(a, pair);
        for (int p = 0; p < c.parts; p++) {
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < pairs * c.tiles; task++) {
                const int64_t pair = task / c.tiles, i = c.tiles - 1 - task % c.tiles;
                const ag_pattern_layout *l = ag_pattern_of(a->pattern, pair % a->heads);
                queries x;
                if (p >= l->n_parts || i >= l->part[p].n_tiles ||
                    !queries_of_tile(&x, a, pair, &l->part[p], &l->part[p].tile[i]))
                    continue;
                if (i > 0)
                    fetch_rows_of(&l->part[p].tile[i - 1], a->tq, a->d_qk, x.q - x.first * a->q_row,
                                  a->q_row);
                forward_queries(a, &x, z, p > 0);
            }
        }
    }
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
    if (a->pattern) {
        if (a->q_pos0 == 0 && a->tq == a->tk)
            forward_pattern(a, &z);
        else
            few_pattern(a, &z);
        return;
    }
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
            for (int64_t r = 1; r <= TILE; r++)             /* the next queries */
                for (int64_t c = 0; c < a->d_qk; c += GROUP)
                    __builtin_prefetch(x.q - r * a->q_row + c, 0, 2);
        forward_queries(a, &x, &z, false);
    }
}
