/*
 * lsh_tiles.cu -- attention by hashing in tiles: up to 64 queries of a chunk, and 64 of the keys
 * that it meets, heads of at most 128.  tile_fma.cuh has the products.
 *
 * What a chunk meets is numbered through: number u is the (u % cut)-th of the chunk in slot
 * u / cut, so small chunks fill a tile together.  Of each row of a tile a `side` in shared memory
 * says what it is; then rows are gathered by position.  A tile of which no two see each other is
 * not loaded: where it is causal, about half of those before the own chunk's.
 *
 * A launch has one round, in which each position is a query once and a key once: results join those
 * of the rounds before without another block in the way.
 */
#include "lsh.cuh"
#include "tile_fma.cuh"

constexpr int THREADS = TILE_THREADS;

#define BLOCKS(D) ((D) <= 64 ? 2 : 1)    /* of a processor at once */

/* The tile of a block: TILE positions of chunk g from number `place` on. */
struct block { int64_t pair; int g, place, length; };
static __device__ block block_of(const lsh &a, int round, int tiles)
{
    const int64_t part = blockIdx.x / tiles, pair = part / a.chunks;
    return { pair, round * a.chunks + (int)(part % a.chunks), (int)(blockIdx.x % tiles) * TILE,
             lsh_length(a, pair) };
}

/* What the rows of a tile are, each an array of TILE. */
struct side {
    uint64_t *noise;                 /* of a key: its column; of a query: its row and slot */
    int      *pos;                   /* -1: no row */
    int      *id;                    /* seen where it is equal: below */
    float    *by, *delta;            /* of a key: scale to the base 2; of a query: lse2, delta */
    int      *chunk, *bucket;        /* for a.correct: [rounds][TILE] */
};

/* Ids: with a.bucket_mask a bucket, numbered over all rounds, else ANY; of a query that is not
 * there, and of a key that is not there or beyond the length, what nothing equals. */
enum { ANY = -1, NO_QUERY = -2, NO_KEY = -3 };

static __host__ __device__ size_t side_bytes(const lsh &a)
{
    const int arrays = a.correct ? 1 + a.bucket_mask : 0;
    return TILE * (sizeof(uint64_t) + (4 + (size_t)arrays * a.rounds) * sizeof(int));
}

static __device__ side side_at(const lsh &a, void *memory)
{
    side s;
    s.noise = (uint64_t *)memory;
    s.pos = (int *)(s.noise + TILE);
    s.id = s.pos + TILE;
    s.by = (float *)(s.id + TILE);
    s.delta = s.by + TILE;
    s.chunk = (int *)(s.delta + TILE);
    s.bucket = s.chunk + a.rounds * TILE;
    return s;
}

/* Row x: the at-th of chunk g, seen if its position, which this returns, is below `end`. */
static __device__ int side_put(const lsh &a, int64_t pair, const side &s, int x, int g, int at,
                               int end, int none)
{
    const lsh_part p = lsh_chunk_at(a, pair, g);
    const int i = at < p.n ? a.order[p.begin + at] : -1;
    s.pos[x] = i;
    s.id[x] = i < 0 || i >= end ? none
        : a.bucket_mask ? p.round * a.buckets + a.bucket[lsh_round_at(a, pair, p.round) + i] : ANY;
    for (int r = 0; a.correct && r < a.rounds; r++) {
        const int64_t round = lsh_round_at(a, pair, r);
        s.chunk[r * TILE + x] = i >= 0 ? r * a.chunks + a.rank[round + i] / a.cut : 0;
        if (a.bucket_mask) s.bucket[r * TILE + x] = i >= 0 ? a.bucket[round + i] : -1;
    }
    return i;
}

static __device__ void key_put(const lsh &a, const block &e, const side &s, int x, int g, int at)
{
    const int j = side_put(a, e.pair, s, x, g, at, e.length, NO_KEY);
    s.by[x] = j >= 0 ? a.scale[e.pair * a.t + j] * LOG2_E : 0;
}

