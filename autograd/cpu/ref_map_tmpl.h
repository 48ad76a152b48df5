/*
 * ref_map_tmpl.h -- the elementwise ops of ref_tmpl.c, from unary.def and binary.def, and the GELUs
 * they name.
 */
/* GELU (1606.08415), in double and rounded once.  tanh form: x (1 + tanh s) / 2,
 * s = sqrt(2/pi) (x + 0.044715 x^3); derivative (1 + tanh s) / 2 + x (1 - tanh^2 s) s' / 2 */
static real ag_f_gelu_tanh(double x)
{
    return R(0.5 * x * (1 + tanh(0.7978845608028653559 * (x + 0.044715 * x * x * x))));
}

static real ag_d_gelu_tanh(double x)
{
    const double th = tanh(0.7978845608028653559 * (x + 0.044715 * x * x * x));
    const double ds = 0.7978845608028653559 * (1 + 0.134145 * x * x);
    return R(0.5 * (1 + th) + 0.5 * x * (1 - th * th) * ds);
}

/* exact form: x Phi(x), Phi(x) = erfc(-x / sqrt 2) / 2; derivative
 * Phi(x) + x exp(-x^2/2) / sqrt(2 pi) */
static real ag_f_gelu_erf(double x) { return R(0.5 * x * erfc(-0.70710678118654752440 * x)); }

static real ag_d_gelu_erf(double x)
{
    return R(0.5 * erfc(-0.70710678118654752440 * x)
             + x * exp(-0.5 * x * x) * 0.39894228040143267794);
}

/* quick form: x sigmoid(1.702 x); derivative g + 1.702 x g (1 - g), g = sigmoid(1.702 x) */
static real ag_f_gelu_quick(double x) { return R(x / (1 + exp(-1.702 * x))); }

static real ag_d_gelu_quick(double x)
{
    const double g = 1 / (1 + exp(-1.702 * x));
    return R(g + 1.702 * x * g * (1 - g));
}

#define AG_UNARY(name, f, df, ...)                                    \
    static void unary_fwd_##name(int64_t n, const void *px, void *py) \
    {                                                                 \
        for (int64_t i = 0; i < n; i++) {                             \
            const real x = ((const real *)px)[i];                     \
            ((real *)py)[i] = f;                                      \
        }                                                             \
    }
#include "autograd/unary.def"
#undef AG_UNARY

#define AG_UNARY(name, f, df, ...)                                                          \
    static void unary_bwd_##name(int64_t n, const void *px, const void *py, const void *dy, \
                                 void *dx, bool acc)                                        \
    {                                                                                       \
        for (int64_t i = 0; i < n; i++) {                                                   \
            const real x = ((const real *)px)[i], y = ((const real *)py)[i];                \
            (void)x, (void)y;                                                               \
            put((real *)dx + i, acc, ((const real *)dy)[i] * (df));                         \
        }                                                                                   \
    }
#include "autograd/unary.def"
#undef AG_UNARY

#define AG_BINARY(name, f, dfa, dfb, ...)                                              \
    static void binary_fwd_##name(int64_t n, const void *pa, const void *pb, void *py) \
    {                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                              \
            const real a = ((const real *)pa)[i], b = ((const real *)pb)[i];           \
            ((real *)py)[i] = f;                                                       \
        }                                                                              \
    }
#include "autograd/binary.def"
#undef AG_BINARY

#define AG_BINARY(name, f, dfa, dfb, ...)                                                     \
    static void binary_bwd_##name(int64_t n, const void *pa, const void *pb, const void *py,  \
                                  const void *dy, void *da, bool acc_a, void *db, bool acc_b) \
    {                                                                                         \
        for (int64_t i = 0; i < n; i++) {                                                     \
            const real a = ((const real *)pa)[i], b = ((const real *)pb)[i],                  \
                y = ((const real *)py)[i];                                                    \
            (void)a, (void)b, (void)y;                                                        \
            if (da) put((real *)da + i, acc_a, ((const real *)dy)[i] * (dfa));                \
            if (db) put((real *)db + i, acc_b, ((const real *)dy)[i] * (dfb));                \
        }                                                                                     \
    }
#include "autograd/binary.def"
#undef AG_BINARY
