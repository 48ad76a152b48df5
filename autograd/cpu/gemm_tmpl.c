/*
 * gemm_tmpl.c -- the dense matrix product c (+)= op(a) op(b) of one instruction set, with its epilogue.
 *
 * The scheme of Goto and van de Geijn (ACM TOMS 34, 2008).  k is cut into equal blocks of at most KC steps; a block
 * of b is packed into panels [kc][NR], which a thread meets one after the other; each panel, sitting in the L1
 * cache, passes over the strips of MR rows of a block of a, which sits in L2.  Rows of a are read where they lie
 * (a strip is then as many streams as it has rows); only a transposed a is packed.  The epilogue runs over a tile
 * that has just received its last block.
 *
 * Threads share the rows of c, and the panels of b, which they pack together; where c has few rows they share
 * its columns, and each packs its own panels just before the first use, without a barrier.
 *
 * Bits.  An element of c is a chain of fused multiply-adds per block of k, and the blocks are added in order.
 * Blocks depend on k alone: so the result does not depend on the number of threads, on m or n, on the tile, nor
 * on whether a row comes alone or with others.  The exception is decoding: for m <= DOT_M, a not transposed and
 * b transposed, an element is a dot product with VL partial sums (the same for all such m).  Error: a chain is at
 * most KC long, so that |error| <= 4 u sum |a b| for data of mixed sign at any k.
 *
 * Kernels cannot fail: without memory for packing, one thread goes on with a panel and a strip on its stack, with
 * the same bits.  The same path serves a second caller while the buffers are in use.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "autograd/cpu/gemm_pack_tmpl.h"
#include "autograd/cpu/fast.h"

enum {
    KC = 256,                        /* steps of k in a block, at most; a multiple of VL */
    MC = 192 / MR * MR,              /* rows of a block of a: 196 kB, a part of the L2 cache */
    NC = 3072 / NR * NR,             /* columns of a block of b: 3 MiB, shared in L3 */
    DOT_M = 6,                       /* up to here, dot products beat packing */
    B_DIRECT_M = 112,             /* up to here, b is read where it lies */
    MIN_WORK = 1 << 17,              /* multiply-adds that are worth waking a thread for */
    MAX_THREADS = 256,
    HUGE_PAGE = 2 << 20
};

/* How one call is cut. */
typedef struct plan {
    int     threads;
    bool    by_cols;                 /* threads share columns of c, not rows */
    bool    b_direct;                /* full panels of b are read where they lie */
    int64_t kc;                      /* steps of a block of k, all but the last */
    int64_t mc, nc;                  /* most rows of a block of a, columns of a block of b */
    float  *packed_b;                /* [nc][kc] */
    float  *packed_a;                /* per thread [mc][KC] and VL floats of slack */
} plan;

typedef struct range { int64_t begin, end; } range;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* The t-th of `parts` almost equal shares of 0 .. n-1. */
static range share(int64_t n, int t, int parts) { return (range){ n * t / parts, n * (t + 1) / parts }; }

static int64_t slack_a(int64_t mc) { return mc * KC + AG_ALIGN_UP(VL, 64); }

/* A tile narrower than its vectors goes through a buffer. */
static void tile_narrow(const operands *o, int64_t rows, int64_t cols, const float *a, const float *b, float *c,
                        ahead *f)
{
    _Alignas(64) float buffer[MR * NR] = { 0 };
    operands to_buffer = *o;
    to_buffer.ldc = NR;
    to_buffer.acc = false;
    tiles[rows - 1][ceil_div(cols, VL) - 1](&to_buffer, a, b, buffer, buffer, f);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < cols; v += VL) {
            float *p = c + r * o->ldc + v;
            const int64_t lanes = min64(cols - v, VL);
            vf x = vload(buffer + r * NR + v);
            if (o->acc)
                x += vload_n(p, lanes);
            vstore_n(p, x, lanes);
        }
}

