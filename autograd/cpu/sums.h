/*
 * sums.h -- sums in a fixed order: the same bits for any number of threads, and an error that grows
 * with the logarithm of the length (pairwise summation; Higham, SIAM J. Sci. Comput. 14, 1993).
 *
 * Numbers are added in short runs; the sums of runs meet in a tree like the carries of a binary
 * counter: level l holds the sum of 2^l runs.  No memory but the stack is used.
 */
#ifndef AG_CPU_SUMS_H
#define AG_CPU_SUMS_H

#include "autograd/cpu/storage.h"

/* A row: runs of at most RUN vectors. */
enum { RUN = 16, TREE_LEVELS = 40 };

typedef struct vtree {
    int64_t runs;
    vf level[TREE_LEVELS];
} vtree;

/* levels above the count are never read, so they are not cleared */
static inline void vtree_start(vtree *t) { t->runs = 0; }

static inline void vtree_add(vtree *t, vf run)
{
    int l = 0;
    for (int64_t c = t->runs++; c & 1; c >>= 1)
        run = t->level[l++] + run;
    t->level[l] = run;
}

static inline vf vtree_lanes(const vtree *t)
{
    vf s = { 0 };
    int l = 0;
    for (int64_t c = t->runs; c; c >>= 1, l++)
        if (c & 1)
            s = t->level[l] + s;
    return s;
}

static inline float vtree_total(const vtree *t) { return vsum(vtree_lanes(t)); }

/* for (run starting at b) for (vector at j): the loops of a sum over n numbers */
#define FOR_RUNS(b, n) for (int64_t b = 0; b < (n); b += RUN * VL)
#define FOR_RUN(j, b, n) \
    for (int64_t j = b; j < ((b) + RUN * VL < (n) ? (b) + RUN * VL : (n)); j += VL)
#define FOR_VECTORS(j, n) for (int64_t j = 0; j < (n); j += VL)

/* Vectors of which only `left` lanes may be touched, should that be fewer than VL. */
static inline vf vload_to(const float *p, int64_t left)
{
    return left >= VL ? vload(p) : vload_n(p, left);
}
static inline void vstore_to(float *p, vf x, int64_t left)
{
    if (left >= VL)
        vstore(p, x);
    else
        vstore_n(p, x, left);
}

static inline float row_total(int64_t n, const real *x)
{
    vtree t;
    vtree_start(&t);
    FOR_RUNS(b, n) {
        vf s = { 0 };
        FOR_RUN(j, b, n)
            s += vget_to(x + j, n - j);
        vtree_add(&t, s);
    }
    return vtree_total(&t);
}

/*
 * Columns: the sums over m rows of up to COLUMNS columns.  The rows are cut into SLOTS parts, which
 * do not depend on the number of threads; each part is summed by one thread in groups of GROUP
 * rows, a tree over groups, and then the parts are added in their order.
 */
enum { COLUMNS = 2048, SLOTS = 32, GROUP = 8, COLUMN_LEVELS = 28 };

typedef struct column_tree {
    int64_t groups, width;
    float level[COLUMN_LEVELS][COLUMNS];
} column_tree;

static inline void column_tree_start(column_tree *t, int64_t width)
{
    t->groups = 0;
    t->width = width;
}

/* group[width] is changed */
static inline void column_tree_add(column_tree *t, float *group)
{
    int l = 0;
    for (int64_t c = t->groups++; c & 1; c >>= 1, l++)
        for (int64_t j = 0; j < t->width; j++)
            group[j] += t->level[l][j];
    memcpy(t->level[l], group, (size_t)t->width * sizeof *group);
}

static inline void column_tree_total(const column_tree *t, float *ret)
{
    memset(ret, 0, (size_t)t->width * sizeof *ret);
    int l = 0;
    for (int64_t c = t->groups; c; c >>= 1, l++)
        for (int64_t j = 0; (c & 1) && j < t->width; j++)
            ret[j] += t->level[l][j];
}

/* rows of slot s: [*ret_from, *ret_to) */
static inline void slot_rows(int64_t m, int64_t s, int64_t *ret_from, int64_t *ret_to)
{
    const int64_t rows = AG_ALIGN_UP((m + SLOTS - 1) / SLOTS, GROUP);
    *ret_from = s * rows < m ? s * rows : m;
    *ret_to = *ret_from + rows < m ? *ret_from + rows : m;
}

/* y[width] (+)= the sum of the parts, pairwise; parts are changed */
static inline void slots_total(float parts[SLOTS][COLUMNS], int64_t width, float *y, bool acc)
{
    for (int h = SLOTS / 2; h > 0; h /= 2)
        for (int s = 0; s < h; s++)
            for (int64_t j = 0; j < width; j++)
                parts[s][j] += parts[s + h][j];
    for (int64_t j = 0; j < width; j++)
        y[j] = acc ? y[j] + parts[0][j] : parts[0][j];
}

#endif
