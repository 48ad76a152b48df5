/*
 * linear.c -- y = act(x @ w^T + b) + residual, the product with everything that follows it done in
 * its last pass.
 *
 *     s = x @ w^T + b          kept (saved) where act' needs it; ReLU reads it off y, unless a
 *                              residual hides it
 *     ds = dy * act'(s)        dx = ds @ w     dw = ds^T @ x
 *     db = column sums of ds   dresidual = dy
 *
 * The weight is [out,in] as PyTorch's, or, with in_out, [in,out]: a row for each input.
 */
#include "../op.h"
#include "../ops.h"

enum { X, W, B, R };

typedef struct mnk { int64_t m, n, k; } mnk;

static mnk sizes(const ag_call *c)
{
    const int out = c->attr.linear.in_out;
    return (mnk){ .m = ag_rows(c->in[X]), .n = c->in[W]->shape.dim[out],
                  .k = c->in[W]->shape.dim[!out] };
}

static int linear_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *x = &c->in[X]->shape, *w = &c->in[W]->shape;
    const bool in_out = c->attr.linear.in_out;
    const char *order = in_out ? "[in,out]" : "[out,in]";
    char sx[96], sw[96];
    if (x->ndim < 1 || w->ndim != 2 || x->dim[x->ndim - 1] != w->dim[!in_out])
        return ag_fail(c->tape, AG_ESHAPE, "linear: x %s does not fit the weight %s %s",
                       ag_shape_text(x, sx), ag_shape_text(w, sw), order);
    if (c->in[B] && (c->in[B]->shape.ndim != 1 || c->in[B]->size != w->dim[in_out]))
        return ag_fail(c->tape, AG_ESHAPE, "linear: bias %s does not fit the weight %s %s",
                       ag_shape_text(&c->in[B]->shape, sx), ag_shape_text(w, sw), order);
    out[0] = *x;
    out[0].dim[x->ndim - 1] = w->dim[in_out];
    if (c->in[R] && !ag_shape_equal(&c->in[R]->shape, out))
        return ag_fail(c->tape, AG_ESHAPE, "linear: residual %s, result %s",
                       ag_shape_text(&c->in[R]->shape, sx), ag_shape_text(out, sw));
    return AG_OK;
}

/* Is the value before the activation kept?  (Without a residual, y > 0 says for ReLU what s > 0
 * does.) */
static bool keeps_pre(const ag_call *c)
{
    const ag_act act = c->attr.linear.act;
    return act != AG_ACT_NONE && (act != AG_ACT_RELU || c->in[R]);
}

static size_t linear_saved(const ag_call *c)
{
    const mnk s = sizes(c);
    return keeps_pre(c) ? (size_t)(s.m * s.n) * ag_real_size(c) : 0;
}

/* The output is a cheap function of what is saved: the way out of a product that has no terms. */
static void linear_again(ag_call *c)
{
    const int64_t n = c->out[0]->size;
    c->k->gemm(&(ag_gemm){ .tb = true, .m = 1, .n = n, .c = c->out[0]->data, .ldc = n,
                           .bias = c->saved, .act = c->attr.linear.act });
}

/* Not where s is rounded to 16 bits: the output is made of the s before. */
static ag_call_run *linear_cheap(const ag_call *c)
{
    return keeps_pre(c) && !c->in[R] && !ag_dtype_is_half(c->k->dtype) ? linear_again : NULL;
}

/* s alone, where y is made again */
static void product_forward(ag_call *c)
{
    const mnk s = sizes(c);
    c->k->gemm(&(ag_gemm){
        .tb = !c->attr.linear.in_out, .m = s.m, .n = s.n, .k = s.k, .a = c->in[X]->data,
        .lda = s.k, .b = c->in[W]->data, .ldb = c->attr.linear.in_out ? s.n : s.k,
        .c = c->saved, .ldc = s.n, .bias = c->in[B] ? c->in[B]->data : NULL });
}

static void linear_forward(ag_call *c)
{
    const mnk s = sizes(c);
    if (!c->out[0]->data) {
        product_forward(c);
        return;
    }
    c->k->gemm(&(ag_gemm){
        .tb = !c->attr.linear.in_out, .m = s.m, .n = s.n, .k = s.k, .a = c->in[X]->data,
        .lda = s.k, .b = c->in[W]->data, .ldb = c->attr.linear.in_out ? s.n : s.k,
        .c = c->out[0]->data, .ldc = s.n,
        .bias = c->in[B] ? c->in[B]->data : NULL, .pre = keeps_pre(c) ? c->saved : NULL,
        .act = c->attr.linear.act, .residual = c->in[R] ? c->in[R]->data : NULL });
}

/* Is dy still needed when ds is made? */
static bool keeps_dy(const ag_call *c)
{
    return c->attr.linear.act != AG_ACT_NONE && c->in[R] && c->in[R]->needs_grad;
}

static size_t linear_workspace(const ag_call *c, bool back)
{
    const mnk s = sizes(c);
    return back && keeps_dy(c) ? (size_t)(s.m * s.n) * ag_real_size(c) : 0;
}

