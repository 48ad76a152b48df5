/*
 * test_segment.c -- segments that are run again: the same bits as without, less memory, and loud
 * errors where a gradient would be lost.
 *
 * The graphs here are small and crooked: inputs used twice, outputs that are inputs, dropout, ReLU
 * that is read off its output, reshapes, segments within segments.
 */
#include "check.h"
#include "autograd/segment.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 6, LEAVES = 3 };

/* --- what ops say they do not read ------------------------------------------------------------ */

static void spoil(ag_tensor *x)
{
    if (!x || x->dtype == AG_I32) return;
    for (int64_t i = 0; i < x->size; i++) ((float *)x->data)[i] = NAN;
}

/* The gradients of a case, those of all its inputs in a row; with `spoiled`, what op->unread names
 * is NaN before backward. */
static int64_t gradients(const op_case *c, bool spoiled, double *ret)
{
    ag_tape *t = tape_new(ag_kernels_best(AG_F32, &(const char *){ NULL }));
    ag_tensor *in[AG_MAX_IN], *second;
    case_inputs(t, c, c->real, 0, 0, in);
    ag_tensor *y = case_apply(t, c, in, &second);
    assert_int_equal(ag_error(t), AG_OK);
    const unsigned unread = c->op->unread(ag_tape_call(t, ag_tape_calls(t) - 1));
    for (int i = 0; spoiled && i < c->op->n_in; i++)
        if (unread >> i & 1) spoil(in[i]);
    if (spoiled && unread & AG_UNREAD_OUT(0) && !c->op->alias) spoil(y);
    if (spoiled && c->op->n_out > 1 && unread & AG_UNREAD_OUT(1)) spoil(second);
    ag_tensor *from = y->dtype == AG_I32 ? second : y;
    assert_int_equal(case_backward(t, c, from), AG_OK);
    int64_t n = 0;
    for (int i = 0; i < c->op->n_in; i++)
        for (int64_t j = 0; in[i] && in[i]->grad && j < in[i]->size; j++)
            ret[n++] = (double)((float *)in[i]->grad)[j];
    ag_tape_free(t);
    return n;
}

static void unread_is_not_read(void **state)
{
    const ag_op *op = *state;
    enum { MOST = 1 << 20 };
    double *a = malloc(2 * MOST * sizeof *a), *b = a + MOST;
    assert_non_null(a);
    op_case c;
    int seen = 0;
    for (int64_t i = 0; op->unread && op->backward && case_at(op, i, &c); i++) {
        if (c.s.bad || !c.real) continue;
        const int64_t n = gradients(&c, false, a);
        assert_int_equal(gradients(&c, true, b), n);
        assert_memory_equal(a, b, (size_t)n * sizeof *a);
        seen++;
    }
    if (op->unread && op->backward) assert_true(seen > 0);
    free(a);
}

/* --- graphs with and without segments --------------------------------------------------------- */

typedef struct model { bool on; int nest; } model;

static ag_tensor *inner(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    (void)arg;
    ag_tensor *h = ag_linear(t, x[0], x[1], NULL, AG_ACT_RELU, NULL);
    h = ag_dropout(t, ag_linear(t, h, x[2], NULL, AG_ACT_GELU_TANH, NULL), x[0], 0.3, 1);
    ag_tensor *flat = ag_reshape(t, ag_layernorm(t, h, NULL, NULL, 1e-5), AG_SHAPE(N * N));
    return ag_add(t, ag_reshape(t, flat, AG_SHAPE(N, N)), ag_mul(t, x[0], h));
}

/* `part` of x[3], as a segment or in the open. */
static ag_tensor *piece(const model *m, ag_tape *t, ag_segment_run *part, const void *arg,
                        size_t bytes, ag_tensor *const *x)
{
    return m->on ? ag_recompute(t, part, arg, bytes, x, LEAVES) : part(arg, t, x);
}

static ag_tensor *nested(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    const model *m = arg;
    const model deeper = { m->on, m->nest - 1 };
    ag_tensor *a = m->nest ? piece(m, t, nested, &deeper, sizeof deeper, x)
                           : piece(m, t, inner, NULL, 0, x);
    a = ag_tanh(t, a);
    return piece(m, t, inner, NULL, 0, (ag_tensor *[]){ a, x[1], a });
}

