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
};

#endif
