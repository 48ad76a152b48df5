#include "layers/pattern.h"

#include "autograd/base/arena.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- reading ---------------------------------------------------------------------------------- */

typedef struct term {                /* a factor as written */
    const char *at;
    int         list;                /* of the entry */
    ag_factor   factor;              /* PAIRS: its pairs are in `pairs` */
    int64_t     k;                   /* SUMMARY of fixed: as given, or ASK; 0: no fixed */
    nn_pairs    pairs;
} term;

enum { MAX_TERMS = 128, ASK = -1 };

typedef struct parser {
    const char *text, *at;
    int64_t     n, n_heads;          /* positions, heads */
    nn_pattern_files *files;
    ag_err     *err;
    const char *begin, *end;         /* of the entry */
    int         n_lists, n_terms;
    int64_t     repeat;
    term        term[MAX_TERMS];
} parser;

static const char forms[] =
    "a factor is dense, local(l), strided(l), chunk(l), summary(l, c[, index]), "
    "fixed(l, c[, k]) or file(\"path\");\n  '+' joins factors, '|' parts heads, ';' parts layers, "
    "'*3' behind a layer's makes three of it";

/* The line around `at`, with a caret below it. */
static void point(const parser *p, const char *at, char *buf, size_t size)
{
    enum { BEFORE = 60, AFTER = 35 };
    const char *from = at - p->text > BEFORE ? at - BEFORE : p->text;
    while ((*from & 0xc0) == 0x80) from++;           /* not into a character of UTF-8 */
    size_t n = 0;
    int column = 0;
    for (const char *c = from; *c && c < at + AFTER && n + 2 < size; c++) {
        buf[n++] = (unsigned char)*c < ' ' ? ' ' : *c;
        column += c < at && (*c & 0xc0) != 0x80;
    }
    snprintf(buf + n, size - n, "\n    %*s^", column, "");
}

__attribute__((format(printf, 3, 4)))
static int complain(const parser *p, const char *at, const char *fmt, ...)
{
    char what[256], where[320];
    va_list list;
    va_start(list, fmt);
    vsnprintf(what, sizeof what, fmt, list);
    va_end(list);
    point(p, at, where, sizeof where);
    return ag_err_set(p->err, AG_ECONFIG, "%s\n    %s\n  %s", what, where, forms);
}

static void skip_blanks(parser *p) { p->at += strspn(p->at, " \t\r\n"); }

/* Takes the character c, if it is the next. */
static bool take(parser *p, char c)
{
    skip_blanks(p);
    if (*p->at != c) return false;
    p->at++;
    return true;
}

/* The next character in words. */
static const char *found(const parser *p, char buf[16])
{
    if (!*p->at) return "the end";
    int n = 1;
    while ((p->at[n] & 0xc0) == 0x80 && n < 4) n++;
    snprintf(buf, 16, "'%.*s'", n, (unsigned char)*p->at < ' ' ? "?" : p->at);
    return buf;
}

/* A whole number in [least, most], called so. */
static int read_number(parser *p, const char *name, int64_t least, int64_t most, int64_t *ret)
{
    char buf[16];
    skip_blanks(p);
    const char *at = p->at;
    int64_t x = 0;
    if (*at < '0' || *at > '9')
        return complain(p, at, "expected %s, a whole number, found %s", name, found(p, buf));
    for (; *p->at >= '0' && *p->at <= '9'; p->at++)
        if (x <= INT32_MAX) x = 10 * x + (*p->at - '0');
    if (x < least || x > most)
        return complain(p, at, "%s must be a number from %lld to %lld", name, (long long)least,
                        (long long)most);
    *ret = x;
    return AG_OK;
}

/* What every factor but dense has behind its name. */
static int expect(parser *p, char c)
{
    char buf[16];
    if (take(p, c)) return AG_OK;
    return complain(p, p->at, "expected '%c', found %s", c, found(p, buf));
}

static int add_term(parser *p, const char *at, ag_factor f, int64_t k)
{
    if (p->n_terms == MAX_TERMS)
        return complain(p, at, "a layer has at most %d factors in all", MAX_TERMS);
    p->term[p->n_terms++] = (term){ .at = at, .list = p->n_lists, .factor = f, .k = k };
    return AG_OK;
}

