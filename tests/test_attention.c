/* test_attention.c -- attention kernels of every instruction set against an oracle in f64. */
#include "attention_check.h"

/* ---- tests ---- */
static void lengths(void **state)
{
    static const int64_t t[] = { 1, 2, 7, 8, 9, 16, 63, 64, 65, 130, 257 };
    (void)state;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++)
        for (int causal = 0; causal < 2; causal++) {
            run_case(&(shape){ 2, 3, t[i], t[i], 32, 32, causal, 0, 0, true });
            run_case(&(shape){ 1, 2, t[i], t[i], 17, 8, causal, 0, 0.3, true });
        }
}

static void widths(void **state)
{
    static const int64_t d[] = { 1, 8, 17, 32, 64, 80, 96, 256 };
    (void)state;
    for (size_t i = 0; i < sizeof d / sizeof *d; i++)
        for (size_t j = 0; j < sizeof d / sizeof *d; j++)
            run_case(&(shape){ 1, 2, 70, 70, d[i], d[j], true, 0, (i + j) % 2 * 0.3, i % 2 });
    for (int causal = 0; causal < 2; causal++)           /* blocks of several query tiles */
        for (int64_t w = 24; w <= 40; w += 16)
            run_case(&(shape){ 1, 2, 450, 450, 40, w, causal, 0, 0, true });
    run_case(&(shape){ 1, 1, 20, 20, 257, 64, true, 0, 0, false });
    run_case(&(shape){ 1, 1, 20, 20, 64, 300, true, 0, 0.3, false });
}

static void offsets(void **state)
{
    (void)state;
    for (int causal = 0; causal < 2; causal++)
        for (int dropped = 0; dropped < 2; dropped++) {
            const double drop = dropped * 0.3;
            run_case(&(shape){ 1, 2, 100, 130, 64, 64, causal, 30, drop, false });
            run_case(&(shape){ 1, 2, 100, 130, 64, 32, causal, 0, drop, false });
            run_case(&(shape){ 2, 1, 130, 70, 64, 64, causal, 5, drop, false });
            run_case(&(shape){ 1, 1, 65, 200, 32, 64, causal, 135, drop, false });
            run_case(&(shape){ 1, 2, 1, 200, 64, 64, causal, 150, drop, false });
            run_case(&(shape){ 1, 2, 5, 77, 17, 33, causal, 72, drop, false });
            run_case(&(shape){ 1, 2, 3, 1300, 64, 64, causal, 1250, drop, false });
            run_case(&(shape){ 1, 2, 40, 1300, 64, 64, causal, 1250, drop, false });
        }
}

static void rows_without_keys(void **state)
{
    (void)state;
    run_case(&(shape){ 1, 2, 130, 130, 32, 32, true, -70, 0, false });
    run_case(&(shape){ 1, 2, 130, 130, 32, 32, true, -20, 0.3, false });
    run_case(&(shape){ 1, 2, 20, 20, 32, 32, true, -3, 0, true });
    run_case(&(shape){ 1, 2, 6, 20, 32, 32, true, -3, 0.3, false });
    run_case(&(shape){ 1, 2, 6, 600, 32, 32, true, -3, 0, false });
    run_case(&(shape){ 1, 1, 30, 40, 32, 32, true, -100, 0, false });
    run_case(&(shape){ 2, 2, 3, 0, 32, 32, false, 0, 0, false });
    run_case(&(shape){ 2, 2, 70, 0, 32, 32, true, 0, 0, false });
    run_case(&(shape){ 2, 2, 0, 5, 32, 32, true, 0, 0, false });
    run_case(&(shape){ 0, 2, 5, 5, 32, 32, true, 0, 0, false });
}

/* Items with fewer keys: none, one, up to a tile, beyond one, all. */
static void lengths_of_items(void **state)
{
    static const int32_t n[] = { 0, 1, 63, 64, 65, 130, 7 }, many[] = { 0, 511, 512, 513, 1300 };
    (void)state;
    for (int i = 0; i < 4; i++) {
        const bool causal = i % 2;
        const double drop = i / 2 * 0.3;
        run_keys(&(shape){ 7, 2, 130, 130, 32, 17, causal, 0, drop, true }, NULL, n);
        run_keys(&(shape){ 7, 2, 70, 130, 32, 32, causal, 60, drop, false }, NULL, n);
        run_keys(&(shape){ 7, 3, 1, 130, 17, 32, causal, 129, drop, false }, NULL, n);
        run_keys(&(shape){ 7, 1, 5, 130, 64, 64, causal, 100, drop, false }, NULL, n);
        run_keys(&(shape){ 5, 2, 3, 1300, 32, 32, causal, 1250, drop, false }, NULL, many);
        run_keys(&(shape){ 5, 1, 40, 1300, 32, 32, causal, 1250, drop, false }, NULL, many);
    }
    run_keys(&(shape){ 2, 1, 20, 40, 257, 64, false, 0, 0, false }, NULL, n);
}

