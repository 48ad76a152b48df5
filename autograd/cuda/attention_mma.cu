/*
 * attention_mma.cu -- attention of 16-bit numbers on tensor cores, over all keys
 * (attention_mma.cuh).
 */
#include "attention_mma.cuh"

/* --- forward ---------------------------------------------------------------------------------- */

/* Dropout of row r and 8 N columns from j0 + part on, part 0 or TILE / 2: one block of noise is of
 * columns j, j+16, j+32, j+48 of the tile. */
template <class T, int N>
DEVICE void drop_row(const attention<T> &a, int64_t row, int j0, int part, float x[N][4], int r)
{
    AG_UNROLL for (int c = 0; c < 4; c++) {          /* two in each of the first two 8 columns */
        float kept[4];
        kept_of(a, row, j0 + c / 2 * 8 + frag_col(c % 2), kept);
        AG_UNROLL for (int w = 0; w < N / 2; w++)
            x[c / 2 + 2 * w][2 * r + c % 2] *= part ? kept[(2 + w) % 4] : kept[w];
    }
}

/* The same where the keys are those from j0 on, of which the query sees those before `see`. */
DEVICE float softmax_step(float x[N8][4], int r, int j0, int see, float scale2, float *top,
                          float *sum)
{
    AG_UNROLL for (int n = 0; n < N8; n++)
        AG_UNROLL for (int i = 2 * r; i < 2 * r + 2; i++)
            x[n][i] = j0 + n * 8 + frag_col(i) < see ? x[n][i] * scale2 : -INFINITY;
    return softmax_row(x, r, top, sum);
}

/* A block: one tile of queries of a head (the last tile first: it has the most keys where it is
 * causal), one part of the keys. */
template <class T, int D>
static __global__ void __launch_bounds__(THREADS) mma_fwd(attention<T> a, int tiles)
{
    AG_SHARED(T, q);                 /* [TILE][ROW], then two of k, two of v */
    T *k = q + tile<D>::SIZE, *v = k + 2 * tile<D>::SIZE;
    const int i0 = (tiles - 1 - (int)blockIdx.x % tiles) * TILE, split = (int)blockIdx.y;
    const head_at e = head_of(blockIdx.x / tiles, a.heads);
    const int n = keys_of(a, e.b), begin = split * a.split_keys,
        end = min(seen(a, n, min(i0 + TILE, a.tq) - 1), begin + a.split_keys);
    const T *k_at = row_k(a, a.k, e, 0), *v_at = row_v(a, a.v, e, 0);
    float o[D / 8][4] = {}, top[2] = { -INFINITY, -INFINITY }, sum[2] = {}, x[N8][4];
    async_copies copies;
    tile_load<T, D>(copies, q, row_q(a, a.q, e, 0), a.q_row, i0, a.tq, a.d_qk, a.vectors);
    tile_load<T, D>(copies, k, k_at, a.k_row, begin, end, a.d_qk, a.vectors);
    tile_load<T, D>(copies, v, v_at, a.v_row, begin, end, a.d_v, a.vectors);
    int now = 0;                     /* the buffer of this tile of keys */
    for (int j0 = begin; j0 < end; j0 += TILE, now ^= 1) {
        copies.wait();
        __syncthreads();             /* it is there, and nobody reads the other buffer any more */
        if (j0 + TILE < end) {
            const int other = (now ^ 1) * tile<D>::SIZE;
            tile_load<T, D>(copies, k + other, k_at, a.k_row, j0 + TILE, end, a.d_qk, a.vectors);
            tile_load<T, D>(copies, v + other, v_at, a.v_row, j0 + TILE, end, a.d_v, a.vectors);
        }
        if (i0 + warp() * 16 >= a.tq) continue;      /* no query for this warp */
        scores<T, D, N8>(q + warp() * 16 * tile<D>::ROW, 8, k + now * tile<D>::SIZE,
                         first_rows{ end - j0 }, a.d_qk, x);
        AG_UNROLL for (int r = 0; r < 2; r++) {
            const int i = i0 + warp() * 16 + frag_row(2 * r);
            const float shrink = softmax_step(x, r, j0, min(end, seen(a, n, i)), a.scale2, &top[r],
                                              &sum[r]);
            AG_UNROLL for (int c = 0; c < D / 8; c++)
                o[c][2 * r] *= shrink, o[c][2 * r + 1] *= shrink;
            if (a.drop_below) drop_row<T, N8>(a, e.bh * a.tq + i, j0, 0, x, r);
        }
        add_product<T, D, N8>(x, v + now * tile<D>::SIZE, first_rows{ end - j0 }, a.d_v, o);
    }
    AG_UNROLL for (int r = 0; r < 2; r++) {
        const int i = i0 + warp() * 16 + frag_row(2 * r);
        sum[r] = quad_sum(sum[r]);
        if (i < a.tq) result_store<T, D>(a, e, i, split, r, top[r], sum[r], o);
    }
}

