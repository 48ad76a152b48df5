/*
 * generate.h -- text drawn from a model, token by token.
 *
 * The prompt is run through the model at once, then each new token alone, over a cache of keys and
 * values.  When the model's context is full, the later half of it is run through again as a new
 * prompt, so that any length can be drawn.  The choice of a token is a function of (seed,
 * position): the same seed gives the same text, whatever the number of threads, and drawing samples
 * during training disturbs nothing.
 */
#ifndef TRAIN_GENERATE_H
#define TRAIN_GENERATE_H

#include "autograd/autograd.h"
#include "layers/layers.h"

typedef struct train_draw {
    int64_t  length;                 /* tokens to draw */
    double   temperature;            /* divides the logits; 0: always the likeliest token */
    int64_t  top_k;                  /* from the k likeliest tokens; 0: from all */
    double   top_p;                  /* from the likeliest that together have this probability,
                                      * (0, 1] */
    uint64_t seed;
    bool     eager;                  /* no graphs of a GPU (train.cuda_graph = off) */
} train_draw;

/* Told of each token as it is drawn; a return value other than 0 ends the drawing early. */
typedef int train_token(void *arg, int32_t token);

/*
 * Continues prompt[n_prompt] (at least one token, unless sequences of the model have a start of
 * their own) by d->length tokens into ret_tokens[d->length];
 * told may be NULL.  Resets the tape.  Returns the number of tokens drawn, or AG_ENOMEM, AG_ECONFIG
 * (no prompt, a model that does not decode), AG_EDIVERGED (the logits are not finite).
 */
int64_t train_generate(const nn_model *m, ag_tape *t, int64_t context, const train_draw *d,
                       const int32_t *prompt, int64_t n_prompt, int32_t *ret_tokens,
                       train_token *told, void *arg, ag_err *err);

/* The token that `d` draws from logits[n] as number `index`; work[n] is scratch.  -1 if a logit is
 * NaN or +Inf. */
int32_t train_choose(const train_draw *d, const float *logits, int64_t n, int64_t index,
                     int32_t *work);

#endif
