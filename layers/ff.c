#include "layers/ff.h"

#include "autograd/op.h"

#include <math.h>

static bool is_share(double v) { return v >= 0 && v <= 1; }      /* false for NaN */

int64_t nn_ff_rank(const nn_ff_config *c, int64_t d_model)
{
    if (c->d_lowrank > 0) return c->d_lowrank;
    const int64_t r = (c->rank_rule == NN_RANK_BLOCKS ? c->d_ff : d_model) / c->block;
    return r > 0 ? r : 1;
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
    if (!c->sparse) return AG_OK;
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
    return AG_OK;
}

/* Glorot uniform matrices on their two-dimensional shapes; biases start at N(0, 1e-6), as the
 * released code. */
static void sparse_linear(nn_linear *l, nn_params *p, const char *name, int64_t d_in, int64_t d_out,
                          bool bias, double gain)
{
    const size_t at = nn_push(p, "%s", name);
    l->weight = nn_param(p, "weight", AG_SHAPE(d_out, d_in), nn_glorot(d_in, d_out, gain));
    l->bias = bias ? nn_param(p, "bias", AG_SHAPE(d_out), nn_normal(1e-6)) : NULL;
    nn_pop(p, at);
}

static void sparse_build(nn_ff *l, nn_params *p)
{
    const nn_ff_config *c = &l->config;
    const double gain = c->kernel_scaling ? sqrt((double)c->block) : 1;
    sparse_linear(&l->c1, p, "c1", l->d_model, c->d_lowrank, false, 1);
    sparse_linear(&l->c2, p, "c2", c->d_lowrank, c->d_ff, c->controller_bias, 1);
    sparse_linear(&l->in, p, "in", l->d_model, c->d_ff, c->bias_in, 1);
    sparse_linear(&l->out, p, "out", c->d_ff, l->d_model, c->bias_out, gain);
    l->noise_site = nn_site(p);
    l->coin_site = nn_site(p);
}

void nn_ff_build(nn_ff *l, nn_params *p, const char *name, int64_t d_model, const nn_ff_config *c)
{
    const size_t at = nn_push(p, "%s", name);
    *l = (nn_ff){ .config = *c, .d_model = d_model };
    if (c->sparse) {
        l->config.d_lowrank = nn_ff_rank(c, d_model);
        sparse_build(l, p);
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

/* Heads or tails of this layer in this step. */
static bool step_is_hard(const nn_ff *l, const ag_tape *t)
{
    const ag_noise z = ag_noise_for(t, l->coin_site, 0);
    return (double)ag_uniform(ag_noise_bits(z.seed, z.step, z.site, 0)) < l->config.quant_prob;
}

static ag_tensor *mask_make(const nn_ff *l, ag_tape *t, ag_tensor *x, nn_mode mode)
{
    const nn_ff_config *c = &l->config;
    const bool train = mode == NN_TRAIN;
    const ag_controller_options o = {
        .n = c->block, .relaxed = c->relaxed, .hard = !train || step_is_hard(l, t),
        .temperature = train ? c->temperature : 0, .site = l->noise_site,
    };
    ag_tensor *low =
        nn_linear_forward(&l->c1, t, x, c->controller_relu ? AG_ACT_RELU : AG_ACT_NONE, NULL);
    return ag_control(t, nn_linear_forward(&l->c2, t, low, AG_ACT_NONE, NULL), &o, NULL);
}

ag_tensor *nn_ff_forward(const nn_ff *l, ag_tape *t, ag_tensor *x, ag_tensor *residual,
                         nn_mode mode)
{
    const nn_ff_config *c = &l->config;
    ag_tensor *h;
    ag_scope(t, "feed-forward", -1);
    if (c->sparse) {
        ag_tensor *mask = mask_make(l, t, x, mode);
        ag_tensor *a = nn_linear_forward(&l->in, t, x, AG_ACT_NONE, NULL);
        h = c->mask_order == NN_MASK_BEFORE_RELU ? ag_mask_relu(t, a, mask)
                                                 : ag_relu_mask(t, a, mask);
    } else {
        h = nn_linear_forward(&l->in, t, x, c->act, NULL);
    }
    ag_tensor *y = nn_branch_end(&l->out, &l->drop, t, h, residual, mode);
    ag_scope_end(t);
    return y;
}

/* --- counts ----------------------------------------------------------------------------------- */

static int64_t controller_params(const nn_ff *l)
{
    const nn_ff_config *c = &l->config;
    if (!c->sparse) return 0;
    return c->d_lowrank * (l->d_model + c->d_ff) + (c->controller_bias ? c->d_ff : 0);
}

/* Of W1, b1, W2, b2, with `units` of the units. */
static int64_t main_params(const nn_ff *l, int64_t units)
{
    const nn_ff_config *c = &l->config;
    return 2 * l->d_model * units + (c->bias_in ? units : 0) + (c->bias_out ? l->d_model : 0);
}

int64_t nn_ff_params(const nn_ff *l)
{
    return controller_params(l) + main_params(l, l->config.d_ff);
}

int64_t nn_ff_touched(const nn_ff *l)
{
    const nn_ff_config *c = &l->config;
    return controller_params(l) + main_params(l, c->sparse ? c->d_ff / c->block : c->d_ff);
}

int64_t nn_ff_products(const nn_ff *l)
{
    const nn_ff_config *c = &l->config;
    return 2 * l->d_model * c->d_ff + (c->sparse ? c->d_lowrank * (l->d_model + c->d_ff) : 0);
}
