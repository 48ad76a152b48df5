/*
 * faults.cuh -- small kernels, each once as it should be and once with a fault, and who sees it.
 *
 * For test_simt.cpp.  FAULT is 0 or 1.  A run gives whether its results are right.
 */
#ifndef TESTS_SIMT_FAULTS_CUH
#define TESTS_SIMT_FAULTS_CUH

#include "autograd/cuda/launch.cuh"

#include <vector>

#define RUN_FAULT(kernel, g, b, s, ...)                                                 \
    simt::launch(#kernel, g, b, s, [=] { kernel<FAULT>(__VA_ARGS__); })

struct fault {
    const char *name;
    bool (*run[2])(void);           /* without it, with it */
    int seen;                        /* by which builds */
    const char *says;                /* a part of what the process then says */
};

/* Floats of device memory, as they begin; then() fetches them. */
struct floats {
    float *d;
    size_t n;
    explicit floats(const std::vector<float> &v) : d(NULL), n(v.size())
    {
        void *p = NULL;
        cudaMalloc(&p, n * sizeof(float));
        d = (float *)p;
        cudaMemcpyAsync(d, v.data(), n * sizeof(float), cudaMemcpyHostToDevice, NULL);
    }
    std::vector<float> then() const
    {
        std::vector<float> v(n);
        cudaMemcpyAsync(v.data(), d, n * sizeof(float), cudaMemcpyDeviceToHost, NULL);
        cudaStreamSynchronize(NULL);
        return v;
    }
};

static inline std::vector<float> ramp(size_t n)
{
    std::vector<float> v(n);
    for (size_t i = 0; i < n; i++) v[i] = (float)(i * 7 % 11);
    return v;
}

/* Sums of rows of 200, a block for each: warps add up, then the block. */
enum { ROW = 200, ROWS = 3 };

template <int FAULT> static void row_sum_run(const float *x, float *y, int kind)
{
    AG_SHARED(float, s);             /* [8] sums of warps */
    const int t = (int)threadIdx.x;
    float v = t < ROW + (FAULT && kind == 3) ? x[blockIdx.x * ROW + threadIdx.x] : 0;
    if (FAULT && kind == 5 && t >= ROW) return;
    for (int o = 16; o; o >>= 1)
        if (!(FAULT && kind == 4) || t % 32 < 16) v += __shfl_xor_sync(AG_WARP, v, o);
    if (t % 32 == 0 && !(FAULT && kind == 7 && t >= ROW)) s[t / 32 + (FAULT && kind == 6 && t == 224 ? 9 : 0)] = v;
    if (FAULT && kind == 1) {
    } else if (FAULT && kind == 2) {
        if (t < 64) __syncthreads();
    } else {
        __syncthreads();
    }
    if (t == 0) {
        float sum = 0;
        for (int i = 0; i < 8; i++) sum += s[i];
        y[blockIdx.x] = sum;
    }
    __syncthreads();
}

template <int FAULT, int KIND> static bool row_sum(void)
{
    const std::vector<float> x = ramp(ROW * ROWS);
    floats dx(x), dy(std::vector<float>(ROWS, 0));
    const float *from = dx.d;
    float *to = dy.d;
    const int kind = KIND;
    RUN_FAULT(row_sum_run, ROWS, 256, 8 * sizeof(float), from, to, kind);
    const std::vector<float> y = dy.then();
    for (int r = 0; r < ROWS; r++) {
        float want = 0;
        for (int i = 0; i < ROW; i++) want += x[(size_t)(r * ROW + i)];
        if (!(y[(size_t)r] == want)) return false;
    }
    return true;
}

/* c = a @ b, [M,K] @ [K,N], by tiles. */
enum { TILE = 16, M = 20, N = 33, K = 50 };

template <int FAULT> static void tiled_run(const float *a, const float *b, float *c, int kind)
{
    AG_SHARED(float, sa);
    float *sb = sa + TILE * TILE;
    const int tx = (int)threadIdx.x, ty = (int)threadIdx.y;
    const int row = (int)blockIdx.y * TILE + ty, col = (int)blockIdx.x * TILE + tx;
    const int limit = FAULT && kind == 2 ? (K + TILE - 1) / TILE * TILE : K;
    float sum = 0;
    for (int k0 = 0; k0 < K; k0 += TILE) {
        sa[ty * TILE + tx] = row < M && k0 + tx < limit ? a[row * K + k0 + tx] : 0;
        sb[ty * TILE + tx] = k0 + ty < limit && col < N ? b[(k0 + ty) * N + col] : 0;
        __syncthreads();
        for (int k = 0; k < TILE; k++) sum += sa[ty * TILE + k] * sb[k * TILE + tx];
        if (!(FAULT && kind == 1)) __syncthreads();
    }
    if (row < M && (col < N || (FAULT && kind == 3))) c[row * N + col] = sum;
}

template <int FAULT, int KIND> static bool tiled(void)
{
    const std::vector<float> a = ramp(M * K), b = ramp(K * N);
    floats da(a), db(b), dc(std::vector<float>(M * N, 0));
    const float *pa = da.d, *pb = db.d;
    float *pc = dc.d;
    const int kind = KIND;
    RUN_FAULT(tiled_run, dim3(3, 2), dim3(TILE, TILE), 2 * TILE * TILE * sizeof(float), pa, pb, pc,
              kind);
    const std::vector<float> c = dc.then();
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            float want = 0;
            for (int k = 0; k < K; k++)
                want += a[(size_t)(i * K + k)] * b[(size_t)(k * N + j)];
            if (!(c[(size_t)(i * N + j)] == want)) return false;
        }
    return true;
}

