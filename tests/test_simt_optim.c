/*
 * test_simt_optim.c -- the optimizer on a device beside the one on the host, step by step: the same
 * weights, averages and slots to 1e-6 of their terms, the same norms, the same refusals, after
 * which nothing has changed.  The sizes are odd, so that parts begin and end off 16 bytes.
 *
 *   test_simt_optim [TEST]
 */
#include "autograd/cuda/cuda.h"
#include "gpu.h"
#include "optim/optim.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 13003, STEPS = 10 };

static const ag_device *device;

static float number(uint32_t site, int64_t i)
{
    return 2 * ag_uniform(ag_noise_bits(3, 0, site, (uint64_t)i)) - 1;
}

/* Weights and gradient of n elements, on the host and on the device. */
typedef struct pair {
    int64_t    n;
    opt_state *host, *gpu;
    float     *p, *g;                /* [n] on the host */
    float     *gpu_p, *gpu_g;        /* [n] on the device, `shift` elements into their blocks */
    float     *block_p, *block_g;
    size_t     bytes;                /* of the blocks */
} pair;

/* Makes a range one of as many matrices as fit, if any does. */
static void make_matrices(opt_range *r, int64_t rows, int64_t cols)
{
    if (r->count < rows * cols) return;
    r->count -= r->count % (rows * cols);
    r->rows = rows;
    r->cols = cols;
}

/* Some that decay and some that do not, at offsets of 4 elements and others, with holes; matrices
 * of three parts, matrices that are wider than a block of threads, vectors, the last of them of
 * two pieces if n is 30,000. */
static int ranges_of(int64_t n, opt_range r[4])
{
    r[0] = (opt_range){ .offset = 0, .count = n < 300 ? n : n / 3, .decay = true };
    if (n < 300) return 1;
    r[1] = (opt_range){ .offset = n / 3 + 5, .count = n / 7 };
    r[2] = (opt_range){ .offset = n / 2 / 4 * 4, .count = n / 9, .decay = true };
    r[3] = (opt_range){ .offset = n / 2 / 4 * 4 + n / 9, .count = n / 5 };
    make_matrices(&r[0], n < 13000 ? 31 : 131, 11);
    make_matrices(&r[2], 4, n < 13000 ? 7 : 300);
    return 4;
}

static void setup(pair *x, const opt_config *c, int64_t n, int64_t shift)
{
    opt_range r[4];
    ag_err err = { 0 };
    const int ranges = ranges_of(n, r);
    *x = (pair){ .n = n, .bytes = (size_t)(n + shift) * sizeof(float) };
    x->p = malloc(x->bytes);
    x->g = malloc(x->bytes);
    x->block_p = ag_device_alloc(device, x->bytes);
    x->block_g = ag_device_alloc(device, x->bytes);
    assert_true(x->p && x->g && x->block_p && x->block_g);
    x->gpu_p = x->block_p + shift;
    x->gpu_g = x->block_g + shift;
    for (int64_t i = 0; i < n; i++) x->p[i] = number(1, i);
    device->write(x->gpu_p, x->p, (size_t)n * sizeof(float));
    if (opt_new(c, NULL, n, r, ranges, &x->host, &err)) fail_msg("%s", err.msg);
    if (opt_new(c, device, n, r, ranges, &x->gpu, &err)) fail_msg("%s", err.msg);
}

static void release(pair *x)
{
    opt_free(x->host);
    opt_free(x->gpu);
    ag_device_free(device, x->block_p, x->bytes);
    ag_device_free(device, x->block_g, x->bytes);
    free(x->p);
    free(x->g);
    assert_null(device->check());
}

/* The same gradient on both sides. */
static void set_gradient(pair *x, uint32_t step, float size)
{
    for (int64_t i = 0; i < x->n; i++) x->g[i] = size * number(10 + step, i);
    device->write(x->gpu_g, x->g, (size_t)x->n * sizeof(float));
}

/* Numbers of the device against those of the host: |difference| <= 1e-6 (|value| + size). */
static void check_near(const char *what, int64_t n, const float *gpu, const float *host,
                       double size)
{
    float *got = malloc((size_t)n * sizeof *got + 1);
    assert_non_null(got);
    device->read(got, gpu, (size_t)n * sizeof *got);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)host[i]) <= 1e-6 * (fabs((double)host[i]) + size)))
            fail_msg("%s[%lld] is %.9g on the device, %.9g on the host", what, (long long)i,
                     (double)got[i], (double)host[i]);
    free(got);
}

/* m and v are sums of terms of either sign, as large as the gradient and its square; Adafactor's m
 * is one of updates. */
