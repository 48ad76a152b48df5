/*
 * lsh_tile_tmpl.h -- a tile of attention by hashing (ag_lsh in kernels.h): up to 64 queries of a
 * chunk and up to 64 keys of a chunk that it meets, their rows gathered and their masks.  For
 * lsh_tmpl.c and lsh_grad_tmpl.c; attention_tile.h has the arithmetic.
 */
#ifndef AG_CPU_LSH_TILE_TMPL_H
#define AG_CPU_LSH_TILE_TMPL_H

#include "autograd/cpu/attention_keys_tmpl.h"
#include "autograd/cpu/lsh.h"

typedef struct lsh_head {            /* a sequence and head */
    const ag_lsh *a;
    lsh_view w;
    int64_t  pair, length, q_row, v_row;                 /* numbers from position to position */
    const float *q, *v;              /* of position 0 */
} lsh_head;

typedef struct lsh_queries {
    int      n;
    int64_t  chunk, place;           /* the first is the place-th of its chunk */
    const int32_t *list;             /* positions */
    int32_t  first, last;            /* the least and the greatest */
    int32_t  pos[TILE], id[TILE];    /* position, or -1; bucket and round, as a number */
    int32_t  met[AG_LSH_ROUNDS][TILE], bucket[AG_LSH_ROUNDS][TILE];      /* for a->correct: by
                                      * round, the first chunk that it meets, its bucket */
} lsh_queries;

typedef struct lsh_keys {
    int      n;
    int64_t  round, slot, place;     /* the first is the place-th of the slot-th chunk met */
    const int32_t *list;
} lsh_keys;

static inline lsh_head lsh_head_of(const ag_lsh *a, int64_t pair)
{
    const int64_t b = pair / a->heads, h = pair % a->heads;
    const int64_t q_row = a->heads * a->d_qk, v_row = a->heads * a->d_v;
    return (lsh_head){ a, lsh_view_of(a, pair, sizeof(float)), pair, lsh_length(a, pair), q_row,
                       v_row, (const float *)a->q + b * a->t * q_row + h * a->d_qk,
                       (const float *)a->v + b * a->t * v_row + h * a->d_v };
}

/* Where position 0 of this head is in x, laid out as o. */
static inline float *lsh_values_of(const lsh_head *h, const void *x)
{
    return (float *)(uintptr_t)x + (h->v - (const float *)h->a->v);
}

static inline int32_t lsh_id(const lsh_head *h, int64_t round, int64_t i)
{
    return (int32_t)(round * lsh_buckets(h->a)) + lsh_bucket_of(h->a, h->pair, round)[i];
}

/* For a->correct: where query x->list[r] is in each round. */
static inline void lsh_query_places(const lsh_head *h, lsh_queries *x, int r)
{
    const int64_t n = lsh_chunks(h->a);
    for (int64_t s = 0; s < h->a->rounds; s++) {
        const int64_t g = s * n + h->w.rank[s * h->a->t + x->list[r]] / h->a->chunk;
        x->met[s][r] = (int32_t)lsh_met(h->a, g, 0);
        x->bucket[s][r] = lsh_id(h, s, x->list[r]);
    }
}

static inline void lsh_queries_init(const lsh_head *h, int64_t chunk, int64_t place,
                                    lsh_queries *x)
{
    int64_t begin;
    const int64_t all = lsh_chunk_at(h->a, chunk, &begin);
    x->n = (int)min_of(TILE, all - place);
    x->chunk = chunk;
    x->place = place;
    x->list = h->w.order + begin + place;
    x->first = INT32_MAX;
    x->last = -1;
    for (int r = 0; r < TILE; r++) {
        const bool is = r < x->n;
        x->pos[r] = is ? x->list[r] : -1;
        x->id[r] = is ? lsh_id(h, chunk / lsh_chunks(h->a), x->list[r]) : -1;
        x->first = is && x->pos[r] < x->first ? x->pos[r] : x->first;
        x->last = x->pos[r] > x->last ? x->pos[r] : x->last;
        if (h->a->correct && is)
            lsh_query_places(h, x, r);
        else
            for (int64_t s = 0; h->a->correct && s < h->a->rounds; s++)
                x->met[s][r] = x->bucket[s][r] = 0;
    }
}

/* Keys place .. of the slot-th chunk that the queries meet; returns whether any may be seen. */
static inline bool lsh_keys_init(const lsh_head *h, const lsh_queries *x, int64_t slot,
                                 int64_t place, lsh_keys *y)
{
    int64_t begin;
    const int64_t met = lsh_met(h->a, x->chunk, slot), all = lsh_chunk_at(h->a, met, &begin);
    *y = (lsh_keys){ (int)min_of(TILE, all - place), met / lsh_chunks(h->a), slot, place,
                     h->w.order + begin + place };
    int32_t least = INT32_MAX;
    for (int i = 0; i < y->n; i++)
        least = y->list[i] < least ? y->list[i] : least;
    return least < h->length && (!h->a->causal || least < x->last);
}

