/*
 * layernorm.c -- y = (x - mean) * rstd * gain + bias over the last dimension (1607.06450).
 *
 * With xh = (x - mean) * rstd and g = dy * gain:
 *     dx = rstd * (g - mean(g) - xh * mean(g * xh))
 *     dgain = sum of dy * xh     dbias = sum of dy
 * Forward saves mean and rstd = 1/sqrt(var + eps), two numbers a row.
 */
#include "../op.h"
#include "../ops.h"

enum { X, GAIN, BIAS };

static int layernorm_shape(ag_call *c, ag_shape *out)
{
    char a[96], b[96];
    if (c->in[X]->shape.ndim < 1)
        return ag_fail(c->tape, AG_ESHAPE, "layernorm: a scalar has no last dimension");
    for (int i = GAIN; i <= BIAS; i++)
        if (c->in[i] && (c->in[i]->shape.ndim != 1 || c->in[i]->size != ag_cols(c->in[X])))
            return ag_fail(c->tape, AG_ESHAPE, "layernorm: %s %s does not fit x %s",
                           i == GAIN ? "gain" : "bias",
                           ag_shape_text(&c->in[i]->shape, a), ag_shape_text(&c->in[X]->shape, b));
    out[0] = c->in[X]->shape;
    return AG_OK;
}

static size_t layernorm_saved(const ag_call *c)
{
    return 2 * (size_t)ag_rows(c->in[X]) * ag_kept_size(c);
}

static void *saved_mean(const ag_call *c) { return c->saved; }

static void *saved_rstd(const ag_call *c)
{
    return (char *)c->saved + (size_t)ag_rows(c->in[X]) * ag_kept_size(c);
}

static void layernorm_forward(ag_call *c)
{
    c->k->layernorm_fwd(ag_rows(c->in[X]), ag_cols(c->in[X]), c->attr.layernorm.eps, c->in[X]->data,
                        c->in[GAIN] ? c->in[GAIN]->data : NULL,
                        c->in[BIAS] ? c->in[BIAS]->data : NULL, c->out[0]->data, saved_mean(c),
                        saved_rstd(c));
}

static void layernorm_backward(ag_call *c)
{
    bool acc;
    void *dgain = ag_grad_add(c, GAIN), *dbias = ag_grad_add(c, BIAS), *dx = ag_grad_of(c, X, &acc);
    c->k->layernorm_bwd(ag_rows(c->in[X]), ag_cols(c->in[X]), c->in[X]->data,
                        c->in[GAIN] ? c->in[GAIN]->data : NULL, saved_mean(c), saved_rstd(c),
                        c->out[0]->grad, dx, acc, dgain, dbias);
}

static int64_t layernorm_flops(const ag_call *c) { return 7 * c->in[X]->size; }

static bool layernorm_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->layernorm_fwd && k->layernorm_bwd;
}

static bool layernorm_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 0 }, N[] = { 1, 2, 5, 33, 64 };
    const unsigned absent = (unsigned)ag_digit(&i, 4) << GAIN;
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 5)];
    *s = (ag_sample){ .in = { AG_SHAPE(m, n), AG_SHAPE(n), AG_SHAPE(n) }, .absent = absent,
                      .lo = -2, .hi = 2, .attr.layernorm.eps = i == 1 ? 1e-2 : 1e-5 };
    if (i == 1) s->in[X] = AG_SHAPE(2, m, n);
    if (i == 2) {
        s->in[X] = absent == 3u << GAIN ? (ag_shape){ 0 } : AG_SHAPE(m, n + 1);
        s->bad = AG_ESHAPE;
    }
    return i < 3;
}

const ag_op ag_op_layernorm = {
    .name = "layernorm", .doc = "y[..,n] = (x - mean) / sqrt(var + eps) * gain[n] + bias[n]",
    .n_in = 3, .n_out = 1, .optional = 1u << GAIN | 1u << BIAS,
    .shape = layernorm_shape, .saved_bytes = layernorm_saved, .forward = layernorm_forward,
    .backward = layernorm_backward,
    .cheap = ag_cheap_forward, .flops = layernorm_flops, .unread = ag_unread_out,
    .half = layernorm_half, .weights = 1u << GAIN | 1u << BIAS,
    .sample = layernorm_sample,
};

ag_tensor *ag_layernorm(ag_tape *t, ag_tensor *x, ag_tensor *gain, ag_tensor *bias, double eps)
{
    return ag_apply(t, &ag_op_layernorm, (ag_tensor *[AG_MAX_IN]){ x, gain, bias },
                    &(ag_attr){ .layernorm = { eps } }, NULL);
}
