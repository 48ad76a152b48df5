/*
 * test_terraformer.c -- models on two residual streams, the Terraformer and the language model:
 * gradients, rebuilt and in fixed point against stored, memory by depth, what may depend on what,
 * decoding over a cache, checks and sizes.
 */
#include "tests/layer_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { B = 3, S = 6, T = 5, ROW = S + T, VOCAB = 11, CONTEXT = 8 };
static const int LENGTHS[B] = { 6, 2, 0 };

static nn_terraformer_config small(void)
{
    return (nn_terraformer_config){
        .decoder = { .vocab = VOCAB, .context = CONTEXT, .n_layers = 2, .n_heads = 2, .d_model = 8,
                     .norm_eps = 1e-5, .streams = { .kind = NN_STREAMS_REBUILT, .two_swaps = true },
                     .ff = { .kind = NN_FF_DENSE, .d_ff = 12, .bias_in = true, .bias_out = true,
                             .act = AG_ACT_GELU_TANH } },
        .n_encoder_layers = 2, .source = S, .target = T, .attentions = 2,
    };
}

/* Sparse projections in the decoder, a sparse feed-forward and recurrence in both. */
static nn_terraformer_config sparse(void)
{
    nn_terraformer_config c = small();
    c.decoder.attention = (nn_attention_config){ .type = NN_MAP_MULTCONV, .modules = 4,
                                                 .share_qk = true };
    c.decoder.ff = (nn_ff_config){ .kind = NN_FF_SPARSE, .d_ff = 16, .block = 4, .d_lowrank = 3,
                                   .bias_out = true, .controller_bias = true, .temperature = 0.1,
                                   .quant_prob = 0 };
    c.decoder.sru = (nn_sru_config){ .layers = 1, .units = 3 };
    c.decoder.head = (nn_head_config){ .type = NN_HEAD_MULT, .modules = 4,
                                         .prob_sparse = 1 };
    return c;
}

/* Of `kind`: dense, sparse, one attention and one swap, one stream between the parts; hashing. */
enum { KINDS = 4, HASHING = KINDS };
static nn_terraformer_config config_of(int kind)
{
    nn_terraformer_config c = kind == 1 ? sparse() : small();
    if (kind == 2) c.attentions = 1, c.decoder.streams.two_swaps = false;
    if (kind == 3) c.one_stream = true;
    if (kind == HASHING)
        c.decoder.attention.lsh = (nn_lsh_config){ .kind = NN_LSH_OWN, .chunk = 4, .rounds = 2 };
    return c;
}

static nn_model *model_new(const nn_terraformer_config *c, ag_dtype dtype)
{
    nn_model *m = NULL;
    ag_err err = { 0 };
    if (nn_terraformer_new(c, dtype, SEED, &m, &err) || nn_params_grads(m->params, &err))
        fail_msg("%s", err.msg);
    if (dtype == AG_F64) params_shake(m->params);
    return m;
}

/* The language model on two streams. */
static nn_model *lm_new(bool concatenate, nn_streams_config streams, int layers, ag_dtype dtype)
{
    const nn_terraformer_config c = sparse();
    nn_gpt_config g = c.decoder;
    nn_model *m = NULL;
    ag_err err = { 0 };
    g.n_layers = layers;
    g.streams = streams;
    g.streams.concatenate = concatenate;
    if (nn_gpt_new(&g, dtype, SEED, &m, &err) || nn_params_grads(m->params, &err))
        fail_msg("%s", err.msg);
    if (dtype == AG_F64) params_shake(m->params);
    return m;
}

static int32_t token(int b, int i) { return (int32_t)((b * 5 + i * 3) % (VOCAB - 1) + 1); }

/* A source of S columns, then the target one place later behind a 0. */
static void rows_of(int32_t ids[B * ROW], int32_t targets[B * T])
{
    for (int b = 0; b < B; b++) {
        for (int i = 0; i < S; i++) ids[b * ROW + i] = i < LENGTHS[b] ? token(b, i) : 0;
        for (int i = 0; i < T; i++) targets[b * T + i] = i < T - b ? token(b + 7, i) : -1;
        for (int i = 0; i < T; i++)
            ids[b * ROW + S + i] = i && targets[b * T + i - 1] > 0 ? targets[b * T + i - 1] : 0;
    }
}

