/*
 * test_unread.c -- what a token does not need is not read: weights of units that are not live, and
 * keys and values that a query does not see, may be NaN and change no bit.
 */
#include "check.h"

#include "layers/layers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_KERNELS = 8 };

/* `check` with the definition in f64 and with every table of f32 kernels. */
static void with_all_kernels(void (*check)(const ag_kernels *k))
{
    const ag_kernels *k[MOST_KERNELS];
    const int n = ag_kernels_all(AG_F32, k, MOST_KERNELS);
    assert_true(n >= 1);
    check(ag_kernels_ref(AG_F64));
    for (int i = 0; i < n; i++) check(k[i]);
}

static void put_nan(ag_tensor *x, int64_t from, int64_t n)
{
    for (int64_t i = from; i < from + n; i++)
        if (x->dtype == AG_F64) ((double *)x->data)[i] = NAN;
        else ((float *)x->data)[i] = NAN;
}

/* --- live units ------------------------------------------------------------------------------- */

enum { D = 20, D_FF = 48, N = 4, ROWS = 3 };

typedef struct layer {
    nn_params *params;
    nn_ff ff;
    int32_t choice[ROWS * D_FF / N];
    nn_ff_probe probe;
    int64_t used[D_FF];
} layer;

static void layer_new(layer *l, const nn_ff_config *c, const ag_kernels *k)
{
    ag_err err = { 0 };
    *l = (layer){ .params = nn_params_new(k->dtype) };
    nn_ff_build(&l->ff, l->params, "ff", D, c);
    if (nn_params_alloc(l->params, 5, &err) || nn_params_grads(l->params, &err))
        fail_msg("%s", err.msg);
    l->probe = (nn_ff_probe){ .used = l->used, .choice = l->choice, .cap = ROWS };
}

/* All weights of units that no row chose: rows of W1 and W2, elements of b1. */
static void spoil(layer *l)
{
    const int64_t w = l->ff.width;
    int64_t spoiled = 0;
    for (int64_t u = 0; u < D_FF; u++) {
        if (l->used[u / w]) continue;
        put_nan(l->ff.in.weight, u * D, D);
        put_nan(l->ff.out.weight, u * D, D);
        if (l->ff.in.bias) put_nan(l->ff.in.bias, u, 1);
        spoiled++;
    }
    assert_true(spoiled > 0);
}

static ag_tensor *features(ag_tape *t, int64_t n)
{
    double v[ROWS * D];
    uniform(v, n * D, -1, 1, 0, 7);
    return ag_input_f64(t, AG_SHAPE(n, D), v, true);
}

static void check_decoding(const nn_ff_config *c, const ag_kernels *k)
{
    layer l;
    layer_new(&l, c, k);
    ag_tape *t = tape_new(k);
    ag_tape_no_grad(t, true);
    l.ff.probe = &l.probe;
    const ag_tensor *before = nn_ff_forward(&l.ff, t, features(t, 1), NULL, NN_EVAL);
    spoil(&l);
    l.ff.probe = NULL;
    const ag_tensor *after = nn_ff_forward(&l.ff, t, features(t, 1), NULL, NN_EVAL);
    assert_int_equal(ag_error(t), AG_OK);
    assert_memory_equal(before->data, after->data, D * ag_dtype_size(k->dtype));
    ag_tape_free(t);
    nn_params_free(l.params);
}

/* y and all gradients of a hard step, [(2 ROWS D) + parameters]; free() it. */
static char *step(const layer *l, const ag_kernels *k)
{
    const size_t size = ag_dtype_size(k->dtype), rows = ROWS * D * size,
                 params = (size_t)l->params->n * size;
    double v[ROWS * D];
    ag_tape *t = tape_new(k);
    nn_params_zero_grad(l->params);
    ag_tensor *x = features(t, ROWS), *y = nn_ff_forward(&l->ff, t, x, NULL, NN_TRAIN);
    uniform(v, ROWS * D, -1, 1, 0, 8);
    ag_backward_from(t, y, v);
    assert_int_equal(ag_error(t), AG_OK);
    char *all = malloc(2 * rows + params);
    assert_non_null(all);
    memcpy(all, y->data, rows);
    memcpy(all + rows, x->grad, rows);
    memcpy(all + 2 * rows, l->params->grads, params);
    ag_tape_free(t);
    return all;
}

static void check_training(const nn_ff_config *c, const ag_kernels *k)
{
    layer l;
    layer_new(&l, c, k);
    ag_tape *t = tape_new(k);
    l.ff.probe = &l.probe;
    nn_ff_forward(&l.ff, t, features(t, ROWS), NULL, NN_EVAL);
    assert_int_equal(ag_error(t), AG_OK);
    l.ff.probe = NULL;
    ag_tape_free(t);
    char *before = step(&l, k);
    spoil(&l);
    char *after = step(&l, k);
    assert_memory_equal(before, after,
                        (2 * ROWS * D + (size_t)l.params->n) * ag_dtype_size(k->dtype));
    free(before);
    free(after);
    nn_params_free(l.params);
}

static const nn_ff_config SPARSE = { .kind = NN_FF_SPARSE, .d_ff = D_FF, .bias_in = true,
                                     .bias_out = true, .block = N, .d_lowrank = 3, .quant_prob = 1,
                                     .controller_bias = true };

