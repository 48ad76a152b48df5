/*
 * live_group.cu -- live units whose choices are wide, as experts are (16 units or more): rows grouped
 * by their choice, and the products of each group by tiles, on tensor cores with 16 bits.
 *
 * Counted for 4 experts of 384 units, d 384, 8192 rows, bf16: a row that gathers its weights reads
 * 295 KB from the cache of the GPU, all rows 2.4 GB, for 2.4 GFLOP.  A tile of 64 by 64 results reads
 * 128 numbers for 4096 multiply-adds: 75 MB.  The sort before it takes two launches.
 *
 *     dot    c[entry, unit]   = x[row] . w[unit]            tiles of entries by units, sum over d
 *     sum    c[entry, column] = h[entry] . w[.., column]    tiles of entries by columns, over units
 *     grad   c[unit, column]  = h[.., unit] . x[.., column] tiles of units by columns, over entries
 *
 * The host does not know how many tiles of entries a choice has.  Choice k has the numbers first[k] /
 * 64 + k and up, which leaves room for all its tiles: some blocks of threads find nothing to do.
 *
 * Two stages of tiles: one is copied while the other is multiplied.  Every sum runs over its terms in
 * order; f32 adds up tile by tile.
 */
#include "group.cuh"
#include "live.cuh"
#include "mma.cuh"

enum { THREADS = 128, SIDE = 64, LEAST_WIDTH = 16, LEAST_ENTRIES = 64 };
enum kind { DOT, SUM, GRAD };

/* Of a sum over k, STEP terms at a time: 128 bytes.  Rows in shared memory are 16 bytes longer than
 * what they hold, which puts eight rows into different banks. */
template <class T> struct sizes {
    static constexpr int PACK = 16 / (int)sizeof(T), STEP = 128 / (int)sizeof(T);
    static constexpr int ALONG = STEP + PACK, ACROSS = SIDE + PACK;      /* rows of k; of a side */
    static constexpr int TILE = SIDE * ALONG > STEP * ACROSS ? SIDE * ALONG : STEP * ACROSS;
    static constexpr int OUT = SIDE + 4;                 /* a row of results, floats */
};

struct spot { int row, place; };     /* of an entry: in x and y; in h and a, times width */

template <class T> struct job {
    live l;
    listed g;
    const T *x, *w, *h, *bias, *residual;
    void *out;                       /* a, y or dw */
    bool acc;
};

/* What a block of threads makes: results i0 .., j0 .. of a choice. */
struct part {
    int64_t block, choice;
    int64_t from, n;                 /* its entries: of the tile, or, for GRAD, all */
    int64_t i0, j0, terms;           /* the first row and column; how long the sums are */
};

/* Choice k has the tiles from first[k] / SIDE + k on. */
static __device__ bool find_tile(const live &l, const int32_t *first, int64_t t, part *ret)
{
    int64_t k = 0, over = l.n;
    while (over - k > 1) {
        const int64_t mid = (k + over) / 2;
        if (first[mid] / SIDE + mid <= t) k = mid;
        else over = mid;
    }
    ret->choice = k;
    ret->from = first[k] + (t - first[k] / SIDE - k) * SIDE;
    ret->n = min((int64_t)SIDE, first[k + 1] - ret->from);
    return ret->n > 0;
}

template <class T, int KIND> static __device__ bool find_part(const job<T> &j, part *ret)
{
    const live &l = j.l;
    ret->block = blockIdx.z;
    const int32_t *first = j.g.first + ret->block * (l.n + 1);
    if (KIND != GRAD) {
        ret->i0 = 0;
        ret->j0 = (int64_t)blockIdx.y * SIDE;
        ret->terms = KIND == DOT ? l.d : l.width;
        return find_tile(l, first, blockIdx.x, ret);
    }
    const int64_t across = (l.d + SIDE - 1) / SIDE;
    ret->choice = blockIdx.x;
    ret->from = first[ret->choice];
    ret->n = ret->terms = first[ret->choice + 1] - ret->from;
    ret->i0 = blockIdx.y / across * SIDE;
    ret->j0 = blockIdx.y % across * SIDE;
    return ret->n > 0;
}

/* Entry i of the part, or nothing. */
template <class T> static __device__ spot spot_of(const job<T> &j, const part &p, int64_t i)
{
    if (i >= p.n) return { -1, -1 };
    const int at = j.g.entry[p.block * j.l.rows * j.l.picks + p.from + i];
    const int row = j.l.picks == 1 ? at : at / j.l.picks;
    return { row, row * ((int)j.l.blocks - 1) * j.l.picks + (int)p.block * j.l.picks + at };
}

