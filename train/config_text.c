/*
 * config_text.c -- a configuration and its schema as text: YAML, differences, help, reference.
 */
#include "train/schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- text that grows: a stream in memory ---- */

typedef struct sink {
    FILE  *f;
    char  *text;
    size_t size;
} sink;

static int sink_open(sink *s, ag_err *err)
{
    *s = (sink){.f = NULL};
    s->f = open_memstream(&s->text, &s->size);
    return s->f ? AG_OK : ag_err_set(err, AG_ENOMEM, "config: out of memory");
}

static int sink_close(sink *s, char **ret_text, ag_err *err)
{
    const bool bad = ferror(s->f) != 0;
    if (fclose(s->f) || bad) {
        free(s->text);
        return ag_err_set(err, AG_ENOMEM, "config: out of memory");
    }
    *ret_text = s->text;
    return AG_OK;
}

/* ---- YAML ---- */

/* How deep a key stands: 0 for a group at the top. */
static int level(const train_key *k)
{
    int n = 0;
    for (const char *p = k->path; *p; p++) n += *p == '.';
    return n;
}

/* Whether anything below a group differs from the defaults. */
static bool group_changed(const train_config *c, const train_config *init, int group)
{
    const size_t n = strlen(train_keys[group].path);
    for (int i = group + 1; i < TRAIN_KEYS; i++) {
        if (strncmp(train_keys[i].path, train_keys[group].path, n) != 0) break;
        if (train_keys[i].type != TRAIN_GROUP && !train_value_equal(c, init, i)) return true;
    }
    return false;
}

static void annotate(FILE *f, const train_config *c, const train_config *init, int key)
{
    char domain[600], value[TRAIN_VALUE_MAX], origin[TRAIN_TEXT_MAX + 16], shown[256];
    const train_key *k = &train_keys[key];
    const int indent = 2 * level(k);
    train_key_domain(k, domain, sizeof domain);
    train_value_text(init, key, value);
    train_value_origin(c, key, origin, sizeof origin);
    train_text_clean(origin, shown, sizeof shown);
    fprintf(f, "%*s# %s\n", indent, "", k->help);
    fprintf(f, "%*s# %s; default %s; from: %s\n", indent, "", domain, value, shown);
}

int train_config_dump(const train_config *c, train_dump how, char **ret_text, ag_err *err)
{
    train_config init;
    char value[TRAIN_VALUE_MAX];
    sink s;
    if (sink_open(&s, err)) return AG_ENOMEM;
    train_config_init(&init);
    for (int i = 0; i < TRAIN_KEYS; i++) {
        const train_key *k = &train_keys[i];
        const bool group = k->type == TRAIN_GROUP, noted = how == TRAIN_DUMP_ANNOTATED;
        const int indent = 2 * level(k);
        if (how == TRAIN_DUMP_CHANGED &&
            (group ? !group_changed(c, &init, i) : train_value_equal(c, &init, i)))
            continue;
        if (group) {
            if (noted) fprintf(s.f, "%s%*s# ---- %s ----\n", i ? "\n" : "", indent, "", k->help);
            fprintf(s.f, "%*s%s:\n", indent, "", train_key_leaf(k));
            continue;
        }
        if (noted) annotate(s.f, c, &init, i);
        train_value_text(c, i, value);
        fprintf(s.f, "%*s%s: %s\n", indent, "", train_key_leaf(k), value);
    }
    return sink_close(&s, ret_text, err);
}

/* ---- differences ---- */

/* A line for each key that differs; with fixed_only, only for keys that may not change on resume.
 * Returns how many. */
static int write_diff(FILE *f, const train_config *a, const train_config *b, bool fixed_only)
{
    char va[TRAIN_VALUE_MAX], vb[TRAIN_VALUE_MAX];
    int n = 0;
    for (int i = 0; i < TRAIN_KEYS; i++) {
        const train_key *k = &train_keys[i];
        if (k->type == TRAIN_GROUP || (fixed_only && k->free)) continue;
        if (train_value_equal(a, b, i)) continue;
        train_value_text(a, i, va);
        train_value_text(b, i, vb);
        fprintf(f, "%s%s: %s -> %s", n++ ? "\n" : "", k->path, va, vb);
        if (fixed_only) {
            char origin[TRAIN_TEXT_MAX + 16];
            train_value_origin(b, i, origin, sizeof origin);
            fprintf(f, " (%s)", origin);
        }
    }
    return n;
}

