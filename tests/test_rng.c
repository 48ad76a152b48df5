/*
 * test_rng.c -- the noise: known answers of Philox, the range of uniforms and Gumbels, and the
 * statistics of what is made of them.  Everything is a function of the seed, so nothing here can
 * fail by chance.
 */
#include "kernel_check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The vectors of Random123 (kat_vectors, philox4x32 with 10 rounds). */
static void test_philox_known_answers(void **state)
{
    static const struct { uint32_t c[4], k[2], want[4]; } v[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u },
          { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 },
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } } };
    (void)state;
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
        uint32_t got[4];
        ag_philox((uint64_t)v[i].k[1] << 32 | v[i].k[0], v[i].c[3], v[i].c[2],
                  (uint64_t)v[i].c[1] << 32 | v[i].c[0], got);
        assert_memory_equal(got, v[i].want, sizeof got);
    }
}

static void test_layout(void **state)
{
    const ag_noise z = { .seed = 5, .step = 6, .site = 7, .row0 = 3 };
    uint32_t w[4];
    (void)state;
    ag_philox(5, 6, 7, 2 * 16 + 9, w);                    /* element 2*64 + 3*16 + 9 */
    assert_int_equal(ag_noise_bits(5, 6, 7, 2 * 64 + 3 * 16 + 9), w[3]);
    assert_int_equal(ag_noise_stride(1), 64);
    assert_int_equal(ag_noise_stride(64), 64);
    assert_int_equal(ag_noise_stride(65), 128);
    assert_int_equal(ag_noise_at(&z, 2, 10, 65), ag_noise_bits(5, 6, 7, 5 * 128 + 10));
}

static void test_every_uniform_is_inside(void **state)
{
    double mean = 0;
    (void)state;
    for (uint32_t k = 0; k < 1u << 24; k++) {
        const double u = (double)ag_uniform(k << 8 | 0x5a);
        if (!(u > 0 && u < 1) || !isfinite(ag_gumbel(k << 8)))
            fail_msg("uniform %u is %.9g, its Gumbel %g", k, u, ag_gumbel(k << 8));
        mean += u * 0x1p-24;
    }
    assert_true(fabs(mean - 0.5) < 1e-6);
}

typedef struct drop_case {
    int64_t m, n;
    double  p;
    bool    acc;
    ag_noise noise;
    const float *x, *residual;
} drop_case;

static void run_dropout(const ag_kernels *k, const void *arg, void *const y[])
{
    const drop_case *c = arg;
    k->dropout_fwd(c->m, c->n, c->p, &c->noise, c->x, c->residual, y[0]);
    k->dropout_bwd(c->m, c->n, c->p, &c->noise, c->x, y[1], c->acc);
}

static void test_dropout(void **state)
{
    static const int64_t shape[][2] = { { 0, 3 }, { 1, 1 }, { 3, 15 }, { 2, 63 }, { 5, 64 },
                                        { 3, 65 }, { 7, 127 },
                                        { 97, 384 }, { 1, 50021 } };
    static const double rate[] = { 0, 0.1, 0.5, 0.9 };
    (void)state;
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        for (int r = 0; r < 4; r++)
            for (int acc = 0; acc < 2; acc++) {
                drop_case c = { .m = shape[i][0], .n = shape[i][1], .p = rate[r], .acc = acc };
                c.noise = (ag_noise){ .seed = 0x123456789abcdefu, .step = 9, .site = 4,
                                      .row0 = acc ? (int64_t)1 << 33 : 0 };
                float *x = floats(c.m * c.n, -1, 1, 1), *residual = floats(c.m * c.n, -1, 1, 2);
                c.x = x;
                c.residual = acc ? residual : NULL;
                const out o[2] = { { .n = c.m * c.n, .exact = !acc, .c = 12 },
                                   { .n = c.m * c.n, .adds = acc, .exact = !acc, .c = 12 } };
                check_kernel("dropout", run_dropout, &c, 2, o);
                free(x), free(residual);
            }
}

