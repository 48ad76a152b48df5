/*
 * test_tokenizer.c -- characters and bytes to tokens and back, and what is no text.
 */
#include "data_util.h"
#include "data/internal.h"

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

/* Other tokens for the same characters: a text comes back, also by the saved form. */
static void check_order(data_tokenizer *t)
{
    ag_err err = {0};
    int32_t *tok;
    int64_t n;
    uint8_t *flat;
    size_t size;
    char *text;
    data_tokenizer *u;
    assert_int_equal(t->n, 7);
    assert_int_equal(data_tokenizer_save(t, &flat, &size, &err), 0);
    assert_int_equal(data_tokenizer_load(flat, size, &u, &err), 0);
    assert_int_equal(data_encode(t, sample, sizeof sample - 1, "x", &tok, &n, &err), 0);
    for (int i = 0; i < 7; i++) assert_int_equal(t->code_point[i], u->code_point[i]);
    assert_int_equal(t->code_point[tok[0]], 'z');
    assert_int_equal(t->code_point[tok[6]], 0x1F600);
    assert_int_equal(data_decode(u, tok, n, &text, &size, &err), 0);
    assert_string_equal(text, sample);
    free(text);
    free(tok);
    free(flat);
    data_tokenizer_free(u);
}

static data_tokenizer *trained(void)
{
    ag_err err = {0};
    data_tokenizer *t;
    assert_int_equal(data_tokenizer_train(sample, sizeof sample - 1, "x", &t, &err), 0);
    return t;
}

static void orders(void **state)
{
    static const uint32_t by_count[7] = {' ', 'a', '\n', 'z', 0xE4, 0x20AC, 0x1F600};
    (void)state;
    ag_err err = {0};
    data_tokenizer *t = trained(), *u, *v;
    assert_int_equal(data_tokenizer_by_frequency(&t, sample, sizeof sample - 1, &err), 0);
    assert_memory_equal(t->code_point, by_count, sizeof by_count);
    check_order(t);
    data_tokenizer_free(t);
    int same = 0;
    for (uint64_t seed = 0; seed < 20; seed++) {
        t = trained(), u = trained(), v = trained();
        assert_int_equal(data_tokenizer_shuffled(&t, seed, &err), 0);
        assert_int_equal(data_tokenizer_shuffled(&u, seed, &err), 0);
        assert_memory_equal(t->code_point, u->code_point, 7 * sizeof *t->code_point);
        same += !memcmp(t->code_point, v->code_point, 7 * sizeof *t->code_point);
        check_order(t);
        data_tokenizer_free(t);
        data_tokenizer_free(u);
        data_tokenizer_free(v);
    }
    assert_in_range(same, 0, 1);                         /* 20 of 5040 orders */
    const uint32_t twice[3] = {'b', 'a', 'b'};
    assert_int_equal(data_tokenizer_chars(twice, 3, &t, &err), AG_EINPUT);
    assert_string_equal(err.msg, "the tokenizer is damaged: U+0062 is entry 0 and entry 2");
}

/* The key reaches the data: the same text in other tokens. */
static void orders_of_a_set(void **state)
{
    static const char text[] = "cabcccbcccacbccccccb";
    static const struct { const char *word; int32_t first[4]; } want[] = {
        {NULL, {2, 0, 1, 2}}, {"code_point", {2, 0, 1, 2}}, {"frequency", {0, 2, 1, 0}}};
    (void)state;
    char path[300];
    snprintf(path, sizeof path, "%s/order.txt", tmp_dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    data_options o = data_options_default();
    o.source = "text";
    o.path = path;
    for (int i = 0; i < 30; i++) {
        data_set *d;
        ag_err err = {0};
        o.token_order = i < 3 ? want[i].word : "shuffled";
        o.seed = (uint64_t)i;
        if (data_open(&o, &d, &err)) fail_msg("%s", err.msg);
        for (int k = 0; k < 18; k++) {
            const int32_t token = data_token_at(&d->tokens[DATA_TRAIN], k);
            if (i < 3 && k < 4) assert_int_equal(token, want[i].first[k]);
            assert_int_equal(d->tokenizer->code_point[token], text[k]);
        }
        data_close(d);
    }
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
        cmocka_unit_test(orders),            cmocka_unit_test(orders_of_a_set),
        cmocka_unit_test(unknown_character), cmocka_unit_test(bad_utf8),
        cmocka_unit_test(all_code_points),   cmocka_unit_test(damaged_form),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_remove);
}
