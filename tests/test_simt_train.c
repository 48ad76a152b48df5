/*
 * test_simt_train.c -- whole runs on a GPU, or on the CPU in its place (gpu.h): the losses of ten
 * steps are those of the CPU, a step has the same bits in whatever order threads run, a checkpoint
 * goes on on the other device, samples are those of the CPU, batches are drawn ahead; memory that
 * does not suffice and calls that fail are errors, and nothing is left behind.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "autograd/cuda/cuda.h"
#include "tests/gpu.h"
#include "train/checkpoint.h"
#include "train/generate.h"
#include "train/session.h"
#include "train/state.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS = 10 };

#define SMALL_GPT                                                                            \
    "data.source=language", "data.size=4000", "model.n_layers=2", "model.n_heads=2",           \
    "model.d_model=16", "model.context=8", "train.batch=4", "train.steps=20",                   \
    "schedule.warmup_steps=2", "optim.lr=3e-3", "optim.clip_norm=0.5"

static const struct { const char *name; const char *const *keys; bool sparse; } models[] = {
    { "gpt", (const char *const[]){ SMALL_GPT, "model.dropout=0.1", "optim.ema_decay=0.9", NULL },
      false },
    { "sparse gpt", (const char *const[]){ SMALL_GPT, "model.ff.type=sparse", "model.ff.block=8",
                                           NULL }, true },
    { "mlp", (const char *const[]){ "data.source=digits", "data.size=200", "model.type=mlp",
                                    "model.n_layers=2", "model.d_hidden=16", "model.init_std=0",
                                    "train.batch=8", "train.steps=20",
                                    "schedule.warmup_steps=2", "optim.lr=1e-2", NULL }, false },
    { "hashing gpt", (const char *const[]){ SMALL_GPT, "model.context=40", "train.batch=2",
                                            "model.attention.type=lsh", "model.dropout=0.1",
                                            "model.attention.lsh.chunk=16", NULL }, false },
    { "hashing terraformer", (const char *const[]){
        "data.source=copy_pairs", "data.source_length=8", "data.target_length=9", "data.size=200",
        "model.type=terraformer", "model.reversible=fp32", "model.n_encoder_layers=1",
        "model.n_layers=1", "model.n_heads=2", "model.d_model=16", "model.context=9",
        "model.attention.type=lsh", "model.attention.lsh.chunk=4", "optim.lr=3e-3",
        "schedule.warmup_steps=2", "train.batch=4", "train.steps=20", NULL }, false },
    { "patterned gpt", (const char *const[]){ SMALL_GPT, "model.context=70", "train.batch=1",
          "model.attention.pattern=strided(9)+local(9) | local(20); fixed(8, 2)", NULL }, false },
    { "transformer", (const char *const[]){ SMALL_GPT, "data.source=copy_pairs", "data.size=200",
          "data.source_length=8", "data.target_length=9", "model.type=transformer",
          "model.dropout=0.1", NULL }, false },
};
/* Those that all is tried with; others. */
enum { MODELS = 3, HASHING = MODELS, PATTERNED = HASHING + 2, TRANSFORMER };

static const char *extra[2] = { "run.seed=1", "run.seed=1" };     /* more keys for config() */

static void extra_set(const char *a, const char *b)
{
    extra[0] = a;
    extra[1] = b ? b : a;
}

static train_config config(int model, const char *device, const char *precision)
{
    train_config c;
    ag_err err = { 0 };
    train_config_init(&c);
    for (int i = 0; models[model].keys[i]; i++)
        if (train_config_override(&c, models[model].keys[i], &err)) fail_msg("%s", err.msg);
    if (train_config_override(&c, extra[0], &err) || train_config_override(&c, extra[1], &err) ||
        train_config_override(&c, device, &err) || train_config_override(&c, precision, &err) ||
        train_config_check(&c, &err))
        fail_msg("%s", err.msg);
    return c;
}

static train_session *session(int model, const char *device, const char *precision)
{
    const train_config c = config(model, device, precision);
    const train_open what = { .data = true, .optimizer = true };
    train_session *s = NULL;
    ag_err err = { 0 };
    if (train_session_new(&c, &what, &s, &err)) fail_msg("%s: %s", models[model].name, err.msg);
    return s;
}

/* n, or what TULLE_SIMT_STEPS has for a sanitizer with which steps take long. */
static int at_most(int n)
{
    const char *text = getenv("TULLE_SIMT_STEPS");
    const int most = text ? atoi(text) : n;
    return most > 0 && most < n ? most : n;
}

