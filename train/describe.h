/* describe.h -- the first lines of a run: its data, model and machine. */
#ifndef TRAIN_DESCRIBE_H
#define TRAIN_DESCRIBE_H

#include "train/session.h"
#include "train/status.h"

/* dir: the folder of the run. */
void train_describe(const train_session *s, const char *dir, train_status *status);

#endif
