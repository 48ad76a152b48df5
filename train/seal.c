/*
 * seal.c -- write and verify the seal of a checkpoint.
 */
#include "train/seal.h"

#include "autograd/base/hash.h"

#include <string.h>

static const unsigned char magic[8] = "TULLECK1";
static const char format_name[] = "tulle-checkpoint";    /* in every image: checkpoint.c */
static const unsigned char hdf5_signature[8] = "\x89HDF\r\n\x1a\n";

enum { AT_SIZE = 8, AT_SHA = 16, AT_ZERO = 48, AT_CRC = 60 };

static void store_le(unsigned char *p, uint64_t x, int bytes)
{
    for (int i = 0; i < bytes; i++) p[i] = (unsigned char)(x >> 8 * i);
}

static uint64_t load_le(const unsigned char *p, int bytes)
{
    uint64_t x = 0;
    for (int i = 0; i < bytes; i++) x |= (uint64_t)p[i] << 8 * i;
    return x;
}

/* SHA-256 of an image; what is read of the map it lies in, if it does, does not stay in memory. */
static void digest(const unsigned char *image, size_t size, const ag_map *map,
                   unsigned char sha[32])
{
    enum { PART = 16 << 20 };
    ag_sha256 s;
    ag_sha256_init(&s);
    for (size_t at = 0; at < size; at += PART) {
        ag_sha256_add(&s, image + at, size - at < PART ? size - at : PART);
        if (map) ag_map_forget(map);
    }
    ag_sha256_end(&s, sha);
}

void train_seal_write(unsigned char *image, size_t size)
{
    unsigned char *seal = image + size;
    memset(seal, 0, TRAIN_SEAL_SIZE);
    memcpy(seal, magic, sizeof magic);
    store_le(seal + AT_SIZE, size, 8);
    digest(image, size, NULL, seal + AT_SHA);
    store_le(seal + AT_CRC, ag_crc32c(0, seal, AT_CRC), 4);
}

/* The image size that the HDF5 superblock states (file format 3.0, section II.A), 0 if unknown. */
static uint64_t stated_size(const unsigned char *file, size_t size)
{
    if (size < 9) return 0;
    const size_t at = file[8] == 0 ? 40 : file[8] == 1 ? 44 : 28;
    return size >= at + 8 ? load_le(file + at, 8) : 0;
}

/* Why a file without a good seal is none of ours. */
static int unsealed(const unsigned char *file, size_t size, ag_err *err)
{
    const size_t n = size < sizeof hdf5_signature ? size : sizeof hdf5_signature;
    if (n == 0) return ag_err_set(err, AG_EINPUT, "truncated: the file is empty");
    if (memcmp(file, hdf5_signature, n))
        return ag_err_set(err, AG_EINPUT, "not a checkpoint, or damaged: no HDF5 signature");
    const uint64_t stated = stated_size(file, size);
    if (stated == 0) return ag_err_set(err, AG_EINPUT, "truncated: only %zu bytes", size);
    if (stated <= size && !memmem(file, size, format_name, sizeof format_name - 1))
        return ag_err_set(err, AG_EINPUT, "an HDF5 file, but no checkpoint of tulle");
    if (stated > size - (size < TRAIN_SEAL_SIZE ? size : TRAIN_SEAL_SIZE))
        return ag_err_set(err, AG_EINPUT, "truncated: %zu of %llu bytes", size,
                          (unsigned long long)stated + TRAIN_SEAL_SIZE);
    return ag_err_set(err, AG_EINPUT,
                      "damaged, or changed by another program: no valid seal at its end");
}

int train_seal_check(const ag_map *map, size_t *ret_image, ag_err *err)
{
    const unsigned char *file = map->data;
    const size_t size = map->size;
    unsigned char sha[32];
    if (size < TRAIN_SEAL_SIZE) return unsealed(file, size, err);
    const size_t image = size - TRAIN_SEAL_SIZE;
    const unsigned char *seal = file + image;
    if (memcmp(seal, magic, sizeof magic) || load_le(seal + AT_SIZE, 8) != image ||
        load_le(seal + AT_CRC, 4) != ag_crc32c(0, seal, AT_CRC))
        return unsealed(file, size, err);
    digest(file, image, map, sha);
    if (memcmp(sha, seal + AT_SHA, sizeof sha))
        return ag_err_set(err, AG_EINPUT, "damaged: checksum differs");
    *ret_image = image;
    return AG_OK;
}
