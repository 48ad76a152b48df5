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
} ag_flat;

#endif
