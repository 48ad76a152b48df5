/*
 * choose.cu -- the controller with its last matrix: z = low @ c2 + cb (ag_chooser in kernels.h).
 *
 * z is made in one of three ways.  With 16 bits, tensor cores make a tile of it where it is picked
 * from: a tile of 64 by 64 reads 256 bytes for each of the `rank` terms of its sums, from the cache of
 * the GPU.  A product of the table reads as much for its larger tiles, and half of that again, and z
 * goes to the cache and back, 8 bytes a number: so up to a rank of 256 (8192 rows, 1536 units, rank
 * 64: 50 MB for 130 MB, and one launch for six).  Else z is such a product, some rows at a time, so
 * few that they stay in the cache until they are picked from.  With few rows, in decoding, each thread
 * makes its number of z.
 *
 * Backward makes z again the same way and turns it into dz; the rest is products of the table: dlow
 * sums over all units and dc2 over all rows, so a kernel that held a tile of dz only would have to
 * add up in another order each time, or write more sums than dz has numbers.
 */
#include "controller.cuh"
#include "cuda.h"
#include "mma.cuh"

enum { FEW = 16, ALIGN = 16 };       /* rows; bytes */
static const int64_t PART_BYTES = (int64_t)24 << 20;     /* of z: half the cache of an H100 */

template <class T> struct product {  /* z of the table's product, [rows,units] */
    const float *z;
    const T *cb;
    int64_t units;
    __device__ float operator()(int64_t row, int64_t col) const
    {
        return z[row * units + col] + (cb ? get(cb + col) : 0);
    }
};

/* z made here: threads side by side read rows of c2.  Of one row few threads have a column, each
 * waits for the memory alone: so it asks for many numbers before it adds the first. */
template <class T> struct made {
    const T *low, *c2, *cb;
    int64_t rank, units;
    __device__ float operator()(int64_t row, int64_t col) const
    {
        float sum = 0;
        AG_UNROLL_BY(16)
        for (int64_t k = 0; k < rank; k++)
            sum += get(low + row * rank + k) * get(c2 + k * units + col);
        return sum + (cb ? get(cb + col) : 0);
    }
};

/* z made here by tensor cores, of 16-bit numbers: STEP terms of the sums at a time. */
template <class T> struct tensor {
    static constexpr int STEP = 64, PAD = 8;
    const T *low, *c2, *cb;
    int64_t rank, units;
    size_t at;                       /* where low and c2 go in shared memory, in bytes */
};

static int round_up(int n, int to) { return (n + to - 1) / to * to; }

enum { MOST_RANK = 256, MOST_COLS = 256, MOST_PART = 16 * 256 };

/* Can z be made so? */
template <class T> static bool is_tensor(const ag_chooser *c)
{
    const int cols = tiling_of(&c->c, false).cols;
    return sizeof(T) == 2 && c->c.n % 8 == 0 && cols % 16 == 0 && cols <= MOST_COLS &&
           c->rank > 0 && c->rank <= MOST_RANK && c->rank % 8 == 0 && aligned(c->low) &&
           aligned(c->c2);
}

/* The tiles for z of that kind. */
template <class Z> static tiling tiling_for(const ag_controller *c, bool apart, const Z *)
{
    return tiling_of(c, apart);
}
template <class T>
static tiling tiling_for(const ag_controller *c, bool apart, const tensor<T> *)
{
    tiling t = tiling_of(c, apart);
    const int most = MOST_PART / t.cols / 16 * 16;
    if (t.tile_rows > most) t.tile_rows = most;
    return t;
}

/* Bytes of shared memory behind `arrays` tiles that z needs. */
template <class Z> static size_t stage(const tiling &, int, Z *) { return 0; }
template <class T> static size_t stage(const tiling &t, int arrays, tensor<T> *z)
{
    z->at = tile_bytes(t, arrays);
    z->at += -z->at % ALIGN;
    const int low = round_up(t.tile_rows, 16) * (z->STEP + z->PAD);
    const int c2 = z->STEP * (t.cols + z->PAD);
    return z->at - tile_bytes(t, arrays) + (size_t)(low + c2) * sizeof(T);
}

