/*
 * test_tape.c -- the tape itself: memory that repeats, marks, gradients that change hands, noise
 * keys, watching.
 *
 * Gradients move without being copied (ag_grad_pass) and their memory is used again (spares). Where
 * that goes wrong depends on the shape of the graph, so whole graphs are checked here against
 * difference quotients.
 */
#include "check.h"
#include "autograd/base/arena.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 6, LEAVES = 4 };

/* --- graphs ----------------------------------------------------------------------------------- */

/* Builds a graph from four leaves [N,N]; b, c, d may stay unused. */
typedef ag_tensor *(*graph)(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d);

static ag_tensor *twice(ag_tape *t, ag_tensor *x) { return ag_add(t, x, x); }

static ag_tensor *diamond(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    (void)c, (void)d;
    ag_tensor *x = ag_tanh(t, a), *l = ag_mul(t, x, b), *r = ag_sigmoid(t, x);
    return ag_add(t, ag_mul(t, l, r), x);
}

static ag_tensor *doubling(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    (void)b, (void)c, (void)d;
    return ag_mul(t, twice(t, twice(t, a)), twice(t, ag_square(t, a)));
}

static ag_tensor *residuals(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    ag_tensor *x = a;
    for (int i = 0; i < 4; i++) {
        x = ag_linear(t, ag_tanh(t, x), b, NULL, AG_ACT_NONE, x);
        x = ag_linear(t, x, c, NULL, AG_ACT_GELU_TANH, x);
        x = ag_dropout(t, ag_matmul(t, x, false, d, true), x, 0.3, 1);
    }
    return x;
}

/* The stream is read again after the residual was added: two gradients meet in memory that was
 * handed over. */
static ag_tensor *late_readers(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    ag_tensor *x = ag_tanh(t, a);
    ag_tensor *y = ag_linear(t, b, c, NULL, AG_ACT_GELU_ERF, x);
    ag_tensor *z = ag_dropout(t, y, x, 0.2, 2);
    return ag_add(t, ag_mul(t, y, z), ag_linear(t, x, d, NULL, AG_ACT_NONE, z));
}

static ag_tensor *reshaped_leaf(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    (void)c, (void)d;
    ag_tensor *flat = ag_reshape(t, a, AG_SHAPE(N * N)),
              *back = ag_reshape(t, flat, AG_SHAPE(N, N));
    return ag_add(t, ag_mul(t, back, b), ag_mul(t, a, back));
}

static ag_tensor *reshape_only(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    (void)b, (void)c, (void)d;
    return ag_reshape(t, ag_reshape(t, a, AG_SHAPE(2, N * N / 2)), AG_SHAPE(N, 1, N));
}

static ag_tensor *reshaped_twice(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    (void)d;
    ag_tensor *x = ag_mul(t, a, b), *l = ag_reshape(t, x, AG_SHAPE(N * N)),
              *r = ag_reshape(t, x, AG_SHAPE(N * N));
    return ag_add(t, ag_reshape(t, ag_mul(t, l, r), AG_SHAPE(N, N)), ag_mul(t, x, c));
}

static ag_tensor *linear_of_one(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    (void)d;
    ag_tensor *y = ag_linear(t, a, a, NULL, AG_ACT_GELU_QUICK, a); /* x, w and residual are one */
    ag_tensor *x = ag_tanh(t, b);
    return ag_add(t, y, ag_linear(t, x, x, ag_row_sum(t, c), AG_ACT_NONE, x));
}

/* Values before the activation of either sign, which a residual hides. */
static ag_tensor *relus(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    ag_tensor *x = ag_linear(t, a, b, ag_row_sum(t, c), AG_ACT_RELU, d);
    return ag_linear(t, x, c, NULL, AG_ACT_RELU, NULL);
}

static ag_tensor *dropout_of_one(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    (void)c, (void)d;
    ag_tensor *x = ag_mul(t, a, b);
    return ag_add(t, ag_dropout(t, x, x, 0.4, 3), ag_dropout(t, a, a, 0.4, 4));
}

static ag_tensor *attention_of_one(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c,
                                   ag_tensor *d)
{
    (void)c, (void)d;
    const ag_attention_options o = { .heads = 2, .d_qk = 3, .d_v = 3, .causal = true };
    ag_tensor *x = ag_reshape(t, a, AG_SHAPE(2, N / 2, N)),
              *y = ag_reshape(t, ag_tanh(t, b), AG_SHAPE(2, N / 2, N));
    return ag_add(t, ag_attend(t, x, x, x, &o), ag_attend(t, y, x, y, &o));
}

