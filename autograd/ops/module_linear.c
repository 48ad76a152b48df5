/*
 * module_linear.c -- linear layers within modules, each with its own weights, and the joining of
 * modules (LocallyConnectedDense of the code of 2111.12763).  x is S modules of P numbers, y of O:
 *
 *     y[s] = b[s] + sum_{c < C} K[s,c] x[(s - (C-1)/2 + c) mod S]        K[s,c] [O,P]
 *     dK[s,c] = dy[s]^T x[..]     dx[(s - (C-1)/2 + c) mod S] += dy[s] K[s,c]
 *
 * The weight is [S*O, C*P], row s*O + o.  On 16 bits its gradient is f32.
 */
#include "../op.h"
#include "../ops.h"

enum { X, W, B };

typedef struct sizes { int64_t rows, modules, span, p, o; } sizes;

static sizes sizes_of(const ag_call *c)
{
    const int64_t modules = c->attr.module_linear.modules;
    return (sizes){ ag_rows(c->in[X]), modules, c->attr.module_linear.span,
                    ag_cols(c->in[X]) / modules, c->in[W]->shape.dim[0] / modules };
}

static int linear_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *x = &c->in[X]->shape, *w = &c->in[W]->shape;
    const int64_t modules = c->attr.module_linear.modules, span = c->attr.module_linear.span;
    char sx[96], sw[96];
    if (modules < 1 || span < 1 || span % 2 == 0 || span > modules)
        return ag_fail(c->tape, AG_ESHAPE, "module_linear: a span of %lld must be odd, and at "
                       "most the %lld modules", (long long)span, (long long)modules);
    if (x->ndim < 1 || x->dim[x->ndim - 1] % modules || w->ndim != 2 || w->dim[0] % modules ||
        w->dim[1] != span * (x->dim[x->ndim - 1] / modules))
        return ag_fail(c->tape, AG_ESHAPE, "module_linear: x %s and weight %s do not fit %lld "
                       "modules and a span of %lld", ag_shape_text(x, sx), ag_shape_text(w, sw),
                       (long long)modules, (long long)span);
    if (c->in[B] && (c->in[B]->shape.ndim != 1 || c->in[B]->size != w->dim[0]))
        return ag_fail(c->tape, AG_ESHAPE, "module_linear: bias %s does not fit the weight %s",
                       ag_shape_text(&c->in[B]->shape, sx), ag_shape_text(w, sw));
    out[0] = *x;
    out[0].dim[x->ndim - 1] = w->dim[0];
    return AG_OK;
}

static char *at(const ag_call *c, const void *p, int64_t i)
{
    return (char *)(uintptr_t)p + (size_t)i * ag_real_size(c);
}

/* The module of x that module s sees at place i of its span. */
static int64_t seen(const sizes *s, int64_t module, int64_t i)
{
    return (module - s->span / 2 + i + s->modules) % s->modules;
}

static void linear_forward(ag_call *c)
{
    const sizes s = sizes_of(c);
    for (int64_t m = 0; m < s.modules; m++)
        for (int64_t i = 0; i < s.span; i++)
            c->k->gemm(&(ag_gemm){
                .tb = true, .acc = i > 0, .m = s.rows, .n = s.o, .k = s.p,
                .a = at(c, c->in[X]->data, seen(&s, m, i) * s.p), .lda = s.modules * s.p,
                .b = at(c, c->in[W]->data, (m * s.o * s.span + i) * s.p), .ldb = s.span * s.p,
                .c = at(c, c->out[0]->data, m * s.o), .ldc = s.modules * s.o,
                .bias = c->in[B] && i == 0 ? at(c, c->in[B]->data, m * s.o) : NULL });
}

/* Place i of every span; at i = 0 every module of x is met once. */
static void backward_place(const ag_call *c, const sizes *s, int64_t i, char *dw, bool acc_w,
                           char *dx, bool acc_x)
{
    for (int64_t m = 0; m < s->modules; m++) {
        const void *dy = at(c, c->out[0]->grad, m * s->o);
        const int64_t weight = (m * s->o * s->span + i) * s->p, from = seen(s, m, i) * s->p;
        if (dw)
            c->k->gemm(&(ag_gemm){
                .ta = true, .acc = acc_w, .c_f32 = ag_dtype_is_half(c->k->dtype), .m = s->o,
                .n = s->p, .k = s->rows, .a = dy, .lda = s->modules * s->o,
                .b = at(c, c->in[X]->data, from), .ldb = s->modules * s->p,
                .c = dw + (size_t)weight * ag_kept_size(c), .ldc = s->span * s->p });
        if (dx)
            c->k->gemm(&(ag_gemm){
                .acc = acc_x || i > 0, .m = s->rows, .n = s->p, .k = s->o, .a = dy,
                .lda = s->modules * s->o, .b = at(c, c->in[W]->data, weight),
                .ldb = s->span * s->p, .c = at(c, dx, from), .ldc = s->modules * s->p });
    }
}

static void linear_backward(ag_call *c)
{
    const sizes s = sizes_of(c);
    bool acc_w, acc_x;
    void *db = ag_grad_add(c, B), *dw = ag_grad_of(c, W, &acc_w), *dx = ag_grad_of(c, X, &acc_x);
    if (db)
        c->k->act_bwd(AG_ACT_NONE, s.rows, s.modules * s.o, NULL, c->out[0]->grad, NULL, db, true);
    for (int64_t i = 0; i < s.span; i++) backward_place(c, &s, i, dw, acc_w, dx, acc_x);
}

/* Sums over a span would be rounded after each of its places. */
static bool linear_half(const ag_call *c, const ag_kernels *k)
{
    return c->attr.module_linear.span == 1 && k->gemm && k->act_bwd;
}

