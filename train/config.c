/*
 * config.c -- from YAML and `key=value` to a train_config: events against the table of keys.
 */
#include "autograd/base/io.h"
#include "train/config_yaml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE = 1 << 20 };         /* bytes */

typedef struct reader {
    train_yaml   yaml;
    train_config cfg;
    int  seen[TRAIN_KEYS];           /* line of each key met, 0 = not yet */
    struct train_ablation *ablation; /* where `ablation:` goes; NULL: it is a fault */
    int  ablation_line;              /* where it was met, 0 = not yet */
} reader;

void train_config_init(train_config *c)
{
    memset(c, 0, sizeof *c);
    for (int i = 0; i < TRAIN_KEYS; i++) {
        train_fault f;
        if (train_keys[i].type == TRAIN_GROUP) continue;
        const bool fine = train_value_set(c, i, train_keys[i].init, false, &f);
        if (!fine) abort();          /* a bug in config.def */
    }
}

/* ---- against the table ---- */

/* Whether e may be the value of key at all; a fault if not. */
static bool fits(reader *r, const train_yaml_event *e, int key)
{
    const train_key *k = &train_keys[key];
    if (k->type == TRAIN_GROUP) {
        if (e->kind == TRAIN_YAML_MAP || (e->kind == TRAIN_YAML_SCALAR && e->null)) return true;
        train_yaml_fault(&r->yaml, e->line, e->col, "write its keys below it, indented",
                         "'%s' is a group of keys, found %s", k->path, train_yaml_noun(e));
        return false;
    }
    if (e->kind == TRAIN_YAML_SCALAR && !e->null) return true;
    const char *hint = e->kind == TRAIN_YAML_ALIAS
                           ? "aliases (*name) are not used in a configuration"
                     : k->type == TRAIN_TEXT && e->null ? "write \"\" for an empty text" : "";
    train_yaml_fault(&r->yaml, e->line, e->col, hint, "%s expects %s, found %s", k->path,
                     train_key_noun(k), train_yaml_noun(e));
    return false;
}

static void read_value(reader *r, const train_yaml_event *e, int key)
{
    train_fault f;
    if (!e->whole) {
        train_yaml_fault(&r->yaml, e->line, e->col, "", "%s is too long or holds a NUL",
                         train_keys[key].path);
    } else if (!train_value_set(&r->cfg, key, e->text, e->quoted, &f)) {
        train_yaml_report(&r->yaml, e->line, e->col, &f);
    } else {
        r->cfg.origin[key] = (train_origin){TRAIN_FROM_FILE, e->line};
    }
}

/* The key that e names inside group, or -1 and a fault. */
static int find_key(reader *r, const train_yaml_event *e, const char *group)
{
    train_yaml *y = &r->yaml;
    char path[sizeof e->text + 256];
    if (e->kind != TRAIN_YAML_SCALAR || e->null || !e->whole) {
        train_yaml_fault(y, e->line, e->col, "", "a key must be one word");
        return -1;
    }
    snprintf(path, sizeof path, "%s%s%s", group, group[0] ? "." : "", e->text);
    const int key = train_key_find(path);
    if (key >= 0 && !strchr(e->text, '.')) {
        if (!r->seen[key]) return r->seen[key] = e->line, key;
        train_yaml_fault(y, e->line, e->col, "", "%s is set twice, first in line %d", path,
                         r->seen[key]);
        return -1;
    }
    train_fault f = {.hint = ""};
    train_key_unknown(path, &f);
    if (train_key_find(e->text) >= 0 && strchr(e->text, '.'))
        snprintf(f.hint, sizeof f.hint, "in a file, keys stand indented below their group");
    train_yaml_report(y, e->line, e->col, &f);
    return -1;
}

/* The value of the key `ablation`, which e names: for `tulle ablate` alone. */
static void read_ablation(reader *r, train_yaml_event *e)
{
    train_yaml *y = &r->yaml;
    const bool wanted = r->ablation && !r->ablation_line;
    if (!r->ablation)
        train_yaml_fault(y, e->line, e->col, "`tulle ablate FILE` runs all of it",
                         "'ablation' makes this file a series of runs, not a configuration of one");
    else if (r->ablation_line)
        train_yaml_fault(y, e->line, e->col, "", "ablation is set twice, first in line %d",
                         r->ablation_line);
    r->ablation_line = e->line;
    train_yaml_next(y, e);
    if (wanted) train_ablation_read(y, e, r->ablation);
    else train_yaml_skip(y, e);
}

