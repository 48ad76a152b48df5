/*
 * test_simt_draw.c -- tokens drawn on a GPU, or on the CPU in its place (gpu.h): they are those
 * that train_choose draws from the same numbers, in whatever order threads run.
 *
 *   TULLE_SIMT_PART=p/n: see gpu.h
 */
#include "gpu_check.h"

#include "autograd/cuda/cuda.h"
#include "gpu.h"
#include "train/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 5000 };

static const ag_kernels *k;          /* of the format */
static const ag_device *gpu;
static const op_format *f;

static void begin(void **state)
{
    f = *state;
    k = ag_kernels_cuda(f->dtype);
    gpu = k->device;
}

/* What the device draws from x[n] behind `before` numbers: rows begin anywhere. */
static int32_t drawn(const train_draw *d, const double *x, int64_t before, int64_t n, int64_t index)
{
    const ag_draw how = { d->temperature, d->top_k, d->top_p,
                          (double)ag_uniform(ag_noise_bits(d->seed, 0, AG_SITE_SAMPLE,
                                                           (uint64_t)index)) };
    int32_t token, *p = ag_device_alloc(gpu, sizeof *p);
    void *px = gpu_upload(f, before + n, x);
    assert_non_null(p);
    k->draw(&how, n, (const char *)px + (size_t)before * ag_dtype_size(f->dtype), p);
    ag_device_read(gpu, &token, p, sizeof token);
    assert_null(gpu->check());
    gpu_drop(f, before + n, px);
    ag_device_free(gpu, p, sizeof *p);
    return token;
}

/* And the host: from x as the format rounds it. */
static int32_t chosen(const train_draw *d, const double *x, int64_t before, int64_t n,
                      int64_t index)
{
    static float logits[MOST];
    static double rounded[MOST + 8];
    static int32_t work[MOST];
    void *px = gpu_upload(f, before + n, x);
    gpu_download(f, before + n, px, rounded);
    gpu_drop(f, before + n, px);
    for (int64_t i = 0; i < n; i++) logits[i] = (float)rounded[before + i];
    return train_choose(d, logits, n, index, work);
}

/* Are they the same?  Returns the token. */
static int32_t check(const train_draw *d, const double *x, int64_t before, int64_t n, int64_t index)
{
    const int32_t want = chosen(d, x, before, n, index);
    const int32_t got = gpu_takes(index) ? drawn(d, x, before, n, index) : want;
    if (got != want)
        fail_msg("%s: token %d instead of %d of %lld, temperature %g, top_k %lld, top_p %g, index "
                 "%lld", ag_dtype_name(f->dtype), got, want, (long long)n, d->temperature,
                 (long long)d->top_k, d->top_p, (long long)index);
    return want;
}

enum { SPREAD, TIES, HOLES, EQUAL, FAR, KINDS };

/* x[n] of a kind: many values; few, 0 of either sign among them; some impossible; one value; a few
 * much likelier than all others. */
static void logits_of(int kind, int64_t n, uint64_t seed, double *x)
{
    double *r = uniform_new(n, -4, 4, seed);
    for (int64_t i = 0; i < n; i++)
        x[i] = kind == TIES ? round(r[i]) / 2 : kind == HOLES && r[i] < 1 ? -(double)INFINITY
             : kind == EQUAL ? -0.75 : kind == FAR && r[i] < 3.9 ? 20 * r[i] - 80 : r[i];
    free(r);
}

static void tokens_are_those_of_the_host(void **state)
{
    static const int64_t sizes[] = { 1, 2, 65, 257, MOST };
    static const double temperatures[] = { 1, 0.7, 5, 0.01, 0 }, kept[] = { 1, 0.9, 0.5, 1e-6 };
    static double x[MOST + 8];
    begin(state);
    int64_t index = 0;
    for (int s = 0; s < 5; s++)
        for (int kind = 0; kind < KINDS; kind++)
            for (int i = 0; i < (sizes[s] == MOST ? 2 : 6); i++, index++) {
                const int64_t n = sizes[s], some[] = { 0, n / 2, 0, 3, n + 1, 1 };
                const int64_t before = index % 3 ? index % 8 : 0;
                const train_draw d = { .temperature = temperatures[index % 9 % 5],
                                       .top_k = some[index % 7 % 6], .top_p = kept[index % 5 % 4],
                                       .seed = 7 };
                memset(x, 0, (size_t)before * sizeof *x);
                logits_of(kind, n, (uint64_t)index, x + before);
                if (!gpu_takes(index)) continue;
                gpu_order((unsigned)(index % 4));
                check(&d, x, before, n, index);
            }
    gpu_order(0);
}

/* Every index is drawn as often as it should be: the whole range of u. */
static void all_of_a_row_are_drawn(void **state)
{
    enum { N = 5, DRAWS = 60 };
    static const double x[N] = { 0.5, -1, 0.5, 1.5, -(double)INFINITY };
    int count[N] = { 0 };
    begin(state);
    const train_draw d = { .temperature = 1, .top_p = 1, .seed = 3 };
    for (int64_t i = 0; i < DRAWS; i++) count[check(&d, x, 0, N, i)]++;
    assert_true(count[3] > count[0] && count[0] > count[1] && count[1] > 0 && count[2] > count[1]);
    assert_int_equal(count[4], 0);
}

static void what_is_not_finite(void **state)
{
    enum { N = 700 };
    static double x[N];
    static const double bad[] = { (double)NAN, -(double)NAN, (double)INFINITY };
    begin(state);
    const train_draw sure = { .temperature = 0, .top_p = 1 },
        open = { .temperature = 1, .top_k = 9, .top_p = 0.8 };
    for (int i = 0; i < 3; i++) {
        logits_of(SPREAD, N, 5, x);
        x[i ? N - 1 : 0] = bad[i];
        assert_int_equal(drawn(&sure, x, 0, N, 0), -1);
        assert_int_equal(drawn(&open, x, 0, N, 0), -1);
    }
    for (int i = 0; i < N; i++) x[i] = -(double)INFINITY;            /* no probability at all */
    check(&sure, x, 0, N, 0);
    check(&open, x, 0, N, 0);
}

int main(void)
{
    enum { TESTS = 3 };
    static const struct { const char *name; CMUnitTestFunction run; } test[TESTS] = {
        { "tokens_are_those_of_the_host", tokens_are_those_of_the_host },
        { "all_of_a_row_are_drawn", all_of_a_row_are_drawn },
        { "what_is_not_finite", what_is_not_finite },
    };
    struct CMUnitTest list[TESTS * GPU_FORMATS] = { { 0 } };
    if (!gpu_open()) return 1;
    for (int i = 0; i < TESTS * GPU_FORMATS; i++) {
        list[i].name = test[i / GPU_FORMATS].name;
        list[i].test_func = test[i / GPU_FORMATS].run;
        list[i].initial_state = (void *)(uintptr_t)&gpu_formats[i % GPU_FORMATS];
    }
    const int failed = cmocka_run_group_tests_name("draws on a GPU", list, NULL, NULL);
    ag_cuda_close();
    return failed;
}
