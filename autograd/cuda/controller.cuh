/*
 * controller.cuh -- the 1-in-N controller (ag_controller in kernels.h) in a block of threads: what
 * controller.cu and choose.cu share.
 *
 * A block of threads holds the scores of a few rows and blocks of choices, a tile, in shared memory.
 * Noise is added there 64 columns at a time, as the generator gives it; then as many lanes as a
 * block has choices, at most a warp, pick among them.  So scores are read once, and noise is never
 * stored.
 */
#ifndef AG_CUDA_CONTROLLER_CUH
#define AG_CUDA_CONTROLLER_CUH

#include <math.h>

#include "launch.cuh"
#include "number.cuh"

enum { THREADS = 256, TILE = 4096 };                     /* a block; numbers of a tile, about */

/* How the work is cut, and what is done with the noise. */
struct tiling {
    int64_t rows, blocks, units;     /* units = blocks * n */
    int n, lanes;                    /* lanes for a block: a power of two */
    int tile_rows, tile_blocks, cols;                    /* of a tile; cols = tile_blocks * n */
    int row_threads;                 /* threads side by side in a row: a power of two */
    int64_t across;                  /* tiles side by side */
    bool noisy, shift;               /* shift: the noise is in the softmax, too */
    bool apart;                      /* noisy scores are held apart from z: both are needed */
    float factor, inv_t;             /* of the noise; of the softmax */
    ag_noise noise;
};

/* The tile of this block of threads, without what lies outside. */
struct tile {
    int64_t row, block;              /* the first */
    int rows, blocks, cols;
    float *z, *score;                /* [tile_rows, t.cols], may be one */
};

static int at_least(int64_t n, int most)                 /* a power of two */
{
    int p = 1;
    while (p < n && p < most) p *= 2;
    return p;
}

static tiling tiling_of(const ag_controller *c, bool apart)
{
    const int64_t wide = c->n < 64 ? 64 / c->n : 1;
    tiling t = {};
    t.rows = c->rows;
    t.blocks = c->blocks;
    t.units = c->blocks * c->n;
    t.n = (int)c->n;
    t.lanes = at_least(c->n, 32);
    t.tile_blocks = (int)(wide < c->blocks ? wide : c->blocks);
    t.cols = t.tile_blocks * t.n;
    t.tile_rows = t.cols < TILE ? TILE / t.cols : 1;
    if (t.tile_rows > c->rows) t.tile_rows = (int)c->rows;
    t.row_threads = at_least(t.cols, THREADS);
    t.across = (c->blocks + t.tile_blocks - 1) / t.tile_blocks;
    t.noisy = c->temperature != 0;
    t.shift = t.noisy && c->relaxed;
    t.apart = apart && t.noisy && !c->relaxed;
    t.factor = c->relaxed ? 1 : (float)c->temperature;
    t.inv_t = t.shift ? (float)(1 / c->temperature) : 1;
    t.noise = c->noise;
    return t;
}

static unsigned tiles(const tiling &t)
{
    return (unsigned)((t.rows + t.tile_rows - 1) / t.tile_rows * t.across);
}

/* Of `arrays` tiles. */
static size_t tile_bytes(const tiling &t, int arrays)
{
    return (size_t)(t.tile_rows * t.cols * arrays) * sizeof(float);
}

static __device__ tile tile_here(const tiling &t, float *shared)
{
    tile s;
    s.row = blockIdx.x / t.across * t.tile_rows;
    s.block = blockIdx.x % t.across * t.tile_blocks;
    s.rows = (int)min((int64_t)t.tile_rows, t.rows - s.row);
    s.blocks = (int)min((int64_t)t.tile_blocks, t.blocks - s.block);
    s.cols = s.blocks * t.n;
    s.z = shared;
    s.score = shared + (t.apart ? t.tile_rows * t.cols : 0);
    return s;
}

/* Gumbel noise, -log(-log u) with u between 1e-6 and 1 - 1e-6. */
static __device__ float gumbel(uint32_t bits)
{
    return -logf(fminf(fmaxf(-logf(ag_uniform(bits)), 1.0000005e-6f), 13.815511f));
}

