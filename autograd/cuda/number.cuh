/*
 * number.cuh -- numbers in device memory: float, bf16, f16.  Kernels are templates of the type T
 * that is stored, and compute on floats: get() widens, put() rounds to the nearest, ties to even.
 *
 * The 16-bit types are structs of their bits, so that forgotten conversions do not compile.
 */
#ifndef AG_CUDA_NUMBER_CUH
#define AG_CUDA_NUMBER_CUH

#include "simt.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include "autograd/base/half.h"
#endif

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

#ifdef __CUDACC__
static __device__ __forceinline__ float number_get(bf16 x)
{
    return __uint_as_float((unsigned)x.bits << 16);
}
static __device__ __forceinline__ float number_get(f16 x)
{
    return __half2float(__ushort_as_half(x.bits));
}
static __device__ __forceinline__ bf16 number_bf16(float x)
{
    return { __bfloat16_as_ushort(__float2bfloat16_rn(x)) };
}
static __device__ __forceinline__ f16 number_f16(float x)
{
    return { __half_as_ushort(__float2half_rn(x)) };
}
#else
static inline float number_get(bf16 x) { return ag_bf16_float(x.bits); }
static inline float number_get(f16 x) { return ag_f16_float(x.bits); }
static inline bf16 number_bf16(float x) { return { ag_bf16_of(x) }; }
static inline f16 number_f16(float x) { return { ag_f16_of(x) }; }
#endif

static __device__ __forceinline__ float get(const float *p) { return *p; }
static __device__ __forceinline__ float get(const bf16 *p) { return number_get(*p); }
static __device__ __forceinline__ float get(const f16 *p) { return number_get(*p); }
static __device__ __forceinline__ void put(float *p, float x) { *p = x; }
static __device__ __forceinline__ void put(bf16 *p, float x) { *p = number_bf16(x); }
static __device__ __forceinline__ void put(f16 *p, float x) { *p = number_f16(x); }

/* N numbers in a row, moved by one access: N * sizeof(T) is 16 and p aligned to that, or N is 1. */
template <class T, int N = 16 / (int)sizeof(T)> struct alignas(N * sizeof(T)) pack { T at[N]; };

template <class T, int N = 16 / (int)sizeof(T)>
static __device__ __forceinline__ pack<T, N> pack_load(const T *p)
{
    pack<T, N> v;
    if (N == 1) v.at[0] = *p;
    else *reinterpret_cast<uint4 *>(&v) = *reinterpret_cast<const uint4 *>(p);
    return v;
}

template <class T, int N>
static __device__ __forceinline__ void pack_store(T *p, const pack<T, N> &v)
{
    if (N == 1) *p = v.at[0];
    else *reinterpret_cast<uint4 *>(p) = *reinterpret_cast<const uint4 *>(&v);
}

#endif
