/*
 * test_kernels.c -- every f32 table of this machine against the f64 reference, op by op, and
 * against itself with other numbers of threads.
 */
#include "op_check.h"

#include "big_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

static const ag_kernels *table[8];
static int n_tables;

static const op_format f32 = { AG_F32, 0x1p-24, 0x1p-149, 1e-12 };

static void check_case(ag_tape *ref, ag_tape *const t[], const op_case *c)
{
    op_result want = op_run(ref, c), scale = op_scale(ref, c);
    for (int k = 0; k < n_tables; k++) {
        op_result got = op_run(t[k], c);
        op_compare(c, table[k]->name, &got, &want, &scale, &f32);
        op_result_release(&got);
    }
    op_result_release(&want);
    op_result_release(&scale);
}

static bool big_at(const ag_op *op, int i, op_case *ret)
{
    if (big[i].op != op) return false;
    *ret = (op_case){ .op = op, .index = 1000 + i, .s = big[i].s };
    for (int j = 0; j < op->n_in; j++)
        if (!((ret->s.absent | op->integer_in) >> j & 1)) ret->real |= 1u << j;
    return true;
}

/* --- the tests -------------------------------------------------------------------------------- */

static void agrees_with_the_reference(void **state)
{
    const ag_op *op = *state;
    ag_tape *ref = tape_new(ag_kernels_ref(AG_F64)), *t[8];
    for (int k = 0; k < n_tables; k++) t[k] = poisoned_tape(table[k]);
    op_case c;
    for (int64_t i = 0; case_at(op, i, &c); i++)
        if (!c.s.bad) check_case(ref, t, &c);
    for (int i = 0; i < N_BIG; i++)
        if (big_at(op, i, &c)) check_case(ref, t, &c);
    for (int k = 0; k < n_tables; k++) ag_tape_free(t[k]);
    ag_tape_free(ref);
}

static void any_number_of_threads_gives_the_same_bits(void **state)
{
#ifdef _OPENMP
    static const int threads[] = { 2, 3, 7 };
    const int before = omp_get_max_threads();
    for (int k = 0; k < n_tables; k++) {
        ag_tape *t = poisoned_tape(table[k]);
        for (int i = 0; i < N_BIG; i++) {
            op_case c;
            char text[512];
            if (!big_at(*state, i, &c)) continue;
            omp_set_num_threads(1);
            op_result one = op_run(t, &c);
            for (int j = 0; j < 3; j++) {
                omp_set_num_threads(threads[j]);
                op_result many = op_run(t, &c);
                for (int v = 0; v < 2 + AG_MAX_IN; v++)
                    if (one.v[v] &&
                        memcmp(one.v[v], many.v[v], (size_t)one.size[v] * sizeof(double)))
                        fail_msg("%s: %s: %d threads give other bits than one in %s %d",
                                 table[k]->name, case_text(&c, 0, text), threads[j],
                                 v < 2 ? "output" : "gradient", v < 2 ? v : v - 2);
                op_result_release(&many);
            }
            op_result_release(&one);
        }
        ag_tape_free(t);
    }
    omp_set_num_threads(before);
#else
    (void)state;
    skip();
#endif
}

static void tables_are_complete(void **state)
{
    (void)state;
    for (int k = 0; k <= n_tables; k++) {
        const ag_kernels *one = k < n_tables ? table[k] : ag_kernels_ref(AG_F64);
        assert_true(one->name && *one->name);
        for (size_t at = offsetof(ag_kernels, unary_fwd); at < sizeof *one;
             at += sizeof(void (*)(void))) {
            void (*f)(void);
            memcpy(&f, (const char *)one + at, sizeof f);
            if (at == offsetof(ag_kernels, draw)) assert_null(f);    /* a GPU's alone */
            else if (!f) fail_msg("table %s has no kernel at byte %zu", one->name, at);
        }
    }
    printf("tables:");
    for (int k = 0; k < n_tables; k++) printf(" %s", table[k]->name);
    printf("\n");
}

static void every_op_has_a_large_case(void **state)
{
    (void)state;
    for (int o = 0; o < ag_op_count; o++) {
        op_case c;
        const ag_op *op = ag_op_table[o];        /* test_decode, test_qkv; no kernel */
        bool found = op == &ag_op_attend_cached || op == &ag_op_recall ||
                     op == &ag_op_lsh_cached || op->alias;
        for (int i = 0; i < N_BIG; i++) found |= big_at(ag_op_table[o], i, &c);
        if (!found) fail_msg("%s has no large case", ag_op_table[o]->name);
    }
}

static void a_table_may_be_named(void **state)
{
    (void)state;
    const char *saved = getenv("TULLE_ISA"), *why = NULL;
    char *keep = saved ? strdup(saved) : NULL;
    for (int k = 0; k < n_tables; k++) {
        setenv("TULLE_ISA", table[k]->name, 1);
        assert_ptr_equal(ag_kernels_best(AG_F32, &why), table[k]);
        assert_ptr_equal(ag_kernels_best(AG_F64, &why), ag_kernels_ref(AG_F64));
    }
    setenv("TULLE_ISA", "abacus", 1);
    assert_null(why);
    assert_null(ag_kernels_best(AG_F32, &why));
    assert_true(why && strstr(why, "avx512"));
    unsetenv("TULLE_ISA");
    assert_ptr_equal(ag_kernels_best(AG_F32, &why), table[n_tables - 1]);
    if (keep) setenv("TULLE_ISA", keep, 1);
    free(keep);
}

int main(void)
{
    n_tables = ag_kernels_all(AG_F32, table, 8);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_are_complete),
        cmocka_unit_test(every_op_has_a_large_case),
        cmocka_unit_test(a_table_may_be_named),
    };
    return cmocka_run_group_tests_name("tables", tests, NULL, NULL) +
           run_per_op("reference", agrees_with_the_reference) +
           run_per_op("threads", any_number_of_threads_gives_the_same_bits);
}
