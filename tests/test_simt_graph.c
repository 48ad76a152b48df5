/*
 * test_simt_graph.c -- parts of steps as CUDA graphs, on a GPU or on the CPU in its place (gpu.h):
 * with train.cuda_graph = auto and off a run has the same bits, graphs are launched indeed, also
 * again after memory moved; what cannot be captured runs as ever and says why; a call that fails
 * costs the graph, not the run.
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

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS = 8 };

#define GPT                                                                                  \
    "data.source=language", "data.size=4000", "model.n_layers=2", "model.n_heads=2",           \
    "model.d_model=16", "model.context=8", "train.batch=4", "train.steps=20",                   \
    "schedule.warmup_steps=2", "optim.lr=3e-3"
#define SPARSE "model.ff.type=sparse", "model.ff.block=8"

typedef struct run_case {
    const char *keys[24];
    long launched;                   /* at least so many of STEPS steps; 0: none, and a note */
} run_case;

static const run_case cases[] = {
    { { GPT, "model.dropout=0.2", "train.micro_batch=2", "optim.ema_decay=0.9",
        "optim.clip_norm=0.5" }, 2 * STEPS - 4 },
    { { GPT, SPARSE, "model.ff.quant_prob=0.4", "model.ff.quant_ramp=10" }, 1 },
    { { GPT, "model.dropout=0.2", "train.micro_batch=1" }, 4 * STEPS - 4 },
    { { GPT, "train.precision=bf16", "model.dropout=0.1" }, STEPS - 3 },
    { { GPT, "train.precision=fp16", "train.loss_scale_init=1e30", "model.dropout=0.1",
        "train.loss_scale_backoff=1e-12", "train.loss_scale_growth_interval=2" }, STEPS - 3 },
    { { GPT, "optim.type=adafactor", "optim.weight_decay=1e-4", "train.micro_batch=2" },
      2 * STEPS - 4 },
    { { GPT, SPARSE, "model.ff.quant_prob=1", "train.precision=bf16" }, STEPS - 3 },
    { { GPT, "train.recompute=block", "model.dropout=0.1" }, STEPS - 3 },
    { { GPT, "model.reversible=fp32" }, STEPS - 3 },
    { { GPT, "model.attention.type=lsh", "model.attention.lsh.chunk=4", "model.dropout=0.2",
        "train.micro_batch=2" }, 2 * STEPS - 4 },
    { { GPT, "optim.type=sgd", "model.attention.type=multconv" }, STEPS - 3 },
    { { "data.source=digits", "data.size=200", "model.type=mlp", "model.n_layers=2",
        "model.d_hidden=16", "model.init_std=0", "train.batch=8", "train.steps=20",
        "schedule.warmup_steps=2", "optim.lr=1e-2", "model.dropout=0.1" }, STEPS - 3 },
    { { GPT, "model.reversible=fixed" }, 0 },
    { { GPT, SPARSE, "model.ff.coin_rows=4", "model.ff.quant_prob=0.5" }, 0 },
    { { GPT, "model.reversible=fp32", "train.verify_reversible=true" }, 0 },
};
enum { CASES = sizeof cases / sizeof *cases };

/* With a sanitizer that takes long. */
static bool is_short(void)
{
    const char *text = getenv("TULLE_SIMT_STEPS");
    return text && atoi(text) < STEPS;
}

static train_session *session(const char *const *keys, const char *graphs)
{
    train_config c;
    ag_err err = { 0 };
    train_session *s = NULL;
    train_config_init(&c);
    for (int i = 0; keys[i]; i++)
        if (train_config_override(&c, keys[i], &err)) fail_msg("%s", err.msg);
    if (train_config_override(&c, "train.device=cuda", &err) ||
        train_config_override(&c, graphs, &err) || train_config_check(&c, &err) ||
        train_session_new(&c, &(train_open){ .data = true, .optimizer = true }, &s, &err))
        fail_msg("%s", err.msg);
    assert_non_null(s->device);
    return s;
}

typedef struct trace { double loss[STEPS], norm[STEPS]; char hash[65]; } trace;

