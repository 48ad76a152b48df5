/*
 * choose.c -- the controller of a sparse feed-forward layer, its last matrix included
 * (2111.12763 section 3.1): which units of each block a row uses, and their gates.
 *
 *     z = low @ c2 + cb        never stored, so a step costs no memory traffic of rows x units
 *     p, choice                of each block of n, as control.c
 *     gate                     1 or p for the choice, 0 for the others (ag_gate in kernels.h)
 *
 * Backward is straight-through (1308.3432): the gradient of a gate is taken for that of its unit's
 * p.  Units that are not listed count as if theirs were 0.  So with
 *     picks = 1                the controller hears of the live unit alone: exactly what the mask
 *                              before the ReLU sends in a hard step
 *     picks = k                ... of the live and the k - 1 most probable units: biased towards
 *                              what is probable already, at k/n of the cost
 *     all                      ... of all n: the mask after the ReLU
 *     dz = p * (dp - sum over the block of p * dp)  (times 1/temperature when relaxed with noise)
 */
#include "../op.h"
#include "../ops.h"

enum { LOW, C2, CB };
enum { GATE, CHOICE };

static int64_t blocks_of(const ag_call *c) { return ag_cols(c->in[C2]) / c->attr.choose.n; }

static ag_chooser setup(const ag_call *c)
{
    const ag_tensor *low = c->in[LOW];
    const int64_t rows = ag_rows(low), of = c->attr.choose.of_rows;
    return (ag_chooser){ .c = { .rows = rows, .blocks = blocks_of(c), .n = c->attr.choose.n,
                                .relaxed = c->attr.choose.relaxed, .hard = true,
                                .temperature = c->attr.choose.temperature,
                                .noise = ag_noise_for(c->tape, c->attr.choose.site,
                                                      of ? of : rows) },
                         .rank = ag_cols(low), .low = low->data, .c2 = c->in[C2]->data,
                         .cb = c->in[CB] ? c->in[CB]->data : NULL, .gate = c->attr.choose.gate,
                         .picks = c->attr.choose.picks, .all = c->attr.choose.all };
}

static int choose_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *low = &c->in[LOW]->shape, *c2 = &c->in[C2]->shape;
    const int64_t n = c->attr.choose.n, picks = c->attr.choose.picks;
    char s[96], w[96];
    if (low->ndim < 1 || c2->ndim != 2 || low->dim[low->ndim - 1] != c2->dim[0])
        return ag_fail(c->tape, AG_ESHAPE, "choose: low %s does not fit c2 %s [rank,units]",
                       ag_shape_text(low, s), ag_shape_text(c2, w));
    if (n < 1 || c2->dim[1] % n)
        return ag_fail(c->tape, AG_ESHAPE, "choose: the units of c2 %s cannot be cut into blocks "
                       "of %lld", ag_shape_text(c2, w), (long long)n);
    if (c->in[CB] && (c->in[CB]->shape.ndim != 1 || c->in[CB]->size != c2->dim[1]))
        return ag_fail(c->tape, AG_ESHAPE, "choose: bias %s does not fit c2 %s [rank,units]",
                       ag_shape_text(&c->in[CB]->shape, s), ag_shape_text(c2, w));
    if (picks < 1 || picks > n || (c->attr.choose.all && picks != 1))
        return ag_fail(c->tape, AG_ERANGE, "choose: %lld picks of blocks of %lld",
                       (long long)picks, (long long)n);
    if (!(c->attr.choose.temperature >= 0))
        return ag_fail(c->tape, AG_ERANGE, "choose: temperature %g is negative",
                       c->attr.choose.temperature);
    out[GATE] = out[CHOICE] = *low;
    out[CHOICE].dim[low->ndim - 1] = c2->dim[1] / n * picks;
    out[GATE].dim[low->ndim - 1] = c->attr.choose.all ? c2->dim[1] : c2->dim[1] / n * picks;
    return AG_OK;
}

