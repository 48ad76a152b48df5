/*
 * op_check.c -- see op_check.h.
 *
 * An element may be off by c * u * S: u half a unit in the last place of the table's type, S the
 * natural scale of the element, c a small constant for every size (so no kernel may add up
 * thousands of numbers one by one in f32).  For ops that are products and sums, S is the same op on
 * absolute values; for the rest it is the largest value that takes part.  Over a whole tensor the
 * mean square error must be below a small part of the mean square, which finds what is a little
 * wrong everywhere.
 */
#include "op_check.h"

#include "autograd/device.h"
#include "autograd/tape_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- running a case --------------------------------------------------------------------------- */

void op_result_release(op_result *r)
{
    for (int i = 0; i < 2 + AG_MAX_IN; i++) free(r->v[i]);
}

/* A tape whose memory is full of NaN: one chunk, so that it stays so over resets. */
enum { POISON_MAX = 64 << 20 };

/* A tensor of NaN, and its gradient too. */
static void nan_input(ag_tape *t, size_t bytes)
{
    static float *nan;
    enum { COUNT = POISON_MAX / sizeof(float) };
    if (!nan) {
        nan = malloc(POISON_MAX);
        assert_non_null(nan);
        for (int64_t i = 0; i < COUNT; i++) nan[i] = NAN;
    }
    assert_true(bytes <= POISON_MAX);
    ag_tensor *x = ag_input(t, AG_SHAPE((int64_t)(bytes / sizeof(float))), nan, true);
    x->grad = ag_grad_alloc(t, x);
    assert_non_null(x->grad);
    ag_device_write(ag_tape_kernels(t)->device, x->grad, nan, (size_t)x->size * sizeof *nan);
}

static void poison(ag_tape *t, size_t bytes)
{
    ag_tape_reset(t);
    nan_input(t, bytes);
    ag_tape_reset(t);
}

/* Where the gradients of the case will lie: its forward may have had scratch there. */
static void poison_ahead(ag_tape *t, const op_case *c, const ag_tensor *y)
{
    size_t bytes = 4 * (size_t)y->size + 64 * (AG_MAX_IN + 2);
    for (int i = 0; i < c->op->n_in; i++) bytes += 4 * (size_t)ag_shape_size(&c->s.in[i]);
    const ag_tape_mark *m = ag_tape_mark_here(t);
    assert_non_null(m);
    nan_input(t, bytes);
    ag_tape_rewind(t, m);
}

ag_tape *poisoned_tape(const ag_kernels *k)
{
    ag_tape *t = tape_new(k);
    if (k->dtype == AG_F32) poison(t, POISON_MAX);
    return t;
}

void poison_again(ag_tape *t)
{
    const ag_tape_memory m = ag_tape_bytes(t);           /* scratch comes on top of what is used */
    const size_t most = 4 * m.used + (1 << 18), used = most < m.peak ? most : m.peak;
    if (ag_tape_dtype(t) == AG_F32) poison(t, used);
    else ag_tape_reset(t);
}

/* Behind n bytes at p, up to where the next tensor may begin, all must still be NaN. */
static void check_guard(const ag_tape *t, const op_case *c, const char *what, const void *p,
                        size_t n)
{
#ifndef __SANITIZE_ADDRESS__         /* which finds such a write itself, and would find this read */
    const ag_device *device = ag_tape_kernels(t)->device;
    const float nan = NAN;
    float is;
    char text[512];
    for (size_t at = n; at % 64; at += sizeof nan) {
        ag_device_read(device, &is, (const char *)p + at, sizeof is);
        if (memcmp(&is, &nan, sizeof nan))
            fail_msg("%s: something was written %zu bytes behind %s", case_text(c, 0, text), at - n,
                     what);
    }
#else
    (void)t, (void)c, (void)what, (void)p, (void)n;
#endif
}

