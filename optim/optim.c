#include "optim/optim.h"

#include "autograd/base/arena.h"
#include "autograd/base/tiny.h"
#include "optim/adafactor.h"
#include "optim/kernels.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    PART  = 4096,                    /* elements: p, g, m, v and ema of a part are 80 KB */
    SMALL = 20000,                   /* below this many elements threads are not worth starting */
    SUMS  = 256,                     /* partial sums of a norm */
};

/* --- building --------------------------------------------------------------------------------- */

static int check_share(const char *name, double v, ag_err *err)
{
    if (v >= 0 && v < 1) return AG_OK;           /* false for NaN */
    return ag_err_set(err, AG_ECONFIG, "optim.%s = %g must be in [0, 1)", name, v);
}

static int check_config(const opt_config *c, ag_err *err)
{
    int r = check_share("beta1", c->beta1, err);
    if (!r) r = check_share("beta2", c->beta2, err);
    if (!r) r = check_share("momentum", c->momentum, err);
    if (!r) r = check_share("ema_decay", c->ema_decay, err);
    if (r) return r;
    if (c->type == OPT_ADAFACTOR && (r = opt_adafactor_check(c, err)) < 0) return r;
    if ((c->type == OPT_ADAMW || c->type == OPT_ADAM) && !(c->eps > 0))
        return ag_err_set(err, AG_ECONFIG, "optim.eps = %g must be positive", c->eps);
    if (!(c->weight_decay >= 0 && c->clip_norm >= 0))
        return ag_err_set(err, AG_ECONFIG,
                          "optim.weight_decay = %g and optim.clip_norm = %g must not be negative",
                          c->weight_decay, c->clip_norm);
    if (c->nesterov && c->momentum == 0)
        return ag_err_set(err, AG_ECONFIG, "optim.nesterov needs optim.momentum > 0");
    return AG_OK;
}

static int64_t parts_of(int64_t count) { return (count + PART - 1) / PART; }

/* Cuts elements from .. to into parts; returns how many.  part may be NULL, to count. */
static int64_t cut(ag_flat_part *part, int64_t from, int64_t to, bool decay)
{
    if (part)
        for (int64_t i = 0, at = from; at < to; i++, at += PART)
            part[i] = (ag_flat_part){ at, to - at < PART ? to - at : PART, decay };
    return parts_of(to - from);
}

/* Parts of all n elements.  Neighbours with the same decay are one stretch; holes have none. */
static int64_t cut_all(ag_flat_part *part, int64_t n, const opt_range *r, int n_ranges)
{
    int64_t parts = 0, from = 0;
    bool decay = false;
    for (int i = 0; i <= n_ranges; i++) {
        const int64_t end = i < n_ranges ? r[i].offset : n;      /* of the hole before this range */
        const int64_t hole = i ? r[i - 1].offset + r[i - 1].count : 0;
        if (decay && hole < end) {
            parts += cut(part ? part + parts : NULL, from, hole, true);
            from = hole;
            decay = false;
        }
        if (i == n_ranges || r[i].decay != decay) {
            parts += cut(part ? part + parts : NULL, from, end, decay);
            from = end;
            decay = i < n_ranges && r[i].decay;
        }
    }
    return parts;
}

static int check_ranges(int64_t n, const opt_range *r, int n_ranges, ag_err *err)
{
    int64_t end = 0;
    for (int i = 0; i < n_ranges; i++) {
        if (r[i].offset < end || r[i].count < 0 || r[i].count > n - r[i].offset)
            return ag_err_set(err, AG_EFAIL,
                              "optimizer: range %d, %lld from %lld, overlaps or leaves the %lld",
                              i, (long long)r[i].count, (long long)r[i].offset, (long long)n);
        const int64_t rows = r[i].rows, cols = r[i].cols;
        if (rows < 0 || cols < 0 || (rows == 0) != (cols == 0) ||
            (rows && (rows > r[i].count / cols || r[i].count % (rows * cols))))
            return ag_err_set(err, AG_EFAIL,
                              "optimizer: range %d of %lld elements is not made of %lld x %lld",
                              i, (long long)r[i].count, (long long)rows, (long long)cols);
        end = r[i].offset + r[i].count;
    }
    return AG_OK;
}

