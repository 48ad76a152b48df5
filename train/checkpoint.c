/*
 * checkpoint.c -- what goes where in a checkpoint, and what a reader refuses.
 */
#include "train/checkpoint.h"

#include "autograd/base/hash.h"
#include "autograd/base/io.h"
#include "train/h5.h"
#include "train/seal.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "crc32c is of little-endian bytes");
_Static_assert((int)TRAIN_CKPT_MAX_DIM == (int)TRAIN_H5_MAX_DIM, "shapes have one size");

enum { PATH_SIZE = 512, SHAPE_SIZE = 128 };          /* bytes, with NUL */
static const char format_name[] = "tulle-checkpoint";

static int path_join(char path[PATH_SIZE], const char *group, const char *name, ag_err *err)
{
    const int n = snprintf(path, PATH_SIZE, "%s%s%s", group, *group ? "/" : "", name);
    if (n < 0 || n >= PATH_SIZE)
        return ag_err_set(err, AG_EFAIL, "the name '%.60s/%.60s...' is longer than %d bytes", group,
                          name, PATH_SIZE - 1);
    return AG_OK;
}

static int shape_make(const char *path, int ndim, const int64_t *dim, train_h5_shape *ret_shape,
                      ag_err *err)
{
    train_h5_shape s = { .ndim = ndim, .count = 1 };
    if (ndim < 0 || ndim > TRAIN_CKPT_MAX_DIM)
        return ag_err_set(err, AG_ESHAPE, "tensor '%s' has %d dimensions, the limit is %d", path,
                          ndim, TRAIN_CKPT_MAX_DIM);
    for (int i = 0; i < ndim; i++) {
        s.dim[i] = dim[i];
        if (dim[i] < 0 || __builtin_mul_overflow(s.count, dim[i], &s.count) ||
            s.count > (int64_t)(SIZE_MAX / 16))
            return ag_err_set(err, AG_ESHAPE, "tensor '%s' has an impossible size %lld", path,
                              (long long)dim[i]);
    }
    *ret_shape = s;
    return AG_OK;
}

static const char *shape_text(char text[SHAPE_SIZE], const train_h5_shape *s)
{
    int n = snprintf(text, SHAPE_SIZE, "[");
    for (int i = 0; i < s->ndim; i++)
        n += snprintf(text + n, (size_t)(SHAPE_SIZE - n), "%s%lld", i ? ", " : "",
                      (long long)s->dim[i]);
    snprintf(text + n, (size_t)(SHAPE_SIZE - n), "]");
    return text;
}

/* The index of the first NaN or Inf, or -1. */
static int64_t find_nonfinite(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return i;
    return -1;
}

/* ---- saving --------------------------------------------------------------------------------- */

static int put_tensor(train_h5 *h, const train_ckpt_tensor *t, bool allow_nonfinite, ag_err *err)
{
    char path[PATH_SIZE];
    train_h5_shape shape;
    int rc = path_join(path, t->group, t->name, err);
    if (!rc) rc = shape_make(path, t->ndim, t->dim, &shape, err);
    if (rc) return rc;
    const int64_t bad = allow_nonfinite ? -1 : find_nonfinite(t->data, shape.count);
    if (bad >= 0)
        return ag_err_set(err, AG_EDIVERGED, "tensor '%s' holds %g at element %lld", path,
                          (double)t->data[bad], (long long)bad);
    const uint32_t crc = ag_crc32c(0, t->data, (size_t)shape.count * sizeof(float));
    rc = train_h5_put(h, path, TRAIN_H5_F32, &shape, t->data, err);
    return rc ? rc : train_h5_put_attr(h, path, "crc32c", TRAIN_H5_U32, &crc, err);
}

static int put_blob(train_h5 *h, const train_ckpt_blob *b, ag_err *err)
{
    char path[PATH_SIZE];
    const train_h5_shape one = { .count = 1 };
    const int64_t n = (int64_t)b->size;
    const train_h5_shape array = { .ndim = 1, .dim = { n }, .count = n };
    const int rc = path_join(path, b->group, b->name, err);
    if (rc) return rc;
    return b->is_text ? train_h5_put(h, path, TRAIN_H5_TEXT, &one, b->data, err)
                      : train_h5_put(h, path, TRAIN_H5_U8, &array, b->data, err);
}

