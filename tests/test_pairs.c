/*
 * test_pairs.c -- pairs of a source and a target: what each task promises, both forms of a sample,
 * files and their faults, the tokenizer of words.
 */
#include "data_util.h"

enum { ROOM = 512 };

static data_options pairs(const char *name, bool apart, int64_t context, int64_t size)
{
    data_options o = options(name, NULL, context);
    o.apart = apart;
    o.size = size;
    o.seed = 5;
    o.test_fraction = 0.2;
    return o;
}

/* The text of a pair. */
static void texts(const data_set *d, int split, int64_t i, char *source, char *target)
{
    int32_t a[ROOM], b[ROOM];
    int64_t n, m;
    char *text;
    size_t size;
    assert_true(d->sequence <= ROOM);
    data_pair_at(d, split, i, a, &n, b, &m);
    assert_int_equal(data_decode(d->tokenizer, a, n, &text, &size, NULL), 0);
    memcpy(source, text, size + 1);
    free(text);
    assert_int_equal(data_decode(d->tokenizer, b, m, &text, &size, NULL), 0);
    memcpy(target, text, size + 1);
    free(text);
}

static void check_copy(const char *s, const char *t)
{
    assert_string_equal(s, t);
    assert_in_range(strlen(s), 1, 20);
    assert_int_equal(strspn(s, "abcdefghijklmnop"), strlen(s));
}

/* Adds as one does by hand. */
static void check_sum(const char *s, const char *t)
{
    const size_t nx = strcspn(s, "+"), ny = strlen(s) - nx - 1;
    int carry = 0;
    size_t i = 0;
    assert_true(nx > 0 && ny > 0);
    for (; i < nx || i < ny; i++) {
        carry += (i < nx ? s[i] - '0' : 0) + (i < ny ? s[nx + 1 + i] - '0' : 0);
        assert_int_equal(t[i], '0' + carry % 10);
        carry /= 10;
    }
    if (carry)
        assert_int_equal(t[i++], '1');
    assert_int_equal(t[i], '\0');
    assert_true(nx == 1 || s[nx - 1] != '0');
    assert_true(ny == 1 || s[nx + ny] != '0');
}

static void check_recall(const char *s, const char *t, int64_t asked)
{
    const char *ask = strchr(s, '?');
    int seen[26] = {0}, pairs = 0;
    assert_non_null(ask);
    assert_int_equal(strlen(ask + 1), asked);
    assert_int_equal(strlen(t), asked);
    for (const char *p = s; p < ask; p++)
        if (*p >= 'A' && *p <= 'Z') {
            assert_int_equal(seen[*p - 'A'], 0);
            assert_in_range(p[1], '0', '9');
            seen[*p - 'A'] = p[1];
            p++;
            pairs++;
        } else {
            assert_in_range(*p, 'a', 'z');
        }
    const int64_t third = (ask - s) / 3, most = third < 26 ? third : 26;
    assert_int_equal(pairs, most);
    for (int64_t i = 0; i < asked; i++) {
        assert_int_equal(t[i], seen[ask[1 + i] - 'A']);
        assert_null(memchr(ask + 1, ask[1 + i], (size_t)i));
    }
}

/* Every pair of every part, in both forms, obeys the rule of its task. */
static void the_rules(void **state)
{
    (void)state;
    for (int k = 0; k < 6; k++) {
        static const char *const name[3] = {"copy_pairs", "addition", "long_recall"};
        static const int64_t vocab[3] = {18, 13, 65};
        data_options o = pairs(name[k / 2], k % 2, 64, 300);
        o.source_length = k / 2 == 0 ? 20 : k / 2 == 1 ? 22 : 40;
        o.target_length = k / 2 == 0 ? 21 : k / 2 == 1 ? 22 : 5;
        o.digits = 12;
        o.test_digits = 21;
        data_set *d = open_ok(&o);
        assert_int_equal(d->vocab, vocab[k / 2]);
        assert_true(d->entropy_rate == 0 && d->pairs);
        assert_int_equal(d->source, k % 2 ? o.source_length : 0);
        assert_int_equal(d->context, k % 2 ? o.target_length : 64);
        assert_int_equal(data_samples(d, DATA_TRAIN), 210);
        assert_int_equal(data_samples(d, DATA_TEST), 60);
        for (int s = 0; s < DATA_SPLITS; s++)
            for (int64_t i = 0; i < data_samples(d, s); i++) {
                char a[4 * ROOM], b[4 * ROOM];
                texts(d, s, i, a, b);
                if (k / 2 == 0)
                    check_copy(a, b);
                else if (k / 2 == 1)
                    check_sum(a, b);
                else
                    check_recall(a, b, 4);
                if (k / 2 == 1 && s == DATA_TEST)
                    assert_in_range(strlen(a) - 1, 13, 21);
                else if (k / 2 == 1)
                    assert_in_range(strlen(a) - 1, 2, 12);
            }
        data_close(d);
    }
}

