/*
 * lsh.c -- attention by locality-sensitive hashing (Reformer, 2001.04451), as the released code of
 * Terraformer (2111.12763) has it: queries are keys too, so like meets like.
 *
 *     R ~ N(0,1) [d_qk, rounds, half]                   half = factor/2, for each factor its own
 *     bucket = argmax [q R, -q R]                       with two factors: b1 + factor[0] b2
 *     sort the positions of a round by (bucket, time), cut them into chunks; a chunk meets itself,
 *     `before` chunks before it and `after` behind it, in a ring of all rounds
 *     s_ij = q_i . q_j / sqrt((mean(q_j^2) + 1e-6) d_qk)
 *     o_i  = sum over rounds of softmax over rounds(lse) softmax(s) v
 *          = sum over all (round, j) of exp(s_ij - lse_i) v_j, one softmax over all of them
 *
 * The released code takes 1e5 from the score of a position with itself: it counts where there is
 * nothing else, and nowhere else.  Here that is the rule.  It also sees other buckets of the chunks
 * that it meets, and a key that several rounds find counts as often; the paper masks the former
 * (bucket_mask) and takes the log of the count of the latter from the score (correct).
 *
 * Where chunk does not divide t the last chunk of a round is short.  A chunk that is met twice (few
 * chunks) counts once.  Backward: cpu/lsh_grad_tmpl.c.  The buckets are a tensor of their own, so
 * that what is computed again can be given the same ones.
 */
#include "lsh.h"

#include "../ops.h"

enum { Q, V, BUCKET, LENGTHS };
enum { HASH_LENGTHS = 1 };

int ag_lsh_check(const ag_call *c)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    if (o->heads < 1 || o->d_qk < 1 || o->d_v < 1)
        return ag_fail(c->tape, AG_ESHAPE, "%s: heads %lld, d_qk %lld and d_v %lld must be "
                       "positive", c->op->name, (long long)o->heads, (long long)o->d_qk,
                       (long long)o->d_v);
    if (o->rounds < 1 || o->rounds > AG_LSH_ROUNDS)
        return ag_fail(c->tape, AG_ERANGE, "%s: %lld rounds are not in [1, %d]", c->op->name,
                       (long long)o->rounds, AG_LSH_ROUNDS);
    if (o->factor[0] < 2 || o->factor[0] % 2 || o->factor[1] < 1 ||
        (o->factor[1] > 1 && o->factor[1] % 2) || o->factor[0] > (1 << 20) / o->factor[1])
        return ag_fail(c->tape, AG_ERANGE, "%s: %lld * %lld buckets: factors must be even, the "
                       "second may be 1, and their product at most 2^20", c->op->name,
                       (long long)o->factor[0], (long long)o->factor[1]);
    if (o->chunk < 1 || o->before < 0 || o->after < 0 || o->before > 1024 || o->after > 1024)
        return ag_fail(c->tape, AG_ERANGE, "%s: chunks of %lld must be positive, and %lld before "
                       "and %lld after in [0, 1024]", c->op->name, (long long)o->chunk,
                       (long long)o->before, (long long)o->after);
    if (!(o->drop >= 0 && o->drop < 1))
        return ag_fail(c->tape, AG_ERANGE, "%s: dropout probability %g is not in [0, 1)",
                       c->op->name, o->drop);
    return AG_OK;
}

ag_lsh ag_lsh_setup(const ag_call *c, int64_t b, int64_t t)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    return (ag_lsh){ .batch = b, .heads = o->heads, .t = t, .d_qk = o->d_qk, .d_v = o->d_v,
                     .rounds = o->rounds, .factor = { o->factor[0], o->factor[1] },
                     .chunk = o->chunk, .before = o->before, .after = o->after,
                     .causal = o->causal, .bucket_mask = o->bucket_mask, .correct = o->correct,
                     .drop = o->drop };
}

int64_t ag_lsh_rotations(const ag_lsh_options *o)
{
    return o->d_qk * o->rounds * (o->factor[0] / 2 + o->factor[1] / 2);
}

ag_noise ag_lsh_fixed_noise(const ag_lsh_options *o) { return (ag_noise){ .site = o->site }; }

