/*
 * hdf5_open.c -- HDF5 files as data sets: mapped where the arrays lie contiguous, else from an
 * imported copy.
 *
 * The training loop never reads through libhdf5: a guarded child (hdf5.c) tells where the arrays
 * lie, the file is closed again, and its pages are mapped.  Arrays in chunks, compressed, of
 * another byte order or width are copied once into a file of the user cache whose name is the
 * SHA-256 of the source, and mapped from there.
 */
#include "autograd/base/hash.h"
#include "data/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEAD_BYTES = 4096 };

/* The first 4096 bytes of an imported copy. */
typedef struct copy_head {
    char     magic[16];              /* COPY_MAGIC */
    char     key[65];                /* of the source: file name without .bin */
    h5_reply plan;
    uint32_t crc;                    /* of all the above */
} copy_head;
static const char copy_magic[16] = "tulle-import 1\n";

static uint64_t le64(const unsigned char *p)
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v |= (uint64_t)p[i] << 8 * i;
    return v;
}

/* What can be said without the library: signature, superblock, base address 0, the end inside the
 * file. */
static int check_superblock(const ag_map *m, const char *path, ag_err *err)
{
    static const unsigned char signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1A, '\n'};
    const unsigned char *p = m->data;
    if (m->size < 96 || memcmp(p, signature, 8))
        return ag_err_set(err, AG_EINPUT, "'%s' is no HDF5 file (or one with a user block)", path);
    const int version = p[8], base = version == 0 ? 24 : version == 1 ? 28 : 12;
    if (version > 3 || p[version < 2 ? 13 : 9] != 8)
        return ag_err_set(err, AG_EINPUT,
                          "'%s' is an HDF5 file of a kind that is not read (superblock %d)", path,
                          version);
    const uint64_t end = le64(p + base + 16);
    if (le64(p + base) != 0 || end > m->size)
        return ag_err_set(err, AG_EINPUT,
                          "'%s' is cut off: it has %zu bytes and should have %" PRIu64, path,
                          m->size, end);
    return AG_OK;
}

static int guarded(data_guard_work *work, h5_job *j, int64_t out_size, h5_reply *ret, ag_err *err)
{
    const double work_bytes = (double)(j->file_size + 4 * out_size);
    const data_guard g = {3 + work_bytes / 50e6, (INT64_C(1) << 30) + 2 * j->file_size, out_size};
    h5_reply r = {0};
    const int rc = data_guard_run(&g, work, j, &r, sizeof r, j->path, err);
    if (rc)
        return rc;
    r.msg[sizeof r.msg - 1] = r.kind[sizeof r.kind - 1] = '\0';
    if (r.code)
        return ag_err_set(err, r.code, "'%s': %s", j->path, r.msg);
    *ret = r;
    return AG_OK;
}

static const char *or_else(const char *s, const char *other) { return s && *s ? s : other; }

/* Looks for tokens, and then, unless a name was given, for images. */
static int inspect(const data_options *o, h5_job *j, h5_reply *ret, ag_err *err)
{
    const bool named = o->h5_train && *o->h5_train;
    const char *const token[H5_ARRAYS] = {"/tokens/train", "/tokens/val", "/train/labels",
                                          "/test/labels", "/tokenizer/code_points"};
    const char *const image[H5_ARRAYS] = {"/train/images", "/test/images", "/train/labels",
                                          "/test/labels", NULL};
    const char *const own[H5_ARRAYS] = {o->h5_train, o->h5_val, o->h5_train_labels,
                                        o->h5_val_labels, NULL};
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < H5_ARRAYS; i++) {
            j->name[i] = or_else(own[i], round ? image[i] : named && i == H5_VAL ? NULL : token[i]);
            if (j->name[i] && j->name[i][0] != '/')
                return ag_err_set(err, AG_ECONFIG, "data: the HDF5 name '%s' does not begin with /",
                                  j->name[i]);
        }
        const int rc = guarded(data_h5_inspect, j, 0, ret, err);
        if (rc || ret->array[H5_TRAIN].rank)
            return rc;
        if (named)
            return ag_err_set(err, AG_EINPUT, "'%s' has no data set %s", j->path, o->h5_train);
    }
    return ag_err_set(err, AG_EINPUT,
                      "'%s' has neither /tokens/train nor /train/images: name the data set",
                      j->path);
}

/* ---- the imported copy ---- */

