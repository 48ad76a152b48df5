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
#include "autograd/cpu/transpose.h"

enum { PACK_WIDTH = AG_ALIGN_UP(MR, VL) };

/* d[4][width] = transpose of b[VL][4] */
ALWAYS_INLINE void transpose_to(const float *b, int64_t ldb, int64_t width, float *d)
{
    vf t[4];
    transpose_4(b, ldb, t);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        vstore(d + i * width, t[i]);
}

/* b[VL][VL] as floats: where it lies, or 16-bit numbers widened to wide */
ALWAYS_INLINE const float *square_of(const real *b, int64_t *ldb, float *wide)
{
#if defined(AG_STORAGE)
    for (int i = 0; i < VL; i++)
        vstore(wide + i * VL, vget(b + i * *ldb));
    *ldb = VL;
    return wide;
#else
    (void)ldb, (void)wide;
    return b;
#endif
}

/* d[kc][width] = transpose of b[cols][kc], cols <= width */
static void pack_b_transposed(const real *b, int64_t ldb, int64_t cols, int64_t kc, int64_t width,
                              float *d)
{
    int64_t v = 0;
    for (; v + VL <= cols; v += VL) {
        int64_t k = 0;
        for (; k + VL <= kc; k += VL) {                 /* whole lines of b */
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++)
                __builtin_prefetch(b + (v + i) * ldb + k + 4 * LINE);
            float wide[VL * VL];
            int64_t ld = ldb;
            const float *from = square_of(b + v * ldb + k, &ld, wide);
#pragma GCC unroll 4
            for (int q = 0; q < VL; q += 4)
                transpose_to(from + q, ld, width, d + (k + q) * width + v);
        }
        for (; k < kc; k++)
            for (int64_t i = 0; i < VL; i++)
                d[k * width + v + i] = get(b + (v + i) * ldb + k);
    }
    if (v < width)                                      /* fewer than VL rows are left */
        for (int64_t k = 0; k < kc; k++) {
            vf x = { 0 };
            for (int64_t i = 0; i < cols - v; i++)
                x[i] = get(b + (v + i) * ldb + k);
            vstore(d + k * width + v, x);
        }
}

/* d[kc][width] = b[kc][cols] */
static void pack_b_plain(const real *b, int64_t ldb, int64_t cols, int64_t kc, int64_t width,
                         float *d)
{
    if (cols == NR) {
        for (int64_t k = 0; k < kc; k++)
#pragma GCC unroll 8
            for (int v = 0; v < NV; v++)
                vstore(d + k * NR + v * VL, vget(b + k * ldb + v * VL));
        return;
    }
    for (int64_t k = 0; k < kc; k++)
        for (int64_t v = 0; v < width; v += VL)
            vstore(d + k * width + v, vget_n(b + k * ldb + v, cols - v < VL ? cols - v : VL));
}

#if defined(AG_STORAGE)
/* d[rows][kc] = a[rows][kc] as floats */
static void pack_a_rows(const real *a, int64_t lda, int64_t rows, int64_t kc, float *d)
{
    for (int64_t i = 0; i < rows; i++, a += lda, d += kc)
        for (int64_t k = 0; k < kc; k += VL) {
            if (kc - k < VL)
                vstore_n(d + k, vget_n(a + k, kc - k), kc - k);
            else
                vstore(d + k, vget(a + k));
        }
}
#endif

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
            const real *a = (const real *)g->a + (k0 + kb) * g->lda + i0 + i;
            float *strip = d + i * kc + kb * n;
            int64_t k = kb;
            if (i0 + i + PACK_WIDTH <= g->m)
                for (; (ke - k) * n >= PACK_WIDTH; k++, a += g->lda, strip += n)
                    for (int l = 0; l < PACK_WIDTH; l += VL)
                        vstore(strip + l, vget(a + l));
            for (; k < ke; k++, a += g->lda, strip += n)
                for (int64_t l = 0; l < n; l += VL) {
                    const int64_t lanes = n - l < VL ? n - l : VL;
                    vstore_n(strip + l, vget_n(a + l, lanes), lanes);
                }
        }
    }
}

#endif
