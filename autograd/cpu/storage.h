/*
 * storage.h -- numbers in memory, of the type of a table: f32, or bf16 and f16 (AG_STORAGE).
 *
 * A kernel computes on floats and vectors of floats.  `real` is what it finds in memory: float, or
 * a struct of 16 bits, so that forgotten conversions do not compile.  get and put, vget and vput
 * widen and round on the way.
 */
#ifndef AG_CPU_STORAGE_H
#define AG_CPU_STORAGE_H

#include "autograd/base/half.h"
#include "autograd/cpu/simd.h"

#if !defined(AG_STORAGE)

typedef float real;

static inline float get(const real *p) { return *p; }
static inline void  put(real *p, float x) { *p = x; }
static inline vf    vget(const real *p) { return vload(p); }
static inline vf    vget_n(const real *p, int64_t n) { return vload_n(p, n); }
static inline void  vput(real *p, vf x) { vstore(p, x); }
static inline void  vput_n(real *p, vf x, int64_t n) { vstore_n(p, x, n); }

#else

typedef struct real { uint16_t bits; } real;

#if defined(AG_STORAGE_F16)
#define HALF_FLOAT ag_f16_float
#define HALF_OF ag_f16_of
#else
#define HALF_FLOAT ag_bf16_float
#define HALF_OF ag_bf16_of
#endif

static inline float get(const real *p) { return HALF_FLOAT(p->bits); }
static inline void  put(real *p, float x) { p->bits = HALF_OF(x); }

#if defined(__AVX512F__)
static inline vf half_widen(__m256i h)
{
#if defined(AG_STORAGE_F16)
    return (vf)_mm512_cvtph_ps(h);
#else
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#endif
}
static inline __m256i half_round(vf x)
{
#if defined(AG_STORAGE_F16)
    return _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const __m512i u = (__m512i)x, up = _mm512_srli_epi32(u, 16), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(up, one);
    const __m512i even = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    const __m512i r = _mm512_srli_epi32(even, 16);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(r, nan, up, _mm512_set1_epi32(0x40)));
#endif
}
static inline vf   vget(const real *p) { return half_widen(_mm256_loadu_si256((const void *)p)); }
static inline void vput(real *p, vf x) { _mm256_storeu_si256((void *)p, half_round(x)); }
static inline vf   vget_n(const real *p, int64_t n)
{
    return half_widen(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
}
static inline void vput_n(real *p, vf x, int64_t n)
{
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), half_round(x));
}
#else
#if defined(__AVX2__)
static inline vf half_widen(__m128i h)
{
#if defined(AG_STORAGE_F16)
    return (vf)_mm256_cvtph_ps(h);
#else
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
#endif
}
static inline __m128i half_round(vf x)
{
#if defined(AG_STORAGE_F16)
    return _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const __m256i u = (__m256i)x, up = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(up, _mm256_set1_epi32(1));
    const __m256i even = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(up, _mm256_set1_epi32(0x40));
    const __m256i nan = (__m256i)_mm256_cmp_ps((__m256)x, (__m256)x, _CMP_UNORD_Q);
    const __m256i r = _mm256_blendv_epi8(_mm256_srli_epi32(even, 16), quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
#endif
}
static inline vf   vget(const real *p) { return half_widen(_mm_loadu_si128((const void *)p)); }
static inline void vput(real *p, vf x) { _mm_storeu_si128((void *)p, half_round(x)); }
#else
static inline vf vget(const real *p)
{
    vf x;
    for (int l = 0; l < VL; l++)
        x[l] = get(p + l);
    return x;
}
static inline void vput(real *p, vf x)
{
    for (int l = 0; l < VL; l++)
        put(p + l, x[l]);
}
#endif
static inline vf vget_n(const real *p, int64_t n)
{
    real some[VL] = { { 0 } };
    memcpy(some, p, (size_t)n * sizeof *p);
    return vget(some);
}
static inline void vput_n(real *p, vf x, int64_t n)
{
    real some[VL];
    vput(some, x);
    memcpy(p, some, (size_t)n * sizeof *p);
}
#endif

#endif

/* Vectors of which only `left` lanes may be touched, should that be fewer than VL. */
static inline vf vget_to(const real *p, int64_t left)
{
    return left >= VL ? vget(p) : vget_n(p, left);
}
static inline void vput_to(real *p, vf x, int64_t left)
{
    if (left >= VL)
        vput(p, x);
    else
        vput_n(p, x, left);
}

#endif
