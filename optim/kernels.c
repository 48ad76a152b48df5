#include "optim/kernels.h"

#include "autograd/base/clones.h"

#include <math.h>

AG_CLONES void opt_adam_part(const ag_adam *a, int64_t n, float *restrict p, float *restrict g,
                             float *restrict m, float *restrict v)
{
    const ag_adam c = *a;
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

AG_CLONES void opt_sgd_part(const ag_sgd *s, int64_t n, float *restrict p, float *restrict g,
                            float *restrict m)
{
    const ag_sgd c = *s;
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

/* Their sum, as a tree. */
static inline double sum_lanes(double *lane)
{
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

AG_CLONES double opt_square_part(int64_t n, const float *x)
{
    double lane[LANES] = { 0 };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    for (int j = 0; i + j < n; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    return sum_lanes(lane);
}

AG_CLONES void opt_square_sums(int64_t rows, int64_t cols, const float *restrict g,
                               double *restrict row_sum, double *restrict col_sum)
{
    for (int64_t j = 0; j < cols; j++) col_sum[j] = 0;
    for (int64_t r = 0; r < rows; r++, g += cols) {
        double lane[LANES] = { 0 };
        int64_t i = 0;
        for (; i + LANES <= cols; i += LANES)
            for (int j = 0; j < LANES; j++) {
                const double x = (double)g[i + j];
                lane[j] += x * x;
                col_sum[i + j] += x * x;
            }
        for (int j = 0; i + j < cols; j++) {
            const double x = (double)g[i + j];
            lane[j] += x * x;
            col_sum[i + j] += x * x;
        }
        row_sum[r] = sum_lanes(lane);
    }
}

AG_CLONES double opt_factored_square(int64_t rows, int64_t cols, const float *g, const float *row,
                                     const float *col)
{
    double lane[LANES] = { 0 };
    for (int64_t r = 0; r < rows; r++, g += cols) {
        const float by = row[r];
        int64_t i = 0;
        for (; i + LANES <= cols; i += LANES)
            for (int j = 0; j < LANES; j++) {
                const double y = (double)(g[i + j] * by * col[i + j]);
                lane[j] += y * y;
            }
        for (int j = 0; i + j < cols; j++) {
            const double y = (double)(g[i + j] * by * col[i + j]);
            lane[j] += y * y;
        }
    }
    return sum_lanes(lane);
}

AG_CLONES void opt_factored_part(const ag_factored_rate *f, int64_t rows, int64_t cols,
                                 const float *restrict row, const float *restrict col,
                                 float *restrict p, float *restrict g, float *restrict m)
{
    const ag_factored_rate c = *f;
    for (int64_t r = 0; r < rows; r++, p += cols, g += cols, m += m ? cols : 0) {
        const float by = row[r];
        if (m) {
            #pragma omp simd
            for (int64_t j = 0; j < cols; j++) {
                m[j] = c.momentum * m[j] + c.keep * (c.rate * (g[j] * by * col[j]));
                p[j] = c.shrink * p[j] - m[j];
                g[j] = 0;
            }
        } else {
            #pragma omp simd
            for (int64_t j = 0; j < cols; j++) {
                p[j] = c.shrink * p[j] - c.rate * (g[j] * by * col[j]);
                g[j] = 0;
            }
        }
    }
}
