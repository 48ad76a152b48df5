#include "layers/basic.h"

void nn_linear_build(nn_linear *l, nn_params *p, const char *name, int64_t d_in, int64_t d_out,
                     bool bias, nn_init init)
{
    const size_t at = nn_push(p, "%s", name);
    l->weight = nn_param(p, "weight", AG_SHAPE(d_out, d_in), init);
    l->bias = bias ? nn_param(p, "bias", AG_SHAPE(d_out), nn_constant(0)) : NULL;
    nn_pop(p, at);
}

ag_tensor *nn_linear_forward(const nn_linear *l, ag_tape *t, ag_tensor *x, ag_act act,
                             ag_tensor *residual)
{
    return ag_linear(t, x, l->weight, l->bias, act, residual);
}

void nn_norm_build(nn_norm *l, nn_params *p, const char *name, int64_t d, bool bias, double eps)
{
    const size_t at = nn_push(p, "%s", name);
    l->gain = nn_param(p, "gain", AG_SHAPE(d), nn_constant(1));
    l->bias = bias ? nn_param(p, "bias", AG_SHAPE(d), nn_constant(0)) : NULL;
    l->eps = eps;
    nn_pop(p, at);
}

ag_tensor *nn_norm_forward(const nn_norm *l, ag_tape *t, ag_tensor *x)
{
    return ag_layernorm(t, x, l->gain, l->bias, l->eps);
}

void nn_dropout_build(nn_dropout *l, nn_params *p, double probability)
{
    *l = (nn_dropout){ probability, nn_site(p) };
}

bool nn_dropout_is_on(const nn_dropout *l, nn_mode mode) { return mode == NN_TRAIN && l->p > 0; }

ag_tensor *nn_dropout_forward(const nn_dropout *l, ag_tape *t, ag_tensor *x, nn_mode mode)
{
    return nn_dropout_is_on(l, mode) ? ag_dropout(t, x, NULL, l->p, l->site) : x;
}

ag_tensor *nn_branch_end(const nn_linear *l, const nn_dropout *drop, ag_tape *t, ag_tensor *x,
                         ag_tensor *residual, nn_mode mode)
{
    if (!nn_dropout_is_on(drop, mode)) return nn_linear_forward(l, t, x, AG_ACT_NONE, residual);
    ag_tensor *y = nn_linear_forward(l, t, x, AG_ACT_NONE, NULL);
    return ag_dropout(t, y, residual, drop->p, drop->site);
}
