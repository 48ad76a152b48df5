#include "convert.h"
#include "device.h"
#include "tape_impl.h"
#include "watch.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ag_scope_node {
    const struct ag_scope_node *parent;
    const char *name;
    int64_t index;
};

ag_tape *ag_tape_new(const ag_kernels *device)
{
    ag_tape *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->k = device;
    t->meta.chunk_min = (size_t)1 << 20;
    t->data.chunk_min = t->grads.chunk_min = (size_t)4 << 20;
    if (device->device) t->data.memory = t->grads.memory = &device->device->memory;
    t->noise.n_samples = 1;
    return t;
}

void ag_tape_free(ag_tape *t)
{
    if (!t) return;
    ag_arena_release(&t->meta);
    ag_arena_release(&t->data);
    ag_arena_release(&t->grads);
    free(t->call);
    free(t->spares);
    free(t);
}

void ag_tape_reset(ag_tape *t)
{
    ag_arena_reset(&t->meta);
    ag_arena_reset(&t->data);
    ag_arena_reset(&t->grads);
    t->n = t->n_spare = 0;
    t->flops = 0;
    t->moved = 0;
    t->keep = AG_KEEP_ALL;
    t->inverse = (ag_inverse){ 0 };
    t->scope = NULL;
    t->error = AG_OK;
    t->message[0] = '\0';
}

const ag_kernels *ag_tape_kernels(const ag_tape *t) { return t->k; }
ag_dtype ag_tape_dtype(const ag_tape *t) { return t->k->dtype; }
void ag_tape_noise(ag_tape *t, const ag_noise_key *key) { t->noise = *key; }
ag_noise_key ag_tape_noise_key(const ag_tape *t) { return t->noise; }
bool ag_tape_no_grad(ag_tape *t, bool on)
{
    const bool was = t->no_grad;
    t->no_grad = on;
    return was;
}
bool ag_tape_is_no_grad(const ag_tape *t) { return t->no_grad; }
void ag_tape_watch(ag_tape *t, bool on) { t->watch = on; }
void ag_tape_verify(ag_tape *t, bool on) { t->verify = on; }
ag_inverse ag_tape_inverse(const ag_tape *t) { return t->inverse; }
void ag_tape_plan(ag_tape *t, bool on)
{
    const ag_device *device = t->k->device;
    t->plan = on;
    /* nothing is written, so a plan for a device takes the host's address space */
    if (device && !t->data.head && !t->grads.head)
        t->data.memory = t->grads.memory = on ? NULL : &device->memory;
}
ag_keep ag_tape_keep(ag_tape *t, ag_keep keep)
{
    const ag_keep was = t->keep;
    t->keep = keep;
    return was;
}
ag_keep ag_tape_kept(const ag_tape *t) { return t->keep; }
bool ag_tape_runs(const ag_tape *t) { return !t->error && !t->plan && !t->lazy; }
int ag_error(const ag_tape *t) { return t->error; }
const char *ag_error_message(const ag_tape *t) { return t->message; }
int ag_tape_calls(const ag_tape *t) { return t->n; }
const ag_call *ag_tape_call(const ag_tape *t, int i) { return t->call[i]; }

int ag_tape_status(const ag_tape *t, ag_err *err)
{
    return t->error ? ag_err_set(err, t->error, "%s", t->message) : AG_OK;
}

ag_tape_memory ag_tape_bytes(const ag_tape *t)
{
    return (ag_tape_memory){ .used = t->data.used + t->grads.used,
                             .peak = t->data.peak + t->grads.peak, .grads = t->grads.peak,
                             .reserved = ag_arena_reserved(&t->data) +
                                         ag_arena_reserved(&t->grads) +
                                         ag_arena_reserved(&t->meta),
                             .flops = t->flops, .work = (double)t->flops + 16 * t->moved };
}

/* --- scope and errors ------------------------------------------------------------------------- */

void ag_scope(ag_tape *t, const char *name, int64_t index)
{
    struct ag_scope_node *s = ag_arena_alloc(&t->meta, 1, sizeof *s);
    if (!s) {
        ag_fail(t, AG_ENOMEM, "out of memory for a scope");
        return;
    }
    *s = (struct ag_scope_node){ t->scope, name, index };
    t->scope = s;
}

void ag_scope_end(ag_tape *t)
{
    if (t->scope && !t->error) t->scope = t->scope->parent;
}

