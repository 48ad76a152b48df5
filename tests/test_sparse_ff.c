/*
 * test_sparse_ff.c -- what the sparse feed-forward layers promise beside their formulas
 * (test_layers.c, test_golden.c): the same numbers in training, evaluation and decoding, what the
 * estimators and the controls have in common, and what a probe sees.
 */
#include "tests/layer_check.h"

#include "autograd/base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { D = 12, D_FF = 24, N = 4, ROWS = 6, BLOCKS = D_FF / N };

static const nn_ff_config SPARSE = { .kind = NN_FF_SPARSE, .d_ff = D_FF, .bias_out = true,
                                     .block = N, .d_lowrank = 3, .quant_prob = 1,
                                     .temperature = 0.7, .controller_bias = true };

typedef struct model { nn_params *params; nn_ff ff; } model;

static model model_new(const nn_ff_config *c)
{
    model m = { .params = nn_params_new(AG_F64) };
    nn_ff_build(&m.ff, m.params, "ff", D, c);
    params_ready(m.params);
    return m;
}

static ag_tensor *forward(const void *l, ag_tape *t, ag_tensor *x)
{
    return nn_ff_forward(l, t, x, x, NN_TRAIN);
}

static void check_gradients(const nn_ff_config *c)
{
    model m = model_new(c);
    assert_int_equal(nn_ff_params(&m.ff), m.params->n_used);
    check_subject(&(subject){ m.params, &m.ff, forward, AG_SHAPE(5, D), 0 });
    nn_params_free(m.params);
}

/* Soft steps of slices, a switch, and controls whose choice does not move have derivatives. */
static void exact_gradients(void **state)
{
    (void)state;
    nn_ff_config c = SPARSE;
    c.kind = NN_FF_BLOCK;
    c.quant_prob = 0;
    check_gradients(&c);
    c.bias_in = true;
    c.relaxed = true;
    check_gradients(&c);
    c.kind = NN_FF_SWITCH;
    c.relaxed = false;
    check_gradients(&c);
    for (int chooser = NN_CHOOSE_RANDOM; chooser <= NN_CHOOSE_FIRST; chooser++) {
        c = SPARSE;
        c.chooser = (nn_chooser)chooser;
        c.bias_in = true;
        check_gradients(&c);
    }
}

/* y and all gradients of a training step, one after the other; the caller frees. */
static double *step(const model *m, int64_t *ret_n)
{
    ag_tape *t = tape_new();
    noise(t, 3, 0, ROWS);
    nn_params_zero_grad(m->params);
    ag_tensor *x = input(t, AG_SHAPE(ROWS, D), X_SITE, true);
    ag_tensor *y = nn_ff_forward(&m->ff, t, x, NULL, NN_TRAIN);
    double v[ROWS * D];
    for (int i = 0; i < ROWS * D; i++) v[i] = cotangent(i);
    ag_backward_from(t, y, v);
    tape_ok(t);
    *ret_n = 2 * ROWS * D + m->params->n;
    double *all = malloc((size_t)*ret_n * sizeof *all);
    memcpy(all, y->data, sizeof v);
    memcpy(all + ROWS * D, x->grad, sizeof v);
    memcpy(all + 2 * ROWS * D, m->params->grads, (size_t)m->params->n * sizeof *all);
    ag_tape_free(t);
    return all;
}

static void same_step(const nn_ff_config *a, const nn_ff_config *b, bool want, double tolerance)
{
    model ma = model_new(a), mb = model_new(b);
    int64_t na, nb;
    double *ga = step(&ma, &na), *gb = step(&mb, &nb), most = 0;
    assert_int_equal(na, nb);
    for (int64_t i = 0; i < na; i++) most = fmax(most, fabs(ga[i] - gb[i]));
    if (want) assert_true(most <= tolerance);
    else assert_true(most > 1e-3);
    assert_memory_equal(ga, gb, ROWS * D * sizeof *ga);          /* forward is always the same */
    free(ga);
    free(gb);
    nn_params_free(ma.params);
    nn_params_free(mb.params);
}

/* One candidate is the mask before the ReLU, N of them the mask after it; two are neither. */
static void estimators_meet(void **state)
{
    (void)state;
    for (int scaled = 0; scaled < 2; scaled++) {
        nn_ff_config before = SPARSE, after, c;
        before.scaled = scaled;
        c = after = before;
        after.mask_order = NN_MASK_AFTER_RELU;
        same_step(&before, &after, false, 0);
        c.candidates = 1;
        same_step(&before, &c, true, 0);
        c.candidates = N;
        same_step(&after, &c, true, 0);
        c.candidates = 2;
        same_step(&before, &c, false, 0);
        same_step(&after, &c, false, 0);
    }
}