/* x [b,t,heads*d], and lengths [b] if any */
static int check_inputs(const ag_call *c, int i, int64_t d, const ag_tensor *lengths)
{
    const ag_shape *x = &c->in[i]->shape, *q = &c->in[Q]->shape;
    char s[96], r[96];
    if (x->ndim != 3 || x->dim[2] != d || x->dim[0] != q->dim[0] || x->dim[1] != q->dim[1])
        return ag_fail(c->tape, AG_ESHAPE, "%s: wanted %s [b,t,%lld], got %s beside q %s",
                       c->op->name, i ? "v" : "q", (long long)d, ag_shape_text(x, s),
                       ag_shape_text(q, r));
    if (lengths && (lengths->shape.ndim != 1 || lengths->shape.dim[0] != q->dim[0]))
        return ag_fail(c->tape, AG_ESHAPE, "%s: lengths %s do not fit q %s", c->op->name,
                       ag_shape_text(&lengths->shape, s), ag_shape_text(q, r));
    if (x->dim[1] > INT32_MAX / 32)
        return ag_fail(c->tape, AG_ERANGE, "%s: %lld positions are too many", c->op->name,
                       (long long)x->dim[1]);
    return AG_OK;
}

static ag_shape bucket_shape(const ag_call *c)
{
    const int64_t *q = c->in[Q]->shape.dim;
    return AG_SHAPE(c->attr.lsh.o.rounds, q[0], c->attr.lsh.o.heads, q[1]);
}

/* --- the hash --------------------------------------------------------------------------------- */

static int hash_shape(ag_call *c, ag_shape *out)
{
    int r = ag_lsh_check(c);
    if (!r) r = check_inputs(c, Q, c->attr.lsh.o.heads * c->attr.lsh.o.d_qk, c->in[HASH_LENGTHS]);
    if (!r) out[0] = bucket_shape(c);
    return r;
}

/* Of rotations: for each head, or, where they are not fixed, for each sequence too. */
static int64_t hash_rows(const ag_call *c)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    return o->fixed ? o->heads : c->in[Q]->shape.dim[0] * o->heads;
}

static size_t hash_workspace(const ag_call *c, bool back)
{
    (void)back;
    return (size_t)(hash_rows(c) * ag_lsh_rotations(&c->attr.lsh.o)) * ag_real_size(c);
}

static void hash_forward(ag_call *c)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    const int64_t *q = c->in[Q]->shape.dim, rows = hash_rows(c);
    const ag_tensor *lengths = c->in[HASH_LENGTHS];
    if (lengths && ag_check_index(c, HASH_LENGTHS, 0, INT32_MAX) < 0) return;
    const ag_noise z = o->fixed ? ag_lsh_fixed_noise(o) : ag_noise_for(c->tape, o->site, rows);
    const int64_t n = ag_lsh_rotations(o);
    void *rotation = ag_scratch(c->tape, hash_workspace(c, false));
    if (!rotation) return;
    ag_lsh a = ag_lsh_setup(c, q[0], q[1]);
    a.q = c->in[Q]->data;
    a.lengths = lengths ? lengths->data : NULL;
    a.bucket = c->out[0]->data;
    c->k->normal(rows, n, &z, rotation);
    c->k->lsh_hash(&a, rotation, o->fixed);
}

static int64_t hash_flops(const ag_call *c)
{
    const int64_t *q = c->in[Q]->shape.dim;
    return 2 * q[0] * q[1] * c->attr.lsh.o.heads * ag_lsh_rotations(&c->attr.lsh.o);
}

static ag_lsh_options sample_options(int64_t *i)
{
    static const int64_t H[] = { 1, 2, 2 }, DK[] = { 4, 1, 17 }, DV[] = { 4, 8, 1 };
    static const int64_t CHUNK[] = { 3, 4, 70 }, FACTOR[][2] = { { 2, 1 }, { 4, 2 } };
    const int width = ag_digit(i, 3);
    ag_lsh_options o = { .heads = H[width], .d_qk = DK[width], .d_v = DV[width], .site = 3,
                         .drop_site = 4 };
    const int f = ag_digit(i, 2), kind = ag_digit(i, 6);
    o.factor[0] = FACTOR[f][0];
    o.factor[1] = FACTOR[f][1];
    o.chunk = CHUNK[ag_digit(i, 3)];
    o.rounds = 1 + kind % 3;
    o.causal = kind % 2;
    o.before = kind != 5;
    o.after = kind == 0 || kind == 4;
    o.bucket_mask = kind == 2 || kind == 3;
    o.correct = kind == 1 || kind == 2;
    o.drop = kind == 1 || kind == 4 ? 0.3 : 0;
    return o;
}

