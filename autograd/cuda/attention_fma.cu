/*
 * attention_fma.cu -- attention in f32 arithmetic: tiles of TILE queries and keys, heads of at most
 * 128.  f32 numbers are multiplied as they are; tensor cores would round them to 19 bits.
 *
 * 256 threads are 16 x 16.  Thread (x, y) has rows y + 16 r and columns x + 16 c of a tile of
 * scores, r, c = 0 .. 3, so that one block of noise serves its four columns, or its four rows where
 * these are keys.  Two products do all the work, both from rows in shared memory:
 *
 *     nt:  scores[64,64] = a[64,d] b[64,d]^T          q k^T, do v^T, or with keys as rows
 *     nn:  sums[64,D]    = w[64,64] b[64,D]           p v, ds k, p^T do, ds^T q
 *
 * each reading 2 x 16 bytes of shared memory for 16 multiply-adds.  Rows are d + 4 numbers apart:
 * what 8 neighbouring threads read lies in different banks.  The sums of a tile are made apart and
 * then added, so no number is the sum of thousands one by one.
 */
#include "attention.cuh"

constexpr int THREADS = 256, WEIGHTS = TILE + 4 /* from row to row of a tile of weights */;

#define BLOCKS(D) ((D) <= 64 ? 2 : 1)    /* of a processor at once */

template <int D> struct tile {
    enum { ROW = D + 4, SIZE = TILE * ROW, COLS = D / 16 /* of a row of D, for each thread */ };
};

DEVICE int lane_x(void) { return (int)threadIdx.x % 16; }
DEVICE int lane_y(void) { return (int)threadIdx.x / 16; }

/* The n-th column of a thread in rows of D: runs of 4 where there are that many. */
template <int D> DEVICE int column(int n)
{
    return D <= 64 ? lane_x() * (D / 16) + n : n / 4 * 64 + lane_x() * 4 + n % 4;
}

/* Rows first .. first + TILE - 1 of x, d numbers each, into s; 0 beyond d and from row `end` on. */
template <class T, int D>
static __device__ void tile_load(float *s, const T *x, int64_t row, int first, int end, int d,
                                 bool vectors)
{
    constexpr int N = 16 / (int)sizeof(T), PACKS = D / N;
    if (!vectors) {
        for (int i = (int)threadIdx.x; i < TILE * D; i += THREADS) {
            const int r = first + i / D, c = i % D;
            s[i / D * tile<D>::ROW + c] = r < end && c < d ? get(x + r * row + c) : 0;
        }
        return;
    }
    AG_UNROLL_BY(2) for (int i = (int)threadIdx.x; i < TILE * PACKS; i += THREADS) {
        const int r = first + i / PACKS, c = i % PACKS * N;
        pack<T> v = {};
        if (r < end && c < d) v = pack_load(x + r * row + c);
        float *to = s + i / PACKS * tile<D>::ROW + c;
        for (int n = 0; n < N; n += 4)
            *(float4 *)(to + n) = make_float4(get(&v.at[n]), get(&v.at[n + 1]), get(&v.at[n + 2]),
                                              get(&v.at[n + 3]));
    }
}

/* x = a b^T, of rows with d numbers */
template <int D>
DEVICE void nt(const float *a, const float *b, int d, float x[4][4])
{
    a += lane_y() * tile<D>::ROW;
    b += lane_x() * tile<D>::ROW;
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < 4; c++) x[r][c] = 0;
    AG_UNROLL_BY(1) for (int k = 0; k < d; k += 4) {
        float4 va[4], vb[4];
        AG_UNROLL for (int r = 0; r < 4; r++) {
            va[r] = *(const float4 *)(a + r * 16 * tile<D>::ROW + k);
            vb[r] = *(const float4 *)(b + r * 16 * tile<D>::ROW + k);
        }
        AG_UNROLL for (int r = 0; r < 4; r++)
            AG_UNROLL for (int c = 0; c < 4; c++) {
                x[r][c] += va[r].x * vb[c].x;
                x[r][c] += va[r].y * vb[c].y;
                x[r][c] += va[r].z * vb[c].z;
                x[r][c] += va[r].w * vb[c].w;
            }
    }
}

