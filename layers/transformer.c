#include "layers/transformer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The encoder's sizes and initial weights, as those of a gpt of its own. */
static nn_gpt_config encoder_of(const nn_transformer_config *c)
{
    nn_gpt_config g = c->decoder;
    g.n_layers = c->n_encoder_layers;
    g.context = c->source;
    g.attention = (nn_attention_config){ .type = NN_MAP_DENSE, .all_keys = true,
                                         .keep_weights = c->decoder.attention.keep_weights };
    return nn_gpt_filled(&g);
}

/* The decoder's, whose residual stream has three branches a layer. */
static nn_gpt_config decoder_of(const nn_transformer_config *c)
{
    nn_gpt_config g = nn_gpt_filled(&c->decoder);
    g.attention.out_gain *= sqrt(2.0 / 3);
    g.ff.out_gain *= sqrt(2.0 / 3);
    g.pattern = NULL;
    return g;
}

int nn_transformer_check(const nn_transformer_config *c, ag_err *err)
{
    enum { MANY = 1 << 24 };
    const int r = nn_gpt_check(&c->decoder, err);
    if (r) return r;
    if (c->n_encoder_layers < 1 || c->n_encoder_layers > 1000)
        return ag_err_set(err, AG_ECONFIG, "transformer: n_encoder_layers = %lld must be in "
                          "[1, 1000]", (long long)c->n_encoder_layers);
    if (c->source < 1 || c->source > MANY)
        return ag_err_set(err, AG_ECONFIG, "transformer: source = %lld must be in [1, %d]",
                          (long long)c->source, MANY);
    if (c->decoder.embedding.start)
        return ag_err_set(err, AG_ECONFIG, "transformer: a target begins with token 0, not with a "
                          "start vector");
    if (c->decoder.pattern && strcmp(c->decoder.pattern, "dense"))
        return ag_err_set(err, AG_ECONFIG, "transformer: attention patterns are for a gpt");
    const nn_gpt_config e = encoder_of(c);
    return nn_embedding_check(&e.embedding, err);
}

/* --- forward ---------------------------------------------------------------------------------- */

enum { ENCODER, DECODER };           /* stacks of blocks */

typedef struct run {
    const nn_transformer *m;
    ag_tensor *lengths;              /* of the sources */
    ag_kv_cache *cache;
    nn_mode mode;
} run;

static ag_tensor *run_encoder(const void *arg, ag_tape *t, ag_tensor *const *x, int i)
{
    const run *r = arg;
    return nn_block_encode(&r->m->encoder[i], t, x[0], r->lengths, r->mode, i);
}

/* x[1]: of the encoder. */
static ag_tensor *run_decoder(const void *arg, ag_tape *t, ag_tensor *const *x, int i)
{
    const run *r = arg;
    const nn_source source = { x[1], r->lengths };
    return nn_block_forward(&r->m->decoder[i], t, x[0], &source, r->mode, r->cache, i);
}

static ag_tensor *stack_forward(const run *r, int at, ag_tape *t, ag_tensor *const *x)
{
    const nn_model *m = &r->m->model;
    const nn_stack s = { at == ENCODER ? run_encoder : run_decoder, r, sizeof *r, m->stack[at].n,
                         at == ENCODER ? 1 : 2, at };
    return nn_stack_forward(&s, t, x, m->recompute);
}

static ag_tensor *embedded(const nn_embedding *l, const nn_dropout *drop, const char *scope,
                           ag_tape *t, ag_tensor *ids, int64_t column0, nn_mode mode)
{
    ag_scope(t, scope, -1);
    ag_tensor *x = nn_dropout_forward(drop, t, nn_embedding_forward(l, t, ids, column0, mode),
                                      mode);
    ag_scope_end(t);
    return x;
}

static nn_source encode(const nn_transformer *m, ag_tape *t, ag_tensor *ids, nn_mode mode)
{
    const int64_t n = m->config.source;
    ag_tensor *lengths = ag_count_tokens(t, ids, n);
    ag_tensor *x = embedded(&m->source, &m->drop_source, "source", t, ag_columns(t, ids, 0, n), 0,
                            mode);
    x = stack_forward(&(run){ m, lengths, NULL, mode }, ENCODER, t, &x);
    return (nn_source){ nn_norm_forward(&m->norm_source, t, x), lengths };
}

