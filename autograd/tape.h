/*
 * tape.h -- record what was computed, then walk it backwards.
 *
 * Ops run at once (eagerly) and append a record; creation order is a topological order, so backward
 * is a loop running down the records.  Errors stick to the tape: the first one is kept, every later
 * op returns a NaN scalar and does nothing, and ag_backward() returns the code.  So model code has
 * no error handling at all.
 *
 * A tape has a device and a number type, those of its kernel table; its inputs are converted to it.
 * On one of 16 bits (bf16, f16) parameters, their gradients and losses are f32 all the same, and
 * arithmetic is f32 (convert.h).  Its tensors live in two arenas, one for structs (host), one for
 * numbers (device), until ag_tape_reset().
 */
#ifndef AG_TAPE_H
#define AG_TAPE_H

#include "base/error.h"
#include "tensor.h"

struct ag_kernels;
struct ag_draw;
typedef struct ag_tape ag_tape;

ag_tape *ag_tape_new(const struct ag_kernels *device);   /* NULL: out of memory */
void     ag_tape_free(ag_tape *t);                       /* NULL is fine */
void     ag_tape_reset(ag_tape *t);   /* forget the step and its error; its tensors are gone */
const struct ag_kernels *ag_tape_kernels(const ag_tape *t);
ag_dtype ag_tape_dtype(const ag_tape *t);

/*
 * What noise is a function of.  A step's batch of n_total samples may run in several parts: this
 * part has the samples sample0 .. sample0 + n_samples - 1, and their noise is the same in whatever
 * part they are.
 */
typedef struct ag_noise_key {
    uint64_t seed;
    uint32_t step;
    int64_t  sample0, n_samples;
} ag_noise_key;
void ag_tape_noise(ag_tape *t, const ag_noise_key *key);
ag_noise_key ag_tape_noise_key(const ag_tape *t);

/* f(arg, the noise key).  What model code decides by that key alone, it decides so: what was
 * captured of a step stands for the steps with the same decisions (replay.h). */
typedef bool ag_decision(const void *arg, const ag_noise_key *key);
bool ag_decide(ag_tape *t, ag_decision *f, const void *arg);

/* Copies of src on the tape, in its number type.  (They copy, rather than hand out memory to be
 * filled: on a tape with an error there is no memory, and the caller need not look.) */
ag_tensor *ag_input(ag_tape *t, ag_shape shape, const float *src, bool needs_grad);
ag_tensor *ag_input_f64(ag_tape *t, ag_shape shape, const double *src, bool needs_grad);
ag_tensor *ag_input_i32(ag_tape *t, ag_shape shape, const int32_t *src);

/* One whose numbers are garbage, for a tape that plans. */
ag_tensor *ag_input_blank(ag_tape *t, ag_shape shape, bool needs_grad);
/* The numbers of x as floats on the host: its data, or a copy that lives as long as x.  NULL: there
 * is no memory (the tape's error). */
const float *ag_floats(ag_tape *t, const ag_tensor *x);
/* The same for integers. */
const int32_t *ag_ints(ag_tape *t, const ag_tensor *x);
/* Number i of x, read from the device; NaN on a tape with an error. */
double ag_value(ag_tape *t, const ag_tensor *x, int64_t i);
/* An index of the last row of x, drawn where x is: for a tape whose kernels have `draw`.  -1: a
 * number is NaN or +Inf, or the tape has an error. */
int32_t ag_draw_last(ag_tape *t, const ag_tensor *x, const struct ag_draw *d);

/* dloss/dx, times scale, into x->grad of every leaf x that needs it (parameters: added).  Returns
 * the tape's error.  The gradients of what was computed on the way are not kept, nor are numbers,
 * where a part of the model is recomputed; that of the loss is. */
int ag_backward(ag_tape *t, ag_tensor *loss, double scale);
/* The same for a y of any shape, from dy[y->size] in the number type of the tape's arithmetic (f64,
 * or f32): a vector-Jacobian product.  NULL: ones. */
