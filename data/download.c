/*
 * download.c -- fetches the published files of a named set with libcurl: mirrors, resume, checksum.
 *
 * A transfer goes into FILE.part, which stays when it breaks off and is carried on by the next
 * attempt; only a file whose checksum is right gets its name.
 */
#include "data/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MIRRORS = 8 };

#ifdef TULLE_HAVE_CURL
#include <curl/curl.h>

typedef struct transfer {
    int fd;
    int64_t start, size, most;       /* bytes there at first, now, and at most */
    const char *file;
    data_progress *progress;
    void *arg;
    int error;                       /* errno of a failed write */
} transfer;

static size_t on_data(char *p, size_t one, size_t n, void *arg)
{
    transfer *t = arg;
    t->size += (int64_t)(one * n);
    if (t->size > t->most)
        return 0;
    for (size_t done = 0; done < one * n;) {
        const ssize_t w = write(t->fd, p + done, one * n - done);
        if (w < 0 && errno != EINTR) {
            t->error = errno;
            return 0;
        }
        done += w > 0 ? (size_t)w : 0;
    }
    return one * n;
}

static int on_progress(void *arg, curl_off_t total, curl_off_t done, curl_off_t up,
                       curl_off_t up_done)
{
    const transfer *t = arg;
    (void)up;
    (void)up_done;
    return t->progress
               ? t->progress(t->arg, t->file, t->start + done, total > 0 ? t->start + total : -1)
               : 0;
}

/* Carries the part file on from url, or begins it where from_zero.  A CURLcode, with its words in
 * why. */
static CURLcode attempt(const char *url, bool from_zero, transfer *t, char *why)
{
    CURL *c = curl_easy_init();
    if (!c)
        return CURLE_FAILED_INIT;
    why[0] = '\0';
    if (from_zero && ftruncate(t->fd, 0))
        t->error = errno;
    t->start = t->size = lseek(t->fd, 0, SEEK_END);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, 8L);
    curl_easy_setopt(c, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 20L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 100L);  /* bytes a second, over 60 seconds */
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, 60L);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "tulle");
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, why);
    curl_easy_setopt(c, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)t->start);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, t);
    const CURLcode rc = curl_easy_perform(c);
    long status = 0;
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_cleanup(c);
    if (!why[0])
        snprintf(why, CURL_ERROR_SIZE, "%s", curl_easy_strerror(rc));
    return rc == CURLE_HTTP_RETURNED_ERROR && status == 416 ? CURLE_RANGE_ERROR : rc;
}

/* Tries one mirror, a second time from the beginning where it does not know ranges or where what
 * had been carried on turns out wrong.  1: the part file is good; 0: not here; < 0: give up. */
static int try_mirror(const char *url, const char *part, const char *sum, transfer *t, char *notes,
                      size_t room, ag_err *err)
{
    char why[CURL_ERROR_SIZE];
    bool wrong = false;
    for (int round = 0; round < 2; round++) {
        const CURLcode rc = attempt(url, round > 0, t, why);
        if (t->error)
            return ag_err_set(err, AG_EIO, "cannot write '%s': %s", part, strerror(t->error));
        if (rc == CURLE_ABORTED_BY_CALLBACK)
            return ag_err_set(err, AG_EINTR,
                              "the transfer of %s was stopped; it will go on where it was", url);
        const int good = rc != CURLE_OK ? 0 : sum ? data_sum_check(part, sum, err) : 1;
        if (good)
            return good;
        wrong = rc == CURLE_OK || t->size > t->most;
        if (wrong)
            snprintf(why, sizeof why,
                     rc == CURLE_OK ? "wrong checksum" : "larger than the published file");
        if (!(rc == CURLE_RANGE_ERROR || (rc == CURLE_OK && t->start > 0)))
            break;
    }
    const size_t used = strlen(notes);
    snprintf(notes + used, room - used, "\n  %.200s: %.150s", url, why);
    if (wrong && ftruncate(t->fd, 0))
        return ag_err_set(err, AG_EIO, "cannot empty '%s': %s", part, strerror(errno));
    return 0;
}

