/*
 * rows_tmpl.c -- kernels that work row by row, of one instruction set: layer normalisation,
 * softmax, cross entropy, embedding, gather; in f32 alone pick, argmax and the controller.
 * ref_tmpl.c has the formulas.
 *
 * Rows go to the threads; a row is read a few times, the first time from memory and then from the
 * cache.  Sums over rows (gradients of gain and bias) go through the slots of sums.h; scattered
 * sums go to the threads by columns, so that each number is the sum of its terms in the order of
 * rows.
 */
#include "autograd/cpu/fast.h"
#include "autograd/cpu/sums.h"

#define FOR_ROWS(i, m, n)                                                           \
    AG_PRAGMA(omp parallel for schedule(static) if ((m) * (n) >= AG_PARALLEL_FROM)) \
    for (int64_t i = 0; i < (m); i++)

static void put_vector(real *y, vf v, int64_t left, bool acc)
{
    vput_to(y, acc ? vget_to(y, left) + v : v, left);
}

/* d rstd gain + bias; each of the last may be NULL */
static vf normed(vf d, float rstd, const real *gain, const real *bias, int64_t left)
{
    const vf r = vset(rstd);
    if (gain && bias)
        return vfma(d * r, vget_to(gain, left), vget_to(bias, left));
    if (bias)
        return vfma(d, r, vget_to(bias, left));
    return gain ? d * r * vget_to(gain, left) : d * r;
}

static void layernorm_row(int64_t n, double eps, const real *x, const real *gain,
                          const real *bias, real *y, float *ret_mean, float *ret_rstd)
{
    const float mean = row_total(n, x) / (float)n;
    vtree t;
    vtree_start(&t);
    FOR_RUNS(b, n) {
        vf s = { 0 };
        FOR_RUN(j, b, n) {
            const vf d = vhead(vget_to(x + j, n - j) - mean, n - j, 0.0f);
            s += d * d;
        }
        vtree_add(&t, s);
    }
    const float rstd = (float)(1 / __builtin_sqrt((double)(vtree_total(&t) / (float)n) + eps));
    FOR_VECTORS(j, n)                                    /* the same operations for any storage */
        vput_to(y + j, normed(vget_to(x + j, n - j) - mean, rstd, gain ? gain + j : NULL,
                              bias ? bias + j : NULL, n - j), n - j);
    *ret_mean = mean;
    *ret_rstd = rstd;
}

void AG_NAME(layernorm_fwd)(int64_t m, int64_t n, double eps, const void *px, const void *gain,
                            const void *bias, void *py, void *pmean, void *prstd)
{
    const real *x = px;
    real *y = py;
    float *mean = pmean, *rstd = prstd;
    FOR_ROWS(i, m, n)
        layernorm_row(n, eps, x + i * n, gain, bias, y + i * n, mean + i, rstd + i);
}

/* dx of one row */
static void layernorm_row_dx(int64_t n, const real *x, const real *gain, float mean, float rstd,
                             const real *dy, real *dx, bool acc)
{
    vtree tg, tgx;
    vtree_start(&tg);
    vtree_start(&tgx);
    FOR_RUNS(b, n) {
        vf sg = { 0 }, sgx = { 0 };
        FOR_RUN(j, b, n) {
            const vf d = vget_to(dy + j, n - j), g = gain ? d * vget_to(gain + j, n - j) : d;
            sg += g;
            sgx += g * ((vget_to(x + j, n - j) - mean) * rstd);
        }
        vtree_add(&tg, sg);
        vtree_add(&tgx, sgx);
    }
    const float mg = vtree_total(&tg) / (float)n, mgx = vtree_total(&tgx) / (float)n;
    FOR_VECTORS(j, n) {
        const vf d = vget_to(dy + j, n - j), g = gain ? d * vget_to(gain + j, n - j) : d;
        put_vector(dx + j, ((g - mg) - (vget_to(x + j, n - j) - mean) * rstd * mgx) * rstd, n - j,
                   acc);
    }
}

