/*
 * test_simt_rows.c -- rows, columns and indices on the tables of a GPU where the samples of the ops
 * do not reach: rows that take a block, sums in several chunks, one index of all rows and more
 * indices than rows; and kernels called by themselves: rows that begin anywhere, infinities, no
 * rows at all, fixed point, noise.
 */
#include "gpu_check.h"

#include "autograd/base/half.h"
#include "autograd/cuda/cuda.h"
#include "gpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CASE(op, ...) { &ag_op_##op, { .lo = -1, .hi = 1, __VA_ARGS__ } }
#define S1(a) { 1, { a } }
#define S2(a, b) { 2, { a, b } }
#define S3(a, b, c) { 3, { a, b, c } }

#define LAYERNORM(m, n)                                                                 \
    CASE(layernorm, .in = { S2(m, n), S1(n), S1(n) }, .attr.layernorm = { 1e-5 })
/* A target of -1 or -2 is none. */
#define XENT(m, n, from)                                                                \
    CASE(cross_entropy, .in = { S2(m, n), S1(m) }, .int_lo = from, .int_hi = n)
#define EMBEDDING(b, t, v, d, from)                                                     \
    CASE(embedding, .in = { S2(b, t), S2(v, d), S2(t + 3, d) }, .int_lo = from, .int_hi = v, \
         .attr.embedding = { 2 })

static const gpu_case cases[] = {
    CASE(softmax, .in = { S2(3, 1500) }),                /* teams of 128 threads, of 512, of 1 */
    CASE(softmax, .in = { S2(2, 4501) }),
    CASE(softmax, .in = { S2(300, 3) }),
    CASE(log_softmax, .in = { S2(5, 1001) }),
    CASE(log_softmax, .in = { S2(2, 5000) }),
    XENT(3, 5003, -1),
    XENT(1100, 3, -2),
    XENT(2, 1032, 0),
    LAYERNORM(300, 12),                                  /* chunks of rows */
    LAYERNORM(600, 9),
    LAYERNORM(3, 1032),
    LAYERNORM(2, 4103),
    LAYERNORM(37, 64),                                   /* backward in registers: one block, */
    LAYERNORM(140, 264),                                 /* more, with lanes that have no pack */
    LAYERNORM(20, 520),
    LAYERNORM(18, 1024),
    LAYERNORM(1100, 8),
    CASE(layernorm, .in = { S2(40, 48), S1(48), S1(48) }, .absent = 6, .attr.layernorm = { 1e-5 }),
    CASE(layernorm, .in = { S2(40, 48), S1(48), S1(48) }, .absent = 2, .attr.layernorm = { 1e-5 }),
    CASE(row_sum, .in = { S2(3, 5001) }),
    CASE(sum, .in = { S1(20000) }),
    CASE(mean, .in = { S2(3, 9001) }),
    CASE(argmax, .in = { S2(3, 5000) }),
    CASE(repeat, .in = { S2(2, 350) }, .attr.repeat = { 3 }),
    CASE(linear, .in = { S2(300, 3), S2(9, 3), S1(9) }, .absent = 1u << 3,
         .attr.linear = { AG_ACT_GELU_TANH, false }),
    CASE(linear, .in = { S2(140, 2), S2(1032, 2), S1(1032) }, .absent = 1u << 3),
    EMBEDDING(4, 300, 1, 8, 0),                          /* all rows of one index: many pieces */
    EMBEDDING(2, 600, 7, 33, 0),
    EMBEDDING(2, 40, 5000, 16, 0),
    EMBEDDING(300, 2, 70000, 1, 65500),                  /* keys of more than 16 bits */
    CASE(gather, .in = { S2(3, 40), S1(1100) }, .int_hi = 3),
    CASE(gather, .in = { S2(2000, 8), S2(2, 40) }, .int_hi = 2000),
    CASE(scatter, .in = { S2(700, 9), S1(700), S2(2, 9) }, .int_hi = 2,
         .attr.reshape = { 2, { 2, 9 } }),
    CASE(pick, .in = { S2(300, 70), S1(300) }, .int_hi = 70),
    CASE(dropout, .in = { S2(3, 1500), S2(3, 1500) }, .attr.dropout = { 0.3, 4 }),
    CASE(dropout, .in = { S2(2, 4097) }, .absent = 2, .attr.dropout = { 0.5, 4 }),
    CASE(multiplicative, .in = { S2(70, 8), S2(2, 8), S2(150, 8), S1(300) }),
    CASE(merge, .in = { S3(2, 4, 1101), S3(2, 3, 1101), S1(2) }, .int_hi = 5),
};
enum { CASES = sizeof cases / sizeof *cases };

