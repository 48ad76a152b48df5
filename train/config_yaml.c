/*
 * config_yaml.c -- events and faults; the one file that knows libfyaml.
 */
#include "train/config_yaml.h"

#include <libfyaml.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_FILE   = 1 << 20,            /* bytes */
    MAX_DEPTH  = 32,
    MAX_FAULTS = 10,                 /* in one report */
    MAX_SHOWN  = 88,                 /* characters of a source line in a report */
};

/* ---- faults ---- */

/* The line that holds the fault, and a caret below column col (both from 1, columns in
 * characters).  A long line is cut around the caret; what does not print becomes a blank. */
static size_t show_line(const train_yaml *y, int line, int col, char *buf, size_t size)
{
    const char *p = y->text, *end = y->text + y->size;
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

void train_yaml_report(train_yaml *y, int line, int col, const train_fault *f)
{
    char buf[2048], where[64] = "", what[sizeof f->what];
    if (y->faults++ >= MAX_FAULTS) return;
    train_text_clean(f->what, what, sizeof what);
    if (line > 0) snprintf(where, sizeof where, ":%d:%d", line, col);
    size_t n = (size_t)snprintf(buf, sizeof buf, "%.256s%s: %s", y->name, where, what);
    n += show_line(y, line, col, buf + n, sizeof buf - n - sizeof f->hint - 4);
    if (f->hint[0]) n += (size_t)snprintf(buf + n, sizeof buf - n, "\n  %s", f->hint);
    if (y->used + n + 2 > sizeof y->report) {
        y->faults += MAX_FAULTS;     /* full: only count from here on */
        return;
    }
    y->used += (size_t)snprintf(y->report + y->used, sizeof y->report - y->used, "%s%s",
                                y->used ? "\n" : "", buf);
}

void train_yaml_fault(train_yaml *y, int line, int col, const char *hint, const char *fmt, ...)
{
    train_fault f;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f.what, sizeof f.what, fmt, ap);
    va_end(ap);
    snprintf(f.hint, sizeof f.hint, "%s", hint);
    train_yaml_report(y, line, col, &f);
}

/* ---- events ---- */

/* What the YAML parser says, with a word of help where its terms are not a user's. */
static void syntax_fault(train_yaml *y)
{
    static const char *const help[][2] = {
        {"multiline plain key", "a key needs a colon and a blank behind it, key: value"},
        {"tab character", "indent with blanks"},
        {"invalid indentation", "the keys of a group start in the same column"},
        {"on the same line", "the keys of a group stand below it, indented"},
    };
    void *it = NULL;
    const struct fy_diag_error *e = fy_diag_errors_iterate(y->diag, &it);
    if (!e) {
        train_yaml_fault(y, 0, 0, "", "cannot be parsed as YAML");
        return;
    }
    const char *hint = "";
    for (size_t i = 0; i < sizeof help / sizeof help[0]; i++)
        if (strstr(e->msg, help[i][0])) hint = help[i][1];
    train_yaml_fault(y, e->line, e->column, hint, "%s", e->msg);
}

static void take_scalar(struct fy_token *token, train_yaml_event *e)
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

static void refuse_token(train_yaml *y, struct fy_token *token, const char *what)
{
    const struct fy_mark *m = token ? fy_token_start_mark(token) : NULL;
    if (m)
        train_yaml_fault(y, m->line + 1, m->column + 1, "", "%s are not used in a configuration",
                         what);
}

static train_yaml_kind kind_of(enum fy_event_type type)
{
    switch (type) {
    case FYET_NONE:           return TRAIN_YAML_END;
    case FYET_SCALAR:         return TRAIN_YAML_SCALAR;
    case FYET_ALIAS:          return TRAIN_YAML_ALIAS;
    case FYET_MAPPING_START:  return TRAIN_YAML_MAP;
    case FYET_MAPPING_END:    return TRAIN_YAML_MAP_CLOSE;
    case FYET_SEQUENCE_START: return TRAIN_YAML_LIST;
    case FYET_SEQUENCE_END:   return TRAIN_YAML_LIST_CLOSE;
    default:                  return TRAIN_YAML_MARK;
    }
}

