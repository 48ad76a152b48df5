/*
 * test_module_ops.c -- the ops of sparse attention against their formulas written out: the
 * multiplicative layer is its dense matrix, the convolution is six loops and hears nothing of the
 * future, recall hands on what came before.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double *numbers(int64_t n, uint64_t seed) { return uniform_new(n, -1, 1, seed); }

static ag_tensor *tensor(ag_tape *t, ag_shape shape, uint64_t seed)
{
    double *v = numbers(ag_shape_size(&shape), seed);
    ag_tensor *x = ag_input_f64(t, shape, v, false);
    free(v);
    return x;
}

static double at(const ag_tensor *x, int64_t i) { return real_at(x->data, x->dtype, i); }

static void near(const ag_tape *t, const char *what, double got, double want, double scale)
{
    const double u = ag_tape_dtype(t) == AG_F64 ? 0x1p-53 : 0x1p-24;
    if (!(fabs(got - want) <= 24 * u * (1 + scale)))
        fail_msg("%s: %.9g, wanted %.9g", what, got, want);
}

/* Runs a check on the reference in f64 and on every f32 table. */
static void on_all_tables(void (*check)(ag_tape *t))
{
    const ag_kernels *k[8] = { ag_kernels_ref(AG_F64) };
    const int n = 1 + ag_kernels_all(AG_F32, k + 1, 7);
    for (int i = 0; i < n; i++) {
        ag_tape *t = tape_new(k[i]);
        check(t);
        if (ag_error(t)) fail_msg("%s", ag_error_message(t));
        ag_tape_free(t);
    }
}

/* --- the multiplicative layer ----------------------------------------------------------------- */

static void check_multiplicative(ag_tape *t)
{
    enum { D = 10, S = 4, M = 7 };
    static const int64_t ROWS[] = { 1, 3, 100 }, WIDTH[] = { 28, 25, 22 };
    ag_tensor *d = tensor(t, AG_SHAPE(S, D), 2), *e = tensor(t, AG_SHAPE(M, D), 3);
    for (int i = 0; i < 9; i++) {
        const int64_t rows = ROWS[i % 3], width = WIDTH[i / 3];
        ag_tensor *x = tensor(t, AG_SHAPE(rows, D), 1), *b = tensor(t, AG_SHAPE(width), 4);
        const ag_tensor *y = ag_multiplicative(t, x, d, e, b, width);
        assert_true(y->size == rows * width);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < width; j++) {
                double sum = at(b, j);
                for (int64_t l = 0; l < D; l++)
                    sum += at(x, r * D + l) * at(d, j / M * D + l) * at(e, j % M * D + l);
                near(t, "multiplicative", at(y, r * width + j), sum, D);
            }
    }
}

static void multiplicative_is_its_dense_matrix(void **state)
{
    (void)state;
    on_all_tables(check_multiplicative);
}

/* Any permutation of the features can be written: D picks what goes to a module, E the place. */
static void multiplicative_can_permute(void **state)
{
    (void)state;
    enum { S = 3, M = 4, N = S * M };
    static const int from[N] = { 7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 6, 4 };
    double d[S * N] = { 0 }, e[M * N] = { 0 };
    for (int j = 0; j < N; j++) {
        d[j / M * N + from[j]] = 1;
        e[j % M * N + from[j]] = 1;
    }
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    ag_tensor *x = tensor(t, AG_SHAPE(5, N), 1);
    const ag_tensor *y = ag_multiplicative(t, x, ag_input_f64(t, AG_SHAPE(S, N), d, false),
                                           ag_input_f64(t, AG_SHAPE(M, N), e, false), NULL, 0);
    for (int r = 0; r < 5; r++)
        for (int j = 0; j < N; j++)
            assert_true(fabs(at(y, r * N + j) - at(x, r * N + from[j])) <= 0);
    ag_tape_free(t);
}

/* --- the convolution -------------------------------------------------------------------------- */

typedef struct conv_sizes { int64_t b, t, s, f, c, p, o; } conv_sizes;

