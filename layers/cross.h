/*
 * cross.h -- multi-head attention of a decoder to its source (1706.03762, section 3.2.3): queries
 * from the decoder, keys and values from what the encoder made, without those of padding.
 *
 * All projections are dense.  In decoding the keys and values of the source are made once, and kept
 * in the cache.
 */
#ifndef NN_CROSS_H
#define NN_CROSS_H

#include "layers/attention.h"

typedef struct nn_source {
    ag_tensor *x;                    /* [b,S,d_model]; NULL: the cache has its keys and values */
    ag_tensor *lengths;              /* int32 [b], each 0 .. S; NULL where x is */
} nn_source;

typedef struct nn_cross {
    nn_attention_config config;
    nn_linear  q, k, v, out;         /* [n_heads * d_qk,d_model], the same, [n_heads * d_v,d_model],
                                      * [d_model,n_heads * d_v] */
    nn_dropout drop;
    uint32_t   site;                 /* of dropout on the attention weights */
} nn_cross;

/* Sizes, bias, dropout and init are those of c; what it says of sparse projections and patterns is
 * not looked at. */
void nn_cross_build(nn_cross *l, nn_params *p, const char *name, const nn_attention_config *c);
/* residual + attention of x [b,t,d_model] to the source; a query without a key gets the bias of
 * `out`, if any.  With a cache there is no gradient: the source goes into it as layer `layer`, or
 * is taken from it. */
ag_tensor *nn_cross_forward(const nn_cross *l, ag_tape *t, ag_tensor *x, const nn_source *source,
                            ag_tensor *residual, nn_mode mode, ag_kv_cache *cache, int layer);

/* Multiply-adds of q and out for one position of the decoder; of k and v for one of the source.  0
 * for a layer that was not built. */
int64_t nn_cross_products(const nn_cross *l);
int64_t nn_cross_source_products(const nn_cross *l);

#endif
