/*
 * test_simt_lsh.c -- attention by hashing on the table of a GPU where the samples of the ops do not
 * reach: chunks of several tiles and tiles of several chunks, heads of any size, rounds that meet,
 * positions that lengths cut off, more to sort than is sorted at once; and kernels called by
 * themselves: ties of the hash, decoding over a long cache.
 *
 * Every case runs with the threads in two orders, which must give the same bits.
 *
 *   test_simt_lsh [TEST]    TULLE_SIMT_STEPS=1: only a few small cases, for a sanitizer with which
 *                           they take long
 */
#include "gpu_check.h"

#include "autograd/cuda/cuda.h"
#include "gpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CAUSAL = 1, MASK = 2, CORRECT = 4, LENGTHS = 8 };

static bool few;                     /* few cases */

typedef struct shape {
    int64_t batch, heads, t, d_qk, d_v, rounds, factor[2], chunk, before, after;
    int     how;                     /* of the above; lengths go up to the number of buckets */
    double  drop;
} shape;

static void check(const shape *s)
{
    gpu_case c = { &ag_op_lsh_attend, { .lo = -1.5, .hi = 1.5, .gap = 0.3,
                                        .absent = s->how & LENGTHS ? 0 : 8 } };
    c.s.attr.lsh.o = (ag_lsh_options){
        .heads = s->heads, .d_qk = s->d_qk, .d_v = s->d_v, .rounds = s->rounds,
        .factor = { s->factor[0], s->factor[1] }, .chunk = s->chunk, .before = s->before,
        .after = s->after, .causal = s->how & CAUSAL, .bucket_mask = s->how & MASK,
        .correct = s->how & CORRECT, .drop = s->drop, .site = 3, .drop_site = 6 };
    c.s.int_hi = (int32_t)(s->factor[0] * s->factor[1] + 1);
    c.s.in[0] = AG_SHAPE(s->batch, s->t, s->heads * s->d_qk);
    c.s.in[1] = AG_SHAPE(s->batch, s->t, s->heads * s->d_v);
    c.s.in[2] = AG_SHAPE(s->rounds, s->batch, s->heads, s->t);
    c.s.in[3] = AG_SHAPE(s->batch);
    gpu_check_one(&c, 100, &gpu_formats[0]);
}

static void small_cases(void **state)
{
    (void)state;
    check(&(shape){ 1, 1, 70, 8, 17, 2, { 2, 1 }, 64, 1, 0, CAUSAL, 0.1 });
    check(&(shape){ 1, 1, 40, 4, 4, 2, { 4, 2 }, 20, 1, 1, MASK | CORRECT, 0.1 });
    check(&(shape){ 1, 1, 20, 140, 4, 2, { 4, 1 }, 8, 1, 0, CAUSAL | CORRECT | LENGTHS, 0.1 });
}

static void chunks_of_several_tiles(void **state)
{
    (void)state;
    if (few) return;
    check(&(shape){ 1, 1, 131, 24, 17, 3, { 2, 1 }, 64, 1, 0, CAUSAL, 0 });
    check(&(shape){ 1, 2, 300, 32, 40, 2, { 8, 4 }, 128, 1, 1, 0, 0.2 });
    check(&(shape){ 2, 1, 150, 32, 32, 1, { 120, 1 }, 64, 1, 0, CAUSAL | LENGTHS, 0.3 });
    check(&(shape){ 1, 1, 100, 16, 64, 2, { 4, 1 }, 1000, 1, 0, CAUSAL, 0.1 });      /* one chunk */
}

static void tiles_of_several_chunks(void **state)
{
    (void)state;
    if (few) return;
    check(&(shape){ 1, 2, 140, 8, 8, 4, { 4, 2 }, 33, 1, 0, CAUSAL | MASK | CORRECT, 0.1 });
    check(&(shape){ 2, 1, 90, 17, 5, 2, { 40, 2 }, 16, 2, 1, LENGTHS, 0.3 });
    check(&(shape){ 1, 1, 70, 32, 32, 2, { 6, 1 }, 20, 9, 9, CORRECT, 0 });  /* all meet all */
}

static void heads_of_any_size(void **state)
{
    (void)state;
    if (few) return;
    check(&(shape){ 1, 1, 70, 128, 96, 2, { 4, 1 }, 32, 1, 0, CAUSAL | CORRECT, 0.1 });
    check(&(shape){ 1, 1, 66, 64, 64, 2, { 4, 1 }, 64, 1, 1, MASK, 0 });
    check(&(shape){ 1, 1, 67, 1, 33, 3, { 4, 1 }, 16, 1, 0, CAUSAL, 0.3 });
    check(&(shape){ 1, 1, 40, 300, 16, 2, { 2, 1 }, 16, 1, 0, CAUSAL | LENGTHS, 0.3 });
    check(&(shape){ 1, 2, 37, 24, 260, 1, { 8, 1 }, 40, 1, 0, MASK | CORRECT, 0.2 });
}

