/*
 * tiles.cu -- makes the tiles of a pattern (tiles.h), on the host, from the lists of keys that the
 * pattern has.  It happens once for a pattern, and looks at the runs of keys of each tile, not at
 * pairs of a query and a key.
 */
#include "tiles.h"

#include <stdlib.h>
#include <string.h>

enum { SIDE = AG_PATTERN_TILE };     /* rows, and columns */

/* Arrays of 64 elements, each kept once: a hash table of their numbers. */
struct pool {
    int32_t *slot;                   /* [n_slots], a power of 2; -1: free */
    int64_t  n_slots;
};

struct maker {
    pattern_tiles *y;
    const ag_pattern_layout *layout;
    const ag_pattern_part *part;
    int64_t   n, step;               /* step: of the part's queries */
    int64_t   tile_room, step_room, list_room, mask_room;
    pool      lists, masks;
    int32_t  *order;                 /* [n]: the rows of the side */
    int32_t  *tile_of;               /* [n]: the tile of the part that has a query; -1 */
    int32_t  *row_of;                /* [n]: of the tile that is made; else -1 */
    int32_t  *count;                 /* [n]: queries that see a key */
    uint64_t *seen;                  /* [n]: rows of the tile that meet a column; else 0 */
    int64_t   low, high;             /* columns that were marked, by rank */
};

/* At least `need` elements, twice as many as before. */
template <class T> static bool grow(T **p, int64_t *room, int64_t need)
{
    if (need <= *room) return true;
    const int64_t more = need > 2 * *room + 64 ? need : 2 * *room + 64;
    T *q = (T *)realloc(*p, (size_t)more * sizeof(T));
    if (!q) return false;
    *p = q;
    *room = more;
    return true;
}

static uint64_t hash_of(const void *x, size_t bytes)
{
    const unsigned char *p = (const unsigned char *)x;
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < bytes; i++) h = (h ^ p[i]) * 1099511628211u;
    return h ^ h >> 32;
}

static bool pool_double(pool *p, const void *all, int64_t n, size_t bytes)
{
    const int64_t slots = p->n_slots ? 2 * p->n_slots : 64;
    int32_t *slot = (int32_t *)malloc((size_t)slots * sizeof *slot);
    if (!slot) return false;
    for (int64_t i = 0; i < slots; i++) slot[i] = -1;
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = hash_of((const char *)all + (size_t)i * bytes, bytes);
        while (slot[at & (uint64_t)(slots - 1)] >= 0) at++;
        slot[at & (uint64_t)(slots - 1)] = (int32_t)i;
    }
    free(p->slot);
    p->slot = slot;
    p->n_slots = slots;
    return true;
}

/* The number of x[SIDE] among `all`, to which it is added if new; -1: out of memory. */
template <class T>
static int32_t pool_add(pool *p, T **all, int64_t *n, int64_t *room, const T *x)
{
    if (2 * (*n / SIDE + 1) > p->n_slots && !pool_double(p, *all, *n / SIDE, SIDE * sizeof(T)))
        return -1;
    uint64_t at = hash_of(x, SIDE * sizeof(T));
    for (;; at++) {
        const int32_t i = p->slot[at & (uint64_t)(p->n_slots - 1)];
        if (i < 0) break;
        if (!memcmp(*all + (int64_t)i * SIDE, x, SIDE * sizeof(T))) return i;
    }
    if (!grow(all, room, *n + SIDE)) return -1;
    memcpy(*all + *n, x, SIDE * sizeof(T));
    p->slot[at & (uint64_t)(p->n_slots - 1)] = (int32_t)(*n / SIDE);
    *n += SIDE;
    return (int32_t)(*n / SIDE - 1);
}

/* Positions at[n] as a row of equal distances or a list. */
static bool line_of(maker *m, const int32_t *at, int n, int32_t *first, int32_t *step)
{
    *first = at[0];
    *step = n > 1 ? at[1] - at[0] : 1;
    for (int i = 2; i < n; i++)
        if (at[i] - at[i - 1] != *step) *step = 0;
    if (*step > 0) return true;
    int32_t all[SIDE] = {};
    memcpy(all, at, (size_t)n * sizeof *at);
    const int32_t i = pool_add(&m->lists, &m->y->list, &m->y->n_list, &m->list_room, all);
    *first = i * SIDE;
    *step = 0;
    return i >= 0;
}

