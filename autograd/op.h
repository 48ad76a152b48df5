/*
 * op.h -- what an operation is: a name, a shape rule, a forward, a backward and the samples it is
 * tested on.  One `const ag_op` per op, in the file under ops/ that has its mathematics; ops.def
 * lists them.
 *
 * To add an op: ops/NAME.c with the ag_op and the function that models call, a line in ops.def, a
 * prototype in ops.h.  Gradient check, accumulation check, device against reference, error cases
 * and the op page follow from the table.
 */
#ifndef AG_OP_H
#define AG_OP_H

#include "base/arena.h"
#include "kernels.h"
#include "ops.h"
#include "tape.h"
#include "tensor.h"

enum { AG_MAX_IN = 8, AG_MAX_OUT = 2 };

struct ag_kv_cache;

/* What ag_op.unread says of input i and of output i. */
#define AG_UNREAD_IN(i)  (1u << (i))
#define AG_UNREAD_OUT(i) (1u << (AG_MAX_IN + (i)))

typedef union ag_attr {              /* the parameters of a call that are no tensors, by op */
    struct { bool ta, tb; } matmul;
    struct { ag_act act; bool in_out; } linear;            /* w is [k,n] */
    struct { double eps; } layernorm;
    struct { bool log; } softmax;
    struct { double alpha; } scale;                          /* scale, add_scalar, sum */
    struct { double p; uint32_t site; } dropout;
    struct { int64_t pos0; } embedding;                      /* position of column 0 of ids */
    struct { int64_t heads, d_qk, d_v, q_pos0; bool causal; const ag_pattern *pattern;
             double drop; uint32_t site; struct ag_kv_cache *cache; int layer; } attention;
    struct { int64_t n; bool relaxed, hard; double temperature; uint32_t site;
             int64_t of_rows; } control;
    struct ag_choose_options choose;
    struct ag_live_options live;
    struct { int64_t times; } repeat;
    struct { int64_t width; } multiplicative;                /* of the output; 0: all of it */
    struct { int64_t modules, taps, span; bool past; } module_conv;
    struct { int64_t modules, span; } module_linear;
    struct { int64_t modules; } module_concat;
    struct { int64_t rows; struct ag_kv_cache *cache; int layer, slot; } recall;
    struct { ag_tensor *(*run)(const void *arg, ag_tape *t, ag_tensor *const *x); const void *arg;
             int64_t flops; } segment;                       /* recompute */
    struct { struct ag_kv_cache *cache; int layer, slot; } state;    /* sru_cached */
    struct { const struct ag_half *half; int n, point; int64_t flops; size_t kept;
             size_t *first; } reversible;
    struct { int64_t n; } strip;
    struct { int64_t from, n; } columns;                     /* columns, count_tokens */
    struct { struct ag_lsh_options o; struct ag_kv_cache *cache; int layer; } lsh;
    ag_shape reshape;                                        /* reshape, scatter */
} ag_attr;

typedef struct ag_call {             /* one call of an op: one record on the tape */
    const struct ag_op *op;
    ag_tensor *in[AG_MAX_IN];        /* NULL: an optional input that is absent */
    ag_tensor *out[AG_MAX_OUT];
    ag_attr    attr;
    void      *saved;                /* what forward leaves for backward; [saved_bytes] */
    unsigned   given;                /* bit i: the integers of output i are there (ag_op.recalls) */
    bool       made;                 /* its output was made again (remake.c) */
    bool       skip;                 /* run again (segment.c): nothing reads what it makes */
    ag_tape   *tape;
    const ag_kernels *k;             /* what it runs on (convert.h) */
    const struct ag_scope_node *scope;
    ag_mark    before;               /* what is allocated behind it is of this call or later ones */
} ag_call;

typedef struct ag_sample {           /* inputs on which every test runs the op */
    ag_shape in[AG_MAX_IN];
    unsigned absent;                 /* bit i: optional input i is left out */
    double   lo, hi, gap;            /* drawn from [lo,hi] without (-gap,gap) */
    int32_t  int_lo, int_hi;         /* integer inputs are drawn from int_lo .. int_hi - 1 */
    ag_attr  attr;
    int      bad;                    /* 0, or the AG_E* code with which the op must refuse */
    bool     surrogate;              /* backward is on purpose not the derivative
                                      * (straight-through) */
} ag_sample;

typedef void ag_call_run(ag_call *c);