op_result op_run(ag_tape *t, const op_case *c)
{
    const bool back = c->op->backward, f32 = ag_tape_dtype(t) == AG_F32;
    char text[512];
    ag_tensor *in[AG_MAX_IN], *out[2] = { NULL, NULL };
    op_result r = { 0 };
    case_inputs(t, c, back ? c->real : 0, 0, 0, in);
    out[0] = case_apply(t, c, in, c->op->n_out > 1 ? &out[1] : NULL);
    if (ag_error(t)) fail_msg("%s: %s", case_text(c, 0, text), ag_error_message(t));
    for (int i = 0; i < c->op->n_out; i++) {
        r.v[i] = copy_of(t, out[i], false);
        r.size[i] = out[i]->size;
        if (f32 && !c->op->alias)
            check_guard(t, c, "an output", out[i]->data, (size_t)out[i]->size * 4);
    }
    if (back && f32) poison_ahead(t, c, out[0]);
    if (back && case_backward(t, c, out[0]))
        fail_msg("%s: %s", case_text(c, 0, text), ag_error_message(t));
    for (int i = 0; back && i < c->op->n_in; i++) {
        if (!(c->real >> i & 1)) continue;
        r.v[2 + i] = copy_of(t, in[i], true);
        r.size[2 + i] = in[i]->size;
        if (f32) check_guard(t, c, "a gradient", in[i]->grad, (size_t)in[i]->size * 4);
    }
    poison_again(t);
    return r;
}

/* --- how far off a result may be -------------------------------------------------------------- */

static bool is_unary(const ag_op *op)
{
    return op->n_in == 1 && op->id < AG_UNARY_COUNT && ag_op_table[op->id] == op;
}

/* Sums of products: S is the op on absolute values. */
static bool is_sum_of_products(const ag_op *op)
{
    const ag_op *const no[] = { &ag_op_layernorm,     &ag_op_attend,        &ag_op_attend_qkv,
                                &ag_op_attend_cached, &ag_op_cross_entropy, &ag_op_softmax,
                                &ag_op_log_softmax,   &ag_op_control,       &ag_op_choose,
                                &ag_op_argmax,        &ag_op_sru,           &ag_op_sru_cached,
                                &ag_op_attend_source, &ag_op_lsh_attend,    &ag_op_lsh_cached };
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (no[i] == op) return false;
    return !is_unary(op);
}

/* The difference of larger numbers, on purpose: exactly zero for a row of one, for a query of one
 * key. */
static bool cancels(const ag_op *op)
{
    return op == &ag_op_layernorm || op == &ag_op_attend || op == &ag_op_attend_qkv ||
           op == &ag_op_choose || op == &ag_op_lsh_attend;
}

static double largest(int64_t n, const double *x)
{
    double m = 0;
    for (int64_t i = 0; i < n; i++) m = fmax(m, fabs(x[i]));
    return m;
}

/* The op on absolute values, without its activation. */
static op_result absolute(ag_tape *t, const op_case *c)
{
    op_case a = *c;
    ag_tensor *in[AG_MAX_IN];
    op_result r = { 0 };
    if (c->op == &ag_op_sub) a.op = &ag_op_add;
    if (c->op == &ag_op_linear) a.s.attr.linear.act = AG_ACT_NONE;
    if (c->op == &ag_op_scale) a.s.attr.scale.alpha = fabs(a.s.attr.scale.alpha);
    case_inputs(t, c, c->real, 0, 0, in);
    for (int i = 0; i < c->op->n_in; i++)
        for (int64_t j = 0; c->real >> i & 1 && j < in[i]->size; j++)
            ((double *)in[i]->data)[j] = fabs(((double *)in[i]->data)[j]);
    ag_tensor *y = case_apply(t, &a, in, NULL);
    r.v[0] = copy_of(t, y, false);
    double *dy = case_cotangent(c, y->size);
    for (int64_t i = 0; i < y->size; i++) dy[i] = fabs(dy[i]);
    assert_int_equal(ag_backward_from(t, y, dy), AG_OK);
    free(dy);
    for (int i = 0; i < c->op->n_in; i++) {
        if (!(c->real >> i & 1)) continue;
        r.v[2 + i] = copy_of(t, in[i], true);
        for (int64_t j = 0; j < in[i]->size; j++)
            r.v[2 + i][j] = fabs(r.v[2 + i][j]); /* div has a minus */
    }
    if (c->op == &ag_op_linear &&
        c->s.attr.linear.act > AG_ACT_RELU) { /* act' up to 1.13, act'' up to 1 */
        const double more = 1.2 + largest(y->size, r.v[0]);
        for (int i = 0; i < c->op->n_in; i++)
            for (int64_t j = 0; r.v[2 + i] && j < in[i]->size; j++) r.v[2 + i][j] *= more;
        for (int64_t j = 0; j < y->size; j++) r.v[0][j] *= 1.2;
    }
    ag_tape_reset(t);
    return r;
}

