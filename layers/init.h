/*
 * init.h -- the values that parameters start with.
 */
#ifndef NN_INIT_H
#define NN_INIT_H

#include "autograd/tensor.h"

/* Initial values of a parameter, a function of (seed, site, element). */
typedef struct nn_init {
    enum { NN_CONSTANT, NN_NORMAL, NN_UNIFORM, NN_WAVES } kind;
    double scale;                    /* the constant; the standard deviation; the limit */
} nn_init;

static inline nn_init nn_constant(double value) { return (nn_init){ NN_CONSTANT, value }; }
static inline nn_init nn_normal(double std) { return (nn_init){ NN_NORMAL, std }; }
static inline nn_init nn_uniform(double limit) { return (nn_init){ NN_UNIFORM, limit }; }
/* A table [rows,n], n even, of the positions that its rows are: elements 2j and 2j + 1 of row i are
 * the sine and the cosine of i times nn_wave_frequency(j, n) (1706.03762 section 3.5). */
static inline nn_init nn_waves(void) { return (nn_init){ NN_WAVES, 1 }; }
double nn_wave_frequency(int64_t j, int64_t n);      /* 10000^(-2j/n), radians a position */
/* gain * U(-l, l), l = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010) */
nn_init nn_glorot(int64_t fan_in, int64_t fan_out, double gain);
/* For the weights of a matrix: normal of gain * std, or Glorot where std is 0. */
nn_init nn_matrix_init(double std, int64_t fan_in, int64_t fan_out, double gain);


/* How large the initial weights of matrices and embeddings are (1904.10509 section 5.2 writes
 * N(0, 0.125 / sqrt(d_in)), which can be read in two ways; its released code has a third). */
typedef enum nn_init_rule {
    NN_INIT_STD,                     /* the same std for all; 0: Glorot */
    NN_INIT_PAPER_STD,               /* std 0.125 / sqrt(d_in) */
    NN_INIT_PAPER_VAR,               /* variance 0.125 / sqrt(d_in) */
    NN_INIT_RELEASED                 /* variance 0.125 / d_in; embeddings: std 0.01 */
} nn_init_rule;
/* The std of a matrix that reads d_in features, `std` with NN_INIT_STD. */
double nn_rule_std(nn_init_rule rule, double std, int64_t d_in);
/* The same for each of `tables` embedding tables whose rows are added up. */
double nn_rule_embedding_std(nn_init_rule rule, double std, int64_t d_model, int tables);

/* Fills x, f32 or f64, which is zero so far; the same numbers for both types and any number of
 * threads. */
void nn_init_fill(const nn_init *init, uint64_t seed, uint32_t site, ag_tensor *x);

#endif
