/*
 * inflate.c -- gzip files and zip archives, unpacked by zlib into memory that is bounded
 * beforehand.
 *
 * Deflate cannot do better than 1032:1, so a file that promises more than 1040 times its own size
 * is refused before anything is allocated; where the contents tell their size (IDX), that is the
 * bound.
 */
#include "data/internal.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zlib.h>
#ifdef TULLE_HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif

enum { RATIO = 1040, HEAD = 64, GZIP = 15 + 16, RAW = -15, CHUNK = 1 << 30 };

/* One stream from in[n] to out[cap]; stops where out is full.  Sets *ret_n to the bytes made and
 * *ret_end where all input was used up by whole members.  Returns a zlib code: Z_OK, Z_DATA_ERROR,
 * Z_MEM_ERROR. */
static int inflate_into(const unsigned char *in, size_t n, int window, unsigned char *out,
                        size_t cap, size_t *ret_n, bool *ret_end)
{
    z_stream z = {0};
    size_t used = 0, made = 0;
    int rc = inflateInit2(&z, window);
    if (rc != Z_OK)
        return rc;
    *ret_end = false;
    while (rc == Z_OK) {
        const uInt give = (uInt)(n - used < CHUNK ? n - used : CHUNK);
        const uInt room = (uInt)(cap - made < CHUNK ? cap - made : CHUNK);
        z.next_in = (Bytef *)(uintptr_t)(in + used);
        z.avail_in = give;
        z.next_out = out + made;
        z.avail_out = room;
        rc = inflate(&z, Z_NO_FLUSH);
        used += give - z.avail_in;
        made += room - z.avail_out;
        if (rc == Z_STREAM_END) {
            *ret_end = used == n;
            if (*ret_end || window == RAW)
                break;
            rc = inflateReset(&z);                       /* the next gzip member */
        } else if (rc == Z_BUF_ERROR || (rc == Z_OK && used == n && z.avail_out > 0)) {
            break;                                       /* out is full, or the input too short */
        }
    }
    inflateEnd(&z);
    *ret_n = made;
    return rc == Z_STREAM_END || rc == Z_BUF_ERROR ? Z_OK : rc;
}

static int gzip_error(int zrc, const char *path, size_t made, ag_err *err)
{
    if (zrc == Z_MEM_ERROR)
        return ag_err_set(err, AG_ENOMEM, "no memory to unpack '%s'", path);
    return ag_err_set(err, AG_EINPUT,
                      "'%s' is damaged: its gzip stream %s after %zu unpacked bytes", path,
                      zrc == Z_OK ? "breaks off" : "is wrong", made);
}

/* A gzip file of one member in one call, which is faster; false where it is something else: what,
 * inflate_into finds. */
static bool inflate_whole(const ag_map *m, unsigned char *out, size_t size)
{
#ifdef TULLE_HAVE_LIBDEFLATE
    size_t used = 0;
    struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
    const bool done = d
        && libdeflate_gzip_decompress_ex(d, m->data, m->size, out, size, &used, NULL)
            == LIBDEFLATE_SUCCESS
        && used == m->size;
    libdeflate_free_decompressor(d);
    return done;
#else
    (void)m, (void)out, (void)size;
    return false;
#endif
}

/* Memory for size bytes, to be freed.  Much of it comes in huge pages, where the system has them:
 * samples are read from all over it. */
static unsigned char *large_alloc(size_t size)
{
    enum { HUGE_PAGE = 2 << 20 };
    if (size < 4 * HUGE_PAGE)
        return malloc(size);
    const size_t whole = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    unsigned char *p = aligned_alloc(HUGE_PAGE, whole);
    if (p)
        madvise(p, whole, MADV_HUGEPAGE);        /* a wish: refused, it is small pages */
    return p;
}

/* Unpacks a gzip file in memory whose contents are exactly size bytes. */
static int unpack_exactly(const ag_map *m, const char *path, size_t size, unsigned char **ret,
                          ag_err *err)
{
    unsigned char *out = large_alloc(size + 1);
    size_t made = 0;
    bool end = false;
    if (!out)
        return ag_err_set(err, AG_ENOMEM, "no memory for the %zu bytes in '%s'", size, path);
    if (inflate_whole(m, out, size)) {
        *ret = out;
        return AG_OK;
    }
    const int zrc = inflate_into(m->data, m->size, GZIP, out, size + 1, &made, &end);
    int rc = AG_OK;
    if (zrc != Z_OK || (!end && made <= size))
        rc = gzip_error(zrc, path, made, err);
    else if (made != size)
        rc = ag_err_set(err, AG_EINPUT, "'%s' unpacks to %s%zu bytes, but its header tells of %zu",
                        path, made > size ? "more than " : "", made > size ? size : made, size);
    if (rc)
        free(out);
    else
        *ret = out;
    return rc;
}

/* Unpacks a gzip file whose size is not known: its last four bytes are the first guess. */
static int unpack(const ag_map *m, const char *path, unsigned char **ret, size_t *ret_size,
                  ag_err *err)
{
    const unsigned char *tail = m->data + m->size - 4;
    const size_t most = m->size * RATIO;
    size_t cap =
        (size_t)tail[0] | (size_t)tail[1] << 8 | (size_t)tail[2] << 16 | (size_t)tail[3] << 24;
    for (cap = cap < most ? cap + 1 : most;; cap = cap < most / 2 ? 2 * cap : most) {
        size_t made = 0;
        bool end = false;
        unsigned char *out = malloc(cap);
        if (!out)
            return ag_err_set(err, AG_ENOMEM, "no memory for the contents of '%s' (%zu bytes)",
                              path, cap);
        const int zrc = inflate_into(m->data, m->size, GZIP, out, cap, &made, &end);
        if (zrc == Z_OK && end) {
            *ret = out;
            *ret_size = made;
            return AG_OK;
        }
        free(out);
        if (zrc != Z_OK || made < cap || cap == most)
            return gzip_error(zrc, path, made, err);
    }
}

