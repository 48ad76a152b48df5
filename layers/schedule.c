/* schedule.c -- the planner of recompute.h: which blocks to record, and which to run again. */
#include "layers/recompute.h"

#include "autograd/base/arena.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/*
 * Blocks i .. j - 1 within a segment; `top`: i .. n - 1 and what comes behind them, where i is the
 * first of its stack also what lies before it.  A choice is the amount that block i keeps, or
 * AG_KEEPS + s - i where i .. s - 1 are a segment.
 */
typedef struct cell { float work; int32_t choice; } cell;

typedef struct chain {               /* a stack */
    int    begin, end;               /* its blocks */
    bool   equal;                    /* they are alike: (i, j) is as (begin, begin + j - i) */
    double before;                   /* bytes */
    cell   *inner;                   /* [pairs][slots+1], of the segments in it */
} chain;

typedef struct table {
    const nn_stacks_cost *c;
    int    n, slots;
    double unit;                     /* bytes of a slot */
    chain  chain[NN_STACKS];
    double *sum;                     /* [n+1], work of the blocks before i */
    cell   *top;                     /* [n+1][slots+1] */
} table;

static int slots_of(const table *t, double bytes) { return (int)ceil(bytes / t->unit - 1e-9); }

static size_t pair_of(const chain *h, int i, int j)
{
    i -= h->begin;
    j -= h->begin;
    return h->equal ? (size_t)(j - i) : (size_t)j * (size_t)(j - 1) / 2 + (size_t)i;
}

