/*
 * test_session.c -- what a session has: gradients and an optimizer where it trains, and no memory
 * for them where it does not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "train/session.h"

#include <string.h>

static const char *const GPT[] = {
    "data.source=language", "data.size=20000", "model.n_layers=2", "model.n_heads=2",
    "model.d_model=16", "model.context=16", "model.ff.type=sparse", "model.ff.block=4",
    "train.precision=bf16", "train.batch=8", "train.steps=100", "schedule.warmup_steps=5", NULL };
static const char *const REVERSIBLE[] = {
    "data.source=language", "data.size=20000", "model.n_layers=2", "model.n_heads=2",
    "model.d_model=16", "model.context=16", "model.reversible=fixed",
    "train.batch=8", "train.steps=100", "schedule.warmup_steps=5", NULL };
static const char *const MLP[] = {
    "data.source=digits", "data.size=400", "model.type=mlp", "model.d_hidden=32",
    "train.batch=16", "train.steps=100", "schedule.warmup_steps=5", NULL };

static train_session *session(const char *const *keys, bool optimizer)
{
    train_config c;
    train_session *s = NULL;
    ag_err err = { 0 };
    train_config_init(&c);
    for (int i = 0; keys[i]; i++)
        if (train_config_override(&c, keys[i], &err)) fail_msg("%s", err.msg);
    const train_open what = { .data = true, .optimizer = optimizer };
    if (train_config_check(&c, &err) || train_session_new(&c, &what, &s, &err))
        fail_msg("%s", err.msg);
    return s;
}

static train_eval eval(train_session *s)
{
    ag_err err = { 0 };
    train_eval e;
    if (train_session_eval(s, DATA_VAL, 2, &e, &err)) fail_msg("%s", err.msg);
    return e;
}

static void evaluation_needs_no_gradients(void **state)
{
    const char *const *keys = *state;
    train_session *trains = session(keys, true), *looks = session(keys, false);
    const nn_params *p = looks->model->params;
    assert_true(trains->model->params->grads && trains->opt);
    assert_true(p->weights && !p->grads && !looks->opt);
    const train_eval a = eval(trains), b = eval(looks);
    assert_true(a.loss == b.loss && a.accuracy == b.accuracy && a.count == b.count);
    assert_null(p->grads);
    for (int i = 0; i < p->n_items; i++)
        assert_true(!p->items[i].tensor->grad && !p->items[i].tensor->needs_grad);
    train_session_free(trains);
    train_session_free(looks);
}

/* Some op refuses, or the backward does; the tape keeps the error. */
static void evaluation_has_no_backward(void **state)
{
    train_session *s = session(*state, false);
    ag_tape *t = s->tape;
    ag_err err = { 0 };
    memset(s->ids, 0, (size_t)(s->config.train.micro_batch * s->context) * sizeof *s->ids);
    const ag_shape rows = AG_SHAPE(s->config.train.micro_batch, s->context);
    ag_tensor *ids = ag_input_i32(t, rows, s->ids);
    ag_tape_noise(t, &(ag_noise_key){ .n_samples = rows.dim[0] });
    nn_params_round(s->model->params, ag_tape_kernels(t));
    ag_backward(t, nn_model_loss(s->model, t, ids, ids, NN_TRAIN), 1);
    assert_int_equal(ag_tape_status(t, &err), AG_EGRAD);
    assert_non_null(strstr(err.msg, "needs a gradient"));
    train_session_free(s);
}

#define TEST_OF(f, keys) cmocka_unit_test_prestate(f, (void *)(uintptr_t)(keys))

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_OF(evaluation_needs_no_gradients, GPT),
        TEST_OF(evaluation_needs_no_gradients, REVERSIBLE),
        TEST_OF(evaluation_needs_no_gradients, MLP),
        TEST_OF(evaluation_has_no_backward, GPT),
        TEST_OF(evaluation_has_no_backward, REVERSIBLE),
    };
    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
