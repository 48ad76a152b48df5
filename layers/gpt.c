#include "layers/gpt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int check_field(const char *name, int64_t value, int64_t most, ag_err *err)
{
    if (value >= 1 && value <= most) return AG_OK;
    return ag_err_set(err, AG_ECONFIG, "gpt: %s = %lld must be in [1, %lld]", name,
                      (long long)value, (long long)most);
}

/* How much larger the weights of a matrix that reads d_in features are than those of one that reads
 * d_model. */
static double init_ratio(const nn_gpt_config *c, int64_t d_in)
{
    if (c->init == NN_INIT_STD) return 1;
    return nn_rule_std(c->init, 0, d_in) / nn_rule_std(c->init, 0, c->d_model);
}

static void fill_init(nn_gpt_config *c)
{
    const double gain = 1 / sqrt(2 * (double)c->n_layers);
    const double std = nn_rule_std(c->init, c->init_std, c->d_model);
    const int axes = nn_position_axes(c->embedding.position.type);
    c->attention.init_std = c->ff.init_std = c->head.init_std = std;
    c->attention.out_gain = gain * init_ratio(c, c->n_heads * c->d_v);
    c->ff.out_gain = gain * init_ratio(c, c->ff.d_ff);
    c->embedding.token_std = nn_rule_embedding_std(c->init, c->init_std, c->d_model, 1);
    c->embedding.position.std =
        nn_rule_embedding_std(c->init, c->init_std, c->d_model, axes ? axes : 1);
}

nn_gpt_config nn_gpt_filled(const nn_gpt_config *config)
{
    nn_gpt_config c = *config;
    if (!c.d_qk) c.d_qk = c.d_model / c.n_heads;
    if (!c.d_v) c.d_v = c.d_model / c.n_heads;
    if (!(c.final_norm_eps > 0)) c.final_norm_eps = c.norm_eps;
    nn_attention_config *a = &c.attention;
    a->d_model = c.d_model;
    a->n_heads = c.n_heads;
    a->d_qk = c.d_qk;
    a->d_v = c.d_v;
    a->bias = c.bias;
    a->dropout = c.dropout;
    a->lsh.length = c.context;
    c.sru.d_model = c.d_model;
    c.sru.bias = c.bias;
    c.sru.norm_eps = c.norm_eps;
    c.head.d_model = c.streams.concatenate ? 2 * c.d_model : c.d_model;
    c.head.vocab = c.vocab;
    c.embedding.vocab = c.vocab;
    c.embedding.d_model = c.d_model;
    c.embedding.position.context = c.context;
    c.embedding.position.d_model = c.d_model;
    fill_init(&c);
    return c;
}

nn_block_config nn_gpt_block(const nn_gpt_config *c)
{
    return (nn_block_config){ .attention = c->attention, .ff = c->ff, .sru = c->sru,
                              .norm_eps = c->norm_eps };
}

/* Dropout, norms and init. */
static int check_numbers(const nn_gpt_config *c, ag_err *err)
{
    if (!(c->dropout >= 0 && c->dropout < 1))
        return ag_err_set(err, AG_ECONFIG, "gpt: dropout = %g must be in [0, 1)", c->dropout);
    if (!(c->embedding_dropout >= 0 && c->embedding_dropout < 1))
        return ag_err_set(err, AG_ECONFIG, "gpt: embedding_dropout = %g must be in [0, 1)",
                          c->embedding_dropout);
    if (!(c->norm_eps > 0) || !(c->final_norm_eps >= 0) || !(c->init_std >= 0))
        return ag_err_set(err, AG_ECONFIG,
                          "gpt: layer_norm_eps = %g must be positive, final_norm_eps = %g and "
                          "init_std = %g not negative", c->norm_eps, c->final_norm_eps,
                          c->init_std);
    return AG_OK;
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
    r = check_numbers(c, err);
    if (r) return r;
    if (c->tied && c->head.type != NN_HEAD_DENSE)
        return ag_err_set(err, AG_ECONFIG, "gpt: a sparse head has weights of its own: set "
                          "tied_embeddings = false, or head.type = dense");
    if (c->head.zero && (c->tied || c->head.type != NN_HEAD_DENSE))
        return ag_err_set(err, AG_ECONFIG, "gpt: head.zero is for a dense head with weights of its "
                          "own: set tied_embeddings = false and head.type = dense");
    if (c->streams.concatenate && (c->tied || c->streams.kind == NN_STREAMS_ONE))
        return ag_err_set(err, AG_ECONFIG, "gpt: two streams side by side need an output layer of "
                          "their own: set tied_embeddings = false, or reversible_output = average");
    r = nn_streams_check(&c->streams, err);
    if (r) return r;
    const nn_gpt_config f = nn_gpt_filled(c);
    r = nn_embedding_check(&f.embedding, err);
    if (!r) r = nn_attention_check(&f.attention, err);
    if (!r) r = nn_head_check(&f.head, err);
    if (!r) r = nn_sru_check(&f.sru, err);
    return r ? r : nn_ff_check(&c->ff, c->d_model, err);
}

