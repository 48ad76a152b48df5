/*
 * test_simt_live.c -- the 1-in-N controller and live units on the tables of a GPU where the samples
 * of the ops do not reach: long and odd blocks, ranks of any size, products made in parts, units
 * that all rows list or none, one row of many units, experts; and kernels called by themselves:
 * given choices, units that are skipped, scores that are no numbers.
 *
 *   test_simt_live [TEST]    TULLE_SIMT_PART=p/n: see gpu.h
 */
#include "gpu_check.h"

#include "autograd/cuda/cuda.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CASE(op, low, high, ...) { &ag_op_##op, { .lo = low, .hi = high, __VA_ARGS__ } }
#define S1(a) { 1, { a } }
#define S2(a, b) { 2, { a, b } }

#define CONTROL(rows, blocks, size, r, h, t)                                            \
    CASE(control, -2, 2, .in = { S2(rows, blocks * (size)) }, .surrogate = h,           \
         .attr.control = { .n = size, .relaxed = r, .hard = h, .temperature = t, .site = 2 })
#define CHOOSE(rows, rank, blocks, size, r, t, k, every, g)                             \
    CASE(choose, -1, 1, .in = { S2(rows, rank), S2(rank, blocks * (size)), S1(blocks * (size)) }, \
         .surrogate = true,                                                             \
         .attr.choose = { .n = size, .relaxed = r, .temperature = t, .picks = k, .all = every, \
                          .gate = g, .site = 2 })
/* from: the lowest choice that a row lists */
#define LIVE(rows, d, d_out, blocks, size, w, k, every, from)                           \
    CASE(live_ff, 0.1, 1,                                                               \
         .in = { S2(rows, d), S2((blocks) * (size) * (w), d), S1((blocks) * (size) * (w)), \
                 S2((blocks) * (size) * (w), d_out), S1(d_out),                         \
                 S2(rows, (blocks) * (every ? size : k)), S2(rows, (blocks) * (k)),     \
                 S2(rows, d_out) },                                                     \
         .int_lo = from, .int_hi = size, .surrogate = every,                            \
         .attr.live = { .n = size, .width = w, .picks = k, .all = every })

static const gpu_case cases[] = {
    CONTROL(70, 3, 64, false, true, 0.1),
    CONTROL(5, 2, 256, true, true, 0.5),
    CONTROL(3, 2, 300, false, false, 0),
    CONTROL(9, 11, 7, true, false, 1),
    CONTROL(33, 20, 4, false, true, 1),
    CONTROL(2, 1, 5000, true, false, 1),                 /* a tile of its own */

    CHOOSE(40, 70, 3, 64, false, 0.1, 1, false, AG_GATE_ONE),
    CHOOSE(19, 64, 2, 64, false, 0.1, 5, false, AG_GATE_SCALED),
    CHOOSE(33, 24, 2, 64, true, 0.7, 3, false, AG_GATE_P),
    CHOOSE(20, 16, 1, 300, false, 1, 1, true, AG_GATE_ONE),
    CHOOSE(18, 5, 4, 50, true, 0.5, 1, true, AG_GATE_SCALED),
    CHOOSE(35, 9, 9, 4, false, 0.1, 4, false, AG_GATE_ONE),
    CHOOSE(1, 128, 5, 64, false, 0, 1, false, AG_GATE_ONE),              /* decoding */
    CHOOSE(16, 3, 7, 33, false, 1, 2, false, AG_GATE_P),
    CHOOSE(80, 1, 8, 64, false, 0.1, 1, false, AG_GATE_ONE),             /* parts of rows */
    CHOOSE(130, 72, 3, 64, false, 0.1, 2, false, AG_GATE_SCALED),        /* tiles by tensor cores */
    CHOOSE(170, 16, 6, 8, true, 0.5, 1, true, AG_GATE_P),
    CHOOSE(100, 40, 3, 32, false, 1, 1, false, AG_GATE_ONE),
    CHOOSE(17, 200, 1, 128, false, 0, 1, false, AG_GATE_P),
    CHOOSE(33, 256, 2, 256, false, 0.1, 3, false, AG_GATE_SCALED),

    LIVE(70, 264, 72, 2, 5, 1, 1, false, 0),
    LIVE(67, 33, 260, 3, 4, 2, 2, false, 0),             /* odd rows */
    LIVE(20, 48, 40, 2, 8, 3, 1, true, 0),
    LIVE(2100, 8, 8, 1, 3, 1, 1, false, 2),              /* all rows list one unit */
    LIVE(5, 16, 24, 3, 64, 1, 1, false, 0),              /* most units have none */
    LIVE(9, 40, 16, 1, 4, 16, 1, false, 0),              /* experts */
    LIVE(1, 1056, 1048, 40, 16, 1, 1, false, 0),         /* decoding */
    LIVE(65, 300, 1032, 1, 2, 1, 2, false, 0),
    LIVE(70, 16, 24, 1, 256, 1, 1, false, 0),            /* as many choices as a digit, and more */
    LIVE(70, 16, 24, 2, 300, 1, 1, false, 0),
};

