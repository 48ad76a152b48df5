/*
 * lsh_hash_tmpl.c -- the hash of attention by hashing for one instruction set, its rotations, and
 * its decoding (ag_lsh and ag_lsh_decode in kernels.h; formulas in ops/lsh.c).
 */
#include "autograd/cpu/lsh_tile_tmpl.h"

void AG_NAME(normal)(int64_t m, int64_t n, const ag_noise *z, void *py)
{
    const int64_t groups = (n + 63) / 64;
#pragma omp parallel for schedule(static) if (m * n > 512)
    for (int64_t task = 0; task < m * groups; task++) {
        const int64_t row = task / groups, first = task % groups * 64;
        float *y = (float *)py + row * n + first;
        uint32_t bits[64];
        vnoise64(z, ag_noise_group(z, row, n) + (uint64_t)(first / 64), bits);
        for (int64_t j = 0; j < 64 && first + j < n; j += 2) {
            double pair[2];
            ag_normal2(bits[j], bits[j + 1], pair);
            y[j] = (float)pair[0];
            if (first + j + 1 < n)
                y[j + 1] = (float)pair[1];
        }
    }
}

/* The largest number so far of each of VL queries, and where it was. */
typedef struct best { vf top; vi at; } best;

static inline void best_add(best *b, vf x, int32_t at)
{
    const vi more = x > b->top;
    b->top = (vf)((more & (vi)x) | (~more & (vi)b->top));
    b->at = (more & at) | (~more & b->at);
}

/* argmax of [x, -x], x = r^T q of columns first .. first + half - 1, for the queries of a tile */
static void hash_tile(int64_t d, const float *qt, const float *r, int64_t columns, int64_t half,
                      int lanes, int32_t *ret_at)
{
    float s[TILE * TILE] __attribute__((aligned(64)));
    best up[TILE / VL], down[TILE / VL];
    for (int i = 0; i < TILE / VL; i++)
        up[i] = down[i] = (best){ vset(-__builtin_inff()), { 0 } };
    for (int64_t j = 0; j < half; j += TILE) {
        const int64_t m = min_of(TILE, half - j);
        const tile_product p = { d, r + j, 1, columns, qt, TILE, s, TILE, TILE_SET, NULL };
        tile_multiply(&p, m, lanes);
        for (int i = 0; i < lanes; i += VL)
            for (int64_t k = 0; k < m; k++) {
                const vf x = vload(s + k * TILE + i);
                best_add(&up[i / VL], x, (int32_t)(j + k));
                best_add(&down[i / VL], -x, (int32_t)(j + k));
            }
    }
    for (int i = 0; i < lanes; i += VL) {
        const vi over = down[i / VL].top > up[i / VL].top;
        const vi at = (over & (down[i / VL].at + (int32_t)half)) | (~over & up[i / VL].at);
        memcpy(ret_at + i, &at, sizeof at);
    }
}

/* Positions first .. first + 63 of a pair. */
static void hash_positions(const ag_lsh *a, const float *r, int64_t pair, int64_t first)
{
    const int64_t half[2] = { a->factor[0] / 2, a->factor[1] / 2 }, both = half[0] + half[1];
    const int64_t columns = a->rounds * both, length = lsh_length(a, pair);
    const int64_t b = pair / a->heads, h = pair % a->heads, row = a->heads * a->d_qk;
    const int n = (int)min_of(TILE, a->t - first), lanes = AG_ALIGN_UP(n, GROUP);
    float qt[MAX_HEAD * TILE] __attribute__((aligned(64)));
    int32_t at[TILE], high[TILE];
    transpose_queries(n, a->d_qk, (const float *)a->q + (b * a->t + first) * row + h * a->d_qk, row,
                      qt, 1.0f);
    for (int64_t s = 0; s < a->rounds; s++) {
        int32_t *to = a->bucket + (s * a->batch * a->heads + pair) * a->t + first;
        hash_tile(a->d_qk, qt, r + s * both, columns, half[0], lanes, at);
        if (a->factor[1] > 1)
            hash_tile(a->d_qk, qt, r + s * both + half[0], columns, half[1], lanes, high);
        for (int i = 0; i < n; i++)
            to[i] = first + i >= length ? (int32_t)(lsh_buckets(a) - 1)
                : at[i] + (a->factor[1] > 1 ? (int32_t)a->factor[0] * high[i] : 0);
    }
}