static void agrees_with_the_reference(void **state) { gpu_check_cases(CASES, cases, *state); }

/* --- kernels by themselves -------------------------------------------------------------------- */

static const ag_kernels *k;          /* of the format */
static const ag_kernels *ref;        /* in f64 */
static const ag_device *gpu;
static const op_format *f;

static void begin(void **state)
{
    f = *state;
    k = ag_kernels_cuda(f->dtype);
    ref = ag_kernels_ref(AG_F64);
    gpu = k->device;
}

/* Numbers that every format holds. */
static double *numbers(int64_t n, uint64_t seed)
{
    double *x = uniform_new(n, -2, 2, seed);
    for (int64_t i = 0; i < n; i++) x[i] = round(x[i] * 32) / 32;
    return x;
}

/* n numbers at p + from are `want`, and the one before them is still 7. */
static void check_numbers(int64_t n, const void *p, const double *want, double u)
{
    double *got = malloc((size_t)(n + 1) * sizeof *got);
    assert_non_null(got);
    gpu_download(f, n + 1, p, got);
    assert_null(gpu->check());
    assert_true(got[0] == 7);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(got[i + 1] - want[i]) <= u * fmax(fabs(want[i]), 1)))
            fail_msg("number %lld of %lld is %g, wanted %g", (long long)i, (long long)n, got[i + 1],
                     want[i]);
    free(got);
}

/* n numbers at p are `want`, and the one behind them is still 9. */
static void check_behind(int64_t n, const void *p, const double *want, double u)
{
    double *got = malloc((size_t)(n + 1) * sizeof *got);
    assert_non_null(got);
    gpu_download(f, n + 1, p, got);
    assert_null(gpu->check());
    assert_true(got[n] == 9);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= u * fmax(fabs(want[i]), 1)))
            fail_msg("number %lld of %lld is %g, wanted %g", (long long)i, (long long)n, got[i],
                     want[i]);
    free(got);
}

/* x rounded to the format's 16 bits. */
static double number_of(float x)
{
    return (double)(f->dtype == AG_BF16 ? ag_bf16_float(ag_bf16_of(x))
                                        : ag_f16_float(ag_f16_of(x)));
}

/* A copy of x on the device behind one number, 7: not aligned. */
static void *shifted(int64_t n, const double *x)
{
    double *all = malloc((size_t)(n + 1) * sizeof *all);
    assert_non_null(all);
    all[0] = 7;
    memcpy(all + 1, x, (size_t)n * sizeof *x);
    void *p = gpu_upload(f, n + 1, all);
    free(all);
    return p;
}

static void *inner(void *p) { return (char *)p + ag_dtype_size(f->dtype); }

