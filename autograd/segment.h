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

#endif
