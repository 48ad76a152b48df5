/*
 * test_layers.c -- every layer against differences in f64, and the sparse feed-forward against its
 * formulas.
 */
#include "tests/layer_check.h"

#include "autograd/base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Element i; 0 of a tensor that is not there. */
static double at(const ag_tensor *w, int64_t i) { return w ? ((const double *)w->data)[i] : 0; }

/* --- layers ----------------------------------------------------------------------------------- */

static ag_tensor *linear_forward(const void *l, ag_tape *t, ag_tensor *x)
{
    return nn_linear_forward(l, t, x, AG_ACT_GELU_ERF, NULL);
}

static ag_tensor *norm_forward(const void *l, ag_tape *t, ag_tensor *x)
{
    return nn_norm_forward(l, t, x);
}

static ag_tensor *embedding_forward(const void *l, ag_tape *t, ag_tensor *x)
{
    return nn_embedding_forward(l, t, x, 2, NN_EVAL);
}

static void simple_layers(void **state)
{
    (void)state;
    for (int bias = 0; bias < 2; bias++) {
        nn_params *p = nn_params_new(AG_F64);
        nn_linear linear;
        nn_linear_build(&linear, p, "linear", 5, 4, bias, nn_normal(0.5));
        params_ready(p);
        check_subject(&(subject){ p, &linear, linear_forward, AG_SHAPE(2, 3, 5), 0 });
        nn_params_free(p);

        p = nn_params_new(AG_F64);
        nn_norm norm;
        nn_norm_build(&norm, p, "norm", 6, bias, 1e-5);
        params_ready(p);
        check_subject(&(subject){ p, &norm, norm_forward, AG_SHAPE(2, 3, 6), 0 });
        nn_params_free(p);

        p = nn_params_new(AG_F64);
        nn_embedding embedding;
        nn_embedding_build(&embedding, p, "embedding",
                           &(nn_embedding_config){
                               .vocab = 7, .d_model = 5, .token_std = 0.5,
                               .position = { .type = bias ? NN_POSITION_TABLE : NN_POSITION_NONE,
                                             .context = 6, .d_model = 5, .std = 0.5 } });
        params_ready(p);
        check_subject(&(subject){ p, &embedding, embedding_forward, AG_SHAPE(2, 4), 7 });
        nn_params_free(p);
    }
}

static ag_tensor *dropout_forward(const void *l, ag_tape *t, ag_tensor *x)
{
    const nn_params *p = ((const void *const *)l)[0];
    const nn_dropout *drop = ((const void *const *)l)[1];
    return nn_dropout_forward(drop, t, ag_mul(t, x, p->items[0].tensor), NN_TRAIN);
}

static void dropout(void **state)
{
    (void)state;
    nn_params *p = nn_params_new(AG_F64);
    nn_param(p, "factor", AG_SHAPE(4, 9), nn_constant(1));
    nn_dropout drop;
    nn_dropout_build(&drop, p, 0.3);
    params_ready(p);
    const void *layer[2] = { p, &drop };
    check_subject(&(subject){ p, layer, dropout_forward, AG_SHAPE(4, 9), 0 });

    ag_tape *t = tape_new();
    ag_tensor *x = input(t, AG_SHAPE(4, 9), 1, false);
    assert_ptr_equal(nn_dropout_forward(&drop, t, x, NN_EVAL), x);
    ag_tape_free(t);
    nn_params_free(p);
}

/* A branch of weight 0 leaves the residual alone; otherwise dropped places are the residual's. */
static void branch_ends_on_the_residual(void **state)
{
    (void)state;
    for (int zero = 0; zero < 2; zero++) {
        nn_params *p = nn_params_new(AG_F64);
        nn_linear l;
        nn_linear_build(&l, p, "l", 6, 50, false, nn_constant(zero ? 0 : 1));
        nn_dropout drop;
        nn_dropout_build(&drop, p, 0.5);
        assert_int_equal(nn_params_alloc(p, SEED, NULL), AG_OK);
        ag_tape *t = tape_new();
        ag_tensor *x = input(t, AG_SHAPE(4, 6), 1, false), *r = input(t, AG_SHAPE(4, 50), 3, false);
        for (int mode = NN_EVAL; mode <= NN_TRAIN; mode++) {
            const ag_tensor *y = nn_branch_end(&l, &drop, t, x, r, (nn_mode)mode);
            tape_ok(t);
            int same = 0;
            for (int i = 0; i < 200; i++) same += at(y, i) == at(r, i);
            if (zero) assert_int_equal(same, 200);
            else if (mode == NN_EVAL) assert_int_equal(same, 0);
            else assert_in_range(same, 65, 135);         /* 100, within 5 sigma */
        }
        ag_tape_free(t);
        nn_params_free(p);
    }
}

