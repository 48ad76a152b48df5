/* flat.cuh -- what the steps of all optimizers have (flat.cu, factored.cu). */
#ifndef AG_CUDA_FLAT_CUH
#define AG_CUDA_FLAT_CUH

#include "launch.cuh"

#include <float.h>

enum { FLAT_THREADS = 256 };         /* of a block */

/* The sum of what each thread of the block has, in every thread; s [FLAT_THREADS] is shared
 * memory. */
static __device__ double block_sum(double mine, double *s)
{
    s[threadIdx.x] = mine;
    for (unsigned half = FLAT_THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];
    }
    __syncthreads();
    return s[0];
}

/* The factor of the gradient; 0: there is no step.  optim/optim.c, check_norm(), decides so too. */
static __device__ float gate_factor(const ag_flat_gate &gate)
{
    const double norm = gate.unscale * sqrt(*gate.square);
    const double clip = gate.clip_norm > 0 && norm > gate.clip_norm ? gate.clip_norm / norm : 1;
    /* An infinite norm has a factor of 0 or a product above all; NaN compares as false. */
    const bool open = clip * gate.unscale >= (double)FLT_MIN && norm * clip <= gate.most;
    return open ? (float)(clip * gate.unscale) : 0;
}

/* factored.cu: ag_flat.factored */
void flat_factored(const ag_factored *f, const ag_flat_gate *gate, const ag_factored_work *w,
                   const ag_factored_arrays *a);

#endif