/* `n` steps: their losses and norms, where wanted. */
static void steps(train_session *s, int n, double *ret_loss, double *ret_norm)
{
    ag_err err = { 0 };
    double loss, norm;
    for (int i = 0; i < n; i++) {
        if (train_session_step(s, &loss, &norm, &err)) fail_msg("step %d: %s", i, err.msg);
        if (ret_loss) ret_loss[i] = loss;
        if (ret_norm) ret_norm[i] = norm;
    }
}

static void check_close(int model, const char *precision, double tolerance)
{
    double want[STEPS], got[STEPS], want_norm[STEPS], got_norm[STEPS];
    if (!gpu_takes_next()) return;
    train_session *cpu = session(model, "train.device=cpu", precision);
    train_session *gpu = session(model, "train.device=cuda", precision);
    assert_non_null(gpu->device);
    const int n = at_most(STEPS);
    steps(cpu, n, want, want_norm);
    steps(gpu, n, got, got_norm);
    for (int i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= tolerance * want[i]) ||
            !(fabs(got_norm[i] - want_norm[i]) <= 20 * tolerance * want_norm[i]))
            fail_msg("%s, %s, step %d: loss %.8f, norm %.8f; on the CPU %.8f, %.8f",
                     models[model].name, precision, i, got[i], got_norm[i], want[i], want_norm[i]);
    train_eval a, b;
    ag_err err = { 0 };
    assert_int_equal(train_session_eval(cpu, DATA_VAL, 2, &a, &err), AG_OK);
    if (train_session_eval(gpu, DATA_VAL, 2, &b, &err)) fail_msg("%s", err.msg);
    if (!(fabs(a.loss - b.loss) <= 2 * tolerance * a.loss))
        fail_msg("%s: evaluated %.8f, on the CPU %.8f", models[model].name, b.loss, a.loss);
    train_session_free(cpu);
    train_session_free(gpu);
}

static void losses_are_those_of_the_cpu(void **state)
{
    (void)state;
    for (int m = 0; m < MODELS; m++) {
        check_close(m, "train.precision=fp32", 1e-5);
        /* roundings fall elsewhere: products of a GPU round sums of 16-bit numbers less often */
        check_close(m, "train.precision=bf16", models[m].sparse ? 0.03 : 0.01);
        check_close(m, "train.precision=fp16", models[m].sparse ? 0.01 : 0.002);
    }
    check_close(PATTERNED, "train.precision=fp32", 1e-5);
    check_close(PATTERNED, "train.precision=bf16", 0.01);
    check_close(PATTERNED, "train.precision=fp16", 0.002);
}

/* With other keys the losses of three steps are those of the CPU too. */
static void three_steps(int model, const char *const keys[2])
{
    double want[3], got[3];
    if (!gpu_takes_next()) return;
    extra_set(keys[0], keys[1]);
    train_session *cpu = session(model, "train.device=cpu", "train.precision=fp32");
    train_session *gpu = session(model, "train.device=cuda", "train.precision=fp32");
    extra_set("run.seed=1", NULL);
    cpu->config.train.verify_reversible = gpu->config.train.verify_reversible = true;
    const int n = at_most(3);
    steps(cpu, n, want, NULL);
    steps(gpu, n, got, NULL);
    for (int k = 0; k < n; k++)
        if (!(fabs(got[k] - want[k]) <= 1e-5 * want[k]))
            fail_msg("%s, %s, step %d: loss %.8f, on the CPU %.8f", models[model].name, keys[0], k,
                     got[k], want[k]);
    assert_int_equal(gpu->inverse.stacks, cpu->inverse.stacks);
    assert_true(gpu->inverse.error <= 1e-5 * gpu->inverse.scale + 4 * cpu->inverse.error);
    assert_true(fabs(gpu->inverse.headroom - cpu->inverse.headroom) <=
                1e-4 * cpu->inverse.headroom);
    train_session_free(cpu);
    train_session_free(gpu);
}

/* What else a GPU can do. */
static void other_parts_are_those_of_the_cpu(void **state)
{
    static const char *const keys[][2] = {
        { "train.recompute=block" }, { "train.recompute=cheap" }, { "model.reversible=fp32" },
        { "model.reversible=fixed" }, { "model.attention.type=mult" },
        { "model.attention.type=multconv" }, { "model.attention.type=lowrank" },
        { "model.ff.type=switch" }, { "model.ff.type=block" }, { "train.micro_batch=2" },
        { "optim.type=sgd" }, { "model.activation=gelu_quick" },
        { "optim.type=adafactor", "optim.weight_decay=1e-4" },
        { "model.ff.sru_units=3", "model.ff.sru_layers=2" },
        { "model.ff.sru_units=3", "model.reversible=fp32" } };
    (void)state;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) three_steps(0, keys[i]);
    for (int i = 0; i < 2; i++) three_steps(TRANSFORMER, keys[i]);
}

