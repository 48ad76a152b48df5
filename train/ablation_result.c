/*
 * ablation_result.c -- what the runs of an ablation left, as a table and as JSON.
 *
 * metrics.jsonl is read here and nowhere else in the program; it is our own and flat but for the
 * object "sparse", so a reader that finds a key in an object is all it takes.
 */
#include "train/ablation.h"

#include "autograd/base/io.h"
#include "train/command.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- JSON lines ---- */

/* The quote that ends the string which begins at p, or the NUL. */
static const char *string_end(const char *p)
{
    for (p++; *p && *p != '"'; p++)
        if (*p == '\\' && p[1]) p++;
    return p;
}

/* The comma, bracket or NUL behind the value at p. */
static const char *value_end(const char *p)
{
    for (int depth = 0; *p; p++) {
        if (*p == '"') p = string_end(p);
        if (!*p || (depth == 0 && strchr(",]}", *p))) return p;
        depth += (*p == '{' || *p == '[') - (*p == '}' || *p == ']');
    }
    return p;
}

/* The value of a key of the object that begins at p; NULL: it has none, or p is none. */
static const char *find(const char *p, const char *key)
{
    const size_t n = strlen(key);
    if (!p || *p != '{') return NULL;
    do {
        p += 1 + strspn(p + 1, " ");
        if (*p != '"') return NULL;
        const char *name = p + 1;
        p = string_end(p);
        const bool match = (size_t)(p - name) == n && !memcmp(name, key, n);
        p += strcspn(p, ":");
        if (!*p++) return NULL;
        p += strspn(p, " ");
        if (match) return p;
        p = value_end(p);
    } while (*p == ',');
    return NULL;
}

static double number(const char *object, const char *key)
{
    const char *p = find(object, key);
    char *end = NULL;
    const double x = p ? strtod(p, &end) : (double)NAN;
    return p && end > p ? x : (double)NAN;
}

/* ---- one run ---- */

/* A line of an evaluation.  Its time is that of the last line of training, at t->steps, until the
 * next one says how long the steps between took. */
static int read_evaluation(train_trial *t, const char *line, ag_err *err)
{
    train_point *more = realloc(t->point, (size_t)(t->n + 1) * sizeof *more);
    if (!more) return ag_err_set(err, AG_ENOMEM, "out of memory for %s/metrics.jsonl", t->dir);
    const char *sparse = find(line, "sparse");
    t->point = more;
    t->point[t->n++] = (train_point){ (int64_t)number(line, "step"), t->seconds,
                                      number(line, "val_loss") };
    t->accuracy = number(line, "val_accuracy");
    t->hard_loss = number(sparse, "hard_loss");
    t->soft_loss = number(sparse, "soft_loss");
    return AG_OK;
}

/*
 * Time: a line of training holds the speed since the line before, in which no evaluation and no
 * sample counts, and which begins anew where a run is resumed.
 */
static int read_line(train_trial *t, const char *line, double samples, ag_err *err)
{
    const double step = number(line, "step");
    if (!(step >= 0)) return AG_OK;
    if (isfinite(number(line, "val_loss"))) return read_evaluation(t, line, err);
    double rate = number(line, "tokens_per_second");
    if (isnan(rate)) rate = number(line, "images_per_second");
    if (!(rate > 0)) return AG_OK;
    const double per_step = samples / rate;
    for (int i = t->n - 1; i >= 0 && t->point[i].step > t->steps; i--)
        t->point[i].seconds = t->seconds + per_step * (double)(t->point[i].step - t->steps);
    t->seconds += per_step * (step - (double)t->steps);
    t->steps = (int64_t)step;
    return AG_OK;
}

int train_trial_read(train_trial *t, int64_t steps, int64_t samples, ag_err *err)
{
    char path[PATH_MAX + 16], *text;
    size_t size;
    train_trial_release(t);
    t->done = false;
    t->steps = 0;
    t->seconds = 0;
    t->accuracy = t->hard_loss = t->soft_loss = (double)NAN;
    snprintf(path, sizeof path, "%s/metrics.jsonl", t->dir);
    if (!ag_path_exists(path)) return AG_OK;
    int r = ag_file_read(path, (size_t)1 << 30, &text, &size, err);
    if (r < 0) return r;
    for (char *line = text, *end; r == AG_OK && (end = strchr(line, '\n')); line = end + 1) {
        *end = '\0';
        r = read_line(t, line, (double)samples, err);
    }
    free(text);
    t->done = r == AG_OK && t->n && t->point[t->n - 1].step == steps;
    return r;
}