/* A thread's columns of one row. */
template <int D> DEVICE void columns_load(const float *row, float *v)
{
    constexpr int N = tile<D>::COLS;
    if (N == 2) *(float2 *)v = *(const float2 *)(row + column<D>(0));
    else
        AG_UNROLL for (int n = 0; n < N; n += 4)
            *(float4 *)(v + n) = *(const float4 *)(row + column<D>(n));
}

/* y = y * shrink + w b over the first `keys` of b's rows; w is 0 beyond them */
template <int D>
DEVICE void nn(const float *w, const float *b, int keys,
                                          const float shrink[4], float y[4][tile<D>::COLS])
{
    constexpr int N = tile<D>::COLS;
    float sum[4][N] = {};
    w += lane_y() * WEIGHTS;
    AG_UNROLL_BY(1) for (int k = 0; k < keys; k += 4) {
        float4 vw[4];
        AG_UNROLL for (int r = 0; r < 4; r++) vw[r] = *(const float4 *)(w + r * 16 * WEIGHTS + k);
        AG_UNROLL for (int i = 0; i < 4; i++) {
            __align__(16) float vb[N];
            columns_load<D>(b + (k + i) * tile<D>::ROW, vb);
            AG_UNROLL for (int r = 0; r < 4; r++) {
                const float f = i == 0 ? vw[r].x : i == 1 ? vw[r].y : i == 2 ? vw[r].z : vw[r].w;
                AG_UNROLL for (int n = 0; n < N; n++) sum[r][n] += f * vb[n];
            }
        }
    }
    AG_UNROLL for (int r = 0; r < 4; r++)
        AG_UNROLL for (int n = 0; n < N; n++) y[r][n] = y[r][n] * shrink[r] + sum[r][n];
}

/* The four columns of a thread's rows, for others of its half warp to read after __syncwarp(). */
DEVICE void weights_store(float *w, const float x[4][4])
{
    AG_UNROLL for (int r = 0; r < 4; r++)
        AG_UNROLL for (int c = 0; c < 4; c++)
            w[(lane_y() + 16 * r) * WEIGHTS + lane_x() + 16 * c] = x[r][c];
}

/* Over the 16 threads that share rows. */
DEVICE float row_max(float x)
{
    for (int m = 8; m > 0; m /= 2) x = fmaxf(x, __shfl_xor_sync(AG_WARP, x, m));
    return x;
}
DEVICE float row_sum(float x)
{
    for (int m = 8; m > 0; m /= 2) x += __shfl_xor_sync(AG_WARP, x, m);
    return x;
}

/* --- forward ---------------------------------------------------------------------------------- */

/* One row of scores: x = exp2(x - top) for keys j, j+16, ..; top, and the sum of what this thread
 * has of the row, go on.  Returns by how much what was summed before shrinks. */
DEVICE float softmax_step(float x[4], int j, int see, float scale2,
                                                     float *top, float *sum)
{
    float m = *top;
    AG_UNROLL for (int c = 0; c < 4; c++) {
        x[c] = j + 16 * c < see ? x[c] * scale2 : -INFINITY;
        m = fmaxf(m, x[c]);
    }
    m = row_max(m);
    const float base = m == -INFINITY ? 0 : m, shrink = exp2f(*top - base);
    float s = 0;
    AG_UNROLL for (int c = 0; c < 4; c++) {
        x[c] = exp2f(x[c] - base);
        s += x[c];
    }
    *sum = *sum * shrink + s;
    *top = m;
    return shrink;
}

/* A block: one tile of queries of a head (the last tile first: it has the most keys where it is
 * causal), one part of the keys. */
