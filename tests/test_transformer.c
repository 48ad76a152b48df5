/*
 * test_transformer.c -- the encoder-decoder: loss and every gradient against PyTorch in float64
 * (golden/make_transformer.py), what may depend on what, decoding over a cache, checks and sizes.
 */
#include "tests/layer_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "golden/values_transformer.inc"

enum { B = 3, S = 6, T = 5, ROW = S + T, VOCAB = 11, CONTEXT = 7 };
static const int LENGTHS[B] = { 6, 2, 0 };

static nn_transformer_config small(void)
{
    return (nn_transformer_config){
        .decoder = { .vocab = VOCAB, .context = CONTEXT, .n_layers = 2, .n_heads = 2, .d_model = 8,
                     .d_qk = 3, .d_v = 5, .bias = true, .norm_eps = 1e-5,
                     .ff = { .kind = NN_FF_DENSE, .d_ff = 12, .bias_in = true, .bias_out = true,
                             .act = AG_ACT_RELU } },
        .n_encoder_layers = 2, .source = S,
    };
}

/* Sparse projections in the decoder, a sparse feed-forward and recurrence in both. */
static nn_transformer_config sparse(void)
{
    nn_transformer_config c = small();
    c.decoder.d_qk = c.decoder.d_v = 0;
    c.decoder.attention = (nn_attention_config){ .type = NN_MAP_MULTCONV, .modules = 4,
                                                 .share_qk = true };
    c.decoder.ff = (nn_ff_config){ .kind = NN_FF_SPARSE, .d_ff = 16, .block = 4, .d_lowrank = 3,
                                   .bias_out = true, .controller_bias = true, .temperature = 0.1,
                                   .quant_prob = 0 };
    c.decoder.sru = (nn_sru_config){ .layers = 1, .units = 3 };
    return c;
}

static nn_model *model_new(const nn_transformer_config *c, ag_dtype dtype)
{
    nn_model *m = NULL;
    ag_err err = { 0 };
    if (nn_transformer_new(c, dtype, SEED, &m, &err) || nn_params_grads(m->params, &err))
        fail_msg("%s", err.msg);
    if (dtype == AG_F64) params_shake(m->params);
    return m;
}

/* Columns `S` of source, then the target one place later behind a 0. */
static int32_t token(int b, int i) { return (int32_t)((b * 5 + i * 3) % (VOCAB - 1) + 1); }

static void rows_of(int32_t ids[B * ROW], int32_t targets[B * T])
{
    for (int b = 0; b < B; b++) {
        for (int i = 0; i < S; i++) ids[b * ROW + i] = i < LENGTHS[b] ? token(b, i) : 0;
        for (int i = 0; i < T; i++) targets[b * T + i] = i < T - b ? token(b + 7, i) : -1;
        for (int i = 0; i < T; i++)
            ids[b * ROW + S + i] = i && targets[b * T + i - 1] > 0 ? targets[b * T + i - 1] : 0;
    }
}

/* --- PyTorch ---------------------------------------------------------------------------------- */

/* Element e of parameter i, as in make_transformer.py. */
static double fill(uint32_t i, uint32_t e)
{
    uint32_t h = (i * 1000003u + e) * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    return ((double)(h >> 16) / 65536 - 0.5) * 0.5;
}

static void same(const char *what, int64_t i, double got, double want, double tol)
{
    if (!(fabs(got - want) <= tol * (1 + fabs(want))))
        fail_msg("%s %lld is %.12g, wanted %.12g", what, (long long)i, got, want);
}

static void as_pytorch(void **state)
{
    (void)state;
    const nn_transformer_config c = small();
    nn_model *m = model_new(&c, AG_F64);
    const nn_params *p = m->params;
    assert_int_equal(p->n_items, sizeof golden_item / sizeof *golden_item);
    for (int i = 0; i < p->n_items; i++) {
        const nn_item *x = &p->items[i];
        const char *last = strrchr(x->name, '/');
        assert_string_equal(x->name, golden_item[i].name);
        assert_int_equal(x->count, golden_item[i].count);
        for (int64_t e = 0; e < x->count; e++)
            ((double *)x->tensor->data)[e] =
                fill((uint32_t)i, (uint32_t)e) + (strcmp(last, "/gain") ? 0 : 1);
    }
    int32_t ids[B * ROW], targets[B * T];
    rows_of(ids, targets);
    ag_tape *t = tape_new();
    ag_tensor *loss = nn_model_loss(m, t, ag_input_i32(t, AG_SHAPE(B, ROW), ids),
                                    ag_input_i32(t, AG_SHAPE(B, T), targets), NN_TRAIN);
    assert_int_equal(ag_backward(t, loss, 1), AG_OK);
    same("loss", 0, *(double *)loss->data, golden_loss, 1e-12);
    const double *want = golden_grad;
    for (int i = 0; i < p->n_items; i++)
        for (int64_t e = 0; e < p->items[i].count; e++)
            same(p->items[i].name, e, ((double *)p->items[i].tensor->grad)[e], *want++, 1e-11);
    ag_tape_free(t);
    nn_model_free(m);
}