static bool is_gzip(const ag_map *m)
{
    return m->size >= 2 && m->data[0] == 0x1F && m->data[1] == 0x8B;
}

static int load(const char *path, data_size_of *size_of, data_bytes *b, ag_err *err)
{
    unsigned char head[HEAD];
    size_t n = 0;
    bool end;
    const bool packed = is_gzip(&b->map);
    if (packed && b->map.size < 18)
        return ag_err_set(err, AG_EINPUT, "'%s' is damaged: %zu bytes are no gzip file", path,
                          b->map.size);
    b->at = b->map.data;
    b->size = b->map.size;
    if (!size_of) {
        if (!packed)
            return AG_OK;
        const int rc = unpack(&b->map, path, &b->unpacked, &b->size, err);
        b->at = b->unpacked;
        return rc;
    }
    if (packed) {
        const int zrc = inflate_into(b->map.data, b->map.size, GZIP, head, HEAD, &n, &end);
        if (zrc != Z_OK || (n < HEAD && !end))           /* or it breaks off */
            return gzip_error(zrc, path, n, err);
    } else {
        n = b->size < HEAD ? b->size : HEAD;
        memcpy(head, b->at, n);
    }
    const int64_t size = size_of(head, n, path, err);
    if (size < 0)
        return (int)size;
    if (!packed && (uint64_t)size != b->size)
        return ag_err_set(err, AG_EINPUT, "'%s' has %zu bytes, but its header tells of %" PRId64,
                          path, b->size, size);
    if (!packed)
        return AG_OK;
    if ((uint64_t)size > b->map.size * RATIO)
        return ag_err_set(err, AG_EINPUT,
                          "'%s' has %zu bytes, which cannot hold the %" PRId64 " that its header"
                          " tells of",
                          path, b->map.size, size);
    b->size = (size_t)size;
    const int rc = unpack_exactly(&b->map, path, b->size, &b->unpacked, err);
    b->at = b->unpacked;
    return rc;
}

int data_bytes_load_sized(const char *path, data_size_of *size_of, data_bytes *ret_bytes,
                          ag_err *err)
{
    data_bytes b = {0};
    int rc = ag_file_map(path, &b.map, err);
    if (rc)
        return rc;
    rc = load(path, size_of, &b, err);
    if (rc) {
        data_bytes_release(&b);
        return rc;
    }
    if (b.unpacked)
        ag_map_release(&b.map);
    *ret_bytes = b;
    return AG_OK;
}

int data_bytes_load(const char *path, data_bytes *ret_bytes, ag_err *err)
{
    return data_bytes_load_sized(path, NULL, ret_bytes, err);
}

void data_bytes_release(data_bytes *b)
{
    free(b->unpacked);
    ag_map_release(&b->map);
    memset(b, 0, sizeof *b);
}

/* ---- zip: the first member, which must be the one that is wanted (APPNOTE 4.3.7) ---- */

static uint32_t le(const unsigned char *p, int n)
{
    uint32_t v = 0;
    for (int i = 0; i < n; i++)
        v |= (uint32_t)p[i] << 8 * i;
    return v;
}

static int unzip(const ag_map *m, const char *zip, const char *member, const char *path,
                 ag_err *err)
{
    const unsigned char *p = m->data;
    const size_t len = strlen(member);
    if (m->size < 30 + len || le(p, 4) != 0x04034B50 || le(p + 26, 2) != len
        || memcmp(p + 30, member, len))
        return ag_err_set(err, AG_EINPUT, "'%s' is no zip archive that begins with '%s'", zip,
                          member);
    const size_t start = 30 + len + le(p + 28, 2), packed = le(p + 18, 4), size = le(p + 22, 4);
    if (le(p + 6, 2) & 8 || le(p + 8, 2) != Z_DEFLATED || start > m->size
        || packed > m->size - start || size > packed * RATIO)
        return ag_err_set(err, AG_EINPUT,
                          "'%s': member '%s' is damaged or of a kind that is not read (unzip it by"
                          " hand into '%s')",
                          zip, member, path);
    unsigned char *out = malloc(size + 1);
    size_t made = 0;
    bool end = false;
    if (!out)
        return ag_err_set(err, AG_ENOMEM, "no memory for '%s' (%zu bytes)", member, size);
    const int zrc = inflate_into(p + start, packed, RAW, out, size + 1, &made, &end);
    int rc;
    if (zrc != Z_OK || made != size || !end || crc32_z(0, out, size) != le(p + 14, 4))
        rc =
            ag_err_set(err, AG_EINPUT, "'%s' is damaged: member '%s' does not unpack", zip, member);
    else
        rc = ag_file_replace(path, out, size, err);
    free(out);
    return rc;
}

int data_unzip(const char *zip, const char *member, const char *path, ag_err *err)
{
    ag_map m;
    int rc = ag_file_map(zip, &m, err);
    if (rc)
        return rc;
    rc = unzip(&m, zip, member, path, err);
    ag_map_release(&m);
    return rc;
}
