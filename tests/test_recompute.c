/*
 * test_recompute.c -- plans of recomputation: the same bits under every plan, of a gpt, with
 * dense attention and with patterns, and of an encoder-decoder, and the planner against schedules
 * that are known or enumerated.
 */
#include "layers/layers.h"
#include "tests/threads.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LAYERS = 8, ENCODER = 3, BATCH = 2, CONTEXT = 12, SOURCE = 9, VOCAB = 11, D_MODEL = 16,
       SEED = 3 };
enum { GPT, SPARSE_GPT, TRANSFORMER, SPARSE_TRANSFORMER, PATTERN_GPT, KINDS };

/* Dropout everywhere, a controller with Gumbel noise, hard and soft steps of it; of LAYERS blocks,
 * ENCODER of them in the encoder, if any. */
static nn_model *model_new(int kind)
{
    const bool sparse = kind % 2, pairs = kind == TRANSFORMER || kind == SPARSE_TRANSFORMER;
    nn_gpt_config c = { .vocab = VOCAB, .context = CONTEXT, .n_layers = LAYERS, .n_heads = 2,
                        .d_model = D_MODEL, .bias = true, .tied = true, .dropout = 0.1,
                        .embedding_dropout = 0.1, .init_std = 0.2, .norm_eps = 1e-5,
                        .ff = { .d_ff = 32, .act = AG_ACT_GELU_TANH, .bias_in = true,
                                .bias_out = true, .dropout = 0.1 } };
    if (sparse) {
        c.ff.kind = NN_FF_SPARSE;
        c.ff.block = 4;
        c.ff.quant_prob = 0.5;
        c.ff.temperature = 0.7;
        c.ff.controller_bias = c.ff.relaxed = true;
    }
    if (kind == PATTERN_GPT) {
        c.pattern = "strided(5)*2; local(4); fixed(4, 1)|local(3)+summary(4, 1); dense";
        c.attention.keep_weights = true;
    }
    nn_model *m = NULL;
    ag_err err = { 0 };
    if (pairs) {
        c.n_layers = LAYERS - ENCODER;
        c.bias = false;              /* that of a key has no gradient */
        if (sparse) c.attention = (nn_attention_config){ .type = NN_MAP_MULTCONV };
        const nn_transformer_config x = { .decoder = c, .n_encoder_layers = ENCODER,
                                          .source = SOURCE };
        if (nn_transformer_new(&x, AG_F32, SEED, &m, &err)) fail_msg("%s", err.msg);
    } else if (nn_gpt_new(&c, AG_F32, SEED, &m, &err)) {
        fail_msg("%s", err.msg);
    }
    assert_int_equal(nn_params_grads(m->params, &err), AG_OK);
    assert_int_equal(nn_blocks_count(m->stack), LAYERS);
    return m;
}

typedef struct step { float loss; size_t peak, grads; int64_t flops; } step;

/* Two micro-batches; the gradients stay in the parameters. */
static step run_step(nn_model *m, nn_recompute *r, bool plan)
{
    ag_tape *t = ag_tape_new(ag_kernels_best(AG_F32, &(const char *){ NULL }));
    step s = { 0 };
    assert_non_null(t);
    nn_params_zero_grad(m->params);
    ag_tape_plan(t, plan);
    m->recompute = r;
    for (int part = 0; part < 2; part++) {
        int32_t ids[BATCH * (SOURCE + CONTEXT)], y[BATCH * CONTEXT];
        const int64_t columns = m->source + CONTEXT;
        for (int i = 0; i < BATCH * columns; i++) ids[i] = (7 * i + 3 * part) % VOCAB;
        for (int i = 0; i < BATCH * CONTEXT; i++) y[i] = (5 * i + 1) % VOCAB;
        for (int i = 0; i < m->source; i++)      /* the second source is shorter */
            ids[columns + i] = i < SOURCE - 3 ? 1 + ids[columns + i] % (VOCAB - 1) : 0;
        ag_tape_reset(t);
        ag_tape_noise(t, &(ag_noise_key){ SEED, 4, part * BATCH, BATCH });
        ag_tensor *loss = nn_model_loss(m, t, ag_input_i32(t, AG_SHAPE(BATCH, columns), ids),
                                        ag_input_i32(t, AG_SHAPE(BATCH, CONTEXT), y), NN_TRAIN);
        const double before = ag_error(t) || plan ? 0 : ag_value(t, loss, 0);
        if (ag_backward(t, loss, 0.5)) fail_msg("%s", ag_error_message(t));
        if (plan) continue;
        s.loss += (float)ag_value(t, loss, 0);           /* segments forgot what was around it */
        assert_true(ag_value(t, loss, 0) == before);
    }
    m->recompute = NULL;
    s.peak = ag_tape_bytes(t).peak;
    s.grads = ag_tape_bytes(t).grads;
    s.flops = ag_tape_bytes(t).flops;
    ag_tape_free(t);
    return s;
}