/* The sums of one slot for columns j0 .. j0+k, and dx of its rows where that is not NULL. */
static void layernorm_slot(int64_t from, int64_t to, int64_t n, int64_t j0, int64_t k,
                           const real *x, const real *gain, const float *mean, const float *rstd,
                           const real *dy, real *dx, bool acc, float *ret_dgain, float *ret_dbias)
{
    column_tree tg, tb;
    column_tree_start(&tg, k);
    column_tree_start(&tb, k);
    for (int64_t i = from; i < to; i += GROUP) {
        float sg[COLUMNS], sb[COLUMNS];
        memset(sg, 0, (size_t)AG_ALIGN_UP(k, VL) * sizeof *sg);
        memset(sb, 0, (size_t)AG_ALIGN_UP(k, VL) * sizeof *sb);
        for (int64_t r = i; r < to && r < i + GROUP; r++) {
            const real *xr = x + r * n + j0, *dyr = dy + r * n + j0;
            FOR_VECTORS(j, k) {
                const vf d = vget_to(dyr + j, k - j);
                vstore(sg + j, vload(sg + j) + d * ((vget_to(xr + j, k - j) - mean[r]) * rstd[r]));
                vstore(sb + j, vload(sb + j) + d);
            }
            if (dx)
                layernorm_row_dx(n, x + r * n, gain, mean[r], rstd[r], dy + r * n, dx + r * n, acc);
        }
        column_tree_add(&tg, sg);
        column_tree_add(&tb, sb);
    }
    column_tree_total(&tg, ret_dgain);
    column_tree_total(&tb, ret_dbias);
}

void AG_NAME(layernorm_bwd)(int64_t m, int64_t n, const void *px, const void *gain,
                            const void *pmean, const void *prstd, const void *pdy, void *pdx,
                            bool acc_dx, void *pdgain, void *pdbias)
{
    const real *x = px, *dy = pdy;
    const float *mean = pmean, *rstd = prstd;
    real *dx = pdx;
    float *dgain = pdgain, *dbias = pdbias;
    if (!dgain && !dbias) {
        FOR_ROWS(i, m, n)
            layernorm_row_dx(n, x + i * n, gain, mean[i], rstd[i], dy + i * n, dx + i * n, acc_dx);
        return;
    }
    float parts_g[SLOTS][COLUMNS], parts_b[SLOTS][COLUMNS];
    for (int64_t j0 = 0; j0 < n; j0 += COLUMNS) {
        const int64_t k = n - j0 < COLUMNS ? n - j0 : COLUMNS;
        #pragma omp parallel for schedule(static) if (m * n >= AG_PARALLEL_FROM)
        for (int64_t s = 0; s < SLOTS; s++) {
            int64_t from, to;
            slot_rows(m, s, &from, &to);
            layernorm_slot(from, to, n, j0, k, x, gain, mean, rstd, dy, j0 ? NULL : dx, acc_dx,
                           parts_g[s], parts_b[s]);
        }
        if (dgain)
            slots_total(parts_g, k, dgain + j0, true);
        if (dbias)
            slots_total(parts_b, k, dbias + j0, true);
    }
}

static float row_max(int64_t n, const real *x)
{
    vf top = vset(-__builtin_inff());
    FOR_VECTORS(j, n)
        top = vmax(vhead(vget_to(x + j, n - j), n - j, -__builtin_inff()), top);
    return vmaxall(top);
}

/* sum of exp(x - top), the terms stored to e unless that is NULL (it may be x) */
static float row_exp(int64_t n, const real *x, float top, real *e)
{
    vtree t;
    vtree_start(&t);
    FOR_RUNS(b, n) {
        vf s = { 0 };
        FOR_RUN(j, b, n) {
            const vf v = vexp(vget_to(x + j, n - j) - top);
            if (e)
                vput_to(e + j, v, n - j);
            s += vhead(v, n - j, 0.0f);
        }
        vtree_add(&t, s);
    }
    return vtree_total(&t);
}

