/*
 * test_download.c -- fetching files from a small HTTP server on the loopback: resume, mirrors,
 * checksums.
 */
#include "data_util.h"
#include "data/internal.h"
#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <zlib.h>

/* ---- the server: GET /KIND/...; KIND says what it does with the one file that it has ---- */

enum { SIZE = 300000 };
static char content[SIZE];
static char sum[33];
static int port;
static atomic_int requests, ranges;

static void send_all(int fd, const char *p, size_t n)
{
    while (n > 0) {
        const ssize_t w = send(fd, p, n, MSG_NOSIGNAL);
        if (w <= 0)
            return;
        p += w;
        n -= (size_t)w;
    }
}

static void answer(int fd, const char *request)
{
    char head[256];
    const char *r = strstr(request, "\r\nRange: bytes=");
    long from = r && !strstr(request, "/norange/") ? atol(r + 15) : 0;
    size_t n = SIZE - (size_t)from;
    requests++;
    ranges += from > 0;
    if (strstr(request, "/none/")) {
        send_all(fd, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                 64);
        return;
    }
    if (from >= SIZE) {
        send_all(fd, "HTTP/1.1 416 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 57);
        return;
    }
    if (from > 0)
        snprintf(head, sizeof head,
                 "HTTP/1.1 206 Part\r\nContent-Length: %zu\r\nContent-Range: bytes %ld-%d/%d\r\n"
                 "Connection: close\r\n\r\n",
                 n, from, SIZE - 1, SIZE);
    else
        snprintf(head, sizeof head,
                 "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", n);
    send_all(fd, head, strlen(head));
    if (strstr(request, "/breaks/") && from == 0)
        n = SIZE / 3;                                    /* and hang up */
    char *copy = malloc(n);
    memcpy(copy, content + from, n);
    if (strstr(request, "/wrong/"))
        copy[n / 2] ^= 1;
    send_all(fd, copy, n);
    free(copy);
}

static void *serve(void *arg)
{
    const int listener = *(const int *)arg;
    for (int fd; (fd = accept(listener, NULL, NULL)) >= 0; close(fd)) {
        char request[2048] = "";
        size_t n = 0;
        while (n < sizeof request - 1 && !strstr(request, "\r\n\r\n")) {
            const ssize_t got = recv(fd, request + n, sizeof request - 1 - n, 0);
            if (got <= 0)
                break;
            n += (size_t)got;
            request[n] = '\0';
        }
        if (n)
            answer(fd, request);
        shutdown(fd, SHUT_WR);
    }
    return NULL;
}

static int listener;
static pthread_t server;

static int setup(void **state)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    for (int i = 0; i < SIZE; i++)
        content[i] = (char)(i * 31 + i / 1000);
    data_md5_hex(content, SIZE, sum);
    unsetenv("http_proxy");
    unsetenv("all_proxy");
    unsetenv("ALL_PROXY");
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&a, sizeof a) || listen(listener, 8)
        || getsockname(listener, (struct sockaddr *)&a, &len))
        return -1;
    port = ntohs(a.sin_port);
    return pthread_create(&server, NULL, serve, &listener) ? -1 : tmp_make(state);
}

static int teardown(void **state)
{
    shutdown(listener, SHUT_RDWR);
    pthread_join(server, NULL);
    close(listener);
    return tmp_remove(state);
}

/* Fetches from up to two kinds of mirror; the code. */
static int fetch(const char *kind1, const char *kind2, const char *name, const char *check,
                 ag_err *err)
{
    char url[2][128];
    const char *const list[2] = {url[0], url[1]};
    snprintf(url[0], sizeof url[0], "http://127.0.0.1:%d/%s/file", port, kind1);
    snprintf(url[1], sizeof url[1], "http://127.0.0.1:%d/%s/file", port, kind2 ? kind2 : "");
    memset(err, 0, sizeof *err);
    return data_fetch(list, kind2 ? 2 : 1, tmp_path(name), check, 2 * SIZE, NULL, NULL, err);
}

static void check_file(const char *name)
{
    size_t n;
    char *p = read_all(tmp_path(name), &n), part[64];
    assert_int_equal(n, SIZE);
    assert_memory_equal(p, content, SIZE);
    snprintf(part, sizeof part, "%s.part", name);
    assert_false(ag_path_exists(tmp_path(part)));
    free(p);
}

static bool have_curl(void)
{
    ag_err err;
    return fetch("good", NULL, "probe", sum, &err) != AG_EFAIL;
}

