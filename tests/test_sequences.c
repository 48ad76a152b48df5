/*
 * test_sequences.c -- images as sequences of tokens: IDX, CIFAR-10 and HDF5, padded, shrunk and
 * quantised; pictures as PNG; parts for test; fingerprints.
 */
#include "data_util.h"
#include "data/internal.h"
#include <hdf5.h>
#include <zlib.h>

/* ---- IDX ---- */

enum { IMAGES = 30, SIDE = 6 };

static uint8_t idx_pixel(int i) { return (uint8_t)(i * 37 + i / 11); }

static void write_idx(void)
{
    uint8_t images[16 + IMAGES * SIDE * SIDE] = {0, 0, 8, 3, 0, 0, 0, IMAGES,
                                                 0, 0, 0, SIDE, 0, 0, 0, SIDE};
    uint8_t labels[8 + IMAGES] = {0, 0, 8, 1, 0, 0, 0, IMAGES};
    for (int i = 0; i < IMAGES * SIDE * SIDE; i++)
        images[16 + i] = idx_pixel(i);
    tmp_write("train-images-idx3-ubyte", images, sizeof images);
    tmp_write("train-labels-idx1-ubyte", labels, sizeof labels);
}

static data_options idx_sequences(int64_t context)
{
    data_options o = options("idx", tmp_dir, context);
    o.sequences = true;
    return o;
}

static void as_they_are(void **state)
{
    int32_t x[2 * 36], y[2 * 36];
    (void)state;
    write_idx();
    data_options o = idx_sequences(36);
    o.test_fraction = 0.2;
    data_set *d = open_ok(&o);
    assert_int_equal(d->kind, DATA_TOKENS);
    assert_int_equal(d->vocab, 256);
    assert_int_equal(d->sequence, 36);
    assert_int_equal(d->h * 100 + d->w * 10 + d->c, 661);
    assert_int_equal(data_samples(d, DATA_TRAIN), 21);
    assert_int_equal(data_samples(d, DATA_VAL), 3);
    assert_int_equal(data_samples(d, DATA_TEST), 6);
    assert_non_null(strstr(d->about, "21 images to train, 3 to validate, 6 to test, 6 x 6 x 1"));

    const data_draw w = {.split = DATA_TEST, .order = DATA_SEQUENTIAL, .batch = 8};
    assert_int_equal(data_batch_tokens(d, &w, 4, 2, x, y), 2); /* images 28 and 29 */
    for (int i = 0; i < 72; i++) {
        assert_int_equal(y[i], idx_pixel(28 * 36 + i));
        assert_int_equal(x[i], i % 36 ? y[i - 1] : 0);
    }
    assert_int_equal(data_batch_tokens(d, &w, 5, 2, x, y), 1); /* no more than there are */

    const data_draw r = {.split = DATA_TRAIN, .order = DATA_RANDOM, .seed = 3, .batch = 500};
    const data_draw s = {.split = DATA_TRAIN, .order = DATA_SHUFFLED, .seed = 3, .batch = 21};
    bool seen[21] = {false};
    for (int64_t i = 0; i < 500; i++) {                  /* no window crosses images */
        const int64_t at = data_sample_at(d, &r, i);
        assert_true(at >= 0 && at % 36 == 0 && at <= 20 * 36);
    }
    for (int64_t i = 0; i < 21; i++)
        seen[data_sample_at(d, &s, i) / 36] = true;
    for (int i = 0; i < 21; i++)
        assert_true(seen[i]);
    data_close(d);

    o.start = true;                                      /* a start vector stands before it */
    d = open_ok(&o);
    assert_int_equal(data_batch_tokens(d, &w, 5, 1, x, y), 1);
    assert_int_equal(x[0], 256);
    assert_memory_equal(x + 1, y, 35 * sizeof *x);
    data_draw last = w;                                  /* nothing to overlap */
    last.last = 5;
    assert_int_equal(data_windows(d, DATA_TEST, 5), 6);
    assert_int_equal(data_batch_tokens(d, &last, 5, 1, x + 36, y + 36), 1);
    assert_memory_equal(y, y + 36, 36 * sizeof *y);
    data_close(d);
}

