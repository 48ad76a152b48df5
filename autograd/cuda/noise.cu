/*
 * noise.cu -- what is random: dropout, normal numbers.
 *
 * The bits are those of autograd/base/rng.h.  One block of the generator has the four numbers of
 * columns c, c + 16, c + 32 and c + 48 of a group of 64; a thread makes a block and has its four
 * columns, so the lanes of a warp read and write 16 numbers in a row.
 */
#include "launch.cuh"
#include "number.cuh"

enum { NOISE_BLOCK = 256 };

/* Threads for m rows, `blocks` of the generator in each. */
static void noise_shape(int64_t m, int64_t blocks, dim3 *grid, dim3 *block)
{
    unsigned x = 16;
    while (x < NOISE_BLOCK && x < blocks) x *= 2;
    *block = dim3(x, NOISE_BLOCK / x);
    const unsigned strips = blocks_for(blocks, x);
    *grid = dim3(blocks_for(m, block->y), strips < 65535 ? strips : 65535);
}

static __host__ __device__ int64_t noise_blocks(int64_t n) { return ag_noise_stride(n) / 4; }

/* The four words of block i of a row of n columns, the first of which is column *ret_col. */
static __device__ __forceinline__ void noise_words(const ag_noise &z, int64_t row, int64_t i,
                                                   int64_t n, uint32_t w[4], int64_t *ret_col)
{
    ag_philox(z.seed, z.step, z.site, (uint64_t)((z.row0 + row) * noise_blocks(n) + i), w);
    *ret_col = i / 16 * 64 + i % 16;
}

/* y (+)= residual + x keep scale; residual may be NULL */
template <class T>
static __global__ void dropout_run(int64_t m, int64_t n, uint32_t threshold, float scale,
                                   ag_noise z, const T *x, const T *residual, T *y, bool acc)
{
    const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= m) return;
    z = ag_noise_now(z);
    for (int64_t i = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; i < noise_blocks(n);
         i += (int64_t)gridDim.y * blockDim.x) {
        uint32_t w[4];
        int64_t col;
        noise_words(z, row, i, n, w, &col);
        for (int k = 0; k < 4; k++) {
            const int64_t at = row * n + col + 16 * k;
            if (col + 16 * k >= n) break;
            const float v = w[k] >= threshold ? get(x + at) * scale : 0;
            put(y + at, v + (residual ? get(residual + at) : acc ? get(y + at) : 0));
        }
    }
}

template <class T>
static void dropout(int64_t m, int64_t n, double p, const ag_noise *z, const void *x,
                    const void *residual, void *y, bool acc)
{
    dim3 grid, block;
    noise_shape(m, noise_blocks(n), &grid, &block);
    AG_LAUNCH(dropout_run<T>, grid, block, 0, m, n, ag_drop_threshold(p), (float)(1 / (1 - p)), *z,
              (const T *)x, (const T *)residual, (T *)y, acc);
}

template <class T>
static void dropout_fwd(int64_t m, int64_t n, double p, const ag_noise *z, const void *x,
                        const void *residual, void *y)
{
    dropout<T>(m, n, p, z, x, residual, y, false);
}

template <class T>
static void dropout_bwd(int64_t m, int64_t n, double p, const ag_noise *z, const void *dy, void *dx,
                        bool acc)
{
    dropout<T>(m, n, p, z, dy, NULL, dx, acc);
}

/* Columns 2 i and 2 i + 1 are of two blocks of the generator that lie side by side. */
template <class T> static __global__ void normal_run(int64_t m, int64_t n, ag_noise z, T *y)
{
    const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= m) return;
    z = ag_noise_now(z);
    for (int64_t i = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; i < noise_blocks(n) / 2;
         i += (int64_t)gridDim.y * blockDim.x) {
        uint32_t a[4], b[4];
        int64_t col, next;
        noise_words(z, row, 2 * i, n, a, &col);
        noise_words(z, row, 2 * i + 1, n, b, &next);
        for (int k = 0; k < 4; k++) {
            double both[2];
            ag_normal2(a[k], b[k], both);
            if (col + 16 * k < n) put(y + row * n + col + 16 * k, (float)both[0]);
            if (next + 16 * k < n) put(y + row * n + next + 16 * k, (float)both[1]);
        }
    }
}

template <class T> static void normal(int64_t m, int64_t n, const ag_noise *z, void *y)
{
    dim3 grid, block;
    noise_shape(m, noise_blocks(n) / 2, &grid, &block);
    AG_LAUNCH(normal_run<T>, grid, block, 0, m, n, *z, (T *)y);
}

template <class T> void noise_table(ag_kernels *k)
{
    k->dropout_fwd = dropout_fwd<T>;
    k->dropout_bwd = dropout_bwd<T>;
    k->normal = normal<T>;
}
template void noise_table<float>(ag_kernels *k);
template void noise_table<bf16>(ag_kernels *k);
template void noise_table<f16>(ag_kernels *k);
