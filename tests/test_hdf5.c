/*
 * test_hdf5.c -- HDF5 data files: ours and foreign ones, mapped or imported, and damaged in a
 * thousand ways.
 */
#include "data_util.h"
#include "autograd/base/rng.h"
#include "data/internal.h"
#include <dirent.h>
#include <hdf5.h>

enum { N = 4000 };

static int imported_files(void)
{
    int n = 0;
    DIR *dir = opendir(tmp_path("tulle/imported"));
    for (struct dirent *e; dir && (e = readdir(dir));)
        n += e->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return n;
}

/* ---- foreign files ---- */

static hid_t foreign_file(const char *name)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const hid_t f = H5Fcreate(tmp_path(name), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(f >= 0);
    return f;
}

/* An array of n (times 3 x 2 where rank is 3) values of at, chunked and compressed where chunk >
 * 0. */
static void put(hid_t f, const char *name, int rank, hsize_t n, hid_t type, hsize_t chunk,
                const int64_t *at)
{
    const hsize_t dim[3] = {n, 3, 2}, piece[3] = {chunk, 3, 2};
    const hid_t lcpl = H5Pcreate(H5P_LINK_CREATE), dcpl = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_create_intermediate_group(lcpl, 1);
    if (chunk) {
        H5Pset_chunk(dcpl, rank, piece);
        H5Pset_shuffle(dcpl);
        H5Pset_deflate(dcpl, 4);
        H5Pset_fletcher32(dcpl);
    }
    const hid_t space = H5Screate_simple(rank, dim, NULL);
    const hid_t ds = H5Dcreate2(f, name, type, space, lcpl, dcpl, H5P_DEFAULT);
    assert_true(ds >= 0 && H5Dwrite(ds, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, at) >= 0);
    H5Dclose(ds);
    H5Sclose(space);
    H5Pclose(dcpl);
    H5Pclose(lcpl);
}

static int64_t values[N];

static void fill(int64_t modulus)
{
    for (int64_t i = 0; i < N; i++)
        values[i] = i * i % modulus;
}

static void check_tokens(const data_set *d, int64_t n_train)
{
    assert_int_equal(d->tokens[0].n, n_train);
    for (int64_t i = 0; i < N; i++) {
        const data_tokens *t = &d->tokens[i < n_train ? 0 : 1];
        const int64_t k = i < n_train ? i : i - n_train;
        const int64_t v = t->bytes == 1 ? ((const uint8_t *)t->at)[k] : t->bytes == 2
                        ? ((const uint16_t *)t->at)[k] : ((const uint32_t *)t->at)[k];
        assert_int_equal(v, values[i]);
    }
}

/* Every integer type, contiguous and compressed; what memory can use as it lies is not imported. */
static void token_types(void **state)
{
    const struct { hid_t type; int64_t modulus; int bytes; bool mapped;
    } cases[] = {
        {H5T_STD_U8LE, 256, 1, true},      {H5T_STD_U16LE, 60000, 2, true},
        {H5T_STD_U32LE, 100000, 4, true},  {H5T_STD_I32LE, 100000, 4, true},
        {H5T_STD_I64LE, 100000, 4, false}, {H5T_STD_U16BE, 60000, 2, false},
        {H5T_STD_I8LE, 128, 1, false},     {H5T_STD_I16LE, 30000, 2, false},
        {H5T_STD_U64BE, 100000, 4, false},
    };
    (void)state;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        for (hsize_t chunk = 0; chunk <= 1000; chunk += 1000) {
            const int before = imported_files();
            fill(cases[k].modulus);
            const hid_t f = foreign_file("types.h5");
            put(f, "/tokens/train", 1, N, cases[k].type, chunk, values);
            H5Fclose(f);
            data_options o = options("hdf5", tmp_path("types.h5"), 8);
            for (int twice = 0; twice < 2; twice++) {
                data_set *d = open_ok(&o);
                check_tokens(d, 3600);
                assert_int_equal(d->tokens[0].bytes, cases[k].bytes);
                assert_true(d->vocab <= cases[k].modulus && d->vocab > cases[k].modulus / 2);
                assert_null(d->tokenizer);
                data_close(d);
                assert_int_equal(imported_files() - before, chunk || !cases[k].mapped);
            }
        }
}

