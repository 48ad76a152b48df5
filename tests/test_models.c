/*
 * test_models.c -- both models against differences in f64; decoding against the full forward pass;
 * a batch in parts against the whole; sizes of known configurations.
 */
#include "tests/layer_check.h"

#include "autograd/base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const nn_ff_config DENSE = { .d_ff = 12, .act = AG_ACT_GELU_ERF };
static const nn_ff_config SPARSE = { .kind = NN_FF_SPARSE,
                                     .d_ff = 12,
                                     .bias_out = true,
                                     .block = 4,
                                     .quant_prob = 0,
                                     .temperature = 0.7,
                                     .controller_bias = true };

static nn_gpt_config gpt_small(const nn_ff_config *ff)
{
    return (nn_gpt_config){ .vocab = 7,
                            .context = 6,
                            .n_layers = 2,
                            .n_heads = 2,
                            .d_model = 8,
                            .tied = true,
                            .init_std = 0.3,
                            .norm_eps = 1e-5,
                            .ff = *ff };
}

static nn_model *gpt_new(const nn_gpt_config *c)
{
    nn_model *m = NULL;
    ag_err err = { 0 };
    if (nn_gpt_new(c, AG_F64, SEED, &m, &err) || nn_params_grads(m->params, &err))
        fail_msg("%s", err.msg);
    params_shake(m->params);
    return m;
}

static nn_model *mlp_new(const nn_mlp_config *c)
{
    nn_model *m = NULL;
    ag_err err = { 0 };
    if (nn_mlp_new(c, AG_F64, SEED, &m, &err) || nn_params_grads(m->params, &err))
        fail_msg("%s", err.msg);
    params_shake(m->params);
    return m;
}

/* --- gradients -------------------------------------------------------------------------------- */

static ag_tensor *model_loss(const void *m, ag_tape *t, ag_tensor *x)
{
    const nn_model *model = m;
    const int64_t rows = model->cache_new ? x->size : x->shape.dim[0];
    return nn_model_loss(model, t, x, integers(t, AG_SHAPE(rows), 9, (int)model->classes),
                         NN_TRAIN);
}

static ag_tensor *model_logits(const void *m, ag_tape *t, ag_tensor *x)
{
    return nn_model_logits(m, t, x, NN_TRAIN);
}

static void gpt_gradients(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        nn_gpt_config c = gpt_small(i & 1 ? &SPARSE : &DENSE);
        c.bias = c.ff.bias_in = i & 2;
        c.tied = !(i & 2);
        c.dropout = c.embedding_dropout = c.ff.dropout = i & 4 ? 0.2 : 0;
        c.d_qk = i & 2 ? 3 : 0;
        c.d_v = i & 4 ? 5 : 0;
        nn_model *m = gpt_new(&c);
        check_subject(
            &(subject){ m->params, m, i & 1 ? model_loss : model_logits, AG_SHAPE(2, 5), 7 });
        nn_model_free(m);
    }
}

static void mlp_gradients(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        nn_mlp_config c = {
            .d_in = 6, .d_hidden = 7, .classes = 4, .n_layers = 1 + i / 4, .bias = true, .ff = DENSE
        };
        if (i & 1) c.ff = SPARSE;
        c.ff.act = AG_ACT_RELU;
        c.ff.bias_in = c.ff.bias_out = i & 2;
        c.ff.mask_order = i & 2 ? NN_MASK_AFTER_RELU : NN_MASK_BEFORE_RELU;
        c.ff.dropout = i & 2 ? 0.2 : 0;
        nn_model *m = mlp_new(&c);
        check_subject(
            &(subject){ m->params, m, i & 2 ? model_loss : model_logits, AG_SHAPE(3, 6), 0 });
        nn_model_free(m);
    }
}

/* --- a batch in parts ------------------------------------------------------------------------- */

/* Adds to the gradients those of samples first .. first + n - 1 of a batch of 4; returns their part
 * of the loss. */
