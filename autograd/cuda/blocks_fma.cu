/*
 * blocks_fma.cu -- attention with a pattern in f32 arithmetic (attention_fma.cuh): a block owns a
 * tile of rows and walks over its steps (blocks.cuh).
 *
 * Rows of q, k, v lie wherever the pattern says: a row of d numbers is 4 d bytes in a row of
 * memory, which 16 bytes at a time fill whole sectors of 32 for d >= 8.
 */
#include "attention_fma.cuh"
#include "blocks.cuh"

/* Rows of x, those of `line` counted from `from` on, of n, into s; 0 for those not there. */
template <class T, int D, class Line>
static __device__ void gather(const block_tables &t, float *s, const T *x, int64_t row,
                              const Line &line, int from, int n, int d, bool vectors)
{
    constexpr int N = 16 / (int)sizeof(T), PACKS = D / N;
    if (!vectors) {
        for (int i = (int)threadIdx.x; i < TILE * D; i += THREADS) {
            const int at = index_of(t, line, i / D, from, n), c = i % D;
            s[i / D * tile<D>::ROW + c] = at >= 0 && c < d ? get(x + at * row + c) : 0;
        }
        return;
    }
    AG_UNROLL_BY(2) for (int i = (int)threadIdx.x; i < TILE * PACKS; i += THREADS) {
        const int at = index_of(t, line, i / PACKS, from, n), c = i % PACKS * N;
        pack<T> v = {};
        if (at >= 0 && c < d) v = pack_load(x + at * row + c);
        float *to = s + i / PACKS * tile<D>::ROW + c;
        for (int m = 0; m < N; m += 4)
            *(float4 *)(to + m) = make_float4(get(&v.at[m]), get(&v.at[m + 1]), get(&v.at[m + 2]),
                                              get(&v.at[m + 3]));
    }
}

/* A thread's columns of its row r go on from, or to, a sum of d numbers. */
template <int D> DEVICE void sums_load(const float *sum, int d, float y[tile<D>::COLS])
{
    AG_UNROLL for (int n = 0; n < tile<D>::COLS; n++)
        if (column<D>(n) < d) y[n] = sum[column<D>(n)];
}
template <int D> DEVICE void sums_store(float *sum, int d, const float y[tile<D>::COLS])
{
    AG_UNROLL for (int n = 0; n < tile<D>::COLS; n++)
        if (column<D>(n) < d) sum[column<D>(n)] = y[n];
}

template <class T, int D>
DEVICE void row_store(T *to, int d, float times, bool acc, const float y[tile<D>::COLS])
{
    AG_UNROLL for (int n = 0; n < tile<D>::COLS; n++)
        if (column<D>(n) < d) put_sum(to + column<D>(n), y[n] * times, acc);
}

/* --- forward ---------------------------------------------------------------------------------- */

