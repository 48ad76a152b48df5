/* math.cuh -- the functions that unary.def and binary.def name, on floats, and the activations. */
#ifndef AG_CUDA_MATH_CUH
#define AG_CUDA_MATH_CUH

#include <math.h>

#include "autograd/kernels.h"
#include "simt.h"

/* A constant in the type of the arithmetic. */
#define R(c) ((float)(c))

/* exp(-z), not so large that its product with 1 / (1 + exp(-z)) is no number. */
static __device__ __forceinline__ float gate_exp(float z) { return expf(fminf(-z, 80.0f)); }

/* GELU (1606.08415).  tanh form: x (1 + tanh s) / 2 = x sigmoid(2 s), s = sqrt(2/pi) (x + 0.044715
 * x^3); so written nothing cancels.  Of g = sigmoid(z) = 1 / (1 + e) the rest 1 - g is e g. */
static __device__ __forceinline__ float gelu_tanh_exp(float x)
{
    return gate_exp(1.5957691216f * (x + 0.044715f * x * x * x));
}

static __device__ __forceinline__ float ag_f_gelu_tanh(float x)
{
    return x / (1 + gelu_tanh_exp(x));
}

static __device__ __forceinline__ float ag_d_gelu_tanh(float x)
{
    const float e = gelu_tanh_exp(x), g = 1 / (1 + e), ds = 1.5957691216f * (1 + 0.134145f * x * x);
    return g + x * g * (e * g) * ds;
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
    return x / (1 + gate_exp(1.702f * x));
}

static __device__ __forceinline__ float ag_d_gelu_quick(float x)
{
    const float e = gate_exp(1.702f * x), g = 1 / (1 + e);
    return g + 1.702f * x * g * (e * g);
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
