/*
 * test_checkpoint.c -- a checkpoint comes back bit for bit, or with the reason why not.
 */
#include "train/h5.h"
#include "train/seal.h"

#include "tests/ckpt_sample.h"

#include <sys/wait.h>

static train_ckpt_file *must_open(const char *path)
{
    ag_err err = { 0 };
    train_ckpt_file *f = NULL;
    if (train_ckpt_open(path, &f, &err)) fail_msg("%s", err.msg);
    return f;
}

static void assert_refused(const char *path, int code, const char *words)
{
    ag_err err = { 0 };
    train_ckpt_file *f = NULL;
    assert_int_equal(train_ckpt_open(path, &f, &err), code);
    assert_null(f);
    assert_non_null(strstr(err.msg, path));
    if (!strstr(err.msg, words)) fail_msg("'%s' is not in '%s'", words, err.msg);
}

/* ---- whole files ---------------------------------------------------------------------------- */

static void test_round_trip(void **state)
{
    (void)state;
    const train_ckpt c = contents(12);
    save(in_dir("a"), &c);
    assert_int_equal(whole_step(in_dir("a")), 12);
    train_ckpt_file *f = must_open(in_dir("a"));
    const train_ckpt_head *h = train_ckpt_file_head(f);
    assert_int_equal(h->tokens_seen, 12000);
    assert_true(h->seed == UINT64_MAX && isnan(h->best_metric) && h->best_step == -1);
    int n;
    const train_ckpt_info *t = train_ckpt_file_tensors(f, &n);
    assert_int_equal(n, N_TENSORS);
    assert_string_equal(t[0].path, "model/w6");
    assert_string_equal(t[N_TENSORS / 2 - 1].path, "model/w0");
    assert_string_equal(t[N_TENSORS / 2].path, "optimizer/adamw/m/w6");
    assert_int_equal(t[0].ndim, 0);
    assert_int_equal(t[0].count, 1);
    assert_int_equal(t[1].ndim, 3);
    assert_int_equal(t[1].count, 0);
    assert_int_equal(t[2].dim[1], COLS);
    train_ckpt_close(f);
}

static void test_attributes_and_blobs(void **state)
{
    (void)state;
    const train_ckpt c = contents(1);
    ag_err err = { 0 };
    double d;
    int64_t i = 0;
    uint64_t u;
    char *s;
    size_t size;
    save(in_dir("a"), &c);
    train_ckpt_file *f = must_open(in_dir("a"));
    assert_int_equal(train_ckpt_get_f64(f, "train/scaler", "scale", &d, &err), AG_OK);
    assert_true(d == 65536.0);
    assert_int_equal(train_ckpt_get_i64(f, "train/sampler", "cursor", &i, &err), AG_OK);
    assert_int_equal(i, -5);
    assert_int_equal(train_ckpt_get_u64(f, "train/sampler", "seed", &u, &err), AG_OK);
    assert_true(u == UINT64_MAX);
    assert_int_equal(train_ckpt_get_text(f, "model/w0", "init", &s, &err), AG_OK);
    assert_string_equal(s, "normal");
    free(s);
    assert_int_equal(train_ckpt_read_text(f, "config", "yaml", &s, &err), AG_OK);
    assert_string_equal(s, yaml);
    free(s);
    assert_int_equal(train_ckpt_read_bytes(f, "tokenizer", "merges", &s, &size, &err), AG_OK);
    assert_int_equal(size, sizeof merges);
    assert_memory_equal(s, merges, size);
    free(s);
    assert_int_equal(train_ckpt_read_bytes(f, "tokenizer", "none", &s, &size, &err), AG_OK);
    assert_int_equal(size, 0);
    free(s);
    assert_true(train_ckpt_has(f, "tokenizer/merges") && train_ckpt_has(f, "train/scaler"));
    assert_false(train_ckpt_has(f, "tokenizer/other/merges"));
    assert_true(train_ckpt_has_attr(f, "train/scaler", "scale"));
    assert_false(train_ckpt_has_attr(f, "train/none", "scale"));
    assert_int_equal(train_ckpt_get_i64(f, "train/scaler", "scale", &i, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "attribute 'scale' of 'train/scaler' is not of type integer"));
    err = (ag_err){ 0 };
    assert_int_equal(train_ckpt_get_i64(f, "train/sampler", "epoch", &i, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "no attribute 'epoch' of 'train/sampler'"));
    assert_int_equal(i, -5);
    train_ckpt_close(f);
}

static void test_equal_contents_equal_bytes(void **state)
{
    (void)state;
    char *a, *b;
    size_t na, nb;
    const train_ckpt c = contents(3);
    save(in_dir("a"), &c);
    sleep(1);                        /* so that a stored time would show */
    save(in_dir("b"), &c);
    assert_int_equal(ag_file_read(in_dir("a"), 1 << 20, &a, &na, NULL), AG_OK);
    assert_int_equal(ag_file_read(in_dir("b"), 1 << 20, &b, &nb, NULL), AG_OK);
    assert_int_equal(na, nb);
    assert_memory_equal(a, b, na);
    free(a);
    free(b);
}

