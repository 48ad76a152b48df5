/*
 * seal.h -- 64 bytes behind a checkpoint that say that every byte before them is the one we wrote.
 *
 * libhdf5 has no checksum over data, and a damaged file can crash it.  So a checkpoint is an HDF5
 * image with a seal behind it: the seal is verified first, and libhdf5 only ever sees undamaged
 * bytes.  HDF5 readers (h5py, h5dump) ignore what follows the image.  The seal finds damage, it is
 * no signature.
 *
 *   0  "TULLECK1"    8  image bytes, u64    16  SHA-256 of the image    48  zeros
 *   60  CRC-32C of bytes 0..59, u32; integers are little-endian
 */
#ifndef TRAIN_SEAL_H
#define TRAIN_SEAL_H

#include "autograd/base/error.h"
#include "autograd/base/io.h"

#include <stddef.h>

#define TRAIN_SEAL_SIZE 64           /* bytes */

/* Writes the seal of image[size] to image + size. */
void train_seal_write(unsigned char *image, size_t size);

/* The size of the image in a file, in bytes; AG_EINPUT with what is wrong: no checkpoint at all,
 * truncated, damaged. */
int  train_seal_check(const ag_map *file, size_t *ret_image, ag_err *err);

#endif