static __device__ void query_put(const lsh &a, const block &e, const side &s, int x, int g, int at,
                                 int slot)
{
    const int i = side_put(a, e.pair, s, x, g, at, a.t, NO_QUERY);
    s.by[x] = i >= 0 && a.d_o ? lsh_log2(a.lse[e.pair * a.t + i]) : INFINITY;
    s.delta[x] = i >= 0 && a.d_o ? a.delta[e.pair * a.t + i] : 0;
    s.noise[x] = lsh_noise_row(a, e.pair, at, slot);
}

/* Rows of a tile of keys, or queries, from the u0-th on that the block's chunk meets, or that meet
 * it. */
static __device__ void keys_put(const lsh &a, const block &e, const side &s, int u0)
{
    const int x = (int)threadIdx.x, slot = (u0 + x) / a.cut, at = (u0 + x) % a.cut;
    if (x >= TILE) return;
    const bool is = slot < a.slots;
    key_put(a, e, s, x, is ? lsh_met(a, e.g, slot) : e.g, is ? at : a.cut);
    s.noise[x] = (uint64_t)(slot * ag_noise_stride(a.chunk) + at);
}

static __device__ void queries_put(const lsh &a, const block &e, const side &s, int u0)
{
    const int x = (int)threadIdx.x, slot = (u0 + x) / a.cut, at = (u0 + x) % a.cut;
    if (x >= TILE) return;
    const bool is = slot < a.slots;
    query_put(a, e, s, x, is ? lsh_met_by(a, e.g, slot) : e.g, is ? at : a.cut, slot);
}

/* The least and the greatest position and id of what is there. */
struct range { int first, last, id0, id1; };
static __device__ range range_of(const side &s)
{
    range r = { INT32_MAX, -1, INT32_MAX, NO_KEY };
    for (int x = (int)threadIdx.x % 32; x < TILE; x += 32)
        if (s.id[x] >= ANY)
            r = { min(r.first, s.pos[x]), max(r.last, s.pos[x]), min(r.id0, s.id[x]),
                  max(r.id1, s.id[x]) };
    for (int m = 16; m > 0; m /= 2) {
        r.first = min(r.first, __shfl_xor_sync(AG_WARP, r.first, m));
        r.last = max(r.last, __shfl_xor_sync(AG_WARP, r.last, m));
        r.id0 = min(r.id0, __shfl_xor_sync(AG_WARP, r.id0, m));
        r.id1 = max(r.id1, __shfl_xor_sync(AG_WARP, r.id1, m));
    }
    return r;
}

/* May one of the queries see one of the keys? */
DEVICE bool may_see(const lsh &a, const range &q, const range &k)
{
    return q.last >= 0 && k.last >= 0 && (!a.causal || k.first < q.last) && k.id0 <= q.id1 &&
           q.id0 <= k.id1;
}

DEVICE bool sees(const lsh &a, const side &q, int i, const side &k, int j)
{
    return q.id[i] == k.id[j] && (a.causal ? k.pos[j] < q.pos[i] : k.pos[j] != q.pos[i]);
}

/* log2 of how often row i of the queries meets row j of the keys over all rounds */
static __device__ float log_meetings(const lsh &a, const side &q, int i, const side &k, int j)
{
    int count = 0;
    for (int r = 0; r < a.rounds; r++) {
        if (a.bucket_mask) {
            if (q.bucket[r * TILE + i] == k.bucket[r * TILE + j])
                count += lsh_meets(a, q.chunk[r * TILE + i], k.chunk[r * TILE + j]);
            continue;
        }
        for (int s = 0; s < a.rounds; s++)
            count += lsh_meets(a, q.chunk[r * TILE + i], k.chunk[s * TILE + j]);
    }
    return log2f((float)max(count, 1));
}

