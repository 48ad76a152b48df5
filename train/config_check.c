/*
 * config_check.c -- what must hold between keys, and the sizes that follow from several.
 */
#include "layers/pattern.h"
#include "layers/position.h"
#include "train/schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct checker {
    const train_config *c;
    nn_pattern_files *files;         /* of the pattern; NULL: on disk */
    char   text[1800];               /* faults, one a line */
    size_t used;
} checker;

double train_bytes(const char *text)
{
    static const struct { const char *unit; double bytes; } units[] = {
        { "", 1 }, { "B", 1 }, { "kB", 1e3 }, { "KB", 1e3 }, { "MB", 1e6 }, { "GB", 1e9 },
        { "KiB", 0x1p10 }, { "MiB", 0x1p20 }, { "GiB", 0x1p30 },
    };
    char *end;
    const double n = strtod(text, &end);
    if (end == text || !(n >= 0 && n < 0x1p60)) return -1;
    end += strspn(end, " ");
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (!strcmp(end, units[i].unit)) return n * units[i].bytes;
    return -1;
}

int64_t train_config_d_ff(const train_config *c)
{
    if (c->model.d_ff) return c->model.d_ff;
    return 4 * (train_config_has_images(c) ? c->model.d_hidden : c->model.d_model);
}

int64_t train_config_d_lowrank(const train_config *c)
{
    if (c->model.ff.d_lowrank) return c->model.ff.d_lowrank;
    const int64_t d_model = train_config_has_images(c) ? c->model.d_hidden : c->model.d_model;
    const bool blocks = c->model.ff.lowrank_rule == TRAIN_RANK_BLOCKS;
    const int64_t rank = (blocks ? train_config_d_ff(c) : d_model) / c->model.ff.block;
    return rank > 1 ? rank : 1;
}

double train_config_loss_scale_floor(const train_config *c)
{
    if (c->train.loss_scale_floor > 0) return c->train.loss_scale_floor;
    return c->train.loss_scale == TRAIN_LOSS_SCALE_SMOOTH ? 1024 : 1;
}

bool train_config_has_images(const train_config *c)
{
    return c->model.type == TRAIN_MODEL_MLP;
}

bool train_config_has_source(const train_config *c)
{
    return c->model.type != TRAIN_MODEL_GPT && c->model.type != TRAIN_MODEL_MLP;
}

int64_t train_config_context(const train_config *c)
{
    return train_config_has_source(c) ? c->data.target_length : c->model.context;
}

static bool has_pairs(int source)
{
    switch (source) {
    case TRAIN_SOURCE_COPY_PAIRS:
    case TRAIN_SOURCE_ADDITION:
    case TRAIN_SOURCE_LONG_RECALL:
    case TRAIN_SOURCE_PAIRS: return true;
    default:                 return false;
    }
}

bool train_config_sparse_attention(const train_config *c)
{
    switch (c->model.attention.type) {
    case TRAIN_ATTENTION_DENSE:
    case TRAIN_ATTENTION_LSH:      return false;
    case TRAIN_ATTENTION_PURE_LSH:
        return c->model.attention.lsh.projections == TRAIN_PROJECTIONS_MULTCONV;
    default:                       return true;
    }
}

static bool may_be_images(int source)
{
    switch (source) {
    case TRAIN_SOURCE_DIGITS:
    case TRAIN_SOURCE_MNIST:
    case TRAIN_SOURCE_FASHION_MNIST:
    case TRAIN_SOURCE_CIFAR10:
    case TRAIN_SOURCE_IDX:
    case TRAIN_SOURCE_HDF5: return true;
    default:                return false;
    }
}

void train_config_cite(const train_config *c, const char *path, char *buf, size_t size)
{
    char value[TRAIN_VALUE_MAX], origin[TRAIN_TEXT_MAX + 16], shown_value[80], shown[160];
    const int key = train_key_find(path);
    train_value_text(c, key, value);
    train_value_origin(c, key, origin, sizeof origin);
    train_text_clean(value, shown_value, sizeof shown_value);
    train_text_clean(origin, shown, sizeof shown);
    snprintf(buf, size, "%s = %s (%s)", path, shown_value, shown);
}

