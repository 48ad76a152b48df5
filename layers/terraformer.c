#include "layers/terraformer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The encoder's sizes and initial weights, as those of a gpt of its own. */
static nn_gpt_config encoder_of(const nn_terraformer_config *c)
{
    nn_gpt_config g = c->decoder;
    g.n_layers = c->n_encoder_layers;
    g.attention = (nn_attention_config){ .type = NN_MAP_DENSE, .all_keys = true,
                                         .keep_weights = c->decoder.attention.keep_weights };
    return nn_gpt_filled(&g);
}

static nn_gpt_config decoder_of(const nn_terraformer_config *c)
{
    nn_gpt_config g = nn_gpt_filled(&c->decoder);
    g.pattern = NULL;
    g.attention.lsh.length = c->source + c->target;
    return g;
}

static int check_sizes(const nn_terraformer_config *c, ag_err *err)
{
    const int64_t context = c->decoder.context;
    if (c->n_encoder_layers < 1 || c->n_encoder_layers > 1000)
        return ag_err_set(err, AG_ECONFIG, "terraformer: n_encoder_layers = %lld must be in "
                          "[1, 1000]", (long long)c->n_encoder_layers);
    if (c->source < 1 || c->source > context || c->target < 1 || c->target > context)
        return ag_err_set(err, AG_ECONFIG, "terraformer: source = %lld and target = %lld must be "
                          "in [1, context = %lld]", (long long)c->source, (long long)c->target,
                          (long long)context);
    if (c->attentions < 1 || c->attentions > 2)
        return ag_err_set(err, AG_ECONFIG, "terraformer: a decoder block has n_attention_layers = "
                          "1 or 2, not %lld", (long long)c->attentions);
    return AG_OK;
}

int nn_terraformer_check(const nn_terraformer_config *c, ag_err *err)
{
    const nn_gpt_config *g = &c->decoder;
    int r = nn_gpt_check(g, err);
    if (!r) r = check_sizes(c, err);
    if (r) return r;
    if (g->streams.kind == NN_STREAMS_ONE || g->streams.concatenate)
        return ag_err_set(err, AG_ECONFIG, "terraformer: it has two streams, whose average is the "
                          "output: set reversible, and reversible_output = average");
    if (g->embedding.start)
        return ag_err_set(err, AG_ECONFIG, "terraformer: a target begins with token 0, not with a "
                          "start vector");
    if (g->pattern && strcmp(g->pattern, "dense"))
        return ag_err_set(err, AG_ECONFIG, "terraformer: attention patterns are for a gpt");
    return AG_OK;
}

/* --- forward ---------------------------------------------------------------------------------- */

static ag_tensor *embedded(const nn_embedding *l, const nn_dropout *drop, const char *scope,
                           ag_tape *t, ag_tensor *ids, int64_t column0, nn_mode mode)
{
    ag_scope(t, scope, -1);
    ag_tensor *x = nn_dropout_forward(drop, t, nn_embedding_forward(l, t, ids, column0, mode),
                                      mode);
    ag_scope_end(t);
    return x;
}

static ag_tensor *mean(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_scale(t, ag_add(t, a, b), 0.5);
}

/* Both streams of the source. */
static void encode(const nn_terraformer *m, ag_tape *t, ag_tensor *ids, ag_tensor *lengths,
                   nn_mode mode, ag_tensor *ret_e[2])
{
    const nn_reversible r = { .block = m->encoder, .n = (int)m->config.n_encoder_layers,
                              .streams = m->config.decoder.streams };
    const nn_pass pass = { .mode = mode, .encoder = true, .lengths = lengths };
    ag_tensor *e = embedded(&m->source, &m->drop_source, "source", t, ids, 0, mode);
    ret_e[0] = nn_reversible_forward(&r, t, &pass, e, e, &ret_e[1]);
    if (!m->config.one_stream) return;
    e = nn_linear_forward(&m->join, t, mean(t, ret_e[0], ret_e[1]), AG_ACT_NONE, NULL);
    ret_e[0] = ret_e[1] = nn_norm_forward(&m->norm_source, t, e);
}

/* x[0], x[1]: both streams of the rows; the mean of what the decoder makes of them. */
static ag_tensor *decode(const nn_terraformer *m, ag_tape *t, ag_tensor *const x[2], nn_mode mode,
                         ag_kv_cache *cache)
{
    nn_reversible r = { .block = m->decoder, .second = m->second,
                        .n = (int)m->config.decoder.n_layers,
                        .streams = m->config.decoder.streams };
    r.streams.two_swaps = true;      /* it always swaps behind the feed-forward */
    ag_tensor *b, *a = nn_reversible_forward(&r, t, &(nn_pass){ .mode = mode, .cache = cache },
                                             x[0], x[1], &b);
    return mean(t, a, b);
}

static ag_tensor *output(const nn_terraformer *m, ag_tape *t, ag_tensor *y, nn_mode mode)
{
    return nn_head_forward(&m->head, t, nn_norm_forward(&m->norm, t, y), mode);
}

