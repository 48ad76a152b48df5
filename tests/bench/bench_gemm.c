/*
 * bench_gemm.c -- the matrix product beside oneDNN and OpenBLAS, and the peak of the machine.
 *
 *   bench_gemm [THREADS [M ...]]
 *
 * Five layer shapes (N, K), three forms: forward y[M,N] = x w^T, input gradient dx[M,K] = dy w,
 * weight gradient dw[N,K] = dy^T x.  Contestants take turns within each repetition, so that a
 * noisy neighbour hits all of them; figures are medians, with the distance between the quartiles
 * in percent.  Below M = 64 only forward is run. TULLE_HAVE_DNNL and TULLE_HAVE_OPENBLAS say
 * which peers are linked; OPENBLAS_CORETYPE must not be set.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef TULLE_HAVE_DNNL
#include <dnnl.h>
#endif
#ifdef TULLE_HAVE_OPENBLAS
#include <cblas.h>
#endif

#include "autograd/base/clock.h"
#include "autograd/kernels.h"
#include "tests/bench/bench.h"

enum { REPS = 15, PEERS = 3, SUMS = 12, FORMS = 3, SHAPES = 5 };
static const double turn_seconds = 0.01;
static const int64_t shapes[SHAPES][2] = {
    { 1152, 384 }, { 384, 384 }, { 1536, 384 }, { 384, 1536 }, { 65, 384 }
};
static const char *const form_names[FORMS] = { "forward", "dx", "dw" };

static const ag_kernels *kernels;

static void ours(const ag_gemm *g) { kernels->gemm(g); }

#ifdef TULLE_HAVE_DNNL
static void onednn(const ag_gemm *g)
{
    dnnl_sgemm(g->ta ? 'T' : 'N', g->tb ? 'T' : 'N', g->m, g->n, g->k, 1, g->a, g->lda, g->b,
               g->ldb, 0, g->c, g->ldc);
}
#endif

#ifdef TULLE_HAVE_OPENBLAS
static void openblas(const ag_gemm *g)
{
    cblas_sgemm(CblasRowMajor, g->ta ? CblasTrans : CblasNoTrans, g->tb ? CblasTrans : CblasNoTrans,
                (int)g->m, (int)g->n, (int)g->k, 1, g->a, (int)g->lda, g->b, (int)g->ldb, 0, g->c,
                (int)g->ldc);
}
#endif

typedef struct peer {
    const char *name;
    void (*run)(const ag_gemm *g);
    bool own_threads;                /* leaves threads spinning for a while after a call */
} peer;

static const peer peers[] = {
    { "tulle", ours, false },
#ifdef TULLE_HAVE_DNNL
    { "oneDNN", onednn, false },
#endif
#ifdef TULLE_HAVE_OPENBLAS
    { "OpenBLAS", openblas, true },
#endif
};
enum { N_PEERS = sizeof peers / sizeof *peers };

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static double fma_avx512(int64_t n)
{
    __m512 s[SUMS], x = _mm512_set1_ps(0.5f);
    for (int i = 0; i < SUMS; i++)
        s[i] = _mm512_set1_ps((float)i);
    for (int64_t k = 0; k < n; k++)
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++)
            s[i] = _mm512_fmadd_ps(s[i], x, x);
    for (int i = 1; i < SUMS; i++)
        s[0] = _mm512_add_ps(s[0], s[i]);
    volatile float keep = s[0][0];
    (void)keep;
    return (double)n * SUMS * 32;
}

__attribute__((target("avx2,fma"))) static double fma_avx2(int64_t n)
{
    __m256 s[SUMS], x = _mm256_set1_ps(0.5f);
    for (int i = 0; i < SUMS; i++)
        s[i] = _mm256_set1_ps((float)i);
    for (int64_t k = 0; k < n; k++)
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++)
            s[i] = _mm256_fmadd_ps(s[i], x, x);
    for (int i = 1; i < SUMS; i++)
        s[0] = _mm256_add_ps(s[0], s[i]);
    volatile float keep = s[0][0];
    (void)keep;
    return (double)n * SUMS * 16;
}
#endif

/* Operations per second of multiply-adds between registers, all threads; 0 where not known. */
static double peak_turn(void)
{
    double flop = 0;
    const double t = ag_seconds();
#pragma omp parallel reduction(+ : flop)
    {
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx512f"))
            flop += fma_avx512(500000);
        else if (__builtin_cpu_supports("fma"))
            flop += fma_avx2(500000);
#endif
    }
    return flop / (ag_seconds() - t);
}

static float *numbers(int64_t n)
{
    float *x = aligned_alloc(1 << 21, ((size_t)n * sizeof *x + (1 << 21)) >> 21 << 21);
    if (!x) {
        fprintf(stderr, "bench_gemm: out of memory\n");
        exit(3);
    }
    madvise(x, (size_t)n * sizeof *x, MADV_HUGEPAGE);        /* as arenas do */
    for (int64_t i = 0; i < n; i++)
        x[i] = ag_uniform((uint32_t)(i * 2654435761u)) - 0.5f;
    return x;
}

/* The product of a form; y holds dy, x holds the input, w the weights: dx and dw get memory of
 * their own. */
