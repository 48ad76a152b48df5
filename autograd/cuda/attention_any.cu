/*
 * attention_any.cu -- attention for heads of any size: a warp for each query, or key, in rows as
 * they lie.  Each pair is a dot product of the whole warp, so this is slow: it is for heads that
 * the tiles have no room for: of more than 128, or, where a block has 99 KB, than 64.
 */
#include "attention.cuh"

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

template <class T> static __global__ void any_fwd(attention<T> a)
{
    const int64_t row = warp();
    if (row >= (int64_t)a.batch * a.heads * a.tq) return;
    const head_at e = head_of(row / a.tq, a.heads);
    const int i = (int)(row % a.tq), see = seen(a, keys_of(a, e.b), i);
    float o[N] = {}, top = -INFINITY, sum = 0;
    for (int j0 = 0; j0 < see; j0 += LANES) {
        const int keys = min(LANES, see - j0);
        float x = -INFINITY, sums[N] = {};
        for (int j = 0; j < keys; j++) {
            const float s = dot(row_q(a, a.q, e, i), row_k(a, a.k, e, j0 + j), a.d_qk);
            if (lane() == j) x = s * a.scale2;
        }
        const float m = warp_max(fmaxf(top, x)), shrink = exp2f(top - m);
        float p = exp2f(x - m);
        sum = sum * shrink + p;
        top = m;
        if (a.drop_below && lane() < keys) p *= kept_at(a, row, j0 + lane());
        for (int j = 0; j < keys; j++)
            add_row(__shfl_sync(AG_WARP, p, j), row_v(a, a.v, e, j0 + j), a.d_v, sums);
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

template <class T> static __global__ void any_dq(attention<T> a)
{
    const int64_t row = warp();
    if (row >= (int64_t)a.batch * a.heads * a.tq) return;
    const head_at e = head_of(row / a.tq, a.heads);
    const int i = (int)(row % a.tq), see = seen(a, keys_of(a, e.b), i);
    float dq[N] = {}, rp;
    for (int j0 = 0; j0 < see; j0 += LANES) {
        float sums[N] = {};
        for (int j = j0; j < min(see, j0 + LANES); j++)
            add_row(pair_grad(a, e, i, j, &rp), row_k(a, a.k, e, j), a.d_qk, sums);
        for (int n = 0; n < N; n++) dq[n] += sums[n];
    }
    store_row((T *)row_q(a, a.dq, e, i), a.d_qk, a.scale, a.acc, dq);
}

template <class T> static __global__ void any_dkv(attention<T> a)
{
    const int64_t at = warp();
    if (at >= (int64_t)a.batch * a.heads * a.tk) return;
    const head_at e = head_of(at / a.tk, a.heads);
    const int j = (int)(at % a.tk), first = j < keys_of(a, e.b) ? first_query(a, j) : a.tq;
    float dk[N] = {}, dv[N] = {}, rp;
    for (int i0 = first; i0 < a.tq; i0 += LANES) {
        float k[N] = {}, v[N] = {};
        for (int i = i0; i < min(a.tq, i0 + LANES); i++) {
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

template <class T> void attention_any_fwd(const attention<T> &a)
{
    const int64_t heads = (int64_t)a.batch * a.heads;
    AG_LAUNCH(any_fwd<T>, grid_of(heads * a.tq, a.d_v), THREADS, 0, a);
}

template <class T> void attention_any_bwd(const attention<T> &a)
{
    const int64_t heads = (int64_t)a.batch * a.heads;
    AG_LAUNCH(any_dq<T>, grid_of(heads * a.tq, a.d_qk), THREADS, 0, a);
    AG_LAUNCH(any_dkv<T>, grid_of(heads * a.tk, a.d_qk > a.d_v ? a.d_qk : a.d_v), THREADS, 0, a);
}

template void attention_any_fwd(const attention<float> &a);
template void attention_any_fwd(const attention<bf16> &a);
template void attention_any_fwd(const attention<f16> &a);
template void attention_any_bwd(const attention<float> &a);
template void attention_any_bwd(const attention<bf16> &a);
template void attention_any_bwd(const attention<f16> &a);
