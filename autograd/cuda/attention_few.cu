/*
 * attention_few.cu -- attention of up to 4 queries, as in decoding with a cache: bound by memory.
 *
 * Each number of k and v is read once, 16 bytes at a time: 2 t d numbers for 4 t d operations and a
 * query.  LANES threads have a key, and each has the same columns of q, k, v and o, so only a dot
 * product needs shuffles.  KEYS keys for each group of LANES are on the way at once.  Every group
 * has a softmax of its own; a block merges those of its groups, and attention_merge those of the
 * parts that the keys are cut into to keep all processors busy; both in a fixed order.
 *
 * With a pattern a block has one query, and its keys are the columns of its row in the tiles of the
 * pattern (blocks.cuh), each part's one after another: only those with a bit are read.
 */
#include "blocks.cuh"

constexpr int THREADS = 128, KEYS = 4;

/* Scores of a query for the KEYS keys of a group, bit u of sees: it sees key u; the sums over them
 * join top, sum and o. */
template <class T, int LANES, int N>
DEVICE void few_step(const float q[N], const pack<T> k[KEYS], const pack<T> v[KEYS], unsigned sees,
                     float *top, float *sum, float o[N])
{
    float x[KEYS], m = *top;
    AG_UNROLL for (int u = 0; u < KEYS; u++) {
        x[u] = 0;
        AG_UNROLL for (int n = 0; n < N; n++) x[u] += q[n] * get(&k[u].at[n]);
        AG_UNROLL for (int l = LANES / 2; l > 0; l /= 2) x[u] += __shfl_xor_sync(AG_WARP, x[u], l);
        if (!(sees >> u & 1)) x[u] = -INFINITY;
        m = fmaxf(m, x[u]);
    }
    const float base = m == -INFINITY ? 0 : m, shrink = exp2f(*top - base);
    float all = 0, sums[N] = {};
    AG_UNROLL for (int u = 0; u < KEYS; u++) {
        const float p = exp2f(x[u] - base);
        all += p;
        AG_UNROLL for (int n = 0; n < N; n++) sums[n] += p * get(&v[u].at[n]);
    }
    *top = m;
    *sum = *sum * shrink + all;
    AG_UNROLL for (int n = 0; n < N; n++) o[n] = o[n] * shrink + sums[n];
}

/* s [GROUPS][NQ][ROW] gets o, top and sum of each group. */
template <class T, int GROUPS, int NQ, int LANES>
DEVICE void few_store(float *s, int i, const float o[], float top, float sum)
{
    constexpr int N = 16 / (int)sizeof(T), ROW = LANES * N + 2;
    const int lane = (int)threadIdx.x % LANES;
    float *row = s + ((int)threadIdx.x / LANES * NQ + i) * ROW;
    AG_UNROLL for (int n = 0; n < N; n++) row[lane * N + n] = o[n];
    if (lane == 0) row[ROW - 2] = top, row[ROW - 1] = sum;
}

/* The results of queries i0 .. i0 + n - 1 from s: one thread for each column of o. */
template <class T, int GROUPS, int NQ, int ROW>
static __device__ void few_merge(const attention<T> &a, head_at e, int i0, int n_queries,
                                 int split, const float *s)
{
    for (int x = (int)threadIdx.x; x < n_queries * a.d_v; x += THREADS) {
        const int i = x / a.d_v, c = x % a.d_v;
        float top = -INFINITY, sum = 0, o = 0;
        for (int g = 0; g < GROUPS; g++) top = fmaxf(top, s[(g * NQ + i) * ROW + ROW - 2]);
        const float base = top == -INFINITY ? 0 : top;
        for (int g = 0; g < GROUPS; g++) {
            const float *row = s + (g * NQ + i) * ROW, f = exp2f(row[ROW - 2] - base);
            sum += f * row[ROW - 1];
            o += f * row[c];
        }
        const row_at<T> to = result_at(a, e, i0 + i, split);
        put_result(to, c, o, sum);
        if (c == 0) put_sums(a, to, top, sum);
    }
}

/* A block: one head (blockIdx.x), one part of the keys.  Blocks of neighbouring heads, which run at
 * about the same time, read neighbouring memory. */
