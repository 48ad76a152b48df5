/*
 * attention_tile.h -- what happens inside one tile of attention scores, for the kernels that choose
 * tiles.
 *
 * A tile is up to 64 queries x 64 keys and is stored transposed: s[key][query], rows of TILE
 * floats.  With queries in the lanes the softmax runs down columns, with no sum across lanes, and
 * all five products are "broadcast a scalar of A, multiply a row of B, add to registers", where A
 * is k, v (as they lie in memory) or a tile, and B is q or do transposed once per 64 queries (or
 * their rows).  Nothing else is packed.
 *
 * Queries go in groups of 16 lanes; attention_keys_tmpl.h has which of them meet which keys.
 *
 * Scores are kept in base 2: q is multiplied by scale * log2(e) where it is transposed.
 */
#ifndef AG_CPU_ATTENTION_TILE_H
#define AG_CPU_ATTENTION_TILE_H

#include "autograd/cpu/transpose.h"

enum {
    TILE   = 64,                     /* queries, and keys, of a tile: a multiple of 64 for the
                                      * noise */
    GROUP  = 16,                     /* queries that are masked together */
    GROUPS = TILE / GROUP,
    GV     = GROUP / VL,             /* vectors of a group */
};

/* A masked score, and a maximum of no scores: finite, so that their difference is no NaN. */
#define MASKED (-2e30f)
#define NO_MAX (-1e30f)
#define LOG2_E 1.44269504088896340736
#define LN_2   0.69314718055994530942

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* ---- vectors ---- */

/* 2^x, 1 ulp; exactly 1 at 0; 0 far below -150.  The polynomial is a minimax fit of (2^f - 1)/f. */
INLINE vf vexp2(vf x)
{
#if !defined(__AVX512F__)
    x = vmax(x, vset(-150.0f));
#endif
    const vf shift = vset(0x1.8p23f), n = (x + shift) - shift, f = x - n;
    vf p = vfma(vset(1.53353620e-4f), f, vset(1.33988739e-3f));
    p = vfma(p, f, vset(9.61843692e-3f));
    p = vfma(p, f, vset(5.55033237e-2f));
    p = vfma(p, f, vset(2.40226477e-1f));
    p = vfma(p, f, vset(6.93147182e-1f));
    return vldexp(vfma(p, f, vset(1.0f)), n);
}

/* x where bits >= threshold, else 0 */
INLINE vf vkeep(vu bits, uint32_t threshold, vf x)
{
#if defined(__AVX512F__)
    const __mmask16 k = _mm512_cmpge_epu32_mask((__m512i)bits, _mm512_set1_epi32((int)threshold));
    return (vf)_mm512_maskz_mov_ps(k, (__m512)x);
#else
    return (vf)((vi)(bits >= threshold) & (vi)x);
#endif
}

/* products of the low words of 64-bit lanes with m; what the high words hold does not matter */
INLINE vul vmul_low(vul x, uint32_t m)
{
#if defined(__AVX512F__)
    return (vul)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
    return (vul)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(m));
#elif defined(__SSE2__)
    return (vul)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(m));
#else
    return (x & 0xffffffffu) * (uint64_t)m;
#endif
}

/* ---- noise: 16 queries in the lanes ---- */

typedef struct tile_noise {
    vul      k0[10], k1[10];         /* the round keys */
    vul      lanes[2];               /* Philox blocks from query 0 to queries 0, 2, 4, ...
                                      * and 1, 3, 5, ... */
    uint64_t site, step;
    uint32_t threshold;              /* of dropout */
    uint64_t row_blocks;             /* Philox blocks from one query to the next */
} tile_noise;

static void tile_noise_init(tile_noise *z, const ag_noise *noise, double drop, int64_t n_keys)
{
    uint32_t k0 = (uint32_t)noise->seed, k1 = (uint32_t)(noise->seed >> 32);
    for (int r = 0; r < 10; r++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        z->k0[r] = (vul){ 0 } + k0;
        z->k1[r] = (vul){ 0 } + k1;
    }
    z->site = noise->site;
    z->step = noise->step;
    z->threshold = ag_drop_threshold(drop);
    z->row_blocks = (uint64_t)ag_noise_stride(n_keys) / 4;
    for (int l = 0; l < VL; l++)
        z->lanes[l % 2][l / 2] = (uint64_t)l * z->row_blocks;
}

/* Noise of VL queries: w[k] is that of key 16 k + (block % 16), where block is the first query's.
 * Philox (ag_philox) runs on 64-bit lanes whose high words hold rubbish, even and odd queries in
 * turn. */
INLINE void tile_bits(const tile_noise *z, uint64_t block, vu w[4])
{
    vul c[4][2];
    UNROLL for (int i = 0; i < 2; i++) {
        c[0][i] = z->lanes[i] + block;
        c[1][i] = c[0][i] >> 32;
        c[2][i] = (vul){ 0 } + z->site;
        c[3][i] = (vul){ 0 } + z->step;
    }
    UNROLL for (int r = 0; r < 10; r++)
        UNROLL for (int i = 0; i < 2; i++) {
            const vul p0 = vmul_low(c[0][i], 0xD2511F53u), p1 = vmul_low(c[2][i], 0xCD9E8D57u);
            c[0][i] = (p1 >> 32) ^ c[1][i] ^ z->k0[r];
            c[2][i] = (p0 >> 32) ^ c[3][i] ^ z->k1[r];
            c[1][i] = p1;
            c[3][i] = p0;
        }
    UNROLL for (int k = 0; k < 4; k++)
        w[k] = (vu)((c[k][0] & 0xffffffffu) | c[k][1] << 32);
}

