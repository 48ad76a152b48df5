/*
 * test_lsh.c -- attention by hashing: against the released algorithm written out anew (sort,
 * chunks, weights of rounds), against full attention where one chunk holds all, to the bit against
 * what is later; the hash, the sort, decoding against its rule, the layer in a model.
 */
#include "tests/layer_check.h"

#include "autograd/cpu/lsh.h"
#include "autograd/op.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { B = 2, H = 2, D = 3, DV = 5, MOST = 40 };

static ag_lsh_options options(int64_t rounds, int64_t chunk, int64_t buckets, bool causal)
{
    return (ag_lsh_options){ .heads = H, .d_qk = D, .d_v = DV, .rounds = rounds,
                             .factor = { buckets, 1 }, .chunk = chunk, .before = 1,
                             .after = !causal, .causal = causal, .site = 3, .drop_site = 4 };
}

/* --- the released algorithm, one head --------------------------------------------------------- */

typedef struct head { double q[MOST][D], v[MOST][DV], o[MOST][DV]; } head;

static double key_dot(const double *q, const double *k)
{
    double s = 0, m = 0;
    for (int d = 0; d < D; d++) s += q[d] * k[d], m += k[d] * k[d];
    return s / sqrt(m / D + 1e-6) / sqrt((double)D);
}

/* Places of one long row of all rounds, sorted by bucket of the round and time. */
static void sorted_row(int64_t t, int64_t rounds, const int32_t *bucket, int64_t stride,
                       int32_t *row)
{
    for (int64_t r = 0; r < rounds; r++)
        for (int64_t n = 0, b = 0; n < t; b++)
            for (int64_t i = 0; i < t; i++)
                if (bucket[r * stride + i] == b) row[r * t + n++] = (int32_t)i;
}

/* Chunks divide t, and there are more of them than one meets.  As the code has it: each round by
 * itself, with finite masks, then rounds weighed by the softmax of their lse. */
static void released(head *x, int64_t t, const ag_lsh_options *o, const int32_t *bucket,
                     int64_t stride, int64_t length)
{
    int32_t row[4 * MOST];
    static double out[4][MOST][DV], lse[4][MOST];
    const int64_t n = o->rounds * t, c = o->chunk;
    sorted_row(t, o->rounds, bucket, stride, row);
    for (int64_t at = 0; at < n; at++) {
        const int64_t i = row[at], r = at / t, first = at / c * c - o->before * c;
        const int64_t keys = (o->before + 1 + o->after) * c;
        double s[3 * MOST], top = -INFINITY, sum = 0;
        for (int64_t k = 0; k < keys; k++) {
            const int64_t j = row[(first + k + n) % n];
            s[k] = key_dot(x->q[i], x->q[j]) - (o->causal && i < j ? 1e9 : 0) -
                   (i == j ? 1e5 : 0) - (j >= length ? 1e9 : 0);
            top = fmax(top, s[k]);
        }
        for (int64_t k = 0; k < keys; k++) sum += exp(s[k] - top);
        lse[r][i] = top + log(sum);
        for (int d = 0; d < DV; d++) out[r][i][d] = 0;
        for (int64_t k = 0; k < keys; k++)
            for (int d = 0; d < DV; d++)
                out[r][i][d] += exp(s[k] - lse[r][i]) * x->v[row[(first + k + n) % n]][d];
    }
    for (int64_t i = 0; i < t; i++) {
        double top = -INFINITY, sum = 0;
        for (int64_t r = 0; r < o->rounds; r++) top = fmax(top, lse[r][i]);
        for (int64_t r = 0; r < o->rounds; r++) sum += exp(lse[r][i] - top);
        for (int d = 0; d < DV; d++) {
            x->o[i][d] = 0;
            for (int64_t r = 0; r < o->rounds; r++)
                x->o[i][d] += exp(lse[r][i] - top) / sum * out[r][i][d];
        }
    }
}

static void load(const ag_tensor *q, const ag_tensor *v, int64_t t, int64_t b, int64_t h, head *x)
{
    for (int64_t i = 0; i < t; i++) {
        memcpy(x->q[i], (double *)q->data + ((b * t + i) * H + h) * D, sizeof x->q[i]);
        memcpy(x->v[i], (double *)v->data + ((b * t + i) * H + h) * DV, sizeof x->v[i]);
    }
}

