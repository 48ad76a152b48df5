/*
 * test_damage.c -- truncated and changed checkpoints are refused, full disks and kills lose none.
 */
#include "train/seal.h"

#include "tests/ckpt_sample.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

static void assert_refused(const char *path, int code, const char *words)
{
    ag_err err = { 0 };
    train_ckpt_file *f = NULL;
    assert_int_equal(train_ckpt_open(path, &f, &err), code);
    assert_null(f);
    assert_non_null(strstr(err.msg, path));
    if (!strstr(err.msg, words)) fail_msg("'%s' is not in '%s'", words, err.msg);
}

/* ---- damage --------------------------------------------------------------------------------- */

static char *saved_bytes(size_t *ret_size)
{
    const train_ckpt c = contents(4);
    char *data;
    save(in_dir("a"), &c);
    assert_int_equal(ag_file_read(in_dir("a"), 1 << 20, &data, ret_size, NULL), AG_OK);
    return data;
}

static void write_plain(const char *path, const char *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static void test_truncated(void **state)
{
    (void)state;
    size_t size;
    char *data = saved_bytes(&size), words[64];
    int places = 0;
    for (size_t n = 0; n < size; n += n < 300 || n > size - 700 ? 1 : 331, places++) {
        write_plain(in_dir("b"), data, n);
        if (n < 48) strcpy(words, "truncated: ");
        else snprintf(words, sizeof words, "truncated: %zu of %zu bytes", n, size);
        assert_refused(in_dir("b"), AG_EINPUT, words);
    }
    assert_true(places > 600);
    free(data);
}

static void test_bit_flips(void **state)
{
    (void)state;
    size_t size;
    char *data = saved_bytes(&size);
    uint64_t x = 88172645463325252u;
    for (size_t i = 0; i < 2000 + 8 * TRAIN_SEAL_SIZE; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        const size_t bit = i < 2000 ? x % (8 * size) : 8 * size - 1 - (i - 2000);
        data[bit / 8] ^= (char)(1 << bit % 8);
        write_plain(in_dir("b"), data, size);
        assert_refused(in_dir("b"), AG_EINPUT, "damaged");
        data[bit / 8] ^= (char)(1 << bit % 8);
    }
    write_plain(in_dir("b"), data, size);
    assert_int_equal(whole_step(in_dir("b")), 4);
    free(data);
}

static void test_other_files(void **state)
{
    (void)state;
    size_t size;
    char *data = saved_bytes(&size);
    write_plain(in_dir("b"), "This is no HDF5 file, but longer than the seal of a checkpoint.", 60);
    assert_refused(in_dir("b"), AG_EINPUT, "no HDF5 signature");
    write_plain(in_dir("b"), data, size - TRAIN_SEAL_SIZE);
    assert_refused(in_dir("b"), AG_EINPUT, "truncated");
    data[size - 1] ^= 1;
    write_plain(in_dir("b"), data, size);
    assert_refused(in_dir("b"), AG_EINPUT, "no valid seal");
    free(data);
}

/* ---- full disks and kills ------------------------------------------------------------------- */

static int save_limited(void)
{
    const train_ckpt c = contents(9);
    const struct rlimit limit = { 20000, 20000 };
    ag_err err = { 0 };
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit)) return 98;
    if (train_ckpt_save(in_dir("a"), in_dir("k"), &c, &err) != AG_EIO) return 1;
    return strstr(err.msg, "File too large") ? 0 : 2;
}

static void test_file_size_limit(void **state)
{
    (void)state;
    const train_ckpt c = contents(8);
    int status;
    save(in_dir("a"), &c);
    const pid_t pid = fork();
    if (pid == 0) _exit(save_limited());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(whole_step(in_dir("a")), 8);
    assert_false(ag_path_exists(in_dir("k")));
}

/* Saves on a file system that gets full; skipped where none can be mounted. */
static void test_disk_full(void **state)
{
    (void)state;
    ag_err err = { 0 };
    int failures = 0;
    if (mount("tulle-test", dir, "tmpfs", 0, "size=128k")) skip();
    train_ckpt c = contents(1);
    const int first = train_ckpt_save(in_dir("a"), NULL, &c, &err);
    char filler[4096] = { 0 }, name[16];
    for (int i = 0; i < 32; i++) {
        snprintf(name, sizeof name, "f%d", i);
        FILE *f = fopen(in_dir(name), "wb");
        if (f) fwrite(filler, 1, sizeof filler, f);
        if (f) fclose(f);
        c = contents(2 + i);
        err = (ag_err){ 0 };
        failures += train_ckpt_save(in_dir("a"), NULL, &c, &err) == AG_EIO;
        if (whole_step(in_dir("a")) < 1) break;
    }
    const int64_t step = whole_step(in_dir("a"));
    assert_int_equal(umount(dir), 0);
    assert_int_equal(first, AG_OK);
    assert_true(step >= 1);
    assert_true(failures > 5);
    assert_non_null(strstr(err.msg, "No space left on device"));
}

/* A child that saves one step after the other and writes a byte to fd after each. */
static pid_t start_saver(int64_t step, int fd)
{
    const pid_t pid = fork();
    if (pid) return pid;
    for (;; step++) {
        const train_ckpt c = contents(step);
        if (train_ckpt_save(in_dir("a"), in_dir("k"), &c, NULL) || write(fd, "s", 1) != 1) _exit(1);
    }
}

/* Whenever the saver is killed, one of two generations is whole, and nothing saved is lost. */
static void test_kills(void **state)
{
    (void)state;
    int64_t newest = 0;
    uint32_t x = 1;
    for (int round = 0; round < 50; round++) {
        int saved[2], status;
        char c;
        assert_int_equal(pipe(saved), 0);
        const pid_t pid = start_saver(newest + 1, saved[1]);
        close(saved[1]);
        assert_int_equal(read(saved[0], &c, 1), 1);
        x = x * 1664525u + 1013904223u;
        usleep((x >> 8) % 20000);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        int64_t reported = newest + 1;
        while (read(saved[0], &c, 1) == 1) reported++;
        close(saved[0]);
        const int64_t a = whole_step(in_dir("a")), k = whole_step(in_dir("k"));
        newest = a > k ? a : k;
        assert_true(newest >= reported);
        if (ag_path_exists(in_dir("a"))) assert_int_equal(a, newest);
    }
    assert_true(newest >= 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_truncated, clean),
        cmocka_unit_test_teardown(test_bit_flips, clean),
        cmocka_unit_test_teardown(test_other_files, clean),
        cmocka_unit_test_teardown(test_file_size_limit, clean),
        cmocka_unit_test_teardown(test_disk_full, clean),
        cmocka_unit_test_teardown(test_kills, clean),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