/* A tile of a or b on its way: rows r of `wide` packs; from(r, c) is where column c of it begins,
 * NULL: zeros. */
template <class T, class F>
static __device__ __forceinline__ void copy_tile(async_copies &copies, T *to, int rows, int wide,
                                                 const T *any, F from)
{
    constexpr int N = sizes<T>::PACK;
    for (int i = (int)threadIdx.x; i < rows * wide; i += THREADS) {
        const int r = i / wide, c = i % wide * N;
        const T *p = from(r, c);
        copies.start(to + r * (wide * N + N) + c, p ? p : any, p ? 16 : 0);
    }
}

/* Terms k0 .. k0 + STEP - 1 of both sides; spots: of the entries, of the tile or of these terms. */
template <class T, int KIND>
static __device__ void copy_step(const job<T> &j, const part &p, int64_t k0, const spot *spots, T *a,
                                 T *b, async_copies &copies)
{
    constexpr int STEP = sizes<T>::STEP, ALONG = 8, ACROSS = SIDE / sizes<T>::PACK;
    const live &l = j.l;
    const int64_t unit = (p.block * l.n + p.choice) * l.width;
    if (KIND == DOT) {
        copy_tile<T>(copies, a, SIDE, ALONG, j.x, [&](int r, int c) {
            const bool in = spots[r].row >= 0 && k0 + c < l.d;
            return in ? j.x + spots[r].row * l.d + k0 + c : NULL;
        });
        copy_tile<T>(copies, b, SIDE, ALONG, j.w, [&](int r, int c) {
            const bool in = p.j0 + r < l.width && k0 + c < l.d;
            return in ? j.w + (unit + p.j0 + r) * l.d + k0 + c : NULL;
        });
    } else if (KIND == SUM) {
        copy_tile<T>(copies, a, SIDE, ALONG, j.h, [&](int r, int c) {
            const bool in = spots[r].row >= 0 && k0 + c < l.width;
            return in ? j.h + (int64_t)spots[r].place * l.width + k0 + c : NULL;
        });
        copy_tile<T>(copies, b, STEP, ACROSS, j.w, [&](int r, int c) {
            const bool in = k0 + r < l.width && p.j0 + c < l.d;
            return in ? j.w + (unit + k0 + r) * l.d + p.j0 + c : NULL;
        });
    } else {
        copy_tile<T>(copies, a, STEP, ACROSS, j.h, [&](int r, int c) {
            const bool in = spots[r].row >= 0 && p.i0 + c < l.width;
            return in ? j.h + (int64_t)spots[r].place * l.width + p.i0 + c : NULL;
        });
        copy_tile<T>(copies, b, STEP, ACROSS, j.x, [&](int r, int c) {
            const bool in = spots[r].row >= 0 && p.j0 + c < l.d;
            return in ? j.x + spots[r].row * l.d + p.j0 + c : NULL;
        });
    }
}

/* --- the product of two tiles ----------------------------------------------------------------------- */

/* 16 bits: four warps have 32 by 32 results each. */
template <class T, int KIND> struct results {
    float c[2][4][4];

    __device__ void clear(void)
    {
        for (int m = 0; m < 2; m++)
            for (int n = 0; n < 4; n++)
                for (int e = 0; e < 4; e++) c[m][n][e] = 0;
    }
    __device__ void add(const T *a, const T *b)
    {
        constexpr int ALONG = sizes<T>::ALONG, ACROSS = sizes<T>::ACROSS;
        const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
        const int row = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
        const int i0 = warp / 2 * 32, j0 = warp % 2 * 32;
        AG_UNROLL
        for (int k = 0; k < sizes<T>::STEP; k += 16) {
            uint32_t fa[2][4], fb[2][4];
            for (int m = 0; m < 2; m++)
                if (KIND == GRAD)
                    ldmatrix_trans(fa[m], a + (k + high + row) * ACROSS + i0 + m * 16 + low);
                else ldmatrix(fa[m], a + (i0 + m * 16 + low + row) * ALONG + k + high);
            for (int n = 0; n < 2; n++)
                if (KIND == DOT)
                    ldmatrix(fb[n], b + (j0 + n * 16 + high + row) * ALONG + k + low);
                else ldmatrix_trans(fb[n], b + (k + low + row) * ACROSS + j0 + n * 16 + high);
            for (int m = 0; m < 2; m++)
                for (int n = 0; n < 4; n++) mma<T>(c[m][n], fa[m], fb[n / 2] + n % 2 * 2);
        }
    }
    __device__ void store(float *to) const
    {
        const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
        const int i = warp / 2 * 32 + lane / 4, j = warp % 2 * 32 + lane % 4 * 2;
        for (int m = 0; m < 2; m++)
            for (int n = 0; n < 4; n++)
                for (int e = 0; e < 4; e++)
                    to[(i + m * 16 + e / 2 * 8) * sizes<T>::OUT + j + n * 8 + e % 2] = c[m][n][e];
    }
};