static void is_the_released_algorithm(void **state)
{
    (void)state;
    static const struct { int64_t t, rounds, chunk, buckets; bool causal, padded; } K[] = {
        { 12, 1, 3, 4, true, false }, { 24, 2, 4, 6, true, false }, { 24, 3, 4, 6, false, false },
        { 40, 4, 8, 10, true, true }, { 36, 2, 6, 8, false, true }, { 24, 1, 12, 2, true, true },
    };
    for (size_t n = 0; n < sizeof K / sizeof *K; n++) {
        const int64_t t = K[n].t;
        const ag_lsh_options o = options(K[n].rounds, K[n].chunk, K[n].buckets, K[n].causal);
        ag_tape *tape = tape_new();
        noise(tape, 3, 0, B);
        ag_tensor *q = input(tape, AG_SHAPE(B, t, H * D), 1, false);
        ag_tensor *v = input(tape, AG_SHAPE(B, t, H * DV), 2, false);
        const int32_t size[B] = { (int32_t)t, (int32_t)t - 5 };
        ag_tensor *lengths = K[n].padded ? ag_input_i32(tape, AG_SHAPE(B), size) : NULL;
        ag_tensor *bucket = ag_lsh_hash(tape, q, lengths, &o);
        const ag_tensor *y = ag_lsh_attend(tape, q, v, bucket, lengths, &o);
        tape_ok(tape);
        for (int64_t p = 0; p < B * H; p++) {
            const int64_t length = lengths ? size[p / H] : t;
            head x;
            load(q, v, t, p / H, p % H, &x);
            released(&x, t, &o, (int32_t *)bucket->data + p * t, B * H * t, length);
            for (int64_t i = 0; i < length; i++)
                for (int d = 0; d < DV; d++) {
                    const double got =
                        ((double *)y->data)[((p / H * t + i) * H + p % H) * DV + d];
                    if (!(fabs(got - x.o[i][d]) < 1e-12))
                        fail_msg("case %d, head %d, position %d: %.12g, wanted %.12g", (int)n,
                                 (int)p, (int)i, got, x.o[i][d]);
                }
        }
        ag_tape_free(tape);
    }
}

/* --- one chunk of all: full attention of queries that are keys -------------------------------- */

/* Made of ordinary ops, one head: softmax((q k^T) masked) v, first row its own value. */
static ag_tensor *full(ag_tape *t, ag_tensor *q, ag_tensor *v, int64_t n)
{
    double mask[MOST * MOST], ones[D * D];
    for (int64_t e = 0; e < n * n; e++) mask[e] = e % n < e / n ? 0 : -1e5;
    for (int e = 0; e < D * D; e++) ones[e] = 1;
    /* k = q / sqrt(sum of squares + eps d) */
    ag_tensor *squares = ag_matmul(t, ag_mul(t, q, q), false,
                                   ag_input_f64(t, AG_SHAPE(D, D), ones, false), false);
    double eps[MOST * D];
    for (int e = 0; e < MOST * D; e++) eps[e] = 1e-6 * D;
    squares = ag_add(t, squares, ag_input_f64(t, AG_SHAPE(n, D), eps, false));
    ag_tensor *k = ag_div(t, q, ag_sqrt(t, squares));
    ag_tensor *s = ag_add(t, ag_matmul(t, q, false, k, true),
                          ag_input_f64(t, AG_SHAPE(n, n), mask, false));
    return ag_matmul(t, ag_softmax(t, s), false, v, false);
}