template <class T, int LANES, int NQ>
static __global__ void __launch_bounds__(THREADS) few_fwd(attention<T> a)
{
    constexpr int N = 16 / (int)sizeof(T), GROUPS = THREADS / LANES, ROW = LANES * N + 2;
    AG_SHARED(float, s);
    const head_at e = head_of(blockIdx.x, a.heads);
    const int lane = (int)threadIdx.x % LANES, group = (int)threadIdx.x / LANES, c = lane * N;
    const int split = (int)blockIdx.y, n_keys = keys_of(a, e.b),
        end = min(seen(a, n_keys, a.tq - 1), (split + 1) * a.split_keys);
    const T *k_at = row_k(a, a.k, e, 0) + c, *v_at = row_v(a, a.v, e, 0) + c;
    float q[NQ][N], o[NQ][N] = {}, top[NQ], sum[NQ] = {};
    for (int i = 0; i < NQ; i++) {
        pack<T> x = {};
        if (i < a.tq && c < a.d_qk) x = pack_load(row_q(a, a.q, e, i) + c);
        for (int n = 0; n < N; n++) q[i][n] = get(&x.at[n]) * a.scale2;
        top[i] = -INFINITY;
    }
    for (int j0 = split * a.split_keys; j0 < end; j0 += GROUPS * KEYS) {
        pack<T> k[KEYS] = {}, v[KEYS] = {};
        AG_UNROLL for (int u = 0; u < KEYS; u++) {
            const int j = j0 + group + u * GROUPS;
            if (j < end && c < a.d_qk) k[u] = pack_load(k_at + j * a.k_row);
            if (j < end && c < a.d_v) v[u] = pack_load(v_at + j * a.v_row);
        }
        AG_UNROLL for (int i = 0; i < NQ; i++) {
            const int see = min(end, seen(a, n_keys, i));
            unsigned sees = 0;
            AG_UNROLL for (int u = 0; u < KEYS; u++)
                sees |= (unsigned)(j0 + group + u * GROUPS < see) << u;
            few_step<T, LANES, N>(q[i], k, v, sees, &top[i], &sum[i], o[i]);
        }
    }
    for (int i = 0; i < NQ; i++) few_store<T, GROUPS, NQ, LANES>(s, i, o[i], top[i], sum[i]);
    __syncthreads();
    few_merge<T, GROUPS, NQ, ROW>(a, e, 0, a.tq, split, s);
}

/* A block: one query (blockIdx.x), one part of the places for keys, which are 64 for each step of
 * its tiles. */
template <class T, int LANES>
static __global__ void __launch_bounds__(THREADS) few_blocks(attention<T> a, block_tables t)
{
    constexpr int N = 16 / (int)sizeof(T), GROUPS = THREADS / LANES, ROW = LANES * N + 2;
    AG_SHARED(float, s);
    const int i = (int)blockIdx.x % a.tq, split = (int)blockIdx.y;
    const head_at e = head_of(blockIdx.x / (unsigned)a.tq, a.heads);
    const int lane = (int)threadIdx.x % LANES, group = (int)threadIdx.x / LANES, c = lane * N;
    const T *k_at = row_k(a, a.k, e, 0) + c, *v_at = row_v(a, a.v, e, 0) + c;
    const pattern_part *part = t.part + e.h % t.layouts * t.parts;
    float q[N], o[N] = {}, top = -INFINITY, sum = 0;
    pack<T> x = {};
    if (c < a.d_qk) x = pack_load(row_q(a, a.q, e, i) + c);
    for (int n = 0; n < N; n++) q[n] = get(&x.at[n]) * a.scale2;
    int begin = split * a.split_keys, end = begin + a.split_keys;    /* from this part's first */
    for (int p = 0; p < part->n_parts; p++) {
        const int at = t.where[part[p].side[TILES_OF_QUERIES].where + i + a.q_pos0];
        const pattern_tile tile = t.tile[at / TILE];
        const int places = (tile.end - tile.begin) * TILE;
        for (int j0 = max(begin, 0); j0 < min(end, places); j0 += GROUPS * KEYS) {
            pack<T> k[KEYS] = {}, v[KEYS] = {};
            unsigned sees = 0;
            AG_UNROLL for (int u = 0; u < KEYS; u++) {
                const int place = j0 + group + u * GROUPS;
                if (place >= min(end, places)) continue;
                const pattern_step step = t.step[tile.begin + place / TILE];
                if (!(row_bits(t, step, at % TILE) >> place % TILE & 1)) continue;
                const int j = index_of(t, step, place % TILE, 0, a.tk);
                if (j < 0) continue;
                sees |= 1u << u;
                if (c < a.d_qk) k[u] = pack_load(k_at + j * a.k_row);
                if (c < a.d_v) v[u] = pack_load(v_at + j * a.v_row);
            }
            if (__any_sync(AG_WARP, sees != 0))
                few_step<T, LANES, N>(q, k, v, sees, &top, &sum, o);
        }
        begin -= places;
        end -= places;
    }
    few_store<T, GROUPS, 1, LANES>(s, 0, o, top, sum);
    __syncthreads();
    few_merge<T, GROUPS, 1, ROW>(a, e, i, 1, split, s);
}

