/*
 * optim.h -- Adam, AdamW, SGD and Adafactor over flat arrays of weights and gradients.
 *
 * The optimizer knows no layers: it sees p[n], g[n] and a list of ranges, of which some decay.  One
 * step reads the gradient once for its norm and for what is not finite in it, then goes over
 * everything: undo the scale of the loss (optim/scaler.h), clip, update, average, clear the
 * gradient.  All arithmetic is elementwise or in fixed chunks and in a fixed order, so a step gives
 * the same bits for any number of threads and any instruction set.  The arrays and what is kept
 * from step to step lie on the host or on a device, whose loops (autograd/flat.h) round a little
 * differently.
 *
 * With g the clipped gradient, lambda the weight decay (0 outside the ranges that decay) and t = 1,
 * 2, ... the step (Kingma and Ba 2015; Loshchilov and Hutter 2019; as PyTorch computes them):
 *
 *   adam, adamw   adam:  g += lambda p          adamw:  p -= lr lambda p
 *                 m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
 *                 p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)
 *   sgd           g += lambda p;  m = momentum m + g
 *                 p -= lr m, with Nesterov's momentum p -= lr (g + momentum m)
 *   adafactor     optim/adafactor.h
 *   average       e = decay e + (1 - decay) p, e starting at the weights before the first step
 */
#ifndef OPT_OPTIM_H
#define OPT_OPTIM_H

#include "autograd/base/error.h"
#include "autograd/device.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum opt_type { OPT_ADAMW, OPT_ADAM, OPT_SGD, OPT_ADAFACTOR, OPT_N_TYPES } opt_type;

typedef struct opt_config {
    opt_type type;
    double   beta1, beta2, eps;      /* adam, adamw */
    double   momentum;               /* sgd */
    bool     nesterov;
    double   weight_decay;
    double   clip_norm;              /* largest norm of the whole gradient; 0: no clipping */
    double   ema_decay;              /* of the moving average of the weights; 0: none */
    /* adafactor */
    double   decay_rate;             /* beta = 1 - t^-decay_rate */
    double   clip_threshold;         /* largest root mean square of an update; 0: no clipping */
    double   eps1, eps2;             /* added to squares; least root mean square of weights */
    bool     parameter_scale;        /* steps are relative to the weights */
    int64_t  weight_decay_steps;     /* over which the weight decay falls to 0; 0: it stays */
    double   update_momentum;        /* decay of the mean update; 0: none */
} opt_config;

typedef struct opt_range {           /* elements offset .. offset + count - 1: one tensor */
    int64_t offset, count;
    bool    decay;
    int64_t rows, cols;              /* its last two axes; 0, 0: a vector */
} opt_range;

/* What a slot has numbers of: every element; the rows or columns of ranges with two axes or more
 * (the other axes are kept); the elements of vectors. */
typedef enum opt_extent { OPT_OF_ALL, OPT_OF_ROWS, OPT_OF_COLS, OPT_OF_VECTORS } opt_extent;

enum { OPT_MAX_SLOTS = 5 };

typedef struct opt_slot {            /* numbers that are kept from step to step */
    const char *name;                /* in the checkpoint: "m", "v", "ema" */
    opt_extent  extent;
    int64_t     n;
    float      *data;                /* [n], where the weights are; opt_slot_span() says what
                                      * belongs to a range */
} opt_slot;

typedef struct opt_state {
    opt_config config;
    const ag_device *device;         /* where weights, gradient and slots are; NULL: the host */
    int64_t    n;                    /* elements */
    int64_t    step;                 /* steps done; with the slots, the state of a checkpoint */
    int        n_slots;
    opt_slot   slot[OPT_MAX_SLOTS];
    float     *m, *v, *ema;          /* the slots by name; NULL: this optimizer has none */
    float     *v_row, *v_col;
    opt_range *range;                /* [n_ranges] */
    int        n_ranges;
    ag_flat_part *part;              /* [n_parts], the work of one thread or block at a time; where
                                      * the weights are */
    int64_t    n_parts;
    double    *square;               /* [1] on a device: the sum of squares of the gradient */
    struct opt_adafactor *adafactor; /* what it works in; NULL: another type */
} opt_state;

/* For arrays of n elements on a device, or the host where that is NULL.  The ranges are in order of
 * offset; what none covers does not decay, and Adafactor leaves it as it is.  AG_ECONFIG names the
 * setting that does not fit, AG_EFAIL for bad ranges, AG_ENOMEM. */
int opt_new(const opt_config *c, const ag_device *device, int64_t n, const opt_range *ranges,
            int n_ranges, opt_state **ret_opt, ag_err *err);
void opt_free(opt_state *o);         /* NULL is fine */

/* What of slot k belongs to range i: returns how many numbers, 0 for none, and where they begin in
 * its data. */
int64_t opt_slot_span(const opt_state *o, int k, int i, int64_t *ret_offset);

/* All numbers of slot k, to and from the host's memory. */
void opt_slot_read(const opt_state *o, int k, float *host);
void opt_slot_write(opt_state *o, int k, const float *host);

/* The average of the weights has this memory from now on: the weights had it, and have taken that
 * of the average. */
void opt_swap_average(opt_state *o, float *weights);

/* Bytes of the slots and of what the optimizer works in. */
size_t opt_bytes(const opt_state *o);

/* One step with learning rate lr and the gradient unscale * g; g is zero afterwards.  unscale is 1
 * over the scale of the loss.  *ret_norm, which may be NULL: the norm of the gradient before
 * clipping.  AG_EDIVERGED if that is not finite, or so large that f32 does not hold its square or
 * the factor of the gradient: then nothing has changed, g neither, and *ret_norm is set all the
 * same.  AG_EFAIL: the device failed. */
int opt_step(opt_state *o, double lr, double unscale, float *p, float *g, double *ret_norm,
             ag_err *err);

/* Euclidean norm, summed in f64; NaN or infinite if an element is. */
double opt_norm(int64_t n, const float *x);

#endif
