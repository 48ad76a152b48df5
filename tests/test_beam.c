/*
 * test_beam.c -- beam search against all targets of a small chain, greedy choice, many sources at
 * once, and caches whose sequences change places.
 */
#include "layer_check.h"
#include "train/beam.h"

#include "data/tokenizer.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { VOCAB = 5, MOST = 4, SOURCE = 2 };

/*
 * A chain: the logits of what follows are a function of the token before and of the first token of
 * the source, where it reads one.  It has no cache.
 */
typedef struct chain { nn_model model; float table[VOCAB][VOCAB][VOCAB]; } chain;

static ag_tensor *chain_logits(const nn_model *m, ag_tape *t, ag_tensor *x, nn_mode mode,
                               ag_kv_cache *cache)
{
    const chain *c = (const chain *)m;
    const int64_t b = x->shape.dim[0], all = x->shape.dim[1], n = all - m->source;
    const int32_t *ids = x->data;
    float *y = malloc((size_t)(b * n * VOCAB) * sizeof *y);
    (void)mode;
    assert_non_null(y);
    assert_null(cache);
    for (int64_t i = 0; i < b; i++)
        for (int64_t j = 0; j < n; j++)
            memcpy(y + (i * n + j) * VOCAB,
                   c->table[m->source ? ids[i * all] : 0][ids[i * all + m->source + j]],
                   VOCAB * sizeof *y);
    ag_tensor *out = ag_input(t, AG_SHAPE(b, n, VOCAB), y, false);
    free(y);
    return out;
}

static chain chain_of(uint32_t site, int64_t source)
{
    chain c = { .model = { .kind = "chain", .classes = VOCAB, .source = source,
                           .logits = chain_logits } };
    for (int i = 0; i < VOCAB * VOCAB * VOCAB; i++)
        (&c.table[0][0][0])[i] = (float)draw(site, i, -2, 2);
    return c;
}

static double logp(const chain *c, int s, int before, int v)
{
    double sum = 0;
    for (int k = 0; k < VOCAB; k++) sum += exp((double)c->table[s][before][k]);
    return (double)c->table[s][before][v] - log(sum);
}

static ag_tape *tape_f32(void)
{
    const char *why;
    ag_tape *t = ag_tape_new(ag_kernels_best(AG_F32, &why));
    assert_non_null(t);
    return t;
}

typedef struct found { int32_t token[MOST]; int64_t n; double score; } found;

static found search(const nn_model *m, int64_t width, double alpha, const int32_t *prompt,
                    int64_t k)
{
    ag_tape *t = tape_f32();
    const train_beam b = { .width = width, .alpha = alpha, .length = MOST };
    ag_err err = { 0 };
    found f;
    if (train_beam_search(m, t, &b, prompt, 1, k, f.token, &f.n, &f.score, &err))
        fail_msg("%s", err.msg);
    ag_tape_free(t);
    return f;
}

/* Every target that ends within MOST tokens; the best by score. */
static void try_all(const chain *c, int s, double alpha, const found *so_far, found *best)
{
    const int before = so_far->n ? so_far->token[so_far->n - 1] : 0;
    const double end = so_far->score + logp(c, s, before, DATA_END);
    const double score = end / pow((6 + (double)so_far->n) / 6, alpha);
    if (score > best->score) {
        *best = *so_far;
        best->score = score;
    }
    for (int v = 2; v < VOCAB && so_far->n + 1 < MOST; v++) {
        found next = *so_far;
        next.token[next.n++] = v;
        next.score += logp(c, s, before, v);
        try_all(c, s, alpha, &next, best);
    }
}

static void same(const found *a, const found *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->token, b->token, (size_t)a->n * sizeof *a->token);
    assert_true(fabs(a->score - b->score) < 1e-5);
}

static void finds_the_best(void **state)
{
    static const double alphas[3] = { 0, 0.6, 2 };
    int narrow_misses = 0, longer = 0;
    (void)state;
    for (uint32_t trial = 0; trial < 60; trial++) {
        const chain c = chain_of(100 + trial, 0);
        found plain = { .n = 0 };
        for (int k = 0; k < 3; k++) {
            const found none = { .n = 0 };
            found best = { .score = -(double)INFINITY };
            try_all(&c, 0, alphas[k], &none, &best);
            const found wide = search(&c.model, TRAIN_BEAM_MOST, alphas[k], (int32_t[]){ 0 }, 1),
                        narrow = search(&c.model, 2, alphas[k], (int32_t[]){ 0 }, 1);
            same(&wide, &best);
            narrow_misses += narrow.n == MOST || narrow.score < best.score - 1e-6;
            if (narrow.n < MOST) assert_true(narrow.score < best.score + 1e-5);
            if (k == 0) plain = best;
            else longer += best.n > plain.n;
            assert_true(best.n >= plain.n);          /* the penalty never makes it shorter */
        }
    }
    assert_in_range(narrow_misses, 1, 90);           /* it is a search, not luck */
    assert_true(longer > 0);
}

