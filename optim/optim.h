/*
 * optim.h -- Adam, AdamW and SGD over flat arrays of weights and gradients.
 *
 * The optimizer knows no layers: it sees p[n], g[n] and a list of ranges, of which some decay.  One
 * step reads the gradient once for its norm, then goes once over everything: clip, update, average,
 * clear the gradient.  All arithmetic is elementwise or in fixed chunks and in a fixed order, so a
 * step gives the same bits for any number of threads and any instruction set.
 *
 * With g the clipped gradient, lambda the weight decay (0 outside the ranges that decay) and t = 1,
 * 2, ... the step (Kingma and Ba 2015; Loshchilov and Hutter 2019; as PyTorch computes them):
 *
 *   adam, adamw   adam:  g += lambda p          adamw:  p -= lr lambda p
 *                 m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
 *                 p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)
 *   sgd           g += lambda p;  m = momentum m + g
 *                 p -= lr m, with Nesterov's momentum p -= lr (g + momentum m)
 *   average       e = decay e + (1 - decay) p, e starting at the weights before the first step
 */
#ifndef OPT_OPTIM_H
#define OPT_OPTIM_H

#include "autograd/base/error.h"
#include <stdbool.h>
#include <stdint.h>

typedef enum opt_type { OPT_ADAMW, OPT_ADAM, OPT_SGD } opt_type;

typedef struct opt_config {
    opt_type type;
    double   beta1, beta2, eps;      /* adam, adamw */
    double   momentum;               /* sgd */
    bool     nesterov;
    double   weight_decay;
    double   clip_norm;              /* largest norm of the whole gradient; 0: no clipping */
    double   ema_decay;              /* of the moving average of the weights; 0: none */
} opt_config;

typedef struct opt_range {           /* elements offset .. offset + count - 1 */
    int64_t offset, count;
    bool    decay;
} opt_range;

enum { OPT_MAX_SLOTS = 3 };

typedef struct opt_slot {            /* one number per weight, kept from step to step */
    const char *name;                /* in the checkpoint: "m", "v", "ema" */
    float      *data;                /* [n] */
} opt_slot;

typedef struct opt_state {
    opt_config config;
    int64_t    n;                    /* elements */
    int64_t    step;                 /* steps done; with the slots, the state of a checkpoint */
    int        n_slots;
    opt_slot   slot[OPT_MAX_SLOTS];
    float     *m, *v, *ema;          /* the slots by name; NULL: this optimizer has none */
    struct opt_part *part;           /* [n_parts], the work of one thread at a time */
    int64_t    n_parts;
} opt_state;

/* For arrays of n elements.  The ranges are in order of offset; what none covers does not decay.
 * AG_ECONFIG names the setting that does not fit, AG_EFAIL for bad ranges, AG_ENOMEM. */
int opt_new(const opt_config *c, int64_t n, const opt_range *ranges, int n_ranges,
            opt_state **ret_opt, ag_err *err);
void opt_free(opt_state *o);         /* NULL is fine */

/* One step with learning rate lr; g is zero afterwards.  *ret_norm, which may be NULL: the norm of
 * g before clipping.  AG_EDIVERGED if that is not finite: then nothing has changed, and *ret_norm
 * is set all the same. */
int opt_step(opt_state *o, double lr, float *p, float *g, double *ret_norm, ag_err *err);

/* Euclidean norm, summed in f64; NaN or infinite if an element is. */
double opt_norm(int64_t n, const float *x);

#endif
