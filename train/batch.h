/* batch.h -- the samples of a batch, part by part, on the tape of a session. */
#ifndef TRAIN_BATCH_H
#define TRAIN_BATCH_H

#include "train/session.h"

/* Samples i0 .. i0+n-1 of a batch on a fresh tape; returns how many there were. */
int64_t train_batch_fetch(train_session *s, const data_draw *w, int64_t i0, int64_t n,
                          ag_tensor **ret_x, ag_tensor **ret_targets);

/* Draws the samples behind those that run, the first of the next step behind the last: on the host,
 * while the GPU is busy. */
void train_batch_ahead(train_session *s, const data_draw *w, int64_t i0);

/* Of so many targets, how many count. */
int64_t train_batch_count(const int32_t *targets, int64_t rows);
/* Targets of a batch that count. */
int64_t train_batch_scored(train_session *s, const data_draw *w);

#endif
