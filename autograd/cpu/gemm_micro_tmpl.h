/*
 * gemm_micro_tmpl.h -- the register tiles of the matrix product, their way out, and dot products
 * for decoding.
 *
 * A tile holds up to MR x NV vectors of c in registers while k runs; per step of k it loads NV
 * vectors of b and broadcasts one number per row of a.  MR and NV fill the registers: MR * NV
 * sums, NV vectors of b, the rest for broadcasts.  Every height 1 .. MR and width 1 .. NV has
 * its own function, so that no tile computes rows that do not exist.  Whatever the tile, an
 * element of c is the same chain of fused multiply-adds.
 */
#ifndef AG_CPU_GEMM_MICRO_TMPL_H
#define AG_CPU_GEMM_MICRO_TMPL_H

#include "autograd/cpu/storage.h"
#include "autograd/kernels.h"

#if defined(__AVX512F__)
enum { MR = 9, NV = 3 };
#elif defined(__AVX2__)
enum { MR = 6, NV = 2 };
#else
enum { MR = 4, NV = 2 };
#endif
enum { NR = NV * VL };

#define ALWAYS_INLINE static inline __attribute__((always_inline))
/* Without it GCC computes a pointer for every row beforehand, and spills them. */
#define HIDE(pointer) __asm__("" : "+r"(pointer))

enum { STEP = 16, LINE = 16 };       /* steps of k between fetches; floats in a cache line */

/*
 * What a tile multiplies stands in words of 32 bits: a float, or with AG_PAIRS two bf16 numbers
 * that follow each other in k.  A step of k is a word.  A pair is two fused multiply-adds, the one
 * of the high half first; vdpbf16ps takes denormal numbers for zero.  AG_PAIRS_EMULATED: the same,
 * but for that, without the instruction, for tests.
 */
#if defined(AG_PAIRS)
enum { PER = 2 };                    /* numbers in a word */
ALWAYS_INLINE vf spread(const float *word)
{
    int32_t bits;
    memcpy(&bits, word, sizeof bits);
    return (vf)_mm512_set1_epi32(bits);
}
ALWAYS_INLINE vf madd(vf a, vf b, vf sum)
{
#if defined(AG_PAIRS_EMULATED)
    const vu high = vset_u(0xffff0000u);
    sum = vfma((vf)((vu)a & high), (vf)((vu)b & high), sum);
    return vfma((vf)((vu)a << 16), (vf)((vu)b << 16), sum);
#else
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
}
#else
enum { PER = 1 };
ALWAYS_INLINE vf spread(const float *word) { return vset(*word); }
ALWAYS_INLINE vf madd(vf a, vf b, vf sum) { return vfma(a, b, sum); }
#endif

/* Of k numbers. */
static inline int64_t words(int64_t k) { return (k + PER - 1) / PER; }

/*
 * What to fetch while a tile is computed, beside the tile's own rows of a: the tile of c that
 * comes next and, into the L2 cache, a line from each of two places every STEP steps of k: the
 * next panel of b, the next block of a.
 */
typedef struct ahead {
    const float *c, *panel, *block;
} ahead;

/*
 * c[mr, nv*VL] (+)= a @ b over kc words.  Word (i, k) of a is a[i*ai + k*ak]: so a may be packed,
 * or a matrix as it lies in memory.  Row k of b starts at b + k*bk.
 */
typedef struct operands {
    int64_t kc, ai, ak, bk, ldc;
    bool    acc;
} operands;

typedef void tile_fn(const operands *o, const float *a, const float *b, float *c,
                     const ahead *f);

ALWAYS_INLINE void tile(const int mr, const int nv, const operands *o, const float *a,
                        const float *b, float *c, const ahead *f)
{
    enum { GROUPS = (MR + 2) / 3 }; /* one pointer serves three rows: x, x + ai, x + 2 ai */
    const int64_t ai = o->ai, ak = o->ak, bk = o->bk, ldc = o->ldc, kc = o->kc;
    const float *next_c = f->c, *panel = f->panel, *block = f->block;
    const bool acc = o->acc;
    const float *row[GROUPS];
    vf sum[MR][NV];
#pragma GCC unroll 32
    for (int i = 0; i < mr; i++) {
        if (i % 3 == 0)
            row[i / 3] = a + i * ai;
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            sum[i][v] = (vf){ 0 };
    }
    int64_t rows_left = mr;
    for (int64_t k = 0; k < kc;) {
        const int64_t end = k + STEP < kc ? k + STEP : kc;
        if (rows_left-- > 0) {
#pragma GCC unroll 8
            for (int v = 0; v < nv * VL; v += LINE)
                __builtin_prefetch(next_c + v, 1);
            next_c += ldc;
        }
#pragma GCC unroll 32
        for (int i = 0; i < mr; i++)
            __builtin_prefetch(row[i / 3] + i % 3 * ai + STEP * ak);
        __builtin_prefetch(panel, 0, 2);
        __builtin_prefetch(block, 0, 2);
        panel += LINE;
        block += LINE;
        for (; k < end; k++) {
            vf bv[NV];
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++)
                bv[v] = vload(b + v * VL);
#pragma GCC unroll 32
            for (int i = 0; i < mr; i++) {
                const vf av = spread(row[i / 3] + i % 3 * ai);
#pragma GCC unroll 8
                for (int v = 0; v < nv; v++)
                    sum[i][v] = madd(av, bv[v], sum[i][v]);
            }
#pragma GCC unroll 32
            for (int i = 0; i < mr; i += 3) {
                row[i / 3] += ak;
                HIDE(row[i / 3]);
            }
            b += bk;
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < mr; i++, c += ldc) {
        HIDE(c);
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++) {
            if (acc)
                sum[i][v] += vload(c + v * VL);
            vstore(c + v * VL, sum[i][v]);
        }
    }
}

