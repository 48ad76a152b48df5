/*
 * recall.c -- the rows before the new ones, for decoding layers that look back a few positions:
 * y = [the last `rows` rows seen so far | x].  What is seen next is told by y's own last rows, so
 * they become the new memory (kv_cache.h), which counts from ag_kv_cache_advance() on.
 */
#include "../op.h"
#include "../ops.h"
#include "kv_cache.h"

static int recall_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *x = &c->in[0]->shape;
    const ag_kv_cache *kv = c->attr.recall.cache;
    const int64_t rows = c->attr.recall.rows;
    char sx[96];
    if (x->ndim != 3 || rows < 0)
        return ag_fail(c->tape, AG_ESHAPE, "recall: %lld rows before %s, wanted [b,t,d]",
                       (long long)rows, ag_shape_text(x, sx));
    if (kv && (x->dim[0] != kv->batch || x->dim[2] != kv->past.width || rows != kv->past.rows ||
               c->attr.recall.layer < 0 || c->attr.recall.layer >= kv->layers ||
               c->attr.recall.slot < 0 || c->attr.recall.slot >= kv->past.slots ||
               kv->dtype != c->k->dtype))
        return ag_fail(c->tape, AG_ESHAPE, "recall: the cache keeps %lld rows of %lld for %lld "
                       "sequences, %d layers and %d places, not %lld for %s",
                       (long long)kv->past.rows, (long long)kv->past.width, (long long)kv->batch,
                       kv->layers, kv->past.slots, (long long)rows, ag_shape_text(x, sx));
    out[0] = *x;
    out[0].dim[1] += rows;
    return AG_OK;
}

static char *at(const ag_call *c, const void *p, int64_t i)
{
    return (char *)(uintptr_t)p + (size_t)i * ag_real_size(c);
}

static void recall_forward(ag_call *c)
{
    const ag_kv_cache *kv = c->attr.recall.cache;
    const int64_t *x = c->in[0]->shape.dim, rows = c->attr.recall.rows, d = x[2];
    const int64_t total = rows + x[1], place = c->attr.recall.layer;
    for (int64_t b = 0; b < x[0]; b++) {
        char *y = at(c, c->out[0]->data, b * total * d);
        c->k->copy_rows(x[1], d, at(c, c->in[0]->data, b * x[1] * d), d, at(c, y, rows * d), d,
                        false);
        if (!kv || kv->length == 0) c->k->fill(rows * d, 0, y);
        if (!kv) continue;
        const int64_t i = (place * kv->past.slots + c->attr.recall.slot) * kv->batch + b;
        const size_t skip = (size_t)(i * rows * d) * ag_real_size(c);
        const char *before = kv->past.side[kv->side] + skip;
        char *after = kv->past.side[!kv->side] + skip;
        if (kv->length > 0) c->k->copy_rows(rows, d, before, d, y, d, false);
        c->k->copy_rows(rows, d, at(c, y, ag_kv_cache_new_rows(kv, b, x[1]) * d), d, after, d,
                        false);
    }
}

/* Without a cache: nothing came before.  tests/test_qkv.c has the rest. */
static bool recall_sample(int64_t i, ag_sample *s)
{
    static const int64_t T[] = { 1, 5, 0 }, ROWS[] = { 0, 1, 2 };
    *s = (ag_sample){ .in = { AG_SHAPE(2, T[ag_digit(&i, 3)], 7) }, .lo = -1, .hi = 1 };
    s->attr.recall.rows = ROWS[ag_digit(&i, 3)];
    if (i == 1) s->in[0] = AG_SHAPE(2, 7), s->bad = AG_ESHAPE;
    return i < 2;
}

const ag_op ag_op_recall = {
    .name = "recall", .doc = "y[b,r+t,d] = the r rows seen before x[b,t,d], then x", .n_in = 1,
    .n_out = 1, .shape = recall_shape, .forward = recall_forward,
    .nondiff = "it is for decoding: the cache holds no gradient", .sample = recall_sample,
};

ag_tensor *ag_recall(ag_tape *t, ag_tensor *x, int64_t rows, ag_kv_cache *cache, int layer,
                     int slot)
{
    return ag_apply(t, &ag_op_recall, (ag_tensor *[AG_MAX_IN]){ x },
                    &(ag_attr){ .recall = { rows, cache, layer, slot } }, NULL);
}
