/*
 * tape_impl.h -- what a tape is inside, for the files that make it: tape.c runs ops, backward.c
 * walks back, segment.c and reversible.c run parts of a model again.
 */
#ifndef AG_TAPE_IMPL_H
#define AG_TAPE_IMPL_H

#include "base/arena.h"
#include "op.h"
#include "segment.h"

/* A gradient that is done with: the next one of its size takes the memory, so backward works in
 * few, warm buffers. */
typedef struct spare { void *mem; size_t bytes; } spare;

struct ag_tape_mark {
    ag_mark meta, data, grads;
    int n;
    const struct ag_scope_node *scope;
};

struct ag_tape {
    const ag_kernels *k;             /* of its number type; k->wide: behind one of 16 bits */
    ag_arena meta, data;             /* structs on the host; numbers on the device */
    ag_arena grads;                  /* gradients: apart, so that backward can forget numbers */
    ag_call **call;                  /* in the order they ran: a topological order */
    int n, cap;
    spare *spares;
    int n_spare, cap_spare;
    ag_noise_key noise;
    const ag_turn *turn;             /* what is captured (replay.c) reads it; NULL: nothing is */
    const ag_turn *token;            /* the same while a token is: positions are those of turn */
    struct ag_decided *decided;      /* decisions are noted there; NULL: they are not */
    const struct ag_scope_node *scope;
    int  error;                      /* the first one; 0 while all is well */
    bool no_grad, watch, plan;
    ag_keep keep;
    bool lazy;                       /* calls are recorded, do not run yet and have no memory for
                                      * what they make (segment.c) */
    const struct ag_open_segment *segment;       /* being planned; NULL: none */
    int64_t flops;                   /* of the forward calls since the reset */
    double moved;                    /* bytes that they read and wrote */
    struct ag_memo *memo;            /* the integers of a reversible segment; NULL: none */
    bool verify;
    ag_inverse inverse;
    char message[1024];
    ag_tensor poison;                /* what a failed op returns: a NaN scalar */
    double nan[2];
};

/* tape.c */
/* What a failed op returns: a NaN scalar. */
ag_tensor *ag_poison(ag_tape *t);
ag_tensor *ag_leaf_new(ag_tape *t, const ag_shape *shape, ag_dtype dtype, bool needs_grad);
/* n things of `size` bytes, or numbers, in one of the two arenas for them; NULL: error set, which
 * names the largest tensors. */
void *ag_tape_room(ag_tape *t, ag_arena *where, size_t n, size_t size);
void *ag_tape_alloc(ag_tape *t, ag_arena *where, int64_t n, ag_dtype dtype);
int  ag_call_room(ag_tape *t, ag_call *c);       /* takes memory for what it makes */
void ag_call_forward(ag_tape *t, ag_call *c);                    /* run, and watched */
/* The device's error, if it has one, becomes the tape's, of call c (NULL: of none). */
int  ag_tape_check(ag_tape *t, const ag_call *c);

/* input.c */
/* What lies at p of the tape's device, copied to the tape; of the host, p itself.  NULL: error
 * set. */
const void *ag_on_host(ag_tape *t, const void *p, size_t bytes);

/* backward.c */
int ag_tape_replay(ag_tape *t, int first);       /* backward of the calls from `first` on */
void *ag_grad_alloc(ag_tape *t, const ag_tensor *x);
void ag_spares_below(ag_tape *t, ag_mark m);     /* forgets the spares that lie beyond the mark */

/* remake.c: is the output of c, whose inputs are set, not to be kept?  Does c run only when its
 * output is read?  What c reads, made for the time that it runs: a list for ag_unmake. */
bool ag_is_remade(const ag_call *c);
bool ag_makes_later(const ag_call *c);
ag_tensor *ag_make_inputs(ag_call *c, unsigned unread);
ag_tensor *ag_make_for_backward(ag_call *c);
void ag_unmake(ag_tensor *made);

/* segment.c: a call that runs calls of its own, whose memory goes when it is done. */
typedef struct ag_visit {
    ag_mark meta, data, grads;
    int n;
    const struct ag_scope_node *scope;
    bool plan, lazy, no_grad;
    const struct ag_open_segment *segment;
    struct ag_memo *memo;
} ag_visit;
struct ag_open_segment { const ag_call *call; const ag_visit *visit; };
ag_visit ag_visit_begin(ag_tape *t, const ag_call *c);
void ag_visit_end(ag_tape *t, const ag_visit *v);
/* May the inside of c read x?  It may if x is an input of c, was made inside or is a parameter. */
bool ag_segment_reaches(const ag_call *c, const ag_visit *v, const ag_tensor *x);

/* reversible.c: integers that ops recall, one behind the other, in the order of the calls. */
typedef struct ag_memo {
    enum { AG_MEMO_COUNT, AG_MEMO_KEEP, AG_MEMO_RECALL } mode;
    char  *at;                       /* memory for all of them; NULL while counting */
    size_t used;                     /* bytes counted, kept or recalled so far */
} ag_memo;
void ag_memo_before(ag_tape *t, ag_call *c);     /* gives c what it recalls */
void ag_memo_after(ag_tape *t, const ag_call *c);

/* The gradient of output i of c becomes, or is added to, that of y. */
void ag_segment_grad(ag_call *c, int i, ag_tensor *y);

#endif