static void one_chunk_is_full_attention(void **state)
{
    (void)state;
    enum { N = 11 };
    ag_tape *t = tape_new();
    noise(t, 3, 0, 1);
    double dy[N * DV];
    for (int i = 0; i < N * DV; i++) dy[i] = i < DV ? 0 : cotangent(i);  /* row 0 is alone */
    ag_lsh_options o = options(1, N, 4, true);
    o.heads = 1;
    ag_tensor *q = input(t, AG_SHAPE(1, N, D), 1, true), *v = input(t, AG_SHAPE(1, N, DV), 2, true);
    ag_tensor *q2 = input(t, AG_SHAPE(N, D), 1, true), *v2 = input(t, AG_SHAPE(N, DV), 2, true);
    const bool was = ag_tape_no_grad(t, true);
    ag_tensor *bucket = ag_lsh_hash(t, q, NULL, &o);
    ag_tape_no_grad(t, was);
    ag_tensor *y = ag_lsh_attend(t, q, v, bucket, NULL, &o), *y2 = full(t, q2, v2, N);
    tape_ok(t);
    for (int i = 0; i < DV; i++)
        assert_true(fabs(((double *)y->data)[i] - ((double *)v->data)[i]) < 1e-14);
    for (int i = DV; i < N * DV; i++)
        assert_true(fabs(((double *)y->data)[i] - ((double *)y2->data)[i]) < 1e-12);
    assert_int_equal(ag_backward_from(t, y, dy), AG_OK);
    assert_int_equal(ag_backward_from(t, y2, dy), AG_OK);
    for (int i = 0; i < N * D; i++)
        assert_true(fabs(((double *)q->grad)[i] - ((double *)q2->grad)[i]) < 1e-11);
    for (int i = 0; i < N * DV; i++)
        assert_true(fabs(((double *)v->grad)[i] - ((double *)v2->grad)[i]) < 1e-11);
    ag_tape_free(t);
}

/* With the correction, a round more of the same buckets changes nothing. */
static void corrected_rounds_count_once(void **state)
{
    (void)state;
    enum { N = 24 };
    ag_tape *t = tape_new();
    noise(t, 3, 0, B);
    ag_tensor *q = input(t, AG_SHAPE(B, N, H * D), 1, false);
    ag_tensor *v = input(t, AG_SHAPE(B, N, H * DV), 2, false), *y[2];
    int32_t b[2 * B * H * N];
    for (int i = 0; i < B * H * N; i++)
        b[i] = b[B * H * N + i] = (int32_t)draw(30, i, 0, 4);
    for (int64_t rounds = 1; rounds <= 2; rounds++) {
        ag_lsh_options o = options(rounds, N, 4, true);
        o.bucket_mask = o.correct = true;
        y[rounds - 1] = ag_lsh_attend(t, q, v, ag_input_i32(t, AG_SHAPE(rounds, B, H, N), b), NULL,
                                      &o);
    }
    tape_ok(t);
    for (int64_t i = 0; i < y[0]->size; i++)
        assert_true(fabs(((double *)y[0]->data)[i] - ((double *)y[1]->data)[i]) < 1e-13);
    ag_tape_free(t);
}

/* --- to the bit: nothing of what is later, or padding ----------------------------------------- */

static void later_values_change_nothing(void **state)
{
    (void)state;
    enum { N = 200, W = 16 };
    static float q[N * H * W], v[N * H * W], before[N * H * W];
    static int32_t b[2 * H * N];
    const ag_kernels *k[8];
    const int tables = ag_kernels_all(AG_F32, k, 8);
    for (int i = 0; i < N * H * W; i++) {
        q[i] = (float)draw(5, i, -1, 1);
        v[i] = (float)draw(6, i, -1, 1);
    }
    for (int i = 0; i < 2 * H * N; i++) b[i] = (int32_t)draw(7, i, 0, 6);
    for (int n = 0; n < tables; n++)
        for (int late = 0; late < 3; late++) {
            ag_lsh_options o = options(2, 32, 6, true);
            o.d_qk = o.d_v = W;
            ag_tape *t = ag_tape_new(k[n]);
            const int from = late == 1 ? 50 : 151;
            for (int i = from * H * W; late && i < N * H * W; i++) v[i] += 1;
            const ag_tensor *y = ag_lsh_attend(
                t, ag_input(t, AG_SHAPE(1, N, H * W), q, false),
                ag_input(t, AG_SHAPE(1, N, H * W), v, false),
                ag_input_i32(t, AG_SHAPE(2, 1, H, N), b), NULL, &o);
            tape_ok(t);
            if (late) assert_memory_equal(before, y->data, (size_t)(from * H * W) * 4);
            else memcpy(before, y->data, sizeof before);
            for (int i = from * H * W; late && i < N * H * W; i++) v[i] -= 1;
            ag_tape_free(t);
        }
}

/* --- hash and sort ---------------------------------------------------------------------------- */

