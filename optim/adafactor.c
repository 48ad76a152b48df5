#include "optim/adafactor.h"

#include "autograd/base/arena.h"
#include "autograd/base/tiny.h"
#include "optim/kernels.h"

#include <math.h>
#include <stdlib.h>

enum {
    ROWS  = AG_FACTORED_ROWS,        /* of a matrix that are one part of the work */
    PIECE = 4096,                    /* elements of a vector that are one part */
    SMALL = 20000,                   /* below this many elements threads are not worth starting */
};

struct opt_adafactor {
    const ag_device *device;         /* where the work is; NULL: the host */
    ag_factored_work w;
    void  *block;                    /* that has its arrays */
    size_t bytes;
};

int opt_adafactor_check(const opt_config *c, ag_err *err)
{
    if (!(c->decay_rate > 0 && c->decay_rate <= 1))
        return ag_err_set(err, AG_ECONFIG, "optim.decay_rate = %g must be in (0, 1]",
                          c->decay_rate);
    if (!(c->eps1 > 0 && c->eps2 >= 0 && c->clip_threshold >= 0))
        return ag_err_set(err, AG_ECONFIG, "optim.eps1 = %g must be positive, optim.eps2 = %g and "
                          "optim.clip_threshold = %g must not be negative", c->eps1, c->eps2,
                          c->clip_threshold);
    if (!(c->weight_decay < 1) || c->weight_decay_steps < 0)
        return ag_err_set(err, AG_ECONFIG, "optim.weight_decay = %g must be below 1, "
                          "optim.weight_decay_steps = %lld must not be negative", c->weight_decay,
                          (long long)c->weight_decay_steps);
    if (!(c->update_momentum >= 0 && c->update_momentum < 1))
        return ag_err_set(err, AG_ECONFIG, "optim.update_momentum = %g must be in [0, 1)",
                          c->update_momentum);
    return AG_OK;
}

/* --- building --------------------------------------------------------------------------------- */

/* Appends a matrix and its parts; without arrays it only counts. */
static void add_matrix(ag_factored_work *w, ag_factored_matrix m)
{
    m.row = w->n_rows;
    m.col = w->n_cols;
    m.part = w->n_parts;
    m.n_parts = (m.rows + ROWS - 1) / ROWS;
    for (int64_t i = 0; i < m.n_parts && w->part; i++)
        w->part[m.part + i] = (ag_factored_part){
            .matrix = w->n_matrices, .first = i * ROWS,
            .rows = m.rows - i * ROWS < ROWS ? m.rows - i * ROWS : ROWS,
            .sums = w->n_sums + i * m.cols };
    if (w->matrix) w->matrix[w->n_matrices] = m;
    w->n_matrices++;
    w->n_parts += m.n_parts;
    w->n_rows += m.rows;
    w->n_cols += m.cols;
    w->n_sums += m.n_parts * m.cols;
}

/* What a range is made of: matrices, or pieces of a vector whose moments begin at `vector`. */
static void add_range(ag_factored_work *w, const opt_range *r, int i, int64_t vector)
{
    const int64_t first = w->n_parts, step = r->rows ? r->rows * r->cols : PIECE;
    for (int64_t at = 0; at < r->count; at += step)
        add_matrix(w, r->rows
                   ? (ag_factored_matrix){ .offset = r->offset + at, .rows = r->rows,
                                           .cols = r->cols, .vector = -1, .range = i }
                   : (ag_factored_matrix){ .offset = r->offset + at, .rows = 1,
                                           .cols = r->count - at < PIECE ? r->count - at : PIECE,
                                           .vector = vector + at, .range = i });
    if (w->range)
        w->range[i] = (ag_factored_range){ first, w->n_parts - first, r->count, r->decay };
}

/* Matrices first. */
static void add_all(ag_factored_work *w, const opt_state *o)
{
    w->n_matrices = w->n_parts = w->n_rows = w->n_cols = w->n_sums = 0;
    w->n_ranges = o->n_ranges;
    for (int i = 0; i < o->n_ranges; i++)
        if (o->range[i].rows) add_range(w, &o->range[i], i, -1);
    int64_t vector = 0;
    for (int i = 0; i < o->n_ranges; i++) {
        if (o->range[i].rows) continue;
        add_range(w, &o->range[i], i, vector);
        vector += o->range[i].count;
    }
}

