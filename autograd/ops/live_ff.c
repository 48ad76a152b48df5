/*
 * live_ff.c -- a feed-forward layer of which only the listed units of each row are computed.
 *
 *     a = x w1[u] + b1[u]      for the units u that a row lists (ag_live in kernels.h)
 *     h = gate * relu(a)
 *     y = sum of h w2[u] + b2 + residual
 *
 * Weights are rows of units, w1 [units,d], w2 [units,d_out]: one unit reads two runs of memory.
 *
 *     dh = dy w2[u]            da = gate * dh * (a > 0)     dgate = dh * relu(a)
 *     dx = sum of da w1[u]     dw1[u] += da x     db1[u] += da     dw2[u] += h dy     db2 += dy
 *
 * With `all`, gate has a number for each of the n choices of a block, of which forward uses that of
 * the choice: then dgate is computed for all of them, as a mask after the ReLU wants it: two dense
 * products, x w1^T and dy w2^T, a part of the rows at a time.
 */
#include "../op.h"
#include "../ops.h"

enum { X, W1, B1, W2, B2, GATE, CHOICE, R };
enum { PART = 256 };                 /* rows of the dense products at a time */

typedef struct sizes {
    int64_t rows, units, d, d_out;
    int64_t blocks, picks;
    int64_t gates;                   /* of a row that h uses: blocks * picks */
    int64_t listed;                  /* units of a row */
} sizes;

static sizes sizes_of(const ag_call *c)
{
    sizes s = { .rows = ag_rows(c->in[X]), .units = c->in[W1]->shape.dim[0],
                .d = ag_cols(c->in[X]), .d_out = ag_cols(c->in[W2]), .picks = c->attr.live.picks };
    s.blocks = s.units / (c->attr.live.n * c->attr.live.width);
    s.gates = s.blocks * s.picks;
    s.listed = s.gates * c->attr.live.width;
    return s;
}

static ag_live live(const ag_call *c, const sizes *s, int64_t d)
{
    return (ag_live){ .rows = s->rows, .d = d, .blocks = s->blocks, .n = c->attr.live.n,
                      .width = c->attr.live.width, .picks = s->picks,
                      .choice = c->in[CHOICE]->data };
}

static void *data_of(const ag_tensor *x) { return x ? x->data : NULL; }

/* [..,last] with the rows of x */
static ag_shape row_shape(const ag_tensor *x, int64_t last)
{
    ag_shape s = x->shape;
    s.dim[s.ndim - 1] = last;
    return s;
}

static int check_weights(ag_call *c)
{
    const ag_shape *x = &c->in[X]->shape, *w1 = &c->in[W1]->shape, *w2 = &c->in[W2]->shape;
    const int64_t n = c->attr.live.n, width = c->attr.live.width;
    char s[96], w[96];
    if (x->ndim < 1 || w1->ndim != 2 || x->dim[x->ndim - 1] != w1->dim[1])
        return ag_fail(c->tape, AG_ESHAPE, "live_ff: x %s does not fit w1 %s [units,d]",
                       ag_shape_text(x, s), ag_shape_text(w1, w));
    if (w2->ndim != 2 || w2->dim[0] != w1->dim[0])
        return ag_fail(c->tape, AG_ESHAPE, "live_ff: w1 %s and w2 %s have other numbers of units",
                       ag_shape_text(w1, s), ag_shape_text(w2, w));
    if (n < 1 || width < 1 || n > w1->dim[0] || width > w1->dim[0] || w1->dim[0] % (n * width))
        return ag_fail(c->tape, AG_ESHAPE, "live_ff: the units of w1 %s cannot be cut into blocks "
                       "of %lld times %lld", ag_shape_text(w1, s), (long long)n, (long long)width);
    if (c->attr.live.picks < 1 || (c->attr.live.all && c->attr.live.picks != 1))
        return ag_fail(c->tape, AG_ERANGE, "live_ff: %lld picks", (long long)c->attr.live.picks);
    return AG_OK;
}

static int check_one(ag_call *c, int i, const char *name, const ag_shape *want)
{
    char s[96], w[96];
    if (!c->in[i] || ag_shape_equal(&c->in[i]->shape, want)) return AG_OK;
    return ag_fail(c->tape, AG_ESHAPE, "live_ff: %s is %s and should be %s", name,
                   ag_shape_text(&c->in[i]->shape, s), ag_shape_text(want, w));
}

