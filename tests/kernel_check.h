/*
 * kernel_check.h -- runs one kernel on every table of this machine and compares with the reference.
 *
 * A case is a function that calls one kernel of a given table with fixed inputs, plus a list of its
 * outputs.  Outputs lie between guard words; those that a kernel overwrites start as NaN, those it
 * adds to start as numbers.  Each table runs with 1, 2, 3 and 7 threads and must give the same
 * bits.
 */
#ifndef KERNEL_CHECK_H
#define KERNEL_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "autograd/kernels.h"

#define U32 0x1p-24                  /* unit roundoff of f32 */

enum { MAX_TABLES = 4, MAX_OUT = 6 };

typedef struct out {
    int64_t n;                       /* words of 32 bits */
    bool    adds;                    /* starts as numbers, not as NaN */
    bool    exact;                   /* the bits of the reference: integers, copies */
    double  c;                       /* |got - ref| <= U32 (c scale + 2 |ref|), or tiny */
    const double *scale;             /* [n], or NULL: 1 */
} out;

typedef void kernel_case(const ag_kernels *k, const void *arg, void *const y[]);

/* Fails the test, naming it `what`, unless all is well. */
void check_kernel(const char *what, kernel_case *run, const void *arg, int n_out, const out *outs);

/* Numbers in [lo, hi) from a seed; free() them.  n may be 0. */
float *floats(int64_t n, double lo, double hi, uint64_t seed);
int32_t *ints(int64_t n, int32_t lo, int32_t hi, uint64_t seed);     /* lo <= x < hi */

/* The fast tables of this machine into ret; returns how many. */
int fast_tables(const ag_kernels *ret[MAX_TABLES]);

#endif
