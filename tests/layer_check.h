/*
 * layer_check.h -- what the tests of layers and models share: an f64 tape with fixed noise, inputs,
 * and the check of every gradient against differences.
 */
#ifndef TESTS_LAYER_CHECK_H
#define TESTS_LAYER_CHECK_H

#include "autograd/autograd.h"
#include "layers/layers.h"

enum { SEED = 11, MAX_SIZE = 4096 };     /* MAX_SIZE: elements of an input or output */
enum { X_SITE = 1, COTANGENT_SITE = 2 };

/* Uniform in (lo, hi): a function of (site, e). */
double draw(uint32_t site, int64_t e, double lo, double hi);

ag_tape *tape_new(void);
void noise(ag_tape *t, uint32_t step, int64_t sample0, int64_t n_samples);
void tape_ok(const ag_tape *t);          /* else the test fails with the tape's message */

ag_tensor *input(ag_tape *t, ag_shape shape, uint32_t site, bool needs_grad);
ag_tensor *integers(ag_tape *t, ag_shape shape, uint32_t site, int most);

/* Moves all weights by up to 0.3, so that no gradient is small by luck: biases start at 0. */
void params_shake(nn_params *p);
void params_ready(nn_params *p);         /* weights, shaken, and gradients */

double cotangent(int64_t i);             /* element i of dL/dy in every check */

/* A layer in one configuration: forward(layer, tape, x) from an x of `shape`, or from ids below
 * `vocab`. */
typedef struct subject {
    nn_params *params;
    const void *layer;
    ag_tensor *(*forward)(const void *layer, ag_tape *t, ag_tensor *x);
    ag_shape shape;
    int vocab; /* 0: x are real numbers, and a gradient is checked for them too */
} subject;

/* Checks the gradient of <v, y>, v = cotangent, by every parameter and every x. */
void check_subject(const subject *s);

#endif
