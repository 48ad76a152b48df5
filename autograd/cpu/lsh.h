/*
 * lsh.h -- which queries and keys meet in attention by hashing (ag_lsh in kernels.h), for the
 * reference and the fast kernels: the sort, chunks and their ring.
 *
 * A head is one of a sequence, b * heads + h; n is the number of chunks of a round, and chunk g =
 * round * n + place.
 */
#ifndef AG_CPU_LSH_H
#define AG_CPU_LSH_H

#include "autograd/kernels.h"

/* Added to the mean square of a query before it is made a key. */
#define LSH_EPS 1e-6

typedef struct lsh_view {            /* of a head, in the scratch memory */
    int32_t *order;                  /* [rounds,t]: positions, by bucket and then by time */
    int32_t *rank;                   /* [rounds,t]: where each is in order, from 0 in each round */
    int32_t *count;                  /* [buckets + 1], for the sort */
    void    *scale;                  /* [t]: key = scale * query */
    void    *delta;                  /* [t]: do . o */
    void    *dk;                     /* [t,d_qk]: the gradient of keys */
} lsh_view;

static inline size_t lsh_aligned(int64_t n, size_t one)
{
    return ((size_t)n * one + 63) / 64 * 64;
}

static inline int64_t lsh_buckets(const ag_lsh *a) { return a->factor[0] * a->factor[1] + 1; }

/* number: bytes of a number */
static inline size_t lsh_pair_bytes(const ag_lsh *a, size_t number)
{
    return 2 * lsh_aligned(a->rounds * a->t, sizeof(int32_t)) +
        lsh_aligned(lsh_buckets(a) + 1, sizeof(int32_t)) + 2 * lsh_aligned(a->t, number) +
        lsh_aligned(a->t * a->d_qk, number);
}

static inline lsh_view lsh_view_of(const ag_lsh *a, int64_t head, size_t number)
{
    char *p = (char *)a->scratch + (size_t)head * lsh_pair_bytes(a, number);
    const size_t n = lsh_aligned(a->rounds * a->t, sizeof(int32_t)), t = lsh_aligned(a->t, number);
    const size_t counts = lsh_aligned(lsh_buckets(a) + 1, sizeof(int32_t));
    return (lsh_view){ (int32_t *)p, (int32_t *)(p + n), (int32_t *)(p + 2 * n),
                       p + 2 * n + counts, p + 2 * n + counts + t, p + 2 * n + counts + 2 * t };
}

static inline const int32_t *lsh_bucket_of(const ag_lsh *a, int64_t head, int64_t round)
{
    return a->bucket + (round * a->batch * a->heads + head) * a->t;
}

/* Sorts the positions of each round by bucket, stably: by counting. */
static inline void lsh_sort(const ag_lsh *a, int64_t head, const lsh_view *w)
{
    const int64_t buckets = lsh_buckets(a), t = a->t;
    for (int64_t r = 0; r < a->rounds; r++) {
        const int32_t *bucket = lsh_bucket_of(a, head, r);
        for (int64_t b = 0; b <= buckets; b++)
            w->count[b] = 0;
        for (int64_t i = 0; i < t; i++)
            w->count[bucket[i] + 1]++;
        for (int64_t b = 0; b < buckets; b++)
            w->count[b + 1] += w->count[b];
        for (int64_t i = 0; i < t; i++) {
            const int32_t at = w->count[bucket[i]]++;
            w->order[r * t + at] = (int32_t)i;
            w->rank[r * t + i] = at;
        }
    }
}

static inline int64_t lsh_length(const ag_lsh *a, int64_t head)
{
    const int64_t n = a->lengths ? a->lengths[head / a->heads] : a->t;
    return n < a->t ? n : a->t;
}

/* Chunks of a round; chunks that a chunk meets. */
static inline int64_t lsh_chunks(const ag_lsh *a) { return (a->t + a->chunk - 1) / a->chunk; }

static inline int64_t lsh_slots(const ag_lsh *a)
{
    const int64_t all = a->rounds * lsh_chunks(a), width = a->before + 1 + a->after;
    return width < all ? width : all;
}