static void *take(char *base, size_t *at, int64_t n, size_t size)
{
    void *p = base ? base + *at : NULL;
    *at += ((size_t)n * size + AG_ALIGN - 1) / AG_ALIGN * AG_ALIGN;
    return p;
}

/* Where the arrays of w lie in one block, which may be NULL; returns its bytes.  *ret_fixed: of
 * those, what is written once, on the host. */
static size_t lay_out(ag_factored_work *w, void *block, size_t *ret_fixed)
{
    size_t at = 0;
    w->matrix = take(block, &at, w->n_matrices, sizeof *w->matrix);
    w->part = take(block, &at, w->n_parts, sizeof *w->part);
    w->range = take(block, &at, w->n_ranges, sizeof *w->range);
    *ret_fixed = at;
    w->total = take(block, &at, w->n_parts, sizeof *w->total);
    w->rate = take(block, &at, w->n_ranges, sizeof *w->rate);
    w->row = take(block, &at, w->n_rows, sizeof *w->row);
    w->col = take(block, &at, w->n_cols, sizeof *w->col);
    w->sum = take(block, &at, w->n_sums, sizeof *w->sum);
    return at;
}

opt_adafactor *opt_adafactor_new(const opt_state *o)
{
    opt_adafactor *a = ag_fault_now() ? NULL : calloc(1, sizeof *a);
    if (!a) return NULL;
    size_t fixed;
    a->device = o->device;
    add_all(&a->w, o);
    a->bytes = lay_out(&a->w, NULL, &fixed);
    a->block = ag_device_alloc(a->device, a->bytes);
    void *host = !a->device ? a->block : ag_fault_now() ? NULL : malloc(fixed + 1);
    if (a->block && host) {
        ag_factored_work w = a->w;
        lay_out(&w, host, &fixed);
        add_all(&w, o);
        lay_out(&a->w, a->block, &fixed);
        if (a->device) a->device->write(a->block, host, fixed);
    }
    const bool ok = a->block && host;
    if (a->device) free(host);
    if (ok) return a;
    opt_adafactor_free(a);
    return NULL;
}

void opt_adafactor_free(opt_adafactor *a)
{
    if (a) ag_device_free(a->device, a->block, a->bytes);
    free(a);
}

size_t opt_adafactor_bytes(const opt_adafactor *a) { return a->bytes; }

/* --- a step ----------------------------------------------------------------------------------- */

typedef struct moments {             /* how a mean of squares goes into a second moment */
    double beta, mix;                /* mix: with the square of the factor of the gradient */
    double eps1, clip;
} moments;

static float moved(const moments *f, float v, double mean)
{
    return (float)(f->beta * (double)v + f->mix * mean);
}

/* Moments of the rows of a part, and what its columns and weights add up to. */
static void look(opt_state *o, const moments *f, int64_t part, const float *p, const float *g)
{
    const ag_factored_work *w = &o->adafactor->w;
    const ag_factored_part *k = &w->part[part];
    const ag_factored_matrix *m = &w->matrix[k->matrix];
    const int64_t at = m->offset + k->first * m->cols;
    double sum[ROWS];
    opt_square_sums(k->rows, m->cols, g + at, sum, w->sum + k->sums);
    w->total[part].p2 = opt_square_part(k->rows * m->cols, p + at);
    for (int64_t i = 0; i < k->rows && m->vector < 0; i++) {
        float *vr = &o->v_row[m->row + k->first + i];
        *vr = moved(f, *vr, sum[i] / (double)m->cols);
    }
}

/* Moments of the columns, then the factors of the update, of which those of rows have the factor of
 * the gradient. */
static void factor(opt_state *o, const moments *f, const ag_factored_matrix *m)
{
    const ag_factored_work *w = &o->adafactor->w;
    double *sum = w->sum + w->part[m->part].sums, mean = 0;
    float *vc = m->vector < 0 ? o->v_col + m->col : o->v + m->vector;
    for (int64_t k = 1; k < m->n_parts; k++)
        for (int64_t j = 0; j < m->cols; j++) sum[j] += sum[k * m->cols + j];
    for (int64_t j = 0; j < m->cols; j++) {
        vc[j] = moved(f, vc[j], sum[j] / (double)m->rows);
        w->col[m->col + j] = (float)(1 / sqrt((double)vc[j] + f->eps1));
    }
    if (m->vector >= 0) {
        w->row[m->row] = (float)f->clip;
        return;
    }
    const float *vr = o->v_row + m->row;
    for (int64_t i = 0; i < m->rows; i++) mean += (double)vr[i];
    mean /= (double)m->rows;
    for (int64_t i = 0; i < m->rows; i++)
        w->row[m->row + i] = (float)(f->clip * sqrt(mean / ((double)vr[i] + f->eps1)));
}

