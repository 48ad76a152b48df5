/*
 * test_merge.c -- source and target in one row and out of it again: every length, against the
 * definition, and gradients that come back to where the numbers were.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 20, D = 3 };

static double source_at(int64_t b, int64_t i, int64_t c) { return (double)(1000 * b + 10 * i + c); }
static double target_at(int64_t b, int64_t i, int64_t c) { return -0.5 - source_at(b, i, c); }

typedef double numbers(int64_t b, int64_t i, int64_t c);

static ag_tensor *rows(ag_tape *t, int64_t batch, int64_t n, numbers *at)
{
    double *v = uniform_new(batch * n * D, 0, 0, 0);
    for (int64_t i = 0; i < batch * n * D; i++) v[i] = at(i / D / n, i / D % n, i % D);
    ag_tensor *x = ag_input_f64(t, AG_SHAPE(batch, n, D), v, true);
    free(v);
    return x;
}

/* Row i of the definition, from lengths, m source and n target rows. */
static double merged_at(int64_t length, int64_t m, int64_t n, int64_t b, int64_t i, int64_t c)
{
    if (i >= length && i < length + n) return target_at(b, i - length, c);
    return i < m ? source_at(b, i, c) : 0;
}

static void check_merged(const ag_tensor *x, const int32_t *lengths, int64_t m, int64_t n)
{
    const double *v = x->data;
    for (int64_t b = 0; b <= m; b++)
        for (int64_t i = 0; i < m + n; i++)
            for (int64_t c = 0; c < D; c++, v++)
                assert_true(*v == merged_at(lengths[b], m, n, b, i, c));
}

/* dy is `dx` of the merged row: 1 for each row of the target, 0 for what strip leaves out. */
static void check_gradients(const ag_tensor *e, const ag_tensor *y)
{
    for (int64_t i = 0; i < e->size; i++) assert_true(((double *)e->grad)[i] == 0);
    for (int64_t i = 0; i < y->size; i++)
        assert_true(((double *)y->grad)[i] == ((double *)y->data)[i]);
}

/* One item for each length 0 .. m. */
static void round_trip(int64_t m, int64_t n)
{
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    int32_t lengths[MOST + 1];
    for (int i = 0; i <= MOST; i++) lengths[i] = i;
    ag_tensor *e = rows(t, m + 1, m, source_at), *y = rows(t, m + 1, n, target_at);
    ag_tensor *at = ag_input_i32(t, AG_SHAPE(m + 1), lengths);
    ag_tensor *x = ag_merge(t, e, y, at), *back = ag_strip(t, x, at, n);
    assert_int_equal(ag_error(t), AG_OK);
    check_merged(x, lengths, m, n);
    assert_memory_equal(back->data, y->data, (size_t)y->size * sizeof(double));
    assert_int_equal(ag_backward_from(t, back, y->data), AG_OK);
    check_gradients(e, y);
    ag_tape_free(t);
}

static void every_length(void **state)
{
    (void)state;
    for (int64_t m = 1; m <= MOST; m++)
        for (int64_t n = 1; n <= MOST; n++) round_trip(m, n);
}

/* The gradient of a merged row goes to the source where that is seen, also behind the target. */
static void gradient_of_the_source(void **state)
{
    enum { M = 7, N = 2, B = M + 1 };
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    int32_t lengths[B];
    double dx[B * (M + N) * D];
    for (int i = 0; i < B; i++) lengths[i] = i;
    for (int i = 0; i < B * (M + N) * D; i++) dx[i] = i + 1;
    ag_tensor *e = rows(t, B, M, source_at), *y = rows(t, B, N, target_at);
    ag_tensor *x = ag_merge(t, e, y, ag_input_i32(t, AG_SHAPE(B), lengths));
    assert_int_equal(ag_backward_from(t, x, dx), AG_OK);
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < M * D; i++) {
            const int64_t row = i / D;
            const bool hidden = row >= lengths[b] && row < lengths[b] + N;
            assert_true(((double *)e->grad)[b * M * D + i] ==
                        (hidden ? 0 : dx[b * (M + N) * D + i]));
        }
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < N * D; i++)
            assert_true(((double *)y->grad)[b * N * D + i] ==
                        dx[(b * (M + N) + lengths[b]) * D + i]);
    ag_tape_free(t);
}

static void ids_are_taken_apart(void **state)
{
    static const int32_t ids[] = { 7, 3, 0, 0, 5, 9, 2, 4, 6, 0, 1, 8, 0, 0, 0, 0, 0, 2 };
    (void)state;
    ag_tape *t = tape_new(ag_kernels_ref(AG_F64));
    ag_tensor *x = ag_input_i32(t, AG_SHAPE(3, 6), ids);
    ag_tensor *n = ag_count_tokens(t, x, 4), *y = ag_columns(t, x, 4, 2);
    assert_memory_equal(n->data, ((const int32_t[]){ 2, 3, 0 }), 3 * sizeof(int32_t));
    assert_memory_equal(y->data, ((const int32_t[]){ 5, 9, 1, 8, 0, 2 }), 6 * sizeof(int32_t));
    ag_columns(t, x, 5, 2);
    assert_int_equal(ag_error(t), AG_ESHAPE);
    assert_non_null(strstr(ag_error_message(t), "columns 5 to 6, got [3,6]"));
    ag_tape_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_length), cmocka_unit_test(gradient_of_the_source),
        cmocka_unit_test(ids_are_taken_apart),
    };
    return cmocka_run_group_tests_name("merge", tests, NULL, NULL);
}