/* --- gradients -------------------------------------------------------------------------------- */

static ag_tensor *logits(const void *layer, ag_tape *t, ag_tensor *x)
{
    return nn_model_logits(layer, t, x, NN_TRAIN);
}

static void gradients(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const nn_terraformer_config c = config_of(kind);
        nn_model *m = model_new(&c, AG_F64);
        check_subject(&(subject){ m->params, m, logits, AG_SHAPE(2, ROW), VOCAB });
        nn_model_free(m);
    }
    for (int side_by_side = 0; side_by_side < 2; side_by_side++) {
        nn_model *m = lm_new(side_by_side, (nn_streams_config){ .kind = NN_STREAMS_REBUILT,
                                                                .two_swaps = true }, 3, AG_F64);
        check_subject(&(subject){ m->params, m, logits, AG_SHAPE(2, CONTEXT), VOCAB });
        nn_model_free(m);
    }
}

/* --- rebuilt against stored ------------------------------------------------------------------- */

typedef struct outcome {
    double loss, *grad;              /* [n]; free it */
    int64_t n;
    ag_inverse inverse;
    size_t peak;
} outcome;

static double at(const void *x, ag_dtype dtype, int64_t i)
{
    return dtype == AG_F64 ? ((const double *)x)[i] : (double)((const float *)x)[i];
}

static outcome train_once(const nn_terraformer_config *c, ag_dtype dtype)
{
    nn_model *m = model_new(c, dtype);
    outcome r = { .n = m->params->n };
    int32_t ids[B * ROW], targets[B * T];
    rows_of(ids, targets);
    ag_tape *t =
        ag_tape_new(dtype == AG_F64 ? ag_kernels_ref(AG_F64) : ag_kernels_best(AG_F32, NULL));
    ag_tape_verify(t, true);
    ag_tape_noise(t, &(ag_noise_key){ 5, 2, 0, B });
    ag_tensor *loss = nn_model_loss(m, t, ag_input_i32(t, AG_SHAPE(B, ROW), ids),
                                    ag_input_i32(t, AG_SHAPE(B, T), targets), NN_TRAIN);
    r.loss = at(loss->data, dtype, 0);
    ag_backward(t, loss, 1);
    tape_ok(t);
    r.grad = malloc((size_t)r.n * sizeof *r.grad);
    for (int64_t i = 0; i < r.n; i++) r.grad[i] = at(m->params->grads, dtype, i);
    r.inverse = ag_tape_inverse(t);
    r.peak = ag_tape_bytes(t).peak;
    ag_tape_free(t);
    nn_model_free(m);
    return r;
}

/* |a - b| over |b|, as vectors */
static double apart(const outcome *a, const outcome *b)
{
    double d = 0, s = 0;
    for (int64_t i = 0; i < a->n; i++) {
        d += (a->grad[i] - b->grad[i]) * (a->grad[i] - b->grad[i]);
        s += b->grad[i] * b->grad[i];
    }
    return sqrt(d / s);
}

/* With dropout, and hard steps that choose. */
static nn_terraformer_config noisy(int kind)
{
    nn_terraformer_config c = config_of(kind);
    c.decoder.dropout = c.decoder.embedding_dropout = c.decoder.ff.dropout = 0.1;
    c.decoder.ff.quant_prob = 1;
    return c;
}