static void width_1_is_greedy(void **state)
{
    int cut = 0;
    (void)state;
    for (uint32_t trial = 0; trial < 60; trial++) {
        const chain c = chain_of(200 + trial, 0);
        found want = { .n = 0 };
        double sum = 0;
        int before = 0, v = 0;
        for (; want.n < MOST; before = want.token[want.n++] = v) {
            v = 1;
            for (int k = 2; k < VOCAB; k++)          /* never padding */
                if (c.table[0][before][k] > c.table[0][before][v]) v = k;
            sum += logp(&c, 0, before, v);
            if (v == DATA_END) break;
        }
        const int64_t scored = want.n + (v == DATA_END);
        want.score = sum / pow((5 + (double)scored) / 6, 0.6);
        const found f = search(&c.model, 1, 0.6, (int32_t[]){ 0 }, 1);
        same(&f, &want);
        cut += v != DATA_END;
    }
    assert_in_range(cut, 1, 59);
}

/* Sources in a batch get the answers that they get alone. */
static void sources_together(void **state)
{
    const chain c = chain_of(7, SOURCE);
    int32_t prompts[VOCAB][SOURCE + 1], tokens[VOCAB][MOST];
    int64_t n[VOCAB];
    double score[VOCAB];
    int different = 0;
    (void)state;
    for (int64_t width = 1; width <= 3; width++) {
        ag_tape *t = tape_f32();
        const train_beam b = { .width = width, .alpha = 0.6, .length = MOST };
        for (int i = 0; i < VOCAB; i++)
            memcpy(prompts[i], (int32_t[]){ i, 3, 0 }, sizeof prompts[i]);
        assert_int_equal(train_beam_search(&c.model, t, &b, prompts[0], VOCAB, SOURCE + 1,
                                           tokens[0], n, score, NULL), AG_OK);
        for (int i = 0; i < VOCAB; i++) {
            found f = { .n = n[i], .score = score[i] };
            memcpy(f.token, tokens[i], sizeof f.token);
            const found alone = search(&c.model, width, 0.6, prompts[i], SOURCE + 1);
            same(&f, &alone);
            different += n[i] != n[0] || memcmp(tokens[i], tokens[0], (size_t)n[i] * 4);
        }
        ag_tape_free(t);
    }
    assert_true(different > 0);
}

/* A GPT over its cache finds what it finds without: the sequences of the cache, the past of its
 * convolutions and the states of its recurrence went along. */
static void over_a_cache(void **state)
{
    int moved = 0;
    (void)state;
    for (int k = 0; k < 4; k++) {
        nn_gpt_config g = {
            .vocab = VOCAB, .context = 8, .n_layers = 2, .n_heads = 2, .d_model = 8,
            .norm_eps = 1e-5, .init_std = 1,
            .attention = { .type = k & 1 ? NN_MAP_MULTCONV : NN_MAP_DENSE, .taps = k & 1 ? 3 : 0 },
            .ff = { .kind = NN_FF_DENSE, .d_ff = 16, .act = AG_ACT_RELU },
            .sru = { .layers = k & 2 ? 2 : 0, .units = k & 2 ? 3 : 0 },
        };
        nn_model *m;
        ag_err err = { 0 };
        if (nn_gpt_new(&g, AG_F32, 3 + (uint64_t)k, &m, &err)) fail_msg("%s", err.msg);
        ag_kv_cache *(*cache_new)(const nn_model *, int64_t) = m->cache_new;
        for (int32_t first = 0; first < VOCAB; first++) {
            const int32_t prompt[3] = { 0, first, 1 };
            m->cache_new = cache_new;
            const found with = search(m, 4, 0.6, prompt, 3), greedy = search(m, 1, 0.6, prompt, 3);
            m->cache_new = NULL;
            const found without = search(m, 4, 0.6, prompt, 3);
            same(&with, &without);
            moved += with.n != greedy.n || memcmp(with.token, greedy.token, (size_t)with.n * 4);
        }
        m->cache_new = cache_new;
        nn_model_free(m);
    }
    assert_true(moved > 3);
}

/* A model whose logits are computed anew over a cache of their own: what decoding without one would
 * be where its rule is not the one of training (attention by hashing). */
typedef struct anew { nn_model model; const nn_model *of; } anew;

static ag_tensor *anew_logits(const nn_model *m, ag_tape *t, ag_tensor *x, nn_mode mode,
                              ag_kv_cache *cache)
{
    const nn_model *of = ((const anew *)m)->of;
    assert_null(cache);
    assert_int_equal(nn_model_cache(of, x->shape.dim[0], &cache, NULL), AG_OK);
    ag_tensor *y = of->logits(of, t, x, mode, cache);
    ag_kv_cache_free(cache);
    return y;
}

