/*
 * ref_tmpl.c -- every kernel as textbook C on one thread: the specification that all other tables
 * are tested against, and the f64 table of gradient checks.  Compiled with -DAG_REAL=32 and
 * -DAG_REAL=64.
 *
 * Sums run in the order of the index in double and are rounded once at the end, also for f32: so
 * the f32 results are the best that f32 can hold, and an error bound can be put on the fast kernels
 * alone.
 *
 * Legend: m rows of n numbers; i counts rows, j columns; k the inner dimension of a product; b, h,
 * t batch item, head, position.  d<x> is the gradient of the loss with respect to x.  acc: add to
 * the output.
 */
#include <math.h>
#include <tgmath.h>

#include "autograd/kernels.h"

#if AG_REAL == 32
typedef float real;
#define TABLE ag_kernels_ref_f32
#define TABLE_DTYPE AG_F32
#else
typedef double real;
#define TABLE ag_kernels_ref_f64
#define TABLE_DTYPE AG_F64
#endif
#define R(c) ((real)(c))

static void put(real *y, bool acc, double v) { *y = R(acc ? (double)*y + v : v); }

#include "autograd/cpu/ref_map_tmpl.h"

static real act_fwd(ag_act act, real x)
{
    switch (act) {
    case AG_ACT_RELU:       return x > 0 ? x : 0;
    case AG_ACT_GELU_TANH:  return ag_f_gelu_tanh(x);
    case AG_ACT_GELU_ERF:   return ag_f_gelu_erf(x);
    case AG_ACT_GELU_QUICK: return ag_f_gelu_quick(x);
    default:                return x;
    }
}

static real act_slope(ag_act act, real x)
{
    switch (act) {
    case AG_ACT_RELU:       return x > 0 ? 1 : 0;
    case AG_ACT_GELU_TANH:  return ag_d_gelu_tanh(x);
    case AG_ACT_GELU_ERF:   return ag_d_gelu_erf(x);
    case AG_ACT_GELU_QUICK: return ag_d_gelu_quick(x);
    default:                return 1;
    }
}

static void gemm(const ag_gemm *g)
{
    const real *a = g->a, *b = g->b, *bias = g->bias, *residual = g->residual;
    real *c = g->c, *pre = g->pre;
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) {
            double s = 0;
            for (int64_t p = 0; p < g->k; p++)
                s += (double)a[g->ta ? p * g->lda + i : i * g->lda + p] *
                     (double)b[g->tb ? j * g->ldb + p : p * g->ldb + j];
            const int64_t at = i * g->ldc + j;
            if (g->acc) {
                put(c + at, true, s);
                continue;
            }
            real y = R(s + (bias ? (double)bias[j] : 0));
            if (pre)
                pre[at] = y;
            y = act_fwd(g->act, y);
            c[at] = residual ? y + residual[at] : y;
        }
}

static void act_bwd(ag_act act, int64_t m, int64_t n, const void *ppre, const void *pdy, void *pdx,
                    void *pdb, bool acc_db)
{
    const real *pre = ppre, *dy = pdy;
    real *dx = pdx, *db = pdb;
    for (int64_t j = 0; j < n; j++) {
        double s = 0;
        for (int64_t i = 0; i < m; i++) {
            const int64_t at = i * n + j;
            const real d = act == AG_ACT_NONE ? dy[at] : dy[at] * act_slope(act, pre[at]);
            if (dx)
                dx[at] = d;
            s += (double)d;
        }
        if (db)
            put(db + j, acc_db, s);
    }
}

static void fixed_add(int64_t n, int point, int sign, const void *px, int32_t *s, int32_t *peak)
{
    const real *x = px, one = R(ldexp(1, point));
    for (int64_t i = 0; i < n; i++) {
        const double v = rint((double)(x[i] * one));
        const bool fits = v > -0x1p31 && v < 0x1p31;     /* false for NaN */
        const int64_t d = (fits ? (int64_t)v : 0) * (sign < 0 ? -1 : 1);
        int32_t sum;
        bool wraps = __builtin_add_overflow(sign ? s[i] : 0, d, &sum);
        wraps |= !fits || sum == INT32_MIN;
        s[i] = sum;
        const int32_t size = wraps ? INT32_MAX : sum < 0 ? -sum : sum;
        *peak = size > *peak ? size : *peak;
    }
}