template <class T, int D>
static __global__ void __launch_bounds__(THREADS, BLOCKS(D)) fma_fwd(attention<T> a, int tiles)
{
    AG_SHARED(float, q);             /* each [TILE][D + 4] */
    float *k = q + tile<D>::SIZE, *v = k + tile<D>::SIZE, *w = v + tile<D>::SIZE;
    const int i0 = (tiles - 1 - (int)blockIdx.x % tiles) * TILE, split = (int)blockIdx.y;
    const head_at e = head_of(blockIdx.x / tiles, a.heads);
    const int n = keys_of(a, e.b), end = min(seen(a, n, min(i0 + TILE, a.tq) - 1),
                                             (split + 1) * a.split_keys);
    float o[4][tile<D>::COLS] = {}, top[4], sum[4] = {}, x[4][4], shrink[4];
    for (int r = 0; r < 4; r++) top[r] = -INFINITY;
    tile_load<T, D>(q, row_q(a, a.q, e, 0), a.q_row, i0, a.tq, a.d_qk, a.vectors);
    for (int j0 = split * a.split_keys; j0 < end; j0 += TILE) {
        __syncthreads();
        tile_load<T, D>(k, row_k(a, a.k, e, 0), a.k_row, j0, end, a.d_qk, a.vectors);
        tile_load<T, D>(v, row_v(a, a.v, e, 0), a.v_row, j0, end, a.d_v, a.vectors);
        __syncthreads();
        nt<D>(q, k, a.d_qk, x);
        AG_UNROLL for (int r = 0; r < 4; r++) {
            const int i = i0 + lane_y() + 16 * r, j = j0 + lane_x();
            shrink[r] = softmax_step(x[r], j, seen(a, n, i), a.scale2, &top[r], &sum[r]);
            if (a.drop_below) {
                float kept[4];
                kept_of(a, e.bh * a.tq + i, j, kept);
                for (int c = 0; c < 4; c++) x[r][c] *= kept[c];
            }
        }
        weights_store(w, x);
        __syncwarp();
        nn<D>(w, v, min(TILE, end - j0), shrink, o);
    }
    AG_UNROLL for (int r = 0; r < 4; r++) {
        const int i = i0 + lane_y() + 16 * r;
        sum[r] = row_sum(sum[r]);
        if (i >= a.tq) continue;
        const row_at<T> to = result_at(a, e, i, split);
        AG_UNROLL for (int c = 0; c < tile<D>::COLS; c++)
            if (column<D>(c) < a.d_v) put_result(to, column<D>(c), o[r][c], sum[r]);
        if (lane_x() == 0) put_sums(a, to, top[r], sum[r]);
    }
}

/* --- backward --------------------------------------------------------------------------------- */

/* From the scores x and y = do . v of one query and key:  x = r p, y = ds = p (r y - delta) */
DEVICE void pair_grad(bool sees, float scale2, float lse2, float delta,
                                                 float kept, float *x, float *y)
{
    const float p = sees ? exp2f(*x * scale2 - lse2) : 0;
    *y = p * (kept * *y - delta);
    *x = kept * p;
}

template <class T, int D>
static __device__ void rows_store(T *to, int64_t row, int first, int end, int d, float times,
                                  bool acc, const float y[4][tile<D>::COLS])
{
    AG_UNROLL for (int r = 0; r < 4; r++) {
        const int i = first + lane_y() + 16 * r;
        if (i >= end) continue;
        AG_UNROLL for (int n = 0; n < tile<D>::COLS; n++)
            if (column<D>(n) < d) put_sum(to + i * row + column<D>(n), y[r][n] * times, acc);
    }
}

