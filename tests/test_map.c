/*
 * test_map.c -- elementwise kernels, column sums and plain sums against the reference; accuracy of
 * the functions.
 */
#include "kernel_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int64_t sizes[] = { 0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 97, 1009, 4099,
                                 50021 };
enum { N_SIZES = sizeof sizes / sizeof *sizes };

typedef struct map_case {            /* op `id` on n numbers */
    int     id;
    bool    bwd, acc, acc2;
    int64_t n;
    double  alpha;
    const float *a, *b, *y, *dy;
} map_case;

static double *absolutes(int64_t n, const float *x)
{
    double *s = calloc((size_t)n + 1, sizeof *s);
    for (int64_t i = 0; s && i < n; i++)
        s[i] = fabs((double)x[i]) + 1;
    return s;
}

static void run_unary(const ag_kernels *k, const void *arg, void *const y[])
{
    const map_case *c = arg;
    if (c->bwd)
        k->unary_bwd[c->id](c->n, c->a, c->y, c->dy, y[0], c->acc);
    else
        k->unary_fwd[c->id](c->n, c->a, y[0]);
}

static void check_unary(const char *name, int id, int64_t n, double lo, double hi)
{
    float *x = floats(n, lo, hi, 1), *dy = floats(n, -1, 1, 2), *y = floats(n, 0, 1, 3);
    double *scale = absolutes(n, x);
    ag_kernels_ref(AG_F32)->unary_fwd[id](n, x, y);
    for (int i = 0; i < 3; i++) {
        const map_case c = { .id = id, .bwd = i > 0, .acc = i == 2, .n = n, .a = x, .y = y,
                             .dy = dy };
        const out o = { .n = n, .adds = c.acc, .c = 4, .scale = scale };
        check_kernel(name, run_unary, &c, 1, &o);
    }
    free(x), free(dy), free(y), free(scale);
}

static void test_unary(void **state)
{
    (void)state;
    for (int i = 0; i < N_SIZES; i++) {
#define AG_UNARY(name, f, df, lo, hi, gap) check_unary(#name, AG_UNARY_##name, sizes[i], lo, hi);
#include "autograd/unary.def"
#undef AG_UNARY
    }
}

static void run_binary(const ag_kernels *k, const void *arg, void *const y[])
{
    const map_case *c = arg;
    if (c->bwd)
        k->binary_bwd[c->id](c->n, c->a, c->b, c->y, c->dy, y[0], c->acc, y[1], c->acc2);
    else
        k->binary_fwd[c->id](c->n, c->a, c->b, y[0]);
}

static void check_binary(const char *name, int id, int64_t n, double lo, double hi)
{
    float *a = floats(n, lo, hi, 1), *b = floats(n, lo, hi, 2), *dy = floats(n, -1, 1, 3),
        *y = floats(n, 0, 1, 4);
    ag_kernels_ref(AG_F32)->binary_fwd[id](n, a, b, y);
    for (int i = 0; i < 5; i++) {
        map_case c = { .id = id, .bwd = i > 0, .acc = i & 1, .acc2 = (i & 2) != 0, .n = n, .a = a,
                       .b = b, .y = y };
        c.dy = dy;
        const out o[2] = { { .n = n, .adds = c.bwd && c.acc, .c = 4 },
                           { .n = n, .adds = c.acc2, .c = 4 } };
        check_kernel(name, run_binary, &c, c.bwd ? 2 : 1, o);
    }
    free(a), free(b), free(dy), free(y);
}

