#include "layers/init.h"

#include "autograd/base/clones.h"
#include "autograd/base/rng.h"

#include <math.h>
#include <string.h>

enum { LANES = 16, GROUP = 4 * LANES }; /* numbers of one round of Philox in 16 lanes (rng.h) */

nn_init nn_glorot(int64_t fan_in, int64_t fan_out, double gain)
{
    return nn_uniform(gain * sqrt(6.0 / (double)(fan_in + fan_out)));
}

nn_init nn_matrix_init(double std, int64_t fan_in, int64_t fan_out, double gain)
{
    return std > 0 ? nn_normal(gain * std) : nn_glorot(fan_in, fan_out, gain);
}

double nn_rule_std(nn_init_rule rule, double std, int64_t d_in)
{
    switch (rule) {
    case NN_INIT_PAPER_STD: return 0.125 / sqrt((double)d_in);
    case NN_INIT_PAPER_VAR: return sqrt(0.125 / sqrt((double)d_in));
    case NN_INIT_RELEASED:  return sqrt(0.125 / (double)d_in);
    default:                return std;
    }
}

double nn_rule_embedding_std(nn_init_rule rule, double std, int64_t d_model, int tables)
{
    if (rule == NN_INIT_RELEASED) return 0.01 / sqrt((double)tables);
    return nn_rule_std(rule, std, d_model * tables);
}

/*
 * Box and Muller in f32, for 16 lanes at once: a model of 10 million weights would wait most of a
 * second for the C library.  Agrees with ag_normal2() to 1e-6.
 */

/* log u for 2^-25 <= u < 1: u = 2^e m with m about 1, log m = 2 atanh s */
static inline float log_small(float u)
{
    uint32_t bits;
    memcpy(&bits, &u, sizeof bits);
    const uint32_t up = (bits & 0x7fffffu) > 0x3504f3u; /* mantissa above sqrt 2: halve it */
    const float e = (float)((int32_t)(bits >> 23) - 127 + (int32_t)up);
    bits = (bits & 0x7fffffu) | ((127u - up) << 23);
    float m;
    memcpy(&m, &bits, sizeof m);
    const float s = (m - 1) / (m + 1), q = s * s;
    return e * 0.693147181f +
           2 * s * (1 + q * (1 / 3.0f + q * (1 / 5.0f + q * (1 / 7.0f + q * (1 / 9.0f)))));
}

/* cos and sin of 2 pi u, from the quadrant and polynomials on [-pi/4, pi/4] */
static inline void circle(float u, float *ret_cos, float *ret_sin)
{
    const int32_t k = (int32_t)(4 * u + 0.5f);
    const float r = (4 * u - (float)k) * 1.57079633f, q = r * r;
    const float s =
        r * (1 + q * (-1 / 6.0f + q * (1 / 120.0f + q * (-1 / 5040.0f + q * (1 / 362880.0f)))));
    const float c = 1 + q * (-1 / 2.0f + q * (1 / 24.0f + q * (-1 / 720.0f + q * (1 / 40320.0f))));
    const float x = k & 1 ? s : c, y = k & 1 ? c : s;
    *ret_cos = (k + 1) & 2 ? -x : x;
    *ret_sin = k & 2 ? -y : y;
}

/* The bits of elements GROUP*g .. GROUP*g + GROUP-1: ag_philox() of LANES blocks, a lane each. */
static inline void group_bits(uint64_t seed, uint32_t site, int64_t g, uint32_t bits[GROUP])
{
    uint32_t *w[4] = { bits, bits + LANES, bits + 2 * LANES, bits + 3 * LANES };
    const uint64_t block = (uint64_t)(LANES * g);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (uint32_t j = 0; j < LANES; j++) {
        w[0][j] = (uint32_t)(block + j);
        w[1][j] = (uint32_t)((block + j) >> 32);
        w[2][j] = site;
        w[3][j] = 0;
    }
    for (int r = 0; r < 10; r++) {
        #pragma omp simd
        for (int j = 0; j < LANES; j++) {
            const uint64_t p0 = (uint64_t)0xD2511F53u * w[0][j];
            const uint64_t p1 = (uint64_t)0xCD9E8D57u * w[2][j];
            w[0][j] = (uint32_t)(p1 >> 32) ^ w[1][j] ^ k0;
            w[2][j] = (uint32_t)(p0 >> 32) ^ w[3][j] ^ k1;
            w[1][j] = (uint32_t)p1;
            w[3][j] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* Standard normal, or uniform in (-1, 1), numbers of elements GROUP*g .. GROUP*g + GROUP-1. */
AG_CLONES static void group_draw(uint64_t seed, uint32_t site, int64_t g, bool normal,
                                 float v[GROUP])
{
    uint32_t bits[GROUP];
    float u[GROUP];
    group_bits(seed, site, g, bits);
    #pragma omp simd
    for (int i = 0; i < GROUP; i++) u[i] = ag_uniform(bits[i]);
    if (!normal) {
        for (int i = 0; i < GROUP; i++) v[i] = 2 * u[i] - 1;
        return;
    }
    for (int k = 0; k < GROUP; k += 2 * LANES) {
        #pragma omp simd
        for (int j = k; j < k + LANES; j++) {
            float x, y;
            circle(u[j + LANES], &x, &y);
            const float r = sqrtf(-2 * log_small(u[j]));
            v[j] = r * x;
            v[j + LANES] = r * y;
        }
    }
}

static void store(ag_tensor *x, int64_t first, int64_t n, float scale, const float *v)
{
    for (int64_t i = 0; i < n; i++)
        if (x->dtype == AG_F64) ((double *)x->data)[first + i] = (double)(scale * v[i]);
        else ((float *)x->data)[first + i] = scale * v[i];
}

double nn_wave_frequency(int64_t j, int64_t n)
{
    return pow(10000, -2 * (double)j / (double)n);
}

static void waves_fill(ag_tensor *x)
{
    const int64_t half = x->shape.dim[1] / 2;
    #pragma omp parallel for schedule(static) if (x->size > 65536)
    for (int64_t i = 0; i < x->shape.dim[0]; i++)
        for (int64_t j = 0; j < half; j++) {
            const double angle = (double)i * nn_wave_frequency(j, 2 * half);
            const float v[2] = { (float)sin(angle), (float)cos(angle) };
            store(x, 2 * (i * half + j), 2, 1, v);
        }
}

void nn_init_fill(const nn_init *init, uint64_t seed, uint32_t site, ag_tensor *x)
{
    const int64_t groups = (x->size + GROUP - 1) / GROUP;
    if (init->kind == NN_CONSTANT && init->scale == 0) return;
    if (init->kind == NN_WAVES) {
        waves_fill(x);
        return;
    }
    #pragma omp parallel for schedule(static) if (groups > 256)
    for (int64_t g = 0; g < groups; g++) {
        const int64_t left = x->size - g * GROUP;
        float v[GROUP];
        if (init->kind == NN_CONSTANT) for (int i = 0; i < GROUP; i++) v[i] = 1;
        else group_draw(seed, site, g, init->kind == NN_NORMAL, v);
        store(x, g * GROUP, left < GROUP ? left : GROUP, (float)init->scale, v);
    }
}