/* Outputs that nothing uses, and calls after the one that backward starts from. */
static ag_tensor *unused(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    (void)d;
    ag_mul(t, a, b);
    ag_tensor *x = ag_mul(t, a, c), *y = ag_tanh(t, x);
    ag_reshape(t, ag_dropout(t, x, y, 0.1, 5), AG_SHAPE(N * N));
    return y;
}

/* Many gradients of one size are alive at once, wait for a second reader, and take each other's
 * memory. */
static ag_tensor *crowd(ag_tape *t, ag_tensor *a, ag_tensor *b, ag_tensor *c, ag_tensor *d)
{
    ag_tensor *x[8] = { a, b, c, d };
    for (int i = 4; i < 8; i++) x[i] = ag_sigmoid(t, x[i - 4]);
    for (int round = 0; round < 5; round++)
        for (int i = 0; i < 8; i++) {
            ag_tensor *other = x[(i * 5 + round + 1) % 8];
            x[i] = i % 3 == 0   ? ag_add(t, x[i], ag_tanh(t, other))
                   : i % 3 == 1 ? ag_mul(t, ag_sigmoid(t, x[i]), other)
                                : ag_dropout(t, ag_sub(t, x[i], other), x[i], 0.2,
                                             (uint32_t)(round * 8 + i));
        }
    ag_tensor *y = x[0];
    for (int i = 1; i < 8; i++) y = ag_add(t, y, x[i]);
    return ag_scale(t, y, 0.125);
}

static ag_tensor *run_graph(ag_tape *t, graph build, double step, unsigned needs_grad,
                            ag_tensor *ret_leaf[LEAVES])
{
    for (uint64_t i = 0; i < LEAVES; i++) {
        double *v = uniform_new(N * N, -0.5, 0.5, 10 + i), *u = uniform_new(N * N, -1, 1, 20 + i);
        for (int j = 0; j < N * N; j++) v[j] += needs_grad >> i & 1 ? step * u[j] : 0;
        ret_leaf[i] = ag_input_f64(t, AG_SHAPE(N, N), v, needs_grad >> i & 1);
        free(u);
        free(v);
    }
    return build(t, ret_leaf[0], ret_leaf[1], ret_leaf[2], ret_leaf[3]);
}

static double probe(ag_tape *t, graph build, double step, unsigned needs_grad)
{
    ag_tensor *leaf[LEAVES];
    const ag_tensor *y = run_graph(t, build, step, needs_grad, leaf);
    if (ag_error(t)) fail_msg("%s", ag_error_message(t));
    double *v = uniform_new(N * N, -1, 1, 30), sum = 0;
    assert_int_equal(y->size, N * N);
    for (int i = 0; i < N * N; i++) sum += v[i] * ((const double *)y->data)[i];
    free(v);
    ag_tape_reset(t);
    return sum;
}

static double slope(ag_tape *t, graph build, unsigned needs_grad)
{
    ag_tensor *leaf[LEAVES];
    ag_tensor *y = run_graph(t, build, 0, needs_grad, leaf);
    double *v = uniform_new(N * N, -1, 1, 30), sum = 0;
    assert_int_equal(ag_backward_from(t, y, v), AG_OK);
    free(v);
    for (uint64_t i = 0; i < LEAVES; i++) {
        if (!leaf[i]->grad) continue;
        assert_true(needs_grad >> i & 1);
        double *u = uniform_new(N * N, -1, 1, 20 + i);
        for (int j = 0; j < N * N; j++) sum += u[j] * ((double *)leaf[i]->grad)[j];
        free(u);
    }
    ag_tape_reset(t);
    return sum;
}

/* Some graphs do not lead to some leaves: then there is nothing to check. */
static bool leads_to(ag_tape *t, graph build, unsigned needs_grad)
{
    ag_tensor *leaf[LEAVES];
    const bool r = run_graph(t, build, 0, needs_grad, leaf)->needs_grad;
    ag_tape_reset(t);
    return r;
}

