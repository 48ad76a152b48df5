#include "layers/attention.h"

void nn_attention_build(nn_attention *l, nn_params *p, const char *name,
                        const nn_attention_config *c)
{
    const int64_t d = c->d_model, d_out = c->n_heads * c->d_v;
    const int64_t d_qkv = c->n_heads * (2 * c->d_qk + c->d_v);
    const size_t at = nn_push(p, "%s", name);
    *l = (nn_attention){ .n_heads = c->n_heads, .d_qk = c->d_qk, .d_v = c->d_v };
    l->site = nn_site(p);
    nn_linear_build(&l->qkv, p, "qkv", d, d_qkv, c->bias, nn_matrix_init(c->init_std, d, d_qkv, 1));
    nn_linear_build(&l->out, p, "out", d_out, d, c->bias,
                    nn_matrix_init(c->init_std, d_out, d, c->out_gain));
    nn_dropout_build(&l->drop, p, c->dropout);
    nn_pop(p, at);
}

ag_tensor *nn_attention_forward(const nn_attention *l, ag_tape *t, ag_tensor *x,
                                ag_tensor *residual, nn_mode mode, ag_kv_cache *cache, int layer)
{
    const ag_attention_options o = {
        .heads = l->n_heads, .d_qk = l->d_qk, .d_v = l->d_v, .causal = true,
        .drop = nn_dropout_is_on(&l->drop, mode) ? l->drop.p : 0, .site = l->site,
    };
    ag_scope(t, "attention", -1);
    ag_tensor *qkv = nn_linear_forward(&l->qkv, t, x, AG_ACT_NONE, NULL);
    ag_tensor *a = cache ? ag_attend_cached(t, qkv, NULL, NULL, &o, cache, layer)
                         : ag_attend_qkv(t, qkv, &o);
    ag_tensor *y = nn_branch_end(&l->out, &l->drop, t, a, residual, mode);
    ag_scope_end(t);
    return y;
}
