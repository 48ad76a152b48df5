#include "train/beam.h"

#include "data/tokenizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NOTHING (-(double)INFINITY)  /* log p of no beginning */

typedef struct candidate { double logp; int64_t from; int32_t token; } candidate;

typedef struct search {
    const nn_model *m;
    ag_tape *t;
    const train_beam *b;
    ag_kv_cache *cache;              /* NULL: the model has none */
    int64_t  n, k, rows, room;       /* rows = n * width; room = k + length */
    int64_t  length;                 /* tokens that all beginnings have */
    int32_t *ids, *next;             /* [rows,room]: prompt and beginning; those of the next step */
    int32_t *fed;                    /* [rows,room]: what the model is fed */
    int32_t *from;                   /* [rows]: the row that each goes on with */
    double  *logp, *next_logp;       /* [rows]; NOTHING: it is empty */
    bool    *finished, *done;        /* [n]: a target has ended; nothing better can come */
    int32_t *tokens;                 /* [n,length]: the caller's */
    int64_t *ret_n;
    double  *score;
} search;

static double penalty(const train_beam *b, int64_t n)
{
    return pow((5 + (double)n) / 6, b->alpha);
}

/* --- one source ------------------------------------------------------------------------------- */

static bool before(const candidate *a, const candidate *b)
{
    if (a->logp != b->logp) return a->logp > b->logp;
    return a->from != b->from ? a->from < b->from : a->token < b->token;
}

/* Puts c into the sorted list of at most `most`. */
static void insert(candidate *list, int64_t *n, int64_t most, const candidate *c)
{
    int64_t i = *n;
    if (i == most && !before(c, &list[i - 1])) return;
    if (i == most) i--;
    else ++*n;
    for (; i > 0 && before(c, &list[i - 1]); i--) list[i] = list[i - 1];
    list[i] = *c;
}

/* log of the sum of exp(logits); NAN where one is NaN or +Inf. */
static double log_sum(const float *logits, int64_t n)
{
    double top = NOTHING, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY) return (double)NAN;
        top = fmax(top, (double)logits[i]);
    }
    if (top == NOTHING) return (double)NAN;
    for (int64_t i = 0; i < n; i++) sum += exp((double)logits[i] - top);
    return top + log(sum);
}

/* The likeliest ways to go on from the rows of a source, 2 * width of them at most: as many as may
 * be needed, since each row has but one end.  Negative: a code. */
static int64_t collect(const search *s, int64_t first, const float *last, int64_t stride,
                       candidate *list, ag_err *err)
{
    const int64_t vocab = s->m->classes;
    int64_t n = 0;
    for (int64_t r = first; r < first + s->b->width; r++) {
        if (s->logp[r] == NOTHING) continue;
        const float *logits = last + r * stride;
        const double norm = log_sum(logits, vocab);
        if (isnan(norm))
            return ag_err_set(err, AG_EDIVERGED, "the logits of token %lld are not finite",
                              (long long)s->length);
        for (int64_t v = DATA_PADDING + 1; v < vocab; v++) {
            const candidate c = { s->logp[r] + ((double)logits[v] - norm), r, (int32_t)v };
            insert(list, &n, 2 * s->b->width, &c);
        }
    }
    return n;
}

/* A target of source i: row r so far, which is n tokens without an end. */
static void finish(search *s, int64_t i, int64_t r, int64_t n, double score)
{
    s->score[i] = score;
    s->ret_n[i] = n;
    memcpy(s->tokens + i * s->b->length, s->ids + r * s->room + s->k,
           (size_t)n * sizeof *s->tokens);
}

/* Rows first .. end-1 go on with nothing that counts. */
static void rest(search *s, int64_t first, int64_t end)
{
    for (int64_t r = first; r < end; r++) {
        s->from[r] = (int32_t)r;
        s->next_logp[r] = NOTHING;
        memcpy(s->next + r * s->room, s->ids + r * s->room,
               (size_t)(s->k + s->length) * sizeof *s->next);
        s->next[r * s->room + s->k + s->length] = DATA_END;
    }
}

/* Chooses from the sorted list what goes on, and keeps the best of what has ended. */
static void choose(search *s, int64_t i, const candidate *list, int64_t n)
{
    const int64_t width = s->b->width, first = i * width;
    const double lp = penalty(s->b, s->length + 1);
    int64_t live = 0;
    for (int64_t c = 0; c < n && live < width; c++) {
        if (list[c].token == DATA_END) {
            if (c >= width) continue;
            if (!s->finished[i] || list[c].logp / lp > s->score[i])
                finish(s, i, list[c].from, s->length, list[c].logp / lp);
            s->finished[i] = true;
            continue;
        }
        const int64_t r = first + live++;
        s->from[r] = (int32_t)list[c].from;
        s->next_logp[r] = list[c].logp;
        memcpy(s->next + r * s->room, s->ids + list[c].from * s->room,
               (size_t)(s->k + s->length) * sizeof *s->next);
        s->next[r * s->room + s->k + s->length] = list[c].token;
    }
    rest(s, first + live, first + width);
    /* log p only falls from here on, and the penalty is greatest for the longest */
    const double hope = live ? s->next_logp[first] / penalty(s->b, s->b->length) : NOTHING;
    s->done[i] = !live || (s->finished[i] && (width == 1 || s->score[i] >= hope));
}

/* --- all of them ------------------------------------------------------------------------------ */