/* "A = 1 (...) RELATION B = 2 (...); note" */
static void clash(checker *k, const char *a, const char *relation, const char *b, const char *note)
{
    char da[384], db[384];
    train_config_cite(k->c, a, da, sizeof da);
    train_config_cite(k->c, b, db, sizeof db);
    if (k->used >= sizeof k->text) return;
    k->used += (size_t)snprintf(k->text + k->used, sizeof k->text - k->used, "%s%s %s %s%s%s",
                                k->used ? "\n" : "", da, relation, db, note[0] ? "; " : "", note);
}

/* Keys of sources, targets, words and digits. */
static void check_pairs(checker *k)
{
    const train_config *c = k->c;
    const int source = c->data.source;
    const int64_t digits = c->data.digits, most = c->data.test_digits;
    const int64_t longest = (digits > most ? digits : most) + 1;
    char note[64];
    if (c->data.tokenizer == TRAIN_TOKENIZER_WORD && source != TRAIN_SOURCE_PAIRS)
        clash(k, "data.tokenizer", "needs pairs, but", "data.source", "");
    if (train_config_has_source(c) && !has_pairs(source))
        clash(k, "model.type", "cannot learn from", "data.source",
              "it learns pairs: pairs, copy_pairs, addition, long_recall");
    if (train_config_has_source(c) && !c->data.source_length)
        clash(k, "model.type", "needs a length of its source, but", "data.source_length", "");
    if (train_config_has_source(c) && !c->data.target_length)
        clash(k, "model.type", "needs a length of its target, but", "data.target_length", "");
    if (source != TRAIN_SOURCE_ADDITION) return;
    snprintf(note, sizeof note, "at least %lld", (long long)longest);
    const char *key = digits > most ? "data.digits" : "data.test_digits";
    if (c->data.source_length && c->data.source_length < longest)
        clash(k, "data.source_length", "is too short for", key, note);
    if (c->data.target_length && c->data.target_length < longest)
        clash(k, "data.target_length", "is too short for", key, note);
    if (most && !(c->data.test_fraction > 0))
        clash(k, "data.test_digits", "is for a test part, but", "data.test_fraction", "");
    if (most && (c->data.test_least ? c->data.test_least : digits + 1) > most)
        clash(k, "data.test_digits", "is too small for",
              c->data.test_least ? "data.test_least" : "data.digits", "");
}

static void check_data(checker *k)
{
    const train_config *c = k->c;
    const bool gpt = c->model.type == TRAIN_MODEL_GPT;
    const int source = c->data.source;
    check_pairs(k);
    if (c->model.type == TRAIN_MODEL_MLP && !may_be_images(source))
        clash(k, "model.type", "cannot learn from", "data.source", "an mlp learns from images");
    const bool named = source == TRAIN_SOURCE_TEXT || source == TRAIN_SOURCE_IDX ||
                       source == TRAIN_SOURCE_HDF5 || source == TRAIN_SOURCE_WAV ||
                       source == TRAIN_SOURCE_PAIRS;
    if (c->data.val_fraction + c->data.test_fraction >= 1)
        clash(k, "data.val_fraction", "leaves nothing to train on beside", "data.test_fraction",
              "");
    if (named && !c->data.path[0])
        clash(k, "data.source", "needs a file or folder, but", "data.path", "");
    const double size = (double)c->data.size, val = size * c->data.val_fraction;
    const double part = val < size - val ? val : size - val;
    if (gpt && source == TRAIN_SOURCE_LANGUAGE && c->data.size && part <= (double)c->model.context)
        clash(k, "model.context", "does not fit into", "data.size",
              "after the split by data.val_fraction");
}