/* The host makes some of these. */
static void positions_are_those_of_the_cpu(void **state)
{
    static const char *const keys[][2] = {
        { "model.position.type=grid", "model.position.stride=3" },
        { "model.position.type=sin_cos" }, { "model.position.type=fixed_base" },
        { "model.position.dropout=0.2" }, { "model.start_vector=true" } };
    (void)state;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) three_steps(0, keys[i]);
}

/* Attention by hashing, its buckets recalled too. */
static void hashing_is_that_of_the_cpu(void **state)
{
    static const char *const keys[][2] = {
        { "run.seed=1" }, { "train.recompute=block" }, { "model.attention.type=pure_lsh" },
        { "model.attention.lsh.bucket_mask=true", "model.attention.lsh.correct_duplicates=true" },
        { "model.reversible=fixed" } };
    (void)state;
    for (int i = 0; i < 5; i++) three_steps(HASHING, keys[i]);
    for (int i = 0; i < 5; i += 4) three_steps(HASHING + 1, keys[i]);
}

/* While a GPU is busy the next samples are drawn; what comes in between does not disturb that. */
static void batches_are_drawn_ahead(void **state)
{
    (void)state;
    for (int m = 0; m < MODELS; m += 2) {
        if (!gpu_takes_next()) continue;
        double plain[3], with[3], again[2];
        char a[65], b[65];
        ag_err err = { 0 };
        train_eval e;
        extra_set("train.micro_batch=2", NULL);
        train_session *s = session(m, "train.device=cuda", "train.precision=fp32");
        train_session *evaluated = session(m, "train.device=cuda", "train.precision=fp32");
        train_session *back = session(m, "train.device=cuda", "train.precision=fp32");
        train_session *cpu = session(m, "train.device=cpu", "train.precision=fp32");
        extra_set("run.seed=1", NULL);
        steps(s, 3, plain, NULL);
        steps(cpu, 1, NULL, NULL);
        assert_true(cpu->ahead.n == 0 && !cpu->ahead.ids);
        for (int i = 0; i < 3; i++) {
            const train_ahead *x = &evaluated->ahead;
            steps(evaluated, 1, with + i, NULL);
            assert_true(x->n == 2 && x->i0 == 0 && x->w.step == i + 1 && x->w.split == DATA_TRAIN);
            assert_int_equal(train_session_eval(evaluated, DATA_VAL, i % 2, &e, &err), AG_OK);
            assert_true(x->n == 2);
        }
        assert_memory_equal(with, plain, sizeof plain);
        train_session_hash(s, a);
        train_session_hash(evaluated, b);
        assert_string_equal(a, b);

        steps(back, 3, NULL, NULL);              /* the same step with what was drawn and without */
        back->ahead.n = 0;
        steps(back, 1, &again[0], NULL);
        steps(s, 1, &again[1], NULL);
        assert_true(again[0] == again[1]);
        s->step = back->step = 1;                /* another one than was drawn */
        back->ahead.n = 0;
        steps(back, 1, &again[0], NULL);
        steps(s, 1, &again[1], NULL);
        assert_true(again[0] == again[1]);
        s->ahead.targets[0] = (s->ahead.targets[0] + 1) % 2;         /* it is what a step takes */
        steps(back, 1, &again[0], NULL);
        steps(s, 1, &again[1], NULL);
        assert_true(again[0] != again[1]);
        train_session_free(s);
        train_session_free(evaluated);
        train_session_free(back);
        train_session_free(cpu);
    }
}

static void every_order_has_the_same_bits(void **state)
{
    (void)state;
    for (int m = 0; m < MODELS; m++) {
        if (!gpu_takes_next()) continue;
        char first[65], hash[65];
        for (unsigned order = 0; order < (gpu_is_real() ? 20 : (unsigned)at_most(3)); order++) {
            gpu_order(order);
            train_session *s = session(m, "train.device=cuda", m == 1 ? "train.precision=bf16"
                                                                       : "train.precision=fp32");
            steps(s, at_most(3), NULL, NULL);
            train_session_hash(s, hash);
            train_session_free(s);
            if (order == 0) memcpy(first, hash, sizeof first);
            else assert_string_equal(hash, first);
        }
        gpu_order(0);
    }
}