/* The numbers that a slot of this extent has of a range. */
static int64_t span(opt_extent extent, const opt_range *r)
{
    switch (extent) {
    case OPT_OF_ALL:     return r->count;
    case OPT_OF_ROWS:    return r->cols ? r->count / r->cols : 0;
    case OPT_OF_COLS:    return r->rows ? r->count / r->rows : 0;
    case OPT_OF_VECTORS: return r->rows ? 0 : r->count;
    }
    return 0;
}

int64_t opt_slot_span(const opt_state *o, int k, int i, int64_t *ret_offset)
{
    const opt_extent extent = o->slot[k].extent;
    int64_t at = extent == OPT_OF_ALL ? o->range[i].offset : 0;
    for (int j = 0; j < i && extent != OPT_OF_ALL; j++) at += span(extent, &o->range[j]);
    *ret_offset = at;
    return span(extent, &o->range[i]);
}

static bool slot_new(opt_state *o, const char *name, opt_extent extent, float **ret_data)
{
    int64_t n = extent == OPT_OF_ALL ? o->n : 0;
    for (int i = 0; i < o->n_ranges && extent != OPT_OF_ALL; i++) n += span(extent, &o->range[i]);
    float *data = ag_device_alloc(o->device, (size_t)n * sizeof *data);
    if (!data) return false;
    o->slot[o->n_slots++] = (opt_slot){ name, extent, n, data };
    *ret_data = data;
    return true;
}

static bool slots_new(opt_state *o)
{
    const opt_config *c = &o->config;
    const bool factored = c->type == OPT_ADAFACTOR;
    bool ok = (factored && c->update_momentum == 0) || slot_new(o, "m", OPT_OF_ALL, &o->m);
    if (factored)
        ok = ok && slot_new(o, "v_row", OPT_OF_ROWS, &o->v_row) &&
             slot_new(o, "v_col", OPT_OF_COLS, &o->v_col);
    if (c->type != OPT_SGD)
        ok = ok && slot_new(o, "v", factored ? OPT_OF_VECTORS : OPT_OF_ALL, &o->v);
    ok = ok && (c->ema_decay == 0 || slot_new(o, "ema", OPT_OF_ALL, &o->ema));
    return ok && (!factored || (o->adafactor = opt_adafactor_new(o)));
}

static bool parts_new(opt_state *o, const opt_range *r, int n_ranges)
{
    o->n_parts = cut_all(NULL, o->n, r, n_ranges);
    const size_t bytes = (size_t)o->n_parts * sizeof *o->part;
    ag_flat_part *part = ag_fault_now() ? NULL : malloc(bytes + 1);
    if (!part) return false;
    cut_all(part, o->n, r, n_ranges);
    if (!o->device) {
        o->part = part;
        return true;
    }
    o->part = ag_device_alloc(o->device, bytes);
    o->square = ag_device_alloc(o->device, sizeof *o->square);
    if (o->part) o->device->write(o->part, part, bytes);
    free(part);
    return o->part && o->square;
}

int opt_new(const opt_config *c, const ag_device *device, int64_t n, const opt_range *ranges,
            int n_ranges, opt_state **ret_opt, ag_err *err)
{
    int r = check_config(c, err);
    if (!r) r = check_ranges(n, ranges, n_ranges, err);
    if (r) return r;
    opt_state *o = ag_fault_now() ? NULL : calloc(1, sizeof *o);
    if (o) {
        *o = (opt_state){ .config = *c, .device = device, .n = n };
        o->range = ag_fault_now() ? NULL : malloc((size_t)(n_ranges + 1) * sizeof *o->range);
    }
    if (o && o->range && n_ranges) {
        memcpy(o->range, ranges, (size_t)n_ranges * sizeof *ranges);
        o->n_ranges = n_ranges;
    }
    if (!o || !o->range || !parts_new(o, ranges, n_ranges) || !slots_new(o)) {
        opt_free(o);
        return ag_err_set(err, AG_ENOMEM, "out of memory for the optimizer's state of %lld weights",
                          (long long)n);
    }
    *ret_opt = o;
    return AG_OK;
}

