/*
 * gemm_pairs_tmpl.h -- packs bf16 operands of a matrix product as pairs: two neighbours in k side
 * by side in a word of 32 bits, the first in the low half, as vdpbf16ps multiplies them.
 *
 * The layouts are those of gemm_pack_tmpl.h with words for numbers: a panel of b is
 * [words][width], a strip of a [words][height of the tile], rows of a that are not transposed
 * [rows][words].  The last pair of an odd k has a zero.
 */
#ifndef AG_CPU_GEMM_PAIRS_TMPL_H
#define AG_CPU_GEMM_PAIRS_TMPL_H

#include "autograd/cpu/gemm_micro_tmpl.h"
#include "autograd/cpu/transpose.h"

static inline __mmask32 first_of_32(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1; }

/* Of numbers lo[n] and hi[n], n <= VL, the words (lo, hi); hi NULL: zeros. */
static inline vf pairs_of(const real *lo, const real *hi, int64_t n)
{
    const __mmask16 m = n >= VL ? 0xffff : (__mmask16)((1u << n) - 1);
    __m512i w = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, lo));
    if (hi)
        w = _mm512_or_si512(w, _mm512_slli_epi32(
                _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, hi)), 16));
    return (vf)w;
}

/* d[words][width] from b[cols][kc], cols <= width */
static void pack_b_transposed(const real *b, int64_t ldb, int64_t cols, int64_t kc, int64_t width,
                              float *d)
{
    for (int64_t v = 0; v < width; v += VL)
        for (int64_t q = 0; q < words(kc); q += VL) {
            _Alignas(64) float square[VL * VL];
            for (int64_t i = 0; i < VL; i++) {
                const __mmask32 m = v + i < cols ? first_of_32(kc - PER * q) : 0;
                vstore(square + i * VL,
                       (vf)_mm512_maskz_loadu_epi16(m, b + (v + i) * ldb + PER * q));
            }
            for (int64_t r = q; r < q + VL && r < words(kc); r += 4) {
                vf t[4];
                transpose_4(square + (r - q), VL, t);
                for (int64_t i = 0; i < 4 && r + i < words(kc); i++)
                    vstore(d + (r + i) * width + v, t[i]);
            }
        }
}

/* d[words][width] from b[kc][cols] */
static void pack_b_plain(const real *b, int64_t ldb, int64_t cols, int64_t kc, int64_t width,
                         float *d)
{
    for (int64_t k = 0; k < kc; k += PER, b += PER * ldb, d += width)
        for (int64_t v = 0; v < width; v += VL)
            vstore(d + v, pairs_of(b + v, k + 1 < kc ? b + ldb + v : NULL, cols - v));
}

/* d[rows][words] from a[rows][kc] */
static void pack_a_rows(const real *a, int64_t lda, int64_t rows, int64_t kc, float *d)
{
    for (int64_t i = 0; i < rows; i++, a += lda, d += words(kc))
        for (int64_t q = 0; q < words(kc); q += VL)
            vstore_n(d + q, (vf)_mm512_maskz_loadu_epi16(first_of_32(kc - PER * q), a + PER * q),
                     words(kc) - q < VL ? words(kc) - q : VL);
}

/* Rows i0 .. i0+rows of op(a) = transpose of a, in strips of h rows, a few steps of k for all
 * strips, then the next few. */
static void pack_a(const ag_gemm *g, int64_t k0, int64_t kc, int64_t i0, int64_t rows, int64_t h,
                   float *d)
{
    for (int64_t kb = 0; kb < kc; kb += PER * STEP)
        for (int64_t i = 0; i < rows; i += h) {
            const int64_t n = rows - i < h ? rows - i : h;
            const real *a = (const real *)g->a + (k0 + kb) * g->lda + i0 + i;
            float *strip = d + i * words(kc) + kb / PER * n;
            for (int64_t k = kb; k < kc && k < kb + PER * STEP; k += PER, strip += n) {
                vstore_n(strip, pairs_of(a, k + 1 < kc ? a + g->lda : NULL, n), n);
                a += PER * g->lda;
            }
        }
}

#endif
