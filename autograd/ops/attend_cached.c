/*
 * attend_cached.c -- attention for decoding: over the keys and values of earlier positions
 * (kv_cache.h), and over those of a source, which a decoder makes once.
 */
#include "attention.h"
#include "kv_cache.h"
#include "../device.h"

#include <string.h>

/* What a cache holds is read in its own number type. */
static bool cached_half(const ag_call *c, const ag_kernels *k)
{
    const ag_kv_cache *kv = c->attr.attention.cache;
    return ag_attention_half(c, k) && (!kv || kv->dtype == k->dtype);
}

static int cached_shape(ag_call *c, ag_shape *out)
{
    const ag_tensor *q = c->in[0], *k = c->in[1], *v = c->in[2];
    if (!k != !v || (k && k->shape.ndim > 1 && q->shape.ndim > 1 &&
                     k->shape.dim[1] != q->shape.dim[1]))
        return ag_fail(c->tape, AG_ESHAPE, "attend_cached: wanted q, k and v of the same new "
                       "positions, or all three in one tensor");
    const int r = k ? ag_attend_shape(c, out) : ag_attend_qkv_shape(c, out);
    const ag_kv_cache *kv = c->attr.attention.cache;
    if (r < 0 || !kv) return r;      /* without a cache (samples): the new positions alone */
    const ag_shape *x = &c->in[0]->shape;
    const int64_t h = c->attr.attention.heads;
    if (x->dim[0] != kv->batch || h * c->attr.attention.d_qk != kv->d_k ||
        h * c->attr.attention.d_v != kv->d_v || c->attr.attention.layer < 0 ||
        c->attr.attention.layer >= kv->layers || kv->dtype != c->k->dtype)
        return ag_fail(c->tape, AG_ESHAPE,
                       "attend_cached: the cache is for %lld sequences, keys of %lld, values of "
                       "%lld, %d layers", (long long)kv->batch, (long long)kv->d_k,
                       (long long)kv->d_v, kv->layers);
    const int full = ag_kv_cache_check_room(c, kv, x->dim[1]);
    if (full < 0) return full;
    const ag_pattern *p = c->attr.attention.pattern;
    if (p && kv->length + x->dim[1] > p->n)
        return ag_fail(c->tape, AG_ERANGE, "attend_cached: %lld positions and %lld new ones, but "
                       "the pattern is for %lld", (long long)kv->length, (long long)x->dim[1],
                       (long long)p->n);
    return AG_OK;
}

/* Copies the new rows of one part into the cache. */
static void store(const ag_call *c, const char *from, int64_t row, int64_t batch, char *to,
                  int64_t width, const ag_kv_cache *kv, int64_t t)
{
    const size_t one = ag_real_size(c);
    for (int64_t b = 0; b < kv->batch; b++)
        for (int64_t i = 0; i < t; i++)
            c->k->scale(width, 1, from + (size_t)(b * batch + i * row) * one,
                        to + (size_t)((b * kv->capacity + ag_kv_cache_next(kv, b) + i) * width) *
                        one, false);
}

/* Item b, whose positions are its own. */
static void attend_one(const ag_call *c, const ag_attention *a, int64_t b)
{
    const size_t one = ag_real_size(c);
    ag_attention x = *a;
    x.batch = 1;
    x.q = (const char *)a->q + (size_t)(b * a->q_batch) * one;
    x.k = (const char *)a->k + (size_t)(b * a->k_batch) * one;
    x.v = (const char *)a->v + (size_t)(b * a->v_batch) * one;
    x.o = (char *)a->o + (size_t)(b * a->o_batch) * one;
    x.lse = (char *)a->lse + (size_t)(b * a->heads * a->tq) * ag_kept_size(c);
    x.q_pos0 = ag_kv_cache_next(c->attr.attention.cache, b);
    x.tk = x.q_pos0 + a->tq;
    c->k->attention_fwd(&x);
}

