/*
 * test_sparse_transformer.c -- the model of Sparse Transformers (1904.10509) but for its patterns:
 * structured positions, the start vector, initial weights, dropout at branch ends, and the gates
 * that hold before any training.
 */
#include "tests/layer_check.h"

#include "optim/optim.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { D = 5, VOCAB = 7, CONTEXT = 12 };

static const nn_embedding_config POSITIONS[] = {
#define POSITION(kind, begins, ...)                                                               \
    { .vocab = VOCAB, .d_model = D, .token_std = 0.5, .start = begins,                            \
      .position = { .type = NN_POSITION_##kind, .context = CONTEXT, .d_model = D, .std = 0.5,     \
                    __VA_ARGS__ } }
    POSITION(TABLE, false, .width = 0), POSITION(TABLE, true, .width = 0),
    POSITION(NONE, false, .width = 0),  POSITION(NONE, true, .width = 0),
    POSITION(GRID, false, .stride = 3), POSITION(GRID, true, .stride = 5),
    POSITION(GRID, false, .stride = 5), POSITION(IMAGE, false, .width = 2, .channels = 3),
    POSITION(IMAGE, false, .width = 5, .channels = 1),
    POSITION(IMAGE, true, .width = 2, .channels = 2),
};
enum { N_POSITIONS = sizeof POSITIONS / sizeof *POSITIONS };

/* ids [b,t] as the model gets them: with a start, that comes first and the last is left out. */
static ag_tensor *shifted(ag_tape *t, const ag_tensor *ids, int32_t start)
{
    const int64_t n = ids->shape.dim[1];
    int32_t x[MAX_SIZE];
    for (int64_t i = 0; i < ids->size; i++)
        x[i] = i % n ? ((const int32_t *)ids->data)[i - 1] : start;
    return ag_input_i32(t, ids->shape, x);
}

/* --- embeddings ------------------------------------------------------------------------------- */

static ag_tensor *whole(const void *layer, ag_tape *t, ag_tensor *ids)
{
    const nn_embedding *l = layer;
    return nn_embedding_forward(l, t, l->start ? shifted(t, ids, VOCAB) : ids, 0, NN_TRAIN);
}

static void gradients_of_embeddings(void **state)
{
    (void)state;
    for (int i = 0; i < N_POSITIONS; i++) {
        nn_params *p = nn_params_new(AG_F64);
        nn_embedding l;
        nn_embedding_build(&l, p, "embedding", &POSITIONS[i]);
        params_ready(p);
        check_subject(&(subject){ p, &l, whole, AG_SHAPE(2, CONTEXT), VOCAB });
        nn_params_free(p);
    }
}

static double weight(const nn_params *p, const char *name, int64_t row, int64_t j)
{
    const nn_item *item = nn_params_find(p, name);
    assert_non_null(item);
    assert_in_range(row, 0, item->tensor->shape.dim[0] - 1);
    return ((double *)item->tensor->data)[row * D + j];
}

/* What is added at position i: 1904.10509 section 5.3, written out. */
static double position_of(const nn_params *p, const nn_position_config *c, int64_t i, int64_t j)
{
    switch (c->type) {
    case NN_POSITION_TABLE: return weight(p, "e/position", i, j);
    case NN_POSITION_GRID:
        return weight(p, "e/row", i / c->stride, j) + weight(p, "e/column", i % c->stride, j);
    case NN_POSITION_IMAGE: {
        const int64_t pixel = i / c->channels;
        return weight(p, "e/row", pixel / c->width, j) +
               weight(p, "e/column", pixel % c->width, j) +
               weight(p, "e/channel", i % c->channels, j);
    }
    default: return 0;
    }
}

