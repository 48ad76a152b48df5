/*
 * test_terraformer_lsh.c -- decoding of a Terraformer that attends by hashing: over a cache, token
 * by token, it is what the rule of decoding (ops/lsh_cached.c) gives for all positions at once,
 * with sources of different lengths side by side, whatever the padding.
 */
#include "tests/layer_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

enum { B = 3, S = 6, T = 5, ROW = S + T, VOCAB = 11, FEW = 2 };
static const int LENGTHS[B] = { 6, 2, 0 };

/* Projections, positions of a chunk, std_length, attentions of a block.  A query takes 4 keys where
 * chunks are FEW, else all. */
typedef struct variant {
    nn_lsh_kind kind;
    nn_map_kind type;
    int64_t chunk, std_length, attentions;
} variant;

static const variant variants[] = {
    { NN_LSH_OWN, NN_MAP_DENSE, FEW, 0, 2 },     { NN_LSH_PURE, NN_MAP_DENSE, FEW, 0, 1 },
    { NN_LSH_PURE, NN_MAP_MULTCONV, FEW, 0, 2 }, { NN_LSH_OWN, NN_MAP_DENSE, FEW, ROW - 1, 1 },
    { NN_LSH_OWN, NN_MAP_DENSE, FEW, ROW, 2 },   { NN_LSH_PURE, NN_MAP_MULTCONV, FEW, ROW, 2 },
    { NN_LSH_OWN, NN_MAP_DENSE, ROW, 0, 2 },     { NN_LSH_PURE, NN_MAP_MULTCONV, ROW, 0, 1 },
};
enum { VARIANTS = sizeof variants / sizeof *variants };

static bool takes_all(const variant *v) { return v->chunk >= ROW || v->std_length >= ROW; }

static nn_model *model_new(const variant *v, int64_t source, ag_dtype dtype)
{
    const nn_terraformer_config c = {
        .decoder = { .vocab = VOCAB, .context = ROW, .n_layers = 2, .n_heads = 2, .d_model = 8,
                     .norm_eps = 1e-5, .init_std = 0.5,
                     .streams = { .kind = NN_STREAMS_REBUILT, .two_swaps = true },
                     .ff = { .d_ff = 12, .act = AG_ACT_GELU_ERF },
                     .sru = { .layers = 1, .units = 3 },
                     .attention = { .type = v->type, .modules = 4,
                                    .lsh = { .kind = v->kind, .chunk = v->chunk, .rounds = 1,
                                             .buckets = 4, .std_length = v->std_length } } },
        .n_encoder_layers = 1, .source = source, .target = T, .attentions = v->attentions,
    };
    nn_model *m = NULL;
    ag_err err = { 0 };
    if (nn_terraformer_new(&c, dtype, SEED, &m, &err)) fail_msg("%s", err.msg);
    if (dtype == AG_F64) params_shake(m->params);
    return m;
}

static ag_tape *tape_of(ag_dtype dtype)
{
    ag_tape *t = ag_tape_new(dtype == AG_F64 ? ag_kernels_ref(AG_F64)
                                             : ag_kernels_best(AG_F32, NULL));
    ag_tape_no_grad(t, true);
    return t;
}

static void rows_of(int32_t ids[B * ROW])
{
    for (int i = 0; i < B * ROW; i++) {
        const int b = i / ROW, column = i % ROW;
        const bool none = column == S || (column < S && column >= LENGTHS[b]);
        ids[i] = none ? 0 : (int32_t)draw(20, i, 1, VOCAB);
    }
}

static ag_kv_cache *cache_new(const nn_model *m, int64_t batch)
{
    ag_kv_cache *cache = NULL;
    ag_err err = { 0 };
    if (nn_model_cache(m, batch, &cache, &err)) fail_msg("%s", err.msg);
    return cache;
}

/* Columns from .. from + n - 1 of rows[b], as the next call gets them. */
static ag_tensor *columns(ag_tape *t, const int32_t *ids, const int32_t *row, int from, int n)
{
    int32_t part[B * ROW];
    for (int b = 0; b < B; b++)
        memcpy(part + b * n, ids + (row ? row[b] : b) * ROW + from, (size_t)n * sizeof *part);
    return ag_input_i32(t, AG_SHAPE(B, n), part);
}

