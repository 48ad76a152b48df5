/*
 * flat.cu -- one step of an optimizer over flat arrays (autograd/flat.h).
 *
 * The norm reads 4 bytes for each weight, Adam with an average moves 36; nothing else costs time.
 * So a step is one pass: a block takes a part, a thread 16 bytes of each array at a time.
 */
#include "flat.cuh"
#include "number.cuh"

enum { THREADS = FLAT_THREADS, SUMS = 1024 };
enum { WIDE = 4 };                   /* floats in 16 bytes */

/* --- the sum of squares ----------------------------------------------------------------------- */

/* part[gridDim.x]: what each block adds up.  A grid depends on n only, so the order does too. */
template <int N> static __global__ void square_run(int64_t n, const float *x, double *part)
{
    AG_SHARED(double, s);
    double lane[N] = {};
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n / N;
         i += (int64_t)gridDim.x * THREADS) {
        const pack<float, N> v = pack_load<float, N>(x + i * N);
        for (int j = 0; j < N; j++) lane[j] += (double)v.at[j] * (double)v.at[j];
    }
    if (blockIdx.x == 0 && threadIdx.x < n % N) {
        const double last = (double)x[n / N * N + threadIdx.x];
        lane[0] += last * last;
    }
    double mine = lane[0];
    for (int j = 1; j < N; j++) mine += lane[j];
    mine = block_sum(mine, s);
    if (threadIdx.x == 0) part[blockIdx.x] = mine;
}

static __global__ void total_run(unsigned parts, const double *part, double *sum)
{
    AG_SHARED(double, s);
    double mine = 0;
    for (unsigned i = threadIdx.x; i < parts; i += THREADS) mine += part[i];
    mine = block_sum(mine, s);
    if (threadIdx.x == 0) *sum = mine;
}

static void square_sum(int64_t n, const float *x, double *sum)
{
    double *part = (double *)ag_cuda_workspace(SUMS * sizeof *part);
    if (!part) return;
    const unsigned wanted = blocks_for(n, 4 * WIDE * THREADS);
    const unsigned blocks = wanted < SUMS ? wanted : (unsigned)SUMS;
    if (aligned(x)) AG_LAUNCH(square_run<WIDE>, blocks, THREADS, THREADS * sizeof *sum, n, x, part);
    else AG_LAUNCH(square_run<1>, blocks, THREADS, THREADS * sizeof *sum, n, x, part);
    AG_LAUNCH(total_run, 1, THREADS, THREADS * sizeof *sum, blocks, part, sum);
}

/* --- a step ----------------------------------------------------------------------------------- */

struct arrays { float *p, *g, *m, *v, *ema; };           /* v, ema: or NULL */

struct adam_step {                   /* the formulas of optim/kernels.c */
    ag_adam a;
    __device__ void operator()(float clip, bool decay, float g, float *p, float *m, float *v) const
    {
        const float x = clip * g + (decay ? a.l2 : 0) * *p;
        *m = a.beta1 * *m + a.keep1 * x;
        *v = a.beta2 * *v + a.keep2 * (x * x);
        *p = (decay ? a.shrink : 1) * *p - a.rate * *m / (a.root * sqrtf(*v) + a.eps);
    }
};

struct sgd_step {
    ag_sgd s;
    __device__ void operator()(float clip, bool decay, float g, float *p, float *m, float *) const
    {
        const float x = clip * g + (decay ? s.l2 : 0) * *p;
        *m = s.momentum * *m + x;
        *p -= s.rate * (s.nesterov ? x + s.momentum * *m : *m);
    }
};

/* N elements from i on. */
template <int N, class F>
static __device__ __forceinline__ void step_at(const F &f, float clip, bool decay,
                                               const arrays &all, int64_t i, float ema_decay,
                                               float ema_keep)
{
    pack<float, N> p = pack_load<float, N>(all.p + i), m = pack_load<float, N>(all.m + i), v = {};
    const pack<float, N> g = pack_load<float, N>(all.g + i), zero = {};
    if (all.v) v = pack_load<float, N>(all.v + i);
    for (int j = 0; j < N; j++) f(clip, decay, g.at[j], &p.at[j], &m.at[j], &v.at[j]);
    pack_store<float, N>(all.p + i, p);
    pack_store<float, N>(all.m + i, m);
    pack_store<float, N>(all.g + i, zero);
    if (all.v) pack_store<float, N>(all.v + i, v);
    if (!all.ema) return;
    pack<float, N> e = pack_load<float, N>(all.ema + i);
    for (int j = 0; j < N; j++) e.at[j] = ema_decay * e.at[j] + ema_keep * p.at[j];
    pack_store<float, N>(all.ema + i, e);
}

/* wide: all arrays begin at multiples of 16 bytes. */
template <class F>
static __global__ void step_run(F f, ag_flat_gate gate, int64_t n_parts, const ag_flat_part *parts,
                                arrays all, bool wide, float ema_decay, float ema_keep)
{
    AG_SHARED(float, factor);
    if (threadIdx.x == 0) *factor = gate_factor(gate);
    __syncthreads();
    const float clip = *factor;
    if (clip == 0) return;
    for (int64_t k = blockIdx.x; k < n_parts; k += gridDim.x) {
        const ag_flat_part part = parts[k];
        const int64_t packed = wide && part.offset % WIDE == 0 ? part.count / WIDE * WIDE : 0;
        for (int64_t i = WIDE * (int64_t)threadIdx.x; i < packed; i += WIDE * THREADS)
            step_at<WIDE>(f, clip, part.decay, all, part.offset + i, ema_decay, ema_keep);
        for (int64_t i = packed + threadIdx.x; i < part.count; i += THREADS)
            step_at<1>(f, clip, part.decay, all, part.offset + i, ema_decay, ema_keep);
    }
}

template <class F>
static void step(F f, const ag_flat_gate *gate, int64_t n_parts, const ag_flat_part *parts,
                 arrays all, float ema_decay, float ema_keep)
{
    const bool wide = aligned(all.p) && aligned(all.g) && aligned(all.m) && aligned(all.v) &&
                      aligned(all.ema);
    AG_LAUNCH(step_run<F>, blocks_for(n_parts, 1), THREADS, sizeof(float), f, *gate, n_parts, parts,
              all, wide, ema_decay, ema_keep);
}

static void adam(const ag_adam *a, const ag_flat_gate *gate, int64_t n_parts,
                 const ag_flat_part *parts, float *p, float *g, float *m, float *v, float *ema,
                 float ema_decay, float ema_keep)
{
    step(adam_step{ *a }, gate, n_parts, parts, arrays{ p, g, m, v, ema }, ema_decay, ema_keep);
}

static void sgd(const ag_sgd *s, const ag_flat_gate *gate, int64_t n_parts,
                const ag_flat_part *parts, float *p, float *g, float *m, float *ema,
                float ema_decay, float ema_keep)
{
    step(sgd_step{ *s }, gate, n_parts, parts, arrays{ p, g, m, NULL, ema }, ema_decay, ema_keep);
}

ag_flat flat_table(void)
{
    ag_flat f = ag_flat();
    f.square_sum = square_sum;
    f.adam = adam;
    f.sgd = sgd;
    f.factored = flat_factored;
    return f;
}