void train_trial_release(train_trial *t)
{
    free(t->point);
    t->point = NULL;
    t->n = 0;
}

/* ---- what is said of an arm: values of its runs, NaN where a run has none ---- */

static const train_trial *trial_of(const train_study *s, int seed, int arm)
{
    return &s->trial[seed * s->a->n_arms + arm];
}

static double val_loss(const train_study *s, int seed, int arm)
{
    const train_trial *t = trial_of(s, seed, arm);
    return t->done ? t->point[t->n - 1].loss : (double)NAN;
}

static double best_loss(const train_study *s, int seed, int arm)
{
    const train_trial *t = trial_of(s, seed, arm);
    double best = (double)NAN;
    for (int i = 0; t->done && i < t->n; i++) best = fmin(best, t->point[i].loss);
    return best;
}

static double difference(const train_study *s, int seed, int arm)
{
    return val_loss(s, seed, arm) - val_loss(s, seed, 0);
}

static double accuracy(const train_study *s, int seed, int arm)
{
    const train_trial *t = trial_of(s, seed, arm);
    return t->done && train_config_has_images(&s->config[arm]) ? 100 * t->accuracy : (double)NAN;
}

static double step_time(const train_study *s, int seed, int arm)
{
    const train_trial *t = trial_of(s, seed, arm);
    return t->done ? 1e3 * t->seconds / (double)t->steps : (double)NAN;
}

static double train_time(const train_study *s, int seed, int arm)
{
    const train_trial *t = trial_of(s, seed, arm);
    return t->done ? t->seconds : (double)NAN;
}

static double gap(const train_study *s, int seed, int arm)
{
    const train_trial *t = trial_of(s, seed, arm);
    return t->done ? t->soft_loss - t->hard_loss : (double)NAN;
}

typedef struct summary { int n; double mean, least, most; } summary;
typedef double value(const train_study *s, int seed, int arm);

static summary over_seeds(const train_study *s, int arm, value *of)
{
    summary r = { .mean = 0, .least = (double)NAN, .most = (double)NAN };
    for (int i = 0; i < s->a->n_seeds; i++) {
        const double x = of(s, i, arm);
        if (isnan(x)) continue;
        r.n++;
        r.mean += x;
        r.least = fmin(r.least, x);
        r.most = fmax(r.most, x);
    }
    r.mean = r.n ? r.mean / r.n : (double)NAN;
    return r;
}

/* The arm whose training took the least time; -1: nothing is finished. */
static int fastest_arm(const train_study *s)
{
    int best = -1;
    double least = INFINITY;
    for (int i = 0; i < s->a->n_arms; i++) {
        const double mean = over_seeds(s, i, train_time).mean;
        if (mean < least) least = mean, best = i;
    }
    return best;
}

/* At the last evaluation within the training time of the fastest arm's run of the same seed. */
static double same_time(const train_study *s, int seed, int arm)
{
    const train_trial *t = trial_of(s, seed, arm);
    const int fastest = fastest_arm(s);
    double loss = (double)NAN;
    if (!t->done || fastest < 0) return loss;
    const double limit = train_time(s, seed, fastest);
    for (int i = 0; i < t->n && t->point[i].seconds <= limit; i++) loss = t->point[i].loss;
    return loss;
}

static double params(const train_study *s, int seed, int arm)
{
    (void)seed;
    return (double)s->cost[arm].params;
}

static double touched(const train_study *s, int seed, int arm)
{
    (void)seed;
    return (double)s->cost[arm].touched;
}

