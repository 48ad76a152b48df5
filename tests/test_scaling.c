/*
 * test_scaling.c -- steps with a scaled loss: the same bits for every power of two, steps skipped
 * without a trace, a run that skips only, and state that goes through a checkpoint.
 */
#include "train/session.h"
#include "train/state.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static train_session *session(const char *const *keys)
{
    static const char *const SMALL[] = {
        "data.source=language", "data.size=20000", "model.n_layers=2", "model.n_heads=2",
        "model.d_model=16", "model.context=16", "model.ff.type=sparse", "model.ff.block=4",
        "model.dropout=0.1", "train.batch=4", "train.micro_batch=2", "train.steps=100",
        "schedule.warmup_steps=2", "optim.ema_decay=0.9", NULL };
    train_config c;
    train_session *s = NULL;
    ag_err err = { 0 };
    train_config_init(&c);
    for (int i = 0; SMALL[i]; i++)
        if (train_config_override(&c, SMALL[i], &err)) fail_msg("%s", err.msg);
    for (int i = 0; keys[i]; i++)
        if (train_config_override(&c, keys[i], &err)) fail_msg("%s", err.msg);
    if (train_config_check(&c, &err)) fail_msg("%s", err.msg);
    const train_open what = { .data = true, .optimizer = true };
    if (train_session_new(&c, &what, &s, &err)) fail_msg("%s", err.msg);
    return s;
}

#define SESSION(...) session((const char *const[]){ __VA_ARGS__, NULL })

static double step(train_session *s)
{
    ag_err err = { 0 };
    double loss, norm;
    if (train_session_step(s, &loss, &norm, &err)) fail_msg("%s", err.msg);
    return norm;
}

/* Weights and slots, one behind the other, malloc'ed. */
static float *copy_state(const train_session *s, size_t *ret_n)
{
    size_t n = (size_t)s->model->params->n;
    for (int k = 0; k < s->opt->n_slots; k++) n += (size_t)s->opt->slot[k].n;
    float *all = malloc(n * sizeof *all);
    assert_non_null(all);
    *ret_n = (size_t)s->model->params->n;
    memcpy(all, s->model->params->weights, *ret_n * sizeof *all);
    for (int k = 0; k < s->opt->n_slots; *ret_n += (size_t)s->opt->slot[k++].n)
        memcpy(all + *ret_n, s->opt->slot[k].data, (size_t)s->opt->slot[k].n * sizeof *all);
    return all;
}

/* --- powers of two ---------------------------------------------------------------------------- */

static void run_scaled(const char *optimizer, const char *decay)
{
    static const char *const SCALES[] = { "1", "1024", "65536", "1.2676506002282294e30" };
    float *first = NULL;
    size_t n = 0;
    for (int k = 0; k < 4; k++) {
        char scale[64];
        snprintf(scale, sizeof scale, "train.loss_scale_init=%s", SCALES[k]);
        train_session *s = SESSION(optimizer, decay, scale,
                                   k ? "train.loss_scale=static" : "train.loss_scale=none");
        assert_true(k == 0 || s->scaler.scale == strtod(SCALES[k], NULL));
        for (int i = 0; i < 5; i++) step(s);
        assert_int_equal(s->scaler.skipped, 0);
        float *now = copy_state(s, &n);
        if (first) assert_memory_equal(now, first, n * sizeof *now);
        if (first) free(now);
        else first = now;
        train_session_free(s);
    }
    free(first);
}

static void power_of_two_leaves_the_bits(void **state)
{
    (void)state;
    run_scaled("optim.type=adamw", "optim.weight_decay=0.1");
    run_scaled("optim.type=adafactor", "optim.weight_decay=1e-4");
    run_scaled("optim.type=sgd", "optim.weight_decay=0");
}

/* --- steps that are skipped ------------------------------------------------------------------- */

/* A number that is not finite in the gradient of parameter i, at its first, middle or last
 * element: the step leaves all but the counters and the scale. */
