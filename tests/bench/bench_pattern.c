/*
 * bench_pattern.c -- attention under a pattern of keys beside dense attention, in turns.
 *
 *     bench_pattern [LONGEST [SHORTEST [NAME]]]     n = SHORTEST (1024), 2048, ... LONGEST (16384),
 *                                                   patterns called NAME... alone
 *
 * 8 heads of width 64, forward and backward, one sequence; stride 128 and summaries of 32, as the
 * paper's enwik8 model.  Density counts pairs (query, key) against the causal triangle; the ideal
 * is 1 / density.  Ratios are medians over turns in which every pattern runs once.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include "autograd/base/arena.h"
#include "autograd/base/clock.h"
#include "autograd/kernels.h"
#include "tests/bench/bench.h"

enum { HEADS = 8, D = 64, STRIDE = 128, WIDTH = 32, CLASSES = STRIDE / WIDTH, TURNS = 5 };

static const struct arm {
    const char *name;
    int count;
    ag_pattern_layout layout[CLASSES];
} arms[] = {
#define LOCAL { .kind = AG_FACTOR_LOCAL, .stride = STRIDE }
#define STRIDED { .kind = AG_FACTOR_STRIDED, .stride = STRIDE }
#define CHUNK { .kind = AG_FACTOR_CHUNK, .stride = STRIDE }
#define SUMMARY(i) { .kind = AG_FACTOR_SUMMARY, .stride = STRIDE, .width = WIDTH, .index = i }
#define FIXED(i) { .n_factors = 2, .factor = { CHUNK, SUMMARY(i) } }
    { "dense", 0, { { 0 } } },
    { "local", 1, { { .n_factors = 1, .factor = { LOCAL } } } },
    { "strided", 1, { { .n_factors = 1, .factor = { STRIDED } } } },
    { "local + strided", 1, { { .n_factors = 2, .factor = { LOCAL, STRIDED } } } },
    { "fixed, distinct", CLASSES, { FIXED(0), FIXED(1), FIXED(2), FIXED(3) } },
    { "fixed, c = 8", 1, { { .n_factors = 2, .factor = { CHUNK,
        { .kind = AG_FACTOR_SUMMARY, .stride = STRIDE, .width = 8 } } } } },
};
enum { ARMS = sizeof arms / sizeof *arms };

typedef struct work {
    ag_attention a;
    ag_attention_grad g;
    float *memory;
    size_t bytes;
} work;

static int work_init(work *w, int64_t n)
{
    const int64_t c = HEADS * D, row = 3 * c;
    w->bytes = (size_t)(n * (2 * row + 2 * c + 2 * HEADS)) * sizeof(float);
    w->memory = ag_block_alloc(w->bytes);
    if (!w->memory) return -1;
    float *qkv = w->memory, *grad = qkv + n * row, *o = grad + n * row, *do_ = o + n * c,
        *lse = do_ + n * c;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n * row; i++)
        qkv[i] = ag_uniform((uint32_t)(i * 2654435761u)) - 0.5f;
    for (int64_t i = 0; i < n * c; i++)
        do_[i] = ag_uniform((uint32_t)(i * 2246822519u)) - 0.5f;
    w->a = (ag_attention){ .batch = 1, .heads = HEADS, .tq = n, .tk = n, .d_qk = D, .d_v = D,
                           .causal = true, .scale = 1 / sqrt((double)D), .noise = { 1, 2, 3, 0 },
                           .q = qkv, .q_row = row, .q_batch = n * row, .k = qkv + c, .k_row = row,
                           .k_batch = n * row, .v = qkv + 2 * c, .v_row = row, .v_batch = n * row,
                           .o = o, .o_row = c, .o_batch = n * c, .lse = lse };
    w->g = (ag_attention_grad){ .do_ = do_, .dq = grad, .dk = grad + c, .dv = grad + 2 * c,
                                .delta = lse + n * HEADS };
    return 0;
}

/* seconds of a forward and a backward */
static double turn(const ag_kernels *k, work *w, const ag_pattern *p)
{
    const double t = ag_seconds();
    double spent;
    int n = 0;
    w->a.pattern = p;
    do {
        k->attention_fwd(&w->a);
        k->attention_bwd(&w->a, &w->g);
        n++;
    } while ((spent = ag_seconds() - t) < 0.05);
    return spent / n;
}

static bool is_left_out(int arm, const char *only)
{
    return arm > 0 && strncmp(arms[arm].name, only, strlen(only)) != 0;
}

/* only: what the names of the arms begin with */
static int bench_length(const ag_kernels *k, int64_t n, const char *only)
{
    ag_pattern *p[ARMS] = { 0 };
    double seconds[ARMS][TURNS], ratio[ARMS][TURNS];
    work w;
    if (work_init(&w, n) < 0) return -1;
    for (int i = 1; i < ARMS; i++)
        if (ag_pattern_new(&p[i], n, arms[i].count, arms[i].layout, NULL) < 0) return -1;
    const int turns = n > 8192 ? 3 : TURNS;
    for (int t = 0; t < turns; t++)
        for (int i = 0; i < ARMS; i++) {
            if (is_left_out(i, only)) continue;
            seconds[i][t] = turn(k, &w, p[i]);
            ratio[i][t] = seconds[0][t] / seconds[i][t];
        }
    const double all = (double)n * (double)(n + 1) / 2;
    for (int i = 0; i < ARMS; i++) {
        if (is_left_out(i, only)) {
            ag_pattern_free(p[i]);
            continue;
        }
        double pairs = all;
        if (p[i]) {
            pairs = 0;
            for (int h = 0; h < HEADS; h++)
                pairs += (double)ag_pattern_of(p[i], h)->n_seen / HEADS;
        }
        const double by = bench_median(ratio[i], turns);
        printf("n %5d  %-16s %8.2f ms %6.1f GFLOP/s  density %6.2f %%  %6.2f times dense, "
               "%5.1f %% of ideal, pattern %.1f MB\n", (int)n, arms[i].name,
               1e3 * bench_median(seconds[i], turns),
               14e-9 * HEADS * D * pairs / bench_median(seconds[i], turns), 100 * pairs / all, by,
               100 * by * pairs / all, p[i] ? (double)ag_pattern_bytes(p[i]) * 1e-6 : 0.0);
        ag_pattern_free(p[i]);
    }
    fflush(stdout);
    ag_block_free(w.memory, w.bytes);
    return 0;
}

int main(int argc, char **argv)
{
    const char *why = "";
    const ag_kernels *k = ag_kernels_best(AG_F32, &why);
    const int64_t longest = argc > 1 ? atoll(argv[1]) : 16384;
    if (!k) {
        fprintf(stderr, "bench_pattern: %s\n", why);
        return 1;
    }
    for (int64_t n = argc > 2 ? atoll(argv[2]) : 1024; n <= longest; n *= 2)
        if (bench_length(k, n, argc > 3 ? argv[3] : "") < 0) {
            fprintf(stderr, "bench_pattern: out of memory\n");
            return 3;
        }
    return 0;
}
