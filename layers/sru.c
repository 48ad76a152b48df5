#include "layers/sru.h"

int nn_sru_check(const nn_sru_config *c, ag_err *err)
{
    if (c->units < 0 || (c->units && (c->layers < 1 || c->layers > NN_SRU_LAYERS)))
        return ag_err_set(err, AG_ECONFIG, "sru: ff.sru_units = %lld must not be negative, and "
                          "ff.sru_layers = %lld be in [1, %d]", (long long)c->units,
                          (long long)c->layers, NN_SRU_LAYERS);
    return AG_OK;
}

static void dense_build(nn_linear *l, nn_params *p, const char *name, int64_t d_in, int64_t d_out)
{
    const size_t at = nn_push(p, "%s", name);
    l->weight = nn_param(p, "weight", AG_SHAPE(d_out, d_in), nn_glorot(d_in, d_out, 1));
    l->bias = nn_param(p, "bias", AG_SHAPE(d_out), nn_normal(1e-6));
    nn_pop(p, at);
}

void nn_sru_build(nn_sru *l, nn_params *p, const char *name, const nn_sru_config *c)
{
    *l = (nn_sru){ .config = *c };
    if (!c->units) return;
    const size_t at = nn_push(p, "%s", name);
    nn_norm_build(&l->norm, p, "norm", c->d_model, c->bias, c->norm_eps);
    dense_build(&l->in, p, "in", c->d_model, c->units);
    for (int i = 0; i < (int)c->layers; i++) {
        const size_t layer = nn_push(p, "layers/%d", i);
        dense_build(&l->gates[i], p, "gates", c->units, 3 * c->units);
        nn_pop(p, layer);
    }
    dense_build(&l->out, p, "out", c->units, c->d_model);
    nn_pop(p, at);
}

ag_tensor *nn_sru_forward(const nn_sru *l, ag_tape *t, ag_tensor *x, ag_tensor *residual,
                          ag_kv_cache *cache, int layer)
{
    if (!l->config.units) return residual;
    ag_scope(t, "sru", -1);
    ag_tensor *h = nn_linear_forward(&l->in, t, nn_norm_forward(&l->norm, t, x), AG_ACT_NONE, NULL);
    for (int i = 0; i < (int)l->config.layers; i++) {
        ag_tensor *z = nn_linear_forward(&l->gates[i], t, h, AG_ACT_NONE, NULL);
        h = cache ? ag_sru_cached(t, z, h, cache, layer, i) : ag_sru(t, z, h);
    }
    ag_tensor *y = nn_linear_forward(&l->out, t, h, AG_ACT_NONE, residual);
    ag_scope_end(t);
    return y;
}

int nn_sru_keep(const nn_sru *l, ag_kv_cache *cache)
{
    const nn_sru_config *c = &l->config;
    return c->units ? ag_kv_cache_keep_state(cache, (int)c->layers, c->units) : AG_OK;
}

int64_t nn_sru_products(const nn_sru *l)
{
    const nn_sru_config *c = &l->config;
    return 2 * c->d_model * c->units + 3 * c->layers * c->units * c->units;
}
