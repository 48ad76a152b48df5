/*
 * test_pattern_stats.c -- the numbers of `tulle show pattern`: those known of 1904.10509's patterns
 * (blocks, keys of a query, which queries are reached from which keys), and brute force.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "train/pattern_stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static nn_patterns *patterns(const char *text, int64_t n, int64_t n_layers, int64_t n_heads)
{
    nn_patterns *p = NULL;
    ag_err err = { 0 };
    if (nn_patterns_new(&p, text, n, n_layers, n_heads, NULL, &err))
        fail_msg("'%s': %s", text, err.msg);
    return p;
}

/* Blocks of 32 and keys per query at the sizes of the paper; -1: not counted. */
static void known_counts(void **state)
{
    (void)state;
    static const struct { int64_t n; const char *text; int64_t blocks; double keys; } KNOWN[] = {
        { 12288, "local(128)", 1910, 127.3 }, { 12288, "strided(128)", 768, 48.5 },
        { 12288, "fixed(128, 32)", 19200, 1584.5 }, { 12288, "dense", 73920, 6144.5 },
        { 3072, "local(96)", 378, 94.5 }, { 3072, "strided(96)", 96, 16.5 },
        { 3072, "fixed(96, 32)", 1680, 544.5 }, { 3072, "local(128)", 470, 125.4 },
        { 3072, "strided(128)", -1, 12.5 }, { 3072, "fixed(128, 32)", 1344, 432.5 },
        { 3072, "dense", 4656, 1536.5 },
        { 65536, "local(256)", 18396, -1 }, { 65536, "strided(256)", 9216, -1 },
    };
    for (size_t i = 0; i < sizeof KNOWN / sizeof KNOWN[0]; i++) {
        train_pattern_stats s;
        nn_patterns *p = patterns(KNOWN[i].text, KNOWN[i].n, 1, 4);
        const ag_pattern *keys = p->made[0].keys;
        for (int head = 0; head < (keys ? keys->layouts : 1); head++) {
            assert_int_equal(train_pattern_count(keys, head, KNOWN[i].n, 32, &s, NULL), AG_OK);
            if (KNOWN[i].blocks >= 0) assert_int_equal(s.full + s.partial, KNOWN[i].blocks);
            char keys_text[32], want[32];
            snprintf(keys_text, sizeof keys_text, "%.1f", (double)s.pairs / (double)s.n);
            snprintf(want, sizeof want, "%.1f", KNOWN[i].keys);
            if (KNOWN[i].keys > 0) assert_string_equal(keys_text, want);
            assert_int_equal(s.empty, 0);
        }
        nn_patterns_free(p);
    }
}

/* fixed's second factor alone leaves the first l - c queries without a key. */
static void empty_queries(void **state)
{
    (void)state;
    train_pattern_stats s;
    for (int64_t c = 1; c <= 8; c += 7) {
        char text[32];
        snprintf(text, sizeof text, "summary(64, %d)", (int)c);
        nn_patterns *p = patterns(text, 512, 1, 1);
        assert_int_equal(train_pattern_count(p->made[0].keys, 0, 512, 32, &s, NULL), AG_OK);
        assert_int_equal(s.empty, 64 - c);
        nn_patterns_free(p);
    }
}

/* Blocks of what is not strided, counted pair by pair. */
static void blocks_by_hand(void **state)
{
    (void)state;
    static const char *const TEXTS[] = { "dense", "local(9)", "fixed(12, 3, 1)", "summary(7, 2, 1)",
                                         "local(3)+chunk(20)" };
    static const int64_t N[] = { 1, 31, 64, 100, 130 }, BLOCK[] = { 1, 5, 8, 32, 64, 100 };
    for (int c = 0; c < 5 * 5 * 6; c++) {
        const int64_t n = N[c / 5 % 5], block = BLOCK[c / 25], side = (n + block - 1) / block;
        nn_patterns *p = patterns(TEXTS[c % 5], n, 1, 1);
        const ag_pattern *keys = p->made[0].keys;
        train_pattern_stats s;
        int64_t full = 0, partial = 0, pairs = 0;
        assert_int_equal(train_pattern_count(keys, 0, n, block, &s, NULL), AG_OK);
        for (int64_t a = 0; a < side; a++)
            for (int64_t b = 0; b <= a; b++) {
                int64_t seen = 0;
                for (int64_t i = a * block; i < (a + 1) * block && i < n; i++)
                    for (int64_t j = b * block; j < (b + 1) * block && j <= i; j++)
                        seen += !keys || ag_pattern_has(keys, 0, i, j);
                full += seen == block * block;
                partial += seen > 0 && seen < block * block;
                pairs += seen;
            }
        assert_int_equal(s.full, full);
        assert_int_equal(s.partial, partial);
        assert_int_equal(s.pairs, pairs);
        assert_int_equal(s.blocks, side * (side + 1) / 2);
        nn_patterns_free(p);
    }
}

static train_reach reach(const char *text, int64_t n, int64_t n_layers, int64_t n_heads)
{
    train_reach r;
    nn_patterns *p = patterns(text, n, n_layers, n_heads);
    assert_int_equal(train_pattern_reach(p, n, n_layers, &r, NULL), AG_OK);
    nn_patterns_free(p);
    return r;
}

