/*
 * convert.h -- how calls run on a tape of 16-bit numbers.
 *
 * Such a tape stores what it computes, and the gradients of that, in 16 bits; parameters, the
 * gradients of leaves and parameters, and what ops declare (ag_op.f32_out: losses) are f32.  Every
 * call runs on one table of kernels, call->k: the 16-bit one where it has all kernels that the op
 * names (ag_op.half), else the f32 table behind it.  The op's functions see a view of the call: the
 * same tensors in the number types of that table.  What has another type is converted into scratch
 * before and rounded from there afterwards, so an op knows nothing of all this.
 */
#ifndef AG_CONVERT_H
#define AG_CONVERT_H

#include "op.h"

/* The number type of the real outputs of c, whose inputs are set: f32 where the op says so, or
 * where all numbers that it reads were computed in f32; that of the tape else. */
ag_dtype ag_call_dtype(const ag_call *c);
/* The table that c runs on: its op, attributes and inputs are set. */
const ag_kernels *ag_call_kernels(const ag_call *c);

/* `run` (c->op->forward, or what makes its output again; NULL: nothing) and c->op->backward, on a
 * view of c; on a tape that plans only its memory is taken. */
void ag_call_run_forward(ag_call *c, ag_call_run *run);
void ag_call_run_backward(ag_call *c);

/* Numbers of another type, or of the same. */
void ag_convert(const ag_kernels *k, int64_t n, ag_dtype from, const void *x, ag_dtype to, void *y);
/* The same, or added to y (acc), with scratch of the tape. */
void ag_convert_add(ag_tape *t, int64_t n, ag_dtype from, const void *x, ag_dtype to, void *y,
                    bool acc);
/* The table for numbers of that type: k or the f32 one behind it. */
const ag_kernels *ag_kernels_of(const ag_kernels *k, ag_dtype dtype);

#endif
