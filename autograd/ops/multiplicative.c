/*
 * multiplicative.c -- the multiplicative layer (2111.12763 section 3.2): a linear map whose weight
 * is factored into S modules of M outputs that share all but a gate for each input,
 *
 *     y[s*M + m] = sum_i x_i D[s,i] E[m,i] + b[s*M + m]         W[s*M + m, i] = D[s,i] E[m,i]
 *
 * so S d + M d weights stand for S M d.  The output may end within the last module (a vocabulary
 * that S does not divide).
 *
 * Many rows: W of a few modules at a time, as much as stays in the cache, and ordinary products
 * with it.  Few rows (decoding): x D, and one product with E, which is then read from memory once
 * for all S modules.  Backward, module by module:
 *
 *     dW = dy^T x     dD[s] = sum_m E[m] dW[s,m]     dE[m] = sum_s D[s] dW[s,m]     dx = dy W
 *
 * On 16 bits W and x D are rounded; dW, dD and dE are f32.
 */
#include "../op.h"
#include "../ops.h"

enum { X, D, E, B };
enum { FEW_ROWS = 64 };
/* Numbers of W made at a time; a GPU has a cache of tens of MB, and launches cost. */
enum { CACHED = 1 << 18, CACHED_DEVICE = 1 << 22 };

typedef struct sizes { int64_t rows, d, modules, m, width, cached; } sizes;

static sizes sizes_of(const ag_call *c)
{
    const int64_t modules = c->in[D]->shape.dim[0], m = c->in[E]->shape.dim[0];
    const int64_t width = c->attr.multiplicative.width;
    return (sizes){ ag_rows(c->in[X]), c->in[D]->shape.dim[1], modules, m,
                    width ? width : modules * m,
                    c->k && c->k->device ? CACHED_DEVICE : CACHED };
}

static int multiplicative_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *x = &c->in[X]->shape, *d = &c->in[D]->shape, *e = &c->in[E]->shape;
    char sx[96], sd[96], se[96];
    if (x->ndim < 1 || d->ndim != 2 || e->ndim != 2 || x->dim[x->ndim - 1] != d->dim[1] ||
        d->dim[1] != e->dim[1])
        return ag_fail(c->tape, AG_ESHAPE, "multiplicative: x %s, gates %s and weight %s: wanted "
                       "[..,d], [modules,d], [width of a module,d]", ag_shape_text(x, sx),
                       ag_shape_text(d, sd), ag_shape_text(e, se));
    const sizes s = sizes_of(c);
    if (s.width > s.modules * s.m || s.width <= (s.modules - 1) * s.m)
        return ag_fail(c->tape, AG_ESHAPE, "multiplicative: an output of %lld does not end in the "
                       "last of %lld modules of %lld", (long long)s.width, (long long)s.modules,
                       (long long)s.m);
    if (c->in[B] && (c->in[B]->shape.ndim != 1 || c->in[B]->size != s.width))
        return ag_fail(c->tape, AG_ESHAPE, "multiplicative: bias %s, wanted [%lld]",
                       ag_shape_text(&c->in[B]->shape, sx), (long long)s.width);
    out[0] = *x;
    out[0].dim[x->ndim - 1] = s.width;
    return AG_OK;
}

static char *at(const ag_call *c, const void *p, int64_t i)
{
    return (char *)(uintptr_t)p + (size_t)i * ag_real_size(c);
}

/* How many modules at a time, and the columns of those from `first` on. */
static int64_t group_size(const sizes *s)
{
    const int64_t one = s->m * s->d, fit = one > 0 ? s->cached / one : s->modules;
    return fit < 1 ? 1 : fit < s->modules ? fit : s->modules;
}

static int64_t group_count(const sizes *s, int64_t first)
{
    const int64_t g = group_size(s), left = s->modules - first;
    return g < left ? g : left;
}

static int64_t group_columns(const sizes *s, int64_t first)
{
    const int64_t n = group_count(s, first) * s->m, left = s->width - first * s->m;
    return n < left ? n : left;
}

