/*
 * live_tmpl.c -- products with the weight rows of few units, of one instruction set;
 * ref_live_tmpl.h has the formulas.
 *
 * A row names a few units of each block, and each has its weights in a row of w.  Forward, blocks
 * are taken in chunks whose weights stay in the cache while all rows pass by.  A product of x with
 * a unit's weights is summed in an order that d alone decides, and a sum over units in their order:
 * so a row gives the same bits alone and among others.  Gradients are sorted by unit: the row of dw
 * stays in registers while the rows of x that chose it pass by, in their order.
 */
#ifdef _OPENMP
#include <omp.h>
#endif

#include "autograd/cpu/fast.h"
#include "autograd/cpu/sums.h"

enum {
    CHUNK = 1 << 20,                 /* bytes of weights that are read again and again */
    LIST = 128,                      /* places of a row looked at together */
    TILE = 512,                      /* rows of x that stay in the cache for a gradient */
    SORT = 64,                       /* choices sorted together */
    SUM_NV = VL == 16 ? 24 : 8,      /* vectors of a row kept in registers */
};

typedef float quad __attribute__((vector_size(16)));

/* Threads for work of n multiply-adds. */
static int threads_for(int64_t n)
{
#ifdef _OPENMP
    return n < 2 * AG_PARALLEL_FROM || omp_in_parallel() ? 1 : omp_get_max_threads();
#else
    (void)n;
    return 1;
#endif
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* A piece of the work: rows [r0, r1) times places, or columns, [j0, j1). */
typedef struct piece { int64_t r0, r1, j0, j1; } piece;

/* Piece i of `rows` times `size`, cut into row_parts by size_parts; size in multiples of grain. */
static piece piece_of(int64_t i, int64_t rows, int64_t row_parts, int64_t size, int64_t size_parts,
                      int64_t grain)
{
    const int64_t r = i % row_parts, s = i / row_parts, grains = (size + grain - 1) / grain;
    return (piece){ rows * r / row_parts, rows * (r + 1) / row_parts,
                    least(size, grains * s / size_parts * grain),
                    least(size, grains * (s + 1) / size_parts * grain) };
}

/* The units at the places [from, to) of row r. */
static void list_units(const ag_live *l, int64_t r, int64_t from, int64_t to, int64_t *ret)
{
    const int32_t *choice = l->choice + r * l->blocks * l->picks;
    if (l->picks * l->width == 1) {
        for (int64_t j = from; j < to; j++)
            *ret++ = j * l->n + choice[j];
        return;
    }
    int64_t pick = from / l->width, i = from % l->width, block = pick / l->picks,
        next = (block + 1) * l->picks;           /* the first pick of the next block */
    for (int64_t j = from; j < to; j++) {
        *ret++ = (block * l->n + choice[pick]) * l->width + i;
        if (++i == l->width) {
            i = 0;
            if (++pick == next) {
                block++;
                next += l->picks;
            }
        }
    }
}

/* Places whose weights fill a chunk: those of whole blocks. */
static int64_t chunk_places(const ag_live *l)
{
    const int64_t bytes = l->n * l->width * l->d * (int64_t)sizeof(float),
        blocks = bytes < CHUNK ? CHUNK / (bytes + !bytes) : 1;
    return blocks * l->picks * l->width;
}

/* ---- x . w ---- */

/* (q0 + q2) + (q1 + q3) of each of four vectors' quarters: vsum of each */
static quad vsum4(const vf s[4])
{
    quad q[4];
    for (int i = 0; i < 4; i++) {
#if defined(__AVX512F__)
        const __m256 h = _mm256_add_ps(_mm512_castps512_ps256((__m512)s[i]),
                                       _mm512_extractf32x8_ps((__m512)s[i], 1));
        q[i] = (quad)_mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif defined(__AVX2__)
        q[i] = (quad)_mm_add_ps(_mm256_castps256_ps128((__m256)s[i]),
                                _mm256_extractf128_ps((__m256)s[i], 1));
#else
        q[i] = s[i];
#endif
    }
    const quad a = __builtin_shufflevector(q[0], q[1], 0, 1, 4, 5) +
        __builtin_shufflevector(q[0], q[1], 2, 3, 6, 7);
    const quad b = __builtin_shufflevector(q[2], q[3], 0, 1, 4, 5) +
        __builtin_shufflevector(q[2], q[3], 2, 3, 6, 7);
    return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}

/* x . w of four rows of w: even and odd vectors apart.  The four rows after them are asked for. */
static quad dot4(int64_t d, const float *x, const float *const w[4], const float *const next[4])
{
    vf even[4] = { { 0 } }, odd[4] = { { 0 } };
    int64_t i = 0;
    for (; i + 2 * VL <= d; i += 2 * VL) {
        const vf x0 = vload(x + i), x1 = vload(x + i + VL);
        for (int k = 0; k < 4; k++) {
            even[k] = vfma(x0, vload(w[k] + i), even[k]);
            odd[k] = vfma(x1, vload(w[k] + i + VL), odd[k]);
            __builtin_prefetch(next[k] + i);
            __builtin_prefetch(next[k] + i + VL);
        }
    }
    if (i < d)
        for (int k = 0; k < 4; k++)
            even[k] = vfma(vload_to(x + i, d - i), vload_to(w[k] + i, d - i), even[k]);
    if (i + VL < d)
        for (int k = 0; k < 4; k++)
            odd[k] = vfma(vload_n(x + i + VL, d - i - VL), vload_n(w[k] + i + VL, d - i - VL),
                          odd[k]);
    for (int k = 0; k < 4; k++)
        even[k] += odd[k];
    return vsum4(even);
}

static void dot_places(const ag_live *l, int64_t r, int64_t from, int64_t to, const float *x,
                       const float *w, const float *bias, float *a)
{
    for (int64_t j0 = from; j0 < to; j0 += LIST) {
        int64_t unit[LIST + 8];
        const int64_t m = least(LIST, to - j0);
        list_units(l, r, j0, j0 + m, unit);
        for (int64_t j = m; j < m + 8; j++)
            unit[j] = unit[m - 1];
        for (int64_t j = 0; j < m; j += 4) {
            const float *row[4], *next[4];
            for (int k = 0; k < 4; k++) {
                row[k] = w + unit[j + k] * l->d;
                next[k] = w + unit[j + k + 4] * l->d;
            }
            const quad s = dot4(l->d, x, row, next);
            for (int64_t k = 0; k < 4 && j + k < m; k++)
                a[j0 + j + k] = s[k] + (bias ? bias[unit[j + k]] : 0);
        }
    }
}

void AG_NAME(live_dot)(const ag_live *l, const void *px, const void *w, const void *bias, void *pa)
{
    const int64_t size = l->blocks * l->picks * l->width, chunk = chunk_places(l);
    const int64_t parts = threads_for(l->rows * size * l->d),
        row_parts = least(parts, l->rows), size_parts = row_parts ? parts / row_parts : 0;
    #pragma omp parallel for schedule(static) if (parts > 1)
    for (int64_t i = 0; i < row_parts * size_parts; i++) {
        const piece p = piece_of(i, l->rows, row_parts, size, size_parts, 4);
        for (int64_t j = p.j0; j < p.j1; j += chunk)
            for (int64_t r = p.r0; r < p.r1; r++)
                dot_places(l, r, j, least(p.j1, j + chunk), (const float *)px + r * l->d, w, bias,
                           (float *)pa + r * size);
    }
}

/* ---- sum of h w ---- */

#define FOR_NV(v, nv) _Pragma("GCC unroll 24") for (int v = 0; v < (nv); v++)

/* y[i ..] = from (NULL: 0) + bias + residual (may be NULL) + the sum over m of h row, for nv
 * vectors; a single one has `left` numbers */
static inline __attribute__((always_inline)) void
sum_columns(int nv, int64_t left, int64_t m, const float *h, const float *const *row, int64_t i,
            const float *from, const float *bias, const float *residual, float *y)
{
    const int64_t n = nv == 1 ? left : VL;
    vf s[SUM_NV];
    FOR_NV(v, nv)
        s[v] = from ? vload_to(from + i + v * VL, n) : vset(0.0f);
    if (bias)
        FOR_NV(v, nv)
            s[v] += vload_to(bias + i + v * VL, n);
    if (residual)
        FOR_NV(v, nv)
            s[v] += vload_to(residual + i + v * VL, n);
    for (int64_t k = 0; k < m; k++) {
        const vf c = vset(h[k]);
        const float *p = row[k] + i;
        FOR_NV(v, nv)
            s[v] = vfma(c, vload_to(p + v * VL, n), s[v]);
    }
    FOR_NV(v, nv)
        vstore_to(y + i + v * VL, s[v], n);
}

/* y[i0, i1) = from + bias + residual + the sum over m of h row */
static void add_rows(int64_t i0, int64_t i1, int64_t m, const float *h, const float *const *row,
                     const float *from, const float *bias, const float *residual, float *y)
{
    int64_t i = i0;
    for (; i + SUM_NV * VL <= i1; i += SUM_NV * VL)
        sum_columns(SUM_NV, 0, m, h, row, i, from, bias, residual, y);
    for (; SUM_NV > 8 && i + 8 * VL <= i1; i += 8 * VL)
        sum_columns(8, 0, m, h, row, i, from, bias, residual, y);
    for (; i + 4 * VL <= i1; i += 4 * VL)
        sum_columns(4, 0, m, h, row, i, from, bias, residual, y);
    for (; i < i1; i += VL)
        sum_columns(1, i1 - i, m, h, row, i, from, bias, residual, y);
}

void AG_NAME(live_sum)(const ag_live *l, const void *ph, const void *pw, const void *bias,
                       const void *presidual, void *py, bool acc)
{
    const int64_t size = l->blocks * l->picks * l->width, d = l->d, chunk = chunk_places(l);
    const int64_t parts = threads_for(l->rows * size * d),
        row_parts = least(parts, l->rows), column_parts = row_parts ? parts / row_parts : 0;
    const float *w = pw;
    #pragma omp parallel for schedule(static) if (parts > 1)
    for (int64_t i = 0; i < row_parts * column_parts; i++) {
        const piece p = piece_of(i, l->rows, row_parts, d, column_parts, 4 * VL);
        int64_t j = 0;
        do {
            for (int64_t r = p.r0; r < p.r1; r++) {
                const float *h = (const float *)ph + r * size;
                const float *residual = presidual ? (const float *)presidual + r * d : NULL;
                float *y = (float *)py + r * d;
                int64_t at = j;
                const int64_t to = least(size, j + chunk);
                do {
                    int64_t unit[LIST], m = 0;
                    const float *row[LIST];
                    float c[LIST];
                    const int64_t n = least(LIST, to - at);
                    list_units(l, r, at, at + n, unit);
                    for (int64_t k = 0; k < n; k++) {
                        row[m] = w + unit[k] * d;
                        c[m] = h[at + k];
                        m += h[at + k] != 0;
                    }
                    if (!at)
                        add_rows(p.j0, p.j1, m, c, row, acc ? y : NULL, bias, residual, y);
                    else if (m)
                        add_rows(p.j0, p.j1, m, c, row, y, NULL, NULL, y);
                    at += n;
                } while (at < to);
            }
            j += chunk;
        } while (j < size);
    }
}

/* ---- gradients of w and bias ---- */

/* Rows [r0, r1), choices [k0, k1) of pick p of block b. */
static void grad_tile(const ag_live *l, const float *h, const float *x, float *dw, float *dbias,
                      int64_t r0, int64_t r1, int64_t b, int64_t p, int64_t k0, int64_t k1)
{
    const int64_t picks = l->blocks * l->picks, at = b * l->picks + p;
    int32_t end[SORT + 1] = { 0 }, order[TILE];
    uint8_t key[TILE];
    for (int64_t r = r0; r < r1; r++) {
        const int64_t k = l->choice[r * picks + at] - k0;
        const bool in = k >= 0 && k < k1 - k0 &&
            (l->width > 1 || h[r * picks + at] != 0);
        key[r - r0] = (uint8_t)(in ? k : SORT);
        end[in ? k : SORT]++;
    }
    for (int32_t k = 0, n = 0; k <= SORT; k++) {
        const int32_t count = end[k];
        end[k] = n;
        n += count;
    }
    for (int64_t r = r0; r < r1; r++)
        order[end[key[r - r0]]++] = (int32_t)(r - r0);
    for (int64_t k = 0, from = 0; k < k1 - k0; from = end[k++])
        for (int64_t i = 0; i < l->width && from < end[k]; i++) {
            const int64_t u = (b * l->n + k0 + k) * l->width + i;
            const float *row[TILE];
            float c[TILE], s = 0;
            int64_t m = 0;
            for (int64_t e = from; e < end[k]; e++) {
                const int64_t r = r0 + order[e];
                const float v = h[(r * picks + at) * l->width + i];
                row[m] = x + r * l->d;
                c[m] = v;
                m += v != 0;
                s += v;
            }
            if (dw && m)
                add_rows(0, l->d, m, c, row, dw + u * l->d, NULL, NULL, dw + u * l->d);
            if (dbias)
                dbias[u] += s;
        }
}

void AG_NAME(live_grad)(const ag_live *l, const void *h, const void *x, void *dw, void *dbias)
{
    const int threads = threads_for(l->rows * l->blocks * l->picks * l->width * l->d);
    /* pieces of blocks: as many as keep all threads busy */
    int64_t sort = least(SORT, l->n);
    while (sort > 1 && l->blocks * ((l->n + sort - 1) / sort) < threads)
        sort = (sort + 1) / 2;
    const int64_t pieces = (l->n + sort - 1) / sort;
    #pragma omp parallel if (threads > 1)
    for (int64_t r = 0; r < l->rows; r += TILE) {
        #pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < l->blocks * pieces; i++)
            for (int64_t p = 0; p < l->picks; p++)
                grad_tile(l, h, x, dw, dbias, r, least(l->rows, r + TILE), i / pieces, p,
                          i % pieces * sort, least(l->n, (i % pieces + 1) * sort));
    }
}

/* ---- gates ---- */

enum { GATE_SPAN = 4096 };           /* numbers that a thread takes at a time */

/* One gate for each number. */
static void gate_span(int64_t n, const float *a, const float *gate, const float *dh, float *h,
                      float *dgate, bool acc)
{
    const vf zero = vset(0.0f);
    FOR_VECTORS(j, n) {
        const vf v = vload_to(a + j, n - j), g = gate ? vload_to(gate + j, n - j) : vset(1.0f);
        const vf x = vselect(zero, v, dh ? vload_to(dh + j, n - j) : v, zero);
        if (h)
            vstore_to(h + j, g * x, n - j);
        if (!dgate)
            continue;
        const vf s = vselect(zero, v, x * v, zero);
        vstore_to(dgate + j, acc ? vload_to(dgate + j, n - j) + s : s, n - j);
    }
}

/* One gate for `width` of them. */
static void gate_wide(int64_t width, const float *a, float gate, const float *dh, float *h,
                      float *dgate, bool acc)
{
    float s = 0;
    for (int64_t i = 0; i < width; i++) {
        const float x = a[i] > 0 ? (dh ? dh[i] : a[i]) : 0;
        s += a[i] > 0 ? x * a[i] : 0;
        if (h)
            h[i] = gate * x;
    }
    if (dgate)
        *dgate = acc ? *dgate + s : s;
}

/* h = gate * (a > 0) * (dh, or a where dh is NULL); dgate (+)= sum over width of (a > 0) dh a */
static void gates(int64_t m, int64_t width, const float *a, const float *gate, const float *dh,
                  float *h, float *dgate, bool acc)
{
    if (width == 1) {
        #pragma omp parallel for schedule(static) if (m >= AG_PARALLEL_FROM)
        for (int64_t j = 0; j < m; j += GATE_SPAN)
            gate_span(m - j < GATE_SPAN ? m - j : GATE_SPAN, a + j, gate ? gate + j : NULL,
                      dh ? dh + j : NULL, h ? h + j : NULL, dgate ? dgate + j : NULL, acc);
        return;
    }
    #pragma omp parallel for schedule(static) if (m * width >= AG_PARALLEL_FROM)
    for (int64_t j = 0; j < m; j++)
        gate_wide(width, a + j * width, gate ? gate[j] : 1.0f, dh ? dh + j * width : NULL,
                  h ? h + j * width : NULL, dgate ? dgate + j : NULL, acc);
}

void AG_NAME(gate_fwd)(int64_t m, int64_t width, const void *a, const void *gate, void *h)
{
    gates(m, width, a, gate, NULL, h, NULL, false);
}

void AG_NAME(gate_bwd)(int64_t m, int64_t width, const void *a, const void *gate, const void *dh,
                       void *da, void *dgate, bool acc)
{
    gates(m, width, a, gate, dh, da, dgate, acc);
}