/* Hears of three of four units: between two and four. */
static void candidates_are_the_most_probable(void **state)
{
    (void)state;
    double off[N + 1];
    nn_ff_config all = SPARSE;
    all.candidates = N;
    model m = model_new(&all);
    int64_t n;
    double *want = step(&m, &n);
    nn_params_free(m.params);
    for (int k = 1; k <= N; k++) {
        nn_ff_config c = SPARSE;
        c.candidates = k;
        m = model_new(&c);
        double *got = step(&m, &n);
        off[k] = 0;
        for (int64_t i = 0; i < n; i++) off[k] += fabs(got[i] - want[i]);
        free(got);
        nn_params_free(m.params);
    }
    free(want);
    assert_true(off[1] > off[2] && off[2] > off[3] && off[3] > off[N]);
    assert_true(off[N] == 0);
}

/* Training without noise, evaluation, and evaluation row by row are the same bits, as the sums have
 * one order. */
static void one_path(void **state)
{
    (void)state;
    static const nn_ff_kind kinds[] = { NN_FF_SPARSE, NN_FF_BLOCK, NN_FF_SWITCH };
    for (int i = 0; i < 12; i++) {
        nn_ff_config c = SPARSE;
        c.kind = kinds[i % 3];
        c.temperature = 0;
        c.mask_order = i & 4 ? NN_MASK_AFTER_RELU : NN_MASK_BEFORE_RELU;
        c.scaled = c.kind != NN_FF_SWITCH && i >= 6;
        model m = model_new(&c);
        ag_tape *t = tape_new();
        noise(t, 3, 0, ROWS);
        ag_tensor *x = input(t, AG_SHAPE(ROWS, D), X_SITE, false);
        const ag_tensor *train = nn_ff_forward(&m.ff, t, x, x, NN_TRAIN);
        const ag_tensor *eval = nn_ff_forward(&m.ff, t, x, x, NN_EVAL);
        tape_ok(t);
        assert_memory_equal(train->data, eval->data, ROWS * D * sizeof(double));
        for (int r = 0; r < ROWS; r++) {
            ag_tensor *row = ag_input_f64(t, AG_SHAPE(1, D), (double *)x->data + r * D, false);
            const ag_tensor *y = nn_ff_forward(&m.ff, t, row, row, NN_EVAL);
            tape_ok(t);
            assert_memory_equal(y->data, (double *)eval->data + r * D, D * sizeof(double));
        }
        ag_tape_free(t);
        nn_params_free(m.params);
    }
}

/* dlow of choose with the unit matrix for c2 is dz: bit for bit that of the soft mask. */
static void straight_through_is_soft(void **state)
{
    (void)state;
    ag_tape *t = tape_new();
    noise(t, 3, 0, ROWS);
    double unit[D_FF * D_FF] = { 0 }, v[ROWS * D_FF];
    for (int i = 0; i < D_FF; i++) unit[i * D_FF + i] = 1;
    for (int i = 0; i < ROWS * D_FF; i++) v[i] = cotangent(i);
    for (int relaxed = 0; relaxed < 2; relaxed++) {
        const ag_controller_options soft = { N, relaxed, false, 0.7, 5, 0 };
        const ag_choose_options hard = { .n = N, .picks = 1, .relaxed = relaxed, .all = true,
                                         .temperature = 0.7, .site = 5 };
        ag_tensor *z[2];
        for (int i = 0; i < 2; i++) z[i] = input(t, AG_SHAPE(ROWS, D_FF), X_SITE, true);
        ag_tensor *c2 = ag_input_f64(t, AG_SHAPE(D_FF, D_FF), unit, false);
        ag_backward_from(t, ag_control(t, z[0], &soft, NULL), v);
        ag_backward_from(t, ag_choose(t, z[1], c2, NULL, &hard, NULL), v);
        tape_ok(t);
        assert_memory_equal(z[0]->grad, z[1]->grad, sizeof v);
    }
    ag_tape_free(t);
}