/* One token of one sequence, whose position is another in each run: keys and values go to a place
 * that a kernel works out, and all of the cache is looked at as far as it is filled. */
static void attend_token(const ag_call *c, ag_attention *a, char *k, char *v, const ag_turn *token)
{
    const ag_kv_cache *kv = c->attr.attention.cache;
    const ag_device *d = c->k->device;
    const size_t k_row = (size_t)kv->d_k * ag_real_size(c),
        v_row = (size_t)kv->d_v * ag_real_size(c);
    if (!ag_kv_cache_takes_token(kv) || a->tq != 1 || a->pattern) {
        ag_fail(c->tape, AG_EFAIL, "attend_cached: not one token of one sequence that sees all");
        return;
    }
    d->copy_shifted(k + (size_t)kv->length * k_row, k_row, a->k, 0, k_row, &token->positions);
    d->copy_shifted(v + (size_t)kv->length * v_row, v_row, a->v, 0, v_row, &token->positions);
    a->k = k, a->k_row = kv->d_k, a->k_batch = kv->capacity * kv->d_k;
    a->v = v, a->v_row = kv->d_v, a->v_batch = kv->capacity * kv->d_v;
    a->causal = false;
    a->tk = kv->capacity;
    a->lengths = &token->keys;
    c->k->attention_fwd(a);
}

static void cached_forward(ag_call *c)
{
    ag_attention a = ag_attention_of(c);
    const ag_kv_cache *kv = c->attr.attention.cache;
    const ag_turn *token = ag_token_turn(c->tape);
    if (kv) {
        const size_t at = (size_t)(c->attr.attention.layer * kv->batch * kv->capacity)
            * ag_real_size(c);
        char *k = kv->k + at * (size_t)kv->d_k, *v = kv->v + at * (size_t)kv->d_v;
        if (token) {
            attend_token(c, &a, k, v, token);
            return;
        }
        store(c, a.k, a.k_row, a.k_batch, k, kv->d_k, kv, a.tq);
        store(c, a.v, a.v_row, a.v_batch, v, kv->d_v, kv, a.tq);
        a.k = k, a.k_row = kv->d_k, a.k_batch = kv->capacity * kv->d_k;
        a.v = v, a.v_row = kv->d_v, a.v_batch = kv->capacity * kv->d_v;
    }
    if (kv && kv->source_in_row) {
        for (int64_t b = 0; b < kv->batch; b++) attend_one(c, &a, b);
        return;
    }
    if (kv) a.tk = (a.q_pos0 = kv->length) + a.tq;
    c->k->attention_fwd(&a);
}

/* Without a cache: the new positions are all there is.  tests/test_decode.c has the rest. */
static bool cached_sample(int64_t i, ag_sample *s)
{
    static const int64_t T[] = { 1, 2, 11 }, DK[] = { 1, 17 };
    const int64_t t = T[ag_digit(&i, 3)], dk = DK[ag_digit(&i, 2)];
    const bool apart = ag_digit(&i, 2);
    *s = (ag_sample){ .in = { AG_SHAPE(2, t, 3 * (2 * dk + 8)) }, .lo = -1.5, .hi = 1.5,
                      .absent = apart ? 0 : 6,
                      .attr.attention = { .heads = 3, .d_qk = dk, .d_v = 8, .causal = true } };
    if (apart) {
        s->in[0] = s->in[1] = AG_SHAPE(2, t, 3 * dk);
        s->in[2] = AG_SHAPE(2, t, 3 * 8);
    }
    if (i == 1) s->in[0].dim[2]++, s->bad = AG_ESHAPE;
    if (i == 2 && !apart) s->in[1] = s->in[0], s->absent = 4, s->bad = AG_ESHAPE;
    if (i == 2 && apart) s->in[1].dim[1] = s->in[2].dim[1] = t + 1, s->bad = AG_ESHAPE;
    return i < 3;
}

