/* backward.c -- the gradients of a tape: where they live, and the walk back over the calls. */
#include "convert.h"
#include "device.h"
#include "tape_impl.h"
#include "watch.h"

#include <stdlib.h>

void *ag_grad_alloc(ag_tape *t, const ag_tensor *x)
{
    const size_t bytes = (size_t)x->size * ag_dtype_size(ag_grad_dtype(x));
    for (int i = t->n_spare - 1; i >= 0; i--)
        if (t->spares[i].bytes == bytes) {
            void *mem = t->spares[i].mem;
            t->spares[i] = t->spares[--t->n_spare];
            return mem;
        }
    return ag_tape_alloc(t, &t->grads, x->size, ag_grad_dtype(x));
}

static void grad_release(ag_tape *t, ag_tensor *x)
{
    if (!x || !x->grad || x->grad_kept) return;
    if (t->n_spare == t->cap_spare) {
        const int cap = t->cap_spare ? 2 * t->cap_spare : 16;
        spare *p = realloc(t->spares, (size_t)cap * sizeof *p);
        if (!p) return;              /* not reused, then: no harm */
        t->spares = p;
        t->cap_spare = cap;
    }
    t->spares[t->n_spare++] = (spare){ x->grad, (size_t)x->size * ag_dtype_size(ag_grad_dtype(x)) };
    x->grad = NULL;
    x->grad_written = false;
}

void ag_spares_below(ag_tape *t, ag_mark m)
{
    int n = 0;
    for (int i = 0; i < t->n_spare; i++)
        if (!ag_arena_is_after(&t->grads, m, t->spares[i].mem)) t->spares[n++] = t->spares[i];
    t->n_spare = n;
}

void *ag_grad_of(ag_call *c, int i, bool *ret_acc)
{
    ag_tensor *x = c->in[i];
    *ret_acc = false;
    if (!x || !x->needs_grad) return NULL;
    if (!x->grad && !(x->grad = ag_grad_alloc(c->tape, x))) return NULL;
    *ret_acc = x->grad_written;
    x->grad_written = true;
    return x->grad;
}

void *ag_grad_add(ag_call *c, int i)
{
    bool acc;
    void *g = ag_grad_of(c, i, &acc);
    if (g && !acc) ag_kernels_of(c->k, ag_grad_dtype(c->in[i]))->fill(c->in[i]->size, 0, g);
    return g;
}

/* Can x have the memory of the gradient of y? */
static bool can_hand_over(const ag_tensor *x, const ag_tensor *y)
{
    return !x->grad && !y->grad_kept && ag_grad_dtype(x) == ag_grad_dtype(y);
}

void ag_grad_pass(ag_call *c, int i)
{
    ag_tensor *x = c->in[i], *y = c->out[0];
    if (!x || !x->needs_grad) return;
    if (can_hand_over(x, y)) {
        x->grad = y->grad;
        x->grad_written = true;
        y->grad = NULL;
        y->grad_written = false;
        return;
    }
    bool acc;
    void *g = ag_grad_of(c, i, &acc);
    if (g) ag_convert_add(c->tape, x->size, ag_grad_dtype(y), y->grad, ag_grad_dtype(x), g, acc);
}

void *ag_scratch(ag_tape *t, size_t bytes) { return ag_tape_room(t, &t->data, 1, bytes); }

size_t ag_scratch_size(size_t bytes)
{
    return ((bytes ? bytes : 1) + AG_ALIGN - 1) / AG_ALIGN * AG_ALIGN;
}

/* An output that nothing used has gradient zero; a call none of whose outputs was used is
 * skipped. */
static bool outputs_ready(ag_tape *t, ag_call *c)
{
    bool used = false;
    for (int i = 0; i < c->op->n_out; i++) used |= c->out[i]->grad_written;
    if (!used) return false;
    for (int i = 0; i < c->op->n_out; i++) {
        ag_tensor *y = c->out[i];
        if (y->grad_written || y->dtype == AG_I32) continue;
        if (!y->grad && !(y->grad = ag_grad_alloc(t, y))) return false;
        if (!t->plan) ag_kernels_of(t->k, ag_grad_dtype(y))->fill(y->size, 0, y->grad);
        y->grad_written = true;
    }
    return true;
}