/* Six loops; x has the rows before as well if `past`. */
static double convolved(const conv_sizes *n, const ag_tensor *x, const ag_tensor *w,
                        const ag_tensor *bias, bool past, int64_t b, int64_t t, int64_t s,
                        int64_t o)
{
    const int64_t rows = n->t + (past ? n->f - 1 : 0);
    double sum = at(bias, o);
    for (int64_t f = 0; f < n->f; f++)
        for (int64_t c = 0; c < n->c; c++)
            for (int64_t p = 0; p < n->p; p++) {
                const int64_t row = t + f - (past ? 0 : n->f - 1), m = s - n->c / 2 + c;
                if (row < 0 || m < 0 || m >= n->s) continue;
                sum += at(x, ((b * rows + row) * n->s + m) * n->p + p) *
                       at(w, ((o * n->f + f) * n->c + c) * n->p + p);
            }
    return sum;
}

static void check_conv(ag_tape *t)
{
    static const conv_sizes C[] = { { 2, 9, 4, 3, 3, 5, 6 }, { 1, 1, 3, 2, 5, 2, 2 },
                                    { 3, 4, 1, 3, 1, 4, 3 }, { 1, 700, 16, 3, 3, 8, 8 } };
    for (int i = 0; i < 8; i++) {
        const conv_sizes *n = &C[i / 2];
        const bool past = i % 2;
        ag_tensor *x = tensor(t, AG_SHAPE(n->b, n->t + (past ? n->f - 1 : 0), n->s * n->p), 1),
                  *w = tensor(t, AG_SHAPE(n->o, n->f * n->c * n->p), 2),
                  *bias = tensor(t, AG_SHAPE(n->o), 3);
        const ag_module_conv_options o = { n->s, n->f, n->c, past };
        const ag_tensor *y = ag_module_conv(t, x, w, bias, &o);
        assert_true(y->size == n->b * n->t * n->s * n->o);
        for (int64_t j = 0; j < y->size; j++) {
            const int64_t u = j % n->o, s = j / n->o % n->s, pos = j / n->o / n->s;
            near(t, "module_conv", at(y, j),
                 convolved(n, x, w, bias, past, pos / n->t, pos % n->t, s, u),
                 (double)(n->f * n->c * n->p));
        }
    }
}

static void convolution_is_six_loops(void **state)
{
    (void)state;
    on_all_tables(check_conv);
}

/* A change at one position moves no bit before it, nor F positions after it. */
static void check_causal(ag_tape *t)
{
    enum { T = 40, S = 4, P = 3, O = 5, F = 3, AT = 17 };
    const ag_module_conv_options o = { S, F, 3, false };
    ag_tensor *w = tensor(t, AG_SHAPE(O, F * 3 * P), 2);
    double *v = numbers(T * S * P, 1);
    ag_tensor *y[2];
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < S * P; j++) v[AT * S * P + j] += i;
        y[i] = ag_module_conv(t, ag_input_f64(t, AG_SHAPE(1, T, S * P), v, false), w, NULL, &o);
    }
    for (int j = 0; j < T; j++) {
        const size_t row = S * O * ag_dtype_size(y[0]->dtype);
        const bool same = !memcmp((char *)y[0]->data + row * (size_t)j,
                                  (char *)y[1]->data + row * (size_t)j, row);
        if (same != (j < AT || j >= AT + F)) fail_msg("position %d after a change at %d", j, AT);
    }
    free(v);
}

static void convolution_is_causal(void **state)
{
    (void)state;
    on_all_tables(check_causal);
}

/* --- linear layers of modules ----------------------------------------------------------------- */

static void check_modular(ag_tape *t)
{
    enum { R = 20, S = 5, P = 3, O = 4 };
    for (int64_t span = 1; span <= 5; span += 2) {
        ag_tensor *x = tensor(t, AG_SHAPE(R, S * P), 1), *b = tensor(t, AG_SHAPE(S * O), 3),
                  *w = tensor(t, AG_SHAPE(S * O, span * P), 2);
        const ag_tensor *y = ag_module_linear(t, x, w, b, S, span);
        for (int64_t j = 0; j < y->size; j++) {
            const int64_t u = j % (S * O), s = u / O, r = j / (S * O);
            double sum = at(b, u);
            for (int64_t c = 0; c < span; c++)
                for (int64_t p = 0; p < P; p++)
                    sum += at(x, r * S * P + (s - span / 2 + c + S) % S * P + p) *
                           at(w, (u * span + c) * P + p);
            near(t, "module_linear", at(y, j), sum, (double)(span * P));
        }
    }
}

