/* convert.c -- views of calls in the number type of the kernels that they run on. */
#include "convert.h"

#include "tape_impl.h"
#include "watch.h"

const ag_kernels *ag_kernels_of(const ag_kernels *k, ag_dtype dtype)
{
    return k->wide && dtype == AG_F32 ? k->wide : k;
}

void ag_convert(const ag_kernels *k, int64_t n, ag_dtype from, const void *x, ag_dtype to, void *y)
{
    if (from == to) ag_kernels_of(k, to)->scale(n, 1, x, y, false);
    else if (from == AG_F32) k->narrow(n, x, y);
    else k->widen(n, x, y);
}

void ag_convert_add(ag_tape *t, int64_t n, ag_dtype from, const void *x, ag_dtype to, void *y,
                    bool acc)
{
    if (from == to) {
        ag_kernels_of(t->k, to)->scale(n, 1, x, y, acc);
        return;
    }
    if (!acc) {
        ag_convert(t->k, n, from, x, to, y);
        return;
    }
    const ag_mark m = ag_arena_mark(&t->data);
    void *other = ag_scratch(t, (size_t)n * ag_dtype_size(to));
    if (other) {
        ag_convert(t->k, n, from, x, to, other);
        ag_kernels_of(t->k, to)->scale(n, 1, other, y, true);
    }
    ag_arena_rewind(&t->data, m);
}

/* --- which table ------------------------------------------------------------------------------ */

static bool is_real(const ag_call *c, int i) { return c->in[i] && c->in[i]->dtype != AG_I32; }

/* f32 where all numbers that c reads were computed in f32, that of the tape else. */
static ag_dtype read_dtype(const ag_call *c)
{
    const ag_dtype storage = c->tape->k->dtype;
    if (!ag_dtype_is_half(storage)) return storage;
    if (c->op->alias) return c->in[0]->dtype;
    bool f32 = false;
    for (int i = 0; i < c->op->n_in; i++) {
        if (!is_real(c, i)) continue;
        if (c->in[i]->dtype != AG_F32 || c->in[i]->grad_kept) return storage;
        f32 = true;
    }
    return f32 ? AG_F32 : storage;
}

ag_dtype ag_call_dtype(const ag_call *c)
{
    return c->op->f32_out && ag_dtype_is_half(c->tape->k->dtype) ? AG_F32 : read_dtype(c);
}

const ag_kernels *ag_call_kernels(const ag_call *c)
{
    const ag_kernels *k = c->tape->k;
    if (!k->wide) return k;
    return read_dtype(c) != AG_F32 && c->op->half && c->op->half(c, k) ? k : k->wide;
}

/* --- views ------------------------------------------------------------------------------------ */

typedef struct view {
    ag_call   call;                  /* whose tensors are these: */
    ag_tensor in[AG_MAX_IN], out[AG_MAX_OUT];
    bool      pass[AG_MAX_IN];       /* the gradient is that of out[0], handed over at the end */
} view;

/* x in the type of the view's kernels: its memory, its rounded copy or scratch; numbers are
 * converted if `read`. */
static void *view_data(ag_call *c, const ag_tensor *x, ag_dtype want, bool read)
{
    if (x->dtype == want || !x->data) return x->data;    /* NULL: not kept, and not read */
    if (x->narrow && ag_dtype_is_half(want)) return x->narrow;
    void *p = ag_scratch(c->tape, (size_t)x->size * ag_dtype_size(want));
    if (p && read && !c->tape->plan)
        ag_convert(c->tape->k, x->size, x->dtype, x->data, want, p);
    return p;
}

/* The type of real outputs that the kernels of c write. */
static ag_dtype out_dtype(const ag_call *c) { return c->op->f32_out ? AG_F32 : c->k->dtype; }

/* x as the kernels want it, real numbers of that type. */
static void view_tensor(ag_call *c, const ag_tensor *x, ag_dtype real, bool read, ag_tensor *ret)
{
    *ret = *x;
    ret->dtype = x->dtype == AG_I32 ? AG_I32 : real;
    ret->data = view_data(c, x, ret->dtype, read);
    ret->grad = NULL;
    ret->grad_kept = ret->grad_written = false;
}

/* Is x read as any of the inputs that it is? */
static bool is_read(const ag_call *c, const ag_tensor *x, unsigned unread)
{
    for (int i = 0; i < c->op->n_in; i++)
        if (c->in[i] == x && !(unread >> i & 1)) return true;
    return false;
}

