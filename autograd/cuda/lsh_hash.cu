/*
 * lsh_hash.cu -- the hash of attention by hashing: bucket = argmax of [q R, -q R] (ops/lsh.c).
 *
 * A block has TILE positions of a pair and the columns of R of one round, 16 C of them at a time: a
 * product whose results never leave the registers.  For half = factor/2 columns it does 2 d half
 * operations for each position and round, reads d numbers of q and writes one, so the operations
 * set the pace, and rows of q come from memory once, for further rounds from L2.  Of equal numbers
 * the one with the lowest index wins, in whatever order they come.
 */
#include "lsh.cuh"

constexpr int THREADS = 256, DEPTH = 32 /* of d at a time */, ROW = DEPTH + 4;

struct hash {
    int      heads, t, d, rounds, half[2], factor, buckets;
    int64_t  pairs;
    bool     shared;                 /* the rotations are those of a head, not of a pair */
    const int32_t *lengths;
    const float *q, *r;              /* [batch,t,heads*d], [pairs or heads][d,columns] */
    int32_t *bucket;                 /* [rounds,pairs,t] */
    int      columns;                /* of R: rounds * (half[0] + half[1]) */
};

DEVICE int lane_x(void) { return (int)threadIdx.x % 16; }
DEVICE int lane_y(void) { return (int)threadIdx.x / 16; }

struct best { float top; int at; };
DEVICE void best_add(best *b, float x, int at)
{
    if (x > b->top || (x == b->top && at < b->at)) *b = { x, at };
}

/* q's rows i0 .. and R's columns j0 .. of its first[0 .. n - 1], numbers k0 .. of d, to shared
 * memory, 0 beyond. */
template <int C>
static __device__ void hash_load(const hash &h, const float *q, int i0, const float *r, int j0,
                                 int n, int k0, float *sq, float *sr)
{
    for (int x = (int)threadIdx.x; x < TILE * DEPTH; x += THREADS) {
        const int i = i0 + x / DEPTH, k = k0 + x % DEPTH;
        sq[x / DEPTH * ROW + x % DEPTH] =
            i < h.t && k < h.d ? q[(int64_t)i * h.heads * h.d + k] : 0;
    }
    for (int x = (int)threadIdx.x; x < DEPTH * 16 * C; x += THREADS) {
        const int k = k0 + x / (16 * C), j = j0 + x % (16 * C);
        sr[x] = k < h.d && j < n ? r[(int64_t)k * h.columns + j] : 0;
    }
}

/* The best of columns 0 .. n - 1 of r, and of what is minus them, for rows y + 16 r of the tile;
 * the same in the 16 threads that share a row. */
template <int C>
static __device__ void hash_best(const hash &h, const float *q, int i0, const float *r, int n,
                                 float *sq, float *sr, best b[4])
{
    AG_UNROLL for (int m = 0; m < 4; m++) b[m] = { -INFINITY, 2 * n };
    for (int j0 = 0; j0 < n; j0 += 16 * C) {
        float sum[4][C] = {};
        for (int k0 = 0; k0 < h.d; k0 += DEPTH) {
            __syncthreads();
            hash_load<C>(h, q, i0, r, j0, n, k0, sq, sr);
            __syncthreads();
            AG_UNROLL_BY(2) for (int k = 0; k < DEPTH; k += 4) {
                __align__(16) float a[4][4], v[4][C];
                AG_UNROLL for (int m = 0; m < 4; m++)
                    *(float4 *)a[m] = *(const float4 *)(sq + (lane_y() + 16 * m) * ROW + k);
                AG_UNROLL for (int z = 0; z < 4; z++)
                    AG_UNROLL for (int c = 0; c < C; c++)
                        v[z][c] = sr[(k + z) * 16 * C + lane_x() + 16 * c];
                AG_UNROLL for (int m = 0; m < 4; m++)
                    AG_UNROLL for (int z = 0; z < 4; z++)
                        AG_UNROLL for (int c = 0; c < C; c++) sum[m][c] += a[m][z] * v[z][c];
            }
        }
        AG_UNROLL for (int m = 0; m < 4; m++)
            AG_UNROLL for (int c = 0; c < C; c++) {
                const int j = j0 + lane_x() + 16 * c;
                if (j >= n) continue;
                best_add(&b[m], sum[m][c], j);
                best_add(&b[m], -sum[m][c], n + j);
            }
    }
    AG_UNROLL for (int m = 0; m < 4; m++)
        for (int x = 8; x > 0; x /= 2) {
            const float top = __shfl_xor_sync(AG_WARP, b[m].top, x);
            best_add(&b[m], top, __shfl_xor_sync(AG_WARP, b[m].at, x));
        }
}

template <int C> static __global__ void __launch_bounds__(THREADS) lsh_hash_run(hash h, int tiles)
{
    AG_SHARED(float, sq);            /* [TILE][ROW] */
    float *sr = sq + TILE * ROW;     /* [DEPTH][16 C] */
    const int64_t pair = blockIdx.x / tiles;
    const int i0 = (int)(blockIdx.x % tiles) * TILE, round = (int)blockIdx.y;
    const int length = h.lengths ? h.lengths[pair / h.heads] : h.t;
    const float *q = h.q + (pair / h.heads * h.t * h.heads + pair % h.heads) * h.d;
    const float *r = h.r + (h.shared ? pair % h.heads : pair) * h.d * h.columns +
                     round * (h.half[0] + h.half[1]);
    best low[4], high[4];
    hash_best<C>(h, q, i0, r, h.half[0], sq, sr, low);
    if (h.half[1]) hash_best<C>(h, q, i0, r + h.half[0], h.half[1], sq, sr, high);
    AG_UNROLL for (int m = 0; m < 4; m++) {
        const int i = i0 + lane_y() + 16 * m;
        /* no number is the largest where all are NaN: the first */
        int at = low[m].at % (2 * h.half[0]);
        if (h.half[1]) at += h.factor * (high[m].at % (2 * h.half[1]));
        if (i < h.t && lane_x() == 0)
            h.bucket[(round * h.pairs + pair) * h.t + i] = i < length ? at : h.buckets - 1;
    }
}

template <int C> static void run(const hash &h)
{
    const int tiles = (h.t + TILE - 1) / TILE;
    AG_LAUNCH(lsh_hash_run<C>, dim3((unsigned)(h.pairs * tiles), (unsigned)h.rounds), THREADS,
              (TILE * ROW + DEPTH * 16 * C) * sizeof(float), h, tiles);
}

void lsh_hash(const ag_lsh *a, const void *r, bool shared)
{
    hash h = {};
    h.heads = (int)a->heads, h.t = (int)a->t, h.d = (int)a->d_qk, h.rounds = (int)a->rounds;
    h.half[0] = (int)a->factor[0] / 2, h.half[1] = (int)a->factor[1] / 2;
    h.factor = (int)a->factor[0], h.buckets = (int)(a->factor[0] * a->factor[1] + 1);
    h.pairs = a->batch * a->heads, h.shared = shared, h.lengths = a->lengths;
    h.q = (const float *)a->q, h.r = (const float *)r, h.bucket = a->bucket;
    h.columns = h.rounds * (h.half[0] + h.half[1]);
    if (h.t == 0 || h.pairs == 0) return;
    const int half = h.half[0] > h.half[1] ? h.half[0] : h.half[1];
    half <= 16 ? run<1>(h) : half <= 32 ? run<2>(h) : run<4>(h);
}
