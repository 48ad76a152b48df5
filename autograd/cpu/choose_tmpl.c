/*
 * choose_tmpl.c -- the controller with its last matrix, of one instruction set; ref_live_tmpl.h has
 * the formulas.
 *
 * z = low c2 + cb is made strip by strip (choose.h), used while it is in the nearest cache, and
 * made again in backward.  Where the gate is 1 and each block has one pick, the choice alone is
 * needed: the largest of z + T g, for log p differs from z by a constant of the block.
 */
#ifdef _OPENMP
#include <omp.h>
#endif

#include "autograd/cpu/choose.h"
#include "autograd/cpu/controller.h"
#include "autograd/cpu/fast.h"
#include "autograd/cpu/product.h"

enum { SCREENED = 4096 };            /* larger blocks are not screened */

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

/* matrix[strips, terms, width] = bias, then c2; the padding is 0 */
static void pack_matrix(const ag_chooser *c, const choose_plan *p, float *matrix)
{
    const float *c2 = c->c2, *cb = c->cb;
    #pragma omp parallel for schedule(static) if (p->matrix >= AG_PARALLEL_FROM)
    for (int64_t s = 0; s < p->strips; s++) {
        const strip t = strip_of(c, p, s);
        float *to = matrix + s * p->terms * p->width;
        for (int64_t k = 0; k < p->terms; k++, to += p->width) {
            const float *from = k ? c2 + (k - 1) * p->units : cb;
            memset(to, 0, (size_t)p->width * sizeof *to);
            if (from)
                memcpy(to, from + t.u0, (size_t)t.size * sizeof *to);
        }
    }
}

/* transposed[strips, width, rank_width] = c2 */
static void pack_transposed(const ag_chooser *c, const choose_plan *p, float *transposed)
{
    #pragma omp parallel for schedule(static) if (p->matrix >= AG_PARALLEL_FROM)
    for (int64_t s = 0; s < p->strips; s++) {
        const strip t = strip_of(c, p, s);
        float *to = transposed + s * p->width * p->rank_width;
        memset(to, 0, (size_t)(p->width * p->rank_width) * sizeof *to);
        for (int64_t k = 0; k < c->rank; k++) {
            const float *from = (const float *)c->c2 + k * p->units + t.u0;
            for (int64_t j = 0; j < t.size; j++)
                to[j * p->rank_width + k] = from[j];
        }
    }
}

/* to[m, terms] = 1, then the row of low */
static void pack_rows(const ag_chooser *c, const choose_plan *p, int64_t m, const int64_t *row,
                      float *to)
{
    const float *low = c->low;
    for (int64_t i = 0; i < m; i++, to += p->terms) {
        to[0] = 1;
        for (int64_t k = 0; k < c->rank; k++)
            to[1 + k] = low[row[i] * c->rank + k];
    }
}

#include "autograd/cpu/choose_block_tmpl.h"
#include "autograd/cpu/choose_packed_tmpl.h"

/* ---- forward ---- */

/* One strip of row i, whose z has `width` numbers; tmp[CHOOSE_BLOCK * width] */
static void choose_strip(const ag_chooser *c, const choose_plan *p, int64_t i, strip t,
                         const float *z, float *tmp, int32_t *choice, float *gate)
{
    const int64_t n = c->c.n, size = c->all ? n : c->picks;
    const float *g = NULL, *u = NULL;
    float *score = tmp + 2 * p->width;
    /* all of g is wanted where it is in p, and where few can be ruled out */
    if (has_noise(c) && (n <= VL || n >= SCREENED ||
                         (c->c.relaxed && (c->gate != AG_GATE_ONE || c->picks > 1)))) {
        gumbel_columns(&c->c.noise, i, p->units, t.u0, t.u0 + t.size, tmp);
        g = tmp + t.u0 % 64;
    } else if (has_noise(c)) {
        uniform_columns(&c->c.noise, i, p->units, t.u0, t.u0 + t.size, tmp);
        u = tmp + t.u0 % 64;
    }
    choice += (i * c->c.blocks + t.b0) * c->picks;
    gate += (i * c->c.blocks + t.b0) * size;
    if (is_packed(n)) {
        BY_SIZE(n, choose_packed, c, t, z, g, choice, gate)
        return;
    }
    for (int64_t b = t.b0; b < t.b1; b++, z += n, g = g ? g + n : NULL, u = u ? u + n : NULL) {
        if (!c->c.given)
            choose_block(c, p, z, g, u, score, choice);
        memset(gate, 0, (size_t)size * sizeof *gate);
        float value = 1;
        if (c->gate != AG_GATE_ONE) {
            const float sum = block_exp(n, z, c->c.relaxed ? g : NULL, inv_t(c), score);
            value = score[*choice] / sum;
        }
        gate[c->all ? *choice : 0] = value;
        choice += c->picks;
        gate += size;
    }
}