/* A warp has one or two of the tile's parts of 16 by 16. */
template <class T>
static __device__ void tile_fill(const tiling &t, const tile &s, const tensor<T> &z)
{
    constexpr int STEP = tensor<T>::STEP, PAD = tensor<T>::PAD, A_ROW = STEP + PAD, N = 8;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, b_row = t.cols + PAD;
    const int row = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
    const int down = (t.tile_rows + 15) / 16, wide = t.cols / N, parts = down * (t.cols / 16);
    const int64_t col0 = s.block * t.n;
    T *const a = reinterpret_cast<T *>(reinterpret_cast<char *>(s.z) + z.at);
    T *const b = a + down * 16 * A_ROW;
    float c[2][2][4] = {};
    for (int64_t k0 = 0; k0 < z.rank; k0 += STEP) {
        async_copies copies;
        if (k0) __syncthreads();
        for (int i = (int)threadIdx.x; i < down * 16 * (STEP / N); i += THREADS) {
            const int r = i / (STEP / N), k = i % (STEP / N) * N;
            const bool in = r < s.rows && k0 + k < z.rank;
            copies.start(a + r * A_ROW + k, in ? z.low + (s.row + r) * z.rank + k0 + k : z.low,
                         in ? 16 : 0);
        }
        for (int i = (int)threadIdx.x; i < STEP * wide; i += THREADS) {
            const int k = i / wide, j = i % wide * N;
            const bool in = k0 + k < z.rank && j < s.cols;
            copies.start(b + k * b_row + j, in ? z.c2 + (k0 + k) * z.units + col0 + j : z.c2,
                         in ? 16 : 0);
        }
        copies.wait();
        __syncthreads();
        for (int p = 0; p < 2; p++) {
            const int part = warp + p * (THREADS / 32), i = part % down * 16, j = part / down * 16;
            if (part >= parts) continue;                 /* the whole warp */
            AG_UNROLL
            for (int k = 0; k < STEP; k += 16) {
                uint32_t fa[4], fb[4];
                ldmatrix(fa, a + (i + low + row) * A_ROW + k + high);
                ldmatrix_trans(fb, b + (k + low + row) * b_row + j + high);
                mma<T>(c[p][0], fa, fb);
                mma<T>(c[p][1], fa, fb + 2);
            }
        }
    }
    for (int p = 0; p < 2; p++) {
        const int part = warp + p * (THREADS / 32);
        for (int e = 0; e < 8 && part < parts; e++) {
            const int i = part % down * 16 + lane / 4 + e / 2 % 2 * 8;
            const int j = part / down * 16 + e / 4 * 8 + lane % 4 * 2 + e % 2;
            if (i < s.rows && j < s.cols)
                s.z[i * t.cols + j] = c[p][e / 4][e % 4] + (z.cb ? get(z.cb + col0 + j) : 0);
        }
    }
}

struct listing {                     /* of an ag_chooser */
    ag_gate gate;
    int picks;
    bool all, given;
};

/* Number k of a block's e, which one lane of the group can read. */
static __device__ float block_get(const tiling &t, const place &p, const float *e, int k)
{
    const float mine = p.on && k % t.lanes == p.lane ? e[k] : 0;
    return __shfl_sync(AG_WARP, mine, threadIdx.x % 32 / t.lanes * t.lanes + k % t.lanes);
}

/* p of a choice; z stays. */
static __device__ float block_soft(const tiling &t, const place &p, const float *z, int pick)
{
    float top = -INFINITY, sum = 0;
    EACH_CHOICE(j, t, p) top = fmaxf(top, z[j]);
    top = group_max(t, top);
    EACH_CHOICE(j, t, p) sum += expf((z[j] - top) * t.inv_t);
    sum = group_sum(t, sum);
    return expf((block_get(t, p, z, pick) - top) * t.inv_t) / sum;
}

