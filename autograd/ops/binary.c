/* binary.c -- the elementwise ops of two arguments of equal shape, from binary.def. */
#include "../op.h"
#include "../ops.h"

static int binary_shape(ag_call *c, ag_shape *out)
{
    if (!ag_shape_equal(&c->in[0]->shape, &c->in[1]->shape)) {
        char a[96], b[96];
        return ag_fail(c->tape, AG_ESHAPE, "%s: shapes differ: %s and %s", c->op->name,
                       ag_shape_text(&c->in[0]->shape, a), ag_shape_text(&c->in[1]->shape, b));
    }
    out[0] = c->in[0]->shape;
    return AG_OK;
}

static void binary_forward(ag_call *c)
{
    c->k->binary_fwd[c->op->id](c->out[0]->size, c->in[0]->data, c->in[1]->data, c->out[0]->data);
}

static void binary_backward(ag_call *c)
{
    const ag_tensor *a = c->in[0], *b = c->in[1], *y = c->out[0];
    const ag_binary_bwd bwd = c->k->binary_bwd[c->op->id];
    bool acc_a, acc_b;
    void *da = ag_grad_of(c, 0, &acc_a), *db = ag_grad_of(c, 1, &acc_b);
    if (da && da == db) {            /* f(x, x): one after the other into the same memory */
        bwd(y->size, a->data, b->data, y->data, y->grad, da, acc_a, NULL, false);
        bwd(y->size, a->data, b->data, y->data, y->grad, NULL, false, db, acc_b);
    } else if (da || db) {
        bwd(y->size, a->data, b->data, y->data, y->grad, da, acc_a, db, acc_b);
    }
}

/* Of a sum: nothing. */
static unsigned binary_unread(const ag_call *c)
{
    const bool sum = c->op->id == AG_BINARY_add || c->op->id == AG_BINARY_sub;
    return sum ? ag_unread_all(c) : c->op->id == AG_BINARY_relu_mask ? ag_unread_out(c) : 0;
}

/* An activation. */
static ag_call_run *binary_cheap(const ag_call *c)
{
    return c->op->id == AG_BINARY_relu_mask ? c->op->forward : NULL;
}

static bool binary_half(const ag_call *c, const ag_kernels *k)
{
    return k->binary_fwd[c->op->id] && k->binary_bwd[c->op->id];
}

static bool binary_sample(int64_t i, ag_sample *s, double lo, double hi, double gap)
{
    static const ag_shape shapes[] = { { 0, { 0 } }, { 1, { 0 } }, { 1, { 17 } }, { 2, { 5, 67 } },
                                       { 3, { 2, 3, 31 } }, { 4, { 2, 1, 4, 5 } } };
    static const ag_shape wrong[] = { { 1, { 16 } }, { 2, { 1, 17 } }, { 0, { 0 } } };
    enum { GOOD = sizeof shapes / sizeof *shapes, BAD = sizeof wrong / sizeof *wrong };
    if (i >= GOOD + BAD) return false;
    *s = (ag_sample){ .lo = lo, .hi = hi, .gap = gap };
    s->in[0] = i < GOOD ? shapes[i] : AG_SHAPE(17);
    s->in[1] = i < GOOD ? shapes[i] : wrong[i - GOOD];
    s->bad = i < GOOD ? 0 : AG_ESHAPE;
    return true;
}

#define AG_BINARY(n, f, da, db, lo, hi, gap)                                                     \
    static bool n##_sample(int64_t i, ag_sample *s) { return binary_sample(i, s, lo, hi, gap); } \
    const ag_op ag_op_##n = {                                                                    \
        .name = #n, .doc = "y = " #f, .n_in = 2, .n_out = 1, .id = AG_BINARY_##n,                \
        .shape = binary_shape, .forward = binary_forward, .backward = binary_backward,           \
        .unread = binary_unread, .cheap = binary_cheap, .half = binary_half,                     \
        .sample = n##_sample };                                                                  \
    ag_tensor *ag_##n(ag_tape *t, ag_tensor *a, ag_tensor *b)                                    \
    { return ag_apply(t, &ag_op_##n, (ag_tensor *[AG_MAX_IN]){ a, b }, NULL, NULL); }
#include "../binary.def"
#undef AG_BINARY
