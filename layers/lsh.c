#include "layers/lsh.h"

int nn_lsh_check(const nn_lsh_config *c, ag_err *err)
{
    if (c->kind == NN_LSH_NONE) return AG_OK;
    if (c->length < 1)
        return ag_err_set(err, AG_ECONFIG, "attention: attention by hashing needs the length of "
                          "the longest sequence, which only a gpt gives");
    if (c->chunk < 1 || c->rounds < 1 || c->rounds > AG_LSH_ROUNDS)
        return ag_err_set(err, AG_ECONFIG, "attention: attention.lsh.chunk = %lld must be positive "
                          "and attention.lsh.hashes = %lld in [1, %d]", (long long)c->chunk,
                          (long long)c->rounds, AG_LSH_ROUNDS);
    if (c->buckets < 0 || c->buckets % 2 || c->buckets > 1 << 20)
        return ag_err_set(err, AG_ECONFIG, "attention: attention.lsh.buckets = %lld must be even, "
                          "and at most 2^20", (long long)c->buckets);
    return AG_OK;
}

void nn_lsh_factors(int64_t n, int64_t ret_factor[2])
{
    ret_factor[0] = n;
    ret_factor[1] = 1;
    if (n <= 128) return;
    ret_factor[0] = 2;
    while (ret_factor[0] * ret_factor[0] < n) ret_factor[0] *= 2;
    ret_factor[1] = 2 * (n / (2 * ret_factor[0]));
}

void nn_lsh_build(nn_lsh *l, nn_params *p, const nn_lsh_config *c, int64_t heads, int64_t d_qk,
                  int64_t d_v)
{
    const int64_t chunks = c->length / c->chunk, by_length = 2 * (chunks > 1 ? chunks : 1);
    *l = (nn_lsh){ .config = *c };
    ag_lsh_options *o = &l->options;
    *o = (ag_lsh_options){ .heads = heads, .d_qk = d_qk, .d_v = d_v, .rounds = c->rounds,
                           .chunk = c->chunk, .before = 1, .after = !c->causal,
                           .causal = c->causal, .bucket_mask = c->bucket_mask,
                           .correct = c->correct };
    o->site = nn_site(p);
    o->drop_site = nn_site(p);
    nn_lsh_factors(c->buckets ? c->buckets : by_length, o->factor);
}

/* All keys, for short sequences. */
static ag_tensor *attend_all(const nn_lsh *l, ag_tape *t, ag_tensor *q, ag_tensor *v,
                             double drop, ag_kv_cache *cache, int layer)
{
    const ag_lsh_options *o = &l->options;
    const ag_attention_options all = { .heads = o->heads, .d_qk = o->d_qk, .d_v = o->d_v,
                                       .causal = o->causal, .drop = drop, .site = o->drop_site };
    return cache ? ag_attend_cached(t, q, q, v, &all, cache, layer) : ag_attend(t, q, q, v, &all);
}

ag_tensor *nn_lsh_forward(const nn_lsh *l, ag_tape *t, ag_tensor *q, ag_tensor *v,
                          ag_tensor *lengths, double drop, nn_mode mode, ag_kv_cache *cache,
                          int layer)
{
    const int64_t n = cache ? l->config.length : q->shape.ndim > 1 ? q->shape.dim[1] : 0;
    ag_lsh_options o = l->options;
    o.drop = drop;
    o.fixed = mode != NN_TRAIN;
    if (n <= l->config.std_length && !lengths) return attend_all(l, t, q, v, drop, cache, layer);
    if (cache) return ag_lsh_cached(t, q, v, &o, cache, layer);
    const bool was = ag_tape_no_grad(t, true);
    ag_tensor *bucket = ag_lsh_hash(t, q, lengths, &o);
    ag_tape_no_grad(t, was);
    return ag_lsh_attend(t, q, v, bucket, lengths, &o);
}

int nn_lsh_keep(const nn_lsh *l, ag_kv_cache *cache)
{
    const ag_lsh_options *o = &l->options;
    return ag_kv_cache_keep_buckets(cache, o->rounds, o->heads, ag_lsh_rotations(o));
}

double nn_lsh_products(const nn_lsh *l, int64_t n)
{
    const ag_lsh_options *o = &l->options;
    const int64_t met = (o->before + 1 + o->after) * o->chunk;
    const double keys = (double)(o->rounds * (met < n ? met : n));
    return (double)(n * o->heads) * (keys * (double)(o->d_qk + o->d_v) +
                                     (double)ag_lsh_rotations(o));
}