/* ds = dy * act'(s) and db; without an activation ds is dy itself. */
static const void *pre_grad(ag_call *c, const mnk *s)
{
    const ag_act act = c->attr.linear.act;
    void *dy = c->out[0]->grad, *db = ag_grad_add(c, B);
    if (act == AG_ACT_NONE) {
        if (db) c->k->act_bwd(act, s->m, s->n, NULL, dy, NULL, db, true);
        return dy;
    }
    void *ds = dy;                   /* dy is not needed again, but by the residual */
    if (keeps_dy(c) && !(ds = ag_scratch(c->tape, linear_workspace(c, true))))
        return NULL;
    c->k->act_bwd(act, s->m, s->n, keeps_pre(c) ? c->saved : c->out[0]->data, dy, ds, db, true);
    return ds;
}

/* dw (+)= ds^T x, or its transpose */
static void weight_grad(ag_call *c, const mnk *s, const void *ds, void *dw, bool acc)
{
    ag_gemm g = { .ta = true, .acc = acc, .c_f32 = true, .m = s->n, .n = s->k, .k = s->m, .a = ds,
                  .lda = s->n, .b = c->in[X]->data, .ldb = s->k, .c = dw, .ldc = s->k };
    if (c->attr.linear.in_out)
        g = (ag_gemm){ .ta = true, .acc = acc, .c_f32 = true, .m = s->k, .n = s->n, .k = s->m,
                       .a = c->in[X]->data, .lda = s->k, .b = ds, .ldb = s->n, .c = dw,
                       .ldc = s->n };
    c->k->gemm(&g);
}

static void linear_backward(ag_call *c)
{
    const mnk s = sizes(c);
    const bool in_out = c->attr.linear.in_out;
    const void *ds = pre_grad(c, &s);
    if (!ds) return;
    bool acc;
    void *dw = ag_grad_of(c, W, &acc);
    if (dw) weight_grad(c, &s, ds, dw, acc);
    void *dx = ag_grad_of(c, X, &acc);
    if (dx)
        c->k->gemm(&(ag_gemm){ .tb = in_out, .acc = acc, .m = s.m, .n = s.k, .k = s.n, .a = ds,
                               .lda = s.n, .b = c->in[W]->data, .ldb = in_out ? s.n : s.k,
                               .c = dx, .ldc = s.k });
    ag_grad_pass(c, R);
}

static unsigned linear_unread(const ag_call *c)
{
    const bool reads_out = c->attr.linear.act == AG_ACT_RELU && !keeps_pre(c);
    return AG_UNREAD_IN(B) | AG_UNREAD_IN(R) | (reads_out ? 0 : AG_UNREAD_OUT(0));
}

static bool linear_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->gemm && k->act_bwd;
}

static int64_t linear_flops(const ag_call *c)
{
    const mnk s = sizes(c);
    return 2 * s.m * s.n * s.k;
}

static bool linear_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 0 }, N[] = { 1, 6, 33 }, K[] = { 1, 7 };
    const ag_act act = (ag_act)ag_digit(&i, AG_ACT_COUNT);
    const unsigned absent = (unsigned)ag_digit(&i, 4) << B;
    const bool in_out = ag_digit(&i, 2);
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 3)], k = K[ag_digit(&i, 2)];
    /* ReLU has a kink at 0: positive inputs keep s away from it, and a negative weight side is in
     * relu's samples */
    const double lo = act == AG_ACT_RELU ? 0.1 : -1;
    const ag_shape w = in_out ? AG_SHAPE(k, n) : AG_SHAPE(n, k);
    *s = (ag_sample){ .in = { AG_SHAPE(m, k), w, AG_SHAPE(n), AG_SHAPE(m, n) },
                      .absent = absent, .lo = lo, .hi = 1, .attr.linear = { act, in_out } };
    if (i == 1) {                    /* a second round: a batch dimension */
        s->in[X] = AG_SHAPE(2, m, k);
        s->in[R] = AG_SHAPE(2, m, n);
    } else if (i == 2) {             /* inner sizes that do not fit */
        s->in[X] = AG_SHAPE(m, k + 1);
        s->bad = AG_ESHAPE;
    } else if (i == 3) {             /* a wrong bias, else a wrong residual, else no rows at all */
        if (!(absent >> B & 1)) s->in[B] = AG_SHAPE(n + 1);
        else if (!(absent >> R & 1)) s->in[R] = AG_SHAPE(m, n + 1);
        else s->in[X] = (ag_shape){ 0 };
        s->bad = AG_ESHAPE;
    }
    return i < 4;
}

const ag_op ag_op_linear = {
    .name = "linear", .doc = "y[..,n] = act(x[..,k] @ w[n,k]^T + bias[n]) + residual[..,n]",
    .n_in = 4, .n_out = 1, .optional = 1u << B | 1u << R, .passes = 1u << R,
    .shape = linear_shape, .saved_bytes = linear_saved, .forward = linear_forward,
    .backward = linear_backward, .workspace = linear_workspace, .unread = linear_unread,
    .cheap = linear_cheap, .half = linear_half, .weights = 1u << W | 1u << B,
    .flops = linear_flops, .sample = linear_sample,
};

ag_tensor *ag_linear(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *bias, ag_act act,
                     ag_tensor *residual)
{
    return ag_apply(t, &ag_op_linear, (ag_tensor *[AG_MAX_IN]){ x, w, bias, residual },
                    &(ag_attr){ .linear = { act, false } }, NULL);
}

ag_tensor *ag_linear_in_out(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *bias, ag_act act,
                            ag_tensor *residual)
{
    return ag_apply(t, &ag_op_linear, (ag_tensor *[AG_MAX_IN]){ x, w, bias, residual },
                    &(ag_attr){ .linear = { act, true } }, NULL);
}
