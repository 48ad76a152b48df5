/*
 * choose.h -- how choose_fwd and choose_bwd cut their work, and where its pieces lie in scratch.
 *
 * Columns of z go in strips of whole blocks, so narrow that z of a tile of rows stays in the
 * nearest cache.  In backward rows go in parts, which own their sums: how many there are depends on
 * the rows alone.
 */
#ifndef AG_CPU_CHOOSE_H
#define AG_CPU_CHOOSE_H

#include "autograd/kernels.h"

enum {
    CHOOSE_STRIP = 64,               /* columns; backward skips blocks without a gradient */
    CHOOSE_PAD = 16,                 /* numbers: the longest vector */
    CHOOSE_TILE = 32,                /* rows whose z is held at once */
    CHOOSE_SPAN = 256,               /* rows of which backward picks those that have a gradient */
    CHOOSE_GROUP = 64,               /* numbers: noise comes in such groups (rng.h) */
    CHOOSE_FEW = 16,                 /* fewer rows are not worth packing the matrix */
    CHOOSE_THREADS = 32,             /* at most, forward */
    CHOOSE_PARTS = 16,               /* backward, at most; CHOOSE_FEW_PARTS where rows are few: */
    CHOOSE_FEW_PARTS = 4, CHOOSE_PART_ROWS = 256                               /* rows of each */
};

/* Sizes are counts of numbers. */
typedef struct choose_plan {
    int64_t units;                   /* blocks * n */
    int64_t strip_blocks, strips, width;
    int64_t terms;                   /* of a sum of z: the bias, then rank products */
    int64_t rank_width;              /* rank, padded */
    int64_t parts, part_rows;
    int64_t matrix;                  /* c2 with bias, [strips, terms, width] */
    int64_t block;                   /* numbers of a block and their noise, padded */
    int64_t tile, sums;              /* what a tile, and the sums of a part, need */
} choose_plan;

static inline int64_t choose_padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline choose_plan choose_plan_of(const ag_chooser *c, bool backward)
{
    const int64_t n = c->c.n, rows = c->c.rows, most = backward ? CHOOSE_PARTS : CHOOSE_THREADS;
    choose_plan p = { .units = c->c.blocks * n, .terms = c->rank + 1 };
    p.strip_blocks = n && n < CHOOSE_STRIP ? CHOOSE_STRIP / n : 1;
    p.strips = (c->c.blocks + p.strip_blocks - 1) / p.strip_blocks;
    p.width = p.strip_blocks * n;
    p.rank_width = choose_padded(c->rank, CHOOSE_PAD);
    p.part_rows = choose_padded((rows + most - 1) / most, CHOOSE_TILE);
    if (backward) {
        const int64_t share = choose_padded((rows + CHOOSE_FEW_PARTS - 1) / CHOOSE_FEW_PARTS,
                                            CHOOSE_TILE),
            least = share > CHOOSE_PART_ROWS ? CHOOSE_PART_ROWS : share;
        if (p.part_rows < least) p.part_rows = least;
    }
    p.parts = (rows + p.part_rows - 1) / (p.part_rows + !p.part_rows);
    p.matrix = choose_padded(p.strips * p.terms * p.width, CHOOSE_PAD);
    p.block = choose_padded(n, CHOOSE_GROUP) + CHOOSE_GROUP;
    p.tile = CHOOSE_TILE * (2 * p.rank_width + choose_padded(p.terms, 4) + 4 + p.width +
                            CHOOSE_GROUP) + 2 * p.block + CHOOSE_PAD * n;
    if (backward)       /* a vector of units more, as sums go by whole vectors */
        p.sums = (CHOOSE_SPAN + CHOOSE_PAD) * p.rank_width + p.units * (p.rank_width + CHOOSE_PAD);
    return p;
}

static inline int64_t choose_scratch_numbers(const ag_chooser *c)
{
    const choose_plan f = choose_plan_of(c, false), b = choose_plan_of(c, true);
    const int64_t few = f.units + 2 * CHOOSE_THREADS * f.block, fwd = f.matrix + f.parts * f.tile,
        bwd = b.matrix + b.parts * (b.tile + b.sums), most = fwd > bwd ? fwd : bwd;
    return few > most ? few : most;
}

#endif