template <class T, int D>
static __global__ void __launch_bounds__(THREADS, BLOCKS(D))
block_fma_fwd(attention<T> a, block_tables t, block_sums s, int part)
{
    AG_SHARED(float, q);             /* each [TILE][D + 4] */
    float *k = q + tile<D>::SIZE, *v = k + tile<D>::SIZE, *w = v + tile<D>::SIZE;
    block_work b;
    if (!block_of(a, t, part, TILES_OF_QUERIES, &b)) return;
    float o[4][tile<D>::COLS] = {}, top[4], sum[4] = {}, x[4][4], shrink[4];
    int query[4];
    AG_UNROLL for (int r = 0; r < 4; r++) {
        query[r] = index_of(t, b.tile, lane_y() + 16 * r, b.rows0, b.n_rows);
        top[r] = -INFINITY;
        if (b.first || query[r] < 0) continue;
        const int64_t row = row_of(b.e, a.tq, query[r]);
        top[r] = s.top[row];
        sum[r] = lane_x() == 0 ? s.sum[row] : 0;
        sums_load<D>(s.o + row * a.d_v, a.d_v, o[r]);
    }
    gather<T, D>(t, q, row_q(a, a.q, b.e, 0), a.q_row, b.tile, b.rows0, b.n_rows, a.d_qk,
                 a.vectors);
    for (int i = b.begin; i < b.end; i++) {
        const pattern_step step = t.step[i];
        const uint64_t there = keys_in(a, t, b, step);
        __syncthreads();
        gather<T, D>(t, k, row_k(a, a.k, b.e, 0), a.k_row, step, 0, a.tk, a.d_qk, a.vectors);
        gather<T, D>(t, v, row_v(a, a.v, b.e, 0), a.v_row, step, 0, a.tk, a.d_v, a.vectors);
        __syncthreads();
        nt<D>(q, k, a.d_qk, x);
        AG_UNROLL for (int r = 0; r < 4; r++) {
            const uint64_t sees = (row_bits(t, step, lane_y() + 16 * r) & there) >> lane_x();
            AG_UNROLL for (int c = 0; c < 4; c++)
                x[r][c] = sees >> 16 * c & 1 ? x[r][c] * a.scale2 : -INFINITY;
            shrink[r] = softmax_row(x[r], &top[r], &sum[r]);
        }
        weights_store(w, x);
        __syncwarp();
        nn<D>(w, v, step.n, shrink, o);
    }
    AG_UNROLL for (int r = 0; r < 4; r++) {
        sum[r] = row_sum(sum[r]);
        if (query[r] < 0) continue;
        const int64_t row = row_of(b.e, a.tq, query[r]);
        if (b.last) {
            const row_at<T> to = result_at(a, b.e, query[r], 0);
            row_store<T, D>(to.o, a.d_v, sum[r] > 0 ? 1 / sum[r] : 0, false, o[r]);
            if (lane_x() == 0) put_sums(a, to, top[r], sum[r]);
        } else {
            sums_store<D>(s.o + row * a.d_v, a.d_v, o[r]);
            if (lane_x() == 0) s.top[row] = top[r], s.sum[row] = sum[r];
        }
    }
}

/* --- backward --------------------------------------------------------------------------------- */

/* dq of a tile of queries. */
template <class T, int D>
static __global__ void __launch_bounds__(THREADS, BLOCKS(D))
block_fma_dq(attention<T> a, block_tables t, block_sums s, int part)
{
    AG_SHARED(float, q);
    float *g = q + tile<D>::SIZE, *k = g + tile<D>::SIZE, *v = k + tile<D>::SIZE,
        *w = v + tile<D>::SIZE;
    block_work b;
    if (!block_of(a, t, part, TILES_OF_QUERIES, &b)) return;
    const float one[4] = { 1, 1, 1, 1 };
    float dq[4][tile<D>::COLS] = {}, x[4][4], y[4][4], lse2[4], delta[4];
    int query[4];
    AG_UNROLL for (int r = 0; r < 4; r++) {
        query[r] = index_of(t, b.tile, lane_y() + 16 * r, b.rows0, b.n_rows);
        const int64_t row = row_of(b.e, a.tq, query[r]);
        lse2[r] = query[r] >= 0 ? lse_log2(a.lse[row]) : INFINITY;
        delta[r] = query[r] >= 0 ? a.delta[row] : 0;
        if (!b.first && query[r] >= 0) sums_load<D>(s.dq + row * a.d_qk, a.d_qk, dq[r]);
    }
    gather<T, D>(t, q, row_q(a, a.q, b.e, 0), a.q_row, b.tile, b.rows0, b.n_rows, a.d_qk,
                 a.vectors);
    gather<T, D>(t, g, row_o(a, a.d_o, b.e, 0), a.o_row, b.tile, b.rows0, b.n_rows, a.d_v,
                 a.vectors);
    for (int i = b.begin; i < b.end; i++) {
        const pattern_step step = t.step[i];
        const uint64_t there = keys_in(a, t, b, step);
        __syncthreads();
        gather<T, D>(t, k, row_k(a, a.k, b.e, 0), a.k_row, step, 0, a.tk, a.d_qk, a.vectors);
        gather<T, D>(t, v, row_v(a, a.v, b.e, 0), a.v_row, step, 0, a.tk, a.d_v, a.vectors);
        __syncthreads();
        nt<D>(q, k, a.d_qk, x);
        nt<D>(g, v, a.d_v, y);
        AG_UNROLL for (int r = 0; r < 4; r++) {
            const uint64_t sees = (row_bits(t, step, lane_y() + 16 * r) & there) >> lane_x();
            AG_UNROLL for (int c = 0; c < 4; c++)
                pair_grad(sees >> 16 * c & 1, a.scale2, lse2[r], delta[r], 1, &x[r][c], &y[r][c]);
        }
        weights_store(w, y);
        __syncwarp();
        nn<D>(w, k, step.n, one, dq);
    }
    AG_UNROLL for (int r = 0; r < 4; r++) {
        if (query[r] < 0) continue;
        if (b.last)
            row_store<T, D>((T *)row_q(a, a.dq, b.e, query[r]), a.d_qk, a.scale, a.acc, dq[r]);
        else
            sums_store<D>(s.dq + row_of(b.e, a.tq, query[r]) * a.d_qk, a.d_qk, dq[r]);
    }
}

