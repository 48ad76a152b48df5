/*
 * embedding.h -- tokens to features, with what tells the model where a token stands.
 *
 *     y_i = token[x_i] + position_i                                                 (position.h)
 *
 * With a start vector a sequence begins with the token `vocab`, one past the last.  It is the
 * learned vector `start`, without a position, and the token behind it has position 0: what predicts
 * x_i has seen the token and the position of i - 1, as in the released code.
 */
#ifndef NN_EMBEDDING_H
#define NN_EMBEDDING_H

#include "layers/position.h"

typedef struct nn_embedding_config {
    int64_t vocab, d_model;
    nn_position_config position;     /* of width d_model */
    bool    start;
    double  token_std;               /* 0: Glorot */
    ag_tensor *shared;               /* [vocab,d_model], the token table of another embedding; NULL:
                                      * its own */
} nn_embedding_config;

typedef struct nn_embedding {
    nn_embedding_config config;
    ag_tensor  *token;               /* [vocab,d_model] */
    ag_tensor  *start;               /* [1,d_model] or NULL */
    nn_position position;
} nn_embedding;

/* AG_ECONFIG names the fields that do not fit. */
int nn_embedding_check(const nn_embedding_config *c, ag_err *err);
void nn_embedding_build(nn_embedding *l, nn_params *p, const char *name,
                        const nn_embedding_config *c);
/* ids int32 [b,t], columns column0 .. column0 + t - 1 of their sequences -> [b,t,d_model].  A
 * position is its column, less one with a start vector.  AG_ERANGE for one beyond the context. */
ag_tensor *nn_embedding_forward(const nn_embedding *l, ag_tape *t, ag_tensor *ids, int64_t column0,
                                nn_mode mode);

/* Parameters that a token does not read; `tied`: the output layer reads the token table. */
int64_t nn_embedding_unread(const nn_embedding *l, bool tied);
int64_t nn_embedding_products(const nn_embedding *l);    /* multiply-adds for a token */

#endif
