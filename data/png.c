/*
 * png.c -- images as PNG files (ISO/IEC 15948): one IHDR, one IDAT of unfiltered rows, IEND.
 */
#include "data/internal.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { CHUNK_BYTES = 12, HEAD_BYTES = 13, SIGNATURE = 8 };

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* Length, name and checksum around the data that lie at p + 8 already; returns what follows. */
static uint8_t *close_chunk(uint8_t *p, const char *name, size_t size)
{
    put32(p, (uint32_t)size);
    memcpy(p + 4, name, 4);
    put32(p + 8 + size, (uint32_t)crc32_z(0, p + 4, size + 4));
    return p + size + CHUNK_BYTES;
}

/* The rows, each behind a byte 0 (filter type none). */
static uint8_t *with_filter_bytes(const uint8_t *pixel, int64_t h, int64_t row)
{
    uint8_t *all = malloc((size_t)(h * (row + 1)));
    for (int64_t y = 0; y < h && all; y++) {
        all[y * (row + 1)] = 0;
        memcpy(all + y * (row + 1) + 1, pixel + y * row, (size_t)row);
    }
    return all;
}

int data_png(const uint8_t *pixel, int64_t h, int64_t w, int64_t c, uint8_t **ret_file,
             size_t *ret_size, ag_err *err)
{
    static const uint8_t signature[SIGNATURE] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
    static const uint8_t colour_type[5] = {0, 0, 4, 2, 6};
    if (c < 1 || c > 4 || h < 1 || w < 1 || h > 1 << 20 || w > (INT64_C(1) << 30) / (h * c))
        return ag_err_set(err, AG_ESHAPE, "png: no image of %" PRId64 " x %" PRId64 " x %" PRId64,
                          h, w, c);
    const size_t size = (size_t)(h * (w * c + 1));
    uLongf packed = compressBound(size);
    uint8_t *rows = with_filter_bytes(pixel, h, w * c);
    uint8_t *file = malloc(SIGNATURE + 3 * CHUNK_BYTES + HEAD_BYTES + packed);
    if (!rows || !file || compress2(file + SIGNATURE + CHUNK_BYTES + HEAD_BYTES + 8, &packed, rows,
                                    size, Z_BEST_COMPRESSION) != Z_OK) {
        free(rows);
        free(file);
        return ag_err_set(err, AG_ENOMEM, "no memory for a picture of %zu bytes", size);
    }
    memcpy(file, signature, SIGNATURE);
    uint8_t *p = file + SIGNATURE;
    put32(p + 8, (uint32_t)w);
    put32(p + 12, (uint32_t)h);
    memcpy(p + 16, (uint8_t[5]){8, colour_type[c], 0, 0, 0}, 5); /* 8 bits a channel */
    p = close_chunk(p, "IHDR", HEAD_BYTES);
    p = close_chunk(p, "IDAT", packed);
    p = close_chunk(p, "IEND", 0);
    free(rows);
    *ret_file = file;
    *ret_size = (size_t)(p - file);
    return AG_OK;
}
