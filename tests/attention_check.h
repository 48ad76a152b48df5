/*
 * attention_check.h -- runs attention problems on the kernels of every instruction set and compares
 * them with the oracle in f64.
 */
#ifndef ATTENTION_CHECK_H
#define ATTENTION_CHECK_H

#include "attention_oracle.h"
#include "tests/threads.h"

#define BOUND (8 * 0x1p-24)

static const ag_kernels *tables[8];
static int n_tables;

/* ---- comparison ---- */

/* Rows of tensor which against want [pairs, t, d] and its scale behind; times counts an accumulated
 * result. */
static void check(const problem *p, const char *name, int which, int grad, const double *want,
                  double times, const char *isa)
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
                        fail_msg("%s %s: tq %d tk %d d %d %d causal %d pos %d drop %g: "
                                 "[%d,%d,%d,%d] is %.9g, not %.9g, off by %.2f of the bound", isa,
                                 name, (int)p->a.tq, (int)p->a.tk, (int)p->a.d_qk, (int)p->a.d_v,
                                 p->a.causal, (int)p->a.q_pos0, p->a.drop, (int)b, (int)h, (int)t,
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
            size_t guards = 0,
                used = (size_t)(p->a.batch * length_of(p, which) * width_of(p, which));
            if (packed && which == Q)
                used = (size_t)(n_rows * (2 * width_of(p, Q) + width_of(p, V)));
            for (size_t i = 0; i < p->size[which]; i++)
                guards += is_guard(&p->buffer[grad][which][i]);
            if (guards != p->size[which] - used)
                fail_msg("%s: buffer %d %d has %zu guards, not %zu", isa, grad, which, guards,
                         p->size[which] - used);
        }
    for (int64_t i = 0; i < MARGIN; i++) {
        const int64_t after = MARGIN + p->a.batch * p->a.heads * p->a.tq + i;
        assert_true(is_guard(&p->lse[i]) && is_guard(&p->lse[after]));
        assert_true(is_guard(&p->delta[i]) && is_guard(&p->delta[after]));
    }
}

/* lengths [batch]: keys of each item; NULL: all */
static void run_keys(const shape *s, const ag_pattern *pattern, const int32_t *lengths)
{
    problem p;
    oracle r;
    pattern_init(&p, s, pattern);
    p.a.lengths = lengths;
    oracle_init(&r, &p.a);
    oracle_run(&p, &r);
    for (int k = 0; k < n_tables; k++) {
        const char *isa = tables[k]->name;
        problem_clear(&p);
        tables[k]->attention_fwd(&p.a);
        check(&p, "o", O, 0, r.o, 1, isa);
        const int64_t rows = s->batch * s->heads * s->tq;
        for (int64_t i = 0; i < rows; i++) {
            const double got = (double)((float *)p.a.lse)[i];
            if (isinf(r.lse[i])
                    ? got != r.lse[i]
                    : !(fabs(got - r.lse[i]) <= BOUND * (fabs(r.lse[i]) + r.lse[rows + i])))
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

static inline void run_pattern(const shape *s, const ag_pattern *pattern)
{
    run_keys(s, pattern, NULL);
}

static inline void run_case(const shape *s) { run_keys(s, NULL, NULL); }

/* Output, lse and gradients of a problem have the same bits for any number of threads. */
static void run_threads(const ag_kernels *table, const shape *s, const ag_pattern *pattern,
                        const int32_t *lengths)
{
    problem p[2];
    for (int i = 0; i < 2; i++) {
        pattern_init(&p[i], s, pattern);
        p[i].a.lengths = lengths;
    }
    for (int t = 0; t < 4; t++) {
        problem *x = &p[t > 0];
        set_threads((const int[]){ 1, 2, 3, 7 }[t]);
        problem_clear(x);
        table->attention_fwd(&x->a);
        table->attention_bwd(&x->a, &x->g);
        for (int which = Q; t > 0 && which < N_BUFFERS; which++)
            for (int grad = 0; grad < 2 && x->buffer[0][which]; grad++)
                assert_memory_equal(x->buffer[grad][which], p[0].buffer[grad][which],
                                    x->size[which] * sizeof(float));
        assert_memory_equal(x->a.lse, p[0].a.lse,
                            (size_t)(x->a.batch * x->a.heads * x->a.tq) * sizeof(float));
    }
    set_threads(2);
    problem_free(&p[0]);
    problem_free(&p[1]);
}

/* What comes from position `cut` on changes no bit of what was before. */
static void run_prefix(const ag_kernels *table, const shape *s, const ag_pattern *pattern,
                       int64_t cut)
{
    problem p[2];
    for (int i = 0; i < 2; i++) {
        pattern_init(&p[i], s, pattern);
        for (int64_t t = cut; i == 1 && t < s->tk; t++) {
            for (int64_t c = 0; c < s->heads * s->d_qk; c++) {
                row_of(&p[1], Q, 0, 0, t)[c] += 3.0f;
                row_of(&p[1], K, 0, 0, t)[c] *= -40.0f;
            }
            for (int64_t c = 0; c < s->heads * s->d_v; c++)
                row_of(&p[1], V, 0, 0, t)[c] += 1000.0f;
        }
        table->attention_fwd(&p[i].a);
    }
    for (int64_t t = 0; t < cut; t++)
        assert_memory_equal(row_of(&p[0], O, 0, 0, t), row_of(&p[1], O, 0, 0, t),
                            (size_t)(s->heads * s->d_v) * sizeof(float));
    problem_free(&p[0]);
    problem_free(&p[1]);
}

#endif