/* Keys of two digits, segments of several blocks; more segments than are sorted at once. */
static void sorts(void **state)
{
    (void)state;
    if (few) return;
    check(&(shape){ 1, 1, 1500, 1, 1, 1, { 20, 18 }, 4, 1, 0, CAUSAL, 0 });
    if (gpu_is_real()) check(&(shape){ 300, 2, 2, 1, 1, 16, { 2, 1 }, 1, 1, 0, CAUSAL, 0 });
}

/* --- the hash --------------------------------------------------------------------------------- */

static const ag_device *gpu;

static void *ints_upload(int64_t n, const int32_t *x)
{
    void *p = ag_device_alloc(gpu, (size_t)(n + 1) * sizeof *x);
    assert_non_null(p);
    ag_device_write(gpu, p, x, (size_t)n * sizeof *x);
    return p;
}

static void ints_drop(int64_t n, void *p)
{
    ag_device_free(gpu, p, (size_t)(n + 1) * sizeof(int32_t));
}

/* Whole numbers: sums are exact, and many are equal. */
static double *wholes(int64_t n, uint64_t seed)
{
    double *x = uniform_new(n, -2.49, 2.49, seed);
    for (int64_t i = 0; i < n; i++) x[i] = round(x[i]);
    return x;
}

static void check_hash(int64_t t, int64_t d, int64_t f0, int64_t f1, bool shared)
{
    enum { BATCH = 2, HEADS = 2, ROUNDS = 3 };
    const op_format *f = &gpu_formats[0];
    const int64_t half = f0 / 2 + f1 / 2, n_q = BATCH * t * HEADS * d,
        n_r = (shared ? 1 : BATCH) * HEADS * d * ROUNDS * half, n = ROUNDS * BATCH * HEADS * t;
    const int32_t length[BATCH] = { (int32_t)t, (int32_t)(t / 3) };
    double *q = wholes(n_q, 1), *r = wholes(n_r, 2);
    int32_t *want = calloc((size_t)n + 1, sizeof *want), *got = calloc((size_t)n + 1, sizeof *got);
    assert_true(want && got);
    for (int64_t i = 0; i < d; i++) q[t / 2 * HEADS * d + i] = 0;            /* all are equal */
    ag_lsh a = { .batch = BATCH, .heads = HEADS, .t = t, .d_qk = d, .d_v = 1, .rounds = ROUNDS,
                 .factor = { f0, f1 }, .chunk = 4, .lengths = length, .bucket = want, .q = q };
    ag_kernels_ref(AG_F64)->lsh_hash(&a, r, shared);
    void *dq = gpu_upload(f, n_q, q), *dr = gpu_upload(f, n_r, r), *to = ints_upload(n, got),
        *dl = ints_upload(BATCH, length);
    a.q = dq, a.lengths = dl, a.bucket = to;
    for (unsigned order = 0; order < 2; order++) {
        gpu_order(order);
        ag_kernels_cuda(AG_F32)->lsh_hash(&a, dr, shared);
        ag_device_read(gpu, got, to, (size_t)n * sizeof *got);
        assert_null(gpu->check());
        assert_memory_equal(got, want, (size_t)n * sizeof *got);
    }
    gpu_order(0);
    gpu_drop(f, n_q, dq), gpu_drop(f, n_r, dr);
    ints_drop(n, to), ints_drop(BATCH, dl);
    free(q), free(r), free(want), free(got);
}

static void ties_go_to_the_first(void **state)
{
    (void)state;
    check_hash(13, 33, 66, 20, true);
    if (few) return;
    check_hash(70, 3, 2, 1, false);
    check_hash(65, 5, 140, 1, true);
    check_hash(3, 70, 30, 34, false);
}

/* --- decoding --------------------------------------------------------------------------------- */

typedef struct cached { int64_t heads, past, t, d_qk, d_v, rounds, most, buckets; } cached;

