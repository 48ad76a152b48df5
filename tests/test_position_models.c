/*
 * test_position_models.c -- positional encodings in whole models: what is decoded token by token is
 * what is computed at once, and training starts elsewhere than evaluation.
 */
#include "tests/layer_check.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { D = 8, VOCAB = 7, CONTEXT = 12, S = 5 };

static const nn_position_config CASES[] = {
    { .type = NN_POSITION_TABLE, .max_offset = 5 },
    { .type = NN_POSITION_TABLE, .features = 6, .waves = true, .dropout = 0.2 },
    { .type = NN_POSITION_SIN_COS, .max_offset = 40 },
    { .type = NN_POSITION_FIXED_BASE, .max_offset = -1 },
    { .type = NN_POSITION_AXIAL, .rows = 3, .cols = 4, .row_width = 2 },
};
enum { N_CASES = sizeof CASES / sizeof *CASES, SINES = 2 };

static nn_gpt_config model_of(int i)
{
    return (nn_gpt_config){
        .vocab = VOCAB, .context = CONTEXT, .n_layers = 1, .n_heads = 2, .d_model = D,
        .norm_eps = 1e-5, .init_std = 0.3, .embedding = { .position = CASES[i] },
        .ff = { .d_ff = 16, .act = AG_ACT_GELU_ERF },
    };
}

enum { GPT, TRANSFORMER, TERRAFORMER, N_KINDS };

/* Models that read a source have S columns of it. */
static nn_model *model_new(int kind, const nn_gpt_config *g)
{
    const nn_transformer_config x = { .decoder = *g, .n_encoder_layers = 1, .source = S };
    nn_terraformer_config r = { .decoder = *g, .n_encoder_layers = 1, .source = S,
                                .target = CONTEXT, .attentions = 1, .one_stream = true };
    r.decoder.streams = (nn_streams_config){ .kind = NN_STREAMS_REBUILT };
    nn_model *m = NULL;
    ag_err err = { 0 };
    const int bad = kind == GPT         ? nn_gpt_new(g, AG_F64, SEED, &m, &err)
                  : kind == TRANSFORMER ? nn_transformer_new(&x, AG_F64, SEED, &m, &err)
                                        : nn_terraformer_new(&r, AG_F64, SEED, &m, &err);
    if (bad || nn_params_grads(m->params, &err)) fail_msg("%s", err.msg);
    params_shake(m->params);
    return m;
}

/* ids [2,CONTEXT - 1], of a transformer with the S source columns first */
static void logits_in_pieces(const nn_model *m, ag_tape *t, int64_t s)
{
    enum { N = CONTEXT - 1 };
    const int64_t width = s + N;
    int32_t ids[2 * 2 * CONTEXT], piece[2 * 2 * CONTEXT];
    for (int64_t e = 0; e < 2 * width; e++)
        ids[e] = (int32_t)(e * e % (VOCAB - 1) + 1);
    ag_kv_cache *cache = NULL;
    ag_err err = { 0 };
    ag_tape_no_grad(t, true);
    const ag_tensor *whole =
        nn_model_logits(m, t, ag_input_i32(t, AG_SHAPE(2, width), ids), NN_EVAL);
    assert_int_equal(nn_model_cache(m, 2, &cache, &err), AG_OK);
    for (int64_t at = 0, n = 4; at < N; at += n, n = 1) {
        const int64_t from = at ? s + at : 0, columns = at ? n : s + n;
        for (int64_t b = 0; b < 2; b++)
            memcpy(piece + b * columns, ids + b * width + from, (size_t)columns * sizeof *ids);
        const ag_tensor *y =
            nn_model_decode(m, t, ag_input_i32(t, AG_SHAPE(2, columns), piece), cache);
        tape_ok(t);
        for (int64_t b = 0; b < 2; b++)
            for (int64_t e = 0; e < n * VOCAB; e++)
                assert_true(fabs(((double *)y->data)[b * n * VOCAB + e] -
                                 ((double *)whole->data)[(b * N + at) * VOCAB + e]) <= 1e-12);
    }
    ag_kv_cache_free(cache);
}

static void decoding_is_the_whole_at_once(void **state)
{
    (void)state;
    for (int i = 0; i < N_KINDS * N_CASES; i++) {
        const int kind = i % N_KINDS;
        const nn_gpt_config g = model_of(i / N_KINDS);
        nn_model *m = model_new(kind, &g);
        ag_tape *t = tape_new();
        logits_in_pieces(m, t, kind == GPT ? 0 : S);
        ag_tape_free(t);
        nn_model_free(m);
    }
}

/* Not those of evaluation; source and target have starts of their own. */
static void models_train_from_any_start(void **state)
{
    (void)state;
    nn_gpt_config g = model_of(SINES);
    g.embedding.position.start_from_zero_prob = 0;
    for (int kind = 0; kind < N_KINDS; kind++) {
        nn_model *m = model_new(kind, &g);
        ag_tape *t = tape_new();
        noise(t, 1, 0, 2);
        ag_tensor *ids = integers(t, AG_SHAPE(2, S + 3), 1, VOCAB);
        const ag_tensor *y = nn_model_logits(m, t, ids, NN_TRAIN),
            *z = nn_model_logits(m, t, ids, NN_EVAL);
        tape_ok(t);
        assert_memory_not_equal(y->data, z->data, (size_t)y->size * sizeof(double));
        if (kind == TRANSFORMER) {
            const nn_transformer *x = (const nn_transformer *)m;
            assert_int_not_equal(x->source.position.site, x->embedding.position.site);
        }
        ag_tape_free(t);
        nn_model_free(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decoding_is_the_whole_at_once),
        cmocka_unit_test(models_train_from_any_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