static void fixed_read(int64_t n, int point, const int32_t *s, void *py)
{
    real *y = py;
    const real unit = R(ldexp(1, -point));
    for (int64_t i = 0; i < n; i++) y[i] = (real)s[i] * unit;
}

static void fill(int64_t n, double value, void *y)
{
    for (int64_t i = 0; i < n; i++)
        ((real *)y)[i] = R(value);
}

static void add(int64_t n, const void *x, void *y)
{
    for (int64_t i = 0; i < n; i++)
        ((real *)y)[i] += ((const real *)x)[i];
}

static void scale(int64_t n, double alpha, const void *x, void *y, bool acc)
{
    for (int64_t i = 0; i < n; i++)
        put((real *)y + i, acc, alpha * (double)((const real *)x)[i]);
}

static void add_scalar(int64_t n, double alpha, const void *c, void *y, bool acc)
{
    for (int64_t i = 0; i < n; i++)
        put((real *)y + i, acc, alpha * (double)*(const real *)c);
}

static double sum_of(int64_t n, const real *x)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += (double)x[i];
    return s;
}

static void sum(int64_t n, double alpha, const void *x, void *y)
{
    *(real *)y = R(alpha * sum_of(n, x));
}

static void row_sum(int64_t m, int64_t n, const void *x, void *y)
{
    for (int64_t i = 0; i < m; i++)
        ((real *)y)[i] = R(sum_of(n, (const real *)x + i * n));
}

static void row_add(int64_t m, int64_t n, const void *dy, void *dx, bool acc)
{
    for (int64_t i = 0; i < m * n; i++)
        put((real *)dx + i, acc, (double)((const real *)dy)[i / n]);
}

/* Layer normalisation, 1607.06450: xhat = (x - mean) rstd, rstd = 1 / sqrt(var + eps),
 * y = xhat gain + bias. */
static void layernorm_fwd(int64_t m, int64_t n, double eps, const void *px, const void *pgain,
                          const void *pbias, void *py, void *pmean, void *prstd)
{
    const real *gain = pgain, *bias = pbias;
    for (int64_t i = 0; i < m; i++) {
        const real *x = (const real *)px + i * n;
        real *y = (real *)py + i * n;
        const double mean = sum_of(n, x) / (double)n;
        double var = 0;
        for (int64_t j = 0; j < n; j++)
            var += ((double)x[j] - mean) * ((double)x[j] - mean);
        const double rstd = 1 / sqrt(var / (double)n + eps);
        for (int64_t j = 0; j < n; j++)
            y[j] = R(((double)x[j] - mean) * rstd * (gain ? (double)gain[j] : 1)
                     + (bias ? (double)bias[j] : 0));
        ((real *)pmean)[i] = R(mean);
        ((real *)prstd)[i] = R(rstd);
    }
}

/* With g = dy gain:  dx = rstd (g - mean(g) - xhat mean(g xhat)),  dgain = sum dy xhat,
 * dbias = sum dy */
static void layernorm_bwd(int64_t m, int64_t n, const void *px, const void *pgain,
                          const void *pmean, const void *prstd, const void *pdy, void *pdx,
                          bool acc_dx, void *pdgain, void *pdbias)
{
    const real *x = px, *gain = pgain, *mean = pmean, *rstd = prstd, *dy = pdy;
    real *dx = pdx, *dgain = pdgain, *dbias = pdbias;
    for (int64_t j = 0; j < n; j++) {
        double sg = 0, sb = 0;
        for (int64_t i = 0; i < m; i++) {
            sg += (double)dy[i * n + j] * ((double)x[i * n + j] - (double)mean[i])
                * (double)rstd[i];
            sb += (double)dy[i * n + j];
        }
        if (dgain) put(dgain + j, true, sg);
        if (dbias) put(dbias + j, true, sb);
    }
    for (int64_t i = 0; dx && i < m; i++, x += n, dy += n, dx += n) {
        const double mu = (double)mean[i], rs = (double)rstd[i];
        double sg = 0, sgx = 0;
        for (int64_t j = 0; j < n; j++) {
            const double g = (double)dy[j] * (gain ? (double)gain[j] : 1);
            sg += g;
            sgx += g * ((double)x[j] - mu) * rs;
        }
        for (int64_t j = 0; j < n; j++) {
            const double g = (double)dy[j] * (gain ? (double)gain[j] : 1);
            put(dx + j, acc_dx,
                rs * (g - sg / (double)n - ((double)x[j] - mu) * rs * sgx / (double)n));
        }
    }
}

