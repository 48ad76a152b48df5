/*
 * test_scaler.c -- the scale of the loss against PyTorch's GradScaler on 10,000 sequences of
 * overflows, its floor, the smooth rule, and what is counted.
 */
#include "optim/scaler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "golden/values_scaler.inc"

/* 16 bits, as in make_scaler.py. */
static uint32_t noise(uint32_t i, uint32_t e)
{
    uint32_t h = (i * 1000003u + e) * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    return h >> 16;
}

static uint64_t mixed(uint64_t h, uint64_t word) { return (h ^ word) * 1099511628211u; }

static uint32_t bits(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static opt_scaler scaler(opt_scaling type, double scale, double floor)
{
    return (opt_scaler){ .type = type, .growth = 2, .backoff = 0.5, .floor = floor,
                         .growth_interval = 2000, .scale = scale };
}

/* The settings of sequence i, and one in how many of its steps overflows. */
static opt_scaler sequence(uint32_t i, uint32_t *ret_often)
{
    static const double GROWTH[] = { 2, 1.5, 4, 1.0003466337 },
                        BACKOFF[] = { 0.5, 0.8, 0.25, 0.9999 };
    static const float INITIAL[] = { 65536, 0x1p127f, 1e-44f, 1 };
    static const int64_t INTERVAL[] = { 1, 2, 7, 20 };
    static const uint32_t OFTEN[] = { 0, 1 << 16, 1 << 13, 1 << 11 };
    *ret_often = OFTEN[noise(i, 1004) % 4];
    return (opt_scaler){ .type = OPT_SCALING_DYNAMIC, .growth = GROWTH[noise(i, 1000) % 4],
                         .backoff = BACKOFF[noise(i, 1001) % 4],
                         .scale = (double)INITIAL[noise(i, 1002) % 4],
                         .growth_interval = INTERVAL[noise(i, 1003) % 4] };
}

static void dynamic_is_that_of_pytorch(void **state)
{
    (void)state;
    enum { SEQUENCES = 10000, STEPS = 120, EACH = 100 };
    const uint64_t begin = 14695981039346656037u;
    uint64_t total = begin;
    int64_t skipped = 0;
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        uint32_t often;
        opt_scaler s = sequence(i, &often);
        uint64_t h = begin;
        for (uint32_t e = 0; e < STEPS; e++) {
            opt_scaler_update(&s, noise(i, e) < often ? OPT_BAD_GRADIENT : OPT_FINITE);
            assert_true(s.scale == (double)(float)s.scale);
            h = mixed(h, bits((float)s.scale));
            h = mixed(h, (uint64_t)s.finite_steps);
            h = mixed(h, bits((float)opt_scaler_unscale(&s)));
        }
        skipped += s.skipped;
        total = mixed(i % EACH ? total : begin, h);
        if (i % EACH == EACH - 1 && total != scaler_hash[i / EACH])
            fail_msg("sequences %u to %u: another scale than PyTorch's", i + 1 - EACH, i);
    }
    assert_in_range(skipped, SEQUENCES * STEPS / 8, SEQUENCES * STEPS / 2);
}

static void dynamic_by_hand(void **state)
{
    (void)state;
    opt_scaler s = scaler(OPT_SCALING_DYNAMIC, 65536, 1);
    for (int i = 0; i < 1999; i++) opt_scaler_update(&s, OPT_FINITE);
    assert_true(s.scale == 65536 && s.finite_steps == 1999);
    opt_scaler_update(&s, OPT_FINITE);
    assert_true(s.scale == 131072 && s.finite_steps == 0 && s.skipped == 0);
    opt_scaler_update(&s, OPT_FINITE);
    opt_scaler_update(&s, OPT_BAD_GRADIENT);
    assert_true(s.scale == 65536 && s.finite_steps == 0 && s.skipped_in_row == 1);
    assert_true(opt_scaler_unscale(&s) == 0x1p-16);
}

static void scale_keeps_its_floor(void **state)
{
    (void)state;
    for (int type = OPT_SCALING_DYNAMIC; type <= OPT_SCALING_SMOOTH; type++) {
        opt_scaler s = scaler((opt_scaling)type, 8, 3);
        opt_scaler_update(&s, OPT_BAD_GRADIENT);
        assert_true(s.scale == 4);
        for (int i = 0; i < 5; i++) opt_scaler_update(&s, OPT_BAD_GRADIENT);
        assert_true(s.scale == 3 && s.skipped == 6 && s.skipped_in_row == 6);
        opt_scaler_update(&s, OPT_FINITE);
        assert_true(s.skipped == 6 && s.skipped_in_row == 0);
    }
}

