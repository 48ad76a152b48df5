/*
 * choose_tmpl.c -- the controller with its last matrix, of one instruction set; ref_live_tmpl.h has
 * the formulas.
 *
 * z = low c2 + cb is made strip by strip for a tile of rows (choose.h), used while it is in the
 * nearest cache, and made again in backward.  It stands transposed, [units, rows], and VL rows go
 * together.  Where the gate is 1 and each block has one pick, the choice alone is needed: the
 * largest of z + T g, for log p differs from z by a constant of the block.
 */
#ifdef _OPENMP
#include <omp.h>
#endif

#include "autograd/base/tiny.h"
#include "autograd/cpu/choose.h"
#include "autograd/cpu/controller.h"
#include "autograd/cpu/fast.h"
#include "autograd/cpu/product.h"
#include "autograd/cpu/transpose.h"

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* A strip: the blocks [b0, b1), columns u0 .. u0 + size. */
typedef struct strip { int64_t b0, b1, u0, size; } strip;

static strip strip_of(const ag_chooser *c, const choose_plan *p, int64_t s)
{
    const int64_t b0 = s * p->strip_blocks, b1 = least(c->c.blocks, b0 + p->strip_blocks);
    return (strip){ b0, b1, b0 * c->c.n, (b1 - b0) * c->c.n };
}

static bool has_noise(const ag_chooser *c) { return c->c.temperature != 0; }

/* Softmax is that of (z + noise) / t where the noise is in it. */
static bool is_soft_noise(const ag_chooser *c) { return c->c.relaxed && has_noise(c); }

static float inv_t(const ag_chooser *c)
{
    return is_soft_noise(c) ? (float)(1 / c->c.temperature) : 1.0f;
}

/* Of the noise, where the largest score is looked for. */
static float noise_factor(const ag_chooser *c)
{
    return c->c.relaxed ? 1.0f : (float)c->c.temperature;
}

/* Gates of a block. */
static int64_t gates_of(const ag_chooser *c) { return c->all ? c->c.n : c->picks; }

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#include "autograd/cpu/choose_block_tmpl.h"
#include "autograd/cpu/choose_lanes_tmpl.h"

/* matrix[strips, terms, width] = bias, then c2 */
static void pack_matrix(const ag_chooser *c, const choose_plan *p, float *matrix)
{
    const float *c2 = c->c2, *cb = c->cb;
    #pragma omp parallel for schedule(static) if (p->matrix >= AG_PARALLEL_FROM)
    for (int64_t s = 0; s < p->strips; s++) {
        const strip t = strip_of(c, p, s);
        float *to = matrix + s * p->terms * p->width;
        for (int64_t k = 0; k < p->terms; k++, to += p->width) {
            const float *from = k ? c2 + (k - 1) * p->units : cb;
            if (from)
                memcpy(to, from + t.u0, (size_t)t.size * sizeof *to);
            else
                memset(to, 0, (size_t)t.size * sizeof *to);
        }
    }
}

/* Rows of low that go together, and what they need; pointers into scratch. */
typedef struct tile {
    int64_t m, wide;                 /* rows, and in whole vectors */
    int64_t row[CHOOSE_TILE];
    float *rows;                     /* [CHOOSE_TILE, rank_width], padded with 0 */
    float *low;                      /* [terms, CHOOSE_TILE]: 1, then their transpose */
    float *z;                        /* [width, CHOOSE_TILE] */
    float *dlow;                     /* [rank_width, CHOOSE_TILE], 0 where there is no rank */
    float *held;                     /* noise */
    float *tmp, *dp;                 /* of a block, and of one for VL rows */
    lane_noise noise[CHOOSE_TILE / VL];
} tile;