typedef struct kept { step s; float *grads; size_t bytes; } kept;

static kept keep_all(nn_model *m)
{
    kept k = { run_step(m, NULL, false), NULL, (size_t)m->params->n * sizeof(float) };
    k.grads = malloc(k.bytes);
    assert_non_null(k.grads);
    memcpy(k.grads, m->params->grads, k.bytes);
    for (int i = 0; i < m->params->n_items; i++) {       /* a test that cannot see is none */
        const nn_item *p = &m->params->items[i];
        float sum = 0;
        for (int64_t j = 0; j < p->count; j++) sum += fabsf(k.grads[p->offset + j]);
        if (!(sum > 0)) fail_msg("%s has no gradient", p->name);
    }
    return k;
}

/* Frees r. */
static step same_bits(nn_model *m, const kept *k, nn_recompute *r)
{
    assert_non_null(r);
    char text[512];
    const step s = run_step(m, r, false);
    if (s.loss != k->s.loss || memcmp(k->grads, m->params->grads, k->bytes))
        fail_msg("other bits with %s", nn_recompute_text(r, text, sizeof text));
    const step p = run_step(m, r, true);
    assert_int_equal(p.peak, s.peak);
    assert_int_equal(p.flops, s.flops);
    nn_recompute_free(r);
    return s;
}

/* Cuts between blocks i and i + 1 where bit i is set, and between stacks. */
static nn_recompute *cut(const nn_model *m, int bits, ag_keep keep)
{
    nn_recompute *r = nn_recompute_new(m->stack, keep, 0);
    if (m->source) bits |= 1 << (ENCODER - 1);
    assert_non_null(r);
    for (int i = 0, begin = 0; i < LAYERS; i++)
        if (i == LAYERS - 1 || bits >> i & 1) {
            assert_int_equal(nn_recompute_add(r, begin, i + 1), AG_OK);
            begin = i + 1;
        }
    return r;
}

static void all_segmentations(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        nn_model *m = model_new(kind);
        kept k = keep_all(m);
        for (int bits = 0; bits < 1 << (LAYERS - 1); bits++)
            for (int keep = 0; keep < (bits % 16 ? 1 : AG_KEEPS); keep++)
                same_bits(m, &k, cut(m, bits, (ag_keep)keep));
        free(k.grads);
        nn_model_free(m);
    }
}

static void amounts_and_nests(void **state)
{
    (void)state;
    static const nn_segment nests[2][6] = {
        { { 0, 8 }, { 0, 5 }, { 1, 4 }, { 2, 3 }, { 6, 8 }, { 5, 6 } },
        { { 3, 8 }, { 0, 3 }, { 4, 7 }, { 1, 3 }, { 4, 6 }, { 2, 3 } },
    };
    for (int threads = 1; threads <= 3; threads++) {
        set_threads(threads);
        for (int kind = 0; kind < KINDS; kind++) {
            nn_model *m = model_new(kind);
            const nn_segment *nest = nests[m->source > 0];
            kept k = keep_all(m);
            size_t peak = k.s.peak;
            for (int keep = AG_KEEP_PRODUCTS; keep < AG_KEEPS; keep++) {
                const step s = same_bits(m, &k, nn_recompute_new(m->stack, (ag_keep)keep, 0));
                assert_true(s.peak < peak);
                peak = s.peak;
            }
            assert_true(same_bits(m, &k, nn_recompute_new(m->stack, AG_KEEP_ALL, 1)).peak < peak);
            same_bits(m, &k, nn_recompute_new(m->stack, AG_KEEP_ALL, 2));
            nn_recompute *r = nn_recompute_new(m->stack, AG_KEEP_ALL, 0);
            for (int i = 0; i < LAYERS; i++) r->keep[i] = (ag_keep)(i % AG_KEEPS);
            for (int i = 0; i < 6; i++)
                assert_int_equal(nn_recompute_add(r, nest[i].begin, nest[i].end), AG_OK);
            same_bits(m, &k, r);
            free(k.grads);
            nn_model_free(m);
        }
    }
    set_threads(1);
}