/* --- backward --------------------------------------------------------------------------------- */

/* dq of a tile of queries. */
template <class T, int D>
static __global__ void __launch_bounds__(THREADS) mma_dq(attention<T> a, int tiles)
{
    constexpr int N = D <= 64 ? N8 : N8 / 2;             /* columns of 8 at a time */
    AG_SHARED(T, q);                 /* q, do, two of k, two of v */
    T *g = q + tile<D>::SIZE, *k = g + tile<D>::SIZE, *v = k + 2 * tile<D>::SIZE;
    const int i0 = (tiles - 1 - (int)blockIdx.x % tiles) * TILE;
    const head_at e = head_of(blockIdx.x / tiles, a.heads);
    const int n = keys_of(a, e.b), end = seen(a, n, min(i0 + TILE, a.tq) - 1);
    const T *k_at = row_k(a, a.k, e, 0), *v_at = row_v(a, a.v, e, 0);
    float dq[D / 8][4] = {}, x[N][4], y[N][4], lse2[2], delta[2];
    async_copies copies;
    tile_load<T, D>(copies, q, row_q(a, a.q, e, 0), a.q_row, i0, a.tq, a.d_qk, a.vectors);
    tile_load<T, D>(copies, g, row_o(a, a.d_o, e, 0), a.o_row, i0, a.tq, a.d_v, a.vectors);
    tile_load<T, D>(copies, k, k_at, a.k_row, 0, end, a.d_qk, a.vectors);
    tile_load<T, D>(copies, v, v_at, a.v_row, 0, end, a.d_v, a.vectors);
    AG_UNROLL for (int r = 0; r < 2; r++) {
        const int i = i0 + warp() * 16 + frag_row(2 * r);
        lse2[r] = i < a.tq ? lse_log2(a.lse[e.bh * a.tq + i]) : INFINITY;
        delta[r] = i < a.tq ? a.delta[e.bh * a.tq + i] : 0;
    }
    int now = 0;
    for (int j0 = 0; j0 < end; j0 += TILE, now ^= 1) {
        copies.wait();
        __syncthreads();
        if (j0 + TILE < end) {
            const int other = (now ^ 1) * tile<D>::SIZE;
            tile_load<T, D>(copies, k + other, k_at, a.k_row, j0 + TILE, end, a.d_qk, a.vectors);
            tile_load<T, D>(copies, v + other, v_at, a.v_row, j0 + TILE, end, a.d_v, a.vectors);
        }
        const int last = i0 + warp() * 16 < a.tq ? end : 0;         /* 0: no query for this warp */
        for (int part = 0; part < TILE && j0 + part < last; part += N * 8) {
            const int here = now * tile<D>::SIZE + part * tile<D>::ROW;
            const int rows = warp() * 16 * tile<D>::ROW;
            const first_rows keys = { end - j0 - part };
            scores<T, D, N>(q + rows, 8, k + here, keys, a.d_qk, x);
            scores<T, D, N>(g + rows, 8, v + here, keys, a.d_v, y);
            AG_UNROLL for (int r = 0; r < 2; r++) {
                const int i = i0 + warp() * 16 + frag_row(2 * r), see = seen(a, n, i) - j0 - part;
                if (a.drop_below) drop_row<T, N>(a, e.bh * a.tq + i, j0, part, y, r);
                AG_UNROLL for (int m = 0; m < N; m++)
                    AG_UNROLL for (int c = 2 * r; c < 2 * r + 2; c++) {
                        const float p = exp2f(x[m][c] * a.scale2 - lse2[r]);
                        y[m][c] = m * 8 + frag_col(c) < see ? p * (y[m][c] - delta[r]) : 0;
                    }
            }
            add_product<T, D, N>(y, k + here, keys, a.d_qk, dq);
        }
    }
    AG_UNROLL for (int r = 0; r < 2; r++) {
        const int i = i0 + warp() * 16 + frag_row(2 * r);
        if (i < a.tq)
            row_store<T, D>((T *)row_q(a, a.dq, e, i), a.d_qk, a.scale, a.acc, a.vectors, r, dq);
    }
}

