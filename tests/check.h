/*
 * check.h -- what the tests of the engine share: ops with a sample and inputs made from a seed,
 * ways to run and compare them.
 *
 * Numbers come from a small generator of our own, not from autograd/base/rng.h, so that a fault
 * there cannot hide itself.  They are rounded to f32: a case has the same inputs on every tape.
 */
#ifndef CHECK_H
#define CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "autograd/op.h"
#include "autograd/ops.h"

typedef struct op_case {             /* an op on one of its samples */
    const ag_op *op;
    int64_t   index;                 /* which sample */
    ag_sample s;
    unsigned  real;                  /* bit i: input i is present and holds real numbers */
} op_case;

/* The i-th sample of op, good or bad; false: there is none. */
bool case_at(const ag_op *op, int64_t i, op_case *ret);
/* "linear sample 17: x [5,7], ..." into buf, with the inputs of `subset` marked; returns buf. */
const char *case_text(const op_case *c, unsigned subset, char buf[512]);

/* Runs one cmocka test per op, named after it, with the op as *state; `prefix` names the group. */
int run_per_op(const char *group, void (*run)(void **state));

/* Repeatable uniform numbers in [lo,hi] without (-gap,gap), rounded to f32. */
void uniform(double *x, int64_t n, double lo, double hi, double gap, uint64_t seed);
void uniform_int(int32_t *x, int64_t n, int32_t lo, int32_t hi, uint64_t seed);
double *uniform_new(int64_t n, double lo, double hi, uint64_t seed);     /* free() it */

/* The inputs of a case on t; bit i of `needs_grad` is for input i; absent ones NULL.  Where step is
 * not 0, input i in `along` is moved by step times its random direction (case_direction). */
void case_inputs(ag_tape *t, const op_case *c, unsigned needs_grad, double step, unsigned along,
                 ag_tensor *ret_in[AG_MAX_IN]);
/* From now on inputs and cotangents are rounded to that 16-bit type as well; AG_F32: no more. */
void case_round_to(ag_dtype dtype);
double *case_direction(const op_case *c, int i);                         /* free() it */
ag_tensor *case_apply(ag_tape *t, const op_case *c, ag_tensor *const in[AG_MAX_IN],
                      ag_tensor **ret_second);
/* Random dy (never ones) for y, in the number type of the tape, then ag_backward_from(). */
int case_backward(ag_tape *t, const op_case *c, ag_tensor *y);
double *case_cotangent(const op_case *c, int64_t n);                     /* free() it */

/* Element i of data, as dtype says. */
double real_at(const void *data, ag_dtype dtype, int64_t i);
/* Numbers of x on t (grad: its gradient) as a new array of doubles; free() it. */
double *copy_of(const ag_tape *t, const ag_tensor *x, bool grad);

/* A tape with the noise key that all cases use. */
ag_tape *tape_new(const ag_kernels *k);

#endif