/* Like goes to like, the opposite to the other half, and buckets are used evenly. */
static void the_hash_is_one(void **state)
{
    (void)state;
    enum { N = 2000, BUCKETS = 8 };
    ag_lsh_options o = options(2, 8, BUCKETS, true);
    o.heads = 1;
    o.d_qk = 16;
    static float q[N * 16];
    for (int i = 0; i < N * 16; i++) {
        const int row = i / 16, of = row % 3 == 0 ? row : row - row % 3;  /* one, twice, negative */
        const float x = (float)draw(8, of * 16 + i % 16, -1, 1);
        q[i] = row % 3 == 1 ? 2 * x : row % 3 == 2 ? -x : x;
    }
    ag_tape *t = ag_tape_new(ag_kernels_ref(AG_F32));
    noise(t, 3, 0, 1);
    const ag_tensor *b = ag_lsh_hash(t, ag_input(t, AG_SHAPE(1, N, 16), q, false), NULL, &o);
    tape_ok(t);
    int count[2][BUCKETS] = { { 0 } }, differ = 0;
    const int32_t *bucket = b->data;
    for (int r = 0; r < 2; r++)
        for (int i = 0; i + 2 < N; i += 3) {
            const int32_t *x = bucket + r * N + i;
            count[r][x[0]]++;
            assert_int_equal(x[0], x[1]);
            assert_int_equal((x[0] + BUCKETS / 2) % BUCKETS, x[2]);
            differ += r && x[0] != bucket[i];
        }
    for (int r = 0; r < 2; r++)
        for (int j = 0; j < BUCKETS; j++) assert_in_range(count[r][j], 40, 130);  /* 83 each */
    assert_true(differ > N / 3 / 2);                     /* rounds are independent: 7 in 8 */
    ag_tape_free(t);
}

static void the_sort_is_stable(void **state)
{
    (void)state;
    enum { N = 300, R = 3 };
    int32_t bucket[R * N];
    ag_lsh a = { .batch = 1, .heads = 1, .t = N, .d_qk = 1, .d_v = 1, .rounds = R,
                 .factor = { 6, 1 }, .chunk = 16, .bucket = bucket };
    for (int i = 0; i < R * N; i++) bucket[i] = (int32_t)draw(9, i, 0, 7);
    a.scratch = calloc(1, ag_lsh_scratch(&a, AG_F64));
    assert_non_null(a.scratch);
    const lsh_view w = lsh_view_of(&a, 0, sizeof(double));
    lsh_sort(&a, 0, &w);
    for (int r = 0; r < R; r++)
        for (int i = 0; i < N; i++) {
            const int32_t *order = w.order + r * N, *b = bucket + r * N;
            assert_int_equal(w.rank[r * N + order[i]], i);
            if (i == 0) continue;
            assert_true(b[order[i - 1]] < b[order[i]] ||
                        (b[order[i - 1]] == b[order[i]] && order[i - 1] < order[i]));
        }
    free(a.scratch);
}

static void many_buckets_are_a_product(void **state)
{
    (void)state;
    static const int64_t K[][3] = { { 2, 2, 1 }, { 128, 128, 1 }, { 256, 16, 16 },
                                    { 512, 32, 16 }, { 1024, 32, 32 }, { 130, 16, 8 } };
    for (size_t i = 0; i < sizeof K / sizeof *K; i++) {
        int64_t f[2];
        nn_lsh_factors(K[i][0], f);
        assert_int_equal(f[0], K[i][1]);
        assert_int_equal(f[1], K[i][2]);
    }
}

/* --- decoding --------------------------------------------------------------------------------- */

/* The rule, by sorting scores: j + L where a bucket is shared, else j. */
static void rule(const head *x, const int32_t *bucket, int64_t t, int64_t stride, int64_t rounds,
                 int64_t i, int64_t most, double *ret_o)
{
    int64_t score[MOST];
    double s[MOST], sum = 0;
    for (int64_t j = 0; j <= i; j++) {
        bool same = false;
        for (int64_t r = 0; r < rounds; r++)
            same = same || bucket[r * stride + i] == bucket[r * stride + j];
        score[j] = j + (same ? t : 0);
    }
    for (int64_t j = 0; j <= i; j++) {
        int64_t above = 0;
        for (int64_t m = 0; m <= i; m++) above += score[m] > score[j];
        s[j] = above < most ? exp(key_dot(x->q[i], x->q[j]) - (i == j ? 1e5 : 0)) : 0;
        sum += s[j];
    }
    for (int d = 0; d < DV; d++) {
        ret_o[d] = sum > 0 ? 0 : x->v[i][d];
        for (int64_t j = 0; sum > 0 && j <= i; j++) ret_o[d] += s[j] / sum * x->v[j][d];
    }
}

