/*
 * factored.cu -- one step of Adafactor (optim/adafactor.h; optim/adafactor.c is the same on the
 * host).
 *
 * What a step needs to know depends on all of a tensor, so there are five passes: the squares of
 * the gradient; the second moments of columns; of rows; the size of the update; the update.  Three
 * of them read the gradient, of which a few megabytes at a time stay in the cache.  Sums are in
 * f64: of a part in the order of its threads, of parts in theirs.  So no number depends on who
 * comes first.
 */
#include "flat.cuh"

enum { THREADS = FLAT_THREADS, WARPS = THREADS / 32, ROWS = AG_FACTORED_ROWS };

/* The factor of the gradient in every thread of the block; 0: there is no step.  s [1] is shared
 * memory, free again afterwards. */
static __device__ double block_gate(const ag_flat_gate &gate, double *s)
{
    if (threadIdx.x == 0) *s = (double)gate_factor(gate);
    __syncthreads();
    const double clip = *s;
    __syncthreads();
    return clip;
}

static __device__ float moved(const ag_factored &f, double clip, float v, double mean)
{
    return (float)(f.beta * (double)v + f.mix * clip * clip * mean);
}

/* The sums of squares of the columns of a part: a thread has a column. */
static __device__ void column_sums(int64_t rows, int64_t cols, const float *g, double *sum)
{
    for (int64_t j = threadIdx.x; j < cols; j += THREADS) {
        double s = 0;
        AG_UNROLL_BY(8)
        for (int64_t r = 0; r < rows; r++) {
            const double x = (double)g[r * cols + j];
            s += x * x;
        }
        sum[j] = s;
    }
}

/* Moments of the rows of a part: a warp has a row.  Returns the sum of those that this thread
 * wrote. */
static __device__ double row_moments(const ag_factored &f, double clip, int64_t rows, int64_t cols,
                                     const float *g, float *v_row)
{
    const unsigned lane = threadIdx.x % 32;
    double sum = 0;
    for (int64_t r = threadIdx.x / 32; r < rows; r += WARPS) {
        double s = 0;
        for (int64_t j = lane; j < cols; j += 32) {
            const double x = (double)g[r * cols + j];
            s += x * x;
        }
        for (unsigned d = 16; d; d /= 2) s += __shfl_xor_sync(AG_WARP, s, d);
        if (lane != 0) continue;
        v_row[r] = moved(f, clip, v_row[r], s / (double)cols);
        sum += (double)v_row[r];
    }
    return sum;
}

static __global__ void look_run(ag_factored f, ag_flat_gate gate, ag_factored_work w,
                                ag_factored_arrays a)
{
    AG_SHARED(double, s);
    const double clip = block_gate(gate, s);
    if (clip == 0) return;
    for (int64_t k = blockIdx.x; k < w.n_parts; k += gridDim.x) {
        const ag_factored_part part = w.part[k];
        const ag_factored_matrix m = w.matrix[part.matrix];
        const int64_t at = m.offset + part.first * m.cols;
        double p2 = 0, v = 0;
        column_sums(part.rows, m.cols, a.g + at, w.sum + part.sums);
        if (m.vector < 0)
            v = row_moments(f, clip, part.rows, m.cols, a.g + at, a.v_row + m.row + part.first);
        for (int64_t i = threadIdx.x; f.parameter_scale && i < part.rows * m.cols; i += THREADS)
            p2 += (double)a.p[at + i] * (double)a.p[at + i];
        v = block_sum(v, s);
        __syncthreads();
        p2 = block_sum(p2, s);
        if (threadIdx.x == 0) w.total[k].v = v, w.total[k].p2 = p2;
        __syncthreads();
    }
}

/* The matrix that column `col` is of. */
static __device__ int64_t matrix_of(const ag_factored_work &w, int64_t col)
{
    int64_t low = 0, high = w.n_matrices - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (w.matrix[middle].col <= col) low = middle;
        else high = middle - 1;
    }
    return low;
}

/* Moments of the columns, or of the elements of a vector, and their factors: a thread each. */
static __global__ void columns_run(ag_factored f, ag_flat_gate gate, ag_factored_work w,
                                   ag_factored_arrays a)
{
    AG_SHARED(double, s);
    const double clip = block_gate(gate, s);
    const int64_t col = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (clip == 0 || col >= w.n_cols) return;
    const ag_factored_matrix m = w.matrix[matrix_of(w, col)];
    const int64_t j = col - m.col;
    const double *of = w.sum + w.part[m.part].sums + j;
    float *v = m.vector < 0 ? a.v_col + col : a.v + m.vector + j;
    double sum = 0;
    AG_UNROLL_BY(8)
    for (int64_t k = 0; k < m.n_parts; k++) sum += of[k * m.cols];
    *v = moved(f, clip, *v, sum / (double)m.rows);
    w.col[col] = (float)(1 / sqrt((double)*v + f.eps1));
}

/* The mean of the moments of a matrix's rows, in the place of the first part's sum. */
static __global__ void mean_run(ag_flat_gate gate, ag_factored_work w)
{
    AG_SHARED(double, s);
    if (block_gate(gate, s) == 0) return;
    for (int64_t i = blockIdx.x; i < w.n_matrices; i += gridDim.x) {
        const ag_factored_matrix m = w.matrix[i];
        double v = 0;
        for (int64_t k = threadIdx.x; k < m.n_parts; k += THREADS) v += w.total[m.part + k].v;
        v = block_sum(v, s);
        if (threadIdx.x == 0) w.total[m.part].v = v / (double)m.rows;
        __syncthreads();
    }
}