/* How often each of 10 values is there. */
template <int FAULT> static void histogram_run(int *h, int n)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    if (FAULT) h[i * 7 % 10] = h[i * 7 % 10] + 1;
    else atomicAdd(&h[i * 7 % 10], 1);
}

template <int FAULT> static bool histogram(void)
{
    int h[10] = {}, *d;
    cudaMalloc((void **)&d, sizeof h);
    cudaMemsetAsync(d, 0, sizeof h, NULL);
    const int n = 200;
    RUN_FAULT(histogram_run, 4, 64, 0, d, n);
    cudaMemcpyAsync(h, d, sizeof h, cudaMemcpyDeviceToHost, NULL);
    cudaStreamSynchronize(NULL);
    for (int x : h)
        if (x != n / 10) return false;
    return true;
}

/* Small ones: 0 the wrong block's row, the same value; 1 the warp uses shared memory unordered; 2 a
 * lane waits for the block while the warp shuffles; 3 a warp is left by a lane before a shuffle; 4
 * threads wait for their warps in two places; 5 more shared memory than there is. */
template <int FAULT> static void small_run(float *y, int kind)
{
    AG_SHARED(float, s);             /* [64] */
    const int t = (int)threadIdx.x, row = FAULT && kind == 0 ? 0 : (int)blockIdx.x;
    s[t] = 1;
    if (!(FAULT && kind == 1)) __syncwarp();
    float v = s[t ^ 1];
    if (FAULT && kind == 2 && t == 5) __syncthreads();
    if (FAULT && kind == 3 && t == 5) return;
    if (FAULT && kind == 4 && t == 5) __syncwarp();
    v = __shfl_sync(AG_WARP, v, 3);
    if (FAULT && kind == 5) v += 0 * s[64 + t];
    __syncthreads();
    y[row * 64 + t] = v;
}

template <int FAULT, int KIND> static bool small(void)
{
    floats dy(std::vector<float>(4 * 64, KIND == 0 ? 1 : 0));
    float *y = dy.d;
    const int kind = KIND;
    RUN_FAULT(small_run, 4, 64, 64 * sizeof(float), y, kind);
    for (float v : dy.then())
        if (!(v == 1)) return false;
    return true;
}