static void rows_begin_anywhere(void **state)
{
    enum { M = 5, MOST = 70 };
    begin(state);
    for (int64_t n = 1; n <= MOST; n += 23) {
        double *x = numbers(M * n, 1), *dy = numbers(M * n, 2), y[M * MOST], sums[MOST], mean[M];
        void *px = shifted(M * n, x), *pdy = shifted(M * n, dy), *py = shifted(M * n, x);
        void *pmean = shifted(M, x);

        ref->softmax_fwd(M, n, false, x, y);
        k->softmax_fwd(M, n, false, inner(px), inner(py));
        check_numbers(M * n, py, y, 4 * f->u);

        memcpy(y, x, (size_t)(M * n) * sizeof *y);
        ref->softmax_bwd(M, n, true, x, dy, y, true);
        k->scale(M * n, 1, inner(px), inner(py), false);
        k->softmax_bwd(M, n, true, inner(px), inner(pdy), inner(py), true);
        check_numbers(M * n, py, y, 40 * f->u * (double)n);

        ref->row_sum(M, n, x, mean);
        k->row_sum(M, n, inner(px), inner(pmean));
        check_numbers(M, pmean, mean, 4 * f->u);

        memset(sums, 0, sizeof sums);
        ref->act_bwd(AG_ACT_RELU, M, n, x, dy, y, sums, false);
        float *db = ag_device_alloc(gpu, MOST * sizeof *db), got[MOST];
        k->act_bwd(AG_ACT_RELU, M, n, inner(px), inner(pdy), inner(py), db, false);
        check_numbers(M * n, py, y, 0);
        ag_device_read(gpu, got, db, sizeof got);
        for (int64_t i = 0; i < n; i++) assert_true(fabs((double)got[i] - sums[i]) <= 1e-6);
        ag_device_free(gpu, db, MOST * sizeof *db);

        ref->copy_rows(M - 1, n - 1, x, n, y, n - 1, false);
        k->copy_rows(M - 1, n - 1, inner(px), n, inner(py), n - 1, false);
        check_numbers((M - 1) * (n - 1), py, y, 0);
        gpu_drop(f, M * n + 1, px), gpu_drop(f, M * n + 1, pdy), gpu_drop(f, M * n + 1, py);
        gpu_drop(f, M + 1, pmean);
        free(x), free(dy);
    }
}

/* Logits of minus infinity are no choice; the lowest of equals is the largest. */
static void infinities(void **state)
{
    enum { M = 4, N = 70 };
    begin(state);
    double x[M * N], y[M * N];
    int32_t idx[M];
    const int32_t target[M] = { 9, 9, 10, -1 };
    float lse[M], loss;
    for (int i = 0; i < M * N; i++)
        x[i] = i < N ? (i % 2 ? 1 : -(double)INFINITY) : i < 2 * N ? (i == N + 9) * 3
             : i < 3 * N ? (i % N == 10 ? 5 : -(double)INFINITY) : -(double)INFINITY;
    void *px = gpu_upload(f, M * N, x), *py = gpu_upload(f, M * N, x);
    int32_t *pi = ag_device_alloc(gpu, 2 * sizeof idx);
    float *pf = ag_device_alloc(gpu, sizeof lse + sizeof loss);
    k->softmax_fwd(M - 1, N, false, px, py);
    k->argmax(M, N, px, pi);
    ag_device_write(gpu, pi + M, target, sizeof target);
    k->xent_fwd(M, N, px, pi + M, pf, pf + M);
    gpu_download(f, (M - 1) * N, py, y);
    ag_device_read(gpu, idx, pi, sizeof idx);
    ag_device_read(gpu, lse, pf, sizeof lse);
    ag_device_read(gpu, &loss, pf + M, sizeof loss);
    assert_null(gpu->check());
    for (int i = 0; i < N; i++) {
        assert_true(fabs(y[i] - (i % 2 ? 2.0 / N : 0)) < 2 * f->u);
        assert_true(y[2 * N + i] == (i == 10));
    }
    assert_true(idx[0] == 1 && idx[1] == 9 && idx[2] == 10 && idx[3] == 0);
    const double first = log(35.0), second = log(69 + exp(3.0)) - 3;
    assert_true(fabs((double)lse[0] - 1 - first) < 1e-6 && lse[2] == 5 && lse[3] == -INFINITY);
    assert_true(fabs((double)loss - (first + second) / 3) < 1e-6);

    for (int i = 0; i < N; i++) x[i] = i == 3 || i == 41 ? 2 : i == 1 ? (double)NAN : -1;
    void *pn = gpu_upload(f, N, x);
    k->argmax(1, N, pn, pi);
    ag_device_read(gpu, idx, pi, sizeof idx);
    assert_int_equal(idx[0], 3);
    gpu_drop(f, M * N, px), gpu_drop(f, M * N, py), gpu_drop(f, N, pn);
    ag_device_free(gpu, pi, 2 * sizeof idx);
    ag_device_free(gpu, pf, sizeof lse + sizeof loss);
}

