/*
 * gemm_tmpl.c -- the dense matrix product c (+)= op(a) op(b) of one instruction set, with its
 * epilogue.
 *
 * The scheme of Goto and van de Geijn (ACM TOMS 34, 2008).  k is cut into equal blocks of at
 * most KC steps.  A block of b is packed into panels [kc][NR]; each panel passes over the strips
 * of MR rows of a block of a, which sits in the L2 cache.  Rows of a are read where they lie (a
 * strip is then as many streams as it has rows); only a transposed a is packed, unless its
 * columns are short.  The epilogue runs over a tile that has just received its last block.
 *
 * Threads share the rows of c, and the panels of b, of as many blocks of k as the buffer holds:
 * they pack those together, meet, and go on alone; who has finished his rows takes blocks of rows
 * from the others, as processors are not equally fast while other programs run.  Where c has few
 * rows they share its columns, and each packs its own panels just before the first use, without
 * a barrier.
 *
 * Bits.  An element of c is a chain of fused multiply-adds per block of k, and the blocks are
 * added in order.  Blocks depend on k alone: so the result does not depend on the number of
 * threads, on m or n, on the tile, nor on whether a row comes alone or with others.  The
 * exception is decoding: for m <= DOT_M, a not transposed and b transposed, an element is a dot
 * product with VL partial sums (the same for all such m).  Error: a chain is at most KC long,
 * and |error| <= 4 u sum |a b| for data of mixed sign at any k; below 32 u sum |a b| where all
 * products have one sign.
 *
 * 16-bit operands are widened while they are packed, but bf16 stays bf16, in pairs, where the
 * processor multiplies those (AG_PAIRS); rows of a are then copied too.  A 16-bit c
 * gets its sums in an f32 block of rows, for which all blocks of k run one after the other, and is
 * rounded on the way out: the bits are those of the f32 product on the same numbers, rounded once.
 *
 * Kernels cannot fail: without memory for packing, one thread goes on with a panel and a strip
 * on its stack, with the same bits.  The same path serves a second caller while the buffers are
 * in use.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "autograd/cpu/fast.h"
#if defined(AG_PAIRS)
#include "autograd/cpu/gemm_pairs_tmpl.h"
#else
#include "autograd/cpu/gemm_pack_tmpl.h"
#endif

enum {
    KW = 256,                        /* words of k in a block, at most; a multiple of VL */
    KC = KW * PER,
    MC = 384 / MR * MR,              /* rows of a block of a: 390 kB, a part of the L2 cache */
    MC_DIRECT = 126 / MR * MR,       /* of rows that are read where they lie: at a distance of 4 KiB
                                      * more would fall on the same sets of the cache */
    NC = 3072 / NR * NR,             /* columns of a block of b: 3 MiB, shared in L3 */
    A_DIRECT_K = 128,                /* up to here, a transposed a is read where it lies */
    B_DIRECT_M = 112,                /* up to here, b is read where it lies */
    MIN_WORK = 1 << 17,              /* multiply-adds that are worth waking a thread for */
    MAX_THREADS = 256,
    TURNS = 3,                       /* blocks, at least, of a thread's rows */
    HUGE_PAGE = 2 << 20,
#if defined(AG_STORAGE)
    C_BLOCK = 1 << 17                /* sums of a block of rows of a 16-bit c, per thread */
#else
    C_BLOCK = 0
#endif
};

/* How one call is cut. */
typedef struct plan {
    int     threads;
    bool    by_cols;                 /* threads share columns of c, not rows */
    bool    a_packed;                /* a transposed a, but for short columns, is packed */
    bool    b_direct;                /* full panels of b are read where they lie */
    int64_t kc;                      /* steps of a block of k, all but the last */
    int64_t mc, nc;                  /* most rows of a block of a, columns of a block of b */
    int64_t b_room;                  /* numbers in packed_b */
    float  *packed_b;                /* per block of k, the panels one after the other */
    float  *packed_a;                /* per thread [mc * KW] */
    float  *sums;                    /* per thread [C_BLOCK] */
    atomic_int_fast64_t *taken;      /* [threads], blocks of rows of a thread's share; or NULL */
} plan;

typedef struct range { int64_t begin, end; } range;

/* One block of k for some rows and columns of c. */
typedef struct piece {
    int64_t k0, kc, i0, rows, j0, cols;
    float  *panels;                  /* packed, from column j0 on; or memory for one of them */
    bool    pack;                    /* pack each panel before its use */
    float  *c; int64_t ldc;          /* its sums: in c, or a thread's own */
} piece;

