/* tapes.h -- what a run computes on: its device, its tapes, how much at once. */
#ifndef TRAIN_TAPES_H
#define TRAIN_TAPES_H

#include "train/session.h"

/*
 * Samples of a micro-batch, where train.micro_batch leaves it open: the largest divisor of the
 * batch for which what one layer works on fits half of the last-level cache, but enough rows
 * to keep the matrix product busy.  A GPU wants all of it.
 */
int64_t train_micro_batch(const train_session *s);

/* Opens train.device, unless this is only a plan, takes the parameters of s->model there and makes
 * the tapes.  AG_ECONFIG, AG_ENOMEM; AG_EFAIL: there is no such device. */
int train_tapes_new(train_session *s, bool plan, ag_err *err);

/* "NVIDIA H100 ..., 79.10 of 80.00 GB unused" into buf, of a session on a device; returns buf. */
const char *train_device_text(const train_session *s, char *buf, size_t size);

#endif
