/*
 * team.cuh -- threads that share a row, for kernels that go along rows of any length.
 *
 * A team is 1, 2, 4 .. 32 lanes of a warp or, for long rows, a whole block: threadIdx.x is the
 * number of a thread in its team, threadIdx.y that of the team in its block.  Threads without a row
 * go through the kernel as if the row were empty, for all lanes of a warp take part in a fold.
 *
 * Rows of [m,n] that do not begin at 16 bytes (a vocabulary of 50257) are still read 16 bytes at a
 * time: the first few numbers of a row, and its last, are taken alone.  All arrays of that shape
 * have the same offset in a row then, if they begin aligned, as tensors do.
 */
#ifndef AG_CUDA_TEAM_CUH
#define AG_CUDA_TEAM_CUH

#include <type_traits>

#include "launch.cuh"
#include "number.cuh"

enum { TEAM_BLOCK = 256, TEAM_WARP_ROW = 1024, TEAM_SMALL_ROW = 4096 };

struct team_shape { dim3 grid, block; size_t shared; };

/* Teams for m rows of n numbers, of which a thread takes `pack` at a time. */
static inline team_shape team_of(int64_t m, int64_t n, int pack)
{
    unsigned x = 1;
    while (x < 32 && (int64_t)x * pack * 2 < n) x *= 2;
    if (n > TEAM_WARP_ROW) x = n > TEAM_SMALL_ROW ? 512 : 128;
    const unsigned y = x <= 32 ? TEAM_BLOCK / x : 1;
    return { blocks_for(m, y), dim3(x, y), x <= 32 ? 0 : x / 32 * sizeof(double) };
}

static __device__ __forceinline__ int64_t team_row(void)
{
    return (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
}

/* f over the values of the team, the same bits in all its threads; f is commutative. */
template <class V, class F> static __device__ __forceinline__ V team_fold(V v, F f)
{
    for (unsigned d = min(blockDim.x, 32u) / 2; d; d /= 2)
        v = f(v, __shfl_xor_sync(AG_WARP, v, d));
    if (blockDim.x <= 32) return v;
    AG_SHARED(V, part);              /* [warps] */
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++) v = f(v, part[w]);
    return v;
}

template <class V> static __device__ __forceinline__ V team_sum(V v)
{
    return team_fold(v, [](V a, V b) { return a + b; });
}

template <class V> static __device__ __forceinline__ V team_max(V v)
{
    return team_fold(v, [](V a, V b) { return a > b ? a : b; });
}

/* f(j, width) for all columns j of a row, `width` of them at once, a std::integral_constant: 1, or,
 * from j = first on, a pack. */
template <class T, class F>
static __device__ __forceinline__ void team_each(int64_t n, int64_t first, F f)
{
    constexpr int N = 16 / (int)sizeof(T);
    const std::integral_constant<int, 1> one = {};
    const std::integral_constant<int, N> all = {};
    const int64_t t = threadIdx.x, team = blockDim.x, head = first < n ? first : n;
    const int64_t tail = head + (n - head) / N * N;
    for (int64_t j = t; j < head; j += team) f(j, one);
    for (int64_t j = head + t * N; j < tail; j += team * N) f(j, all);
    for (int64_t j = tail + t; j < n; j += team) f(j, one);
}

/* Where packs begin in a row of [m,n]: the arrays begin aligned if `packed`. */
template <class T> static __device__ __forceinline__ int64_t team_first(bool packed, int64_t row,
                                                                        int64_t n)
{
    constexpr int N = 16 / (int)sizeof(T);
    return packed ? (N - row * n % N) % N : n;
}

/* W numbers of an array [n] that begins aligned if `packed`. */
template <class T, int W>
static __device__ __forceinline__ pack<T, W> load_some(const T *p, bool packed)
{
    if (packed) return pack_load<T, W>(p);
    pack<T, W> v;
    for (int k = 0; k < W; k++) v.at[k] = p[k];
    return v;
}

template <class... P> static inline bool all_aligned(P... p) { return (aligned(p) && ...); }

/* TEAM_LAUNCH(kernel<T>, T, m, n, arguments...) */
#define TEAM_LAUNCH(kernel, T, m, n, ...)                                               \
    do {                                                                                \
        const team_shape shape_ = team_of(m, n, 16 / (int)sizeof(T));                   \
        AG_LAUNCH(kernel, shape_.grid, shape_.block, shape_.shared, __VA_ARGS__);       \
    } while (0)

#endif
