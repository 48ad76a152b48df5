/*
 * test_rows.c -- layer normalisation, softmax, cross entropy, embedding, gather, pick, argmax and
 * the controller of every table against the reference.
 */
#include "kernel_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int64_t shapes[][2] =
    { { 0, 7 }, { 1, 1 }, { 2, 3 }, { 3, 4 }, { 5, 5 }, { 7, 8 }, { 2, 9 }, { 5, 15 },
      { 4, 16 }, { 9, 17 }, { 33, 65 }, { 301, 384 }, { 1009, 31 }, { 40, 1030 } };
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

typedef struct row_case {
    int     id;
    bool    acc, log;
    int64_t m, v, n, t, pos0;
    const float *x, *y, *dy, *gain, *bias, *mean, *rstd;
    const int32_t *idx;
    float   dloss;
} row_case;

static double *sums_new(int64_t n)
{
    double *s = calloc((size_t)n + 1, sizeof *s);
    assert_non_null(s);
    return s;
}

/* ---- layer normalisation ---- */

static void run_layernorm(const ag_kernels *k, const void *arg, void *const y[])
{
    const row_case *c = arg;
    k->layernorm_fwd(c->m, c->n, 1e-5, c->x, c->gain, c->bias, y[0], y[1], y[2]);
}

static void run_layernorm_bwd(const ag_kernels *k, const void *arg, void *const y[])
{
    const row_case *c = arg;
    k->layernorm_bwd(c->m, c->n, c->x, c->gain, c->mean, c->rstd, c->dy, y[0], c->acc, y[1], y[2]);
}

static void run_layernorm_bwd_dx(const ag_kernels *k, const void *arg, void *const y[])
{
    const row_case *c = arg;
    k->layernorm_bwd(c->m, c->n, c->x, c->gain, c->mean, c->rstd, c->dy, y[0], c->acc, NULL, NULL);
}

static void run_layernorm_bwd_sums(const ag_kernels *k, const void *arg, void *const y[])
{
    const row_case *c = arg;
    k->layernorm_bwd(c->m, c->n, c->x, c->gain, c->mean, c->rstd, c->dy, NULL, false, y[0], NULL);
    k->layernorm_bwd(c->m, c->n, c->x, c->gain, c->mean, c->rstd, c->dy, NULL, false, NULL, y[1]);
}

static void check_layernorm(int64_t m, int64_t n, bool affine)
{
    float *x = floats(m * n, -1, 3, 1), *gain = floats(n, 0.5, 1.5, 2), *bias = floats(n, -1, 1, 3);
    float *dy = floats(m * n, -1, 1, 4), *mean = floats(m, 0, 1, 5), *rstd = floats(m, 0, 1, 6);
    float *y = floats(m * n, 0, 1, 7);
    double *sg = sums_new(n), *sb = sums_new(n), *sy = sums_new(m * n), *sr = sums_new(m);
    row_case c = { .m = m, .n = n, .x = x, .dy = dy, .gain = affine ? gain : NULL,
                   .bias = affine ? bias : NULL, .mean = mean, .rstd = rstd };
    ag_kernels_ref(AG_F32)->layernorm_fwd(m, n, 1e-5, x, c.gain, c.bias, y, mean, rstd);
    for (int64_t i = 0; i < m * n; i++) {
        const double xhat = fabs((double)x[i] - (double)mean[i / n]) * (double)rstd[i / n];
        /* x - mean is rounded */
        sg[i % n] += fabs((double)dy[i]) * (xhat + 3 * (double)rstd[i / n]);
        sb[i % n] += fabs((double)dy[i]);
        sy[i] = 3 * (double)rstd[i / n] + 4;
        sr[i / n] = (double)rstd[i / n];
    }
    const out fwd[3] = { { .n = m * n, .c = 8, .scale = sy }, { .n = m, .c = 4 * 3 },
                         { .n = m, .c = 8, .scale = sr } };
    check_kernel("layernorm_fwd", run_layernorm, &c, 3, fwd);
    for (int64_t i = 0; i < m * n; i++)    /* each rounding is scaled by rstd, and xhat once more */
        sy[i] = (4 + 3 * (double)rstd[i / n]) * (double)rstd[i / n];
    for (int acc = 0; acc < 2; acc++) {
        const out bwd[3] = { { .n = m * n, .adds = acc, .c = 8, .scale = sy },
                             { .n = n, .adds = true, .c = 4, .scale = sg },
                             { .n = n, .adds = true, .c = 4, .scale = sb } };
        c.acc = acc;
        check_kernel("layernorm_bwd", run_layernorm_bwd, &c, 3, bwd);
        check_kernel("layernorm_bwd, dx", run_layernorm_bwd_dx, &c, 1, bwd);
        check_kernel("layernorm_bwd, sums", run_layernorm_bwd_sums, &c, 2, bwd + 1);
    }
    free(x), free(gain), free(bias), free(dy), free(mean), free(rstd), free(y);
    free(sg), free(sb), free(sy), free(sr);
}