/* Columns at[n] of a tile, which rows seen[n] meet, as a step of it. */
static bool add_step(maker *m, int rows, const int32_t *at, const uint64_t *seen, int n)
{
    pattern_step s = { 0, 0, n, -1 };
    const uint64_t all = ~(uint64_t)0 >> (SIDE - rows);
    uint64_t mask[SIDE] = {};
    bool full = true;
    for (int c = 0; c < n; c++) full = full && seen[c] == all;
    for (int c = 0; c < n && !full; c++)
        for (int r = 0; r < rows; r++) mask[r] |= (seen[c] >> r & 1) << c;
    if (!line_of(m, at, n, &s.first, &s.step)) return false;
    if (!full && (s.mask = pool_add(&m->masks, &m->y->mask, &m->y->n_mask, &m->mask_room,
                                    mask)) < 0)
        return false;
    if (!grow(&m->y->step, &m->step_room, m->y->n_step + 1)) return false;
    m->y->step[m->y->n_step++] = s;
    return true;
}

/* The place of a position among columns: of a strided part, by residues, as its rows. */
static int64_t rank_of(const maker *m, int64_t i)
{
    if (m->step == 1) return i;
    const int64_t r = i % m->step, longer = m->n % m->step;
    return r * (m->n / m->step) + (r < longer ? r : longer) + i / m->step;
}

/* These rows meet columns first + i * step of the part, i < n. */
static void mark(maker *m, int64_t first, int64_t n, uint64_t rows)
{
    const int64_t rank = rank_of(m, first);
    for (int64_t i = 0; i < n; i++) m->seen[first + i * m->step] |= rows;
    if (rank < m->low) m->low = rank;
    if (rank + n - 1 > m->high) m->high = rank + n - 1;
}

/* The keys that rows among the queries of a tile of the part see. */
static void mark_queries(maker *m, const ag_pattern_tile *t)
{
    for (int64_t e = 0; e < t->n_runs; e++) {
        const ag_key_run *run = &m->part->run[t->first + e];
        uint64_t rows = 0;
        for (uint64_t bits = run->seen; bits; bits &= bits - 1) {
            const int32_t r = m->row_of[t->query0 + __builtin_ctzll(bits) * t->step];
            if (r >= 0) rows |= (uint64_t)1 << r;
        }
        if (rows) mark(m, run->key, ag_run_length(m->part, t, e), rows);
    }
}

/* The queries of a tile of the part that see rows, which lie between two keys. */
static void mark_keys(maker *m, const ag_pattern_tile *t, int64_t lowest, int64_t highest)
{
    int64_t lo = 0, hi = t->n_runs - 1;
    while (lo < hi) {                /* the last run that begins at or before the lowest */
        const int64_t mid = (lo + hi + 1) / 2;
        if (m->part->run[t->first + mid].key <= lowest) lo = mid;
        else hi = mid - 1;
    }
    for (int64_t e = lo; e < t->n_runs; e++) {
        const ag_key_run *run = &m->part->run[t->first + e];
        if (run->key > highest) return;
        const int64_t keys = ag_run_length(m->part, t, e);
        uint64_t rows = 0;
        int64_t i = run->key < lowest ? (lowest - run->key + t->step - 1) / t->step : 0;
        for (; i < keys && run->key + i * t->step <= highest; i++) {
            const int32_t r = m->row_of[run->key + i * t->step];
            if (r >= 0) rows |= (uint64_t)1 << r;
        }
        for (uint64_t bits = rows ? run->seen : 0; bits; bits &= bits - 1)
            mark(m, t->query0 + __builtin_ctzll(bits) * t->step, 1, rows);
    }
}

