/* reduce.c -- sum, mean, sums of rows, and the product with a number. */
#include "../op.h"
#include "../ops.h"

static int scalar_shape(ag_call *c, ag_shape *out)
{
    (void)c;
    out[0] = (ag_shape){ 0 };
    return AG_OK;
}

/* sum: 1; mean: 1/n */
static double weight(const ag_call *c)
{
    return c->op == &ag_op_sum ? 1 : c->in[0]->size ? 1 / (double)c->in[0]->size : 0;
}

static void sum_forward(ag_call *c)
{
    c->k->sum(c->in[0]->size, weight(c), c->in[0]->data, c->out[0]->data);
}

static void sum_backward(ag_call *c)
{
    bool acc;
    void *dx = ag_grad_of(c, 0, &acc);
    c->k->add_scalar(c->in[0]->size, weight(c), c->out[0]->grad, dx, acc);
}

static bool sum_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->sum && k->add_scalar;
}

static bool sum_sample(int64_t i, ag_sample *s)
{
    static const ag_shape shapes[] = { { 0, { 0 } }, { 1, { 0 } }, { 1, { 1 } }, { 2, { 3, 35 } },
                                       { 1, { 5000 } },
                                       { 4, { 2, 3, 4, 5 } } };
    if (i >= (int64_t)(sizeof shapes / sizeof *shapes)) return false;
    *s = (ag_sample){ .in = { shapes[i] }, .lo = -1, .hi = 1 };
    return true;
}

const ag_op ag_op_sum = {
    .name = "sum", .doc = "y = sum of x", .n_in = 1, .n_out = 1, .shape = scalar_shape,
    .f32_out = true, .forward = sum_forward, .backward = sum_backward, .unread = ag_unread_all,
    .half = sum_half,
    .sample = sum_sample,
};

const ag_op ag_op_mean = {
    .name = "mean", .doc = "y = mean of x; 0 of nothing", .n_in = 1, .n_out = 1,
    .shape = scalar_shape, .f32_out = true, .forward = sum_forward, .backward = sum_backward,
    .unread = ag_unread_all, .half = sum_half,
    .sample = sum_sample,
};

ag_tensor *ag_sum(ag_tape *t, ag_tensor *x)
{
    return ag_apply(t, &ag_op_sum, (ag_tensor *[AG_MAX_IN]){ x }, NULL, NULL);
}

ag_tensor *ag_mean(ag_tape *t, ag_tensor *x)
{
    return ag_apply(t, &ag_op_mean, (ag_tensor *[AG_MAX_IN]){ x }, NULL, NULL);
}

static int row_sum_shape(ag_call *c, ag_shape *out)
{
    if (c->in[0]->shape.ndim < 1)
        return ag_fail(c->tape, AG_ESHAPE, "row_sum: a scalar has no last dimension");
    out[0] = c->in[0]->shape;
    out[0].dim[--out[0].ndim] = 0;
    return AG_OK;
}

static void row_sum_forward(ag_call *c)
{
    c->k->row_sum(ag_rows(c->in[0]), ag_cols(c->in[0]), c->in[0]->data, c->out[0]->data);
}

static void row_sum_backward(ag_call *c)
{
    bool acc;
    void *dx = ag_grad_of(c, 0, &acc);
    c->k->row_add(ag_rows(c->in[0]), ag_cols(c->in[0]), c->out[0]->grad, dx, acc);
}

static bool row_sum_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->row_sum && k->row_add;
}

static bool row_sum_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 0 }, N[] = { 0, 1, 17, 600 };
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 4)];
    *s = (ag_sample){ .in = { AG_SHAPE(m, n) }, .lo = -1, .hi = 1 };
    if (i == 1) s->in[0] = (ag_shape){ 0 }, s->bad = AG_ESHAPE;
    return i < 2;
}

const ag_op ag_op_row_sum = {
    .name = "row_sum", .doc = "y[..] = sum of x[..,n] over n", .n_in = 1, .n_out = 1,
    .shape = row_sum_shape,
    .forward = row_sum_forward, .backward = row_sum_backward, .unread = ag_unread_all,
    .half = row_sum_half,
    .sample = row_sum_sample,
};