/* Sums of no rows are 0 where they are not added to something. */
static void no_rows(void **state)
{
    enum { N = 40 };
    begin(state);
    float ones[N], got[N], *p = ag_device_alloc(gpu, sizeof ones);
    for (int i = 0; i < N; i++) ones[i] = 1;
    ag_device_write(gpu, p, ones, sizeof ones);
    k->act_bwd(AG_ACT_NONE, 0, N, NULL, NULL, NULL, p, true);
    k->layernorm_bwd(0, N, NULL, NULL, NULL, NULL, NULL, NULL, false, p, p);
    k->embedding_bwd(0, 1, N, NULL, NULL, 4, 0, p, p);
    ag_device_read(gpu, got, p, sizeof got);
    assert_memory_equal(got, ones, sizeof got);
    k->act_bwd(AG_ACT_NONE, 0, N, NULL, NULL, NULL, p, false);
    ag_device_read(gpu, got, p, sizeof got);
    for (int i = 0; i < N; i++) assert_true(got[i] == 0);
    ag_device_write(gpu, p, ones, sizeof ones);
    k->xent_fwd(0, N, NULL, NULL, NULL, p);
    k->sum(0, 1, NULL, p + 1);
    ag_device_read(gpu, got, p, sizeof got);
    assert_true(got[0] == 0 && got[1] == 0 && got[2] == 1);
    assert_null(gpu->check());
    ag_device_free(gpu, p, sizeof ones);
}

/* A table of v rows: indices that differ in their highest digit, and the last row, come to their
 * places.  The sort takes a pass, of two launches, for each 8 bits of the largest index. */
static void table_of_any_height(void **state)
{
    enum { M = 40, D = 2 };          /* two pieces */
    static const struct { int64_t v; int passes; } tables[] = {
        { 1, 1 }, { 65, 1 }, { 256, 1 }, { 257, 2 }, { 65536, 2 }, { 65537, 3 } };
    enum { TABLES = sizeof tables / sizeof *tables };
    begin(state);
    double *dy = numbers(M * D, 4);
    void *pdy = gpu_upload(f, M * D, dy);
    int32_t ids[M], *pi = ag_device_alloc(gpu, sizeof ids);
    long calls[TABLES];
    for (int i = 0; i < TABLES; i++) {
        const int64_t v = tables[i].v, step = v > 65536 ? 65536 : v > 256 ? 256 : 1;
        const size_t bytes = (size_t)(v * D) * sizeof(float);
        float *table = ag_device_alloc(gpu, bytes), *got = malloc(bytes);
        double *want = calloc((size_t)(v * D), sizeof *want);
        assert_true(table && got && want);
        for (int r = 0; r < M; r++) {
            ids[r] = (int32_t)(r % 3 ? v - 1 - r * step % v : v - 1);
            for (int j = 0; j < D; j++) want[ids[r] * D + j] += 2 * dy[r * D + j];
        }
        ag_device_write(gpu, pi, ids, sizeof ids);
        k->embedding_bwd(M, v, D, pi, pdy, M, 0, table, NULL);
        calls[i] = gpu_calls();  /* there is a workspace now */
        k->embedding_bwd(M, v, D, pi, pdy, M, 0, table, NULL);
        calls[i] = gpu_calls() - calls[i];
        ag_device_read(gpu, got, table, bytes);
        assert_null(gpu->check());
        for (int64_t j = 0; j < v * D; j++) assert_true((double)got[j] == want[j]);
        if (!gpu_is_real()) assert_int_equal(calls[i] - calls[0], 2 * (tables[i].passes - 1));
        ag_device_free(gpu, table, bytes);
        free(got), free(want);
    }
    gpu_drop(f, M * D, pdy);
    ag_device_free(gpu, pi, sizeof ids);
    free(dy);
}

