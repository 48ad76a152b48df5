/*
 * live.cu -- feed-forward units of which few are live (ag_live in kernels.h), gathered.
 *
 * A number of a, or a unit's part of a row of y, takes d multiply-adds and d weights: nothing that a
 * tensor core could share.  So weights, or rows of x, stream through registers, 16 bytes a lane, and
 * the cache of the GPU, which holds them all (4096 units of 1024 numbers are 16 MB in f32), sets the
 * pace.  Work that runs at the same time is therefore of the same few columns or blocks.
 *
 *   live_dot    a warp for a few units of a row: x . w[u] of four units at once; in decoding, a block
 *               for each unit
 *   live_sum    a warp for some columns of a row; in decoding, a block for 128 bytes of the columns
 *   live_grad   rows are grouped by the unit that they list; eight warps for some columns of a unit
 *
 * In decoding a row of d 1024 has 64 of 4096 units: 131 KB of each weight in bf16, which the memory
 * of a GPU gives in less time than it takes to answer once.  So what counts is that one warp waits for
 * no load after another: 64 blocks ask for all of w1 at once, 16 for all of w2.
 *
 * Other sizes: live_group.cu has choices of 16 units and more, live_tile.cu x . w of many rows.  A sum
 * has an order that the sizes alone decide.  Units with h = 0 are skipped.
 */
#include "live.cuh"

enum { WARPS = 8, THREADS = 32 * WARPS };
enum { TEAM = 8, TEAMS = THREADS / TEAM, ROUND = 4 };    /* lanes that share a row; loads at once */

static live live_of(const ag_live *l)
{
    return { l->rows, l->d, l->blocks, l->blocks * l->picks * l->width,
             (int)l->n, (int)l->width, (int)l->picks, l->choice };
}

/* Warps that a GPU should have at least. */
static int64_t enough(void) { return (int64_t)ag_cuda_processors() * 16; }

/* --- x . w --------------------------------------------------------------------------------------- */

/* The sums over lanes of s[P], that of number lane / (32 / P). */
template <int P> static __device__ float sum_lanes(const float *s)
{
    const int lane = (int)threadIdx.x % 32;
    float v[P];
    for (int p = 0; p < P; p++) v[p] = s[p];
    int o = 16;
    for (int half = P / 2; half; half /= 2, o /= 2)      /* half of the lanes keep half of them */
        for (int p = 0; p < half; p++) {
            const float send = lane & o ? v[p] : v[p + half];
            v[p] = (lane & o ? v[p + half] : v[p]) + __shfl_xor_sync(AG_WARP, send, o);
        }
    for (; o; o /= 2) v[0] += __shfl_xor_sync(AG_WARP, v[0], o);
    return v[0];
}

/* A warp has the places [from, to) of a row, P at a time.  Consecutive warps have consecutive rows:
 * they read the weights of the same block. */
template <class T, int N, int P>
static __global__ void dot_run(live l, int64_t span, const T *x, const T *w, const T *bias, T *a)
{
    const int lane = (int)threadIdx.x % 32;
    const int64_t item = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const int64_t r = item % l.rows, from = item / l.rows * span, to = min(l.size, from + span);
    for (int64_t j = from; j < to; j += P) {
        const T *row[P];
        float s[P];
        for (int p = 0; p < P; p++) {
            row[p] = w + unit_at(l, r, min(j + p, to - 1)) * l.d;
            s[p] = 0;
        }
        for (int64_t i = lane * N; i < l.d; i += 32 * N) {
            const pack<T, N> vx = pack_load<T, N>(x + r * l.d + i);
            pack<T, N> vw[P];
            for (int p = 0; p < P; p++) vw[p] = pack_load<T, N>(row[p] + i);
            for (int p = 0; p < P; p++)
                for (int k = 0; k < N; k++) s[p] += get(&vx.at[k]) * get(&vw[p].at[k]);
        }
        const float sum = sum_lanes<P>(s);
        const int64_t mine = j + lane / (32 / P);
        if (lane % (32 / P) == 0 && mine < to)
            put(a + r * l.size + mine, sum + (bias ? get(bias + unit_at(l, r, mine)) : 0));
    }
}

/* Few places: a block for each, with as many warps as a row is long.  A lane has all its loads of a
 * round on their way before it adds the first. */
