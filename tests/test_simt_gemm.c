/*
 * test_simt_gemm.c -- the matrix product of the GPU's tables against the f64 reference, in every
 * combination of what a product may have (gemm_check.h).  On the CPU cuBLASLt is
 * tests/simt/cublaslt.cpp, which is strict.
 */
#include "gemm_check.h"
#include "gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef TEST_REAL_GPU
#include "simt/cublaslt.h"
#endif

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

/* GELU by the library: for 16 bits, aligned, if it has an algorithm. */
static void gelu_by_the_library(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        problem p = { types[i % 2 + 1], .m = 6, .n = 24, .k = 70, .bias = i % 4 < 2, .pre = true,
                      .tb = true, .act = AG_ACT_GELU_TANH };
        switch (i / 2) {
        case 2: p.type = AG_F32; break;
        case 3: p.c_f32 = true; break;
        case 4: p.pad = 4; break;
        case 5: p.shift = 1; break;
        case 6: p.residual = true; break;
        case 7: p.pre = false; break;
        case 8: p.act = AG_ACT_GELU_ERF; break;
        case 9: simt_cublaslt_refuse(2), p.m = 7; break;
        }
        const long gelus = simt_cublaslt_gelus(), products = simt_cublaslt_products(),
            refused = ag_cuda_refused_products();
        check_problem(&p);
        check_problem(&p);               /* other pointers, perhaps */
        assert_int_equal(simt_cublaslt_gelus() - gelus, i < 4 ? 2 : 0);
        assert_int_equal(simt_cublaslt_products() - products, 2);
        assert_int_equal(ag_cuda_refused_products(), refused);
    }
    assert_int_equal(simt_cublaslt_wrong(), 0);
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
        cmocka_unit_test(gelu_by_the_library),
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
