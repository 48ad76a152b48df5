/*
 * qkv.h -- linear maps with few weights, the parts of sparse attention and sparse output layers
 * ("Sparse is Enough in Scaling Transformers", arXiv 2111.12763, section 3.2, and its released
 * code).  Features are S modules of d/S numbers.
 *
 *   mult      multiplicative: y[s,m] = sum_i x_i D[s,i] E[m,i] + b[s,m]
 *   conv      convolution over F positions of time and kS modules, the same for all modules
 *   multconv  mult, then conv
 *   modular   a linear map for each module, of it and its neighbours (kS in all, in a ring)
 *   multmod   mult without bias, then modular
 *   lowrank   W2 (W1 x + b1) + b2
 *   dense     W x + b
 *   none      x
 *
 * Initial values are those of the released code: D normal of 0.5, E, modular and lowrank Glorot
 * uniform on their matrices, biases normal of 1e-6; conv normal of sqrt(2 / (in + out)) with the
 * widths of a module, which forgets the F * kS taps and so multiplies the variance by them, unless
 * `fan` is set.
 */
#ifndef NN_QKV_H
#define NN_QKV_H

#include "layers/basic.h"

typedef struct nn_mult {
    ag_tensor *gates;                /* D [S,d_in] */
    ag_tensor *weight;               /* E [M,d_in] */
    ag_tensor *bias;                 /* [width] or NULL */
    int64_t    width;                /* of the output, at most S*M */
} nn_mult;
/* S modules of ceil(d_out / S) outputs, without those that would lie beyond d_out. */
void nn_mult_build(nn_mult *l, nn_params *p, const char *name, int64_t d_in, int64_t d_out,
                   int64_t modules, bool bias);
ag_tensor *nn_mult_forward(const nn_mult *l, ag_tape *t, ag_tensor *x);
int64_t nn_mult_products(const nn_mult *l);      /* multiply-adds for one position, gates too */

typedef enum nn_map_kind {
    NN_MAP_NONE, NN_MAP_DENSE, NN_MAP_MULT, NN_MAP_CONV, NN_MAP_MULTCONV, NN_MAP_MODULAR,
    NN_MAP_MULTMOD, NN_MAP_LOWRANK
} nn_map_kind;

typedef struct nn_map_config {
    nn_map_kind kind;
    int64_t d_in, d_out;
    int64_t modules;                 /* S, divides both */
    int64_t taps, span;              /* F, kS */
    int64_t rank;                    /* lowrank */
    bool    fan;                     /* conv: initial variance by the taps */
    bool    bias;                    /* dense only; the others have theirs */
    double  init_std, gain;          /* dense only, as nn_matrix_init */
} nn_map_config;

typedef struct nn_map {
    nn_map_config config;
    nn_mult   mult;
    nn_linear in;                    /* lowrank */
    nn_linear out;                   /* the last stage, where that is not mult */
} nn_map;

/* What a map that looks back sees of earlier positions when decoding. */
typedef struct nn_past { ag_kv_cache *cache; int layer, slot; } nn_past;

void nn_map_build(nn_map *l, nn_params *p, const char *name, const nn_map_config *c);
/* x [b,t,d_in] -> [b,t,d_out].  past: NULL, unless the map looks back and decodes. */
ag_tensor *nn_map_forward(const nn_map *l, ag_tape *t, ag_tensor *x, const nn_past *past);
/* The convolution alone, of an x that begins with taps - 1 earlier rows if `recalled`. */
ag_tensor *nn_map_convolve(const nn_map *l, ag_tape *t, ag_tensor *x, bool recalled);
int64_t nn_map_products(const nn_map *l);        /* multiply-adds for one position */

#endif
