/*
 * adafactor.h -- Adafactor (Shazeer and Stern 2018, 1804.04235) as trax computes it: second moments
 * of rows and columns in place of those of every weight.
 *
 * Matrices are the last two axes of a range, one for each index of the axes before.  With g the
 * clipped gradient, t = 0, 1, ... the step, beta = 1 - (t + 1)^-decay_rate and mix = 1 - beta:
 *
 *   matrices   vr = beta vr + mix mean(g^2 of a row)     vc = beta vc + mix mean(g^2 of a column)
 *              y = g sqrt(mean(vr) / (vr + eps1)) / sqrt(vc + eps1)
 *   vectors    v = beta v + mix g^2                      y = g / sqrt(v + eps1)
 *   a range    y = y / max(1, rms(y) / clip_threshold)
 *              rate = lr max(rms(p), eps2)               or lr, without parameter_scale
 *   momentum   m = momentum m + (1 - momentum) rate y    (off: m = rate y)
 *   update     p = (1 - wd) p - m,   wd = weight_decay, or falling to 0 in weight_decay_steps:
 *              weight_decay max(weight_decay_steps - t, 0) / weight_decay_steps
 *
 * Means and root mean squares are summed in f64, in parts of whole rows and in a fixed order.
 */
#ifndef OPT_ADAFACTOR_H
#define OPT_ADAFACTOR_H

#include "optim/optim.h"

typedef struct opt_adafactor opt_adafactor;

/* AG_ECONFIG names the setting that does not fit. */
int opt_adafactor_check(const opt_config *c, ag_err *err);

/* What the step works in, for an optimizer that has its ranges and slots.  NULL: out of memory. */
opt_adafactor *opt_adafactor_new(const opt_state *o);
void   opt_adafactor_free(opt_adafactor *a);             /* NULL is fine */
size_t opt_adafactor_bytes(const opt_adafactor *a);

/* One step with the gradient clip * g, which is finite; g is zero afterwards. */
void opt_adafactor_step(opt_state *o, double lr, double clip, float *p, float *g);
/* The same on a device, where the gate decides; with the average of the weights. */
void opt_adafactor_on_device(opt_state *o, double lr, const ag_flat_gate *gate, float *p, float *g);

#endif
