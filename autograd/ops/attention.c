/*
 * attention.c -- multi-head attention (1706.03762), o = softmax(q k^T / sqrt(d_qk)) v per head,
 * tile by tile: the scores are never a tensor.  Forward keeps one number a row, the log of the sum
 * of exp; backward makes the rest again.
 *
 *     s = scale q k^T     p = exp(s - lse)     delta = sum(do * o)
 *     dv = p^T do         ds = p * (do v^T - delta)      dq = scale ds k      dk = scale ds^T q
 */
#include "attention.h"

#include <math.h>

typedef struct view { char *p; int64_t row, batch; } view;   /* elements between positions, between
                                                              * sequences */

/* Are q, k, v three inputs, or slices of the one packed qkv? */
static bool is_apart(const ag_call *c)
{
    return c->op == &ag_op_attend || c->op == &ag_op_attend_source ||
           (c->op == &ag_op_attend_cached && c->in[1]);
}

/* Which input holds the lengths; -1: none. */
static int lengths_input(const ag_call *c)
{
    return c->op == &ag_op_attend ? 3 : c->op == &ag_op_attend_qkv ? 1 : -1;
}

static const int32_t *lengths_of(const ag_call *c)
{
    const int i = lengths_input(c);
    return i >= 0 && c->in[i] ? c->in[i]->data : NULL;
}

/* Where q, k, v (i = 0, 1, 2) begin in their tensors. */
static view part(const ag_call *c, int i, void *const base[3])
{
    const int64_t h = c->attr.attention.heads, dk = h * c->attr.attention.d_qk,
        dv = h * c->attr.attention.d_v;
    if (is_apart(c)) {
        if (!c->in[i]) return (view){ 0 };               /* a cache has it */
        const int64_t w = i < 2 ? dk : dv;
        return (view){ base[i], w, w * c->in[i]->shape.dim[1] };
    }
    const int64_t w = 2 * dk + dv;
    return (view){ (char *)base[0] + (size_t)(i * dk) * ag_real_size(c), w,
                   w * c->in[0]->shape.dim[1] };
}

ag_attention ag_attention_of(const ag_call *c)
{
    const ag_tensor *q = c->in[0], *k = is_apart(c) ? c->in[1] : q;
    void *base[3];
    for (int i = 0; i < 3; i++) base[i] = c->in[i] ? c->in[i]->data : NULL;
    const view vq = part(c, 0, base), vk = part(c, 1, base), vv = part(c, 2, base);
    ag_attention a = {
        .batch = q->shape.dim[0], .heads = c->attr.attention.heads, .tq = q->shape.dim[1],
        .tk = k ? k->shape.dim[1] : 0, .d_qk = c->attr.attention.d_qk, .d_v = c->attr.attention.d_v,
        .causal = c->attr.attention.causal,
        .q_pos0 = c->attr.attention.q_pos0, .pattern = c->attr.attention.pattern,
        .lengths = lengths_of(c), .scale = 1 / sqrt((double)c->attr.attention.d_qk),
        .drop = c->attr.attention.drop, .q = vq.p, .q_row = vq.row, .q_batch = vq.batch, .k = vk.p,
        .k_row = vk.row, .k_batch = vk.batch, .v = vv.p, .v_row = vv.row, .v_batch = vv.batch,
        .o = c->out[0]->data, .o_row = ag_cols(c->out[0]),
        .o_batch = ag_cols(c->out[0]) * c->out[0]->shape.dim[1], .lse = c->saved,
    };
    a.noise = ag_noise_for(c->tape, c->attr.attention.site, a.batch * a.heads * a.tq);
    return a;
}

size_t ag_attention_saved(const ag_call *c)
{
    const ag_shape *q = &c->in[0]->shape;
    return (size_t)(q->dim[0] * q->dim[1] * c->attr.attention.heads) * ag_kept_size(c);
}

bool ag_attention_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->attention_fwd && k->attention_bwd;
}

