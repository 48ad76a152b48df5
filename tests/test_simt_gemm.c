/*
 * test_simt_gemm.c -- the matrix product of the GPU's tables against the f64 reference, in every
 * combination of what a product may have, on operands that are exact in the type.
 *
 * |error| <= 8 u S + v |result|, S the sum of absolute values, u = 2^-24, v the rounding of what is
 * stored; where the value before an activation is stored too, it may be rounded first.  Guard words
 * stand before, after and between the rows of what is written.  On the CPU cuBLASLt is
 * tests/simt/cublaslt.cpp, which is strict.
 */
#include "autograd/base/half.h"
#include "autograd/cuda/cuda.h"
#include "gpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#ifndef TEST_REAL_GPU
#include "simt/cublaslt.h"
#endif

enum { GUARD = 16 };                 /* elements */

static const ag_device *device;

typedef struct problem {
    ag_dtype type;
    bool    c_f32, ta, tb, acc, bias, pre, residual;
    int64_t m, n, k, pad, shift;     /* what each ld has beyond the row; elements that all pointers
                                      * are off 16 bytes */
    int64_t lda, ldb;                /* rows that overlap; 0: they do not */
    ag_act  act;
} problem;

/* --- numbers of a type ------------------------------------------------------------------------ */

static size_t size_of(ag_dtype t) { return t == AG_F32 ? 4 : 2; }

static double load(ag_dtype t, const void *p, int64_t i)
{
    if (t == AG_F32) return (double)((const float *)p)[i];
    const uint16_t bits = ((const uint16_t *)p)[i];
    return (double)(t == AG_F16 ? ag_f16_float(bits) : ag_bf16_float(bits));
}

static void store(ag_dtype t, void *p, int64_t i, float x)
{
    if (t == AG_F32) ((float *)p)[i] = x;
    else ((uint16_t *)p)[i] = t == AG_F16 ? ag_f16_of(x) : ag_bf16_of(x);
}

static double roundoff(ag_dtype t)
{
    return t == AG_F32 ? 0x1p-24 : t == AG_F16 ? 0x1p-11 : 0x1p-8;
}

static double least(ag_dtype t)
{
    return t == AG_F32 ? 0x1p-149 : t == AG_F16 ? 0x1p-24 : 0x1p-133;
}

/* n numbers on the host as f64, and in their type on the device between GUARD words. */
typedef struct array {
    int64_t  n;
    ag_dtype type;
    double  *host, *size;            /* size: their absolute values */
    char    *block;                  /* on the device */
    int64_t  shift;
} array;

static const float guard_word = -12345.0f;

static void *at(const array *a)
{
    return a->block + (GUARD + a->shift) * (int64_t)size_of(a->type);
}

static int64_t extent(const array *a) { return a->n + 2 * GUARD + a->shift; }

static void array_write(array *a)
{
    char *buf = malloc((size_t)extent(a) * 4);
    assert_non_null(buf);
    for (int64_t i = 0; i < extent(a); i++) {
        const int64_t j = i - GUARD - a->shift;
        const bool inside = j >= 0 && j < a->n;
        store(a->type, buf, i, inside ? (float)a->host[j] : guard_word);
    }
    device->write(a->block, buf, (size_t)extent(a) * size_of(a->type));
    free(buf);
}

static array array_new(ag_dtype type, int64_t n, int64_t shift, uint32_t site)
{
    array a = { .n = n, .type = type, .shift = shift };
    a.host = malloc((size_t)(n + 1) * sizeof(double));
    a.size = malloc((size_t)(n + 1) * sizeof(double));
    a.block = ag_device_alloc(device, (size_t)extent(&a) * size_of(type));
    assert_true(a.host && a.size && a.block);
    for (int64_t i = 0; i < n; i++) {
        float x;
        store(type, &x, 0, 2 * ag_uniform(ag_noise_bits(9, 0, site, (uint64_t)i)) - 1);
        a.host[i] = load(type, &x, 0);
        a.size[i] = fabs(a.host[i]);
    }
    array_write(&a);
    return a;
}

static void array_free(array *a)
{
    ag_device_free(device, a->block, (size_t)extent(a) * size_of(a->type));
    free(a->host);
    free(a->size);
}

