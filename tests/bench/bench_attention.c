/*
 * bench_attention.c -- attention against the peak of the machine, both measured in the same minute.
 *
 * Operations count unmasked scores only: 2 products forward, 5 backward.  Each figure is the best
 * of several turns, with a turn of the peak between them.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#include "autograd/base/clock.h"
#include "autograd/kernels.h"
#include "tests/bench/bench.h"

enum { TURNS = 7, SUMS = 16 };

static int n_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

/* ---- ceilings ---- */

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static double fma_avx512(int64_t n)       /* operations */
{
    __m512 s[SUMS], x = _mm512_set1_ps(0.5f);
    for (int i = 0; i < SUMS; i++)
        s[i] = _mm512_set1_ps((float)i);
    for (int64_t k = 0; k < n; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++)
            s[i] = _mm512_fmadd_ps(s[i], x, x);
    }
    for (int i = 1; i < SUMS; i++)
        s[0] += s[i];
    volatile float keep = s[0][0];
    (void)keep;
    return (double)n * SUMS * 32;
}

__attribute__((target("avx2,fma"))) static double fma_avx2(int64_t n)
{
    __m256 s[SUMS - 4], x = _mm256_set1_ps(0.5f);
    for (int i = 0; i < SUMS - 4; i++)
        s[i] = _mm256_set1_ps((float)i);
    for (int64_t k = 0; k < n; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < SUMS - 4; i++)
            s[i] = _mm256_fmadd_ps(s[i], x, x);
    }
    for (int i = 1; i < SUMS - 4; i++)
        s[0] += s[i];
    volatile float keep = s[0][0];
    (void)keep;
    return (double)n * (SUMS - 4) * 16;
}
#endif

static double fma_any(int64_t n)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return fma_avx512(n);
    if (__builtin_cpu_supports("fma"))
        return fma_avx2(n);
#endif
    volatile float keep = 1;
    for (int64_t k = 0; k < n; k++)
        keep = keep * 0.5f + 0.5f;
    return (double)n * 2;
}

static double peak_turn(void)        /* operations per second of all threads */
{
    double flop = 0;
    const double t = ag_seconds();
#pragma omp parallel reduction(+ : flop)
    flop += fma_any(1000000);
    return flop / (ag_seconds() - t);
}

/* ---- attention ---- */

typedef struct job {
    ag_attention a;
    ag_attention_grad g;
} job;

static float *numbers(int64_t n)
{
    float *x = aligned_alloc(1 << 21, ((size_t)n * sizeof *x + (1 << 21)) >> 21 << 21);
    if (!x) {
        fprintf(stderr, "bench_attention: out of memory\n");
        exit(3);
    }
    madvise(x, (size_t)n * sizeof *x, MADV_HUGEPAGE);        /* as arenas do */
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++)
        x[i] = ag_uniform((uint32_t)(i * 2654435761u)) - 0.5f;
    return x;
}

static void job_init(job *w, int64_t batch, int64_t tq, int64_t tk, int64_t heads, int64_t d,
                     double drop)
{
    const int64_t c = heads * d, row = 3 * c;
    float *qkv = numbers(batch * tk * row), *grad = numbers(batch * tk * row);
    w->a = (ag_attention){ .batch = batch, .heads = heads, .tq = tq, .tk = tk, .d_qk = d, .d_v = d,
                           .causal = true, .q_pos0 = tk - tq, .scale = 1 / sqrt((double)d),
                           .drop = drop,
                           .noise = { 1, 2, 3, 0 }, .q = qkv, .q_row = row, .q_batch = tk * row,
                           .k = qkv + c, .k_row = row, .k_batch = tk * row, .v = qkv + 2 * c,
                           .v_row = row, .v_batch = tk * row, .o = numbers(batch * tq * c),
                           .o_row = c, .o_batch = tq * c, .lse = numbers(batch * heads * tq) };
    w->g = (ag_attention_grad){ .do_ = numbers(batch * tq * c), .dq = grad, .dk = grad + c,
                                .dv = grad + 2 * c, .delta = numbers(batch * heads * tq) };
}

static void job_free(job *w)
{
    free((void *)(uintptr_t)w->a.q);
    free(w->a.o);
    free(w->a.lse);
    free((void *)(uintptr_t)w->g.do_);
    free(w->g.dq);
    free(w->g.delta);
}

