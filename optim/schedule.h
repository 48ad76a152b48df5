/*
 * schedule.h -- the learning rate as a function of the step.
 *
 * Steps count from 0; W warm-up steps, D the step at which the decay ends, lr the highest and min
 * the lowest rate.
 *
 *   step < W       lr * (step + 1) / (W + 1)                       no step is wasted on a rate of 0
 *   then, with x = (step - W) / (D - W), and min from step D on:
 *   cosine         min + (lr - min) * (1 + cos(pi x)) / 2
 *   linear         min + (lr - min) * (1 - x)
 *   inverse_sqrt   max(min, lr * sqrt(max(W,1) / max(step,1)))     has no end
 *   rsqrt          max(min, lr * sqrt(max(W,1) / max(step,W,1)))   has no end, and lr up to W: as
 *                  trax's "constant * rsqrt_decay" c / sqrt(max(step, W)) with lr = c / sqrt(W)
 *   constant       lr
 *
 * At step W all of them give lr exactly, at D and after it cosine and linear give min exactly.
 */
#ifndef OPT_SCHEDULE_H
#define OPT_SCHEDULE_H

#include "autograd/base/error.h"
#include <stdint.h>

typedef enum opt_shape { OPT_COSINE, OPT_LINEAR, OPT_INVERSE_SQRT, OPT_RSQRT, OPT_CONSTANT }
    opt_shape;

typedef struct opt_schedule {
    opt_shape shape;
    double    lr, min_lr;
    int64_t   warmup_steps, decay_steps;
} opt_schedule;

int    opt_schedule_check(const opt_schedule *s, ag_err *err);   /* AG_ECONFIG names the settings */
double opt_schedule_lr(const opt_schedule *s, int64_t step);

#endif
