#include "layers/position.h"

#include "autograd/op.h"

#include <math.h>

enum { SIN_COS_OFFSET = 2048, EXAMPLES_OF_A_DROP = 100, MAX_ROWS = 1 << 24 };

static const int64_t BASES[NN_POSITION_BASES] = { 11, 13, 14, 15 };

/* --- checks ----------------------------------------------------------------------------------- */

static int64_t max_offset(const nn_position_config *c)
{
    if (c->max_offset >= 0) return c->max_offset;
    if (c->type == NN_POSITION_SIN_COS) return SIN_COS_OFFSET;
    return c->type == NN_POSITION_FIXED_BASE ? NN_POSITION_NUMBERS - c->context : 0;
}

static int check_axes(const nn_position_config *c, ag_err *err)
{
    const long long context = (long long)c->context;
    if (c->type == NN_POSITION_GRID && (c->stride < 1 || c->stride > c->context))
        return ag_err_set(err, AG_ECONFIG, "embedding: position.stride = %lld must be in [1, "
                          "context = %lld]", (long long)c->stride, context);
    if (c->type == NN_POSITION_IMAGE &&
        (c->width < 1 || c->channels < 1 || c->width > c->context / c->channels))
        return ag_err_set(err, AG_ECONFIG, "embedding: a row of an image has position.width = %lld "
                          "times position.channels = %lld bytes; that must be in [1, context = "
                          "%lld]", (long long)c->width, (long long)c->channels, context);
    if (c->type != NN_POSITION_AXIAL) return AG_OK;
    if (c->rows < 1 || c->cols < 1 || c->rows > MAX_ROWS || c->cols > MAX_ROWS ||
        c->rows * c->cols < c->context)
        return ag_err_set(err, AG_ECONFIG, "embedding: position.rows = %lld times position.cols = "
                          "%lld must cover the context of %lld", (long long)c->rows,
                          (long long)c->cols, context);
    if (c->row_width < 1 || c->row_width >= c->d_model)
        return ag_err_set(err, AG_ECONFIG, "embedding: position.row_width = %lld must be in [1, "
                          "%lld], less than d_model", (long long)c->row_width,
                          (long long)c->d_model - 1);
    return AG_OK;
}

/* Widths that must be even, or a multiple of 8. */
static int check_width(const nn_position_config *c, ag_err *err)
{
    const bool table = c->type == NN_POSITION_TABLE;
    const int64_t width = c->features ? c->features : c->d_model;
    if (c->features < 0 || c->features > MAX_ROWS || (c->features && !table))
        return ag_err_set(err, AG_ECONFIG, "embedding: position.features = %lld must be in [0, %d],"
                          " and 0 unless position.type is table", (long long)c->features, MAX_ROWS);
    if (c->waves && !table)
        return ag_err_set(err, AG_ECONFIG, "embedding: position.init = sin_cos is for "
                          "position.type = table");
    if ((c->waves || c->type == NN_POSITION_SIN_COS) && width % 2)
        return ag_err_set(err, AG_ECONFIG, "embedding: sines and cosines want an even width, not "
                          "%s = %lld", c->features ? "position.features" : "d_model",
                          (long long)width);
    if (c->type == NN_POSITION_FIXED_BASE && width % NN_POSITION_DIGITS)
        return ag_err_set(err, AG_ECONFIG, "embedding: position.type = fixed_base has %d digits: "
                          "d_model = %lld must be a multiple of that", NN_POSITION_DIGITS,
                          (long long)width);
    return AG_OK;
}

static int check_noise(const nn_position_config *c, ag_err *err)
{
    const int64_t most = c->type == NN_POSITION_FIXED_BASE ? NN_POSITION_NUMBERS - c->context
                       : c->type == NN_POSITION_TABLE ||
                         c->type == NN_POSITION_SIN_COS    ? MAX_ROWS : 0;
    if (!(c->dropout >= 0 && c->dropout < 1))
        return ag_err_set(err, AG_ECONFIG, "embedding: position.dropout = %g must be in [0, 1)",
                          c->dropout);
    if (!(c->start_from_zero_prob >= 0 && c->start_from_zero_prob <= 1))
        return ag_err_set(err, AG_ECONFIG, "embedding: position.start_from_zero_prob = %g must be "
                          "in [0, 1]", c->start_from_zero_prob);
    if (c->max_offset < -1 || c->max_offset > most)
        return ag_err_set(err, AG_ECONFIG, "embedding: position.max_offset = %lld must be in [-1, "
                          "%lld] for this position.type and context", (long long)c->max_offset,
                          (long long)most);
    return AG_OK;
}

