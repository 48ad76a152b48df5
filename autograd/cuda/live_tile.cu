/*
 * live_tile.cu -- x . w of the listed units where rows are many: some columns of the weights of some
 * blocks wait in shared memory, and rows of x stream past them.
 *
 * Counted for 8192 rows, d 384, 1536 units in blocks of 64, bf16: gathered, a row takes 24 rows of
 * weights, 18 KB, from the cache of the GPU, all rows 151 MB.  With 8 blocks and 128 columns in shared
 * memory (131 KB) rows of x come three times, 19 MB, the weights once for each block of threads, 17
 * MB, and sums of three slices go there and back, 5 MB.  What remains is to read shared memory: eight
 * lanes have a row, 128 bytes of it at a time, so that no two meet in a bank.  cut_best counts; with
 * few rows the weights do not pay, and rows gather them (live.cu).
 *
 * live_sum stays as it is.  Half of h is 0 there, and what is skipped is not read; h and the choices
 * would come once for each slice of columns; at 8192 rows both ways take about the same.  So does
 * live_grad: a row of x that is gathered goes into the registers that hold a unit's sums, while sums
 * in shared memory would be read and written for each row.
 */
#include "live.cuh"
#include "mma.cuh"

enum { THREADS = 512, TEAM = 8, TEAMS = THREADS / TEAM, PLACES = 8, LEAST_ROWS = 64, WIDEST = 4 };
enum { END_THREADS = 256 };

/* How the work is cut; a block of threads has a slice of the columns, a group of blocks of units, and
 * a chunk of the rows. */
struct cut {
    int64_t slices, groups, chunks, chunk;
    int64_t group;                   /* blocks of units */
    int packs;                       /* 128 bytes that a slice has of a row */
    int64_t held;                    /* bytes of shared memory */
    double cost;                     /* cycles, about */
};

/* Sums over the eight lanes of s[PLACES], that of number lane % 8. */
static __device__ __forceinline__ float sum_team(float (&s)[PLACES])
{
    const int lane = (int)threadIdx.x % 32;
    AG_UNROLL
    for (int half = PLACES / 2; half; half /= 2)         /* half of the lanes keep half of them */
        AG_UNROLL
        for (int p = 0; p < half; p++) {
            const float send = lane & half ? s[p] : s[p + half];
            s[p] = (lane & half ? s[p + half] : s[p]) + __shfl_xor_sync(AG_WARP, send, half);
        }
    return s[0];
}

/* The slice of this block of threads comes to shared memory. */
template <class T, int V>
static __device__ void hold(const live &l, int64_t unit, int units, int64_t col0, const T *w, T *held)
{
    constexpr int N = 16 / (int)sizeof(T), WIDE = TEAM * V;
    async_copies copies;
    for (int i = (int)threadIdx.x; i < units * WIDE; i += THREADS) {
        const int64_t col = col0 + i % WIDE * N;
        const bool in = col < l.d;
        copies.start(held + i * N, in ? w + (unit + i / WIDE) * l.d + col : w, in ? 16 : 0);
    }
    copies.wait();
    __syncthreads();
}

/* a, or, with parts, parts[slice,rows,size], without bias. */
template <class T, int V>
static __global__ void __launch_bounds__(THREADS)
tile_run(live l, cut t, const T *x, const T *w, const T *bias, T *a, float *parts)
{
    constexpr int N = 16 / (int)sizeof(T), COLS = TEAM * V * N;
    AG_SHARED(T, held);              /* [units,COLS] */
    const int lane = (int)threadIdx.x % 32, in_team = lane % TEAM;
    const int64_t slice = blockIdx.y % t.slices, block0 = blockIdx.y / t.slices * t.group;
    const int blocks = (int)min(t.group, l.blocks - block0), of_block = l.n * l.width;
    const int places = blocks * l.picks * l.width;
    const int64_t place0 = block0 * l.picks * l.width, col0 = slice * COLS + in_team * N;
    hold<T, V>(l, block0 * of_block, blocks * of_block, slice * COLS, w, held);

    const int64_t from = blockIdx.x * t.chunk, to = min(l.rows, from + t.chunk);
    for (int64_t r0 = from + threadIdx.x / 32 * (32 / TEAM); r0 < to; r0 += TEAMS) {
        const int64_t r = r0 + lane / TEAM;              /* the warp's lanes stay together */
        pack<T, N> vx[V];
        for (int v = 0; v < V; v++) {
            vx[v] = {};
            if (r < to && col0 + v * TEAM * N < l.d)
                vx[v] = pack_load<T, N>(x + r * l.d + col0 + v * TEAM * N);
        }
        for (int j = in_team; j - in_team < places; j += PLACES) {
            const bool on = r < to && j < places;
            const int at = on ? (int)(unit_at(l, r, place0 + j) - block0 * of_block) : 0;
            float s[PLACES];
            AG_UNROLL
            for (int p = 0; p < PLACES; p++) {
                const T *u = held + __shfl_sync(AG_WARP, at, lane / TEAM * TEAM + p) * COLS;
                s[p] = 0;
                for (int v = 0; v < V; v++) {
                    const pack<T, N> vw = pack_load<T, N>(u + (v * TEAM + in_team) * N);
                    for (int k = 0; k < N; k++) s[p] += get(&vx[v].at[k]) * get(&vw.at[k]);
                }
            }
            const float sum = sum_team(s);
            const int64_t to_place = r * l.size + place0 + j;
            if (!on) continue;
            if (parts) parts[slice * l.rows * l.size + to_place] = sum;
            else put(a + to_place, sum + (bias ? get(bias + block0 * of_block + at) : 0));
        }
    }
}

