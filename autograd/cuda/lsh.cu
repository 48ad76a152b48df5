/*
 * lsh.cu -- attention by hashing but for who meets whom: the sort of positions by bucket, what is
 * made of each position before (scale, delta) and after (positions that see nothing but themselves,
 * gradients from keys to queries).  lsh.cuh says what the parts are.
 *
 *   k_j = c_j q_j  with c = ((mean(q^2) + eps) d)^(-1/2):
 *   dq_j += c_j dk_j - c_j^3 (dk_j . q_j) q_j
 *
 * The sort moves about 40 bytes a position, round and 8 bits of its bucket, the others each row
 * once.
 */
#include "lsh.cuh"

#include "group.cuh"

enum { THREADS = 256, LANES = 32, WARPS = THREADS / LANES };
constexpr int64_t SEGMENTS = 65535 /* of a sort: blocks in y */,
    SORT_BYTES = 8 << 20 /* of workspace at a time */;
constexpr size_t ALIGN = 64;         /* bytes */

/* order and rank of rounds and pairs `first` and up, from what the sort made */
static __global__ void lsh_places(lsh a, int64_t first, int64_t n, const int32_t *entry)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const int64_t at = first * a.t + i, place = i % a.t;
    a.order[at] = entry[i];
    a.rank[at - place + entry[i]] = (int32_t)place;
}

/* Sorts the positions of each round by bucket, stably.  Rounds and pairs are segments that lie one
 * after another; so many at a time as SORT_BYTES of workspace take. */
static bool lsh_sort(const lsh &a)
{
    const int64_t segments = a.rounds * a.pairs;
    group_keys g = { a.bucket, 1, a.t, a.t, a.buckets };
    int64_t part = SORT_BYTES / (int64_t)group_bytes(&g);
    part = part < 1 ? 1 : part < SEGMENTS ? part : SEGMENTS;
    g.segments = part < segments ? part : segments;
    void *memory = ag_cuda_workspace(group_bytes(&g));
    if (!memory) return false;
    for (int64_t s = 0; s < segments; s += g.segments) {
        if (g.segments > segments - s) g.segments = segments - s;
        groups r;
        g.key = a.bucket + s * a.t;
        group_entries(&g, memory, &r);
        AG_LAUNCH(lsh_places, blocks_for(g.segments * a.t, THREADS), THREADS, 0, a, s,
                  g.segments * a.t, r.entry);
    }
    return true;
}

/* The position of this warp; false: there is none. */
struct place { int64_t pair; int i; };
static __device__ bool place_of(const lsh &a, place *p)
{
    const int64_t w = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES;
    *p = { w / a.t, (int)(w % a.t) };
    return p->pair < a.pairs;
}

DEVICE int lane(void) { return (int)threadIdx.x % LANES; }

/* x . y, for every lane */
static __device__ float dot(const float *x, const float *y, int d)
{
    float s = 0;
    for (int c = lane(); c < d; c += LANES) s += x[c] * y[c];
    return lsh_warp_sum(s);
}

/* scale and, in backward, delta */
static __global__ void lsh_prepare(lsh a)
{
    place p;
    if (!place_of(a, &p)) return;
    const int64_t at = p.pair * a.t + p.i, v = lsh_v_at(a, p.pair, p.i);
    const float *q = a.q + lsh_q_at(a, p.pair, p.i);
    const float square = dot(q, q, a.d_qk), delta = a.d_o ? dot(a.d_o + v, a.o + v, a.d_v) : 0;
    if (lane()) return;
    a.scale[at] = 1 / sqrtf((square / (float)a.d_qk + LSH_EPS) * (float)a.d_qk);
    if (a.d_o) a.delta[at] = delta;
}

/* What a position that sees nothing but itself multiplies its value with: the mean of what dropout
 * makes of its weight in each round.  0 for all others. */
static __device__ float alone(const lsh &a, const place &p)
{
    if (p.i >= lsh_length(a, p.pair) || a.lse[p.pair * a.t + p.i] > -INFINITY) return 0;
    if (!a.drop_below) return 1;
    int kept = 0;
    for (int r = 0; r < a.rounds; r++) {
        const int at = a.rank[lsh_round_at(a, p.pair, r) + p.i] % a.cut;
        kept += lsh_kept(a, lsh_noise_row(a, p.pair, at, a.own) + (uint64_t)at) > 0;
    }
    return (float)kept / (float)a.rounds * a.kept;
}

static __global__ void lsh_finish_fwd(lsh a)
{
    place p;
    if (!place_of(a, &p)) return;
    const float f = alone(a, p);
    if (!(f > 0)) return;
    const int64_t v = lsh_v_at(a, p.pair, p.i);
    for (int c = lane(); c < a.d_v; c += LANES) a.o[v + c] = f * a.v[v + c];
}

