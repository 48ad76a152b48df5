/*
 * copy.cu -- numbers copied from row to row: with a stride, the same for a whole row, times another
 * row, behind a gate.
 *
 * A team (team.cuh) has a row, or, where rows are long, a strip of one.
 */
#include "columns.cuh"
#include "team.cuh"

enum { STRIP_BLOCK = 256, STRIP_PACKS = 4 };             /* threads; packs that each has */

/* Teams for m rows of n numbers; the strips of a row are blockIdx.y. */
static team_shape strips_of(int64_t m, int64_t n, int pack)
{
    if (n <= TEAM_WARP_ROW) return team_of(m, n, pack);
    const int64_t strips = blocks_for(n, (int64_t)STRIP_BLOCK * STRIP_PACKS * pack);
    return { dim3(blocks_for(m, 1), (unsigned)(strips < 65535 ? strips : 65535)),
             dim3(STRIP_BLOCK), 0 };
}

#define STRIP_LAUNCH(kernel, T, m, n, ...)                                              \
    do {                                                                                \
        const team_shape shape_ = strips_of(m, n, 16 / (int)sizeof(T));                 \
        AG_LAUNCH(kernel, shape_.grid, shape_.block, 0, __VA_ARGS__);                   \
    } while (0)

/* f(j, width) for the columns of this block's strip of a row; packs begin at `first`, or at 0 if
 * that is a multiple of a pack. */
template <class T, class F>
static __device__ __forceinline__ void strip_each(int64_t n, int64_t first, F f)
{
    const int64_t step = (int64_t)blockDim.x * (16 / (int)sizeof(T)), s = blockIdx.y;
    const int64_t span = gridDim.y > 1 ? (n + gridDim.y * step - 1) / (gridDim.y * step) * step : n;
    const int64_t from = s * span, left = n - from;
    if (left <= 0) return;
    team_each<T>(left < span ? left : span, first < n ? first : left,
                 [&](int64_t j, auto width) { f(from + j, width); });
}

template <class T, int W>
static __device__ __forceinline__ void store_sum(T *to, const float (&v)[W], bool acc)
{
    pack<T, W> p = {};
    if (acc) p = pack_load<T, W>(to);
    for (int k = 0; k < W; k++) put(p.at + k, (acc ? get(p.at + k) : 0) + v[k]);
    pack_store(to, p);
}

template <class T>
static __global__ void copy_rows_run(int64_t m, int64_t n, bool packed, const T *x, int64_t ldx,
                                     T *y, int64_t ldy, bool acc)
{
    const int64_t row = team_row();
    if (row >= m) return;
    x += row * ldx;
    y += row * ldy;
    strip_each<T>(n, packed ? 0 : n, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(x + j);
        float f[W];
        for (int k = 0; k < W; k++) f[k] = get(v.at + k);
        store_sum<T>(y + j, f, acc);
    });
}

template <class T>
static void copy_rows(int64_t m, int64_t n, const void *x, int64_t ldx, void *y, int64_t ldy,
                      bool acc)
{
    constexpr int N = 16 / (int)sizeof(T);
    if (ldx == n && ldy == n) {      /* one row */
        n *= m;
        m = n > 0;
    }
    STRIP_LAUNCH(copy_rows_run<T>, T, m, n, m, n,
                 all_aligned(x, y) && (m == 1 || (ldx % N == 0 && ldy % N == 0)), (const T *)x, ldx,
                 (T *)y, ldy, acc);
}

template <class T>
static __global__ void row_add_run(int64_t m, int64_t n, bool packed, const T *dy, T *dx, bool acc)
{
    const int64_t row = team_row();
    if (row >= m) return;
    const float d = get(dy + row);
    dx += row * n;
    strip_each<T>(n, packed ? 0 : n, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        float f[W];
        for (int k = 0; k < W; k++) f[k] = d;
        store_sum<T>(dx + j, f, acc);
    });
}

template <class T> static bool rows_aligned(int64_t n, const void *a, const void *b, const void *c)
{
    return n % (16 / (int)sizeof(T)) == 0 && all_aligned(a, b, c);
}

template <class T> static void row_add(int64_t m, int64_t n, const void *dy, void *dx, bool acc)
{
    STRIP_LAUNCH(row_add_run<T>, T, m, n, m, n, rows_aligned<T>(n, dx, NULL, NULL), (const T *)dy,
                 (T *)dx, acc);
}

/* --- products of rows ------------------------------------------------------------------------- */

template <class T>
static __global__ void outer_fwd_run(int64_t a, int64_t b, int64_t n, bool packed, const T *p,
                                     const T *q, T *y)
{
    const int64_t row = team_row();
    if (row >= a * b) return;
    p += row / b * n;
    q += row % b * n;
    y += row * n;
    strip_each<T>(n, packed ? 0 : n, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        pack<T, W> v = pack_load<T, W>(p + j), w = pack_load<T, W>(q + j);
        for (int k = 0; k < W; k++) put(v.at + k, get(v.at + k) * get(w.at + k));
        pack_store(y + j, v);
    });
}

