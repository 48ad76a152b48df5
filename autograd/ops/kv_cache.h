/* kv_cache.h -- keys and values of the positions that a decoder has seen. */
#ifndef AG_KV_CACHE_H
#define AG_KV_CACHE_H

#include "../ops.h"

struct ag_kv_cache {
    ag_dtype dtype;
    int      layers;
    int64_t  batch, capacity, d_k, d_v, length;  /* d_k = heads * d_qk, d_v likewise; length in
                                                  * positions */
    size_t   bytes;
    char    *k, *v;                  /* [layers, batch, capacity, d_k], [.., d_v] */

    /* The last rows that went into convolutions over time.  A step reads one side and writes the
     * other; they change places when it is over, so a step that fails leaves no trace. */
    int      past_slots, side;
    int64_t  past_rows, past_width;
    size_t   past_bytes;             /* of both sides */
    char    *past[2];                /* [layers, past_slots, batch, past_rows, past_width] */
};

#endif
