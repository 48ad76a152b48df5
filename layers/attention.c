#include "layers/attention.h"

#include "layers/recompute.h"

enum { SLOT_U, SLOT_X, SLOT_OUT, SLOTS };        /* what is recalled when decoding */

static bool is_dense(const nn_attention_config *c)
{
    return (c->type == NN_MAP_NONE || c->type == NN_MAP_DENSE) && c->lsh.kind == NN_LSH_NONE;
}

static bool convolves(nn_map_kind k) { return k == NN_MAP_CONV || k == NN_MAP_MULTCONV; }

static nn_attention_config filled(const nn_attention_config *c)
{
    nn_attention_config f = *c;
    const int64_t usual = c->type == NN_MAP_MULTCONV ? 3 : 1;
    if (!f.modules) f.modules = f.n_heads;
    if (!f.taps) f.taps = usual;
    if (!f.span) f.span = usual;
    if (!f.rank) f.rank = 64;
    f.lsh.causal = !f.all_keys;
    if (f.lsh.kind == NN_LSH_OWN) {
        f.bias = false;
        f.init_std = 0;
        f.out_gain = 1;
        f.share_qk = true;
    }
    if (is_dense(c)) f.output = NN_MAP_DENSE;
    else if (!f.own_output) f.output = f.type == NN_MAP_MULTCONV ? NN_MAP_NONE : f.type;
    return f;
}

int nn_attention_check(const nn_attention_config *c, ag_err *err)
{
    if (c->all_keys && (!is_dense(c) || c->pattern))
        return ag_err_set(err, AG_ECONFIG, "attention: an encoder sees all keys by dense "
                          "projections: attention.type must be dense, without a pattern");
    if (is_dense(c)) return AG_OK;
    const nn_attention_config f = filled(c);
    const int r = nn_lsh_check(&f.lsh, err);
    if (r < 0) return r;
    if (f.lsh.kind != NN_LSH_NONE && f.pattern)
        return ag_err_set(err, AG_ECONFIG, "attention: attention by hashing finds its own keys; it "
                          "takes no attention.pattern");
    if (f.type == NN_MAP_DENSE) return AG_OK;
    if (f.modules < 1 || f.d_model % f.modules)
        return ag_err_set(err, AG_ECONFIG,
                          "attention: attention.modules = %lld must divide d_model = %lld",
                          (long long)f.modules, (long long)f.d_model);
    if (f.d_qk != f.d_v || f.n_heads * f.d_qk != f.d_model)
        return ag_err_set(err, AG_ECONFIG,
                          "attention: sparse projections have heads of d_model / n_heads = %lld; "
                          "d_qk = %lld and d_v = %lld are for attention.type = dense",
                          (long long)(f.d_model / f.n_heads), (long long)f.d_qk, (long long)f.d_v);
    if (f.taps < 1 || f.rank < 1)
        return ag_err_set(err, AG_ECONFIG, "attention: attention.kernel = %lld and "
                          "attention.d_lowrank = %lld must not be negative", (long long)f.taps,
                          (long long)f.rank);
    const bool ring = f.type == NN_MAP_MODULAR || f.type == NN_MAP_MULTMOD;
    const int64_t most = ring ? f.modules : 2 * f.modules - 1;
    if (f.span < 1 || f.span % 2 == 0 || f.span > most)
        return ag_err_set(err, AG_ECONFIG, "attention: attention.kernel_modules = %lld must be "
                          "odd, and at most %lld for %lld modules", (long long)f.span,
                          (long long)most, (long long)f.modules);
    return AG_OK;
}

static void sparse_build(nn_attention *l, nn_params *p)
{
    const nn_attention_config *c = &l->config;
    nn_map_config m = { .kind = c->type, .d_in = c->d_model, .d_out = c->d_model,
                        .modules = c->modules, .taps = c->taps, .span = c->span, .rank = c->rank,
                        .fan = c->fan };
    const bool shared = c->type == NN_MAP_MULTCONV;
    if (shared) {
        nn_mult_build(&l->mult, p, "mult", c->d_model, c->d_model, c->modules, true);
        m.kind = NN_MAP_CONV;
    }
    nn_map_build(&l->q, p, "q", &m);
    if (c->share_qk) l->k = l->q;
    else nn_map_build(&l->k, p, "k", &m);
    if (shared) {
        m.span = 1;
        if (c->v_concat != NN_CONCAT_NONE) m.d_in = 2 * c->d_model;
    }
    nn_map_build(&l->v, p, "v", &m);
}

/* Of attention by hashing: q, k and v are a dense map of x each. */
static void dense_build(nn_attention *l, nn_params *p)
{
    const nn_attention_config *c = &l->config;
    nn_map_config m = { .kind = NN_MAP_DENSE, .d_in = c->d_model, .d_out = c->n_heads * c->d_qk,
                        .bias = c->bias, .init_std = c->init_std, .gain = 1 };
    nn_map_build(&l->q, p, "q", &m);
    if (c->share_qk) l->k = l->q;
    else nn_map_build(&l->k, p, "k", &m);
    m.d_out = c->n_heads * c->d_v;
    nn_map_build(&l->v, p, "v", &m);
}

