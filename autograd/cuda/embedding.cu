/*
 * embedding.cu -- kernels that go by index: rows looked up, and added up where they came from.
 *
 * The sums: the rows of dy are sorted by index (group.cuh), and the order cut into pieces of PIECE
 * rows, however many rows an index has: 16384 tokens are 512 pieces of equal work, of 65 indices or
 * of 50257.  A piece adds up its rows of one index after the other.  What begins and ends in it
 * goes to its index at once; the sums of an index that goes over several pieces are added up by a
 * second launch, in double.  Each number of the result has one writer, and one order.
 */
#include "columns.cuh"
#include "group.cuh"
#include "team.cuh"

/* --- looking up ------------------------------------------------------------------------------- */

template <class T>
static __global__ void embedding_fwd_run(int64_t m, int64_t d, const int32_t *ids, const T *table,
                                         const T *pos, int64_t t, int64_t pos0, bool packed, T *y)
{
    const int64_t row = team_row();
    if (row >= m) return;
    table += ids[row] * d;
    if (pos) pos += (pos0 + row % t) * d;
    y += row * d;
    team_each<T>(d, packed ? 0 : d, [&](int64_t j, auto width) {
        constexpr int W = decltype(width)::value;
        pack<T, W> v = pack_load<T, W>(table + j);
        if (pos) {
            const pack<T, W> p = pack_load<T, W>(pos + j);
            for (int k = 0; k < W; k++) put(v.at + k, get(v.at + k) + get(p.at + k));
        }
        pack_store(y + j, v);
    });
}

/* Does every row of d numbers begin aligned? */
template <class T> static bool rows_aligned(int64_t d, const void *a, const void *b, const void *c)
{
    return d % (16 / (int)sizeof(T)) == 0 && all_aligned(a, b, c);
}

template <class T>
static void embedding_fwd(int64_t m, int64_t d, const int32_t *ids, const void *table,
                          const void *pos, int64_t t, int64_t pos0, void *y)
{
    TEAM_LAUNCH(embedding_fwd_run<T>, T, m, d, m, d, ids, (const T *)table, (const T *)pos, t, pos0,
                rows_aligned<T>(d, table, pos, y), (T *)y);
}

template <class T>
static void gather_fwd(int64_t m, int64_t n, const int32_t *idx, const void *x, void *y)
{
    embedding_fwd<T>(m, n, idx, x, NULL, 1, 0, y);
}

/* --- sums by index ---------------------------------------------------------------------------- */

enum { PIECE = 32, AHEAD = 4 };      /* rows; of which so many are read before they are added */

/* Rows in the order of their index, and the sums of an index that the pieces cut. */
struct sorted_rows {
    int64_t m, d;
    const int32_t *row, *index;      /* [m] */
    float *part;                     /* [pieces,2,d]: 0, of an index that began in an earlier piece;
                                      * 1, of one that begins here and goes on */
};

/* A thread has W columns of a piece. */
template <class T, class O, int W>
static __global__ void piece_sums(sorted_rows s, const T *dy, O *to)
{
    const int64_t piece = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, begin = piece * PIECE;
    const int64_t col = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (begin >= s.m || col >= s.d) return;
    const int64_t end = min(begin + PIECE, s.m);
    float *const part = s.part + piece * 2 * s.d + col;
    int32_t index = s.index[begin];
    bool older = begin > 0 && s.index[begin - 1] == index;       /* it began in an earlier piece */
    float sum[W] = {};
    for (int64_t i = begin; i < end; i += AHEAD) {
        pack<T, W> v[AHEAD];
        for (int a = 0; a < AHEAD; a++)
            if (i + a < end) v[a] = pack_load<T, W>(dy + s.row[i + a] * s.d + col);
        for (int a = 0; a < AHEAD; a++) {
            if (i + a >= end) break;
            for (int k = 0; k < W; k++) sum[k] += get(v[a].at + k);
            const int32_t next = i + a + 1 < s.m ? s.index[i + a + 1] : -1;
            if (next == index) continue;
            O *const out = to + index * s.d + col;
            for (int k = 0; k < W; k++) {
                if (older) part[k] = sum[k];
                else put(out + k, get(out + k) + sum[k]);
                sum[k] = 0;
            }
            index = next;
            older = false;
        }
    }
    if (end < s.m && s.index[end] == s.index[end - 1])
        for (int k = 0; k < W; k++) part[(older ? 0 : s.d) + k] = sum[k];
}

/* The sum of the index that begins in a piece and goes on; 32 columns a block. */
template <class O> static __global__ void pieces_end(sorted_rows s, O *to)
{
    AG_SHARED(double, shared);       /* [blockDim.y,32] */
    const unsigned x = threadIdx.x, y = threadIdx.y;
    const int64_t piece = blockIdx.x, begin = piece * PIECE, end = begin + PIECE;
    const int64_t col = (int64_t)blockIdx.y * 32 + x;
    if (end >= s.m) return;
    const int32_t index = s.index[end - 1];
    if (s.index[end] != index || (begin > 0 && s.index[begin - 1] == index)) return;
    double sum = 0;
    if (col < s.d) {
        if (y == 0) sum = (double)s.part[(piece * 2 + 1) * s.d + col];
        for (int64_t q = piece + 1 + y; q * PIECE < s.m && s.index[q * PIECE] == index;
             q += blockDim.y)
            sum += (double)s.part[q * 2 * s.d + col];
    }
    shared[y * 32 + x] = sum;
    __syncthreads();
    for (unsigned h = blockDim.y / 2; h; h /= 2) {
        if (y < h) shared[y * 32 + x] += shared[(y + h) * 32 + x];
        __syncthreads();
    }
    if (y > 0 || col >= s.d) return;
    O *const out = to + index * s.d + col;
    put(out, (float)((double)get(out) + shared[x]));
}