static int put_attr(train_h5 *h, const train_ckpt_attr *a, ag_err *err)
{
    switch (a->type) {
    case TRAIN_CKPT_I64:
        return train_h5_put_attr(h, a->group, a->name, TRAIN_H5_I64, &a->value.i, err);
    case TRAIN_CKPT_U64:
        return train_h5_put_attr(h, a->group, a->name, TRAIN_H5_U64, &a->value.u, err);
    case TRAIN_CKPT_F64:
        return train_h5_put_attr(h, a->group, a->name, TRAIN_H5_F64, &a->value.f, err);
    case TRAIN_CKPT_TEXT:
        return train_h5_put_attr(h, a->group, a->name, TRAIN_H5_TEXT, a->value.s, err);
    }
    return ag_err_set(err, AG_EFAIL, "attribute '%s' has an unknown type", a->name);
}

static int put_head(train_h5 *h, const train_ckpt *c, ag_err *err)
{
    const train_ckpt_attr head[] = {
        { "", "format", TRAIN_CKPT_TEXT, { .s = format_name } },
        { "", "format_version", TRAIN_CKPT_I64, { .i = TRAIN_CKPT_VERSION } },
        { "", "framework_version", TRAIN_CKPT_TEXT, { .s = c->framework_version } },
        { "", "dtype", TRAIN_CKPT_TEXT, { .s = "float32" } },
        { "", "step", TRAIN_CKPT_I64, { .i = c->head.step } },
        { "", "tokens_seen", TRAIN_CKPT_I64, { .i = c->head.tokens_seen } },
        { "", "seed", TRAIN_CKPT_U64, { .u = c->head.seed } },
        { "", "best_metric", TRAIN_CKPT_F64, { .f = c->head.best_metric } },
        { "", "best_step", TRAIN_CKPT_I64, { .i = c->head.best_step } },
    };
    int rc = AG_OK;
    for (size_t i = 0; !rc && i < sizeof head / sizeof *head; i++) rc = put_attr(h, &head[i], err);
    return rc;
}

static int put_all(train_h5 *h, const train_ckpt *c, ag_err *err)
{
    const signed char yes = 1;
    int rc = put_head(h, c, err);
    for (int i = 0; !rc && i < c->n_blobs; i++) rc = put_blob(h, &c->blob[i], err);
    for (int i = 0; !rc && i < c->n_tensors; i++)
        rc = put_tensor(h, &c->tensor[i], c->allow_nonfinite, err);
    for (int i = 0; !rc && i < c->n_attrs; i++) rc = put_attr(h, &c->attr[i], err);
    return rc ? rc : train_h5_put_attr(h, "", "complete", TRAIN_H5_BOOL, &yes, err);
}

/* About how large the image will be, in bytes. */
static size_t size_guess(const train_ckpt *c)
{
    size_t n = 1 << 16;
    train_h5_shape s;
    for (int i = 0; i < c->n_blobs; i++) n += c->blob[i].size;
    for (int i = 0; i < c->n_tensors; i++)
        if (!shape_make("", c->tensor[i].ndim, c->tensor[i].dim, &s, NULL))
            n += (size_t)s.count * sizeof(float) + 1024;
    return n;
}

static int build_image(const train_ckpt *c, unsigned char **ret_image, size_t *ret_size,
                       ag_err *err)
{
    train_h5 *h;
    unsigned char *image = NULL;
    size_t size = 0;
    int rc = train_h5_new(size_guess(c), &h, err);
    if (rc) return rc;
    rc = put_all(h, c, err);
    if (!rc) rc = train_h5_image(h, TRAIN_SEAL_SIZE, &image, &size, err);
    const int closed = train_h5_close(h, rc ? NULL : err);
    if (!rc) rc = closed;
    if (rc) {
        free(image);
        return rc;
    }
    *ret_image = image;
    *ret_size = size;
    return AG_OK;
}