static void modules_see_a_ring(void **state)
{
    (void)state;
    on_all_tables(check_modular);
}

/* --- recall ----------------------------------------------------------------------------------- */

enum { BATCH = 2, LAYERS = 2, SLOTS = 2, WIDTH = 3, PAST = 2 };

/* Row `pos` of a place, the number that stands for it. */
static double row_of(int layer, int slot, int64_t b, int64_t pos)
{
    return pos < 0 ? 0 : 1 + (double)(((layer * SLOTS + slot) * BATCH + b) * 100 + pos);
}

static void feed(ag_tape *t, ag_kv_cache *cache, int64_t from, int64_t n)
{
    for (int place = 0; place < LAYERS * SLOTS; place++) {
        const int layer = place / SLOTS, slot = place % SLOTS;
        double v[BATCH * 8 * WIDTH];
        for (int64_t i = 0; i < BATCH * n * WIDTH; i++)
            v[i] = row_of(layer, slot, i / WIDTH / n, from + i / WIDTH % n);
        ag_tensor *x = ag_input_f64(t, AG_SHAPE(BATCH, n, WIDTH), v, false);
        const ag_tensor *y = ag_recall(t, x, PAST, cache, layer, slot);
        assert_true(y->size == BATCH * (PAST + n) * WIDTH);
        for (int64_t i = 0; i < y->size; i++) {
            const int64_t b = i / WIDTH / (PAST + n), pos = from - PAST + i / WIDTH % (PAST + n);
            assert_true(fabs(at(y, i) - row_of(layer, slot, b, pos)) <= 0);
        }
    }
}

static void recall_hands_on_the_rows_before(void **state)
{
    (void)state;
    static const int64_t parts[] = { 1, 1, 3, 1, 5, 2, 1 };
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    ag_kv_cache *cache = ag_kv_cache_new(NULL, AG_F64, LAYERS, BATCH, 32, 4, 4);
    assert_non_null(cache);
    assert_int_equal(ag_kv_cache_keep(cache, SLOTS, PAST, WIDTH), AG_OK);
    for (int round = 0; round < 2; round++) {
        int64_t pos = 0;
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            feed(t, cache, pos, parts[i]);
            feed(t, cache, pos, parts[i]);       /* a step that is done again: nothing moved */
            ag_kv_cache_advance(cache, parts[i]);
            pos += parts[i];
        }
        ag_kv_cache_reset(cache, 0);
    }
    if (ag_error(t)) fail_msg("%s", ag_error_message(t));
    const struct { int64_t rows; int layer, slot; int64_t width; } bad[] = {
        { PAST + 1, 0, 0, WIDTH }, { PAST, LAYERS, 0, WIDTH }, { PAST, -1, 0, WIDTH },
        { PAST, 0, SLOTS, WIDTH }, { PAST, 0, 0, WIDTH + 1 },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ag_tape_reset(t);
        ag_recall(t, tensor(t, AG_SHAPE(BATCH, 1, bad[i].width), 1), bad[i].rows, cache,
                  bad[i].layer, bad[i].slot);
        assert_int_equal(ag_error(t), AG_ESHAPE);
    }
    ag_kv_cache_free(cache);
    ag_tape_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(multiplicative_is_its_dense_matrix),
        cmocka_unit_test(multiplicative_can_permute),
        cmocka_unit_test(convolution_is_six_loops),
        cmocka_unit_test(convolution_is_causal),
        cmocka_unit_test(modules_see_a_ring),
        cmocka_unit_test(recall_hands_on_the_rows_before),
    };
    return cmocka_run_group_tests_name("module ops", tests, NULL, NULL);
}
