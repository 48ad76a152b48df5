/*
 * test_data.c -- data sets: text, IDX, generated; which samples a batch holds; and what damaged
 * files say.
 */
#include "data_util.h"
#include "autograd/base/hash.h"
#include "data/internal.h"
#include <math.h>
#include <zlib.h>

static data_set *open_ok(const data_options *o)
{
    ag_err err = {0};
    data_set *d = NULL;
    if (data_open(o, &d, &err))
        fail_msg("%s", err.msg);
    return d;
}

/* data_open must fail with this code and a message that has these words. */
static void open_bad(const data_options *o, int code, const char *words)
{
    ag_err err = {0};
    data_set *d = NULL;
    const int rc = data_open(o, &d, &err);
    if (rc != code || !strstr(err.msg, words) || d)
        fail_msg("code %d, message '%s'; expected %d, '%s'", rc, err.msg, code, words);
}

static data_options options(const char *source, const char *path, int64_t context)
{
    data_options o = data_options_default();
    o.source = source;
    o.path = path;
    o.context = context;
    return o;
}

static char *write_gz(const char *name, const void *data, size_t size)
{
    char *path = tmp_path(name);
    gzFile f = gzopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(gzwrite(f, data, (unsigned)size), size);
    assert_int_equal(gzclose(f), Z_OK);
    return path;
}

/* ---- text ---- */

static void shakespeare(void **state)
{
    const char *path = real_data("tinyshakespeare.txt");
    char hex[65];
    (void)state;
    if (!path)
        skip();
    const data_options o = options("shakespeare", NULL, 256);
    data_set *d = open_ok(&o);
    assert_int_equal(d->vocab, 65);
    assert_int_equal(d->tokens[DATA_TRAIN].n, 1003854);
    assert_int_equal(d->tokens[DATA_VAL].n, 111540);
    assert_int_equal(d->tokens[DATA_TRAIN].bytes, 1);
    static const uint8_t first[5] = {18, 47, 56, 57, 58}; /* "First", as nanoGPT numbers it */
    assert_memory_equal(d->tokens[DATA_TRAIN].at, first, 5);
    assert_int_equal(data_sha256(d, hex, NULL), 0);
    assert_string_equal(hex, data_catalog_find("shakespeare")->file[0].sum);
    data_close(d);
}

static void enwik8(void **state)
{
    (void)state;
    if (!real_data("enwik8-4M.gz"))
        skip();
    const data_options o = options("enwik8", NULL, 512);
    data_set *d = open_ok(&o);
    const int64_t n = d->tokens[0].n + d->tokens[1].n + d->tokens[2].n;
    assert_int_equal(d->vocab, 256);
    assert_int_equal(d->tokens[DATA_TRAIN].n, n * 9 / 10);
    assert_true(llabs(d->tokens[DATA_VAL].n - n / 20) <= 1);
    assert_true(llabs(d->tokens[DATA_TEST].n - n / 20) <= 1);
    assert_memory_equal(d->tokens[0].at, "<mediawiki", 10);
    data_close(d);
}

static void text_parts(void **state)
{
    (void)state;
    const char *path = tmp_write("t.txt", "abcabcabc\xC3\xA4", 11);
    data_options o = options("text", path, 2);
    o.val_fraction = 0.3;
    data_set *d = open_ok(&o);
    assert_int_equal(d->vocab, 4);
    assert_int_equal(d->tokens[DATA_TRAIN].n, 7);
    assert_int_equal(d->tokens[DATA_VAL].n, 3);
    assert_int_equal(d->tokens[DATA_TEST].n, 0);
    assert_true(isnan(d->entropy_rate));

    data_options known = o;                              /* the tokenizer of a checkpoint */
    known.known = d->tokenizer;
    known.path = tmp_write("u.txt", "cccccccccccbbbb", 15);
    data_set *e = open_ok(&known);
    assert_int_equal(e->vocab, 4);
    assert_int_equal(*(const uint8_t *)e->tokens[0].at, 2);
    known.path = tmp_write("v.txt", "ccccccccccxbbbb", 15);
    open_bad(&known, AG_EINPUT, "v.txt:1:11: the tokenizer has no token for 'x'");
    data_close(d);
    data_close(e);

    o.tokenizer = "byte";
    o.path = path;
    d = open_ok(&o);
    assert_int_equal(d->vocab, 256);
    assert_int_equal(d->tokens[0].n + d->tokens[1].n, 11);
    data_close(d);
    o.tokenizer = "bpe";
    open_bad(&o, AG_ECONFIG, "no tokenizer 'bpe'");
}