/* (l), (l, c), (l, c, last): summary and fixed have the third number, or not. */
static int read_sizes(parser *p, const char *at, ag_factor_kind kind, bool fixed)
{
    ag_factor f = { .kind = kind };
    const bool two = kind == AG_FACTOR_SUMMARY;
    int r = expect(p, '(');
    if (r == AG_OK) r = read_number(p, "l", 1, INT32_MAX, &f.stride);
    if (r == AG_OK && two) r = expect(p, ',');
    if (r == AG_OK && two) r = read_number(p, "c", 1, f.stride, &f.width);
    if (r < 0) return r;
    const int64_t parts = two ? f.stride / f.width : 1;
    int64_t k = ASK;
    const int64_t most = parts < p->n_heads ? parts : p->n_heads;
    if (two && take(p, ','))
        r = fixed ? read_number(p, "k, the parts of a stride among the heads,", 1, most, &k)
                  : read_number(p, "index", 0, parts - 1, &f.index);
    if (r == AG_OK) r = expect(p, ')');
    if (r == AG_OK && fixed)
        r = add_term(p, at, (ag_factor){ .kind = AG_FACTOR_CHUNK, .stride = f.stride }, 0);
    return r == AG_OK ? add_term(p, at, f, fixed ? k : 0) : r;
}

static int read_file(parser *p, const char *at)
{
    char path[1024];
    int r = expect(p, '(');
    if (r < 0) return r;
    skip_blanks(p);
    const char quote = *p->at;
    if (quote != '"' && quote != '\'')
        return complain(p, p->at, "expected the path of a file in quotes");
    const size_t n = strcspn(p->at + 1, quote == '"' ? "\"" : "'");
    if (p->at[1 + n] != quote) return complain(p, p->at, "this quote does not end");
    if (n == 0 || n >= sizeof path)
        return complain(p, p->at, "a path has 1 to %zu bytes", sizeof path - 1);
    memcpy(path, p->at + 1, n);
    path[n] = '\0';
    p->at += n + 2;
    r = expect(p, ')');
    if (r == AG_OK) r = add_term(p, at, (ag_factor){ .kind = AG_FACTOR_PAIRS }, 0);
    if (r < 0) return r;
    term *t = &p->term[p->n_terms - 1];
    const nn_pattern_file *f;
    r = nn_pattern_files_find(p->files, path, &f, p->err);
    if (r == AG_OK) r = nn_pairs_read(&t->pairs, f, p->n, p->n_heads, p->err);
    t->factor.width = t->pairs.block;
    return r;
}

static int read_factor(parser *p)
{
    static const struct { const char *name; ag_factor_kind kind; } kinds[] = {
        { "dense", AG_FACTOR_ALL }, { "local", AG_FACTOR_LOCAL }, { "strided", AG_FACTOR_STRIDED },
        { "chunk", AG_FACTOR_CHUNK }, { "summary", AG_FACTOR_SUMMARY },
        { "fixed", AG_FACTOR_SUMMARY }, { "file", AG_FACTOR_PAIRS },
    };
    char buf[16];
    skip_blanks(p);
    const char *at = p->at;
    const size_t n = strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789");
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strlen(kinds[i].name) != n || memcmp(at, kinds[i].name, n)) continue;
        p->at += n;
        if (kinds[i].kind == AG_FACTOR_ALL)
            return add_term(p, at, (ag_factor){ .kind = AG_FACTOR_ALL }, 0);
        return kinds[i].kind == AG_FACTOR_PAIRS ? read_file(p, at)
                                                : read_sizes(p, at, kinds[i].kind, *at == 'f');
    }
    if (!n) return complain(p, at, "expected a factor, found %s", found(p, buf));
    return complain(p, at, "no factor '%.*s'", n > 40 ? 40 : (int)n, at);
}

static void release_terms(parser *p)
{
    for (int i = 0; i < p->n_terms; i++) nn_pairs_release(&p->term[i].pairs);
    p->n_terms = 0;
}

/* An entry, up to its ';' or the end. */
static int read_entry(parser *p)
{
    char buf[16];
    release_terms(p);
    p->n_lists = 0;
    p->repeat = 1;
    skip_blanks(p);
    p->begin = p->at;
    do {
        if (p->n_lists == p->n_heads)
            return complain(p, p->at, "more lists than heads, %lld", (long long)p->n_heads);
        do {
            const int r = read_factor(p);
            if (r < 0) return r;
        } while (take(p, '+'));
        p->n_lists++;
    } while (take(p, '|'));
    p->end = p->at;
    while (p->end > p->begin && strchr(" \t\r\n", p->end[-1])) p->end--;
    if (take(p, '*')) {
        const int r = read_number(p, "the number of layers", 1, 1000, &p->repeat);
        if (r < 0) return r;
    }
    skip_blanks(p);
    if (*p->at && *p->at != ';')
        return complain(p, p->at, "expected '+', '|', '*', ';' or the end, found %s",
                        found(p, buf));
    return AG_OK;
}

