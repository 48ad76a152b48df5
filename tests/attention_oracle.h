/*
 * attention_oracle.h -- attention problems in guarded buffers, and their results in f64.
 *
 * The oracle computes each output and, beside it, its natural scale: the same sum with absolute
 * values, times 1 + the largest sum |q||k| scale of the row, which is by how much rounding of the
 * scores is amplified by exp.  A kernel must stay within BOUND units of 2^-24 of that.
 */
#ifndef ATTENTION_ORACLE_H
#define ATTENTION_ORACLE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "autograd/kernels.h"

#define GUARD 0x7fc5a5a5u     /* a NaN: reading it is seen in the result, writing it in the bytes */

enum { MARGIN = 64, Q = 0, K = 1, V = 2, O = 3, N_BUFFERS = 4 };

typedef struct shape {
    int64_t batch, heads, tq, tk, d_qk, d_v;
    bool    causal;
    int64_t q_pos0;
    double  drop;
    bool    packed;   /* q, k, v slices of one [batch, t, heads*(2 d_qk + d_v) + row_gap] */
} shape;

static int64_t row_gap = 3;   /* numbers between rows */

/* The tensors of one problem: values and gradients of q, k, v, o, as strided rows in guarded
 * buffers. */
typedef struct problem {
    ag_attention a;
    ag_attention_grad g;
    float *buffer[2][N_BUFFERS];     /* [value, gradient]; NULL where it shares another's */
    size_t size[N_BUFFERS];          /* floats, margins included */
    float *lse, *delta;
} problem;

typedef struct oracle {              /* each with its scale behind it: [2][...], dense */
    double *o, *lse, *dq, *dk, *dv;
} oracle;

static float number(uint32_t site, uint64_t i)       /* in (-1.5, 1.5) */
{
    return 3.0f * ag_uniform(ag_noise_bits(42, 0, site, i)) - 1.5f;
}

static void *get(size_t n)
{
    void *p = malloc(n ? n : 1);
    assert_non_null(p);
    return p;
}

static void fill_guard(float *x, size_t n)
{
    const uint32_t word = GUARD;
    for (size_t i = 0; i < n; i++)
        memcpy(&x[i], &word, sizeof word);
}

static float *buffer_new(problem *p, int which, size_t n)
{
    p->size[which] = n + 2 * MARGIN;
    for (int grad = 0; grad < 2; grad++) {
        p->buffer[grad][which] = get(p->size[which] * sizeof(float));
        fill_guard(p->buffer[grad][which], p->size[which]);
    }
    return p->buffer[0][which] + MARGIN;
}

/* the row of position t of batch item b in value or gradient of tensor which */
static float *row_of(const problem *p, int which, int grad, int64_t b, int64_t t)
{
    const ag_attention *a = &p->a;
    const ag_attention_grad *g = &p->g;
    const void *base[2][4] = { { a->q, a->k, a->v, a->o }, { g->dq, g->dk, g->dv, g->do_ } };
    const int64_t row[4] = { a->q_row, a->k_row, a->v_row, a->o_row };
    const int64_t batch[4] = { a->q_batch, a->k_batch, a->v_batch, a->o_batch };
    return (float *)(uintptr_t)base[grad][which] + b * batch[which] + t * row[which];
}

static int64_t width_of(const problem *p, int which)
{
    return p->a.heads * (which == Q || which == K ? p->a.d_qk : p->a.d_v);
}

static int64_t length_of(const problem *p, int which)
{
    return which == Q || which == O ? p->a.tq : p->a.tk;
}

/* Fills the slices (not the gaps) of a tensor with numbers. */
static void fill(problem *p, int which, int grad, uint32_t site)
{
    uint64_t n = 0;
    for (int64_t b = 0; b < p->a.batch; b++)
        for (int64_t t = 0; t < length_of(p, which); t++)
            for (int64_t c = 0; c < width_of(p, which); c++)
                row_of(p, which, grad, b, t)[c] = number(site, n++);
}

