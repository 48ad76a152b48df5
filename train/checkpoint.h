/*
 * checkpoint.h -- all state of a run in one HDF5 file that h5py opens unaided.
 *
 * The file knows nothing of models: the caller lists tensors, attributes and blobs, each by group
 * and name, and they are stored in that order (keys() in h5py follow it):
 *
 *   /                       format, format_version, complete, dtype, framework_version, the head
 *   /config/yaml            text
 *   /tokenizer/...          bytes
 *   /model/...              f32 tensors, row-major (out, in), attribute crc32c of their bytes
 *   /optimizer/adamw/m/...  likewise
 *   /train/...              attributes: scaler, sampler, schedule
 *
 * The image is built in memory, sealed (train/seal.h) and written by ag_file_replace(), so a kill
 * or a full disk at any point leaves a whole checkpoint.  Equal contents give equal bytes.  One
 * thread at a time uses this interface.
 */
#ifndef TRAIN_CHECKPOINT_H
#define TRAIN_CHECKPOINT_H

#include "autograd/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TRAIN_CKPT_VERSION = 1, TRAIN_CKPT_MAX_DIM = 4 };

typedef struct train_ckpt_head {     /* attributes of the root */
    int64_t  step;                   /* optimizer steps done */
    int64_t  tokens_seen;
    uint64_t seed;
    double   best_metric;            /* NaN until there is one */
    int64_t  best_step;              /* -1 until there is one */
} train_ckpt_head;

typedef struct train_ckpt_tensor {
    const char *group;               /* "model", "optimizer/adamw/m" */
    const char *name;                /* "blocks/0/attn/qkv/weight" */
    int ndim;                        /* 0 .. TRAIN_CKPT_MAX_DIM */
    int64_t dim[TRAIN_CKPT_MAX_DIM];
    const float *data;               /* [product of dim], contiguous */
} train_ckpt_tensor;

typedef enum train_ckpt_type { TRAIN_CKPT_I64, TRAIN_CKPT_U64, TRAIN_CKPT_F64, TRAIN_CKPT_TEXT }
    train_ckpt_type;

typedef struct train_ckpt_attr {
    const char *group;               /* "train/scaler"; a tensor's path works too; "" is the root */
    const char *name;
    train_ckpt_type type;
    union { int64_t i; uint64_t u; double f; const char *s; } value;
} train_ckpt_attr;

typedef struct train_ckpt_blob {
    const char *group, *name;        /* "config", "yaml" */
    const void *data;                /* [size]; text ends with a NUL that size does not count */
    size_t size;                     /* bytes */
    bool is_text;                    /* UTF-8: a str in h5py; otherwise an array of u8 */
} train_ckpt_blob;

typedef struct train_ckpt {          /* what to save */
    train_ckpt_head head;
    const char *framework_version;   /* "0.1.0" */
    const train_ckpt_tensor *tensor; /* [n_tensors] */
    const train_ckpt_attr   *attr;   /* [n_attrs] */
    const train_ckpt_blob   *blob;   /* [n_blobs] */
    int n_tensors, n_attrs, n_blobs;
    bool allow_nonfinite;            /* otherwise a NaN or Inf in a tensor is AG_EDIVERGED */
} train_ckpt;

/* Replaces path.  keep is NULL or where the old file goes (ag_file_replace_keep).  AG_EIO,
 * AG_ENOMEM, AG_EDIVERGED, AG_ESHAPE, AG_EFAIL if HDF5 refuses (a name used twice). */
int train_ckpt_save(const char *path, const char *keep, const train_ckpt *c, ag_err *err);

typedef struct train_ckpt_file train_ckpt_file;      /* an open checkpoint */

/* Verifies the whole file before anything is read from it.  AG_EINPUT: truncated, damaged, of a
 * newer format, incomplete, no checkpoint; AG_EIO, AG_ENOMEM. */
int  train_ckpt_open(const char *path, train_ckpt_file **ret_file, ag_err *err);
void train_ckpt_close(train_ckpt_file *f);           /* NULL is fine */
const train_ckpt_head *train_ckpt_file_head(const train_ckpt_file *f);

typedef struct train_ckpt_info {     /* a tensor in the file */
    char *path;                      /* "model/blocks/0/attn/qkv/weight" */
    int ndim;
    int64_t dim[TRAIN_CKPT_MAX_DIM];
    int64_t count;                   /* elements */
} train_ckpt_info;

/* The f32 tensors in file order; other data is ignored. */
const train_ckpt_info *train_ckpt_file_tensors(const train_ckpt_file *f, int *ret_n);
bool train_ckpt_has(const train_ckpt_file *f, const char *path);         /* group or data set */
bool train_ckpt_has_attr(const train_ckpt_file *f, const char *group, const char *name);

/* Reads group/name into data[product of dim].  AG_EINPUT if it is missing, has another shape, fails
 * its checksum, or holds a NaN or Inf that allow_nonfinite does not allow; in the last two cases
 * ret_data has been written. */
int train_ckpt_read(const train_ckpt_file *f, const char *group, const char *name, int ndim,
                    const int64_t *dim, bool allow_nonfinite, float *ret_data, ag_err *err);

/* Attributes: AG_EINPUT if missing or of another type.  Text is malloc'ed. */
int train_ckpt_get_i64(const train_ckpt_file *f, const char *group, const char *name, int64_t *ret,
                       ag_err *err);
int train_ckpt_get_u64(const train_ckpt_file *f, const char *group, const char *name, uint64_t *ret,
                       ag_err *err);
int train_ckpt_get_f64(const train_ckpt_file *f, const char *group, const char *name, double *ret,
                       ag_err *err);
int train_ckpt_get_text(const train_ckpt_file *f, const char *group, const char *name, char **ret,
                        ag_err *err);

/* Blobs, malloc'ed with a NUL behind them; size without the NUL.  AG_EINPUT, AG_ENOMEM. */
int train_ckpt_read_text(const train_ckpt_file *f, const char *group, const char *name,
                         char **ret_text, ag_err *err);
int train_ckpt_read_bytes(const train_ckpt_file *f, const char *group, const char *name,
                          char **ret_data, size_t *ret_size, ag_err *err);

typedef struct train_ckpt_stats {
    double  rms;                     /* of the finite elements, 0 if there are none */
    double  zeros;                   /* fraction of elements that are exactly 0 */
    int64_t nonfinite;               /* elements that are NaN or Inf */
} train_ckpt_stats;

/* Of tensor i of train_ckpt_file_tensors(). */
int train_ckpt_stat(const train_ckpt_file *f, int i, train_ckpt_stats *ret_stats, ag_err *err);

#endif