template <class T, class O, int W>
static void pieces_launch(const sorted_rows &s, int64_t pieces, const T *dy, O *to)
{
    unsigned x = 32;
    while (x > 1 && (int64_t)x * W >= 2 * s.d) x /= 2;
    const dim3 grid(blocks_for(pieces, 256 / x), blocks_for(s.d, (int64_t)x * W));
    AG_LAUNCH((piece_sums<T, O, W>), grid, dim3(x, 256 / x), 0, s, dy, to);
    if (pieces < 2) return;
    AG_LAUNCH((pieces_end<O>), dim3((unsigned)pieces, blocks_for(s.d, 32)), dim3(32, 8),
              256 * sizeof(double), s, to);
}

/* to[index[r]] += dy[r], r < m; `to` has v rows: the sort takes as many passes as they need */
template <class T, class O>
static void add_by_index(int64_t m, int64_t v, int64_t d, const int32_t *index, const void *dy,
                         void *to)
{
    const int64_t pieces = (m + PIECE - 1) / PIECE;
    const group_keys keys = { index, 1, m, 1, v };
    const size_t bytes = group_bytes(&keys);
    if (!m || !d) return;
    char *memory = (char *)ag_cuda_workspace(bytes + (size_t)(pieces * 2 * d) * sizeof(float));
    if (!memory) return;
    groups g;
    group_entries(&keys, memory, &g);
    const sorted_rows s = { m, d, g.entry, g.key, (float *)(memory + bytes) };
    if (rows_aligned<T>(d, dy, NULL, NULL))
        pieces_launch<T, O, 16 / (int)sizeof(T)>(s, pieces, (const T *)dy, (O *)to);
    else
        pieces_launch<T, O, 1>(s, pieces, (const T *)dy, (O *)to);
}

template <class T>
static void gather_bwd(int64_t m, int64_t v, int64_t n, const int32_t *idx, const void *dy,
                       void *dx)
{
    add_by_index<T, T>(m, v, n, idx, dy, dx);
}

/* Of position z: the rows z, z + t, z + 2 t .. of dy. */
template <class T> struct position_sums {
    static constexpr int OUT = 1;
    int64_t m, t, d;
    const T *dy;

    __device__ int64_t rows(int64_t z) const { return (m - z + t - 1) / t; }
    template <int W>
    __device__ __forceinline__ void add(int64_t z, int64_t row, int64_t col,
                                        float (&sum)[1][W]) const
    {
        const pack<T, W> v = pack_load<T, W>(dy + (row * t + z) * d + col);
        for (int k = 0; k < W; k++) sum[0][k] += get(v.at + k);
    }
};

template <class T>
static void embedding_bwd(int64_t m, int64_t v, int64_t d, const int32_t *ids, const void *dy,
                          int64_t t, int64_t pos0, void *dtable, void *dpos)
{
    if (dtable) add_by_index<T, float>(m, v, d, ids, dy, dtable);
    if (!dpos || !m) return;
    const position_sums<T> f = { m, t, d, (const T *)dy };
    const column_ends<float, 1> e = { { (float *)dpos + pos0 * d }, true, NULL };
    columns<T>(f, (m + t - 1) / t, d, t, rows_aligned<T>(d, dy, NULL, NULL), e);
}

/* --- one number of each row ------------------------------------------------------------------- */

template <class T>
static __global__ void pick_run(int64_t m, int64_t n, const int32_t *idx, const T *x, T *y)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < m) y[i] = x[i * n + idx[i]];
}

template <class T>
static __global__ void unpick_run(int64_t m, int64_t n, const int32_t *idx, const T *dy, T *dx)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < m) put(dx + i * n + idx[i], get(dx + i * n + idx[i]) + get(dy + i));
}

template <class T>
static void pick_fwd(int64_t m, int64_t n, const int32_t *idx, const void *x, void *y)
{
    AG_LAUNCH(pick_run<T>, blocks_for(m, 256), 256, 0, m, n, idx, (const T *)x, (T *)y);
}

template <class T>
static void pick_bwd(int64_t m, int64_t n, const int32_t *idx, const void *dy, void *dx)
{
    AG_LAUNCH(unpick_run<T>, blocks_for(m, 256), 256, 0, m, n, idx, (const T *)dy, (T *)dx);
}

template <class T> void embedding_table(ag_kernels *k)
{
    k->embedding_fwd = embedding_fwd<T>;
    k->embedding_bwd = embedding_bwd<T>;
    k->gather_fwd = gather_fwd<T>;
    k->gather_bwd = gather_bwd<T>;
    k->pick_fwd = pick_fwd<T>;
    k->pick_bwd = pick_bwd<T>;
}
template void embedding_table<float>(ag_kernels *k);
template void embedding_table<bf16>(ag_kernels *k);
template void embedding_table<f16>(ag_kernels *k);
