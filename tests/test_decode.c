/*
 * test_decode.c -- attention over a cache, position by position, is causal attention over all
 * positions at once.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 3, LAYERS = 2, LENGTH = 21, HEADS = 3, D_QK = 5, D_V = 9 };
enum { WIDTH = HEADS * (2 * D_QK + D_V) };

static const ag_attention_options options = {
    .heads = HEADS, .d_qk = D_QK, .d_v = D_V, .causal = true
};

static double number(int layer, int64_t b, int64_t pos, int64_t i, uint64_t seed)
{
    double v;
    uniform(&v, 1, -1.5, 1.5, 0, seed + (uint64_t)(((layer * BATCH + b) * 1000 + pos) * 1000 + i));
    return v;
}

/* qkv of positions from .. from + n - 1 of one layer, [BATCH,n,WIDTH] */
static ag_tensor *qkv(ag_tape *t, int layer, int64_t from, int64_t n, uint64_t seed)
{
    double *v = uniform_new(BATCH * n * WIDTH, 0, 0, 0);
    for (int64_t b = 0; b < BATCH; b++)
        for (int64_t p = 0; p < n; p++)
            for (int64_t i = 0; i < WIDTH; i++)
                v[(b * n + p) * WIDTH + i] = number(layer, b, from + p, i, seed);
    ag_tensor *x = ag_input_f64(t, AG_SHAPE(BATCH, n, WIDTH), v, false);
    free(v);
    return x;
}

/* Positions from .. from + n - 1 of y [BATCH,..,HEADS*D_V], which starts at position y0, against
 * those of whole. */
static void compare(const char *what, const ag_tensor *y, int64_t y0, const ag_tensor *whole,
                    int64_t from, int64_t n)
{
    const double tol = y->dtype == AG_F64 ? 1e-13 : 8 * 0x1p-24 * 2;  /* 8 roundings of v */
    const int64_t w = HEADS * D_V, ty = y->shape.dim[1], tw = whole->shape.dim[1];
    for (int64_t b = 0; b < BATCH; b++)
        for (int64_t p = from; p < from + n; p++)
            for (int64_t i = 0; i < w; i++) {
                const double got = real_at(y->data, y->dtype, (b * ty + p - y0) * w + i);
                const double want = real_at(whole->data, whole->dtype, (b * tw + p) * w + i);
                if (!(fabs(got - want) <= tol))
                    fail_msg("%s: sequence %d, position %d, element %d: %.9g, wanted %.9g", what,
                             (int)b, (int)p, (int)i, got, want);
            }
}

static void decode(ag_tape *t, const ag_kernels *k, ag_kv_cache *cache, int64_t from, int64_t n,
                   uint64_t seed, ag_tensor *const whole[LAYERS])
{
    for (int layer = 0; layer < LAYERS; layer++) {
        ag_tensor *y = ag_attend_cached(t, qkv(t, layer, from, n, seed), NULL, NULL, &options,
                                        cache, layer);
        if (ag_error(t)) fail_msg("%s: %s", k->name, ag_error_message(t));
        compare(k->name, y, from, whole[layer], from, n);
    }
    ag_kv_cache_advance(cache, n);
}

