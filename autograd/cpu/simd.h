/*
 * simd.h -- the vector of one instruction set: its type, loads, sums, noise and functions.
 *
 * A fast kernel file is compiled once per instruction set with -DAG_ISA=base|avx2|avx512;
 * AG_NAME(f) is then ag_f_<isa>, or ag_f_<isa>_<type> with -DAG_STORAGE=bf16|f16 (storage.h).  vf
 * is a GCC vector of VL floats, so + - * / and comparisons with scalars are C, and a * b + c
 * contracts to an fma where there is one.  Intrinsics appear only where GCC 12 does badly.
 */
#ifndef AG_CPU_SIMD_H
#define AG_CPU_SIMD_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include "autograd/base/rng.h"

#define AG_PASTE3(a, b, c) a##b##c
#define AG_PASTE(a, b, c) AG_PASTE3(a, b, c)
#define AG_NAME_F32(f) AG_PASTE(ag_##f, _, AG_ISA)
#if defined(AG_STORAGE)
#define AG_NAME(f) AG_PASTE(AG_NAME_F32(f), _, AG_STORAGE)
#else
#define AG_NAME(f) AG_NAME_F32(f)
#endif

#if defined(__AVX512F__)
enum { VL = 16 };
#elif defined(__AVX2__)
enum { VL = 8 };
#else
enum { VL = 4 };
#endif

#define AG_ALIGN_UP(n, to) (((n) + (to) - 1) / (to) * (to))

typedef float    vf __attribute__((vector_size(VL * 4)));      /* VL floats */
typedef int32_t  vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint64_t vul __attribute__((vector_size(VL * 4)));     /* VL / 2 of 64 bits */
/* in memory */
typedef float    vf_mem __attribute__((vector_size(VL * 4), may_alias, aligned(4)));

static inline vf   vset(float c) { return c - (vf){ 0 }; }   /* c + 0 would not fold: -0 + 0 is 0 */
static inline vu   vset_u(uint32_t c) { return (vu){ 0 } + c; }
static inline vf   vload(const float *p) { return *(const vf_mem *)p; }
static inline void vstore(float *p, vf x) { *(vf_mem *)p = x; }

/* To memory without reading its line first or keeping it in a cache; p is aligned to the vector.
 * Before another thread reads it, the one that wrote calls vstored_past. */
static inline void vstore_past(float *p, vf x)
{
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)x);
#elif defined(__AVX2__)
    _mm256_stream_ps(p, (__m256)x);
#else
    vstore(p, x);
#endif
}
static inline void vstored_past(void)
{
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

/* Lanes 0 .. n-1 (0 <= n <= VL); the others read as 0 and are not written. */
#if defined(__AVX512F__)
static inline vf vload_n(const float *p, int64_t n)
{
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline void vstore_n(float *p, vf x, int64_t n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
}
#elif defined(__AVX2__)
static inline __m256i vmask_n(int64_t n)
{
    return (__m256i)((vi){ 0, 1, 2, 3, 4, 5, 6, 7 } < (int32_t)n);
}
static inline vf   vload_n(const float *p, int64_t n)
{
    return (vf)_mm256_maskload_ps(p, vmask_n(n));
}
static inline void vstore_n(float *p, vf x, int64_t n)
{
    _mm256_maskstore_ps(p, vmask_n(n), (__m256)x);
}
#else
static inline vf vload_n(const float *p, int64_t n)
{
    vf x = { 0 };
    for (int64_t l = 0; l < VL; l++)
        x[l] = l < n ? p[l] : 0.0f;
    return x;
}
static inline void vstore_n(float *p, vf x, int64_t n)
{
    for (int64_t l = 0; l < VL; l++)
        if (l < n)
            p[l] = x[l];
}
#endif

/* a * b + c, rounded once where the machine can */
static inline vf vfma(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* a < b ? x : y per lane; y where a or b is NaN */
static inline vf vselect(vf a, vf b, vf x, vf y)
{
#if defined(__AVX512F__)
    return (vf)_mm512_mask_blend_ps(_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ), (__m512)y,
                                    (__m512)x);
#elif defined(__AVX2__)
    return (vf)_mm256_blendv_ps((__m256)y, (__m256)x,
                                _mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ));
#else
    const vi m = a < b;
    return (vf)((m & (vi)x) | (~m & (vi)y));
#endif
}

/* bit l: a < b in lane l */
static inline uint32_t vless(vf a, vf b)
{
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ));
#else
    uint32_t bits = 0;
    for (int l = 0; l < VL; l++)
        bits |= (uint32_t)(a[l] < b[l]) << l;
    return bits;
