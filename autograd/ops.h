/*
 * ops.h -- the operations a model is written with.
 *
 * Each runs at once on the tape and returns its output, a NaN scalar if the tape has an error.
 * [..,n] is a tensor of any number of dimensions whose last one is n; "rows" are all but the last.
 */
#ifndef AG_OPS_H
#define AG_OPS_H

#include "kernels.h"
#include "tape.h"

#define AG_UNARY(name, ...) ag_tensor *ag_##name(ag_tape *t, ag_tensor *x);
#include "unary.def"
#undef AG_UNARY
#define AG_BINARY(name, ...) ag_tensor *ag_##name(ag_tape *t, ag_tensor *a, ag_tensor *b);
#include "binary.def"
#undef AG_BINARY

/* [m,k] @ [k,n] -> [m,n]; ta, tb read a, b transposed */
ag_tensor *ag_matmul(ag_tape *t, ag_tensor *a, bool ta, ag_tensor *b, bool tb);
/* act(x[..,k] @ w[n,k]^T + bias[n]) + residual[..,n] -> [..,n]; bias and residual may be NULL */
ag_tensor *ag_linear(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *bias, ag_act act,
                     ag_tensor *residual);
/* The same with the weight stored [k,n], a row for each input: x[..,k] @ w[k,n] + ... */
ag_tensor *ag_linear_in_out(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *bias, ag_act act,
                            ag_tensor *residual);
/* rows of x[..,n] to zero mean and unit variance, times gain[n], plus bias[n] (each may be NULL) */
ag_tensor *ag_layernorm(ag_tape *t, ag_tensor *x, ag_tensor *gain, ag_tensor *bias, double eps);
/* table[ids[b,t]] + pos[pos0 + t] -> [b,t,d]; table [v,d], pos [p,d] or NULL, ids int32 [b,t].
 * AG_ERANGE for an id outside the table. */
ag_tensor *ag_embedding(ag_tape *t, ag_tensor *ids, ag_tensor *table, ag_tensor *pos, int64_t pos0);
/* residual + x * keep / (1 - p), keep with probability 1 - p, noise of `site`; residual may be
 * NULL */
ag_tensor *ag_dropout(ag_tape *t, ag_tensor *x, ag_tensor *residual, double p, uint32_t site);

typedef struct ag_attention_options {
    int64_t  heads, d_qk, d_v;       /* per head */
    bool     causal;
    int64_t  q_pos0;                 /* causal: query i sees keys 0 .. i + q_pos0 */
    const ag_pattern *pattern;       /* of those, the keys that it has; NULL: all.  It must outlive
                                      * the tape's step, and be causal, without dropout */
    double   drop;                   /* probability of dropout on the softmax */
    uint32_t site;                   /* of its noise */
    ag_tensor *lengths;              /* int32 [b]: item b has keys 0 .. lengths[b] - 1; NULL: all.
                                      * Without a pattern */
} ag_attention_options;
/* softmax(q k^T / sqrt(d_qk)) v per head: q [b,tq,heads*d_qk], k [b,tk,heads*d_qk], v
 * [b,tk,heads*d_v] -> [b,tq,heads*d_v], 0 for a query without a key.  AG_ERANGE for a length beyond
 * tk. */
ag_tensor *ag_attend(ag_tape *t, ag_tensor *q, ag_tensor *k, ag_tensor *v,
                     const ag_attention_options *o);
/* The same from one tensor qkv [b,t,heads*(2*d_qk+d_v)]: all q, then all k, then all v. */
ag_tensor *ag_attend_qkv(ag_tape *t, ag_tensor *qkv, const ag_attention_options *o);

/* Keys and values of earlier positions, for decoding. */
typedef struct ag_kv_cache ag_kv_cache;
/* For `layers` layers, batch sequences of at most `capacity` positions, in the memory of a device
 * (NULL: the host); NULL: out of memory. */
ag_kv_cache *ag_kv_cache_new(const struct ag_device *device, ag_dtype dtype, int layers,
                             int64_t batch, int64_t capacity, int64_t d_k, int64_t d_v);
/* Room for the last `rows` inputs, `width` numbers wide, of `slots` places in each layer that look
 * back over time (ag_recall); such a cache can only be reset to 0.  AG_ENOMEM. */
int     ag_kv_cache_keep(ag_kv_cache *c, int slots, int64_t rows, int64_t width);
/* Room for a state of `width` numbers at `slots` places in each layer (ag_sru_cached); such a cache
 * too can only be reset to 0.  AG_ENOMEM. */
