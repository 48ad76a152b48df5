/* schedule.c -- the planner of recompute.h: which blocks to record, and which to run again. */
#include "layers/recompute.h"

#include "autograd/base/arena.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/*
 * Blocks i .. j - 1 within a segment; `top`: i .. n - 1 and what comes behind them.  A choice is
 * the amount that block i keeps, or AG_KEEPS + s - i where i .. s - 1 are a segment.
 */
typedef struct cell { float work; int32_t choice; } cell;

typedef struct table {
    const nn_stack_cost *c;
    int    n, slots;
    double unit;                     /* bytes of a slot */
    bool   equal;                    /* blocks are alike: (i, j) is as (0, j - i) */
    double *sum;                     /* [n+1], work of the blocks before i */
    cell   *inner, *top;             /* [pairs][slots+1], [n+1][slots+1] */
} table;

static int slots_of(const table *t, double bytes) { return (int)ceil(bytes / t->unit - 1e-9); }

static cell *inner_at(const table *t, int i, int j, int m)
{
    const size_t pair = t->equal ? (size_t)(j - i)
                                 : (size_t)j * (size_t)(j - 1) / 2 + (size_t)i;
    return &t->inner[pair * (size_t)(t->slots + 1) + (size_t)m];
}

static cell *top_at(const table *t, int i, int m)
{
    return &t->top[(size_t)i * (size_t)(t->slots + 1) + (size_t)m];
}

static double work_of(const table *t, int i, int j) { return t->sum[j] - t->sum[i]; }

static void better(cell *best, double work, int choice)
{
    if (work < (double)best->work) *best = (cell){ (float)work, choice };
}

/* Does i .. s - 1 fit while it runs as a segment? */
static bool runs_in(const table *t, int i, int s, int m)
{
    const nn_block_cost *b = t->c->block;
    double most = 0, copy = s - i > 1 ? b[i].output : 0;
    for (int k = i; k < s && (!t->equal || k == i); k++)
        most = fmax(most, b[k].transient);
    return slots_of(t, b[s - 1].output + copy + most) <= m;
}

/* Blocks i .. j - 1 in m slots; j = n + 1: and the end. */
static void fill_cell(const table *t, int i, int j, int m)
{
    const nn_block_cost *b = &t->c->block[i];
    const bool top = j > t->n, last = j == i + 1;
    cell *best = top ? top_at(t, i, m) : inner_at(t, i, j, m);
    *best = (cell){ INFINITY, -1 };
    for (int k = 0; k < AG_KEEPS; k++) {
        const int left = m - slots_of(t, b->kept[k]);
        if (m < slots_of(t, b->kept[k] + b->room[k])) continue;
        const double own = b->work + b->again[k];
        if (last) better(best, own - b->unread[k], k);
        else better(best, own + (double)(top ? top_at(t, i + 1, left)
                                             : inner_at(t, i + 1, j, left))->work, k);
    }
    const int end = top ? t->n : j - 1;
    for (int s = i + 1; s <= end; s++) {
        const int left = m - slots_of(t, t->c->block[s - 1].output);
        if (left < 0 || !runs_in(t, i, s, m)) continue;
        better(best, work_of(t, i, s) + (double)inner_at(t, i, s, m)->work +
                     (double)(top ? top_at(t, s, left) : inner_at(t, s, j, left))->work,
               AG_KEEPS + s - i);
    }
}

static void fill(const table *t)
{
    for (int len = 1; len <= t->n; len++)
        for (int i = 0; i + len <= (t->equal ? len : t->n); i++)
            for (int m = 0; m <= t->slots; m++) fill_cell(t, i, i + len, m);
    for (int m = 0; m <= t->slots; m++)
        *top_at(t, t->n, m) = (cell){ slots_of(t, t->c->end) <= m ? 0 : INFINITY, -1 };
    for (int i = t->n - 1; i >= 0; i--)
        for (int m = 0; m <= t->slots; m++) fill_cell(t, i, t->n + 1, m);
}

/* The choices for i .. j - 1, as in fill_cell, into r. */
static void collect(const table *t, int i, int j, int m, nn_recompute *r)
{
    const int end = j > t->n ? t->n : j;
    while (i < end) {
        const int choice = (j > t->n ? top_at(t, i, m) : inner_at(t, i, j, m))->choice;
        if (choice < AG_KEEPS) {
            r->keep[i] = (ag_keep)choice;
            m -= slots_of(t, t->c->block[i++].kept[choice]);
            continue;
        }
        const int s = i + choice - AG_KEEPS;
        nn_recompute_add(r, i, s);
        collect(t, i, s, m, r);
        m -= slots_of(t, t->c->block[s - 1].output);
        i = s;
    }
}

static bool all_equal(const nn_stack_cost *c)
{
    for (int i = 1; i < c->n; i++)
        if (memcmp(&c->block[i], &c->block[0], sizeof c->block[0])) return false;
    return true;
}

/* About a second's work. */
static int usual_slots(const table *t)
{
    const double n = t->n, cells = t->equal ? 2 * n : n * n / 2;
    const double slots = 4e8 / (cells * (n / 3 + AG_KEEPS));
    return slots > 4000 ? 4000 : slots < 100 ? 100 : (int)slots;
}

static int table_init(table *t, const nn_stack_cost *c, double bytes, int slots)
{
    *t = (table){ .c = c, .n = c->n, .equal = all_equal(c) };
    t->slots = slots ? slots : usual_slots(t);
    t->unit = bytes / t->slots;
    const size_t n = (size_t)c->n, row = (size_t)(t->slots + 1),
        pairs = t->equal ? n + 1 : n * (n + 1) / 2;
    t->sum = ag_fault_now() ? NULL : calloc(n + 1, sizeof *t->sum);
    t->inner = malloc(pairs * row * sizeof *t->inner);
    t->top = malloc((n + 1) * row * sizeof *t->top);
    if (!t->sum || !t->inner || !t->top) return AG_ENOMEM;
    for (size_t i = 0; i < n; i++) t->sum[i + 1] = t->sum[i] + c->block[i].work;
    return AG_OK;
}

int nn_recompute_plan(const nn_stack_cost *c, double bytes, int slots, nn_recompute **ret_r,
                      double *ret_extra, ag_err *err)
{
    table t;
    if (!(bytes > 0))
        return ag_err_set(err, AG_ERANGE, "recompute: no memory is left for %d blocks", c->n);
    int r = table_init(&t, c, bytes, slots);
    nn_recompute *plan = r ? NULL : nn_recompute_new(c->n, AG_KEEP_ALL, 0);
    if (plan) {
        fill(&t);
        const double work = (double)top_at(&t, 0, t.slots)->work;
        if (isinf(work)) {
            r = ag_err_set(err, AG_ERANGE, "recompute: %d blocks do not fit in %.1f MB under any "
                           "plan", c->n, 1e-6 * bytes);
        } else {
            collect(&t, 0, t.n + 1, t.slots, plan);
            if (ret_extra) *ret_extra = work - t.sum[t.n];
            *ret_r = plan;
            plan = NULL;
        }
    } else {
        r = ag_err_set(err, AG_ENOMEM, "out of memory for a recomputation plan");
    }
    nn_recompute_free(plan);
    free(t.sum);
    free(t.inner);
    free(t.top);
    return r;
}
