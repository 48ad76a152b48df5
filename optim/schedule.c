#include "optim/schedule.h"

#include <math.h>
#include <stdbool.h>

int opt_schedule_check(const opt_schedule *s, ag_err *err)
{
    const bool ends = s->shape == OPT_COSINE || s->shape == OPT_LINEAR;
    if (!(s->lr > 0) || !(s->min_lr >= 0) || (s->shape != OPT_CONSTANT && s->min_lr > s->lr))
        return ag_err_set(err, AG_ECONFIG,
                          "optim.lr = %g must be positive, schedule.min_lr = %g in [0, optim.lr]",
                          s->lr, s->min_lr);
    if (s->warmup_steps < 0)
        return ag_err_set(err, AG_ECONFIG, "schedule.warmup_steps = %lld must not be negative",
                          (long long)s->warmup_steps);
    if (ends && s->decay_steps < s->warmup_steps)
        return ag_err_set(err, AG_ECONFIG,
                          "schedule.decay_steps = %lld is below schedule.warmup_steps = %lld",
                          (long long)s->decay_steps, (long long)s->warmup_steps);
    return AG_OK;
}

/* In long double, so that the result is right to one unit in the last place. */
double opt_schedule_lr(const opt_schedule *s, int64_t step)
{
    const long double half_pi = 1.57079632679489661923132L, lr = s->lr, min = s->min_lr;
    const int64_t w = s->warmup_steps, end = s->decay_steps;
    if (step < w && s->shape == OPT_RSQRT) return s->lr;
    if (step < w) return (double)(lr * (long double)(step + 1) / (long double)(w + 1));
    if (step == w || s->shape == OPT_CONSTANT) return s->lr;
    if (s->shape == OPT_INVERSE_SQRT || s->shape == OPT_RSQRT)
        return fmax(s->min_lr,
                    (double)(lr * sqrtl((long double)(w > 1 ? w : 1) / (long double)step)));
    if (step >= end) return s->min_lr;
    const long double left = (long double)(end - step) / (long double)(end - w);     /* 1 - x */
    if (s->shape == OPT_LINEAR) return (double)(min + (lr - min) * left);
    const long double sine = sinl(half_pi * left);   /* sine^2 = (1 + cos(pi x)) / 2 */
    return (double)(min + (lr - min) * sine * sine);
}