/* z[size] = cb + low c2, the terms in the order of product.h; c2 and cb from this strip on */
static void row_product(const ag_chooser *c, const choose_plan *p, int64_t i, strip t, float *z)
{
    const float *low = (const float *)c->low + i * c->rank, *cb = c->cb,
        *c2 = (const float *)c->c2 + t.u0;
    FOR_VECTORS(j, t.size)
        vstore_to(z + j, cb ? vload_to(cb + t.u0 + j, t.size - j) : vset(0.0f), t.size - j);
    int64_t k = 0;
    for (; k + 4 <= c->rank; k += 4, c2 += 4 * p->units)
        FOR_VECTORS(j, t.size) {
            vf s = vload_to(z + j, t.size - j);
            for (int l = 0; l < 4; l++)
                s = vfma(vset(low[k + l]), vload_to(c2 + l * p->units + j, t.size - j), s);
            vstore_to(z + j, s, t.size - j);
        }
    for (; k < c->rank; k++, c2 += p->units)
        FOR_VECTORS(j, t.size)
            vstore_to(z + j, vfma(vset(low[k]), vload_to(c2 + j, t.size - j),
                                  vload_to(z + j, t.size - j)), t.size - j);
}

/* Strips go to the threads, and the matrix is read where it lies. */
static void choose_few(const ag_chooser *c, const choose_plan *p, int32_t *choice, float *gate,
                       float *scratch)
{
    int threads = 1;
#ifdef _OPENMP
    if (c->c.rows * c->rank * p->units >= 4 * AG_PARALLEL_FROM && !omp_in_parallel())
        threads = omp_get_max_threads();
#endif
    threads = (int)least(threads, least(p->strips, CHOOSE_THREADS));
    #pragma omp parallel for schedule(static) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        const int64_t s0 = p->strips * part / threads, s1 = p->strips * (part + 1) / threads;
        const strip first = strip_of(c, p, s0), last = strip_of(c, p, s1 - 1);
        float *z = scratch + s0 * p->width,
            *tmp = scratch + p->strips * p->width + part * CHOOSE_BLOCK * p->width;
        for (int64_t i = 0; i < c->c.rows; i++) {
            row_product(c, p, i, (strip){ first.b0, last.b1, first.u0,
                                          last.u0 + last.size - first.u0 }, z);
            for (int64_t s = s0; s < s1; s++) {
                const strip t = strip_of(c, p, s);
                choose_strip(c, p, i, t, z + (t.u0 - first.u0), tmp, choice, gate);
            }
        }
    }
}

static void choose_part(const ag_chooser *c, const choose_plan *p, int64_t r0, int64_t r1,
                        const float *matrix, float *scratch, int32_t *choice, float *gate)
{
    float *low = scratch, *z = low + CHOOSE_ROWS * choose_padded(p->terms, CHOOSE_PAD),
        *tmp = z + CHOOSE_ROWS * p->width;
    for (int64_t r = r0; r < r1; r += CHOOSE_ROWS) {
        const int64_t m = least(CHOOSE_ROWS, r1 - r);
        int64_t row[CHOOSE_ROWS];
        for (int64_t i = 0; i < m; i++)
            row[i] = r + i;
        pack_rows(c, p, m, row, low);
        for (int64_t s = 0; s < p->strips; s++) {
            product_run(&(product){ .m = m, .cols = p->width, .terms = p->terms, .a = low,
                                    .row = p->terms, .term = 1,
                                    .b = matrix + s * p->terms * p->width, .ldb = p->width,
                                    .c = z, .ldc = p->width });
            for (int64_t i = 0; i < m; i++)
                choose_strip(c, p, r + i, strip_of(c, p, s), z + i * p->width, tmp, choice, gate);
        }
    }
}

/* Gates that are 1 for choices that are given: no score is wanted. */
static void gate_given(const ag_chooser *c, const int32_t *choice, float *gate)
{
    const int64_t size = c->all ? c->c.n : c->picks, n = c->c.rows * c->c.blocks;
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
                    own + i * p.part, choice, gate);
}

