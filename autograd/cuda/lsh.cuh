/*
 * lsh.cuh -- what the kernels of attention by hashing share (ag_lsh in kernels.h; formulas in
 * ops/lsh.c): the problem as they see it, who meets whom, the noise of dropout.
 *
 * A pair is one of a sequence and head, b * heads + h.  The sort is that of group.cuh.  A position
 * is a query once in a round, and a key once in a round: work is cut by tiles of a chunk of one
 * round, the rounds follow each other, and each adds to what the rounds before left.  So a number
 * of an output is summed by one thread at a time, in an order that is always the same.  Backward
 * makes the scores twice, once for queries, once for keys, and has no sum in the order of arrival.
 * Logarithms are to the base 2 while they are in a kernel.
 *
 * Counted per pair, for R rounds, t positions, w = (before + 1 + after) chunk keys that each meets,
 * and d = d_qk = d_v: forward 4 R t w d operations, backward 14 R t w d (five products, two of them
 * twice).  Rows of q and v lie d numbers together, so the order in which the sort calls for them
 * costs no bytes.  At the least 2 t d numbers are read and t d written, and the tiles read R w / 64
 * times 2 t d, from L2 mostly; o goes through memory 2 R - 1 times.  For w of 128 or more the
 * operations set the pace, as in dense attention, of which this does R w / t.
 */
#ifndef AG_CUDA_LSH_CUH
#define AG_CUDA_LSH_CUH

#include <math.h>

#include "launch.cuh"
#include "number.cuh"
#include "tile.cuh"

#define LOG2_E  1.44269504f
#define LN_2    0.69314718f
#define LSH_EPS 1e-6f                /* added to the mean square of a query that becomes a key */

struct lsh {
    int      heads, t, d_qk, d_v, rounds, buckets;
    int64_t  pairs;
    int      cut, chunks, all;       /* positions of a chunk, at most t; of a round, and of all */
    int      own, slots;             /* a chunk meets `slots` chunks, itself as number own */
    bool     causal, bucket_mask, correct;
    bool     vectors;                /* rows of all begin at, and are, multiples of 16 bytes */
    uint32_t drop_below;             /* 0: no dropout */
    float    kept;                   /* 1/(1-drop) */
    ag_noise noise;
    int64_t  chunk, columns;         /* rows of noise of a pair, and their length */
    const int32_t *lengths;          /* [batch] or NULL */
    const int32_t *bucket;           /* [rounds,pairs,t] */
    const float *q, *v;              /* [batch,t,heads*d_qk], [batch,t,heads*d_v] */
    float   *o, *lse;                /* [batch,t,heads*d_v], [pairs,t] */
    int32_t *order, *rank;           /* [rounds,pairs,t]: positions by bucket; where each is then */
    float   *scale;                  /* [pairs,t]: key = scale * query */
    /* backward */
    const float *d_o;
    float   *dq, *dv;
    float   *delta, *dk;             /* [pairs,t]: do . o; [pairs,t,d_qk] of keys, set */
};

DEVICE int lsh_length(const lsh &a, int64_t pair)
{
    return a.lengths ? min(a.lengths[pair / a.heads], a.t) : a.t;
}

/* Row i of a pair in an array laid out as q, or as v. */
DEVICE int64_t lsh_q_at(const lsh &a, int64_t pair, int i)
{
    return ((pair / a.heads * a.t + i) * a.heads + pair % a.heads) * a.d_qk;
}
DEVICE int64_t lsh_v_at(const lsh &a, int64_t pair, int i)
{
    return ((pair / a.heads * a.t + i) * a.heads + pair % a.heads) * a.d_v;
}

/* Where a round of a pair begins in order, rank and bucket. */
DEVICE int64_t lsh_round_at(const lsh &a, int64_t pair, int round)
{
    return (round * a.pairs + pair) * a.t;
}

/* A chunk g = round * chunks + place: its positions are order[begin .. begin + n - 1]. */
struct lsh_part { int64_t begin; int n, round; };
DEVICE lsh_part lsh_chunk_at(const lsh &a, int64_t pair, int g)
{
    const int round = g / a.chunks, first = g % a.chunks * a.cut;
    return { lsh_round_at(a, pair, round) + first, min(a.cut, a.t - first), round };
}

/* The ring of chunks: that which g meets in a slot; that which meets g in a slot; is there one in
 * which g meets h? */
DEVICE int lsh_in_ring(const lsh &a, int g)
{
    return g < 0 ? g + a.all : g >= a.all ? g - a.all : g;
}
DEVICE int lsh_met(const lsh &a, int g, int slot) { return lsh_in_ring(a, g - a.own + slot); }
DEVICE int lsh_met_by(const lsh &a, int g, int slot) { return lsh_in_ring(a, g + a.own - slot); }
DEVICE bool lsh_meets(const lsh &a, int g, int h)
{
    return lsh_in_ring(a, h - lsh_met(a, g, 0)) < a.slots;
}

/* The element of noise of the at-th query of a chunk and column 0 of a slot. */
DEVICE uint64_t lsh_noise_row(const lsh &a, int64_t pair, int at, int slot)
{
    return (uint64_t)((ag_noise_now(a.noise).row0 + pair * a.chunk + at) * a.columns +
                      slot * ag_noise_stride(a.chunk));
}

/* What the weight of one element of noise is multiplied with. */
DEVICE float lsh_kept(const lsh &a, uint64_t e)
{
    const ag_noise z = ag_noise_now(a.noise);
    return ag_noise_bits(z.seed, z.step, z.site, e) >= a.drop_below ? a.kept : 0;
}

/* A round's weights of keys are exp2(s - lse2): 0 where the query sees nothing but itself. */
DEVICE float lsh_log2(float lse) { return lse == -INFINITY ? INFINITY : lse * LOG2_E; }

DEVICE float lsh_warp_sum(float x)
{
    for (int m = 16; m > 0; m /= 2) x += __shfl_xor_sync(AG_WARP, x, m);
    return x;
}
DEVICE float lsh_warp_max(float x)
{
    for (int m = 16; m > 0; m /= 2) x = fmaxf(x, __shfl_xor_sync(AG_WARP, x, m));
    return x;
}

/* Tiles of 64 (lsh_tiles.cu), heads of at most 128 and chunks of at least 16; false: not so, or
 * there is too little shared memory, and nothing has run.  A warp for each position (lsh_any.cu):
 * any head and chunk.  Both want order, rank and scale, backward delta too; they add to dq and dv
 * and set dk; o = 0 and lse = -inf are left of a query that sees nothing but itself. */
bool lsh_tiles_fwd(const lsh &a);
bool lsh_tiles_bwd(const lsh &a);
void lsh_any_fwd(const lsh &a);
void lsh_any_bwd(const lsh &a);

/* lsh_hash.cu, lsh_decode.cu */
void lsh_hash(const ag_lsh *a, const void *r, bool shared);
void lsh_decode(const ag_lsh_decode *a);

#endif