/* --- layouts of heads ------------------------------------------------------------------------- */

/* The pairs of head h, ascending: those for all heads and its own. */
static int pairs_of(const nn_pairs *from, int64_t h, ag_factor *f, ag_err *err)
{
    int32_t (*pair)[2] = ag_fault_now() ? NULL : malloc(((size_t)from->n + 1) * sizeof *pair);
    if (!pair) return ag_err_set(err, AG_ENOMEM, "out of memory for an attention pattern");
    int64_t a = 0, b = 0, n = 0, a_end = 0;
    while (a_end < from->n && from->pair[a_end].head < 0) a_end++;
    for (b = a_end; b < from->n && from->pair[b].head < h;) b++;
    while (a < a_end || (b < from->n && from->pair[b].head == h)) {
        const struct nn_pair *x = a < a_end ? &from->pair[a] : NULL,
            *y = b < from->n && from->pair[b].head == h ? &from->pair[b] : NULL;
        const int64_t order = !x ? 1 : !y ? -1 : x->query != y->query ? x->query - y->query
                                                                      : x->key - y->key;
        const struct nn_pair *next = order <= 0 ? x : y;
        pair[n][0] = next->query;
        pair[n++][1] = next->key;
        a += order <= 0;
        b += order >= 0;
    }
    f->pair = (const int32_t (*)[2])pair;
    f->n_pairs = n;
    return AG_OK;
}

static void free_layouts(ag_pattern_layout *l, int64_t count)
{
    for (int64_t h = 0; l && h < count; h++)
        for (int f = 0; f < l[h].n_factors; f++) free((void *)(uintptr_t)l[h].factor[f].pair);
    free(l);
}

/* Which part of a stride head h sums up with fixed(l, c, k): the heads of its list take turns. */
static int64_t part_of(const parser *p, const term *t, int64_t h)
{
    const int64_t parts = t->factor.stride / t->factor.width, list = h % p->n_lists,
        heads = (p->n_heads - list + p->n_lists - 1) / p->n_lists;
    const int64_t k = t->k != ASK ? t->k : heads % parts == 0 ? parts : 1;
    return h / p->n_lists % k;
}

/* What head h sees; where one of its factors is dense, that alone. */
static int make_layout(const parser *p, int64_t h, ag_pattern_layout *l)
{
    for (int i = 0; i < p->n_terms; i++) {
        const term *t = &p->term[i];
        if (t->list != h % p->n_lists || (l->n_factors && l->factor[0].kind == AG_FACTOR_ALL))
            continue;
        if (l->n_factors == AG_PATTERN_FACTORS)
            return complain(p, t->at, "a head has at most %d factors, and fixed counts as two",
                            AG_PATTERN_FACTORS);
        ag_factor f = t->factor;
        if (t->k) f.index = part_of(p, t, h);
        const int r = f.kind == AG_FACTOR_PAIRS ? pairs_of(&t->pairs, h, &f, p->err) : AG_OK;
        if (r < 0) return r;
        if (f.kind == AG_FACTOR_ALL) {
            for (int j = 0; j < l->n_factors; j++) free((void *)(uintptr_t)l->factor[j].pair);
            l->n_factors = 0;
        }
        l->factor[l->n_factors++] = f;
    }
    return AG_OK;
}

static bool equal_factors(const ag_factor *a, const ag_factor *b)
{
    return a->kind == b->kind && a->stride == b->stride && a->width == b->width &&
        a->index == b->index && a->n_pairs == b->n_pairs &&
        (!a->n_pairs || !memcmp(a->pair, b->pair, (size_t)a->n_pairs * sizeof *a->pair));
}

static bool equal_layouts(const ag_pattern_layout *a, const ag_pattern_layout *b)
{
    bool same = a->n_factors == b->n_factors;
    for (int f = 0; same && f < a->n_factors; f++)
        same = equal_factors(&a->factor[f], &b->factor[f]);
    return same;
}

/* The least count for which head h has layout h % count. */
static int period_of(const ag_pattern_layout *l, int64_t n_heads)
{
    int count = 1;
    for (int64_t h = 0; h < n_heads; h++)
        if (!equal_layouts(&l[h], &l[h % count])) h = -1, count++;
    return count;
}

static bool all_dense(const ag_pattern_layout *l, int count)
{
    return count == 1 && l[0].factor[0].kind == AG_FACTOR_ALL;
}

/* --- the patterns of a model ------------------------------------------------------------------ */