/* score = z + factor * noise, a thread for the four numbers that the generator makes together */
static __device__ void tile_noise(const tiling &t, const tile &s)
{
    const int64_t from = s.block * t.n, stride = ag_noise_stride(t.units);
    const int groups = (int)((from + s.cols - 1) / 64 - from / 64 + 1);
    const ag_noise z = ag_noise_now(t.noise);
    for (int i = (int)threadIdx.x / 16; i < s.rows * groups; i += THREADS / 16) {
        const int row = i / groups;
        const int64_t group = from / 64 + i % groups;
        uint32_t w[4];
        ag_philox(z.seed, z.step, z.site,
                  (uint64_t)((z.row0 + s.row + row) * (stride / 64) + group) * 16 +
                  threadIdx.x % 16, w);
        for (int k = 0; k < 4; k++) {
            const int64_t col = group * 64 + k * 16 + threadIdx.x % 16 - from;
            const int at = row * t.cols + (int)col;
            if (col >= 0 && col < s.cols) s.score[at] = s.z[at] + t.factor * gumbel(w[k]);
        }
    }
}

/* z of a tile, of z(row, column); other kinds of z have an overload. */
template <class Z> static __device__ void tile_fill(const tiling &t, const tile &s, const Z &z)
{
    const int down = (int)threadIdx.x / t.row_threads, across = (int)threadIdx.x % t.row_threads;
    for (int r = down; r < s.rows; r += THREADS / t.row_threads)
        for (int c = across; c < s.cols; c += t.row_threads)
            s.z[r * t.cols + c] = z(s.row + r, s.block * t.n + c);
}

/* The tile with its scores. */
template <class Z>
static __device__ tile tile_load(const tiling &t, const Z &z, bool noisy, float *shared)
{
    const tile s = tile_here(t, shared);
    tile_fill(t, s, z);
    __syncthreads();
    if (noisy) {
        tile_noise(t, s);
        __syncthreads();
    }
    return s;
}

/* --- one block of choices by t.lanes lanes ------------------------------------------------------ */

/* The block that these lanes have in round i; every lane takes part in every round. */
struct place {
    bool on;                         /* false: none; nothing is read or written then */
    int lane;                        /* of t.lanes */
    int at;                          /* of its first number in the tile */
    int64_t block;                   /* in rows * blocks */
};

static __device__ int rounds(const tiling &t, const tile &s)
{
    const int at_once = THREADS / t.lanes;
    return (s.rows * s.blocks + at_once - 1) / at_once;
}

static __device__ place place_of(const tiling &t, const tile &s, int i)
{
    const int item = i * (THREADS / t.lanes) + (int)threadIdx.x / t.lanes;
    place p;
    p.on = item < s.rows * s.blocks;
    p.lane = (int)threadIdx.x % t.lanes;
    p.at = item / s.blocks * t.cols + item % s.blocks * t.n;
    p.block = (s.row + item / s.blocks) * t.blocks + s.block + item % s.blocks;
    return p;
}

#define EACH_CHOICE(j, t, p) for (int j = (p).lane; (p).on && j < (t).n; j += (t).lanes)

static __device__ float group_max(const tiling &t, float v)
{
    for (int o = t.lanes / 2; o; o /= 2) v = fmaxf(v, __shfl_xor_sync(AG_WARP, v, o));
    return v;
}

static __device__ float group_sum(const tiling &t, float v)
{
    for (int o = t.lanes / 2; o; o /= 2) v += __shfl_xor_sync(AG_WARP, v, o);
    return v;
}

/* The place of the largest, the lowest of equals; of none but NaN, 0. */
static __device__ int best_of(const tiling &t, const place &p, const float *score)
{
    float best = -INFINITY;
    int at = t.n;
    EACH_CHOICE(j, t, p)
        if (score[j] > best || (score[j] == best && j < at)) best = score[j], at = j;
    for (int o = t.lanes / 2; o; o /= 2) {
        const float other = __shfl_xor_sync(AG_WARP, best, o);
        const int there = __shfl_xor_sync(AG_WARP, at, o);
        if (other > best || (other == best && there < at)) best = other, at = there;
    }
    return at < t.n ? at : 0;
}

/* e = exp((s - max s) / t) replaces s; returns 1 / sum of e. */
static __device__ float block_exp(const tiling &t, const place &p, float *s)
{
    float top = -INFINITY, sum = 0;
    EACH_CHOICE(j, t, p) top = fmaxf(top, s[j]);
    top = group_max(t, top);
    EACH_CHOICE(j, t, p) {
        s[j] = expf((s[j] - top) * t.inv_t);
        sum += s[j];
    }
    return 1 / group_sum(t, sum);
}

#endif
