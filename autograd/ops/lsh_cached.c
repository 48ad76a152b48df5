/*
 * lsh_cached.c -- decoding of attention by hashing, by the rule of the released code of Terraformer
 * (2111.12763): a new query takes the newest positions that share a bucket with it in any round,
 * fills up with the newest others, rounds * chunk * (1 + before) in all, and attends to those.
 *
 * The rotations are fixed (ag_lsh_options), so what a position attends to does not depend on how
 * many come at a time.  Without a cache (samples) the new positions are all there is.
 */
#include "lsh.h"

#include "../device.h"
#include "../ops.h"
#include "kv_cache.h"

enum { Q, V };

static int cached_shape(ag_call *c, ag_shape *out)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    const ag_shape *q = &c->in[Q]->shape, *v = &c->in[V]->shape;
    const ag_kv_cache *kv = c->attr.lsh.cache;
    const int64_t dk = o->heads * o->d_qk, dv = o->heads * o->d_v;
    char sq[96], sv[96];
    const int r = ag_lsh_check(c);
    if (r < 0) return r;
    if (q->ndim != 3 || v->ndim != 3 || q->dim[2] != dk || v->dim[2] != dv ||
        q->dim[0] != v->dim[0] || q->dim[1] != v->dim[1])
        return ag_fail(c->tape, AG_ESHAPE, "%s: wanted q [b,t,%lld], v [b,t,%lld], got %s, %s",
                       c->op->name, (long long)dk, (long long)dv, ag_shape_text(q, sq),
                       ag_shape_text(v, sv));
    if (kv && (q->dim[0] != kv->batch || dk != kv->d_k || dv != kv->d_v ||
               c->attr.lsh.layer < 0 || c->attr.lsh.layer >= kv->layers ||
               kv->dtype != c->k->dtype || kv->rounds != o->rounds || kv->heads != o->heads ||
               kv->rotations != ag_lsh_rotations(o)))
        return ag_fail(c->tape, AG_ESHAPE, "%s: the cache is for %lld sequences, keys of %lld, "
                       "values of %lld, %d layers, %lld rounds and %lld heads", c->op->name,
                       (long long)kv->batch, (long long)kv->d_k, (long long)kv->d_v, kv->layers,
                       (long long)kv->rounds, (long long)kv->heads);
    out[0] = *v;
    return kv ? ag_kv_cache_check_room(c, kv, q->dim[1]) : AG_OK;
}

/* Where a layer's part of the cache is; without a cache, of as much memory of this call. */
typedef struct place {
    int64_t  capacity;
    char    *k, *v, *rotation;
    int32_t *bucket;                 /* [batch,heads,rounds,capacity] */
} place;

static bool place_of(ag_call *c, place *p)
{
    const ag_kv_cache *kv = c->attr.lsh.cache;
    const ag_lsh_options *o = &c->attr.lsh.o;
    const int64_t *q = c->in[Q]->shape.dim;
    const size_t one = ag_real_size(c), turns = (size_t)(o->heads * ag_lsh_rotations(o)) * one;
    if (kv) {
        const int64_t rows = c->attr.lsh.layer * kv->batch * kv->capacity;
        *p = (place){ kv->capacity, kv->k + (size_t)(rows * kv->d_k) * one,
                      kv->v + (size_t)(rows * kv->d_v) * one,
                      kv->rotation + (size_t)c->attr.lsh.layer * turns,
                      kv->bucket + rows * kv->heads * kv->rounds };
        return true;
    }
    *p = (place){ q[1], ag_scratch(c->tape, (size_t)c->in[Q]->size * one),
                  ag_scratch(c->tape, (size_t)c->in[V]->size * one), ag_scratch(c->tape, turns),
                  ag_scratch(c->tape, (size_t)(q[0] * o->heads * o->rounds * q[1]) * 4) };
    return p->k && p->v && p->rotation && p->bucket;
}

/* Position of the first new one of item b. */
static int64_t first_of(const ag_call *c, int64_t b)
{
    const ag_kv_cache *kv = c->attr.lsh.cache;
    return kv ? ag_kv_cache_next(kv, b) : 0;
}

/* Items that a kernel can take at once: all, unless each has positions of its own. */
static int64_t items_alike(const ag_call *c)
{
    const ag_kv_cache *kv = c->attr.lsh.cache;
    return kv && kv->length && kv->source_in_row ? 1 : c->in[Q]->shape.dim[0];
}

/* The new positions' buckets, [rounds,b,h,t], go to where the cache has them. */
static void keep_buckets(const ag_call *c, const place *p, const int32_t *bucket)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    const int64_t b = c->in[Q]->shape.dim[0], t = c->in[Q]->shape.dim[1], pairs = b * o->heads;
    for (int64_t r = 0; r < o->rounds; r++)
        for (int64_t pair = 0; pair < pairs; pair++)
            ag_device_copy(c->k->device,
                           p->bucket + (pair * o->rounds + r) * p->capacity +
                               first_of(c, pair / o->heads),
                           bucket + (r * pairs + pair) * t, (size_t)t * sizeof *bucket);
}

