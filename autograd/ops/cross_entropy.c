/*
 * cross_entropy.c -- the mean of -log softmax(x)[target] over the rows that have a target, from
 * logits, in nats.
 *
 *     loss = mean(lse(x) - x[target])        dx = (softmax(x) - onehot(target)) * dloss / rows
 */
#include "../op.h"
#include "../ops.h"

static int cross_entropy_shape(ag_call *c, ag_shape *out)
{
    char a[96], b[96];
    if (c->in[0]->shape.ndim < 1 || c->in[1]->size != ag_rows(c->in[0]))
        return ag_fail(c->tape, AG_ESHAPE, "cross_entropy: logits %s want one target a row, got %s",
                       ag_shape_text(&c->in[0]->shape, a), ag_shape_text(&c->in[1]->shape, b));
    out[0] = (ag_shape){ 0 };
    return AG_OK;
}

static size_t cross_entropy_saved(const ag_call *c)
{
    return (size_t)ag_rows(c->in[0]) * ag_kept_size(c);
}

static void cross_entropy_forward(ag_call *c)
{
    const ag_tensor *x = c->in[0];
    if (ag_check_index(c, 1, INT32_MIN, ag_cols(x)) < 0) return;
    c->k->xent_fwd(ag_rows(x), ag_cols(x), x->data, c->in[1]->data, c->saved, c->out[0]->data);
}

static void cross_entropy_backward(ag_call *c)
{
    const ag_tensor *x = c->in[0];
    bool acc;
    void *dx = ag_grad_of(c, 0, &acc);
    c->k->xent_bwd(ag_rows(x), ag_cols(x), x->data, c->in[1]->data, c->saved, c->out[0]->grad, dx,
                   acc);
}

static int64_t cross_entropy_flops(const ag_call *c) { return 4 * c->in[0]->size; }

static bool cross_entropy_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->xent_fwd && k->xent_bwd;
}

static bool cross_entropy_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 40 }, N[] = { 1, 2, 10, 65 };
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 4)];
    const bool holes = ag_digit(&i, 2);      /* some rows without a target */
    *s = (ag_sample){ .in = { AG_SHAPE(m, n), AG_SHAPE(m) }, .lo = -3, .hi = 3,
                      .int_lo = holes ? -2 : 0, .int_hi = (int32_t)n };
    if (i == 1) {
        s->in[0] = AG_SHAPE(2, m, n);
        s->in[1] = AG_SHAPE(2, m);
    } else if (i == 2) {
        if (holes) s->in[1] = AG_SHAPE(m + 1);
        else s->int_lo = (int32_t)n, s->int_hi = (int32_t)n + 2;
        s->bad = holes ? AG_ESHAPE : AG_ERANGE;
    }
    return i < 3;
}

const ag_op ag_op_cross_entropy = {
    .name = "cross_entropy",
    .doc = "mean over rows with target >= 0 of -log softmax(x[..,n])[target]",
    .n_in = 2, .n_out = 1, .integer_in = 1u << 1, .shape = cross_entropy_shape,
    .f32_out = true,
    .saved_bytes = cross_entropy_saved, .forward = cross_entropy_forward,
    .backward = cross_entropy_backward, .flops = cross_entropy_flops,
    .unread = ag_unread_out,
    .half = cross_entropy_half,
    .sample = cross_entropy_sample,
};

ag_tensor *ag_cross_entropy(ag_tape *t, ag_tensor *logits, ag_tensor *targets)
{
    return ag_apply(t, &ag_op_cross_entropy, (ag_tensor *[AG_MAX_IN]){ logits, targets }, NULL,
                    NULL);
}