template <class T, int N>
static __global__ void dot_few(live l, const T *x, const T *w, const T *bias, T *a)
{
    AG_SHARED(float, part);          /* [warps] */
    const int64_t r = blockIdx.x % l.rows, j = blockIdx.x / l.rows, u = unit_at(l, r, j);
    const int64_t step = (int64_t)blockDim.x * N;
    float s = 0;
    for (int64_t i = threadIdx.x * N; i < l.d; i += ROUND * step) {
        pack<T, N> vx[ROUND] = {}, vw[ROUND] = {};
        for (int k = 0; k < ROUND; k++)
            if (i + k * step < l.d) {
                vx[k] = pack_load<T, N>(x + r * l.d + i + k * step);
                vw[k] = pack_load<T, N>(w + u * l.d + i + k * step);
            }
        for (int k = 0; k < ROUND; k++)
            for (int n = 0; n < N; n++) s += get(&vx[k].at[n]) * get(&vw[k].at[n]);
    }
    for (int o = 16; o; o /= 2) s += __shfl_xor_sync(AG_WARP, s, o);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x) return;
    for (unsigned k = 1; k < blockDim.x / 32; k++) s += part[k];
    put(a + r * l.size + j, s + (bias ? get(bias + u) : 0));
}

template <class T, int N>
static void dot(const live &l, const T *x, const T *w, const T *bias, T *a)
{
    enum { P = 4 };
    const int64_t spans = ceil_div(enough(), l.rows), span = ceil_div(ceil_div(l.size, spans), P) * P;
    if (spans * P > l.size) {
        const int64_t wanted = ceil_div(l.d, 32 * N * ROUND);
        const int warps = wanted < 1 ? 1 : wanted < WARPS ? (int)wanted : (int)WARPS;
        AG_LAUNCH((dot_few<T, N>), (unsigned)(l.rows * l.size), 32 * warps, warps * sizeof(float), l,
                  x, w, bias, a);
    } else {
        const int64_t warps = l.rows * ceil_div(l.size, span);
        AG_LAUNCH((dot_run<T, N, P>), (unsigned)ceil_div(warps, WARPS), THREADS, 0, l, span, x, w,
                  bias, a);
    }
}

template <class T>
static void live_dot(const ag_live *al, const void *x, const void *w, const void *bias, void *a)
{
    const live l = live_of(al);
    if (l.rows == 0 || l.size == 0) return;
    if (group_dot(l, (const T *)x, (const T *)w, (const T *)bias, (T *)a)) return;
    if (tile_dot(l, (const T *)x, (const T *)w, (const T *)bias, (T *)a)) return;
    if (is_even<T>(l.d, x, w))
        dot<T, 16 / (int)sizeof(T)>(l, (const T *)x, (const T *)w, (const T *)bias, (T *)a);
    else dot<T, 1>(l, (const T *)x, (const T *)w, (const T *)bias, (T *)a);
}

/* --- sums of rows --------------------------------------------------------------------------------- */

/*
 * s[V][N] += the sum over the lanes that are set in `any`, in order, of c times the columns col + v *
 * 32 * N + 0 .. N-1 of row `row` of rows[.,d]; c and row are those of the lane.
 */
template <class T, int N, int V>
static __device__ void add_rows(const T *rows, int64_t d, int64_t col, unsigned any, float c,
                                int64_t row, float (*s)[N])
{
    constexpr int AT_ONCE = V >= 8 ? 1 : 8 / V;          /* for eight loads on their way */
    while (any) {
        pack<T, N> x[AT_ONCE][V];
        float f[AT_ONCE];
        bool on[AT_ONCE];
        int from = 0;
        for (int u = 0; u < AT_ONCE; u++) {
            on[u] = any != 0;
            if (any) from = __ffs((int)any) - 1;
            any &= any - 1;
            f[u] = __shfl_sync(AG_WARP, c, from);
            const T *p = rows + __shfl_sync(AG_WARP, row, from) * d + col;
            for (int v = 0; v < V; v++)
                if (col + v * 32 * N < d) x[u][v] = pack_load<T, N>(p + v * 32 * N);
        }
        for (int u = 0; u < AT_ONCE; u++)
            for (int v = 0; v < V; v++)
                if (on[u] && col + v * 32 * N < d)
                    for (int k = 0; k < N; k++) s[v][k] += f[u] * get(&x[u][v].at[k]);
    }
}

/* y[at ..] (+)= s + bias[col ..] + residual[at ..], N of them */
template <class T, int N>
static __device__ void sum_store(const float *s, int64_t at, int64_t col, const T *bias,
                                 const T *residual, T *y, bool acc)
{
    pack<T, N> b = {}, r = {}, v = {};
    if (bias) b = pack_load<T, N>(bias + col);
    if (residual) r = pack_load<T, N>(residual + at);
    if (acc) v = pack_load<T, N>(y + at);
    for (int k = 0; k < N; k++)
        put(&v.at[k], s[k] + get(&b.at[k]) + get(&r.at[k]) + get(&v.at[k]));
    pack_store<T, N>(y + at, v);
}

