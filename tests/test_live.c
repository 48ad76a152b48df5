/*
 * test_live.c -- live units and the controller with its last matrix, of every table against the
 * reference; and a row alone gives the bits that it has among others.
 */
#include "kernel_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* rows, d, blocks, n, width, picks */
static const int64_t shapes[][6] = {
    { 0, 8, 2, 4, 1, 1 }, { 1, 1, 1, 1, 1, 1 }, { 3, 7, 0, 4, 1, 1 }, { 5, 0, 2, 3, 1, 1 },
    { 1, 17, 5, 4, 1, 1 }, { 4, 31, 3, 5, 2, 1 }, { 7, 33, 2, 6, 1, 3 }, { 9, 100, 8, 50, 1, 1 },
    { 6, 129, 1, 8, 24, 1 }, { 1, 384, 24, 64, 1, 1 }, { 600, 64, 3, 70, 1, 2 },
    { 1100, 40, 2, 16, 3, 1 }, { 65, 400, 24, 64, 1, 1 }, { 3, 1030, 2, 300, 1, 1 },
    { 2, 48, 40, 5, 3, 4 },
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static double *sums_new(int64_t n)
{
    double *s = calloc((size_t)n + 1, sizeof *s);
    assert_non_null(s);
    return s;
}

/* ---- live units ---- */

typedef struct live_case {
    ag_live l;
    bool acc;
    const float *x, *w, *h, *bias, *residual;
} live_case;

static void run_dot(const ag_kernels *k, const void *arg, void *const y[])
{
    const live_case *c = arg;
    k->live_dot(&c->l, c->x, c->w, c->bias, y[0]);
}

static void run_sum(const ag_kernels *k, const void *arg, void *const y[])
{
    const live_case *c = arg;
    k->live_sum(&c->l, c->h, c->w, c->bias, c->residual, y[0], c->acc);
}

static void run_grad(const ag_kernels *k, const void *arg, void *const y[])
{
    const live_case *c = arg;
    k->live_grad(&c->l, c->h, c->x, y[0], y[1]);
    k->live_grad(&c->l, c->h, c->x, NULL, y[2]);
    k->live_grad(&c->l, c->h, c->x, y[3], NULL);
}

static int64_t live_size(const ag_live *l) { return l->blocks * l->picks * l->width; }
static int64_t live_units(const ag_live *l) { return l->blocks * l->n * l->width; }

/* The sums of magnitudes that bound the errors. */
typedef struct live_scales { double *dot, *sum, *dw, *dbias; } live_scales;

static live_scales scales_of(const live_case *c)
{
    const ag_live *l = &c->l;
    const int64_t size = live_size(l), units = live_units(l);
    live_scales s = { sums_new(l->rows * size), sums_new(l->rows * l->d), sums_new(units * l->d),
                      sums_new(units) };
    for (int64_t r = 0; r < l->rows; r++)
        for (int64_t j = 0; j < size; j++) {
            const int64_t pick = j / l->width, block = pick / l->picks;
            const int64_t u = (block * l->n + l->choice[r * l->blocks * l->picks + pick])
                * l->width + j % l->width;
            const double h = fabs((double)c->h[r * size + j]);
            s.dot[r * size + j] = 1;
            s.dbias[u] += h;
            for (int64_t i = 0; i < l->d; i++) {
                const double x = fabs((double)c->x[r * l->d + i]),
                    w = fabs((double)c->w[u * l->d + i]);
                s.dot[r * size + j] += x * w;
                s.sum[r * l->d + i] += h * w;
                s.dw[u * l->d + i] += h * x;
            }
        }
    for (int64_t i = 0; i < l->rows * l->d; i++)
        s.sum[i] += 3;
    for (int64_t i = 0; i < units; i++)
        s.dbias[i] += 1;
    for (int64_t i = 0; i < units * l->d; i++)
        s.dw[i] += 1;
    return s;
}

static void scales_free(live_scales *s)
{
    free(s->dot), free(s->sum), free(s->dw), free(s->dbias);
}

static float *rectified(int64_t n, uint64_t seed)
{
    float *h = floats(n, -1, 1, seed);
    for (int64_t i = 0; i < n; i++)
        h[i] = h[i] > 0 ? h[i] : 0;
    return h;
}

static void check_live(const int64_t s[6])
{
    live_case c = { .l = { .rows = s[0], .d = s[1], .blocks = s[2], .n = s[3], .width = s[4],
                           .picks = s[5] } };
    ag_live *l = &c.l;
    const int64_t size = live_size(l), units = live_units(l);
    float *x = floats(s[0] * s[1], -1, 1, 1), *w = floats(units * s[1], -1, 1, 2);
    float *h = rectified(s[0] * size, 3), *dot_bias = floats(units, -1, 1, 4),
        *sum_bias = floats(s[1], -1, 1, 5), *residual = floats(s[0] * s[1], -1, 1, 6);
    int32_t *choice = ints(s[0] * s[2] * s[5], 0, (int32_t)s[3], 7);
    for (int64_t i = 0; i < s[0] * s[2]; i++)             /* no unit is listed twice */
        for (int64_t k = 1; k < s[5]; k++)
            choice[i * s[5] + k] = (choice[i * s[5]] + (int32_t)k) % (int32_t)s[3];
    l->choice = choice;
    c.x = x, c.w = w, c.h = h;
    live_scales scale = scales_of(&c);
    for (int full = 0; full < 2; full++) {
        c.bias = full ? dot_bias : NULL;
        check_kernel("live_dot", run_dot, &c, 1,
                     &(out){ .n = s[0] * size, .c = 8, .scale = scale.dot });
    }
    for (int options = 0; options < 8; options++) {
        c.bias = options & 1 ? sum_bias : NULL;
        c.residual = options & 2 ? residual : NULL;
        c.acc = options & 4;
        check_kernel("live_sum", run_sum, &c, 1,
                     &(out){ .n = s[0] * s[1], .adds = c.acc, .c = 8, .scale = scale.sum });
    }
    const out dw = { .n = units * s[1], .adds = true, .c = 12, .scale = scale.dw },
        dbias = { .n = units, .adds = true, .c = 12, .scale = scale.dbias };
    check_kernel("live_grad", run_grad, &c, 4, (const out[4]){ dw, dbias, dbias, dw });
    scales_free(&scale);
    free(x), free(w), free(h), free(dot_bias), free(sum_bias), free(residual), free(choice);
}

static void test_live(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i++)
        check_live(shapes[i]);
}