static void named_images(void **state)
{
    data_options o = options("hdf5", tmp_path("images.h5"), 8);
    (void)state;
    for (int i = 0; i < N; i++)
        values[i] = i % 6;
    for (hsize_t chunk = 0; chunk <= 7; chunk += 7) {
        const hid_t f = foreign_file("images.h5");
        put(f, "/a/pictures", 3, 60, H5T_STD_U8LE, chunk, values);
        put(f, "/a/classes", 1, 60, H5T_STD_I64LE, 0, values);
        H5Fclose(f);
        open_bad(&o, AG_EINPUT, "neither /tokens/train nor /train/images");
        o.h5_train = "/a/pictures";
        o.h5_train_labels = "/a/classes";
        data_set *d = open_ok(&o);
        assert_int_equal(d->images[0].n, 54);
        assert_int_equal(d->images[1].n, 6);
        assert_int_equal(d->h * 100 + d->w * 10 + d->c, 321);
        assert_int_equal(d->n_classes, 6);
        for (int i = 0; i < 60 * 6; i++)
            assert_int_equal(d->images[0].at[i], values[i]);
        for (int i = 0; i < 60; i++)
            assert_int_equal(d->images[0].label[i], values[i]);
        data_close(d);
        o.h5_train_labels = "/a/none";
        open_bad(&o, AG_EINPUT, "/a/none has 0 labels for 60 images");
        o.h5_train_labels = "/a/pictures";
        open_bad(&o, AG_EINPUT, "labels for 60 images");
        o.h5_train = o.h5_train_labels = NULL;
    }
}