static tile tile_new(const choose_plan *p, float *scratch)
{
    tile t;
    t.rows = scratch;
    t.dlow = t.rows + CHOOSE_TILE * p->rank_width;
    t.low = t.dlow + CHOOSE_TILE * p->rank_width;
    t.z = t.low + CHOOSE_TILE * (choose_padded(p->terms, 4) + 4);
    t.held = t.z + CHOOSE_TILE * p->width;
    t.tmp = t.held + CHOOSE_TILE * CHOOSE_GROUP;
    t.dp = t.tmp + 2 * p->block;
    memset(t.rows, 0, (size_t)(2 * CHOOSE_TILE * p->rank_width) * sizeof *t.rows);
    return t;
}

/* Fills a tile with its m rows. */
static void tile_fill(const ag_chooser *c, const choose_plan *p, tile *t)
{
    const float *low = c->low;
    t->wide = choose_padded(t->m, VL);
    for (int64_t i = 0; i < t->m; i++)
        memcpy(t->rows + i * p->rank_width, low + t->row[i] * c->rank,
               (size_t)c->rank * sizeof *low);
    for (int64_t i = 0; i < t->wide; i += VL) {
        vstore(t->low + i, vset(1.0f));
        for (int64_t k = 0; k < c->rank; k += 4) {
            vf x[4];
            transpose_4(t->rows + i * p->rank_width + k, p->rank_width, x);
            FOR_EACH(q, 4) vstore(t->low + (1 + k + q) * CHOOSE_TILE + i, x[q]);
        }
    }
}

/* Noise for its rows, from the first column on. */
static void tile_noise(const ag_chooser *c, const choose_plan *p, tile *t, bool logs)
{
    for (int64_t i = 0; i < t->wide; i += VL)
        noise_start(&t->noise[i / VL], c, p->units, logs, t->m - i, t->row + i,
                    t->held + i * CHOOSE_GROUP);
}

/* z of strip s */
static void tile_scores(const choose_plan *p, const tile *t, int64_t s, int64_t size,
                        const float *matrix)
{
    product_run(&(product){ .m = size, .cols = t->wide, .terms = p->terms,
                            .a = matrix + s * p->terms * p->width, .row = 1, .term = p->width,
                            .b = t->low, .ldb = CHOOSE_TILE, .c = t->z, .ldc = CHOOSE_TILE });
}

/* Block b of the strip that z holds, rows i and on. */
static lanes tile_lanes(const ag_chooser *c, const tile *t, strip s, int64_t b, int64_t i)
{
    return (lanes){ least(VL, t->m - i), t->row + i, b, b * c->c.n,
                    t->z + (b - s.b0) * c->c.n * CHOOSE_TILE + i };
}

/* ---- forward ---- */

static void choose_part(const ag_chooser *c, const choose_plan *p, int64_t r0, int64_t r1,
                        const float *matrix, float *scratch, int32_t *choice, float *gate)
{
    const int64_t gates = c->c.blocks * gates_of(c);
    tile t = tile_new(p, scratch);
    memset(gate + r0 * gates, 0, (size_t)((r1 - r0) * gates) * sizeof *gate);
    for (int64_t r = r0; r < r1; r += CHOOSE_TILE) {
        t.m = least(CHOOSE_TILE, r1 - r);
        for (int64_t i = 0; i < t.m; i++)
            t.row[i] = r + i;
        tile_fill(c, p, &t);
        tile_noise(c, p, &t, adds_noise(c));
        for (int64_t s = 0; s < p->strips; s++) {
            const strip at = strip_of(c, p, s);
            tile_scores(p, &t, s, at.size, matrix);
            for (int64_t i = 0; i < t.m; i += VL)
                for (int64_t b = at.b0; b < at.b1; b++) {
                    const lanes l = tile_lanes(c, &t, at, b, i);
                    choose_lanes(c, p, &l, &t.noise[i / VL], t.tmp, choice);
                    gate_lanes(c, &l, choice, gate);
                }
        }
    }
}