/* What keys and values beyond an item's length hold, be it NaN, changes no bit of anything. */
static void keys_beyond_the_length(void **state)
{
    static const int32_t n[] = { 33, 0, 90 };
    static const int64_t tq[] = { 1, 8, 40, 100 };
    (void)state;
    for (size_t i = 0; i < (size_t)n_tables * 4; i++) {
        const ag_kernels *k = tables[i / 4];
        problem p[2];
        for (int j = 0; j < 2; j++) {
            problem_init(&p[j], &(shape){ 3, 2, tq[i % 4], 100, 32, 32, false, 0, 0.2, false });
            p[j].a.lengths = n;
            for (int64_t b = 0; j && b < 3; b++)
                for (int64_t t = n[b]; t < 100; t++)
                    for (int64_t c = 0; c < 64; c++)
                        row_of(&p[j], K, 0, b, t)[c] = row_of(&p[j], V, 0, b, t)[c] = NAN;
            k->attention_fwd(&p[j].a);
            k->attention_bwd(&p[j].a, &p[j].g);
        }
        assert_memory_equal(p[0].buffer[0][O], p[1].buffer[0][O], p[0].size[O] * sizeof(float));
        for (int which = Q; which <= V; which++)
            assert_memory_equal(p[0].buffer[1][which], p[1].buffer[1][which],
                                p[0].size[which] * sizeof(float));
        problem_free(&p[0]);
        problem_free(&p[1]);
    }
}

static void threads(void **state)
{
    static const int32_t n[] = { 100, 0, 300 }, many[] = { 1025, 3, 0, 600, 512 };
    static const shape shapes[] = {
        { 1, 1, 300, 300, 64, 64, true, 0, 0.3, true },
        { 3, 1, 300, 300, 32, 64, true, 0, 0, true },
        { 2, 4, 130, 130, 64, 64, false, 0, 0.2, true },
        { 1, 1, 1, 2000, 64, 64, true, 1999, 0, false },
        { 1, 1, 40, 1300, 64, 64, true, 1260, 0, false },
        { 5, 1, 8, 1025, 64, 17, false, 0, 0, false },
    };
    (void)state;
    for (int k = 0; k < n_tables; k++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            run_threads(tables[k], &shapes[i], NULL, NULL);
    for (int k = 0; k < n_tables; k++) {
        run_threads(tables[k], &(shape){ 3, 1, 300, 300, 32, 64, false, 0, 0.1, true }, NULL, n);
        run_threads(tables[k], &(shape){ 5, 1, 8, 1025, 64, 17, false, 0, 0, false }, NULL, many);
    }
}

/* Causal: what comes later changes no bit of what was before. */
static void prefix(void **state)
{
    (void)state;
    for (int k = 0; k < n_tables; k++)
        for (int64_t cut = 1; cut < 200; cut += 11)
            run_prefix(tables[k], &(shape){ 1, 2, 200, 200, 64, 32, true, 0, 0.2, false }, NULL,
                       cut);
}

/* One query at a time with the keys of a cache gives the rows of the whole. */
static void decoding(void **state)
{
    enum { T = 700, D = 64, H = 2 };
    (void)state;
    for (int k = 0; k < n_tables; k++) {
        problem p;
        problem_init(&p, &(shape){ 1, H, T, T, D, D, true, 0, 0, false });
        tables[k]->attention_fwd(&p.a);
        for (int64_t t = 0; t < T; t += 13) {
            float o[H * D], lse[H];
            ag_attention one = p.a;
            one.tq = 1;
            one.q_pos0 = t;
            one.q = row_of(&p, Q, 0, 0, t);
            one.o = o;
            one.lse = lse;
            tables[k]->attention_fwd(&one);
            for (int i = 0; i < H * D; i++)
                assert_true(fabsf(o[i] - row_of(&p, O, 0, 0, t)[i]) <= 1e-6f);
            for (int h = 0; h < H; h++)
                assert_true(fabsf(lse[h] - ((float *)p.a.lse)[h * T + t]) <= 2e-6f);
        }
        problem_free(&p);
    }
}

/* Scores of hundreds neither overflow nor make NaN. */
static void large_scores(void **state)
{
    (void)state;
    for (int k = 0; k < n_tables; k++)
        for (int64_t t = 5; t < 300; t += 90) {
            problem p;
            problem_init(&p, &(shape){ 1, 1, t, t, 16, 16, true, 0, 0, true });
            p.a.scale = 300;
            tables[k]->attention_fwd(&p.a);
            tables[k]->attention_bwd(&p.a, &p.g);
            for (int64_t i = 0; i < t; i++)
                for (int c = 0; c < 16; c++) {
                    assert_true(fabsf(row_of(&p, O, 0, 0, i)[c]) <= 1.6f);
                    assert_true(isfinite(row_of(&p, Q, 1, 0, i)[c]) &&
                                isfinite(row_of(&p, K, 1, 0, i)[c]));
                }
            problem_free(&p);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lengths),  cmocka_unit_test(widths), cmocka_unit_test(offsets),
        cmocka_unit_test(rows_without_keys), cmocka_unit_test(lengths_of_items),
        cmocka_unit_test(keys_beyond_the_length), cmocka_unit_test(threads),
        cmocka_unit_test(prefix),
        cmocka_unit_test(decoding), cmocka_unit_test(large_scores),
    };
    n_tables = ag_kernels_all(AG_F32, tables, 8);
    set_threads(2);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
