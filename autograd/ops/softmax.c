/*
 * softmax.c -- softmax and log-softmax over the last dimension.
 *
 *     y = softmax(x):      dx = y * (dy - sum(dy * y))
 *     y = log softmax(x):  dx = dy - exp(y) * sum(dy)
 */
#include "../op.h"
#include "../ops.h"

static int softmax_shape(ag_call *c, ag_shape *out)
{
    if (c->in[0]->shape.ndim < 1)
        return ag_fail(c->tape, AG_ESHAPE, "%s: a scalar has no last dimension", c->op->name);
    out[0] = c->in[0]->shape;
    return AG_OK;
}

static void softmax_forward(ag_call *c)
{
    c->k->softmax_fwd(ag_rows(c->in[0]), ag_cols(c->in[0]), c->attr.softmax.log, c->in[0]->data,
                      c->out[0]->data);
}

static void softmax_backward(ag_call *c)
{
    bool acc;
    void *dx = ag_grad_of(c, 0, &acc);
    c->k->softmax_bwd(ag_rows(c->in[0]), ag_cols(c->in[0]), c->attr.softmax.log, c->out[0]->data,
                      c->out[0]->grad, dx, acc);
}

static int64_t softmax_flops(const ag_call *c) { return 4 * c->in[0]->size; }

static bool softmax_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->softmax_fwd && k->softmax_bwd;
}

static bool sample(int64_t i, ag_sample *s, bool log)
{
    static const int64_t M[] = { 1, 5, 0 }, N[] = { 1, 2, 16, 65 };
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 4)];
    *s = (ag_sample){ .in = { AG_SHAPE(m, n) }, .lo = -3, .hi = 3, .attr.softmax.log = log };
    if (i == 1) s->in[0] = AG_SHAPE(2, m, n);
    if (i == 2) {
        s->in[0] = (ag_shape){ 0 };
        s->bad = AG_ESHAPE;
    }
    return i < 3;
}

static bool softmax_sample(int64_t i, ag_sample *s) { return sample(i, s, false); }
static bool log_softmax_sample(int64_t i, ag_sample *s) { return sample(i, s, true); }

const ag_op ag_op_softmax = {
    .name = "softmax", .doc = "y[..,n] = exp(x) / sum(exp(x))", .n_in = 1, .n_out = 1,
    .shape = softmax_shape, .forward = softmax_forward, .backward = softmax_backward,
    .flops = softmax_flops, .half = softmax_half,
    .sample = softmax_sample,
};

const ag_op ag_op_log_softmax = {
    .name = "log_softmax", .doc = "y[..,n] = x - log(sum(exp(x)))", .n_in = 1, .n_out = 1,
    .shape = softmax_shape, .forward = softmax_forward, .backward = softmax_backward,
    .flops = softmax_flops, .half = softmax_half,
    .sample = log_softmax_sample,
};

ag_tensor *ag_softmax(ag_tape *t, ag_tensor *x)
{
    return ag_apply(t, &ag_op_softmax, (ag_tensor *[AG_MAX_IN]){ x },
                    &(ag_attr){ .softmax = { false } }, NULL);
}

ag_tensor *ag_log_softmax(ag_tape *t, ag_tensor *x)
{
    return ag_apply(t, &ag_op_log_softmax, (ag_tensor *[AG_MAX_IN]){ x },
                    &(ag_attr){ .softmax = { true } }, NULL);
}
