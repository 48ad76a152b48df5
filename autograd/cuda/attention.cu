/*
 * attention.cu -- attention: which kernels run a problem, and what they have in common.
 */
#include "blocks.cuh"

constexpr int THREADS = 128, WARPS = THREADS / 32;

/* --- partial results -------------------------------------------------------------------------- */

template <class T>
bool attention_split(attention<T> *a, int64_t have, int64_t blocks, int least)
{
    const int64_t most = a->tk / least > 1 ? a->tk / least : 1;
    int64_t n = have > 0 && have < blocks ? (blocks + have - 1) / have : 1;
    if (n > most) n = most;
    a->split_keys = (int)((a->tk / n + (a->tk % n > 0) + TILE - 1) / TILE * TILE);
    if (a->split_keys == 0) a->split_keys = TILE;
    a->splits = a->tk > 0 ? (a->tk + a->split_keys - 1) / a->split_keys : 1;
    if (a->splits == 1) return true;
    const int64_t rows = (int64_t)a->splits * a->batch * a->heads * a->tq;
    a->part_o = (float *)ag_cuda_workspace((size_t)(rows * (a->d_v + 2)) * sizeof(float));
    a->part_top = a->part_o + rows * a->d_v;
    a->part_sum = a->part_top + rows;
    return a->part_o != NULL;
}

/* A warp has a row. */
template <class T> static __global__ void merge_run(attention<T> a)
{
    const int64_t rows = (int64_t)a.batch * a.heads * a.tq,
        row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) return;
    const int lane = (int)threadIdx.x % 32, i = (int)(row % a.tq), splits = a.splits;
    a.splits = 1;                    /* the results of this are not partial */
    const row_at<T> to = result_at(a, head_of(row / a.tq, a.heads), i, 0);
    float top = -INFINITY, sum = 0;
    for (int s = 0; s < splits; s++) top = fmaxf(top, a.part_top[s * rows + row]);
    const float base = top == -INFINITY ? 0 : top;
    for (int s = 0; s < splits; s++)
        sum += exp2f(a.part_top[s * rows + row] - base) * a.part_sum[s * rows + row];
    for (int c = lane; c < a.d_v; c += 32) {
        float o = 0;
        for (int s = 0; s < splits; s++)
            o += exp2f(a.part_top[s * rows + row] - base) * a.part_o[(s * rows + row) * a.d_v + c];
        put_result(to, c, o, sum);
    }
    if (lane == 0) put_sums(a, to, top, sum);
}

template <class T> void attention_merge(const attention<T> &a)
{
    AG_LAUNCH(merge_run<T>, blocks_for((int64_t)a.batch * a.heads * a.tq, WARPS), THREADS, 0, a);
}

/* --- delta ------------------------------------------------------------------------------------ */

/* delta = sum over d_v of do o, which is the sum over keys of p dp; a warp has a row. */
template <class T> static __global__ void delta_run(attention<T> a)
{
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= (int64_t)a.batch * a.heads * a.tq) return;
    const head_at e = head_of(row / a.tq, a.heads);
    const int lane = (int)threadIdx.x % 32, i = (int)(row % a.tq);
    const T *g = row_o(a, a.d_o, e, i), *o = row_o(a, (const T *)a.o, e, i);
    float s = 0;
    for (int c = lane; c < a.d_v; c += 32) s += get(g + c) * get(o + c);
    for (int m = 16; m > 0; m /= 2) s += __shfl_xor_sync(AG_WARP, s, m);
    if (lane == 0) a.delta[row] = s;
}

/* --- the table -------------------------------------------------------------------------------- */

static int within(int64_t x, int64_t lo, int64_t hi)
{
    return (int)(x < lo ? lo : x > hi ? hi : x);
}

/* Do rows, of all items and heads, begin at multiples of 16 bytes? */
template <class T> static bool in_vectors(const void *p, int64_t row, int64_t batch, int64_t d)
{
    const int64_t n = 16 / (int64_t)sizeof(T);
    return (uintptr_t)p % 16 == 0 && row % n == 0 && batch % n == 0 && d % n == 0;
}

