/*
 * test_inverse.c -- how far rebuilt streams are from the true ones: additive coupling with layer
 * norm, a linear layer to 4 times the width, GELU, and one back, whose output is multiplied by a
 * gain.  The error of 32-bit streams may grow with depth and the square of the gain, no more; fixed
 * point has none.
 */
#include "check.h"
#include "autograd/segment.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 32, D = 64, INNER = 4 * D, SIZE = ROWS * D, DEEP = 256 };

typedef struct layer { ag_tensor *in, *out; } layer;

static ag_tensor *branch(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    const layer *l = arg;
    ag_tensor *h = ag_linear(t, ag_layernorm(t, x[0], NULL, NULL, 1e-5), l->in, NULL,
                             AG_ACT_GELU_ERF, NULL);
    return ag_linear(t, h, l->out, NULL, AG_ACT_NONE, NULL);
}

/* Uniform of the variance 1 / columns, times gain. */
static ag_tensor *weight(ag_tape *t, int64_t rows, int64_t columns, double gain, uint64_t seed)
{
    const double size = gain * sqrt(3.0 / (double)columns);
    double *v = uniform_new(rows * columns, -size, size, seed);
    ag_tensor *w = ag_input_f64(t, AG_SHAPE(rows, columns), v, true);
    free(v);
    w->grad = calloc((size_t)(rows * columns), sizeof(double));
    w->grad_written = true;
    return w;
}

typedef struct result {
    ag_inverse inverse;
    double dx[2 * SIZE];
    double error;                    /* |rebuilt - true| over |true|, as vectors; fixed point: 0 */
} result;

/* Numbers are rebuilt over those of the outputs, whose roles change with each swap. */
static double error_of(ag_tensor *const x[2], ag_tensor *const y[2], int layers)
{
    double d = 0, s = 0;
    for (int i = 0; i < 2 * SIZE; i++) {
        const double want = real_at(x[i / SIZE]->data, x[0]->dtype, i % SIZE);
        const double e =
            real_at(y[(i / SIZE + layers) % 2]->data, x[0]->dtype, i % SIZE) - want;
        d += e * e;
        s += want * want;
    }
    return sqrt(d / s);
}

static void run(const ag_kernels *k, int layers, double gain, int point, bool stored, result *ret)
{
    static layer l[DEEP];
    ag_half half[DEEP];
    ag_tape *t = tape_new(k);
    ag_tape_verify(t, true);
    ag_tensor *x[2], *a, *b;
    for (int i = 0; i < 2; i++) {
        double *v = uniform_new(SIZE, -sqrt(3), sqrt(3), (uint64_t)(3 + i));
        x[i] = ag_input_f64(t, AG_SHAPE(ROWS, D), v, true);
        free(v);
    }
    for (int i = 0; i < layers; i++) {
        l[i] = (layer){ weight(t, INNER, D, 1, (uint64_t)(10 + 2 * i)),
                        weight(t, D, INNER, gain, (uint64_t)(11 + 2 * i)) };
        half[i] = (ag_half){ branch, &l[i], true };
    }
    a = x[0], b = x[1];
    if (!stored) a = ag_reversible(t, half, layers, point, a, b, &b);
    for (int i = 0; stored && i < layers; i++) {
        ag_tensor *sum = ag_add(t, a, branch(&l[i], t, &b));
        a = b;
        b = sum;
    }
    assert_int_equal(ag_backward(t, ag_sum(t, ag_mul(t, a, ag_tanh(t, b))), 1), AG_OK);
    ret->inverse = ag_tape_inverse(t);
    ret->error = stored || point ? 0 : error_of(x, (ag_tensor *[]){ a, b }, layers);
    for (int i = 0; i < 2 * SIZE; i++)
        ret->dx[i] = real_at(x[i / SIZE]->grad, x[0]->dtype, i % SIZE);
    for (int i = 0; i < layers; i++) free(l[i].in->grad), free(l[i].out->grad);
    ag_tape_free(t);
}

/* |a - b| over |b|, as vectors */
static double apart(const result *a, const result *b)
{
    double d = 0, s = 0;
    for (int i = 0; i < 2 * SIZE; i++) {
        d += (a->dx[i] - b->dx[i]) * (a->dx[i] - b->dx[i]);
        s += b->dx[i] * b->dx[i];
    }
    return sqrt(d / s);
}

static const ag_kernels *best(void) { return ag_kernels_best(AG_F32, &(const char *){ NULL }); }

static void rounding_is_bounded(void **state)
{
    (void)state;
    static result rebuilt, stored;
    for (int gain = 1; gain <= 3; gain += 2)
        for (int layers = 1; layers <= 64; layers *= 4) {
            const double goal = 2e-7 * layers * gain * gain;
            run(best(), layers, gain, 0, false, &rebuilt);
            run(best(), layers, gain, 0, true, &stored);
            print_message("gain %d, %2d layers: rebuilt up to %.1e, at most %.1e of %.1f, "
                          "gradients %.1e\n", gain, layers, rebuilt.error, rebuilt.inverse.error,
                          rebuilt.inverse.scale, apart(&rebuilt, &stored));
            assert_true(rebuilt.error <= fmin(goal, 1e-4));
            assert_true(apart(&rebuilt, &stored) <= 2e-5);
        }
}

/* Against streams that round the same way but keep everything there is no difference but that of
 * rounding streams; inversion is exact. */
static void fixed_point_is_exact(void **state)
{
    (void)state;
    static result fixed, stored;
    for (int gain = 1; gain <= 3; gain += 2) {
        run(best(), DEEP, gain, 20, false, &fixed);
        print_message("gain %d, %d layers: headroom %.1f\n", gain, DEEP, fixed.inverse.headroom);
        assert_true(fixed.inverse.error == 0);
        assert_true(fixed.inverse.headroom > 2);
        run(ag_kernels_ref(AG_F64), 16, gain, 26, false, &fixed);
        run(ag_kernels_ref(AG_F64), 16, gain, 0, true, &stored);
        assert_true(fixed.inverse.error == 0);
        assert_true(apart(&fixed, &stored) <= 1e-6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rounding_is_bounded),
        cmocka_unit_test(fixed_point_is_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
