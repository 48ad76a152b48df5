/*
 * blocks_mma.cu -- attention with a pattern, of 16-bit numbers on tensor cores (attention_mma.cuh):
 * a block owns a tile of rows and walks over its steps (blocks.cuh), whose columns come by
 * asynchronous copies into one of two buffers while the step before is worked on.
 *
 * Where a step's columns lie is found two steps ahead, so a copy waits for no address.  A warp
 * leaves out 16 columns that none of its 16 rows meets: a third of a tile on the diagonal, much of
 * one that holds several residues.
 */
#include "attention_mma.cuh"
#include "blocks.cuh"

/* Rows at[TILE] of x, d numbers each, into s; 0 beyond d and where `at` is negative. */
template <class T, int D>
static __device__ void gather(async_copies &copies, T *s, const T *x, int64_t row, const int *at,
                              int d, bool vectors)
{
    constexpr int N = 8, PACKS = D / N;
    AG_UNROLL_BY(2) for (int i0 = 0; i0 < TILE * PACKS; i0 += THREADS) {
        const int i = i0 + (int)threadIdx.x, r = at[i / PACKS], c = i % PACKS * N;
        T *to = s + i / PACKS * tile<D>::ROW + c;
        const bool there = r >= 0 && c < d;
        const T *from = there ? x + r * row + c : x;
        if (vectors) {
            copies.start(to, from, there ? 16 : 0);
            continue;
        }
        AG_UNROLL for (int m = 0; m < N; m++) {
            T v = {};
            if (there && c + m < d) v = from[m];
            to[m] = v;
        }
    }
}

/*
 * Where the columns of the steps lie, in shared memory, for the copies of a block: at the begin,
 * at[0 .. TILE) is of the tile's rows and the rest of the first step; then step i uses the half
 * of buffer `now` for step i + 1.  A thread finds one column of two steps ahead.
 */
struct places {
    int *at;                         /* [2 TILE] */
    int  from, n;                    /* columns are counted from there on, so many */
    int  mine;                       /* of the next step: column threadIdx.x % TILE */
    pattern_step step, next;         /* this one, the next */

    __device__ __forceinline__ int find(const block_tables &t, const pattern_step &s) const
    {
        return index_of(t, s, (int)threadIdx.x % TILE, from, n);
    }
    __device__ __forceinline__ void begin(const block_tables &t, const block_work &b, void *memory,
                                          int columns0, int columns)
    {
        at = (int *)memory;
        from = columns0;
        n = columns;
        step = next = pattern_step();
        if (b.begin < b.end) step = t.step[b.begin];
        at[threadIdx.x] = threadIdx.x < TILE
            ? index_of(t, b.tile, (int)threadIdx.x, b.rows0, b.n_rows) : find(t, step);
        mine = -1;
        if (b.begin + 1 < b.end) mine = find(t, next = t.step[b.begin + 1]);
        __syncthreads();
    }
    /* What step i reads, before the barrier that it begins with. */
    __device__ __forceinline__ void put(int now) const
    {
        if (threadIdx.x < TILE) at[now * TILE + (int)threadIdx.x] = mine;
    }
    /* After the copies for step i + 1. */
    __device__ __forceinline__ void go_on(const block_tables &t, const block_work &b, int i)
    {
        step = next;
        if (i + 2 < b.end) mine = find(t, next = t.step[i + 2]);
    }
};

/* The two rows of a lane in the sums of d numbers each: r 0 or 1. */
template <int D> DEVICE void sums_load(const float *sum, int d, int r, float y[D / 8][4])
{
    AG_UNROLL for (int n = 0; n < D / 8; n++)
        AG_UNROLL for (int c = 0; c < 2; c++)
            if (n * 8 + frag_col(c) < d) y[n][2 * r + c] = sum[n * 8 + frag_col(c)];
}
template <int D> DEVICE void sums_store(float *sum, int d, int r, const float y[D / 8][4])
{
    AG_UNROLL for (int n = 0; n < D / 8; n++)
        AG_UNROLL for (int c = 0; c < 2; c++)
            if (n * 8 + frag_col(c) < d) sum[n * 8 + frag_col(c)] = y[n][2 * r + c];
}

/* Groups of 16 columns, by bits. */
struct groups {
    unsigned bits;
    __device__ __forceinline__ bool operator()(int g) const { return bits >> g & 1; }
};

/* Of a step's columns, those that the two rows of a lane meet: bit 8 n + c of bits is column 8 n +
 * frag_col(c).  Returns the groups of 16 columns that any row of the warp meets. */