/* dk and dv of a tile of keys: the rows here, queries are the columns. */
template <class T, int D>
static __global__ void __launch_bounds__(THREADS, BLOCKS(D))
block_fma_dkv(attention<T> a, block_tables t, block_sums s, int part)
{
    AG_SHARED(float, k);
    float *v = k + tile<D>::SIZE, *q = v + tile<D>::SIZE, *g = q + tile<D>::SIZE,
        *w = g + tile<D>::SIZE;
    block_work b;
    if (!block_of(a, t, part, TILES_OF_KEYS, &b)) return;
    const float one[4] = { 1, 1, 1, 1 };
    float dk[4][tile<D>::COLS] = {}, dv[4][tile<D>::COLS] = {}, x[4][4], y[4][4];
    int key[4];
    AG_UNROLL for (int r = 0; r < 4; r++) {
        key[r] = index_of(t, b.tile, lane_y() + 16 * r, 0, a.tk);
        if (b.first || key[r] < 0) continue;
        const int64_t row = row_of(b.e, a.tk, key[r]);
        sums_load<D>(s.dk + row * a.d_qk, a.d_qk, dk[r]);
        sums_load<D>(s.dv + row * a.d_v, a.d_v, dv[r]);
    }
    gather<T, D>(t, k, row_k(a, a.k, b.e, 0), a.k_row, b.tile, 0, a.tk, a.d_qk, a.vectors);
    gather<T, D>(t, v, row_v(a, a.v, b.e, 0), a.v_row, b.tile, 0, a.tk, a.d_v, a.vectors);
    for (int i = b.begin; i < b.end; i++) {
        const pattern_step step = t.step[i];
        __syncthreads();
        gather<T, D>(t, q, row_q(a, a.q, b.e, 0), a.q_row, step, a.q_pos0, a.tq, a.d_qk,
                     a.vectors);
        gather<T, D>(t, g, row_o(a, a.d_o, b.e, 0), a.o_row, step, a.q_pos0, a.tq, a.d_v,
                     a.vectors);
        __syncthreads();
        nt<D>(k, q, a.d_qk, x);
        nt<D>(v, g, a.d_v, y);
        uint64_t seen[4];
        AG_UNROLL for (int r = 0; r < 4; r++)
            seen[r] = row_bits(t, step, lane_y() + 16 * r) >> lane_x();
        AG_UNROLL for (int c = 0; c < 4; c++) {
            const int query = index_of(t, step, lane_x() + 16 * c, a.q_pos0, a.tq);
            const int64_t row = row_of(b.e, a.tq, query);
            const float lse2 = query >= 0 ? lse_log2(a.lse[row]) : INFINITY;
            const float delta = query >= 0 ? a.delta[row] : 0;
            AG_UNROLL for (int r = 0; r < 4; r++)
                pair_grad(seen[r] >> 16 * c & 1, a.scale2, lse2, delta, 1, &x[r][c], &y[r][c]);
        }
        weights_store(w, x);
        __syncwarp();
        nn<D>(w, g, step.n, one, dv);
        __syncwarp();
        weights_store(w, y);
        __syncwarp();
        nn<D>(w, q, step.n, one, dk);
    }
    AG_UNROLL for (int r = 0; r < 4; r++) {
        if (key[r] < 0) continue;
        const int64_t row = row_of(b.e, a.tk, key[r]);
        if (b.last) {
            row_store<T, D>((T *)row_k(a, a.dk, b.e, key[r]), a.d_qk, a.scale, a.acc, dk[r]);
            row_store<T, D>((T *)row_v(a, a.dv, b.e, key[r]), a.d_v, 1, a.acc, dv[r]);
        } else {
            sums_store<D>(s.dk + row * a.d_qk, a.d_qk, dk[r]);
            sums_store<D>(s.dv + row * a.d_v, a.d_v, dv[r]);
        }
    }
}