static double part_of_batch(const nn_model *m, uint32_t step, int64_t first, int64_t n)
{
    ag_tape *t = tape_new();
    int32_t x[4 * 6], y[4 * 6];
    for (int i = 0; i < 4 * 6; i++) {
        x[i] = (int32_t)draw(1, i, 0, 7);
        y[i] = (int32_t)draw(9, i, 0, 7);
    }
    noise(t, step, first, n);
    ag_tensor *ids = ag_input_i32(t, AG_SHAPE(n, 6), x + 6 * first);
    ag_tensor *loss =
        nn_model_loss(m, t, ids, ag_input_i32(t, AG_SHAPE(n, 6), y + 6 * first), NN_TRAIN);
    ag_backward(t, loss, (double)n / 4);
    tape_ok(t);
    const double part = *(double *)loss->data * (double)n / 4;
    ag_tape_free(t);
    return part;
}

static void parts_add_up(void **state)
{
    (void)state;
    for (int i = 0; i < 12; i++) {
        nn_gpt_config c = gpt_small(i & 1 ? &SPARSE : &DENSE);
        c.dropout = c.embedding_dropout = c.ff.dropout = 0.3;
        c.ff.quant_prob = i & 2 ? 1 : 0.5;
        c.ff.relaxed = i & 4;
        nn_model *m = gpt_new(&c);
        const double whole = part_of_batch(m, (uint32_t)i, 0, 4);
        const size_t bytes = (size_t)m->params->n * sizeof(double);
        double *want = malloc(bytes), largest = 0;
        assert_non_null(want);
        memcpy(want, m->params->grads, bytes);
        nn_params_zero_grad(m->params);
        const double parts =
            part_of_batch(m, (uint32_t)i, 0, 1) + part_of_batch(m, (uint32_t)i, 1, 3);
        assert_true(fabs(whole - parts) <= 1e-12);
        for (int64_t j = 0; j < m->params->n; j++) {
            const double got = ((double *)m->params->grads)[j];
            largest = fmax(largest, fabs(got));
            assert_true(fabs(got - want[j]) <= 1e-12 * (1 + fabs(want[j])));
        }
        assert_true(largest > 1e-3);
        free(want);
        nn_model_free(m);
    }
}

/* --- evaluation and decoding ------------------------------------------------------------------ */

static void evaluation_has_no_noise(void **state)
{
    (void)state;
    nn_gpt_config c = gpt_small(&SPARSE);
    c.dropout = c.embedding_dropout = c.ff.dropout = 0.5;
    nn_model *m = gpt_new(&c);
    ag_tape *t = tape_new();
    noise(t, 1, 0, 2);
    ag_tensor *ids = integers(t, AG_SHAPE(2, 6), 1, 7);
    const ag_tensor *a = nn_model_logits(m, t, ids, NN_EVAL);
    noise(t, 2, 4, 2);
    const ag_tensor *b = nn_model_logits(m, t, ids, NN_EVAL),
                    *x = nn_model_logits(m, t, ids, NN_TRAIN);
    noise(t, 3, 4, 2);
    const ag_tensor *y = nn_model_logits(m, t, ids, NN_TRAIN);
    tape_ok(t);
    assert_memory_equal(a->data, b->data, (size_t)a->size * sizeof(double));
    assert_memory_not_equal(x->data, y->data, (size_t)a->size * sizeof(double));
    ag_tape_free(t);
    nn_model_free(m);
}

/* Decoding in steps of the sizes given must make the rows of the full forward pass. */
static void decode_in(const nn_model *m, const int *sizes, ag_kv_cache *cache)
{
    enum { B = 3, T = 6 };
    ag_tape *t = tape_new();
    ag_tape_no_grad(t, true);
    ag_tensor *ids = integers(t, AG_SHAPE(B, T), 1, 7);
    const double *want = nn_model_logits(m, t, ids, NN_EVAL)->data;
    ag_kv_cache_reset(cache, 0);
    for (int from = 0, k = 0; from < T; from += sizes[k++]) {
        int32_t some[B * T];
        for (int b = 0; b < B; b++)
            for (int i = 0; i < sizes[k]; i++)
                some[b * sizes[k] + i] = ((int32_t *)ids->data)[b * T + from + i];
        const ag_tensor *y =
            nn_model_decode(m, t, ag_input_i32(t, AG_SHAPE(B, sizes[k]), some), cache);
        tape_ok(t);
        assert_int_equal(ag_kv_cache_length(cache), from + sizes[k]);
        for (int b = 0; b < B; b++)
            for (int i = 0; i < sizes[k] * 7; i++) {
                const double got = ((double *)y->data)[b * sizes[k] * 7 + i],
                             full = want[(b * T + from) * 7 + i];
                assert_true(fabs(got - full) <= 1e-12 * (1 + fabs(full)));
            }
    }
    const int64_t full = ag_kv_cache_length(cache);
    nn_model_decode(m, t, integers(t, AG_SHAPE(B, 1), 1, 7), cache);     /* beyond the context */
    assert_int_equal(ag_error(t), AG_ERANGE);
    assert_int_equal(ag_kv_cache_length(cache), full);
    ag_tape_free(t);
}