static void steps(train_session *s, int from, int to, trace *ret)
{
    ag_err err = { 0 };
    for (int i = from; i < to; i++)
        if (train_session_step(s, &ret->loss[i], &ret->norm[i], &err))
            fail_msg("step %d: %s", i, err.msg);
    train_session_hash(s, ret->hash);
}

static void check_same(const trace *with, const trace *without, const char *what)
{
    for (int i = 0; i < STEPS; i++)
        if (memcmp(&with->loss[i], &without->loss[i], sizeof(double)) ||
            memcmp(&with->norm[i], &without->norm[i], sizeof(double)))
            fail_msg("%s, step %d: loss %.17g, norm %.17g; without graphs %.17g, %.17g", what, i,
                     with->loss[i], with->norm[i], without->loss[i], without->norm[i]);
    if (strcmp(with->hash, without->hash)) fail_msg("%s: other weights than without graphs", what);
}

static ag_replay_counts counts(const train_session *s)
{
    return s->replay ? ag_replay_count(s->replay) : (ag_replay_counts){ 0, 0, 0 };
}

/* The last key of a case, which tells it from the others. */
static const char *name_of(const run_case *c)
{
    int n = 0;
    while (c->keys[n]) n++;
    return c->keys[n - 1];
}

static void bits_are_those_without(void **state)
{
    (void)state;
    for (int k = 0; k < CASES; k++) {
        const run_case *c = &cases[k];
        if (!gpu_takes(k)) continue;
        trace with = { 0 }, without = { 0 };
        train_session *a = session(c->keys, "train.cuda_graph=auto");
        train_session *b = session(c->keys, "train.cuda_graph=off");
        assert_non_null(a->replay);
        assert_null(b->replay);
        steps(a, 0, STEPS, &with);
        steps(b, 0, STEPS, &without);
        check_same(&with, &without, name_of(c));
        const ag_replay_counts n = counts(a);
        const char *note = ag_replay_note(a->replay);
        if (n.launched < c->launched || (c->launched == 0 && n.launched))
            fail_msg("%s: %ld parts eager, %ld captured, %ld launched", name_of(c), n.eager,
                     n.captured, n.launched);
        if (!note != (c->launched > 0)) fail_msg("%s: %s", name_of(c), note ? note : "no note");
        if (note) print_message("%s: %s\n", name_of(c), note);
        assert_null(ag_replay_note(a->replay));          /* it is told once */
        assert_int_equal(a->inverse.stacks, b->inverse.stacks);
        assert_int_equal(a->scaler.skipped, b->scaler.skipped);
        if (strstr(name_of(c), "growth_interval")) assert_true(a->scaler.skipped > 0);
        train_session_free(a);
        train_session_free(b);
    }
}

/* Hard and soft steps are two graphs at least, and both are launched. */
static void decisions_have_graphs_of_their_own(void **state)
{
    (void)state;
    if (is_short() || !gpu_takes_next()) return;
    const char *const keys[] = { GPT, SPARSE, "model.n_layers=1", "model.ff.quant_prob=0.5", NULL };
    trace with = { 0 };
    train_session *s = session(keys, "train.cuda_graph=auto");
    for (int i = 0; i < 3; i++) steps(s, 0, STEPS, &with);
    assert_in_range(counts(s).captured, 2, 3);       /* a third where memory moved meanwhile */
    assert_int_equal(counts(s).eager + counts(s).launched, 3 * STEPS);
    assert_true(counts(s).launched >= 3 * STEPS - 5);
    train_session_free(s);
}

static void every_order_has_the_same_bits(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        if (is_short() || !gpu_takes_next()) continue;
        trace first, with;
        for (unsigned order = 0; order < 3; order++) {
            gpu_order(order);
            train_session *s = session(cases[k].keys, "train.cuda_graph=auto");
            steps(s, 0, STEPS, &with);
            train_session_free(s);
            if (order == 0) first = with;
            check_same(&with, &first, "another order");
        }
        gpu_order(0);
    }
}

/* --- what happens between steps --------------------------------------------------------------- */

static void draw_text(train_session *s)
{
    enum { LENGTH = 5 };
    int32_t token[LENGTH];
    const int32_t prompt[1] = { 1 };
    const train_draw d = { .length = LENGTH, .temperature = 1, .top_p = 1, .seed = 4 };
    ag_err err = { 0 };
    train_session_swap_ema(s);
    if (train_generate(s->model, s->decoder, s->context, &d, prompt, 1, token, NULL, NULL,
                       &err) != LENGTH)
        fail_msg("%s", err.msg);
    train_session_swap_ema(s);
}