/* Of a weight, in numbers of `real` bytes. */
static size_t weight_bytes(const sizes *s, size_t real)
{
    return (size_t)(group_size(s) * s->m * s->d) * real;
}

/* W of the modules from `first` on */
static void weight_make(const ag_call *c, const sizes *s, int64_t first, void *w)
{
    c->k->outer_fwd(group_count(s, first), s->m, s->d, at(c, c->in[D]->data, first * s->d),
                    c->in[E]->data, w);
}

static void forward_many(const ag_call *c, const sizes *s)
{
    void *w = ag_scratch(c->tape, weight_bytes(s, ag_real_size(c)));
    for (int64_t i = 0; w && i < s->modules; i += group_size(s)) {
        weight_make(c, s, i, w);
        c->k->gemm(&(ag_gemm){
            .tb = true, .m = s->rows, .n = group_columns(s, i), .k = s->d, .a = c->in[X]->data,
            .lda = s->d, .b = w, .ldb = s->d, .c = at(c, c->out[0]->data, i * s->m),
            .ldc = s->width, .bias = c->in[B] ? at(c, c->in[B]->data, i * s->m) : NULL });
    }
}

static void forward_few(const ag_call *c, const sizes *s)
{
    const size_t one = ag_real_size(c);
    void *xd = ag_scratch(c->tape, (size_t)(s->rows * s->modules * s->d) * one);
    void *y = ag_scratch(c->tape, (size_t)(s->rows * s->modules * s->m) * one);
    if (!xd || !y) return;
    c->k->outer_fwd(s->rows, s->modules, s->d, c->in[X]->data, c->in[D]->data, xd);
    c->k->gemm(&(ag_gemm){ .tb = true, .m = s->rows * s->modules, .n = s->m, .k = s->d, .a = xd,
                           .lda = s->d, .b = c->in[E]->data, .ldb = s->d, .c = y, .ldc = s->m });
    void *out = c->out[0]->data;
    c->k->copy_rows(s->rows, s->width, y, s->modules * s->m, out, s->width, false);
    if (c->in[B]) c->k->copy_rows(s->rows, s->width, c->in[B]->data, 0, out, s->width, true);
}

static bool is_few(const sizes *s) { return s->rows <= FEW_ROWS && s->rows <= s->m; }

static size_t multiplicative_workspace(const ag_call *c, bool back)
{
    const sizes s = sizes_of(c);
    const size_t each = (size_t)(s.rows * s.modules) * ag_real_size(c);
    const size_t weight = weight_bytes(&s, ag_real_size(c));
    if (back) return ag_scratch_size(weight) + ag_scratch_size(weight_bytes(&s, ag_kept_size(c)));
    if (!is_few(&s)) return weight;
    return ag_scratch_size(each * (size_t)s.d) + ag_scratch_size(each * (size_t)s.m);
}

static void multiplicative_forward(ag_call *c)
{
    const sizes s = sizes_of(c);
    if (is_few(&s)) forward_few(c, &s);
    else forward_many(c, &s);
}

typedef struct grads { void *d, *e, *x; bool acc_x; } grads;

/* What the modules from `first` on add to the gradients; w, dw: space for a weight each. */
static void backward_group(const ag_call *c, const sizes *s, int64_t first, const grads *g,
                           void *w, void *dw)
{
    const int64_t n = group_columns(s, first), count = group_count(s, first), all = count * s->m;
    const void *dy = at(c, c->out[0]->grad, first * s->m);
    if (g->d || g->e) {
        c->k->gemm(&(ag_gemm){ .ta = true, .c_f32 = ag_dtype_is_half(c->k->dtype), .m = n,
                               .n = s->d, .k = s->rows, .a = dy, .lda = s->width,
                               .b = c->in[X]->data, .ldb = s->d, .c = dw, .ldc = s->d });
        const size_t one = ag_kept_size(c);
        if (all > n)
            (c->k->wide ? c->k->wide : c->k)->fill((all - n) * s->d, 0,
                                                   (char *)dw + (size_t)(n * s->d) * one);
        c->k->outer_bwd(count, s->m, s->d, at(c, c->in[D]->data, first * s->d), c->in[E]->data, dw,
                        g->d ? (char *)g->d + (size_t)(first * s->d) * one : NULL, g->e);
    }
    if (!g->x) return;
    weight_make(c, s, first, w);
    c->k->gemm(&(ag_gemm){ .acc = g->acc_x || first > 0, .m = s->rows, .n = s->d, .k = n, .a = dy,
                           .lda = s->width, .b = w, .ldb = s->d, .c = g->x, .ldc = s->d });
}