/* Weights of units whose h is 0 are not read. */
static void test_zeros_are_skipped(void **state)
{
    const ag_kernels *all[MAX_TABLES];
    const int n_tables = ag_kernels_all(AG_F32, all, MAX_TABLES);
    float w[8 * 40], h[4] = { 0, 2, 0, 0 }, y[40];
    const int32_t choice[4] = { 1, 0, 1, 0 };
    const ag_live l = { .rows = 1, .d = 40, .blocks = 4, .n = 2, .width = 1, .picks = 1,
                        .choice = choice };
    (void)state;
    for (int i = 0; i < 8 * 40; i++)
        w[i] = i / 40 == 2 ? (float)i : NAN;
    for (int t = 0; t < n_tables; t++) {
        all[t]->live_sum(&l, h, w, NULL, NULL, y, false);
        for (int i = 0; i < 40; i++)
            assert_true(y[i] == 2 * w[80 + i]);
    }
}

/* ---- gates ---- */

typedef struct gate_case {
    int64_t m, width;
    bool acc;
    const float *a, *gate, *dh;
} gate_case;

static void run_gate(const ag_kernels *k, const void *arg, void *const y[])
{
    const gate_case *c = arg;
    const size_t bytes = (size_t)(c->m * c->width) * sizeof(float);
    k->gate_fwd(c->m, c->width, c->a, c->gate, y[0]);
    k->gate_bwd(c->m, c->width, c->a, c->gate, c->dh, y[1], y[2], c->acc);
    k->gate_bwd(c->m, c->width, c->a, c->gate, c->dh, NULL, y[3], c->acc);
    memcpy(y[4], c->dh, bytes);
    k->gate_bwd(c->m, c->width, c->a, c->gate, y[4], y[4], NULL, c->acc);
}