/* What the device has, on the host; rows of n of an ld, the guards still there. */
static void *array_read(const array *a, int64_t n, int64_t ld)
{
    char *buf = malloc((size_t)extent(a) * 4), want[4];
    assert_non_null(buf);
    device->read(buf, a->block, (size_t)extent(a) * size_of(a->type));
    store(a->type, want, 0, guard_word);
    for (int64_t i = 0; i < extent(a); i++) {
        const int64_t j = i - GUARD - a->shift;
        if (j >= 0 && j < a->n && (ld == 0 || j % ld < n)) continue;
        if (j >= 0 && j < a->n) store(a->type, want, 0, (float)a->host[j]);
        else store(a->type, want, 0, guard_word);
        if (load(a->type, buf, i) != load(a->type, want, 0))
            fail_msg("word %lld is overwritten", (long long)j);
    }
    return buf;
}

/* --- a product -------------------------------------------------------------------------------- */

typedef struct operands {
    array   a, b, bias, residual, c, pre;
    ag_gemm g;
    double *want, *want_pre, *sum;   /* with ldc; sum: of absolute values, without activation */
} operands;

static int64_t matrix(int64_t rows, int64_t cols, int64_t ld)
{
    return rows > 0 && cols > 0 ? (rows - 1) * ld + cols : 0;
}

/* The reference on the values, then on their sizes. */
static void reference(operands *o, const problem *p, bool size)
{
    const size_t bytes = (size_t)(o->c.n + 1) * sizeof(double);
    double *c = malloc(bytes), *pre = malloc(bytes);
    assert_true(c && pre);
    memcpy(c, size ? o->c.size : o->c.host, bytes);
    memcpy(pre, o->pre.host, bytes);
    ag_gemm g = o->g;
    g.c_f32 = false;
    g.a = size ? o->a.size : o->a.host;
    g.b = size ? o->b.size : o->b.host;
    g.c = c;
    g.bias = p->bias ? (size ? o->bias.size : o->bias.host) : NULL;
    g.residual = p->residual ? (size ? o->residual.size : o->residual.host) : NULL;
    g.pre = pre;
    if (size) g.act = AG_ACT_NONE;
    ag_kernels_ref(AG_F64)->gemm(&g);
    if (size) {
        o->sum = c;
        free(pre);
    } else {
        o->want = c;
        o->want_pre = pre;
    }
}

static void setup(operands *o, const problem *p)
{
    const int64_t lda = p->lda ? p->lda : (p->ta ? p->m : p->k) + p->pad,
                  ldb = p->ldb ? p->ldb : (p->tb ? p->k : p->n) + p->pad, ldc = p->n + p->pad;
    const ag_dtype c = p->c_f32 ? AG_F32 : p->type;
    const int64_t s = p->shift, out = matrix(p->m, p->n, ldc);
    *o = (operands){ .a = array_new(p->type, p->ta ? matrix(p->k, p->m, lda)
                                                   : matrix(p->m, p->k, lda), s, 1),
                     .b = array_new(p->type, p->tb ? matrix(p->n, p->k, ldb)
                                                   : matrix(p->k, p->n, ldb), s, 2),
                     .bias = array_new(p->type, p->n, s, 3),
                     .residual = array_new(p->type, out, s, 4),
                     .c = array_new(c, out, s, 5), .pre = array_new(p->type, out, s, 6) };
    o->g = (ag_gemm){ .ta = p->ta, .tb = p->tb, .acc = p->acc, .c_f32 = p->c_f32, .m = p->m,
                      .n = p->n, .k = p->k, .a = at(&o->a), .lda = lda, .b = at(&o->b),
                      .ldb = ldb, .c = at(&o->c), .ldc = ldc,
                      .bias = p->bias ? at(&o->bias) : NULL, .pre = p->pre ? at(&o->pre) : NULL,
                      .act = p->act, .residual = p->residual ? at(&o->residual) : NULL };
    reference(o, p, false);
    reference(o, p, true);
}

static void release(operands *o)
{
    array *const all[] = { &o->a, &o->b, &o->bias, &o->residual, &o->c, &o->pre };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) array_free(all[i]);
    free(o->want);
    free(o->want_pre);
    free(o->sum);
}

