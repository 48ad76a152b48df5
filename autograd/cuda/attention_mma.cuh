/*
 * attention_mma.cuh -- what attention of 16-bit numbers on tensor cores is made of, with all keys
 * (attention_mma.cu) or those of a pattern (blocks_mma.cu): tiles of TILE queries and keys, heads
 * of at most 128 (FlashAttention-2, 2307.08691).
 *
 * Four warps have 16 rows of a tile of scores each, all 64 columns of them or, where registers are
 * short, 32 at a time.  The scores stay in registers: rounded to 16 bits they are the left factor
 * of the next product.  The tiles that a block walks over come by asynchronous copies into one of
 * two buffers while the other one is worked on.  Rows in shared memory are D + 8 numbers apart, an
 * odd multiple of 16 bytes: the 8 rows that ldmatrix reads lie in different banks.
 *
 * A warp reads 64 x D numbers of k and of v from shared memory for 4 x 16 x 64 x D operations, 16
 * for each byte; a processor reads 128 bytes in a clock, which feeds 2048 operations.
 */
#ifndef AG_CUDA_ATTENTION_MMA_CUH
#define AG_CUDA_ATTENTION_MMA_CUH

#include "attention.cuh"
#include "mma.cuh"

constexpr int THREADS = 128, N8 = TILE / 8 /* columns of 8 in a tile of scores */;

template <int D> struct tile { enum { ROW = D + 8, SIZE = TILE * ROW, K16 = D / 16 }; };

DEVICE int lane(void) { return (int)threadIdx.x % 32; }
DEVICE int warp(void) { return (int)threadIdx.x / 32; }

/* Rows first .. first + TILE - 1 of x, d numbers each, into s; 0 beyond d and from row `end` on. */
template <class T, int D>
static __device__ void tile_load(async_copies &copies, T *s, const T *x, int64_t row, int first,
                                 int end, int d, bool vectors)
{
    constexpr int N = 8, PACKS = D / N;
    if (vectors) {
        AG_UNROLL_BY(2) for (int i0 = 0; i0 < TILE * PACKS; i0 += THREADS) {
            const int i = i0 + (int)threadIdx.x, r = first + i / PACKS, c = i % PACKS * N;
            const bool there = r < end && c < d;
            copies.start(s + i / PACKS * tile<D>::ROW + c, there ? x + r * row + c : x,
                         there ? 16 : 0);
        }
        return;
    }
    AG_UNROLL_BY(4) for (int i = (int)threadIdx.x; i < TILE * D; i += THREADS) {
        const int r = first + i / D, c = i % D;
        T v = {};
        if (r < end && c < d) v = x[r * row + c];
        s[i / D * tile<D>::ROW + c] = v;
    }
}

/* --- fragments (mma.cuh) ---------------------------------------------------------------------- */

/* The left factor: rows m(0..15) of s, numbers k .. k + 15; m(r) = r % 8 + (r / 8) * apart. */
template <class T, int D>
DEVICE void load_a(uint32_t a[4], const T *s, int k, int apart = 8)
{
    ldmatrix(a, s + (lane() % 8 + lane() / 8 % 2 * apart) * tile<D>::ROW + k + lane() / 16 * 8);
}

/* The right factor where its columns are rows of s: 16 of them, numbers k .. k + 15; b[0..1] is of
 * the first 8. */
template <class T, int D> DEVICE void load_b(uint32_t b[4], const T *s, int k)
{
    ldmatrix(b, s + (lane() % 8 + lane() / 16 * 8) * tile<D>::ROW + k + lane() / 8 % 2 * 8);
}

/* The right factor where its rows are rows of s: 16 of them, columns c .. c + 15. */
template <class T, int D> DEVICE void load_b_rows(uint32_t b[4], const T *s, int c)
{
    ldmatrix_trans(b, s + lane() % 16 * tile<D>::ROW + c + lane() / 16 * 8);
}

/* The first `rows` rows, in groups of 16. */
struct first_rows {
    int rows;
    __device__ __forceinline__ bool operator()(int g) const { return g * 16 < rows; }
};

/* x = a b^T over d numbers: 16 rows of a, 8 N rows of b in those groups of 16 that `has` has; 0
 * else */
template <class T, int D, int N, class Groups>
DEVICE void scores(const T *a, int apart, const T *b, const Groups &has, int d, float x[N][4])
{
    AG_UNROLL for (int n = 0; n < N; n++)
        AG_UNROLL for (int i = 0; i < 4; i++) x[n][i] = 0;
    AG_UNROLL for (int k = 0; k < tile<D>::K16; k++) {
        if (k * 16 >= d) break;
        uint32_t fa[4], fb[4];
        load_a<T, D>(fa, a, k * 16, apart);
        AG_UNROLL for (int n = 0; n < N; n += 2) {
            if (!has(n / 2)) continue;
            load_b<T, D>(fb, b + n * 8 * tile<D>::ROW, k * 16);
            mma<T>(x[n], fa, fb);
            mma<T>(x[n + 1], fa, fb + 2);
        }
    }
}

