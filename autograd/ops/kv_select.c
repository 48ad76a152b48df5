/* kv_select.c -- the sequences of a cache in another order, as a beam search wants them. */
#include "kv_cache.h"

#include <stdlib.h>
#include <string.h>

/* In each group of batch rows of `size` bytes, row i gets the first `used` bytes of row[i]. */
static void move(char *at, int64_t groups, int64_t batch, size_t size, size_t used,
                 const int32_t *row, char *scratch)
{
    for (int64_t g = 0; g < groups; g++, at += (size_t)batch * size) {
        for (int64_t i = 0; i < batch; i++)
            if (row[i] != i)
                memcpy(scratch + (size_t)i * used, at + (size_t)row[i] * size, used);
        for (int64_t i = 0; i < batch; i++)
            if (row[i] != i) memcpy(at + (size_t)i * size, scratch + (size_t)i * used, used);
    }
}

static void move_kept(const ag_kv_cache *c, const struct ag_kept *k, const int32_t *row,
                      char *scratch)
{
    const size_t size = (size_t)(k->rows * k->width) * ag_dtype_size(c->dtype);
    if (k->side[c->side])
        move(k->side[c->side], (int64_t)c->layers * k->slots, c->batch, size, size, row, scratch);
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
    char *scratch = malloc((size_t)(c->batch * width) * one);
    if (!scratch) return AG_ENOMEM;
    move(c->k, c->layers, c->batch, (size_t)(c->capacity * c->d_k) * one,
         (size_t)(length * c->d_k) * one, row, scratch);
    move(c->v, c->layers, c->batch, (size_t)(c->capacity * c->d_v) * one,
         (size_t)(length * c->d_v) * one, row, scratch);
    if (c->bucket) move((char *)c->bucket, c->layers, c->batch, hashes, hashes, row, scratch);
    move_kept(c, &c->past, row, scratch);
    move_kept(c, &c->state, row, scratch);
    if (c->source_in_row)
        move((char *)c->source_lengths, 1, c->batch, sizeof *c->source_lengths,
             sizeof *c->source_lengths, row, scratch);
    free(scratch);
    return AG_OK;
}
