/*
 * group.cu -- the sort behind group.cuh.
 *
 * A pass takes chunks of CHUNK entries, a block each.  The first launch counts the digits of each
 * chunk.  In the second, a block adds up what comes before its own entries of each digit: all
 * smaller digits, and this digit in earlier chunks; a warp goes through its entries 32 at a time,
 * and a vote on each bit of the digit finds the lanes that have the same.
 */
#include "group.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, ROUNDS = 4, CHUNK = THREADS * ROUNDS };
enum { BITS = 8, DIGITS = 1 << BITS };
static_assert((int)DIGITS == (int)THREADS, "a thread for each digit");

struct pass {
    group_keys g;
    int shift;                       /* of the digit */
    const int32_t *key, *entry;      /* [segments,n], what the pass before made; NULL: the first */
    int32_t *to_key, *to_entry;
    int32_t *count;                  /* [segments,chunks,DIGITS] */
    int32_t *first;                  /* as group_starts, of at most DIGITS keys; NULL: not wanted */
};

static int64_t chunks_of(const group_keys *g) { return (g->n + CHUNK - 1) / CHUNK; }

/* The key of number i in the order of the pass before; false: there is no such. */
static __device__ bool pass_key(const pass &p, int64_t i, int32_t *ret_key, int32_t *ret_entry)
{
    const int64_t s = blockIdx.y;
    if (i >= p.g.n) return false;
    if (p.key) {
        *ret_key = p.key[s * p.g.n + i];
        *ret_entry = p.entry[s * p.g.n + i];
    } else {
        *ret_key = p.g.key[(i / p.g.inner * p.g.segments + s) * p.g.inner + i % p.g.inner];
        *ret_entry = (int32_t)i;
    }
    return true;
}

static __device__ int digit_of(const pass &p, int32_t key)
{
    return (int)((unsigned)key >> p.shift) & (DIGITS - 1);
}

static __global__ void group_count(pass p)
{
    AG_SHARED(int, count);           /* [DIGITS] */
    const int t = (int)threadIdx.x;
    count[t] = 0;
    __syncthreads();
    for (int r = 0; r < ROUNDS; r++) {
        int32_t key, entry;
        if (pass_key(p, (int64_t)blockIdx.x * CHUNK + r * THREADS + t, &key, &entry))
            atomicAdd(count + digit_of(p, key), 1);
    }
    __syncthreads();
    p.count[((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * DIGITS + t] = count[t];
}

/* The sum of v over the threads before this one; shared: [WARPS]. */
static __device__ int sum_before(int v, int *shared)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int upto = v;
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(AG_WARP, upto, d);
        if (lane >= d) upto += other;
    }
    if (lane == 31) shared[warp] = upto;
    __syncthreads();
    for (int w = 0; w < warp; w++) upto += shared[w];
    return upto - v;
}

/* Which lanes have the same digit and are valid. */
static __device__ unsigned lanes_like(int digit, bool valid)
{
    unsigned same = __ballot_sync(AG_WARP, valid);
    for (int b = 0; b < BITS; b++) {
        const bool bit = digit >> b & 1;
        const unsigned have = __ballot_sync(AG_WARP, bit);
        same &= bit ? have : ~have;
    }
    return same;
}

