/*
 * blocks.cuh -- attention with a pattern: what its kernels share.  They walk over the tiles of
 * tiles.h in place of all keys, and have the arithmetic of those for all keys.
 *
 * A layout's parts run one after another, each with the sums that the one before left in f32: a
 * query's maximum, sum and output, dq, dk, dv.  The last part writes results.  So every number is
 * rounded once, and summed by one thread in an order that the pattern decides.
 *
 * Counted for `pairs` 64 x 64 steps and d = d_qk = d_v: forward 4 * 64^2 d operations a step,
 * backward 14 * 64^2 d; a step reads 128 d numbers, from L2 mostly, 16 bytes of its own and, where
 * it is not full, a mask of 512, which most steps share.  [local l, strided l] of n positions has
 * n / 64 tiles with l / 64 + 1 steps, and as many with half of n / (64 l) + 1: for n = 12288,
 * l = 128, d = 64 forward takes 192 (3 + 1.5) 2^20 = 0.9 G operations a head, a causal head 19.5 G.
 * Where there are two parts, one more pass over the sums: 8 (d_v + 2) bytes of a query forward,
 * 8 (2 d_qk + d_v) of a position backward.
 */
#ifndef AG_CUDA_BLOCKS_CUH
#define AG_CUDA_BLOCKS_CUH

#include "attention.cuh"
#include "tiles.h"

/* The tables of tiles.h on the device. */
struct block_tables {
    int layouts, parts;
    int most_tiles[TILE_SIDES], most_steps;
    const pattern_part *part;
    const pattern_tile *tile;
    const pattern_step *step;
    const int32_t      *list;
    const uint64_t     *mask;
    const int32_t      *where;
};

/* Those of a pattern: made when it comes first, kept until it is freed (blocks.cu).  False: an
 * error is kept. */
bool block_tables_of(const ag_pattern *p, block_tables *ret);
/* Before the device closes. */
void block_tables_close(void);

/* Sums between the parts of a layout. */
struct block_sums {
    float *o, *top, *sum;            /* [batch,heads,tq] rows, o of d_v */
    float *dq, *dk, *dv;             /* rows of positions, each of its d */
};

DEVICE int position_of(const block_tables &t, int first, int step, int i)
{
    return step ? first + i * step : t.list[first + i];
}

/* The i-th row or column as an index from `from` on, of n; -1: it is not there. */
template <class Line> DEVICE int index_of(const block_tables &t, const Line &x, int i, int from,
                                          int n)
{
    if (i >= x.n) return -1;
    const int at = position_of(t, x.first, x.step, i) - from;
    return at >= 0 && at < n ? at : -1;
}

/* The columns of a step that a row meets. */
DEVICE uint64_t row_bits(const block_tables &t, const pattern_step &s, int row)
{
    return s.mask < 0 ? ~(uint64_t)0 >> (TILE - s.n) : t.mask[(int64_t)s.mask * TILE + row];
}

/* What a block has to do: one tile of one part for one head. */
struct block_work {
    head_at e;
    pattern_tile tile;
    bool first, last;                /* of the parts */
    int  begin, end;                 /* steps, without those of columns that are not there */
    int  rows0, n_rows;              /* positions of rows that there are: from, how many */
};

/* The first step of those from begin to end that has no column before `limit`, if these ascend. */
DEVICE int steps_before(const block_tables &t, int begin, int end, int limit)
{
    while (begin < end) {
        const int mid = (begin + end) / 2;
        const pattern_step s = t.step[mid];
        if (position_of(t, s.first, s.step, 0) < limit) begin = mid + 1;
        else end = mid;
    }
    return begin;
}

