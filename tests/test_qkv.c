/*
 * test_qkv.c -- sparse attention and output layers: against PyTorch in float64 (golden/make_qkv.py
 * writes them a second time), all gradients against differences, decoding against the full forward
 * pass, sizes against the tables of the released code, models of equal size.
 */
#include "tests/layer_check.h"

#include "autograd/op.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "golden/values_qkv.inc"

enum { B = 2, T = 5, D = 12, VOCAB = 11 };

/* --- the cases -------------------------------------------------------------------------------- */

#define LAYER(...) { .d_model = D, .n_heads = 2, .d_qk = 6, .d_v = 6, .modules = 3, __VA_ARGS__ }
#define HEAD(...) { .d_model = D, .vocab = VOCAB, .prob_sparse = 1, __VA_ARGS__ }

static const nn_attention_config
    multconv = LAYER(.type = NN_MAP_MULTCONV),
    multconv_four = { .d_model = D, .n_heads = 2, .d_qk = 6, .d_v = 6, .type = NN_MAP_MULTCONV,
                      .modules = 4, .taps = 2, .span = 5, .own_output = true,
                      .output = NN_MAP_MULTCONV },
    multconv_shared = LAYER(.type = NN_MAP_MULTCONV, .share_qk = true, .own_output = true,
                            .output = NN_MAP_CONV, .v_concat = NN_CONCAT_FIXED),
    multconv_original = LAYER(.type = NN_MAP_MULTCONV, .own_output = true, .output = NN_MAP_DENSE,
                              .v_concat = NN_CONCAT_ORIGINAL, .out_gain = 1),
    multconv_mult = LAYER(.type = NN_MAP_MULTCONV, .taps = 1, .span = 1, .own_output = true,
                          .output = NN_MAP_MULT),
    mult = LAYER(.type = NN_MAP_MULT),
    conv = { .d_model = D, .n_heads = 2, .d_qk = 6, .d_v = 6, .type = NN_MAP_CONV, .modules = 4 },
    conv_wide = LAYER(.type = NN_MAP_CONV, .taps = 2, .span = 3),
    modular = LAYER(.type = NN_MAP_MODULAR),
    modular_three = { .d_model = D, .n_heads = 2, .d_qk = 6, .d_v = 6, .type = NN_MAP_MODULAR,
                      .modules = 4, .span = 3 },
    multmod = { .d_model = D, .n_heads = 2, .d_qk = 6, .d_v = 6, .type = NN_MAP_MULTMOD,
                .modules = 4 },
    lowrank = LAYER(.type = NN_MAP_LOWRANK, .rank = 4, .share_qk = true);
static const nn_head_config head_mult = HEAD(.type = NN_HEAD_MULT, .modules = 3),
                            head_seven = HEAD(.type = NN_HEAD_MULT, .modules = 7),
                            head_lowrank = HEAD(.type = NN_HEAD_LOWRANK, .d_lowrank = 3);