/* ---- backward ---- */

/* One block: dz replaces z; e[n] is scratch, g the noise or NULL.  One number of dp is not 0. */
static void block_dz_single(const ag_chooser *c, const float *g, int32_t k, float d, float *z,
                            float *e)
{
    const int64_t n = c->c.n;
    const float inv = inv_t(c), r = 1.0f / block_exp(n, z, g, inv, e), p = e[k] * r;
    d *= inv * (c->gate == AG_GATE_SCALED ? p : 1.0f);
    const vf f = vset(-(p * d) * r);
    FOR_VECTORS(j, n)
        vstore_to(z + j, vload_to(e + j, n - j) * f, n - j);
    z[k] = p * (d - p * d);
}

static void block_dz(const ag_chooser *c, const float *g, const int32_t *choice, const float *dgate,
                     float *z, float *e, float *dp)
{
    const int64_t n = c->c.n;
    const float inv = inv_t(c), r = 1.0f / block_exp(n, z, g, inv, e);
    const float f = c->gate == AG_GATE_SCALED ? e[*choice] * r : 1.0f;
    memset(dp, 0, (size_t)n * sizeof *dp);
    for (int64_t j = 0; j < (c->all ? n : c->picks); j++)
        dp[c->all ? j : choice[j]] = f * dgate[j];
    vtree t;
    vtree_start(&t);
    FOR_RUNS(b, n) {
        vf s = { 0 };
        FOR_RUN(j, b, n)
            s += vload_to(e + j, n - j) * vload_to(dp + j, n - j);
        vtree_add(&t, s);
    }
    const float s = vtree_total(&t) * r;
    FOR_VECTORS(j, n)
        vstore_to(z + j, vload_to(e + j, n - j) * (vload_to(dp + j, n - j) - s) * (r * inv), n - j);
}

typedef struct choose_grad {
    const int32_t *choice;
    const float *dgate;
    float *dlow;
    bool acc, sums;                  /* sums: those over rows are wanted */
    const float *matrix, *transposed;
} choose_grad;

/* dz of one strip of row i replaces its z; tmp[CHOOSE_BLOCK * width] */
static void strip_dz(const ag_chooser *c, const choose_plan *p, const choose_grad *q, int64_t i,
                     strip t, float *z, float *tmp)
{
    const int64_t n = c->c.n, size = c->all ? n : c->picks;
    const int32_t *choice = q->choice + (i * c->c.blocks + t.b0) * c->picks;
    const float *dgate = q->dgate + (i * c->c.blocks + t.b0) * size, *g = NULL;
    const bool single = size == 1 || c->gate == AG_GATE_P;
    if (is_soft_noise(c)) {
        gumbel_columns(&c->c.noise, i, p->units, t.u0, t.u0 + t.size, tmp);
        g = tmp + t.u0 % 64;
    }
    float *e = tmp + 2 * p->width, *dp = e + p->width;
    memset(z + t.size, 0, (size_t)(p->width - t.size) * sizeof *z);
    if (is_packed(n)) {
        BY_SIZE(n, packed_dz, c, t, g, choice, dgate, z)
        return;
    }
    for (int64_t b = t.b0; b < t.b1; b++, z += n, g = g ? g + n : NULL) {
        if (single)
            block_dz_single(c, g, *choice, dgate[c->all ? *choice : 0], z, e);
        else
            block_dz(c, g, choice, dgate, z, e, dp);
        choice += c->picks;
        dgate += size;
    }
}

/* The rows of [r0, r1) whose gradient in a strip is not 0; returns how many. */
static int64_t strip_rows(const ag_chooser *c, const choose_grad *q, strip t, int64_t r0,
                          int64_t r1, int64_t *row)
{
    const int64_t size = c->all ? c->c.n : c->picks, n = (t.b1 - t.b0) * size;
    int64_t m = 0;
    for (int64_t r = r0; r < r1; r++) {
        const float *d = q->dgate + (r * c->c.blocks + t.b0) * size;
        bool any = false;
        for (int64_t j = 0; j < n; j++)
            any |= d[j] != 0;
        row[m] = r;
        m += any;
    }
    return m;
}