static void check_close(const problem *p, const char *what, int64_t i, int64_t j, double got,
                        double want, double bound)
{
    if (!(fabs(got - want) <= bound))
        fail_msg("%s%s: ta %d tb %d acc %d bias %d pre %d act %d residual %d, m %lld n %lld k %lld "
                 "pad %lld shift %lld: %s[%lld,%lld] is %.9g, not %.9g (bound %.3g)",
                 ag_dtype_name(p->type), p->c_f32 ? " into f32" : "", p->ta, p->tb, p->acc, p->bias,
                 p->pre, (int)p->act, p->residual, (long long)p->m, (long long)p->n,
                 (long long)p->k, (long long)p->pad, (long long)p->shift, what, (long long)i,
                 (long long)j, got, want, bound);
}

static void check_result(const operands *o, const problem *p)
{
    const int64_t ldc = o->g.ldc;
    void *c = array_read(&o->c, p->n, ldc), *pre = array_read(&o->pre, p->pre ? p->n : 0, ldc);
    const double v = roundoff(o->c.type), w = roundoff(p->type), tiny = least(p->type);
    const bool more = !p->acc && (p->pre || p->act != AG_ACT_NONE || (p->bias && p->shift));
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            const int64_t k = i * ldc + j;
            const double sum = 8 * 0x1p-24 * o->sum[k] + tiny, z = fabs(o->want_pre[k]),
                         y = fabs(o->want[k]);
            const double rounds = w * (z + (p->bias && p->shift ? z + 1 : 0));
            check_close(p, "c", i, j, load(o->c.type, c, GUARD + p->shift + k), o->want[k],
                        1.2 * (sum + (more ? rounds : 0)) + v * y + 4 * 0x1p-24 * z);
            if (p->pre && !p->acc)
                check_close(p, "pre", i, j, load(p->type, pre, GUARD + p->shift + k),
                            o->want_pre[k], sum + rounds);
        }
    free(c);
    free(pre);
}

static void check_problem(const problem *p)
{
    operands o;
    setup(&o, p);
    ag_kernels_cuda(p->type)->gemm(&o.g);
    check_result(&o, p);
    const char *why = device->check();
    if (why) fail_msg("%s", why);
    release(&o);
}

/* --- the tests -------------------------------------------------------------------------------- */

static const ag_dtype types[] = { AG_F32, AG_BF16, AG_F16 };

/* Every form at one size. */
static void check_forms(problem p)
{
    for (int bits = 0; bits < 64; bits++)
        for (int act = 0; act < AG_ACT_COUNT; act++) {
            p.ta = bits & 1, p.tb = bits & 2, p.acc = bits & 4;
            p.bias = bits & 8, p.pre = bits & 16, p.residual = bits & 32;
            p.act = (ag_act)act;
            if (p.acc && (bits >= 8 || act)) continue;
            check_problem(&p);
        }
}

static void each_form(void **state)
{
    (void)state;
    for (int t = 0; t < 3; t++)
        for (int c_f32 = 0; c_f32 < 1 + (t > 0); c_f32++) {
            check_forms((problem){ types[t], .c_f32 = c_f32, .m = 5, .n = 9, .k = 7, .pad = 2 });
            check_forms((problem){ types[t], .c_f32 = c_f32, .m = 3, .n = 24, .k = 100, .pad = 8 });
        }
}

static void any_size(void **state)
{
    (void)state;
    static const int64_t sizes[] = { 0, 1, 2, 15, 33 };
    enum { SIZES = sizeof sizes / sizeof *sizes };
    uint32_t turn = 0;
    for (int t = 0; t < 3; t++)
        for (int i = 0; i < SIZES * SIZES * SIZES; i++) {
            const uint32_t r = ag_noise_bits(1, 0, 0, turn++);
            const bool acc = !(r & 12);
            const problem p = { types[t], .c_f32 = t && r & 1024, .ta = r & 1, .tb = r & 2,
                                .acc = acc, .bias = !acc && r & 16, .pre = !acc && r & 32,
                                .residual = !acc && r & 64, .m = sizes[i % SIZES],
                                .n = sizes[i / SIZES % SIZES], .k = sizes[i / SIZES / SIZES],
                                .pad = (r >> 11) % 4, .shift = (r >> 13) % 2,
                                .act = acc ? AG_ACT_NONE : (ag_act)((r >> 15) % AG_ACT_COUNT) };
            check_problem(&p);
        }
}

