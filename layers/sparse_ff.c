/*
 * sparse_ff.c -- the sparse kinds of the feed-forward layer (ff.h has the formulas).
 *
 * Soft steps are dense and made of ordinary ops.  Everything else, hard training steps, evaluation
 * and decoding, is one path: choose, then compute what was chosen.
 */
#include "layers/ff.h"

#include "autograd/op.h"

#include <math.h>
#include <stdlib.h>

/* Glorot uniform matrices on their two-dimensional shapes; biases start at N(0, 1e-6), as the
 * released code.  rows: shape [d_in,d_out], else [d_out,d_in]. */
static void linear_build(nn_linear *l, nn_params *p, const char *name, int64_t d_in, int64_t d_out,
                         bool in_out, bool bias, double gain)
{
    const size_t at = nn_push(p, "%s", name);
    l->weight = nn_param(p, "weight", in_out ? AG_SHAPE(d_in, d_out) : AG_SHAPE(d_out, d_in),
                         nn_glorot(d_in, d_out, gain));
    l->bias = bias ? nn_param(p, "bias", AG_SHAPE(d_out), nn_normal(1e-6)) : NULL;
    nn_pop(p, at);
}

void nn_sparse_ff_build(nn_ff *l, nn_params *p)
{
    nn_ff_config *c = &l->config;
    const bool units = c->kind == NN_FF_SPARSE;
    const double gain = c->kernel_scaling ? sqrt((double)c->block) : 1;
    l->blocks = units ? c->d_ff / c->block : 1;
    l->width = units ? 1 : c->d_ff / c->block;
    c->d_lowrank = units ? nn_ff_rank(c, l->d_model) : l->d_model;
    if (c->chooser == NN_CHOOSE_CONTROLLER) {
        if (units) linear_build(&l->c1, p, "c1", l->d_model, c->d_lowrank, false, false, 1);
        linear_build(&l->c2, p, "c2", c->d_lowrank, l->blocks * c->block, true, c->controller_bias,
                     1);
    }
    linear_build(&l->in, p, "in", l->d_model, c->d_ff, false, c->bias_in, 1);
    linear_build(&l->out, p, "out", c->d_ff, l->d_model, true, c->bias_out, gain);
    l->noise_site = nn_site(p);
    l->coin_site = nn_site(p);
}

/* The probability of a hard step rises in a straight line to 1. */
static double hard_share(const nn_ff_config *c, uint32_t step)
{
    if (!c->quant_ramp) return c->quant_prob;
    const double done = fmin(1, (double)step / (double)c->quant_ramp);
    return c->quant_prob + (1 - c->quant_prob) * done;
}

/* Heads or tails of this layer in this step. */
static bool toss(const nn_ff *l, const ag_noise *z, int64_t coin)
{
    return (double)ag_uniform(ag_noise_bits(z->seed, z->step, z->site, (uint64_t)coin)) <
           hard_share(&l->config, z->step);
}

/* That of a whole step: a decision of the tape (replay.h). */
static bool toss_once(const void *layer, const ag_noise_key *key)
{
    const nn_ff *l = layer;
    return toss(l, &(ag_noise){ .seed = key->seed, .step = key->step, .site = l->coin_site }, 0);
}

/* Of these a choice is all there is. */
static bool is_always_hard(const nn_ff *l)
{
    return l->config.kind == NN_FF_SWITCH || l->config.chooser != NN_CHOOSE_CONTROLLER;
}

/* What the controller's last matrix sees. */
static ag_tensor *controller_low(const nn_ff *l, ag_tape *t, ag_tensor *x)
{
    if (!l->c1.weight) return x;
    return nn_linear_forward(&l->c1, t, x, l->config.controller_relu ? AG_ACT_RELU : AG_ACT_NONE,
                             NULL);
}

/* --- soft: every unit, times p ---------------------------------------------------------------- */

static ag_tensor *soft_mask(const nn_ff *l, ag_tape *t, ag_tensor *low, double temperature,
                            int64_t of_rows)
{
    const ag_controller_options o = { .n = l->config.block, .relaxed = l->config.relaxed,
                                      .temperature = temperature, .site = l->noise_site,
                                      .of_rows = of_rows };
    ag_tensor *z = ag_linear_in_out(t, low, l->c2.weight, l->c2.bias, AG_ACT_NONE, NULL);
    ag_tensor *p = ag_control(t, z, &o, NULL);
    return l->width == 1 ? p : ag_repeat(t, p, l->width);
}