DEVICE unsigned lane_bits(const block_tables &t, const pattern_step &s, uint64_t there,
                          uint64_t bits[2])
{
    unsigned any = 0;
    AG_UNROLL for (int r = 0; r < 2; r++)
        bits[r] = row_bits(t, s, warp() * 16 + frag_row(2 * r)) & there;
    AG_UNROLL for (int g = 0; g < TILE / 16; g++)
        any |= (unsigned)__any_sync(AG_WARP, ((bits[0] | bits[1]) >> 16 * g & 0xffff) != 0) << g;
    AG_UNROLL for (int r = 0; r < 2; r++) bits[r] >>= frag_col(0);
    return any;
}

/* --- forward ---------------------------------------------------------------------------------- */

template <class T, int D>
static __global__ void __launch_bounds__(THREADS)
block_mma_fwd(attention<T> a, block_tables t, block_sums s, int part)
{
    AG_SHARED(T, q);                 /* [TILE][ROW], then two of k, two of v; places */
    T *k = q + tile<D>::SIZE, *v = k + 2 * tile<D>::SIZE;
    block_work b;
    if (!block_of(a, t, part, TILES_OF_QUERIES, &b)) return;
    const T *k_at = row_k(a, a.k, b.e, 0), *v_at = row_v(a, a.v, b.e, 0);
    float o[D / 8][4] = {}, top[2] = { -INFINITY, -INFINITY }, sum[2] = {}, x[N8][4];
    int query[2];
    async_copies copies;
    places p;
    p.begin(t, b, v + 2 * tile<D>::SIZE, 0, a.tk);
    gather<T, D>(copies, q, row_q(a, a.q, b.e, 0), a.q_row, p.at, a.d_qk, a.vectors);
    gather<T, D>(copies, k, k_at, a.k_row, p.at + TILE, a.d_qk, a.vectors);
    gather<T, D>(copies, v, v_at, a.v_row, p.at + TILE, a.d_v, a.vectors);
    __syncthreads();
    AG_UNROLL for (int r = 0; r < 2; r++) {
        query[r] = index_of(t, b.tile, warp() * 16 + frag_row(2 * r), b.rows0, b.n_rows);
        if (b.first || query[r] < 0) continue;
        const int64_t row = row_of(b.e, a.tq, query[r]);
        top[r] = s.top[row];
        sum[r] = lane() % 4 == 0 ? s.sum[row] : 0;
        sums_load<D>(s.o + row * a.d_v, a.d_v, r, o);
    }
    int now = 0;                     /* the buffer of this step */
    for (int i = b.begin; i < b.end; i++, now ^= 1) {
        const pattern_step here = p.step;
        p.put(now);
        copies.wait();
        __syncthreads();             /* it is there, and nobody reads the other buffer any more */
        if (i + 1 < b.end) {
            const int other = (now ^ 1) * tile<D>::SIZE, *at = p.at + now * TILE;
            gather<T, D>(copies, k + other, k_at, a.k_row, at, a.d_qk, a.vectors);
            gather<T, D>(copies, v + other, v_at, a.v_row, at, a.d_v, a.vectors);
            p.go_on(t, b, i);
        }
        uint64_t bits[2];
        const groups met = { lane_bits(t, here, keys_in(a, t, b, here), bits) };
        if (!met.bits) continue;
        scores<T, D, N8>(q + warp() * 16 * tile<D>::ROW, 8, k + now * tile<D>::SIZE, met, a.d_qk,
                         x);
        AG_UNROLL for (int r = 0; r < 2; r++) {
            AG_UNROLL for (int n = 0; n < N8; n++)
                AG_UNROLL for (int c = 0; c < 2; c++) {
                    float *at = &x[n][2 * r + c];
                    *at = bits[r] >> (n * 8 + c) & 1 ? *at * a.scale2 : -INFINITY;
                }
            const float shrink = softmax_row(x, r, &top[r], &sum[r]);
            AG_UNROLL for (int c = 0; c < D / 8; c++)
                o[c][2 * r] *= shrink, o[c][2 * r + 1] *= shrink;
        }
        add_product<T, D, N8>(x, v + now * tile<D>::SIZE, met, a.d_v, o);
    }
    AG_UNROLL for (int r = 0; r < 2; r++) {
        sum[r] = quad_sum(sum[r]);
        if (query[r] < 0) continue;
        const int64_t row = row_of(b.e, a.tq, query[r]);
        if (b.last) {
            result_store<T, D>(a, b.e, query[r], 0, r, top[r], sum[r], o);
        } else {
            sums_store<D>(s.o + row * a.d_v, a.d_v, r, o);
            if (lane() % 4 == 0) s.top[row] = top[r], s.sum[row] = sum[r];
        }
    }
}