typedef struct ag_op {
    const char *name;
    const char *doc;                 /* one line for the op page: formula, shapes */
    int      n_in, n_out;
    unsigned optional;               /* bit i: input i may be NULL */
    unsigned integer_in;             /* bit i: input i holds int32 indices */
    unsigned integer_out;            /* bit i: output i does */
    unsigned passes;                 /* bit i: input i gets the gradient of out[0] as it is
                                      * (ag_grad_pass) */
    bool     nested;                 /* it runs calls of its own: also on a tape that plans */
    bool     forgets;                /* backward reads no output, and what was computed after it
                                      * goes before that: it works in its memory */
    bool     alias;                  /* out[0] shares the data of in[0]; there is no forward */
    /* Set out[0 .. n_out-1], or return ag_fail() on inputs that do not fit. */
    int  (*shape)(ag_call *c, ag_shape *out);
    ag_call_run *forward;            /* the bytes of out are garbage before; may ag_fail() on bad
                                      * indices */
    void (*backward)(ag_call *c);    /* out[i]->grad is there; writes through ag_grad_of() and its
                                      * like */
    /* Inputs and outputs whose numbers backward does not read (AG_UNREAD_IN, AG_UNREAD_OUT): what
     * is run again need not make them.  NULL: it may read all. */
    unsigned (*unread)(const ag_call *c);
    /* What makes out[0] again at little cost: forward, where that is cheap, or a function that
     * reads what forward saved (forward then finds out[0]->data NULL and makes that alone).  NULL,
     * or returns NULL: nothing does. */
    ag_call_run *(*cheap)(const ag_call *c);
    const char *nondiff;             /* why there is no backward; NULL if there is one */
    size_t (*saved_bytes)(const ag_call *c);   /* NULL: none */
    /* All that forward, or backward, takes with ag_scratch; each is rounded (ag_scratch_size).
     * Called before gradients are taken.  NULL: none. */
    size_t (*workspace)(const ag_call *c, bool back);
    /* Bit i: where a reversible segment runs again, output i has the integers of the first time,
     * and forward makes the rest; there is none to run where it has them all.  NULL: none. */
    unsigned (*recalls)(const ag_call *c);
    int64_t (*flops)(const ag_call *c);        /* of forward; NULL: one per element of out[0] */
    bool     f32_out;                /* real outputs, and their gradients, are f32 on a 16-bit tape:
                                      * a loss; its 16-bit kernels know */
    /* May c run on k, a 16-bit table: are all kernels there?  NULL: no.  Its f32 table runs it
     * else. */
    bool (*half)(const ag_call *c, const ag_kernels *k);
    unsigned weights;                /* bit i: half's kernels sum the gradient of input i in f32 */
    int      id;                     /* index into kernels.unary_* / binary_*, those families
                                      * only */
    /* Fills sample i; false: there is no i-th.  ag_digit() decodes i into choices. */
    bool (*sample)(int64_t i, ag_sample *s);
} ag_op;

#define AG_OP(name) extern const ag_op ag_op_##name;
#include "ops.def"
#undef AG_OP

extern const ag_op *const ag_op_table[];
extern const int ag_op_count;

/* Runs op on the inputs (n_in of them, absent ones NULL), records it, returns out[0]; out[1]
 * through ret_second unless that is NULL. */
ag_tensor *ag_apply(ag_tape *t, const ag_op *op, ag_tensor *const in[AG_MAX_IN],
                    const ag_attr *attr, ag_tensor **ret_second);

/* For ag_op.unread: backward reads neither inputs nor outputs; not the output. */
unsigned ag_unread_all(const ag_call *c);
unsigned ag_unread_out(const ag_call *c);
/* For ag_op.cheap: forward. */
ag_call_run *ag_cheap_forward(const ag_call *c);

/* Multiply-adds and such of forward, times 2 for a multiply-add. */
int64_t ag_call_flops(const ag_call *c);

/* --- for backward functions ------------------------------------------------------------------- */

/* Where the gradient of input i goes, NULL if none is wanted.  *ret_acc: add to it, else overwrite
 * it. */
void *ag_grad_of(ag_call *c, int i, bool *ret_acc);
/* The same for kernels that only add: cleared if it was garbage. */
void *ag_grad_add(ag_call *c, int i);
/* The gradient of out[0] is also that of input i: added, or handed over with its memory.  Do this
 * last: out[0]->grad is gone afterwards. */
void ag_grad_pass(ag_call *c, int i);
/* Memory until the end of this forward or backward; NULL (and an error on the tape) if there is
 * none. */
void *ag_scratch(ag_tape *t, size_t bytes);
size_t ag_scratch_size(size_t bytes);            /* of arena memory that it takes */
/* Memory of the host that lives as long as the tensors made now; NULL (and an error) if there is
 * none. */
void *ag_tape_meta(ag_tape *t, size_t bytes);

/* The noise of a matrix of `rows` rows at a site, for this part of the batch. */
ag_noise ag_noise_for(const ag_tape *t, uint32_t site, int64_t rows);

/* While the decoding of a token is captured (replay.h): by how much its position differs in each
 * run, and what it sees, on the device.  NULL: positions are those that the host knows. */
const ag_turn *ag_token_turn(const ag_tape *t);
/* One sequence, of which some keys and values are kept and nothing else, with room for a token? */
bool ag_kv_cache_takes_token(const ag_kv_cache *c);

/* For forward: AG_ERANGE on the tape unless every index of integer input i is in lo .. hi - 1.
 * What a device computed is not looked at: a kernel makes indices that fit. */
int ag_check_index(ag_call *c, int i, int64_t lo, int64_t hi);
/* Indices on the host were found to be in lo .. hi - 1, which replay.c notes. */
void ag_decided_index(ag_tape *t, const int32_t *idx, int64_t n, int64_t lo, int64_t hi);
size_t ag_real_size(const ag_call *c);         /* bytes of one number of the tape */
size_t ag_kept_size(const ag_call *c);         /* of one that kernels keep of a row, f32 at least */

/* The next digit, 0 .. n-1, of the mixed-radix number *i. */
int ag_digit(int64_t *i, int n);

#endif