static ag_tensor *transformer_logits(const nn_model *model, ag_tape *t, ag_tensor *ids,
                                     nn_mode mode, ag_kv_cache *cache)
{
    const nn_transformer *m = (const nn_transformer *)model;
    const int64_t column0 = cache ? ag_kv_cache_length(cache) : 0, n = m->config.source;
    nn_source source = { NULL, NULL };
    if (column0 == 0) {
        char text[96];
        if (ids->shape.ndim != 2 || ids->shape.dim[1] <= n)
            ag_fail(t, AG_ESHAPE, "transformer: wanted ids [b,%lld+t], a source and then tokens, "
                    "got %s", (long long)n, ag_shape_text(&ids->shape, text));
        source = encode(m, t, ids, mode);
        ids = ag_columns(t, ids, n, ids->shape.dim[1] - n);
    }
    ag_tensor *x = embedded(&m->embedding, &m->drop, "embedding", t, ids, column0, mode);
    x = stack_forward(&(run){ m, source.lengths, cache, mode }, DECODER, t,
                      (ag_tensor *[]){ x, source.x });
    return nn_head_forward(&m->head, t, nn_norm_forward(&m->norm, t, x), mode);
}

static ag_kv_cache *transformer_cache_new(const nn_model *model, int64_t batch)
{
    const nn_transformer *m = (const nn_transformer *)model;
    const nn_gpt_config *c = &m->config.decoder;
    ag_kv_cache *cache = ag_kv_cache_new(model->params->device, model->params->dtype,
                                         (int)c->n_layers, batch, c->context,
                                         c->n_heads * c->d_qk, c->n_heads * c->d_v);
    if (cache && (nn_block_keep(&m->decoder[0], cache) ||
                  ag_kv_cache_source(cache, m->config.source))) {
        ag_kv_cache_free(cache);
        return NULL;
    }
    return cache;
}

/* The encoder's, then the decoder's. */
static nn_ff *transformer_ff_layer(const nn_model *model, int i)
{
    const nn_transformer *m = (const nn_transformer *)model;
    const int64_t n = m->config.n_encoder_layers;
    if (i < n) return &m->encoder[i].ff;
    return i < n + m->config.decoder.n_layers ? &m->decoder[i - n].ff : NULL;
}

static void transformer_release(nn_model *model)
{
    nn_transformer *m = (nn_transformer *)model;
    free(m->encoder);
    free(m->decoder);
}

/* --- building --------------------------------------------------------------------------------- */

static void blocks_build(nn_block *l, nn_params *p, const char *name, int64_t n,
                         const nn_block_config *c)
{
    for (int i = 0; i < (int)n; i++) {
        const size_t at = nn_push(p, "%s/%d", name, i);
        nn_block_build(&l[i], p, c);
        nn_pop(p, at);
    }
}

static void transformer_build(nn_transformer *m, nn_params *p)
{
    const nn_gpt_config *c = &m->config.decoder;
    nn_gpt_config e = encoder_of(&m->config);
    const nn_block_config encoder = nn_gpt_block(&e);
    nn_block_config decoder = nn_gpt_block(c);
    decoder.cross = true;
    nn_embedding_build(&m->embedding, p, "embedding", &c->embedding);
    nn_dropout_build(&m->drop, p, c->embedding_dropout);
    e.embedding.shared = m->embedding.token;
    nn_embedding_build(&m->source, p, "source", &e.embedding);
    nn_dropout_build(&m->drop_source, p, c->embedding_dropout);
    blocks_build(m->encoder, p, "encoder", m->config.n_encoder_layers, &encoder);
    nn_norm_build(&m->norm_source, p, "norm_source", c->d_model, c->bias, c->final_norm_eps);
    blocks_build(m->decoder, p, "decoder", c->n_layers, &decoder);
    nn_norm_build(&m->norm, p, "norm", c->d_model, c->bias, c->final_norm_eps);
    nn_head_build(&m->head, p, "head", &c->head, c->tied ? m->embedding.token : NULL);
}

/* Multiply-adds between queries and keys and values: within a source, within a target, and of a
 * target with all of its source. */
static double attended(const nn_transformer *m)
{
    const nn_gpt_config *c = &m->config.decoder;
    const double s = (double)m->config.source, t = (double)c->context,
        cross = (double)(c->n_heads * (c->d_qk + c->d_v)) * t * s;
    return (double)m->config.n_encoder_layers *
               nn_attention_pairs(&m->encoder[0].attention, m->config.source) +
           (double)c->n_layers * (nn_attention_pairs(&m->decoder[0].attention, c->context) + cross);
}

