/*
 * test_attention_pattern.c -- attention kernels of every instruction set under patterns of keys,
 * against the oracle in f64, which asks the definition of the pattern.
 */
#include "attention_check.h"

enum { N = 300, L = 24 };            /* positions, stride */

static const int32_t block_pairs[][2] = {
    { 0, 0 }, { 1, 0 }, { 1, 1 }, { 3, 0 }, { 3, 3 }, { 4, 1 }, { 9, 2 }, { 9, 5 }, { 9, 8 },
    { 18, 18 }
};
#define F(...) { __VA_ARGS__ }
#define LOCAL(l) { .kind = AG_FACTOR_LOCAL, .stride = (l) }
#define STRIDED(l) { .kind = AG_FACTOR_STRIDED, .stride = (l) }
#define CHUNK(l) { .kind = AG_FACTOR_CHUNK, .stride = (l) }
#define SUMMARY(l, c, i) { .kind = AG_FACTOR_SUMMARY, .stride = (l), .width = (c), .index = (i) }
#define BLOCKS { .kind = AG_FACTOR_PAIRS, .width = 16, .pair = block_pairs, .n_pairs = 10 }
#define ALL { .kind = AG_FACTOR_ALL }

static const struct spec { int count; ag_pattern_layout layout[3]; } specs[] = {
    { 1, { { .n_factors = 1, .factor = F(LOCAL(1)) } } },
    { 1, { { .n_factors = 1, .factor = F(LOCAL(L)) } } },
    { 1, { { .n_factors = 1, .factor = F(LOCAL(128)) } } },
    { 1, { { .n_factors = 1, .factor = F(STRIDED(L)) } } },
    { 1, { { .n_factors = 1, .factor = F(STRIDED(3)) } } },
    { 1, { { .n_factors = 1, .factor = F(CHUNK(L)) } } },
    { 1, { { .n_factors = 1, .factor = F(SUMMARY(L, 8, 0)) } } },
    { 1, { { .n_factors = 2, .factor = F(LOCAL(L), STRIDED(L)) } } },
    { 1, { { .n_factors = 4, .factor = F(STRIDED(7), STRIDED(5), SUMMARY(L, 3, 2), LOCAL(2)) } } },
    { 1, { { .n_factors = 1, .factor = F(BLOCKS) } } },
    { 1, { { .n_factors = 1, .factor = F(ALL) } } },
    { 3, { { .n_factors = 2, .factor = F(CHUNK(L), SUMMARY(L, 8, 0)) },
           { .n_factors = 2, .factor = F(CHUNK(L), SUMMARY(L, 8, 1)) },
           { .n_factors = 2, .factor = F(CHUNK(L), SUMMARY(L, 8, 2)) } } },
    { 2, { { .n_factors = 1, .factor = F(STRIDED(L)) },
           { .n_factors = 2, .factor = F(BLOCKS, STRIDED(64)) } } },
};
enum { SPECS = sizeof specs / sizeof *specs };

static ag_pattern *patterns[SPECS];

static int make(void **state)
{
    (void)state;
    ag_err err = { 0 };
    for (int i = 0; i < SPECS; i++)
        if (ag_pattern_new(&patterns[i], N, specs[i].count, specs[i].layout, &err) < 0) return -1;
    return 0;
}

static int unmake(void **state)
{
    (void)state;
    for (int i = 0; i < SPECS; i++)
        ag_pattern_free(patterns[i]);
    return 0;
}

static void lengths(void **state)
{
    static const int64_t t[] = { 1, 2, 15, 16, 17, 63, 64, 65, 130, 257, N };
    (void)state;
    for (int i = 0; i < SPECS; i++)
        for (size_t j = 0; j < sizeof t / sizeof *t; j++)
            run_pattern(&(shape){ 2, 3, t[j], t[j], 32, 32, true, 0, 0, j % 2 }, patterns[i]);
}

static void widths(void **state)
{
    static const int64_t d[] = { 1, 8, 17, 64, 80 };
    (void)state;
    for (int i = 0; i < SPECS; i++)
        for (size_t j = 0; j < sizeof d / sizeof *d; j++)
            run_pattern(&(shape){ 1, 2, 150, 150, d[j], d[(j + (size_t)i) % 5], true, 0, 0, true },
                        patterns[i]);
    for (int i = 0; i < SPECS; i++)                      /* blocks of several query tiles */
        run_pattern(&(shape){ 1, 1, N, N, 80, 40, true, 0, 0, true }, patterns[i]);
    run_pattern(&(shape){ 1, 1, 40, 40, 257, 64, true, 0, 0, true }, patterns[7]);
}

static void threads(void **state)
{
    (void)state;
    for (int k = 0; k < n_tables; k++)
        for (int i = 0; i < SPECS; i++) {
            run_threads(tables[k], &(shape){ 1, 1, N, N, 32, 64, true, 0, 0, true },
                        patterns[i], NULL);
            run_threads(tables[k], &(shape){ 3, 3, N, N, 64, 16, true, 0, 0, true },
                        patterns[i], NULL);
        }
}

/* What comes later changes no bit of what was before. */
static void prefix(void **state)
{
    (void)state;
    for (int k = 0; k < n_tables; k++)
        for (int64_t cut = 1; cut < SPECS * 22; cut += 11)
            run_prefix(tables[k], &(shape){ 1, 2, N, N, 32, 32, true, 0, 0, false },
                       patterns[cut / 22], cut);
}

/* Queries over a cache: one, and a few, at the end of the keys. */
static void cached(void **state)
{
    (void)state;
    for (int k = 0; k < n_tables; k++)
        for (int i = 0; i < SPECS; i++)
            for (int64_t t = 0; t < N; t += 23)
                for (int64_t n = 1; n <= 18 && t + n <= N; n += 17) {
                    problem p;
                    oracle r;
                    pattern_init(&p, &(shape){ 2, 3, n, t + n, 32, 17, true, t, 0, false },
                                 patterns[i]);
                    oracle_init(&r, &p.a);
                    oracle_run(&p, &r);
                    tables[k]->attention_fwd(&p.a);
                    check(&p, "o", O, 0, r.o, 1, tables[k]->name);
                    oracle_free(&r);
                    problem_free(&p);
                }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lengths), cmocka_unit_test(widths), cmocka_unit_test(threads),
        cmocka_unit_test(prefix),  cmocka_unit_test(cached),
    };
    n_tables = ag_kernels_all(AG_F32, tables, 8);
    set_threads(2);
    return cmocka_run_group_tests(tests, make, unmake);
}