void ag_scope_of_call(ag_tape *t, const ag_call *c) { t->scope = c->scope; }

static int scope_text(const struct ag_scope_node *s, char *buf, size_t size)
{
    if (!s || !size) return 0;
    int n = scope_text(s->parent, buf, size);
    const char *comma = n ? ", " : "";
    if ((size_t)n >= size) return n;
    if (s->index < 0) n += snprintf(buf + n, size - (size_t)n, "%s%s", comma, s->name);
    else n += snprintf(buf + n, size - (size_t)n, "%s%s %lld", comma, s->name, (long long)s->index);
    return n < (int)size ? n : (int)size - 1;
}

const char *ag_call_scope(const ag_call *c, char *buf, size_t size)
{
    buf[0] = '\0';
    scope_text(c->scope, buf, size);
    return buf;
}

int ag_fail(ag_tape *t, int code, const char *fmt, ...)
{
    if (t->error) return t->error;   /* keep the first: the rest are its echoes */
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(t->message, sizeof t->message, fmt, ap);
    va_end(ap);
    if (t->scope && n >= 0 && (size_t)n + 8 < sizeof t->message) {
        n += snprintf(t->message + n, sizeof t->message - (size_t)n, " in ");
        scope_text(t->scope, t->message + n, sizeof t->message - (size_t)n);
    }
    return t->error = code;
}

ag_tensor *ag_poison(ag_tape *t)
{
    memset(t->nan, 0xff, sizeof t->nan);         /* NaN in every number type */
    t->poison = (ag_tensor){ .size = 1, .dtype = t->k->dtype, .data = &t->nan[0],
                             .grad = &t->nan[1] };
    return &t->poison;
}

int ag_tape_check(ag_tape *t, const ag_call *c)
{
    const char *why = t->k->device ? t->k->device->check() : NULL;
    if (why && c) ag_fail(t, AG_EFAIL, "%s: %s", c->op->name, why);
    else if (why) ag_fail(t, AG_EFAIL, "%s", why);
    return t->error;
}

/* --- tensors ---------------------------------------------------------------------------------- */

void *ag_tape_meta(ag_tape *t, size_t bytes)
{
    void *p = ag_arena_alloc(&t->meta, 1, bytes);
    if (!p) ag_fail(t, AG_ENOMEM, "out of memory for the tape");
    return p;
}

/* The calls with the largest outputs that are kept, the largest first, as text. */
static void largest_text(const ag_tape *t, char *buf, size_t size)
{
    enum { MOST = 3 };
    const ag_call *top[MOST] = { NULL };
    for (int i = 0; i < t->n; i++) {
        const ag_call *c = t->call[i];
        for (int k = 0; k < MOST && c && c->out[0]->data; k++)
            if (!top[k] || ag_tensor_bytes(c->out[0]) > ag_tensor_bytes(top[k]->out[0])) {
                const ag_call *was = top[k];
                top[k] = c;
                c = was;
            }
    }
    size_t n = 0;
    buf[0] = '\0';
    for (int k = 0; k < MOST && top[k] && n < size; k++) {
        char shape[96], scope[160];
        ag_call_scope(top[k], scope, sizeof scope);
        n += (size_t)snprintf(buf + n, size - n, "%s %s %s of %.1f MB%s%s",
                              k ? ";" : "; the largest:", top[k]->op->name,
                              ag_shape_text(&top[k]->out[0]->shape, shape),
                              1e-6 * (double)ag_tensor_bytes(top[k]->out[0]),
                              scope[0] ? " in " : "", scope);
    }
}

void *ag_tape_room(ag_tape *t, ag_arena *where, size_t n, size_t size)
{
    void *p = ag_arena_alloc(where, n, size);
    if (p || t->error) return p;
    char largest[640];
    largest_text(t, largest, sizeof largest);
    ag_fail(t, AG_ENOMEM, "out of memory: %.1f MB wanted, %.1f MB in use%s; a smaller "
            "train.micro_batch needs less", 1e-6 * (double)n * (double)size,
            1e-6 * (double)(t->data.used + t->grads.used), largest);
    return NULL;
}

void *ag_tape_alloc(ag_tape *t, ag_arena *where, int64_t n, ag_dtype dtype)
{
    return ag_tape_room(t, where, (size_t)n, ag_dtype_size(dtype));
}

