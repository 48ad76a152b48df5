/*
 * transformer.h -- an encoder-decoder transformer with layer norm before each branch: the plain
 * Scaling Transformer (2111.12763, section 3; ConfigurableTransformer of its released code).
 *
 *     e = dropout(source(ids));   e = block(e)      n_encoder_layers times, each position sees all
 *     y = dropout(embedding(ids)) y = block(y, norm(e))         n_layers times, causal
 *     logits = norm(y) head^T
 *
 * One row of ids is a source of `source` columns, tokens and then zeros, and the tokens of its
 * target; logits are of the latter.  A source is as long as it has ids that are not 0: what lies
 * behind is seen by nobody.  Source and target share the token embedding, and have positions of
 * their own.  The decoder's self-attention may have sparse projections; that of the encoder, and
 * cross-attention, are dense.
 *
 * Initial weights are those of gpt.h, the projections onto a residual stream divided by the square
 * root of the branches on it: 2 n_encoder_layers, 3 n_layers.
 */
#ifndef NN_TRANSFORMER_H
#define NN_TRANSFORMER_H

#include "layers/gpt.h"

typedef struct nn_transformer_config {
    nn_gpt_config decoder;           /* the sizes of both; context: the longest target */
    int64_t n_encoder_layers;
    int64_t source;                  /* columns of a source */
} nn_transformer_config;

typedef struct nn_transformer {
    nn_model      model;             /* first: a nn_transformer is a nn_model */
    nn_transformer_config config;    /* with the zeros filled in */
    nn_embedding  source, embedding; /* which share the token table */
    nn_dropout    drop_source, drop;
    nn_block     *encoder;           /* [n_encoder_layers] */
    nn_block     *decoder;           /* [n_layers] */
    nn_norm       norm_source, norm;
    nn_head       head;
} nn_transformer;

/* AG_ECONFIG names the fields that do not fit. */
int nn_transformer_check(const nn_transformer_config *c, ag_err *err);
/* Checked, built and initialised.  AG_ECONFIG, AG_ENOMEM. */
int nn_transformer_new(const nn_transformer_config *c, ag_dtype dtype, uint64_t seed,
                       nn_model **ret_model, ag_err *err);
/* The same, its weights left at zero and untouched: for a tape that only plans. */
int nn_transformer_plan(const nn_transformer_config *c, ag_dtype dtype, nn_model **ret_model,
                        ag_err *err);

#endif