static void equals_stored(void **state)
{
    (void)state;
    for (int kind = 0; kind <= HASHING; kind++)
        for (int i = 0; i < 2; i++) {
            const ag_dtype dtype = i ? AG_F32 : AG_F64;
            nn_terraformer_config c = noisy(kind);
            outcome a = train_once(&c, dtype);
            c.decoder.streams.kind = NN_STREAMS_STORED;
            outcome b = train_once(&c, dtype);
            assert_true(fabs(a.loss - b.loss) <= (i ? 1e-6 : 1e-13));
            assert_true(apart(&a, &b) <= (i ? 1e-5 : 1e-12));
            /* padding is a row of zeros, where layer norm multiplies rounding by 1/sqrt(eps) */
            assert_true(a.inverse.error <= (i ? 5e-3 : 1e-11));
            assert_int_equal(a.inverse.stacks, 2);
            assert_int_equal(b.inverse.stacks, 0);
            free(a.grad);
            free(b.grad);
        }
}

static void fixed_point(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        nn_terraformer_config c = noisy(kind);
        c.decoder.streams.point = 26;
        outcome a = train_once(&c, AG_F64);
        c.decoder.streams = (nn_streams_config){ .kind = NN_STREAMS_STORED,
                                                 .two_swaps = c.decoder.streams.two_swaps };
        outcome b = train_once(&c, AG_F64);
        assert_true(a.inverse.error == 0);
        assert_true(a.inverse.headroom > 2);
        assert_true(apart(&a, &b) <= 1e-6);
        free(a.grad);
        free(b.grad);
    }
}

/* --- memory ----------------------------------------------------------------------------------- */

/* Peak of a planned step of a language model `layers` deep, without integers that it recalls. */
static size_t peak_of(nn_streams_config streams, int layers)
{
    nn_gpt_config g = small().decoder;
    nn_model *m = NULL;
    ag_err err = { 0 };
    g.context = 128, g.d_model = 64, g.ff.d_ff = 256;
    g.n_layers = layers;
    g.streams = streams;
    assert_int_equal(nn_gpt_plan(&g, AG_F32, &m, &err), AG_OK);
    assert_int_equal(nn_params_grads(m->params, &err), AG_OK);
    ag_tape *t = ag_tape_new(ag_kernels_best(AG_F32, NULL));
    ag_tape_plan(t, true);
    static const int32_t ids[4 * 128];
    ag_tensor *loss = nn_model_loss(m, t, ag_input_i32(t, AG_SHAPE(4, 128), ids),
                                    ag_input_i32(t, AG_SHAPE(4, 128), ids), NN_TRAIN);
    ag_backward(t, loss, 1);
    tape_ok(t);
    const size_t peak = ag_tape_bytes(t).peak;
    ag_tape_free(t);
    nn_model_free(m);
    return peak;
}

static void depth_costs_no_memory(void **state)
{
    (void)state;
    for (int point = 0; point <= 20; point += 20) {
        const nn_streams_config c = { .kind = NN_STREAMS_REBUILT, .point = point,
                                      .two_swaps = true };
        const size_t few = peak_of(c, 4), many = peak_of(c, 64);
        assert_true(many <= few + few / 20 && few <= many);
    }
    const nn_streams_config all = { .kind = NN_STREAMS_STORED, .two_swaps = true };
    assert_true(peak_of(all, 64) > 10 * peak_of(all, 4));
}

/* --- what depends on what --------------------------------------------------------------------- */

static ag_tensor *evaluated(const nn_model *m, ag_tape *t, const int32_t *ids, int64_t batch)
{
    ag_tensor *y = nn_model_logits(m, t, ag_input_i32(t, AG_SHAPE(batch, ROW), ids), NN_EVAL);
    tape_ok(t);
    return y;
}

static bool differs(const ag_tensor *a, const ag_tensor *b, int item, int i)
{
    const size_t from = (size_t)((item * T + i) * VOCAB);
    return memcmp((double *)a->data + from, (double *)b->data + from, VOCAB * sizeof(double)) != 0;
}

/* A token of the target changes what follows it, one of the source all of its item, and no other
 * item hears of either. */
