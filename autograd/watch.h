/*
 * watch.h -- what tape.c does while ag_tape_watch() is on, a search for NaN and infinity, or
 * ag_tape_plan(), only taking memory.
 *
 * The first value that is not finite becomes the error of the tape, AG_EDIVERGED, with the place of
 * the call and the ranges of its inputs.
 */
#ifndef AG_WATCH_H
#define AG_WATCH_H

#include "op.h"

void ag_watch_forward(ag_tape *t, const ag_call *c);     /* the outputs */
void ag_watch_backward(ag_tape *t, const ag_call *c);    /* the gradients of the inputs */

/* The scope is from now on that in which c was called (tape.c). */
void ag_scope_of_call(ag_tape *t, const ag_call *c);

/* On a tape that plans: takes the memory that forward or backward works in; that and the memory of
 * the gradients of the call's inputs. */
void ag_plan_workspace(ag_call *c, bool back);
void ag_plan_backward(ag_call *c);

#endif