/* Each pointer off 16 bytes: no algorithm may take the shortcut. */
static void off_16_bytes(void **state)
{
    (void)state;
    for (int t = 0; t < 3; t++)
        check_forms((problem){ types[t], .m = 4, .n = 16, .k = 8, .shift = 1 });
}

/* Windows on a sequence: rows that overlap. */
static void overlapping_rows(void **state)
{
    (void)state;
    for (int t = 0; t < 3; t++)
        for (int bits = 0; bits < 32; bits++) {
            problem p = { types[t], .m = 6, .n = 10, .k = 9, .acc = bits & 1, .tb = bits & 2,
                          .lda = 4, .bias = bits & 4 && !(bits & 1) };
            p.act = bits & 8 && !p.acc ? AG_ACT_RELU : AG_ACT_NONE;
            p.residual = bits & 16 && !p.acc;
            check_problem(&p);
            p.tb = false, p.ta = bits & 2;
            p.lda = 0, p.ldb = 4;
            check_problem(&p);
            p.tb = true, p.ldb = 5;      /* what nobody asks for yet */
            check_problem(&p);
            p.ldb = 0, p.ta = true, p.lda = 5;
            check_problem(&p);
        }
}

/* The activation of a long vector: a product of no terms (ops/linear.c). */
static void no_terms(void **state)
{
    (void)state;
    for (int t = 0; t < 3; t++)
        for (int act = 0; act < AG_ACT_COUNT; act++) {
            const problem p = { types[t], .tb = true, .m = 1, .n = 5000, .bias = true,
                                .act = (ag_act)act };
            check_problem(&p);
        }
}

static void same_bits_in_any_order(void **state)
{
    (void)state;
    for (int t = 0; t < 3; t++) {
        const problem p = { types[t], .m = 33, .n = 40, .k = 200, .bias = true, .pre = true,
                            .residual = true, .act = AG_ACT_GELU_TANH };
        void *first = NULL;
        operands o;
        setup(&o, &p);
        for (unsigned order = 0; order < 3; order++) {
            gpu_order(order);
            array_write(&o.c);
            ag_kernels_cuda(p.type)->gemm(&o.g);
            void *c = array_read(&o.c, p.n, o.g.ldc);
            if (first) assert_memory_equal(c, first, (size_t)extent(&o.c) * size_of(p.type));
            if (first) free(c);
            else first = c;
        }
        gpu_order(0);
        free(first);
        release(&o);
    }
}

#ifndef TEST_REAL_GPU

/* What is said on stderr by two products that the library refuses. */
static void refused_twice(char *ret, size_t size)
{
    FILE *f = tmpfile();
    const int before = dup(STDERR_FILENO);
    assert_true(f && before >= 0 && dup2(fileno(f), STDERR_FILENO) >= 0);
    const problem p = { AG_BF16, .c_f32 = true, .ta = true, .m = 5, .n = 6, .k = 50 };
    check_problem(&p);
    check_problem(&p);
    assert_true(dup2(before, STDERR_FILENO) >= 0);
    close(before);
    rewind(f);
    ret[fread(ret, 1, size - 1, f)] = '\0';
    fclose(f);
}

/* A library that knows no algorithm: the same results, by our own kernel.  One warning. */
static void without_an_algorithm(void **state)
{
    char text[512];
    (void)state;
    assert_int_equal(ag_cuda_refused_products(), 0);
    simt_cublaslt_refuse(1);
    const long products = simt_cublaslt_products();
    refused_twice(text, sizeof text);
    assert_string_equal(text, "tulle: warning: cuBLASLt does not do [50,5]^T @ [50,6], bf16 into "
                        "fp32 (CUBLAS_STATUS_NOT_SUPPORTED): this product, and others like it, run "
                        "on a slow kernel\n");
    assert_int_equal(ag_cuda_refused_products(), 2);
    for (int t = 0; t < 3; t++) {
        check_forms((problem){ types[t], .m = 5, .n = 6, .k = 50, .pad = 1 });
        check_forms((problem){ types[t], .c_f32 = t > 0, .m = 18, .n = 2, .k = 17, .pad = 1 });
    }
    assert_int_equal(simt_cublaslt_products(), products);
    simt_cublaslt_refuse(0);
}

