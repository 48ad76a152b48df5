/*
 * rundir.c -- the folder of a run.
 */
#include "train/rundir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int train_rundir_path(const char *dir, const char *name, char ret_path[PATH_MAX], ag_err *err)
{
    const int n = snprintf(ret_path, PATH_MAX, "%s/%s", dir, name);
    if (n < 0 || n >= PATH_MAX)
        return ag_err_set(err, AG_EIO, "run directory '%.200s': %s", dir, strerror(ENAMETOOLONG));
    return AG_OK;
}

static bool has_file(const char *dir, const char *name)
{
    char path[PATH_MAX];
    return train_rundir_path(dir, name, path, NULL) == AG_OK && ag_path_exists(path);
}

bool train_rundir_has_checkpoint(const char *dir)
{
    return has_file(dir, "last.h5") || has_file(dir, "prev.h5");
}

/* ---- open ----------------------------------------------------------------------------------- */

/* True if dir holds anything but a lock; a missing one is empty. */
static int is_used(const char *dir, bool *ret_used, ag_err *err)
{
    DIR *d = opendir(dir);
    if (!d && errno == ENOENT) {
        *ret_used = false;
        return AG_OK;
    }
    if (!d) return ag_err_set(err, AG_EIO, "run directory '%s': %s", dir, strerror(errno));
    bool used = false;
    for (struct dirent *e; !used && (e = readdir(d));)
        used = strcmp(e->d_name, ".") && strcmp(e->d_name, "..") && strcmp(e->d_name, "LOCK");
    closedir(d);
    *ret_used = used;
    return AG_OK;
}

static int refuse_used(const char *dir, ag_err *err)
{
    bool used = false;
    const int rc = is_used(dir, &used, err);
    if (rc || !used) return rc;
    if (!has_file(dir, "config.yaml") && !train_rundir_has_checkpoint(dir))
        return ag_err_set(err, AG_ECONFIG, "run directory '%s' is not empty and holds no run; "
                          "choose another run.dir", dir);
    return ag_err_set(err, AG_ECONFIG, "run directory '%s' holds a run already; go on with it by "
                      "`tulle resume %s`, replace it with run.overwrite=true, or choose another "
                      "run.dir", dir, dir);
}

/* Is it a name that train_rundir_sample gives? */
static bool is_sample(const char *name)
{
    static const char *const suffix[] = { ".txt", ".png", ".wav" };
    if (strncmp(name, "step-", 5)) return false;
    name += 5 + strspn(name + 5, "0123456789");
    for (size_t i = 0; i < sizeof suffix / sizeof *suffix; i++)
        if (!strcmp(name, suffix[i])) return true;
    return false;
}

/* Removes the samples of an old run and nothing else. */
static int remove_samples(const char *dir, ag_err *err)
{
    char path[PATH_MAX];
    int rc = train_rundir_path(dir, "samples", path, err);
    DIR *d = rc ? NULL : opendir(path);
    if (!d) return rc;
    for (struct dirent *e; !rc && (e = readdir(d));) {
        if (is_sample(e->d_name) && unlinkat(dirfd(d), e->d_name, 0))
            rc = ag_err_set(err, AG_EIO, "cannot remove '%s/%s': %s", path, e->d_name,
                            strerror(errno));
    }
    closedir(d);
    return rc;
}

static int remove_run(const char *dir, ag_err *err)
{
    static const char *const file[] = { "last.h5", "prev.h5", "best.h5", "metrics.jsonl",
                                        "env.json", "report.html", "config.yaml" };
    char path[PATH_MAX];
    int rc = remove_samples(dir, err);
    for (size_t i = 0; !rc && i < sizeof file / sizeof *file; i++) {
        rc = train_rundir_path(dir, file[i], path, err);
        if (!rc && unlink(path) && errno != ENOENT)
            rc = ag_err_set(err, AG_EIO, "cannot remove '%s': %s", path, strerror(errno));
    }
    return rc;
}

static int require_run(const char *dir, ag_err *err)
{
    if (has_file(dir, "config.yaml") || train_rundir_has_checkpoint(dir)) return AG_OK;
    return ag_err_set(err, AG_EINPUT, "'%s' holds no run: no config.yaml, last.h5 or prev.h5 in it",
                      dir);
}

