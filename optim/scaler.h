/*
 * scaler.h -- the scale of the loss, so that gradients are numbers that 16 bits hold
 * (Micikevicius et al. 2018, 1710.03740).
 *
 * The loss is multiplied by the scale before the walk back, the gradient by unscale = 1 / scale in
 * opt_step().  A gradient that is not finite means too large a scale: the step is skipped.  An
 * automaton that hears only of that finds the largest scale that works:
 *
 *   static    the scale stays
 *   dynamic   x growth after growth_interval finite steps in a row, unless that is no finite f32;
 *             x backoff after a step that is not finite: PyTorch's GradScaler, with a floor
 *   smooth    x growth^(1 / growth_interval) after each finite step, x backoff else: the rule of
 *             distribution_augmentation, the code published after the Sparse Transformer paper.
 *             There the gradient's bad elements are set to 0 and the step is taken; here it is
 *             skipped, as everywhere
 *
 * A loss that is not finite says nothing of the scale: its step is skipped and the scale stays.  So
 * data or weights gone bad cannot bring it down; OPT_SCALER_PATIENCE skips in a row end a run.
 */
#ifndef OPT_SCALER_H
#define OPT_SCALER_H

#include "autograd/base/error.h"

#include <stdbool.h>
#include <stdint.h>

enum { OPT_SCALER_PATIENCE = 25 };   /* skips in a row that end a run */

typedef enum opt_scaling {
    OPT_SCALING_NONE, OPT_SCALING_STATIC, OPT_SCALING_DYNAMIC, OPT_SCALING_SMOOTH
} opt_scaling;

typedef struct opt_scaler {
    opt_scaling type;                /* NONE: the scale is 1, and nothing may be skipped */
    double  growth, backoff, floor;  /* growth > 1, 0 < backoff < 1, least scale */
    int64_t growth_interval;         /* steps */
    /* the state */
    double  scale;                   /* dynamic: a float */
    int64_t finite_steps;            /* dynamic: in a row, since the scale last changed */
    int64_t skipped, skipped_in_row; /* steps, of the run and just now */
} opt_scaler;

/* AG_ECONFIG names the setting that does not fit. */
int opt_scaler_check(const opt_scaler *s, ag_err *err);

/* 1 / scale, rounded to f32 as GradScaler does. */
double opt_scaler_unscale(const opt_scaler *s);

typedef enum opt_outcome { OPT_FINITE, OPT_BAD_GRADIENT, OPT_BAD_LOSS } opt_outcome;

/* After a step, with what became of it; all but OPT_FINITE are skips. */
void opt_scaler_update(opt_scaler *s, opt_outcome what);

#endif
