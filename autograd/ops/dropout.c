/*
 * dropout.c -- y = residual + x * keep / (1 - p);  keep is 1 with probability 1 - p, a function of
 * the noise key, so that backward makes it again and nothing is saved.
 */
#include "../op.h"
#include "../ops.h"

enum { X, R };

static int dropout_shape(ag_call *c, ag_shape *out)
{
    char a[96], b[96];
    if (!(c->attr.dropout.p >= 0 && c->attr.dropout.p < 1))
        return ag_fail(c->tape, AG_ERANGE, "dropout: probability %g is not in [0, 1)",
                       c->attr.dropout.p);
    if (c->in[R] && !ag_shape_equal(&c->in[R]->shape, &c->in[X]->shape))
        return ag_fail(c->tape, AG_ESHAPE, "dropout: x %s, residual %s",
                       ag_shape_text(&c->in[X]->shape, a), ag_shape_text(&c->in[R]->shape, b));
    out[0] = c->in[X]->shape;
    return AG_OK;
}

static ag_noise noise_of(const ag_call *c)
{
    return ag_noise_for(c->tape, c->attr.dropout.site, ag_rows(c->in[X]));
}

static void dropout_forward(ag_call *c)
{
    const ag_noise z = noise_of(c);
    c->k->dropout_fwd(ag_rows(c->in[X]), ag_cols(c->in[X]), c->attr.dropout.p, &z, c->in[X]->data,
                      c->in[R] ? c->in[R]->data : NULL, c->out[0]->data);
}

static void dropout_backward(ag_call *c)
{
    const ag_noise z = noise_of(c);
    bool acc;
    void *dx = ag_grad_of(c, X, &acc);
    if (dx)
        c->k->dropout_bwd(ag_rows(c->in[X]), ag_cols(c->in[X]), c->attr.dropout.p, &z,
                          c->out[0]->grad, dx, acc);
    ag_grad_pass(c, R);
}

static bool dropout_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->dropout_fwd && k->dropout_bwd;
}

static bool dropout_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 0 }, N[] = { 1, 7, 64, 131 };
    static const double P[] = { 0, 0.2, 0.5 };
    const bool absent = ag_digit(&i, 2);
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 4)];
    *s = (ag_sample){ .in = { AG_SHAPE(m, n), AG_SHAPE(m, n) }, .absent = absent ? 1u << R : 0,
                      .lo = -1, .hi = 1 };
    s->attr.dropout.p = P[ag_digit(&i, 3)];
    s->attr.dropout.site = 5;
    if (i == 1) {
        if (absent) s->attr.dropout.p += 1;
        else s->in[R] = AG_SHAPE(m, n + 1);
        s->bad = absent ? AG_ERANGE : AG_ESHAPE;
    }
    return i < 2;
}

const ag_op ag_op_dropout = {
    .name = "dropout", .doc = "y = residual + x * keep / (1 - p)", .n_in = 2, .n_out = 1,
    .optional = 1u << R, .passes = 1u << R, .shape = dropout_shape, .forward = dropout_forward,
    .backward = dropout_backward, .unread = ag_unread_all, .half = dropout_half,
    .sample = dropout_sample,
};

ag_tensor *ag_dropout(ag_tape *t, ag_tensor *x, ag_tensor *residual, double p, uint32_t site)
{
    return ag_apply(t, &ag_op_dropout, (ag_tensor *[AG_MAX_IN]){ x, residual },
                    &(ag_attr){ .dropout = { p, site } }, NULL);
}
