/*
 * config.c -- from YAML and `key=value` to a train_config; the one file that knows libfyaml.
 *
 * The parser's events are taken one by one against the table of keys, with no document in between:
 * each key and value brings its line and column, so a fault can be shown where it stands, and
 * reading goes on behind it to find the next.
 */
#include "autograd/base/io.h"
#include "train/schema.h"

#include <libfyaml.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_FILE   = 1 << 20,            /* bytes */
    MAX_DEPTH  = 32,
    MAX_FAULTS = 10,                 /* in one report */
    MAX_SHOWN  = 88,                 /* characters of a source line in a report */
};

typedef struct reader {
    struct fy_parser *parser;
    struct fy_diag   *diag;
    train_config cfg;
    const char  *name, *text;
    size_t size;
    int  seen[TRAIN_KEYS];           /* line of each key met, 0 = not yet */
    int  depth;                      /* mappings and lists that are open */
    bool stop;                       /* no more events: the end, or a fault */
    int  faults;
    char report[sizeof ((ag_err *)0)->msg - 32];
    size_t used;
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

/* ---- faults ---- */

/* The line that holds the fault, and a caret below column col (both from 1, columns in
 * characters).  A long line is cut around the caret; what does not print becomes a blank. */
static size_t show_line(const reader *r, int line, int col, char *buf, size_t size)
{
    const char *p = r->text, *end = r->text + r->size;
    for (int i = 1; i < line && p; i++) {
        p = memchr(p, '\n', (size_t)(end - p));
        if (p) p++;
    }
    if (!p || p >= end || line < 1 || col < 1) return 0;
    const int first = col > MAX_SHOWN - 20 ? col - (MAX_SHOWN - 20) : 1;
    size_t n = (size_t)snprintf(buf, size, "\n    ");
    for (int i = 1; p < end && *p != '\n' && *p != '\r' && i < first + MAX_SHOWN; i++) {
        uint32_t u;
        const size_t bytes = train_utf8_next(p, (size_t)(end - p), &u);
        const bool plain = u >= 0x20 && !(u >= 0x7f && u < 0xa0) && u != 0xfffd;
        if (i >= first && n + 4 < size) {
            if (plain) memcpy(buf + n, p, bytes), n += bytes;
            else buf[n++] = ' ';
        }
        p += bytes;
    }
    return n + (size_t)snprintf(buf + n, size - n, "\n    %*s", col - first + 1, "^");
}

/* Adds a fault to the report; line 0 = of the file as a whole. */
static void report(reader *r, int line, int col, const train_fault *f)
{
    char buf[2048], where[64] = "", what[sizeof f->what];
    if (r->faults++ >= MAX_FAULTS) return;
    train_text_clean(f->what, what, sizeof what);
    if (line > 0) snprintf(where, sizeof where, ":%d:%d", line, col);
    size_t n = (size_t)snprintf(buf, sizeof buf, "%.256s%s: %s", r->name, where, what);
    n += show_line(r, line, col, buf + n, sizeof buf - n - sizeof f->hint - 4);
    if (f->hint[0]) n += (size_t)snprintf(buf + n, sizeof buf - n, "\n  %s", f->hint);
    if (r->used + n + 2 > sizeof r->report) {
        r->faults += MAX_FAULTS;     /* full: only count from here on */
        return;
    }
    r->used += (size_t)snprintf(r->report + r->used, sizeof r->report - r->used, "%s%s",
                                r->used ? "\n" : "", buf);
}

__attribute__((format(printf, 5, 6)))
static void fault(reader *r, int line, int col, const char *hint, const char *fmt, ...)
{
    train_fault f;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f.what, sizeof f.what, fmt, ap);
    va_end(ap);
    snprintf(f.hint, sizeof f.hint, "%s", hint);
    report(r, line, col, &f);
}

/* ---- events ---- */

typedef struct event {
    enum fy_event_type type;
    int  line, col;                  /* from 1 */
    bool quoted, null;               /* of a scalar: in quotes; not there at all */
    bool whole;                      /* text is all of the scalar: not cut, no NUL in it */
    char text[2 * TRAIN_TEXT_MAX];
} event;

