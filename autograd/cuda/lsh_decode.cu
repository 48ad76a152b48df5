/*
 * lsh_decode.cu -- decoding of attention by hashing (ag_lsh_decode in kernels.h): of the positions
 * up to itself a query takes the newest that share a bucket with it, then the newest others, `most`
 * in all.
 *
 * Which they are follows from two numbers: the oldest that it takes of either kind.  The first
 * kernel finds these, from 4 rounds (i + 1) bytes of buckets for query i, and the second reads as
 * many.  There a warp looks at 32 positions at a time and goes through those that are taken, KEYS
 * at once so that their rows are on the way together: 4 most (d_qk + d_v) bytes for 2 most (2 d_qk
 * + d_v) operations, so memory sets the pace.  Each warp has a softmax of its own; a block merges
 * those of its warps, and the third kernel those of the blocks of a query, in a fixed order.
 */
#include "lsh.cuh"

constexpr int LANES = 32, WARPS = 4, THREADS = LANES * WARPS, KEYS = 4;
constexpr int N = 4, COLS = LANES * N /* of d_v, in a block */, PART = 2 /* top and sum */;

struct decode {
    int      heads, past, t, capacity, d_qk, d_v, rounds, most, splits;
    int64_t  rows;                   /* queries: pair * t + number */
    const int32_t *bucket;           /* [pairs,rounds,capacity] */
    const float *k, *v;              /* [batch,capacity,heads*d_qk], [batch,capacity,heads*d_v] */
    float   *o;                      /* [batch,t,heads*d_v] */
    int2    *oldest;                 /* [rows]: that shares a bucket, of others */
    float   *part;                   /* [splits,rows,d_v + PART], where there are several */
};

struct query { int64_t row, b; int h, i; };
DEVICE query query_of(const decode &d, int64_t row)
{
    const int64_t pair = row / d.t;
    return { row, pair / d.heads, (int)(pair % d.heads), d.past + (int)(row % d.t) };
}

DEVICE const float *key_at(const decode &d, const query &q, int j)
{
    return d.k + ((q.b * d.capacity + j) * d.heads + q.h) * d.d_qk;
}
DEVICE const float *value_at(const decode &d, const query &q, int j)
{
    return d.v + ((q.b * d.capacity + j) * d.heads + q.h) * d.d_v;
}

/* Does position j share a bucket with the query? */
DEVICE bool shares(const decode &d, const query &q, int j)
{
    const int32_t *bucket = d.bucket + (q.b * d.heads + q.h) * d.rounds * d.capacity;
    bool same = false;
    for (int r = 0; r < d.rounds; r++, bucket += d.capacity) same |= bucket[j] == bucket[q.i];
    return same;
}

/* --- which ------------------------------------------------------------------------------------ */

/* Of positions i - from .. i - to + 1, those that share a bucket, or do not: how many, by the whole
 * warp; the position of the nth of them from the newest on goes to *ret_at. */
static __device__ int walk(const decode &d, const query &q, int from, int to, bool shared, int nth,
                           int *ret_at)
{
    const int lane = (int)threadIdx.x % LANES;
    int n = 0;
    for (int u = from; u < to; u += LANES) {
        const bool is = u + lane < to && shares(d, q, q.i - u - lane) == shared;
        const unsigned who = __ballot_sync(AG_WARP, is);
        if (is && n + __popc(who & ((1u << lane) - 1)) == nth - 1) *ret_at = q.i - u - lane;
        n += __popc(who);
    }
    return n;
}