int train_rundir_open(train_rundir *r, const char *dir, train_rundir_mode mode, ag_err *err)
{
    train_rundir d = { .lock = { -1 }, .metrics_fd = -1 };
    if (!*dir || snprintf(d.dir, sizeof d.dir, "%s", dir) >= PATH_MAX / 2)
        return ag_err_set(err, AG_ECONFIG, "run directory '%.200s': %s", dir,
                          *dir ? strerror(ENAMETOOLONG) : "the name is empty");
    /* Before the lock, so that no file is put into a folder that is not ours; a folder with a lock
     * is judged once it is known to be free. */
    int rc = AG_OK;
    if (mode == TRAIN_RUNDIR_RESUME) rc = require_run(dir, err);
    else if (mode == TRAIN_RUNDIR_NEW && !has_file(dir, "LOCK")) rc = refuse_used(dir, err);
    if (!rc) rc = ag_dir_make(dir, err);
    if (!rc) rc = ag_dir_lock(dir, &d.lock, err);
    if (!rc && mode == TRAIN_RUNDIR_NEW) rc = refuse_used(dir, err);
    if (!rc && mode == TRAIN_RUNDIR_OVERWRITE) rc = remove_run(dir, err);
    if (rc) {
        ag_lock_release(&d.lock);
        return rc;
    }
    *r = d;
    return AG_OK;
}

void train_rundir_release(train_rundir *r)
{
    if (r->metrics_fd >= 0) close(r->metrics_fd);
    r->metrics_fd = -1;
    ag_lock_release(&r->lock);
}

/* ---- small files ---------------------------------------------------------------------------- */

int train_rundir_write(const train_rundir *r, const char *name, const char *text, ag_err *err)
{
    char path[PATH_MAX];
    const int rc = train_rundir_path(r->dir, name, path, err);
    return rc ? rc : ag_file_replace(path, text, strlen(text), err);
}

int train_rundir_sample(const train_rundir *r, int64_t step, const char *suffix, const void *data,
                        size_t size, ag_err *err)
{
    char name[64], path[PATH_MAX];
    int rc = train_rundir_path(r->dir, "samples", path, err);
    if (!rc) rc = ag_dir_make(path, err);
    snprintf(name, sizeof name, "samples/step-%08lld.%s", (long long)step, suffix);
    if (!rc) rc = train_rundir_path(r->dir, name, path, err);
    return rc ? rc : ag_file_replace(path, data, size, err);
}

/* ---- checkpoints ---------------------------------------------------------------------------- */

int train_rundir_save_last(train_rundir *r, const train_ckpt *c, ag_err *err)
{
    char last[PATH_MAX], prev[PATH_MAX];
    int rc = train_rundir_path(r->dir, "last.h5", last, err);
    if (!rc) rc = train_rundir_path(r->dir, "prev.h5", prev, err);
    if (!rc && r->metrics_fd >= 0 && fdatasync(r->metrics_fd))
        rc = ag_err_set(err, AG_EIO, "cannot sync '%s/metrics.jsonl': %s", r->dir, strerror(errno));
    if (!rc) rc = train_ckpt_save(last, r->last_is_bad ? NULL : prev, c, err);
    if (!rc) r->last_is_bad = false;
    return rc;
}

int train_rundir_save_best(const train_rundir *r, const train_ckpt *c, ag_err *err)
{
    char best[PATH_MAX];
    const int rc = train_rundir_path(r->dir, "best.h5", best, err);
    return rc ? rc : train_ckpt_save(best, NULL, c, err);
}