static __global__ void group_scatter(pass p)
{
    AG_SHARED(int, count);           /* [WARPS,DIGITS], then [WARPS] */
    const int t = (int)threadIdx.x, lane = t % 32, warp = t / 32;
    int *const mine = count + warp * DIGITS;
    for (int w = 0; w < WARPS; w++) count[w * DIGITS + t] = 0;
    __syncthreads();

    int32_t key[ROUNDS], entry[ROUNDS];
    int place[ROUNDS];               /* among the same digits of this warp; -1: no entry */
    for (int r = 0; r < ROUNDS; r++) {
        const int64_t i = (int64_t)blockIdx.x * CHUNK + (warp * ROUNDS + r) * 32 + lane;
        place[r] = -1;
        if (i - lane >= p.g.n) continue;                 /* no lane has an entry */
        const bool valid = pass_key(p, i, &key[r], &entry[r]);
        const int digit = valid ? digit_of(p, key[r]) : 0;
        const unsigned same = lanes_like(digit, valid);
        const unsigned before = same & ((1u << lane) - 1);
        place[r] = valid ? mine[digit] + __popc(before) : -1;
        __syncwarp();
        if (valid && !before) mine[digit] += __popc(same);
        __syncwarp();
    }

    int all = 0, earlier = 0;        /* of digit t, in the segment and in earlier chunks of it */
    const int32_t *c = p.count + (int64_t)blockIdx.y * gridDim.x * DIGITS + t;
    for (unsigned i = 0; i < gridDim.x; i++, c += DIGITS) {
        all += *c;
        earlier += i < blockIdx.x ? *c : 0;
    }
    int at = sum_before(all, count + WARPS * DIGITS) + earlier;      /* with a barrier in it */
    if (p.first && blockIdx.x == 0 && t < p.g.keys) {    /* the first chunk: earlier is 0 */
        int32_t *const first = p.first + blockIdx.y * (p.g.keys + 1);
        first[t] = at;
        if (t == p.g.keys - 1) first[t + 1] = (int32_t)p.g.n;
    }
    for (int w = 0; w < WARPS; w++) {
        const int n = count[w * DIGITS + t];
        count[w * DIGITS + t] = at;
        at += n;
    }
    __syncthreads();
    for (int r = 0; r < ROUNDS; r++)
        if (place[r] >= 0) {
            const int64_t to = blockIdx.y * p.g.n + mine[digit_of(p, key[r])] + place[r];
            p.to_key[to] = key[r];
            p.to_entry[to] = entry[r];
        }
}

static int64_t padded(int64_t n) { return (n + 3) & ~(int64_t)3; }

size_t group_bytes(const group_keys *g)
{
    return (size_t)(4 * padded(g->segments * g->n) + g->segments * chunks_of(g) * DIGITS) *
           sizeof(int32_t);
}

/* first: of at most DIGITS keys, or NULL */
static void sort(const group_keys *g, void *memory, groups *ret, int32_t *first)
{
    const int64_t n = padded(g->segments * g->n);
    int32_t *at = (int32_t *)memory;
    int32_t *key[2] = { at, at + n }, *entry[2] = { at + 2 * n, at + 3 * n };
    const dim3 grid(blocks_for(g->n, CHUNK), (unsigned)g->segments);
    int side = 0;
    pass p = { *g, 0, NULL, NULL, NULL, NULL, at + 4 * n, first };
    do {
        p.to_key = key[side];
        p.to_entry = entry[side];
        AG_LAUNCH(group_count, grid, THREADS, DIGITS * sizeof(int), p);
        AG_LAUNCH(group_scatter, grid, THREADS, (WARPS * DIGITS + WARPS) * sizeof(int), p);
        p.key = key[side];
        p.entry = entry[side];
        side = !side;
        p.shift += BITS;
    } while (g->keys > (int64_t)1 << p.shift);
    *ret = { p.entry, p.key };
}

/* Number i of a segment is the first of its key, and of those before that have no entry. */
static __global__ void starts_run(group_keys g, const int32_t *key, int32_t *first)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, s = blockIdx.y;
    if (i > g.n) return;
    const int64_t from = i > 0 ? key[s * g.n + i - 1] + 1 : 0;
    const int64_t to = i < g.n ? key[s * g.n + i] : g.keys;
    for (int64_t k = from; k <= to; k++) first[s * (g.keys + 1) + k] = (int32_t)i;
}

void group_entries(const group_keys *g, void *memory, groups *ret) { sort(g, memory, ret, NULL); }

void group_starts(const group_keys *g, void *memory, groups *ret, int32_t *first)
{
    const bool one_pass = g->keys <= DIGITS && g->n > 0;
    sort(g, memory, ret, one_pass ? first : NULL);
    if (one_pass) return;
    const dim3 grid(blocks_for(g->n + 1, THREADS), (unsigned)g->segments);
    AG_LAUNCH(starts_run, grid, THREADS, 0, *g, ret->key, first);
}
