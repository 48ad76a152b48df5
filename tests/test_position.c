/*
 * test_position.c -- positional encodings against their formulas written out, and where training
 * examples start: found by trying all starts, so that the test knows nothing of how they are drawn.
 */
#include "tests/layer_check.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { D = 8, VOCAB = 7, CONTEXT = 12, B = 6, SILENT = -1 };

#define POSITION(kind, begins, ...)                                                               \
    { .vocab = VOCAB, .d_model = D, .token_std = 0.5, .start = begins,                            \
      .position = { .type = NN_POSITION_##kind, .context = CONTEXT, .d_model = D, .std = 0.5,     \
                    .start_from_zero_prob = 0.5, __VA_ARGS__ } }

static const nn_embedding_config CASES[] = {
    POSITION(TABLE, false, .max_offset = 5),
    POSITION(TABLE, true, .max_offset = 5),
    POSITION(TABLE, false, .waves = true, .max_offset = -1),
    POSITION(TABLE, false, .features = 4, .max_offset = 3),
    POSITION(TABLE, true, .features = 6, .waves = true, .max_offset = 0),
    POSITION(SIN_COS, false, .max_offset = 40),
    POSITION(SIN_COS, true, .max_offset = 40),
    POSITION(SIN_COS, false, .max_offset = 0),
    POSITION(FIXED_BASE, false, .max_offset = 200),
    POSITION(FIXED_BASE, true, .max_offset = 200),
    POSITION(FIXED_BASE, false, .max_offset = 0),
    POSITION(AXIAL, false, .rows = 3, .cols = 4, .row_width = 2, .max_offset = -1),
    POSITION(AXIAL, true, .rows = 2, .cols = 7, .row_width = 7, .max_offset = 0),
};
enum { N_CASES = sizeof CASES / sizeof *CASES };

typedef struct made {
    nn_params   *p;
    nn_embedding l;
} made;

static made make(const nn_embedding_config *c)
{
    made m = { .p = nn_params_new(AG_F64) };
    ag_err err = { 0 };
    if (nn_embedding_check(c, &err)) fail_msg("%s", err.msg);
    nn_embedding_build(&m.l, m.p, "e", c);
    params_ready(m.p);
    return m;
}

/* ids [b,n] of columns that start at `from`, the first one the start token where there is one. */
static ag_tensor *ids_new(const nn_embedding *l, ag_tape *t, int64_t b, int64_t n, int64_t from)
{
    int32_t ids[MAX_SIZE];
    for (int64_t e = 0; e < b * n; e++)
        ids[e] = l->start && from + e % n == 0 ? VOCAB : (int32_t)(e * e % VOCAB);
    return ag_input_i32(t, AG_SHAPE(b, n), ids);
}

/* --- the formulas ----------------------------------------------------------------------------- */

static double weight(const nn_params *p, const char *name, int64_t row, int64_t j)
{
    const nn_item *item = nn_params_find(p, name);
    if (!item) fail_msg("there is no %s", name);
    assert_in_range(row, 0, item->tensor->shape.dim[0] - 1);
    assert_in_range(j, 0, item->tensor->shape.dim[1] - 1);
    return ((double *)item->tensor->data)[row * item->tensor->shape.dim[1] + j];
}

static double table_of(const nn_params *p, const nn_position_config *c, int64_t i, int64_t j)
{
    if (!c->features) return weight(p, "e/position", i, j);
    double sum = 0;
    for (int64_t f = 0; f < c->features; f++)
        sum += weight(p, "e/features/weight", j, f) * weight(p, "e/position", i, f);
    return sum;
}

static double digits_of(const nn_params *p, int64_t i, int64_t j)
{
    static const int BASES[] = { 11, 13, 14, 15 };
    double sum = 0;
    for (int b = 0; b < 4; b++) {
        int64_t rest = i;
        for (int64_t m = 0; m < j / (D / 8); m++) rest /= BASES[b];
        sum += (double)(rest % BASES[b]) * weight(p, "e/digits", j, b);
    }
    return sum;
}