static void graphs_have_the_right_gradient(void **state)
{
    (void)state;
    static const struct { const char *name; graph build;
    } all[] = {
#define G(f) { #f, f }
        G(diamond),        G(doubling),         G(residuals),      G(late_readers),
        G(reshaped_leaf),  G(reshape_only),     G(reshaped_twice), G(linear_of_one), G(relus),
        G(dropout_of_one), G(attention_of_one), G(unused),         G(crowd),
#undef G
    };
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    const double h = 1e-4;         /* products of twelve matrices bend: smaller than for one op */
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (unsigned set = 1; set < 1u << LEAVES; set++) {
            if (!leads_to(t, all[i].build, set)) continue;
            const double near = probe(t, all[i].build, h, set) - probe(t, all[i].build, -h, set);
            const double far =
                probe(t, all[i].build, 2 * h, set) - probe(t, all[i].build, -2 * h, set);
            const double want = (8 * near - far) / (12 * h), got = slope(t, all[i].build, set);
            if (!(fabs(got - want) <= 1e-8 + 1e-7 * fabs(want)))
                fail_msg("%s, leaves 0x%x: backward %.12g, differences %.12g", all[i].name, set,
                         got, want);
        }
    ag_tape_free(t);
}

/* --- backward --------------------------------------------------------------------------------- */

static void backward_adds_up_and_scales(void **state)
{
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    const double v[3] = { 1, 2, 3 };
    ag_tensor *x = ag_input_f64(t, AG_SHAPE(3), v, true), *loss = ag_sum(t, ag_square(t, x));
    assert_int_equal(ag_backward(t, loss, 0.5), AG_OK);
    for (int i = 0; i < 3; i++) assert_true(((double *)x->grad)[i] == v[i]);
    assert_null(loss->grad);
    assert_int_equal(ag_backward(t, loss, 2), AG_OK);
    for (int i = 0; i < 3; i++) assert_true(((double *)x->grad)[i] == 5 * v[i]);
    ag_tape_free(t);
}

/* A parameter's gradient lives outside the tape: always there, always added to. */
static void parameters_keep_their_gradient(void **state)
{
    (void)state;
    double w = 3, dw = 10;
    ag_tensor p = { .size = 1,
                    .dtype = AG_F64,
                    .data = &w,
                    .grad = &dw,
                    .needs_grad = true,
                    .grad_written = true,
                    .grad_kept = true,
                    .name = "w" };
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(ag_backward(t, ag_square(t, &p), 1), AG_OK);
        ag_tape_reset(t);
        assert_true(p.grad == &dw && dw == 10 + 6 * i);
    }
    /* through a reshape nothing may be handed over: the parameter's memory is its own */
    assert_int_equal(ag_backward(t, ag_reshape(t, &p, (ag_shape){ 0 }), 1), AG_OK);
    assert_true(p.grad == &dw && dw == 29);
    ag_tape_free(t);
}

static void without_grad_nothing_is_recorded(void **state)
{
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    const double v[2] = { 1, 2 };
    ag_tensor *x = ag_input_f64(t, AG_SHAPE(2), v, true);
    ag_tape_no_grad(t, true);
    assert_false(ag_square(t, x)->needs_grad);
    assert_int_equal(ag_argmax(t, x)->size, 1);
    assert_int_equal(ag_error(t), AG_OK);
    assert_int_equal(ag_tape_calls(t), 0);
    ag_tape_no_grad(t, false);
    ag_square(t, ag_input_f64(t, AG_SHAPE(2), v, false));
    assert_int_equal(ag_tape_calls(t), 0);
    ag_scope(t, "here", 7);
    ag_tensor *y = ag_square(t, x);
    assert_true(y->needs_grad && ag_tape_calls(t) == 1);
    char text[64];
    assert_string_equal(ag_call_scope(ag_tape_call(t, 0), text, sizeof text), "here 7");
    assert_string_equal(ag_call_scope(ag_tape_call(t, 0), text, 5), "here");
    assert_ptr_equal(ag_tape_call(t, 0)->out[0], y);
    ag_tape_free(t);
}

/* --- memory ----------------------------------------------------------------------------------- */

enum {
    DEEP = 40,
    WIDE = 200
}; /* 40 layers of 200 x 200 doubles: several chunks in the first step */