static void make_key(const ag_map *m, const h5_job *j, char key[65])
{
    uint8_t digest[32];
    ag_sha256 h;
    ag_sha256_init(&h);
    ag_sha256_add(&h, m->data, m->size);
    for (int i = 0; i < H5_ARRAYS; i++) {
        const char *name = or_else(j->name[i], "-");
        ag_sha256_add(&h, name, strlen(name) + 1);
    }
    ag_sha256_end(&h, digest);
    ag_sha256_hex(digest, key);
}

/* Places all arrays one behind the other; the size of the file. */
static int64_t lay_out(h5_array *a)
{
    int64_t at = HEAD_BYTES;
    for (int i = 0; i < H5_ARRAYS; i++) {
        if (a[i].rank == 0)
            continue;
        a[i].bytes = a[i].bytes == 8 ? 4 : a[i].bytes;
        a[i].mapped = 1;
        a[i].at = at;
        at += (a[i].n * a[i].bytes + 63) & ~INT64_C(63);
    }
    return at;
}

static uint32_t head_crc(const copy_head *h)
{
    return ag_crc32c(0, h, offsetof(copy_head, crc));
}

/* True if the file is a whole copy of this source. */
static bool copy_fits(const ag_map *m, const char *key, h5_reply *ret)
{
    copy_head h;
    if (m->size < HEAD_BYTES)
        return false;
    memcpy(&h, m->data, sizeof h);
    if (memcmp(h.magic, copy_magic, sizeof h.magic) || memcmp(h.key, key, 65)
        || h.crc != head_crc(&h))
        return false;
    const h5_reply plan = h.plan;
    if (lay_out(h.plan.array) != (int64_t)m->size)
        return false;
    *ret = plan;
    return true;
}

static int fill_copy(int fd, const h5_job *source, const char *key, h5_reply *plan, ag_err *err)
{
    h5_job j = *source;
    h5_reply done;
    copy_head h;
    const int64_t size = lay_out(plan->array);
    memset(&h, 0, sizeof h);                             /* padding too: it is checksummed */
    memcpy(h.magic, copy_magic, sizeof h.magic);
    memcpy(h.key, key, 65);
    h.plan = *plan;
    h.crc = head_crc(&h);
    memcpy(j.array, plan->array, sizeof j.array);
    j.out = fd;
    if (ftruncate(fd, size))
        return ag_err_set(err, AG_EIO, "no room for an imported copy of '%s': %s", j.path,
                          strerror(errno));
    const int rc = guarded(data_h5_copy, &j, size, &done, err);
    if (rc)
        return rc;
    if (pwrite(fd, &h, sizeof h, 0) != (ssize_t)sizeof h || fsync(fd))
        return ag_err_set(err, AG_EIO, "cannot write an imported copy of '%s': %s", j.path,
                          strerror(errno));
    return AG_OK;
}

static int make_copy(const h5_job *j, const char *key, const char *path, h5_reply *plan,
                     ag_err *err)
{
    char *temporary = malloc(strlen(path) + 8);
    if (!temporary)
        return ag_err_set(err, AG_ENOMEM, "no memory for a file name");
    sprintf(temporary, "%s.XXXXXX", path);
    const int fd = mkostemp(temporary, O_CLOEXEC);
    int rc = fd < 0 ? ag_err_set(err, AG_EIO, "cannot create '%s': %s", temporary, strerror(errno))
                    : fill_copy(fd, j, key, plan, err);
    if (fd >= 0 && close(fd) && rc == AG_OK)
        rc = ag_err_set(err, AG_EIO, "cannot write '%s': %s", temporary, strerror(errno));
    if (rc == AG_OK && rename(temporary, path))
        rc = ag_err_set(err, AG_EIO, "cannot rename '%s' to '%s': %s", temporary, path,
                        strerror(errno));
    if (rc && fd >= 0)
        unlink(temporary);
    free(temporary);
    return rc;
}