/* z[size] = cb + low c2 of row i from column u0 on, the terms in the order of product.h */
static void row_product(const ag_chooser *c, const choose_plan *p, int64_t i, int64_t u0,
                        int64_t size, float *z)
{
    const float *low = (const float *)c->low + i * c->rank, *cb = c->cb,
        *c2 = (const float *)c->c2 + u0;
    FOR_VECTORS(j, size)
        vstore_to(z + j, cb ? vload_to(cb + u0 + j, size - j) : vset(0.0f), size - j);
    int64_t k = 0;
    for (; k + 4 <= c->rank; k += 4, c2 += 4 * p->units)
        FOR_VECTORS(j, size) {
            vf s = vload_to(z + j, size - j);
            for (int l = 0; l < 4; l++)
                s = vfma(vset(low[k + l]), vload_to(c2 + l * p->units + j, size - j), s);
            vstore_to(z + j, s, size - j);
        }
    for (; k < c->rank; k++, c2 += p->units)
        FOR_VECTORS(j, size)
            vstore_to(z + j, vfma(vset(low[k]), vload_to(c2 + j, size - j),
                                  vload_to(z + j, size - j)), size - j);
}

/* Few rows: blocks go to the threads, and the matrix is read where it lies. */
static void choose_few(const ag_chooser *c, const choose_plan *p, int32_t *choice, float *gate,
                       float *scratch)
{
    int threads = 1;
#ifdef _OPENMP
    if (c->c.rows * c->rank * p->units >= 4 * AG_PARALLEL_FROM && !omp_in_parallel())
        threads = omp_get_max_threads();
#endif
    threads = (int)least(threads, least(c->c.blocks, CHOOSE_THREADS));
    #pragma omp parallel for schedule(static) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        const int64_t n = c->c.n, b0 = c->c.blocks * part / threads,
            b1 = c->c.blocks * (part + 1) / threads;
        float *z = scratch + b0 * n, *tmp = scratch + p->units + 2 * part * p->block;
        for (int64_t i = 0; i < c->c.rows; i++) {
            row_product(c, p, i, b0 * n, (b1 - b0) * n, z);
            for (int64_t b = b0; b < b1; b++) {
                const int64_t at = i * c->c.blocks + b;
                choose_block(c, p, i, b, z + (b - b0) * n, tmp, choice + at * c->picks,
                             gate + at * gates_of(c));
            }
        }
    }
}

/* Gates that are 1 for choices that are given: no score is wanted. */
static void gate_given(const ag_chooser *c, const int32_t *choice, float *gate)
{
    const int64_t size = gates_of(c), n = c->c.rows * c->c.blocks;
    #pragma omp parallel for schedule(static) if (n * size >= AG_PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        memset(gate + i * size, 0, (size_t)size * sizeof *gate);
        gate[i * size + (c->all ? choice[i * c->picks] : 0)] = 1;
    }
}

void AG_NAME(choose_fwd)(const ag_chooser *c, int32_t *choice, void *gate, void *scratch)
{
    const choose_plan p = choose_plan_of(c, false);
    if (!c->c.rows || !p.units)
        return;
    if (c->c.given && c->gate == AG_GATE_ONE) {
        gate_given(c, choice, gate);
        return;
    }
    if (c->c.rows < CHOOSE_FEW) {
        choose_few(c, &p, choice, gate, scratch);
        return;
    }
    float *matrix = scratch, *own = matrix + p.matrix;
    pack_matrix(c, &p, matrix);
    #pragma omp parallel for schedule(static) if (c->c.rows * p.units >= AG_PARALLEL_FROM)
    for (int64_t i = 0; i < p.parts; i++)
        choose_part(c, &p, i * p.part_rows, least(c->c.rows, (i + 1) * p.part_rows), matrix,
                    own + i * p.tile, choice, gate);
}

/* ---- backward ---- */

typedef struct choose_grad {
    const int32_t *choice;
    const float *dgate, *matrix;
    bool rows, sums;                 /* dlow, and the sums over rows, are wanted */
} choose_grad;

