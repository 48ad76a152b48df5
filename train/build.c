#include "train/build.h"

#include <inttypes.h>

static nn_ff_config ff_config(const train_config *c)
{
    static const ag_act acts[] = {
        [TRAIN_ACTIVATION_RELU] = AG_ACT_RELU, [TRAIN_ACTIVATION_GELU] = AG_ACT_GELU_ERF,
        [TRAIN_ACTIVATION_GELU_TANH] = AG_ACT_GELU_TANH,
        [TRAIN_ACTIVATION_GELU_QUICK] = AG_ACT_GELU_QUICK,
    };
    static const nn_ff_kind kinds[] = {
        [TRAIN_FF_DENSE] = NN_FF_DENSE, [TRAIN_FF_SPARSE] = NN_FF_SPARSE,
        [TRAIN_FF_BLOCK] = NN_FF_BLOCK, [TRAIN_FF_SWITCH] = NN_FF_SWITCH,
    };
    static const nn_chooser choosers[] = {
        [TRAIN_CHOICE_CONTROLLER] = NN_CHOOSE_CONTROLLER, [TRAIN_CHOICE_RANDOM] = NN_CHOOSE_RANDOM,
        [TRAIN_CHOICE_FIRST] = NN_CHOOSE_FIRST, [TRAIN_CHOICE_ORACLE] = NN_CHOOSE_ORACLE,
    };
    const bool sparse = c->model.ff.type != TRAIN_FF_DENSE;
    return (nn_ff_config){
        .kind = kinds[c->model.ff.type], .d_ff = train_config_d_ff(c), .dropout = c->model.dropout,
        .bias_in = sparse ? c->model.ff.hidden_bias : c->model.bias,
        .bias_out = sparse || c->model.bias,     /* the released sparse layer has b2 and no b1 */
        .act = acts[c->model.activation], .block = c->model.ff.block,
        .chooser = choosers[c->model.ff.choice], .candidates = c->model.ff.candidates,
        .d_lowrank = train_config_d_lowrank(c),
        .rank_rule = c->model.ff.lowrank_rule == TRAIN_RANK_D_MODEL ? NN_RANK_D_MODEL
                                                                    : NN_RANK_BLOCKS,
        .mask_order = c->model.ff.mask_order == TRAIN_MASK_AFTER_RELU ? NN_MASK_AFTER_RELU
                                                                      : NN_MASK_BEFORE_RELU,
        .quant_prob = c->model.ff.quant_prob, .quant_ramp = c->model.ff.quant_ramp,
        .coin_rows = c->model.ff.coin_rows,
        .temperature = c->model.ff.temperature,
        .controller_bias = c->model.ff.controller_bias,
        .controller_relu = c->model.ff.controller_relu,
        .relaxed = c->model.ff.relaxed, .kernel_scaling = c->model.ff.kernel_scaling,
        .scaled = c->model.ff.scaled,
    };
}

static nn_lsh_config lsh_config(const train_config *c)
{
    const int type = c->model.attention.type;
    return (nn_lsh_config){
        .kind = type == TRAIN_ATTENTION_LSH        ? NN_LSH_OWN
                : type == TRAIN_ATTENTION_PURE_LSH ? NN_LSH_PURE
                                                   : NN_LSH_NONE,
        .chunk = c->model.attention.lsh.chunk, .buckets = c->model.attention.lsh.buckets,
        .rounds = c->model.attention.lsh.hashes,
        .std_length = c->model.attention.lsh.std_length,
        .bucket_mask = c->model.attention.lsh.bucket_mask,
        .correct = c->model.attention.lsh.correct_duplicates,
    };
}

