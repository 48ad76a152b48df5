/*
 * choose.h -- how choose_fwd and choose_bwd cut their work, and where its pieces lie in scratch.
 *
 * Columns of z go in strips of whole blocks, so narrow that a strip of the matrix stays in
 * the nearest cache; strips are padded to whole vectors of any instruction set.  Rows go in parts,
 * which own their sums in backward: how many there are depends on the rows alone.
 */
#ifndef AG_CPU_CHOOSE_H
#define AG_CPU_CHOOSE_H

#include "autograd/kernels.h"

enum {
    CHOOSE_STRIP = 64,               /* columns, backward: blocks without a gradient are skipped */
    CHOOSE_WIDE = 256,               /* forward */
    CHOOSE_PAD = 16,                 /* numbers: the longest vector */
    CHOOSE_TILE = 64,                /* rows whose z is held at once in backward */
    CHOOSE_ROWS = 6,                 /* the same, forward */
    CHOOSE_FEW = 16,                 /* fewer rows are not worth packing the matrix */
    CHOOSE_THREADS = 32,             /* at most, forward */
    CHOOSE_PARTS = 16,               /* backward, at most; CHOOSE_FEW_PARTS where rows are few: */
    CHOOSE_FEW_PARTS = 4, CHOOSE_PART_LEAST = 32, CHOOSE_PART_ROWS = 256,        /* rows of each */
    CHOOSE_BLOCK = 4                 /* widths of scratch for a strip of a row */
};

/* Sizes are counts of numbers. */
typedef struct choose_plan {
    int64_t units;                   /* blocks * n */
    int64_t strip_blocks, strips, width;
    int64_t terms;                   /* of a sum of z: the bias, then rank products */
    int64_t rank_width;              /* rank, padded */
    int64_t parts, part_rows;
    int64_t matrix;                  /* c2 with bias, [strips, terms, width] */
    int64_t transposed;              /* c2, [strips, width, rank_width] */
    int64_t part;                    /* what a part needs for itself */
} choose_plan;

static inline int64_t choose_padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline choose_plan choose_plan_of(const ag_chooser *c, bool backward)
{
    const int64_t n = c->c.n, most = backward ? CHOOSE_PARTS : CHOOSE_THREADS,
        strip = backward ? CHOOSE_STRIP : CHOOSE_WIDE;
    choose_plan p = { .units = c->c.blocks * n, .terms = c->rank + 1 };
    p.strip_blocks = n && n < strip ? strip / n : 1;
    p.strips = (c->c.blocks + p.strip_blocks - 1) / p.strip_blocks;
    p.width = choose_padded(p.strip_blocks * n, CHOOSE_STRIP);
    p.rank_width = choose_padded(c->rank, CHOOSE_PAD);
    p.part_rows = choose_padded((c->c.rows + most - 1) / most, CHOOSE_ROWS);
    if (backward) {
        const int64_t share = (c->c.rows + CHOOSE_FEW_PARTS - 1) / CHOOSE_FEW_PARTS,
            least = share < CHOOSE_PART_LEAST ? CHOOSE_PART_LEAST
                  : share > CHOOSE_PART_ROWS ? CHOOSE_PART_ROWS : share;
        if (p.part_rows < least) p.part_rows = least;
    }
    p.parts = (c->c.rows + p.part_rows - 1) / (p.part_rows + !p.part_rows);
    p.matrix = p.strips * p.terms * p.width;
    p.transposed = p.strips * p.width * p.rank_width;
    const int64_t rows = backward ? CHOOSE_TILE : CHOOSE_ROWS;
    p.part = rows * (choose_padded(p.terms, CHOOSE_PAD) + p.width) + CHOOSE_BLOCK * p.width;
    if (backward)
        p.part += 2 * rows * p.rank_width + p.matrix;
    return p;
}

static inline int64_t choose_scratch_numbers(const ag_chooser *c)
{
    const choose_plan f = choose_plan_of(c, false), b = choose_plan_of(c, true);
    const int64_t few = (f.strips + CHOOSE_BLOCK * CHOOSE_THREADS) * f.width,
        fwd = f.matrix + f.parts * f.part, bwd = b.matrix + b.transposed + b.parts * b.part,
        most = fwd > bwd ? fwd : bwd;
    return few > most ? few : most;
}

#endif