/* Replaces the mapped source *m by its imported copy, made now if there is none. */
static int use_copy(const h5_job *j, ag_map *m, h5_reply *plan, ag_err *err)
{
    char key[65], *cache = data_cache_dir(), name[72];
    char *dir = cache ? data_path_join(cache, "imported") : NULL, *path = NULL;
    ag_map copy = {0};
    int rc = dir ? ag_dir_make(dir, err)
                 : ag_err_set(err, AG_EIO, "'%s' must be imported, but there is no cache folder:"
                              " set XDG_CACHE_HOME or HOME, or store it contiguous", j->path);
    make_key(m, j, key);
    snprintf(name, sizeof name, "%s.bin", key);
    if (rc == AG_OK && !(path = data_path_join(dir, name)))
        rc = ag_err_set(err, AG_ENOMEM, "no memory for a file name");
    if (rc == AG_OK && ag_path_exists(path))
        rc = ag_file_map(path, &copy, err);
    if (rc == AG_OK && !(copy.data && copy_fits(&copy, key, plan))) {
        ag_map_release(&copy);
        copy = (ag_map){0};
        if ((rc = make_copy(j, key, path, plan, err)) == AG_OK)
            rc = ag_file_map(path, &copy, err);
    }
    if (rc == AG_OK) {
        ag_map_release(m);
        *m = copy;
    }
    free(cache);
    free(dir);
    free(path);
    return rc;
}

/* ---- arrays to a data set ---- */

static uint32_t value(const ag_map *m, const h5_array *a, int64_t i)
{
    const unsigned char *p = m->data + a->at;
    return a->bytes == 1 ? p[i]
         : a->bytes == 2 ? ((const uint16_t *)p)[i] : ((const uint32_t *)p)[i];
}

static uint32_t largest(const ag_map *m, const h5_array *a)
{
    uint32_t most = 0;
    for (int64_t i = 0; i < a->n; i++) {
        const uint32_t v = value(m, a, i);
        most = v > most ? v : most;
    }
    return most;
}

static int bind_tokenizer(const data_options *o, data_set *d, const h5_reply *r, ag_err *err)
{
    const h5_array *c = &r->array[H5_CODE_POINTS];
    data_tokenizer *t = NULL;
    int rc = AG_OK;
    if (!strcmp(r->kind, "byte"))
        rc = data_tokenizer_bytes(&t, err);
    else if (!strcmp(r->kind, "char") && c->rank == 1 && c->bytes == 4)
        rc = data_tokenizer_chars((const uint32_t *)(d->map.data + c->at), (size_t)c->n, &t, err);
    d->tokenizer = t;
    if (rc == AG_OK && o->known && (!t || t->n != o->known->n || (t->code_point
        && memcmp(t->code_point, o->known->code_point, (size_t)t->n * sizeof *t->code_point))))
        rc = ag_err_set(err, AG_EINPUT, "'%s' is made of other tokens than the model", o->path);
    return rc;
}

static int bind_tokens(const data_options *o, const h5_job *j, data_set *d, const h5_reply *r,
                       ag_err *err)
{
    d->kind = DATA_TOKENS;
    int rc = bind_tokenizer(o, d, r, err);
    d->vocab = d->tokenizer ? d->tokenizer->n : 0;
    for (int s = DATA_TRAIN; s <= DATA_VAL && rc == AG_OK; s++) {
        const h5_array *a = &r->array[s == DATA_TRAIN ? H5_TRAIN : H5_VAL];
        const int64_t most = a->rank ? largest(&d->map, a) : 0;
        if (a->rank > 1)
            rc = ag_err_set(err, AG_EINPUT, "'%s': %s is no list of tokens (rank %d)", o->path,
                            j->name[s], a->rank);
        else if (most >= INT32_MAX || (d->tokenizer && most >= d->vocab))
            rc = ag_err_set(err, AG_EINPUT,
                            "'%s': %s has a token that is negative or outside the vocabulary",
                            o->path, j->name[s]);
        if (!d->tokenizer && most >= d->vocab)
            d->vocab = most + 1;
        if (a->rank)
            d->tokens[s] = (data_tokens){.at = d->map.data + a->at, .n = a->n,
                                         .bytes = a->bytes};
    }
    if (rc == AG_OK && d->tokens[DATA_VAL].n == 0)
        data_split_tokens(d, d->tokens[0].at, d->tokens[0].n, d->tokens[0].bytes, o->val_fraction,
                          o->test_fraction);
    return rc;
}