static int live_ff_shape(ag_call *c, ag_shape *out)
{
    int r = check_weights(c);
    if (r) return r;
    const sizes s = sizes_of(c);
    const ag_shape y = row_shape(c->in[X], s.d_out), list = row_shape(c->in[X], s.gates);
    const ag_shape gate = row_shape(c->in[X], c->attr.live.all ? s.blocks * c->attr.live.n
                                                               : s.gates);
    out[0] = y;
    r = check_one(c, B1, "b1", &AG_SHAPE(s.units));
    if (!r) r = check_one(c, B2, "b2", &AG_SHAPE(s.d_out));
    if (!r) r = check_one(c, CHOICE, "choice", &list);
    if (!r) r = check_one(c, GATE, "gate", &gate);
    return r ? r : check_one(c, R, "residual", &y);
}

/* a and h [rows,listed]; with `all`, also the gates of the choices [rows,blocks] */
static size_t live_ff_saved(const ag_call *c)
{
    const sizes s = sizes_of(c);
    const int64_t n = s.rows * (2 * s.listed + (c->attr.live.all && c->in[GATE] ? s.gates : 0));
    return (size_t)n * ag_real_size(c);
}

typedef struct saved { void *a, *h, *gate; } saved;

static saved saved_of(const ag_call *c, const sizes *s)
{
    const size_t bytes = (size_t)(s->rows * s->listed) * ag_real_size(c);
    char *p = c->saved;
    return (saved){ p, p + bytes,
                    c->attr.live.all && c->in[GATE] ? p + 2 * bytes : data_of(c->in[GATE]) };
}

static void live_ff_forward(ag_call *c)
{
    const sizes s = sizes_of(c);
    const saved v = saved_of(c, &s);
    const ag_live in = live(c, &s, s.d), out = live(c, &s, s.d_out);
    if (ag_check_index(c, CHOICE, 0, c->attr.live.n)) return;
    if (v.gate && c->attr.live.all)
        c->k->pick_fwd(s.rows * s.blocks, c->attr.live.n, in.choice, c->in[GATE]->data, v.gate);
    c->k->live_dot(&in, c->in[X]->data, c->in[W1]->data, data_of(c->in[B1]), v.a);
    c->k->gate_fwd(s.rows * s.gates, c->attr.live.width, v.a, v.gate, v.h);
    c->k->live_sum(&out, v.h, c->in[W2]->data, data_of(c->in[B2]), data_of(c->in[R]),
                   c->out[0]->data, false);
}

/* dgate of all choices: relu(x w1^T + b1) * (dy w2^T), summed over the width of a choice */
static void all_gates(ag_call *c, const sizes *s, void *dgate, bool acc)
{
    const size_t real = ag_real_size(c);
    const int64_t part = s->rows < PART ? s->rows : PART, width = c->attr.live.width;
    char *a = ag_scratch(c->tape, (size_t)(part * s->units) * real);
    char *dh = ag_scratch(c->tape, (size_t)(part * s->units) * real);
    if (!a || !dh) return;
    const char *x = c->in[X]->data, *dy = c->out[0]->grad;
    for (int64_t r = 0; r < s->rows; r += part) {
        const int64_t m = s->rows - r < part ? s->rows - r : part;
        c->k->gemm(&(ag_gemm){ .tb = true, .m = m, .n = s->units, .k = s->d,
                               .a = x + (size_t)(r * s->d) * real, .lda = s->d,
                               .b = c->in[W1]->data, .ldb = s->d, .c = a, .ldc = s->units,
                               .bias = data_of(c->in[B1]) });
        c->k->gemm(&(ag_gemm){ .tb = true, .m = m, .n = s->units, .k = s->d_out,
                               .a = dy + (size_t)(r * s->d_out) * real, .lda = s->d_out,
                               .b = c->in[W2]->data, .ldb = s->d_out, .c = dh, .ldc = s->units });
        c->k->gate_bwd(m * s->units / width, width, a, NULL, dh, NULL,
                       (char *)dgate + (size_t)(r * s->units / width) * real, acc);
    }
}

static void live_ff_backward(ag_call *c)
{
    const sizes s = sizes_of(c);
    const saved v = saved_of(c, &s);
    const ag_live in = live(c, &s, s.d), out = live(c, &s, s.d_out);
    void *dy = c->out[0]->grad;
    void *dh = ag_scratch(c->tape, (size_t)(s.rows * s.listed) * ag_real_size(c));
    if (!dh) return;
    bool acc;
    void *dgate = ag_grad_of(c, GATE, &acc);
    c->k->live_dot(&out, dy, c->in[W2]->data, NULL, dh);
    if (dgate && c->attr.live.all) {
        all_gates(c, &s, dgate, acc);
        dgate = NULL;
    }
    void *da = dh;
    c->k->gate_bwd(s.rows * s.gates, c->attr.live.width, v.a, v.gate, dh, da, dgate, acc);
    void *dw1 = ag_grad_add(c, W1), *db1 = ag_grad_add(c, B1);
    if (dw1 || db1) c->k->live_grad(&in, da, c->in[X]->data, dw1, db1);
    void *dw2 = ag_grad_add(c, W2), *db2 = ag_grad_add(c, B2);
    if (dw2) c->k->live_grad(&out, v.h, dy, dw2, NULL);
    if (db2) c->k->act_bwd(AG_ACT_NONE, s.rows, s.d_out, NULL, dy, NULL, db2, true);
    void *dx = ag_grad_of(c, X, &acc);
    if (dx) c->k->live_sum(&in, da, c->in[W1]->data, NULL, NULL, dx, acc);
    ag_grad_pass(c, R);
}

