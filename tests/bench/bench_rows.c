/*
 * bench_rows.c -- the elementwise and row kernels against what the machine can do.
 *
 * For kernels that should be bound by memory: GB/s of the bytes that must move, next to a copy of
 * the same size measured in the same run.  For the transcendental maps: ns per element.  Best of
 * several repetitions, because other work on the machine only ever makes a run slower.  TULLE_ISA
 * and OMP_NUM_THREADS apply.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "autograd/kernels.h"

enum { ROWS = 2048, D = 384, FF = 1536, VOCAB = 256, SMALL_VOCAB = 65, REPEAT = 30 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* seconds of the best run of the statement */
#define BEST(ret, statement)                                       \
    do {                                                           \
        (ret) = INFINITY;                                          \
        for (int r_ = 0; r_ < REPEAT; r_++) {                      \
            const double t0_ = now();                              \
            statement;                                             \
            (ret) = fmin((ret), now() - t0_);                      \
        }                                                          \
    } while (0)

static const ag_kernels *K;
static float *a, *b, *c, *d;         /* [ROWS * FF] each */

static void line(const char *what, double bytes, double s, double copy_rate)
{
    printf("%-28s %8.1f us %8.2f GB/s  %5.2f of copy\n", what, s * 1e6, bytes / s * 1e-9,
           bytes / s / copy_rate);
}

/* GB/s of a copy of [ROWS, n] with the same threads: y = 1 * x */
static double copy_rate(int64_t n)
{
    double s;
    BEST(s, K->scale(ROWS * n, 1, a, b, false));
    line("copy", 8.0 * ROWS * (double)n, s, 8.0 * ROWS * (double)n / s);
    return 8.0 * ROWS * (double)n / s;
}

/* Adam's traffic, w -= lr m / (sqrt v + eps): reads w, g, m, v; writes w, m, v */
static void adam_like(int64_t n, float *restrict w, const float *restrict g, float *restrict m,
                      float *restrict v)
{
    #pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        m[i] = 0.9f * m[i] + 0.1f * g[i];
        v[i] = 0.99f * v[i] + 0.01f * g[i] * g[i];
        w[i] -= 1e-3f * m[i] / (sqrtf(v[i]) + 1e-8f);
    }
}

static void bench_rows(int64_t n)
{
    static float gain[FF], bias[FF], mean[ROWS], rstd[ROWS];
    const ag_noise z = { .seed = 1, .step = 2, .site = 3 };
    const double f = 4.0 * ROWS * (double)n;
    double s;
    printf("rows %d x %d\n", ROWS, (int)n);
    const double copy = copy_rate(n);
    BEST(s, K->layernorm_fwd(ROWS, n, 1e-5, a, gain, bias, b, mean, rstd));
    line("layernorm_fwd", 2 * f, s, copy);
    BEST(s, K->layernorm_bwd(ROWS, n, a, gain, mean, rstd, b, c, false, gain, bias));
    line("layernorm_bwd", 3 * f, s, copy);
    BEST(s, K->act_bwd(AG_ACT_NONE, ROWS, n, NULL, b, NULL, bias, true));
    line("column sums", f, s, copy);
    BEST(s, K->act_bwd(AG_ACT_GELU_TANH, ROWS, n, a, b, c, bias, true));
    line("act_bwd gelu_tanh", 3 * f, s, copy);
    BEST(s, K->act_bwd(AG_ACT_GELU_ERF, ROWS, n, a, b, c, bias, true));
    line("act_bwd gelu_erf", 3 * f, s, copy);
    BEST(s, K->act_bwd(AG_ACT_RELU, ROWS, n, a, b, c, bias, true));
    line("act_bwd relu", 3 * f, s, copy);
    BEST(s, K->dropout_fwd(ROWS, n, 0.1, &z, a, b, c));
    line("dropout_fwd with residual", 3 * f, s, copy);
    BEST(s, K->softmax_fwd(ROWS, n, false, a, b));
    line("softmax_fwd", 2 * f, s, copy);
    BEST(s, adam_like(ROWS * n, a, b, c, d));
    line("adam-like loop", 7 * f, s, copy);
}

static void bench_xent(int64_t n)
{
    static int32_t target[ROWS];
    static float lse[ROWS];
    const float one = 1;
    float loss;
    double s;
    for (int i = 0; i < ROWS; i++)
        target[i] = (int32_t)(i % n);
    printf("cross entropy %d x %d\n", ROWS, (int)n);
    const double copy = copy_rate(n), f = 4.0 * ROWS * (double)n;
    BEST(s, K->xent_fwd(ROWS, n, a, target, lse, &loss));
    line("xent_fwd", f, s, copy);
    BEST(s, K->xent_bwd(ROWS, n, a, target, lse, &one, b, false));
    line("xent_bwd", 2 * f, s, copy);
}

static void bench_controller(int64_t n)
{
    static int32_t choice[ROWS * FF];
    ag_controller ctl = { .rows = ROWS, .blocks = FF / n, .n = n, .hard = true,
                          .temperature = 0.1 };
    char what[40];
    double s;
    BEST(s, K->controller_fwd(&ctl, a, b, choice, c));
    snprintf(what, sizeof what, "controller_fwd n = %d", (int)n);
    printf("%-28s %8.1f us %8.3f ns/element\n", what, s * 1e6, s * 1e9 / (ROWS * FF));
    BEST(s, K->controller_bwd(&ctl, c, b, d, false));
    snprintf(what, sizeof what, "controller_bwd n = %d", (int)n);
    printf("%-28s %8.1f us %8.3f ns/element\n", what, s * 1e6, s * 1e9 / (ROWS * FF));
}

static void bench_maps(void)
{
    static const char *const names[] = {
#define AG_UNARY(name, ...) #name,
#include "autograd/unary.def"
#undef AG_UNARY
    };
    const int64_t n = 16384;         /* in the cache, one thread */
    double s;
    printf("maps of %d numbers, one thread\n", (int)n);
    for (int u = 0; u < AG_UNARY_COUNT; u++) {
        printf("%-28s", names[u]);
        BEST(s, K->unary_fwd[u](n, a, b));
        printf(" forward %6.3f ns/element", s * 1e9 / (double)n);
        BEST(s, K->unary_bwd[u](n, a, b, c, d, false));
        printf("  backward %6.3f ns/element\n", s * 1e9 / (double)n);
    }
}

int main(void)
{
    const char *why = NULL;
    K = ag_kernels_best(AG_F32, &why);
    if (!K) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    float **all[] = { &a, &b, &c, &d };
    for (int k = 0; k < 4; k++) {
        *all[k] = aligned_alloc(64, sizeof(float) * ROWS * FF);
        if (!*all[k])
            return 1;
        for (int i = 0; i < ROWS * FF; i++)
            (*all[k])[i] = (float)((i * 2654435761u >> 8) & 0xffff) / 32768.0f + 0.01f;
    }
    printf("%s\n", K->name);
    bench_rows(D);
    bench_rows(FF);
    bench_xent(SMALL_VOCAB);
    bench_xent(VOCAB);
    bench_controller(4);
    bench_controller(16);
    bench_controller(64);
    bench_maps();
    free(a), free(b), free(c), free(d);
    return 0;
}