/* The work of this block: the longest tiles of all heads come first.  False: there is none. */
template <class T>
DEVICE bool block_of(const attention<T> &a, const block_tables &t, int part, int side,
                     block_work *w)
{
    const unsigned heads = (unsigned)(a.batch * a.heads);
    w->e = head_of(blockIdx.x % heads, a.heads);
    const pattern_part *p = t.part + w->e.h % t.layouts * t.parts;
    const int i = (int)(blockIdx.x / heads), n_parts = p->n_parts;
    if (part >= n_parts || i >= p[part].side[side].n_tiles) return false;
    w->tile = t.tile[p[part].side[side].tile + i];
    w->first = part == 0;
    w->last = part + 1 == n_parts;
    w->rows0 = side == TILES_OF_QUERIES ? a.q_pos0 : 0;
    w->n_rows = side == TILES_OF_QUERIES ? a.tq : a.tk;
    if (w->tile.highest < w->rows0 || w->tile.lowest >= w->rows0 + w->n_rows) return false;
    w->begin = w->tile.begin;
    w->end = w->tile.end;
    if (w->tile.ascends)
        w->end = steps_before(t, w->begin, w->end,
                              side == TILES_OF_QUERIES ? a.tk : a.q_pos0 + a.tq);
    return true;
}

/* Columns of a step of keys that there are, by bits; asked by whole warps. */
template <class T>
DEVICE uint64_t keys_in(const attention<T> &a, const block_tables &t, const block_work &w,
                        const pattern_step &s)
{
    if (w.tile.highest < a.tk) return ~(uint64_t)0;      /* no query sees a later key */
    const int lane = (int)threadIdx.x % 32;
    const unsigned low = __ballot_sync(AG_WARP, index_of(t, s, lane, 0, a.tk) >= 0),
        high = __ballot_sync(AG_WARP, index_of(t, s, lane + 32, 0, a.tk) >= 0);
    return (uint64_t)high << 32 | low;
}

/* A dimension of the row that lies i rows after the first of a table of such rows. */
DEVICE int64_t row_of(head_at e, int rows, int i) { return e.bh * rows + i; }

/* --- a query alone: the keys that it sees, 32 at a time --------------------------------------- */

/* Walks over all columns that one row meets, of all parts: each time a lane has one, or -1. */
struct block_walk {
    const pattern_part *part;
    int side, position, p, s, end, half, row;

    __device__ __forceinline__ void begin(const block_tables &t, int h, int of, int at)
    {
        part = t.part + h % t.layouts * t.parts;
        side = of;
        position = at;
        p = s = end = half = row = 0;
    }
    /* False: there are no more.  Of columns from `from` on, n are there. */
    __device__ __forceinline__ bool next(const block_tables &t, int lane, int from, int n, int *ret)
    {
        for (;;) {
            if (s == end) {
                if (p == part->n_parts) return false;
                const int at = t.where[part[p++].side[side].where + position];
                s = t.tile[at / TILE].begin;
                end = t.tile[at / TILE].end;
                row = at % TILE;
                continue;
            }
            const pattern_step x = t.step[s];
            const uint32_t bits = (uint32_t)(row_bits(t, x, row) >> half);
            const int c = half + lane;
            s += half != 0;
            half ^= 32;
            if (!bits) continue;
            *ret = bits >> lane & 1 ? index_of(t, x, c, from, n) : -1;
            return true;
        }
    }
};

/* --- the kernels ------------------------------------------------------------------------------ */

/* As attention_tiles_fwd and its like (attention.cuh): f32 in blocks_fma.cu, 16 bits in
 * blocks_mma.cu; sums are NULL where no layout has two parts. */
template <class T>
bool block_tiles_fwd(const attention<T> &a, const block_tables &t, const block_sums &s);
template <class T>
bool block_tiles_bwd(const attention<T> &a, const block_tables &t, const block_sums &s);
template <class T> void block_any_fwd(const attention<T> &a, const block_tables &t);
template <class T> void block_any_bwd(const attention<T> &a, const block_tables &t);
template <class T> bool block_few_fwd(const attention<T> &a, const block_tables &t);

#endif