static int check_options(const ag_call *c)
{
    if (c->attr.attention.heads < 1 || c->attr.attention.d_qk < 1 || c->attr.attention.d_v < 1)
        return ag_fail(c->tape, AG_ESHAPE, "%s: heads %lld, d_qk %lld and d_v %lld must be "
                       "positive", c->op->name, (long long)c->attr.attention.heads,
                       (long long)c->attr.attention.d_qk, (long long)c->attr.attention.d_v);
    if (!(c->attr.attention.drop >= 0 && c->attr.attention.drop < 1))
        return ag_fail(c->tape, AG_ERANGE, "%s: dropout probability %g is not in [0, 1)",
                       c->op->name, c->attr.attention.drop);
    const int lengths = lengths_input(c);
    const bool some = lengths >= 0 && c->in[lengths];
    const ag_pattern *p = c->attr.attention.pattern;
    if (p && (!c->attr.attention.causal || c->attr.attention.drop > 0 || some))
        return ag_fail(c->tape, AG_ERANGE, "%s: a pattern wants causal attention without dropout "
                       "on its weights and without lengths", c->op->name);
    const int64_t batch = c->in[0]->shape.ndim ? c->in[0]->shape.dim[0] : 0;
    char text[96];
    if (some && !ag_shape_equal(&c->in[lengths]->shape, &AG_SHAPE(batch)))
        return ag_fail(c->tape, AG_ESHAPE, "%s: wanted lengths [%lld], got %s", c->op->name,
                       (long long)batch, ag_shape_text(&c->in[lengths]->shape, text));
    return AG_OK;
}

/* Does a pattern cover these positions? */
static int check_pattern(const ag_call *c, int64_t tq, int64_t tk)
{
    const ag_pattern *p = c->attr.attention.pattern;
    if (p && (tq != tk || c->attr.attention.q_pos0))
        return ag_fail(c->tape, AG_ESHAPE, "%s: a pattern is for positions that attend to "
                       "themselves, not for %lld queries of %lld keys from %lld on", c->op->name,
                       (long long)tq, (long long)tk, (long long)c->attr.attention.q_pos0);
    if (p && tk > p->n)
        return ag_fail(c->tape, AG_ERANGE, "%s: %lld positions, but the pattern is for %lld",
                       c->op->name, (long long)tk, (long long)p->n);
    return AG_OK;
}

int ag_attend_shape(ag_call *c, ag_shape *out)
{
    const int r = check_options(c);
    if (r < 0) return r;
    const ag_shape *q = &c->in[0]->shape, *k = &c->in[1]->shape, *v = &c->in[2]->shape;
    const int64_t h = c->attr.attention.heads, dk = h * c->attr.attention.d_qk,
        dv = h * c->attr.attention.d_v;
    if (q->ndim != 3 || k->ndim != 3 || v->ndim != 3 || q->dim[2] != dk || k->dim[2] != dk ||
        v->dim[2] != dv || k->dim[1] != v->dim[1] || q->dim[0] != k->dim[0] ||
        q->dim[0] != v->dim[0]) {
        char a[96], b[96], d[96];
        return ag_fail(c->tape, AG_ESHAPE, "%s: wanted q [b,tq,%lld], k [b,tk,%lld], "
                       "v [b,tk,%lld], got %s, %s, %s", c->op->name, (long long)dk, (long long)dk,
                       (long long)dv, ag_shape_text(q, a), ag_shape_text(k, b),
                       ag_shape_text(v, d));
    }
    out[0] = AG_SHAPE(q->dim[0], q->dim[1], dv);
    return check_pattern(c, q->dim[1], k->dim[1]);
}

