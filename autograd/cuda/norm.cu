/*
 * norm.cu -- layer normalisation, forward and backward.
 *
 * A team of threads (team.cuh) goes through its row as often as the formula asks, the first time
 * from memory, then from the cache.  Backward makes dx along rows and dgain, dbias down columns;
 * where rows are short enough for registers, both in one pass.
 */
#include "columns.cuh"
#include "team.cuh"

template <class T>
static __global__ void layernorm_fwd_run(int64_t m, int64_t n, float eps, bool packed, const T *x,
                                         const T *gain, const T *bias, T *y, float *mean,
                                         float *rstd)
{
    const int64_t row = team_row(), end = row < m ? n : 0, first = team_first<T>(packed, row, n);
    x += row * n;
    y += row * n;
    float mine = 0;
    team_each<T>(end, first, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(x + j);
        float some = 0;
        for (int k = 0; k < W; k++) some += get(v.at + k);
        mine += some;
    });
    const float mu = team_sum(mine) / (float)n;
    mine = 0;
    team_each<T>(end, first, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(x + j);
        float some = 0;
        for (int k = 0; k < W; k++) some += (get(v.at + k) - mu) * (get(v.at + k) - mu);
        mine += some;
    });
    const float rs = 1 / sqrtf(team_sum(mine) / (float)n + eps);
    team_each<T>(end, first, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        pack<T, W> v = pack_load<T, W>(x + j), g = {}, b = {};
        if (gain) g = load_some<T, W>(gain + j, first == 0);
        if (bias) b = load_some<T, W>(bias + j, first == 0);
        for (int k = 0; k < W; k++) {
            const float xh = (get(v.at + k) - mu) * rs;
            put(v.at + k, (gain ? xh * get(g.at + k) : xh) + (bias ? get(b.at + k) : 0));
        }
        pack_store(y + j, v);
    });
    if (row >= m || threadIdx.x > 0) return;
    mean[row] = mu;
    rstd[row] = rs;
}

template <class T>
static void layernorm_fwd(int64_t m, int64_t n, double eps, const void *x, const void *gain,
                          const void *bias, void *y, void *mean, void *rstd)
{
    TEAM_LAUNCH(layernorm_fwd_run<T>, T, m, n, m, n, (float)eps, all_aligned(x, gain, bias, y),
                (const T *)x, (const T *)gain, (const T *)bias, (T *)y, (float *)mean,
                (float *)rstd);
}

/* --- backward, dx and the sums apart ---------------------------------------------------------- */

/* dx = rstd (g - mean(g) - xh mean(g xh)),  g = dy gain,  xh = (x - mean) rstd */
template <class T>
static __global__ void layernorm_dx(int64_t m, int64_t n, bool packed, const T *x, const T *gain,
                                    const float *mean, const float *rstd, const T *dy, T *dx,
                                    bool acc)
{
    const int64_t row = team_row(), end = row < m ? n : 0, first = team_first<T>(packed, row, n);
    const float mu = end ? mean[row] : 0, rs = end ? rstd[row] : 0;
    x += row * n;
    dy += row * n;
    dx += row * n;
    float mine_g = 0, mine_gx = 0;
    team_each<T>(end, first, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(x + j), d = pack_load<T, W>(dy + j);
        pack<T, W> w = {};
        if (gain) w = load_some<T, W>(gain + j, first == 0);
        float sg = 0, sgx = 0;
        for (int k = 0; k < W; k++) {
            const float g = gain ? get(d.at + k) * get(w.at + k) : get(d.at + k);
            sg += g;
            sgx += g * ((get(v.at + k) - mu) * rs);
        }
        mine_g += sg;
        mine_gx += sgx;
    });
    const float mean_g = team_sum(mine_g) / (float)n, mean_gx = team_sum(mine_gx) / (float)n;
    team_each<T>(end, first, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(x + j), d = pack_load<T, W>(dy + j);
        pack<T, W> w = {}, to = {};
        if (gain) w = load_some<T, W>(gain + j, first == 0);
        if (acc) to = pack_load<T, W>(dx + j);
        for (int k = 0; k < W; k++) {
            const float g = gain ? get(d.at + k) * get(w.at + k) : get(d.at + k);
            const float xh = (get(v.at + k) - mu) * rs;
            put(to.at + k, (acc ? get(to.at + k) : 0) + ((g - mean_g) - xh * mean_gx) * rs);
        }
        pack_store(dx + j, to);
    });
}