#define TILE(mr, nv)                                                                            \
    static void tile_##mr##_##nv(const operands *o, const float *a, const float *b, float *c,   \
                                 const ahead *f)                                                \
    {                                                                                           \
        tile(mr, nv, o, a, b, c, f);                                                            \
    }
#if defined(__AVX512F__)
#define TILES(mr) TILE(mr, 1) TILE(mr, 2) TILE(mr, 3)
#define NAMES(mr) { tile_##mr##_1, tile_##mr##_2, tile_##mr##_3 }
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6) TILES(7) TILES(8) TILES(9)
#else
#define TILES(mr) TILE(mr, 1) TILE(mr, 2)
#define NAMES(mr) { tile_##mr##_1, tile_##mr##_2 }
TILES(1) TILES(2) TILES(3) TILES(4)
#if defined(__AVX2__)
TILES(5) TILES(6)
#endif
#endif

static tile_fn *const tiles[MR][NV] = {         /* [rows - 1][vectors - 1] */
    NAMES(1), NAMES(2), NAMES(3), NAMES(4),
#if defined(__AVX2__)
    NAMES(5), NAMES(6),
#endif
#if defined(__AVX512F__)
    NAMES(7), NAMES(8), NAMES(9),
#endif
};

ALWAYS_INLINE vf activate(ag_act act, vf x)
{
    switch (act) {
    case AG_ACT_RELU:       return vmax(x, vset(0.0f));      /* 0 for NaN, as the op relu */
    case AG_ACT_GELU_TANH:  return vgelu_tanh(x);
    case AG_ACT_GELU_ERF:   return vgelu_erf(x);
    case AG_ACT_GELU_QUICK: return vgelu_quick(x);
    default:                return x;
    }
}

/* Is c f32, so that sums may stand in it while they grow? */
static bool sums_in_c(const ag_gemm *g)
{
#if defined(AG_STORAGE)
    return g->c_f32;
#else
    (void)g;
    return true;
#endif
}

enum { PAST_FROM = 4 << 20 };        /* numbers: 16 MiB */

/* The activation's input: only backward reads it again.  Where it fills the caches it goes past
 * them: a store to a line that is in none waits for memory. */
ALWAYS_INLINE void put_pre(const ag_gemm *g, int64_t i, int64_t j, int64_t lanes, vf x)
{
    real *to = (real *)g->pre + i * g->ldc + j;
#if !defined(AG_STORAGE)
    if (g->m * g->n >= PAST_FROM && lanes == VL && (uintptr_t)to % sizeof x == 0) {
        vstore_past(to, x);
        return;
    }
#endif
    vput_n(to, x, lanes);
}

/* The way out of up to VL sums x of row i, columns j ..: bias, pre, activation, residual. */
ALWAYS_INLINE vf finish(const ag_gemm *g, const ag_act act, int64_t i, int64_t j, int64_t lanes,
                        vf x)
{
    if (g->bias)
        x += vget_n((const real *)g->bias + j, lanes);
    if (g->pre)
        put_pre(g, i, j, lanes, x);
    x = activate(act, x);
    if (g->residual)
        x += vget_n((const real *)g->residual + i * g->ldc + j, lanes);
    return x;
}

/* A block of c, rows i0 .. and columns j0 .., and its complete sums [rows, lds]. */
typedef struct block {
    int64_t i0, rows, j0, cols;
    const float *sums; int64_t lds;
} block;

ALWAYS_INLINE void finish_all(const ag_gemm *g, const ag_act act, const block *b)
{
    const bool f32 = sums_in_c(g);
    for (int64_t r = 0; r < b->rows; r++)
        for (int64_t v = 0; v < b->cols; v += VL) {
            const int64_t lanes = b->cols - v < VL ? b->cols - v : VL, i = b->i0 + r, j = b->j0 + v;
            vf x = vload_n(b->sums + r * b->lds + v, lanes);
            if (!g->acc)
                x = finish(g, act, i, j, lanes, x);
            if (f32)
                vstore_n((float *)g->c + i * g->ldc + j, x, lanes);
            else
                vput_n((real *)g->c + i * g->ldc + j, x, lanes);
        }
}

