/*
 * test_sampling.c -- which samples a batch holds, and the generated sets.
 */
#include "data_util.h"
#include <math.h>

/* ---- generated sets ---- */

/* The entropy rate, measured: words (an article belongs to its noun) are counted by what the
 * sentence was so far, told as one letter a word: T that, V verb, S and P singular and plural noun.
 * That is all the next word depends on. */
enum { HISTORIES = 512, KINDS = 64, WORD = 24 };

typedef struct history {
    char so_far[WORD];
    int n, count[KINDS];
    char word[KINDS][WORD];
    int kinds;
} history;

static history *history_of(history *h, const char *so_far)
{
    while (h->n && strcmp(h->so_far, so_far))
        h++;
    strcpy(h->so_far, so_far);
    return h;
}

static void count_word(history *h, const char *word)
{
    int k = 0;
    while (k < h->kinds && strcmp(h->word[k], word))
        k++;
    assert_true(k < KINDS);
    if (k == h->kinds)
        strcpy(h->word[h->kinds++], word);
    h->count[k]++;
    h->n++;
}

/* The next unit of text, with its blank: "some cats ", "that ", "a dog.\n". */
static const char *next_word(const char *p, char *word, char *ret_class)
{
    const bool noun = !strncmp(p, "the ", 4) || !strncmp(p, "a ", 2) || !strncmp(p, "some ", 5);
    size_t n = strcspn(p, " \n") + 1;
    if (noun)
        n += strcspn(p + n, " \n") + 1;
    assert_true(n < WORD);
    memcpy(word, p, n);
    word[n] = '\0';
    *ret_class = !strncmp(p, "that ", 5) ? 'T' : !noun ? 'V' : word[n - 2] == 's' ? 'P' : 'S';
    return p + n;
}

static void language_entropy(void **state)
{
    data_options o = options("language", NULL, 64);
    double nats = 0;
    char word[WORD], so_far[WORD] = "";
    (void)state;
    o.seed = 7;
    o.val_fraction = 0;
    data_set *d = open_ok(&o);
    const int64_t n = d->tokens[0].n;
    int32_t *tok = malloc((size_t)n * sizeof *tok);
    char *text;
    size_t size;
    for (int64_t i = 0; i < n; i++)
        tok[i] = ((const uint8_t *)d->tokens[0].at)[i];
    assert_int_equal(data_decode(d->tokenizer, tok, n, &text, &size, NULL), 0);
    history *h = calloc(HISTORIES, sizeof *h);
    const char *p = text;
    while (p < text + size - 2 * WORD) {
        char class[2] = "";
        p = next_word(p, word, class);
        count_word(history_of(h, so_far), word);
        if (strchr(word, '\n'))
            so_far[0] = '\0';
        else
            strcat(so_far, class);
    }
    for (const history *x = h; x->n; x++)
        for (int k = 0; k < x->kinds; k++)
            nats -= x->count[k] * log((double)x->count[k] / x->n);
    nats /= (double)(p - text);
    print_message("language: entropy rate %.5f nats, measured %.5f\n", d->entropy_rate, nats);
    assert_true(fabs(nats / d->entropy_rate - 1) < 0.01);
    free(h);
    free(tok);
    free(text);
    data_close(d);
}

static void generated_sets(void **state)
{
    static const char *const source[2] = {"language", "digits"};
    char hex[3][65];
    (void)state;
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < 3; i++) {
            data_options o = options(source[k], NULL, 16);
            o.size = 2000;
            o.seed = i == 2 ? 6 : 5;
            data_set *d = open_ok(&o);
            assert_string_equal(d->name, source[k]);
            assert_int_equal(data_sha256(d, hex[i], NULL), 0);
            data_close(d);
        }
        assert_string_equal(hex[0], hex[1]);
        assert_string_not_equal(hex[0], hex[2]);
    }
}

/* Digits: all classes, ink inside the page, image i the same in a larger set, and not all alike:
 * the nearest class mean tells most of them. */
static void digits(void **state)
{
    static double mean[10][784];
    int64_t count[10] = {0}, right = 0;
    data_options o = options("digits", NULL, 1);
    (void)state;
    o.size = 3000;
    data_set *d = open_ok(&o);
    o.size = 4000;
    data_set *e = open_ok(&o);
    assert_int_equal(d->images[0].n, 2700);
    assert_int_equal(d->images[1].n, 300);
    assert_memory_equal(d->images[0].at, e->images[0].at, 2700 * 784);
    for (int64_t i = 0; i < 2700; i++) {
        const int32_t y = d->images[0].label[i];
        count[y]++;
        for (int k = 0; k < 784; k++)
            mean[y][k] += d->images[0].at[i * 784 + k];
    }
    for (int y = 0; y < 10; y++)
        assert_true(count[y] > 200 && count[y] < 340);
    for (int64_t i = 0; i < 300; i++) {
        double best = INFINITY, ink = 0;
        int guess = 0;
        for (int y = 0; y < 10; y++) {
            double dist = 0;
            for (int k = 0; k < 784; k++) {
                const double v = d->images[1].at[i * 784 + k] - mean[y][k] / (double)count[y];
                dist += v * v;
            }
            guess = dist < best ? y : guess;
            best = dist < best ? dist : best;
        }
        for (int k = 0; k < 784; k++)
            ink += d->images[1].at[i * 784 + k] / 255.0;
        assert_true(ink > 15 && ink < 300);
        right += guess == d->images[1].label[i];
    }
    print_message("digits: nearest mean tells %d of 300\n", (int)right);
    assert_true(right > 150 && right < 300);
    data_close(d);
    data_close(e);
}

