/*
 * idx.c -- MNIST's format: images and labels as IDX files, plain or gzip, in one folder.
 *
 * An IDX file is 0, 0, type (8: u8), rank, then rank big-endian u32 dimensions, then the data.  The
 * sizes in the header are checked against the real size before anything is allocated.
 */
#include "data/internal.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct idx {
    int rank;
    int64_t dim[3];
    int64_t head;
    int64_t size;
} idx; /* sizes in bytes */

static int parse(const unsigned char *p, size_t n, const char *path, idx *ret, ag_err *err)
{
    idx x = {.size = 1};
    if (n == 0)
        return ag_err_set(err, AG_EINPUT, "'%s' is empty", path);
    if (n < 4 || p[0] || p[1] || p[2] != 8 || (p[3] != 1 && p[3] != 3))
        return ag_err_set(err, AG_EINPUT,
                          "'%s' is no IDX file of bytes with 1 or 3 dimensions (it begins with"
                          " %02x %02x %02x %02x)",
                          path, n > 0 ? p[0] : 0, n > 1 ? p[1] : 0, n > 2 ? p[2] : 0,
                          n > 3 ? p[3] : 0);
    x.rank = p[3];
    x.head = 4 + 4 * x.rank;
    if (n < (size_t)x.head)
        return ag_err_set(err, AG_EINPUT, "'%s' breaks off in its header", path);
    for (int i = 0; i < x.rank; i++) {
        const unsigned char *q = p + 4 + 4 * i;
        x.dim[i] = (int64_t)q[0] << 24 | q[1] << 16 | q[2] << 8 | q[3];
        if (x.dim[i] == 0)
            return ag_err_set(err, AG_EINPUT, "'%s' is empty: dimension %d is 0", path, i);
        if (x.dim[i] > (INT64_C(1) << 40) / x.size)
            return ag_err_set(err, AG_EINPUT, "'%s' claims more than 2^40 bytes", path);
        x.size *= x.dim[i];
    }
    *ret = x;
    return AG_OK;
}

static int64_t size_of(const unsigned char *head, size_t n, const char *path, ag_err *err)
{
    idx x = {0};
    const int rc = parse(head, n, path, &x, err);
    return rc ? rc : x.head + x.size;
}

/* The file of a folder with one of the names in use; NULL if there is none or memory is out. */
static char *find(const char *dir, const char *part, const char *what, int rank)
{
    static const char *const form[] = {"%s/%s-%s-idx%d-ubyte", "%s/%s-%s-idx%d-ubyte.gz",
                                       "%s/%s-%s.idx%d-ubyte", "%s/%s-%s.idx%d-ubyte.gz"};
    char *path = malloc(strlen(dir) + 64);
    for (size_t i = 0; path && i < sizeof form / sizeof *form; i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(path, strlen(dir) + 64, form[i], dir, part, what, rank);
#pragma GCC diagnostic pop
        if (ag_path_exists(path))
            return path;
    }
    free(path);
    return NULL;
}

/* Loads one file of the folder into memory that d owns; *ret_at points behind its header. */
static int load(data_set *d, const char *path, int rank, idx *ret_idx, const unsigned char **ret_at,
                ag_err *err)
{
    data_bytes b;
    int rc = data_bytes_load_sized(path, size_of, &b, err);
    if (rc)
        return rc;
    rc = parse(b.at, b.size, path, ret_idx, err);
    if (rc == AG_OK && ret_idx->rank != rank)
        rc = ag_err_set(err, AG_EINPUT, "'%s' holds %s", path,
                        rank == 1 ? "images where labels belong" : "labels where images belong");
    unsigned char *keep = NULL;
    if (rc == AG_OK && b.unpacked) {
        keep = b.unpacked;
        b.unpacked = NULL;
    } else if (rc == AG_OK && (keep = malloc(b.size))) {
        memcpy(keep, b.at, b.size);
    }
    data_bytes_release(&b);
    if (rc == AG_OK)
        rc = data_own(d, keep, (size_t)(ret_idx->head + ret_idx->size), err);
    if (rc == AG_OK)
        *ret_at = keep + ret_idx->head;
    return rc;
}

static int load_part(data_set *d, int split, const char *images, const char *labels, ag_err *err)
{
    data_images *im = &d->images[split];
    const unsigned char *at;
    idx x, y;
    int rc = load(d, images, 3, &x, &im->at, err);
    if (rc || (rc = load(d, labels, 1, &y, &at, err)))
        return rc;
    if (x.dim[0] != y.dim[0])
        return ag_err_set(err, AG_EINPUT,
                          "'%s' has %" PRId64 " images, but '%s' has %" PRId64 " labels", images,
                          x.dim[0], labels, y.dim[0]);
    if (split != DATA_TRAIN && (x.dim[1] != d->h || x.dim[2] != d->w))
        return ag_err_set(err, AG_EINPUT,
                          "'%s' has images of %" PRId64 " x %" PRId64
                          ", the training part of %" PRId64 " x %" PRId64,
                          images, x.dim[1], x.dim[2], d->h, d->w);
    int32_t *label = malloc((size_t)y.size * sizeof *label);
    if ((rc = data_own(d, label, (size_t)y.size * sizeof *label, err)))
        return rc;
    for (int64_t i = 0; i < y.size; i++)
        label[i] = at[i];
    im->label = label;
    im->n = x.dim[0];
    d->h = x.dim[1];
    d->w = x.dim[2];
    d->c = 1;
    if ((rc = data_add_file(d, images, err)))
        return rc;
    return data_add_file(d, labels, err);
}

int data_open_idx(const data_options *o, const char *dir, int n_classes, data_set *d, ag_err *err)
{
    static const char *const part[2] = {"train", "t10k"};
    int rc = AG_OK;
    d->kind = DATA_IMAGES;
    for (int s = DATA_TRAIN; s <= DATA_VAL && rc == AG_OK; s++) {
        char *images = find(dir, part[s], "images", 3), *labels = find(dir, part[s], "labels", 1);
        if (images && labels)
            rc = load_part(d, s, images, labels, err);
        else if (images || labels || s == DATA_TRAIN)
            rc = ag_err_set(err, AG_EINPUT,
                            "'%s' has no %s-%s file (%s-%s-idx%d-ubyte, plain or .gz)", dir,
                            part[s], images ? "labels" : "images", part[s],
                            images ? "labels" : "images", images ? 1 : 3);
        free(images);
        free(labels);
    }
    if (rc)
        return rc;
    data_split_images(d, o->val_fraction, o->test_fraction);
    return data_check_labels(d, n_classes, dir, err);
}