/* --- host ------------------------------------------------------------------------------------- */

template <class T, int D>
static void run_fwd(const attention<T> &a, const block_tables &t, const block_sums &s)
{
    const int tiles = t.most_tiles[TILES_OF_QUERIES];
    const int64_t heads = (int64_t)a.batch * a.heads;
    for (int part = 0; part < t.parts; part++)
        AG_LAUNCH((block_fma_fwd<T, D>), (unsigned)(tiles * heads), THREADS, room<D>(3), a, t, s,
                  part);
}

template <class T, int D>
static void run_bwd(const attention<T> &a, const block_tables &t, const block_sums &s)
{
    const int q_tiles = t.most_tiles[TILES_OF_QUERIES], k_tiles = t.most_tiles[TILES_OF_KEYS];
    const int64_t heads = (int64_t)a.batch * a.heads;
    for (int part = 0; part < t.parts; part++)
        AG_LAUNCH((block_fma_dq<T, D>), (unsigned)(q_tiles * heads), THREADS, room<D>(4), a, t, s,
                  part);
    for (int part = 0; part < t.parts; part++)
        AG_LAUNCH((block_fma_dkv<T, D>), (unsigned)(k_tiles * heads), THREADS, room<D>(4), a, t, s,
                  part);
}

template <class T>
bool block_tiles_fwd(const attention<T> &a, const block_tables &t, const block_sums &s)
{
    const int d = a.d_qk > a.d_v ? a.d_qk : a.d_v;
    if (d > 128 || (d > 64 && room<128>(3) > ag_cuda_shared_most())) return false;
    d <= 32 ? run_fwd<T, 32>(a, t, s) : d <= 64 ? run_fwd<T, 64>(a, t, s)
                                                : run_fwd<T, 128>(a, t, s);
    return true;
}

template <class T>
bool block_tiles_bwd(const attention<T> &a, const block_tables &t, const block_sums &s)
{
    const int d = a.d_qk > a.d_v ? a.d_qk : a.d_v;
    if (d > 128 || (d > 64 && room<128>(4) > ag_cuda_shared_most())) return false;
    d <= 32 ? run_bwd<T, 32>(a, t, s) : d <= 64 ? run_bwd<T, 64>(a, t, s)
                                                : run_bwd<T, 128>(a, t, s);
    return true;
}

template bool block_tiles_fwd(const attention<float> &a, const block_tables &t,
                              const block_sums &s);
template bool block_tiles_bwd(const attention<float> &a, const block_tables &t,
                              const block_sums &s);