/* All lengths come, and every letter about as often. */
static void even(void **state)
{
    data_options o = pairs("copy_pairs", true, 1, 4000);
    int64_t length[33] = {0}, letter[16] = {0}, all = 0;
    (void)state;
    data_set *d = open_ok(&o);
    assert_int_equal(d->source, 32);
    assert_int_equal(d->context, 33);
    for (int64_t i = 0; i < data_samples(d, DATA_TRAIN); i++) {
        int32_t a[ROOM], b[ROOM];
        int64_t n, m;
        data_pair_at(d, DATA_TRAIN, i, a, &n, b, &m);
        length[n]++;
        for (int64_t j = 0; j < n; j++, all++)
            letter[a[j] - 2]++;
    }
    for (int n = 1; n <= 32; n++)
        assert_in_range(length[n], 50, 130);             /* 2800 / 32 = 87.5 */
    for (int c = 0; c < 16; c++)
        assert_true((double)letter[c] / (double)all > 0.055 &&
                    (double)letter[c] / (double)all < 0.07);
    data_close(d);
}

/* What a model that reads a source is given: x [S + T], y [T]. */
static void apart(void **state)
{
    const char *text = "ab\tba\nabbba\ta\nb\tabab\nbb\tb\nbb\tb\n";
    data_options o = options("pairs", NULL, 7);
    int32_t x[4 * 7], y[4 * 3];
    (void)state;
    o.path = tmp_write("p.tsv", text, strlen(text));
    o.apart = true;
    o.source_length = 4;
    o.target_length = 3;
    o.val_fraction = 0.2;
    data_set *d = open_ok(&o);
    assert_non_null(strstr(d->about, "4 pairs to train, 1 to validate of 4 + 3 tokens"));
    assert_int_equal(d->vocab, 2 + 3);                   /* with the blank that stands for tabs */
    const data_draw w = {.split = DATA_TRAIN, .order = DATA_SEQUENTIAL, .batch = 4};
    assert_int_equal(data_batch_tokens(d, &w, 0, 4, x, y), 4);
    static const int32_t want_x[4][7] = {
        {3, 4, 0, 0, 0, 4, 3}, {3, 4, 4, 4, 0, 3, 1}, {4, 0, 0, 0, 0, 3, 4}, {4, 4, 0, 0, 0, 4, 1},
    };
    static const int32_t want_y[4][3] = {{4, 3, 1}, {3, 1, -1}, {3, 4, 3}, {4, 1, -1}};
    assert_memory_equal(x, want_x, sizeof x);
    assert_memory_equal(y, want_y, sizeof y);            /* the third is cut and has no end */
    data_close(d);
}

/* What a language model is given: a row, scored from the target on. */
static void in_a_row(void **state)
{
    const char *text = "ab\tba\r\nb\tb\r\nb\tb\r\n";
    data_options o = options("pairs", NULL, 7);
    int32_t x[2 * 7], y[2 * 7];
    (void)state;
    o.path = tmp_write("p.tsv", text, strlen(text));
    o.val_fraction = 0.3;
    data_set *d = open_ok(&o);
    const data_draw w = {.split = DATA_TRAIN, .order = DATA_SEQUENTIAL, .batch = 2};
    assert_int_equal(data_batch_tokens(d, &w, 0, 2, x, y), 2);
    static const int32_t want_x[2][7] = {{0, 3, 4, 1, 4, 3, 1}, {0, 4, 1, 4, 1, 0, 0}};
    static const int32_t want_y[2][7] = {{-1, -1, -1, 4, 3, 1, -1}, {-1, -1, 4, 1, -1, -1, -1}};
    assert_memory_equal(x, want_x, sizeof x);
    assert_memory_equal(y, want_y, sizeof y);
    data_close(d);
    o.context = 5;
    open_bad(&o, AG_ECONFIG, "a pair of pairs takes 6 tokens in a row (source 2, 1, target with its"
             " end 3), but the context is 5: set model.context=6");
}

static void words(void **state)
{
    const char *text = "The cat, the dog\tthe END\nthe cat\tcat\nunseen caf\xC3\xA9\tcat\n";
    data_options o = options("pairs", NULL, 12);
    (void)state;
    o.path = tmp_write("w.tsv", text, strlen(text));
    o.tokenizer = "word";
    o.val_fraction = 0.3;
    o.vocab = 3 + 4;
    data_set *d = open_ok(&o);
    assert_int_equal(d->vocab, 7);                       /* the 3, cat 3, then "," "END" of five */
    static const char *const word[4] = {",", "END", "cat", "the"};
    for (int i = 0; i < 4; i++)
        assert_string_equal(d->tokenizer->word[i], word[i]);
    char a[4 * ROOM], b[4 * ROOM];
    texts(d, DATA_TRAIN, 0, a, b);
    assert_string_equal(a, "\xEF\xBF\xBD cat , the \xEF\xBF\xBD");
    assert_string_equal(b, "the END");
    texts(d, DATA_VAL, 0, a, b);
    assert_string_equal(a, "\xEF\xBF\xBD \xEF\xBF\xBD");
    data_close(d);
    o.vocab = 3;
    open_bad(&o, AG_ECONFIG, "a vocabulary of 3 tokens has no word");
}