/* Rows i0 .. i0+rows of c in columns `cols` (from jc on, where the packed panels begin), one block of k. */
static void block(const ag_gemm *g, const plan *p, float *packed_a, int64_t k0, int64_t kc, int64_t i0, int64_t rows,
                  int64_t jc, range cols, bool pack_panels, ahead *f)
{
    const int64_t h = ceil_div(rows, ceil_div(rows, MR));        /* strips of equal height, at most MR */
    const bool last = k0 + kc == g->k && has_epilogue(g);
    operands o = { .kc = kc, .ldc = g->ldc, .acc = g->acc || k0 > 0 };
    if (g->ta)
        pack_a(g, k0, kc, i0, rows, h, packed_a);
    const float *const a = g->ta ? packed_a : (const float *)g->a + i0 * g->lda + k0;
    const int64_t next_strip = g->ta ? kc : g->lda;              /* times h */
    o.ai = g->ta ? 1 : g->lda;
    for (int64_t j = cols.begin; j < cols.end; j += NR) {
        const int64_t n = min64(NR, cols.end - j);
        const bool direct = p->b_direct && n == NR;
        float *panel = p->packed_b + (j - jc) * p->kc;
        if (pack_panels && !direct)
            pack_b(g, k0, kc, j, n, panel);
        const float *b = direct ? (const float *)g->b + k0 * g->ldb + j : panel;
        o.bk = direct ? g->ldb : AG_ALIGN_UP(n, VL);
        for (int64_t i = 0; i < rows; i += h) {
            const int64_t m = min64(h, rows - i);
            float *c = (float *)g->c + (i0 + i) * g->ldc + j;
            const float *next_c = i + h < rows ? c + h * g->ldc : (float *)g->c + i0 * g->ldc + j + NR;
            o.ak = g->ta ? m : 1;
            if (n % VL == 0)
                tiles[m - 1][n / VL - 1](&o, a + i * next_strip, b, c, next_c, f);
            else
                tile_narrow(&o, m, n, a + i * next_strip, b, c, f);
            if (last)
                finish_block(g, i0 + i, m, j, n);
        }
    }
}

/* The part of a that the next block reads, to be fetched during `steps` times STEP steps of tiles. */
static ahead next_block(const ag_gemm *g, int64_t i0, int64_t rows, int64_t k0, int64_t kc, int64_t steps)
{
    const int64_t width = g->ta ? rows : kc, height = g->ta ? kc : rows;
    const float *a = (const float *)g->a + (g->ta ? k0 * g->lda + i0 : i0 * g->lda + k0);
    return (ahead){ .at = a, .width = width, .stride = g->lda, .rows = height, .left = width,
                    .lines = ceil_div(height * ceil_div(width, LINE), max64(1, steps)) };
}

/* What thread t of `threads` does. */
static void work(const ag_gemm *g, const plan *p, int t, int threads)
{
    const bool together = threads > 1 && !p->by_cols;
    const range rows = together ? share(g->m, t, threads) : (range){ 0, g->m };
    const int64_t mine = rows.end - rows.begin;
    const int64_t mc = min64(p->mc, AG_ALIGN_UP(ceil_div(mine, max64(1, ceil_div(mine, p->mc))), MR));
    float *packed_a = p->packed_a + t * slack_a(p->mc);
    for (int64_t jc = 0; jc < g->n; jc += p->nc) {
        const int64_t jend = min64(g->n, jc + p->nc);
        const int64_t grain = together ? NR : VL;
        const range own = share(ceil_div(jend - jc, grain), t, threads);
        const range own_cols = { jc + own.begin * grain, min64(jend, jc + own.end * grain) };
        for (int64_t k0 = 0; k0 == 0 || k0 < g->k; k0 += p->kc) {
            const int64_t kc = min64(p->kc, g->k - k0);
            if (together) {
                for (int64_t j = own_cols.begin; j < own_cols.end; j += NR)
                    pack_b(g, k0, kc, j, min64(NR, own_cols.end - j), p->packed_b + (j - jc) * p->kc);
#pragma omp barrier
            }
            for (int64_t i = rows.begin; i < rows.end; i += mc) {
                const range now = together ? (range){ jc, jend } : own_cols;
                const int64_t steps = ceil_div(min64(mc, rows.end - i), MR) * ceil_div(now.end - now.begin, NR)
                                      * ceil_div(kc, STEP);
                ahead f = { 0 };
                if (i + mc < rows.end)
                    f = next_block(g, i + mc, min64(mc, rows.end - i - mc), k0, kc, steps);
                else if (k0 + p->kc < g->k)
                    f = next_block(g, rows.begin, min64(mc, mine), k0 + p->kc, min64(p->kc, g->k - k0 - p->kc), steps);
                block(g, p, packed_a, k0, kc, i, min64(mc, rows.end - i), jc,
                      now, !together && i == rows.begin, &f);
            }
            if (together) {
#pragma omp barrier
            }
        }
    }
}