/* All at once, and in pieces as decoding does it. */
static void embeddings_are_their_formula(void **state)
{
    (void)state;
    static const int64_t CUTS[][2] = { { 0, CONTEXT }, { 0, 1 }, { 1, 1 }, { 2, 7 }, { 9, 3 } };
    for (int i = 0; i < N_POSITIONS; i++)
        for (int k = 0; k < 5; k++) {
            const nn_embedding_config *c = &POSITIONS[i];
            const int64_t from = CUTS[k][0], n = CUTS[k][1], first = from - (c->start ? 1 : 0);
            nn_params *p = nn_params_new(AG_F64);
            nn_embedding l;
            nn_embedding_build(&l, p, "e", c);
            params_ready(p);
            ag_tape *t = tape_new();
            int32_t ids[2 * CONTEXT];
            for (int64_t e = 0; e < 2 * n; e++) ids[e] = (int32_t)(e * e % VOCAB);
            for (int b = 0; b < 2 && c->start && from == 0; b++) ids[b * n] = VOCAB;
            const ag_tensor *y =
                nn_embedding_forward(&l, t, ag_input_i32(t, AG_SHAPE(2, n), ids), from, NN_TRAIN);
            tape_ok(t);
            for (int64_t e = 0; e < y->size; e++) {
                const int64_t row = e / D, j = e % D, at = first + row % n;
                const double want = at < 0 ? weight(p, "e/start", 0, j)
                                           : weight(p, "e/token", ids[row], j) +
                                                 position_of(p, &c->position, at, j);
                assert_true(fabs(((double *)y->data)[e] - want) <= 1e-14);
            }
            ag_tape_free(t);
            nn_params_free(p);
        }
}

static void positions_end_with_the_context(void **state)
{
    (void)state;
    for (int i = 0; i < N_POSITIONS; i++) {
        if (POSITIONS[i].position.type == NN_POSITION_NONE) continue;
        nn_params *p = nn_params_new(AG_F64);
        nn_embedding l;
        nn_embedding_build(&l, p, "e", &POSITIONS[i]);
        params_ready(p);
        ag_tape *t = tape_new();
        const int64_t end = CONTEXT + (POSITIONS[i].start ? 1 : 0);
        ag_tensor *ids = ag_input_i32(t, AG_SHAPE(1, 2), (int32_t[2]){ 0 });
        nn_embedding_forward(&l, t, ids, end - 2, NN_EVAL);
        tape_ok(t);
        nn_embedding_forward(&l, t, ids, end - 1, NN_EVAL);
        assert_int_equal(ag_error(t), AG_ERANGE);
        ag_tape_free(t);
        nn_params_free(p);
    }
}

/* --- the model -------------------------------------------------------------------------------- */

/* A small one with all that the paper asks for, and heads of unequal widths. */
static nn_gpt_config small(void)
{
    return (nn_gpt_config){
        .vocab = VOCAB, .context = CONTEXT, .n_layers = 2, .n_heads = 2, .d_model = 8, .d_qk = 2,
        .bias = true, .init = NN_INIT_RELEASED, .norm_eps = 1e-5, .final_norm_eps = 1e-6,
        .embedding = { .position = { .type = NN_POSITION_GRID, .stride = 5 }, .start = true },
        .ff = { .d_ff = 16, .bias_in = true, .bias_out = true, .act = AG_ACT_GELU_QUICK },
        .attention = { .keep_weights = true }, .head = { .zero = true },
    };
}

static nn_model *model_new(const nn_gpt_config *c, ag_dtype dtype)
{
    nn_model *m = NULL;
    ag_err err = { 0 };
    if (nn_gpt_new(c, dtype, SEED, &m, &err) || nn_params_grads(m->params, &err))
        fail_msg("%s", err.msg);
    return m;
}

static ag_tensor *loss_of(const void *m, ag_tape *t, ag_tensor *ids)
{
    return nn_model_loss(m, t, shifted(t, ids, VOCAB), ids, NN_TRAIN);
}

static void gradients_of_the_model(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        nn_gpt_config c = small();
        c.embedding.position.type = i & 1 ? NN_POSITION_IMAGE : NN_POSITION_GRID;
        c.embedding.position.width = 2;
        c.embedding.position.channels = 3;
        c.dropout = c.ff.dropout = i & 2 ? 0.3 : 0;
        c.embedding_dropout = i & 2 ? 0.2 : 0;
        nn_model *m = model_new(&c, AG_F64);
        params_shake(m->params);
        check_subject(&(subject){ m->params, m, loss_of, AG_SHAPE(2, CONTEXT), VOCAB });
        nn_model_free(m);
    }
}

