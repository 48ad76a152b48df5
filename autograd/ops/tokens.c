/*
 * tokens.c -- what a model asks of its ids: some of the columns, and how long a padded source is.
 */
#include "../device.h"
#include "../op.h"
#include "../ops.h"

#include <string.h>

/* Where the host writes out[0], whose inputs the host knows; afterwards it goes to the device. */
static int32_t *host_ints(ag_call *c)
{
    if (!c->k->device) return c->out[0]->data;
    int32_t *y = ag_tape_meta(c->tape, ag_tensor_bytes(c->out[0]));
    c->out[0]->host = y;
    return y;
}

static void host_ints_done(ag_call *c)
{
    if (c->k->device && c->out[0]->host)
        c->k->device->write(c->out[0]->data, c->out[0]->host, ag_tensor_bytes(c->out[0]));
}

/* The first of the columns asked for, and one past the last, must be there. */
static int check_columns(const ag_call *c)
{
    const ag_shape *x = &c->in[0]->shape;
    const int64_t from = c->attr.columns.from, n = c->attr.columns.n;
    char text[96];
    if (x->ndim == 2 && from >= 0 && n >= 0 && from <= x->dim[1] && n <= x->dim[1] - from)
        return AG_OK;
    return ag_fail(c->tape, AG_ESHAPE, "%s: wanted ids [b,m] with columns %lld to %lld, got %s",
                   c->op->name, (long long)from, (long long)(from + n - 1),
                   ag_shape_text(x, text));
}

static int columns_shape(ag_call *c, ag_shape *out)
{
    const int r = check_columns(c);
    if (r == AG_OK) out[0] = AG_SHAPE(c->in[0]->shape.dim[0], c->attr.columns.n);
    return r;
}

static void columns_forward(ag_call *c)
{
    const int64_t *x = c->in[0]->shape.dim, n = c->attr.columns.n;
    const int32_t *from = c->in[0]->host;
    int32_t *y = host_ints(c);
    for (int64_t b = 0; y && b < x[0]; b++)
        memcpy(y + b * n, from + b * x[1] + c->attr.columns.from, (size_t)n * sizeof *from);
    host_ints_done(c);
}

static bool columns_sample(int64_t i, ag_sample *s)
{
    static const int64_t FROM[] = { 0, 3 }, N[] = { 1, 4, 0 };
    *s = (ag_sample){ .in = { AG_SHAPE(3, 7) }, .int_lo = 0, .int_hi = 50 };
    s->attr.columns.from = FROM[ag_digit(&i, 2)];
    s->attr.columns.n = N[ag_digit(&i, 3)];
    if (i == 1) s->attr.columns.n = 8 - s->attr.columns.from, s->bad = AG_ESHAPE;
    if (i == 2) s->in[0] = AG_SHAPE(7), s->bad = AG_ESHAPE;
    return i < 3;
}

const ag_op ag_op_columns = {
    .name = "columns", .doc = "y[b,i] = ids[b, from + i], n columns", .n_in = 1, .n_out = 1,
    .integer_in = 1, .integer_out = 1, .shape = columns_shape, .forward = columns_forward,
    .nondiff = "ids have no gradient", .sample = columns_sample,
};

ag_tensor *ag_columns(ag_tape *t, ag_tensor *ids, int64_t from, int64_t n)
{
    return ag_apply(t, &ag_op_columns, (ag_tensor *[AG_MAX_IN]){ ids },
                    &(ag_attr){ .columns = { from, n } }, NULL);
}

static int count_shape(ag_call *c, ag_shape *out)
{
    const int r = check_columns(c);
    if (r == AG_OK) out[0] = AG_SHAPE(c->in[0]->shape.dim[0]);
    return r;
}

static void count_forward(ag_call *c)
{
    const int64_t *x = c->in[0]->shape.dim;
    const int32_t *ids = c->in[0]->host;
    int32_t *y = host_ints(c);
    for (int64_t b = 0; y && b < x[0]; b++, ids += x[1]) {
        int32_t n = 0;
        for (int64_t i = 0; i < c->attr.columns.n; i++) n += ids[i] != 0;
        y[b] = n;
    }
    host_ints_done(c);
}

static bool count_sample(int64_t i, ag_sample *s)
{
    static const int64_t N[] = { 0, 1, 4, 7 };
    *s = (ag_sample){ .in = { AG_SHAPE(3, 7) }, .int_lo = 0, .int_hi = 2 };
    s->attr.columns.n = N[ag_digit(&i, 4)];
    if (i == 1) s->attr.columns.n = 8, s->bad = AG_ESHAPE;
    return i < 2;
}

const ag_op ag_op_count_tokens = {
    .name = "count_tokens", .doc = "y[b] = how many of the first n ids[b,..] are not 0",
    .n_in = 1, .n_out = 1, .integer_in = 1, .integer_out = 1, .shape = count_shape,
    .forward = count_forward, .nondiff = "ids have no gradient", .sample = count_sample,
};

ag_tensor *ag_count_tokens(ag_tape *t, ag_tensor *ids, int64_t n)
{
    return ag_apply(t, &ag_op_count_tokens, (ag_tensor *[AG_MAX_IN]){ ids },
                    &(ag_attr){ .columns = { 0, n } }, NULL);
}