static __global__ void lsh_finish_bwd(lsh a)
{
    place p;
    if (!place_of(a, &p)) return;
    const int64_t v = lsh_v_at(a, p.pair, p.i), q = lsh_q_at(a, p.pair, p.i);
    const float f = alone(a, p);
    for (int c = lane(); f > 0 && c < a.d_v; c += LANES) a.dv[v + c] += f * a.d_o[v + c];
    const float *dk = a.dk + (p.pair * a.t + p.i) * a.d_qk;
    const float s = a.scale[p.pair * a.t + p.i], along = s * s * dot(dk, a.q + q, a.d_qk);
    for (int c = lane(); c < a.d_qk; c += LANES) a.dq[q + c] += s * (dk[c] - along * a.q[q + c]);
}

/* --- host ------------------------------------------------------------------------------------- */

/* Takes n numbers for each pair from the scratch memory. */
static void *take(char **at, int64_t pairs, int64_t n)
{
    void *p = *at;
    *at += (size_t)pairs * (((size_t)n * sizeof(float) + ALIGN - 1) / ALIGN * ALIGN);
    return p;
}

static lsh lsh_of(const ag_lsh *f)
{
    lsh a = {};
    char *scratch = (char *)f->scratch;
    const int64_t t = f->t, cut = f->chunk < t ? f->chunk : t, chunks = (t + cut - 1) / cut,
        all = f->rounds * chunks, width = f->before + 1 + f->after;
    a.heads = (int)f->heads, a.t = (int)t, a.d_qk = (int)f->d_qk, a.d_v = (int)f->d_v;
    a.rounds = (int)f->rounds, a.buckets = (int)(f->factor[0] * f->factor[1] + 1);
    a.pairs = f->batch * f->heads;
    a.cut = (int)cut, a.chunks = (int)chunks, a.all = (int)all;
    a.own = (int)(f->before % all), a.slots = (int)(width < all ? width : all);
    a.causal = f->causal, a.bucket_mask = f->bucket_mask, a.correct = f->correct;
    a.drop_below = ag_drop_threshold(f->drop), a.kept = (float)(1 / (1 - f->drop));
    a.noise = f->noise, a.chunk = f->chunk, a.columns = width * ag_noise_stride(f->chunk);
    a.lengths = f->lengths, a.bucket = f->bucket;
    a.q = (const float *)f->q, a.v = (const float *)f->v;
    a.o = (float *)f->o, a.lse = (float *)f->lse;
    a.vectors = aligned(f->q) && aligned(f->v) && f->d_qk % 4 == 0 && f->d_v % 4 == 0;
    /* ag_lsh_scratch has room for these, and for counts of buckets, which the CPU sorts by */
    a.order = (int32_t *)take(&scratch, a.pairs, f->rounds * t);
    a.rank = (int32_t *)take(&scratch, a.pairs, f->rounds * t);
    a.scale = (float *)take(&scratch, a.pairs, t);
    a.delta = (float *)take(&scratch, a.pairs, t);
    a.dk = (float *)take(&scratch, a.pairs, t * f->d_qk);
    return a;
}

/* Warps for all positions. */
static unsigned grid_of(const lsh &a) { return blocks_for(a.pairs * a.t, WARPS); }

static void lsh_fwd(const ag_lsh *f)
{
    if (f->t == 0 || f->batch == 0) return;
    const lsh a = lsh_of(f);
    if (!lsh_sort(a)) return;
    AG_LAUNCH(lsh_prepare, grid_of(a), THREADS, 0, a);
    if (!lsh_tiles_fwd(a)) lsh_any_fwd(a);
    AG_LAUNCH(lsh_finish_fwd, grid_of(a), THREADS, 0, a);
}

static void lsh_bwd(const ag_lsh *f, const void *d_o, void *dq, void *dv)
{
    if (f->t == 0 || f->batch == 0) return;
    lsh a = lsh_of(f);
    a.d_o = (const float *)d_o, a.dq = (float *)dq, a.dv = (float *)dv;
    a.vectors = a.vectors && aligned(d_o);
    if (!lsh_sort(a)) return;
    AG_LAUNCH(lsh_prepare, grid_of(a), THREADS, 0, a);
    if (!lsh_tiles_bwd(a)) lsh_any_bwd(a);
    AG_LAUNCH(lsh_finish_bwd, grid_of(a), THREADS, 0, a);
}

void lsh_table(ag_kernels *k)
{
    k->lsh_hash = lsh_hash;
    k->lsh_fwd = lsh_fwd;
    k->lsh_bwd = lsh_bwd;
    k->lsh_decode = lsh_decode;
}
