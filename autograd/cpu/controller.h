/*
 * controller.h -- what both forms of the 1-in-N controller share: the noise, and small blocks that
 * lie side by side in a vector.
 */
#ifndef AG_CPU_CONTROLLER_H
#define AG_CPU_CONTROLLER_H

#include "autograd/cpu/simd.h"
#include "autograd/cpu/sums.h"

/*
 * g = -log(-log u) for the columns [from, to) of a row of the noise with n columns.  Column c goes
 * to g[c - from / 64 * 64]: the noise comes in groups of 64.
 */
static inline void gumbel_columns(const ag_noise *z, int64_t row, int64_t n, int64_t from,
                                  int64_t to, float *g)
{
    const int64_t start = from / 64 * 64;
    const uint64_t group = ag_noise_group(z, row, n) + (uint64_t)from / 64;
    for (int64_t j = 0; j < to - start; j += 64) {
        uint32_t bits[64];
        vnoise64(z, group + (uint64_t)j / 64, bits);
        for (int64_t i = j; i < to - start && i < j + 64; i += VL) {
            vi k;
            memcpy(&k, bits + (i - j), sizeof k);
            /* ag_uniform */
            vf u = (__builtin_convertvector((vi)((vu)k >> 8), vf) + 0.5f) * 0x1p-24f;
            u = vmax(vmin(u, vset(1.0f - 1e-6f)), vset(1e-6f));
            vstore_to(g + i, -vlog_normal(-vlog_normal(u)), to - start - i);
        }
    }
}

/* Blocks of 1, 2, 4, .. VL numbers lie side by side in a vector: no lane is idle. */
static inline bool is_packed(int64_t n) { return n <= VL && VL % n == 0; }

/* Each lane takes the lane whose number differs in the bits of h. */
static inline vf vswap(vf x, int h) { return __builtin_shuffle(x, vlane() ^ h); }

/* The sum, and the largest, of each run of n lanes, in all of its lanes. */
static inline vf vpacked_sum(vf x, int64_t n)
{
    for (int h = 1; h < n; h *= 2)
        x += vswap(x, h);
    return x;
}

static inline vf vpacked_max(vf x, int64_t n)
{
    for (int h = 1; h < n; h *= 2)
        x = vmax(x, vswap(x, h));
    return x;
}

#endif