static void padded(void **state)
{
    (void)state;
    write_idx();
    data_options o = idx_sequences(81);
    o.image_size = 9;                                    /* 1 row before, 2 behind */
    o.levels = 4;
    data_set *d = open_ok(&o);
    assert_int_equal(d->vocab, 4);
    assert_int_equal(d->h * 100 + d->w * 10 + d->c, 991);
    const uint8_t *p = d->tokens[DATA_VAL].at;           /* image 27 */
    for (int y = 0; y < 9; y++)
        for (int x = 0; x < 9; x++) {
            const bool inside = y >= 1 && y < 7 && x >= 1 && x < 7;
            const int v = inside ? idx_pixel((27 * 6 + y - 1) * 6 + x - 1) : 0;
            assert_int_equal(p[9 * y + x], v / 64);
        }
    data_close(d);
}

static void shrunk(void **state)
{
    (void)state;
    write_idx();
    data_options o = idx_sequences(4);
    o.image_size = 2;
    data_set *d = open_ok(&o);
    const uint8_t *p = d->tokens[DATA_TRAIN].at;
    for (int k = 0; k < 4; k++) {
        int sum = 0;
        for (int i = 0; i < 9; i++)
            sum += idx_pixel((5 * 6 + k / 2 * 3 + i / 3) * 6 + k % 2 * 3 + i % 3);
        assert_int_equal(p[5 * 4 + k], (int)(sum / 9.0 + 0.5));
    }
    data_close(d);
}

static void bad_forms(void **state)
{
    (void)state;
    write_idx();
    data_options o = idx_sequences(100);
    open_bad(&o, AG_ECONFIG, "an image of idx is a sequence of 36 tokens (6 x 6 x 1), but the"
                             " context is 100: set model.context=36");
    o.image_size = 4;
    open_bad(&o, AG_ECONFIG, "images of 6 x 6 cannot become 4 x 4");
    o.image_size = 10;
    o.levels = 257;
    open_bad(&o, AG_ECONFIG, "levels is 257, not 2 to 256");
}

static void mnist(void **state)
{
    (void)state;
    if (!real_data("mnist/t10k-images-idx3-ubyte.gz"))
        skip();
    data_options o = options("mnist", NULL, 1024);
    o.sequences = true;
    o.image_size = 32;
    data_set *d = open_ok(&o);
    assert_int_equal(data_samples(d, DATA_TRAIN), 60000);
    assert_int_equal(data_samples(d, DATA_VAL), 10000);
    const uint8_t *p = d->tokens[DATA_TRAIN].at;
    double sum = 0;
    for (int64_t i = 0; i < 60000 * 1024; i++)
        sum += p[i];
    assert_int_equal((int64_t)(sum / (60000 * 784 * 255.0) * 1e4 + 0.5), 1307); /* as published */
    for (int i = 0; i < 64; i++)
        assert_int_equal(p[i], 0);                       /* two rows above each image */
    data_close(d);
}

/* ---- CIFAR-10 ---- */

enum { RECORD = 3073, PER_FILE = 10 };
static const char *const cifar_file[6] = {"data_batch_1.bin", "data_batch_2.bin",
                                          "data_batch_3.bin", "data_batch_4.bin",
                                          "data_batch_5.bin", "test_batch.bin"};
static uint8_t cifar[6][PER_FILE * RECORD];

/* Byte of channel c of pixel k of image i of file f, and the label of the image. */
static uint8_t cifar_value(int f, int i, int c, int k)
{
    return (uint8_t)(f * 31 + i * 17 + c * 101 + k * 7 + k / 32);
}

static void write_cifar(const char *dir)
{
    char name[64];
    assert_int_equal(ag_dir_make(tmp_path(dir), NULL), 0);
    for (int f = 0; f < 6; f++) {
        for (int i = 0; i < PER_FILE; i++) {
            uint8_t *p = &cifar[f][i * RECORD];
            p[0] = (uint8_t)((f + i) % 10);
            for (int c = 0; c < 3; c++)
                for (int k = 0; k < 1024; k++)
                    p[1 + c * 1024 + k] = cifar_value(f, i, c, k);
        }
        snprintf(name, sizeof name, "%s/%s", dir, cifar_file[f]);
        tmp_write(name, cifar[f], sizeof cifar[f]);
    }
}