static void depends(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        nn_terraformer_config c = config_of(kind);
        if (kind == 1) c.decoder.ff.scaled = true;       /* units that stay may hide a change */
        nn_model *m = model_new(&c, AG_F64);
        int32_t ids[B * ROW], other[B * ROW], targets[B * T];
        rows_of(ids, targets);
        ag_tape *t = tape_new();
        ag_tape_no_grad(t, true);
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

/* An item has the same logits alone, without the padding that others need. */
static void padding_is_not_seen(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        nn_terraformer_config c = config_of(kind);
        nn_model *m = model_new(&c, AG_F64);
        c.source = LENGTHS[1];
        nn_model *narrow = model_new(&c, AG_F64);
        int32_t ids[B * ROW], targets[B * T], one[2 + T];
        rows_of(ids, targets);
        memcpy(one, ids + ROW, 2 * sizeof *one);
        memcpy(one + 2, ids + ROW + S, T * sizeof *one);
        ag_tape *t = tape_new();
        const ag_tensor *y = evaluated(m, t, ids, B);
        const ag_tensor *z = nn_model_logits(narrow, t, ag_input_i32(t, AG_SHAPE(1, 2 + T), one),
                                             NN_EVAL);
        tape_ok(t);
        for (int i = 0; i < T * VOCAB; i++)
            assert_true(fabs(at(y->data, AG_F64, T * VOCAB + i) - at(z->data, AG_F64, i)) <= 1e-12);
        ag_tape_free(t);
        nn_model_free(m);
        nn_model_free(narrow);
    }
}

/* --- decoding --------------------------------------------------------------------------------- */

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
            const double want = at(whole->data, whole->dtype, (b * T + at0) * VOCAB + rest);
            assert_true(fabs(at(y->data, y->dtype, i) - want) <= tol * (1 + fabs(want)));
        }
    }
}

static void decoding(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * KINDS; i++) {
        nn_terraformer_config c = config_of(i / 2);
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
        for (int first = 1; first <= T; first++) {
            ag_kv_cache_reset(cache, 0);
            decode(m, t, cache, ids, whole, first, i % 2 ? 2e-6 : 1e-12);
        }
        ag_kv_cache_free(cache);
        ag_tape_free(t);
        nn_model_free(m);
    }
}

/* Rows of a cache in another order, each with its own source. */
static void beams_change_places(void **state)
{
    (void)state;
    const nn_terraformer_config c = sparse();
    nn_model *m = model_new(&c, AG_F64);
    int32_t ids[B * ROW], targets[B * T], part[B * (S + 1)], next[B];
    static const int32_t order[B] = { 2, 0, 1 };
    rows_of(ids, targets);
    ag_tape *t = tape_new();
    ag_tape_no_grad(t, true);
    const ag_tensor *whole = evaluated(m, t, ids, B);
    ag_kv_cache *cache = NULL;
    ag_err err = { 0 };
    assert_int_equal(nn_model_cache(m, B, &cache, &err), AG_OK);
    for (int b = 0; b < B; b++) {
        memcpy(part + b * (S + 1), ids + b * ROW, (S + 1) * sizeof *part);
        next[b] = ids[order[b] * ROW + S + 1];
    }
    nn_model_decode(m, t, ag_input_i32(t, AG_SHAPE(B, S + 1), part), cache);
    assert_int_equal(ag_kv_cache_select(cache, order), AG_OK);
    const ag_tensor *y = nn_model_decode(m, t, ag_input_i32(t, AG_SHAPE(B, 1), next), cache);
    tape_ok(t);
    for (int i = 0; i < B * VOCAB; i++) {
        const double want = at(whole->data, AG_F64, (order[i / VOCAB] * T + 1) * VOCAB + i % VOCAB);
        assert_true(fabs(at(y->data, AG_F64, i) - want) <= 1e-12);
    }
    ag_kv_cache_free(cache);
    ag_tape_free(t);
    nn_model_free(m);
}

/* --- checks and sizes ------------------------------------------------------------------------- */

