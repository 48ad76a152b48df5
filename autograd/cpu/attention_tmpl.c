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

typedef struct forward_rows {        /* of a query tile */
    float max[TILE], sum[TILE], alpha[TILE];        /* so far; what the last tile multiplied o by */
} forward_rows;

typedef struct forward_block {
    float qt[MAX_HEAD * TILE], ot[MAX_HEAD * TILE]; /* q^T [d_qk][TILE] and o^T [d_v][TILE] of as
                                                     * many query tiles as have room */
    float k[TILE * MAX_HEAD], v[TILE * MAX_HEAD];   /* of the key tile: rows lie too far apart for
                                                     * the caches */
    float s[TILE * TILE];
    forward_rows rows[BLOCK];
    tile_walk walk[BLOCK];
} forward_block;

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

static void softmax_tile(const tile_shape *t, float *s, forward_rows *f)
{
    for (int i = 0; i < t->n_groups * GROUP; i += VL) {
        const int begin = t->begin[i / GROUP], n = t->end[i / GROUP] - begin;
        if (n > 0)
            softmax_vector(n, s + begin * TILE + i, f->max + i, f->sum + i, f->alpha + i);
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
static void scale_tile(int64_t d, const float *alpha, float *ot)
{
    for (int64_t c = 0; c < d; c++)
        for (int i = 0; i < TILE; i += VL)
            vstore(ot + c * TILE + i, vload(ot + c * TILE + i) * vload(alpha + i));
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

/* One tile: the scores of the i-th query tile and the keys at hand, then what they add to o. */
static void forward_tile(const ag_attention *a, const tile_noise *z, int i, forward_block *f)
{
    const int64_t k_row = AG_ALIGN_UP(a->d_qk, GROUP), v_row = AG_ALIGN_UP(a->d_v, GROUP);
    const tile_walk *w = &f->walk[i];
    forward_rows *rows = &f->rows[i];
    const float *k = f->k + w->row * k_row, *v = f->v + w->row * v_row;
    const float *qt = f->qt + i * a->d_qk * TILE;
    float *o = f->ot + i * a->d_v * TILE;
    tile_shape t;
    tile_shape_init(&t, &w->x, &w->keys);
    for (int b = 0; b < t.n_bands; b++) {
        const struct tile_band *e = &t.band[b];
        const tile_product st =
            { a->d_qk, k + e->key0 * k_row, k_row, 1, qt + e->group0 * GROUP,
              TILE, f->s + e->key0 * TILE + e->group0 * GROUP, TILE, TILE_SET, NULL };
        tile_multiply(&st, e->key1 - e->key0, (e->group1 - e->group0) * GROUP);
    }
    tile_mask(&t, f->s);
    softmax_tile(&t, f->s, rows);
    if (z->threshold)
        drop_tile(&t, z, noise_block(z, &w->x, w->j), f->s);
    const bool led = is_led(&t);
    if (!led)
        scale_tile(a->d_v, rows->alpha, o);
    for (int b = 0; b < t.n_bands; b++) {
        const struct tile_band *e = &t.band[b];
        const tile_product ot = { e->key1 - e->key0, v + e->key0 * v_row, 1, v_row,
                                  f->s + e->key0 * TILE + e->group0 * GROUP, TILE,
                                  o + e->group0 * GROUP, TILE, b || !led ? TILE_ADD : TILE_SCALE,
                                  rows->alpha + e->group0 * GROUP };
        tile_multiply(&ot, a->d_v, (e->group1 - e->group0) * GROUP);
    }
}

/* The i-th query tile before its first key. */
static void forward_begin(const ag_attention *a, int i, forward_block *f)
{
    const queries *x = &f->walk[i].x;
    const int64_t row = AG_ALIGN_UP(a->d_qk, GROUP);
    tile_copy(x->n, a->d_qk, x->q, x->q_row, f->k, row, 1.0f);
    transpose_queries(x->n, a->d_qk, f->k, row, f->qt + i * a->d_qk * TILE,
                      (float)(a->scale * LOG2_E));
    clear_lanes(x->n, a->d_v, f->ot + i * a->d_v * TILE);
    for (int r = 0; r < TILE; r++) {
        f->rows[i].max[r] = NO_MAX;
        f->rows[i].sum[r] = 0;
    }
}

/* After its last: max is the log of the sum of exp, and alpha what o^T is still to be multiplied
 * with. */
static void forward_end(const ag_attention *a, int i, forward_block *f)
{
    forward_rows *rows = &f->rows[i];
    const float kept = (float)(1.0 / (1.0 - a->drop));
    for (int r = 0; r < f->walk[i].x.n; r += VL) {
        const vf zero = vset(0.0f), sum = vload(rows->sum + r);
        vstore(rows->alpha + r, vselect(zero, sum, kept / sum, zero));
        vstore(rows->max + r, vload(rows->max + r) * (float)LN_2 + vlog(sum));
    }
}

/* o^T and lse of n query tiles of a head, whose walks have been started. */
static void forward_walks(const ag_attention *a, const tile_noise *z, int n, forward_block *f)
{
    const int64_t k_row = AG_ALIGN_UP(a->d_qk, GROUP), v_row = AG_ALIGN_UP(a->d_v, GROUP);
    const queries *x = &f->walk[0].x;
    const tile_walk *lead;
    for (int i = 0; i < n; i++)
        forward_begin(a, i, f);
    while ((lead = walks_next(f->walk, n))) {
        keys_load(&lead->keys, a->d_qk, x->k, a->k_row, f->k, k_row);
        keys_load(&lead->keys, a->d_v, x->v, a->v_row, f->v, v_row);
        for (int i = 0; i < n; i++)
            if (f->walk[i].row >= 0)
                forward_tile(a, z, i, f);
    }
    for (int i = 0; i < n; i++)
        forward_end(a, i, f);
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
    forward_block f __attribute__((aligned(64)));
    queries *q = &f.walk[0].x;
    queries_init(q, a, x.b * a->heads + x.head0, 0);
    walk_start(&f.walk[0], key0, min_of(key1, q->n_keys));
    forward_walks(a, z, 1, &f);
    memcpy(part, f.rows[0].max, (size_t)q->n * sizeof *part);
    tile_transpose_by(a->d_v, q->n, f.ot, TILE, part + q->n, a->d_v, f.rows[0].alpha);
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

/* o and lse of the i-th query tile, joined with what they hold of the parts of the pattern before:
 * the weights are exp(lse - joint lse). */
static void forward_join(const ag_attention *a, int i, forward_block *f)
{
    const queries *x = &f->walk[i].x;
    forward_rows *rows = &f->rows[i];
    for (int r = 0; r < x->n; r++) {
        float *lse = x->lse + r * x->step, *o = x->o + r * x->o_row;
        const float old = *lse, top = old > rows->max[r] ? old : rows->max[r];
        if (!(rows->sum[r] > 0))
            continue;                /* nothing new; o^T is zero */
        const float w = ag_m_exp(old - top), u = ag_m_exp(rows->max[r] - top), sum = w + u;
        for (int64_t c = 0; w > 0 && c < a->d_v; c++)
            o[c] *= w / sum;
        rows->alpha[r] *= u / sum;
        *lse = top + ag_m_log(sum);
    }
    transpose(a->d_v, x->n, f->ot + i * a->d_v * TILE, TILE, x->o, x->o_row, 1.0f, rows->alpha,
              true);
}

static void forward_store(const ag_attention *a, int i, forward_block *f)
{
    const queries *x = &f->walk[i].x;
    for (int r = 0; r < x->n; r++)
        x->lse[r * x->step] = f->rows[i].max[r];
    tile_transpose_by(a->d_v, x->n, f->ot + i * a->d_v * TILE, TILE, x->o, x->o_row,
                      f->rows[i].alpha);
}

/* All keys of n query tiles. */
static void forward_queries(const ag_attention *a, const tile_noise *z, bool join, int n,
                            forward_block *f)
{
    for (int i = 0; i < n; i++)
        walk_start(&f->walk[i], 0, f->walk[i].x.n_keys);
    forward_walks(a, z, n, f);
    for (int i = 0; i < n; i++)
        (join ? forward_join : forward_store)(a, i, f);
}

/* Tiles `first` .. first + most - 1 of a part, as far as there are. */
static void forward_part_tiles(const ag_attention *a, const tile_noise *z, int64_t pair,
                               const ag_pattern_part *part, int64_t first, int most, bool join)
{
    forward_block f __attribute__((aligned(64)));
    int n = 0;
    for (int64_t i = first; i < min_of(first + most, part->n_tiles); i++)
        n += queries_of_tile(&f.walk[n].x, a, pair, part, &part->tile[i]);
    if (n)
        forward_queries(a, z, join, n, &f);
}

static void forward_pattern(const ag_attention *a, const tile_noise *z)
{
    const int64_t pairs = a->batch * a->heads;
    const tile_count c = count_tiles(a);
    const int most = tiles_at_once(a, c.tiles);
    const int64_t blocks = (c.tiles + most - 1) / most;
#pragma omp parallel
    {
#pragma omp for
        for (int64_t pair = 0; pair < pairs; pair++)
            clear_output(a, pair);
        for (int p = 0; p < c.parts; p++) {
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < pairs * blocks; task++) {
                const int64_t pair = task / blocks, i = blocks - 1 - task % blocks;
                const ag_pattern_layout *l = ag_pattern_of(a->pattern, pair % a->heads);
                if (p < l->n_parts)
                    forward_part_tiles(a, z, pair, &l->part[p], i * most, most, p > 0);
            }
        }
    }
}

/* Query tiles `first` .. first + most - 1 of a head, as far as there are. */
static void forward_tiles(const ag_attention *a, const tile_noise *z, int64_t pair, int64_t first,
                          int most)
{
    forward_block f __attribute__((aligned(64)));
    int n = 0;
    for (int64_t i = first * TILE; n < most && i < a->tq; i += TILE)
        queries_init(&f.walk[n++].x, a, pair, i);
    forward_queries(a, z, false, n, &f);
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
    const int most = tiles_at_once(a, tiles);
    const int64_t blocks = (tiles + most - 1) / most,
        at_once = pairs >= 8 * n_threads() ? blocks : 1;                /* whole heads, if many */
#pragma omp parallel for schedule(dynamic, at_once) if (pairs * a->tq * a->tk > 2048)
    for (int64_t task = 0; task < pairs * blocks; task++)   /* the longest of a causal head first */
        forward_tiles(a, &z, task / blocks, (blocks - 1 - task % blocks) * most, most);
}