static ag_tensor *tensor_new(ag_tape *t, const ag_shape *shape, ag_dtype dtype)
{
    ag_tensor *x = ag_tape_meta(t, sizeof *x);
    if (x) *x = (ag_tensor){ .shape = *shape, .size = ag_shape_size(shape), .dtype = dtype };
    return x;
}

static bool tensor_data(ag_tape *t, ag_tensor *x)
{
    return (x->data = ag_tape_alloc(t, &t->data, x->size, x->dtype));
}

ag_tensor *ag_leaf_new(ag_tape *t, const ag_shape *shape, ag_dtype dtype, bool needs_grad)
{
    if (t->error) return NULL;
    ag_tensor *x = tensor_new(t, shape, dtype);
    if (!x || !tensor_data(t, x)) return NULL;
    x->needs_grad = x->grad_kept = needs_grad;
    return x;
}

/* --- running an op ---------------------------------------------------------------------------- */

static int record(ag_tape *t, ag_call *c)
{
    if (t->n == t->cap) {
        const int cap = t->cap ? 2 * t->cap : 256;
        ag_call **p = ag_fault_now() ? NULL : realloc(t->call, (size_t)cap * sizeof(ag_call *));
        if (!p) return ag_fail(t, AG_ENOMEM, "out of memory for the tape");
        t->call = p;
        t->cap = cap;
    }
    t->call[t->n++] = c;
    return AG_OK;
}

static bool wants_grad(const ag_call *c)
{
    for (int i = 0; i < c->op->n_in; i++)
        if (c->in[i] && c->in[i]->needs_grad) return true;
    return false;
}

static int check_inputs(ag_tape *t, const ag_call *c)
{
    const ag_op *op = c->op;
    for (int i = 0; i < op->n_in; i++) {
        if (!c->in[i]) {
            if (!(op->optional >> i & 1))
                return ag_fail(t, AG_ESHAPE, "%s: input %d is missing", op->name, i);
            continue;
        }
        if (t->segment && !ag_segment_reaches(t->segment->call, t->segment->visit, c->in[i])) {
            char s[96];
            return ag_fail(t, AG_EGRAD, "%s: input %d %s was made outside of the segment and is "
                           "none of its inputs, so its gradient would be lost", op->name, i,
                           ag_shape_text(&c->in[i]->shape, s));
        }
        const ag_dtype want = op->integer_in >> i & 1 ? AG_I32 : t->k->dtype, is = c->in[i]->dtype;
        if (is != want && !(ag_dtype_is_half(want) && is == AG_F32))
            return ag_fail(t, AG_ESHAPE, "%s: input %d holds %s numbers, wanted %s", op->name, i,
                           ag_dtype_name(is), ag_dtype_name(want));
    }
    return AG_OK;
}

static int make_outputs(ag_tape *t, ag_call *c, bool needs_grad)
{
    ag_shape shape[AG_MAX_OUT] = { 0 };
    const int r = c->op->shape(c, shape);
    if (r < 0) return r;
    for (int i = 0; i < c->op->n_out; i++) {
        const bool integer = c->op->integer_out >> i & 1;
        ag_tensor *y = c->out[i] =
            tensor_new(t, &shape[i], integer ? AG_I32 : ag_call_dtype(c));
        if (!y) return t->error;
        y->needs_grad = needs_grad && !integer;
        if (c->op->alias) y->narrow = c->in[0]->narrow;
        if (i == 0 && ag_is_remade(c)) y->maker = c;
    }
    return AG_OK;
}

int ag_call_room(ag_tape *t, ag_call *c)
{
    c->before = ag_arena_mark(&t->data);
    for (int i = 0; i < c->op->n_out; i++) {
        ag_tensor *y = c->out[i];
        if (y->maker) continue;
        if (c->op->alias) y->data = c->in[0]->data;
        else if (!tensor_data(t, y)) return t->error;
        if (c->op->integer_out >> i & 1 && !t->k->device) y->host = y->data;
    }
    if (c->op->saved_bytes) {
        c->saved = ag_tape_room(t, &t->data, 1, c->op->saved_bytes(c));
        if (!c->saved) return t->error;
    }
    return AG_OK;
}

/* Were all its outputs given? */
static bool has_all(const ag_call *c) { return c->given == (1u << c->op->n_out) - 1; }

static void count(ag_tape *t, const ag_call *c)
{
    t->flops += ag_call_flops(c);
    for (int i = 0; i < c->op->n_in; i++)
        if (c->in[i] && !c->op->alias) t->moved += (double)ag_tensor_bytes(c->in[i]);
    for (int i = 0; i < c->op->n_out; i++)
        if (!c->op->alias) t->moved += (double)ag_tensor_bytes(c->out[i]);
}