/* x may be some of `of_rows` rows, here and in hard_forward; 0: all. */
static ag_tensor *soft_forward(const nn_ff *l, ag_tape *t, ag_tensor *x, ag_tensor *residual,
                               nn_mode mode, int64_t of_rows)
{
    /* without relaxation a soft step has no noise: none is drawn */
    const bool noisy = mode == NN_TRAIN && l->config.relaxed;
    ag_tensor *mask = soft_mask(l, t, controller_low(l, t, x), noisy ? l->config.temperature : 0,
                                of_rows);
    ag_tensor *h = ag_relu_mask(t, nn_linear_forward(&l->in, t, x, AG_ACT_NONE, NULL), mask);
    return ag_linear_in_out(t, h, l->out.weight, l->out.bias, AG_ACT_NONE, residual);
}

/* --- hard: what is chosen --------------------------------------------------------------------- */

/* Does a hard step send the gradient of every unit of a block to the controller? */
static bool hears_all(const nn_ff_config *c)
{
    return c->candidates ? c->candidates == c->block : c->mask_order == NN_MASK_AFTER_RELU;
}

static ag_choose_options controller_options(const nn_ff *l, nn_mode mode, int64_t of_rows)
{
    const nn_ff_config *c = &l->config;
    const bool train = mode == NN_TRAIN, own = c->kind == NN_FF_SWITCH;
    const bool all = train && !own && hears_all(c);
    return (ag_choose_options){ .n = c->block,
                                .picks = train && !own && !all && c->candidates ? c->candidates : 1,
                                .relaxed = c->relaxed, .all = all,
                                .gate = own ? AG_GATE_P : c->scaled ? AG_GATE_SCALED : AG_GATE_ONE,
                                .temperature = train ? c->temperature : 0, .site = l->noise_site,
                                .of_rows = of_rows };
}

/* Of a controller that knows nothing: noise alone decides, or the lowest index. */
static ag_tensor *choose_blindly(const nn_ff *l, ag_tape *t, const ag_tensor *x, bool random)
{
    const ag_choose_options o = { .n = l->config.block, .picks = 1, .temperature = random,
                                  .site = l->noise_site };
    static const float nothing[1];
    ag_tensor *choice;
    ag_shape empty = x->shape;
    empty.dim[empty.ndim - 1] = 0;
    ag_choose(t, ag_input(t, empty, nothing, false),
              ag_input(t, AG_SHAPE(0, l->blocks * l->config.block), nothing, false), NULL, &o,
              &choice);
    return choice;
}

/* The largest pre-activation of each block; no gradient comes through a choice. */
static ag_tensor *choose_largest(const nn_ff *l, ag_tape *t, ag_tensor *x)
{
    const bool was = ag_tape_no_grad(t, true);
    ag_tensor *a = nn_linear_forward(&l->in, t, x, AG_ACT_NONE, NULL);
    ag_shape cut = x->shape;
    cut.dim[cut.ndim - 1] = l->blocks;
    cut.dim[cut.ndim++] = l->config.block;
    ag_tensor *choice = ag_argmax(t, ag_reshape(t, a, cut));
    ag_tape_no_grad(t, was);
    return choice;
}

static void probe_see(const nn_ff *l, ag_tape *t, ag_tensor *x, const ag_tensor *choice)
{
    nn_ff_probe *probe = l->probe;
    if (ag_error(t)) return;
    const int32_t *k = ag_ints(t, choice);
    const int64_t rows = ag_rows(choice);
    for (int64_t i = 0; k && i < rows * l->blocks; i++) {
        probe->used[i % l->blocks * l->config.block + k[i]]++;
        if (probe->rows + i / l->blocks < probe->cap)
            probe->choice[probe->rows * l->blocks + i] = k[i];
    }
    probe->rows += rows;
    if (!l->c2.weight) return;
    const bool was = ag_tape_no_grad(t, true);
    const ag_controller_options o = { .n = l->config.block };
    ag_tensor *z = ag_linear_in_out(t, controller_low(l, t, x), l->c2.weight, l->c2.bias,
                                    AG_ACT_NONE, NULL);
    const ag_tensor *p = ag_control(t, z, &o, NULL);
    const float *v = ag_floats(t, p);
    for (int64_t i = 0; v && !ag_error(t) && i < p->size; i++)
        probe->entropy -= v[i] > 0 ? (double)v[i] * log((double)v[i]) : 0;
    ag_tape_no_grad(t, was);
}

