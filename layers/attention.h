/*
 * attention.h -- multi-head self-attention, causal or of an encoder, with dense or sparse
 * projections.
 *
 * Dense: one product makes queries, keys and values of all heads, in this order: [q | k | v].  d_qk
 * and d_v, the widths of one head, need not divide d_model, nor be equal.
 *
 * Sparse (2111.12763 section 3.2 and its released code; qkv.h has the maps).  S modules, which need
 * not be the heads; all widths are d_model:
 *
 *   multconv            u = mult(x);  q = conv(u), k = conv(u), v = conv(u) with kS = 1;  no output
 *   mult, conv, modular, multmod, lowrank       q, k, v and the output are such a map of x each
 *
 * Attention by hashing (lsh.h) has maps of its own: own, w_q for queries that are keys too, w_v and
 * w_o without bias, Glorot uniform; pure, q, k and v as type says, q and k replaced by their mean.
 *
 * multconv may share one convolution for q and k, and let v see x beside u: for each module
 * (fixed), or u and then x in a row, which mixes modules up (original, kept to compare).
 */
#ifndef NN_ATTENTION_H
#define NN_ATTENTION_H

#include "layers/lsh.h"
#include "layers/qkv.h"

typedef enum nn_v_concat { NN_CONCAT_NONE, NN_CONCAT_FIXED, NN_CONCAT_ORIGINAL } nn_v_concat;

typedef struct nn_attention_config {
    int64_t d_model, n_heads;
    int64_t d_qk, d_v;               /* per head */
    bool    bias;                    /* of dense projections */
    double  dropout;                 /* of the attention weights, and of the branch's end */
    bool    keep_weights;            /* no dropout of the attention weights; a pattern refuses it */
    double  init_std;                /* 0: Glorot */
    double  out_gain;                /* factor of the initial output projection */
    bool    all_keys;                /* of an encoder: not causal; dense, without a pattern */
    const ag_pattern *pattern;       /* which keys queries see, lives longer; NULL: all earlier */

    nn_map_kind type;                /* NN_MAP_NONE: as NN_MAP_DENSE */
    int64_t modules;                 /* S; 0: n_heads */
    int64_t taps, span;              /* F, kS; 0: 3 for multconv, else 1 */
    int64_t rank;                    /* lowrank; 0: 64 */
    bool    share_qk, fan;
    bool    own_output;              /* sparse: the output is `output`, not what the type has */
    nn_map_kind output;
    nn_v_concat v_concat;
    nn_lsh_config lsh;               /* causal is set here, length by the model */
} nn_attention_config;

typedef struct nn_attention {
    nn_attention_config config;      /* with the zeros filled in */
    nn_linear  qkv;                  /* dense: [n_heads * (2 d_qk + d_v), d_model] */
    nn_mult    mult;                 /* multconv */
    nn_map     q, k, v;              /* sparse */
    nn_map     out;
    nn_lsh     lsh;
    nn_dropout drop;
    uint32_t   site;                 /* of dropout on the attention weights */
} nn_attention;

/* AG_ECONFIG names the keys that do not fit. */
int nn_attention_check(const nn_attention_config *c, ag_err *err);
void nn_attention_build(nn_attention *l, nn_params *p, const char *name,
                        const nn_attention_config *c);
/* residual + attention(x), x [b,t,d_model]; residual may be NULL.  With a cache, x are the
 * positions that follow those in it, their keys and values are stored there as layer `layer`, and
 * there is no gradient. */
ag_tensor *nn_attention_forward(const nn_attention *l, ag_tape *t, ag_tensor *x,
                                ag_tensor *residual, nn_mode mode, ag_kv_cache *cache, int layer);
/* The same in an encoder (config.all_keys): a position sees all positions below lengths int32 [b];
 * NULL: all.  One without a key gets the bias of the output, if any. */
ag_tensor *nn_attention_encode(const nn_attention *l, ag_tape *t, ag_tensor *x, ag_tensor *lengths,
                               ag_tensor *residual, nn_mode mode);
/* What a cache must keep besides keys and values; AG_ENOMEM. */
int nn_attention_keep(const nn_attention *l, ag_kv_cache *cache);

/* Multiply-adds of the projections for one token. */
int64_t nn_attention_products(const nn_attention *l);
/* Those between the queries, keys and values of all heads, for a sequence of n; under a pattern n
 * is that of the pattern. */
double nn_attention_pairs(const nn_attention *l, int64_t n);

#endif