/* What the YAML parser says, with a word of help where its terms are not a user's. */
static void syntax_fault(reader *r)
{
    static const char *const help[][2] = {
        {"multiline plain key", "a key needs a colon and a blank behind it, key: value"},
        {"tab character", "indent with blanks"},
        {"invalid indentation", "the keys of a group start in the same column"},
        {"on the same line", "the keys of a group stand below it, indented"},
    };
    void *it = NULL;
    const struct fy_diag_error *e = fy_diag_errors_iterate(r->diag, &it);
    if (!e) {
        fault(r, 0, 0, "", "cannot be parsed as YAML");
        return;
    }
    const char *hint = "";
    for (size_t i = 0; i < sizeof help / sizeof help[0]; i++)
        if (strstr(e->msg, help[i][0])) hint = help[i][1];
    fault(r, e->line, e->column, hint, "%s", e->msg);
}

static void take_scalar(struct fy_token *token, event *e)
{
    size_t size = 0;
    const char *text = token ? fy_token_get_text(token, &size) : NULL;
    snprintf(e->text, sizeof e->text, "%.*s", text ? (int)size : 0, text ? text : "");
    e->whole = !text || strlen(e->text) == size;
    const enum fy_scalar_style style = token ? fy_token_scalar_style(token) : FYSS_PLAIN;
    e->quoted = style != FYSS_PLAIN;
    if (style == FYSS_SINGLE_QUOTED || style == FYSS_DOUBLE_QUOTED) e->col--;   /* show the quote */
    e->null = !e->quoted && size == 0;
}

static void refuse_token(reader *r, struct fy_token *token, const char *what)
{
    const struct fy_mark *m = token ? fy_token_start_mark(token) : NULL;
    if (m) fault(r, m->line + 1, m->column + 1, "", "%s are not used in a configuration", what);
}

/* The next event; FYET_NONE at the end or where reading cannot go on.  An event without a place of
 * its own (an absent value) keeps the place that e held before. */
static void next(reader *r, event *e)
{
    struct fy_event *ev = r->stop ? NULL : fy_parser_parse(r->parser);
    e->type = ev ? ev->type : FYET_NONE;
    if (!ev) {
        if (!r->stop && fy_parser_get_stream_error(r->parser)) syntax_fault(r);
        r->stop = true;
        return;
    }
    const struct fy_mark *m = fy_event_start_mark(ev);
    if (m && m->line >= 0) e->line = m->line + 1, e->col = m->column + 1;
    if (ev->type == FYET_SCALAR) take_scalar(ev->scalar.value, e);
    const bool open = ev->type == FYET_MAPPING_START || ev->type == FYET_SEQUENCE_START;
    if (open || ev->type == FYET_SCALAR) {
        refuse_token(r, fy_event_get_anchor_token(ev), "anchors (&name)");
        refuse_token(r, fy_event_get_tag_token(ev), "tags (!name)");
    }
    const bool close = ev->type == FYET_MAPPING_END || ev->type == FYET_SEQUENCE_END;
    r->depth += open - close;
    if (r->depth > MAX_DEPTH) {
        fault(r, e->line, e->col, "", "nested more than %d levels deep", MAX_DEPTH);
        r->stop = true;
        e->type = FYET_NONE;
    }
    fy_parser_event_free(r->parser, ev);
}

/* Passes over the rest of the value that began with e. */
static void skip(reader *r, const event *begin)
{
    if (begin->type != FYET_MAPPING_START && begin->type != FYET_SEQUENCE_START) return;
    const int outside = r->depth - 1;
    event e = {.line = begin->line};
    while (!r->stop && r->depth > outside) next(r, &e);
}

/* ---- against the table ---- */