template <class T> static attention<T> problem_of(const ag_attention *p)
{
    attention<T> a = {};
    a.batch = (int)p->batch, a.heads = (int)p->heads, a.tq = (int)p->tq, a.tk = (int)p->tk;
    a.d_qk = (int)p->d_qk, a.d_v = (int)p->d_v;
    a.causal = p->causal;
    a.q_pos0 = within(p->q_pos0, -p->tq, p->tk);
    a.lengths = p->lengths;
    a.scale = (float)p->scale;
    a.scale2 = (float)(p->scale * 1.4426950408889634);
    a.drop_below = ag_drop_threshold(p->drop);
    a.kept = (float)(1 / (1 - p->drop));
    a.noise = p->noise;
    a.q = (const T *)p->q, a.q_row = p->q_row, a.q_batch = p->q_batch;
    a.k = (const T *)p->k, a.k_row = p->k_row, a.k_batch = p->k_batch;
    a.v = (const T *)p->v, a.v_row = p->v_row, a.v_batch = p->v_batch;
    a.o = (T *)p->o, a.o_row = p->o_row, a.o_batch = p->o_batch;
    a.lse = (float *)p->lse;
    a.splits = 1;
    a.vectors = in_vectors<T>(a.q, a.q_row, a.q_batch, a.d_qk) &&
        in_vectors<T>(a.k, a.k_row, a.k_batch, a.d_qk) &&
        in_vectors<T>(a.v, a.v_row, a.v_batch, a.d_v) &&
        in_vectors<T>(a.o, a.o_row, a.o_batch, a.d_v);
    return a;
}

/* Memory for sums between parts, where a layout has two: forward; backward.  False: an error is
 * kept. */
template <class T>
static bool sums_fwd(const attention<T> &a, const block_tables &t, block_sums *s)
{
    const size_t rows = (size_t)a.batch * (size_t)a.heads * (size_t)a.tq;
    if (t.parts < 2) return true;
    s->o = (float *)ag_cuda_workspace(rows * (size_t)(a.d_v + 2) * sizeof(float));
    s->top = s->o + rows * (size_t)a.d_v;
    s->sum = s->top + rows;
    return s->o != NULL;
}

template <class T>
static bool sums_bwd(const attention<T> &a, const block_tables &t, block_sums *s)
{
    const size_t heads = (size_t)a.batch * (size_t)a.heads;
    const size_t q = heads * (size_t)a.tq * (size_t)a.d_qk, k = heads * (size_t)a.tk;
    if (t.parts < 2) return true;
    s->dq = (float *)ag_cuda_workspace((q + k * (size_t)(a.d_qk + a.d_v)) * sizeof(float));
    s->dk = s->dq + q;
    s->dv = s->dk + k * (size_t)a.d_qk;
    return s->dq != NULL;
}

template <class T> static void pattern_fwd(const attention<T> &a, const ag_pattern *pattern)
{
    block_tables t;
    block_sums s = {};
    if (!block_tables_of(pattern, &t) || block_few_fwd(a, t) || !sums_fwd(a, t, &s)) return;
    if (!block_tiles_fwd(a, t, s)) block_any_fwd(a, t);
}

template <class T> static void pattern_bwd(const attention<T> &a, const ag_pattern *pattern)
{
    block_tables t;
    block_sums s = {};
    if (!block_tables_of(pattern, &t) || !sums_bwd(a, t, &s)) return;
    if (!block_tiles_bwd(a, t, s)) block_any_bwd(a, t);
}

template <class T> static void fwd(const ag_attention *p)
{
    const attention<T> a = problem_of<T>(p);
    if (p->pattern) pattern_fwd(a, p->pattern);
    else if (!attention_few_fwd(a) && !attention_tiles_fwd(a)) attention_any_fwd(a);
}

template <class T> static void bwd(const ag_attention *p, const ag_attention_grad *g)
{
    attention<T> a = problem_of<T>(p);
    a.d_o = (const T *)g->do_;
    a.dq = (T *)g->dq, a.dk = (T *)g->dk, a.dv = (T *)g->dv;
    a.acc = g->acc;
    a.delta = (float *)g->delta;
    a.vectors = a.vectors && (uintptr_t)a.d_o % 16 == 0;
    AG_LAUNCH(delta_run<T>, blocks_for((int64_t)a.batch * a.heads * a.tq, WARPS), THREADS, 0, a);
    if (p->pattern) pattern_bwd(a, p->pattern);
    else if (!attention_tiles_bwd(a)) attention_any_bwd(a);
}

template <class T> void attention_table(ag_kernels *k)
{
    k->attention_fwd = fwd<T>;
    k->attention_bwd = bwd<T>;
}

#define INSTANCES(T)                                                                    \
    template void attention_table<T>(ag_kernels *k);                                    \
    template bool attention_split(attention<T> *a, int64_t have, int64_t blocks, int least);    \
    template void attention_merge(const attention<T> &a);
INSTANCES(float)
INSTANCES(bf16)
INSTANCES(f16)