static void check_table(const ag_kernels *k)
{
    /* a prompt, single steps, a longer piece */
    static const int64_t parts[] = { 7, 1, 1, 4, 1, 1, 6 };
    ag_tape *t = tape_new(k);
    ag_kv_cache *cache =
        ag_kv_cache_new(NULL, k->dtype, LAYERS, BATCH, LENGTH, HEADS * D_QK, HEADS * D_V);
    assert_non_null(cache);
    ag_tensor *whole[LAYERS], *other[LAYERS];
    for (int i = 0; i < LAYERS; i++) whole[i] = ag_attend_qkv(t, qkv(t, i, 0, LENGTH, 1), &options);
    int64_t at = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        decode(t, k, cache, at, parts[i], 1, whole);
        at += parts[i];
        assert_int_equal(ag_kv_cache_length(cache), at);
    }
    assert_int_equal(at, LENGTH);

    /* back to nothing, and another text over the old one */
    for (int i = 0; i < LAYERS; i++) other[i] = ag_attend_qkv(t, qkv(t, i, 0, LENGTH, 2), &options);
    ag_kv_cache_reset(cache, 0);
    decode(t, k, cache, 0, 12, 2, other);
    /* back to position 5, and on: what was beyond it is gone */
    ag_kv_cache_reset(cache, 5);
    decode(t, k, cache, 5, 1, 2, other);
    decode(t, k, cache, 6, 15, 2, other);
    ag_kv_cache_free(cache);
    ag_tape_free(t);
}

static void cached_is_whole(void **state)
{
    (void)state;
    const ag_kernels *k[8];
    check_table(ag_kernels_ref(AG_F64));
    const int n = ag_kernels_all(AG_F32, k, 8);
    assert_true(n >= 1);
    for (int i = 0; i < n; i++) check_table(k[i]);
}

/* --- over a source ---------------------------------------------------------------------------- */

enum { SOURCE = 13 };

static ag_tensor *rows(ag_tape *t, int64_t n, int64_t width, uint64_t seed)
{
    double *v = uniform_new(BATCH * n * width, -1.5, 1.5, seed);
    ag_tensor *x = ag_input_f64(t, AG_SHAPE(BATCH, n, width), v, false);
    free(v);
    return x;
}

/* What is kept of the source in the first call serves the later ones, of any number of queries:
 * the same as all at once without a cache. */
static void check_source_table(const ag_kernels *k)
{
    static const int32_t lengths[] = { 5, 0, SOURCE };
    static const int64_t parts[] = { 4, 1, 1, 11, 4 };
    ag_tape *t = tape_new(k);
    ag_kv_cache *cache =
        ag_kv_cache_new(NULL, k->dtype, LAYERS, BATCH, LENGTH, HEADS * D_QK, HEADS * D_V);
    assert_non_null(cache);
    assert_int_equal(ag_kv_cache_source(cache, SOURCE), AG_OK);
    const ag_attention_options o = { .heads = HEADS, .d_qk = D_QK, .d_v = D_V,
                                     .lengths = ag_input_i32(t, AG_SHAPE(BATCH), lengths) };
    ag_tensor *keys[LAYERS], *values[LAYERS];
    for (int i = 0; i < LAYERS; i++) {
        keys[i] = rows(t, SOURCE, HEADS * D_QK, 10 + (uint64_t)i);
        values[i] = rows(t, SOURCE, HEADS * D_V, 20 + (uint64_t)i);
    }
    for (size_t part = 0; part < sizeof parts / sizeof *parts; part++)
        for (int i = 0; i < LAYERS; i++) {
            ag_tensor *q = rows(t, parts[part], HEADS * D_QK, 30 + part);
            ag_tensor *y = ag_attend_source(t, q, part ? NULL : keys[i], part ? NULL : values[i],
                                            &o, cache, i);
            ag_tensor *want = ag_attend(t, q, keys[i], values[i], &o);
            if (ag_error(t)) fail_msg("%s: %s", k->name, ag_error_message(t));
            compare(k->name, y, 0, want, 0, parts[part]);
            for (int64_t j = 0; j < parts[part] * HEADS * D_V; j++)  /* item 1 has no key */
                assert_true(real_at(y->data, y->dtype, parts[part] * HEADS * D_V + j) == 0);
        }
    ag_kv_cache_free(cache);
    ag_tape_free(t);
}

static void a_kept_source_is_the_source(void **state)
{
    (void)state;
    const ag_kernels *k[8];
    check_source_table(ag_kernels_ref(AG_F64));
    const int n = ag_kernels_all(AG_F32, k, 8);
    for (int i = 0; i < n; i++) check_source_table(k[i]);
}