static void decoding_is_its_rule(void **state)
{
    (void)state;
    enum { T = 23 };
    static const int64_t parts[] = { 9, 1, 1, 5, 7 };
    ag_lsh_options o = options(2, 3, 4, true);
    o.fixed = true;
    const int64_t most = 2 * 3 * 2;
    ag_tape *t = tape_new();
    ag_tape_no_grad(t, true);
    ag_kv_cache *cache = ag_kv_cache_new(NULL, AG_F64, 2, B, T, H * D, H * DV);
    assert_non_null(cache);
    assert_int_equal(ag_kv_cache_keep_buckets(cache, 2, H, D * 2 * 2), AG_OK);
    ag_tensor *q = input(t, AG_SHAPE(B, T, H * D), 1, false);
    ag_tensor *v = input(t, AG_SHAPE(B, T, H * DV), 2, false);
    const ag_tensor *bucket = ag_lsh_hash(t, q, NULL, &o);
    for (size_t n = 0, at = 0; n < 5; at += (size_t)parts[n++]) {
        const int64_t m = parts[n];
        double qs[B * T * H * D], vs[B * T * H * DV];
        for (int64_t b = 0; b < B; b++) {
            memcpy(qs + b * m * H * D, (double *)q->data + (b * T + (int64_t)at) * H * D,
                   (size_t)(m * H * D) * sizeof(double));
            memcpy(vs + b * m * H * DV, (double *)v->data + (b * T + (int64_t)at) * H * DV,
                   (size_t)(m * H * DV) * sizeof(double));
        }
        const ag_tensor *y =
            ag_lsh_cached(t, ag_input_f64(t, AG_SHAPE(B, m, H * D), qs, false),
                          ag_input_f64(t, AG_SHAPE(B, m, H * DV), vs, false), &o, cache, 1);
        tape_ok(t);
        ag_kv_cache_advance(cache, m);
        for (int64_t p = 0; p < B * H; p++)
            for (int64_t i = 0; i < m; i++) {
                head x;
                double want[DV];
                load(q, v, T, p / H, p % H, &x);
                rule(&x, (int32_t *)bucket->data + p * T, T, B * H * T, 2, (int64_t)at + i, most,
                     want);
                for (int d = 0; d < DV; d++)
                    assert_true(fabs(((double *)y->data)[((p / H * m + i) * H + p % H) * DV + d] -
                                     want[d]) < 1e-12);
            }
    }
    ag_lsh_cached(t, input(t, AG_SHAPE(B, 1, H * D), 1, false),
                  input(t, AG_SHAPE(B, 1, H * DV), 2, false), &o, cache, 1);
    assert_int_equal(ag_error(t), AG_ERANGE);
    ag_tape_reset(t);
    o.rounds = 3;
    ag_lsh_cached(t, input(t, AG_SHAPE(B, 1, H * D), 1, false),
                  input(t, AG_SHAPE(B, 1, H * DV), 2, false), &o, cache, 1);
    assert_int_equal(ag_error(t), AG_ESHAPE);
    ag_kv_cache_free(cache);
    ag_tape_free(t);
}

/* Chains find what a look at all positions finds, in its order. */
static void chains_are_the_rule(void **state)
{
    (void)state;
    enum { N = 200, R = 3 };
    static const int most[] = { 1, 7, 60, N };
    static int32_t bucket[R * (N + 5)], before[R * N], last[N], list[2][N];
    for (int c = 0; c < 3 * R * 4; c++) {
        const int rounds = 1 + c / 4 % R, n = most[c % 4], all = c / 4 / R * 700 + 2;
        for (int i = 0; i < R * (N + 5); i++) bucket[i] = (int32_t)draw(50, i, 0, all);
        lsh_chain(bucket, N + 5, rounds, N, before, last);
        for (int i = 0; i < N; i++) {
            const int64_t want = lsh_candidates(bucket, N + 5, rounds, i, n, list[0]);
            assert_int_equal(lsh_chained(bucket, N + 5, rounds, N, before, i, n, list[1]), want);
            assert_memory_equal(list[0], list[1], (size_t)want * sizeof **list);
        }
    }
}

