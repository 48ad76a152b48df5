/*
 * bench_gpu.c -- each kernel of the GPU against its floor: the bytes that it must move over the
 * measured bandwidth of a copy, or its operations over the measured rate of a large product.
 *
 *   bench_gpu [fp32|bf16|fp16 ...] [--small]     --small: sizes on which the CPU can stand in
 *
 * The sizes are those of the GPT of 6 x 384 on 64 x 256 tokens.  A time is the median of some
 * calls, each by the GPU's clock and after another array was read, which leaves nothing of its data
 * in the cache and gives the host time to launch what is timed.  Numbers are random, as products of
 * equal ones take less power and are faster.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "autograd/cuda/cuda.h"
#include "bench.h"
#include "optim/optim.h"

enum { ROUNDS = 21, MAX_BUFFERS = 16 };
static const size_t COLD_BYTES = (size_t)256 << 20;      /* several times the cache of a GPU */

static const ag_device *device;
static const ag_kernels *k;
static bool small;
static double copy_rate, product_rate;           /* bytes, operations per second */
static void *buffer[MAX_BUFFERS];
static size_t buffer_bytes[MAX_BUFFERS];
static int buffers;
static float *cold;                  /* [COLD_BYTES] of zeros, read to fill the cache */

static void fail(const char *why)
{
    fprintf(stderr, "bench_gpu: %s\n", why);
    exit(1);
}

/* Device memory of n numbers of `size` bytes, zero; until release(). */
static void *room(int64_t n, size_t size)
{
    if (buffers == MAX_BUFFERS) fail("too many buffers");
    const size_t bytes = (size_t)n * size;
    void *p = ag_device_alloc(device, bytes);
    if (!p) fail("out of memory");
    buffer_bytes[buffers] = bytes;
    return buffer[buffers++] = p;
}

static void *reals(int64_t n)
{
    const ag_noise z = { .seed = 1, .step = 2, .site = (uint32_t)buffers };
    void *p = room(n, ag_dtype_size(k->dtype));
    k->normal(1, n, &z, p);
    k->scale(n, 0.1, p, p, false);
    return p;
}
static float *floats(int64_t n) { return room(n, sizeof(float)); }

static int32_t *indices(int64_t n, int32_t below)
{
    int32_t *host = malloc((size_t)n * sizeof *host), *p = room(n, sizeof *p);
    if (!host) fail("out of memory");
    uint32_t seed = 1;
    for (int64_t i = 0; i < n; i++) host[i] = (int32_t)((seed = seed * 1664525u + 1013904223u) >> 8)
                                              % below;
    device->write(p, host, (size_t)n * sizeof *p);
    free(host);
    return p;
}

static void release(void)
{
    device->wait();
    while (buffers--) ag_device_free(device, buffer[buffers], buffer_bytes[buffers]);
    buffers = 0;
}

typedef void work(const void *arg);

/* Median, least and greatest seconds. */
static void seconds_of(work *run, const void *arg, double ret[3])
{
    const int rounds = small ? 1 : ROUNDS;
    double t[ROUNDS];
    run(arg);
    for (int i = 0; i < rounds; i++) {
        if (cold) ag_kernels_cuda(AG_F32)->sum(COLD_BYTES / sizeof *cold, 1, cold, cold);
        ag_cuda_time_begin();
        run(arg);
        t[i] = ag_cuda_time_end();
    }
    const char *why = device->check();
    if (why) fail(why);
    ret[0] = bench_median(t, rounds);
    ret[1] = t[0];
    ret[2] = t[rounds - 1];
}

/* A row of the table: bytes moved at least, operations. */
static void row(const char *name, work *run, const void *arg, double bytes, double flops)
{
    double t[3];
    seconds_of(run, arg, t);
    const double by_bytes = bytes / copy_rate, by_flops = flops / product_rate;
    const bool bound = by_bytes >= by_flops;
    printf("%-5s %-34s %10.2f us (%.2f to %.2f)  %8.1f %s  %5.1f %% of its floor's rate\n",
           ag_dtype_name(k->dtype), name, 1e6 * t[0], 1e6 * t[1], 1e6 * t[2],
           bound ? 1e-9 * bytes / t[0] : 1e-12 * flops / t[0], bound ? "GB/s   " : "TFLOP/s",
           100 * (bound ? by_bytes : by_flops) / t[0]);
    release();
}