int nn_position_check(const nn_position_config *c, ag_err *err)
{
    int r = check_axes(c, err);
    if (!r) r = check_width(c, err);
    return r ? r : check_noise(c, err);
}

int nn_position_axes(nn_position_type type)
{
    static const int axes[] = { [NN_POSITION_TABLE] = 1, [NN_POSITION_GRID] = 2,
                                [NN_POSITION_IMAGE] = 3, [NN_POSITION_AXIAL] = 0 };
    return axes[type];
}

/* --- building --------------------------------------------------------------------------------- */

static void axis_build(nn_position *l, nn_params *p, const char *name, int64_t rows, int64_t width,
                       int64_t step, nn_init init)
{
    l->axis[l->n_axes++] = (nn_axis){ nn_param(p, name, AG_SHAPE(rows, width), init), step };
}

/* One of the tables that are summed. */
static void term_build(nn_position *l, nn_params *p, const char *name, int64_t rows, int64_t step)
{
    const int64_t d = l->config.d_model;
    axis_build(l, p, name, rows, d, step, nn_matrix_init(l->config.std, rows, d, 1));
}

static void table_build(nn_position *l, nn_params *p)
{
    const nn_position_config *c = &l->config;
    const int64_t rows = c->context + c->max_offset, width = c->features ? c->features : c->d_model;
    axis_build(l, p, "position", rows, width, 1,
               c->waves ? nn_waves() : nn_matrix_init(c->std, rows, width, 1));
    if (c->features)
        nn_linear_build(&l->features, p, "features", width, c->d_model, false,
                        nn_glorot(width, c->d_model, 1));
}

/* How often `step` begins in the context. */
static int64_t steps(const nn_position_config *c, int64_t step)
{
    return (c->context + step - 1) / step;
}

static void fixed_base_build(nn_position *l, nn_params *p)
{
    const int64_t d = l->config.d_model;
    l->digits = nn_param(p, "digits", AG_SHAPE(d, NN_POSITION_BASES), nn_uniform(1e-4));
    l->first = nn_param(p, "first", AG_SHAPE(1, d), nn_uniform(1e-4));
}

void nn_position_build(nn_position *l, nn_params *p, const nn_position_config *config)
{
    *l = (nn_position){ .config = *config };
    nn_position_config *c = &l->config;
    c->max_offset = max_offset(config);
    switch (c->type) {
    case NN_POSITION_TABLE: table_build(l, p); break;
    case NN_POSITION_GRID:
        term_build(l, p, "row", steps(c, c->stride), c->stride);
        term_build(l, p, "column", c->stride, 1);
        break;
    case NN_POSITION_IMAGE:
        term_build(l, p, "row", steps(c, c->width * c->channels), c->width * c->channels);
        term_build(l, p, "column", c->width, c->channels);
        term_build(l, p, "channel", c->channels, 1);
        break;
    case NN_POSITION_FIXED_BASE: fixed_base_build(l, p); break;
    case NN_POSITION_AXIAL:
        axis_build(l, p, "row", c->rows, c->row_width, c->cols, nn_normal(1));
        axis_build(l, p, "column", c->cols, c->d_model - c->row_width, 1, nn_normal(1));
        break;
    case NN_POSITION_NONE:
    case NN_POSITION_SIN_COS: break;
    }
    if (c->max_offset > 0 || c->type == NN_POSITION_FIXED_BASE) l->site = nn_site(p);
    if (c->dropout > 0) nn_dropout_build(&l->drop, p, c->dropout);
}

/* --- where sequences start -------------------------------------------------------------------- */

/* n positions from `first` on, of k sequences: those of the batch, or 1 where all have the same. */
typedef struct span {
    int64_t  k, first, n;
    int64_t *start;                  /* [k], added to them */
    bool    *silent;                 /* [k], no digits */
} span;

static bool differ(const nn_position *l, nn_mode mode)
{
    return mode == NN_TRAIN && (l->config.max_offset > 0 || l->config.dropout > 0 ||
                                l->config.type == NN_POSITION_FIXED_BASE);
}