static void a_source_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    ag_kv_cache *cache = ag_kv_cache_new(NULL, AG_F64, LAYERS, BATCH, 4, HEADS * D_QK, HEADS * D_V);
    ag_kv_cache *none = ag_kv_cache_new(NULL, AG_F64, LAYERS, BATCH, 4, HEADS * D_QK, HEADS * D_V);
    assert_true(cache && none);
    assert_int_equal(ag_kv_cache_source(cache, SOURCE), AG_OK);
    const struct { ag_kv_cache *cache; int64_t keys, wide; int layer, code; } bad[] = {
        { none, SOURCE, 0, 0, AG_ESHAPE }, { cache, SOURCE - 1, 0, 0, AG_ESHAPE },
        { cache, SOURCE, 0, LAYERS, AG_ESHAPE }, { cache, SOURCE, 1, 0, AG_ESHAPE },
        { cache, SOURCE, 0, 0, AG_OK },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const ag_attention_options o = {
            .heads = HEADS, .d_qk = D_QK, .d_v = D_V,
            .lengths = ag_input_i32(t, AG_SHAPE(BATCH), (const int32_t[BATCH]){ 0 }) };
        ag_attend_source(t, rows(t, 1, HEADS * D_QK + bad[i].wide, 1),
                         rows(t, bad[i].keys, HEADS * D_QK, 2),
                         rows(t, bad[i].keys, HEADS * D_V, 3), &o, bad[i].cache, bad[i].layer);
        assert_int_equal(ag_error(t), bad[i].code);
        if (bad[i].code) assert_non_null(strstr(ag_error_message(t), "attend_source: "));
        ag_tape_reset(t);
    }
    ag_kv_cache_free(cache);
    ag_kv_cache_free(none);
    ag_tape_free(t);
}

static void a_cache_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    enum { K = HEADS * D_QK, V = HEADS * D_V };
    ag_kv_cache *cache = ag_kv_cache_new(NULL, AG_F64, LAYERS, BATCH, 4, K, V);
    ag_kv_cache *single = ag_kv_cache_new(NULL, AG_F32, LAYERS, BATCH, 4, K, V);
    ag_kv_cache *narrow = ag_kv_cache_new(NULL, AG_F64, LAYERS, BATCH, 4, K, V - 1);
    ag_kv_cache *fewer = ag_kv_cache_new(NULL, AG_F64, LAYERS, BATCH - 1, 4, K, V);
    assert_true(cache && single && narrow && fewer);
    const struct { ag_kv_cache *cache; int64_t n; int layer, code; } bad[] = {
        { cache, 5, 0, AG_ERANGE }, { cache, 1, LAYERS, AG_ESHAPE }, { cache, 1, -1, AG_ESHAPE },
        { single, 1, 0, AG_ESHAPE }, { narrow, 1, 0, AG_ESHAPE }, { fewer, 1, 0, AG_ESHAPE },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ag_attend_cached(t, qkv(t, 0, 0, bad[i].n, 1), NULL, NULL, &options, bad[i].cache,
                         bad[i].layer);
        assert_int_equal(ag_error(t), bad[i].code);
        assert_non_null(strstr(ag_error_message(t), "attend_cached: "));
        ag_tape_reset(t);
    }
    ag_attend_cached(t, qkv(t, 0, 0, 4, 1), NULL, NULL, &options, cache, 0);
    assert_int_equal(ag_error(t), AG_OK);
    ag_kv_cache_free(cache);
    ag_kv_cache_free(single);
    ag_kv_cache_free(narrow);
    ag_kv_cache_free(fewer);
    ag_kv_cache_free(NULL);
    ag_tape_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cached_is_whole),
        cmocka_unit_test(a_kept_source_is_the_source),
        cmocka_unit_test(a_source_that_does_not_fit_is_refused),
        cmocka_unit_test(a_cache_that_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests_name("decode", tests, NULL, NULL);
}
