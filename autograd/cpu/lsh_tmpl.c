/*
 * lsh_tmpl.c -- the forward of attention by hashing for one instruction set (ag_lsh in kernels.h;
 * formulas in ops/lsh.c).
 *
 * Rounds follow each other, and each position is a query once in a round: so chunks go to the
 * threads in any way, and what a round gives joins what the rounds before gave by their lse, in an
 * order that is always the same.  Scores exist one tile at a time.
 */
#include "autograd/cpu/lsh_tile_tmpl.h"

typedef struct lsh_tiles {
    float qt[MAX_HEAD * TILE], ot[MAX_HEAD * TILE];      /* q^T [d_qk][TILE], o^T [d_v][TILE] */
    float k[TILE * MAX_HEAD], v[TILE * MAX_HEAD];        /* q, then o in their rows too */
    float s[TILE * TILE];
    float max[TILE], sum[TILE], alpha[TILE];
} lsh_tiles;

/* s = exp2(s - max), with max and sum of VL queries carried on over the keys of this tile */
static void softmax_lanes(int n, float *s, float *max_at, float *sum_at, float *alpha_at)
{
    const vf old = vload(max_at);
    vf max = old, sum = vset(0.0f);
    for (int key = 0; key < n; key++)
        max = vmax(vload(s + key * TILE), max);
    const vf alpha = vexp2(old - max);
    for (int key = 0; key < n; key++) {
        const vf p = vexp2(vload(s + key * TILE) - max);
        vstore(s + key * TILE, p);
        sum += p;
    }
    vstore(max_at, max);
    vstore(sum_at, vfma(vload(sum_at), alpha, sum));
    vstore(alpha_at, alpha);
}