/* n = 512, stride 64, c = 8: what is known of the paper's patterns. */
static void known_reach(void **state)
{
    (void)state;
    const int64_t all = 512 * 513 / 2;
    train_reach r = reach("local(64);strided(64)", 512, 2, 1);
    assert_int_equal(r.pairs, all);
    assert_int_equal(r.layers, 2);
    assert_true(r.plain[1] == all && r.residual[1] == all && r.plain[0] < all);
    r = reach("strided(64);local(64)", 512, 5, 1);
    assert_true(r.plain[1] == all && r.layers == 3);
    r = reach("chunk(64);summary(64,8)", 512, 4, 1);
    assert_int_equal(all - r.plain[1], 12768);
    assert_int_equal(r.residual[1], all);
    r = reach("summary(64,8);chunk(64)", 512, 4, 1);
    assert_int_equal(all - r.residual[1], 100352);
    assert_int_equal(r.residual[2], all);
    r = reach("fixed(64,8,1)", 512, 4, 8);
    assert_true(r.plain[0] < all && r.plain[1] == all);
    r = reach("fixed(64,8)", 512, 4, 8);             /* all summaries among the heads */
    assert_int_equal(r.plain[0], all);
    r = reach("chunk(64)+summary(64,8,3)", 512, 4, 1);           /* never what follows it */
    assert_true(r.residual[2] < all && r.residual[1] == r.residual[2]);
    r = reach("dense", 5000, 1, 1);
    assert_true(r.n == 2048 && r.layers == 1 && r.plain[0] == r.pairs);
}

/* Paths counted from the sets, one key after the other. */
static void reach_by_hand(void **state)
{
    (void)state;
    enum { N = 90 };
    static const char *const TEXTS[] = { "local(5)|strided(9);summary(10,2)",
                                         "chunk(16);strided(7)", "summary(9,4,1);dense;local(2)" };
    for (int c = 0; c < 3; c++) {
        const train_reach got = reach(TEXTS[c], N, 3, 2);
        nn_patterns *p = patterns(TEXTS[c], N, 3, 2);
        for (int residual = 0; residual < 2; residual++) {
            static bool from[N][N], to[N][N];
            memset(from, 0, sizeof from);
            for (int i = 0; i < N; i++) from[i][i] = true;
            for (int layer = 0; layer < 3; layer++) {
                const ag_pattern *keys = nn_patterns_of(p, layer)->keys;
                int64_t pairs = 0;
                memset(to, 0, sizeof to);
                for (int i = 0; i < N; i++)
                    for (int a = 0; a <= i; a++) {
                        if (keys && !ag_pattern_has(keys, 0, i, a) &&
                            !ag_pattern_has(keys, 1, i, a) && !(residual && a == i)) continue;
                        for (int j = 0; j < N; j++) to[i][j] |= from[a][j];
                    }
                for (int i = 0; i < N; i++)
                    for (int j = 0; j < N; j++) pairs += to[i][j];
                assert_int_equal(residual ? got.residual[layer] : got.plain[layer], pairs);
                memcpy(from, to, sizeof from);
            }
        }
        nn_patterns_free(p);
    }
}

static void names(void **state)
{
    (void)state;
    char text[256];
    nn_patterns *p = patterns("dense;fixed(8,2,2)|local(4);dense*2", 40, 9, 8);
    train_pattern_layers(p, 0, 9, text, sizeof text);
    assert_string_equal(text, "0, 2-4, 6-8");
    train_pattern_layers(p, 1, 9, text, sizeof text);
    assert_string_equal(text, "1, 5");
    train_pattern_heads(p->made[1].keys, 2, 8, text, sizeof text);
    assert_string_equal(text, "2, 6");
    train_pattern_heads(NULL, 0, 8, text, sizeof text);
    assert_string_equal(text, "0-7");
    train_pattern_factors(p->made[1].keys, 2, text, sizeof text);
    assert_string_equal(text, "chunk(8) + summary(8, 2, 1)");
    nn_patterns_free(p);
    p = patterns("dense;local(4)*3", 8, 126, 1);     /* many at equal distances are left out */
    train_pattern_layers(p, 0, 126, text, sizeof text);
    assert_string_equal(text, "0, 4, ..., 124");
    train_pattern_layers(p, 1, 126, text, sizeof text);
    assert_string_equal(text, "1-3, 5-7, ..., 125");
    train_pattern_layers(p, 1, 15, text, sizeof text);
    assert_string_equal(text, "1-3, 5-7, 9-11, 13-14");
    nn_patterns_free(p);
    p = patterns("dense;local(4);dense*2;local(4)", 8, 12, 1);
    train_pattern_layers(p, 1, 12, text, sizeof text);
    assert_string_equal(text, "1, 4, 6, 9, 11");
    nn_patterns_free(p);
}

/* A picture has a panel for each layout, and a cell for each position of a short pattern. */
static void picture_of(void **state)
{
    (void)state;
    char *svg;
    nn_patterns *p = patterns("local(2)|strided(3);dense", 4, 2, 2);
    assert_int_equal(train_pattern_svg(p, 4, 2, 2, &svg, NULL), AG_OK);
    int panels = 0, cells = 0;
    for (const char *s = svg; (s = strstr(s, ">layers ")); s++) panels++;
    for (const char *s = svg; (s = strstr(s, "h1v1h-1z")); s++) cells++;
    assert_int_equal(panels, 3);
    assert_int_equal(cells, 7 + 5 + 10);
    assert_non_null(strstr(svg, ">heads 1<"));
    assert_non_null(strstr(svg, ">strided(3)<"));
    assert_memory_equal(svg + strlen(svg) - 7, "</svg>\n", 7);
    free(svg);
    nn_patterns_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_counts), cmocka_unit_test(empty_queries),
        cmocka_unit_test(blocks_by_hand), cmocka_unit_test(known_reach),
        cmocka_unit_test(reach_by_hand), cmocka_unit_test(names), cmocka_unit_test(picture_of),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
