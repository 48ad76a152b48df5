/*
 * test_errors.c -- what happens when things do not fit: the code, the words, and that the tape
 * lives on.
 *
 * Memory is refused at each allocation of a small network in turn, once and for good; run under the
 * address sanitizer, that is also a search for leaks.
 */
#include "check.h"

#include "autograd/base/arena.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void must_fail(const ag_tape *t, int code, const char *words, const char *what)
{
    if (ag_error(t) != code)
        fail_msg("%s: code %d, wanted %d (%s)", what, ag_error(t), code, ag_error_message(t));
    if (!strstr(ag_error_message(t), words))
        fail_msg("%s: the message does not say '%s': %s", what, words, ag_error_message(t));
}

/* After an error and a reset, sample 0 of the op runs. */
static void must_work_again(ag_tape *t, const ag_op *op)
{
    op_case c;
    ag_tensor *in[AG_MAX_IN];
    ag_tape_reset(t);
    assert_true(case_at(op, 0, &c));
    case_inputs(t, &c, 0, 0, 0, in);
    case_apply(t, &c, in, NULL);
    if (ag_error(t)) fail_msg("%s does not run after a reset: %s", op->name, ag_error_message(t));
    ag_tape_reset(t);
}

static void bad_samples_are_refused(void **state)
{
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    op_case c;
    char text[512];
    for (int64_t i = 0; case_at(*state, i, &c); i++) {
        if (!c.s.bad) continue;
        ag_tensor *in[AG_MAX_IN], *second = NULL;
        case_inputs(t, &c, 0, 0, 0, in);
        const ag_tensor *y = case_apply(t, &c, in, &second);
        must_fail(t, c.s.bad, c.op->name, case_text(&c, 0, text));
        assert_true(y->size == 1 && isnan(*(const double *)y->data));
        assert_non_null(second);
        assert_int_equal(ag_tape_calls(t), 0);
        must_work_again(t, c.op);
    }
    ag_tape_free(t);
}

static void missing_inputs_are_refused(void **state)
{
    const ag_op *op = *state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    op_case c;
    assert_true(case_at(op, 0, &c));
    for (int i = 0; i < op->n_in; i++) {
        if (op->optional >> i & 1) continue;
        ag_tensor *in[AG_MAX_IN];
        case_inputs(t, &c, 0, 0, 0, in);
        in[i] = NULL;
        case_apply(t, &c, in, NULL);
        must_fail(t, AG_ESHAPE, "missing", op->name);
        must_fail(t, AG_ESHAPE, op->name, op->name);
        must_work_again(t, op);
    }
    ag_tape_free(t);
}

static void other_number_types_are_refused(void **state)
{
    const ag_op *op = *state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    op_case c;
    assert_true(case_at(op, 0, &c));
    for (int i = 0; i < op->n_in; i++)
        for (int d = AG_F32; d <= AG_I32; d++) {
            ag_tensor *in[AG_MAX_IN];
            case_inputs(t, &c, 0, 0, 0, in);
            if (!in[i] || in[i]->dtype == (ag_dtype)d) continue;
            ag_tensor other = *in[i];
            other.dtype = (ag_dtype)d;
            in[i] = &other;
            case_apply(t, &c, in, NULL);
            must_fail(t, AG_ESHAPE, "wanted", op->name);
            must_fail(t, AG_ESHAPE, op->name, op->name);
            must_work_again(t, op);
        }
    ag_tape_free(t);
}

