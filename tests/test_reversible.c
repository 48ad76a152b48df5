/*
 * test_reversible.c -- streams that are rebuilt: gradients as with everything stored, memory that
 * does not grow with depth, integers that are recalled, fixed point that is exact.
 */
#include "check.h"
#include "autograd/segment.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 5, WIDTH = 8, SIZE = ROWS * WIDTH, DEEP = 256 };

/* --- a stack of layers f(b) = gain tanh(norm(b) w), with dropout ------------------------------ */

typedef struct layer { ag_tensor *w; double drop; uint32_t site; } layer;

typedef struct stack {
    int n, swaps;                    /* swaps: 0 never, 1 always, 2 all but the last */
    int point;
    bool stored;                     /* ordinary ops instead */
    double drop;
    float gain;
    int    alone;                    /* the loss reads: 0 both streams, 1 the first, 2 the second */
} stack;

static ag_tensor *branch(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    const layer *l = arg;
    ag_tensor *h = ag_linear(t, ag_layernorm(t, x[0], NULL, NULL, 1e-5), l->w, NULL,
                             AG_ACT_GELU_TANH, NULL);
    return l->drop > 0 ? ag_dropout(t, h, NULL, l->drop, l->site) : h;
}

static bool swaps(const stack *s, int i)
{
    return s->swaps == 1 || (s->swaps == 2 && i < s->n - 1);
}

static ag_tensor *apply(ag_tape *t, const stack *s, const layer *l, ag_tensor *a, ag_tensor *b,
                        ag_tensor **ret_b)
{
    ag_half half[DEEP];
    for (int i = 0; i < s->n; i++) half[i] = (ag_half){ branch, &l[i], swaps(s, i) };
    if (!s->stored) return ag_reversible(t, half, s->n, s->point, a, b, ret_b);
    for (int i = 0; i < s->n; i++) {
        ag_tensor *sum = ag_add(t, a, branch(&l[i], t, &b));
        a = swaps(s, i) ? b : sum;
        b = swaps(s, i) ? sum : b;
    }
    *ret_b = b;
    return a;
}

typedef struct result {
    double y[2 * SIZE], dx[2 * SIZE], dw[WIDTH * WIDTH];
    ag_inverse inverse;
    size_t peak;
} result;

/* `same`: both streams begin as one tensor. */
static result run_stack(const ag_kernels *k, const stack *s, bool same, bool plan)
{
    static layer l[DEEP];
    result r = { 0 };
    ag_tape *t = tape_new(k);
    ag_tape_verify(t, true);
    ag_tape_plan(t, plan);
    ag_tensor *x[2];
    for (int i = 0; i < 2; i++) {
        double *v = uniform_new(SIZE, -2, 2, (uint64_t)(17 + i));
        x[i] = ag_input_f64(t, AG_SHAPE(ROWS, WIDTH), v, true);
        free(v);
    }
    if (same) x[1] = x[0];
    double *v = uniform_new(WIDTH * WIDTH, -(double)s->gain, (double)s->gain, 5);
    ag_tensor *w = ag_input_f64(t, AG_SHAPE(WIDTH, WIDTH), v, true);
    free(v);
    w->grad = calloc(WIDTH * WIDTH, sizeof(double));     /* as a parameter has */
    w->grad_written = true;
    for (int i = 0; i < s->n; i++) l[i] = (layer){ w, s->drop, (uint32_t)i };
    ag_tensor *b, *a = apply(t, s, l, x[0], x[1], &b);
    assert_int_equal(ag_error(t), AG_OK);
    for (int i = 0; i < SIZE && !plan; i++) {
        r.y[i] = real_at(a->data, a->dtype, i);
        r.y[SIZE + i] = real_at(b->data, b->dtype, i);
    }
    ag_tensor *of_b = ag_sigmoid(t, b), *of_a = ag_mul(t, a, a);
    ag_tensor *loss = ag_sum(t, s->alone == 1 ? of_a : s->alone == 2 ? of_b :
                             ag_mul(t, of_a, of_b));
    assert_int_equal(ag_backward(t, loss, 1), AG_OK);
    for (int i = 0; i < SIZE && !plan; i++) {
        if (x[0]->grad_written) r.dx[i] = real_at(x[0]->grad, x[0]->dtype, i);
        if (x[1]->grad_written) r.dx[SIZE + i] = real_at(x[1]->grad, x[1]->dtype, i);
    }
    for (int i = 0; i < WIDTH * WIDTH && !plan; i++) r.dw[i] = real_at(w->grad, w->dtype, i);
    r.inverse = ag_tape_inverse(t);
    r.peak = ag_tape_bytes(t).peak;
    free(w->grad);
    ag_tape_free(t);
    return r;
}