/* The oracle's pre-activations are the largest of their blocks; the others do not look. */
static void controls(void **state)
{
    (void)state;
    for (int chooser = NN_CHOOSE_RANDOM; chooser <= NN_CHOOSE_ORACLE; chooser++) {
        nn_ff_config c = SPARSE;
        c.chooser = (nn_chooser)chooser;
        model m = model_new(&c);
        int64_t used[D_FF] = { 0 };
        int32_t choice[ROWS * BLOCKS];
        nn_ff_probe probe = { .used = used, .choice = choice, .cap = ROWS };
        m.ff.probe = &probe;
        ag_tape *t = tape_new();
        noise(t, 3, 0, ROWS);
        ag_tensor *x = input(t, AG_SHAPE(ROWS, D), X_SITE, false);
        nn_ff_forward(&m.ff, t, x, NULL, NN_EVAL);
        const double *a = nn_linear_forward(&m.ff.in, t, x, AG_ACT_NONE, NULL)->data;
        tape_ok(t);
        assert_int_equal(probe.rows, ROWS);
        int first = 0, largest = 0;
        for (int i = 0; i < ROWS * BLOCKS; i++) {
            const double *block = a + i * N;
            int best = 0;
            for (int j = 1; j < N; j++) best = block[j] > block[best] ? j : best;
            first += choice[i] == 0;
            largest += choice[i] == best;
        }
        const int all = ROWS * BLOCKS;
        assert_true((first == all) == (chooser == NN_CHOOSE_FIRST));
        assert_true((largest == all) == (chooser == NN_CHOOSE_ORACLE));
        ag_tape_free(t);
        nn_params_free(m.params);
    }
}

/* A probe counts each choice once, keeps those of the first rows, and adds up the entropy of p. */
static void a_probe_counts(void **state)
{
    (void)state;
    model m = model_new(&SPARSE);
    int64_t used[D_FF] = { 0 }, sum = 0;
    int32_t choice[2 * BLOCKS];
    nn_ff_probe probe = { .used = used, .choice = choice, .cap = 2 };
    m.ff.probe = &probe;
    ag_tape *t = tape_new();
    noise(t, 3, 0, ROWS);
    ag_tensor *x = input(t, AG_SHAPE(ROWS, D), X_SITE, false);
    nn_ff_forward(&m.ff, t, x, NULL, NN_EVAL);
    nn_ff_forward(&m.ff, t, x, NULL, NN_EVAL);
    tape_ok(t);
    for (int i = 0; i < D_FF; i++) {
        assert_int_equal(used[i] % 2, 0);
        sum += used[i];
    }
    assert_int_equal(sum, 2 * ROWS * BLOCKS);
    assert_int_equal(probe.rows, 2 * ROWS);
    for (int i = 0; i < 2 * BLOCKS; i++) assert_in_range(choice[i], 0, N - 1);
    assert_true(probe.entropy > 0 && probe.entropy < 2 * ROWS * BLOCKS * log(N));
    ag_tape_free(t);
    nn_params_free(m.params);
}

/* The share of hard steps rises to 1 and stays there. */
static void the_ramp(void **state)
{
    (void)state;
    nn_ff_config c = SPARSE;
    c.quant_prob = 0;
    c.quant_ramp = 1000;
    c.temperature = 0;
    model m = model_new(&c);
    ag_tape *t = tape_new();
    int hard[3] = { 0 };
    for (uint32_t s = 0; s < 1500; s++, ag_tape_reset(t)) {
        noise(t, s, 0, ROWS);
        ag_tensor *x = input(t, AG_SHAPE(ROWS, D), X_SITE, false);
        const ag_tensor *train = nn_ff_forward(&m.ff, t, x, NULL, NN_TRAIN);
        const ag_tensor *eval = nn_ff_forward(&m.ff, t, x, NULL, NN_EVAL);
        hard[s / 500] += !memcmp(train->data, eval->data, sizeof(double) * ROWS * D);
    }
    tape_ok(t);
    assert_in_range(hard[0], 75, 175);               /* 125, within 5 sigma = 50 */
    assert_in_range(hard[1], 325, 425);              /* 375 */
    assert_int_equal(hard[2], 500);
    ag_tape_free(t);
    nn_params_free(m.params);
}

/* A training step of `rows` rows in `parts`, with the gradients of what v picks; y [rows,D] and
 * grads are overwritten. */