/* Weights in shared memory: slices of one to four packs, the last one cut off, groups. */
static const gpu_case tiles[] = {
    LIVE(128, 136, 72, 24, 2, 1, 1, false, 0),
    LIVE(68, 128, 256, 16, 2, 1, 1, false, 1),           /* one unit of each block has all rows */
    LIVE(65, 264, 36, 16, 8, 1, 1, false, 0),
    LIVE(130, 72, 40, 9, 3, 1, 2, false, 0),
    LIVE(64, 64, 32, 12, 3, 2, 1, false, 0),
    LIVE(63, 136, 64, 12, 4, 1, 1, false, 0),            /* a row too few */
};

/* By tiles of 64 entries: their edges, one that nobody chose, one that all did. */
static const gpu_case experts[] = {
    LIVE(64, 40, 72, 1, 3, 16, 1, false, 0),
    LIVE(63, 40, 72, 1, 3, 16, 1, false, 0),             /* an entry too few */
    LIVE(65, 136, 24, 1, 2, 16, 1, false, 1),
    LIVE(70, 16, 24, 1, 2, 72, 1, false, 0),
    LIVE(200, 16, 24, 1, 4, 16, 1, false, 3),
    LIVE(66, 24, 40, 2, 3, 24, 2, false, 0),             /* a row has several */
    LIVE(65, 24, 44, 1, 2, 20, 1, false, 0),             /* no packs of 16 bits */
    LIVE(80, 32, 32, 1, 4, 16, 1, true, 0),
    LIVE(100, 40, 24, 1, 70, 16, 1, false, 0),           /* more choices than some have entries */
};

#define COUNT(a) (int)(sizeof a / sizeof *a)

static void agrees_with_the_reference(void **state)
{
    gpu_check_cases(COUNT(cases), cases, *state);
}
static void tiles_agree(void **state) { gpu_check_cases(COUNT(tiles), tiles, *state); }
static void experts_agree(void **state) { gpu_check_cases(COUNT(experts), experts, *state); }

/* --- kernels by themselves -------------------------------------------------------------------- */

static const ag_kernels *k;
static const ag_device *gpu;

/* Where the choices are given, only gates are made: of the given ones, with the same noise. */
static void check_given(const op_format *f, int64_t rows, bool all, ag_gate gate)
{
    enum { RANK = 6, BLOCKS = 3, N = 20, UNITS = BLOCKS * N };
    const int64_t size = rows * BLOCKS * (all ? N : 2), picks = all ? 1 : 2;
    double *low = uniform_new(rows * RANK, -1, 1, 1), *c2 = uniform_new(RANK * UNITS, -1, 1, 2);
    double *want = uniform_new(size, 0, 1, 3), *got = uniform_new(size, 0, 1, 4);
    int32_t *choice = calloc((size_t)(rows * BLOCKS * picks) + 1, sizeof *choice);
    assert_non_null(choice);
    for (int64_t i = 0; i < rows * BLOCKS * picks; i++) choice[i] = (int32_t)(i * 7 % N);
    for (int64_t i = 0; i < RANK * UNITS; i++) c2[i] = round(c2[i] * 64) / 64;   /* in any format */
    for (int64_t i = 0; i < rows * RANK; i++) low[i] = round(low[i] * 64) / 64;

    ag_chooser c = { .c = { .rows = rows, .blocks = BLOCKS, .n = N, .relaxed = true, .given = true,
                            .temperature = 0.5, .noise = { .seed = 5, .site = 3, .row0 = 11 } },
                     .rank = RANK, .low = low, .c2 = c2, .gate = gate, .picks = picks, .all = all };
    void *scratch = malloc(ag_choose_scratch(&c, AG_F64));
    assert_non_null(scratch);
    ag_kernels_ref(AG_F64)->choose_fwd(&c, choice, want, scratch);
    free(scratch);

    const size_t bytes = ag_choose_scratch(&c, f->dtype);
    const size_t list = (size_t)(rows * BLOCKS * picks) * sizeof *choice;
    void *dlow = gpu_upload(f, rows * RANK, low), *dc2 = gpu_upload(f, RANK * UNITS, c2);
    void *dgate = gpu_upload(f, size, got), *dscratch = ag_device_alloc(gpu, bytes);
    int32_t *dchoice = ag_device_alloc(gpu, list);
    assert_true(dscratch && dchoice);
    ag_device_write(gpu, dchoice, choice, list);
    c.low = dlow, c.c2 = dc2;
    k->choose_fwd(&c, dchoice, dgate, dscratch);
    gpu_download(f, size, dgate, got);
    assert_null(gpu->check());
    for (int64_t i = 0; i < size; i++)
        assert_true(fabs(got[i] - want[i]) <= 2 * f->u * want[i] + 1e-6);
    int32_t *after = malloc(list);
    assert_non_null(after);
    ag_device_read(gpu, after, dchoice, list);
    assert_memory_equal(after, choice, list);

    gpu_drop(f, rows * RANK, dlow), gpu_drop(f, RANK * UNITS, dc2);
    gpu_drop(f, size, dgate);
    ag_device_free(gpu, dscratch, bytes);
    ag_device_free(gpu, dchoice, list);
    free(low), free(c2), free(want), free(got), free(choice), free(after);
}