static ag_tensor *terraformer_logits(const nn_model *model, ag_tape *t, ag_tensor *ids,
                                     nn_mode mode, ag_kv_cache *cache)
{
    const nn_terraformer *m = (const nn_terraformer *)model;
    const int64_t column0 = cache ? ag_kv_cache_length(cache) : 0, s = m->config.source;
    if (column0) {
        ag_tensor *y = embedded(&m->embedding, &m->drop, "embedding", t, ids, column0, mode);
        return output(m, t, decode(m, t, (ag_tensor *[]){ y, y }, mode, cache), mode);
    }
    char text[96];
    if (ids->shape.ndim != 2 || ids->shape.dim[1] <= s || ids->shape.dim[1] - s > m->config.target)
        ag_fail(t, AG_ESHAPE, "terraformer: wanted ids [b,%lld+t], a source and then up to %lld "
                "tokens, got %s", (long long)s, (long long)m->config.target,
                ag_shape_text(&ids->shape, text));
    const int64_t n = ids->shape.dim[1] - s;
    ag_tensor *lengths = ag_count_tokens(t, ids, s), *e[2];
    encode(m, t, ag_columns(t, ids, 0, s), lengths, mode, e);
    ag_tensor *y = embedded(&m->embedding, &m->drop, "embedding", t, ag_columns(t, ids, s, n), 0,
                            mode);
    ag_tensor *x[2] = { ag_merge(t, e[0], y, lengths), ag_merge(t, e[1], y, lengths) };
    if (cache && ag_tape_runs(t)) ag_kv_cache_source_lengths(cache, lengths->host);
    return output(m, t, ag_strip(t, decode(m, t, x, mode, cache), lengths, n), mode);
}

static ag_kv_cache *terraformer_cache_new(const nn_model *model, int64_t batch)
{
    const nn_terraformer *m = (const nn_terraformer *)model;
    const nn_gpt_config *c = &m->config.decoder;
    ag_kv_cache *cache = ag_kv_cache_new(model->params->device, model->params->dtype,
                                         (int)(c->n_layers * m->config.attentions), batch,
                                         m->config.source + m->config.target,
                                         c->n_heads * c->d_qk, c->n_heads * c->d_v);
    if (cache && (nn_block_keep(&m->decoder[0], cache) ||
                  ag_kv_cache_source_in_row(cache, m->config.source))) {
        ag_kv_cache_free(cache);
        return NULL;
    }
    return cache;
}

/* The encoder's, then the decoder's. */
static nn_ff *terraformer_ff_layer(const nn_model *model, int i)
{
    const nn_terraformer *m = (const nn_terraformer *)model;
    const int64_t n = m->config.n_encoder_layers;
    if (i < n) return &m->encoder[i].ff;
    return i < n + m->config.decoder.n_layers ? &m->decoder[i - n].ff : NULL;
}

static void terraformer_release(nn_model *model)
{
    nn_terraformer *m = (nn_terraformer *)model;
    free(m->encoder);
    free(m->decoder);
    free(m->second);
}

/* --- building --------------------------------------------------------------------------------- */

static void blocks_build(nn_block *l, nn_second *second, nn_params *p, const char *name, int64_t n,
                         const nn_block_config *c)
{
    for (int i = 0; i < (int)n; i++) {
        const size_t at = nn_push(p, "%s/%d", name, i);
        nn_block_build(&l[i], p, c);
        if (second) nn_second_build(&second[i], p, &c->attention, c->norm_eps);
        nn_pop(p, at);
    }
}

static void terraformer_build(nn_terraformer *m, nn_params *p)
{
    const nn_gpt_config *c = &m->config.decoder;
    nn_gpt_config e = encoder_of(&m->config);
    const nn_block_config encoder = nn_gpt_block(&e), decoder = nn_gpt_block(c);
    nn_embedding_build(&m->embedding, p, "embedding", &c->embedding);
    nn_dropout_build(&m->drop, p, c->embedding_dropout);
    e.embedding.shared = m->embedding.token;
    nn_embedding_build(&m->source, p, "source", &e.embedding);
    nn_dropout_build(&m->drop_source, p, c->embedding_dropout);
    blocks_build(m->encoder, NULL, p, "encoder", m->config.n_encoder_layers, &encoder);
    if (m->config.one_stream) {
        nn_linear_build(&m->join, p, "join", c->d_model, c->d_model, true,
                        nn_glorot(c->d_model, c->d_model, 1));
        nn_norm_build(&m->norm_source, p, "norm_source", c->d_model, c->bias, c->final_norm_eps);
    }
    blocks_build(m->decoder, m->second, p, "decoder", c->n_layers, &decoder);
    nn_norm_build(&m->norm, p, "norm", c->d_model, c->bias, c->final_norm_eps);
    nn_head_build(&m->head, p, "head", &c->head, c->tied ? m->embedding.token : NULL);
}

static int64_t attention_params(const nn_params *p, const char *name)
{
    static const char *const parts[] = { "attention", "second" };
    char path[64];
    int64_t n = 0;
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/0/%s/", name, parts[i]);
        n += nn_params_below(p, path);
    }
    return n;
}