static void test_gates(void **state)
{
    static const int64_t shape[][2] =
        { { 0, 3 }, { 1, 1 }, { 37, 1 }, { 5, 3 }, { 9, 24 }, { 30011, 1 }, { 1001, 33 } };
    (void)state;
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        for (int options = 0; options < 4; options++) {
            const int64_t m = shape[i][0], size = m * shape[i][1];
            float *a = floats(size, -1, 1, 1), *gate = floats(m, 0, 1, 2),
                *dh = floats(size, -1, 1, 3);
            const gate_case c = { m, shape[i][1], options & 1, a, options & 2 ? gate : NULL, dh };
            const double terms = 2 + (double)shape[i][1];
            const out dgate = { .n = m, .adds = c.acc, .c = terms };
            check_kernel("gate", run_gate, &c, 5,
                         (const out[5]){ { .n = size, .exact = true }, { .n = size, .exact = true },
                                         dgate, dgate, { .n = size, .exact = true } });
            free(a), free(gate), free(dh);
        }
}

/* ---- the controller ---- */

typedef struct choose_case {
    ag_chooser c;
    bool acc, sums;
    const int32_t *choice;
    const float *dgate;
    void *scratch;
} choose_case;

static void run_choose(const ag_kernels *k, const void *arg, void *const y[])
{
    const choose_case *c = arg;
    k->choose_fwd(&c->c, y[0], y[1], c->scratch);
}

static void run_choose_bwd(const ag_kernels *k, const void *arg, void *const y[])
{
    const choose_case *c = arg;
    k->choose_bwd(&c->c, c->choice, c->dgate, y[0], c->acc, c->sums ? y[1] : NULL,
                  c->sums ? y[2] : NULL, c->scratch);
    k->choose_bwd(&c->c, c->choice, c->dgate, NULL, false, NULL, c->c.cb ? y[3] : NULL, c->scratch);
}

/* Multiples of 1/8, so that z has no rounding error and choices are the same in every table. */
static float *eighths(int64_t n, uint64_t seed)
{
    float *x = floats(n, -8, 9, seed);
    for (int64_t i = 0; i < n; i++)
        x[i] = floorf(x[i]) / 8;
    return x;
}

static int64_t gate_size(const ag_chooser *c)
{
    return c->c.rows * c->c.blocks * (c->all ? c->c.n : c->picks);
}

/* Bounds of the gradients: sums of |p (dp - sum p dp) / t| times what they are multiplied with. */
static void choose_scales(const ag_chooser *c, const int32_t *choice, const float *dgate,
                          double *dlow, double *dc2, double *dcb)
{
    const int64_t n = c->c.n, units = c->c.blocks * n, size = c->c.rows * units;
    const float *low = c->low, *c2 = c->c2, *cb = c->cb;
    float *z = floats(size, 0, 1, 1), *mask = floats(size, 0, 1, 1), *p = floats(size, 0, 1, 1);
    int32_t *again = ints(c->c.rows * c->c.blocks, 0, 1, 1);
    for (int64_t i = 0; i < size; i++) {
        z[i] = cb ? cb[i % units] : 0;
        for (int64_t k = 0; k < c->rank; k++)
            z[i] += low[i / units * c->rank + k] * c2[k * units + i % units];
    }
    ag_kernels_ref(AG_F32)->controller_fwd(&c->c, z, mask, again, p);
    const double t = c->c.relaxed && c->c.temperature != 0 ? c->c.temperature : 1;
    const int64_t listed = c->all ? n : c->picks;
    for (int64_t b = 0; b < c->c.rows * c->c.blocks; b++) {
        double *dp = sums_new(n), s = 0;
        for (int64_t j = 0; j < listed; j++) {
            const int64_t at = c->all ? j : choice[b * c->picks + j];
            dp[at] = fabs((double)dgate[b * listed + j]);
            s += (double)p[b * n + at] * dp[at];
        }
        for (int64_t j = 0; j < n; j++) {
            const int64_t r = b / c->c.blocks, u = b % c->c.blocks * n + j;
            const double dz = (double)p[b * n + j] * (dp[j] + s) / t;
            dcb[u] += dz;
            for (int64_t k = 0; k < c->rank; k++) {
                dlow[r * c->rank + k] += dz * fabs((double)c2[k * units + u]);
                dc2[k * units + u] += dz * fabs((double)low[r * c->rank + k]);
            }
        }
        free(dp);
    }
    free(z), free(mask), free(p), free(again);
}

