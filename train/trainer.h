/*
 * trainer.h -- a run from its first step to its last: train, evaluate, sample, save, stop when told
 * to.
 *
 * What a run leaves is a function of its configuration and seed: metrics.jsonl (but for clock times
 * and memory), samples/, last.h5 and best.h5 have the same bytes whether it was interrupted or not,
 * and for any number of threads.
 */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include "train/rundir.h"
#include "train/session.h"

#include <signal.h>
#include <stdio.h>

/* Set by the program's signal handlers: the signal that asks the run to save and stop, 0 for
 * none. */
extern volatile sig_atomic_t train_stop_signal;
/* A train_token that ends a drawing then. */
int train_ask_to_stop(void *arg, int32_t token);
/* Set likewise: save now and go on. */
extern volatile sig_atomic_t train_save_signal;

typedef struct train_result {
    int64_t    step;
    train_eval val;                  /* of the last evaluation; count 0: there was none */
    double     best_loss;
    int64_t    best_step;
    char       hash[65];             /* train_session_hash at the end */
} train_result;

/* Starts a run in its directory; out: where to show progress, NULL for nowhere.  AG_ESTOPPED or
 * AG_EINTR: stopped by a signal and saved; AG_EDIVERGED and what train_session_new,
 * train_rundir_open and train_ckpt_save return. */
int train_run(const train_config *c, FILE *out, train_result *ret_result, ag_err *err);

/* Goes on with the run in dir, with `n` key=value arguments on top of its configuration. */
int train_resume(const char *dir, char *const *overrides, int n, FILE *out,
                 train_result *ret_result, ag_err *err);

/* The directory of a run: run.dir, or runs/ and run.name. */
void train_run_dir(const train_config *c, char *buf, size_t size);

#endif