static void decoding_is_the_forward_pass(void **state)
{
    (void)state;
    static const int SIZES[][6] = {
        { 6 }, { 1, 1, 1, 1, 1, 1 }, { 3, 1, 1, 1 }, { 1, 4, 1 }, { 2, 2, 2 }
    };
    for (int i = 0; i < 4; i++) {
        nn_gpt_config c = gpt_small(i & 1 ? &SPARSE : &DENSE);
        c.bias = i & 2;
        c.d_qk = i & 2 ? 3 : 0;
        c.d_v = i & 2 ? 5 : 0;
        c.dropout = c.embedding_dropout = c.ff.dropout = 0.5;
        nn_model *m = gpt_new(&c);
        ag_kv_cache *cache = NULL;
        assert_int_equal(nn_model_cache(m, 3, &cache, NULL), AG_OK);
        for (int k = 0; k < 5; k++) decode_in(m, SIZES[k], cache);
        ag_kv_cache_free(cache);
        nn_model_free(m);
    }
    const nn_mlp_config c = { .d_in = 6, .d_hidden = 7, .classes = 4, .n_layers = 1, .ff = DENSE };
    nn_model *mlp = mlp_new(&c);
    ag_kv_cache *cache = NULL;
    assert_int_equal(nn_model_cache(mlp, 3, &cache, NULL), AG_ECONFIG);
    nn_model_free(mlp);
}

/* --- sizes ------------------------------------------------------------------------------------ */

static nn_cost gpt_cost_of(int64_t layers, int64_t heads, int64_t d, int64_t context,
                           const nn_ff_config *ff)
{
    const nn_gpt_config c = { .vocab = 65,
                              .context = context,
                              .n_layers = layers,
                              .n_heads = heads,
                              .d_model = d,
                              .tied = true,
                              .init_std = 0.02,
                              .norm_eps = 1e-5,
                              .ff = *ff };
    nn_model *m = NULL;
    assert_int_equal(nn_gpt_new(&c, AG_F32, 1, &m, NULL), AG_OK);
    const nn_cost cost = m->cost;
    nn_model_free(m);
    return cost;
}

static void known_sizes(void **state)
{
    (void)state;
    nn_cost c =
        gpt_cost_of(6, 6, 384, 256, &(nn_ff_config){ .d_ff = 1536, .act = AG_ACT_GELU_ERF });
    assert_int_equal(c.params, 10745088); /* nanoGPT: 10.65M without the 98,304 of the positions */
    assert_int_equal(c.ff_params, 6 * 2 * 384 * 1536);
    assert_int_equal(c.ff_touched, c.ff_params);
    assert_true(fabs(3 * c.flops - 67.4e6) <
                0.05e6); /* a training step is three times the forward pass */
    c = gpt_cost_of(4, 4, 128, 64, &(nn_ff_config){ .d_ff = 512, .act = AG_ACT_GELU_ERF });
    assert_int_equal(c.params, 804096);          /* nanoGPT: 0.80M */

    nn_mlp_config mlp = {
        .d_in = 784,
        .d_hidden = 100,
        .classes = 10,
        .n_layers = 1,
        .bias = true,
        .ff = { .d_ff = 400, .bias_in = true, .bias_out = true, .act = AG_ACT_RELU }
    };
    nn_model *m = mlp_new(&mlp);
    assert_int_equal(m->cost.params, 78500 + 40400 + 40100 + 1010);
    assert_true(m->cost.flops == 2 * (78400 + 40000 + 40000 + 1000));
    nn_model_free(m);
    mlp.ff = (nn_ff_config){
        .kind = NN_FF_SPARSE, .d_ff = 400, .bias_out = true, .block = 50, .controller_bias = true
    };
    m = mlp_new(&mlp);                           /* 8 blocks: d_lowrank 8 */
    assert_int_equal(m->cost.ff_params, 8 * 100 + 8 * 400 + 400 + 80000 + 100);
    assert_int_equal(m->cost.ff_touched, 8 * 100 + 8 * 400 + 400 + 2 * 100 * 8 + 100);
    nn_model_free(m);
}