template <class T, int LANES, int NQ> static void run(const attention<T> &a)
{
    constexpr int N = 16 / (int)sizeof(T), GROUPS = THREADS / LANES;
    const size_t shared = (size_t)GROUPS * NQ * (LANES * N + 2) * sizeof(float);
    AG_LAUNCH((few_fwd<T, LANES, NQ>), dim3((unsigned)(a.batch * a.heads), (unsigned)a.splits),
              THREADS, shared, a);
    if (a.splits > 1) attention_merge(a);
}

template <class T> bool attention_few_fwd(const attention<T> &args)
{
    constexpr int N = 16 / (int)sizeof(T);
    attention<T> a = args;
    const int d = a.d_qk > a.d_v ? a.d_qk : a.d_v;
    if (a.tq > 4 || d > 128 || !a.vectors || a.drop_below) return false;
    if (!attention_split(&a, (int64_t)a.batch * a.heads, 8 * ag_cuda_processors(), 2 * TILE))
        return true;
    if (d <= 32) a.tq == 1 ? run<T, 32 / N, 1>(a) : run<T, 32 / N, 4>(a);
    else if (d <= 64) a.tq == 1 ? run<T, 64 / N, 1>(a) : run<T, 64 / N, 4>(a);
    else a.tq == 1 ? run<T, 128 / N, 1>(a) : run<T, 128 / N, 4>(a);
    return true;
}

template <class T, int LANES> static void run(const attention<T> &a, const block_tables &t)
{
    constexpr int N = 16 / (int)sizeof(T), GROUPS = THREADS / LANES;
    const size_t shared = (size_t)GROUPS * (LANES * N + 2) * sizeof(float);
    const int64_t rows = (int64_t)a.batch * a.heads * a.tq;
    AG_LAUNCH((few_blocks<T, LANES>), dim3((unsigned)rows, (unsigned)a.splits), THREADS, shared, a,
              t);
    if (a.splits > 1) attention_merge(a);
}

template <class T> bool block_few_fwd(const attention<T> &args, const block_tables &t)
{
    constexpr int N = 16 / (int)sizeof(T);
    const int d = args.d_qk > args.d_v ? args.d_qk : args.d_v;
    if (args.tq > 4 || d > 128 || !args.vectors) return false;
    attention<T> a = args;
    a.tk = t.most_steps * TILE;      /* places are cut, not keys */
    if (!attention_split(&a, (int64_t)a.batch * a.heads * a.tq, 8 * ag_cuda_processors(),
                         2 * TILE))
        return true;
    a.tk = args.tk;
    d <= 32 ? run<T, 32 / N>(a, t) : d <= 64 ? run<T, 64 / N>(a, t) : run<T, 128 / N>(a, t);
    return true;
}

#define INSTANCES(T)                                                                    \
    template bool attention_few_fwd(const attention<T> &a);                             \
    template bool block_few_fwd(const attention<T> &a, const block_tables &t);
INSTANCES(float)
INSTANCES(bf16)
INSTANCES(f16)
