#include "train/recompute.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool train_may_recompute(const train_session *s)
{
    return nn_blocks_count(s->model->stack) > 0;
}

/* --- a step that is planned ------------------------------------------------------------------- */

typedef struct coins { double prob; int64_t ramp; } coins;

/* Layers that toss between hard and soft are soft from now on; c keeps what they did. */
static void toss_soft(const nn_model *m, coins *c)
{
    nn_ff *l;
    for (int i = 0; (l = m->ff_layer(m, i)); i++) {
        c[i] = (coins){ l->config.quant_prob, l->config.quant_ramp };
        if (l->config.coin_rows || !(c[i].prob < 1)) continue;
        l->config.quant_prob = 0;
        l->config.quant_ramp = 0;
    }
}

static void toss_as_before(const nn_model *m, const coins *c)
{
    nn_ff *l;
    for (int i = 0; (l = m->ff_layer(m, i)); i++) {
        l->config.quant_prob = c[i].prob;
        l->config.quant_ramp = c[i].ramp;
    }
}

static void record_on(train_session *s, ag_tape *t)
{
    const int64_t n = s->config.train.micro_batch;
    ag_tensor *x = s->d_in ? ag_input_blank(t, AG_SHAPE(n, s->d_in), false)
                           : ag_input_i32(t, AG_SHAPE(n, s->source + s->context), s->ids);
    ag_tensor *y = s->d_in ? ag_input_i32(t, AG_SHAPE(n), s->targets)
                           : ag_input_i32(t, AG_SHAPE(n, s->context), s->targets);
    ag_tape_noise(t, &(ag_noise_key){ (uint64_t)s->config.run.seed, 0, 0, n });
    ag_backward(t, nn_model_loss(s->model, t, x, y, NN_TRAIN), 1);
}

int train_plan_step(train_session *s, nn_recompute *r, train_step_plan *ret_p, ag_err *err)
{
    nn_model *m = s->model;
    nn_recompute *was = m->recompute;
    ag_tape *t = ag_tape_new(ag_tape_kernels(s->tape));
    int layers = 0;
    while (m->ff_layer(m, layers)) layers++;
    coins *c = malloc((size_t)layers * sizeof *c + 1);
    int code = t && c ? AG_OK : ag_err_set(err, AG_ENOMEM, "out of memory for a plan");
    if (code == AG_OK) {
        m->recompute = r;
        toss_soft(m, c);
        ag_tape_plan(t, true);
        record_on(s, t);
        toss_as_before(m, c);
        m->recompute = was;
        const ag_tape_memory use = ag_tape_bytes(t);
        const size_t each = 2 * sizeof(float) + (m->params->narrow ? sizeof(uint16_t) : 0);
        *ret_p = (train_step_plan){ .fixed = (double)m->params->n * (double)each +
                                             (double)opt_bytes(s->opt) +
                                             (double)m->cost.pattern_bytes,
                                    .peak = (double)use.peak, .grads = (double)use.grads,
                                    .flops = (double)use.flops };
        code = ag_tape_status(t, err);
    }
    ag_tape_free(t);
    free(c);
    return code;
}

/* --- a plan for a number of bytes ------------------------------------------------------------- */

typedef struct budget {
    train_session *s;
    nn_stacks_cost cost;
    double         grads;            /* bytes of gradients in backward */
} budget;

static int measure(train_session *s, budget *b, ag_err *err)
{
    const nn_blocks *stack = s->model->stack;
    *b = (budget){ .s = s };
    memcpy(b->cost.stack, stack, sizeof b->cost.stack);
    b->cost.block = calloc((size_t)nn_blocks_count(stack), sizeof *b->cost.block);
    nn_recompute *r = nn_recompute_new(stack, AG_KEEP_ALL, 0);
    train_step_plan p;
    int code = AG_ENOMEM;
    if (r && b->cost.block) {
        r->measure = &b->cost;
        code = train_plan_step(s, r, &p, err);
    } else {
        ag_err_set(err, AG_ENOMEM, "out of memory for a plan");
    }
    nn_recompute_free(r);
    if (code) return code;
    b->grads = p.grads;
    b->cost.end = p.peak - p.grads - b->cost.end;
    return AG_OK;
}

