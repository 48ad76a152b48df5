/*
 * map.cu -- elementwise kernels: each number is read and written once, so the memory sets the pace.
 *
 * A thread takes 16 bytes of each array at a time where all of them are aligned to that, else one
 * number; a grid of a few blocks for each processor walks over them.
 */
#include "launch.cuh"
#include "math.cuh"
#include "number.cuh"

enum { THREADS = 256 };

/* Runs f(i) for every i < n of a grid-wide loop. */
#define EACH(i, n)                                                                      \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);           \
         i += (int64_t)gridDim.x * blockDim.x)

/* y (+)= f of up to three sources; a source that is not used is NULL. */
template <class F, class T, int N>
static __global__ void map_run(F f, int64_t n, const T *a, const T *b, const T *c, T *y, bool acc)
{
    EACH(i, n / N) {
        pack<T, N> va = {}, vb = {}, vc = {}, vy = {};
        if (F::A) va = pack_load<T, N>(a + i * N);
        if (F::B) vb = pack_load<T, N>(b + i * N);
        if (F::C) vc = pack_load<T, N>(c + i * N);
        if (acc) vy = pack_load<T, N>(y + i * N);
        for (int j = 0; j < N; j++) {
            const float was = acc ? get(&vy.at[j]) : 0;
            put(&vy.at[j], was + f(get(&va.at[j]), get(&vb.at[j]), get(&vc.at[j])));
        }
        pack_store<T, N>(y + i * N, vy);
    }
}

static unsigned grid_of(int64_t work)
{
    const unsigned most = 8 * (unsigned)ag_cuda_processors(), wanted = blocks_for(work, THREADS);
    return wanted < most ? wanted : most;
}

template <class F, class T>
static void map(F f, int64_t n, const void *a, const void *b, const void *c, void *y, bool acc)
{
    constexpr int N = 16 / (int)sizeof(T);
    const T *ta = (const T *)a, *tb = (const T *)b, *tc = (const T *)c;
    T *ty = (T *)y;
    int64_t done = 0;
    if (aligned(a) && aligned(b) && aligned(c) && aligned(y)) {
        done = n / N * N;
        AG_LAUNCH((map_run<F, T, N>), grid_of(n / N), THREADS, 0, f, done, ta, tb, tc, ty, acc);
    }
    AG_LAUNCH((map_run<F, T, 1>), grid_of(n - done), THREADS, 0, f, n - done, F::A ? ta + done : ta,
              F::B ? tb + done : tb, F::C ? tc + done : tc, ty + done, acc);
}

/* --- unary.def and binary.def ----------------------------------------------------------------- */

#define AG_UNARY(name, f, df, ...)                                                      \
    struct unary_##name {                                                               \
        static constexpr bool A = true, B = false, C = false;                           \
        __device__ float operator()(float x, float, float) const { return f; }          \
    };                                                                                  \
    struct unary_d_##name {                                                             \
        static constexpr bool A = true, B = true, C = true;                             \
        __device__ float operator()(float x, float y, float dy) const                   \
        {                                                                               \
            (void)x, (void)y;                                                           \
            return dy * (df);                                                           \
        }                                                                               \
    };
#include "autograd/unary.def"
#undef AG_UNARY

#define AG_BINARY(name, f, dfa, dfb, ...)                                               \
    struct binary_##name {                                                              \
        static constexpr bool A = true, B = true, C = false;                            \
        __device__ float operator()(float a, float b, float) const { return f; }        \
    };                                                                                  \
    struct binary_a_##name {                                                            \
        __device__ float operator()(float a, float b, float y) const                    \
        {                                                                               \
            (void)a, (void)b, (void)y;                                                  \
            return dfa;                                                                 \
        }                                                                               \
    };                                                                                  \
    struct binary_b_##name {                                                            \
        __device__ float operator()(float a, float b, float y) const                    \
        {                                                                               \
            (void)a, (void)b, (void)y;                                                  \
            return dfb;                                                                 \
        }                                                                               \
    };
#include "autograd/binary.def"
#undef AG_BINARY

template <class F, class T> static void unary_fwd(int64_t n, const void *x, void *y)
{
    map<F, T>(F(), n, x, NULL, NULL, y, false);
}

template <class F, class T>
static void unary_bwd(int64_t n, const void *x, const void *y, const void *dy, void *dx, bool acc)
{
    map<F, T>(F(), n, x, y, dy, dx, acc);
}