/* Whether e may be the value of key at all; a fault if not. */
static bool fits(reader *r, const event *e, int key)
{
    const train_key *k = &train_keys[key];
    const char *found = e->type == FYET_MAPPING_START  ? "a group of keys"
                      : e->type == FYET_SEQUENCE_START ? "a list"
                      : e->type == FYET_ALIAS          ? "an alias"
                      : e->null                        ? "nothing" : "a value";
    if (k->type == TRAIN_GROUP) {
        if (e->type == FYET_MAPPING_START || (e->type == FYET_SCALAR && e->null)) return true;
        fault(r, e->line, e->col, "write its keys below it, indented",
              "'%s' is a group of keys, found %s", k->path, found);
        return false;
    }
    if (e->type == FYET_SCALAR && !e->null) return true;
    fault(r, e->line, e->col,
          e->type == FYET_ALIAS ? "aliases (*name) are not used in a configuration"
          : k->type == TRAIN_TEXT && e->null ? "write \"\" for an empty text" : "",
          "%s expects %s, found %s", k->path, train_key_noun(k), found);
    return false;
}

static void read_value(reader *r, const event *e, int key)
{
    train_fault f;
    if (!e->whole) {
        fault(r, e->line, e->col, "", "%s is too long or holds a NUL", train_keys[key].path);
    } else if (!train_value_set(&r->cfg, key, e->text, e->quoted, &f)) {
        report(r, e->line, e->col, &f);
    } else {
        r->cfg.origin[key] = (train_origin){TRAIN_FROM_FILE, e->line};
    }
}

/* The key that e names inside group, or -1 and a fault. */
static int find_key(reader *r, const event *e, const char *group)
{
    char path[sizeof e->text + 256];
    if (e->type != FYET_SCALAR || e->null || !e->whole) {
        fault(r, e->line, e->col, "", "a key must be one word");
        return -1;
    }
    snprintf(path, sizeof path, "%s%s%s", group, group[0] ? "." : "", e->text);
    const int key = train_key_find(path);
    if (key >= 0 && !strchr(e->text, '.')) {
        if (!r->seen[key]) return r->seen[key] = e->line, key;
        fault(r, e->line, e->col, "", "%s is set twice, first in line %d", path, r->seen[key]);
        return -1;
    }
    train_fault f = {.hint = ""};
    train_key_unknown(path, &f);
    if (train_key_find(e->text) >= 0 && strchr(e->text, '.'))
        snprintf(f.hint, sizeof f.hint, "in a file, keys stand indented below their group");
    report(r, e->line, e->col, &f);
    return -1;
}

/* Reads the keys of a mapping that has been opened; group "" is the file itself. */
static void read_group(reader *r, const char *group)
{
    event e = {.line = 1, .col = 1};
    for (;;) {
        next(r, &e);
        if (e.type == FYET_MAPPING_END || e.type == FYET_NONE) return;
        const int key = find_key(r, &e, group);
        skip(r, &e);                 /* a key that is a list or a mapping */
        next(r, &e);
        if (e.type == FYET_NONE) return;
        if (key < 0 || !fits(r, &e, key)) skip(r, &e);
        else if (e.type == FYET_MAPPING_START) read_group(r, train_keys[key].path);
        else if (train_keys[key].type != TRAIN_GROUP) read_value(r, &e, key);
    }
}

static void read_stream(reader *r)
{
    event e = {.line = 1, .col = 1};
    int documents = 0;
    for (next(r, &e); e.type != FYET_NONE; next(r, &e)) {
        if (e.type == FYET_STREAM_START || e.type == FYET_STREAM_END ||
            e.type == FYET_DOCUMENT_START || e.type == FYET_DOCUMENT_END)
            continue;
        if (documents++) {
            fault(r, e.line, e.col, "", "a second document; a configuration has one");
            r->stop = true;
        } else if (e.type == FYET_MAPPING_START) {
            read_group(r, "");
        } else {
            fault(r, e.line, e.col, "a configuration looks like\n    model:\n      d_model: 64",
                  "expects groups of keys");
            skip(r, &e);
        }
    }
    if (!documents && !r->faults) fault(r, 0, 0, "", "holds no keys");
}