typedef struct run { const nn_gpt *gpt; ag_kv_cache *cache; nn_mode mode; } run;

static ag_tensor *run_block(const void *arg, ag_tape *t, ag_tensor *const *x, int i)
{
    const run *r = arg;
    return nn_block_forward(&r->gpt->block[i], t, x[0], NULL, r->mode, r->cache, i);
}

/* Both streams begin as x (ReformerLM of the released code, which concatenates them at the end). */
static ag_tensor *two_streams(const nn_gpt *g, ag_tape *t, ag_tensor *x, nn_mode mode,
                              ag_kv_cache *cache)
{
    const nn_streams_config *c = &g->config.streams;
    const nn_reversible r = { .block = g->block, .n = (int)g->config.n_layers, .streams = *c };
    ag_tensor *b, *a =
        nn_reversible_forward(&r, t, &(nn_pass){ .mode = mode, .cache = cache }, x, x, &b);
    ag_tensor *y = c->concatenate ? ag_module_concat(t, a, b, 1)
                                  : ag_scale(t, ag_add(t, a, b), 0.5);
    y = nn_norm_forward(&g->norm, t, y);
    if (c->concatenate) y = nn_dropout_forward(&g->drop_out, t, y, mode);
    return nn_head_forward(&g->head, t, y, mode);
}

static ag_tensor *gpt_logits(const nn_model *m, ag_tape *t, ag_tensor *ids, nn_mode mode,
                             ag_kv_cache *cache)
{
    const nn_gpt *g = (const nn_gpt *)m;
    ag_scope(t, "embedding", -1);
    ag_tensor *x = nn_embedding_forward(&g->embedding, t, ids,
                                        cache ? ag_kv_cache_length(cache) : 0, mode);
    x = nn_dropout_forward(&g->drop, t, x, mode);
    ag_scope_end(t);
    if (g->config.streams.kind != NN_STREAMS_ONE) return two_streams(g, t, x, mode, cache);
    const run r = { g, cache, mode };
    x = nn_stack_forward(&(nn_stack){ run_block, &r, sizeof r, (int)g->config.n_layers, 1, 0 }, t,
                         &x, m->recompute);
    return nn_head_forward(&g->head, t, nn_norm_forward(&g->norm, t, x), mode);
}

static ag_kv_cache *gpt_cache_new(const nn_model *m, int64_t batch)
{
    const nn_gpt *g = (const nn_gpt *)m;
    const nn_gpt_config *c = &g->config;
    ag_kv_cache *cache = ag_kv_cache_new(m->params->device, m->params->dtype, (int)c->n_layers,
                                         batch, c->context,
                                         c->n_heads * c->d_qk, c->n_heads * c->d_v);
    if (cache && nn_block_keep(&g->block[0], cache)) {
        ag_kv_cache_free(cache);
        return NULL;
    }
    return cache;
}

static nn_ff *gpt_ff_layer(const nn_model *m, int i)
{
    const nn_gpt *g = (const nn_gpt *)m;
    return i < g->config.n_layers ? &g->block[i].ff : NULL;
}

static void gpt_release(nn_model *m)
{
    free(((nn_gpt *)m)->block);
    nn_patterns_free(((nn_gpt *)m)->patterns);
}

/* What layer i sees; NULL: all earlier keys. */
static const ag_pattern *pattern_of(const nn_gpt *g, int64_t i)
{
    return g->patterns ? nn_patterns_of(g->patterns, i)->keys : NULL;
}