/* f32: a thread has rows y + 8 m and columns x + 16 n. */
template <int KIND> struct results<float, KIND> {
    float c[8][4];

    __device__ void clear(void)
    {
        for (int m = 0; m < 8; m++)
            for (int n = 0; n < 4; n++) c[m][n] = 0;
    }
    __device__ void add(const float *a, const float *b)
    {
        constexpr int ALONG = sizes<float>::ALONG, ACROSS = sizes<float>::ACROSS;
        const int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;
        float s[8][4] = {};
        AG_UNROLL_BY(4)
        for (int k = 0; k < sizes<float>::STEP; k++) {
            float fa[8], fb[4];
            for (int m = 0; m < 8; m++)
                fa[m] = KIND == GRAD ? a[k * ACROSS + y + 8 * m] : a[(y + 8 * m) * ALONG + k];
            for (int n = 0; n < 4; n++)
                fb[n] = KIND == DOT ? b[(x + 16 * n) * ALONG + k] : b[k * ACROSS + x + 16 * n];
            for (int m = 0; m < 8; m++)
                for (int n = 0; n < 4; n++) s[m][n] += fa[m] * fb[n];
        }
        for (int m = 0; m < 8; m++)
            for (int n = 0; n < 4; n++) c[m][n] += s[m][n];
    }
    __device__ void store(float *to) const
    {
        const int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;
        for (int m = 0; m < 8; m++)
            for (int n = 0; n < 4; n++) to[(y + 8 * m) * sizes<float>::OUT + x + 16 * n] = c[m][n];
    }
};

/* --- a part ------------------------------------------------------------------------------------------- */

/* to[0 .. N-1] (+)= v + bias + residual, what is not NULL of them */
template <class C, class T, int N>
static __device__ void put_some(C *to, const float *v, const T *bias, const T *residual, bool acc)
{
    pack<C, N> out = {};
    if (acc) out = pack_load<C, N>(to);
    for (int k = 0; k < N; k++)
        put(&out.at[k], v[k] + (bias ? get(bias + k) : 0) + (residual ? get(residual + k) : 0) +
                        get(&out.at[k]));
    pack_store(to, out);
}

/* The tile of results, in shared memory, to where it belongs. */
template <class T, int KIND>
static __device__ void put_part(const job<T> &j, const part &p, const spot *spots, const float *c)
{
    constexpr int N = KIND == GRAD ? 4 : sizes<T>::PACK, WIDE = SIDE / N;
    const live &l = j.l;
    const int64_t unit = (p.block * l.n + p.choice) * l.width;
    for (int k = (int)threadIdx.x; k < SIDE * WIDE; k += THREADS) {
        const int i = k / WIDE;
        const int64_t col = p.j0 + k % WIDE * N;
        const float *v = c + i * sizes<T>::OUT + k % WIDE * N;
        if (col >= (KIND == DOT ? l.width : l.d)) continue;
        if (KIND == GRAD) {
            if (p.i0 + i < l.width)
                put_some<float, T, N>((float *)j.out + (unit + p.i0 + i) * l.d + col, v, NULL, NULL,
                                      true);
        } else if (spots[i].row < 0) {
            continue;
        } else if (KIND == DOT) {
            put_some<T, T, N>((T *)j.out + (int64_t)spots[i].place * l.width + col, v,
                              j.bias ? j.bias + unit + col : NULL, NULL, false);
        } else {
            const int64_t at = spots[i].row * l.d + col;
            put_some<T, T, N>((T *)j.out + at, v, j.bias ? j.bias + col : NULL,
                              j.residual ? j.residual + at : NULL, j.acc);
        }
    }
}

