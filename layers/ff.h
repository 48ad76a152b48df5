/*
 * ff.h -- the feed-forward layer: dense, or sparse in one of three ways.
 *
 * Dense:   y = W2 act(W1 x + b1) + b2
 *
 * Sparse ("Sparse is Enough in Scaling Transformers", arXiv 2111.12763, section 3.1, and its
 * released code): the d_ff units form d_ff/N blocks of N, and in each block one unit is let
 * through.
 *
 *     z    = C2 C1 x + cb                    [blocks,N], C1 [d_lowrank,d], C2 [d_lowrank,d_ff]
 *     p    = softmax over each block of z
 *     k    = argmax(log p + T g)             training, g Gumbel noise; T = 0 in evaluation
 *     mask = p                               soft step: everything is computed
 *            one-hot of k                    hard step and evaluation: only live units are
 *     h    = mask * relu(a)                  a = W1 x + b1
 *     y    = W2 h + b2
 *
 * A training step is hard with probability quant_prob: one draw per layer and step, the same for
 * all parts of a batch.  (The released code can draw per chunk of a batch.)  With coin_rows = k
 * each k rows in a row have a draw of their own: k = 1, each token.  The draws do not depend on the
 * parts in which a batch runs; the noise does then, it goes by a row's place among those of its
 * kind in the part.
 *
 * What the controller hears of in a hard step (its gradient is that of p, straight-through, with
 * dp[n] = <dL/dy, W2[n]> relu(a[n]) for the units n that count, 0 for the others):
 *     mask_order before_relu   the live unit, relu(mask * a) as in the released code.  Exact for
 *                              that formula at 1/N of the cost; never learns of a better unit
 *     mask_order after_relu    all N, mask * relu(a) as in the paper: the usual straight-through
 *                              estimate, biased by what p differs from one-hot; two dense products
 *     candidates = k > 0       the live and the k - 1 most probable units, at k/N of the cost:
 *                              between the two
 * and quant_prob says how often: 0 soft mixture only (exact gradient of another function than that
 * of evaluation), 0.3 the released code, 1 always hard.
 *
 * NN_FF_BLOCK and NN_FF_SWITCH (released code): the units are cut into N slices ("experts") of
 * d_ff/N units, of which one is live; z = C2 x, full rank.  Switch is always hard, and its live
 * slice is multiplied by p, which carries the gradient.
 *
 * Instead of the controller, for comparison: a random unit for each row, always the first unit (a
 * small dense layer), or the unit with the largest a ("oracle", which computes all of them).
 *
 * Unit u is element u % N of block u / N.  Rows are what a unit reads and writes: W1 is [d_ff,d] as
 * PyTorch's Linear, W2 [d_ff,d] its transpose (dense: [d,d_ff]), C2 [d_lowrank,d_ff].  (The
 * released code orders the units of W2 the other way: N x blocks.)
 */
#ifndef NN_FF_H
#define NN_FF_H

#include "layers/basic.h"

typedef enum nn_ff_kind { NN_FF_DENSE, NN_FF_SPARSE, NN_FF_BLOCK, NN_FF_SWITCH } nn_ff_kind;
typedef enum nn_chooser { NN_CHOOSE_CONTROLLER, NN_CHOOSE_RANDOM, NN_CHOOSE_FIRST,
                          NN_CHOOSE_ORACLE } nn_chooser;
/* What d_lowrank = 0 stands for: d_ff / N (released code) or d_model / N (paper), at least 1. */
typedef enum nn_rank_rule { NN_RANK_BLOCKS, NN_RANK_D_MODEL } nn_rank_rule;
typedef enum nn_mask_order { NN_MASK_BEFORE_RELU, NN_MASK_AFTER_RELU } nn_mask_order;

typedef struct nn_ff_config {
    nn_ff_kind kind;
    int64_t d_ff;
    bool    bias_in, bias_out;       /* b1 (the released sparse layer has none), b2 */
    double  dropout;                 /* at the branch's end */

    ag_act  act;                     /* dense; the sparse layer always uses ReLU */
    double  init_std;                /* dense; 0: Glorot.  The sparse layer always uses Glorot */
    double  out_gain;                /* dense: factor of the initial W2; 0 means 1 */

    int64_t block;                   /* N; divides d_ff */
    nn_chooser chooser;
    int64_t d_lowrank;               /* sparse: inner width of the controller; 0: by rank_rule */
    nn_rank_rule  rank_rule;
    nn_mask_order mask_order;
    int64_t candidates;              /* 0: by mask_order */
    double  quant_prob;              /* of a hard step ... */
    int64_t quant_ramp;              /* ... which rises to 1 over so many steps; 0: it stays */
    int64_t coin_rows;               /* rows that share a draw; 0: all */
    double  temperature;             /* T */
    bool    controller_bias;         /* cb */
    bool    controller_relu;         /* sparse: C2 relu(C1 x) */
    bool    relaxed;                 /* p = softmax((z + g) / T) (Gumbel-softmax, 1611.01144) */
    bool    kernel_scaling;          /* initial W2 times sqrt(N): hard outputs on the dense scale */
    bool    scaled;                  /* hard steps and evaluation multiply h by p, held constant
                                      * ("multiply_by_controller_output") */
} nn_ff_config;

/* What a sparse layer did in evaluation, filled while one is attached. */
typedef struct nn_ff_probe {
    int64_t *used;                   /* [blocks*N]: how often each was chosen */
    int32_t *choice;                 /* [cap,blocks]: of the first rows */
    int64_t  rows, cap;              /* rows seen */
    double   entropy;                /* of p in nats, summed over rows and blocks */
} nn_ff_probe;

typedef struct nn_ff {
    nn_ff_config config;             /* d_lowrank filled in */
    int64_t    d_model;
    int64_t    blocks, width;        /* of choices; units of a choice */
    nn_linear  in, out;              /* W1 [d_ff,d_model] b1, W2 b2 */
    nn_linear  c1, c2;               /* C1 [d_lowrank,d_model], C2 [d_lowrank,blocks*N] cb; NULL
                                      * where there are none */
    nn_dropout drop;
    uint32_t   noise_site, coin_site;
    nn_ff_probe *probe;              /* NULL: none */
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
/* Weights that one token reads: all, or the controller, the live units, and b2. */
int64_t nn_ff_touched(const nn_ff *l);
/* Multiply-adds of one token in evaluation. */
int64_t nn_ff_products(const nn_ff *l);

/* For layers/ff.c: the sparse kinds (sparse_ff.c). */
void nn_sparse_ff_build(nn_ff *l, nn_params *p);
ag_tensor *nn_sparse_ff_forward(const nn_ff *l, ag_tape *t, ag_tensor *x, ag_tensor *residual,
                                nn_mode mode);

#endif
