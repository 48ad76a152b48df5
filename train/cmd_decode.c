/*
 * cmd_decode.c -- tulle bench decode: how long a token takes, dense and with each sparse part of
 * the model, on random weights of a configuration's sizes.
 *
 * A token reads each weight that it touches once, so its time has a floor: bytes over bandwidth.
 * The bandwidth is that of reading a block as large as the model, measured around each row; a
 * model that fits a cache is compared with the cache.  Several sequences read the units that any
 * of them chose: these are counted.
 */
#include "train/command.h"
#include "train/environment.h"
#include "train/session.h"

#include "autograd/base/arena.h"
#include "autograd/base/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct options {
    int64_t tokens, prompt, batch, vocab;
    bool    json;
} options;

typedef struct row {                 /* medians, in seconds */
    double token, fastest, slowest;
    double prompt;                   /* per token of the prompt */
    double bandwidth;                /* bytes per second */
    int64_t touched;                 /* weights read by a token of all sequences */
    nn_cost cost;
} row;

enum { MAX_OVERRIDES = 4 };
static const struct { const char *name, *set[MAX_OVERRIDES]; } variants[] = {
    { "dense", { "model.ff.type=dense" } },
    { "+FF", { "model.ff.type=sparse" } },
    { "+QKV", { "model.ff.type=dense", "model.attention.type=multconv", "model.match=params" } },
    { "+FF+QKV",
      { "model.ff.type=sparse", "model.attention.type=multconv", "model.match=params" } },
    { "+FF+QKV+loss",
      { "model.ff.type=sparse", "model.attention.type=multconv", "model.match=params",
        "model.head.type=mult" } },
};
enum { N_VARIANTS = sizeof variants / sizeof *variants };

typedef uint64_t line __attribute__((vector_size(64)));  /* of a cache */

/* All threads read n lines, each from four places at once. */
static uint64_t read_all(const line *x, int64_t n)
{
    enum { PART = 4096 };            /* lines: 256 kB */
    uint64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (int64_t p = 0; p < n / PART; p++) {
        const line *at = x + p * PART;
        line s[4] = { { 0 } };
        for (int64_t i = 0; i < PART / 4; i++)
            for (int l = 0; l < 4; l++) s[l] += at[l * (PART / 4) + i];
        s[0] += s[1] + s[2] + s[3];
        for (int l = 0; l < 8; l++) sum += s[0][l];
    }
    return sum;
}

/* Bytes per second of reading as many bytes, the best of some turns. */
static int read_bandwidth(size_t bytes, double *ret, ag_err *err)
{
    enum { TURNS = 5 };
    line *x = ag_block_alloc(bytes);
    volatile uint64_t keep = 0;
    double best = 0;
    if (!x) return ag_err_set(err, AG_ENOMEM, "out of memory for %.1f MB", 1e-6 * (double)bytes);
    memset(x, 1, bytes);
    for (int i = 0; i < TURNS; i++) {
        const double t = ag_seconds();
        keep += read_all(x, (int64_t)(bytes / sizeof *x));
        const double rate = (double)bytes / (ag_seconds() - t);
        best = rate > best ? rate : best;
    }
    ag_block_free(x, bytes);
    *ret = best;
    return AG_OK;
}

/* Feeds t tokens to each sequence; ids [batch,t] are random, so that choices change. */
static int feed(train_session *s, ag_kv_cache *cache, int64_t batch, int64_t t, uint32_t turn,
                int32_t *ids, ag_err *err)
{
    ag_tape_reset(s->tape);
    ag_tape_no_grad(s->tape, true);
    ag_tape_noise(s->tape, &(ag_noise_key){ .step = turn, .n_samples = batch });
    for (int64_t i = 0; i < batch * t; i++)
        ids[i] = (int32_t)(ag_noise_bits(1, turn, 0, (uint64_t)i) % (uint32_t)s->model->classes);
    nn_model_decode(s->model, s->tape, ag_input_i32(s->tape, AG_SHAPE(batch, t), ids), cache);
    return ag_tape_status(s->tape, err);
}

