/*
 * attention_keys_tmpl.h -- which queries and keys meet in a tile: all that causality allows, or
 * those of a pattern (autograd/pattern.h).  For attention_tmpl.c and attention_grad_tmpl.c.
 *
 * The queries of a tile lie at equal distances; its keys lie so too, or are gathered, as their rows
 * are copied in any case.  Each key has a bit for each query that sees it.  A band is a rectangle
 * of the tile: keys that are seen by the same groups of queries.  A full tile is one band, a tile
 * on the causal diagonal four.  Only bands are computed and read.
 */
#ifndef AG_CPU_ATTENTION_KEYS_TMPL_H
#define AG_CPU_ATTENTION_KEYS_TMPL_H

#ifdef _OPENMP
#include <omp.h>
#endif

#include "autograd/cpu/attention_tile.h"
#include "autograd/cpu/fast.h"

enum { MAX_HEAD = 256 };             /* wider heads are left to the specification */

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int n_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}


typedef struct queries {
    const float *q, *k, *v;          /* of the first query; of key 0 */
    float       *o, *lse;
    int64_t      first, step;        /* queries first + r * step, r < n */
    int64_t      q_row, o_row;       /* from one of them to the next */
    int64_t      noise_row;          /* of the first */
    int          n;                  /* up to TILE */
    int64_t      n_keys;             /* that any of them sees */
    const ag_key_run *run;           /* of a pattern: its keys, ascending; NULL: 0, 1, ... */
    int64_t      n_runs;
    int64_t      shift;              /* key tiles end before key (i * TILE - shift) of them, so that
                                      * query tiles cut the keys that they share alike */
    bool         adds;               /* other tiles too give to dq */
    int64_t      fresh;              /* no tile before gave to dk and dv of keys from this one on;
                                      * INT64_MAX: not known */
    int64_t      seen[TILE];         /* without a pattern: a query sees this many keys */
} queries;

/* A query of item b sees keys 0 .. this - 1. */
static inline int64_t keys_seen(const ag_attention *a, int64_t b, int64_t query)
{
    const int64_t all = a->lengths ? a->lengths[b] : a->tk;
    const int64_t n = a->causal ? min_of(query + a->q_pos0 + 1, all) : all;
    return n < 0 ? 0 : n;
}

static inline void queries_at(queries *x, const ag_attention *a, int64_t pair, int64_t first,
                              int64_t step, int64_t most)
{
    const int64_t b = pair / a->heads, h = pair % a->heads;
    x->first = first;
    x->step = step;
    x->q = (const float *)a->q + b * a->q_batch + first * a->q_row + h * a->d_qk;
    x->k = (const float *)a->k + b * a->k_batch + h * a->d_qk;
    x->v = (const float *)a->v + b * a->v_batch + h * a->d_v;
    x->o = (float *)a->o + b * a->o_batch + first * a->o_row + h * a->d_v;
    x->lse = (float *)a->lse + pair * a->tq + first;
    x->q_row = step * a->q_row;
    x->o_row = step * a->o_row;
    x->noise_row = a->noise.row0 + pair * a->tq + first;
    x->n = (int)min_of(most, (a->tq - first + step - 1) / step);
}

/* The queries from `first` on, without a pattern. */
static inline void queries_init(queries *x, const ag_attention *a, int64_t pair, int64_t first)
{
    queries_at(x, a, pair, first, 1, TILE);
    for (int i = 0; i < x->n; i++)
        x->seen[i] = keys_seen(a, pair / a->heads, first + i);
    x->run = NULL;
    x->shift = 0;
    x->adds = false;
    x->fresh = INT64_MAX;
    x->n_keys = x->seen[x->n - 1];
}

/* Those of a tile of a pattern, as far as there are queries.  False: there are none. */
static inline bool queries_of_tile(queries *x, const ag_attention *a, int64_t pair,
                                   const ag_pattern_part *part, const ag_pattern_tile *tile)
{
    if (tile->query0 >= a->tq)
        return false;
    queries_at(x, a, pair, tile->query0, tile->step, tile->n);
    x->run = part->run + tile->first;
    x->n_runs = tile->n_runs;
    x->n_keys = tile->n_keys;
    x->shift = x->run->key / x->step % TILE;
    for (int64_t last = x->first + (x->n - 1) * x->step; x->n_runs > 0; x->n_runs--) {
        const ag_key_run *r = &x->run[x->n_runs - 1];
        x->n_keys = min_of(x->n_keys, r->before + (last - r->key + x->step) / x->step);
        if (r->key <= last)
            break;
        x->n_keys = r->before;
    }
    return true;
}

