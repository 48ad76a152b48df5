/*
 * test_optim.c -- the optimizers against hand-computed steps and against double precision,
 * clipping, schedules, and the same bits for any number of threads.
 */
#include "autograd/base/arena.h"
#include "autograd/base/rng.h"
#include "optim/optim.h"
#include "optim/schedule.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#ifdef _OPENMP
#include <omp.h>
#else
static void omp_set_num_threads(int n) { (void)n; }
static int  omp_get_num_procs(void) { return 1; }
#endif

static const opt_config ADAMW = { .type = OPT_ADAMW, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8 };

static double uniform(uint32_t site, int64_t e)
{
    return (double)ag_uniform(ag_noise_bits(7, 0, site, (uint64_t)e));
}
static double between(uint32_t site, int64_t e, double lo, double hi)
{
    return lo + (hi - lo) * uniform(site, e);
}

static opt_range flat(int64_t offset, int64_t count, bool decay)
{
    return (opt_range){ .offset = offset, .count = count, .decay = decay };
}

static opt_state *opt_make(const opt_config *c, int64_t n, bool decay)
{
    const opt_range all = flat(0, n, decay);
    opt_state *o = NULL;
    ag_err err = { 0 };
    assert_int_equal(opt_new(c, NULL, n, &all, 1, &o, &err), AG_OK);
    return o;
}

static void step(opt_state *o, double lr, float *p, float *g)
{
    ag_err err = { 0 };
    assert_int_equal(opt_step(o, lr, 1, p, g, NULL, &err), AG_OK);
}

/* --- steps that can be worked out by hand: all numbers are exact in f32 ----------------------- */

static void sgd_by_hand(void **state)
{
    (void)state;
    const opt_config c = { .type = OPT_SGD, .momentum = 0.5, .weight_decay = 0.25 };
    opt_state *o = opt_make(&c, 1, true);
    float p = 4, g = 2;
    step(o, 0.5, &p, &g);            /* x = 2 + 0.25*4 = 3, m = 3, p = 4 - 1.5 */
    assert_true(p == 2.5f && g == 0 && o->m[0] == 3);
    g = 1;
    step(o, 0.5, &p, &g);            /* x = 1 + 0.625, m = 1.5 + 1.625 = 3.125, p = 2.5 - 1.5625 */
    assert_true(p == 0.9375f && o->m[0] == 3.125f && o->step == 2);
    opt_free(o);
}

static void nesterov_by_hand(void **state)
{
    (void)state;
    const opt_config c = { .type = OPT_SGD, .momentum = 0.5, .nesterov = true };
    opt_state *o = opt_make(&c, 1, true);
    float p = 4, g = 2;
    step(o, 0.5, &p, &g);            /* m = 2, p = 4 - 0.5 (2 + 0.5*2) */
    assert_true(p == 2.5f);
    g = 1;
    step(o, 0.5, &p, &g);            /* m = 1 + 1 = 2, p = 2.5 - 0.5 (1 + 1) */
    assert_true(p == 1.5f);
    opt_free(o);
}

static void adam_by_hand(void **state)
{
    (void)state;
    /* beta1 = 0, beta2 = 0.75: after one step m = g, v = g^2/4, 1 - beta2 = 1/4, so p -= lr g /
     * (|g| + eps) */
    opt_config c = { .type = OPT_ADAMW, .beta1 = 0, .beta2 = 0.75, .eps = 1, .weight_decay = 0.5 };
    opt_state *o = opt_make(&c, 1, true);
    float p = 8, g = -3;
    step(o, 0.5, &p, &g);            /* 8 (1 - 0.25) + 0.5 * 3/4 */
    assert_true(p == 6.375f && o->m[0] == -3 && o->v[0] == 2.25f && g == 0);
    opt_free(o);

    c.type = OPT_ADAM;               /* the decay goes into g: -3 + 0.5*8 = 1 */
    o = opt_make(&c, 1, true);
    p = 8, g = -3;
    step(o, 0.5, &p, &g);            /* 8 - 0.5 * 1/2 */
    assert_true(p == 7.75f && o->m[0] == 1 && o->v[0] == 0.25f);
    opt_free(o);
}

static void average_by_hand(void **state)
{
    (void)state;
    const opt_config c = { .type = OPT_SGD, .ema_decay = 0.75 };
    opt_state *o = opt_make(&c, 1, false);
    float p = 4, g = 4;
    step(o, 1, &p, &g);              /* e = 0.75*4 + 0.25*0 */
    assert_true(p == 0 && o->ema[0] == 3);
    step(o, 1, &p, &g);
    assert_true(o->ema[0] == 2.25f);
    assert_string_equal(o->slot[0].name, "m");
    assert_string_equal(o->slot[1].name, "ema");
    assert_int_equal(o->n_slots, 2);
    opt_free(o);
}

