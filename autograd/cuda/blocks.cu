/*
 * blocks.cu -- the tiles of patterns on the device.  A pattern is known by its id, which no other
 * one has: the tables of one that is freed go with it.
 */
#include "blocks.cuh"
#include "cuda.h"

#include <stdlib.h>

const ag_device *ag_cuda_device(void);   /* device.cu */

struct kept_tables {
    uint64_t      id;
    void         *memory;
    size_t        bytes;
    block_tables  tables;
    kept_tables  *next;
};

static kept_tables *kept;

static void tables_free(kept_tables *x)
{
    if (x->memory) ag_cuda_device()->memory.free(x->memory, x->bytes);
    free(x);
}

static void forget(uint64_t id)
{
    for (kept_tables **at = &kept; *at; at = &(*at)->next)
        if ((*at)->id == id) {
            kept_tables *x = *at;
            *at = x->next;
            tables_free(x);
            return;
        }
}

void block_tables_close(void)
{
    while (kept) forget(kept->id);
}

/* Copies n elements to the device memory behind *at. */
template <class T> static const T *send(char **at, const T *x, int64_t n)
{
    T *to = (T *)*at;
    if (n > 0) ag_cuda_device()->write(to, x, (size_t)n * sizeof *x);
    *at += ((size_t)n * sizeof *x + 15) / 16 * 16;
    return to;
}

/* All arrays in one block of memory, each aligned to 16 bytes. */
static bool tables_send(kept_tables *x, const pattern_tiles &y)
{
    enum { ARRAYS = 6 };
    x->bytes = (size_t)y.n_part * sizeof *y.part + (size_t)y.n_tile * sizeof *y.tile +
        (size_t)y.n_step * sizeof *y.step + (size_t)y.n_list * sizeof *y.list +
        (size_t)y.n_mask * sizeof *y.mask + (size_t)y.n_where * sizeof *y.where + 16 * ARRAYS;
    x->memory = ag_cuda_device()->memory.alloc(x->bytes);
    if (!x->memory) return false;
    char *at = (char *)x->memory;
    block_tables *t = &x->tables;
    t->layouts = y.layouts;
    t->parts = y.parts;
    t->most_tiles[0] = y.most_tiles[0];
    t->most_tiles[1] = y.most_tiles[1];
    t->most_steps = y.most_steps;
    t->part = send(&at, y.part, y.n_part);
    t->tile = send(&at, y.tile, y.n_tile);
    t->step = send(&at, y.step, y.n_step);
    t->list = send(&at, y.list, y.n_list);
    t->mask = send(&at, y.mask, y.n_mask);
    t->where = send(&at, y.where, y.n_where);
    return true;
}

bool block_tables_of(const ag_pattern *p, block_tables *ret)
{
    for (kept_tables *x = kept; x; x = x->next)
        if (x->id == p->id) {
            *ret = x->tables;
            return true;
        }
    pattern_tiles y = {};
    kept_tables *x = (kept_tables *)calloc(1, sizeof *x);
    const bool made = x && pattern_tiles_new(&y, p);
    const bool sent = made && tables_send(x, y);
    pattern_tiles_free(&y);
    if (!sent) {
        free(x);
        ag_cuda_fail("out of memory for the tiles of an attention pattern of %lld positions",
                     (long long)p->n);
        return false;
    }
    x->id = p->id;
    x->next = kept;
    kept = x;
    ag_pattern_on_free(forget);
    *ret = x->tables;
    return true;
}