static void segments_nest_or_are_refused(void **state)
{
    (void)state;
    const nn_blocks one[NN_STACKS] = { { "layers", 8 } },
        two[NN_STACKS] = { { "encoder", 3 }, { "decoder", 5 } };
    nn_recompute *r = nn_recompute_new(one, AG_KEEP_ALL, 0);
    assert_int_equal(nn_recompute_add(r, 2, 5), AG_OK);
    assert_int_equal(nn_recompute_add(r, 4, 6), AG_ERANGE);
    assert_int_equal(nn_recompute_add(r, 2, 5), AG_ERANGE);
    assert_int_equal(nn_recompute_add(r, 3, 3), AG_ERANGE);
    assert_int_equal(nn_recompute_add(r, 0, 9), AG_ERANGE);
    assert_int_equal(nn_recompute_add(r, 2, 3), AG_OK);
    assert_int_equal(nn_recompute_add(r, 2, 8), AG_OK);
    static const nn_segment want[] = { { 2, 8 }, { 2, 5 }, { 2, 3 } };
    assert_int_equal(r->n_segments, 3);
    assert_memory_equal(r->segment, want, sizeof want);
    nn_recompute_free(r);
    static const nn_segment groups[] = { { 0, 2 }, { 2, 3 }, { 3, 5 }, { 5, 7 }, { 7, 8 } };
    char text[256];
    r = nn_recompute_new(two, AG_KEEP_PRODUCTS, 2);
    assert_int_equal(r->n_segments, 5);
    assert_memory_equal(r->segment, groups, sizeof groups);
    r->n_segments = 3;
    assert_int_equal(nn_recompute_add(r, 0, 8), AG_ERANGE);
    assert_int_equal(nn_recompute_add(r, 2, 4), AG_ERANGE);
    assert_int_equal(nn_recompute_add(r, 0, 3), AG_OK);
    assert_string_equal(nn_recompute_text(r, text, sizeof text),
                        "encoder 0-2 recomputed 2 times, products; decoder 0-1 recomputed 1 time, "
                        "products, 2-4 kept: products");
    nn_recompute_free(r);
}

/* --- the planner ------------------------------------------------------------------------------ */

/* Binomial schedules, Griewank and Walther 2000: forward steps for n steps and s snapshots, the
 * input's counted.  t(n, s) = r n - beta(s + 1, r - 1), beta(s, r) = (s + r)! / (s! r!) >= n. */
static double beta(int s, int r)
{
    double b = 1;
    for (int i = 1; i <= r; i++) b = b * (s + i) / i;
    return round(b);
}

static double binomial(int n, int s)
{
    int r = 0;
    while (beta(s, r) < n) r++;
    return r ? r * (double)n - beta(s + 1, r - 1) : 0;
}

/* The same by trying: the first snapshot after the input lies at k. */
static double tried(int n, int s, double (*memo)[9])
{
    if (n == 1) return 0;
    if (s == 1) return 0.5 * n * (n - 1);
    if (memo[n][s] > 0) return memo[n][s];
    double best = INFINITY;
    for (int k = 1; k < n; k++)
        best = fmin(best, k + tried(n - k, s - 1, memo) + tried(k, s, memo));
    return memo[n][s] = best;
}

