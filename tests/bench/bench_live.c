/*
 * bench_live.c -- the sparse feed-forward layer kernel by kernel, beside the dense one.
 *
 *   bench_live [THREADS [train|table|decode]]
 *
 * train:  each kernel of a hard step at d 384, d_ff 1536, N 64, 2048 rows: us a row on one thread,
 *         and the rate of what it must do.
 * table:  forward and backward of the whole layer, controller included, against 1/N of the dense
 *         layer (our own matrix product), for N 4 .. 64.
 * decode: one row, 12 layers in rotation and a different row each time: dense against sparse, with
 *         the bytes that each must read and the read bandwidth of the same minute.
 *
 * Contestants take turns within each repetition; figures are medians.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "autograd/base/clock.h"
#include "autograd/kernels.h"
#include "tests/bench/bench.h"

enum { REPS = 11, LAYERS = 12, TOKENS = 64 };
static const double turn_seconds = 0.01;

static const ag_kernels *kernels;
static int threads;

static float *numbers(int64_t n, float scale)
{
    float *x = aligned_alloc(1 << 21, ((size_t)n * sizeof *x + (1 << 21)) >> 21 << 21);
    if (!x) {
        fprintf(stderr, "bench_live: out of memory\n");
        exit(3);
    }
    madvise(x, (size_t)n * sizeof *x, MADV_HUGEPAGE);        /* as arenas do */
    for (int64_t i = 0; i < n; i++)
        x[i] = (ag_uniform((uint32_t)(i * 2654435761u) ^ (uint32_t)(i >> 7) * 40503u) - 0.5f) *
            scale;
    return x;
}

/* A layer, its weights, and what a step over its rows reads and writes. */
typedef struct layer {
    int64_t rows, d, ff, n, rank;
    ag_live l;
    ag_chooser c;
    float *w1, *w2, *b1, *b2, *c1, *c2;                     /* units are rows of w1 and w2 */
    float *x, *y, *low, *gate, *a, *h;
    float *dy, *dx, *dlow, *dgate, *da, *dw1, *dw2, *db1, *dc1, *dc2, *dcb;
    int32_t *choice;
    void *scratch;
    float *pre, *dpre;                                      /* dense: [rows,ff] */
} layer;

static layer layer_new(int64_t rows, int64_t d, int64_t ff, int64_t n, int64_t rank, bool backward)
{
    const int64_t blocks = ff / n;
    layer y = { .rows = rows, .d = d, .ff = ff, .n = n, .rank = rank };
    y.w1 = numbers(ff * d, 0.1f), y.w2 = numbers(ff * d, 0.1f);
    y.b1 = numbers(ff, 0.0f), y.b2 = numbers(d, 0.1f);
    y.c1 = numbers(d * rank, 0.3f), y.c2 = numbers(rank * ff, 1);
    y.x = numbers(rows * d, 2), y.y = numbers(rows * d, 1);
    y.low = numbers(rows * rank, 1), y.gate = numbers(rows * blocks, 1);
    y.a = numbers(rows * blocks, 1), y.h = numbers(rows * blocks, 1);
    y.choice = (int32_t *)numbers(rows * blocks, 1);
    y.l = (ag_live){ .rows = rows, .d = d, .blocks = blocks, .n = n, .width = 1, .picks = 1,
                     .choice = y.choice };
    y.c = (ag_chooser){ .c = { .rows = rows, .blocks = blocks, .n = n, .hard = true,
                               .temperature = backward ? 1 : 0, .noise = { .seed = 1 } },
                        .rank = rank, .low = y.low, .c2 = y.c2, .gate = AG_GATE_ONE, .picks = 1 };
    y.scratch = numbers((int64_t)(ag_choose_scratch(&y.c, AG_F32) / sizeof(float)), 0);
    y.pre = numbers(rows * ff, 1);
    if (backward) {
        y.dpre = numbers(rows * ff, 1);
        y.dy = numbers(rows * d, 1), y.dx = numbers(rows * d, 1), y.dlow = numbers(rows * rank, 1);
        y.dgate = numbers(rows * blocks, 1), y.da = numbers(rows * blocks, 1);
        y.dw1 = numbers(ff * d, 0), y.dw2 = numbers(ff * d, 0), y.db1 = numbers(ff, 0);
        y.dc1 = numbers(d * rank, 0), y.dc2 = numbers(rank * ff, 0), y.dcb = numbers(ff, 0);
    }
    return y;
}

