/* activation.h -- the activations of a product in f64. */
#ifndef TESTS_ACTIVATION_H
#define TESTS_ACTIVATION_H

#include "autograd/kernels.h"

#include <math.h>

static inline double activation(ag_act act, double x)
{
    switch (act) {
    case AG_ACT_RELU:       return x > 0 ? x : 0;
    case AG_ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case AG_ACT_GELU_ERF:   return 0.5 * x * (1 + erf(x * 0.70710678118654752440));
    case AG_ACT_GELU_QUICK: return x / (1 + exp(-1.702 * x));
    default:                return x;
    }
}

#endif