/* a = the sum of the parts, in order, + bias */
template <class T>
static __global__ void end_run(live l, int64_t slices, const float *parts, const T *bias, T *a)
{
    const int64_t i = (int64_t)blockIdx.x * END_THREADS + threadIdx.x, n = l.rows * l.size;
    if (i >= n) return;
    float sum = parts[i];
    for (int64_t s = 1; s < slices; s++) sum += parts[s * n + i];
    put(a + i, sum + (bias ? get(bias + unit_at(l, i / l.size, i % l.size)) : 0));
}

/* --- which cut ------------------------------------------------------------------------------------ */

/* A processor takes 32 bytes of a GPU's cache a cycle, and 128 of its shared memory: a slice of eight
 * places of four rows is 32 packs, and 15 shuffles. */
enum { CACHE_BYTES = 32, PACK_CYCLES = 32, SHUFFLE_CYCLES = 15 };

/* What gathering takes. */
static double gather_cost(const live &l, int64_t bytes_of_row)
{
    return (double)(l.rows * l.size) * (double)bytes_of_row / CACHE_BYTES / ag_cuda_processors();
}

static cut cut_of(const live &l, int64_t bytes_of_row, int packs, int64_t group)
{
    cut t = {};
    const int64_t places = group * l.picks * l.width, all = ag_cuda_processors();
    t.packs = packs;
    t.group = group;
    t.slices = ceil_div(bytes_of_row, 128 * packs);
    t.groups = ceil_div(l.blocks, group);
    t.held = group * l.n * l.width * 128 * packs;
    t.chunks = all / (t.slices * t.groups) < 1 ? 1 : all / (t.slices * t.groups);
    t.chunk = ceil_div(ceil_div(l.rows, t.chunks), 32 / TEAM) * (32 / TEAM);
    t.chunks = ceil_div(l.rows, t.chunk);
    const int64_t parts = t.slices > 1 ? t.slices * l.rows * l.size * 8 : 0;
    const int64_t weights = t.slices * t.groups * t.chunks * t.held;
    const double cache = (double)(l.rows * bytes_of_row * t.groups + parts + weights) / CACHE_BYTES;
    const double rounds = (double)(ceil_div(places, PLACES) * t.slices * t.groups * l.rows) / 4;
    t.cost = (cache + rounds * (PACK_CYCLES * packs + SHUFFLE_CYCLES)) / (double)all;
    return t;
}

/* The cheapest that fits; cost 0: none does, or none pays: what is counted is not all. */
static cut cut_best(const live &l, int64_t bytes_of_row)
{
    const int64_t room = (int64_t)ag_cuda_shared_most();
    cut best = {};
    best.cost = 0.8 * gather_cost(l, bytes_of_row);
    for (int packs = 1; packs <= WIDEST; packs++) {
        const int64_t most = room / ((int64_t)l.n * l.width * 128 * packs);
        for (int64_t group = most < l.blocks ? most : l.blocks; group > 0; group--) {
            const cut t = cut_of(l, bytes_of_row, packs, group);
            if (t.cost < best.cost) best = t;
            if (group * l.picks * l.width <= PLACES) break;
        }
    }
    if (best.packs == 0) best.cost = 0;
    return best;
}

template <class T, int V>
static void launch(const live &l, const cut &t, const T *x, const T *w, const T *bias, T *a)
{
    float *parts = NULL;
    if (t.slices > 1 &&
        !(parts = (float *)ag_cuda_workspace((size_t)(t.slices * l.rows * l.size) * sizeof(float))))
        return;
    AG_LAUNCH((tile_run<T, V>), dim3((unsigned)t.chunks, (unsigned)(t.slices * t.groups)), THREADS,
              (size_t)t.held, l, t, x, w, bias, a, parts);
    if (parts)
        AG_LAUNCH(end_run<T>, blocks_for(l.rows * l.size, END_THREADS), END_THREADS, 0, l, t.slices,
                  parts, bias, a);
}

template <class T> bool tile_dot(const live &l, const T *x, const T *w, const T *bias, T *a)
{
    if (l.rows < LEAST_ROWS || !l.d || !is_even<T>(l.d, x, w) || l.n > 65535 || l.width > 65535)
        return false;
    const cut t = cut_best(l, l.d * (int64_t)sizeof(T));
    if (t.cost == 0 || t.slices * t.groups > 65535) return false;
    switch (t.packs) {
    case 1: launch<T, 1>(l, t, x, w, bias, a); break;
    case 2: launch<T, 2>(l, t, x, w, bias, a); break;
    case 3: launch<T, 3>(l, t, x, w, bias, a); break;
    default: launch<T, WIDEST>(l, t, x, w, bias, a);
    }
    return true;
}
template bool tile_dot<float>(const live &, const float *, const float *, const float *, float *);
template bool tile_dot<bf16>(const live &, const bf16 *, const bf16 *, const bf16 *, bf16 *);
template bool tile_dot<f16>(const live &, const f16 *, const f16 *, const f16 *, f16 *);
