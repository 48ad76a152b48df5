/*
 * sparse_faults.cuh -- as faults.cuh, the shapes of sparse kernels: lists of tiles with bit masks,
 * stable sorts by bucket, a ring of chunks, softmax in parts, rows grouped by choice.
 */
#ifndef TESTS_SIMT_SPARSE_FAULTS_CUH
#define TESTS_SIMT_SPARSE_FAULTS_CUH

/*
 * y[query] = sum of x over the keys that a query sees.  A block has a tile of 32 queries and walks
 * its list of key tiles; bit k of mask[entry*32 + q] says whether query q sees key k of that tile.
 * Kinds: 1 the mask of another query; 2 a list that ends one late; 3 a tile that is overwritten
 * while it is read; 4 bits from the other end; 5 keys beyond the last; 6 a tile that nobody waits
 * for.
 */
enum { QUERIES = 96, KEYS = 80, LISTED = 6 };

struct lists { int begin[4], tile[LISTED]; };
static const lists listed = { { 0, 1, 3, 6 }, { 0, 0, 1, 0, 1, 2 } };

static inline unsigned mask_word(int entry, int q)
{
    const unsigned h = (unsigned)(entry * 32 + q + 1) * 2654435761u;
    return h ^ h >> 15;
}

template <int FAULT>
static void masked_run(const lists *l, const unsigned *mask, const float *x, float *y, int kind)
{
    AG_SHARED(float, s);             /* [32] keys of a tile; two warps take half of them each */
    const int q = (int)threadIdx.x % 32, half = (int)threadIdx.x / 32, b = (int)blockIdx.x;
    float sum = 0;
    for (int e = l->begin[b]; e < l->begin[b + 1] + (FAULT && kind == 2); e++) {
        const int k0 = l->tile[e] * 32;
        if (half == 0) s[q] = k0 + q < KEYS || (FAULT && kind == 5) ? x[k0 + q] : 0;
        if (!(FAULT && kind == 6)) __syncthreads();
        const unsigned seen = mask[e * 32 + (FAULT && kind == 1 ? q ^ 1 : q)];
        for (int k = half * 16; k < half * 16 + 16; k++)
            if (seen >> (FAULT && kind == 4 ? 31 - k : k) & 1) sum += s[k];
        if (!(FAULT && kind == 3)) __syncthreads();
    }
    float *parts = s + 32;           /* [64] */
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (half == 0) y[b * 32 + q] = parts[q] + parts[32 + q];
}

template <int FAULT, int KIND> static bool masked(void)
{
    std::vector<unsigned> mask;
    for (int e = 0; e < LISTED; e++)
        for (int q = 0; q < 32; q++) mask.push_back(mask_word(e, q));
    lists *l;
    unsigned *m;
    cudaMalloc((void **)&l, sizeof *l);
    cudaMalloc((void **)&m, mask.size() * sizeof(unsigned));
    cudaMemcpyAsync(l, &listed, sizeof listed, cudaMemcpyHostToDevice, NULL);
    cudaMemcpyAsync(m, mask.data(), mask.size() * sizeof(unsigned), cudaMemcpyHostToDevice, NULL);
    const std::vector<float> x = ramp(KEYS);
    floats dx(x), dy(std::vector<float>(QUERIES, 0));
    const lists *pl = l;
    const unsigned *pm = m;
    const float *px = dx.d;
    float *py = dy.d;
    const int kind = KIND;
    RUN_FAULT(masked_run, 3, 64, 96 * sizeof(float), pl, pm, px, py, kind);
    const std::vector<float> y = dy.then();
    for (int i = 0; i < QUERIES; i++) {
        float want = 0;
        for (int e = listed.begin[i / 32]; e < listed.begin[i / 32 + 1]; e++)
            for (int k = 0; k < 32 && listed.tile[e] * 32 + k < KEYS; k++)
                if (mask_word(e, i % 32) >> k & 1) want += x[(size_t)(listed.tile[e] * 32 + k)];
        if (!(y[(size_t)i] == want)) return false;
    }
    return true;
}

/*
 * at[..] = positions sorted by bucket, those of a bucket in their order: a thread for each bucket
 * counts, one thread adds up, a thread for each bucket writes.  Kinds: 1 the last comes first; 2
 * sums that are read while they are made; 3 starts that include the bucket itself.
 */
enum { SORTED = 50, BUCKETS = 8 };

static inline int bucket_of(int i) { return i * 5 % 7; }