static void bad_text(void **state)
{
    (void)state;
    data_options o = options("text", tmp_write("empty.txt", "", 0), 4);
    open_bad(&o, AG_EINPUT, "empty.txt' is empty");
    o.path = tmp_write("short.txt", "abc", 3);
    open_bad(&o, AG_EINPUT, "the training part has 2 tokens, but a context of 4 needs at least 5");
    o.path = tmp_write("short2.txt", "abcabcabcabcabc", 15);
    open_bad(&o, AG_EINPUT, "the validation part has 2 tokens");
    o.path = tmp_write("bad.txt", "abc\xFF", 4);
    open_bad(&o, AG_EINPUT, "byte 0xFF at offset 3");
    o.path = tmp_path("none.txt");
    open_bad(&o, AG_EIO, "none.txt");
    o.path = NULL;
    open_bad(&o, AG_ECONFIG, "needs data.path");
    o.source = "wikitext";
    open_bad(&o, AG_ECONFIG, "no source 'wikitext' (there are: shakespeare");
    o.source = "cifar10";
    open_bad(&o, AG_ECONFIG, "its binary format is not read");
    o = options("language", NULL, 0);
    open_bad(&o, AG_ECONFIG, "context");
    o.context = 4;
    o.val_fraction = 1;
    open_bad(&o, AG_ECONFIG, "val_fraction");
}

static void gzip_text(void **state)
{
    char text[5000], file[6000];
    (void)state;
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)('a' + i * i % 23);
    const char *path = write_gz("g.txt.gz", text, sizeof text);
    const data_options o = options("text", path, 8);
    data_set *d = open_ok(&o);
    assert_int_equal(d->tokens[0].n + d->tokens[1].n, sizeof text);
    data_close(d);
    FILE *f = fopen(path, "rb");
    const size_t size = fread(file, 1, sizeof file, f);
    fclose(f);
    for (size_t cut = 0; cut < size;
         cut += 7) { /* cut anywhere: damaged, or no gzip and too short */
        const data_options c = options("text", tmp_write("cut.gz", file, cut), 8);
        open_bad(&c, AG_EINPUT, "cut.gz");
    }
    memcpy(file + size, "tail", 4);
    const data_options t = options("text", tmp_write("tail.gz", file, size + 4), 8);
    open_bad(&t, AG_EINPUT, "tail.gz' is damaged");
    f = fopen(tmp_path("two.gz"), "wb");                 /* two members are one text */
    fwrite(file, 1, size, f);
    fwrite(file, 1, size, f);
    fclose(f);
    const data_options w = options("text", tmp_path("two.gz"), 8);
    d = open_ok(&w);
    assert_int_equal(d->tokens[0].n + d->tokens[1].n, 2 * sizeof text);
    data_close(d);
}

/* ---- IDX ---- */

static size_t idx_images(unsigned char *p, int n, int h, int w)
{
    const unsigned char head[16] = {0, 0, 8, 3,
                                    0, 0, 0, (unsigned char)n,
                                    0, 0, 0, (unsigned char)h,
                                    0, 0, 0, (unsigned char)w};
    memcpy(p, head, 16);
    for (int i = 0; i < n * h * w; i++)
        p[16 + i] = (unsigned char)(i * 7);
    return (size_t)(16 + n * h * w);
}