static inline int64_t lsh_mod(int64_t x, int64_t n) { return (x % n + n) % n; }

/* The chunk that chunk g meets in a slot; that of the chunk itself is lsh_own(). */
static inline int64_t lsh_met(const ag_lsh *a, int64_t g, int64_t slot)
{
    return lsh_mod(g - a->before + slot, a->rounds * lsh_chunks(a));
}

static inline int64_t lsh_own(const ag_lsh *a)
{
    return a->before % (a->rounds * lsh_chunks(a));
}

/* Chunk g is order[*ret_begin .. *ret_begin + n - 1]; returns n. */
static inline int64_t lsh_chunk_at(const ag_lsh *a, int64_t g, int64_t *ret_begin)
{
    const int64_t n = lsh_chunks(a), place = g % n * a->chunk, left = a->t - place;
    *ret_begin = g / n * a->t + place;
    return left < a->chunk ? left : a->chunk;
}

/* Columns of the noise of dropout. */
static inline int64_t lsh_noise_columns(const ag_lsh *a)
{
    return (a->before + 1 + a->after) * ag_noise_stride(a->chunk);
}

/* How often position i, as a query, meets position j over all rounds. */
static inline int lsh_meetings(const ag_lsh *a, int64_t head, const lsh_view *w, int64_t i,
                               int64_t j)
{
    const int64_t n = lsh_chunks(a), slots = lsh_slots(a), all = a->rounds * n;
    int count = 0;
    for (int64_t r = 0; r < a->rounds; r++)
        for (int64_t s = 0; s < a->rounds; s++) {
            const int64_t g = r * n + w->rank[r * a->t + i] / a->chunk;
            const int64_t h = s * n + w->rank[s * a->t + j] / a->chunk;
            const bool same = r == s &&
                lsh_bucket_of(a, head, r)[i] == lsh_bucket_of(a, head, s)[j];
            if ((same || !a->bucket_mask) && lsh_mod(h - g + a->before, all) < slots)
                count++;
        }
    return count;
}

/* What a position that sees nothing but itself multiplies its value with: the mean of what dropout
 * makes of its weight in each round. */
static inline double lsh_alone(const ag_lsh *a, int64_t head, const lsh_view *w, int64_t i)
{
    if (!(a->drop > 0))
        return 1;
    int kept = 0;
    for (int64_t r = 0; r < a->rounds; r++) {
        const int64_t place = w->rank[r * a->t + i] % a->chunk;
        const int64_t column = lsh_own(a) * ag_noise_stride(a->chunk) + place;
        kept += ag_noise_at(&a->noise, head * a->chunk + place, column, lsh_noise_columns(a)) >=
            ag_drop_threshold(a->drop);
    }
    return kept / ((double)a->rounds * (1 - a->drop));
}

/* Decoding: list[] = the positions that query i attends to, i among them; returns how many.  bucket
 * is [rounds,row]. */
static inline int64_t lsh_candidates(const int32_t *bucket, int64_t row, int64_t rounds, int64_t i,
                                     int64_t most, int32_t *list)
{
    int64_t n = 0;
    for (int shared = 1; shared >= 0; shared--)
        for (int64_t j = i; j >= 0 && n < most; j--) {
            int same = 0;
            for (int64_t r = 0; r < rounds; r++)
                same |= bucket[r * row + j] == bucket[r * row + i];
            if (same == shared)
                list[n++] = (int32_t)j;
        }
    return n;
}

/*
 * The same list from chains: before[r][j] is the newest position before j in a place of round r;
 * -1: none.  A place is of a bucket, and of another one here and there where there are more buckets
 * than positions, so positions of other buckets are passed over.  A list then takes a time that
 * does not grow with i.
 */