static ag_tensor *attention_forward(const void *l, ag_tape *t, ag_tensor *x)
{
    return nn_attention_forward(l, t, x, x, NN_TRAIN, NULL, 0);
}

static void attention(void **state)
{
    (void)state;
    static const nn_attention_config C[] = {
#define ATTENTION(d, heads, qk, v, biased, drop, std, gain)                                     \
    { .d_model = d, .n_heads = heads, .d_qk = qk, .d_v = v, .bias = biased, .dropout = drop,    \
      .init_std = std, .out_gain = gain }
        ATTENTION(6, 2, 3, 3, false, 0, 0.5, 1), ATTENTION(6, 2, 3, 3, true, 0, 0.5, 0.5),
        ATTENTION(5, 3, 2, 4, true, 0, 0, 1),    ATTENTION(6, 2, 4, 1, true, 0.3, 0.5, 1),
    };
    for (int i = 0; i < 4; i++) {
        nn_params *p = nn_params_new(AG_F64);
        nn_attention a;
        nn_attention_build(&a, p, "attention", &C[i]);
        params_ready(p);
        check_subject(&(subject){ p, &a, attention_forward, AG_SHAPE(2, 4, C[i].d_model), 0 });
        nn_params_free(p);
    }
}

static const nn_ff_config SPARSE = { .kind = NN_FF_SPARSE,
                                     .d_ff = 24,
                                     .bias_out = true,
                                     .block = 4,
                                     .quant_prob = 0,
                                     .temperature = 0.7,
                                     .controller_bias = true };

static ag_tensor *ff_forward(const void *l, ag_tape *t, ag_tensor *x)
{
    return nn_ff_forward(l, t, x, x, NN_TRAIN);
}

static void ff_check(const nn_ff_config *c)
{
    nn_params *p = nn_params_new(AG_F64);
    nn_ff ff;
    nn_ff_build(&ff, p, "ff", 12, c);
    params_ready(p);
    assert_int_equal(nn_ff_params(&ff), p->n_used);
    check_subject(&(subject){ p, &ff, ff_forward, AG_SHAPE(5, 12), 0 });
    nn_params_free(p);
}

static void dense_ff(void **state)
{
    (void)state;
    for (int act = AG_ACT_NONE; act < AG_ACT_COUNT; act++)
        for (int bias = 0; bias < 2; bias++)
            ff_check(&(nn_ff_config){ .d_ff = 16,
                                      .bias_in = bias,
                                      .bias_out = bias,
                                      .act = (ag_act)act,
                                      .dropout = act % 2 ? 0.25 : 0,
                                      .init_std = 0.4 });
}

/* Soft steps are ordinary functions: all their gradients, the controller's too, are exact. */
static void soft_sparse_ff(void **state)
{
    (void)state;
    for (int i = 0; i < 32; i++) {
        nn_ff_config c = SPARSE;
        c.mask_order = i & 1 ? NN_MASK_AFTER_RELU : NN_MASK_BEFORE_RELU;
        c.relaxed = i & 2;
        c.controller_bias = i & 4;
        c.controller_relu = i & 8;
        c.bias_in = i & 16;
        c.bias_out = !(i & 4);
        c.dropout = i & 1 ? 0.2 : 0;
        c.rank_rule = i & 2 ? NN_RANK_D_MODEL : NN_RANK_BLOCKS;
        ff_check(&c);
    }
}

/* --- the sparse feed-forward, written out (arXiv 2111.12763, released code) ------------------- */

enum { D = 12, DFF = 24, N = 4, R = 3, ROWS = 5 };

typedef struct written_out {         /* gradients are of <v, y> */
    double y[ROWS][D], dx[ROWS][D], dw1[DFF][D], db1[DFF], dw2[DFF][D], db2[D], dc1[R][D],
        dc2[R][DFF], dcb[DFF];
} written_out;

