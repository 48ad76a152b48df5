/*
 * h5.c -- HDF5 files in memory.
 *
 * Writing: core driver without a backing file, earliest format (every reader knows it), times off
 * (equal contents, equal bytes), contiguous layout, links in order of creation.  Reading: the core
 * driver works on the caller's bytes without a copy.  Text is of variable length because only that
 * is `str` in h5py.
 */
#include "train/h5.h"

#include <hdf5.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct train_h5 {
    hid_t file, group_plist, data_plist, text, boolean;
    void *image;                     /* the caller's bytes, when reading */
};

enum { MAX_PATH = 512 };             /* of an object, with NUL */

/* ---- library -------------------------------------------------------------------------------- */

static void library_setup(void)
{
    H5dont_atexit();                 /* its exit handler crashes after a failed close */
    H5open();
}

/* Before any other call: the library must not print (the switch is per thread). */
static void library_enter(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, library_setup);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

static herr_t first_reason(unsigned n, const H5E_error2_t *e, void *ret)
{
    if (n == 0) *(const char **)ret = e->desc;
    return 0;
}

/* "cannot WHAT 'PATH': HDF5: ...". */
static int failure(ag_err *err, int code, const char *what, const char *path)
{
    const char *why = NULL;
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first_reason, &why);
    return ag_err_set(err, code, "cannot %s '%s': HDF5: %s", what, *path ? path : "/",
                      why ? why : "no reason given");
}

static hid_t text_type(void)
{
    const hid_t t = H5Tcopy(H5T_C_S1);
    H5Tset_size(t, H5T_VARIABLE);
    H5Tset_cset(t, H5T_CSET_UTF8);
    return t;
}

static hid_t bool_type(void)
{
    const signed char no = 0, yes = 1;
    const hid_t t = H5Tenum_create(H5T_STD_I8LE);
    H5Tenum_insert(t, "FALSE", &no);
    H5Tenum_insert(t, "TRUE", &yes);
    return t;
}

/* The type in the file; all are little-endian. */
static hid_t file_type(const train_h5 *h, train_h5_type type)
{
    switch (type) {
    case TRAIN_H5_U8:   return H5T_STD_U8LE;
    case TRAIN_H5_U32:  return H5T_STD_U32LE;
    case TRAIN_H5_I64:  return H5T_STD_I64LE;
    case TRAIN_H5_U64:  return H5T_STD_U64LE;
    case TRAIN_H5_F32:  return H5T_IEEE_F32LE;
    case TRAIN_H5_F64:  return H5T_IEEE_F64LE;
    case TRAIN_H5_BOOL: return h->boolean;
    case TRAIN_H5_TEXT: return h->text;
    }
    return -1;
}

static const char *type_name(train_h5_type type)
{
    static const char *const name[] = { "bytes", "32-bit integer", "integer", "integer", "float32",
                                        "float64", "flag", "text" };
    return name[type];
}

static const char *root_or(const char *path) { return *path ? path : "/"; }

/* ---- open and close ------------------------------------------------------------------------- */

static train_h5 *handle_new(ag_err *err)
{
    library_enter();
    train_h5 *h = calloc(1, sizeof *h);
    if (!h) {
        ag_err_set(err, AG_ENOMEM, "out of memory");
        return NULL;
    }
    h->text = text_type();
    h->boolean = bool_type();
    h->group_plist = H5Pcreate(H5P_GROUP_CREATE);
    h->data_plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_obj_track_times(h->group_plist, false);
    H5Pset_obj_track_times(h->data_plist, false);
    H5Pset_link_creation_order(h->group_plist, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED);
    return h;
}

int train_h5_close(train_h5 *h, ag_err *err)
{
    int rc = AG_OK;
    if (!h) return AG_OK;
    library_enter();
    H5Tclose(h->text);
    H5Tclose(h->boolean);
    H5Pclose(h->group_plist);
    H5Pclose(h->data_plist);
    if (h->file > 0) {
        const ssize_t n = H5Fget_obj_count(h->file, H5F_OBJ_ALL | H5F_OBJ_LOCAL);
        if (H5Fclose(h->file) < 0) rc = failure(err, AG_EFAIL, "close", "");
        else if (n != 1) rc = ag_err_set(err, AG_EFAIL, "%zd HDF5 objects were left open", n - 1);
    }
    free(h);
    return rc;
}

/* Core driver; SEMI: closing a file with a leaked handle fails instead of leaving it open. */
static hid_t access_plist(size_t increment)
{
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_fapl_core(access, increment, false);
    H5Pset_fclose_degree(access, H5F_CLOSE_SEMI);
    return access;
}