/* --- a checkpoint ----------------------------------------------------------------------------- */

static int write_to(void *arg, const train_ckpt *c, ag_err *err)
{
    return train_ckpt_save(arg, NULL, c, err);
}

static train_session *moved(train_session *s, const char *path, const char *device)
{
    ag_err err = { 0 };
    train_ckpt_file *f = NULL;
    train_session *to = NULL;
    train_config c;
    if (train_state_save(s, write_to, (void *)(uintptr_t)path, &err) ||
        train_ckpt_open(path, &f, &err) || train_state_config(f, &c, &err) ||
        train_config_override(&c, device, &err) ||
        train_state_load(f, &c, &(train_open){ .data = true, .optimizer = true }, &to, &err))
        fail_msg("%s", err.msg);
    train_ckpt_close(f);
    return to;
}

static void goes_on(void)
{
    char path[] = "/tmp/tulle-gpu-XXXXXX", was[65], is[65];
    double a[3], b[3], c[3];
    if (!gpu_takes_next()) return;
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    train_session *gpu = session(0, "train.device=cuda", "train.precision=fp32");
    steps(gpu, 3, NULL, NULL);
    train_session_hash(gpu, was);
    train_session *cpu = moved(gpu, path, "train.device=cpu");
    train_session_hash(cpu, is);
    assert_string_equal(is, was);
    assert_null(cpu->device);
    train_session *back = moved(cpu, path, "train.device=cuda");
    train_session_hash(back, is);
    assert_string_equal(is, was);
    steps(gpu, 3, a, NULL);
    steps(cpu, 3, b, NULL);
    steps(back, 3, c, NULL);
    for (int i = 0; i < 3; i++) {
        assert_true(a[i] == c[i]);
        assert_true(fabs(a[i] - b[i]) <= 1e-5 * b[i]);
    }
    train_session_free(gpu);
    train_session_free(cpu);
    train_session_free(back);
    unlink(path);
}

static void a_checkpoint_goes_on_on_the_other_device(void **state)
{
    (void)state;
    goes_on();
    extra_set("optim.type=adafactor", "optim.weight_decay=1e-4");
    goes_on();
    extra_set("run.seed=1", NULL);
}

static void samples_are_those_of_the_cpu(void **state)
{
    (void)state;
    enum { LENGTH = 12 };
    static const int of[] = { 0, 1, 0 /* with recurrent units */, HASHING, PATTERNED };
    for (int i = 0; i < 5; i++) {
        const int m = of[i], n = gpu_takes_next() ? 2 : 0;
        if (i == 2) extra_set("model.ff.sru_units=3", "model.ff.sru_layers=2");
        if (i == 3) extra_set("model.attention.lsh.chunk=4", NULL);
        if (i == 4) extra_set("run.seed=1", NULL);
        int32_t token[2][LENGTH] = { { 0 } };
        for (int k = 0; k < n; k++) {
            train_session *s = session(m, k ? "train.device=cuda" : "train.device=cpu",
                                       "train.precision=fp32");
            const train_draw d = { .length = LENGTH, .temperature = 0.8, .top_k = 5, .top_p = 1,
                                   .seed = 4 };
            ag_err err = { 0 };
            const int32_t prompt[3] = { 1, 2, 3 };
            steps(s, 2, NULL, NULL);
            if (train_generate(s->model, s->decoder, s->context, &d, prompt, 3, token[k], NULL,
                               NULL, &err) != LENGTH)
                fail_msg("%s", err.msg);
            train_session_free(s);
        }
        assert_memory_equal(token[0], token[1], sizeof token[0]);
    }
    extra_set("run.seed=1", NULL);
}

/* --- errors ----------------------------------------------------------------------------------- */

#ifndef TEST_REAL_GPU

static long lost;                    /* blocks and handles whose freeing was made to fail */

static void nothing_is_left(bool freeing_failed)
{
    ag_cuda_close();
    const long left = simt_blocks() + simt_handles() - lost;
    assert_true(left == 0 || (left == 1 && freeing_failed));
    lost += left;
}

