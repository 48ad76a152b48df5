/*
 * module_conv.c -- convolution over time and modules with weights that all modules share
 * (2111.12763 section 3.2).  Row t of x is S modules of P numbers, of y S modules of O:
 *
 *     y[t,s] = b + sum_{f < F, c < C} K[f,c] x[t - (F-1) + f, s - (C-1)/2 + c]      K[f,c] [O,P]
 *
 * zero outside the sequence and outside the modules: causal in time.  The weight is [O, F*C*P].
 *
 * No copy per tap is made.  With (C-1)/2 modules of zeros on either side, the C neighbours of a
 * module lie side by side, and those of the next module P numbers on: for one f the windows of all
 * (t,s) are the rows of one matrix with P numbers from row to row and C*P numbers a row, and the
 * convolution is F products, a tile of positions at a time: part of a sequence, or several short
 * ones.  (Of each position C-1 rows reach over its end, of each sequence F-1 positions; their
 * results are dropped.)  The gradient of x is the same thing with the taps in
 * reverse and K[f,c] transposed; that of K is F products with the same windows.  On 16 bits sums
 * over taps, and the gradient of K, are f32.
 */
#include "../op.h"
#include "../ops.h"

enum { X, W, B };
enum { CACHED = 1 << 17 };                       /* numbers of a tile, about */

typedef struct sizes { int64_t batch, tin, tout, modules, taps, span, p, o; } sizes;

static sizes sizes_of(const ag_call *c)
{
    const ag_shape *x = &c->in[X]->shape;
    const int64_t modules = c->attr.module_conv.modules, taps = c->attr.module_conv.taps;
    return (sizes){ .batch = x->dim[0], .tin = x->dim[1],
                    .tout = x->dim[1] - (c->attr.module_conv.past ? taps - 1 : 0),
                    .modules = modules, .taps = taps, .span = c->attr.module_conv.span,
                    .p = x->dim[2] / modules, .o = c->in[W]->shape.dim[0] };
}

static int conv_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *x = &c->in[X]->shape, *w = &c->in[W]->shape;
    const int64_t modules = c->attr.module_conv.modules, taps = c->attr.module_conv.taps,
        span = c->attr.module_conv.span;
    char sx[96], sw[96];
    if (modules < 1 || taps < 1 || span < 1 || span % 2 == 0)
        return ag_fail(c->tape, AG_ESHAPE, "module_conv: %lld modules and %lld taps must be "
                       "positive, a span of %lld modules odd", (long long)modules, (long long)taps,
                       (long long)span);
    if (x->ndim != 3 || x->dim[2] % modules || w->ndim != 2 ||
        w->dim[1] != taps * span * (x->dim[2] / modules) ||
        (c->attr.module_conv.past && x->dim[1] < taps - 1))
        return ag_fail(c->tape, AG_ESHAPE, "module_conv: x %s and weight %s do not fit %lld "
                       "modules, %lld taps and a span of %lld", ag_shape_text(x, sx),
                       ag_shape_text(w, sw), (long long)modules, (long long)taps, (long long)span);
    if (c->in[B] && (c->in[B]->shape.ndim != 1 || c->in[B]->size != w->dim[0]))
        return ag_fail(c->tape, AG_ESHAPE, "module_conv: bias %s does not fit the weight %s",
                       ag_shape_text(&c->in[B]->shape, sx), ag_shape_text(w, sw));
    const sizes s = sizes_of(c);
    out[0] = AG_SHAPE(s.batch, s.tout, s.modules * s.o);
    return AG_OK;
}

static char *at(const ag_call *c, const void *p, int64_t i)
{
    return (char *)(uintptr_t)p + (size_t)i * ag_real_size(c);
}

static void *numbers(const ag_call *c, int64_t n)
{
    return ag_scratch(c->tape, (size_t)n * ag_real_size(c));
}

static bool is_half(const ag_call *c) { return ag_dtype_is_half(c->k->dtype); }

/* --- windows ---------------------------------------------------------------------------------- */

static int64_t padded(const sizes *s) { return s->modules + s->span - 1; }

typedef struct tile { int64_t rows, count; } tile;       /* positions of a sequence, sequences */

/* For results of n positions a sequence. */
static tile tile_of(const sizes *s, int64_t n)
{
    const int64_t fit = CACHED / (padded(s) * (s->p > s->o ? s->p : s->o) + 1) + 1;
    const int64_t whole = fit / (n + s->taps);
    if (whole < 1) return (tile){ fit < n ? fit : n, 1 };
    return (tile){ n, whole < s->batch ? whole : s->batch };
}

