/* kv_select.c -- the sequences of a cache in another order, as a beam search wants them. */
#include "../device.h"
#include "kv_cache.h"

#include <stdlib.h>
#include <string.h>

/* In each group of batch rows of `size` bytes, row i gets the first `used` bytes of row[i]. */
static void move(const ag_kv_cache *c, void *p, int64_t groups, size_t size, size_t used,
                 const int32_t *row, char *scratch)
{
    char *at = p;
    for (int64_t g = 0; g < groups; g++, at += (size_t)c->batch * size) {
        for (int64_t i = 0; i < c->batch; i++)
            if (row[i] != i)
                ag_device_copy(c->device, scratch + (size_t)i * used, at + (size_t)row[i] * size,
                               used);
        for (int64_t i = 0; i < c->batch; i++)
            if (row[i] != i)
                ag_device_copy(c->device, at + (size_t)i * size, scratch + (size_t)i * used, used);
    }
}

static void move_kept(const ag_kv_cache *c, const struct ag_kept *k, const int32_t *row,
                      char *scratch)
{
    const size_t size = (size_t)(k->rows * k->width) * ag_dtype_size(c->dtype);
    if (k->side[c->side])
        move(c, k->side[c->side], (int64_t)c->layers * k->slots, size, size, row, scratch);
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

int ag_kv_cache_select(ag_kv_cache *c, const int32_t *row)
{
    const size_t one = ag_dtype_size(c->dtype);
    const int64_t kept = most(c->past.rows * c->past.width, c->state.rows * c->state.width);
    const int64_t length = c->length + (c->source_in_row ? c->source_length : 0);
    const int64_t buckets = c->bucket ? c->heads * c->rounds * c->capacity : 0;
    const size_t hashes = (size_t)buckets * sizeof *c->bucket;
    const int64_t width = most(most(length * most(c->d_k, c->d_v), kept), buckets);
    bool same = true;
    for (int64_t i = 0; i < c->batch; i++) same = same && row[i] == i;
    if (same || width == 0) return AG_OK;
    const size_t bytes = (size_t)(c->batch * width) * one;
    char *scratch = ag_device_alloc(c->device, bytes);
    int32_t *lengths = c->source_in_row ? malloc((size_t)c->batch * sizeof *lengths) : NULL;
    if (!scratch || (c->source_in_row && !lengths)) {
        ag_device_free(c->device, scratch, bytes);
        free(lengths);
        return AG_ENOMEM;
    }
    if (lengths) memcpy(lengths, c->source_lengths, (size_t)c->batch * sizeof *lengths);
    move(c, c->k, c->layers, (size_t)(c->capacity * c->d_k) * one,
         (size_t)(length * c->d_k) * one, row, scratch);
    move(c, c->v, c->layers, (size_t)(c->capacity * c->d_v) * one,
         (size_t)(length * c->d_v) * one, row, scratch);
    if (c->bucket) move(c, c->bucket, c->layers, hashes, hashes, row, scratch);
    move_kept(c, &c->past, row, scratch);
    move_kept(c, &c->state, row, scratch);
    for (int64_t i = 0; i < c->batch && lengths; i++) c->source_lengths[i] = lengths[row[i]];
    free(lengths);
    ag_device_free(c->device, scratch, bytes);
    return AG_OK;
}
