/*
 * test_gemm_pairs.c -- the product of bf16 pairs against a product in f64: as AVX512-BF16 computes
 * it, where the processor has that, and with the instruction emulated (AG_PAIRS_EMULATED), where it
 * has AVX-512.
 *
 * Sizes around tiles, blocks and odd k; transposes, rows with padding (odd strides, guard numbers
 * around), sums in f32 and in 16 bits, adding, epilogues; the same bits for any number of threads.
 */
#include "autograd/base/half.h"
#include "autograd/kernels.h"
#include "tests/activation.h"
#include "tests/threads.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

extern const ag_kernels ag_kernels_pairs_bf16;

enum { GUARD = 64, GUARD_BITS = 0x7fc1 };        /* a NaN: what is read beyond the matrix shows */

static const ag_kernels *tables[2];
static int n_tables;

typedef struct problem {
    bool ta, tb, acc, c_f32, bias, pre, residual;
    ag_act act;
    int64_t m, n, k, pad;
} problem;

typedef struct matrix { uint16_t *block, *x; int64_t rows, cols, ld; } matrix;

static double value(const uint16_t *x, int64_t i) { return (double)ag_bf16_float(x[i]); }

/* Numbers in -1 .. 1, and NaN around and between the rows. */
static matrix matrix_new(int64_t rows, int64_t cols, int64_t ld, uint32_t site)
{
    matrix a = { .rows = rows, .cols = cols, .ld = ld };
    const int64_t n = rows * ld + 2 * GUARD;
    a.block = malloc((size_t)n * sizeof *a.block);
    assert_non_null(a.block);
    for (int64_t i = 0; i < n; i++) a.block[i] = GUARD_BITS;
    a.x = a.block + GUARD;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            const uint64_t at = (uint64_t)(i * cols + j);
            a.x[i * ld + j] = ag_bf16_of(2 * ag_uniform(ag_noise_bits(5, 0, site, at)) - 1);
        }
    return a;
}

static void check_guards(const matrix *a)
{
    for (int64_t i = 0; i < a->rows * a->ld + 2 * GUARD; i++) {
        const int64_t at = i - GUARD;
        const bool inside = at >= 0 && at < a->rows * a->ld && at % a->ld < a->cols;
        if (!inside && a->block[i] != GUARD_BITS)
            fail_msg("number %lld beyond the matrix is overwritten", (long long)at);
    }
}

typedef struct operands {
    matrix a, b, bias, residual, c, pre;
    float *wide;                     /* c in f32 */
    ag_gemm g;
} operands;

static operands operands_new(const problem *p)
{
    operands o;
    const int64_t lda = (p->ta ? p->m : p->k) + p->pad, ldb = (p->tb ? p->k : p->n) + p->pad;
    const int64_t ldc = p->n + p->pad;
    o.a = p->ta ? matrix_new(p->k, p->m, lda, 1) : matrix_new(p->m, p->k, lda, 1);
    o.b = p->tb ? matrix_new(p->n, p->k, ldb, 2) : matrix_new(p->k, p->n, ldb, 2);
    o.bias = matrix_new(1, p->n, p->n, 3);
    o.residual = matrix_new(p->m, p->n, ldc, 4);
    o.c = matrix_new(p->m, p->n, ldc, 5);
    o.pre = matrix_new(p->m, p->n, ldc, 6);
    o.wide = malloc((size_t)(p->m * ldc) * sizeof *o.wide);
    assert_non_null(o.wide);
    for (int64_t i = 0; i < p->m * ldc; i++)
        o.wide[i] = ag_bf16_float(o.c.x[i]);             /* acc: c as it was */
    o.g = (ag_gemm){ .ta = p->ta, .tb = p->tb, .acc = p->acc, .c_f32 = p->c_f32, .m = p->m,
                     .n = p->n, .k = p->k, .a = o.a.x, .lda = lda, .b = o.b.x, .ldb = ldb,
                     .c = p->c_f32 ? (void *)o.wide : (void *)o.c.x, .ldc = ldc,
                     .bias = p->bias ? o.bias.x : NULL, .pre = p->pre ? o.pre.x : NULL,
                     .act = p->act, .residual = p->residual ? o.residual.x : NULL };
    return o;
}

static void operands_free(operands *o)
{
    matrix *all[] = { &o->a, &o->b, &o->bias, &o->residual, &o->c, &o->pre };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->block);
    free(o->wide);
}

/* Sum and sum of absolute values of element (i, j) before the epilogue; c0: what c was. */
static void exact(const operands *o, const problem *p, int64_t i, int64_t j, double c0,
                  double *ret_sum, double *ret_scale)
{
    double s = p->acc ? c0 : p->bias ? value(o->bias.x, j) : 0, scale = fabs(s);
    for (int64_t l = 0; l < p->k; l++) {
        const double x = value(o->a.x, p->ta ? l * o->a.ld + i : i * o->a.ld + l) *
                         value(o->b.x, p->tb ? j * o->b.ld + l : l * o->b.ld + j);
        s += x;
        scale += fabs(x);
    }
    *ret_sum = s;
    *ret_scale = scale;
}

