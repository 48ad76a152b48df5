/*
 * tiles.h -- a pattern of attention (autograd/pattern.h) as the kernels walk over it: tiles of up
 * to 64 rows, and for each its steps, up to 64 columns that any of the rows meets, with a bit for
 * each pair.
 *
 * A part of a layout has tiles twice.  Forward and dq own queries: these are the rows, keys the
 * columns.  dk and dv own keys: the rows, and queries are the columns.  So every sum has one owner.
 * Rows are gathered so that those of a tile share columns: queries and keys of a strided part by
 * their residue, one after another in the same tile where they are short, keys that far more
 * queries see than others do (summaries) apart from those.  Every position is in one tile of each
 * part, if only to get a zero.
 *
 * Bytes: 32 for each tile, 16 for each step, 4 for each position of a side and part; masks of 512
 * and lists of 256 are kept once however many steps have them.  For 12288 positions that is 0.3 MB
 * of [local 128, strided 128].
 */
#ifndef AG_CUDA_TILES_H
#define AG_CUDA_TILES_H

#include "autograd/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { TILES_OF_QUERIES, TILES_OF_KEYS, TILE_SIDES };

/* Positions first + i * step, i < n; where step is 0, list[first + i]. */
typedef struct pattern_step {
    int32_t first, step, n;
    int32_t mask;                    /* word 64 mask + r: the columns of row r; -1: all n of them */
} pattern_step;

typedef struct pattern_tile {
    int32_t first, step, n;
    int32_t lowest, highest;         /* of its rows */
    int32_t begin, end;              /* its steps */
    int32_t ascends;                 /* so do their columns, from each to the next */
} pattern_tile;

typedef struct pattern_side {
    int32_t tile, n_tiles;           /* those with the most steps first */
    int32_t where;                   /* where[where + position] = 64 tile + row */
} pattern_side;

typedef struct pattern_part {
    int32_t      n_parts;            /* of the layout */
    pattern_side side[TILE_SIDES];
} pattern_part;

typedef struct pattern_tiles {
    int n, layouts, parts;           /* positions; the most parts that a layout has */
    int most_tiles[TILE_SIDES];      /* of a part */
    int most_steps;                  /* of a query, in all parts */
    int64_t n_part, n_tile, n_step, n_list, n_mask, n_where;
    pattern_part *part;              /* [layouts][parts] */
    pattern_tile *tile;
    pattern_step *step;
    int32_t      *list;              /* runs of 64 */
    uint64_t     *mask;              /* runs of 64 */
    int32_t      *where;
} pattern_tiles;

/* The tiles of a pattern, in memory of the host.  False: out of memory; y is empty. */
bool pattern_tiles_new(pattern_tiles *y, const ag_pattern *p);
void pattern_tiles_free(pattern_tiles *y);

#ifdef __cplusplus
}
#endif

#endif