/* Weights touched per token, as computed from the shapes of the paper's models. */
static void touched_weights(void **state)
{
    (void)state;
    static const struct {
        int64_t d, d_ff, block;
        nn_rank_rule rule;
        int64_t rank, touched;
    } ROWS[] = {
        { 1024, 4096, 64, NN_RANK_BLOCKS, 64, 463872 },
        { 1024, 4096, 64, NN_RANK_D_MODEL, 16, 218112 },
        { 1024, 4096, 128, NN_RANK_BLOCKS, 32, 234496 },
        { 1024, 6144, 64, NN_RANK_BLOCKS, 96, 891904 },
        { 384, 1536, 64, NN_RANK_BLOCKS, 24, 66432 },
        { 384, 1536, 64, NN_RANK_D_MODEL, 6, 31872 },
        { 128, 512, 64, NN_RANK_D_MODEL, 2, 3968 },
    };
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        nn_ff_config c = SPARSE;
        c.d_ff = ROWS[i].d_ff;
        c.block = ROWS[i].block;
        c.rank_rule = ROWS[i].rule;
        nn_params *p = nn_params_new(AG_F32);
        nn_ff ff;
        nn_ff_build(&ff, p, "ff", ROWS[i].d, &c);
        assert_int_equal(ff.config.d_lowrank, ROWS[i].rank);
        assert_int_equal(nn_ff_touched(&ff), ROWS[i].touched);
        assert_int_equal(nn_ff_params(&ff), p->n_used);
        nn_params_free(p);
    }
}

/* --- configurations that do not fit ----------------------------------------------------------- */

static void gpt_refused(const nn_gpt_config *c, const char *a, const char *b)
{
    nn_model *m = NULL;
    ag_err err = { 0 };
    assert_int_equal(nn_gpt_new(c, AG_F32, 1, &m, &err), AG_ECONFIG);
    if (!strstr(err.msg, a) || !strstr(err.msg, b)) fail_msg("%s or %s not in: %s", a, b, err.msg);
    assert_null(m);
}

/* No two places draw the same noise. */
static void sites_differ(void **state)
{
    (void)state;
    const nn_gpt_config c = gpt_small(&SPARSE);
    nn_model *m = gpt_new(&c);
    const nn_gpt *g = (const nn_gpt *)m;
    uint32_t site[64], n = 0;
    site[n++] = g->drop.site;
    for (int i = 0; i < c.n_layers; i++) {
        const nn_block *b = &g->block[i];
        const uint32_t more[] = { b->attention.site, b->attention.drop.site, b->ff.drop.site,
                                  b->ff.noise_site, b->ff.coin_site };
        memcpy(site + n, more, sizeof more);
        n += 5;
    }
    assert_int_equal(n, m->params->n_sites);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(site[i] < n);
        for (uint32_t j = 0; j < i; j++) assert_int_not_equal(site[i], site[j]);
    }
    nn_model_free(m);
}

static double rms(const nn_model *m, const char *name)
{
    const nn_item *item = nn_params_find(m->params, name);
    assert_non_null(item);
    double sum = 0;
    for (int64_t i = 0; i < item->count; i++) {
        const double w = (double)((const float *)item->tensor->data)[i];
        sum += w * w;
    }
    return sqrt(sum / (double)item->count);
}

/* Within 3 percent, for matrices of 64 x 64 and more. */
static void about(double got, double want) { assert_true(fabs(got - want) <= 0.03 * want); }

