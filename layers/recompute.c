/* recompute.c -- plans of what is kept, and stacks that run under them; schedule.c makes plans. */
#include "layers/recompute.h"

#include "autograd/base/arena.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int nn_blocks_count(const nn_blocks stack[NN_STACKS])
{
    int n = 0;
    for (int s = 0; s < NN_STACKS; s++) n += stack[s].n;
    return n;
}

nn_recompute *nn_recompute_new(const nn_blocks stack[NN_STACKS], ag_keep keep, int group)
{
    const int n = nn_blocks_count(stack);
    nn_recompute *r = ag_fault_now() ? NULL : calloc(1, sizeof *r);
    if (!r) return NULL;
    memcpy(r->stack, stack, sizeof r->stack);
    r->n_blocks = n;
    r->keep = malloc((size_t)n * sizeof *r->keep);
    r->segment = malloc(2 * (size_t)n * sizeof *r->segment);     /* as many as can nest */
    if (!r->keep || !r->segment) {
        nn_recompute_free(r);
        return NULL;
    }
    for (int i = 0; i < n; i++) r->keep[i] = keep;
    for (int s = 0, i = 0, end = 0; s < NN_STACKS; s++, i = end) {
        end += stack[s].n;
        for (; group > 0 && i < end; i += group)
            r->segment[r->n_segments++] = (nn_segment){ i, i + group < end ? i + group : end };
    }
    return r;
}

void nn_recompute_free(nn_recompute *r)
{
    if (!r) return;
    free(r->keep);
    free(r->segment);
    free(r);
}

int nn_recompute_add(nn_recompute *r, int begin, int end)
{
    int at = 0, edge = 0;
    if (begin < 0 || end > r->n_blocks || begin >= end) return AG_ERANGE;
    for (int s = 0; s < NN_STACKS; s++) {
        edge += r->stack[s].n;
        if (begin < edge && end > edge) return AG_ERANGE;
    }
    for (int i = 0; i < r->n_segments; i++) {
        const nn_segment *s = &r->segment[i];
        const bool apart = end <= s->begin || begin >= s->end;
        const bool inside = s->begin <= begin && end <= s->end,
            around = begin <= s->begin && s->end <= end;
        if (!apart && (inside == around)) return AG_ERANGE;      /* across, or the same */
        if (s->begin < begin || (s->begin == begin && inside)) at = i + 1;
    }
    memmove(r->segment + at + 1, r->segment + at,
            (size_t)(r->n_segments - at) * sizeof *r->segment);
    r->segment[at] = (nn_segment){ begin, end };
    r->n_segments++;
    return AG_OK;
}

/* --- text ------------------------------------------------------------------------------------- */

/* The segment that begins at block i among those from `at` on that are not inside another one; -1:
 * none does. */
static int segment_at(const nn_recompute *r, int at, int i)
{
    while (at < r->n_segments && r->segment[at].begin < i) at++;
    return at < r->n_segments && r->segment[at].begin == i ? at : -1;
}

static int append(char *buf, size_t size, int n, const char *format, ...)
{
    if (n < 0 || (size_t)n >= size) return n;
    va_list list;
    va_start(list, format);
    const int more = vsnprintf(buf + n, size - (size_t)n, format, list);
    va_end(list);
    return n + more;
}

static int depth_at(const nn_recompute *r, int i)
{
    int depth = 0;
    for (int s = 0; s < r->n_segments; s++)
        depth += r->segment[s].begin <= i && i < r->segment[s].end;
    return depth;
}

static void block_text(const nn_recompute *r, int i, char text[64])
{
    static const char *const words[AG_KEEPS] = { "whole", "products", "branches" };
    const int depth = depth_at(r, i);
    if (depth) snprintf(text, 64, "recomputed %d time%s, %s", depth, depth > 1 ? "s" : "",
                        words[r->keep[i]]);
    else snprintf(text, 64, "kept: %s", words[r->keep[i]]);
}