/* ---- transposes ---- */

typedef float v4 __attribute__((vector_size(16), may_alias, aligned(4)));

INLINE void transpose_4x4(const float *x, int64_t ldx, float *y, int64_t ldy, v4 scale, bool add)
{
    const v4 a = *(const v4 *)x * scale, b = *(const v4 *)(x + ldx) * scale;
    const v4 c = *(const v4 *)(x + 2 * ldx) * scale, d = *(const v4 *)(x + 3 * ldx) * scale;
    typedef int i4 __attribute__((vector_size(16)));
    const v4 ab0 = __builtin_shuffle(a, b, (i4){ 0, 4, 1, 5 }),
        ab1 = __builtin_shuffle(a, b, (i4){ 2, 6, 3, 7 });
    const v4 cd0 = __builtin_shuffle(c, d, (i4){ 0, 4, 1, 5 }),
        cd1 = __builtin_shuffle(c, d, (i4){ 2, 6, 3, 7 });
    const v4 t[4] = { __builtin_shuffle(ab0, cd0, (i4){ 0, 1, 4, 5 }),
                      __builtin_shuffle(ab0, cd0, (i4){ 2, 3, 6, 7 }),
                      __builtin_shuffle(ab1, cd1, (i4){ 0, 1, 4, 5 }),
                      __builtin_shuffle(ab1, cd1, (i4){ 2, 3, 6, 7 }) };
    for (int i = 0; i < 4; i++) {
        v4 *to = (v4 *)(y + i * ldy);
        if (add)
            *to += t[i];
        else
            *to = t[i];
    }
}

/* The same for VL rows of x; scale has a number for each column of x. */
INLINE void transpose_vl(const float *x, int64_t ldx, float *y, int64_t ldy, v4 scale, bool add)
{
    vf t[4];
    transpose_4(x, ldx, t);
    UNROLL for (int i = 0; i < 4; i++, y += ldy)
        vstore(y, add ? vload(y) + t[i] * scale[i] : t[i] * scale[i]);
}

enum { ROWS_AHEAD = 6 };             /* rows that are asked for before their turn: about as many as
                                      * a processor waits for at once */

/* y[c][r] (+)= scale * x[r][c] for r < m, c < n; each column also times by[c] where by is not
 * NULL */
INLINE void transpose(int64_t m, int64_t n, const float *x, int64_t ldx, float *y, int64_t ldy,
                      float scale, const float *by, bool add)
{
    const int64_t m4 = m & ~(int64_t)3, n4 = n & ~(int64_t)3;
    for (int64_t c = 0; c < n4; c += 4) {
        const v4 f = by ? *(const v4 *)(by + c) * scale : scale - (v4){ 0 };
        int64_t r = 0;
        for (int64_t i = c + ROWS_AHEAD; i < c + ROWS_AHEAD + 4 && i < n; i++)
            for (int64_t l = 0; l < m; l += GROUP)
                __builtin_prefetch(y + i * ldy + l, 1, 3);
        for (; r + VL <= m; r += VL)
            transpose_vl(x + r * ldx + c, ldx, y + c * ldy + r, ldy, f, add);
        for (; r < m4; r += 4)
            transpose_4x4(x + r * ldx + c, ldx, y + c * ldy + r, ldy, f, add);
    }
    for (int64_t r = 0; r < m; r++)
        for (int64_t c = r < m4 ? n4 : 0; c < n; c++)
            y[c * ldy + r] = x[r * ldx + c] * (by ? by[c] * scale : scale)
                + (add ? y[c * ldy + r] : 0.0f);
}

static void tile_transpose(int64_t m, int64_t n, const float *x, int64_t ldx, float *y, int64_t ldy,
                           float scale)
{
    transpose(m, n, x, ldx, y, ldy, scale, NULL, false);
}

static inline void tile_transpose_by(int64_t m, int64_t n, const float *x, int64_t ldx, float *y,
                              int64_t ldy, const float *by)
{
    transpose(m, n, x, ldx, y, ldy, 1.0f, by, false);
}

static inline void tile_transpose_add(int64_t m, int64_t n, const float *x, int64_t ldx, float *y,
                               int64_t ldy, float scale)
{
    transpose(m, n, x, ldx, y, ldy, scale, NULL, true);
}

/* y[r][c] = scale * x[r][c], r < m, c < n, zeros up to ldy, a multiple of GROUP.  Rows are asked
 * for ahead: loads alone would wait for stores to y whose addresses agree with theirs modulo
 * 4096. */
