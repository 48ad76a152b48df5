/*
 * hash.c -- SHA-256 as in FIPS 180-4 section 6.2, CRC-32C eight bytes at a time.
 *
 * Both are plain C: they run once per checkpoint, not once per step.
 */
#include "autograd/base/hash.h"

#include <pthread.h>
#include <string.h>

/* ---- SHA-256 -------------------------------------------------------------------------------- */

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t ror(uint32_t x, int n) { return x >> n | x << (32 - n); }

static inline uint32_t load_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline void store_be32(uint8_t *p, uint32_t x)
{
    p[0] = (uint8_t)(x >> 24);
    p[1] = (uint8_t)(x >> 16);
    p[2] = (uint8_t)(x >> 8);
    p[3] = (uint8_t)x;
}

/* One round, the eight words renamed instead of moved: d and h are the two that change. */
static inline void sha_round(uint32_t a, uint32_t b, uint32_t c, uint32_t *d, uint32_t e,
                             uint32_t f, uint32_t g, uint32_t *h, uint32_t kw)
{
    const uint32_t t1 = *h + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + (g ^ (e & (f ^ g))) + kw;
    *d += t1;
    *h = t1 + (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) | (c & (a | b)));
}

static void compress(uint32_t state[8], const uint8_t block[64])
{
    uint32_t w[64];
    for (int t = 0; t < 16; t++) w[t] = load_be32(block + 4 * t);
    for (int t = 16; t < 64; t++) {
        const uint32_t s0 = ror(w[t - 15], 7) ^ ror(w[t - 15], 18) ^ w[t - 15] >> 3;
        const uint32_t s1 = ror(w[t - 2], 17) ^ ror(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int t = 0; t < 64; t += 8) {
        const uint32_t *k = K + t, *x = w + t;
        sha_round(a, b, c, &d, e, f, g, &h, k[0] + x[0]);
        sha_round(h, a, b, &c, d, e, f, &g, k[1] + x[1]);
        sha_round(g, h, a, &b, c, d, e, &f, k[2] + x[2]);
        sha_round(f, g, h, &a, b, c, d, &e, k[3] + x[3]);
        sha_round(e, f, g, &h, a, b, c, &d, k[4] + x[4]);
        sha_round(d, e, f, &g, h, a, b, &c, k[5] + x[5]);
        sha_round(c, d, e, &f, g, h, a, &b, k[6] + x[6]);
        sha_round(b, c, d, &e, f, g, h, &a, k[7] + x[7]);
    }
    state[0] += a; state[1] += b; state[2] += c; state[3] += d;
    state[4] += e; state[5] += f; state[6] += g; state[7] += h;
}

void ag_sha256_init(ag_sha256 *s)
{
    static const uint32_t h0[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    memcpy(s->h, h0, sizeof h0);
    s->bytes = 0;
}

void ag_sha256_add(ag_sha256 *s, const void *data, size_t size)
{
    const uint8_t *p = data;
    const size_t held = (size_t)(s->bytes % 64);
    s->bytes += size;
    if (held) {
        const size_t n = size < 64 - held ? size : 64 - held;
        if (n) memcpy(s->block + held, p, n);
        if (held + n < 64) return;
        compress(s->h, s->block);
        p += n;
        size -= n;
    }
    for (; size >= 64; p += 64, size -= 64) compress(s->h, p);
    if (size) memcpy(s->block, p, size);
}

void ag_sha256_end(ag_sha256 *s, uint8_t digest[32])
{
    static const uint8_t pad[64] = { 0x80 };
    const uint64_t bits = s->bytes * 8;
    uint8_t length[8];
    store_be32(length, (uint32_t)(bits >> 32));
    store_be32(length + 4, (uint32_t)bits);
    ag_sha256_add(s, pad, 1 + (size_t)((119 - s->bytes % 64) % 64));
    ag_sha256_add(s, length, 8);
    for (int i = 0; i < 8; i++) store_be32(digest + 4 * i, s->h[i]);
}

void ag_sha256_hex(const uint8_t digest[32], char hex[65])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 32; i++) {
        hex[2 * i] = digits[digest[i] >> 4];
        hex[2 * i + 1] = digits[digest[i] & 15];
    }
    hex[64] = 0;
}

/* ---- CRC-32C -------------------------------------------------------------------------------- */

/* crc_table[k][b]: the remainder of byte b with k zero bytes behind it, polynomial 0x1EDC6F41 with
 * its bits reversed. */
static uint32_t crc_table[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void crc_fill(void)
{
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t r = b;
        for (int i = 0; i < 8; i++) r = r >> 1 ^ (r & 1 ? 0x82f63b78u : 0);
        crc_table[0][b] = r;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++) {
            const uint32_t r = crc_table[k - 1][b];
            crc_table[k][b] = r >> 8 ^ crc_table[0][r & 255];
        }
}

uint32_t ag_crc32c(uint32_t crc, const void *data, size_t size)
{
    pthread_once(&crc_once, crc_fill);
    const uint8_t *p = data;
    uint32_t r = ~crc;
    for (; size >= 8; p += 8, size -= 8) {
        const uint32_t lo = r ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
                                 (uint32_t)p[3] << 24);
        r = crc_table[7][lo & 255] ^ crc_table[6][lo >> 8 & 255] ^ crc_table[5][lo >> 16 & 255] ^
            crc_table[4][lo >> 24] ^ crc_table[3][p[4]] ^ crc_table[2][p[5]] ^ crc_table[1][p[6]] ^
            crc_table[0][p[7]];
    }
    for (; size; p++, size--) r = r >> 8 ^ crc_table[0][(r ^ *p) & 255];
    return ~r;
}