template <class F, class T> static void binary_fwd(int64_t n, const void *a, const void *b, void *y)
{
    map<F, T>(F(), n, a, b, NULL, y, false);
}

/* to (+)= dy f(a, b, y), N numbers */
template <class F, class T, int N>
static __device__ __forceinline__ void binary_grad(F f, const pack<T, N> &a, const pack<T, N> &b,
                                                   const pack<T, N> &y, const pack<T, N> &dy, T *to,
                                                   bool acc)
{
    pack<T, N> v = {};
    if (acc) v = pack_load<T, N>(to);
    for (int j = 0; j < N; j++) {
        const float was = acc ? get(&v.at[j]) : 0;
        put(&v.at[j], was + get(&dy.at[j]) * f(get(&a.at[j]), get(&b.at[j]), get(&y.at[j])));
    }
    pack_store(to, v);
}

/* Both gradients in one pass over a, b, y and dy.  da is written before db is read: of x * x they
 * are one array. */
template <class FA, class FB, class T, int N>
static __global__ void binary_bwd_run(FA fa, FB fb, int64_t n, const T *a, const T *b, const T *y,
                                      const T *dy, T *da, bool acc_a, T *db, bool acc_b)
{
    EACH(i, n / N) {
        const pack<T, N> va = pack_load<T, N>(a + i * N), vb = pack_load<T, N>(b + i * N);
        const pack<T, N> vy = pack_load<T, N>(y + i * N), g = pack_load<T, N>(dy + i * N);
        if (da) binary_grad<FA, T, N>(fa, va, vb, vy, g, da + i * N, acc_a);
        if (db) binary_grad<FB, T, N>(fb, va, vb, vy, g, db + i * N, acc_b);
    }
}

template <class FA, class FB, class T>
static void binary_bwd(int64_t n, const void *a, const void *b, const void *y, const void *dy,
                       void *da, bool acc_a, void *db, bool acc_b)
{
    constexpr int N = 16 / (int)sizeof(T);
    const T *ta = (const T *)a, *tb = (const T *)b, *ty = (const T *)y, *tg = (const T *)dy;
    T *ga = (T *)da, *gb = (T *)db;
    const bool packed = aligned(a) && aligned(b) && aligned(y) && aligned(dy) && aligned(da) &&
                        aligned(db);
    const int64_t done = packed ? n / N * N : 0;
    AG_LAUNCH((binary_bwd_run<FA, FB, T, N>), grid_of(done / N), THREADS, 0, FA(), FB(), done, ta,
              tb, ty, tg, ga, acc_a, gb, acc_b);
    AG_LAUNCH((binary_bwd_run<FA, FB, T, 1>), grid_of(n - done), THREADS, 0, FA(), FB(), n - done,
              ta + done, tb + done, ty + done, tg + done, ga ? ga + done : NULL, acc_a,
              gb ? gb + done : NULL, acc_b);
}

/* --- the rest --------------------------------------------------------------------------------- */

struct times {                       /* alpha x */
    static constexpr bool A = true, B = false, C = false;
    float alpha;
    __device__ float operator()(float x, float, float) const { return alpha * x; }
};

struct constant {
    static constexpr bool A = false, B = false, C = false;
    float value;
    __device__ float operator()(float, float, float) const { return value; }
};

template <class T> static void fill(int64_t n, double value, void *y)
{
    map<constant, T>(constant{ (float)value }, n, NULL, NULL, NULL, y, false);
}

template <class T> static void add(int64_t n, const void *x, void *y)
{
    map<times, T>(times{ 1 }, n, x, NULL, NULL, y, true);
}

template <class T> static void scale(int64_t n, double alpha, const void *x, void *y, bool acc)
{
    map<times, T>(times{ (float)alpha }, n, x, NULL, NULL, y, acc);
}

struct spread {                      /* alpha c[0] */
    static constexpr bool A = false, B = false, C = false;
    float alpha;
    const float *c;
    __device__ float operator()(float, float, float) const { return alpha * *c; }
};

template <class T> static void add_scalar(int64_t n, double alpha, const void *c, void *y, bool acc)
{
    map<spread, T>(spread{ (float)alpha, (const float *)c }, n, NULL, NULL, NULL, y, acc);
}

