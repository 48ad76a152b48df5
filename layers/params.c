#include "layers/params.h"

#include "autograd/base/rng.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 16 };                 /* elements: parameters start at multiples of it */

nn_params *nn_params_new(ag_dtype dtype)
{
    nn_params *p = ag_fault_now() ? NULL : calloc(1, sizeof *p);
    if (p) p->dtype = dtype;
    return p;
}

/* Of the weights, or of the gradients. */
static size_t bytes_of(const nn_params *p) { return (size_t)p->n * ag_dtype_size(p->dtype); }

void nn_params_free(nn_params *p)
{
    if (!p) return;
    ag_device_free(p->device, p->weights, bytes_of(p));
    ag_device_free(p->device, p->grads, bytes_of(p));
    ag_device_free(p->device, p->narrow, (size_t)p->n * sizeof *p->narrow);
    ag_arena_release(&p->memory);
    free(p->items);
    free(p);
}

/* --- building --------------------------------------------------------------------------------- */

size_t nn_push(nn_params *p, const char *fmt, ...)
{
    const size_t at = strlen(p->path), room = sizeof p->path - at;
    va_list ap;
    va_start(ap, fmt);
    const int n = vsnprintf(p->path + at, room, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n + 2 > room) {
        p->path[at] = '\0';
        ag_err_set(&p->err, AG_EFAIL, "the name of a parameter below '%s' is too long", p->path);
    } else {
        memcpy(p->path + at + n, "/", 2);
    }
    return at;
}

void nn_pop(nn_params *p, size_t at) { p->path[at] = '\0'; }

uint32_t nn_site(nn_params *p) { return p->n_sites++; }

static nn_item *item_new(nn_params *p)
{
    if (p->n_items == p->cap_items) {
        const int cap = p->cap_items ? 2 * p->cap_items : 64;
        nn_item *items = ag_fault_now() ? NULL : realloc(p->items, (size_t)cap * sizeof *items);
        if (!items) return NULL;
        p->items = items;
        p->cap_items = cap;
    }
    return &p->items[p->n_items];
}

/* Elements of the shape; -1 if a size is not positive or the product too large. */
static int64_t checked_size(const ag_shape *s)
{
    int64_t n = 1;
    for (int i = 0; i < s->ndim; i++)
        if (s->dim[i] < 1 || __builtin_mul_overflow(n, s->dim[i], &n) || n > INT64_MAX / 64)
            return -1;
    return n;
}

ag_tensor *nn_param(nn_params *p, const char *name, ag_shape shape, nn_init init)
{
    if (p->err.code) return NULL;
    char text[96];
    const int64_t count = checked_size(&shape);
    if (count < 0) {
        ag_err_set(&p->err, AG_ESHAPE, "parameter %s%s: shape %s is empty or too large", p->path,
                   name, ag_shape_text(&shape, text));
        return NULL;
    }
    const size_t len = strlen(p->path) + strlen(name) + 1;
    char *full = ag_arena_alloc(&p->memory, len, 1);
    ag_tensor *x = ag_arena_alloc(&p->memory, 1, sizeof *x);
    nn_item *item = item_new(p);
    if (!full || !x || !item) {
        ag_err_set(&p->err, AG_ENOMEM, "out of memory for parameter %s%s", p->path, name);
        return NULL;
    }
    snprintf(full, len, "%s%s", p->path, name);
    if (nn_params_find(p, full)) {
        ag_err_set(&p->err, AG_EFAIL, "two parameters are named %s", full);
        return NULL;
    }
    *x = (ag_tensor){ .shape = shape, .size = count, .dtype = p->dtype,
                      .grad_written = true, .grad_kept = true, .name = full };
    *item = (nn_item){ full, x, p->n, count, shape.ndim >= 2, init };
    p->n_items++;
    p->n_used += count;
    if (__builtin_add_overflow(p->n, (count + ALIGN - 1) / ALIGN * ALIGN, &p->n))
        ag_err_set(&p->err, AG_ENOMEM, "the model has too many parameters");
    return x;
}

