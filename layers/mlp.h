/*
 * mlp.h -- the small network for images: linear, n_layers feed-forward layers, linear, with no
 * residual and no norm, as in the public experiment with the sparse feed-forward on MNIST (784-100,
 * FF 100-400-100, 100-10).
 */
#ifndef NN_MLP_H
#define NN_MLP_H

#include "layers/model.h"

typedef struct nn_mlp_config {
    int64_t d_in, d_hidden, classes, n_layers;
    bool    bias;                    /* of the two linear layers; ff has its own */
    double  init_std;                /* 0: Glorot */
    nn_ff_config ff;                 /* init_std and out_gain are set here */
} nn_mlp_config;

typedef struct nn_mlp {
    nn_model      model;             /* first: a nn_mlp is a nn_model */
    nn_mlp_config config;
    nn_linear     in, out;
    nn_ff        *ff;                /* [n_layers] */
} nn_mlp;

/* AG_ECONFIG names the fields that do not fit. */
int nn_mlp_check(const nn_mlp_config *c, ag_err *err);
/* Checked, built and initialised.  AG_ECONFIG, AG_ENOMEM. */
int nn_mlp_new(const nn_mlp_config *c, ag_dtype dtype, uint64_t seed, nn_model **ret_model,
               ag_err *err);

#endif
