/*
 * merge.c -- a source and its target in one row without a gap between them, and the target taken
 * out again (Terraformer, 2111.12763 section 4; ConcatWithPadding2 of its released code).
 *
 *   merge   y[b,i] = target[b, i - n_b] for n_b <= i < n_b + N, else source[b,i], 0 beyond it
 *   strip   y[b,i] = x[b, n_b + i]
 *
 * n_b is the length of source b without padding.  Each is a copy of rows, so backward is the copy
 * the other way; what a merge overwrites has no gradient.
 */
#include "../op.h"
#include "../ops.h"

enum { X, Y, LENGTHS };              /* merge: source, target; strip: the row, its lengths */

typedef struct spans {               /* rows of one item: */
    int64_t m, n;                    /* of the source, of the target */
    int64_t begin;                   /* where the target begins in the merged row */
    int64_t tail;                    /* source rows that are seen behind it */
} spans;

static spans spans_of(int64_t m, int64_t n, int32_t length)
{
    return (spans){ m, n, length, m > length + n ? m - length - n : 0 };
}

static char *row_at(const ag_call *c, const void *x, int64_t row, int64_t d)
{
    return (char *)(uintptr_t)x + (size_t)(row * d) * ag_real_size(c);
}

static bool is_lengths(const ag_tensor *n, int64_t batch)
{
    return n->shape.ndim == 1 && n->shape.dim[0] == batch;
}

static int merge_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *e = &c->in[X]->shape, *y = &c->in[Y]->shape;
    char a[96], b[96], n[96];
    if (e->ndim != 3 || y->ndim != 3 || e->dim[0] != y->dim[0] || e->dim[2] != y->dim[2] ||
        !is_lengths(c->in[LENGTHS], e->dim[0]))
        return ag_fail(c->tape, AG_ESHAPE, "merge: wanted e [b,m,d], y [b,n,d], lengths [b], got "
                       "%s, %s, %s", ag_shape_text(e, a), ag_shape_text(y, b),
                       ag_shape_text(&c->in[LENGTHS]->shape, n));
    out[0] = AG_SHAPE(e->dim[0], e->dim[1] + y->dim[1], e->dim[2]);
    return AG_OK;
}

static void merge_forward(ag_call *c)
{
    const int64_t *e = c->in[X]->shape.dim, n = c->in[Y]->shape.dim[1], m = e[1], d = e[2];
    if (ag_check_index(c, LENGTHS, 0, m + 1) < 0) return;
    for (int64_t b = 0; b < e[0]; b++) {
        const spans s = spans_of(m, n, c->in[LENGTHS]->host[b]);
        const char *source = row_at(c, c->in[X]->data, b * m, d);
        char *y = row_at(c, c->out[0]->data, b * (m + n), d);
        const int64_t end = s.begin + n, filled = end + s.tail;
        c->k->copy_rows(s.begin, d, source, d, y, d, false);
        c->k->copy_rows(n, d, row_at(c, c->in[Y]->data, b * n, d), d, row_at(c, y, s.begin, d), d,
                        false);
        c->k->copy_rows(s.tail, d, row_at(c, source, end, d), d, row_at(c, y, end, d), d, false);
        c->k->fill((m + n - filled) * d, 0, row_at(c, y, filled, d));
    }
}

static void merge_backward(ag_call *c)
{
    const int64_t *e = c->in[X]->shape.dim, n = c->in[Y]->shape.dim[1], m = e[1], d = e[2];
    void *de = ag_grad_add(c, X), *dy = ag_grad_add(c, Y);
    for (int64_t b = 0; b < e[0]; b++) {
        const spans s = spans_of(m, n, c->in[LENGTHS]->host[b]);
        const char *g = row_at(c, c->out[0]->grad, b * (m + n), d);
        const int64_t end = s.begin + n;
        if (de) {
            char *to = row_at(c, de, b * m, d);
            c->k->copy_rows(s.begin, d, g, d, to, d, true);
            c->k->copy_rows(s.tail, d, row_at(c, g, end, d), d, row_at(c, to, end, d), d, true);
        }
        if (dy)
            c->k->copy_rows(n, d, row_at(c, g, s.begin, d), d, row_at(c, dy, b * n, d), d, true);
    }
}

static unsigned merge_unread(const ag_call *c)
{
    (void)c;
    return AG_UNREAD_IN(X) | AG_UNREAD_IN(Y) | AG_UNREAD_OUT(0);
}

static bool merge_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->copy_rows;
}