/* --- in a model ------------------------------------------------------------------------------- */

static nn_gpt_config gpt(nn_lsh_kind kind, nn_map_kind type, int64_t std_length)
{
    return (nn_gpt_config){ .vocab = 7, .context = 12, .n_layers = 2, .n_heads = 2, .d_model = 8,
                            .tied = true, .init_std = 0.3, .norm_eps = 1e-5,
                            .ff = { .d_ff = 8, .act = AG_ACT_GELU_ERF },
                            .attention = { .type = type,
                                           .lsh = { .kind = kind, .chunk = 12, .rounds = 2,
                                                    .std_length = std_length } } };
}

static ag_tensor *model_logits(const void *m, ag_tape *t, ag_tensor *x)
{
    return nn_model_logits(m, t, x, NN_EVAL);
}

/* Gradients; and where a chunk holds all, what is decoded one by one is the whole. */
static void models_learn_and_decode(void **state)
{
    (void)state;
    static const struct { nn_lsh_kind kind; nn_map_kind type; int64_t std_length; } K[] = {
        { NN_LSH_OWN, NN_MAP_DENSE, 0 }, { NN_LSH_PURE, NN_MAP_DENSE, 0 },
        { NN_LSH_PURE, NN_MAP_MULTCONV, 0 }, { NN_LSH_OWN, NN_MAP_DENSE, 12 },
    };
    for (size_t n = 0; n < sizeof K / sizeof *K; n++) {
        const nn_gpt_config c = gpt(K[n].kind, K[n].type, K[n].std_length);
        nn_model *m = NULL;
        ag_err err = { 0 };
        if (nn_gpt_new(&c, AG_F64, SEED, &m, &err)) fail_msg("%s", err.msg);
        params_shake(m->params);
        check_subject(&(subject){ m->params, m, model_logits, AG_SHAPE(1, 12), 7 });
        ag_kv_cache *cache = NULL;
        assert_int_equal(nn_model_cache(m, 1, &cache, NULL), AG_OK);
        ag_tape *t = tape_new();
        ag_tape_no_grad(t, true);
        int32_t ids[12];
        for (int i = 0; i < 12; i++) ids[i] = (int32_t)draw(40, i, 0, 7);
        const ag_tensor *whole =
            nn_model_logits(m, t, ag_input_i32(t, AG_SHAPE(1, 12), ids), NN_EVAL);
        for (int i = 0; i < 12; i++) {
            const ag_tensor *y =
                nn_model_decode(m, t, ag_input_i32(t, AG_SHAPE(1, 1), ids + i), cache);
            tape_ok(t);
            for (int e = 0; e < 7; e++)
                if (!(fabs(((double *)y->data)[e] - ((double *)whole->data)[i * 7 + e]) < 1e-11))
                    fail_msg("model %d, position %d: decoding is another", (int)n, i);
        }
        ag_kv_cache_free(cache);
        ag_tape_free(t);
        nn_model_free(m);
    }
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    nn_gpt_config c = gpt(NN_LSH_OWN, NN_MAP_DENSE, 0);
    ag_err err = { 0 };
    c.attention.lsh.buckets = 3;
    assert_int_equal(nn_gpt_check(&c, &err), AG_ECONFIG);
    assert_non_null(strstr(err.msg, "attention.lsh.buckets = 3"));
    c.attention.lsh.buckets = 0;
    c.attention.lsh.rounds = AG_LSH_ROUNDS + 1;
    err = (ag_err){ 0 };
    assert_int_equal(nn_gpt_check(&c, &err), AG_ECONFIG);
    assert_non_null(strstr(err.msg, "attention.lsh.hashes"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_the_released_algorithm),
        cmocka_unit_test(one_chunk_is_full_attention),
        cmocka_unit_test(corrected_rounds_count_once),
        cmocka_unit_test(later_values_change_nothing),
        cmocka_unit_test(the_hash_is_one),
        cmocka_unit_test(the_sort_is_stable),
        cmocka_unit_test(many_buckets_are_a_product),
        cmocka_unit_test(decoding_is_its_rule), cmocka_unit_test(chains_are_the_rule),
        cmocka_unit_test(models_learn_and_decode),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests_name("lsh", tests, NULL, NULL);
}