static void measure(const ag_factored_work *w, int64_t part, const float *g)
{
    const ag_factored_part *k = &w->part[part];
    const ag_factored_matrix *m = &w->matrix[k->matrix];
    w->total[part].y2 = opt_factored_square(k->rows, m->cols, g + m->offset + k->first * m->cols,
                                            w->row + m->row + k->first, w->col + m->col);
}

/* 1 - the weight decay of this step */
static float shrink_of(const opt_state *o)
{
    const double n = (double)o->config.weight_decay_steps, t = (double)o->step;
    return (float)(1 - o->config.weight_decay * (n > 0 ? fmax(n - t, 0) / n : 1));
}

/* The rate of each range, from the root mean squares of its weights and its update. */
static void set_rates(opt_state *o, double lr)
{
    const opt_config *c = &o->config;
    const ag_factored_work *w = &o->adafactor->w;
    for (int64_t i = 0; i < w->n_ranges; i++) {
        const ag_factored_range *r = &w->range[i];
        double p2 = 0, y2 = 0;
        for (int64_t k = r->part; k < r->part + r->n_parts; k++) {
            p2 += w->total[k].p2;
            y2 += w->total[k].y2;
        }
        if (!r->count) continue;
        const double count = (double)r->count;
        const double scale = c->parameter_scale ? fmax(sqrt(p2 / count), c->eps2) : 1;
        const double most = c->clip_threshold, rms = sqrt(y2 / count);
        w->rate[i] = (ag_factored_rate){
            .rate = (float)(lr * scale / (most > 0 && rms > most ? rms / most : 1)),
            .shrink = r->decay ? shrink_of(o) : 1,
            .momentum = (float)c->update_momentum, .keep = (float)(1 - c->update_momentum),
        };
    }
}

static void update(const opt_state *o, const ag_factored_part *k, float *p, float *g)
{
    const ag_factored_work *w = &o->adafactor->w;
    const ag_factored_matrix *m = &w->matrix[k->matrix];
    const int64_t at = m->offset + k->first * m->cols;
    opt_factored_part(&w->rate[m->range], k->rows, m->cols, w->row + m->row + k->first,
                      w->col + m->col, p + at, g + at, o->m ? o->m + at : NULL);
}

/* 1 - beta */
static double mix_of(const opt_state *o)
{
    return pow((double)(o->step + 1), -o->config.decay_rate);
}

void opt_adafactor_step(opt_state *o, double lr, double clip, float *p, float *g)
{
    const ag_factored_work *w = &o->adafactor->w;
    const double mix = mix_of(o);
    const moments f = { 1 - mix, mix * clip * clip, o->config.eps1, clip };
    const unsigned before = ag_tiny_flush();
    #pragma omp parallel if (o->n > SMALL)
    {
        const unsigned was = ag_tiny_flush();
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < w->n_parts; i++) look(o, &f, i, p, g);
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < w->n_matrices; i++) factor(o, &f, &w->matrix[i]);
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < w->n_parts; i++) measure(w, i, g);
        #pragma omp single
        set_rates(o, lr);
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < w->n_parts; i++) update(o, &w->part[i], p, g);
        ag_tiny_restore(was);
    }
    ag_tiny_restore(before);
}

void opt_adafactor_on_device(opt_state *o, double lr, const ag_flat_gate *gate, float *p, float *g)
{
    const opt_config *c = &o->config;
    const double mix = mix_of(o);
    const ag_factored f = {
        .beta = 1 - mix, .mix = mix, .eps1 = c->eps1, .eps2 = c->eps2,
        .clip_threshold = c->clip_threshold, .lr = lr, .parameter_scale = c->parameter_scale,
        .shrink = shrink_of(o),
        .momentum = (float)c->update_momentum, .keep = (float)(1 - c->update_momentum),
        .ema_decay = (float)c->ema_decay, .ema_keep = (float)(1 - c->ema_decay),
    };
    const ag_factored_arrays a = { p, g, o->m, o->v_row, o->v_col, o->v, o->ema };
    o->device->flat.factored(&f, gate, &o->adafactor->w, &a);
}