/* Padded positions of `count` sequences: each begins with taps - 1 of the past. */
static int64_t positions(const sizes *s, int64_t rows, int64_t count)
{
    return count * (rows + s->taps - 1);
}

/* Rows of the matrix of windows: the last position has none to drop. */
static int64_t windows(const sizes *s, int64_t rows, int64_t count)
{
    return (positions(s, rows, count) - s->taps) * padded(s) + s->modules;
}

/* Positions first .. first + n - 1 of x [size, modules*width] with zeros around, where they exist;
 * u [n, padded, width] is zero on both sides of the modules already. */
static void pad(const ag_call *c, const sizes *s, const char *x, int64_t size, int64_t width,
                int64_t first, int64_t n, int64_t side, char *u)
{
    const int64_t row = padded(s) * width, before = first < 0 ? -first : 0;
    const int64_t end = first + n < size ? n : size - first;
    const int64_t from = before < n ? before : n, to = end > from ? end : from;
    c->k->fill(from * row, 0, u);
    c->k->copy_rows(to - from, s->modules * width, at(c, x, (first + from) * s->modules * width),
                    s->modules * width, at(c, u, from * row + side * width), row, false);
    c->k->fill((n - to) * row, 0, at(c, u, to * row));
}

typedef struct filter {              /* y[r,s] = sum_f in[r + shift + f, window of s] times tap f */
    int64_t in, out;                 /* numbers of a module */
    int64_t shift;
    const void *taps, *bias;
    int64_t step, ld;                /* from tap to tap, from row to row of a tap */
    bool    tb;
} filter;

/* Space for the results of a tile: as they are added up, and in the type of the tape. */
typedef struct sums { void *sum, *real; } sums;

/* A tile at position r of sequence b: x [batch, n_in, modules*in] -> y [batch, n_out, ..]. */
static void apply_tile(const ag_call *c, const sizes *s, const filter *f, const char *x,
                       int64_t n_in, char *y, int64_t n_out, bool acc, int64_t b, int64_t r,
                       const tile *t, char *u, sums z)
{
    const int64_t wide = padded(s), each = positions(s, t->rows, 1) * wide;
    const int64_t in = s->modules * f->in, out = s->modules * f->out;
    for (int64_t i = 0; i < t->count; i++)
        pad(c, s, at(c, x, (b + i) * n_in * in), n_in, f->in, r + f->shift,
            positions(s, t->rows, 1), s->span / 2, at(c, u, i * each * f->in));
    for (int64_t i = 0; i < s->taps; i++)
        c->k->gemm(&(ag_gemm){
            .tb = f->tb, .acc = i > 0, .c_f32 = is_half(c),
            .m = windows(s, t->rows, t->count), .n = f->out, .k = s->span * f->in,
            .a = at(c, u, i * wide * f->in), .lda = f->in, .b = at(c, f->taps, i * f->step),
            .ldb = f->ld, .c = z.sum, .ldc = f->out, .bias = i == 0 ? f->bias : NULL });
    if (is_half(c)) c->k->narrow(windows(s, t->rows, t->count) * f->out, z.sum, z.real);
    for (int64_t i = 0; i < t->count; i++)
        c->k->copy_rows(t->rows, out, at(c, z.real, i * each * f->out), wide * f->out,
                        at(c, y, ((b + i) * n_out + r) * out), out, acc);
}

/* u and z are space for a tile. */
static void apply(const ag_call *c, const sizes *s, const filter *f, const char *x, int64_t n_in,
                  char *y, int64_t n_out, bool acc, char *u, sums z)
{
    const tile most = tile_of(s, n_out);
    for (int64_t b = 0; b < s->batch; b += most.count)
        for (int64_t r = 0; r < n_out; r += most.rows) {
            const tile t = { n_out - r < most.rows ? n_out - r : most.rows,
                             s->batch - b < most.count ? s->batch - b : most.count };
            apply_tile(c, s, f, x, n_in, y, n_out, acc, b, r, &t, u, z);
        }
}

/* Space for a tile, and that zero around the modules. */
static int64_t tile_size(const sizes *s, int64_t n, int64_t width)
{
    const tile t = tile_of(s, n);
    return positions(s, t.rows, t.count) * padded(s) * width;
}