static int64_t linear_flops(const ag_call *c)
{
    const sizes s = sizes_of(c);
    return 2 * s.rows * s.modules * s.o * s.span * s.p;
}

static bool linear_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 0 }, S[] = { 1, 4 }, C[] = { 1, 3 }, P[] = { 1, 3 };
    static const int64_t O[] = { 1, 4 };
    const unsigned absent = (unsigned)ag_digit(&i, 2) << B;
    const int64_t m = M[ag_digit(&i, 3)], span = C[ag_digit(&i, 2)],
        modules = S[ag_digit(&i, 2)] + (span - 1), p = P[ag_digit(&i, 2)], o = O[ag_digit(&i, 2)];
    *s = (ag_sample){ .in = { AG_SHAPE(m, modules * p), AG_SHAPE(modules * o, span * p),
                              AG_SHAPE(modules * o) }, .absent = absent, .lo = -1, .hi = 1,
                      .attr.module_linear = { modules, span } };
    if (i == 1) {                    /* a second round: a batch dimension */
        s->in[X] = AG_SHAPE(2, m, modules * p);
    } else if (i == 2) {             /* an inner size, a span, a bias that do not fit */
        if (span > 1) s->in[W].dim[1]++;
        else if (absent) s->attr.module_linear.span = modules + 1;
        else s->in[B].dim[0]++;
        s->bad = AG_ESHAPE;
    }
    return i < 3;
}

const ag_op ag_op_module_linear = {
    .name = "module_linear",
    .doc = "y[..,s,:] = bias[s] + sum_c K[s,c] x[..,(s-(C-1)/2+c) mod S,:], w [S*o,C*p]",
    .n_in = 3, .n_out = 1, .optional = 1u << B, .shape = linear_shape, .forward = linear_forward,
    .backward = linear_backward, .half = linear_half, .weights = 1u << W | 1u << B,
    .flops = linear_flops, .sample = linear_sample,
};

ag_tensor *ag_module_linear(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *bias,
                            int64_t modules, int64_t span)
{
    return ag_apply(t, &ag_op_module_linear, (ag_tensor *[AG_MAX_IN]){ x, w, bias },
                    &(ag_attr){ .module_linear = { modules, span } }, NULL);
}

/* --- y[s] = a[s], b[s] ------------------------------------------------------------------------ */

static int concat_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *a = &c->in[0]->shape, *b = &c->in[1]->shape;
    const int64_t modules = c->attr.module_concat.modules;
    char sa[96], sb[96];
    bool fits = modules > 0 && a->ndim > 0 && a->ndim == b->ndim;
    for (int i = 0; fits && i < a->ndim; i++)
        fits = i < a->ndim - 1 ? a->dim[i] == b->dim[i]
                               : a->dim[i] % modules == 0 && b->dim[i] % modules == 0;
    if (!fits)
        return ag_fail(c->tape, AG_ESHAPE, "module_concat: %s and %s cannot be joined in %lld "
                       "modules", ag_shape_text(a, sa), ag_shape_text(b, sb), (long long)modules);
    out[0] = *a;
    out[0].dim[a->ndim - 1] += b->dim[b->ndim - 1];
    return AG_OK;
}

static void concat_forward(ag_call *c)
{
    const int64_t modules = c->attr.module_concat.modules, rows = ag_rows(c->in[0]) * modules;
    const int64_t a = ag_cols(c->in[0]) / modules, b = ag_cols(c->in[1]) / modules;
    void *y = c->out[0]->data;
    c->k->copy_rows(rows, a, c->in[0]->data, a, y, a + b, false);
    c->k->copy_rows(rows, b, c->in[1]->data, b, at(c, y, a), a + b, false);
}

static void concat_backward(ag_call *c)
{
    const int64_t modules = c->attr.module_concat.modules, rows = ag_rows(c->in[0]) * modules;
    const int64_t width[2] = { ag_cols(c->in[0]) / modules, ag_cols(c->in[1]) / modules };
    for (int i = 0; i < 2; i++) {
        bool acc;
        void *dx = ag_grad_of(c, i, &acc);
        if (dx)
            c->k->copy_rows(rows, width[i], at(c, c->out[0]->grad, i * width[0]),
                            width[0] + width[1], dx, width[i], acc);
    }
}

static bool concat_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->copy_rows;
}

static bool concat_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 0 }, S[] = { 1, 4 }, A[] = { 1, 3 }, Q[] = { 1, 3, 20 };
    const int64_t m = M[ag_digit(&i, 3)], modules = S[ag_digit(&i, 2)], a = A[ag_digit(&i, 2)],
        b = Q[ag_digit(&i, 3)];
    *s = (ag_sample){ .in = { AG_SHAPE(2, m, modules * a), AG_SHAPE(2, m, modules * b) }, .lo = -1,
                      .hi = 1, .attr.module_concat = { modules } };
    if (i == 1) {
        if (modules > 1) s->in[1].dim[2]++;
        else s->in[0].dim[1]++;
        s->bad = AG_ESHAPE;
    }
    return i < 2;
}

const ag_op ag_op_module_concat = {
    .name = "module_concat", .doc = "y[..,s,:] = a[..,s,:] followed by b[..,s,:]", .n_in = 2,
    .n_out = 1, .shape = concat_shape, .forward = concat_forward, .backward = concat_backward,
    .half = concat_half, .sample = concat_sample,
};

ag_tensor *ag_module_concat(ag_tape *t, ag_tensor *a, ag_tensor *b, int64_t modules)
{
    return ag_apply(t, &ag_op_module_concat, (ag_tensor *[AG_MAX_IN]){ a, b },
                    &(ag_attr){ .module_concat = { modules } }, NULL);
}
