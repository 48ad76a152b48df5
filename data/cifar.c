/*
 * cifar.c -- CIFAR-10 in its published binary form: a folder of data_batch_1.bin to 5 and
 * test_batch.bin, or the tar.gz that holds it.
 *
 * A record is a label and 3 x 32 x 32 bytes, red, green, blue, rows from the top
 * (www.cs.toronto.edu/~kriz/cifar.html); here pixels lie as [32, 32, 3].  The last 1/25 of the
 * training images validates, 48,000 and 2,000 of the whole set as in Sparse Transformers (arXiv
 * 1904.10509, section 7.1: which ones it does not say); test_batch is the test part.
 */
#include "data/internal.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE = 32, PLANE = SIDE * SIDE, PIXELS = 3 * PLANE, RECORD = 1 + PIXELS, FILES = 6,
       CLASSES = 10, TAR_BLOCK = 512 };

static const char *const file_name[FILES] = {"data_batch_1.bin", "data_batch_2.bin",
                                             "data_batch_3.bin", "data_batch_4.bin",
                                             "data_batch_5.bin", "test_batch.bin"};

typedef struct batch { const unsigned char *at; size_t size; } batch;  /* a file in memory */

/* ---- the archive: POSIX ustar ---- */

static bool octal(const unsigned char *p, size_t n, size_t *ret)
{
    size_t v = 0, i = 0;
    while (i < n && p[i] == ' ')
        i++;
    const size_t first = i;
    for (; i < n && p[i] >= '0' && p[i] <= '7'; i++)
        v = v * 8 + (size_t)(p[i] - '0');
    *ret = v;
    return i > first && v < (size_t)1 << 40;
}

/* The sum of the header's bytes, its own field taken as blanks. */
static size_t header_sum(const unsigned char *p)
{
    size_t sum = 0;
    for (int i = 0; i < TAR_BLOCK; i++)
        sum += i >= 148 && i < 156 ? ' ' : p[i];
    return sum;
}