static sums sums_space(const ag_call *c, int64_t size)
{
    void *sum = ag_scratch(c->tape, (size_t)size * ag_kept_size(c));
    return (sums){ sum, is_half(c) ? numbers(c, size) : sum };
}

static size_t sums_bytes(const ag_call *c, int64_t size)
{
    return ag_scratch_size((size_t)size * ag_kept_size(c)) +
           (is_half(c) ? ag_scratch_size((size_t)size * ag_real_size(c)) : 0);
}

static void *window_space(const ag_call *c, const sizes *s, int64_t n, int64_t width)
{
    const int64_t size = tile_size(s, n, width);
    void *u = numbers(c, size);
    if (u) c->k->fill(size, 0, u);
    return u;
}

/* --- forward and backward --------------------------------------------------------------------- */

/* Row of x that position 0 of y begins with. */
static int64_t shift_of(const ag_call *c, const sizes *s)
{
    return c->attr.module_conv.past ? 0 : 1 - s->taps;
}

static void conv_forward(ag_call *c)
{
    const sizes s = sizes_of(c);
    const filter f = { .in = s.p, .out = s.o, .shift = shift_of(c, &s), .taps = c->in[W]->data,
                       .bias = c->in[B] ? c->in[B]->data : NULL, .step = s.span * s.p,
                       .ld = s.taps * s.span * s.p, .tb = true };
    char *u = window_space(c, &s, s.tout, s.p);
    const sums z = sums_space(c, tile_size(&s, s.tout, s.o));
    if (!u || !z.sum || !z.real) return;
    apply(c, &s, &f, c->in[X]->data, s.tin, c->out[0]->data, s.tout, false, u, z);
}

/* dx[j,r] = sum_{f,c} K[F-1-f, C-1-c]^T dy[j - past + f, r - (C-1)/2 + c], past: the rows of x
 * before y */
static void backward_x(const ag_call *c, const sizes *s, char *dx, bool acc)
{
    const int64_t row = s->taps * s->span * s->p;
    filter f = { .in = s->o, .out = s->p, .shift = 1 - s->taps - shift_of(c, s),
                 .step = s->span * s->o * s->p, .ld = s->p };
    char *u = window_space(c, s, s->tin, s->o), *k = numbers(c, s->o * row);
    const sums z = sums_space(c, tile_size(s, s->tin, s->p));
    if (!u || !k || !z.sum || !z.real) return;
    for (int64_t i = 0; i < s->taps * s->span; i++)
        c->k->copy_rows(s->o, s->p, at(c, c->in[W]->data, (s->taps * s->span - 1 - i) * s->p), row,
                        at(c, k, i * s->o * s->p), s->p, false);
    f.taps = k;
    apply(c, s, &f, c->out[0]->grad, s->tout, dx, s->tin, acc, u, z);
}

/* dK[f] += dy^T times the windows of tap f, for a tile; dy is zero where results were dropped */
static void backward_w_tile(const ag_call *c, const sizes *s, char *dw, int64_t b, int64_t r,
                            const tile *t, char *u, char *v)
{
    const int64_t wide = padded(s), n = positions(s, t->rows, 1), each = n * wide;
    const int64_t in = s->modules * s->p, out = s->modules * s->o;
    for (int64_t i = 0; i < t->count; i++) {
        pad(c, s, at(c, c->in[X]->data, (b + i) * s->tin * in), s->tin, s->p, r + shift_of(c, s),
            n, s->span / 2, at(c, u, i * each * s->p));
        pad(c, s, at(c, c->out[0]->grad, (b + i) * s->tout * out), s->tout, s->o, r, n, 0,
            at(c, v, i * each * s->o));
    }
    for (int64_t f = 0; f < s->taps; f++)
        c->k->gemm(&(ag_gemm){
            .ta = true, .acc = true, .c_f32 = is_half(c), .m = s->o, .n = s->span * s->p,
            .k = windows(s, t->rows, t->count), .a = v, .lda = s->o,
            .b = at(c, u, f * wide * s->p), .ldb = s->p,
            .c = dw + (size_t)(f * s->span * s->p) * ag_kept_size(c),
            .ldc = s->taps * s->span * s->p });
}

