/* math.cuh -- the functions that unary.def and binary.def name, on floats, and the activations. */
#ifndef AG_CUDA_MATH_CUH
#define AG_CUDA_MATH_CUH

#include <math.h>

#include "autograd/kernels.h"
#include "simt.h"

/* A constant in the type of the arithmetic. */
#define R(c) ((float)(c))

/* GELU (1606.08415).  tanh form: x (1 + tanh s) / 2 = x sigmoid(2 s), s = sqrt(2/pi) (x + 0.044715
 * x^3); so written nothing cancels. */
static __device__ __forceinline__ float ag_gelu_gate(float x)
{
    return 1 / (1 + expf(-1.5957691216f * (x + 0.044715f * x * x * x)));
}

static __device__ __forceinline__ float ag_f_gelu_tanh(float x) { return x * ag_gelu_gate(x); }

static __device__ __forceinline__ float ag_d_gelu_tanh(float x)
{
    const float g = ag_gelu_gate(x), ds = 1.5957691216f * (1 + 0.134145f * x * x);
    return g + x * g * (1 - g) * ds;
}

/* exact form: x Phi(x), Phi(x) = erfc(-x / sqrt 2) / 2 */
static __device__ __forceinline__ float ag_f_gelu_erf(float x)
{
    return 0.5f * x * erfcf(-0.7071067812f * x);
}

static __device__ __forceinline__ float ag_d_gelu_erf(float x)
{
    return 0.5f * erfcf(-0.7071067812f * x) + x * expf(-0.5f * x * x) * 0.3989422804f;
}

/* quick form: x sigmoid(1.702 x) */
static __device__ __forceinline__ float ag_f_gelu_quick(float x)
{
    return x / (1 + expf(-1.702f * x));
}

static __device__ __forceinline__ float ag_d_gelu_quick(float x)
{
    const float g = 1 / (1 + expf(-1.702f * x));
    return g + 1.702f * x * g * (1 - g);
}

static __device__ __forceinline__ float act_of(ag_act act, float x)
{
    switch (act) {
    case AG_ACT_RELU:       return x > 0 ? x : 0;
    case AG_ACT_GELU_TANH:  return ag_f_gelu_tanh(x);
    case AG_ACT_GELU_ERF:   return ag_f_gelu_erf(x);
    case AG_ACT_GELU_QUICK: return ag_f_gelu_quick(x);
    default:                return x;
    }
}

/* From what the activation saw. */
static __device__ __forceinline__ float act_slope(ag_act act, float x)
{
    switch (act) {
    case AG_ACT_RELU:       return x > 0 ? 1.0f : 0.0f;
    case AG_ACT_GELU_TANH:  return ag_d_gelu_tanh(x);
    case AG_ACT_GELU_ERF:   return ag_d_gelu_erf(x);
    case AG_ACT_GELU_QUICK: return ag_d_gelu_quick(x);
    default:                return 1.0f;
    }
}

#endif
