/*
 * attention_grad_tmpl.c -- the backward of softmax attention for one instruction set.
 *
 * FlashAttention-2 (2307.08691): the scores are made again, p = exp(s - lse).  With p~ = p * keep /
 * (1 - drop):
 *
 *   delta = sum(do * o)     dp = do v^T     ds = p~ * dp - p * delta
 *   dv = p~^T do            dq = scale ds k                dk = scale ds^T q
 *
 * Every sum runs in an order that sizes alone decide: over key tiles for dq, over query tiles for
 * dk and dv.  How the work is cut into tasks is therefore free, and chosen by the number of
 * threads.
 */
#include "autograd/cpu/attention_keys_tmpl.h"

typedef struct backward_rows {       /* of a query tile */
    float lse[TILE], delta[TILE];                        /* lse in base 2 */
} backward_rows;

typedef struct backward_block {      /* as many query tiles as have room */
    float qt[MAX_HEAD * TILE], dot[MAX_HEAD * TILE];     /* q^T and do^T */
    float q[MAX_HEAD * TILE], do_[MAX_HEAD * TILE];      /* [TILE][k_row], [TILE][v_row] */
    float dqt[MAX_HEAD * TILE];
    float k[MAX_HEAD * TILE], dk[MAX_HEAD * TILE];       /* of the key tile: [TILE][k_row] */
    float v[MAX_HEAD * TILE], dv[MAX_HEAD * TILE];       /* [TILE][v_row] */
    float p[TILE * TILE], ds[TILE * TILE];               /* first s and dp, transposed */
    backward_rows rows[BLOCK];
    tile_walk walk[BLOCK];
    int64_t k_row, v_row;                                /* d_qk and d_v padded to GROUP */
    int64_t ready;                                       /* dk and dv of keys from this one on hold
                                                          * nothing yet */
} backward_block;

/* The part of a head's gradient that a task makes: of these queries x these keys. */
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

/* Rows of do, and dq, of a query tile. */
static const float *grad_of(const ag_attention *a, const ag_attention_grad *g, int64_t pair,
                            const queries *x)
{
    return (const float *)g->do_ + pair / a->heads * a->o_batch + x->first * a->o_row +
           pair % a->heads * a->d_v;
}

static float *dq_of(const ag_attention *a, const ag_attention_grad *g, int64_t pair,
                    const queries *x)
{
    return (float *)g->dq + pair / a->heads * a->q_batch + x->first * a->q_row +
           pair % a->heads * a->d_qk;
}

/* The i-th query tile before its first key. */
static void backward_begin(const ag_attention *a, const ag_attention_grad *g,
                           const backward_part *part, int i, backward_block *w)
{
    const queries *x = &w->walk[i].x;
    const float *grad = grad_of(a, g, part->pair, x);
    float *delta = (float *)g->delta + part->pair * a->tq + x->first;
    const float kept = (float)(1.0 / (1.0 - a->drop));
    float *q = w->q + i * w->k_row * TILE, *do_ = w->do_ + i * w->v_row * TILE;
    if (part->dq) {
        for (int r = 0; r < x->n; r++)
            delta[r * x->step] = dot_rows(a->d_v, grad + r * x->o_row, x->o + r * x->o_row);
        clear_lanes(x->n, a->d_qk, w->dqt + i * w->k_row * TILE);
    }
    tile_copy(x->n, a->d_qk, x->q, x->q_row, q, w->k_row, (float)a->scale);
    tile_copy(x->n, a->d_v, grad, x->o_row, do_, w->v_row, kept);
    transpose_queries(x->n, a->d_qk, q, w->k_row, w->qt + i * w->k_row * TILE, (float)LOG2_E);
    transpose_queries(x->n, a->d_v, do_, w->v_row, w->dot + i * w->v_row * TILE, 1.0f);
    for (int r = 0; r < TILE; r++) {
        const bool any = r < x->n && x->lse[r * x->step] > -__builtin_inff();
        w->rows[i].lse[r] = any ? x->lse[r * x->step] * (float)LOG2_E
                                : -NO_MAX;               /* no key: p = exp2(-1e30) = 0 */
        w->rows[i].delta[r] = any ? delta[r * x->step] : 0.0f;
    }
}

/* After its last. */
static void backward_end(const ag_attention *a, const ag_attention_grad *g,
                         const backward_part *part, int i, backward_block *w)
{
    const queries *x = &w->walk[i].x;
    (g->acc || x->adds ? tile_transpose_add : tile_transpose)
        (a->d_qk, x->n, w->dqt + i * w->k_row * TILE, TILE, dq_of(a, g, part->pair, x),
         x->q_row, (float)a->scale);
}

