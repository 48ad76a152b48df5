/*
 * op_check.h -- one case of an op, run on any tape and compared with the f64 reference.
 *
 * On an f32 tape the memory that kernels write to is filled with NaN before, and the bytes behind
 * each tensor must stay that way.
 */
#ifndef OP_CHECK_H
#define OP_CHECK_H

#include "check.h"

typedef struct op_result {
    int64_t  size[2 + AG_MAX_IN];    /* out[0], out[1], then the gradients of the inputs */
    double  *v[2 + AG_MAX_IN];       /* NULL: there is none */
} op_result;
void op_result_release(op_result *r);

/* A tape of k; if it is f32, its memory is full of NaN. */
ag_tape *poisoned_tape(const ag_kernels *k);
/* Forgets a case; what it used becomes NaN again. */
void poison_again(ag_tape *t);
/* Forward and, where there is one, backward from case_cotangent; the tape is reset.  Fails the test
 * on an error. */
op_result op_run(ag_tape *t, const op_case *c);
/* What each number of the results is measured against; those that are NULL, against the largest. */
op_result op_scale(ag_tape *ref, const op_case *c);

typedef struct op_format {           /* how exact a table is */
    ag_dtype dtype;
    double u, tiny, nmse;            /* half a unit in the last place of 1, of the least number;
                                      * mean square error over mean square */
} op_format;
void op_compare(const op_case *c, const char *name, const op_result *got, const op_result *want,
                const op_result *scale, const op_format *f);

#endif