/* --- against double precision ----------------------------------------------------------------- */

typedef struct numbers { double p, g, m, v; } numbers;

/* One step of Adam in f64, and the size of the terms that f32 rounds. */
static numbers adam_f64(const opt_config *c, double t, double lr, double clip, numbers a,
                        double *ret_scale)
{
    const double l2 = c->type == OPT_ADAM ? c->weight_decay : 0,
                 wd = c->type == OPT_ADAMW ? c->weight_decay : 0;
    const double x = clip * a.g + l2 * a.p;
    numbers r = { 0, 0, c->beta1 * a.m + (1 - c->beta1) * x,
                  c->beta2 * a.v + (1 - c->beta2) * x * x };
    const double denom = sqrt(r.v / (1 - pow(c->beta2, t))) + c->eps,
                 rate = lr / (1 - pow(c->beta1, t));
    const double terms =
        c->beta1 * fabs(a.m) + (1 - c->beta1) * (fabs(clip * a.g) + fabs(l2 * a.p));
    r.p = a.p - lr * wd * a.p - rate * r.m / denom;
    *ret_scale = fabs(a.p) + rate * terms / denom;
    return r;
}

static void adam_against_f64(void **state)
{
    (void)state;
    enum { N = 5, STEPS = 10000 };
    for (int type = OPT_ADAMW; type <= OPT_ADAM; type++) {
        opt_config c = ADAMW;
        c.type = (opt_type)type;
        c.weight_decay = 0.1;
        c.clip_norm = 2;
        opt_state *o = opt_make(&c, N, true);
        float p[N] = { 1, -2, 0.5f, 1e-3f, 30 }, g[N];
        for (int s = 0; s < STEPS; s++) {
            numbers before[N];
            for (int i = 0; i < N; i++) {
                g[i] = (float)between((uint32_t)s, i, -2, 2) * (s % 3 ? 1 : 1e-4f);
                before[i] =
                    (numbers){ (double)p[i], (double)g[i], (double)o->m[i], (double)o->v[i] };
            }
            const double norm = opt_norm(N, g), lr = between((uint32_t)s, N, 1e-5, 1e-2);
            step(o, lr, p, g);
            for (int i = 0; i < N; i++) {
                double scale;
                const numbers want =
                    adam_f64(&c, s + 1, lr, norm > 2 ? 2 / norm : 1, before[i], &scale);
                assert_true(fabs((double)p[i] - want.p) <= 1e-6 * scale);
                assert_true(fabs((double)o->v[i] - want.v) <= 1e-6 * want.v);
            }
        }
        opt_free(o);
    }
}

static void sgd_against_f64(void **state)
{
    (void)state;
    const opt_config c = {
        .type = OPT_SGD, .momentum = 0.9, .weight_decay = 0.01, .nesterov = true
    };
    opt_state *o = opt_make(&c, 1, true);
    float p = 1;
    for (int s = 0; s < 10000; s++) {
        float g = (float)between(3, s, -1, 1);
        const double x = (double)g + c.weight_decay * (double)p,
                     m = c.momentum * (double)o->m[0] + x;
        const double want = (double)p - 0.01 * (x + c.momentum * m);
        const double scale = fabs((double)p) + 0.01 * (fabs(x) + fabs(m) + 1);
        step(o, 0.01, &p, &g);
        assert_true(fabs((double)p - want) <= 1e-6 * scale);
    }
    opt_free(o);
}

/* --- clipping --------------------------------------------------------------------------------- */

static void norm_is_right(void **state)
{
    (void)state;
    static float x[70001];
    for (int64_t n = 0; n <= 70001; n = 3 * n + 1 + n / 7) {
        long double sum = 0;
        for (int64_t i = 0; i < n; i++) {
            x[i] = (float)between(5, i, -1, 1) * (i % 5 ? 1 : 1e15f);
            sum += (long double)x[i] * x[i];
        }
        const double want = (double)sqrtl(sum);
        assert_true(fabs(opt_norm(n, x) - want) <= 1e-14 * want);
    }
    x[0] = 3e30f, x[1] = 4e30f;      /* squares that f32 does not hold */
    assert_true(fabs(opt_norm(2, x) - 5e30) <= 1e-6 * 5e30);
}