/* With W_out = 0 every token is equally likely, and nothing but W_out hears of the loss (G3). */
static void the_first_step(void **state)
{
    (void)state;
    const ag_kernels *const tables[] = { ag_kernels_ref(AG_F64), ag_kernels_best(AG_F32, NULL) };
    for (int i = 0; i < 2; i++) {
        nn_gpt_config c = small();
        c.vocab = 256;
        nn_model *m = model_new(&c, tables[i]->dtype);
        ag_tape *t = ag_tape_new(tables[i]);
        int32_t ids[2 * CONTEXT];
        for (int e = 0; e < 2 * CONTEXT; e++) ids[e] = e * 11 % 256;
        ag_tensor *y = ag_input_i32(t, AG_SHAPE(2, CONTEXT), ids);
        ag_tensor *loss = nn_model_loss(m, t, shifted(t, y, 256), y, NN_TRAIN);
        ag_backward(t, loss, 1);
        tape_ok(t);
        const bool f32 = tables[i]->dtype == AG_F32;
        const double bits = (f32 ? (double)*(float *)loss->data : *(double *)loss->data) / log(2);
        assert_true(fabs(bits - 8) <= (f32 ? 5e-7 : 2e-15));
        for (int k = 0; k < m->params->n_items; k++) {
            const nn_item *item = &m->params->items[k];
            const uint8_t *g = item->tensor->grad;
            bool any = false;
            for (int64_t e = 0; e < item->count; e++)
                any |= f32 ? ((const float *)(const void *)g)[e] != 0
                           : ((const double *)(const void *)g)[e] != 0;
            assert_int_equal(any, !strcmp(item->name, "head/weight"));
        }
        ag_tape_free(t);
        nn_model_free(m);
    }
}

static double rms(const nn_model *m, const char *name)
{
    const nn_item *item = nn_params_find(m->params, name);
    assert_non_null(item);
    double sum = 0;
    for (int64_t e = 0; e < item->count; e++) sum += pow(((double *)item->tensor->data)[e], 2);
    return sqrt(sum / (double)item->count);
}

static void about(double got, double want) { assert_true(fabs(got - want) <= 0.04 * want); }

/* N(0, 0.125 / sqrt(d_in)) read in both ways, and the released code (section 5.2). */
static double std_of(nn_init_rule rule, double d_in)
{
    return rule == NN_INIT_PAPER_STD   ? 0.125 / sqrt(d_in)
           : rule == NN_INIT_PAPER_VAR ? sqrt(0.125 / sqrt(d_in))
                                       : sqrt(0.125 / d_in);
}

static void initial_weights(void **state)
{
    (void)state;
    for (int rule = NN_INIT_PAPER_STD; rule <= NN_INIT_RELEASED; rule++) {
        nn_gpt_config c = small();
        const nn_init_rule r = c.init = (nn_init_rule)rule;
        const bool released = r == NN_INIT_RELEASED;
        c.vocab = c.context = 256;
        c.d_model = 64;
        c.d_qk = c.d_v = 16;
        c.ff.d_ff = 256;
        c.embedding.position.stride = 8;
        c.head.zero = false;
        nn_model *m = model_new(&c, AG_F64);
        const double branch = 1 / sqrt(2 * 2);           /* 2 layers */
        about(rms(m, "embedding/token"), released ? 0.01 : std_of(r, 64));
        about(rms(m, "embedding/row"), released ? 0.01 / sqrt(2) : std_of(r, 64 * 2));
        about(rms(m, "blocks/1/attention/qkv/weight"), std_of(r, 64));
        about(rms(m, "blocks/1/attention/out/weight"), branch * std_of(r, 2 * 16));
        about(rms(m, "blocks/0/ff/in/weight"), std_of(r, 64));
        about(rms(m, "blocks/0/ff/out/weight"), branch * std_of(r, 256));
        about(rms(m, "head/weight"), std_of(r, 64));
        nn_model_free(m);
    }
}

