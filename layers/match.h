/*
 * match.h -- models of equal size: d_ff chosen so that a model has as many parameters as another,
 * or reads as many weights for each token.
 *
 * Sparse attention and output layers have few parameters; what they save buys feed-forward units
 * (2111.12763 section 3.2 compares that way: with dense attention replaced in every block of a
 * decoder, d_ff grows by about 2 d_model).
 */
#ifndef NN_MATCH_H
#define NN_MATCH_H

#include "layers/gpt.h"

/* Sets c->ff.d_ff, a multiple of `multiple`, so that the model has as nearly as possible the
 * parameters of `like`.  AG_ECONFIG: one of them is not well formed; AG_ENOMEM. */
int nn_match_params(nn_gpt_config *c, int64_t multiple, const nn_gpt_config *like, ag_err *err);
/* Sets c->d_ff so that the layer reads as nearly as possible as many weights for a token as `like`,
 * both of width d_model. */
int nn_match_touched(nn_ff_config *c, const nn_ff_config *like, int64_t d_model, ag_err *err);

#endif