void opt_free(opt_state *o)
{
    if (!o) return;
    for (int i = 0; i < o->n_slots; i++)
        ag_device_free(o->device, o->slot[i].data, (size_t)o->slot[i].n * sizeof(float));
    opt_adafactor_free(o->adafactor);
    if (o->device) {
        ag_device_free(o->device, o->part, (size_t)o->n_parts * sizeof *o->part);
        ag_device_free(o->device, o->square, sizeof *o->square);
    } else {
        free(o->part);
    }
    free(o->range);
    free(o);
}

void opt_slot_read(const opt_state *o, int k, float *host)
{
    ag_device_read(o->device, host, o->slot[k].data, (size_t)o->slot[k].n * sizeof *host);
}

void opt_slot_write(opt_state *o, int k, const float *host)
{
    ag_device_write(o->device, o->slot[k].data, host, (size_t)o->slot[k].n * sizeof *host);
}

void opt_swap_average(opt_state *o, float *weights)
{
    for (int k = 0; k < o->n_slots; k++)
        if (o->slot[k].data == o->ema) o->slot[k].data = weights;
    o->ema = weights;
}

size_t opt_bytes(const opt_state *o)
{
    size_t bytes = o->adafactor ? opt_adafactor_bytes(o->adafactor) : 0;
    for (int i = 0; i < o->n_slots; i++) bytes += (size_t)o->slot[i].n * sizeof(float);
    return bytes;
}

/* --- a step ----------------------------------------------------------------------------------- */

double opt_norm(int64_t n, const float *x)
{
    const int64_t parts = parts_of(n);
    double sum[SUMS], total = 0;
    #pragma omp parallel for schedule(static) if (n > SMALL)
    for (int k = 0; k < SUMS; k++) {
        sum[k] = 0;
        for (int64_t i = parts * k / SUMS; i < parts * (k + 1) / SUMS; i++)
            sum[k] += opt_square_part(n - i * PART < PART ? n - i * PART : PART, x + i * PART);
    }
    for (int k = 0; k < SUMS; k++) total += sum[k];
    return sqrt(total);
}

static ag_adam adam_factors(const opt_state *o, double lr, float clip)
{
    const opt_config *c = &o->config;
    const double t = (double)(o->step + 1);
    return (ag_adam){
        .clip = clip,
        .beta1 = (float)c->beta1, .keep1 = (float)(1 - c->beta1),
        .beta2 = (float)c->beta2, .keep2 = (float)(1 - c->beta2),
        .rate = (float)(lr / (1 - pow(c->beta1, t))),
        .root = (float)(1 / sqrt(1 - pow(c->beta2, t))), .eps = (float)c->eps, .shrink = 1,
    };
}

typedef struct step_factors {        /* of one step; weight decay for the parts that decay */
    ag_adam adam;
    ag_sgd  sgd;
    float   l2, shrink, ema_decay, ema_keep;
} step_factors;

static step_factors factors(const opt_state *o, double lr, float clip)
{
    const opt_config *c = &o->config;
    const bool decoupled = c->type == OPT_ADAMW;
    return (step_factors){
        .adam = adam_factors(o, lr, clip),
        .sgd = { clip, 0, (float)c->momentum, (float)lr, c->nesterov },
        .l2 = decoupled ? 0 : (float)c->weight_decay,
        .shrink = decoupled ? (float)(1 - lr * c->weight_decay) : 1,
        .ema_decay = (float)c->ema_decay, .ema_keep = (float)(1 - c->ema_decay),
    };
}

static void step_part(opt_state *o, const step_factors *f, const ag_flat_part *part, float *p,
                      float *g)
{
    const int64_t at = part->offset, n = part->count;
    if (o->config.type == OPT_SGD) {
        ag_sgd sgd = f->sgd;
        if (part->decay) sgd.l2 = f->l2;
        opt_sgd_part(&sgd, n, p + at, g + at, o->m + at);
    } else if (o->config.type != OPT_ADAFACTOR) {
        ag_adam adam = f->adam;
        if (part->decay) adam.l2 = f->l2, adam.shrink = f->shrink;
        opt_adam_part(&adam, n, p + at, g + at, o->m + at, o->v + at);
    }
    if (o->ema) opt_ema_part(f->ema_decay, f->ema_keep, n, p + at, o->ema + at);
}