int ag_backward_from(ag_tape *t, ag_tensor *y, const void *dy);

/* While on, ops run without being recorded (evaluation, decoding). */
bool ag_tape_no_grad(ag_tape *t, bool on);   /* returns what it was */
bool ag_tape_is_no_grad(const ag_tape *t);

/* Everything computed since the mark is forgotten; what was computed before stays.  For evaluation
 * in parts and for decoding; also recorded calls are dropped. */
typedef struct ag_tape_mark ag_tape_mark;
const ag_tape_mark *ag_tape_mark_here(ag_tape *t);       /* lives on the tape; NULL on a tape with
                                                          * an error */
void ag_tape_rewind(ag_tape *t, const ag_tape_mark *m);
/* The same, but the numbers of y, made since, become those of x, made before and of its shape. */
void ag_tape_rewind_into(ag_tape *t, const ag_tape_mark *m, const ag_tensor *y, ag_tensor *x);

/*
 * How much of what is computed from now on is kept for backward; gradients are the same bits.
 * AG_KEEP_PRODUCTS: outputs of cheap ops (layer norm, activations) are not, they are made again
 * for each call that reads them.  AG_KEEP_BRANCHES: nor what layers then put into segments of their
 * own (segment.h): attention up to its output projection.  Of the model's tensors only those that
 * are kept have data.
 */
typedef enum ag_keep { AG_KEEP_ALL, AG_KEEP_PRODUCTS, AG_KEEP_BRANCHES, AG_KEEPS } ag_keep;
ag_keep ag_tape_keep(ag_tape *t, ag_keep keep);          /* returns what it was */
ag_keep ag_tape_kept(const ag_tape *t);

/* Where in the model we are, for messages: ag_scope(t, "block", 3) ... ag_scope_end(t).  name must
 * be a literal or outlive the step; index < 0: none. */
void ag_scope(ag_tape *t, const char *name, int64_t index);
void ag_scope_end(ag_tape *t);

/* While on, each op's outputs and each gradient are searched for NaN and infinity; the first op
 * that makes one becomes the tape's error AG_EDIVERGED, with its place and the ranges of its
 * inputs.  Slow: for replaying a bad step. */
void ag_tape_watch(ag_tape *t, bool on);

/* While on, ops and their backward only take the memory that they would need, and run nothing:
 * calls, shapes, flops and bytes of a step without its time.  Numbers are not touched, so the
 * memory costs address space alone. */
void ag_tape_plan(ag_tape *t, bool on);
/* Do ops run at once?  Only then may model code read numbers that it has just made. */
bool ag_tape_runs(const ag_tape *t);

int         ag_error(const ag_tape *t);
const char *ag_error_message(const ag_tape *t);
/* Copies the tape's error to err and returns its code. */
int ag_tape_status(const ag_tape *t, ag_err *err);
/* For ops: keep the first error, return its code.  The scope is added to the message. */
int ag_fail(ag_tape *t, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* What numbers take, in bytes, and the work of the forward calls since the reset, those of calls
 * that ran again too. */
typedef struct ag_tape_memory {
    size_t used, peak;               /* now, and at most since ag_tape_new */
    size_t grads;                    /* the peak's part that is gradients */
    size_t reserved;                 /* from the system */
    int64_t flops;
    double work;                     /* flops, and 16 for each byte that is read or written: about
                                      * what a processor computes in the time of one */
} ag_tape_memory;
ag_tape_memory ag_tape_bytes(const ag_tape *t);

/* The recorded calls, oldest first, for `show ops` and `show memory`. */
struct ag_call;
int ag_tape_calls(const ag_tape *t);
const struct ag_call *ag_tape_call(const ag_tape *t, int i);
/* "block 3, attn" into buf. */
const char *ag_call_scope(const struct ag_call *c, char *buf, size_t size);

#endif
