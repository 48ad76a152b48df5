/*
 * kernels.h -- one part of an optimizer step: elementwise loops that the compiler makes into
 * vectors.
 *
 * No contraction to fused multiply-add, so every instruction set gives the same bits.  The structs
 * are those of the loops on a device (autograd/flat.h).
 */
#ifndef OPT_KERNELS_H
#define OPT_KERNELS_H

#include "autograd/flat.h"

void opt_adam_part(const ag_adam *a, int64_t n, float *p, float *g, float *m, float *v);
void opt_sgd_part(const ag_sgd *s, int64_t n, float *p, float *g, float *m);

/*
 * Adafactor (optim/adafactor.h) on a part of a matrix, g, p, m [rows, cols], with the factors of
 * the update of each row and column.  opt_factored_part: m may be NULL; g is zero afterwards.
 */
/* The sums of the squares of each row and each column, in a fixed order. */
void opt_square_sums(int64_t rows, int64_t cols, const float *g, double *row_sum, double *col_sum);
/* The sum of the squares of the update y = g * row * col. */
double opt_factored_square(int64_t rows, int64_t cols, const float *g, const float *row,
                           const float *col);
void opt_factored_part(const ag_factored_rate *c, int64_t rows, int64_t cols, const float *row,
                       const float *col, float *p, float *g, float *m);

/* e = decay e + keep p */
void opt_ema_part(float decay, float keep, int64_t n, const float *p, float *e);

/* Sum of the squares of at most 4096 numbers, in a fixed order. */
double opt_square_part(int64_t n, const float *x);

#endif
