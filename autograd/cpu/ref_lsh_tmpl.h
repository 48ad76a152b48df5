/*
 * ref_lsh_tmpl.h -- attention by hashing (ag_lsh in kernels.h; formulas in ops/lsh.c) one pair of
 * query and key at a time, and its decoding.
 */
#include "autograd/cpu/lsh.h"

static void normal(int64_t m, int64_t n, const ag_noise *z, void *y)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double both[2];
            ag_normal2(ag_noise_at(z, i, j & ~(int64_t)1, n), ag_noise_at(z, i, j | 1, n), both);
            ((real *)y)[i * n + j] = R(both[j & 1]);
        }
}

/* argmax of [x, -x], x = q r[:, first .. first + half - 1]; ties: the lowest index */
static int32_t lsh_argmax(const ag_lsh *a, const real *q, const real *r, int64_t columns,
                          int64_t first, int64_t half)
{
    double top = -INFINITY;
    int64_t at = 0;
    for (int64_t j = 0; j < 2 * half; j++) {
        double s = 0;
        for (int64_t d = 0; d < a->d_qk; d++)
            s += (double)q[d] * (double)r[d * columns + first + j % half];
        s = j < half ? s : -s;
        if (s > top)
            top = s, at = j;
    }
    return (int32_t)at;
}

static void lsh_hash(const ag_lsh *a, const void *r, bool shared)
{
    const int64_t half[2] = { a->factor[0] / 2, a->factor[1] / 2 }, both = half[0] + half[1];
    const int64_t columns = a->rounds * both;
    for (int64_t n = 0; n < a->rounds * a->batch * a->heads * a->t; n++) {
        const int64_t t = n % a->t, head = n / a->t % (a->batch * a->heads);
        const int64_t round = n / a->t / (a->batch * a->heads), b = head / a->heads,
            h = head % a->heads;
        const real *q = (const real *)a->q + ((b * a->t + t) * a->heads + h) * a->d_qk;
        const real *turn = (const real *)r + (shared ? h : head) * a->d_qk * columns;
        int32_t bucket = lsh_argmax(a, q, turn, columns, round * both, half[0]);
        if (a->factor[1] > 1)
            bucket += (int32_t)a->factor[0] *
                lsh_argmax(a, q, turn, columns, round * both + half[0], half[1]);
        a->bucket[n] = t < lsh_length(a, head) ? bucket : (int32_t)(lsh_buckets(a) - 1);
    }
}

/* --- one pair --------------------------------------------------------------------------------- */

typedef struct lsh_pair {            /* query i of a sequence and head meets key j */
    const ag_lsh *a;
    lsh_view w;
    int64_t head, i, j;
    int64_t round, slot, at;         /* the at-th key of the slot-th chunk that it meets then */
} lsh_pair;

static lsh_pair lsh_start(const ag_lsh *a, int64_t head, int64_t i)
{
    return (lsh_pair){ .a = a, .w = lsh_view_of(a, head, sizeof(real)), .head = head, .i = i,
                       .at = -1 };
}

static bool lsh_sees(const lsh_pair *e, int64_t key_round)
{
    const ag_lsh *a = e->a;
    if (e->j >= lsh_length(a, e->head) || (a->causal ? e->j >= e->i : e->j == e->i))
        return false;
    return !a->bucket_mask || (key_round == e->round &&
        lsh_bucket_of(a, e->head, e->round)[e->i] == lsh_bucket_of(a, e->head, e->round)[e->j]);
}

/* Goes to the next key that the query sees; false: there is none. */
static bool lsh_next(lsh_pair *e)
{
    const ag_lsh *a = e->a;
    const int64_t n = lsh_chunks(a);
    for (;;) {
        const int64_t g = e->round * n + e->w.rank[e->round * a->t + e->i] / a->chunk;
        const int64_t met = lsh_met(a, g, e->slot);
        int64_t begin;
        const int64_t keys = lsh_chunk_at(a, met, &begin);
        if (++e->at < keys) {
            e->j = e->w.order[begin + e->at];
            if (lsh_sees(e, met / n))
                return true;
            continue;
        }
        e->at = -1;
        if (++e->slot < lsh_slots(a))
            continue;
        e->slot = 0;
        if (++e->round == a->rounds)
            return false;
    }
}

static const real *lsh_q(const ag_lsh *a, const void *q, int64_t head, int64_t i)
{
    const int64_t b = head / a->heads, h = head % a->heads;
    return (const real *)q + ((b * a->t + i) * a->heads + h) * a->d_qk;
}

