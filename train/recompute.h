/*
 * recompute.h -- what a run keeps for backward: from the configuration, or planned for its memory.
 *
 * A step is planned as it will run (ag_tape_plan), so what is planned is what it takes, to the
 * byte.  Sparse feed-forward layers that toss between hard and soft steps are planned soft, which
 * takes more; with a coin for each coin_rows rows, as they fall in the first step.
 */
#ifndef TRAIN_RECOMPUTE_H
#define TRAIN_RECOMPUTE_H

#include "train/session.h"

typedef struct train_step_plan {
    double fixed;                    /* bytes of parameters, gradients, optimizer, patterns */
    double peak, grads;              /* of the tape; its part that is gradients of activations */
    double flops;                    /* forward, what is computed again included */
} train_step_plan;

/* A micro-batch under r; NULL: all is kept. */
int train_plan_step(train_session *s, nn_recompute *r, train_step_plan *ret_p, ag_err *err);

/* Has the model blocks that can run again? */
bool train_may_recompute(const train_session *s);

/* The plan of a word of train.recompute, NULL where all is kept; `group` for block, bytes of all
 * for auto.  AG_ECONFIG: the bytes do not suffice, the message says which would. */
int train_recompute_new(train_session *s, int word, int64_t group, double bytes,
                        nn_recompute **ret_r, ag_err *err);
/* To the message of an AG_ENOMEM on s->device: two changes with which a step would fit, if there
 * are such. */
void train_memory_advice(train_session *s, ag_err *err);
/* That of the configuration becomes that of the model. */
int train_recompute_apply(train_session *s, ag_err *err);

#endif