static void clip_scales_the_gradient(void **state)
{
    (void)state;
    opt_config c = { .type = OPT_SGD, .clip_norm = 2.5 };
    opt_state *o = opt_make(&c, 2, true);
    float p[2] = { 0, 0 }, g[2] = { 3, 4 };
    double norm = 0;
    assert_int_equal(opt_step(o, 1, 1, p, g, &norm, NULL), AG_OK);
    assert_true(norm == 5 && p[0] == -1.5f && p[1] == -2);
    g[0] = 1.5f, g[1] = 2;           /* just at the limit: untouched */
    assert_int_equal(opt_step(o, 1, 1, p, g, &norm, NULL), AG_OK);
    assert_true(norm == 2.5 && p[0] == -3 && p[1] == -4);
    opt_free(o);
}

static void bad_gradient_changes_nothing(void **state)
{
    (void)state;
    static const float BAD[] = { NAN, INFINITY, -INFINITY };
    opt_config c = ADAMW;
    c.ema_decay = 0.5;
    for (int i = 0; i < 3; i++) {
        opt_state *o = opt_make(&c, 3, true);
        float p[3] = { 1, 2, 3 }, g[3] = { 1, BAD[i], 1 };
        double norm = 0;
        ag_err err = { 0 };
        assert_int_equal(opt_step(o, 1, 1, p, g, &norm, &err), AG_EDIVERGED);
        assert_false(isfinite(norm));
        assert_non_null(strstr(err.msg, "step 0"));
        assert_true(p[0] == 1 && p[1] == 2 && p[2] == 3 && g[0] == 1 && o->m[0] == 0 &&
                    o->step == 0);
        opt_free(o);
    }
}

/* Moments of a weight without gradient become zero, not denormal numbers that stay for good. */
static void idle_moments_end(void **state)
{
    (void)state;
#ifdef __SSE__
    opt_config c = ADAMW;
    c.beta2 = 0.9;
    opt_state *o = opt_make(&c, 1, false);
    float p = 1, g = 1;
    for (int s = 0; s < 900; s++) step(o, 1e-3, &p, &g);
    assert_true(o->m[0] == 0 && o->v[0] == 0 && isfinite(p));
    opt_free(o);
#else
    skip();
#endif
}

/* --- ranges, threads, errors ------------------------------------------------------------------ */

/* With g = 0, AdamW halves what decays at lr * weight_decay = 1/2 and leaves the rest. */
static void decay_where_flagged(void **state)
{
    (void)state;
    enum { N = 30000, RANGES = 12 };
    static float p[N], g[N];
    for (int round = 0; round < 200; round++) {
        opt_range r[RANGES];
        int64_t at = 0;
        int n = 0;
        for (; n < RANGES; n++) {
            const double kind = uniform(1, 99 * round + n);
            const int64_t some = (int64_t)between(2, 99 * round + n, 0, 3000);
            const int64_t hole = kind < 0.4 ? 0 : kind < 0.7 ? 1 : some;
            const int64_t count = (int64_t)between(3, 99 * round + n, 0, 9000);
            if (at + hole + count > N) break;
            r[n] = flat(at + hole, count, uniform(4, 99 * round + n) < 0.5);
            at += hole + count;
        }
        opt_config c = ADAMW;
        c.weight_decay = 0.5;
        opt_state *o = NULL;
        assert_int_equal(opt_new(&c, NULL, N, r, n, &o, NULL), AG_OK);
        for (int i = 0; i < N; i++) p[i] = 2, g[i] = 0;
        step(o, 1, p, g);
        for (int i = 0, k = 0; i < N; i++) {
            while (k < n && i >= r[k].offset + r[k].count) k++;
            const bool decays = k < n && i >= r[k].offset && r[k].decay;
            assert_true(p[i] == (decays ? 1.0f : 2.0f));
        }
        opt_free(o);
    }
}