/* All images of the parts are those of the files, in order. */
static void check_cifar(const data_set *d)
{
    const int64_t end[3] = {48, 50, 60};
    for (int n = 0; n < 60; n++) {
        const int s = n < end[0] ? 0 : n < end[1] ? 1 : 2, first = s ? (int)end[s - 1] : 0;
        const uint8_t *p = d->images[s].at + (n - first) * 3072;
        assert_int_equal(d->images[s].n, end[s] - first);
        assert_int_equal(d->images[s].label[n - first], (n / PER_FILE + n % PER_FILE) % 10);
        for (int j = 0; j < 3072; j++)
            assert_int_equal(p[j], cifar_value(n / PER_FILE, n % PER_FILE, j % 3, j / 3));
    }
}

static void cifar_folder(void **state)
{
    int32_t x[3072], y[3072];
    (void)state;
    write_cifar("c/cifar-10-batches-bin");
    data_options o = options("cifar10", tmp_path("c"), 1);
    data_set *d = open_ok(&o);
    assert_int_equal(d->h * 10000 + d->w * 100 + d->c, 323203);
    assert_int_equal(d->n_classes, 10);
    check_cifar(d);
    data_close(d);
    o.path = tmp_path("c/cifar-10-batches-bin/data_batch_1.bin");
    o.sequences = true;
    o.context = 3072;
    d = open_ok(&o);
    assert_int_equal(data_samples(d, DATA_TRAIN), 48);
    const data_draw w = {.split = DATA_TEST, .order = DATA_SEQUENTIAL, .batch = 10};
    assert_int_equal(data_batch_tokens(d, &w, 9, 1, x, y), 1);
    for (int j = 0; j < 3072; j++)
        assert_int_equal(y[j], cifar_value(5, 9, j % 3, j / 3));
    data_close(d);
}

/* One file of a tar archive, with its header. */
static size_t put_tar(uint8_t *p, const char *name, const uint8_t *data, size_t size)
{
    memset(p, 0, 512);
    snprintf((char *)p, 100, "cifar-10-batches-bin/%s", name);
    memcpy(p + 100, "0000644", 7);
    snprintf((char *)p + 124, 12, "%011zo", size);
    memcpy(p + 257, "ustar", 5);
    unsigned sum = 8 * ' ';
    for (int i = 0; i < 512; i++)
        sum += p[i];
    snprintf((char *)p + 148, 8, "%06o", sum);
    if (size)
        memcpy(p + 512, data, size);
    return 512 + (size + 511) / 512 * 512;
}

static size_t make_tar(uint8_t *all)
{
    size_t at = put_tar(all, "", NULL, 0);
    at += put_tar(all + at, "readme.html", (const uint8_t *)"x", 1);
    for (int f = 5; f >= 0; f--)                         /* in any order */
        at += put_tar(all + at, cifar_file[f], cifar[f], sizeof cifar[f]);
    memset(all + at, 0, 1024);
    return at + 1024;
}

static void cifar_archive(void **state)
{
    uint8_t *all = calloc(1, sizeof cifar + 16 * 1024);
    (void)state;
    write_cifar("c/cifar-10-batches-bin");
    const size_t size = make_tar(all);
    data_options o = options("cifar10", write_gz("cifar-10-binary.tar.gz", all, size), 1);
    data_set *d = open_ok(&o);
    check_cifar(d);
    data_close(d);
    setenv("TULLE_DATA", tmp_dir, 1);                    /* and found by its name */
    o.path = NULL;
    d = open_ok(&o);
    check_cifar(d);
    data_close(d);

    o.path = write_gz("cut.tar.gz", all, size - 2048);
    open_bad(&o, AG_EINPUT, "cut.tar.gz' is cut off");
    o.path = write_gz("few.tar.gz", all, 4 * 1024);
    open_bad(&o, AG_EINPUT, "few.tar.gz' is cut off");
    o.path = write_gz("none.tar.gz", all, 512);
    open_bad(&o, AG_EINPUT, "none.tar.gz' has no file data_batch_1.bin");
    all[512 + 30] ^= 1;
    o.path = write_gz("sum.tar.gz", all, size);
    open_bad(&o, AG_EINPUT, "no tar archive, or damaged, at byte 512");
    o.path = tmp_write("no.tar.gz", "hello", 5);
    open_bad(&o, AG_EINPUT, "no.tar.gz' has no file");
    free(all);
}