static int64_t decoder_products(const nn_terraformer *m)
{
    return nn_block_products(&m->decoder[0]) +
           (m->second ? nn_attention_products(&m->second[0].attention) : 0);
}

/* Multiply-adds between queries and keys and values, of a source and a target of full length. */
static double attended(const nn_terraformer *m)
{
    const int64_t s = m->config.source, row = s + m->config.target;
    double block = nn_attention_pairs(&m->decoder[0].attention, row);
    if (m->second) block += nn_attention_pairs(&m->second[0].attention, row);
    return (double)m->config.n_encoder_layers * nn_attention_pairs(&m->encoder[0].attention, s) +
           (double)m->config.decoder.n_layers * block;
}

/* For one token of a target: its part of the source, and the decoder over both. */
static nn_cost cost_of(const nn_terraformer *m)
{
    const nn_gpt_config *c = &m->config.decoder;
    const nn_params *p = m->model.params;
    const int64_t n_e = m->config.n_encoder_layers, n_d = c->n_layers;
    const double s = (double)m->config.source, t = (double)m->config.target,
        encoder = (double)(n_e * nn_block_products(&m->encoder[0]) +
                           nn_embedding_products(&m->source)),
        decoder = (double)(n_d * decoder_products(m)),
        head = (double)(nn_head_products(&m->head) + nn_embedding_products(&m->embedding));
    const int64_t ff = n_d * nn_ff_params(&m->decoder[0].ff),
        live = n_d * nn_ff_touched(&m->decoder[0].ff);
    const int64_t unread = nn_embedding_unread(&m->embedding, c->tied) + nn_head_beside(&m->head) +
                           nn_params_below(p, "encoder/") + nn_params_below(p, "source/") +
                           nn_params_below(p, "join/") + nn_params_below(p, "norm_source/");
    return (nn_cost){
        .params = p->n_used, .ff_params = ff + n_e * nn_ff_params(&m->encoder[0].ff),
        .ff_touched = live + n_e * nn_ff_touched(&m->encoder[0].ff),
        .flops = 2 * (head + (encoder * s + decoder * (s + t) + attended(m)) / t),
        .touched = p->n_used - ff + live - unread,
        .attention_params = n_e * attention_params(p, "encoder") +
                            n_d * attention_params(p, "decoder"),
        .head_params = nn_params_below(p, "head/"), .d_ff = c->ff.d_ff,
    };
}

static int allocate(const nn_terraformer_config *c, ag_dtype dtype, nn_terraformer **ret_m,
                    ag_err *err)
{
    nn_terraformer *m = calloc(1, sizeof *m);
    const size_t n_e = (size_t)c->n_encoder_layers, n_d = (size_t)c->decoder.n_layers;
    nn_block *encoder = calloc(n_e, sizeof *encoder), *decoder = calloc(n_d, sizeof *decoder);
    nn_second *second = c->attentions == 2 ? calloc(n_d, sizeof *second) : NULL;
    nn_params *p = nn_params_new(dtype);
    if (!m || !encoder || !decoder || !p || (c->attentions == 2 && !second)) {
        free(m);
        free(encoder);
        free(decoder);
        free(second);
        nn_params_free(p);
        return ag_err_set(err, AG_ENOMEM, "out of memory for the model");
    }
    *m = (nn_terraformer){ .config = *c, .encoder = encoder, .decoder = decoder,
                           .second = second };
    m->config.decoder = decoder_of(c);
    m->model = (nn_model){ .kind = "terraformer", .params = p, .classes = c->decoder.vocab,
                           .source = c->source, .logits = terraformer_logits,
                           .cache_new = terraformer_cache_new,
                           .ff_layer = terraformer_ff_layer, .release = terraformer_release };
    *ret_m = m;
    return AG_OK;
}

/* Checked and laid out, without memory for the parameters. */
static int plan(const nn_terraformer_config *c, ag_dtype dtype, nn_terraformer **ret_m,
                ag_err *err)
{
    nn_terraformer *m;
    int r = nn_terraformer_check(c, err);
    if (!r) r = allocate(c, dtype, &m, err);
    if (r) return r;
    nn_params *p = m->model.params;
    terraformer_build(m, p);
    if (p->err.code) {
        r = ag_err_set(err, p->err.code, "%s", p->err.msg);
        nn_model_free(&m->model);
        return r;
    }
    m->model.cost = cost_of(m);
    *ret_m = m;
    return AG_OK;
}

int nn_terraformer_new(const nn_terraformer_config *c, ag_dtype dtype, uint64_t seed,
                       nn_model **ret_model, ag_err *err)
{
    nn_terraformer *m;
    const int r = plan(c, dtype, &m, err);
    return r ? r : nn_model_fill(&m->model, seed, ret_model, err);
}

int nn_terraformer_plan(const nn_terraformer_config *c, ag_dtype dtype, nn_model **ret_model,
                        ag_err *err)
{
    nn_terraformer *m;
    const int r = plan(c, dtype, &m, err);
    return r ? r : nn_model_lay_out(&m->model, ret_model, err);
}