/* The others with the highest z; what is listed becomes NaN there, which is never the best. */
static __device__ void list_others(const tiling &t, const place &p, float *z, int pick, int picks,
                                   int32_t *choice)
{
    for (int k = 1; k < picks; k++) {
        if (p.on && pick % t.lanes == p.lane) z[pick] = NAN;
        pick = best_of(t, p, z);
        if (p.on && p.lane == 0) choice[p.block * picks + k] = pick;
    }
}

template <class T, class Z>
static __global__ void choose_run(tiling t, Z z, listing l, int32_t *choice, T *gate)
{
    AG_SHARED(float, shared);
    const tile s = tile_load(t, z, l.given ? t.shift : t.noisy, shared);
    for (int i = 0; i < rounds(t, s); i++) {
        const place p = place_of(t, s, i);
        int pick;
        if (l.given) pick = p.on ? choice[p.block * l.picks] : 0;
        else pick = best_of(t, p, s.score + p.at);
        const float v = l.gate == AG_GATE_ONE ? 1 : block_soft(t, p, s.z + p.at, pick);
        if (l.all)
            EACH_CHOICE(j, t, p) put(gate + p.block * t.n + j, j == pick ? v : 0.0f);
        else
            for (int k = p.lane; p.on && k < l.picks; k += t.lanes)
                put(gate + p.block * l.picks + k, k == 0 ? v : 0.0f);
        if (l.given) continue;
        if (p.on && p.lane == 0) choice[p.block * l.picks] = pick;
        list_others(t, p, s.z + p.at, pick, l.picks, choice);
    }
}

/* Gates that are 1 for choices that are given: no score is wanted. */
template <class T>
static __global__ void gate_given(int64_t n, int64_t size, int64_t picks, bool all,
                                  const int32_t *choice, T *gate)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, block = i / size;
    if (i < n) put(gate + i, i % size == (all ? choice[block * picks] : 0) ? 1.0f : 0.0f);
}

/* dz of each block from its gradients of gates, dgate[rows,blocks,picks], or n with l.all. */
template <class T, class Z>
static __global__ void choose_grad(tiling t, Z z, listing l, const int32_t *choice, const T *dgate,
                                   T *dz)
{
    AG_SHARED(float, shared);
    const tile s = tile_load(t, z, t.shift, shared);
    for (int i = 0; i < rounds(t, s); i++) {
        const place p = place_of(t, s, i);
        const int first = p.on ? choice[p.block * l.picks] : 0;
        float *e = s.z + p.at, *dp = e + t.tile_rows * t.cols, sum = 0;
        const float inv = block_exp(t, p, e);
        const float f = l.gate == AG_GATE_SCALED ? inv * block_get(t, p, e, first) : 1;
        EACH_CHOICE(j, t, p)
            dp[j] = l.all && (l.gate != AG_GATE_P || j == first)
                ? f * get(dgate + p.block * t.n + j) : 0;
        for (int k = 0; p.on && !l.all && k < (l.gate == AG_GATE_P ? 1 : l.picks); k++) {
            const int j = choice[p.block * l.picks + k];
            if (j % t.lanes == p.lane) dp[j] = f * get(dgate + p.block * l.picks + k);
        }
        EACH_CHOICE(j, t, p) sum += e[j] * inv * dp[j];
        sum = group_sum(t, sum);
        EACH_CHOICE(j, t, p) put(dz + p.block * t.n + j, e[j] * inv * (dp[j] - sum) * t.inv_t);
    }
}

static ag_dtype dtype_of(const float *) { return AG_F32; }
static ag_dtype dtype_of(const bf16 *) { return AG_BF16; }
static ag_dtype dtype_of(const f16 *) { return AG_F16; }

