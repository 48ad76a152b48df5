/*
 * flat.h -- loops over flat arrays of f32 weights and gradients in the memory of a device: what an
 * optimizer (optim/) does in one step.  On the host optim/kernels.h has the same formulas.
 *
 * All pointers are to the memory of the device but those to the factors of a step and its gate.  A
 * step is decided where the norm is: the kernels read it and change nothing where it is not one
 * that a step can be taken with.  So the host need not wait for it.
 */
#ifndef AG_FLAT_H
#define AG_FLAT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct ag_adam {             /* one step of Adam, all factors worked out */
    float clip;                      /* factor of the gradient */
    float l2, shrink;                /* g += l2 p; p *= shrink */
    float beta1, beta2;
    float keep1, keep2;              /* 1 - beta */
    float rate;                      /* lr / (1 - beta1^t) */
    float root;                      /* 1 / sqrt(1 - beta2^t) */
    float eps;
} ag_adam;

typedef struct ag_sgd {
    float clip, l2, momentum, rate;
    bool  nesterov;
} ag_sgd;

typedef struct ag_flat_part {        /* one block of threads does it: a few thousand elements */
    int64_t offset, count;
    bool    decay;
} ag_flat_part;

/* What decides about a step, all but `norm` from the host. */
typedef struct ag_flat_gate {
    const double *square;            /* [1] on the device: the sum of squares of the gradient */
    double unscale;                  /* norm = unscale sqrt(square) */
    double clip_norm;                /* largest norm; 0: no clipping */
    double most;                     /* norm * clip above this: no step */
} ag_flat_gate;

/*
 * Adafactor (optim/adafactor.h).  The weights are cut into matrices, the last two axes of a tensor,
 * and vectors of a few thousand elements, which are matrices of one row here; those into parts of
 * at most AG_FACTORED_ROWS whole rows.  A block has a part.  Matrices come first, so that factors
 * and second moments of rows and columns have the same places.
 */
enum { AG_FACTORED_ROWS = 64 };

typedef struct ag_factored_matrix {
    int64_t offset, rows, cols;
    int64_t row, col;                /* of its factors; a matrix: of its moments in v_row, v_col */
    int64_t vector;                  /* of its moments in v; -1: a matrix */
    int64_t part, n_parts;           /* the first one, how many */
    int     range;
} ag_factored_matrix;

typedef struct ag_factored_part {    /* rows of a matrix */
    int64_t matrix, first, rows;
    int64_t sums;                    /* where its sums of columns begin */
} ag_factored_part;

typedef struct ag_factored_range {   /* a tensor: its parts are neighbours */
    int64_t part, n_parts, count;
    bool    decay;
} ag_factored_range;

typedef struct ag_factored_sums {    /* of a part */
    double p2, y2;                   /* squares of the weights and of the update */
    double v;                        /* new moments of the rows; on a device only */
} ag_factored_sums;

typedef struct ag_factored_rate {    /* of a range, in this step */
    float rate, shrink;              /* p = shrink p - rate y */
    float momentum, keep;            /* with m: m = momentum m + keep rate y; p = shrink p - m */
} ag_factored_rate;

typedef struct ag_factored_work {    /* what a step works in, all of it where the weights are */
    int64_t n_matrices, n_parts, n_ranges, n_rows, n_cols, n_sums;
    ag_factored_matrix *matrix;
    ag_factored_part   *part;
    ag_factored_range  *range;
    ag_factored_sums   *total;       /* [n_parts] */
    ag_factored_rate   *rate;        /* [n_ranges] */
    float  *row, *col;               /* factors of the update, of all rows and all columns */
    double *sum;                     /* [n_sums], of the squares of each part's columns */
} ag_factored_work;

typedef struct ag_factored {         /* one step */
    double beta, mix;                /* how a mean of squares goes into a second moment */
    double eps1, eps2, clip_threshold, lr;
    bool   parameter_scale;
    float  shrink, momentum, keep;   /* shrink: of ranges that decay */
    float  ema_decay, ema_keep;
} ag_factored;

typedef struct ag_factored_arrays {  /* m, ema: or NULL */
    float *p, *g, *m, *v_row, *v_col, *v, *ema;
} ag_factored_arrays;

typedef struct ag_flat {
    /* sum[1] = sum of squares, f64, in a fixed order */
    void (*square_sum)(int64_t n, const float *x, double *sum);
    /* The parts with `decay` take l2 and shrink, the others 0 and 1; clip is that of the gate.  g
     * is zero afterwards; nothing changes where the gate is closed.  ema may be NULL: ema = decay
     * ema + keep p. */
    void (*adam)(const ag_adam *a, const ag_flat_gate *gate, int64_t n_parts,
                 const ag_flat_part *parts, float *p, float *g, float *m, float *v, float *ema,
                 float ema_decay, float ema_keep);
    void (*sgd)(const ag_sgd *s, const ag_flat_gate *gate, int64_t n_parts,
                const ag_flat_part *parts, float *p, float *g, float *m, float *ema,
                float ema_decay, float ema_keep);
    /* What no range has stays as it is, its gradient and average too. */
    void (*factored)(const ag_factored *f, const ag_flat_gate *gate, const ag_factored_work *w,
                     const ag_factored_arrays *a);
} ag_flat;

#endif
