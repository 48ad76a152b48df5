#include "layers/block.h"

void nn_block_build(nn_block *l, nn_params *p, const nn_block_config *c)
{
    const nn_attention_config *a = &c->attention;
    *l = (nn_block){ 0 };
    nn_norm_build(&l->norm1, p, "norm1", a->d_model, a->bias, c->norm_eps);
    nn_attention_build(&l->attention, p, "attention", a);
    if (c->cross) {
        nn_norm_build(&l->norm_cross, p, "norm_cross", a->d_model, a->bias, c->norm_eps);
        nn_cross_build(&l->cross, p, "cross", a);
    }
    nn_norm_build(&l->norm2, p, "norm2", a->d_model, a->bias, c->norm_eps);
    nn_ff_build(&l->ff, p, "ff", a->d_model, &c->ff);
    nn_sru_build(&l->sru, p, "sru", &c->sru);
}

/* The branches that follow each other on one position. */
static ag_tensor *units(const nn_block *l, ag_tape *t, ag_tensor *x, nn_mode mode,
                        ag_kv_cache *cache, int layer)
{
    ag_tensor *y = nn_ff_forward(&l->ff, t, nn_norm_forward(&l->norm2, t, x), x, mode);
    return nn_sru_forward(&l->sru, t, x, y, cache, layer);
}

ag_tensor *nn_block_forward(const nn_block *l, ag_tape *t, ag_tensor *x, const nn_source *source,
                            nn_mode mode, ag_kv_cache *cache, int layer)
{
    ag_scope(t, "block", layer);
    x = nn_attention_forward(&l->attention, t, nn_norm_forward(&l->norm1, t, x), x, mode, cache,
                             layer);
    if (source)
        x = nn_cross_forward(&l->cross, t, nn_norm_forward(&l->norm_cross, t, x), source, x, mode,
                             cache, layer);
    x = units(l, t, x, mode, cache, layer);
    ag_scope_end(t);
    return x;
}

ag_tensor *nn_block_encode(const nn_block *l, ag_tape *t, ag_tensor *x, ag_tensor *lengths,
                           nn_mode mode, int layer)
{
    ag_scope(t, "encoder", layer);
    x = nn_attention_encode(&l->attention, t, nn_norm_forward(&l->norm1, t, x), lengths, x, mode);
    x = units(l, t, x, mode, NULL, layer);
    ag_scope_end(t);
    return x;
}

int nn_block_keep(const nn_block *l, ag_kv_cache *cache)
{
    const int r = nn_attention_keep(&l->attention, cache);
    return r ? r : nn_sru_keep(&l->sru, cache);
}

int64_t nn_block_products(const nn_block *l)
{
    return nn_attention_products(&l->attention) + nn_cross_products(&l->cross) +
           nn_ff_products(&l->ff) + nn_sru_products(&l->sru);
}