static void draw_start(const nn_position *l, const ag_noise *z, span *s, int64_t e)
{
    enum { COIN, HIGH, LOW, DROP, WORDS };
    uint32_t word[WORDS];
    for (int i = 0; i < WORDS; i++) word[i] = ag_noise_at(z, e, i, WORDS);
    const bool zero = (double)ag_uniform(word[COIN]) < l->config.start_from_zero_prob;
    const uint64_t any = (uint64_t)word[HIGH] << 32 | word[LOW];
    if (!zero && l->config.max_offset > 0)
        s->start[e] = (int64_t)(any % (uint64_t)l->config.max_offset);
    s->silent[e] = l->config.type == NN_POSITION_FIXED_BASE &&
                   (double)ag_uniform(word[DROP]) < 1.0 / EXAMPLES_OF_A_DROP;
}

static span span_of(const nn_position *l, ag_tape *t, int64_t batch, int64_t first, int64_t n,
                    nn_mode mode)
{
    const bool drawn = differ(l, mode);
    span s = { .k = drawn ? batch : 1, .first = first, .n = n };
    s.start = ag_tape_meta(t, (size_t)s.k * sizeof *s.start);
    s.silent = ag_tape_meta(t, (size_t)s.k * sizeof *s.silent);
    if (!s.start || !s.silent) s.k = 0;          /* the tape has an error: nothing will be read */
    const ag_noise z = ag_noise_for(t, l->site, s.k);
    for (int64_t e = 0; e < s.k; e++) {
        s.start[e] = 0;
        s.silent[e] = false;
        if (drawn) draw_start(l, &z, &s, e);
    }
    return s;
}

/* The position of row r of [k,n]. */
static int64_t at(const span *s, int64_t r)
{
    return s->start[r / s->n] + s->first + r % s->n;
}

/* --- forward ---------------------------------------------------------------------------------- */

/* table[(i / step) mod rows]: [k,n,width] */
static ag_tensor *axis_forward(const nn_axis *a, ag_tape *t, const span *s)
{
    int32_t *index = ag_tape_meta(t, (size_t)(s->k * s->n) * sizeof *index);
    for (int64_t r = 0; index && r < s->k * s->n; r++)
        index[r] = (int32_t)(at(s, r) / a->step % a->table->shape.dim[0]);
    return ag_gather(t, a->table, ag_input_i32(t, AG_SHAPE(s->k, s->n), index));
}

static ag_tensor *axes_forward(const nn_position *l, ag_tape *t, const span *s)
{
    ag_tensor *y = axis_forward(&l->axis[0], t, s);
    for (int i = 1; i < l->n_axes; i++) {
        ag_tensor *x = axis_forward(&l->axis[i], t, s);
        y = l->config.type == NN_POSITION_AXIAL ? ag_module_concat(t, y, x, 1) : ag_add(t, y, x);
    }
    return l->features.weight ? nn_linear_forward(&l->features, t, y, AG_ACT_NONE, NULL) : y;
}

/* ret[j], ret[half + j]: sine and cosine of position times w_j */
static void waves(double position, int64_t half, double *ret)
{
    for (int64_t j = 0; j < half; j++) {
        const double angle = position * nn_wave_frequency(j, 2 * half);
        ret[j] = sin(angle);
        ret[half + j] = cos(angle);
    }
}

/* The waves at s + i from those at s and those at i, so that few sines are computed:
 * sin(a + b) = sin a cos b + cos a sin b,  cos(a + b) = cos a cos b - sin a sin b. */
static ag_tensor *sin_cos_forward(const nn_position *l, ag_tape *t, const span *s)
{
    const int64_t d = l->config.d_model, half = d / 2;
    float *y = ag_tape_meta(t, (size_t)(s->k * s->n * d) * sizeof *y);
    double *start = ag_tape_meta(t, (size_t)(s->k * d) * sizeof *start),
        *here = ag_tape_meta(t, (size_t)d * sizeof *here);
    const bool fine = y && start && here;
    for (int64_t e = 0; fine && e < s->k; e++) waves((double)s->start[e], half, start + e * d);
    for (int64_t i = 0; fine && i < s->n; i++) {
        waves((double)(s->first + i), half, here);
        for (int64_t e = 0; e < s->k; e++) {
            const double *a = start + e * d, *b = here;
            float *row = y + (e * s->n + i) * d;
            for (int64_t j = 0; j < half; j++) {
                row[j] = (float)(a[j] * b[half + j] + a[half + j] * b[j]);
                row[half + j] = (float)(a[half + j] * b[half + j] - a[j] * b[j]);
            }
        }
    }
    return ag_input(t, AG_SHAPE(s->k, s->n, d), y, false);
}