/* The host follows a pointer of the device, once or after the block is freed. */
template <int FAULT, int KIND> static bool host(void)
{
    floats dx(std::vector<float>(4, 1));
    if (KIND == 0) return (FAULT ? *(volatile float *)dx.d : dx.then()[0]) == 1;
    const float *x = dx.d;
    floats dy(std::vector<float>(ROWS, 0));
    float *y = dy.d;
    if (FAULT) cudaFree(dx.d);
    simt::launch("follow", 1, 1, 0, [=] { *y = *x; });
    return dy.then()[0] == 1;
}

#include "sparse_faults.cuh"

#define BOTH(f, kind) { f<0, kind>, f<1, kind> }

enum { BY_PLAIN = 1, BY_ASAN = 2, BY_TSAN = 4, BY_ALL = 7 };
static const fault faults[] = {
    { "no barrier before another warp reads", BOTH(row_sum, 1), BY_TSAN, "data race" },
    { "a barrier for some threads", BOTH(row_sum, 2), BY_ALL, " waits at " },
    { "a row too long by one", BOTH(row_sum, 3), BY_ASAN | BY_PLAIN, "" },
    { "shuffles in divergent code", BOTH(row_sum, 4), BY_ALL, " waits " },
    { "a return before a barrier", BOTH(row_sum, 5), BY_ALL, "returned from the kernel" },
    { "a write behind shared memory", BOTH(row_sum, 6), BY_ALL, "" },
    { "no second barrier in a loop over tiles", BOTH(tiled, 1), BY_TSAN, "data race" },
    { "a tile that goes on into the next row", BOTH(tiled, 2), BY_ALL, "" },
    { "shared memory that nobody wrote", BOTH(row_sum, 7), BY_ALL, "" },
    { "a tile that is written beyond its edge", BOTH(tiled, 3), BY_ALL, "" },
    { "a count that is not atomic", { histogram<0>, histogram<1> }, BY_TSAN, "data race" },
    { "blocks that write to one place", BOTH(small, 0), BY_TSAN, "data race" },
    { "no warp barrier", BOTH(small, 1), BY_TSAN, "data race" },
    { "a lane waits for the block, others shuffle", BOTH(small, 2), BY_ALL, "for the block at" },
    { "a shuffle without a lane", BOTH(small, 3), BY_ALL, "returned from the kernel" },
    { "a warp waits in two places", BOTH(small, 4), BY_ALL, " waits at " },
    { "a read behind shared memory", BOTH(small, 5), BY_ALL, "" },
    { "the host follows a pointer of the device", BOTH(host, 0), BY_ALL, "" },
    { "a kernel uses memory that was freed", BOTH(host, 1), BY_ALL, "" },
    { "the mask of another query", BOTH(masked, 1), BY_ALL, "" },
    { "a list of tiles that ends one late", BOTH(masked, 2), BY_ALL, "" },
    { "a tile of keys that is overwritten", BOTH(masked, 3), BY_TSAN, "data race" },
    { "bits of a mask from the other end", BOTH(masked, 4), BY_ALL, "" },
    { "keys beyond the last", BOTH(masked, 5), BY_ALL, "" },
    { "a tile of keys that nobody waits for", BOTH(masked, 6), BY_TSAN, "data race" },
    { "a sort that is not stable", BOTH(sort, 1), BY_ALL, "" },
    { "starts of buckets that are read while they are made", BOTH(sort, 2), BY_TSAN, "data race" },
    { "starts of buckets one bucket late", BOTH(sort, 3), BY_ALL, "" },
    { "a ring that is a line", { ring<0>, ring<1> }, BY_ALL, "" },
    { "softmax in parts with their own maxima", { merge<0>, merge<1> }, BY_ALL, "" },
    { "rows that add to one place", { grouped<0>, grouped<1> }, BY_TSAN, "data race" },
};

#endif