/* Logits [B,n,VOCAB] of the first n tokens of the targets, by the rule of decoding, of all at once:
 * what decoding without a cache would have to compute anew for each token. */
static ag_tensor *recomputed(const nn_model *m, ag_tape *t, const int32_t *ids, int n)
{
    ag_kv_cache *cache = cache_new(m, B);
    ag_tensor *y = nn_model_decode(m, t, columns(t, ids, NULL, 0, S + n), cache);
    tape_ok(t);
    ag_kv_cache_free(cache);
    return y;
}

static double at(const ag_tensor *x, int64_t i)
{
    return x->dtype == AG_F64 ? ((const double *)x->data)[i]
                              : (double)((const float *)x->data)[i];
}

/* Largest difference of tokens i .. i + n - 1 of item b of y, which begins with token `first`, and
 * those of item c of z, which begins with token 0. */
static double apart(const ag_tensor *y, int b, int first, const ag_tensor *z, int c, int i, int n)
{
    const int64_t ty = y->shape.dim[1], tz = z->shape.dim[1];
    double most = 0;
    for (int64_t e = 0; e < (int64_t)n * VOCAB; e++) {
        const double want = at(z, (c * tz + i) * VOCAB + e);
        most = fmax(most, fabs(at(y, (b * ty + i - first) * VOCAB + e) - want) / (1 + fabs(want)));
    }
    return most;
}

/* --- steps ------------------------------------------------------------------------------------ */

/* The source with `first` tokens, then one at a time, each compared with a computation of all up to
 * it; the items change places before each step. */
static void check_steps(const nn_model *m, ag_tape *t, const int32_t *ids, int first, double tol)
{
    static const int32_t turn[B] = { 2, 0, 1 };
    int32_t row[B] = { 0, 1, 2 };
    ag_kv_cache *cache = cache_new(m, B);
    for (int n = first; n <= T; n++) {
        const bool begins = n == first;
        if (!begins) {
            int32_t next[B];
            assert_int_equal(ag_kv_cache_select(cache, turn), AG_OK);
            for (int b = 0; b < B; b++) next[b] = row[turn[b]];
            memcpy(row, next, sizeof row);
        }
        ag_tensor *x = columns(t, ids, row, begins ? 0 : S + n - 1, begins ? S + n : 1);
        const ag_tensor *y = nn_model_decode(m, t, x, cache), *want = recomputed(m, t, ids, n);
        tape_ok(t);
        assert_int_equal(ag_kv_cache_length(cache), n);
        const int from = begins ? 0 : n - 1;
        for (int b = 0; b < B; b++)
            if (!(apart(y, b, from, want, row[b], from, n - from) <= tol))
                fail_msg("after %d tokens at first, token %d of item %d is another", first, n - 1,
                         row[b]);
    }
    ag_kv_cache_free(cache);
}

static void steps_are_all_at_once(void **state)
{
    (void)state;
    int32_t ids[B * ROW];
    rows_of(ids);
    for (int i = 0; i < 2 * VARIANTS; i++) {
        const ag_dtype dtype = i % 2 ? AG_F32 : AG_F64;
        nn_model *m = model_new(&variants[i / 2], S, dtype);
        ag_tape *t = tape_of(dtype);
        for (int first = 1; first <= T; first++)
            check_steps(m, t, ids, first, i % 2 ? 1e-5 : 1e-12);
        ag_tape_free(t);
        nn_model_free(m);
    }
}

/* --- the rule --------------------------------------------------------------------------------- */

/* Where a query takes all keys decoding is the model without a cache; where it takes some it is
 * not, which shows that these tests see the choice. */
static void all_keys_are_the_model(void **state)
{
    (void)state;
    int32_t ids[B * ROW];
    rows_of(ids);
    for (int i = 0; i < VARIANTS; i++) {
        nn_model *m = model_new(&variants[i], S, AG_F64);
        ag_tape *t = tape_of(AG_F64);
        const ag_tensor *y = recomputed(m, t, ids, T),
            *whole = nn_model_logits(m, t, columns(t, ids, NULL, 0, ROW), NN_EVAL);
        tape_ok(t);
        double most = 0;
        for (int b = 0; b < B; b++) most = fmax(most, apart(y, b, 0, whole, b, 0, T));
        if (takes_all(&variants[i])) assert_true(most <= 1e-12);
        else assert_true(most > 1e-3);
        ag_tape_free(t);
        nn_model_free(m);
    }
}

