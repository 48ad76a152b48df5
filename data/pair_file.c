/*
 * pair_file.c -- pairs from a text file, plain or gzip: a line is SOURCE, one tab, TARGET.
 *
 * The parts are the lines in order.  Characters are those of the whole file, words those of the
 * part that is trained on: what a word means can only be learned there.
 */
#include "data/internal.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct line { const char *source, *tab, *end; } line;

typedef struct file {
    const char *path, *text;
    size_t size;
    line  *line;                     /* [n] */
    int64_t n;
    int64_t longest;                 /* bytes of a line */
} file;

static int bad_line(const file *f, int64_t i, const char *what, ag_err *err)
{
    return ag_err_set(err, AG_EINPUT, "%s:%" PRId64 ": %s; a line is a source, one tab and a"
                      " target, neither of them empty", f->path, i + 1, what);
}

static int read_lines(file *f, ag_err *err)
{
    const char *p = f->text, *end = f->text + f->size;
    int64_t n = 0;
    for (const char *q = p; q < end && (q = memchr(q, '\n', (size_t)(end - q))); q++)
        n++;
    f->line = malloc((size_t)(n + 1) * sizeof *f->line);
    if (!f->line)
        return ag_err_set(err, AG_ENOMEM, "no memory for the lines of '%s'", f->path);
    while (p < end) {
        const char *stop = memchr(p, '\n', (size_t)(end - p)), *next = stop ? stop + 1 : end;
        stop = stop ? stop : end;
        if (stop > p && stop[-1] == '\r')
            stop--;
        const char *tab = memchr(p, '\t', (size_t)(stop - p));
        if (!tab)
            return bad_line(f, f->n, stop == p ? "the line is empty" : "there is no tab", err);
        if (memchr(tab + 1, '\t', (size_t)(stop - tab - 1)))
            return bad_line(f, f->n, "there is a second tab", err);
        if (tab == p || tab + 1 == stop)
            return bad_line(f, f->n, tab == p ? "the source is empty" : "the target is empty", err);
        f->line[f->n++] = (line){p, tab, stop};
        f->longest = stop - p > f->longest ? stop - p : f->longest;
        p = next;
    }
    return f->n ? AG_OK : ag_err_set(err, AG_EINPUT, "'%s' is empty: there is nothing to learn"
                                     " from", f->path);
}

/* The text with blanks for tabs and line ends. */
static int train_tokenizer(const file *f, const data_options *o, data_tokenizer **ret_tok,
                           ag_err *err)
{
    const bool words = o->tokenizer && !strcmp(o->tokenizer, "word");
    const int64_t trained = (int64_t)((double)f->n * (1 - (o->val_fraction + o->test_fraction)));
    const size_t size = words && trained < f->n ? (size_t)(f->line[trained].source - f->text)
                                                : f->size;
    char *clean = malloc(size + 1);
    if (!clean)
        return ag_err_set(err, AG_ENOMEM, "no memory for the text of '%s'", f->path);
    for (size_t i = 0; i < size; i++)
        clean[i] = f->text[i] == '\t' || f->text[i] == '\n' || f->text[i] == '\r' ? ' '
                                                                                 : f->text[i];
    const int rc = words ? data_tokenizer_words(clean, size, o->vocab, f->path, ret_tok, err)
                         : data_tokenizer_train(clean, size, f->path, ret_tok, err);
    free(clean);
    return rc;
}

static int choose_tokenizer(const file *f, const data_options *o, data_set *d, ag_err *err)
{
    if (o->known)
        return data_tokenizer_copy(o->known, &d->tokenizer, err);
    const bool bytes = o->tokenizer && !strcmp(o->tokenizer, "byte");
    const int rc = bytes ? data_tokenizer_bytes(&d->tokenizer, err)
                         : train_tokenizer(f, o, &d->tokenizer, err);
    if (rc == AG_OK && d->tokenizer->kind != DATA_TOKENIZER_WORD)
        data_tokenizer_reserve(d->tokenizer);
    return rc;
}

typedef struct pair { int32_t *source, *target; int64_t n_source, n_target; } pair;

static int encode(const file *f, const data_set *d, int64_t i, pair *p, ag_err *err)
{
    const line *l = &f->line[i];
    int rc = data_encode_part(d->tokenizer, f->text, l->source, l->tab, f->path, p->source,
                              &p->n_source, err);
    if (rc == AG_OK)
        rc = data_encode_part(d->tokenizer, f->text, l->tab + 1, l->end, f->path, p->target,
                              &p->n_target, err);
    if (rc == AG_OK && (!p->n_source || !p->n_target))
        rc = bad_line(f, i, p->n_source ? "the target has no word" : "the source has no word", err);
    return rc;
}

/* The longest source and target, the end of the target included. */
static int measure(const file *f, const data_set *d, pair *p, int64_t *s, int64_t *t, ag_err *err)
{
    *s = *t = 0;
    for (int64_t i = 0; i < f->n; i++) {
        const int rc = encode(f, d, i, p, err);
        if (rc)
            return rc;
        *s = p->n_source > *s ? p->n_source : *s;
        *t = p->n_target + 1 > *t ? p->n_target + 1 : *t;
    }
    return AG_OK;
}

static int fill(const file *f, const data_options *o, data_set *d, pair *p, ag_err *err)
{
    data_pairs pairs;
    int64_t s, t;
    int rc = measure(f, d, p, &s, &t, err);
    if (rc == AG_OK)
        rc = data_pairs_begin(o, f->n, s, t, d, &pairs, err);
    for (int64_t i = 0; i < f->n && rc == AG_OK; i++)
        if ((rc = encode(f, d, i, p, err)) == AG_OK)
            data_pairs_put(d, &pairs, i, p->source, p->n_source, p->target, p->n_target);
    return rc;
}

static int open_file(file *f, const data_options *o, data_set *d, ag_err *err)
{
    int rc = read_lines(f, err);
    if (rc == AG_OK)
        rc = choose_tokenizer(f, o, d, err);
    if (rc)
        return rc;
    d->vocab = d->tokenizer->n;
    int32_t *scratch = malloc(2 * (size_t)f->longest * sizeof *scratch);
    if (!scratch)
        return ag_err_set(err, AG_ENOMEM, "no memory for the pairs of '%s'", f->path);
    pair p = {scratch, scratch + f->longest, 0, 0};
    rc = fill(f, o, d, &p, err);
    free(scratch);
    return rc ? rc : data_add_file(d, f->path, err);
}

int data_open_pairs(const data_options *o, const char *path, data_set *d, ag_err *err)
{
    data_bytes b;
    int rc = data_bytes_load(path, &b, err);
    if (rc)
        return rc;
    file f = {.path = path, .text = (const char *)b.at, .size = b.size};
    rc = open_file(&f, o, d, err);
    free(f.line);
    data_bytes_release(&b);
    return rc;
}
