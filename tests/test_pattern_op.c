/*
 * test_pattern_op.c -- attention under patterns, through the tape: against PyTorch in float64
 * (golden/make_pattern.py), the fastest kernels against the definition at every length, over a
 * cache, and what must hold exactly.
 */
#include "check.h"

#include "layers/layers.h"

#include <math.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "golden/values_pattern.inc"

enum { B = 2, N = 23, HEADS = 4, D_QK = 2, D_V = 3 };
enum { WQ = HEADS * D_QK, WV = HEADS * D_V };

static nn_patterns *patterns(const char *text, int64_t n)
{
    nn_patterns *p = NULL;
    ag_err err = { 0 };
    if (nn_patterns_new(&p, text, n, 1, HEADS, NULL, &err)) fail_msg("'%s': %s", text, err.msg);
    assert_non_null(p->made[0].keys);
    return p;
}

static ag_attention_options options(const nn_patterns *p)
{
    return (ag_attention_options){ .heads = HEADS, .d_qk = D_QK, .d_v = D_V, .causal = true,
                                   .pattern = p->made[0].keys };
}

/* --- PyTorch ---------------------------------------------------------------------------------- */

/* Element e of tensor i, as in make_pattern.py: exact in f32. */
static double fill(uint32_t i, uint32_t e)
{
    uint32_t h = (i * 1000003u + e) * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    return ((double)(h >> 16) / 65536 - 0.5) * 4;
}

static ag_tensor *filled(ag_tape *t, uint32_t i, int64_t width)
{
    double v[B * N * WV];
    for (int64_t e = 0; e < B * N * width; e++) v[e] = fill(i, (uint32_t)e);
    return ag_input_f64(t, AG_SHAPE(B, N, width), v, true);
}

typedef struct golden {
    const char *name;
    const double *want[4];           /* y and the gradients of q, k, v: [B,N,HEADS], each a sum over
                                      * features times fill(5) */
} golden;

static const char *text_of(const char *name)
{
    static const char *const TEXTS[][2] = {
        { "local", "local(5)" }, { "strided", "strided(6)" }, { "merged", "local(7)+strided(7)" },
        { "by_head", "local(4) | strided(9)" }, { "fixed", "fixed(8, 2)" },
        { "fixed_same", "fixed(10, 3, 1)" }, { "summary", "summary(12, 4)" },
    };
    for (size_t i = 0; i < sizeof TEXTS / sizeof TEXTS[0]; i++)
        if (!strcmp(TEXTS[i][0], name)) return TEXTS[i][1];
    return NULL;
}

#define CASE(n) { #n, { n##_y, n##_dq, n##_dk, n##_dv } },
static const golden goldens[] = { GOLDEN(CASE) };

static void near(const golden *g, int which, const void *data, ag_dtype dtype, int64_t width,
                 double tol)
{
    static const char *const names[] = { "output", "gradient of q", "gradient of k",
                                         "gradient of v" };
    for (int64_t i = 0; i < B * N * HEADS; i++) {
        double got = 0;
        for (int64_t e = i * width; e < (i + 1) * width; e++)
            got += real_at(data, dtype, e) * fill(5, (uint32_t)e);
        const double want = g->want[which][i];
        if (!(fabs(got - want) <= tol * (1 + fabs(want))))
            fail_msg("%s: %s %d is %.12g, PyTorch has %.12g", g->name, names[which], (int)i, got,
                     want);
    }
}

static void check_golden(const golden *g, const ag_kernels *k, double tol)
{
    nn_patterns *p = patterns(text_of(g->name), N);
    const ag_attention_options o = options(p);
    ag_tape *t = tape_new(k);
    ag_tensor *x[3] = { filled(t, 1, WQ), filled(t, 2, WQ), filled(t, 3, WV) };
    ag_tensor *y = ag_attend(t, x[0], x[1], x[2], &o);
    ag_backward_from(t, y, filled(t, 4, WV)->data);
    if (ag_error(t)) fail_msg("%s", ag_error_message(t));
    near(g, 0, y->data, k->dtype, D_V, tol);
    for (int i = 0; i < 3; i++) near(g, i + 1, x[i]->grad, k->dtype, i < 2 ? D_QK : D_V, 4 * tol);
    ag_tape_free(t);
    nn_patterns_free(p);
}