/* y += w b over groups of 16 rows of b: w has 8 N columns, as scores() leaves them, b d columns */
template <class T, int D, int N, class Groups>
DEVICE void add_product(const float w[N][4], const T *b, const Groups &has, int d,
                        float y[D / 8][4])
{
    AG_UNROLL for (int k = 0; k < N / 2; k++) {
        if (!has(k)) continue;
        const uint32_t fa[4] = { pack2<T>(w[2 * k][0], w[2 * k][1]),
                                 pack2<T>(w[2 * k][2], w[2 * k][3]),
                                 pack2<T>(w[2 * k + 1][0], w[2 * k + 1][1]),
                                 pack2<T>(w[2 * k + 1][2], w[2 * k + 1][3]) };
        AG_UNROLL for (int c = 0; c < tile<D>::K16; c++) {
            if (c * 16 >= d) break;
            uint32_t fb[4];
            load_b_rows<T, D>(fb, b + k * 16 * tile<D>::ROW, c * 16);
            mma<T>(y[2 * c], fa, fb);
            mma<T>(y[2 * c + 1], fa, fb + 2);
        }
    }
}

/* Row and column in a warp's 16 x 8 numbers: those of c[i] for this lane. */
DEVICE int frag_row(int i) { return lane() / 4 + i / 2 * 8; }
DEVICE int frag_col(int i) { return lane() % 4 * 2 + i % 2; }

/* Over the four lanes that share rows. */
DEVICE float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(AG_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(AG_WARP, x, 2));
}
DEVICE float quad_sum(float x)
{
    x += __shfl_xor_sync(AG_WARP, x, 1);
    return x + __shfl_xor_sync(AG_WARP, x, 2);
}

/* Row r (0 or 1: lane / 4, and 8 on) of y, times `times`, to a row of d numbers. */
template <class T, int D>
DEVICE void row_store(T *to, int d, float times, bool acc, bool vectors, int r,
                      const float y[D / 8][4])
{
    AG_UNROLL for (int n = 0; n < D / 8; n++) {
        const int c = n * 8 + frag_col(0);
        const float low = y[n][2 * r] * times, high = y[n][2 * r + 1] * times;
        if (vectors && c < d) {
            uint32_t *at = (uint32_t *)(to + c);
            const uint32_t was = acc ? *at : 0;
            *at = acc ? pack2<T>(low_of<T>(was) + low, high_of<T>(was) + high)
                      : pack2<T>(low, high);
        } else {
            if (c < d) put_sum(to + c, low, acc);
            if (c + 1 < d) put_sum(to + c + 1, high, acc);
        }
    }
}

/* Row r of the scores, in log2, becomes exp2(x - top); top, and the sum of what this lane has, go
 * on.  Returns by how much what was summed before shrinks. */
DEVICE float softmax_row(float x[N8][4], int r, float *top, float *sum)
{
    float m = *top, s = 0;
    AG_UNROLL for (int n = 0; n < N8; n++)
        AG_UNROLL for (int i = 2 * r; i < 2 * r + 2; i++) m = fmaxf(m, x[n][i]);
    m = quad_max(m);
    const float base = m == -INFINITY ? 0 : m, shrink = exp2f(*top - base);
    AG_UNROLL for (int n = 0; n < N8; n++)
        AG_UNROLL for (int i = 2 * r; i < 2 * r + 2; i++) {
            x[n][i] = exp2f(x[n][i] - base);
            s += x[n][i];
        }
    *sum = *sum * shrink + s;
    *top = m;
    return shrink;
}

template <class T, int D>
DEVICE void result_store(const attention<T> &a, head_at e, int i, int split, int r, float top,
                         float sum, const float o[D / 8][4])
{
    const row_at<T> to = result_at(a, e, i, split);
    if (to.part) {
        AG_UNROLL for (int n = 0; n < D / 8; n++)
            AG_UNROLL for (int c = 0; c < 2; c++)
                if (n * 8 + frag_col(c) < a.d_v) to.part[n * 8 + frag_col(c)] = o[n][2 * r + c];
    } else {
        row_store<T, D>(to.o, a.d_v, sum > 0 ? 1 / sum : 0, false, a.vectors, r, o);
    }
    if (lane() % 4 == 0) put_sums(a, to, top, sum);
}

/* Bytes of shared memory, forward and backward. */
template <class T, int D> static size_t room_fwd(void) { return 5 * tile<D>::SIZE * sizeof(T); }
template <class T, int D> static size_t room_bwd(void)
{
    return 6 * tile<D>::SIZE * sizeof(T) + 2 * THREADS * sizeof(float);
}

#endif
