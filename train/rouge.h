/*
 * rouge.h -- how much of a reference text a candidate has: ROUGE-1, -2, -L and -Lsum (Lin, "ROUGE:
 * A Package for Automatic Evaluation of Summaries", 2004).
 *
 * Words are runs of ASCII letters and digits in lower case; no stemming, no stop words.  Recall is
 * of the reference, precision of the candidate, F1 weighs both alike.  -N counts n-grams, each at
 * most as often as the other text has it (section 2); -L is the longest common subsequence of the
 * whole texts (section 3.1); -Lsum goes by sentences: of each one of the reference, the union of
 * its longest common subsequences with all those of the candidate, a word of either text counted
 * once (section 3.2).  A sentence ends at a line end, or at . ! or ? with a blank behind.  Where
 * several subsequences are longest, the one of the package rouge-score is taken: it goes back from
 * both ends and leaves out a word of the reference first.
 */
#ifndef TRAIN_ROUGE_H
#define TRAIN_ROUGE_H

#include "autograd/base/error.h"

typedef struct train_rouge_score { double precision, recall, f1; } train_rouge_score;

typedef struct train_rouge { train_rouge_score n1, n2, l, lsum; } train_rouge;

/* Scores in [0, 1]; 0 where a text has nothing to count.  AG_ENOMEM. */
int train_rouge_of(const char *candidate, const char *reference, train_rouge *ret_rouge,
                   ag_err *err);

#endif
