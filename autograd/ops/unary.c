/* unary.c -- the elementwise ops of one argument, from unary.def. */
#include "../op.h"
#include "../ops.h"

static int unary_shape(ag_call *c, ag_shape *out)
{
    out[0] = c->in[0]->shape;
    return AG_OK;
}

static void unary_forward(ag_call *c)
{
    c->k->unary_fwd[c->op->id](c->out[0]->size, c->in[0]->data, c->out[0]->data);
}

static void unary_backward(ag_call *c)
{
    bool acc;
    void *dx = ag_grad_of(c, 0, &acc);
    if (dx)
        c->k->unary_bwd[c->op->id](c->out[0]->size, c->in[0]->data, c->out[0]->data,
                                   c->out[0]->grad, dx, acc);
}

static bool unary_half(const ag_call *c, const ag_kernels *k)
{
    return k->unary_fwd[c->op->id] && k->unary_bwd[c->op->id];
}

static bool unary_sample(int64_t i, ag_sample *s, double lo, double hi, double gap)
{
    static const ag_shape shapes[] = { { 0, { 0 } }, { 1, { 1 } }, { 1, { 0 } }, { 1, { 17 } },
                                       { 2, { 5, 67 } },
                                       { 3, { 2, 3, 31 } }, { 4, { 2, 3, 4, 5 } } };
    if (i >= (int64_t)(sizeof shapes / sizeof *shapes)) return false;
    *s = (ag_sample){ .in = { shapes[i] }, .lo = lo, .hi = hi, .gap = gap };
    return true;
}

#define AG_UNARY(n, f, df, lo, hi, gap)                                                         \
    static bool n##_sample(int64_t i, ag_sample *s) { return unary_sample(i, s, lo, hi, gap); } \
    const ag_op ag_op_##n = {                                                                   \
        .name = #n, .doc = "y = " #f, .n_in = 1, .n_out = 1, .id = AG_UNARY_##n,                \
        .shape = unary_shape, .forward = unary_forward, .backward = unary_backward,             \
        .cheap = ag_cheap_forward, .half = unary_half, .sample = n##_sample };                  \
    ag_tensor *ag_##n(ag_tape *t, ag_tensor *x)                                                 \
    { return ag_apply(t, &ag_op_##n, (ag_tensor *[AG_MAX_IN]){ x }, NULL, NULL); }
#include "../unary.def"
#undef AG_UNARY