/* ---- sampling ---- */

static void shuffle(void **state)
{
    static const int64_t sizes[] = {1, 2, 3, 5, 16, 17, 1000, 4096, 60000};
    static uint8_t seen[60000];
    (void)state;
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (int64_t epoch = 0; epoch < 3; epoch++) {
            memset(seen, 0, sizeof seen);
            int64_t moved = 0;
            for (int64_t i = 0; i < sizes[k]; i++) {
                const int64_t at = data_shuffle(11, epoch, sizes[k], i);
                assert_true(at >= 0 && at < sizes[k] && !seen[at]);
                seen[at] = 1;
                moved += at != data_shuffle(11, epoch + 1, sizes[k], i);
            }
            assert_true(sizes[k] < 1000 || moved > sizes[k] * 99 / 100);
        }
    double chi2 = 0; /* where index 0 goes over 10,000 epochs: 10 bins */
    int bin[10] = {0};
    for (int64_t epoch = 0; epoch < 10000; epoch++)
        bin[data_shuffle(3, epoch, 100, 0) / 10]++;
    for (int i = 0; i < 10; i++)
        chi2 += (bin[i] - 1000) * (bin[i] - 1000) / 1000.0;
    assert_true(chi2 < 33.7);                            /* p = 1e-4 at 9 degrees of freedom */
}

/* A batch fetched in pieces is the batch; y is x one token on; a step is not another step. */
static void token_ranges(void **state)
{
    enum { T = 16, B = 12 };
    int32_t x[B * T], y[B * T], px[B * T], py[B * T];
    data_options o = options("language", NULL, T);
    (void)state;
    o.size = 5000;
    data_set *d = open_ok(&o);
    for (int order = DATA_RANDOM; order <= DATA_SEQUENTIAL; order++)
        for (int64_t step = 0; step < 10; step++) {
            const data_draw w = {DATA_TRAIN, (data_order)order, 42, step, B, 0};
            assert_int_equal(data_batch_tokens(d, &w, 0, B, x, y), B);
            for (int64_t i0 = 0; i0 < B; i0 += 5) {
                const int64_t n = B - i0 < 5 ? B - i0 : 5;
                assert_int_equal(data_batch_tokens(d, &w, i0, n, px + i0 * T, py + i0 * T), n);
            }
            assert_memory_equal(x, px, sizeof x);
            assert_memory_equal(y, py, sizeof y);
            for (int i = 0; i < B; i++) {
                const int64_t at = data_sample_at(d, &w, i);
                assert_true(at >= 0 && at + T < d->tokens[0].n);
                assert_memory_equal(x + i * T + 1, y + i * T, (T - 1) * sizeof *x);
                assert_int_equal(y[i * T + T - 1], ((const uint8_t *)d->tokens[0].at)[at + T]);
            }
            data_draw next = w;
            next.step++;
            assert_int_equal(data_batch_tokens(d, &next, 0, B, px, py), B);
            assert_memory_not_equal(x, px, sizeof x);
        }
    data_close(d);
}

static void random_offsets_cover(void **state)
{
    data_options o = options("language", NULL, 3);
    static int seen[8];
    (void)state;
    o.size = 10;
    o.val_fraction = 0;
    data_set *d = open_ok(&o);
    for (int64_t step = 0; step < 200; step++) {
        const data_draw w = {DATA_TRAIN, DATA_RANDOM, 1, step, 4, 0};
        for (int i = 0; i < 4; i++) {
            const int64_t at = data_sample_at(d, &w, i);
            assert_true(at >= 0 && at <= 6);
            seen[at]++;
        }
    }
    for (int i = 0; i < 7; i++)
        assert_true(seen[i] > 70 && seen[i] < 165);      /* 114 expected */
    data_close(d);
}

static void sequential_pass(void **state)
{
    enum { T = 7, B = 4 };
    int32_t x[B * T], y[B * T];
    int64_t total = 0, got, step = 0;
    data_options o = options("language", NULL, T);
    (void)state;
    o.size = 1000;
    data_set *d = open_ok(&o);
    const int64_t n = data_samples(d, DATA_VAL);
    assert_int_equal(n, 99 / T);
    do {
        const data_draw w = {DATA_VAL, DATA_SEQUENTIAL, 0, step++, B, 0};
        got = data_batch_tokens(d, &w, 0, B, x, y);
        for (int64_t i = 0; i < got * T; i++)
            assert_int_equal(x[i], ((const uint8_t *)d->tokens[1].at)[total * T + i]);
        total += got;
    } while (got == B);
    assert_int_equal(total, n);
    data_close(d);
}

