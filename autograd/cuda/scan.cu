/*
 * scan.cu -- the scan of a simple recurrent unit (ops/sru.c has the formulas).
 *
 * A thread has one channel of one sequence and walks along time; neighbours have neighbouring
 * channels, so a warp reads rows.  Only the state waits for the step before: the numbers of STEPS
 * positions are fetched at once, ahead of it.  There is a table for f32 alone: 16-bit tapes come
 * here with widened numbers, and keep their states in f32.
 */
#include "launch.cuh"
#include "number.cuh"

enum { THREADS = 64, STEPS = 8 };    /* small blocks: there are few channels */

static constexpr float SKIP = 1.73205080756887729f;      /* sqrt(3) */

static __device__ __forceinline__ float sigmoid(float z) { return 1 / (1 + expf(-z)); }

/* c0: or NULL */
static __global__ void sru_fwd_run(int64_t channels, int64_t t, int64_t n,
                                   const float *__restrict__ z, const float *__restrict__ x,
                                   const float *__restrict__ c0, float *__restrict__ c,
                                   float *__restrict__ h)
{
    const int64_t id = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (id >= channels) return;
    const int64_t at = id / n * t * n + id % n, zat = id / n * t * 3 * n + id % n;
    float state = c0 ? c0[id] : 0;
    for (int64_t i = 0; i < t; i += STEPS) {
        const int steps = t - i < STEPS ? (int)(t - i) : (int)STEPS;
        float zr[STEPS] = {}, zf[STEPS] = {}, y[STEPS] = {}, skip[STEPS] = {};
        AG_UNROLL
        for (int k = 0; k < STEPS; k++) {
            if (k >= steps) continue;
            const float *row = z + zat + (i + k) * 3 * n;
            zr[k] = row[0], zf[k] = row[n], y[k] = row[2 * n];
            skip[k] = SKIP * x[at + (i + k) * n];
        }
        AG_UNROLL
        for (int k = 0; k < STEPS; k++) {
            if (k >= steps) continue;
            const float r = sigmoid(zr[k]), f = sigmoid(zf[k]);
            state = f * (state - y[k]) + y[k];
            c[at + (i + k) * n] = state;
            h[at + (i + k) * n] = r * (state - skip[k]) + skip[k];
        }
    }
}

static void sru_fwd(int64_t batch, int64_t t, int64_t n, const void *z, const void *x,
                    const void *c0, void *c, void *h)
{
    if (!t) return;
    AG_LAUNCH(sru_fwd_run, blocks_for(batch * n, THREADS), THREADS, 0, batch * n, t, n,
              (const float *)z, (const float *)x, (const float *)c0, (float *)c, (float *)h);
}

static __device__ __forceinline__ void put_grad(float *to, bool acc, float v)
{
    *to = acc ? *to + v : v;
}

/* From the last position to the first; carry: f g of the position behind.  dz, dx: or NULL */
static __global__ void sru_bwd_run(int64_t channels, int64_t t, int64_t n,
                                   const float *__restrict__ z, const float *__restrict__ x,
                                   const float *__restrict__ c, const float *__restrict__ dh,
                                   float *__restrict__ dz, bool acc_z, float *__restrict__ dx,
                                   bool acc_x)
{
    const int64_t id = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (id >= channels) return;
    const int64_t at = id / n * t * n + id % n, zat = id / n * t * 3 * n + id % n;
    float carry = 0;
    for (int64_t last = t - 1; last >= 0; last -= STEPS) {
        const int steps = last + 1 < STEPS ? (int)(last + 1) : (int)STEPS;
        float zr[STEPS] = {}, zf[STEPS] = {}, y[STEPS] = {}, skip[STEPS] = {}, d[STEPS] = {};
        float now[STEPS] = {}, before[STEPS] = {};
        AG_UNROLL
        for (int k = 0; k < STEPS; k++) {
            if (k >= steps) continue;
            const int64_t i = last - k;
            const float *row = z + zat + i * 3 * n;
            zr[k] = row[0], zf[k] = row[n], y[k] = row[2 * n];
            skip[k] = SKIP * x[at + i * n];
            d[k] = dh[at + i * n];
            now[k] = c[at + i * n];
            before[k] = i ? c[at + (i - 1) * n] : 0;
        }
        AG_UNROLL
        for (int k = 0; k < STEPS; k++) {
            if (k >= steps) continue;
            const int64_t i = last - k;
            const float r = sigmoid(zr[k]), f = sigmoid(zf[k]), g = r * d[k] + carry;
            carry = f * g;
            if (dx) put_grad(dx + at + i * n, acc_x, (1 - r) * SKIP * d[k]);
            if (!dz) continue;
            float *to = dz + zat + i * 3 * n;
            put_grad(to, acc_z, d[k] * (now[k] - skip[k]) * (r * (1 - r)));
            put_grad(to + n, acc_z, g * (before[k] - y[k]) * (f * (1 - f)));
            put_grad(to + 2 * n, acc_z, g * (1 - f));
        }
    }
}

static void sru_bwd(int64_t batch, int64_t t, int64_t n, const void *z, const void *x,
                    const void *c, const void *dh, void *dz, bool acc_z, void *dx, bool acc_x)
{
    if (!t) return;
    AG_LAUNCH(sru_bwd_run, blocks_for(batch * n, THREADS), THREADS, 0, batch * n, t, n,
              (const float *)z, (const float *)x, (const float *)c, (const float *)dh,
              (float *)dz, acc_z, (float *)dx, acc_x);
}

void scan_table(ag_kernels *k)
{
    k->sru_fwd = sru_fwd;
    k->sru_bwd = sru_bwd;
}
