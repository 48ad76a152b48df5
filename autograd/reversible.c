/*
 * reversible.c -- two residual streams that are rebuilt in backward.
 *
 * In number types the streams are the outputs themselves.  In fixed point they are int32 in
 * `saved`, and what a layer reads, and the outputs, are made from them.  Behind the streams `saved`
 * holds the integers that ops recall.
 *
 * Which of the two buffers is a and which is b changes with every swap: `streams` names them by
 * their role, and the outputs take their memory by role at the end.
 */
#include "device.h"
#include "tape_impl.h"

#include <math.h>
#include <string.h>

/* --- integers that are recalled --------------------------------------------------------------- */

static size_t whole_lines(size_t bytes) { return (bytes + AG_ALIGN - 1) / AG_ALIGN * AG_ALIGN; }

static size_t int_bytes(const ag_tensor *x) { return (size_t)x->size * sizeof(int32_t); }

static bool recalls(const ag_call *c, int i)
{
    return c->op->recalls && c->op->recalls(c) >> i & 1;
}

void ag_memo_before(ag_tape *t, ag_call *c)
{
    ag_memo *m = t->memo;
    if (c->op->nested) {
        ag_fail(t, AG_EGRAD, "%s: a segment inside a reversible layer; make one of the two",
                c->op->name);
        return;
    }
    if (m->mode != AG_MEMO_RECALL) return;
    for (int i = 0; i < c->op->n_out; i++) {
        if (!recalls(c, i)) continue;
        if (!t->plan) ag_device_copy(t->k->device, c->out[i]->data, m->at + m->used,
                                     int_bytes(c->out[i]));
        c->given |= 1u << i;
        m->used += whole_lines(int_bytes(c->out[i]));
    }
}

void ag_memo_after(ag_tape *t, const ag_call *c)
{
    ag_memo *m = t->memo;
    if (m->mode == AG_MEMO_RECALL || t->error) return;
    for (int i = 0; i < c->op->n_out; i++) {
        if (!recalls(c, i)) continue;
        if (m->mode == AG_MEMO_KEEP && !t->plan)
            ag_device_copy(t->k->device, m->at + m->used, c->out[i]->data,
                           int_bytes(c->out[i]));
        m->used += whole_lines(int_bytes(c->out[i]));
    }
}

/* --- streams ---------------------------------------------------------------------------------- */

enum { A, B };

typedef struct streams {
    void    *x[2];                   /* by role, A and B: numbers; in fixed point NULL */
    int32_t *s[2];                   /* the same in fixed point */
    void    *g[2];                   /* gradients */
    int32_t *peak;                   /* largest |s|, where the streams are */
} streams;

static void swap(streams *s)
{
    void *x = s->x[A], *g = s->g[A];
    int32_t *i = s->s[A];
    s->x[A] = s->x[B];
    s->x[B] = x;
    s->g[A] = s->g[B];
    s->g[B] = g;
    s->s[A] = s->s[B];
    s->s[B] = i;
}

static size_t fixed_bytes(const ag_call *c)
{
    return c->attr.reversible.point ? whole_lines(int_bytes(c->in[A])) : 0;
}

static size_t peak_bytes(const ag_call *c)
{
    return c->attr.reversible.point ? whole_lines(sizeof(int32_t)) : 0;
}

/* What is saved: the streams in fixed point, their peak, what the layers recall. */
static int32_t *peak_of(const ag_call *c)
{
    return (int32_t *)((char *)c->saved + 2 * fixed_bytes(c));
}

static char *memo_of(const ag_call *c) { return (char *)peak_of(c) + peak_bytes(c); }

static streams streams_of(const ag_call *c)
{
    streams s = { .x = { c->out[A]->data, c->out[B]->data }, .peak = peak_of(c) };
    for (int i = 0; i < 2; i++) {
        s.g[i] = c->out[i]->grad;
        if (!c->attr.reversible.point) continue;
        s.s[i] = (int32_t *)((char *)c->saved + (size_t)i * fixed_bytes(c));
        s.x[i] = NULL;
    }
    return s;
}

