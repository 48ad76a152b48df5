/*
 * lsh_grad_tmpl.c -- the backward of attention by hashing for one instruction set (ag_lsh in
 * kernels.h).
 *
 *   delta = do . o     p = exp(s - lse)     ds = p~ dp - p delta      (attention_grad_tmpl.c)
 *   dv_j += p~ do_i    dk_j += ds q_i       dq_i += ds k_j
 *   k_j = c_j q_j  with c = ((mean(q^2) + eps) d)^(-1/2):
 *   dq_j += c_j dk_j - c_j^3 (dk_j . q_j) q_j
 *
 * Chunks add to what they meet in the order of the phases of lsh.h, whatever the number of threads:
 * with many heads a task is a head, else it is a chunk of a phase.
 */
#include "autograd/cpu/lsh_tile_tmpl.h"

typedef struct lsh_grad_tiles {
    float qt[MAX_HEAD * TILE], dot[MAX_HEAD * TILE];     /* q^T and do^T */
    float q[MAX_HEAD * TILE], k[MAX_HEAD * TILE];        /* [TILE][k_row] */
    float do_[MAX_HEAD * TILE], v[MAX_HEAD * TILE];      /* [TILE][v_row] */
    float dqt[MAX_HEAD * TILE];
    float p[TILE * TILE], ds[TILE * TILE];               /* first s and dp, transposed */
    float buffer[MAX_HEAD * TILE];
    float lse[TILE], delta[TILE];                        /* lse in base 2 */
    int64_t k_row, v_row;
} lsh_grad_tiles;

typedef struct lsh_grad { const void *do_; float *dq, *dv; } lsh_grad;

static void grad_load(const lsh_head *h, const lsh_grad *g, const lsh_queries *x,
                      lsh_grad_tiles *w)
{
    const ag_lsh *a = h->a;
    const float *lse = (const float *)a->lse + h->pair * a->t, *delta = h->w.delta;
    w->k_row = AG_ALIGN_UP(a->d_qk, GROUP);
    w->v_row = AG_ALIGN_UP(a->d_v, GROUP);
    lsh_gather(x->list, x->n, a->d_qk, h->q, h->q_row, NULL, 1.0f, w->q, w->k_row);
    lsh_gather(x->list, x->n, a->d_v, lsh_values_of(h, g->do_), h->v_row, NULL,
               (float)(1.0 / (1.0 - a->drop)), w->do_, w->v_row);
    transpose_queries(x->n, a->d_qk, w->q, w->k_row, w->qt, (float)LOG2_E);
    transpose_queries(x->n, a->d_v, w->do_, w->v_row, w->dot, 1.0f);
    clear_lanes(x->n, a->d_qk, w->dqt);
    for (int i = 0; i < TILE; i++) {
        const bool any = i < x->n && lse[x->list[i]] > -__builtin_inff();
        w->lse[i] = any ? lse[x->list[i]] * (float)LOG2_E : -NO_MAX;
        w->delta[i] = any ? delta[x->list[i]] : 0.0f;
    }
}

/* s, dp -> p~ (without 1/(1 - drop), which is in do), ds */
static void grad_lanes(float *s, float *dp, vf lse, vf delta, const vu *bits, uint32_t threshold)
{
    const vf p = vexp2(vload(s) - lse), g = vload(dp);
    vstore(s, bits ? vkeep(*bits, threshold, p) : p);
    vstore(dp, p * ((bits ? vkeep(*bits, threshold, g) : g) - delta));
}

static void grad_scores(const tile_noise *z, uint64_t block, int lanes, int n, lsh_grad_tiles *w)
{
    for (int i = 0; i < lanes; i += VL) {
        const vf lse = vload(w->lse + i), delta = vload(w->delta + i);
        if (!z->threshold) {
            for (int key = 0; key < n; key++)
                grad_lanes(w->p + key * TILE + i, w->ds + key * TILE + i, lse, delta, NULL, 0);
            continue;
        }
        for (int r = 0; r < 16 && r < n; r++) {
            vu bits[4];
            tile_bits(z, block + (uint64_t)i * z->row_blocks + (uint64_t)r, bits);
            for (int k = 0; k < 4; k++)
                if (16 * k + r < n) {
                    const int at = (16 * k + r) * TILE + i;
                    grad_lanes(w->p + at, w->ds + at, lse, delta, &bits[k], z->threshold);
                }
        }
    }
}

