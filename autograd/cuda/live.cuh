/*
 * live.cuh -- what the files of live units share (ag_live in kernels.h): live.cu gathers, live_group.cu
 * multiplies on tensor cores where a choice has many units, live_tile.cu keeps weights in shared
 * memory.
 */
#ifndef AG_CUDA_LIVE_CUH
#define AG_CUDA_LIVE_CUH

#include "launch.cuh"
#include "number.cuh"

struct live {
    int64_t rows, d, blocks;
    int64_t size;                    /* listed units of a row: blocks * picks * width */
    int n, width, picks;
    const int32_t *choice;
};

/* The unit at place j of row r: j counts blocks, picks and width. */
static __device__ __forceinline__ int64_t unit_at(const live &l, int64_t r, int64_t j)
{
    const int32_t *choice = l.choice + r * (l.blocks * l.picks);
    if (l.picks * l.width == 1) return j * l.n + choice[j];
    const int64_t pick = j / l.width;
    return (pick / l.picks * l.n + choice[pick]) * l.width + j % l.width;
}

static inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

/* May rows of d be read 16 bytes at a time? */
template <class T> static bool is_even(int64_t d, const void *a, const void *b)
{
    return aligned(a) && aligned(b) && d * (int64_t)sizeof(T) % 16 == 0;
}

/* The rows that list each choice of a block: entries first[block, k] .. first[block, k + 1] - 1 of
 * entry[block, rows * picks], each row * picks + pick. */
struct listed { const int32_t *entry, *first; };

/* In device memory until the next one asks for a workspace.  False: an error is kept. */
bool live_list(const live &l, listed *ret);

/* y[r] (+)= sum of h w + bias + residual; the last two may be NULL */
template <class T> struct live_sums {
    const T *h, *w, *bias, *residual;
    T *y;
    bool acc;
};

/* The products of kernels.h; false: not these sizes, nothing is done. */
template <class T> bool group_dot(const live &l, const T *x, const T *w, const T *bias, T *a);
template <class T> bool group_sum(const live &l, const live_sums<T> &s);
template <class T> bool group_grad(const live &l, const T *h, const T *x, float *dw);
template <class T> bool tile_dot(const live &l, const T *x, const T *w, const T *bias, T *a);

#endif