/* s, dp -> p~ (without 1/(1 - drop), which is in do), ds */
INLINE void grad_vector(float *s, float *dp, vf lse, vf delta, bool drop, vu bits,
                        uint32_t threshold)
{
    const vf p = vexp2(vload(s) - lse), g = vload(dp);
    vstore(s, drop ? vkeep(bits, threshold, p) : p);
    vstore(dp, p * ((drop ? vkeep(bits, threshold, g) : g) - delta));
}

static void grad_tile(const tile_shape *t, const tile_noise *z, uint64_t block,
                      const backward_rows *rows, backward_block *w)
{
    for (int i = 0; i < t->n_groups * GROUP; i += VL) {
        const int n = t->end[i / GROUP];
        const vf lse = vload(rows->lse + i), delta = vload(rows->delta + i);
        if (!z->threshold) {
            for (int key = t->begin[i / GROUP]; key < n; key++)
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

/* One tile: p and ds of the i-th query tile and the keys at hand, then what they give to dq, dk,
 * dv. */
static void backward_tile(const ag_attention *a, const tile_noise *z, const backward_part *part,
                          int i, backward_block *w)
{
    const tile_walk *walk = &w->walk[i];
    const int64_t k_row = w->k_row, v_row = w->v_row, at_k = i * k_row * TILE,
        at_v = i * v_row * TILE, key_k = walk->row * k_row, key_v = walk->row * v_row;
    const float *k = w->k + key_k, *v = w->v + key_v;
    tile_shape t;
    tile_shape_init(&t, &walk->x, &walk->keys);
    for (int b = 0; b < t.n_bands; b++) {
        const struct tile_band *e = &t.band[b];
        const int64_t m = e->key1 - e->key0, query0 = e->group0 * GROUP,
            lanes = e->group1 * GROUP - query0, at = e->key0 * TILE + query0;
        const tile_product s = { a->d_qk, k + e->key0 * k_row, k_row, 1, w->qt + at_k + query0,
                                 TILE, w->p + at, TILE, TILE_SET, NULL };
        const tile_product dp = { a->d_v, v + e->key0 * v_row, v_row, 1, w->dot + at_v + query0,
                                  TILE, w->ds + at, TILE, TILE_SET, NULL };
        tile_multiply(&s, m, lanes);
        tile_multiply(&dp, m, lanes);
    }
    tile_mask(&t, w->p);
    grad_tile(&t, z, noise_block(z, &walk->x, walk->j), &w->rows[i], w);
    for (int b = 0; b < t.n_bands; b++) {
        const struct tile_band *e = &t.band[b];
        const int64_t m = e->key1 - e->key0, query0 = e->group0 * GROUP,
            n = min_of(t.n_queries, e->group1 * GROUP) - query0, at = e->key0 * TILE + query0;
        if (part->dkv) {
            const tile_product pv = { n, w->p + at, TILE, 1, w->do_ + at_v + query0 * v_row, v_row,
                                      w->dv + key_v + e->key0 * v_row, v_row, TILE_ADD, NULL };
            const tile_product pk = { n, w->ds + at, TILE, 1, w->q + at_k + query0 * k_row, k_row,
                                      w->dk + key_k + e->key0 * k_row, k_row, TILE_ADD, NULL };
            tile_multiply(&pv, m, v_row);
            tile_multiply(&pk, m, k_row);
        }
        if (part->dq) {
            const tile_product pq = { m, k + e->key0 * k_row, 1, k_row, w->ds + at, TILE,
                                      w->dqt + at_k + query0, TILE, TILE_ADD, NULL };
            tile_multiply(&pq, a->d_qk, (e->group1 - e->group0) * GROUP);
        }
    }
}

/* dx[rows first .. last - 1][d] = 0 */
static void clear_rows(int64_t first, int64_t last, int64_t d, float *dx, int64_t row)
{
    for (int64_t i = first; i < last; i++)
        memset(dx + i * row, 0, (size_t)d * sizeof *dx);
}

/* dk and dv of key 0 of a head */
typedef struct key_grads { float *dk, *dv; } key_grads;

static key_grads key_grads_of(const ag_attention *a, const ag_attention_grad *g, int64_t pair)
{
    const int64_t b = pair / a->heads, h = pair % a->heads;
    return (key_grads){ (float *)g->dk + b * a->k_batch + h * a->d_qk,
                        (float *)g->dv + b * a->v_batch + h * a->d_v };
}

/* Those of keys below `last` are ready to be added to. */
static void ready_keys(const ag_attention *a, key_grads g, int64_t last, backward_block *w)
{
    clear_rows(w->ready, last, a->d_qk, g.dk, a->k_row);
    clear_rows(w->ready, last, a->d_v, g.dv, a->v_row);
    w->ready = last > w->ready ? last : w->ready;
}

/* Those of the keys at hand */
static void load_grads(const ag_attention *a, key_grads g, const tile_walk *lead,
                       backward_block *w)
{
    const tile_keys *y = &lead->keys;
    if (y->step == 1 && y->first >= w->ready) {
        ready_keys(a, g, y->first, w);
        w->ready += y->n;
    } else if (y->first < lead->x.fresh) {
        ready_keys(a, g, last_key(y) + 1, w);
        keys_load(y, a->d_qk, g.dk, a->k_row, w->dk, w->k_row);
        keys_load(y, a->d_v, g.dv, a->v_row, w->dv, w->v_row);
        return;
    }
    memset(w->dk, 0, (size_t)(y->n * w->k_row) * sizeof *w->dk);
    memset(w->dv, 0, (size_t)(y->n * w->v_row) * sizeof *w->dv);
}

/* What n query tiles, whose walks have been started, give. */
static void backward_queries(const ag_attention *a, const ag_attention_grad *g,
                             const tile_noise *z, const backward_part *part, int n,
                             backward_block *w)
{
    const float *k = w->walk[0].x.k, *v = w->walk[0].x.v;
    const key_grads grads = key_grads_of(a, g, part->pair);
    const tile_walk *lead;
    for (int i = 0; i < n; i++)
        if (part->dq || w->walk[i].ahead.n > 0)
            backward_begin(a, g, part, i, w);
    while ((lead = walks_next(w->walk, n))) {
        keys_load(&lead->keys, a->d_qk, k, a->k_row, w->k, w->k_row);
        keys_load(&lead->keys, a->d_v, v, a->v_row, w->v, w->v_row);
        if (part->dkv)
            load_grads(a, grads, lead, w);
        for (int i = 0; i < n; i++)
            if (w->walk[i].row >= 0)
                backward_tile(a, z, part, i, w);
        if (part->dkv) {
            keys_store(&lead->keys, a->d_qk, w->dk, w->k_row, grads.dk, a->k_row);
            keys_store(&lead->keys, a->d_v, w->dv, w->v_row, grads.dv, a->v_row);
        }
    }
    for (int i = 0; part->dq && i < n; i++)
        backward_end(a, g, part, i, w);
}

/* The first of the keys of x that is not below `key`. */
static int64_t find_key(const queries *x, int64_t key)
{
    int64_t lo = 0, hi = x->n_runs;                  /* runs that begin below it */
    while (lo < hi) {
        const int64_t mid = (lo + hi) / 2;
        if (x->run[mid].key < key)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (!lo)
        return 0;
    const ag_key_run *run = &x->run[lo - 1];
    const int64_t end = lo < x->n_runs ? run[1].before : x->n_keys;
    return min_of(end, run->before + (key - run->key + x->step - 1) / x->step);
}

/* Are the tiles of one residue each?  Then a key meets first the query that lies where it does. */
static bool is_strided(const ag_pattern_part *part)
{
    return part->n_tiles > 0 && part->tile[0].step > 1;
}

/* Tiles `first` .. first + most - 1 of the p-th part of a pattern, as far as there are. */
static void backward_tiles(const ag_attention *a, const ag_attention_grad *g, const tile_noise *z,
                           const backward_part *part, int p, int64_t first, int most,
                           backward_block *w)
{
    const ag_pattern_part *of = &ag_pattern_of(a->pattern, part->pair % a->heads)->part[p];
    int n = 0;
    for (int64_t t = first; t < min_of(first + most, of->n_tiles); t++) {
        queries *x = &w->walk[n].x;
        if (!queries_of_tile(x, a, part->pair, of, &of->tile[t]))
            continue;
        x->adds = p > 0 || !has_all_queries(a, part->pair);
        x->fresh = is_strided(of) && p == 0 && !g->acc ? x->first : INT64_MAX;
        walk_start(&w->walk[n++], find_key(x, part->key0), find_key(x, part->key1));
    }
    if (n)
        backward_queries(a, g, z, part, n, w);
}

/* Queries of a part, without a pattern. */
static void backward_rows_of(const ag_attention *a, const ag_attention_grad *g,
                             const tile_noise *z, const backward_part *part, int most,
                             backward_block *w)
{
    for (int64_t i = part->query0; i < part->query1; ) {
        int n = 0;
        for (; n < most && i < part->query1; n++, i += TILE) {
            queries *x = &w->walk[n].x;
            queries_init(x, a, part->pair, i);
            walk_start(&w->walk[n], part->key0, min_of(part->key1, x->n_keys));
        }
        backward_queries(a, g, z, part, n, w);
    }
}

/* For queries that no tile has, and those that only later parts of the pattern have. */
static void clear_queries(const ag_attention *a, const ag_attention_grad *g, int64_t pair)
{
    const int64_t b = pair / a->heads, h = pair % a->heads;
    if (!g->acc && a->pattern && !has_all_queries(a, pair))
        clear_rows(0, a->tq, a->d_qk, (float *)g->dq + b * a->q_batch + h * a->d_qk, a->q_row);
}

static void backward_init(const ag_attention *a, int64_t ready, backward_block *w)
{
    w->k_row = AG_ALIGN_UP(a->d_qk, GROUP);
    w->v_row = AG_ALIGN_UP(a->d_v, GROUP);
    w->ready = ready;
}

/* All that a part gives to dk and dv, and to dq where it is asked for. */
static void backward_task(const ag_attention *a, const ag_attention_grad *g, const tile_noise *z,
                          const backward_part *part, int most)
{
    backward_block w __attribute__((aligned(64)));
    backward_init(a, g->acc ? part->key1 : part->key0, &w);
    if (a->pattern) {
        const ag_pattern_layout *l = ag_pattern_of(a->pattern, part->pair % a->heads);
        if (is_strided(&l->part[0]))
            w.ready = part->key1;
        for (int p = 0; p < l->n_parts; p++)
            for (int64_t t = 0; t < l->part[p].n_tiles; t += most)
                backward_tiles(a, g, z, part, p, t, most, &w);
    } else {
        backward_rows_of(a, g, z, part, most, &w);
    }
    ready_keys(a, key_grads_of(a, g, part->pair), part->key1, &w);
}

/* With few heads: dq by query tiles, part by part of a pattern. */
static void backward_by_queries(const ag_attention *a, const ag_attention_grad *g,
                                const tile_noise *z, tile_count c, int most)
{
    const int64_t pairs = a->batch * a->heads, blocks = (c.tiles + most - 1) / most;
#pragma omp for
    for (int64_t pair = 0; pair < pairs; pair++)
        clear_queries(a, g, pair);
    for (int p = 0; p < c.parts; p++) {
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < pairs * blocks; task++) {
            const int64_t pair = task / blocks, tile = (blocks - 1 - task % blocks) * most;
            const backward_part some = { pair, tile * TILE, min_of((tile + most) * TILE, a->tq), 0,
                                         a->tk, true, false };
            backward_block w __attribute__((aligned(64)));
            backward_init(a, 0, &w);
            if (!a->pattern)
                backward_rows_of(a, g, z, &some, most, &w);
            else if (p < ag_pattern_of(a->pattern, pair % a->heads)->n_parts)
                backward_tiles(a, g, z, &some, p, tile, most, &w);
        }
    }
}

/*
 * With many heads a task is a head: five products a tile.  With few, dq goes by query tiles and
 * then dk, dv by spans of keys: seven products, and no thread idle.
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
    const int most = tiles_at_once(a, INT32_MAX);
    if (!worth || 7 * pairs >= 5 * rounds * threads) {
#pragma omp parallel for schedule(dynamic) if (worth)
        for (int64_t pair = 0; pair < pairs; pair++) {
            const backward_part all = { pair, 0, a->tq, 0, a->tk, true, true };
            clear_queries(a, g, pair);
            backward_task(a, g, &z, &all, most);
        }
        return;
    }
    const tile_count c = count_tiles(a);
    const int64_t key_tiles = (a->tk + TILE - 1) / TILE;
    const int64_t span = (1 + pairs * key_tiles / (8 * threads)) * TILE,
        spans = (a->tk + span - 1) / span;
#pragma omp parallel
    {
        backward_by_queries(a, g, &z, c, tiles_at_once(a, c.tiles));
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < pairs * spans; task++) {
            const int64_t j = task % spans * span;
            const backward_part some = { task / spans, 0, a->tq, j, min_of(j + span, a->tk), false,
                                         true };
            backward_task(a, g, &z, &some, most);
        }
    }
}