/* The plan for so many bytes of numbers, and what it then takes.  AG_ERANGE: there is none. */
static int attempt(const budget *b, double bytes, nn_recompute **ret_r, train_step_plan *ret_p,
               ag_err *err)
{
    int r = nn_recompute_plan(&b->cost, bytes, 0, ret_r, NULL, err);
    if (r) return r;
    r = train_plan_step(b->s, *ret_r, ret_p, err);
    if (r) {
        nn_recompute_free(*ret_r);
        *ret_r = NULL;
    }
    return r;
}

/*
 * The planner knows neither the gradients that a plan needs nor sizes smaller than a slot: what the
 * step takes says whether it may have more or must do with less.
 */
static int fit(const budget *b, double bytes, nn_recompute **ret_best, ag_err *err)
{
    double low = 0, high = bytes, aim = bytes - b->grads, least = INFINITY;
    for (int i = 0; i < 10 && high - low > 0.002 * bytes; i++, aim = 0.5 * (low + high)) {
        nn_recompute *r = NULL;
        train_step_plan p;
        ag_err why = { 0 };
        const int code = attempt(b, aim, &r, &p, &why);
        if (code && code != AG_ERANGE) return ag_err_set(err, code, "%s", why.msg);
        if (code == AG_ERANGE || p.peak <= bytes) low = aim;
        else high = aim;
        if (code == AG_OK && p.peak <= bytes && p.flops < least) {
            nn_recompute_free(*ret_best);
            *ret_best = r;
            least = p.flops;
        } else {
            nn_recompute_free(r);
        }
    }
    return AG_OK;
}

/* The least that a step takes under any plan, nearly. */
static double least_of(const budget *b, double most)
{
    double low = 0, high = most, least = most;
    while (high - low > 0.005 * most) {
        const double mid = 0.5 * (low + high);
        nn_recompute *r = NULL;
        train_step_plan p;
        ag_err err = { 0 };
        if (attempt(b, mid, &r, &p, &err) == AG_OK) {
            high = mid;
            least = fmin(least, p.peak);
        } else {
            low = mid;
        }
        nn_recompute_free(r);
    }
    return least;
}

static int refuse(const budget *b, const train_step_plan *all, double bytes, ag_err *err)
{
    const train_session *s = b->s;
    const double least = least_of(b, all->peak), room = bytes - all->fixed;
    const int64_t micro = s->config.train.micro_batch;
    int64_t fits = room > 0 ? (int64_t)((double)micro * room / least) : 0;
    if (fits >= micro) fits = micro - 1;
    while (fits > 1 && s->config.train.batch % fits) fits--;
    char hint[160];
    if (fits > 0)
        snprintf(hint, sizeof hint, "train.micro_batch=%lld, which is %lld now, would about fit",
                 (long long)fits, (long long)micro);
    else
        snprintf(hint, sizeof hint, "a smaller %s, model.d_model or model.n_layers needs less%s",
                 s->source ? "data.source_length" : "model.context",
                 room > 0 ? "" : ", and so does another optim.type");
    return ag_err_set(err, AG_ECONFIG, "train.memory_budget = %s is too little: parameters, "
                      "gradients and optimizer take %.1f MB, a step at least %.1f MB more\n  %s",
                      s->config.train.memory_budget, 1e-6 * all->fixed, 1e-6 * least, hint);
}

