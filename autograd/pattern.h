/*
 * pattern.h -- which keys a query sees in sparse attention (Sparse Transformers, 1904.10509 section
 * 4), decided before the run.
 *
 * A pattern has one or more layouts; head h uses layout h % layouts.  In a layout, query i sees the
 * keys j <= i of any of its factors (l = stride, c = width, integer division):
 *
 *   ALL       every j <= i
 *   LOCAL     i - j < l           the last l keys, itself among them (the paper prints l + 1, its
 *                                 released code keeps l)
 *   STRIDED   (i - j) mod l = 0
 *   CHUNK     j / l = i / l       "fixed", first factor
 *   SUMMARY   l - (index + 1) c <= j mod l < l - index c       "fixed", second factor; the paper's
 *                                 is index 0, further ones give each head its own sub-block
 *   PAIRS     (i / c, j / c) is listed
 *
 * No set depends on n: a pattern for n positions serves any fewer.  A query may see no key (SUMMARY
 * alone): its output and gradients are 0.
 *
 * What kernels run over is a list of tiles: up to 64 queries at equal distances, and the keys that
 * any of them sees, in ascending order, with a bit for each query that sees it; keys that lie as
 * far apart as the queries, and that the same queries see, are one run.  Keys are gathered
 * from wherever they are, so no block size limits a pattern: whole blocks of b would use 1/b of
 * their work on a strided diagonal, and a quarter on 8 summary columns.  STRIDED has parts of its
 * own, whose tiles hold queries of one residue mod l, so that these share their keys (the paper's
 * transposition); a key that an earlier part has is left out, so that parts are disjoint and their
 * results can be merged by the log of the sum of exp.
 */
#ifndef AG_PATTERN_H
#define AG_PATTERN_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ag_factor_kind {
    AG_FACTOR_ALL, AG_FACTOR_LOCAL, AG_FACTOR_STRIDED, AG_FACTOR_CHUNK, AG_FACTOR_SUMMARY,
    AG_FACTOR_PAIRS, AG_FACTOR_COUNT
} ag_factor_kind;

typedef struct ag_factor {
    ag_factor_kind kind;
    int64_t stride, width, index;
    const int32_t (*pair)[2];        /* PAIRS: (query block, key block), ascending, no two equal */
    int64_t n_pairs;
} ag_factor;

enum { AG_PATTERN_TILE = 64, AG_PATTERN_FACTORS = 6 };

/* Keys key + i * (the tile's step), up to the next run or the tile's last key. */
typedef struct ag_key_run {
    int32_t  key;
    int32_t  before;                 /* keys of the tile in the runs before this one */
    uint64_t seen;                   /* bit r: query r of the tile sees them */
} ag_key_run;

typedef struct ag_pattern_tile {
    int64_t query0, step;            /* queries query0 + r * step, */
    int     n;                       /* r < n, n <= AG_PATTERN_TILE */
    int64_t n_keys;
    int64_t first, n_runs;           /* its runs are run[first .. first + n_runs) of the part */
} ag_pattern_tile;

typedef struct ag_pattern_part {
    int64_t          n_tiles, n_runs;
    int64_t          n_queries;      /* in tiles; less than n where some see no key */
    ag_pattern_tile *tile;           /* [n_tiles], those without a key left out */
    ag_key_run      *run;            /* [n_runs] */
} ag_pattern_part;

typedef struct ag_pattern_layout {
    int             n_factors;
    ag_factor       factor[AG_PATTERN_FACTORS];
    int             n_parts;         /* the first: all factors but STRIDED, queries in order */
    ag_pattern_part part[AG_PATTERN_FACTORS];
    int64_t         n_seen;          /* pairs (query, key) in all */
} ag_pattern_layout;

typedef struct ag_pattern {
    uint64_t          id;            /* no other pattern of this run has it */
    int64_t           n;             /* positions, at most 2^31 - 1 */
    int               layouts;
    ag_pattern_layout layout[];
} ag_pattern;

/*
 * A pattern of n positions from the factors of layouts[count], whose parts are not looked at; lists
 * of pairs are copied.  AG_ECONFIG: no factor, a stride, width or index out of range (a summary
 * needs (index + 1) * width <= stride), pairs that are not ascending or not causal; AG_ENOMEM.
 */
int  ag_pattern_new(ag_pattern **ret, int64_t n, int count, const ag_pattern_layout *layouts,
                    ag_err *err);
void ag_pattern_free(ag_pattern *p);     /* NULL is fine */
/* From now on `forget` is called with the id of each pattern that is freed, for a device that keeps
 * tables of it. */
void ag_pattern_on_free(void (*forget)(uint64_t id));

/* The definition: does query i see key j under one factor, under a layout? */
bool ag_factor_has(const ag_factor *f, int64_t i, int64_t j);
bool ag_pattern_has(const ag_pattern *p, int head, int64_t i, int64_t j);

/* The first keys from `from` on that query i sees in a row: [*ret_begin, *ret_end), perhaps not the
 * whole row.  False: there are none. */
bool ag_pattern_run(const ag_pattern *p, int head, int64_t i, int64_t from, int64_t *ret_begin,
                    int64_t *ret_end);

/* Pairs of a query in [begin, end) and a key before `keys`. */
int64_t ag_pattern_pairs(const ag_pattern *p, int64_t head, int64_t begin, int64_t end,
                         int64_t keys);

size_t ag_pattern_bytes(const ag_pattern *p);

static inline const ag_pattern_layout *ag_pattern_of(const ag_pattern *p, int64_t head)
{
    return &p->layout[head % p->layouts];
}

/* Keys of run r of a tile. */
static inline int64_t ag_run_length(const ag_pattern_part *p, const ag_pattern_tile *t, int64_t r)
{
    const ag_key_run *x = &p->run[t->first + r];
    return (r + 1 < t->n_runs ? x[1].before : t->n_keys) - x->before;
}

#ifdef __cplusplus
}
#endif
#endif
