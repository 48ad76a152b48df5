/*
 * half_tmpl.c -- the table of one instruction set and one 16-bit type, ag_kernels_<isa>_<type>, and
 * the kernels that every such table has: conversions, fill and scale.  The others are compiled from
 * gemm_tmpl.c, map_tmpl.c and rows_tmpl.c with the same -DAG_STORAGE.
 */
#include "autograd/cpu/fast.h"
#include "autograd/cpu/storage.h"

enum { SPAN = 4096 };                /* elements of a task */

/* for (vector at element j, of n) over the threads, spans of fixed size each */
#define FOR_SPAN_VECTORS(j, n)                                                         \
    AG_PRAGMA(omp parallel for schedule(static) if ((n) >= AG_PARALLEL_FROM))          \
    for (int64_t span = 0; span < (n); span += SPAN)                                   \
        for (int64_t j = span; j < (n) && j < span + SPAN; j += VL)

static void narrow(int64_t n, const float *x, void *py)
{
    real *y = py;
    FOR_SPAN_VECTORS(j, n)
        vput_to(y + j, n - j < VL ? vload_n(x + j, n - j) : vload(x + j), n - j);
}

static void widen(int64_t n, const void *px, float *y)
{
    const real *x = px;
    FOR_SPAN_VECTORS(j, n) {
        if (n - j < VL)
            vstore_n(y + j, vget_n(x + j, n - j), n - j);
        else
            vstore(y + j, vget(x + j));
    }
}

static void fill(int64_t n, double value, void *py)
{
    const vf v = vset((float)value);
    real *y = py;
    FOR_SPAN_VECTORS(j, n)
        vput_to(y + j, v, n - j);
}

static void scale(int64_t n, double alpha, const void *px, void *py, bool acc)
{
    const vf a = vset((float)alpha);
    const real *x = px;
    real *y = py;
    FOR_SPAN_VECTORS(j, n) {
        const vf v = a * vget_to(x + j, n - j);
        vput_to(y + j, acc ? vget_to(y + j, n - j) + v : v, n - j);
    }
}

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
#define TABLE AG_NAME(kernels)
#define K(f) .f = AG_NAME(f)
#if defined(AG_PAIRS)                /* a table of bf16 alone */
#define WIDE ag_kernels_avx512_f32
#else
#define WIDE AG_PASTE(AG_NAME_F32(kernels), _, f32)
#endif

extern const ag_kernels TABLE, WIDE;

const ag_kernels TABLE = {
#if defined(AG_STORAGE_F16)
    .dtype = AG_F16,
#else
    .dtype = AG_BF16,
#endif
    .name = TEXT(AG_ISA), .wide = &WIDE, .narrow = narrow, .widen = widen, .fill = fill,
    .scale = scale,
#define AG_UNARY(name, ...) .unary_fwd[AG_UNARY_##name] = AG_NAME(unary_fwd_##name), \
                            .unary_bwd[AG_UNARY_##name] = AG_NAME(unary_bwd_##name),
#include "autograd/unary.def"
#undef AG_UNARY
#define AG_BINARY(name, ...) .binary_fwd[AG_BINARY_##name] = AG_NAME(binary_fwd_##name), \
                             .binary_bwd[AG_BINARY_##name] = AG_NAME(binary_bwd_##name),
#include "autograd/binary.def"
#undef AG_BINARY
    K(gemm), K(act_bwd), K(dropout_fwd), K(dropout_bwd),
    K(layernorm_fwd), K(layernorm_bwd), K(softmax_fwd), K(softmax_bwd),
    K(embedding_fwd), K(embedding_bwd), K(xent_fwd), K(xent_bwd),
};