static const struct column {
    const char *title, *key, *format;
    value *of;
    enum { MEAN, SPREAD, CONSTANT } kind;            /* SPREAD: the least and the most, too */
} columns[] = {
    { "val loss", "val_loss", "%.4f", val_loss, SPREAD },
    { "best", "best_loss", "%.4f", best_loss, MEAN },
    { "to first", "difference", "%+.4f", difference, MEAN },
    { "same time", "same_time_loss", "%.4f", same_time, MEAN },
    { "accuracy %", "accuracy", "%.2f", accuracy, SPREAD },
    { "ms/step", "ms_per_step", "%.2f", step_time, MEAN },
    { "train s", "train_seconds", "%.1f", train_time, MEAN },
    { "soft - hard", "soft_minus_hard", "%+.4f", gap, MEAN },
    { "weights", "params", "%.0f", params, CONSTANT },
    { "read", "touched", "%.0f", touched, CONSTANT },
};
enum { COLUMNS = sizeof columns / sizeof *columns, CELL = TRAIN_ARM_NAME_MAX };

/* ---- the table ---- */

static void fill_cell(char cell[CELL], const struct column *c, const summary *v)
{
    size_t n = 0;
    if (!v->n) n = (size_t)snprintf(cell, CELL, "-");
    else n = (size_t)snprintf(cell, CELL, c->format, v->mean);
    if (c->kind != SPREAD || v->n < 2) return;
    n += (size_t)snprintf(cell + n, CELL - n, " (");
    n += (size_t)snprintf(cell + n, CELL - n, c->format, v->least);
    n += (size_t)snprintf(cell + n, CELL - n, "..");
    n += (size_t)snprintf(cell + n, CELL - n, c->format, v->most);
    snprintf(cell + n, CELL - n, ")");
}

/* One column, title first; false if no arm has anything in it. */
static bool fill_column(const train_study *s, const struct column *c, char (*cell)[CELL])
{
    bool any = false;
    snprintf(cell[0], CELL, "%s", c->title);
    for (int i = 0; i < s->a->n_arms; i++) {
        const summary v = over_seeds(s, i, c->of);
        fill_cell(cell[i + 1], c, &v);
        any = any || v.n;
    }
    return any;
}

static int width_of(char (*cell)[CELL], int n)
{
    size_t width = 0;
    for (int i = 0; i < n; i++) width = strlen(cell[i]) > width ? strlen(cell[i]) : width;
    return (int)width;
}

static void write_notes(FILE *f, const train_study *s)
{
    const train_ablation *a = s->a;
    const int fastest = fastest_arm(s);
    fprintf(f, "\nmean over seeds (least..most); to first: val loss less that of '%s'; read: "
            "weights read per %s\n", a->arm[0].name,
            train_config_has_images(&s->config[0]) ? "image" : "token");
    if (fastest >= 0)
        fprintf(f, "same time: val loss at the last evaluation within the training time of '%s'\n",
                a->arm[fastest].name);
    for (int i = 0; i < a->n_seeds * a->n_arms; i++)
        if (!s->trial[i].done)
            fprintf(f, "%s seed %" PRId64 ": %s\n", a->arm[i % a->n_arms].name,
                    a->seed[i / a->n_arms],
                    s->trial[i].error[0] ? s->trial[i].error : "not finished");
}

static void write_table(FILE *f, const train_study *s, char (*cell)[TRAIN_ARMS_MAX + 1][CELL])
{
    const train_ablation *a = s->a;
    bool shown[COLUMNS];
    int width[COLUMNS + 1];
    for (int i = 0; i < a->n_arms; i++) snprintf(cell[COLUMNS][i + 1], CELL, "%s", a->arm[i].name);
    snprintf(cell[COLUMNS][0], CELL, "arm");
    width[COLUMNS] = width_of(cell[COLUMNS], a->n_arms + 1);
    for (int c = 0; c < COLUMNS; c++) {
        shown[c] = fill_column(s, &columns[c], cell[c]);
        width[c] = width_of(cell[c], a->n_arms + 1);
    }
    if (a->about[0]) fprintf(f, "%s\n", a->about);
    fprintf(f, "%s, %" PRId64 " steps, %s", s->config[0].run.name, s->config[0].train.steps,
            a->n_seeds > 1 ? "seeds" : "seed");
    for (int i = 0; i < a->n_seeds; i++) fprintf(f, "%s%" PRId64, i ? ", " : " ", a->seed[i]);
    fputs("\n\n", f);
    for (int i = 0; i <= a->n_arms; i++) {
        fprintf(f, "%-*s", width[COLUMNS], cell[COLUMNS][i]);
        for (int c = 0; c < COLUMNS; c++)
            if (shown[c]) fprintf(f, "  %*s", width[c], cell[c][i]);
        fputc('\n', f);
    }
    write_notes(f, s);
}