/* pattern: NULL for none */
static void pattern_init(problem *p, const shape *s, const ag_pattern *pattern)
{
    memset(p, 0, sizeof *p);
    const int64_t wq = s->heads * s->d_qk, wv = s->heads * s->d_v, gap = row_gap;
    p->a = (ag_attention){ .batch = s->batch, .heads = s->heads, .tq = s->tq, .tk = s->tk,
                           .d_qk = s->d_qk, .d_v = s->d_v, .causal = s->causal, .q_pos0 = s->q_pos0,
                           .pattern = pattern,
                           .scale = 1 / sqrt((double)s->d_qk), .drop = s->drop,
                           .noise = { 0x123456789abcdefull, 7, 3, 5 } };
    ag_attention *a = &p->a;
    a->q_row = a->k_row = a->v_row = s->packed ? 2 * wq + wv + gap : wq + gap;
    if (!s->packed)
        a->v_row = wv + gap;
    a->o_row = wv + gap;
    a->q_batch = s->tq * a->q_row;
    a->k_batch = s->tk * a->k_row;
    a->v_batch = s->tk * a->v_row;
    a->o_batch = s->tq * a->o_row;
    float *q = buffer_new(p, Q, (size_t)(s->batch * a->q_batch));
    a->q = q;
    a->k = s->packed ? q + wq : buffer_new(p, K, (size_t)(s->batch * a->k_batch));
    a->v = s->packed ? q + 2 * wq : buffer_new(p, V, (size_t)(s->batch * a->v_batch));
    a->o = buffer_new(p, O, (size_t)(s->batch * a->o_batch));
    float *dq = p->buffer[1][Q] + MARGIN;
    p->g = (ag_attention_grad){ .dq = dq, .dk = s->packed ? dq + wq : p->buffer[1][K] + MARGIN,
                                .dv = s->packed ? dq + 2 * wq : p->buffer[1][V] + MARGIN,
                                .do_ = p->buffer[1][O] + MARGIN };
    const size_t rows = (size_t)(s->batch * s->heads * s->tq) + 2 * MARGIN;
    p->lse = get(rows * sizeof(float));
    p->delta = get(rows * sizeof(float));
    fill_guard(p->lse, rows);
    fill_guard(p->delta, rows);
    a->lse = p->lse + MARGIN;
    p->g.delta = p->delta + MARGIN;
    for (int which = Q; which <= V; which++)
        fill(p, which, 0, (uint32_t)which);
    fill(p, O, 1, 9);
}

/* Forgets the results, so that what a kernel leaves out is seen. */
static inline void problem_clear(problem *p)
{
    const size_t rows = (size_t)(p->a.batch * p->a.heads * p->a.tq) + 2 * MARGIN;
    fill_guard(p->buffer[0][O], p->size[O]);
    for (int which = Q; which <= V; which++)
        if (p->buffer[1][which])
            fill_guard(p->buffer[1][which], p->size[which]);
    fill_guard(p->lse, rows);
    fill_guard(p->delta, rows);
}

static inline void problem_init(problem *p, const shape *s) { pattern_init(p, s, NULL); }

static void problem_free(problem *p)
{
    for (int i = 0; i < N_BUFFERS; i++) {
        free(p->buffer[0][i]);
        free(p->buffer[1][i]);
    }
    free(p->lse);
    free(p->delta);
}

/* ---- the oracle ---- */

static void oracle_init(oracle *r, const ag_attention *a)
{
    const size_t n = (size_t)(a->batch * a->heads) * 2 * sizeof(double);
    const size_t tq = (size_t)a->tq, tk = (size_t)a->tk, dk = (size_t)a->d_qk, dv = (size_t)a->d_v;
    r->o = calloc(n * tq * dv + 1, 1);
    r->lse = calloc(n * tq + 1, 1);
    r->dq = calloc(n * tq * dk + 1, 1);
    r->dk = calloc(n * tk * dk + 1, 1);
    r->dv = calloc(n * tk * dv + 1, 1);
    assert_true(r->o && r->lse && r->dq && r->dk && r->dv);
}

static void oracle_free(oracle *r)
{
    double *const all[] = { r->o, r->lse, r->dq, r->dk, r->dv };
    for (int i = 0; i < 5; i++)
        free(all[i]);
}

static double dot(int64_t n, const float *x, const float *y, double *ret_abs)
{
    double s = 0, t = 0;
    for (int64_t i = 0; i < n; i++) {
        s += (double)x[i] * (double)y[i];
        t += fabs((double)x[i] * (double)y[i]);
    }
    *ret_abs = t;
    return s;
}

