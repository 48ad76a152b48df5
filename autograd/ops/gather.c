/*
 * gather.c -- rows by index, one element per row by index, and the index of the largest element.
 *
 *     gather:  y[r] = x[idx[r]]       dx[idx[r]] += dy[r], in the order of r
 *     pick:    y[r] = x[r, idx[r]]    dx[r, idx[r]] += dy[r]
 */
#include "../op.h"
#include "../ops.h"

int ag_check_index(ag_call *c, int i, int64_t lo, int64_t hi)
{
    const int32_t *idx = c->in[i]->host;
    for (int64_t r = 0; idx && r < c->in[i]->size; r++)
        if (idx[r] < lo || idx[r] >= hi)
            return ag_fail(c->tape, AG_ERANGE, "%s: index %d at position %lld, but there are only "
                           "%lld", c->op->name, idx[r], (long long)r, (long long)hi);
    if (idx) ag_decided_index(c->tape, idx, c->in[i]->size, lo, hi);
    return AG_OK;
}

static int gather_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *x = &c->in[0]->shape, *idx = &c->in[1]->shape;
    char a[96], b[96];
    if (x->ndim != 2 || idx->ndim >= AG_MAX_DIMS)
        return ag_fail(c->tape, AG_ESHAPE,
                       "gather: wanted rows x [v,n] and at most %d dimensions of indices, got %s "
                       "and %s", AG_MAX_DIMS - 1, ag_shape_text(x, a), ag_shape_text(idx, b));
    out[0] = *idx;
    out[0].dim[out[0].ndim++] = x->dim[1];
    return AG_OK;
}

static void gather_forward(ag_call *c)
{
    const ag_tensor *x = c->in[0], *idx = c->in[1];
    if (ag_check_index(c, 1, 0, x->shape.dim[0]) < 0) return;
    c->k->gather_fwd(idx->size, ag_cols(x), idx->data, x->data, c->out[0]->data);
}

static void gather_backward(ag_call *c)
{
    c->k->gather_bwd(c->in[1]->size, ag_rows(c->in[0]), ag_cols(c->in[0]), c->in[1]->data,
                     c->out[0]->grad, ag_grad_add(c, 0));
}

static bool gather_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->gather_fwd && k->gather_bwd;
}

static bool gather_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 9, 0 }, N[] = { 1, 5, 33 }, V[] = { 1, 4 };
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 3)], v = V[ag_digit(&i, 2)];
    *s = (ag_sample){ .in = { AG_SHAPE(v, n), AG_SHAPE(m) }, .lo = -1, .hi = 1,
                      .int_hi = (int32_t)v };
    if (i == 1) s->in[1] = AG_SHAPE(2, m);
    if (i == 2) s->in[0] = AG_SHAPE(v), s->bad = AG_ESHAPE;
    if (i == 3) {
        s->int_lo = (int32_t)v, s->int_hi = (int32_t)v + 1;
        s->bad = m ? AG_ERANGE : 0;
    }
    return i < 4;
}

const ag_op ag_op_gather = {
    .name = "gather", .doc = "y[..,n] = x[idx[..], n]", .n_in = 2, .n_out = 1,
    .integer_in = 1u << 1, .shape = gather_shape, .forward = gather_forward,
    .backward = gather_backward, .unread = ag_unread_out,
    .half = gather_half,
    .sample = gather_sample,
};

ag_tensor *ag_gather(ag_tape *t, ag_tensor *x, ag_tensor *idx)
{
    return ag_apply(t, &ag_op_gather, (ag_tensor *[AG_MAX_IN]){ x, idx }, NULL, NULL);
}

/* the shape of x without its last dimension */
static ag_shape without_last(const ag_shape *x)
{
    ag_shape s = *x;
    s.dim[--s.ndim] = 0;
    return s;
}

