/*
 * control.c -- the controller of the 1-in-n sparse feed-forward layer (2111.12763 section 3.1).
 *
 * z [..,blocks*n] -> mask, and the unit chosen in each block.  What the mask is stands in kernels.h
 * (ag_controller).  Backward is that of the soft mask p in every mode: exact for a soft mask, the
 * straight-through estimate (1308.3432) for a hard one:
 *     dz = p * (dmask - sum over the block of p * dmask)
 * (times 1/temperature when relaxed with noise)
 */
#include "../op.h"
#include "../ops.h"

static ag_controller setup(const ag_call *c)
{
    const ag_tensor *z = c->in[0];
    const int64_t n = c->attr.control.n, rows = ag_rows(z), of = c->attr.control.of_rows;
    return (ag_controller){ .rows = rows, .blocks = ag_cols(z) / n, .n = n,
                            .relaxed = c->attr.control.relaxed, .hard = c->attr.control.hard,
                            .temperature = c->attr.control.temperature,
                            .noise = ag_noise_for(c->tape, c->attr.control.site, of ? of : rows) };
}

static int control_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *z = &c->in[0]->shape;
    const int64_t n = c->attr.control.n;
    char s[96];
    if (n < 1 || z->ndim < 1 || z->dim[z->ndim - 1] % n)
        return ag_fail(c->tape, AG_ESHAPE, "control: %s cannot be cut into blocks of %lld",
                       ag_shape_text(z, s), (long long)n);
    if (!(c->attr.control.temperature >= 0))
        return ag_fail(c->tape, AG_ERANGE, "control: temperature %g is negative",
                       c->attr.control.temperature);
    out[0] = out[1] = *z;
    out[1].dim[z->ndim - 1] /= n;
    return AG_OK;
}

static size_t control_saved(const ag_call *c) { return (size_t)c->in[0]->size * ag_real_size(c); }

static void control_forward(ag_call *c)
{
    ag_controller a = setup(c);
    a.given = c->given;
    c->k->controller_fwd(&a, c->in[0]->data, c->out[0]->data, c->out[1]->data, c->saved);
}

/* A soft mask does not depend on the choice. */
static unsigned control_recalls(const ag_call *c)
{
    return c->attr.control.hard ? 1u << 1 : 0;
}

static void control_backward(ag_call *c)
{
    const ag_controller a = setup(c);
    bool acc;
    void *dz = ag_grad_of(c, 0, &acc);
    c->k->controller_bwd(&a, c->saved, c->out[0]->grad, dz, acc);
}

static bool control_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->controller_fwd && k->controller_bwd;
}

static int64_t control_flops(const ag_call *c) { return 6 * c->in[0]->size; }

static bool control_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 0 }, BLOCKS[] = { 1, 3 }, N[] = { 1, 2, 16, 50 };
    static const double T[] = { 0, 0.1, 1 };
    const bool relaxed = ag_digit(&i, 2), hard = ag_digit(&i, 2);
    const int64_t m = M[ag_digit(&i, 3)], blocks = BLOCKS[ag_digit(&i, 2)], n = N[ag_digit(&i, 4)];
    const double temperature = T[ag_digit(&i, 3)];
    *s = (ag_sample){ .in = { AG_SHAPE(m, blocks * n) }, .lo = -2, .hi = 2, .surrogate = hard,
                      .attr.control = { .n = n, .relaxed = relaxed, .hard = hard,
                                        .temperature = temperature, .site = 3 } };
    /* a relaxed mask at a low temperature bends within the steps of the difference quotient */
    if (relaxed && temperature > 0) s->attr.control.temperature = temperature < 1 ? 0.5 : 1;
    if (i == 1) {
        if (n > 1) s->in[0] = AG_SHAPE(m, blocks * n + 1);
        else s->attr.control.n = 0;
        s->bad = AG_ESHAPE;
    }
    return i < 2;
}

const ag_op ag_op_control = {
    .name = "control",
    .doc = "mask[..,blocks*n], choice[..,blocks]: one of n units per block, by logits z", .n_in = 1,
    .n_out = 2, .integer_out = 1u << 1, .shape = control_shape, .saved_bytes = control_saved,
    .forward = control_forward, .backward = control_backward, .flops = control_flops,
    .recalls = control_recalls, .half = control_half, .sample = control_sample,
};

ag_tensor *ag_control(ag_tape *t, ag_tensor *z, const ag_controller_options *o,
                      ag_tensor **ret_choice)
{
    return ag_apply(t, &ag_op_control, (ag_tensor *[AG_MAX_IN]){ z },
                    &(ag_attr){ .control = { .n = o->n, .relaxed = o->relaxed, .hard = o->hard,
                                             .temperature = o->temperature, .site = o->site,
                                             .of_rows = o->of_rows } },
                    ret_choice);
}