/* The steps of what is marked. */
static bool add_steps(maker *m, int rows, int32_t *ret_ascends)
{
    int32_t at[SIDE];
    uint64_t seen[SIDE];
    int64_t last = -1;
    int n = 0;
    *ret_ascends = 1;
    for (int64_t rank = m->low; rank <= m->high; rank++) {
        const int64_t c = m->step == 1 ? rank : m->order[rank];
        if (!m->seen[c]) continue;
        if (c < last) *ret_ascends = 0;
        last = c;
        at[n] = (int32_t)c;
        seen[n++] = m->seen[c];
        m->seen[c] = 0;
        if (n < SIDE) continue;
        if (!add_step(m, rows, at, seen, n)) return false;
        n = 0;
    }
    return !n || add_step(m, rows, at, seen, n);
}

/* The tile whose rows are at[n]. */
static bool add_tile(maker *m, int side, const int32_t *at, int n)
{
    pattern_tile t = { 0, 0, n, at[0], at[0], (int32_t)m->y->n_step, 0, 0 };
    m->low = m->n;
    m->high = -1;
    for (int r = 0; r < n; r++) {
        if (at[r] < t.lowest) t.lowest = at[r];
        if (at[r] > t.highest) t.highest = at[r];
        m->row_of[at[r]] = r;
    }
    for (int r = 0; side == TILES_OF_QUERIES && r < n; r++) {
        const int32_t of = m->tile_of[at[r]];
        if (of >= 0 && (r == 0 || of != m->tile_of[at[r - 1]]))
            mark_queries(m, &m->part->tile[of]);
    }
    for (int64_t i = 0; side == TILES_OF_KEYS && i < m->part->n_tiles; i++)
        mark_keys(m, &m->part->tile[i], t.lowest, t.highest);
    for (int r = 0; r < n; r++) m->row_of[at[r]] = -1;
    if (!line_of(m, at, n, &t.first, &t.step) || !add_steps(m, n, &t.ascends) ||
        !grow(&m->y->tile, &m->tile_room, m->y->n_tile + 1))
        return false;
    t.end = (int32_t)m->y->n_step;
    m->y->tile[m->y->n_tile++] = t;
    return true;
}

/* Rows in the order of the tiles: residues of a strided part; keys, those that are seen by more
 * than twice as many queries as the mean apart from the others. */
static void order_rows(maker *m, int side)
{
    int64_t at = 0, all = 0;
    for (int64_t j = 0; j < m->n; j++) all += m->count[j];
    if (m->step > 1)
        for (int64_t r = 0; r < m->step; r++)
            for (int64_t i = r; i < m->n; i += m->step) m->order[at++] = (int32_t)i;
    for (int often = 1; m->step == 1 && often >= 0; often--)
        for (int64_t j = 0; j < m->n; j++)
            if ((side == TILES_OF_KEYS && m->count[j] * m->n > 2 * all) == (bool)often)
                m->order[at++] = (int32_t)j;
}

/* More steps first. */
static int compare_tiles(const void *p, const void *q)
{
    const pattern_tile *a = (const pattern_tile *)p, *b = (const pattern_tile *)q;
    const int32_t more = (b->end - b->begin) - (a->end - a->begin);
    if (more) return more;
    return a->begin != b->begin ? (a->begin > b->begin) - (a->begin < b->begin)
                                : (a->lowest > b->lowest) - (a->lowest < b->lowest);
}

static int32_t position_of(const pattern_tiles *y, const pattern_tile *t, int r)
{
    return t->step ? t->first + r * t->step : y->list[t->first + r];
}

static bool make_side(maker *m, pattern_part *p, int side)
{
    pattern_side *s = &p->side[side];
    s->tile = (int32_t)m->y->n_tile;
    s->where = (int32_t)m->y->n_where;
    order_rows(m, side);
    for (int64_t i = 0; i < m->n; i += SIDE)
        if (!add_tile(m, side, m->order + i, m->n - i < SIDE ? (int)(m->n - i) : (int)SIDE))
            return false;
    s->n_tiles = (int32_t)m->y->n_tile - s->tile;
    pattern_tile *tile = m->y->tile + s->tile;
    if (s->n_tiles) qsort(tile, (size_t)s->n_tiles, sizeof *tile, compare_tiles);
    for (int32_t i = 0; i < s->n_tiles; i++)
        for (int r = 0; r < tile[i].n; r++)
            m->y->where[s->where + position_of(m->y, &tile[i], r)] = (s->tile + i) * SIDE + r;
    m->y->n_where += m->n;
    if (s->n_tiles > m->y->most_tiles[side]) m->y->most_tiles[side] = s->n_tiles;
    return true;
}