/* A score from the product x of row i of the queries and row j of the keys; -inf: not seen */
DEVICE float score(const lsh &a, const side &q, int i, const side &k, int j, float x)
{
    if (!sees(a, q, i, k, j)) return -INFINITY;
    return x * k.by[j] - (a.correct ? log_meetings(a, q, i, k, j) : 0);
}

/* What four elements of noise e, e + 16, e + 32, e + 48 of a group of 64 make of their weights. */
DEVICE void kept_four(const lsh &a, uint64_t e, float r[4])
{
    const ag_noise z = ag_noise_now(a.noise);
    uint32_t bits[4];
    ag_philox(z.seed, z.step, z.site, e / 64 * 16 + e % 16, bits);
    AG_UNROLL for (int c = 0; c < 4; c++) r[c] = bits[c] >= a.drop_below ? a.kept : 0;
}

/* What the keys of this thread's columns are multiplied with for row i of the queries. */
DEVICE void kept_keys(const lsh &a, const side &q, int i, const side &k, float r[4])
{
    if (!a.drop_below)
        AG_UNROLL for (int c = 0; c < 4; c++) r[c] = 1;
    else if (a.cut % TILE == 0 || a.slots == 1)
        kept_four(a, q.noise[i] + k.noise[lane_x()], r);
    else
        AG_UNROLL for (int c = 0; c < 4; c++)
            r[c] = lsh_kept(a, q.noise[i] + k.noise[lane_x() + 16 * c]);
}

/* Shared memory: `tiles` of rows, one of weights, two sides. */
template <int D> struct room {
    static size_t bytes(const lsh &a, int tiles)
    {
        return ((size_t)tiles * tile<D>::SIZE + TILE * WEIGHTS) * sizeof(float) + 2 * side_bytes(a);
    }
};

/* --- forward ---------------------------------------------------------------------------------- */

/* One row: x = exp2(x - top); top, and the sum of what this thread has of the row, go on.  Returns
 * by how much what was summed before shrinks. */
DEVICE float softmax_step(float x[4], float *top, float *sum)
{
    float m = *top, s = 0;
    AG_UNROLL for (int c = 0; c < 4; c++) m = fmaxf(m, x[c]);
    m = row_max(m);
    const float base = m == -INFINITY ? 0 : m, shrink = exp2f(*top - base);
    AG_UNROLL for (int c = 0; c < 4; c++) {
        x[c] = exp2f(x[c] - base);
        s += x[c];
    }
    *sum = *sum * shrink + s;
    *top = m;
    return shrink;
}

/* o and lse of query i joined with what the rounds before left: their weights are exp(lse - joint
 * lse).  All lanes of a warp come here, `is` or not. */
template <int D>
static __device__ void join(const lsh &a, int64_t pair, int i, bool is, bool first, float top,
                            float sum, const float o[tile<D>::COLS])
{
    float *lse = a.lse + pair * a.t + i, *to = a.o + lsh_v_at(a, pair, i);
    const float old = is && !first ? *lse : -INFINITY;
    const float now = sum > 0 ? top * LN_2 + logf(sum) : -INFINITY, most = fmaxf(old, now);
    const float base = most == -INFINITY ? 0 : most, w = expf(old - base), u = expf(now - base);
    const float by_old = w > 0 ? w / (w + u) : 0, by_now = u > 0 ? u / (w + u) / sum : 0;
    __syncwarp();
    if (!is) return;
    AG_UNROLL for (int n = 0; n < tile<D>::COLS; n++) {
        const int c = column<D>(n);
        if (c < a.d_v) to[c] = (by_old > 0 ? to[c] * by_old : 0) + o[n] * by_now;
    }
    if (lane_x() == 0) *lse = most == -INFINITY ? -INFINITY : base + logf(w + u);
}

