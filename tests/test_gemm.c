/*
 * test_gemm.c -- the matrix product of every table against a sum in double precision.
 *
 * Bound per element: |error| <= 4 u sum |a b| + u |result|, u = 2^-24 (mixed signs).  Small
 * whole numbers must come out exact.  Operands are allocated to the last element, so that
 * AddressSanitizer sees a read too far; guard words stand before, after and between the rows of
 * what is written.
 */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "autograd/kernels.h"
#include "tests/activation.h"
#include "tests/threads.h"

enum { GUARD = 64, MAX_TABLES = 4 };
static const float guard_word = -0x1.abcdefp77f;
static const double u = 0x1p-24;

static const ag_kernels *tables[MAX_TABLES];
static int n_tables;

typedef enum values { REAL, WHOLE, POSITIVE } values;

typedef struct problem {
    bool    ta, tb, acc, bias, pre, residual;
    int64_t m, n, k, pad;            /* pad: what each ld has beyond the row */
    ag_act  act;
    values  values;
} problem;

typedef struct operands {
    ag_gemm g;
    float  *a, *b, *c0, *bias, *residual;    /* c0: c before the product, [m][ldc] */
    float  *c, *pre;                 /* with GUARD words on both sides, and in the pads */
    double *sum, *scale; /* [m][n]: exact products plus bias and old c; sum of absolute values */
} operands;

static void *alloc(size_t n, size_t size)
{
    void *p = malloc(n > 0 ? n * size : 1);
    assert_non_null(p);
    return p;
}

static float *numbers(int64_t n, values how, uint32_t site)
{
    float *x = alloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        const float r = ag_uniform(ag_noise_bits(7, 0, site, (uint64_t)i));
        x[i] = how == WHOLE ? floorf(r * 17) - 8 : how == POSITIVE ? r : 2 * r - 1;
    }
    return x;
}

static int64_t extent(int64_t rows, int64_t cols, int64_t ld)
{
    return rows > 0 && cols > 0 ? (rows - 1) * ld + cols : 0;
}

static void setup_operands(operands *o, const problem *p)
{
    const int64_t m = p->m, n = p->n, k = p->k, ldc = n + p->pad;
    const int64_t lda = (p->ta ? m : k) + p->pad, ldb = (p->tb ? k : n) + p->pad;
    *o = (operands){ .a = numbers(p->ta ? extent(k, m, lda) : extent(m, k, lda), p->values, 1),
                     .b = numbers(p->tb ? extent(n, k, ldb) : extent(k, n, ldb), p->values, 2),
                     .c0 = numbers(m * ldc, p->values, 3),
                     .bias = numbers(n, p->values, 4),
                     .residual = numbers(extent(m, n, ldc), p->values, 5),
                     .c = alloc((size_t)(m * ldc + 2 * GUARD), sizeof(float)),
                     .pre = alloc((size_t)(m * ldc + 2 * GUARD), sizeof(float)),
                     .sum = alloc((size_t)(m * n), sizeof(double)),
                     .scale = alloc((size_t)(m * n), sizeof(double)) };
    o->g = (ag_gemm){ .ta = p->ta,
                      .tb = p->tb,
                      .acc = p->acc,
                      .m = m,
                      .n = n,
                      .k = k,
                      .a = o->a,
                      .lda = lda,
                      .b = o->b,
                      .ldb = ldb,
                      .c = o->c + GUARD,
                      .ldc = ldc,
                      .bias = p->bias ? o->bias : NULL,
                      .pre = p->pre ? o->pre + GUARD : NULL,
                      .act = p->act,
                      .residual = p->residual ? o->residual : NULL };
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double s = p->acc    ? (double)o->c0[i * ldc + j]
                       : p->bias ? (double)o->bias[j]
                                 : 0,
                   t = fabs(s);
            for (int64_t l = 0; l < k; l++) {
                const double x = (double)o->a[p->ta ? l * lda + i : i * lda + l]
                                 * (double)o->b[p->tb ? j * ldb + l : l * ldb + j];
                s += x;
                t += fabs(x);
            }
            o->sum[i * n + j] = s;
            o->scale[i * n + j] = t;
        }
}