static bool hash_sample(int64_t i, ag_sample *s)
{
    static const int64_t T[] = { 1, 13, 0 };
    *s = (ag_sample){ .lo = -1.5, .hi = 1.5, .int_hi = 12 };
    const int64_t t = T[ag_digit(&i, 3)];
    s->absent = ag_digit(&i, 2) ? 1u << HASH_LENGTHS : 0;
    s->attr.lsh.o = sample_options(&i);
    s->attr.lsh.o.fixed = t == 1;
    s->in[0] = AG_SHAPE(2, t, s->attr.lsh.o.heads * s->attr.lsh.o.d_qk);
    s->in[1] = AG_SHAPE(2);
    if (i == 1) s->in[0].dim[2]++, s->bad = AG_ESHAPE;
    if (i == 2) s->attr.lsh.o.factor[0]++, s->bad = AG_ERANGE;
    if (i == 3) s->attr.lsh.o.rounds = AG_LSH_ROUNDS + 1, s->bad = AG_ERANGE;
    return i < 4;
}

static unsigned hash_recalls(const ag_call *c)
{
    (void)c;
    return 1;
}

const ag_op ag_op_lsh_hash = {
    .name = "lsh_hash",
    .doc = "bucket[r,b,h,t] = argmax of [q R, -q R] for random rotations R; q [b,t,h*d_qk]",
    .n_in = 2, .n_out = 1, .optional = 1u << HASH_LENGTHS, .integer_in = 1u << HASH_LENGTHS,
    .integer_out = 1u, .shape = hash_shape, .forward = hash_forward,
    .recalls = hash_recalls, .workspace = hash_workspace,
    .nondiff = "buckets are whole numbers", .flops = hash_flops, .sample = hash_sample,
};

ag_tensor *ag_lsh_hash(ag_tape *t, ag_tensor *q, ag_tensor *lengths, const ag_lsh_options *o)
{
    return ag_apply(t, &ag_op_lsh_hash, (ag_tensor *[AG_MAX_IN]){ q, lengths },
                    &(ag_attr){ .lsh = { *o, NULL, 0 } }, NULL);
}

/* --- attention -------------------------------------------------------------------------------- */

static int attend_shape(ag_call *c, ag_shape *out)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    char s[96], w[96];
    int r = ag_lsh_check(c);
    if (!r) r = check_inputs(c, Q, o->heads * o->d_qk, c->in[LENGTHS]);
    if (!r) r = check_inputs(c, V, o->heads * o->d_v, NULL);
    if (r) return r;
    const ag_shape want = bucket_shape(c);
    if (!ag_shape_equal(&c->in[BUCKET]->shape, &want))
        return ag_fail(c->tape, AG_ESHAPE, "%s: wanted buckets [rounds,b,h,t] = %s, got %s",
                       c->op->name, ag_shape_text(&want, w),
                       ag_shape_text(&c->in[BUCKET]->shape, s));
    out[0] = c->in[V]->shape;
    return AG_OK;
}

static size_t attend_saved(const ag_call *c)
{
    const int64_t *q = c->in[Q]->shape.dim;
    return (size_t)(q[0] * q[1] * c->attr.lsh.o.heads) * ag_real_size(c);
}

static ag_lsh setup(const ag_call *c)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    const int64_t *q = c->in[Q]->shape.dim;
    ag_lsh a = ag_lsh_setup(c, q[0], q[1]);
    a.noise = ag_noise_for(c->tape, o->drop_site, q[0] * o->heads * o->chunk);
    a.q = c->in[Q]->data;
    a.v = c->in[V]->data;
    a.bucket = c->in[BUCKET]->data;
    a.lengths = c->in[LENGTHS] ? c->in[LENGTHS]->data : NULL;
    a.o = c->out[0]->data;
    a.lse = c->saved;
    return a;
}

static void *scratch_of(const ag_call *c, const ag_lsh *a)
{
    return ag_scratch(c->tape, ag_lsh_scratch(a, c->k->dtype));
}