/* A block for each query: its warps take the positions in parts, the newest first. */
static __global__ void decode_oldest(decode d)
{
    AG_SHARED(int, count);           /* [warps], then the two oldest */
    const int warp = (int)threadIdx.x / LANES, warps = (int)blockDim.x / LANES;
    int *oldest = count + warps, none;
    const query q = query_of(d, blockIdx.x);
    const int each = (q.i / warps / LANES + 1) * LANES, from = min(warp * each, q.i + 1),
        to = min(from + each, q.i + 1);
    const int n = walk(d, q, from, to, true, 0, &none);
    if (threadIdx.x % LANES == 0) count[warp] = n;
    if (threadIdx.x < 2) oldest[threadIdx.x] = 0;        /* all of a kind, if none is found below */
    __syncthreads();
    int before = 0, all = 0;         /* that share a bucket: in newer parts, in all */
    for (int w = 0; w < warps; w++) {
        before += w < warp ? count[w] : 0;
        all += count[w];
    }
    const int others = d.most - min(all, d.most), others_before = from - before;
    if (before < d.most && d.most <= before + n)
        walk(d, q, from, to, true, d.most - before, &oldest[0]);
    if (others_before < others && others <= others_before + to - from - n)
        walk(d, q, from, to, false, others - others_before, &oldest[1]);
    __syncthreads();
    if (threadIdx.x == 0) d.oldest[q.row] = { oldest[0], others ? oldest[1] : q.i + 1 };
}

/* --- attention -------------------------------------------------------------------------------- */

struct softmax { float top, sum, o[N]; };

/* KEYS positions at once, -1: none */
static __device__ void keys_add(const decode &d, const query &q, const int j[KEYS], softmax *f)
{
    const int lane = (int)threadIdx.x % LANES, c0 = (int)blockIdx.z * COLS + lane;
    const float *x = key_at(d, q, q.i);
    float dot[KEYS] = {}, square[KEYS] = {}, value[KEYS][N] = {}, top = f->top;
    AG_UNROLL for (int u = 0; u < KEYS; u++)
        AG_UNROLL for (int n = 0; n < N; n++)
            if (j[u] >= 0 && c0 + n * LANES < d.d_v)
                value[u][n] = value_at(d, q, j[u])[c0 + n * LANES];
    for (int c = lane; c < d.d_qk; c += LANES)
        AG_UNROLL for (int u = 0; u < KEYS; u++) {
            const float key = j[u] >= 0 ? key_at(d, q, j[u])[c] : 0;
            dot[u] += x[c] * key;
            square[u] += key * key;
        }
    AG_UNROLL for (int u = 0; u < KEYS; u++) {
        const float size = lsh_warp_sum(square[u]) / (float)d.d_qk + LSH_EPS;
        dot[u] = lsh_warp_sum(dot[u]) / sqrtf(size * (float)d.d_qk) * LOG2_E;
        if (j[u] < 0) dot[u] = -INFINITY;
        top = fmaxf(top, dot[u]);
    }
    const float shrink = exp2f(f->top - top);
    f->top = top;
    f->sum *= shrink;
    for (int n = 0; n < N; n++) f->o[n] *= shrink;
    AG_UNROLL for (int u = 0; u < KEYS; u++) {
        const float p = exp2f(dot[u] - top);
        f->sum += p;
        for (int n = 0; n < N; n++) f->o[n] += p * value[u][n];
    }
}

/* All positions of 32, one for each lane, that are taken. */
static __device__ void group_add(const decode &d, const query &q, bool taken, int first, softmax *f)
{
    unsigned who = __ballot_sync(AG_WARP, taken);
    while (who) {
        int j[KEYS];
        AG_UNROLL for (int u = 0; u < KEYS; u++) {
            j[u] = who ? first + __ffs(who) - 1 : -1;
            who &= who - 1;
        }
        keys_add(d, q, j, f);
    }
}

/* s [n][row] has o, top and sum, n times; column c of o and the sums of all. */
DEVICE softmax merged(const float *s, int64_t row, int n, int c, int columns)
{
    softmax f = { -INFINITY, 0, { 0 } };
    for (int w = 0; w < n; w++) f.top = fmaxf(f.top, s[w * row + columns]);
    const float base = f.top == -INFINITY ? 0 : f.top;
    for (int w = 0; w < n; w++) {
        const float by = exp2f(s[w * row + columns] - base);
        f.sum += by * s[w * row + columns + 1];
        f.o[0] += by * s[w * row + c];
    }
    return f;
}

