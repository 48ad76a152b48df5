/* bench_gpu_lsh.h -- the rows of attention by hashing: a part of bench_gpu.c.  f32 only. */
typedef struct hashed { ag_lsh a; ag_lsh_decode d; void *r, *do_, *dq, *dv; } hashed;
static void run_lsh_hash(const void *arg)
{
    const hashed *x = arg;
    k->lsh_hash(&x->a, x->r, false);
}
static void run_lsh_fwd(const void *arg) { k->lsh_fwd(&((const hashed *)arg)->a); }
static void run_lsh_bwd(const void *arg)
{
    const hashed *x = arg;
    k->lsh_bwd(&x->a, x->do_, x->dq, x->dv);
}
static void run_lsh_decode(const void *arg) { k->lsh_decode(&((const hashed *)arg)->d); }

/* Causal, chunks that see the one before; `back`: 0 the hash, 1 forward, 2 backward. */
static void hashing(int64_t batch, int64_t heads, int64_t t, int64_t d, int64_t chunk,
                    int64_t rounds, int back)
{
    const int64_t w = heads * d, n = batch * t * w, buckets = 2 * (t / chunk),
        columns = rounds * buckets / 2;
    hashed x = { .a = { .batch = batch, .heads = heads, .t = t, .d_qk = d, .d_v = d,
                        .rounds = rounds, .factor = { buckets, 1 }, .chunk = chunk, .before = 1,
                        .causal = true, .q = reals(n), .v = reals(n), .o = reals(n),
                        .lse = floats(batch * heads * t) },
                 .r = reals(batch * heads * d * columns) };
    x.a.bucket = indices(rounds * batch * heads * t, (int32_t)buckets);
    x.a.scratch = room((int64_t)ag_lsh_scratch(&x.a, k->dtype), 1);
    if (back == 2) x.do_ = reals(n), x.dq = reals(n), x.dv = reals(n);
    char name[96];
    const double places = (double)(rounds * batch * heads * t),
        met = places * 2 * (double)chunk * 0.5;          /* about half of them are earlier */
    static const char *const names[] = { "lsh hash", "lsh", "lsh backward" };
    static work *const runs[] = { run_lsh_hash, run_lsh_fwd, run_lsh_bwd };
    const double bytes[] = { 4 * ((double)n + places), 4 * (3 * (double)n + places),
                             4 * (8 * (double)n + places) };
    snprintf(name, sizeof name, "%s %lldx%lldx%lld, %lld in %lld", names[back], (long long)batch,
             (long long)heads, (long long)t, (long long)rounds, (long long)chunk);
    row(name, runs[back], &x, bytes[back],
        back ? met * (double)d * (back == 1 ? 4 : 10)
             : 2 * (double)n * (double)columns);
}

/* A token over a cache. */
static void hashing_decode(int64_t heads, int64_t past, int64_t d, int64_t rounds, int64_t most)
{
    const int64_t capacity = past + 1;
    hashed x = { .d = { .batch = 1, .heads = heads, .past = past, .t = 1, .capacity = capacity,
                        .d_qk = d, .d_v = d, .rounds = rounds, .most = most,
                        .bucket = indices(heads * rounds * capacity, 128),
                        .k = reals(capacity * heads * d), .v = reals(capacity * heads * d),
                        .o = reals(heads * d) } };
    x.d.scratch = room((int64_t)ag_lsh_decode_scratch(&x.d, k->dtype), 1);
    char name[96];
    snprintf(name, sizeof name, "lsh decode %lldx%lld, %lld keys", (long long)heads,
             (long long)past, (long long)most);
    row(name, run_lsh_decode, &x,
        4 * (double)heads * ((double)rounds * (double)past + 2 * (double)most * (double)d), 0);
}

static void hashings(void)
{
    for (int back = 0; back < 3; back++)
        if (small) hashing(1, 1, 64, 16, 16, 2, back);
        else hashing(1, 8, 16384, 64, 128, 2, back);
    if (small) hashing_decode(2, 100, 16, 2, 64);
    else hashing_decode(8, 65535, 64, 2, 512);
}