void nn_attention_build(nn_attention *l, nn_params *p, const char *name,
                        const nn_attention_config *config)
{
    *l = (nn_attention){ .config = filled(config) };
    const nn_attention_config *c = &l->config;
    const int64_t d = c->d_model, d_out = c->n_heads * c->d_v;
    const int64_t d_qkv = c->n_heads * (2 * c->d_qk + c->d_v);
    const size_t at = nn_push(p, "%s", name);
    l->site = nn_site(p);
    if (is_dense(c))
        nn_linear_build(&l->qkv, p, "qkv", d, d_qkv, c->bias,
                        nn_matrix_init(c->init_std, d, d_qkv, 1));
    else if (c->type == NN_MAP_DENSE)
        dense_build(l, p);
    else
        sparse_build(l, p);
    if (c->lsh.kind != NN_LSH_NONE) nn_lsh_build(&l->lsh, p, &c->lsh, c->n_heads, c->d_qk, c->d_v);
    if (c->output == NN_MAP_DENSE) {
        l->out.config = (nn_map_config){ .kind = NN_MAP_DENSE, .d_in = d_out, .d_out = d };
        nn_linear_build(&l->out.out, p, "out", d_out, d, c->bias,
                        nn_matrix_init(c->init_std, d_out, d, c->out_gain));
    } else {
        nn_map_build(&l->out, p, "out",
                     &(nn_map_config){ .kind = c->output, .d_in = d, .d_out = d,
                                       .modules = c->modules, .taps = c->taps, .span = c->span,
                                       .rank = c->rank, .fan = c->fan });
    }
    nn_dropout_build(&l->drop, p, c->dropout);
    nn_pop(p, at);
}

/* --- forward ---------------------------------------------------------------------------------- */

typedef struct qkv { ag_tensor *q, *k, *v; } qkv;

/* Does the attention look back over time, and is it decoding? */
static bool recalls(const nn_attention *l, const ag_kv_cache *cache)
{
    return cache && convolves(l->config.type) && l->config.taps > 1;
}

/* x with the rows that came before it, when decoding */
static ag_tensor *recalled(const nn_attention *l, ag_tape *t, ag_tensor *x, ag_kv_cache *cache,
                           int layer, int slot)
{
    return recalls(l, cache) ? ag_recall(t, x, l->config.taps - 1, cache, layer, slot) : x;
}

static qkv convolved(const nn_attention *l, ag_tape *t, ag_tensor *x, ag_kv_cache *cache,
                     int layer)
{
    const nn_attention_config *c = &l->config;
    const bool mult = c->type == NN_MAP_MULTCONV, past = recalls(l, cache);
    ag_tensor *u = mult ? nn_mult_forward(&l->mult, t, x) : x;
    u = recalled(l, t, u, cache, layer, SLOT_U);
    ag_tensor *from = u;
    if (mult && c->v_concat != NN_CONCAT_NONE)
        from = ag_module_concat(t, u, recalled(l, t, x, cache, layer, SLOT_X),
                                c->v_concat == NN_CONCAT_FIXED ? c->modules : 1);
    qkv y = { .q = nn_map_convolve(&l->q, t, u, past) };
    y.k = c->share_qk ? y.q : nn_map_convolve(&l->k, t, u, past);
    y.v = nn_map_convolve(&l->v, t, from, past);
    return y;
}

static qkv mapped(const nn_attention *l, ag_tape *t, ag_tensor *x)
{
    qkv y = { .q = nn_map_forward(&l->q, t, x, NULL) };
    y.k = l->config.share_qk ? y.q : nn_map_forward(&l->k, t, x, NULL);
    y.v = nn_map_forward(&l->v, t, x, NULL);
    return y;
}

static ag_tensor *sparse_attend(const nn_attention *l, ag_tape *t, ag_tensor *x,
                                const ag_attention_options *o, nn_mode mode, ag_kv_cache *cache,
                                int layer)
{
    const qkv y = convolves(l->config.type) ? convolved(l, t, x, cache, layer) : mapped(l, t, x);
    if (l->config.lsh.kind != NN_LSH_NONE) {
        ag_tensor *q = y.k == y.q ? y.q : ag_scale(t, ag_add(t, y.q, y.k), 0.5);
        return nn_lsh_forward(&l->lsh, t, q, y.v, NULL, o->drop, mode, cache, layer);
    }
    return cache ? ag_attend_cached(t, y.q, y.k, y.v, o, cache, layer)
                 : ag_attend(t, y.q, y.k, y.v, o);
}

static ag_tensor *dense_attend(const nn_attention *l, ag_tape *t, ag_tensor *x,
                               const ag_attention_options *o, ag_kv_cache *cache, int layer)
{
    ag_tensor *y = nn_linear_forward(&l->qkv, t, x, AG_ACT_NONE, NULL);
    return cache ? ag_attend_cached(t, y, NULL, NULL, o, cache, layer) : ag_attend_qkv(t, y, o);
}