int train_ckpt_save(const char *path, const char *keep, const train_ckpt *c, ag_err *err)
{
    unsigned char *image = NULL;
    size_t size = 0;
    int rc = build_image(c, &image, &size, err);
    if (rc) {
        ag_err_prefix(err, "checkpoint '%s': ", path);
        return rc;
    }
    train_seal_write(image, size);
    size += TRAIN_SEAL_SIZE;
    rc = keep ? ag_file_replace_keep(path, keep, image, size, err)
              : ag_file_replace(path, image, size, err);
    free(image);
    return rc;
}

/* ---- opening -------------------------------------------------------------------------------- */

struct train_ckpt_file {
    char *path;
    ag_map map;                      /* the image and its seal */
    train_h5 *h5;                    /* reads from map */
    train_ckpt_head head;
    train_ckpt_info *tensor;         /* [n_tensors], room for a power of two */
    int n_tensors;
};

/* Puts the file's name in front of the message; returns rc. */
static int of_file(const train_ckpt_file *f, int rc, ag_err *err)
{
    if (rc) ag_err_prefix(err, "checkpoint '%s': ", f->path);
    return rc;
}

void train_ckpt_close(train_ckpt_file *f)
{
    if (!f) return;
    for (int i = 0; i < f->n_tensors; i++) free(f->tensor[i].path);
    free(f->tensor);
    train_h5_close(f->h5, NULL);
    ag_map_release(&f->map);
    free(f->path);
    free(f);
}

static int check_format(const train_ckpt_file *f, ag_err *err)
{
    char *format;
    int64_t version;
    signed char complete;
    int rc = train_h5_get_attr(f->h5, "", "format", TRAIN_H5_TEXT, &format, err);
    if (rc) return rc;
    if (strcmp(format, format_name))
        rc = ag_err_set(err, AG_EINPUT, "format is '%.40s', not '%s'", format, format_name);
    free(format);
    if (!rc) rc = train_h5_get_attr(f->h5, "", "format_version", TRAIN_H5_I64, &version, err);
    if (rc) return rc;
    if (version > TRAIN_CKPT_VERSION || version < 1)
        return ag_err_set(err, AG_EINPUT, "format version %lld, this program reads up to %d; use a "
                          "newer tulle", (long long)version, TRAIN_CKPT_VERSION);
    rc = train_h5_get_attr(f->h5, "", "complete", TRAIN_H5_BOOL, &complete, err);
    if (!rc && !complete) rc = ag_err_set(err, AG_EINPUT, "it is marked as incomplete");
    return rc;
}

static int read_head(const train_ckpt_file *f, train_ckpt_head *ret, ag_err *err)
{
    int rc = train_h5_get_attr(f->h5, "", "step", TRAIN_H5_I64, &ret->step, err);
    if (!rc) rc = train_h5_get_attr(f->h5, "", "tokens_seen", TRAIN_H5_I64, &ret->tokens_seen, err);
    if (!rc) rc = train_h5_get_attr(f->h5, "", "seed", TRAIN_H5_U64, &ret->seed, err);
    if (!rc) rc = train_h5_get_attr(f->h5, "", "best_metric", TRAIN_H5_F64, &ret->best_metric, err);
    if (!rc) rc = train_h5_get_attr(f->h5, "", "best_step", TRAIN_H5_I64, &ret->best_step, err);
    return rc;
}

/* Appends one tensor to the list, which doubles at powers of two. */
static int list_tensor(const char *path, const train_h5_shape *shape, void *file)
{
    train_ckpt_file *f = file;
    const int n = f->n_tensors;
    ag_map_forget(&f->map);          /* names and shapes lie all over the file */
    if ((n & (n - 1)) == 0) {
        train_ckpt_info *more = realloc(f->tensor, (n ? 2 * (size_t)n : 1) * sizeof *more);
        if (!more) return AG_ENOMEM;
        f->tensor = more;
    }
    train_ckpt_info *t = &f->tensor[n];
    *t = (train_ckpt_info){ .path = strdup(path), .ndim = shape->ndim, .count = shape->count };
    if (!t->path) return AG_ENOMEM;
    memcpy(t->dim, shape->dim, sizeof t->dim);
    f->n_tensors++;
    return AG_OK;
}