static ag_tensor *hard_forward(const nn_ff *l, ag_tape *t, ag_tensor *x, ag_tensor *residual,
                               nn_mode mode, int64_t of_rows)
{
    const nn_ff_config *c = &l->config;
    const ag_live_weights w = { l->in.weight, l->in.bias, l->out.weight, l->out.bias };
    ag_choose_options o = { .n = c->block, .picks = 1 };
    ag_tensor *gate = NULL, *choice;
    switch (c->chooser) {
    case NN_CHOOSE_RANDOM: choice = choose_blindly(l, t, x, true); break;
    case NN_CHOOSE_FIRST:  choice = choose_blindly(l, t, x, false); break;
    case NN_CHOOSE_ORACLE: choice = choose_largest(l, t, x); break;
    default:
        o = controller_options(l, mode, of_rows);
        gate = ag_choose(t, controller_low(l, t, x), l->c2.weight, l->c2.bias, &o, &choice);
    }
    if (mode == NN_EVAL && o.gate == AG_GATE_ONE) gate = NULL;
    if (mode == NN_EVAL && l->probe && ag_tape_runs(t)) probe_see(l, t, x, choice);
    return ag_live_ff(t, x, &w, gate, choice, residual,
                      &(ag_live_options){ c->block, l->width, o.picks, o.all });
}

/* --- both: a coin for each coin_rows rows ----------------------------------------------------- */

/* Which rows are hard, and which are soft, in order. */
static int64_t toss_rows(const nn_ff *l, const ag_noise *z, int64_t rows, int32_t *hard,
                         int32_t *soft)
{
    const int64_t size = l->config.coin_rows;
    int64_t n = 0;
    bool heads = false;
    for (int64_t r = 0; r < rows; r++) {
        if (r == 0 || (z->row0 + r) % size == 0) heads = toss(l, z, (z->row0 + r) / size);
        if (heads) hard[n++] = (int32_t)r;
        else soft[r - n] = (int32_t)r;
    }
    return n;
}

/* The rows are taken apart, go their ways, and come together again. */
static ag_tensor *mixed_forward(const nn_ff *l, ag_tape *t, ag_tensor *x, ag_tensor *residual)
{
    const int64_t rows = ag_rows(x);
    const ag_noise z = ag_noise_for(t, l->coin_site, rows);
    int32_t *hard = malloc((size_t)(2 * rows + 1) * sizeof *hard);
    if (!hard) ag_fail(t, AG_ENOMEM, "out of memory for the coins of %lld rows", (long long)rows);
    const int64_t n = hard ? toss_rows(l, &z, rows, hard, hard + rows) : 0;
    ag_tensor *y;
    if (n == rows || n == 0) {
        y = n ? hard_forward(l, t, x, residual, NN_TRAIN, 0)
              : soft_forward(l, t, x, residual, NN_TRAIN, 0);
    } else {
        ag_tensor *flat = ag_reshape(t, x, AG_SHAPE(rows, l->d_model));
        ag_tensor *h = ag_input_i32(t, AG_SHAPE(n), hard);
        ag_tensor *s = ag_input_i32(t, AG_SHAPE(rows - n), hard + rows);
        ag_tensor *yh = hard_forward(l, t, ag_gather(t, flat, h), NULL, NN_TRAIN, rows);
        ag_tensor *ys = soft_forward(l, t, ag_gather(t, flat, s), NULL, NN_TRAIN, rows);
        y = ag_scatter(t, yh, h, x->shape, ag_scatter(t, ys, s, x->shape, residual));
    }
    free(hard);
    return y;
}

static ag_tensor *branch(const nn_ff *l, ag_tape *t, ag_tensor *x, ag_tensor *residual,
                         nn_mode mode)
{
    const bool tossed = mode == NN_TRAIN && !is_always_hard(l);
    if (tossed && l->config.coin_rows && !ag_error(t)) return mixed_forward(l, t, x, residual);
    const bool hard = tossed ? ag_decide(t, toss_once, l) : mode == NN_EVAL || is_always_hard(l);
    return hard ? hard_forward(l, t, x, residual, mode, 0)
                : soft_forward(l, t, x, residual, mode, 0);
}

ag_tensor *nn_sparse_ff_forward(const nn_ff *l, ag_tape *t, ag_tensor *x, ag_tensor *residual,
                                nn_mode mode)
{
    const bool drop = nn_dropout_is_on(&l->drop, mode);
    ag_tensor *y = branch(l, t, x, drop ? NULL : residual, mode);
    return drop ? ag_dropout(t, y, residual, l->drop.p, l->drop.site) : y;
}