static void refused(void **state)
{
    (void)state;
    const nn_terraformer_config good = small();
    nn_terraformer_config bad[8];
    static const char *const want[8] = { "n_encoder_layers = 0", "source = 9", "target = 0",
                                         "start vector", "patterns are for a gpt", "two streams",
                                         "n_attention_layers", "reversible_bits = 31" };
    for (int i = 0; i < 8; i++) bad[i] = good;
    bad[0].n_encoder_layers = 0;
    bad[1].source = CONTEXT + 1;
    bad[2].target = 0;
    bad[3].decoder.embedding.start = true;
    bad[4].decoder.pattern = "local(2)";
    bad[5].decoder.streams.kind = NN_STREAMS_ONE;
    bad[6].attentions = 3;
    bad[7].decoder.streams.point = 31;
    nn_model *m = NULL;
    assert_int_equal(nn_terraformer_check(&good, NULL), AG_OK);
    for (int i = 0; i < 8; i++) {
        ag_err err = { 0 };
        assert_int_equal(nn_terraformer_new(&bad[i], AG_F32, 1, &m, &err), AG_ECONFIG);
        if (!strstr(err.msg, want[i])) fail_msg("'%s' does not say '%s'", err.msg, want[i]);
    }
}

static void wrong_rows_are_refused(void **state)
{
    (void)state;
    const nn_terraformer_config c = small();
    nn_model *m = model_new(&c, AG_F64);
    static const int32_t ids[2 * (S + T + 1)];
    for (int extra = 0; extra <= T + 1; extra += T + 1) {
        ag_tape *t = tape_new();
        nn_model_logits(m, t, ag_input_i32(t, AG_SHAPE(2, S + extra), ids), NN_EVAL);
        assert_int_equal(ag_error(t), AG_ESHAPE);
        assert_non_null(strstr(ag_error_message(t), "wanted ids [b,6+t]"));
        ag_tape_free(t);
    }
    nn_model_free(m);
}

/* The published sizes of Terraformer medium. */
static void medium(void **state)
{
    (void)state;
    enum { D = 1024, FF = 6144, MAX = 32768, V = 32000 };
    const nn_terraformer_config c = {
        .decoder = { .vocab = V, .context = MAX, .n_layers = 24, .n_heads = 16, .d_model = D,
                     .bias = true, .norm_eps = 1e-6,
                     .streams = { .kind = NN_STREAMS_REBUILT, .two_swaps = true },
                     .ff = { .kind = NN_FF_SPARSE, .d_ff = FF, .block = 64, .d_lowrank = 96,
                             .bias_out = true, .controller_bias = true, .temperature = 0.1,
                             .quant_prob = 0.3 },
                     .sru = { .layers = 1, .units = 32 },
                     .attention = { .type = NN_MAP_MULTCONV, .modules = 16 },
                     .head = { .type = NN_HEAD_MULT, .modules = 4, .prob_sparse = 1 } },
        .n_encoder_layers = 24, .source = 512, .target = 256, .attentions = 2,
    };
    nn_model *m = NULL;
    ag_err err = { 0 };
    if (nn_terraformer_plan(&c, AG_F32, &m, &err)) fail_msg("%s", err.msg);
    const double M = 1e6, encoder = (double)nn_params_below(m->params, "encoder/"),
        decoder = (double)nn_params_below(m->params, "decoder/");
    assert_true(fabs(encoder - 421 * M) < M && fabs(decoder - 328 * M) < M);
    assert_int_equal(nn_params_below(m->params, "embedding/token"), V * D);
    assert_int_equal(nn_params_below(m->params, "source/position"), (int64_t)MAX * D);
    assert_true(fabs((double)m->cost.head_params - 8.2 * M) < 0.1 * M);
    nn_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients), cmocka_unit_test(equals_stored),
        cmocka_unit_test(fixed_point), cmocka_unit_test(depth_costs_no_memory),
        cmocka_unit_test(depends), cmocka_unit_test(padding_is_not_seen),
        cmocka_unit_test(decoding), cmocka_unit_test(beams_change_places),
        cmocka_unit_test(refused), cmocka_unit_test(wrong_rows_are_refused),
        cmocka_unit_test(medium),
    };
    return cmocka_run_group_tests_name("terraformer", tests, NULL, NULL);
}