static void poison(train_session *s, int i)
{
    static const float BAD[] = { NAN, INFINITY, -INFINITY };
    const nn_item *it = &s->model->params->items[i];
    float *g = s->model->params->grads;
    size_t n;
    float *before = copy_state(s, &n);
    const opt_scaler was = s->scaler;
    const int64_t done = s->step, steps = s->opt->step, seen = s->samples_seen;
    g[it->offset + (it->count - 1) * (i % 3) / 2] = BAD[i % 3];
    assert_false(isfinite(step(s)));
    float *after = copy_state(s, &n);
    if (memcmp(before, after, n * sizeof *after)) fail_msg("%s: the skip left a trace", it->name);
    for (int64_t e = 0; e < s->model->params->n; e++) assert_true(g[e] == 0);
    assert_true(s->scaler.scale == fmax(was.scale / 2, was.floor));
    assert_int_equal(s->scaler.skipped, was.skipped + 1);
    assert_int_equal(s->opt->step, steps);
    assert_int_equal(s->step, done + 1);
    assert_true(s->samples_seen > seen);
    free(before);
    free(after);
}

static void run_poisoned(const char *optimizer, const char *decay, const char *scaling)
{
    train_session *s = SESSION(optimizer, decay, scaling, "train.loss_scale_init=1e30",
                               "train.loss_scale_floor=1024");
    for (int i = 0; i < 3; i++) step(s);
    for (int i = 0; i < s->model->params->n_items; i++) {
        poison(s, i);
        if (i % 5 == 4) assert_true(isfinite(step(s)));
    }
    assert_true(s->model->params->n_items > 20 && s->opt->step > 6);
    train_session_free(s);
}

static void skipped_steps_leave_no_trace(void **state)
{
    (void)state;
    run_poisoned("optim.type=adamw", "optim.weight_decay=0.1", "train.loss_scale=dynamic");
    run_poisoned("optim.type=adafactor", "optim.weight_decay=1e-4", "train.loss_scale=smooth");
    run_poisoned("optim.type=sgd", "optim.weight_decay=0", "train.loss_scale=dynamic");
}

/* A scale that overflows comes down until the gradient is finite, and no lower. */
static void scale_finds_its_way(void **state)
{
    (void)state;
    train_session *s = SESSION("train.loss_scale=dynamic", "train.loss_scale_init=2.9e38",
                               "train.loss_scale_backoff=0.125");
    for (int i = 0; i < 24; i++) step(s);
    assert_in_range(s->scaler.skipped, 1, 4);
    assert_int_equal(s->opt->step, 24 - s->scaler.skipped);
    assert_int_equal(s->scaler.finite_steps, s->opt->step);
    assert_true(s->scaler.scale > 1e34);
    train_session_free(s);
}

/* Weights gone bad: the loss is not finite, the scale stays, and the 25th skip in a row says where
 * it begins. */
static void patience_ends(void **state)
{
    (void)state;
    train_session *s = SESSION("train.loss_scale=dynamic");
    ag_err err = { 0 };
    double loss = 0, norm;
    step(s);
    float *w = s->model->params->weights;
    for (int64_t e = 0; e < s->model->params->items[0].count; e++) w[e] = INFINITY;
    for (int i = 1; i < OPT_SCALER_PATIENCE; i++) {
        assert_int_equal(train_session_step(s, &loss, &norm, &err), AG_OK);
        assert_false(isfinite(loss));
        assert_int_equal(s->scaler.skipped_in_row, i);
    }
    assert_int_equal(train_session_step(s, &loss, &norm, &err), AG_EDIVERGED);
    assert_true(s->scaler.scale == 65536);
    assert_non_null(strstr(err.msg, "25 steps skipped in a row"));
    assert_non_null(strstr(err.msg, "embedding"));
    train_session_free(s);
}

static void without_scale_it_ends_at_once(void **state)
{
    (void)state;
    train_session *s = SESSION("train.loss_scale=none");
    ag_err err = { 0 };
    double loss, norm;
    step(s);
    ((float *)s->model->params->grads)[0] = INFINITY;
    assert_int_equal(train_session_step(s, &loss, &norm, &err), AG_EDIVERGED);
    train_session_free(s);
}