/* Blocks begin .. end - 1, those that do the same together, counted from `begin`. */
static int stack_text(const nn_recompute *r, int begin, int end, char *buf, size_t size, int n)
{
    char text[64], next[64];
    for (int i = begin, last; i < end; i = last + 1) {
        block_text(r, i, text);
        for (last = i; last + 1 < end; last++) {
            block_text(r, last + 1, next);
            if (strcmp(text, next)) break;
        }
        n = append(buf, size, n, "%s %d", i > begin ? "," : "", i - begin);
        if (last > i) n = append(buf, size, n, "-%d", last - begin);
        n = append(buf, size, n, " %s", text);
    }
    return n;
}

const char *nn_recompute_text(const nn_recompute *r, char *buf, size_t size)
{
    buf[0] = '\0';
    for (int s = 0, n = 0, begin = 0; s < NN_STACKS; begin += r->stack[s++].n) {
        if (!r->stack[s].n) continue;
        n = append(buf, size, n, "%s%s", n ? "; " : "", r->stack[s].name);
        n = stack_text(r, begin, begin + r->stack[s].n, buf, size, n);
    }
    return buf;
}

/* --- running ---------------------------------------------------------------------------------- */

typedef struct range {               /* blocks begin .. end - 1; segments from `at` on are inside */
    nn_block_run *block;
    const nn_recompute *plan;
    int n_x, first, begin, end, at;  /* first: of its stack, from which `block` counts */
    _Alignas(max_align_t) unsigned char arg[NN_STACK_ARG];
} range;

static ag_tensor *run_block(const range *g, ag_tape *t, ag_tensor *const *x, int i)
{
    return g->block(g->arg, t, x, i - g->first);
}

/*
 * Without gradients: each block's output goes where its input was, and what it made on the way is
 * forgotten.
 */
static ag_tensor *pass(const range *g, ag_tape *t, ag_tensor *const *from)
{
    ag_tensor *x[AG_SEGMENT_IN];
    for (int i = 0; i < g->n_x; i++) x[i] = from[i];
    if (g->end - g->begin == 1) return run_block(g, t, x, g->begin);
    x[0] = ag_scale(t, x[0], 1);
    for (int i = g->begin; i < g->end && !ag_error(t); i++) {
        const ag_tape_mark *m = ag_tape_mark_here(t);
        ag_tape_rewind_into(t, m, run_block(g, t, x, i), x[0]);
    }
    return x[0];
}

static ag_tensor *run_range(const range *g, ag_tape *t, ag_tensor *const *x);

static ag_tensor *run_segment(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    return run_range(arg, t, x);
}

static ag_tensor *run_range(const range *g, ag_tape *t, ag_tensor *const *from)
{
    if (ag_tape_is_no_grad(t)) return pass(g, t, from);
    ag_tensor *x[AG_SEGMENT_IN];
    for (int i = 0; i < g->n_x; i++) x[i] = from[i];
    int at = g->at;
    for (int i = g->begin; i < g->end; ) {
        const int s = g->plan ? segment_at(g->plan, at, i) : -1;
        if (s >= 0) {
            range inner = *g;
            inner.begin = i;
            inner.end = g->plan->segment[s].end;
            inner.at = at = s + 1;
            x[0] = ag_recompute(t, run_segment, &inner, sizeof inner, x, g->n_x);
            i = inner.end;
        } else {
            const ag_keep was = ag_tape_keep(t, g->plan ? g->plan->keep[i] : AG_KEEP_ALL);
            x[0] = run_block(g, t, x, i++);
            ag_tape_keep(t, was);
        }
    }
    return x[0];
}

ag_tensor *nn_branch_run(ag_tape *t, ag_segment_run *run, const void *arg, size_t arg_bytes,
                         ag_tensor *const *x, int n_x)
{
    if (ag_tape_is_no_grad(t) || ag_tape_kept(t) < AG_KEEP_BRANCHES) return run(arg, t, x);
    return ag_recompute(t, run, arg, arg_bytes, x, n_x);
}