static ag_gemm product(int form, int64_t m, int64_t n, int64_t k, float *const x[2],
                       float *const w[2], float *const y[2])
{
    switch (form) {
    case 0:  return (ag_gemm){ .tb = true, .m = m, .n = n, .k = k, .a = x[0], .lda = k, .b = w[0],
                               .ldb = k, .c = y[1], .ldc = n };
    case 1:  return (ag_gemm){ .m = m, .n = k, .k = n, .a = y[0], .lda = n, .b = w[0], .ldb = k,
                               .c = x[1], .ldc = k };
    default: return (ag_gemm){ .ta = true, .m = n, .n = k, .k = m, .a = y[0], .lda = n, .b = x[0],
                               .ldb = k, .c = w[1], .ldc = k };
    }
}

static void settle(void)
{
    const struct timespec pause = { 0, 40000000 };
    nanosleep(&pause, NULL);
}

/* Seconds of a call, over about turn_seconds, after one call to warm up. */
static double turn(const peer *p, const ag_gemm *g)
{
    p->run(g);
    double t = ag_seconds();
    p->run(g);
    const double one = ag_seconds() - t;
    const int64_t calls = 1 + (int64_t)(turn_seconds / one);
    t = ag_seconds();
    for (int64_t i = 0; i < calls; i++)
        p->run(g);
    t = (ag_seconds() - t) / (double)calls;
    if (p->own_threads)
        settle();
    return t;
}

static double spread(const double sorted[REPS])             /* percent of the median */
{
    return 100 * (sorted[3 * REPS / 4] - sorted[REPS / 4]) / sorted[REPS / 2];
}

static void bench_m(int64_t m, float *const x[2], float *const w[2], float *const y[2])
{
    double total[PEERS] = { 0 }, flop = 0, peak[REPS * FORMS * SHAPES];
    int n_peak = 0;
    const int forms = m < 64 ? 1 : FORMS;
    for (int s = 0; s < SHAPES; s++)
        for (int form = 0; form < forms; form++) {
            const int64_t n = shapes[s][0], k = shapes[s][1];
            const ag_gemm g = product(form, m, n, k, x, w, y);
            double t[PEERS][REPS];
            for (int r = 0; r < REPS; r++) {
                peak[n_peak++] = peak_turn();
                for (int p = 0; p < N_PEERS; p++)
                    t[(p + r) % N_PEERS][r] = turn(&peers[(p + r) % N_PEERS], &g);
            }
            const double work = 2.0 * (double)m * (double)n * (double)k;
            printf("M %-6lld N %-5lld K %-5lld %-8s", (long long)m, (long long)n, (long long)k,
                   form_names[form]);
            for (int p = 0; p < N_PEERS; p++) {
                const double mid = bench_median(t[p], REPS);
                printf("  %s %7.1f (%3.0f %%)", peers[p].name, work / mid * 1e-9, spread(t[p]));
                total[p] += mid;
            }
            if (m < 64)
                printf("  %.1f GB/s of weights",
                       (double)(n * k) * sizeof(float) / bench_median(t[0], REPS) * 1e-9);
            printf("\n");
            fflush(stdout);
            flop += work;
        }
    qsort(peak, (size_t)n_peak, sizeof *peak, bench_by_value);
    const double top = peak[n_peak / 2];
    printf("M %-6lld all shapes, GFLOP/s:", (long long)m);
    for (int p = 0; p < N_PEERS; p++)
        printf("  %s %.1f", peers[p].name, flop / total[p] * 1e-9);
    for (int p = 1; p < N_PEERS; p++)
        printf("  tulle/%s %.3f", peers[p].name, total[p] / total[0]);
    printf("  peak %.1f: %.1f %% of it\n\n", top * 1e-9, top > 0 ? 100 * flop / total[0] / top : 0);
}

/* bench_gemm --peak: GFLOP/s of register-only multiply-adds on all threads, the best of ten
 * turns */
static int print_peak(void)
{
    double best = 0;
    for (int i = 0; i < 10; i++) {
        const double p = peak_turn();
        best = p > best ? p : best;
    }
    printf("%.1f\n", best * 1e-9);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--peak"))
        return print_peak();
    static const int64_t usual[] = { 1, 4, 16, 64, 1024, 4096, 16384 };
    const int n_usual = sizeof usual / sizeof *usual;
    const char *why = NULL;
    kernels = ag_kernels_best(AG_F32, &why);
    if (!kernels) {
        fprintf(stderr, "bench_gemm: %s\n", why);
        return 2;
    }
    const int threads = argc > 1 ? atoi(argv[1]) : 2;
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
#ifdef TULLE_HAVE_OPENBLAS
    openblas_set_num_threads(threads);
#endif
    int64_t most = 0;
    for (int i = 0; i < (argc > 2 ? argc - 2 : n_usual); i++) {
        const int64_t m = argc > 2 ? atoll(argv[i + 2]) : usual[i];
        most = m > most ? m : most;
    }
    float *const x[2] = { numbers(most * 1536), numbers(most * 1536) };
    float *const y[2] = { numbers(most * 1536), numbers(most * 1536) };
    float *const w[2] = { numbers(1536 * 384), numbers(1536 * 384) };
    printf("table %s, %d threads, medians of %d turns (quartile distance)\n", kernels->name,
           threads, REPS);
    for (int i = 0; i < (argc > 2 ? argc - 2 : n_usual); i++)
        bench_m(argc > 2 ? atoll(argv[i + 2]) : usual[i], x, w, y);
    for (int i = 0; i < 2; i++) {
        free(x[i]);
        free(y[i]);
        free(w[i]);
    }
    return 0;
}