/* --- what is measured first ------------------------------------------------------------------- */

typedef struct copied { void *to, *from; size_t bytes; } copied;
static void run_copy(const void *arg)
{
    const copied *c = arg;
    device->copy(c->to, c->from, c->bytes);
}

static void run_gemm(const void *arg) { k->gemm(arg); }

static void measure(void)
{
    const int64_t n = small ? 1 << 12 : 1 << 28;
    const int64_t side = small ? 32 : k->dtype == AG_F32 ? 4096 : 8192;
    double t[3];
    copied c = { room(n, 4), room(n, 4), (size_t)n * 4 };
    seconds_of(run_copy, &c, t);
    copy_rate = t[0] > 0 ? 2.0 * (double)c.bytes / t[0] : 1;
    release();
    ag_gemm g = { .tb = true, .m = side, .n = side, .k = side, .a = reals(side * side), .lda = side,
                  .b = reals(side * side), .ldb = side, .c = reals(side * side), .ldc = side };
    seconds_of(run_gemm, &g, t);
    const double flops = 2.0 * (double)side * (double)side * (double)side;
    product_rate = t[0] > 0 ? flops / t[0] : 1;
    release();
    printf("%s: a copy of %.2f GB reads and writes %.1f GB/s; a product of %lld x %lld x %lld has "
           "%.1f TFLOP/s\n", ag_dtype_name(k->dtype), 1e-9 * 4.0 * (double)n, 1e-9 * copy_rate,
           (long long)side, (long long)side, (long long)side, 1e-12 * product_rate);
}

/* --- the kernels ------------------------------------------------------------------------------ */

typedef struct sizes { int64_t rows, d, ff, vocab, batch, t, heads; } sizes;
static sizes size_now(void)
{
    return small ? (sizes){ 32, 64, 128, 17, 2, 16, 2 }
                 : (sizes){ 16384, 384, 1536, 65, 64, 256, 6 };
}

typedef struct arrays { int64_t m, n; void *a[10]; const ag_noise *z; double p; int act; } arrays;
#define A(i) (((const arrays *)arg)->a[i])
#define M (((const arrays *)arg)->m)
#define N (((const arrays *)arg)->n)

static void run_gelu(const void *arg) { k->unary_fwd[AG_UNARY_gelu_tanh](M * N, A(0), A(1)); }
static void run_gelu_bwd(const void *arg)
{
    k->unary_bwd[AG_UNARY_gelu_tanh](M * N, A(0), A(1), A(2), A(3), false);
}
static void run_add(const void *arg) { k->add(M * N, A(0), A(1)); }
static void run_norm(const void *arg)
{
    k->layernorm_fwd(M, N, 1e-5, A(0), A(1), A(2), A(3), A(4), A(5));
}
static void run_norm_bwd(const void *arg)
{
    k->layernorm_bwd(M, N, A(0), A(1), A(2), A(3), A(4), A(5), false, A(6), A(7));
}
static void run_act_bwd(const void *arg)
{
    k->act_bwd(AG_ACT_GELU_TANH, M, N, A(0), A(1), A(2), A(3), true);
}
static void run_xent(const void *arg) { k->xent_fwd(M, N, A(0), A(1), A(2), A(3)); }
static void run_xent_bwd(const void *arg)
{
    k->xent_bwd(M, N, A(0), A(1), A(2), A(3), A(4), false);
}
static void run_softmax(const void *arg) { k->softmax_fwd(M, N, false, A(0), A(1)); }
static void run_draw(const void *arg)
{
    k->draw(&(ag_draw){ .temperature = 0.8, .top_k = 200, .top_p = 0.95, .u = 0.7 }, N, A(0), A(1));
}
static void run_dropout(const void *arg)
{
    const ag_noise z = { .seed = 1, .step = 2, .site = 3 };
    k->dropout_fwd(M, N, 0.2, &z, A(0), A(1), A(2));
}

