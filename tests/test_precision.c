/*
 * test_precision.c -- runs whose tapes hold 16 bits: they learn as in f32, with the same bits for
 * any number of threads and any power of two as the scale of the loss, their memory is what the
 * plan says, and losses, parameters and their gradients are f32.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/threads.h"
#include "train/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const GPT[] = {
    "data.source=language", "data.size=20000", "model.n_layers=2", "model.n_heads=2",
    "model.d_model=32", "model.context=16", "model.dropout=0.1", "train.batch=8",
    "train.micro_batch=4", "train.steps=100", "schedule.warmup_steps=5", "optim.lr=3e-3", NULL };
static const char *const SPARSE_GPT[] = {    /* patterns of keys, live units (1904.10509, G6) */
    "data.source=language", "data.size=20000", "model.n_layers=2", "model.n_heads=2",
    "model.d_model=32", "model.context=32", "model.dropout=0.1",
    "model.attention.pattern=local(8) + strided(8); fixed(8, 2)",
    "model.attention.drop_weights=false", "model.ff.type=sparse", "model.ff.block=8",
    "train.batch=8", "train.micro_batch=4", "train.steps=100", "schedule.warmup_steps=5",
    "optim.lr=3e-3", NULL };
static const char *const MLP[] = {
    "data.source=digits", "data.size=400", "model.type=mlp", "model.d_hidden=32",
    "train.batch=16", "train.micro_batch=8", "train.steps=100", "schedule.warmup_steps=5",
    "optim.lr=1e-2", NULL };

static train_session *session(const char *const *model, const char *precision, const char *scale)
{
    train_config c;
    train_session *s = NULL;
    ag_err err = { 0 };
    train_config_init(&c);
    for (int i = 0; model[i]; i++)
        if (train_config_override(&c, model[i], &err)) fail_msg("%s", err.msg);
    if (train_config_override(&c, precision, &err)) fail_msg("%s", err.msg);
    if (scale && (train_config_override(&c, "train.loss_scale=static", &err) ||
                  train_config_override(&c, scale, &err)))
        fail_msg("%s", err.msg);
    if (train_config_check(&c, &err)) fail_msg("%s", err.msg);
    const train_open what = { .data = true, .optimizer = true };
    if (train_session_new(&c, &what, &s, &err)) fail_msg("%s", err.msg);
    return s;
}

/* Mean loss of steps first .. last - 1. */
static double mean_loss(train_session *s, int first, int last)
{
    ag_err err = { 0 };
    double loss, norm, sum = 0;
    for (int i = 0; i < last; i++) {
        if (train_session_step(s, &loss, &norm, &err)) fail_msg("%s", err.msg);
        if (i >= first) sum += loss;
    }
    return sum / (last - first);
}

static double val_loss(train_session *s)
{
    ag_err err = { 0 };
    train_eval e;
    if (train_session_eval(s, DATA_VAL, 0, &e, &err)) fail_msg("%s", err.msg);
    return e.loss;
}

/* Means over 50 steps after the warm-up within 1 % (bf16) and 0.5 % (f16) of f32, which is below
 * the loss of a guess. */
static void learns_like(const char *const *model, double guess)
{
    static const struct { const char *key; double tolerance; } half[] = {
        { "train.precision=bf16", 0.01 }, { "train.precision=fp16", 0.005 } };
    train_session *s = session(model, "train.precision=fp32", NULL);
    const double want = mean_loss(s, 40, 90), val = val_loss(s);
    assert_true(want < 0.98 * guess && s->decoder == s->tape);
    train_session_free(s);
    for (int i = 0; i < 2; i++) {
        s = session(model, half[i].key, NULL);
        const double got = mean_loss(s, 40, 90), v = val_loss(s);
        if (!(fabs(got / want - 1) < half[i].tolerance) ||
            !(fabs(v / val - 1) < 2 * half[i].tolerance))
            fail_msg("%s: mean loss %.5f, validation %.5f; in f32 %.5f, %.5f", half[i].key, got, v,
                     want, val);
        train_session_free(s);
    }
}

static void gpt_learns(const char *const *model)
{
    train_session *s = session(model, "train.precision=fp32", NULL);
    const double guess = log((double)s->model->classes);
    train_session_free(s);
    learns_like(model, guess);
}

static void a_gpt_learns(void **state)
{
    (void)state;
    gpt_learns(GPT);
}

static void a_sparse_gpt_learns(void **state)
{
    (void)state;
    gpt_learns(SPARSE_GPT);
}

static void an_mlp_learns(void **state)
{
    (void)state;
    learns_like(MLP, INFINITY);
}