/* What of a query the tile of keys needs: thread t has lse (in log2) of query i0 + t, or, from TILE
 * on, delta. */
template <class T> DEVICE float query_number(const attention<T> &a, head_at e, int i0)
{
    const int t = (int)threadIdx.x, i = i0 + t % TILE;
    if (t < TILE) return i < a.tq ? lse_log2(a.lse[e.bh * a.tq + i]) : INFINITY;
    return i < a.tq ? a.delta[e.bh * a.tq + i] : 0;
}

/* The scores x of 16 keys, the first j and then 16 on, and 8 N queries from i0 on, and y = v . do,
 * become r p and ds.  number: lse2 and delta of the queries, TILE apart. */
template <class T, int N>
DEVICE void keys_grad(const attention<T> &a, head_at e, int n, int i0, int j, const float *number,
                      float x[N][4], float y[N][4])
{
    AG_UNROLL for (int m = 0; m < N; m++)
        AG_UNROLL for (int c = 0; c < 2; c++) {
            const int at = m * 8 + frag_col(c), i = i0 + at, see = seen(a, n, i);
            const float lse2 = number[at], delta = number[TILE + at];
            float kept[4] = { 1, 1, 1, 1 };
            if (a.drop_below) kept_of(a, e.bh * a.tq + i, j / TILE * TILE + j % 16, kept);
            AG_UNROLL for (int r = 0; r < 2; r++) {
                float *s = &x[m][2 * r + c], *ds = &y[m][2 * r + c];
                const float p = j + 16 * r < see ? exp2f(*s * a.scale2 - lse2) : 0;
                const float keep = j / 32 % 2 ? kept[2 + r] : kept[r];
                *ds = p * (keep * *ds - delta);
                *s = keep * p;
            }
        }
}

/*
 * dk and dv of a tile of keys: the rows of the scores here, queries are the columns.  A lane's two
 * rows are keys 16 apart, whose noise one block has: of the tile, warp w has keys 8 (w % 2) +
 * 32 (w / 2) + 0..7, and those 16 further.
 */
