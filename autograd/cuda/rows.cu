/*
 * rows.cu -- kernels along rows: softmax, cross entropy, sums; and sums down columns, the gradients
 * of biases.
 *
 * A team of threads (team.cuh) goes through its row as often as the formula asks, the first time
 * from memory, then from the cache.
 */
#include "columns.cuh"
#include "math.cuh"
#include "team.cuh"

/* --- softmax ---------------------------------------------------------------------------------- */

struct exp_sum { float top, sum; };  /* sum of exp(x - top) */

/* Of the row of the team, read once: the sum so far is corrected where a larger number comes.  Of
 * an empty row -inf and 0. */
template <class T>
static __device__ __forceinline__ exp_sum row_exp_sum(int64_t n, const T *x, int64_t first)
{
    float top = -INFINITY, sum = 0;
    team_each<T>(n, first, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(x + j);
        float most = top, some = 0;
        for (int k = 0; k < W; k++) most = fmaxf(most, get(v.at + k));
        if (most > top) {
            sum *= expf(top - most);
            top = most;
        }
        const float base = top > -INFINITY ? top : 0;    /* so far all are -inf: adds 0 */
        for (int k = 0; k < W; k++) some += expf(get(v.at + k) - base);
        sum += some;
    });
    const float all = team_max(top);
    return { all, team_sum(top > -INFINITY ? sum * expf(top - all) : sum) };
}

template <class T>
static __global__ void softmax_fwd_run(int64_t m, int64_t n, bool log, bool packed, const T *x,
                                       T *y)
{
    const int64_t row = team_row(), end = row < m ? n : 0, first = team_first<T>(packed, row, n);
    x += row * n;
    y += row * n;
    const exp_sum e = row_exp_sum(end, x, first);
    const float log_sum = log ? logf(e.sum) : 0, inverse = 1 / e.sum;
    team_each<T>(end, first, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        pack<T, W> v = pack_load<T, W>(x + j);
        for (int k = 0; k < W; k++) {
            const float d = get(v.at + k) - e.top;
            put(v.at + k, log ? d - log_sum : expf(d) * inverse);
        }
        pack_store(y + j, v);
    });
}

template <class T>
static void softmax_fwd(int64_t m, int64_t n, bool log, const void *x, void *y)
{
    TEAM_LAUNCH(softmax_fwd_run<T>, T, m, n, m, n, log, all_aligned(x, y), (const T *)x, (T *)y);
}

/* softmax: dx = y (dy - sum(y dy));  log softmax: dx = dy - exp(y) sum(dy) */
template <class T>
static __global__ void softmax_bwd_run(int64_t m, int64_t n, bool log, bool packed, const T *y,
                                       const T *dy, T *dx, bool acc)
{
    const int64_t row = team_row(), end = row < m ? n : 0, first = team_first<T>(packed, row, n);
    y += row * n;
    dy += row * n;
    dx += row * n;
    float mine = 0;
    team_each<T>(end, first, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(y + j), g = pack_load<T, W>(dy + j);
        float some = 0;
        for (int k = 0; k < W; k++) some += (log ? 1 : get(v.at + k)) * get(g.at + k);
        mine += some;
    });
    const float sum = team_sum(mine);
    team_each<T>(end, first, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(y + j), g = pack_load<T, W>(dy + j);
        pack<T, W> to = {};
        if (acc) to = pack_load<T, W>(dx + j);
        for (int k = 0; k < W; k++) {
            const float p = get(v.at + k), d = get(g.at + k);
            put(to.at + k, (acc ? get(to.at + k) : 0) + (log ? d - expf(p) * sum : p * (d - sum)));
        }
        pack_store(dx + j, to);
    });
}

template <class T>
static void softmax_bwd(int64_t m, int64_t n, bool log, const void *y, const void *dy, void *dx,
                        bool acc)
{
    TEAM_LAUNCH(softmax_bwd_run<T>, T, m, n, m, n, log, all_aligned(y, dy, dx), (const T *)y,
                (const T *)dy, (T *)dx, acc);
}

/* --- cross entropy ---------------------------------------------------------------------------- */

enum { ONE_BLOCK = 1024 };           /* threads of a kernel that is one block */