static ag_tensor *same(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    (void)arg, (void)t;
    return x[0];
}

static ag_tensor *view(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    (void)arg;
    return ag_reshape(t, x[0], AG_SHAPE(N, N));
}

static ag_tensor *whole(const model *m, ag_tape *t, ag_tensor *const *x)
{
    ag_tensor *y = piece(m, t, nested, m, sizeof *m, x);
    y = ag_add(t, y, piece(m, t, same, NULL, 0, (ag_tensor *[]){ y, x[1], x[2] }));
    y = ag_mul(t, y, piece(m, t, view, NULL, 0, (ag_tensor *[]){ y, x[1], x[2] }));
    return piece(m, t, inner, NULL, 0, (ag_tensor *[]){ y, x[0], x[0] });
}

typedef struct result { float y[N * N], dx[LEAVES][N * N]; size_t peak; } result;

static result run_model(ag_tape *t, const model *m, bool plan)
{
    result r = { 0 };
    ag_tensor *x[LEAVES], *inside[LEAVES];
    ag_tape_reset(t);
    ag_tape_plan(t, plan);
    for (int i = 0; i < LEAVES; i++) {
        float v[N * N];
        for (int j = 0; j < N * N; j++) v[j] = sinf((float)(1 + j + 40 * i));
        x[i] = ag_input(t, AG_SHAPE(N, N), v, true);
        inside[i] = ag_tanh(t, x[i]);
    }
    ag_tensor *y = whole(m, t, inside);
    assert_int_equal(ag_error(t), AG_OK);
    if (!plan) memcpy(r.y, y->data, sizeof r.y);
    ag_tensor *loss = ag_sum(t, ag_mul(t, y, y));
    assert_int_equal(ag_backward(t, loss, 1), AG_OK);
    for (int i = 0; i < LEAVES && !plan; i++) memcpy(r.dx[i], x[i]->grad, sizeof r.dx[i]);
    r.peak = ag_tape_bytes(t).peak;
    return r;
}

static void gives_the_same_bits(void **state)
{
    (void)state;
    const ag_kernels *all[4];
    const int n = ag_kernels_all(AG_F32, all, 4);
    for (int k = 0; k < n; k++)
        for (int nest = 0; nest < 4; nest++) {
            ag_tape *t = tape_new(all[k]);
            const result a = run_model(t, &(model){ false, nest }, false);
            for (int again = 0; again < 2; again++) {
                const result b = run_model(t, &(model){ true, nest }, false);
                assert_memory_equal(a.y, b.y, sizeof a.y);
                assert_memory_equal(a.dx, b.dx, sizeof a.dx);
            }
            ag_tape_free(t);
        }
}

static void plans_what_it_takes(void **state)
{
    (void)state;
    for (int nest = 0; nest < 4; nest++) {
        ag_tape *t = tape_new(ag_kernels_ref(AG_F32)), *p = tape_new(ag_kernels_ref(AG_F32));
        const size_t real = run_model(t, &(model){ true, nest }, false).peak;
        assert_int_equal(run_model(p, &(model){ true, nest }, true).peak, real);
        ag_tape_free(t);
        ag_tape_free(p);
    }
}

/* --- memory, work ----------------------------------------------------------------------------- */

static ag_tensor *wide(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    (void)arg;
    ag_tensor *h = x[0];
    for (int i = 0; i < 10; i++) h = ag_tanh(t, h);
    return h;
}

static ag_tensor *two_wide(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    ag_tensor *h = ag_recompute(t, wide, arg, 0, x, 1);
    return wide(arg, t, &h);
}

/* In tensors; parts: of x; run NULL: `wide` in the open. */
static size_t peak_of(ag_segment_run *run, int parts)
{
    enum { SIZE = 4096 };
    static const float zero[SIZE];
    ag_tape *t = tape_new(ag_kernels_ref(AG_F32));
    ag_tensor *x = ag_input(t, AG_SHAPE(SIZE), zero, true);
    for (int i = 0; i < parts; i++)
        x = run ? ag_recompute(t, run, NULL, 0, &x, 1) : wide(NULL, t, &x);
    assert_int_equal(ag_backward(t, ag_sum(t, x), 1), AG_OK);
    const size_t peak = ag_tape_bytes(t).peak / (SIZE * sizeof(float));
    ag_tape_free(t);
    return peak;
}

