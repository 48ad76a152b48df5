/*
 * gemm_check.h -- a matrix product of the GPU's tables against the f64 reference, on operands that
 * are exact in the type.
 *
 * |error| <= 8 u S + v |result|, S the sum of absolute values, u = 2^-24, v the rounding of what is
 * stored; where the value before an activation is stored too, it may be rounded first.  Guard words
 * stand before, after and between the rows of what is written.
 */
#ifndef GEMM_CHECK_H
#define GEMM_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "autograd/cuda/cuda.h"

enum { GUARD = 16 };                 /* elements */

extern const ag_device *device;      /* the GPU, once it is open */

typedef struct problem {
    ag_dtype type;
    bool    c_f32, ta, tb, acc, bias, pre, residual;
    int64_t m, n, k, pad, shift;     /* what each ld has beyond the row; elements that all pointers
                                      * are off 16 bytes */
    int64_t lda, ldb;                /* rows that overlap; 0: they do not */
    ag_act  act;
} problem;

/* n numbers on the host as f64, and in their type on the device between GUARD words. */
typedef struct array {
    int64_t  n;
    ag_dtype type;
    double  *host, *size;            /* size: their absolute values */
    char    *block;                  /* on the device */
    int64_t  shift;
} array;

typedef struct operands {
    array   a, b, bias, residual, c, pre;
    ag_gemm g;
    double *want, *want_pre, *sum;   /* with ldc; sum: of absolute values, without activation */
} operands;

size_t size_of(ag_dtype t);
int64_t extent(const array *a);      /* elements, with the guards */
/* The host's numbers to the device, with guards around them. */
void array_write(array *a);
/* What the device has, on the host; rows of n of an ld, the guards still there. */
void *array_read(const array *a, int64_t n, int64_t ld);

/* Operands of p, and what is expected of it. */
void setup(operands *o, const problem *p);
void release(operands *o);
void check_result(const operands *o, const problem *p);
/* All of it: the product of p is as it should be. */
void check_problem(const problem *p);

#endif