static void initial_scales(void **state)
{
    (void)state;
    nn_gpt_config c = { .vocab = 64, .context = 64, .n_layers = 2, .n_heads = 4, .d_model = 64,
                        .init_std = 0.02, .norm_eps = 1e-5, .ff = { .d_ff = 256 } };
    nn_model *m = NULL;
    assert_int_equal(nn_gpt_new(&c, AG_F32, 3, &m, NULL), AG_OK);
    about(rms(m, "embedding/token"), 0.02);
    about(rms(m, "head/weight"), 0.02);
    about(rms(m, "blocks/1/attention/qkv/weight"), 0.02);
    about(rms(m, "blocks/1/attention/out/weight"), 0.02 / 2);    /* sqrt(2 * 2 layers) */
    about(rms(m, "blocks/1/ff/in/weight"), 0.02);
    about(rms(m, "blocks/1/ff/out/weight"), 0.02 / 2);
    nn_model_free(m);

    c.ff = (nn_ff_config){ .kind = NN_FF_SPARSE, .d_ff = 256, .block = 16, .d_lowrank = 64 };
    for (int scaling = 0; scaling < 2; scaling++) {
        c.ff.kernel_scaling = scaling;
        assert_int_equal(nn_gpt_new(&c, AG_F32, 3, &m, NULL), AG_OK);
        const double glorot = sqrt(2.0 / (64 + 256));
        about(rms(m, "blocks/0/ff/c1/weight"), sqrt(2.0 / (64 + 64)));
        about(rms(m, "blocks/0/ff/c2/weight"), glorot);
        about(rms(m, "blocks/0/ff/in/weight"), glorot);
        about(rms(m, "blocks/0/ff/out/weight"), scaling ? 4 * glorot : glorot);
        nn_model_free(m);
    }
}

static void bad_configurations_are_named(void **state)
{
    (void)state;
    const nn_gpt_config good = gpt_small(&SPARSE);
    nn_gpt_config c;
#define REFUSED(field, value, a, b) c = good, c.field = value, gpt_refused(&c, a, b)
    REFUSED(vocab, 0, "vocab", "0");
    REFUSED(context, -1, "context", "-1");
    REFUSED(n_layers, 0, "n_layers", "0");
    REFUSED(n_heads, 3, "n_heads = 3", "d_model = 8");
    REFUSED(d_qk, -2, "d_qk = -2", "d_v");
    REFUSED(dropout, 1, "dropout", "1");
    REFUSED(dropout, NAN, "dropout", "nan");
    REFUSED(norm_eps, 0, "layer_norm_eps", "0");
    REFUSED(ff.d_ff, 0, "d_ff", "0");
    REFUSED(ff.block, 5, "ff.block = 5", "d_ff = 12");
    REFUSED(ff.block, 0, "ff.block = 0", "d_ff");
    REFUSED(ff.d_lowrank, -1, "ff.d_lowrank", "-1");
    REFUSED(ff.quant_prob, 1.5, "ff.quant_prob", "1.5");
    REFUSED(ff.temperature, -1, "ff.temperature", "-1");
    REFUSED(ff.dropout, -0.1, "dropout", "-0.1");
#undef REFUSED
    const nn_mlp_config mlp = {
        .d_in = 0, .d_hidden = 7, .classes = 4, .n_layers = 1, .ff = DENSE
    };
    ag_err err = { 0 };
    assert_int_equal(nn_mlp_check(&mlp, &err), AG_ECONFIG);
    assert_non_null(strstr(err.msg, "d_in = 0"));
}

static void out_of_memory_is_reported(void **state)
{
    (void)state;
    const nn_gpt_config c = gpt_small(&SPARSE);
    int failures = 0;
    for (int k = 1;; k++, failures++) {
        nn_model *m = NULL;
        ag_err err = { 0 };
        ag_fault_after(k, 0);
        const int r = nn_gpt_new(&c, AG_F32, 1, &m, &err);
        ag_fault_after(0, 0);
        if (r == AG_OK) {
            nn_model_free(m);
            break;
        }
        assert_int_equal(r, AG_ENOMEM);
        assert_int_equal(err.code, AG_ENOMEM);
        assert_null(m);
    }
    assert_true(failures >= 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt_gradients), cmocka_unit_test(mlp_gradients),
        cmocka_unit_test(parts_add_up), cmocka_unit_test(evaluation_has_no_noise),
        cmocka_unit_test(decoding_is_the_forward_pass), cmocka_unit_test(known_sizes),
        cmocka_unit_test(touched_weights), cmocka_unit_test(bad_configurations_are_named),
        cmocka_unit_test(sites_differ), cmocka_unit_test(initial_scales),
        cmocka_unit_test(out_of_memory_is_reported),
    };
    return cmocka_run_group_tests_name("models", tests, NULL, NULL);
}