/* An evaluation leaves the graph as it is; a sample takes memory and gives it back, so the step is
 * captured once more. */
static void memory_may_move_in_between(void **state)
{
    (void)state;
    if (is_short() || !gpu_takes_next()) return;
    trace with = { 0 }, without = { 0 };
    train_eval e;
    ag_err err = { 0 };
    train_session *a = session(cases[0].keys, "train.cuda_graph=auto");
    train_session *b = session(cases[0].keys, "train.cuda_graph=off");
    steps(b, 0, STEPS, &without);
    steps(a, 0, 3, &with);
    assert_int_equal(counts(a).captured, 1);
    assert_int_equal(train_session_eval(a, DATA_VAL, 1, &e, &err), AG_OK);
    steps(a, 3, 4, &with);
    assert_int_equal(train_session_eval(a, DATA_VAL, 1, &e, &err), AG_OK);
    const ag_replay_counts before = counts(a);
    steps(a, 4, 5, &with);
    assert_int_equal(counts(a).captured, before.captured);
    assert_int_equal(counts(a).launched, before.launched + 2);
    draw_text(a);
    steps(a, 5, STEPS, &with);
    assert_int_equal(counts(a).captured, before.captured + 1);
    check_same(&with, &without, "evaluations and a sample in between");
    train_session_free(a);
    train_session_free(b);
}

static int write_to(void *arg, const train_ckpt *c, ag_err *err)
{
    return train_ckpt_save(arg, NULL, c, err);
}

static train_session *resumed(train_session *s, const char *path)
{
    ag_err err = { 0 };
    train_ckpt_file *f = NULL;
    train_session *to = NULL;
    train_config c;
    if (train_state_save(s, write_to, (void *)(uintptr_t)path, &err) ||
        train_ckpt_open(path, &f, &err) || train_state_config(f, &c, &err) ||
        train_state_load(f, &c, &(train_open){ .data = true, .optimizer = true }, &to, &err))
        fail_msg("%s", err.msg);
    train_ckpt_close(f);
    train_session_free(s);
    return to;
}

static void a_run_resumes(void **state)
{
    (void)state;
    char path[] = "/tmp/tulle-graph-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (int k = 0; k < (is_short() ? 0 : 2); k++) {
        if (!gpu_takes_next()) continue;
        trace with = { 0 }, without = { 0 };
        train_session *a = session(cases[k].keys, "train.cuda_graph=auto");
        train_session *b = session(cases[k].keys, "train.cuda_graph=off");
        steps(a, 0, 4, &with);
        a = resumed(a, path);
        steps(a, 4, STEPS, &with);
        steps(b, 0, STEPS, &without);
        check_same(&with, &without, "resumed");
        assert_true(k || counts(a).launched >= STEPS - 4);
        train_session_free(a);
        train_session_free(b);
    }
    unlink(path);
}

/* Indices that the host knows are looked at before each launch, too. */
static void indices_are_still_checked(void **state)
{
    (void)state;
    if (is_short() || !gpu_takes_next()) return;
    trace with = { 0 };
    double loss, norm;
    ag_err err = { 0 };
    train_session *s = session(cases[3].keys, "train.cuda_graph=auto");
    steps(s, 0, 4, &with);
    assert_true(counts(s).launched > 0);
    s->ahead.ids[1] = 1 << 20;
    assert_int_equal(train_session_step(s, &loss, &norm, &err), AG_ERANGE);
    assert_non_null(strstr(err.msg, "embedding"));
    train_session_free(s);
}

/* --- decoding --------------------------------------------------------------------------------- */

static long graph_launches(void)
{
#ifdef TEST_REAL_GPU
    return 0;
#else
    return simt_graph_launches();
#endif
}