/* Parameters of attention in all blocks below `name`. */
static int64_t attention_params(const nn_params *p, const char *name)
{
    char path[64];
    int64_t n = 0;
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/0/%s/", name, i ? "cross" : "attention");
        n += nn_params_below(p, path);
    }
    return n;
}

/* For one token of a target: its part of the source, and the decoder. */
static nn_cost cost_of(const nn_transformer *m)
{
    const nn_gpt_config *c = &m->config.decoder;
    const nn_params *p = m->model.params;
    const nn_block *e = &m->encoder[0], *d = &m->decoder[0];
    const int64_t n_e = m->config.n_encoder_layers, n_d = c->n_layers,
        kept = n_d * nn_cross_source_products(&d->cross);
    const double of_source = (double)(n_e * nn_block_products(e) + kept +
                                      nn_embedding_products(&m->source)),
        of_target = (double)(n_d * nn_block_products(d) + nn_head_products(&m->head) +
                             nn_embedding_products(&m->embedding)),
        s = (double)m->config.source, t = (double)c->context;
    const int64_t ff = n_d * nn_ff_params(&d->ff), live = n_d * nn_ff_touched(&d->ff);
    const int64_t unread = nn_embedding_unread(&m->embedding, c->tied) + nn_head_beside(&m->head) +
                           nn_params_below(p, "encoder/") + nn_params_below(p, "source/") +
                           nn_params_below(p, "norm_source/") + kept;
    return (nn_cost){
        .params = p->n_used, .ff_params = ff + n_e * nn_ff_params(&e->ff),
        .ff_touched = live + n_e * nn_ff_touched(&e->ff),
        .flops = 2 * (of_target + (of_source * s + attended(m)) / t),
        .touched = p->n_used - ff + live - unread,
        .attention_params = n_e * attention_params(p, "encoder") +
                            n_d * attention_params(p, "decoder"),
        .head_params = nn_params_below(p, "head/"), .d_ff = c->ff.d_ff,
    };
}

/* Checked and laid out, without memory for the parameters. */
static int plan(const nn_transformer_config *config, ag_dtype dtype, nn_transformer **ret_m,
                ag_err *err)
{
    const int bad = nn_transformer_check(config, err);
    if (bad) return bad;
    nn_transformer *m = calloc(1, sizeof *m);
    nn_block *encoder = calloc((size_t)config->n_encoder_layers, sizeof *encoder),
        *decoder = calloc((size_t)config->decoder.n_layers, sizeof *decoder);
    nn_params *p = nn_params_new(dtype);
    if (!m || !encoder || !decoder || !p) {
        free(m);
        free(encoder);
        free(decoder);
        nn_params_free(p);
        return ag_err_set(err, AG_ENOMEM, "out of memory for the model");
    }
    *m = (nn_transformer){ .config = *config, .encoder = encoder, .decoder = decoder };
    m->config.decoder = decoder_of(config);
    m->model = (nn_model){ .kind = "transformer", .params = p, .classes = config->decoder.vocab,
                           .stack = { [ENCODER] = { "encoder", (int)config->n_encoder_layers },
                                      [DECODER] = { "decoder", (int)config->decoder.n_layers } },
                           .source = config->source, .logits = transformer_logits,
                           .cache_new = transformer_cache_new, .ff_layer = transformer_ff_layer,
                           .release = transformer_release };
    transformer_build(m, p);
    if (p->err.code) {
        const int r = ag_err_set(err, p->err.code, "%s", p->err.msg);
        nn_model_free(&m->model);
        return r;
    }
    m->model.cost = cost_of(m);
    *ret_m = m;
    return AG_OK;
}

int nn_transformer_new(const nn_transformer_config *config, ag_dtype dtype, uint64_t seed,
                       nn_model **ret_model, ag_err *err)
{
    nn_transformer *m;
    const int r = plan(config, dtype, &m, err);
    return r ? r : nn_model_fill(&m->model, seed, ret_model, err);
}

int nn_transformer_plan(const nn_transformer_config *config, ag_dtype dtype, nn_model **ret_model,
                        ag_err *err)
{
    nn_transformer *m;
    const int r = plan(config, dtype, &m, err);
    return r ? r : nn_model_lay_out(&m->model, ret_model, err);
}
