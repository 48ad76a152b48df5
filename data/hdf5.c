/*
 * hdf5.c -- the only file of data/ that calls libhdf5: looks into foreign files, copies out of
 * them, writes ours.
 *
 * data_h5_inspect and data_h5_copy meet files that anybody may have made, and run in a guarded
 * child (guard.c).  They follow hard links only, and take plain integer arrays, contiguous, compact
 * or in chunks with the usual filters.
 */
#include "data/internal.h"
#include <hdf5.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, RATIO = 1040, CHUNK_CACHE = 64 << 20 };

/* ---- reading, in the child ---- */

static bool fail(h5_reply *r, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static bool fail(h5_reply *r, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->msg, sizeof r->msg, fmt, ap);
    va_end(ap);
    r->code = code;
    return false;
}

static hid_t open_file(const h5_job *j, h5_reply *r)
{
    H5dont_atexit();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    H5PLset_loading_state(0);                            /* no filter plugins */
    const hid_t f = H5Fopen(j->path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (f < 0)
        fail(r, AG_EINPUT, "libhdf5 cannot open it: it is damaged or being written");
    return f;
}

/* 1 if name is reached by hard links alone, 0 if it is not there, -1 if something else leads to
 * it. */
static int has_path(hid_t f, const char *name)
{
    char part[256];
    const size_t len = strlen(name);
    if (len >= sizeof part)
        return -1;
    for (size_t i = 1; i <= len; i++) {
        H5L_info_t info;
        if (name[i] != '/' && name[i] != '\0')
            continue;
        memcpy(part, name, i);
        part[i] = '\0';
        if (H5Lexists(f, part, H5P_DEFAULT) <= 0)
            return 0;
        if (H5Lget_info(f, part, &info, H5P_DEFAULT) < 0 || info.type != H5L_TYPE_HARD)
            return -1;
    }
    return 1;
}

static bool filters_known(hid_t dcpl)
{
    const int n = H5Pget_nfilters(dcpl);
    for (int i = 0; i < n; i++) {
        unsigned flags;
        size_t values = 0;
        const H5Z_filter_t z =
            H5Pget_filter2(dcpl, (unsigned)i, &flags, &values, NULL, 0, NULL, NULL);
        if (z != H5Z_FILTER_DEFLATE && z != H5Z_FILTER_SHUFFLE && z != H5Z_FILTER_FLETCHER32)
            return false;
    }
    return n >= 0;
}

static bool inspect_shape(hid_t space, const char *name, h5_array *a, h5_reply *r)
{
    hsize_t dim[H5S_MAX_RANK];
    const int rank = H5Sget_simple_extent_ndims(space);
    if (rank < 1 || rank > 4 || H5Sget_simple_extent_dims(space, dim, NULL) < 0)
        return fail(r, AG_EINPUT, "%s has rank %d, not 1 to 4", name, rank);
    a->rank = rank;
    a->n = 1;
    for (int i = 0; i < rank; i++) {
        if (dim[i] == 0 || dim[i] > (hsize_t)((INT64_C(1) << 42) / a->n))
            return fail(r, AG_EINPUT, "%s is empty or claims more than 2^42 elements", name);
        a->dim[i] = (int64_t)dim[i];
        a->n *= a->dim[i];
    }
    return true;
}

static bool inspect_type(hid_t type, const char *name, h5_array *a, h5_reply *r)
{
    const size_t size = H5Tget_size(type);
    if (H5Tget_class(type) != H5T_INTEGER || (size != 1 && size != 2 && size != 4 && size != 8))
        return fail(r, AG_EINPUT, "%s is no array of integers of 1, 2, 4 or 8 bytes", name);
    a->bytes = (int32_t)size;
    a->mapped = (size == 1 || H5Tget_order(type) == H5T_ORDER_LE) && size < 8
                && H5Tget_precision(type) == 8 * size
                && (H5Tget_sign(type) == H5T_SGN_NONE || size == 4);
    return true;
}

static bool inspect_storage(hid_t ds, hid_t dcpl, const h5_job *j, const char *name, h5_array *a,
                            h5_reply *r)
{
    const H5D_layout_t layout = H5Pget_layout(dcpl);
    const int64_t bytes = a->n * a->bytes;
    const hsize_t stored = H5Dget_storage_size(ds);
    const haddr_t at = layout == H5D_CONTIGUOUS ? H5Dget_offset(ds) : HADDR_UNDEF;
    if (layout == H5D_VIRTUAL || layout < 0 || H5Pget_external_count(dcpl) != 0
        || !filters_known(dcpl))
        return fail(r, AG_EINPUT,
                    "%s lies outside the file or behind an unknown filter; repack it with h5repack",
                    name);
    if (stored > (hsize_t)j->file_size || bytes / RATIO > (int64_t)stored
        || (at != HADDR_UNDEF
            && (at > (haddr_t)j->file_size || bytes > j->file_size - (int64_t)at)))
        return fail(r, AG_EINPUT, "%s claims %" PRId64 " bytes, more than the file can hold", name,
                    bytes);
    a->mapped = a->mapped && at != HADDR_UNDEF && at % (haddr_t)a->bytes == 0;
    a->at = a->mapped ? (int64_t)at : 0;
    return true;
}

static bool inspect_array(hid_t f, const h5_job *j, const char *name, h5_array *a, h5_reply *r)
{
    const int there = has_path(f, name);
    if (there < 0)
        return fail(r, AG_EINPUT,
                    "%s is reached by a soft or external link; only hard links are followed", name);
    if (there == 0)
        return true;
    const hid_t ds = H5Dopen2(f, name, H5P_DEFAULT);
    if (ds < 0)
        return fail(r, AG_EINPUT, "%s is no data set that can be opened", name);
    return inspect_shape(H5Dget_space(ds), name, a, r) && inspect_type(H5Dget_type(ds), name, a, r)
        && inspect_storage(ds, H5Dget_create_plist(ds), j, name, a, r);
}

/* The attribute kind of /tokenizer, of fixed or variable length. */
static void inspect_kind(hid_t f, h5_reply *r)
{
    char *text = NULL, fixed[256] = "";
    if (has_path(f, "/tokenizer") != 1
        || H5Aexists_by_name(f, "/tokenizer", "kind", H5P_DEFAULT) <= 0)
        return;
    const hid_t a = H5Aopen_by_name(f, "/tokenizer", "kind", H5P_DEFAULT, H5P_DEFAULT),
                t = H5Aget_type(a);
    if (a < 0 || t < 0 || H5Tget_class(t) != H5T_STRING)
        return;
    if (H5Tis_variable_str(t) <= 0 && H5Tget_size(t) < sizeof fixed && H5Aread(a, t, fixed) >= 0)
        text = fixed;
    else if (H5Tis_variable_str(t) > 0 && H5Aread(a, t, &text) < 0)
        text = NULL;
    if (text)
        snprintf(r->kind, sizeof r->kind, "%.15s", text);
}

void data_h5_inspect(void *arg, void *reply)
{
    const h5_job *j = arg;
    h5_reply *r = reply;
    const hid_t f = open_file(j, r);
    if (f < 0)
        return;
    for (int i = 0; i < H5_ARRAYS; i++)
        if (j->name[i] && !inspect_array(f, j, j->name[i], &r->array[i], r))
            return;
    inspect_kind(f, r);
}

/* Narrows n values into out; false if one is negative or too large for the bytes. */
static bool pack(const int64_t *v, int64_t n, int bytes, uint8_t *out)
{
    for (int64_t i = 0; i < n; i++) {
        if (v[i] < 0 || v[i] >> 8 * bytes)
            return false;
        for (int k = 0; k < bytes; k++)
            out[i * bytes + k] = (uint8_t)(v[i] >> 8 * k);
    }
    return true;
}

/* Copies rows row .. row+rows-1 of the first dimension to their place in the output. */
static bool copy_rows(hid_t ds, const h5_job *j, int i, int64_t row, int64_t rows, int64_t *v,
                      uint8_t *b, h5_reply *r)
{
    const h5_array *a = &j->array[i];
    const int64_t width = a->n / a->dim[0], n = rows * width;
    hsize_t start[4] = {(hsize_t)row}, count[4] = {(hsize_t)rows};
    const hsize_t flat = (hsize_t)n;
    for (int k = 1; k < a->rank; k++)
        count[k] = (hsize_t)a->dim[k];
    const hid_t file = H5Dget_space(ds), memory = H5Screate_simple(1, &flat, NULL);
    const bool ok = H5Sselect_hyperslab(file, H5S_SELECT_SET, start, NULL, count, NULL) >= 0
                 && H5Dread(ds, H5T_NATIVE_INT64, memory, file, H5P_DEFAULT, v) >= 0;
    H5Sclose(file);
    H5Sclose(memory);
    if (!ok)
        return fail(r, AG_EINPUT, "%s is damaged near row %" PRId64, j->name[i], row);
    if (!pack(v, n, a->bytes, b))
        return fail(r, AG_EINPUT,
                    "%s has a value that is negative or above 2^%d - 1 near row %" PRId64,
                    j->name[i], 8 * a->bytes, row);
    const size_t size = (size_t)(n * a->bytes);
    if (pwrite(j->out, b, size, (off_t)(a->at + row * width * a->bytes)) != (ssize_t)size)
        return fail(r, AG_EIO, "its imported copy cannot be written (is the disk full?)");
    return true;
}

static bool copy_array(hid_t f, const h5_job *j, int i, h5_reply *r)
{
    const h5_array *a = &j->array[i];
    const int64_t width = a->n / a->dim[0], step = width < BLOCK ? BLOCK / width : 1;
    const hid_t dapl = H5Pcreate(H5P_DATASET_ACCESS);
    int64_t *v = malloc((size_t)(step * width) * sizeof *v);
    uint8_t *b = malloc((size_t)(step * width) * 4);
    H5Pset_chunk_cache(dapl, 521, CHUNK_CACHE, 1.0);
    const hid_t ds = H5Dopen2(f, j->name[i], dapl);
    bool ok = v && b && ds >= 0;
    if (!ok)
        fail(r, AG_EINPUT, "%s cannot be read in the memory that is allowed", j->name[i]);
    for (int64_t row = 0; ok && row < a->dim[0]; row += step) {
        const int64_t rows = a->dim[0] - row < step ? a->dim[0] - row : step;
        ok = copy_rows(ds, j, i, row, rows, v, b, r);
    }
    free(v);
    free(b);
    return ok;
}

void data_h5_copy(void *arg, void *reply)
{
    const h5_job *j = arg;
    h5_reply *r = reply;
    const hid_t f = open_file(j, r);
    for (int i = 0; f >= 0 && i < H5_ARRAYS; i++)
        if (j->array[i].rank && !copy_array(f, j, i, r))
            return;
}

/* ---- writing: an image in memory, put on disk by ag_file_replace ---- */

typedef struct writer { hid_t file, gcpl, dcpl; bool bad; } writer;

static void put_group(writer *w, const char *name)
{
    const hid_t g = H5Gcreate2(w->file, name, H5P_DEFAULT, w->gcpl, H5P_DEFAULT);
    w->bad |= g < 0 || H5Gclose(g) < 0;
}

static void put_array(writer *w, const char *name, int rank, const hsize_t *dim, hid_t in_file,
                      hid_t in_memory, const void *at)
{
    const hid_t space = H5Screate_simple(rank, dim, NULL);
    const hid_t ds = H5Dcreate2(w->file, name, in_file, space, H5P_DEFAULT, w->dcpl, H5P_DEFAULT);
    w->bad |= ds < 0 || H5Dwrite(ds, in_memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, at) < 0;
    w->bad |= H5Dclose(ds) < 0 || H5Sclose(space) < 0;
}

static void put_text(writer *w, const char *object, const char *name, const char *text)
{
    const hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    w->bad |= H5Tset_size(type, H5T_VARIABLE) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0;
    const hid_t a = H5Acreate_by_name(w->file, object, name, type, space, H5P_DEFAULT, H5P_DEFAULT,
                                      H5P_DEFAULT);
    w->bad |= a < 0 || H5Awrite(a, type, &text) < 0 || H5Aclose(a) < 0;
    w->bad |= H5Tclose(type) < 0 || H5Sclose(space) < 0;
}

static void put_number(writer *w, const char *object, const char *name, int64_t v)
{
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t a = H5Acreate_by_name(w->file, object, name, H5T_STD_I64LE, space, H5P_DEFAULT,
                                      H5P_DEFAULT, H5P_DEFAULT);
    w->bad |=
        a < 0 || H5Awrite(a, H5T_NATIVE_INT64, &v) < 0 || H5Aclose(a) < 0 || H5Sclose(space) < 0;
}

/* A JSON list of the characters, as a scalar string: what json.loads() in Python wants. */
static int put_vocabulary(writer *w, const data_tokenizer *t, ag_err *err)
{
    char *json = malloc((size_t)t->n * 16 + 3), *p = json;
    if (!json)
        return ag_err_set(err, AG_ENOMEM, "no memory for the vocabulary");
    for (int32_t i = 0; i < t->n; i++) {
        const uint32_t c = t->code_point[i], v = c - 0x10000;
        p += c < 0x10000 ? sprintf(p, "%s\"\\u%04x\"", i ? "," : "[", c)
                         : sprintf(p, "%s\"\\u%04x\\u%04x\"", i ? "," : "[", 0xD800 + (v >> 10),
                                   0xDC00 + (v & 0x3FF));
    }
    p += sprintf(p, "]");
    const hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    w->bad |= H5Tset_size(type, (size_t)(p - json)) < 0 || H5Tset_strpad(type, H5T_STR_NULLPAD) < 0
           || H5Tset_cset(type, H5T_CSET_UTF8) < 0;
    const hid_t ds = H5Dcreate2(w->file, "/tokenizer/vocab_json", type, space, H5P_DEFAULT, w->dcpl,
                                H5P_DEFAULT);
    w->bad |=
        ds < 0 || H5Dwrite(ds, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, json) < 0 || H5Dclose(ds) < 0;
    w->bad |= H5Tclose(type) < 0 || H5Sclose(space) < 0;
    free(json);
    return AG_OK;
}

static int put_tokens(writer *w, const data_set *d, ag_err *err)
{
    static const char *const name[DATA_SPLITS] = {"/tokens/train", "/tokens/val", "/tokens/test"};
    put_group(w, "/tokens");
    for (int s = 0; s < DATA_SPLITS; s++) {
        const data_tokens *t = &d->tokens[s];
        const hsize_t n = (hsize_t)t->n;
        const hid_t type = t->bytes == 1   ? H5T_STD_U8LE
                           : t->bytes == 2 ? H5T_STD_U16LE
                                           : H5T_STD_U32LE;
        if (n > 0)
            put_array(w, name[s], 1, &n, type, type, t->at);
    }
    if (!d->tokenizer)
        return AG_OK;
    put_group(w, "/tokenizer");
    put_text(w, "/tokenizer", "kind", data_tokenizer_name(d->tokenizer));
    if (d->tokenizer->kind != DATA_TOKENIZER_CHAR)
        return AG_OK;
    const hsize_t n = (hsize_t)d->tokenizer->n;
    put_array(w, "/tokenizer/code_points", 1, &n, H5T_STD_U32LE, H5T_NATIVE_UINT32,
              d->tokenizer->code_point);
    return put_vocabulary(w, d->tokenizer, err);
}

static void put_images(writer *w, const data_set *d)
{
    static const char *const name[2][3] = {{"/train", "/train/images", "/train/labels"},
                                           {"/test", "/test/images", "/test/labels"}};
    const hid_t label = d->n_classes <= 256 ? H5T_STD_U8LE : H5T_STD_I32LE;
    for (int s = DATA_TRAIN; s <= DATA_VAL; s++) {
        const data_images *im = &d->images[s];
        const hsize_t dim[4] = {(hsize_t)im->n, (hsize_t)d->h, (hsize_t)d->w, (hsize_t)d->c};
        if (im->n == 0)
            continue;
        put_group(w, name[s][0]);
        put_array(w, name[s][1], d->c == 1 ? 3 : 4, dim, H5T_STD_U8LE, H5T_NATIVE_UINT8, im->at);
        put_array(w, name[s][2], 1, dim, label, H5T_NATIVE_INT32, im->label);
    }
    put_number(w, "/", "n_classes", d->n_classes);
}

static int put_all(writer *w, const data_set *d, ag_err *err)
{
    char hex[65];
    const data_named *set = data_catalog_find(d->name);
    int rc = data_sha256(d, hex, err);
    if (rc)
        return rc;
    put_text(w, "/", "format", "tulle-data");
    put_number(w, "/", "format_version", 1);
    put_text(w, "/", "created_by", "tulle");
    put_text(w, "/", "source", d->name);
    put_text(w, "/", "source_sha256", hex);
    if (set)
        put_text(w, "/", "source_url", set->file[0].url[0]);
    if (d->kind == DATA_TOKENS)
        rc = put_tokens(w, d, err);
    else
        put_images(w, d);
    return rc;
}

/* Closes the file but for its memory image, which goes to path. */
static int store(writer *w, const char *path, ag_err *err)
{
    w->bad |= H5Fflush(w->file, H5F_SCOPE_LOCAL) < 0;
    const ssize_t size = w->bad ? -1 : H5Fget_file_image(w->file, NULL, 0);
    char *image = size > 0 ? malloc((size_t)size) : NULL;
    if (size > 0 && !image)
        return ag_err_set(err, AG_ENOMEM, "no memory for the %zd bytes of '%s'", size, path);
    int rc;
    if (size <= 0 || H5Fget_file_image(w->file, image, (size_t)size) != size)
        rc = ag_err_set(err, AG_EFAIL, "libhdf5 could not build '%s'", path);
    else
        rc = ag_file_replace(path, image, (size_t)size, err);
    free(image);
    return rc;
}

int data_export_hdf5(const data_set *d, const char *path, ag_err *err)
{
    if (d->pairs)
        return ag_err_set(err, AG_ECONFIG, "data: pairs of a source and a target (%s) have no form"
                          " in HDF5", d->name);
    writer w = {.gcpl = H5Pcreate(H5P_GROUP_CREATE), .dcpl = H5Pcreate(H5P_DATASET_CREATE)};
    const hid_t fcpl = H5Pcreate(H5P_FILE_CREATE), fapl = H5Pcreate(H5P_FILE_ACCESS);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    w.bad = H5Pset_obj_track_times(fcpl, 0) < 0 || H5Pset_obj_track_times(w.gcpl, 0) < 0
            || H5Pset_obj_track_times(w.dcpl, 0) < 0 || H5Pset_fapl_core(fapl, 16 << 20, 0) < 0
            || H5Pset_alignment(fapl, 4096, 4096) < 0
            || H5Pset_fclose_degree(fapl, H5F_CLOSE_SEMI) < 0;
    w.file = H5Fcreate(path, H5F_ACC_TRUNC, fcpl, fapl);
    int rc = w.file < 0 ? ag_err_set(err, AG_EFAIL, "libhdf5 could not begin '%s'", path)
                        : put_all(&w, d, err);
    if (rc == AG_OK)
        rc = store(&w, path, err);
    if (w.file >= 0 && H5Fclose(w.file) < 0 && rc == AG_OK)
        rc = ag_err_set(err, AG_EFAIL, "libhdf5 could not close '%s'", path);
    H5Pclose(w.gcpl);
    H5Pclose(w.dcpl);
    H5Pclose(fcpl);
    H5Pclose(fapl);
    return rc;
}