/* Arrays that are all aligned, and one that is not; lengths with and without an end behind the
 * packs of 16 bytes.  Of x * x both gradients go to one array. */
static void any_alignment(void **state)
{
    enum { MOST = 1003 };
    static const int64_t lengths[] = { 1, 7, 8, 16, 40, MOST };
    static const enum ag_binary_id ops[] = { AG_BINARY_mul, AG_BINARY_relu_mask };
    begin(state);
    double *x[4], *want = malloc(2 * MOST * sizeof *want);       /* a, b, y, dy */
    assert_non_null(want);
    for (int i = 0; i < 4; i++) x[i] = numbers(MOST, 5 + (uint64_t)i);
    for (int turn = 0; turn < 42; turn++) {
        const int64_t n = lengths[turn % 6];
        const int off = turn / 6 % 7, form = turn % 4;           /* which is shifted; 6: none */
        const enum ag_binary_id op = ops[turn / 6 % 2];
        void *block[6], *p[6];
        for (int i = 0; i < 6; i++) {
            double from[MOST + 1];
            for (int64_t j = 0; j <= n; j++) from[j] = j < n ? x[i < 4 ? i : 3][j] : 9;
            block[i] = i == off ? shifted(n + 1, from) : gpu_upload(f, n + 1, from);
            p[i] = i == off ? inner(block[i]) : block[i];
        }
        double *da = want, *db = form == 2 ? want : want + MOST;
        memcpy(da, x[3], (size_t)n * sizeof *da);
        memcpy(db, x[3], (size_t)n * sizeof *db);
        if (form == 2) p[5] = p[4];
        const bool acc_a = form == 1, acc_b = form != 0;
        ref->binary_bwd[op](n, x[0], x[1], x[2], x[3], form < 3 ? da : NULL, acc_a, db, acc_b);
        k->binary_bwd[op](n, p[0], p[1], p[2], p[3], form < 3 ? p[4] : NULL, acc_a, p[5], acc_b);
        if (form < 3) check_behind(n, p[4], da, 5 * f->u);
        check_behind(n, p[5], db, 5 * f->u);
        for (int i = 0; i < 6; i++) gpu_drop(f, n + 1 + (i == off), block[i]);
    }
    for (int i = 0; i < 4; i++) free(x[i]);
    free(want);
}

/* To 16 bits and back, from arrays that begin aligned or one number later. */
static void conversions(void **state)
{
    enum { MOST = 1003 };
    static const int64_t lengths[] = { 0, 1, 7, 8, 40, MOST };
    begin(state);
    if (!k->narrow) return;
    float host[MOST + 2], back[MOST + 2], *pf = ag_device_alloc(gpu, sizeof host);
    double *x = uniform_new(MOST, -2, 2, 11), zeros[MOST + 2] = { 0 }, got[MOST + 2];
    for (int turn = 0; turn < 24; turn++) {
        const int64_t n = lengths[turn % 6], sf = turn / 6 % 2, sh = turn / 12;
        void *ph = gpu_upload(f, MOST + 2, zeros);
        for (int64_t i = 0; i < MOST + 2; i++)
            host[i] = i >= sf && i < sf + n ? (float)x[i - sf] : 3;
        ag_device_write(gpu, pf, host, sizeof host);
        void *half = sh ? inner(ph) : ph;
        k->narrow(n, pf + sf, half);
        gpu_download(f, MOST + 2, ph, got);
        for (int64_t i = 0; i < MOST + 2; i++) {
            const double want = i >= sh && i < sh + n ? number_of((float)x[i - sh]) : 0;
            assert_true(got[i] == want);
        }
        k->widen(n, half, pf + sf);
        ag_device_read(gpu, back, pf, sizeof back);
        assert_null(gpu->check());
        for (int64_t i = 0; i < MOST + 2; i++) {
            const double want = i >= sf && i < sf + n ? got[i - sf + sh] : 3;
            assert_true((double)back[i] == want);
        }
        gpu_drop(f, MOST + 2, ph);
    }
    ag_device_free(gpu, pf, sizeof host);
    free(x);
}