int ag_attend_qkv_shape(ag_call *c, ag_shape *out)
{
    const int r = check_options(c);
    if (r < 0) return r;
    const ag_shape *x = &c->in[0]->shape;
    const int64_t h = c->attr.attention.heads, dk = h * c->attr.attention.d_qk,
        dv = h * c->attr.attention.d_v;
    if (x->ndim != 3 || x->dim[2] != 2 * dk + dv) {
        char a[96];
        return ag_fail(c->tape, AG_ESHAPE, "%s: wanted qkv [b,t,%lld] for %lld heads of %lld, %lld "
                       "and %lld, got %s", c->op->name, (long long)(2 * dk + dv), (long long)h,
                       (long long)c->attr.attention.d_qk, (long long)c->attr.attention.d_qk,
                       (long long)c->attr.attention.d_v, ag_shape_text(x, a));
    }
    out[0] = AG_SHAPE(x->dim[0], x->dim[1], dv);
    return check_pattern(c, x->dim[1], x->dim[1]);
}

static void attend_forward(ag_call *c)
{
    const ag_attention a = ag_attention_of(c);
    if (a.lengths && ag_check_index(c, lengths_input(c), 0, a.tk + 1) < 0) return;
    c->k->attention_fwd(&a);
}

static ag_attention_grad grads(const ag_call *c, void *const base[3], bool acc, void *delta)
{
    return (ag_attention_grad){ .do_ = c->out[0]->grad, .dq = part(c, 0, base).p,
                                .dk = part(c, 1, base).p,
                                .dv = part(c, 2, base).p, .acc = acc, .delta = delta };
}

static void qkv_backward(ag_call *c)
{
    const ag_attention a = ag_attention_of(c);
    void *delta = ag_scratch(c->tape, ag_attention_saved(c));
    bool acc;
    void *dx = ag_grad_of(c, 0, &acc), *base[3] = { dx, dx, dx };
    if (!delta || !dx) return;
    const ag_attention_grad g = grads(c, base, acc, delta);
    c->k->attention_bwd(&a, &g);
}

static size_t qkv_workspace(const ag_call *c, bool back)
{
    return back ? ag_scratch_size(ag_attention_saved(c)) : 0;
}

static size_t attend_workspace(const ag_call *c, bool back)
{
    size_t sum = qkv_workspace(c, back);
    for (int i = 0; back && i < 3; i++)
        sum += ag_scratch_size((size_t)c->in[i]->size * ag_real_size(c));
    return sum;
}

/* The kernel makes all three gradients at once; each then goes where it is wanted. */
static void attend_backward(ag_call *c)
{
    const ag_attention a = ag_attention_of(c);
    void *delta = ag_scratch(c->tape, ag_attention_saved(c)), *base[3];
    if (!delta) return;
    for (int i = 0; i < 3; i++)
        if (!(base[i] = ag_scratch(c->tape, (size_t)c->in[i]->size * ag_real_size(c)))) return;
    const ag_attention_grad g = grads(c, base, false, delta);
    c->k->attention_bwd(&a, &g);
    for (int i = 0; i < 3; i++) {
        bool acc;
        void *dx = ag_grad_of(c, i, &acc);
        if (dx) c->k->scale(c->in[i]->size, 1, base[i], dx, acc);
    }
}

/* two products forward (q k^T, p v), of which causality leaves about half; lengths are not known
 * before the run, and not looked at */
int64_t ag_attention_flops(const ag_call *c)
{
    const ag_attention a = ag_attention_of(c);
    int64_t pairs = a.tq * a.tk;
    if (a.pattern) {
        pairs = 0;
        for (int64_t h = 0; h < a.heads; h++)
            pairs += ag_pattern_pairs(a.pattern, h, a.q_pos0, a.q_pos0 + a.tq, a.tk);
        return 2 * a.batch * pairs * (a.d_qk + a.d_v);
    }
    if (a.causal) {
        pairs = 0;
        for (int64_t i = 0; i < a.tq; i++) {
            const int64_t seen = i + a.q_pos0 + 1;
            pairs += seen < 0 ? 0 : seen < a.tk ? seen : a.tk;
        }
    }
    return 2 * a.batch * a.heads * pairs * (a.d_qk + a.d_v);
}

/* One of each kind: a window, a union whose parts share keys, rows without a key, a layout for each
 * head. */