static size_t idx_labels(unsigned char *p, int n, int classes)
{
    const unsigned char head[8] = {0, 0, 8, 1, 0, 0, 0, (unsigned char)n};
    memcpy(p, head, 8);
    for (int i = 0; i < n; i++)
        p[8 + i] = (unsigned char)(i % classes);
    return (size_t)(8 + n);
}

static void write_idx(int n, int n_labels, int h, int classes)
{
    unsigned char b[8192];
    write_gz("train-images-idx3-ubyte.gz", b, idx_images(b, n, h, 5));
    tmp_write("train-labels-idx1-ubyte", b, idx_labels(b, n_labels, classes));
    tmp_write("t10k-images-idx3-ubyte", b, idx_images(b, 7, 4, 5));
    write_gz("t10k-labels-idx1-ubyte.gz", b, idx_labels(b, 7, 3));
}

static void idx_small(void **state)
{
    float x[2 * 20];
    int32_t y[2];
    (void)state;
    write_idx(30, 30, 4, 3);
    data_options o = options("idx", tmp_dir, 1);
    o.mean = 0.5;
    o.std = 0.25;
    data_set *d = open_ok(&o);
    assert_int_equal(d->images[DATA_TRAIN].n, 30);
    assert_int_equal(d->images[DATA_VAL].n, 7);
    assert_int_equal(d->h * 100 + d->w * 10 + d->c, 451);
    assert_int_equal(d->n_classes, 3);
    const data_draw w = {DATA_TRAIN, DATA_SEQUENTIAL, 0, 0, 8};
    assert_int_equal(data_batch_images(d, &w, 3, 2, x, y), 2);
    assert_int_equal(y[0], 0);
    assert_int_equal(y[1], 1);
    for (int i = 0; i < 40; i++)
        assert_true(fabs((double)x[i] - (((3 * 20 + i) * 7 % 256) / 255.0 - 0.5) / 0.25) < 1e-6);
    data_close(d);
    unlink(tmp_path("t10k-images-idx3-ubyte"));
    open_bad(&o, AG_EINPUT, "has no t10k-images file");
    unlink(tmp_path("t10k-labels-idx1-ubyte.gz"));
    d = open_ok(&o); /* no test part: the last tenth validates */
    assert_int_equal(d->images[DATA_TRAIN].n, 27);
    assert_int_equal(d->images[DATA_VAL].n, 3);
    data_close(d);
}

static void idx_bad(void **state)
{
    unsigned char b[8192], head[16];
    const data_options o = options("idx", tmp_dir, 1);
    (void)state;
    write_idx(30, 29, 4, 3);
    open_bad(&o, AG_EINPUT, "has 30 images, but");
    write_idx(30, 30, 6, 3);
    open_bad(&o, AG_EINPUT, "images of 4 x 5, the training part of 6 x 5");
    write_idx(30, 30, 4, 2);
    open_bad(&o, AG_EINPUT, "label 2 of validation image 2 is out of range 0..1");
    write_idx(30, 30, 4, 3);
    size_t n = idx_labels(b, 30, 3);
    tmp_write("train-labels-idx1-ubyte", b, n - 1);
    open_bad(&o, AG_EINPUT, "has 37 bytes, but its header tells of 38");
    tmp_write("train-labels-idx1-ubyte", b, n + 1);
    open_bad(&o, AG_EINPUT, "has 39 bytes, but its header tells of 38");
    b[2] = 13;
    tmp_write("train-labels-idx1-ubyte", b, n);
    open_bad(&o, AG_EINPUT, "is no IDX file");
    n = idx_images(b, 30, 4, 5);
    tmp_write("train-labels-idx1-ubyte", b, n);
    open_bad(&o, AG_EINPUT, "holds images where labels belong");
    for (size_t cut = 0; cut < 16; cut++) {
        tmp_write("train-labels-idx1-ubyte", b, cut);
        open_bad(&o, AG_EINPUT, "train-labels-idx1-ubyte");
    }
    write_idx(30, 30, 4, 3);
    write_gz("train-images-idx3-ubyte.gz", b, n - 1);
    open_bad(&o, AG_EINPUT, "unpacks to 615 bytes, but its header tells of 616");
    write_gz("train-images-idx3-ubyte.gz", b, n + 1);
    open_bad(&o, AG_EINPUT, "unpacks to more than 616 bytes");
    memcpy(head, b, 16);
    head[4] = head[8] = head[12] = 0xFF; /* a bomb: refused before it is allocated */
    write_gz("train-images-idx3-ubyte.gz", head, 16);
    open_bad(&o, AG_EINPUT, "claims more than 2^40 bytes");
    memset(head + 4, 0, 12);
    head[5] = head[11] = head[15] = 0x10;
    write_gz("train-images-idx3-ubyte.gz", head, 16);
    open_bad(&o, AG_EINPUT, "which cannot hold");
    memset(head + 4, 0, 12);
    write_gz("train-images-idx3-ubyte.gz", head, 16);
    open_bad(&o, AG_EINPUT, "is empty");
}

