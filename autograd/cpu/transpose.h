/*
 * transpose.h -- VL rows x 4 columns become 4 vectors.
 *
 * Four columns at a time: the loads do half of the work, and a vector takes two shuffles.
 */
#ifndef AG_CPU_TRANSPOSE_H
#define AG_CPU_TRANSPOSE_H

#include "autograd/cpu/simd.h"

/* Lane q of the result = the four floats at p + q*stride. */
static inline __attribute__((always_inline)) vf load_quads(const float *p, int64_t stride)
{
#if defined(__AVX512F__)
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(p));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(p + stride), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 2 * stride), 2);
    return (vf)_mm512_insertf32x4(x, _mm_loadu_ps(p + 3 * stride), 3);
#elif defined(__AVX2__)
    return (vf)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)),
                                    _mm_loadu_ps(p + stride), 1);
#else
    (void)stride;
    return vload(p);
#endif
}

/* Within each lane: x0 y0 x1 y1, x2 y2 x3 y3; and the same for pairs of floats. */
#if defined(__AVX512F__)
static const vi unpack_low  = { 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29 };
static const vi unpack_high = { 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31 };
static const vi pairs_low   = { 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29 };
static const vi pairs_high  = { 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31 };
#elif defined(__AVX2__)
static const vi unpack_low  = { 0, 8, 1, 9, 4, 12, 5, 13 };
static const vi unpack_high = { 2, 10, 3, 11, 6, 14, 7, 15 };
static const vi pairs_low   = { 0, 1, 8, 9, 4, 5, 12, 13 };
static const vi pairs_high  = { 2, 3, 10, 11, 6, 7, 14, 15 };
#else
static const vi unpack_low  = { 0, 4, 1, 5 }, unpack_high = { 2, 6, 3, 7 };
static const vi pairs_low   = { 0, 1, 4, 5 }, pairs_high  = { 2, 3, 6, 7 };
#endif

/* t[4] = transpose of x[VL rows][4]: a 4 x 4 transpose in every lane of four floats. */
static inline __attribute__((always_inline)) void transpose_4(const float *x, int64_t ldx, vf t[4])
{
    const vf x0 = load_quads(x, 4 * ldx), x1 = load_quads(x + ldx, 4 * ldx);
    const vf x2 = load_quads(x + 2 * ldx, 4 * ldx), x3 = load_quads(x + 3 * ldx, 4 * ldx);
    const vf a0 = __builtin_shuffle(x0, x1, unpack_low),
             a1 = __builtin_shuffle(x0, x1, unpack_high);
    const vf b0 = __builtin_shuffle(x2, x3, unpack_low),
             b1 = __builtin_shuffle(x2, x3, unpack_high);
    t[0] = __builtin_shuffle(a0, b0, pairs_low);
    t[1] = __builtin_shuffle(a0, b0, pairs_high);
    t[2] = __builtin_shuffle(a1, b1, pairs_low);
    t[3] = __builtin_shuffle(a1, b1, pairs_high);
}

#endif
