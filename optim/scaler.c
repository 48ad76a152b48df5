#include "optim/scaler.h"

#include <math.h>

int opt_scaler_check(const opt_scaler *s, ag_err *err)
{
    if (!(s->floor >= 0) || !(s->scale > 0 && s->scale >= s->floor) || !isfinite((float)s->scale))
        return ag_err_set(err, AG_ECONFIG, "train.loss_scale_init = %g must be positive, a 32-bit "
                          "number and not below train.loss_scale_floor = %g", s->scale, s->floor);
    if (!(s->growth > 1 && s->backoff > 0 && s->backoff < 1))
        return ag_err_set(err, AG_ECONFIG, "train.loss_scale_growth = %g must be above 1, "
                          "train.loss_scale_backoff = %g in (0, 1)", s->growth, s->backoff);
    if (s->growth_interval < 1)
        return ag_err_set(err, AG_ECONFIG, "train.loss_scale_growth_interval = %lld must be "
                          "positive", (long long)s->growth_interval);
    return AG_OK;
}

double opt_scaler_unscale(const opt_scaler *s) { return (double)(float)(1 / s->scale); }

/* Grown, unless it would leave f32. */
static double grown(const opt_scaler *s, double by)
{
    return isfinite((float)(s->scale * by)) ? s->scale * by : s->scale;
}

static void grow(opt_scaler *s)
{
    if (s->type == OPT_SCALING_SMOOTH) {
        s->scale = grown(s, pow(s->growth, 1 / (double)s->growth_interval));
    } else if (s->type == OPT_SCALING_DYNAMIC && ++s->finite_steps == s->growth_interval) {
        s->scale = (double)(float)grown(s, s->growth);
        s->finite_steps = 0;
    }
}

static void back_off(opt_scaler *s)
{
    const double less = fmax(s->scale * s->backoff, s->floor);
    if (s->type == OPT_SCALING_SMOOTH) s->scale = less;
    if (s->type == OPT_SCALING_DYNAMIC) s->scale = (double)(float)less;
    s->finite_steps = 0;
}

void opt_scaler_update(opt_scaler *s, opt_outcome what)
{
    if (what == OPT_FINITE) grow(s);
    if (what == OPT_BAD_GRADIENT) back_off(s);
    s->skipped += what != OPT_FINITE;
    s->skipped_in_row = what == OPT_FINITE ? 0 : s->skipped_in_row + 1;
}