const nn_item *nn_params_find(const nn_params *p, const char *name)
{
    for (int i = 0; i < p->n_items; i++)
        if (!strcmp(p->items[i].name, name)) return &p->items[i];
    return NULL;
}

/* --- memory and initial values ---------------------------------------------------------------- */

static void point_to(nn_params *p, void *weights)
{
    const size_t size = ag_dtype_size(p->dtype);
    p->weights = weights;
    for (int i = 0; i < p->n_items; i++)
        p->items[i].tensor->data = (char *)weights + (size_t)p->items[i].offset * size;
}

static int no_memory(const nn_params *p, const char *what, size_t bytes, ag_err *err)
{
    return ag_err_set(err, AG_ENOMEM, "out of memory for %s%lld parameters: %.1f MB", what,
                      (long long)p->n_used, 1e-6 * (double)bytes);
}

int nn_params_layout(nn_params *p, ag_err *err)
{
    if (p->err.code) return ag_err_set(err, p->err.code, "%s", p->err.msg);
    void *weights = ag_block_alloc(bytes_of(p));
    if (!weights) return no_memory(p, "", bytes_of(p), err);
    point_to(p, weights);
    return AG_OK;
}

int nn_params_place(nn_params *p, const ag_device *d, ag_err *err)
{
    const size_t bytes = bytes_of(p);
    assert(!p->grads && !p->narrow);
    if (p->device == d) return AG_OK;
    void *weights = ag_device_alloc(d, bytes);
    if (!weights) return no_memory(p, "", bytes, err);
    ag_device_write(d, weights, p->weights, bytes);
    ag_block_free(p->weights, bytes);
    p->device = d;
    point_to(p, weights);
    return AG_OK;
}

int nn_params_grads(nn_params *p, ag_err *err)
{
    const size_t size = ag_dtype_size(p->dtype);
    if (p->grads) return AG_OK;
    p->grads = ag_device_alloc(p->device, bytes_of(p));
    if (!p->grads) return no_memory(p, "the gradients of ", bytes_of(p), err);
    for (int i = 0; i < p->n_items; i++) {
        ag_tensor *x = p->items[i].tensor;
        x->grad = (char *)p->grads + (size_t)p->items[i].offset * size;
        x->needs_grad = true;
    }
    return AG_OK;
}

void *nn_params_swap(nn_params *p, void *weights)
{
    void *had = p->weights;
    point_to(p, weights);
    return had;
}

int nn_params_alloc(nn_params *p, uint64_t seed, ag_err *err)
{
    const int r = nn_params_layout(p, err);
    for (int i = 0; r == AG_OK && i < p->n_items; i++)
        nn_init_fill(&p->items[i].init, seed, AG_SITE_INIT + (uint32_t)i, p->items[i].tensor);
    return r;
}

void nn_params_zero_grad(nn_params *p)
{
    enum { PART = 1 << 20 };
    char *g = p->grads;
    if (p->device) {
        p->device->clear(g, bytes_of(p));
        return;
    }
    const int64_t bytes = (int64_t)bytes_of(p);
    #pragma omp parallel for schedule(static) if (bytes > PART)
    for (int64_t at = 0; at < bytes; at += PART)
        memset(g + at, 0, (size_t)(bytes - at < PART ? bytes - at : PART));
}

int64_t nn_params_below(const nn_params *p, const char *prefix)
{
    int64_t n = 0;
    for (int i = 0; i < p->n_items; i++)
        if (!strncmp(p->items[i].name, prefix, strlen(prefix))) n += p->items[i].count;
    return n;
}

int nn_params_narrow(nn_params *p, ag_err *err)
{
    const size_t bytes = (size_t)p->n * sizeof *p->narrow;
    p->narrow = ag_device_alloc(p->device, bytes);
    if (!p->narrow) return no_memory(p, "the 16-bit copy of ", bytes, err);
    for (int i = 0; i < p->n_items; i++)
        p->items[i].tensor->narrow = p->narrow + p->items[i].offset;
    return AG_OK;
}

void nn_params_round(nn_params *p, const ag_kernels *k)
{
    if (p->narrow) k->narrow(p->n, p->weights, p->narrow);
}