static void rows_of(void)
{
    const sizes s = size_now();
    const double one = (double)ag_dtype_size(k->dtype), d = (double)(s.rows * s.d),
        f = (double)(s.rows * s.ff), v = (double)(s.rows * 50257 / (small ? 500 : 4));
    arrays x = { .m = s.rows, .n = s.ff, .a = { reals(s.rows * s.ff), reals(s.rows * s.ff) } };
    row("gelu", run_gelu, &x, 2 * f * one, 0);
    x = (arrays){ .m = s.rows, .n = s.ff, .a = { reals(s.rows * s.ff), reals(s.rows * s.ff),
                                                 reals(s.rows * s.ff), reals(s.rows * s.ff) } };
    row("gelu backward", run_gelu_bwd, &x, 3 * f * one, 0);   /* y is not used */
    x = (arrays){ .m = s.rows, .n = s.ff, .a = { reals(s.rows * s.ff), reals(s.rows * s.ff) } };
    row("add", run_add, &x, 3 * f * one, 0);
    x = (arrays){ .m = s.rows, .n = s.d, .a = { reals(s.rows * s.d), reals(s.d), reals(s.d),
                                                reals(s.rows * s.d), floats(s.rows),
                                                floats(s.rows) } };
    row("layer norm", run_norm, &x, 2 * d * one, 0);
    x = (arrays){ .m = s.rows, .n = s.d, .a = { reals(s.rows * s.d), reals(s.d), floats(s.rows),
                                                floats(s.rows), reals(s.rows * s.d),
                                                reals(s.rows * s.d), floats(s.d), floats(s.d) } };
    row("layer norm backward", run_norm_bwd, &x, 3 * d * one, 0);
    x = (arrays){ .m = s.rows, .n = s.ff, .a = { reals(s.rows * s.ff), reals(s.rows * s.ff),
                                                 reals(s.rows * s.ff), floats(s.ff) } };
    row("bias and gelu backward", run_act_bwd, &x, 3 * f * one, 0);
    x = (arrays){ .m = s.rows, .n = s.d, .a = { reals(s.rows * s.d), reals(s.rows * s.d),
                                                reals(s.rows * s.d) } };
    row("dropout and residual", run_dropout, &x, 3 * d * one, 0);
    x = (arrays){ .m = s.rows, .n = s.ff, .a = { reals(s.rows * s.ff), reals(s.rows * s.ff) } };
    row("softmax", run_softmax, &x, 2 * f * one, 0);
    x = (arrays){ .m = s.rows / (small ? 1 : 4), .n = small ? 100 : 50257 };
    x.a[0] = reals(x.m * x.n), x.a[1] = indices(x.m, (int32_t)x.n), x.a[2] = floats(x.m);
    x.a[3] = floats(1);
    row("cross-entropy, 50257 words", run_xent, &x, v * one, 0);
    x.a[0] = reals(x.m * x.n), x.a[1] = indices(x.m, (int32_t)x.n), x.a[2] = floats(x.m);
    x.a[3] = floats(1), x.a[4] = reals(x.m * x.n);
    row("cross-entropy backward", run_xent_bwd, &x, 2 * v * one, 0);
    x = (arrays){ .m = 1, .n = small ? 100 : 50257 };
    x.a[0] = reals(x.n), x.a[1] = room(1, sizeof(int32_t));
    row("a token of 50257", run_draw, &x, (double)x.n * one, 0);
}

typedef struct lookup { int64_t m, d, t, v; int32_t *ids; void *table, *pos, *y; } lookup;
static void run_lookup(const void *arg)
{
    const lookup *l = arg;
    k->embedding_fwd(l->m, l->d, l->ids, l->table, l->pos, l->t, 0, l->y);
}
static void run_lookup_bwd(const void *arg)
{
    const lookup *l = arg;
    k->embedding_bwd(l->m, l->v, l->d, l->ids, l->y, l->t, 0, l->table, l->pos);
}