static void agrees_with_pytorch(void **state)
{
    (void)state;
    const ag_kernels *k[8];
    const int n = ag_kernels_all(AG_F32, k, 8);
    for (size_t c = 0; c < sizeof goldens / sizeof goldens[0]; c++) {
        check_golden(&goldens[c], ag_kernels_ref(AG_F64), 1e-13);
        for (int i = 0; i < n; i++) check_golden(&goldens[c], k[i], 2e-5);
    }
}

/* --- every length ----------------------------------------------------------------------------- */

enum { LONGEST = 300, PATTERNS = 7 };
enum { WIDTH = 2 * WQ + WV };

static char pairs_file[] = "/tmp/tulle-pairs-XXXXXX";

/* Strides of 24, blocks of 16: neither divides the other, nor most lengths. */
static const char *pattern_text(int i, char buf[128])
{
    static const char *const TEXTS[PATTERNS - 1] = {
        "local(24)", "strided(24)", "local(24)+strided(24)", "fixed(24, 6)", "summary(24, 8)",
        "local(16)|strided(24)|chunk(16)+strided(24)|dense",
    };
    if (i < PATTERNS - 1) return TEXTS[i];
    snprintf(buf, 128, "file(\"%s\") + strided(24)", pairs_file);
    return buf;
}

static void write_pairs(void)
{
    FILE *f = fopen(pairs_file, "w");
    assert_non_null(f);
    fputs("blocks 16\n", f);
    for (int i = 0; i * 16 < LONGEST; i++) fprintf(f, "%d %d\n%d %d\n", i, i, i, i / 3);
    assert_int_equal(fclose(f), 0);
}

/* Output and gradient of qkv [1,n,WIDTH] on a tape. */
static void run(ag_tape *t, const nn_patterns *p, int64_t n, const double *qkv, const double *dy,
                ag_tensor **ret_x, ag_tensor **ret_y)
{
    const ag_attention_options o = options(p);
    ag_tape_reset(t);
    *ret_x = ag_input_f64(t, AG_SHAPE(1, n, WIDTH), qkv, true);
    *ret_y = ag_attend_qkv(t, *ret_x, &o);
    ag_backward_from(t, *ret_y, ag_input_f64(t, AG_SHAPE(1, n, WV), dy, false)->data);
    if (ag_error(t)) fail_msg("%s", ag_error_message(t));
}

static void same(const char *what, const char *text, int64_t n, const ag_tensor *got,
                 const ag_tensor *want, bool grad)
{
    const void *g = grad ? got->grad : got->data, *w = grad ? want->grad : want->data;
    for (int64_t i = 0; i < got->size; i++) {
        const double a = real_at(g, got->dtype, i), b = real_at(w, AG_F64, i);
        if (!(fabs(a - b) <= 2e-5 * (1 + fabs(b))))
            fail_msg("%s, %s, %d positions: element %d is %.9g, not %.9g", text, what, (int)n,
                     (int)i, a, b);
    }
}

static void every_length(void **state)
{
    (void)state;
    char buf[128];
    double *qkv = uniform_new(LONGEST * WIDTH, -1.5, 1.5, 21),
        *dy = uniform_new(LONGEST * WV, -1, 1, 22);
    ag_tape *fast = tape_new(ag_kernels_best(AG_F32, NULL)),
        *slow = tape_new(ag_kernels_ref(AG_F64));
    for (int i = 0; i < PATTERNS; i++) {
        nn_patterns *p = patterns(pattern_text(i, buf), LONGEST);
        for (int64_t n = 1; n <= LONGEST; n++) {
            ag_tensor *x, *y, *want_x, *want_y;
            run(fast, p, n, qkv, dy, &x, &y);
            run(slow, p, n, qkv, dy, &want_x, &want_y);
            same("output", p->made[0].text, n, y, want_y, false);
            same("gradient", p->made[0].text, n, x, want_x, true);
        }
        nn_patterns_free(p);
    }
    ag_tape_free(fast);
    ag_tape_free(slow);
    free(qkv);
    free(dy);
}