/* Entries of a step, of which GRAD has others each time, are known a step before they are used. */
template <class T, int KIND>
static __global__ void __launch_bounds__(THREADS) group_run(job<T> j)
{
    constexpr int TILE = sizes<T>::TILE, STEP = sizes<T>::STEP;
    AG_SHARED(T, tiles);             /* a and b [2,2,TILE]; in the end, the results */
    spot *const spots = reinterpret_cast<spot *>(tiles + 4 * TILE);      /* [2,SIDE] */
    const int tid = (int)threadIdx.x;
    results<T, KIND> c;
    async_copies copies;
    part p;
    if (!find_part<T, KIND>(j, &p)) return;              /* the whole block */
    if (tid < SIDE) {
        spots[tid] = spot_of(j, p, tid);
        if (KIND == GRAD && tid < STEP) spots[SIDE + tid] = spot_of(j, p, STEP + tid);
    }
    c.clear();
    __syncthreads();
    copy_step<T, KIND>(j, p, 0, spots, tiles, tiles + TILE, copies);
    int side = 0;
    for (int64_t k0 = 0; k0 < p.terms; k0 += STEP, side ^= 1) {
        copies.wait();
        __syncthreads();
        spot next = { -1, -1 };
        if (k0 + STEP < p.terms) {
            T *const to = tiles + (side ^ 1) * 2 * TILE;
            copy_step<T, KIND>(j, p, k0 + STEP, spots + (KIND == GRAD ? (side ^ 1) * SIDE : 0), to,
                               to + TILE, copies);
            if (KIND == GRAD && tid < STEP) next = spot_of(j, p, k0 + 2 * STEP + tid);
        }
        c.add(tiles + side * 2 * TILE, tiles + side * 2 * TILE + TILE);
        if (KIND == GRAD && tid < STEP) spots[side * SIDE + tid] = next;
    }
    __syncthreads();
    float *const out = reinterpret_cast<float *>(tiles);
    c.store(out);
    __syncthreads();
    put_part<T, KIND>(j, p, spots, out);
}

template <class T, int KIND> static bool launch(const job<T> &j, int64_t x, int64_t y)
{
    const size_t bytes = 4 * sizes<T>::TILE * sizeof(T) + 2 * SIDE * sizeof(spot);
    if (y > 65535 || j.l.blocks > 65535) return false;
    AG_LAUNCH((group_run<T, KIND>), dim3((unsigned)x, (unsigned)y, (unsigned)j.l.blocks), THREADS,
              bytes, j);
    return true;
}

/* Are there rows for tiles, and can both their sides be read 16 bytes at a time? */
template <class T> static bool fits(const live &l, const void *a, const void *b, const void *c)
{
    return l.width >= LEAST_WIDTH && l.rows * l.picks >= LEAST_ENTRIES && l.d > 0 &&
           l.rows * l.blocks * l.picks <= INT32_MAX && is_even<T>(l.width, a, b) &&
           is_even<T>(l.d, c, NULL);
}

static int64_t most_tiles(const live &l) { return l.rows * l.picks / SIDE + l.n; }

template <class T> bool group_dot(const live &l, const T *x, const T *w, const T *bias, T *a)
{
    job<T> j = {};
    j.l = l, j.x = x, j.w = w, j.bias = bias, j.out = a;
    return fits<T>(l, x, w, a) && live_list(l, &j.g) &&
           launch<T, DOT>(j, most_tiles(l), ceil_div(l.width, SIDE));
}

/* Where a row has one choice: others would have to add up what the choices of a row give. */
template <class T> bool group_sum(const live &l, const live_sums<T> &s)
{
    job<T> j = {};
    j.l = l, j.h = s.h, j.w = s.w, j.bias = s.bias, j.residual = s.residual, j.out = s.y;
    j.acc = s.acc;
    return l.blocks * l.picks == 1 && fits<T>(l, s.h, s.w, s.y) && live_list(l, &j.g) &&
           launch<T, SUM>(j, most_tiles(l), ceil_div(l.d, SIDE));
}

template <class T> bool group_grad(const live &l, const T *h, const T *x, float *dw)
{
    job<T> j = {};
    j.l = l, j.h = h, j.x = x, j.out = dw;
    return fits<T>(l, h, x, dw) && live_list(l, &j.g) &&
           launch<T, GRAD>(j, l.n, ceil_div(l.width, SIDE) * ceil_div(l.d, SIDE));
}

/* --- entries by choice ---------------------------------------------------------------------------- */

bool live_list(const live &l, listed *ret)
{
    const group_keys keys = { l.choice, l.blocks, l.rows * l.picks, l.picks, l.n };
    const size_t bytes = group_bytes(&keys);
    char *memory = (char *)ag_cuda_workspace(bytes + (size_t)(l.blocks * (l.n + 1)) * sizeof(int32_t));
    if (!memory) return false;
    int32_t *first = (int32_t *)(memory + bytes);
    groups by;
    group_starts(&keys, memory, &by, first);
    *ret = { by.entry, first };
    return true;
}

#define AG_GROUP(T)                                                                     \
    template bool group_dot<T>(const live &, const T *, const T *, const T *, T *);     \
    template bool group_sum<T>(const live &, const live_sums<T> &);                     \
    template bool group_grad<T>(const live &, const T *, const T *, float *);
AG_GROUP(float)
AG_GROUP(bf16)
AG_GROUP(f16)