static int deep_step(ag_tape *t, const void *ret_address[2 * DEEP], double *ret_loss)
{
    double *v = uniform_new(WIDE * WIDE, -1, 1, 4);
    ag_tensor *x = ag_input_f64(t, AG_SHAPE(WIDE, WIDE), v, true), *leaf = x;
    free(v);
    for (int i = 0; i < DEEP; i++) {
        x = i % 2 ? ag_tanh(t, x) : ag_add(t, x, ag_scale(t, x, 0.5));
        ret_address[2 * i] = x;
        ret_address[2 * i + 1] = x->data;
    }
    ag_tensor *loss = ag_mean(t, x);
    *ret_loss = *(double *)loss->data;
    const int r = ag_backward(t, loss, 1);
    ret_address[0] = leaf->grad;
    return r;
}

static void addresses_repeat(void **state)
{
    (void)state;
    static const void *at[4][2 * DEEP];
    double loss[4];
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    size_t reserved[4];
    for (int i = 0; i < 4; i++) {
        assert_int_equal(deep_step(t, at[i], &loss[i]), AG_OK);
        assert_true(loss[i] == loss[0]);
        const ag_tape_memory m = ag_tape_bytes(t);
        reserved[i] = m.reserved;
        assert_true(m.used <= m.peak && m.peak <= m.reserved);
        assert_true(m.peak >= (size_t)DEEP * WIDE * WIDE * sizeof(double));
        /* gradients take each other's memory: backward needs a handful, not one per layer */
        assert_true(m.peak <= (size_t)(3 * DEEP / 2 + 8) * WIDE * WIDE * sizeof(double));
        ag_tape_reset(t);
        assert_int_equal(ag_tape_bytes(t).used, 0);
    }
    assert_memory_equal(at[1], at[2], sizeof at[1]);
    assert_memory_equal(at[1], at[3], sizeof at[1]);
    assert_true(reserved[1] == reserved[3]);
    ag_tape_free(t);
}

/* Memory that was rewound at once, as scratch is, counts too. */
static void a_reset_arena_has_room_for_its_peak(void **state)
{
    (void)state;
    enum { LARGE = 1 << 20 };
    ag_arena a = { .chunk_min = 4096 };
    const void *at[3] = { NULL };
    for (int i = 0; i < 3; i++) {
        assert_non_null(ag_arena_alloc(&a, 1, 64));
        const ag_mark m = ag_arena_mark(&a);
        assert_non_null(at[i] = ag_arena_alloc(&a, LARGE, 1));
        ag_arena_rewind(&a, m);
        ag_arena_reset(&a);
        assert_true(ag_arena_reserved(&a) >= a.peak);
    }
    assert_ptr_equal(at[1], at[2]);
    ag_arena_release(&a);
}

static void rewinding_keeps_what_came_before(void **state)
{
    (void)state;
    static const void *at[2 * DEEP];
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    const double v[3] = { 1, 2, 3 };
    double loss;
    for (int round = 0; round < 2; round++) {
        ag_tensor *x = ag_input_f64(t, AG_SHAPE(3), v, true);
        ag_scope(t, "kept", 1);
        ag_tensor *y = ag_square(t, x);
        const size_t used = ag_tape_bytes(t).used;
        const ag_tape_mark *m = ag_tape_mark_here(t);
        assert_non_null(m);
        for (int i = 0; i < 3; i++) {        /* a mark may be gone back to more than once */
            ag_scope(t, "dropped", 2);
            assert_int_equal(deep_step(t, at, &loss), AG_OK);
            ag_tape_rewind(t, m);
            assert_int_equal(ag_tape_bytes(t).used, used);
            assert_int_equal(ag_tape_calls(t), 1);
        }
        for (int i = 0; i < 3; i++) assert_true(((double *)y->data)[i] == v[i] * v[i]);
        ag_tensor *z = ag_sum(t, y);
        char text[64];
        assert_string_equal(ag_call_scope(ag_tape_call(t, 1), text, sizeof text), "kept 1");
        assert_int_equal(ag_backward(t, z, 1), AG_OK);
        for (int i = 0; i < 3; i++) assert_true(((double *)x->grad)[i] == 2 * v[i]);
        ag_tape_reset(t);
    }
    ag_tape_free(t);
}

/* --- noise ------------------------------------------------------------------------------------ */

enum { SAMPLES = 6, ROWS = 3, COLS = 8 };     /* of a batch; rows per sample */

