/*
 * basic.h -- the layers that everything else is made of: linear, layer norm, dropout.
 *
 * A layer is a struct of its parameters and sizes.  nn_X_build() names its parameters in a store
 * (params.h); it is ready once nn_params_alloc() has run.  nn_X_forward() calls ops on a tape and
 * cannot fail: errors stick to the tape (autograd/tape.h).  [..,n] is a tensor whose last dimension
 * is n.
 */
#ifndef NN_BASIC_H
#define NN_BASIC_H

#include "autograd/ops.h"
#include "layers/params.h"

/* Training draws noise (dropout, controllers); evaluation draws none, and takes the mixtures of
 * sparse layers for what they choose only in the soft form. */
typedef enum nn_mode { NN_EVAL, NN_TRAIN, NN_EVAL_SOFT } nn_mode;

typedef struct nn_linear {
    ag_tensor *weight;               /* [d_out,d_in], as PyTorch's Linear */
    ag_tensor *bias;                 /* [d_out] or NULL; starts at 0 */
} nn_linear;
void nn_linear_build(nn_linear *l, nn_params *p, const char *name, int64_t d_in, int64_t d_out,
                     bool bias, nn_init init);
/* act(x w^T + b) + residual: x [..,d_in] -> [..,d_out]; residual [..,d_out] or NULL */
ag_tensor *nn_linear_forward(const nn_linear *l, ag_tape *t, ag_tensor *x, ag_act act,
                             ag_tensor *residual);

typedef struct nn_norm {
    ag_tensor *gain;                 /* [d], starts at 1 */
    ag_tensor *bias;                 /* [d] or NULL */
    double     eps;
} nn_norm;
void nn_norm_build(nn_norm *l, nn_params *p, const char *name, int64_t d, bool bias, double eps);
ag_tensor *nn_norm_forward(const nn_norm *l, ag_tape *t, ag_tensor *x);

typedef struct nn_dropout {
    double   p;                      /* probability that an element is dropped */
    uint32_t site;
} nn_dropout;
void nn_dropout_build(nn_dropout *l, nn_params *p, double probability);
bool nn_dropout_is_on(const nn_dropout *l, nn_mode mode);
/* x without residual */
ag_tensor *nn_dropout_forward(const nn_dropout *l, ag_tape *t, ag_tensor *x, nn_mode mode);
/* dropout(x w^T + b) + residual, the end of a branch; fused into the product where nothing is
 * dropped */
ag_tensor *nn_branch_end(const nn_linear *l, const nn_dropout *drop, ag_tape *t, ag_tensor *x,
                         ag_tensor *residual, nn_mode mode);

#endif