static void check_decode(const cached *s)
{
    enum { BATCH = 2 };
    const op_format *f = &gpu_formats[0];
    const int64_t capacity = s->past + s->t + 5, rows = BATCH * capacity * s->heads,
        n_o = BATCH * s->t * s->heads * s->d_v, n_b = rows * s->rounds;
    double *k = uniform_new(rows * s->d_qk, -1.5, 1.5, 1),
        *v = uniform_new(rows * s->d_v, -1.5, 1.5, 2), *want = uniform_new(n_o, 0, 1, 3),
        *got = uniform_new(n_o, 0, 1, 3), *again = uniform_new(n_o, 0, 1, 3);
    int32_t *bucket = calloc((size_t)n_b + 1, sizeof *bucket);
    assert_non_null(bucket);
    for (int64_t i = 0; i < n_b; i++)
        bucket[i] = (int32_t)(ag_noise_bits(7, 0, 0, (uint64_t)i) % (uint64_t)s->buckets);
    for (int64_t i = 0; i < rows * s->d_qk; i++) k[i] = (double)(float)k[i];
    for (int64_t i = 0; i < rows * s->d_v; i++) v[i] = (double)(float)v[i];
    ag_lsh_decode a = { .batch = BATCH, .heads = s->heads, .past = s->past, .t = s->t,
                        .capacity = capacity, .d_qk = s->d_qk, .d_v = s->d_v, .rounds = s->rounds,
                        .most = s->most, .bucket = bucket, .k = k, .v = v, .o = want };
    a.scratch = malloc(ag_lsh_decode_scratch(&a, AG_F64));
    assert_non_null(a.scratch);
    ag_kernels_ref(AG_F64)->lsh_decode(&a);
    free(a.scratch);
    void *dk = gpu_upload(f, rows * s->d_qk, k), *dv = gpu_upload(f, rows * s->d_v, v),
        *to = gpu_upload(f, n_o, got), *db = ints_upload(n_b, bucket);
    const size_t bytes = ag_lsh_decode_scratch(&a, AG_F32);
    a.k = dk, a.v = dv, a.o = to, a.bucket = db, a.scratch = ag_device_alloc(gpu, bytes);
    assert_non_null(a.scratch);
    for (unsigned order = 0; order < 2; order++) {
        gpu_order(order);
        ag_kernels_cuda(AG_F32)->lsh_decode(&a);
        gpu_download(f, n_o, to, order ? again : got);
        assert_null(gpu->check());
    }
    gpu_order(0);
    assert_memory_equal(again, got, (size_t)n_o * sizeof *got);
    for (int64_t i = 0; i < n_o; i++)
        if (!(fabs(got[i] - want[i]) <= 64 * f->u))
            fail_msg("past %lld, most %lld: o[%lld] = %.9g instead of %.9g", (long long)s->past,
                     (long long)s->most, (long long)i, got[i], want[i]);
    gpu_drop(f, rows * s->d_qk, dk), gpu_drop(f, rows * s->d_v, dv), gpu_drop(f, n_o, to);
    ints_drop(n_b, db);
    ag_device_free(gpu, a.scratch, bytes);
    free(k), free(v), free(want), free(got), free(again), free(bucket);
}

static void decodes(void **state)
{
    (void)state;
    check_decode(&(cached){ 1, 0, 3, 8, 5, 2, 2, 4 });               /* the first is alone */
    check_decode(&(cached){ 1, 200, 1, 4, 4, 2, 60, 8 });
    if (few) return;
    check_decode(&(cached){ 2, 700, 1, 64, 64, 2, 200, 16 });        /* some of both kinds */
    check_decode(&(cached){ 1, 700, 1, 33, 140, 2, 64, 4 });         /* more share than it takes */
    check_decode(&(cached){ 1, 500, 2, 8, 1, 3, 490, 64 });
    check_decode(&(cached){ 1, 1100, 1, 16, 16, 1, 1100, 1 });       /* all, and all share */
    check_decode(&(cached){ 3, 5, 40, 1, 8, 2, 7, 6 });              /* many at a time */
    for (int64_t most = 1; most < 12; most++)
        check_decode(&(cached){ 1, 9, 1, 4, 4, 1, most < 10 ? most : 10, 2 });
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_cases), cmocka_unit_test(chunks_of_several_tiles),
        cmocka_unit_test(tiles_of_several_chunks), cmocka_unit_test(heads_of_any_size),
        cmocka_unit_test(sorts), cmocka_unit_test(ties_go_to_the_first), cmocka_unit_test(decodes),
    };
    const char *steps = getenv("TULLE_SIMT_STEPS");
    few = steps && !strcmp(steps, "1");
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (!gpu_open()) return 1;
    gpu = ag_kernels_cuda(AG_F32)->device;
    const int failed = cmocka_run_group_tests_name("attention by hashing on a GPU", tests, NULL,
                                                   NULL);
    ag_cuda_close();
    return failed;
}