/* --- what holds exactly ----------------------------------------------------------------------- */

/* A token that changes leaves all outputs before it as they were, bit for bit. */
static void nothing_sees_the_future(void **state)
{
    (void)state;
    enum { LENGTH = 150 };
    static const int AT[] = { 1, 15, 16, 24, 63, 64, 100, 149 };
    char buf[128];
    double *qkv = uniform_new(LENGTH * WIDTH, -1.5, 1.5, 31);
    ag_tape *t = tape_new(ag_kernels_best(AG_F32, NULL));
    for (int i = 0; i < PATTERNS; i++) {
        nn_patterns *p = patterns(pattern_text(i, buf), LONGEST);
        const ag_attention_options o = options(p);
        ag_tape_reset(t);
        ag_tensor *was = ag_attend_qkv(
            t, ag_input_f64(t, AG_SHAPE(1, LENGTH, WIDTH), qkv, false), &o);
        for (size_t k = 0; k < sizeof AT / sizeof AT[0]; k++) {
            const size_t before = (size_t)(AT[k] * WV) * sizeof(float);
            for (int e = 0; e < WIDTH; e++) qkv[AT[k] * WIDTH + e] += 1;
            ag_tensor *now = ag_attend_qkv(
                t, ag_input_f64(t, AG_SHAPE(1, LENGTH, WIDTH), qkv, false), &o);
            if (ag_error(t)) fail_msg("%s", ag_error_message(t));
            assert_memory_equal(now->data, was->data, before);
            const size_t all = (size_t)was->size * sizeof(float);
            /* summary: what no chunk sums up changes nothing at all */
            if (i != 4) assert_memory_not_equal(now->data, was->data, all);
            for (int e = 0; e < WIDTH; e++) qkv[AT[k] * WIDTH + e] -= 1;
        }
        nn_patterns_free(p);
    }
    ag_tape_free(t);
    free(qkv);
}

static void no_key_is_nothing(void **state)
{
    (void)state;
    enum { LENGTH = 70, EMPTY = 16 };        /* summary(24, 8): the first 16 see nothing */
    double *qkv = uniform_new(LENGTH * WIDTH, -1.5, 1.5, 41);
    double *dy = uniform_new(LENGTH * WV, 1, 2, 42);
    const ag_kernels *k[9] = { ag_kernels_ref(AG_F64) };
    const int n = 1 + ag_kernels_all(AG_F32, k + 1, 8);
    nn_patterns *p = patterns("summary(24, 8)", LENGTH);
    for (int i = 0; i < n; i++) {
        ag_tape *t = tape_new(k[i]);
        ag_tensor *x, *y;
        run(t, p, LENGTH, qkv, dy, &x, &y);
        for (int64_t e = 0; e < EMPTY * WV; e++)
            assert_true(real_at(y->data, k[i]->dtype, e) == 0);
        for (int64_t e = 0; e < EMPTY * WIDTH; e++)      /* nor are they keys of others */
            assert_true(real_at(x->grad, k[i]->dtype, e) == 0);
        double rest = 0;
        for (int64_t e = EMPTY * WIDTH; e < x->size; e++)
            rest += fabs(real_at(x->grad, k[i]->dtype, e));
        assert_true(rest > 1);
        ag_tape_free(t);
    }
    nn_patterns_free(p);
    free(qkv);
    free(dy);
}

/* --- decoding --------------------------------------------------------------------------------- */

static ag_tensor *rows(ag_tape *t, const double *qkv, int64_t from, int64_t n)
{
    return ag_input_f64(t, AG_SHAPE(1, n, WIDTH), qkv + from * WIDTH, false);
}

