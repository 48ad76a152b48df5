/*
 * tasks.c -- three generated tasks that tell attention patterns apart, each with its best possible
 * loss.  A sequence of n tokens stands alone; sequence i is a function of (seed, i).
 *
 *   grid    A texture of rows of `width` tokens w, read row by row.  Of V = 8 symbols the first row
 *           and one more are drawn evenly; then each continues the diagonal that it stands on,
 *               x[t] = x[t-w-1]   with probability 9/10, else drawn evenly.
 *           The diagonals know nothing of each other and each is a Markov chain, so the best loss
 *           of a token is exactly
 *               h = -p ln p - (V - 1) q ln q,  q = 1 / (10 V),  p = 9/10 + q,
 *           0.4670 nats; of those drawn, which are not scored, it would be ln V.  Why the diagonal:
 *           x[t] is predicted at the place of x[t-1], and the token w above that place is x[t-w-1].
 *           A stride that divides the width has it among its keys, another one does not.  Without
 *           it, x[t-2w-2] is the next best: h with p = 81/100 + q, q = 19 / (100 V), 0.7734 nats;
 *           with nothing of the diagonal the loss is ln V = 2.079.
 *   recall  P = min(16, n / 3) different keys of 16, each stored once and asked for once, later, at
 *           any distance; the rest is blank.  One token stores a key with one of 4 values; a
 *           question is the token of the key, and behind it comes that of the value.  Scored is
 *           this value: it is certain, the best loss is 0, guessing costs ln 4 = 1.386.  Token 0 is
 *           blank, 1 .. 64 store, 4 key + value + 1; 65 .. 80 ask, 81 .. 84 are values.  With the
 *           pair in one token the task is one look-up by content, which small models learn soon;
 *           what is left to the pattern is whether the pair can be seen.
 *   copy    n / 2 symbols, each one of 16, then the same again.  Scored is the second half: the
 *           best loss is 0, guessing costs ln 16.
 */
#include "data/dice.h"
#include "data/internal.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SITE = AG_SITE_DATA + 2, SYMBOLS = 8, COPY_SYMBOLS = 16, KEYS = 16, VALUES = 4,
    FIRST_STORE = 1, FIRST_ASK = FIRST_STORE + KEYS * VALUES, FIRST_VALUE = FIRST_ASK + KEYS,
    DEFAULT_TOKENS = 1 << 24, LEAST_SEQUENCES = 1000, LEAST_RECALL = 3,
};
#define NOISE 0.1                    /* grid: share of tokens that are drawn */

static void make_grid(data_dice *r, int64_t n, int64_t width, uint8_t *x, uint8_t *scored)
{
    for (int64_t t = 0; t < n; t++) {
        const bool drawn = data_roll(r) < (uint32_t)(NOISE * 0x1p32) || t <= width;
        const int64_t any = data_below(r, SYMBOLS);
        x[t] = (uint8_t)(drawn ? any : x[t - width - 1]);
        scored[t] = t > width;
    }
}

static double grid_entropy(void)
{
    const double q = NOISE / SYMBOLS, p = 1 - NOISE + q;
    return -p * log(p) - (SYMBOLS - 1) * q * log(q);
}

/*
 * A slot is what is blank, stores or asks: slot [n] is scratch, what[i] is 0 in a blank one, else
 * 1 + 2 pair, and 1 more in the later slot of the pair, which asks.
 */
static void make_recall(data_dice *r, int64_t n, int32_t *slot, int32_t *what, uint8_t *x,
                        uint8_t *scored)
{
    const int64_t pairs = n / 3 < KEYS ? n / 3 : KEYS, slots = n - pairs;
    int32_t key[KEYS], value[KEYS];
    data_draw_some(r, key, KEYS, pairs);
    data_draw_some(r, slot, slots, 2 * pairs);
    memset(what, 0, (size_t)slots * sizeof *what);
    memset(scored, 0, (size_t)n);
    for (int64_t i = 0; i < pairs; i++) {
        const int32_t a = slot[2 * i], b = slot[2 * i + 1];
        value[i] = (int32_t)data_below(r, VALUES);
        what[a < b ? a : b] = (int32_t)(1 + 2 * i);
        what[a < b ? b : a] = (int32_t)(2 + 2 * i);
    }
    for (int64_t i = 0, t = 0; i < slots; i++) {
        const int32_t pair = (what[i] - 1) / 2;
        if (!what[i]) {
            x[t++] = 0;
        } else if (what[i] % 2) {
            x[t++] = (uint8_t)(FIRST_STORE + key[pair] * VALUES + value[pair]);
        } else {
            x[t++] = (uint8_t)(FIRST_ASK + key[pair]);
            scored[t] = 1;
            x[t++] = (uint8_t)(FIRST_VALUE + value[pair]);
        }
    }
}

static void make_copy(data_dice *r, int64_t n, uint8_t *x, uint8_t *scored)
{
    for (int64_t t = 0; t < n; t++) {
        x[t] = t < n / 2 ? (uint8_t)data_below(r, COPY_SYMBOLS) : x[t - n / 2];
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
        int32_t *slot = kind == 'r' ? malloc((size_t)(2 * n) * sizeof *slot) : NULL;
        if (kind == 'r' && !slot) {
#pragma omp atomic write
            ok = false;
        }
#pragma omp for
        for (int64_t i = 0; i < count; i++) {
            data_dice r = {.seed = seed, .site = SITE, .sample = (uint32_t)i};
            if (kind == 'g')
                make_grid(&r, n, width, x + i * n, scored + i * n);
            else if (kind == 'c')
                make_copy(&r, n, x + i * n, scored + i * n);
            else if (slot)
                make_recall(&r, n, slot, slot + n, x + i * n, scored + i * n);
        }
        free(slot);
    }
    return ok;
}

static int check_sizes(const data_set *d, int64_t n, int64_t width, int64_t count, ag_err *err)
{
    const char kind = d->name[0];
    if (kind == 'g' && (width < 1 || width >= n - 1))
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
    d->vocab = d->name[0] == 'g' ? SYMBOLS : d->name[0] == 'c' ? COPY_SYMBOLS
                                                              : FIRST_VALUE + VALUES;
    d->entropy_rate = d->name[0] == 'g' ? grid_entropy() : 0;
    if (!make_all(d, o->seed, width, count, x, scored))
        return ag_err_set(err, AG_ENOMEM, "no memory for the sequences of %s", d->name);
    data_split_sequences(d, o, x, 1, scored, count);
    return AG_OK;
}