/* Rows [r0, r1): dlow, and the sums over rows added to sums[strips, terms, width]. */
static void choose_tile_bwd(const ag_chooser *c, const choose_plan *p, const choose_grad *q,
                            int64_t r0, int64_t r1, float *scratch, float *sums)
{
    float *low = scratch, *z = low + CHOOSE_TILE * choose_padded(p->terms, CHOOSE_PAD),
        *dlow = z + CHOOSE_TILE * p->width, *add = dlow + CHOOSE_TILE * p->rank_width,
        *tmp = add + CHOOSE_TILE * p->rank_width;
    memset(dlow, 0, (size_t)(CHOOSE_TILE * p->rank_width) * sizeof *dlow);
    for (int64_t s = 0; s < p->strips; s++) {
        const strip t = strip_of(c, p, s);
        int64_t row[CHOOSE_TILE];
        const int64_t m = strip_rows(c, q, t, r0, r1, row), at = s * p->terms * p->width;
        pack_rows(c, p, m, row, low);
        product_run(&(product){ .m = m, .cols = p->width, .terms = p->terms, .a = low,
                                .row = p->terms, .term = 1, .b = q->matrix + at, .ldb = p->width,
                                .c = z, .ldc = p->width });
        for (int64_t i = 0; i < m; i++)
            strip_dz(c, p, q, row[i], t, z + i * p->width, tmp);
        if (q->sums)
            product_run(&(product){ .m = p->terms, .cols = p->width, .terms = m, .a = low,
                                    .row = 1, .term = p->terms, .b = z, .ldb = p->width,
                                    .c = sums + at, .ldc = p->width, .acc = true });
        if (!q->dlow)
            continue;
        product_run(&(product){ .m = m, .cols = p->rank_width, .terms = t.size, .a = z,
                                .row = p->width, .term = 1,
                                .b = q->transposed + s * p->width * p->rank_width,
                                .ldb = p->rank_width, .c = add, .ldc = p->rank_width });
        for (int64_t i = 0; i < m; i++)
            for (int64_t k = 0; k < p->rank_width; k++)
                dlow[(row[i] - r0) * p->rank_width + k] += add[i * p->rank_width + k];
    }
    for (int64_t r = r0; q->dlow && r < r1; r++) {
        const float *from = dlow + (r - r0) * p->rank_width;
        float *to = q->dlow + r * c->rank;
        for (int64_t k = 0; k < c->rank; k++)
            to[k] = q->acc ? to[k] + from[k] : from[k];
    }
}

/* dcb and dc2 += the sums of all parts, in their order */
static void add_parts(const ag_chooser *c, const choose_plan *p, const float *sums, float *dc2,
                      float *dcb)
{
    #pragma omp parallel for schedule(static) if (p->matrix * p->parts >= AG_PARALLEL_FROM)
    for (int64_t s = 0; s < p->strips; s++) {
        const strip t = strip_of(c, p, s);
        for (int64_t k = 0; k < p->terms; k++) {
            float *to = k ? dc2 : dcb;
            if (!to)
                continue;
            to += (k ? (k - 1) * p->units : 0) + t.u0;
            const float *from = sums + (s * p->terms + k) * p->width;
            for (int64_t i = 0; i < p->parts; i++)
                for (int64_t j = 0; j < t.size; j++)
                    to[j] += from[i * p->part + j];
        }
    }
}

void AG_NAME(choose_bwd)(const ag_chooser *c, const int32_t *choice, const void *dgate, void *dlow,
                         bool acc, void *dc2, void *dcb, void *scratch)
{
    const choose_plan p = choose_plan_of(c, true);
    float *matrix = scratch, *transposed = matrix + p.matrix, *own = transposed + p.transposed;
    const choose_grad q = { choice, dgate, dlow, acc, dc2 || dcb, matrix, transposed };
    if (!c->c.rows)
        return;
    pack_matrix(c, &p, matrix);
    if (dlow)
        pack_transposed(c, &p, transposed);
    #pragma omp parallel for schedule(static) if (c->c.rows * p.units >= AG_PARALLEL_FROM)
    for (int64_t i = 0; i < p.parts; i++) {
        float *sums = own + i * p.part, *tile = sums + p.matrix;
        const int64_t r1 = least(c->c.rows, (i + 1) * p.part_rows);
        memset(sums, 0, (size_t)p.matrix * sizeof *sums);
        for (int64_t r = i * p.part_rows; r < r1; r += CHOOSE_TILE)
            choose_tile_bwd(c, &p, &q, r, least(r1, r + CHOOSE_TILE), tile, sums);
    }
    if (q.sums)
        add_parts(c, &p, own, dc2, dcb);
}