static cell *inner_at(const table *t, const chain *h, int i, int j, int m)
{
    return &h->inner[pair_of(h, i, j) * (size_t)(t->slots + 1) + (size_t)m];
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
static bool runs_in(const table *t, const chain *h, int i, int s, int m)
{
    const nn_block_cost *b = t->c->block;
    double most = 0, copy = s - i > 1 ? b[i].output : 0;
    for (int k = i; k < s && (!h->equal || k == i); k++)
        most = fmax(most, b[k].transient);
    return slots_of(t, b[s - 1].output + copy + most) <= m;
}

/* Blocks i .. j - 1 of a stack in m slots; j = n + 1: and all that follows. */
static void fill_cell(const table *t, const chain *h, int i, int j, int m)
{
    const nn_block_cost *b = &t->c->block[i];
    const bool top = j > t->n, last = j == i + 1;
    cell *best = top ? top_at(t, i, m) : inner_at(t, h, i, j, m);
    *best = (cell){ INFINITY, -1 };
    if (top && i == h->begin) m -= slots_of(t, h->before);
    for (int k = 0; k < AG_KEEPS; k++) {
        const int left = m - slots_of(t, b->kept[k]);
        if (m < slots_of(t, b->kept[k] + b->room[k])) continue;
        const double own = b->work + b->again[k];
        if (last) better(best, own - b->unread[k], k);
        else better(best, own + (double)(top ? top_at(t, i + 1, left)
                                             : inner_at(t, h, i + 1, j, left))->work, k);
    }
    const int end = top ? h->end : j - 1;
    for (int s = i + 1; s <= end; s++) {
        const int left = m - slots_of(t, t->c->block[s - 1].output);
        if (left < 0 || !runs_in(t, h, i, s, m)) continue;
        better(best, work_of(t, i, s) + (double)inner_at(t, h, i, s, m)->work +
                     (double)(top ? top_at(t, s, left) : inner_at(t, h, s, j, left))->work,
               AG_KEEPS + s - i);
    }
}

static void fill(const table *t)
{
    for (const chain *h = t->chain; h < t->chain + NN_STACKS; h++)
        for (int len = 1; len <= h->end - h->begin; len++)
            for (int i = h->begin; i + len <= (h->equal ? h->begin + len : h->end); i++)
                for (int m = 0; m <= t->slots; m++) fill_cell(t, h, i, i + len, m);
    for (int m = 0; m <= t->slots; m++)
        *top_at(t, t->n, m) = (cell){ slots_of(t, t->c->end) <= m ? 0 : INFINITY, -1 };
    for (const chain *h = t->chain + NN_STACKS; h-- > t->chain; )
        for (int i = h->end - 1; i >= h->begin; i--)
            for (int m = 0; m <= t->slots; m++) fill_cell(t, h, i, t->n + 1, m);
}

/* The choices for i .. j - 1, as in fill_cell but of this stack alone, into r.  Returns the slots
 * that are left. */
static int collect(const table *t, const chain *h, int i, int j, int m, nn_recompute *r)
{
    const bool top = j > t->n;
    const int end = top ? h->end : j;
    while (i < end) {
        const int choice = (top ? top_at(t, i, m) : inner_at(t, h, i, j, m))->choice;
        if (top && i == h->begin) m -= slots_of(t, h->before);
        if (choice < AG_KEEPS) {
            r->keep[i] = (ag_keep)choice;
            m -= slots_of(t, t->c->block[i++].kept[choice]);
            continue;
        }
        const int s = i + choice - AG_KEEPS;
        nn_recompute_add(r, i, s);
        collect(t, h, i, s, m, r);
        m -= slots_of(t, t->c->block[s - 1].output);
        i = s;
    }
    return m;
}

static bool all_equal(const nn_block_cost *block, int n)
{
    for (int i = 1; i < n; i++)
        if (memcmp(&block[i], &block[0], sizeof block[0])) return false;
    return true;
}

/* About a second's work. */
static int usual_slots(const table *t)
{
    double work = 0;
    for (int s = 0; s < NN_STACKS; s++) {
        const double n = t->chain[s].end - t->chain[s].begin;
        work += (n + (t->chain[s].equal ? n : n * n / 2)) * (n / 3 + AG_KEEPS);
    }
    const double slots = 4e8 / work;
    return slots > 4000 ? 4000 : slots < 100 ? 100 : (int)slots;
}

static int table_init(table *t, const nn_stacks_cost *c, double bytes, int slots)
{
    *t = (table){ .c = c };
    for (int s = 0; s < NN_STACKS; s++) {
        const int n = c->stack[s].n;
        t->chain[s] = (chain){ .begin = t->n, .end = t->n + n, .before = c->before[s],
                               .equal = all_equal(c->block + t->n, n) };
        t->n += n;
    }
    t->slots = slots ? slots : usual_slots(t);
    t->unit = bytes / t->slots;
    const size_t n = (size_t)t->n, row = (size_t)(t->slots + 1);
    t->sum = ag_fault_now() ? NULL : calloc(n + 1, sizeof *t->sum);
    t->top = malloc((n + 1) * row * sizeof *t->top);
    if (!t->sum || !t->top) return AG_ENOMEM;
    for (size_t i = 0; i < n; i++) t->sum[i + 1] = t->sum[i] + c->block[i].work;
    for (chain *h = t->chain; h < t->chain + NN_STACKS; h++) {
        const size_t len = (size_t)(h->end - h->begin),
            pairs = h->equal ? len + 1 : len * (len + 1) / 2;
        h->inner = malloc(pairs * row * sizeof *h->inner);
        if (!h->inner) return AG_ENOMEM;
    }
    return AG_OK;
}

static void table_release(table *t)
{
    for (int s = 0; s < NN_STACKS; s++) free(t->chain[s].inner);
    free(t->sum);
    free(t->top);
}

int nn_recompute_plan(const nn_stacks_cost *c, double bytes, int slots, nn_recompute **ret_r,
                      double *ret_extra, ag_err *err)
{
    table t;
    const int n = nn_blocks_count(c->stack);
    if (!(bytes > 0))
        return ag_err_set(err, AG_ERANGE, "recompute: no memory is left for %d blocks", n);
    int r = table_init(&t, c, bytes, slots);
    nn_recompute *plan = r ? NULL : nn_recompute_new(c->stack, AG_KEEP_ALL, 0);
    if (plan) {
        fill(&t);
        const double work = (double)top_at(&t, 0, t.slots)->work;
        if (isinf(work)) {
            r = ag_err_set(err, AG_ERANGE, "recompute: %d blocks do not fit in %.1f MB under any "
                           "plan", n, 1e-6 * bytes);
        } else {
            int m = t.slots;
            for (const chain *h = t.chain; h < t.chain + NN_STACKS; h++)
                m = collect(&t, h, h->begin, n + 1, m, plan);
            if (ret_extra) *ret_extra = work - t.sum[n];
            *ret_r = plan;
            plan = NULL;
        }
    } else {
        r = ag_err_set(err, AG_ENOMEM, "out of memory for a recomputation plan");
    }
    nn_recompute_free(plan);
    table_release(&t);
    return r;
}