int     ag_kv_cache_keep_state(ag_kv_cache *c, int slots, int64_t width);
/* Room for the keys and values of sources of up to `length` positions (ag_attend_source).
 * AG_ENOMEM. */
int     ag_kv_cache_source(ag_kv_cache *c, int64_t length);
/* Room for the buckets of each position in `rounds` rounds and `heads` heads, and for `rotations`
 * numbers of a head (ag_lsh_cached).  AG_ENOMEM. */
int     ag_kv_cache_keep_buckets(ag_kv_cache *c, int64_t rounds, int64_t heads, int64_t rotations);
/* The source of up to `length` positions comes first in the row itself, and padding behind its
 * target (ag_merge): the first call has source, target and padding, ag_kv_cache_length counts those
 * of the target alone, and `capacity` is of both.  Before the first call: how long the sources are,
 * lengths[batch].  AG_ENOMEM. */
int     ag_kv_cache_source_in_row(ag_kv_cache *c, int64_t length);
void    ag_kv_cache_source_lengths(ag_kv_cache *c, const int32_t *lengths);
void    ag_kv_cache_free(ag_kv_cache *c);
void    ag_kv_cache_reset(ag_kv_cache *c, int64_t length);   /* keep the first `length` positions */
/* Sequence i becomes what sequence row[i] [batch] was: keys, values and what else is kept of its
 * positions.  What is kept of a source stays: sequences that change places share it.  AG_ENOMEM. */
int     ag_kv_cache_select(ag_kv_cache *c, const int32_t *row);
int64_t ag_kv_cache_length(const ag_kv_cache *c);
void    ag_kv_cache_advance(ag_kv_cache *c, int64_t n);   /* after all layers saw n new positions */
/* Causal attention of the new positions q, k, v [b,t,..] over the cache and themselves; stores
 * their keys and values in the cache at ag_kv_cache_length.  Or q alone holds q, k and v side by
 * side as for ag_attend_qkv, and k and v are NULL.  No gradient.  AG_ERANGE when the cache is
 * full. */
ag_tensor *ag_attend_cached(ag_tape *t, ag_tensor *q, ag_tensor *k, ag_tensor *v,
                            const ag_attention_options *o, ag_kv_cache *cache, int layer);
/* Attention to a source: k [b,S,..], v [b,S,..] and o->lengths, which the cache then keeps for this
 * layer; in later calls k and v are NULL, and those are taken.  Not causal; no gradient. */
ag_tensor *ag_attend_source(ag_tape *t, ag_tensor *q, ag_tensor *k, ag_tensor *v,
                            const ag_attention_options *o, ag_kv_cache *cache, int layer);
/* [b,rows+t,d]: the last `rows` inputs of place `slot` of the layer, zeros where there were none,
 * then x [b,t,d]; keeps the last rows of that.  No gradient. */
ag_tensor *ag_recall(ag_tape *t, ag_tensor *x, int64_t rows, ag_kv_cache *cache, int layer,
                     int slot);

/* Attention by hashing (ops/lsh.c): queries that are keys too, in chunks of what a hash sorts. */
typedef struct ag_lsh_options {
    int64_t  heads, d_qk, d_v;       /* per head */
    int64_t  rounds;                 /* of the hash, at most AG_LSH_ROUNDS */
    int64_t  factor[2];              /* buckets of a round: both even, or the second 1 */
    int64_t  chunk, before, after;   /* positions; chunks before and behind its own that a query
                                      * meets */
    bool     causal, bucket_mask, correct;               /* as ag_lsh in kernels.h */
    bool     fixed;                  /* rotations that are the same in each step and sequence */
    double   drop;                   /* probability of dropout on the softmax */
    uint32_t site, drop_site;        /* of the noise of rotations, of dropout */
} ag_lsh_options;
int64_t ag_lsh_rotations(const ag_lsh_options *o);       /* numbers of those of a head */
/* The bucket of each position, 0 .. factor[0]*factor[1] - 1, of padding that product: q
 * [b,t,heads*d_qk] -> int32 [rounds,b,heads,t]; lengths int32 [b] or NULL.  No gradient. */
