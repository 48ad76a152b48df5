/* watch.c -- watching for NaN and infinity: which op made the first one, and from what. */
#include "watch.h"

#include "device.h"
#include "op.h"

#include <math.h>
#include <stdio.h>

typedef struct range { double lo, hi; int64_t bad; } range;

/* Of numbers in the memory of the tape's device, brought to the host in parts. */
static range range_of(const ag_tape *t, const ag_tensor *x, ag_dtype dtype, const void *data)
{
    enum { PART = 1024 };
    double part[PART];               /* room for numbers of any type */
    const size_t size = ag_dtype_size(dtype);
    range r = { INFINITY, -INFINITY, 0 };
    for (int64_t at = 0; at < x->size; at += PART) {
        const int64_t n = x->size - at < PART ? x->size - at : PART;
        ag_device_read(ag_tape_kernels(t)->device, part, (const char *)data + (size_t)at * size,
                       (size_t)n * size);
        for (int64_t i = 0; i < n; i++) {
            const double v = ag_number_at(dtype, part, i);
            if (!isfinite(v)) r.bad++;
            else {
                if (v < r.lo) r.lo = v;
                if (v > r.hi) r.hi = v;
            }
        }
    }
    return r;
}

static void watch_fail(ag_tape *t, const ag_call *c, const ag_tensor *x, const char *what,
                       int64_t bad)
{
    char text[512] = "", shape[96];
    int n = 0;
    for (int i = 0; i < c->op->n_in; i++) {
        const ag_tensor *in = c->in[i];
        if (!in || in->dtype == AG_I32 || !in->data) continue;
        const range r = range_of(t, in, in->dtype, in->data);
        n += snprintf(text + n, sizeof text - (size_t)n, "; input %d%s%s %s in [%.3g, %.3g]%s", i,
                      in->name ? " " : "", in->name ? in->name : "",
                      ag_shape_text(&in->shape, shape), r.lo, r.hi, r.bad ? " and not finite" : "");
        if (n >= (int)sizeof text) break;
    }
    ag_scope_of_call(t, c);
    ag_fail(t, AG_EDIVERGED, "%s: %lld of %lld values of %s %s are not finite%s", c->op->name,
            (long long)bad, (long long)x->size, what, ag_shape_text(&x->shape, shape), text);
}

void ag_watch_forward(ag_tape *t, const ag_call *c)
{
    for (int i = 0; i < c->op->n_out; i++) {
        if (c->out[i]->dtype == AG_I32 || !c->out[i]->data) continue;
        const range r = range_of(t, c->out[i], c->out[i]->dtype, c->out[i]->data);
        if (r.bad) watch_fail(t, c, c->out[i], "its output", r.bad);
    }
}

void ag_watch_backward(ag_tape *t, const ag_call *c)
{
    for (int i = 0; i < c->op->n_in; i++) {
        const ag_tensor *x = c->in[i];
        if (!x || !x->grad || !x->grad_written) continue;
        const range r = range_of(t, x, ag_grad_dtype(x), x->grad);
        if (r.bad) watch_fail(t, c, x, x->name ? x->name : "the gradient of input", r.bad);
    }
}

void ag_plan_workspace(ag_call *c, bool back)
{
    const size_t bytes = c->op->workspace ? c->op->workspace(c, back) : 0;
    if (bytes) ag_scratch(c->tape, bytes);
}

void ag_plan_backward(ag_call *c)
{
    ag_tensor *y = c->out[0];
    for (int i = 0; i < c->op->n_in; i++) {
        ag_tensor *x = c->in[i];
        bool acc;
        if (x && !x->grad && y->grad && !y->grad_kept && c->op->passes >> i & 1) ag_grad_pass(c, i);
        else ag_grad_of(c, i, &acc);
    }
}