/* dq of a tile of queries. */
template <class T, int D>
static __global__ void __launch_bounds__(THREADS, BLOCKS(D)) fma_dq(attention<T> a, int tiles)
{
    AG_SHARED(float, q);
    float *g = q + tile<D>::SIZE, *k = g + tile<D>::SIZE, *v = k + tile<D>::SIZE,
        *w = v + tile<D>::SIZE;
    const int i0 = (tiles - 1 - (int)blockIdx.x % tiles) * TILE;
    const head_at e = head_of(blockIdx.x / tiles, a.heads);
    const int n = keys_of(a, e.b), end = seen(a, n, min(i0 + TILE, a.tq) - 1);
    const float one[4] = { 1, 1, 1, 1 };
    float dq[4][tile<D>::COLS] = {}, x[4][4], y[4][4], lse2[4], delta[4];
    AG_UNROLL for (int r = 0; r < 4; r++) {
        const int i = i0 + lane_y() + 16 * r;
        lse2[r] = i < a.tq ? lse_log2(a.lse[e.bh * a.tq + i]) : INFINITY;
        delta[r] = i < a.tq ? a.delta[e.bh * a.tq + i] : 0;
    }
    tile_load<T, D>(q, row_q(a, a.q, e, 0), a.q_row, i0, a.tq, a.d_qk, a.vectors);
    tile_load<T, D>(g, row_o(a, a.d_o, e, 0), a.o_row, i0, a.tq, a.d_v, a.vectors);
    for (int j0 = 0; j0 < end; j0 += TILE) {
        __syncthreads();
        tile_load<T, D>(k, row_k(a, a.k, e, 0), a.k_row, j0, end, a.d_qk, a.vectors);
        tile_load<T, D>(v, row_v(a, a.v, e, 0), a.v_row, j0, end, a.d_v, a.vectors);
        __syncthreads();
        nt<D>(q, k, a.d_qk, x);
        nt<D>(g, v, a.d_v, y);
        AG_UNROLL for (int r = 0; r < 4; r++) {
            const int i = i0 + lane_y() + 16 * r, j = j0 + lane_x(), see = seen(a, n, i);
            float kept[4] = { 1, 1, 1, 1 };
            if (a.drop_below) kept_of(a, e.bh * a.tq + i, j, kept);
            AG_UNROLL for (int c = 0; c < 4; c++)
                pair_grad(j + 16 * c < see, a.scale2, lse2[r], delta[r], kept[c], &x[r][c],
                          &y[r][c]);
        }
        weights_store(w, y);
        __syncwarp();
        nn<D>(w, k, min(TILE, end - j0), one, dq);
    }
    rows_store<T, D>((T *)row_q(a, a.dq, e, 0), a.q_row, i0, a.tq, a.d_qk, a.scale, a.acc, dq);
}