/* Sums of a part. */
typedef struct part_sums {
    float *c2;                       /* [units, rank_width] */
    float *cb;                       /* [units, CHOOSE_PAD], by lane */
    float *low;                      /* [CHOOSE_SPAN, rank_width], of the rows of a span */
} part_sums;

/* The rows of [r0, r1) whose gradient in a strip is not 0, or all; returns how many. */
static int64_t strip_rows(const ag_chooser *c, const choose_grad *q, strip t, int64_t r0,
                          int64_t r1, int64_t *row)
{
    const int64_t size = gates_of(c), n = (t.b1 - t.b0) * size;
    int64_t m = 0;
    for (int64_t r = r0; r < r1; r++) {
        const float *d = q->dgate + (r * c->c.blocks + t.b0) * size;
        bool any = c->all;
        for (int64_t j = 0; !c->all && j < n; j++)
            any |= d[j] != 0;
        row[m] = r;
        m += any;
    }
    return m;
}

/* low[row - r0] += the columns of dlow */
static void add_columns(const choose_plan *p, const tile *t, int64_t r0, float *low)
{
    for (int64_t i = 0; i < t->m; i += 4)
        for (int64_t k = 0; k < p->rank_width; k += VL) {
            vf x[4];
            transpose_4(t->dlow + k * CHOOSE_TILE + i, CHOOSE_TILE, x);
            for (int64_t q = 0; q < 4 && i + q < t->m; q++) {
                float *to = low + (t->row[i + q] - r0) * p->rank_width + k;
                vstore(to, vload(to) + x[q]);
            }
        }
}

/* The gradients that come of the rows of a tile and strip s. */
static void tile_gradient(const ag_chooser *c, const choose_plan *p, const choose_grad *q,
                          int64_t s, int64_t r0, tile *t, const part_sums *sums)
{
    const strip at = strip_of(c, p, s);
    tile_scores(p, t, s, at.size, q->matrix);
    for (int64_t i = 0; i < t->m; i += VL)
        for (int64_t b = at.b0; b < at.b1; b++) {
            const lanes l = tile_lanes(c, t, at, b, i);
            gradient_lanes(c, &l, &t->noise[i / VL], q->choice, q->dgate, t->dp);
        }
    if (q->sums) {
        product_run(&(product){ .m = at.size, .cols = p->rank_width, .terms = t->m, .a = t->z,
                                .row = CHOOSE_TILE, .term = 1, .b = t->rows,
                                .ldb = p->rank_width, .c = sums->c2 + at.u0 * p->rank_width,
                                .ldc = p->rank_width, .acc = true });
        for (int64_t j = 0; j < at.size; j++) {
            float *to = sums->cb + (at.u0 + j) * CHOOSE_PAD;
            vf x = vload(to);
            for (int64_t i = 0; i < t->wide; i += VL)
                x += vload(t->z + j * CHOOSE_TILE + i);
            vstore(to, x);
        }
    }
    if (!q->rows)
        return;
    product_run(&(product){ .m = c->rank, .cols = t->wide, .terms = at.size,
                            .a = q->matrix + (s * p->terms + 1) * p->width, .row = p->width,
                            .term = 1, .b = t->z, .ldb = CHOOSE_TILE, .c = t->dlow,
                            .ldc = CHOOSE_TILE });
    add_columns(p, t, r0, sums->low);
}