static const ag_pattern *pattern_sample(int64_t i)
{
    enum { N = 16 };
    static const int32_t pair[][2] = { { 0, 0 }, { 2, 0 }, { 2, 2 }, { 3, 1 }, { 4, 4 } };
    static const struct { int count; ag_pattern_layout layout[3]; } make[] = {
        { 1, { { .n_factors = 1, .factor = { { .kind = AG_FACTOR_LOCAL, .stride = 3 } } } } },
        { 1, { { .n_factors = 2, .factor = { { .kind = AG_FACTOR_STRIDED, .stride = 4 },
                                             { .kind = AG_FACTOR_LOCAL, .stride = 5 } } } } },
        { 1, { { .n_factors = 1, .factor = { { .kind = AG_FACTOR_SUMMARY, .stride = 4,
                                               .width = 2 } } } } },
        { 3, { { .n_factors = 2, .factor = { { .kind = AG_FACTOR_CHUNK, .stride = 4 },
                                             { .kind = AG_FACTOR_SUMMARY, .stride = 4,
                                               .width = 1, .index = 1 } } },
               { .n_factors = 1, .factor = { { .kind = AG_FACTOR_ALL } } },
               { .n_factors = 1, .factor = { { .kind = AG_FACTOR_PAIRS, .width = 2, .pair = pair,
                                               .n_pairs = 5 } } } } },
    };
    static ag_pattern *made[sizeof make / sizeof make[0]];
    if (!made[i]) ag_pattern_new(&made[i], N, make[i].count, make[i].layout, NULL);
    return made[i];
}

static ag_attr attr_sample(int64_t *i)
{
    static const int64_t H[] = { 1, 3 }, DK[] = { 1, 4, 17 }, DV[] = { 1, 8 };
    ag_attr a = { .attention = { .site = 9 } };
    a.attention.heads = H[ag_digit(i, 2)];
    a.attention.d_qk = DK[ag_digit(i, 3)];
    a.attention.d_v = DV[ag_digit(i, 2)];
    const int64_t kind = ag_digit(i, 8);
    a.attention.causal = kind >= 2;
    a.attention.drop = kind < 4 && kind % 2 ? 0.3 : 0;
    a.attention.pattern = kind < 4 ? NULL : pattern_sample(kind - 4);
    return a;
}

/* The lengths, input `at`: absent before kind 0, then present, too long, of another shape. */
static void lengths_sample(ag_sample *s, int at, int64_t tk, int64_t kind)
{
    const bool pattern = s->attr.attention.pattern;
    s->in[at] = AG_SHAPE(kind == 2 ? 3 : 2);
    s->absent = kind < 0 ? 1u << at : 0;
    s->int_lo = kind == 1 ? (int32_t)tk + 1 : 0;
    s->int_hi = (int32_t)tk + (kind == 1 ? 2 : 1);
    if (kind >= 0 && pattern) s->bad = AG_ERANGE;
    else if (kind > 0) s->bad = kind == 1 ? AG_ERANGE : AG_ESHAPE;
}

static bool attend_sample(int64_t i, ag_sample *s)
{
    static const int64_t TQ[] = { 1, 6 }, TK[] = { 1, 9, 0 }, POS[] = { 0, 3, -2 };
    *s = (ag_sample){ .lo = -1.5, .hi = 1.5, .attr = attr_sample(&i) };
    const int64_t tq = TQ[ag_digit(&i, 2)];
    int64_t tk = TK[ag_digit(&i, 3)];
    s->attr.attention.q_pos0 = POS[ag_digit(&i, 3)];
    if (s->attr.attention.pattern) tk = tq, s->attr.attention.q_pos0 = 0;
    const int64_t h = s->attr.attention.heads;
    s->in[0] = AG_SHAPE(2, tq, h * s->attr.attention.d_qk);
    s->in[1] = AG_SHAPE(2, tk, h * s->attr.attention.d_qk);
    s->in[2] = AG_SHAPE(2, tk, h * s->attr.attention.d_v);
    if (i == 1) s->in[s->attr.attention.causal ? 1 : 2].dim[1]++, s->bad = AG_ESHAPE;
    if (i == 2 && s->attr.attention.pattern) s->attr.attention.q_pos0 = 1, s->bad = AG_ESHAPE;
    else if (i == 2) s->attr.attention.drop = -0.1, s->bad = AG_ERANGE;
    lengths_sample(s, 3, tk, i - 3);
    return i < 6;
}