static void layer_free(layer *y)
{
    free(y->w1), free(y->w2), free(y->b1), free(y->b2), free(y->c1), free(y->c2);
    free(y->x), free(y->y), free(y->low), free(y->gate), free(y->a), free(y->h);
    free(y->choice), free(y->scratch), free(y->pre), free(y->dpre);
    free(y->dy), free(y->dx), free(y->dlow), free(y->dgate), free(y->da), free(y->dw1);
    free(y->dw2), free(y->db1), free(y->dc1), free(y->dc2), free(y->dcb);
}

/* c[m,n] (+)= op(a) op(b), rows of full length */
static void product(bool ta, bool tb, bool acc, int64_t m, int64_t n, int64_t k, const float *a,
                    const float *b, float *c, const float *bias, ag_act act)
{
    kernels->gemm(&(ag_gemm){ .ta = ta, .tb = tb, .acc = acc, .m = m, .n = n, .k = k, .a = a,
                              .lda = ta ? m : k, .b = b, .ldb = tb ? k : n, .c = c, .ldc = n,
                              .bias = bias, .act = act });
}

/* ---- the kernels of a step, in their order ---- */

static void low_fwd(layer *y)
{
    product(false, true, false, y->rows, y->rank, y->d, y->x, y->c1, y->low, NULL, AG_ACT_NONE);
}
static void choose_fwd(layer *y) { kernels->choose_fwd(&y->c, y->choice, y->gate, y->scratch); }
static void dot_fwd(layer *y) { kernels->live_dot(&y->l, y->x, y->w1, y->b1, y->a); }
static void gate_fwd(layer *y) { kernels->gate_fwd(y->rows * y->l.blocks, 1, y->a, NULL, y->h); }
static void sum_fwd(layer *y)
{
    kernels->live_sum(&y->l, y->h, y->w2, y->b2, y->x, y->y, false);
}
static void dot_bwd(layer *y) { kernels->live_dot(&y->l, y->dy, y->w2, NULL, y->da); }
static void gate_bwd(layer *y)
{
    kernels->gate_bwd(y->rows * y->l.blocks, 1, y->a, NULL, y->da, y->da, y->dgate, false);
}
static void grad_w2(layer *y) { kernels->live_grad(&y->l, y->h, y->dy, y->dw2, NULL); }
static void grad_w1(layer *y) { kernels->live_grad(&y->l, y->da, y->x, y->dw1, y->db1); }
static void sum_bwd(layer *y)
{
    kernels->live_sum(&y->l, y->da, y->w1, NULL, NULL, y->dx, false);
}
static void choose_bwd(layer *y)
{
    kernels->choose_bwd(&y->c, y->choice, y->dgate, y->dlow, false, y->dc2, y->dcb, y->scratch);
}
static void low_bwd(layer *y)
{
    product(true, false, true, y->rank, y->d, y->rows, y->dlow, y->x, y->dc1, NULL, AG_ACT_NONE);
    product(false, false, true, y->rows, y->d, y->rank, y->dlow, y->c1, y->dx, NULL, AG_ACT_NONE);
}

static void sparse_fwd(layer *y)
{
    low_fwd(y), choose_fwd(y), dot_fwd(y), gate_fwd(y), sum_fwd(y);
}
static void sparse_bwd(layer *y)
{
    dot_bwd(y), gate_bwd(y), grad_w2(y), grad_w1(y), sum_bwd(y), choose_bwd(y), low_bwd(y);
}