/* Stream a += sign r, or a = r for sign 0. */
static void stream_add(const ag_call *c, streams *s, int role, int sign, const void *r)
{
    const int64_t n = c->in[A]->size;
    if (c->tape->plan) return;
    if (s->s[role]) c->k->fixed_add(n, c->attr.reversible.point, sign, r, s->s[role], s->peak);
    else c->k->scale(n, sign ? sign : 1, r, s->x[role], sign != 0);
}

/* Stream b as a tensor that a layer may read, its gradient going to s->g[B]; NULL: no memory. */
static ag_tensor *stream_read(const ag_call *c, const streams *s, bool needs_grad)
{
    ag_tape *t = c->tape;
    const ag_tensor *like = c->in[B];
    ag_tensor *b = ag_tape_meta(t, sizeof *b);
    void *data = s->x[B] ? s->x[B] : ag_tape_alloc(t, &t->data, like->size, like->dtype);
    if (!b || !data) return NULL;
    if (s->s[B] && !t->plan)
        c->k->fixed_read(like->size, c->attr.reversible.point, s->s[B], data);
    *b = (ag_tensor){ .shape = like->shape, .size = like->size, .dtype = like->dtype,
                      .data = data, .needs_grad = needs_grad, .grad_kept = needs_grad,
                      .grad = needs_grad ? s->g[B] : NULL, .grad_written = needs_grad };
    return b;
}

static ag_tensor *run_layer(ag_call *c, int i, ag_tensor *b)
{
    ag_tape *t = c->tape;
    const ag_half *h = &c->attr.reversible.half[i];
    ag_tensor *r = h->f(h->arg, t, &b);
    if (!t->error && !ag_shape_equal(&r->shape, &c->in[A]->shape)) {
        char x[96], y[96];
        ag_fail(t, AG_ESHAPE, "reversible: layer %d makes %s from a stream %s", i,
                ag_shape_text(&r->shape, x), ag_shape_text(&c->in[A]->shape, y));
    }
    return r;
}

static int check_peak(const ag_call *c, const streams *s)
{
    ag_tape *t = c->tape;
    int32_t peak;
    if (!c->attr.reversible.point || t->plan) return t->error;
    ag_device_read(t->k->device, &peak, s->peak, sizeof peak);
    if (ag_tape_check(t, c) != AG_OK) return t->error;
    if (peak == INT32_MAX)
        return ag_fail(t, AG_EDIVERGED, "reversible: a stream with %d binary digits after the "
                       "point went beyond %g; take fewer digits", c->attr.reversible.point,
                       ldexp(1, 31 - c->attr.reversible.point));
    const double room = ldexp(1, 31) / (peak ? peak : 1);
    if (!(t->inverse.headroom > 0) || room < t->inverse.headroom) t->inverse.headroom = room;
    return t->error;
}

/* --- forward ---------------------------------------------------------------------------------- */

/* One layer, planned as it is in backward: for its flops and the integers that it recalls. */
static void plan_layer(ag_call *c, int i, ag_memo *memo)
{
    ag_tape *t = c->tape;
    const ag_visit v = ag_visit_begin(t, c);
    const struct ag_open_segment open = { c, &v };
    const streams s = { .x = { c->in[A]->data, c->in[B]->data } };
    t->plan = true;
    t->lazy = false;
    t->segment = &open;
    t->memo = memo;
    ag_tensor *b = stream_read(c, &s, !t->no_grad);
    if (b) run_layer(c, i, b);
    ag_visit_end(t, &v);
}

