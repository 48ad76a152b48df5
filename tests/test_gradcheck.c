/*
 * test_gradcheck.c -- is every backward the derivative of its forward?
 *
 * For every op, sample and non-empty set of its real inputs, on an f64 tape, with a random
 * cotangent v and random directions u of the inputs in the set:
 *
 *     d/dh <v, f(x + h u)> at h = 0   ==   sum over the set of <backward(v), u>
 *
 * the left side by four points, (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h, whose error at h =
 * 1e-3 is near 1e-11. Where backward is on purpose not the derivative (straight-through) it must be
 * that of the soft mode, bit for bit.
 */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double STEP = 1e-3, ABS_TOL = 1e-9, REL_TOL = 1e-7;

/* Cases must not get lost in silence: raise this when ops or samples are added. */
enum { LEAST_CASES = 47000 };
static long cases;

/* <v, f(x + step u)>, u zero outside the subset */
static double probe(ag_tape *t, const op_case *c, unsigned subset, double step)
{
    ag_tensor *in[AG_MAX_IN];
    case_inputs(t, c, 0, step, subset, in);
    const ag_tensor *y = case_apply(t, c, in, NULL);
    if (ag_error(t)) fail_msg("%s", ag_error_message(t));
    double *v = case_cotangent(c, y->size), sum = 0;
    for (int64_t i = 0; i < y->size; i++) sum += v[i] * ((const double *)y->data)[i];
    free(v);
    ag_tape_reset(t);
    return sum;
}

static double quotient(ag_tape *t, const op_case *c, unsigned subset)
{
    const double near = probe(t, c, subset, STEP) - probe(t, c, subset, -STEP);
    const double far = probe(t, c, subset, 2 * STEP) - probe(t, c, subset, -2 * STEP);
    return (8 * near - far) / (12 * STEP);
}

typedef struct grads { double *g[AG_MAX_IN]; int64_t size[AG_MAX_IN]; } grads;

static void grads_release(grads *g)
{
    for (int i = 0; i < AG_MAX_IN; i++) free(g->g[i]);
}

static bool grads_equal(const grads *a, const grads *b)
{
    for (int i = 0; i < AG_MAX_IN; i++)
        if (!a->g[i] != !b->g[i] ||
            (a->g[i] && memcmp(a->g[i], b->g[i], (size_t)a->size[i] * sizeof *a->g[i])))
            return false;
    return true;
}

/* The gradients of the inputs in the subset; the others must get none. */
static grads backward(ag_tape *t, const op_case *c, unsigned subset)
{
    ag_tensor *in[AG_MAX_IN];
    char text[512];
    case_inputs(t, c, subset, 0, 0, in);
    ag_tensor *y = case_apply(t, c, in, NULL);
    if (case_backward(t, c, y)) fail_msg("%s: %s", case_text(c, subset, text), ag_error_message(t));
    if (y->grad) fail_msg("%s: the output keeps its gradient", case_text(c, subset, text));
    grads g = { 0 };
    for (int i = 0; i < c->op->n_in; i++)
        if (subset >> i & 1) {
            if (!in[i]->grad_written)
                fail_msg("%s: input %d got no gradient", case_text(c, subset, text), i);
            g.g[i] = copy_of(t, in[i], true);
            g.size[i] = in[i]->size;
        } else if (in[i] && in[i]->grad) {
            fail_msg("%s: input %d got a gradient unasked", case_text(c, subset, text), i);
        }
    ag_tape_reset(t);
    return g;
}

static double along(const op_case *c, const grads *g)
{
    double sum = 0;
    for (int i = 0; i < c->op->n_in; i++) {
        if (!g->g[i]) continue;
        double *u = case_direction(c, i);
        for (int64_t j = 0; j < g->size[i]; j++) sum += g->g[i][j] * u[j];
        free(u);
    }
    return sum;
}

static void check_derivative(ag_tape *t, const op_case *c, unsigned subset)
{
    char text[512];
    grads g = backward(t, c, subset), again = backward(t, c, subset);
    if (!grads_equal(&g, &again))
        fail_msg("%s: backward again gives other bits", case_text(c, subset, text));

    const double got = along(c, &g), want = c->s.surrogate ? 0 : quotient(t, c, subset);
    if (!c->s.surrogate && !(fabs(got - want) <= ABS_TOL + REL_TOL * fabs(want)))
        fail_msg("%s: backward %.12g, differences %.12g, off by %.2g", case_text(c, subset, text),
                 got, want, fabs(got - want));
    grads_release(&g);
    grads_release(&again);
}

/* control: the forward does not move with its input (a step of STEP could cross a tie, a far
 * smaller one does not); its gradient is that of the soft mask, bit for bit.  (choose and live_ff:
 * test_sparse_ff.c, and test_layers.c against the written-out formulas.) */
static void check_surrogate(ag_tape *t, const op_case *c, unsigned subset)
{
    char text[512];
    op_case soft = *c;
    soft.s.attr.control.hard = false;
    const double moved = probe(t, c, subset, 1e-9) - probe(t, c, subset, -1e-9);
    if (fabs(moved) > 0) fail_msg("%s: a hard mask moves: %g", case_text(c, subset, text), moved);
    grads hard = backward(t, c, subset), want = backward(t, &soft, subset);
    if (!grads_equal(&hard, &want))
        fail_msg("%s: not the soft backward", case_text(c, subset, text));
    grads_release(&hard);
    grads_release(&want);
}