/* Column c of the result; a query that is alone has its value. */
DEVICE void put_o(const decode &d, const query &q, int c, const softmax &f)
{
    float *o = d.o + ((q.b * d.t + q.i - d.past) * d.heads + q.h) * d.d_v;
    o[c] = f.sum > 0 ? f.o[0] / f.sum : value_at(d, q, q.i)[c];
}

/* A block: a query (x), every splits-th group of positions (y), COLS columns of d_v (z). */
static __global__ void __launch_bounds__(THREADS) decode_run(decode d)
{
    AG_SHARED(float, s);             /* [WARPS][COLS + PART] */
    const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / LANES;
    const query q = query_of(d, blockIdx.x);
    const int2 oldest = d.oldest[q.row];
    softmax f = { -INFINITY, 0, { 0 } };
    const int step = d.splits * THREADS;
    for (int j0 = (int)blockIdx.y * THREADS + warp * LANES; j0 < q.i; j0 += step) {
        const int j = j0 + lane;
        group_add(d, q, j < q.i && j >= (shares(d, q, min(j, q.i)) ? oldest.x : oldest.y), j0, &f);
    }
    float *mine = s + warp * (COLS + PART);
    for (int n = 0; n < N; n++) mine[lane + n * LANES] = f.o[n];
    if (lane == 0) mine[COLS] = f.top, mine[COLS + 1] = f.sum;
    __syncthreads();
    const int x = (int)threadIdx.x, c = (int)blockIdx.z * COLS + x;
    if (x >= COLS || c >= d.d_v) return;
    f = merged(s, COLS + PART, WARPS, x, COLS);
    if (d.splits == 1) {
        put_o(d, q, c, f);
        return;
    }
    float *to = d.part + (blockIdx.y * d.rows + q.row) * (d.d_v + PART);
    to[c] = f.o[0];
    if (c == 0) to[d.d_v] = f.top, to[d.d_v + 1] = f.sum;
}

static __global__ void decode_merge(decode d)
{
    const int64_t x = (int64_t)blockIdx.x * THREADS + threadIdx.x, row = x / d.d_v;
    if (row >= d.rows) return;
    const int c = (int)(x % d.d_v);
    const softmax f = merged(d.part + row * (d.d_v + PART), d.rows * (d.d_v + PART), d.splits, c,
                             d.d_v);
    put_o(d, query_of(d, row), c, f);
}

void lsh_decode(const ag_lsh_decode *a)
{
    const int64_t most_threads = 1024;
    decode d = {};
    d.heads = (int)a->heads, d.past = (int)a->past, d.t = (int)a->t, d.capacity = (int)a->capacity;
    d.d_qk = (int)a->d_qk, d.d_v = (int)a->d_v, d.rounds = (int)a->rounds, d.most = (int)a->most;
    d.rows = a->batch * a->heads * a->t, d.bucket = a->bucket;
    d.k = (const float *)a->k, d.v = (const float *)a->v, d.o = (float *)a->o;
    if (d.rows == 0) return;
    const int64_t longest = a->past + a->t, groups = (longest + THREADS - 1) / THREADS,
        wanted = 4 * ag_cuda_processors() / d.rows;
    d.splits = (int)(wanted < 1 ? 1 : wanted < groups ? wanted : groups);
    const size_t part = d.splits > 1 ? (size_t)(d.splits * d.rows * (d.d_v + PART)) : 0;
    d.oldest = (int2 *)ag_cuda_workspace((size_t)d.rows * sizeof *d.oldest + part * sizeof(float));
    if (!d.oldest) return;
    d.part = (float *)(d.oldest + d.rows);
    const unsigned threads = (unsigned)(longest < most_threads ? (longest + 31) / 32 * 32
                                                               : most_threads);
    AG_LAUNCH(decode_oldest, (unsigned)d.rows, threads, (threads / LANES + 2) * sizeof(int), d);
    AG_LAUNCH(decode_run, dim3((unsigned)d.rows, (unsigned)d.splits, blocks_for(d.d_v, COLS)),
              THREADS, WARPS * (COLS + PART) * sizeof(float), d);
    if (d.splits > 1) AG_LAUNCH(decode_merge, blocks_for(d.rows * d.d_v, THREADS), THREADS, 0, d);
}