/* Is z made where it is picked from? */
static bool is_made(const ag_chooser *c) { return c->c.rows <= FEW || c->rank == 0; }

static int64_t padded(int64_t floats) { return (floats + 3) & ~(int64_t)3; }

/* Rows at a time, of `bytes` of scratch each. */
template <class T> static int64_t part_rows(const ag_chooser *c, int64_t bytes)
{
    const int64_t have = (int64_t)ag_choose_scratch(c, dtype_of((T *)NULL)) - ALIGN;
    const int64_t rows = (have < PART_BYTES ? have : PART_BYTES) / bytes;
    return rows < 1 ? 1 : rows < c->c.rows ? rows : c->c.rows;
}

/* c for `rows` rows from r on. */
template <class T> static ag_chooser part_of(const ag_chooser *c, int64_t r, int64_t rows)
{
    ag_chooser p = *c;
    p.c.rows = rows < c->c.rows - r ? rows : c->c.rows - r;
    p.c.noise.row0 += r;
    p.low = (const T *)c->low + r * c->rank;
    return p;
}

/* z[rows,units] = low @ c2, f32 */
template <class T> static void make_z(const ag_kernels *k, const ag_chooser *c, float *z)
{
    const int64_t units = c->c.blocks * c->c.n;
    ag_gemm g = {};
    g.c_f32 = sizeof(T) == 2;
    g.m = c->c.rows, g.n = units, g.k = c->rank;
    g.a = c->low, g.lda = c->rank;
    g.b = c->c2, g.ldb = units;
    g.c = z, g.ldc = units;
    k->gemm(&g);
}

template <class T, class Z>
static void pick(const ag_chooser *c, Z z, int32_t *choice, T *gate)
{
    const listing l = { c->gate, (int)c->picks, c->all, c->c.given };
    const bool apart = !l.given && (l.gate != AG_GATE_ONE || l.picks > 1);
    const tiling t = tiling_for(&c->c, apart, &z);
    const size_t bytes = tile_bytes(t, 1 + t.apart) + stage(t, 1 + t.apart, &z);
    AG_LAUNCH((choose_run<T, Z>), tiles(t), THREADS, bytes, t, z, l, choice, gate);
}

template <class T>
static void choose_fwd(const ag_chooser *c, int32_t *choice, void *pgate, void *scratch)
{
    const int64_t units = c->c.blocks * c->c.n, size = c->all ? c->c.n : c->picks;
    const T *cb = (const T *)c->cb;
    T *gate = (T *)pgate;
    if (c->c.rows == 0 || units == 0) return;
    if (c->c.given && c->gate == AG_GATE_ONE) {
        const int64_t n = c->c.rows * c->c.blocks * size;
        AG_LAUNCH(gate_given<T>, blocks_for(n, THREADS), THREADS, 0, n, size, c->picks, c->all,
                  choice, gate);
        return;
    }
    if (is_made(c)) {
        pick(c, made<T>{ (const T *)c->low, (const T *)c->c2, cb, c->rank, units }, choice, gate);
        return;
    }
    if constexpr (sizeof(T) == 2)
        if (is_tensor<T>(c)) {
            pick(c, tensor<T>{ (const T *)c->low, (const T *)c->c2, cb, c->rank, units, 0 }, choice,
                 gate);
            return;
        }
    const ag_kernels *k = ag_kernels_cuda(dtype_of(cb));
    const int64_t rows = part_rows<T>(c, units * (int64_t)sizeof(float));
    for (int64_t r = 0; r < c->c.rows; r += rows) {
        const ag_chooser p = part_of<T>(c, r, rows);
        make_z<T>(k, &p, (float *)scratch);
        pick(&p, product<T>{ (const float *)scratch, cb, units },
             choice + r * c->c.blocks * c->picks, gate + r * c->c.blocks * size);
    }
}

/* --- backward ----------------------------------------------------------------------------------- */

