/*
 * test_data.c -- data sets from files: text and IDX, found or not, and what damaged files say.
 */
#include "data_util.h"
#include "data/internal.h"
#include <math.h>
#include <zlib.h>

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
    open_bad(&o, AG_EINPUT, "none.txt' (data.path) does not exist");
    o.path = NULL;
    open_bad(&o, AG_ECONFIG, "needs data.path");
    o.source = "wikitext";
    open_bad(&o, AG_ECONFIG, "no source 'wikitext' (there are: shakespeare");
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
    const data_draw w = {DATA_TRAIN, DATA_SEQUENTIAL, 0, 0, 8, 0};
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

/* A packed file may be several gzip members, one behind the other. */
static void idx_in_members(void **state)
{
    unsigned char b[8192], packed[8192];
    size_t n = 0;
    (void)state;
    write_idx(30, 30, 4, 3);
    const size_t size = idx_images(b, 30, 4, 5);
    for (size_t at = 0; at < size; at += 200) {
        FILE *f = fopen(write_gz("member.gz", b + at, size - at < 200 ? size - at : 200), "rb");
        assert_non_null(f);
        n += fread(packed + n, 1, sizeof packed - n, f);
        fclose(f);
    }
    tmp_write("train-images-idx3-ubyte.gz", packed, n);
    const data_options o = options("idx", tmp_dir, 1);
    data_set *d = open_ok(&o);
    assert_int_equal(d->images[DATA_TRAIN].n, 30);
    assert_memory_equal(d->images[DATA_TRAIN].at, b + 16, size - 16);
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
        cmocka_unit_test(shakespeare), cmocka_unit_test(enwik8),    cmocka_unit_test(text_parts),
        cmocka_unit_test(bad_text),    cmocka_unit_test(gzip_text), cmocka_unit_test(idx_small),
        cmocka_unit_test(idx_in_members),
        cmocka_unit_test(idx_bad),     cmocka_unit_test(idx_damage), cmocka_unit_test(mnist),
        cmocka_unit_test(md5),         cmocka_unit_test(search_order),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_remove);
}