template <int D>
static __global__ void __launch_bounds__(THREADS, BLOCKS(D)) lsh_tile_fwd(lsh a, int round,
                                                                          int tiles)
{
    AG_SHARED(float, q);             /* each [TILE][D + 4] */
    float *k = q + tile<D>::SIZE, *v = k + tile<D>::SIZE, *w = v + tile<D>::SIZE;
    const side qs = side_at(a, w + TILE * WEIGHTS),
        ks = side_at(a, (char *)(w + TILE * WEIGHTS) + side_bytes(a));
    const block e = block_of(a, round, tiles);
    const int64_t q_row = (int64_t)a.heads * a.d_qk, v_row = (int64_t)a.heads * a.d_v;
    const float *q0 = a.q + lsh_q_at(a, e.pair, 0), *v0 = a.v + lsh_v_at(a, e.pair, 0);
    float o[4][tile<D>::COLS] = {}, top[4], sum[4] = {}, x[4][4], shrink[4];
    for (int r = 0; r < 4; r++) top[r] = -INFINITY;
    if (threadIdx.x < TILE)
        query_put(a, e, qs, (int)threadIdx.x, e.g, e.place + (int)threadIdx.x, 0);
    __syncthreads();
    const range queries = range_of(qs);
    tile_gather<D>(q, q0, q_row, qs.pos, a.d_qk, a.vectors);
    for (int u0 = 0; u0 < a.slots * a.cut; u0 += TILE) {
        __syncthreads();
        keys_put(a, e, ks, u0);
        __syncthreads();
        if (!may_see(a, queries, range_of(ks))) continue;
        tile_gather<D>(k, q0, q_row, ks.pos, a.d_qk, a.vectors);
        tile_gather<D>(v, v0, v_row, ks.pos, a.d_v, a.vectors);
        __syncthreads();
        nt<D>(q, k, a.d_qk, x);
        AG_UNROLL for (int r = 0; r < 4; r++) {
            const int i = lane_y() + 16 * r;
            float kept[4];
            AG_UNROLL for (int c = 0; c < 4; c++)
                x[r][c] = score(a, qs, i, ks, lane_x() + 16 * c, x[r][c]);
            shrink[r] = softmax_step(x[r], &top[r], &sum[r]);
            kept_keys(a, qs, i, ks, kept);
            AG_UNROLL for (int c = 0; c < 4; c++) x[r][c] *= kept[c];
        }
        weights_store(w, x);
        __syncwarp();
        nn<D>(w, v, min(TILE, a.slots * a.cut - u0), shrink, o);
    }
    AG_UNROLL for (int r = 0; r < 4; r++) {
        const int i = qs.pos[lane_y() + 16 * r];
        join<D>(a, e.pair, max(i, 0), i >= 0, round == 0, top[r], row_sum(sum[r]), o[r]);
    }
}

/* --- backward --------------------------------------------------------------------------------- */

/* From the product x and y = do . v of a query and key:  x = r p, y = ds = p (r y - delta) */
DEVICE void pair_grad(const lsh &a, const side &q, int i, const side &k, int j, float kept,
                      float *x, float *y)
{
    const float s = score(a, q, i, k, j, *x), p = s == -INFINITY ? 0 : exp2f(s - q.by[i]);
    *y = p * (kept * *y - q.delta[i]);
    *x = kept * p;
}

/* The rows list[] of x (+)= y */
template <int D>
static __device__ void rows_add(float *x, int64_t row, const int *list, int d, bool acc,
                                const float y[4][tile<D>::COLS])
{
    AG_UNROLL for (int r = 0; r < 4; r++) {
        const int i = list[lane_y() + 16 * r];
        if (i < 0) continue;
        AG_UNROLL for (int n = 0; n < tile<D>::COLS; n++) {
            float *to = x + i * row + column<D>(n);
            if (column<D>(n) < d) *to = (acc ? *to : 0) + y[r][n];
        }
    }
}