/* --- backward --------------------------------------------------------------------------------- */

/* dq of a tile of queries. */
template <class T, int D>
static __global__ void __launch_bounds__(THREADS)
block_mma_dq(attention<T> a, block_tables t, block_sums s, int part)
{
    constexpr int N = D <= 64 ? N8 : N8 / 2;             /* columns of 8 at a time */
    AG_SHARED(T, q);                 /* q, do, two of k, two of v; places */
    T *g = q + tile<D>::SIZE, *k = g + tile<D>::SIZE, *v = k + 2 * tile<D>::SIZE;
    block_work b;
    if (!block_of(a, t, part, TILES_OF_QUERIES, &b)) return;
    const T *k_at = row_k(a, a.k, b.e, 0), *v_at = row_v(a, a.v, b.e, 0);
    float dq[D / 8][4] = {}, x[N][4], y[N][4], lse2[2], delta[2];
    async_copies copies;
    places p;
    p.begin(t, b, v + 2 * tile<D>::SIZE, 0, a.tk);
    gather<T, D>(copies, q, row_q(a, a.q, b.e, 0), a.q_row, p.at, a.d_qk, a.vectors);
    gather<T, D>(copies, g, row_o(a, a.d_o, b.e, 0), a.o_row, p.at, a.d_v, a.vectors);
    gather<T, D>(copies, k, k_at, a.k_row, p.at + TILE, a.d_qk, a.vectors);
    gather<T, D>(copies, v, v_at, a.v_row, p.at + TILE, a.d_v, a.vectors);
    __syncthreads();
    AG_UNROLL for (int r = 0; r < 2; r++) {
        const int i = index_of(t, b.tile, warp() * 16 + frag_row(2 * r), b.rows0, b.n_rows);
        const int64_t row = row_of(b.e, a.tq, i);
        lse2[r] = i >= 0 ? lse_log2(a.lse[row]) : INFINITY;
        delta[r] = i >= 0 ? a.delta[row] : 0;
        if (!b.first && i >= 0) sums_load<D>(s.dq + row * a.d_qk, a.d_qk, r, dq);
    }
    int now = 0;
    for (int i = b.begin; i < b.end; i++, now ^= 1) {
        const pattern_step here = p.step;
        p.put(now);
        copies.wait();
        __syncthreads();
        if (i + 1 < b.end) {
            const int other = (now ^ 1) * tile<D>::SIZE, *at = p.at + now * TILE;
            gather<T, D>(copies, k + other, k_at, a.k_row, at, a.d_qk, a.vectors);
            gather<T, D>(copies, v + other, v_at, a.v_row, at, a.d_v, a.vectors);
            p.go_on(t, b, i);
        }
        const int rows = warp() * 16 * tile<D>::ROW;
        uint64_t bits[2];
        const unsigned all = lane_bits(t, here, keys_in(a, t, b, here), bits);
        for (int part8 = 0; part8 < TILE; part8 += N * 8) {
            const int at = now * tile<D>::SIZE + part8 * tile<D>::ROW;
            const groups met = { all >> part8 / 16 & ((1u << N / 2) - 1) };
            if (!met.bits) continue;
            scores<T, D, N>(q + rows, 8, k + at, met, a.d_qk, x);
            scores<T, D, N>(g + rows, 8, v + at, met, a.d_v, y);
            AG_UNROLL for (int r = 0; r < 2; r++) {
                const uint64_t sees = bits[r] >> part8;
                AG_UNROLL for (int m = 0; m < N; m++)
                    AG_UNROLL for (int c = 0; c < 2; c++) {
                        const float e = exp2f(x[m][2 * r + c] * a.scale2 - lse2[r]);
                        float *ds = &y[m][2 * r + c];
                        *ds = sees >> (m * 8 + c) & 1 ? e * (*ds - delta[r]) : 0;
                    }
            }
            add_product<T, D, N>(y, k + at, met, a.d_qk, dq);
        }
    }
    AG_UNROLL for (int r = 0; r < 2; r++) {
        const int i = index_of(t, b.tile, warp() * 16 + frag_row(2 * r), b.rows0, b.n_rows);
        if (i < 0) continue;
        if (b.last)
            row_store<T, D>((T *)row_q(a, a.dq, b.e, i), a.d_qk, a.scale, a.acc, a.vectors, r, dq);
        else
            sums_store<D>(s.dq + row_of(b.e, a.tq, i) * a.d_qk, a.d_qk, r, dq);
    }
}