/* The largest norm of the clipped gradient, whose square a second moment has to hold. */
static double most_of(const opt_state *o)
{
    return o->config.type == OPT_SGD ? DBL_MAX : sqrt((double)FLT_MAX);
}

static double clip_of(const opt_state *o, double norm)
{
    const double most = o->config.clip_norm;
    return most > 0 && norm > most ? most / norm : 1;
}

/* Is the norm one that a step can be taken with?  The factor of the gradient and the square of the
 * clipped gradient must be numbers of f32. */
static int check_norm(const opt_state *o, double norm, double unscale, ag_err *err)
{
    const double clip = clip_of(o, norm);
    if (!isfinite(norm))
        return ag_err_set(err, AG_EDIVERGED, "step %lld: the norm of the gradient is %s",
                          (long long)o->step, isnan(norm) ? "not a number" : "infinite");
    if (clip * unscale < (double)FLT_MIN)
        return ag_err_set(err, AG_EDIVERGED, "step %lld: the norm of the gradient is %g, and its "
                          "factor %g is no normal number", (long long)o->step, norm,
                          clip * unscale);
    if (norm * clip > most_of(o))
        return ag_err_set(err, AG_EDIVERGED, "step %lld: the norm of the gradient is %g, and its "
                          "square more than a second moment holds", (long long)o->step, norm);
    return AG_OK;
}

/* Waits for the device and its sum of squares, and decides as its loops do. */
static int norm_read(const opt_state *o, double unscale, double *ret_norm, ag_err *err)
{
    double square = 0;
    o->device->read(&square, o->square, sizeof square);
    const char *why = o->device->check();
    if (why) return ag_err_set(err, AG_EFAIL, "step %lld: %s", (long long)o->step, why);
    const double norm = unscale * sqrt(square);
    if (ret_norm) *ret_norm = norm;
    return check_norm(o, norm, unscale, err);
}

static int step_on_device(opt_state *o, double lr, double unscale, float *p, float *g,
                          double *ret_norm, ag_err *err)
{
    const ag_device *d = o->device;
    const ag_flat_gate gate = { o->square, unscale, o->config.clip_norm, most_of(o) };
    step_factors f = factors(o, lr, 1);
    d->flat.square_sum(o->n, g, o->square);
    if (o->ema && o->step == 0) {    /* is there a step, so that the average may begin? */
        const int r = norm_read(o, unscale, ret_norm, err);
        if (r < 0) return r;
        d->copy(o->ema, p, (size_t)o->n * sizeof *p);
    }
    f.sgd.l2 = f.adam.l2 = f.l2;
    f.adam.shrink = f.shrink;
    if (o->adafactor)
        opt_adafactor_on_device(o, lr, &gate, p, g);
    else if (o->config.type == OPT_SGD)
        d->flat.sgd(&f.sgd, &gate, o->n_parts, o->part, p, g, o->m, o->ema, f.ema_decay,
                    f.ema_keep);
    else
        d->flat.adam(&f.adam, &gate, o->n_parts, o->part, p, g, o->m, o->v, o->ema, f.ema_decay,
                     f.ema_keep);
    const int r = norm_read(o, unscale, ret_norm, err);
    o->step += r == AG_OK;
    return r;
}

int opt_step(opt_state *o, double lr, double unscale, float *p, float *g, double *ret_norm,
             ag_err *err)
{
    if (o->device) return step_on_device(o, lr, unscale, p, g, ret_norm, err);
    const double norm = unscale * opt_norm(o->n, g), clip = clip_of(o, norm);
    if (ret_norm) *ret_norm = norm;
    const int r = check_norm(o, norm, unscale, err);
    if (r < 0) return r;
    if (o->ema && o->step == 0) memcpy(o->ema, p, (size_t)o->n * sizeof *p);
    if (o->adafactor) opt_adafactor_step(o, lr, clip * unscale, p, g);
    const step_factors f = factors(o, lr, (float)(clip * unscale));
    const bool more = !o->adafactor || o->ema;
    #pragma omp parallel for schedule(static) if (o->n > SMALL)
    for (int64_t i = 0; i < (more ? o->n_parts : 0); i++) {
        const unsigned before = ag_tiny_flush();
        step_part(o, &f, &o->part[i], p, g);
        ag_tiny_restore(before);
    }
    o->step++;
    return AG_OK;
}
