/*
 * test_sru.c -- simple recurrent units: the scan against its formulas step by step, the layer and a
 * whole model against differences, decoding against all positions at once, sizes of the released
 * code, what does not fit.
 */
#include "tests/layer_check.h"

#include "autograd/op.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { B = 2, T = 9, D = 6, N = 5 };

/* --- the scan --------------------------------------------------------------------------------- */

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static void the_scan_is_its_formulas(void **state)
{
    (void)state;
    ag_tape *t = tape_new();
    ag_tensor *z = input(t, AG_SHAPE(B, T, 3 * N), 1, false);
    ag_tensor *x = input(t, AG_SHAPE(B, T, N), 2, false);
    const ag_tensor *h = ag_sru(t, z, x);
    tape_ok(t);
    for (int b = 0; b < B; b++)
        for (int j = 0; j < N; j++) {
            double c = 0;
            for (int i = 0; i < T; i++) {
                const double *zi = (double *)z->data + (b * T + i) * 3 * N + j;
                const double r = sigmoid(zi[0]), f = sigmoid(zi[N]);
                const int at = (b * T + i) * N + j;
                c = f * c + (1 - f) * zi[2 * N];
                const double want = r * c + (1 - r) * sqrt(3) * ((double *)x->data)[at];
                assert_true(fabs(((double *)h->data)[at] - want) < 1e-14);
            }
        }
    ag_tape_free(t);
}

/* h before a position does not hear of it, to the bit. */
static void the_scan_is_causal(void **state)
{
    (void)state;
    const ag_kernels *k[8];
    const int n = ag_kernels_all(AG_F32, k, 8);
    float z[T * 3 * N], x[T * N], before[T * N];
    for (int e = 0; e < T * 3 * N; e++) z[e] = (float)draw(3, e, -2, 2);
    for (int e = 0; e < T * N; e++) x[e] = (float)draw(4, e, -2, 2);
    for (int i = 0; i < n; i++)
        for (int at = -1; at < T; at++) {
            ag_tape *t = ag_tape_new(k[i]);
            const float z_was = at < 0 ? 0 : z[at * 3 * N + 2 * N];
            if (at >= 0) z[at * 3 * N + 2 * N] += 1;
            const ag_tensor *h = ag_sru(t, ag_input(t, AG_SHAPE(1, T, 3 * N), z, false),
                                        ag_input(t, AG_SHAPE(1, T, N), x, false));
            tape_ok(t);
            if (at < 0) memcpy(before, h->data, sizeof before);
            else assert_memory_equal(before, h->data, (size_t)(at * N) * sizeof *before);
            if (at >= 0) assert_true(((float *)h->data)[at * N] != before[at * N]);
            if (at >= 0) z[at * 3 * N + 2 * N] = z_was;
            ag_tape_free(t);
        }
}

/* --- the layer -------------------------------------------------------------------------------- */

static ag_tensor *layer_forward(const void *l, ag_tape *t, ag_tensor *x)
{
    return nn_sru_forward(l, t, x, x, NULL, 0);
}

static void layer_gradients(void **state)
{
    (void)state;
    for (int layers = 1; layers <= 2; layers++) {
        nn_params *p = nn_params_new(AG_F64);
        nn_sru l;
        nn_sru_build(&l, p, "sru", &(nn_sru_config){ D, layers, N, layers == 2, 1e-5 });
        params_ready(p);
        check_subject(&(subject){ p, &l, layer_forward, AG_SHAPE(B, T, D), 0 });
        nn_params_free(p);
    }
}

static nn_gpt_config gpt(int64_t layers)
{
    return (nn_gpt_config){ .vocab = 7, .context = T, .n_layers = 2, .n_heads = 2, .d_model = D,
                            .tied = true, .init_std = 0.3, .norm_eps = 1e-5,
                            .ff = { .d_ff = 8, .act = AG_ACT_GELU_ERF },
                            .sru = { .layers = layers, .units = N } };
}