static int open_all(train_ckpt_file *f, ag_err *err)
{
    size_t image;
    int rc = train_seal_check(&f->map, &image, err);
    if (!rc) rc = train_h5_open(f->map.data, image, &f->h5, err);
    if (!rc) rc = check_format(f, err);
    if (!rc) rc = read_head(f, &f->head, err);
    if (!rc && train_h5_each(f->h5, TRAIN_H5_F32, list_tensor, f))
        rc = ag_err_set(err, AG_ENOMEM, "out of memory for the list of tensors");
    return rc;
}

int train_ckpt_open(const char *path, train_ckpt_file **ret_file, ag_err *err)
{
    train_ckpt_file *f = calloc(1, sizeof *f);
    if (!f || !(f->path = strdup(path))) {
        free(f);
        return ag_err_set(err, AG_ENOMEM, "checkpoint '%s': out of memory", path);
    }
    int rc = ag_file_map(path, &f->map, err);
    if (!rc) rc = open_all(f, err);
    if (rc) {
        of_file(f, rc, err);
        train_ckpt_close(f);
        return rc;
    }
    *ret_file = f;
    return AG_OK;
}

const train_ckpt_head *train_ckpt_file_head(const train_ckpt_file *f) { return &f->head; }

const train_ckpt_info *train_ckpt_file_tensors(const train_ckpt_file *f, int *ret_n)
{
    *ret_n = f->n_tensors;
    return f->tensor;
}

bool train_ckpt_has(const train_ckpt_file *f, const char *path)
{
    return train_h5_has(f->h5, path);
}

bool train_ckpt_has_attr(const train_ckpt_file *f, const char *group, const char *name)
{
    return train_h5_has_attr(f->h5, group, name);
}

/* ---- reading -------------------------------------------------------------------------------- */

static int check_shape(const train_ckpt_file *f, const char *path, const train_h5_shape *want,
                       ag_err *err)
{
    static const char hint[] = "is it a checkpoint of another model?";
    char a[SHAPE_SIZE], b[SHAPE_SIZE];
    train_h5_shape found;
    if (!train_h5_has(f->h5, path))
        return ag_err_set(err, AG_EINPUT, "no data set '%s'; %s", path, hint);
    const int rc = train_h5_get_shape(f->h5, path, TRAIN_H5_F32, &found, err);
    if (rc) return rc;
    if (found.ndim == want->ndim &&
        memcmp(found.dim, want->dim, (size_t)want->ndim * sizeof *found.dim) == 0)
        return AG_OK;
    return ag_err_set(err, AG_EINPUT, "data set '%s' has shape %s, the model needs %s; %s", path,
                      shape_text(a, &found), shape_text(b, want), hint);
}

/* The bytes of a tensor of that many elements, checked against their checksum.  They are in memory
 * once: the file's are forgotten. */
static int read_checked(const train_ckpt_file *f, const char *path, int64_t count, float *data,
                        ag_err *err)
{
    uint32_t crc;
    int rc = train_h5_get_attr(f->h5, path, "crc32c", TRAIN_H5_U32, &crc, err);
    if (!rc) rc = train_h5_get(f->h5, path, TRAIN_H5_F32, data, err);
    ag_map_forget(&f->map);
    if (!rc && ag_crc32c(0, data, (size_t)count * sizeof(float)) != crc)
        rc = ag_err_set(err, AG_EINPUT, "data set '%s' is damaged: checksum differs", path);
    return rc;
}

int train_ckpt_read(const train_ckpt_file *f, const char *group, const char *name, int ndim,
                    const int64_t *dim, bool allow_nonfinite, float *ret_data, ag_err *err)
{
    char path[PATH_SIZE];
    train_h5_shape want;
    int rc = path_join(path, group, name, err);
    if (!rc) rc = shape_make(path, ndim, dim, &want, err);
    if (!rc) rc = check_shape(f, path, &want, err);
    if (!rc) rc = read_checked(f, path, want.count, ret_data, err);
    const int64_t bad = rc || allow_nonfinite ? -1 : find_nonfinite(ret_data, want.count);
    if (bad >= 0)
        rc = ag_err_set(err, AG_EINPUT, "data set '%s' holds %g at element %lld", path,
                        (double)ret_data[bad], (long long)bad);
    return of_file(f, rc, err);
}