/* What the largest value of a result is not to be judged below, for the i-th of a result. */
static double least_scale(const op_case *c, int i)
{
    const ag_op *op = c->op;
    const bool grad = i >= 2;
    const int64_t n = c->s.in[0].ndim ? c->s.in[0].dim[c->s.in[0].ndim - 1] : 1;
    if (op == &ag_op_layernorm) /* rows that are all but constant have rstd near 1/sqrt(eps); of
                                   one, exactly */
        return grad && i > 2 ? 1 : n == 1 ? 1 / sqrt(c->s.attr.layernorm.eps) : n == 2 ? 40 : 2;
    if (op == &ag_op_attend || op == &ag_op_attend_qkv || op == &ag_op_attend_cached ||
        op == &ag_op_attend_source)
        return grad ? (double)c->s.attr.attention.d_v : 1.5;
    if (op == &ag_op_lsh_attend || op == &ag_op_lsh_cached)
        return grad ? (double)c->s.attr.lsh.o.d_v : 1.5;
    if (op == &ag_op_control && c->s.attr.control.relaxed && c->s.attr.control.temperature > 0)
        return 8 / c->s.attr.control.temperature;      /* (z + g) / T goes into exp */
    if (op == &ag_op_cross_entropy) return grad ? 1 / (double)ag_shape_size(&c->s.in[1]) : 3;
        return 1;
}

/* c: 4 for sums in chunks, 8 where a few of them follow each other.  Products of matrices add up a
 * few hundred terms one by one in registers before they go over to the next block; gradients of
 * shared weights add up rows one by one. */
static double allowance(const ag_op *op)
{
    const bool product = op == &ag_op_matmul || op == &ag_op_linear ||
                         op == &ag_op_multiplicative || op == &ag_op_module_conv ||
                         op == &ag_op_module_linear || op == &ag_op_live_ff ||
                         op == &ag_op_choose || op == &ag_op_lsh_attend;
    return product ? 24 : is_sum_of_products(op) ? 4 : 8;
}

static void compare(const op_case *c, const char *name, int i, int64_t n, const double *got,
                    const double *want, const double *scale, const op_format *f)
{
    const double floor = scale ? 0 : fmax(largest(n, want), least_scale(c, i));
    double square = 0, error = 0;
    char text[512];
    for (int64_t j = 0; j < n; j++) {
        const double e = got[j] - want[j], s = scale ? scale[j] : floor;
        if (!(fabs(e) <= allowance(c->op) * f->u * s + f->u * fabs(want[j]) + f->tiny))
            fail_msg("%s: %s: %s %d, element %lld of %lld: %.9g, wanted %.9g, off by %.3g u S",
                     name, case_text(c, 0, text), i < 2 ? "output" : "gradient", i < 2 ? i : i - 2,
                     (long long)j, (long long)n, got[j], want[j], fabs(e) / (f->u * s));
        error += e * e;
        square += scale ? s * s : fmax(want[j] * want[j], cancels(c->op) ? s * s : 0);
    }
    const int64_t few = f->dtype == AG_F32 ? 4 : 64;
    if (n > few && !(error <= f->nmse * square + (double)n * f->tiny * f->tiny + 1e-30))
        fail_msg("%s: %s: %s %d: mean square error %.3g of the mean square", name,
                 case_text(c, 0, text), i < 2 ? "output" : "gradient", i < 2 ? i : i - 2,
                 error / square);
}

void op_compare(const op_case *c, const char *name, const op_result *got, const op_result *want,
                const op_result *scale, const op_format *f)
{
    for (int i = 0; i < 2 + AG_MAX_IN; i++) {
        assert_true(!got->v[i] == !want->v[i] && got->size[i] == want->size[i]);
        if (!want->v[i]) continue;
        if (i < 2 && c->op->integer_out >> i & 1)
            assert_memory_equal(got->v[i], want->v[i], (size_t)want->size[i] * sizeof(double));
        else
            compare(c, name, i, want->size[i], got->v[i], want->v[i], scale->v[i], f);
    }
}

op_result op_scale(ag_tape *ref, const op_case *c)
{
    return is_sum_of_products(c->op) && c->op->backward ? absolute(ref, c) : (op_result){ 0 };
}