/* Outputs of three noisy ops on samples from .. from + n - 1, one after the other in ret. */
static void noisy(ag_tape *t, int64_t from, int64_t n, uint32_t step, double *ret[3])
{
    double *all = uniform_new(SAMPLES * ROWS * COLS, -1, 1, 6);
    ag_tape_noise(t, &(ag_noise_key){ .seed = 99, .step = step, .sample0 = from, .n_samples = n });
    ag_tensor *x = ag_input_f64(t, AG_SHAPE(n, ROWS, COLS), all + from * ROWS * COLS, false);
    ag_tensor *y[3] = {
        ag_dropout(t, x, NULL, 0.5, 1),
        ag_control(t, x,
                   &(ag_controller_options){ .n = 4, .temperature = 1, .relaxed = true, .site = 2 },
                   NULL),
        ag_attend(t, x, x, x,
                  &(ag_attention_options){
                      .heads = 2, .d_qk = 4, .d_v = 4, .drop = 0.5, .site = 3 }),
    };
    assert_int_equal(ag_error(t), AG_OK);
    for (int i = 0; i < 3; i++)
        memcpy(ret[i] + from * ROWS * COLS, y[i]->data, (size_t)(n * ROWS * COLS) * sizeof(double));
    free(all);
    ag_tape_reset(t);
}

static void parts_of_a_batch_have_the_noise_of_the_whole(void **state)
{
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    enum { ALL = SAMPLES * ROWS * COLS };
    static double whole[3][ALL], parts[3][ALL], later[3][ALL];
    noisy(t, 0, SAMPLES, 5, (double *[3]){ whole[0], whole[1], whole[2] });
    noisy(t, 0, SAMPLES, 6, (double *[3]){ later[0], later[1], later[2] });
    const int64_t cut[] = { 0, 2, 5, 6 };
    for (int i = 0; i < 3; i++)
        noisy(t, cut[i], cut[i + 1] - cut[i], 5, (double *[3]){ parts[0], parts[1], parts[2] });
    for (int i = 0; i < 3; i++) {
        if (memcmp(whole[i], parts[i], sizeof whole[i]))
            fail_msg("op %d: parts and whole differ", i);
        if (!memcmp(whole[i], later[i], sizeof whole[i]))
            fail_msg("op %d: two steps have the same noise", i);
    }
    ag_tape_free(t);
}

/* --- watching --------------------------------------------------------------------------------- */

static void watching_names_the_first_bad_op(void **state)
{
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F32));
    const float v[3] = { 1, -2, 3 };
    for (int watch = 0; watch < 2; watch++) {
        ag_tape_watch(t, watch);
        ag_tensor *x = ag_input(t, AG_SHAPE(3), v, true);
        ag_scope(t, "block", 4);
        ag_tensor *y = ag_log(t, x);
        ag_scope_end(t);
        ag_scope(t, "later", -1);
        ag_exp(t, y);
        if (!watch) {
            assert_int_equal(ag_error(t), AG_OK);
        } else {
            assert_int_equal(ag_error(t), AG_EDIVERGED);
            assert_string_equal(ag_error_message(t),
                                "log: 1 of 3 values of its output [3] are not finite; input 0 [3] "
                                "in [-2, 3] in block 4");
        }
        ag_tape_reset(t);
    }
    ag_tape_free(t);
}

static void watching_sees_gradients(void **state)
{
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F32));
    const float v[2] = { 0, 4 };
    ag_tape_watch(t, true);
    ag_scope(t, "root", -1);
    ag_tensor *x = ag_input(t, AG_SHAPE(2), v, true),
              *y = ag_sqrt(t, x); /* dy/dx at 0 is infinite */
    ag_scope_end(t);
    assert_int_equal(ag_backward(t, ag_sum(t, y), 1), AG_EDIVERGED);
    const char *m = ag_error_message(t);
    if (!strstr(m, "sqrt: 1 of 2 values of the gradient of input") || !strstr(m, "in root"))
        fail_msg("%s", m);
    ag_tape_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(graphs_have_the_right_gradient),
        cmocka_unit_test(backward_adds_up_and_scales),
        cmocka_unit_test(parameters_keep_their_gradient),
        cmocka_unit_test(without_grad_nothing_is_recorded),
        cmocka_unit_test(addresses_repeat),
        cmocka_unit_test(a_reset_arena_has_room_for_its_peak),
        cmocka_unit_test(rewinding_keeps_what_came_before),
        cmocka_unit_test(parts_of_a_batch_have_the_noise_of_the_whole),
        cmocka_unit_test(watching_names_the_first_bad_op),
        cmocka_unit_test(watching_sees_gradients),
    };
    return cmocka_run_group_tests_name("tape", tests, NULL, NULL);
}
