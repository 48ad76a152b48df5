/*
 * cmd_decode.c -- tulle bench decode: how long a token takes, for one or several sequences.
 *
 * The rows are one of three.  A configuration: its sizes on random weights, dense and with each
 * sparse part; a model with a source as it is.  An ablation: each of its arms, on random weights.
 * A run: the trained model, which reads its validation data; its choices are not those of random
 * weights.
 */
#include "train/ablation.h"
#include "train/command.h"
#include "train/config_yaml.h"
#include "train/decode_time.h"
#include "train/environment.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_BATCHES = 16, BATCH_MOST = 4096 };
enum { SOURCE_PROMPT = 4 };          /* tokens of a target before those that are timed */

typedef struct options {
    int64_t tokens, prompt, vocab;
    int64_t batch[MAX_BATCHES];
    int     batches;
    bool    json;
} options;

static const struct { const char *name, *set[4]; } variants[] = {
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

typedef struct table {               /* what is kept of the rows so far */
    double first[MAX_BATCHES];       /* time of the first row */
    int    n;                        /* rows, and sums over them at the first batch, of */
    double x, y, xx, xy;             /* x = log bytes, y = log time */
} table;

/* --- one row ---------------------------------------------------------------------------------- */

static void print_row(const char *name, const train_decode_time *x, const nn_cost *cost,
                      int64_t batch, double bandwidth, double first, const options *o)
{
    const double rate = (double)x->touched * sizeof(float) / x->token;
    if (o->json) {
        printf("{\"model\":\"%s\",\"ms_per_token\":%.6g,\"fastest\":%.6g,\"slowest\":%.6g,"
               "\"prompt_ms_per_token\":%.6g,\"params\":%" PRId64 ",\"touched\":%" PRId64
               ",\"gb_per_second\":%.4g,\"read_gb_per_second\":%.4g,\"batch\":%" PRId64
               ",\"threads\":%d,\"units\":%.6g,\"random_units\":%.6g}\n",
               name, 1e3 * x->token, 1e3 * x->fastest, 1e3 * x->slowest, 1e3 * x->prompt,
               cost->params, x->touched, 1e-9 * rate, 1e-9 * bandwidth, batch, train_threads(),
               x->units, x->random_units);
        return;
    }
    printf("%-13s ", name);
    if (o->batches > 1) printf("batch %4" PRId64 " ", batch);
    printf("%10.3f ms (%.3f to %.3f) %6.2f x  %8.2f M of %8.2f M weights  %6.1f GB/s, "
           "%3.0f %% of %.1f  prompt %.4f ms a token", 1e3 * x->token, 1e3 * x->fastest,
           1e3 * x->slowest, first / x->token, 1e-6 * (double)x->touched,
           1e-6 * (double)cost->params, 1e-9 * rate, 100 * rate / bandwidth, 1e-9 * bandwidth,
           1e3 * x->prompt);
    if (batch > 1 && x->random_units > 0)
        printf("  units %.1f %%, at random %.1f %%", 100 * x->units, 100 * x->random_units);
    printf("\n");
}

static void table_add(table *t, const train_decode_time *x)
{
    const double lx = log((double)x->touched), ly = log(x->token);
    t->n++;
    t->x += lx;
    t->y += ly;
    t->xx += lx * lx;
    t->xy += lx * ly;
}

/* The slope of log time over log bytes: 1 where a token takes as long as its bytes. */
static void print_law(const table *t)
{
    const double spread = t->n * t->xx - t->x * t->x;
    if (t->n >= 3 && spread > 1e-6)
        printf("time grows as the bytes read to the power %.2f\n",
               (t->n * t->xy - t->x * t->y) / spread);
}

/* What each sequence reads: a window of the validation data, or random tokens. */
static void fill_text(const train_session *s, const train_decode_plan *p, int32_t *window,
                      int32_t *ignored)
{
    const int64_t n = p->prompt + p->tokens;
    const data_draw draw = { .split = DATA_VAL, .order = DATA_RANDOM, .seed = 1,
                             .batch = p->batch };
    for (int64_t b = 0; b < p->batch; b++) {
        if (window) {
            data_batch_tokens(s->data, &draw, b, 1, window, ignored);
            memcpy(p->text + b * n, window, (size_t)n * sizeof *window);
            continue;
        }
        for (int64_t i = 0; i < n; i++) {
            const uint32_t from = i < s->source;         /* 0 is padding there */
            const uint32_t choices = (uint32_t)s->model->classes - from;
            p->text[b * n + i] =
                (int32_t)(from + ag_noise_bits(1, (uint32_t)i, 0, (uint64_t)b) % choices);
        }
    }
}

static int measure(train_session *s, const options *o, int64_t batch, train_decode_time *ret,
                   ag_err *err)
{
    train_decode_plan p = { .batch = batch, .tokens = o->tokens,
                            .prompt = s->source ? s->source + SOURCE_PROMPT : o->prompt };
    const int64_t row = s->source + s->context;
    int32_t *window = s->data ? malloc((size_t)(row + s->context) * sizeof *window) : NULL;
    p.text = malloc((size_t)(batch * (p.prompt + p.tokens)) * sizeof *p.text);
    p.seconds = malloc((size_t)p.tokens * sizeof *p.seconds);
    int r = AG_OK;
    if (!p.text || !p.seconds || (s->data && !window)) {
        r = ag_err_set(err, AG_ENOMEM, "out of memory for the tokens");
    } else {
        fill_text(s, &p, window, window ? window + row : NULL);
        r = train_decode_measure(s, &p, ret, err);
    }
    free(window);
    free(p.text);
    free(p.seconds);
    return r;
}

/* Above the first row. */
static void print_head(const options *o, const train_config *c)
{
    if (o->json) return;
    printf("one token for each of the sequences (%" PRId64, o->batch[0]);
    for (int i = 1; i < o->batches; i++) printf(", %" PRId64, o->batch[i]);
    const bool source = train_config_has_source(c);
    printf("), after a %s of %" PRId64 ", %d threads; medians of %" PRId64 "\n",
           source ? "source" : "prompt", source ? c->data.source_length : o->prompt,
           train_threads(), o->tokens);
}

/* A model with each number of sequences; the bandwidth is the better one of before and after. */
static int run_model(train_session *s, const char *name, const options *o, table *t, ag_err *err)
{
    const nn_params *p = s->model->params;
    train_decode_time x[MAX_BATCHES] = { { 0 } };
    double before, after;
    if (!t->n) print_head(o, &s->config);
    int r = train_read_bandwidth(p, &before, err);
    for (int i = 0; i < o->batches && r == AG_OK; i++) {
        r = measure(s, o, o->batch[i], &x[i], err);
        if (r == AG_OK) r = train_read_bandwidth(p, &after, err);
        if (r < 0) return r;
        if (!t->n) t->first[i] = x[i].token;
        print_row(name, &x[i], &s->model->cost, o->batch[i], fmax(before, after), t->first[i], o);
        fflush(stdout);
        before = after;
    }
    if (r == AG_OK) table_add(t, &x[0]);
    return r;
}

static int check_context(const train_config *c, const options *o, ag_err *err)
{
    if (train_config_has_images(c))
        return ag_err_set(err, AG_ECONFIG, "bench decode: an mlp makes no tokens");
    if (train_config_has_source(c) && SOURCE_PROMPT + o->tokens > c->data.target_length)
        return ag_err_set(err, AG_ECONFIG, "bench decode: %d tokens and %" PRId64 " more do not "
                          "fit data.target_length = %" PRId64 "; give --tokens", SOURCE_PROMPT,
                          o->tokens, c->data.target_length);
    if (train_config_has_source(c)) return AG_OK;
    if (o->prompt + o->tokens <= c->model.context) return AG_OK;
    return ag_err_set(err, AG_ECONFIG, "bench decode: a prompt of %" PRId64 " and %" PRId64
                      " tokens do not fit model.context = %" PRId64 "; give --prompt, --tokens "
                      "or model.context", o->prompt, o->tokens, c->model.context);
}

/* --- which rows ------------------------------------------------------------------------------- */

/* A model of random weights. */
static int run_config(train_config *c, const char *name, const options *o, table *t, ag_err *err)
{
    train_session *s = NULL;
    const train_open what = { .classes = o->vocab };
    c->train.micro_batch = 1;
    int r = check_context(c, o, err);
    if (r == AG_OK) r = train_session_new(c, &what, &s, err);
    if (r == AG_OK) r = run_model(s, name, o, t, err);
    train_session_free(s);
    return r;
}

static int run_variant(const train_config *base, int v, const options *o, table *t, ag_err *err)
{
    enum { SETTINGS = sizeof variants->set / sizeof *variants->set };
    train_config c = *base;
    int r = AG_OK;
    for (int i = 0; i < SETTINGS && variants[v].set[i] && r == AG_OK; i++)
        r = train_config_override(&c, variants[v].set[i], err);
    c.model.tied_embeddings = false;
    if (r == AG_OK) r = train_config_check(&c, err);
    if (r < 0) return ag_err_prefix(err, "bench decode, row %s: ", variants[v].name);
    return run_config(&c, variants[v].name, o, t, err);
}

static int run_arm(const train_config *base, const train_arm *arm, const options *o, table *t,
                   ag_err *err)
{
    train_config c;
    const int r = train_ablation_config(arm, base, &c, err);
    return r < 0 ? r : run_config(&c, arm->name, o, t, err);
}

/* argv: CONFIG or an ablation, key=value ... */
static int run_file(int argc, char **argv, const options *o, ag_err *err)
{
    train_config c;
    table t = { .n = 0 };
    train_ablation *a = calloc(1, sizeof *a);
    if (!a) return ag_err_set(err, AG_ENOMEM, "out of memory");
    train_config_init(&c);
    int r = train_config_load_with(&c, argv[1], a, err);
    for (int i = 2; i < argc && r == AG_OK; i++) r = train_config_override(&c, argv[i], err);
    if (r == AG_OK && !a->n_arms) r = train_config_check(&c, err);
    if (r == AG_OK) r = train_threads_set(c.train.threads, err);
    const bool alone = !a->n_arms && train_config_has_source(&c);
    const int rows = alone ? 1 : a->n_arms ? a->n_arms : N_VARIANTS;
    for (int i = 0; i < rows && r == AG_OK; i++)
        r = a->n_arms ? run_arm(&c, &a->arm[i], o, &t, err)
            : alone   ? run_config(&c, c.run.name, o, &t, err)
                      : run_variant(&c, i, o, &t, err);
    if (r == AG_OK && a->n_arms && o->batches == 1 && !o->json) print_law(&t);
    free(a);
    return r;
}

static int run_trained(const char *path, const options *o, ag_err *err)
{
    train_session *s = NULL;
    table t = { .n = 0 };
    const train_open what = { .data = true };
    int r = train_open_arg(path, false, &what, &s, err);
    if (r == AG_OK) r = check_context(&s->config, o, err);
    if (r == AG_OK) r = run_model(s, "trained", o, &t, err);
    train_session_free(s);
    return r;
}

/* "1,2,4" */
static int read_batches(const char *text, options *o, ag_err *err)
{
    for (const char *p = text; *p || p == text; o->batches++) {
        char *end;
        const long n = strtol(p, &end, 10);
        if (end == p || n < 1 || n > BATCH_MOST || (*end && *end != ',') ||
            (*end && !end[1]) || o->batches == MAX_BATCHES)
            return ag_err_set(err, AG_ECONFIG, "--batch: '%s' is no list of at most %d numbers "
                              "from 1 to %d, as 1,2,4", text, MAX_BATCHES, BATCH_MOST);
        o->batch[o->batches] = n;
        p = end + (*end == ',');
    }
    return AG_OK;
}

/* A run's folder or a checkpoint, not a configuration. */
static bool is_trained(const char *path)
{
    struct stat st;
    const size_t n = strlen(path);
    return (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) ||
           (n > 3 && !strcmp(path + n - 3, ".h5"));
}

int train_cmd_bench_decode(int argc, char **argv, ag_err *err)
{
    const char *batches = "1";
    options o = { .tokens = 100, .prompt = 32, .vocab = 65 };
    const train_flag flags[] = { { "tokens", TRAIN_FLAG_INT, &o.tokens, 'n', 1, 1e6 },
                                 { "prompt", TRAIN_FLAG_INT, &o.prompt, 0, 1, 1e6 },
                                 { "batch", TRAIN_FLAG_TEXT, &batches, 0, 0, 0 },
                                 { "vocab", TRAIN_FLAG_INT, &o.vocab, 0, 2, 1e7 },
                                 { "json", TRAIN_FLAG_ON, &o.json, 0, 0, 0 }, { 0 } };
    int r = train_flags_read(flags, &argc, argv, err);
    if (r == AG_OK) r = read_batches(batches, &o, err);
    if (r < 0) return r;
    if (argc < 2 || (is_trained(argv[1]) && argc > 2)) return AG_ECONFIG;
    return is_trained(argv[1]) ? run_trained(argv[1], &o, err) : run_file(argc, argv, &o, err);
}