/* What of query i, -1: none, the tile of keys needs: lse (in log2) or, for threads from TILE on,
 * delta. */
template <class T> DEVICE float query_number(const attention<T> &a, head_at e, int i)
{
    const int64_t row = row_of(e, a.tq, i);
    if (threadIdx.x < TILE) return i >= 0 ? lse_log2(a.lse[row]) : INFINITY;
    return i >= 0 ? a.delta[row] : 0;
}

/* The scores x of two keys and columns from part8 on, and y = v . do, become p and ds.  number:
 * lse2 and delta of these columns, TILE apart. */
template <int N>
DEVICE void keys_grad(const uint64_t bits[2], int part8, float scale2, const float *number,
                      float x[N][4], float y[N][4])
{
    AG_UNROLL for (int m = 0; m < N; m++)
        AG_UNROLL for (int c = 0; c < 2; c++) {
            const int at = m * 8 + frag_col(c);
            const float lse2 = number[at], delta = number[TILE + at];
            AG_UNROLL for (int r = 0; r < 2; r++) {
                float *p = &x[m][2 * r + c], *ds = &y[m][2 * r + c];
                *p = bits[r] >> part8 >> (m * 8 + c) & 1 ? exp2f(*p * scale2 - lse2) : 0;
                *ds = *p * (*ds - delta);
            }
        }
}

/* dk and dv of a tile of keys: the rows of the scores here, queries are the columns. */
template <class T, int D>
static __global__ void __launch_bounds__(THREADS)
block_mma_dkv(attention<T> a, block_tables t, block_sums s, int part)
{
    constexpr int N = D < 64 ? N8 : N8 / 2;              /* columns of 8 at a time */
    AG_SHARED(T, k);                 /* k, v, two of q, two of do; two of lse and delta; places */
    T *v = k + tile<D>::SIZE, *q = v + tile<D>::SIZE, *g = q + 2 * tile<D>::SIZE;
    float *number = (float *)(g + 2 * tile<D>::SIZE);
    block_work b;
    if (!block_of(a, t, part, TILES_OF_KEYS, &b)) return;
    const T *q_at = row_q(a, a.q, b.e, 0), *g_at = row_o(a, a.d_o, b.e, 0);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {}, x[N][4], y[N][4];
    async_copies copies;
    places p;
    p.begin(t, b, number + 2 * THREADS, a.q_pos0, a.tq);
    gather<T, D>(copies, k, row_k(a, a.k, b.e, 0), a.k_row, p.at, a.d_qk, a.vectors);
    gather<T, D>(copies, v, row_v(a, a.v, b.e, 0), a.v_row, p.at, a.d_v, a.vectors);
    gather<T, D>(copies, q, q_at, a.q_row, p.at + TILE, a.d_qk, a.vectors);
    gather<T, D>(copies, g, g_at, a.o_row, p.at + TILE, a.d_v, a.vectors);
    float of_next = query_number(a, b.e, p.at[TILE + (int)threadIdx.x % TILE]);
    __syncthreads();
    AG_UNROLL for (int r = 0; r < 2; r++) {
        const int j = index_of(t, b.tile, warp() * 16 + frag_row(2 * r), 0, a.tk);
        if (b.first || j < 0) continue;
        const int64_t row = row_of(b.e, a.tk, j);
        sums_load<D>(s.dk + row * a.d_qk, a.d_qk, r, dk);
        sums_load<D>(s.dv + row * a.d_v, a.d_v, r, dv);
    }
    int now = 0;
    for (int i = b.begin; i < b.end; i++, now ^= 1) {
        const pattern_step here = p.step;
        number[now * THREADS + (int)threadIdx.x] = of_next;
        p.put(now);
        copies.wait();
        __syncthreads();
        if (i + 1 < b.end) {
            const int other = (now ^ 1) * tile<D>::SIZE, *at = p.at + now * TILE;
            gather<T, D>(copies, q + other, q_at, a.q_row, at, a.d_qk, a.vectors);
            gather<T, D>(copies, g + other, g_at, a.o_row, at, a.d_v, a.vectors);
            of_next = query_number(a, b.e, p.mine);
            p.go_on(t, b, i);
        }
        const int rows = warp() * 16 * tile<D>::ROW;
        uint64_t bits[2];
        const unsigned all = lane_bits(t, here, ~(uint64_t)0, bits);
        for (int part8 = 0; part8 < TILE; part8 += N * 8) {
            const int at = now * tile<D>::SIZE + part8 * tile<D>::ROW;
            const groups met = { all >> part8 / 16 & ((1u << N / 2) - 1) };
            if (!met.bits) continue;
            scores<T, D, N>(k + rows, 8, q + at, met, a.d_qk, x);
            scores<T, D, N>(v + rows, 8, g + at, met, a.d_v, y);
            keys_grad<N>(bits, part8, a.scale2, number + now * THREADS + part8, x, y);
            add_product<T, D, N>(x, g + at, met, a.d_v, dv);
            add_product<T, D, N>(y, q + at, met, a.d_qk, dk);
        }
    }
    AG_UNROLL for (int r = 0; r < 2; r++) {
        const int j = index_of(t, b.tile, warp() * 16 + frag_row(2 * r), 0, a.tk);
        if (j < 0) continue;
        const int64_t row = row_of(b.e, a.tk, j);
        if (b.last) {
            row_store<T, D>((T *)row_k(a, a.dk, b.e, j), a.d_qk, a.scale, a.acc, a.vectors, r, dk);
            row_store<T, D>((T *)row_v(a, a.dv, b.e, j), a.d_v, 1, a.acc, a.vectors, r, dv);
        } else {
            sums_store<D>(s.dk + row * a.d_qk, a.d_qk, r, dk);
            sums_store<D>(s.dv + row * a.d_v, a.d_v, r, dv);
        }
    }
}