/* log of the sum of exp, with the largest taken out first; -inf for an empty row */
static double lse_of(int64_t n, const real *x)
{
    double top = -INFINITY, s = 0;
    for (int64_t j = 0; j < n; j++)
        top = (double)x[j] > top || isnan(x[j]) ? (double)x[j] : top;
    if (!isfinite(top))
        return top;
    for (int64_t j = 0; j < n; j++)
        s += exp((double)x[j] - top);
    return top + log(s);
}

static void softmax_fwd(int64_t m, int64_t n, bool want_log, const void *px, void *py)
{
    for (int64_t i = 0; i < m; i++) {
        const real *x = (const real *)px + i * n;
        real *y = (real *)py + i * n;
        const double lse = lse_of(n, x);
        for (int64_t j = 0; j < n; j++)
            y[j] = R(want_log ? (double)x[j] - lse : exp((double)x[j] - lse));
    }
}

/* softmax: dx = y (dy - sum(y dy));  log softmax: dx = dy - exp(y) sum(dy) */
static void softmax_bwd(int64_t m, int64_t n, bool was_log, const void *py, const void *pdy,
                        void *pdx, bool acc)
{
    const real *y = py, *dy = pdy;
    real *dx = pdx;
    for (int64_t i = 0; i < m; i++, y += n, dy += n, dx += n) {
        double s = 0;
        for (int64_t j = 0; j < n; j++)
            s += (was_log ? 1 : (double)y[j]) * (double)dy[j];
        for (int64_t j = 0; j < n; j++)
            put(dx + j, acc, was_log ? (double)dy[j] - exp((double)y[j]) * s
                                     : (double)y[j] * ((double)dy[j] - s));
    }
}

static void embedding_fwd(int64_t m, int64_t d, const int32_t *ids, const void *table,
                          const void *pos, int64_t t, int64_t pos0, void *y)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < d; j++) {
            const real e = ((const real *)table)[ids[i] * d + j];
            ((real *)y)[i * d + j] = pos ? e + ((const real *)pos)[(pos0 + i % t) * d + j] : e;
        }
}

static void embedding_bwd(int64_t m, int64_t v, int64_t d, const int32_t *ids, const void *dy,
                          int64_t t, int64_t pos0, void *dtable, void *dpos)
{
    (void)v;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < d; j++) {
            const real e = ((const real *)dy)[i * d + j];
            if (dtable)
                ((real *)dtable)[ids[i] * d + j] += e;
            if (dpos)
                ((real *)dpos)[(pos0 + i % t) * d + j] += e;
        }
}

static void gather_fwd(int64_t m, int64_t n, const int32_t *idx, const void *x, void *y)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            ((real *)y)[i * n + j] = ((const real *)x)[idx[i] * n + j];
}

static void gather_bwd(int64_t m, int64_t v, int64_t n, const int32_t *idx, const void *dy,
                       void *dx)
{
    (void)v;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            ((real *)dx)[idx[i] * n + j] += ((const real *)dy)[i * n + j];
}

static void pick_fwd(int64_t m, int64_t n, const int32_t *idx, const void *x, void *y)
{
    for (int64_t i = 0; i < m; i++)
        ((real *)y)[i] = ((const real *)x)[i * n + idx[i]];
}

static void pick_bwd(int64_t m, int64_t n, const int32_t *idx, const void *dy, void *dx)
{
    for (int64_t i = 0; i < m; i++)
        ((real *)dx)[i * n + idx[i]] += ((const real *)dy)[i];
}