static void coin_step(const model *m, int64_t rows, int64_t parts, const double *v, double *y,
                      double *grads)
{
    nn_params_zero_grad(m->params);
    for (int64_t i = 0; i < parts; i++) {
        const int64_t n = rows / parts, at = i * n * D;
        ag_tape *t = tape_new();
        noise(t, 7, i * n, n);
        const double *all = input(t, AG_SHAPE(rows, D), X_SITE, false)->data;
        ag_tensor *x = ag_input_f64(t, AG_SHAPE(1, n, D), all + at, true);
        ag_tensor *out = nn_ff_forward(&m->ff, t, x, x, NN_TRAIN);
        assert_true(ag_shape_equal(&out->shape, &x->shape));
        memcpy(y + at, out->data, (size_t)(n * D) * sizeof *y);
        ag_backward_from(t, out, v + at);
        tape_ok(t);
        memcpy(grads + at, x->grad, (size_t)(n * D) * sizeof *grads);
        ag_tape_free(t);
    }
    memcpy(grads + rows * D, m->params->grads, (size_t)m->params->n * sizeof *grads);
}

enum { COIN_ROWS = 24, COIN_NUMBERS = 4 * COIN_ROWS * D };

/*
 * With a coin for each k rows, a row is what it would be in a hard or in a soft step, all k rows
 * alike; the gradients are those of the hard rows in a hard step and of the soft ones in a soft
 * step; and parts of a batch do not matter.
 */
static void coins_of_rows(void **state)
{
    (void)state;
    static double y[3][COIN_NUMBERS], g[3][COIN_NUMBERS], v[3][COIN_NUMBERS];
    for (int i = 0; i < 12; i++) {
        nn_ff_config c = SPARSE;
        c.kind = i & 4 ? NN_FF_BLOCK : NN_FF_SPARSE;
        c.mask_order = i & 2 ? NN_MASK_AFTER_RELU : NN_MASK_BEFORE_RELU;
        c.scaled = i & 1;
        c.temperature = 0;
        c.coin_rows = (int64_t[]){ 1, 3, 8 }[i / 4];
        c.quant_prob = 0.5;
        model mixed = model_new(&c);
        c.coin_rows = 0;
        c.quant_prob = 1;
        model hard = model_new(&c);
        c.quant_prob = 0;
        model soft = model_new(&c);
        const int64_t n = COIN_ROWS * D + mixed.params->n;
        assert_true(n <= COIN_NUMBERS);
        for (int j = 0; j < COIN_ROWS * D; j++) v[0][j] = v[1][j] = v[2][j] = cotangent(j);
        coin_step(&mixed, COIN_ROWS, 1, v[0], y[0], g[0]);
        coin_step(&hard, COIN_ROWS, 1, v[1], y[1], g[1]);
        coin_step(&soft, COIN_ROWS, 1, v[2], y[2], g[2]);
        int heads = 0;
        const size_t row = D * sizeof **y;
        for (int r = 0; r < COIN_ROWS; r++) {
            const bool is_hard = !memcmp(y[0] + r * D, y[1] + r * D, row);
            assert_true(is_hard != !memcmp(y[0] + r * D, y[2] + r * D, row));
            if (r % mixed.ff.config.coin_rows)
                assert_true(is_hard == !memcmp(y[0] + (r - 1) * D, y[1] + (r - 1) * D, row));
            memset(v[is_hard ? 2 : 1] + r * D, 0, row);
            heads += is_hard;
        }
        if (mixed.ff.config.coin_rows == 1) assert_in_range(heads, 3, COIN_ROWS - 3);
        coin_step(&hard, COIN_ROWS, 1, v[1], y[1], g[1]);
        coin_step(&soft, COIN_ROWS, 1, v[2], y[2], g[2]);
        for (int64_t j = 0; j < n; j++) assert_true(fabs(g[0][j] - g[1][j] - g[2][j]) < 1e-12);
        coin_step(&mixed, COIN_ROWS, 3, v[0], y[1], g[1]);
        assert_memory_equal(y[0], y[1], COIN_ROWS * row);
        for (int64_t j = 0; j < n; j++) assert_true(fabs(g[0][j] - g[1][j]) < 1e-12);
        nn_params_free(mixed.params);
        nn_params_free(hard.params);
        nn_params_free(soft.params);
    }
}