static void plain(void **state)
{
    ag_err err;
    (void)state;
    if (!have_curl())
        skip();
    assert_int_equal(fetch("good", NULL, "a", sum, &err), 0);
    check_file("a");
    assert_int_equal(fetch("none", "good", "b", sum, &err), 0);
    check_file("b");
}

static void resume(void **state)
{
    ag_err err;
    (void)state;
    if (!have_curl())
        skip();
    assert_int_equal(fetch("breaks", NULL, "c", sum, &err), AG_EIO);
    assert_true(ag_path_exists(tmp_path("c.part")));
    assert_false(ag_path_exists(tmp_path("c")));
    ranges = 0;
    assert_int_equal(fetch("good", NULL, "c", sum, &err), 0);
    assert_int_equal(ranges, 1);
    check_file("c");
    assert_int_equal(fetch("breaks", "good", "d", sum, &err),
                     0); /* carried on by the next mirror */
    assert_int_equal(ranges, 2);
    check_file("d");
    assert_int_equal(fetch("breaks", "norange", "e", sum, &err), 0);        /* which begins anew */
    check_file("e");
    tmp_write("f.part", "something else", 14);
    assert_int_equal(fetch("good", NULL, "f", sum, &err), 0); /* wrong at first, then from zero */
    check_file("f");
    tmp_write("g.part", content, SIZE);                                     /* whole already */
    requests = 0;
    assert_int_equal(fetch("good", NULL, "g", sum, &err), 0);
    assert_int_equal(requests, 0);
    check_file("g");
    char *long_part = calloc(1, SIZE);
    tmp_write("h.part", long_part, SIZE); /* as long as the file: status 416 */
    free(long_part);
    assert_int_equal(fetch("good", NULL, "h", sum, &err), 0);
    check_file("h");
}

static void wrong(void **state)
{
    ag_err err;
    (void)state;
    if (!have_curl())
        skip();
    assert_int_equal(fetch("wrong", NULL, "i", sum, &err), AG_EIO);
    assert_non_null(strstr(err.msg, "/wrong/file: wrong checksum"));
    assert_false(ag_path_exists(tmp_path("i")));
    assert_false(ag_path_exists(tmp_path("i.part")));
    assert_int_equal(fetch("wrong", "good", "i", sum, &err), 0);
    check_file("i");
    assert_int_equal(fetch("none", NULL, "j", sum, &err), AG_EIO);
    assert_non_null(strstr(err.msg, "404"));
    const char *const url[1] = {"file:///etc/passwd"};
    assert_int_equal(data_fetch(url, 1, tmp_path("k"), sum, SIZE, NULL, NULL, &err), AG_EIO);
    char big[64];
    snprintf(big, sizeof big, "http://127.0.0.1:%d/good/file", port);
    const char *const one[1] = {big};
    memset(&err, 0, sizeof err);
    assert_int_equal(data_fetch(one, 1, tmp_path("l"), sum, SIZE / 2, NULL, NULL, &err), AG_EIO);
    assert_non_null(strstr(err.msg, "larger than the published file"));
}

static int stop(void *arg, const char *file, int64_t done, int64_t total)
{
    (void)total;
    *(int *)arg += 1;
    assert_string_equal(file, "m");
    return done > 0;
}

static void stopped(void **state)
{
    ag_err err = {0};
    char url[64];
    int calls = 0;
    const char *const one[1] = {url};
    (void)state;
    if (!have_curl())
        skip();
    snprintf(url, sizeof url, "http://127.0.0.1:%d/breaks/file", port);
    assert_int_equal(data_fetch(one, 1, tmp_path("m"), sum, SIZE, stop, &calls, &err), AG_EINTR);
    assert_true(calls > 0);
}

/* data_get by $TULLE_MIRROR: a published set is not what this server has, so it says what to do by
 * hand. */