static void check_cache(const ag_kernels *k, const nn_patterns *p, const double *qkv, double tol)
{
    enum { LENGTH = 90 };
    static const int64_t PARTS[] = { 40, 1, 1, 7, 1, 16, 1, 1, 1, 21 };
    const ag_attention_options o = options(p);
    ag_tape *t = tape_new(k);
    ag_kv_cache *cache = ag_kv_cache_new(NULL, k->dtype, 1, 1, LENGTH, WQ, WV);
    assert_non_null(cache);
    const ag_tensor *whole = ag_attend_qkv(t, rows(t, qkv, 0, LENGTH), &o);
    int64_t from = 0;
    for (size_t i = 0; i < sizeof PARTS / sizeof PARTS[0]; from += PARTS[i++]) {
        const ag_tensor *y = ag_attend_cached(t, rows(t, qkv, from, PARTS[i]), NULL, NULL, &o,
                                              cache, 0);
        if (ag_error(t)) fail_msg("%s", ag_error_message(t));
        ag_kv_cache_advance(cache, PARTS[i]);
        for (int64_t e = 0; e < y->size; e++)
            if (!(fabs(real_at(y->data, k->dtype, e) -
                       real_at(whole->data, k->dtype, from * WV + e)) <= tol))
                fail_msg("%s, %s: position %d", k->name, p->made[0].text, (int)(from + e / WV));
    }
    assert_int_equal(from, LENGTH);
    ag_kv_cache_free(cache);
    ag_tape_free(t);
}

static void cached_is_whole(void **state)
{
    (void)state;
    char buf[128];
    const ag_kernels *k[8];
    const int n = ag_kernels_all(AG_F32, k, 8);
    double *qkv = uniform_new(LONGEST * WIDTH, -1.5, 1.5, 51);
    for (int i = 0; i < PATTERNS; i++) {
        nn_patterns *p = patterns(pattern_text(i, buf), LONGEST);
        check_cache(ag_kernels_ref(AG_F64), p, qkv, 1e-13);
        for (int c = 0; c < n; c++) check_cache(k[c], p, qkv, 4e-6);
        nn_patterns_free(p);
    }
    free(qkv);
}

/* A cache may be longer than the pattern; the positions may not. */
static void a_pattern_ends(void **state)
{
    (void)state;
    double *qkv = uniform_new(LONGEST * WIDTH, -1.5, 1.5, 61);
    nn_patterns *p = patterns("local(4)", 10);
    const ag_attention_options o = options(p);
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    ag_kv_cache *cache = ag_kv_cache_new(NULL, AG_F64, 1, 1, 20, WQ, WV);
    ag_attend_cached(t, rows(t, qkv, 0, 10), NULL, NULL, &o, cache, 0);
    assert_int_equal(ag_error(t), AG_OK);
    ag_kv_cache_advance(cache, 10);
    ag_attend_cached(t, rows(t, qkv, 10, 1), NULL, NULL, &o, cache, 0);
    assert_int_equal(ag_error(t), AG_ERANGE);
    assert_non_null(strstr(ag_error_message(t), "the pattern is for 10"));
    ag_kv_cache_free(cache);
    ag_tape_free(t);
    nn_patterns_free(p);
    free(qkv);
}

/* --- models ----------------------------------------------------------------------------------- */

/* Decoding a model with a pattern in each layer is its forward pass, and a pattern that shows
 * everything changes no bit. */
