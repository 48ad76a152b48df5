/*
 * attention_fma.cuh -- what attention in f32 arithmetic is made of, with all keys
 * (attention_fma.cu) or those of a pattern (blocks_fma.cu): tiles of TILE queries and keys, heads
 * of at most 128.  f32 numbers are multiplied as they are; tensor cores would round them to 19
 * bits.
 *
 * The products of tiles are those of tile_fma.cuh.  A thread has four columns and four rows of a
 * tile, so that one block of noise serves its four columns, or its four rows where these are keys.
 */
#ifndef AG_CUDA_ATTENTION_FMA_CUH
#define AG_CUDA_ATTENTION_FMA_CUH

#include "attention.cuh"
#include "tile_fma.cuh"

constexpr int THREADS = TILE_THREADS;

#define BLOCKS(D) ((D) <= 64 ? 2 : 1)    /* of a processor at once */

/* Rows first .. first + TILE - 1 of x, d numbers each, into s; 0 beyond d and from row `end` on. */
template <class T, int D>
static __device__ void tile_load(float *s, const T *x, int64_t row, int first, int end, int d,
                                 bool vectors)
{
    constexpr int N = 16 / (int)sizeof(T), PACKS = D / N;
    if (!vectors) {
        for (int i = (int)threadIdx.x; i < TILE * D; i += THREADS) {
            const int r = first + i / D, c = i % D;
            s[i / D * tile<D>::ROW + c] = r < end && c < d ? get(x + r * row + c) : 0;
        }
        return;
    }
    AG_UNROLL_BY(2) for (int i = (int)threadIdx.x; i < TILE * PACKS; i += THREADS) {
        const int r = first + i / PACKS, c = i % PACKS * N;
        pack<T> v = {};
        if (r < end && c < d) v = pack_load(x + r * row + c);
        float *to = s + i / PACKS * tile<D>::ROW + c;
        for (int n = 0; n < N; n += 4)
            *(float4 *)(to + n) = make_float4(get(&v.at[n]), get(&v.at[n + 1]), get(&v.at[n + 2]),
                                              get(&v.at[n + 3]));
    }
}

/* One row of scores, in log2: x = exp2(x - top); top, and the sum of what this thread has of the
 * row, go on.  Returns by how much what was summed before shrinks. */
DEVICE float softmax_row(float x[4], float *top, float *sum)
{
    float m = *top;
    AG_UNROLL for (int c = 0; c < 4; c++) m = fmaxf(m, x[c]);
    m = row_max(m);
    const float base = m == -INFINITY ? 0 : m, shrink = exp2f(*top - base);
    float s = 0;
    AG_UNROLL for (int c = 0; c < 4; c++) {
        x[c] = exp2f(x[c] - base);
        s += x[c];
    }
    *sum = *sum * shrink + s;
    *top = m;
    return shrink;
}

/* From the scores x and y = do . v of one query and key:  x = r p, y = ds = p (r y - delta) */
DEVICE void pair_grad(bool sees, float scale2, float lse2, float delta, float kept, float *x,
                      float *y)
{
    const float p = sees ? exp2f(*x * scale2 - lse2) : 0;
    *y = p * (kept * *y - delta);
    *x = kept * p;
}

/* Bytes of shared memory: so many tiles of numbers, one of weights. */
template <int D> static size_t room(int tiles)
{
    return ((size_t)tiles * tile<D>::SIZE + TILE * WEIGHTS) * sizeof(float);
}

#endif