static void multiplicative_backward(ag_call *c)
{
    const sizes s = sizes_of(c);
    grads g = { .d = ag_grad_add(c, D), .e = ag_grad_add(c, E) };
    void *db = ag_grad_add(c, B);
    void *w = ag_scratch(c->tape, weight_bytes(&s, ag_real_size(c)));
    void *dw = ag_scratch(c->tape, weight_bytes(&s, ag_kept_size(c)));
    g.x = ag_grad_of(c, X, &g.acc_x);
    if (!w || !dw) return;
    for (int64_t i = 0; i < s.modules; i += group_size(&s)) backward_group(c, &s, i, &g, w, dw);
    if (db)
        c->k->act_bwd(AG_ACT_NONE, s.rows, s.width, NULL, c->out[0]->grad, NULL, db, true);
}

static bool multiplicative_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->outer_fwd && k->outer_bwd && k->gemm && k->copy_rows && k->act_bwd;
}

static int64_t multiplicative_flops(const ag_call *c)
{
    const sizes s = sizes_of(c);
    return 2 * s.rows * s.width * s.d;
}

static bool multiplicative_sample(int64_t i, ag_sample *s)
{
    static const int64_t R[] = { 1, 5, 70, 0 }, S[] = { 1, 4 }, M[] = { 1, 6 }, DIN[] = { 1, 8 };
    const unsigned absent = (unsigned)ag_digit(&i, 2) << B;
    const int64_t rows = R[ag_digit(&i, 4)], modules = S[ag_digit(&i, 2)], m = M[ag_digit(&i, 2)],
        d = DIN[ag_digit(&i, 2)];
    *s = (ag_sample){ .in = { AG_SHAPE(rows, d), AG_SHAPE(modules, d), AG_SHAPE(m, d),
                              AG_SHAPE(modules * m) }, .absent = absent, .lo = -1, .hi = 1 };
    if (i == 1) {                    /* a second round: the last module is cut off, batches */
        s->attr.multiplicative.width = modules * m - m / 2;
        s->in[B] = AG_SHAPE(modules * m - m / 2);
        s->in[X] = AG_SHAPE(2, rows, d);
    } else if (i == 2) {             /* one module too many; an inner size */
        if (modules > 1) s->attr.multiplicative.width = (modules - 1) * m;
        else s->in[E] = AG_SHAPE(m, d + 1);
        s->bad = AG_ESHAPE;
    } else if (i == 3) {             /* a wrong bias, else no rows at all */
        if (absent) s->in[X] = (ag_shape){ 0 };
        else s->in[B] = AG_SHAPE(modules * m + 1);
        s->bad = AG_ESHAPE;
    }
    return i < 4;
}

const ag_op ag_op_multiplicative = {
    .name = "multiplicative",
    .doc = "y[..,s*M+m] = sum_i x[..,i] gates[s,i] w[m,i] + bias[s*M+m]",
    .n_in = 4, .n_out = 1, .optional = 1u << B, .shape = multiplicative_shape,
    .forward = multiplicative_forward, .backward = multiplicative_backward,
    .half = multiplicative_half, .weights = 1u << D | 1u << E | 1u << B,
    .workspace = multiplicative_workspace, .flops = multiplicative_flops, .unread = ag_unread_out,
    .sample = multiplicative_sample,
};

ag_tensor *ag_multiplicative(ag_tape *t, ag_tensor *x, ag_tensor *gates, ag_tensor *w,
                             ag_tensor *bias, int64_t width)
{
    return ag_apply(t, &ag_op_multiplicative, (ag_tensor *[AG_MAX_IN]){ x, gates, w, bias },
                    &(ag_attr){ .multiplicative = { width } }, NULL);
}