static bool is_made(const nn_pattern *m, const ag_pattern_layout *l, int count)
{
    if (!m->keys) return all_dense(l, count);
    bool same = m->keys->layouts == count;
    for (int i = 0; same && i < count; i++) same = equal_layouts(&m->keys->layout[i], &l[i]);
    return same;
}

/* The pattern of these layouts: one that there is, or a new one. */
static int make_pattern(const parser *p, nn_patterns *s, const ag_pattern_layout *l, int *ret_of)
{
    const int count = period_of(l, p->n_heads);
    for (int i = 0; i < s->n; i++)
        if (is_made(&s->made[i], l, count)) {
            *ret_of = i;
            return AG_OK;
        }
    const size_t n = (size_t)(p->end - p->begin);
    nn_pattern *more = ag_fault_now() ? NULL
                                      : realloc(s->made, ((size_t)s->n + 1) * sizeof *more);
    if (more) s->made = more;
    char *text = more && !ag_fault_now() ? calloc(n + 1, 1) : NULL;
    if (!text) return ag_err_set(p->err, AG_ENOMEM, "out of memory for an attention pattern");
    memcpy(text, p->begin, n);
    s->made[s->n] = (nn_pattern){ .text = text };
    *ret_of = s->n++;
    if (all_dense(l, count)) return AG_OK;
    return ag_pattern_new(&s->made[*ret_of].keys, p->n, count, l, p->err);
}

/* The layouts of an entry's heads, and its layers unless s is NULL; no more than n_layers. */
static int make_entry(const parser *p, nn_patterns *s, int64_t n_layers)
{
    ag_pattern_layout *l = ag_fault_now() ? NULL : calloc((size_t)p->n_heads, sizeof *l);
    int r = l ? AG_OK : ag_err_set(p->err, AG_ENOMEM, "out of memory for an attention pattern");
    for (int64_t h = 0; r == AG_OK && h < p->n_heads; h++) r = make_layout(p, h, &l[h]);
    int of = 0;
    if (r == AG_OK && s && s->period < n_layers) {
        r = make_pattern(p, s, l, &of);
        for (int64_t i = 0; r == AG_OK && i < p->repeat && s->period < n_layers; i++)
            s->of[s->period++] = of;
    }
    free_layouts(l, p->n_heads);
    return r;
}

static int read_all(const char *text, int64_t n, int64_t n_heads, nn_patterns *s, int64_t n_layers,
                    nn_pattern_files *files, ag_err *err)
{
    nn_pattern_files own = { 0 };
    parser *p = ag_fault_now() ? NULL : malloc(sizeof *p);
    if (!p) return ag_err_set(err, AG_ENOMEM, "out of memory for an attention pattern");
    *p = (parser){ .text = text, .at = text, .n = n, .n_heads = n_heads,
                   .files = files ? files : &own, .err = err };
    int r;
    do {
        r = read_entry(p);
        if (r == AG_OK) r = make_entry(p, s, n_layers);
    } while (r == AG_OK && take(p, ';'));
    release_terms(p);
    nn_pattern_files_release(&own);
    free(p);
    return r;
}

int nn_patterns_check(const char *text, int64_t n, int64_t n_heads, nn_pattern_files *files,
                      ag_err *err)
{
    return read_all(text, n, n_heads, NULL, 0, files, err);
}

int nn_patterns_new(nn_patterns **ret, const char *text, int64_t n, int64_t n_layers,
                    int64_t n_heads, nn_pattern_files *files, ag_err *err)
{
    nn_patterns *s = ag_fault_now() ? NULL : calloc(1, sizeof *s);
    if (s) s->of = ag_fault_now() ? NULL : calloc((size_t)n_layers, sizeof *s->of);
    int r = s && s->of ? AG_OK
                       : ag_err_set(err, AG_ENOMEM, "out of memory for an attention pattern");
    if (r == AG_OK) r = read_all(text, n, n_heads, s, n_layers, files, err);
    if (r < 0) nn_patterns_free(s);
    else *ret = s;
    return r;
}

void nn_patterns_free(nn_patterns *p)
{
    if (!p) return;
    for (int i = 0; i < p->n; i++) {
        free(p->made[i].text);
        ag_pattern_free(p->made[i].keys);
    }
    free(p->made);
    free(p->of);
    free(p);
}

const nn_pattern *nn_patterns_of(const nn_patterns *p, int64_t layer)
{
    return &p->made[p->of[layer % p->period]];
}

size_t nn_patterns_bytes(const nn_patterns *p)
{
    size_t bytes = 0;
    for (int i = 0; i < p->n; i++)
        if (p->made[i].keys) bytes += ag_pattern_bytes(p->made[i].keys);
    return bytes;
}