static nn_attention_config attention_config(const train_config *c)
{
    static const nn_map_kind types[] = {
        [TRAIN_ATTENTION_DENSE] = NN_MAP_DENSE, [TRAIN_ATTENTION_MULT] = NN_MAP_MULT,
        [TRAIN_ATTENTION_CONV] = NN_MAP_CONV, [TRAIN_ATTENTION_MULTCONV] = NN_MAP_MULTCONV,
        [TRAIN_ATTENTION_MODULAR] = NN_MAP_MODULAR, [TRAIN_ATTENTION_MULTMOD] = NN_MAP_MULTMOD,
        [TRAIN_ATTENTION_LOWRANK] = NN_MAP_LOWRANK, [TRAIN_ATTENTION_LSH] = NN_MAP_DENSE,
        [TRAIN_ATTENTION_PURE_LSH] = NN_MAP_DENSE,
    };
    static const nn_map_kind outputs[] = {
        [TRAIN_OUTPUT_AUTO] = NN_MAP_NONE, [TRAIN_OUTPUT_NONE] = NN_MAP_NONE,
        [TRAIN_OUTPUT_DENSE] = NN_MAP_DENSE, [TRAIN_OUTPUT_MULT] = NN_MAP_MULT,
        [TRAIN_OUTPUT_CONV] = NN_MAP_CONV, [TRAIN_OUTPUT_MULTCONV] = NN_MAP_MULTCONV,
    };
    static const nn_v_concat concats[] = {
        [TRAIN_CONCAT_NONE] = NN_CONCAT_NONE, [TRAIN_CONCAT_FIXED] = NN_CONCAT_FIXED,
        [TRAIN_CONCAT_ORIGINAL] = NN_CONCAT_ORIGINAL,
    };
    return (nn_attention_config){
        .type = train_config_sparse_attention(c) &&
                        c->model.attention.type == TRAIN_ATTENTION_PURE_LSH
                    ? NN_MAP_MULTCONV
                    : types[c->model.attention.type],
        .lsh = lsh_config(c), .modules = c->model.attention.modules,
        .taps = c->model.attention.kernel, .span = c->model.attention.kernel_modules,
        .rank = c->model.attention.d_lowrank, .share_qk = c->model.attention.share_qk,
        .fan = c->model.attention.conv_init == TRAIN_CONV_INIT_FAN,
        .own_output = c->model.attention.output != TRAIN_OUTPUT_AUTO,
        .output = outputs[c->model.attention.output],
        .v_concat = concats[c->model.attention.v_concat],
        .keep_weights = !c->model.attention.drop_weights,
    };
}

static nn_head_config head_config(const train_config *c)
{
    static const nn_head_type types[] = {
        [TRAIN_HEAD_DENSE] = NN_HEAD_DENSE, [TRAIN_HEAD_MULT] = NN_HEAD_MULT,
        [TRAIN_HEAD_LOWRANK] = NN_HEAD_LOWRANK,
    };
    return (nn_head_config){ .type = types[c->model.head.type], .zero = c->model.head.zero,
                             .modules = c->model.head.modules,
                             .d_lowrank = c->model.head.d_lowrank,
                             .prob_sparse = c->model.head.prob_sparse };
}

static nn_embedding_config embedding_config(const train_config *c)
{
    static const nn_position_type types[] = {
        [TRAIN_POSITION_TABLE] = NN_POSITION_TABLE, [TRAIN_POSITION_NONE] = NN_POSITION_NONE,
        [TRAIN_POSITION_GRID] = NN_POSITION_GRID, [TRAIN_POSITION_IMAGE] = NN_POSITION_IMAGE,
        [TRAIN_POSITION_SIN_COS] = NN_POSITION_SIN_COS,
        [TRAIN_POSITION_FIXED_BASE] = NN_POSITION_FIXED_BASE,
        [TRAIN_POSITION_AXIAL] = NN_POSITION_AXIAL,
    };
    const nn_position_config position = {
        .type = types[c->model.position.type], .stride = c->model.position.stride,
        .width = c->model.position.width, .channels = c->model.position.channels,
        .rows = c->model.position.rows, .cols = c->model.position.cols,
        .row_width = c->model.position.row_width, .features = c->model.position.features,
        .waves = c->model.position.init == TRAIN_POSITION_INIT_SIN_COS,
        .dropout = c->model.position.dropout, .max_offset = c->model.position.max_offset,
        .start_from_zero_prob = c->model.position.start_from_zero_prob,
    };
    return (nn_embedding_config){ .position = position, .start = c->model.start_vector };
}