static void check_pair(const pair *x, double g)
{
    check_near("p", x->n, x->gpu_p, x->p, 1);
    check_near("g", x->n, x->gpu_g, x->g, 0);
    assert_int_equal(x->gpu->step, x->host->step);
    assert_int_equal(x->gpu->n_slots, x->host->n_slots);
    for (int k = 0; k < x->host->n_slots; k++) {
        const opt_slot *s = &x->host->slot[k];
        const bool update = x->host->config.type == OPT_ADAFACTOR;
        const double size = s->name[0] == 'v' ? g * g : s->name[0] == 'm' ? update ? 1e-3 : g : 1;
        assert_int_equal(s->n, x->gpu->slot[k].n);
        check_near(s->name, s->n, x->gpu->slot[k].data, s->data, size);
    }
}

static void steps_agree(const opt_config *c, int64_t n, int64_t shift, float size, double unscale)
{
    pair x;
    if (!gpu_takes_next()) return;
    setup(&x, c, n, shift);
    for (uint32_t s = 0; s < STEPS; s++) {
        double host = -1, gpu = -2;
        const double lr = 1e-3 * (1 + s % 3);
        set_gradient(&x, s, size);
        assert_int_equal(opt_step(x.host, lr, unscale, x.p, x.g, &host, NULL), AG_OK);
        assert_int_equal(opt_step(x.gpu, lr, unscale, x.gpu_p, x.gpu_g, &gpu, NULL), AG_OK);
        assert_true(fabs(gpu - host) <= 1e-12 * host);
        check_pair(&x, (double)size * unscale);
    }
    release(&x);
}

static const opt_config cases[] = {
    { .type = OPT_ADAMW, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8 },
    { .type = OPT_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1,
      .clip_norm = 1, .ema_decay = 0.9 },
    { .type = OPT_ADAM, .beta1 = 0.8, .beta2 = 0.9, .eps = 1e-6, .weight_decay = 0.1,
      .clip_norm = 1e6 },
    { .type = OPT_SGD, .weight_decay = 0.1, .ema_decay = 0.5 },
    { .type = OPT_SGD, .momentum = 0.9, .nesterov = true, .clip_norm = 2, .weight_decay = 0.01 },
    { .type = OPT_ADAFACTOR, .decay_rate = 0.8, .eps1 = 1e-30, .eps2 = 1e-3, .clip_threshold = 1,
      .parameter_scale = true },
    { .type = OPT_ADAFACTOR, .decay_rate = 0.5, .eps1 = 1e-8, .clip_norm = 1, .ema_decay = 0.9,
      .clip_threshold = 0.7, .weight_decay = 1e-3, .weight_decay_steps = 7,
      .update_momentum = 0.9 },
};
enum { ADAFACTOR = 6 };              /* the one with every slot */
enum { CASES = sizeof cases / sizeof *cases };

static void agrees_with_the_host(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        steps_agree(&cases[i], N, 0, 1, 1);
        steps_agree(&cases[i], N, 0, 256, 1.0 / 256);    /* a scaled loss */
    }
}

/* Sizes around a thread's and a block's share; arrays that do not begin at 16 bytes. */
static void any_size(void **state)
{
    (void)state;
    static const int64_t sizes[] = { 0, 1, 2, 3, 4, 5, 63, 1023, 1024, 1025, 4095, 4096, 4097 };
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (int64_t shift = 0; shift < 2; shift++) {
            steps_agree(&cases[1], sizes[k], shift, 1, 1);
            if (k % 4 == 0) steps_agree(&cases[ADAFACTOR], sizes[k], shift, 1, 1);
        }
    steps_agree(&cases[ADAFACTOR - 1], 30000, 0, 1, 1);
}

/* Rows and columns without gradient have moments of 0, and stay; other steps are as large as the
 * weights say. */
static void adafactor_where_there_is_no_gradient(void **state)
{
    (void)state;
    const opt_config *c = &cases[ADAFACTOR - 1];
    pair x;
    setup(&x, c, N, 0);
    for (int i = 0; i < N; i++) x.p[i] *= i < N / 3 ? 100 : 1e-5f;
    device->write(x.gpu_p, x.p, N * sizeof(float));
    for (uint32_t s = 0; s < 3; s++) {
        set_gradient(&x, s, 1e-4f);
        for (int i = 0; i < N; i++)
            if (i % 11 == 3 || i / 11 % 5 == 2) x.g[i] = 0;
        device->write(x.gpu_g, x.g, N * sizeof(float));
        assert_int_equal(opt_step(x.host, 1e-2, 1, x.p, x.g, NULL, NULL), AG_OK);
        assert_int_equal(opt_step(x.gpu, 1e-2, 1, x.gpu_p, x.gpu_g, NULL, NULL), AG_OK);
        check_near("p", N, x.gpu_p, x.p, 1e-3);
        for (int k = 0; k < x.host->n_slots; k++)
            check_near(x.host->slot[k].name, x.host->slot[k].n, x.gpu->slot[k].data,
                       x.host->slot[k].data, 1e-9);
    }
    assert_true(x.host->v_col[3] == 0 && x.host->v_col[4] > 0);
    release(&x);
}

