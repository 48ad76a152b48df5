/*
 * recompute.h -- what stacks of blocks keep for backward, and how they run under such a plan.
 *
 * A block that is recorded keeps one of three amounts (autograd/tape.h: ag_keep); a range of blocks
 * may be a segment (autograd/segment.h), which keeps its input and output alone until backward
 * comes to it, records it and finds in it blocks and segments again.  Gradients are the same bits
 * under every plan.
 *
 * A model may have several stacks, an encoder's and a decoder's, which run one after the other: the
 * output of one is read by all blocks of the next, so it is kept, and so is what is made between
 * them.  A segment lies within one stack.  Blocks are counted through all of them.
 *
 * The planner chooses ranges and amounts for a number of bytes with the least work, by the dynamic
 * program of Rotor (Beaumont et al. 2019, hal-02352969) extended by the amounts: opt(i, j, m) is
 * the least work to record the blocks i .. j - 1 in m bytes and walk back over them.
 *
 *     the block i is recorded        work[k] + again[k] + opt(i + 1, j, m - kept[k])
 *     i .. s - 1 are a segment       sum of their work + opt(s, j, m - output) + opt(i, s, m)
 *
 * for the amounts k.  Where the blocks of a stack cost the same, opt depends on j - i alone; with
 * nothing but outputs and one block to keep it is the binomial schedule of Revolve (Griewank and
 * Walther 2000).
 */
#ifndef NN_RECOMPUTE_H
#define NN_RECOMPUTE_H

#include "autograd/autograd.h"

enum { NN_STACKS = 2 };
typedef struct nn_blocks { const char *name; int n; } nn_blocks;     /* a stack; n = 0: none */
/* Of all stacks. */
int nn_blocks_count(const nn_blocks stack[NN_STACKS]);

typedef struct nn_segment { int begin, end; } nn_segment;        /* blocks */

typedef struct nn_recompute {
    struct nn_stacks_cost *measure;  /* on a tape that plans: filled when the stacks run, `end` with
                                      * the bytes then in use; NULL: not */
    nn_blocks stack[NN_STACKS];      /* in the order in which they run */
    int n_blocks, n_segments;
    ag_keep *keep;                   /* [n_blocks], of each when it is recorded */
    nn_segment *segment;             /* properly nested: by begin, the outer one first */
} nn_recompute;

/* Blocks that keep `keep`; with group > 0, in segments of so many.  NULL: out of memory. */
nn_recompute *nn_recompute_new(const nn_blocks stack[NN_STACKS], ag_keep keep, int group);
void nn_recompute_free(nn_recompute *r);                 /* NULL is fine */
/* Inserts a segment in its place.  AG_ERANGE: it is empty, or crosses another one or the end of a
 * stack. */
int nn_recompute_add(nn_recompute *r, int begin, int end);
/* "encoder 0-3 recomputed 1 time, whole; decoder 0 kept: products" into buf; returns buf. */
const char *nn_recompute_text(const nn_recompute *r, char *buf, size_t size);

/* --- running ---------------------------------------------------------------------------------- */

/* Block i of its stack: x[0] is what goes through the blocks; the others they all read. */
typedef ag_tensor *nn_block_run(const void *arg, ag_tape *t, ag_tensor *const *x, int i);

enum { NN_STACK_ARG = 64 };

typedef struct nn_stack {
    nn_block_run *block;
    const void   *arg;
    size_t        arg_bytes;         /* of *arg, which is copied; at most NN_STACK_ARG */
    int           n, n_x;
    int           at;                /* which of the plan's stacks it is */
} nn_stack;

/* x[0] through all blocks, under r, which outlives the step; NULL: all is kept.  Without gradients
 * nothing is kept: the memory is that of one block. */
ag_tensor *nn_stack_forward(const nn_stack *s, ag_tape *t, ag_tensor *const *x,
                            const nn_recompute *r);
/* run(arg, t, x), part of a branch that is a segment where AG_KEEP_BRANCHES is kept; arguments as
 * for ag_recompute. */
ag_tensor *nn_branch_run(ag_tape *t, ag_segment_run *run, const void *arg, size_t arg_bytes,
                         ag_tensor *const *x, int n_x);

/* --- planning --------------------------------------------------------------------------------- */

typedef struct nn_block_cost {       /* bytes, and work as ag_tape_memory counts it */
    double output, work;             /* of the block's output; of its forward */
    double kept[AG_KEEPS];           /* recorded, its output too */
    double room[AG_KEEPS];           /* beside that, at most while it runs or its backward does */
    double again[AG_KEEPS];          /* work that its backward repeats */
    double unread[AG_KEEPS];         /* work that is not done where nothing reads its output */
    double transient;                /* bytes while it runs without being recorded */
} nn_block_cost;

/* What lies before, between and behind the stacks is always recorded. */
typedef struct nn_stacks_cost {
    nn_blocks stack[NN_STACKS];
    nn_block_cost *block;            /* of all stacks */
    double before[NN_STACKS];        /* bytes between a stack and the one before it, or the start */
    double end;                      /* bytes behind all blocks, at most */
} nn_stacks_cost;

/* The plan of least work that needs at most `bytes`, work above that of one forward pass through
 * ret_extra (may be NULL).  Sizes are rounded up to 1/slots of the bytes (0: as many as fit a
 * second of planning).  AG_ENOMEM; AG_ERANGE: there is none. */
int nn_recompute_plan(const nn_stacks_cost *c, double bytes, int slots, nn_recompute **ret_r,
                      double *ret_extra, ag_err *err);

#endif