static void release_operands(operands *o)
{
    void *all[] = { o->a, o->b, o->c0, o->bias, o->residual, o->c, o->pre, o->sum, o->scale };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* c is full of NaN before an overwriting product, and of numbers before an adding one. */
static void run(const ag_kernels *table, operands *o)
{
    const int64_t m = o->g.m, n = o->g.n, ldc = o->g.ldc;
    for (int64_t i = 0; i < m * ldc + 2 * GUARD; i++)
        o->c[i] = o->pre[i] = guard_word;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            o->c[GUARD + i * ldc + j] = o->g.acc ? o->c0[i * ldc + j] : NAN;
            o->pre[GUARD + i * ldc + j] = NAN;
        }
    table->gemm(&o->g);
}

static void check_guards(const float *x, int64_t m, int64_t n, int64_t ldc)
{
    for (int64_t i = 0; i < m * ldc + 2 * GUARD; i++) {
        const int64_t at = i - GUARD;
        const bool inside = at >= 0 && at < m * ldc && at % ldc < n;
        if (!inside && x[i] != guard_word)
            fail_msg("guard word %lld overwritten (m %lld, n %lld)", (long long)at, (long long)m,
                     (long long)n);
    }
}

static void check_result(const ag_kernels *table, const operands *o, const problem *p)
{
    const double c4 = p->values == WHOLE ? 0 : p->values == POSITIVE ? 32 : 4;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            const int64_t at = GUARD + i * o->g.ldc + j;
            const double s = o->sum[i * p->n + j];
            const double exact_pre = p->values == WHOLE ? 0 : u;
            const double bound = c4 * u * o->scale[i * p->n + j] + exact_pre * fabs(s);
            const double residual =
                p->residual && !p->acc ? (double)o->residual[i * o->g.ldc + j] : 0;
            const double y = p->acc ? s : activation(p->act, s) + residual;
            const bool smooth =
                !p->acc && p->act > AG_ACT_RELU; /* slope below 1.13; 4 u |x| of its own */
            const double y_bound =
                smooth ? 1.2 * bound + 4 * u * fabs(s) + u * fabs(y) : bound + exact_pre * fabs(y);
            if (p->pre && !p->acc && !(fabs((double)o->pre[at] - s) <= bound))
                fail_msg("%s: pre[%lld,%lld] is %.9g, not %.9g", table->name, (long long)i,
                         (long long)j, (double)o->pre[at], s);
            if (!(fabs((double)o->c[at] - y) <= y_bound))
                fail_msg("%s: ta %d tb %d acc %d act %d, m %lld n %lld k %lld: c[%lld,%lld] is "
                         "%.9g, not %.9g "
                         "(bound %.3g)",
                         table->name, p->ta, p->tb, p->acc, (int)p->act, (long long)p->m,
                         (long long)p->n, (long long)p->k, (long long)i, (long long)j,
                         (double)o->c[at], y, y_bound);
        }
    check_guards(o->c, p->m, p->n, o->g.ldc);
    if (p->pre && !p->acc)
        check_guards(o->pre, p->m, p->n, o->g.ldc);
}

static void check_problem(const problem *p)
{
    operands o;
    setup_operands(&o, p);
    for (int t = 0; t < n_tables; t++) {
        run(tables[t], &o);
        check_result(tables[t], &o, p);
    }
    release_operands(&o);
}

/* Every size around a tile; transposes, padding and epilogue go round from case to case. */
static void test_sizes(void **state)
{
    (void)state;
    static const int64_t ms[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 24, 31, 47, 97, 193, 211 };
    static const int64_t ns[] = { 0, 1, 4, 7, 8, 15, 16, 17, 31, 33, 47, 48, 49, 65, 100, 113 };
    static const int64_t ks[] = { 0, 1, 3, 4, 15, 16, 17, 37, 64, 255, 256, 257, 300, 521 };
    uint32_t turn = 0;
    for (size_t a = 0; a < sizeof ms / sizeof *ms; a++)
        for (size_t b = 0; b < sizeof ns / sizeof *ns; b++)
            for (size_t c = 0; c < sizeof ks / sizeof *ks; c++) {
                const uint32_t r = ag_noise_bits(1, 0, 0, turn++);
                const problem p = { .ta = r & 1,
                                    .tb = r & 2,
                                    .acc = !(r & 12),
                                    .bias = r & 16,
                                    .pre = r & 32,
                                    .residual = r & 64,
                                    .m = ms[a],
                                    .n = ns[b],
                                    .k = ks[c],
                                    .pad = (r >> 8) % 4,
                                    .act = (ag_act)((r >> 10) % AG_ACT_COUNT) };
                check_problem(&p);
            }
}

