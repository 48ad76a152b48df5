/* input.c -- numbers from the host to a tape, and back. */
#include "convert.h"
#include "device.h"
#include "tape_impl.h"

#include <math.h>
#include <string.h>

ag_tensor *ag_input_blank(ag_tape *t, ag_shape shape, bool needs_grad)
{
    ag_tensor *x = ag_leaf_new(t, &shape, t->k->dtype, needs_grad);
    return x ? x : ag_poison(t);
}

/* Numbers from the host to x, of f32 or 16 bits. */
static void put_floats(ag_tape *t, ag_tensor *x, const float *src)
{
    const size_t bytes = (size_t)x->size * sizeof *src;
    if (t->plan && t->k->device) return;
    if (x->dtype == AG_F32) {
        ag_device_write(t->k->device, x->data, src, bytes);
        return;
    }
    const ag_mark m = ag_arena_mark(&t->data);
    const float *from = src;
    if (t->k->device) {
        float *wide = ag_tape_alloc(t, &t->data, x->size, AG_F32);
        if (wide) t->k->device->write(wide, src, bytes);
        from = wide;
    }
    if (from) t->k->narrow(x->size, from, x->data);
    ag_arena_rewind(&t->data, m);
}

ag_tensor *ag_input(ag_tape *t, ag_shape shape, const float *src, bool needs_grad)
{
    ag_tensor *x = ag_leaf_new(t, &shape, t->k->dtype, needs_grad);
    if (!x) return ag_poison(t);
    if (x->dtype != AG_F64) put_floats(t, x, src);
    else for (int64_t i = 0; i < x->size; i++) ((double *)x->data)[i] = (double)src[i];
    return x;
}

ag_tensor *ag_input_f64(ag_tape *t, ag_shape shape, const double *src, bool needs_grad)
{
    ag_tensor *x = ag_leaf_new(t, &shape, t->k->dtype, needs_grad);
    if (!x) return ag_poison(t);
    if (x->dtype == AG_F64) {
        memcpy(x->data, src, (size_t)x->size * sizeof *src);
        return x;
    }
    const ag_mark m = ag_arena_mark(&t->meta);
    float *v = ag_arena_alloc(&t->meta, (size_t)x->size, sizeof *v);
    for (int64_t i = 0; v && i < x->size; i++) v[i] = (float)src[i];
    if (v) put_floats(t, x, v);
    else ag_fail(t, AG_ENOMEM, "out of memory for an input");
    ag_arena_rewind(&t->meta, m);
    return x;
}

static const float *rounded(ag_tape *t, const ag_tensor *x)
{
    float *v = ag_tape_meta(t, (size_t)x->size * sizeof *v);
    for (int64_t i = 0; v && i < x->size; i++) v[i] = (float)((const double *)x->data)[i];
    return v;
}

const void *ag_on_host(ag_tape *t, const void *p, size_t bytes)
{
    if (!t->k->device) return p;
    void *host = ag_tape_meta(t, bytes);
    if (host) t->k->device->read(host, p, bytes);
    return ag_tape_check(t, NULL) == AG_OK ? host : NULL;
}

const float *ag_floats(ag_tape *t, const ag_tensor *x)
{
    const ag_device *device = t->k->device;
    if (t->error || (x->dtype == AG_F32 && !device)) return x->data;
    const ag_mark m = ag_arena_mark(&t->data);
    float *v = x->data;
    if (x->dtype == AG_F64) return rounded(t, x);
    if (x->dtype != AG_F32 && (v = ag_tape_alloc(t, &t->data, x->size, AG_F32)))
        t->k->widen(x->size, x->data, v);
    if (!v || !device) return v;
    const float *host = ag_on_host(t, v, (size_t)x->size * sizeof *host);
    ag_arena_rewind(&t->data, m);
    return host;
}

const int32_t *ag_ints(ag_tape *t, const ag_tensor *x)
{
    return t->error || x->host ? x->host : ag_on_host(t, x->data, ag_tensor_bytes(x));
}

double ag_value(ag_tape *t, const ag_tensor *x, int64_t i)
{
    const size_t size = ag_dtype_size(x->dtype);
    double number = 0;               /* room for one of any type */
    if (t->error) return NAN;
    ag_device_read(t->k->device, &number, (const char *)x->data + (size_t)i * size, size);
    return ag_tape_check(t, NULL) == AG_OK ? ag_number_at(x->dtype, &number, 0) : (double)NAN;
}

int32_t ag_draw_last(ag_tape *t, const ag_tensor *x, const ag_draw *d)
{
    if (t->error) return -1;
    const ag_kernels *k = x->dtype == t->k->dtype ? t->k : t->k->wide;
    const int64_t n = ag_cols(x);
    const ag_mark m = ag_arena_mark(&t->data);
    int32_t *idx = ag_tape_alloc(t, &t->data, 1, AG_I32), index = -1;
    if (idx) {
        const size_t at = (size_t)(x->size - n) * ag_dtype_size(x->dtype);
        k->draw(d, n, (const char *)x->data + at, idx);
        ag_device_read(k->device, &index, idx, sizeof index);
    }
    ag_arena_rewind(&t->data, m);
    return ag_tape_check(t, NULL) == AG_OK ? index : -1;
}

ag_tensor *ag_input_i32(ag_tape *t, ag_shape shape, const int32_t *src)
{
    ag_tensor *x = ag_leaf_new(t, &shape, AG_I32, false);
    if (!x) return ag_poison(t);
    const size_t bytes = (size_t)x->size * sizeof *src;
    x->host = x->data;
    if (t->k->device) {
        int32_t *host = ag_tape_meta(t, bytes);
        if (!host) return ag_poison(t);
        if (bytes) memcpy(host, src, bytes);
        x->host = host;
    }
    if (!t->plan || !t->k->device) ag_device_write(t->k->device, x->data, src, bytes);
    return x;
}
