/*
 * test_attention.c -- attention kernels of every instruction set against an oracle in f64.
 *
 * The oracle computes each output and, beside it, its natural scale: the same sum with absolute values,
 * times 1 + the largest sum |q||k| scale of the row, which is by how much rounding of the scores is
 * amplified by exp.  A kernel must stay within BOUND units of 2^-24 of that.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include "autograd/kernels.h"

#define BOUND (8 * 0x1p-24)
#define GUARD 0x7fc5a5a5u            /* a NaN: reading it is seen in the result, writing it in the bytes */

enum { MARGIN = 64, Q = 0, K = 1, V = 2, O = 3, N_BUFFERS = 4 };

typedef struct shape {
    int64_t batch, heads, tq, tk, d_qk, d_v;
    bool    causal;
    int64_t q_pos0;
    double  drop;
    bool    packed;                  /* q, k, v slices of one [batch, t, heads*(2 d_qk + d_v) + 3] */
} shape;

/* The tensors of one problem: values and gradients of q, k, v, o, as strided rows in guarded buffers. */
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

static const ag_kernels *tables[8];
static int n_tables;

static void set_threads(int n)
{
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

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

static int64_t length_of(const problem *p, int which) { return which == Q || which == O ? p->a.tq : p->a.tk; }

/* Fills the slices (not the gaps) of a tensor with numbers. */
static void fill(problem *p, int which, int grad, uint32_t site)
{
    uint64_t n = 0;
    for (int64_t b = 0; b < p->a.batch; b++)
        for (int64_t t = 0; t < length_of(p, which); t++)
            for (int64_t c = 0; c < width_of(p, which); c++)
                row_of(p, which, grad, b, t)[c] = number(site, n++);
}

static void problem_init(problem *p, const shape *s)
{
    memset(p, 0, sizeof *p);
    const int64_t wq = s->heads * s->d_qk, wv = s->heads * s->d_v, gap = 3;
    p->a = (ag_attention){ .batch = s->batch, .heads = s->heads, .tq = s->tq, .tk = s->tk, .d_qk = s->d_qk,
                           .d_v = s->d_v, .causal = s->causal, .q_pos0 = s->q_pos0,
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

/* One query: out and gradients; y_abs of everything lies `half` of its array further. */
static void oracle_query(const problem *p, int64_t b, int64_t h, int64_t i, oracle *r, double *work)
{
    const ag_attention *a = &p->a;
    const int64_t pairs = a->batch * a->heads, pair = b * a->heads + h, row = pair * a->tq + i;
    const int64_t end = !a->causal ? a->tk : i + a->q_pos0 + 1 < a->tk ? i + a->q_pos0 + 1 : a->tk;
    const float *q = row_of(p, Q, 0, b, i) + h * a->d_qk, *grad = row_of(p, O, 1, b, i) + h * a->d_v;
    double *s = work, *dp = work + a->tk, *dp_abs = dp + a->tk, *keep = dp_abs + a->tk;
    double top = -INFINITY, sum = 0, amp = 1, delta = 0, delta_abs = 0, t;
    for (int64_t j = 0; j < end; j++) {
        s[j] = a->scale * dot(a->d_qk, q, row_of(p, K, 0, b, j) + h * a->d_qk, &t);
        amp = fmax(amp, 1 + a->scale * t);
        top = fmax(top, s[j]);
    }
    for (int64_t j = 0; j < end; j++)
        sum += exp(s[j] - top);
    r->lse[row] = sum > 0 ? top + log(sum) : (double)-INFINITY;
    r->lse[pairs * a->tq + row] = amp;
    double *o = r->o + row * a->d_v, *dq = r->dq + row * a->d_qk;
    for (int64_t j = 0; j < end; j++) {
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
        const double ds = a->scale * s[j] * (dp[j] - delta), abs = a->scale * s[j] * (dp_abs[j] + delta_abs) * amp;
        double *dk = r->dk + (pair * a->tk + j) * a->d_qk;
        axpy(a->d_qk, ds, abs, row_of(p, K, 0, b, j) + h * a->d_qk, dq, dq + pairs * a->tq * a->d_qk);
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

/* ---- comparison ---- */

/* Rows of tensor which against want [pairs, t, d] and its scale behind; times counts an accumulated result. */
static void check(const problem *p, const char *name, int which, int grad, const double *want, double times,
                  const char *isa)
{
    const int64_t t_end = length_of(p, which), d = width_of(p, which) / p->a.heads;
    const double *scale = want + p->a.batch * p->a.heads * t_end * d;
    for (int64_t b = 0; b < p->a.batch; b++)
        for (int64_t h = 0; h < p->a.heads; h++)
            for (int64_t t = 0; t < t_end; t++)
                for (int64_t c = 0; c < d; c++, want++, scale++) {
                    const double got = (double)row_of(p, which, grad, b, t)[h * d + c];
                    const double error = fabs(got - *want * times);
                    if (!(error <= BOUND * *scale * times))
                        fail_msg("%s %s: tq %d tk %d d %d %d causal %d pos %d drop %g: [%d,%d,%d,%d] is %.9g, not %.9g,"
                                 " off by %.2f of the bound", isa, name, (int)p->a.tq, (int)p->a.tk, (int)p->a.d_qk,
                                 (int)p->a.d_v, p->a.causal, (int)p->a.q_pos0, p->a.drop, (int)b, (int)h, (int)t,
                                 (int)c, got, *want * times, error / (BOUND * *scale * times));
                }
}

static bool is_guard(const float *x)
{
    uint32_t word;
    memcpy(&word, x, sizeof word);
    return word == GUARD;
}

/* What lies outside the slices must be as it was: count the guards of each buffer. */
static void check_guards(const problem *p, const char *isa)
{
    const int64_t n_rows = p->a.batch * p->a.tq, packed = !p->buffer[0][K];
    for (int grad = 0; grad < 2; grad++)
        for (int which = Q; which < N_BUFFERS; which++) {
            if (!p->buffer[grad][which])
                continue;
            size_t guards = 0, used = (size_t)(p->a.batch * length_of(p, which) * width_of(p, which));
            if (packed && which == Q)
                used = (size_t)(n_rows * (2 * width_of(p, Q) + width_of(p, V)));
            for (size_t i = 0; i < p->size[which]; i++)
                guards += is_guard(&p->buffer[grad][which][i]);
            if (guards != p->size[which] - used)
                fail_msg("%s: buffer %d %d has %zu guards, not %zu", isa, grad, which, guards, p->size[which] - used);
        }
    for (int64_t i = 0; i < MARGIN; i++) {
        const int64_t after = MARGIN + p->a.batch * p->a.heads * p->a.tq + i;
        assert_true(is_guard(&p->lse[i]) && is_guard(&p->lse[after]));
        assert_true(is_guard(&p->delta[i]) && is_guard(&p->delta[after]));
    }
}

static void run_case(const shape *s)
{
    problem p;
    oracle r;
    problem_init(&p, s);
    oracle_init(&r, &p.a);
    oracle_run(&p, &r);
    for (int k = 0; k < n_tables; k++) {
        const char *isa = tables[k]->name;
        tables[k]->attention_fwd(&p.a);
        check(&p, "o", O, 0, r.o, 1, isa);
        const int64_t rows = s->batch * s->heads * s->tq;
        for (int64_t i = 0; i < rows; i++) {
            const double got = (double)((float *)p.a.lse)[i];
            if (isinf(r.lse[i]) ? got != r.lse[i] : !(fabs(got - r.lse[i]) <= BOUND * (fabs(r.lse[i]) + r.lse[rows + i])))
                fail_msg("%s: lse[%d] is %.9g, not %.9g", isa, (int)i, got, r.lse[i]);
        }
        for (int times = 1; times <= 2; times++) {
            p.g.acc = times == 2;
            tables[k]->attention_bwd(&p.a, &p.g);
            check(&p, "dq", Q, 1, r.dq, times, isa);
            check(&p, "dk", K, 1, r.dk, times, isa);
            check(&p, "dv", V, 1, r.dv, times, isa);
        }
        check_guards(&p, isa);
    }
    oracle_free(&r);
    problem_free(&p);
}

/* ---- tests ---- */
static void lengths(void **state)
{
    static const int64_t t[] = { 1, 2, 7, 8, 9, 16, 63, 64, 65, 130, 257 };
    (void)state;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++)
        for (int causal = 0; causal < 2; causal++) {
            run_case(&(shape){ 2, 3, t[i], t[i], 32, 32, causal, 0, 0, true });
            run_case(&(shape){ 1, 2, t[i], t[i], 17, 8, causal, 0, 0.3, true });
        }
}

static void widths(void **state)
{
    static const int64_t d[] = { 1, 8, 17, 32, 64, 80, 96, 256 };
    (void)state;
    for (size_t i = 0; i < sizeof d / sizeof *d; i++)
        for (size_t j = 0; j < sizeof d / sizeof *d; j++)
            run_case(&(shape){ 1, 2, 70, 70, d[i], d[j], true, 0, (i + j) % 2 * 0.3, i % 2 });
    run_case(&(shape){ 1, 1, 20, 20, 257, 64, true, 0, 0, false });
    run_case(&(shape){ 1, 1, 20, 20, 64, 300, true, 0, 0.3, false });
}

static void offsets(void **state)
{
    (void)state;
    for (int causal = 0; causal < 2; causal++)
        for (int dropped = 0; dropped < 2; dropped++) {
            const double drop = dropped * 0.3;
            run_case(&(shape){ 1, 2, 100, 130, 64, 64, causal, 30, drop, false });
            run_case(&(shape){ 1, 2, 100, 130, 64, 32, causal, 0, drop, false });
            run_case(&(shape){ 2, 1, 130, 70, 64, 64, causal, 5, drop, false });
            run_case(&(shape){ 1, 1, 65, 200, 32, 64, causal, 135, drop, false });
            run_case(&(shape){ 1, 2, 1, 200, 64, 64, causal, 150, drop, false });
            run_case(&(shape){ 1, 2, 5, 77, 17, 33, causal, 72, drop, false });
            run_case(&(shape){ 1, 2, 3, 1300, 64, 64, causal, 1250, drop, false });
            run_case(&(shape){ 1, 2, 40, 1300, 64, 64, causal, 1250, drop, false });
        }
}

static void rows_without_keys(void **state)
{
    (void)state;
    run_case(&(shape){ 1, 2, 130, 130, 32, 32, true, -70, 0, false });
    run_case(&(shape){ 1, 2, 130, 130, 32, 32, true, -20, 0.3, false });
    run_case(&(shape){ 1, 2, 20, 20, 32, 32, true, -3, 0, true });
    run_case(&(shape){ 1, 2, 6, 20, 32, 32, true, -3, 0.3, false });
    run_case(&(shape){ 1, 2, 6, 600, 32, 32, true, -3, 0, false });
    run_case(&(shape){ 1, 1, 30, 40, 32, 32, true, -100, 0, false });
    run_case(&(shape){ 2, 2, 3, 0, 32, 32, false, 0, 0, false });
    run_case(&(shape){ 2, 2, 70, 0, 32, 32, true, 0, 0, false });
    run_case(&(shape){ 2, 2, 0, 5, 32, 32, true, 0, 0, false });
    run_case(&(shape){ 0, 2, 5, 5, 32, 32, true, 0, 0, false });
}

/* Output, lse and gradients have the same bits for any number of threads. */
static void threads(void **state)
{
    static const shape shapes[] = {
        { 1, 1, 300, 300, 64, 64, true, 0, 0.3, true },   { 3, 1, 300, 300, 32, 64, true, 0, 0, true },
        { 2, 4, 130, 130, 64, 64, false, 0, 0.2, true },  { 1, 1, 1, 2000, 64, 64, true, 1999, 0, false },
        { 1, 1, 40, 1300, 64, 64, true, 1260, 0, false }, { 5, 1, 8, 1025, 64, 17, false, 0, 0, false },
    };
    (void)state;
    for (int k = 0; k < n_tables; k++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            problem p[2];
            problem_init(&p[0], &shapes[i]);
            problem_init(&p[1], &shapes[i]);
            for (int t = 0; t < 4; t++) {
                problem *x = &p[t > 0];
                set_threads((const int[]){ 1, 2, 3, 7 }[t]);
                tables[k]->attention_fwd(&x->a);
                tables[k]->attention_bwd(&x->a, &x->g);
                for (int which = Q; t > 0 && which < N_BUFFERS; which++)
                    for (int grad = 0; grad < 2 && x->buffer[0][which]; grad++)
                        assert_memory_equal(x->buffer[grad][which], p[0].buffer[grad][which],
                                            x->size[which] * sizeof(float));
                assert_memory_equal(x->a.lse, p[0].a.lse,
                                    (size_t)(x->a.batch * x->a.heads * x->a.tq) * sizeof(float));
            }
            problem_free(&p[0]);
            problem_free(&p[1]);
        }
}

/* Causal: what comes later changes no bit of what was before. */
static void prefix(void **state)
{
    (void)state;
    for (int k = 0; k < n_tables; k++)
        for (int64_t cut = 1; cut < 200; cut += 11) {
            problem p[2];
            for (int i = 0; i < 2; i++) {
                problem_init(&p[i], &(shape){ 1, 2, 200, 200, 64, 32, true, 0, 0.2, false });
                for (int64_t t = cut; i == 1 && t < 200; t++)
                    for (int64_t c = 0; c < 64; c++) {
                        row_of(&p[1], K, 0, 0, t)[c] *= -40.0f;
                        row_of(&p[1], V, 0, 0, t)[c] += 1000.0f;
                    }
                tables[k]->attention_fwd(&p[i].a);
            }
            for (int64_t t = 0; t < cut; t++)
                assert_memory_equal(row_of(&p[0], O, 0, 0, t), row_of(&p[1], O, 0, 0, t), 64 * sizeof(float));
            problem_free(&p[0]);
            problem_free(&p[1]);
        }
}

/* One query at a time with the keys of a cache gives the rows of the whole. */
static void decoding(void **state)
{
    enum { T = 700, D = 64, H = 2 };
    (void)state;
    for (int k = 0; k < n_tables; k++) {
        problem p;
        problem_init(&p, &(shape){ 1, H, T, T, D, D, true, 0, 0, false });
        tables[k]->attention_fwd(&p.a);
        for (int64_t t = 0; t < T; t += 13) {
            float o[H * D], lse[H];
            ag_attention one = p.a;
            one.tq = 1;
            one.q_pos0 = t;
            one.q = row_of(&p, Q, 0, 0, t);
            one.o = o;
            one.lse = lse;
            tables[k]->attention_fwd(&one);
            for (int i = 0; i < H * D; i++)
                assert_true(fabsf(o[i] - row_of(&p, O, 0, 0, t)[i]) <= 1e-6f);
            for (int h = 0; h < H; h++)
                assert_true(fabsf(lse[h] - ((float *)p.a.lse)[h * T + t]) <= 2e-6f);
        }
        problem_free(&p);
    }
}

/* Scores of hundreds neither overflow nor make NaN. */
static void large_scores(void **state)
{
    (void)state;
    for (int k = 0; k < n_tables; k++)
        for (int64_t t = 5; t < 300; t += 90) {
            problem p;
            problem_init(&p, &(shape){ 1, 1, t, t, 16, 16, true, 0, 0, true });
            p.a.scale = 300;
            tables[k]->attention_fwd(&p.a);
            tables[k]->attention_bwd(&p.a, &p.g);
            for (int64_t i = 0; i < t; i++)
                for (int c = 0; c < 16; c++) {
                    assert_true(fabsf(row_of(&p, O, 0, 0, i)[c]) <= 1.6f);
                    assert_true(isfinite(row_of(&p, Q, 1, 0, i)[c]) && isfinite(row_of(&p, K, 1, 0, i)[c]));
                }
            problem_free(&p);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lengths),  cmocka_unit_test(widths), cmocka_unit_test(offsets),
        cmocka_unit_test(rows_without_keys), cmocka_unit_test(threads), cmocka_unit_test(prefix),
        cmocka_unit_test(decoding), cmocka_unit_test(large_scores),
    };
    n_tables = ag_kernels_all(AG_F32, tables, 8);
    set_threads(2);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
