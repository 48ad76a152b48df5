/*
 * attention.h -- causal multi-head self-attention.
 *
 * One product makes queries, keys and values of all heads, in this order: [q | k | v].  d_qk and
 * d_v, the widths of one head, need not divide d_model, nor be equal.
 */
#ifndef NN_ATTENTION_H
#define NN_ATTENTION_H

#include "layers/basic.h"

typedef struct nn_attention_config {
    int64_t d_model, n_heads;
    int64_t d_qk, d_v;               /* per head */
    bool    bias;
    double  dropout;                 /* of the attention weights, and of the branch's end */
    double  init_std;                /* 0: Glorot */
    double  out_gain;                /* factor of the initial output projection */
} nn_attention_config;

typedef struct nn_attention {
    nn_linear  qkv;                  /* [n_heads * (2 d_qk + d_v), d_model] */
    nn_linear  out;                  /* [d_model, n_heads * d_v] */
    nn_dropout drop;
    int64_t    n_heads, d_qk, d_v;
    uint32_t   site;                 /* of dropout on the attention weights */
} nn_attention;

void nn_attention_build(nn_attention *l, nn_params *p, const char *name,
                        const nn_attention_config *c);
/* residual + attention(x), x [b,t,d_model]; residual may be NULL.  With a cache, x are the
 * positions that follow those in it, their keys and values are stored there as layer `layer`, and
 * there is no gradient. */
ag_tensor *nn_attention_forward(const nn_attention *l, ag_tape *t, ag_tensor *x,
                                ag_tensor *residual, nn_mode mode, ag_kv_cache *cache, int layer);

#endif