static void test_two_open_at_once(void **state)
{
    (void)state;
    train_ckpt c = contents(1);
    save(in_dir("a"), &c);
    train_ckpt_file *f = must_open(in_dir("a"));
    c = contents(2);
    save(in_dir("a"), &c);           /* replaces the file under the open one */
    train_ckpt_file *g = must_open(in_dir("a"));
    assert_int_equal(train_ckpt_file_head(f)->step, 1);
    assert_int_equal(train_ckpt_file_head(g)->step, 2);
    float x[ROWS * COLS], y[ROWS * COLS];
    const int64_t dim[] = { ROWS, COLS };
    assert_int_equal(train_ckpt_read(f, "model", "w0", 2, dim, false, x, NULL), AG_OK);
    assert_int_equal(train_ckpt_read(g, "model", "w0", 2, dim, false, y, NULL), AG_OK);
    assert_memory_not_equal(x, y, sizeof x);
    train_ckpt_close(f);
    train_ckpt_close(g);
}

static void test_stats(void **state)
{
    (void)state;
    train_ckpt c = contents(1);
    train_ckpt_stats s;
    c.allow_nonfinite = true;
    for (int i = 0; i < ROWS * COLS; i++) weights[4][i] = i % 4 ? 2 : 0;
    weights[4][1] = NAN;
    weights[4][2] = -INFINITY;
    save(in_dir("a"), &c);
    train_ckpt_file *f = must_open(in_dir("a"));
    assert_int_equal(train_ckpt_stat(f, 2, &s, NULL), AG_OK);
    assert_int_equal(s.nonfinite, 2);
    assert_true(s.zeros == 0.25);
    assert_true(fabs(s.rms - sqrt(4.0 * 448 / 598)) < 1e-12);
    assert_int_equal(train_ckpt_stat(f, 1, &s, NULL), AG_OK);
    assert_true(s.rms == 0 && s.zeros == 0 && s.nonfinite == 0);
    train_ckpt_close(f);
}

/* ---- what a reader refuses ------------------------------------------------------------------ */

static void test_wrong_model(void **state)
{
    (void)state;
    static float x[ROWS * COLS];
    const int64_t turned[] = { COLS, ROWS }, right[] = { ROWS, COLS };
    const train_ckpt c = contents(1);
    ag_err err = { 0 };
    save(in_dir("a"), &c);
    train_ckpt_file *f = must_open(in_dir("a"));
    assert_int_equal(train_ckpt_read(f, "model", "w0", 2, turned, false, x, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "data set 'model/w0' has shape [20, 30], the model needs "
                                    "[30, 20]; is it a checkpoint of another model?"));
    err = (ag_err){ 0 };
    assert_int_equal(train_ckpt_read(f, "model", "w0", 1, right, false, x, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "needs [20]"));
    err = (ag_err){ 0 };
    assert_int_equal(train_ckpt_read(f, "model", "w99", 2, right, false, x, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "no data set 'model/w99'"));
    err = (ag_err){ 0 };
    assert_int_equal(train_ckpt_read(f, "ema/x", "w0", 2, right, false, x, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "no data set 'ema/x/w0'"));
    err = (ag_err){ 0 };
    assert_int_equal(train_ckpt_read(f, "tokenizer", "none", 2, right, false, x, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "not of type float32"));
    assert_true(x[0] == 0);
    train_ckpt_close(f);
}

static void test_nonfinite(void **state)
{
    (void)state;
    static float x[ROWS * COLS];
    const int64_t dim[] = { ROWS, COLS };
    train_ckpt c = contents(1);
    ag_err err = { 0 };
    weights[7][11] = INFINITY;
    weights[8][0] = NAN;
    assert_int_equal(train_ckpt_save(in_dir("a"), NULL, &c, &err), AG_EDIVERGED);
    assert_non_null(strstr(err.msg, "tensor 'optimizer/adamw/m/w3' holds inf at element 11"));
    assert_false(ag_path_exists(in_dir("a")));
    c.allow_nonfinite = true;
    save(in_dir("a"), &c);
    train_ckpt_file *f = must_open(in_dir("a"));
    err = (ag_err){ 0 };
    assert_int_equal(train_ckpt_read(f, "model", "w2", 2, dim, false, x, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "data set 'model/w2' holds nan at element 0"));
    assert_int_equal(train_ckpt_read(f, "model", "w2", 2, dim, true, x, &err), AG_OK);
    assert_true(isnan(x[0]));
    train_ckpt_close(f);
}

