#include "optim/optim.h"

#include "autograd/base/arena.h"
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

struct opt_part { int64_t offset, count; bool decay; };

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
static int64_t cut(struct opt_part *part, int64_t from, int64_t to, bool decay)
{
    if (part)
        for (int64_t i = 0, at = from; at < to; i++, at += PART)
            part[i] = (struct opt_part){ at, to - at < PART ? to - at : PART, decay };
    return parts_of(to - from);
}

/* Parts of all n elements.  Neighbours with the same decay are one stretch; holes have none. */
static int64_t cut_all(struct opt_part *part, int64_t n, const opt_range *r, int n_ranges)
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
    float *data = ag_block_alloc((size_t)n * sizeof *data);
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

int opt_new(const opt_config *c, int64_t n, const opt_range *ranges, int n_ranges,
            opt_state **ret_opt, ag_err *err)
{
    int r = check_config(c, err);
    if (!r) r = check_ranges(n, ranges, n_ranges, err);
    if (r) return r;
    opt_state *o = ag_fault_now() ? NULL : calloc(1, sizeof *o);
    if (o) {
        *o = (opt_state){ .config = *c, .n = n, .n_parts = cut_all(NULL, n, ranges, n_ranges) };
        o->part = ag_fault_now() ? NULL : malloc((size_t)(o->n_parts + 1) * sizeof *o->part);
        o->range = ag_fault_now() ? NULL : malloc((size_t)(n_ranges + 1) * sizeof *o->range);
    }
    if (o && o->range && n_ranges) {
        memcpy(o->range, ranges, (size_t)n_ranges * sizeof *ranges);
        o->n_ranges = n_ranges;
    }
    if (!o || !o->part || !o->range || !slots_new(o)) {
        opt_free(o);
        return ag_err_set(err, AG_ENOMEM, "out of memory for the optimizer's state of %lld weights",
                          (long long)n);
    }
    cut_all(o->part, n, ranges, n_ranges);
    *ret_opt = o;
    return AG_OK;
}

void opt_free(opt_state *o)
{
    if (!o) return;
    for (int i = 0; i < o->n_slots; i++)
        ag_block_free(o->slot[i].data, (size_t)o->slot[i].n * sizeof(float));
    opt_adafactor_free(o->adafactor);
    free(o->range);
    free(o->part);
    free(o);
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

static opt_adam adam_factors(const opt_state *o, double lr, float clip)
{
    const opt_config *c = &o->config;
    const double t = (double)(o->step + 1);
    return (opt_adam){
        .clip = clip,
        .beta1 = (float)c->beta1, .keep1 = (float)(1 - c->beta1),
        .beta2 = (float)c->beta2, .keep2 = (float)(1 - c->beta2),
        .rate = (float)(lr / (1 - pow(c->beta1, t))),
        .root = (float)(1 / sqrt(1 - pow(c->beta2, t))), .eps = (float)c->eps, .shrink = 1,
    };
}

typedef struct step_factors {        /* of one step; weight decay for the parts that decay */
    opt_adam adam;
    opt_sgd  sgd;
    float    l2, shrink, ema_decay, ema_keep;
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

static void step_part(opt_state *o, const step_factors *f, const struct opt_part *part, float *p,
                      float *g)
{
    const int64_t at = part->offset, n = part->count;
    if (o->config.type == OPT_SGD) {
        opt_sgd sgd = f->sgd;
        if (part->decay) sgd.l2 = f->l2;
        opt_sgd_part(&sgd, n, p + at, g + at, o->m + at);
    } else if (o->config.type != OPT_ADAFACTOR) {
        opt_adam adam = f->adam;
        if (part->decay) adam.l2 = f->l2, adam.shrink = f->shrink;
        opt_adam_part(&adam, n, p + at, g + at, o->m + at, o->v + at);
    }
    if (o->ema) opt_ema_part(f->ema_decay, f->ema_keep, n, p + at, o->ema + at);
}

/* Is the norm one that a step can be taken with?  The factor of the gradient and the square of the
 * clipped gradient must be numbers of f32. */
static int check_norm(const opt_state *o, double norm, double clip, double unscale, ag_err *err)
{
    if (!isfinite(norm))
        return ag_err_set(err, AG_EDIVERGED, "step %lld: the norm of the gradient is %s",
                          (long long)o->step, isnan(norm) ? "not a number" : "infinite");
    if (clip * unscale < (double)FLT_MIN)
        return ag_err_set(err, AG_EDIVERGED, "step %lld: the norm of the gradient is %g, and its "
                          "factor %g is no normal number", (long long)o->step, norm,
                          clip * unscale);
    if (o->config.type != OPT_SGD && norm * clip > sqrt((double)FLT_MAX))
        return ag_err_set(err, AG_EDIVERGED, "step %lld: the norm of the gradient is %g, and its "
                          "square more than a second moment holds", (long long)o->step, norm);
    return AG_OK;
}

int opt_step(opt_state *o, double lr, double unscale, float *p, float *g, double *ret_norm,
             ag_err *err)
{
    const double norm = unscale * opt_norm(o->n, g), most = o->config.clip_norm;
    const double clip = most > 0 && norm > most ? most / norm : 1;
    if (ret_norm) *ret_norm = norm;
    const int r = check_norm(o, norm, clip, unscale, err);
    if (r < 0) return r;
    if (o->ema && o->step == 0) memcpy(o->ema, p, (size_t)o->n * sizeof *p);
    if (o->adafactor) opt_adafactor_step(o, lr, clip * unscale, p, g);
    const step_factors f = factors(o, lr, (float)(clip * unscale));
    const bool more = !o->adafactor || o->ema;
    #pragma omp parallel for schedule(static) if (o->n > SMALL)
    for (int64_t i = 0; i < (more ? o->n_parts : 0); i++) {
        const unsigned before = opt_tiny_flush();
        step_part(o, &f, &o->part[i], p, g);
        opt_tiny_restore(before);
    }
    o->step++;
    return AG_OK;
}