ag_tensor *ag_lsh_hash(ag_tape *t, ag_tensor *q, ag_tensor *lengths, const ag_lsh_options *o);
/* q [b,t,heads*d_qk], v [b,t,heads*d_v], bucket as above -> [b,t,heads*d_v] */
ag_tensor *ag_lsh_attend(ag_tape *t, ag_tensor *q, ag_tensor *v, ag_tensor *bucket,
                         ag_tensor *lengths, const ag_lsh_options *o);
/* Decoding: the new positions q, v attend to some of those in the cache and before themselves, by
 * the rule of ag_lsh_decode in kernels.h with most = rounds * chunk * (1 + before); the cache keeps
 * them and their buckets (ag_kv_cache_keep_buckets).  No gradient.  AG_ERANGE when it is full. */
ag_tensor *ag_lsh_cached(ag_tape *t, ag_tensor *q, ag_tensor *v, const ag_lsh_options *o,
                         ag_kv_cache *cache, int layer);

/* The scan of a simple recurrent unit over time (ops/sru.c): z [b,t,3n] = [z_r | z_f | y], what
 * enters its two gates and its state, x [b,t,n] -> h [b,t,n]. */
ag_tensor *ag_sru(ag_tape *t, ag_tensor *z, ag_tensor *x);
/* The same of the positions that follow those in the cache, from the state kept for place `slot` of
 * the layer, which they replace.  No gradient. */
ag_tensor *ag_sru_cached(ag_tape *t, ag_tensor *z, ag_tensor *x, ag_kv_cache *cache, int layer,
                         int slot);

/* mean over the rows with target >= 0 of -log softmax(logits)[target] -> scalar, in nats; targets
 * int32, one per row.  AG_ERANGE for a target beyond the logits. */
ag_tensor *ag_cross_entropy(ag_tape *t, ag_tensor *logits, ag_tensor *targets);
ag_tensor *ag_softmax(ag_tape *t, ag_tensor *x);             /* over the last dimension */
ag_tensor *ag_log_softmax(ag_tape *t, ag_tensor *x);

/* The 1-in-n controller (kernels.h: ag_controller): z [..,blocks*n] -> mask of that shape; choices
 * int32 [..,blocks] through ret_choice (may be NULL).  Backward of the hard mask is that of the
 * soft one (straight-through). */
typedef struct ag_controller_options {
    int64_t  n;                      /* units per block, of which one is chosen */
    bool     relaxed, hard;
    double   temperature;            /* 0: no noise */
    uint32_t site;
    int64_t  of_rows;                /* the rows are some of so many of this part: their noise is
                                      * that of the first ones; 0: they are all */
} ag_controller_options;
ag_tensor *ag_control(ag_tape *t, ag_tensor *z, const ag_controller_options *o,
                      ag_tensor **ret_choice);

/* The controller with its last matrix (kernels.h: ag_chooser): low [..,rank], c2 [rank,blocks*n],
 * cb [blocks*n] or NULL -> the gates [..,blocks*picks], or [..,blocks*n] with `all`, and the
 * choices int32 [..,blocks*picks] through ret_choice, each 0 .. n-1. */
typedef struct ag_choose_options {
    int64_t  n, picks;               /* choices of a block, listed ones */
    bool     relaxed, all;
    ag_gate  gate;
    double   temperature;            /* 0: no noise */
    uint32_t site;
    int64_t  of_rows;                /* as for ag_control */
} ag_choose_options;
ag_tensor *ag_choose(ag_tape *t, ag_tensor *low, ag_tensor *c2, ag_tensor *cb,
                     const ag_choose_options *o, ag_tensor **ret_choice);

/* Feed-forward over the listed units of each row: sum of gate relu(x w1[u] + b1[u]) w2[u] + b2 +
 * residual, x [..,d] -> [..,d_out].  gate and choice as ag_choose gives them; gate NULL: 1.
 * AG_ERANGE for a choice beyond n. */
typedef struct ag_live_weights {
    ag_tensor *w1, *b1;              /* [units,d], [units] or NULL */
    ag_tensor *w2, *b2;              /* [units,d_out], [d_out] or NULL */
} ag_live_weights;
typedef struct ag_live_options {
    int64_t n, width, picks;         /* choices of a block, units of a choice, listed choices */
    bool    all;                     /* gate has all n choices, and wants a gradient for each */
} ag_live_options;
ag_tensor *ag_live_ff(ag_tape *t, ag_tensor *x, const ag_live_weights *w, ag_tensor *gate,
                      ag_tensor *choice, ag_tensor *residual, const ag_live_options *o);

