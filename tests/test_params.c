/*
 * test_params.c -- the parameter store and the values that parameters start with.
 */
#include "layers/params.h"

#include "autograd/autograd.h"
#include "autograd/base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#ifdef _OPENMP
#include <omp.h>
#else
static void omp_set_num_threads(int n) { (void)n; }
static int  omp_get_num_procs(void) { return 1; }
#endif

static void store_lays_out(void **state)
{
    (void)state;
    nn_params *p = nn_params_new(AG_F32);
    const size_t top = nn_push(p, "blocks/%d", 3);
    const size_t at = nn_push(p, "ff");
    ag_tensor *w = nn_param(p, "weight", AG_SHAPE(5, 7), nn_uniform(0.5));
    nn_pop(p, at);
    ag_tensor *g = nn_param(p, "gain", AG_SHAPE(3), nn_constant(1));
    nn_pop(p, top);
    ag_tensor *v = nn_param(p, "v", AG_SHAPE(16), nn_normal(2));
    assert_int_equal(nn_params_alloc(p, 1, NULL), AG_OK);
    assert_int_equal(nn_params_grads(p, NULL), AG_OK);

    assert_string_equal(w->name, "blocks/3/ff/weight");
    assert_string_equal(g->name, "blocks/3/gain");
    assert_ptr_equal(nn_params_find(p, "v")->tensor, v);
    assert_null(nn_params_find(p, "gain"));
    assert_true(p->n_used == 35 + 3 + 16 && p->n == 48 + 16 + 16);
    assert_true(p->items[0].decay && !p->items[1].decay && !p->items[2].decay);
    const float *flat = p->weights;
    for (int i = 0; i < p->n_items; i++) {
        const nn_item *item = &p->items[i];
        assert_true((uintptr_t)item->tensor->data % 64 == 0 &&
                    (uintptr_t)item->tensor->grad % 64 == 0);
        assert_ptr_equal(item->tensor->data, flat + item->offset);
        assert_true(item->tensor->needs_grad && item->tensor->grad_written &&
                    item->tensor->grad_kept);
    }
    for (int64_t i = 0; i < p->n; i++) {
        const bool used = i < 35 || (i >= 48 && i < 51) || i >= 64;
        assert_true(used == (flat[i] != 0));
        assert_true(((float *)p->grads)[i] == 0);
        ((float *)p->grads)[i] = 1;
    }
    nn_params_zero_grad(p);
    for (int64_t i = 0; i < p->n; i++) assert_true(((float *)p->grads)[i] == 0);
    nn_params_free(p);
}

/* Without gradients parameters are constants, and a model of nothing else has no backward. */
static void gradients_where_asked(void **state)
{
    (void)state;
    ag_err err = { 0 };
    nn_params *p = nn_params_new(AG_F32);
    ag_tensor *w = nn_param(p, "w", AG_SHAPE(5, 7), nn_uniform(0.5));
    assert_int_equal(nn_params_alloc(p, 1, NULL), AG_OK);
    assert_true(!p->grads && !w->grad && !w->needs_grad);

    ag_tape *t = ag_tape_new(ag_kernels_ref(AG_F32));
    ag_tensor *y = ag_sum(t, ag_mul(t, w, w));
    assert_int_equal(ag_tape_calls(t), 0);
    assert_int_equal(ag_backward(t, y, 1), AG_EGRAD);
    assert_null(w->grad);
    assert_int_equal(ag_tape_status(t, &err), AG_EGRAD);
    assert_non_null(strstr(err.msg, "nor a parameter that has memory for one"));
    ag_tape_reset(t);

    ag_tensor *x = ag_input(t, w->shape, w->data, true);     /* by a leaf, through constants */
    assert_int_equal(ag_backward(t, ag_sum(t, ag_mul(t, x, w)), 1), AG_OK);
    assert_memory_equal(x->grad, w->data, 35 * sizeof(float));
    ag_tape_reset(t);

    assert_int_equal(nn_params_grads(p, &err), AG_OK);
    float *grads = p->grads;
    for (int turn = 0; turn < 2; turn++) {
        assert_int_equal(ag_backward(t, ag_sum(t, ag_mul(t, w, w)), 1), AG_OK);
        ag_tape_reset(t);
    }
    assert_int_equal(nn_params_grads(p, &err), AG_OK);       /* they stay */
    assert_ptr_equal(p->grads, grads);
    for (int i = 0; i < 35; i++) assert_true(grads[i] == 4 * ((float *)w->data)[i]);
    ag_tape_free(t);
    nn_params_free(p);
}

