/*
 * lsh_any.cu -- attention by hashing for heads of any size: a warp for each query, or key, over all
 * that it meets in all rounds, in rows as they lie.  Each two that meet are a dot product of the
 * whole warp, so this is slow: it is for heads that the tiles have no room for, and for chunks
 * of a few positions.
 */
#include "lsh.cuh"

constexpr int THREADS = 128, LANES = 32, WARPS = THREADS / LANES, N = 8, COLS = LANES * N;

DEVICE int lane(void) { return (int)threadIdx.x % LANES; }

/* x . y, for every lane */
static __device__ float dot(const float *x, const float *y, int d)
{
    float s = 0;
    for (int c = lane(); c < d; c += LANES) s += x[c] * y[c];
    return lsh_warp_sum(s);
}

/* y += w x over the columns of this warp, of d */
DEVICE void add_row(float w, const float *x, int d, float y[N])
{
    AG_UNROLL for (int n = 0; n < N; n++) {
        const int c = (int)blockIdx.y * COLS + lane() + n * LANES;
        if (c < d) y[n] += w * x[c];
    }
}

DEVICE void store_row(float *x, int d, float times, bool acc, const float y[N])
{
    AG_UNROLL for (int n = 0; n < N; n++) {
        const int c = (int)blockIdx.y * COLS + lane() + n * LANES;
        if (c < d) x[c] = (acc ? x[c] : 0) + y[n] * times;
    }
}

/* A query i in round r, the at-th of its chunk, meets key j in a slot. */
struct meeting { int64_t pair; int i, j, round, key_round, at, slot, key_at; };

static __device__ bool sees(const lsh &a, const meeting &m)
{
    if (m.j >= lsh_length(a, m.pair) || (a.causal ? m.j >= m.i : m.j == m.i)) return false;
    const int32_t *bucket = a.bucket + lsh_round_at(a, m.pair, m.round);
    return !a.bucket_mask || (m.round == m.key_round && bucket[m.i] == bucket[m.j]);
}

/* How often query i meets key j over all rounds. */
static __device__ int meetings(const lsh &a, const meeting &m)
{
    int count = 0;
    for (int r = 0; r < a.rounds; r++)
        for (int s = 0; s < a.rounds; s++) {
            const int64_t q = lsh_round_at(a, m.pair, r), k = lsh_round_at(a, m.pair, s);
            if (a.bucket_mask && (r != s || a.bucket[q + m.i] != a.bucket[q + m.j])) continue;
            count += lsh_meets(a, r * a.chunks + a.rank[q + m.i] / a.cut,
                               s * a.chunks + a.rank[k + m.j] / a.cut);
        }
    return count;
}

/* The score to the base 2, by the whole warp. */
static __device__ float score(const lsh &a, const meeting &m)
{
    const float s = dot(a.q + lsh_q_at(a, m.pair, m.i), a.q + lsh_q_at(a, m.pair, m.j), a.d_qk);
    const float x = s * a.scale[m.pair * a.t + m.j] * LOG2_E;
    return a.correct ? x - log2f((float)meetings(a, m)) : x;
}

static __device__ float kept(const lsh &a, const meeting &m)
{
    if (!a.drop_below) return 1;
    return lsh_kept(a, lsh_noise_row(a, m.pair, m.at, m.slot) + (uint64_t)m.key_at);
}

/* f(m) for all that query i sees. */
template <class F> static __device__ void each_seen(const lsh &a, int64_t pair, int i, F f)
{
    for (int r = 0; r < a.rounds; r++) {
        const int rank = a.rank[lsh_round_at(a, pair, r) + i], g = r * a.chunks + rank / a.cut;
        for (int slot = 0; slot < a.slots; slot++) {
            const lsh_part k = lsh_chunk_at(a, pair, lsh_met(a, g, slot));
            for (int x = 0; x < k.n; x++) {
                const int j = a.order[k.begin + x];
                const meeting m = { pair, i, j, r, k.round, rank % a.cut, slot, x };
                if (sees(a, m)) f(m);
            }
        }
    }
}