/* Text that grows: what writes into it, and the end of it. */
static int close_text(FILE *f, char **text, char **ret_text, ag_err *err)
{
    const bool bad = ferror(f) != 0;
    if (!fclose(f) && !bad) {
        *ret_text = *text;
        return AG_OK;
    }
    free(*text);
    return ag_err_set(err, AG_ENOMEM, "out of memory for the results");
}

int train_study_table(const train_study *s, char **ret_text, ag_err *err)
{
    char *text = NULL, (*cell)[TRAIN_ARMS_MAX + 1][CELL] = calloc(COLUMNS + 1, sizeof *cell);
    size_t size;
    FILE *f = cell ? open_memstream(&text, &size) : NULL;
    if (f) write_table(f, s, cell);
    free(cell);
    if (!f) return ag_err_set(err, AG_ENOMEM, "out of memory for the results");
    return close_text(f, &text, ret_text, err);
}

/* ---- JSON ---- */

static void write_number(FILE *f, const char *key, double x)
{
    fprintf(f, isfinite(x) ? "\"%s\":%.9g" : "\"%s\":null", key, x);
}

static void write_run(FILE *f, const train_study *s, int seed, int arm)
{
    const train_trial *t = trial_of(s, seed, arm);
    fprintf(f, "{\"seed\":%" PRId64 ",\"dir\":", s->a->seed[seed]);
    train_put_json_text(f, t->dir);
    fputs(",\"error\":", f);
    if (t->done) fputs("null", f);
    else train_put_json_text(f, t->error[0] ? t->error : "not finished");
    for (int c = 0; c < COLUMNS; c++) {
        if (columns[c].kind == CONSTANT) continue;
        fputc(',', f);
        write_number(f, columns[c].key, columns[c].of(s, seed, arm));
    }
    fputc('}', f);
}

static void write_arm(FILE *f, const train_study *s, int arm)
{
    const train_arm *a = &s->a->arm[arm];
    fputs("{\"name\":", f);
    train_put_json_text(f, a->name);
    fputs(",\"settings\":[", f);
    for (int i = 0; i < a->n; i++) {
        if (i) fputc(',', f);
        train_put_json_text(f, a->set[i].text);
    }
    fputc(']', f);
    for (int c = 0; c < COLUMNS; c++) {
        const summary v = over_seeds(s, arm, columns[c].of);
        fputc(',', f);
        if (columns[c].kind == CONSTANT) {
            write_number(f, columns[c].key, v.mean);
            continue;
        }
        fprintf(f, "\"%s\":{", columns[c].key);
        write_number(f, "mean", v.mean);
        fputc(',', f);
        write_number(f, "min", v.least);
        fputc(',', f);
        write_number(f, "max", v.most);
        fputc('}', f);
    }
    fputs(",\"runs\":[", f);
    for (int i = 0; i < s->a->n_seeds; i++) {
        if (i) fputc(',', f);
        write_run(f, s, i, arm);
    }
    fputs("]}", f);
}

int train_study_json(const train_study *s, char **ret_text, ag_err *err)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    if (!f) return ag_err_set(err, AG_ENOMEM, "out of memory for the results");
    fputs("{\"name\":", f);
    train_put_json_text(f, s->config[0].run.name);
    fputs(",\"about\":", f);
    train_put_json_text(f, s->a->about);
    fprintf(f, ",\"steps\":%" PRId64 ",\"arms\":[", s->config[0].train.steps);
    for (int i = 0; i < s->a->n_arms; i++) {
        if (i) fputs(",\n ", f);
        write_arm(f, s, i);
    }
    fputs("]}\n", f);
    return close_text(f, &text, ret_text, err);
}
