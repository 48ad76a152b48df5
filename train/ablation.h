/*
 * ablation.h -- a series of runs that differ in a few keys: for every seed, every arm.
 *
 * A file is a configuration with one more key:
 *
 *     ablation:
 *       about: "what question it answers (paper, section)"
 *       seeds: [1, 2, 3]              # absent: run.seed alone
 *       arms:                         # in order; the others are compared with the first
 *         dense: []
 *         N=16: [model.ff.type=sparse, model.ff.block=16]
 *
 * Each run is a process of its own, `tulle train DIR/base.yaml ... run.dir=DIR/ARM-sSEED`, so that
 * one that fails leaves the others alone and any of them can be looked at, resumed or sampled from
 * as a run of its own.  The directories are all the state there is: what is finished is not
 * run again, what is not goes on.  Seeds are outermost, so that a stopped ablation has whole seeds.
 */
#ifndef TRAIN_ABLATION_H
#define TRAIN_ABLATION_H

#include "layers/model.h"
#include "train/config.h"

#include <limits.h>
#include <stdio.h>

enum {
    TRAIN_ARMS_MAX = 64, TRAIN_SEEDS_MAX = 64, TRAIN_SETTINGS_MAX = 32,
    TRAIN_ARM_NAME_MAX = 64,         /* bytes, with the NUL */
};

typedef struct train_setting {
    char text[256];                  /* key=value */
    int  line;                       /* in the file */
} train_setting;

typedef struct train_arm {
    char name[TRAIN_ARM_NAME_MAX];
    char folder[TRAIN_ARM_NAME_MAX]; /* the name as a part of a file's name */
    int  line, n;
    train_setting set[TRAIN_SETTINGS_MAX];           /* [n] */
} train_arm;

typedef struct train_ablation {      /* owns no memory */
    char      about[TRAIN_TEXT_MAX];
    int       n_seeds, n_arms;
    int64_t   seed[TRAIN_SEEDS_MAX];
    train_arm arm[TRAIN_ARMS_MAX];
} train_ablation;

/* Reads a file on top of *c, its `ablation:` into *ret_a; faults as train_config_load.  AG_ECONFIG,
 * AG_ENOMEM. */
int train_ablation_load(const char *path, train_config *c, train_ablation *ret_a, ag_err *err);

/* The configuration of one arm: base with its settings on top, checked.  AG_ECONFIG. */
int train_ablation_config(const train_arm *arm, const train_config *base, train_config *ret_c,
                          ag_err *err);

/* ---- results, of which those that are not known are NaN ---- */

typedef struct train_point {         /* an evaluation */
    int64_t step;
    double  seconds;                 /* of training until then: no evaluation, no samples */
    double  loss;                    /* nats */
} train_point;

typedef struct train_trial {         /* one run */
    char    dir[PATH_MAX];
    bool    done;
    char    error[512];              /* why it failed; "" if it did not */
    int64_t steps;                   /* trained */
    double  seconds;                 /* of training, as above */
    double  accuracy, hard_loss, soft_loss;          /* at the last evaluation */
    train_point *point;              /* [n], malloc'ed */
    int     n;
} train_trial;

/* What dir's metrics.jsonl says of a run of `steps` steps of `samples` tokens or images; t->done
 * where its last evaluation is there.  A file that is not there yet says nothing.  AG_ENOMEM,
 * AG_EIO. */
int  train_trial_read(train_trial *t, int64_t steps, int64_t samples, ag_err *err);
void train_trial_release(train_trial *t);

typedef struct train_study {         /* an ablation with its results */
    const train_ablation *a;
    const train_config   *config;    /* [n_arms] */
    const nn_cost        *cost;      /* [n_arms] */
    train_trial          *trial;     /* [n_seeds, n_arms] */
} train_study;

/* The results as text for people and as one JSON object, malloc'ed.  AG_ENOMEM. */
int train_study_table(const train_study *s, char **ret_text, ag_err *err);
int train_study_json(const train_study *s, char **ret_text, ag_err *err);

/* ---- running ---- */

/* Runs what is not finished, `jobs` at a time (0: one for each processor), in dir; out: a line for
 * each finished run, NULL for none.  Leaves result.txt and result.json in dir and returns them,
 * malloc'ed.  AG_EINTR, AG_ESTOPPED: stopped by a signal, all runs saved; AG_EFAIL: runs failed,
 * the results are there; AG_ECONFIG: dir holds runs of another configuration; AG_ELOCKED. */
int train_ablation_run(const train_ablation *a, const train_config *base, const char *dir,
                       int jobs, FILE *out, char **ret_table, char **ret_json, ag_err *err);

#endif
