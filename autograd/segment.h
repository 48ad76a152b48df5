/*
 * segment.h -- parts of a model that keep little for backward and are run again there.
 *
 * ag_recompute (gradient checkpointing, Chen et al. 2016, arXiv 1604.06174) keeps the inputs and
 * the output of a segment alone; in backward the segment is recorded again, and of its calls only
 * those run whose numbers a backward reads.  ag_reversible (Gomez et al. 2017, arXiv 1707.04585)
 * keeps not even the inputs: they are rebuilt from the outputs.
 *
 * What runs again must be the same function: of its inputs, of parameters, of integers made before
 * and of the noise key of the tape.  Noise is a function of place (tape.h), so dropout masks and
 * Gumbel noise are the same the second time, and gradients are the same bits as without segments.
 * Segments nest.
 *
 * When backward comes to a recomputed segment, the memory of what was computed after it is used
 * again: of these tensors, gradients alone can be read after ag_backward.
 */
#ifndef AG_SEGMENT_H
#define AG_SEGMENT_H

#include "tape.h"

enum { AG_SEGMENT_IN = 8 };

/* Model code: x[n] -> the output. */
typedef ag_tensor *ag_segment_run(const void *arg, ag_tape *t, ag_tensor *const *x);

/* run(arg, t, x).  x[n_x], at most AG_SEGMENT_IN, are all tensors with a gradient that it reads
 * besides parameters; *arg (arg_bytes, copied) is what else it needs, integer tensors too.
 * AG_EGRAD on the tape where another tensor with a gradient is read, or where only parameters need
 * one. */
ag_tensor *ag_recompute(ag_tape *t, ag_segment_run *run, const void *arg, size_t arg_bytes,
                        ag_tensor *const *x, int n_x);

/*
 * Two streams a and b of one shape, and n half residuals (2111.12763 section 3.4; released code:
 * ReversibleHalfResidual, ReversibleSwap), each
 *
 *     (a, b) -> (a + f(b), b), and with `swap` then (b, a)
 *
 * Backward rebuilds b and f(b) layer by layer from the outputs, a = a' - f(b), over the memory of
 * the outputs: whose numbers are gone afterwards.  So what is kept does not grow with n, but for
 * the integers that an op `recalls` (choices, buckets): those of the first time are used again, as
 * rounding must not change them.
 *
 * point = 0: streams of the number type of the tape, rebuilt up to rounding.  point = k > 0: int32
 * streams with k binary digits after the point; a is rebuilt bit for bit at any depth, and
 * gradients are those of the same forward with everything stored.  A stream beyond 2^(31-k) is
 * AG_EDIVERGED.
 */
typedef struct ag_half {
    ag_segment_run *f;               /* of x[0] = b; no segments within */
    const void *arg;                 /* lives until backward is over */
    bool swap;
} ag_half;

/* The streams behind the n half residuals: a, and b through ret_b.  half[n] is copied. */
ag_tensor *ag_reversible(ag_tape *t, const ag_half *half, int n, int point, ag_tensor *a,
                         ag_tensor *b, ag_tensor **ret_b);

/* What the reversible stacks since ag_tape_reset did; `error` is measured while verifying is on. */
typedef struct ag_inverse {
    double error;                    /* largest |rebuilt - input| of a stream after backward */
    double scale;                    /* largest |input| */
    double headroom;                 /* 2^(31-k) / largest |stream|, fixed point only; else 0 */
    int    stacks;                   /* that went backward */
} ag_inverse;
void ag_tape_verify(ag_tape *t, bool on);
ag_inverse ag_tape_inverse(const ag_tape *t);

#endif