static void embeddings(void)
{
    const sizes s = size_now();
    const int64_t vocab[] = { s.vocab, small ? 100 : 50257 };
    const double one = (double)ag_dtype_size(k->dtype), d = (double)(s.rows * s.d);
    char name[64];
    for (int i = 0; i < 2; i++) {
        /* of the tables: each row that is looked up once */
        const double n = (double)vocab[i], drawn = n * (1 - pow(1 - 1 / n, (double)s.rows)),
            seen = (drawn + (double)s.t) * (double)s.d;
        lookup l = { s.rows, s.d, s.t, vocab[i], indices(s.rows, (int32_t)vocab[i]),
                     reals(vocab[i] * s.d), reals(s.t * s.d), reals(s.rows * s.d) };
        snprintf(name, sizeof name, "embedding of %lld", (long long)vocab[i]);
        row(name, run_lookup, &l, (d + seen) * one, 0);
        l = (lookup){ s.rows, s.d, s.t, vocab[i], indices(s.rows, (int32_t)vocab[i]),
                      floats(vocab[i] * s.d), floats(s.t * s.d), reals(s.rows * s.d) };
        snprintf(name, sizeof name, "embedding of %lld backward", (long long)vocab[i]);
        row(name, run_lookup_bwd, &l, d * one + 2 * 4 * seen, 0);
    }
}

static void products(void)
{
    const sizes s = size_now();
    const struct { const char *name; int64_t m, n, k; bool ta, tb, f32; ag_act act; } p[] = {
        { "x W', 384 to 1152", s.rows, 3 * s.d, s.d, false, true, false, AG_ACT_NONE },
        { "x W' + b, gelu, 384 to 1536", s.rows, s.ff, s.d, false, true, false, AG_ACT_GELU_TANH },
        { "x W', 1536 to 384", s.rows, s.d, s.ff, false, true, false, AG_ACT_NONE },
        { "dy W, 1536 to 384", s.rows, s.d, s.ff, false, false, false, AG_ACT_NONE },
        { "dy' x, 1536 x 384 of 16384", s.ff, s.d, s.rows, true, false, true, AG_ACT_NONE },
    };
    for (size_t i = 0; i < sizeof p / sizeof *p; i++) {
        const int64_t m = p[i].m, n = p[i].n, kk = p[i].k;
        ag_gemm g = { .ta = p[i].ta, .tb = p[i].tb, .m = m, .n = n, .k = kk, .a = reals(m * kk),
                      .lda = p[i].ta ? m : kk, .b = reals(n * kk), .ldb = p[i].tb ? kk : n,
                      .ldc = n, .act = p[i].act, .c_f32 = p[i].f32 && k->dtype != AG_F32 };
        g.c = p[i].f32 ? floats(m * n) : reals(m * n);
        if (p[i].act) g.bias = reals(n), g.pre = reals(m * n);
        row(p[i].name, run_gemm, &g,
            (double)ag_dtype_size(k->dtype) * (double)(m * kk + n * kk + m * n),
            2.0 * (double)m * (double)n * (double)kk);
    }
}

#include "bench_gpu_attention.h"

#include "bench_gpu_lsh.h"

typedef struct chosen { ag_chooser c; int32_t *choice; void *gate, *scratch, *dlow, *dc2; } chosen;
static void run_choose(const void *arg)
{
    const chosen *x = arg;
    k->choose_fwd(&x->c, x->choice, x->gate, x->scratch);
}
static void run_choose_bwd(const void *arg)
{
    const chosen *x = arg;
    k->choose_bwd(&x->c, x->choice, x->gate, x->dlow, false, x->dc2, NULL, x->scratch);
}
typedef struct lived { ag_live l; void *x, *w, *a, *y; } lived;
static void run_dot(const void *arg)
{
    const lived *v = arg;
    k->live_dot(&v->l, v->x, v->w, NULL, v->a);
}
static void run_sum(const void *arg)
{
    const lived *v = arg;
    k->live_sum(&v->l, v->a, v->w, NULL, NULL, v->y, false);
}
static void run_grad(const void *arg)
{
    const lived *v = arg;
    k->live_grad(&v->l, v->a, v->x, v->w, NULL);
}