static const real *lsh_v(const ag_lsh *a, const void *v, int64_t head, int64_t i)
{
    const int64_t b = head / a->heads, h = head % a->heads;
    return (const real *)v + ((b * a->t + i) * a->heads + h) * a->d_v;
}

static double lsh_key_scale(const real *q, int64_t d)
{
    return 1 / sqrt((dot(d, q, q) / (double)d + LSH_EPS) * (double)d);
}

static double lsh_score(const lsh_pair *e)
{
    const ag_lsh *a = e->a;
    const real *k = lsh_q(a, a->q, e->head, e->j);
    const double s = lsh_key_scale(k, a->d_qk) * dot(a->d_qk, lsh_q(a, a->q, e->head, e->i), k);
    return a->correct ? s - log((double)lsh_meetings(a, e->head, &e->w, e->i, e->j)) : s;
}

static double lsh_kept(const lsh_pair *e)                /* keep / (1 - drop) */
{
    const ag_lsh *a = e->a;
    if (!(a->drop > 0))
        return 1;
    const int64_t row = e->head * a->chunk + e->w.rank[e->round * a->t + e->i] % a->chunk;
    const int64_t column = e->slot * ag_noise_stride(a->chunk) + e->at;
    return ag_noise_at(&a->noise, row, column, lsh_noise_columns(a)) >= ag_drop_threshold(a->drop)
        ? 1 / (1 - a->drop) : 0;
}

/* --- forward ---------------------------------------------------------------------------------- */

static void lsh_row(const ag_lsh *a, int64_t head, int64_t i)
{
    double top = -INFINITY, sum = 0;
    for (lsh_pair e = lsh_start(a, head, i); lsh_next(&e);)
        top = fmax(top, lsh_score(&e));
    for (lsh_pair e = lsh_start(a, head, i); lsh_next(&e);)
        sum += exp(lsh_score(&e) - top);
    const double lse = sum > 0 ? top + log(sum) : (double)-INFINITY;
    ((real *)a->lse)[head * a->t + i] = R(lse);
    const lsh_pair self = lsh_start(a, head, i);
    const double alone = !(sum > 0) && i < lsh_length(a, head) ? lsh_alone(a, head, &self.w, i) : 0;
    real *o = (real *)(uintptr_t)lsh_v(a, a->o, head, i);
    for (int64_t d0 = 0; d0 < a->d_v; d0 += REF_COLS) {
        const int64_t nd = a->d_v - d0 < REF_COLS ? a->d_v - d0 : REF_COLS;
        double y[REF_COLS];
        for (int64_t d = 0; d < nd; d++)
            y[d] = alone * (double)lsh_v(a, a->v, head, i)[d0 + d];
        for (lsh_pair e = lsh_start(a, head, i); lsh_next(&e);) {
            const double p = exp(lsh_score(&e) - lse) * lsh_kept(&e);
            for (int64_t d = 0; d < nd; d++)
                y[d] += p * (double)lsh_v(a, a->v, head, e.j)[d0 + d];
        }
        for (int64_t d = 0; d < nd; d++)
            o[d0 + d] = R(y[d]);
    }
}

static void lsh_fwd(const ag_lsh *a)
{
    for (int64_t head = 0; head < a->batch * a->heads; head++) {
        const lsh_view w = lsh_view_of(a, head, sizeof(real));
        lsh_sort(a, head, &w);
        for (int64_t i = 0; i < a->t; i++)
            lsh_row(a, head, i);
    }
}

/* --- backward --------------------------------------------------------------------------------- */

typedef struct lsh_grads { const void *do_; real *dq, *dv; } lsh_grads;

