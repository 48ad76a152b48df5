/*
 * map_tmpl.c -- elementwise kernels, dropout and plain sums of one instruction set.
 *
 * The lines of unary.def and binary.def become scalar loops that the compiler vectorises: tanh,
 * exp, log and the GELUs are the branch-free functions of math_tmpl.h, so a new line needs nothing
 * here.  Work is cut into fixed spans, so that which element meets the scalar end of a loop does
 * not depend on the number of threads.
 */
#include <tgmath.h>

#include "autograd/cpu/fast.h"
#include "autograd/cpu/storage.h"
#include "autograd/cpu/sums.h"

enum { SPAN = 4096 };                /* elements: 16 KiB of each operand */

#define INLINE static inline __attribute__((always_inline))
#define R(c) ((float)(c))
#undef exp
#undef log
#undef tanh
#undef erf
#define exp(x) ag_m_exp(x)
#define log(x) ag_m_log(x)
#define tanh(x) ag_m_tanh(x)
#define erf(x) ag_m_erf(x)
#define ag_f_gelu_tanh(x) ag_m_gelu_tanh(x)
#define ag_d_gelu_tanh(x) ag_m_gelu_tanh_d(x)
#define ag_f_gelu_erf(x) ag_m_gelu_erf(x)
#define ag_d_gelu_erf(x) ag_m_gelu_erf_d(x)
#define ag_f_gelu_quick(x) ag_m_gelu_quick(x)
#define ag_d_gelu_quick(x) ag_m_gelu_quick_d(x)

/* for (span of k elements from element c on) do what follows, over the threads; few elements
 * without a parallel region, which takes longer than they do */
#define SPANS(c, k, n)                      \
    for (int64_t c = 0; c < (n); c += SPAN) \
        for (int64_t k = (n) - c < SPAN ? (n) - c : SPAN; k; k = 0)
#define FOR_SPANS(c, k, n, ...)                          \
    do {                                                 \
        if ((n) < AG_PARALLEL_FROM) {                    \
            SPANS(c, k, n) { __VA_ARGS__; }              \
        } else {                                         \
            AG_PRAGMA(omp parallel for schedule(static)) \
            SPANS(c, k, n) { __VA_ARGS__; }              \
        }                                                \
    } while (0)

/* for (element i): iterations are independent (operands are the same or do not overlap) */
#define FOR_EACH(i, k) _Pragma("omp simd") for (int64_t i = 0; i < k; i++)