static int plan_for(train_session *s, double bytes, nn_recompute **ret_r, ag_err *err)
{
    budget b = { 0 };
    train_step_plan all;
    *ret_r = NULL;
    int r = train_plan_step(s, NULL, &all, err);
    if (r || all.fixed + all.peak <= bytes) return r;
    r = measure(s, &b, err);
    if (r == AG_OK) r = fit(&b, bytes - all.fixed, ret_r, err);
    if (r == AG_OK && !*ret_r) r = refuse(&b, &all, bytes, err);
    free(b.cost.block);
    return r;
}

int train_recompute_new(train_session *s, int word, int64_t group, double bytes,
                        nn_recompute **ret_r, ag_err *err)
{
    const nn_blocks *b = s->model->stack;
    *ret_r = NULL;
    switch (word) {
    case TRAIN_RECOMPUTE_NONE:      return AG_OK;
    case TRAIN_RECOMPUTE_CHEAP:     *ret_r = nn_recompute_new(b, AG_KEEP_PRODUCTS, 0); break;
    case TRAIN_RECOMPUTE_ATTENTION: *ret_r = nn_recompute_new(b, AG_KEEP_BRANCHES, 0); break;
    case TRAIN_RECOMPUTE_BLOCK:     *ret_r = nn_recompute_new(b, AG_KEEP_ALL, (int)group); break;
    default:                        return plan_for(s, bytes, ret_r, err);
    }
    return *ret_r ? AG_OK : ag_err_set(err, AG_ENOMEM, "out of memory for a plan");
}

int train_recompute_apply(train_session *s, ag_err *err)
{
    const train_config *c = &s->config;
    return train_recompute_new(s, c->train.recompute, c->train.recompute_group,
                               train_bytes(c->train.memory_budget), &s->model->recompute, err);
}

/* --- out of memory ---------------------------------------------------------------------------- */

/* Bytes of a step with another micro-batch and plan; infinite where it cannot be told. */
static double step_bytes(train_session *s, int64_t micro, int word)
{
    const int64_t was = s->config.train.micro_batch;
    nn_recompute *r = NULL;
    train_step_plan p = { .peak = INFINITY };
    s->config.train.micro_batch = micro;
    if (train_recompute_new(s, word, 1, 0, &r, NULL) == AG_OK) train_plan_step(s, r, &p, NULL);
    s->config.train.micro_batch = was;
    nn_recompute_free(r);
    return p.peak;
}

void train_memory_advice(train_session *s, ag_err *err)
{
    const int64_t micro = s->config.train.micro_batch;
    const int word = s->config.train.recompute;
    size_t total, unused;
    char about[256];
    s->device->about(about, sizeof about, &total, &unused);
    const double room = (double)unused + (double)ag_tape_bytes(s->tape).reserved;
    char text[512];
    int n = snprintf(text, sizeof text, "\n  %s: %.1f MB, %.1f MB of them for a step",
                     about, 1e-6 * (double)total, 1e-6 * room);
    int64_t fits = micro / 2;
    double bytes = INFINITY;
    for (; fits > 0 && !(bytes <= room); fits /= 2) {
        while (s->config.train.batch % fits) fits--;
        bytes = step_bytes(s, fits, word);
        if (bytes <= room) break;
    }
    if (fits > 0)
        n += snprintf(text + n, sizeof text - (size_t)n, "\n  train.micro_batch=%lld would take "
                      "%.1f MB", (long long)fits, 1e-6 * bytes);
    const bool may = train_may_recompute(s);
    for (int w = TRAIN_RECOMPUTE_CHEAP; may && w <= TRAIN_RECOMPUTE_BLOCK; w++) {
        bytes = step_bytes(s, micro, w);
        if (w == word || !(bytes <= room)) continue;
        n += snprintf(text + n, sizeof text - (size_t)n, "\n  train.recompute=%s would take "
                      "%.1f MB", train_choice_word(w), 1e-6 * bytes);
        break;
    }
    const size_t at = strlen(err->msg);
    snprintf(err->msg + at, sizeof err->msg - at, "%s", text);
}