/* s = the sum of h w over the places [from, to) of row r, columns as in add_rows */
template <class T, int N, int V>
static __device__ void sum_places(const live &l, const T *h, const T *w, int64_t r, int64_t from,
                                  int64_t to, int64_t col, float (*s)[N])
{
    const int lane = (int)threadIdx.x % 32;
    for (int v = 0; v < V; v++)
        for (int k = 0; k < N; k++) s[v][k] = 0;
    for (int64_t j = from + lane; j - lane < to; j += 32) {
        const float c = j < to ? get(h + r * l.size + j) : 0;
        const unsigned any = __ballot_sync(AG_WARP, c != 0);
        add_rows<T, N, V>(w, l.d, col, any, c, c != 0 ? unit_at(l, r, j) : 0, s);
    }
}

/* The sum over warps of part[WARPS, stride], pairs first. */
static __device__ float sum_warps(const float *part, int stride)
{
    float s[WARPS];
    for (int w = 0; w < WARPS; w++) s[w] = part[w * stride];
    for (int half = WARPS / 2; half; half /= 2)
        for (int w = 0; w < half; w++) s[w] += s[w + half];
    return s[0];
}

/* A warp has some columns of a row; consecutive warps have consecutive rows. */
template <class T, int N, int V>
static __global__ void sum_run(live l, const T *h, const T *w, const T *bias, const T *residual,
                               T *y, bool acc)
{
    const int64_t item = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, r = item % l.rows;
    const int64_t col = item / l.rows * 32 * N * V + threadIdx.x % 32 * N;
    float s[V][N];
    if (item / l.rows * 32 * N * V >= l.d) return;       /* the whole warp */
    sum_places<T, N, V>(l, h, w, r, 0, l.size, col, s);
    for (int v = 0; v < V; v++)
        if (col + v * 32 * N < l.d)
            sum_store<T, N>(s[v], r * l.d + col + v * 32 * N, col + v * 32 * N, bias, residual, y,
                            acc);
}

/* Few rows: a block has a few columns of one, so that the blocks are all over the GPU, and eight
 * lanes a unit at a time. */
template <class T, int N>
static __global__ void sum_few(live l, const T *h, const T *w, const T *bias, const T *residual,
                               T *y, bool acc)
{
    enum { COLS = TEAM * N };
    AG_SHARED(float, part);          /* [TEAMS, COLS] */
    const int team = (int)threadIdx.x / TEAM, at = (int)threadIdx.x % TEAM * N;
    const int64_t r = blockIdx.x % l.rows, first = blockIdx.x / l.rows * COLS;
    float s[N] = {};
    for (int64_t j0 = team; j0 < l.size; j0 += ROUND * TEAMS) {
        pack<T, N> v[ROUND];
        float c[ROUND];
        for (int k = 0; k < ROUND; k++) {
            const int64_t j = j0 + k * TEAMS;
            const int64_t u = j < l.size ? unit_at(l, r, j) : 0;
            c[k] = j < l.size && first + at < l.d ? get(h + r * l.size + j) : 0;
            if (c[k] != 0) v[k] = pack_load<T, N>(w + u * l.d + first + at);
        }
        for (int k = 0; k < ROUND; k++)
            if (c[k] != 0)
                for (int n = 0; n < N; n++) s[n] += c[k] * get(&v[k].at[n]);
    }
    for (int n = 0; n < N; n++) part[team * COLS + at + n] = s[n];
    __syncthreads();
    const int i = (int)threadIdx.x;
    if (i >= COLS || first + i >= l.d) return;
    float sum = 0;
    for (int k = 0; k < TEAMS; k++) sum += part[k * COLS + i];
    sum_store<T, 1>(&sum, r * l.d + first + i, first + i, bias, residual, y, acc);
}

template <class T, int N, int V> static void sum_launch(const live &l, const live_sums<T> &a)
{
    const int64_t warps = l.rows * ceil_div(l.d, 32 * N * V);
    AG_LAUNCH((sum_run<T, N, V>), (unsigned)ceil_div(warps, WARPS), THREADS, 0, l, a.h, a.w,
              a.bias, a.residual, a.y, a.acc);
}

/* As many columns for a warp as leave warps enough. */
template <class T, int N> static void sum(const live &l, const live_sums<T> &a)
{
    constexpr int PER = 32 * N;
    if (l.rows * ceil_div(l.d, PER) < enough())
        AG_LAUNCH((sum_few<T, N>), (unsigned)(l.rows * ceil_div(l.d, TEAM * N)), THREADS,
                  TEAMS * TEAM * N * sizeof(float), l, a.h, a.w, a.bias, a.residual, a.y, a.acc);
    else if (l.d > 2 * PER && l.rows * ceil_div(l.d, 4 * PER) >= enough()) sum_launch<T, N, 4>(l, a);
    else if (l.d > PER && l.rows * ceil_div(l.d, 2 * PER) >= enough()) sum_launch<T, N, 2>(l, a);
    else sum_launch<T, N, 1>(l, a);
}