/* Backward in place of dy, or added to dx; with the sums that are wanted. */
static void layernorm_forms(void **state)
{
    enum { M = 70, N = 40, ALL = M * N };
    begin(state);
    double *x = numbers(ALL, 21), *dy = numbers(ALL, 22), *gain = numbers(N, 23), dx[ALL], mean[M],
           rstd[M], y[ALL], sums[2 * N];
    float got[2 * N + M], *sum = ag_device_alloc(gpu, 2 * M * sizeof *sum + sizeof sums);
    float *pmean = sum + 2 * N, *prstd = pmean + M;
    void *px = gpu_upload(f, ALL, x), *pgain = gpu_upload(f, N, gain);
    ref->layernorm_fwd(M, N, 1e-5, x, gain, NULL, y, mean, rstd);
    for (int form = 0; form < 16; form++) {
        const bool in_place = form & 1, dgain = form & 2, dbias = form & 4, shift = form & 8;
        for (int i = 0; i < ALL; i++) dx[i] = dy[i];
        memset(sums, 0, sizeof sums);
        ref->layernorm_bwd(M, N, x, gain, mean, rstd, dy, dx, !in_place, dgain ? sums : NULL,
                           dbias ? sums + N : NULL);
        void *pdy = gpu_upload(f, ALL, dy), *pdx = shifted(ALL, dy), *py = gpu_upload(f, ALL, x);
        void *to = in_place ? pdy : shift ? inner(pdx) : pdx;
        if (!in_place && !shift) k->scale(ALL, 1, pdy, pdx, false);
        ag_device_clear(gpu, sum, 2 * N * sizeof *sum);
        k->layernorm_fwd(M, N, 1e-5, px, pgain, NULL, py, pmean, prstd);
        k->layernorm_bwd(M, N, px, pgain, pmean, prstd, pdy, to, !in_place, dgain ? sum : NULL,
                         dbias ? sum + N : NULL);
        gpu_download(f, ALL, to, y);
        ag_device_read(gpu, got, sum, 2 * N * sizeof *sum);
        assert_null(gpu->check());
        for (int i = 0; i < ALL; i++) assert_true(fabs(y[i] - dx[i]) <= 8 * f->u + 1e-5);
        for (int i = 0; i < 2 * N; i++) assert_true(fabs((double)got[i] - sums[i]) <= 1e-4);
        gpu_drop(f, ALL, pdy), gpu_drop(f, ALL + 1, pdx), gpu_drop(f, ALL, py);
    }
    gpu_drop(f, ALL, px), gpu_drop(f, N, pgain);
    ag_device_free(gpu, sum, 2 * M * sizeof *sum + sizeof sums);
    free(x), free(dy), free(gain);
}