/* x 2 in 2000 finite steps, however they lie; bad losses do not count. */
static void smooth_doubles_in_an_interval(void **state)
{
    (void)state;
    opt_scaler s = scaler(OPT_SCALING_SMOOTH, 65536, 1024);
    opt_scaler_update(&s, OPT_FINITE);
    assert_true(fabs(s.scale / 65536 - 1.0003466337) < 1e-10);       /* the published factor */
    for (int i = 1; i < 2000; i++) {
        opt_scaler_update(&s, OPT_FINITE);
        if (i % 100 == 0) opt_scaler_update(&s, OPT_BAD_LOSS);
    }
    assert_true(fabs(s.scale / 131072 - 1) < 1e-9 && s.skipped == 19);
    const double before = s.scale;
    opt_scaler_update(&s, OPT_BAD_GRADIENT);
    assert_true(s.scale == before / 2);
    s.scale = 3e38;
    for (int i = 0; i < 4000; i++) opt_scaler_update(&s, OPT_FINITE);
    assert_true(isfinite((float)s.scale));
}

static void a_bad_loss_leaves_the_scale(void **state)
{
    (void)state;
    for (int type = OPT_SCALING_STATIC; type <= OPT_SCALING_SMOOTH; type++) {
        opt_scaler s = scaler((opt_scaling)type, 4096, 1);
        opt_scaler_update(&s, OPT_FINITE);
        const opt_scaler before = s;
        for (int i = 1; i <= 30; i++) {
            opt_scaler_update(&s, OPT_BAD_LOSS);
            assert_true(s.scale == before.scale && s.finite_steps == before.finite_steps);
            assert_true(s.skipped == i && s.skipped_in_row == i);
        }
    }
}

static void static_stays(void **state)
{
    (void)state;
    opt_scaler s = scaler(OPT_SCALING_STATIC, 3, 1);
    for (int i = 0; i < 5000; i++) opt_scaler_update(&s, i % 7 ? OPT_FINITE : OPT_BAD_GRADIENT);
    assert_true(s.scale == 3 && s.skipped == 715);
    assert_true(opt_scaler_unscale(&s) == (double)(1 / 3.0f));
}

static void bad_settings_are_named(void **state)
{
    (void)state;
    static const struct { opt_scaler s; const char *word; } CASES[] = {
        { { .scale = 0, .growth = 2, .backoff = 0.5, .growth_interval = 1 }, "loss_scale_init" },
        { { .scale = NAN, .growth = 2, .backoff = 0.5, .growth_interval = 1 }, "loss_scale_init" },
        { { .scale = 1e39, .growth = 2, .backoff = 0.5, .growth_interval = 1 }, "loss_scale_init" },
        { { .scale = 1, .floor = 2, .growth = 2, .backoff = 0.5, .growth_interval = 1 }, "floor" },
        { { .scale = 1, .growth = 1, .backoff = 0.5, .growth_interval = 1 }, "growth" },
        { { .scale = 1, .growth = 2, .backoff = 1, .growth_interval = 1 }, "backoff" },
        { { .scale = 1, .growth = 2, .backoff = 0.5, .growth_interval = 0 }, "growth_interval" },
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        ag_err err = { 0 };
        assert_int_equal(opt_scaler_check(&CASES[i].s, &err), AG_ECONFIG);
        assert_non_null(strstr(err.msg, CASES[i].word));
    }
    const opt_scaler good = scaler(OPT_SCALING_DYNAMIC, 1, 1);
    assert_int_equal(opt_scaler_check(&good, NULL), AG_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dynamic_is_that_of_pytorch),
        cmocka_unit_test(dynamic_by_hand),
        cmocka_unit_test(scale_keeps_its_floor),
        cmocka_unit_test(smooth_doubles_in_an_interval),
        cmocka_unit_test(a_bad_loss_leaves_the_scale),
        cmocka_unit_test(static_stays),
        cmocka_unit_test(bad_settings_are_named),
    };
    return cmocka_run_group_tests_name("scaler", tests, NULL, NULL);
}