static nn_init_rule init_rule(const train_config *c)
{
    static const nn_init_rule rules[] = {
        [TRAIN_INIT_STD] = NN_INIT_STD, [TRAIN_INIT_PAPER_STD] = NN_INIT_PAPER_STD,
        [TRAIN_INIT_PAPER_VAR] = NN_INIT_PAPER_VAR, [TRAIN_INIT_RELEASED] = NN_INIT_RELEASED,
    };
    return rules[c->model.init];
}

/* model.match = params: the d_ff with which g is as large as with everything dense but the
 * feed-forward. */
static int match_params(const train_config *c, nn_gpt_config *g, ag_err *err)
{
    nn_gpt_config like = *g;
    like.attention = (nn_attention_config){ .type = NN_MAP_DENSE };
    like.pattern = NULL;
    like.head = (nn_head_config){ .type = NN_HEAD_DENSE };
    g->ff.d_lowrank = like.ff.d_lowrank = c->model.ff.d_lowrank;     /* 0: by its own d_ff */
    const int64_t multiple = c->model.ff.type == TRAIN_FF_DENSE ? 1 : c->model.ff.block;
    return nn_match_params(g, multiple, &like, err);
}

/* model.match = touched: the d_ff with which a dense feed-forward reads what a sparse one reads. */
static int match_touched(const train_config *c, int64_t d_model, nn_ff_config *ff, ag_err *err)
{
    train_config sparse = *c;
    sparse.model.ff.type = TRAIN_FF_SPARSE;
    const nn_ff_config like = ff_config(&sparse);
    return nn_match_touched(ff, &like, d_model, err);
}

static nn_streams_config streams_config(const train_config *c)
{
    static const nn_streams_kind kinds[] = {
        [TRAIN_REVERSIBLE_OFF] = NN_STREAMS_ONE, [TRAIN_REVERSIBLE_STORED] = NN_STREAMS_STORED,
        [TRAIN_REVERSIBLE_FP32] = NN_STREAMS_REBUILT, [TRAIN_REVERSIBLE_FIXED] = NN_STREAMS_REBUILT,
    };
    const bool fixed = c->model.reversible == TRAIN_REVERSIBLE_FIXED;
    return (nn_streams_config){
        .kind = kinds[c->model.reversible], .point = fixed ? (int)c->model.reversible_bits : 0,
        .two_swaps = c->model.type == TRAIN_MODEL_GPT || c->model.two_swaps,
        .concatenate = c->model.reversible_output == TRAIN_JOIN_CONCATENATE,
    };
}

/* What only the data tell: whether the vocabulary has a token for each module of the head. */
static int check_head(const train_config *c, int64_t vocab, ag_err *err)
{
    char modules[256];
    if (c->model.head.type != TRAIN_HEAD_MULT || c->model.head.modules <= vocab) return AG_OK;
    train_config_cite(c, "model.head.modules", modules, sizeof modules);
    return ag_err_set(err, AG_ECONFIG, "%s must not be more than the tokens of the data, %" PRId64,
                      modules, vocab);
}

static int gpt_config(const train_config *c, int64_t vocab, nn_pattern_files *files,
                      nn_gpt_config *ret_g, ag_err *err)
{
    nn_gpt_config g = {
        .vocab = vocab, .context = train_config_context(c), .n_layers = c->model.n_layers,
        .n_heads = c->model.n_heads, .d_model = c->model.d_model, .d_qk = c->model.d_qk,
        .d_v = c->model.d_v, .bias = c->model.bias, .tied = c->model.tied_embeddings,
        .dropout = c->model.dropout,
        .embedding_dropout = c->model.embedding_dropout < 0 ? c->model.dropout
                                                            : c->model.embedding_dropout,
        .init = init_rule(c), .init_std = c->model.init_std,
        .norm_eps = c->model.layer_norm_eps, .final_norm_eps = c->model.final_norm_eps,
        .embedding = embedding_config(c), .ff = ff_config(c),
        .sru = { .layers = c->model.ff.sru_layers, .units = c->model.ff.sru_units },
        .attention = attention_config(c), .pattern = c->model.attention.pattern, .files = files,
        .head = head_config(c), .streams = streams_config(c),
    };
    int r = check_head(c, vocab, err);
    if (r == AG_OK && c->model.match == TRAIN_MATCH_PARAMS) r = match_params(c, &g, err);
    if (r == AG_OK && c->model.match == TRAIN_MATCH_TOUCHED)
        r = match_touched(c, g.d_model, &g.ff, err);
    *ret_g = g;
    return r;
}