static void gpt_build(nn_gpt *g, nn_params *p)
{
    const nn_gpt_config *c = &g->config;
    nn_embedding_build(&g->embedding, p, "embedding", &c->embedding);
    nn_dropout_build(&g->drop, p, c->embedding_dropout);
    for (int i = 0; i < (int)c->n_layers; i++) {
        nn_block_config block = nn_gpt_block(c);
        const size_t at = nn_push(p, "blocks/%d", i);
        block.attention.pattern = pattern_of(g, i);
        nn_block_build(&g->block[i], p, &block);
        nn_pop(p, at);
    }
    nn_norm_build(&g->norm, p, "norm", c->head.d_model, c->bias, c->final_norm_eps);
    if (c->streams.concatenate) nn_dropout_build(&g->drop_out, p, c->dropout);
    nn_head_build(&g->head, p, "head", &c->head, c->tied ? g->embedding.token : NULL);
}

static nn_cost cost_of(const nn_gpt *g)
{
    const nn_gpt_config *c = &g->config;
    const nn_params *p = g->model.params;
    const nn_block *b = &g->block[0];
    double products = (double)(c->n_layers * nn_block_products(b)) +
                      (double)nn_head_products(&g->head) +
                      (double)nn_embedding_products(&g->embedding);
    for (int64_t i = 0; i < c->n_layers; i++)
        products += nn_attention_pairs(&g->block[i].attention, c->context) / (double)c->context;
    const int64_t ff = c->n_layers * nn_ff_params(&b->ff),
        live = c->n_layers * nn_ff_touched(&b->ff);
    const int64_t unread = nn_embedding_unread(&g->embedding, c->tied) + nn_head_beside(&g->head);
    return (nn_cost){ .params = p->n_used, .ff_params = ff, .ff_touched = live,
                      .flops = 2 * products, .touched = p->n_used - ff + live - unread,
                      .attention_params = c->n_layers * nn_params_below(p, "blocks/0/attention/"),
                      .head_params = nn_params_below(p, "head/"), .d_ff = c->ff.d_ff,
                      .pattern_bytes = g->patterns ? nn_patterns_bytes(g->patterns) : 0 };
}

/* Checked and laid out, without memory for the parameters. */
static int plan(const nn_gpt_config *config, ag_dtype dtype, nn_gpt **ret_g, ag_err *err)
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
    *g = (nn_gpt){ .config = nn_gpt_filled(config), .block = block };
    g->config.pattern = NULL;        /* the caller's */
    g->config.files = NULL;
    g->model = (nn_model){ .kind = "gpt", .params = p, .classes = config->vocab,
                           .start = config->embedding.start,
                           .logits = gpt_logits, .cache_new = gpt_cache_new,
                           .ff_layer = gpt_ff_layer, .release = gpt_release };
    if (config->streams.kind == NN_STREAMS_ONE)
        g->model.stack[0] = (nn_blocks){ "layers", (int)config->n_layers };
    int r = config->pattern ? nn_patterns_new(&g->patterns, config->pattern, config->context,
                                              config->n_layers, config->n_heads, config->files, err)
                            : AG_OK;
    if (r == AG_OK) gpt_build(g, p);
    if (r == AG_OK && p->err.code) r = ag_err_set(err, p->err.code, "%s", p->err.msg);
    if (r < 0) {
        nn_model_free(&g->model);
        return r;
    }
    g->model.cost = cost_of(g);
    *ret_g = g;
    return AG_OK;
}

int nn_gpt_new(const nn_gpt_config *config, ag_dtype dtype, uint64_t seed, nn_model **ret_model,
               ag_err *err)
{
    nn_gpt *g;
    const int r = plan(config, dtype, &g, err);
    return r ? r : nn_model_fill(&g->model, seed, ret_model, err);
}

int nn_gpt_plan(const nn_gpt_config *config, ag_dtype dtype, nn_model **ret_model, ag_err *err)
{
    nn_gpt *g;
    const int r = plan(config, dtype, &g, err);
    return r ? r : nn_model_lay_out(&g->model, ret_model, err);
}

int nn_gpt_cost(const nn_gpt_config *config, nn_cost *ret_cost, ag_err *err)
{
    nn_gpt *g;
    const int r = plan(config, AG_F32, &g, err);
    if (r) return r;
    *ret_cost = g->model.cost;
    nn_model_free(&g->model);
    return AG_OK;
}