/* --- gradients -------------------------------------------------------------------------------- */

static ag_tensor *logits(const void *layer, ag_tape *t, ag_tensor *x)
{
    return nn_model_logits(layer, t, x, NN_TRAIN);
}

static void gradients(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        nn_transformer_config c = i ? sparse() : small();
        c.decoder.bias = false;      /* that of a key changes nothing */
        nn_model *m = model_new(&c, AG_F64);
        check_subject(&(subject){ m->params, m, logits, AG_SHAPE(2, ROW), VOCAB });
        nn_model_free(m);
    }
}

/* --- what depends on what --------------------------------------------------------------------- */

static ag_tensor *evaluated(const nn_model *m, ag_tape *t, const int32_t *ids, int64_t batch)
{
    ag_tensor *y = nn_model_logits(m, t, ag_input_i32(t, AG_SHAPE(batch, ROW), ids), NN_EVAL);
    tape_ok(t);
    return y;
}

/* Whether the logits of a position of a target have other bits. */
static bool differs(const ag_tensor *a, const ag_tensor *b, int item, int i)
{
    const size_t at = (size_t)((item * T + i) * VOCAB);
    return memcmp((double *)a->data + at, (double *)b->data + at, VOCAB * sizeof(double)) != 0;
}

/* A token of the target changes what follows it, one of the source all of its item, and no other
 * item hears of either. */
static void depends(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        const nn_transformer_config c = kind ? sparse() : small();
        nn_model *m = model_new(&c, AG_F64);
        int32_t ids[B * ROW], other[B * ROW], targets[B * T];
        rows_of(ids, targets);
        ag_tape *t = tape_new();
        const ag_tensor *y = evaluated(m, t, ids, B);
        for (int b = 0; b < B; b++)
            for (int column = 0; column < ROW; column++) {
                if (column < S && column >= LENGTHS[b]) continue;
                memcpy(other, ids, sizeof ids);
                other[b * ROW + column] = other[b * ROW + column] % (VOCAB - 1) + 1;
                const ag_tensor *z = evaluated(m, t, other, B);
                for (int item = 0; item < B; item++)
                    for (int i = 0; i < T; i++)
                        assert_int_equal(differs(y, z, item, i),
                                         item == b && (column < S || i >= column - S));
            }
        ag_tape_free(t);
        nn_model_free(m);
    }
}

/* What stands behind a source, token and position, is seen by nobody: an item has the same bits
 * alone, and with other weights there. */
static void padding_is_not_seen(void **state)
{
    (void)state;
    const nn_transformer_config c = small();
    nn_model *m = model_new(&c, AG_F64);
    int32_t ids[B * ROW], targets[B * T];
    rows_of(ids, targets);
    ag_tape *t = tape_new();
    const ag_tensor *y = evaluated(m, t, ids, B), *alone = evaluated(m, t, ids + ROW, 1);
    assert_memory_equal((double *)y->data + T * VOCAB, alone->data, T * VOCAB * sizeof(double));
    ag_tensor *position = nn_params_find(m->params, "source/position")->tensor;
    for (int64_t e = LENGTHS[1] * 8; e < position->size; e++) ((double *)position->data)[e] += 100;
    const ag_tensor *moved = evaluated(m, t, ids, B);
    for (int i = 0; i < T; i++) {
        assert_true(differs(y, moved, 0, i));
        assert_false(differs(y, moved, 1, i) || differs(y, moved, 2, i));
    }
    ag_tape_free(t);
    nn_model_free(m);
}

/* --- decoding --------------------------------------------------------------------------------- */

static double at(const ag_tensor *x, int64_t i)
{
    return x->dtype == AG_F64 ? ((double *)x->data)[i] : (double)((float *)x->data)[i];
}

/* The source with `first` tokens, then one token at a time: the logits of all at once. */
static void decode(const nn_model *m, ag_tape *t, ag_kv_cache *cache, const int32_t *ids,
                   const ag_tensor *whole, int first, double tol)
{
    int32_t part[B * ROW];
    for (int at0 = 0; at0 < T; at0 += at0 ? 1 : first) {
        const int n = at0 ? 1 : S + first, from = at0 ? S + at0 : 0, rows = at0 ? 1 : first;
        for (int b = 0; b < B; b++)
            memcpy(part + b * n, ids + b * ROW + from, (size_t)n * sizeof *part);
        const ag_tensor *y = nn_model_decode(m, t, ag_input_i32(t, AG_SHAPE(B, n), part), cache);
        tape_ok(t);
        assert_int_equal(y->shape.dim[1], rows);
        assert_int_equal(ag_kv_cache_length(cache), at0 + rows);
        for (int64_t i = 0; i < y->size; i++) {
            const int64_t b = i / (rows * VOCAB), rest = i % (rows * VOCAB);
            same("logit", i, at(y, i), at(whole, (b * T + at0) * VOCAB + rest), tol);
        }
    }
}