static nn_model *gpt_new(const nn_gpt_config *c)
{
    nn_model *m = NULL;
    ag_err err = { 0 };
    if (nn_gpt_new(c, AG_F64, SEED, &m, &err)) fail_msg("%s", err.msg);
    params_shake(m->params);
    return m;
}

static ag_tensor *model_logits(const void *m, ag_tape *t, ag_tensor *x)
{
    return nn_model_logits(m, t, x, NN_TRAIN);
}

static void model_gradients(void **state)
{
    (void)state;
    const nn_gpt_config c = gpt(2);
    nn_model *m = gpt_new(&c);
    check_subject(&(subject){ m->params, m, model_logits, AG_SHAPE(1, T), 7 });
    nn_model_free(m);
}

/* --- decoding --------------------------------------------------------------------------------- */

/* Twice: the second text does not hear of the first. */
static void decoding_is_the_whole(void **state)
{
    (void)state;
    static const int64_t parts[] = { 4, 1, 1, 3 };
    const nn_gpt_config c = gpt(3);
    nn_model *m = gpt_new(&c);
    ag_kv_cache *cache = NULL;
    assert_int_equal(nn_model_cache(m, B, &cache, NULL), AG_OK);
    ag_tape *t = tape_new();
    ag_tape_no_grad(t, true);
    for (uint32_t text = 0; text < 2; text++) {
        int32_t all[B * T], some[B * T];
        for (int i = 0; i < B * T; i++) all[i] = (int32_t)draw(20 + text, i, 0, 7);
        const ag_tensor *whole =
            nn_model_logits(m, t, ag_input_i32(t, AG_SHAPE(B, T), all), NN_EVAL);
        ag_kv_cache_reset(cache, 0);
        for (int64_t i = 0, at = 0; i < 4; at += parts[i++]) {
            const int64_t n = parts[i];
            for (int64_t e = 0; e < B * n; e++) some[e] = all[e / n * T + at + e % n];
            const ag_tensor *y =
                nn_model_decode(m, t, ag_input_i32(t, AG_SHAPE(B, n), some), cache);
            tape_ok(t);
            for (int64_t e = 0; e < y->size; e++) {
                const int64_t row = e / 7 / n * T + at + e / 7 % n;
                const double want = ((double *)whole->data)[row * 7 + e % 7];
                assert_true(fabs(((double *)y->data)[e] - want) < 1e-12);
            }
        }
    }
    ag_kv_cache_free(cache);
    ag_tape_free(t);
    nn_model_free(m);
}

