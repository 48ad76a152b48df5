/*
 * rng.h -- noise as a function, not a state: Philox4x32-10 (Salmon et al., "Parallel Random
 * Numbers: As Easy as 1, 2, 3", SC 2011).
 *
 * Every random number of a run is a function of (seed, step, site, element): the seed of the run,
 * the optimizer step, the place in the model that asks, and the index of the number there.  So
 * dropout masks, Gumbel noise, shuffles and initial weights are the same for any number of threads,
 * any device, any tiling, after a resume and in a recomputation, and no generator is ever stored.
 *
 * Layout.  One Philox block gives four 32-bit words.  Numbers come in groups of 64: element e takes
 * word (e % 64) / 16 of block (e / 64) * 16 + e % 16, so that 16 vector lanes make 64 consecutive
 * numbers without a shuffle.  A matrix [rows, n] starts each row at a multiple of 64: element (r,
 * c) has index r * ag_noise_stride(n) + c.
 */
#ifndef AG_BASE_RNG_H
#define AG_BASE_RNG_H

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define AG_HOST_DEVICE __host__ __device__
#else
#define AG_HOST_DEVICE
#endif

/* In the memory of a device: how a replay differs from the step that was captured (replay.h). */
typedef struct ag_turn {
    float    scale;                  /* of the loss, in the walk back */
    uint32_t steps;                  /* it comes so much later, */
    int64_t  samples;                /* and has samples so much further on in their batch; */
    int32_t  positions;              /* decoding: a token so much further on in its sequence, */
    int32_t  keys;                   /* which sees so many */
} ag_turn;

typedef struct ag_noise {
    uint64_t seed;                   /* of the run */
    uint32_t step;                   /* optimizer step; 0 for what happens once */
    uint32_t site;                   /* the place that asks: unique within a step */
    int64_t  row0;                   /* the row that row 0 of this tensor is in the whole batch */
    int64_t  rows;                   /* of a sample, and where a kernel reads how much later it */
    const ag_turn *turn;             /* runs (ag_noise_now); NULL: it is as it stands here */
} ag_noise;

/* Sites outside the model; layers get their own from 0 upwards (nn_site). */
enum {
    AG_SITE_INIT    = 0x80000000u,   /* + parameter index: initial weights */
    AG_SITE_SHUFFLE = 0xF0000000u,   /* order of the samples in an epoch */
    AG_SITE_DATA    = 0xF0000001u,   /* generated data sets; + 0..15 */
    AG_SITE_SAMPLE  = 0xF0000010u,   /* choice of the next token */
};

AG_HOST_DEVICE static inline void ag_philox(uint64_t seed, uint32_t step, uint32_t site,
                                            uint64_t block, uint32_t out[4])
{
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = site, c3 = step;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int r = 0; r < 10; r++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0; out[1] = c1; out[2] = c2; out[3] = c3;
}

/* The noise of now, for a kernel of a device. */
AG_HOST_DEVICE static inline ag_noise ag_noise_now(ag_noise z)
{
    if (!z.turn) return z;
    z.step += z.turn->steps;
    z.row0 += z.turn->samples * z.rows;
    return z;
}

/* Elements from one row of a matrix with n columns to the next. */
AG_HOST_DEVICE static inline int64_t ag_noise_stride(int64_t n) { return (n + 63) & ~(int64_t)63; }

/* 32 random bits of element e. */
AG_HOST_DEVICE static inline uint32_t ag_noise_bits(uint64_t seed, uint32_t step, uint32_t site,
                                                    uint64_t e)
{
    uint32_t w[4];
    ag_philox(seed, step, site, (e / 64) * 16 + e % 16, w);
    return w[(e % 64) / 16];
}

/* 32 random bits of element (row, col) of a matrix with n columns. */
AG_HOST_DEVICE static inline uint32_t ag_noise_at(const ag_noise *z, int64_t row, int64_t col,
                                                  int64_t n)
{
    return ag_noise_bits(z->seed, z->step, z->site,
                         (uint64_t)((z->row0 + row) * ag_noise_stride(n) + col));
}

/* Uniform in the open interval (0, 1), 2^24 values, each exact in f32: (k + 1/2) / 2^24, and the
 * last one, which f32 would round to 1, is 1 - 2^-24. */
AG_HOST_DEVICE static inline float ag_uniform(uint32_t bits)
{
    const float u = ((float)(bits >> 8) + 0.5f) * 0x1p-24f;
    return u < 1.0f ? u : 1.0f - 0x1p-24f;
}

/* Gumbel(0, 1) = -log(-log u), finite for every u that ag_uniform can give. */
AG_HOST_DEVICE static inline double ag_gumbel(uint32_t bits)
{
    return -log(-log((double)ag_uniform(bits)));
}

/* Two independent standard normal numbers from two words (Box and Muller). */
AG_HOST_DEVICE static inline void ag_normal2(uint32_t a, uint32_t b, double ret[2])
{
    const double r = sqrt(-2.0 * log((double)ag_uniform(a)));
    const double phi = 6.283185307179586476925 * (double)ag_uniform(b);
    ret[0] = r * cos(phi);
    ret[1] = r * sin(phi);
}

/* Dropout: an element is dropped where its bits are below this. */
AG_HOST_DEVICE static inline uint32_t ag_drop_threshold(double p)
{
    return p <= 0 ? 0 : p >= 1 ? UINT32_MAX : (uint32_t)(p * 4294967296.0);
}

#endif