static void argmax(int64_t m, int64_t n, const void *px, int32_t *idx)
{
    for (int64_t i = 0; i < m; i++) {
        const real *x = (const real *)px + i * n;
        real best = -INFINITY;                            /* NaN is never chosen */
        idx[i] = 0;
        for (int64_t j = 0; j < n; j++)
            if (x[j] > best) {
                best = x[j];
                idx[i] = (int32_t)j;
            }
    }
}

/* Dropout, 1207.0580, with the scale at training time. */
static real dropped(double p, const ag_noise *z, int64_t i, int64_t j, int64_t n, real x)
{
    return ag_noise_at(z, i, j, n) >= ag_drop_threshold(p) ? x * R(1 / (1 - p)) : 0;
}

static void dropout_fwd(int64_t m, int64_t n, double p, const ag_noise *z, const void *x,
                        const void *residual, void *y)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            const real v = dropped(p, z, i, j, n, ((const real *)x)[i * n + j]);
            ((real *)y)[i * n + j] = residual ? ((const real *)residual)[i * n + j] + v : v;
        }
}

static void dropout_bwd(int64_t m, int64_t n, double p, const ag_noise *z, const void *dy, void *dx,
                        bool acc)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            put((real *)dx + i * n + j, acc,
                (double)dropped(p, z, i, j, n, ((const real *)dy)[i * n + j]));
}

static int64_t count_targets(int64_t m, const int32_t *target)
{
    int64_t count = 0;
    for (int64_t i = 0; i < m; i++)
        count += target[i] >= 0;
    return count;
}

static void xent_fwd(int64_t m, int64_t n, const void *x, const int32_t *target, void *lse,
                     void *loss)
{
    double s = 0;
    for (int64_t i = 0; i < m; i++) {
        const real *row = (const real *)x + i * n;
        const double l = lse_of(n, row);
        ((real *)lse)[i] = R(l);
        s += target[i] >= 0 ? l - (double)row[target[i]] : 0;
    }
    const int64_t count = count_targets(m, target);
    *(real *)loss = R(count ? s / (double)count : 0);
}

/* dx = dloss / count (softmax(x) - onehot(target)); 0 in rows without a target */
static void xent_bwd(int64_t m, int64_t n, const void *x, const int32_t *target, const void *lse,
                     const void *dloss, void *dx, bool acc)
{
    const int64_t count = count_targets(m, target);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            const int64_t at = i * n + j;
            const double p = exp((double)((const real *)x)[at] - (double)((const real *)lse)[i]);
            put((real *)dx + at, acc,
                target[i] < 0
                ? 0 : (double)*(const real *)dloss / (double)count * (p - (target[i] == j)));
        }
}

#include "autograd/cpu/ref_attention_tmpl.h"

/* g = -log(-log u) of element (i, col), u clamped away from 0 and 1 */
static double controller_noise(const ag_controller *c, int64_t i, int64_t col)
{
    if (c->temperature == 0)
        return 0;
    const real u = R(ag_uniform(ag_noise_at(&c->noise, i, col, c->blocks * c->n)));
    return -log(-log((double)fmin(fmax(u, R(1e-6)), R(1 - 1e-6))));
}

static double controller_soft_temperature(const ag_controller *c)
{
    return c->relaxed && c->temperature != 0 ? c->temperature : 1;
}

/* block of one row: numbers col .. col+n of row i */
static void controller_block(const ag_controller *c, int64_t i, int64_t col, const real *z,
                             real *mask, int32_t *choice, real *p)
{
    const double t = controller_soft_temperature(c);
    double top = -INFINITY, s = 0, best = -INFINITY;
    if (!c->given)
        *choice = 0;
    for (int64_t j = 0; j < c->n; j++)
        top = fmax(top, (double)z[j] + (c->relaxed ? controller_noise(c, i, col + j) : 0));
    for (int64_t j = 0; j < c->n; j++)
        s += exp(((double)z[j] + (c->relaxed ? controller_noise(c, i, col + j) : 0) - top) / t);
    for (int64_t j = 0; j < c->n; j++) {
        const double g = controller_noise(c, i, col + j);
        const double log_p = ((double)z[j] + (c->relaxed ? g : 0) - top) / t - log(s);
        const double v = c->relaxed ? (double)z[j] + g : log_p + c->temperature * g;
        p[j] = R(exp(log_p));
        if (v > best && !c->given) {
            best = v;
            *choice = (int32_t)j;
        }
    }
    for (int64_t j = 0; j < c->n; j++)
        mask[j] = c->hard ? R(*choice == j) : p[j];
}