static void derivative(void **state)
{
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    op_case c;
    for (int64_t i = 0; case_at(*state, i, &c); i++) {
        if (c.s.bad || !c.op->backward) continue;
        for (unsigned subset = 1; subset < 1u << c.op->n_in; subset++) {
            if (subset & ~c.real) continue;
            check_derivative(t, &c, subset);
            if (c.s.surrogate && c.op == &ag_op_control) check_surrogate(t, &c, subset);
            cases++;
        }
    }
    ag_tape_free(t);
}

/* Is b = a + more, but for the rounding of a few additions? */
static void check_sum(const op_case *c, int i, int64_t n, const double *a, const double *more,
                      const double *b)
{
    char text[512];
    for (int64_t j = 0; j < n; j++)
        if (!(fabs(a[j] + more[j] - b[j]) <= 1e-12 * (1 + fabs(a[j]) + fabs(more[j]))))
            fail_msg("%s: element %lld of the gradient is %.12g, wanted %.12g + %.12g",
                     case_text(c, 1u << i, text), (long long)j, b[j], a[j], more[j]);
}

/* A backward that writes `=` where it owes `+=` passes the check above, not this one. */
static void accumulates(void **state)
{
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    op_case c;
    for (int64_t i = 0; case_at(*state, i, &c); i++) {
        if (c.s.bad || !c.op->backward) continue;
        grads g = backward(t, &c, c.real);
        ag_tensor *in[AG_MAX_IN];
        double *before[AG_MAX_IN] = { 0 };
        case_inputs(t, &c, c.real, 0, 0, in);
        for (int j = 0; j < c.op->n_in; j++) {
            if (!(c.real >> j & 1)) continue;
            before[j] = uniform_new(in[j]->size, -5, 5, 77 + (uint64_t)j);
            in[j]->grad = ag_input_f64(t, in[j]->shape, before[j], false)->data;
            in[j]->grad_written = true;
        }
        assert_int_equal(case_backward(t, &c, case_apply(t, &c, in, NULL)), AG_OK);
        for (int j = 0; j < c.op->n_in; j++) {
            if (before[j]) check_sum(&c, j, in[j]->size, before[j], g.g[j], in[j]->grad);
            free(before[j]);
        }
        grads_release(&g);
        ag_tape_reset(t);
    }
    ag_tape_free(t);
}

/* One tensor as inputs a and b: its gradient is the sum of those of two tensors that hold the same
 * numbers. */
static void check_shared(ag_tape *t, const op_case *c, int a, int b)
{
    double *g[3] = { 0 };
    const int64_t n = ag_shape_size(&c->s.in[a]);
    for (int shared = 0; shared < 2; shared++) {
        ag_tensor *in[AG_MAX_IN];
        case_inputs(t, c, 1u << a | 1u << b, 0, 0, in);
        if (shared) in[b] = in[a];
        else memcpy(in[b]->data, in[a]->data, (size_t)n * sizeof(double));
        assert_int_equal(case_backward(t, c, case_apply(t, c, in, NULL)), AG_OK);
        g[shared ? 2 : 0] = copy_of(t, in[a], true);
        if (!shared) g[1] = copy_of(t, in[b], true);
        ag_tape_reset(t);
    }
    check_sum(c, a, n, g[0], g[1], g[2]);
    for (int i = 0; i < 3; i++) free(g[i]);
}

static void takes_one_tensor_twice(void **state)
{
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    op_case c;
    for (int64_t i = 0; case_at(*state, i, &c); i++) {
        if (c.s.bad || !c.op->backward) continue;
        for (int a = 0; a < c.op->n_in; a++)
            for (int b = a + 1; b < c.op->n_in; b++)
                if ((c.real >> a & 1) && (c.real >> b & 1) &&
                    ag_shape_equal(&c.s.in[a], &c.s.in[b]))
                    check_shared(t, &c, a, b);
    }
    ag_tape_free(t);
}

/* Either a backward, or a reason why there is none and a refusal. */
static void has_backward_or_a_reason(void **state)
{
    const ag_op *op = *state;
    assert_true(op->doc && *op->doc && op->sample && op->shape);
    assert_true(!op->backward == !!op->nondiff);
    op_case c;
    assert_true(case_at(op, 0, &c) && !c.s.bad);
    if (op->backward) return;

    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    ag_tensor *in[AG_MAX_IN];
    case_inputs(t, &c, c.real, 0, 0, in);
    case_apply(t, &c, in, NULL);
    assert_int_equal(ag_error(t), c.real ? AG_EGRAD : AG_OK);    /* ids alone want no gradient */
    assert_non_null(strstr(ag_error_message(t), c.real ? op->name : ""));
    assert_non_null(strstr(ag_error_message(t), c.real ? op->nondiff : ""));
    ag_tape_free(t);
}

static void no_case_was_lost(void **state)
{
    (void)state;
    printf("%ld cases\n", cases);
    assert_true(cases >= LEAST_CASES);
}

int main(void)
{
    const struct CMUnitTest count[] = { cmocka_unit_test(no_case_was_lost) };
    return run_per_op("gradcheck", derivative) + run_per_op("accumulate", accumulates) +
           run_per_op("shared", takes_one_tensor_twice) +
           run_per_op("declared", has_backward_or_a_reason) +
           cmocka_run_group_tests_name("count", count, NULL, NULL);
}
