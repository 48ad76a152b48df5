/*
 * kernels.h -- one part of an optimizer step: elementwise loops that the compiler makes into
 * vectors.
 *
 * No contraction to fused multiply-add, so every instruction set gives the same bits.
 */
#ifndef OPT_KERNELS_H
#define OPT_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * While on, this thread takes numbers below 1.2e-38 for zero.  The moments of a weight without
 * gradient (a unit that is never chosen) decay into such numbers and stay there for good, and
 * arithmetic on them is twenty times slower. Returns what opt_tiny_restore() wants.
 */
unsigned opt_tiny_flush(void);
void     opt_tiny_restore(unsigned before);

typedef struct opt_adam {            /* one step of Adam, all factors worked out */
    float clip;                      /* factor of the gradient */
    float l2, shrink;                /* g += l2 p; p *= shrink */
    float beta1, beta2;
    float keep1, keep2;              /* 1 - beta */
    float rate;                      /* lr / (1 - beta1^t) */
    float root;                      /* 1 / sqrt(1 - beta2^t) */
    float eps;
} opt_adam;
void opt_adam_part(const opt_adam *a, int64_t n, float *p, float *g, float *m, float *v);

typedef struct opt_sgd {
    float clip, l2, momentum, rate;
    bool  nesterov;
} opt_sgd;
void opt_sgd_part(const opt_sgd *s, int64_t n, float *p, float *g, float *m);

/*
 * Adafactor (optim/adafactor.h) on a part of a matrix, g, p, m [rows, cols], with the factors of
 * the update of each row and column.
 */
/* The sums of the squares of each row and each column, in a fixed order. */
void opt_square_sums(int64_t rows, int64_t cols, const float *g, double *row_sum, double *col_sum);
/* The sum of the squares of the update y = g * row * col. */
double opt_factored_square(int64_t rows, int64_t cols, const float *g, const float *row,
                           const float *col);

typedef struct opt_factored {
    float rate, shrink;              /* p = shrink p - rate y */
    float momentum, keep;            /* with m: m = momentum m + keep rate y; p = shrink p - m */
} opt_factored;
/* m may be NULL.  g is zero afterwards. */
void opt_factored_part(const opt_factored *c, int64_t rows, int64_t cols, const float *row,
                       const float *col, float *p, float *g, float *m);

/* e = decay e + keep p */
void opt_ema_part(float decay, float keep, int64_t n, const float *p, float *e);

/* Sum of the squares of at most 4096 numbers, in a fixed order. */
double opt_square_part(int64_t n, const float *x);

#endif