static void store_keeps_the_first_error(void **state)
{
    (void)state;
    ag_err err = { 0 };
    nn_params *p = nn_params_new(AG_F32);
    nn_param(p, "a", AG_SHAPE(2), nn_constant(0));
    assert_null(nn_param(p, "a", AG_SHAPE(3), nn_constant(0)));
    assert_null(nn_param(p, "b", AG_SHAPE(3, -1), nn_constant(0)));
    assert_int_equal(nn_params_alloc(p, 1, &err), AG_EFAIL);
    assert_string_equal(err.msg, "two parameters are named a");
    nn_params_free(p);

    err.code = 0;
    p = nn_params_new(AG_F32);
    nn_param(p, "huge", AG_SHAPE((int64_t)1 << 40, (int64_t)1 << 40), nn_constant(0));
    assert_int_equal(nn_params_alloc(p, 1, &err), AG_ESHAPE);
    nn_params_free(p);
}

/* Mean 0 and the standard deviation asked for, within 5 sigma; no threads in the numbers; a seed is
 * a seed. */
static void initial_values(void **state)
{
    (void)state;
    enum { N = 40000, M = 5 };
    static float first[2 * N * M];
    for (int k = 0; k < 4; k++) {
        omp_set_num_threads(1 + 2 * k);
        nn_params *p = nn_params_new(AG_F32);
        ag_tensor *x = nn_param(p, "x", AG_SHAPE(N, M), nn_normal(0.02));
        ag_tensor *u = nn_param(p, "u", AG_SHAPE(N, M), nn_glorot(N, M, 2));
        assert_int_equal(nn_params_alloc(p, k == 3 ? 8 : 7, NULL), AG_OK);
        const size_t bytes = N * M * sizeof(float);
        if (k == 0) memcpy(first, x->data, bytes), memcpy(first + N * M, u->data, bytes);
        assert_int_equal(memcmp(first, x->data, bytes) == 0, k < 3);
        assert_int_equal(memcmp(first + N * M, u->data, bytes) == 0, k < 3);
        const double limit = 2 * sqrt(6.0 / (N + M));
        double s1 = 0, s2 = 0, s3 = 0, most = 0;
        for (int i = 0; i < N * M; i++) {
            const double v = (double)((float *)x->data)[i] / 0.02,
                         w = (double)((float *)u->data)[i] / limit;
            s1 += v, s2 += v * v, s3 += w;
            most = fmax(most, fabs(w));
        }
        const double n = N * M;
        assert_true(fabs(s1) < 5 * sqrt(n) && fabs(s2 - n) < 5 * sqrt(2 * n) &&
                    fabs(s3) < 5 * sqrt(n / 3));
        assert_true(most <= 1 && most > 0.999);
        nn_params_free(p);
    }
    omp_set_num_threads(omp_get_num_procs());
}

/* The numbers are those of rng.h, up to the rounding of f32. */
static void normal_numbers(void **state)
{
    (void)state;
    enum { N = 1 << 16 };
    static float v[N];
    ag_tensor x = { .size = N, .dtype = AG_F32, .data = v };
    const nn_init init = nn_normal(1);
    nn_init_fill(&init, 5, 6, &x);
    for (int e = 0; e < N; e++) {
        const int pair = e & ~16;
        double want[2];
        ag_normal2(ag_noise_bits(5, 0, 6, (uint64_t)pair),
                   ag_noise_bits(5, 0, 6, (uint64_t)(pair + 16)), want);
        assert_true(fabs((double)v[e] - want[e != pair]) <= 2e-6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(store_lays_out), cmocka_unit_test(gradients_where_asked),
        cmocka_unit_test(store_keeps_the_first_error),
        cmocka_unit_test(initial_values), cmocka_unit_test(normal_numbers),
    };
    return cmocka_run_group_tests_name("params", tests, NULL, NULL);
}