static void backward_w(const ag_call *c, const sizes *s, char *dw, bool acc)
{
    const tile most = tile_of(s, s->tout);
    char *u = window_space(c, s, s->tout, s->p), *v = window_space(c, s, s->tout, s->o);
    if (!u || !v) return;
    if (!acc)
        (c->k->wide ? c->k->wide : c->k)->fill(s->o * s->taps * s->span * s->p, 0, dw);
    for (int64_t b = 0; b < s->batch; b += most.count)
        for (int64_t r = 0; r < s->tout; r += most.rows) {
            const tile t = { s->tout - r < most.rows ? s->tout - r : most.rows,
                             s->batch - b < most.count ? s->batch - b : most.count };
            backward_w_tile(c, s, dw, b, r, &t, u, v);
        }
}

static void conv_backward(ag_call *c)
{
    const sizes s = sizes_of(c);
    bool acc_w, acc_x;
    void *db = ag_grad_add(c, B), *dw = ag_grad_of(c, W, &acc_w), *dx = ag_grad_of(c, X, &acc_x);
    if (db)
        c->k->act_bwd(AG_ACT_NONE, s.batch * s.tout * s.modules, s.o, NULL, c->out[0]->grad, NULL,
                      db, true);
    if (dw) backward_w(c, &s, dw, acc_w);
    if (dx) backward_x(c, &s, dx, acc_x);
}

static bool wants(const ag_tensor *x) { return x && x->needs_grad; }

static size_t conv_workspace(const ag_call *c, bool back)
{
    const sizes s = sizes_of(c);
    const size_t one = ag_real_size(c), wide = (size_t)tile_size(&s, s.tout, s.p) * one,
        out = (size_t)tile_size(&s, s.tout, s.o) * one;
    if (!back) return ag_scratch_size(wide) + sums_bytes(c, tile_size(&s, s.tout, s.o));
    size_t sum = wants(c->in[W]) ? ag_scratch_size(wide) + ag_scratch_size(out) : 0;
    if (wants(c->in[X]))
        sum += ag_scratch_size((size_t)tile_size(&s, s.tin, s.o) * one) +
               ag_scratch_size((size_t)(s.o * s.taps * s.span * s.p) * one) +
               sums_bytes(c, tile_size(&s, s.tin, s.p));
    return sum;
}

static bool conv_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->gemm && k->copy_rows && k->act_bwd;
}

static int64_t conv_flops(const ag_call *c)
{
    const sizes s = sizes_of(c);
    return 2 * s.batch * s.tout * s.modules * s.o * s.taps * s.span * s.p;
}

static bool conv_sample(int64_t i, ag_sample *s)
{
    static const int64_t T[] = { 1, 7, 0 }, S[] = { 1, 4 }, F[] = { 1, 3 }, C[] = { 1, 3 };
    static const int64_t P[] = { 1, 3 }, O[] = { 1, 5 };
    const unsigned absent = (unsigned)ag_digit(&i, 2) << B;
    int64_t t = T[ag_digit(&i, 3)];
    const int64_t modules = S[ag_digit(&i, 2)], taps = F[ag_digit(&i, 2)],
        span = C[ag_digit(&i, 2)], p = P[ag_digit(&i, 2)], o = O[ag_digit(&i, 2)];
    const bool past = i == 1;        /* a second round: the rows before come with x */
    if (past) t += taps - 1;
    *s = (ag_sample){ .in = { AG_SHAPE(2, t, modules * p), AG_SHAPE(o, taps * span * p),
                              AG_SHAPE(o) }, .absent = absent, .lo = -1, .hi = 1,
                      .attr.module_conv = { modules, taps, span, past } };
    if (i == 2) {                    /* a weight, a span, a bias that do not fit */
        if (modules == 1) s->in[W].dim[1]++;
        else if (absent) s->attr.module_conv.span++;
        else s->in[B].dim[0]++;
        s->bad = AG_ESHAPE;
    }
    return i < 3;
}

const ag_op ag_op_module_conv = {
    .name = "module_conv",
    .doc = "y[b,t,s,:] = bias + sum_{f,c} K[f,c] x[b,t-(F-1)+f,s-(C-1)/2+c,:], w [o,F*C*p]",
    .n_in = 3, .n_out = 1, .optional = 1u << B, .shape = conv_shape, .forward = conv_forward,
    .backward = conv_backward, .half = conv_half, .weights = 1u << W | 1u << B,
    .workspace = conv_workspace, .flops = conv_flops, .sample = conv_sample,
};

ag_tensor *ag_module_conv(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *bias,
                          const ag_module_conv_options *o)
{
    return ag_apply(t, &ag_op_module_conv, (ag_tensor *[AG_MAX_IN]){ x, w, bias },
                    &(ag_attr){ .module_conv = { o->modules, o->taps, o->span, o->past } }, NULL);
}
