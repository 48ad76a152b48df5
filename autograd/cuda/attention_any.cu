/*
 * attention_any.cu -- attention for heads of any size, over all keys or those of a pattern: a warp
 * for each query, or key, in rows as they lie.  Each pair is a dot product of the whole warp, so
 * this is slow: it is for heads that the tiles have no room for: of more than 128, or, where a
 * block has 99 KB, than 64.
 */
#include "blocks.cuh"

constexpr int THREADS = 128, LANES = 32, WARPS = THREADS / LANES, N = 8, COLS = LANES * N;

DEVICE int lane(void) { return (int)threadIdx.x % LANES; }
DEVICE int64_t warp(void)
{
    return (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES;
}

DEVICE float warp_sum(float x)
{
    for (int m = LANES / 2; m > 0; m /= 2) x += __shfl_xor_sync(AG_WARP, x, m);
    return x;
}
DEVICE float warp_max(float x)
{
    for (int m = LANES / 2; m > 0; m /= 2) x = fmaxf(x, __shfl_xor_sync(AG_WARP, x, m));
    return x;
}

/* x . y, for every lane */
template <class T> static __device__ float dot(const T *x, const T *y, int d)
{
    float s = 0;
    for (int c = lane(); c < d; c += LANES) s += get(x + c) * get(y + c);
    return warp_sum(s);
}

/* y += w x over the columns of this warp, of d */
template <class T>
DEVICE void add_row(float w, const T *x, int d, float y[N])
{
    AG_UNROLL for (int n = 0; n < N; n++) {
        const int c = (int)blockIdx.y * COLS + lane() + n * LANES;
        if (c < d) y[n] += w * get(x + c);
    }
}

template <class T>
DEVICE void store_row(T *x, int d, float times, bool acc,
                                                 const float y[N])
{
    AG_UNROLL for (int n = 0; n < N; n++) {
        const int c = (int)blockIdx.y * COLS + lane() + n * LANES;
        if (c < d) put_sum(x + c, y[n] * times, acc);
    }
}

/* --- what a query, or a key, meets: 32 at a time, each lane one or -1 -------------------------- */

struct all_keys {                    /* as causality and lengths allow */
    struct tables {};
    int at, end;

    template <class T>
    __device__ void of_query(const attention<T> &a, const tables &, head_at e, int i)
    {
        at = 0;
        end = seen(a, keys_of(a, e.b), i);
    }
    template <class T>
    __device__ void of_key(const attention<T> &a, const tables &, head_at e, int j)
    {
        at = j < keys_of(a, e.b) ? first_query(a, j) : a.tq;
        end = a.tq;
    }
    template <class T> __device__ bool next(const attention<T> &, const tables &, int *ret)
    {
        if (at >= end) return false;
        *ret = at + lane() < end ? at + lane() : -1;
        at += LANES;
        return true;
    }
};

struct pattern_keys {                /* as a pattern says */
    typedef block_tables tables;
    block_walk walk;

    template <class T>
    __device__ void of_query(const attention<T> &a, const tables &t, head_at e, int i)
    {
        walk.begin(t, e.h, TILES_OF_QUERIES, i + a.q_pos0);
    }
    template <class T>
    __device__ void of_key(const attention<T> &, const tables &t, head_at e, int j)
    {
        walk.begin(t, e.h, TILES_OF_KEYS, j);
    }
    template <class T> __device__ bool next(const attention<T> &a, const tables &t, int *ret)
    {
        return walk.side == TILES_OF_QUERIES ? walk.next(t, lane(), 0, a.tk, ret)
                                             : walk.next(t, lane(), a.q_pos0, a.tq, ret);
    }
};

/* --- kernels ---------------------------------------------------------------------------------- */

template <class T, class Keys>
static __global__ void any_fwd(attention<T> a, typename Keys::tables t)
{
    const int64_t row = warp();
    if (row >= (int64_t)a.batch * a.heads * a.tq) return;
    const head_at e = head_of(row / a.tq, a.heads);
    const int i = (int)(row % a.tq);
    float o[N] = {}, top = -INFINITY, sum = 0;
    Keys keys;
    keys.of_query(a, t, e, i);
    for (int mine; keys.next(a, t, &mine);) {
        float x = -INFINITY, sums[N] = {};
        for (int l = 0; l < LANES; l++) {
            const int j = __shfl_sync(AG_WARP, mine, l);
            if (j < 0) continue;
            const float s = dot(row_q(a, a.q, e, i), row_k(a, a.k, e, j), a.d_qk);
            if (lane() == l) x = s * a.scale2;
        }
        const float m = warp_max(fmaxf(top, x)), base = m == -INFINITY ? 0 : m;
        const float shrink = exp2f(top - base);
        float p = exp2f(x - base);
        sum = sum * shrink + p;
        top = m;
        if (a.drop_below && mine >= 0) p *= kept_at(a, row, mine);
        for (int l = 0; l < LANES; l++) {
            const int j = __shfl_sync(AG_WARP, mine, l);
            const float w = __shfl_sync(AG_WARP, p, l);
            if (j >= 0) add_row(w, row_v(a, a.v, e, j), a.d_v, sums);
        }
        for (int n = 0; n < N; n++) o[n] = o[n] * shrink + sums[n];
    }
    sum = warp_sum(sum);
    const row_at<T> to = result_at(a, e, i, 0);
    store_row(to.o, a.d_v, sum > 0 ? 1 / sum : 0, false, o);
    if (lane() == 0 && blockIdx.y == 0) put_sums(a, to, top, sum);
}

/* Of query i and key j:  *ret_rp = r p, returns ds = p (r do.v - delta). */
template <class T>
static __device__ float pair_grad(const attention<T> &a, head_at e, int i, int j, float *ret_rp)
{
    const int64_t row = e.bh * a.tq + i;
    const float s = dot(row_q(a, a.q, e, i), row_k(a, a.k, e, j), a.d_qk) * a.scale2,
        dp = dot(row_o(a, a.d_o, e, i), row_v(a, a.v, e, j), a.d_v),
        p = exp2f(s - lse_log2(a.lse[row])), r = a.drop_below ? kept_at(a, row, j) : 1;
    *ret_rp = r * p;
    return p * (r * dp - a.delta[row]);
}

template <class T, class Keys>
static __global__ void any_dq(attention<T> a, typename Keys::tables t)
{
    const int64_t row = warp();
    if (row >= (int64_t)a.batch * a.heads * a.tq) return;
    const head_at e = head_of(row / a.tq, a.heads);
    const int i = (int)(row % a.tq);
    float dq[N] = {}, rp;
    Keys keys;
    keys.of_query(a, t, e, i);
    for (int mine; keys.next(a, t, &mine);) {
        float sums[N] = {};
        for (int l = 0; l < LANES; l++) {
            const int j = __shfl_sync(AG_WARP, mine, l);
            if (j >= 0) add_row(pair_grad(a, e, i, j, &rp), row_k(a, a.k, e, j), a.d_qk, sums);
        }
        for (int n = 0; n < N; n++) dq[n] += sums[n];
    }
    store_row((T *)row_q(a, a.dq, e, i), a.d_qk, a.scale, a.acc, dq);
}

template <class T, class Keys>
static __global__ void any_dkv(attention<T> a, typename Keys::tables t)
{
    const int64_t at = warp();
    if (at >= (int64_t)a.batch * a.heads * a.tk) return;
    const head_at e = head_of(at / a.tk, a.heads);
    const int j = (int)(at % a.tk);
    float dk[N] = {}, dv[N] = {}, rp;
    Keys keys;
    keys.of_key(a, t, e, j);
    for (int mine; keys.next(a, t, &mine);) {
        float k[N] = {}, v[N] = {};
        for (int l = 0; l < LANES; l++) {
            const int i = __shfl_sync(AG_WARP, mine, l);
            if (i < 0) continue;
            const float ds = pair_grad(a, e, i, j, &rp);
            add_row(ds, row_q(a, a.q, e, i), a.d_qk, k);
            add_row(rp, row_o(a, a.d_o, e, i), a.d_v, v);
        }
        for (int n = 0; n < N; n++) dk[n] += k[n], dv[n] += v[n];
    }
    store_row((T *)row_k(a, a.dk, e, j), a.d_qk, a.scale, a.acc, dk);
    store_row((T *)row_v(a, a.dv, e, j), a.d_v, 1, a.acc, dv);
}

/* Warps for n rows, blocks for d columns. */
static dim3 grid_of(int64_t n, int d) { return dim3(blocks_for(n, WARPS), blocks_for(d, COLS)); }

template <class Keys, class T> static void fwd(const attention<T> &a, typename Keys::tables t)
{
    const int64_t heads = (int64_t)a.batch * a.heads;
    AG_LAUNCH((any_fwd<T, Keys>), grid_of(heads * a.tq, a.d_v), THREADS, 0, a, t);
}

template <class Keys, class T> static void bwd(const attention<T> &a, typename Keys::tables t)
{
    const int64_t heads = (int64_t)a.batch * a.heads;
    AG_LAUNCH((any_dq<T, Keys>), grid_of(heads * a.tq, a.d_qk), THREADS, 0, a, t);
    AG_LAUNCH((any_dkv<T, Keys>), grid_of(heads * a.tk, a.d_qk > a.d_v ? a.d_qk : a.d_v), THREADS,
              0, a, t);
}

template <class T> void attention_any_fwd(const attention<T> &a) { fwd<all_keys>(a, {}); }
template <class T> void attention_any_bwd(const attention<T> &a) { bwd<all_keys>(a, {}); }
template <class T> void block_any_fwd(const attention<T> &a, const block_tables &t)
{
    fwd<pattern_keys>(a, t);
}
template <class T> void block_any_bwd(const attention<T> &a, const block_tables &t)
{
    bwd<pattern_keys>(a, t);
}

#define INSTANCES(T)                                                                    \
    template void attention_any_fwd(const attention<T> &a);                             \
    template void attention_any_bwd(const attention<T> &a);                             \
    template void block_any_fwd(const attention<T> &a, const block_tables &t);          \
    template void block_any_bwd(const attention<T> &a, const block_tables &t);
INSTANCES(float)
INSTANCES(bf16)
INSTANCES(f16)