/* The width of a convolution over modules: model.attention.kernel_modules, or what 0 stands for. */
static void check_kernel_modules(checker *k, int64_t modules, const char *modules_key)
{
    const train_config *c = k->c;
    const int type = c->model.attention.type;
    const int64_t own = c->model.attention.kernel_modules;
    const bool multconv = type == TRAIN_ATTENTION_MULTCONV || type == TRAIN_ATTENTION_PURE_LSH;
    const int64_t span = own ? own : multconv ? 3 : 1;
    const bool ring = type == TRAIN_ATTENTION_MODULAR || type == TRAIN_ATTENTION_MULTMOD;
    const int64_t most = ring ? modules : 2 * modules - 1;
    char note[80];
    if (span % 2 == 0)
        clash(k, "model.attention.kernel_modules", "must be odd where not 0, for",
              "model.attention.type", "");
    snprintf(note, sizeof note, "at most %lld%s", (long long)most,
             own ? "" : ", and 0 stands for 3");
    if (span > most)
        clash(k, "model.attention.kernel_modules", "is too wide for", modules_key, note);
}

/* Attention, head and match. */
static void check_sparse_parts(checker *k)
{
    const train_config *c = k->c;
    const bool gpt = !train_config_has_images(c);
    const bool attention = train_config_sparse_attention(c);
    const int64_t own = c->model.attention.modules, modules = own ? own : c->model.n_heads;
    if (!gpt && c->model.attention.type != TRAIN_ATTENTION_DENSE)
        clash(k, "model.attention.type", "needs attention, which only a gpt has, but", "model.type",
              "");
    else if (attention && c->model.d_model % modules)
        clash(k, "model.d_model", "must be a multiple of",
              own ? "model.attention.modules" : "model.n_heads",
              own ? "" : "the number of modules where model.attention.modules is 0");
    else if (attention)
        check_kernel_modules(k, modules, own ? "model.attention.modules" : "model.n_heads");
    if (gpt && attention && c->model.d_qk)
        clash(k, "model.d_qk", "needs dense projections, but", "model.attention.type",
              "0 fits any");
    if (gpt && attention && c->model.d_v)
        clash(k, "model.d_v", "needs dense projections, but", "model.attention.type",
              "0 fits any");
    if (!gpt && c->model.head.type != TRAIN_HEAD_DENSE)
        clash(k, "model.head.type", "needs a gpt, but", "model.type", "");
    else if (c->model.head.type != TRAIN_HEAD_DENSE && c->model.tied_embeddings)
        clash(k, "model.head.type", "has weights of its own, but", "model.tied_embeddings",
              "set model.tied_embeddings: false");
    if (c->model.head.zero && c->model.tied_embeddings)
        clash(k, "model.head.zero", "needs weights of its own, but", "model.tied_embeddings",
              "set model.tied_embeddings: false");
    if (c->model.type != TRAIN_MODEL_GPT && c->model.match == TRAIN_MATCH_PARAMS)
        clash(k, "model.match", "needs a gpt, but", "model.type", "");
    if (c->model.match == TRAIN_MATCH_TOUCHED && c->model.ff.type != TRAIN_FF_DENSE)
        clash(k, "model.match", "needs a dense feed-forward to choose d_ff for, but",
              "model.ff.type", "");
}

/* Attention by hashing. */
static void check_lsh(checker *k)
{
    const train_config *c = k->c;
    const int type = c->model.attention.type;
    if (type != TRAIN_ATTENTION_LSH && type != TRAIN_ATTENTION_PURE_LSH) return;
    if (c->model.type == TRAIN_MODEL_TRANSFORMER)
        clash(k, "model.attention.type", "needs a gpt or a terraformer, but", "model.type", "");
    if (c->model.attention.lsh.buckets % 2)
        clash(k, "model.attention.lsh.buckets", "must be even, for", "model.attention.type", "");
    if (strcmp(c->model.attention.pattern, "dense"))
        clash(k, "model.attention.pattern", "needs attention that sees all keys, but",
              "model.attention.type", "");
}