void train_yaml_next(train_yaml *y, train_yaml_event *e)
{
    struct fy_event *ev = y->stop ? NULL : fy_parser_parse(y->parser);
    e->kind = ev ? kind_of(ev->type) : TRAIN_YAML_END;
    if (!ev) {
        if (!y->stop && fy_parser_get_stream_error(y->parser)) syntax_fault(y);
        y->stop = true;
        return;
    }
    const struct fy_mark *m = fy_event_start_mark(ev);
    if (m && m->line >= 0) e->line = m->line + 1, e->col = m->column + 1;
    if (e->kind == TRAIN_YAML_SCALAR) take_scalar(ev->scalar.value, e);
    const bool open = e->kind == TRAIN_YAML_MAP || e->kind == TRAIN_YAML_LIST;
    if (open || e->kind == TRAIN_YAML_SCALAR) {
        refuse_token(y, fy_event_get_anchor_token(ev), "anchors (&name)");
        refuse_token(y, fy_event_get_tag_token(ev), "tags (!name)");
    }
    const bool close = e->kind == TRAIN_YAML_MAP_CLOSE || e->kind == TRAIN_YAML_LIST_CLOSE;
    y->depth += open - close;
    if (y->depth > MAX_DEPTH) {
        train_yaml_fault(y, e->line, e->col, "", "nested more than %d levels deep", MAX_DEPTH);
        y->stop = true;
        e->kind = TRAIN_YAML_END;
    }
    fy_parser_event_free(y->parser, ev);
}

void train_yaml_skip(train_yaml *y, const train_yaml_event *begin)
{
    if (begin->kind != TRAIN_YAML_MAP && begin->kind != TRAIN_YAML_LIST) return;
    const int outside = y->depth - 1;
    train_yaml_event e = {.line = begin->line};
    while (!y->stop && y->depth > outside) train_yaml_next(y, &e);
}

const char *train_yaml_noun(const train_yaml_event *e)
{
    return e->kind == TRAIN_YAML_MAP   ? "a group of keys"
         : e->kind == TRAIN_YAML_LIST  ? "a list"
         : e->kind == TRAIN_YAML_ALIAS ? "an alias"
         : e->null                     ? "nothing" : "a value";
}

/* ---- the text ---- */

/* Damage that the YAML parser should not see. */
static bool check_bytes(train_yaml *y)
{
    int line = 1, col = 1;
    if (y->size > MAX_FILE) {
        train_yaml_fault(y, 0, 0, "", "is larger than 1 MB; is it a configuration?");
        return false;
    }
    for (size_t i = 0, n; i < y->size; i += n, col++) {
        uint32_t u;
        n = train_utf8_next(y->text + i, y->size - i, &u);
        if (n == 1 && (u == 0xfffd || u == 0)) {
            train_yaml_fault(y, line, col, "save the file as UTF-8 text",
                             "byte 0x%02x is not UTF-8 text", (unsigned char)y->text[i]);
            return false;
        }
        if (u == '\n') line++, col = 0;
    }
    return true;
}

int train_yaml_open(train_yaml *y, const char *text, size_t size, const char *name, ag_err *err)
{
    *y = (train_yaml){.name = name, .text = text, .size = size};
    if (!check_bytes(y)) {
        y->stop = true;
        return AG_OK;
    }
    struct fy_diag_cfg dc;
    fy_diag_cfg_default(&dc);
    y->diag = fy_diag_create(&dc);
    if (y->diag) {
        fy_diag_set_collect_errors(y->diag, true);
        const struct fy_parse_cfg pc = {.flags = FYPCF_QUIET | FYPCF_COLLECT_DIAG,
                                        .diag = y->diag};
        y->parser = fy_parser_create(&pc);
    }
    if (y->parser && !fy_parser_set_string(y->parser, text, size)) return AG_OK;
    y->stop = true;
    train_yaml_close(y, NULL);
    return ag_err_set(err, AG_ENOMEM, "%s: out of memory", name);
}

int train_yaml_close(train_yaml *y, ag_err *err)
{
    if (y->parser) fy_parser_destroy(y->parser);
    if (y->diag) fy_diag_destroy(y->diag);
    y->parser = NULL;
    y->diag = NULL;
    if (!y->faults) return AG_OK;
    return ag_err_set(err, AG_ECONFIG, "%s%s", y->report,
                      y->faults > MAX_FAULTS ? "\nand more" : "");
}