/* One session and step; returns the code of what went wrong, if anything did. */
static int try_a_step(ag_err *err)
{
    const train_config c = config(1, "train.device=cuda", "train.precision=bf16");
    const train_open what = { .data = true, .optimizer = true };
    train_session *s = NULL;
    double loss, norm;
    int r = train_session_new(&c, &what, &s, err);
    if (r == AG_OK) r = train_session_step(s, &loss, &norm, err);
    train_session_free(s);
    return r;
}

/* The n-th call fails, for n all over a run of two steps' calls: the first ones, then some. */
static void every_failing_call_is_an_error(void **state)
{
    (void)state;
    if (!gpu_takes_once()) return;
    ag_cuda_close();
    ag_err none = { 0 };
    const long before = simt_calls(), some = at_most(STEPS) < STEPS ? 8 : 60;
    if (try_a_step(&none)) fail_msg("%s", none.msg);
    nothing_is_left(false);
    const long calls = simt_calls() - before;
    long failed = 0;
    for (long n = 1; n <= calls; n += n < some ? 1 : calls / some + 1) {
        ag_err err = { 0 };
        simt_fail_call(n);
        const int r = try_a_step(&err);
        simt_fail_call(0);
        nothing_is_left(true);
        if (r == AG_OK) continue;    /* it came after the step: something was to be freed */
        failed++;
        assert_true(err.code == r && err.msg[0]);
        assert_true(r == AG_EFAIL || r == AG_ENOMEM);
    }
    assert_true(failed > some);
    if (try_a_step(&none)) fail_msg("afterwards: %s", none.msg);
    nothing_is_left(false);
}

static void too_little_memory_says_what_would_fit(void **state)
{
    (void)state;
    if (!gpu_takes_once() || at_most(STEPS) < STEPS) return;         /* 8,192 tokens take long */
    train_config c = config(0, "train.device=cuda", "train.precision=fp32");
    ag_err err = { 0 };
    const train_open what = { .data = true, .optimizer = true };
    train_session *s = NULL;
    double loss, norm;
    assert_int_equal(train_config_override(&c, "train.batch=512", &err), AG_OK);
    assert_int_equal(train_config_override(&c, "model.context=16", &err), AG_OK);
    simt_memory_limit((size_t)24 << 20);
    assert_int_equal(train_session_new(&c, &what, &s, &err), AG_OK);
    assert_int_equal(train_session_step(s, &loss, &norm, &err), AG_ENOMEM);
    const char *const words[] = { "out of memory", "the largest:", "block", "train.micro_batch=",
                                  "train.recompute=" };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strstr(err.msg, words[i])) fail_msg("no '%s' in: %s", words[i], err.msg);
    train_session_free(s);
    const char *hint = strstr(err.msg, "train.micro_batch=");
    char key[64];
    assert_int_equal(sscanf(hint, "%63s", key), 1);
    err = (ag_err){ 0 };
    assert_int_equal(train_config_override(&c, key, &err), AG_OK);
    assert_int_equal(train_session_new(&c, &what, &s, &err), AG_OK);
    if (train_session_step(s, &loss, &norm, &err)) fail_msg("%s did not fit: %s", key, err.msg);
    train_session_free(s);
    simt_memory_limit((size_t)8 << 30);
    nothing_is_left(false);
}

static void no_gpu_is_one_clear_line(void **state)
{
    (void)state;
    ag_cuda_close();
    const ag_device *device;
    ag_err err = { 0 };
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    assert_int_equal(ag_cuda_open(&device, &err), AG_EFAIL);
    unsetenv("CUDA_VISIBLE_DEVICES");
    assert_null(device);
    assert_non_null(strstr(err.msg, "there is no GPU"));
    assert_null(strchr(err.msg, '\n'));
    assert_null(ag_kernels_cuda(AG_F32));
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_are_those_of_the_cpu),
        cmocka_unit_test(positions_are_those_of_the_cpu),
        cmocka_unit_test(other_parts_are_those_of_the_cpu),
        cmocka_unit_test(hashing_is_that_of_the_cpu),
        cmocka_unit_test(batches_are_drawn_ahead),
        cmocka_unit_test(every_order_has_the_same_bits),
        cmocka_unit_test(a_checkpoint_goes_on_on_the_other_device),
        cmocka_unit_test(samples_are_those_of_the_cpu),
#ifndef TEST_REAL_GPU
        cmocka_unit_test(every_failing_call_is_an_error),
        cmocka_unit_test(too_little_memory_says_what_would_fit),
        cmocka_unit_test(no_gpu_is_one_clear_line),
#endif
    };
    return cmocka_run_group_tests_name("runs on a GPU", tests, NULL, NULL);
}
