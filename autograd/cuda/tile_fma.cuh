/*
 * tile_fma.cuh -- products of tiles of TILE rows in f32 arithmetic, for attention with all keys or
 * those of a pattern (attention_fma.cuh) and by hashing (lsh_tiles.cu).
 *
 * 256 threads are 16 x 16.  Thread (x, y) has rows y + 16 r and columns x + 16 c of a tile of
 * scores, r, c = 0 .. 3.  Two products do all the work, both from rows in shared memory, d + 4
 * numbers apart, so that what 8 neighbouring threads read lies in different banks:
 *
 *     nt:  scores[64,64] = a[64,d] b[64,d]^T          q k^T, do v^T, or with keys as rows
 *     nn:  sums[64,D]    = w[64,64] b[64,D]           p v, ds k, p^T do, ds^T q
 *
 * each reading 2 x 16 bytes of shared memory for 16 multiply-adds.
 */
#ifndef AG_CUDA_TILE_FMA_CUH
#define AG_CUDA_TILE_FMA_CUH

#include "number.cuh"
#include "tile.cuh"

constexpr int TILE_THREADS = 256, WEIGHTS = TILE + 4 /* from row to row of weights */;

template <int D> struct tile {
    enum { ROW = D + 4, SIZE = TILE * ROW, COLS = D / 16 /* of a row of D, for each thread */ };
};

DEVICE int lane_x(void) { return (int)threadIdx.x % 16; }
DEVICE int lane_y(void) { return (int)threadIdx.x / 16; }

/* The n-th column of a thread in rows of D: runs of 4 where there are that many. */
template <int D> DEVICE int column(int n)
{
    return D <= 64 ? lane_x() * (D / 16) + n : n / 4 * 64 + lane_x() * 4 + n % 4;
}

/* Rows list[0 .. TILE - 1] of x, d numbers each, into s; 0 beyond d, and for list[] < 0. */
template <int D>
static __device__ void tile_gather(float *s, const float *x, int64_t row, const int *list, int d,
                                   bool vectors)
{
    constexpr int PACKS = D / 4;
    if (!vectors) {
        for (int i = (int)threadIdx.x; i < TILE * D; i += TILE_THREADS) {
            const int at = list[i / D], c = i % D;
            s[i / D * tile<D>::ROW + c] = at >= 0 && c < d ? x[at * row + c] : 0;
        }
        return;
    }
    AG_UNROLL_BY(2) for (int i = (int)threadIdx.x; i < TILE * PACKS; i += TILE_THREADS) {
        const int at = list[i / PACKS], c = i % PACKS * 4;
        float4 v = make_float4(0, 0, 0, 0);
        if (at >= 0 && c < d) v = *(const float4 *)(x + at * row + c);
        *(float4 *)(s + i / PACKS * tile<D>::ROW + c) = v;
    }
}

/* x = a b^T, of rows with d numbers */
template <int D>
DEVICE void nt(const float *a, const float *b, int d, float x[4][4])
{
    a += lane_y() * tile<D>::ROW;
    b += lane_x() * tile<D>::ROW;
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < 4; c++) x[r][c] = 0;
    AG_UNROLL_BY(1) for (int k = 0; k < d; k += 4) {
        float4 va[4], vb[4];
        AG_UNROLL for (int r = 0; r < 4; r++) {
            va[r] = *(const float4 *)(a + r * 16 * tile<D>::ROW + k);
            vb[r] = *(const float4 *)(b + r * 16 * tile<D>::ROW + k);
        }
        AG_UNROLL for (int r = 0; r < 4; r++)
            AG_UNROLL for (int c = 0; c < 4; c++) {
                x[r][c] += va[r].x * vb[c].x;
                x[r][c] += va[r].y * vb[c].y;
                x[r][c] += va[r].z * vb[c].z;
                x[r][c] += va[r].w * vb[c].w;
            }
    }
}

/* A thread's columns of one row. */
template <int D> DEVICE void columns_load(const float *row, float *v)
{
    constexpr int N = tile<D>::COLS;
    if (N == 2) *(float2 *)v = *(const float2 *)(row + column<D>(0));
    else
        AG_UNROLL for (int n = 0; n < N; n += 4)
            *(float4 *)(v + n) = *(const float4 *)(row + column<D>(n));
}

/* y = y * shrink + w b over the first `keys` of b's rows; w is 0 beyond them.  The sums of a tile
 * are made apart and then added, so no number is the sum of thousands one by one. */
template <int D>
DEVICE void nn(const float *w, const float *b, int keys, const float shrink[4],
               float y[4][tile<D>::COLS])
{
    constexpr int N = tile<D>::COLS;
    float sum[4][N] = {};
    w += lane_y() * WEIGHTS;
    AG_UNROLL_BY(1) for (int k = 0; k < keys; k += 4) {
        float4 vw[4];
        AG_UNROLL for (int r = 0; r < 4; r++) vw[r] = *(const float4 *)(w + r * 16 * WEIGHTS + k);
        AG_UNROLL for (int i = 0; i < 4; i++) {
            __align__(16) float vb[N];
            columns_load<D>(b + (k + i) * tile<D>::ROW, vb);
            AG_UNROLL for (int r = 0; r < 4; r++) {
                const float f = i == 0 ? vw[r].x : i == 1 ? vw[r].y : i == 2 ? vw[r].z : vw[r].w;
                AG_UNROLL for (int n = 0; n < N; n++) sum[r][n] += f * vb[n];
            }
        }
    }
    AG_UNROLL for (int r = 0; r < 4; r++)
        AG_UNROLL for (int n = 0; n < N; n++) y[r][n] = y[r][n] * shrink[r] + sum[r][n];
}

/* The four columns of a thread's rows, for others of its half warp to read after __syncwarp(). */
DEVICE void weights_store(float *w, const float x[4][4])
{
    AG_UNROLL for (int r = 0; r < 4; r++)
        AG_UNROLL for (int c = 0; c < 4; c++)
            w[(lane_y() + 16 * r) * WEIGHTS + lane_x() + 16 * c] = x[r][c];
}

/* Over the 16 threads that share rows. */
DEVICE float row_max(float x)
{
    for (int m = 8; m > 0; m /= 2) x = fmaxf(x, __shfl_xor_sync(AG_WARP, x, m));
    return x;
}
DEVICE float row_sum(float x)
{
    for (int m = 8; m > 0; m /= 2) x += __shfl_xor_sync(AG_WARP, x, m);
    return x;
}

#endif
