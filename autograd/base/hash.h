/*
 * hash.h -- SHA-256 (FIPS 180-4) for files and states, CRC-32C (RFC 3720) for the tensors of a
 * checkpoint.
 */
#ifndef AG_BASE_HASH_H
#define AG_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct ag_sha256 {
    uint32_t h[8];
    uint64_t bytes;
    uint8_t  block[64];
} ag_sha256;

void ag_sha256_init(ag_sha256 *s);
void ag_sha256_add(ag_sha256 *s, const void *data, size_t size);
void ag_sha256_end(ag_sha256 *s, uint8_t digest[32]);
void ag_sha256_hex(const uint8_t digest[32], char hex[65]);   /* lower case, NUL at the end */

/* CRC-32C of data, continuing from crc (0 to begin). */
uint32_t ag_crc32c(uint32_t crc, const void *data, size_t size);

#endif