static void dense_fwd(layer *y)
{
    product(false, true, false, y->rows, y->ff, y->d, y->x, y->w1, y->pre, y->b1, AG_ACT_RELU);
    product(false, true, false, y->rows, y->d, y->ff, y->pre, y->w2, y->y, y->b2, AG_ACT_NONE);
}
static void dense_bwd(layer *y)
{
    product(false, false, false, y->rows, y->ff, y->d, y->dy, y->w2, y->dpre, NULL, AG_ACT_NONE);
    kernels->act_bwd(AG_ACT_RELU, y->rows, y->ff, y->pre, y->dpre, y->dpre, y->db1, true);
    product(true, false, true, y->d, y->ff, y->rows, y->dy, y->pre, y->dw2, NULL, AG_ACT_NONE);
    product(true, false, true, y->ff, y->d, y->rows, y->dpre, y->x, y->dw1, NULL, AG_ACT_NONE);
    product(false, false, false, y->rows, y->d, y->ff, y->dpre, y->w1, y->dx, NULL, AG_ACT_NONE);
}

typedef struct part {
    const char *name;
    void (*run)(layer *y);
} part;

static const part parts[] = {
    { "low = x c1", low_fwd }, { "choose_fwd", choose_fwd }, { "live_dot", dot_fwd },
    { "gate_fwd", gate_fwd }, { "live_sum", sum_fwd }, { "live_dot of dy", dot_bwd },
    { "gate_bwd", gate_bwd }, { "live_grad w2", grad_w2 }, { "live_grad w1", grad_w1 },
    { "live_sum to dx", sum_bwd }, { "choose_bwd", choose_bwd }, { "low, backward", low_bwd },
};
enum { PARTS = sizeof parts / sizeof *parts };

/* ---- time ---- */

static double turn(void (*run)(layer *y), layer *y)         /* seconds of a call */
{
    double t = ag_seconds();
    run(y);
    const double one = ag_seconds() - t;
    const int64_t calls = 1 + (int64_t)(turn_seconds / (one + 1e-9));
    t = ag_seconds();
    for (int64_t i = 0; i < calls; i++)
        run(y);
    return (ag_seconds() - t) / (double)calls;
}

/* ---- the three parts ---- */

static void bench_train(int64_t rank)
{
    layer y = layer_new(2048, 384, 1536, 64, rank, true);
    double t[PARTS][REPS], fwd[REPS], bwd[REPS], total = 0;
    sparse_fwd(&y), sparse_bwd(&y);
    for (int r = 0; r < REPS; r++) {
        for (int i = 0; i < PARTS; i++)
            t[i][r] = turn(parts[i].run, &y);
        fwd[r] = turn(dense_fwd, &y);
        bwd[r] = turn(dense_bwd, &y);
        sparse_fwd(&y);
    }
    printf("d 384, d_ff 1536, N 64, rank %lld, 2048 rows, %d threads\n", (long long)rank, threads);
    for (int i = 0; i < PARTS; i++) {
        const double us = bench_median(t[i], REPS) * 1e6 * threads / 2048;
        total += us;
        printf("  %-16s %7.3f us a row and thread\n", parts[i].name, us);
    }
    const double dense =
        (bench_median(fwd, REPS) + bench_median(bwd, REPS)) * 1e6 * threads / 2048;
    printf("  all              %7.3f; dense %.1f; %.1f %% of it, %.1f times as fast\n\n", total,
           dense, 100 * total / dense, dense / total);
}

static void bench_table(int64_t rows, int64_t rank)
{
    static const int64_t sizes[] = { 4, 8, 16, 32, 64 };
    printf("d 384, d_ff 1536, rank %lld, %lld rows, %d threads: us a row; share of dense; times "
           "1/N of dense\n", (long long)rank, (long long)rows, threads);
    for (int i = 0; i < 5; i++) {
        layer y = layer_new(rows, 384, 1536, sizes[i], rank, true);
        double t[4][REPS], m[4];
        void (*const run[4])(layer *) = { dense_fwd, sparse_fwd, dense_bwd, sparse_bwd };
        for (int r = 0; r < REPS; r++)
            for (int k = 0; k < 4; k++)
                t[k][r] = turn(run[k], &y);
        for (int k = 0; k < 4; k++)
            m[k] = bench_median(t[k], REPS) * 1e6 / (double)rows;
        printf("  N %-3lld forward %7.2f -> %6.2f (%5.1f %%, %5.2f)   backward %7.2f -> %6.2f "
               "(%5.1f %%, %5.2f)   both %5.2f times as fast\n", (long long)sizes[i], m[0], m[1],
               100 * m[1] / m[0], m[1] / m[0] * (double)sizes[i], m[2], m[3], 100 * m[3] / m[2],
               m[3] / m[2] * (double)sizes[i], (m[0] + m[2]) / (m[1] + m[3]));
        layer_free(&y);
    }
    printf("\n");
}

