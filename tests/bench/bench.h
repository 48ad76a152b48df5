/*
 * bench.h -- what the benchmarks share: medians, and the bandwidth of reading.
 */
#ifndef TESTS_BENCH_H
#define TESTS_BENCH_H

#include <stdint.h>
#include <stdlib.h>

#include "autograd/base/clock.h"

static inline int bench_by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Of v[n], which is sorted by it. */
static inline double bench_median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, bench_by_value);
    return v[n / 2];
}

/* Bytes per second of all threads, reading n floats once. */
static inline double bench_read(const float *x, int64_t n)
{
    double sum = 0;
    const double t = ag_seconds();
#pragma omp parallel for reduction(+ : sum) schedule(static)
    for (int64_t i = 0; i < n; i += 4096) {
        float s[64] = { 0 };
        for (int64_t j = i; j < i + 4096 && j + 64 <= n; j += 64)
            for (int64_t l = 0; l < 64; l++)
                s[l] += x[j + l];
        sum += (double)s[0] + (double)s[63];
    }
    volatile double keep = sum;
    (void)keep;
    return (double)n * sizeof *x / (ag_seconds() - t);
}

#endif