/* Everything that a step may change. */
static float *all_of(const pair *x, size_t *ret_bytes)
{
    const size_t n = (size_t)x->n, total = n * (size_t)(2 + x->gpu->n_slots);
    float *all = calloc(total + 1, sizeof *all);         /* some slots are shorter than n */
    assert_non_null(all);
    device->read(all, x->gpu_p, n * sizeof *all);
    device->read(all + n, x->gpu_g, n * sizeof *all);
    for (int k = 0; k < x->gpu->n_slots; k++) opt_slot_read(x->gpu, k, all + (2 + (size_t)k) * n);
    *ret_bytes = total * sizeof *all;
    return all;
}

/* With a gradient that has `bad` in it both sides refuse in the same words, and nothing changes. */
static void refuses(const opt_config *c, bool first, float bad, double unscale)
{
    pair x;
    if (!gpu_takes_next()) return;
    setup(&x, c, N, 0);
    for (uint32_t s = 0; s < (first ? 0 : 2); s++) {
        set_gradient(&x, s, 1);
        assert_int_equal(opt_step(x.host, 1e-3, 1, x.p, x.g, NULL, NULL), AG_OK);
        assert_int_equal(opt_step(x.gpu, 1e-3, 1, x.gpu_p, x.gpu_g, NULL, NULL), AG_OK);
    }
    set_gradient(&x, 5, 1);
    x.g[N / 2] = bad;
    device->write(x.gpu_g, x.g, N * sizeof(float));
    size_t bytes;
    float *before = all_of(&x, &bytes);
    ag_err host = { 0 }, gpu = { 0 };
    double host_norm = -1, gpu_norm = -1;
    assert_int_equal(opt_step(x.host, 1e-3, unscale, x.p, x.g, &host_norm, &host), AG_EDIVERGED);
    assert_int_equal(opt_step(x.gpu, 1e-3, unscale, x.gpu_p, x.gpu_g, &gpu_norm, &gpu),
                     AG_EDIVERGED);
    assert_string_equal(gpu.msg, host.msg);
    assert_true(isfinite(host_norm) ? fabs(gpu_norm - host_norm) <= 1e-12 * host_norm :
                isnan(gpu_norm) == isnan(host_norm) && !isfinite(gpu_norm));
    float *after = all_of(&x, &bytes);
    assert_memory_equal(after, before, bytes);
    assert_int_equal(x.gpu->step, first ? 0 : 2);
    free(before);
    free(after);
    release(&x);
}

static void bad_gradient_changes_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++)
        for (int first = 0; first < 2; first++) {
            refuses(&cases[i], first, NAN, 1);
            refuses(&cases[i], first, INFINITY, 1);
            refuses(&cases[i], first, 1, 1e-300);        /* a factor that is no normal number */
            if (cases[i].clip_norm == 0 && cases[i].type != OPT_SGD)
                refuses(&cases[i], first, 3e19f, 1);     /* a square beyond f32 */
        }
}

/* SGD has no second moment: what Adam refuses is a step. */
static void large_gradient_of_sgd(void **state)
{
    (void)state;
    const opt_config c = { .type = OPT_SGD };
    pair x;
    setup(&x, &c, N, 0);
    set_gradient(&x, 0, 3e19f);
    assert_int_equal(opt_step(x.host, 1e-20, 1, x.p, x.g, NULL, NULL), AG_OK);
    assert_int_equal(opt_step(x.gpu, 1e-20, 1, x.gpu_p, x.gpu_g, NULL, NULL), AG_OK);
    check_pair(&x, 3e19);
    release(&x);
}

/* Each number belongs to one thread and the norm has one order. */
static void same_bits(const opt_config *c)
{
    float *want = NULL;
    size_t bytes;
    if (!gpu_takes_next()) return;
    for (unsigned order = 0; order < 4; order++) {
        pair x;
        double norm;
        gpu_order(order);
        setup(&x, c, N, 0);
        for (uint32_t s = 0; s < 3; s++) {
            set_gradient(&x, s, 1);
            assert_int_equal(opt_step(x.gpu, 1e-3, 1, x.gpu_p, x.gpu_g, &norm, NULL), AG_OK);
        }
        float *got = all_of(&x, &bytes);
        if (want) assert_memory_equal(got, want, bytes);
        if (want) free(got);
        else want = got;
        release(&x);
    }
    gpu_order(0);
    free(want);
}

static void same_bits_in_any_order(void **state)
{
    (void)state;
    same_bits(&cases[1]);
    same_bits(&cases[ADAFACTOR - 1]);
    same_bits(&cases[ADAFACTOR]);
}