/* How the threads of a block go over a part: `across` columns at a time. */
static __device__ int across_of(int64_t cols)
{
    int across = 32;
    while (across < THREADS && across < cols) across *= 2;
    return across;
}

/* The factors of rows, which have that of the gradient, and the squares of the update. */
static __global__ void measure_run(ag_factored f, ag_flat_gate gate, ag_factored_work w,
                                   ag_factored_arrays a)
{
    AG_SHARED(double, s);            /* [THREADS], then the factors of rows */
    float *factor = (float *)(s + THREADS);
    const double clip = block_gate(gate, s);
    if (clip == 0) return;
    for (int64_t k = blockIdx.x; k < w.n_parts; k += gridDim.x) {
        const ag_factored_part part = w.part[k];
        const ag_factored_matrix m = w.matrix[part.matrix];
        const int64_t row = m.row + part.first, i = threadIdx.x;
        const float *g = a.g + m.offset + part.first * m.cols, *col = w.col + m.col;
        if (i < part.rows) {
            double by = clip;
            if (m.vector < 0)
                by *= sqrt(w.total[m.part].v / ((double)a.v_row[row + i] + f.eps1));
            factor[i] = w.row[row + i] = (float)by;
        }
        __syncthreads();
        const int across = across_of(m.cols);
        double y2 = 0;
        for (int64_t r = i / across; r < part.rows; r += THREADS / across)
            for (int64_t j = i % across; j < m.cols; j += across) {
                const double y = (double)(g[r * m.cols + j] * factor[r] * col[j]);
                y2 += y * y;
            }
        y2 = block_sum(y2, s);
        if (i == 0) w.total[k].y2 = y2;
        __syncthreads();
    }
}

/* The rate of each range, from the root mean squares of its weights and its update. */
static __global__ void rates_run(ag_factored f, ag_flat_gate gate, ag_factored_work w)
{
    AG_SHARED(double, s);
    if (block_gate(gate, s) == 0) return;
    for (int64_t i = blockIdx.x; i < w.n_ranges; i += gridDim.x) {
        const ag_factored_range range = w.range[i];
        double p2 = 0, y2 = 0;
        for (int64_t k = threadIdx.x; k < range.n_parts; k += THREADS) {
            p2 += w.total[range.part + k].p2;
            y2 += w.total[range.part + k].y2;
        }
        p2 = block_sum(p2, s);
        __syncthreads();
        y2 = block_sum(y2, s);
        __syncthreads();
        if (threadIdx.x || !range.count) continue;
        const double n = (double)range.count, rms = sqrt(y2 / n), most = f.clip_threshold;
        const double scale = f.parameter_scale ? fmax(sqrt(p2 / n), f.eps2) : 1;
        w.rate[i] = ag_factored_rate{
            (float)(f.lr * scale / (most > 0 && rms > most ? rms / most : 1)),
            range.decay ? f.shrink : 1, f.momentum, f.keep };
    }
}

static __global__ void update_run(ag_factored f, ag_flat_gate gate, ag_factored_work w,
                                  ag_factored_arrays a)
{
    AG_SHARED(double, s);
    if (block_gate(gate, s) == 0) return;
    for (int64_t k = blockIdx.x; k < w.n_parts; k += gridDim.x) {
        const ag_factored_part part = w.part[k];
        const ag_factored_matrix m = w.matrix[part.matrix];
        const ag_factored_rate c = w.rate[m.range];
        const float *row = w.row + m.row + part.first, *col = w.col + m.col;
        const int across = across_of(m.cols), tid = (int)threadIdx.x;
        for (int64_t r = tid / across; r < part.rows; r += THREADS / across)
            for (int64_t j = tid % across; j < m.cols; j += across) {
                const int64_t i = m.offset + (part.first + r) * m.cols + j;
                float by = c.rate * (a.g[i] * row[r] * col[j]);
                if (a.m) by = a.m[i] = c.momentum * a.m[i] + c.keep * by;
                const float p = c.shrink * a.p[i] - by;
                a.p[i] = p;
                a.g[i] = 0;
                if (a.ema) a.ema[i] = f.ema_decay * a.ema[i] + f.ema_keep * p;
            }
    }
}

void flat_factored(const ag_factored *f, const ag_flat_gate *gate, const ag_factored_work *w,
                   const ag_factored_arrays *a)
{
    const unsigned parts = blocks_for(w->n_parts, 1), cols = blocks_for(w->n_cols, THREADS);
    const size_t sums = THREADS * sizeof(double);
    AG_LAUNCH(look_run, parts, THREADS, sums, *f, *gate, *w, *a);
    AG_LAUNCH(columns_run, cols, THREADS, sums, *f, *gate, *w, *a);
    AG_LAUNCH(mean_run, blocks_for(w->n_matrices, 1), THREADS, sums, *gate, *w);
    AG_LAUNCH(measure_run, parts, THREADS, sums + ROWS * sizeof(float), *f, *gate, *w, *a);
    AG_LAUNCH(rates_run, blocks_for(w->n_ranges, 1), THREADS, sums, *f, *gate, *w);
    AG_LAUNCH(update_run, parts, THREADS, sums, *f, *gate, *w, *a);
}
