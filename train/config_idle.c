/*
 * config_idle.c -- keys that say nothing where another key has some value.  Set to a value of its
 * own, such a key is refused: whoever set it expects something of it.
 *
 * Not in the table is what arms of a series keep from its base without using it: a dense layer
 * keeps all of model.ff; switch, and choices that are not the controller's, keep quant_prob,
 * quant_ramp and mask_order (configs/ablations/a0-controls.yaml).
 */
#include "train/schema.h"

static bool is_sparse(const train_config *c) { return c->model.ff.type != TRAIN_FF_DENSE; }
static bool is_switch(const train_config *c) { return c->model.ff.type == TRAIN_FF_SWITCH; }

/* Its choices are slices, not units. */
static bool has_slices(const train_config *c)
{
    return c->model.ff.type == TRAIN_FF_BLOCK || is_switch(c);
}

static bool is_blind(const train_config *c)
{
    return is_sparse(c) && c->model.ff.choice != TRAIN_CHOICE_CONTROLLER;
}

/* Not of attention by hashing, whose dense maps may be shared. */
static bool has_dense_maps(const train_config *c)
{
    return c->model.attention.type == TRAIN_ATTENTION_DENSE;
}

static bool has_dense_head(const train_config *c) { return c->model.head.type == TRAIN_HEAD_DENSE; }
static bool has_sparse_head(const train_config *c) { return !has_dense_head(c); }

static bool has_no_v_concat(const train_config *c)
{
    return c->model.attention.type != TRAIN_ATTENTION_MULTCONV &&
           !(c->model.attention.type == TRAIN_ATTENTION_PURE_LSH &&
             train_config_sparse_attention(c));
}

static bool has_no_text(const train_config *c)
{
    const int s = c->data.source;
    return s != TRAIN_SOURCE_TEXT && s != TRAIN_SOURCE_SHAKESPEARE && s != TRAIN_SOURCE_ENWIK8;
}

static bool has_no_characters(const train_config *c)
{
    return c->data.tokenizer == TRAIN_TOKENIZER_BYTE ||
           (c->data.tokenizer == TRAIN_TOKENIZER_AUTO && c->data.source == TRAIN_SOURCE_ENWIK8);
}

static const struct row {
    train_idle idle;
    bool (*is_idle)(const train_config *c);
} table[] = {
    { { "model.ff.controller_relu", "needs a controller of two matrices, but", "model.ff.type" },
      has_slices },
    { { "model.ff.d_lowrank", "needs a controller of two matrices, but", "model.ff.type" },
      has_slices },
    { { "model.ff.lowrank_rule", "needs a controller of two matrices, but", "model.ff.type" },
      has_slices },
    { { "model.ff.coin_rows", "needs soft steps, but", "model.ff.type" }, is_switch },
    { { "model.ff.candidates", "needs a straight-through gradient, but", "model.ff.type" },
      is_switch },
    { { "model.ff.scaled", "is always so for", "model.ff.type" }, is_switch },
    { { "model.ff.coin_rows", "needs a controller, but", "model.ff.choice" }, is_blind },
    { { "model.ff.temperature", "needs a controller, but", "model.ff.choice" }, is_blind },
    { { "model.ff.candidates", "needs a controller, but", "model.ff.choice" }, is_blind },
    { { "model.attention.share_qk", "needs sparse projections, but", "model.attention.type" },
      has_dense_maps },
    { { "model.attention.output", "needs sparse projections, but", "model.attention.type" },
      has_dense_maps },
    { { "model.attention.v_concat", "needs multconv, but", "model.attention.type" },
      has_no_v_concat },
    { { "model.head.prob_sparse", "needs a sparse head, but", "model.head.type" }, has_dense_head },
    { { "model.head.zero", "needs a dense head, but", "model.head.type" }, has_sparse_head },
    { { "model.ff.sru_units", "needs a gpt, but", "model.type" }, train_config_has_images },
    { { "model.start_vector", "needs a sequence, but", "model.type" }, train_config_has_images },
    { { "data.token_order", "needs a text, but", "data.source" }, has_no_text },
    { { "data.token_order", "needs characters, but", "data.tokenizer" }, has_no_characters },
    { { "data.image_size", "makes sequences of images, but", "model.type" },
      train_config_has_images },
    { { "data.levels", "makes tokens of pixels, but", "model.type" }, train_config_has_images },
};

bool train_idle_next(const train_config *c, int *at, train_idle *ret_idle)
{
    enum { ROWS = sizeof table / sizeof *table };
    train_config plain;
    train_config_init(&plain);
    while (*at < ROWS) {
        const struct row *x = &table[(*at)++];
        if (!x->is_idle(c) || train_value_equal(c, &plain, train_key_find(x->idle.key))) continue;
        *ret_idle = x->idle;
        return true;
    }
    return false;
}