/* Each transpose with each form of output, at sizes of several blocks. */
static void test_forms(void **state)
{
    (void)state;
    for (int form = 0; form < 8; form++)
        for (int act = 0; act < AG_ACT_COUNT; act++) {
            problem p = { .ta = form & 1,
                          .tb = form & 2,
                          .acc = form & 4,
                          .m = 205,
                          .n = 101,
                          .k = 530,
                          .pad = 3,
                          .act = (ag_act)act,
                          .bias = act % 2 == 0,
                          .pre = act != 1,
                          .residual = act != 2 };
            check_problem(&p);
            p.m = 5;                                    /* dot products where b is transposed */
            check_problem(&p);
        }
}

static void test_whole_numbers_are_exact(void **state)
{
    (void)state;
    for (int form = 0; form < 8; form++) {
        const bool acc = form & 4;
        problem p = { .ta = form & 1,
                      .tb = form & 2,
                      .acc = acc,
                      .m = 67,
                      .n = 130,
                      .k = 1031,
                      .values = WHOLE,
                      .bias = !acc,
                      .pre = !acc,
                      .residual = !acc,
                      .act = AG_ACT_RELU,
                      .pad = 1 };
        check_problem(&p);
        p.m = 3;
        check_problem(&p);
    }
}

/* Error does not grow with k where signs are mixed; one-sided data shows that chains are cut. */
static void test_long_sums(void **state)
{
    (void)state;
    for (int form = 0; form < 4; form++)
        for (int m = 2; m <= 19; m += 17) {
            problem p = { .ta = form & 1, .tb = form & 2, .m = m, .n = 50, .k = 16384 };
            check_problem(&p);
            p.k = 20011;
            p.values = POSITIVE;
            check_problem(&p);
        }
}

/* More columns than a block of b, more rows than a block of a; a pre that goes past the caches,
 * whose rows begin at any distance from a cache line. */
static void test_large(void **state)
{
    (void)state;
    for (int form = 0; form < 4; form++) {
        const problem wide = {
            .ta = form & 1, .tb = form & 2, .m = 9, .n = 3200, .k = 300, .bias = true
        };
        const problem tall = {
            .ta = form & 1, .tb = form & 2, .m = 3000, .n = 65, .k = 40, .act = AG_ACT_GELU_ERF
        };
        check_problem(&wide);
        check_problem(&tall);
    }
    const problem past = {
        .tb = true, .m = 2051, .n = 2053, .k = 3, .bias = true, .pre = true,
        .act = AG_ACT_GELU_QUICK
    };
    check_problem(&past);
}

static void test_same_bits_for_any_threads(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = { { 64, 384, 384 }, { 1024, 65, 384 }, { 384, 100, 700 },
                                         { 64, 100, 784 }, { 1, 1536, 384 },  { 6, 700, 384 },
                                         { 700, 700, 100 }, { 1, 50021, 0 },  { 300, 100, 0 } };
    static const int threads[] = { 2, 3, 7 };
    for (int form = 0; form < 4; form++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            const problem p = { .ta = form & 1,
                                .tb = form & 2,
                                .m = shapes[s][0],
                                .n = shapes[s][1],
                                .k = shapes[s][2],
                                .act = AG_ACT_GELU_TANH,
                                .bias = true };
            operands o;
            setup_operands(&o, &p);
            const size_t bytes = sizeof(float) * (size_t)(p.m * o.g.ldc);
            float *one = alloc(1, bytes);
            for (int t = 0; t < n_tables; t++) {
                set_threads(1);
                run(tables[t], &o);
                memcpy(one, o.c + GUARD, bytes);
                for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
                    set_threads(threads[i]);
                    run(tables[t], &o);
                    assert_memory_equal(one, o.c + GUARD, bytes);
                }
                set_threads(2);
            }
            free(one);
            release_operands(&o);
        }
}