template <class T> struct layernorm_sums {               /* dgain = sum dy xh, dbias = sum dy */
    static constexpr int OUT = 2;
    int64_t m, n;
    const T *x, *dy;
    const float *mean, *rstd;

    __device__ int64_t rows(int64_t) const { return m; }
    template <int W>
    __device__ __forceinline__ void add(int64_t, int64_t row, int64_t col, float (&sum)[2][W]) const
    {
        const pack<T, W> v = pack_load<T, W>(x + row * n + col);
        const pack<T, W> d = pack_load<T, W>(dy + row * n + col);
        const float mu = mean[row], rs = rstd[row];
        for (int k = 0; k < W; k++) {
            sum[0][k] += get(d.at + k) * ((get(v.at + k) - mu) * rs);
            sum[1][k] += get(d.at + k);
        }
    }
};

/* --- backward, all of it in one pass ---------------------------------------------------------- */

/*
 * A block takes a chunk of rows.  A warp, or fewer lanes for short rows, holds PACKS packs of a row
 * in each lane's registers, the same columns of each row, and adds up dgain and dbias of them row
 * after row; then the teams of the block are added up as a tree.  So x and dy are read once.
 */
enum { ROWS_BLOCKS = 128 };          /* as many at least, if there are rows for them */

/* Of a block: fewer where a thread needs more than 128 registers. */
static constexpr int rows_threads(int cols) { return cols > 16 ? 256 : 512; }

/* dgain and dbias of the block, from the sums of its threads; shared: [teams / 2,COLS,lanes]. */
template <int N, int COLS>
static __device__ __forceinline__ void teams_end(float (&sum)[2][COLS], int64_t n, float *shared,
                                                 const column_ends<float, 2> &e)
{
    const unsigned lanes = blockDim.x, lane = threadIdx.x, team = threadIdx.y;
    AG_UNROLL
    for (int o = 0; o < 2; o++) {
        for (unsigned h = blockDim.y / 2; h; h /= 2) {
            if (team >= h && team < 2 * h)
                AG_UNROLL
                for (int i = 0; i < COLS; i++)
                    shared[((team - h) * COLS + i) * lanes + lane] = sum[o][i];
            __syncthreads();
            if (team < h)
                AG_UNROLL
                for (int i = 0; i < COLS; i++)
                    sum[o][i] += shared[(team * COLS + i) * lanes + lane];
            __syncthreads();
        }
        if (team > 0 || !e.to[o]) continue;
        AG_UNROLL
        for (int i = 0; i < COLS; i++) {
            const int64_t col = (i / N * lanes + lane) * N + i % N;
            if (col >= n) continue;
            if (e.part) e.part[((int64_t)blockIdx.x * 2 + o) * n + col] = sum[o][i];
            else e.to[o][col] += sum[o][i];
        }
    }
}

template <class T, int PACKS>
static __global__ void __launch_bounds__(rows_threads(PACKS * (16 / (int)sizeof(T))))
layernorm_rows(int64_t m, int64_t n, int64_t chunk, const T *x, const T *gain, const float *mean,
               const float *rstd, const T *dy, T *dx, bool acc, column_ends<float, 2> e)
{
    constexpr int N = 16 / (int)sizeof(T), COLS = PACKS * N;
    AG_SHARED(float, shared);
    const int64_t from = blockIdx.x * chunk, end = min(from + chunk, m);
    const unsigned lanes = blockDim.x, lane = threadIdx.x, team = threadIdx.y;
    float sum[2][COLS] = {};
    for (int64_t r0 = from; r0 < end; r0 += blockDim.y) {
        const int64_t row = r0 + team, at = row * n;
        const bool on = row < end;
        const float mu = on ? mean[row] : 0, rs = on ? rstd[row] : 0;
        pack<T, N> v[PACKS] = {}, d[PACKS] = {};
        AG_UNROLL
        for (int p = 0; p < PACKS; p++) {
            const int64_t col = (p * lanes + lane) * N;
            if (!on || col >= n) continue;
            v[p] = pack_load<T, N>(x + at + col);
            d[p] = pack_load<T, N>(dy + at + col);
        }
        float mean_g = 0, mean_gx = 0;
        AG_UNROLL
        for (int p = 0; p < PACKS; p++) {
            const int64_t col = (p * lanes + lane) * N;
            pack<T, N> w = {};
            if (gain && col < n) w = pack_load<T, N>(gain + col);
            float sg = 0, sgx = 0;
            AG_UNROLL
            for (int k = 0; k < N; k++) {
                const float dk = get(&d[p].at[k]), xh = (get(&v[p].at[k]) - mu) * rs;
                const float g = gain ? dk * get(&w.at[k]) : dk;
                sg += g;
                sgx += g * xh;
                sum[0][p * N + k] += dk * xh;
                sum[1][p * N + k] += dk;
            }
            mean_g += sg;
            mean_gx += sgx;
        }
        mean_g = team_sum(mean_g) / (float)n;
        mean_gx = team_sum(mean_gx) / (float)n;
        AG_UNROLL
        for (int p = 0; p < PACKS; p++) {
            const int64_t col = (p * lanes + lane) * N;
            if (!on || col >= n) continue;
            pack<T, N> w = {}, to = {};
            if (gain) w = pack_load<T, N>(gain + col);
            if (acc) to = pack_load<T, N>(dx + at + col);
            AG_UNROLL
            for (int k = 0; k < N; k++) {
                const float dk = get(&d[p].at[k]), xh = (get(&v[p].at[k]) - mu) * rs;
                const float g = gain ? dk * get(&w.at[k]) : dk;
                put(&to.at[k], (acc ? get(&to.at[k]) : 0) + ((g - mean_g) - xh * mean_gx) * rs);
            }
            pack_store(dx + at + col, to);
        }
    }
    teams_end<N>(sum, n, shared, e);
}