void AG_NAME(lsh_hash)(const ag_lsh *a, const void *r, bool shared)
{
    const int64_t pairs = a->batch * a->heads, tiles = (a->t + TILE - 1) / TILE;
    const int64_t columns = a->rounds * (a->factor[0] / 2 + a->factor[1] / 2);
    if (a->d_qk > MAX_HEAD) {
        ag_kernels_ref(AG_F32)->lsh_hash(a, r, shared);
        return;
    }
#pragma omp parallel for schedule(static) if (pairs * a->t * columns > 4096)
    for (int64_t task = 0; task < pairs * tiles; task++) {
        const int64_t pair = task / tiles;
        hash_positions(a, (const float *)r + (shared ? pair % a->heads : pair) * a->d_qk * columns,
                       pair, task % tiles * TILE);
    }
}

/* ---- decoding ---- */

/* The query of position i: its softmax over the listed keys, then their values. */
static void decode_query(const ag_lsh_decode *a, int64_t pair, int64_t i, const lsh_decode_view *w)
{
    float *s = w->score;
    const int32_t *list = w->list;
    const int64_t b = pair / a->heads, h = pair % a->heads;
    const int64_t k_row = a->heads * a->d_qk, v_row = a->heads * a->d_v;
    const float *k = (const float *)a->k + b * a->capacity * k_row + h * a->d_qk;
    const float *v = (const float *)a->v + b * a->capacity * v_row + h * a->d_v;
    float *o = (float *)a->o + (b * a->t + i - a->past) * v_row + h * a->d_v;
    const int32_t *bucket = a->bucket + pair * a->rounds * a->capacity;
    const int64_t n = lsh_chained(bucket, a->capacity, a->rounds, a->past + a->t, w->before, i,
                                  a->most, w->list);
    float top = NO_MAX, sum = 0;
    for (int64_t j = 0; j < n; j++) {
        const float *key = k + list[j] * k_row;
        s[j] = list[j] == i ? MASKED
            : lsh_key_scale(a->d_qk, key) * lsh_dot(a->d_qk, k + i * k_row, key);
        top = s[j] > top ? s[j] : top;
    }
    for (int64_t j = 0; j < n; j++) {
        s[j] = list[j] == i ? 0 : ag_m_exp(s[j] - top);
        sum += s[j];
    }
    if (!(sum > 0)) {
        memcpy(o, v + i * v_row, (size_t)a->d_v * sizeof *o);
        return;
    }
    memset(o, 0, (size_t)a->d_v * sizeof *o);
    for (int64_t j = 0; j < n; j++)
        if (s[j] > 0)
            lsh_add(a->d_v, s[j] / sum, v + list[j] * v_row, o);
}

void AG_NAME(lsh_decode)(const ag_lsh_decode *a)
{
    const int64_t pairs = a->batch * a->heads;
#pragma omp parallel for schedule(static) if (pairs * a->t * (a->past + a->t) > 2048)
    for (int64_t pair = 0; pair < pairs; pair++) {
        const lsh_decode_view w = lsh_decode_view_of(a, pair, sizeof(float));
        lsh_chain(a->bucket + pair * a->rounds * a->capacity, a->capacity, a->rounds,
                  a->past + a->t, w.before, w.last);
        for (int64_t i = a->past; i < a->past + a->t; i++)
            decode_query(a, pair, i, &w);
    }
}
