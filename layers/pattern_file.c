/* pattern_file.c -- pairs of a query and a key from a text file; pattern.h says how it looks, and
 * why the text is kept. */
#include "layers/pattern.h"

#include "autograd/base/arena.h"
#include "autograd/base/io.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

typedef struct reader {
    nn_pairs   *pairs;
    const char *path;
    int64_t     line, n, n_heads;
    int32_t     head;                /* of the lines here; -1: all */
    ag_err     *err;
} reader;

static int complain(const reader *r, const char *what, long long a, long long b)
{
    const int code = ag_err_set(r->err, AG_ECONFIG, what, a, b);
    ag_err_prefix(r->err, "%s:%lld: ", r->path, (long long)r->line);
    return code;
}

enum { MOST = 1 << 28 };             /* bytes of a file */

static nn_pattern_file *find(const nn_pattern_files *s, const char *path)
{
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->file[i].path, path)) return &s->file[i];
    return NULL;
}

int nn_pattern_files_add(nn_pattern_files *s, const char *path, char *text, size_t size,
                         ag_err *err)
{
    nn_pattern_file *more =
        ag_fault_now() ? NULL : realloc(s->file, ((size_t)s->n + 1) * sizeof *more);
    if (more) s->file = more;
    char *name = more && !ag_fault_now() ? strdup(path) : NULL;
    if (!name) {
        free(text);
        return ag_err_set(err, AG_ENOMEM, "out of memory for %s", path);
    }
    s->file[s->n++] = (nn_pattern_file){ .path = name, .text = text, .size = size };
    return AG_OK;
}

int nn_pattern_files_find(nn_pattern_files *s, const char *path, const nn_pattern_file **ret,
                          ag_err *err)
{
    char *text;
    size_t size;
    int r = AG_OK;
    if (!find(s, path) && s->closed)
        return ag_err_set(err, AG_EINPUT, "the text of '%s' is missing", path);
    if (!find(s, path)) {
        r = ag_file_read(path, MOST, &text, &size, err);
        if (r == AG_OK) r = nn_pattern_files_add(s, path, text, size, err);
    }
    if (r == AG_OK) *ret = find(s, path);
    return r;
}

bool nn_pattern_file_changed(const nn_pattern_file *f)
{
    char *now;
    size_t size;
    if (ag_file_read(f->path, MOST, &now, &size, NULL) < 0) return false;
    const bool same = size == f->size && !memcmp(now, f->text, size);
    free(now);
    return !same;
}

void nn_pattern_files_release(nn_pattern_files *s)
{
    for (int i = 0; i < s->n; i++) {
        free(s->file[i].path);
        free(s->file[i].text);
    }
    free(s->file);
    *s = (nn_pattern_files){ 0 };
}

/* A word at *at, behind blanks; its length, 0 at the end of the line or at a comment. */
static size_t next_word(const char **at, const char **ret_word)
{
    *at += strspn(*at, " \t\r");
    *ret_word = *at;
    const size_t n = strcspn(*at, " \t\r\n#");
    *at += n;
    return n;
}

static bool is_word(const char *word, size_t n, const char *want)
{
    return n == strlen(want) && !memcmp(word, want, n);
}

/* A whole number, at most INT32_MAX. */
static bool read_number(const char **at, int64_t *ret)
{
    const char *word;
    const size_t n = next_word(at, &word);
    int64_t x = 0;
    for (size_t i = 0; i < n; i++) {
        if (word[i] < '0' || word[i] > '9') return false;
        x = 10 * x + (word[i] - '0');
        if (x > INT32_MAX) return false;
    }
    *ret = x;
    return n > 0;
}

static bool at_end(const char *at)
{
    const char *word;
    return !next_word(&at, &word);
}

static int read_unit(reader *r, const char *at)
{
    const char *word;
    const size_t n = next_word(&at, &word);
    int64_t block = 1;
    const bool fine = is_word(word, n, "elements") ||
        (is_word(word, n, "blocks") && read_number(&at, &block) && block > 0);
    if (!fine || !at_end(at))
        return complain(r, "expected 'blocks B', B positions each, or 'elements'", 0, 0);
    r->pairs->block = block;
    return AG_OK;
}

static int add_pair(reader *r, int64_t query, int64_t key)
{
    nn_pairs *p = r->pairs;
    if (p->n == p->room) {
        const int64_t room = 2 * p->room + 64;
        struct nn_pair *more =
            ag_fault_now() ? NULL : realloc(p->pair, (size_t)room * sizeof *more);
        if (!more) return ag_err_set(r->err, AG_ENOMEM, "out of memory for %s", r->path);
        p->pair = more;
        p->room = room;
    }
    p->pair[p->n++] = (struct nn_pair){ r->head, (int32_t)query, (int32_t)key };
    return AG_OK;
}

static int read_line(reader *r, const char *at)
{
    const char *word, *rest = at;
    const size_t n = next_word(&rest, &word);
    int64_t query, key;
    if (!n) return AG_OK;
    if (!r->pairs->block) return read_unit(r, at);
    if (is_word(word, n, "head")) {
        if (!read_number(&rest, &key) || !at_end(rest) || key >= r->n_heads)
            return complain(r, "expected 'head H', H from 0 to %lld", r->n_heads - 1, 0);
        r->head = (int32_t)key;
        return AG_OK;
    }
    if (!read_number(&at, &query) || !read_number(&at, &key) || !at_end(at))
        return complain(r, "expected 'query key', two whole numbers, or 'head H'", 0, 0);
    if (key > query)
        return complain(r, "query %lld sees no later key, such as %lld", query, key);
    const int64_t blocks = (r->n + r->pairs->block - 1) / r->pairs->block;
    if (query >= blocks)
        return complain(r, "query %lld lies behind the last of the context, %lld", query,
                        blocks - 1);
    return add_pair(r, query, key);
}

static int by_value(const void *a, const void *b)
{
    const struct nn_pair *x = a, *y = b;
    if (x->head != y->head) return x->head < y->head ? -1 : 1;
    if (x->query != y->query) return x->query < y->query ? -1 : 1;
    return (x->key > y->key) - (x->key < y->key);
}

static void sort_pairs(nn_pairs *p)
{
    int64_t kept = 0;
    if (p->n) qsort(p->pair, (size_t)p->n, sizeof *p->pair, by_value);
    for (int64_t i = 0; i < p->n; i++)
        if (!kept || by_value(&p->pair[i], &p->pair[kept - 1])) p->pair[kept++] = p->pair[i];
    p->n = kept;
}

int nn_pairs_read(nn_pairs *ret, const nn_pattern_file *f, int64_t n, int64_t n_heads,
                  ag_err *err)
{
    reader r = { .pairs = ret, .path = f->path, .n = n, .n_heads = n_heads, .head = -1,
                 .err = err };
    const char *const stop = f->text + f->size;
    int code = AG_OK;
    *ret = (nn_pairs){ 0 };
    for (const char *at = f->text, *end; code == AG_OK && at < stop; at = end + 1) {
        end = memchr(at, '\n', (size_t)(stop - at));
        if (!end) end = stop;
        r.line++;
        code = memchr(at, '\0', (size_t)(end - at)) ? complain(&r, "this is no text", 0, 0)
                                                    : read_line(&r, at);
    }
    if (!r.line) r.line = 1;         /* an empty file */
    if (code == AG_OK && !ret->block) code = read_unit(&r, "");
    sort_pairs(ret);
    return code;
}

void nn_pairs_release(nn_pairs *p)
{
    free(p->pair);
    *p = (nn_pairs){ 0 };
}
