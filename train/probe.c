#include "train/probe.h"

#include "train/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROBE_ROWS = 2048 };

static int64_t units_of(const nn_ff *l) { return l->blocks * l->config.block; }
static size_t  choices_of(const train_probe *p, const nn_ff *l)
{
    return (size_t)(p->rows * l->blocks);
}

/* Of these, those that it made: an encoder's layer sees sources alone. */
static size_t seen_of(const train_probe_layer *l) { return (size_t)(l->seen.rows * l->ff->blocks); }

static bool layer_new(const train_probe *p, train_probe_layer *l)
{
    l->seen.cap = p->rows;
    l->seen.used = malloc((size_t)units_of(l->ff) * sizeof *l->seen.used);
    l->seen.choice = calloc(choices_of(p, l->ff), sizeof *l->seen.choice);
    l->before = calloc(choices_of(p, l->ff), sizeof *l->before);
    return l->seen.used && l->seen.choice && l->before;
}

int train_probe_new(const train_session *s, train_probe **ret_probe, ag_err *err)
{
    const nn_model *m = s->model;
    int n = 0, all = 0;
    for (nn_ff *l; (l = m->ff_layer(m, all)); all++) n += l->config.kind != NN_FF_DENSE;
    *ret_probe = NULL;
    if (!n) return AG_OK;
    train_probe *p = calloc(1, sizeof *p);
    if (p) p->layer = calloc((size_t)n, sizeof *p->layer);
    if (!p || !p->layer) {
        train_probe_free(p);
        return ag_err_set(err, AG_ENOMEM, "out of memory for the probe");
    }
    const int64_t tokens = s->source + s->context;
    const int64_t have = data_samples(s->data, DATA_VAL), want = PROBE_ROWS / tokens;
    p->samples = want < 1 ? 1 : want;
    if (p->samples > have) p->samples = have;
    p->rows = p->samples * tokens;
    bool good = true;
    for (int i = 0; i < all; i++) {
        nn_ff *l = m->ff_layer(m, i);
        if (l->config.kind == NN_FF_DENSE) continue;
        p->layer[p->n].ff = l;
        good = layer_new(p, &p->layer[p->n++]) && good;
    }
    if (!good) {
        train_probe_free(p);
        return ag_err_set(err, AG_ENOMEM, "out of memory for the probe");
    }
    *ret_probe = p;
    return AG_OK;
}

void train_probe_free(train_probe *p)
{
    if (!p) return;
    for (int i = 0; i < p->n; i++) {
        free(p->layer[i].seen.used);
        free(p->layer[i].seen.choice);
        free(p->layer[i].before);
    }
    free(p->layer);
    free(p);
}

static bool has_soft(const train_probe *p)
{
    for (int i = 0; i < p->n; i++) {
        const nn_ff_config *c = &p->layer[i].ff->config;
        if (c->chooser != NN_CHOOSE_CONTROLLER || c->kind == NN_FF_SWITCH) return false;
    }
    return true;
}

static void attach(train_probe *p, bool on)
{
    for (int i = 0; i < p->n; i++) {
        train_probe_layer *l = &p->layer[i];
        l->ff->probe = on ? &l->seen : NULL;
        if (!on) continue;
        l->seen.rows = 0;
        l->seen.entropy = 0;
        memset(l->seen.used, 0, (size_t)units_of(l->ff) * sizeof *l->seen.used);
    }
}

/* --- what was seen, as JSON ------------------------------------------------------------------- */

/* Mean over blocks of the entropy of use, over its greatest value; *ret_dead: never chosen */
static double usage_entropy(const nn_ff *l, const int64_t *used, int64_t *ret_dead)
{
    const int64_t n = l->config.block;
    double sum = 0;
    *ret_dead = 0;
    for (int64_t b = 0; b < l->blocks; b++) {
        double all = 0, h = 0;
        for (int64_t j = 0; j < n; j++) all += (double)used[b * n + j];
        for (int64_t j = 0; j < n; j++) {
            const double share = all > 0 ? (double)used[b * n + j] / all : 0;
            *ret_dead += used[b * n + j] == 0;
            h -= share > 0 ? share * log(share) : 0;
        }
        sum += n > 1 ? h / log((double)n) : 1;
    }
    return sum / (double)l->blocks;
}