static void the_first_error_sticks(void **state)
{
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F32));
    const float one[6] = { 1, 1, 1, 1, 1, 1 };
    ag_tensor *a = ag_input(t, AG_SHAPE(2, 3), one, true),
              *b = ag_input(t, AG_SHAPE(3, 2), one, true);
    ag_scope(t, "block", 3);
    ag_scope(t, "ffn", -1);
    ag_tensor *bad = ag_matmul(t, a, false, b, true);
    must_fail(t, AG_ESHAPE, "matmul: inner sizes differ: [2,3] @ [3,2]^T in block 3, ffn", "scope");
    assert_true(isnan(*(float *)bad->data) && bad->size == 1);

    ag_scope_end(t);
    ag_scope_end(t);
    ag_scope_end(t);                 /* one too many does no harm */
    ag_scope(t, "elsewhere", -1);
    ag_tensor *more = ag_add(t, a, b);
    assert_true(isnan(*(float *)more->data));
    assert_true(isnan(*(float *)ag_input(t, AG_SHAPE(1), one, true)->data));
    must_fail(t, AG_ESHAPE, "in block 3, ffn", "a later error");
    assert_int_equal(ag_backward(t, ag_sum(t, more), 1), AG_ESHAPE);
    assert_int_equal(ag_fail(t, AG_ERANGE, "another"), AG_ESHAPE);
    must_fail(t, AG_ESHAPE, "inner sizes differ", "ag_fail again");
    assert_null(ag_tape_mark_here(t));
    ag_tape_rewind(t, NULL);

    ag_err err = { 0 };
    assert_int_equal(ag_tape_status(t, &err), AG_ESHAPE);
    assert_string_equal(err.msg, ag_error_message(t));
    ag_tape_reset(t);
    assert_int_equal(ag_error(t), AG_OK);
    assert_string_equal(ag_error_message(t), "");
    err = (ag_err){ 0 };
    assert_int_equal(ag_tape_status(t, &err), AG_OK);
    assert_int_equal(err.code, AG_OK);
    ag_tape_free(t);
}

static void a_long_scope_is_cut(void **state)
{
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F32));
    for (int i = 0; i < 500; i++) ag_scope(t, "a-layer-with-a-long-name", i);
    const float one = 1;
    ag_argmax(t, ag_input(t, (ag_shape){ 0 }, &one, false));
    must_fail(t, AG_ESHAPE, "in a-layer-with-a-long-name 0, a-layer-with-a-long-name 1",
              "long scope");
    ag_tape_free(t);
}

static void backward_wants_a_scalar_that_needs_it(void **state)
{
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F32));
    const float one[2] = { 1, 2 };
    ag_tensor *x = ag_input(t, AG_SHAPE(2), one, true);
    assert_int_equal(ag_backward(t, ag_neg(t, x), 1), AG_ESHAPE);
    must_fail(t, AG_ESHAPE, "[2]", "not a scalar");
    ag_tape_reset(t);

    x = ag_input(t, AG_SHAPE(2), one, false);
    assert_int_equal(ag_backward(t, ag_sum(t, x), 1), AG_EGRAD);
    ag_tape_reset(t);

    ag_tape_no_grad(t, true);
    x = ag_input(t, AG_SHAPE(2), one, true);
    assert_int_equal(ag_backward(t, ag_sum(t, x), 1), AG_EGRAD);
    ag_tape_free(t);
}

/* --- out of memory ---------------------------------------------------------------------------- */

enum { B = 2, T = 3, D = 8, V = 11, BLOCKS = 2 };

/* Two blocks of attention and sparse feed-forward, every kind of memory that the tape hands out. */
static ag_tensor *network(ag_tape *t, ag_tensor *ret_w[8])
{
    static const int32_t ids[B * T] = { 1, 2, 3, 10, 0, 5 };
    double *w = uniform_new(4096, -0.5, 0.5, 5);
    const ag_shape shape[8] = { AG_SHAPE(V, D),     AG_SHAPE(T, D),     AG_SHAPE(3 * D, D),
                                AG_SHAPE(D, D),     AG_SHAPE(4 * D, D), AG_SHAPE(4 * D, D),
                                AG_SHAPE(D, 4 * D), AG_SHAPE(D) };
    for (int i = 0; i < 8; i++) ret_w[i] = ag_input_f64(t, shape[i], w + 100 * i, true);
    ag_tensor *idx = ag_input_i32(t, AG_SHAPE(B, T), ids);
    ag_tensor *x = ag_embedding(t, idx, ret_w[0], ret_w[1], 0);
    for (int i = 0; i < BLOCKS; i++) {
        ag_scope(t, "block", i);
        ag_tensor *qkv = ag_linear(t, ag_layernorm(t, x, ret_w[7], NULL, 1e-5), ret_w[2], NULL,
                                   AG_ACT_NONE, NULL);
        ag_tensor *a = ag_attend_qkv(t, qkv,
                                     &(ag_attention_options){ .heads = 2,
                                                              .d_qk = 4,
                                                              .d_v = 4,
                                                              .causal = true,
                                                              .drop = 0.1,
                                                              .site = 1 });
        a = ag_attend(t, a, a, x, &(ag_attention_options){ .heads = 1, .d_qk = D, .d_v = D });
        x = ag_dropout(t, ag_linear(t, a, ret_w[3], ret_w[7], AG_ACT_NONE, x), x, 0.1, 2);
        ag_tensor *z = ag_linear(t, x, ret_w[4], NULL, AG_ACT_GELU_ERF, NULL), *choice;
        ag_tensor *mask =
            ag_control(t, z, &(ag_controller_options){ .n = 4, .temperature = 0.1, .site = 3 },
                       &choice);
        ag_tensor *h = ag_relu_mask(t, ag_linear(t, x, ret_w[5], NULL, AG_ACT_NONE, NULL), mask);
        x = ag_linear(t, h, ret_w[6], NULL, AG_ACT_RELU, x);
        ag_scope_end(t);
    }
    ag_tensor *flat = ag_reshape(t, x, AG_SHAPE(B * T, D));
    ag_tensor *loss = ag_cross_entropy(t, ag_matmul(t, flat, false, ret_w[0], true), idx);
    free(w);
    return loss;
}

