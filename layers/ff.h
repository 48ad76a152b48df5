/*
 * ff.h -- the feed-forward layer, dense or sparse.
 *
 * Dense:   y = W2 act(W1 x + b1) + b2
 *
 * Sparse ("Sparse is Enough in Scaling Transformers", arXiv 2111.12763, section 3.1, and its
 * released code): the d_ff units form d_ff/N blocks of N units, and in each block a small
 * controller lets one unit through.
 *
 *     z    = C2 C1 x + cb                    [blocks,N], C1 [d_lowrank,d], C2 [d_ff,d_lowrank]
 *     p    = softmax over each block of z
 *     mask = p                               soft training step
 *            one-hot argmax(log p + T g)     hard training step, g Gumbel noise; gradient as of p
 *            one-hot argmax z                evaluation
 *     h    = relu(mask * a)                  a = W1 x + b1, the released code (NN_MASK_BEFORE_RELU)
 *            mask * relu(a)                  the paper's formula (NN_MASK_AFTER_RELU): same values;
 *                                            in hard steps the controller hears of every
 *                                            active unit, not just of the chosen one
 *     y    = W2 h + b2
 *
 * A training step is hard with probability quant_prob: one draw per layer and step, the same for
 * all parts of a batch.
 *
 * All weights are (out, in) row-major like PyTorch's Linear, and unit u is element u % N of block
 * u / N everywhere.  (The released code orders the units of W2 the other way: N x blocks.)
 */
#ifndef NN_FF_H
#define NN_FF_H

#include "layers/basic.h"

/* What d_lowrank = 0 stands for: d_ff / N (released code) or d_model / N (paper), at least 1. */
typedef enum nn_rank_rule { NN_RANK_BLOCKS, NN_RANK_D_MODEL } nn_rank_rule;
typedef enum nn_mask_order { NN_MASK_BEFORE_RELU, NN_MASK_AFTER_RELU } nn_mask_order;

typedef struct nn_ff_config {
    bool    sparse;
    int64_t d_ff;
    bool    bias_in, bias_out;       /* b1 (the released sparse layer has none), b2 */
    double  dropout;                 /* at the branch's end */

    ag_act  act;                     /* dense; the sparse layer always uses ReLU */
    double  init_std;                /* dense; 0: Glorot.  The sparse layer always uses Glorot */
    double  out_gain;                /* dense: factor of the initial W2; 0 means 1 */

    int64_t block;                   /* N, units per block; divides d_ff */
    int64_t d_lowrank;               /* inner width of the controller; 0: by rank_rule */
    nn_rank_rule  rank_rule;
    nn_mask_order mask_order;
    double  quant_prob;              /* of a hard step */
    double  temperature;             /* T */
    bool    controller_bias;         /* cb */
    bool    controller_relu;         /* C2 relu(C1 x) */
    bool    relaxed;                 /* p = softmax((z + g) / T) (Gumbel-softmax, 1611.01144) */
    bool    kernel_scaling;          /* initial W2 times sqrt(N): hard outputs on the dense scale */
} nn_ff_config;

typedef struct nn_ff {
    nn_ff_config config;             /* d_lowrank filled in */
    int64_t    d_model;
    nn_linear  in, out;              /* W1 [d_ff,d_model] b1, W2 [d_model,d_ff] b2 */
    nn_linear  c1, c2;               /* sparse: C1 [d_lowrank,d_model], C2 [d_ff,d_lowrank] cb */
    nn_dropout drop;
    uint32_t   noise_site, coin_site;
} nn_ff;

/* AG_ECONFIG names the fields that do not fit. */
int nn_ff_check(const nn_ff_config *c, int64_t d_model, ag_err *err);
/* d_lowrank, with the rule applied */
int64_t nn_ff_rank(const nn_ff_config *c, int64_t d_model);

void nn_ff_build(nn_ff *l, nn_params *p, const char *name, int64_t d_model, const nn_ff_config *c);
/* residual + ff(x), x [..,d_model]; residual may be NULL */
ag_tensor *nn_ff_forward(const nn_ff *l, ag_tape *t, ag_tensor *x, ag_tensor *residual,
                         nn_mode mode);

int64_t nn_ff_params(const nn_ff *l);
/* Weights that one token reads: all, or the controller, one unit of each block, and b2. */
int64_t nn_ff_touched(const nn_ff *l);
/* Multiply-adds of one token when all units are computed, controller included. */
int64_t nn_ff_products(const nn_ff *l);

#endif
