/*
 * metrics.h -- how results are said: the lines of metrics.jsonl, and an evaluation in words.
 *
 * JSON has no word for what is not finite: a step that is skipped for its loss or its gradient has
 * null there.
 */
#ifndef TRAIN_METRICS_H
#define TRAIN_METRICS_H

#include "train/session.h"

enum { TRAIN_METRICS_MAX = 512 };    /* bytes of a line, with the NUL */

typedef struct train_step_metrics {  /* of a step, beside what the session counts */
    double loss, lr, norm;
    double seconds;                  /* of this process */
    const char *unit;                /* "tokens" or "images" */
    double per_second;               /* of these */
    size_t memory;                   /* bytes of the process, resident */
} train_step_metrics;

/* After the step: {"step":..., ...}, with loss_scale and skipped (steps of the run so far) where
 * the loss is scaled. */
void train_metrics_step(const train_session *s, const train_step_metrics *m,
                        char ret_line[TRAIN_METRICS_MAX]);

/* For JSON, with a prefix of the name: "\"val_bits_per_byte\":2.12,"; "" for images. */
const char *train_bits_json(const train_session *s, const char *prefix, double loss, char buf[64]);
/* The same of pairs: "\"val_seq_accuracy\":0.5,"; else "". */
const char *train_seq_json(const train_eval *e, const char *prefix, char buf[64]);
/* How to say a result: "loss 1.4697, perplexity 4.35, 2.120 bits per token". */
const char *train_eval_text(const train_session *s, const train_eval *e, char *buf, size_t size);

#endif