template <class T, int D>            /* up to D = 64 the registers of three blocks would spill */
static __global__ void __launch_bounds__(THREADS, D <= 64 ? 2 : 1)
    mma_dkv(attention<T> a, int tiles)
{
    constexpr int N = D < 64 ? N8 : N8 / 2;              /* columns of 8 at a time */
    AG_SHARED(T, k);                 /* k, v, two of q, two of do; two of lse and delta */
    T *v = k + tile<D>::SIZE, *q = v + tile<D>::SIZE, *g = q + 2 * tile<D>::SIZE;
    float *number = (float *)(g + 2 * tile<D>::SIZE);
    const int j0 = (int)blockIdx.x % tiles * TILE, mine = warp() % 2 * 8 + warp() / 2 * 32;
    const head_at e = head_of(blockIdx.x / tiles, a.heads);
    const int n = keys_of(a, e.b), begin = j0 < n ? first_query(a, j0) / TILE * TILE : a.tq;
    const T *q_at = row_q(a, a.q, e, 0), *g_at = row_o(a, a.d_o, e, 0);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {}, x[N][4], y[N][4];
    async_copies copies;
    tile_load<T, D>(copies, k, row_k(a, a.k, e, 0), a.k_row, j0, n, a.d_qk, a.vectors);
    tile_load<T, D>(copies, v, row_v(a, a.v, e, 0), a.v_row, j0, n, a.d_v, a.vectors);
    tile_load<T, D>(copies, q, q_at, a.q_row, begin, a.tq, a.d_qk, a.vectors);
    tile_load<T, D>(copies, g, g_at, a.o_row, begin, a.tq, a.d_v, a.vectors);
    float next = query_number(a, e, begin);
    int now = 0;
    for (int i0 = begin; i0 < a.tq; i0 += TILE, now ^= 1) {
        number[now * THREADS + (int)threadIdx.x] = next;
        copies.wait();
        __syncthreads();
        if (i0 + TILE < a.tq) {
            const int other = (now ^ 1) * tile<D>::SIZE;
            tile_load<T, D>(copies, q + other, q_at, a.q_row, i0 + TILE, a.tq, a.d_qk, a.vectors);
            tile_load<T, D>(copies, g + other, g_at, a.o_row, i0 + TILE, a.tq, a.d_v, a.vectors);
            next = query_number(a, e, i0 + TILE);
        }
        for (int part = 0; part < TILE && i0 + part < a.tq && j0 + mine < n; part += N * 8) {
            const T *qs = q + now * tile<D>::SIZE + part * tile<D>::ROW,
                *gs = g + now * tile<D>::SIZE + part * tile<D>::ROW;
            const first_rows queries = { a.tq - i0 - part };
            scores<T, D, N>(k + mine * tile<D>::ROW, 16, qs, queries, a.d_qk, x);
            scores<T, D, N>(v + mine * tile<D>::ROW, 16, gs, queries, a.d_v, y);
            keys_grad<T, N>(a, e, n, i0 + part, j0 + mine + lane() / 4,
                            number + now * THREADS + part, x, y);
            add_product<T, D, N>(x, gs, queries, a.d_v, dv);
            add_product<T, D, N>(y, qs, queries, a.d_qk, dk);
        }
    }
    AG_UNROLL for (int r = 0; r < 2; r++) {
        const int j = j0 + mine + lane() / 4 + 16 * r;
        if (j >= a.tk) continue;
        row_store<T, D>((T *)row_k(a, a.dk, e, j), a.d_qk, a.scale, a.acc, a.vectors, r, dk);
        row_store<T, D>((T *)row_v(a, a.dv, e, j), a.d_v, 1, a.acc, a.vectors, r, dv);
    }
}

/* --- host ------------------------------------------------------------------------------------- */

template <class T, int D> static void run_fwd(attention<T> a)
{
    const int tiles = (a.tq + TILE - 1) / TILE;
    const int64_t blocks = (int64_t)tiles * a.batch * a.heads;
    if (!attention_split(&a, blocks, 2 * ag_cuda_processors(), 4 * TILE)) return;
    AG_LAUNCH((mma_fwd<T, D>), dim3((unsigned)blocks, (unsigned)a.splits), THREADS,
              (room_fwd<T, D>()), a, tiles);
    if (a.splits > 1) attention_merge(a);
}

template <class T, int D> static void run_bwd(const attention<T> &a)
{
    const int q_tiles = (a.tq + TILE - 1) / TILE, k_tiles = (a.tk + TILE - 1) / TILE;
    const int64_t heads = (int64_t)a.batch * a.heads;
    const size_t room = room_bwd<T, D>();
    AG_LAUNCH((mma_dq<T, D>), (unsigned)(q_tiles * heads), THREADS, room, a, q_tiles);
    AG_LAUNCH((mma_dkv<T, D>), (unsigned)(k_tiles * heads), THREADS, room, a, k_tiles);
}

template <class T> bool attention_tiles_fwd(const attention<T> &a)
{
    const int d = a.d_qk > a.d_v ? a.d_qk : a.d_v;
    if (d > 128 || (d > 64 && room_fwd<T, 128>() > ag_cuda_shared_most())) return false;
    d <= 32 ? run_fwd<T, 32>(a) : d <= 64 ? run_fwd<T, 64>(a) : run_fwd<T, 128>(a);
    return true;
}

template <class T> bool attention_tiles_bwd(const attention<T> &a)
{
    const int d = a.d_qk > a.d_v ? a.d_qk : a.d_v;
    if (d > 128 || (d > 64 && room_bwd<T, 128>() > ag_cuda_shared_most())) return false;
    d <= 32 ? run_bwd<T, 32>(a) : d <= 64 ? run_bwd<T, 64>(a) : run_bwd<T, 128>(a);
    return true;
}

template bool attention_tiles_fwd(const attention<bf16> &a);
template bool attention_tiles_bwd(const attention<bf16> &a);
template bool attention_tiles_fwd(const attention<f16> &a);
template bool attention_tiles_bwd(const attention<f16> &a);