static void threads_agree(void **state)
{
    (void)state;
    enum { N = 100003, STEPS = 5 };
    static const int THREADS[] = { 1, 2, 3, 7 };
    static float first[5][N], p[N], g[N];
    for (int type = OPT_ADAMW; type <= OPT_SGD; type++) {
        for (int k = 0; k < 4; k++) {
            omp_set_num_threads(THREADS[k]);
            opt_config c = { .type = (opt_type)type, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8,
                             .momentum = 0.9, .nesterov = true, .weight_decay = 0.1,
                             .clip_norm = 1, .ema_decay = 0.99 };
            const opt_range r[] = { flat(0, 777, true), flat(800, 50000, false),
                                    flat(60000, 40003, true) };
            opt_state *o = NULL;
            assert_int_equal(opt_new(&c, NULL, N, r, 3, &o, NULL), AG_OK);
            for (int i = 0; i < N; i++) p[i] = (float)between(8, i, -1, 1);
            double norm = 0;
            for (int s = 0; s < STEPS; s++) {
                for (int i = 0; i < N; i++) g[i] = (float)between((uint32_t)(20 + s), i, -1, 1);
                assert_int_equal(opt_step(o, 0.01, 1, p, g, &norm, NULL), AG_OK);
            }
            const float last = (float)norm;
            const float *now[5] = { p, o->m, o->ema, o->v ? o->v : o->m, &last };
            for (int j = 0; j < 5; j++) {
                const size_t bytes = j == 4 ? sizeof last : N * sizeof *p;
                if (k) assert_memory_equal(now[j], first[j], bytes);
                else memcpy(first[j], now[j], bytes);
            }
            opt_free(o);
        }
    }
    omp_set_num_threads(omp_get_num_procs());
}

static void bad_settings_are_named(void **state)
{
    (void)state;
    static const struct { opt_config c; const char *word; } CASES[] = {
        { { .beta1 = 1, .eps = 1 }, "optim.beta1" },
        { { .beta2 = -0.1, .eps = 1 }, "optim.beta2" },
        { { .eps = 0 }, "optim.eps" },
        { { .eps = NAN }, "optim.eps" },
        { { .type = OPT_SGD, .momentum = 1 }, "optim.momentum" },
        { { .type = OPT_SGD, .nesterov = true }, "optim.nesterov" },
        { { .eps = 1, .weight_decay = -1 }, "optim.weight_decay" },
        { { .eps = 1, .clip_norm = NAN }, "optim.clip_norm" },
        { { .eps = 1, .ema_decay = 1 }, "optim.ema_decay" },
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        opt_state *o = NULL;
        ag_err err = { 0 };
        assert_int_equal(opt_new(&CASES[i].c, NULL, 4, NULL, 0, &o, &err), AG_ECONFIG);
        assert_non_null(strstr(err.msg, CASES[i].word));
        assert_null(o);
    }
    const opt_range bad[][2] = { { flat(0, 3, true), flat(2, 1, true) },
                                 { flat(0, 1, true), flat(2, 3, true) },
                                 { flat(-1, 2, true), flat(2, 1, true) },
                                 { flat(0, -1, true), flat(2, 1, true) },
                                 { flat(0, 1, true), { 1, 3, true, 2, 2 } },
                                 { flat(0, 1, true), { 1, 3, true, 3, 0 } },
                                 { flat(0, 1, true), { 1, 2, true, -1, -2 } } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        opt_state *o = NULL;
        assert_int_equal(opt_new(&ADAMW, NULL, 4, bad[i], 2, &o, NULL), AG_EFAIL);
    }
}

static void out_of_memory_is_reported(void **state)
{
    (void)state;
    opt_config c = ADAMW;
    c.ema_decay = 0.5;
    int failures = 0;
    for (int k = 1;; k++, failures++) {
        opt_state *o = NULL;
        ag_err err = { 0 };
        ag_fault_after(k, 0);
        const int r = opt_new(&c, NULL, 100, NULL, 0, &o, &err);
        ag_fault_after(0, 0);
        if (r == AG_OK) {
            opt_free(o);
            break;
        }
        assert_int_equal(r, AG_ENOMEM);
        assert_int_equal(err.code, AG_ENOMEM);
        assert_null(o);
    }
    assert_int_equal(failures, 6);   /* the state, its parts, ranges, m, v, ema */
}

/* --- schedules -------------------------------------------------------------------------------- */

static double ulps(double a, double b)
{
    return a == b ? 0
                  : fabs(a - b) /
                        (nextafter(fmax(fabs(a), fabs(b)), INFINITY) - fmax(fabs(a), fabs(b)));
}

static double lr_formula(const opt_schedule *s, int64_t i)
{
    const long double pi = 3.14159265358979323846264L, w = s->warmup_steps, end = s->decay_steps;
    const long double lr = s->lr, min = s->min_lr, t = i;
    if (s->shape == OPT_RSQRT)
        return fmax(s->min_lr, (double)(lr * sqrtl(fmaxl(w, 1)) / sqrtl(fmaxl(t, fmaxl(w, 1)))));
    if (i < s->warmup_steps) return (double)(lr * (t + 1) / (w + 1));
    if (s->shape == OPT_CONSTANT) return s->lr;
    if (s->shape == OPT_INVERSE_SQRT)
        return fmax(s->min_lr, (double)(lr * sqrtl(fmaxl(w, 1) / fmaxl(t, 1))));
    if (i >= s->decay_steps && i > s->warmup_steps) return s->min_lr;
    const long double x = end > w ? (t - w) / (end - w) : 0;
    return (double)(min + (lr - min) * (s->shape == OPT_LINEAR ? 1 - x : (1 + cosl(pi * x)) / 2));
}