/* --- host ------------------------------------------------------------------------------------- */

constexpr size_t PLACES = 2 * TILE * sizeof(int);

template <class T, int D>
static void run_fwd(const attention<T> &a, const block_tables &t, const block_sums &s)
{
    const int tiles = t.most_tiles[TILES_OF_QUERIES];
    const int64_t heads = (int64_t)a.batch * a.heads;
    const size_t room = room_fwd<T, D>() + PLACES;
    for (int part = 0; part < t.parts; part++)
        AG_LAUNCH((block_mma_fwd<T, D>), (unsigned)(tiles * heads), THREADS, room, a, t, s, part);
}

template <class T, int D>
static void run_bwd(const attention<T> &a, const block_tables &t, const block_sums &s)
{
    const int q_tiles = t.most_tiles[TILES_OF_QUERIES], k_tiles = t.most_tiles[TILES_OF_KEYS];
    const int64_t heads = (int64_t)a.batch * a.heads;
    const size_t room = room_bwd<T, D>() + PLACES;
    for (int part = 0; part < t.parts; part++)
        AG_LAUNCH((block_mma_dq<T, D>), (unsigned)(q_tiles * heads), THREADS, room, a, t, s, part);
    for (int part = 0; part < t.parts; part++)
        AG_LAUNCH((block_mma_dkv<T, D>), (unsigned)(k_tiles * heads), THREADS, room, a, t, s, part);
}

template <class T>
bool block_tiles_fwd(const attention<T> &a, const block_tables &t, const block_sums &s)
{
    const int d = a.d_qk > a.d_v ? a.d_qk : a.d_v;
    if (d > 128 || (d > 64 && room_fwd<T, 128>() + PLACES > ag_cuda_shared_most())) return false;
    d <= 32 ? run_fwd<T, 32>(a, t, s) : d <= 64 ? run_fwd<T, 64>(a, t, s)
                                                : run_fwd<T, 128>(a, t, s);
    return true;
}

template <class T>
bool block_tiles_bwd(const attention<T> &a, const block_tables &t, const block_sums &s)
{
    const int d = a.d_qk > a.d_v ? a.d_qk : a.d_v;
    if (d > 128 || (d > 64 && room_bwd<T, 128>() + PLACES > ag_cuda_shared_most())) return false;
    d <= 32 ? run_bwd<T, 32>(a, t, s) : d <= 64 ? run_bwd<T, 64>(a, t, s)
                                                : run_bwd<T, 128>(a, t, s);
    return true;
}

#define INSTANCES(T)                                                                    \
    template bool block_tiles_fwd(const attention<T> &a, const block_tables &t,         \
                                  const block_sums &s);                                 \
    template bool block_tiles_bwd(const attention<T> &a, const block_tables &t,         \
                                  const block_sums &s);
INSTANCES(bf16)
INSTANCES(f16)
