/*
 * modules_tmpl.c -- the kernels of modular layers of one instruction set: rows from one stride to
 * another, products of every pair of rows and their gradients.
 *
 * Copies and products go to the threads by rows.  Their gradients go by columns: a thread walks
 * down all pairs of rows with a strip of columns, so dy is read once and every sum has one owner.
 */
#include "autograd/cpu/fast.h"
#include "autograd/cpu/sums.h"

void AG_NAME(copy_rows)(int64_t m, int64_t n, const void *px, int64_t ldx, void *py, int64_t ldy,
                        bool acc)
{
    #pragma omp parallel for schedule(static) if (m * n >= AG_PARALLEL_FROM)
    for (int64_t i = 0; i < m; i++) {
        const float *x = (const float *)px + i * ldx;
        float *y = (float *)py + i * ldy;
        if (acc)
            FOR_VECTORS(j, n) vstore_to(y + j, vload_to(y + j, n - j) + vload_to(x + j, n - j),
                                        n - j);
        else
            memcpy(y, x, (size_t)n * sizeof *y);
    }
}

void AG_NAME(outer_fwd)(int64_t a, int64_t b, int64_t n, const void *pp, const void *pq, void *py)
{
    const float *p = pp, *q = pq;
    float *y = py;
    #pragma omp parallel for schedule(static) if (a * b * n >= AG_PARALLEL_FROM)
    for (int64_t r = 0; r < a * b; r++) {
        const float *pr = p + r / b * n, *qr = q + r % b * n;
        FOR_VECTORS(j, n)
            vstore_to(y + r * n + j, vload_to(pr + j, n - j) * vload_to(qr + j, n - j), n - j);
    }
}

/* The gradients of `k` columns, at most a vector; dp sums over runs of rows of q, then runs. */
static void outer_strip(int64_t a, int64_t b, int64_t n, int64_t k, const float *p, const float *q,
                        const float *dy, float *dp, float *dq)
{
    for (int64_t i = 0; i < a; i++) {
        const vf pi = vload_to(p + i * n, k);
        vtree t;
        vtree_start(&t);
        for (int64_t j0 = 0; j0 < b; j0 += RUN) {
            vf sum = { 0 };
            for (int64_t j = j0; j < b && j < j0 + RUN; j++) {
                const vf d = vload_to(dy + (i * b + j) * n, k);
                sum += d * vload_to(q + j * n, k);
                if (dq)
                    vstore_to(dq + j * n, vload_to(dq + j * n, k) + d * pi, k);
            }
            vtree_add(&t, sum);
        }
        if (dp)
            vstore_to(dp + i * n, vload_to(dp + i * n, k) + vtree_lanes(&t), k);
    }
}

void AG_NAME(outer_bwd)(int64_t a, int64_t b, int64_t n, const void *pp, const void *pq,
                        const void *pdy, void *pdp, void *pdq)
{
    const float *p = pp, *q = pq, *dy = pdy;
    float *dp = pdp, *dq = pdq;
    #pragma omp parallel for schedule(static) if (a * b * n >= AG_PARALLEL_FROM)
    for (int64_t j = 0; j < n; j += VL)
        outer_strip(a, b, n, n - j, p + j, q + j, dy + j, dp ? dp + j : NULL, dq ? dq + j : NULL);
}
