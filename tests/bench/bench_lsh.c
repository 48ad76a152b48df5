/*
 * bench_lsh.c -- attention by hashing beside dense and local attention, forward and backward.
 *
 *     bench_lsh [N...]          lengths; 16384 and 65536.  Dense up to 16384 only
 *
 * One sequence, 8 heads of width 64, causal; chunks of 128, two buckets for each, 2 rounds; local
 * sees the last 128 keys.  Memory is what a call takes beside its inputs, outputs and gradients:
 * the hash's buckets, lse and scratch; of the others lse and delta.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "autograd/base/arena.h"
#include "autograd/base/clock.h"
#include "autograd/kernels.h"
#include "tests/bench/bench.h"

enum { HEADS = 8, D = 64, C = HEADS * D, CHUNK = 128, ROUNDS = 2, TURNS = 3, DENSE_MOST = 16384 };

typedef struct work {
    int64_t n;
    float  *q, *v, *o, *do_, *dq, *dk, *dv, *lse, *delta;
    void   *memory;
    size_t  bytes;
} work;

static int work_init(work *w, int64_t n)
{
    w->n = n;
    w->bytes = (size_t)(n * (7 * C + 2 * HEADS)) * sizeof(float);
    float *p = w->memory = ag_block_alloc(w->bytes);
    if (!p) return -1;
    float **part[] = { &w->q, &w->v, &w->o, &w->do_, &w->dq, &w->dk, &w->dv };
    for (int i = 0; i < 7; i++, p += n * C) *part[i] = p;
    w->lse = p;
    w->delta = p + n * HEADS;
    for (int64_t i = 0; i < n * C; i++) {
        w->q[i] = ag_uniform((uint32_t)(i * 2654435761u)) - 0.5f;
        w->v[i] = ag_uniform((uint32_t)(i * 2246822519u)) - 0.5f;
        w->do_[i] = ag_uniform((uint32_t)(i * 3266489917u)) - 0.5f;
    }
    return 0;
}

/* seconds of a forward and a backward over all keys, or those of a pattern */
static double attend(const ag_kernels *k, const work *w, const ag_pattern *p)
{
    const double t = ag_seconds();
    const ag_attention a = { .batch = 1, .heads = HEADS, .tq = w->n, .tk = w->n, .d_qk = D,
                             .d_v = D, .causal = true, .pattern = p, .scale = 1 / sqrt((double)D),
                             .q = w->q, .q_row = C, .q_batch = w->n * C, .k = w->q, .k_row = C,
                             .k_batch = w->n * C, .v = w->v, .v_row = C, .v_batch = w->n * C,
                             .o = w->o, .o_row = C, .o_batch = w->n * C, .lse = w->lse };
    const ag_attention_grad g = { .do_ = w->do_, .dq = w->dq, .dk = w->dk, .dv = w->dv,
                                  .delta = w->delta };
    k->attention_fwd(&a);
    k->attention_bwd(&a, &g);
    return ag_seconds() - t;
}

/* The same by hashing, with the hash; *ret_bytes of memory.  Negative: out of memory. */
static double hash(const ag_kernels *k, const work *w, size_t *ret_bytes)
{
    const int64_t n = w->n, buckets = 2 * (n / CHUNK), high = buckets > 128 ? buckets / 32 : 1;
    ag_lsh a = { .batch = 1, .heads = HEADS, .t = n, .d_qk = D, .d_v = D, .rounds = ROUNDS,
                 .factor = { high > 1 ? 32 : buckets, high }, .chunk = CHUNK, .before = 1,
                 .causal = true, .q = w->q, .v = w->v, .o = w->o, .lse = w->lse };
    const int64_t turns = D * ROUNDS * (a.factor[0] / 2 + a.factor[1] / 2);
    const size_t scratch = ag_lsh_scratch(&a, AG_F32);
    *ret_bytes = scratch + (size_t)(n * HEADS * (ROUNDS + 1) + HEADS * turns) * 4;
    float *r = malloc((size_t)(HEADS * turns) * sizeof *r);
    a.bucket = malloc((size_t)(ROUNDS * HEADS * n) * sizeof *a.bucket);
    a.scratch = ag_block_alloc(scratch);
    double spent = -1;
    if (r && a.bucket && a.scratch) {
        const ag_noise z = { .seed = 1 };
        const double t = ag_seconds();
        k->normal(HEADS, turns, &z, r);
        k->lsh_hash(&a, r, false);
        k->lsh_fwd(&a);
        k->fill(n * C, 0, w->dq);
        k->fill(n * C, 0, w->dv);
        k->lsh_bwd(&a, w->do_, w->dq, w->dv);
        spent = ag_seconds() - t;
    }
    if (a.scratch) ag_block_free(a.scratch, scratch);
    free(a.bucket);
    free(r);
    return spent;
}

static int bench_length(const ag_kernels *k, int64_t n)
{
    static const ag_pattern_layout local = {
        .n_factors = 1, .factor = { { .kind = AG_FACTOR_LOCAL, .stride = CHUNK } }
    };
    double seconds[3][TURNS];
    size_t bytes = 0;
    ag_pattern *p = NULL;
    work w;
    if (work_init(&w, n) < 0) return -1;
    int bad = ag_pattern_new(&p, n, 1, &local, NULL);
    for (int t = 0; !bad && t < TURNS; t++) {
        seconds[0][t] = hash(k, &w, &bytes);
        seconds[1][t] = attend(k, &w, p);
        seconds[2][t] = n <= DENSE_MOST ? attend(k, &w, NULL) : 0;
        bad = seconds[0][t] < 0;
    }
    static const char *const name[] = { "hashing", "local(128)", "dense" };
    for (int i = 0; !bad && i < (n <= DENSE_MOST ? 3 : 2); i++)
        printf("n %6d  %-10s  %9.2f ms  %7.1f MB\n", (int)n, name[i],
               1e3 * bench_median(seconds[i], TURNS),
               1e-6 * (i ? (double)(2 * n * HEADS * 4) : (double)bytes));
    fflush(stdout);
    if (p) ag_pattern_free(p);
    ag_block_free(w.memory, w.bytes);
    return bad ? -1 : 0;
}

int main(int argc, char **argv)
{
    static char *usual[] = { "", "16384", "65536" };
    const char *why = "";
    const ag_kernels *k = ag_kernels_best(AG_F32, &why);
    if (!k) {
        fprintf(stderr, "bench_lsh: %s\n", why);
        return 1;
    }
    if (argc < 2) argc = 3, argv = usual;
    for (int i = 1; i < argc; i++)
        if (bench_length(k, atoll(argv[i])) < 0) {
            fprintf(stderr, "bench_lsh: out of memory\n");
            return 3;
        }
    return 0;
}
