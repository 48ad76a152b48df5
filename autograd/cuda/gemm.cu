/*
 * gemm.cu -- products of matrices: the library's (cublas.h), and around it what a product of ours
 * has more than one of the library.
 *
 * The library adds a bias, takes ReLU, adds a residual where no activation comes before it.  What
 * is left is one pass over the result; the value before the activation is then the library's
 * output, so that it is written once.  A product that the library has no algorithm for runs here,
 * slowly.
 *
 * The library's GELU is used for 16 bits only.  How exact it is, is written nowhere; with the tanh
 * of the hardware, off by 2^-11 at most, it is off by 2^-12 |x|, less than x is when rounded to 16
 * bits, but thousands of times what f32 may be.
 */
#include "cublas.h"
#include "launch.cuh"
#include "math.cuh"
#include "number.cuh"

enum { THREADS = 256, TILE = 16, STRIDE = TILE + 1 };

static cudaDataType_t type_of(const float *) { return CUDA_R_32F; }
static cudaDataType_t type_of(const bf16 *) { return CUDA_R_16BF; }
static cudaDataType_t type_of(const f16 *) { return CUDA_R_16F; }

/* --- a product without the library ------------------------------------------------------------ */

/* A block takes tiles of c, TILE by TILE; s has a tile of op(a) and one of op(b). */
template <class T, class C> static __global__ void plain_run(ag_product p)
{
    AG_SHARED(float, s);
    float *sa = s, *sb = s + TILE * STRIDE;
    const T *a = (const T *)p.a, *b = (const T *)p.b;
    const unsigned x = threadIdx.x % TILE, y = threadIdx.x / TILE;
    const int64_t j = (int64_t)blockIdx.x * TILE + x;
    for (int64_t i0 = (int64_t)blockIdx.y * TILE; i0 < p.m; i0 += (int64_t)gridDim.y * TILE) {
        const int64_t i = i0 + y;
        float sum = 0;
        for (int64_t l0 = 0; l0 < p.k; l0 += TILE) {
            const int64_t la = l0 + x, lb = l0 + y;
            const bool in_a = i < p.m && la < p.k, in_b = lb < p.k && j < p.n;
            sa[y * STRIDE + x] = in_a ? get(a + (p.ta ? la * p.lda + i : i * p.lda + la)) : 0;
            sb[y * STRIDE + x] = in_b ? get(b + (p.tb ? j * p.ldb + lb : lb * p.ldb + j)) : 0;
            __syncthreads();
            float part = 0;
            for (unsigned l = 0; l < TILE; l++) part += sa[y * STRIDE + l] * sb[l * STRIDE + x];
            sum += part;
            __syncthreads();
        }
        if (i >= p.m || j >= p.n) continue;
        if (p.add) sum += get((const C *)p.add + i * p.ldc + j);
        if (p.bias) sum += get((const C *)p.bias + j);
        put((C *)p.c + i * p.ldc + j, p.relu && !(sum > 0) ? 0 : sum);
    }
}

static unsigned rows_of_grid(int64_t rows) { return rows < 65535 ? (unsigned)rows : 65535; }

template <class T, class C> static void plain(const ag_product &p)
{
    const dim3 grid(blocks_for(p.n, TILE), rows_of_grid((p.m + TILE - 1) / TILE));
    AG_LAUNCH((plain_run<T, C>), grid, TILE * TILE, 2 * TILE * STRIDE * sizeof(float), p);
}

/* --- rows that overlap ------------------------------------------------------------------------ */

/* Windows on a sequence are a matrix whose rows overlap (lda < k, ldb < n), which the library does
 * not take.  They are cut into matrices whose rows do not, if c holds sums well enough. */
template <class T, class C> static void product(const ag_product &p)
{
    const bool windows_a = p.lda < (p.ta ? p.m : p.k), windows_b = p.ldb < (p.tb ? p.k : p.n);
    if (windows_a && !p.ta && p.lda > 0 && !p.relu && sizeof(C) == sizeof(float)) {
        for (int64_t l = 0; l < p.k; l += p.lda) {
            ag_product q = p;
            q.k = p.k - l < p.lda ? p.k - l : p.lda;
            q.a = (const T *)p.a + l;
            q.b = (const T *)p.b + (p.tb ? l : l * p.ldb);
            if (l > 0) q.add = p.c, q.bias = NULL;
            product<T, C>(q);
        }
    } else if (windows_b && !p.tb && p.ldb > 0) {
        for (int64_t j = 0; j < p.n; j += p.ldb) {
            ag_product q = p;
            q.n = p.n - j < p.ldb ? p.n - j : p.ldb;
            q.b = (const T *)p.b + j;
            q.c = (C *)p.c + j;
            if (p.add) q.add = (const C *)p.add + j;
            if (p.bias) q.bias = (const C *)p.bias + j;
            product<T, C>(q);
        }
    } else if (windows_a || windows_b || !aligned(p.bias) || !ag_cublas_product(&p)) {
        plain<T, C>(p);
    }
}

/* --- what follows a product ------------------------------------------------------------------- */

/* c = act(z + bias) + residual, the activation's argument to pre; z in the type of c, NULL: 0. */
struct finish {
    int64_t m, n, ldc;
    const void *z, *bias, *residual;
    void *pre, *c;
    ag_act act;
};