/* x[list][d] += m rows of the product, by way of the buffer */
static void add_rows(const tile_product *ab, const lsh_keys *y, int64_t d, int64_t row,
                     float *buffer, float *x, int64_t x_row)
{
    tile_product t = *ab;
    t.c = buffer;
    t.c_row = row;
    tile_multiply(&t, y->n, row);
    keys_add(y->list, y->n, d, buffer, row, x, x_row);
}

/* One tile: p and ds, then what they give. */
static void grad_tile(const lsh_head *h, const lsh_grad *g, const tile_noise *z,
                      const lsh_queries *x, const lsh_keys *y, lsh_grad_tiles *w)
{
    const ag_lsh *a = h->a;
    const int lanes = AG_ALIGN_UP(x->n, GROUP);
    lsh_gather(y->list, y->n, a->d_qk, h->q, h->q_row, h->w.scale, 1.0f, w->k, w->k_row);
    lsh_gather(y->list, y->n, a->d_v, h->v, h->v_row, NULL, 1.0f, w->v, w->v_row);
    const tile_product s = { a->d_qk, w->k, w->k_row, 1, w->qt, TILE, w->p, TILE, TILE_SET, NULL };
    const tile_product dp = { a->d_v, w->v, w->v_row, 1, w->dot, TILE, w->ds, TILE, TILE_SET,
                              NULL };
    tile_multiply(&s, y->n, lanes);
    tile_multiply(&dp, y->n, lanes);
    lsh_mask(h, x, y, w->p);
    grad_scores(z, lsh_noise_block(h, z, x, y), lanes, y->n, w);
    const tile_product pv = { x->n, w->p, TILE, 1, w->do_, w->v_row, NULL, 0, TILE_SET, NULL };
    const tile_product pk = { x->n, w->ds, TILE, 1, w->q, w->k_row, NULL, 0, TILE_SET, NULL };
    const tile_product pq = { y->n, w->k, 1, w->k_row, w->ds, TILE, w->dqt, TILE, TILE_ADD, NULL };
    add_rows(&pv, y, a->d_v, w->v_row, w->buffer, lsh_values_of(h, g->dv), h->v_row);
    add_rows(&pk, y, a->d_qk, w->k_row, w->buffer, h->w.dk, a->d_qk);
    tile_multiply(&pq, a->d_qk, lanes);
}

/* All that the queries of a chunk give. */
static void grad_chunk(const lsh_head *h, const lsh_grad *g, const tile_noise *z, int64_t chunk)
{
    const ag_lsh *a = h->a;
    lsh_grad_tiles w __attribute__((aligned(64)));
    lsh_queries x;
    for (int64_t place = 0; place < a->chunk; place += TILE) {
        lsh_queries_init(h, chunk, place, &x);
        if (x.n <= 0)
            return;
        grad_load(h, g, &x, &w);
        for (int64_t slot = 0; slot < lsh_slots(a); slot++)
            for (int64_t j = 0; j < a->chunk; j += TILE) {
                lsh_keys y;
                const bool any = lsh_keys_init(h, &x, slot, j, &y);
                if (y.n <= 0)
                    break;
                if (any)
                    grad_tile(h, g, z, &x, &y, &w);
            }
        tile_transpose(a->d_qk, x.n, w.dqt, TILE, w.buffer, w.k_row, 1.0f);
        keys_add(x.list, x.n, a->d_qk, w.buffer, w.k_row, g->dq + (h->q - (const float *)a->q),
                 h->q_row);
    }
}