/* What position i of a sequence that starts at s adds to feature j. */
static double position_of(const nn_params *p, const nn_position_config *c, int64_t i, int64_t s,
                          int64_t j)
{
    switch (c->type) {
    case NN_POSITION_TABLE: return table_of(p, c, i + s, j);
    case NN_POSITION_SIN_COS: {
        const double angle = (double)(i + s) / pow(10000, 2.0 * (double)(j % (D / 2)) / D);
        return j < D / 2 ? sin(angle) : cos(angle);
    }
    case NN_POSITION_FIXED_BASE:
        return (s == SILENT ? 0 : digits_of(p, i + s, j)) +
               (i == 0 ? weight(p, "e/first", 0, j) : 0);
    default:
        return j < c->row_width ? weight(p, "e/row", i / c->cols, j)
                                : weight(p, "e/column", i % c->cols, j - c->row_width);
    }
}

/* Whether example b of y [.,n,D], columns from `from` on, is what it is with start s. */
static bool starts_at(const made *m, const ag_tensor *y, const ag_tensor *ids, int64_t b,
                      int64_t from, int64_t s)
{
    const int64_t n = ids->shape.dim[1];
    const double tol = m->l.config.position.type == NN_POSITION_SIN_COS ? 1e-7 : 1e-13;
    for (int64_t e = b * n * D; e < (b + 1) * n * D; e++) {
        const int64_t row = e / D, j = e % D, at = from + row % n - (m->l.start ? 1 : 0);
        const double want =
            at < 0 ? weight(m->p, "e/start", 0, j)
                   : weight(m->p, "e/token", ((const int32_t *)ids->data)[row], j) +
                         position_of(m->p, &m->l.config.position, at, s, j);
        if (!(fabs(((const double *)y->data)[e] - want) <= tol)) return false;
    }
    return true;
}

static int64_t found_start(const made *m, const ag_tensor *y, const ag_tensor *ids, int64_t b)
{
    const nn_position_config *c = &m->l.config.position;
    const int64_t most = c->max_offset > 0 ? c->max_offset : 1;
    for (int64_t s = c->type == NN_POSITION_FIXED_BASE ? SILENT : 0; s < most; s++)
        if (starts_at(m, y, ids, b, 0, s)) return s;
    fail_msg("type %d: example %lld has no start below %lld", (int)c->type, (long long)b,
             (long long)most);
    return 0;
}

static void training_is_the_formula_from_some_start(void **state)
{
    (void)state;
    for (int i = 0; i < N_CASES; i++) {
        const made m = make(&CASES[i]);
        ag_tape *t = tape_new();
        int differ = 0;
        for (uint32_t step = 0; step < 4; step++) {
            ag_tape_reset(t);
            noise(t, step, 0, B);
            ag_tensor *ids = ids_new(&m.l, t, B, CONTEXT, 0);
            const ag_tensor *y = nn_embedding_forward(&m.l, t, ids, 0, NN_TRAIN);
            tape_ok(t);
            for (int64_t b = 0; b < B; b++) differ += found_start(&m, y, ids, b) > 0;
        }
        const int examples = 4 * B;
        if (CASES[i].position.max_offset > 0) assert_in_range(differ, 1, examples - 1);
        else assert_int_equal(differ, 0);
        ag_tape_free(t);
        nn_params_free(m.p);
    }
}