#endif
}

/* bit l of `bits` ? x : y in lane l */
static inline vf vwhere(uint32_t bits, vf x, vf y)
{
#if defined(__AVX512F__)
    return (vf)_mm512_mask_blend_ps((__mmask16)bits, (__m512)y, (__m512)x);
#else
    vu one;
    for (int l = 0; l < VL; l++)
        one[l] = 1u << l;
    const vi m = (vset_u(bits) & one) != 0;
    return (vf)((m & (vi)x) | (~m & (vi)y));
#endif
}

/* a > b ? a : b and a < b ? a : b: b where one is NaN, so put what may be NaN second */
static inline vf vmax(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
    return vselect(b, a, a, b);
#endif
}

static inline vf vmin(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
    return vselect(a, b, a, b);
#endif
}

/* 1 / x to 1 ulp for x in [1, 2]: where division is slow, an estimate and one step of Newton */
static inline vf vrecip(vf x)
{
#if defined(__AVX512F__)
    const vf r = (vf)_mm512_rcp14_ps((__m512)x);
    return r + r * (1.0f - x * r);
#else
    return 1.0f / x;
#endif
}

/* 0, 1, .. VL-1 */
static inline vi vlane(void)
{
    static const int32_t lane[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    vi l;
    memcpy(&l, lane, sizeof l);
    return l;
}

/* Lanes 0 .. n-1 of x, the others set to c. */
static inline vf vhead(vf x, int64_t n, float c)
{
    if (n >= VL)
        return x;
#if defined(__AVX512F__)
    return (vf)_mm512_mask_blend_ps((__mmask16)((1u << n) - 1), _mm512_set1_ps(c), (__m512)x);
#else
    const vi m = vlane() < (int32_t)n;
    return (vf)((m & (vi)x) | (~m & (vi)vset(c)));
#endif
}

/* The sum of the lanes, by halves: lane l takes lane l + VL/2, and so on. */
static inline float vsum(vf x)
{
#if defined(__AVX512F__)
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256((__m512)x),
                                   _mm512_extractf32x8_ps((__m512)x, 1));
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif defined(__AVX2__)
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128((__m256)x),
                                _mm256_extractf128_ps((__m256)x, 1));
#else
    const vf q = x;
#endif
    return (q[0] + q[2]) + (q[1] + q[3]);
}

/* The largest lane (NaN lanes may be lost). */
static inline float vmaxall(vf x)
{
#if defined(__AVX512F__)
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256((__m512)x),
                                   _mm512_extractf32x8_ps((__m512)x, 1));
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif defined(__AVX2__)
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128((__m256)x),
                                _mm256_extractf128_ps((__m256)x, 1));
#else
    const vf q = x;
#endif
    const float a = q[0] > q[2] ? q[0] : q[2], b = q[1] > q[3] ? q[1] : q[3];
    return a > b ? a : b;
}

/* The smallest lane of those where a == b, or INT32_MAX. */
static inline int32_t vfirst_equal(vf a, vf b, vi x)
{
#if defined(__AVX512F__)
    return _mm512_mask_reduce_min_epi32(_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ),
                                        (__m512i)x);
#else
    const vi m = a == b;
    int32_t least = INT32_MAX;
    for (int l = 0; l < VL; l++)
        least = m[l] && x[l] < least ? x[l] : least;
    return least;
#endif
}

#if defined(__AVX2__)
/* 64-bit products of the low halves with m */
static inline vul vmul_even(vul x, uint32_t m)
{
#if defined(__AVX512F__)
    return (vul)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi32((int)m));
#else
    return (vul)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi32((int)m));
#endif
}
#else
/* low and high words of the products of 32-bit lanes with m */
static inline vu vmul_wide(vu x, uint32_t m, vu *ret_high)
{
    vu low;
    for (int l = 0; l < VL; l++) {
        const uint64_t p = (uint64_t)x[l] * m;
        low[l] = (uint32_t)p;
        (*ret_high)[l] = (uint32_t)(p >> 32);
    }
    return low;
}
#endif

/*
 * ag_philox of VL blocks, n times side by side: w[i][k], word k of each block, goes from the
 * counter to the noise.  Products are of 64 bits: the words of even and of odd lanes go apart, each
 * in the low half of 64 bits, of which the high half is never looked at.
 */