static void test_dropout_rate(void **state)
{
    enum { M = 1000, N = 1000 };
    static float y[M * N];
    float *ones = floats(M * N, 1, 1, 1);
    const ag_kernels *all[MAX_TABLES];
    const int n_tables = ag_kernels_all(AG_F32, all, MAX_TABLES);
    (void)state;
    for (int t = 0; t < n_tables; t++)
        for (int r = 1; r < 10; r++) {
            const ag_noise z = { .seed = 11, .step = (uint32_t)r, .site = 1 };
            const double p = 0.1 * r, sigma = sqrt(p * (1 - p) / (M * N));
            int64_t kept = 0;
            all[t]->dropout_fwd(M, N, p, &z, ones, NULL, y);
            for (int i = 0; i < M * N; i++) {
                assert_true(y[i] == 0 || y[i] == (float)(1 / (1 - p)));
                kept += y[i] != 0;
            }
            assert_true(fabs((double)kept / (M * N) - (1 - p)) < 5 * sigma);
        }
    free(ones);
}

/* Gumbel-max (1611.01144): argmax(log p + g) is distributed as p.  Chi-square of 10^6 draws, 15
 * degrees of freedom: 54.3 has probability 2e-6. */
static void test_controller_draws_its_softmax(void **state)
{
    enum { N = 16, ROWS = 10000, BLOCKS = 100 };
    const int64_t size = (int64_t)ROWS * BLOCKS * N;
    float *logits = floats(N, -2, 2, 8), *z = floats(size, 0, 1, 1), *mask = floats(size, 0, 1, 1);
    float *p = floats(size, 0, 1, 1);
    int32_t *choice = ints(ROWS * BLOCKS, 0, 1, 1);
    const ag_kernels *table[MAX_TABLES];
    const int n_tables = fast_tables(table);
    double want[N], total = 0;
    (void)state;
    for (int j = 0; j < N; j++)
        total += want[j] = exp((double)logits[j]);
    for (int64_t i = 0; i < size; i++)
        z[i] = logits[i % N];
    for (int t = 0; t < n_tables; t++)
        for (int relaxed = 0; relaxed < 2; relaxed++) {
            const ag_controller c = { .rows = ROWS, .blocks = BLOCKS, .n = N, .relaxed = relaxed,
                                      .hard = true, .temperature = 1,
                                      .noise = { .seed = 3, .step = 1, .site = 2 } };
            double seen[N] = { 0 }, chi2 = 0;
            table[t]->controller_fwd(&c, z, mask, choice, p);
            for (int64_t i = 0; i < ROWS * BLOCKS; i++)
                seen[choice[i]]++;
            for (int j = 0; j < N; j++) {
                const double e = want[j] / total * ROWS * BLOCKS;
                chi2 += (seen[j] - e) * (seen[j] - e) / e;
            }
            if (!(chi2 < 54.3))
                fail_msg("%s: chi-square %g", table[t]->name, chi2);
        }
    free(logits), free(z), free(mask), free(p), free(choice);
}

/* Kolmogorov and Smirnov: 1.95 / sqrt(n) has probability 1e-3. */
static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void test_distributions(void **state)
{
    enum { N = 200000 };
    static double g[N], normal[N];
    double far_g = 0, far_n = 0;
    (void)state;
    for (int i = 0; i < N; i += 2) {
        g[i] = ag_gumbel(ag_noise_bits(1, 2, 3, (uint64_t)i));
        g[i + 1] = ag_gumbel(ag_noise_bits(1, 2, 3, (uint64_t)i + 1));
        ag_normal2(ag_noise_bits(1, 2, 4, (uint64_t)i), ag_noise_bits(1, 2, 4, (uint64_t)i + 1),
                   normal + i);
    }
    qsort(g, N, sizeof *g, ascending);
    qsort(normal, N, sizeof *normal, ascending);
    for (int i = 0; i < N; i++) {
        far_g = fmax(far_g, fabs(exp(-exp(-g[i])) - (i + 0.5) / N));
        far_n = fmax(far_n, fabs(0.5 * erfc(-normal[i] * M_SQRT1_2) - (i + 0.5) / N));
    }
    assert_true(far_g * sqrt(N) < 1.95);
    assert_true(far_n * sqrt(N) < 1.95);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers), cmocka_unit_test(test_layout),
        cmocka_unit_test(test_every_uniform_is_inside), cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_dropout_rate), cmocka_unit_test(test_controller_draws_its_softmax),
        cmocka_unit_test(test_distributions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
