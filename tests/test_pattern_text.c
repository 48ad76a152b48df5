/* test_pattern_text.c -- the language of patterns, and files of pairs. */
#include "pattern_picture.h"

#include "autograd/base/arena.h"
#include "layers/pattern.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* --- the language ----------------------------------------------------------------------------- */

static nn_patterns *patterns(const char *text, int64_t n, int64_t n_layers, int64_t n_heads)
{
    nn_patterns *p = NULL;
    ag_err err = { 0 };
    if (nn_patterns_new(&p, text, n, n_layers, n_heads, NULL, &err))
        fail_msg("'%s': %s", text, err.msg);
    assert_int_equal(nn_patterns_check(text, n, n_heads, NULL, &err), AG_OK);
    return p;
}

/* Head h of a layer sees the union of two factors (the second may be absent). */
static void expect(const nn_patterns *p, int layer, int head, int64_t n, ag_factor a, ag_factor b)
{
    picture want = picture_new(n);
    draw(want, &a);
    if (b.stride) draw(want, &b);
    assert_non_null(nn_patterns_of(p, layer)->keys);
    check_tiles(nn_patterns_of(p, layer)->keys, head, want);
    check_sets(nn_patterns_of(p, layer)->keys, head, want);
    free(want.sees);
}

#define ONE(k, l) ((ag_factor){ .kind = AG_FACTOR_##k, .stride = l })
#define SUM(l, c, i)                                                                               \
    ((ag_factor){ .kind = AG_FACTOR_SUMMARY, .stride = l, .width = c, .index = i })
#define NO ((ag_factor){ .stride = 0 })

static void layers_and_heads(void **state)
{
    (void)state;
    nn_patterns *p = patterns(" strided(8) ;local(8)*3;dense", 40, 12, 2);
    assert_int_equal(p->n, 3);
    assert_int_equal(p->period, 5);
    for (int layer = 0; layer < 12; layer++) {
        if (layer % 5 == 0) expect(p, layer, 1, 40, ONE(STRIDED, 8), NO);
        else if (layer % 5 < 4) expect(p, layer, 0, 40, ONE(LOCAL, 8), NO);
        else assert_null(nn_patterns_of(p, layer)->keys);
    }
    assert_string_equal(nn_patterns_of(p, 0)->text, "strided(8)");
    assert_string_equal(nn_patterns_of(p, 7)->text, "local(8)");
    nn_patterns_free(p);
    p = patterns("local(3)+strided(6)|dense|summary(9,2,1)", 40, 1, 5);
    for (int h = 0; h < 5; h += 3) expect(p, 0, h, 40, ONE(LOCAL, 3), ONE(STRIDED, 6));
    expect(p, 0, 1, 40, ONE(ALL, 0), NO);
    expect(p, 0, 4, 40, ONE(ALL, 0), NO);
    expect(p, 0, 2, 40, SUM(9, 2, 1), NO);
    assert_int_equal(nn_patterns_of(p, 0)->keys->layouts, 3);
    nn_patterns_free(p);
    p = patterns("local(4); local( 4 ) | local(4) ;dense;local(2)+dense;chunk(3)", 20, 4, 2);
    assert_int_equal(p->n, 2);       /* equal ones are made once, the fifth layer is not there */
    assert_ptr_equal(nn_patterns_of(p, 0), nn_patterns_of(p, 1));
    assert_null(nn_patterns_of(p, 2)->keys);
    assert_null(nn_patterns_of(p, 3)->keys);
    assert_true(nn_patterns_bytes(p) == ag_pattern_bytes(nn_patterns_of(p, 0)->keys));
    nn_patterns_free(p);
}

