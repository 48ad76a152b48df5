/*
 * gemm_pack_tmpl.h -- copies blocks of the operands of a matrix product into the order in which
 * tiles read them.
 *
 * A packed panel of b is [kc][NR], or [kc][VL] for the last few columns; a packed strip of a is
 * [kc][height of the tile].  Lanes beyond the matrix are zero.
 */
#ifndef AG_CPU_GEMM_PACK_TMPL_H
#define AG_CPU_GEMM_PACK_TMPL_H

#include "autograd/cpu/gemm_micro_tmpl.h"

enum { PACK_WIDTH = AG_ALIGN_UP(MR, VL) };

/* Lane q of the result = the four floats at p + q*stride. */
ALWAYS_INLINE vf load_quads(const float *p, int64_t stride)
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

/* d[4 steps][width] at VL columns = transpose of b[VL rows][4]: a 4 x 4 transpose in every lane. */
ALWAYS_INLINE void transpose_4(const float *b, int64_t ldb, int64_t width, float *d)
{
    const vf x0 = load_quads(b, 4 * ldb), x1 = load_quads(b + ldb, 4 * ldb);
    const vf x2 = load_quads(b + 2 * ldb, 4 * ldb), x3 = load_quads(b + 3 * ldb, 4 * ldb);
    const vf a0 = __builtin_shuffle(x0, x1, unpack_low),
             a1 = __builtin_shuffle(x0, x1, unpack_high);
    const vf b0 = __builtin_shuffle(x2, x3, unpack_low),
             b1 = __builtin_shuffle(x2, x3, unpack_high);
    vstore(d, __builtin_shuffle(a0, b0, pairs_low));
    vstore(d + width, __builtin_shuffle(a0, b0, pairs_high));
    vstore(d + 2 * width, __builtin_shuffle(a1, b1, pairs_low));
    vstore(d + 3 * width, __builtin_shuffle(a1, b1, pairs_high));
}

/* d[kc][width] = transpose of b[cols][kc], cols <= width */
static void pack_b_transposed(const float *b, int64_t ldb, int64_t cols, int64_t kc, int64_t width,
                              float *d)
{
    int64_t v = 0;
    for (; v + VL <= cols; v += VL) {
        int64_t k = 0;
        for (; k + VL <= kc; k += VL) {                 /* whole lines of b */
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++)
                __builtin_prefetch(b + (v + i) * ldb + k + 4 * LINE);
#pragma GCC unroll 4
            for (int q = 0; q < VL; q += 4)
                transpose_4(b + v * ldb + k + q, ldb, width, d + (k + q) * width + v);
        }
        for (; k < kc; k++)
            for (int64_t i = 0; i < VL; i++)
                d[k * width + v + i] = b[(v + i) * ldb + k];
    }
    if (v < width)                                      /* fewer than VL rows are left */
        for (int64_t k = 0; k < kc; k++) {
            vf x = { 0 };
            for (int64_t i = 0; i < cols - v; i++)
                x[i] = b[(v + i) * ldb + k];
            vstore(d + k * width + v, x);
        }
}

/* d[kc][width] = b[kc][cols] */
static void pack_b_plain(const float *b, int64_t ldb, int64_t cols, int64_t kc, int64_t width,
                         float *d)
{
    if (cols == NR) {
        for (int64_t k = 0; k < kc; k++)
#pragma GCC unroll 8
            for (int v = 0; v < NV; v++)
                vstore(d + k * NR + v * VL, vload(b + k * ldb + v * VL));
        return;
    }
    for (int64_t k = 0; k < kc; k++)
        for (int64_t v = 0; v < width; v += VL)
            vstore(d + k * width + v, vload_n(b + k * ldb + v, cols - v < VL ? cols - v : VL));
}

/* Panel p of op(b)[k0 .. k0+kc, j0 ..] */
static void pack_b(const ag_gemm *g, int64_t k0, int64_t kc, int64_t j, int64_t cols, float *d)
{
    const float *b = g->b;
    const int64_t width = AG_ALIGN_UP(cols, VL);
    if (g->tb)
        pack_b_transposed(b + j * g->ldb + k0, g->ldb, cols, kc, width, d);
    else
        pack_b_plain(b + k0 * g->ldb + j, g->ldb, cols, kc, width, d);
}

/*
 * Rows i0 .. i0+rows of op(a) = transpose of a, k0 .. k0+kc, in strips of h rows:
 * d[strip][kc][h].  A few steps of k for all strips, then the next few: so each line of a is
 * fetched once.  Whole vectors are written, each over the excess of the one before, as long as
 * they end within the strip.
 */
static void pack_a(const ag_gemm *g, int64_t k0, int64_t kc, int64_t i0, int64_t rows, int64_t h,
                   float *d)
{
    for (int64_t kb = 0; kb < kc; kb += STEP) {
        const int64_t ke = kb + STEP < kc ? kb + STEP : kc;
        for (int64_t i = 0; i < rows; i += h) {
            const int64_t n = rows - i < h ? rows - i : h;
            const float *a = (const float *)g->a + (k0 + kb) * g->lda + i0 + i;
            float *strip = d + i * kc + kb * n;
            int64_t k = kb;
            if (i0 + i + PACK_WIDTH <= g->m)
                for (; (ke - k) * n >= PACK_WIDTH; k++, a += g->lda, strip += n)
                    for (int l = 0; l < PACK_WIDTH; l += VL)
                        vstore(strip + l, vload(a + l));
            for (; k < ke; k++, a += g->lda, strip += n)
                for (int64_t l = 0; l < n; l += VL) {
                    const int64_t lanes = n - l < VL ? n - l : VL;
                    vstore_n(strip + l, vload_n(a + l, lanes), lanes);
                }
        }
    }
}

#endif
