/*
 * reversible.h -- transformer blocks on two residual streams, whose inputs backward rebuilds
 * (Terraformer, 2111.12763 section 4.2; Reformer, 2001.04451; RevNet, 1707.04585).
 *
 *     attention      (a, b) -> (b, a + attention(norm(b)))            once or twice a block
 *     feed-forward   (a, b) -> (b, a + ff(norm(b)) + sru(b))          sru, if any
 *
 * The streams swap after each, but may stay behind a feed-forward (`two_swaps` false: the released
 * configurations differ).  Activations of one layer are kept at a time (autograd/segment.h), as
 * numbers that are rebuilt up to rounding, or in fixed point, which is exact.
 */
#ifndef NN_REVERSIBLE_H
#define NN_REVERSIBLE_H

#include "layers/block.h"

typedef enum nn_streams_kind {
    NN_STREAMS_ONE,                  /* an ordinary residual stream */
    NN_STREAMS_STORED,               /* two, everything kept: to measure the others by */
    NN_STREAMS_REBUILT               /* two, rebuilt */
} nn_streams_kind;

typedef struct nn_streams_config {
    nn_streams_kind kind;
    int  point;                      /* rebuilt: binary digits behind the point; 0: numbers */
    bool two_swaps;
    bool concatenate;                /* gpt: the output layer sees [a | b], not (a + b) / 2 */
} nn_streams_config;

/* AG_ECONFIG names the fields that do not fit. */
int nn_streams_check(const nn_streams_config *c, ag_err *err);

typedef struct nn_second {           /* the second attention of a block */
    nn_norm      norm;
    nn_attention attention;
} nn_second;
void nn_second_build(nn_second *l, nn_params *p, const nn_attention_config *c, double norm_eps);

typedef struct nn_reversible {       /* blocks, which belong to the model */
    const nn_block  *block;          /* [n] */
    const nn_second *second;         /* [n]; NULL: one attention a block */
    int n;
    nn_streams_config streams;
} nn_reversible;

typedef struct nn_pass {             /* what a forward pass knows */
    nn_mode      mode;
    ag_kv_cache *cache;              /* decoding, as nn_block_forward; layer i of a block without a
                                      * second attention, else 2i and 2i + 1 */
    bool         encoder;            /* positions see all others, as nn_block_encode: */
    ag_tensor   *lengths;            /* of those below it; NULL: all */
} nn_pass;

/* The streams a, b [b,t,d_model] behind all blocks: a, and b through ret_b. */
ag_tensor *nn_reversible_forward(const nn_reversible *r, ag_tape *t, const nn_pass *pass,
                                 ag_tensor *a, ag_tensor *b, ag_tensor **ret_b);

#endif