/* What query i gives to the gradients of itself and of the keys and values that it sees. */
static void lsh_row_bwd(const ag_lsh *a, const lsh_grads *g, int64_t head, int64_t i)
{
    const double lse = (double)((const real *)a->lse)[head * a->t + i];
    const real *q = lsh_q(a, a->q, head, i), *grad = lsh_v(a, g->do_, head, i);
    const lsh_view w = lsh_view_of(a, head, sizeof(real));
    real *dq = g->dq + (q - (const real *)a->q);
    if (lse <= (double)-INFINITY) {
        const double alone = i < lsh_length(a, head) ? lsh_alone(a, head, &w, i) : 0;
        for (int64_t d = 0; d < a->d_v; d++)
            put(g->dv + (grad - (const real *)g->do_) + d, true, alone * (double)grad[d]);
        return;
    }
    const double delta = dot(a->d_v, grad, lsh_v(a, a->o, head, i));
    for (lsh_pair e = lsh_start(a, head, i); lsh_next(&e);) {
        const real *k = lsh_q(a, a->q, head, e.j), *v = lsh_v(a, a->v, head, e.j);
        const double p = exp(lsh_score(&e) - lse), r = lsh_kept(&e);
        const double ds = p * (r * dot(a->d_v, grad, v) - delta);
        const double scale = lsh_key_scale(k, a->d_qk);
        real *dk = (real *)w.dk + e.j * a->d_qk, *dv = g->dv + (v - (const real *)a->v);
        for (int64_t d = 0; d < a->d_v; d++)
            put(dv + d, true, r * p * (double)grad[d]);
        for (int64_t d = 0; d < a->d_qk; d++) {
            put(dk + d, true, ds * (double)q[d]);
            put(dq + d, true, ds * scale * (double)k[d]);
        }
    }
}

/* From keys to queries: k = scale q, d scale = -scale^3 q . dq */
static void lsh_key_bwd(const ag_lsh *a, int64_t head, int64_t i, const real *dk, real *dq)
{
    const real *q = lsh_q(a, a->q, head, i);
    const double scale = lsh_key_scale(q, a->d_qk), along = dot(a->d_qk, dk, q);
    dq += q - (const real *)a->q;
    for (int64_t d = 0; d < a->d_qk; d++)
        put(dq + d, true, scale * ((double)dk[d] - scale * scale * along * (double)q[d]));
}

static void lsh_bwd(const ag_lsh *a, const void *do_, void *dq, void *dv)
{
    const lsh_grads g = { do_, dq, dv };
    for (int64_t head = 0; head < a->batch * a->heads; head++) {
        const lsh_view w = lsh_view_of(a, head, sizeof(real));
        lsh_sort(a, head, &w);
        fill(a->t * a->d_qk, 0, w.dk);
        for (int64_t i = 0; i < a->t; i++)
            lsh_row_bwd(a, &g, head, i);
        for (int64_t i = 0; i < a->t; i++)
            lsh_key_bwd(a, head, i, (const real *)w.dk + i * a->d_qk, dq);
    }
}

/* --- decoding --------------------------------------------------------------------------------- */

/* One query, of position i, of a sequence b and head h. */
static void lsh_decode_row(const ag_lsh_decode *a, int64_t b, int64_t h, int64_t i)
{
    const int64_t head = b * a->heads + h;
    const real *k = (const real *)a->k + (b * a->capacity * a->heads + h) * a->d_qk;
    const real *v = (const real *)a->v + (b * a->capacity * a->heads + h) * a->d_v;
    const int64_t k_row = a->heads * a->d_qk, v_row = a->heads * a->d_v;
    const int32_t *bucket = a->bucket + head * a->rounds * a->capacity;
    real *o = (real *)a->o + ((b * a->t + i - a->past) * a->heads + h) * a->d_v;
    const lsh_decode_view w = lsh_decode_view_of(a, 0, sizeof(real));
    const int64_t n = lsh_candidates(bucket, a->capacity, a->rounds, i, a->most, w.list);
    const int32_t *list = w.list;
    real *s = w.score;
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < n; j++) {
        const real *key = k + list[j] * k_row;
        s[j] = R(list[j] == i ? (double)-INFINITY
                              : lsh_key_scale(key, a->d_qk) * dot(a->d_qk, k + i * k_row, key));
        top = fmax(top, (double)s[j]);
    }
    for (int64_t j = 0; j < n; j++)
        sum += list[j] != i ? exp((double)s[j] - top) : 0;
    for (int64_t d = 0; d < a->d_v; d++) {
        double y = 0;
        for (int64_t j = 0; sum > 0 && j < n; j++)
            if (list[j] != i)
                y += exp((double)s[j] - top) / sum * (double)v[list[j] * v_row + d];
        o[d] = sum > 0 ? R(y) : v[i * v_row + d];
    }
}

static void lsh_decode(const ag_lsh_decode *a)
{
    for (int64_t head = 0; head < a->batch * a->heads; head++)
        for (int64_t i = a->past; i < a->past + a->t; i++)
            lsh_decode_row(a, head / a->heads, head % a->heads, i);
}