/* A block has threads for columns (x) and rows (y); N of a row at a time. */
template <class T, class C, int N> static __global__ void finish_run(finish f)
{
    const T *bias = (const T *)f.bias, *residual = (const T *)f.residual;
    const int64_t j = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (j >= f.n) return;
    pack<T, N> b = {};
    if (bias) b = pack_load<T, N>(bias + j);
    for (int64_t i = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; i < f.m;
         i += (int64_t)gridDim.y * blockDim.y) {
        const int64_t at = i * f.ldc + j;
        pack<C, N> z = {};
        pack<T, N> r = {}, pre;
        if (f.z) z = pack_load<C, N>((const C *)f.z + at);
        if (residual) r = pack_load<T, N>(residual + at);
        for (int k = 0; k < N; k++) {
            float x = get(&z.at[k]);
            if (bias) x += get(&b.at[k]);
            put(&pre.at[k], x);
            x = act_of(f.act, x);
            if (residual) x += get(&r.at[k]);
            put(&z.at[k], x);
        }
        if (f.pre) pack_store<T, N>((T *)f.pre + at, pre);
        pack_store<C, N>((C *)f.c + at, z);
    }
}

template <class T, class C, int N> static void finish_by(const finish &f)
{
    const int64_t packs = (f.n + N - 1) / N;
    unsigned x = THREADS;
    while (x > 1 && x / 2 >= packs) x /= 2;
    const unsigned y = THREADS / x;
    const dim3 grid(blocks_for(packs, x), rows_of_grid((f.m + y - 1) / y)), block(x, y);
    AG_LAUNCH((finish_run<T, C, N>), grid, block, 0, f);
}

template <class T, class C> static void finish_all(const finish &f)
{
    constexpr int N = sizeof(T) == sizeof(C) ? 16 / (int)sizeof(T) : 1;
    const bool wide = f.n % N == 0 && f.ldc % N == 0 && aligned(f.z) && aligned(f.bias) &&
                      aligned(f.residual) && aligned(f.pre) && aligned(f.c);
    if (wide) finish_by<T, C, N>(f);
    else finish_by<T, C, 1>(f);
}

/* --- all of it -------------------------------------------------------------------------------- */

/* From row to row; where there is but one, ld may be anything. */
static int64_t stride(int64_t ld, int64_t rows, int64_t cols)
{
    return rows == 1 && ld < cols ? cols : ld;
}

template <class T, class C> static ag_product product_of(const ag_gemm *g)
{
    ag_product p = ag_product();
    p.type = type_of((const T *)NULL);
    p.c_type = type_of((const C *)NULL);
    p.ta = g->ta, p.tb = g->tb;
    p.m = g->m, p.n = g->n, p.k = g->k;
    p.a = g->a, p.lda = stride(g->lda, g->ta ? g->k : g->m, g->ta ? g->m : g->k);
    p.b = g->b, p.ldb = stride(g->ldb, g->tb ? g->n : g->k, g->tb ? g->k : g->n);
    p.c = g->c, p.ldc = stride(g->ldc, g->m, g->n);
    return p;
}

/* With acc nothing follows the product. */
template <class T, class C> static void gemm_add(const ag_gemm *g)
{
    ag_product p = product_of<T, C>(g);
    p.add = g->c;
    if (g->k > 0) product<T, C>(p);
}

/* GELU (tanh) and the value that it sees by the library, if it is of 16 bits and aligned.  On 9.x
 * alone: others have been seen to take another pass for it, slower than ours.  False: not done. */
template <class T, class C> static bool gelu_by_library(const ag_gemm *g, ag_product p)
{
    const bool rows_overlap = p.lda < (p.ta ? p.m : p.k) || p.ldb < (p.tb ? p.k : p.n);
    if (sizeof(T) != 2 || sizeof(C) != 2 || g->act != AG_ACT_GELU_TANH || !g->pre || g->residual ||
        rows_overlap || p.ldc % 8 || !aligned(g->pre) || !aligned(g->bias) || ag_cuda_major() != 9)
        return false;
    p.bias = g->bias;
    p.gelu = g->pre;
    return ag_cublas_product(&p);
}

template <class T, class C> static void gemm_set(const ag_gemm *g)
{
    const bool same = sizeof(T) == sizeof(C);
    ag_product p = product_of<T, C>(g);
    const bool rows_overlap = p.lda < (p.ta ? p.m : p.k);
    if (g->k > 0 && gelu_by_library<T, C>(g, p)) return;
    finish f = { g->m, g->n, g->ldc, NULL, g->bias, g->residual, g->pre, g->c, g->act };
    if (g->k > 0) {
        const bool plain_out = !g->pre && same;
        if (g->pre && same) p.c = g->pre, f.pre = NULL;
        if (same && aligned(g->bias)) p.bias = g->bias, f.bias = NULL;
        if (plain_out && g->act == AG_ACT_NONE) p.add = g->residual, f.residual = NULL;
        if (plain_out && g->act == AG_ACT_RELU && !f.bias && !rows_overlap)
            p.relu = true, f.act = AG_ACT_NONE;
        f.z = p.c;
        if (f.bias) f.pre = g->pre;
        product<T, C>(p);
        if (f.z == f.c && !f.bias && !f.pre && !f.residual && f.act == AG_ACT_NONE) return;
    }
    finish_all<T, C>(f);
}

template <class T> static void gemm(const ag_gemm *g)
{
    if (g->m <= 0 || g->n <= 0) return;
    if (sizeof(T) == 2 && g->c_f32)
        g->acc ? gemm_add<T, float>(g) : gemm_set<T, float>(g);
    else
        g->acc ? gemm_add<T, T>(g) : gemm_set<T, T>(g);
}

template <class T> void gemm_table(ag_kernels *k) { k->gemm = gemm<T>; }
template void gemm_table<float>(ag_kernels *k);
template void gemm_table<bf16>(ag_kernels *k);
template void gemm_table<f16>(ag_kernels *k);
