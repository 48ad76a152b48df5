/* controller.cu -- the 1-in-N controller alone: z is there (ag_controller in kernels.h). */
#include "controller.cuh"

template <class T> struct stored {   /* z[rows,units] */
    const T *z;
    int64_t units;
    __device__ float operator()(int64_t row, int64_t col) const { return get(z + row * units + col); }
};

template <class T>
static __global__ void controller_run(tiling t, stored<T> z, bool hard, bool given, T *mask,
                                      int32_t *choice, T *soft)
{
    AG_SHARED(float, shared);
    const tile s = tile_load(t, z, t.noisy, shared);
    for (int i = 0; i < rounds(t, s); i++) {
        const place p = place_of(t, s, i);
        int pick;
        if (given) pick = p.on ? choice[p.block] : 0;
        else pick = best_of(t, p, s.score + p.at);
        float *e = s.z + p.at;
        const float inv = block_exp(t, p, e);
        EACH_CHOICE(j, t, p) {
            const float v = e[j] * inv;
            put(soft + p.block * t.n + j, v);
            put(mask + p.block * t.n + j, hard ? (j == pick ? 1.0f : 0.0f) : v);
        }
        if (p.on && p.lane == 0) choice[p.block] = pick;
    }
}

template <class T>
static void controller_fwd(const ag_controller *c, const void *z, void *mask, int32_t *choice,
                           void *p)
{
    if (c->rows == 0 || c->blocks == 0) return;
    const tiling t = tiling_of(c, true);
    AG_LAUNCH(controller_run<T>, tiles(t), THREADS, tile_bytes(t, 1 + t.apart), t,
              (stored<T>{ (const T *)z, t.units }), c->hard, c->given, (T *)mask, choice, (T *)p);
}

/* dz (+)= p * (dmask - sum(p dmask)) / t; the lanes of a block read its numbers twice. */
template <class T>
static __global__ void controller_grad(tiling t, const T *soft, const T *dmask, T *dz, bool acc)
{
    const int64_t block = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / t.lanes;
    const place p = { block < t.rows * t.blocks, (int)threadIdx.x % t.lanes, 0, block };
    const int64_t at = block * t.n;
    float sum = 0;
    EACH_CHOICE(j, t, p) sum += get(soft + at + j) * get(dmask + at + j);
    sum = group_sum(t, sum);
    EACH_CHOICE(j, t, p) {
        const float v = get(soft + at + j) * (get(dmask + at + j) - sum) * t.inv_t;
        put(dz + at + j, acc ? get(dz + at + j) + v : v);
    }
}

template <class T>
static void controller_bwd(const ag_controller *c, const void *p, const void *dmask, void *dz,
                           bool acc)
{
    if (c->rows == 0 || c->blocks == 0) return;
    const tiling t = tiling_of(c, false);
    AG_LAUNCH(controller_grad<T>, blocks_for(c->rows * c->blocks * t.lanes, THREADS), THREADS, 0, t,
              (const T *)p, (const T *)dmask, (T *)dz, acc);
}

template <class T> void controller_table(ag_kernels *k)
{
    k->controller_fwd = controller_fwd<T>;
    k->controller_bwd = controller_bwd<T>;
}
template void controller_table<float>(ag_kernels *k);
template void controller_table<bf16>(ag_kernels *k);
template void controller_table<f16>(ag_kernels *k);