template <class T>
static __global__ void xent_fwd_run(int64_t m, int64_t n, bool packed, const T *x,
                                    const int32_t *target, float *lse, float *loss)
{
    const int64_t row = team_row(), end = row < m ? n : 0;
    x += row * n;
    const exp_sum e = row_exp_sum(end, x, team_first<T>(packed, row, n));
    if (row >= m || threadIdx.x > 0) return;
    const float log_sum = logf(e.sum);
    lse[row] = e.top + log_sum;
    loss[row] = target[row] >= 0 ? (e.top - get(x + target[row])) + log_sum : 0;
}

/* loss[0] = mean over the rows that have a target */
static __global__ void xent_mean(int64_t m, const int32_t *target, const float *row_loss,
                                 float *loss)
{
    double sum = 0;
    int count = 0;
    for (int64_t i = threadIdx.x; i < m; i += blockDim.x) {
        sum += (double)row_loss[i];
        count += target[i] >= 0;
    }
    sum = team_sum(sum);
    count = team_sum(count);
    if (threadIdx.x == 0) *loss = count ? (float)(sum / count) : 0;
}

template <class T>
static void xent_fwd(int64_t m, int64_t n, const void *x, const int32_t *target, void *lse,
                     void *loss)
{
    float *row_loss = (float *)ag_cuda_workspace((size_t)(m + 1) * sizeof(float));
    if (!row_loss) return;
    TEAM_LAUNCH(xent_fwd_run<T>, T, m, n, m, n, all_aligned(x), (const T *)x, target, (float *)lse,
                row_loss);
    AG_LAUNCH(xent_mean, 1, ONE_BLOCK, 32 * sizeof(double), m, target, row_loss, (float *)loss);
}

/* c[0] = dloss / rows that have a target */
static __global__ void xent_scale(int64_t m, const int32_t *target, const float *dloss, float *c)
{
    int count = 0;
    for (int64_t i = threadIdx.x; i < m; i += blockDim.x) count += target[i] >= 0;
    count = team_sum(count);
    if (threadIdx.x == 0) *c = count ? *dloss / (float)count : 0;
}

template <class T>
static __global__ void xent_bwd_run(int64_t m, int64_t n, bool packed, const T *x,
                                    const int32_t *target, const float *lse, const float *c, T *dx,
                                    bool acc)
{
    const int64_t row = team_row();
    if (row >= m) return;
    const int64_t t = target[row];
    const float l = lse[row], scale = *c;
    x += row * n;
    dx += row * n;
    team_each<T>(n, team_first<T>(packed, row, n), [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(x + j);
        pack<T, W> to = {};
        if (acc) to = pack_load<T, W>(dx + j);
        for (int k = 0; k < W; k++) {
            const float p = expf(get(v.at + k) - l) - (j + k == t ? 1 : 0);
            put(to.at + k, (acc ? get(to.at + k) : 0) + (t < 0 ? 0 : p * scale));
        }
        pack_store(dx + j, to);
    });
}

template <class T>
static void xent_bwd(int64_t m, int64_t n, const void *x, const int32_t *target, const void *lse,
                     const void *dloss, void *dx, bool acc)
{
    float *c = (float *)ag_cuda_workspace(sizeof(float));
    if (!c) return;
    AG_LAUNCH(xent_scale, 1, ONE_BLOCK, 32 * sizeof(double), m, target, (const float *)dloss, c);
    TEAM_LAUNCH(xent_bwd_run<T>, T, m, n, m, n, all_aligned(x, dx), (const T *)x, target,
                (const float *)lse, c, (T *)dx, acc);
}

/* --- sums, argmax ----------------------------------------------------------------------------- */

/* dx = dy act'(pre), and its column sums */
template <class T> struct act_sums {
    static constexpr int OUT = 1;
    ag_act act;
    int64_t m, n;
    const T *pre, *dy;
    T *dx;

    __device__ int64_t rows(int64_t) const { return m; }
    template <int W>
    __device__ __forceinline__ void add(int64_t, int64_t row, int64_t col, float (&sum)[1][W]) const
    {
        const int64_t at = row * n + col;
        pack<T, W> d = pack_load<T, W>(dy + at), p = {};
        if (act != AG_ACT_NONE) p = pack_load<T, W>(pre + at);
        for (int k = 0; k < W; k++) {
            const float g = get(d.at + k) * act_slope(act, get(p.at + k));
            sum[0][k] += g;
            put(d.at + k, g);
        }
        if (dx) pack_store(dx + at, d);
    }
};