/* Where the queries of the part are, and how many see each key. */
static void look_at_part(maker *m)
{
    m->step = m->part->n_tiles ? m->part->tile[0].step : 1;
    for (int64_t i = 0; i < m->n; i++) m->tile_of[i] = -1, m->count[i] = 0;
    for (int64_t i = 0; i < m->part->n_tiles; i++) {
        const ag_pattern_tile *t = &m->part->tile[i];
        for (int r = 0; r < t->n; r++) m->tile_of[t->query0 + r * t->step] = (int32_t)i;
        for (int64_t e = 0; e < t->n_runs; e++) {
            const ag_key_run *run = &m->part->run[t->first + e];
            const int64_t keys = ag_run_length(m->part, t, e);
            for (int64_t k = 0; k < keys; k++)
                m->count[run->key + k * t->step] += __builtin_popcountll(run->seen);
        }
    }
}

static bool make_layout(maker *m, pattern_part *part)
{
    int steps = 0;
    for (int q = 0; q < m->layout->n_parts; q++) {
        m->part = &m->layout->part[q];
        part[q].n_parts = m->layout->n_parts;
        look_at_part(m);
        for (int side = 0; side < TILE_SIDES; side++)
            if (!make_side(m, &part[q], side)) return false;
        const pattern_side *s = &part[q].side[TILES_OF_QUERIES];
        if (s->n_tiles) steps += m->y->tile[s->tile].end - m->y->tile[s->tile].begin;
    }
    if (steps > m->y->most_steps) m->y->most_steps = steps;
    return true;
}

static bool make_all(maker *m, const ag_pattern *p)
{
    pattern_tiles *y = m->y;
    for (int i = 0; i < p->layouts; i++)
        if (p->layout[i].n_parts > y->parts) y->parts = p->layout[i].n_parts;
    const size_t n = (size_t)p->n + 1;
    y->n_part = (int64_t)p->layouts * y->parts;
    y->part = (pattern_part *)calloc((size_t)y->n_part + 1, sizeof *y->part);
    y->where = (int32_t *)malloc((size_t)(y->n_part * TILE_SIDES) * n * sizeof *y->where);
    m->order = (int32_t *)malloc(n * sizeof *m->order);
    m->tile_of = (int32_t *)malloc(n * sizeof *m->tile_of);
    m->row_of = (int32_t *)malloc(n * sizeof *m->row_of);
    m->count = (int32_t *)malloc(n * sizeof *m->count);
    m->seen = (uint64_t *)calloc(n, sizeof *m->seen);
    if (!y->part || !y->where || !m->order || !m->tile_of || !m->row_of || !m->count || !m->seen)
        return false;
    for (int64_t i = 0; i < p->n; i++) m->row_of[i] = -1;
    for (int i = 0; i < p->layouts; i++) {
        m->layout = &p->layout[i];
        if (!make_layout(m, y->part + (int64_t)i * y->parts)) return false;
    }
    return true;
}

bool pattern_tiles_new(pattern_tiles *y, const ag_pattern *p)
{
    *y = pattern_tiles();
    y->n = (int)p->n;
    y->layouts = p->layouts;
    maker m = {};
    m.y = y;
    m.n = p->n;
    const bool ok = make_all(&m, p);
    free(m.lists.slot);
    free(m.masks.slot);
    free(m.order);
    free(m.tile_of);
    free(m.row_of);
    free(m.count);
    free(m.seen);
    if (!ok) pattern_tiles_free(y);
    return ok;
}

void pattern_tiles_free(pattern_tiles *y)
{
    free(y->part);
    free(y->tile);
    free(y->step);
    free(y->list);
    free(y->mask);
    free(y->where);
    *y = pattern_tiles();
}
