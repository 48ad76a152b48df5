/*
 * sru.c -- the scan of a simple recurrent unit (Lei et al., 1709.02755), as Terraformer has it
 * beside its feed-forward (2111.12763, appendix; no activation on the state): for each channel
 *
 *     r = sigmoid(z_r)     f = sigmoid(z_f)               z [b,t,3n] = [z_r | z_f | y]
 *     c_t = f c_{t-1} + (1 - f) y                         c before the first position is 0
 *     h_t = r c_t + (1 - r) x_t sqrt(3)                   sqrt(3) keeps the variance of x
 *
 * and backwards, with g_t the gradient of c_t:
 *
 *     g_t = r dh_t + f_{t+1} g_{t+1}       dr = dh (c_t - sqrt(3) x_t)     dx = (1 - r) sqrt(3) dh
 *     df  = g_t (c_{t-1} - y_t)            dy = g_t (1 - f)
 *     dz_r = dr r (1 - r)                  dz_f = df f (1 - f)
 *
 * Forward keeps the states c.  With a cache the scan goes on from the state that the last positions
 * left there, and has no backward.
 */
#include "../op.h"
#include "../ops.h"
#include "kv_cache.h"

enum { Z, X };

static int sru_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *z = &c->in[Z]->shape, *x = &c->in[X]->shape;
    const ag_kv_cache *kv = c->attr.state.cache;
    char sz[96], sx[96];
    if (x->ndim != 3 || z->ndim != 3 || z->dim[0] != x->dim[0] || z->dim[1] != x->dim[1] ||
        z->dim[2] != 3 * x->dim[2])
        return ag_fail(c->tape, AG_ESHAPE, "%s: wanted z [b,t,3n] and x [b,t,n], got %s, %s",
                       c->op->name, ag_shape_text(z, sz), ag_shape_text(x, sx));
    if (kv && (x->dim[0] != kv->batch || x->dim[2] != kv->state.width || kv->state.rows != 1 ||
               c->attr.state.layer < 0 || c->attr.state.layer >= kv->layers ||
               c->attr.state.slot < 0 || c->attr.state.slot >= kv->state.slots ||
               kv->dtype != c->k->dtype))
        return ag_fail(c->tape, AG_ESHAPE, "%s: the cache keeps states of %lld for %lld sequences, "
                       "%d layers and %d places, not for %s", c->op->name,
                       (long long)kv->state.width, (long long)kv->batch, kv->layers,
                       kv->state.slots, ag_shape_text(x, sx));
    out[0] = *x;
    return AG_OK;
}

static size_t sru_saved(const ag_call *c) { return (size_t)c->in[X]->size * ag_real_size(c); }

static void sru_forward(ag_call *c)
{
    const int64_t *x = c->in[X]->shape.dim;
    c->k->sru_fwd(x[0], x[1], x[2], c->in[Z]->data, c->in[X]->data, NULL, c->saved,
                  c->out[0]->data);
}

static void sru_backward(ag_call *c)
{
    const int64_t *x = c->in[X]->shape.dim;
    bool acc_z, acc_x;
    void *dz = ag_grad_of(c, Z, &acc_z), *dx = ag_grad_of(c, X, &acc_x);
    c->k->sru_bwd(x[0], x[1], x[2], c->in[Z]->data, c->in[X]->data, c->saved, c->out[0]->grad, dz,
                  acc_z, dx, acc_x);
}

/* two sigmoids and some twelve operations a channel */
static int64_t sru_flops(const ag_call *c) { return 20 * c->in[X]->size; }

static bool sru_sample(int64_t i, ag_sample *s)
{
    static const int64_t T[] = { 1, 2, 9, 0 }, N[] = { 1, 7, 16, 33 };
    const int64_t b = 1 + ag_digit(&i, 2), t = T[ag_digit(&i, 4)], n = N[ag_digit(&i, 4)];
    *s = (ag_sample){ .in = { AG_SHAPE(b, t, 3 * n), AG_SHAPE(b, t, n) }, .lo = -1.5, .hi = 1.5 };
    if (i == 1) s->in[Z].dim[2]++, s->bad = AG_ESHAPE;
    if (i == 2) s->in[X].dim[1]++, s->bad = AG_ESHAPE;
    return i < 3;
}

const ag_op ag_op_sru = {
    .name = "sru",
    .doc = "h[b,t,n] = r c + (1 - r) sqrt(3) x, c = f c_before + (1 - f) y, from z[b,t,3n], "
           "x[b,t,n]",
    .n_in = 2, .n_out = 1, .shape = sru_shape, .saved_bytes = sru_saved, .forward = sru_forward,
    .backward = sru_backward, .unread = ag_unread_out, .flops = sru_flops, .sample = sru_sample,
};

ag_tensor *ag_sru(ag_tape *t, ag_tensor *z, ag_tensor *x)
{
    return ag_apply(t, &ag_op_sru, (ag_tensor *[AG_MAX_IN]){ z, x },
                    &(ag_attr){ .state = { NULL, 0, 0 } }, NULL);
}

/* --- over a cache ----------------------------------------------------------------------------- */

static void cached_forward(ag_call *c)
{
    const int64_t *x = c->in[X]->shape.dim;
    const ag_kv_cache *kv = c->attr.state.cache;
    if (!kv) {                       /* without a cache (samples): these positions alone */
        sru_forward(c);
        return;
    }
    const size_t row = (size_t)x[2] * ag_real_size(c);
    const int place = c->attr.state.layer * kv->state.slots + c->attr.state.slot;
    char *before = kv->state.side[kv->side] + (size_t)(place * kv->batch) * row;
    char *after = kv->state.side[!kv->side] + (size_t)(place * kv->batch) * row;
    c->k->sru_fwd(x[0], x[1], x[2], c->in[Z]->data, c->in[X]->data, kv->length ? before : NULL,
                  c->saved, c->out[0]->data);
    for (int64_t b = 0; b < x[0]; b++) {
        const int64_t seen = ag_kv_cache_new_rows(kv, b, x[1]);
        const char *last = seen ? (char *)c->saved + (size_t)(b * x[1] + seen - 1) * row
                                : before + (size_t)b * row;
        c->k->copy_rows(1, x[2], last, x[2], after + (size_t)b * row, x[2], false);
    }
}

const ag_op ag_op_sru_cached = {
    .name = "sru_cached", .doc = "sru that goes on from the state in a cache", .n_in = 2,
    .n_out = 1, .shape = sru_shape, .saved_bytes = sru_saved, .forward = cached_forward,
    .nondiff = "it is for decoding: the cache holds no gradient", .flops = sru_flops,
    .sample = sru_sample,            /* tests/test_sru.c has those with a cache */
};

ag_tensor *ag_sru_cached(ag_tape *t, ag_tensor *z, ag_tensor *x, ag_kv_cache *cache, int layer,
                         int slot)
{
    return ag_apply(t, &ag_op_sru_cached, (ag_tensor *[AG_MAX_IN]){ z, x },
                    &(ag_attr){ .state = { cache, layer, slot } }, NULL);
}