static void check_choose(ag_chooser a)
{
    const int64_t rows = a.c.rows, units = a.c.blocks * a.c.n, picked = rows * a.c.blocks * a.picks;
    float *low = eighths(rows * a.rank, 1), *c2 = eighths(a.rank * units, 2),
        *cb = eighths(units, 3), *dgate = rectified(gate_size(&a), 4),
        *gate = floats(gate_size(&a), 0, 1, 5);
    int32_t *choice = ints(picked, 0, 1, 6);
    choose_case c = { .c = a, .choice = choice, .dgate = dgate,
                      .scratch = malloc(ag_choose_scratch(&a, AG_F32) + 1) };
    assert_non_null(c.scratch);
    c.c.low = low, c.c.c2 = c2, c.c.cb = a.picks & 1 ? cb : NULL;
    ag_kernels_ref(AG_F32)->choose_fwd(&c.c, choice, gate, c.scratch);
    const double t = a.c.relaxed && a.c.temperature != 0 ? a.c.temperature : 1;
    const out fwd[2] = { { .n = picked, .exact = true },
                         { .n = gate_size(&a), .exact = a.gate == AG_GATE_ONE,
                           .c = 40 + 100 / t } };
    check_kernel("choose_fwd", run_choose, &c, 2, fwd);
    double *dlow = sums_new(rows * a.rank), *dc2 = sums_new(units * a.rank), *dcb = sums_new(units);
    choose_scales(&c.c, choice, dgate, dlow, dc2, dcb);
    for (int64_t i = 0; i < rows * a.rank; i++)
        dlow[i] += 1;
    for (int64_t i = 0; i < units * a.rank; i++)
        dc2[i] += 1;
    for (int64_t i = 0; i < units; i++)
        dcb[i] += 1;
    for (int options = 0; options < 3; options++) {
        c.acc = options & 1, c.sums = options < 2;
        const double f = 24 + 40 / t;
        const out sums = { .n = units, .adds = true, .c = f, .scale = dcb };
        const out bwd[4] = { { .n = rows * a.rank, .adds = c.acc, .c = f, .scale = dlow },
                             { .n = units * a.rank, .adds = true, .c = f, .scale = dc2 }, sums,
                             sums };
        check_kernel("choose_bwd", run_choose_bwd, &c, 4, bwd);
    }
    free(low), free(c2), free(cb), free(dgate), free(gate), free(choice), free(c.scratch);
    free(dlow), free(dc2), free(dcb);
}

/* rows, blocks, n, rank, picks */
static const int64_t chooser_shapes[][5] = {
    { 0, 2, 4, 3, 1 }, { 1, 1, 1, 1, 1 }, { 5, 3, 4, 0, 1 }, { 3, 7, 5, 3, 1 }, { 17, 5, 4, 6, 2 },
    { 40, 3, 64, 24, 1 }, { 1, 24, 64, 24, 1 }, { 21, 8, 50, 17, 1 }, { 66, 2, 100, 5, 3 },
    { 530, 9, 8, 3, 1 }, { 300, 5, 16, 20, 1 }, { 2, 1, 700, 4, 1 }, { 130, 3, 33, 7, 1 },
};
enum { N_CHOOSERS = sizeof chooser_shapes / sizeof *chooser_shapes };