static void cifar_bad(void **state)
{
    char dir[512];
    data_options o = options("cifar10", dir, 1);
    (void)state;
    snprintf(dir, sizeof dir, "%s", tmp_path("c/cifar-10-batches-bin"));
    write_cifar("c/cifar-10-batches-bin");
    const char *third = "c/cifar-10-batches-bin/data_batch_3.bin";
    tmp_write(third, cifar[2], sizeof cifar[2] - 1);
    open_bad(&o, AG_EINPUT, "data_batch_3.bin has 30729 bytes, no whole number of records of 3073");
    tmp_write(third, "", 0);
    open_bad(&o, AG_EINPUT, "data_batch_3.bin has 0 bytes");
    cifar[2][4 * RECORD] = 10;
    tmp_write(third, cifar[2], sizeof cifar[2]);
    open_bad(&o, AG_EINPUT, "image 4 of data_batch_3.bin has the label 10, not 0 to 9");
    unlink(tmp_path(third));
    open_bad(&o, AG_EINPUT, "has no file data_batch_3.bin");
    o.path = tmp_path("nowhere");
    open_bad(&o, AG_EINPUT, "nowhere");
}

/* ---- HDF5 ---- */

static void hdf5_images(void **state)
{
    uint8_t pixel[20 * 4 * 4 * 3];
    const hsize_t dim[4] = {20, 4, 4, 3};
    (void)state;
    for (size_t i = 0; i < sizeof pixel; i++)
        pixel[i] = (uint8_t)(i * 13);
    const hid_t f = H5Fcreate(tmp_path("i.h5"), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const hid_t space = H5Screate_simple(4, dim, NULL);
    const hid_t ds = H5Dcreate2(f, "/pictures", H5T_STD_U8LE, space, H5P_DEFAULT, H5P_DEFAULT,
                                H5P_DEFAULT);
    assert_true(H5Dwrite(ds, H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, pixel) >= 0);
    H5Dclose(ds);
    H5Sclose(space);
    H5Fclose(f);
    data_options o = options("hdf5", tmp_path("i.h5"), 48);
    o.sequences = true;
    o.h5_train = "/pictures";
    data_set *d = open_ok(&o);                           /* no labels are needed */
    assert_int_equal(data_samples(d, DATA_TRAIN), 18);
    assert_int_equal(d->h * 100 + d->w * 10 + d->c, 443);
    assert_memory_equal(d->tokens[DATA_TRAIN].at, pixel, 18 * 48);
    assert_memory_equal(d->tokens[DATA_VAL].at, pixel + 18 * 48, 2 * 48);
    data_close(d);
    o.sequences = false;
    open_bad(&o, AG_EINPUT, "0 labels for 20 images");
}

/* ---- pictures ---- */

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void png(void **state)
{
    static const uint8_t type[5] = {0, 0, 4, 2, 6};
    uint8_t pixel[5 * 7 * 4], rows[5 * (7 * 4 + 1)];
    (void)state;
    for (size_t i = 0; i < sizeof pixel; i++)
        pixel[i] = (uint8_t)(i * i);
    for (int c = 1; c <= 4; c++) {
        uint8_t *file;
        size_t size;
        uLongf n = sizeof rows;
        assert_int_equal(data_png(pixel, 5, 7, c, &file, &size, NULL), 0);
        assert_memory_equal(file, "\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 16);
        assert_int_equal(be32(file + 16), 7);
        assert_int_equal(be32(file + 20), 5);
        assert_int_equal(file[24], 8);
        assert_int_equal(file[25], type[c]);
        assert_int_equal(be32(file + 29), crc32(0, file + 12, 17));
        const uint32_t packed = be32(file + 33);
        assert_memory_equal(file + 37, "IDAT", 4);
        assert_int_equal(be32(file + 41 + packed), crc32(0, file + 37, packed + 4));
        assert_memory_equal(file + 45 + packed, "\0\0\0\0IEND\xae\x42\x60\x82", 12);
        assert_int_equal(size, 45 + packed + 12);
        assert_int_equal(uncompress(rows, &n, file + 41, packed), Z_OK);
        assert_int_equal(n, 5 * (7 * c + 1));
        for (int y = 0; y < 5; y++) {
            assert_int_equal(rows[y * (7 * c + 1)], 0);
            assert_memory_equal(rows + y * (7 * c + 1) + 1, pixel + y * 7 * c, (size_t)(7 * c));
        }
        free(file);
    }
    ag_err err = {0};
    uint8_t *file;
    size_t size;
    assert_int_equal(data_png(pixel, 5, 7, 5, &file, &size, &err), AG_ESHAPE);
    assert_non_null(strstr(err.msg, "5 x 7 x 5"));
}

/* ---- parts of text, fingerprints ---- */

static void text_parts(void **state)
{
    data_set d = {0};
    const uint8_t *volatile at = (const uint8_t *)&d;    /* nobody looks there */
    (void)state;
    data_split_tokens(&d, at, 100000000, 1, 0.05, 0.05); /* enwik8 when it is whole */
    assert_int_equal(d.tokens[DATA_TRAIN].n, 90000000);
    assert_int_equal(d.tokens[DATA_VAL].n, 5000000);
    assert_int_equal(d.tokens[DATA_TEST].n, 5000000);
    assert_ptr_equal(d.tokens[DATA_TEST].at, at + 95000000);

    data_options o = options("text", tmp_write("t.txt", "abcdefghijklmnopqrst", 20), 1);
    o.val_fraction = 0.15;
    o.test_fraction = 0.25;
    data_set *t = open_ok(&o);
    assert_int_equal(t->tokens[DATA_TRAIN].n, 12);
    assert_int_equal(t->tokens[DATA_VAL].n, 3);
    assert_int_equal(t->tokens[DATA_TEST].n, 5);
    data_close(t);
    o.test_fraction = 0.85;
    open_bad(&o, AG_ECONFIG, "val_fraction 0.15 and test_fraction 0.85 leave nothing");
}

static void fingerprint(void **state)
{
    enum { BIG = 5 << 20 };
    char hex[5][65];
    char *text = malloc(BIG);
    (void)state;
    for (int i = 0; i < BIG; i++)
        text[i] = (char)('a' + i % 23);
    for (int k = 0; k < 5; k++) {
        text[BIG / 2] = k == 1 ? 'z' : 'a';              /* in the middle, at the end, one less, */
        text[BIG * 98 / 100] = k == 4 ? 'z' : 'a';       /* where the first part ends */
        text[BIG - 1] = k == 2 ? 'z' : 'b';
        const char *path = tmp_write("f.txt", text, (size_t)BIG - (k == 3));
        data_options o = options("text", path, 8);
        o.tokenizer = "byte";
        o.val_fraction = 0.0199;
        data_set *d = open_ok(&o);
        strcpy(hex[k], data_fingerprint(d));
        data_close(d);
    }
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < i; k++)                      /* a byte between the places may hide */
            assert_true(strcmp(hex[i], hex[k]) != 0 || (i == 1 && k == 0));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_they_are),   cmocka_unit_test(padded),
        cmocka_unit_test(shrunk),        cmocka_unit_test(bad_forms),
        cmocka_unit_test(mnist),         cmocka_unit_test(cifar_folder),
        cmocka_unit_test(cifar_archive), cmocka_unit_test(cifar_bad),
        cmocka_unit_test(hdf5_images),   cmocka_unit_test(png),
        cmocka_unit_test(text_parts),    cmocka_unit_test(fingerprint),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_remove);
}