void AG_NAME(softmax_fwd)(int64_t m, int64_t n, bool log, const void *px, void *py)
{
    const bool keep = !log && sizeof(real) == sizeof(float);     /* 16 bits would round terms */
    FOR_ROWS(i, m, n) {
        const real *x = (const real *)px + i * n;
        real *y = (real *)py + i * n;
        const float top = row_max(n, x), s = row_exp(n, x, top, keep ? y : NULL);
        const float log_s = ag_m_log(s), inv = 1.0f / s;
        FOR_VECTORS(j, n) {
            const vf v = vget_to((keep ? y : x) + j, n - j);
            vput_to(y + j, log ? v - top - log_s : (keep ? v : vexp(v - top)) * inv, n - j);
        }
    }
}

static void softmax_row_bwd(int64_t n, bool log, const real *y, const real *dy, real *dx,
                            bool acc)
{
    vtree t;
    vtree_start(&t);
    FOR_RUNS(b, n) {
        vf s = { 0 };
        FOR_RUN(j, b, n) {
            const vf d = vget_to(dy + j, n - j);
            s += log ? d : d * vget_to(y + j, n - j);
        }
        vtree_add(&t, s);
    }
    const float s = vtree_total(&t);
    FOR_VECTORS(j, n) {
        const vf d = vget_to(dy + j, n - j), v = vget_to(y + j, n - j);
        put_vector(dx + j, log ? d - vexp(v) * s : v * (d - s), n - j, acc);
    }
}

void AG_NAME(softmax_bwd)(int64_t m, int64_t n, bool log, const void *py, const void *pdy,
                          void *pdx, bool acc)
{
    const real *y = py, *dy = pdy;
    real *dx = pdx;
    FOR_ROWS(i, m, n)
        softmax_row_bwd(n, log, y + i * n, dy + i * n, dx + i * n, acc);
}

void AG_NAME(embedding_fwd)(int64_t m, int64_t d, const int32_t *ids, const void *ptable,
                            const void *ppos, int64_t t, int64_t pos0, void *py)
{
    const real *table = ptable, *pos = ppos;
    FOR_ROWS(i, m, d) {
        const real *e = table + ids[i] * d, *p = pos ? pos + (pos0 + i % t) * d : NULL;
        real *y = (real *)py + i * d;
        FOR_VECTORS(j, d) {
            const vf v = vget_to(e + j, d - j);
            vput_to(y + j, p ? v + vget_to(p + j, d - j) : v, d - j);
        }
    }
}

/* to[k] += from[k] */
static void add_to(int64_t k, const real *from, float *to)
{
    FOR_VECTORS(j, k)
        vstore_to(to + j, vload_to(to + j, k - j) + vget_to(from + j, k - j), k - j);
}

enum { SCATTER_COLUMNS = 64 };

void AG_NAME(embedding_bwd)(int64_t m, int64_t v, int64_t d, const int32_t *ids, const void *pdy,
                            int64_t t, int64_t pos0, void *pdtable, void *pdpos)
{
    const real *dy = pdy;
    float *dtable = pdtable, *dpos = pdpos;
    (void)v;
    #pragma omp parallel for schedule(static) if (m * d >= AG_PARALLEL_FROM)
    for (int64_t j = 0; j < d; j += SCATTER_COLUMNS) {
        const int64_t k = d - j < SCATTER_COLUMNS ? d - j : SCATTER_COLUMNS;
        for (int64_t i = 0; i < m; i++) {
            if (dtable)
                add_to(k, dy + i * d + j, dtable + ids[i] * d + j);
            if (dpos)
                add_to(k, dy + i * d + j, dpos + (pos0 + i % t) * d + j);
        }
    }
}