static void refused(void **state)
{
    data_options o = options("hdf5", tmp_path("bad.h5"), 8);
    hid_t f;
    (void)state;
    fill(100);
    values[7] = -1;
    static const hsize_t chunks[2] = {0, 100};
    for (int k = 0; k < 2; k++) {
        f = foreign_file("bad.h5");
        put(f, "/tokens/train", 1, N, H5T_STD_I32LE, chunks[k], values);
        H5Fclose(f);
        open_bad(&o, AG_EINPUT, "negative");
    }
    values[7] = 7;
    f = foreign_file("bad.h5");
    put(f, "/tokens/train", 1, N, H5T_IEEE_F32LE, 0, values);
    H5Fclose(f);
    open_bad(&o, AG_EINPUT, "/tokens/train is no array of integers");

    f = foreign_file("bad.h5");
    put(f, "/x", 1, N, H5T_STD_U8LE, 0, values);
    H5Gclose(H5Gcreate2(f, "/tokens", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Lcreate_soft("/x", f, "/tokens/train", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_external("/etc/passwd", "/x", f, "/other", H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(f);
    open_bad(&o, AG_EINPUT, "only hard links");
    o.h5_train = "/other";
    open_bad(&o, AG_EINPUT, "only hard links");
    o.h5_train = "/tokens";
    open_bad(&o, AG_EINPUT, "no data set that can be opened");
    o.h5_train = "x";
    open_bad(&o, AG_ECONFIG, "does not begin with /");
    o.h5_train = "/y";
    open_bad(&o, AG_EINPUT, "has no data set /y");
    o.h5_train = NULL;

    f = foreign_file("bad.h5"); /* data in another file; a set never written to */
    const hsize_t n = 64, big = 1 << 30, piece = 1 << 20;
    const hid_t s = H5Screate_simple(1, &n, NULL), t = H5Screate_simple(1, &big, NULL);
    const hid_t p = H5Pcreate(H5P_DATASET_CREATE), q = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_external(p, "/etc/passwd", 0, 64);
    H5Dclose(H5Dcreate2(f, "/outside", H5T_STD_U8LE, s, H5P_DEFAULT, p, H5P_DEFAULT));
    H5Pset_chunk(q, 1, &piece);
    H5Dclose(H5Dcreate2(f, "/hollow", H5T_STD_U8LE, t, H5P_DEFAULT, q, H5P_DEFAULT));
    H5Pclose(p);
    H5Pclose(q);
    H5Sclose(s);
    H5Sclose(t);
    H5Fclose(f);
    o.h5_train = "/outside";
    open_bad(&o, AG_EINPUT, "/outside lies outside the file");
    o.h5_train = "/hollow";
    open_bad(&o, AG_EINPUT, "more than the file can hold");
    tmp_write("bad.h5", "no HDF5 at all", 14);
    open_bad(&o, AG_EINPUT, "is no HDF5 file");
}

/* ---- our own files ---- */

static void round_trip_tokens(void **state)
{
    static const char text[] =
        "a small text with an \xC3\xA4 in it, \"quoted\" and a \xF0\x9F\x98\x80 too. ";
    char long_text[sizeof text * 40] = "";
    ag_err err = {0};
    size_t n, m;
    (void)state;
    for (int i = 0; i < 40; i++)
        strcat(long_text, text);
    data_options o = options("hdf5", tmp_write("text.txt", long_text, strlen(long_text)), 8);
    o.source = "text";
    data_set *d = open_ok(&o);
    assert_int_equal(data_export_hdf5(d, tmp_path("own.h5"), &err), 0);
    assert_int_equal(data_export_hdf5(d, tmp_path("own2.h5"), &err), 0);
    void *a = read_all(tmp_path("own.h5"), &n), *b = read_all(tmp_path("own2.h5"), &m);
    assert_int_equal(n, m);
    assert_memory_equal(a, b, n);
    free(a);
    free(b);
    const int before = imported_files();
    data_options h = options("hdf5", tmp_path("own.h5"), 8);
    data_set *e = open_ok(&h);
    assert_int_equal(imported_files(), before);          /* mapped as it lies */
    assert_int_equal((uintptr_t)e->tokens[0].at % 64, 0);
    assert_int_equal(e->vocab, d->vocab);
    for (int s = 0; s < 2; s++) {
        assert_int_equal(e->tokens[s].n, d->tokens[s].n);
        assert_memory_equal(e->tokens[s].at, d->tokens[s].at, (size_t)d->tokens[s].n);
    }
    assert_memory_equal(e->tokenizer->code_point, d->tokenizer->code_point, 4 * (size_t)d->vocab);
    h.known = d->tokenizer;
    data_close(e);
    data_close(open_ok(&h));
    data_tokenizer *other;
    assert_int_equal(data_tokenizer_bytes(&other, &err), 0);
    h.known = other;
    open_bad(&h, AG_EINPUT, "made of other tokens than the model");
    data_tokenizer_free(other);
    data_close(d);

    o.tokenizer = "byte";
    d = open_ok(&o);
    assert_int_equal(data_export_hdf5(d, tmp_path("bytes.h5"), &err), 0);
    h = options("hdf5", tmp_path("bytes.h5"), 8);
    e = open_ok(&h);
    assert_string_equal(data_tokenizer_name(e->tokenizer), "byte");
    data_close(d);
    data_close(e);
}

static void round_trip_images(void **state)
{
    ag_err err = {0};
    data_options o = options("digits", NULL, 8);
    (void)state;
    o.size = 200;
    data_set *d = open_ok(&o);
    assert_int_equal(data_export_hdf5(d, tmp_path("digits.h5"), &err), 0);
    const data_options h = options("hdf5", tmp_path("digits.h5"), 8);
    data_set *e = open_ok(&h);
    for (int s = 0; s < 2; s++) {
        assert_int_equal(e->images[s].n, d->images[s].n);
        assert_memory_equal(e->images[s].at, d->images[s].at, (size_t)d->images[s].n * 784);
        assert_memory_equal(e->images[s].label, d->images[s].label, (size_t)d->images[s].n * 4);
    }
    assert_int_equal(e->n_classes, 10);
    data_close(d);
    data_close(e);
}

/* h5py reads what we write without help. */
static void h5py(void **state)
{
    static const char script[] =
        "/usr/bin/python3 -c \"\n"
        "import h5py, json, sys\n"
        "t = h5py.File(sys.argv[1] + '/own.h5'); d = h5py.File(sys.argv[1] + '/digits.h5')\n"
        "assert t.attrs['format'] == 'tulle-data' and t.attrs['format_version'] == 1\n"
        "assert t['tokenizer'].attrs['kind'] == 'char'\n"
        "v = json.loads(t['tokenizer/vocab_json'][()])\n"
        "text = open(sys.argv[1] + '/text.txt', encoding='utf8').read()\n"
        "ids = list(t['tokens/train'][:]) + list(t['tokens/val'][:])\n"
        "assert ''.join(v[i] for i in ids) == text and v == sorted(set(text))\n"
        "assert [ord(c) for c in v] == list(t['tokenizer/code_points'][:])\n"
        "import hashlib\n"
        "assert t.attrs['source_sha256'] == hashlib.sha256(text.encode()).hexdigest()\n"
        "assert d['train/images'].shape == (180, 28, 28) and d['train/images'].dtype == 'uint8'\n"
        "assert d['test/labels'].shape == (20,) and d['test/labels'].dtype == 'uint8'\n"
        "assert d['train/images'].chunks is None\n"
        "assert d['train/images'].id.get_offset() %% 4096 == 0\n"
        "\" %s";
    char command[sizeof script + 256];
    (void)state;
    if (system("LD_PRELOAD= /usr/bin/python3 -c 'import h5py' >/dev/null 2>&1"))
        skip();
    snprintf(command, sizeof command, script, tmp_dir);
    assert_int_equal(system(command), 0);
}

/* ---- damage: the parent lives, and says bad input or reads something; never anything else ---- */

static void mutate(const char *name, int rounds, uint32_t site)
{
    size_t n;
    int refused_files = 0;
    unsigned char *good = read_all(tmp_path(name), &n), *bad = malloc(n);
    for (int round = 0; round < rounds; round++) {
        uint32_t w[4];
        ag_err err = {0};
        data_set *d = NULL;
        memcpy(bad, good, n);
        ag_philox(1, (uint32_t)round, site, 0, w);
        for (uint32_t k = 0; k <= w[3] % 4;
             k++) { /* mostly in the metadata: bytes that are not 0 */
            uint32_t v[4];
            ag_philox(2, (uint32_t)round, site, k, v);
            size_t at = v[0] % (v[3] % 4 ? (n < 4096 ? n : 4096) : n);
            while (v[3] % 8 && at + 1 < n && !bad[at])
                at++;
            bad[at] = v[1] % 3 ? (unsigned char)v[2] : bad[at] ^ (unsigned char)(1 << v[2] % 8);
        }
        const data_options o =
            options("hdf5", tmp_write("bad.h5", bad, w[0] % 16 ? n : w[1] % n), 8);
        const int rc = data_open(&o, &d, &err);
        if (rc != AG_OK && rc != AG_EINPUT)
            fail_msg("%s, round %d: code %d, %s", name, round, rc, err.msg);
        refused_files += rc != AG_OK;
        data_close(d);
    }
    print_message("%s: %d of %d damaged files refused\n", name, refused_files, rounds);
    assert_true(refused_files > rounds / 20);
    free(good);
    free(bad);
}

static void damage(void **state)
{
    (void)state;
    fill(200);
    const hid_t f = foreign_file("packed.h5");
    put(f, "/tokens/train", 1, N, H5T_STD_U8LE, 500, values);
    put(f, "/tokens/val", 1, N, H5T_STD_I32BE, 0, values);
    H5Fclose(f);
    mutate("packed.h5", 300, 1);
    mutate("own.h5", 200, 2);
    mutate("digits.h5", 100, 3);
}

/* ---- the child that dies ---- */

static void die(void *arg, void *reply)
{
    const int how = *(const int *)arg;
    volatile char *nowhere = NULL;
    if (how == 0)
        abort();
    if (how == 1)
        *nowhere = 1;
    for (volatile int i = 0; how == 2; i++)
        ;
    if (how == 3)
        _exit(0);
    memcpy(reply, "fine", 5);
}

static void guard(void **state)
{
    static const char *const words[] = {"signal 6", "is damaged", "is damaged", "gave up", ""};
    const data_guard g = {1.0, 1 << 20, 0};
    (void)state;
    for (int how = 0; how < 5; how++) {
        ag_err err = {0};
        char reply[8] = "";
        const int rc = data_guard_run(&g, die, &how, reply, sizeof reply, "x.h5", &err);
        assert_int_equal(rc, how < 4 ? AG_EINPUT : AG_OK);
        assert_non_null(strstr(err.msg, words[how]));
        assert_string_equal(reply, how < 4 ? "" : "fine");
    }
}

/* An imported copy that is cut or changed is made anew. */
static void stale_copy(void **state)
{
    char path[600];
    (void)state;
    fill(97);
    const hid_t f = foreign_file("stale.h5");
    put(f, "/tokens/train", 1, N, H5T_STD_I64LE, 0, values);
    H5Fclose(f);
    DIR *old = opendir(tmp_path("tulle/imported"));
    for (struct dirent *e; old && (e = readdir(old));)
        if (e->d_name[0] != '.') {
            snprintf(path, sizeof path, "%s/tulle/imported/%s", tmp_dir, e->d_name);
            unlink(path);
        }
    if (old)
        closedir(old);
    const data_options o = options("hdf5", tmp_path("stale.h5"), 8);
    data_close(open_ok(&o));
    DIR *dir = opendir(tmp_path("tulle/imported"));
    struct dirent *e;
    do
        e = readdir(dir);
    while (e && e->d_name[0] == '.');
    assert_non_null(e);
    snprintf(path, sizeof path, "%s/tulle/imported/%s", tmp_dir, e->d_name);
    closedir(dir);
    for (int round = 0; round < 2; round++) {
        if (round == 0) {
            assert_int_equal(truncate(path, 5000), 0);
        } else {
            FILE *c = fopen(path, "r+b");
            fseek(c, 700, SEEK_SET);
            fputc(0x55, c);
            fclose(c);
        }
        data_set *d = open_ok(&o);
        check_tokens(d, 3600);
        data_close(d);
        assert_int_equal(imported_files(), 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(token_types),
        cmocka_unit_test(named_images),
        cmocka_unit_test(refused),
        cmocka_unit_test(round_trip_tokens),
        cmocka_unit_test(round_trip_images),
        cmocka_unit_test(h5py),
        cmocka_unit_test(damage),
        cmocka_unit_test(guard),
        cmocka_unit_test(stale_copy),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_remove);
}