static int reversible_shape(ag_call *c, ag_shape *out)
{
    ag_tape *t = c->tape;
    char x[96], y[96];
    if (!ag_shape_equal(&c->in[A]->shape, &c->in[B]->shape))
        return ag_fail(t, AG_ESHAPE, "reversible: streams %s and %s",
                       ag_shape_text(&c->in[A]->shape, x), ag_shape_text(&c->in[B]->shape, y));
    if (ag_dtype_is_half(t->k->dtype))
        return ag_fail(t, AG_ERANGE, "reversible: streams in %s are not rebuilt well enough; "
                       "train.precision=fp32 does it", ag_dtype_name(t->k->dtype));
    if (c->attr.reversible.point < 0 || c->attr.reversible.point > 30)
        return ag_fail(t, AG_ERANGE, "reversible: %d binary digits after the point are not in 0 .. "
                       "30", c->attr.reversible.point);
    if (!t->no_grad && !c->in[A]->needs_grad && !c->in[B]->needs_grad)
        return ag_fail(t, AG_EGRAD, "reversible: neither stream needs a gradient, but the "
                       "parameters of its layers may");
    const int64_t flops = t->flops;
    ag_memo memo = { .mode = AG_MEMO_COUNT };
    for (int i = 0; i < c->attr.reversible.n && !t->error; i++) {
        c->attr.reversible.first[i] = memo.used;
        plan_layer(c, i, &memo);
    }
    c->attr.reversible.kept = memo.used;
    c->attr.reversible.flops = t->flops - flops;
    t->flops = flops;
    out[A] = out[B] = c->in[A]->shape;
    return t->error;
}

static size_t reversible_saved(const ag_call *c)
{
    return 2 * fixed_bytes(c) + peak_bytes(c) + c->attr.reversible.kept;
}

/* The outputs by role, in the number type of the tape. */
static void put_outputs(const ag_call *c, streams *s)
{
    if (!c->attr.reversible.point) {
        c->out[A]->data = s->x[A];
        c->out[B]->data = s->x[B];
        return;
    }
    for (int i = 0; i < 2 && !c->tape->plan; i++)
        c->k->fixed_read(c->in[A]->size, c->attr.reversible.point, s->s[i], c->out[i]->data);
}

static void reversible_forward(ag_call *c)
{
    ag_tape *t = c->tape;
    streams s = streams_of(c);
    ag_memo memo = { .mode = AG_MEMO_KEEP, .at = memo_of(c) };
    if (c->attr.reversible.point && !t->plan)
        ag_device_clear(t->k->device, s.peak, sizeof *s.peak);
    stream_add(c, &s, A, 0, c->in[A]->data);
    stream_add(c, &s, B, 0, c->in[B]->data);
    for (int i = 0; i < c->attr.reversible.n && !t->error; i++) {
        const ag_visit v = ag_visit_begin(t, c);
        t->no_grad = true;
        t->lazy = false;
        t->memo = &memo;
        ag_tensor *b = stream_read(c, &s, false);
        const ag_tensor *r = b ? run_layer(c, i, b) : NULL;
        if (!t->error) stream_add(c, &s, A, 1, r->data);
        if (c->attr.reversible.half[i].swap) swap(&s);
        ag_visit_end(t, &v);
    }
    if (!t->error && check_peak(c, &s) == AG_OK) put_outputs(c, &s);
}

/* --- backward --------------------------------------------------------------------------------- */

/* The gradient of a is that of r: added, as a layer may read its result's gradient only once. */
static void seed(const ag_call *c, const streams *s, ag_tensor *r)
{
    if (!r->grad) r->grad = ag_grad_alloc(c->tape, r);
    if (!r->grad) return;
    if (!c->tape->plan) c->k->scale(r->size, 1, s->g[A], r->grad, r->grad_written);
    r->grad_written = true;
}