/* Tokens drawn by graphs are those drawn without; the context is left behind twice. */
static void tokens_are_those_without(void **state)
{
    (void)state;
    enum { LENGTH = 24 };
    static const struct { const char *keys[20]; bool graphs; } models[] = {
        { { GPT, NULL }, true },
        { { GPT, SPARSE, NULL }, true },
        { { GPT, "model.attention.type=mult", NULL }, true },
        { { GPT, "model.ff.sru_units=3", NULL }, false },        /* it has a state */
    };
    for (size_t m = 0; m < (is_short() ? 1 : sizeof models / sizeof *models); m++) {
        if (!gpu_takes_next()) continue;
        int32_t token[2][LENGTH];
        trace with = { 0 };
        ag_err err = { 0 };
        train_session *s = session(models[m].keys, "train.cuda_graph=auto");
        if (!is_short()) steps(s, 0, 3, &with);
        for (int eager = 0; eager < 2; eager++) {
            const int32_t prompt[3] = { 1, 2, 3 };
            const train_draw d = { .length = LENGTH, .temperature = 1, .top_p = 1, .seed = 5,
                                   .eager = eager };
            const long before = graph_launches();
            if (train_generate(s->model, s->decoder, s->context, &d, prompt, 3, token[eager], NULL,
                               NULL, &err) != LENGTH)
                fail_msg("%s", err.msg);
            const long launched = graph_launches() - before;
            if (gpu_is_real()) continue;
            if (eager || !models[m].graphs) assert_int_equal(launched, 0);
            else assert_true(launched >= 12);    /* of 24, five of which begin anew */
        }
        for (int i = 0; i < LENGTH; i++)
            if (token[0][i] != token[1][i])
                fail_msg("model %zu, token %d: %d, without graphs %d", m, i, token[0][i],
                         token[1][i]);
        train_session_free(s);
    }
}

/* --- errors ----------------------------------------------------------------------------------- */

#ifndef TEST_REAL_GPU

/* The n-th call fails, for each n of three steps, of which one captures and one launches only: the
 * run stops with an error, or goes on with the same bits. */
static void a_failing_call_costs_the_graph_alone(void **state)
{
    (void)state;
    if (!gpu_takes_once()) return;
    const char *const keys[] = { GPT, "model.n_layers=1", "model.dropout=0.1", NULL };
    trace without = { 0 };
    train_session *b = session(keys, "train.cuda_graph=off");
    steps(b, 0, STEPS, &without);
    train_session_free(b);
    long went_on = 0, stopped = 0, lost = 0, calls = 1;
    for (long n = 0; n <= calls; n += n && is_short() ? 60 : 1) {      /* 0: none */
        trace with = { 0 };
        ag_err err = { 0 };
        int r = AG_OK, i = 1;
        train_session *a = session(keys, "train.cuda_graph=auto");
        steps(a, 0, 1, &with);
        const long before = simt_calls();
        simt_fail_call(n);
        for (; i < 4 && r == AG_OK; i++)
            r = train_session_step(a, &with.loss[i], &with.norm[i], &err);
        simt_fail_call(0);
        if (n == 0) calls = simt_calls() - before;
        if (r == AG_OK) {
            steps(a, 4, STEPS, &with);
            check_same(&with, &without, "a call failed");
            went_on += ag_replay_note(a->replay) != NULL;
        } else {
            stopped++;
            assert_true(err.code == r && err.msg[0] && (r == AG_EFAIL || r == AG_ENOMEM));
        }
        train_session_free(a);
        ag_cuda_close();
        const long left = simt_blocks() + simt_handles() - lost;
        assert_true(left == 0 || left == 1);     /* to give it back is what failed */
        lost += left;
    }
    print_message("%ld calls: %ld cost the graph, %ld the run\n", calls, went_on, stopped);
    assert_true(is_short() || (went_on > 10 && stopped > 0));
}

#endif

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_are_those_without),
        cmocka_unit_test(decisions_have_graphs_of_their_own),
        cmocka_unit_test(every_order_has_the_same_bits),
        cmocka_unit_test(memory_may_move_in_between),
        cmocka_unit_test(a_run_resumes),
        cmocka_unit_test(indices_are_still_checked),
        cmocka_unit_test(tokens_are_those_without),
#ifndef TEST_REAL_GPU
        cmocka_unit_test(a_failing_call_costs_the_graph_alone),
#endif
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("graphs on a GPU", tests, NULL, NULL);
}