static ag_chooser chooser(const int64_t s[5], double temperature, bool relaxed, ag_gate gate,
                          bool all)
{
    return (ag_chooser){ .c = { .rows = s[0], .blocks = s[1], .n = s[2], .relaxed = relaxed,
                                .hard = true, .temperature = temperature,
                                .noise = { .seed = 42, .step = 7, .site = 3, .row0 = 1000 } },
                         .rank = s[3], .gate = gate, .picks = all ? 1 : s[4], .all = all };
}

static void test_choose(void **state)
{
    static const double temperature[] = { 0, 0.5, 3 };
    (void)state;
    for (int i = 0; i < N_CHOOSERS; i++)
        for (int t = 0; t < 3; t++)
            for (int relaxed = 0; relaxed < 2; relaxed++)
                for (int gate = 0; gate < AG_GATE_COUNT; gate++)
                    for (int all = 0; all < 2; all++)
                        check_choose(chooser(chooser_shapes[i], temperature[t], relaxed,
                                             (ag_gate)gate, all));
}

/* Enough blocks that bounds of the noise which were not bounds would be seen. */
static void test_choose_many(void **state)
{
    static const double temperature[] = { 0.2, 1, 4 };
    const int64_t shape[5] = { 700, 24, 64, 5, 1 };
    (void)state;
    for (int t = 0; t < 3; t++) {
        ag_chooser a = chooser(shape, temperature[t], false, AG_GATE_ONE, false);
        const int64_t picked = shape[0] * shape[1];
        float *low = eighths(shape[0] * shape[3], 11), *c2 = eighths(shape[3] * 24 * 64, 12);
        choose_case c = { .c = a, .scratch = malloc(ag_choose_scratch(&a, AG_F32)) };
        assert_non_null(c.scratch);
        c.c.low = low, c.c.c2 = c2;
        const out fwd[2] = { { .n = picked, .exact = true }, { .n = picked, .exact = true } };
        check_kernel("choose_fwd, many", run_choose, &c, 2, fwd);
        free(low), free(c2), free(c.scratch);
    }
}

/* Probabilities that are all but 0 make no numbers below the normal ones: those are slow. */
static void test_no_tiny_numbers(void **state)
{
    enum { ROWS = 40, N = 20 };
    const int64_t shape[5] = { ROWS, 1, N, 1, 1 };
    const ag_kernels *table[MAX_TABLES];
    const int n = fast_tables(table);
    float low[ROWS], c2[N], dgate[ROWS * N], dlow[ROWS], dc2[N];
    int32_t choice[ROWS] = { 0 };
    (void)state;
    for (int all = 0; all < 2; all++) {
        ag_chooser c = chooser(shape, 0, false, AG_GATE_ONE, all);
        void *scratch = malloc(ag_choose_scratch(&c, AG_F32));
        assert_non_null(scratch);
        c.low = low, c.c2 = c2;
        for (int i = 0; i < ROWS; i++)
            low[i] = 1;
        for (int j = 0; j < N; j++)
            c2[j] = -5 * (float)j;
        for (int i = 0; i < ROWS * N; i++)
            dgate[i] = 1e-3f;
        for (int t = 0; t < n; t++) {
            float dcb[N] = { 0 };
            memset(dc2, 0, sizeof dc2);
            table[t]->choose_bwd(&c, choice, dgate, dlow, false, dc2, dcb, scratch);
            assert_true(dcb[1] != 0 || all);
            for (int j = 0; j < N; j++)
                assert_true((dcb[j] == 0 || isnormal(dcb[j])) && (dc2[j] == 0 || isnormal(dc2[j])));
        }
        free(scratch);
    }
}

