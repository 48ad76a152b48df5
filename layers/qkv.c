#include "layers/qkv.h"

#include <math.h>

static ag_tensor *small_bias(nn_params *p, int64_t n)
{
    return nn_param(p, "bias", AG_SHAPE(n), nn_normal(1e-6));
}

void nn_mult_build(nn_mult *l, nn_params *p, const char *name, int64_t d_in, int64_t d_out,
                   int64_t modules, bool bias)
{
    const int64_t each = (d_out + modules - 1) / modules, used = (d_out + each - 1) / each;
    const size_t at = nn_push(p, "%s", name);
    l->width = d_out;
    l->gates = nn_param(p, "gates", AG_SHAPE(used, d_in), nn_normal(0.5));
    l->weight = nn_param(p, "weight", AG_SHAPE(each, d_in), nn_glorot(d_in, each, 1));
    l->bias = bias ? small_bias(p, d_out) : NULL;
    nn_pop(p, at);
}

ag_tensor *nn_mult_forward(const nn_mult *l, ag_tape *t, ag_tensor *x)
{
    return ag_multiplicative(t, x, l->gates, l->weight, l->bias, l->width);
}

int64_t nn_mult_products(const nn_mult *l)
{
    return l->gates->size + l->width * l->weight->shape.dim[1];
}

/* --- maps ------------------------------------------------------------------------------------- */

static bool has_mult(nn_map_kind k)
{
    return k == NN_MAP_MULT || k == NN_MAP_MULTCONV || k == NN_MAP_MULTMOD;
}

static void linear_build(nn_linear *l, nn_params *p, const char *name, ag_shape shape,
                         nn_init init, int64_t n_bias)
{
    const size_t at = nn_push(p, "%s", name);
    l->weight = nn_param(p, "weight", shape, init);
    l->bias = small_bias(p, n_bias);
    nn_pop(p, at);
}

static void conv_build(nn_map *l, nn_params *p, const char *name)
{
    const nn_map_config *c = &l->config;
    const int64_t in = c->d_in / c->modules, out = c->d_out / c->modules, taps = c->taps * c->span;
    const double fan = (double)((in + out) * (c->fan ? taps : 1));
    linear_build(&l->out, p, name, AG_SHAPE(out, taps * in), nn_normal(sqrt(2 / fan)), out);
}

static void modular_build(nn_map *l, nn_params *p, const char *name)
{
    const nn_map_config *c = &l->config;
    const int64_t in = c->d_in / c->modules * c->span, out = c->d_out / c->modules;
    linear_build(&l->out, p, name, AG_SHAPE(c->d_out, in), nn_glorot(in, out, 1), c->d_out);
}

void nn_map_build(nn_map *l, nn_params *p, const char *name, const nn_map_config *c)
{
    *l = (nn_map){ .config = *c };
    const size_t at = nn_push(p, "%s", name);
    if (has_mult(c->kind))
        nn_mult_build(&l->mult, p, "mult", c->d_in, c->d_out, c->modules,
                      c->kind != NN_MAP_MULTMOD);
    switch (c->kind) {
    case NN_MAP_DENSE:
        nn_linear_build(&l->out, p, "dense", c->d_in, c->d_out, c->bias,
                        nn_matrix_init(c->init_std, c->d_in, c->d_out, c->gain));
        break;
    case NN_MAP_CONV:
    case NN_MAP_MULTCONV: conv_build(l, p, "conv"); break;
    case NN_MAP_MODULAR:
    case NN_MAP_MULTMOD:  modular_build(l, p, "modules"); break;
    case NN_MAP_LOWRANK:
        linear_build(&l->in, p, "low", AG_SHAPE(c->rank, c->d_in), nn_glorot(c->d_in, c->rank, 1),
                     c->rank);
        linear_build(&l->out, p, "high", AG_SHAPE(c->d_out, c->rank),
                     nn_glorot(c->rank, c->d_out, 1), c->d_out);
        break;
    case NN_MAP_NONE:
    case NN_MAP_MULT: break;
    }
    nn_pop(p, at);
}

ag_tensor *nn_map_convolve(const nn_map *l, ag_tape *t, ag_tensor *x, bool recalled)
{
    const nn_map_config *c = &l->config;
    const ag_module_conv_options o = { c->modules, c->taps, c->span, recalled };
    return ag_module_conv(t, x, l->out.weight, l->out.bias, &o);
}

ag_tensor *nn_map_forward(const nn_map *l, ag_tape *t, ag_tensor *x, const nn_past *past)
{
    const nn_map_config *c = &l->config;
    if (has_mult(c->kind)) x = nn_mult_forward(&l->mult, t, x);
    switch (c->kind) {
    case NN_MAP_CONV:
    case NN_MAP_MULTCONV:
        if (past) x = ag_recall(t, x, c->taps - 1, past->cache, past->layer, past->slot);
        return nn_map_convolve(l, t, x, past);
    case NN_MAP_MODULAR:
    case NN_MAP_MULTMOD:
        return ag_module_linear(t, x, l->out.weight, l->out.bias, c->modules, c->span);
    case NN_MAP_LOWRANK:
        x = nn_linear_forward(&l->in, t, x, AG_ACT_NONE, NULL);
        return nn_linear_forward(&l->out, t, x, AG_ACT_NONE, NULL);
    case NN_MAP_DENSE: return nn_linear_forward(&l->out, t, x, AG_ACT_NONE, NULL);
    default:           return x;
    }
}

int64_t nn_map_products(const nn_map *l)
{
    const nn_map_config *c = &l->config;
    const int64_t mult = has_mult(c->kind) ? nn_mult_products(&l->mult) : 0;
    switch (c->kind) {
    case NN_MAP_DENSE:    return c->d_in * c->d_out;
    case NN_MAP_CONV:
    case NN_MAP_MULTCONV: return mult + c->taps * c->span * c->d_in * c->d_out / c->modules;
    case NN_MAP_MODULAR:
    case NN_MAP_MULTMOD:  return mult + c->span * c->d_in * c->d_out / c->modules;
    case NN_MAP_LOWRANK:  return c->rank * (c->d_in + c->d_out);
    default:              return mult;
    }
}