/* Gradients are taken in the same order whether the call runs or is planned. */
static int reserve_grads(ag_tape *t, ag_call *c)
{
    for (int i = 0; i < c->op->n_in; i++) {
        ag_tensor *x = c->in[i];
        if (!x || !x->needs_grad || x->grad) continue;
        if (c->op->passes >> i & 1 && can_hand_over(x, c->out[0])) continue;
        if (!(x->grad = ag_grad_alloc(t, x))) return t->error;
    }
    return AG_OK;
}

static void run_backward(ag_tape *t, ag_call *c)
{
    if (c->op->forgets) ag_arena_rewind(&t->data, c->before);
    const ag_mark scratch = ag_arena_mark(&t->data);
    ag_tensor *made = ag_make_for_backward(c);
    if (t->error) return;
    ag_call_run_backward(c);
    if (t->k->device) ag_tape_check(t, c);
    ag_unmake(made);
    ag_arena_rewind(&t->data, scratch);
}

int ag_tape_replay(ag_tape *t, int first)
{
    for (int i = t->n - 1; i >= first; i--) {
        ag_call *c = t->call[i];
        if (outputs_ready(t, c) && !t->error && reserve_grads(t, c) == AG_OK) {
            run_backward(t, c);
            if (t->watch && !t->error) ag_watch_backward(t, c);
        }
        if (t->error) return t->error;
        for (int j = 0; j < c->op->n_out; j++) grad_release(t, c->out[j]);
    }
    return AG_OK;
}

static int backward(ag_tape *t, ag_tensor *y, const void *dy, double scale)
{
    if (t->error) return t->error;
    if (!y->needs_grad)
        return ag_fail(t, AG_EGRAD, "backward: nothing that needs a gradient leads to this tensor, "
                       "neither a leaf nor a parameter that has memory for one");
    if (!y->grad && !(y->grad = ag_grad_alloc(t, y))) return t->error;
    const ag_dtype dtype = ag_grad_dtype(y);
    const ag_mark scratch = ag_arena_mark(&t->data);
    if (dy && t->k->device && !t->plan) {
        void *there = ag_scratch(t, (size_t)y->size * sizeof(float));
        if (!there) return t->error;
        t->k->device->write(there, dy, (size_t)y->size * sizeof(float));
        dy = there;
    }
    if (dy && !t->plan)
        ag_convert_add(t, y->size, ag_dtype_is_half(t->k->dtype) ? AG_F32 : dtype, dy, dtype,
                       y->grad, y->grad_written);
    else if (!t->plan && t->turn && dtype == AG_F32 && y->size == 1)
        t->k->device->copy(y->grad, &t->turn->scale, sizeof t->turn->scale);
    else if (!t->plan)
        ag_kernels_of(t->k, dtype)->fill(y->size, scale, y->grad);
    y->grad_written = true;
    ag_arena_rewind(&t->data, scratch);
    return ag_tape_replay(t, 0);
}

/* The loss moves to where backward rewinds nothing. */
static int keep_value(ag_tape *t, ag_tensor *loss)
{
    void *kept = ag_tape_alloc(t, &t->grads, 1, loss->dtype);
    if (!kept) return t->error;
    if (!t->plan) ag_device_copy(t->k->device, kept, loss->data, ag_dtype_size(loss->dtype));
    loss->data = kept;
    return AG_OK;
}

int ag_backward(ag_tape *t, ag_tensor *loss, double scale)
{
    if (!t->error && loss->size != 1) {
        char s[96];
        return ag_fail(t, AG_ESHAPE, "backward: the loss has shape %s, wanted a scalar",
                       ag_shape_text(&loss->shape, s));
    }
    return t->error || keep_value(t, loss) < 0 ? t->error : backward(t, loss, NULL, scale);
}

int ag_backward_from(ag_tape *t, ag_tensor *y, const void *dy) { return backward(t, y, dy, 1); }
