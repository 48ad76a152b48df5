/*
 * tasks.c -- three generated tasks that tell attention patterns apart, each with its best possible
 * loss.  A sequence of n tokens stands alone; sequence i is a function of (seed, i).
 *
 *   grid    A texture of rows of `width` tokens w, read row by row.  Of V = 8 symbols the first row
 *           is drawn evenly; then
 *               x[t] = (x[t-1] + x[t-w]) mod V   with probability 9/10, else drawn evenly.
 *           All before x[t] but these two is of no use, so the best loss of a token is exactly
 *               h = -p ln p - (V - 1) q ln q,  q = 1 / (10 V),  p = 9/10 + q,
 *           0.4670 nats; of the first row, which is not scored, it would be ln V.  A model with
 *           a stride that divides the width sees x[t-w] where it looks for it; with another it
 *           does not.  Without x[t-w] nothing can be known: the loss is ln V = 2.079.
 *   recall  n / 2 slots of two tokens.  P = min(64, n / 8) different keys of 64 are each followed
 *           by one of 16 values in one random slot and asked for in a later one, at any distance;
 *           the other slots are blank.  Scored is the value behind a key that was seen before: it
 *           is certain, the best loss is 0, guessing costs ln 16 = 2.773.  Token 0 is blank, 1 ..
 *           64 keys, 65 .. 80 values.
 *   copy    n / 2 symbols, each one of 16, then the same again.  Scored is the second half: the
 *           best loss is 0, guessing costs ln 16.
 */
#include "autograd/base/rng.h"
#include "data/internal.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SITE = AG_SITE_DATA + 2, SYMBOLS = 8, KEYS = 64, VALUES = 16, FIRST_VALUE = 1 + KEYS,
    DEFAULT_TOKENS = 1 << 24, LEAST_SEQUENCES = 1000, LEAST_RECALL = 16,
};
#define NOISE 0.1                    /* grid: share of tokens that are drawn */

/* Random numbers of one sequence, taken in order. */
typedef struct dice { uint64_t seed, next; uint32_t sequence, word[4]; } dice;

static uint32_t roll(dice *r)
{
    if (r->next % 4 == 0)
        ag_philox(r->seed, r->sequence, SITE, r->next / 4, r->word);
    return r->word[r->next++ % 4];
}

/* Even in 0 .. n-1. */
static int64_t below(dice *r, int64_t n)
{
    return (int64_t)((uint64_t)roll(r) * (uint64_t)n >> 32);
}

static void make_grid(dice *r, int64_t n, int64_t width, uint8_t *x, uint8_t *scored)
{
    for (int64_t t = 0; t < n; t++) {
        const bool drawn = roll(r) < (uint32_t)(NOISE * 0x1p32) || t < width;
        const int64_t any = below(r, SYMBOLS);
        x[t] = (uint8_t)(drawn ? any : (x[t - 1] + x[t - width]) % SYMBOLS);
        scored[t] = t >= width;
    }
}

static double grid_entropy(void)
{
    const double q = NOISE / SYMBOLS, p = 1 - NOISE + q;
    return -p * log(p) - (SYMBOLS - 1) * q * log(q);
}

/* Puts k different numbers of 0 .. n-1, in random order, in front of list[n]. */
static void draw_some(dice *r, int32_t *list, int64_t n, int64_t k)
{
    for (int64_t i = 0; i < n; i++)
        list[i] = (int32_t)i;
    for (int64_t i = 0; i < k; i++) {
        const int64_t j = i + below(r, n - i);
        const int32_t v = list[j];
        list[j] = list[i];
        list[i] = v;
    }
}

/* slot [n / 2] is scratch. */
static void make_recall(dice *r, int64_t n, int32_t *slot, uint8_t *x, uint8_t *scored)
{
    const int64_t pairs = n / 8 < KEYS ? n / 8 : KEYS;
    int32_t key[KEYS];
    draw_some(r, key, KEYS, pairs);
    draw_some(r, slot, n / 2, 2 * pairs);
    memset(x, 0, (size_t)n);
    memset(scored, 0, (size_t)n);
    for (int64_t i = 0; i < pairs; i++) {
        const uint8_t value = (uint8_t)(FIRST_VALUE + below(r, VALUES));
        const int64_t a = slot[2 * i], b = slot[2 * i + 1];
        x[2 * a] = x[2 * b] = (uint8_t)(1 + key[i]);
        x[2 * a + 1] = x[2 * b + 1] = value;
        scored[2 * (a > b ? a : b) + 1] = 1;
    }
}