template <class T>
static void live_sum(const ag_live *al, const void *h, const void *w, const void *bias,
                     const void *residual, void *y, bool acc)
{
    const live l = live_of(al);
    if (l.rows == 0 || l.d == 0) return;
    const live_sums<T> a = { (const T *)h, (const T *)w, (const T *)bias, (const T *)residual,
                             (T *)y, acc };
    if (group_sum(l, a)) return;
    if (is_even<T>(l.d, w, y) && is_even<T>(0, bias, residual)) sum<T, 16 / (int)sizeof(T)>(l, a);
    else sum<T, 1>(l, a);
}

/* --- gradients of w and bias ---------------------------------------------------------------------- */

/* A block of threads has some columns of a unit's row of dw; a warp a part of its rows of x. */
template <class T, int N, int V>
static __global__ void grad_run(live l, listed g, const T *h, const T *x, float *dw, float *dbias)
{
    enum { COLS = 32 * N * V, RUN = 8 };                 /* a sum has runs of 32 * RUN entries */
    AG_SHARED(float, part);          /* [WARPS, COLS], then [WARPS] */
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t units = l.blocks * l.n * l.width, u = blockIdx.x % units;
    const int64_t choice = u / l.width, b = choice / l.n;
    const int64_t column = blockIdx.x / units * COLS, col = column + lane * N;
    const int32_t *first = g.first + b * (l.n + 1) + choice % l.n;
    const int32_t *entry = g.entry + b * l.rows * l.picks;
    const int64_t from = first[0], n = first[1] - from;
    if (n == 0) return;

    float s[V][N] = {}, run[V][N] = {}, hs = 0;
    const int64_t end = from + n * (warp + 1) / WARPS;
    int round = 0;
    for (int64_t e = from + n * warp / WARPS + lane; e - lane < end; e += 32) {
        const int64_t at = e < end ? entry[e] : 0, r = at / l.picks;
        const int64_t place = ((r * l.blocks + b) * l.picks + at % l.picks) * l.width + u % l.width;
        const float c = e < end ? get(h + place) : 0;
        hs += c;
        add_rows<T, N, V>(x, l.d, col, __ballot_sync(AG_WARP, c != 0), c, r, run);
        if (++round % RUN && e - lane + 32 < end) continue;
        for (int v = 0; v < V; v++)
            for (int k = 0; k < N; k++) s[v][k] += run[v][k], run[v][k] = 0;
    }
    for (int v = 0; v < V; v++)
        for (int k = 0; k < N; k++) part[warp * COLS + (v * 32 + lane) * N + k] = s[v][k];
    for (int o = 16; o; o /= 2) hs += __shfl_xor_sync(AG_WARP, hs, o);
    if (lane == 0) part[WARPS * COLS + warp] = hs;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < COLS && column + i < l.d; i += THREADS)
        dw[u * l.d + column + i] += sum_warps(part + i, COLS);
    if (dbias && column == 0 && threadIdx.x == 0) dbias[u] += sum_warps(part + WARPS * COLS, 1);
}

template <class T, int N>
static void grad_launch(const live &l, const listed &g, const void *h, const void *x, void *dw,
                        void *dbias)
{
    constexpr int V = N == 4 ? 2 : 1, COLS = 32 * N * V;
    const int64_t columns = l.d ? ceil_div(l.d, COLS) : 1;
    AG_LAUNCH((grad_run<T, N, V>), (unsigned)(l.blocks * l.n * l.width * columns), THREADS,
              (WARPS * COLS + WARPS) * sizeof(float), l, g, (const T *)h, (const T *)x, (float *)dw,
              (float *)dbias);
}

template <class T>
static void live_grad(const ag_live *al, const void *h, const void *x, void *dw, void *dbias)
{
    live l = live_of(al);
    if (l.rows == 0 || l.size == 0) return;
    if (dw && group_grad(l, (const T *)h, (const T *)x, (float *)dw)) dw = NULL;
    listed g;
    if ((!dw && !dbias) || !live_list(l, &g)) return;
    if (!dw) l.d = 0;                /* no columns */
    if (is_even<T>(l.d, x, x)) grad_launch<T, 16 / (int)sizeof(T)>(l, g, h, x, dw, dbias);
    else grad_launch<T, 1>(l, g, h, x, dw, dbias);
}

template <class T> void live_table(ag_kernels *k)
{
    k->live_dot = live_dot<T>;
    k->live_sum = live_sum<T>;
    k->live_grad = live_grad<T>;
}
template void live_table<float>(ag_kernels *k);
template void live_table<bf16>(ag_kernels *k);
template void live_table<f16>(ag_kernels *k);
