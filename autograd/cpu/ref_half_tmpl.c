/*
 * ref_half_tmpl.c -- ag_kernels_ref_bf16 and _f16: conversions in plain C.  All other work is that
 * of the f32 reference: so the reference of a 16-bit op is the f32 op between two conversions.
 */
#include "autograd/base/half.h"
#include "autograd/kernels.h"

#if defined(AG_STORAGE_F16)
#define TABLE ag_kernels_ref_f16
#define DTYPE AG_F16
#define FLOAT ag_f16_float
#define HALF ag_f16_of
#else
#define TABLE ag_kernels_ref_bf16
#define DTYPE AG_BF16
#define FLOAT ag_bf16_float
#define HALF ag_bf16_of
#endif

static void narrow(int64_t n, const float *x, void *py)
{
    uint16_t *y = py;
    for (int64_t i = 0; i < n; i++) y[i] = HALF(x[i]);
}

static void widen(int64_t n, const void *px, float *y)
{
    const uint16_t *x = px;
    for (int64_t i = 0; i < n; i++) y[i] = FLOAT(x[i]);
}

static void fill(int64_t n, double value, void *py)
{
    uint16_t *y = py;
    for (int64_t i = 0; i < n; i++) y[i] = HALF((float)value);
}

static void scale(int64_t n, double alpha, const void *px, void *py, bool acc)
{
    const uint16_t *x = px;
    uint16_t *y = py;
    for (int64_t i = 0; i < n; i++) {
        const float v = (float)alpha * FLOAT(x[i]);
        y[i] = HALF(acc ? FLOAT(y[i]) + v : v);
    }
}

extern const ag_kernels ag_kernels_ref_f32, TABLE;

const ag_kernels TABLE = { .name = "ref", .dtype = DTYPE, .wide = &ag_kernels_ref_f32,
                           .narrow = narrow, .widen = widen, .fill = fill, .scale = scale };
