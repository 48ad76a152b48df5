#include "train/decode_time.h"

#include "train/command.h"

#include "autograd/base/arena.h"
#include "autograd/base/clock.h"
#include "autograd/device.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t line __attribute__((vector_size(64), may_alias));   /* of a cache */

/* All threads read n lines, each from four places at once (of a part, up to three are left out). */
static uint64_t read_all(const line *x, int64_t n)
{
    enum { PART = 4096 };            /* lines: 256 kB */
    uint64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (int64_t p = 0; p < (n + PART - 1) / PART; p++) {
        const line *at = x + p * PART;
        const int64_t quarter = (n - p * PART < PART ? n - p * PART : PART) / 4;
        line s[4] = { { 0 } };
        for (int64_t i = 0; i < quarter; i++)
            for (int l = 0; l < 4; l++) s[l] += at[l * quarter + i];
        s[0] += s[1] + s[2] + s[3];
        for (int l = 0; l < 8; l++) sum += s[0][l];
    }
    return sum;
}

/* A copy on the device reads and writes each byte. */
static int copy_bandwidth(const ag_device *d, const void *x, size_t bytes, double *ret,
                          ag_err *err)
{
    enum { TURNS = 5, PASSES = 8 };
    void *y = ag_device_alloc(d, bytes);
    double best = 0;
    for (int i = 0; y && i < TURNS; i++) {
        d->wait();
        const double t = ag_seconds();
        for (int k = 0; k < PASSES; k++) d->copy(y, x, bytes);
        d->wait();
        best = fmax(best, 2.0 * PASSES * (double)bytes / (ag_seconds() - t));
    }
    ag_device_free(d, y, bytes);
    const char *why = d->check();
    if (why) return ag_err_set(err, AG_EFAIL, "%s", why);
    if (best == 0)
        return ag_err_set(err, AG_ENOMEM, "out of memory for %.1f MB", 1e-6 * (double)bytes);
    *ret = best;
    return AG_OK;
}

int train_read_bandwidth(const nn_params *p, double *ret, ag_err *err)
{
    const size_t bytes = (size_t)p->n * sizeof(float);
    if (p->device) return copy_bandwidth(p->device, p->weights, bytes, ret, err);
    enum { TURNS = 5, LEAST = 1 << 25 };         /* of a turn, bytes: a clock must see it */
    const int64_t passes = 1 + LEAST / (int64_t)bytes;
    const line *x = p->weights;      /* whole lines (layers/params.h) */
    volatile uint64_t keep = 0;
    double best = 0;
    for (int i = 0; i < TURNS; i++) {
        const double t = ag_seconds();
        for (int64_t k = 0; k < passes; k++) keep += read_all(x, (int64_t)(bytes / sizeof *x));
        const double rate = (double)(passes * (int64_t)bytes) / (ag_seconds() - t);
        best = rate > best ? rate : best;
    }
    *ret = best;
    return AG_OK;
}

/* Feeds t tokens of each sequence, those from `at` on. */
static int feed(train_session *s, ag_kv_cache *cache, const train_decode_plan *p, int64_t at,
                int64_t t, int32_t *ids, ag_err *err)
{
    ag_tape_reset(s->decoder);
    ag_tape_no_grad(s->decoder, true);
    ag_tape_noise(s->decoder, &(ag_noise_key){ .step = (uint32_t)at, .n_samples = p->batch });
    for (int64_t b = 0; b < p->batch; b++)
        memcpy(ids + b * t, p->text + b * (p->prompt + p->tokens) + at, (size_t)t * sizeof *ids);
    nn_model_decode_by(p->replay, s->model, s->decoder,
                       ag_input_i32(s->decoder, AG_SHAPE(p->batch, t), ids), cache);
    if (s->device) s->device->wait();
    return ag_tape_status(s->decoder, err);
}

/* The prompt but for its last `less` tokens. */
static int feed_prompt(train_session *s, ag_kv_cache *cache, const train_decode_plan *p,
                       int64_t less, int32_t *ids, ag_err *err)
{
    ag_kv_cache_reset(cache, 0);
    return feed(s, cache, p, 0, p->prompt - less, ids, err);
}