/* seconds a call */
static double turn(const ag_kernels *k, const job *w, bool forward, bool backward)
{
    double t = ag_seconds(), spent;
    int n = 0;
    do {
        if (forward)
            k->attention_fwd(&w->a);
        if (backward)
            k->attention_bwd(&w->a, &w->g);
        n++;
    } while ((spent = ag_seconds() - t) < 0.05);
    return spent / n;
}

static void bench_training(const ag_kernels *k, int64_t batch, int64_t t, int64_t heads, int64_t d,
                           double drop)
{
    job w;
    job_init(&w, batch, t, t, heads, d, drop);
    const double pairs = (double)(batch * heads) * (double)(t * (t + 1)) / 2,
        unit = 2 * pairs * (double)d;
    double best[3] = { INFINITY, INFINITY, INFINITY }, peak = 0;
    for (int i = 0; i < TURNS; i++) {
        peak = fmax(peak, peak_turn());
        for (int part = 0; part < 3; part++)
            best[part] = fmin(best[part], turn(k, &w, part != 1, part != 0));
    }
    printf("%-7s B %2d T %4d H %d d %d drop %.1f |", k->name, (int)batch, (int)t, (int)heads,
           (int)d, drop);
    for (int part = 0; part < 3; part++) {
        const double rate = unit * (const int[]){ 2, 5, 7 }[part] / best[part];
        printf(" %s %6.1f GFLOP/s %5.1f %% |", (const char *[]){ "fwd", "bwd", "both" }[part],
               rate * 1e-9, 100 * rate / peak);
    }
    printf(" peak %.1f, %.3f ms\n", peak * 1e-9, best[2] * 1e3);
    fflush(stdout);
    job_free(&w);
}

static void bench_decoding(const ag_kernels *k, int64_t batch, int64_t tq, int64_t tk,
                           int64_t heads, int64_t d)
{
    job w;
    job_init(&w, batch, tq, tk, heads, d, 0);
    w.a.k_row = w.a.v_row = heads * d;           /* the cache: k and v each [batch, tk, heads*d] */
    w.a.k_batch = w.a.v_batch = tk * heads * d;
    w.a.v = (const float *)w.a.k + batch * tk * heads * d;
    w.a.q = w.g.dq;
    const int64_t n = 2 * batch * tk * heads * d;
    double best = INFINITY, read = 0;
    const float *cache = w.a.k;
    for (int i = 0; i < TURNS; i++) {
        read = fmax(read, bench_read(cache, n));
        best = fmin(best, turn(k, &w, true, false));
    }
    const double rate = (double)n * 4 / best;
    printf("%-7s decode B %2d tq %2d tk %5d H %d d %d | %.1f us, %.1f GB/s of %.1f for plain "
           "reading of %.0f MB\n", k->name, (int)batch, (int)tq, (int)tk, (int)heads, (int)d,
           best * 1e6, rate * 1e-9, read * 1e-9, (double)n * 4e-6);
    fflush(stdout);
    free(w.a.o);
    free(w.a.lse);
    free((void *)(uintptr_t)w.g.do_);
    free(w.g.dq);
    free(w.g.delta);
    free((void *)(uintptr_t)(cache - heads * d));
}

int main(void)
{
    const char *why = "";
    const ag_kernels *k = ag_kernels_best(AG_F32, &why);
    if (!k) {
        fprintf(stderr, "bench_attention: %s\n", why);
        return 1;
    }
    printf("%d threads\n", n_threads());
    bench_training(k, 64, 256, 6, 64, 0);
    bench_training(k, 64, 256, 6, 64, 0.2);
    bench_training(k, 12, 64, 4, 32, 0);
    bench_training(k, 12, 64, 4, 32, 0.2);
    for (int64_t t = 1024; t <= 8192; t *= 2)
        bench_training(k, 1, t, 8, 64, 0);
    bench_training(k, 1, 1024, 1, 64, 0);
    for (int64_t tq = 1; tq <= 64; tq *= 4)
        bench_decoding(k, 1, tq, 8192, 8, 64);
    bench_decoding(k, 1, 1, 8192, 1, 64);
    bench_decoding(k, 1, 1, 256, 6, 64);
    bench_decoding(k, 16, 1, 8192, 8, 64);
    return 0;
}