/* mask and p of one row, from z */
static void choose(const nn_ff *l, int64_t row, const double z[DFF], double p[DFF],
                   double mask[DFF])
{
    const ag_noise key = { .seed = SEED, .step = 3, .site = l->noise_site };
    for (int j = 0; j < DFF; j += N) {
        double sum = 0, best = -INFINITY;
        int k = 0;
        for (int n = 0; n < N; n++) sum += p[j + n] = exp(z[j + n]);
        for (int n = 0; n < N; n++) {
            const double u = (double)ag_uniform(ag_noise_at(&key, row, j + n, DFF));
            const double g = -log(-log(fmin(fmax(u, 1e-6), 1 - 1e-6)));
            p[j + n] /= sum;
            const double score = log(p[j + n]) + l->config.temperature * g;
            if (score > best) best = score, k = n;
        }
        for (int n = 0; n < N; n++) mask[j + n] = n == k;
    }
}

/* One row of a hard step with x, then of its backward with v = dL/dy. */
static void hard_row(const nn_ff *l, int64_t row, const double *x, const double *v, written_out *o)
{
    const bool before = l->config.mask_order == NN_MASK_BEFORE_RELU;
    double low[R], dlow[R] = { 0 }, z[DFF], a[DFF], p[DFF], mask[DFF], h[DFF], gp[DFF], gz[DFF];
    for (int r = 0; r < R; r++) {
        low[r] = 0;
        for (int i = 0; i < D; i++) low[r] += at(l->c1.weight, r * D + i) * x[i];
        if (l->config.controller_relu) low[r] = fmax(low[r], 0);
    }
    for (int u = 0; u < DFF; u++) {
        z[u] = at(l->c2.bias, u);
        for (int r = 0; r < R; r++) z[u] += at(l->c2.weight, r * DFF + u) * low[r];
        a[u] = at(l->in.bias, u);
        for (int i = 0; i < D; i++) a[u] += at(l->in.weight, u * D + i) * x[i];
    }
    choose(l, row, z, p, mask);
    for (int i = 0; i < D; i++) {
        o->y[row][i] = at(l->out.bias, i);
        o->db2[i] += v[i];
    }
    for (int u = 0; u < DFF; u++) {
        h[u] = fmax(mask[u] * a[u], 0);
        double gh = 0;
        for (int i = 0; i < D; i++) {
            o->y[row][i] += at(l->out.weight, u * D + i) * h[u];
            gh += v[i] * at(l->out.weight, u * D + i);
            o->dw2[u][i] += h[u] * v[i];
        }
        const double open = (before ? mask[u] * a[u] : a[u]) > 0, ga = gh * open * mask[u];
        gp[u] = gh * open * a[u];
        o->db1[u] += ga;
        for (int i = 0; i < D; i++) {
            o->dw1[u][i] += x[i] * ga;
            o->dx[row][i] += at(l->in.weight, u * D + i) * ga;
        }
    }
    for (int u = 0; u < DFF; u++) {
        double mean = 0;
        for (int n = 0; n < N; n++) mean += p[u / N * N + n] * gp[u / N * N + n];
        gz[u] = p[u] * (gp[u] - mean);
        o->dcb[u] += gz[u];
        for (int r = 0; r < R; r++) {
            o->dc2[r][u] += low[r] * gz[u];
            dlow[r] += at(l->c2.weight, r * DFF + u) * gz[u];
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < D && (!l->config.controller_relu || low[r] > 0); i++) {
            o->dc1[r][i] += x[i] * dlow[r];
            o->dx[row][i] += at(l->c1.weight, r * D + i) * dlow[r];
        }
}

static void near(const char *name, const void *got, const void *want, int64_t n)
{
    const double *a = got, *b = want;
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(a[i] - b[i]) <= 1e-12 * (1 + fabs(b[i]))))
            fail_msg("%s[%lld]: %.15g, written out %.15g", name, (long long)i, a[i], b[i]);
}

static void grad_near(const ag_tensor *w, const void *want)
{
    if (w) near(w->name, w->grad, want, w->size);
}

