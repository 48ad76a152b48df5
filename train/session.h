/*
 * session.h -- a run in memory: configuration, data, model, optimizer and tape, and one step of
 * training.
 *
 * What a step computes is a function of (configuration, seed, step, weights): the samples of its
 * batch, the dropout masks, the Gumbel noise.  So the whole state of a run is the weights, the
 * optimizer's slots and a few counters, and a resumed run is the same run.
 *
 * A batch is cut into micro-batches whose activations stay in the cache; their gradients add up to
 * those of the batch, and their noise is that of the batch (ag_noise_key).
 */
#ifndef TRAIN_SESSION_H
#define TRAIN_SESSION_H

#include "autograd/autograd.h"
#include "autograd/device.h"
#include "data/data.h"
#include "layers/layers.h"
#include "optim/optim.h"
#include "optim/scaler.h"
#include "optim/schedule.h"
#include "train/config.h"
#include "train/probe.h"

#include <signal.h>

typedef struct train_eval {          /* over a validation split */
    double  loss;                    /* mean cross-entropy in nats per token or image */
    double  accuracy;                /* fraction of tokens or images predicted right */
    int64_t count;                   /* tokens or images */
    double  seq_accuracy;            /* pairs: fraction of targets with every token right, each told
                                      * the ones before it; else NAN */
    int64_t sequences;               /* pairs; else 0 */
} train_eval;

/* What of a step is still to come: a stop may fall between the step and its evaluation. */
typedef enum train_pending { TRAIN_DONE, TRAIN_SAMPLE_DUE, TRAIN_EVAL_DUE } train_pending;

typedef struct train_form {          /* what tokens stand for where they are no text */
    int64_t height, width, channels; /* of an image, which is one sequence; else 0 */
    int64_t rate;                    /* of sound, samples per second; else 0 */
} train_form;

/* Samples that were drawn while a GPU was busy with those before them. */
typedef struct train_ahead {
    data_draw w;
    int64_t   i0, n;                 /* which of the batch; n 0: none are drawn */
    int32_t  *ids, *targets;         /* as those of the session; NULL without a device */
    float    *pixels;
} train_ahead;

typedef struct train_session {
    train_config config;             /* with train.micro_batch filled in */
    data_set    *data;               /* NULL: opened without data (sampling) */
    data_tokenizer *tokenizer;       /* NULL: images, or tokens without a text; owned unless it is
                                      * the data's */
    train_form   form;
    const ag_device *device;         /* train.device; NULL: the CPU.  It outlives the session */
    nn_model    *model;
    nn_pattern_files patterns;       /* what the files of its attention pattern held */
    opt_state   *opt;                /* NULL: opened for evaluation */
    opt_schedule schedule;
    opt_scaler   scaler;             /* of the loss */
    ag_tape     *tape;               /* of train.precision: training and evaluation */
    ag_replay   *replay;             /* parts of steps that a GPU runs again; NULL: none does */
    ag_tape     *decoder;            /* f32, for samples; the same where that is the precision */
    int64_t      context, d_in;      /* targets of a sample (1: images); features of an image
                                      * (0: tokens) */
    int64_t      source;             /* columns of the source before them; 0: there is none */
    int64_t      step;               /* batches done; opt->step: but for those skipped */
    int64_t      samples_seen;       /* sequences or images trained on */
    double       best_loss;          /* lowest validation loss, NaN until there is one */
    int64_t      best_step;
    int64_t      pending;            /* a train_pending: what is left to do of this step */
    const volatile sig_atomic_t *stop;           /* set to 1: evaluation breaks off; may be NULL */
    int32_t     *ids, *targets;      /* [micro_batch, source + context], [micro_batch, context] */
    float       *pixels;             /* [micro_batch, d_in]; NULL: tokens */
    train_ahead  ahead;
    train_probe *probe;              /* of its sparse layers; NULL: none, or no optimizer */
    ag_inverse   inverse;            /* of the reversible stacks of the last step; its error where
                                      * train.verify_reversible is set */
} train_session;

typedef struct train_open {          /* what a session needs */
    bool data;
    bool optimizer;                  /* it trains: gradients, and what the optimizer keeps */
    bool plan;                       /* only what a step would need: weights are untouched zeros, a
                                      * gpt only */
    const data_tokenizer *tokenizer; /* of a checkpoint; NULL: the data's */
    int64_t classes, d_in;           /* of a checkpoint; 0: the data's */
    train_form form;                 /* of a checkpoint; used without data */
    nn_pattern_files *patterns;      /* of a checkpoint, taken over; NULL: files are read */
    bool plain_weights;              /* of a checkpoint, without optimizer: not their average */
    const char *device;              /* of a command: not the checkpoint's train.device but this
                                      * word; NULL: that */
    data_progress *progress;         /* told of a download; may be NULL */
    void *progress_arg;
} train_open;

/* Opens the data, builds the model with its initial weights, the optimizer and the tape.
 * AG_ECONFIG, AG_EINPUT, AG_EIO, AG_ENOMEM. */
int train_session_new(const train_config *c, const train_open *what, train_session **ret_s,
                      ag_err *err);
void train_session_free(train_session *s);               /* NULL is fine */

/* One optimizer step.  *ret_loss: the mean loss of the batch, *ret_norm: the norm of its gradient
 * before clipping.  Where one of them is not finite, the weights and the optimizer are as before:
 * with a scaled loss the step is skipped (s->scaler counts these); without, and where too many are
 * skipped in a row, AG_EDIVERGED, and the message names the op where it began. */
int train_session_step(train_session *s, double *ret_loss, double *ret_norm, ag_err *err);

/* Loss and accuracy over `batches` random batches of a split that are the same every time, or over
 * the whole split in order (batches = 0, or as many as it has), with overlap where train.eval_last
 * is set and batches 0.  With averaged weights where there are some.  AG_EINPUT: the split is
 * empty; AG_EDIVERGED: the loss is not finite; AG_EINTR: s->stop was set. */
int train_session_eval(train_session *s, int split, int64_t batches, train_eval *ret_eval,
                       ag_err *err);

/* Mean loss of the first `samples` of the validation split, in one mode, with averaged weights
 * where there are some.  As train_session_eval. */
int train_session_first_loss(train_session *s, int64_t samples, nn_mode mode, double *ret_loss,
                             ag_err *err);

/* Exchanges the weights and their moving average, if there is one: around evaluation and
 * sampling. */
void train_session_swap_ema(train_session *s);

/* SHA-256 of weights, state of the optimizer and the scaler, and counters, 64 hex digits. */
void train_session_hash(const train_session *s, char ret_hex[65]);

/* Was it trained on pairs of a source and a target, apart or in a row? */
bool train_session_of_pairs(const train_session *s);

/* Is a token a byte, so that the loss is one in nats per byte? */
bool train_session_of_bytes(const train_session *s);

/* The learning rate of the next step. */
double train_session_lr(const train_session *s);

#endif
