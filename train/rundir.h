/*
 * rundir.h -- the folder of a run: who may write there, what lies where, and two generations of
 * checkpoints.
 *
 *   config.yaml  env.json  metrics.jsonl  samples/step-00000100.txt  report.html
 *   last.h5  prev.h5  best.h5  LOCK
 *
 * last.h5 is the newest checkpoint, prev.h5 the one before it.  At every moment one of the two is
 * whole, whenever the process is killed.  The folder is locked while a run writes to it; reading
 * needs no lock.
 *
 * Metrics: the lines of step s go to metrics.jsonl before the checkpoint of step s is saved.  A
 * resumed run removes the lines behind its checkpoint, so that a run interrupted any number of
 * times has the same file as one that was not, apart from clock times.
 */
#ifndef TRAIN_RUNDIR_H
#define TRAIN_RUNDIR_H

#include "autograd/base/error.h"
#include "autograd/base/io.h"
#include "train/checkpoint.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum train_rundir_mode {
    TRAIN_RUNDIR_NEW,                /* AG_ECONFIG if something is there */
    TRAIN_RUNDIR_OVERWRITE,          /* removes the files of an old run, nothing else */
    TRAIN_RUNDIR_RESUME,             /* AG_EINPUT if no run is there */
} train_rundir_mode;

typedef struct train_rundir {        /* a run directory that this process writes to */
    char dir[PATH_MAX];
    ag_lock lock;
    int metrics_fd;                  /* -1 until train_rundir_metrics_begin() */
    bool last_is_bad;                /* last.h5 failed to load: it must not become prev.h5 */
} train_rundir;

/* Makes the directory if needed and locks it.  AG_ELOCKED while another process has it; AG_EIO. */
int  train_rundir_open(train_rundir *r, const char *dir, train_rundir_mode mode, ag_err *err);
void train_rundir_release(train_rundir *r);          /* a zeroed one whose fds are -1 is fine */

/* DIR/name in ret_path; AG_EIO if that is too long. */
int  train_rundir_path(const char *dir, const char *name, char ret_path[PATH_MAX], ag_err *err);
/* Replaces DIR/name by a text: config.yaml, env.json, report.html. */
int  train_rundir_write(const train_rundir *r, const char *name, const char *text, ag_err *err);
/* Writes samples/step-STEP.SUFFIX: data[size], a text of any bytes, a picture or a sound. */
int  train_rundir_sample(const train_rundir *r, int64_t step, const char *suffix, const void *data,
                         size_t size, ag_err *err);

/* Saves last.h5, the old one becoming prev.h5.  Codes of train_ckpt_save(). */
int  train_rundir_save_last(train_rundir *r, const train_ckpt *c, ag_err *err);
int  train_rundir_save_best(const train_rundir *r, const train_ckpt *c, ag_err *err);
bool train_rundir_has_checkpoint(const char *dir);
/* Opens last.h5, or prev.h5 if that fails; then ret_warning says why, else it is "".  AG_EINPUT
 * with both reasons if both fail. */
int  train_rundir_load(const char *dir, train_ckpt_file **ret_file, char ret_warning[1024],
                       ag_err *err);
/* The same for the run that goes on in r. */
int  train_rundir_resume(train_rundir *r, train_ckpt_file **ret_file, char ret_warning[1024],
                         ag_err *err);

/* Keeps the lines of metrics.jsonl up to step (a line without a "step" stays, one cut off by a kill
 * goes) and opens it for more; step -1 starts an empty file.  With `evaluated` false the line with
 * the "val_loss" of that step goes too: it will be written again. */
int  train_rundir_metrics_begin(train_rundir *r, int64_t step, bool evaluated, ag_err *err);
/* Appends one JSON object; a newline is added.  In the file on return, or not at all and AG_EIO. */
int  train_rundir_metrics_line(train_rundir *r, const char *json, ag_err *err);

#endif
