/* kv_cache.h -- keys and values of the positions that a decoder has seen, and of its source. */
#ifndef AG_KV_CACHE_H
#define AG_KV_CACHE_H

#include "../op.h"
#include "../ops.h"

struct ag_kv_cache {
    const struct ag_device *device;  /* whose memory keys, values and what is kept are in */
    ag_dtype dtype;
    int      layers;
    int64_t  batch, capacity, d_k, d_v, length;  /* d_k = heads * d_qk, d_v likewise; length in
                                                  * positions */
    size_t   bytes;
    char    *k, *v;                  /* [layers, batch, capacity, d_k], [.., d_v] */

    int64_t  source_length;          /* positions of a source */
    size_t   source_bytes;
    char    *source;                 /* [layers, batch, source_length, d_k], then [.., d_v]; or
                                      * NULL */
    int32_t *source_lengths;         /* [batch], on the host */
    int32_t *lengths_there;          /* the same where kernels read it */
    bool     source_in_row;          /* it is no source apart: it came before the positions that
                                      * `length` counts, in the first call and up to its own length,
                                      * and capacity is of both */

    /* What layers hand on from one step to the next.  A step reads one side and writes the other;
     * they change places when it is over, so a step that fails leaves no trace. */
    int      side;                   /* that is read */
    struct ag_kept {
        int     slots;
        int64_t rows, width;
        size_t  bytes;               /* of both sides */
        char   *side[2];             /* [layers, slots, batch, rows, width] */
    } past,                          /* the last rows that went into convolutions over time */
      state;                         /* of recurrent layers; rows is 1 */

    /* Of attention by hashing. */
    int64_t  rounds, heads, rotations;
    size_t   hash_bytes;
    int32_t *bucket;                 /* [layers, batch, heads, rounds, capacity] */
    char    *rotation;               /* [layers, heads, rotations], made by the first step */
};

/* Where the next position of item b lies, and how many of `t` new ones are no padding. */
int64_t ag_kv_cache_next(const ag_kv_cache *c, int64_t b);
int64_t ag_kv_cache_new_rows(const ag_kv_cache *c, int64_t b, int64_t t);
/* AG_ERANGE where t new positions of each item do not fit. */
int ag_kv_cache_check_room(const ag_call *c, const ag_kv_cache *kv, int64_t t);
/* Of a source that is kept: its lengths, from the host. */
void ag_kv_cache_keep_lengths(const ag_kv_cache *c, const int32_t *lengths);

#endif