/*
 * Memory for packing, kept for ever so that its address, and its huge pages, stay.  NULL if there is none.
 * `busy` is held by the caller.
 */
static float *buffers(int threads)
{
    static float *base;
    static size_t bytes;
    const size_t need = ((size_t)NC * KC + (size_t)threads * (size_t)slack_a(MC)) * sizeof(float);
    if (need <= bytes)
        return base;
    const size_t size = AG_ALIGN_UP(need, (size_t)HUGE_PAGE) + HUGE_PAGE;
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (base)
        munmap(base, bytes);
    const size_t skip = (size_t)-(uintptr_t)p % HUGE_PAGE;      /* start on a huge page; give back the rest */
    if (skip)
        munmap(p, skip);
    munmap(p + size - (HUGE_PAGE - skip), HUGE_PAGE - skip);
    base = (float *)(p + skip);
    bytes = size - HUGE_PAGE;
    madvise(base, bytes, MADV_HUGEPAGE);
    return base;
}

/* One thread, a panel and a strip at a time. */
static void gemm_small_memory(const ag_gemm *g, plan p)
{
    enum { STRIP = MR * KC + 64 };
    _Alignas(64) float space[STRIP + NR * KC];
    p.packed_a = space;
    p.packed_b = space + STRIP;
    p.mc = MR;
    p.nc = NR;
    work(g, &p, 0, 1);
}

static int team_rank(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static int team_size(void)
{
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

/* Threads that a product of this many multiply-adds is worth. */
static int threads_for(int64_t m, int64_t n, int64_t k)
{
#ifdef _OPENMP
    const double work = (double)m * (double)n * (double)k;
    const double most = work / MIN_WORK;
    const int t = omp_in_parallel() ? 1 : omp_get_max_threads();
    return most < 2 ? 1 : most < t ? (int)most : t < MAX_THREADS ? t : MAX_THREADS;
#else
    (void)m, (void)n, (void)k;
    return 1;
#endif
}

/* By columns where rows are few and every thread gets about as many vectors: no barrier, no sharing. */
static bool split_columns(const ag_gemm *g, int threads)
{
    const int64_t vectors = ceil_div(g->n, VL);
    return g->m <= MC && ceil_div(vectors, threads) * threads * 4 <= vectors * 5;
}

void AG_NAME(gemm)(const ag_gemm *g)
{
    static atomic_flag busy = ATOMIC_FLAG_INIT;
    if (g->m <= 0 || g->n <= 0)
        return;
    plan p = { .threads = threads_for(g->m, g->n, g->k), .mc = MC, .nc = NC };
    if (!g->ta && g->tb && g->m <= DOT_M) {
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
        {
            const range r = share(ceil_div(g->n, DOT_COLS), team_rank(), team_size());
            dots_range(g, r.begin * DOT_COLS, min64(g->n, r.end * DOT_COLS));
        }
        return;
    }
    p.kc = AG_ALIGN_UP(ceil_div(max64(1, g->k), max64(1, ceil_div(g->k, KC))), VL);
    p.by_cols = split_columns(g, p.threads);
    p.b_direct = !g->tb && g->m <= B_DIRECT_M && (p.by_cols || p.threads == 1);
    float *space = NULL;
    const bool got = !atomic_flag_test_and_set(&busy);
    if (got)
        space = buffers(p.threads);
    if (space) {
        p.packed_b = space;
        p.packed_a = space + (size_t)NC * KC;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
        work(g, &p, team_rank(), team_size());
    } else {
        gemm_small_memory(g, p);
    }
    if (got)
        atomic_flag_clear(&busy);
}