static bool qkv_sample(int64_t i, ag_sample *s)
{
    static const int64_t T[] = { 1, 2, 11, 0 };
    *s = (ag_sample){ .lo = -1.5, .hi = 1.5, .attr = attr_sample(&i) };
    const int64_t t = T[ag_digit(&i, 4)], h = s->attr.attention.heads;
    s->in[0] = AG_SHAPE(2, t, h * (2 * s->attr.attention.d_qk + s->attr.attention.d_v));
    if (i == 1) s->in[0].dim[2]++, s->bad = AG_ESHAPE;
    if (i == 2) s->attr.attention.drop = 1, s->bad = AG_ERANGE;
    if (i == 3 && s->attr.attention.pattern) s->attr.attention.drop = 0.3, s->bad = AG_ERANGE;
    else if (i == 3) s->attr.attention.heads = 0, s->bad = AG_ESHAPE;
    if (i == 4 && s->attr.attention.pattern) s->in[0].dim[1] = 17, s->bad = AG_ERANGE;
    else if (i == 4) s->attr.attention.d_v = 0, s->bad = AG_ESHAPE;
    lengths_sample(s, 1, t, i - 5);
    return i < 8;
}

const ag_op ag_op_attend = {
    .name = "attend",
    .doc = "o = softmax(q k^T / sqrt(d_qk)) v per head; "
           "q [b,tq,h*d_qk], k [b,tk,h*d_qk], v [b,tk,h*d_v]; keys beyond lengths[b] are not seen",
    .n_in = 4, .n_out = 1, .optional = 1u << 3, .integer_in = 1u << 3, .shape = ag_attend_shape,
    .saved_bytes = ag_attention_saved, .forward = attend_forward,
    .backward = attend_backward, .workspace = attend_workspace, .half = ag_attention_half,
    .flops = ag_attention_flops, .sample = attend_sample,
};

const ag_op ag_op_attend_qkv = {
    .name = "attend_qkv", .doc = "attend with q, k, v side by side in one [b,t,h*(2*d_qk+d_v)]",
    .n_in = 2, .n_out = 1, .optional = 1u << 1, .integer_in = 1u << 1,
    .shape = ag_attend_qkv_shape, .saved_bytes = ag_attention_saved,
    .forward = attend_forward, .backward = qkv_backward, .workspace = qkv_workspace,
    .half = ag_attention_half, .flops = ag_attention_flops, .sample = qkv_sample,
};

ag_attr ag_attention_attr(const ag_attention_options *o)
{
    return (ag_attr){ .attention = { .heads = o->heads, .d_qk = o->d_qk, .d_v = o->d_v,
                                     .q_pos0 = o->q_pos0, .pattern = o->pattern,
                                     .causal = o->causal, .drop = o->drop, .site = o->site } };
}

ag_tensor *ag_attend(ag_tape *t, ag_tensor *q, ag_tensor *k, ag_tensor *v,
                     const ag_attention_options *o)
{
    const ag_attr a = ag_attention_attr(o);
    return ag_apply(t, &ag_op_attend, (ag_tensor *[AG_MAX_IN]){ q, k, v, o->lengths }, &a, NULL);
}

ag_tensor *ag_attend_qkv(ag_tape *t, ag_tensor *qkv, const ag_attention_options *o)
{
    const ag_attr a = ag_attention_attr(o);
    return ag_apply(t, &ag_op_attend_qkv, (ag_tensor *[AG_MAX_IN]){ qkv, o->lengths }, &a, NULL);
}