static layer ring[LAYERS];
static float *tokens;
static int64_t live_rows;            /* of w2 that were read */

/* Each layer gets a row of its own, so that different units are live. */
static void ring_run(void (*run)(layer *y))
{
    static int64_t at;
    for (int i = 0; i < LAYERS; i++, at++) {
        memcpy(ring[i].x, tokens + at % TOKENS * ring[i].d, (size_t)ring[i].d * sizeof(float));
        run(&ring[i]);
    }
}
static void ring_dense(layer *y) { (void)y, ring_run(dense_fwd); }
static void ring_sparse(layer *y) { (void)y, ring_run(sparse_fwd); }
static void count_live(layer *y)
{
    sparse_fwd(y);
    for (int64_t j = 0; j < y->l.blocks; j++)
        live_rows += y->h[j] != 0;
}

static void bench_decode(int64_t d, int64_t ff, int64_t rank)
{
    for (int i = 0; i < LAYERS; i++)
        ring[i] = layer_new(1, d, ff, 64, rank, false);
    tokens = numbers(TOKENS * d, 2);
    double t[2][REPS], bandwidth[REPS];
    float *memory = numbers(LAYERS * 2 * ff * d, 1);
    live_rows = 0;
    for (int i = 0; i < TOKENS; i++)
        ring_run(count_live);
    const double live = (double)live_rows / (TOKENS * LAYERS);
    for (int r = 0; r < REPS; r++) {
        bandwidth[r] = bench_read(memory, LAYERS * 2 * ff * d);
        t[0][r] = turn(ring_dense, NULL) / LAYERS;
        t[1][r] = turn(ring_sparse, NULL) / LAYERS;
    }
    const double dense = bench_median(t[0], REPS), sparse = bench_median(t[1], REPS),
        top = bench_median(bandwidth, REPS),
        dense_bytes = 8.0 * (double)(ff * d),
        sparse_bytes = 4.0 * ((double)(rank * (d + ff) + ff / 64 * d) + live * (double)d);
    printf("decode d %-5lld d_ff %-5lld rank %-3lld dense %8.2f us %6.1f GB/s   sparse %7.2f us "
           "%6.1f GB/s (%.0f kB)   %5.1f times as fast; read bandwidth %.1f GB/s\n", (long long)d,
           (long long)ff, (long long)rank, dense * 1e6, dense_bytes / dense * 1e-9, sparse * 1e6,
           sparse_bytes / sparse * 1e-9, sparse_bytes * 1e-3, dense / sparse, top * 1e-9);
    for (int i = 0; i < LAYERS; i++)
        layer_free(&ring[i]);
    free(tokens), free(memory);
}

int main(int argc, char **argv)
{
    static const int64_t ranks[] = { 64, 24, 6 };
    const char *why = NULL, *what = argc > 2 ? argv[2] : "";
    kernels = ag_kernels_best(AG_F32, &why);
    if (!kernels) {
        fprintf(stderr, "bench_live: %s\n", why);
        return 2;
    }
    threads = argc > 1 ? atoi(argv[1]) : 1;
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    printf("table %s\n", kernels->name);
    for (int i = 0; i < 3 && (!*what || !strcmp(what, "train")); i++)
        bench_train(ranks[i]);
    if (!*what || !strcmp(what, "table")) {
        bench_table(2048, 24);
        bench_table(1, 24);
    }
    for (int i = 0; i < 3 && (!*what || !strcmp(what, "decode")); i++) {
        bench_decode(384, 1536, ranks[i]);
        bench_decode(1024, 4096, ranks[i]);
    }
    return 0;
}