static void undo_layer(ag_call *c, int i, streams *s)
{
    ag_tape *t = c->tape;
    const ag_visit v = ag_visit_begin(t, c);
    ag_memo memo = { AG_MEMO_RECALL, memo_of(c), c->attr.reversible.first[i] };
    t->no_grad = t->lazy = false;
    t->memo = &memo;
    ag_tensor *b = stream_read(c, s, true), *r = b ? run_layer(c, i, b) : NULL;
    t->memo = NULL;
    if (!t->error) {
        stream_add(c, s, A, -1, r->data);
        if (r->needs_grad) seed(c, s, r);
        if (r->needs_grad && !t->error) ag_tape_replay(t, v.n);
    }
    ag_visit_end(t, &v);
}

/* How far the rebuilt streams are from the inputs. */
static void verify(const ag_call *c, const streams *s)
{
    ag_tape *t = c->tape;
    ag_inverse *v = &t->inverse;
    const int64_t n = c->in[A]->size;
    const double one = ldexp(1, c->attr.reversible.point);
    const ag_mark m = ag_arena_mark(&t->meta);
    for (int role = A; role <= B; role++) {
        const size_t bytes = ag_tensor_bytes(c->in[role]);
        const ag_dtype dtype = c->in[role]->dtype;
        const void *in = ag_on_host(t, c->in[role]->data, bytes);
        const size_t int_size = int_bytes(c->in[role]);
        const void *x = s->x[role] ? ag_on_host(t, s->x[role], bytes) : NULL;
        const int32_t *fixed = s->s[role] ? ag_on_host(t, s->s[role], int_size) : NULL;
        for (int64_t i = 0; i < n && !t->error; i++) {
            const double was = ag_number_at(dtype, in, i);
            const double want = fixed ? rint(was * one) / one : was;
            const double got = fixed ? fixed[i] / one : ag_number_at(dtype, x, i);
            v->error = fmax(v->error, fabs(got - want));
            v->scale = fmax(v->scale, fabs(want));
        }
    }
    ag_arena_rewind(&t->meta, m);
}

static void reversible_backward(ag_call *c)
{
    ag_tape *t = c->tape;
    streams s = streams_of(c);
    int swaps = 0;
    for (int i = 0; i < c->attr.reversible.n; i++) swaps += c->attr.reversible.half[i].swap;
    if (swaps % 2 && c->attr.reversible.point) {         /* their memory stayed where it was */
        int32_t *a = s.s[A];
        s.s[A] = s.s[B];
        s.s[B] = a;
    }
    for (int i = c->attr.reversible.n - 1; i >= 0 && !t->error; i--) {
        if (c->attr.reversible.half[i].swap) swap(&s);
        undo_layer(c, i, &s);
    }
    if (t->error) return;
    t->inverse.stacks++;
    if (t->verify && !t->plan) verify(c, &s);
    for (int role = A; role <= B; role++) {
        bool acc;
        void *dx = ag_grad_of(c, role, &acc);
        if (dx && !t->plan) c->k->scale(c->in[role]->size, 1, s.g[role], dx, acc);
    }
}

static int64_t reversible_flops(const ag_call *c) { return c->attr.reversible.flops; }

const ag_op ag_op_reversible = {
    .name = "reversible", .doc = "half residuals on two streams, whose inputs are rebuilt",
    .n_in = 2, .n_out = 2, .nested = true, .shape = reversible_shape,
    .saved_bytes = reversible_saved, .forward = reversible_forward,
    .backward = reversible_backward, .flops = reversible_flops,
};

ag_tensor *ag_reversible(ag_tape *t, const ag_half *half, int n, int point, ag_tensor *a,
                         ag_tensor *b, ag_tensor **ret_b)
{
    const size_t bytes = (size_t)n * sizeof *half;
    ag_half *copy = ag_error(t) ? NULL : ag_tape_meta(t, bytes + 1);
    size_t *first = ag_error(t) ? NULL : ag_tape_meta(t, (size_t)n * sizeof *first + 1);
    if (copy) memcpy(copy, half, bytes);
    const ag_attr attr = { .reversible = { copy, n, point, 0, 0, first } };
    return ag_apply(t, &ag_op_reversible, (ag_tensor *[AG_MAX_IN]){ a, b }, &attr, ret_b);
}
