/*
 * answer.h -- the targets that a model of pairs writes, given their sources.
 *
 * A model that reads a source gets many at once; a language model, whose rows differ in where the
 * target begins, one after the other.
 */
#ifndef TRAIN_ANSWER_H
#define TRAIN_ANSWER_H

#include "train/beam.h"
#include "train/session.h"

/*
 * Answers n sources, the i-th being source[i * (s->source + s->context)] .. with n_source[i]
 * tokens, with width, alpha and stop of b.  ret_tokens [n, s->context], ret_n [n] and ret_score [n]
 * as in train_beam_search; data.target_length bounds the answers of a language model, or what is
 * left of its context.  With the session's weights as they are.  AG_EINPUT: a source too long, and
 * the codes of train_beam_search.
 */
int train_answer(train_session *s, const train_beam *b, const int32_t *source,
                 const int64_t *n_source, int64_t n, int32_t *ret_tokens, int64_t *ret_n,
                 double *ret_score, ag_err *err);

/* Told of a pair and its answer, in tokens; a return value other than 0 is a code that ends it. */
typedef struct train_answered {
    const int32_t *source, *target, *answer;
    int64_t n_source, n_target, n_answer;
    double  score;                   /* of the answer */
} train_answered;
typedef int train_told_answer(void *arg, const train_answered *a, ag_err *err);

/* Answers the first `count` sources of a split, or all (0); *ret_count: how many there were.
 * AG_EINPUT: the split is empty. */
int train_answer_split(train_session *s, const train_beam *b, int split, int64_t count,
                       train_told_answer *told, void *arg, int64_t *ret_count, ag_err *err);

/* The first few of a split as lines SOURCE, tab, ANSWER, tab, TARGET (malloc). */
int train_answer_some(train_session *s, const train_beam *b, int split, char **ret_text,
                      ag_err *err);

#endif