/* The multiplicative layer (2111.12763 section 3.2): x [..,d], gates [S,d], w [M,d] (out,in) ->
 * y[..,s*M+m] = sum_i x_i gates[s,i] w[m,i] + bias[s*M+m], of which the first `width` outputs exist
 * (0: all S*M); bias [width] or NULL. */
ag_tensor *ag_multiplicative(ag_tape *t, ag_tensor *x, ag_tensor *gates, ag_tensor *w,
                             ag_tensor *bias, int64_t width);

/* Convolution over time, causally, and over modules: x [b,t,modules*p], w [o,taps*span*p],
 * bias [o] or NULL -> [b,t,modules*o]; all modules share the weights (ops/module_conv.c). */
typedef struct ag_module_conv_options {
    int64_t modules;
    int64_t taps;                    /* positions of time: this one and taps - 1 before it */
    int64_t span;                    /* modules, odd */
    bool    past;                    /* the first taps - 1 rows of x come before those of y */
} ag_module_conv_options;
ag_tensor *ag_module_conv(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *bias,
                          const ag_module_conv_options *o);
/* Each module with weights of its own: x [..,modules*p], w [modules*o,span*p], bias [modules*o] or
 * NULL -> [..,modules*o]; module s sees the span around it, in a ring. */
ag_tensor *ag_module_linear(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *bias,
                            int64_t modules, int64_t span);
/* Module by module side by side: a [..,modules*p], b [..,modules*q] -> [..,modules*(p+q)] */
ag_tensor *ag_module_concat(ag_tape *t, ag_tensor *a, ag_tensor *b, int64_t modules);

/* Source and target in one row without a gap (Terraformer, 2111.12763; ConcatWithPadding2 of its
 * released code): e [b,m,d], y [b,n,d], lengths int32 [b] -> [b,m+n,d], row b being e[b], then
 * zeros, with y[b] written over positions lengths[b] .. lengths[b] + n - 1.  AG_ERANGE for a length
 * beyond m. */
ag_tensor *ag_merge(ag_tape *t, ag_tensor *e, ag_tensor *y, ag_tensor *lengths);
/* The n rows x[b, lengths[b] + i] of x [b,m+n,d] -> [b,n,d]: takes y out again. */
ag_tensor *ag_strip(ag_tape *t, ag_tensor *x, ag_tensor *lengths, int64_t n);
/* Columns from .. from + n - 1 of ids int32 [b,m] -> int32 [b,n] */
ag_tensor *ag_columns(ag_tape *t, ag_tensor *ids, int64_t from, int64_t n);
/* How many of the first n ids of each row int32 [b,m] are not 0 (padding) -> int32 [b] */
ag_tensor *ag_count_tokens(ag_tape *t, ag_tensor *ids, int64_t n);

ag_tensor *ag_gather(ag_tape *t, ag_tensor *x, ag_tensor *idx);   /* x[v,n], idx[..] -> [..,n]:
                                                                   * rows */
/* A tensor [..,n] of that shape: residual (NULL: 0), and x[r] of x[m,n] added to row idx[r].
 * AG_ERANGE for an index beyond its rows. */
ag_tensor *ag_scatter(ag_tape *t, ag_tensor *x, ag_tensor *idx, ag_shape shape,
                      ag_tensor *residual);
ag_tensor *ag_pick(ag_tape *t, ag_tensor *x, ag_tensor *idx);     /* x[..,n], idx[..] -> [..]: one
                                                                   * per row */
ag_tensor *ag_argmax(ag_tape *t, ag_tensor *x);                   /* [..,n] -> int32 [..]; no
                                                                   * gradient */
ag_tensor *ag_sum(ag_tape *t, ag_tensor *x);                      /* -> scalar */
ag_tensor *ag_mean(ag_tape *t, ag_tensor *x);                     /* -> scalar */
ag_tensor *ag_row_sum(ag_tape *t, ag_tensor *x);                  /* [..,n] -> [..] */
ag_tensor *ag_repeat(ag_tape *t, ag_tensor *x, int64_t times);    /* [..,n] -> [..,n*times]: each
                                                                   * number so many times */
ag_tensor *ag_scale(ag_tape *t, ag_tensor *x, double alpha);      /* alpha x */
ag_tensor *ag_reshape(ag_tape *t, ag_tensor *x, ag_shape shape);  /* the same numbers in another
                                                                   * shape */

#endif
