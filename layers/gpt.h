/*
 * gpt.h -- a decoder-only transformer with layer norm before each branch, shaped as nanoGPT.
 *
 *     x = dropout(embedding(ids))                             token + position, as embedding.h
 *     x = block(x)                                            n_layers times, as block.h
 *     logits = norm(x) head^T                                 head = token where tied
 *
 * With two streams both begin as x, blocks go as reversible.h says, and norm sees their average or
 * both side by side.
 *
 * Initial weights: normal of init_std (Glorot if 0) or as `init` says, the two projections onto the
 * residual stream divided by sqrt(2 n_layers), biases 0; the sparse feed-forward starts as
 * layers/ff.h says.
 */
#ifndef NN_GPT_H
#define NN_GPT_H

#include "layers/block.h"
#include "layers/embedding.h"
#include "layers/head.h"
#include "layers/model.h"
#include "layers/pattern.h"
#include "layers/reversible.h"

typedef struct nn_gpt_config {
    int64_t vocab, context;          /* tokens */
    int64_t n_layers, n_heads, d_model;
    int64_t d_qk, d_v;               /* per head; 0: d_model / n_heads */
    bool    bias;                    /* in attention and norms; ff has its own */
    bool    tied;                    /* the head is the token embedding */
    double  dropout;                 /* of attention; that of ff: ff.dropout */
    double  embedding_dropout;
    nn_init_rule init;
    double  init_std;                /* NN_INIT_STD */
    double  norm_eps, final_norm_eps;                    /* the last layer norm; 0: norm_eps */
    nn_embedding_config embedding;   /* its sizes and init are set here */
    nn_ff_config ff;                 /* init_std and out_gain are set here */
    nn_sru_config sru;               /* beside ff; all but layers and units is set here */
    nn_attention_config attention;   /* of which the sizes above, bias, dropout, init and pattern
                                      * are set here */
    const char *pattern;             /* as pattern.h; NULL or "dense": queries see all earlier keys;
                                      * read while the model is made */
    nn_pattern_files *files;         /* that it names, as nn_patterns_new(); NULL: from disk */
    nn_head_config head;             /* its sizes and init are set here; tied needs a dense one */
    nn_streams_config streams;       /* residual streams; tied needs their average */
} nn_gpt_config;

typedef struct nn_gpt {
    nn_model      model;             /* first: a nn_gpt is a nn_model */
    nn_gpt_config config;            /* with the zeros filled in */
    nn_embedding  embedding;
    nn_dropout    drop;
    nn_block     *block;             /* [n_layers] */
    nn_norm       norm;
    nn_dropout    drop_out;          /* of two streams side by side */
    nn_head       head;
    nn_patterns  *patterns;          /* NULL: all layers are dense */
} nn_gpt;

/* The same with the zeros, and what the parts share, filled in. */
nn_gpt_config nn_gpt_filled(const nn_gpt_config *c);
/* What its blocks are made of, from a config that is filled in; patterns go by layer. */
nn_block_config nn_gpt_block(const nn_gpt_config *c);
/* AG_ECONFIG names the fields that do not fit. */
int nn_gpt_check(const nn_gpt_config *c, ag_err *err);
/* Checked, built and initialised.  AG_ECONFIG, AG_ENOMEM. */
int nn_gpt_new(const nn_gpt_config *c, ag_dtype dtype, uint64_t seed, nn_model **ret_model,
               ag_err *err);
/* The same, its weights left at zero and untouched: for a tape that only plans. */
int nn_gpt_plan(const nn_gpt_config *c, ag_dtype dtype, nn_model **ret_model, ag_err *err);
/* The sizes that this model would have. */
int nn_gpt_cost(const nn_gpt_config *c, nn_cost *ret_cost, ag_err *err);
#endif
