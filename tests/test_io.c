/*
 * test_io.c -- files are replaced whole or not at all; hashes agree with their standards.
 */
#include "autograd/base/hash.h"
#include "autograd/base/io.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/tulle-io-XXXXXX";

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

/* Files in the folder, "." and ".." not counted; removes them if asked. */
static int entries(bool remove)
{
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        n++;
        if (remove && unlinkat(dirfd(d), e->d_name, 0)) unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR);
    }
    if (d) closedir(d);
    return n;
}

static int clean(void **state)
{
    (void)state;
    entries(true);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir);
}

static const char *in_dir(const char *name)
{
    static char path[8][PATH_MAX];
    static int turn;
    turn = (turn + 1) % 8;
    snprintf(path[turn], PATH_MAX, "%s/%s", dir, name);
    return path[turn];
}

static void assert_file(const char *path, const char *text)
{
    char *data;
    size_t size;
    ag_err err = { 0 };
    assert_int_equal(ag_file_read(path, 1 << 20, &data, &size, &err), AG_OK);
    assert_int_equal(size, strlen(text));
    assert_string_equal(data, text);
    free(data);
}

/* Runs f in a child, as nobody where this user is root and drop is set; its exit status, -1 if
 * killed. */
static int in_child(int (*f)(void), bool drop)
{
    const pid_t pid = fork();
    int status;
    if (pid == 0) _exit(drop && geteuid() == 0 && setresuid(65534, 65534, 65534) ? 99 : f());
    assert_true(pid > 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* ---- hashes --------------------------------------------------------------------------------- */

static void assert_sha(const char *data, size_t size, size_t piece, const char *want)
{
    ag_sha256 s;
    uint8_t digest[32];
    char hex[65];
    ag_sha256_init(&s);
    for (size_t i = 0; i < size; i += piece)
        ag_sha256_add(&s, data + i, piece < size - i ? piece : size - i);
    ag_sha256_end(&s, digest);
    ag_sha256_hex(digest, hex);
    assert_string_equal(hex, want);
}

/* The examples of FIPS 180 (one block, two blocks, a million letters) and the empty message. */
static void test_sha256(void **state)
{
    (void)state;
    static const char two[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    static const char million_sha[] =
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
    char *million = malloc(1000000);
    assert_non_null(million);
    memset(million, 'a', 1000000);
    assert_sha("", 0, 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_sha("abc", 3, 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    for (size_t piece = 1; piece <= 56; piece++)
        assert_sha(two, 56, piece,
                   "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    assert_sha(million, 1000000, 1000000, million_sha);
    assert_sha(million, 1000000, 1, million_sha);
    for (size_t piece = 63; piece <= 129; piece++) assert_sha(million, 1000000, piece, million_sha);
    free(million);
}

/* RFC 3720 appendix B.4, and pieces of every length give the whole. */
static void test_crc32c(void **state)
{
    (void)state;
    uint8_t x[32];
    assert_int_equal(ag_crc32c(0, "123456789", 9), 0xe3069283);
    memset(x, 0, 32);
    assert_int_equal(ag_crc32c(0, x, 32), 0x8a9136aa);
    memset(x, 0xff, 32);
    assert_int_equal(ag_crc32c(0, x, 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++) x[i] = (uint8_t)i;
    assert_int_equal(ag_crc32c(0, x, 32), 0x46dd794e);
    for (size_t n = 0; n <= 32; n++)
        assert_int_equal(ag_crc32c(ag_crc32c(0, x, n), x + n, 32 - n), 0x46dd794e);
}

/* ---- reading -------------------------------------------------------------------------------- */

static void test_read_and_map(void **state)
{
    (void)state;
    char *data;
    size_t size;
    ag_map map;
    ag_err err = { 0 };
    assert_int_equal(ag_file_replace(in_dir("a"), "hello", 5, &err), AG_OK);
    assert_file(in_dir("a"), "hello");
    assert_int_equal(ag_file_map(in_dir("a"), &map, &err), AG_OK);
    assert_int_equal(map.size, 5);
    assert_memory_equal(map.data, "hello", 5);
    ag_map_forget(&map);
    assert_memory_equal(map.data, "hello", 5);
    ag_map_release(&map);
    ag_map_release(&map);
    ag_map_forget(&map);
    assert_int_equal(ag_file_replace(in_dir("a"), "", 0, &err), AG_OK);
    assert_file(in_dir("a"), "");
    assert_int_equal(ag_file_map(in_dir("a"), &map, &err), AG_OK);
    assert_int_equal(map.size, 0);
    assert_non_null(map.data);
    ag_map_release(&map);
    assert_int_equal(ag_file_replace(in_dir("a"), "hello", 5, &err), AG_OK);
    assert_int_equal(ag_file_read(in_dir("a"), 4, &data, &size, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "5 bytes, the limit is 4"));
}

static void test_read_errors(void **state)
{
    (void)state;
    char *data = NULL;
    size_t size = 7;
    ag_map map;
    ag_err err = { 0 };
    assert_int_equal(ag_file_read(in_dir("none"), 10, &data, &size, &err), AG_EIO);
    assert_non_null(strstr(err.msg, "/none': No such file"));
    assert_null(data);
    assert_int_equal(size, 7);
    err = (ag_err){ 0 };
    assert_int_equal(ag_file_map(dir, &map, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "is a directory"));
    assert_int_equal(mkfifo(in_dir("pipe"), 0600), 0);
    err = (ag_err){ 0 };
    assert_int_equal(ag_file_read(in_dir("pipe"), 10, &data, &size, &err), AG_EINPUT);
    assert_int_equal(ag_file_read(in_dir("pipe"), 10, &data, &size, NULL), AG_EINPUT);
}

/* ---- replacing ------------------------------------------------------------------------------ */

static void test_replace(void **state)
{
    (void)state;
    char here[PATH_MAX];
    ag_err err = { 0 };
    assert_int_equal(ag_file_replace(in_dir("f"), "one", 3, &err), AG_OK);
    assert_int_equal(ag_file_replace(in_dir("f"), "two!", 4, &err), AG_OK);
    assert_file(in_dir("f"), "two!");
    assert_int_equal(entries(false), 1);
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(dir), 0);
    assert_int_equal(ag_file_replace("f", "three", 5, &err), AG_OK);     /* no folder in it */
    assert_int_equal(chdir(here), 0);
    assert_file(in_dir("f"), "three");
}

static void test_replace_keep(void **state)
{
    (void)state;
    ag_err err = { 0 };
    const char *f = in_dir("f"), *k = in_dir("k");
    assert_int_equal(ag_file_replace_keep(f, k, "1", 1, &err), AG_OK);
    assert_false(ag_path_exists(k));
    assert_int_equal(ag_file_replace_keep(f, k, "2", 1, &err), AG_OK);
    assert_int_equal(ag_file_replace_keep(f, k, "3", 1, &err), AG_OK);
    assert_file(f, "3");
    assert_file(k, "2");
    assert_int_equal(entries(false), 2);
}

static void test_replace_errors(void **state)
{
    (void)state;
    ag_err err = { 0 };
    assert_int_equal(ag_file_replace(in_dir("no/f"), "x", 1, &err), AG_EIO);
    assert_non_null(strstr(err.msg, "/no/f'"));
    assert_non_null(strstr(err.msg, "No such file or directory"));
    err = (ag_err){ 0 };
    assert_int_equal(ag_file_replace(in_dir(""), "x", 1, &err), AG_EIO);
    assert_int_equal(mkdir(in_dir("d"), 0700), 0);
    err = (ag_err){ 0 };
    assert_int_equal(ag_file_replace(in_dir("d"), "x", 1, &err), AG_EIO);
    assert_non_null(strstr(err.msg, "rename"));
    assert_int_equal(entries(false), 1);             /* no temporary file */
    char long_name[PATH_MAX + 8];
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    err = (ag_err){ 0 };
    assert_int_equal(ag_file_replace(long_name, "x", 1, &err), AG_EIO);
}

static int replace_limited(void)
{
    static char big[100000];
    ag_err err = { 0 };
    const struct rlimit limit = { 50000, 50000 };
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit)) return 98;
    if (ag_file_replace(in_dir("f"), big, sizeof big, &err) != AG_EIO) return 1;
    return strstr(err.msg, "write: File too large") ? 0 : 2;
}

static int replace_denied(void)
{
    ag_err err = { 0 };
    if (ag_file_replace(in_dir("f"), "new", 3, &err) != AG_EIO) return 1;
    return strstr(err.msg, "Permission denied") ? 0 : 2;
}

/* A file that grows too large, and a folder that may not be written: the old contents stay. */
static void test_replace_refused(void **state)
{
    (void)state;
    ag_err err = { 0 };
    assert_int_equal(ag_file_replace(in_dir("f"), "old", 3, &err), AG_OK);
    assert_int_equal(in_child(replace_limited, false), 0);
    assert_int_equal(chmod(dir, 0555), 0);
    assert_int_equal(in_child(replace_denied, true), 0);
    assert_int_equal(chmod(dir, 0700), 0);
    assert_file(in_dir("f"), "old");
    assert_int_equal(entries(false), 1);
}

/* What killed processes left goes, what others own or live processes write stays. */
static void test_leftovers(void **state)
{
    (void)state;
    ag_err err = { 0 };
    const pid_t dead = fork();
    char name[64], live[64];
    if (dead == 0) _exit(0);
    waitpid(dead, NULL, 0);
    snprintf(name, sizeof name, ".f.tmp-%ld", (long)dead);
    snprintf(live, sizeof live, ".f.tmp-%ld", (long)getppid());
    assert_int_equal(ag_file_replace(in_dir(name), "x", 1, &err), AG_OK);
    assert_int_equal(ag_file_replace(in_dir(live), "x", 1, &err), AG_OK);
    assert_int_equal(ag_file_replace(in_dir(".f.tmp-12x"), "x", 1, &err), AG_OK);
    assert_int_equal(ag_file_replace(in_dir(".g.tmp-1"), "x", 1, &err), AG_OK);
    snprintf(name, sizeof name, ".f.tmp-%ld", (long)getpid());
    assert_int_equal(ag_file_replace(in_dir(name), "x", 1, &err), AG_OK);
    assert_int_equal(entries(false), 5);
    assert_int_equal(ag_file_replace(in_dir("f"), "x", 1, &err), AG_OK);
    assert_int_equal(entries(false), 4);
    assert_true(ag_path_exists(in_dir(live)));
    assert_true(ag_path_exists(in_dir(".f.tmp-12x")));
    assert_true(ag_path_exists(in_dir(".g.tmp-1")));
}

/* A reader beside a writer never sees anything but whole contents; nor after a kill. */
static void test_replace_is_atomic(void **state)
{
    (void)state;
    enum { N = 20000 };
    static char x[N + 1];
    const char *path = in_dir("f");
    memset(x, 'a', N);
    assert_int_equal(ag_file_replace(path, x, N, NULL), AG_OK);
    for (int round = 0; round < 20; round++) {
        const pid_t pid = fork();
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);    /* a test that fails does not come to kill it */
            for (int i = 0;; i++) {
                memset(x, 'a' + i % 26, N);
                if (ag_file_replace(path, x, N, NULL)) _exit(1);
            }
        }
        for (int i = 0; i < 50; i++) {
            char *data;
            size_t size;
            assert_int_equal(ag_file_read(path, N, &data, &size, NULL), AG_OK);
            assert_int_equal(size, N);
            for (int k = 1; k < N; k++) assert_int_equal(data[k], data[0]);
            free(data);
        }
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    assert_int_equal(ag_file_replace(path, "end", 3, NULL), AG_OK);
    assert_int_equal(entries(false), 1);
}

/* ---- folders -------------------------------------------------------------------------------- */

static void test_dir_make(void **state)
{
    (void)state;
    ag_err err = { 0 };
    assert_int_equal(ag_dir_make(in_dir("a/b//c/"), &err), AG_OK);
    assert_int_equal(ag_dir_make(in_dir("a/b/c"), &err), AG_OK);
    assert_int_equal(ag_dir_make("/", &err), AG_OK);
    assert_int_equal(ag_file_replace(in_dir("a/f"), "", 0, &err), AG_OK);
    assert_int_equal(ag_dir_make(in_dir("a/f/g"), &err), AG_EIO);
    assert_non_null(strstr(err.msg, "/a/f': a file of that name exists"));
    err = (ag_err){ 0 };
    assert_int_equal(ag_dir_make("", &err), AG_EIO);
    unlink(in_dir("a/f"));
    rmdir(in_dir("a/b/c"));
    rmdir(in_dir("a/b"));
}

static int lock_again(void)
{
    ag_lock lock;
    ag_err err = { 0 };
    char who[32];
    snprintf(who, sizeof who, "process %ld on", (long)getppid());
    if (ag_dir_lock(dir, &lock, &err) != AG_ELOCKED) return 1;
    return strstr(err.msg, who) ? 0 : 2;
}

static int lock_free(void)
{
    ag_lock lock;
    return ag_dir_lock(dir, &lock, NULL) ? 1 : 0;
}

static void test_lock(void **state)
{
    (void)state;
    ag_lock lock;
    ag_err err = { 0 };
    assert_int_equal(ag_dir_lock(dir, &lock, &err), AG_OK);
    assert_int_equal(in_child(lock_again, false), 0);
    ag_lock_release(&lock);
    assert_int_equal(lock.fd, -1);
    ag_lock_release(&lock);
    assert_int_equal(in_child(lock_free, false), 0); /* which ends without a release */
    assert_int_equal(ag_dir_lock(dir, &lock, &err), AG_OK);
    ag_lock_release(&lock);
    assert_int_equal(ag_dir_lock(in_dir("none"), &lock, &err), AG_EIO);
}

/* A child that takes the lock and holds it until it is killed; exit status 0: it was refused. */
static pid_t start_locker(int ready)
{
    const pid_t pid = fork();
    if (pid) return pid;
    ag_lock lock;
    const int rc = ag_dir_lock(dir, &lock, NULL);
    if (rc || write(ready, "x", 1) != 1) _exit(rc == AG_ELOCKED ? 0 : 1);
    for (;;) pause();
}

/* The lock of a killed process is free at once, and of many that start together one wins. */
static void test_lock_killed(void **state)
{
    (void)state;
    enum { N = 50 };
    ag_lock lock;
    int ready[2], status;
    char c;
    pid_t child[N];
    assert_int_equal(pipe(ready), 0);
    child[0] = start_locker(ready[1]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    assert_int_equal(ag_dir_lock(dir, &lock, NULL), AG_ELOCKED);
    kill(child[0], SIGKILL);
    waitpid(child[0], NULL, 0);
    assert_int_equal(ag_dir_lock(dir, &lock, NULL), AG_OK);
    ag_lock_release(&lock);
    for (int i = 0; i < N; i++) child[i] = start_locker(ready[1]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    for (int losers = 0; losers < N - 1; losers++) {
        const pid_t ended = wait(&status);
        assert_true(ended > 0 && WIFEXITED(status));
        for (int i = 0; i < N; i++)
            if (child[i] == ended) child[i] = 0;
        assert_int_equal(WEXITSTATUS(status), 0);
    }
    for (int i = 0; i < N; i++)
        if (child[i]) kill(child[i], SIGKILL);
    assert_true(wait(&status) > 0 && WIFSIGNALED(status));
    close(ready[0]);
    close(ready[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sha256),
        cmocka_unit_test(test_crc32c),
        cmocka_unit_test_teardown(test_read_and_map, clean),
        cmocka_unit_test_teardown(test_read_errors, clean),
        cmocka_unit_test_teardown(test_replace, clean),
        cmocka_unit_test_teardown(test_replace_keep, clean),
        cmocka_unit_test_teardown(test_replace_errors, clean),
        cmocka_unit_test_teardown(test_replace_refused, clean),
        cmocka_unit_test_teardown(test_leftovers, clean),
        cmocka_unit_test_teardown(test_replace_is_atomic, clean),
        cmocka_unit_test_teardown(test_dir_make, clean),
        cmocka_unit_test_teardown(test_lock, clean),
        cmocka_unit_test_teardown(test_lock_killed, clean),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