/* Fixed point.  x times a power of two is exact, so a float holds what is rounded. */
template <class T>
static __global__ void fixed_add_run(int64_t n, float one, int sign, const T *x, int32_t *s,
                                     int32_t *peak)
{
    int32_t most = 0;
    EACH(i, n) {
        const float v = rintf(get(x + i) * one);
        const bool fits = v > -0x1p31f && v < 0x1p31f;   /* false for NaN */
        const int64_t d = (fits ? (int64_t)v : 0) * (sign < 0 ? -1 : 1);
        const int64_t sum = (sign ? s[i] : 0) + d;
        s[i] = (int32_t)(uint32_t)(uint64_t)sum;
        const int64_t size = sum < 0 ? -sum : sum;
        most = max(most, fits && size <= INT32_MAX ? (int32_t)size : INT32_MAX);
    }
    for (int d = 16; d; d /= 2) most = max(most, __shfl_xor_sync(AG_WARP, most, d));
    if (threadIdx.x % 32 == 0 && most) atomicMax(peak, most);
}

template <class T>
static void fixed_add(int64_t n, int point, int sign, const void *x, int32_t *s, int32_t *peak)
{
    AG_LAUNCH(fixed_add_run<T>, grid_of(n), THREADS, 0, n, ldexpf(1, point), sign, (const T *)x, s,
              peak);
}

template <class T>
static __global__ void fixed_read_run(int64_t n, float unit, const int32_t *s, T *y)
{
    EACH(i, n) put(y + i, (float)s[i] * unit);
}

template <class T> static void fixed_read(int64_t n, int point, const int32_t *s, void *y)
{
    AG_LAUNCH(fixed_read_run<T>, grid_of(n), THREADS, 0, n, ldexpf(1, -point), s, (T *)y);
}

/* y = x in another type, N numbers at a time: as many as 16 bytes hold of the narrower. */
template <class A, class B, int N>
static __global__ void convert_run(int64_t n, const A *x, B *y)
{
    constexpr int OF_A = 16 / (int)sizeof(A), OF_B = 16 / (int)sizeof(B);
    constexpr int NA = N < OF_A ? N : OF_A, NB = N < OF_B ? N : OF_B;
    EACH(i, n / N) {
        float v[N];
        AG_UNROLL
        for (int k = 0; k < N; k += NA) {
            const pack<A, NA> some = pack_load<A, NA>(x + i * N + k);
            AG_UNROLL
            for (int j = 0; j < NA; j++) v[k + j] = get(&some.at[j]);
        }
        AG_UNROLL
        for (int k = 0; k < N; k += NB) {
            pack<B, NB> some;
            AG_UNROLL
            for (int j = 0; j < NB; j++) put(&some.at[j], v[k + j]);
            pack_store(y + i * N + k, some);
        }
    }
}

template <class A, class B> static void convert(int64_t n, const A *x, B *y)
{
    constexpr int N = 16 / (int)(sizeof(A) < sizeof(B) ? sizeof(A) : sizeof(B));
    const int64_t done = aligned(x) && aligned(y) ? n / N * N : 0;
    AG_LAUNCH((convert_run<A, B, N>), grid_of(done / N), THREADS, 0, done, x, y);
    AG_LAUNCH((convert_run<A, B, 1>), grid_of(n - done), THREADS, 0, n - done, x + done, y + done);
}

template <class T> static void narrow(int64_t n, const float *x, void *y)
{
    convert(n, x, (T *)y);
}

template <class T> static void widen(int64_t n, const void *x, float *y)
{
    convert(n, (const T *)x, y);
}

template <class T> void map_table(ag_kernels *k)
{
#define AG_UNARY(name, ...)                                                             \
    k->unary_fwd[AG_UNARY_##name] = unary_fwd<unary_##name, T>;                         \
    k->unary_bwd[AG_UNARY_##name] = unary_bwd<unary_d_##name, T>;
#include "autograd/unary.def"
#undef AG_UNARY
#define AG_BINARY(name, ...)                                                            \
    k->binary_fwd[AG_BINARY_##name] = binary_fwd<binary_##name, T>;                     \
    k->binary_bwd[AG_BINARY_##name] = binary_bwd<binary_a_##name, binary_b_##name, T>;
#include "autograd/binary.def"
#undef AG_BINARY
    k->fill = fill<T>;
    k->add = add<T>;
    k->scale = scale<T>;
    k->add_scalar = add_scalar<T>;
    k->fixed_add = fixed_add<T>;
    k->fixed_read = fixed_read<T>;
    if (sizeof(T) == 2) {
        k->narrow = narrow<T>;
        k->widen = widen<T>;
    }
}
template void map_table<float>(ag_kernels *k);
template void map_table<bf16>(ag_kernels *k);
template void map_table<f16>(ag_kernels *k);
