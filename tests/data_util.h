/*
 * data_util.h -- a temporary folder and small files for the tests of data/.
 */
#ifndef TESTS_DATA_UTIL_H
#define TESTS_DATA_UTIL_H

#include "data/data.h"
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <cmocka.h>

static char tmp_dir[256];

static inline int tmp_make(void **state)
{
    const char *base = getenv("TMPDIR");
    (void)state;
    snprintf(tmp_dir, sizeof tmp_dir, "%s/tulle-test-XXXXXX", base ? base : "/tmp");
    return mkdtemp(tmp_dir) ? setenv("XDG_CACHE_HOME", tmp_dir, 1) : -1;
}

static inline int tmp_remove_one(const char *path, const struct stat *st, int flag, struct FTW *f)
{
    (void)st, (void)flag, (void)f;
    return remove(path);
}

static inline int tmp_remove(void **state)
{
    (void)state;
    return nftw(tmp_dir, tmp_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The path of a file in the folder; four at a time. */
static inline char *tmp_path(const char *name)
{
    static char path[4][512];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", tmp_dir, name);
    return p;
}

static inline char *tmp_write(const char *name, const void *data, size_t size)
{
    char *path = tmp_path(name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    return path;
}

static inline void *read_all(const char *path, size_t *ret_size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *ret_size = (size_t)ftell(f);
    rewind(f);
    char *p = malloc(*ret_size + 1);
    assert_non_null(p);
    assert_int_equal(fread(p, 1, *ret_size, f), *ret_size);
    fclose(f);
    return p;
}

static inline data_options options(const char *source, const char *path, int64_t context)
{
    data_options o = data_options_default();
    o.source = source;
    o.path = path;
    o.context = context;
    return o;
}

static inline data_set *open_ok(const data_options *o)
{
    ag_err err = {0};
    data_set *d = NULL;
    if (data_open(o, &d, &err))
        fail_msg("%s", err.msg);
    return d;
}

/* data_open must fail with this code and a message that has these words. */
static inline void open_bad(const data_options *o, int code, const char *words)
{
    ag_err err = {0};
    data_set *d = NULL;
    const int rc = data_open(o, &d, &err);
    if (rc != code || !strstr(err.msg, words) || d)
        fail_msg("code %d, message '%s'; expected %d, '%s'", rc, err.msg, code, words);
}

/* dir/name of the real data, or NULL where it is absent: then skip(). */
static inline const char *real_data(const char *name)
{
    static char path[1024];
    const char *dir = getenv("TULLE_DATA");
    if (!dir || !*dir)
        return NULL;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return access(path, R_OK) == 0 ? path : NULL;
}

static inline char *write_gz(const char *name, const void *data, size_t size)
{
    char *path = tmp_path(name);
    gzFile f = gzopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(gzwrite(f, data, (unsigned)size), size);
    assert_int_equal(gzclose(f), Z_OK);
    return path;
}

#endif