static int scan_tar(const data_bytes *b, const char *path, batch *ret, ag_err *err)
{
    for (size_t at = 0; at + TAR_BLOCK <= b->size && b->at[at];) {
        const unsigned char *p = b->at + at;
        char name[101] = "";
        size_t size, sum;
        if (!octal(p + 124, 12, &size) || !octal(p + 148, 8, &sum) || sum != header_sum(p))
            return ag_err_set(err, AG_EINPUT,
                              "'%s' is no tar archive, or damaged, at byte %zu of its contents",
                              path, at);
        at += TAR_BLOCK;
        if (size > b->size - at)
            return ag_err_set(err, AG_EINPUT, "'%s' is cut off: a file of %zu bytes at byte %zu of"
                              " its contents, which are %zu bytes", path, size, at, b->size);
        memcpy(name, p, 100);
        const char *base = strrchr(name, '/') ? strrchr(name, '/') + 1 : name;
        for (int i = 0; i < FILES; i++)
            if (!strcmp(base, file_name[i]))
                ret[i] = (batch){b->at + at, size};
        const size_t next = (size + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
        at = next > b->size - at ? b->size : at + next;
    }
    for (int i = 0; i < FILES; i++)
        if (!ret[i].at)
            return ag_err_set(err, AG_EINPUT, "'%s' has no file %s", path, file_name[i]);
    return AG_OK;
}

/* ---- records ---- */

/* Records of a file, or a negative code. */
static int64_t count(const batch *b, const char *path, const char *name, ag_err *err)
{
    if (b->size == 0 || b->size % RECORD)
        return ag_err_set(err, AG_EINPUT, "'%s': %s has %zu bytes, no whole number of records of"
                          " %d (a label and 3 x 32 x 32 pixels)", path, name, b->size, RECORD);
    return (int64_t)(b->size / RECORD);
}

static int copy_records(const batch *b, int64_t n, const char *path, const char *name,
                        uint8_t *pixel, int32_t *label, ag_err *err)
{
    for (int64_t i = 0; i < n; i++) {
        const unsigned char *p = b->at + i * RECORD;
        uint8_t *q = pixel + i * PIXELS;
        if (p[0] >= CLASSES)
            return ag_err_set(err, AG_EINPUT, "'%s': image %" PRId64 " of %s has the label %d, not"
                              " 0 to 9: is it CIFAR-10, binary version?", path, i, name, p[0]);
        label[i] = p[0];
        for (int k = 0; k < PLANE; k++)
            for (int c = 0; c < 3; c++)
                q[3 * k + c] = p[1 + c * PLANE + k];
    }
    return AG_OK;
}

static int read_batches(const batch *b, const char *path, data_set *d, ag_err *err)
{
    int64_t n[FILES], all = 0, at = 0;
    for (int i = 0; i < FILES; i++) {
        if ((n[i] = count(&b[i], path, file_name[i], err)) < 0)
            return (int)n[i];
        all += n[i];
    }
    uint8_t *pixel = malloc((size_t)(all * PIXELS));
    int rc = data_own(d, pixel, (size_t)(all * PIXELS), err);
    if (rc)
        return rc;
    int32_t *label = malloc((size_t)all * sizeof *label);
    if ((rc = data_own(d, label, (size_t)all * sizeof *label, err)))
        return rc;
    for (int i = 0; i < FILES; at += n[i++])
        if ((rc = copy_records(&b[i], n[i], path, file_name[i], pixel + at * PIXELS, label + at,
                               err)))
            return rc;
    const int64_t test = n[FILES - 1], val = (all - test) / 25, train = all - test - val;
    d->kind = DATA_IMAGES;
    d->h = d->w = SIDE;
    d->c = 3;
    d->n_classes = CLASSES;
    d->images[DATA_TRAIN] = (data_images){pixel, label, train};
    d->images[DATA_VAL] = (data_images){pixel + train * PIXELS, label + train, val};
    d->images[DATA_TEST] = (data_images){pixel + (train + val) * PIXELS, label + train + val, test};
    return AG_OK;
}

static int open_archive(const char *path, data_set *d, ag_err *err)
{
    batch b[FILES] = {{0}};
    data_bytes all;
    int rc = data_bytes_load(path, &all, err);
    if (rc)
        return rc;
    if ((rc = scan_tar(&all, path, b, err)) == AG_OK)
        rc = read_batches(b, path, d, err);
    data_bytes_release(&all);
    return rc ? rc : data_add_file(d, path, err);
}

static int open_folder(const char *dir, data_set *d, ag_err *err)
{
    data_bytes file[FILES] = {{0}};
    batch b[FILES];
    int rc = AG_OK;
    for (int i = 0; i < FILES && rc == AG_OK; i++) {
        char *path = data_path_join(dir, file_name[i]);
        if (!path)
            rc = ag_err_set(err, AG_ENOMEM, "no memory for a file name");
        else if (!ag_path_exists(path))
            rc = ag_err_set(err, AG_EINPUT, "'%s' has no file %s", dir, file_name[i]);
        else if ((rc = data_bytes_load(path, &file[i], err)) == AG_OK)
            rc = data_add_file(d, path, err);
        free(path);
        b[i] = (batch){file[i].at, file[i].size};
    }
    if (rc == AG_OK)
        rc = read_batches(b, dir, d, err);
    for (int i = 0; i < FILES; i++)
        data_bytes_release(&file[i]);
    return rc;
}

int data_open_cifar(const data_options *o, const char *path, data_set *d, ag_err *err)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    (void)o;
    for (int i = 0; i < FILES; i++) {
        if (strcmp(base, file_name[i]))
            continue;
        char *dir = slash ? strndup(path, (size_t)(slash - path) + (slash == path)) : strdup(".");
        const int rc = dir ? open_folder(dir, d, err)
                           : ag_err_set(err, AG_ENOMEM, "no memory for a file name");
        free(dir);
        return rc;
    }
    return open_archive(path, d, err);
}
