/*
 * optimizer.h -- the optimizer, the learning rate and the scale of the loss that a configuration
 * asks for.
 */
#ifndef TRAIN_OPTIMIZER_H
#define TRAIN_OPTIMIZER_H

#include "train/session.h"

/* Fills in s->opt, s->schedule and s->scaler, for a session that has its model; the moving average
 * begins at the weights, which a plan does not touch.  AG_ECONFIG, AG_ENOMEM. */
int train_optimizer_new(train_session *s, bool plan, ag_err *err);

#endif
