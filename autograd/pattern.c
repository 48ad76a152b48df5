#include "pattern.h"

#include "base/arena.h"

#include <stdlib.h>
#include <string.h>

/* --- the sets --------------------------------------------------------------------------------- */

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* The first pair that is not before (q, k). */
static int64_t find_pair(const ag_factor *f, int64_t q, int64_t k)
{
    int64_t lo = 0, hi = f->n_pairs;
    while (lo < hi) {
        const int64_t mid = (lo + hi) / 2;
        const int32_t *p = f->pair[mid];
        if (p[0] < q || (p[0] == q && p[1] < k)) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

bool ag_factor_has(const ag_factor *f, int64_t i, int64_t j)
{
    const int64_t l = f->stride, c = f->width;
    if (j < 0 || j > i) return false;
    switch (f->kind) {
    case AG_FACTOR_ALL:     return true;
    case AG_FACTOR_LOCAL:   return i - j < l;
    case AG_FACTOR_STRIDED: return (i - j) % l == 0;
    case AG_FACTOR_CHUNK:   return j / l == i / l;
    case AG_FACTOR_SUMMARY: return j % l >= l - (f->index + 1) * c && j % l < l - f->index * c;
    case AG_FACTOR_PAIRS: {
        const int64_t at = find_pair(f, i / c, j / c);
        return at < f->n_pairs && f->pair[at][0] == i / c && f->pair[at][1] == j / c;
    }
    case AG_FACTOR_COUNT: break;
    }
    return false;
}

/* The first keys from `from` on of query i, in a row; *b > i: none. */
static void factor_run(const ag_factor *f, int64_t i, int64_t from, int64_t *b, int64_t *e)
{
    const int64_t l = f->stride, c = f->width;
    *b = *e = i + 1;
    switch (f->kind) {
    case AG_FACTOR_ALL:     *b = from; break;
    case AG_FACTOR_LOCAL:   *b = max64(from, i - l + 1); break;
    case AG_FACTOR_CHUNK:   *b = max64(from, i / l * l); break;
    case AG_FACTOR_STRIDED:
        if (from <= i) {
            *b = from + (i - from) % l;
            *e = *b + 1;
        }
        break;
    case AG_FACTOR_SUMMARY: {
        const int64_t lo = l - (f->index + 1) * c, hi = lo + c, at = from % l;
        *b = at < lo ? from - at + lo : at < hi ? from : from - at + l + lo;
        *e = min64(*b / l * l + hi, i + 1);
        break;
    }
    case AG_FACTOR_PAIRS: {
        const int64_t at = find_pair(f, i / c, from / c);
        if (at < f->n_pairs && f->pair[at][0] == i / c) {
            *b = max64(from, f->pair[at][1] * c);
            *e = min64((f->pair[at][1] + 1) * c, i + 1);
        }
        break;
    }
    case AG_FACTOR_COUNT: break;
    }
}

bool ag_pattern_has(const ag_pattern *p, int head, int64_t i, int64_t j)
{
    const ag_pattern_layout *l = ag_pattern_of(p, head);
    for (int f = 0; f < l->n_factors; f++)
        if (ag_factor_has(&l->factor[f], i, j)) return true;
    return false;
}

bool ag_pattern_run(const ag_pattern *p, int head, int64_t i, int64_t from, int64_t *ret_begin,
                    int64_t *ret_end)
{
    const ag_pattern_layout *l = ag_pattern_of(p, head);
    int64_t begin = i + 1, end = i + 1;
    for (int f = 0; f < l->n_factors; f++) {
        int64_t b, e;
        factor_run(&l->factor[f], i, from, &b, &e);
        if (b < begin || (b == begin && e > end)) {
            begin = b;
            end = e;
        }
    }
    if (begin > i) return false;
    *ret_begin = begin;
    *ret_end = end;
    return true;
}

/* --- tiles ------------------------------------------------------------------------------------ */

/* A part while it is made: which of the layout's factors it has. */
typedef struct maker {
    const ag_pattern_layout *l;
    ag_pattern_part *part;
    int64_t   n;
    int       own;                   /* the factor of a strided part; -1: all others */
    int64_t   tile_room, run_room;
    uint64_t *seen;                  /* [n], of the tile; zero between tiles */
    int64_t   n_seen;
} maker;

/* At least `need` elements, twice as many as before. */
static int grow(void **p, int64_t *room, int64_t need, size_t size)
{
    if (need <= *room) return AG_OK;
    const int64_t more = max64(need, 2 * *room + 64);
    void *q = ag_fault_now() ? NULL : realloc(*p, (size_t)more * size);
    if (!q) return AG_ENOMEM;
    *p = q;
    *room = more;
    return AG_OK;
}

/* Does an earlier part have this pair? */
static bool is_earlier(const maker *m, int64_t i, int64_t j)
{
    for (int f = 0; m->own >= 0 && f < m->l->n_factors; f++) {
        const ag_factor *x = &m->l->factor[f];
        if ((x->kind != AG_FACTOR_STRIDED || f < m->own) && ag_factor_has(x, i, j)) return true;
    }
    return false;
}

/* Sets the bit of query i in the keys of one factor; first: the least of them so far. */
static void mark_keys(maker *m, const ag_factor *f, int64_t i, uint64_t bit, int64_t *first)
{
    for (int64_t from = 0, end; from <= i; from = end) {
        int64_t begin;
        factor_run(f, i, from, &begin, &end);
        if (begin > i) return;
        *first = min64(*first, begin);
        for (int64_t j = begin; j < end; j++)
            if (!is_earlier(m, i, j)) m->seen[j] |= bit;
    }
}

/* Appends a key to a tile: to its last run, or as a new one. */
static int add_key(maker *m, ag_pattern_tile *t, int64_t key, uint64_t seen)
{
    ag_pattern_part *p = m->part;
    const ag_key_run *last = t->n_runs ? &p->run[p->n_runs - 1] : NULL;
    m->n_seen += __builtin_popcountll(seen);
    t->n_keys++;
    if (last && last->seen == seen && last->key + (t->n_keys - 1 - last->before) * t->step == key)
        return AG_OK;
    if (grow((void **)&p->run, &m->run_room, p->n_runs + 1, sizeof *p->run) < 0) return AG_ENOMEM;
    p->run[p->n_runs++] = (ag_key_run){ (int32_t)key, (int32_t)(t->n_keys - 1), seen };
    t->n_runs++;
    return AG_OK;
}

static int make_tile(maker *m, int64_t query0, int64_t step)
{
    ag_pattern_part *p = m->part;
    ag_pattern_tile t = { .query0 = query0, .step = step, .first = p->n_runs };
    int64_t first = m->n, last = query0;
    for (; t.n < AG_PATTERN_TILE && query0 + t.n * step < m->n; t.n++) {
        last = query0 + t.n * step;
        for (int f = 0; f < m->l->n_factors; f++)
            if (m->own < 0 ? m->l->factor[f].kind != AG_FACTOR_STRIDED : f == m->own)
                mark_keys(m, &m->l->factor[f], last, UINT64_C(1) << t.n, &first);
    }
    for (int64_t j = first; j <= last; j += step) {         /* keys of one residue, if strided */
        if (!m->seen[j]) continue;
        if (add_key(m, &t, j, m->seen[j]) < 0) return AG_ENOMEM;
        m->seen[j] = 0;
    }
    if (!t.n_keys) return AG_OK;
    if (grow((void **)&p->tile, &m->tile_room, p->n_tiles + 1, sizeof *p->tile) < 0)
        return AG_ENOMEM;
    p->tile[p->n_tiles++] = t;
    p->n_queries += t.n;
    return AG_OK;
}

/* The part of factor `own`, or of all factors that are not strided. */
static int make_part(ag_pattern_layout *l, int64_t n, int own, uint64_t *seen)
{
    maker m = { .l = l, .part = &l->part[l->n_parts++], .n = n, .own = own, .seen = seen };
    const int64_t step = own < 0 ? 1 : l->factor[own].stride;
    for (int64_t r = 0; r < step && r < n; r++)
        for (int64_t i = r; i < n; i += AG_PATTERN_TILE * step)
            if (make_tile(&m, i, step) < 0) return AG_ENOMEM;
    l->n_seen += m.n_seen;
    return AG_OK;
}

static int make_parts(ag_pattern_layout *l, int64_t n, uint64_t *seen)
{
    bool others = false;
    for (int f = 0; f < l->n_factors; f++) others |= l->factor[f].kind != AG_FACTOR_STRIDED;
    int r = others ? make_part(l, n, -1, seen) : AG_OK;
    for (int f = 0; r == AG_OK && f < l->n_factors; f++)
        if (l->factor[f].kind == AG_FACTOR_STRIDED) r = make_part(l, n, f, seen);
    return r;
}

/* --- making and freeing ----------------------------------------------------------------------- */

static int check_pairs(const ag_factor *f, ag_err *err)
{
    for (int64_t i = 0; i < f->n_pairs; i++) {
        const int32_t *p = f->pair[i], *before = i ? f->pair[i - 1] : NULL;
        if (p[1] < 0 || p[1] > p[0])
            return ag_err_set(err, AG_ECONFIG, "pattern: pair (%d, %d): a query sees no later key",
                              p[0], p[1]);
        if (before && (p[0] < before[0] || (p[0] == before[0] && p[1] <= before[1])))
            return ag_err_set(err, AG_ECONFIG, "pattern: pair (%d, %d) is not in ascending order",
                              p[0], p[1]);
    }
    return AG_OK;
}

static int check_factor(const ag_factor *f, ag_err *err)
{
    static const char *const names[] = { "all", "local", "strided", "chunk", "summary", "pairs" };
    const bool strides = f->kind != AG_FACTOR_ALL && f->kind != AG_FACTOR_PAIRS;
    const bool widths = f->kind == AG_FACTOR_SUMMARY || f->kind == AG_FACTOR_PAIRS;
    if (strides && f->stride < 1)
        return ag_err_set(err, AG_ECONFIG, "pattern: %s: a stride of %lld is below 1",
                          names[f->kind], (long long)f->stride);
    if (widths && f->width < 1)
        return ag_err_set(err, AG_ECONFIG, "pattern: %s: a width of %lld is below 1",
                          names[f->kind], (long long)f->width);
    if (f->kind == AG_FACTOR_SUMMARY && (f->index < 0 || f->index >= f->stride / f->width))
        return ag_err_set(err, AG_ECONFIG, "pattern: summary %lld of width %lld lies outside a "
                          "stride of %lld", (long long)f->index, (long long)f->width,
                          (long long)f->stride);
    return f->kind == AG_FACTOR_PAIRS ? check_pairs(f, err) : AG_OK;
}

/* The factors of `from`, with lists of pairs of its own. */
static int copy_factors(ag_pattern_layout *to, const ag_pattern_layout *from, ag_err *err)
{
    if (from->n_factors < 1 || from->n_factors > AG_PATTERN_FACTORS)
        return ag_err_set(err, AG_ECONFIG, "pattern: a layout has 1 to %d factors, not %d",
                          AG_PATTERN_FACTORS, from->n_factors);
    for (int i = 0; i < from->n_factors; i++) {
        ag_factor f = from->factor[i];
        const int r = check_factor(&f, err);
        if (r < 0) return r;
        if (f.kind == AG_FACTOR_PAIRS) {
            const size_t bytes = (size_t)(f.n_pairs + 1) * sizeof *f.pair;
            int32_t (*pair)[2] = ag_fault_now() ? NULL : malloc(bytes);
            if (!pair) return AG_ENOMEM;
            if (f.n_pairs) memcpy(pair, f.pair, (size_t)f.n_pairs * sizeof *pair);
            f.pair = (const int32_t (*)[2])pair;
        } else {
            f.pair = NULL;
            f.n_pairs = 0;
        }
        to->factor[to->n_factors++] = f;
    }
    return AG_OK;
}

int ag_pattern_new(ag_pattern **ret, int64_t n, int count, const ag_pattern_layout *layouts,
                   ag_err *err)
{
    if (n < 0 || n > INT32_MAX || count < 1)
        return ag_err_set(err, AG_ECONFIG, "pattern: %lld positions and %d layouts: wanted 0 to "
                          "2^31 - 1 positions, and a layout", (long long)n, count);
    const size_t bytes = sizeof(ag_pattern) + (size_t)count * sizeof(ag_pattern_layout);
    ag_pattern *p = ag_fault_now() ? NULL : calloc(1, bytes);
    uint64_t *seen = ag_fault_now() ? NULL : calloc((size_t)n + 1, sizeof *seen);
    int r = p && seen ? AG_OK : AG_ENOMEM;
    static uint64_t ids;
    if (r == AG_OK)
        *p = (ag_pattern){ .id = __atomic_add_fetch(&ids, 1, __ATOMIC_RELAXED), .n = n,
                           .layouts = count };
    for (int i = 0; r == AG_OK && i < count; i++) {
        r = copy_factors(&p->layout[i], &layouts[i], err);
        if (r == AG_OK) r = make_parts(&p->layout[i], n, seen);
    }
    free(seen);
    if (r < 0) {
        ag_pattern_free(p);
        return r == AG_ENOMEM ? ag_err_set(err, r, "out of memory for an attention pattern of %lld "
                                           "positions", (long long)n) : r;
    }
    *ret = p;
    return AG_OK;
}

static void (*forget_pattern)(uint64_t id);

void ag_pattern_on_free(void (*forget)(uint64_t id)) { forget_pattern = forget; }

void ag_pattern_free(ag_pattern *p)
{
    if (p && forget_pattern) forget_pattern(p->id);
    for (int i = 0; p && i < p->layouts; i++) {
        ag_pattern_layout *l = &p->layout[i];
        for (int f = 0; f < l->n_factors; f++) free((void *)(uintptr_t)l->factor[f].pair);
        for (int q = 0; q < l->n_parts; q++) {
            free(l->part[q].tile);
            free(l->part[q].run);
        }
    }
    free(p);
}

/* The bits of a tile's queries in [begin, end). */
static uint64_t rows_between(const ag_pattern_tile *t, int64_t begin, int64_t end)
{
    uint64_t rows = 0;
    for (int r = 0; r < t->n; r++) {
        const int64_t i = t->query0 + r * t->step;
        if (i >= begin && i < end) rows |= UINT64_C(1) << r;
    }
    return rows;
}

int64_t ag_pattern_pairs(const ag_pattern *p, int64_t head, int64_t begin, int64_t end,
                         int64_t keys)
{
    const ag_pattern_layout *l = ag_pattern_of(p, head);
    if (begin <= 0 && end >= p->n && keys >= p->n) return l->n_seen;
    int64_t pairs = 0;
    for (int q = 0; q < l->n_parts; q++)
        for (int64_t i = 0; i < l->part[q].n_tiles; i++) {
            const ag_pattern_tile *t = &l->part[q].tile[i];
            const uint64_t rows = rows_between(t, begin, end);
            for (int64_t r = 0; rows && r < t->n_runs; r++) {
                const ag_key_run *x = &l->part[q].run[t->first + r];
                const int64_t before = (keys - x->key + t->step - 1) / t->step,
                    n = min64(before, ag_run_length(&l->part[q], t, r));
                pairs += n > 0 ? n * __builtin_popcountll(x->seen & rows) : 0;
            }
        }
    return pairs;
}

size_t ag_pattern_bytes(const ag_pattern *p)
{
    size_t bytes = sizeof *p + (size_t)p->layouts * sizeof p->layout[0];
    for (int i = 0; i < p->layouts; i++)
        for (int q = 0; q < p->layout[i].n_parts; q++) {
            const ag_pattern_part *x = &p->layout[i].part[q];
            bytes += (size_t)x->n_tiles * sizeof *x->tile + (size_t)x->n_runs * sizeof *x->run;
        }
    return bytes;
}