#define PHILOX_ROUNDS(r, k0, k1, seed)                                                       \
    for (uint32_t r = 0, k0 = (uint32_t)(seed), k1 = (uint32_t)((seed) >> 32); r < 10;       \
         r++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)

static inline __attribute__((always_inline)) void vphilox_rounds(const int n, uint64_t seed,
                                                                 vu w[][4])
{
#if defined(__AVX2__)
    enum { MOST = 4 };
    vul x[2 * MOST][4];
    for (int i = 0; i < 2 * n; i++)
        for (int k = 0; k < 4; k++)
            x[i][k] = (vul)w[i / 2][k] >> (i % 2 * 32);
    PHILOX_ROUNDS(r, k0, k1, seed) {
        const vul key0 = (vul)vset_u(k0), key1 = (vul)vset_u(k1);
        _Pragma("GCC unroll 8") for (int i = 0; i < 2 * n; i++) {
            const vul p0 = vmul_even(x[i][0], 0xD2511F53u), p1 = vmul_even(x[i][2], 0xCD9E8D57u);
            x[i][0] = p1 >> 32 ^ x[i][1] ^ key0;
            x[i][2] = p0 >> 32 ^ x[i][3] ^ key1;
            x[i][1] = p1;
            x[i][3] = p0;
        }
    }
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 4; k++)
            w[i][k] = (vu)((x[2 * i][k] & 0xffffffffu) | x[2 * i + 1][k] << 32);
#else
    for (int i = 0; i < n; i++)
        PHILOX_ROUNDS(r, k0, k1, seed) {
            vu h0, h1;
            const vu l0 = vmul_wide(w[i][0], 0xD2511F53u, &h0),
                l1 = vmul_wide(w[i][2], 0xCD9E8D57u, &h1);
            w[i][0] = h1 ^ w[i][1] ^ k0;
            w[i][2] = h0 ^ w[i][3] ^ k1;
            w[i][1] = l1;
            w[i][3] = l0;
        }
#endif
}

/* ag_philox of VL blocks from block on, which must be a multiple of VL: w[k] holds word k of
 * each. */
static inline void vphilox(uint64_t seed, uint32_t step, uint32_t site, uint64_t block, vu w[4])
{
    w[0] = vset_u((uint32_t)block) + (vu)vlane();
    w[1] = vset_u((uint32_t)(block >> 32));
    w[2] = vset_u(site);
    w[3] = vset_u(step);
    vphilox_rounds(1, seed, (vu (*)[4])w);
}

/* Element group*64 .. +63 of the noise, in their order (rng.h): lane l of word k is element
 * 16 k + l. */
static inline void vnoise64(const ag_noise *z, uint64_t group, uint32_t bits[64])
{
    for (int s = 0; s < 16; s += VL) {
        vu w[4];
        vphilox(z->seed, z->step, z->site, group * 16 + (uint64_t)s, w);
        for (int k = 0; k < 4; k++)
            memcpy(bits + 16 * k + s, &w[k], sizeof w[k]);
    }
}

/* The group of the first number of a row of a matrix with n columns. */
static inline uint64_t ag_noise_group(const ag_noise *z, int64_t row, int64_t n)
{
    return (uint64_t)((z->row0 + row) * (ag_noise_stride(n) / 64));
}

static inline uint32_t ag_bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float ag_float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* ag_m_exp, ag_m_log, ag_m_tanh, ag_m_erf, ag_m_sigmoid, ag_m_gelu_*, ag_m_gelu_*_d on float */
#define F float
#define U uint32_t
#define M(name) ag_m_##name
#define BITS(x) ag_bits_of(x)
#define FLOAT(u) ag_float_of(u)
#define SELECT(a, b, x, y) ((a) < (b) ? (x) : (y))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define SPLAT(c) (c)
#define RECIP(x) (1.0f / (x))
#include "autograd/cpu/math_tmpl.h"

/* vexp, vlog, vtanh, verf, vsigmoid, vgelu_*, vgelu_*_d on vf */
#define F vf
#define U vu
#define M(name) v##name
#define BITS(x) ((vu)(x))
#define FLOAT(u) ((vf)(u))
#define SELECT(a, b, x, y) vselect(a, b, x, y)
#define MAX(a, b) vmax(a, b)
#define MIN(a, b) vmin(a, b)
#define SPLAT(c) vset(c)
#define RECIP(x) vrecip(x)
#if defined(__AVX512F__)
#define SCALEF(p, n) ((vf)_mm512_scalef_ps((__m512)(p), (__m512)(n)))
#endif
#include "autograd/cpu/math_tmpl.h"

#endif
