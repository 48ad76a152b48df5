/*
 * test_pattern.c -- which keys queries see: tiles, definition and runs against sets that
 * pattern_picture.h draws.
 */
#include "pattern_picture.h"

#include "autograd/base/rng.h"

static void check_pairs(const ag_pattern *k, int head, picture want)
{
    const int64_t n = want.n, begins[] = { 0, n / 3 }, ends[] = { n, n / 2 }, keys[] = { n, n / 4 };
    for (int c = 0; c < 8; c++) {
        int64_t pairs = 0;
        for (int64_t i = begins[c & 1]; i < ends[c >> 1 & 1]; i++)
            for (int64_t j = 0; j < keys[c >> 2]; j++) pairs += want.sees[i * n + j];
        assert_int_equal(ag_pattern_pairs(k, head, begins[c & 1], ends[c >> 1 & 1], keys[c >> 2]),
                         pairs);
    }
}

static void check_layout(int64_t n, const ag_pattern_layout *l)
{
    ag_pattern *k;
    ag_err err = { 0 };
    picture want = picture_new(n);
    if (ag_pattern_new(&k, n, 1, l, &err)) fail_msg("%s", err.msg);
    for (int f = 0; f < l->n_factors; f++) draw(want, &l->factor[f]);
    check_tiles(k, 0, want);
    check_sets(k, 0, want);
    check_pairs(k, 0, want);
    ag_pattern_free(k);
    free(want.sees);
}

enum { MOST = 64 };

/* Factors with several strides, widths and indices; pairs of blocks of three sizes. */
static int all_factors(ag_factor f[MOST])
{
    static const int64_t L[] = { 1, 2, 5, 8, 24, 64, 100 };
    static const int32_t pair[][2] = { { 0, 0 }, { 1, 0 }, { 3, 1 }, { 3, 3 }, { 9, 2 }, { 9, 9 } };
    int n = 0;
    f[n++] = (ag_factor){ .kind = AG_FACTOR_ALL };
    for (int i = 0; i < 7; i++)
        for (int kind = AG_FACTOR_LOCAL; kind <= AG_FACTOR_CHUNK; kind++)
            f[n++] = (ag_factor){ .kind = (ag_factor_kind)kind, .stride = L[i] };
    for (int i = 0; i < 6; i++)
        for (int64_t index = 0; index < 3; index++) {
            const int64_t c = i == 4 ? 7 : L[i] > 8 ? 16 : L[i] > 3 ? 2 : 1;
            if ((index + 1) * c > L[i]) continue;
            f[n++] = (ag_factor){ .kind = AG_FACTOR_SUMMARY, .stride = L[i], .width = c,
                                  .index = index };
        }
    for (int64_t block = 1; block <= 16; block += block == 1 ? 6 : 9)
        f[n++] = (ag_factor){ .kind = AG_FACTOR_PAIRS, .width = block, .pair = pair, .n_pairs = 6 };
    f[n++] = (ag_factor){ .kind = AG_FACTOR_PAIRS, .width = 1 };         /* sees nothing at all */
    assert_true(n <= MOST);
    return n;
}

static void every_factor(void **state)
{
    (void)state;
    ag_factor f[MOST];
    const int count = all_factors(f);
    for (int i = 0; i < count; i++)
        for (int64_t n = 0; n <= 81; n++) {
            ag_pattern_layout l = { .n_factors = 1, .factor = { f[i] } };
            check_layout(n, &l);
        }
}

static void every_union(void **state)
{
    (void)state;
    static const int64_t N[] = { 1, 24, 65, 130 };
    ag_factor f[MOST];
    const int count = all_factors(f);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < count; j++) {
            ag_pattern_layout l = { .n_factors = 2, .factor = { f[i], f[j] } };
            check_layout(N[(i + j) % 4], &l);
            l.n_factors = 3;
            l.factor[2] = f[(i * 7 + j * 3) % count];
            check_layout(N[(i + j + 1) % 4], &l);
        }
}

/* Rows of a long pattern, drawn alone. */
static void sampled(void **state)
{
    (void)state;
    enum { N = 5000, ROWS = 60 };
    ag_factor f[MOST];
    const int count = all_factors(f);
    for (int c = 0; c < count; c++) {
        ag_pattern *k;
        ag_err err = { 0 };
        const ag_pattern_layout l = { .n_factors = 2, .factor = { f[c], f[(c * 5 + 2) % count] } };
        if (ag_pattern_new(&k, N, 1, &l, &err)) fail_msg("%s", err.msg);
        picture want = picture_new(N);
        for (int e = 0; e < 2; e++) draw(want, &l.factor[e]);
        for (int r = 0; r < ROWS; r++) {
            const int64_t i = (int64_t)(ag_noise_bits(3, 0, (uint32_t)c, (uint64_t)r) % N);
            int64_t row = 0;
            for (int64_t j = 0; j < N; j++) {
                assert_int_equal(ag_pattern_has(k, 0, i, j), want.sees[i * N + j]);
                row += want.sees[i * N + j];
            }
            assert_int_equal(ag_pattern_pairs(k, 0, i, i + 1, N), row);
        }
        int64_t all = 0;
        for (int64_t e = 0; e < N * N; e++) all += want.sees[e];
        assert_int_equal(ag_pattern_of(k, 0)->n_seen, all);
        free(want.sees);
        ag_pattern_free(k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_factor), cmocka_unit_test(every_union), cmocka_unit_test(sampled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
