/*
 * draw.cu -- one index of a row, by its probability: the next token.
 *
 * One block does it.  The numbers have a total order, by a key: the larger first, of equal ones the
 * first.  Probabilities are whole numbers, so that their sums do not depend on an order: exp((x -
 * largest) / temperature) in units of 2^-scale, as fine as the sum of n allows.  What is looked for
 * is always the first index, from the largest down, at which a sum reaches a target, and its key is
 * found digit by digit: each thread adds up the weights of its numbers by their next digit.
 */
#include "team.cuh"

enum { DRAW_THREADS = 512, DRAW_DIGIT = 4, DRAW_DIGITS = 1 << DRAW_DIGIT };

struct drawn {                       /* what is drawn from */
    int64_t n;
    int index_bits;                  /* of a key: a multiple of DRAW_DIGIT, n <= 2^index_bits */
    double  scale;                   /* a power of 2: n * scale < 2^63 */
    uint64_t *weight;                /* [n] */
};

static const uint64_t DRAW_BAD = UINT64_MAX;             /* the key of NaN and +Inf */

static __device__ __forceinline__ uint64_t draw_key(const drawn &f, float x, int64_t i)
{
    if (!(x < INFINITY)) return DRAW_BAD;
    const uint32_t bits = __float_as_uint(x == 0 ? 0 : x);          /* -0 is 0 */
    const uint32_t ordered = bits >> 31 ? ~bits : bits | 1u << 31;
    return ((uint64_t)ordered << f.index_bits) + (((uint64_t)1 << f.index_bits) - 1 - (uint64_t)i);
}

static __device__ __forceinline__ int64_t draw_index(const drawn &f, uint64_t key)
{
    const uint64_t mask = ((uint64_t)1 << f.index_bits) - 1;
    return (int64_t)(mask - (key & mask));
}

/* f(i, x[i]) for all i of the thread. */
template <class T, class F>
static __device__ __forceinline__ void draw_each(int64_t n, const T *x, F f)
{
    const int64_t first = (int64_t)((-(uintptr_t)x & 15) / sizeof(T));
    team_each<T>(n, first, [&](int64_t i, auto width) {
        constexpr int W = decltype(width)::value;
        const pack<T, W> v = pack_load<T, W>(x + i);
        for (int k = 0; k < W; k++) f(i + k, get(v.at + k));
    });
}

/* team_fold() leaves its shared memory to be read: all are done with it here. */
template <class F> static __device__ __forceinline__ uint64_t draw_fold(uint64_t v, F f)
{
    v = team_fold(v, f);
    __syncthreads();
    return v;
}

/* The key of the first index, from the largest down, at which the sum of weights, or with `count`
 * the number of indices, reaches `target`: 1 up to that of all. */
template <class T>
static __device__ uint64_t draw_find(const drawn &f, const T *x, bool count, uint64_t target)
{
    AG_SHARED(uint64_t, mine);       /* [DRAW_DIGITS][DRAW_THREADS] */
    uint64_t *total = mine + DRAW_DIGITS * DRAW_THREADS, key = 0;
    const int t = (int)threadIdx.x, lane = t % 32;
    for (int shift = 32 + f.index_bits - DRAW_DIGIT; shift >= 0; shift -= DRAW_DIGIT) {
        for (int d = 0; d < DRAW_DIGITS; d++) mine[d * DRAW_THREADS + t] = 0;
        draw_each(f.n, x, [&](int64_t i, float v) {
            const uint64_t k = draw_key(f, v, i) >> shift;
            if (k >> DRAW_DIGIT == key)
                mine[(int)(k % DRAW_DIGITS) * DRAW_THREADS + t] += count ? 1 : f.weight[i];
        });
        __syncthreads();
        for (int d = t / 32; d < DRAW_DIGITS; d += DRAW_THREADS / 32) {
            uint64_t sum = 0;
            for (int i = lane; i < DRAW_THREADS; i += 32) sum += mine[d * DRAW_THREADS + i];
            for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(AG_WARP, sum, i);
            if (lane == 0) total[d] = sum;
        }
        __syncthreads();
        int digit = DRAW_DIGITS - 1;
        while (digit > 0 && total[digit] < target) target -= total[digit--];
        key = key << DRAW_DIGIT | (uint64_t)digit;
    }
    return key;
}

/* part of sum as a target */
static __device__ __forceinline__ uint64_t draw_target(double part, uint64_t sum)
{
    const double target = ceil(part * (double)sum);
    return target < 1 ? 1 : target < (double)sum ? (uint64_t)target : sum;
}

template <class T>
static __global__ void draw_run(drawn f, ag_draw d, const T *x, int32_t *idx)
{
    uint64_t mine = 0;
    const auto larger = [](uint64_t a, uint64_t b) { return a > b ? a : b; };
    const auto add = [](uint64_t a, uint64_t b) { return a + b; };
    draw_each(f.n, x, [&](int64_t i, float v) { mine = larger(mine, draw_key(f, v, i)); });
    const uint64_t top = draw_fold(mine, larger);
    if (top == DRAW_BAD || d.temperature <= 0 || d.top_k == 1) {
        if (threadIdx.x == 0) *idx = top == DRAW_BAD ? -1 : (int32_t)draw_index(f, top);
        return;
    }
    const double most = (double)get(x + draw_index(f, top)), inverse = 1 / d.temperature;
    mine = 0;
    draw_each(f.n, x, [&](int64_t i, float v) {
        const double e = exp(((double)v - most) * inverse);
        f.weight[i] = e > 0 ? (uint64_t)(e * f.scale) : 0;           /* NaN: all are -Inf */
        mine += f.weight[i];
    });
    const uint64_t sum = draw_fold(mine, add);
    uint64_t last = 0, kept = sum;   /* the least key that may be drawn, the weight of these */
    if (sum && d.top_k > 0 && d.top_k < f.n) last = draw_find(f, x, true, (uint64_t)d.top_k);
    if (sum && d.top_p < 1) last = larger(last, draw_find(f, x, false, draw_target(d.top_p, sum)));
    if (last) {
        mine = 0;
        draw_each(f.n, x, [&](int64_t i, float v) {
            if (draw_key(f, v, i) >= last) mine += f.weight[i];
        });
        kept = draw_fold(mine, add);
    }
    const uint64_t key = sum ? draw_find(f, x, false, draw_target(d.u, kept)) : top;
    if (threadIdx.x == 0) *idx = (int32_t)draw_index(f, key);
}

template <class T> static void draw(const ag_draw *d, int64_t n, const void *x, int32_t *idx)
{
    drawn f = { n, DRAW_DIGIT, 1, NULL };
    int bits = 0;
    while ((int64_t)1 << bits < n) bits++;
    while (f.index_bits < bits) f.index_bits += DRAW_DIGIT;
    for (int i = bits; i < 62; i++) f.scale *= 2;
    f.weight = (uint64_t *)ag_cuda_workspace((size_t)n * sizeof *f.weight);
    if (!f.weight) return;
    AG_LAUNCH(draw_run<T>, 1, DRAW_THREADS,
              (DRAW_DIGITS * DRAW_THREADS + DRAW_DIGITS) * sizeof(uint64_t), f, *d, (const T *)x,
              idx);
}

template <class T> void draw_table(ag_kernels *k) { k->draw = draw<T>; }
template void draw_table<float>(ag_kernels *k);
template void draw_table<bf16>(ag_kernels *k);
template void draw_table<f16>(ag_kernels *k);