/* Weights after six steps; free() them. */
static float *weights(const char *precision, const char *scale, int threads, size_t *ret_bytes)
{
    set_threads(threads);
    train_session *s = session(GPT, precision, scale);
    mean_loss(s, 0, 6);
    *ret_bytes = (size_t)s->model->params->n * sizeof(float);
    float *w = malloc(*ret_bytes);
    assert_non_null(w);
    memcpy(w, s->model->params->weights, *ret_bytes);
    train_session_free(s);
    set_threads(1);
    return w;
}

static void check_same(const char *precision, const char *scale, int threads)
{
    size_t bytes;
    float *one = weights(precision, NULL, 1, &bytes),
          *other = weights(precision, scale, threads, &bytes);
    assert_memory_equal(one, other, bytes);
    free(one);
    free(other);
}

static void threads_and_scales_leave_the_bits(void **state)
{
    static const char *const words[] = { "train.precision=bf16", "train.precision=fp16" };
    (void)state;
    for (int i = 0; i < 2; i++)
        for (int threads = 2; threads < 5; threads++) check_same(words[i], NULL, threads);
    check_same(words[0], "train.loss_scale_init=1024", 1);       /* bf16 has the range of f32 */
    check_same(words[0], "train.loss_scale_init=2", 1);
}

/* Of numbers well inside the range, also in f16. */
static void scaled_gradients_are_the_same(void **state)
{
    (void)state;
    static const ag_dtype types[] = { AG_BF16, AG_F16 };
    enum { N = 24 };
    float a[N * N], b[N * N], first[2][N * N];
    for (int i = 0; i < N * N; i++) {
        a[i] = (float)(i % 17) / 16 - 0.47f;
        b[i] = (float)(i % 23) / 8 - 1.3f;
    }
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 3; k++) {
            const char *why = NULL;
            const double scale = k == 0 ? 16 : k == 1 ? 64 : 128;
            ag_tape *t = ag_tape_new(ag_kernels_best(types[i], &why));
            assert_non_null(t);
            ag_tensor *x = ag_input(t, AG_SHAPE(N, N), a, true),
                      *w = ag_input(t, AG_SHAPE(N, N), b, true);
            ag_tensor *y = ag_gelu_tanh(t, ag_linear(t, x, w, NULL, AG_ACT_RELU, x));
            ag_tensor *loss = ag_sum(t, ag_mul(t, y, y));
            assert_int_equal(loss->dtype, AG_F32);
            assert_int_equal(ag_backward(t, loss, scale), AG_OK);
            for (int g = 0; g < 2; g++) {
                const float *d = (g ? w : x)->grad;
                assert_int_equal(ag_grad_dtype(g ? w : x), AG_F32);
                for (int j = 0; j < N * N; j++) {
                    const float unscaled = d[j] / (float)scale;
                    if (k == 0) first[g][j] = unscaled;
                    else assert_memory_equal(&unscaled, &first[g][j], sizeof unscaled);
                }
            }
            ag_tape_free(t);
        }
}

/* The peak of a tape over forward and backward of one micro-batch. */
static size_t peak(const train_session *s, bool plan)
{
    int32_t ids[4 * 16] = { 0 };
    ag_tape *t = ag_tape_new(ag_tape_kernels(s->tape));
    assert_non_null(t);
    ag_tape_plan(t, plan);
    ag_tensor *x = ag_input_i32(t, AG_SHAPE(4, 16), ids);
    ag_tensor *loss = nn_model_loss(s->model, t, x, x, NN_TRAIN);
    assert_int_equal(ag_backward(t, loss, 1), AG_OK);
    const size_t bytes = ag_tape_bytes(t).peak;
    ag_tape_free(t);
    return bytes;
}

static void the_plan_is_what_a_step_takes(void **state)
{
    (void)state;
    train_session *f32 = session(GPT, "train.precision=fp32", NULL);
    train_session *s = session(GPT, "train.precision=bf16", NULL);
    assert_int_equal(ag_tape_dtype(s->tape), AG_BF16);
    assert_int_equal(ag_tape_dtype(s->decoder), AG_F32);
    assert_int_equal(peak(s, true), peak(s, false));
    assert_true(peak(s, false) < peak(f32, false) * 3 / 4);
    train_session_free(s);
    train_session_free(f32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gpt_learns),
        cmocka_unit_test(a_sparse_gpt_learns),
        cmocka_unit_test(an_mlp_learns),
        cmocka_unit_test(threads_and_scales_leave_the_bits),
        cmocka_unit_test(scaled_gradients_are_the_same),
        cmocka_unit_test(the_plan_is_what_a_step_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