ag_tensor *ag_row_sum(ag_tape *t, ag_tensor *x)
{
    return ag_apply(t, &ag_op_row_sum, (ag_tensor *[AG_MAX_IN]){ x }, NULL, NULL);
}

static int repeat_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *x = &c->in[0]->shape;
    if (x->ndim < 1 || c->attr.repeat.times < 1)
        return ag_fail(c->tape, AG_ESHAPE, "repeat: %lld times, of %d dimensions",
                       (long long)c->attr.repeat.times, x->ndim);
    out[0] = *x;
    out[0].dim[x->ndim - 1] *= c->attr.repeat.times;
    return AG_OK;
}

static void repeat_forward(ag_call *c)
{
    c->k->row_add(c->in[0]->size, c->attr.repeat.times, c->in[0]->data, c->out[0]->data, false);
}

static void repeat_backward(ag_call *c)
{
    const ag_tensor *x = c->in[0];
    bool acc;
    void *dx = ag_grad_of(c, 0, &acc);
    void *sums = acc ? ag_scratch(c->tape, (size_t)x->size * ag_real_size(c)) : dx;
    if (!sums) return;
    c->k->row_sum(x->size, c->attr.repeat.times, c->out[0]->grad, sums);
    if (acc) c->k->add(x->size, sums, dx);
}

static size_t repeat_workspace(const ag_call *c, bool back)
{
    const ag_tensor *x = c->in[0];
    return back && x->grad_written ? (size_t)x->size * ag_real_size(c) : 0;
}

static bool repeat_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->row_sum && k->row_add && k->add;
}

static bool repeat_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 0 }, N[] = { 1, 17 }, TIMES[] = { 1, 3, 40 };
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 2)], times = TIMES[ag_digit(&i, 3)];
    *s = (ag_sample){ .in = { AG_SHAPE(m, n) }, .lo = -1, .hi = 1, .attr.repeat.times = times };
    if (i == 1) s->attr.repeat.times = 0, s->bad = AG_ESHAPE;
    return i < 2;
}

const ag_op ag_op_repeat = {
    .name = "repeat", .doc = "y[..,n*times]: each number of x[..,n] so many times", .n_in = 1,
    .n_out = 1, .shape = repeat_shape, .forward = repeat_forward, .backward = repeat_backward,
    .workspace = repeat_workspace, .unread = ag_unread_all,
    .half = repeat_half,
    .sample = repeat_sample,
};

ag_tensor *ag_repeat(ag_tape *t, ag_tensor *x, int64_t times)
{
    return ag_apply(t, &ag_op_repeat, (ag_tensor *[AG_MAX_IN]){ x },
                    &(ag_attr){ .repeat = { times } }, NULL);
}

static int scale_shape(ag_call *c, ag_shape *out)
{
    out[0] = c->in[0]->shape;
    return AG_OK;
}

static void scale_forward(ag_call *c)
{
    c->k->scale(c->in[0]->size, c->attr.scale.alpha, c->in[0]->data, c->out[0]->data, false);
}

static void scale_backward(ag_call *c)
{
    bool acc;
    void *dx = ag_grad_of(c, 0, &acc);
    c->k->scale(c->in[0]->size, c->attr.scale.alpha, c->out[0]->grad, dx, acc);
}

static bool scale_sample(int64_t i, ag_sample *s)
{
    if (!sum_sample(i, s)) return false;
    s->attr.scale.alpha = -1.5;
    return true;
}

const ag_op ag_op_scale = {
    .name = "scale", .doc = "y = alpha * x", .n_in = 1, .n_out = 1, .shape = scale_shape,
    .forward = scale_forward, .backward = scale_backward, .unread = ag_unread_all,
    .sample = scale_sample,
};

ag_tensor *ag_scale(ag_tape *t, ag_tensor *x, double alpha)
{
    return ag_apply(t, &ag_op_scale, (ag_tensor *[AG_MAX_IN]){ x },
                    &(ag_attr){ .scale = { alpha } }, NULL);
}
