/*
 * attention_mma.cu -- attention of 16-bit numbers on tensor cores: tiles of TILE queries and keys,
 * heads of at most 128 (FlashAttention-2, 2307.08691).
 *
 * Four warps have 16 rows of a tile of scores each, all 64 columns of them or, where registers are
 * short, 32 at a time.  The scores stay in registers: rounded to 16 bits they are the left factor
 * of the next product.  The tiles that a block walks over come by asynchronous copies into one of
 * two buffers while the other one is worked on.  Rows in shared memory are D + 8 numbers apart, an
 * odd multiple of 16 bytes: the 8 rows that ldmatrix reads lie in different banks.
 *
 * A warp reads 64 x D numbers of k and of v from shared memory for 4 x 16 x 64 x D operations, 16
 * for each byte; a processor reads 128 bytes in a clock, which feeds 2048 operations.
 */
#include "attention.cuh"
#include "mma.cuh"

constexpr int THREADS = 128, N8 = TILE / 8 /* columns of 8 in a tile of scores */;

template <int D> struct tile { enum { ROW = D + 8, SIZE = TILE * ROW, K16 = D / 16 }; };

DEVICE int lane(void) { return (int)threadIdx.x % 32; }
DEVICE int warp(void) { return (int)threadIdx.x / 32; }

/* Rows first .. first + TILE - 1 of x, d numbers each, into s; 0 beyond d and from row `end` on. */
template <class T, int D>
static __device__ void tile_load(async_copies &copies, T *s, const T *x, int64_t row, int first,
                                 int end, int d, bool vectors)
{
    constexpr int N = 8, PACKS = D / N;
    if (vectors) {
        AG_UNROLL_BY(2) for (int i0 = 0; i0 < TILE * PACKS; i0 += THREADS) {
            const int i = i0 + (int)threadIdx.x, r = first + i / PACKS, c = i % PACKS * N;
            const bool there = r < end && c < d;
            copies.start(s + i / PACKS * tile<D>::ROW + c, there ? x + r * row + c : x,
                         there ? 16 : 0);
        }
        return;
    }
    AG_UNROLL_BY(4) for (int i = (int)threadIdx.x; i < TILE * D; i += THREADS) {
        const int r = first + i / D, c = i % D;
        T v = {};
        if (r < end && c < d) v = x[r * row + c];
        s[i / D * tile<D>::ROW + c] = v;
    }
}

/* --- fragments (mma.cuh) ---------------------------------------------------------------------- */

/* The left factor: rows m(0..15) of s, numbers k .. k + 15; m(r) = r % 8 + (r / 8) * apart. */
template <class T, int D>
DEVICE void load_a(uint32_t a[4], const T *s, int k, int apart = 8)
{
    ldmatrix(a, s + (lane() % 8 + lane() / 8 % 2 * apart) * tile<D>::ROW + k + lane() / 16 * 8);
}

/* The right factor where its columns are rows of s: 16 of them, numbers k .. k + 15; b[0..1] is of
 * the first 8. */
template <class T, int D> DEVICE void load_b(uint32_t b[4], const T *s, int k)
{
    ldmatrix(b, s + (lane() % 8 + lane() / 16 * 8) * tile<D>::ROW + k + lane() / 8 % 2 * 8);
}

/* The right factor where its rows are rows of s: 16 of them, columns c .. c + 15. */
template <class T, int D> DEVICE void load_b_rows(uint32_t b[4], const T *s, int c)
{
    ldmatrix_trans(b, s + lane() % 16 * tile<D>::ROW + c + lane() / 16 * 8);
}

/* x = a b^T over d numbers: 16 rows of a, 8 N rows of b, of which `rows` are there; 0 else */
template <class T, int D, int N>
DEVICE void scores(const T *a, int apart, const T *b, int rows, int d, float x[N][4])
{
    AG_UNROLL for (int n = 0; n < N; n++)
        AG_UNROLL for (int i = 0; i < 4; i++) x[n][i] = 0;
    AG_UNROLL for (int k = 0; k < tile<D>::K16; k++) {
        if (k * 16 >= d) break;
        uint32_t fa[4], fb[4];
        load_a<T, D>(fa, a, k * 16, apart);
        AG_UNROLL for (int n = 0; n < N; n += 2) {
            if (n * 8 >= rows) break;
            load_b<T, D>(fb, b + n * 8 * tile<D>::ROW, k * 16);
            mma<T>(x[n], fa, fb);
            mma<T>(x[n + 1], fa, fb + 2);
        }
    }
}

/* y += w b over `rows` of b: w has 8 N columns, as scores() leaves them, b d columns */
template <class T, int D, int N>
DEVICE void add_product(const float w[N][4], const T *b, int rows, int d, float y[D / 8][4])
{
    AG_UNROLL for (int k = 0; k < N / 2; k++) {
        if (k * 16 >= rows) break;
        const uint32_t fa[4] = { pack2<T>(w[2 * k][0], w[2 * k][1]),
                                 pack2<T>(w[2 * k][2], w[2 * k][3]),
                                 pack2<T>(w[2 * k + 1][0], w[2 * k + 1][1]),
                                 pack2<T>(w[2 * k + 1][2], w[2 * k + 1][3]) };
        AG_UNROLL for (int c = 0; c < tile<D>::K16; c++) {
            if (c * 16 >= d) break;
            uint32_t fb[4];
            load_b_rows<T, D>(fb, b + k * 16 * tile<D>::ROW, c * 16);
            mma<T>(y[2 * c], fa, fb);
            mma<T>(y[2 * c + 1], fa, fb + 2);
        }
    }
}

