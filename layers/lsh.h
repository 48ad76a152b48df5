/*
 * lsh.h -- attention by hashing: a query meets keys that a random hash puts beside it (Reformer,
 * 2001.04451; the released code of Terraformer, 2111.12763; ops/lsh.c has the formulas).
 *
 * Queries are keys too.  Training draws new rotations in each step, for each sequence and head;
 * evaluation and decoding have the same ones always, for each head.  Without `buckets` there are
 * two for each chunk of `length`; more than 128 are a product of two numbers, hashed one by one:
 * n1 = 2^ceil(log2 sqrt n), n2 = 2 (n / (2 n1)).  Decoding sees less than a sequence, so the number
 * comes from the length that the model has, not from what it is given.
 *
 * Sequences of up to std_length positions have attention over all keys, keys as long as queries.
 */
#ifndef NN_LSH_H
#define NN_LSH_H

#include "layers/basic.h"

typedef enum nn_lsh_kind { NN_LSH_NONE, NN_LSH_OWN, NN_LSH_PURE } nn_lsh_kind;

typedef struct nn_lsh_config {
    nn_lsh_kind kind;                /* attention.h says what it does to the projections */
    bool    causal;                  /* else a chunk meets the one behind it too */
    int64_t length;                  /* longest sequence */
    int64_t chunk;                   /* positions */
    int64_t buckets;                 /* of a round, even; 0: by length */
    int64_t rounds;                  /* hashes */
    int64_t std_length;
    bool    bucket_mask, correct;    /* as ag_lsh in kernels.h */
} nn_lsh_config;

typedef struct nn_lsh {
    nn_lsh_config  config;
    ag_lsh_options options;
} nn_lsh;

/* AG_ECONFIG names the keys that do not fit. */
int nn_lsh_check(const nn_lsh_config *c, ag_err *err);
void nn_lsh_build(nn_lsh *l, nn_params *p, const nn_lsh_config *c, int64_t heads, int64_t d_qk,
                  int64_t d_v);
/* q [b,t,heads*d_qk], v [b,t,heads*d_v] -> [b,t,heads*d_v]; lengths int32 [b]: keys from there on
 * are padding; NULL: none is.  drop: of the weights.  With a cache q and v are the positions that
 * follow those in it, lengths is NULL, and there is no gradient. */
ag_tensor *nn_lsh_forward(const nn_lsh *l, ag_tape *t, ag_tensor *q, ag_tensor *v,
                          ag_tensor *lengths, double drop, nn_mode mode, ag_kv_cache *cache,
                          int layer);
/* What a cache must keep for it; AG_ENOMEM. */
int nn_lsh_keep(const nn_lsh *l, ag_kv_cache *cache);
/* Multiply-adds of the hash of n positions, and between queries and all that is in the chunks that
 * they meet. */
double nn_lsh_products(const nn_lsh *l, int64_t n);
/* Factors of n buckets. */
void nn_lsh_factors(int64_t n, int64_t ret_factor[2]);

#endif