bool train_config_differs(const train_config *was, const train_config *is, bool free,
                          train_difference *ret)
{
    char value[TRAIN_VALUE_MAX];
    for (int i = 0; i < TRAIN_KEYS; i++) {
        const train_key *k = &train_keys[i];
        if (k->type == TRAIN_GROUP || k->free != free || train_value_equal(was, is, i)) continue;
        ret->key = k->path;
        train_value_text(was, i, value);
        train_text_clean(value, ret->was, sizeof ret->was);
        train_value_text(is, i, value);
        train_text_clean(value, ret->is, sizeof ret->is);
        return true;
    }
    return false;
}

int train_config_diff(const train_config *a, const train_config *b, char **ret_text, ag_err *err)
{
    sink s;
    if (sink_open(&s, err)) return AG_ENOMEM;
    if (write_diff(s.f, a, b, false)) fputc('\n', s.f);
    return sink_close(&s, ret_text, err);
}

int train_config_resumable(const train_config *was, const train_config *now, ag_err *err)
{
    sink s;
    char *text;
    if (sink_open(&s, err)) return AG_ENOMEM;
    const int n = write_diff(s.f, was, now, true);
    const int code = sink_close(&s, &text, err);
    if (code) return code;
    if (n)
        ag_err_set(err, AG_ECONFIG, "%s may not change when a run is resumed; start a new run:\n%s",
                   n == 1 ? "this key" : "these keys", text);
    free(text);
    return n ? AG_ECONFIG : AG_OK;
}

/* ---- help ---- */

static void explain_key(FILE *f, const train_config *init, int key)
{
    char domain[600], value[TRAIN_VALUE_MAX];
    const train_key *k = &train_keys[key];
    train_key_domain(k, domain, sizeof domain);
    train_value_text(init, key, value);
    fprintf(f, "%s\n  %s\n  %s\n  default: %s\n  may change on resume: %s\n", k->path,
            k->help, domain, value, k->free ? "yes" : "no");
    for (int i = 0; k->limits[0] && i < TRAIN_CHOICES; i++)
        if (strcmp(train_words[i].list, k->limits) == 0)
            fprintf(f, "    %-13s %s\n", train_words[i].word, train_words[i].help);
}

static void explain_group(FILE *f, const train_config *init, int group)
{
    char value[TRAIN_VALUE_MAX];
    const train_key *g = &train_keys[group];
    fprintf(f, "%s: %s\n", g->path, g->help);
    for (int i = 0; i < TRAIN_KEYS; i++) {
        const train_key *k = &train_keys[i];
        if (!train_key_is_child(k, g->path)) continue;
        train_value_text(init, i, value);
        fprintf(f, "  %-16s %-10s %s\n", train_key_leaf(k), k->type == TRAIN_GROUP ? "..." : value,
                k->help);
    }
}

int train_config_explain(const char *key, char **ret_text, ag_err *err)
{
    train_config init;
    train_fault fault;
    sink s;
    const int i = train_key_find(key);
    if (i < 0) {
        char what[sizeof fault.what];
        train_key_unknown(key, &fault);
        train_text_clean(fault.what, what, sizeof what);
        return ag_err_set(err, AG_ECONFIG, "%s\n  %s", what, fault.hint);
    }
    if (sink_open(&s, err)) return AG_ENOMEM;
    train_config_init(&init);
    if (train_keys[i].type == TRAIN_GROUP) explain_group(s.f, &init, i);
    else explain_key(s.f, &init, i);
    return sink_close(&s, ret_text, err);
}

int train_config_markdown(char **ret_text, ag_err *err)
{
    train_config init;
    char domain[600], value[TRAIN_VALUE_MAX];
    sink s;
    if (sink_open(&s, err)) return AG_ENOMEM;
    train_config_init(&init);
    for (int i = 0; i < TRAIN_KEYS; i++) {
        const train_key *k = &train_keys[i];
        if (k->type == TRAIN_GROUP) {
            fprintf(s.f, "%s## `%s`: %s\n\n| key | value | default | resume | meaning |\n"
                    "|---|---|---|---|---|\n", i ? "\n" : "", k->path, k->help);
            continue;
        }
        train_key_domain(k, domain, sizeof domain);
        train_value_text(&init, i, value);
        fprintf(s.f, "| `%s` | %s | `%s` | %s | %s |\n", k->path, domain, value,
                k->free ? "may change" : "fixed", k->help);
    }
    return sink_close(&s, ret_text, err);
}