static void decoding(const ag_kernels *k)
{
    for (int i = 0; i < 16; i++) {
        nn_ff_config c = SPARSE;
        c.mask_order = i & 1 ? NN_MASK_AFTER_RELU : NN_MASK_BEFORE_RELU;
        c.scaled = i & 2;
        c.kind = (nn_ff_kind[]){ NN_FF_SPARSE, NN_FF_SPARSE, NN_FF_BLOCK, NN_FF_SWITCH }[i / 4];
        if (i / 4 == 1) c.block = D_FF / 3;
        check_decoding(&c, k);
    }
}

static void a_token_reads_live_units_alone(void **state)
{
    (void)state;
    with_all_kernels(decoding);
}

static void training(const ag_kernels *k)
{
    for (int scaled = 0; scaled < 2; scaled++) {
        nn_ff_config c = SPARSE;
        c.block = D_FF / 3;              /* three rows leave most of 16 units alone */
        c.mask_order = NN_MASK_BEFORE_RELU;
        c.scaled = scaled;
        check_training(&c, k);
        c.block = 8;
        c.kind = NN_FF_SWITCH;
        check_training(&c, k);
    }
}

/* Mask before the ReLU, and a switch: forward and backward, all gradients. */
static void a_hard_step_reads_live_units_alone(void **state)
{
    (void)state;
    with_all_kernels(training);
}

/* --- keys of a pattern ------------------------------------------------------------------------ */

enum { LENGTH = 90, HEADS = 4, D_QK = 5, D_V = 9, WQ = HEADS * D_QK, WV = HEADS * D_V,
       WIDTH = 2 * WQ + WV };

/* Query i over a cache of what is before it; of keys that it does not see, k and v are NaN where
 * `spoiled`. */
static const void *query(ag_tape *t, const ag_attention_options *o, const double *qkv, int64_t i,
                         bool spoiled)
{
    double *seen = malloc((size_t)(i + 1) * WIDTH * sizeof *seen);
    assert_non_null(seen);
    memcpy(seen, qkv, (size_t)(i + 1) * WIDTH * sizeof *seen);
    for (int64_t j = 0; spoiled && j < i; j++)
        for (int h = 0; h < HEADS; h++) {
            if (ag_pattern_has(o->pattern, h, i, j)) continue;
            for (int f = 0; f < D_QK; f++) seen[j * WIDTH + WQ + h * D_QK + f] = NAN;
            for (int f = 0; f < D_V; f++) seen[j * WIDTH + 2 * WQ + h * D_V + f] = NAN;
        }
    ag_kv_cache *cache =
        ag_kv_cache_new(NULL, ag_tape_kernels(t)->dtype, 1, 1, LENGTH, WQ, WV);
    assert_non_null(cache);
    if (i) {
        ag_tensor *before = ag_input_f64(t, AG_SHAPE(1, i, WIDTH), seen, false);
        ag_attend_cached(t, before, NULL, NULL, o, cache, 0);
    }
    ag_kv_cache_advance(cache, i);
    ag_tensor *last = ag_input_f64(t, AG_SHAPE(1, 1, WIDTH), seen + i * WIDTH, false);
    const ag_tensor *y = ag_attend_cached(t, last, NULL, NULL, o, cache, 0);
    if (ag_error(t)) fail_msg("%s", ag_error_message(t));
    ag_kv_cache_free(cache);
    free(seen);
    return y->data;
}

static void queries(const ag_kernels *k)
{
    static const char *const TEXTS[] = {
        "local(24)", "strided(24)", "local(24)+strided(24)", "fixed(24, 6)", "summary(24, 8)",
        "local(16)|strided(24)|chunk(16)+strided(24)|dense",
    };
    double *qkv = uniform_new(LENGTH * WIDTH, -1.5, 1.5, 9);
    for (size_t p = 0; p < sizeof TEXTS / sizeof TEXTS[0]; p++) {
        nn_patterns *made = NULL;
        ag_err err = { 0 };
        if (nn_patterns_new(&made, TEXTS[p], LENGTH, 1, HEADS, NULL, &err)) fail_msg("%s", err.msg);
        const ag_attention_options o = { .heads = HEADS, .d_qk = D_QK, .d_v = D_V, .causal = true,
                                         .pattern = made->made[0].keys };
        ag_tape *t = tape_new(k);
        ag_tape_no_grad(t, true);
        for (int64_t i = 0; i < LENGTH; i++) {
            const void *want = query(t, &o, qkv, i, false), *got = query(t, &o, qkv, i, true);
            if (memcmp(want, got, WV * ag_dtype_size(k->dtype)))
                fail_msg("%s, %s: position %d reads a key that it does not see", k->name, TEXTS[p],
                         (int)i);
            ag_tape_reset(t);
        }
        ag_tape_free(t);
        nn_patterns_free(made);
    }
    free(qkv);
}

static void a_token_reads_the_keys_of_its_pattern_alone(void **state)
{
    (void)state;
    with_all_kernels(queries);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_token_reads_live_units_alone),
        cmocka_unit_test(a_hard_step_reads_live_units_alone),
        cmocka_unit_test(a_token_reads_the_keys_of_its_pattern_alone),
    };
    return cmocka_run_group_tests_name("unread", tests, NULL, NULL);
}