static void controller_fwd(const ag_controller *c, const void *z, void *mask, int32_t *choice,
                           void *p)
{
    for (int64_t i = 0; i < c->rows; i++)
        for (int64_t b = 0; b < c->blocks; b++) {
            const int64_t at = (i * c->blocks + b) * c->n;
            controller_block(c, i, b * c->n, (const real *)z + at, (real *)mask + at,
                             choice + i * c->blocks + b, (real *)p + at);
        }
}

static void controller_bwd(const ag_controller *c, const void *pp, const void *pdmask, void *pdz,
                           bool acc)
{
    const real *p = pp, *dmask = pdmask;
    real *dz = pdz;
    const double t = controller_soft_temperature(c);
    for (int64_t b = 0; b < c->rows * c->blocks; b++, p += c->n, dmask += c->n, dz += c->n) {
        const double s = dot(c->n, p, dmask);
        for (int64_t j = 0; j < c->n; j++)
            put(dz + j, acc, (double)p[j] * ((double)dmask[j] - s) / t);
    }
}

#include "autograd/cpu/ref_live_tmpl.h"
#include "autograd/cpu/ref_modules_tmpl.h"
#include "autograd/cpu/ref_scan_tmpl.h"
#include "autograd/cpu/ref_lsh_tmpl.h"

extern const ag_kernels TABLE;

const ag_kernels TABLE = {
    .name = "ref", .dtype = TABLE_DTYPE,
#define AG_UNARY(name, ...) .unary_fwd[AG_UNARY_##name] = unary_fwd_##name, \
                            .unary_bwd[AG_UNARY_##name] = unary_bwd_##name,
#include "autograd/unary.def"
#undef AG_UNARY
#define AG_BINARY(name, ...) .binary_fwd[AG_BINARY_##name] = binary_fwd_##name, \
                             .binary_bwd[AG_BINARY_##name] = binary_bwd_##name,
#include "autograd/binary.def"
#undef AG_BINARY
    .gemm = gemm, .act_bwd = act_bwd,
    .fill = fill, .fixed_add = fixed_add, .fixed_read = fixed_read, .add = add,
    .scale = scale, .add_scalar = add_scalar,
    .sum = sum, .row_sum = row_sum, .row_add = row_add,
    .layernorm_fwd = layernorm_fwd, .layernorm_bwd = layernorm_bwd,
    .softmax_fwd = softmax_fwd, .softmax_bwd = softmax_bwd,
    .embedding_fwd = embedding_fwd, .embedding_bwd = embedding_bwd,
    .gather_fwd = gather_fwd, .gather_bwd = gather_bwd, .pick_fwd = pick_fwd, .pick_bwd = pick_bwd,
    .copy_rows = copy_rows, .outer_fwd = outer_fwd, .outer_bwd = outer_bwd,
    .argmax = argmax, .dropout_fwd = dropout_fwd, .dropout_bwd = dropout_bwd,
    .attention_fwd = attention_fwd, .attention_bwd = attention_bwd,
    .sru_fwd = sru_fwd, .sru_bwd = sru_bwd,
    .normal = normal, .lsh_hash = lsh_hash, .lsh_fwd = lsh_fwd, .lsh_bwd = lsh_bwd,
    .lsh_decode = lsh_decode,
    .xent_fwd = xent_fwd, .xent_bwd = xent_bwd,
    .controller_fwd = controller_fwd, .controller_bwd = controller_bwd,
    .choose_fwd = choose_fwd, .choose_bwd = choose_bwd,
    .live_dot = live_dot, .live_sum = live_sum, .live_grad = live_grad,
    .gate_fwd = gate_fwd, .gate_bwd = gate_bwd,
};