typedef struct golden {
    const char *name;
    const void *config;
    const double *y, *dx, *sum;      /* sum: of each gradient times fill() */
    const char *const *names;
    size_t n_y, n_items;
} golden;

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define CASE(n) { #n, &n, n##_y, n##_dx, n##_sum, n##_names, COUNT(n##_y), COUNT(n##_sum) },
static const golden goldens[] = { GOLDEN(CASE) };

static bool is_head(const golden *g) { return strncmp(g->name, "head", 4) == 0; }

/* One of the two layers, as the tests want to call it. */
typedef struct layer { bool head; nn_attention a; nn_head h; nn_mode mode; } layer;

static void layer_build(layer *l, nn_params *p, const golden *g)
{
    ag_err err = { 0 };
    *l = (layer){ .head = is_head(g), .mode = NN_TRAIN };
    if (is_head(g) ? nn_head_check(g->config, &err) : nn_attention_check(g->config, &err))
        fail_msg("%s: %s", g->name, err.msg);
    if (l->head) nn_head_build(&l->h, p, "a", g->config, NULL);
    else nn_attention_build(&l->a, p, "a", g->config);
}

static ag_tensor *layer_forward(const void *arg, ag_tape *t, ag_tensor *x)
{
    const layer *l = arg;
    return l->head ? nn_head_forward(&l->h, t, x, l->mode)
                   : nn_attention_forward(&l->a, t, x, NULL, l->mode, NULL, 0);
}

/* --- PyTorch ---------------------------------------------------------------------------------- */

/* As in make_qkv.py: 16 bits, exact in f32. */
static double fill(uint32_t i, uint32_t e)
{
    uint32_t h = (i * 1000003u + e) * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    return ((double)(h >> 16) / 65536 - 0.5) * 0.5;
}

static double real(const void *p, ag_dtype dtype, int64_t i)
{
    return dtype == AG_F64 ? ((const double *)p)[i] : (double)((const float *)p)[i];
}

static void set(ag_tensor *x, int64_t i, double v)
{
    if (x->dtype == AG_F64) ((double *)x->data)[i] = v;
    else ((float *)x->data)[i] = (float)v;
}

static void near(const golden *g, const char *what, int64_t i, double got, double want, double tol)
{
    if (!(fabs(got - want) <= tol * (1 + fabs(want))))
        fail_msg("%s: %s %d is %.12g, PyTorch has %.12g", g->name, what, (int)i, got, want);
}

static void check_golden(const golden *g, const ag_kernels *k, double tol)
{
    nn_params *p = nn_params_new(k->dtype);
    ag_tape *t = ag_tape_new(k);
    double v[B * T * D];
    layer l;
    layer_build(&l, p, g);
    assert_int_equal(nn_params_alloc(p, SEED, NULL), AG_OK);
    assert_int_equal(nn_params_grads(p, NULL), AG_OK);
    assert_int_equal(p->n_items, g->n_items);
    for (int i = 0; i < p->n_items; i++) {
        assert_string_equal(p->items[i].name, g->names[i]);
        for (int64_t e = 0; e < p->items[i].count; e++)
            set(p->items[i].tensor, e, 4 * fill((uint32_t)i, (uint32_t)e));
    }
    for (int i = 0; i < B * T * D; i++) v[i] = 4 * fill(1000, (uint32_t)i);
    ag_tensor *x = ag_input_f64(t, AG_SHAPE(B, T, D), v, true), *y = layer_forward(&l, t, x);
    tape_ok(t);
    assert_int_equal(y->size, g->n_y);
    for (int64_t i = 0; i < y->size; i++)
        near(g, "output", i, real(y->data, k->dtype, i), g->y[i], tol);
    ag_tensor *dy = ag_input_f64(t, y->shape, v, false);
    for (int64_t i = 0; i < y->size; i++) set(dy, i, 4 * fill(1001, (uint32_t)i));
    ag_backward_from(t, y, dy->data);
    tape_ok(t);
    for (int64_t i = 0; i < x->size; i++)
        near(g, "gradient of x", i, real(x->grad, k->dtype, i), g->dx[i], 4 * tol);
    for (int i = 0; i < p->n_items; i++) {
        double sum = 0;
        for (int64_t e = 0; e < p->items[i].count; e++)
            sum += real(p->items[i].tensor->grad, k->dtype, e) *
                   fill(500 + (uint32_t)i, (uint32_t)e);
        near(g, "gradient of parameter", i, sum, g->sum[i], 4 * tol);
    }
    ag_tape_free(t);
    nn_params_free(p);
}

static void agrees_with_pytorch(void **state)
{
    const ag_kernels *k[8];
    const int n = ag_kernels_all(AG_F32, k, 8);
    check_golden(*state, ag_kernels_ref(AG_F64), 1e-12);
    for (int i = 0; i < n; i++) check_golden(*state, k[i], 2e-5);
}

/* --- gradients -------------------------------------------------------------------------------- */

/* A bias of keys adds the same to all scores of a query: it has no effect, unless q has it too. */
static bool is_idle(const nn_item *item) { return strstr(item->name, "a/k/") && !item->decay; }

static void check_gradients(const layer *l, nn_params *p)
{
    nn_item items[32];
    nn_params some = *p;
    some.items = items;
    some.n_items = 0;
    params_ready(p);
    some.weights = p->weights;
    some.grads = p->grads;
    for (int i = 0; i < p->n_items; i++)
        if (!is_idle(&p->items[i])) items[some.n_items++] = p->items[i];
    check_subject(&(subject){ &some, l, layer_forward, AG_SHAPE(B, T, D), 0 });
    for (int i = 0; i < p->n_items; i++)
        for (int64_t e = 0; is_idle(&p->items[i]) && e < p->items[i].count; e++)
            assert_true(fabs(((double *)p->items[i].tensor->grad)[e]) < 1e-12);
}

static void gradients(void **state)
{
    nn_params *p = nn_params_new(AG_F64);
    layer l;
    layer_build(&l, p, *state);
    check_gradients(&l, p);
    nn_params_free(p);
}

/* Dropout at the end of a branch without an output layer. */
static void gradients_with_dropout(void **state)
{
    (void)state;
    nn_attention_config c = multconv;
    c.dropout = 0.3;
    nn_params *p = nn_params_new(AG_F64);
    layer l = { .mode = NN_TRAIN };
    nn_attention_build(&l.a, p, "a", &c);
    check_gradients(&l, p);
    nn_params_free(p);
}

/* --- decoding --------------------------------------------------------------------------------- */

static nn_gpt_config gpt_of(const golden *g)
{
    nn_gpt_config c = { .vocab = VOCAB, .context = 9, .n_layers = 2, .n_heads = 2, .d_model = D,
                        .init_std = 0.3, .norm_eps = 1e-5,
                        .ff = { .d_ff = 16, .act = AG_ACT_GELU_ERF } };
    if (is_head(g)) c.head = *(const nn_head_config *)g->config;
    else c.attention = *(const nn_attention_config *)g->config;
    return c;
}

/* Logits of positions in parts of these sizes against those of all at once. */
static void decode_in(const golden *g, const nn_model *m, const ag_kernels *k, const int *sizes,
                      ag_kv_cache *cache)
{
    enum { LENGTH = 9 };
    ag_tape *t = ag_tape_new(k);
    ag_tape_no_grad(t, true);
    int32_t ids[B * LENGTH], some[B * LENGTH];
    for (int i = 0; i < B * LENGTH; i++) ids[i] = (i * 5 + i * i * 3) % VOCAB;
    const ag_tensor *want =
        nn_model_logits(m, t, ag_input_i32(t, AG_SHAPE(B, LENGTH), ids), NN_EVAL);
    ag_kv_cache_reset(cache, 0);
    for (int from = 0; from < LENGTH; from += *sizes++) {
        const int n = *sizes;
        for (int i = 0; i < B * n; i++) some[i] = ids[i / n * LENGTH + from + i % n];
        const ag_tensor *y = nn_model_decode(m, t, ag_input_i32(t, AG_SHAPE(B, n), some), cache);
        tape_ok(t);
        for (int i = 0; i < B * n * VOCAB; i++) {
            const int b = i / VOCAB / n, pos = from + i / VOCAB % n;
            near(g, "logit", i, real(y->data, k->dtype, i),
                 real(want->data, k->dtype, (b * LENGTH + pos) * VOCAB + i % VOCAB),
                 k->dtype == AG_F64 ? 1e-12 : 1e-4);
        }
    }
    ag_tape_free(t);
}

static void decoding_is_the_forward_pass(void **state)
{
    static const int SIZES[][9] = {
        { 9 }, { 1, 1, 1, 1, 1, 1, 1, 1, 1 }, { 4, 1, 1, 1, 1, 1 }, { 1, 5, 1, 2 }
    };
    const nn_gpt_config c = gpt_of(*state);
    const ag_kernels *k[9] = { ag_kernels_ref(AG_F64) };
    const int n = 1 + ag_kernels_all(AG_F32, k + 1, 8);
    for (int i = 0; i < n; i++) {
        nn_model *m;
        ag_kv_cache *cache;
        ag_err err = { 0 };
        if (nn_gpt_new(&c, k[i]->dtype, SEED, &m, &err)) fail_msg("%s", err.msg);
        assert_int_equal(nn_model_cache(m, B, &cache, NULL), AG_OK);
        for (int j = 0; j < 4; j++) decode_in(*state, m, k[i], SIZES[j], cache);
        ag_kv_cache_free(cache);
        nn_model_free(m);
    }
}

/* --- the output layer ------------------------------------------------------------------------- */

/* Training takes the sparse layer in a share of the steps, evaluation always. */
static void head_tosses_a_coin(void **state)
{
    (void)state;
    nn_head_config c = head_mult;
    c.prob_sparse = 0.3;
    nn_params *p = nn_params_new(AG_F64);
    nn_head h;
    nn_head_build(&h, p, "h", &c, NULL);
    params_ready(p);
    assert_int_equal(nn_head_beside(&h), (D + 1) * VOCAB);
    assert_int_equal(nn_params_find(p, "h/beside/weight")->count, D * VOCAB);
    ag_tape *t = tape_new();
    int sparse = 0;
    for (uint32_t step = 0; step < 1000; step++) {
        ag_tape_reset(t);
        noise(t, step, 0, 4);
        ag_tensor *x = input(t, AG_SHAPE(4, D), 1, false);
        const ag_tensor *want = nn_mult_forward(&h.mult, t, x);
        const size_t bytes = (size_t)want->size * sizeof(double);
        assert_int_equal(want->size, 4 * VOCAB);
        assert_memory_equal(nn_head_forward(&h, t, x, NN_EVAL)->data, want->data, bytes);
        sparse += !memcmp(nn_head_forward(&h, t, x, NN_TRAIN)->data, want->data, bytes);
        noise(t, step, 2, 2);        /* another part of the batch falls the same way */
        const ag_tensor *a = nn_head_forward(&h, t, x, NN_TRAIN);
        noise(t, step, 0, 4);
        assert_memory_equal(nn_head_forward(&h, t, x, NN_TRAIN)->data, a->data, bytes);
    }
    assert_in_range(sparse, 300 - 75, 300 + 75);         /* within 5 sigma */
    ag_tape_free(t);
    nn_params_free(p);
}

/* --- sizes ------------------------------------------------------------------------------------ */

static nn_cost cost_of(const nn_gpt_config *c)
{
    nn_cost cost;
    ag_err err = { 0 };
    if (nn_gpt_cost(c, &cost, &err)) fail_msg("%s", err.msg);
    return cost;
}

static nn_gpt_config plain(int64_t d, int64_t vocab)
{
    return (nn_gpt_config){ .vocab = vocab, .context = 32, .n_layers = 3, .n_heads = 4,
                            .d_model = d, .bias = true, .norm_eps = 1e-5,
                            .ff = { .d_ff = 4 * d, .bias_in = true, .bias_out = true } };
}

/* The released code's shapes: d, S, F -> parameters of multconv attention, its multiply-adds. */
static void known_sizes(void **state)
{
    (void)state;
    static const struct { int64_t d, s, f, params; double saved; } K[] = {
        { 1024, 16, 3, 169152, 1.72 }, { 1024, 64, 3, 88368, 2.88 }, { 1024, 16, 1, 111808, 2.75 },
        { 384, 12, 3, 38880, 1.44 },   { 256, 8, 3, 32096, 1.09 },   { 128, 16, 3, 4568, 1.64 },
    };
    for (size_t i = 0; i < COUNT(K); i++) {
        nn_gpt_config c = plain(K[i].d, 65);
        const nn_cost dense = cost_of(&c);
        assert_int_equal(dense.attention_params, 3 * (4 * K[i].d * K[i].d + 4 * K[i].d));
        c.attention = (nn_attention_config){ .type = NN_MAP_MULTCONV, .modules = K[i].s,
                                             .taps = K[i].f, .span = 3 };
        const nn_cost cost = cost_of(&c);
        assert_int_equal(cost.attention_params, 3 * K[i].params);
        assert_int_equal(cost.params, dense.params - dense.attention_params + 3 * K[i].params);
        assert_int_equal(cost.touched, dense.touched - dense.attention_params + 3 * K[i].params);
        const double d2 = (double)(K[i].d * K[i].d), saved = (dense.flops - cost.flops) / 2 / 3;
        assert_true(fabs(4 * d2 / (4 * d2 - saved) - K[i].saved) < 0.006);
    }
    static const int64_t HEADS[][2] = { { 2, 14664 }, { 4, 8520 }, { 8, 6600 } };
    for (size_t i = 0; i < COUNT(HEADS); i++) {
        nn_gpt_config c = plain(384, 72);
        const nn_cost dense = cost_of(&c);
        c.head = (nn_head_config){ .type = NN_HEAD_MULT, .modules = HEADS[i][0], .prob_sparse = 1 };
        nn_cost cost = cost_of(&c);
        assert_int_equal(dense.head_params, 384 * 72);
        assert_int_equal(cost.head_params, HEADS[i][1]);
        assert_int_equal(dense.touched - cost.touched, 384 * 72 - HEADS[i][1]);
        assert_true(fabs(cost.flops - dense.flops - 2 * 384 * (double)HEADS[i][0]) <= 0);
        c.head.prob_sparse = 0.5;    /* the layer beside it is there, and not read */
        const int64_t touched = cost.touched;
        cost = cost_of(&c);
        assert_int_equal(cost.head_params, HEADS[i][1] + 385 * 72);
        assert_int_equal(cost.touched, touched);
    }
}

/* --- models of equal size --------------------------------------------------------------------- */

static void equal_parameters(void **state)
{
    (void)state;
    for (int sparse = 0; sparse < 2; sparse++) {
        const nn_gpt_config like = plain(128, 65);
        nn_gpt_config c = like;
        c.attention = (nn_attention_config){ .type = NN_MAP_MULTCONV, .modules = 16 };
        if (sparse)
            c.ff = (nn_ff_config){ .kind = NN_FF_SPARSE, .d_ff = 512, .block = 16,
                                   .bias_out = true, .controller_bias = true };
        nn_gpt_config dense = c;
        dense.attention = (nn_attention_config){ 0 };
        const int64_t want = cost_of(&dense).params, step = sparse ? 16 : 1;
        assert_int_equal(nn_match_params(&c, step, &dense, NULL), AG_OK);
        assert_int_equal(c.ff.d_ff % step, 0);
        const int64_t off = llabs(cost_of(&c).params - want);
        for (int i = -1; i <= 1; i += 2) {
            nn_gpt_config other = c;
            other.ff.d_ff += i * step;
            assert_true(llabs(cost_of(&other).params - want) >= off);
        }
        /* 4 d^2 weights less in attention are 2 d units more, but for what is left of it */
        if (!sparse) assert_in_range(c.ff.d_ff, 512 + 2 * 128 - 20, 512 + 2 * 128);
    }
}

static void equal_weights_read(void **state)
{
    (void)state;
    const nn_ff_config like = { .kind = NN_FF_SPARSE, .d_ff = 1536, .block = 64, .bias_out = true,
                                .controller_bias = true };
    nn_ff_config c = { .d_ff = 1536, .bias_in = true, .bias_out = true };
    assert_int_equal(nn_match_touched(&c, &like, 384, NULL), AG_OK);
    /* 47,616 of the controller, 2 * 384 * 24 live, 384; a unit has 2 * 384 + 1 */
    assert_int_equal(c.d_ff, (47616 + 2 * 384 * 24 + 769 / 2) / 769);
    c.d_ff = 0;
    nn_ff_config bad = like;
    bad.block = 7;
    assert_int_equal(nn_match_touched(&c, &bad, 384, NULL), AG_ECONFIG);
}

/* --- what does not fit ------------------------------------------------------------------------ */

static void refused(const nn_gpt_config *c, const char *words)
{
    nn_cost cost;
    ag_err err = { 0 };
    assert_int_equal(nn_gpt_cost(c, &cost, &err), AG_ECONFIG);
    if (!strstr(err.msg, words)) fail_msg("no '%s' in: %s", words, err.msg);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    nn_gpt_config c = gpt_of(&goldens[0]);
    c.attention.modules = 5;
    refused(&c, "attention.modules = 5 must divide d_model = 12");
    c.attention.modules = 3;
    c.attention.span = 7;
    refused(&c, "attention.kernel_modules = 7");
    c.attention.span = 2;
    refused(&c, "odd");
    c.attention.span = 0;
    c.d_qk = 3;
    refused(&c, "d_qk = 3");
    c.d_qk = 0;
    c.head = head_mult;
    c.tied = true;
    refused(&c, "tied_embeddings = false");
    c.tied = false;
    c.head.modules = VOCAB + 1;
    refused(&c, "head.modules = 12");
    c.head.modules = VOCAB;
    cost_of(&c);
    c.head.prob_sparse = NAN;
    refused(&c, "head.prob_sparse");
}

static int on_every_case(const char *group, void (*run)(void **state))
{
    struct CMUnitTest tests[COUNT(goldens)];
    for (size_t i = 0; i < COUNT(goldens); i++)
        tests[i] = (struct CMUnitTest){ .name = goldens[i].name, .test_func = run,
                                        .initial_state = (void *)(uintptr_t)&goldens[i] };
    return cmocka_run_group_tests_name(group, tests, NULL, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_with_dropout), cmocka_unit_test(head_tosses_a_coin),
        cmocka_unit_test(known_sizes),            cmocka_unit_test(equal_parameters),
        cmocka_unit_test(equal_weights_read),     cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return on_every_case("PyTorch", agrees_with_pytorch) +
           on_every_case("gradients", gradients) +
           on_every_case("decoding", decoding_is_the_forward_pass) +
           cmocka_run_group_tests_name("qkv", tests, NULL, NULL);
}