static inline void lsh_chain(const int32_t *bucket, int64_t row, int64_t rounds, int64_t n,
                             int32_t *before, int32_t *last)
{
    int64_t places = 1;
    while (2 * places <= n)
        places *= 2;
    for (int64_t r = 0; r < rounds; r++) {
        for (int64_t p = 0; p < places; p++)
            last[p] = -1;
        for (int64_t j = 0; j < n; j++) {
            int32_t *newest = last + (bucket[r * row + j] & (places - 1));
            before[r * n + j] = *newest;
            *newest = (int32_t)j;
        }
    }
}

/* The next position of the bucket of i in a chain, from j on. */
static inline int32_t lsh_alike(const int32_t *bucket, const int32_t *before, int64_t i, int32_t j)
{
    while (j >= 0 && bucket[j] != bucket[i])
        j = before[j];
    return j;
}

/* n: positions in a chain */
static inline int64_t lsh_chained(const int32_t *bucket, int64_t row, int64_t rounds, int64_t n,
                                  const int32_t *before, int64_t i, int64_t most, int32_t *list)
{
    int32_t next[AG_LSH_ROUNDS], newest = (int32_t)i;
    int64_t size = 0, met = 0;
    for (int64_t r = 0; r < rounds; r++)
        next[r] = (int32_t)i;
    while (newest >= 0 && size < most) {
        const int32_t j = list[size++] = newest;
        newest = -1;
        for (int64_t r = 0; r < rounds; r++) {
            const int32_t *b = bucket + r * row, *to = before + r * n;
            if (next[r] == j)
                next[r] = lsh_alike(b, to, i, to[j]);
            newest = next[r] > newest ? next[r] : newest;
        }
    }
    const int64_t shared = size;
    for (int64_t j = i; j >= 0 && size < most; j--)      /* the others: list[met] is older */
        if (met < shared && list[met] == j)
            met++;
        else
            list[size++] = (int32_t)j;
    return size;
}

/* Scratch memory of a sequence and head in decoding: the list, its scores, the chains. */
typedef struct lsh_decode_view {
    int32_t *list;                   /* [most] */
    void    *score;                  /* [most] */
    int32_t *before, *last;          /* [rounds,n], [n] for n = past + t positions */
} lsh_decode_view;

static inline size_t lsh_decode_bytes(const ag_lsh_decode *a, size_t number)
{
    return lsh_aligned(a->most, sizeof(int32_t)) + lsh_aligned(a->most, number) +
        lsh_aligned((a->rounds + 1) * (a->past + a->t), sizeof(int32_t));
}

static inline lsh_decode_view lsh_decode_view_of(const ag_lsh_decode *a, int64_t head,
                                                 size_t number)
{
    char *p = (char *)a->scratch + (size_t)head * lsh_decode_bytes(a, number);
    char *score = p + lsh_aligned(a->most, sizeof(int32_t));
    int32_t *before = (int32_t *)(score + lsh_aligned(a->most, number));
    return (lsh_decode_view){ (int32_t *)p, score, before,
                              before + a->rounds * (a->past + a->t) };
}

/*
 * An order of the chunks in which backward may add to what they meet: phases, of which the chunks
 * of one share no position.  Chunks that meet none of another round go in turns; the others are
 * phases of their own.
 */
typedef struct lsh_phase { int64_t first, step, n; } lsh_phase;          /* chunks */

static inline int64_t lsh_phases(const ag_lsh *a)        /* of a round */
{
    const int64_t n = lsh_chunks(a), edge = a->before + a->after;
    return n <= edge ? n : 2 * edge + 1;
}

static inline lsh_phase lsh_phase_of(const ag_lsh *a, int64_t round, int64_t p)
{
    const int64_t n = lsh_chunks(a), edge = a->before + a->after, first = round * n;
    if (n <= edge)
        return (lsh_phase){ first + p, 1, 1 };
    if (p > edge) {
        const int64_t e = p - edge - 1;
        return (lsh_phase){ first + (e < a->before ? e : n - edge + e), 1, 1 };
    }
    const int64_t inner = n - edge;
    return (lsh_phase){ first + a->before + p, edge + 1, (inner - p + edge) / (edge + 1) };
}

#endif