/* [k,n,DIGITS*BASES]: for each digit its values in all bases. */
static ag_tensor *digits(ag_tape *t, const span *s)
{
    enum { N = NN_POSITION_DIGITS * NN_POSITION_BASES };
    float *x = ag_tape_meta(t, (size_t)(s->k * s->n) * N * sizeof *x);
    for (int64_t r = 0; x && r < s->k * s->n; r++)
        for (int b = 0; b < NN_POSITION_BASES; b++) {
            int64_t rest = s->silent[r / s->n] ? 0 : at(s, r);
            for (int m = 0; m < NN_POSITION_DIGITS; m++, rest /= BASES[b])
                x[r * N + m * NN_POSITION_BASES + b] = (float)(rest % BASES[b]);
        }
    return ag_input(t, AG_SHAPE(s->k, s->n, N), x, false);
}

static ag_tensor *fixed_base_forward(const nn_position *l, ag_tape *t, const span *s)
{
    ag_tensor *y = ag_module_linear(t, digits(t, s), l->digits, NULL, NN_POSITION_DIGITS, 1);
    if (s->first > 0) return y;
    float *begins = ag_tape_meta(t, (size_t)(s->k * s->n) * sizeof *begins);
    for (int64_t r = 0; begins && r < s->k * s->n; r++) begins[r] = r % s->n == 0;
    return ag_linear_in_out(t, ag_input(t, AG_SHAPE(s->k, s->n, 1), begins, false), l->first, NULL,
                            AG_ACT_NONE, y);
}

/* y [k,n,d] without some of its positions, the others larger for it. */
static ag_tensor *thinned(const nn_position *l, ag_tape *t, ag_tensor *y, const span *s)
{
    const int64_t d = l->config.d_model;
    float *ones = ag_tape_meta(t, (size_t)(s->k * s->n) * sizeof *ones);
    for (int64_t r = 0; ones && r < s->k * s->n; r++) ones[r] = 1;
    ag_tensor *keep = ag_dropout(t, ag_input(t, AG_SHAPE(s->k, s->n), ones, false), NULL, l->drop.p,
                                 l->drop.site);
    return ag_mul(t, y, ag_reshape(t, ag_repeat(t, keep, d), AG_SHAPE(s->k, s->n, d)));
}

ag_tensor *nn_position_table(const nn_position *l, nn_mode mode)
{
    const bool plain = l->config.type == NN_POSITION_TABLE && !l->features.weight &&
                       l->config.max_offset == 0 && !differ(l, mode);
    return plain ? l->axis[0].table : NULL;
}

ag_tensor *nn_position_forward(const nn_position *l, ag_tape *t, int64_t batch, int64_t first,
                               int64_t n, nn_mode mode)
{
    const int64_t context = l->config.context;
    if (n < 1) return NULL;
    if (first + n > context)
        ag_fail(t, AG_ERANGE, "embedding: positions %lld to %lld, but only %lld are known "
                "(model.context)", (long long)first, (long long)(first + n - 1),
                (long long)context);
    if (l->config.type == NN_POSITION_NONE) return NULL;
    const span s = span_of(l, t, batch, first, n, mode);
    ag_tensor *y = l->config.type == NN_POSITION_SIN_COS    ? sin_cos_forward(l, t, &s)
                 : l->config.type == NN_POSITION_FIXED_BASE ? fixed_base_forward(l, t, &s)
                                                            : axes_forward(l, t, &s);
    return nn_dropout_is_on(&l->drop, mode) ? thinned(l, t, y, &s) : y;
}

int64_t nn_position_unread(const nn_position *l)
{
    int64_t n = l->first ? l->config.d_model : 0;
    for (int i = 0; i < l->n_axes; i++) n += l->axis[i].table->size - ag_cols(l->axis[i].table);
    return n;
}

int64_t nn_position_products(const nn_position *l)
{
    return (l->features.weight ? l->features.weight->size : 0) + (l->digits ? l->digits->size : 0);
}