/* Weights of a layer that all sequences together read beside those of one. */
static int64_t read_besides(const nn_ff *l, const nn_ff_probe *seen)
{
    int64_t used = 0;
    for (int64_t i = 0; i < l->blocks * l->config.block; i++) used += seen->used[i] > 0;
    return (used - l->blocks) * l->width * 2 * l->d_model;
}

/* One more token, with a look at the choices. */
static int count_touched(train_session *s, ag_kv_cache *cache, const options *o, int32_t *ids,
                         int64_t *ret_touched, ag_err *err)
{
    const nn_model *m = s->model;
    *ret_touched = m->cost.touched;
    int r = AG_OK;
    nn_ff *l;
    for (int i = 0; r == AG_OK && (l = m->ff_layer(m, i)); i++) {
        if (l->config.kind == NN_FF_DENSE) continue;
        const size_t choices = (size_t)(l->blocks * l->config.block);
        nn_ff_probe seen = { .used = calloc(choices, sizeof *seen.used) };
        if (!seen.used) return ag_err_set(err, AG_ENOMEM, "out of memory for the choices");
        l->probe = &seen;
        ag_kv_cache_reset(cache, o->prompt);
        r = feed(s, cache, o->batch, 1, 1, ids, err);
        l->probe = NULL;
        *ret_touched += read_besides(l, &seen);
        free(seen.used);
    }
    return r;
}

static int time_model(train_session *s, const options *o, double *seconds, row *ret, ag_err *err)
{
    enum { WARM = 3 };
    ag_kv_cache *cache = NULL;
    int32_t *ids = malloc((size_t)(o->batch * o->prompt) * sizeof *ids);
    int r = ids ? nn_model_cache(s->model, o->batch, &cache, err)
                : ag_err_set(err, AG_ENOMEM, "out of memory for the prompt");
    double t = 0;
    for (int turn = 0; turn < 2 && r == AG_OK; turn++) {       /* the first one warms up */
        ag_kv_cache_reset(cache, 0);
        t = ag_seconds();
        r = feed(s, cache, o->batch, o->prompt, 0, ids, err);
    }
    ret->prompt = (ag_seconds() - t) / (double)(o->prompt * o->batch);
    for (int64_t i = -WARM; i < o->tokens && r == AG_OK; i++) {
        ag_kv_cache_reset(cache, o->prompt + (i < 0 ? 0 : i));
        t = ag_seconds();
        r = feed(s, cache, o->batch, 1, (uint32_t)(i + WARM + 1), ids, err);
        if (i >= 0) seconds[i] = ag_seconds() - t;
    }
    if (r == AG_OK) r = count_touched(s, cache, o, ids, &ret->touched, err);
    free(ids);
    ag_kv_cache_free(cache);
    if (r < 0) return r;
    train_sort_times(seconds, o->tokens);
    ret->token = seconds[o->tokens / 2];
    ret->fastest = seconds[0];
    ret->slowest = seconds[o->tokens - 1];
    ret->cost = s->model->cost;
    return AG_OK;
}

static int run_variant(const train_config *base, int v, const options *o, double *seconds, row *ret,
                       ag_err *err)
{
    train_config c = *base;
    train_session *s = NULL;
    double before, after;
    int r = AG_OK;
    for (int i = 0; i < MAX_OVERRIDES && variants[v].set[i] && r == AG_OK; i++)
        r = train_config_override(&c, variants[v].set[i], err);
    c.train.micro_batch = 1;
    c.model.tied_embeddings = false;
    if (r == AG_OK) r = train_config_check(&c, err);
    const train_open what = { .classes = o->vocab };
    if (r == AG_OK) r = train_session_new(&c, &what, &s, err);
    if (r < 0) return r;
    const size_t bytes = (size_t)s->model->params->n * sizeof(float);
    r = read_bandwidth(bytes, &before, err);
    if (r == AG_OK) r = time_model(s, o, seconds, ret, err);
    if (r == AG_OK) r = read_bandwidth(bytes, &after, err);
    if (r == AG_OK) ret->bandwidth = before > after ? before : after;
    train_session_free(s);
    return r;
}