int train_h5_new(size_t bytes, train_h5 **ret_h, ag_err *err)
{
    char name[32];
    train_h5 *h = handle_new(err);
    if (!h) return AG_ENOMEM;
    snprintf(name, sizeof name, "%p", (void *)h);    /* must differ from other open images */
    const hid_t access = access_plist(bytes ? bytes : 1), create = H5Pcreate(H5P_FILE_CREATE);
    H5Pset_obj_track_times(create, false);
    H5Pset_link_creation_order(create, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED);
    h->file = H5Fcreate(name, H5F_ACC_EXCL, create, access);
    H5Pclose(access);
    H5Pclose(create);
    if (h->file < 0) {
        const int rc = failure(err, AG_ENOMEM, "create an image for", "");
        train_h5_close(h, NULL);
        return rc;
    }
    *ret_h = h;
    return AG_OK;
}

int train_h5_image(const train_h5 *h, size_t room, unsigned char **ret_image, size_t *ret_size,
                   ag_err *err)
{
    library_enter();
    const ssize_t size = H5Fflush(h->file, H5F_SCOPE_GLOBAL) < 0
        ? -1 : H5Fget_file_image(h->file, NULL, 0);
    if (size < 0) return failure(err, AG_EFAIL, "finish", "");
    unsigned char *image = malloc((size_t)size + room);
    if (!image) return ag_err_set(err, AG_ENOMEM, "out of memory: %zd bytes for the image", size);
    if (H5Fget_file_image(h->file, image, (size_t)size) != size) {
        free(image);
        return failure(err, AG_EFAIL, "copy", "");
    }
    *ret_image = image;
    *ret_size = (size_t)size;
    return AG_OK;
}

/* How the core driver "allocates" an image: it gets the caller's bytes, and never frees them. */
static void *image_malloc(size_t size, H5FD_file_image_op_t op, void *h)
{
    (void)size, (void)op;
    return ((train_h5 *)h)->image;
}

static void *image_memcpy(void *to, const void *from, size_t size, H5FD_file_image_op_t op, void *h)
{
    (void)from, (void)size, (void)op, (void)h;
    return to;
}

static void *image_realloc(void *p, size_t size, H5FD_file_image_op_t op, void *h)
{
    (void)p, (void)size, (void)op, (void)h;
    return NULL;                     /* the file is read-only: it never grows */
}

static herr_t image_free(void *p, H5FD_file_image_op_t op, void *h)
{
    (void)p, (void)op, (void)h;
    return 0;
}

static void *user_copy(void *h) { return h; }
static herr_t user_free(void *h) { (void)h; return 0; }

int train_h5_open(const unsigned char *image, size_t size, train_h5 **ret_h, ag_err *err)
{
    char name[32];
    train_h5 *h = handle_new(err);
    if (!h) return AG_ENOMEM;
    h->image = (void *)(uintptr_t)image;
    snprintf(name, sizeof name, "%p", (void *)h);
    H5FD_file_image_callbacks_t calls = { image_malloc, image_memcpy, image_realloc, image_free,
                                          user_copy, user_free, h };
    const hid_t access = access_plist(1);
    if (H5Pset_file_image_callbacks(access, &calls) < 0 ||
        H5Pset_file_image(access, h->image, size) < 0)
        h->file = -1;
    else
        h->file = H5Fopen(name, H5F_ACC_RDONLY, access);
    H5Pclose(access);
    if (h->file < 0) {
        const int rc = failure(err, AG_EINPUT, "open", "");
        train_h5_close(h, NULL);
        return rc;
    }
    *ret_h = h;
    return AG_OK;
}

/* ---- writing -------------------------------------------------------------------------------- */

/* Makes the groups of path[n]; each by itself, for those that the library makes on the way to
 * another have times and no order. */
static int make_groups(train_h5 *h, const char *path, size_t n, ag_err *err)
{
    char part[MAX_PATH];
    if (n >= sizeof part)
        return ag_err_set(err, AG_EFAIL, "the name '%.80s...' is longer than %d bytes", path,
                          MAX_PATH - 1);
    for (size_t i = 1; i <= n; i++) {
        if (i < n && path[i] != '/') continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (H5Lexists(h->file, part, H5P_DEFAULT) > 0) continue;
        const hid_t g = H5Gcreate2(h->file, part, H5P_DEFAULT, h->group_plist, H5P_DEFAULT);
        if (g < 0) return failure(err, AG_EFAIL, "create group", part);
        H5Gclose(g);
    }
    return AG_OK;
}

