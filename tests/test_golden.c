/*
 * test_golden.c -- whole models against PyTorch in float64: ten steps of AdamW with clipping.
 *
 * golden/make.py writes the same models from their formulas and says what they must give: losses,
 * gradient norms, one gradient in full, weights at the end.  An f64 tape must agree to 1e-10, f32
 * with the fastest kernels and optim/ to 1e-5 in each loss.
 */
#include "check.h"

#include "layers/layers.h"
#include "optim/optim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "golden/values.inc"

enum { STEPS = 10, B = 3, T = 6, VOCAB = 13, IMAGES = 7, D_IN = 9, CLASSES = 5 };
static const uint64_t SEED = 1234567890123;
static const double LR = 1e-2;
static const opt_config ADAMW = { .type = OPT_ADAMW,
                                  .beta1 = 0.9,
                                  .beta2 = 0.95,
                                  .eps = 1e-6,
                                  .weight_decay = 0.1,
                                  .clip_norm = 0.5 };

typedef struct golden {
    const char   *name, *full_name;  /* the parameter whose first gradient is stored in full */
    const double *loss, *norm;       /* [STEPS] */
    const double *part;              /* [n_items] norms of the first gradients */
    const double *sum;               /* [n_items] sums of the weights at the end times fill() */
    const double *full;
    size_t        n_items, n_full;
} golden;

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define CASE(n, f)                                                                                 \
    { #n, f, n##_loss, n##_norm, n##_part, n##_sum, n##_full, COUNT(n##_sum), COUNT(n##_full) },
static const golden goldens[] = { GOLDEN(CASE) };

/* Element e of parameter i, as in make.py: 16 bits, exact in f32. */
static double fill(uint32_t i, uint32_t e)
{
    uint32_t h = (i * 1000003u + e) * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    return ((double)(h >> 16) / 65536 - 0.5) * 0.5;
}

/* --- the models ------------------------------------------------------------------------------- */

static nn_ff_config ff_of(const char *name)
{
    const bool paper = !strncmp(name, "sparse_transformer", 18);
    const bool sparse = !strstr(name, "dense") && !paper, after = strstr(name, "after");
    nn_ff_config c = { .kind = sparse ? NN_FF_SPARSE : NN_FF_DENSE, .d_ff = 24, .bias_in = true,
                       .bias_out = true,
                       .act = paper                ? AG_ACT_GELU_QUICK
                              : strstr(name, "mlp") ? AG_ACT_RELU
                                                    : AG_ACT_GELU_ERF };
    if (!sparse) return c;
    c.block = 4;
    c.d_lowrank = 3;
    c.temperature = 0.1;
    if (strstr(name, "block")) c.kind = NN_FF_BLOCK;
    if (strstr(name, "switch")) c.kind = NN_FF_SWITCH;
    c.candidates = strstr(name, "candidates") ? 2 : 0;
    c.scaled = strstr(name, "scaled");
    c.controller_bias = strcmp(name, "gpt_hard_after") != 0;
    c.controller_relu = strcmp(name, "gpt_soft_after") == 0;
    c.mask_order = after ? NN_MASK_AFTER_RELU : NN_MASK_BEFORE_RELU;
    c.quant_prob = strstr(name, "hard")   ? 1
                   : strstr(name, "soft") ? 0
                   : strstr(name, "mlp")  ? 0.4
                                          : 0.5;
    if (strstr(name, "block")) c.temperature = 0.7;
    if (strstr(name, "relaxed")) {
        c.relaxed = true;
        c.temperature = 0.7;
        c.mask_order = NN_MASK_AFTER_RELU;
    }
    return c;
}

static bool is_mlp(const golden *g) { return strncmp(g->name, "mlp", 3) == 0; }

static nn_gpt_config gpt_of(const golden *g)
{
    const bool paper = !strncmp(g->name, "sparse_transformer", 18), grid = strstr(g->name, "grid");
    nn_gpt_config c = { .vocab = VOCAB, .context = 8, .n_layers = 2, .n_heads = 2, .d_model = 12,
                        .d_qk = 5, .d_v = 7, .bias = true, .norm_eps = 1e-5, .ff = ff_of(g->name) };
    c.tied = c.ff.kind == NN_FF_DENSE && !paper;
    if (!paper) return c;
    c.init = NN_INIT_RELEASED;
    c.final_norm_eps = 1e-3;
    c.embedding = (nn_embedding_config){
        .position = { .type = grid ? NN_POSITION_GRID : NN_POSITION_IMAGE, .stride = 3,
                      .width = 2, .channels = 2 },
        .start = true,
    };
    c.head.zero = true;
    return c;
}

static nn_model *model_new(const golden *g, ag_dtype dtype)
{
    nn_model *m;
    ag_err err = { 0 };
    const nn_gpt_config gpt = gpt_of(g);
    const int r = is_mlp(g) ? nn_mlp_new(&(nn_mlp_config){ .d_in = D_IN,
                                                           .d_hidden = 8,
                                                           .classes = CLASSES,
                                                           .n_layers = 2,
                                                           .bias = true,
                                                           .ff = ff_of(g->name) },
                                         dtype, 1, &m, &err)
                            : nn_gpt_new(&gpt, dtype, 1, &m, &err);
    if (r || nn_params_grads(m->params, &err)) fail_msg("%s", err.msg);
    assert_int_equal(m->params->n_items, g->n_items);
    for (int i = 0; i < m->params->n_items; i++) {
        const nn_item *item = &m->params->items[i];
        const char *last = strrchr(item->name, '/');
        const double more = last && !strcmp(last, "/gain") ? 1 : 0;
        for (int64_t e = 0; e < item->count; e++) {
            const double v = fill((uint32_t)i, (uint32_t)e) + more;
            if (dtype == AG_F64) ((double *)item->tensor->data)[e] = v;
            else ((float *)item->tensor->data)[e] = (float)v;
        }
    }
    return m;
}

static ag_tensor *gpt_loss(const nn_model *m, ag_tape *t, int step)
{
    int32_t ids[B * T], targets[B * T];
    for (int b = 0; b < B; b++)
        for (int i = 0; i < T; i++) {
            ids[b * T + i] = (b * 7 + i * i * 5 + step * 3) % VOCAB;
            targets[b * T + i] = i == 2 && b == 1 ? -1 : (b * 5 + i * 3 + step) % VOCAB;
        }
    return nn_model_loss(m, t, ag_input_i32(t, AG_SHAPE(B, T), ids),
                         ag_input_i32(t, AG_SHAPE(B, T), targets), NN_TRAIN);
}

/* A sequence of its own: all its tokens are predicted, from the start on. */
static ag_tensor *sequence_loss(const nn_model *m, ag_tape *t, int step)
{
    int32_t ids[B * T], targets[B * T];
    for (int b = 0; b < B; b++)
        for (int i = 0; i < T; i++) {
            targets[b * T + i] = (b * 7 + i * i * 5 + step * 3) % VOCAB;
            ids[b * T + i] = i ? targets[b * T + i - 1] : VOCAB;
        }
    return nn_model_loss(m, t, ag_input_i32(t, AG_SHAPE(B, T), ids),
                         ag_input_i32(t, AG_SHAPE(B, T), targets), NN_TRAIN);
}

static ag_tensor *mlp_loss(const nn_model *m, ag_tape *t, int step)
{
    double x[IMAGES * D_IN];
    int32_t targets[IMAGES];
    for (int i = 0; i < IMAGES * D_IN; i++) x[i] = fill(1000 + (uint32_t)step, (uint32_t)i) * 4;
    for (int b = 0; b < IMAGES; b++) targets[b] = (b * 2 + step) % CLASSES;
    return nn_model_loss(m, t, ag_input_f64(t, AG_SHAPE(IMAGES, D_IN), x, false),
                         ag_input_i32(t, AG_SHAPE(IMAGES), targets), NN_TRAIN);
}

/* --- training --------------------------------------------------------------------------------- */

static void near(const golden *g, const char *what, int i, double got, double want, double tol)
{
    if (!(fabs(got - want) <= tol * (1 + fabs(want))))
        fail_msg("%s: %s %d is %.12g, PyTorch has %.12g, off by %.2g", g->name, what, i, got, want,
                 fabs(got - want));
}

static double norm_of(const ag_tensor *x)
{
    double s = 0;
    for (int64_t i = 0; i < x->size; i++)
        s += real_at(x->grad, x->dtype, i) * real_at(x->grad, x->dtype, i);
    return sqrt(s);
}

/* AdamW in f64, from the paper (1711.05101); optim/ is f32. */
static void adamw(nn_params *p, int step, double *m, double *v, double norm)
{
    const double clip = norm > ADAMW.clip_norm ? ADAMW.clip_norm / norm : 1, t = step + 1;
    for (int i = 0; i < p->n_items; i++)
        for (int64_t e = p->items[i].offset; e < p->items[i].offset + p->items[i].count; e++) {
            double *w = (double *)p->weights + e, g = ((double *)p->grads)[e] * clip;
            if (p->items[i].decay) *w *= 1 - LR * ADAMW.weight_decay;
            m[e] = ADAMW.beta1 * m[e] + (1 - ADAMW.beta1) * g;
            v[e] = ADAMW.beta2 * v[e] + (1 - ADAMW.beta2) * g * g;
            *w -= LR * (m[e] / (1 - pow(ADAMW.beta1, t))) /
                  (sqrt(v[e] / (1 - pow(ADAMW.beta2, t))) + ADAMW.eps);
        }
    nn_params_zero_grad(p);
}

static ag_tensor *forward(const golden *g, const nn_model *m, ag_tape *t, int step)
{
    ag_tape_noise(t, &(ag_noise_key){ .seed = SEED,
                                      .step = (uint32_t)step,
                                      .n_samples = is_mlp(g) ? IMAGES : B });
    ag_tensor *loss = is_mlp(g)  ? mlp_loss(m, t, step)
                      : m->start ? sequence_loss(m, t, step)
                                 : gpt_loss(m, t, step);
    if (ag_backward(t, loss, 1)) fail_msg("%s", ag_error_message(t));
    return loss;
}

static void check_first_gradients(const golden *g, const nn_params *p, double tol)
{
    for (int i = 0; i < p->n_items; i++)
        near(g, "norm of gradient", i, norm_of(p->items[i].tensor), g->part[i], tol);
    const nn_item *full = nn_params_find(p, g->full_name);
    assert_true(full && (size_t)full->count == g->n_full);
    for (int64_t e = 0; e < full->count; e++)
        near(g, "element of a gradient", (int)e, real_at(full->tensor->grad, p->dtype, e),
             g->full[e], tol);
}

static void in_f64(void **state)
{
    const golden *g = *state;
    nn_model *model = model_new(g, AG_F64);
    nn_params *p = model->params;
    double *m = calloc((size_t)p->n, sizeof *m), *v = calloc((size_t)p->n, sizeof *v);
    ag_tape *t = ag_tape_new(ag_kernels_ref(AG_F64));
    assert_true(m && v && t);
    for (int step = 0; step < STEPS; step++) {
        near(g, "loss", step, *(double *)forward(g, model, t, step)->data, g->loss[step], 1e-10);
        double square = 0;
        for (int i = 0; i < p->n_items; i++) square += pow(norm_of(p->items[i].tensor), 2);
        near(g, "gradient norm", step, sqrt(square), g->norm[step], 1e-10);
        if (step == 0) check_first_gradients(g, p, 1e-10);
        adamw(p, step, m, v, sqrt(square));
        ag_tape_reset(t);
    }
    for (int i = 0; i < p->n_items; i++) {
        double sum = 0;
        for (int64_t e = 0; e < p->items[i].count; e++)
            sum += ((double *)p->items[i].tensor->data)[e] * fill(500 + (uint32_t)i, (uint32_t)e);
        near(g, "sum of parameter", i, sum, g->sum[i], 1e-10);
    }
    ag_tape_free(t);
    free(m);
    free(v);
    nn_model_free(model);
}

static void in_f32(void **state)
{
    const golden *g = *state;
    const char *why = NULL;
    const ag_kernels *k = ag_kernels_best(AG_F32, &why);
    assert_non_null(k);
    nn_model *model = model_new(g, AG_F32);
    nn_params *p = model->params;
    opt_range *range = calloc((size_t)p->n_items, sizeof *range);
    opt_state *opt;
    ag_err err = { 0 };
    ag_tape *t = ag_tape_new(k);
    assert_true(range && t);
    for (int i = 0; i < p->n_items; i++)
        range[i] = (opt_range){ .offset = p->items[i].offset, .count = p->items[i].count,
                                .decay = p->items[i].decay };
    if (opt_new(&ADAMW, NULL, p->n, range, p->n_items, &opt, &err)) fail_msg("%s", err.msg);
    for (int step = 0; step < STEPS; step++) {
        double norm;
        near(g, "loss", step, (double)*(float *)forward(g, model, t, step)->data, g->loss[step],
             1e-5);
        if (step == 0) check_first_gradients(g, p, 1e-5);
        if (opt_step(opt, LR, 1, p->weights, p->grads, &norm, &err)) fail_msg("%s", err.msg);
        near(g, "gradient norm", step, norm, g->norm[step], 1e-4);
        ag_tape_reset(t);
    }
    opt_free(opt);
    free(range);
    ag_tape_free(t);
    nn_model_free(model);
}

static int run_all(const char *group, void (*run)(void **state))
{
    struct CMUnitTest tests[COUNT(goldens)];
    for (size_t i = 0; i < COUNT(goldens); i++)
        tests[i] = (struct CMUnitTest){ .name = goldens[i].name, .test_func = run,
                                        .initial_state = (void *)(uintptr_t)&goldens[i] };
    return cmocka_run_group_tests_name(group, tests, NULL, NULL);
}

int main(void) { return run_all("f64", in_f64) + run_all("f32", in_f32); }
