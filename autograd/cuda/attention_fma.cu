/*
 * attention_fma.cu -- attention in f32 arithmetic, over all keys (attention_fma.cuh).
 */
#include "attention_fma.cuh"

/* --- forward ---------------------------------------------------------------------------------- */

/* The same where the keys are j, j+16, .., of which the query sees those before `see`. */
DEVICE float softmax_step(float x[4], int j, int see, float scale2, float *top, float *sum)
{
    AG_UNROLL for (int c = 0; c < 4; c++)
        x[c] = j + 16 * c < see ? x[c] * scale2 : -INFINITY;
    return softmax_row(x, top, sum);
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