static void fixed_point(void **state)
{
    enum { N = 3000, POINT = 20 };
    begin(state);
    double *x = numbers(N, 3), y[N];
    float *xf = malloc(N * sizeof *xf);
    int32_t want[N], got[N], want_peak = 0, got_peak = 0;
    assert_non_null(xf);
    int32_t *ps = ag_device_alloc(gpu, sizeof want), *peak = ag_device_alloc(gpu, sizeof *peak);
    for (int run = 0; run < 5; run++) {      /* s = x, += x, -= x; then too large, not a number */
        if (run >= 3) x[N - 5] = run == 3 ? 4096 : (double)NAN;
        for (int i = 0; i < N; i++) xf[i] = (float)x[i];
        const int sign = run == 0 ? 0 : run == 2 ? -1 : 1;
        void *px = gpu_upload(f, N, x);
        ag_kernels_ref(AG_F32)->fixed_add(N, POINT, sign, xf, want, &want_peak);
        k->fixed_add(N, POINT, sign, px, ps, peak);
        ag_device_read(gpu, got, ps, sizeof got);
        ag_device_read(gpu, &got_peak, peak, sizeof got_peak);
        assert_memory_equal(got, want, sizeof got);
        assert_int_equal(got_peak, want_peak);
        gpu_drop(f, N, px);
    }
    assert_int_equal(got_peak, INT32_MAX);
    void *py = gpu_upload(f, N, x);
    k->fixed_read(N, POINT, ps, py);
    gpu_download(f, N, py, y);
    assert_null(gpu->check());
    for (int i = 0; i < N; i++)
        assert_true(fabs(y[i] - ldexp(want[i], -POINT)) <= f->u * fabs(y[i]));
    gpu_drop(f, N, py);
    ag_device_free(gpu, ps, sizeof want);
    ag_device_free(gpu, peak, sizeof *peak);
    free(x), free(xf);
}

/* The bits are those of the CPU: what is dropped, and normal numbers. */
static void noise(void **state)
{
    enum { M = 3, N = 331 };
    begin(state);
    const ag_noise z = { .seed = 77, .step = 5, .site = 9, .row0 = 1000000 };
    double ones[M * N], want[M * N], got[M * N];
    for (int i = 0; i < M * N; i++) ones[i] = 1;
    void *px = gpu_upload(f, M * N, ones), *py = gpu_upload(f, M * N, ones);
    ref->dropout_fwd(M, N, 0.5, &z, ones, NULL, want);
    k->dropout_fwd(M, N, 0.5, &z, px, NULL, py);
    gpu_download(f, M * N, py, got);
    assert_memory_equal(got, want, sizeof got);
    ref->dropout_bwd(M, N, 0.5, &z, ones, want, true);
    k->dropout_bwd(M, N, 0.5, &z, px, py, true);
    gpu_download(f, M * N, py, got);
    assert_memory_equal(got, want, sizeof got);
    ref->normal(M, N, &z, want);
    k->normal(M, N, &z, py);
    gpu_download(f, M * N, py, got);
    assert_null(gpu->check());
    for (int i = 0; i < M * N; i++)
        assert_true(fabs(got[i] - want[i]) <= 1.01 * f->u * fabs(want[i]) + f->tiny);
    gpu_drop(f, M * N, px), gpu_drop(f, M * N, py);
}

int main(void)
{
    enum { TESTS = 10 };
    static const struct { const char *name; CMUnitTestFunction run; } test[TESTS] = {
        { "agrees_with_the_reference", agrees_with_the_reference },
        { "rows_begin_anywhere", rows_begin_anywhere },
        { "infinities", infinities },
        { "no_rows", no_rows },
        { "table_of_any_height", table_of_any_height },
        { "any_alignment", any_alignment },
        { "conversions", conversions },
        { "layernorm_forms", layernorm_forms },
        { "fixed_point", fixed_point },
        { "noise", noise },
    };
    struct CMUnitTest list[TESTS * GPU_FORMATS] = { { 0 } };
    if (!gpu_open()) return 1;
    for (int i = 0; i < TESTS * GPU_FORMATS; i++) {
        list[i].name = test[i / GPU_FORMATS].name;
        list[i].test_func = test[i / GPU_FORMATS].run;
        list[i].initial_state = (void *)(uintptr_t)&gpu_formats[i % GPU_FORMATS];
    }
    const int failed = cmocka_run_group_tests_name("rows on a GPU", list, NULL, NULL);
    ag_cuda_close();
    return failed;
}
