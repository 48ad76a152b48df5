/*
 * terraformer.h -- the Terraformer (2111.12763, section 4; ConfigurableTerraformer of its released
 * code): a reversible encoder-decoder without cross-attention.
 *
 *     e = dropout(source(ids));      (e1, e2) = encoder blocks (e, e)      all see all of a source
 *     y = dropout(embedding(ids));   (a, b) = ([e1 | y], [e2 | y])         ops/merge.c
 *     (a, b) = decoder blocks (a, b)                                       causal
 *     logits = head(norm(target rows of (a + b) / 2))
 *
 * Blocks are those of reversible.h; the decoder's have two attentions, in place of attention to
 * itself and to the source.  A target begins right behind the last token of its source, so that any
 * causal attention will do, and padding lies at the end of a row.  Where the encoder does not hand
 * on both streams, e1 = e2 = norm(dense((e1 + e2) / 2)).
 *
 * One row of ids is as in transformer.h.  Source and target share the token embedding and have
 * positions of their own.  The encoder's attention is dense; the decoder's may have sparse
 * projections, or go by hashing (lsh.h).  In a cache each row has its source without padding, so
 * that what is decoded by hashing does not depend on it; what a chunk holds in training does.
 */
#ifndef NN_TERRAFORMER_H
#define NN_TERRAFORMER_H

#include "layers/gpt.h"

typedef struct nn_terraformer_config {
    nn_gpt_config decoder;           /* the sizes of both, and the streams; context: positions of
                                      * each embedding, at least source and target */
    int64_t n_encoder_layers;
    int64_t source, target;          /* columns of a source; most tokens of a target */
    int64_t attentions;              /* of a decoder block: 1, 2 */
    bool    one_stream;              /* the encoder hands on the mean of its streams */
} nn_terraformer_config;

typedef struct nn_terraformer {
    nn_model      model;             /* first: a nn_terraformer is a nn_model */
    nn_terraformer_config config;    /* with the zeros filled in */
    nn_embedding  source, embedding; /* which share the token table */
    nn_dropout    drop_source, drop;
    nn_block     *encoder;           /* [n_encoder_layers] */
    nn_linear     join;              /* one_stream */
    nn_norm       norm_source;
    nn_block     *decoder;           /* [n_layers] */
    nn_second    *second;            /* [n_layers]; NULL: one attention a block */
    nn_norm       norm;
    nn_head       head;
} nn_terraformer;

/* AG_ECONFIG names the fields that do not fit. */
int nn_terraformer_check(const nn_terraformer_config *c, ag_err *err);
/* Checked, built and initialised.  AG_ECONFIG, AG_ENOMEM. */
int nn_terraformer_new(const nn_terraformer_config *c, ag_dtype dtype, uint64_t seed,
                       nn_model **ret_model, ag_err *err);
/* The same, its weights left at zero and untouched: for a tape that only plans. */
int nn_terraformer_plan(const nn_terraformer_config *c, ag_dtype dtype, nn_model **ret_model,
                        ag_err *err);

#endif
