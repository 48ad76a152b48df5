/*
 * bench_gpu_attention.h -- the rows of attention in bench_gpu.c, which includes this: dense, and
 * under the patterns of Sparse Transformers.
 */
#ifndef BENCH_GPU_ATTENTION_H
#define BENCH_GPU_ATTENTION_H

typedef struct attended { ag_attention a; ag_attention_grad g; } attended;
static void run_attention(const void *arg) { k->attention_fwd(&((const attended *)arg)->a); }
static void run_attention_bwd(const void *arg)
{
    const attended *x = arg;
    k->attention_bwd(&x->a, &x->g);
}

/* shown: the pattern of keys, called `kind`; NULL: causal. */
static void attention_under(const ag_pattern *shown, const char *kind, int64_t batch, int64_t heads,
                            int64_t tq, int64_t t, int64_t d, bool back)
{
    const int64_t w = heads * d, n = batch * t * w, q = batch * tq * w;
    attended x = { .a = { .batch = batch, .heads = heads, .tq = tq, .tk = t, .d_qk = d, .d_v = d,
                          .causal = true, .q_pos0 = t - tq, .pattern = shown,
                          .scale = 0.125, .q = reals(q),
                          .q_row = w, .q_batch = tq * w, .k = reals(n), .k_row = w,
                          .k_batch = t * w, .v = reals(n), .v_row = w,
                          .v_batch = t * w, .o = reals(q), .o_row = w,
                          .o_batch = tq * w, .lse = floats(batch * heads * tq) } };
    if (back)
        x.g = (ag_attention_grad){ .do_ = reals(q), .dq = reals(q), .dk = reals(n), .dv = reals(n),
                                   .delta = floats(batch * heads * tq) };
    char name[96];
    const double read = shown && tq == 1         /* numbers of keys that must be read */
        ? (double)(batch * w) * (double)ag_pattern_pairs(shown, 0, t - tq, t, t) : (double)n;
    const double all = (double)tq * (double)t * (tq == t ? 0.5 : 1),
        pairs = (double)(batch * heads) *
                (shown ? (double)ag_pattern_pairs(shown, 0, t - tq, t, t) : all),
        one = (double)ag_dtype_size(k->dtype);
    snprintf(name, sizeof name, "attention%s%s %lldx%lldx%lld on %lld, %lld",
             back ? " backward" : "", kind, (long long)batch, (long long)heads, (long long)tq,
             (long long)t, (long long)d);
    row(name, back ? run_attention_bwd : run_attention, &x,
        one * 2 * (read + (double)q) * (back ? 2 : 1), pairs * (double)d * (back ? 10 : 4));
}

static void attention(int64_t batch, int64_t heads, int64_t tq, int64_t t, int64_t d, bool back)
{
    attention_under(NULL, "", batch, heads, tq, t, d, back);
}

/* The patterns of 1904.10509 with stride l, c = 8 of its keys, on n positions: all, then a token of
 * decoding.  The row without a kind is the dense one. */
static void attentions_under(int64_t n, int64_t l, int64_t heads, int64_t d)
{
    const ag_factor local = { .kind = AG_FACTOR_LOCAL, .stride = l },
        strided = { .kind = AG_FACTOR_STRIDED, .stride = l },
        chunk = { .kind = AG_FACTOR_CHUNK, .stride = l },
        summary = { .kind = AG_FACTOR_SUMMARY, .stride = l, .width = 8 };
    const struct { const char *kind; ag_pattern_layout layout; } patterns[] = {
        { " local", { .n_factors = 1, .factor = { local } } },
        { " strided", { .n_factors = 1, .factor = { strided } } },
        { " local+strided", { .n_factors = 2, .factor = { local, strided } } },
        { " fixed", { .n_factors = 2, .factor = { chunk, summary } } },
    };
    attention(1, heads, n, n, d, false);
    attention(1, heads, n, n, d, true);
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        ag_pattern *p = NULL;
        ag_err err = { 0 };
        if (ag_pattern_new(&p, n, 1, &patterns[i].layout, &err) < 0) {
            fprintf(stderr, "%s\n", err.msg);
            return;
        }
        attention_under(p, patterns[i].kind, 1, heads, n, n, d, false);
        attention_under(p, patterns[i].kind, 1, heads, n, n, d, true);
        attention_under(p, patterns[i].kind, 1, heads, 1, n, d, false);
        ag_pattern_free(p);
    }
}

static void attentions(void)
{
    if (small) {
        attention(1, 2, 16, 16, 32, false);
        attention(1, 2, 16, 16, 32, true);
        attentions_under(72, 16, 1, 32);
        return;
    }
    attention(64, 6, 256, 256, 64, false);
    attention(64, 6, 256, 256, 64, true);
    attention(1, 16, 4096, 4096, 128, false);
    attention(1, 16, 4096, 4096, 128, true);
    attention(1, 16, 1, 65536, 128, false);      /* a token of decoding */
    attentions_under(4096, 64, 16, 64);
    attentions_under(12288, 128, 16, 64);
}

#endif
