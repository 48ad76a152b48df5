#include "layers/model.h"

#include <stdlib.h>

void nn_model_free(nn_model *m)
{
    if (!m) return;
    m->release(m);
    nn_recompute_free(m->recompute);
    nn_params_free(m->params);
    free(m);
}

static int made(nn_model *m, int r, nn_model **ret_model)
{
    if (r) nn_model_free(m);
    else *ret_model = m;
    return r;
}

int nn_model_fill(nn_model *m, uint64_t seed, nn_model **ret_model, ag_err *err)
{
    return made(m, nn_params_alloc(m->params, seed, err), ret_model);
}

int nn_model_lay_out(nn_model *m, nn_model **ret_model, ag_err *err)
{
    return made(m, nn_params_layout(m->params, err), ret_model);
}

ag_tensor *nn_model_logits(const nn_model *m, ag_tape *t, ag_tensor *x, nn_mode mode)
{
    return m->logits(m, t, x, mode, NULL);
}

ag_tensor *nn_model_loss(const nn_model *m, ag_tape *t, ag_tensor *x, ag_tensor *targets,
                         nn_mode mode)
{
    return ag_cross_entropy(t, m->logits(m, t, x, mode, NULL), targets);
}

int nn_model_cache(const nn_model *m, int64_t batch, ag_kv_cache **ret_cache, ag_err *err)
{
    if (!m->cache_new)
        return ag_err_set(err, AG_ECONFIG, "a model of kind %s does not generate sequences",
                          m->kind);
    ag_kv_cache *c = m->cache_new(m, batch);
    if (!c)
        return ag_err_set(err, AG_ENOMEM, "out of memory for the key-value cache of %lld sequences",
                          (long long)batch);
    *ret_cache = c;
    return AG_OK;
}

static ag_tensor *decode(const void *model, ag_tape *t, const ag_replay_in *in)
{
    const nn_model *m = model;
    return m->logits(m, t, in->x, NN_EVAL, in->cache);
}

ag_tensor *nn_model_decode(const nn_model *m, ag_tape *t, ag_tensor *ids, ag_kv_cache *cache)
{
    return nn_model_decode_by(NULL, m, t, ids, cache);
}

ag_tensor *nn_model_decode_by(ag_replay *r, const nn_model *m, ag_tape *t, ag_tensor *ids,
                              ag_kv_cache *cache)
{
    const ag_replay_in in = { ids, NULL, m->params->weights, cache };
    ag_tensor *y = r && cache ? ag_replay_loss(r, &in, decode, m, 1) : decode(m, t, &in);
    if (!ag_error(t)) ag_kv_cache_advance(cache, y->shape.dim[1]);
    return y;
}
