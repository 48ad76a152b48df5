/*
 * h5.h -- HDF5 files in memory: the few calls a checkpoint needs, and the only file here that knows
 * libhdf5.
 *
 * libhdf5 never touches the disk: a file is built as an image in memory and handed out as bytes, or
 * opened from bytes that are known to be undamaged (train/seal.h).  Objects are named by their
 * whole path, "model/blocks/0/weight"; "" is the root.  Every error names the path.
 */
#ifndef TRAIN_H5_H
#define TRAIN_H5_H

#include "autograd/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TRAIN_H5_MAX_DIM = 4 };

typedef enum train_h5_type {
    TRAIN_H5_U8, TRAIN_H5_U32, TRAIN_H5_I64, TRAIN_H5_U64, TRAIN_H5_F32, TRAIN_H5_F64,
    TRAIN_H5_BOOL,                   /* signed char 0 or 1; numpy.bool_ in h5py */
    TRAIN_H5_TEXT,                   /* char *, UTF-8; str in h5py */
} train_h5_type;

typedef struct train_h5_shape {
    int ndim;                        /* 0: one number or text */
    int64_t dim[TRAIN_H5_MAX_DIM];
    int64_t count;                   /* elements */
} train_h5_shape;

typedef struct train_h5 train_h5;    /* an open file */

/* An empty file; bytes: about how large it will be, so that it is allocated once. */
int  train_h5_new(size_t bytes, train_h5 **ret_h, ag_err *err);
/* The bytes of a new file, malloc'ed, with room for `room` more behind them.  Equal contents in the
 * same order give equal bytes. */
int  train_h5_image(const train_h5 *h, size_t room, unsigned char **ret_image, size_t *ret_size,
                    ag_err *err);
/* Reads image[size], which must stay as it is until train_h5_close(). */
int  train_h5_open(const unsigned char *image, size_t size, train_h5 **ret_h, ag_err *err);
/* AG_EFAIL if the library still held something open.  NULL is fine. */
int  train_h5_close(train_h5 *h, ag_err *err);

/* Writes a data set; groups on its way are made.  Order of creation is kept.  data: [shape->count]
 * of the type; for TEXT the text itself. */
int  train_h5_put(train_h5 *h, const char *path, train_h5_type type, const train_h5_shape *shape,
                  const void *data, ag_err *err);
/* Writes a scalar attribute of a group (made if missing) or data set. */
int  train_h5_put_attr(train_h5 *h, const char *path, const char *name, train_h5_type type,
                       const void *value, ag_err *err);   /* value: TEXT: the text itself */

bool train_h5_has(const train_h5 *h, const char *path);
bool train_h5_has_attr(const train_h5 *h, const char *path, const char *name);
/* AG_EINPUT if the data set is missing, not of this type, or of too many dimensions. */
int  train_h5_get_shape(const train_h5 *h, const char *path, train_h5_type type,
                        train_h5_shape *ret_shape, ag_err *err);
/* Reads a data set of that type; TEXT: ret is a char **, malloc'ed. */
int  train_h5_get(const train_h5 *h, const char *path, train_h5_type type, void *ret, ag_err *err);
int  train_h5_get_attr(const train_h5 *h, const char *path, const char *name, train_h5_type type,
                       void *ret, ag_err *err);

/* Calls visit for the data sets of that type in file order until it returns non-zero; that comes
 * back. */
typedef int train_h5_visit(const char *path, const train_h5_shape *shape, void *user);
int  train_h5_each(const train_h5 *h, train_h5_type type, train_h5_visit *visit, void *user);

#endif
