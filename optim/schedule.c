#include "optim/schedule.h"

#include <math.h>
#include <stdbool.h>

int opt_schedule_check(const opt_schedule *s, ag_err *err)
{
    const bool ends = s->shape == OPT_COSINE || s->shape == OPT_LINEAR;
    if (!(s->lr > 0) || !(s->min_lr >= 0) || (s->shape != OPT_CONSTANT && s->min_lr > s->lr))
        return ag_err_set(err, AG_ECONFIG, "optim.lr = %g must be positive, and schedule.min_lr = %g in [0, optim.lr]",
                          s->lr, s->min_lr);
    if (s->warmup_steps < 0)
        return ag_err_set(err, AG_ECONFIG, "schedule.warmup_steps = %lld must not be negative",
                          (long long)s->warmup_steps);
    if (ends && s->decay_steps < s->warmup_steps)
        return ag_err_set(err, AG_ECONFIG, "schedule.decay_steps = %lld must not be below schedule.warmup_steps = "
                          "%lld", (long long)s->decay_steps, (long long)s->warmup_steps);
    return AG_OK;
}

double opt_schedule_lr(const opt_schedule *s, int64_t step)
{
    const double pi = 3.14159265358979323846, lr = s->lr, min = s->min_lr;
    const int64_t w = s->warmup_steps, end = s->decay_steps;
    if (step < w) return lr * (double)(step + 1) / (double)(w + 1);
    if (step == w || s->shape == OPT_CONSTANT) return lr;
    if (s->shape == OPT_INVERSE_SQRT)
        return fmax(min, lr * sqrt((double)(w > 1 ? w : 1) / (double)(step > 1 ? step : 1)));
    if (step >= end) return min;
    const double x = (double)(step - w) / (double)(end - w);
    return min + (lr - min) * (s->shape == OPT_LINEAR ? 1 - x : 0.5 * (1 + cos(pi * x)));
}