/* A gzip IDX file cut anywhere, or with any bit turned, is refused or (in header fields of gzip)
 * the same. */
static void idx_damage(void **state)
{
    size_t size;
    const data_options o = options("idx", tmp_dir, 1);
    (void)state;
    write_idx(30, 30, 4, 3);
    data_set *good = open_ok(&o);
    unsigned char *file = read_all(tmp_path("train-images-idx3-ubyte.gz"), &size);
    for (size_t cut = 0; cut < size; cut++) {
        data_set *d = NULL;
        tmp_write("train-images-idx3-ubyte.gz", file, cut);
        assert_int_equal(data_open(&o, &d, NULL), AG_EINPUT);
    }
    for (size_t bit = 0; bit < 8 * size; bit++) {
        data_set *d = NULL;
        file[bit / 8] ^= (unsigned char)(1 << bit % 8);
        tmp_write("train-images-idx3-ubyte.gz", file, size);
        if (data_open(&o, &d, NULL) == 0)
            assert_memory_equal(d->images[0].at, good->images[0].at, 600);
        data_close(d);
        file[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    free(file);
    data_close(good);
}

static void mnist(void **state)
{
    int64_t count[10] = {0};
    double sum = 0;
    (void)state;
    if (!real_data("mnist/t10k-images-idx3-ubyte.gz"))
        skip();
    const data_options o = options("mnist", NULL, 1);
    data_set *d = open_ok(&o);
    assert_int_equal(d->images[DATA_TRAIN].n, 60000);
    assert_int_equal(d->images[DATA_VAL].n, 10000);
    assert_int_equal(d->n_classes, 10);
    for (int64_t i = 0; i < 60000; i++)
        count[d->images[0].label[i]]++;
    assert_int_equal(count[0], 5923);                    /* as published */
    assert_int_equal(count[9], 5949);
    for (int64_t i = 0; i < 60000 * 784; i++)
        sum += d->images[0].at[i];
    assert_true(fabs(sum / (60000 * 784 * 255.0) - 0.1307) < 5e-5);
    assert_int_equal(data_verify(data_catalog_find("mnist"), real_data("mnist"), NULL, NULL, NULL),
                     0);
    data_close(d);
}

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
            const data_draw w = {DATA_TRAIN, (data_order)order, 42, step, B};
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
        const data_draw w = {DATA_TRAIN, DATA_RANDOM, 1, step, 4};
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
        const data_draw w = {DATA_VAL, DATA_SEQUENTIAL, 0, step++, B};
        got = data_batch_tokens(d, &w, 0, B, x, y);
        for (int64_t i = 0; i < got * T; i++)
            assert_int_equal(x[i], ((const uint8_t *)d->tokens[1].at)[total * T + i]);
        total += got;
    } while (got == B);
    assert_int_equal(total, n);
    data_close(d);
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
        const data_draw w = {DATA_TRAIN, DATA_SHUFFLED, 9, step, B};
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

/* ---- checksums and search ---- */

static void md5(void **state)
{
    char hex[33], text[200];
    (void)state;
    memset(text, 'a', sizeof text);
    data_md5_hex("", 0, hex);
    assert_string_equal(hex, "d41d8cd98f00b204e9800998ecf8427e");            /* RFC 1321, A.5 */
    data_md5_hex("message digest", 14, hex);
    assert_string_equal(hex, "f96b697d7cb7938d525a2f31aaf161d0");
    data_md5_hex("12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                 80, hex);
    assert_string_equal(hex, "57edf4a22be3c955ac49da2e2107b67a");
    data_md5_hex(text, 56, hex);
    assert_string_equal(hex, "3b0c8ac703f828b04c6c197006d17218");
    data_md5_hex(text, 64, hex);
    assert_string_equal(hex, "014842d480b571495a4a0363793f7367");
}

static void search_order(void **state)
{
    ag_err err = {0};
    char *path = NULL, *old = getenv("TULLE_DATA") ? strdup(getenv("TULLE_DATA")) : NULL;
    (void)state;
    setenv("TULLE_DATA", tmp_path("nowhere"), 1);
    assert_int_equal(data_find("mnist", NULL, &path, &err), AG_EINPUT);
    assert_null(path);
    assert_non_null(strstr(err.msg, "nowhere/mnist"));
    assert_non_null(strstr(err.msg, "/tulle/mnist"));
    assert_non_null(strstr(err.msg, "tulle data get mnist"));
    assert_int_equal(ag_dir_make(tmp_path("d/mnist"), NULL), 0);
    assert_int_equal(ag_dir_make(tmp_path("tulle/enwik8"), NULL), 0);
    setenv("TULLE_DATA", tmp_path("d"), 1);
    tmp_write("d/train-images-idx3-ubyte", "", 0);       /* whose is it? of no set */
    assert_int_equal(data_find("mnist", NULL, &path, NULL), AG_EINPUT);
    tmp_write("d/mnist/train-images-idx3-ubyte", "", 0);
    assert_int_equal(data_find("mnist", NULL, &path, NULL), 0);
    assert_string_equal(path, tmp_path("d/mnist"));
    free(path);
    tmp_write("tulle/enwik8/enwik8", "x", 1);
    assert_int_equal(data_find("enwik8", NULL, &path, NULL), 0);
    assert_string_equal(path, tmp_path("tulle/enwik8/enwik8"));
    free(path);
    tmp_write("d/enwik8-4M.gz", "x", 1);
    assert_int_equal(data_find("enwik8", NULL, &path, NULL), 0);
    assert_string_equal(path, tmp_path("d/enwik8-4M.gz"));
    free(path);
    assert_int_equal(data_find("shakespeare", tmp_path("d/none.txt"), &path, NULL), AG_EINPUT);
    assert_int_equal(data_find("shakespeare", tmp_path("d/enwik8-4M.gz"), &path, NULL), 0);
    free(path);
    assert_int_equal(
        data_verify(data_catalog_find("enwik8"), tmp_path("tulle/enwik8"), NULL, NULL, &err),
        AG_EINPUT);
    if (old)
        setenv("TULLE_DATA", old, 1);
    else
        unsetenv("TULLE_DATA");
    free(old);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shakespeare),
        cmocka_unit_test(enwik8),
        cmocka_unit_test(text_parts),
        cmocka_unit_test(bad_text),
        cmocka_unit_test(gzip_text),
        cmocka_unit_test(idx_small),
        cmocka_unit_test(idx_bad),
        cmocka_unit_test(idx_damage),
        cmocka_unit_test(mnist),
        cmocka_unit_test(language_entropy),
        cmocka_unit_test(generated_sets),
        cmocka_unit_test(digits),
        cmocka_unit_test(shuffle),
        cmocka_unit_test(token_ranges),
        cmocka_unit_test(random_offsets_cover),
        cmocka_unit_test(sequential_pass),
        cmocka_unit_test(image_epochs),
        cmocka_unit_test(md5),
        cmocka_unit_test(search_order),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_remove);
}