void AG_NAME(xent_fwd)(int64_t m, int64_t n, const void *px, const int32_t *target, void *plse,
                       void *loss)
{
    const real *x = px;
    float *lse = plse;
    FOR_ROWS(i, m, n) {
        const float top = row_max(n, x + i * n);
        lse[i] = top + ag_m_log(row_exp(n, x + i * n, top, NULL));
    }
    double s = 0;
    int64_t count = 0;
    for (int64_t i = 0; i < m; i++)
        if (target[i] >= 0) {
            s += (double)lse[i] - (double)get(x + i * n + target[i]);
            count++;
        }
    *(float *)loss = (float)(count ? s / (double)count : 0);
}

void AG_NAME(xent_bwd)(int64_t m, int64_t n, const void *px, const int32_t *target,
                       const void *plse, const void *dloss, void *pdx, bool acc)
{
    int64_t count = 0;
    for (int64_t i = 0; i < m; i++)
        count += target[i] >= 0;
    const float c = count ? *(const float *)dloss / (float)count : 0.0f;
    FOR_ROWS(i, m, n) {
        const real *x = (const real *)px + i * n;
        real *dx = (real *)pdx + i * n;
        const float lse = ((const float *)plse)[i];
        if (target[i] < 0) {
            if (!acc)
                memset(dx, 0, (size_t)n * sizeof *dx);
            continue;
        }
        const float before = acc ? get(dx + target[i]) : 0.0f;
        FOR_VECTORS(j, n)
            put_vector(dx + j, vexp(vget_to(x + j, n - j) - lse) * c, n - j, acc);
        put(dx + target[i], before + (ag_m_exp(get(x + target[i]) - lse) - 1.0f) * c);
    }
}

#if !defined(AG_STORAGE)

void AG_NAME(gather_fwd)(int64_t m, int64_t n, const int32_t *idx, const void *x, void *y)
{
    AG_NAME(embedding_fwd)(m, n, idx, x, NULL, 1, 0, y);
}

void AG_NAME(gather_bwd)(int64_t m, int64_t v, int64_t n, const int32_t *idx, const void *dy,
                         void *dx)
{
    AG_NAME(embedding_bwd)(m, v, n, idx, dy, 1, 0, dx, NULL);
}

void AG_NAME(pick_fwd)(int64_t m, int64_t n, const int32_t *idx, const void *x, void *y)
{
    for (int64_t i = 0; i < m; i++)
        ((float *)y)[i] = ((const float *)x)[i * n + idx[i]];
}

void AG_NAME(pick_bwd)(int64_t m, int64_t n, const int32_t *idx, const void *dy, void *dx)
{
    for (int64_t i = 0; i < m; i++)
        ((float *)dx)[i * n + idx[i]] += ((const float *)dy)[i];
}

/* The largest number so far in each lane, and where it is. */
typedef struct vbest { vf value, at; } vbest;

static vbest vbest_start(void) { return (vbest){ vset(-__builtin_inff()), (vf){ 0 } }; }

/* lanes hold numbers j .. j+VL, of which `left` count */
static void vbest_see(vbest *b, vf v, int64_t j, int64_t left)
{
    v = vhead(v, left, -__builtin_inff());
    /* strict, so the first of equals stays */
    b->at = vselect(b->value, v, (vf)(vlane() + (int32_t)j), b->at);
    b->value = vselect(b->value, v, v, b->value);
}

static int32_t vbest_at(const vbest *b)
{
    return vfirst_equal(b->value, vset(vmaxall(b->value)), (vi)b->at);
}

void AG_NAME(argmax)(int64_t m, int64_t n, const void *px, int32_t *idx)
{
    FOR_ROWS(i, m, n) {
        const float *x = (const float *)px + i * n;
        vbest b = vbest_start();
        FOR_VECTORS(j, n)
            vbest_see(&b, vload_to(x + j, n - j), j, n - j);
        idx[i] = vbest_at(&b);
    }
}

#include "autograd/cpu/controller_tmpl.h"

#endif
