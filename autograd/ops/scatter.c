/*
 * scatter.c -- rows to where they belong: what gather took out goes back.
 *
 *     y = residual (or 0), y[idx[r]] += x[r], in the order of r       dx[r] = dy[idx[r]]
 */
#include "../op.h"
#include "../ops.h"

enum { X, IDX, R };

static int scatter_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *x = &c->in[X]->shape, *y = &c->attr.reshape;
    char a[96], b[96];
    if (x->ndim != 2 || y->ndim < 2 || x->dim[1] != y->dim[y->ndim - 1] ||
        c->in[IDX]->size != x->dim[0])
        return ag_fail(c->tape, AG_ESHAPE, "scatter: wanted rows x [m,n] for %s and an index for "
                       "each, got %s and %lld indices", ag_shape_text(y, b), ag_shape_text(x, a),
                       (long long)c->in[IDX]->size);
    if (c->in[R] && !ag_shape_equal(&c->in[R]->shape, y))
        return ag_fail(c->tape, AG_ESHAPE, "scatter: residual %s does not fit %s",
                       ag_shape_text(&c->in[R]->shape, a), ag_shape_text(y, b));
    out[0] = *y;
    return AG_OK;
}

static void scatter_forward(ag_call *c)
{
    ag_tensor *y = c->out[0];
    const int64_t rows = ag_rows(y), n = ag_cols(y);
    if (ag_check_index(c, IDX, 0, rows) < 0) return;
    if (c->in[R]) c->k->copy_rows(rows, n, c->in[R]->data, n, y->data, n, false);
    else c->k->fill(y->size, 0, y->data);
    c->k->gather_bwd(c->in[IDX]->size, rows, n, c->in[IDX]->data, c->in[X]->data, y->data);
}

static void scatter_backward(ag_call *c)
{
    const int64_t m = c->in[IDX]->size, n = ag_cols(c->in[X]);
    bool acc;
    void *dx = ag_grad_of(c, X, &acc);
    if (dx) {
        void *rows = acc ? ag_scratch(c->tape, (size_t)(m * n) * ag_real_size(c)) : dx;
        if (!rows) return;
        c->k->gather_fwd(m, n, c->in[IDX]->data, c->out[0]->grad, rows);
        if (acc) c->k->add(m * n, rows, dx);
    }
    ag_grad_pass(c, R);
}

static size_t scatter_workspace(const ag_call *c, bool back)
{
    const ag_tensor *x = c->in[X];
    return back && x->needs_grad && x->grad_written ? (size_t)x->size * ag_real_size(c) : 0;
}

static bool scatter_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->copy_rows && k->gather_fwd && k->gather_bwd && k->add;
}

static bool scatter_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 9, 0 }, N[] = { 1, 5, 33 }, V[] = { 1, 4 };
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 3)], v = V[ag_digit(&i, 2)];
    const bool bare = ag_digit(&i, 2);
    *s = (ag_sample){ .in = { AG_SHAPE(m, n), AG_SHAPE(m), AG_SHAPE(v, n) },
                      .absent = bare ? 1u << R : 0, .lo = -1, .hi = 1, .int_hi = (int32_t)v,
                      .attr.reshape = AG_SHAPE(v, n) };
    if (i == 1) s->attr.reshape = s->in[R] = AG_SHAPE(2, v, n);
    if (i == 2) {
        if (bare) s->in[IDX] = AG_SHAPE(m + 1);
        else s->in[R] = AG_SHAPE(v + 1, n);
        s->bad = AG_ESHAPE;
    }
    if (i == 3) {
        s->int_lo = (int32_t)v, s->int_hi = (int32_t)v + 1;
        s->bad = m ? AG_ERANGE : 0;
    }
    return i < 4;
}

const ag_op ag_op_scatter = {
    .name = "scatter", .doc = "y[..,n] = residual, y[idx[r]] += x[r,n]", .n_in = 3, .n_out = 1,
    .optional = 1u << R, .integer_in = 1u << IDX, .passes = 1u << R, .shape = scatter_shape,
    .forward = scatter_forward, .backward = scatter_backward,
    .workspace = scatter_workspace, .unread = ag_unread_out,
    .half = scatter_half,
    .sample = scatter_sample,
};

ag_tensor *ag_scatter(ag_tape *t, ag_tensor *x, ag_tensor *idx, ag_shape shape,
                      ag_tensor *residual)
{
    return ag_apply(t, &ag_op_scatter, (ag_tensor *[AG_MAX_IN]){ x, idx, residual },
                    &(ag_attr){ .reshape = shape }, NULL);
}