/* The same for a block whose sums are still in cache. */
static void finish_block(const ag_gemm *g, const block *b)
{
    switch (g->act) {
    case AG_ACT_RELU:       finish_all(g, AG_ACT_RELU, b); break;
    case AG_ACT_GELU_TANH:  finish_all(g, AG_ACT_GELU_TANH, b); break;
    case AG_ACT_GELU_ERF:   finish_all(g, AG_ACT_GELU_ERF, b); break;
    case AG_ACT_GELU_QUICK: finish_all(g, AG_ACT_GELU_QUICK, b); break;
    default:                finish_all(g, AG_ACT_NONE, b); break;
    }
}

static bool has_epilogue(const ag_gemm *g)
{
    return !sums_in_c(g) ||
        (!g->acc && (g->bias || g->pre || g->act != AG_ACT_NONE || g->residual));
}

/* sums[rows, lds] = c[i0 .. i0+rows, j0 .. j0+cols], where a 16-bit c is added to */
static void widen_c(const ag_gemm *g, int64_t i0, int64_t rows, int64_t j0, int64_t cols,
                    float *sums, int64_t lds)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < cols; v += VL) {
            const int64_t lanes = cols - v < VL ? cols - v : VL;
            vstore_n(sums + r * lds + v,
                     vget_n((const real *)g->c + (i0 + r) * g->ldc + j0 + v, lanes), lanes);
        }
}

/*
 * c[i, j] (+)= dot of row i of a and row j of b (m few, a not transposed, b transposed): each
 * row of b is read once, as it lies.  A dot product has VL partial sums, added as a tree.
 */
enum { DOT_M = 16, DOT_ROWS = 4, DOT_COLS = 4 };        /* DOT_M rows at most */

/* Of rows i0 .. and columns j0 .., to c[mr, ldc] */
ALWAYS_INLINE void dots(const int mr, const int nr, const ag_gemm *g, int64_t i0, int64_t j0,
                        float *c, int64_t ldc)
{
    const real *a = (const real *)g->a + i0 * g->lda, *b = (const real *)g->b + j0 * g->ldb;
    vf sum[DOT_ROWS][DOT_COLS];
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nr; j++)
            sum[i][j] = (vf){ 0 };
    int64_t k = 0;
    for (; k + VL <= g->k; k += VL)
#pragma GCC unroll 8
        for (int j = 0; j < nr; j++) {
            const vf bv = vget(b + j * g->ldb + k);
#pragma GCC unroll 8
            for (int i = 0; i < mr; i++)
                sum[i][j] = vfma(vget(a + i * g->lda + k), bv, sum[i][j]);
        }
    if (k < g->k)
#pragma GCC unroll 8
        for (int j = 0; j < nr; j++) {
            const vf bv = vget_n(b + j * g->ldb + k, g->k - k);
#pragma GCC unroll 8
            for (int i = 0; i < mr; i++)
                sum[i][j] = vfma(vget_n(a + i * g->lda + k, g->k - k), bv, sum[i][j]);
        }
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 8
        for (int j = 0; j < nr; j++) {
            float *at = c + i * ldc + j;
            *at = g->acc ? *at + vsum(sum[i][j]) : vsum(sum[i][j]);
        }
}

/* Columns j .. j+n-1, n <= DOT_COLS, of all rows to c[m, ldc] */
static void dots_columns(const ag_gemm *g, int64_t j, int64_t n, float *c, int64_t ldc)
{
    int64_t i = 0;
    for (; n == DOT_COLS && i + DOT_ROWS <= g->m; i += DOT_ROWS)
        dots(DOT_ROWS, DOT_COLS, g, i, j, c + i * ldc, ldc);
    for (; n == DOT_COLS && i + 2 <= g->m; i += 2)
        dots(2, DOT_COLS, g, i, j, c + i * ldc, ldc);
    for (; n == DOT_COLS && i < g->m; i++)
        dots(1, DOT_COLS, g, i, j, c + i * ldc, ldc);
    for (; i < g->m; i++)
        for (int64_t v = 0; v < n; v++)
            dots(1, 1, g, i, j + v, c + i * ldc + v, ldc);
}

/* Columns j0 .. j1-1 of c by dot products. */
static void dots_range(const ag_gemm *g, int64_t j0, int64_t j1)
{
    const bool in_c = sums_in_c(g);
    for (int64_t j = j0; j < j1; j += DOT_COLS) {
        float some[DOT_M * DOT_COLS];
        const int64_t n = j1 - j < DOT_COLS ? j1 - j : DOT_COLS, ldc = in_c ? g->ldc : DOT_COLS;
        float *c = in_c ? (float *)g->c + j : some;
        if (!in_c && g->acc)
            widen_c(g, 0, g->m, j, n, c, ldc);
        dots_columns(g, j, n, c, ldc);
        if (!in_c)
            finish_block(g, &(block){ 0, g->m, j, n, c, ldc });
    }
    if (in_c && has_epilogue(g))
        finish_block(g, &(block){ 0, g->m, j0, j1 - j0, (float *)g->c + j0, g->ldc });
    vstored_past();
}

#endif
