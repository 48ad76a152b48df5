/* matmul.c -- c = op(a) @ op(b);  da = dc @ op(b)^T,  db = op(a)^T @ dc. */
#include "../op.h"
#include "../ops.h"

typedef struct mnk { int64_t m, n, k; } mnk;

static mnk sizes(const ag_call *c)
{
    const int64_t *a = c->in[0]->shape.dim, *b = c->in[1]->shape.dim;
    const bool ta = c->attr.matmul.ta, tb = c->attr.matmul.tb;
    return (mnk){ .m = a[ta], .k = a[!ta], .n = b[!tb] };
}

static int matmul_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *a = &c->in[0]->shape, *b = &c->in[1]->shape;
    const bool ta = c->attr.matmul.ta, tb = c->attr.matmul.tb;
    char sa[96], sb[96];
    if (a->ndim != 2 || b->ndim != 2)
        return ag_fail(c->tape, AG_ESHAPE, "matmul: wanted two matrices, got %s and %s",
                       ag_shape_text(a, sa), ag_shape_text(b, sb));
    if (a->dim[!ta] != b->dim[tb])
        return ag_fail(c->tape, AG_ESHAPE, "matmul: inner sizes differ: %s%s @ %s%s",
                       ag_shape_text(a, sa), ta ? "^T" : "", ag_shape_text(b, sb), tb ? "^T" : "");
    const mnk s = sizes(c);
    out[0] = AG_SHAPE(s.m, s.n);
    return AG_OK;
}

/* c[m,n] (+)= op(a) op(b), all packed */
static void product(const ag_kernels *k, bool ta, bool tb, int64_t m, int64_t n, int64_t inner,
                    const void *a, const void *b, void *c, bool acc)
{
    k->gemm(&(ag_gemm){ .ta = ta, .tb = tb, .acc = acc, .m = m, .n = n, .k = inner, .a = a,
                        .lda = ta ? m : inner, .b = b, .ldb = tb ? inner : n, .c = c, .ldc = n });
}

static void matmul_forward(ag_call *c)
{
    const mnk s = sizes(c);
    product(c->k, c->attr.matmul.ta, c->attr.matmul.tb, s.m, s.n, s.k, c->in[0]->data,
            c->in[1]->data, c->out[0]->data, false);
}

static void matmul_backward(ag_call *c)
{
    const mnk s = sizes(c);
    const bool ta = c->attr.matmul.ta, tb = c->attr.matmul.tb;
    const void *a = c->in[0]->data, *b = c->in[1]->data, *dc = c->out[0]->grad;
    bool acc;
    void *da = ag_grad_of(c, 0, &acc);
    if (da && !ta) product(c->k, false, !tb, s.m, s.k, s.n, dc, b, da, acc);
    if (da && ta)  product(c->k, tb, true, s.k, s.m, s.n, b, dc, da, acc);
    void *db = ag_grad_of(c, 1, &acc);
    if (db && !tb) product(c->k, !ta, false, s.k, s.n, s.m, a, dc, db, acc);
    if (db && tb)  product(c->k, true, ta, s.n, s.k, s.m, dc, a, db, acc);
}

static bool matmul_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->gemm;
}

static int64_t matmul_flops(const ag_call *c)
{
    const mnk s = sizes(c);
    return 2 * s.m * s.n * s.k;
}

static bool matmul_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 17 }, N[] = { 1, 6, 33 }, K[] = { 1, 7, 0 };
    const bool ta = ag_digit(&i, 2), tb = ag_digit(&i, 2);
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 3)], k = K[ag_digit(&i, 3)];
    *s = (ag_sample){ .lo = -1, .hi = 1, .attr.matmul = { ta, tb } };
    s->in[0] = ta ? AG_SHAPE(k, m) : AG_SHAPE(m, k);
    s->in[1] = tb ? AG_SHAPE(n, k) : AG_SHAPE(k, n);
    if (i == 1) {                    /* a second round: an inner size that does not fit */
        s->in[0] = ta ? AG_SHAPE(k + 1, m) : AG_SHAPE(m, k + 1);
        s->bad = AG_ESHAPE;
    } else if (i == 2) {             /* no matrix */
        s->in[0] = AG_SHAPE(m);
        s->bad = AG_ESHAPE;
    }
    return i < 3;
}

const ag_op ag_op_matmul = {
    .name = "matmul", .doc = "c[m,n] = op(a) @ op(b), op = transpose where ta, tb", .n_in = 2,
    .n_out = 1, .shape = matmul_shape, .forward = matmul_forward, .backward = matmul_backward,
    .half = matmul_half, .flops = matmul_flops, .unread = ag_unread_out,
    .sample = matmul_sample,
};

ag_tensor *ag_matmul(ag_tape *t, ag_tensor *a, bool ta, ag_tensor *b, bool tb)
{
    return ag_apply(t, &ag_op_matmul, (ag_tensor *[AG_MAX_IN]){ a, b },
                    &(ag_attr){ .matmul = { ta, tb } }, NULL);
}