/* The sparse feed-forward layer, one unit in 64 of 1536 (few rows: one of d_ff 16384), or one of
 * four experts. */
static void sparse(int64_t rows, int64_t d, int64_t ff, int64_t n, int64_t width)
{
    const int64_t blocks = ff / n / width, units = blocks * n, rank = small ? 8 : 64;
    const double one = (double)ag_dtype_size(k->dtype), live = (double)(rows * blocks * width),
        rd = (double)(rows * d);
    char name[96];
    chosen x = { .c = { .c = { .rows = rows, .blocks = blocks, .n = n, .temperature = 0.1 },
                        .rank = rank, .low = reals(rows * rank), .c2 = reals(rank * units),
                        .picks = 1 } };
    x.choice = room(rows * blocks, 4), x.gate = reals(rows * blocks);
    x.scratch = room((int64_t)ag_choose_scratch(&x.c, k->dtype) + 1, 1);
    snprintf(name, sizeof name, "choose 1 in %lld of %lld, %lld rows", (long long)n,
             (long long)units, (long long)rows);
    row(name, run_choose, &x, one * (double)(rows * rank + rank * units) + 4 * live,
        2.0 * (double)(rows * rank) * (double)units);
    x.c.low = reals(rows * rank), x.c.c2 = reals(rank * units);
    x.choice = indices(rows * blocks, (int32_t)n), x.gate = reals(rows * blocks);
    x.scratch = room((int64_t)ag_choose_scratch(&x.c, k->dtype) + 1, 1);
    x.dlow = reals(rows * rank), x.dc2 = floats(rank * units);
    snprintf(name, sizeof name, "choose backward, %lld rows", (long long)rows);
    row(name, run_choose_bwd, &x, one * (double)(2 * rows * rank + 2 * rank * units) + 4 * live,
        6.0 * (double)(rows * rank) * (double)units);
    work *const run[] = { run_dot, run_sum, run_grad };
    const char *const names[] = { "live dot", "live sum", "live gradient" };
    for (int i = 0; i < (rows > 16 ? 3 : 2); i++) {
        lived v = { .l = { rows, d, blocks, n, width, 1, indices(rows * blocks, (int32_t)n) },
                    .x = reals(rows * d), .a = reals(rows * blocks * width), .y = reals(rows * d) };
        v.w = i == 2 ? (void *)floats(ff * d) : reals(ff * d);
        snprintf(name, sizeof name, "%s of %lld, %lld rows, d %lld", names[i], (long long)width,
                 (long long)rows, (long long)d);
        const double weights = rows > 16 ? (double)(ff * d) : live * (double)d;
        row(name, run[i], &v, one * (rd + live) + weights * (i == 2 ? 8 : one),
            2 * live * (double)d);
    }
}

static void run_sru_fwd(const void *arg)
{
    k->sru_fwd(M, N, 32, A(0), A(1), NULL, A(2), A(3));
}

static void run_sru_bwd(const void *arg)
{
    k->sru_bwd(M, N, 32, A(0), A(1), A(2), A(3), A(4), false, A(5), false);
}

/* 32 units, as in Terraformer. */
static void scans(void)
{
    const int64_t b = small ? 2 : 64, t = small ? 9 : 256, n = b * t * 32;
    arrays f = { .m = b, .n = t, .a = { reals(3 * n), reals(n), floats(n), floats(n) } };
    row("SRU, 32 units", run_sru_fwd, &f, 4 * 6 * (double)n, 0);
    arrays g = { .m = b, .n = t, .a = { reals(3 * n), reals(n), reals(n), reals(n), floats(3 * n),
                                        floats(n) } };
    row("SRU backward", run_sru_bwd, &g, 4 * 10 * (double)n, 0);
}