template <class T, int PACKS>
static void rows_launch(int64_t m, int64_t n, const T *x, const T *gain, const float *mean,
                        const float *rstd, const T *dy, T *dx, bool acc, column_ends<float, 2> e)
{
    constexpr int N = 16 / (int)sizeof(T), THREADS = rows_threads(PACKS * N);
    const unsigned lanes = team_of(m, n, N).block.x, teams = THREADS / lanes;
    int64_t chunk = teams;           /* by the number of rows alone */
    while (chunk < COLUMN_CHUNK && m > chunk * ROWS_BLOCKS) chunk *= 2;
    while (m > chunk * COLUMN_CHUNKS) chunk *= 2;
    const int64_t chunks = (m + chunk - 1) / chunk;
    if (chunks > 1) {
        e.part = (float *)ag_cuda_workspace((size_t)(chunks * 2 * n) * sizeof(float));
        if (!e.part) return;
    }
    AG_LAUNCH((layernorm_rows<T, PACKS>), (unsigned)chunks, dim3(lanes, teams),
              THREADS / 2 * PACKS * N * sizeof(float), m, n, chunk, x, gain, mean, rstd, dy,
              dx, acc, e);
    if (chunks > 1)
        AG_LAUNCH((columns_end<float, 2>), dim3(blocks_for(n, 32), 2), dim3(32, 8),
                  256 * sizeof(double), n, 1, chunks, e);
}

/* Of one pass, where rows fit and begin aligned; else dgain and dbias come first, for dx may take
 * the place of dy. */
template <class T>
static void layernorm_bwd(int64_t m, int64_t n, const void *px, const void *pgain,
                          const void *pmean, const void *prstd, const void *pdy, void *pdx,
                          bool acc_dx, void *dgain, void *dbias)
{
    constexpr int N = 16 / (int)sizeof(T);
    const T *x = (const T *)px, *gain = (const T *)pgain, *dy = (const T *)pdy;
    const float *mean = (const float *)pmean, *rstd = (const float *)prstd;
    T *dx = (T *)pdx;
    const column_ends<float, 2> e = { { (float *)dgain, (float *)dbias }, true, NULL };
    const bool packed = n % N == 0 && all_aligned(x, dy);
    if (dx && e.wanted() && packed && all_aligned(gain, dx) && m && n && n <= 128 * N) {
        if (n <= 64 * N) rows_launch<T, 2>(m, n, x, gain, mean, rstd, dy, dx, acc_dx, e);
        else rows_launch<T, 4>(m, n, x, gain, mean, rstd, dy, dx, acc_dx, e);
        return;
    }
    const layernorm_sums<T> f = { m, n, x, dy, mean, rstd };
    if (e.wanted()) columns<T>(f, m, n, 1, packed, e);
    if (dx)
        TEAM_LAUNCH(layernorm_dx<T>, T, m, n, m, n, all_aligned(x, gain, dy, dx), x, gain, mean,
                    rstd, dy, dx, acc_dx);
}

template <class T> void norm_table(ag_kernels *k)
{
    k->layernorm_fwd = layernorm_fwd<T>;
    k->layernorm_bwd = layernorm_bwd<T>;
}
template void norm_table<float>(ag_kernels *k);
template void norm_table<bf16>(ag_kernels *k);
template void norm_table<f16>(ag_kernels *k);
