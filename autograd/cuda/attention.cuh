/*
 * attention.cuh -- what the kernels of attention share: the problem as they see it, which keys a
 * query sees, the noise of dropout, partial results.
 *
 * Work is cut by queries (forward and dq) or by keys (dk and dv), so each number of an output is
 * summed by one thread, in the order of the keys or queries: backward makes the scores twice, and
 * in turn has no sum in the order of arrival.  Logarithms are to the base 2 while they are in a
 * kernel: exp2f is one instruction.
 *
 * Counted per head, for n = tq tk pairs (half of them where it is causal) and d = d_qk = d_v:
 * forward 4 n d operations, backward 14 n d (five products, two of them twice); forward reads and
 * writes 4 t d numbers at the least, and the tiles read k and v once for each TILE queries, from L2
 * mostly.  Above 200 or so positions the operations set the pace.
 */
#ifndef AG_CUDA_ATTENTION_CUH
#define AG_CUDA_ATTENTION_CUH

#include <math.h>

#include "launch.cuh"
#include "number.cuh"
#include "tile.cuh"

#define LOG2_E 1.44269504f
#define LN_2   0.69314718f

template <class T> struct attention {
    int      batch, heads, tq, tk, d_qk, d_v;
    bool     causal;
    int      q_pos0;                 /* within -tq .. tk, which says as much */
    const int32_t *lengths;          /* [batch] or NULL */
    float    scale, scale2;          /* scale2 = scale / ln 2 */
    uint32_t drop_below;             /* 0: no dropout */
    float    kept;                   /* 1/(1-drop) */
    ag_noise noise;
    bool     vectors;                /* rows of all begin at, and are, multiples of 16 bytes */
    const T *q, *k, *v;
    T       *o;
    int64_t  q_row, q_batch, k_row, k_batch, v_row, v_batch, o_row, o_batch;
    float   *lse;                    /* [batch,heads,tq] */
    /* forward: keys are in `splits` parts of so many, and results are partial, where it is > 1 */
    int      splits, split_keys;
    float   *part_o, *part_top, *part_sum;   /* [splits,batch,heads,tq] rows; part_o [.., d_v] */
    /* backward */
    const T *d_o;
    T       *dq, *dk, *dv;
    bool     acc;
    float   *delta;                  /* [batch,heads,tq] */
};

/* One head of one item. */
struct head_at { int b, h; int64_t bh; };

DEVICE head_at head_of(int64_t bh, int heads)
{
    return { (int)(bh / heads), (int)(bh % heads), bh };
}

/* The keys that item b has; those that query i sees, of n. */
template <class T> DEVICE int keys_of(const attention<T> &a, int b)
{
    return a.lengths ? a.lengths[b] : a.tk;
}
template <class T> DEVICE int seen(const attention<T> &a, int n, int i)
{
    return a.causal ? max(0, min(n, i + a.q_pos0 + 1)) : n;
}

/* The first query that sees key j. */
template <class T> DEVICE int first_query(const attention<T> &a, int j)
{
    return a.causal ? max(0, j - a.q_pos0) : 0;
}

template <class T>
DEVICE const T *row_q(const attention<T> &a, const T *q, head_at e, int i)
{
    return q + e.b * a.q_batch + (int64_t)i * a.q_row + (int64_t)e.h * a.d_qk;
}
template <class T>
DEVICE const T *row_k(const attention<T> &a, const T *k, head_at e, int j)
{
    return k + e.b * a.k_batch + (int64_t)j * a.k_row + (int64_t)e.h * a.d_qk;
}
template <class T>
DEVICE const T *row_v(const attention<T> &a, const T *v, head_at e, int j)
{
    return v + e.b * a.v_batch + (int64_t)j * a.v_row + (int64_t)e.h * a.d_v;
}
template <class T>
DEVICE const T *row_o(const attention<T> &a, const T *o, head_at e, int i)
{
    return o + e.b * a.o_batch + (int64_t)i * a.o_row + (int64_t)e.h * a.d_v;
}