int train_rundir_load(const char *dir, train_ckpt_file **ret_file, char ret_warning[1024],
                      ag_err *err)
{
    char last[PATH_MAX], prev[PATH_MAX];
    ag_err why_last = { 0 }, why_prev = { 0 };
    ret_warning[0] = 0;
    if (!train_rundir_has_checkpoint(dir))
        return ag_err_set(err, AG_EINPUT, "'%s' holds no checkpoint: neither last.h5 nor prev.h5",
                          dir);
    int rc = train_rundir_path(dir, "last.h5", last, err);
    if (!rc) rc = train_rundir_path(dir, "prev.h5", prev, err);
    if (rc) return rc;
    rc = train_ckpt_open(last, ret_file, &why_last);
    if (rc == AG_OK) return AG_OK;
    if (rc == AG_ENOMEM || !ag_path_exists(prev)) return ag_err_set(err, rc, "%s", why_last.msg);
    if (train_ckpt_open(prev, ret_file, &why_prev))
        return ag_err_set(err, rc, "%.900s\n%.900s", why_last.msg, why_prev.msg);
    snprintf(ret_warning, 1024, "%.480s\nusing the checkpoint before it, '%.400s' (step %lld)",
             why_last.msg, prev, (long long)train_ckpt_file_head(*ret_file)->step);
    return AG_OK;
}

int train_rundir_resume(train_rundir *r, train_ckpt_file **ret_file, char ret_warning[1024],
                        ag_err *err)
{
    const int rc = train_rundir_load(r->dir, ret_file, ret_warning, err);
    if (!rc) r->last_is_bad = ret_warning[0] != 0;
    return rc;
}

/* ---- metrics -------------------------------------------------------------------------------- */

/* The number behind the key "step" of a JSON line; -1 if there is none. */
static int64_t line_step(const char *line, size_t n)
{
    static const char key[] = "\"step\"";
    const char *p = memmem(line, n, key, sizeof key - 1);
    if (!p) return -1;
    p += sizeof key - 1;
    p += strspn(p, " ");
    return *p == ':' ? strtoll(p + 1, NULL, 10) : -1;
}

/* Moves the lines up to step, its evaluation only where `evaluated`, to the front of text[size];
 * returns their bytes. */
static size_t keep_lines(char *text, size_t size, int64_t step, bool evaluated)
{
    size_t kept = 0;
    for (size_t at = 0; at < size;) {
        const char *end = memchr(text + at, '\n', size - at);
        if (!end) break;             /* cut off by a kill */
        const size_t n = (size_t)(end - (text + at)) + 1;
        const int64_t of = line_step(text + at, n);
        if (of < step || (of == step && (evaluated || !memmem(text + at, n, "\"val_loss\"", 10)))) {
            memmove(text + kept, text + at, n);
            kept += n;
        }
        at += n;
    }
    return kept;
}

static int metrics_cut(const char *path, int64_t step, bool evaluated, ag_err *err)
{
    char *text = NULL;
    size_t size = 0;
    if (step < 0 || !ag_path_exists(path)) return ag_file_replace(path, "", 0, err);
    int rc = ag_file_read(path, SIZE_MAX - 1, &text, &size, err);
    if (rc) return rc;
    const size_t kept = keep_lines(text, size, step, evaluated);
    if (kept != size) rc = ag_file_replace(path, text, kept, err);
    free(text);
    return rc;
}

int train_rundir_metrics_begin(train_rundir *r, int64_t step, bool evaluated, ag_err *err)
{
    char path[PATH_MAX];
    int rc = train_rundir_path(r->dir, "metrics.jsonl", path, err);
    if (!rc) rc = metrics_cut(path, step, evaluated, err);
    if (rc) return rc;
    const int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0) return ag_err_set(err, AG_EIO, "cannot open '%s': %s", path, strerror(errno));
    if (r->metrics_fd >= 0) close(r->metrics_fd);
    r->metrics_fd = fd;
    return AG_OK;
}

/* Returns 0 or errno. */
static int append(int fd, const char *data, size_t size)
{
    struct stat st;
    if (fstat(fd, &st)) return errno;
    while (size) {
        const ssize_t k = write(fd, data, size);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) {
            const int e = errno;
            return ftruncate(fd, st.st_size) ? errno : e;
        }
        data += k;
        size -= (size_t)k;
    }
    return 0;
}

int train_rundir_metrics_line(train_rundir *r, const char *json, ag_err *err)
{
    char *line;
    const int n = asprintf(&line, "%s\n", json);
    if (n < 0) return ag_err_set(err, AG_ENOMEM, "out of memory for a line of metrics");
    const int e = append(r->metrics_fd, line, (size_t)n);
    free(line);
    return !e ? AG_OK : ag_err_set(err, AG_EIO, "cannot write '%s/metrics.jsonl': %s", r->dir,
                                   strerror(e));
}