/* Decoding in pieces makes the rows of the whole pass, from the start on. */
static void decoding_with_a_start(void **state)
{
    (void)state;
    static const int SIZES[][4] = { { CONTEXT }, { 1, 1, 7, 3 }, { 6, 6 } };
    nn_gpt_config c = small();
    c.head.zero = false;
    nn_model *m = model_new(&c, AG_F64);
    params_shake(m->params);
    ag_kv_cache *cache = NULL;
    assert_true(m->start);
    assert_int_equal(nn_model_cache(m, 1, &cache, NULL), AG_OK);
    ag_tape *t = tape_new();
    ag_tape_no_grad(t, true);
    ag_tensor *ids = shifted(t, integers(t, AG_SHAPE(1, CONTEXT), 1, VOCAB), VOCAB);
    const double *want = nn_model_logits(m, t, ids, NN_EVAL)->data;
    for (int i = 0; i < 3; i++) {
        ag_kv_cache_reset(cache, 0);
        for (int from = 0, k = 0; from < CONTEXT; from += SIZES[i][k++]) {
            ag_tensor *some =
                ag_input_i32(t, AG_SHAPE(1, SIZES[i][k]), (int32_t *)ids->data + from);
            const ag_tensor *y = nn_model_decode(m, t, some, cache);
            tape_ok(t);
            for (int64_t e = 0; e < y->size; e++)
                assert_true(fabs(((double *)y->data)[e] - want[from * VOCAB + e]) <= 1e-12);
        }
    }
    ag_tape_free(t);
    ag_kv_cache_free(cache);
    nn_model_free(m);
}

/* Another token changes no output at it or before, in no bit; those behind it see it in two layers
 * (G4). */
static void unseen(const char *pattern)
{
    enum { ROW = VOCAB * (int)sizeof(float) };
    nn_gpt_config c = small();
    c.init = NN_INIT_PAPER_VAR;
    c.head.zero = false;
    c.pattern = pattern;
    nn_model *m = model_new(&c, AG_F32);
    ag_tape *t = ag_tape_new(ag_kernels_best(AG_F32, NULL));
    int32_t ids[CONTEXT];
    for (int i = 0; i < CONTEXT; i++) ids[i] = i * 3 % VOCAB;
    const ag_tensor *y = ag_input_i32(t, AG_SHAPE(1, CONTEXT), ids);
    const char *before = nn_model_logits(m, t, shifted(t, y, VOCAB), NN_EVAL)->data;
    for (int i = 0; i < CONTEXT; i++) {
        ids[i] = (ids[i] + 1) % VOCAB;
        y = ag_input_i32(t, AG_SHAPE(1, CONTEXT), ids);
        const char *after = nn_model_logits(m, t, shifted(t, y, VOCAB), NN_EVAL)->data;
        ids[i] = (ids[i] + VOCAB - 1) % VOCAB;
        tape_ok(t);
        assert_memory_equal(before, after, (size_t)(i + 1) * ROW);
        for (int k = i + 1; k < CONTEXT; k++)
            assert_memory_not_equal(before + k * ROW, after + k * ROW, ROW);
    }
    ag_tape_free(t);
    nn_model_free(m);
}

static void no_token_sees_itself(void **state)
{
    (void)state;
    unseen(NULL);
    unseen("strided(4); local(4)");
    unseen("local(5) + strided(5)");
    unseen("fixed(4, 2)");
}

