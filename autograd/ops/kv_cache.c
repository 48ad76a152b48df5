#include "kv_cache.h"

#include "../device.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

ag_kv_cache *ag_kv_cache_new(const ag_device *device, ag_dtype dtype, int layers, int64_t batch,
                             int64_t capacity, int64_t d_k, int64_t d_v)
{
    const int64_t n = ag_shape_size(&AG_SHAPE(layers, batch, capacity, d_k + d_v));
    const size_t one = ag_dtype_size(dtype);
    if (n > INT64_MAX / 8) return NULL;
    ag_kv_cache *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    const size_t rows = (size_t)layers * (size_t)batch * (size_t)capacity;
    *c = (ag_kv_cache){ .device = device, .dtype = dtype, .layers = layers, .batch = batch,
                        .capacity = capacity, .d_k = d_k, .d_v = d_v, .bytes = (size_t)n * one };
    c->k = ag_device_alloc(c->device, c->bytes);
    if (!c->k) {
        free(c);
        return NULL;
    }
    c->v = c->k + rows * (size_t)d_k * one;
    return c;
}

static int keep(const ag_kv_cache *c, int slots, int64_t rows, int64_t width, struct ag_kept *kept)
{
    assert(!kept->side[0] && slots >= 0 && rows >= 0);
    const int64_t n = ag_shape_size(&AG_SHAPE((int64_t)c->layers * slots, c->batch, rows, width));
    *kept = (struct ag_kept){ .slots = slots, .rows = rows, .width = width };
    if (n == 0) return AG_OK;
    if (n > INT64_MAX / 16) return AG_ENOMEM;
    kept->bytes = 2 * (size_t)n * ag_dtype_size(c->dtype);
    kept->side[0] = ag_device_alloc(c->device, kept->bytes);
    if (!kept->side[0]) return AG_ENOMEM;
    kept->side[1] = kept->side[0] + kept->bytes / 2;
    return AG_OK;
}

int ag_kv_cache_keep(ag_kv_cache *c, int slots, int64_t rows, int64_t width)
{
    return keep(c, slots, rows, width, &c->past);
}

int ag_kv_cache_keep_state(ag_kv_cache *c, int slots, int64_t width)
{
    return keep(c, slots, 1, width, &c->state);
}

static size_t lengths_bytes(const ag_kv_cache *c)
{
    return (size_t)c->batch * sizeof *c->source_lengths;
}

int ag_kv_cache_source(ag_kv_cache *c, int64_t length)
{
    assert(!c->source && length >= 1);
    const int64_t n = ag_shape_size(&AG_SHAPE(c->layers, c->batch, length, c->d_k + c->d_v));
    if (n > INT64_MAX / 8) return AG_ENOMEM;
    c->source_length = length;
    c->source_bytes = (size_t)n * ag_dtype_size(c->dtype);
    c->source = ag_device_alloc(c->device, c->source_bytes);
    c->source_lengths = calloc((size_t)c->batch, sizeof *c->source_lengths);
    c->lengths_there = c->device ? ag_device_alloc(c->device, lengths_bytes(c)) : c->source_lengths;
    return c->source && c->lengths_there ? AG_OK : AG_ENOMEM;
}

int ag_kv_cache_keep_buckets(ag_kv_cache *c, int64_t rounds, int64_t heads, int64_t rotations)
{
    assert(!c->bucket);
    const int64_t n = ag_shape_size(&AG_SHAPE(c->layers * c->batch, heads, rounds, c->capacity));
    const int64_t m = ag_shape_size(&AG_SHAPE(c->layers, heads, rotations));
    if (n > INT64_MAX / 16 || m > INT64_MAX / 16) return AG_ENOMEM;
    c->rounds = rounds;
    c->heads = heads;
    c->rotations = rotations;
    const size_t first = ((size_t)n * sizeof(int32_t) + 63) / 64 * 64;
    c->hash_bytes = first + (size_t)m * ag_dtype_size(c->dtype);
    if (c->hash_bytes == 0) return AG_OK;
    char *p = ag_device_alloc(c->device, c->hash_bytes);
    if (!p) return AG_ENOMEM;
    c->bucket = (int32_t *)p;
    c->rotation = p + first;
    return AG_OK;
}

int ag_kv_cache_source_in_row(ag_kv_cache *c, int64_t length)
{
    assert(!c->source_lengths && length >= 1 && length <= c->capacity);
    c->source_in_row = true;
    c->source_length = length;
    c->source_lengths = calloc((size_t)c->batch, sizeof *c->source_lengths);
    return c->source_lengths ? AG_OK : AG_ENOMEM;
}

void ag_kv_cache_keep_lengths(const ag_kv_cache *c, const int32_t *lengths)
{
    memcpy(c->source_lengths, lengths, lengths_bytes(c));
    if (c->device) c->device->write(c->lengths_there, lengths, lengths_bytes(c));
}

void ag_kv_cache_source_lengths(ag_kv_cache *c, const int32_t *lengths)
{
    assert(c->source_in_row && c->length == 0);
    memcpy(c->source_lengths, lengths, (size_t)c->batch * sizeof *lengths);
}

int64_t ag_kv_cache_next(const ag_kv_cache *c, int64_t b)
{
    return c->length && c->source_in_row ? c->length + c->source_lengths[b] : c->length;
}

int64_t ag_kv_cache_new_rows(const ag_kv_cache *c, int64_t b, int64_t t)
{
    const bool padded = c->length == 0 && c->source_in_row;
    return padded ? t - (c->source_length - c->source_lengths[b]) : t;
}

int ag_kv_cache_check_room(const ag_call *c, const ag_kv_cache *kv, int64_t t)
{
    const bool behind = kv->length && kv->source_in_row;     /* the longest source may be whole */
    const int64_t room = kv->capacity - (behind ? kv->source_length : 0);
    if (kv->length + t <= room) return AG_OK;
    return ag_fail(c->tape, AG_ERANGE, "%s: %lld positions and %lld new ones do not fit into a "
                   "cache of %lld", c->op->name, (long long)kv->length, (long long)t,
                   (long long)room);
}

void ag_kv_cache_free(ag_kv_cache *c)
{
    if (!c) return;
    ag_device_free(c->device, c->k, c->bytes);
    ag_device_free(c->device, c->source, c->source_bytes);
    if (c->device) ag_device_free(c->device, c->lengths_there, lengths_bytes(c));
    free(c->source_lengths);
    ag_device_free(c->device, c->bucket, c->hash_bytes);
    ag_device_free(c->device, c->past.side[0], c->past.bytes);
    ag_device_free(c->device, c->state.side[0], c->state.bytes);
    free(c);
}

void ag_kv_cache_reset(ag_kv_cache *c, int64_t length)
{
    assert(length >= 0 && length <= c->length);
    assert(length == 0 || length == c->length || (!c->past.side[0] && !c->state.side[0]));
    c->length = length;
}

int64_t ag_kv_cache_length(const ag_kv_cache *c) { return c->length; }

void ag_kv_cache_advance(ag_kv_cache *c, int64_t n)
{
    assert(c->length + n <= c->capacity);
    c->length += n;
    c->side = !c->side;
}

bool ag_kv_cache_takes_token(const ag_kv_cache *c)
{
    return c->batch == 1 && c->length > 0 && c->length < c->capacity && !c->source &&
           !c->source_in_row && !c->past.bytes && !c->state.bytes && !c->hash_bytes;
}
