/*
 * io.c -- files: read whole, map, replace; folders: make, lock.
 */
#include "autograd/base/io.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- reading -------------------------------------------------------------------------------- */

/* Opens a regular file; O_NONBLOCK so that a pipe of that name does not stop the program. */
static int open_regular(const char *path, int *ret_fd, size_t *ret_size, ag_err *err)
{
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return ag_err_set(err, AG_EIO, "cannot open '%s': %s", path, strerror(errno));
    if (fstat(fd, &st)) {
        const int e = errno;
        close(fd);
        return ag_err_set(err, AG_EIO, "cannot stat '%s': %s", path, strerror(e));
    }
    if (!S_ISREG(st.st_mode)) {
        close(fd);
        return ag_err_set(err, AG_EINPUT, "'%s' is %s, not a file", path,
                          S_ISDIR(st.st_mode) ? "a directory" : "a device or pipe");
    }
    *ret_fd = fd;
    *ret_size = (size_t)st.st_size;
    return AG_OK;
}

/* Reads up to size bytes, less only at the end of the file. */
static int read_full(int fd, const char *path, char *data, size_t size, size_t *ret_n, ag_err *err)
{
    size_t n = 0;
    while (n < size) {
        const ssize_t k = read(fd, data + n, size - n);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return ag_err_set(err, AG_EIO, "cannot read '%s': %s", path, strerror(errno));
        if (k == 0) break;
        n += (size_t)k;
    }
    *ret_n = n;
    return AG_OK;
}

int ag_file_read(const char *path, size_t max_size, char **ret_data, size_t *ret_size, ag_err *err)
{
    int fd;
    size_t size, n = 0;
    int rc = open_regular(path, &fd, &size, err);
    if (rc) return rc;
    if (size > max_size || size == SIZE_MAX) {
        close(fd);
        return ag_err_set(err, AG_EINPUT, "'%s' is too large: %zu bytes, the limit is %zu", path,
                          size, max_size);
    }
    char *data = malloc(size + 1);
    if (!data)
        rc = ag_err_set(err, AG_ENOMEM, "out of memory: %zu bytes for '%s'", size, path);
    else
        rc = read_full(fd, path, data, size, &n, err);
    close(fd);
    if (rc) {
        free(data);
        return rc;
    }
    data[n] = 0;
    *ret_data = data;
    *ret_size = n;
    return AG_OK;
}

int ag_file_map(const char *path, ag_map *ret_map, ag_err *err)
{
    int fd;
    size_t size;
    const int rc = open_regular(path, &fd, &size, err);
    if (rc) return rc;
    void *p = size ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0) : (void *)"";
    const int e = errno;
    close(fd);
    if (p == MAP_FAILED)
        return ag_err_set(err, e == ENOMEM ? AG_ENOMEM : AG_EIO, "cannot map '%s' (%zu bytes): %s",
                          path, size, strerror(e));
    *ret_map = (ag_map){ p, size };
    return AG_OK;
}

void ag_map_release(ag_map *m)
{
    if (m->size) munmap((void *)(uintptr_t)m->data, m->size);
    *m = (ag_map){ 0 };
}

void ag_map_forget(const ag_map *m)
{
    if (m->size) madvise((void *)(uintptr_t)m->data, m->size, MADV_DONTNEED);
}

/* ---- replacing ------------------------------------------------------------------------------ */

/* A path cut into its folder and its name. */
typedef struct place {
    char dir[PATH_MAX];              /* "." where path has no slash */
    const char *name;                /* points into path */
    char temp[PATH_MAX];             /* DIR/.NAME.tmp-PID */
} place;

static int place_init(place *p, const char *path, ag_err *err)
{
    const char *slash = strrchr(path, '/');
    p->name = slash ? slash + 1 : path;
    if (!*p->name) return ag_err_set(err, AG_EIO, "cannot write '%s': no file name", path);
    const int dir_len = slash ? (slash == path ? 1 : (int)(slash - path)) : 1;
    const int n = snprintf(p->dir, sizeof p->dir, "%.*s", dir_len, slash ? path : ".");
    const int t = snprintf(p->temp, sizeof p->temp, "%.*s.%s.tmp-%ld",
                           slash ? (int)(slash - path) + 1 : 0, path, p->name, (long)getpid());
    if (n < 0 || t < 0 || n >= (int)sizeof p->dir || t >= (int)sizeof p->temp)
        return ag_err_set(err, AG_EIO, "cannot write '%s': %s", path, strerror(ENAMETOOLONG));
    return AG_OK;
}

/* True for a temporary file of this name whose writer is gone.  Our own process id counts as gone:
 * in a container every run may have the same one. */
static bool is_leftover(const char *entry, const char *name)
{
    const size_t n = strlen(name);
    if (entry[0] != '.' || strncmp(entry + 1, name, n) || strncmp(entry + 1 + n, ".tmp-", 5))
        return false;
    const char *digits = entry + 1 + n + 5;
    if (!*digits || strlen(digits) > 10 || digits[strspn(digits, "0123456789")]) return false;
    const long pid = strtol(digits, NULL, 10);
    return pid == (long)getpid() || (kill((pid_t)pid, 0) && errno == ESRCH);
}

/* Removes what killed processes left behind; a failure here harms nobody. */
static void remove_leftovers(const place *p)
{
    DIR *d = opendir(p->dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));)
        if (is_leftover(e->d_name, p->name)) unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
}

