/*
 * test_modules.c -- the kernels of modular layers of every table against the reference: strided
 * copies, products of every pair of rows.
 */
#include "kernel_check.h"

#include <math.h>
#include <stdlib.h>

typedef struct copy_case { int64_t m, n, ldx, ldy; bool acc; const float *x; } copy_case;

static void run_copy(const ag_kernels *k, const void *arg, void *const y[])
{
    const copy_case *c = arg;
    k->fill(c->acc ? 0 : c->m * c->ldy, -7, y[0]);       /* what lies between rows stays */
    k->copy_rows(c->m, c->n, c->x, c->ldx, y[0], c->ldy, c->acc);
}

static void rows_are_copied(void **state)
{
    (void)state;
    static const int64_t C[][4] = { { 0, 5, 5, 5 },  { 1, 1, 1, 1 },    { 3, 5, 5, 9 },
                                    { 4, 17, 31, 17 }, { 6, 16, 16, 16 }, { 9, 33, 0, 40 },
                                    { 301, 130, 140, 131 } };
    for (size_t i = 0; i < sizeof C / sizeof *C; i++)
        for (int acc = 0; acc < 2; acc++) {
            float *x = floats((C[i][0] + 1) * C[i][2] + C[i][1], -1, 1, 1);
            const copy_case c = { C[i][0], C[i][1], C[i][2], C[i][3], acc, x };
            check_kernel("copy_rows", run_copy, &c, 1,
                         &(out){ .n = c.m * c.ldy, .adds = acc, .exact = !acc, .c = 2 });
            free(x);
        }
}

typedef struct outer_case { int64_t a, b, n; const float *p, *q, *dy; } outer_case;

static void run_outer(const ag_kernels *k, const void *arg, void *const y[])
{
    const outer_case *c = arg;
    k->outer_fwd(c->a, c->b, c->n, c->p, c->q, y[0]);
}

static void run_outer_bwd(const ag_kernels *k, const void *arg, void *const y[])
{
    const outer_case *c = arg;
    k->outer_bwd(c->a, c->b, c->n, c->p, c->q, c->dy, y[0], y[1]);
}

static void run_outer_bwd_apart(const ag_kernels *k, const void *arg, void *const y[])
{
    const outer_case *c = arg;
    k->outer_bwd(c->a, c->b, c->n, c->p, c->q, c->dy, y[0], NULL);
    k->outer_bwd(c->a, c->b, c->n, c->p, c->q, c->dy, NULL, y[1]);
}

static double *scales(int64_t n)
{
    double *s = malloc(((size_t)n + 1) * sizeof *s);
    assert_non_null(s);
    for (int64_t i = 0; i < n; i++) s[i] = 1;            /* what the sum is added to */
    return s;
}

static void check_outer(int64_t a, int64_t b, int64_t n)
{
    float *p = floats(a * n, -1, 1, 1), *q = floats(b * n, -1, 1, 2),
        *dy = floats(a * b * n, -1, 1, 3);
    double *sp = scales(a * n), *sq = scales(b * n);
    for (int64_t r = 0; r < a * b; r++)
        for (int64_t l = 0; l < n; l++) {
            const int64_t i = r / b * n + l, j = r % b * n + l;
            sp[i] += fabs((double)q[j] * (double)dy[r * n + l]);
            sq[j] += fabs((double)p[i] * (double)dy[r * n + l]);
        }
    const outer_case c = { a, b, n, p, q, dy };
    check_kernel("outer_fwd", run_outer, &c, 1, &(out){ .n = a * b * n, .exact = true });
    const out bwd[2] = { { .n = a * n, .adds = true, .c = 4, .scale = sp },
                         { .n = b * n, .adds = true, .c = 4, .scale = sq } };
    check_kernel("outer_bwd", run_outer_bwd, &c, 2, bwd);
    check_kernel("outer_bwd, one by one", run_outer_bwd_apart, &c, 2, bwd);
    free(p), free(q), free(dy), free(sp), free(sq);
}

static void products_of_pairs(void **state)
{
    (void)state;
    static const int64_t C[][3] = { { 0, 3, 4 },  { 2, 0, 5 },   { 1, 1, 1 },    { 3, 4, 7 },
                                    { 4, 5, 16 }, { 6, 40, 33 }, { 16, 24, 384 }, { 3, 1000, 65 } };
    for (size_t i = 0; i < sizeof C / sizeof *C; i++) check_outer(C[i][0], C[i][1], C[i][2]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_copied),
        cmocka_unit_test(products_of_pairs),
    };
    return cmocka_run_group_tests_name("modules", tests, NULL, NULL);
}