/* ---- files and text ---- */

/* Damage that the YAML parser should not see. */
static bool check_bytes(reader *r)
{
    int line = 1, col = 1;
    if (r->size > MAX_FILE) {
        fault(r, 0, 0, "", "is larger than 1 MB; is it a configuration?");
        return false;
    }
    for (size_t i = 0, n; i < r->size; i += n, col++) {
        uint32_t u;
        n = train_utf8_next(r->text + i, r->size - i, &u);
        if (n == 1 && (u == 0xfffd || u == 0)) {
            fault(r, line, col, "save the file as UTF-8 text", "byte 0x%02x is not UTF-8 text",
                  (unsigned)(unsigned char)r->text[i]);
            return false;
        }
        if (u == '\n') line++, col = 0;
    }
    return true;
}

static int run_parser(reader *r, ag_err *err)
{
    struct fy_diag_cfg dc;
    fy_diag_cfg_default(&dc);
    r->diag = fy_diag_create(&dc);
    if (!r->diag) return ag_err_set(err, AG_ENOMEM, "%s: out of memory", r->name);
    fy_diag_set_collect_errors(r->diag, true);
    const struct fy_parse_cfg pc = {.flags = FYPCF_QUIET | FYPCF_COLLECT_DIAG, .diag = r->diag};
    r->parser = fy_parser_create(&pc);
    int code = AG_OK;
    if (!r->parser || fy_parser_set_string(r->parser, r->text, r->size))
        code = ag_err_set(err, AG_ENOMEM, "%s: out of memory", r->name);
    else
        read_stream(r);
    if (r->parser) fy_parser_destroy(r->parser);
    fy_diag_destroy(r->diag);
    return code;
}

int train_config_parse(train_config *c, const char *text, size_t size, const char *name,
                       ag_err *err)
{
    reader *r = calloc(1, sizeof *r);
    if (!r) return ag_err_set(err, AG_ENOMEM, "%s: out of memory", name);
    r->name = name;
    r->text = text;
    r->size = size;
    r->cfg = *c;
    snprintf(r->cfg.file, sizeof r->cfg.file, "%s", name);
    int code = check_bytes(r) ? run_parser(r, err) : AG_OK;
    if (!code && r->faults > 0)
        code = ag_err_set(err, AG_ECONFIG, "%s%s", r->report,
                          r->faults > MAX_FAULTS ? "\nand more" : "");
    if (!code) *c = r->cfg;
    free(r);
    return code;
}

int train_config_load(train_config *c, const char *path, ag_err *err)
{
    char *text;
    size_t size;
    ag_err why = {0};
    const int code = ag_file_read(path, MAX_FILE, &text, &size, &why);
    if (code) return ag_err_set(err, code == AG_ENOMEM ? code : AG_ECONFIG, "%s", why.msg);
    const int parsed = train_config_parse(c, text, size, path, err);
    free(text);
    return parsed;
}

int train_config_override(train_config *c, const char *arg, ag_err *err)
{
    char path[256], shown[200], what[320];
    const char *eq = strchr(arg, '=');
    train_text_clean(arg, shown, sizeof shown);
    if (!eq) return ag_err_set(err, AG_ECONFIG, "command line: '%s' is not key=value", shown);
    train_fault f = {.hint = ""};
    const size_t n = (size_t)(eq - arg);
    snprintf(path, sizeof path, "%.*s", n < sizeof path ? (int)n : (int)sizeof path - 1, arg);
    const int key = train_key_find(path);
    if (key < 0) train_key_unknown(path, &f);
    else if (train_value_set(c, key, eq + 1, false, &f)) {
        c->origin[key] = (train_origin){.from = TRAIN_FROM_COMMAND};
        return AG_OK;
    }
    train_text_clean(f.what, what, sizeof what);
    return ag_err_set(err, AG_ECONFIG, "command line: '%s': %s%s%s", shown, what,
                      f.hint[0] ? "\n  " : "", f.hint);
}