/* k summaries among the heads: as given, all there are where they divide the heads, else one. */
static void fixed(void **state)
{
    (void)state;
    static const struct { const char *text; int heads, k; } CASES[] = {
        { "fixed(8, 2)", 8, 4 }, { "fixed(8, 2)", 4, 4 }, { "fixed(8, 2)", 6, 1 },
        { "fixed(8, 2)", 2, 1 }, { "fixed(8, 2, 2)", 2, 2 }, { "fixed(8, 2, 1)", 8, 1 },
        { "fixed(8, 2, 3)", 4, 3 }, { "fixed(8, 8)", 4, 1 }, { "fixed(8, 3)", 4, 2 },
    };
    for (size_t c = 0; c < sizeof CASES / sizeof CASES[0]; c++) {
        const int64_t width = CASES[c].text[9] - '0';
        nn_patterns *p = patterns(CASES[c].text, 50, 1, CASES[c].heads);
        for (int h = 0; h < CASES[c].heads; h++)
            expect(p, 0, h, 50, ONE(CHUNK, 8), SUM(8, width, h % CASES[c].k));
        nn_patterns_free(p);
    }
    nn_patterns *p = patterns("local(3) | fixed(8, 2) | fixed(8, 4, 2)", 50, 1, 11);
    for (int h = 0; h < 11; h++)     /* the heads of a list take turns: 4 and 3 of them */
        if (h % 3 == 0) expect(p, 0, h, 50, ONE(LOCAL, 3), NO);
        else if (h % 3 == 1) expect(p, 0, h, 50, ONE(CHUNK, 8), SUM(8, 2, h / 3));
        else expect(p, 0, h, 50, ONE(CHUNK, 8), SUM(8, 4, h / 3 % 2));
    nn_patterns_free(p);
}

/* All summaries together: the heads see everything that dense ones do (1904.10509's released code,
 * 4 sub-blocks of 32 in a stride of 128). */
static void fixed_heads_see_all(void **state)
{
    (void)state;
    nn_patterns *p = patterns("fixed(16, 4)", 100, 1, 4);
    for (int64_t i = 0; i < 100; i++)
        for (int64_t j = 0; j <= i; j++) {
            int heads = 0;
            for (int h = 0; h < 4; h++)
                heads += ag_pattern_has(nn_patterns_of(p, 0)->keys, h, i, j);
            assert_int_equal(heads, i / 16 == j / 16 ? 4 : 1);
        }
    nn_patterns_free(p);
}

/* --- files ------------------------------------------------------------------------------------ */

static char path[] = "/tmp/tulle-pattern-XXXXXX";

static void write_file(const char *text, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static nn_patterns *read_pairs(const char *pairs, const char *behind, int64_t heads)
{
    char text[128];
    write_file(pairs, strlen(pairs));
    snprintf(text, sizeof text, "file(\"%s\")%s", path, behind);
    return patterns(text, 20, 1, heads);
}

static void file_pairs(void **state)
{
    (void)state;
    static const int32_t blocks[][2] = { { 0, 0 }, { 2, 0 }, { 2, 2 }, { 4, 3 } },
        mine[][2] = { { 3, 1 }, { 5, 5 }, { 7, 2 } }, both[][2] = { { 5, 5 }, { 7, 2 } };
    nn_patterns *p = read_pairs("# four blocks\n\nblocks 5  # long\r\n2 2\n2\t0\n 0 0 # again\n0 0"
                                "\n3 3\n", "+strided(3)", 2);
    picture want = picture_new(20);
    draw_blocks(want, 5, blocks, 3);
    draw_blocks(want, 5, (const int32_t[][2]){ { 3, 3 } }, 1);
    draw_strided(want, 3);
    check_tiles(nn_patterns_of(p, 0)->keys, 1, want);
    assert_int_equal(nn_patterns_of(p, 0)->keys->layouts, 1);
    nn_patterns_free(p);
    free(want.sees);
    p = read_pairs("elements\n5 5\n7 2\nhead 1\n3 1\n7 2\nhead 2", "", 3);
    for (int h = 0; h < 3; h++) {
        want = picture_new(20);
        draw_blocks(want, 1, h == 1 ? mine : both, h == 1 ? 3 : 2);
        check_tiles(nn_patterns_of(p, 0)->keys, h, want);
        check_sets(nn_patterns_of(p, 0)->keys, h, want);
        free(want.sees);
    }
    nn_patterns_free(p);
    nn_patterns_free(read_pairs("elements", "", 2));     /* nobody sees anything */
}

static void bad_files(void **state)
{
    (void)state;
    static const struct { const char *text, *want; } BAD[] = {
        { "", "1: expected 'blocks B', B positions each, or 'elements'" },
        { "# only this\n", "1: expected 'blocks B', B positions each, or 'elements'" },
        { "\n0 0\n", "2: expected 'blocks B', B positions each, or 'elements'" },
        { "blocks\n", "1: expected 'blocks B', B positions each, or 'elements'" },
        { "blocks 0\n", "1: expected 'blocks B', B positions each, or 'elements'" },
        { "blocks 4 4\n", "1: expected 'blocks B', B positions each, or 'elements'" },
        { "elements\n1\n", "2: expected 'query key', two whole numbers, or 'head H'" },
        { "elements\n1 0 0\n", "2: expected 'query key', two whole numbers, or 'head H'" },
        { "elements\n1 -1\n", "2: expected 'query key', two whole numbers, or 'head H'" },
        { "elements\n1 9999999999\n", "2: expected 'query key', two whole numbers, or 'head H'" },
        { "elements\nhead\n", "2: expected 'head H', H from 0 to 1" },
        { "elements\nhead 2\n", "2: expected 'head H', H from 0 to 1" },
        { "elements\n\n3 4\n", "3: query 3 sees no later key, such as 4" },
        { "elements\n20 4\n", "2: query 20 lies behind the last of the context, 19" },
        { "blocks 8\n3 1\n", "2: query 3 lies behind the last of the context, 2" },
    };
    char text[128], want[256];
    snprintf(text, sizeof text, "file('%s')", path);
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        ag_err err = { 0 };
        write_file(BAD[i].text, strlen(BAD[i].text));
        snprintf(want, sizeof want, "%s:%s", path, BAD[i].want);
        assert_int_equal(nn_patterns_check(text, 20, 2, NULL, &err), AG_ECONFIG);
        assert_string_equal(err.msg, want);
        assert_int_equal(nn_patterns_check(text, 20, 2, NULL, NULL), AG_ECONFIG);
    }
    ag_err err = { 0 };
    write_file("elements\n1 \0 0\n", 15);
    snprintf(want, sizeof want, "%s:2: this is no text", path);
    assert_int_equal(nn_patterns_check(text, 20, 2, NULL, &err), AG_ECONFIG);
    assert_string_equal(err.msg, want);
    err.code = 0;
    assert_int_equal(nn_patterns_check("file(\"/nowhere/x\")", 20, 2, NULL, &err), AG_EIO);
    assert_string_equal(err.msg, "cannot open '/nowhere/x': No such file or directory");
}