/* f(m) for all that see key j. */
template <class F> static __device__ void each_seeing(const lsh &a, int64_t pair, int j, F f)
{
    for (int s = 0; s < a.rounds; s++) {
        const int rank = a.rank[lsh_round_at(a, pair, s) + j], h = s * a.chunks + rank / a.cut;
        for (int slot = 0; slot < a.slots; slot++) {
            const lsh_part q = lsh_chunk_at(a, pair, lsh_met_by(a, h, slot));
            for (int y = 0; y < q.n; y++) {
                const int i = a.order[q.begin + y];
                const meeting m = { pair, i, j, q.round, s, y, slot, rank % a.cut };
                if (sees(a, m)) f(m);
            }
        }
    }
}

/* The position of this warp; false: there is none. */
static __device__ bool place_of(const lsh &a, int64_t *ret_pair, int *ret_i)
{
    const int64_t w = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES;
    *ret_pair = w / a.t;
    *ret_i = (int)(w % a.t);
    return *ret_pair < a.pairs;
}

static __global__ void lsh_row_fwd(lsh a)
{
    int64_t pair;
    int i;
    if (!place_of(a, &pair, &i)) return;
    float o[N] = {}, top = -INFINITY, sum = 0;
    each_seen(a, pair, i, [&](const meeting &m) {
        const float s = score(a, m), most = fmaxf(s, top), shrink = exp2f(top - most),
            p = exp2f(s - most);
        sum = sum * shrink + p;
        top = most;
        for (int n = 0; n < N; n++) o[n] *= shrink;
        add_row(p * kept(a, m), a.v + lsh_v_at(a, pair, m.j), a.d_v, o);
    });
    store_row(a.o + lsh_v_at(a, pair, i), a.d_v, sum > 0 ? 1 / sum : 0, false, o);
    if (lane() == 0 && blockIdx.y == 0)
        a.lse[pair * a.t + i] = sum > 0 ? top * LN_2 + logf(sum) : -INFINITY;
}

/* *ret_rp = r p, returns ds = p (r do.v - delta) */
static __device__ float pair_grad(const lsh &a, const meeting &m, float *ret_rp)
{
    const float p = exp2f(score(a, m) - lsh_log2(a.lse[m.pair * a.t + m.i])), r = kept(a, m);
    const float dp = dot(a.d_o + lsh_v_at(a, m.pair, m.i), a.v + lsh_v_at(a, m.pair, m.j), a.d_v);
    *ret_rp = r * p;
    return p * (r * dp - a.delta[m.pair * a.t + m.i]);
}

static __global__ void lsh_row_dq(lsh a)
{
    int64_t pair;
    int i;
    if (!place_of(a, &pair, &i)) return;
    float dq[N] = {}, rp;
    each_seen(a, pair, i, [&](const meeting &m) {
        add_row(pair_grad(a, m, &rp) * a.scale[pair * a.t + m.j], a.q + lsh_q_at(a, pair, m.j),
                a.d_qk, dq);
    });
    store_row(a.dq + lsh_q_at(a, pair, i), a.d_qk, 1, true, dq);
}

static __global__ void lsh_row_dkv(lsh a)
{
    int64_t pair;
    int j;
    if (!place_of(a, &pair, &j)) return;
    float dk[N] = {}, dv[N] = {}, rp;
    each_seeing(a, pair, j, [&](const meeting &m) {
        const float ds = pair_grad(a, m, &rp);
        add_row(ds, a.q + lsh_q_at(a, pair, m.i), a.d_qk, dk);
        add_row(rp, a.d_o + lsh_v_at(a, pair, m.i), a.d_v, dv);
    });
    store_row(a.dk + (pair * a.t + j) * a.d_qk, a.d_qk, 1, false, dk);
    store_row(a.dv + lsh_v_at(a, pair, j), a.d_v, 1, true, dv);
}

/* Warps for all positions, blocks for d columns. */
static dim3 grid_of(const lsh &a, int d)
{
    return dim3(blocks_for(a.pairs * a.t, WARPS), blocks_for(d, COLS));
}

void lsh_any_fwd(const lsh &a) { AG_LAUNCH(lsh_row_fwd, grid_of(a, a.d_v), THREADS, 0, a); }

void lsh_any_bwd(const lsh &a)
{
    AG_LAUNCH(lsh_row_dq, grid_of(a, a.d_qk), THREADS, 0, a);
    AG_LAUNCH(lsh_row_dkv, grid_of(a, a.d_qk > a.d_v ? a.d_qk : a.d_v), THREADS, 0, a);
}