static void test_layernorm(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i++)
        for (int affine = 0; affine < 2; affine++)
            check_layernorm(shapes[i][0], shapes[i][1], affine);
}

/* ---- softmax ---- */

static void run_softmax(const ag_kernels *k, const void *arg, void *const y[])
{
    const row_case *c = arg;
    k->softmax_fwd(c->m, c->n, c->log, c->x, y[0]);
}

static void run_softmax_bwd(const ag_kernels *k, const void *arg, void *const y[])
{
    const row_case *c = arg;
    k->softmax_bwd(c->m, c->n, c->log, c->y, c->dy, y[0], c->acc);
}

static void check_softmax(int64_t m, int64_t n, bool log)
{
    float *x = floats(m * n, -20, 20, 1), *y = floats(m * n, 0, 1, 2),
        *dy = floats(m * n, -1, 1, 3);
    double *scale = sums_new(m * n), *scale_bwd = sums_new(m * n);
    row_case c = { .m = m, .n = n, .log = log, .x = x, .y = y, .dy = dy };
    ag_kernels_ref(AG_F32)->softmax_fwd(m, n, log, x, y);
    for (int64_t i = 0; i < m; i++) {
        double s = 0;
        for (int64_t j = 0; j < n; j++)
            s += fabs((double)dy[i * n + j]) * (log ? 1 : (double)y[i * n + j]);
        for (int64_t j = i * n; j < (i + 1) * n; j++) {
            scale[j] = log ? 10 : 5 * (double)y[j];       /* |x - max| <= 40 rounds to 20 ulp(1) in
                                                           * the exponent */
            scale_bwd[j] = log ? 1 + exp((double)y[j]) * s : (double)y[j] * (1 + s);
        }
    }
    check_kernel("softmax_fwd", run_softmax, &c, 1, &(out){ .n = m * n, .c = 8, .scale = scale });
    for (int acc = 0; acc < 2; acc++) {
        c.acc = acc;
        check_kernel("softmax_bwd", run_softmax_bwd, &c, 1,
                     &(out){ .n = m * n, .adds = acc, .c = 8, .scale = scale_bwd });
    }
    free(x), free(y), free(dy), free(scale), free(scale_bwd);
}

static void test_softmax(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i++)
        for (int log = 0; log < 2; log++)
            check_softmax(shapes[i][0], shapes[i][1], log);
    check_softmax(3, 50021, false);
}

static void test_softmax_of_large_and_infinite(void **state)
{
    const float x[2][3] = { { 3e38f, 3e38f, -3e38f }, { -INFINITY, 2, -INFINITY } };
    const ag_kernels *table[MAX_TABLES];
    const int n = fast_tables(table);
    (void)state;
    for (int t = 0; t < n; t++) {
        float y[2][3], z[3] = { 1, NAN, 2 };
        table[t]->softmax_fwd(2, 3, false, x, y);
        assert_true(y[0][0] == 0.5f && y[0][1] == 0.5f && y[0][2] == 0);
        assert_true(y[1][0] == 0 && y[1][1] == 1 && y[1][2] == 0);
        table[t]->softmax_fwd(1, 3, false, z, z);
        assert_true(isnan(z[0]) && isnan(z[1]) && isnan(z[2]));
    }
}

/* ---- cross entropy ---- */

static void run_xent(const ag_kernels *k, const void *arg, void *const y[])
{
    const row_case *c = arg;
    k->xent_fwd(c->m, c->n, c->x, c->idx, y[0], y[1]);
}

static void run_xent_bwd(const ag_kernels *k, const void *arg, void *const y[])
{
    const row_case *c = arg;
    k->xent_bwd(c->m, c->n, c->x, c->idx, c->y, &c->dloss, y[0], c->acc);
}