template <class T>
static void act_bwd(ag_act act, int64_t m, int64_t n, const void *pre, const void *dy, void *dx,
                    void *db, bool acc_db)
{
    const act_sums<T> f = { act, m, n, (const T *)pre, (const T *)dy, (T *)dx };
    const column_ends<float, 1> e = { { (float *)db }, acc_db, NULL };
    columns<T>(f, m, n, 1, n % (16 / (int)sizeof(T)) == 0 && all_aligned(pre, dy, dx), e);
}

template <class T>
static __global__ void row_sum_run(int64_t m, int64_t n, bool packed, const T *x, T *y)
{
    const int64_t row = team_row(), end = row < m ? n : 0;
    float mine = 0;
    team_each<T>(end, team_first<T>(packed, row, n), [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(x + row * n + j);
        float some = 0;
        for (int k = 0; k < W; k++) some += get(v.at + k);
        mine += some;
    });
    const float sum = team_sum(mine);
    if (row < m && threadIdx.x == 0) put(y + row, sum);
}

template <class T> static void row_sum(int64_t m, int64_t n, const void *x, void *y)
{
    TEAM_LAUNCH(row_sum_run<T>, T, m, n, m, n, all_aligned(x), (const T *)x, (T *)y);
}

template <class T>
static __global__ void argmax_run(int64_t m, int64_t n, bool packed, const T *x, int32_t *idx)
{
    const int64_t row = team_row(), end = row < m ? n : 0;
    float best = -INFINITY;          /* NaN is never chosen */
    int at = 0;
    team_each<T>(end, team_first<T>(packed, row, n), [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(x + row * n + j);
        for (int k = 0; k < W; k++)
            if (get(v.at + k) > best) {
                best = get(v.at + k);
                at = (int)j + k;
            }
    });
    const float top = team_max(best);
    const int first = -team_max(best == top ? -at : INT32_MIN + 1);
    if (row < m && threadIdx.x == 0) idx[row] = first;
}

template <class T> static void argmax(int64_t m, int64_t n, const void *x, int32_t *idx)
{
    TEAM_LAUNCH(argmax_run<T>, T, m, n, m, n, all_aligned(x), (const T *)x, idx);
}

/* A part of the sum: of a chunk of x, as it were a row. */
static const int64_t SUM_CHUNK = 8192;

template <class T>
static __global__ void sum_chunk(int64_t n, bool packed, const T *x, float *part)
{
    const int64_t from = (int64_t)blockIdx.x * SUM_CHUNK, left = n - from;
    float mine = 0;
    team_each<T>(left < SUM_CHUNK ? left : SUM_CHUNK, packed ? 0 : SUM_CHUNK,
                 [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(x + from + j);
        float some = 0;
        for (int k = 0; k < W; k++) some += get(v.at + k);
        mine += some;
    });
    mine = team_sum(mine);
    if (threadIdx.x == 0) part[blockIdx.x] = mine;
}

static __global__ void sum_end(int64_t n, double alpha, const float *part, float *y)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += (double)part[i];
    sum = team_sum(sum);
    if (threadIdx.x == 0) *y = (float)(alpha * sum);
}

template <class T> static void sum(int64_t n, double alpha, const void *x, void *y)
{
    const unsigned parts = blocks_for(n, SUM_CHUNK);
    float *part = (float *)ag_cuda_workspace((parts + 1) * sizeof(float));
    if (!part) return;
    AG_LAUNCH(sum_chunk<T>, parts, 256, 8 * sizeof(float), n, aligned(x), (const T *)x, part);
    AG_LAUNCH(sum_end, 1, ONE_BLOCK, 32 * sizeof(double), parts, alpha, part, (float *)y);
}

template <class T> void rows_table(ag_kernels *k)
{
    k->act_bwd = act_bwd<T>;
    k->sum = sum<T>;
    k->row_sum = row_sum<T>;
    k->softmax_fwd = softmax_fwd<T>;
    k->softmax_bwd = softmax_bwd<T>;
    k->xent_fwd = xent_fwd<T>;
    k->xent_bwd = xent_bwd<T>;
    k->argmax = argmax<T>;
}
template void rows_table<float>(ag_kernels *k);
template void rows_table<bf16>(ag_kernels *k);
template void rows_table<f16>(ag_kernels *k);
