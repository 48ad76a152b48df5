/*
 * test_tokenizer.c -- characters and bytes to tokens and back, and what is no text.
 */
#include "data_util.h"
#include "data/tokenizer.h"

static const char sample[] = "z\xC3\xA4 a\n\xE2\x82\xAC\xF0\x9F\x98\x80 a"; /* "zä a\n€😀 a" */

static void round_trip(void **state)
{
    ag_err err = {0};
    data_tokenizer *t, *u;
    int32_t *tok;
    int64_t n;
    char *text;
    uint8_t *flat;
    size_t size, flat_size;
    (void)state;
    assert_int_equal(data_tokenizer_train(sample, sizeof sample - 1, "x", &t, &err), 0);
    assert_int_equal(t->n, 7);
    assert_int_equal(t->code_point[0], '\n');
    assert_int_equal(t->code_point[6], 0x1F600);
    assert_int_equal(data_encode(t, sample, sizeof sample - 1, "x", &tok, &n, &err), 0);
    assert_int_equal(n, 9);
    static const int32_t want[9] = {3, 4, 1, 2, 0, 5, 6, 1, 2};
    assert_memory_equal(tok, want, sizeof want);
    assert_int_equal(data_tokenizer_save(t, &flat, &flat_size, &err), 0);
    assert_int_equal(flat_size, 8 + 4 * 7);
    assert_int_equal(data_tokenizer_load(flat, flat_size, &u, &err), 0);
    assert_int_equal(data_decode(u, tok, n, &text, &size, &err), 0);
    assert_int_equal(size, sizeof sample - 1);
    assert_string_equal(text, sample);
    free(text);
    tok[3] = 7;
    assert_int_equal(data_decode(u, tok, n, &text, &size, &err), AG_EINPUT);
    free(tok);
    free(flat);
    data_tokenizer_free(t);
    data_tokenizer_free(u);
}

static void bytes(void **state)
{
    ag_err err = {0};
    data_tokenizer *t, *u;
    int32_t *tok;
    int64_t n;
    char all[256], *text;
    uint8_t *flat;
    size_t size;
    (void)state;
    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    assert_int_equal(data_tokenizer_bytes(&t, &err), 0);
    assert_int_equal(data_encode(t, all, 256, "x", &tok, &n, &err), 0);
    assert_int_equal(n, 256);
    for (int i = 0; i < 256; i++)
        assert_int_equal(tok[i], i);
    assert_int_equal(data_decode(t, tok, n, &text, &size, &err), 0);
    assert_memory_equal(text, all, 256);
    assert_int_equal(data_tokenizer_save(t, &flat, &size, &err), 0);
    assert_int_equal(data_tokenizer_load(flat, size, &u, &err), 0);
    assert_string_equal(data_tokenizer_name(u), "byte");
    free(tok);
    free(text);
    free(flat);
    data_tokenizer_free(t);
    data_tokenizer_free(u);
}

static void unknown_character(void **state)
{
    ag_err err = {0};
    data_tokenizer *t;
    int32_t *tok = NULL;
    int64_t n;
    (void)state;
    assert_int_equal(data_tokenizer_train("ab\n", 3, "x", &t, &err), 0);
    assert_int_equal(data_encode(t, "ab\na\xC3\xA4", 6, "prompt", &tok, &n, &err), AG_EINPUT);
    assert_null(tok);
    assert_non_null(strstr(err.msg, "prompt:2:2"));
    assert_non_null(strstr(err.msg, "'\xC3\xA4' (U+00E4)"));
    assert_non_null(strstr(err.msg, "tokenizer=byte"));
    data_tokenizer_free(t);
}

static void bad_utf8(void **state)
{
    static const char *const bad[] = {
        "ok\x80",  "ok\xC0\x80",     "ok\xE2\x82", "ok\xED\xA0\x80",    "ok\xF4\x90\x80\x80",
        "ok\xFFz", "ok\xE0\x80\x80", "ok\xC3",     "ok\xF0\x8F\xBF\xBF"};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ag_err err = {0};
        data_tokenizer *t = NULL;
        assert_int_equal(data_tokenizer_train(bad[i], strlen(bad[i]), "f.txt", &t, &err),
                         AG_EINPUT);
        assert_null(t);
        assert_non_null(strstr(err.msg, "'f.txt' is not UTF-8"));
        assert_non_null(strstr(err.msg, "at offset 2;"));
        assert_non_null(strstr(err.msg, "data.tokenizer=byte"));
    }
}

/* Every code point survives encoding and decoding; every flip and cut of a saved form is refused or
 * valid. */
static void all_code_points(void **state)
{
    ag_err err = {0};
    uint32_t *cp = malloc(0x110000 * sizeof *cp);
    int32_t *tok = malloc(0x110000 * sizeof *tok), *back;
    data_tokenizer *t;
    char *text;
    size_t n = 0, size;
    int64_t m;
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++)
        if (c < 0xD800 || c >= 0xE000) {
            tok[n] = (int32_t)n;
            cp[n++] = c;
        }
    assert_int_equal(data_tokenizer_chars(cp, n, &t, &err), 0);
    assert_int_equal(data_decode(t, tok, (int64_t)n, &text, &size, &err), 0);
    assert_int_equal(data_encode(t, text, size, "x", &back, &m, &err), 0);
    assert_int_equal(m, n);
    assert_memory_equal(back, tok, n * sizeof *tok);
    free(cp);
    free(tok);
    free(back);
    free(text);
    data_tokenizer_free(t);
}

static void damaged_form(void **state)
{
    ag_err err = {0};
    data_tokenizer *t, *u;
    uint8_t *flat;
    size_t size;
    (void)state;
    assert_int_equal(data_tokenizer_train("hello", 5, "x", &t, &err), 0);
    assert_int_equal(data_tokenizer_save(t, &flat, &size, &err), 0);
    for (size_t cut = 0; cut < size; cut++)
        assert_int_equal(data_tokenizer_load(flat, cut, &u, NULL), AG_EINPUT);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        flat[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (data_tokenizer_load(flat, size, &u, NULL) == 0) {
            assert_true(bit >= 64 && u->n == 4);
            data_tokenizer_free(u);
        }
        flat[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    free(flat);
    data_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),        cmocka_unit_test(bytes),
        cmocka_unit_test(unknown_character), cmocka_unit_test(bad_utf8),
        cmocka_unit_test(all_code_points),   cmocka_unit_test(damaged_form),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