static int pick_shape(ag_call *c, ag_shape *out)
{
    char a[96], b[96];
    if (c->in[0]->shape.ndim < 1 || c->in[1]->size != ag_rows(c->in[0]))
        return ag_fail(c->tape, AG_ESHAPE, "pick: x %s wants one index a row, got %s",
                       ag_shape_text(&c->in[0]->shape, a), ag_shape_text(&c->in[1]->shape, b));
    out[0] = without_last(&c->in[0]->shape);
    return AG_OK;
}

static void pick_forward(ag_call *c)
{
    const ag_tensor *x = c->in[0];
    if (ag_check_index(c, 1, 0, ag_cols(x)) < 0) return;
    c->k->pick_fwd(ag_rows(x), ag_cols(x), c->in[1]->data, x->data, c->out[0]->data);
}

static void pick_backward(ag_call *c)
{
    const ag_tensor *x = c->in[0];
    c->k->pick_bwd(ag_rows(x), ag_cols(x), c->in[1]->data, c->out[0]->grad, ag_grad_add(c, 0));
}

static bool pick_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->pick_fwd && k->pick_bwd;
}

static bool pick_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 9, 0 }, N[] = { 1, 5, 33 };
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 3)];
    *s = (ag_sample){ .in = { AG_SHAPE(m, n), AG_SHAPE(m) }, .lo = -1, .hi = 1,
                      .int_hi = (int32_t)n };
    if (i == 1) s->in[0] = AG_SHAPE(2, m, n), s->in[1] = AG_SHAPE(2, m);
    if (i == 2) s->in[1] = AG_SHAPE(m + 1), s->bad = AG_ESHAPE;
    return i < 3;
}

const ag_op ag_op_pick = {
    .name = "pick", .doc = "y[..] = x[.., idx[..]]", .n_in = 2, .n_out = 1, .integer_in = 1u << 1,
    .shape = pick_shape, .forward = pick_forward, .backward = pick_backward, .half = pick_half,
    .sample = pick_sample,
};

ag_tensor *ag_pick(ag_tape *t, ag_tensor *x, ag_tensor *idx)
{
    return ag_apply(t, &ag_op_pick, (ag_tensor *[AG_MAX_IN]){ x, idx }, NULL, NULL);
}

static int argmax_shape(ag_call *c, ag_shape *out)
{
    char a[96];
    if (c->in[0]->shape.ndim < 1 || ag_cols(c->in[0]) < 1)
        return ag_fail(c->tape, AG_ESHAPE, "argmax: %s has no last dimension to look through",
                       ag_shape_text(&c->in[0]->shape, a));
    out[0] = without_last(&c->in[0]->shape);
    return AG_OK;
}

static void argmax_forward(ag_call *c)
{
    c->k->argmax(ag_rows(c->in[0]), ag_cols(c->in[0]), c->in[0]->data, c->out[0]->data);
}

static unsigned argmax_recalls(const ag_call *c)
{
    (void)c;
    return 1;
}

static bool argmax_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->argmax;
}

static bool argmax_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 9, 0 }, N[] = { 1, 5, 33 };
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 3)];
    *s = (ag_sample){ .in = { AG_SHAPE(m, n) }, .lo = -1, .hi = 1 };
    if (i == 1) s->in[0] = (ag_shape){ 0 }, s->bad = AG_ESHAPE;
    return i < 2;
}

const ag_op ag_op_argmax = {
    .name = "argmax", .doc = "the index of the largest of x[..,n]; ties: the lowest", .n_in = 1,
    .n_out = 1, .integer_out = 1, .shape = argmax_shape, .forward = argmax_forward,
    .recalls = argmax_recalls, .nondiff = "its output is an index", .half = argmax_half,
    .sample = argmax_sample,
};

ag_tensor *ag_argmax(ag_tape *t, ag_tensor *x)
{
    return ag_apply(t, &ag_op_argmax, (ag_tensor *[AG_MAX_IN]){ x }, NULL, NULL);
}