/* dk and dv of a tile of keys: the rows here, queries are the columns. */
template <class T, int D>
static __global__ void __launch_bounds__(THREADS, BLOCKS(D)) fma_dkv(attention<T> a, int tiles)
{
    AG_SHARED(float, k);
    float *v = k + tile<D>::SIZE, *q = v + tile<D>::SIZE, *g = q + tile<D>::SIZE,
        *w = g + tile<D>::SIZE;
    const int j0 = (int)blockIdx.x % tiles * TILE;
    const head_at e = head_of(blockIdx.x / tiles, a.heads);
    const int n = keys_of(a, e.b);
    const float one[4] = { 1, 1, 1, 1 };
    float dk[4][tile<D>::COLS] = {}, dv[4][tile<D>::COLS] = {}, x[4][4], y[4][4];
    tile_load<T, D>(k, row_k(a, a.k, e, 0), a.k_row, j0, n, a.d_qk, a.vectors);
    tile_load<T, D>(v, row_v(a, a.v, e, 0), a.v_row, j0, n, a.d_v, a.vectors);
    for (int i0 = j0 < n ? first_query(a, j0) / TILE * TILE : a.tq; i0 < a.tq; i0 += TILE) {
        __syncthreads();
        tile_load<T, D>(q, row_q(a, a.q, e, 0), a.q_row, i0, a.tq, a.d_qk, a.vectors);
        tile_load<T, D>(g, row_o(a, a.d_o, e, 0), a.o_row, i0, a.tq, a.d_v, a.vectors);
        __syncthreads();
        nt<D>(k, q, a.d_qk, x);
        nt<D>(v, g, a.d_v, y);
        AG_UNROLL for (int c = 0; c < 4; c++) {
            const int i = i0 + lane_x() + 16 * c, j = j0 + lane_y();
            const int see = i < a.tq ? seen(a, n, i) : 0;
            const int64_t row = e.bh * a.tq + i;
            const float lse2 = see ? lse_log2(a.lse[row]) : INFINITY;
            const float delta = see ? a.delta[row] : 0;
            float kept[4] = { 1, 1, 1, 1 };
            if (a.drop_below) kept_of(a, row, j, kept);
            AG_UNROLL for (int r = 0; r < 4; r++)
                pair_grad(j + 16 * r < see, a.scale2, lse2, delta, kept[r], &x[r][c], &y[r][c]);
        }
        const int queries = min(TILE, a.tq - i0);
        weights_store(w, x);
        __syncwarp();
        nn<D>(w, g, queries, one, dv);
        __syncwarp();
        weights_store(w, y);
        __syncwarp();
        nn<D>(w, q, queries, one, dk);
    }
    rows_store<T, D>((T *)row_k(a, a.dk, e, 0), a.k_row, j0, a.tk, a.d_qk, a.scale, a.acc, dk);
    rows_store<T, D>((T *)row_v(a, a.dv, e, 0), a.v_row, j0, a.tk, a.d_v, 1, a.acc, dv);
}

/* --- host ------------------------------------------------------------------------------------- */

template <int D> static size_t room(int tiles)
{
    return ((size_t)tiles * tile<D>::SIZE + TILE * WEIGHTS) * sizeof(float);
}

template <class T, int D> static void run_fwd(attention<T> a)
{
    const int tiles = (a.tq + TILE - 1) / TILE;
    const int64_t blocks = (int64_t)tiles * a.batch * a.heads;
    if (!attention_split(&a, blocks, ag_cuda_processors(), 4 * TILE)) return;
    AG_LAUNCH((fma_fwd<T, D>), dim3((unsigned)blocks, (unsigned)a.splits), THREADS, room<D>(3), a,
              tiles);
    if (a.splits > 1) attention_merge(a);
}

template <class T, int D> static void run_bwd(const attention<T> &a)
{
    const int q_tiles = (a.tq + TILE - 1) / TILE, k_tiles = (a.tk + TILE - 1) / TILE;
    const int64_t heads = (int64_t)a.batch * a.heads;
    AG_LAUNCH((fma_dq<T, D>), (unsigned)(q_tiles * heads), THREADS, room<D>(4), a, q_tiles);
    AG_LAUNCH((fma_dkv<T, D>), (unsigned)(k_tiles * heads), THREADS, room<D>(4), a, k_tiles);
}

template <class T> bool attention_tiles_fwd(const attention<T> &a)
{
    const int d = a.d_qk > a.d_v ? a.d_qk : a.d_v;
    if (d > 128 || (d > 64 && room<128>(3) > ag_cuda_shared_most())) return false;
    d <= 32 ? run_fwd<T, 32>(a) : d <= 64 ? run_fwd<T, 64>(a) : run_fwd<T, 128>(a);
    return true;
}

template <class T> bool attention_tiles_bwd(const attention<T> &a)
{
    const int d = a.d_qk > a.d_v ? a.d_qk : a.d_v;
    if (d > 128 || (d > 64 && room<128>(4) > ag_cuda_shared_most())) return false;
    d <= 32 ? run_bwd<T, 32>(a) : d <= 64 ? run_bwd<T, 64>(a) : run_bwd<T, 128>(a);
    return true;
}

template bool attention_tiles_fwd(const attention<float> &a);
template bool attention_tiles_bwd(const attention<float> &a);
