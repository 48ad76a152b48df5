/*
 * cmd_bench.c -- tulle bench: how long the steps of a configuration take, alone or in one table
 * with others that differ from it in some keys: devices, precisions, layers.
 *
 * With --vary KEY=A,B a row is measured for each value, with several for each combination.  Rows
 * take turns: each round opens every row anew and times its steps, so that all of them see the same
 * machine; a row shows the median of all its steps, and as its ratio to the first row the median of
 * the ratios within the rounds.
 */
#include "train/command.h"
#include "train/environment.h"
#include "train/session.h"
#include "train/status.h"

#include "autograd/base/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 64, ROW_NAME = 128, SETTING = 512, ROUNDS = 1000 };

typedef struct options {
    int64_t steps, warm, rounds;
    bool    json;
    train_flag_words vary;                /* "KEY=A,B" */
} options;

typedef struct row {
    train_config config;
    char    name[ROW_NAME];          /* its values of the varied keys */
    double *seconds;                 /* [rounds * steps]; from print_rows on the shortest first */
    double *median;                  /* [rounds] */
    double  first, flops;            /* seconds until the first step is done; of a sample */
    size_t  memory, tape;            /* bytes at the peak: of the process, of the tape */
    int64_t micro_batch, tokens;     /* of a part; tokens or images of a step */
    int     threads;
    const char *unit, *kernels;
} row;

/* --- rows ------------------------------------------------------------------------------------- */

/* The end of the value at p: a comma that is in no parentheses. */
static const char *value_end(const char *p)
{
    for (int depth = 0; *p && (*p != ',' || depth > 0); p++) depth += (*p == '(') - (*p == ')');
    return p;
}

/* Each of the rows so far, once with each value of `vary`. */
static int vary_rows(const char *vary, row *rows, int *n, ag_err *err)
{
    const char *values = strchr(vary, '=');
    const int before = *n;
    if (!values || values == vary || !values[1])
        return ag_err_set(err, AG_ECONFIG, "--vary: '%s' is no KEY=VALUE,VALUE,...", vary);
    row *old = malloc((size_t)before * sizeof *old);
    if (!old) return ag_err_set(err, AG_ENOMEM, "out of memory for the rows");
    memcpy(old, rows, (size_t)before * sizeof *old);
    int r = AG_OK;
    *n = 0;
    for (int i = 0; i < before && r == AG_OK; i++)
        for (const char *p = values; *p && r == AG_OK; ) {
            const char *end = value_end(++p);
            char text[SETTING];
            if (*n == MAX_ROWS) {
                r = ag_err_set(err, AG_ECONFIG, "--vary: more than %d rows", MAX_ROWS);
                break;
            }
            row *to = &rows[(*n)++];
            *to = old[i];
            snprintf(text, sizeof text, "%.*s=%.*s", (int)(values - vary), vary, (int)(end - p), p);
            const size_t used = strlen(to->name);
            snprintf(to->name + used, ROW_NAME - used, "%s%.*s", used ? " " : "", (int)(end - p),
                     p);
            r = train_config_override(&to->config, text, err);
            p = end;
        }
    free(old);
    return r;
}

/* argv: CONFIG key=value ... */
static int make_rows(int argc, char **argv, const options *o, row *rows, int *ret_n, ag_err *err)
{
    row *first = &rows[0];
    train_config_init(&first->config);
    int r = train_config_load(&first->config, argv[1], err);
    for (int i = 2; i < argc && r == AG_OK; i++)
        r = train_config_override(&first->config, argv[i], err);
    *ret_n = 1;
    for (int i = 0; i < o->vary.n && r == AG_OK; i++)
        r = vary_rows(o->vary.word[i], rows, ret_n, err);
    for (int i = 0; i < *ret_n && r == AG_OK; i++) {
        row *x = &rows[i];
        r = train_config_check(&x->config, err);
        if (r < 0 && o->vary.n) ag_err_prefix(err, "row %s: ", x->name);
        x->seconds = malloc((size_t)(o->rounds * o->steps) * sizeof *x->seconds);
        x->median = malloc((size_t)o->rounds * sizeof *x->median);
        if (r == AG_OK && (!x->seconds || !x->median))
            r = ag_err_set(err, AG_ENOMEM, "out of memory for the times of %" PRId64 " steps",
                           o->rounds * o->steps);
    }
    return r;
}

/* --- one round of one row --------------------------------------------------------------------- */

static int time_steps(train_session *s, const options *o, double *seconds, double *ret_first,
                      double began, ag_err *err)
{
    for (int64_t i = 0; i < o->warm + o->steps; i++) {
        double loss, norm;
        const double at = ag_seconds();
        const int r = train_session_step(s, &loss, &norm, err);
        if (r < 0) return r;
        if (i == 0) *ret_first = at - began;
        if (i >= o->warm) seconds[i - o->warm] = ag_seconds() - at;
    }
    return AG_OK;
}

static void describe(const train_session *s, row *x)
{
    const size_t peak = train_peak_bytes(), tape = ag_tape_bytes(s->tape).peak;
    x->unit = s->d_in ? "images" : "tokens";
    x->kernels = ag_tape_kernels(s->tape)->name;
    x->flops = 3 * s->model->cost.flops;
    x->tokens = s->config.train.batch * s->context;
    x->micro_batch = s->config.train.micro_batch;
    x->threads = train_threads();
    if (peak > x->memory) x->memory = peak;
    if (tape > x->tape) x->tape = tape;
}