static int step(ag_tape *t, double *ret_loss, double *ret_grad)
{
    ag_tensor *w[8], *loss = network(t, w);
    const int r = ag_backward(t, loss, 1);
    if (r) return r;
    *ret_loss = *(double *)loss->data;
    *ret_grad = ((double *)w[0]->grad)[5];
    return AG_OK;
}

/* Runs the step with the n-th allocation refused for n = 1, 2, .. until it gets through; returns
 * that n. */
static long refuse_each(int for_good, bool warm, double loss, double grad)
{
    for (long n = 1;; n++) {
        double l = 0, g = 0;
        ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
        if (warm) {
            assert_int_equal(step(t, &l, &g), AG_OK);
            ag_tape_reset(t);
        }
        ag_fault_after(n, for_good);
        const int r = step(t, &l, &g);
        if (r) {
            assert_int_equal(r, AG_ENOMEM);
            must_fail(t, AG_ENOMEM, "out of memory", "refused");
            ag_tape_reset(t);        /* may be refused memory too */
        }
        ag_fault_after(0, 0);
        if (r) assert_int_equal(step(t, &l, &g), AG_OK);
        assert_true(l == loss && g == grad);
        ag_tape_free(t);
        if (!r) return n;
    }
}

static void memory_may_be_refused_anywhere(void **state)
{
    (void)state;
    double loss = 0, grad = 0;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    if (step(t, &loss, &grad)) fail_msg("%s", ag_error_message(t));
    ag_tape_free(t);
    for (int warm = 0; warm < 2; warm++)
        for (int for_good = 0; for_good < 2; for_good++)
            if (refuse_each(for_good, warm, loss, grad) < 150)
                fail_msg("too few allocations were refused");
}

static void a_cache_may_be_refused(void **state)
{
    (void)state;
    ag_fault_after(1, 0);
    assert_null(ag_kv_cache_new(NULL, AG_F32, 2, 1, 16, 8, 8));
    ag_fault_after(0, 0);
    assert_null(ag_kv_cache_new(NULL, AG_F32, 1 << 30, INT64_C(1) << 30, INT64_C(1) << 30, 64, 64));
}

static void sizes_may_overflow(void **state)
{
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    const double none = 0;           /* two matrices of no numbers, whose product has 2^80 */
    ag_tensor *x = ag_input_f64(t, AG_SHAPE(INT64_C(1) << 40, 0), &none, false);
    ag_matmul(t, x, false, x, true);
    must_fail(t, AG_ENOMEM, "out of memory", "2^80 numbers");
    ag_tape_reset(t);
    x = ag_input_f64(t, AG_SHAPE(1), &none, false);
    ag_reshape(t, x, AG_SHAPE(-1, -1));
    must_fail(t, AG_ESHAPE, "reshape", "negative sizes");
    ag_tape_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_error_sticks),
        cmocka_unit_test(a_long_scope_is_cut),
        cmocka_unit_test(backward_wants_a_scalar_that_needs_it),
        cmocka_unit_test(memory_may_be_refused_anywhere),
        cmocka_unit_test(a_cache_may_be_refused),
        cmocka_unit_test(sizes_may_overflow),
    };
    return run_per_op("bad samples", bad_samples_are_refused) +
           run_per_op("missing", missing_inputs_are_refused) +
           run_per_op("number types", other_number_types_are_refused) +
           cmocka_run_group_tests_name("errors", tests, NULL, NULL);
}