static void run_adam(const void *arg)
{
    const arrays *x = arg;
    const ag_adam a = { .clip = 1, .beta1 = 0.9f, .beta2 = 0.999f, .keep1 = 0.1f, .keep2 = 0.001f,
                        .rate = 1e-3f, .root = 1, .eps = 1e-8f, .shrink = 1 };
    const ag_flat_gate gate = { .square = x->a[4], .unscale = 1, .most = 1e19 };
    device->flat.square_sum(x->n, x->a[1], x->a[4]);
    device->flat.adam(&a, &gate, x->m, x->a[5], x->a[0], x->a[1], x->a[2], x->a[3], NULL, 0, 0);
}

static void optimizer(void)
{
    const int64_t n = small ? 8192 : 1 << 26, part = 4096, parts = n / part;
    ag_flat_part *host = malloc((size_t)parts * sizeof *host);
    if (!host) fail("out of memory");
    for (int64_t i = 0; i < parts; i++) host[i] = (ag_flat_part){ i * part, part, i % 2 == 0 };
    arrays x = { .m = parts, .n = n, .a = { floats(n), floats(n), floats(n), floats(n),
                                            room(1, sizeof(double)), room(parts, sizeof *host) } };
    device->write(x.a[5], host, (size_t)parts * sizeof *host);
    free(host);
    row("norm and AdamW", run_adam, &x, 4 * 9 * (double)n, 0);
}

static void run_adafactor(const void *arg)
{
    ag_err err = { 0 };
    if (opt_step(A(2), 1e-3, 1, A(0), A(1), NULL, &err)) fail(err.msg);
}

/* The gradient is read for its norm, its squares, the size of the update, the update. */
static void factored(void)
{
    const int64_t rows = small ? 130 : 2048, n = 4 * rows * rows;
    const opt_config c = { .type = OPT_ADAFACTOR, .decay_rate = 0.8, .eps1 = 1e-30, .eps2 = 1e-3,
                           .clip_threshold = 1, .parameter_scale = true };
    const opt_range r = { .count = n, .rows = rows, .cols = rows };
    opt_state *o;
    ag_err err = { 0 };
    if (opt_new(&c, device, n, &r, 1, &o, &err)) fail(err.msg);
    arrays x = { .a = { reals(n), reals(n), o } };
    row("norm and Adafactor", run_adafactor, &x, 4 * 8 * (double)n, 0);
    opt_free(o);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; ag_dtype dtype; } types[] = {
        { "fp32", AG_F32 }, { "bf16", AG_BF16 }, { "fp16", AG_F16 } };
    ag_err err = { 0 };
    size_t total, unused;
    char about[256];
    bool named = false;
    for (int i = 1; i < argc; i++) small |= !strcmp(argv[i], "--small");
    if (ag_cuda_open(&device, &err) < 0) fail(err.msg);
    device->about(about, sizeof about, &total, &unused);
    printf("%s\n", about);
    if (!small && !(cold = ag_device_alloc(device, COLD_BYTES))) fail("out of memory");
    for (int i = 1; i < argc; i++) named |= argv[i][0] != '-';
    for (int t = 0; t < 3; t++) {
        bool wanted = !named;
        for (int i = 1; i < argc; i++) wanted |= !strcmp(argv[i], types[t].name);
        if (!wanted) continue;
        k = ag_kernels_cuda(types[t].dtype);
        measure();
        rows_of();
        embeddings();
        products();
        attentions();
        sparse(small ? 32 : 16384, small ? 64 : 384, small ? 128 : 1536, small ? 16 : 64, 1);
        sparse(small ? 64 : 16384, small ? 64 : 384, small ? 128 : 1536, 4, small ? 32 : 384);
        sparse(1, small ? 64 : 4096, small ? 128 : 16384, small ? 16 : 64, 1);
        if (types[t].dtype != AG_F32) continue;
        hashings();
        scans();
        optimizer();
        factored();
    }
    printf("%ld products were refused by cuBLASLt\n", ag_cuda_refused_products());
    ag_device_free(device, cold, COLD_BYTES);
    ag_cuda_close();
    return 0;
}
