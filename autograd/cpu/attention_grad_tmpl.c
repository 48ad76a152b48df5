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

typedef struct backward_tiles {
    float qt[MAX_HEAD * TILE], dot[MAX_HEAD * TILE];     /* q^T and do^T */
    float q[MAX_HEAD * TILE], k[MAX_HEAD * TILE];        /* [TILE][k_row] */
    float do_[MAX_HEAD * TILE], v[MAX_HEAD * TILE];      /* [TILE][v_row] */
    float dqt[MAX_HEAD * TILE];
    float p[TILE * TILE], ds[TILE * TILE];               /* first s and dp, transposed */
    float gathered[MAX_HEAD * TILE];                     /* dk or dv of keys that lie apart */
    float lse[TILE], delta[TILE];                        /* lse in base 2 */
    int64_t k_row, v_row;                                /* d_qk and d_v padded to GROUP */
} backward_tiles;

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

static void backward_load(const ag_attention *a, const queries *x, const float *grad,
                          const float *delta, backward_tiles *w)
{
    const float kept = (float)(1.0 / (1.0 - a->drop));
    transpose_queries(x->n, a->d_qk, x->q, x->q_row, w->qt, (float)(a->scale * LOG2_E));
    transpose_queries(x->n, a->d_v, grad, x->o_row, w->dot, kept);
    w->k_row = AG_ALIGN_UP(a->d_qk, GROUP);
    w->v_row = AG_ALIGN_UP(a->d_v, GROUP);
    tile_copy(x->n, a->d_qk, x->q, x->q_row, w->q, w->k_row, (float)a->scale);
    tile_copy(x->n, a->d_v, grad, x->o_row, w->do_, w->v_row, kept);
    for (int i = 0; i < TILE; i++) {
        const bool any = i < x->n && x->lse[i * x->step] > -__builtin_inff();
        w->lse[i] = any ? x->lse[i * x->step] * (float)LOG2_E
                        : -NO_MAX;                       /* no key: p = exp2(-1e30) = 0 */
        w->delta[i] = any ? delta[i * x->step] : 0.0f;
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
        const int n = t->end[i / GROUP];
        const vf lse = vload(w->lse + i), delta = vload(w->delta + i);
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

/* x[keys of a band] += m rows of ab (TILE_ADD), where they lie or by way of `buffer`, [m][row] */
static void add_band(const tile_product *ab, int64_t m, int64_t d, const tile_keys *keys,
                     const struct tile_band *e, float *x, int64_t x_row, float *buffer,
                     int64_t row)
{
    tile_product t = *ab;
    if (keys->step) {
        t.c = x + (keys->first + e->key0 * keys->step) * x_row;
        t.c_row = keys->step * x_row;
    } else {
        memset(buffer, 0, (size_t)(m * row) * sizeof *buffer);
        t.c = buffer;
        t.c_row = row;
    }
    tile_multiply(&t, m, d);
    if (!keys->step)
        keys_add(keys->list + e->key0, m, d, buffer, row, x, x_row);
}

/* One tile: p and ds, then what they give to dq, dk, dv of keys j .. j + n_keys - 1. */
static void backward_tile(const ag_attention *a, const queries *x, const tile_noise *z, int64_t j,
                          int64_t n_keys, const backward_part *part, float *dk, float *dv,
                          backward_tiles *w)
{
    tile_keys keys;
    tile_shape t;
    keys_at(x, j, n_keys, &keys);
    keys_load(&keys, a->d_qk, x->k, a->k_row, w->k, w->k_row);
    keys_load(&keys, a->d_v, x->v, a->v_row, w->v, w->v_row);
    tile_shape_init(&t, x, &keys);
    for (int b = 0; b < t.n_bands; b++) {
        const struct tile_band *e = &t.band[b];
        const int64_t m = e->key1 - e->key0, lanes = (e->group1 - e->group0) * GROUP;
        const int64_t at = e->key0 * TILE + e->group0 * GROUP;
        const tile_product s = { a->d_qk, w->k + e->key0 * w->k_row, w->k_row, 1,
                                 w->qt + e->group0 * GROUP, TILE, w->p + at, TILE, TILE_SET, NULL };
        const tile_product dp = { a->d_v, w->v + e->key0 * w->v_row, w->v_row, 1,
                                  w->dot + e->group0 * GROUP, TILE, w->ds + at, TILE, TILE_SET,
                                  NULL };
        tile_multiply(&s, m, lanes);
        tile_multiply(&dp, m, lanes);
    }
    tile_mask(&t, w->p);
    grad_tile(&t, z, noise_block(z, x, j), w);
    for (int b = 0; b < t.n_bands; b++) {
        const struct tile_band *e = &t.band[b];
        const int64_t m = e->key1 - e->key0, query0 = e->group0 * GROUP,
            n = min_of(t.n_queries, e->group1 * GROUP) - query0;
        const int64_t at = e->key0 * TILE + query0;
        if (part->dkv) {
            const tile_product pv = { n, w->p + at, TILE, 1, w->do_ + query0 * w->v_row, w->v_row,
                                      NULL, 0, TILE_ADD, NULL };
            const tile_product pk = { n, w->ds + at, TILE, 1, w->q + query0 * w->k_row, w->k_row,
                                      NULL, 0, TILE_ADD, NULL };
            add_band(&pv, m, a->d_v, &keys, e, dv, a->v_row, w->gathered, w->v_row);
            add_band(&pk, m, a->d_qk, &keys, e, dk, a->k_row, w->gathered, w->k_row);
        }
        if (part->dq) {
            const tile_product pq = { m, w->k + e->key0 * w->k_row, 1, w->k_row, w->ds + at, TILE,
                                      w->dqt + query0, TILE, TILE_ADD, NULL };
            tile_multiply(&pq, a->d_qk, (e->group1 - e->group0) * GROUP);
        }
    }
}

/* What the queries of x give, over keys j0 .. j1 - 1 of those that they see. */
static void backward_queries(const ag_attention *a, const ag_attention_grad *g, const queries *x,
                             const tile_noise *z, int64_t j0, int64_t j1,
                             const backward_part *part, backward_tiles *w)
{
    const int64_t b = part->pair / a->heads, h = part->pair % a->heads;
    const float *grad = (const float *)g->do_ + b * a->o_batch + x->first * a->o_row + h * a->d_v;
    float *delta = (float *)g->delta + part->pair * a->tq + x->first;
    float *dk = (float *)g->dk + b * a->k_batch + h * a->d_qk,
        *dv = (float *)g->dv + b * a->v_batch + h * a->d_v;
    if (part->dq)
        for (int r = 0; r < x->n; r++)
            delta[r * x->step] = dot_rows(a->d_v, grad + r * x->o_row, x->o + r * x->o_row);
    else if (j0 >= j1)
        return;
    backward_load(a, x, grad, delta, w);
    if (part->dq)
        clear_lanes(x->n, a->d_qk, w->dqt);
    for (int64_t j = j0; j < j1; j += TILE)
        backward_tile(a, x, z, j, min_of(TILE, j1 - j), part, dk, dv, w);
    if (part->dq) {
        float *dq = (float *)g->dq + b * a->q_batch + x->first * a->q_row + h * a->d_qk;
        (g->acc || x->adds ? tile_transpose_add : tile_transpose)(a->d_qk, x->n, w->dqt, TILE, dq,
                                                                 x->q_row, (float)a->scale);
    }
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

/* Brings what the next queries need beside their keys. */
static void backward_fetch(const ag_attention *a, const ag_attention_grad *g,
                           const ag_pattern_tile *tile, int64_t pair)
{
    const int64_t b = pair / a->heads, h = pair % a->heads, o = b * a->o_batch + h * a->d_v;
    fetch_rows_of(tile, a->tq, a->d_qk, (const float *)a->q + b * a->q_batch + h * a->d_qk,
                  a->q_row);
    fetch_rows_of(tile, a->tq, a->d_v, (const float *)a->o + o, a->o_row);
    fetch_rows_of(tile, a->tq, a->d_v, (const float *)g->do_ + o, a->o_row);
}

/* Tiles of one part of a pattern, as backward_part's queries; all parts where p is -1. */
static void backward_pattern(const ag_attention *a, const ag_attention_grad *g,
                             const backward_part *part, const tile_noise *z, int p, int64_t tile,
                             backward_tiles *w)
{
    const ag_pattern_layout *l = ag_pattern_of(a->pattern, part->pair % a->heads);
    for (int i = p < 0 ? 0 : p; i < (p < 0 ? l->n_parts : p + 1) && i < l->n_parts; i++) {
        const ag_pattern_part *of = &l->part[i];
        for (int64_t t = tile < 0 ? 0 : tile; t < (tile < 0 ? of->n_tiles : tile + 1); t++) {
            queries x;
            if (t >= of->n_tiles || !queries_of_tile(&x, a, part->pair, of, &of->tile[t]))
                continue;
            x.adds = i > 0 || !has_all_queries(a, part->pair);
            if (t + 1 < of->n_tiles)
                backward_fetch(a, g, &of->tile[t + 1], part->pair);
            backward_queries(a, g, &x, z, find_key(&x, part->key0), find_key(&x, part->key1),
                             part, w);
        }
    }
}

/* dx[rows first .. last - 1][d] = 0 */
static void clear_rows(int64_t first, int64_t last, int64_t d, float *dx, int64_t row)
{
    for (int64_t i = first; i < last; i++)
        memset(dx + i * row, 0, (size_t)d * sizeof *dx);
}

static void backward_clear(const ag_attention *a, const ag_attention_grad *g,
                           const backward_part *part)
{
    const int64_t b = part->pair / a->heads, h = part->pair % a->heads;
    if (part->dkv && !g->acc) {
        clear_rows(part->key0, part->key1, a->d_qk, (float *)g->dk + b * a->k_batch + h * a->d_qk,
                   a->k_row);
        clear_rows(part->key0, part->key1, a->d_v, (float *)g->dv + b * a->v_batch + h * a->d_v,
                   a->v_row);
    }
    if (part->dq && !g->acc && a->pattern && !has_all_queries(a, part->pair))
        clear_rows(part->query0, part->query1, a->d_qk,
                   (float *)g->dq + b * a->q_batch + h * a->d_qk, a->q_row);
}

static void backward_task(const ag_attention *a, const ag_attention_grad *g,
                          const backward_part *part, const tile_noise *z)
{
    backward_tiles w __attribute__((aligned(64)));
    backward_clear(a, g, part);
    if (a->pattern) {
        backward_pattern(a, g, part, z, -1, -1, &w);
        return;
    }
    for (int64_t i = part->query0; i < part->query1; i += TILE) {
        queries x;
        queries_init(&x, a, part->pair, i);
        backward_queries(a, g, &x, z, part->key0, min_of(part->key1, x.n_keys), part, &w);
    }
}

/* With few heads: dq by query tiles, part by part of a pattern. */
static void backward_by_queries(const ag_attention *a, const ag_attention_grad *g,
                                const tile_noise *z, tile_count c)
{
    const int64_t pairs = a->batch * a->heads;
    if (a->pattern) {
#pragma omp for
        for (int64_t pair = 0; pair < pairs; pair++) {
            const backward_part all = { pair, 0, a->tq, 0, a->tk, true, false };
            backward_clear(a, g, &all);
        }
    }
    for (int p = 0; p < c.parts; p++) {
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < pairs * c.tiles; task++) {
            const int64_t tile = c.tiles - 1 - task % c.tiles, i = tile * TILE;
            const backward_part some = { task / c.tiles, i, min_of(i + TILE, a->tq), 0, a->tk, true,
                                         false };
            if (a->pattern) {
                backward_tiles w __attribute__((aligned(64)));
                backward_pattern(a, g, &some, z, p, tile, &w);
            } else {
                backward_task(a, g, &some, z);
            }
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
    if (!worth || 7 * pairs >= 5 * rounds * threads) {
#pragma omp parallel for schedule(dynamic) if (worth)
        for (int64_t pair = 0; pair < pairs; pair++) {
            const backward_part all = { pair, 0, a->tq, 0, a->tk, true, true };
            backward_task(a, g, &all, &z);
        }
        return;
    }
    const tile_count c = count_tiles(a);
    const int64_t key_tiles = (a->tk + TILE - 1) / TILE;
    const int64_t span = (1 + pairs * key_tiles / (8 * threads)) * TILE,
        spans = (a->tk + span - 1) / span;
#pragma omp parallel
    {
        backward_by_queries(a, g, &z, c);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < pairs * spans; task++) {
            const int64_t j = task % spans * span;
            const backward_part some = { task / spans, 0, a->tq, j, min_of(j + span, a->tk), false,
                                         true };
            backward_task(a, g, &some, &z);
        }
    }
}