/* With the start: x is the start and y but its last, all tokens of a window are scored. */
static void windows_with_a_start(void **state)
{
    enum { T = 7, B = 4 };
    int32_t x[B * T], y[B * T];
    int seen[9] = {0};
    data_options o = options("language", NULL, T);
    (void)state;
    o.size = 1000;
    o.start = true;
    data_set *d = open_ok(&o);
    assert_int_equal(data_samples(d, DATA_VAL), 100 / T);
    for (int order = DATA_RANDOM; order <= DATA_SEQUENTIAL; order++) {
        const data_draw w = {DATA_TRAIN, (data_order)order, 42, 1, B, 0};
        assert_int_equal(data_batch_tokens(d, &w, 0, B, x, y), B);
        for (int i = 0; i < B; i++) {
            const uint8_t *at = (const uint8_t *)d->tokens[0].at + data_sample_at(d, &w, i);
            assert_int_equal(x[i * T], d->vocab);
            for (int j = 0; j < T; j++) {
                assert_int_equal(y[i * T + j], at[j]);
                if (j > 0)
                    assert_int_equal(x[i * T + j], at[j - 1]);
            }
        }
    }
    data_close(d);

    o.context = 10;                                      /* the last window ends with the set */
    o.size = 18;
    o.val_fraction = 0;
    d = open_ok(&o);
    for (int64_t step = 0; step < 400; step++) {
        const data_draw w = {DATA_TRAIN, DATA_RANDOM, 1, step, 1, 0};
        const int64_t at = data_sample_at(d, &w, 0);
        assert_true(at >= 0 && at <= 8);
        seen[at]++;
    }
    for (int i = 0; i < 9; i++)
        assert_true(seen[i] > 0);
    data_close(d);
}

/* Windows that score their last tokens only score every token once, each where it stands, whatever
 * the lengths. */
static void overlapping_windows(void **state)
{
    enum { T = 7, B = 3, MOST = 40 };
    int32_t x[B * T], y[B * T];
    (void)state;
    for (int start = 0; start < 2; start++)
        for (int64_t n = T + 1; n < MOST; n++)
            for (int64_t last = 1; last <= T; last++) {
                data_options o = options("language", NULL, T);
                o.size = n;
                o.val_fraction = 0;
                o.start = start;
                data_set *d = open_ok(&o);
                const uint8_t *text = d->tokens[DATA_TRAIN].at;
                int scored[MOST] = {0};
                int64_t got = B, windows = 0;
                for (int64_t step = 0; got == B; step++, windows += got) {
                    const data_draw w = {DATA_TRAIN, DATA_SEQUENTIAL, 0, step, B, last};
                    got = data_batch_tokens(d, &w, 0, B, x, y);
                    for (int64_t i = 0; i < got * T; i++) {
                        const int64_t at = data_sample_at(d, &w, i / T) + i % T + (start ? 0 : 1);
                        if (y[i] < 0)
                            continue;
                        assert_true(at < n);
                        assert_int_equal(y[i], text[at]);
                        assert_true(windows + i / T == 0 || i % T >= T - last);
                        scored[at]++;
                    }
                }
                assert_int_equal(windows, data_windows(d, DATA_TRAIN, last));
                for (int64_t at = start ? 0 : 1; at < n; at++)
                    assert_int_equal(scored[at], 1);
                data_close(d);
            }
}

/* Over one epoch the shuffled batches hold every image once, however the epoch and the batch size
 * fit. */
static void image_epochs(void **state)
{
    enum { B = 64 };
    static float x[B * 784];
    int32_t label[B];
    int64_t seen[300] = {0};
    data_options o = options("digits", NULL, 1);
    (void)state;
    o.size = 300;
    o.val_fraction = 0;
    data_set *d = open_ok(&o);
    for (int64_t step = 0; step < 75; step++) {          /* 75 * 64 = 16 * 300 */
        const data_draw w = {DATA_TRAIN, DATA_SHUFFLED, 9, step, B, 0};
        for (int i = 0; i < B; i++)
            seen[data_sample_at(d, &w, i)]++;
        assert_int_equal(data_batch_images(d, &w, 10, 20, x, label), 20);
        for (int i = 0; i < 20; i++) {
            const int64_t at = data_sample_at(d, &w, 10 + i);
            assert_int_equal(label[i], d->images[0].label[at]);
            assert_true(fabs((double)x[i * 784 + 400] - d->images[0].at[at * 784 + 400] / 255.0)
                        < 1e-6);
        }
    }
    for (int i = 0; i < 300; i++)
        assert_int_equal(seen[i], 16);
    data_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(language_entropy), cmocka_unit_test(generated_sets),
        cmocka_unit_test(digits),           cmocka_unit_test(shuffle),
        cmocka_unit_test(token_ranges),     cmocka_unit_test(random_offsets_cover),
        cmocka_unit_test(sequential_pass),  cmocka_unit_test(image_epochs),
        cmocka_unit_test(windows_with_a_start), cmocka_unit_test(overlapping_windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