static void grad_begin(const lsh_head *h, const lsh_grad *g)
{
    const ag_lsh *a = h->a;
    const float *do_ = lsh_values_of(h, g->do_), *o = lsh_values_of(h, a->o);
    lsh_prepare(h);
    memset(h->w.dk, 0, (size_t)(a->t * a->d_qk) * sizeof(float));
    for (int64_t i = 0; i < a->t; i++)
        ((float *)h->w.delta)[i] = lsh_dot(a->d_v, do_ + i * h->v_row, o + i * h->v_row);
}

/* From keys to queries; positions that see nothing but themselves. */
static void grad_end(const lsh_head *h, const lsh_grad *g)
{
    const ag_lsh *a = h->a;
    const float *lse = (const float *)a->lse + h->pair * a->t, *scale = h->w.scale;
    float *dq = g->dq + (h->q - (const float *)a->q), *dv = lsh_values_of(h, g->dv);
    for (int64_t i = 0; i < a->t; i++) {
        const float *dk = (const float *)h->w.dk + i * a->d_qk, *q = h->q + i * h->q_row;
        const float along = lsh_dot(a->d_qk, dk, q);
        lsh_add(a->d_qk, scale[i], dk, dq + i * h->q_row);
        lsh_add(a->d_qk, -scale[i] * scale[i] * scale[i] * along, q, dq + i * h->q_row);
        if (i < h->length && !(lse[i] > -__builtin_inff()))
            lsh_add(a->d_v, (float)lsh_alone(a, h->pair, &h->w, i),
                    lsh_values_of(h, g->do_) + i * h->v_row, dv + i * h->v_row);
    }
}

static void grad_head(const ag_lsh *a, const lsh_grad *g, const tile_noise *z, int64_t pair)
{
    const lsh_head h = lsh_head_of(a, pair);
    grad_begin(&h, g);
    for (int64_t r = 0; r < a->rounds; r++)
        for (int64_t p = 0; p < lsh_phases(a); p++) {
            const lsh_phase phase = lsh_phase_of(a, r, p);
            for (int64_t i = 0; i < phase.n; i++)
                grad_chunk(&h, g, z, phase.first + i * phase.step);
        }
    grad_end(&h, g);
}

/* With fewer heads than threads. */
static void grad_by_chunks(const ag_lsh *a, const lsh_grad *g, const tile_noise *z)
{
    const int64_t pairs = a->batch * a->heads, phases = lsh_phases(a);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
        for (int64_t pair = 0; pair < pairs; pair++) {
            const lsh_head h = lsh_head_of(a, pair);
            grad_begin(&h, g);
        }
        for (int64_t p = 0; p < a->rounds * phases; p++) {
            const lsh_phase phase = lsh_phase_of(a, p / phases, p % phases);
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < pairs * phase.n; task++) {
                const lsh_head h = lsh_head_of(a, task / phase.n);
                grad_chunk(&h, g, z, phase.first + task % phase.n * phase.step);
            }
        }
#pragma omp for schedule(dynamic)
        for (int64_t pair = 0; pair < pairs; pair++) {
            const lsh_head h = lsh_head_of(a, pair);
            grad_end(&h, g);
        }
    }
}

void AG_NAME(lsh_bwd)(const ag_lsh *a, const void *do_, void *dq, void *dv)
{
    const int64_t pairs = a->batch * a->heads;
    const lsh_grad g = { do_, dq, dv };
    tile_noise z;
    if (a->d_qk > MAX_HEAD || a->d_v > MAX_HEAD) {
        ag_kernels_ref(AG_F32)->lsh_bwd(a, do_, dq, dv);
        return;
    }
    if (a->t == 0)
        return;
    lsh_noise_init(a, &z);
    if (pairs < n_threads() && pairs * a->t > 512) {
        grad_by_chunks(a, &g, &z);
        return;
    }
#pragma omp parallel for schedule(dynamic) if (pairs * a->t > 512)
    for (int64_t pair = 0; pair < pairs; pair++)
        grad_head(a, &g, &z, pair);
}