/* to[n][to_row] = rows list[] of x[..][row], each times by[its position] where by is not NULL */
static inline void lsh_gather(const int32_t *list, int n, int64_t d, const float *x, int64_t row,
                              const float *by, float scale, float *to, int64_t to_row)
{
    for (int i = 0; i < n; i++) {
        if (i + 8 < n)
            for (int64_t c = 0; c < d; c += GROUP)
                __builtin_prefetch(x + list[i + 8] * row + c, 0, 3);
        tile_copy(1, d, x + list[i] * row, row, to + i * to_row, to_row,
                  by ? scale * by[list[i]] : scale);
    }
}

/* ---- masks ---- */

static inline vi lsh_lanes(const int32_t *p)
{
    vi x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* log2 of how often VL queries from the r-th on meet the key, counted over all rounds */
static inline vf lsh_log_meetings(const lsh_head *h, const lsh_queries *x, int r, int32_t key)
{
    const ag_lsh *a = h->a;
    const int64_t n = lsh_chunks(a);
    const int32_t all = (int32_t)(a->rounds * n), slots = (int32_t)lsh_slots(a);
    vi count = { 0 };
    for (int64_t s = 0; s < a->rounds; s++) {
        const int32_t g = (int32_t)(s * n + h->w.rank[s * a->t + key] / a->chunk);
        for (int64_t u = 0; u < a->rounds; u++) {
            if (a->bucket_mask && u != s)
                continue;
            vi far = g - lsh_lanes(x->met[u] + r);
            far += (far < 0) & all;
            vi meets = far < slots;
            if (a->bucket_mask)
                meets &= lsh_lanes(x->bucket[u] + r) == lsh_id(h, s, key);
            count -= meets;
        }
    }
    count -= count == 0;             /* what is masked may meet never */
    return vlog(__builtin_convertvector(count, vf)) * (float)LOG2_E;
}

/* s[key][query]: MASKED where a query does not see a key; less the log of meetings, if wanted */
static inline void lsh_mask(const lsh_head *h, const lsh_queries *x, const lsh_keys *y, float *s)
{
    const ag_lsh *a = h->a;
    const int lanes = AG_ALIGN_UP(x->n, GROUP);
    for (int k = 0; k < y->n; k++, s += TILE) {
        const int32_t key = y->list[k];
        const int32_t id = a->bucket_mask ? lsh_id(h, y->round, key) : 0;
        const bool sure = a->causal ? key < x->first : key < x->first || key > x->last;
        if (sure && key < h->length && !a->bucket_mask && !a->correct)
            continue;
        for (int r = 0; r < lanes; r += VL) {
            const vi pos = lsh_lanes(x->pos + r);
            vi seen = a->causal ? pos > key : pos != key;
            if (a->bucket_mask)
                seen &= lsh_lanes(x->id + r) == id;
            if (key >= h->length)
                seen = (vi){ 0 };
            vf v = vload(s + r);
            if (a->correct)
                v -= lsh_log_meetings(h, x, r, key);
            vstore(s + r, (vf)((seen & (vi)v) | (~seen & (vi)vset(MASKED))));
        }
    }
}

/* ---- dropout ---- */

static inline void lsh_noise_init(const ag_lsh *a, tile_noise *z)
{
    tile_noise_init(z, &a->noise, a->drop, lsh_noise_columns(a));
}

/* The Philox block of the first query and key. */
static inline uint64_t lsh_noise_block(const lsh_head *h, const tile_noise *z,
                                       const lsh_queries *x, const lsh_keys *y)
{
    const int64_t row = h->a->noise.row0 + h->pair * h->a->chunk + x->place;
    const int64_t column = y->slot * ag_noise_stride(h->a->chunk) + y->place;
    return (uint64_t)row * z->row_blocks + (uint64_t)column / 4;
}

/* ---- beside them ---- */

static inline float lsh_dot(int64_t n, const float *x, const float *y)
{
    vf sum = vset(0.0f);
    int64_t c = 0;
    for (; c + VL <= n; c += VL)
        sum = vfma(vload(x + c), vload(y + c), sum);
    if (c < n)
        sum = vfma(vload_n(x + c, n - c), vload_n(y + c, n - c), sum);
    return vsum(sum);
}

/* y[d] += c x[d] */
static inline void lsh_add(int64_t d, float c, const float *x, float *y)
{
    int64_t i = 0;
    for (; i + VL <= d; i += VL)
        vstore(y + i, vfma(vset(c), vload(x + i), vload(y + i)));
    if (i < d)
        vstore_n(y + i, vfma(vset(c), vload_n(x + i, d - i), vload_n(y + i, d - i)), d - i);
}

/* What a key is of its query: 1 / sqrt((mean of squares + eps) d) */
static inline float lsh_key_scale(int64_t d, const float *q)
{
    return 1.0f / __builtin_sqrtf((lsh_dot(d, q, q) / (float)d + (float)LSH_EPS) * (float)d);
}

/* Sorts, and the scale of the keys. */
static inline void lsh_prepare(const lsh_head *h)
{
    lsh_sort(h->a, h->pair, &h->w);
    for (int64_t i = 0; i < h->a->t; i++)
        ((float *)h->w.scale)[i] = lsh_key_scale(h->a->d_qk, h->q + i * h->q_row);
}

#endif