/* --- measuring -------------------------------------------------------------------------------- */

static double data_peak(const ag_tape_memory *m) { return (double)(m->peak - m->grads); }

/* What block one->begin needs on a tape of its own, recorded with `keep` or as a segment. */
static void measure_on(const range *one, ag_tape *t, ag_tensor *const *x, ag_keep keep,
                       nn_block_cost *c)
{
    ag_tensor *own[AG_SEGMENT_IN];
    for (int i = 0; i < one->n_x; i++) own[i] = ag_input_blank(t, x[i]->shape, x[i]->needs_grad);
    const ag_tape_memory start = ag_tape_bytes(t);
    ag_tensor *y = run_range(one, t, own);
    const ag_tape_memory run = ag_tape_bytes(t);
    ag_backward_from(t, y, NULL);
    const ag_tape_memory end = ag_tape_bytes(t);
    const double used = (double)(run.used - start.used);
    if (one->plan->n_segments) {
        c->output = used;
        c->transient = data_peak(&run) - (double)run.used;
        c->unread[keep] = c->work - (end.work - run.work - c->again[keep]);
    } else {
        c->work = run.work - start.work;
        c->kept[keep] = used;
        c->room[keep] = data_peak(&end) - (double)run.used;
        c->again[keep] = end.work - run.work;
    }
}

static void measure_block(const range *g, ag_tape *t, ag_tensor *const *x, int i, ag_keep keep,
                          nn_block_cost *c)
{
    const ag_noise_key noise = ag_tape_noise_key(t);
    for (int whole = 0; whole < 2; whole++) {
        ag_tape *own = ag_tape_new(ag_tape_kernels(t));
        nn_recompute *plan = nn_recompute_new(g->plan->stack, keep, 0);
        if (own && plan) {
            range one = *g;
            one.begin = i;
            one.end = i + 1;
            one.plan = plan;
            if (whole) nn_recompute_add(plan, i, i + 1);
            ag_tape_plan(own, true);
            ag_tape_noise(own, &noise);
            measure_on(&one, own, x, keep, c);
            if (ag_error(own)) ag_fail(t, ag_error(own), "%s", ag_error_message(own));
        } else {
            ag_fail(t, AG_ENOMEM, "out of memory for a plan");
        }
        nn_recompute_free(plan);
        ag_tape_free(own);
    }
}

/* cost->end: the bytes that were in use behind the stack before. */
static void measure(const range *g, ag_tape *t, ag_tensor *const *x, int at, nn_stacks_cost *cost)
{
    cost->before[at] = (double)ag_tape_bytes(t).used - (at ? cost->end : 0);
    for (int i = g->begin; i < g->end; i++)
        for (int k = 0; k < AG_KEEPS && !ag_error(t); k++)
            measure_block(g, t, x, i, (ag_keep)k, &cost->block[i]);
}

ag_tensor *nn_stack_forward(const nn_stack *s, ag_tape *t, ag_tensor *const *x,
                            const nn_recompute *r)
{
    range g = { .block = s->block, .plan = r, .n_x = s->n_x };
    assert(s->arg_bytes <= sizeof g.arg && s->n_x <= AG_SEGMENT_IN && s->at < NN_STACKS);
    assert(!r || r->stack[s->at].n == s->n);
    memcpy(g.arg, s->arg, s->arg_bytes);
    for (int i = 0; r && i < s->at; i++) g.first += r->stack[i].n;
    g.begin = g.first;
    g.end = g.first + s->n;
    if (r && r->measure) measure(&g, t, x, s->at, r->measure);
    ag_tensor *y = run_range(&g, t, x);
    if (r && r->measure) r->measure->end = (double)ag_tape_bytes(t).used;
    return y;
}
