#include "layers/gpt.h"

#include <math.h>
#include <stdlib.h>

static int check_field(const char *name, int64_t value, int64_t most, ag_err *err)
{
    if (value >= 1 && value <= most) return AG_OK;
    return ag_err_set(err, AG_ECONFIG, "gpt: %s = %lld must be in [1, %lld]", name,
                      (long long)value, (long long)most);
}

int nn_gpt_check(const nn_gpt_config *c, ag_err *err)
{
    enum { MANY = 1 << 24 };
    int r = check_field("vocab", c->vocab, MANY, err);
    if (!r) r = check_field("context", c->context, MANY, err);
    if (!r) r = check_field("n_layers", c->n_layers, 1000, err);
    if (!r) r = check_field("n_heads", c->n_heads, 1024, err);
    if (!r) r = check_field("d_model", c->d_model, MANY, err);
    if (r) return r;
    if ((c->d_qk == 0 || c->d_v == 0) && c->d_model % c->n_heads)
        return ag_err_set(err, AG_ECONFIG,
                          "gpt: n_heads = %lld must divide d_model = %lld, or give d_qk and d_v",
                          (long long)c->n_heads, (long long)c->d_model);
    if (c->d_qk < 0 || c->d_v < 0 || c->d_qk > MANY || c->d_v > MANY)
        return ag_err_set(err, AG_ECONFIG, "gpt: d_qk = %lld and d_v = %lld must be in [0, %d]",
                          (long long)c->d_qk, (long long)c->d_v, MANY);
    if (!(c->dropout >= 0 && c->dropout < 1))
        return ag_err_set(err, AG_ECONFIG, "gpt: dropout = %g must be in [0, 1)", c->dropout);
    if (!(c->norm_eps > 0) || !(c->init_std >= 0))
        return ag_err_set(err, AG_ECONFIG,
                          "gpt: layer_norm_eps = %g must be positive, init_std = %g not negative",
                          c->norm_eps, c->init_std);
    return nn_ff_check(&c->ff, c->d_model, err);
}

static ag_tensor *block_forward(const nn_block *b, ag_tape *t, ag_tensor *x, nn_mode mode,
                                ag_kv_cache *cache, int layer)
{
    ag_scope(t, "block", layer);
    x = nn_attention_forward(&b->attention, t, nn_norm_forward(&b->norm1, t, x), x, mode, cache,
                             layer);
    x = nn_ff_forward(&b->ff, t, nn_norm_forward(&b->norm2, t, x), x, mode);
    ag_scope_end(t);
    return x;
}

static ag_tensor *gpt_logits(const nn_model *m, ag_tape *t, ag_tensor *ids, nn_mode mode,
                             ag_kv_cache *cache)
{
    const nn_gpt *g = (const nn_gpt *)m;
    ag_tensor *x =
        nn_embedding_forward(&g->embedding, t, ids, cache ? ag_kv_cache_length(cache) : 0);
    x = nn_dropout_forward(&g->drop, t, x, mode);
    for (int i = 0; i < (int)g->config.n_layers; i++)
        x = block_forward(&g->block[i], t, x, mode, cache, i);
    return nn_linear_forward(&g->head, t, nn_norm_forward(&g->norm, t, x), AG_ACT_NONE, NULL);
}

static ag_kv_cache *gpt_cache_new(const nn_model *m, int64_t batch)
{
    const nn_gpt_config *c = &((const nn_gpt *)m)->config;
    return ag_kv_cache_new(m->params->dtype, (int)c->n_layers, batch, c->context,
                           c->n_heads * c->d_qk, c->n_heads * c->d_v);
}

static nn_ff *gpt_ff_layer(const nn_model *m, int i)
{
    const nn_gpt *g = (const nn_gpt *)m;
    return i < g->config.n_layers ? &g->block[i].ff : NULL;
}

static void gpt_release(nn_model *m) { free(((nn_gpt *)m)->block); }

static void gpt_build(nn_gpt *g, nn_params *p)
{
    const nn_gpt_config *c = &g->config;
    const int64_t d = c->d_model;
    const nn_attention_config attention = {
        .d_model = d, .n_heads = c->n_heads, .d_qk = c->d_qk, .d_v = c->d_v, .bias = c->bias,
        .dropout = c->dropout, .init_std = c->init_std, .out_gain = c->ff.out_gain,
    };
    nn_embedding_build(&g->embedding, p, "embedding", c->vocab, c->context, d, c->init_std);
    nn_dropout_build(&g->drop, p, c->dropout);
    for (int i = 0; i < (int)c->n_layers; i++) {
        nn_block *b = &g->block[i];
        const size_t at = nn_push(p, "blocks/%d", i);
        nn_norm_build(&b->norm1, p, "norm1", d, c->bias, c->norm_eps);
        nn_attention_build(&b->attention, p, "attention", &attention);
        nn_norm_build(&b->norm2, p, "norm2", d, c->bias, c->norm_eps);
        nn_ff_build(&b->ff, p, "ff", d, &c->ff);
        nn_pop(p, at);
    }
    nn_norm_build(&g->norm, p, "norm", d, c->bias, c->norm_eps);
    if (c->tied) g->head = (nn_linear){ .weight = g->embedding.token };
    else
        nn_linear_build(&g->head, p, "head", d, c->vocab, false,
                        nn_matrix_init(c->init_std, d, c->vocab, 1));
}

/* A query sees (context + 1) / 2 keys on average. */
static nn_cost gpt_cost(const nn_gpt *g)
{
    const nn_gpt_config *c = &g->config;
    const nn_ff *ff = &g->block[0].ff;
    const int64_t heads = c->n_heads * (c->d_qk + c->d_v);
    const double attention = 0.5 * (double)(heads * (c->context + 1));
    const double layer = (double)(c->d_model * 2 * heads + nn_ff_products(ff)) + attention;
    const double products = (double)c->n_layers * layer + (double)(c->d_model * c->vocab);
    return (nn_cost){ g->model.params->n_used, c->n_layers * nn_ff_params(ff),
                      c->n_layers * nn_ff_touched(ff), 2 * products };
}

int nn_gpt_new(const nn_gpt_config *config, ag_dtype dtype, uint64_t seed, nn_model **ret_model,
               ag_err *err)
{
    const int bad = nn_gpt_check(config, err);
    if (bad) return bad;
    nn_gpt *g = calloc(1, sizeof *g);
    nn_block *block = calloc((size_t)config->n_layers, sizeof *block);
    nn_params *p = nn_params_new(dtype);
    if (!g || !block || !p) {
        free(g);
        free(block);
        nn_params_free(p);
        return ag_err_set(err, AG_ENOMEM, "out of memory for the model");
    }
    *g = (nn_gpt){ .config = *config, .block = block };
    g->model = (nn_model){ "gpt", p, config->vocab, { 0 }, gpt_logits, gpt_cache_new,
                             gpt_ff_layer, gpt_release };
    nn_gpt_config *c = &g->config;
    if (!c->d_qk) c->d_qk = c->d_model / c->n_heads;
    if (!c->d_v) c->d_v = c->d_model / c->n_heads;
    c->ff.init_std = c->init_std;
    c->ff.out_gain = 1 / sqrt(2 * (double)c->n_layers);
    gpt_build(g, p);
    const int r = nn_params_alloc(p, seed, err);
    if (r) {
        nn_model_free(&g->model);
        return r;
    }
    g->model.cost = gpt_cost(g);
    *ret_model = &g->model;
    return AG_OK;
}
