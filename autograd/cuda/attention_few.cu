/*
 * attention_few.cu -- attention of up to 4 queries, as in decoding with a cache: bound by memory.
 *
 * Each number of k and v is read once, 16 bytes at a time: 2 t d numbers for 4 t d operations and a
 * query.  LANES threads have a key, and each has the same columns of q, k, v and o, so only a dot
 * product needs shuffles.  KEYS keys for each group of LANES are on the way at once.  Every group
 * has a softmax of its own; a block merges those of its groups, and attention_merge those of the
 * parts that the keys are cut into to keep all processors busy; both in a fixed order.
 */
#include "attention.cuh"

constexpr int THREADS = 128, KEYS = 4;

/* Scores of a query for the KEYS keys of a group; the sums over them join top, sum and o. */
template <class T, int LANES, int N>
DEVICE void few_step(const float q[N], const pack<T> k[KEYS],
                                                const pack<T> v[KEYS], int j, int step, int see,
                                                float *top, float *sum, float o[N])
{
    float x[KEYS], m = *top;
    AG_UNROLL for (int u = 0; u < KEYS; u++) {
        x[u] = 0;
        AG_UNROLL for (int n = 0; n < N; n++) x[u] += q[n] * get(&k[u].at[n]);
        AG_UNROLL for (int l = LANES / 2; l > 0; l /= 2) x[u] += __shfl_xor_sync(AG_WARP, x[u], l);
        if (j + u * step >= see) x[u] = -INFINITY;
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

/* s [GROUPS][NQ][ROW] has o, top and sum of each group: one thread for each column of o. */
template <class T, int GROUPS, int NQ, int ROW>
static __device__ void few_merge(const attention<T> &a, head_at e, int split, const float *s)
{
    for (int x = (int)threadIdx.x; x < a.tq * a.d_v; x += THREADS) {
        const int i = x / a.d_v, c = x % a.d_v;
        float top = -INFINITY, sum = 0, o = 0;
        for (int g = 0; g < GROUPS; g++) top = fmaxf(top, s[(g * NQ + i) * ROW + ROW - 2]);
        const float base = top == -INFINITY ? 0 : top;
        for (int g = 0; g < GROUPS; g++) {
            const float *row = s + (g * NQ + i) * ROW, f = exp2f(row[ROW - 2] - base);
            sum += f * row[ROW - 1];
            o += f * row[c];
        }
        const row_at<T> to = result_at(a, e, i, split);
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
        AG_UNROLL for (int i = 0; i < NQ; i++)
            few_step<T, LANES, N>(q[i], k, v, j0 + group, GROUPS, min(end, seen(a, n_keys, i)),
                                  &top[i], &sum[i], o[i]);
    }
    for (int i = 0; i < NQ; i++) {
        float *row = s + (group * NQ + i) * ROW;
        for (int n = 0; n < N; n++) row[c + n] = o[i][n];
        if (lane == 0) row[ROW - 2] = top[i], row[ROW - 1] = sum[i];
    }
    __syncthreads();
    few_merge<T, GROUPS, NQ, ROW>(a, e, split, s);
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

template bool attention_few_fwd(const attention<float> &a);
template bool attention_few_fwd(const attention<bf16> &a);
template bool attention_few_fwd(const attention<f16> &a);