static int time_tokens(train_session *s, ag_kv_cache *cache, const train_decode_plan *p,
                       int32_t *ids, train_decode_time *ret, ag_err *err)
{
    const int64_t warm = p->prompt > 3 ? 3 : p->prompt - 1;
    double t = 0;
    int r = AG_OK;
    for (int turn = 0; turn < 2 && r == AG_OK; turn++) {       /* the first one warms up */
        t = ag_seconds();
        r = feed_prompt(s, cache, p, 0, ids, err);
    }
    ret->prompt = (ag_seconds() - t) / (double)(p->prompt * p->batch);
    if (r == AG_OK) r = feed_prompt(s, cache, p, warm, ids, err);
    for (int64_t i = -warm; i < p->tokens && r == AG_OK; i++) {
        t = ag_seconds();
        r = feed(s, cache, p, p->prompt + i, 1, ids, err);
        if (i >= 0) p->seconds[i] = ag_seconds() - t;
    }
    if (r < 0) return r;
    train_sort_times(p->seconds, p->tokens);
    ret->token = p->seconds[p->tokens / 2];
    ret->fastest = p->seconds[0];
    ret->slowest = p->seconds[p->tokens - 1];
    return AG_OK;
}

/* --- what is read ----------------------------------------------------------------------------- */

typedef struct tally {
    int64_t touched;                 /* weights, over the tokens looked at */
    double  used, random, all;       /* units */
} tally;

/* Adds what all sequences together read in a layer, beside what is counted for one. */
static void add_layer(tally *c, const nn_ff *l, int64_t batch)
{
    const int64_t choices = l->blocks * l->config.block;
    const int64_t matrices = l->config.chooser == NN_CHOOSE_ORACLE ? 1 : 2;  /* reads all W1 */
    int64_t used = 0;
    for (int64_t i = 0; i < choices; i++) used += l->probe->used[i] > 0;
    memset(l->probe->used, 0, (size_t)choices * sizeof *l->probe->used);
    if (!used) return;               /* of an encoder: it saw no token of these */
    c->touched += (used - l->blocks) * l->width * matrices * l->d_model;
    c->used += (double)(used * l->width);
    c->all += (double)l->config.d_ff;
    c->random += (double)l->config.d_ff *
                 (1 - pow(1 - 1 / (double)l->config.block, (double)batch));
}

static void detach(const nn_model *m)
{
    nn_ff *l;
    for (int i = 0; (l = m->ff_layer(m, i)); i++) {
        if (l->probe) free(l->probe->used);
        free(l->probe);
        l->probe = NULL;
    }
}

static int attach(const nn_model *m, ag_err *err)
{
    nn_ff *l;
    for (int i = 0; (l = m->ff_layer(m, i)); i++) {
        if (l->config.kind == NN_FF_DENSE) continue;
        l->probe = calloc(1, sizeof *l->probe);
        if (l->probe)
            l->probe->used = calloc((size_t)(l->blocks * l->config.block), sizeof(int64_t));
        if (!l->probe || !l->probe->used) {
            detach(m);
            return ag_err_set(err, AG_ENOMEM, "out of memory for the choices");
        }
    }
    return AG_OK;
}

/* The sequences once more, with a look at the choices of their first tokens. */
static int count_touched(train_session *s, ag_kv_cache *cache, const train_decode_plan *p,
                         int32_t *ids, train_decode_time *ret, ag_err *err)
{
    enum { LOOKS = 8 };
    const nn_model *m = s->model;
    const int64_t looks = p->tokens < LOOKS ? p->tokens : LOOKS;
    tally c = { 0 };
    nn_ff *l;
    int r = feed_prompt(s, cache, p, 0, ids, err);
    if (r == AG_OK) r = attach(m, err);
    for (int64_t i = 0; i < looks && r == AG_OK; i++) {
        r = feed(s, cache, p, p->prompt + i, 1, ids, err);
        for (int j = 0; (l = m->ff_layer(m, j)); j++)
            if (l->probe) add_layer(&c, l, p->batch);
    }
    detach(m);
    ret->touched = m->cost.touched + c.touched / looks;
    ret->units = c.all > 0 ? c.used / c.all : 0;
    ret->random_units = c.all > 0 ? c.random / c.all : 0;
    return r;
}

int train_decode_measure(train_session *s, const train_decode_plan *p, train_decode_time *ret,
                         ag_err *err)
{
    ag_kv_cache *cache = NULL;
    int32_t *ids = malloc((size_t)(p->batch * p->prompt) * sizeof *ids);
    int r = ids ? nn_model_cache(s->model, p->batch, &cache, err)
                : ag_err_set(err, AG_ENOMEM, "out of memory for the prompt");
    train_decode_plan timed = *p;    /* graphs do not tell what they touch */
    if (s->config.train.cuda_graph == TRAIN_CUDA_GRAPH_AUTO)
        timed.replay = ag_replay_new(s->decoder);
    if (r == AG_OK) r = time_tokens(s, cache, &timed, ids, ret, err);
    ag_replay_free(timed.replay);
    if (r == AG_OK) r = count_touched(s, cache, p, ids, ret, err);
    free(ids);
    ag_kv_cache_free(cache);
    return r;
}