/* Logits of what follows each row, *ret_stride apart. */
static int feed(search *s, const float **ret_last, int64_t *ret_stride, ag_err *err)
{
    const int64_t have = s->k + s->length, new = s->cache && s->length ? 1 : have;
    for (int64_t r = 0; r < s->rows; r++)
        memcpy(s->fed + r * new, s->ids + r * s->room + have - new, (size_t)new * sizeof *s->fed);
    ag_tape_reset(s->t);
    ag_tensor *ids = ag_input_i32(s->t, AG_SHAPE(s->rows, new), s->fed);
    ag_tensor *y = s->cache ? nn_model_decode(s->m, s->t, ids, s->cache)
                            : nn_model_logits(s->m, s->t, ids, NN_EVAL);
    const float *logits = ag_floats(s->t, y);
    const int r = ag_tape_status(s->t, err);
    if (r < 0) return r;
    *ret_stride = y->shape.dim[1] * s->m->classes;
    *ret_last = logits + *ret_stride - s->m->classes;
    return AG_OK;
}

/* One token more for every source that is not done; *ret_left: how many such are left. */
static int step(search *s, int64_t *ret_left, ag_err *err)
{
    candidate list[2 * TRAIN_BEAM_MOST];
    const float *last;
    int64_t stride, left = 0;
    int r = feed(s, &last, &stride, err);
    for (int64_t i = 0; i < s->n && r == AG_OK; i++) {
        if (s->done[i]) {
            rest(s, i * s->b->width, (i + 1) * s->b->width);
            continue;
        }
        const int64_t n = collect(s, i * s->b->width, last, stride, list, err);
        if (n < 0) return (int)n;
        choose(s, i, list, n);
        left += !s->done[i];
    }
    if (r < 0) return r;
    if (s->b->stop && *s->b->stop) return ag_err_set(err, AG_EINTR, "interrupted in a target");
    if (s->cache && ag_kv_cache_select(s->cache, s->from) < 0)
        return ag_err_set(err, AG_ENOMEM, "out of memory for the order of a cache");
    int32_t *ids = s->ids;
    double *logp = s->logp;
    s->ids = s->next;
    s->next = ids;
    s->logp = s->next_logp;
    s->next_logp = logp;
    s->length++;
    *ret_left = left;
    return AG_OK;
}

static int run(search *s, ag_err *err)
{
    int64_t left = s->n;
    int r = AG_OK;
    while (left && s->length < s->b->length && r == AG_OK) r = step(s, &left, err);
    if (r < 0) return r;
    for (int64_t i = 0; i < s->n; i++)           /* cut: none has ended */
        if (!s->finished[i])
            finish(s, i, i * s->b->width, s->length,
                   s->logp[i * s->b->width] / penalty(s->b, s->length));
    return AG_OK;
}

static void begin(search *s, const int32_t *prompts)
{
    for (int64_t r = 0; r < s->rows; r++) {      /* alike, so only the first of each counts */
        s->logp[r] = r % s->b->width ? NOTHING : 0;
        memcpy(s->ids + r * s->room, prompts + r / s->b->width * s->k,
               (size_t)s->k * sizeof *s->ids);
    }
}

static void release(search *s)
{
    free(s->ids);
    free(s->next);
    free(s->fed);
    free(s->from);
    free(s->logp);
    free(s->next_logp);
    free(s->finished);
    free(s->done);
    ag_kv_cache_free(s->cache);
}

static int reserve(search *s, ag_err *err)
{
    const size_t rows = (size_t)s->rows, n = (size_t)s->n, cells = rows * (size_t)s->room;
    s->ids = malloc(cells * sizeof *s->ids);
    s->next = malloc(cells * sizeof *s->next);
    s->fed = malloc(cells * sizeof *s->fed);
    s->from = malloc(rows * sizeof *s->from);
    s->logp = malloc(rows * sizeof *s->logp);
    s->next_logp = malloc(rows * sizeof *s->next_logp);
    s->finished = calloc(n, sizeof *s->finished);
    s->done = calloc(n, sizeof *s->done);
    if (!s->ids || !s->next || !s->fed || !s->from || !s->logp || !s->next_logp || !s->finished ||
        !s->done)
        return ag_err_set(err, AG_ENOMEM, "out of memory for %lld beams of %lld tokens",
                          (long long)s->rows, (long long)s->room);
    return s->m->cache_new ? nn_model_cache(s->m, s->rows, &s->cache, err) : AG_OK;
}

int train_beam_search(const nn_model *m, ag_tape *t, const train_beam *b, const int32_t *prompts,
                      int64_t n, int64_t k, int32_t *ret_tokens, int64_t *ret_n, double *ret_score,
                      ag_err *err)
{
    if (b->width < 1 || b->width > TRAIN_BEAM_MOST || b->length < 1 || k < 1 || n < 1)
        return ag_err_set(err, AG_ECONFIG, "a beam of %lld (1 to %d) for targets of %lld tokens of "
                          "%lld prompts of %lld tokens cannot be", (long long)b->width,
                          TRAIN_BEAM_MOST, (long long)b->length, (long long)n, (long long)k);
    search s = { .m = m, .t = t, .b = b, .n = n, .k = k, .rows = n * b->width,
                 .room = k + b->length, .tokens = ret_tokens, .ret_n = ret_n, .score = ret_score };
    int r = reserve(&s, err);
    if (r == AG_OK) {
        begin(&s, prompts);
        ag_tape_noise(t, &(ag_noise_key){ .step = UINT32_MAX, .n_samples = s.rows });
        ag_tape_no_grad(t, true);
        r = run(&s, err);
        ag_tape_no_grad(t, false);
        ag_tape_reset(t);
    }
    release(&s);
    return r;
}