template <int FAULT> static void sort_run(float *at, int kind)
{
    AG_SHARED(int, start);           /* [BUCKETS] counts, then [BUCKETS] starts */
    const int b = (int)threadIdx.x;
    int n = 0;
    for (int i = 0; i < SORTED; i++) n += bucket_of(i) == b;
    start[b] = n;
    __syncthreads();
    if (b == 0) {
        int sum = 0;
        for (int k = 0; k < BUCKETS; k++) {
            if (FAULT && kind == 3) sum += start[k];
            start[BUCKETS + k] = sum;
            if (!(FAULT && kind == 3)) sum += start[k];
        }
    }
    if (!(FAULT && kind == 2)) __syncthreads();
    int to = start[BUCKETS + b];
    for (int i = 0; i < SORTED; i++) {
        const int from = FAULT && kind == 1 ? SORTED - 1 - i : i;
        if (bucket_of(from) == b) at[to++] = (float)from;
    }
}

template <int FAULT, int KIND> static bool sort(void)
{
    floats dy(std::vector<float>(SORTED, -1));
    float *y = dy.d;
    const int kind = KIND;
    RUN_FAULT(sort_run, 1, BUCKETS, 2 * BUCKETS * sizeof(int), y, kind);
    const std::vector<float> at = dy.then();
    int n = 0;
    for (int b = 0; b < BUCKETS; b++)
        for (int i = 0; i < SORTED; i++)
            if (bucket_of(i) == b && !(at[(size_t)n++] == (float)i)) return false;
    return true;
}

/* y[chunk] = x of the chunk before it in a ring.  Kind 1: the first has none. */
enum { CHUNKS = 5 };

template <int FAULT> static void ring_run(const float *x, float *y)
{
    const int c = (int)blockIdx.x;
    y[c] = x[FAULT ? c - 1 : (c + CHUNKS - 1) % CHUNKS];
}

template <int FAULT> static bool ring(void)
{
    const std::vector<float> x = ramp(CHUNKS);
    floats dx(x), dy(std::vector<float>(CHUNKS, 0));
    const float *px = dx.d;
    float *py = dy.d;
    RUN_FAULT(ring_run, CHUNKS, 1, 0, px, py);
    const std::vector<float> y = dy.then();
    for (size_t c = 0; c < CHUNKS; c++)
        if (!(y[c] == x[(c + CHUNKS - 1) % CHUNKS])) return false;
    return true;
}

/* The log of the sum of exp(x) by two warps.  Kind 1: sums with different maxima are added. */
template <int FAULT> static void merge_run(const float *x, float *y)
{
    AG_SHARED(float, s);             /* [2] maxima, [2] sums */
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    float top = x[threadIdx.x];
    for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(AG_WARP, top, o));
    float sum = expf(x[threadIdx.x] - top);
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(AG_WARP, sum, o);
    if (lane == 0) s[warp] = top, s[2 + warp] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    const float all = fmaxf(s[0], s[1]);
    *y = all + logf(FAULT ? s[2] + s[3] : s[2] * expf(s[0] - all) + s[3] * expf(s[1] - all));
}

template <int FAULT> static bool merge(void)
{
    std::vector<float> x = ramp(64);
    for (size_t i = 32; i < 64; i++) x[i] += 3;
    floats dx(x), dy(std::vector<float>(1, 0));
    const float *px = dx.d;
    float *py = dy.d;
    RUN_FAULT(merge_run, 1, 64, 4 * sizeof(float), px, py);
    double want = 0;
    for (float v : x) want += exp((double)v);
    return fabs((double)dy.then()[0] - log(want)) < 1e-5;
}

/* y[choice] += x of each row that made it: a block for each choice; with a fault, for each row. */
template <int FAULT> static void grouped_run(const float *x, float *y)
{
    if (FAULT) {
        if (threadIdx.x == blockIdx.x) y[blockIdx.x / 5] += x[blockIdx.x];
        return;
    }
    if (threadIdx.x || blockIdx.x >= 4) return;
    float sum = 0;
    for (unsigned r = 0; r < 5; r++) sum += x[blockIdx.x * 5 + r];
    y[blockIdx.x] += sum;
}

template <int FAULT> static bool grouped(void)
{
    const std::vector<float> x = ramp(20);
    floats dx(x), dy(std::vector<float>(4, 0));
    const float *px = dx.d;
    float *py = dy.d;
    RUN_FAULT(grouped_run, 20, 32, 0, px, py);
    const std::vector<float> y = dy.then();
    for (size_t c = 0; c < 4; c++)
        if (!(y[c] == x[5 * c] + x[5 * c + 1] + x[5 * c + 2] + x[5 * c + 3] + x[5 * c + 4]))
            return false;
    return true;
}

#endif
