/*
 * remake.c -- outputs that are not kept: cheap to make again, they are made for each call that
 * reads them, forward and backward, in the memory that the call works in (ag_tape_keep).
 *
 * Such a tensor has no data but while a reader runs.  Its producer is recorded as any other call,
 * and its backward runs once, on the sum of the gradients: the same bits as if it were kept.
 */
#include "convert.h"
#include "tape_impl.h"

ag_call_run *ag_cheap_forward(const ag_call *c) { return c->op->forward; }

static ag_call_run *cheap(const ag_call *c) { return c->op->cheap ? c->op->cheap(c) : NULL; }

bool ag_is_remade(const ag_call *c)
{
    const ag_tape *t = c->tape;
    if (c->op->alias) return c->in[0]->maker;
    return t->keep >= AG_KEEP_PRODUCTS && !t->no_grad && cheap(c);
}

bool ag_makes_later(const ag_call *c)
{
    return c->out[0]->maker && (c->op->alias || cheap(c) == c->op->forward);
}

/* x and what it is made of, in front of *made. */
static void make(ag_tape *t, ag_tensor *x, ag_tensor **made)
{
    if (!x || !x->maker || x->data || t->error) return;
    ag_call *c = x->maker;
    if (ag_makes_later(c))
        for (int i = 0; i < c->op->n_in; i++) make(t, c->in[i], made);
    if (c->op->alias) {
        x->data = c->in[0]->data;
    } else {
        x->data = ag_tape_alloc(t, &t->data, x->size, x->dtype);
        t->flops += ag_makes_later(c) ? ag_call_flops(c) : x->size;      /* all, or its end */
        t->moved += 2 * (double)ag_tensor_bytes(x);
        const ag_mark scratch = ag_arena_mark(&t->data);
        if (x->data) ag_call_run_forward(c, cheap(c));
        ag_arena_rewind(&t->data, scratch);
    }
    c->made = true;
    x->next_made = *made;
    *made = x;
}

ag_tensor *ag_make_inputs(ag_call *c, unsigned unread)
{
    ag_tensor *made = NULL;
    for (int i = 0; i < c->op->n_in; i++)
        if (!(unread >> i & 1)) make(c->tape, c->in[i], &made);
    return made;
}

ag_tensor *ag_make_for_backward(ag_call *c)
{
    const unsigned unread = c->op->unread ? c->op->unread(c) : 0;
    ag_tensor *made = ag_make_inputs(c, unread), *y = c->out[0];
    /* with its output a call makes what it saves */
    const bool unsaved = ag_makes_later(c) && c->op->saved_bytes && !c->made;
    if (unsaved || !(unread & AG_UNREAD_OUT(0))) make(c->tape, y, &made);
    return made;
}

void ag_unmake(ag_tensor *made)
{
    for (; made; made = made->next_made) made->data = NULL;
}
