/*
 * group.cuh -- entries grouped by an integer key, those of a key in their order: what sums by index
 * are made from, so that each is added up in one order.
 *
 * It is a stable radix sort of several segments at once, 8 bits of the key a pass and two launches
 * each: as many passes as the largest key has digits.  There is no array as long as there are keys
 * unless starts are asked for.
 */
#ifndef AG_CUDA_GROUP_CUH
#define AG_CUDA_GROUP_CUH

#include "launch.cuh"

/* Entry i of segment s has the key key[(i / inner * segments + s) * inner + i % inner]: of
 * choice[rows,blocks,picks] the segments are the blocks and inner is picks. */
struct group_keys {
    const int32_t *key;
    int64_t segments, n, inner;      /* n: entries of a segment */
    int64_t keys;                    /* a key is 0 .. keys - 1 */
};

struct groups {
    const int32_t *entry, *key;      /* [segments,n], by key: which entry, and its key */
};

/* Bytes of device memory for group_entries, a multiple of 16. */
size_t group_bytes(const group_keys *g);
/* ret lies in `memory`, of group_bytes. */
void group_entries(const group_keys *g, void *memory, groups *ret);
/* The same, and first[segments, keys + 1]: the entries of key k of segment s are number first[s,k] to
 * first[s,k+1] - 1 of the segment, in that order.  Up to 256 keys it takes no launch more. */
void group_starts(const group_keys *g, void *memory, groups *ret, int32_t *first);

#endif