/* Largest |a - b| over largest |a|, where that is not 0. */
static double apart(const double *a, const double *b, int n)
{
    double most = 0, scale = 0;
    for (int i = 0; i < n; i++) {
        most = fmax(most, fabs(a[i] - b[i]));
        scale = fmax(scale, fabs(a[i]));
    }
    return scale > 0 ? most / scale : most;
}

static void near(const result *a, const result *b, double tolerance)
{
    assert_true(apart(a->y, b->y, 2 * SIZE) <= tolerance);
    assert_true(apart(a->dx, b->dx, 2 * SIZE) <= tolerance);
    assert_true(apart(a->dw, b->dw, WIDTH * WIDTH) <= tolerance);
}

static const ag_kernels *best(void) { return ag_kernels_best(AG_F32, &(const char *){ NULL }); }

static void equals_the_stored_run(void **state)
{
    (void)state;
    static const int depths[] = { 1, 2, 5, 16 };
    for (int d = 0; d < 4; d++)
        for (int swapped = 0; swapped < 3; swapped++)
            for (int k = 0; k < 6; k++) {
                const bool same = k % 2;
                stack s = { .n = depths[d], .swaps = swapped, .drop = 0.2, .gain = 0.5f,
                            .alone = k / 2 };
                const result a = run_stack(ag_kernels_ref(AG_F64), &s, same, false);
                s.stored = true;
                const result b = run_stack(ag_kernels_ref(AG_F64), &s, same, false);
                near(&b, &a, 1e-12);
                assert_int_equal(a.inverse.stacks, 1);
                assert_true(a.inverse.error <= 1e-14 * s.n * (1 + a.inverse.scale));
            }
}

static void rounding_grows_slowly(void **state)
{
    (void)state;
    for (int n = 1; n <= 64; n *= 4) {
        const stack s = { .n = n, .swaps = 1, .gain = 0.3f };
        const result a = run_stack(best(), &s, false, false);
        assert_true(a.inverse.error <= 2e-7 * n * a.inverse.scale);
    }
}

/* --- fixed point ------------------------------------------------------------------------------ */

static void fixed_point_is_exact(void **state)
{
    (void)state;
    const ag_kernels *all[4];
    const int n = ag_kernels_all(AG_F32, all, 4);
    for (int k = 0; k < n; k++)
        for (int point = 16; point <= 23; point++) {
            const stack s = { .n = DEEP, .swaps = 1, .point = point, .gain = 0.3f };
            const result a = run_stack(all[k], &s, false, false);
            assert_true(a.inverse.error == 0);
            assert_true(a.inverse.headroom >= 1);
        }
}

static void fixed_point_equals_the_stored_run(void **state)
{
    (void)state;
    for (int swapped = 0; swapped < 3; swapped++) {
        stack s = { .n = 16, .swaps = swapped, .point = 26, .gain = 0.3f, .drop = 0.1 };
        const result a = run_stack(ag_kernels_ref(AG_F64), &s, false, false);
        s.stored = true;
        const result b = run_stack(ag_kernels_ref(AG_F64), &s, false, false);
        near(&b, &a, 1e-6);
    }
}