/* What a checkpoint does: slots to the host, into another optimizer, which goes on alike. */
static void travel(const opt_config *c)
{
    static float slot[N], p[N];
    pair x, y;
    size_t bytes;
    if (!gpu_takes_next()) return;
    setup(&x, c, N, 0);
    setup(&y, c, N, 0);
    for (uint32_t s = 0; s < 2; s++) {
        set_gradient(&x, s, 1);
        assert_int_equal(opt_step(x.gpu, 1e-3, 1, x.gpu_p, x.gpu_g, NULL, NULL), AG_OK);
    }
    for (int k = 0; k < x.gpu->n_slots; k++) {
        opt_slot_read(x.gpu, k, slot);
        opt_slot_write(y.gpu, k, slot);
        opt_slot_write(y.host, k, slot);
        assert_memory_equal(y.host->slot[k].data, slot, (size_t)x.gpu->slot[k].n * sizeof *slot);
    }
    device->read(p, x.gpu_p, sizeof p);
    device->write(y.gpu_p, p, sizeof p);
    y.gpu->step = x.gpu->step;
    for (uint32_t s = 2; s < 4; s++) {
        set_gradient(&x, s, 1);
        set_gradient(&y, s, 1);
        assert_int_equal(opt_step(x.gpu, 1e-3, 1, x.gpu_p, x.gpu_g, NULL, NULL), AG_OK);
        assert_int_equal(opt_step(y.gpu, 1e-3, 1, y.gpu_p, y.gpu_g, NULL, NULL), AG_OK);
    }
    float *a = all_of(&x, &bytes), *b = all_of(&y, &bytes);
    assert_memory_equal(a, b, bytes);
    free(a);
    free(b);
    release(&x);
    release(&y);
}

static void slots_travel(void **state)
{
    (void)state;
    travel(&cases[1]);
    travel(&cases[ADAFACTOR]);
}

/* How many allocations there are to fail. */
static int allocations(const opt_config *c)
{
    for (int k = 1;; k++) {
        opt_state *o = NULL;
        ag_err err = { 0 };
        ag_fault_after(k, 0);
        const int r = opt_new(c, device, 100, NULL, 0, &o, &err);
        ag_fault_after(0, 0);
        if (r == AG_OK) {
            opt_free(o);
            return k - 1;
        }
        assert_int_equal(r, AG_ENOMEM);
        assert_null(o);
    }
}

static void out_of_memory_is_reported(void **state)
{
    (void)state;
    if (!gpu_takes_once()) return;
    /* the state, ranges, parts, they and the sum there, 3 slots */
    assert_int_equal(allocations(&cases[1]), 8);
    /* 2 slots more; the work, what is written of it, that there */
    assert_int_equal(allocations(&cases[ADAFACTOR]), 13);
}

#ifndef TEST_REAL_GPU
/* Whatever the runtime refuses: an error with words, and no step counted.  Returns how much. */
static int failures_of(const opt_config *c)
{
    for (int k = 1;; k++) {
        pair x;
        ag_err err = { 0 };
        double norm = 0;
        setup(&x, c, 1000, 0);
        set_gradient(&x, 0, 1);
        simt_fail_call(k);
        const int r = opt_step(x.gpu, 1e-3, 1, x.gpu_p, x.gpu_g, &norm, &err);
        simt_fail_call(0);
        const int64_t step = x.gpu->step;
        release(&x);
        if (r == AG_OK) return k - 1;
        assert_int_equal(r, AG_EFAIL);
        assert_int_equal(step, 0);
        assert_non_null(strstr(err.msg, "step 0: "));
        assert_true(strlen(err.msg) > strlen("step 0: "));
    }
}

static void failures_are_reported(void **state)
{
    (void)state;
    if (!gpu_takes_once()) return;
    /* two sums, a copy, a step, two readings of the norm */
    const int adam = failures_of(&cases[1]), factored = failures_of(&cases[ADAFACTOR]);
    assert_in_range(adam, 8, 40);
    assert_in_range(factored, adam + 5, 40);             /* six kernels in the place of one */
}
#endif

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_host),
        cmocka_unit_test(any_size),
        cmocka_unit_test(adafactor_where_there_is_no_gradient),
        cmocka_unit_test(bad_gradient_changes_nothing),
        cmocka_unit_test(large_gradient_of_sgd),
        cmocka_unit_test(same_bits_in_any_order),
        cmocka_unit_test(slots_travel),
        cmocka_unit_test(out_of_memory_is_reported),
#ifndef TEST_REAL_GPU
        cmocka_unit_test(failures_are_reported),
#endif
    };
    ag_err err = { 0 };
    if (ag_cuda_open(&device, &err) < 0) {
        print_error("%s\n", err.msg);
        return 1;
    }
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    ag_cuda_close();
    return failed;
}
