/* reshape.c -- the same numbers in another shape; neither they nor their gradient are copied. */
#include "../op.h"
#include "../ops.h"

static int reshape_shape(ag_call *c, ag_shape *out)
{
    char a[96], b[96];
    if (ag_shape_size(&c->attr.reshape) != c->in[0]->size)
        return ag_fail(c->tape, AG_ESHAPE, "reshape: %s does not fit into %s",
                       ag_shape_text(&c->in[0]->shape, a), ag_shape_text(&c->attr.reshape, b));
    out[0] = c->attr.reshape;
    return AG_OK;
}

static void reshape_backward(ag_call *c) { ag_grad_pass(c, 0); }

static bool reshape_sample(int64_t i, ag_sample *s)
{
    static const ag_shape to[] = { { 1, { 30 } }, { 2, { 6, 5 } }, { 4, { 1, 5, 2, 3 } },
                                   { 1, { 31 } } };
    if (i >= 4) return false;
    *s = (ag_sample){ .in = { AG_SHAPE(2, 3, 5) }, .lo = -1, .hi = 1, .attr.reshape = to[i],
                      .bad = i == 3 ? AG_ESHAPE : 0 };
    return true;
}

const ag_op ag_op_reshape = {
    .name = "reshape", .doc = "x in another shape of the same size", .n_in = 1, .n_out = 1,
    .passes = 1,
    .alias = true, .shape = reshape_shape, .backward = reshape_backward, .unread = ag_unread_all,
    .sample = reshape_sample,
};

ag_tensor *ag_reshape(ag_tape *t, ag_tensor *x, ag_shape shape)
{
    return ag_apply(t, &ag_op_reshape, (ag_tensor *[AG_MAX_IN]){ x },
                    &(ag_attr){ .reshape = shape }, NULL);
}