/* All at once, and in pieces as decoding does it; the same bits. */
static void evaluation_starts_at_0(void **state)
{
    (void)state;
    static const int64_t CUTS[][2] = { { 0, CONTEXT }, { 0, 1 }, { 1, 1 }, { 2, 7 }, { 9, 3 } };
    for (int i = 0; i < N_CASES; i++) {
        const made m = make(&CASES[i]);
        ag_tape *t = tape_new();
        noise(t, 1, 0, 2);
        for (int k = 0; k < 5; k++) {
            ag_tensor *ids = ids_new(&m.l, t, 2, CUTS[k][1], CUTS[k][0]);
            const ag_tensor *y = nn_embedding_forward(&m.l, t, ids, CUTS[k][0],
                                                      k % 2 ? NN_EVAL : NN_EVAL_SOFT);
            tape_ok(t);
            for (int64_t b = 0; b < 2; b++) assert_true(starts_at(&m, y, ids, b, CUTS[k][0], 0));
        }
        const int64_t end = CONTEXT + (m.l.start ? 1 : 0);
        nn_embedding_forward(&m.l, t, ids_new(&m.l, t, 2, 2, end - 1), end - 1, NN_EVAL);
        assert_int_equal(ag_error(t), AG_ERANGE);
        ag_tape_free(t);
        nn_params_free(m.p);
    }
}

static ag_tensor *trained(const void *layer, ag_tape *t, ag_tensor *x)
{
    const nn_embedding *l = layer;
    return nn_embedding_forward(l, t, ids_new(l, t, 4, CONTEXT, 0), 0, x ? NN_TRAIN : NN_EVAL);
}

/* With dropout of positions too.  Of a table only the rows that are read have a gradient. */
static void gradients(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * N_CASES; i++) {
        nn_embedding_config c = CASES[i / 2];
        if (i % 2) c.position.dropout = 0.3;
        const made m = make(&c);
        check_subject(&(subject){ m.p, &m.l, trained, AG_SHAPE(4, CONTEXT), VOCAB });
        nn_params_free(m.p);
    }
}

static void waves_are_interleaved(void **state)
{
    (void)state;
    nn_params *p = nn_params_new(AG_F64);
    nn_embedding l;
    ag_err err = { 0 };
    nn_embedding_build(&l, p, "e", &CASES[2]);
    assert_int_equal(nn_params_alloc(p, SEED, &err), AG_OK);
    for (int64_t i = 0; i < CONTEXT; i++)
        for (int64_t j = 0; j < D; j++) {
            const double angle = (double)i * exp(-log(10000) * (double)(j - j % 2) / D);
            assert_true(fabs(weight(p, "e/position", i, j) -
                             (j % 2 ? cos(angle) : sin(angle))) <= 1e-7);
        }
    nn_params_free(p);
}

/* --- noise ------------------------------------------------------------------------------------ */

/* Reads the position off: base 11 alone, and a digit m for each feature m. */
static int64_t read_start(const ag_tensor *y, int64_t b, int64_t n)
{
    int64_t s = 0;
    for (int64_t j = D - 1; j >= 0; j--)
        s = 11 * s + (int64_t)lround(((const double *)y->data)[b * n * D + j]);
    return s;
}

static made readable(int64_t max_offset, double zero)
{
    nn_embedding_config c = CASES[8];
    c.position.max_offset = max_offset;
    c.position.start_from_zero_prob = zero;
    const made m = make(&c);
    for (int i = 0; i < m.p->n_items; i++)
        for (int64_t j = 0; j < m.p->items[i].count; j++)
            ((double *)m.p->items[i].tensor->data)[j] =
                !strcmp(m.p->items[i].name, "e/digits") && j % 4 == 0;
    return m;
}

enum { MANY = 4000, BINS = 10 };

/* Starts of MANY examples in two columns (the position of the second tells a start at 0 from no
 * position): counts of those at 0 and of those without position, and of the others in BINS. */
static void count_starts(const made *m, int64_t most, int64_t *ret_zero, int64_t *ret_silent,
                         int64_t bin[BINS])
{
    ag_tape *t = tape_new();
    noise(t, 9, 0, MANY);
    int32_t *ids = calloc(2 * MANY, sizeof *ids);
    const ag_tensor *y = nn_embedding_forward(&m->l, t, ag_input_i32(t, AG_SHAPE(MANY, 2), ids), 0,
                                              NN_TRAIN);
    tape_ok(t);
    *ret_zero = *ret_silent = 0;
    memset(bin, 0, BINS * sizeof *bin);
    for (int64_t b = 0; b < MANY; b++) {
        const int64_t s = read_start(y, 2 * b, 1), next = read_start(y, 2 * b + 1, 1);
        assert_in_range(s, 0, most - 1);
        *ret_silent += next == 0;
        *ret_zero += s == 0 && next == 1;
        if (s) assert_int_equal(next, s + 1);
        if (s) bin[s * BINS / most]++;
    }
    free(ids);
    ag_tape_free(t);
}