enum { COLUMNS = 6, SOURCES = 3, LONG = 10 };

typedef struct answers {
    int32_t token[SOURCES][LONG];
    int64_t n[SOURCES];
    double  score[SOURCES];
} answers;

static answers answer_all(const nn_model *m, int64_t width, const int32_t *prompts)
{
    ag_tape *t = tape_f32();
    const train_beam b = { .width = width, .alpha = 0.6, .length = LONG };
    ag_err err = { 0 };
    answers a = { .n = { 0 } };
    if (train_beam_search(m, t, &b, prompts, SOURCES, COLUMNS + 1, a.token[0], a.n, a.score, &err))
        fail_msg("%s", err.msg);
    ag_tape_free(t);
    return a;
}

static bool same_tokens(const answers *a, const answers *b, int i)
{
    return a->n[i] == b->n[i] && !memcmp(a->token[i], b->token[i], (size_t)a->n[i] * 4);
}

/* Beams of several sources of different lengths, by attention that chooses some keys. */
static void over_sources_by_hashing(void **state)
{
    static const int64_t lengths[SOURCES] = { 6, 1, 3 };
    int32_t prompt[SOURCES][COLUMNS + 1] = { { 0 } };
    int moved = 0;
    (void)state;
    for (int i = 0; i < SOURCES * COLUMNS; i++)
        if (i % COLUMNS < lengths[i / COLUMNS])
            prompt[i / COLUMNS][i % COLUMNS] = (int32_t)draw(30, i, 1, VOCAB);
    for (int k = 0; k < 8; k++) {
        const nn_terraformer_config c = {
            .decoder = { .vocab = VOCAB, .context = LONG, .n_layers = 2, .n_heads = 2, .d_model = 8,
                         .norm_eps = 1e-5, .init_std = 1,
                         .streams = { .kind = NN_STREAMS_REBUILT, .two_swaps = true },
                         .ff = { .d_ff = 16, .act = AG_ACT_RELU },
                         .attention = { .type = k & 1 ? NN_MAP_MULTCONV : NN_MAP_DENSE,
                                        .modules = 4,
                                        .lsh = { .kind = k & 1 ? NN_LSH_PURE : NN_LSH_OWN,
                                                 .chunk = 2, .rounds = 1, .buckets = 4 } } },
            .n_encoder_layers = 1, .source = COLUMNS, .target = LONG, .attentions = 2,
        };
        nn_model *m;
        ag_err err = { 0 };
        if (nn_terraformer_new(&c, AG_F32, 30 + (uint64_t)k, &m, &err)) fail_msg("%s", err.msg);
        anew other = { .model = *m, .of = m };
        other.model.logits = anew_logits;
        other.model.cache_new = NULL;
        const answers with = answer_all(m, 4, prompt[0]), greedy = answer_all(m, 1, prompt[0]),
            without = answer_all(&other.model, 4, prompt[0]);
        for (int i = 0; i < SOURCES; i++) {
            assert_true(same_tokens(&with, &without, i));
            assert_true(fabs(with.score[i] - without.score[i]) < 1e-5);
            moved += !same_tokens(&with, &greedy, i);
        }
        nn_model_free(m);
    }
    assert_true(moved > 3);
}

static void faults(void **state)
{
    static const volatile sig_atomic_t stop = 1;
    chain c = chain_of(1, 0);
    ag_tape *t = tape_f32();
    train_beam b = { .width = TRAIN_BEAM_MOST + 1, .length = MOST };
    const int32_t prompt[1] = { 0 };
    found f;
    ag_err err = { 0 };
    (void)state;
    assert_int_equal(train_beam_search(&c.model, t, &b, prompt, 1, 1, f.token, &f.n, &f.score,
                                       &err), AG_ECONFIG);
    b = (train_beam){ .width = 2, .length = MOST, .stop = &stop };
    assert_int_equal(train_beam_search(&c.model, t, &b, prompt, 1, 1, f.token, &f.n, &f.score,
                                       NULL), AG_EINTR);
    b.stop = NULL;
    c.table[0][0][3] = INFINITY;
    err = (ag_err){ 0 };
    assert_int_equal(train_beam_search(&c.model, t, &b, prompt, 1, 1, f.token, &f.n, &f.score,
                                       &err), AG_EDIVERGED);
    assert_string_equal(err.msg, "the logits of token 0 are not finite");
    ag_tape_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_the_best), cmocka_unit_test(width_1_is_greedy),
        cmocka_unit_test(sources_together), cmocka_unit_test(over_a_cache),
        cmocka_unit_test(over_sources_by_hashing), cmocka_unit_test(faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