#define AG_UNARY(name, f, df, ...)                                              \
    INLINE void fwd_##name(int64_t k, const real *vx, real *vy)                 \
    {                                                                           \
        FOR_EACH(i, k) { const float x = get(vx + i); put(vy + i, f); }         \
    }                                                                           \
    void AG_NAME(unary_fwd_##name)(int64_t n, const void *x, void *y)           \
    {                                                                           \
        FOR_SPANS(c, k, n, fwd_##name(k, (const real *)x + c, (real *)y + c));  \
    }
#include "autograd/unary.def"
#undef AG_UNARY

#define AG_UNARY(name, f, df, ...)                                                       \
    INLINE void bwd_##name(int64_t k, const real *vx, const real *vy, const real *dy,    \
                           real *dx, bool acc)                                           \
    {                                                                                    \
        FOR_EACH(i, k) {                                                                 \
            const float x = get(vx + i), y = get(vy + i), d = get(dy + i) * (df);        \
            (void)x, (void)y;                                                            \
            put(dx + i, acc ? get(dx + i) + d : d);                                      \
        }                                                                                \
    }
#include "autograd/unary.def"
#undef AG_UNARY

#define AG_UNARY(name, f, df, ...)                                                             \
    void AG_NAME(unary_bwd_##name)(int64_t n, const void *px, const void *py, const void *pdy, \
                                   void *pdx, bool acc)                                        \
    {                                                                                          \
        const real *x = px, *y = py, *dy = pdy;                                                \
        real *dx = pdx;                                                                        \
        FOR_SPANS(c, k, n,                                                                     \
            if (acc) bwd_##name(k, x + c, y + c, dy + c, dx + c, true);                        \
            else     bwd_##name(k, x + c, y + c, dy + c, dx + c, false));                      \
    }
#include "autograd/unary.def"
#undef AG_UNARY

#define AG_BINARY(name, f, dfa, dfb, ...)                                              \
    INLINE void fwd_##name(int64_t k, const real *va, const real *vb, real *vy)        \
    {                                                                                  \
        FOR_EACH(i, k) { const float a = get(va + i), b = get(vb + i); put(vy + i, f); } \
    }                                                                                  \
    void AG_NAME(binary_fwd_##name)(int64_t n, const void *a, const void *b, void *y)  \
    {                                                                                  \
        FOR_SPANS(c, k, n,                                                             \
            fwd_##name(k, (const real *)a + c, (const real *)b + c, (real *)y + c));   \
    }
#include "autograd/binary.def"
#undef AG_BINARY

#define SLOPE(fn, df)                                                                             \
    INLINE void fn(int64_t k, const real *va, const real *vb, const real *vy, const real *dy,     \
                   real *dx, bool acc)                                                            \
    {                                                                                             \
        FOR_EACH(i, k) {                                                                          \
            const float a = get(va + i), b = get(vb + i), y = get(vy + i);                        \
            const float d = get(dy + i) * (df);                                                   \
            (void)a, (void)b, (void)y;                                                            \
            put(dx + i, acc ? get(dx + i) + d : d);                                               \
        }                                                                                         \
    }
#define AG_BINARY(name, f, dfa, dfb, ...) SLOPE(bwd_a_##name, dfa) SLOPE(bwd_b_##name, dfb)
#include "autograd/binary.def"
#undef AG_BINARY

/* da is finished before db is begun, span by span: they may be the same array, as in x * x. */
#define AG_BINARY(name, f, dfa, dfb, ...)                                                        \
    void AG_NAME(binary_bwd_##name)(int64_t n, const void *pa, const void *pb, const void *py,   \
                                    const void *pdy, void *da, bool acc_a, void *db, bool acc_b) \
    {                                                                                            \
        const real *a = pa, *b = pb, *y = py, *dy = pdy;                                         \
        FOR_SPANS(c, k, n,                                                                       \
            if (da && acc_a)                                                                     \
                bwd_a_##name(k, a + c, b + c, y + c, dy + c, (real *)da + c, true);              \
            if (da && !acc_a)                                                                    \
                bwd_a_##name(k, a + c, b + c, y + c, dy + c, (real *)da + c, false);             \
            if (db && acc_b)                                                                     \
                bwd_b_##name(k, a + c, b + c, y + c, dy + c, (real *)db + c, true);              \
            if (db && !acc_b)                                                                    \
                bwd_b_##name(k, a + c, b + c, y + c, dy + c, (real *)db + c, false));            \
    }
#include "autograd/binary.def"
#undef AG_BINARY

INLINE vf act_slope(ag_act act, vf x)
{
    switch (act) {
    case AG_ACT_RELU:       return vselect(vset(0.0f), x, vset(1.0f), vset(0.0f));
    case AG_ACT_GELU_TANH:  return vgelu_tanh_d(x);
    case AG_ACT_GELU_ERF:   return vgelu_erf_d(x);
    case AG_ACT_GELU_QUICK: return vgelu_quick_d(x);
    default:                return vset(1.0f);
    }
}

/* One row: dx[k] = dy act'(pre), where dx is wanted; group[k] += dx, where that is wanted (whole
 * vectors). */
INLINE void act_row(ag_act act, int64_t k, const real *pre, const real *dy, real *dx,
                    float *group)
{
    FOR_VECTORS(j, k) {
        vf d = vget_to(dy + j, k - j);
        if (act != AG_ACT_NONE)
            d *= act_slope(act, vget_to(pre + j, k - j));
        if (dx)
            vput_to(dx + j, d, k - j);
        if (group)
            vstore(group + j, vload(group + j) + d);
    }
}

static void act_row_of(ag_act act, int64_t k, const real *pre, const real *dy, real *dx,
                       float *group)
{
    switch (act) {
    case AG_ACT_RELU:       act_row(AG_ACT_RELU, k, pre, dy, dx, group); break;
    case AG_ACT_GELU_TANH:  act_row(AG_ACT_GELU_TANH, k, pre, dy, dx, group); break;
    case AG_ACT_GELU_ERF:   act_row(AG_ACT_GELU_ERF, k, pre, dy, dx, group); break;
    case AG_ACT_GELU_QUICK: act_row(AG_ACT_GELU_QUICK, k, pre, dy, dx, group); break;
    default:                act_row(AG_ACT_NONE, k, pre, dy, dx, group); break;
    }
}

/* Slot s of the column sums of columns j0 .. j0+k of [m,n], dx on the way. */
static void act_slot(ag_act act, int64_t m, int64_t n, int64_t j0, int64_t k, int64_t s,
                     const real *pre, const real *dy, real *dx, float *ret_part)
{
    column_tree tree;
    int64_t from, to;
    slot_rows(m, s, &from, &to);
    column_tree_start(&tree, k);
    for (int64_t i = from; i < to; i += GROUP) {
        float group[COLUMNS];
        memset(group, 0, (size_t)AG_ALIGN_UP(k, VL) * sizeof *group);
        for (int64_t r = i; r < to && r < i + GROUP; r++) {
            const int64_t at = r * n + j0;
            act_row_of(act, k, pre ? pre + at : NULL, dy + at, dx ? dx + at : NULL, group);
        }
        column_tree_add(&tree, group);
    }
    column_tree_total(&tree, ret_part);
}

void AG_NAME(act_bwd)(ag_act act, int64_t m, int64_t n, const void *ppre, const void *pdy,
                      void *pdx, void *pdb, bool acc_db)
{
    const real *pre = ppre, *dy = pdy;
    real *dx = pdx;
    float *db = pdb;
    if (!db) {
        const int64_t size = m * n;
        FOR_SPANS(c, k, size, act_row_of(act, k, pre ? pre + c : NULL, dy + c, dx + c, NULL));
        return;
    }
    float parts[SLOTS][COLUMNS];
    for (int64_t j0 = 0; j0 < n; j0 += COLUMNS) {
        const int64_t k = n - j0 < COLUMNS ? n - j0 : COLUMNS;
        #pragma omp parallel for schedule(static) if (m * n >= AG_PARALLEL_FROM)
        for (int64_t s = 0; s < SLOTS; s++)
            act_slot(act, m, n, j0, k, s, pre, dy, dx, parts[s]);
        slots_total(parts, k, db + j0, acc_db);
    }
}

#if !defined(AG_STORAGE)              /* sums are for f32 tables; half_tmpl.c has fill and scale */

void AG_NAME(fill)(int64_t n, double value, void *py)
{
    float *y = py, v = (float)value;
    FOR_SPANS(c, k, n, FOR_EACH(i, k) y[c + i] = v);
}

/* One span of fixed_add; returns the largest |s|. */
INLINE int32_t fixed_span(int64_t k, float one, int sign, const float *x, int32_t *s)
{
    int32_t most = 0;
    _Pragma("omp simd reduction(max : most)")
    for (int64_t i = 0; i < k; i++) {
        const float v = __builtin_rintf(x[i] * one);
        const bool fits = v > -0x1p31f && v < 0x1p31f;       /* false for NaN */
        const int32_t r = (int32_t)(fits ? v : 0.0f), d = sign < 0 ? -r : r, old = sign ? s[i] : 0;
        const int32_t sum = (int32_t)((uint32_t)old + (uint32_t)d);
        const bool wraps = !fits || ((old ^ sum) & (d ^ sum)) < 0 || sum == INT32_MIN;
        const int32_t size = wraps ? INT32_MAX : sum < 0 ? -sum : sum;
        s[i] = sum;
        most = size > most ? size : most;
    }
    return most;
}

void AG_NAME(fixed_add)(int64_t n, int point, int sign, const void *px, int32_t *s, int32_t *peak)
{
    const float *x = px, one = __builtin_ldexpf(1, point);
    int32_t most = *peak;
    #pragma omp parallel for schedule(static) reduction(max : most) if (n >= AG_PARALLEL_FROM)
    for (int64_t c = 0; c < n; c += SPAN) {
        const int64_t k = n - c < SPAN ? n - c : SPAN;
        const int32_t here = fixed_span(k, one, sign, x + c, s + c);
        most = here > most ? here : most;
    }
    *peak = most;
}

void AG_NAME(fixed_read)(int64_t n, int point, const int32_t *s, void *py)
{
    const float unit = __builtin_ldexpf(1, -point);
    float *y = py;
    FOR_SPANS(c, k, n, FOR_EACH(i, k) y[c + i] = (float)s[c + i] * unit);
}

void AG_NAME(add)(int64_t n, const void *px, void *py)
{
    const float *x = px;
    float *y = py;
    FOR_SPANS(c, k, n, FOR_EACH(i, k) y[c + i] += x[c + i]);
}

void AG_NAME(scale)(int64_t n, double alpha, const void *px, void *py, bool acc)
{
    const float *x = px, a = (float)alpha;
    float *y = py;
    FOR_SPANS(c, k, n,
        if (acc)
            FOR_EACH(i, k) y[c + i] += a * x[c + i];
        else
            FOR_EACH(i, k) y[c + i] = a * x[c + i]);
}

void AG_NAME(add_scalar)(int64_t n, double alpha, const void *pc, void *py, bool acc)
{
    const float v = (float)(alpha * (double)*(const float *)pc);
    float *y = py;
    FOR_SPANS(c, k, n,
        if (acc)
            FOR_EACH(i, k) y[c + i] += v;
        else
            FOR_EACH(i, k) y[c + i] = v);
}

void AG_NAME(sum)(int64_t n, double alpha, const void *px, void *y)
{
    const float *x = px;
    const int64_t k = AG_ALIGN_UP((n + SLOTS - 1) / SLOTS, RUN * VL);
    double part[SLOTS], s = 0;
    #pragma omp parallel for schedule(static) if (n >= AG_PARALLEL_FROM)
    for (int64_t i = 0; i < SLOTS; i++) {
        const int64_t left = n - i * k;
        part[i] = left > 0 ? (double)row_total(left < k ? left : k, x + i * k) : 0;
    }
    for (int i = 0; i < SLOTS; i++)
        s += part[i];
    *(float *)y = (float)(alpha * s);
}

void AG_NAME(row_sum)(int64_t m, int64_t n, const void *px, void *py)
{
    const float *x = px;
    float *y = py;
    #pragma omp parallel for schedule(static) if (m * n >= AG_PARALLEL_FROM)
    for (int64_t i = 0; i < m; i++)
        y[i] = row_total(n, x + i * n);
}

void AG_NAME(row_add)(int64_t m, int64_t n, const void *pdy, void *pdx, bool acc)
{
    const float *dy = pdy;
    float *dx = pdx;
    #pragma omp parallel for schedule(static) if (m * n >= AG_PARALLEL_FROM)
    for (int64_t i = 0; i < m; i++) {
        if (acc)
            FOR_EACH(j, n) dx[i * n + j] += dy[i];
        else
            FOR_EACH(j, n) dx[i * n + j] = dy[i];
    }
}

#endif

/* y[n] = add + x * keep * up, or without add where that is NULL; add may be y */
static void dropout_row(int64_t n, uint32_t threshold, float up, const ag_noise *z, int64_t row,
                        const real *x, const real *add, real *y)
{
    const uint64_t group = ag_noise_group(z, row, n);
    for (int64_t j = 0; j < n; j += 64) {
        uint32_t bits[64];
        const int64_t k = n - j < 64 ? n - j : 64;
        vnoise64(z, group + (uint64_t)j / 64, bits);
        if (add)
            FOR_EACH(i, k)
                put(y + j + i, get(add + j + i) +
                               (bits[i] >= threshold ? get(x + j + i) * up : 0.0f));
        else
            FOR_EACH(i, k) put(y + j + i, bits[i] >= threshold ? get(x + j + i) * up : 0.0f);
    }
}

void AG_NAME(dropout_fwd)(int64_t m, int64_t n, double p, const ag_noise *z, const void *px,
                          const void *presidual, void *py)
{
    const real *x = px, *residual = presidual;
    real *y = py;
    #pragma omp parallel for schedule(static) if (m * n >= AG_PARALLEL_FROM)
    for (int64_t i = 0; i < m; i++)
        dropout_row(n, ag_drop_threshold(p), (float)(1 / (1 - p)), z, i, x + i * n,
                    residual ? residual + i * n : NULL, y + i * n);
}

void AG_NAME(dropout_bwd)(int64_t m, int64_t n, double p, const ag_noise *z, const void *dy,
                          void *dx, bool acc)
{
    AG_NAME(dropout_fwd)(m, n, p, z, dy, acc ? dx : NULL, dx);
}