int train_h5_put(train_h5 *h, const char *path, train_h5_type type, const train_h5_shape *shape,
                 const void *data, ag_err *err)
{
    hsize_t dim[TRAIN_H5_MAX_DIM];
    library_enter();
    const char *slash = strrchr(path, '/');
    int rc = slash ? make_groups(h, path, (size_t)(slash - path), err) : AG_OK;
    if (rc) return rc;
    for (int i = 0; i < shape->ndim; i++) dim[i] = (hsize_t)shape->dim[i];
    const hid_t t = file_type(h, type);
    const hid_t space = shape->ndim ? H5Screate_simple(shape->ndim, dim, NULL)
                                    : H5Screate(H5S_SCALAR);
    const hid_t set = H5Dcreate2(h->file, path, t, space, H5P_DEFAULT, h->data_plist, H5P_DEFAULT);
    const void *value = type == TRAIN_H5_TEXT ? (const void *)&data : data;
    if (set < 0)
        rc = failure(err, AG_EFAIL, "create data set", path);
    else if (shape->count && H5Dwrite(set, t, H5S_ALL, H5S_ALL, H5P_DEFAULT, value) < 0)
        rc = failure(err, AG_EFAIL, "write data set", path);
    if (set >= 0) H5Dclose(set);
    H5Sclose(space);
    return rc;
}

int train_h5_put_attr(train_h5 *h, const char *path, const char *name, train_h5_type type,
                      const void *value, ag_err *err)
{
    library_enter();
    int rc = *path ? make_groups(h, path, strlen(path), err) : AG_OK;
    if (rc) return rc;
    const hid_t t = file_type(h, type), space = H5Screate(H5S_SCALAR);
    const hid_t a = H5Acreate_by_name(h->file, root_or(path), name, t, space, H5P_DEFAULT,
                                      H5P_DEFAULT, H5P_DEFAULT);
    if (a < 0 || H5Awrite(a, t, type == TRAIN_H5_TEXT ? (const void *)&value : value) < 0) {
        rc = failure(err, AG_EFAIL, "write an attribute of", path);
        ag_err_prefix(err, "attribute '%s': ", name);
    }
    if (a >= 0) H5Aclose(a);
    H5Sclose(space);
    return rc;
}

/* ---- reading -------------------------------------------------------------------------------- */

bool train_h5_has(const train_h5 *h, const char *path)
{
    char part[MAX_PATH];
    const size_t n = strlen(path);
    if (n == 0 || n >= sizeof part) return n == 0;
    library_enter();
    for (size_t i = 1; i <= n; i++) {
        if (i < n && path[i] != '/') continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (H5Lexists(h->file, part, H5P_DEFAULT) <= 0) return false;
    }
    return true;
}

bool train_h5_has_attr(const train_h5 *h, const char *path, const char *name)
{
    return train_h5_has(h, path) &&
           H5Aexists_by_name(h->file, root_or(path), name, H5P_DEFAULT) > 0;
}

/* Same class, and for text and floats the same kind; integers may differ in width. */
static bool type_fits(const train_h5 *h, hid_t found, train_h5_type type)
{
    const hid_t want = file_type(h, type);
    const H5T_class_t class = H5Tget_class(want);
    if (H5Tget_class(found) != class) return false;
    if (class == H5T_STRING) return H5Tis_variable_str(found) > 0;
    return type == TRAIN_H5_I64 || type == TRAIN_H5_U64 || H5Tget_size(found) == H5Tget_size(want);
}

/* Text that the library allocated, as malloc'ed text. */
static int own_text(char *found, const char *path, char **ret, ag_err *err)
{
    char *copy = strdup(found ? found : "");
    H5free_memory(found);
    if (!copy) return ag_err_set(err, AG_ENOMEM, "out of memory for '%s'", path);
    *ret = copy;
    return AG_OK;
}

/* The shape of an open data set; AG_EINPUT unless it is of that type. */
static int shape_of(const train_h5 *h, hid_t set, const char *path, train_h5_type type,
                    train_h5_shape *ret_shape, ag_err *err)
{
    hsize_t dim[H5S_MAX_RANK];
    const hid_t t = H5Dget_type(set), space = H5Dget_space(set);
    const bool fits = type_fits(h, t, type);
    const int ndim = H5Sget_simple_extent_dims(space, dim, NULL);
    train_h5_shape s = { .ndim = ndim, .count = 1 };
    H5Tclose(t);
    H5Sclose(space);
    if (!fits)
        return ag_err_set(err, AG_EINPUT, "data set '%s' is not of type %s", path,
                          type_name(type));
    if (ndim < 0 || ndim > TRAIN_H5_MAX_DIM)
        return ag_err_set(err, AG_EINPUT, "data set '%s' has %d dimensions, the limit is %d", path,
                          ndim, TRAIN_H5_MAX_DIM);
    for (int i = 0; i < ndim; i++) {
        s.dim[i] = (int64_t)dim[i];
        if (dim[i] > INT64_MAX || __builtin_mul_overflow(s.count, s.dim[i], &s.count))
            return ag_err_set(err, AG_EINPUT, "data set '%s' has an impossible size", path);
    }
    *ret_shape = s;
    return AG_OK;
}