static void check_xent(int64_t m, int64_t n, bool no_targets)
{
    float *x = floats(m * n, -8, 8, 1), *lse = floats(m, 0, 1, 2), loss;
    int32_t *target = ints(m, no_targets ? -1 : -(int32_t)n / 4, no_targets ? 0 : (int32_t)n, 3);
    row_case c = { .m = m, .n = n, .x = x, .y = lse, .idx = target, .dloss = 0.7f };
    double scale = m ? 4.0 * (double)c.dloss / (double)m : 1;     /* errors of |x - lse| < 30 in the
                                                                   * exponent */
    ag_kernels_ref(AG_F32)->xent_fwd(m, n, x, target, lse, &loss);
    assert_true(!no_targets || loss == 0);
    const out fwd[2] = { { .n = m, .c = 16 }, { .n = 1, .c = 16 } };
    check_kernel("xent_fwd", run_xent, &c, 2, fwd);
    for (int acc = 0; acc < 2; acc++) {
        c.acc = acc;
        check_kernel("xent_bwd", run_xent_bwd, &c, 1,
                     &(out){ .n = m * n, .adds = acc, .c = acc + 16 * scale });
    }
    free(x), free(lse), free(target);
}

static void test_cross_entropy(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i++)
        for (int none = 0; none < 2; none++)
            check_xent(shapes[i][0], shapes[i][1], none);
    check_xent(2048, 65, false);
    check_xent(3, 50257, false);
}

/* ---- rows by index ---- */

static void run_index(const ag_kernels *k, const void *arg, void *const y[])
{
    const row_case *c = arg;
    switch (c->id) {
    case 0: k->embedding_fwd(c->m, c->n, c->idx, c->x, c->y, c->t, c->pos0, y[0]); break;
    case 1: k->embedding_fwd(c->m, c->n, c->idx, c->x, NULL, c->t, c->pos0, y[0]); break;
    case 2: k->embedding_bwd(c->m, c->v, c->n, c->idx, c->dy, c->t, c->pos0, y[0], NULL); break;
    case 3: k->embedding_bwd(c->m, c->v, c->n, c->idx, c->dy, c->t, c->pos0, NULL, y[0]); break;
    case 4: k->gather_fwd(c->m, c->n, c->idx, c->x, y[0]); break;
    case 5: k->gather_bwd(c->m, c->v, c->n, c->idx, c->dy, y[0]); break;
    case 6: k->pick_fwd(c->m, c->n, c->idx, c->dy, y[0]); break;
    case 7: k->pick_bwd(c->m, c->n, c->idx, c->x, y[0]); break;
    default: k->argmax(c->m, c->n, c->dy, y[0]); break;
    }
}

static void run_embedding_bwd_both(const ag_kernels *k, const void *arg, void *const y[])
{
    const row_case *c = arg;
    k->embedding_bwd(c->m, c->v, c->n, c->idx, c->dy, c->t, c->pos0, y[0], y[1]);
}

static void test_rows_by_index(void **state)
{
    static const char *const names[] = { "embedding_fwd", "embedding_fwd, no pos", "embedding_bwd",
                                         "embedding_bwd, pos", "gather_fwd", "gather_bwd",
                                         "pick_fwd", "pick_bwd", "argmax" };
    enum { V = 11, T = 4, POS0 = 2 };
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) {
        const int64_t m = shapes[i][0], n = shapes[i][1];
        float *x = floats(V * n + m, -1, 1, 1), *pos = floats((POS0 + T) * n, -1, 1, 2);
        float *dy = floats(m * n, -1, 1, 3);
        int32_t *rows = ints(m, 0, V, 4), *cols = ints(m, 0, (int32_t)n, 5);
        row_case c = { .m = m, .v = V, .n = n, .t = T, .pos0 = POS0, .x = x, .y = pos, .dy = dy };
        const int64_t size[] = { m * n, m * n, V * n, (POS0 + T) * n, m * n, V * n, m, m * n, m };
        for (c.id = 0; c.id < 9; c.id++) {
            const bool adds = c.id == 2 || c.id == 3 || c.id == 5 || c.id == 7;
            c.idx = c.id < 6 ? rows : cols;
            check_kernel(names[c.id], run_index, &c, 1,
                         &(out){ .n = size[c.id], .adds = adds, .exact = true });
        }
        c.idx = rows;
        const out both[2] = { { .n = V * n, .adds = true, .exact = true },
                              { .n = (POS0 + T) * n, .adds = true, .exact = true } };
        check_kernel("embedding_bwd, both", run_embedding_bwd_both, &c, 2, both);
        free(x), free(pos), free(dy), free(rows), free(cols);
    }
}

static void test_argmax_ties(void **state)
{
    static const int64_t n[] = { 1, 2, 15, 16, 17, 40, 1000 };
    const ag_kernels *table[MAX_TABLES];
    const int n_tables = fast_tables(table);
    float x[1000];
    int32_t at;
    (void)state;
    for (int t = 0; t < n_tables; t++)
        for (size_t i = 0; i < sizeof n / sizeof *n; i++)
            for (int64_t first = 0; first < n[i]; first = 2 * first + 1) {
                for (int64_t j = 0; j < n[i]; j++)
                    x[j] = j >= first ? 1.0f : -1.0f;
                table[t]->argmax(1, n[i], x, &at);
                assert_int_equal(at, first);
                x[0] = NAN;
                table[t]->argmax(1, n[i], x, &at);
                assert_int_equal(at, n[i] == 1 ? 0 : first ? first : 1);
            }
}

