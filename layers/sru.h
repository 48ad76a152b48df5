/*
 * sru.h -- a stack of simple recurrent units beside the feed-forward: it carries what attention
 * forgets over any distance, and costs next to nothing (Terraformer, 2111.12763; its released
 * code).
 *
 *     y = x + feed-forward(norm(x)) + out(sru^k(in(norm'(x))))
 *     sru(u) = scan([z_r | z_f | y] = W u + b, u)                ops/sru.c
 *
 * in is [n,d_model], W [3n,n] for each of the k layers, out [d_model,n]; weights start as Glorot
 * uniform, biases as normal of 1e-6.
 */
#ifndef NN_SRU_H
#define NN_SRU_H

#include "layers/basic.h"

enum { NN_SRU_LAYERS = 8 };          /* at most */

typedef struct nn_sru_config {
    int64_t d_model;
    int64_t layers, units;           /* k and n; units 0: there is none */
    bool    bias;                    /* of the norm */
    double  norm_eps;
} nn_sru_config;

typedef struct nn_sru {
    nn_sru_config config;
    nn_norm   norm;
    nn_linear in, out;
    nn_linear gates[NN_SRU_LAYERS];
} nn_sru;

/* AG_ECONFIG names the keys that do not fit. */
int nn_sru_check(const nn_sru_config *c, ag_err *err);
void nn_sru_build(nn_sru *l, nn_params *p, const char *name, const nn_sru_config *c);
/* residual + out(sru^k(in(norm(x)))), x and residual [b,t,d_model]; residual where there is none.
 * With a cache x are the positions that follow those in it, and there is no gradient. */
ag_tensor *nn_sru_forward(const nn_sru *l, ag_tape *t, ag_tensor *x, ag_tensor *residual,
                          ag_kv_cache *cache, int layer);
/* What a cache must keep for it; AG_ENOMEM. */
int nn_sru_keep(const nn_sru *l, ag_kv_cache *cache);
int64_t nn_sru_products(const nn_sru *l);        /* multiply-adds for one position */

#endif