static int open_set(const train_h5 *h, const char *path, hid_t *ret_set, ag_err *err)
{
    library_enter();
    if (!train_h5_has(h, path)) return ag_err_set(err, AG_EINPUT, "no data set '%s'", path);
    const hid_t set = H5Dopen2(h->file, path, H5P_DEFAULT);
    if (set < 0) return failure(err, AG_EINPUT, "open data set", path);
    *ret_set = set;
    return AG_OK;
}

int train_h5_get_shape(const train_h5 *h, const char *path, train_h5_type type,
                       train_h5_shape *ret_shape, ag_err *err)
{
    hid_t set;
    int rc = open_set(h, path, &set, err);
    if (rc) return rc;
    rc = shape_of(h, set, path, type, ret_shape, err);
    H5Dclose(set);
    return rc;
}

int train_h5_get(const train_h5 *h, const char *path, train_h5_type type, void *ret, ag_err *err)
{
    hid_t set;
    train_h5_shape shape;
    char *text = NULL;
    void *to = type == TRAIN_H5_TEXT ? (void *)&text : ret;
    int rc = open_set(h, path, &set, err);
    if (rc) return rc;
    rc = shape_of(h, set, path, type, &shape, err);
    if (!rc && shape.count &&
        H5Dread(set, file_type(h, type), H5S_ALL, H5S_ALL, H5P_DEFAULT, to) < 0)
        rc = failure(err, AG_EINPUT, "read data set", path);
    H5Dclose(set);
    return !rc && type == TRAIN_H5_TEXT ? own_text(text, path, ret, err) : rc;
}

int train_h5_get_attr(const train_h5 *h, const char *path, const char *name, train_h5_type type,
                      void *ret, ag_err *err)
{
    char *text = NULL;
    void *to = type == TRAIN_H5_TEXT ? (void *)&text : ret;
    if (!train_h5_has_attr(h, path, name))
        return ag_err_set(err, AG_EINPUT, "no attribute '%s' of '%s'", name, root_or(path));
    const hid_t a = H5Aopen_by_name(h->file, root_or(path), name, H5P_DEFAULT, H5P_DEFAULT);
    if (a < 0) return failure(err, AG_EINPUT, "open an attribute of", path);
    const hid_t t = H5Aget_type(a), space = H5Aget_space(a);
    int rc = AG_OK;
    if (!type_fits(h, t, type) || H5Sget_simple_extent_npoints(space) != 1)
        rc = ag_err_set(err, AG_EINPUT, "attribute '%s' of '%s' is not of type %s", name,
                        root_or(path), type_name(type));
    else if (H5Aread(a, file_type(h, type), to) < 0)
        rc = failure(err, AG_EINPUT, "read an attribute of", path);
    H5Sclose(space);
    H5Tclose(t);
    H5Aclose(a);
    return !rc && type == TRAIN_H5_TEXT ? own_text(text, path, ret, err) : rc;
}

/* ---- listing -------------------------------------------------------------------------------- */

typedef struct walk {
    const train_h5 *h;
    train_h5_type type;
    train_h5_visit *visit;
    void *user;
    int rc;
} walk;

static herr_t walk_link(hid_t group, const char *path, const H5L_info_t *info, void *user)
{
    walk *w = user;
    train_h5_shape shape;
    if (info->type != H5L_TYPE_HARD) return 0;
    const hid_t object = H5Oopen(group, path, H5P_DEFAULT);
    if (object < 0) return 0;
    const bool fits = H5Iget_type(object) == H5I_DATASET &&
                      shape_of(w->h, object, path, w->type, &shape, NULL) == AG_OK;
    H5Oclose(object);
    if (fits) w->rc = w->visit(path, &shape, w->user);
    return w->rc ? 1 : 0;
}

int train_h5_each(const train_h5 *h, train_h5_type type, train_h5_visit *visit, void *user)
{
    walk w = { h, type, visit, user, 0 };
    library_enter();
    H5Lvisit(h->file, H5_INDEX_CRT_ORDER, H5_ITER_INC, walk_link, &w);
    return w.rc;
}