/* One sequence is learned by heart, its first token too (G7). */
static void one_sequence_is_learned(void **state)
{
    (void)state;
    const nn_gpt_config c = small();
    nn_model *m = model_new(&c, AG_F32);
    nn_params *p = m->params;
    opt_state *opt = NULL;
    ag_err err = { 0 };
    const opt_config adam = { .type = OPT_ADAM, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8,
                              .clip_norm = 1 };
    if (opt_new(&adam, NULL, p->n, NULL, 0, &opt, &err)) fail_msg("%s", err.msg);
    ag_tape *t = ag_tape_new(ag_kernels_best(AG_F32, NULL));
    int32_t ids[CONTEXT];
    for (int i = 0; i < CONTEXT; i++) ids[i] = (int32_t)draw(77, i, 0, VOCAB);
    double loss = 0;
    for (int step = 0; step < 400; step++) {
        ag_tape_reset(t);
        ag_tensor *y = ag_input_i32(t, AG_SHAPE(1, CONTEXT), ids), *part = loss_of(m, t, y);
        loss = (double)*(float *)part->data;
        ag_backward(t, part, 1);
        tape_ok(t);
        if (step == 0) assert_true(fabs(loss - log(VOCAB)) < 1e-6);
        assert_int_equal(opt_step(opt, 1e-2, 1, p->weights, p->grads, NULL, &err), AG_OK);
    }
    if (!(loss < 0.01)) fail_msg("the loss is still %g", loss);
    opt_free(opt);
    ag_tape_free(t);
    nn_model_free(m);
}

/* Without dropout of the attention weights what a branch adds is either dropped or exact. */
static void dropout_at_branch_ends_only(void **state)
{
    (void)state;
    enum { WIDTH = 8, ROWS = 6 };
    for (int keep = 0; keep < 2; keep++) {
        nn_params *p = nn_params_new(AG_F64);
        nn_attention a;
        nn_attention_build(&a, p, "attention",
                           &(nn_attention_config){ .d_model = WIDTH, .n_heads = 2, .d_qk = 2,
                                                   .d_v = 4, .dropout = 0.25, .init_std = 0.5,
                                                   .out_gain = 1, .keep_weights = keep });
        params_ready(p);
        ag_tape *t = tape_new();
        noise(t, 3, 0, 1);
        ag_tensor *x = input(t, AG_SHAPE(1, ROWS, WIDTH), X_SITE, false);
        const double *eval = nn_attention_forward(&a, t, x, NULL, NN_EVAL, NULL, 0)->data;
        const double *train = nn_attention_forward(&a, t, x, NULL, NN_TRAIN, NULL, 0)->data;
        tape_ok(t);
        int other = 0, dropped = 0;
        for (int i = 0; i < ROWS * WIDTH; i++) {
            dropped += train[i] == 0;
            other += train[i] != 0 && fabs(train[i] - eval[i] / 0.75) > 1e-12;
        }
        assert_in_range(dropped, 1, ROWS * WIDTH / 2);
        if (keep) assert_int_equal(other, 0);
        else assert_true(other > 0);
        ag_tape_free(t);
        nn_params_free(p);
    }
}

/* The sizes that follow from section 7 and the released code, to the parameter. */
static void published_sizes(void **state)
{
    (void)state;
#define IMAGE(w) { .type = NN_POSITION_IMAGE, .width = w, .channels = 3 }
#define GRID(s)  { .type = NN_POSITION_GRID, .stride = s }
    static const struct {
        int64_t layers, heads, d, d_qk, d_ff, context;
        nn_position_config position;
        int64_t params;
    } MODELS[] = {
        { 128, 2, 256, 64, 512, 3072, IMAGE(32), 59196928 },
        { 32, 2, 256, 64, 512, 3072, IMAGE(32), 14910976 },
        { 30, 8, 512, 64, 2048, 12288, GRID(128), 94949888 },
        { 48, 16, 512, 32, 2048, 12288, IMAGE(64), 151645184 },
        { 96, 16, 512, 32, 2048, 12288, IMAGE(64), 302959616 },
    };
    for (int i = 0; i < 5; i++) {
        const nn_gpt_config c = {
            .vocab = 256, .context = MODELS[i].context, .n_layers = MODELS[i].layers,
            .n_heads = MODELS[i].heads, .d_model = MODELS[i].d, .d_qk = MODELS[i].d_qk,
            .bias = true, .init = NN_INIT_RELEASED, .norm_eps = 1e-5,
            .embedding = { .position = MODELS[i].position, .start = true },
            .ff = { .d_ff = MODELS[i].d_ff, .bias_in = true, .bias_out = true },
            .head = { .zero = true },
        };
        nn_cost cost;
        ag_err err = { 0 };
        if (nn_gpt_cost(&c, &cost, &err)) fail_msg("%s", err.msg);
        assert_int_equal(cost.params, MODELS[i].params);
    }
}