/* A thread's memory. */
typedef struct thread_space { float *packed_a, *sums; } thread_space;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* The t-th of `parts` almost equal shares of 0 .. n-1. */
static range share(int64_t n, int t, int parts)
{
    return (range){ n * t / parts, n * (t + 1) / parts };
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

static void meet(int threads)
{
    if (threads > 1) {
#pragma omp barrier
    }
}

/* A tile narrower than its vectors goes through a buffer. */
static void tile_narrow(const operands *o, int64_t rows, int64_t cols, const float *a,
                        const float *b, float *c, const ahead *f)
{
    _Alignas(64) float buffer[MR * NR] = { 0 };
    operands to_buffer = *o;
    to_buffer.ldc = NR;
    to_buffer.acc = false;
    tiles[rows - 1][ceil_div(cols, VL) - 1](&to_buffer, a, b, buffer, f);
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

/* Where piece q of op(a) begins. */
static const real *a_of(const ag_gemm *g, const piece *q)
{
    return (const real *)g->a + (g->ta ? q->i0 + q->k0 * g->lda : q->i0 * g->lda + q->k0);
}

/* The panel of op(b)[k0 .. k0+kc, j0 ..] */
static void pack_b(const ag_gemm *g, int64_t k0, int64_t kc, int64_t j, int64_t cols, float *d)
{
    const real *b = g->b;
    const int64_t width = AG_ALIGN_UP(cols, VL);
    if (g->tb)
        pack_b_transposed(b + j * g->ldb + k0, g->ldb, cols, kc, width, d);
    else
        pack_b_plain(b + k0 * g->ldb + j, g->ldb, cols, kc, width, d);
}

/* What the strips of piece q read, and the numbers from one row of it to the next. */
static const float *a_ready(const ag_gemm *g, const plan *p, const piece *q, int64_t h,
                            float *packed, int64_t *ret_row)
{
    *ret_row = words(q->kc);
    if (p->a_packed) {
        pack_a(g, q->k0, q->kc, q->i0, q->rows, h, packed);
        return packed;
    }
#if defined(AG_STORAGE)
    pack_a_rows(a_of(g, q), g->lda, q->rows, q->kc, packed);
    return packed;
#else
    *ret_row = g->ta ? 1 : g->lda;
    return a_of(g, q);
#endif
}

/* c of piece q, in strips of equal height h <= MR; each tile fetches a row of what `next` reads. */
static void multiply(const ag_gemm *g, const plan *p, const piece *q, const piece *next,
                     float *packed_a)
{
    const int64_t h = ceil_div(q->rows, ceil_div(q->rows, MR));
    const bool last = q->k0 + q->kc == g->k && has_epilogue(g);
    const int64_t kw = words(q->kc);
    int64_t per_row, rows_left = g->ta ? next->kc : next->rows;
    const float *a = a_ready(g, p, q, h, packed_a, &per_row);
    const real *row = a_of(g, next);
    operands o = {
        .kc = kw, .ldc = q->ldc, .acc = g->acc || q->k0 > 0, .ai = g->ta ? 1 : per_row
    };
    for (int64_t j = q->j0; j < q->j0 + q->cols; j += NR) {
        const int64_t n = min64(NR, q->j0 + q->cols - j);
        const bool direct = p->b_direct && n == NR;
        float *panel = q->panels + (q->pack ? 0 : (j - q->j0) * kw);
        const float *b = direct ? (const float *)((const real *)g->b + q->k0 * g->ldb + j) : panel;
        const float *next_panel = q->pack ? b : panel + NR * kw;
        if (q->pack && !direct)
            pack_b(g, q->k0, q->kc, j, n, panel);
        o.bk = direct ? g->ldb : AG_ALIGN_UP(n, VL);
        for (int64_t i = 0; i < q->rows; i += h, rows_left--, row += g->lda) {
            const int64_t m = min64(h, q->rows - i);
            float *top = q->c + j - q->j0, *c = top + i * q->ldc;
            const ahead f = { i + h < q->rows ? c + h * q->ldc : top + NR,
                              next_panel + (q->pack ? 0 : i / h * kw),
                              rows_left > 0 ? (const void *)row : b };
            o.ak = p->a_packed ? m : g->ta ? g->lda : 1;
            if (n % VL == 0)
                tiles[m - 1][n / VL - 1](&o, a + i * per_row, b, c, &f);
            else
                tile_narrow(&o, m, n, a + i * per_row, b, c, &f);
            if (last)
                finish_block(g, &(block){ q->i0 + i, m, j, n, c, q->ldc });
        }
    }
}

/* Blocks of k in `ks` of the rows and columns of q; then come `next_rows` rows. */
static void multiply_block(const ag_gemm *g, const plan *p, range ks, piece q, int64_t next_rows,
                           int64_t width, float *packed_a)
{
    float *panels = q.panels;
    for (q.k0 = ks.begin; q.k0 == ks.begin || q.k0 < ks.end; q.k0 += p->kc) {
        q.kc = min64(p->kc, ks.end - q.k0);
        q.panels = panels + (q.pack ? 0 : words(q.k0 - ks.begin) * width);
        piece next = q;
        next.k0 += q.kc;
        if (next.k0 >= ks.end) {
            next.k0 = ks.begin;
            next.i0 += q.rows;
            next.rows = next_rows;
        }
        next.kc = min64(p->kc, ks.end - next.k0);
        multiply(g, p, &q, &next, packed_a);
    }
}

/* Where the sums of piece q are made. */
static void place_sums(const ag_gemm *g, piece *q, float *own_sums)
{
    if (sums_in_c(g)) {
        q->c = (float *)g->c + q->i0 * g->ldc + q->j0;
        q->ldc = g->ldc;
        return;
    }
    q->c = own_sums;
    q->ldc = AG_ALIGN_UP(q->cols, VL);
    if (g->acc)
        widen_c(g, q->i0, q->rows, q->j0, q->cols, q->c, q->ldc);
}

/* The same for rows r, in blocks of at most mc; `taken` counts those that threads have taken. */
static void multiply_rows(const ag_gemm *g, const plan *p, range ks, range r, piece q,
                          int64_t width, const thread_space *o, atomic_int_fast64_t *taken)
{
    const int64_t n = r.end - r.begin;
    const int64_t blocks = max64(taken ? TURNS : 1, ceil_div(n, p->mc));
    const int64_t mc = min64(p->mc, AG_ALIGN_UP(max64(1, ceil_div(n, blocks)), MR));
    for (int64_t i = 0;; i++) {
        q.i0 = r.begin + mc * (taken ? atomic_fetch_add(taken, 1) : i);
        if (q.i0 >= r.end)
            return;
        q.rows = min64(mc, r.end - q.i0);
        place_sums(g, &q, o->sums);
        multiply_block(g, p, ks, q, min64(mc, r.end - q.i0 - q.rows), width, o->packed_a);
    }
}

/* What thread t of `threads` does. */
static void work(const ag_gemm *g, const plan *p, int t, int threads)
{
    const thread_space mine = { p->packed_a + t * p->mc * KW, p->sums + t * C_BLOCK };
    for (int64_t jc = 0; jc < g->n; jc += p->nc) {
        const int64_t n = min64(p->nc, g->n - jc), width = AG_ALIGN_UP(n, VL);
        const int64_t grain = p->by_cols ? VL : NR;
        const range own = share(ceil_div(n, grain), t, threads);
        const range cols = { jc + own.begin * grain, min64(jc + n, jc + own.end * grain) };
        const bool all_k = p->by_cols && !sums_in_c(g);
        const int64_t group =
            all_k ? max64(1, g->k) : max64(1, p->b_room / (width * words(p->kc))) * p->kc;
        for (int64_t kg = 0; kg == 0 || kg < g->k; kg += group) {
            const range ks = { kg, min64(g->k, kg + group) };
            if (p->by_cols) {
                const piece q = { .j0 = cols.begin, .cols = cols.end - cols.begin, .pack = true,
                                  .panels = p->packed_b + (int64_t)t * NR * KW };
                multiply_rows(g, p, ks, (range){ 0, g->m }, q, width, &mine, NULL);
                continue;
            }
            for (int64_t k0 = ks.begin; k0 < ks.end; k0 += p->kc)
                for (int64_t j = cols.begin; j < cols.end; j += NR) {
                    const int64_t kc = min64(p->kc, ks.end - k0);
                    pack_b(g, k0, kc, j, min64(NR, cols.end - j),
                           p->packed_b + words(k0 - kg) * width + (j - jc) * words(kc));
                }
            if (p->taken)
                atomic_store(&p->taken[t], 0);
            meet(threads);
            const piece q = { .j0 = jc, .cols = n, .panels = p->packed_b };
            for (int i = 0; i < threads; i++) {         /* the own share, then those of others */
                const int of = (t + i) % threads;
                multiply_rows(g, p, ks, share(g->m, of, threads), q, width, &mine,
                              p->taken ? &p->taken[of] : NULL);
            }
            if (ks.end < g->k || jc + n < g->n)
                meet(threads);                          /* the panels are overwritten next */
        }
    }
    vstored_past();
}

/*
 * Memory for packing, kept for ever so that its address, and its huge pages, stay; NULL if there is
 * none.  One caller at a time.
 */
static float *buffers(int threads, int64_t b_room)
{
    static float *base;
    static size_t bytes;
    const size_t need = ((size_t)b_room + (size_t)threads * (MC * KW + C_BLOCK)) * sizeof(float);
    if (need <= bytes)
        return base;
    const size_t size = AG_ALIGN_UP(need, (size_t)HUGE_PAGE) + HUGE_PAGE;
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (base)
        munmap(base, bytes);
    const size_t skip = (size_t)-(uintptr_t)p % HUGE_PAGE;      /* start on a huge page */
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
    enum { STRIP = MR * KW + 64 };
    _Alignas(64) float space[STRIP + NR * KW + (C_BLOCK ? MR * NR : 0)];
    p.packed_a = space;
    p.packed_b = space + STRIP;
    p.sums = p.packed_b + NR * KW;
    p.mc = MR;
    p.nc = NR;
    p.b_room = NR * KW;
    p.by_cols |= !sums_in_c(g);      /* there is room for the panel of one block of k */
    work(g, &p, 0, 1);
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

/* By columns where rows are few and every thread gets about as many vectors. */
static bool split_columns(const ag_gemm *g, int threads)
{
    const int64_t vectors = ceil_div(g->n, VL), most = ceil_div(vectors, threads);
    return g->m <= MC && threads <= NC / NR && most * threads * 4 <= vectors * 5;
}

/* Blocks of a 16-bit c: panels of all k, and sums that a thread has room for. */
static void plan_sums(const ag_gemm *g, plan *p)
{
    const int64_t k = AG_ALIGN_UP(max64(1, g->k), p->kc);
    p->nc = min64(NC, max64(NR, NC * KC / k / NR * NR));
    p->b_room = max64(p->b_room, NR * words(k));
    const int64_t width = AG_ALIGN_UP(min64(p->nc, g->n), VL);
    p->mc = min64(MC, C_BLOCK / width / MR * MR);
}

/* A product without terms: its way out alone, as for an activation that is made again. */
static void finish_only(const ag_gemm *g)
{
    enum { PART = 2048 };
    static const float zero[PART];
    const int64_t per_row = ceil_div(g->n, PART), parts = g->m * per_row;
#pragma omp parallel for schedule(static) if (g->m * g->n >= AG_PARALLEL_FROM)
    for (int64_t p = 0; p < parts; p++) {
        const int64_t j = p % per_row * PART;
        finish_block(g, &(block){ p / per_row, 1, j, min64(PART, g->n - j), zero, PART });
    }
}

void AG_NAME(gemm)(const ag_gemm *g)
{
    static atomic_flag busy = ATOMIC_FLAG_INIT;
    if (g->m <= 0 || g->n <= 0)
        return;
    if (g->k <= 0) {
        if (!g->acc)
            finish_only(g);
        return;
    }
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
    p.a_packed = g->ta && (C_BLOCK || g->k > A_DIRECT_K);
    p.by_cols = split_columns(g, p.threads);
    if (!g->ta && !p.by_cols)
        p.mc = MC_DIRECT;
    p.b_direct = !C_BLOCK && !g->tb && g->m <= B_DIRECT_M && (p.by_cols || p.threads == 1);
    p.b_room = (int64_t)NC * KW;
    if (!sums_in_c(g))
        plan_sums(g, &p);
    atomic_int_fast64_t taken[MAX_THREADS];
    if (p.threads > 1)
        p.taken = taken;
    float *space = NULL;
    const bool got = !atomic_flag_test_and_set(&busy);
    if (got)
        space = buffers(p.threads, p.b_room);
    if (space) {
        p.packed_b = space;
        p.sums = space + p.b_room;
        p.packed_a = p.sums + (size_t)p.threads * C_BLOCK;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
        work(g, &p, team_rank(), team_size());
    } else {
        gemm_small_memory(g, p);
    }
    if (got)
        atomic_flag_clear(&busy);
}