void ag_call_forward(ag_tape *t, ag_call *c)
{
    if (ag_makes_later(c)) return;
    const ag_mark scratch = ag_arena_mark(&t->data);
    ag_tensor *made = ag_make_inputs(c, 0);
    if (t->memo) ag_memo_before(t, c);
    if (!c->op->nested) count(t, c);
    const bool done = t->error || (!t->plan && has_all(c));
    if (!done && !c->op->nested) ag_call_run_forward(c, c->op->forward);
    else if (!done && !(t->plan && t->segment)) c->op->forward(c);
    if (t->k->device) ag_tape_check(t, c);
    if (t->memo) ag_memo_after(t, c);
    if (t->watch && !t->plan && !t->error) ag_watch_forward(t, c);
    ag_unmake(made);
    ag_arena_rewind(&t->data, scratch);
}

int64_t ag_call_flops(const ag_call *c)
{
    return c->op->flops ? c->op->flops(c) : c->op->alias ? 0 : c->out[0]->size;
}

ag_tensor *ag_apply(ag_tape *t, const ag_op *op, ag_tensor *const in[AG_MAX_IN],
                    const ag_attr *attr, ag_tensor **ret_second)
{
    if (ret_second) *ret_second = &t->poison;
    if (t->error) return ag_poison(t);

    ag_call *c = ag_tape_meta(t, sizeof *c);
    if (!c) return ag_poison(t);
    *c = (ag_call){ .op = op, .tape = t, .k = t->k, .scope = t->scope };
    for (int i = 0; i < op->n_in; i++) c->in[i] = in[i];
    if (attr) c->attr = *attr;

    const bool needs_grad = wants_grad(c) && !t->no_grad;
    if (needs_grad && !op->backward) {   /* never a silent hole in the gradient */
        ag_fail(t, AG_EGRAD, "%s has no gradient: %s", op->name, op->nondiff);
        return ag_poison(t);
    }
    if (check_inputs(t, c) < 0) return ag_poison(t);
    c->k = ag_call_kernels(c);
    if (make_outputs(t, c, needs_grad) < 0) return ag_poison(t);

    if (!t->lazy && ag_call_room(t, c) == AG_OK) ag_call_forward(t, c);
    if (t->error || ((needs_grad || t->lazy) && record(t, c) < 0)) return ag_poison(t);
    if (ret_second) *ret_second = c->out[1];
    return c->out[0];
}

/* --- the rest --------------------------------------------------------------------------------- */

const ag_tape_mark *ag_tape_mark_here(ag_tape *t)
{
    ag_tape_mark *m = t->error ? NULL : ag_tape_meta(t, sizeof *m);
    if (m)
        *m = (ag_tape_mark){ ag_arena_mark(&t->meta), ag_arena_mark(&t->data),
                             ag_arena_mark(&t->grads), t->n, t->scope };
    return m;
}

void ag_tape_rewind(ag_tape *t, const ag_tape_mark *m)
{
    if (!m) return;
    const ag_tape_mark at = *m;
    ag_spares_below(t, at.grads);
    ag_arena_rewind(&t->meta, at.meta);
    ag_arena_rewind(&t->data, at.data);
    ag_arena_rewind(&t->grads, at.grads);
    t->n = at.n;
    t->scope = at.scope;
}

void ag_tape_rewind_into(ag_tape *t, const ag_tape_mark *m, const ag_tensor *y, ag_tensor *x)
{
    if (!t->error && !t->plan && y != x)
        ag_convert(t->k, x->size, y->dtype, y->data, x->dtype, x->data);
    ag_tape_rewind(t, m);
}

ag_noise ag_noise_for(const ag_tape *t, uint32_t site, int64_t rows)
{
    const int64_t per_sample = rows / (t->noise.n_samples > 0 ? t->noise.n_samples : 1);
    return (ag_noise){ .seed = t->noise.seed, .step = t->noise.step, .site = site,
                       .row0 = t->noise.sample0 * per_sample, .rows = per_sample,
                       .turn = t->turn };
}

size_t ag_real_size(const ag_call *c) { return ag_dtype_size(c->k->dtype); }

size_t ag_kept_size(const ag_call *c)
{
    return ag_dtype_is_half(c->k->dtype) ? sizeof(float) : ag_real_size(c);
}
