/*
 * gemm_pack_tmpl.h -- copies blocks of the operands of a matrix product into the order in which tiles read them.
 *
 * A packed panel of b is [kc][NR], or [kc][VL] for the last few columns; a packed strip of a is [kc][height of the
 * tile].  Lanes beyond the matrix hold anything: the tile computes with them and throws the result away.
 */
#ifndef AG_CPU_GEMM_PACK_TMPL_H
#define AG_CPU_GEMM_PACK_TMPL_H

#include "autograd/cpu/gemm_micro_tmpl.h"

enum { HALF = VL / 2 };
typedef float half_mem __attribute__((vector_size(HALF * 4), may_alias, aligned(4)));

#if defined(__AVX512F__)
#define STAGE_MASKS(s, low, high)                                                                           \
    const vi low = (s) == 4 ? (vi){ 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27 }              \
                 : (s) == 2 ? (vi){ 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29 }              \
                            : (vi){ 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30 };            \
    const vi high = low + (s);
#elif defined(__AVX2__)
#define STAGE_MASKS(s, low, high)                                                                           \
    const vi low = (s) == 2 ? (vi){ 0, 1, 8, 9, 4, 5, 12, 13 } : (vi){ 0, 8, 2, 10, 4, 12, 6, 14 };         \
    const vi high = low + (s);
#else
#define STAGE_MASKS(s, low, high)                                                                           \
    const vi low = { 0, 4, 2, 6 };                                                                          \
    const vi high = low + (s);
#endif

/* Swaps the off-diagonal s x s blocks of each 2s x 2s block of the VL x VL matrix r. */
ALWAYS_INLINE void transpose_stage(const int s, vf r[VL])
{
    STAGE_MASKS(s, low, high)
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++)
        if (!(i & s)) {
            const vf x = r[i], y = r[i + s];
            r[i] = __builtin_shuffle(x, y, low);
            r[i + s] = __builtin_shuffle(x, y, high);
        }
}

/* r[k][i] = row[i][k], VL x VL; the first stage is done by loading halves. */
ALWAYS_INLINE void load_transposed(const float *const row[VL], int64_t k, vf r[VL])
{
#pragma GCC unroll 16
    for (int i = 0; i < HALF; i++) {
        union { half_mem half[2]; vf all; } lo, hi;
        lo.half[0] = *(const half_mem *)(row[i] + k);
        lo.half[1] = *(const half_mem *)(row[i + HALF] + k);
        hi.half[0] = *(const half_mem *)(row[i] + k + HALF);
        hi.half[1] = *(const half_mem *)(row[i + HALF] + k + HALF);
        r[i] = lo.all;
        r[i + HALF] = hi.all;
    }
#pragma GCC unroll 4
    for (int s = HALF / 2; s > 0; s /= 2)
        transpose_stage(s, r);
}

/* d[kc][width] = transpose of b[cols][kc], cols <= width = nv * VL; missing rows repeat the last. */
static void pack_b_transposed(const float *b, int64_t ldb, int64_t cols, int64_t kc, int64_t width, float *d)
{
    for (int64_t v = 0; v < width; v += VL) {
        const float *row[VL];
        for (int64_t i = 0; i < VL; i++)
            row[i] = b + (v + i < cols ? v + i : cols - 1) * ldb;
        int64_t k = 0;
        for (; k + VL <= kc; k += VL) {
            vf r[VL];
            load_transposed(row, k, r);
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++)
                vstore(d + (k + i) * width + v, r[i]);
        }
        for (; k < kc; k++)
            for (int64_t i = 0; i < VL; i++)
                d[k * width + v + i] = row[i][k];
    }
}

/* d[kc][width] = b[kc][cols] */
static void pack_b_plain(const float *b, int64_t ldb, int64_t cols, int64_t kc, int64_t width, float *d)
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
 * Rows i0 .. i0+rows of op(a) = transpose of a, k0 .. k0+kc, in strips of h rows: d[strip][kc][h].  A few steps of
 * k for all strips, then the next few: so each line of a is fetched once.  Writes up to VL floats too many.
 */
static void pack_a(const ag_gemm *g, int64_t k0, int64_t kc, int64_t i0, int64_t rows, int64_t h, float *d)
{
    enum { STEP = 16 };
    const float *a = (const float *)g->a + i0;
    for (int64_t kb = 0; kb < kc; kb += STEP) {
        const int64_t ke = kb + STEP < kc ? kb + STEP : kc;
        for (int64_t i = 0; i < rows; i += h) {
            const int64_t n = rows - i < h ? rows - i : h;
            float *strip = d + i * kc;
            for (int64_t k = kb; k < ke; k++)
                for (int64_t l = 0; l < n; l += VL)
                    vstore_n(strip + k * n + l, vload_n(a + (k0 + k) * g->lda + i + l, n - l < VL ? n - l : VL),
                             n - l < VL ? n - l : VL);
        }
    }
}

#endif