static void decoding(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        const nn_transformer_config c = i / 2 ? sparse() : small();
        const ag_dtype dtype = i % 2 ? AG_F32 : AG_F64;
        nn_model *m = model_new(&c, dtype);
        int32_t ids[B * ROW], targets[B * T];
        rows_of(ids, targets);
        ag_tape *t = ag_tape_new(i % 2 ? ag_kernels_best(AG_F32, NULL) : ag_kernels_ref(AG_F64));
        ag_tape_no_grad(t, true);
        const ag_tensor *whole = evaluated(m, t, ids, B);
        ag_kv_cache *cache = NULL;
        ag_err err = { 0 };
        assert_int_equal(nn_model_cache(m, B, &cache, &err), AG_OK);
        for (int first = 1; first <= T; first++) {   /* one cache for text after text */
            ag_kv_cache_reset(cache, 0);
            decode(m, t, cache, ids, whole, first, i % 2 ? 1e-6 : 1e-13);
        }
        ag_kv_cache_free(cache);
        ag_tape_free(t);
        nn_model_free(m);
    }
}

/* --- checks and sizes ------------------------------------------------------------------------- */

static void refused(void **state)
{
    (void)state;
    const nn_transformer_config good = small();
    nn_transformer_config bad[5] = { good, good, good, good, good };
    static const char *const want[] = { "n_encoder_layers = 0", "source = 0", "start vector",
                                        "patterns are for a gpt", "gpt: n_heads = 0" };
    bad[0].n_encoder_layers = 0;
    bad[1].source = 0;
    bad[2].decoder.embedding.start = true;
    bad[3].decoder.pattern = "local(2)";
    bad[4].decoder.n_heads = 0;
    nn_model *m = NULL;
    assert_int_equal(nn_transformer_check(&good, NULL), AG_OK);
    for (int i = 0; i < 5; i++) {
        ag_err err = { 0 };
        assert_int_equal(nn_transformer_new(&bad[i], AG_F32, 1, &m, &err), AG_ECONFIG);
        if (!strstr(err.msg, want[i])) fail_msg("'%s' does not say '%s'", err.msg, want[i]);
    }
}

static void a_row_without_a_target_is_refused(void **state)
{
    (void)state;
    const nn_transformer_config c = small();
    nn_model *m = model_new(&c, AG_F64);
    ag_tape *t = tape_new();
    static const int32_t ids[2 * S] = { 0 };
    nn_model_logits(m, t, ag_input_i32(t, AG_SHAPE(2, S), ids), NN_EVAL);
    assert_int_equal(ag_error(t), AG_ESHAPE);
    assert_non_null(strstr(ag_error_message(t), "wanted ids [b,6+t]"));
    ag_tape_free(t);
    nn_model_free(m);
}

static void sizes(void **state)
{
    (void)state;
    const nn_transformer_config c = small();
    nn_model *m = NULL;
    ag_err err = { 0 };
    assert_int_equal(nn_transformer_plan(&c, AG_F32, &m, &err), AG_OK);
    enum { D = 8, H = 2 * 3, V = 2 * 5, FF = 12 };
    const int64_t norm = 2 * D, self = (2 * H + V) * (D + 1) + D * (V + 1),
        cross = (2 * H + V) * (D + 1) + D * (V + 1), ff = FF * (D + 1) + D * (FF + 1);
    const int64_t encoder = 2 * (2 * norm + self + ff), tokens = VOCAB * D;
    const int64_t decoder = 2 * (3 * norm + self + cross + ff);
    assert_int_equal(m->cost.params, tokens + (CONTEXT + S) * D + encoder + norm + decoder + norm +
                                         tokens);
    assert_int_equal(m->cost.ff_params, 4 * ff);
    assert_int_equal(m->cost.head_params, tokens);
    assert_int_equal(m->cost.attention_params, 2 * self + 2 * (self + cross));
    /* one row of each table; not the keys' and values' weights, whose results are kept */
    assert_int_equal(m->cost.touched, 2 * D + decoder + norm + tokens - 2 * (H + V) * D);
    const double pair = 2 * (3 + 5), row = (H + H + V) * D + V * D + 2 * FF * D;
    const double source = 2 * (S * row + S * S * pair) + 2 * S * (H + V) * D,
        target = 2 * CONTEXT * (row + (H + V) * D + ((CONTEXT + 1) / 2.0 + S) * pair);
    const double want = 2 * ((source + target) / CONTEXT + tokens);
    assert_true(fabs(m->cost.flops - want) < 1e-9 * want);
    assert_int_equal(m->source, S);
    assert_ptr_equal(m->ff_layer(m, 0), &((nn_transformer *)m)->encoder[0].ff);
    assert_ptr_equal(m->ff_layer(m, 3), &((nn_transformer *)m)->decoder[1].ff);
    assert_null(m->ff_layer(m, 4));
    nn_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_pytorch), cmocka_unit_test(gradients), cmocka_unit_test(depends),
        cmocka_unit_test(padding_is_not_seen), cmocka_unit_test(decoding),
        cmocka_unit_test(refused), cmocka_unit_test(a_row_without_a_target_is_refused),
        cmocka_unit_test(sizes),
    };
    return cmocka_run_group_tests_name("transformer", tests, NULL, NULL);
}