static void print_row(int v, const row *x, const row *dense, const options *o)
{
    const double bytes = (double)x->touched * sizeof(float);
    const double rate = bytes / x->token, share = rate / x->bandwidth;
    if (o->json) {
        printf("{\"model\":\"%s\",\"ms_per_token\":%.6g,\"fastest\":%.6g,\"slowest\":%.6g,"
               "\"prompt_ms_per_token\":%.6g,\"params\":%" PRId64 ",\"touched\":%" PRId64
               ",\"gb_per_second\":%.4g,\"read_gb_per_second\":%.4g,\"batch\":%" PRId64
               ",\"threads\":%d}\n",
               variants[v].name, 1e3 * x->token, 1e3 * x->fastest, 1e3 * x->slowest,
               1e3 * x->prompt, x->cost.params, x->touched, 1e-9 * rate,
               1e-9 * x->bandwidth, o->batch, train_threads());
        return;
    }
    printf("%-13s %10.3f ms (%.3f to %.3f) %6.2f x  %8.2f M of %8.2f M weights  %6.1f GB/s, "
           "%3.0f %% of %.1f  prompt %.4f ms a token\n", variants[v].name, 1e3 * x->token,
           1e3 * x->fastest, 1e3 * x->slowest, dense->token / x->token,
           1e-6 * (double)x->touched, 1e-6 * (double)x->cost.params, 1e-9 * rate,
           100 * share, 1e-9 * x->bandwidth, 1e3 * x->prompt);
}

static int run_all(const train_config *c, const options *o, ag_err *err)
{
    row rows[N_VARIANTS];
    double *seconds = malloc((size_t)o->tokens * sizeof *seconds);
    if (!seconds)
        return ag_err_set(err, AG_ENOMEM, "out of memory for %" PRId64 " times", o->tokens);
    int r = AG_OK;
    if (!o->json)
        printf("one token for each of %" PRId64 " sequences, after a prompt of %" PRId64 ", %d "
               "threads; medians of %" PRId64 "\n", o->batch, o->prompt, train_threads(),
               o->tokens);
    for (int v = 0; v < N_VARIANTS && r == AG_OK; v++) {
        r = run_variant(c, v, o, seconds, &rows[v], err);
        if (r == AG_OK) print_row(v, &rows[v], &rows[0], o);
        fflush(stdout);
    }
    free(seconds);
    return r;
}

int train_cmd_bench_decode(int argc, char **argv, ag_err *err)
{
    options o = { .tokens = 100, .prompt = 32, .batch = 1, .vocab = 65 };
    const train_flag flags[] = { { "tokens", TRAIN_FLAG_INT, &o.tokens, 'n', 1, 1e6 },
                                 { "prompt", TRAIN_FLAG_INT, &o.prompt, 0, 1, 1e6 },
                                 { "batch", TRAIN_FLAG_INT, &o.batch, 0, 1, 4096 },
                                 { "vocab", TRAIN_FLAG_INT, &o.vocab, 0, 2, 1e7 },
                                 { "json", TRAIN_FLAG_ON, &o.json, 0, 0, 0 }, { 0 } };
    train_config c;
    int r = train_flags_read(flags, &argc, argv, err);
    if (r < 0) return r;
    if (argc < 2) return AG_ECONFIG;
    r = train_config_args(argc, argv, &c, err);
    if (r < 0) return r;
    if (c.model.type != TRAIN_MODEL_GPT)
        return ag_err_set(err, AG_ECONFIG, "bench decode: model.type must be gpt");
    if (o.prompt + o.tokens > c.model.context)
        return ag_err_set(err, AG_ECONFIG, "bench decode: a prompt of %" PRId64 " and %" PRId64
                          " tokens do not fit model.context = %" PRId64 "; give --prompt, --tokens "
                          "or model.context", o.prompt, o.tokens, c.model.context);
    r = train_threads_set(c.train.threads, err);
    return r < 0 ? r : run_all(&c, &o, err);
}
