#include "optim/kernels.h"

#include "autograd/base/clones.h"

#include <math.h>

#ifdef __SSE__
#include <xmmintrin.h>

enum { FLUSH_RESULTS = 0x8000, FLUSH_INPUTS = 0x0040 };      /* bits of MXCSR */

unsigned opt_tiny_flush(void)
{
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSH_RESULTS | FLUSH_INPUTS);
    return before;
}

void opt_tiny_restore(unsigned before) { _mm_setcsr(before); }
#else
unsigned opt_tiny_flush(void) { return 0; }
void opt_tiny_restore(unsigned before) { (void)before; }
#endif

AG_CLONES void opt_adam_part(const opt_adam *a, int64_t n, float *restrict p, float *restrict g,
                          float *restrict m, float *restrict v)
{
    const opt_adam c = *a;
    #pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float x = c.clip * g[i] + c.l2 * p[i];
        const float mi = c.beta1 * m[i] + c.keep1 * x;
        const float vi = c.beta2 * v[i] + c.keep2 * (x * x);
        m[i] = mi;
        v[i] = vi;
        p[i] = c.shrink * p[i] - c.rate * mi / (c.root * sqrtf(vi) + c.eps);
        g[i] = 0;
    }
}

AG_CLONES void opt_sgd_part(const opt_sgd *s, int64_t n, float *restrict p, float *restrict g,
                            float *restrict m)
{
    const opt_sgd c = *s;
    const float from_g = c.nesterov ? 1 : 0, from_m = c.nesterov ? c.momentum : 1;
    #pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float x = c.clip * g[i] + c.l2 * p[i];
        const float mi = c.momentum * m[i] + x;
        m[i] = mi;
        p[i] -= c.rate * (from_g * x + from_m * mi);
        g[i] = 0;
    }
}

AG_CLONES void opt_ema_part(float decay, float keep, int64_t n, const float *restrict p,
                            float *restrict e)
{
    #pragma omp simd
    for (int64_t i = 0; i < n; i++) e[i] = decay * e[i] + keep * p[i];
}

enum { LANES = 32 };                 /* sums side by side */

AG_CLONES double opt_square_part(int64_t n, const float *x)
{
    double lane[LANES] = { 0 };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    for (int j = 0; i + j < n; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}
