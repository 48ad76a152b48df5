/*
 * tape_impl.h -- what a tape is inside, for the files that make it: tape.c runs ops, backward.c walks
 * back, segment.c and reversible.c run parts of a model again.
 */
#ifndef AG_TAPE_IMPL_H
#define AG_TAPE_IMPL_H

#include "base/arena.h"
#include "op.h"

/* A gradient that is done with: the next one of its size takes the memory, so backward works in
 * few, warm buffers. */
typedef struct spare { void *mem; size_t bytes; } spare;

struct ag_tape_mark {
    ag_mark meta, data;
    int n, n_spare;
    const struct ag_scope_node *scope;
};

struct ag_tape {
    const ag_kernels *k;
    ag_arena meta, data;             /* structs on the host; numbers on the device */
    ag_call **call;                  /* in the order they ran: a topological order */
    int n, cap;
    spare *spares;
    int n_spare, cap_spare;
    ag_noise_key noise;
    const struct ag_scope_node *scope;
    int  error;                      /* the first one; 0 while all is well */
    bool no_grad, watch, plan;
    char message[1024];
    ag_tensor poison;                /* what a failed op returns: a NaN scalar */
    double nan[2];
};

/* tape.c */
void *ag_tape_alloc(ag_tape *t, int64_t n, ag_dtype dtype);      /* numbers; NULL: error on the tape */
void *ag_tape_meta(ag_tape *t, size_t bytes);                    /* a struct, likewise */

/* backward.c: gradients of the calls from `first` on, last call first. */
int ag_tape_replay(ag_tape *t, int first);
void *ag_grad_alloc(ag_tape *t, const ag_tensor *x);

#endif
