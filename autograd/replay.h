/*
 * replay.h -- a part of a step that a device runs again by itself: captured once, then launched as
 * one graph, without the host's tape.
 *
 * Launches are host work, more of it than a small model is work for a GPU.  They are the same in
 * each step but for a few numbers, as long as its shape, its memory and its decisions are.  So
 *
 *   1. the first part of a shape runs as ever, and what was decided on the way is noted: by the
 *      noise key (ag_decide), of indices that the host knows (ag_check_index);
 *   2. the second, if no memory was taken or given back meanwhile, so that all addresses are those
 *      of before, is captured: the host's code runs, the device does nothing;
 *   3. that and all later ones are launched.  What differs each time is in the memory of the device
 *      (ag_turn): the step and the place in the batch, which noise is a function of, and the scale
 *      of the loss.
 *
 * A part whose key or decisions are others is another shape; a few shapes are kept.  Once memory
 * was taken or given back, anywhere, graphs are captured anew.  What cannot be captured, since the
 * host reads or sends numbers in the middle, runs as ever, and ag_replay_note() says why.  The bits
 * are the same in every case, but that a captured token adds up what long attention sees in other
 * parts.
 *
 * A token of one sequence that goes on from a cache of keys and values alone is such a part, too:
 * its position is in ag_turn.
 */
#ifndef AG_REPLAY_H
#define AG_REPLAY_H

#include "ops.h"
#include "tape.h"

typedef struct ag_replay ag_replay;

typedef struct ag_replay_in {        /* what a part reads, beside the parameters' gradients */
    ag_tensor  *x, *targets;         /* inputs of the tape, made since its reset; targets may be
                                      * NULL */
    const void *weights;             /* of the parameters */
    ag_kv_cache *cache;              /* decoding: x is the next token; NULL: training */
} ag_replay_in;

typedef struct ag_replay_counts { long eager, captured, launched; } ag_replay_counts;

/* For a tape on a device that keeps graphs.  NULL: it is another one, or out of memory. */
ag_replay *ag_replay_new(ag_tape *t);
void       ag_replay_free(ag_replay *r);                 /* before the tape; NULL is fine */

/* The loss that f(arg, t, in) makes, and its gradients times scale (ag_backward); with a cache,
 * its output, without gradients, and the cache is not advanced.  It depends on nothing that changes
 * but `in`, the noise key and decisions by it, and the length of the cache.  Its numbers are to be
 * read before the next one.  Errors are the tape's. */
typedef ag_tensor *ag_loss(const void *arg, ag_tape *t, const ag_replay_in *in);
ag_tensor *ag_replay_loss(ag_replay *r, const ag_replay_in *in, ag_loss *f, const void *arg,
                          double scale);

/* Why something was not captured, once; NULL: there is nothing new. */
const char *ag_replay_note(ag_replay *r);
ag_replay_counts ag_replay_count(const ag_replay *r);

#endif