template <class T, class Z>
static void make_dz(const ag_chooser *c, Z z, const int32_t *choice, const T *dgate, T *dz)
{
    const listing l = { c->gate, (int)c->picks, c->all, true };
    const tiling t = tiling_for(&c->c, false, &z);
    const size_t bytes = tile_bytes(t, 2) + stage(t, 2, &z);
    AG_LAUNCH((choose_grad<T, Z>), tiles(t), THREADS, bytes, t, z, l, choice, dgate, dz);
}

/* dlow, dc2 and dcb of these rows, those that are wanted */
template <class T>
static void spread_dz(const ag_kernels *k, const ag_chooser *c, const T *dz, T *dlow, bool acc,
                      void *dc2, void *dcb)
{
    const int64_t units = c->c.blocks * c->c.n;
    if (dlow) {
        ag_gemm g = {};
        g.tb = true, g.acc = acc;
        g.m = c->c.rows, g.n = c->rank, g.k = units;
        g.a = dz, g.lda = units;
        g.b = c->c2, g.ldb = units;
        g.c = dlow, g.ldc = c->rank;
        k->gemm(&g);
    }
    if (dc2) {
        ag_gemm g = {};
        g.ta = g.acc = true;
        g.c_f32 = sizeof(T) == 2;
        g.m = c->rank, g.n = units, g.k = c->c.rows;
        g.a = c->low, g.lda = c->rank;
        g.b = dz, g.ldb = units;
        g.c = dc2, g.ldc = units;
        k->gemm(&g);
    }
    if (dcb) k->act_bwd(AG_ACT_NONE, c->c.rows, units, NULL, dz, NULL, dcb, true);
}

template <class T>
static void choose_bwd(const ag_chooser *c, const int32_t *choice, const void *dgate, void *dlow,
                       bool acc, void *dc2, void *dcb, void *scratch)
{
    const int64_t units = c->c.blocks * c->c.n, size = c->all ? c->c.n : c->picks;
    const T *c2 = (const T *)c->c2, *cb = (const T *)c->cb;
    const ag_kernels *k = ag_kernels_cuda(dtype_of(cb));
    if (c->c.rows == 0 || units == 0) return;
    /* dz replaces z where both are f32 */
    const bool stored = !is_made(c) && !is_tensor<T>(c), apart = stored && sizeof(T) == 2;
    const int64_t bytes = (int64_t)sizeof(T) + (apart ? (int64_t)sizeof(float) : 0);
    const int64_t rows = part_rows<T>(c, units * bytes);
    float *z = (float *)scratch;
    T *dz = apart ? (T *)(z + padded(rows * units)) : (T *)scratch;
    for (int64_t r = 0; r < c->c.rows; r += rows) {
        const ag_chooser p = part_of<T>(c, r, rows);
        const int32_t *list = choice + r * c->c.blocks * c->picks;
        const T *d = (const T *)dgate + r * c->c.blocks * size;
        if (is_made(c)) {
            make_dz(&p, made<T>{ (const T *)p.low, c2, cb, c->rank, units }, list, d, dz);
        } else if (!stored) {
            if constexpr (sizeof(T) == 2)
                make_dz(&p, tensor<T>{ (const T *)p.low, c2, cb, c->rank, units, 0 }, list, d, dz);
        } else {
            make_z<T>(k, &p, z);
            make_dz(&p, product<T>{ z, cb, units }, list, d, dz);
        }
        spread_dz(k, &p, dz, dlow ? (T *)dlow + r * c->rank : NULL, acc, dc2, dcb);
    }
}

template <class T> void choose_table(ag_kernels *k)
{
    k->choose_fwd = choose_fwd<T>;
    k->choose_bwd = choose_bwd<T>;
}
template void choose_table<float>(ag_kernels *k);
template void choose_table<bf16>(ag_kernels *k);
template void choose_table<f16>(ag_kernels *k);