static void make_copy(dice *r, int64_t n, uint8_t *x, uint8_t *scored)
{
    for (int64_t t = 0; t < n; t++) {
        x[t] = t < n / 2 ? (uint8_t)below(r, VALUES) : x[t - n / 2];
        scored[t] = t >= n / 2;
    }
}

/* All sequences; false when out of memory. */
static bool make_all(const data_set *d, uint64_t seed, int64_t width, int64_t count, uint8_t *x,
                     uint8_t *scored)
{
    const int64_t n = d->sequence;
    const char kind = d->name[0];
    bool ok = true;
#pragma omp parallel
    {
        int32_t *slot = kind == 'r' ? malloc((size_t)(n / 2) * sizeof *slot) : NULL;
        if (kind == 'r' && !slot) {
#pragma omp atomic write
            ok = false;
        }
#pragma omp for
        for (int64_t i = 0; i < count; i++) {
            dice r = {.seed = seed, .sequence = (uint32_t)i};
            if (kind == 'g')
                make_grid(&r, n, width, x + i * n, scored + i * n);
            else if (kind == 'c')
                make_copy(&r, n, x + i * n, scored + i * n);
            else if (slot)
                make_recall(&r, n, slot, x + i * n, scored + i * n);
        }
        free(slot);
    }
    return ok;
}

static int check_sizes(const data_set *d, int64_t n, int64_t width, int64_t count, ag_err *err)
{
    const char kind = d->name[0];
    if (kind == 'g' && (width < 1 || width >= n))
        return ag_err_set(err, AG_ECONFIG, "data: a grid of width %" PRId64 " does not fit into"
                          " sequences of %" PRId64 " tokens (the context)", width, n);
    if (n < (kind == 'r' ? LEAST_RECALL : 2))
        return ag_err_set(err, AG_ECONFIG, "data: %s needs a context of at least %d tokens",
                          d->name, kind == 'r' ? LEAST_RECALL : 2);
    if (count > INT32_MAX || count > (INT64_C(1) << 40) / n)
        return ag_err_set(err, AG_ECONFIG, "data: %" PRId64 " sequences of %" PRId64
                          " tokens are too many", count, n);
    return AG_OK;
}

/* Parts of whole sequences. */
static void split(data_set *d, const data_options *o, const uint8_t *x, const uint8_t *scored,
                  int64_t count)
{
    data_split_tokens(d, x, count, 1, o->val_fraction, o->test_fraction);
    for (int s = 0; s < DATA_SPLITS; s++) {
        const int64_t first = (const uint8_t *)d->tokens[s].at - x;
        d->tokens[s].at = x + first * d->sequence;
        d->tokens[s].scored = scored + first * d->sequence;
        d->tokens[s].n *= d->sequence;
    }
}

int data_open_task(const data_options *o, data_set *d, ag_err *err)
{
    const int64_t n = o->context, usual = DEFAULT_TOKENS / n;
    const int64_t count = o->size ? o->size : usual > LEAST_SEQUENCES ? usual : LEAST_SEQUENCES;
    const int64_t width = o->width ? o->width : (int64_t)sqrt((double)n);
    int rc = check_sizes(d, n, width, count, err);
    if (rc)
        return rc;
    const size_t bytes = (size_t)(count * n);
    uint8_t *x = malloc(bytes);
    if ((rc = data_own(d, x, bytes, err)))
        return rc;
    uint8_t *scored = malloc(bytes);
    if ((rc = data_own(d, scored, bytes, err)))
        return rc;
    d->kind = DATA_TOKENS;
    d->sequence = n;
    d->vocab = d->name[0] == 'g' ? SYMBOLS : d->name[0] == 'r' ? FIRST_VALUE + VALUES : VALUES;
    d->entropy_rate = d->name[0] == 'g' ? grid_entropy() : 0;
    if (!make_all(d, o->seed, width, count, x, scored))
        return ag_err_set(err, AG_ENOMEM, "no memory for the sequences of %s", d->name);
    split(d, o, x, scored, count);
    return AG_OK;
}