static int bind_labels(const h5_job *j, int split, data_set *d, const h5_reply *r, ag_err *err)
{
    const int which = split == DATA_TRAIN ? H5_TRAIN_LABELS : H5_VAL_LABELS;
    const h5_array *a = &r->array[which];
    if (a->rank != 1 || a->n != d->images[split].n)
        return ag_err_set(err, AG_EINPUT, "'%s': %s has %" PRId64 " labels for %" PRId64 " images",
                          j->path, j->name[which], a->rank == 1 ? a->n : 0, d->images[split].n);
    int32_t *label = malloc((size_t)a->n * sizeof *label);
    const int rc = data_own(d, label, (size_t)a->n * sizeof *label, err);
    if (rc)
        return rc;
    for (int64_t i = 0; i < a->n; i++) {
        const uint32_t v = value(&d->map, a, i);
        if (v >= INT32_MAX)
            return ag_err_set(err, AG_EINPUT, "'%s': label %" PRId64 " of %s is out of range",
                              j->path, i, j->name[which]);
        label[i] = (int32_t)v;
    }
    d->images[split].label = label;
    return AG_OK;
}

static int bind_images(const data_options *o, const h5_job *j, data_set *d, const h5_reply *r,
                       ag_err *err)
{
    d->kind = DATA_IMAGES;
    for (int s = DATA_TRAIN; s <= DATA_VAL; s++) {
        const h5_array *a = &r->array[s == DATA_TRAIN ? H5_TRAIN : H5_VAL];
        const int64_t c = a->rank == 4 ? a->dim[3] : 1;
        if (a->rank == 0)
            continue;
        if (a->rank < 3 || a->bytes != 1)
            return ag_err_set(err, AG_EINPUT,
                              "'%s': %s is no array of u8 images [N, H, W] or [N, H, W, C]",
                              j->path, j->name[s]);
        if (s != DATA_TRAIN && (a->dim[1] != d->h || a->dim[2] != d->w || c != d->c))
            return ag_err_set(err, AG_EINPUT, "'%s': %s and %s hold images of different size",
                              j->path, j->name[H5_TRAIN], j->name[H5_VAL]);
        d->h = a->dim[1];
        d->w = a->dim[2];
        d->c = c;
        d->images[s] = (data_images){d->map.data + a->at, NULL, a->dim[0]};
        const bool wanted = !o->sequences || r->array[s ? H5_VAL_LABELS : H5_TRAIN_LABELS].rank;
        const int rc = wanted ? bind_labels(j, s, d, r, err) : AG_OK;
        if (rc)
            return rc;
    }
    data_split_images(d, o->val_fraction, o->test_fraction);
    return o->sequences ? AG_OK : data_check_labels(d, 0, o->path, err);
}

/* The child may have been led astray in any way: its answer is checked again. */
static bool lies_within(const ag_map *m, const h5_array *a)
{
    int64_t n = 1;
    if (a->rank == 0)
        return true;
    for (int i = 0; i < a->rank && i < 4; i++) {
        if (a->dim[i] < 1 || a->dim[i] > (int64_t)m->size / n)
            return false;
        n *= a->dim[i];
    }
    return a->rank <= 4 && a->n == n && (a->bytes == 1 || a->bytes == 2 || a->bytes == 4)
           && a->at >= 0 && a->at % a->bytes == 0 && a->at <= (int64_t)m->size
           && n <= ((int64_t)m->size - a->at) / a->bytes;
}

int data_open_hdf5(const data_options *o, data_set *d, ag_err *err)
{
    h5_job j = {.path = o->path, .out = -1};
    h5_reply r;
    bool mapped = true;
    int rc = ag_file_map(o->path, &d->map, err);
    if (rc || (rc = check_superblock(&d->map, o->path, err))
        || (rc = data_add_file(d, o->path, err)))
        return rc;
    j.file_size = (int64_t)d->map.size;
    if ((rc = inspect(o, &j, &r, err)))
        return rc;
    const bool tokens = r.array[H5_TRAIN].rank == 1;
    for (int i = 0; i < H5_ARRAYS; i++) {
        if (tokens && (i == H5_TRAIN_LABELS || i == H5_VAL_LABELS))
            r.array[i].rank = 0;
        mapped &= r.array[i].rank == 0 || r.array[i].mapped;
    }
    if (!mapped && (rc = use_copy(&j, &d->map, &r, err)))
        return rc;
    for (int i = 0; i < H5_ARRAYS; i++)
        if (!lies_within(&d->map, &r.array[i]))
            return ag_err_set(err, AG_EINPUT, "'%s' is damaged: %s lies outside it", o->path,
                              j.name[i]);
    return tokens ? bind_tokens(o, &j, d, &r, err) : bind_images(o, &j, d, &r, err);
}