/* Blocks whose outputs take a slot, recorded one at a time: what is left are forward steps. */
static void equals_the_binomial_schedule(void **state)
{
    (void)state;
    enum { RECORDED = 100 };         /* slots: there is room for one */
    static double memo[41][9];
    for (int n = 2; n < 40; n++) {
        nn_block_cost *block = calloc((size_t)n, sizeof *block);
        for (int i = 0; i < n; i++) {
            block[i] = (nn_block_cost){ .output = 1, .work = 1 };
            for (int k = 0; k < AG_KEEPS; k++) {
                block[i].kept[k] = k ? 1e6 : RECORDED;
                block[i].unread[k] = 1;
            }
        }
        for (int s = 2; s <= 8; s++) {
            assert_true(binomial(n, s) == tried(n, s, memo));
            /* a recorded block's input takes the slot that the chain's own does not */
            const nn_stacks_cost c = { .stack = { { "blocks", n } }, .block = block };
            nn_recompute *r = NULL;
            double extra;
            ag_err err = { 0 };
            assert_int_equal(nn_recompute_plan(&c, s + RECORDED, s + RECORDED, &r, &extra, &err),
                             AG_OK);
            nn_recompute_free(r);
            /* forward steps of the first pass are no extra work, the last one is recorded there */
            if (extra != binomial(n, s) - (n - 1))
                fail_msg("n %d s %d: %g extra, binomial %g", n, s, extra, binomial(n, s) - (n - 1));
        }
        free(block);
    }
}

/* Work and highest memory of a schedule, by walking through it. */
typedef struct walk { const nn_stacks_cost *c; const nn_recompute *r; double most, work; } walk;

static void hold(walk *w, double bytes) { w->most = fmax(w->most, bytes); }

/* Records and walks back over begin .. end - 1 on top of `base` bytes; with `tail` bytes behind. */
static void record(walk *w, int begin, int end, int at, double base, double tail, bool top)
{
    double used = base;
    struct { int begin, end, at; double base; } segment[16];
    int n = 0;
    for (int i = begin; i < end; ) {
        const nn_block_cost *b = &w->c->block[i];
        for (int k = 0, first = 0; top && k < NN_STACKS; first += w->c->stack[k++].n)
            if (i == first) hold(w, used += w->c->before[k]);
        int s = at;
        while (s < w->r->n_segments && w->r->segment[s].begin < i) s++;
        if (s < w->r->n_segments && w->r->segment[s].begin == i && w->r->segment[s].end <= end) {
            const int e = w->r->segment[s].end;
            double most = 0;
            for (int k = i; k < e; k++) {
                if (top || e < end) w->work += w->c->block[k].work;
                most = fmax(most, w->c->block[k].transient);
            }
            segment[n].begin = i, segment[n].end = e, segment[n].at = at = s + 1;
            segment[n++].base = used;
            used += w->c->block[e - 1].output;
            hold(w, used + most + (e - i > 1 ? b->output : 0));
            i = e;
            continue;
        }
        const ag_keep k = w->r->keep[i];
        hold(w, used + b->kept[k] + b->room[k]);
        used += b->kept[k];
        w->work += b->work + b->again[k] - (!top && i == end - 1 ? b->unread[k] : 0);
        i++;
    }
    hold(w, used + tail);
    while (n-- > 0)
        record(w, segment[n].begin, segment[n].end, segment[n].at, segment[n].base, 0, false);
}

/* Least work of all properly nested plans, with all amounts, that stay within the bytes. */
static void best_of_all(const nn_stacks_cost *c, double bytes, double *best)
{
    enum { N = 4, RANGES = N * (N + 1) / 2 };
    nn_segment range[RANGES];
    int n = 0;
    for (int b = 0; b < N; b++)
        for (int e = N; e > b; e--) range[n++] = (nn_segment){ b, e };
    for (int set = 0; set < 1 << RANGES; set++) {
        nn_recompute *r = nn_recompute_new(c->stack, AG_KEEP_ALL, 0);
        bool nested = true;
        for (int i = 0; i < RANGES && nested; i++)
            if (set >> i & 1)
                nested = r->n_segments < 2 * N - 1 &&
                         !nn_recompute_add(r, range[i].begin, range[i].end);
        for (int keep = 0; nested && keep < 81; keep++) {
            for (int i = 0, k = keep; i < N; i++, k /= 3) r->keep[i] = (ag_keep)(k % 3);
            walk w = { c, r, 0, 0 };
            record(&w, 0, N, 0, 0, c->end, true);
            if (w.most <= bytes) *best = fmin(*best, w.work);
        }
        nn_recompute_free(r);
    }
}