static size_t live_ff_workspace(const ag_call *c, bool back)
{
    const sizes s = sizes_of(c);
    const ag_tensor *gate = c->in[GATE];
    const int64_t part = s.rows < PART ? s.rows : PART;
    if (!back) return 0;
    return ag_scratch_size((size_t)(s.rows * s.listed) * ag_real_size(c)) +
           (gate && gate->needs_grad && c->attr.live.all
                ? 2 * ag_scratch_size((size_t)(part * s.units) * ag_real_size(c)) : 0);
}

static bool live_ff_half(const ag_call *c, const ag_kernels *k)
{
    if (c->attr.live.all && c->in[GATE] && !(k->pick_fwd && k->gemm)) return false;
    return k->live_dot && k->live_sum && k->live_grad && k->gate_fwd && k->gate_bwd && k->act_bwd;
}

static int64_t live_ff_flops(const ag_call *c)
{
    const sizes s = sizes_of(c);
    return 2 * s.rows * s.listed * (s.d + s.d_out);
}

static bool live_ff_sample(int64_t i, ag_sample *s)
{
    enum { N = 3, D = 5, D_OUT = 4 };
    static const int64_t M[] = { 1, 4, 0 }, PICKS[] = { 1, 2 };
    const int64_t m = M[ag_digit(&i, 3)], blocks = 1 + ag_digit(&i, 2);
    const int64_t width = 1 + 2 * ag_digit(&i, 2);
    const int list = ag_digit(&i, 3);                        /* the choice, two of three, all */
    const unsigned bare = (unsigned)ag_digit(&i, 3);         /* optional inputs that are left out */
    const int64_t picks = PICKS[list == 1], units = blocks * N * width;
    static const unsigned absent[] = { 0, 1u << GATE | 1u << R, 1u << B1 | 1u << B2 };
    *s = (ag_sample){ .in = { AG_SHAPE(m, D), AG_SHAPE(units, D), AG_SHAPE(units),
                              AG_SHAPE(units, D_OUT), AG_SHAPE(D_OUT),
                              AG_SHAPE(m, blocks * (list == 2 ? N : picks)),
                              AG_SHAPE(m, blocks * picks), AG_SHAPE(m, D_OUT) },
                      .absent = absent[bare], .lo = 0.1, .hi = 1, .int_hi = N,
                      .surrogate = list == 2 && bare != 1,
                      .attr.live = { .n = N, .width = width, .picks = picks, .all = list == 2 } };
    if (i == 1) {                    /* one input after the other does not fit */
        static const int which[] = { X, W2, CHOICE };
        ag_shape *bad = &s->in[which[bare]];
        bad->dim[bad->ndim - 1 - (which[bare] == W2)]++;
        s->bad = AG_ESHAPE;
    }
    return i < 2;
}

static unsigned live_ff_unread(const ag_call *c)
{
    (void)c;
    return AG_UNREAD_IN(B2) | AG_UNREAD_IN(R) | AG_UNREAD_OUT(0);
}

const ag_op ag_op_live_ff = {
    .name = "live_ff",
    .doc = "y = gate * relu(x w1^T + b1) w2 + b2 + residual over the listed units of each row",
    .n_in = 8, .n_out = 1, .optional = 1u << B1 | 1u << B2 | 1u << GATE | 1u << R,
    .integer_in = 1u << CHOICE, .passes = 1u << R, .shape = live_ff_shape,
    .saved_bytes = live_ff_saved, .forward = live_ff_forward, .backward = live_ff_backward,
    .workspace = live_ff_workspace,
    .half = live_ff_half, .weights = 1u << W1 | 1u << B1 | 1u << W2 | 1u << B2,
    .unread = live_ff_unread,
    .flops = live_ff_flops, .sample = live_ff_sample,
};

ag_tensor *ag_live_ff(ag_tape *t, ag_tensor *x, const ag_live_weights *w, ag_tensor *gate,
                      ag_tensor *choice, ag_tensor *residual, const ag_live_options *o)
{
    return ag_apply(t, &ag_op_live_ff,
                    (ag_tensor *[AG_MAX_IN]){ x, w->w1, w->b1, w->w2, w->b2, gate, choice,
                                              residual },
                    &(ag_attr){ .live = *o }, NULL);
}