/* --- errors ----------------------------------------------------------------------------------- */

#define FORMS                                                                                      \
    "  a factor is dense, local(l), strided(l), chunk(l), summary(l, c[, index]), fixed(l, c[, "   \
    "k]) or file(\"path\");\n  '+' joins factors, '|' parts heads, ';' parts layers, '*3' behind " \
    "a layer's makes three of it"

static void bad_texts(void **state)
{
    (void)state;
    static const struct { const char *text, *what; int column; } BAD[] = {
        { "", "expected a factor, found the end", 0 },
        { "local(8);", "expected a factor, found the end", 9 },
        { "local(8) | ; dense", "expected a factor, found ';'", 11 },
        { "+dense", "expected a factor, found '+'", 0 },
        { "\xc3\xa9", "expected a factor, found '\xc3\xa9'", 0 },
        { "dense; lokal(8)", "no factor 'lokal'", 7 },
        { "Dense", "no factor 'Dense'", 0 },
        { "\xc3\xa9 = 3", "expected a factor, found '\xc3\xa9'", 0 },
        { "local", "expected '(', found the end", 5 },
        { "local 8", "expected '(', found '8'", 6 },
        { "local()", "expected l, a whole number, found ')'", 6 },
        { "local(-8)", "expected l, a whole number, found '-'", 6 },
        { "local(0)", "l must be a number from 1 to 2147483647", 6 },
        { "local(99999999999999999999)", "l must be a number from 1 to 2147483647", 6 },
        { "local(8, 2)", "expected ')', found ','", 7 },
        { "local(8", "expected ')', found the end", 7 },
        { "local(8.5)", "expected ')', found '.'", 7 },
        { "summary(8)", "expected ',', found ')'", 9 },
        { "summary(8, 9)", "c must be a number from 1 to 8", 11 },
        { "summary(8, 3, 2)", "index must be a number from 0 to 1", 14 },
        { "fixed(8, 0)", "c must be a number from 1 to 8", 9 },
        { "fixed(8, 1, 5)",
          "k, the parts of a stride among the heads, must be a number from 1 to 4", 12 },
        { "fixed(8, 4, 3)",
          "k, the parts of a stride among the heads, must be a number from 1 to 2", 12 },
        { "fixed(8, 4, 1, 1)", "expected ')', found ','", 13 },
        { "dense(8)", "expected '+', '|', '*', ';' or the end, found '('", 5 },
        { "dense local(8)", "expected '+', '|', '*', ';' or the end, found 'l'", 6 },
        { "local(8)*2|dense", "expected '+', '|', '*', ';' or the end, found '|'", 10 },
        { "local(8)*", "expected the number of layers, a whole number, found the end", 9 },
        { "local(8)*0", "the number of layers must be a number from 1 to 1000", 9 },
        { "dense|dense|dense|dense|dense", "more lists than heads, 4", 24 },
        { "file(x)", "expected the path of a file in quotes", 5 },
        { "file(\"x)", "this quote does not end", 5 },
        { "file('')", "a path has 1 to 1023 bytes", 5 },
        { "local(1)+local(2)+local(3)+local(4)+local(5)+fixed(6,1)",
          "a head has at most 6 factors, and fixed counts as two", 45 },
    };
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        char want[1024];
        ag_err err = { 0 };
        nn_patterns *p = NULL;
        snprintf(want, sizeof want, "%s\n    %s\n    %*s^\n" FORMS, BAD[i].what, BAD[i].text,
                 BAD[i].column, "");
        assert_int_equal(nn_patterns_check(BAD[i].text, 64, 4, NULL, &err), AG_ECONFIG);
        assert_string_equal(err.msg, want);
        err.code = 0;
        assert_int_equal(nn_patterns_new(&p, BAD[i].text, 64, 3, 4, NULL, &err), AG_ECONFIG);
        assert_null(p);
    }
}