/* A sparse feed-forward, or one that a dense one is measured by. */
static void check_ff(checker *k)
{
    const train_config *c = k->c;
    const int type = c->model.ff.type, choice = c->model.ff.choice;
    char rule[64];
    const int64_t d_ff = train_config_d_ff(c);
    snprintf(rule, sizeof rule, "d_ff = 0 stands for %lld", (long long)d_ff);
    if (d_ff % c->model.ff.block)
        clash(k, "model.d_ff", "must be a multiple of", "model.ff.block",
              c->model.d_ff ? "" : rule);
    if (c->model.ff.candidates > c->model.ff.block)
        clash(k, "model.ff.candidates", "must not be more than", "model.ff.block", "");
    if (c->model.ff.relaxed && c->model.ff.temperature <= 0)
        clash(k, "model.ff.relaxed", "divides by the temperature, but", "model.ff.temperature", "");
    if (choice == TRAIN_CHOICE_ORACLE && (type == TRAIN_FF_BLOCK || type == TRAIN_FF_SWITCH))
        clash(k, "model.ff.choice", "takes single units, but", "model.ff.type", "");
    else if (choice != TRAIN_CHOICE_CONTROLLER && type == TRAIN_FF_SWITCH)
        clash(k, "model.ff.choice", "has no probability to multiply with, but", "model.ff.type",
              "");
    if (choice != TRAIN_CHOICE_CONTROLLER && c->model.ff.scaled)
        clash(k, "model.ff.choice", "has no probability to multiply with, but", "model.ff.scaled",
              "");
}

/* The key of the longest sequence that positions are for. */
static const char *longest_key(const train_config *c)
{
    if (!train_config_has_source(c)) return "model.context";
    return c->data.source_length > c->data.target_length ? "data.source_length"
                                                         : "data.target_length";
}

static void check_tables(checker *k)
{
    const train_config *c = k->c;
    const int64_t context = c->model.type == TRAIN_MODEL_TRANSFORMER ? train_config_context(c)
                                                                     : c->model.context;
    const int64_t stride = c->model.position.stride;
    const int64_t row = c->model.position.width * c->model.position.channels;
    const int64_t cells = c->model.position.rows * c->model.position.cols;
    const bool source = train_config_has_source(c) && c->data.source_length > context;
    const int64_t longest = source ? c->data.source_length : context;
    if (c->model.position.type == TRAIN_POSITION_GRID && (stride < 1 || stride > context))
        clash(k, "model.position.stride", "must be from 1 to", "model.context",
              "the length of a row");
    if (c->model.position.type == TRAIN_POSITION_IMAGE && (row < 1 || row > context))
        clash(k, "model.position.width", "times model.position.channels must be from 1 to",
              "model.context", "the bytes of a row of the image");
    if (c->model.position.type != TRAIN_POSITION_AXIAL) return;
    if (cells < longest)
        clash(k, "model.position.rows", "times model.position.cols must be at least",
              longest_key(c), "the longest sequence");
    if (c->model.position.row_width < 1 || c->model.position.row_width >= c->model.d_model)
        clash(k, "model.position.row_width", "must be at least 1 and less than", "model.d_model",
              "");
}

static void check_position(checker *k)
{
    const train_config *c = k->c;
    const int type = c->model.position.type;
    const bool table = type == TRAIN_POSITION_TABLE, own = c->model.position.features;
    const bool waves = c->model.position.init == TRAIN_POSITION_INIT_SIN_COS;
    const int64_t width = own ? c->model.position.features : c->model.d_model;
    check_tables(k);
    if (!table && waves)
        clash(k, "model.position.init", "needs a table, but", "model.position.type", "");
    else if (waves && width % 2)
        clash(k, own ? "model.position.features" : "model.d_model", "must be even for",
              "model.position.init", "");
    if (!table && own)
        clash(k, "model.position.features", "needs a table, but", "model.position.type", "");
    if (type == TRAIN_POSITION_SIN_COS && c->model.d_model % 2)
        clash(k, "model.d_model", "must be even for", "model.position.type", "");
    if (type == TRAIN_POSITION_FIXED_BASE && c->model.d_model % NN_POSITION_DIGITS)
        clash(k, "model.d_model", "must be a multiple of 8 for", "model.position.type",
              "a part for each digit");
    if (c->model.position.max_offset > 0 && !table && type != TRAIN_POSITION_SIN_COS &&
        type != TRAIN_POSITION_FIXED_BASE)
        clash(k, "model.position.max_offset", "needs table, sin_cos or fixed_base, but",
              "model.position.type", "");
    if (c->model.position.dropout > 0 && type == TRAIN_POSITION_NONE)
        clash(k, "model.position.dropout", "has nothing to drop:", "model.position.type", "");
}