template <class T>
static void outer_fwd(int64_t a, int64_t b, int64_t n, const void *p, const void *q, void *y)
{
    STRIP_LAUNCH(outer_fwd_run<T>, T, a * b, n, a, b, n, rows_aligned<T>(n, p, q, y), (const T *)p,
                 (const T *)q, (T *)y);
}

/* Of matrix z, the products of the rows of dy at z*first + row*step with those of w. */
template <class T> struct outer_sums {
    static constexpr int OUT = 1;
    int64_t m, n, first, step;
    const float *dy;
    const T *w;                      /* [m,n] */

    __device__ int64_t rows(int64_t) const { return m; }
    template <int W>
    __device__ __forceinline__ void add(int64_t z, int64_t row, int64_t col,
                                        float (&sum)[1][W]) const
    {
        constexpr int N = W < 4 ? W : 4;
        const pack<T, W> v = pack_load<T, W>(w + row * n + col);
        for (int i = 0; i < W; i += N) {
            const pack<float, N> d = pack_load<float, N>(dy + (z * first + row * step) * n + col + i);
            for (int k = 0; k < N; k++) sum[0][i + k] += d.at[k] * get(v.at + i + k);
        }
    }
};

template <class T>
static void outer_bwd(int64_t a, int64_t b, int64_t n, const void *p, const void *q, const void *dy,
                      void *dp, void *dq)
{
    const outer_sums<T> fp = { b, n, b, 1, (const float *)dy, (const T *)q };
    const outer_sums<T> fq = { a, n, 1, b, (const float *)dy, (const T *)p };
    const column_ends<float, 1> ep = { { (float *)dp }, true, NULL };
    const column_ends<float, 1> eq = { { (float *)dq }, true, NULL };
    if (dp) columns<T>(fp, b, n, a, rows_aligned<T>(n, dy, q, NULL), ep);
    if (dq) columns<T>(fq, a, n, b, rows_aligned<T>(n, dy, p, NULL), eq);
}

/* --- gates ------------------------------------------------------------------------------------ */

template <class T>
static __global__ void gate_fwd_run(int64_t m, int64_t n, bool packed, const T *a, const T *gate,
                                    T *h)
{
    const int64_t row = team_row();
    if (row >= m) return;
    const float g = gate ? get(gate + row) : 1;
    a += row * n;
    h += row * n;
    strip_each<T>(n, packed ? 0 : n, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        pack<T, W> v = pack_load<T, W>(a + j);
        for (int k = 0; k < W; k++) put(v.at + k, get(v.at + k) > 0 ? g * get(v.at + k) : 0);
        pack_store(h + j, v);
    });
}

template <class T>
static void gate_fwd(int64_t m, int64_t n, const void *a, const void *gate, void *h)
{
    STRIP_LAUNCH(gate_fwd_run<T>, T, m, n, m, n, rows_aligned<T>(n, a, h, NULL), (const T *)a,
                 (const T *)gate, (T *)h);
}

template <class T>
static __global__ void gate_bwd_run(int64_t m, int64_t n, bool packed, const T *a, const T *gate,
                                    const T *dh, T *da, T *dgate, bool acc)
{
    const int64_t row = team_row(), end = row < m ? n : 0;
    const float g = gate && row < m ? get(gate + row) : 1;
    a += row * n;
    dh += row * n;
    float mine = 0;
    team_each<T>(end, packed ? 0 : n, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(a + j);
        pack<T, W> d = pack_load<T, W>(dh + j);
        float some = 0;
        for (int k = 0; k < W; k++) {
            const float x = get(v.at + k), dx = get(d.at + k);
            some += x > 0 ? dx * x : 0;
            put(d.at + k, x > 0 ? dx * g : 0);
        }
        mine += some;
        if (da) pack_store(da + row * n + j, d);
    });
    const float sum = team_sum(mine);
    if (dgate && row < m && threadIdx.x == 0)
        put(dgate + row, (acc ? get(dgate + row) : 0) + sum);
}

template <class T>
static void gate_bwd(int64_t m, int64_t n, const void *a, const void *gate, const void *dh,
                     void *da, void *dgate, bool acc)
{
    TEAM_LAUNCH(gate_bwd_run<T>, T, m, n, m, n, rows_aligned<T>(n, a, dh, da), (const T *)a,
                (const T *)gate, (const T *)dh, (T *)da, (T *)dgate, acc);
}

template <class T> void copy_table(ag_kernels *k)
{
    k->copy_rows = copy_rows<T>;
    k->row_add = row_add<T>;
    k->outer_fwd = outer_fwd<T>;
    k->outer_bwd = outer_bwd<T>;
    k->gate_fwd = gate_fwd<T>;
    k->gate_bwd = gate_bwd<T>;
}
template void copy_table<float>(ag_kernels *k);
template void copy_table<bf16>(ag_kernels *k);
template void copy_table<f16>(ag_kernels *k);