/* A sealed HDF5 file with a root made here, to see what a reader asks of it. */
static void save_root(const char *path, const char *format, int64_t version, signed char complete,
                      bool with_step)
{
    train_h5 *h;
    unsigned char *image;
    size_t size;
    const int64_t zero = 0;
    const double none = NAN;
    assert_int_equal(train_h5_new(1000, &h, NULL), AG_OK);
    assert_int_equal(train_h5_put_attr(h, "", "format", TRAIN_H5_TEXT, format, NULL), AG_OK);
    train_h5_put_attr(h, "", "format_version", TRAIN_H5_I64, &version, NULL);
    train_h5_put_attr(h, "", "complete", TRAIN_H5_BOOL, &complete, NULL);
    if (with_step) train_h5_put_attr(h, "", "step", TRAIN_H5_I64, &zero, NULL);
    train_h5_put_attr(h, "", "tokens_seen", TRAIN_H5_I64, &zero, NULL);
    train_h5_put_attr(h, "", "seed", TRAIN_H5_U64, &zero, NULL);
    train_h5_put_attr(h, "", "best_metric", TRAIN_H5_F64, &none, NULL);
    train_h5_put_attr(h, "", "best_step", TRAIN_H5_I64, &zero, NULL);
    train_h5_put_attr(h, "some/newer/group", "x", TRAIN_H5_F64, &none, NULL);
    assert_int_equal(train_h5_image(h, TRAIN_SEAL_SIZE, &image, &size, NULL), AG_OK);
    assert_int_equal(train_h5_close(h, NULL), AG_OK);
    train_seal_write(image, size);
    assert_int_equal(ag_file_replace(path, image, size + TRAIN_SEAL_SIZE, NULL), AG_OK);
    free(image);
}

static void test_format(void **state)
{
    (void)state;
    const char *p = in_dir("a");
    save_root(p, "tulle-checkpoint", 1, 1, true);
    train_ckpt_close(must_open(p));
    save_root(p, "tulle-checkpoint", 2, 1, true);
    assert_refused(p, AG_EINPUT, "format version 2, this program reads up to 1");
    save_root(p, "tulle-checkpoint", 1, 0, true);
    assert_refused(p, AG_EINPUT, "incomplete");
    save_root(p, "other", 1, 1, true);
    assert_refused(p, AG_EINPUT, "format is 'other'");
    save_root(p, "tulle-checkpoint", 1, 1, false);
    assert_refused(p, AG_EINPUT, "no attribute 'step' of '/'");
    assert_refused(in_dir("none"), AG_EIO, "No such file");
    assert_refused(dir, AG_EINPUT, "directory");
}

static void test_save_errors(void **state)
{
    (void)state;
    train_ckpt c = contents(1);
    ag_err err = { 0 };
    tensors[5] = tensors[7];
    assert_int_equal(train_ckpt_save(in_dir("a"), NULL, &c, &err), AG_EFAIL);
    assert_non_null(strstr(err.msg, "cannot create data set 'optimizer/adamw/m/w3': HDF5: "));
    c = contents(1);
    tensors[5].dim[1] = -1;
    err = (ag_err){ 0 };
    assert_int_equal(train_ckpt_save(in_dir("a"), NULL, &c, &err), AG_ESHAPE);
    tensors[5].ndim = 5;
    err = (ag_err){ 0 };
    assert_int_equal(train_ckpt_save(in_dir("a"), NULL, &c, &err), AG_ESHAPE);
    c = contents(1);
    tensors[5].group = "model/w0";   /* a data set, comes later in the file */
    err = (ag_err){ 0 };
    assert_int_equal(train_ckpt_save(in_dir("a"), NULL, &c, &err), AG_EFAIL);
    c = contents(1);
    err = (ag_err){ 0 };
    assert_int_equal(train_ckpt_save(in_dir("no/a"), NULL, &c, &err), AG_EIO);
    assert_false(ag_path_exists(in_dir("a")));
}

/* h5py reads it unaided: names, shapes, values, text as str. */
static void test_h5py(void **state)
{
    (void)state;
    const char *root = getenv("TULLE_SOURCE");
    char command[2 * PATH_MAX];
    const train_ckpt c = contents(7);
    save(in_dir("a"), &c);
    snprintf(command, sizeof command, "/usr/bin/python3 '%s/tests/cli/h5py_reads.py' '%s'",
             root ? root : ".", in_dir("a"));
    const int status = system(command);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) skip();
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_round_trip, clean),
        cmocka_unit_test_teardown(test_attributes_and_blobs, clean),
        cmocka_unit_test_teardown(test_equal_contents_equal_bytes, clean),
        cmocka_unit_test_teardown(test_two_open_at_once, clean),
        cmocka_unit_test_teardown(test_stats, clean),
        cmocka_unit_test_teardown(test_wrong_model, clean),
        cmocka_unit_test_teardown(test_nonfinite, clean),
        cmocka_unit_test_teardown(test_format, clean),
        cmocka_unit_test_teardown(test_save_errors, clean),
        cmocka_unit_test_teardown(test_h5py, clean),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
