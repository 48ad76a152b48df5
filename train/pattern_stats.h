/*
 * pattern_stats.h -- what an attention pattern is worth in numbers, counted from the tiles that the
 * kernels run over.
 */
#ifndef TRAIN_PATTERN_STATS_H
#define TRAIN_PATTERN_STATS_H

#include "layers/pattern.h"

typedef struct train_pattern_stats {         /* of one layout of heads */
    int64_t n, pairs;                /* positions; pairs of a query and a key that it sees */
    int64_t empty;                   /* queries without a key */
    int64_t tiles, places;           /* places: queries times keys of each tile, in all */
    int64_t block, full, partial;    /* blocks of so many queries and keys: all of their pairs are
                                      * seen, some are */
    int64_t blocks;                  /* those on and below the diagonal */
} train_pattern_stats;

/*
 * Counts a layout; keys NULL: dense.  Blocks are those of each part in its own order: a strided
 * part lists positions by their residue, as the transposed sequence of 1904.10509 does.  AG_ENOMEM.
 */
int train_pattern_count(const ag_pattern *keys, int64_t head, int64_t n, int64_t block,
                        train_pattern_stats *ret, ag_err *err);

enum { TRAIN_REACH_LAYERS = 3 };

/*
 * Pairs j <= i for which the first layers of the model lead from position j to i by keys, all heads
 * together; `residual`: where a position may also stay where it is.  (Row i after a layer is the
 * union of the rows before it of the keys that i sees.)
 */
typedef struct train_reach {
    int64_t n, pairs;                /* the first n positions; pairs j <= i */
    int     layers;                  /* counted, at most TRAIN_REACH_LAYERS */
    int64_t plain[TRAIN_REACH_LAYERS], residual[TRAIN_REACH_LAYERS];
} train_reach;
/* AG_ENOMEM. */
int train_pattern_reach(const nn_patterns *p, int64_t n, int64_t n_layers, train_reach *ret,
                        ag_err *err);

/* A picture of every pattern and layout, as SVG; free() *ret_svg.  AG_ENOMEM. */
int train_pattern_svg(const nn_patterns *p, int64_t n, int64_t n_layers, int64_t n_heads,
                      char **ret_svg, ag_err *err);

/* "0-3, 8", "0, 4, ..., 124": the layers that have pattern m, the heads of one of its layouts.
 * TRAIN_PATTERN_TEXT bytes are enough. */
enum { TRAIN_PATTERN_TEXT = 8192 };
void train_pattern_layers(const nn_patterns *p, int m, int64_t n_layers, char *buf, size_t size);
void train_pattern_heads(const ag_pattern *keys, int layout, int64_t n_heads, char *buf,
                         size_t size);
/* "chunk(128) + summary(128, 32, 1)" */
void train_pattern_factors(const ag_pattern *keys, int layout, char *buf, size_t size);

#endif
