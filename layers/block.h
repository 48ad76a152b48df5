/*
 * block.h -- a transformer block with layer norm before each branch: the part that gpt.h and
 * transformer.h are made of.
 *
 *     x = x + attention(norm1(x))                             causal, or over all of a source
 *     x = x + cross(norm_cross(x), source)                    where there is a source (cross.h)
 *     x = x + ff(norm2(x)) + sru(x)                           sru, if any
 */
#ifndef NN_BLOCK_H
#define NN_BLOCK_H

#include "layers/cross.h"
#include "layers/ff.h"
#include "layers/sru.h"

typedef struct nn_block_config {
    nn_attention_config attention;   /* its d_model and bias are the block's */
    nn_ff_config  ff;
    nn_sru_config sru;
    double  norm_eps;
    bool    cross;                   /* attend to a source too */
} nn_block_config;

typedef struct nn_block {
    nn_norm      norm1, norm_cross, norm2;
    nn_attention attention;
    nn_cross     cross;
    nn_ff        ff;
    nn_sru       sru;
} nn_block;

/* Parameters below the present path; cross-attention only where `cross` is set. */
void nn_block_build(nn_block *l, nn_params *p, const nn_block_config *c);
/* x [b,t,d_model] -> the same.  source: as for nn_cross_forward; NULL for a block without.  With a
 * cache x are the positions that follow those in it, as layer `layer`, and there is no gradient. */
ag_tensor *nn_block_forward(const nn_block *l, ag_tape *t, ag_tensor *x, const nn_source *source,
                            nn_mode mode, ag_kv_cache *cache, int layer);
/* A block of an encoder, whose attention.config.all_keys is set: each position sees all positions
 * below lengths int32 [b]; NULL: all. */
ag_tensor *nn_block_encode(const nn_block *l, ag_tape *t, ag_tensor *x, ag_tensor *lengths,
                           nn_mode mode, int layer);
/* What a cache must keep besides keys and values; AG_ENOMEM. */
int nn_block_keep(const nn_block *l, ag_kv_cache *cache);

/* Multiply-adds for one position, without those between queries and keys; the keys and values of
 * cross-attention, made from the source, are not counted. */
int64_t nn_block_products(const nn_block *l);

#endif