int train_ckpt_get_i64(const train_ckpt_file *f, const char *group, const char *name, int64_t *ret,
                       ag_err *err)
{
    return of_file(f, train_h5_get_attr(f->h5, group, name, TRAIN_H5_I64, ret, err), err);
}

int train_ckpt_get_u64(const train_ckpt_file *f, const char *group, const char *name, uint64_t *ret,
                       ag_err *err)
{
    return of_file(f, train_h5_get_attr(f->h5, group, name, TRAIN_H5_U64, ret, err), err);
}

int train_ckpt_get_f64(const train_ckpt_file *f, const char *group, const char *name, double *ret,
                       ag_err *err)
{
    return of_file(f, train_h5_get_attr(f->h5, group, name, TRAIN_H5_F64, ret, err), err);
}

int train_ckpt_get_text(const train_ckpt_file *f, const char *group, const char *name, char **ret,
                        ag_err *err)
{
    return of_file(f, train_h5_get_attr(f->h5, group, name, TRAIN_H5_TEXT, ret, err), err);
}

int train_ckpt_read_text(const train_ckpt_file *f, const char *group, const char *name,
                         char **ret_text, ag_err *err)
{
    char path[PATH_SIZE];
    int rc = path_join(path, group, name, err);
    if (!rc) rc = train_h5_get(f->h5, path, TRAIN_H5_TEXT, ret_text, err);
    return of_file(f, rc, err);
}

static int read_bytes(const train_ckpt_file *f, const char *path, char **ret_data, size_t *ret_size,
                      ag_err *err)
{
    train_h5_shape shape;
    int rc = train_h5_get_shape(f->h5, path, TRAIN_H5_U8, &shape, err);
    if (rc) return rc;
    if ((uint64_t)shape.count > f->map.size)
        return ag_err_set(err, AG_EINPUT, "data set '%s' is larger than the file", path);
    char *data = malloc((size_t)shape.count + 1);
    if (!data) return ag_err_set(err, AG_ENOMEM, "out of memory for '%s'", path);
    rc = train_h5_get(f->h5, path, TRAIN_H5_U8, data, err);
    if (rc) {
        free(data);
        return rc;
    }
    data[shape.count] = 0;
    *ret_data = data;
    *ret_size = (size_t)shape.count;
    return AG_OK;
}

int train_ckpt_read_bytes(const train_ckpt_file *f, const char *group, const char *name,
                          char **ret_data, size_t *ret_size, ag_err *err)
{
    char path[PATH_SIZE];
    int rc = path_join(path, group, name, err);
    if (!rc) rc = read_bytes(f, path, ret_data, ret_size, err);
    return of_file(f, rc, err);
}

/* ---- figures -------------------------------------------------------------------------------- */

static train_ckpt_stats stats_of(const float *x, int64_t n)
{
    double squares = 0;
    int64_t zeros = 0, nonfinite = 0;
    for (int64_t i = 0; i < n; i++) {
        zeros += x[i] == 0;
        if (isfinite(x[i])) squares += (double)x[i] * (double)x[i];
        else nonfinite++;
    }
    const int64_t finite = n - nonfinite;
    return (train_ckpt_stats){ .rms = finite ? sqrt(squares / (double)finite) : 0,
                               .zeros = n ? (double)zeros / (double)n : 0, .nonfinite = nonfinite };
}

int train_ckpt_stat(const train_ckpt_file *f, int i, train_ckpt_stats *ret_stats, ag_err *err)
{
    const train_ckpt_info *t = &f->tensor[i];
    if ((uint64_t)t->count > f->map.size / sizeof(float))
        return of_file(f, ag_err_set(err, AG_EINPUT, "data set '%s' is larger than the file",
                                     t->path), err);
    float *x = malloc((size_t)t->count * sizeof *x + 1);
    if (!x) return of_file(f, ag_err_set(err, AG_ENOMEM, "out of memory for '%s'", t->path), err);
    const int rc = read_checked(f, t->path, t->count, x, err);
    if (!rc) *ret_stats = stats_of(x, t->count);
    free(x);
    return of_file(f, rc, err);
}