/* A plan takes the memory that a step takes, but for what single ops work in. */
static void plans_are_steps(void **state)
{
    (void)state;
    const nn_gpt_config c = small();
    ag_tape_memory seen[2], forward[2];
    int calls[2];
    for (int plan = 0; plan < 2; plan++) {
        nn_model *m = NULL;
        if (!plan) m = model_new(&c, AG_F64);
        else if (nn_gpt_plan(&c, AG_F64, &m, NULL) || nn_params_grads(m->params, NULL)) fail();
        ag_tape *t = tape_new();
        ag_tape_plan(t, plan);
        noise(t, 1, 0, 2);
        ag_tensor *loss = loss_of(m, t, integers(t, AG_SHAPE(2, CONTEXT), X_SITE, VOCAB));
        calls[plan] = ag_tape_calls(t);
        forward[plan] = ag_tape_bytes(t);
        ag_backward(t, loss, 1);
        tape_ok(t);
        seen[plan] = ag_tape_bytes(t);
        for (int64_t i = 0; plan && i < m->params->n; i++)
            assert_true(((double *)m->params->weights)[i] == 0);
        ag_tape_free(t);
        nn_model_free(m);
    }
    assert_int_equal(calls[0], calls[1]);
    assert_int_equal(forward[0].used, forward[1].used);
    assert_int_equal(seen[0].used, seen[1].used);
    assert_true(seen[1].peak <= seen[0].peak);
    assert_true((double)seen[1].peak > 0.9 * (double)seen[0].peak);
}

static void refused(const nn_gpt_config *c, const char *what, const char *why)
{
    ag_err err = { 0 };
    assert_int_equal(nn_gpt_check(c, &err), AG_ECONFIG);
    if (!strstr(err.msg, what) || !strstr(err.msg, why)) fail_msg("%s", err.msg);
}

static void bad_configurations_are_named(void **state)
{
    (void)state;
    const nn_gpt_config good = small();
    nn_gpt_config c;
#define REFUSED(field, value, a, b) c = good, c.field = value, refused(&c, a, b)
    REFUSED(embedding.position.stride, 0, "position.stride = 0", "context = 12");
    REFUSED(embedding.position.stride, 13, "position.stride = 13", "context = 12");
    REFUSED(embedding.position.type, NN_POSITION_IMAGE, "width = 0", "position.channels = 0");
    REFUSED(tied, true, "head.zero", "tied_embeddings");
    REFUSED(head.type, NN_HEAD_MULT, "head.zero", "head.type");
    REFUSED(embedding_dropout, 1, "embedding_dropout", "1");
    REFUSED(final_norm_eps, -1, "final_norm_eps", "-1");
#undef REFUSED
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_of_embeddings), cmocka_unit_test(embeddings_are_their_formula),
        cmocka_unit_test(positions_end_with_the_context), cmocka_unit_test(gradients_of_the_model),
        cmocka_unit_test(the_first_step), cmocka_unit_test(initial_weights),
        cmocka_unit_test(decoding_with_a_start), cmocka_unit_test(no_token_sees_itself),
        cmocka_unit_test(one_sequence_is_learned), cmocka_unit_test(dropout_at_branch_ends_only),
        cmocka_unit_test(published_sizes), cmocka_unit_test(plans_are_steps),
        cmocka_unit_test(bad_configurations_are_named),
    };
    return cmocka_run_group_tests_name("sparse_transformer", tests, NULL, NULL);
}
