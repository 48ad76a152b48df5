#include "tests/layer_check.h"

#include "autograd/base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

double draw(uint32_t site, int64_t e, double lo, double hi)
{
    return lo + (hi - lo) * (double)ag_uniform(ag_noise_bits(SEED, 0, 0x1000 + site, (uint64_t)e));
}

ag_tape *tape_new(void)
{
    ag_tape *t = ag_tape_new(ag_kernels_ref(AG_F64));
    assert_non_null(t);
    return t;
}

void noise(ag_tape *t, uint32_t step, int64_t sample0, int64_t n_samples)
{
    const ag_noise_key key = { SEED, step, sample0, n_samples };
    ag_tape_noise(t, &key);
}

void tape_ok(const ag_tape *t)
{
    if (ag_error(t)) fail_msg("%s", ag_error_message(t));
}

ag_tensor *input(ag_tape *t, ag_shape shape, uint32_t site, bool needs_grad)
{
    double x[MAX_SIZE];
    const int64_t n = ag_shape_size(&shape);
    assert_true(n <= MAX_SIZE);
    for (int64_t i = 0; i < n; i++) x[i] = draw(site, i, -1, 1);
    return ag_input_f64(t, shape, x, needs_grad);
}

ag_tensor *integers(ag_tape *t, ag_shape shape, uint32_t site, int most)
{
    int32_t x[MAX_SIZE];
    const int64_t n = ag_shape_size(&shape);
    assert_true(n <= MAX_SIZE);
    for (int64_t i = 0; i < n; i++) x[i] = (int32_t)draw(site, i, 0, most);
    return ag_input_i32(t, shape, x);
}

void params_shake(nn_params *p)
{
    for (int i = 0; i < p->n_items; i++) {
        const nn_item *item = &p->items[i];
        for (int64_t j = 0; j < item->count; j++)
            ((double *)item->tensor->data)[j] += draw(200 + (uint32_t)i, j, -0.3, 0.3);
    }
}

void params_ready(nn_params *p)
{
    ag_err err = { 0 };
    if (nn_params_alloc(p, SEED, &err) || nn_params_grads(p, &err)) fail_msg("%s", err.msg);
    params_shake(p);
}

/* --- the gradient check ----------------------------------------------------------------------- */

double cotangent(int64_t i) { return draw(COTANGENT_SITE, i, -1, 1); }

/* <v, y> with x[at] + h */
static double probe(const subject *s, ag_tape *t, int64_t at, double h)
{
    ag_tape_reset(t);
    ag_tape_no_grad(t, true);
    ag_tensor *x =
        s->vocab ? integers(t, s->shape, X_SITE, s->vocab) : input(t, s->shape, X_SITE, false);
    if (at >= 0) ((double *)x->data)[at] += h;
    const ag_tensor *y = s->forward(s->layer, t, x);
    tape_ok(t);
    double sum = 0;
    for (int64_t i = 0; i < y->size; i++) sum += cotangent(i) * ((const double *)y->data)[i];
    ag_tape_no_grad(t, false);
    return sum;
}

/* Derivative by *w, or by x[at] where w is NULL, from four points; error O(h^4). */
static double stencil(const subject *s, ag_tape *t, double *w, int64_t at, double h)
{
    double f[4], keep = w ? *w : 0;
    for (int i = 0; i < 4; i++) {
        const double d = (i < 2 ? i - 2 : i - 1) * h;        /* -2h -h h 2h */
        if (w) *w = keep + d;
        f[i] = probe(s, t, w ? -1 : at, d);
    }
    if (w) *w = keep;
    return (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * h);
}

/* Whether got is the derivative.  *kinks counts the places where that needed a smaller h: a ReLU is
 * close. */
static void compare(const subject *s, ag_tape *t, double got, double *w, int64_t at,
                    const char *name, int *kinks)
{
    double want = 0;
    for (double h = 1e-3; h > 1e-5; h /= 8) {
        want = stencil(s, t, w, at, h);
        if (fabs(got - want) <= 1e-9 + 1e-7 * fabs(want)) return;
        ++*kinks;
    }
    fail_msg("%s: backward %.12g, differences %.12g", name, got, want);
}

void check_subject(const subject *s)
{
    ag_tape *t = tape_new(), *probes = tape_new();
    noise(t, 3, 0, s->shape.dim[0]);
    noise(probes, 3, 0, s->shape.dim[0]);
    assert_int_equal(nn_params_grads(s->params, NULL), AG_OK);
    nn_params_zero_grad(s->params);
    ag_tensor *x =
        s->vocab ? integers(t, s->shape, X_SITE, s->vocab) : input(t, s->shape, X_SITE, true);
    ag_tensor *y = s->forward(s->layer, t, x);
    double v[MAX_SIZE];
    assert_true(y->size <= MAX_SIZE);
    for (int64_t i = 0; i < y->size; i++) v[i] = cotangent(i);
    ag_backward_from(t, y, v);
    tape_ok(t);

    int kinks = 0;
    int64_t checked = 0;
    for (int i = 0; i < s->params->n_items; i++) {
        const nn_item *item = &s->params->items[i];
        double most = 0;
        for (int64_t j = 0; j < item->count; j++, checked++) {
            const double got = ((double *)item->tensor->grad)[j];
            most = fmax(most, fabs(got));
            compare(s, probes, got, (double *)item->tensor->data + j, 0, item->name, &kinks);
        }
        if (most < 1e-6) fail_msg("%s has no effect on the output", item->name);
    }
    for (int64_t j = 0; !s->vocab && j < x->size; j++, checked++)
        compare(s, probes, ((double *)x->grad)[j], NULL, j, "the input", &kinks);
    assert_true(checked > 0 && kinks <= checked / 10);
    ag_tape_free(t);
    ag_tape_free(probes);
}
