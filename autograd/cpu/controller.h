/*
 * controller.h -- what both forms of the 1-in-N controller share: the noise.
 */
#ifndef AG_CPU_CONTROLLER_H
#define AG_CPU_CONTROLLER_H

#include "autograd/cpu/simd.h"
#include "autograd/cpu/sums.h"

/* The noise is made two groups of 64 at a time, step by step for all of them: their long chains of
 * operations then fill each other's gaps. */
enum { GUMBEL_GROUPS = 2, GUMBEL_NV = 64 / VL };
#define FOR_EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)

/* u of bits: ag_uniform, clamped */
static inline vf gumbel_uniform(vu bits)
{
    const vf u = (__builtin_convertvector((vi)(bits >> 8), vf) + 0.5f) * 0x1p-24f;
    return vmax(vmin(u, vset(1.0f - 1e-6f)), vset(1e-6f));
}

/* x = -log x of four, as vlog_normal; its sums are spelt out, so that all callers get the same
 * bits */
static inline __attribute__((always_inline)) void gumbel_logs(vf x[4])
{
    static const float c[] = { 1.27615503e-1f, -1.31601951e-1f, 1.42017625e-1f, -1.66233565e-1f,
                               2.00012267e-1f, -2.50008211e-1f, 3.33333317e-1f };
    vu k[4];
    vf f[4], e[4], p[4], s[4];
    FOR_EACH(i, 4) k[i] = (vu)x[i] - 0x3f3504f3u;
    FOR_EACH(i, 4) f[i] = (vf)((k[i] & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    FOR_EACH(i, 4) e[i] = (vf)(((k[i] + 0x40000000u) >> 23) | 0x4b000000u) - (8388608.0f + 128.0f);
    FOR_EACH(i, 4) p[i] = vset(-7.63442984e-2f);
    FOR_EACH(j, 7)
        FOR_EACH(i, 4) p[i] = vfma(p[i], f[i], vset(c[j]));
    FOR_EACH(i, 4) s[i] = f[i] * f[i];
    FOR_EACH(i, 4) p[i] = vfma(f[i], p[i], vset(-0.5f));
    FOR_EACH(i, 4) s[i] = vfma(s[i], p[i], e[i] * -2.12194440e-4f);
    FOR_EACH(i, 4) x[i] = -vfma(e[i], vset(0.693359375f), s[i] + f[i]);
}

/* Numbers of `groups` groups of 64 from `group` on, of which `left` are stored. */
static inline __attribute__((always_inline)) void
gumbel_groups(int groups, const ag_noise *z, uint64_t group, float *g, int64_t left)
{
    /* the words of group h, vector v of its blocks, are in w[h * 16 / VL + v] (rng.h) */
    vu w[GUMBEL_GROUPS * 16 / VL][4];
    for (int i = 0; i < groups * 16 / VL; i++) {
        const uint64_t block = group * 16 + (uint64_t)i * VL;
        w[i][0] = vset_u((uint32_t)block) + (vu)vlane();
        w[i][1] = vset_u((uint32_t)(block >> 32));
        w[i][2] = vset_u(z->site);
        w[i][3] = vset_u(z->step);
    }
    for (int i = 0; i < groups * 16 / VL; i += GUMBEL_GROUPS)
        vphilox_rounds(groups * 16 / VL < GUMBEL_GROUPS ? 1 : GUMBEL_GROUPS, z->seed, w + i);
    for (int j = 0; j < groups * GUMBEL_NV; j += 4) {
        vf u[4];
        FOR_EACH(i, 4) {
            /* vector j + i: word `at / 16 % 4`, and which vector of its blocks */
            const int at = (j + i) * VL;
            u[i] = gumbel_uniform(w[at / 64 * (16 / VL) + at % 16 / VL][at / 16 % 4]);
        }
        gumbel_logs(u);
        gumbel_logs(u);
        FOR_EACH(i, 4)
            if ((j + i) * VL < left)
                vstore_to(g + (j + i) * VL, u[i], left - (j + i) * VL);
    }
}

/*
 * g = -log(-log u) for the columns [from, to) of a row of the noise with n columns.  Column c goes
 * to g[c - from / 64 * 64]: the noise comes in groups of 64.
 */
static inline void gumbel_columns(const ag_noise *z, int64_t row, int64_t n, int64_t from,
                                  int64_t to, float *g)
{
    const uint64_t group = ag_noise_group(z, row, n) + (uint64_t)from / 64;
    const int64_t size = to - from / 64 * 64;
    int64_t j = 0;
    for (; j + 64 < size; j += 128)
        gumbel_groups(2, z, group + (uint64_t)j / 64, g + j, size - j);
    if (j < size)
        gumbel_groups(1, z, group + (uint64_t)j / 64, g + j, size - j);
}

#endif