/* An item decodes as it does alone, without the padding that others need. */
static void padding_is_not_seen(void **state)
{
    enum { ITEM = 1, OWN = 2 };      /* LENGTHS[ITEM] */
    (void)state;
    int32_t ids[B * ROW], one[OWN + T];
    rows_of(ids);
    memcpy(one, ids + ITEM * ROW, OWN * sizeof *one);
    memcpy(one + OWN, ids + ITEM * ROW + S, T * sizeof *one);
    for (int i = 0; i < VARIANTS; i++) {
        if (variants[i].std_length == ROW - 1) continue;     /* the narrow one would take all */
        nn_model *m = model_new(&variants[i], S, AG_F64),
            *narrow = model_new(&variants[i], OWN, AG_F64);
        ag_tape *t = tape_of(AG_F64);
        ag_kv_cache *cache = cache_new(narrow, 1);
        const ag_tensor *want = recomputed(m, t, ids, T);
        for (int n = 1; n <= T; n++) {
            const int from = n == 1 ? 0 : OWN + n - 1, columns = n == 1 ? OWN + 1 : 1;
            const ag_tensor *y = nn_model_decode(
                narrow, t, ag_input_i32(t, AG_SHAPE(1, columns), one + from), cache);
            tape_ok(t);
            assert_true(apart(y, 0, n - 1, want, ITEM, n - 1, 1) <= 1e-12);
        }
        ag_kv_cache_free(cache);
        ag_tape_free(t);
        nn_model_free(m);
        nn_model_free(narrow);
    }
}

/* A longest source leaves room for T tokens, and not for one more. */
static void a_full_cache_is_refused(void **state)
{
    (void)state;
    static const int32_t token[B] = { 1, 1, 1 };
    int32_t ids[B * ROW];
    rows_of(ids);
    for (int i = 0; i < VARIANTS; i++) {
        nn_model *m = model_new(&variants[i], S, AG_F64);
        ag_tape *t = tape_of(AG_F64);
        ag_kv_cache *cache = cache_new(m, B);
        nn_model_decode(m, t, columns(t, ids, NULL, 0, ROW), cache);
        tape_ok(t);
        nn_model_decode(m, t, ag_input_i32(t, AG_SHAPE(B, 1), token), cache);
        assert_int_equal(ag_error(t), AG_ERANGE);
        assert_non_null(strstr(ag_error_message(t), "do not fit into a cache of 5"));
        ag_kv_cache_free(cache);
        ag_tape_free(t);
        nn_model_free(m);
    }
}

/* --- sizes ------------------------------------------------------------------------------------ */

/* Operations of a forward pass of one row. */
static double flops_of(const nn_model *m)
{
    int32_t ids[B * ROW];
    rows_of(ids);
    ag_tape *t = tape_of(AG_F64);
    nn_model_logits(m, t, ag_input_i32(t, AG_SHAPE(1, ROW), ids), NN_EVAL);
    tape_ok(t);
    const double n = (double)ag_tape_bytes(t).flops;
    ag_tape_free(t);
    return n;
}

/* A model that hashes costs as many operations more, or less, than one that takes all keys as its
 * ops do. */
static void costs_what_it_does(void **state)
{
    (void)state;
    variant v = { NN_LSH_PURE, NN_MAP_DENSE, FEW, 0, 2 };
    nn_model *hashing = model_new(&v, S, AG_F64);
    v.std_length = ROW;
    nn_model *all = model_new(&v, S, AG_F64);
    const double more = flops_of(hashing) - flops_of(all);
    assert_true(more != 0);
    assert_true(fabs((hashing->cost.flops - all->cost.flops) * T - more) < 1e-6);
    nn_model_free(hashing);
    nn_model_free(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_all_at_once), cmocka_unit_test(all_keys_are_the_model),
        cmocka_unit_test(padding_is_not_seen), cmocka_unit_test(a_full_cache_is_refused),
        cmocka_unit_test(costs_what_it_does),
    };
    return cmocka_run_group_tests_name("terraformer_lsh", tests, NULL, NULL);
}