static void drop_keys(const tile_noise *z, uint64_t block, int lanes, int n, float *s)
{
    for (int i = 0; i < lanes; i += VL)
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

/* One tile: the scores of the keys, then what they add to o. */
static void lsh_tile(const lsh_head *h, const tile_noise *z, const lsh_queries *x,
                     const lsh_keys *y, lsh_tiles *f)
{
    const ag_lsh *a = h->a;
    const int64_t k_row = AG_ALIGN_UP(a->d_qk, GROUP), v_row = AG_ALIGN_UP(a->d_v, GROUP);
    const int lanes = AG_ALIGN_UP(x->n, GROUP);
    lsh_gather(y->list, y->n, a->d_qk, h->q, h->q_row, h->w.scale, 1.0f, f->k, k_row);
    const tile_product st = { a->d_qk, f->k, k_row, 1, f->qt, TILE, f->s, TILE, TILE_SET, NULL };
    tile_multiply(&st, y->n, lanes);
    lsh_mask(h, x, y, f->s);
    for (int i = 0; i < lanes; i += VL)
        softmax_lanes(y->n, f->s + i, f->max + i, f->sum + i, f->alpha + i);
    if (z->threshold)
        drop_keys(z, lsh_noise_block(h, z, x, y), lanes, y->n, f->s);
    lsh_gather(y->list, y->n, a->d_v, h->v, h->v_row, NULL, 1.0f, f->v, v_row);
    const tile_product ot = { y->n, f->v, 1, v_row, f->s, TILE, f->ot, TILE, TILE_SCALE,
                              f->alpha };
    tile_multiply(&ot, a->d_v, lanes);
}

/* o and lse of the queries, joined with what they hold of the rounds before: the weights are
 * exp(lse - joint lse). */
static void lsh_join(const lsh_head *h, bool first, const lsh_queries *x, lsh_tiles *f)
{
    const ag_lsh *a = h->a;
    const int64_t v_row = AG_ALIGN_UP(a->d_v, GROUP);
    const float kept = (float)(1.0 / (1.0 - a->drop)), none = -__builtin_inff();
    float *lse = (float *)a->lse + h->pair * a->t, *o = lsh_values_of(h, a->o);
    float new_lse[TILE];
    for (int i = 0; i < AG_ALIGN_UP(x->n, GROUP); i += VL) {
        const vf zero = vset(0.0f), sum = vload(f->sum + i);
        vstore(new_lse + i, vload(f->max + i) * (float)LN_2 + vlog(sum));
        vstore(f->alpha + i, vselect(zero, sum, kept / sum, zero));
    }
    tile_transpose_by(a->d_v, x->n, f->ot, TILE, f->v, v_row, f->alpha);
    for (int r = 0; r < x->n; r++) {
        const int32_t i = x->list[r];
        const float *y = f->v + r * v_row, old = first ? none : lse[i],
            new = f->sum[r] > 0 ? new_lse[r] : none, top = old > new ? old : new;
        float *to = o + i * h->v_row;
        if (first || !(old > none)) {
            lse[i] = new;
            memcpy(to, y, (size_t)a->d_v * sizeof *to);
        } else if (new > none) {
            const float w = ag_m_exp(old - top), u = ag_m_exp(new - top), sum = w + u;
            for (int64_t c = 0; c < a->d_v; c++)
                to[c] = (to[c] * w + y[c] * u) / sum;
            lse[i] = top + ag_m_log(sum);
        }
    }
}

/* The queries of a chunk from a place on, over all that they meet. */
static void lsh_forward(const lsh_head *h, const tile_noise *z, int64_t chunk, int64_t place)
{
    const ag_lsh *a = h->a;
    const int64_t k_row = AG_ALIGN_UP(a->d_qk, GROUP);
    lsh_tiles f __attribute__((aligned(64)));
    lsh_queries x;
    lsh_queries_init(h, chunk, place, &x);
    if (x.n <= 0)
        return;
    lsh_gather(x.list, x.n, a->d_qk, h->q, h->q_row, NULL, (float)LOG2_E, f.k, k_row);
    transpose_queries(x.n, a->d_qk, f.k, k_row, f.qt, 1.0f);
    clear_lanes(x.n, a->d_v, f.ot);
    for (int i = 0; i < TILE; i++) {
        f.max[i] = NO_MAX;
        f.sum[i] = 0;
    }
    for (int64_t slot = 0; slot < lsh_slots(a); slot++)
        for (int64_t j = 0; j < a->chunk; j += TILE) {
            lsh_keys y;
            const bool any = lsh_keys_init(h, &x, slot, j, &y);
            if (y.n <= 0)
                break;
            if (any)
                lsh_tile(h, z, &x, &y, &f);
        }
    lsh_join(h, chunk < lsh_chunks(a), &x, &f);
}

/* Positions that see nothing but themselves. */
static void lsh_finish(const lsh_head *h)
{
    const ag_lsh *a = h->a;
    const float *lse = (const float *)a->lse + h->pair * a->t;
    float *o = lsh_values_of(h, a->o);
    for (int64_t i = 0; i < h->length; i++)
        if (!(lse[i] > -__builtin_inff()))
            lsh_add(a->d_v, (float)lsh_alone(a, h->pair, &h->w, i), h->v + i * h->v_row,
                    o + i * h->v_row);
}

void AG_NAME(lsh_fwd)(const ag_lsh *a)
{
    if (a->d_qk > MAX_HEAD || a->d_v > MAX_HEAD) {
        ag_kernels_ref(AG_F32)->lsh_fwd(a);
        return;
    }
    const int64_t pairs = a->batch * a->heads;
    if (a->t == 0)
        return;
    const int64_t n = lsh_chunks(a), tiles = (min_of(a->chunk, a->t) + TILE - 1) / TILE;
    tile_noise z;
    lsh_noise_init(a, &z);
#pragma omp parallel if (pairs * a->t > 512)
    {
#pragma omp for schedule(dynamic)
        for (int64_t pair = 0; pair < pairs; pair++) {
            const lsh_head h = lsh_head_of(a, pair);
            lsh_prepare(&h);
        }
        for (int64_t round = 0; round < a->rounds; round++) {
#pragma omp for schedule(dynamic, 4)
            for (int64_t task = 0; task < pairs * n * tiles; task++) {
                const lsh_head h = lsh_head_of(a, task / (n * tiles));
                lsh_forward(&h, &z, round * n + task / tiles % n, task % tiles * TILE);
            }
        }
#pragma omp for schedule(dynamic)
        for (int64_t pair = 0; pair < pairs; pair++) {
            const lsh_head h = lsh_head_of(a, pair);
            lsh_finish(&h);
        }
    }
}
