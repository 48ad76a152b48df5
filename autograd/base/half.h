/*
 * half.h -- the two 16-bit floating-point formats, one number at a time.
 *
 * bf16 is the upper half of an f32 (8 bits of exponent, 7 of fraction); f16 is IEEE binary16 (5 and
 * 10, with subnormals).  Rounding is to the nearest, ties to even; f16 overflows to infinity.  NaN
 * stays NaN, made quiet.  Branches are selections, so that loops over these become vectors.
 */
#ifndef AG_HALF_H
#define AG_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t ag_half_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float ag_half_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline uint16_t ag_bf16_of(float x)
{
    const uint32_t u = ag_half_bits(x), nan = (u >> 16) | 0x40,
        rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

static inline float ag_bf16_float(uint16_t h) { return ag_half_float((uint32_t)h << 16); }

static inline uint16_t ag_f16_of(float x)
{
    const uint32_t u = ag_half_bits(x), a = u & 0x7fffffff, sign = u >> 16 & 0x8000;
    /* below 2^-14 the addition rounds to multiples of 2^-24, the distance of subnormals */
    const uint32_t small = ag_half_bits(ag_half_float(a) + 0.5f) - 0x3f000000;
    const uint32_t normal = (a - (112u << 23) + 0xfff + (a >> 13 & 1)) >> 13;
    const uint32_t nan = 0x7e00 | (a >> 13 & 0x3ff);
    uint32_t h = a < 0x38800000 ? small : normal;
    h = a >= 0x47800000 ? 0x7c00 : h;
    return (uint16_t)((a > 0x7f800000 ? nan : h) | sign);
}

static inline float ag_f16_float(uint16_t h)
{
    const uint32_t a = h & 0x7fffu, sign = (uint32_t)(h & 0x8000u) << 16;
    const float small = (float)(int32_t)a * 0x1p-24f;
    const uint32_t normal = (a << 13) + (112u << 23), special = (a << 13) + (224u << 23);
    const uint32_t quiet = a > 0x7c00 ? 0x400000 : 0;
    uint32_t u = a < 0x400 ? ag_half_bits(small) : normal;
    u = a >= 0x7c00 ? special | quiet : u;
    return ag_half_float(u | sign);
}

#endif