static void by_hand(void **state)
{
    ag_err err = {0};
    char mirror[128];
    (void)state;
    if (!have_curl())
        skip();
    snprintf(mirror, sizeof mirror, "http://127.0.0.1:%d/none http://127.0.0.1:%d/wrong/", port,
             port);
    setenv("TULLE_MIRROR", mirror, 1);
    assert_int_equal(data_get("shakespeare", tmp_path("s"), NULL, NULL, &err), AG_EIO);
    assert_non_null(strstr(err.msg, "/none/shakespeare/input.txt: "));
    assert_non_null(strstr(err.msg, "/wrong/shakespeare/input.txt: wrong checksum"));
    assert_non_null(strstr(err.msg, "To place it by hand, put into "));
    assert_non_null(strstr(
        err.msg, "(SHA-256 86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed)"));
    memset(&err, 0, sizeof err);
    assert_int_equal(data_get("enwik8", tmp_path("s"), NULL, NULL, &err), AG_EINPUT);
    assert_non_null(
        strstr(err.msg, "enwik8 (MD5 a1fa5ffddb56f4953e226637dabbb36a)\n    unpacked, from "));
    assert_false(ag_path_exists(tmp_path("s/enwik8")));
    memset(&err, 0, sizeof err);
    assert_int_equal(data_get("fashion-mnist", tmp_path("s"), NULL, NULL, &err), AG_EIO);
    assert_non_null(strstr(err.msg, "To place them by hand, put into "));
    for (const data_file *f = data_catalog_find("fashion-mnist")->file; f->name; f++) {
        char line[256];
        snprintf(line, sizeof line, "  %s (MD5 %s)\n    from http://127.0.0.1:%d/none/"
                 "fashion-mnist/%s", f->name, f->sum, port, f->name);
        assert_non_null(strstr(err.msg, line));
    }
    memset(&err, 0, sizeof err);
    assert_int_equal(data_get("imagenet", NULL, NULL, NULL, &err), AG_ECONFIG);
    unsetenv("TULLE_MIRROR");
}

/* With the real file in place nothing is fetched. */
static void already_there(void **state)
{
    const char *path = real_data("tinyshakespeare.txt");
    size_t n;
    (void)state;
    if (!path)
        skip();
    char *text = read_all(path, &n);
    assert_int_equal(ag_dir_make(tmp_path("have"), NULL), 0);
    tmp_write("have/input.txt", text, n);
    free(text);
    requests = 0;
    assert_int_equal(data_get("shakespeare", tmp_path("have"), NULL, NULL, NULL), 0);
    assert_int_equal(requests, 0);
}

/* ---- zip ---- */

static size_t make_zip(unsigned char *z, const char *name, const void *data, size_t n)
{
    z_stream s = {0};
    const size_t len = strlen(name);
    unsigned char *p = z + 30 + len;
    deflateInit2(&s, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY);
    s.next_in = (Bytef *)(uintptr_t)data;
    s.avail_in = (uInt)n;
    s.next_out = p;
    s.avail_out = SIZE;
    assert_int_equal(deflate(&s, Z_FINISH), Z_STREAM_END);
    const uint32_t field[4] = {(uint32_t)crc32_z(0, data, n), (uint32_t)s.total_out, (uint32_t)n,
                               (uint32_t)len};
    deflateEnd(&s);
    memset(z, 0, 30);
    memcpy(z, "PK\3\4\24\0\0\0\10\0", 10);
    memcpy(z + 14, field, 16);
    memcpy(z + 30, name, len);
    return 30 + len + field[1];
}

static void zip(void **state)
{
    static unsigned char z[2 * SIZE];
    size_t n = make_zip(z, "enwik8", content, SIZE), got;
    (void)state;
    assert_int_equal(data_unzip(tmp_write("z.zip", z, n + 20), "enwik8", tmp_path("z"), NULL), 0);
    char *p = read_all(tmp_path("z"), &got);
    assert_int_equal(got, SIZE);
    assert_memory_equal(p, content, SIZE);
    free(p);
    unlink(tmp_path("z"));
    assert_int_equal(data_unzip(tmp_path("z.zip"), "other", tmp_path("z"), NULL), AG_EINPUT);
    for (size_t cut = 0; cut < n; cut += 997)
        assert_int_equal(data_unzip(tmp_write("z.zip", z, cut), "enwik8", tmp_path("z"), NULL),
                         AG_EINPUT);
    for (size_t at = 36; at < n; at += 499) {
        z[at] ^= 4;
        assert_int_equal(data_unzip(tmp_write("z.zip", z, n), "enwik8", tmp_path("z"), NULL),
                         AG_EINPUT);
        z[at] ^= 4;
    }
    assert_false(ag_path_exists(tmp_path("z")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain),   cmocka_unit_test(resume),  cmocka_unit_test(wrong),
        cmocka_unit_test(stopped), cmocka_unit_test(by_hand), cmocka_unit_test(already_there),
        cmocka_unit_test(zip),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