static void fixed_point_tells_of_overflow(void **state)
{
    (void)state;
    float big[SIZE] = { 3e6f }, nan[SIZE] = { NAN }, small[SIZE] = { 1 };
    float *bad[] = { big, nan };
    for (int i = 0; i < 2; i++) {
        ag_tape *t = tape_new(best());
        ag_tensor *b, *x = ag_input(t, AG_SHAPE(ROWS, WIDTH), bad[i], true);
        ag_tensor *y = ag_input(t, AG_SHAPE(ROWS, WIDTH), small, true);
        ag_reversible(t, NULL, 0, 16, x, y, &b);
        assert_int_equal(ag_error(t), AG_EDIVERGED);
        assert_non_null(strstr(ag_error_message(t), "binary digits"));
        ag_tape_free(t);
    }
}

/* The fast kernels against the reference, bit for bit. */
static void fixed_kernels_agree(void **state)
{
    (void)state;
    enum { MANY = 30011 };
    float *x = malloc(MANY * sizeof *x), *y = malloc(2 * MANY * sizeof *y);
    int32_t *s = malloc(2 * MANY * sizeof *s);
    double *v = uniform_new(MANY, -3000, 3000, 8);
    for (int i = 0; i < MANY; i++) x[i] = (float)v[i];
    x[7] = NAN, x[8] = INFINITY, x[9] = -INFINITY, x[10] = 0x1p31f, x[11] = -0x1p31f, x[12] = 0.5f;
    const ag_kernels *all[4];
    const int n = ag_kernels_all(AG_F32, all, 4);
    for (int k = 0; k < n; k++)
        for (int point = 0; point <= 24; point += 6) {
            int32_t peak[2] = { 0 };
            for (int j = 0; j < 2; j++) {
                const ag_kernels *by = j ? all[k] : ag_kernels_ref(AG_F32);
                const int signs[] = { 0, 1, 1, -1 };
                for (int i = 0; i < 4; i++)
                    by->fixed_add(MANY - i, point, signs[i], x + i, s + j * MANY, &peak[j]);
                by->fixed_read(MANY, point, s + j * MANY, y + j * MANY);
            }
            assert_int_equal(peak[0], peak[1]);
            assert_memory_equal(s, s + MANY, MANY * sizeof *s);
            assert_memory_equal(y, y + MANY, MANY * sizeof *y);
        }
    free(x), free(y), free(s), free(v);
}

/* --- memory ----------------------------------------------------------------------------------- */

static void memory_does_not_grow(void **state)
{
    (void)state;
    for (int point = 0; point <= 20; point += 20) {
        stack s = { .n = 4, .swaps = 1, .point = point, .gain = 0.3f };
        const size_t few = run_stack(best(), &s, false, false).peak;
        s.n = DEEP;
        assert_int_equal(run_stack(best(), &s, false, false).peak, few);
        assert_int_equal(run_stack(best(), &s, false, true).peak, few);
        s.stored = true;
        assert_true(run_stack(best(), &s, false, false).peak > 20 * few);
    }
}

/* --- integers that are recalled --------------------------------------------------------------- */

static int times_made, times_given;
static bool forget;                      /* compute other integers the second time */

static int choice_shape(ag_call *c, ag_shape *out)
{
    out[0] = c->in[0]->shape;
    out[1] = AG_SHAPE(ROWS);
    return AG_OK;
}

/* y = x times 1, 2 or 3 for each row; which, is a choice that rounding could change. */
static void choice_forward(ag_call *c)
{
    int32_t *k = c->out[1]->data;
    for (int i = 0; i < ROWS; i++)
        if (!c->given) k[i] = 1 + (i + (forget && times_made)) % 3;
    *(c->given ? &times_given : &times_made) += 1;
    for (int i = 0; i < SIZE; i++)
        ((float *)c->out[0]->data)[i] = ((float *)c->in[0]->data)[i] * (float)k[i / WIDTH];
}