static void axpy(int64_t n, double c, double c_abs, const float *x, double *y, double *y_abs)
{
    for (int64_t i = 0; i < n; i++) {
        y[i] += c * (double)x[i];
        y_abs[i] += c_abs * fabs((double)x[i]);
    }
}

/* Does the pattern, where there is one, show key j to query i? */
static bool shows(const ag_attention *a, int64_t h, int64_t i, int64_t j)
{
    return !a->pattern || ag_pattern_has(a->pattern, (int)h, i + a->q_pos0, j);
}

/* One query: out and gradients; y_abs of everything lies `half` of its array further. */
static void oracle_query(const problem *p, int64_t b, int64_t h, int64_t i, oracle *r, double *work)
{
    const ag_attention *a = &p->a;
    const int64_t pairs = a->batch * a->heads, pair = b * a->heads + h, row = pair * a->tq + i;
    const int64_t all = a->lengths ? a->lengths[b] : a->tk;
    const int64_t end = a->causal && i + a->q_pos0 + 1 < all ? i + a->q_pos0 + 1 : all;
    const float *q = row_of(p, Q, 0, b, i) + h * a->d_qk,
        *grad = row_of(p, O, 1, b, i) + h * a->d_v;
    double *s = work, *dp = work + a->tk, *dp_abs = dp + a->tk, *keep = dp_abs + a->tk;
    double top = -INFINITY, sum = 0, amp = 1, delta = 0, delta_abs = 0, t;
    for (int64_t j = 0; j < end; j++) {
        s[j] = -INFINITY;
        if (!shows(a, h, i, j)) continue;
        s[j] = a->scale * dot(a->d_qk, q, row_of(p, K, 0, b, j) + h * a->d_qk, &t);
        amp = fmax(amp, 1 + a->scale * t);
        top = fmax(top, s[j]);
    }
    for (int64_t j = 0; j < end; j++)
        sum += shows(a, h, i, j) ? exp(s[j] - top) : 0;
    r->lse[row] = sum > 0 ? top + log(sum) : (double)-INFINITY;
    r->lse[pairs * a->tq + row] = amp;
    double *o = r->o + row * a->d_v, *dq = r->dq + row * a->d_qk;
    for (int64_t j = 0; j < end; j++) {
        if (!shows(a, h, i, j)) continue;
        const float *v = row_of(p, V, 0, b, j) + h * a->d_v;
        const bool kept = ag_noise_at(&a->noise, row, j, a->tk) >= ag_drop_threshold(a->drop);
        keep[j] = kept ? 1 / (1 - a->drop) : 0;
        s[j] = exp(s[j] - r->lse[row]);
        axpy(a->d_v, s[j] * keep[j], s[j] * keep[j] * amp, v, o, o + pairs * a->tq * a->d_v);
        dp[j] = keep[j] * dot(a->d_v, grad, v, &dp_abs[j]);
        dp_abs[j] *= keep[j];
        delta += s[j] * dp[j];
        delta_abs += s[j] * dp_abs[j];
        double *dv = r->dv + (pair * a->tk + j) * a->d_v;
        axpy(a->d_v, s[j] * keep[j], s[j] * keep[j] * amp, grad, dv, dv + pairs * a->tk * a->d_v);
    }
    for (int64_t j = 0; j < end; j++) {
        if (!shows(a, h, i, j)) continue;
        const double ds = a->scale * s[j] * (dp[j] - delta),
            abs = a->scale * s[j] * (dp_abs[j] + delta_abs) * amp;
        double *dk = r->dk + (pair * a->tk + j) * a->d_qk;
        axpy(a->d_qk, ds, abs, row_of(p, K, 0, b, j) + h * a->d_qk, dq,
             dq + pairs * a->tq * a->d_qk);
        axpy(a->d_qk, ds, abs, q, dk, dk + pairs * a->tk * a->d_qk);
    }
}

static void oracle_run(const problem *p, oracle *r)
{
    double *work = get((size_t)p->a.tk * 4 * sizeof *work);
    for (int64_t b = 0; b < p->a.batch; b++)
        for (int64_t h = 0; h < p->a.heads; h++)
            for (int64_t i = 0; i < p->a.tq; i++)
                oracle_query(p, b, h, i, r, work);
    free(work);
}

#endif