/* ---- a row alone ---- */

static void check_choose_alone(const ag_kernels *k, const int64_t s[5], double temperature,
                               bool relaxed)
{
    ag_chooser c = chooser(s, temperature, relaxed, AG_GATE_P, false);
    const int64_t rows = c.c.rows, listed = c.c.blocks * c.picks, units = c.c.blocks * c.c.n;
    float *low = floats(rows * c.rank, -1, 1, 1), *c2 = floats(c.rank * units, -1, 1, 2),
        *cb = floats(units, -1, 1, 3), *gate = floats(rows * listed, 0, 1, 4),
        *one_gate = floats(listed, 0, 1, 5);
    int32_t *choice = ints(rows * listed, 0, 1, 6), *one = ints(listed, 0, 1, 7);
    void *scratch = malloc(ag_choose_scratch(&c, AG_F32) + 1);
    assert_non_null(scratch);
    c.low = low, c.c2 = c2, c.cb = cb;
    k->choose_fwd(&c, choice, gate, scratch);
    for (int64_t r = 0; r < rows; r++) {
        ag_chooser alone = c;
        alone.c.rows = 1;
        alone.c.noise.row0 += r;
        alone.low = low + r * c.rank;
        k->choose_fwd(&alone, one, one_gate, scratch);
        assert_memory_equal(one, choice + r * listed, (size_t)listed * sizeof *one);
        assert_memory_equal(one_gate, gate + r * listed, (size_t)listed * sizeof *gate);
    }
    free(low), free(c2), free(cb), free(gate), free(one_gate), free(choice), free(one);
    free(scratch);
}

static void check_live_alone(const ag_kernels *k, const int64_t s[6])
{
    ag_live l = { .rows = s[0], .d = s[1], .blocks = s[2], .n = s[3], .width = s[4],
                  .picks = s[5] };
    const int64_t size = live_size(&l), units = live_units(&l), listed = s[2] * s[5];
    float *x = floats(s[0] * s[1], -1, 1, 1), *w = floats(units * s[1], -1, 1, 2),
        *h = rectified(s[0] * size, 3), *a = floats(s[0] * size, 0, 1, 4),
        *y = floats(s[0] * s[1], 0, 1, 5), *one_a = floats(size, 0, 1, 6),
        *one_y = floats(s[1], 0, 1, 7);
    int32_t *choice = ints(s[0] * listed, 0, (int32_t)s[3], 8);
    l.choice = choice;
    k->live_dot(&l, x, w, NULL, a);
    k->live_sum(&l, h, w, NULL, x, y, false);
    l.rows = 1;
    for (int64_t r = 0; r < s[0]; r++) {
        l.choice = choice + r * listed;
        k->live_dot(&l, x + r * s[1], w, NULL, one_a);
        k->live_sum(&l, h + r * size, w, NULL, x + r * s[1], one_y, false);
        assert_memory_equal(one_a, a + r * size, (size_t)size * sizeof *a);
        assert_memory_equal(one_y, y + r * s[1], (size_t)s[1] * sizeof *y);
    }
    free(x), free(w), free(h), free(a), free(y), free(one_a), free(one_y), free(choice);
}

static void test_a_row_alone(void **state)
{
    const ag_kernels *table[MAX_TABLES];
    const int n = fast_tables(table);
    (void)state;
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < N_CHOOSERS; i++)
            for (int noise = 0; noise < 3; noise++)
                check_choose_alone(table[t], chooser_shapes[i], noise, noise == 2);
        for (int i = 0; i < N_SHAPES; i++)
            check_live_alone(table[t], shapes[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_live),   cmocka_unit_test(test_zeros_are_skipped),
        cmocka_unit_test(test_gates),  cmocka_unit_test(test_choose),
        cmocka_unit_test(test_choose_many), cmocka_unit_test(test_no_tiny_numbers),
        cmocka_unit_test(test_a_row_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