static bool store(ag_call *c, const place *p)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    const int64_t *q = c->in[Q]->shape.dim, dk = o->heads * o->d_qk, dv = o->heads * o->d_v;
    const size_t one = ag_real_size(c);
    for (int64_t b = 0; b < q[0]; b++) {
        const int64_t to = b * p->capacity + first_of(c, b), from = b * q[1];
        c->k->copy_rows(q[1], dk, (char *)c->in[Q]->data + (size_t)(from * dk) * one, dk,
                        p->k + (size_t)(to * dk) * one, dk, false);
        c->k->copy_rows(q[1], dv, (char *)c->in[V]->data + (size_t)(from * dv) * one, dv,
                        p->v + (size_t)(to * dv) * one, dv, false);
    }
    ag_lsh a = ag_lsh_setup(c, q[0], q[1]);
    a.q = c->in[Q]->data;
    a.bucket = ag_scratch(c->tape, (size_t)(o->rounds * q[0] * o->heads * q[1]) * 4);
    if (!a.bucket) return false;
    const ag_noise z = ag_lsh_fixed_noise(o);
    if (!c->attr.lsh.cache || c->attr.lsh.cache->length == 0)
        c->k->normal(o->heads, ag_lsh_rotations(o), &z, p->rotation);
    c->k->lsh_hash(&a, p->rotation, true);
    keep_buckets(c, p, a.bucket);
    return true;
}

/* Of n items from b on. */
static ag_lsh_decode setup(const ag_call *c, const place *p, int64_t b, int64_t n)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    const int64_t t = c->in[Q]->shape.dim[1], dk = o->heads * o->d_qk, dv = o->heads * o->d_v;
    const size_t one = ag_real_size(c);
    ag_lsh_decode a = { .batch = n, .heads = o->heads, .past = first_of(c, b), .t = t,
                        .capacity = p->capacity, .d_qk = o->d_qk, .d_v = o->d_v,
                        .rounds = o->rounds, .most = o->rounds * o->chunk * (1 + o->before),
                        .bucket = p->bucket + b * o->heads * o->rounds * p->capacity,
                        .k = p->k + (size_t)(b * p->capacity * dk) * one,
                        .v = p->v + (size_t)(b * p->capacity * dv) * one,
                        .o = (char *)c->out[0]->data + (size_t)(b * t * dv) * one };
    a.most = a.most < p->capacity ? a.most : p->capacity;
    return a;
}

static size_t cached_workspace(const ag_call *c, bool back)
{
    const ag_kv_cache *kv = c->attr.lsh.cache;
    const ag_lsh_options *o = &c->attr.lsh.o;
    const int64_t *q = c->in[Q]->shape.dim;
    const place p = { .capacity = kv ? kv->capacity : q[1] };
    const ag_lsh_decode a = setup(c, &p, 0, items_alike(c));
    const size_t buckets = ag_scratch_size((size_t)(o->rounds * q[0] * o->heads * q[1]) * 4),
        turns = (size_t)(o->heads * ag_lsh_rotations(o)) * ag_real_size(c),
        sum = buckets + ag_scratch_size(ag_lsh_decode_scratch(&a, c->k->dtype));
    (void)back;
    if (kv) return sum;
    return sum + buckets + ag_scratch_size(ag_tensor_bytes(c->in[Q])) +
           ag_scratch_size(ag_tensor_bytes(c->in[V])) + ag_scratch_size(turns);
}

static void cached_forward(ag_call *c)
{
    const int64_t batch = c->in[Q]->shape.dim[0], n = items_alike(c);
    place p;
    if (!place_of(c, &p) || !store(c, &p)) return;
    void *scratch = NULL;
    for (int64_t b = 0; b < batch; b += n) {
        ag_lsh_decode a = setup(c, &p, b, n);
        if (!scratch) scratch = ag_scratch(c->tape, ag_lsh_decode_scratch(&a, c->k->dtype));
        if (!scratch) return;
        a.scratch = scratch;
        c->k->lsh_decode(&a);
    }
}

/* tests/test_lsh.c has those with a cache. */
static bool cached_sample(int64_t i, ag_sample *s)
{
    static const int64_t T[] = { 1, 2, 11 }, DK[] = { 1, 17 };
    const int64_t t = T[ag_digit(&i, 3)], dk = DK[ag_digit(&i, 2)];
    *s = (ag_sample){ .in = { AG_SHAPE(2, t, 3 * dk), AG_SHAPE(2, t, 3 * 8) }, .lo = -1.5,
                      .hi = 1.5, .attr.lsh.o = { .heads = 3, .d_qk = dk, .d_v = 8, .rounds = 2,
                                                 .factor = { 4, 1 }, .chunk = 2, .before = 1 } };
    if (i == 1) s->in[V].dim[1]++, s->bad = AG_ESHAPE;
    if (i == 2) s->attr.lsh.o.chunk = 0, s->bad = AG_ERANGE;
    return i < 3;
}

const ag_op ag_op_lsh_cached = {
    .name = "lsh_cached", .doc = "attention by hashing of new positions over a cache", .n_in = 2,
    .n_out = 1, .shape = cached_shape, .forward = cached_forward,
    .workspace = cached_workspace,
    .nondiff = "it is for decoding: the cache holds no gradient", .sample = cached_sample,
};

ag_tensor *ag_lsh_cached(ag_tape *t, ag_tensor *q, ag_tensor *v, const ag_lsh_options *o,
                         ag_kv_cache *cache, int layer)
{
    return ag_apply(t, &ag_op_lsh_cached, (ag_tensor *[AG_MAX_IN]){ q, v },
                    &(ag_attr){ .lsh = { *o, cache, layer } }, NULL);
}