static void same_tokenizer(const data_tokenizer *t)
{
    data_tokenizer *u = NULL;
    uint8_t *bytes, *again;
    size_t size, size2;
    ag_err err = {0};
    assert_int_equal(data_tokenizer_save(t, &bytes, &size, &err), 0);
    assert_int_equal(data_tokenizer_load(bytes, size, &u, &err), 0);
    assert_int_equal(u->n, t->n);
    assert_int_equal(u->reserved, t->reserved);
    assert_int_equal(data_tokenizer_save(u, &again, &size2, &err), 0);
    assert_int_equal(size, size2);
    assert_memory_equal(bytes, again, size);
    data_tokenizer_free(u);
    for (size_t cut = 0; cut < size; cut++)              /* none of its beginnings is one */
        assert_int_equal(data_tokenizer_load(bytes, cut, &u, &err), AG_EINPUT);
    free(bytes);
    free(again);
}

static void tokenizers_travel(void **state)
{
    static const char *const kind[3] = {"char", "byte", "word"};
    const char *text = "one two\tthree\nfour\tfive\nsix\tseven\n";
    (void)state;
    for (int k = 0; k < 3; k++) {
        data_options o = options("pairs", tmp_write("t.tsv", text, strlen(text)), 64);
        o.tokenizer = kind[k];
        data_set *d = open_ok(&o);
        assert_string_equal(data_tokenizer_name(d->tokenizer), kind[k]);
        assert_int_equal(d->tokenizer->reserved, k == 2 ? 3 : 2);
        same_tokenizer(d->tokenizer);
        o.known = d->tokenizer;                          /* that of a checkpoint */
        o.tokenizer = "";
        data_set *e = open_ok(&o);
        char hex[2][65];
        strcpy(hex[0], data_fingerprint(d));
        strcpy(hex[1], data_fingerprint(e));
        assert_string_equal(hex[0], hex[1]);
        data_close(e);
        data_close(d);
    }
    const uint8_t twice[] = {3, 0, 0, 0, 5, 0, 0, 0, 'b', 0, 'a', 0};
    data_tokenizer *t = NULL;
    ag_err err = {0};
    assert_int_equal(data_tokenizer_load(twice, sizeof twice, &t, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "the tokenizer is damaged: word 1 of 5"));
}

static void the_same_again(void **state)
{
    static const char *const name[3] = {"copy_pairs", "addition", "long_recall"};
    char hex[3][65];
    (void)state;
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < 3; i++) {
            data_options o = pairs(name[k], true, 1, 100);
            o.seed = i == 2 ? 6 : 5;
            data_set *d = open_ok(&o);
            strcpy(hex[i], data_fingerprint(d));
            data_close(d);
        }
        assert_string_equal(hex[0], hex[1]);
        assert_string_not_equal(hex[0], hex[2]);
    }
}

static void bad_file(const char *text, const char *words)
{
    data_options o = options("pairs", tmp_write("b.tsv", text, strlen(text)), 64);
    o.val_fraction = 0;
    open_bad(&o, AG_EINPUT, words);
}

static void refused(void **state)
{
    data_options o = pairs("addition", true, 1, 10);
    (void)state;
    bad_file("a\tb\nno tab\n", "b.tsv:2: there is no tab; a line is a source, one tab and a");
    bad_file("a\tb\tc\n", "b.tsv:1: there is a second tab");
    bad_file("a\tb\n\n", "b.tsv:2: the line is empty");
    bad_file("a\tb\n\tb", "b.tsv:2: the source is empty");
    bad_file("a\tb\na\t\r\n", "b.tsv:2: the target is empty");
    bad_file("", "b.tsv' is empty");
    bad_file("a\t\xFF\n", "is not UTF-8: byte 0xFF at offset 2");
    o.source_length = 33;
    open_bad(&o, AG_ECONFIG, "addition of 33 digits needs data.source_length and"
             " data.target_length of at least 34");
    o = pairs("addition", true, 1, 10);
    o.test_digits = 33;
    open_bad(&o, AG_ECONFIG, "cannot have from 34 to 33 digits");
    o.test_digits = 40;
    o.test_fraction = 0;
    open_bad(&o, AG_ECONFIG, "is for a test part");
    o = pairs("long_recall", true, 1, 10);
    o.target_length = 28;
    open_bad(&o, AG_ECONFIG, "cannot ask 27 questions of a source of 256 tokens");
    o = pairs("copy_pairs", true, 1, 1);
    open_bad(&o, AG_EINPUT, "no pair is left to train on");
    o = pairs("recall", true, 64, 10);
    open_bad(&o, AG_ECONFIG, "source recall has no pairs of a source and a target");
    o = options("text", "x", 4);
    o.tokenizer = "word";
    open_bad(&o, AG_ECONFIG, "the word tokenizer is for source pairs, not text");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rules), cmocka_unit_test(even), cmocka_unit_test(apart),
        cmocka_unit_test(in_a_row), cmocka_unit_test(words), cmocka_unit_test(tokenizers_travel),
        cmocka_unit_test(the_same_again), cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_remove);
}