/* dq of a tile of queries. */
template <int D>
static __global__ void __launch_bounds__(THREADS, BLOCKS(D)) lsh_tile_dq(lsh a, int round,
                                                                         int tiles)
{
    AG_SHARED(float, q);
    float *g = q + tile<D>::SIZE, *k = g + tile<D>::SIZE, *v = k + tile<D>::SIZE,
        *w = v + tile<D>::SIZE;
    const side qs = side_at(a, w + TILE * WEIGHTS),
        ks = side_at(a, (char *)(w + TILE * WEIGHTS) + side_bytes(a));
    const block e = block_of(a, round, tiles);
    const int64_t q_row = (int64_t)a.heads * a.d_qk, v_row = (int64_t)a.heads * a.d_v;
    const int64_t q_at = lsh_q_at(a, e.pair, 0), v_at = lsh_v_at(a, e.pair, 0);
    const float one[4] = { 1, 1, 1, 1 };
    float dq[4][tile<D>::COLS] = {}, x[4][4], y[4][4];
    if (threadIdx.x < TILE)
        query_put(a, e, qs, (int)threadIdx.x, e.g, e.place + (int)threadIdx.x, 0);
    __syncthreads();
    const range queries = range_of(qs);
    tile_gather<D>(q, a.q + q_at, q_row, qs.pos, a.d_qk, a.vectors);
    tile_gather<D>(g, a.d_o + v_at, v_row, qs.pos, a.d_v, a.vectors);
    for (int u0 = 0; u0 < a.slots * a.cut; u0 += TILE) {
        __syncthreads();
        keys_put(a, e, ks, u0);
        __syncthreads();
        if (!may_see(a, queries, range_of(ks))) continue;
        tile_gather<D>(k, a.q + q_at, q_row, ks.pos, a.d_qk, a.vectors);
        tile_gather<D>(v, a.v + v_at, v_row, ks.pos, a.d_v, a.vectors);
        __syncthreads();
        nt<D>(q, k, a.d_qk, x);
        nt<D>(g, v, a.d_v, y);
        AG_UNROLL for (int r = 0; r < 4; r++) {
            const int i = lane_y() + 16 * r;
            float kept[4];
            kept_keys(a, qs, i, ks, kept);
            AG_UNROLL for (int c = 0; c < 4; c++) {
                const int j = lane_x() + 16 * c;
                pair_grad(a, qs, i, ks, j, kept[c], &x[r][c], &y[r][c]);
                y[r][c] *= ks.by[j] * LN_2;
            }
        }
        weights_store(w, y);
        __syncwarp();
        nn<D>(w, k, min(TILE, a.slots * a.cut - u0), one, dq);
    }
    rows_add<D>(a.dq + q_at, q_row, qs.pos, a.d_qk, true, dq);
}