static bool merge_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 1, 5, 0 }, N[] = { 1, 3, 9, 0 }, D[] = { 1, 7 };
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 4)], d = D[ag_digit(&i, 2)];
    *s = (ag_sample){ .in = { AG_SHAPE(4, m, d), AG_SHAPE(4, n, d), AG_SHAPE(4) }, .lo = -1,
                      .hi = 1, .int_lo = 0, .int_hi = (int32_t)m + 1 };
    if (i == 1) s->int_lo = s->int_hi++, s->bad = AG_ERANGE;
    if (i == 2) s->in[Y].dim[2]++, s->bad = AG_ESHAPE;
    if (i == 3) s->in[LENGTHS] = AG_SHAPE(4, 1), s->bad = AG_ESHAPE;
    return i < 4;
}

const ag_op ag_op_merge = {
    .name = "merge",
    .doc = "y[b] = e[b,m,d], zeros, with target[b,n,d] over positions lengths[b] .. + n - 1",
    .n_in = 3, .n_out = 1, .integer_in = 1u << LENGTHS, .shape = merge_shape,
    .forward = merge_forward, .backward = merge_backward, .unread = merge_unread,
    .half = merge_half,
    .sample = merge_sample,
};

ag_tensor *ag_merge(ag_tape *t, ag_tensor *e, ag_tensor *y, ag_tensor *lengths)
{
    return ag_apply(t, &ag_op_merge, (ag_tensor *[AG_MAX_IN]){ e, y, lengths }, NULL, NULL);
}

/* --- strip ------------------------------------------------------------------------------------ */

enum { STRIP_LENGTHS = 1 };

static int strip_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *x = &c->in[X]->shape;
    const int64_t n = c->attr.strip.n;
    char a[96], b[96];
    if (x->ndim != 3 || n < 0 || n > x->dim[1] || !is_lengths(c->in[STRIP_LENGTHS], x->dim[0]))
        return ag_fail(c->tape, AG_ESHAPE, "strip: wanted x [b,m+%lld,d], lengths [b], got %s, %s",
                       (long long)n, ag_shape_text(x, a),
                       ag_shape_text(&c->in[STRIP_LENGTHS]->shape, b));
    out[0] = AG_SHAPE(x->dim[0], n, x->dim[2]);
    return AG_OK;
}

static void strip_forward(ag_call *c)
{
    const int64_t *x = c->in[X]->shape.dim, n = c->attr.strip.n, d = x[2];
    if (ag_check_index(c, STRIP_LENGTHS, 0, x[1] - n + 1) < 0) return;
    for (int64_t b = 0; b < x[0]; b++) {
        const int64_t from = b * x[1] + c->in[STRIP_LENGTHS]->host[b];
        c->k->copy_rows(n, d, row_at(c, c->in[X]->data, from, d), d,
                        row_at(c, c->out[0]->data, b * n, d), d, false);
    }
}

static void strip_backward(ag_call *c)
{
    const int64_t *x = c->in[X]->shape.dim, n = c->attr.strip.n, d = x[2];
    void *dx = ag_grad_add(c, X);
    for (int64_t b = 0; dx && b < x[0]; b++) {
        const int64_t to = b * x[1] + c->in[STRIP_LENGTHS]->host[b];
        c->k->copy_rows(n, d, row_at(c, c->out[0]->grad, b * n, d), d, row_at(c, dx, to, d), d,
                        true);
    }
}

static unsigned strip_unread(const ag_call *c)
{
    (void)c;
    return AG_UNREAD_IN(X) | AG_UNREAD_OUT(0);
}

static bool strip_sample(int64_t i, ag_sample *s)
{
    static const int64_t M[] = { 0, 1, 5 }, N[] = { 1, 3, 9, 0 }, D[] = { 1, 7 };
    const int64_t m = M[ag_digit(&i, 3)], n = N[ag_digit(&i, 4)], d = D[ag_digit(&i, 2)];
    *s = (ag_sample){ .in = { AG_SHAPE(4, m + n, d), AG_SHAPE(4) }, .lo = -1, .hi = 1,
                      .int_lo = 0, .int_hi = (int32_t)m + 1, .attr.strip = { n } };
    if (i == 1) s->int_lo = s->int_hi++, s->bad = AG_ERANGE;
    if (i == 2) s->attr.strip.n = m + n + 1, s->bad = AG_ESHAPE;
    if (i == 3) s->in[STRIP_LENGTHS] = AG_SHAPE(3), s->bad = AG_ESHAPE;
    return i < 4;
}

const ag_op ag_op_strip = {
    .name = "strip", .doc = "y[b,i] = x[b, lengths[b] + i], n rows of each item", .n_in = 2,
    .n_out = 1, .integer_in = 1u << STRIP_LENGTHS, .shape = strip_shape,
    .forward = strip_forward, .backward = strip_backward, .unread = strip_unread,
    .half = merge_half,
    .sample = strip_sample,
};

ag_tensor *ag_strip(ag_tape *t, ag_tensor *x, ag_tensor *lengths, int64_t n)
{
    return ag_apply(t, &ag_op_strip, (ag_tensor *[AG_MAX_IN]){ x, lengths },
                    &(ag_attr){ .strip = { n } }, NULL);
}