static void put_number(FILE *f, const char *key, double v)
{
    if (isfinite(v)) fprintf(f, "\"%s\":%.6g", key, v);
    else fprintf(f, "\"%s\":null", key);
}

static void put_layer(FILE *f, const train_probe *p, const train_probe_layer *l)
{
    const nn_ff *ff = l->ff;
    const size_t n = seen_of(l);
    int64_t dead;
    size_t flips = 0;
    const double even = usage_entropy(ff, l->seen.used, &dead);
    for (size_t i = 0; i < n; i++) flips += l->before[i] != l->seen.choice[i];
    fprintf(f, "{\"blocks\":%lld,\"choices\":%lld,\"dead\":%lld,", (long long)ff->blocks,
            (long long)ff->config.block, (long long)dead);
    put_number(f, "usage_entropy", even);
    fputc(',', f);
    put_number(f, "controller_entropy",
               ff->c2.weight ? l->seen.entropy / (double)n : (double)NAN);
    fputc(',', f);
    put_number(f, "flips", p->has_before ? (double)flips / (double)n : (double)NAN);
    fputs(",\"used\":[", f);
    for (int64_t i = 0; i < units_of(ff); i++)
        fprintf(f, "%s%lld", i ? "," : "", (long long)l->seen.used[i]);
    fputs("]}", f);
}

static int write_json(const train_probe *p, double hard, double soft, char **ret_json, ag_err *err)
{
    size_t size;
    FILE *f = open_memstream(ret_json, &size);
    if (!f) return ag_err_set(err, AG_ENOMEM, "out of memory for the probe");
    fprintf(f, "{\"rows\":%lld,", (long long)p->rows);
    put_number(f, "hard_loss", hard);
    fputc(',', f);
    put_number(f, "soft_loss", soft);
    fputs(",\"layers\":[", f);
    for (int i = 0; i < p->n; i++) {
        if (i) fputc(',', f);
        put_layer(f, p, &p->layer[i]);
    }
    fputs("]}", f);
    const bool bad = ferror(f);
    if (!fclose(f) && !bad) return AG_OK;
    free(*ret_json);
    *ret_json = NULL;
    return ag_err_set(err, AG_ENOMEM, "out of memory for the probe");
}

/* --- looking ---------------------------------------------------------------------------------- */

int train_probe_look(train_probe *p, train_session *s, char **ret_json, ag_err *err)
{
    double hard, soft = (double)NAN;
    attach(p, true);
    int r = train_session_first_loss(s, p->samples, NN_EVAL, &hard, err);
    attach(p, false);
    if (r == AG_OK && has_soft(p))
        r = train_session_first_loss(s, p->samples, NN_EVAL_SOFT, &soft, err);
    if (r == AG_OK) r = write_json(p, hard, soft, ret_json, err);
    if (r < 0) return r;
    for (int i = 0; i < p->n; i++) {
        train_probe_layer *l = &p->layer[i];
        int32_t *const old = l->before;
        l->before = l->seen.choice;
        l->seen.choice = old;
    }
    p->has_before = true;
    return AG_OK;
}

size_t train_probe_size(const train_probe *p)
{
    size_t n = 0;
    for (int i = 0; p && p->has_before && i < p->n; i++) n += choices_of(p, p->layer[i].ff);
    return n * sizeof(int32_t);
}

void train_probe_save(const train_probe *p, int32_t *ret_choices)
{
    for (int i = 0; i < p->n; i++) {
        const size_t n = choices_of(p, p->layer[i].ff);
        memcpy(ret_choices, p->layer[i].before, n * sizeof *ret_choices);
        ret_choices += n;
    }
}

int train_probe_load(train_probe *p, const int32_t *choices, size_t size, ag_err *err)
{
    p->has_before = true;
    const size_t want = train_probe_size(p);
    if (size != want) {
        p->has_before = false;
        return ag_err_set(err, AG_EINPUT, "train/choices has %zu bytes, this model's are %zu", size,
                          want);
    }
    for (int i = 0; i < p->n; i++) {
        const size_t n = choices_of(p, p->layer[i].ff);
        memcpy(p->layer[i].before, choices, n * sizeof *choices);
        choices += n;
    }
    return AG_OK;
}
