/*
 * test_config_files.c -- configuration files: those shipped, malformed ones, random damage.
 *
 * The malformed files of tests/cli/bad_configs stand beside the messages they must give.  Paths
 * start at the root of the source: TULLE_SOURCE, or the current folder.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "autograd/base/io.h"
#include "autograd/base/rng.h"
#include "train/ablation.h"
#include "train/schema.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char root[4096];

static void path_of(char *buf, size_t size, const char *rest)
{
    assert_true((size_t)snprintf(buf, size, "%s/%s", root, rest) < size);
}

static char *read_text(const char *path, size_t *ret_size)
{
    char *text;
    ag_err err = {0};
    if (ag_file_read(path, 1 << 24, &text, ret_size, &err)) fail_msg("%s", err.msg);
    return text;
}

static bool same_values(const train_config *a, const train_config *b)
{
    for (int i = 0; i < TRAIN_KEYS; i++)
        if (train_keys[i].type != TRAIN_GROUP && !train_value_equal(a, b, i)) return false;
    return true;
}

/* ---- files ---- */

static int ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), m = strlen(end);
    return n > m && strcmp(name + n - m, end) == 0;
}

static void test_bad_configs(void **state)
{
    (void)state;
    char dir[5000], here[4096], golden[300];
    int count = 0;
    assert_non_null(getcwd(here, sizeof here));
    path_of(dir, sizeof dir, "tests/cli/bad_configs");
    assert_int_equal(chdir(dir), 0);         /* messages name the file as it was given */
    DIR *d = opendir(".");
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (!ends_with(e->d_name, ".yaml")) continue;
        train_config c;
        ag_err err = {0};
        size_t size;
        train_config_init(&c);
        int code = train_config_load(&c, e->d_name, &err);
        if (!code) code = train_config_check(&c, &err);
        assert_int_equal(code, AG_ECONFIG);
        snprintf(golden, sizeof golden, "%.*s.txt", (int)strlen(e->d_name) - 5, e->d_name);
        char *want = read_text(golden, &size);
        assert_true(size > 0 && want[size - 1] == '\n');
        want[size - 1] = 0;
        assert_string_equal(err.msg, want);
        free(want);
        count++;
    }
    closedir(d);
    assert_int_equal(chdir(here), 0);
    assert_true(count >= 70);
}

static void test_no_file(void **state)
{
    (void)state;
    train_config c;
    ag_err err = {0};
    char dir[] = "/tmp/tulle-config-XXXXXX", path[64], want[128];
    assert_non_null(mkdtemp(dir));
    train_config_init(&c);
    snprintf(path, sizeof path, "%s/none.yaml", dir);
    snprintf(want, sizeof want, "cannot open '%s': No such file or directory", path);
    assert_int_equal(train_config_load(&c, path, &err), AG_ECONFIG);
    assert_string_equal(err.msg, want);
    err = (ag_err){0};
    assert_int_equal(train_config_load(&c, dir, &err), AG_ECONFIG);
    assert_non_null(strstr(err.msg, "is a directory"));
    err = (ag_err){0};
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < 200000; i++) fputs("# long\n", f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(train_config_load(&c, path, &err), AG_ECONFIG);
    assert_non_null(strstr(err.msg, "is too large"));
    unlink(path);
    rmdir(dir);
}

static void test_shipped_configs(void **state)
{
    (void)state;
    static const char *const names[] = {"quickstart", "shakespeare-dense", "shakespeare-sparse",
                                        "shakespeare-cpu", "mnist-dense", "mnist-sparse"};
    train_config c[6];
    char path[5000], rest[64];
    ag_err err = {0};
    for (int i = 0; i < 6; i++) {
        snprintf(rest, sizeof rest, "configs/%s.yaml", names[i]);
        path_of(path, sizeof path, rest);
        train_config_init(&c[i]);
        if (train_config_load(&c[i], path, &err)) fail_msg("%s", err.msg);
        if (train_config_check(&c[i], &err)) fail_msg("%s", err.msg);
        assert_string_equal(c[i].run.name, names[i]);
    }
    assert_int_equal(train_config_d_ff(&c[2]) / c[2].model.ff.block, 24);
    assert_int_equal(train_config_d_ff(&c[5]) / c[5].model.ff.block, 8);
    assert_int_equal(c[3].train.batch, 12);
    assert_true(c[3].schedule.min_lr == 1e-4 && c[3].optim.beta2 == 0.99);
    assert_true(c[4].data.mean == 0.1307);
}

/* Every file in configs/, also those that are added later. */
static void test_all_configs(void **state)
{
    (void)state;
    char dir[5000], path[6000];
    int count = 0;
    path_of(dir, sizeof dir, "configs");
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (!ends_with(e->d_name, ".yaml")) continue;
        train_config c;
        ag_err err = {0};
        train_config_init(&c);
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (train_config_load(&c, path, &err)) fail_msg("%s", err.msg);
        if (train_config_check(&c, &err)) fail_msg("%s", err.msg);
        count++;
    }
    closedir(d);
    assert_true(count >= 6);
}

