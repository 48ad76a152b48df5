/* segment.c -- recomputation: a call that keeps its inputs, and whose backward records its inside.
 *
 * The shape of the output comes from running the segment with the tape planning, so its inside is
 * seen three times: planned, run and dropped, and in backward recorded and run as far as is needed.
 * What is recorded to run later takes memory when it does: so a segment within has gone before what
 * follows it comes.
 */
#include "segment.h"

#include "convert.h"
#include "tape_impl.h"
#include "watch.h"

#include <string.h>

unsigned ag_unread_all(const ag_call *c)
{
    (void)c;
    return ~0u;
}

unsigned ag_unread_out(const ag_call *c)
{
    (void)c;
    return AG_UNREAD_OUT(0) | AG_UNREAD_OUT(1);
}

ag_visit ag_visit_begin(ag_tape *t, const ag_call *c)
{
    const ag_visit v = { ag_arena_mark(&t->meta), ag_arena_mark(&t->data),
                         ag_arena_mark(&t->grads), t->n, t->scope, t->plan, t->lazy, t->no_grad,
                         t->segment, t->memo };
    t->scope = c->scope;
    return v;
}

void ag_visit_end(ag_tape *t, const ag_visit *v)
{
    ag_spares_below(t, v->grads);
    ag_arena_rewind(&t->meta, v->meta);
    ag_arena_rewind(&t->data, v->data);
    ag_arena_rewind(&t->grads, v->grads);
    t->n = v->n;
    t->scope = v->scope;
    t->plan = v->plan;
    t->lazy = v->lazy;
    t->no_grad = v->no_grad;
    t->segment = v->segment;
    t->memo = v->memo;
}

static ag_tensor *run(const ag_call *c)
{
    return c->attr.segment.run(c->attr.segment.arg, c->tape, c->in);
}

/* --- forward ---------------------------------------------------------------------------------- */

bool ag_segment_reaches(const ag_call *c, const ag_visit *v, const ag_tensor *x)
{
    const bool has_memory = x->grad && x->grad_kept;     /* a parameter */
    if (!x->needs_grad || has_memory || ag_arena_is_after(&c->tape->meta, v->meta, x)) return true;
    for (int i = 0; i < c->op->n_in; i++)
        if (c->in[i] == x) return true;
    return false;
}

/* Forward flops of the calls from `first` on. */
static int64_t flops_from(const ag_tape *t, int first)
{
    int64_t sum = 0;
    for (int i = first; i < t->n; i++) sum += ag_call_flops(t->call[i]);
    return sum;
}

static int recompute_shape(ag_call *c, ag_shape *out)
{
    ag_tape *t = c->tape;
    const ag_visit v = ag_visit_begin(t, c);
    const struct ag_open_segment open = { c, &v };
    const int64_t flops = t->flops;
    t->plan = true;
    t->lazy = false;
    t->segment = &open;
    const ag_tensor *y = run(c);
    c->attr.segment.flops = flops_from(t, v.n);
    t->flops = flops;
    out[0] = y->shape;
    bool fed = !y->needs_grad;
    for (int i = 0; i < c->op->n_in; i++) fed |= c->in[i] && c->in[i]->needs_grad;
    ag_visit_end(t, &v);
    if (t->error) return t->error;
    if (fed) return AG_OK;
    return ag_fail(t, AG_EGRAD, "recompute: no input of the segment needs a gradient, but its "
                   "parameters do");
}

static void recompute_forward(ag_call *c)
{
    ag_tape *t = c->tape;
    const ag_visit v = ag_visit_begin(t, c);
    t->no_grad = true;
    t->lazy = false;
    const ag_tensor *y = run(c);
    if (!t->error && !t->plan)
        ag_convert(t->k, y->size, y->dtype, y->data, c->out[0]->dtype, c->out[0]->data);
    ag_visit_end(t, &v);
}

/* --- backward --------------------------------------------------------------------------------- */

/* Which tensors are read: by the backward of a call, or by a call that must run for such a one. */
static bool must_run(ag_call *c)
{
    bool graded = false;
    for (int i = 0; i < c->op->n_out; i++) graded |= c->out[i]->needs_grad;
    const unsigned unread = graded && c->op->unread ? c->op->unread(c) : 0;
    bool wanted = graded && c->op->saved_bytes && c->op->saved_bytes(c) > 0;
    for (int i = 0; i < c->op->n_out; i++) {
        if (graded && !(unread >> (AG_MAX_IN + i) & 1)) c->out[i]->wanted = true;
        wanted |= c->out[i]->wanted;
    }
    for (int i = 0; i < c->op->n_in; i++)
        if (c->in[i] && (wanted || (graded && !(unread >> i & 1)))) c->in[i]->wanted = true;
    return wanted;
}

static void run_wanted(ag_tape *t, int first)
{
    for (int i = t->n - 1; i >= first; i--) t->call[i]->skip = !must_run(t->call[i]);
    for (int i = first; i < t->n && !t->error; i++)
        if (ag_call_room(t, t->call[i]) == AG_OK && !t->call[i]->skip)
            ag_call_forward(t, t->call[i]);
}

/* The gradient of the segment's output becomes that of y. */
void ag_segment_grad(ag_call *c, int i, ag_tensor *y)
{
    ag_tensor *out = c->out[i];
    const ag_dtype have = ag_grad_dtype(out), want = ag_grad_dtype(y);
    if (y->grad_written || y->grad || have != want) {    /* y is an input itself, say */
        if (!y->grad && !(y->grad = ag_grad_alloc(c->tape, y))) return;
        ag_convert_add(c->tape, y->size, have, out->grad, want, y->grad, y->grad_written);
        y->grad_written = true;
        return;
    }
    y->grad = out->grad;
    y->grad_written = true;
    out->grad = NULL;
    out->grad_written = false;
}

static void recompute_backward(ag_call *c)
{
    ag_tape *t = c->tape;
    const ag_visit v = ag_visit_begin(t, c);
    t->no_grad = false;
    t->lazy = true;
    ag_tensor *y = run(c);
    t->lazy = false;
    if (!t->error) run_wanted(t, v.n);
    if (!t->error) {
        ag_segment_grad(c, 0, y);
        ag_tape_replay(t, v.n);
    }
    ag_visit_end(t, &v);
}

static int64_t recompute_flops(const ag_call *c) { return c->attr.segment.flops; }

const ag_op ag_op_recompute = {
    .name = "recompute", .doc = "a part of the model that is run again in backward",
    .n_in = AG_SEGMENT_IN, .n_out = 1, .optional = (1u << AG_SEGMENT_IN) - 1, .nested = true,
    .forgets = true,
    .shape = recompute_shape, .forward = recompute_forward, .backward = recompute_backward,
    .unread = ag_unread_out, .flops = recompute_flops,
};

ag_tensor *ag_recompute(ag_tape *t, ag_segment_run *code, const void *arg, size_t arg_bytes,
                        ag_tensor *const *x, int n_x)
{
    ag_tensor *in[AG_MAX_IN] = { 0 };
    for (int i = 0; i < n_x; i++) in[i] = x[i];
    void *copy = ag_error(t) ? NULL : ag_tape_meta(t, arg_bytes ? arg_bytes : 1);
    if (copy && arg_bytes) memcpy(copy, arg, arg_bytes);
    return ag_apply(t, &ag_op_recompute, in, &(ag_attr){ .segment = { code, copy, 0 } }, NULL);
}