/* Rows [r0, r1), at most CHOOSE_SPAN; with `all` one tile, which is filled once. */
static void choose_span(const ag_chooser *c, const choose_plan *p, const choose_grad *q, int64_t r0,
                        int64_t r1, tile *t, const part_sums *sums)
{
    memset(sums->low, 0, (size_t)((r1 - r0) * p->rank_width) * sizeof *sums->low);
    for (int64_t s = 0; s < p->strips; s++) {
        int64_t row[CHOOSE_SPAN];
        const int64_t m = strip_rows(c, q, strip_of(c, p, s), r0, r1, row);
        for (int64_t i = 0; i < m; i += CHOOSE_TILE) {
            if (!c->all || s == 0) {
                t->m = least(CHOOSE_TILE, m - i);
                memcpy(t->row, row + i, (size_t)t->m * sizeof *row);
                tile_fill(c, p, t);
                if (is_soft_noise(c))
                    tile_noise(c, p, t, true);
            }
            tile_gradient(c, p, q, s, r0, t, sums);
        }
    }
}

/* dcb and dc2 += the sums of all parts, in their order, which go into those of the first */
static void add_parts(const ag_chooser *c, const choose_plan *p, const part_sums *part, float *dc2,
                      float *dcb)
{
    #pragma omp parallel for schedule(static) if (p->matrix * p->parts >= AG_PARALLEL_FROM)
    for (int64_t u = 0; u < p->units; u += VL) {
        const int64_t m = least(VL, p->units - u);
        float *sum = part[0].c2 + u * p->rank_width;
        for (int64_t i = 1; i < p->parts; i++)
            FOR_VECTORS(j, m * p->rank_width)
                vstore(sum + j, vload(sum + j) + vload(part[i].c2 + u * p->rank_width + j));
        for (int64_t k = 0; dc2 && k < c->rank; k += 4) {
            vf x[4];
            transpose_4(sum + k, p->rank_width, x);
            for (int64_t i = 0; i < 4 && k + i < c->rank; i++) {
                float *to = dc2 + (k + i) * p->units + u;
                vstore_to(to, vload_to(to, m) + x[i], m);
            }
        }
        for (int64_t j = u; dcb && j < u + m; j++)
            for (int64_t i = 0; i < p->parts; i++)
                dcb[j] += vsum(vload(part[i].cb + j * CHOOSE_PAD));
    }
}

void AG_NAME(choose_bwd)(const ag_chooser *c, const int32_t *choice, const void *dgate, void *dlow,
                         bool acc, void *dc2, void *dcb, void *scratch)
{
    const choose_plan p = choose_plan_of(c, true);
    float *matrix = scratch, *own = matrix + p.matrix;
    const choose_grad q = { choice, dgate, matrix, dlow, dc2 || dcb };
    part_sums sums[CHOOSE_PARTS];
    if (!c->c.rows)
        return;
    pack_matrix(c, &p, matrix);
    #pragma omp parallel for schedule(static) if (c->c.rows * p.units >= AG_PARALLEL_FROM)
    for (int64_t i = 0; i < p.parts; i++) {
        float *at = own + i * (p.tile + p.sums);
        tile t = tile_new(&p, at);
        sums[i] = (part_sums){ at + p.tile, at + p.tile + p.units * p.rank_width,
                               at + p.tile + p.units * (p.rank_width + CHOOSE_PAD) };
        memset(sums[i].c2, 0, (size_t)(p.units * (p.rank_width + CHOOSE_PAD)) * sizeof *at);
        const int64_t r1 = least(c->c.rows, (i + 1) * p.part_rows),
            span = c->all ? CHOOSE_TILE : CHOOSE_SPAN;
        const unsigned before = ag_tiny_flush();
        for (int64_t r = i * p.part_rows; r < r1; r += span) {
            const int64_t m = least(span, r1 - r);
            choose_span(c, &p, &q, r, r + m, &t, &sums[i]);
            for (int64_t j = 0; dlow && j < m; j++)
                for (int64_t k = 0; k < c->rank; k++) {
                    float *to = (float *)dlow + (r + j) * c->rank + k;
                    *to = sums[i].low[j * p.rank_width + k] + (acc ? *to : 0);
                }
        }
        ag_tiny_restore(before);
    }
    if (q.sums)
        add_parts(c, &p, sums, dc2, dcb);
}