static void test_binary(void **state)
{
    (void)state;
    for (int i = 0; i < N_SIZES; i++) {
#define AG_BINARY(name, f, dfa, dfb, lo, hi, gap) \
        check_binary(#name, AG_BINARY_##name, sizes[i], lo, hi);
#include "autograd/binary.def"
#undef AG_BINARY
    }
}

/* d(x * x)/dx arrives as da and db in one array; and db may be unwanted. */
static void run_binary_shared(const ag_kernels *k, const void *arg, void *const y[])
{
    const map_case *c = arg;
    k->binary_bwd[AG_BINARY_mul](c->n, c->a, c->a, c->y, c->dy, y[0], false, y[0], true);
    k->binary_bwd[AG_BINARY_mul](c->n, c->a, c->a, c->y, c->dy, NULL, false, y[0], true);
    k->binary_bwd[AG_BINARY_mul](c->n, c->a, c->a, c->y, c->dy, y[0], true, NULL, false);
}

static void test_binary_shared_gradient(void **state)
{
    (void)state;
    const int64_t n = 50021;
    float *a = floats(n, -2, 2, 1), *dy = floats(n, -1, 1, 2);
    const map_case c = { .n = n, .a = a, .y = a, .dy = dy };
    const out o = { .n = n, .c = 16 };
    check_kernel("shared gradient", run_binary_shared, &c, 1, &o);
    free(a), free(dy);
}

static void run_plain(const ag_kernels *k, const void *arg, void *const y[])
{
    const map_case *c = arg;
    switch (c->id) {
    case 0: k->fill(c->n, c->alpha, y[0]); break;
    case 1: k->add(c->n, c->a, y[0]); break;
    case 2: k->scale(c->n, c->alpha, c->a, y[0], c->acc); break;
    default: k->add_scalar(c->n, c->alpha, c->b, y[0], c->acc); break;
    }
}

static void test_plain(void **state)
{
    static const char *const names[] = { "fill", "add", "scale", "add_scalar" };
    const float constant = 0.3f;
    (void)state;
    for (int i = 0; i < N_SIZES; i++)
        for (int k = 0; k < 8; k++) {
            float *x = floats(sizes[i], -2, 2, 1);
            const map_case c = { .id = k / 2, .acc = k & 1, .n = sizes[i], .alpha = 0.7, .a = x,
                                 .b = &constant };
            const out o = { .n = c.n, .adds = c.id == 1 || (c.id && c.acc), .c = 2,
                            .exact = c.id < 2 };
            check_kernel(names[c.id], run_plain, &c, 1, &o);
            free(x);
        }
}

typedef struct matrix_case {
    int     id;
    bool    acc, alias, no_dx;
    ag_act  act;
    int64_t m, n;
    const float *x, *dy;
} matrix_case;

static void run_sums(const ag_kernels *k, const void *arg, void *const y[])
{
    const matrix_case *c = arg;
    switch (c->id) {
    case 0: k->sum(c->m * c->n, 0.25, c->x, y[0]); break;
    case 1: k->row_sum(c->m, c->n, c->x, y[0]); break;
    default: k->row_add(c->m, c->n, c->dy, y[0], c->acc); break;
    }
}

static void check_sums(int64_t m, int64_t n)
{
    /* one sign: no mercy by cancelling */
    float *x = floats(m * n, 0.5, 1, 1), *dy = floats(m, -1, 1, 2);
    const matrix_case c = { .id = 0, .m = m, .n = n, .x = x, .dy = dy };
    matrix_case row = c, spread = c;
    row.id = 1;
    spread.id = 2;
    check_kernel("sum", run_sums, &c, 1, &(out){ .n = 1, .c = 0.25 * 0.75 * (double)(m * n) * 4 });
    check_kernel("row_sum", run_sums, &row, 1, &(out){ .n = m, .c = 0.75 * (double)n * 4 });
    check_kernel("row_add", run_sums, &spread, 1, &(out){ .n = m * n, .exact = true });
    spread.acc = true;
    check_kernel("row_add", run_sums, &spread, 1, &(out){ .n = m * n, .adds = true, .c = 2 });
    free(x), free(dy);
}

static void test_sums(void **state)
{
    static const int64_t shape[][2] = { { 0, 5 }, { 1, 1 }, { 3, 0 }, { 1, 7 }, { 5, 17 },
                                        { 97, 384 }, { 3, 50021 },
                                        { 1, 3000017 } };
    (void)state;
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        check_sums(shape[i][0], shape[i][1]);
}

static void run_act(const ag_kernels *k, const void *arg, void *const y[])
{
    const matrix_case *c = arg;
    if (c->alias)
        memcpy(y[1], c->dy, (size_t)(c->m * c->n) * sizeof(float));
    k->act_bwd(c->act, c->m, c->n, c->x, c->alias ? y[1] : c->dy, c->no_dx ? NULL : y[1],
               c->id ? NULL : y[0], c->acc);
    if (c->no_dx)
        memset(y[1], 0, (size_t)(c->m * c->n) * sizeof(float));
    if (c->id)
        memset(y[0], 0, (size_t)c->n * sizeof(float));
}

static void check_act(ag_act act, int64_t m, int64_t n)
{
    float *x = floats(m * n, -4, 4, 1), *dy = floats(m * n, 0, 1, 2);
    double *scale = calloc((size_t)n + 1, sizeof *scale);
    assert_non_null(scale);
    for (int64_t i = 0; i < m * n; i++)
        scale[i % n] += 1.2 * (double)dy[i];
    for (int i = 0; i < 5; i++) {   /* plain; adding; in place; only sums; only dx */
        const matrix_case c = { .id = i == 4, .act = act, .m = m, .n = n, .x = act ? x : NULL,
                                .dy = dy, .acc = i == 1, .alias = i == 2, .no_dx = i == 3 };
        const out o[2] = { { .n = n, .adds = c.acc, .c = act > AG_ACT_RELU ? 8 : 4,
                             .scale = scale },
                           { .n = m * n, .c = 8, .exact = act <= AG_ACT_RELU } };
        check_kernel("act_bwd", run_act, &c, 2, o);
    }
    free(x), free(dy), free(scale);
}

static void test_act_bwd(void **state)
{
    static const int64_t m[] = { 1, 7, 8, 9, 257, 1009 }, n[] = { 1, 3, 16, 65, 600 };
    (void)state;
    for (int act = 0; act < AG_ACT_COUNT; act++)
        for (size_t i = 0; i < 6; i++)
            for (size_t j = 0; j < 5; j++)
                check_act((ag_act)act, m[i], n[j]);
    check_act(AG_ACT_NONE, 60013, 5);                     /* a long sum of one sign */
}

typedef struct sweep {               /* a function over all f32 bit patterns with a step */
    int    id;
    double (*f)(double);
    bool   by_x;                     /* |error| <= limit u |x|, else ulp of the result */
    double limit;
} sweep;

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double gelu_quick(double x) { return x / (1 + exp(-1.702 * x)); }
static double gelu_erf(double x) { return x * 0.5 * erfc(-x * M_SQRT1_2); }
static double gelu_tanh(double x)
{
    return x / (1 + exp(-2 * sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static void check_point(const sweep *s, const ag_kernels *k, float x, float got, double want)
{
    if (isnan(want) || isinf((float)want)) {
        const bool right = isnan(want) ? isnan(got) : got == (float)want;
        if (!right)
            fail_msg("%s: function %d of %g is %g, should be %g", k->name, s->id, (double)x,
                     (double)got, want);
        return;
    }
    int e;
    frexp(want, &e);
    double bound = s->limit
        * (s->by_x ? U32 * fabs((double)x) + 0x1p-149 : ldexp(1, (e < -125 ? -125 : e) - 24));
    if (s->id == AG_UNARY_sigmoid && bound < 0x1p-126)
        bound = 0x1p-126;            /* its reciprocal overflows */
    if (!(fabs((double)got - want) <= bound))
        fail_msg("%s: function %d of %.9g is %.9g, should be %.17g: %.3g of the limit", k->name,
                 s->id, (double)x, (double)got, want, fabs((double)got - want) / bound);
}

static void test_functions_over_all_numbers(void **state)
{
    static const sweep sweeps[] = {
        { AG_UNARY_exp, exp, false, 1.5 },          { AG_UNARY_log, log, false, 1.5 },
        { AG_UNARY_tanh, tanh, false, 2 },          { AG_UNARY_sigmoid, sigmoid, false, 2.5 },
        { AG_UNARY_gelu_tanh, gelu_tanh, true, 4 }, { AG_UNARY_gelu_erf, gelu_erf, true, 4 },
        { AG_UNARY_gelu_quick, gelu_quick, true, 4 } };
    static float x[4096], y[4096];
    static double want[4096];
    const ag_kernels *table[MAX_TABLES];
    const int n_tables = fast_tables(table);
    (void)state;
    for (size_t s = 0; s < sizeof sweeps / sizeof *sweeps; s++)
        for (uint64_t bits = 0; bits < (uint64_t)1 << 32;) {
            int64_t n = 0;
            for (; n < 4096 && bits < (uint64_t)1 << 32; bits += 1999) {
                const uint32_t b = (uint32_t)bits;
                memcpy(&x[n], &b, sizeof b);
                if (sweeps[s].by_x && isinf(x[n]))
                    continue;        /* inf / inf */
                want[n] = sweeps[s].f((double)x[n]);
                n++;
            }
            for (int t = 0; t < n_tables; t++) {
                table[t]->unary_fwd[sweeps[s].id](n, x, y);
                for (int64_t i = 0; i < n; i++)
                    check_point(&sweeps[s], table[t], x[i], y[i], want[i]);
            }
        }
}

static void test_special_values(void **state)
{
    const float x[5] = { INFINITY, -INFINITY, NAN, 0.0f, -0.0f };
    const ag_kernels *table[MAX_TABLES];
    const int n_tables = fast_tables(table);
    (void)state;
    for (int t = 0; t < n_tables; t++) {
        float y[5];
        table[t]->unary_fwd[AG_UNARY_exp](5, x, y);
        assert_true(isinf(y[0]) && y[0] > 0 && y[1] == 0 && isnan(y[2]) && y[3] == 1 && y[4] == 1);
        table[t]->unary_fwd[AG_UNARY_log](5, x, y);
        assert_true(isinf(y[0]) && isnan(y[1]) && isnan(y[2]) && isinf(y[3]) && y[3] < 0 &&
                    isinf(y[4]) && y[4] < 0);
        table[t]->unary_fwd[AG_UNARY_tanh](5, x, y);
        assert_true(y[0] == 1 && y[1] == -1 && isnan(y[2]) && y[3] == 0 && !signbit(y[3]) &&
                    signbit(y[4]));
        table[t]->unary_fwd[AG_UNARY_sigmoid](5, x, y);
        assert_true(y[0] == 1 && y[1] == 0 && isnan(y[2]) && y[3] == 0.5f);
    }
}

static void test_dispatch(void **state)
{
    static const char *const names[] = { "ref", "base", "avx2", "avx512" };
    const ag_kernels *all[MAX_TABLES];
    const char *why = NULL, *before = getenv("TULLE_ISA");
    char *saved = before ? strdup(before) : NULL;
    const int n = ag_kernels_all(AG_F32, all, MAX_TABLES);
    (void)state;
    assert_int_equal(ag_kernels_all(AG_F32, all, 1), 1);
    for (int i = 0; i < 4; i++) {
        setenv("TULLE_ISA", names[i], 1);
        const ag_kernels *k = ag_kernels_best(AG_F32, &why);
        assert_true(k ? !strcmp(k->name, names[i]) : why != NULL);
        assert_true(k || i > 0);
    }
    setenv("TULLE_ISA", "mmx", 1);
    why = NULL;
    assert_null(ag_kernels_best(AG_F32, &why));
    assert_non_null(strstr(why, "ref, base, avx2, avx512 or avx512bf16"));
    unsetenv("TULLE_ISA");
    assert_string_equal(ag_kernels_best(AG_F32, &why)->name, all[n > 1 ? n - 1 : 0]->name);
    assert_string_equal(ag_kernels_best(AG_F64, &why)->name, "ref");
    if (saved)
        setenv("TULLE_ISA", saved, 1);
    free(saved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unary), cmocka_unit_test(test_binary),
        cmocka_unit_test(test_binary_shared_gradient),
        cmocka_unit_test(test_plain), cmocka_unit_test(test_sums), cmocka_unit_test(test_act_bwd),
        cmocka_unit_test(test_special_values), cmocka_unit_test(test_functions_over_all_numbers),
        cmocka_unit_test(test_dispatch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