static int transformer_config(const train_config *c, int64_t vocab, nn_transformer_config *ret_t,
                              ag_err *err)
{
    *ret_t = (nn_transformer_config){ .n_encoder_layers = c->model.n_encoder_layers,
                                      .source = c->data.source_length };
    return gpt_config(c, vocab, NULL, &ret_t->decoder, err);
}

static int build_transformer(const train_config *c, int64_t vocab, bool plan, nn_model **ret_model,
                             ag_err *err)
{
    nn_transformer_config x;
    const int r = transformer_config(c, vocab, &x, err);
    if (r < 0) return r;
    return plan ? nn_transformer_plan(&x, AG_F32, ret_model, err)
                : nn_transformer_new(&x, AG_F32, (uint64_t)c->run.seed, ret_model, err);
}

static int build_terraformer(const train_config *c, int64_t vocab, bool plan, nn_model **ret_model,
                             ag_err *err)
{
    nn_terraformer_config x = { .n_encoder_layers = c->model.n_encoder_layers,
                                .source = c->data.source_length, .target = c->data.target_length,
                                .attentions = c->model.n_attention_layers,
                                .one_stream = !c->model.reversible_encoder };
    const int r = gpt_config(c, vocab, NULL, &x.decoder, err);
    if (r < 0) return r;
    x.decoder.context = c->model.context;
    return plan ? nn_terraformer_plan(&x, AG_F32, ret_model, err)
                : nn_terraformer_new(&x, AG_F32, (uint64_t)c->run.seed, ret_model, err);
}

static int build_gpt(const train_config *c, int64_t vocab, nn_pattern_files *files, bool plan,
                     nn_model **ret_model, ag_err *err)
{
    nn_gpt_config g;
    const int r = gpt_config(c, vocab, files, &g, err);
    if (r < 0) return r;
    return plan ? nn_gpt_plan(&g, AG_F32, ret_model, err)
                : nn_gpt_new(&g, AG_F32, (uint64_t)c->run.seed, ret_model, err);
}

static int build_tokens(const train_config *c, int64_t vocab, nn_pattern_files *files, bool plan,
                        nn_model **ret_model, ag_err *err)
{
    switch (c->model.type) {
    case TRAIN_MODEL_TRANSFORMER: return build_transformer(c, vocab, plan, ret_model, err);
    case TRAIN_MODEL_TERRAFORMER: return build_terraformer(c, vocab, plan, ret_model, err);
    default:                      return build_gpt(c, vocab, files, plan, ret_model, err);
    }
}

int train_build_tokens(const train_config *c, int64_t vocab, nn_pattern_files *files,
                       nn_model **ret_model, ag_err *err)
{
    return build_tokens(c, vocab, files, false, ret_model, err);
}

int train_plan_tokens(const train_config *c, int64_t vocab, nn_pattern_files *files,
                      nn_model **ret_model, ag_err *err)
{
    return build_tokens(c, vocab, files, true, ret_model, err);
}

int train_build_mlp(const train_config *c, int64_t d_in, int64_t classes, nn_model **ret_model,
                    ag_err *err)
{
    if (c->model.d_in && c->model.d_in != d_in)
        return ag_err_set(err, AG_ECONFIG, "model.d_in is %" PRId64 ", but an image has %" PRId64
                          " features", c->model.d_in, d_in);
    nn_mlp_config m = {
        .d_in = d_in, .d_hidden = c->model.d_hidden, .classes = classes,
        .n_layers = c->model.n_layers,
        .bias = c->model.bias, .init_std = c->model.init_std, .ff = ff_config(c),
    };
    if (c->model.match == TRAIN_MATCH_TOUCHED) {
        const int r = match_touched(c, m.d_hidden, &m.ff, err);
        if (r < 0) return r;
    }
    return nn_mlp_new(&m, AG_F32, (uint64_t)c->run.seed, ret_model, err);
}