/* Does each query have a tile in the first part of its head's pattern? */
static inline bool has_all_queries(const ag_attention *a, int64_t pair)
{
    return ag_pattern_of(a->pattern, pair % a->heads)->part[0].n_queries == a->pattern->n;
}

/* ---- the keys of one tile ---- */

typedef struct tile_keys {
    int64_t  n, first, step;         /* keys first + i * step; */
    int32_t  list[TILE];             /* or these, where step is 0 */
    uint64_t bits[TILE];             /* bit r: query r sees the key; those of absent ones are 0 */
} tile_keys;

/* The last run that begins at or before the j-th key. */
static inline int64_t run_of(const queries *x, int64_t j)
{
    int64_t lo = 0, hi = x->n_runs - 1;
    while (lo < hi) {
        const int64_t mid = (lo + hi + 1) / 2;
        if (x->run[mid].before <= j)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

static inline void pattern_keys(const queries *x, int64_t j, uint64_t present, tile_keys *y)
{
    const ag_key_run *run = &x->run[run_of(x, j)], *end = x->run + x->n_runs;
    for (int64_t i = 0; i < y->n; run++) {
        const int64_t stop = min_of(y->n, run + 1 < end ? run[1].before - j : y->n);
        int64_t key = run->key + (j + i - run->before) * x->step;
        for (; i < stop; i++, key += x->step) {
            y->list[i] = (int32_t)key;
            y->bits[i] = run->seen & present;
        }
    }
    y->first = y->list[0];
    y->step = y->n > 1 ? y->list[1] - y->list[0] : 1;
    for (int64_t i = 2; i < y->n && y->step; i++)
        if (y->list[i] - y->list[i - 1] != y->step)
            y->step = 0;
}

/* Keys j .. j + n - 1 of those of x, n up to TILE */
static inline void keys_at(const queries *x, int64_t j, int64_t n, tile_keys *y)
{
    const uint64_t present = ~UINT64_C(0) >> (TILE - x->n);
    y->n = n;
    if (x->run) {
        if (n > 0)
            pattern_keys(x, j, present, y);
        return;
    }
    y->first = j;
    y->step = 1;
    int blind = 0;                   /* the first of the queries that do not see a key */
    for (int64_t i = 0; i < n; i++) {
        while (blind < x->n && x->seen[blind] <= j + i)
            blind++;
        y->bits[i] = blind < x->n ? present & ~UINT64_C(0) << blind : 0;
    }
}

/* to[n][to_row] = their rows of x[..][row] */
static inline void keys_load(const tile_keys *y, int64_t d, const float *x, int64_t row, float *to,
                             int64_t to_row)
{
    if (y->step)
        tile_copy(y->n, d, x + y->first * row, y->step * row, to, to_row, 1.0f);
    else
        for (int64_t i = 0; i < y->n; i++) {
            if (i + ROWS_AHEAD < y->n)
                for (int64_t c = 0; c < d; c += GROUP)
                    __builtin_prefetch(x + y->list[i + ROWS_AHEAD] * row + c, 0, 3);
            tile_copy(1, d, x + y->list[i] * row, row, to + i * to_row, to_row, 1.0f);
        }
}

/* x[..][row] = from[n][from_row] in their rows */
static inline void keys_store(const tile_keys *y, int64_t d, const float *from, int64_t from_row,
                              float *x, int64_t row)
{
    for (int64_t i = 0; i < y->n; i++, from += from_row) {
        float *to = x + (y->step ? y->first + i * y->step : y->list[i]) * row;
        int64_t c = 0;
        if (y->step && i + ROWS_AHEAD < y->n)
            for (; c < d; c += GROUP)
                __builtin_prefetch(to + ROWS_AHEAD * y->step * row + c, 1, 3);
        for (c = 0; c + VL <= d; c += VL)
            vstore(to + c, vload(from + c));
        if (c < d)
            vstore_n(to + c, vload(from + c), d - c);
    }
}

/* x[rows list[n]][d] += from[n][from_row] */
static inline void keys_add(const int32_t *list, int64_t n, int64_t d, const float *from,
                            int64_t from_row, float *x, int64_t row)
{
    for (int64_t i = 0; i < n; i++, from += from_row) {
        float *to = x + list[i] * row;
        int64_t c = 0;
        for (; c + VL <= d; c += VL)
            vstore(to + c, vload(to + c) + vload(from + c));
        if (c < d)
            vstore_n(to + c, vload_n(to + c, d - c) + vload_n(from + c, d - c), d - c);
    }
}

/* ---- bands and masks ---- */

typedef struct tile_shape {
    int      n_queries, n_groups;
    const uint64_t *bits;            /* of the keys */
    bool     full;                   /* all of them are set */
    int      begin[GROUPS], end[GROUPS];         /* keys that a group's bands have between them */
    int      n_bands;
    struct tile_band { int key0, key1, group0, group1; } band[TILE];
} tile_shape;

/* Adds key i, seen by groups group0 .. group1 - 1, to the last band or a new one: a band of few
 * keys grows rather than be cut, as it costs almost what a higher one does. */
static inline void band_add(tile_shape *t, int i, int group0, int group1)
{
    enum { LEAST = 4 };
    struct tile_band *b = &t->band[t->n_bands - 1];
    if (t->n_bands) {
        const int low = group0 < b->group0 ? group0 : b->group0,
            high = group1 > b->group1 ? group1 : b->group1;
        if ((low == b->group0 && high == b->group1 && low == group0 && high == group1) ||
            b->key1 - b->key0 < LEAST) {
            *b = (struct tile_band){ b->key0, i + 1, low, high };
            return;
        }
    }
    t->band[t->n_bands++] = (struct tile_band){ i, i + 1, group0, group1 };
}

/* y must stay as long as t is used. */
static inline void tile_shape_init(tile_shape *t, const queries *x, const tile_keys *y)
{
    const int n_keys = (int)y->n;
    uint64_t all = ~UINT64_C(0);
    for (int i = 0; i < n_keys; i++)
        all &= y->bits[i];
    t->bits = y->bits;
    t->full = all == ~UINT64_C(0);
    t->n_queries = x->n;
    t->n_groups = (x->n + GROUP - 1) / GROUP;
    t->n_bands = 0;
    if (t->full)
        t->band[t->n_bands++] = (struct tile_band){ 0, n_keys, 0, GROUPS };
    else
        for (int i = 0; i < n_keys; i++)
            if (t->bits[i])
                band_add(t, i, __builtin_ctzll(t->bits[i]) / GROUP,
                         (63 - __builtin_clzll(t->bits[i])) / GROUP + 1);
    for (int g = 0; g < t->n_groups; g++) {
        t->begin[g] = n_keys;
        t->end[g] = 0;
        for (int b = 0; b < t->n_bands; b++)
            if (t->band[b].group0 <= g && g < t->band[b].group1) {
                if (t->band[b].key0 < t->begin[g])
                    t->begin[g] = t->band[b].key0;
                t->end[g] = t->band[b].key1;
            }
    }
}

/* Writes MASKED to the scores of queries that do not see a key. */
static inline void tile_mask(const tile_shape *t, float *s)
{
    for (int g = 0; !t->full && g < t->n_groups; g++)
        for (int key = t->begin[g]; key < t->end[g]; key++) {
            const uint32_t bits = (uint32_t)(t->bits[key] >> g * GROUP) & 0xffff;
            if (bits != 0xffff)
                for (int v = 0; v < GROUP; v += VL) {
                    float *x = s + key * TILE + g * GROUP + v;
                    vstore(x, vwhere(bits >> v, vload(x), vset(MASKED)));
                }
        }
}

/* ---- beside them ---- */

/* The Philox block of query0 and key0, a multiple of 64. */
static inline uint64_t noise_block(const tile_noise *z, const queries *x, int64_t key0)
{
    return (uint64_t)x->noise_row * z->row_blocks + (uint64_t)key0 / 4;
}

/* x[d][TILE] = 0 in the groups of n queries */
static inline void clear_lanes(int n, int64_t d, float *x)
{
    for (int64_t c = 0; c < d; c++)
        for (int i = 0; i < n; i += VL)
            vstore(x + c * TILE + i, vset(0.0f));
}

/* x^T with lanes of absent queries zero */
static inline void transpose_queries(int n, int64_t d, const float *x, int64_t ldx, float *y,
                                     float scale)
{
    const int last = n / GROUP * GROUP;
    for (int64_t c = 0; n % GROUP && c < d; c++)
        for (int i = last; i < last + GROUP; i += VL)
            vstore(y + c * TILE + i, vset(0.0f));
    tile_transpose(n, d, x, ldx, y, TILE, scale);
}

/* ---- walks: query tiles that go over their keys together, so that each key is loaded once ---- */

enum { BLOCK = 8 };                  /* query tiles, at most */

typedef struct tile_walk {
    queries   x;
    int64_t   j, next, end;          /* where `keys` and `ahead` begin among its keys; their end */
    int64_t   row;                   /* where `keys` begin in the tile at hand; -1: takes no part */
    tile_keys keys, ahead;           /* those of that tile, and the next */
} tile_walk;

static inline void walk_ahead(tile_walk *w)
{
    const int64_t room = TILE - (w->next + w->x.shift) % TILE, left = w->end - w->next;
    keys_at(&w->x, w->next, left < 0 ? 0 : min_of(room, left), &w->ahead);
}

/* Over keys j0 .. j1 - 1 of those that its queries see. */
static inline void walk_start(tile_walk *w, int64_t j0, int64_t j1)
{
    w->next = j0;
    w->end = j1;
    walk_ahead(w);
}

static inline int64_t last_key(const tile_keys *y)
{
    return y->step ? y->first + (y->n - 1) * y->step : y->list[y->n - 1];
}

/* Where the keys of y begin among those of x, or -1: they do not all follow each other there. */
static inline int64_t keys_within(const tile_keys *x, const tile_keys *y)
{
    if (x->step && x->step == y->step && x->first <= y->first && last_key(y) <= last_key(x) &&
        (y->first - x->first) % x->step == 0)
        return (y->first - x->first) / x->step;
    const bool begins = !x->step && x->n >= y->n &&
        memcmp(x->list, y->list, (size_t)y->n * sizeof *y->list) == 0;
    return begins ? 0 : -1;
}

/*
 * Goes on to the next key tile of the first of n walks that has one: returns that walk, or NULL at
 * the end.  Others take part whose keys are among its own, but not while an earlier walk has yet to
 * come to any of them: so a key meets its queries in their order, whichever walks go together.
 */
static inline const tile_walk *walks_next(tile_walk *w, int n)
{
    const tile_walk *lead = NULL;
    bool free = true;
    for (int i = 0; i < n; i++, w++) {
        w->row = !free || w->ahead.n == 0 ? -1 : lead ? keys_within(&lead->keys, &w->ahead) : 0;
        if (w->row >= 0) {
            lead = lead ? lead : w;
            w->keys = w->ahead;
            w->j = w->next;
            w->next += w->keys.n;
            walk_ahead(w);
        }
        free = free && (w->ahead.n == 0 || w->ahead.first > last_key(&lead->keys));
    }
    return lead;
}

/* How many of a head's query tiles go together: as many as MAX_HEAD columns have room for, but not
 * so few tasks that threads idle. */
static inline int tiles_at_once(const ag_attention *a, int64_t tiles)
{
    const int64_t d = AG_ALIGN_UP(a->d_qk > a->d_v ? a->d_qk : a->d_v, GROUP);
    int64_t n = min_of(BLOCK, MAX_HEAD / (d ? d : 1));
    while (n > 1 && a->batch * a->heads * tiles < 4 * n * n_threads())
        n /= 2;
    return (int)n;
}

/* The query tiles of a head, at most, and the parts that they come in. */
typedef struct tile_count { int64_t tiles; int parts; } tile_count;

static inline tile_count count_tiles(const ag_attention *a)
{
    if (!a->pattern)
        return (tile_count){ (a->tq + TILE - 1) / TILE, 1 };
    tile_count c = { 0, 0 };
    for (int64_t h = 0; h < a->pattern->layouts; h++) {
        const ag_pattern_layout *l = ag_pattern_of(a->pattern, h);
        c.parts = l->n_parts > c.parts ? l->n_parts : c.parts;
        for (int p = 0; p < l->n_parts; p++)
            c.tiles = l->part[p].n_tiles > c.tiles ? l->part[p].n_tiles : c.tiles;
    }
    return c;
}

#endif
