/*
 * columns.cuh -- sums down the columns of a matrix: gradients of biases, gains, positions.
 *
 * Rows are cut into chunks, by their number alone.  A block adds up a chunk for a strip of columns,
 * thread by thread in runs of RUN rows, then as a tree; where there are several chunks, a second
 * launch adds up their sums, in double.  So the order is fixed, and errors do not grow with the
 * number of rows.
 */
#ifndef AG_CUDA_COLUMNS_CUH
#define AG_CUDA_COLUMNS_CUH

#include "launch.cuh"
#include "number.cuh"

enum { COLUMN_THREADS = 256, COLUMN_RUN = 16, COLUMN_CHUNK = 128, COLUMN_CHUNKS = 512 };

/* Where the sums of a batch of matrices go: to[o] is [batch,n], or NULL. */
template <class O, int OUT> struct column_ends {
    O *to[OUT];
    bool acc;                        /* are they added to it? */
    float *part;                     /* [batch,chunks,OUT,n]; NULL: there is one chunk */

    __host__ __device__ bool wanted() const { return to[0] || to[OUT - 1]; }
};

/*
 * F says what is added: F::OUT sums, f.rows(z) rows of matrix z, and f.add<W>(z, row, col, sum)
 * adds what row has in columns col .. col + W - 1 to sum[OUT][W].
 */
template <class F, class O, int W>
static __global__ void columns_run(F f, int64_t n, int64_t batch, int64_t chunk,
                                   column_ends<O, F::OUT> e)
{
    constexpr int OUT = F::OUT;
    AG_SHARED(float, shared);        /* [OUT*W,threads] */
    const unsigned tid = threadIdx.x + threadIdx.y * blockDim.x;
    const int64_t col = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    const int64_t from = blockIdx.y * chunk;
    for (int64_t z = blockIdx.z; z < batch; z += gridDim.z) {
        const int64_t end = min(from + chunk, f.rows(z));
        float sum[OUT][W] = {};
        for (int64_t r = from + threadIdx.y; r < end && col < n; r += COLUMN_RUN * blockDim.y) {
            float run[OUT][W] = {};
            for (int i = 0; i < COLUMN_RUN && r + i * blockDim.y < end; i++)
                f.template add<W>(z, r + i * blockDim.y, col, run);
            for (int o = 0; o < OUT; o++)
                for (int k = 0; k < W; k++) sum[o][k] += run[o][k];
        }
        if (!e.wanted()) continue;
        for (int o = 0; o < OUT; o++)
            for (int k = 0; k < W; k++) shared[(o * W + k) * COLUMN_THREADS + tid] = sum[o][k];
        __syncthreads();
        for (unsigned h = blockDim.y / 2; h; h /= 2) {
            if (threadIdx.y < h)
                for (int i = 0; i < OUT * W; i++)
                    shared[i * COLUMN_THREADS + tid] += shared[i * COLUMN_THREADS + tid +
                                                               h * blockDim.x];
            __syncthreads();
        }
        if (threadIdx.y == 0 && col < n)
            for (int o = 0; o < OUT; o++) {
                O *to = e.to[o] ? e.to[o] + z * n + col : NULL;
                float *part = e.part ? e.part + ((z * gridDim.y + blockIdx.y) * OUT + o) * n + col
                                     : NULL;
                for (int k = 0; k < W; k++) {
                    const float s = shared[(o * W + k) * COLUMN_THREADS + tid];
                    if (part) part[k] = s;
                    else if (to) put(to + k, (e.acc ? get(to + k) : 0) + s);
                }
            }
        __syncthreads();
    }
}

/* Sum over the chunks; 32 columns a block. */
template <class O, int OUT>
static __global__ void columns_end(int64_t n, int64_t batch, int64_t chunks,
                                   column_ends<O, OUT> e)
{
    AG_SHARED(double, shared);       /* [blockDim.y,32] */
    const unsigned x = threadIdx.x, y = threadIdx.y;
    const int64_t col = (int64_t)blockIdx.x * 32 + x, o = blockIdx.y;
    O *const out = o ? e.to[OUT - 1] : e.to[0];
    for (int64_t z = blockIdx.z; z < batch && out; z += gridDim.z) {
        double s = 0;
        for (int64_t c = y; c < chunks && col < n; c += blockDim.y)
            s += (double)e.part[((z * chunks + c) * OUT + o) * n + col];
        shared[y * 32 + x] = s;
        __syncthreads();
        for (unsigned h = blockDim.y / 2; h; h /= 2) {
            if (y < h) shared[y * 32 + x] += shared[(y + h) * 32 + x];
            __syncthreads();
        }
        if (y == 0 && col < n) {
            O *to = out + z * n + col;
            put(to, (float)((e.acc ? (double)get(to) : 0) + shared[x]));
        }
        __syncthreads();
    }
}

template <class F, class O, int W>
static void columns_launch(F f, dim3 grid, int64_t n, int64_t batch, int64_t chunk,
                           column_ends<O, F::OUT> e)
{
    unsigned x = 32;
    while (x > 1 && (int64_t)x * W >= 2 * n) x /= 2;
    grid.x = blocks_for(n, (int64_t)x * W);
    AG_LAUNCH((columns_run<F, O, W>), grid, dim3(x, COLUMN_THREADS / x),
              (size_t)F::OUT * W * COLUMN_THREADS * sizeof(float), f, n, batch, chunk, e);
}

/* Sums over up to `rows` rows of n columns, of each of `batch` matrices.  packed: numbers are of
 * type T and every row of all arrays begins aligned. */
template <class T, class F, class O>
static void columns(F f, int64_t rows, int64_t n, int64_t batch, bool packed,
                    column_ends<O, F::OUT> e)
{
    if (!n || !batch || (!rows && (e.acc || !e.wanted()))) return;
    int64_t chunk = COLUMN_CHUNK;
    if (rows > COLUMN_CHUNKS * chunk) chunk *= (rows / COLUMN_CHUNKS + chunk) / chunk;
    const int64_t chunks = rows > chunk ? (rows + chunk - 1) / chunk : 1;
    const dim3 grid(1, (unsigned)chunks, (unsigned)(batch < 65535 ? batch : 65535));
    e.part = NULL;
    if (chunks > 1 && e.wanted()) {
        const size_t bytes = (size_t)(batch * chunks * F::OUT * n) * sizeof(float);
        if (!(e.part = (float *)ag_cuda_workspace(bytes))) return;
    }
    if (packed) columns_launch<F, O, 16 / (int)sizeof(T)>(f, grid, n, batch, chunk, e);
    else columns_launch<F, O, 1>(f, grid, n, batch, chunk, e);
    if (!e.part) return;
    AG_LAUNCH((columns_end<O, F::OUT>), dim3(blocks_for(n, 32), F::OUT, grid.z), dim3(32, 8),
              256 * sizeof(double), n, batch, chunks, e);
}

#endif