/* Reads the keys of a mapping that has been opened; group "" is the file itself. */
static void read_group(reader *r, const char *group)
{
    train_yaml *y = &r->yaml;
    train_yaml_event e = {.line = 1, .col = 1};
    for (;;) {
        train_yaml_next(y, &e);
        if (e.kind == TRAIN_YAML_MAP_CLOSE || e.kind == TRAIN_YAML_END) return;
        if (!group[0] && e.kind == TRAIN_YAML_SCALAR && !strcmp(e.text, "ablation")) {
            read_ablation(r, &e);
            continue;
        }
        const int key = find_key(r, &e, group);
        train_yaml_skip(y, &e);      /* a key that is a list or a mapping */
        train_yaml_next(y, &e);
        if (e.kind == TRAIN_YAML_END) return;
        if (key < 0 || !fits(r, &e, key)) train_yaml_skip(y, &e);
        else if (e.kind == TRAIN_YAML_MAP) read_group(r, train_keys[key].path);
        else if (train_keys[key].type != TRAIN_GROUP) read_value(r, &e, key);
    }
}

static void read_stream(reader *r)
{
    train_yaml *y = &r->yaml;
    train_yaml_event e = {.line = 1, .col = 1};
    int documents = 0;
    for (train_yaml_next(y, &e); e.kind != TRAIN_YAML_END; train_yaml_next(y, &e)) {
        if (e.kind == TRAIN_YAML_MARK) continue;
        if (documents++) {
            train_yaml_fault(y, e.line, e.col, "", "a second document; a configuration has one");
            y->stop = true;
        } else if (e.kind == TRAIN_YAML_MAP) {
            read_group(r, "");
        } else {
            train_yaml_fault(y, e.line, e.col,
                             "a configuration looks like\n    model:\n      d_model: 64",
                             "expects groups of keys");
            train_yaml_skip(y, &e);
        }
    }
    if (!documents && !y->faults) train_yaml_fault(y, 0, 0, "", "holds no keys");
}

/* ---- files and text ---- */

static int parse(train_config *c, const char *text, size_t size, const char *name,
                 struct train_ablation *a, ag_err *err)
{
    reader *r = calloc(1, sizeof *r);
    if (!r) return ag_err_set(err, AG_ENOMEM, "%s: out of memory", name);
    r->ablation = a;
    r->cfg = *c;
    snprintf(r->cfg.file, sizeof r->cfg.file, "%s", name);
    int code = train_yaml_open(&r->yaml, text, size, name, err);
    if (code == AG_OK) {
        read_stream(r);
        code = train_yaml_close(&r->yaml, err);
    }
    if (!code) *c = r->cfg;
    free(r);
    return code;
}

int train_config_parse(train_config *c, const char *text, size_t size, const char *name,
                       ag_err *err)
{
    return parse(c, text, size, name, NULL, err);
}

int train_config_load_with(train_config *c, const char *path, struct train_ablation *a,
                           ag_err *err)
{
    char *text;
    size_t size;
    ag_err why = {0};
    const int code = ag_file_read(path, MAX_FILE, &text, &size, &why);
    if (code) return ag_err_set(err, code == AG_ENOMEM ? code : AG_ECONFIG, "%s", why.msg);
    const int parsed = parse(c, text, size, path, a, err);
    free(text);
    return parsed;
}

int train_config_load(train_config *c, const char *path, ag_err *err)
{
    return train_config_load_with(c, path, NULL, err);
}

bool train_config_assign(train_config *c, const char *arg, train_origin origin, train_fault *f)
{
    char path[256];
    const size_t n = strcspn(arg, "=");
    *f = (train_fault){.hint = ""};
    if (!arg[n]) {
        snprintf(f->what, sizeof f->what, "'%.200s' is not key=value", arg);
        return false;
    }
    snprintf(path, sizeof path, "%.*s", n < sizeof path ? (int)n : (int)sizeof path - 1, arg);
    const int key = train_key_find(path);
    if (key < 0) train_key_unknown(path, f);
    else if (train_value_set(c, key, arg + n + 1, false, f)) c->origin[key] = origin;
    return !f->what[0];
}

int train_config_override(train_config *c, const char *arg, ag_err *err)
{
    char shown[200], what[320];
    train_fault f;
    train_text_clean(arg, shown, sizeof shown);
    if (!strchr(arg, '='))
        return ag_err_set(err, AG_ECONFIG, "command line: '%s' is not key=value", shown);
    if (train_config_assign(c, arg, (train_origin){.from = TRAIN_FROM_COMMAND}, &f)) return AG_OK;
    train_text_clean(f.what, what, sizeof what);
    return ag_err_set(err, AG_ECONFIG, "command line: '%s': %s%s%s", shown, what,
                      f.hint[0] ? "\n  " : "", f.hint);
}