/* ---- controller ---- */

typedef struct controller_case {
    ag_controller c;
    bool  acc;
    const float *z, *p, *dmask;
} controller_case;

static void run_controller(const ag_kernels *k, const void *arg, void *const y[])
{
    const controller_case *c = arg;
    k->controller_fwd(&c->c, c->z, y[0], y[1], y[2]);
}

static void run_controller_bwd(const ag_kernels *k, const void *arg, void *const y[])
{
    const controller_case *c = arg;
    k->controller_bwd(&c->c, c->p, c->dmask, y[0], c->acc);
}

static void check_controller(int64_t rows, int64_t blocks, int64_t n, int flags, double temperature)
{
    const int64_t size = rows * blocks * n;
    float *z = floats(size, -2, 2, 1), *p = floats(size, 0, 1, 2), *mask = floats(size, 0, 1, 3);
    float *dmask = floats(size, -1, 1, 4);
    int32_t *choice = ints(rows * blocks, 0, 1, 5);
    controller_case c = { .c = { .rows = rows, .blocks = blocks, .n = n, .relaxed = flags & 1,
                                 .hard = flags & 2, .temperature = temperature,
                                 .noise = { .seed = 42, .step = 7, .site = 3, .row0 = 1000 } },
                          .z = z, .p = p, .dmask = dmask };
    ag_kernels_ref(AG_F32)->controller_fwd(&c.c, z, mask, choice, p);
    double *scale = sums_new(size), *scale_bwd = sums_new(size);
    const double t = c.c.relaxed && temperature > 0 ? temperature : 1;
    for (int64_t i = 0; i < size; i++) {
        scale[i] = (4 + 20 / t) * (double)p[i];           /* |z + g - max| < 20 */
        scale_bwd[i] = 2 * (double)p[i] / t;
    }
    const out fwd[3] = { { .n = size, .exact = c.c.hard, .c = 4, .scale = scale },
                         { .n = rows * blocks, .exact = true },
                         { .n = size, .c = 4, .scale = scale } };
    check_kernel("controller_fwd", run_controller, &c, 3, fwd);
    for (int acc = 0; acc < 2; acc++) {
        c.acc = acc;
        check_kernel("controller_bwd", run_controller_bwd, &c, 1,
                     &(out){ .n = size, .adds = acc, .c = 8, .scale = scale_bwd });
    }
    free(z), free(p), free(mask), free(dmask), free(choice), free(scale), free(scale_bwd);
}

static void test_controller(void **state)
{
    static const int64_t shape[][3] =
        { { 0, 2, 4 }, { 1, 1, 1 }, { 3, 5, 4 }, { 2, 3, 7 }, { 5, 7, 8 }, { 3, 3, 16 },
          { 2, 5, 17 }, { 7, 3, 64 }, { 3, 2, 100 }, { 1, 2, 256 }, { 301, 24, 16 },
          { 1, 1, 700 } };
    static const double temperature[] = { 0, 0.1, 1, 5 };
    (void)state;
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        for (int flags = 0; flags < 4; flags++)
            for (int t = 0; t < 4; t++)
                check_controller(shape[i][0], shape[i][1], shape[i][2], flags, temperature[t]);
}

static void test_controller_ties(void **state)
{
    const ag_kernels *all[MAX_TABLES];
    const int n_tables = ag_kernels_all(AG_F32, all, MAX_TABLES);
    (void)state;
    for (int t = 0; t < n_tables; t++)
        for (int64_t n = 1; n < 40; n++) {
            const ag_controller c = { .rows = 1, .blocks = 1, .n = n, .hard = true,
                                      .relaxed = n & 1 };
            float z[40], mask[40], p[40], sum = 0;
            int32_t choice;
            for (int64_t j = 0; j < n; j++)
                z[j] = j >= n / 3 ? 1.5f : 0.5f;
            all[t]->controller_fwd(&c, z, mask, &choice, p);
            assert_int_equal(choice, n / 3);
            for (int64_t j = 0; j < n; j++)
                sum += mask[j];
            assert_true(mask[choice] == 1 && sum == 1);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layernorm),     cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_softmax_of_large_and_infinite), cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_rows_by_index), cmocka_unit_test(test_argmax_ties),
        cmocka_unit_test(test_controller),    cmocka_unit_test(test_controller_ties),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