/* Row and column in a warp's 16 x 8 numbers: those of c[i] for this lane. */
DEVICE int frag_row(int i) { return lane() / 4 + i / 2 * 8; }
DEVICE int frag_col(int i) { return lane() % 4 * 2 + i % 2; }

/* Over the four lanes that share rows. */
DEVICE float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(AG_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(AG_WARP, x, 2));
}
DEVICE float quad_sum(float x)
{
    x += __shfl_xor_sync(AG_WARP, x, 1);
    return x + __shfl_xor_sync(AG_WARP, x, 2);
}

/* Row r (0 or 1: lane / 4, and 8 on) of y, times `times`, to a row of d numbers. */
template <class T, int D>
DEVICE void row_store(T *to, int d, float times, bool acc, bool vectors, int r,
                      const float y[D / 8][4])
{
    AG_UNROLL for (int n = 0; n < D / 8; n++) {
        const int c = n * 8 + frag_col(0);
        const float low = y[n][2 * r] * times, high = y[n][2 * r + 1] * times;
        if (vectors && c < d) {
            uint32_t *at = (uint32_t *)(to + c);
            const uint32_t was = acc ? *at : 0;
            *at = acc ? pack2<T>(low_of<T>(was) + low, high_of<T>(was) + high)
                      : pack2<T>(low, high);
        } else {
            if (c < d) put_sum(to + c, low, acc);
            if (c + 1 < d) put_sum(to + c + 1, high, acc);
        }
    }
}

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

/* Row r of the scores of keys from j0 on becomes exp2(x - top); top, and the sum of what this lane
 * has, go on.  Returns by how much what was summed before shrinks. */
DEVICE float softmax_step(float x[N8][4], int r, int j0, int see, float scale2, float *top,
                          float *sum)
{
    float m = *top, s = 0;
    AG_UNROLL for (int n = 0; n < N8; n++)
        AG_UNROLL for (int i = 2 * r; i < 2 * r + 2; i++) {
            x[n][i] = j0 + n * 8 + frag_col(i) < see ? x[n][i] * scale2 : -INFINITY;
            m = fmaxf(m, x[n][i]);
        }
    m = quad_max(m);
    const float base = m == -INFINITY ? 0 : m, shrink = exp2f(*top - base);
    AG_UNROLL for (int n = 0; n < N8; n++)
        AG_UNROLL for (int i = 2 * r; i < 2 * r + 2; i++) {
            x[n][i] = exp2f(x[n][i] - base);
            s += x[n][i];
        }
    *sum = *sum * shrink + s;
    *top = m;
    return shrink;
}

template <class T, int D>
DEVICE void result_store(const attention<T> &a, head_at e, int i, int split, int r, float top,
                         float sum, const float o[D / 8][4])
{
    const row_at<T> to = result_at(a, e, i, split);
    if (to.part) {
        AG_UNROLL for (int n = 0; n < D / 8; n++)
            AG_UNROLL for (int c = 0; c < 2; c++)
                if (n * 8 + frag_col(c) < a.d_v) to.part[n * 8 + frag_col(c)] = o[n][2 * r + c];
    } else {
        row_store<T, D>(to.o, a.d_v, sum > 0 ? 1 / sum : 0, false, a.vectors, r, o);
    }
    if (lane() % 4 == 0) put_sums(a, to, top, sum);
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
        scores<T, D, N8>(q + warp() * 16 * tile<D>::ROW, 8, k + now * tile<D>::SIZE, end - j0,
                           a.d_qk, x);
        AG_UNROLL for (int r = 0; r < 2; r++) {
            const int i = i0 + warp() * 16 + frag_row(2 * r);
            const float shrink = softmax_step(x, r, j0, min(end, seen(a, n, i)), a.scale2, &top[r],
                                              &sum[r]);
            AG_UNROLL for (int c = 0; c < D / 8; c++)
                o[c][2 * r] *= shrink, o[c][2 * r + 1] *= shrink;
            if (a.drop_below) drop_row<T, N8>(a, e.bh * a.tq + i, j0, 0, x, r);
        }
        add_product<T, D, N8>(x, v + now * tile<D>::SIZE, end - j0, a.d_v, o);
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
            const int rows = warp() * 16 * tile<D>::ROW, keys = end - j0 - part;
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
template <class T, int D>
static __global__ void __launch_bounds__(THREADS) mma_dkv(attention<T> a, int tiles)
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
            const int queries = a.tq - i0 - part;
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

/* Bytes of shared memory, forward and backward. */
template <class T, int D> static size_t room_fwd(void) { return 5 * tile<D>::SIZE * sizeof(T); }
template <class T, int D> static size_t room_bwd(void)
{
    return 6 * tile<D>::SIZE * sizeof(T) + 2 * THREADS * sizeof(float);
}

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