static int write_full(int fd, const char *data, size_t size)
{
    while (size) {
        const ssize_t k = write(fd, data, size);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        data += k;
        size -= (size_t)k;
    }
    return 0;
}

/* Writes and syncs the temporary file.  Returns the name of the call that failed, errno set, or 0.
 * A failed fsync is final: the kernel may have dropped the pages, and a second call would then
 * report success. */
static const char *write_temp(const char *temp, const void *data, size_t size)
{
    const int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) return "create a temporary file";
    const char *failed = NULL;
    if (write_full(fd, data, size)) failed = "write";
    else if (fsync(fd)) failed = "fsync";
    const int e = errno;
    if (close(fd) && !failed) return "close";
    errno = e;
    return failed;
}

/* Makes a rename in dir survive a power cut.  EINVAL: a file system that cannot sync folders. */
static int sync_dir(const char *dir)
{
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    const int rc = fsync(fd) && errno != EINVAL ? -1 : 0;
    const int e = errno;
    close(fd);
    errno = e;
    return rc;
}

/* keep may be NULL. */
static int replace(const char *path, const char *keep, const void *data, size_t size, ag_err *err)
{
    place p;
    const int rc = place_init(&p, path, err);
    if (rc) return rc;
    remove_leftovers(&p);
    const char *failed = write_temp(p.temp, data, size);
    if (!failed && keep && rename(path, keep) && errno != ENOENT) failed = "rename the old one";
    if (!failed && rename(p.temp, path)) failed = "rename";
    if (failed) {
        const int e = errno;
        unlink(p.temp);
        return ag_err_set(err, AG_EIO, "cannot write '%s' (%zu bytes): %s: %s", path, size, failed,
                          strerror(e));
    }
    if (sync_dir(p.dir))
        return ag_err_set(err, AG_EIO, "'%s' is written, but its folder cannot be synced: %s",
                          path, strerror(errno));
    return AG_OK;
}

int ag_file_replace(const char *path, const void *data, size_t size, ag_err *err)
{
    return replace(path, NULL, data, size, err);
}

int ag_file_replace_keep(const char *path, const char *keep, const void *data, size_t size,
                         ag_err *err)
{
    return replace(path, keep, data, size, err);
}

/* ---- folders -------------------------------------------------------------------------------- */

bool ag_path_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

int ag_dir_make(const char *path, ag_err *err)
{
    char part[PATH_MAX];
    const size_t n = strlen(path);
    if (n == 0 || n >= sizeof part)
        return ag_err_set(err, AG_EIO, "cannot make directory '%s': %s", path,
                          strerror(n ? ENAMETOOLONG : ENOENT));
    for (size_t i = 1; i <= n; i++) {
        struct stat st;
        if (path[i] && path[i] != '/') continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, 0777) == 0) continue;
        const int e = errno;
        if (stat(part, &st) == 0 && S_ISDIR(st.st_mode)) continue;
        return ag_err_set(err, AG_EIO, "cannot make directory '%s': %s", part,
                          e == EEXIST ? "a file of that name exists" : strerror(e));
    }
    return AG_OK;
}

/* Reads "pid host" out of a lock that somebody else holds. */
static int locked_error(int fd, const char *dir, ag_err *err)
{
    char text[HOST_NAME_MAX + 32];
    const ssize_t n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    text[strcspn(text, "\n")] = 0;
    char *host = strchr(text, ' ');
    if (host) *host++ = 0;
    for (char *c = host; c && *c; c++)
        if (!isprint((unsigned char)*c)) *c = '?';
    if (!host || !isdigit((unsigned char)text[0]))
        return ag_err_set(err, AG_ELOCKED, "'%s' is in use by another process", dir);
    return ag_err_set(err, AG_ELOCKED,
                      "'%s' is in use by process %ld on host '%s'; wait for it, stop it, or use "
                      "another directory", dir, strtol(text, NULL, 10), host);
}

int ag_dir_lock(const char *dir, ag_lock *ret_lock, ag_err *err)
{
    char path[PATH_MAX], host[HOST_NAME_MAX + 1] = "", text[HOST_NAME_MAX + 32];
    const int n = snprintf(path, sizeof path, "%s/LOCK", dir);
    if (n < 0 || n >= (int)sizeof path)
        return ag_err_set(err, AG_EIO, "cannot lock '%s': %s", dir, strerror(ENAMETOOLONG));
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return ag_err_set(err, AG_EIO, "cannot open '%s': %s", path, strerror(errno));
    struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    if (fcntl(fd, F_OFD_SETLK, &whole)) {
        const int e = errno;
        const int rc = e == EAGAIN || e == EACCES
            ? locked_error(fd, dir, err)
            : ag_err_set(err, AG_EIO, "cannot lock '%s': %s", path, strerror(e));
        close(fd);
        return rc;
    }
    gethostname(host, sizeof host - 1);
    const int len = snprintf(text, sizeof text, "%ld %s\n", (long)getpid(), host);
    if (ftruncate(fd, 0) || pwrite(fd, text, (size_t)len, 0) != len) {
        const int e = errno;
        close(fd);
        return ag_err_set(err, AG_EIO, "cannot write '%s': %s", path, strerror(e));
    }
    ret_lock->fd = fd;
    return AG_OK;
}

void ag_lock_release(ag_lock *l)
{
    if (l->fd >= 0) close(l->fd);
    l->fd = -1;
}