const ag_op ag_op_attend_cached = {
    .name = "attend_cached",
    .doc = "attend of new positions, or attend_qkv, over a cache of earlier ones",
    .n_in = 3, .n_out = 1, .optional = 6, .shape = cached_shape, .saved_bytes = ag_attention_saved,
    .forward = cached_forward, .half = cached_half,
    .nondiff = "it is for decoding: the cache holds no gradient",
    .flops = ag_attention_flops, .sample = cached_sample,
};

ag_tensor *ag_attend_cached(ag_tape *t, ag_tensor *q, ag_tensor *k, ag_tensor *v,
                            const ag_attention_options *o, ag_kv_cache *cache, int layer)
{
    ag_attr a = ag_attention_attr(o);
    a.attention.causal = true;
    a.attention.drop = 0;
    a.attention.cache = cache;
    a.attention.layer = layer;
    return ag_apply(t, &ag_op_attend_cached, (ag_tensor *[AG_MAX_IN]){ q, k, v }, &a, NULL);
}

/* --- over a source ---------------------------------------------------------------------------- */

enum { Q, K, V, LENGTHS };

/* Does the source that is given, or kept, fit what the cache has room for? */
static int check_source(const ag_call *c, const ag_kv_cache *kv)
{
    const ag_shape *q = &c->in[Q]->shape;
    const int64_t dk = c->attr.attention.heads * c->attr.attention.d_qk,
        dv = c->attr.attention.heads * c->attr.attention.d_v;
    if (!kv->source || q->dim[0] != kv->batch || dk != kv->d_k || dv != kv->d_v ||
        c->attr.attention.layer < 0 || c->attr.attention.layer >= kv->layers ||
        kv->dtype != c->k->dtype || (c->in[K] && c->in[K]->shape.dim[1] != kv->source_length))
        return ag_fail(c->tape, AG_ESHAPE, "attend_source: the cache is for %lld sequences, keys "
                       "of %lld, values of %lld, %d layers and sources of %lld",
                       (long long)kv->batch, (long long)kv->d_k, (long long)kv->d_v, kv->layers,
                       (long long)kv->source_length);
    return AG_OK;
}

static int source_shape(ag_call *c, ag_shape *out)
{
    const ag_tensor *q = c->in[Q], *k = c->in[K], *v = c->in[V], *n = c->in[LENGTHS];
    const ag_kv_cache *kv = c->attr.attention.cache;
    char text[96];
    if (!k != !v || !k != !n || (!k && !kv))
        return ag_fail(c->tape, AG_ESHAPE, "attend_source: wanted k, v and lengths, or none of "
                       "them and a cache that has them");
    if (n && (n->shape.ndim != 1 || q->shape.ndim != 3 || n->shape.dim[0] != q->shape.dim[0]))
        return ag_fail(c->tape, AG_ESHAPE, "attend_source: wanted lengths [b], got %s",
                       ag_shape_text(&n->shape, text));
    if (k) {
        const int r = ag_attend_shape(c, out);
        return r < 0 || !kv ? r : check_source(c, kv);
    }
    const int64_t dk = c->attr.attention.heads * c->attr.attention.d_qk,
        dv = c->attr.attention.heads * c->attr.attention.d_v;
    if (q->shape.ndim != 3 || q->shape.dim[2] != dk)
        return ag_fail(c->tape, AG_ESHAPE, "attend_source: wanted q [b,tq,%lld], got %s",
                       (long long)dk, ag_shape_text(&q->shape, text));
    out[0] = AG_SHAPE(q->shape.dim[0], q->shape.dim[1], dv);
    return check_source(c, kv);
}

