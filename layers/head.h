/*
 * head.h -- the output layer of a language model: features to logits, dense or with few weights
 * ("sparse loss", 2111.12763 section 3.3 and its released code).
 *
 *   dense     x head^T; head may be the token embedding (tied)
 *   mult      multiplicative (qkv.h): S modules of ceil(vocab / S) tokens
 *   lowrank   W2 (W1 x + b1) + b2, inner width d_lowrank
 *
 * The loss is an ordinary one over all tokens: what falls, about by S, is the weights read.  Where
 * S does not divide the vocabulary the last module ends early, so no logit is ever made for a token
 * that does not exist.
 *
 * With prob_sparse < 1 a training step takes the sparse layer with that probability, else a dense
 * one beside it (one draw for each step); evaluation and decoding always take the sparse one.
 */
#ifndef NN_HEAD_H
#define NN_HEAD_H

#include "layers/qkv.h"

typedef enum nn_head_type { NN_HEAD_DENSE, NN_HEAD_MULT, NN_HEAD_LOWRANK } nn_head_type;

typedef struct nn_head_config {
    nn_head_type type;
    int64_t d_model, vocab;
    int64_t modules;                 /* mult: S, at most vocab */
    int64_t d_lowrank;
    double  prob_sparse;
    double  init_std;                /* dense; 0: Glorot */
    bool    zero;                    /* dense, not tied: it starts at 0, so that the first loss is
                                      * log(vocab) */
} nn_head_config;

typedef struct nn_head {
    nn_head_config config;
    nn_linear dense;                 /* the layer itself, or the one beside it */
    nn_mult   mult;
    nn_map    lowrank;
    uint32_t  coin_site;
} nn_head;

/* AG_ECONFIG names the keys that do not fit. */
int nn_head_check(const nn_head_config *c, ag_err *err);
/* tied: the weights of a dense head, or NULL */
void nn_head_build(nn_head *l, nn_params *p, const char *name, const nn_head_config *c,
                   ag_tensor *tied);
/* x [..,d_model] -> [..,vocab] */
ag_tensor *nn_head_forward(const nn_head *l, ag_tape *t, ag_tensor *x, nn_mode mode);

int64_t nn_head_beside(const nn_head *l);        /* weights that only training uses */
int64_t nn_head_products(const nn_head *l);      /* multiply-adds for one token in evaluation */

#endif
