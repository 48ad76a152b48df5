/*
 * scan_tmpl.c -- the scan of a simple recurrent unit of one instruction set (ops/sru.c has the
 * formulas): a task is a vector of channels of one sequence, which walks along time.
 */
#include "autograd/cpu/fast.h"
#include "autograd/cpu/sums.h"

#define SKIP 1.73205080756887729f    /* sqrt(3) */

/* Positions times channels from which threads are worth it: two sigmoids each. */
enum { SCAN_PARALLEL_FROM = AG_PARALLEL_FROM / 8 };

/* z, x, c, h: of the first position of the `k` channels, at most a vector */
static void scan_strip(int64_t t, int64_t n, int64_t k, const float *z, const float *x, vf state,
                       float *c, float *h)
{
    for (int64_t i = 0; i < t; i++, z += 3 * n, x += n, c += n, h += n) {
        const vf r = vsigmoid(vload_to(z, k)), f = vsigmoid(vload_to(z + n, k));
        const vf y = vload_to(z + 2 * n, k), skip = vload_to(x, k) * SKIP;
        state = vfma(f, state - y, y);
        vstore_to(c, state, k);
        vstore_to(h, vfma(r, state - skip, skip), k);
    }
}

void AG_NAME(sru_fwd)(int64_t batch, int64_t t, int64_t n, const void *pz, const void *px,
                      const void *c0, void *pc, void *ph)
{
    const int64_t strips = (n + VL - 1) / VL;
    #pragma omp parallel for schedule(static) if (batch * t * n >= SCAN_PARALLEL_FROM)
    for (int64_t task = 0; task < batch * strips; task++) {
        const int64_t b = task / strips, j = task % strips * VL, at = b * t * n + j;
        const vf state = c0 ? vload_to((const float *)c0 + b * n + j, n - j) : vset(0);
        scan_strip(t, n, n - j, (const float *)pz + 3 * b * t * n + j, (const float *)px + at,
                   state, (float *)pc + at, (float *)ph + at);
    }
}

static void put_vector(float *y, bool acc, vf v, int64_t k)
{
    vstore_to(y, acc ? vload_to(y, k) + v : v, k);
}

typedef struct scan_grad {           /* of the first position; dz or dx may be NULL */
    const float *z, *x, *c, *dh;
    float *dz, *dx;
    bool   acc_z, acc_x;
} scan_grad;

static void scan_strip_back(int64_t t, int64_t n, int64_t k, const scan_grad *s)
{
    vf carry = vset(0);
    for (int64_t i = t - 1; i >= 0; i--) {
        const float *z = s->z + 3 * i * n;
        const vf r = vsigmoid(vload_to(z, k)), f = vsigmoid(vload_to(z + n, k));
        const vf y = vload_to(z + 2 * n, k), skip = vload_to(s->x + i * n, k) * SKIP;
        const vf before = i ? vload_to(s->c + (i - 1) * n, k) : vset(0);
        const vf dh = vload_to(s->dh + i * n, k), g = vfma(r, dh, carry), rest = 1.0f - f;
        carry = f * g;
        if (s->dx)
            put_vector(s->dx + i * n, s->acc_x, (1.0f - r) * SKIP * dh, k);
        if (!s->dz)
            continue;
        float *dz = s->dz + 3 * i * n;
        put_vector(dz, s->acc_z, dh * (vload_to(s->c + i * n, k) - skip) * (r * (1.0f - r)), k);
        put_vector(dz + n, s->acc_z, g * (before - y) * (f * rest), k);
        put_vector(dz + 2 * n, s->acc_z, g * rest, k);
    }
}

void AG_NAME(sru_bwd)(int64_t batch, int64_t t, int64_t n, const void *z, const void *x,
                      const void *c, const void *dh, void *dz, bool acc_z, void *dx, bool acc_x)
{
    const int64_t strips = (n + VL - 1) / VL;
    #pragma omp parallel for schedule(static) if (batch * t * n >= SCAN_PARALLEL_FROM)
    for (int64_t task = 0; task < batch * strips; task++) {
        const int64_t b = task / strips, j = task % strips * VL, at = b * t * n + j;
        const scan_grad s = { (const float *)z + 3 * b * t * n + j, (const float *)x + at,
                              (const float *)c + at, (const float *)dh + at,
                              dz ? (float *)dz + 3 * b * t * n + j : NULL,
                              dx ? (float *)dx + at : NULL, acc_z, acc_x };
        scan_strip_back(t, n, n - j, &s);
    }
}