/* Keys, values and lengths where the cache keeps them. */
static void use_source(const ag_call *c, ag_attention *a)
{
    const ag_kv_cache *kv = c->attr.attention.cache;
    const int64_t rows = kv->batch * kv->source_length, layer = c->attr.attention.layer;
    char *k = kv->source + (size_t)(layer * rows * kv->d_k) * ag_real_size(c);
    char *v = kv->source +
              (size_t)((kv->layers * kv->d_k + layer * kv->d_v) * rows) * ag_real_size(c);
    if (c->in[K]) {
        c->k->scale(rows * kv->d_k, 1, a->k, k, false);
        c->k->scale(rows * kv->d_v, 1, a->v, v, false);
        ag_kv_cache_keep_lengths(kv, c->in[LENGTHS]->host);
    }
    *a = (ag_attention){ .batch = a->batch, .heads = a->heads, .tq = a->tq,
                         .tk = kv->source_length, .d_qk = a->d_qk, .d_v = a->d_v,
                         .scale = a->scale, .q = a->q, .q_row = a->q_row, .q_batch = a->q_batch,
                         .k = k, .k_row = kv->d_k, .k_batch = kv->source_length * kv->d_k, .v = v,
                         .v_row = kv->d_v, .v_batch = kv->source_length * kv->d_v, .o = a->o,
                         .o_row = a->o_row, .o_batch = a->o_batch, .lse = a->lse,
                         .lengths = kv->lengths_there };
}

static void source_forward(ag_call *c)
{
    const ag_kv_cache *kv = c->attr.attention.cache;
    const int64_t keys = kv ? kv->source_length : c->in[K]->shape.dim[1];
    if (c->in[LENGTHS] && ag_check_index(c, LENGTHS, 0, keys + 1) < 0) return;
    ag_attention a = ag_attention_of(c);
    a.lengths = c->in[LENGTHS] ? c->in[LENGTHS]->data : NULL;
    if (kv) use_source(c, &a);
    c->k->attention_fwd(&a);
}

/* Without a cache: the source is given.  tests/test_decode.c has the rest. */
static bool source_sample(int64_t i, ag_sample *s)
{
    static const int64_t T[] = { 1, 11 }, KEYS[] = { 0, 1, 9 }, DK[] = { 1, 17 };
    const int64_t t = T[ag_digit(&i, 2)], keys = KEYS[ag_digit(&i, 3)], dk = DK[ag_digit(&i, 2)];
    *s = (ag_sample){ .in = { AG_SHAPE(2, t, 3 * dk), AG_SHAPE(2, keys, 3 * dk),
                              AG_SHAPE(2, keys, 3 * 8), AG_SHAPE(2) }, .lo = -1.5, .hi = 1.5,
                      .int_lo = 0, .int_hi = (int32_t)keys + 1,
                      .attr.attention = { .heads = 3, .d_qk = dk, .d_v = 8 } };
    if (i == 1) s->in[V].dim[1]++, s->bad = AG_ESHAPE;
    if (i == 2) s->absent = 1u << LENGTHS, s->bad = AG_ESHAPE;
    if (i == 3) s->absent = 14, s->bad = AG_ESHAPE;
    if (i == 4) s->int_lo = s->int_hi++, s->bad = AG_ERANGE;
    if (i == 5) s->in[LENGTHS] = AG_SHAPE(3), s->bad = AG_ESHAPE;
    return i < 6;
}

const ag_op ag_op_attend_source = {
    .name = "attend_source",
    .doc = "attend to a source k, v of lengths[b] positions, which a cache keeps for later calls",
    .n_in = 4, .n_out = 1, .optional = 14, .integer_in = 1u << LENGTHS, .shape = source_shape,
    .saved_bytes = ag_attention_saved, .forward = source_forward, .half = cached_half,
    .nondiff = "it is for decoding: the cache holds no gradient", .sample = source_sample,
};

ag_tensor *ag_attend_source(ag_tape *t, ag_tensor *q, ag_tensor *k, ag_tensor *v,
                            const ag_attention_options *o, ag_kv_cache *cache, int layer)
{
    ag_attr a = ag_attention_attr(o);
    a.attention.causal = false;
    a.attention.drop = 0;
    a.attention.cache = cache;
    a.attention.layer = layer;
    return ag_apply(t, &ag_op_attend_source, (ag_tensor *[AG_MAX_IN]){ q, k, v, k ? o->lengths
                                                                                  : NULL },
                    &a, NULL);
}