static void choices_may_be_given(void **state)
{
    k = ag_kernels_cuda(((const op_format *)*state)->dtype);
    for (int gate = 0; gate < AG_GATE_COUNT; gate++)
        for (int i = 0; i < 4; i++) check_given(*state, i & 1 ? 40 : 3, i & 2, (ag_gate)gate);
}

/* Weights of units whose h is 0 are not read; a row alone and many rows go different ways. */
static void zeros_are_skipped(void **state)
{
    enum { D = 40, BLOCKS = 4, N = 2, MOST = 80 };
    const op_format *f = *state;
    k = ag_kernels_cuda(f->dtype);
    for (int64_t rows = 1; rows <= MOST; rows += MOST - 1) {
        double w[BLOCKS * N * D], h[MOST * BLOCKS], y[MOST * D];
        int32_t choice[MOST * BLOCKS];
        for (int i = 0; i < BLOCKS * N * D; i++) w[i] = i / D == 2 ? i : (double)NAN;
        for (int i = 0; i < MOST * BLOCKS; i++) h[i] = i % 4 == 1 ? 2 : 0, choice[i] = i % 2 == 0;
        memset(y, 0, sizeof y);
        void *dw = gpu_upload(f, BLOCKS * N * D, w), *dh = gpu_upload(f, rows * BLOCKS, h);
        void *dy = gpu_upload(f, rows * D, y);
        int32_t *dchoice = ag_device_alloc(gpu, sizeof choice);
        assert_non_null(dchoice);
        ag_device_write(gpu, dchoice, choice, sizeof choice);
        k->live_sum(&(ag_live){ .rows = rows, .d = D, .blocks = BLOCKS, .n = N, .width = 1,
                                .picks = 1, .choice = dchoice }, dh, dw, NULL, NULL, dy, false);
        gpu_download(f, rows * D, dy, y);
        assert_null(gpu->check());
        for (int64_t i = 0; i < rows * D; i++) assert_true(y[i] == 2 * w[2 * D + i % D]);
        gpu_drop(f, BLOCKS * N * D, dw), gpu_drop(f, rows * BLOCKS, dh);
        gpu_drop(f, rows * D, dy);
        ag_device_free(gpu, dchoice, sizeof choice);
    }
}

/* Scores that are not numbers still give choices that fit; the best of others is found. */
static void choices_fit(void **state)
{
    enum { N = 40, BLOCKS = 3 };
    const op_format *f = *state;
    double z[N * BLOCKS], p[N * BLOCKS];
    int32_t choice[BLOCKS];
    k = ag_kernels_cuda(f->dtype);
    for (int i = 0; i < N * BLOCKS; i++) {
        const int j = i % N;
        p[i] = 0;
        z[i] = i < N ? (double)NAN : i < 2 * N ? (j == 33 ? -3 : -(double)INFINITY)
                                               : j == 5 ? (double)NAN : j >= 36;
    }
    void *dz = gpu_upload(f, N * BLOCKS, z), *dmask = gpu_upload(f, N * BLOCKS, p);
    void *dp = gpu_upload(f, N * BLOCKS, p);
    int32_t *dchoice = ag_device_alloc(gpu, sizeof choice);
    assert_non_null(dchoice);
    k->controller_fwd(&(ag_controller){ .rows = 1, .blocks = BLOCKS, .n = N, .hard = true }, dz,
                      dmask, dchoice, dp);
    ag_device_read(gpu, choice, dchoice, sizeof choice);
    assert_null(gpu->check());
    assert_int_equal(choice[0], 0);
    assert_int_equal(choice[1], 33);
    assert_int_equal(choice[2], 36);                     /* the lowest of equals */
    gpu_drop(f, N * BLOCKS, dz), gpu_drop(f, N * BLOCKS, dmask);
    gpu_drop(f, N * BLOCKS, dp);
    ag_device_free(gpu, dchoice, sizeof choice);
}

int main(int argc, char **argv)
{
    enum { TESTS = 6 };
    static const struct { const char *name; CMUnitTestFunction run; } test[TESTS] = {
        { "agrees_with_the_reference", agrees_with_the_reference },
        { "tiles_agree", tiles_agree },
        { "experts_agree", experts_agree },
        { "choices_may_be_given", choices_may_be_given },
        { "zeros_are_skipped", zeros_are_skipped },
        { "choices_fit", choices_fit },
    };
    struct CMUnitTest list[TESTS * GPU_FORMATS] = { { 0 } };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (!gpu_open()) return 1;
    gpu = ag_kernels_cuda(AG_F32)->device;
    for (int i = 0; i < TESTS * GPU_FORMATS; i++) {
        list[i].name = test[i / GPU_FORMATS].name;
        list[i].test_func = test[i / GPU_FORMATS].run;
        list[i].initial_state = (void *)(uintptr_t)&gpu_formats[i % GPU_FORMATS];
    }
    const int failed = cmocka_run_group_tests_name("live units on a GPU", list, NULL, NULL);
    ag_cuda_close();
    return failed;
}
