#include "layers/mlp.h"

#include <stdlib.h>

int nn_mlp_check(const nn_mlp_config *c, ag_err *err)
{
    enum { MANY = 1 << 24 };
    if (c->d_in < 1 || c->d_in > MANY || c->d_hidden < 1 || c->d_hidden > MANY)
        return ag_err_set(err, AG_ECONFIG,
                          "mlp: d_in = %lld and d_hidden = %lld must be in [1, %d]",
                          (long long)c->d_in, (long long)c->d_hidden, MANY);
    if (c->classes < 1 || c->classes > MANY)
        return ag_err_set(err, AG_ECONFIG, "mlp: classes = %lld must be in [1, %d]",
                          (long long)c->classes, MANY);
    if (c->n_layers < 1 || c->n_layers > 1000)
        return ag_err_set(err, AG_ECONFIG, "mlp: n_layers = %lld must be in [1, 1000]",
                          (long long)c->n_layers);
    if (!(c->init_std >= 0))
        return ag_err_set(err, AG_ECONFIG, "mlp: init_std = %g must not be negative", c->init_std);
    return nn_ff_check(&c->ff, c->d_hidden, err);
}

static ag_tensor *mlp_logits(const nn_model *model, ag_tape *t, ag_tensor *x, nn_mode mode,
                             ag_kv_cache *cache)
{
    (void)cache;
    const nn_mlp *m = (const nn_mlp *)model;
    x = nn_linear_forward(&m->in, t, x, AG_ACT_NONE, NULL);
    for (int i = 0; i < (int)m->config.n_layers; i++) {
        ag_scope(t, "layer", i);
        x = nn_ff_forward(&m->ff[i], t, x, NULL, mode);
        ag_scope_end(t);
    }
    return nn_linear_forward(&m->out, t, x, AG_ACT_NONE, NULL);
}

static nn_ff *mlp_ff_layer(const nn_model *model, int i)
{
    const nn_mlp *m = (const nn_mlp *)model;
    return i < m->config.n_layers ? &m->ff[i] : NULL;
}

static void mlp_release(nn_model *m) { free(((nn_mlp *)m)->ff); }

static void mlp_build(nn_mlp *m, nn_params *p)
{
    const nn_mlp_config *c = &m->config;
    nn_linear_build(&m->in, p, "in", c->d_in, c->d_hidden, c->bias,
                    nn_matrix_init(c->init_std, c->d_in, c->d_hidden, 1));
    for (int i = 0; i < (int)c->n_layers; i++) {
        const size_t at = nn_push(p, "layers/%d", i);
        nn_ff_build(&m->ff[i], p, "ff", c->d_hidden, &c->ff);
        nn_pop(p, at);
    }
    nn_linear_build(&m->out, p, "out", c->d_hidden, c->classes, c->bias,
                    nn_matrix_init(c->init_std, c->d_hidden, c->classes, 1));
}

static nn_cost mlp_cost(const nn_mlp *m)
{
    const nn_mlp_config *c = &m->config;
    const int64_t products =
        c->d_hidden * (c->d_in + c->classes) + c->n_layers * nn_ff_products(m->ff);
    const int64_t all = m->model.params->n_used, ff = c->n_layers * nn_ff_params(m->ff),
        live = c->n_layers * nn_ff_touched(m->ff);
    return (nn_cost){ .params = all, .ff_params = ff, .ff_touched = live,
                      .flops = 2 * (double)products, .touched = all - ff + live,
                      .head_params = c->classes * (c->d_hidden + c->bias), .d_ff = c->ff.d_ff };
}

int nn_mlp_new(const nn_mlp_config *config, ag_dtype dtype, uint64_t seed, nn_model **ret_model,
               ag_err *err)
{
    const int bad = nn_mlp_check(config, err);
    if (bad) return bad;
    nn_mlp *m = calloc(1, sizeof *m);
    nn_ff *ff = calloc((size_t)config->n_layers, sizeof *ff);
    nn_params *p = nn_params_new(dtype);
    if (!m || !ff || !p) {
        free(m);
        free(ff);
        nn_params_free(p);
        return ag_err_set(err, AG_ENOMEM, "out of memory for the model");
    }
    *m = (nn_mlp){ .model = { .kind = "mlp", .params = p, .classes = config->classes,
                             .logits = mlp_logits, .ff_layer = mlp_ff_layer,
                             .release = mlp_release },
                   .config = *config, .ff = ff };
    m->config.ff.init_std = config->init_std;
    m->config.ff.out_gain = 1;
    mlp_build(m, p);
    const int r = nn_params_alloc(p, seed, err);
    if (r) {
        nn_model_free(&m->model);
        return r;
    }
    m->model.cost = mlp_cost(m);
    *ret_model = &m->model;
    return AG_OK;
}