/* A row or a column with few or many others: the same bits (dot products of few rows apart). */
static void test_same_bits_for_any_neighbours(void **state)
{
    (void)state;
    for (int form = 0; form < 4; form++) {
        const problem p = { .ta = form & 1, .tb = form & 2, .m = 500, .n = 150, .k = 600 };
        operands o;
        setup_operands(&o, &p);
        for (int t = 0; t < n_tables; t++) {
            run(tables[t], &o);
            float *small = alloc((size_t)(p.m * o.g.ldc), sizeof(float));
            static const int64_t parts[][2] = {
                { 17, 1 }, { 17, 150 }, { 20, 49 }, { 499, 16 }, { 61, 3 }
            };
            for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
                ag_gemm g = o.g;
                g.m = parts[i][0];
                g.n = parts[i][1];
                g.c = small;
                tables[t]->gemm(&g);
                for (int64_t r = 0; r < g.m; r++)
                    assert_memory_equal(small + r * g.ldc, o.c + GUARD + r * g.ldc,
                                        sizeof(float) * (size_t)g.n);
            }
            free(small);
        }
        release_operands(&o);
    }
}

typedef struct caller {
    const ag_kernels *table;
    operands o;
    float   *want;
    bool     same;
} caller;

static void *call_often(void *arg)
{
    caller *me = arg;
    me->same = true;
    for (int i = 0; i < 40; i++) {
        me->table->gemm(&me->o.g);
        me->same &=
            memcmp(me->want, me->o.g.c, sizeof(float) * (size_t)(me->o.g.m * me->o.g.ldc)) == 0;
    }
    return NULL;
}

static void test_two_callers_at_once(void **state)
{
    (void)state;
    const problem p = { .ta = true, .m = 130, .n = 120, .k = 300 };
    for (int t = 0; t < n_tables; t++) {
        caller callers[2];
        pthread_t ids[2];
        for (int i = 0; i < 2; i++) {
            callers[i].table = tables[t];
            setup_operands(&callers[i].o, &p);
            run(tables[t], &callers[i].o);
            callers[i].want = alloc((size_t)(p.m * p.n), sizeof(float));
            memcpy(callers[i].want, callers[i].o.g.c, sizeof(float) * (size_t)(p.m * p.n));
        }
        for (int i = 0; i < 2; i++)
            assert_int_equal(pthread_create(&ids[i], NULL, call_often, &callers[i]), 0);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(pthread_join(ids[i], NULL), 0);
            assert_true(callers[i].same);
            free(callers[i].want);
            release_operands(&callers[i].o);
        }
    }
}

/* The product of every table, by a child process: with or without memory for packing. */
static void run_in_child(const ag_gemm *g, bool memory, float *ret)
{
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        set_threads(1);
        const struct rlimit none = { 4096, 4096 };      /* less than there is: every mmap fails */
        if (!memory &&
            (setrlimit(RLIMIT_AS, &none) != 0 ||
             mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED))
            _exit(1);
        for (int t = 0; t < n_tables; t++) {
            ag_gemm mine = *g;
            mine.c = ret + t * g->m * g->ldc;
            tables[t]->gemm(&mine);
        }
        _exit(0);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* Must be first: this process may have no buffers yet, and no threads that a fork would lose. */
static void test_no_memory(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip();
#endif
    for (int form = 0; form < 4; form++) {
        const problem p = {
            .ta = form & 1, .tb = form & 2, .m = 150, .n = 170, .k = 530, .bias = true
        };
        operands o;
        setup_operands(&o, &p);
        const size_t bytes = sizeof(float) * (size_t)(n_tables * p.m * o.g.ldc);
        float *with =
            mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(with, MAP_FAILED);
        float *without = with + bytes / sizeof(float);
        run_in_child(&o.g, true, with);
        run_in_child(&o.g, false, without);
        assert_memory_equal(with, without, bytes);
        for (int64_t i = 0; i < p.m * p.n; i++)
            assert_true(fabs((double)without[i] - o.sum[i]) <=
                        4 * u * o.scale[i] + u * fabs(o.sum[i]));
        munmap(with, 2 * bytes);
        release_operands(&o);
    }
}

int main(void)
{
    n_tables = ag_kernels_all(AG_F32, tables, MAX_TABLES);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_memory),               /* must be first */
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_whole_numbers_are_exact),
        cmocka_unit_test(test_long_sums),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_same_bits_for_any_threads),
        cmocka_unit_test(test_same_bits_for_any_neighbours),
        cmocka_unit_test(test_two_callers_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