/* Shares of hard rows, over steps: each coin is as the configuration says, and its own. */
static void coins_are_fair(void **state)
{
    (void)state;
    enum { STEPS = 200 };
    nn_ff_config c = SPARSE;
    c.quant_prob = 0.3;
    c.temperature = 0;
    c.coin_rows = 1;
    model m = model_new(&c);
    ag_tape *t = tape_new();
    int hard = 0, both = 0;
    for (uint32_t s = 0; s < STEPS; s++, ag_tape_reset(t)) {
        noise(t, s, 0, ROWS);
        ag_tensor *x = input(t, AG_SHAPE(ROWS, D), X_SITE, false);
        const double *train = nn_ff_forward(&m.ff, t, x, NULL, NN_TRAIN)->data;
        const double *eval = nn_ff_forward(&m.ff, t, x, NULL, NN_EVAL)->data;
        tape_ok(t);
        bool before = false;
        for (int r = 0; r < ROWS; r++) {
            const bool is = !memcmp(train + r * D, eval + r * D, D * sizeof *eval);
            hard += is;
            both += is && before;
            before = is;
        }
    }
    assert_in_range(hard, 360 - 80, 360 + 80);       /* of 1200, 5 sigma = 79 */
    assert_in_range(both, 90 - 50, 90 + 50);         /* of 1000 pairs */
    ag_tape_free(t);
    nn_params_free(m.params);
}

/* Some of a part's rows never share noise with another part. */
static void noise_of_some_rows(void **state)
{
    (void)state;
    for (int relaxed = 0; relaxed < 2; relaxed++) {
        const ag_controller_options all = { N, relaxed, true, 0.7, 5, 0 };
        ag_controller_options some = all;
        some.of_rows = ROWS;
        ag_tape *t = tape_new();
        noise(t, 3, 2, 1);                           /* the third part of three */
        ag_tensor *z = input(t, AG_SHAPE(ROWS, D_FF), X_SITE, false);
        ag_tensor *few = ag_input_f64(t, AG_SHAPE(2, D_FF), z->data, false), *want, *got, *off;
        ag_control(t, z, &all, &want);
        ag_control(t, few, &some, &got);
        ag_control(t, few, &all, &off);
        tape_ok(t);
        const size_t bytes = 2 * BLOCKS * sizeof(int32_t);
        assert_memory_equal(want->data, got->data, bytes);
        assert_memory_not_equal(want->data, off->data, bytes);
        ag_tape_free(t);
    }
}

static void counts(void **state)
{
    (void)state;
    nn_ff_config c = { .kind = NN_FF_SPARSE, .d_ff = 1536, .block = 64, .bias_out = true,
                       .controller_bias = true };
    nn_params *p = nn_params_new(AG_F64);
    nn_ff ff;
    nn_ff_build(&ff, p, "a", 384, &c);
    assert_int_equal(nn_ff_touched(&ff), 66432);     /* facts of the paper's code, d 384, N 64 */
    c.rank_rule = NN_RANK_D_MODEL;
    nn_ff_build(&ff, p, "b", 384, &c);
    assert_int_equal(nn_ff_touched(&ff), 31872);
    nn_params_free(p);
}

static void bad_configs(void **state)
{
    (void)state;
    static const struct { nn_ff_config c; const char *says; } bad[] = {
        { { .kind = NN_FF_SPARSE, .d_ff = 24, .block = 5 }, "must divide" },
        { { .kind = NN_FF_SPARSE, .d_ff = 24, .block = 4, .candidates = 5 }, "ff.candidates = 5" },
        { { .kind = NN_FF_SPARSE, .d_ff = 24, .block = 4, .quant_prob = 2 }, "ff.quant_prob = 2" },
        { { .kind = NN_FF_SPARSE, .d_ff = 24, .block = 4, .coin_rows = -1 }, "ff.coin_rows = -1" },
        { { .kind = NN_FF_BLOCK, .d_ff = 24, .block = 4, .chooser = NN_CHOOSE_ORACLE }, "oracle" },
        { { .kind = NN_FF_SWITCH, .d_ff = 24, .block = 4, .chooser = NN_CHOOSE_RANDOM },
          "only ff.choice: controller" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ag_err err = { 0 };
        assert_int_equal(nn_ff_check(&bad[i].c, 12, &err), AG_ECONFIG);
        assert_non_null(strstr(err.msg, bad[i].says));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_gradients), cmocka_unit_test(estimators_meet),
        cmocka_unit_test(candidates_are_the_most_probable), cmocka_unit_test(one_path),
        cmocka_unit_test(straight_through_is_soft), cmocka_unit_test(controls),
        cmocka_unit_test(a_probe_counts), cmocka_unit_test(the_ramp), cmocka_unit_test(counts),
        cmocka_unit_test(bad_configs),
        cmocka_unit_test(coins_of_rows), cmocka_unit_test(coins_are_fair),
        cmocka_unit_test(noise_of_some_rows),
    };
    return cmocka_run_group_tests_name("sparse_ff", tests, NULL, NULL);
}