static void hard_sparse_ff(void **state)
{
    (void)state;
    for (int i = 0; i < 16; i++) {
        nn_ff_config c = SPARSE;
        c.quant_prob = 1;
        c.d_lowrank = R;
        c.mask_order = i & 1 ? NN_MASK_AFTER_RELU : NN_MASK_BEFORE_RELU;
        c.controller_relu = i & 2;
        c.controller_bias = c.bias_in = i & 4;
        c.temperature = i & 8 ? 1 : 0.1;
        nn_params *p = nn_params_new(AG_F64);
        nn_ff ff;
        nn_ff_build(&ff, p, "ff", D, &c);
        params_ready(p);
        ag_tape *t = tape_new();
        noise(t, 3, 0, ROWS);
        ag_tensor *x = input(t, AG_SHAPE(ROWS, D), X_SITE, true);
        ag_tensor *y = nn_ff_forward(&ff, t, x, NULL, NN_TRAIN);
        double v[ROWS * D];
        for (int j = 0; j < ROWS * D; j++) v[j] = cotangent(j);
        written_out *o = calloc(1, sizeof *o);
        for (int r = 0; r < ROWS; r++) hard_row(&ff, r, (double *)x->data + r * D, v + r * D, o);
        near("y", y->data, o->y, y->size);
        ag_backward_from(t, y, v);
        tape_ok(t);
        near("dx", x->grad, o->dx, x->size);
        grad_near(ff.in.weight, o->dw1);
        grad_near(ff.in.bias, o->db1);
        grad_near(ff.out.weight, o->dw2);
        grad_near(ff.out.bias, o->db2);
        grad_near(ff.c1.weight, o->dc1);
        grad_near(ff.c2.weight, o->dc2);
        grad_near(ff.c2.bias, o->dcb);
        free(o);
        ag_tape_free(t);
        nn_params_free(p);
    }
}

/* The gradient through a hard mask is, bit for bit, that through the soft one. */
static void straight_through(void **state)
{
    (void)state;
    ag_tape *t = tape_new();
    noise(t, 3, 0, ROWS);
    for (int relaxed = 0; relaxed < 2; relaxed++) {
        ag_tensor *z[2];
        double v[ROWS * DFF];
        for (int j = 0; j < ROWS * DFF; j++) v[j] = cotangent(j);
        for (int hard = 0; hard < 2; hard++) {
            const ag_controller_options o = { N, relaxed, hard, 0.7, 5, 0 };
            z[hard] = input(t, AG_SHAPE(ROWS, DFF), X_SITE, true);
            ag_backward_from(t, ag_control(t, z[hard], &o, NULL), v);
        }
        tape_ok(t);
        assert_memory_equal(z[0]->grad, z[1]->grad, sizeof v);
    }
    ag_tape_free(t);
}

/* A hard step without noise is evaluation; the coin falls on hard in about quant_prob of the steps.
 */
static void hard_steps(void **state)
{
    (void)state;
    nn_ff_config c = SPARSE;
    c.quant_prob = 0.3;
    c.temperature = 0;
    nn_params *p = nn_params_new(AG_F64);
    nn_ff ff[2];
    nn_ff_build(&ff[0], p, "ff0", D, &c);
    nn_ff_build(&ff[1], p, "ff1", D, &c);
    params_ready(p);
    int hard[2] = { 0 }, differ = 0;
    ag_tape *t = tape_new();
    for (uint32_t s = 0; s < 2000; s++, ag_tape_reset(t)) {
        bool is_hard[2];
        noise(t, s, 0, ROWS);
        ag_tensor *x = input(t, AG_SHAPE(ROWS, D), X_SITE, false);
        for (int i = 0; i < 2; i++) {
            const ag_tensor *train = nn_ff_forward(&ff[i], t, x, NULL, NN_TRAIN);
            const ag_tensor *eval = nn_ff_forward(&ff[i], t, x, NULL, NN_EVAL);
            is_hard[i] = !memcmp(train->data, eval->data, sizeof(double) * ROWS * D);
            hard[i] += is_hard[i];
        }
        differ += is_hard[0] != is_hard[1];
    }
    tape_ok(t);
    for (int i = 0; i < 2; i++) assert_in_range(hard[i], 500, 700); /* 600, within 5 sigma = 102 */
    assert_in_range(differ, 740, 940);                              /* 2000 * 2 * 0.3 * 0.7 = 840 */
    ag_tape_free(t);
    nn_params_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(simple_layers), cmocka_unit_test(dropout),
        cmocka_unit_test(branch_ends_on_the_residual), cmocka_unit_test(attention),
        cmocka_unit_test(dense_ff), cmocka_unit_test(soft_sparse_ff),
        cmocka_unit_test(hard_sparse_ff), cmocka_unit_test(straight_through),
        cmocka_unit_test(hard_steps),
    };
    return cmocka_run_group_tests_name("layers", tests, NULL, NULL);
}