/* dk and dv of a tile of keys: the rows here, queries are the columns. */
template <int D>
static __global__ void __launch_bounds__(THREADS, BLOCKS(D)) lsh_tile_dkv(lsh a, int round,
                                                                          int tiles)
{
    AG_SHARED(float, k);
    float *v = k + tile<D>::SIZE, *q = v + tile<D>::SIZE, *g = q + tile<D>::SIZE,
        *w = g + tile<D>::SIZE;
    const side ks = side_at(a, w + TILE * WEIGHTS),
        qs = side_at(a, (char *)(w + TILE * WEIGHTS) + side_bytes(a));
    const block e = block_of(a, round, tiles);
    const int64_t q_row = (int64_t)a.heads * a.d_qk, v_row = (int64_t)a.heads * a.d_v;
    const int64_t q_at = lsh_q_at(a, e.pair, 0), v_at = lsh_v_at(a, e.pair, 0);
    const float one[4] = { 1, 1, 1, 1 };
    float dk[4][tile<D>::COLS] = {}, dv[4][tile<D>::COLS] = {}, x[4][4], y[4][4];
    if (threadIdx.x < TILE)
        key_put(a, e, ks, (int)threadIdx.x, e.g, e.place + (int)threadIdx.x);
    __syncthreads();
    const range keys = range_of(ks);
    tile_gather<D>(k, a.q + q_at, q_row, ks.pos, a.d_qk, a.vectors);
    tile_gather<D>(v, a.v + v_at, v_row, ks.pos, a.d_v, a.vectors);
    for (int u0 = 0; u0 < a.slots * a.cut; u0 += TILE) {
        __syncthreads();
        queries_put(a, e, qs, u0);
        __syncthreads();
        if (!may_see(a, range_of(qs), keys)) continue;
        tile_gather<D>(q, a.q + q_at, q_row, qs.pos, a.d_qk, a.vectors);
        tile_gather<D>(g, a.d_o + v_at, v_row, qs.pos, a.d_v, a.vectors);
        __syncthreads();
        nt<D>(k, q, a.d_qk, x);
        nt<D>(v, g, a.d_v, y);
        AG_UNROLL for (int c = 0; c < 4; c++) {
            const int i = lane_x() + 16 * c;
            float kept[4] = { 1, 1, 1, 1 };
            if (a.drop_below) kept_four(a, qs.noise[i] + (uint64_t)(e.place + lane_y()), kept);
            AG_UNROLL for (int r = 0; r < 4; r++)
                pair_grad(a, qs, i, ks, lane_y() + 16 * r, kept[r], &x[r][c], &y[r][c]);
        }
        const int queries = min(TILE, a.slots * a.cut - u0);
        weights_store(w, x);
        __syncwarp();
        nn<D>(w, g, queries, one, dv);
        __syncwarp();
        weights_store(w, y);
        __syncwarp();
        nn<D>(w, q, queries, one, dk);
    }
    rows_add<D>(a.dk + e.pair * a.t * a.d_qk, a.d_qk, ks.pos, a.d_qk, round > 0, dk);
    rows_add<D>(a.dv + v_at, v_row, ks.pos, a.d_v, true, dv);
}

/* --- host ------------------------------------------------------------------------------------- */

/* Does a block have the memory?  Chunks of a few positions leave most of a tile empty. */
static bool suits(const lsh &a, size_t bytes)
{
    return bytes <= ag_cuda_shared_most() && a.cut >= TILE / 4;
}

template <int D> static bool run_fwd(const lsh &a)
{
    const int tiles = (a.cut + TILE - 1) / TILE;
    const size_t bytes = room<D>::bytes(a, 3);
    if (!suits(a, bytes)) return false;
    for (int r = 0; r < a.rounds; r++)
        AG_LAUNCH(lsh_tile_fwd<D>, (unsigned)(a.pairs * a.chunks * tiles), THREADS, bytes, a, r,
                  tiles);
    return true;
}

template <int D> static bool run_bwd(const lsh &a)
{
    const int tiles = (a.cut + TILE - 1) / TILE;
    const unsigned blocks = (unsigned)(a.pairs * a.chunks * tiles);
    const size_t bytes = room<D>::bytes(a, 4);
    if (!suits(a, bytes)) return false;
    for (int r = 0; r < a.rounds; r++) {
        AG_LAUNCH(lsh_tile_dq<D>, blocks, THREADS, bytes, a, r, tiles);
        AG_LAUNCH(lsh_tile_dkv<D>, blocks, THREADS, bytes, a, r, tiles);
    }
    return true;
}

bool lsh_tiles_fwd(const lsh &a)
{
    const int d = a.d_qk > a.d_v ? a.d_qk : a.d_v;
    return d > 128 ? false : d <= 32 ? run_fwd<32>(a) : d <= 64 ? run_fwd<64>(a) : run_fwd<128>(a);
}

bool lsh_tiles_bwd(const lsh &a)
{
    const int d = a.d_qk > a.d_v ? a.d_qk : a.d_v;
    return d > 128 ? false : d <= 32 ? run_bwd<32>(a) : d <= 64 ? run_bwd<64>(a) : run_bwd<128>(a);
}
