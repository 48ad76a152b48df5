/*
 * simt.h -- what device code is written in: CUDA C++ where nvcc compiles it, and the same source on
 * the CPU, where tests run it (tests/simt).
 *
 * Under nvcc this adds little: two macros, two 16-bit number types.  Elsewhere it declares what the
 * kernels use of CUDA: thread and block indices, barriers, warp shuffles, integer atomics.  There a
 * block's threads are fibers that run one at a time, in an order drawn from a seed, and change at
 * barriers and shuffles only; so AddressSanitizer sees every access, and ThreadSanitizer, told of
 * the fibers, finds each pair of accesses that no barrier orders.
 *
 * Rules that keep both worlds equal: shared memory is dynamic (AG_SHARED), every thread of a warp
 * takes part in a shuffle or vote (mask AG_WARP), no float atomics, no texture, no recursion, no
 * static variables.  mma.cuh has the tensor cores and asynchronous copies.
 */
#ifndef AG_CUDA_SIMT_H
#define AG_CUDA_SIMT_H

#include <stddef.h>
#include <stdint.h>

#define AG_WARP 0xffffffffu          /* all 32 lanes */

#ifdef __CUDACC__
#define AG_UNROLL _Pragma("unroll")  /* before a loop that indexes registers */
#define AG_UNROLL_BY(n) AG_PRAGMA(unroll n)
#define AG_PRAGMA(x) _Pragma(#x)
#else
#define AG_UNROLL
#define AG_UNROLL_BY(n)
#endif

#ifdef __CUDACC__

#include <cuda_runtime.h>

/* The dynamic shared memory of the block as T name[]; its bytes are what AG_LAUNCH says. */
#define AG_SHARED(T, name)                                                              \
    extern __shared__ __align__(16) unsigned char ag_shared_memory[];                   \
    T *name = reinterpret_cast<T *>(ag_shared_memory)

#else

#include <cmath>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz) {}
};
struct float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return { x, y }; }
static inline float4 make_float4(float x, float y, float z, float w) { return { x, y, z, w }; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return { x, y }; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return { x, y, z, w };
}

namespace simt {
extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;
extern unsigned char *shared;        /* of the block, filled with NaN */

/* Runs body once for each thread of each block. */
void launch(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes,
            const std::function<void()> &body);
void barrier(const char *where);                         /* of the block */
void warp_barrier(const char *where);
/* Every lane of the warp gives `bytes` (at most 64) and gets those of all 32, one after another. */
void exchange(const char *where, const void *mine, size_t bytes, void *all);

template <class T> inline T shuffle(const char *where, T v, unsigned lane)
{
    T all[32];
    exchange(where, &v, sizeof v, all);
    return all[lane & 31];
}
inline unsigned lane() { return (thread_index.x + block_size.x *
                                 (thread_index.y + block_size.y * thread_index.z)) & 31; }
}

#define threadIdx (simt::thread_index)
#define blockIdx (simt::block_index)
#define blockDim (simt::block_size)
#define gridDim (simt::grid_size)

#define AG_TEXT2(x) #x
#define AG_TEXT(x) AG_TEXT2(x)
#define AG_HERE __FILE__ ":" AG_TEXT(__LINE__)

#define __syncthreads() simt::barrier(AG_HERE)
#define __syncwarp(...) simt::warp_barrier(AG_HERE)
#define __shfl_sync(mask, v, from) simt::shuffle(AG_HERE, v, (unsigned)(from))
#define __shfl_xor_sync(mask, v, x) simt::shuffle(AG_HERE, v, simt::lane() ^ (unsigned)(x))
#define __shfl_down_sync(mask, v, d)                                                    \
    simt::shuffle(AG_HERE, v, simt::lane() + (unsigned)(d) < 32                         \
                  ? simt::lane() + (unsigned)(d) : simt::lane())
#define __shfl_up_sync(mask, v, d)                                                      \
    simt::shuffle(AG_HERE, v, simt::lane() >= (unsigned)(d)                             \
                  ? simt::lane() - (unsigned)(d) : simt::lane())
#define __ballot_sync(mask, yes) simt::ballot(AG_HERE, yes)
#define __any_sync(mask, yes) (simt::ballot(AG_HERE, yes) != 0)
#define __all_sync(mask, yes) (simt::ballot(AG_HERE, yes) == AG_WARP)

namespace simt {
inline unsigned ballot(const char *where, bool yes)
{
    bool all[32];
    unsigned bits = 0;
    exchange(where, &yes, sizeof yes, all);
    for (unsigned i = 0; i < 32; i++) bits |= (unsigned)all[i] << i;
    return bits;
}
}

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(unsigned x) { return __builtin_ffs((int)x); }
static inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline unsigned __float_as_uint(float x)
{
    unsigned u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float __uint_as_float(unsigned u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
using std::max;
using std::min;

/* Integers only: sums of floats in the order of arrival would have other bits each time.  Atomic in
 * the eyes of ThreadSanitizer too. */
static inline int atomicAdd(int *p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
static inline unsigned atomicAdd(unsigned *p, unsigned v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
static inline int atomicOr(int *p, int v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }
static inline int atomicMax(int *p, int v)
{
    int was = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (was < v && !__atomic_compare_exchange_n(p, &was, v, false, __ATOMIC_RELAXED,
                                                   __ATOMIC_RELAXED)) {}
    return was;
}

#define AG_SHARED(T, name) T *name = reinterpret_cast<T *>(simt::shared)

#endif
#endif