static void shapes_are_remembered(void **state)
{
    (void)state;
    problem p = { AG_BF16, .m = 7, .n = 11, .k = 13, .bias = true };
    check_problem(&p);
    const long questions = simt_cublaslt_questions(), products = simt_cublaslt_products();
    for (int i = 0; i < 5; i++) check_problem(&p);
    assert_int_equal(simt_cublaslt_questions(), questions);
    assert_int_equal(simt_cublaslt_products(), products + 5);
    p.bias = false;                  /* another product */
    check_problem(&p);
    assert_int_equal(simt_cublaslt_questions(), questions + 1);
    for (p.m = 1; p.m <= 40; p.m++)  /* more shapes than there is room for */
        for (p.k = 1; p.k <= 40; p.k++) check_problem(&p);
    assert_int_equal(simt_cublaslt_questions(), questions + 1 + 1600 - 1 + 1);
}

/* Opens the device again, so that the library is looked for; what a product then says. */
static const char *said(void)
{
    const problem p = { AG_F32, .m = 2, .n = 3, .k = 4 };
    static char text[512];
    operands o;
    assert_int_equal(ag_cuda_open(&device, NULL), AG_OK);
    setup(&o, &p);
    ag_kernels_cuda(AG_F32)->gemm(&o.g);
    const char *why = device->check();
    snprintf(text, sizeof text, "%s", why ? why : "");
    release(&o);
    ag_cuda_close();
    assert_int_equal(simt_cublaslt_objects(), 0);
    return text;
}

static void missing_library_is_named(void **state)
{
    (void)state;
    ag_cuda_close();
    assert_int_equal(simt_cublaslt_objects(), 0);
    simt_cublaslt_hide("libcublasLt.so.13");
    assert_non_null(strstr(said(), "cuBLASLt is missing: neither libcublasLt.so.13"));
    simt_cublaslt_hide("cublasLtMatmul");
    assert_string_equal(said(), "cuBLASLt has no function cublasLtMatmul: another version?");
    simt_cublaslt_hide(NULL);
    assert_string_equal(said(), "");
    setenv("TULLE_CUBLASLT", "/nowhere/libcublasLt.so.13", 1);
    assert_non_null(strstr(said(), "TULLE_CUBLASLT = /nowhere/libcublasLt.so.13"));
    setenv("TULLE_CUBLASLT", "libcublasLt.so.13", 1);
    assert_string_equal(said(), "");
    unsetenv("TULLE_CUBLASLT");
    assert_int_equal(ag_cuda_open(&device, NULL), AG_OK);
}

/* Whatever fails, the device keeps an error, and nothing is lost. */
static void failures_are_kept(void **state)
{
    (void)state;
    const problem p = { AG_BF16, .m = 3, .n = 8, .k = 200, .bias = true, .pre = true,
                        .act = AG_ACT_GELU_ERF };
    int failures = 0;
    for (int k = 1;; k++, failures++) {
        ag_cuda_close();
        assert_int_equal(ag_cuda_open(&device, NULL), AG_OK);
        operands o;
        setup(&o, &p);
        simt_fail_call(k);
        ag_kernels_cuda(AG_BF16)->gemm(&o.g);
        simt_fail_call(0);
        const char *why = device->check();
        if (why) assert_true(strlen(why) > 10);
        else check_result(&o, &p);
        release(&o);
        if (!why) break;
    }
    assert_in_range(failures, 18, 40);
    ag_cuda_close();
    assert_int_equal(simt_cublaslt_objects(), 0);
    assert_int_equal(simt_blocks(), 0);
    assert_int_equal(ag_cuda_open(&device, NULL), AG_OK);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_form),
        cmocka_unit_test(any_size),
        cmocka_unit_test(off_16_bytes),
        cmocka_unit_test(overlapping_rows),
        cmocka_unit_test(no_terms),
        cmocka_unit_test(same_bits_in_any_order),
#ifndef TEST_REAL_GPU
        cmocka_unit_test(without_an_algorithm),
        cmocka_unit_test(shapes_are_remembered),
        cmocka_unit_test(missing_library_is_named),
        cmocka_unit_test(failures_are_kept),
#endif
    };
    ag_err err = { 0 };
    if (ag_cuda_open(&device, &err) < 0) {
        print_error("%s\n", err.msg);
        return 1;
    }
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    ag_cuda_close();
    return failed;
}