/* Every arm of every file in configs/ablations. */
static void test_all_ablations(void **state)
{
    (void)state;
    char dir[5000], path[6000];
    int count = 0;
    path_of(dir, sizeof dir, "configs/ablations");
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (!ends_with(e->d_name, ".yaml")) continue;
        static train_ablation a;
        train_config base, c;
        ag_err err = {0};
        train_config_init(&base);
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (train_ablation_load(path, &base, &a, &err)) fail_msg("%s", err.msg);
        for (int i = 0; i < a.n_arms; i++, count++)
            if (train_ablation_config(&a.arm[i], &base, &c, &err))
                fail_msg("%s, arm %s: %s", path, a.arm[i].name, err.msg);
        train_config_init(&base);
        assert_int_equal(train_config_load(&base, path, &err), AG_ECONFIG);
        assert_non_null(strstr(err.msg, "tulle ablate"));
    }
    closedir(d);
    assert_true(count >= 60);
}

/* ---- damage ---- */

/* One random edit: a byte changed, text cut out, a piece of YAML or of the text itself put in. */
static size_t mutate(char *text, size_t size, size_t max, uint64_t seed, uint32_t edit)
{
    static const char *const pieces[] = {"\n", ":", ": ", " ", "\t", "- ", "#", "[", "]", "{", "}",
        "&a ", "*a", "!!int ", "\"", "'", "|\n", ">\n", "? ", "---\n", "...\n", "%YAML 1.1\n", "\\",
        "\xff", "\xc3", "\xef\xbb\xbf", "<<: ", "1e999", "model:\n", "  ff:\n", "    block: 3\n",
        ",", "\r", "null", "~"};
    uint32_t w[4];
    ag_philox(seed, edit, 7, 0, w);
    const size_t at = size ? w[0] % size : 0;
    const char *piece = pieces[w[1] % (sizeof pieces / sizeof pieces[0])];
    char copy[64];
    size_t n = strlen(piece);
    if (w[2] % 4 == 0 && size) {
        text[at] = (char)w[3];
        return size;
    }
    if (w[2] % 4 == 1) {
        n = w[3] % 40 < size - at ? w[3] % 40 : size - at;
        memmove(text + at, text + at + n, size - at - n);
        return size - n;
    }
    if (w[2] % 4 == 2 && size) {
        const size_t from = w[1] % size;
        n = w[3] % sizeof copy < size - from ? w[3] % sizeof copy : size - from;
        memcpy(copy, text + from, n);
        piece = copy;
    }
    if (size + n > max) return size;
    memmove(text + at + n, text + at, size - at);
    memcpy(text + at, piece, n);
    return size + n;
}

static void test_mutations(void **state)
{
    (void)state;
    enum { MAX = 1 << 16, RUNS = 5000 };
    char path[5000], *dump, *start[2];
    size_t sizes[2];
    train_config c, back;
    ag_err err = {0};
    int good = 0, bad = 0;
    path_of(path, sizeof path, "configs/shakespeare-sparse.yaml");
    start[0] = read_text(path, &sizes[0]);
    train_config_init(&c);
    assert_int_equal(train_config_dump(&c, TRAIN_DUMP_PLAIN, &start[1], &err), AG_OK);
    sizes[1] = strlen(start[1]);
    for (uint64_t seed = 0; seed < RUNS; seed++) {
        char *text = malloc(MAX);
        assert_non_null(text);
        size_t size = sizes[seed % 2];
        memcpy(text, start[seed % 2], size);
        for (uint32_t i = 0; i <= seed % 5; i++) size = mutate(text, size, MAX, seed, i);
        char *exact = malloc(size ? size : 1);       /* so that a read beyond it is seen */
        assert_non_null(exact);
        memcpy(exact, text, size);
        free(text);
        err = (ag_err){0};
        train_config_init(&c);
        const int code = train_config_parse(&c, exact, size, "m.yaml", &err);
        assert_true(code == AG_OK || (code == AG_ECONFIG && strlen(err.msg) > 10));
        code ? bad++ : good++;
        if (!code) {
            (void)train_config_check(&c, &err);
            assert_int_equal(train_config_dump(&c, TRAIN_DUMP_ANNOTATED, &dump, NULL), AG_OK);
            train_config_init(&back);
            assert_int_equal(train_config_parse(&back, dump, strlen(dump), "d.yaml", &err), AG_OK);
            assert_true(same_values(&c, &back));
            free(dump);
        }
        free(exact);
    }
    free(start[0]);
    free(start[1]);
    assert_true(good > RUNS / 50 && bad > RUNS / 4);             /* both kinds were met */
}

int main(void)
{
    const char *source = getenv("TULLE_SOURCE");
    if (source) snprintf(root, sizeof root, "%s", source);
    else if (!getcwd(root, sizeof root)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_configs),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_shipped_configs),
        cmocka_unit_test(test_all_configs), cmocka_unit_test(test_all_ablations),
        cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