static int fetch_part(const char *const *url, int n, const char *part, const char *sum, transfer *t,
                      ag_err *err)
{
    char notes[1500] = "";
    if (sum && lseek(t->fd, 0, SEEK_END) > 0) {
        const int good = data_sum_check(part, sum, err);
        if (good)
            return good < 0 ? good : AG_OK;
    }
    for (int i = 0; i < n; i++) {
        const int rc = try_mirror(url[i], part, sum, t, notes, sizeof notes, err);
        if (rc)
            return rc < 0 ? rc : AG_OK;
    }
    return ag_err_set(err, AG_EIO, "no mirror gave the file:%s", notes);
}

int data_fetch(const char *const *url, int n, const char *path, const char *sum, int64_t max_size,
               data_progress *progress, void *arg, ag_err *err)
{
    static const char suffix[] = ".part";
    char *part = malloc(strlen(path) + sizeof suffix);
    if (!part)
        return ag_err_set(err, AG_ENOMEM, "no memory for a file name");
    sprintf(part, "%s%s", path, suffix);
    const char *slash = strrchr(path, '/');
    transfer t = {.fd = open(part, O_RDWR | O_CREAT | O_CLOEXEC | O_APPEND, 0644), .most = max_size,
                  .file = slash ? slash + 1 : path, .progress = progress, .arg = arg};
    int rc;
    if (t.fd < 0)
        rc = ag_err_set(err, AG_EIO, "cannot create '%s': %s", part, strerror(errno));
    else if (flock(t.fd, LOCK_EX | LOCK_NB))
        rc = ag_err_set(err, AG_ELOCKED, "'%s' is being fetched by another process", path);
    else
        rc = fetch_part(url, n, part, sum, &t, err);
    if (rc == AG_OK && (fsync(t.fd) || rename(part, path)))
        rc = ag_err_set(err, AG_EIO, "cannot give '%s' its name: %s", path, strerror(errno));
    struct stat st;
    if (rc && t.fd >= 0 && fstat(t.fd, &st) == 0 && st.st_size == 0)
        unlink(part);
    if (t.fd >= 0)
        close(t.fd);
    free(part);
    return rc;
}

#else

int data_fetch(const char *const *url, int n, const char *path, const char *sum, int64_t max_size,
               data_progress *progress, void *arg, ag_err *err)
{
    (void)url, (void)n, (void)path, (void)sum, (void)max_size, (void)progress, (void)arg;
    return ag_err_set(err, AG_EFAIL, "this program was built without libcurl");
}

#endif

/* ---- a set: its files, one after the other ---- */

/* URLs of one file, each malloc'ed: from $TULLE_MIRROR where set, else as published.  The number of
 * them. */
static int make_urls(const char *set, const data_file *f, char *url[MIRRORS], ag_err *err)
{
    const char *mirror = getenv("TULLE_MIRROR");
    int n = 0, rc = 0;
    for (const char *p = mirror; p && *p && n < MIRRORS && rc >= 0;) {
        const size_t len = strcspn(p, " ");
        if (len)
            rc = asprintf(&url[n++], "%.*s%s%s/%s", (int)len, p, p[len - 1] == '/' ? "" : "/", set,
                          f->name);
        p += len + (p[len] == ' ');
    }
    for (int i = 0; !(mirror && *mirror) && i < 3 && f->url[i] && rc >= 0; i++)
        rc = asprintf(&url[n++], "%s%s", f->url[i], f->name);
    if (rc >= 0)
        return n;
    url[n - 1] = NULL;
    return ag_err_set(err, AG_ENOMEM, "no memory for an address");
}

/* An archive has no checksum of its own; what it holds is checked. */
static int get_archive(const char *const *url, int n, const data_file *f, const char *dir,
                       const char *wanted, data_progress *progress, void *arg, ag_err *err)
{
    char *zip = data_path_join(dir, f->name);
    int rc = zip ? AG_OK : ag_err_set(err, AG_ENOMEM, "no memory for a file name");
    if (rc == AG_OK && !ag_path_exists(zip))
        rc = data_fetch(url, n, zip, NULL, 2 * f->size, progress, arg, err);
    if (rc == AG_OK)
        rc = data_unzip(zip, f->unpacked, wanted, err);
    if (rc == AG_OK && (rc = data_sum_check(wanted, f->sum, err)) == 0) {
        unlink(wanted);
        rc = ag_err_set(err, AG_EINPUT, "'%s' holds another file than the published one", zip);
    }
    if (zip && (rc > 0 || rc == AG_EINPUT))
        unlink(zip);
    free(zip);
    return rc > 0 ? AG_OK : rc;
}

