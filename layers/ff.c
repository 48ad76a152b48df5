#include "layers/ff.h"

#include <math.h>

static bool is_share(double v) { return v >= 0 && v <= 1; }      /* false for NaN */

int64_t nn_ff_rank(const nn_ff_config *c, int64_t d_model)
{
    if (c->d_lowrank > 0) return c->d_lowrank;
    const int64_t r = (c->rank_rule == NN_RANK_BLOCKS ? c->d_ff : d_model) / c->block;
    return r > 0 ? r : 1;
}

static int check_sparse(const nn_ff_config *c, ag_err *err)
{
    if (c->block < 1 || c->d_ff % c->block)
        return ag_err_set(err, AG_ECONFIG, "feed-forward: ff.block = %lld must divide d_ff = %lld",
                          (long long)c->block, (long long)c->d_ff);
    if (c->d_lowrank < 0)
        return ag_err_set(err, AG_ECONFIG, "feed-forward: ff.d_lowrank = %lld must not be negative",
                          (long long)c->d_lowrank);
    if (!is_share(c->quant_prob))
        return ag_err_set(err, AG_ECONFIG, "feed-forward: ff.quant_prob = %g must be in [0, 1]",
                          c->quant_prob);
    if (!(c->temperature >= 0 && isfinite(c->temperature)))
        return ag_err_set(err, AG_ECONFIG, "feed-forward: ff.temperature = %g must not be negative",
                          c->temperature);
    if (c->candidates < 0 || c->candidates > c->block || c->quant_ramp < 0)
        return ag_err_set(err, AG_ECONFIG, "feed-forward: ff.candidates = %lld must be in [0, "
                          "ff.block = %lld], ff.quant_ramp = %lld not negative",
                          (long long)c->candidates, (long long)c->block, (long long)c->quant_ramp);
    if (c->coin_rows < 0)
        return ag_err_set(err, AG_ECONFIG, "feed-forward: ff.coin_rows = %lld must not be negative",
                          (long long)c->coin_rows);
    if (c->chooser == NN_CHOOSE_ORACLE && c->kind != NN_FF_SPARSE)
        return ag_err_set(err, AG_ECONFIG, "feed-forward: ff.choice: oracle takes the largest unit "
                          "of a block; it goes with ff.type: sparse only");
    if (c->chooser != NN_CHOOSE_CONTROLLER && (c->scaled || c->kind == NN_FF_SWITCH))
        return ag_err_set(err, AG_ECONFIG, "feed-forward: only ff.choice: controller has a "
                          "probability to multiply with (ff.scaled, ff.type: switch)");
    return AG_OK;
}

int nn_ff_check(const nn_ff_config *c, int64_t d_model, ag_err *err)
{
    if (d_model < 1 || c->d_ff < 1)
        return ag_err_set(err, AG_ECONFIG,
                          "feed-forward: d_model = %lld and d_ff = %lld must be at least 1",
                          (long long)d_model, (long long)c->d_ff);
    if (!(c->dropout >= 0 && c->dropout < 1))
        return ag_err_set(err, AG_ECONFIG, "feed-forward: dropout = %g must be in [0, 1)",
                          c->dropout);
    if (c->act < 0 || c->act >= AG_ACT_COUNT)
        return ag_err_set(err, AG_ECONFIG, "feed-forward: activation %d does not exist",
                          (int)c->act);
    return c->kind == NN_FF_DENSE ? AG_OK : check_sparse(c, err);
}

void nn_ff_build(nn_ff *l, nn_params *p, const char *name, int64_t d_model, const nn_ff_config *c)
{
    const size_t at = nn_push(p, "%s", name);
    *l = (nn_ff){ .config = *c, .d_model = d_model };
    if (c->kind != NN_FF_DENSE) {
        nn_sparse_ff_build(l, p);
    } else {
        const double gain = c->out_gain > 0 ? c->out_gain : 1;
        nn_linear_build(&l->in, p, "in", d_model, c->d_ff, c->bias_in,
                        nn_matrix_init(c->init_std, d_model, c->d_ff, 1));
        nn_linear_build(&l->out, p, "out", c->d_ff, d_model, c->bias_out,
                        nn_matrix_init(c->init_std, c->d_ff, d_model, gain));
    }
    nn_dropout_build(&l->drop, p, c->dropout);
    nn_pop(p, at);
}

ag_tensor *nn_ff_forward(const nn_ff *l, ag_tape *t, ag_tensor *x, ag_tensor *residual,
                         nn_mode mode)
{
    ag_tensor *y;
    ag_scope(t, "feed-forward", -1);
    if (l->config.kind != NN_FF_DENSE) {
        y = nn_sparse_ff_forward(l, t, x, residual, mode);
    } else {
        ag_tensor *h = nn_linear_forward(&l->in, t, x, l->config.act, NULL);
        y = nn_branch_end(&l->out, &l->drop, t, h, residual, mode);
    }
    ag_scope_end(t);
    return y;
}

/* --- counts ----------------------------------------------------------------------------------- */

static int64_t controller_params(const nn_ff *l)
{
    return (l->c1.weight ? l->c1.weight->size : 0) + (l->c2.weight ? l->c2.weight->size : 0) +
           (l->c2.bias ? l->c2.bias->size : 0);
}

/* Of W1, b1, W2, b2, with `units` of the units. */
static int64_t main_params(const nn_ff *l, int64_t units)
{
    const nn_ff_config *c = &l->config;
    return 2 * l->d_model * units + (c->bias_in ? units : 0) + (c->bias_out ? l->d_model : 0);
}

static int64_t live_units(const nn_ff *l)
{
    const nn_ff_config *c = &l->config;
    return c->kind == NN_FF_DENSE ? c->d_ff : c->d_ff / c->block;
}

/* Units whose W1 is read for nothing but the choice. */
static int64_t tried_units(const nn_ff *l)
{
    const nn_ff_config *c = &l->config;
    return c->kind != NN_FF_DENSE && c->chooser == NN_CHOOSE_ORACLE ? c->d_ff : 0;
}

int64_t nn_ff_params(const nn_ff *l)
{
    return controller_params(l) + main_params(l, l->config.d_ff);
}

int64_t nn_ff_touched(const nn_ff *l)
{
    const int64_t live = live_units(l), tried = tried_units(l);
    return controller_params(l) + main_params(l, live) +
           (tried ? (tried - live) * (l->d_model + l->config.bias_in) : 0);
}

int64_t nn_ff_products(const nn_ff *l)
{
    return l->d_model * (2 * live_units(l) + tried_units(l)) +
           (l->c1.weight ? l->c1.weight->size : 0) + (l->c2.weight ? l->c2.weight->size : 0);
}