static void keeps_the_inputs_alone(void **state)
{
    (void)state;
    const size_t stored = peak_of(NULL, 10), kept = peak_of(wide, 10);
    assert_in_range(stored, 100, 106);
    assert_in_range(kept, 20, 26);       /* 10 inputs, 10 of one segment, gradients */
}

/* A segment within one that runs again has gone when what follows it takes memory. */
static void runs_again_in_turn(void **state)
{
    (void)state;
    assert_in_range(peak_of(two_wide, 1), 12, 18);       /* 10 of either part, not 20 */
}

/* The last product of a segment is not made again: nothing reads it. */
static ag_tensor *product(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    (void)arg;
    return ag_dropout(t, ag_linear(t, ag_tanh(t, x[0]), x[1], NULL, AG_ACT_NONE, NULL), x[0], 0.1,
                      1);
}

static int products;
static void (*real_gemm)(const ag_gemm *g);
static void counting_gemm(const ag_gemm *g)
{
    products++;
    real_gemm(g);
}

static void makes_what_is_read(void **state)
{
    (void)state;
    ag_kernels k = *ag_kernels_ref(AG_F32);
    real_gemm = k.gemm;
    k.gemm = counting_gemm;
    ag_tape *t = tape_new(&k);
    float v[N * N] = { 1, 2, 3 };
    ag_tensor *x[2];
    for (int i = 0; i < 2; i++) x[i] = ag_input(t, AG_SHAPE(N, N), v, true);
    products = 0;
    ag_tensor *y = ag_recompute(t, product, NULL, 0, x, 2);
    assert_int_equal(ag_backward(t, ag_sum(t, y), 1), AG_OK);
    assert_int_equal(products, 3);       /* one forward, dw, dx */
    ag_tape_free(t);
}

/* --- errors ----------------------------------------------------------------------------------- */

static ag_tensor *captures(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    return ag_add(t, x[0], *(ag_tensor *const *)arg);
}

static void refuses_to_lose_gradients(void **state)
{
    (void)state;
    float v[N * N] = { 0 };
    ag_tape *t = tape_new(ag_kernels_ref(AG_F32));
    ag_tensor *x = ag_tanh(t, ag_input(t, AG_SHAPE(N, N), v, true)), *z = ag_tanh(t, x);
    ag_recompute(t, captures, &z, sizeof z, &x, 1);
    assert_int_equal(ag_error(t), AG_EGRAD);
    assert_non_null(strstr(ag_error_message(t), "outside of the segment"));

    ag_tape_reset(t);
    float dw[N * N] = { 0 };
    ag_tensor w = { .shape = AG_SHAPE(N, N), .size = N * N, .dtype = AG_F32, .data = v, .grad = dw,
                    .needs_grad = true, .grad_kept = true, .grad_written = true, .name = "w" };
    ag_tensor *p = &w;
    x = ag_input(t, AG_SHAPE(N, N), v, false);
    ag_recompute(t, captures, &p, sizeof p, &x, 1);
    assert_int_equal(ag_error(t), AG_EGRAD);
    assert_non_null(strstr(ag_error_message(t), "parameters"));

    ag_tape_reset(t);                    /* a parameter may be read, and gets its gradient */
    x = ag_tanh(t, ag_input(t, AG_SHAPE(N, N), v, true));
    ag_tensor *y = ag_recompute(t, captures, &p, sizeof p, &x, 1);
    assert_int_equal(ag_backward(t, ag_sum(t, y), 1), AG_OK);
    for (int i = 0; i < N * N; i++) assert_true(dw[i] == 1);
    ag_tape_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_the_same_bits),
        cmocka_unit_test(plans_what_it_takes),
        cmocka_unit_test(keeps_the_inputs_alone),
        cmocka_unit_test(runs_again_in_turn),
        cmocka_unit_test(makes_what_is_read),
        cmocka_unit_test(refuses_to_lose_gradients),
    };
    return run_per_op("unread", unread_is_not_read) +
           cmocka_run_group_tests(tests, NULL, NULL);
}