static void equals_exhaustive_search(void **state)
{
    (void)state;
    enum { N = 4 };
    uint32_t seed = 1;
    int fits = 0;
    for (int trial = 0; trial < 10; trial++) {
        nn_block_cost block[N];
        double once = 0;
        memset(block, 0, sizeof block);
        for (int i = 0; i < N; i++) {
            double v[12];
            for (int j = 0; j < 12; j++) {
                seed = seed * 1664525u + 1013904223u;
                v[j] = 1 + (double)(seed >> 29);
            }
            block[i] = (nn_block_cost){ .output = v[0], .work = 10 + v[1], .transient = 6 + v[2] };
            if (trial % 3 == 0 && i) block[i] = block[0];
            else for (int k = 0; k < AG_KEEPS; k++) {
                block[i].kept[k] = v[0] + 14 - 6 * k;
                block[i].room[k] = v[3 + k];
                block[i].again[k] = 3 * k * v[6];
                block[i].unread[k] = v[7];
            }
            once += block[i].work;
        }
        const int first = trial < 4 ? N : 1 + trial % 3;     /* then two stacks */
        const nn_stacks_cost c = { .stack = { { "a", first }, { "b", N - first } }, .block = block,
                                   .before = { trial % 2 ? 4 : 0, 3 }, .end = 9 };
        for (int bytes = 20; bytes <= 80; bytes += 15) {
            double best = INFINITY, extra = 0;
            nn_recompute *r = NULL;
            ag_err err = { 0 };
            best_of_all(&c, bytes, &best);
            const int code = nn_recompute_plan(&c, bytes, bytes, &r, &extra, &err);
            assert_int_equal(code, isinf(best) ? AG_ERANGE : AG_OK);
            if (code) continue;
            walk w = { &c, r, 0, 0 };
            record(&w, 0, N, 0, 0, c.end, true);
            assert_true(w.most <= bytes && fabs(w.work - best) < 1e-3);
            assert_true(fabs(extra - (best - once)) < 1e-3);
            nn_recompute_free(r);
            fits++;
        }
    }
    assert_true(fits > 8);
}

/* The planner on what it measured of a model: gradients come on top of what it counts, and little
 * else. */
static void plans_within_bytes(void **state)
{
    (void)state;
    static const double shares[] = { 0.8, 0.6, 0.45 };
    for (int kind = 0; kind < KINDS; kind++) {
        nn_model *m = model_new(kind);
        kept k = keep_all(m);
        nn_block_cost block[LAYERS];
        nn_stacks_cost c = { .block = block };
        memcpy(c.stack, m->stack, sizeof c.stack);
        nn_recompute *r = nn_recompute_new(m->stack, AG_KEEP_ALL, 0);
        r->measure = &c;
        const double all = (double)(k.s.peak - k.s.grads);
        assert_int_equal(run_step(m, r, true).peak, k.s.peak);
        nn_recompute_free(r);
        c.end = all - c.end;
        assert_true(c.end > 0 && c.before[0] > 0 && (c.before[1] > 0) == (m->source > 0));
        if (kind == TRANSFORMER)     /* by cross-attention three tensors more, without queries,
                                      * keys and values */
            assert_true(block[ENCODER].kept[AG_KEEP_BRANCHES] <
                        block[0].kept[AG_KEEP_BRANCHES] * CONTEXT / SOURCE +
                        4 * BATCH * CONTEXT * D_MODEL * sizeof(float));
        double before = all;
        for (int i = 0; i < 3; i++) {
            ag_err err = { 0 };
            if (nn_recompute_plan(&c, shares[i] * all, 0, &r, NULL, &err)) fail_msg("%s", err.msg);
            const step s = same_bits(m, &k, r);
            const double data = (double)(s.peak - s.grads);
            assert_true(data < before);
            if (!(kind % 2)) assert_true(data <= 1.03 * shares[i] * all);    /* no coin differs */
            before = data;
        }
        free(k.grads);
        nn_model_free(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_segmentations),
        cmocka_unit_test(amounts_and_nests),
        cmocka_unit_test(segments_nest_or_are_refused),
        cmocka_unit_test(equals_the_binomial_schedule),
        cmocka_unit_test(equals_exhaustive_search),
        cmocka_unit_test(plans_within_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