static size_t attend_workspace(const ag_call *c, bool back)
{
    const ag_lsh a = setup(c);
    size_t sum = ag_scratch_size(ag_lsh_scratch(&a, c->k->dtype));
    for (int i = Q; back && i <= V; i++)
        if (!c->in[i]->needs_grad) sum += ag_scratch_size(ag_tensor_bytes(c->in[i]));
    return sum;
}

static void attend_forward(ag_call *c)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    if (ag_check_index(c, BUCKET, 0, o->factor[0] * o->factor[1] + 1) < 0) return;
    if (c->in[LENGTHS] && ag_check_index(c, LENGTHS, 0, INT32_MAX) < 0) return;
    ag_lsh a = setup(c);
    a.scratch = scratch_of(c, &a);
    if (a.scratch) c->k->lsh_fwd(&a);
}

/* The kernel adds to both gradients at once; one that is not wanted goes to waste. */
static void attend_backward(ag_call *c)
{
    void *dx[2];
    for (int i = Q; i <= V; i++) {
        dx[i] = ag_grad_add(c, i);
        if (!dx[i]) dx[i] = ag_scratch(c->tape, (size_t)c->in[i]->size * ag_real_size(c));
        if (!dx[i]) return;
    }
    ag_lsh a = setup(c);
    a.scratch = scratch_of(c, &a);
    if (a.scratch) c->k->lsh_bwd(&a, c->out[0]->grad, dx[Q], dx[V]);
}

/* two products of each query with what it meets */
static int64_t attend_flops(const ag_call *c)
{
    const ag_lsh_options *o = &c->attr.lsh.o;
    const int64_t *q = c->in[Q]->shape.dim, met = (o->before + 1 + o->after) * o->chunk;
    return 2 * q[0] * o->heads * o->rounds * q[1] * (met < q[1] ? met : q[1]) * (o->d_qk + o->d_v);
}

static bool attend_sample(int64_t i, ag_sample *s)
{
    static const int64_t T[] = { 1, 13, 0 };
    *s = (ag_sample){ .lo = -1.5, .hi = 1.5, .gap = 0.3 };   /* a key of one number is a sign */
    const int64_t t = T[ag_digit(&i, 3)];
    s->absent = ag_digit(&i, 2) ? 1u << LENGTHS : 0;
    s->attr.lsh.o = sample_options(&i);
    const ag_lsh_options *o = &s->attr.lsh.o;
    s->int_hi = (int32_t)(o->factor[0] * o->factor[1] + 1);
    s->in[Q] = AG_SHAPE(2, t, o->heads * o->d_qk);
    s->in[V] = AG_SHAPE(2, t, o->heads * o->d_v);
    s->in[BUCKET] = AG_SHAPE(o->rounds, 2, o->heads, t);
    s->in[LENGTHS] = AG_SHAPE(2);
    if (i == 1) s->in[V].dim[2]++, s->bad = AG_ESHAPE;
    if (i == 2) s->in[BUCKET].dim[0]++, s->bad = AG_ESHAPE;
    if (i == 3) s->attr.lsh.o.drop = 1, s->bad = AG_ERANGE;
    if (i == 4 && t) s->int_lo = -9, s->int_hi = 0, s->bad = AG_ERANGE;
    if (i == 4 && !t) s->in[Q] = AG_SHAPE(2, o->heads * o->d_qk), s->bad = AG_ESHAPE;
    return i < 5;
}

const ag_op ag_op_lsh_attend = {
    .name = "lsh_attend",
    .doc = "attention of q[b,t,h*d_qk], keys too, over v[b,t,h*d_v], in chunks sorted by "
           "bucket[r,b,h,t]",
    .n_in = 4, .n_out = 1, .optional = 1u << LENGTHS, .integer_in = 1u << BUCKET | 1u << LENGTHS,
    .shape = attend_shape, .saved_bytes = attend_saved, .forward = attend_forward,
    .backward = attend_backward, .workspace = attend_workspace, .flops = attend_flops,
    .sample = attend_sample,
};

ag_tensor *ag_lsh_attend(ag_tape *t, ag_tensor *q, ag_tensor *v, ag_tensor *bucket,
                         ag_tensor *lengths, const ag_lsh_options *o)
{
    return ag_apply(t, &ag_op_lsh_attend, (ag_tensor *[AG_MAX_IN]){ q, v, bucket, lengths },
                    &(ag_attr){ .lsh = { *o, NULL, 0 } }, NULL);
}