static void starts_are_spread_evenly(void **state)
{
    (void)state;
    const int64_t all = 214358881 - CONTEXT;
    static const double ZERO[] = { 0.5, 0, 1, 0.9 };
    for (int i = 0; i < 4; i++) {
        const made m = readable(i == 3 ? 1000 : -1, ZERO[i]);
        int64_t zero, silent, bin[BINS], rest = MANY;
        count_starts(&m, i == 3 ? 1000 : all, &zero, &silent, bin);
        rest -= zero + silent;
        const double n = MANY, p = 0.99 * ZERO[i], sigma = sqrt(n * p * (1 - p));
        assert_true(fabs((double)silent - 0.01 * n) <= 4 * sqrt(0.0099 * n));
        if (i == 1) assert_int_equal(zero, 0);
        else if (i == 2) assert_int_equal(zero + silent, MANY);
        else assert_true(fabs((double)zero - p * n) <= 4.5 * sigma + 1);
        double chi2 = 0, want = (double)rest / BINS;
        for (int k = 0; rest && k < BINS; k++) chi2 += pow((double)bin[k] - want, 2) / want;
        assert_true(chi2 < 33);                  /* 9 degrees of freedom: 1 in 7000 */
        nn_params_free(m.p);
    }
}

static void whole_positions_are_dropped(void **state)
{
    (void)state;
    for (int i = 0; i < N_CASES; i++) {
        nn_embedding_config c = CASES[i];
        if (c.start || c.position.max_offset > 0 || c.position.type == NN_POSITION_FIXED_BASE)
            continue;
        c.position.dropout = 0.25;
        const made m = make(&c);
        ag_tape *t = tape_new();
        const int64_t b = 40, rows = b * CONTEXT;
        noise(t, 5, 0, b);
        ag_tensor *ids = ids_new(&m.l, t, b, CONTEXT, 0);
        const ag_tensor *y = nn_embedding_forward(&m.l, t, ids, 0, NN_TRAIN);
        tape_ok(t);
        int64_t dropped = 0;
        for (int64_t r = 0; r < rows; r++) {
            double most = 0, off[2] = { 0, 0 };
            for (int64_t j = 0; j < D; j++) {
                const double pos = position_of(m.p, &c.position, r % CONTEXT, 0, j),
                    got = ((const double *)y->data)[r * D + j] -
                          weight(m.p, "e/token", ((int32_t *)ids->data)[r], j);
                most = fmax(most, fabs(pos));
                off[0] = fmax(off[0], fabs(got));
                off[1] = fmax(off[1], fabs(got - pos / 0.75));
            }
            assert_true(most > 1e-3 && (off[0] == 0 || off[1] <= 1e-6));
            dropped += off[0] == 0;
        }
        const double n = (double)rows;
        assert_true(fabs((double)dropped - n / 4) <= 4.5 * sqrt(n * 3 / 16));
        ag_tape_free(t);
        nn_params_free(m.p);
    }
}