/* The pattern is text that only layers/ can read; it says where it is wrong. */
static void check_pattern(checker *k)
{
    const train_config *c = k->c;
    const char *path = "model.attention.pattern";
    const bool gpt = c->model.type == TRAIN_MODEL_GPT;
    ag_err err = { 0 };
    if (!gpt && strcmp(c->model.attention.pattern, "dense"))
        clash(k, path, "is for a gpt, but", "model.type", "");
    else if (gpt && nn_patterns_check(c->model.attention.pattern, c->model.context,
                                      c->model.n_heads, k->files, &err) < 0 &&
               k->used < sizeof k->text) {
        char origin[TRAIN_TEXT_MAX + 16], shown[160];
        train_value_origin(c, train_key_find(path), origin, sizeof origin);
        train_text_clean(origin, shown, sizeof shown);
        k->used += (size_t)snprintf(k->text + k->used, sizeof k->text - k->used, "%s%s (%s): %s",
                                    k->used ? "\n" : "", path, shown, err.msg);
    } else if (gpt && strcmp(c->model.attention.pattern, "dense") && c->model.dropout > 0 &&
               c->model.attention.drop_weights) {
        clash(k, path, "drops no attention weights, but", "model.dropout",
              "set model.attention.drop_weights: false");
    }
}

/* Two residual streams, and who has them. */
static void check_streams(checker *k)
{
    const train_config *c = k->c;
    const int type = c->model.type;
    const bool off = c->model.reversible == TRAIN_REVERSIBLE_OFF,
        side_by_side = c->model.reversible_output == TRAIN_JOIN_CONCATENATE;
    if (!off && type != TRAIN_MODEL_GPT && type != TRAIN_MODEL_TERRAFORMER)
        clash(k, "model.reversible", "is for a gpt or a terraformer, but", "model.type", "");
    if (off && type == TRAIN_MODEL_TERRAFORMER)
        clash(k, "model.type", "has two streams, but", "model.reversible",
              "set fp32, fixed or stored");
    if (side_by_side && type == TRAIN_MODEL_TERRAFORMER)
        clash(k, "model.reversible_output", "is for a gpt, but", "model.type", "");
    else if (side_by_side && off)
        clash(k, "model.reversible_output", "needs two streams, but", "model.reversible", "");
    else if (side_by_side && c->model.tied_embeddings)
        clash(k, "model.reversible_output", "needs an output layer of its own, but",
              "model.tied_embeddings", "set model.tied_embeddings: false");
    if (!off && c->train.recompute != TRAIN_RECOMPUTE_NONE)
        clash(k, "train.recompute", "is for one residual stream, but", "model.reversible",
              "fp32 and fixed rebuild layers and keep none");
    if (!off && c->model.reversible != TRAIN_REVERSIBLE_STORED &&
        c->train.precision != TRAIN_PRECISION_FP32)
        clash(k, "train.precision", "does not rebuild streams well enough for",
              "model.reversible", "train.precision: fp32 does");
    if (type != TRAIN_MODEL_TERRAFORMER) return;
    if (c->data.source_length > c->model.context)
        clash(k, "data.source_length", "is more than the positions,", "model.context", "");
    if (c->data.target_length > c->model.context)
        clash(k, "data.target_length", "is more than the positions,", "model.context", "");
}

static void check_model(checker *k)
{
    const train_config *c = k->c;
    const bool gpt = !train_config_has_images(c);
    if (gpt && (!c->model.d_qk || !c->model.d_v) && c->model.d_model % c->model.n_heads)
        clash(k, "model.d_model", "must be a multiple of", "model.n_heads",
              "or set model.d_qk and model.d_v");
    check_sparse_parts(k);
    check_lsh(k);
    check_pattern(k);
    if (c->model.ff.type != TRAIN_FF_DENSE || c->model.match == TRAIN_MATCH_TOUCHED) check_ff(k);
    if (gpt) check_position(k);
    check_streams(k);
    if (train_config_has_source(c) && c->model.start_vector)
        clash(k, "model.start_vector", "is for a gpt, but", "model.type",
              "a target begins with token 0");
}

