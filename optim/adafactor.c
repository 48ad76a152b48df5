#include "optim/adafactor.h"

#include "autograd/base/arena.h"
#include "optim/kernels.h"

#include <math.h>
#include <stdlib.h>

enum {
    ROWS  = 64,                      /* of a matrix that are one part of the work */
    PIECE = 4096,                    /* elements of a vector that are one part */
    SMALL = 20000,                   /* below this many elements threads are not worth starting */
};

/* The last two axes of a range, or a piece of a vector: a row whose columns are its elements. */
typedef struct matrix {
    int64_t offset, rows, cols;
    int64_t row, col;                /* of its factors; a matrix: of its moments in v_row, v_col */
    int64_t vector;                  /* of its moments in v; -1: a matrix */
    int64_t part, n_parts;           /* the first one, how many */
    int     range;
} matrix;

typedef struct part {                /* rows of a matrix */
    int64_t matrix, first, rows;
    int64_t sums;                    /* where its sums of columns begin */
    double  p2, y2;                  /* sums of squares of the weights and of the update */
} part;

struct opt_adafactor {
    matrix       *matrix;
    part         *part;
    opt_factored *rate;              /* [ranges], of this step */
    float        *row, *col;         /* factors of the update, of all rows and all columns */
    double       *sum;               /* of the squares of each part's columns */
    int64_t n_matrices, n_parts, n_ranges, n_rows, n_cols, n_sums;
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
static void add_matrix(opt_adafactor *a, matrix m)
{
    m.row = a->n_rows;
    m.col = a->n_cols;
    m.part = a->n_parts;
    m.n_parts = (m.rows + ROWS - 1) / ROWS;
    for (int64_t i = 0; i < m.n_parts && a->part; i++)
        a->part[m.part + i] = (part){ .matrix = a->n_matrices, .first = i * ROWS,
                                      .rows = m.rows - i * ROWS < ROWS ? m.rows - i * ROWS : ROWS,
                                      .sums = a->n_sums + i * m.cols };
    if (a->matrix) a->matrix[a->n_matrices] = m;
    a->n_matrices++;
    a->n_parts += m.n_parts;
    a->n_rows += m.rows;
    a->n_cols += m.cols;
    a->n_sums += m.n_parts * m.cols;
}

/* Matrices first, so that factors and moments of rows and columns have the same places. */
static void add_all(opt_adafactor *a, const opt_state *o)
{
    a->n_matrices = a->n_parts = a->n_rows = a->n_cols = a->n_sums = 0;
    for (int i = 0; i < o->n_ranges; i++) {
        const opt_range *r = &o->range[i];
        for (int64_t at = 0; r->rows && at < r->count; at += r->rows * r->cols)
            add_matrix(a, (matrix){ .offset = r->offset + at, .rows = r->rows, .cols = r->cols,
                                    .vector = -1, .range = i });
    }
    for (int64_t i = 0, v = 0; i < o->n_ranges; i++) {
        const opt_range *r = &o->range[i];
        for (int64_t at = 0; !r->rows && at < r->count; at += PIECE) {
            const int64_t n = r->count - at < PIECE ? r->count - at : PIECE;
            add_matrix(a, (matrix){ .offset = r->offset + at, .rows = 1, .cols = n, .vector = v,
                                    .range = (int)i });
            v += n;
        }
    }
}

static void *array_new(int64_t n, size_t size)
{
    return ag_fault_now() ? NULL : malloc((size_t)(n + 1) * size);
}

opt_adafactor *opt_adafactor_new(const opt_state *o)
{
    opt_adafactor *a = ag_fault_now() ? NULL : calloc(1, sizeof *a);
    if (!a) return NULL;
    add_all(a, o);
    a->n_ranges = o->n_ranges;
    a->matrix = array_new(a->n_matrices, sizeof *a->matrix);
    a->part = array_new(a->n_parts, sizeof *a->part);
    a->rate = array_new(a->n_ranges, sizeof *a->rate);
    a->row = array_new(a->n_rows, sizeof *a->row);
    a->col = array_new(a->n_cols, sizeof *a->col);
    a->sum = array_new(a->n_sums, sizeof *a->sum);
    if (!a->matrix || !a->part || !a->rate || !a->row || !a->col || !a->sum) {
        opt_adafactor_free(a);
        return NULL;
    }
    add_all(a, o);
    return a;
}

void opt_adafactor_free(opt_adafactor *a)
{
    if (!a) return;
    free(a->matrix);
    free(a->part);
    free(a->rate);
    free(a->row);
    free(a->col);
    free(a->sum);
    free(a);
}

size_t opt_adafactor_bytes(const opt_adafactor *a)
{
    return (size_t)a->n_matrices * sizeof *a->matrix + (size_t)a->n_parts * sizeof *a->part +
           (size_t)a->n_ranges * sizeof *a->rate + (size_t)a->n_sums * sizeof *a->sum +
           (size_t)(a->n_rows + a->n_cols) * sizeof(float);
}

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
static void look(opt_state *o, const moments *f, part *k, const float *p, const float *g)
{
    opt_adafactor *a = o->adafactor;
    const matrix *m = &a->matrix[k->matrix];
    const int64_t at = m->offset + k->first * m->cols;
    double sum[ROWS];
    opt_square_sums(k->rows, m->cols, g + at, sum, a->sum + k->sums);
    k->p2 = opt_square_part(k->rows * m->cols, p + at);
    for (int64_t i = 0; i < k->rows && m->vector < 0; i++) {
        float *vr = &o->v_row[m->row + k->first + i];
        *vr = moved(f, *vr, sum[i] / (double)m->cols);
    }
}

/* Moments of the columns, then the factors of the update, of which those of rows have the factor of
 * the gradient. */
static void factor(opt_state *o, const moments *f, const matrix *m)
{
    opt_adafactor *a = o->adafactor;
    double *sum = a->sum + a->part[m->part].sums, mean = 0;
    float *vc = m->vector < 0 ? o->v_col + m->col : o->v + m->vector;
    for (int64_t k = 1; k < m->n_parts; k++)
        for (int64_t j = 0; j < m->cols; j++) sum[j] += sum[k * m->cols + j];
    for (int64_t j = 0; j < m->cols; j++) {
        vc[j] = moved(f, vc[j], sum[j] / (double)m->rows);
        a->col[m->col + j] = (float)(1 / sqrt((double)vc[j] + f->eps1));
    }
    if (m->vector >= 0) {
        a->row[m->row] = (float)f->clip;
        return;
    }
    const float *vr = o->v_row + m->row;
    for (int64_t i = 0; i < m->rows; i++) mean += (double)vr[i];
    mean /= (double)m->rows;
    for (int64_t i = 0; i < m->rows; i++)
        a->row[m->row + i] = (float)(f->clip * sqrt(mean / ((double)vr[i] + f->eps1)));
}

static void measure(opt_adafactor *a, part *k, const float *g)
{
    const matrix *m = &a->matrix[k->matrix];
    k->y2 = opt_factored_square(k->rows, m->cols, g + m->offset + k->first * m->cols,
                                a->row + m->row + k->first, a->col + m->col);
}

/* The rate of each range, from the root mean squares of its weights and its update. */
static void set_rates(opt_state *o, double lr)
{
    const opt_config *c = &o->config;
    opt_adafactor *a = o->adafactor;
    const double n = (double)c->weight_decay_steps, t = (double)o->step;
    const double wd = c->weight_decay * (n > 0 ? fmax(n - t, 0) / n : 1);
    for (int64_t k = 0; k < a->n_parts;) {
        const int range = a->matrix[a->part[k].matrix].range;
        const double count = (double)o->range[range].count;
        double p2 = 0, y2 = 0;
        for (; k < a->n_parts && a->matrix[a->part[k].matrix].range == range; k++) {
            p2 += a->part[k].p2;
            y2 += a->part[k].y2;
        }
        const double scale = c->parameter_scale ? fmax(sqrt(p2 / count), c->eps2) : 1;
        const double most = c->clip_threshold, rms = sqrt(y2 / count);
        a->rate[range] = (opt_factored){
            .rate = (float)(lr * scale / (most > 0 && rms > most ? rms / most : 1)),
            .shrink = o->range[range].decay ? (float)(1 - wd) : 1,
            .momentum = (float)c->update_momentum, .keep = (float)(1 - c->update_momentum),
        };
    }
}

static void update(opt_state *o, const part *k, float *p, float *g)
{
    const opt_adafactor *a = o->adafactor;
    const matrix *m = &a->matrix[k->matrix];
    const int64_t at = m->offset + k->first * m->cols;
    opt_factored_part(&a->rate[m->range], k->rows, m->cols, a->row + m->row + k->first,
                      a->col + m->col, p + at, g + at, o->m ? o->m + at : NULL);
}

void opt_adafactor_step(opt_state *o, double lr, double clip, float *p, float *g)
{
    opt_adafactor *a = o->adafactor;
    const double mix = pow((double)(o->step + 1), -o->config.decay_rate);
    const moments f = { 1 - mix, mix * clip * clip, o->config.eps1, clip };
    const unsigned before = opt_tiny_flush();
    #pragma omp parallel if (o->n > SMALL)
    {
        const unsigned was = opt_tiny_flush();
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < a->n_parts; i++) look(o, &f, &a->part[i], p, g);
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < a->n_matrices; i++) factor(o, &f, &a->matrix[i]);
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < a->n_parts; i++) measure(a, &a->part[i], g);
        #pragma omp single
        set_rates(o, lr);
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < a->n_parts; i++) update(o, &a->part[i], p, g);
        opt_tiny_restore(was);
    }
    opt_tiny_restore(before);
}