/* --- through a checkpoint --------------------------------------------------------------------- */

static int save_to(void *path, const train_ckpt *c, ag_err *err)
{
    return train_ckpt_save(path, NULL, c, err);
}

static bool has_shape(const train_ckpt_file *f, const char *path, int ndim, int64_t d0, int64_t d1)
{
    int n;
    const train_ckpt_info *t = train_ckpt_file_tensors(f, &n);
    for (int i = 0; i < n; i++)
        if (!strcmp(t[i].path, path))
            return t[i].ndim == ndim && t[i].dim[0] == d0 && (ndim < 2 || t[i].dim[1] == d1);
    return false;
}

static void check_places(const train_ckpt_file *f, const train_session *s)
{
    char path[NN_NAME_MAX + 64];
    for (int i = 0; i < s->model->params->n_items; i++) {
        const nn_item *it = &s->model->params->items[i];
        const ag_shape *d = &it->tensor->shape;
        if (d->ndim < 2) {
            snprintf(path, sizeof path, "optimizer/adafactor/v/%s", it->name);
            assert_true(has_shape(f, path, 1, it->count, 0));
        } else if (d->ndim == 2) {
            snprintf(path, sizeof path, "optimizer/adafactor/v_row/%s", it->name);
            assert_true(has_shape(f, path, 1, d->dim[0], 0));
            snprintf(path, sizeof path, "optimizer/adafactor/v_col/%s", it->name);
            assert_true(has_shape(f, path, 1, d->dim[1], 0));
            snprintf(path, sizeof path, "optimizer/adafactor/m/%s", it->name);
            assert_true(has_shape(f, path, 2, d->dim[0], d->dim[1]));
        }
    }
}

/* Half of a run, a checkpoint, the other half from it: the state of the whole run. */
static void goes_on_from_a_checkpoint(void **state)
{
    (void)state;
    char path[] = "/tmp/tulle-scaling-XXXXXX", whole[65], resumed[65];
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (int smooth = 0; smooth < 2; smooth++) {
        ag_err err = { 0 };
        train_ckpt_file *f = NULL;
        train_session *other = NULL;
        train_session *s = SESSION("optim.type=adafactor", "optim.weight_decay=1e-4",
                                   "optim.update_momentum=0.5", "train.loss_scale_init=2.9e38",
                                   "train.loss_scale_backoff=0.125",
                                   "train.loss_scale_growth_interval=6",
                                   smooth ? "train.loss_scale=smooth" : "train.loss_scale=dynamic");
        for (int i = 0; i < 9; i++) step(s);
        assert_true(s->scaler.skipped > 0);
        if (train_state_save(s, save_to, path, &err)) fail_msg("%s", err.msg);
        for (int i = 0; i < 9; i++) step(s);
        train_session_hash(s, whole);
        if (train_ckpt_open(path, &f, &err)) fail_msg("%s", err.msg);
        check_places(f, s);
        const train_open what = { .data = true, .optimizer = true };
        if (train_state_load(f, &s->config, &what, &other, &err)) fail_msg("%s", err.msg);
        assert_true(other->scaler.skipped > 0 && other->scaler.scale != 2.9e38);
        for (int i = 0; i < 9; i++) step(other);
        train_session_hash(other, resumed);
        assert_string_equal(resumed, whole);
        train_ckpt_close(f);
        train_session_free(other);
        train_session_free(s);
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(power_of_two_leaves_the_bits),
        cmocka_unit_test(skipped_steps_leave_no_trace),
        cmocka_unit_test(scale_finds_its_way),
        cmocka_unit_test(patience_ends),
        cmocka_unit_test(without_scale_it_ends_at_once),
        cmocka_unit_test(goes_on_from_a_checkpoint),
    };
    return cmocka_run_group_tests_name("scaling", tests, NULL, NULL);
}