/* What the weights of keys j, j+16, j+32, j+48 of a row are multiplied with, j % 64 < 16: one block
 * of noise has the bits of the four. */
template <class T>
DEVICE void kept_of(const attention<T> &a, int64_t row, int j, float r[4])
{
    const ag_noise z = ag_noise_now(a.noise);
    const uint64_t e = (uint64_t)((z.row0 + row) * ag_noise_stride(a.tk) + j);
    uint32_t bits[4];
    ag_philox(z.seed, z.step, z.site, e / 64 * 16 + e % 16, bits);
    for (int c = 0; c < 4; c++) r[c] = bits[c] >= a.drop_below ? a.kept : 0;
}

/* That of one key. */
template <class T>
DEVICE float kept_at(const attention<T> &a, int64_t row, int j)
{
    const ag_noise z = ag_noise_now(a.noise);
    return ag_noise_at(&z, row, j, a.tk) >= a.drop_below ? a.kept : 0;
}

/* The log2 of a row's sum, for backward, where a row without a key has p = exp2(s - lse) = 0. */
DEVICE float lse_log2(float lse)
{
    return lse == -INFINITY ? INFINITY : lse * LOG2_E;
}

template <class T> DEVICE void put_sum(T *y, float x, bool acc)
{
    put(y, acc ? get(y) + x : x);
}

/* Where results of a row go: to o and lse; or, where keys are in parts, its sums as they are.  o is
 * column c of the sum of exp2(s - top) v, `sum` that of exp2(s - top). */
template <class T> struct row_at {
    int64_t row;                     /* in lse, or in part_top and part_sum */
    T      *o;
    float  *part;                    /* NULL: to o */
};

template <class T>
DEVICE row_at<T> result_at(const attention<T> &a, head_at e, int i,
                                                      int split)
{
    const int64_t rows = (int64_t)a.batch * a.heads * a.tq, row = e.bh * a.tq + i;
    if (a.splits > 1) return { split * rows + row, NULL, a.part_o + (split * rows + row) * a.d_v };
    return { row, (T *)row_o(a, a.o, e, i), NULL };
}

template <class T>
DEVICE void put_result(const row_at<T> &to, int c, float o, float sum)
{
    if (to.part) to.part[c] = o;
    else put(to.o + c, sum > 0 ? o / sum : 0);
}

template <class T>
DEVICE void put_sums(const attention<T> &a, const row_at<T> &to,
                                                float top, float sum)
{
    if (to.part) {
        a.part_top[to.row] = top;
        a.part_sum[to.row] = sum;
    } else {
        a.lse[to.row] = sum > 0 ? top * LN_2 + logf(sum) : -INFINITY;
    }
}

/* --- the kernels, by what they suit ----------------------------------------------------------- */

/* Tiles, heads of at most 128, or 64 where a block has too little shared memory (f32:
 * attention_fma.cu, 16 bits: attention_mma.cu); true: it has run. */
template <class T> bool attention_tiles_fwd(const attention<T> &a);
template <class T> bool attention_tiles_bwd(const attention<T> &a);
/* Any head: a warp for a query or key (attention_any.cu). */
template <class T> void attention_any_fwd(const attention<T> &a);
template <class T> void attention_any_bwd(const attention<T> &a);
/* Up to 4 queries, aligned rows (attention_few.cu); true: it has run. */
template <class T> bool attention_few_fwd(const attention<T> &a);

/* Cuts the keys into parts so that there are about `blocks` of work in all where one part would
 * make `have`, none of fewer keys than `least`, a multiple of TILE.  False: an error is kept. */
template <class T> bool attention_split(attention<T> *a, int64_t have, int64_t blocks, int least);
/* o and lse from partial results. */
template <class T> void attention_merge(const attention<T> &a);

#endif