static void tile_copy(int64_t m, int64_t n, const float *x, int64_t ldx, float *y, int64_t ldy,
                      float scale)
{
    for (int64_t r = 0; r < m; r++, x += ldx, y += ldy) {
        int64_t c = 0;
        if (r + ROWS_AHEAD < m)
            for (; c < n; c += GROUP)
                __builtin_prefetch(x + ROWS_AHEAD * ldx + c, 0, 3);
        for (c = 0; c + VL <= n; c += VL)
            vstore(y + c, vload(x + c) * scale);
        for (; c < ldy; c += VL)
            vstore(y + c, vload_n(x + c, c < n ? n - c : 0) * scale);
    }
}

/* ---- products ---- */

typedef struct tile_product {        /* c[m][n] = a[m][k] b[k][n]: */
    int64_t k;
    const float *a; int64_t a_row, a_col;        /* a[i][p] is at i*a_row + p*a_col */
    const float *b; int64_t b_row;
    float       *c; int64_t c_row;
    enum { TILE_SET, TILE_ADD, TILE_SCALE } out; /* c = ab, c += ab, c = c*alpha + ab */
    const float *alpha;                          /* [n] */
} tile_product;

/* R rows and N vectors of c in registers: R and N are constants where this is inlined. */
INLINE void tile_micro(const int R, const int N, const tile_product *t, int64_t i, int64_t j)
{
    vf acc[8][GROUPS * GV];
    const float *row[8];
    UNROLL for (int r = 0; r < R; r++) {
        row[r] = t->a + (i + r) * t->a_row;
        UNROLL for (int v = 0; v < N; v++)
            acc[r][v] = vset(0.0f);
    }
    const float *b = t->b + j;
    const int64_t step = t->a_col, b_row = t->b_row, end = t->k * step, c_row = t->c_row;
    float *c = t->c + i * c_row + j;
    for (int64_t p = 0; p != end; p += step, b += b_row) {
        vf y[GROUPS * GV];
        UNROLL for (int v = 0; v < N; v++)
            y[v] = vload(b + v * VL);
        UNROLL for (int r = 0; r < R; r++) {
            const vf x = vset(row[r][p]);
            UNROLL for (int v = 0; v < N; v++)
                acc[r][v] = vfma(x, y[v], acc[r][v]);
        }
    }
    if (t->out == TILE_SET) {
        UNROLL for (int r = 0; r < R; r++, c += c_row)
            UNROLL for (int v = 0; v < N; v++)
                vstore(c + v * VL, acc[r][v]);
    } else if (t->out == TILE_ADD) {
        UNROLL for (int r = 0; r < R; r++, c += c_row)
            UNROLL for (int v = 0; v < N; v++)
                vstore(c + v * VL, acc[r][v] + vload(c + v * VL));
    } else {
        vf by[GROUPS * GV];
        UNROLL for (int v = 0; v < N; v++)
            by[v] = vload(t->alpha + j + v * VL);
        UNROLL for (int r = 0; r < R; r++, c += c_row)
            UNROLL for (int v = 0; v < N; v++)
                vstore(c + v * VL, vfma(vload(c + v * VL), by[v], acc[r][v]));
    }
}

/* All rows of columns j .. j + N*VL - 1; R rows at a time, then 4, 2, 1. */
INLINE void tile_columns(const int R, const int N, const tile_product *t, int64_t m, int64_t j)
{
    int64_t i = 0;
    for (; i + R <= m; i += R)
        tile_micro(R, N, t, i, j);
    if (R > 4 && i + 4 <= m) {
        tile_micro(4, N, t, i, j);
        i += 4;
    }
    if (R > 2 && i + 2 <= m) {
        tile_micro(2, N, t, i, j);
        i += 2;
    }
    if (R > 1 && i < m)
        tile_micro(1, N, t, i, j);
}

#if defined(__AVX512F__)             /* 32 registers: 6 x 4 sums, 4 of b, 1 of a */
static void tile_columns_4(const tile_product *t, int64_t m, int64_t j)
{
    tile_columns(6, 4, t, m, j);
}
static void tile_columns_3(const tile_product *t, int64_t m, int64_t j)
{
    tile_columns(8, 3, t, m, j);
}
static void tile_columns_2(const tile_product *t, int64_t m, int64_t j)
{
    tile_columns(8, 2, t, m, j);
}
static void tile_columns_1(const tile_product *t, int64_t m, int64_t j)
{
    tile_columns(8, 1, t, m, j);
}

/* n is a multiple of GROUP. */
static void tile_multiply(const tile_product *t, int64_t m, int64_t n)
{
    int64_t j = 0;
    for (; j + 3 * GROUP < n; j += 4 * GROUP)
        tile_columns_4(t, m, j);
    switch ((n - j) / GROUP) {
    case 3: tile_columns_3(t, m, j); break;
    case 2: tile_columns_2(t, m, j); break;
    case 1: tile_columns_1(t, m, j); break;
    }
}
#else                                /* 16 registers: 6 x 2 sums (AVX2) or 2 x 4 */
static void tile_multiply(const tile_product *t, int64_t m, int64_t n)
{
    for (int64_t j = 0; j < n; j += GROUP)
        tile_columns(VL == 8 ? 6 : 2, GV, t, m, j);
}
#endif

#endif