static void view_init(view *v, ag_call *c, bool backward)
{
    const unsigned unread = !backward ? ~0u << AG_MAX_IN : c->op->unread ? c->op->unread(c) : 0;
    v->call = *c;
    for (int i = 0; i < c->op->n_in; i++) {
        v->pass[i] = false;
        if (!c->in[i]) continue;
        int same = 0;                /* an input may be there twice */
        while (c->in[same] != c->in[i]) same++;
        v->call.in[i] = &v->in[same];
        if (same == i)
            view_tensor(c, c->in[i], c->k->dtype, is_read(c, c->in[i], unread), &v->in[i]);
    }
    for (int i = 0; i < c->op->n_out; i++) {
        view_tensor(c, c->out[i], out_dtype(c), !(unread >> (AG_MAX_IN + i) & 1), &v->out[i]);
        v->call.out[i] = &v->out[i];
    }
}

/* The gradient of x in the view, in type want. */
static void view_grad(ag_call *c, const ag_tensor *x, ag_dtype want, ag_tensor *ret)
{
    const ag_dtype have = ag_grad_dtype(x);
    ret->grad_written = x->grad_written;
    if (have == want) {
        ret->grad = x->grad;
        ret->grad_kept = x->grad_kept;
        return;
    }
    ret->grad_kept = ag_grad_dtype(ret) != want;         /* a weight: f32 beside 16-bit numbers */
    ret->grad = ag_scratch(c->tape, (size_t)x->size * ag_dtype_size(want));
    if (ret->grad && x->grad_written && !c->tape->plan)
        ag_convert(c->tape->k, x->size, have, x->grad, want, ret->grad);
}

static void view_grads(view *v, ag_call *c)
{
    for (int i = 0; i < c->op->n_out; i++)
        if (c->out[i]->grad) view_grad(c, c->out[i], out_dtype(c), &v->out[i]);
    for (int i = 0; i < c->op->n_in; i++) {
        const ag_tensor *x = c->in[i];
        if (!x || !x->needs_grad || v->call.in[i] != &v->in[i]) continue;
        const bool weight = c->op->weights >> i & 1;
        if (x->grad) view_grad(c, x, weight ? AG_F32 : c->k->dtype, &v->in[i]);
        else if (v->out[0].grad != c->out[0]->grad) {
            v->pass[i] = true;       /* handed over as it is, not as the view's copy */
            v->in[i].needs_grad = false;
        }
    }
}

/* What the op wrote to the gradients of the view goes to where it belongs. */
static void view_end(view *v, ag_call *c)
{
    for (int i = 0; i < c->op->n_in; i++) {
        ag_tensor *x = c->in[i], *y = &v->in[i];
        if (!x || !y->grad_written || v->call.in[i] != y) continue;
        if (!x->grad || x->grad == y->grad)
            x->grad = y->grad;
        else
            ag_convert(c->tape->k, x->size, y->grad_kept ? AG_F32 : y->dtype, y->grad,
                       ag_grad_dtype(x), x->grad);
        x->grad_written = true;
    }
    if (!v->out[0].grad) {           /* handed over */
        c->out[0]->grad = NULL;
        c->out[0]->grad_written = false;
    }
    for (int i = 0; i < c->op->n_in; i++)
        if (v->pass[i]) ag_grad_pass(c, i);
}

/* Is there anything to convert?  What only passes memory on, or runs calls of its own, has none. */
static bool has_view(const ag_call *c)
{
    return c->tape->k->wide && !c->op->alias && !c->op->nested;
}

void ag_call_run_forward(ag_call *c, ag_call_run *run)
{
    ag_tape *t = c->tape;
    view v;
    if (!has_view(c)) {
        if (t->plan) ag_plan_workspace(c, false);
        else if (run) run(c);
        return;
    }
    view_init(&v, c, false);
    if (t->plan && !t->error) ag_plan_workspace(&v.call, false);
    if (t->plan || t->error) return;
    run(&v.call);
    for (int i = 0; i < c->op->n_out && !t->error; i++)
        if (v.out[i].data && v.out[i].data != c->out[i]->data)
            ag_convert(t->k, c->out[i]->size, v.out[i].dtype, v.out[i].data, c->out[i]->dtype,
                       c->out[i]->data);
}

void ag_call_run_backward(ag_call *c)
{
    ag_tape *t = c->tape;
    ag_call *on = c;                 /* what the op sees */
    view v;
    if (c->op->nested) {
        c->op->backward(c);
        return;
    }
    if (has_view(c)) {
        on = &v.call;
        view_init(&v, c, true);
        view_grads(&v, c);
    }
    if (t->error) return;
    if (t->plan) {
        ag_plan_workspace(on, true);
        ag_plan_backward(c);
        return;
    }
    c->op->backward(on);
    if (on != c && !t->error) view_end(&v, c);
}