/* A long text is shown around the place; other letters count as one column. */
static void bad_long_text(void **state)
{
    (void)state;
    char text[2000] = "", want[2100];
    ag_err err = { 0 };
    for (int i = 0; i < 100; i++) strcat(text, "local(8);");
    strcat(text, "file(\"\xc3\xa9\")x");
    assert_int_equal(nn_patterns_check(text, 64, 4, NULL, &err), AG_EIO);
    err.code = 0;
    memset(text, 0, sizeof text);
    for (int i = 0; i < 20; i++) strcat(text, "local(8);");
    strcat(text, "Q;local(8)");
    snprintf(want, sizeof want, "no factor 'Q'\n    %s\n    %60s^\n", text + 120, "");
    assert_int_equal(nn_patterns_check(text, 64, 4, NULL, &err), AG_ECONFIG);
    assert_memory_equal(err.msg, want, strlen(want));
    char many[3000] = "dense";
    for (int i = 0; i < 130; i++) strcat(many, "+local(8)");
    err.code = 0;
    assert_int_equal(nn_patterns_check(many, 64, 4, NULL, &err), AG_ECONFIG);
    assert_non_null(strstr(err.msg, "a layer has at most 128 factors in all"));
}

static void out_of_memory(void **state)
{
    (void)state;
    char text[160];
    write_file("blocks 4\n0 0\nhead 1\n3 1\n", 24);
    snprintf(text, sizeof text, "strided(4)+local(2);fixed(8,2)|file('%s');dense;local(3)*2", path);
    for (int k = 1, r = AG_ENOMEM; r == AG_ENOMEM; k++) {
        nn_patterns *p = NULL;
        ag_err err = { 0 };
        ag_fault_after(k, 0);
        r = nn_patterns_new(&p, text, 40, 5, 4, NULL, &err);
        ag_fault_after(0, 0);
        assert_true((r == AG_OK) == (p != NULL));
        if (r == AG_OK) assert_true(k > 20);
        else assert_non_null(strstr(err.msg, "out of memory"));
        nn_patterns_free(p);
    }
}

int main(void)
{
    const int fd = mkstemp(path);
    if (fd < 0) return 1;
    close(fd);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_and_heads),
        cmocka_unit_test(fixed),               cmocka_unit_test(fixed_heads_see_all),
        cmocka_unit_test(file_pairs),          cmocka_unit_test(bad_files),
        cmocka_unit_test(bad_texts),           cmocka_unit_test(bad_long_text),
        cmocka_unit_test(out_of_memory),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
