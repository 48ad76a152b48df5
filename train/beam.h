/*
 * beam.h -- the likeliest target of a source, greedily or by beam search.
 *
 * A beam keeps the `width` likeliest beginnings of a target, and in each step goes on with the
 * `width` likeliest of all that these can become.  One that ends (DATA_END) while it is among those
 * is finished, with the score log p / ((5 + n) / 6)^alpha, n its tokens with the end: the length
 * penalty of GNMT (Wu et al., arXiv 1609.08144, section 7), without which longer targets lose.  A
 * search ends when none that goes on can still get the best score, or with the longest target; not
 * with the first few that are finished, since where a model is sure of how to go on, the next best
 * are ends that came too soon.  Width 1 is greedy: always the likeliest token, up to the first end.
 * Of equally likely ones the lower number goes first, so the answer is the same for any number of
 * threads.
 *
 * All beams of a batch go through the model together: over its cache, whose sequences change places
 * as the beginnings do, or, where it has none, anew in each step.
 */
#ifndef TRAIN_BEAM_H
#define TRAIN_BEAM_H

#include "autograd/autograd.h"
#include "layers/layers.h"

#include <signal.h>

enum { TRAIN_BEAM_MOST = 64 };       /* widest beam */

typedef struct train_beam {
    int64_t width;                   /* 1 .. TRAIN_BEAM_MOST */
    double  alpha;                   /* of the length penalty, 0: none */
    int64_t length;                  /* most tokens of a target, its end counted */
    const volatile sig_atomic_t *stop;   /* set to 1: breaks off; may be NULL */
} train_beam;

/* Greedy; with more than one, T2T's length penalty. */
static inline train_beam train_beam_default(void)
{
    return (train_beam){ .width = 1, .alpha = 0.6 };
}

/*
 * Targets of prompts [n,k]: what a model with a source reads first (its S columns and a 0), or the
 * row of a language model up to where the target begins.  For prompt i: its tokens, the end left
 * out, in ret_tokens [n,length], their number in ret_n[i], and in ret_score[i] the score; where
 * none has ended within the length, the best that has not.  Token 0, padding, is never chosen.
 * Resets the tape.  AG_ENOMEM; AG_ECONFIG: a model that writes no sequences; AG_EDIVERGED: the
 * logits are not finite; AG_EINTR.
 */
int train_beam_search(const nn_model *m, ag_tape *t, const train_beam *b, const int32_t *prompts,
                      int64_t n, int64_t k, int32_t *ret_tokens, int64_t *ret_n, double *ret_score,
                      ag_err *err);

#endif