static void choose_forward(ag_call *c)
{
    ag_chooser a = setup(c);
    a.c.given = c->given;
    void *scratch = ag_scratch(c->tape, ag_choose_scratch(&a, c->k->dtype));
    if (scratch) c->k->choose_fwd(&a, c->out[CHOICE]->data, c->out[GATE]->data, scratch);
}

static unsigned choose_recalls(const ag_call *c)
{
    (void)c;
    return 1u << CHOICE;
}

static void choose_backward(ag_call *c)
{
    const ag_chooser a = setup(c);
    void *scratch = ag_scratch(c->tape, ag_choose_scratch(&a, c->k->dtype));
    if (!scratch) return;
    bool acc;
    void *dlow = ag_grad_of(c, LOW, &acc);
    c->k->choose_bwd(&a, c->out[CHOICE]->data, c->out[GATE]->grad, dlow, acc, ag_grad_add(c, C2),
                     ag_grad_add(c, CB), scratch);
}

static size_t choose_workspace(const ag_call *c, bool back)
{
    (void)back;
    const ag_chooser a = setup(c);
    return ag_choose_scratch(&a, c->k->dtype);
}

static bool choose_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->choose_fwd && k->choose_bwd;
}

static int64_t choose_flops(const ag_call *c)
{
    return ag_rows(c->in[LOW]) * ag_cols(c->in[C2]) * (2 * ag_cols(c->in[LOW]) + 6);
}

static bool choose_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 0 }, BLOCKS[] = { 1, 3 }, N[] = { 1, 4, 50 };
    static const double T[] = { 0, 0.7 };
    const ag_gate gate = (ag_gate)ag_digit(&i, AG_GATE_COUNT);
    const int64_t m = M[ag_digit(&i, 3)], blocks = BLOCKS[ag_digit(&i, 2)], n = N[ag_digit(&i, 3)];
    const double temperature = T[ag_digit(&i, 2)];
    const int list = ag_digit(&i, 3);                    /* the choice, some of n, all of n */
    const bool relaxed = ag_digit(&i, 2);
    /* a probability of the choice is smooth but where the choice changes: among 50 that is near */
    *s = (ag_sample){ .in = { AG_SHAPE(m, 3), AG_SHAPE(3, blocks * n), AG_SHAPE(blocks * n) },
                      .absent = relaxed ? 0 : (unsigned)(list == 1) << CB, .lo = -2, .hi = 2,
                      .surrogate = gate != AG_GATE_P || n > 4,
                      .attr.choose = { .n = n, .relaxed = relaxed, .temperature = temperature,
                                       .picks = list == 1 && n > 1 ? 3 : 1, .all = list == 2,
                                       .gate = gate, .site = 3 } };
    if (i == 1) {                    /* what does not fit, one thing after the other */
        static const int code[] = { AG_ESHAPE, AG_ESHAPE, AG_ERANGE };
        if (list == 0) s->in[LOW] = AG_SHAPE(m, 4);
        else if (list == 1) s->in[C2] = AG_SHAPE(3, blocks * n + 1), s->attr.choose.n = n + 7;
        else s->attr.choose.picks = n + 1;
        s->bad = code[list];
    }
    return i < 2;
}

const ag_op ag_op_choose = {
    .name = "choose",
    .doc = "gate, choice of one of n units per block, by z = low[..,r] @ c2[r,blocks*n] + cb",
    .n_in = 3, .n_out = 2, .optional = 1u << CB, .integer_out = 1u << CHOICE,
    .shape = choose_shape, .forward = choose_forward, .backward = choose_backward,
    .recalls = choose_recalls,
    .workspace = choose_workspace,
    .half = choose_half, .weights = 1u << C2 | 1u << CB,
    .flops = choose_flops, .sample = choose_sample,
};

ag_tensor *ag_choose(ag_tape *t, ag_tensor *low, ag_tensor *c2, ag_tensor *cb,
                     const ag_choose_options *o, ag_tensor **ret_choice)
{
    return ag_apply(t, &ag_op_choose, (ag_tensor *[AG_MAX_IN]){ low, c2, cb },
                    &(ag_attr){ .choose = *o }, ret_choice);
}
