/*
 * tensor.h -- the one data structure that every other module talks about.
 *
 * A tensor is a contiguous row-major block of numbers plus its gradient.  There are no strides, no
 * views and no reference counts: a tensor lives in an arena (that of a tape: until ag_tape_reset();
 * that of a parameter store: until it is freed).  The struct is open because layers read its shape
 * and tests its data; only autograd/ writes its fields.
 */
#ifndef AG_TENSOR_H
#define AG_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum ag_dtype { AG_F32, AG_F64, AG_I32, AG_BF16, AG_F16 } ag_dtype;

enum { AG_MAX_DIMS = 4 };

typedef struct ag_shape {
    int     ndim;                    /* 0 for a scalar */
    int64_t dim[AG_MAX_DIMS];        /* elements; dim[ndim-1] varies fastest */
} ag_shape;

typedef struct ag_tensor {
    ag_shape shape;
    int64_t  size;                   /* elements: product of dim[], 1 for a scalar */
    ag_dtype dtype;
    void    *data;                   /* [size], in the memory of the tape's device */
    const int32_t *host;             /* of integers: the same on the host, data itself there; NULL:
                                      * a device computed them */
    void    *narrow;                 /* [size], of a parameter: the same rounded to the 16-bit type
                                      * of the tapes that it is used on; else NULL */
    void    *grad;                   /* [size], dloss/dthis, of ag_grad_dtype; NULL until backward
                                      * (parameters: always set) */
    bool     needs_grad;             /* a parameter, or computed from one */
    bool     grad_written;           /* grad holds a sum already; else its bytes are garbage */
    bool     grad_kept;              /* grad outlives the backward of its producer (leaf,
                                      * parameter) */
    struct ag_call *maker;           /* data is not kept, this call makes it again (remake.c); NULL:
                                      * it is */
    struct ag_tensor *next_made;     /* of those with data for the moment (remake.c) */
    bool     wanted;                 /* its numbers are read by what comes behind (segment.c) */
    const char *name;                /* of a parameter: "blocks.0.attn.qkv.weight"; else NULL */
} ag_tensor;

static inline bool ag_dtype_is_half(ag_dtype d) { return d == AG_BF16 || d == AG_F16; }
static inline size_t ag_dtype_size(ag_dtype d)           /* bytes */
{
    return d == AG_F64 ? 8 : ag_dtype_is_half(d) ? 2 : 4;
}
const char *ag_dtype_name(ag_dtype d);                   /* "f32" */
/* What its gradient is summed in: f32 for a leaf or parameter of 16 bits, else its own type. */
ag_dtype ag_grad_dtype(const ag_tensor *x);
double  ag_number_at(ag_dtype d, const void *data, int64_t i);   /* on the host */
double  ag_tensor_at(const ag_tensor *x, int64_t i);     /* element i of its data */
int64_t ag_shape_size(const ag_shape *s);                /* INT64_MAX if that is too large, or a dim
                                                          * negative */
bool    ag_shape_equal(const ag_shape *a, const ag_shape *b);
/* "[2,3]" into buf; returns buf. */
const char *ag_shape_text(const ag_shape *s, char buf[96]);

/* ag_shape of the arguments: AG_SHAPE(2, 3) */
#define AG_SHAPE(...)                                                                   \
    ((ag_shape){ (int)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)), { __VA_ARGS__ } })

size_t  ag_tensor_bytes(const ag_tensor *x);             /* of its numbers */
/* size of the last dimension (1 for a scalar), and how many such rows there are */
int64_t ag_cols(const ag_tensor *x);
int64_t ag_rows(const ag_tensor *x);

#endif
