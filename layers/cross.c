#include "layers/cross.h"

#include "layers/recompute.h"

void nn_cross_build(nn_cross *l, nn_params *p, const char *name, const nn_attention_config *c)
{
    const int64_t d = c->d_model, dk = c->n_heads * c->d_qk, dv = c->n_heads * c->d_v;
    const size_t at = nn_push(p, "%s", name);
    *l = (nn_cross){ .config = *c, .site = nn_site(p) };
    nn_linear_build(&l->q, p, "q", d, dk, c->bias, nn_matrix_init(c->init_std, d, dk, 1));
    nn_linear_build(&l->k, p, "k", d, dk, c->bias, nn_matrix_init(c->init_std, d, dk, 1));
    nn_linear_build(&l->v, p, "v", d, dv, c->bias, nn_matrix_init(c->init_std, d, dv, 1));
    nn_linear_build(&l->out, p, "out", dv, d, c->bias,
                    nn_matrix_init(c->init_std, dv, d, c->out_gain));
    nn_dropout_build(&l->drop, p, c->dropout);
    nn_pop(p, at);
}

typedef struct cross_run { const nn_cross *l; ag_attention_options o; } cross_run;

/* x: of the decoder and of the source.  All but the output projection. */
static ag_tensor *attend(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    const cross_run *r = arg;
    ag_tensor *q = nn_linear_forward(&r->l->q, t, x[0], AG_ACT_NONE, NULL),
        *k = nn_linear_forward(&r->l->k, t, x[1], AG_ACT_NONE, NULL),
        *v = nn_linear_forward(&r->l->v, t, x[1], AG_ACT_NONE, NULL);
    return ag_attend(t, q, k, v, &r->o);
}

/* source: NULL, or what goes into the cache. */
static ag_tensor *attend_cached(const cross_run *r, ag_tape *t, ag_tensor *x, ag_tensor *source,
                                ag_kv_cache *cache, int layer)
{
    ag_tensor *q = nn_linear_forward(&r->l->q, t, x, AG_ACT_NONE, NULL), *k = NULL, *v = NULL;
    if (source) {
        k = nn_linear_forward(&r->l->k, t, source, AG_ACT_NONE, NULL);
        v = nn_linear_forward(&r->l->v, t, source, AG_ACT_NONE, NULL);
    }
    return ag_attend_source(t, q, k, v, &r->o, cache, layer);
}

ag_tensor *nn_cross_forward(const nn_cross *l, ag_tape *t, ag_tensor *x, const nn_source *source,
                            ag_tensor *residual, nn_mode mode, ag_kv_cache *cache, int layer)
{
    const nn_attention_config *c = &l->config;
    const cross_run r = { l, {
        .heads = c->n_heads, .d_qk = c->d_qk, .d_v = c->d_v, .lengths = source->lengths,
        .drop = nn_dropout_is_on(&l->drop, mode) && !c->keep_weights ? l->drop.p : 0,
        .site = l->site,
    } };
    ag_scope(t, "cross", -1);
    ag_tensor *a = cache ? attend_cached(&r, t, x, source->x, cache, layer)
                         : nn_branch_run(t, attend, &r, sizeof r,
                                         (ag_tensor *[]){ x, source->x }, 2);
    ag_tensor *y = nn_branch_end(&l->out, &l->drop, t, a, residual, mode);
    ag_scope_end(t);
    return y;
}

int64_t nn_cross_products(const nn_cross *l)
{
    const nn_attention_config *c = &l->config;
    return c->d_model * c->n_heads * (c->d_qk + c->d_v);
}

int64_t nn_cross_source_products(const nn_cross *l) { return nn_cross_products(l); }
