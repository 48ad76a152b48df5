/*
 * probe.h -- what the sparse feed-forward layers of a run do, seen at each evaluation: on the first
 * samples of the validation split, the same every time, so that two evaluations can be compared.
 */
#ifndef TRAIN_PROBE_H
#define TRAIN_PROBE_H

#include "layers/layers.h"

struct train_session;

typedef struct train_probe_layer {
    nn_ff   *ff;
    nn_ff_probe seen;
    int32_t *before;                 /* [rows,blocks]: the choices of the evaluation before */
} train_probe_layer;

typedef struct train_probe {
    int64_t rows;                    /* tokens or images that are looked at */
    int64_t samples;                 /* the same in sequences or images */
    int     n;
    bool    has_before;
    train_probe_layer *layer;        /* [n], the sparse ones */
} train_probe;

/* *ret_probe is NULL for a model without sparse layers.  AG_ENOMEM. */
int train_probe_new(const struct train_session *s, train_probe **ret_probe, ag_err *err);
void train_probe_free(train_probe *p);                   /* NULL is fine */

/*
 * Looks once: *ret_json, malloc'ed, is an object
 *   rows         tokens, of sources too, or images seen
 *   hard_loss    on them, as in evaluation; soft_loss: with all units times p (null where the layer
 *                has no soft form): their difference is what the choice costs the mixture
 *   layers       per layer: blocks, choices (per block), dead (never chosen),
 *                usage_entropy (of how often each is chosen, 1 = evenly; mean over blocks),
 *                controller_entropy (of p, nats, mean over rows and blocks; null without one),
 *                flips (share of choices that changed since the evaluation before; null at the
 *                first), used [blocks*choices] (how often each was chosen)
 * AG_EINTR: the session's stop was set; nothing has changed then. */
int train_probe_look(train_probe *p, struct train_session *s, char **ret_json, ag_err *err);

/* The choices to compare with, for the checkpoint: int32 of all layers one after the other. */
size_t train_probe_size(const train_probe *p);           /* bytes; 0 before the first look */
void   train_probe_save(const train_probe *p, int32_t *ret_choices);
int    train_probe_load(train_probe *p, const int32_t *choices, size_t size, ag_err *err);

#endif