static int run_row(row *x, int64_t round, const options *o, double began, ag_err *err)
{
    train_session *s = NULL;
    double *seconds = x->seconds + round * o->steps, first = 0;
    const train_open what = { .data = true, .optimizer = true };
    train_peak_forget();
    int r = train_threads_set(x->config.train.threads, err);
    if (r == AG_OK) r = train_session_new(&x->config, &what, &s, err);
    if (r == AG_OK) r = time_steps(s, o, seconds, &first, began, err);
    if (r == AG_OK) {
        if (!round) x->first = first;
        describe(s, x);
        train_sort_times(seconds, o->steps);
        x->median[round] = seconds[o->steps / 2];
    } else if (o->vary.n) {
        ag_err_prefix(err, "row %s: ", x->name);
    }
    train_session_free(s);
    return r;
}

/* --- the table -------------------------------------------------------------------------------- */

static double ratio_to(const row *first, const row *x, int64_t rounds, double *scratch)
{
    for (int64_t i = 0; i < rounds; i++)
        scratch[i] = (double)x->tokens / x->median[i] / ((double)first->tokens / first->median[i]);
    train_sort_times(scratch, rounds);
    return scratch[rounds / 2];
}

static void print_json(const row *x, double ratio, int64_t n)
{
    const double median = x->seconds[n / 2], per_step = (double)x->tokens;
    printf("{\"row\":\"%s\",\"unit\":\"%s\",\"per_second\":%.1f,\"per_second_best\":%.1f,"
           "\"per_second_worst\":%.1f,\"step_ms\":%.4f,\"ratio\":%.4f,\"gflop_per_second\":%.2f,"
           "\"peak_memory\":%zu,\"tape\":%zu,\"start_seconds\":%.4f,\"micro_batch\":%" PRId64
           ",\"threads\":%d,\"kernels\":\"%s\"}\n", x->name, x->unit, per_step / median,
           per_step / x->seconds[0], per_step / x->seconds[n - 1], 1e3 * median, ratio,
           x->flops * per_step / median * 1e-9, x->memory, x->tape, x->first, x->micro_batch,
           x->threads, x->kernels);
}

static void print_row(const row *x, double ratio, int64_t n, int width)
{
    const double median = x->seconds[n / 2], per_step = (double)x->tokens;
    char range[48];
    snprintf(range, sizeof range, "(%.3f to %.3f)", 1e3 * x->seconds[0], 1e3 * x->seconds[n - 1]);
    printf("%-*s  %-7s %7d %6" PRId64 " %10.3f %-24s %9.0f %6.2f %8.1f %7.0f %8.0f %8.3f\n", width,
           x->name, x->kernels, x->threads, x->micro_batch, 1e3 * median, range, per_step / median,
           ratio, x->flops * per_step / median * 1e-9, 1e-6 * (double)x->memory,
           1e-6 * (double)x->tape, x->first);
}

static void print_rows(row *rows, int n_rows, const options *o)
{
    const int64_t n = o->rounds * o->steps;
    double scratch[ROUNDS];
    int width = 0;
    for (int i = 0; i < n_rows; i++) {
        train_sort_times(rows[i].seconds, n);
        if ((int)strlen(rows[i].name) > width) width = (int)strlen(rows[i].name);
    }
    if (!o->json) {
        char per_second[32];
        snprintf(per_second, sizeof per_second, "%s/s", rows[0].unit);
        printf("%" PRId64 " steps each, medians\n", n);
        printf("%-*s  %-7s %7s %6s %10s %-24s %9s %6s %8s %7s %8s %8s\n", width, "", "kernels",
               "threads", "part", "ms a step", "(least to most)", per_second, "ratio", "GFLOP/s",
               "MB", "tape MB", "start s");
    }
    for (int i = 0; i < n_rows; i++) {
        const double ratio = ratio_to(&rows[0], &rows[i], o->rounds, scratch);
        if (o->json) print_json(&rows[i], ratio, n);
        else print_row(&rows[i], ratio, n, width);
    }
}

int train_cmd_bench(int argc, char **argv, ag_err *err)
{
    options o = { .steps = 20, .warm = 3, .rounds = 1 };
    double began = ag_seconds();
    const train_flag flags[] = { { "steps", TRAIN_FLAG_INT, &o.steps, 'n', 1, 1e6 },
                                 { "warm", TRAIN_FLAG_INT, &o.warm, 0, 0, 1e6 },
                                 { "rounds", TRAIN_FLAG_INT, &o.rounds, 0, 1, ROUNDS },
                                 { "vary", TRAIN_FLAG_WORDS, &o.vary, 0, 0, 0 },
                                 { "json", TRAIN_FLAG_ON, &o.json, 0, 0, 0 }, { 0 } };
    if (argc > 1 && !strcmp(argv[1], "decode"))
        return train_cmd_bench_decode(argc - 1, argv + 1, err);
    int r = train_flags_read(flags, &argc, argv, err), n = 0;
    if (r < 0) return r;
    if (argc < 2) return AG_ECONFIG;
    row *rows = calloc(MAX_ROWS, sizeof *rows);
    if (!rows) return ag_err_set(err, AG_ENOMEM, "out of memory for the rows");
    r = make_rows(argc, argv, &o, rows, &n, err);
    for (int64_t round = 0; round < o.rounds; round++)
        for (int i = 0; i < n && r == AG_OK; i++) {
            r = run_row(&rows[i], round, &o, began, err);
            began = ag_seconds();
        }
    if (r == AG_OK) print_rows(rows, n, &o);
    for (int i = 0; i < n; i++) {
        free(rows[i].seconds);
        free(rows[i].median);
    }
    free(rows);
    return r;
}