static ag_tensor *sparse_end(const nn_attention *l, ag_tape *t, ag_tensor *x, ag_tensor *residual,
                             nn_mode mode, ag_kv_cache *cache, int layer)
{
    const nn_past past = { cache, layer, SLOT_OUT };
    const bool back = cache && convolves(l->config.output) && l->config.taps > 1;
    x = nn_map_forward(&l->out, t, x, back ? &past : NULL);
    if (nn_dropout_is_on(&l->drop, mode))
        return ag_dropout(t, x, residual, l->drop.p, l->drop.site);
    return residual ? ag_add(t, x, residual) : x;
}

static ag_attention_options options(const nn_attention *l, nn_mode mode)
{
    const nn_attention_config *c = &l->config;
    return (ag_attention_options){
        .heads = c->n_heads, .d_qk = c->d_qk, .d_v = c->d_v, .causal = !c->all_keys,
        .drop = nn_dropout_is_on(&l->drop, mode) && !c->keep_weights ? l->drop.p : 0,
        .site = l->site, .pattern = c->pattern,
    };
}

typedef struct attention_run {
    const nn_attention *l;
    ag_attention_options o;
    nn_mode mode;
} attention_run;

/* All but the output projection. */
static ag_tensor *attend(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    const attention_run *r = arg;
    return is_dense(&r->l->config) ? dense_attend(r->l, t, x[0], &r->o, NULL, 0)
                                   : sparse_attend(r->l, t, x[0], &r->o, r->mode, NULL, 0);
}

/* As a segment where little is kept; when decoding nothing is. */
static ag_tensor *heads(const nn_attention *l, ag_tape *t, ag_tensor *x,
                        const ag_attention_options *o, nn_mode mode, ag_kv_cache *cache, int layer)
{
    const attention_run r = { l, *o, mode };
    if (cache)
        return is_dense(&l->config) ? dense_attend(l, t, x, o, cache, layer)
                                    : sparse_attend(l, t, x, o, mode, cache, layer);
    return nn_branch_run(t, attend, &r, sizeof r, &x, 1);
}

ag_tensor *nn_attention_encode(const nn_attention *l, ag_tape *t, ag_tensor *x, ag_tensor *lengths,
                               ag_tensor *residual, nn_mode mode)
{
    ag_attention_options o = options(l, mode);
    o.lengths = lengths;
    ag_scope(t, "attention", -1);
    ag_tensor *a = heads(l, t, x, &o, mode, NULL, 0);
    ag_tensor *y = nn_branch_end(&l->out.out, &l->drop, t, a, residual, mode);
    ag_scope_end(t);
    return y;
}

ag_tensor *nn_attention_forward(const nn_attention *l, ag_tape *t, ag_tensor *x,
                                ag_tensor *residual, nn_mode mode, ag_kv_cache *cache, int layer)
{
    const nn_attention_config *c = &l->config;
    const ag_attention_options o = options(l, mode);
    ag_scope(t, "attention", -1);
    ag_tensor *a = heads(l, t, x, &o, mode, cache, layer);
    ag_tensor *y = c->output == NN_MAP_DENSE
                       ? nn_branch_end(&l->out.out, &l->drop, t, a, residual, mode)
                       : sparse_end(l, t, a, residual, mode, cache, layer);
    ag_scope_end(t);
    return y;
}

int nn_attention_keep(const nn_attention *l, ag_kv_cache *cache)
{
    const nn_attention_config *c = &l->config;
    const bool back = c->taps > 1 && (convolves(c->type) || convolves(c->output));
    if (c->lsh.kind != NN_LSH_NONE && nn_lsh_keep(&l->lsh, cache)) return AG_ENOMEM;
    return back ? ag_kv_cache_keep(cache, SLOTS, c->taps - 1, c->d_model) : AG_OK;
}

int64_t nn_attention_products(const nn_attention *l)
{
    const nn_attention_config *c = &l->config;
    const int64_t out = nn_map_products(&l->out);
    if (is_dense(c)) return out + c->d_model * c->n_heads * (2 * c->d_qk + c->d_v);
    const int64_t keys = c->share_qk ? 0 : nn_map_products(&l->k);
    return out + nn_map_products(&l->q) + keys + nn_map_products(&l->v) +
           (c->type == NN_MAP_MULTCONV ? nn_mult_products(&l->mult) : 0);
}

double nn_attention_pairs(const nn_attention *l, int64_t n)
{
    const nn_attention_config *c = &l->config;
    const double seen = c->all_keys ? (double)n : 0.5 * (double)(n + 1);
    double pairs = 0;
    if (c->lsh.kind != NN_LSH_NONE && n > c->lsh.std_length) return nn_lsh_products(&l->lsh, n);
    for (int64_t h = 0; h < c->n_heads; h++)
        pairs += c->pattern ? (double)ag_pattern_of(c->pattern, h)->n_seen : (double)n * seen;
    return pairs * (double)(c->d_qk + c->d_v);
}