static void choice_backward(ag_call *c)
{
    float *dx = ag_grad_add(c, 0);
    const int32_t *k = c->out[1]->data;
    for (int i = 0; i < SIZE; i++) dx[i] += ((float *)c->out[0]->grad)[i] * (float)k[i / WIDTH];
}

static unsigned choice_recalls(const ag_call *c)
{
    (void)c;
    return 1u << 1;
}

static const ag_op choice_op = {
    .name = "choice", .n_in = 1, .n_out = 2, .integer_out = 2, .recalls = choice_recalls,
    .shape = choice_shape,
    .forward = choice_forward, .backward = choice_backward,
};

static ag_tensor *choosing(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    (void)arg;
    ag_tensor *in[AG_MAX_IN] = { x[0] };
    ag_tensor *y = ag_apply(t, &choice_op, in, NULL, NULL);
    return ag_apply(t, &choice_op, (ag_tensor *[AG_MAX_IN]){ ag_tanh(t, y) }, NULL, NULL);
}

static void choices_are_recalled(void **state)
{
    (void)state;
    enum { LAYERS = 5 };
    float v[SIZE];
    for (int i = 0; i < SIZE; i++) v[i] = cosf((float)i);
    forget = true;
    times_made = times_given = 0;
    ag_tape *t = tape_new(best());
    ag_tape_verify(t, true);
    ag_half half[LAYERS];
    for (int i = 0; i < LAYERS; i++) half[i] = (ag_half){ choosing, NULL, i % 2 == 0 };
    ag_tensor *a = ag_input(t, AG_SHAPE(ROWS, WIDTH), v, true), *b;
    a = ag_reversible(t, half, LAYERS, 0, a, a, &b);
    assert_int_equal(ag_backward(t, ag_sum(t, ag_mul(t, a, b)), 1), AG_OK);
    assert_int_equal(times_made, 2 * LAYERS);
    assert_int_equal(times_given, 2 * LAYERS);
    assert_true(ag_tape_inverse(t).error <= 1e-3);       /* another choice would move it by 0.1 */
    ag_tape_free(t);
    forget = false;
}

/* --- errors ----------------------------------------------------------------------------------- */

static ag_tensor *narrower(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    (void)arg;
    return ag_row_sum(t, x[0]);
}

static ag_tensor *captures(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    return ag_add(t, x[0], *(ag_tensor *const *)arg);
}

static ag_tensor *bent(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    (void)arg;
    return ag_tanh(t, x[0]);
}

static ag_tensor *segmented(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    (void)arg;
    return ag_recompute(t, bent, NULL, 0, x, 1);
}

static void refused(ag_segment_run *f, const void *arg, bool needs_grad, int code, const char *what)
{
    float v[SIZE] = { 0 };
    ag_tape *t = tape_new(best());
    ag_tensor *a = ag_input(t, AG_SHAPE(ROWS, WIDTH), v, needs_grad), *b;
    ag_tensor *z = ag_tanh(t, a);
    const ag_half half = { f, arg ? arg : &z, true };
    ag_reversible(t, &half, 1, 0, a, a, &b);
    assert_int_equal(ag_error(t), code);
    assert_non_null(strstr(ag_error_message(t), what));
    ag_tape_free(t);
}

static void errors_are_loud(void **state)
{
    (void)state;
    refused(narrower, NULL, true, AG_ESHAPE, "from a stream");
    refused(captures, NULL, true, AG_EGRAD, "outside of the segment");
    refused(captures, NULL, false, AG_EGRAD, "neither stream");
    refused(segmented, NULL, true, AG_EGRAD, "inside a reversible layer");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_stored_run),
        cmocka_unit_test(rounding_grows_slowly),
        cmocka_unit_test(fixed_point_is_exact),
        cmocka_unit_test(fixed_point_equals_the_stored_run),
        cmocka_unit_test(fixed_point_tells_of_overflow),
        cmocka_unit_test(fixed_kernels_agree),
        cmocka_unit_test(memory_does_not_grow),
        cmocka_unit_test(choices_are_recalled),
        cmocka_unit_test(errors_are_loud),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