static void check_model(nn_map_kind type, const char *text, const ag_kernels *k, bool same_as_dense)
{
    enum { LENGTH = 40, VOCAB = 7 };
    nn_gpt_config c = { .vocab = VOCAB, .context = LENGTH, .n_layers = 3, .n_heads = 4,
                        .d_model = 16, .bias = true, .init_std = 0.3, .norm_eps = 1e-5,
                        .ff = { .d_ff = 8, .bias_in = true, .bias_out = true },
                        .attention = { .type = type }, .pattern = text };
    nn_model *m = NULL;
    ag_err err = { 0 };
    int32_t ids[LENGTH];
    if (nn_gpt_new(&c, k->dtype, 3, &m, &err)) fail_msg("%s", err.msg);
    assert_true(same_as_dense ? m->cost.pattern_bytes == 0 : m->cost.pattern_bytes > 0);
    ag_tape *t = tape_new(k);
    ag_tape_no_grad(t, true);
    uniform_int(ids, LENGTH, 0, VOCAB - 1, 71);
    const ag_tensor *whole = nn_model_logits(m, t, ag_input_i32(t, AG_SHAPE(1, LENGTH), ids),
                                             NN_EVAL);
    ag_kv_cache *cache = NULL;
    assert_int_equal(nn_model_cache(m, 1, &cache, &err), AG_OK);
    for (int64_t from = 0, n = 17; from < LENGTH; from += n, n = n == 17 ? 5 : 1) {
        const ag_tensor *y = nn_model_decode(m, t, ag_input_i32(t, AG_SHAPE(1, n), ids + from),
                                             cache);
        if (ag_error(t)) fail_msg("%s", ag_error_message(t));
        for (int64_t e = 0; e < y->size; e++)
            assert_true(fabs(real_at(y->data, k->dtype, e) -
                             real_at(whole->data, k->dtype, from * VOCAB + e)) <= 1e-11);
    }
    if (same_as_dense) {
        nn_model *dense = NULL;
        c.pattern = NULL;
        assert_int_equal(nn_gpt_new(&c, k->dtype, 3, &dense, &err), AG_OK);
        const ag_tensor *y = nn_model_logits(dense, t, ag_input_i32(t, AG_SHAPE(1, LENGTH), ids),
                                             NN_EVAL);
        assert_memory_equal(y->data, whole->data, (size_t)y->size * ag_dtype_size(y->dtype));
        nn_model_free(dense);
    }
    ag_kv_cache_free(cache);
    ag_tape_free(t);
    nn_model_free(m);
}

static void models_decode(void **state)
{
    (void)state;
    static const nn_map_kind TYPES[] = { NN_MAP_DENSE, NN_MAP_MULTCONV, NN_MAP_LOWRANK };
    for (int i = 0; i < 3; i++) {
        check_model(TYPES[i], "local(6);strided(8);fixed(8,2)", ag_kernels_ref(AG_F64), false);
        check_model(TYPES[i], "summary(8,2);dense;local(3)|strided(5)", ag_kernels_ref(AG_F64),
                    false);
        check_model(TYPES[i], "dense*2;local(4)+dense", ag_kernels_ref(AG_F64), true);
    }
}

/* Keys that queries see, in the count of a model's work. */
static void cost_counts_pairs(void **state)
{
    (void)state;
    nn_gpt_config c = { .vocab = 7, .context = 32, .n_layers = 2, .n_heads = 2, .d_model = 8,
                        .init_std = 0.02, .norm_eps = 1e-5, .ff = { .d_ff = 8 } };
    nn_cost dense, sparse;
    assert_int_equal(nn_gpt_cost(&c, &dense, NULL), AG_OK);
    c.pattern = "local(4); dense | strided(8)";
    assert_int_equal(nn_gpt_cost(&c, &sparse, NULL), AG_OK);
    const double all = 32 * 33 / 2, local = 4 * 32 - 6, strided = 8 * (1 + 2 + 3 + 4);
    const double fewer = 2 * (all - local) + (all - strided);
    assert_true(fabs((dense.flops - sparse.flops) - 2 * 8 * fewer / 32) < 1e-9);
    assert_true(dense.params == sparse.params && dense.pattern_bytes == 0);
    c.pattern = "local(4";
    assert_int_equal(nn_gpt_cost(&c, &sparse, NULL), AG_ECONFIG);
}

int main(void)
{
    const int fd = mkstemp(pairs_file);
    if (fd < 0) return 1;
    close(fd);
    write_pairs();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_pytorch), cmocka_unit_test(every_length),
        cmocka_unit_test(nothing_sees_the_future), cmocka_unit_test(no_key_is_nothing),
        cmocka_unit_test(cached_is_whole), cmocka_unit_test(a_pattern_ends),
        cmocka_unit_test(models_decode), cmocka_unit_test(cost_counts_pairs),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(pairs_file);
    return failed;
}