static void check_optimizer(checker *k)
{
    const train_config *c = k->c;
    if (c->optim.nesterov && c->optim.type != TRAIN_OPTIM_SGD)
        clash(k, "optim.nesterov", "needs sgd, but", "optim.type", "");
    else if (c->optim.nesterov && c->optim.momentum <= 0)
        clash(k, "optim.nesterov", "needs momentum, but", "optim.momentum", "");
    if (c->optim.type == TRAIN_OPTIM_ADAFACTOR && c->optim.weight_decay > 1e-3)
        clash(k, "optim.weight_decay", "is more than 0.001, too much for", "optim.type",
              "it is the share of all weights that each step takes off, whatever the rate: set "
              "optim.weight_decay: 0, or 1e-5 as the paper's sparse models");
    const double least = train_config_loss_scale_floor(c);
    char note[48] = "";
    if (c->train.loss_scale_floor == 0) snprintf(note, sizeof note, "0 stands for %g", least);
    if (c->train.loss_scale_init < least)
        clash(k, "train.loss_scale_init", "is below", "train.loss_scale_floor", note);
}

static void check_recompute(checker *k)
{
    const train_config *c = k->c;
    const double bytes = train_bytes(c->train.memory_budget);
    const bool planned = c->train.recompute == TRAIN_RECOMPUTE_AUTO;
    if (!(bytes >= 0))
        clash(k, "train.memory_budget", "is not a number of bytes for", "train.recompute",
              "write 500MB or 2GiB");
    else if (planned != (bytes > 0))
        clash(k, "train.recompute", "goes with", "train.memory_budget",
              "auto needs a budget, and a budget needs auto");
    if (c->train.recompute != TRAIN_RECOMPUTE_NONE && c->model.type == TRAIN_MODEL_MLP)
        clash(k, "train.recompute", "needs a gpt or a transformer, but", "model.type", "");
}

static void check_training(checker *k)
{
    const train_config *c = k->c;
    const bool own_end = c->schedule.decay_steps > 0;
    const int64_t end = own_end ? c->schedule.decay_steps : c->train.steps;
    if (c->schedule.warmup_steps >= end && c->schedule.type != TRAIN_SCHEDULE_RSQRT)
        clash(k, "schedule.warmup_steps", "must be less than",
              own_end ? "schedule.decay_steps" : "train.steps", "");
    if ((c->schedule.type == TRAIN_SCHEDULE_INVERSE_SQRT ||
         c->schedule.type == TRAIN_SCHEDULE_RSQRT) && c->schedule.warmup_steps < 1)
        clash(k, "schedule.type", "needs a warm-up, but", "schedule.warmup_steps", "");
    if (c->schedule.min_lr > c->optim.lr)
        clash(k, "schedule.min_lr", "must not be more than", "optim.lr", "");
    if (c->train.micro_batch && c->train.batch % c->train.micro_batch)
        clash(k, "train.batch", "must be a multiple of", "train.micro_batch", "");
    if (c->model.type == TRAIN_MODEL_GPT && c->train.eval_last > c->model.context)
        clash(k, "train.eval_last", "must not be more than", "model.context", "");
    if (c->train.eval_last && c->train.eval_batches)
        clash(k, "train.eval_last", "is for the whole split, but", "train.eval_batches",
              "set train.eval_batches: 0");
    check_optimizer(k);
    check_recompute(k);
}

/* Keys that were set for nothing. */
static void check_idle(checker *k)
{
    train_idle x;
    for (int i = 0; train_idle_next(k->c, &i, &x);) clash(k, x.key, x.relation, x.other, "");
}

int train_config_check(const train_config *c, ag_err *err)
{
    return train_config_check_with(c, NULL, err);
}

int train_config_check_with(const train_config *c, struct nn_pattern_files *files, ag_err *err)
{
    checker k = {.c = c, .files = files};
    check_data(&k);
    check_model(&k);
    check_training(&k);
    check_idle(&k);
    return k.used ? ag_err_set(err, AG_ECONFIG, "%s", k.text) : AG_OK;
}
