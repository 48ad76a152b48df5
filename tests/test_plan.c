/*
 * test_plan.c -- a tape that plans takes the memory that a tape that runs takes, to the byte: for
 * every op on every sample, its inputs used twice, so that gradients are overwritten and added to.
 */
#include "check.h"

static size_t peak_of(const op_case *c, bool plan)
{
    ag_tape *t = tape_new(ag_kernels_best(AG_F32, &(const char *){ NULL }));
    ag_tensor *in[AG_MAX_IN], *second[2], *y[2];
    case_inputs(t, c, c->op->backward ? c->real : 0, 0, 0, in);
    ag_tape_plan(t, plan);
    for (int i = 0; i < 2; i++) y[i] = case_apply(t, c, in, &second[i]);
    assert_int_equal(ag_error(t), AG_OK);
    if (c->op->backward) {
        for (int i = 0; i < 2; i++)
            if (y[i]->dtype == AG_I32) y[i] = second[i];
        assert_int_equal(case_backward(t, c, ag_add(t, y[0], y[1])), AG_OK);
    }
    const ag_tape_memory m = ag_tape_bytes(t);
    ag_tape_free(t);
    assert_true(m.flops >= 0);
    return m.peak;
}

static void takes_what_it_plans(void **state)
{
    const ag_op *op = *state;
    char text[512];
    op_case c;
    int64_t n = 0;
    while (case_at(op, n, &c)) n++;
    for (int64_t i = 0; case_at(op, i, &c); i += 1 + n / 300) {
        if (c.s.bad || ag_shape_size(&c.s.in[0]) == 0) continue;
        const size_t run = peak_of(&c, false), plan = peak_of(&c, true);
        if (run != plan)
            fail_msg("%s: %zu bytes run, %zu planned", case_text(&c, 0, text), run, plan);
    }
}

int main(void) { return run_per_op("plan", takes_what_it_plans); }