static void free_urls(char *url[MIRRORS])
{
    for (int i = 0; i < MIRRORS; i++)
        free(url[i]);
}

/* Where a file belongs in dir: NULL if memory is out. */
static char *place_of(const data_file *f, const char *dir)
{
    return data_path_join(dir, f->unpacked ? f->unpacked : f->name);
}

/* 1: it is there and good; 0: it is not; < 0: it cannot be read. */
static int is_there(const data_file *f, const char *path, ag_err *err)
{
    return ag_path_exists(path) ? data_sum_check(path, f->sum, err) : 0;
}

/* Adds a file that is still to be placed in dir to a list. */
static int list_missing(const char *set, const data_file *f, const char *dir, char *list,
                        size_t room, ag_err *err)
{
    char *url[MIRRORS] = {0}, *path = place_of(f, dir);
    const size_t used = strlen(list);
    int rc = path ? make_urls(set, f, url, err)
                  : ag_err_set(err, AG_ENOMEM, "no memory for a file name");
    if (rc >= 0 && is_there(f, path, NULL) != 1)
        snprintf(list + used, room - used, "\n  %s (%s %s)\n    %s %s",
                 f->unpacked ? f->unpacked : f->name, strlen(f->sum) == 32 ? "MD5" : "SHA-256",
                 f->sum, f->unpacked ? "unpacked, from" : "from", url[0] ? url[0] : f->name);
    free_urls(url);
    free(path);
    return rc < 0 ? rc : AG_OK;
}

/* What to do by hand, in place of a transfer that failed: all files from f on. */
static int by_hand(const char *set, const data_file *f, const char *dir, const ag_err *why,
                   ag_err *err)
{
    char list[1200] = "";
    const bool several = f[1].name;
    for (int rc = AG_OK; f->name; f++)
        if ((rc = list_missing(set, f, dir, list, sizeof list, err)) < 0)
            return rc;
    return ag_err_set(err, why->code, "%.700s\nTo place %s by hand, put into %.400s:%s", why->msg,
                      several ? "them" : "it", dir, list);
}

static int get_file(const char *set, const data_file *f, const char *dir, data_progress *progress,
                    void *arg, ag_err *err)
{
    char *url[MIRRORS] = {0}, *path = place_of(f, dir);
    int rc = path ? make_urls(set, f, url, err)
                  : ag_err_set(err, AG_ENOMEM, "no memory for a file name");
    const int n = rc;
    if (rc >= 0)
        rc = is_there(f, path, err);
    if (rc > 0)
        rc = AG_OK;
    else if (rc == 0 && f->unpacked)
        rc = get_archive((const char *const *)url, n, f, dir, path, progress, arg, err);
    else if (rc == 0)
        rc = data_fetch((const char *const *)url, n, path, f->sum, 2 * f->size, progress, arg, err);
    free_urls(url);
    free(path);
    return rc;
}

int data_get(const char *name, const char *dir, data_progress *progress, void *arg, ag_err *err)
{
    const data_named *set = data_catalog_find(name);
    if (!set)
        return ag_err_set(err, AG_ECONFIG,
                          "there is no data set '%s' to fetch (there are: shakespeare, mnist,"
                          " fashion-mnist, enwik8, cifar10)",
                          name);
    char *cache = dir ? NULL : data_cache_dir();
    char *to = dir ? strdup(dir) : cache ? data_path_join(cache, name) : NULL;
    int rc =
        to ? ag_dir_make(to, err)
           : ag_err_set(err, AG_EIO,
                        "there is no cache folder: set XDG_CACHE_HOME or HOME, or name a folder");
    for (const data_file *f = set->file; rc == AG_OK && f->name; f++) {
        ag_err why = {0};
        rc = get_file(name, f, to, progress, arg, &why);
        if (rc < 0)
            rc = by_hand(name, f, to, &why, err);
    }
    free(cache);
    free(to);
    return rc;
}