static void schedules_follow_the_formula(void **state)
{
    (void)state;
    static const int64_t W[] = { 0, 1, 2, 100 }, END[] = { 100, 101, 350, 5000 };
    for (int shape = OPT_COSINE; shape <= OPT_CONSTANT; shape++)
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++)
                for (int k = 0; k < 2; k++) {
                    const opt_schedule s = { (opt_shape)shape, 3e-4, k ? 3e-5 : 0, W[i], END[j] };
                    assert_int_equal(opt_schedule_check(&s, NULL), AG_OK);
                    for (int64_t t = 0; t < END[j] + 10; t++) {
                        const double got = opt_schedule_lr(&s, t), want = lr_formula(&s, t);
                        /* 1 + cos loses digits near the end, even in long double */
                        const double slack = shape == OPT_COSINE ? 1e-19 * s.lr : 0;
                        assert_true(ulps(got, want) <= 1 || fabs(got - want) <= slack);
                    }
                }
}

static void schedules_are_exact_at_corners(void **state)
{
    (void)state;
    for (int shape = OPT_COSINE; shape <= OPT_CONSTANT; shape++) {
        const opt_schedule s = { (opt_shape)shape, 1e-3, 1e-4, 9, 109 };
        const bool flat = shape == OPT_RSQRT;
        assert_true(ulps(opt_schedule_lr(&s, 0), flat ? 1e-3 : 1e-4) <= 1);
        assert_true(ulps(opt_schedule_lr(&s, 8), flat ? 1e-3 : 9e-4) <= 1);
        assert_true(opt_schedule_lr(&s, 9) == 1e-3);
        if (shape == OPT_CONSTANT) assert_true(opt_schedule_lr(&s, 10) == 1e-3);
        else assert_true(opt_schedule_lr(&s, 10) < 1e-3);
        if (shape == OPT_COSINE || shape == OPT_LINEAR) {
            assert_true(opt_schedule_lr(&s, 108) > 1e-4);
            assert_true(opt_schedule_lr(&s, 109) == 1e-4 && opt_schedule_lr(&s, 110) == 1e-4);
            assert_true(ulps(opt_schedule_lr(&s, 59), 5.5e-4) <= 1);     /* half way */
        }
        if (shape == OPT_INVERSE_SQRT || shape == OPT_RSQRT) {
            assert_true(ulps(opt_schedule_lr(&s, 36), 5e-4) <= 1);
            assert_true(opt_schedule_lr(&s, 1000000) == 1e-4);
        }
    }
}

static void bad_schedules_are_named(void **state)
{
    (void)state;
    static const struct { opt_schedule s; const char *word; } CASES[] = {
        { { OPT_COSINE, 0, 0, 0, 10 }, "optim.lr" },
        { { OPT_COSINE, 1, 2, 0, 10 }, "schedule.min_lr" },
        { { OPT_COSINE, 1, 0, -1, 10 }, "schedule.warmup_steps" },
        { { OPT_LINEAR, 1, 0, 11, 10 }, "schedule.decay_steps" },
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        ag_err err = { 0 };
        assert_int_equal(opt_schedule_check(&CASES[i].s, &err), AG_ECONFIG);
        assert_non_null(strstr(err.msg, CASES[i].word));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sgd_by_hand),
        cmocka_unit_test(nesterov_by_hand),
        cmocka_unit_test(adam_by_hand),
        cmocka_unit_test(average_by_hand),
        cmocka_unit_test(adam_against_f64),
        cmocka_unit_test(sgd_against_f64),
        cmocka_unit_test(norm_is_right),
        cmocka_unit_test(clip_scales_the_gradient),
        cmocka_unit_test(bad_gradient_changes_nothing),
        cmocka_unit_test(idle_moments_end),
        cmocka_unit_test(decay_where_flagged),
        cmocka_unit_test(threads_agree),
        cmocka_unit_test(bad_settings_are_named),
        cmocka_unit_test(out_of_memory_is_reported),
        cmocka_unit_test(schedules_follow_the_formula),
        cmocka_unit_test(schedules_are_exact_at_corners),
        cmocka_unit_test(bad_schedules_are_named),
    };
    return cmocka_run_group_tests_name("optim", tests, NULL, NULL);
}
