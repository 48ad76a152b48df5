/*
 * decode_time.h -- how long a model takes for a token, and what it reads for it.
 *
 * A token reads each weight that it touches once, so its time has a floor: bytes over bandwidth.
 * The bandwidth is that of reading all weights in order; a model that fits a cache is compared with
 * the cache.  Several sequences read the units that any of them chose: these are counted.
 */
#ifndef TRAIN_DECODE_TIME_H
#define TRAIN_DECODE_TIME_H

#include "train/session.h"

typedef struct train_decode_plan {
    int64_t batch;                   /* sequences, one token of each at a time */
    int64_t prompt, tokens;          /* of each sequence, together at most source and context; of a
                                      * model with a source the prompt is it and 4 tokens */
    int32_t *text;                   /* [batch, prompt + tokens], what they read */
    double  *seconds;                /* [tokens], scratch */
    ag_replay *replay;               /* filled in while tokens are timed */
} train_decode_plan;

typedef struct train_decode_time {   /* medians, in seconds */
    double  token, fastest, slowest; /* of a token of all sequences */
    double  prompt;                  /* per token of the prompt */
    int64_t touched;                 /* weights read by a token of all sequences */
    double  units;                   /* share of the sparse layers' units that any of them chose */
    double  random_units;            /* ... if each chose at random: 1 - (1 - 1/N)^batch; 0: there
                                      * are no sparse layers */
} train_decode_time;

/* Times p->tokens tokens, then looks at the choices of some.  AG_ENOMEM, AG_ERANGE. */
int train_decode_measure(train_session *s, const train_decode_plan *p, train_decode_time *ret,
                         ag_err *err);

/* Bytes per second of reading all weights, the best of some turns; on a device of copying them,
 * read and written.  AG_ENOMEM. */
int train_read_bandwidth(const nn_params *p, double *ret, ag_err *err);

#endif