static void check(const ag_kernels *k, const problem *p)
{
    const double u = 0x1p-24, half = 0x1p-8;
    operands o = operands_new(p);
    operands was = operands_new(p);                      /* the same numbers */
    k->gemm(&o.g);
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            double s, scale;
            const int64_t at = i * o.g.ldc + j;
            exact(&was, p, i, j, value(was.c.x, at), &s, &scale);
            const double wide = 8 * u * scale;           /* two sums a step of k */
            double y = p->acc ? s : activation(p->act, s);
            if (p->residual && !p->acc) y += value(was.residual.x, at);
            const double got = p->c_f32 ? (double)o.wide[at] : value(o.c.x, at);
            const double bound = 1.2 * wide + 4 * u * (fabs(s) + fabs(y)) +
                                 (p->c_f32 ? 0 : half * fabs(y));
            if (!(fabs(got - y) <= bound))
                fail_msg("%s: ta %d tb %d acc %d c_f32 %d act %d, m %lld n %lld k %lld pad %lld: "
                         "c[%lld,%lld] is %.9g, not %.9g", k->name, p->ta, p->tb, p->acc, p->c_f32,
                         (int)p->act, (long long)p->m, (long long)p->n, (long long)p->k,
                         (long long)p->pad, (long long)i, (long long)j, got, y);
            if (p->pre && !p->acc && !(fabs(value(o.pre.x, at) - s) <= wide + half * fabs(s)))
                fail_msg("%s: pre[%lld,%lld]", k->name, (long long)i, (long long)j);
        }
    check_guards(&o.c);
    check_guards(&o.pre);
    operands_free(&o);
    operands_free(&was);
}

static void check_all(const problem *p)
{
    for (int t = 0; t < n_tables; t++) check(tables[t], p);
}

static void sizes(void **state)
{
    static const int64_t ms[] = { 17, 18, 19, 26, 27, 28, 64, 131 };
    static const int64_t ns[] = { 1, 15, 16, 17, 47, 48, 49, 65 };
    static const int64_t ks[] = { 0, 1, 2, 3, 31, 32, 33, 64, 511, 512, 513, 1025 };
    uint32_t turn = 0;
    (void)state;
    for (size_t a = 0; a < sizeof ms / sizeof *ms; a++)
        for (size_t b = 0; b < sizeof ns / sizeof *ns; b++)
            for (size_t c = 0; c < sizeof ks / sizeof *ks; c++) {
                const uint32_t r = ag_noise_bits(1, 0, 0, turn++);
                const problem p = { .ta = r & 1, .tb = r & 2, .acc = !(r & 12), .c_f32 = r & 16,
                                    .bias = r & 32, .pre = r & 64 && !(r & 16),
                                    .residual = r & 128, .m = ms[a], .n = ns[b], .k = ks[c],
                                    .pad = (r >> 8) % 4,
                                    .act = (ag_act)((r >> 10) % AG_ACT_COUNT) };
                check_all(&p);
            }
}

/* Each transpose and form of output at sizes of several blocks; few rows; one of many columns. */
static void forms(void **state)
{
    (void)state;
    for (int form = 0; form < 16; form++) {
        problem p = { .ta = form & 1, .tb = form & 2, .acc = form & 4, .c_f32 = form & 8,
                      .m = 405, .n = 101, .k = 1100, .pad = 3, .bias = true,
                      .act = AG_ACT_GELU_TANH };
        check_all(&p);
        p.m = 5;
        check_all(&p);
        p.n = 3100, p.k = 67, p.m = 20;
        check_all(&p);
    }
}

static void same_bits_for_any_threads(void **state)
{
    (void)state;
    static const int threads[] = { 2, 3, 7 };
    for (int form = 0; form < 8; form++)
        for (int t = 0; t < n_tables; t++) {
            const problem p = { .ta = form & 1, .tb = form & 2, .c_f32 = form & 4, .m = 300,
                                .n = 200, .k = 701 };
            set_threads(1);
            operands one = operands_new(&p);
            tables[t]->gemm(&one.g);
            for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
                set_threads(threads[i]);
                operands many = operands_new(&p);
                tables[t]->gemm(&many.g);
                for (int64_t r = 0; r < p.m; r++) {      /* NaN between the rows */
                    const size_t at = (size_t)(r * p.n), n = (size_t)p.n;
                    assert_memory_equal(many.wide + at, one.wide + at, n * sizeof *one.wide);
                    assert_memory_equal(many.c.x + at, one.c.x + at, n * sizeof *one.c.x);
                }
                operands_free(&many);
            }
            operands_free(&one);
        }
    set_threads(1);
}

/* What the table of the processor is, is a table of this test. */
static void the_processor_has_it_or_not(void **state)
{
    (void)state;
    const char *why = NULL;
    const ag_kernels *best = ag_kernels_best(AG_BF16, &why);
    if (!getenv("TULLE_ISA") && __builtin_cpu_supports("avx512bf16"))
        assert_string_equal(best->name, "avx512bf16");
    assert_true(best->wide != NULL && best->wide->dtype == AG_F32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes), cmocka_unit_test(forms),
        cmocka_unit_test(same_bits_for_any_threads), cmocka_unit_test(the_processor_has_it_or_not),
    };
    const char *why = NULL;
    const ag_kernels *best = ag_kernels_best(AG_BF16, &why);
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl")) {
        puts("no AVX-512 here: skipped");
        return 77;
    }
    tables[n_tables++] = &ag_kernels_pairs_bf16;
    if (best && !strcmp(best->name, "avx512bf16")) tables[n_tables++] = best;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