/* The batch in parts of 1, 2 and 3 has the bits that it has at once. */
static void parts_of_a_batch_draw_the_same(void **state)
{
    (void)state;
    for (int i = 0; i < N_CASES; i++) {
        nn_embedding_config c = CASES[i];
        c.position.dropout = 0.4;
        const made m = make(&c);
        ag_tape *whole = tape_new(), *part = tape_new();
        noise(whole, 2, 0, B);
        ag_tensor *ids = ids_new(&m.l, whole, B, CONTEXT, 0);
        const double *y = nn_embedding_forward(&m.l, whole, ids, 0, NN_TRAIN)->data;
        tape_ok(whole);
        for (int64_t at = 0, n = 1; at < B; at += n++) {
            ag_tape_reset(part);
            noise(part, 2, at, n);
            ag_tensor *some =
                ag_input_i32(part, AG_SHAPE(n, CONTEXT), (int32_t *)ids->data + at * CONTEXT);
            const ag_tensor *z = nn_embedding_forward(&m.l, part, some, 0, NN_TRAIN);
            tape_ok(part);
            assert_memory_equal(z->data, y + at * CONTEXT * D, (size_t)z->size * sizeof *y);
        }
        ag_tape_free(whole);
        ag_tape_free(part);
        nn_params_free(m.p);
    }
}

/* --- checks and sizes ------------------------------------------------------------------------- */

static void sizes(void **state)
{
    (void)state;
    static const struct { int at; int64_t params, unread, products; } WANT[] = {
        { 0, 17 * D, 16 * D, 0 },              /* max_offset rows more than the context */
        { 3, 15 * 4 + D * 4, 14 * 4, 4 * D }, { 5, 0, 0, 0 }, { 8, 4 * D + D, D, 4 * D },
        { 11, 3 * 2 + 4 * 6, 2 * 2 + 3 * 6, 0 },
    };
    for (int i = 0; i < 5; i++) {
        const made m = make(&CASES[WANT[i].at]);
        assert_int_equal(m.p->n_used, VOCAB * D + WANT[i].params);
        assert_int_equal(nn_embedding_unread(&m.l, true), WANT[i].unread);
        assert_int_equal(nn_embedding_products(&m.l), WANT[i].products);
        nn_params_free(m.p);
    }
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
#define REFUSED(case, field, value, word)                                                         \
    do {                                                                                          \
        nn_position_config c = CASES[case].position;                                              \
        ag_err err = { 0 };                                                                       \
        assert_int_equal(nn_position_check(&c, &err), AG_OK);                                     \
        c.field = value;                                                                          \
        assert_int_equal(nn_position_check(&c, &err), AG_ECONFIG);                                \
        if (!strstr(err.msg, word)) fail_msg("'%s' does not say '%s'", err.msg, word);            \
    } while (0)
    REFUSED(8, d_model, 12, "d_model = 12 must be a multiple");
    REFUSED(5, d_model, 9, "an even width, not d_model = 9");
    REFUSED(2, d_model, 9, "an even width, not d_model = 9");
    REFUSED(4, features, 3, "an even width, not position.features = 3");
    REFUSED(5, features, 4, "0 unless position.type is table");
    REFUSED(5, waves, true, "is for position.type = table");
    REFUSED(11, rows, 2, "position.rows = 2 times position.cols = 4 must cover the context of 12");
    REFUSED(11, cols, 0, "position.cols = 0");
    REFUSED(11, row_width, 0, "position.row_width = 0 must be in [1, 7]");
    REFUSED(11, row_width, 8, "position.row_width = 8 must be in [1, 7]");
    REFUSED(11, max_offset, 1, "position.max_offset = 1 must be in [-1, 0]");
    REFUSED(8, max_offset, 214358870, "must be in [-1, 214358869]");
    REFUSED(0, max_offset, -2, "position.max_offset = -2");
    REFUSED(0, dropout, 1, "position.dropout = 1 must be in [0, 1)");
    REFUSED(0, dropout, NAN, "position.dropout");
    REFUSED(0, start_from_zero_prob, 1.5, "start_from_zero_prob = 1.5 must be in [0, 1]");
#undef REFUSED
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_is_the_formula_from_some_start),
        cmocka_unit_test(evaluation_starts_at_0),
        cmocka_unit_test(gradients),
        cmocka_unit_test(waves_are_interleaved),
        cmocka_unit_test(starts_are_spread_evenly),
        cmocka_unit_test(whole_positions_are_dropped),
        cmocka_unit_test(parts_of_a_batch_draw_the_same),
        cmocka_unit_test(sizes),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