/* A step that fails leaves the state as it was; no positions leave it too. */
static void a_failed_step_leaves_no_trace(void **state)
{
    (void)state;
    ag_tape *t = tape_new();
    ag_kv_cache *cache = ag_kv_cache_new(NULL, AG_F64, 1, 1, T, 1, 1);
    assert_non_null(cache);
    assert_int_equal(ag_kv_cache_keep_state(cache, 1, N), AG_OK);
    ag_tape_no_grad(t, true);
    double z[3 * 3 * N], x[3 * N];
    for (int e = 0; e < 9 * N; e++) z[e] = draw(5, e, -1, 1);
    for (int e = 0; e < 3 * N; e++) x[e] = draw(6, e, -1, 1);
    const ag_tensor *whole = ag_sru(t, ag_input_f64(t, AG_SHAPE(1, 3, 3 * N), z, false),
                                    ag_input_f64(t, AG_SHAPE(1, 3, N), x, false));
    const int64_t from[] = { 0, 1, 1, 1, 2 }, n[] = { 1, 1, 1, 0, 1 };   /* 1 once in vain */
    for (int i = 0; i < 5; i++) {
        const ag_tensor *h =
            ag_sru_cached(t, ag_input_f64(t, AG_SHAPE(1, n[i], 3 * N), z + from[i] * 3 * N, false),
                          ag_input_f64(t, AG_SHAPE(1, n[i], N), x + from[i] * N, false), cache, 0,
                          0);
        tape_ok(t);
        assert_memory_equal(h->data, (double *)whole->data + from[i] * N,
                            (size_t)(n[i] * N) * sizeof(double));
        if (i != 1) ag_kv_cache_advance(cache, n[i]);
    }
    ag_kv_cache_free(cache);
    ag_tape_free(t);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    ag_tape *t = tape_new();
    ag_kv_cache *cache = ag_kv_cache_new(NULL, AG_F64, 2, B, T, 1, 1);
    ag_kv_cache *single = ag_kv_cache_new(NULL, AG_F32, 2, B, T, 1, 1);
    ag_kv_cache *empty = ag_kv_cache_new(NULL, AG_F64, 2, B, T, 1, 1);
    assert_true(cache && single && empty);
    assert_int_equal(ag_kv_cache_keep_state(cache, 1, N), AG_OK);
    assert_int_equal(ag_kv_cache_keep_state(single, 1, N), AG_OK);
    assert_int_equal(ag_kv_cache_keep_state(empty, 0, N), AG_OK);
    const struct { ag_kv_cache *cache; int64_t b, n; int layer, slot; } bad[] = {
        { empty, B, N, 0, 0 }, { single, B, N, 0, 0 }, { cache, B + 1, N, 0, 0 },
        { cache, B, N + 1, 0, 0 }, { cache, B, N, 2, 0 }, { cache, B, N, -1, 0 },
        { cache, B, N, 0, 1 }, { cache, B, N, 0, -1 },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ag_sru_cached(t, input(t, AG_SHAPE(bad[i].b, 1, 3 * bad[i].n), 1, false),
                      input(t, AG_SHAPE(bad[i].b, 1, bad[i].n), 2, false), bad[i].cache,
                      bad[i].layer, bad[i].slot);
        assert_int_equal(ag_error(t), AG_ESHAPE);
        assert_non_null(strstr(ag_error_message(t), "sru_cached: the cache keeps states of"));
        ag_tape_reset(t);
    }
    ag_kv_cache_free(cache);
    ag_kv_cache_free(single);
    ag_kv_cache_free(empty);
    ag_tape_free(t);

    static const int64_t layers[] = { 0, NN_SRU_LAYERS + 1 };
    for (int i = 0; i < 2; i++) {
        const nn_gpt_config c = gpt(layers[i]);
        ag_err err = { 0 };
        assert_int_equal(nn_gpt_check(&c, &err), AG_ECONFIG);
        assert_non_null(strstr(err.msg, "ff.sru_layers"));
    }
}

/* 1,024 features and 32 units have 71,808 weights more in a block, those of the norm too. */
static void known_size(void **state)
{
    (void)state;
    nn_gpt_config c = { .vocab = 65, .context = 32, .n_layers = 3, .n_heads = 4, .d_model = 1024,
                        .bias = true, .norm_eps = 1e-5,
                        .ff = { .d_ff = 4096, .bias_in = true, .bias_out = true } };
    nn_cost without, with;
    assert_int_equal(nn_gpt_cost(&c, &without, NULL), AG_OK);
    c.sru = (nn_sru_config){ .layers = 1, .units = 32 };
    assert_int_equal(nn_gpt_cost(&c, &with, NULL), AG_OK);
    assert_int_equal(with.params - without.params, 3 * 71808);
    assert_int_equal(with.touched - without.touched, 3 * 71808);
    assert_true(fabs(with.flops - without.flops - 2.0 * 3 * (2 * 1024 * 32 + 32 * 96)) < 0.5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_scan_is_its_formulas),
        cmocka_unit_test(the_scan_is_causal),
        cmocka_unit_test(layer_gradients),
        cmocka_unit_test(model_gradients),
        cmocka_unit_test(decoding_is_the_whole),
        cmocka_unit_test(a_failed_step_leaves_no_trace),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(known_size),
    };
    return cmocka_run_group_tests_name("sru", tests, NULL, NULL);
}
