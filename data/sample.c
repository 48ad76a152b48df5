/*
 * sample.c -- which samples a batch holds, as a function of (seed, step, index in the batch).
 *
 * Random windows are two Philox words each.  A shuffled epoch is a Feistel network on the sample
 * index, with round keys from Philox: a bijection of 0 .. 2^bits - 1, walked until it falls below n
 * (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002), so that
 * the order of an epoch needs no memory and any place in it can be asked for at once.
 */
#include "autograd/base/clones.h"
#include "autograd/base/rng.h"
#include "data/internal.h"
#include <assert.h>
#include <string.h>

enum { ROUNDS = 6 };

typedef struct shuffle { uint32_t key[8]; int left, right; uint64_t n; } shuffle;

static uint32_t mix(uint32_t x, uint32_t key)
{
    x ^= key;                                            /* the finalizer of MurmurHash3 */
    x = (x ^ x >> 16) * 0x85EBCA6Bu;
    x = (x ^ x >> 13) * 0xC2B2AE35u;
    return x ^ x >> 16;
}

static shuffle shuffle_make(uint64_t seed, int64_t epoch, int64_t n)
{
    shuffle s = {.n = (uint64_t)n};
    int bits = 2;
    while (bits < 62 && (uint64_t)n > 1ULL << bits)
        bits++;
    s.left = bits / 2;
    s.right = bits - s.left;
    for (uint32_t i = 0; i < 2; i++)
        ag_philox(seed, (uint32_t)epoch, AG_SITE_SHUFFLE,
                  1ULL << 63 | (uint64_t)(epoch >> 32) << 1 | i, s.key + 4 * i);
    return s;
}

static int64_t shuffle_at(const shuffle *s, int64_t i)
{
    const uint64_t ml = (1ULL << s->left) - 1, mr = (1ULL << s->right) - 1;
    uint64_t x = (uint64_t)i;
    do {
        uint64_t l = x >> s->right, r = x & mr;
        for (int k = 0; k < ROUNDS; k += 2) {
            l ^= mix((uint32_t)r, s->key[k]) & ml;
            r ^= mix((uint32_t)l, s->key[k + 1]) & mr;
        }
        x = l << s->right | r;
    } while (x >= s->n);
    return (int64_t)x;
}

int64_t data_shuffle(uint64_t seed, int64_t epoch, int64_t n, int64_t s)
{
    assert(n > 0 && s >= 0 && s < n && epoch >= 0);
    const shuffle f = shuffle_make(seed, epoch, n);
    return shuffle_at(&f, s);
}

/* Tokens of a split that can be scored: with nothing before it the first one cannot. */
static int64_t targets(const data_set *d, int split)
{
    const int64_t n = d->tokens[split].n - (d->start || d->sequence ? 0 : 1);
    return n > 0 ? n : 0;
}

int64_t data_samples(const data_set *d, int split)
{
    if (d->kind == DATA_IMAGES)
        return d->images[split].n;
    return targets(d, split) / (d->sequence ? d->sequence : d->context);
}

int64_t data_windows(const data_set *d, int split, int64_t last)
{
    const int64_t n = targets(d, split), t = d->context;
    assert(d->kind == DATA_TOKENS && last > 0 && last <= t);
    if (d->sequence)
        return data_samples(d, split);
    return n < t ? 0 : 1 + (n - t + last - 1) / last;
}

/* Uniform in 0 .. n-1 from 64 bits: the high half of their product with n. */
static int64_t random_at(const data_draw *w, int64_t i, int64_t n)
{
    uint32_t b[4];
    ag_philox(w->seed, (uint32_t)w->step, AG_SITE_SHUFFLE,
              (uint64_t)w->split << 56 | (uint64_t)(w->step >> 32) << 32 | (uint64_t)i, b);
    const uint64_t u = (uint64_t)b[0] << 32 | b[1];
    return (int64_t)((unsigned __int128)u * (uint64_t)n >> 64);
}

/* What sample_at needs of a draw, found once per call: the shuffle of the epoch at hand. */
typedef struct sampler { int64_t n, unit, most, epoch; shuffle order; } sampler;

static sampler sampler_make(const data_set *d, const data_draw *w)
{
    sampler s = {.n = data_samples(d, w->split),
                 .unit = d->kind == DATA_TOKENS ? d->sequence ? d->sequence : d->context : 1,
                 .most = INT64_MAX,
                 .epoch = -1};
    if (w->order == DATA_RANDOM && d->kind == DATA_TOKENS && !d->sequence) {
        s.n = targets(d, w->split) - d->context + 1;     /* offsets at which enough tokens follow */
        s.unit = 1;
    } else if (w->last && d->kind == DATA_TOKENS && !d->sequence) {
        s.n = data_windows(d, w->split, w->last);
        s.unit = w->last;
        s.most = targets(d, w->split) - d->context;
    }
    assert(s.n > 0 && w->step >= 0 && w->batch > 0 && w->batch < INT64_C(1) << 31);
    return s;
}

static int64_t sample_at(sampler *s, const data_draw *w, int64_t i)
{
    const int64_t g = w->step * w->batch + i;
    if (w->order == DATA_RANDOM)
        return s->unit * random_at(w, i, s->n);
    if (w->order == DATA_SEQUENTIAL)
        return g >= s->n ? -1 : s->unit * g < s->most ? s->unit * g : s->most;
    if (g / s->n != s->epoch) {
        s->epoch = g / s->n;
        s->order = shuffle_make(w->seed, s->epoch, s->n);
    }
    return s->unit * shuffle_at(&s->order, g % s->n);
}

int64_t data_sample_at(const data_set *d, const data_draw *w, int64_t i)
{
    sampler s = sampler_make(d, w);
    return sample_at(&s, w, i);
}

/* n + 1 tokens from at: x gets the first n, y the last n. */
static void copy_tokens(const data_tokens *t, int64_t at, int64_t n, int32_t *restrict x,
                        int32_t *restrict y)
{
    if (t->bytes == 1) {
        const uint8_t *p = (const uint8_t *)t->at + at;
        for (int64_t j = 0; j < n; j++) {
            x[j] = p[j];
            y[j] = p[j + 1];
        }
    } else if (t->bytes == 2) {
        const uint16_t *p = (const uint16_t *)t->at + at;
        for (int64_t j = 0; j < n; j++) {
            x[j] = p[j];
            y[j] = p[j + 1];
        }
    } else {
        memcpy(x, (const int32_t *)t->at + at, (size_t)n * sizeof *x);
        memcpy(y, (const int32_t *)t->at + at + 1, (size_t)n * sizeof *y);
    }
}

/* A pair apart: the source as it lies, the target one place later behind a 0. */
static void copy_apart(const data_set *d, const data_tokens *t, int64_t at, int32_t *x, int32_t *y)
{
    for (int64_t i = 0; i < d->source; i++)
        x[i] = data_token_at(t, at + i);
    x += d->source;
    x[0] = DATA_PADDING;
    y[0] = data_token_at(t, at + d->source);
    copy_tokens(t, at + d->source, d->context - 1, x + 1, y + 1);
    for (int64_t i = 0; i < d->context; i++)
        if (y[i] == DATA_PADDING)
            y[i] = -1;
}

/* The sample at a token offset. */
static void copy_sample(const data_set *d, int split, int64_t at, int32_t *x, int32_t *y)
{
    const data_tokens *t = &d->tokens[split];
    if (d->source) {
        copy_apart(d, t, at, x, y);
        return;
    }
    if (!d->start && !d->sequence) {
        copy_tokens(t, at, d->context, x, y);
        return;
    }
    x[0] = d->start ? (int32_t)d->vocab : 0;
    y[0] = data_token_at(t, at);
    copy_tokens(t, at, d->context - 1, x + 1, y + 1);
    for (int64_t i = 0; t->scored && i < d->context; i++)
        if (!t->scored[at + i])
            y[i] = -1;
}

/* The first n targets do not count. */
static void hide(int32_t *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = -1;
}

int64_t data_batch_tokens(const data_set *d, const data_draw *w, int64_t i0, int64_t n,
                          int32_t *x, int32_t *y)
{
    assert(d->kind == DATA_TOKENS && i0 >= 0 && n >= 0 && i0 + n <= w->batch);
    sampler s = sampler_make(d, w);
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = sample_at(&s, w, i0 + i);
        if (at < 0)
            return i;
        copy_sample(d, w->split, at, x + i * (d->source + d->context), y + i * d->context);
        if (w->last && !d->sequence && at > 0) {         /* the window before has the others */
            const int64_t before = w->last * (w->step * w->batch + i0 + i - 1);
            hide(y + i * d->context, d->context - (at - before));
        }
    }
    return n;
}

AG_CLONES static void copy_image(const uint8_t *p, int64_t n, float scale, float shift,
                                 float *restrict x)
{
    for (int64_t j = 0; j < n; j++)
        x[j] = (float)p[j] * scale + shift;
}

/* Images lie anywhere in memory: the next one is fetched while this one is unpacked. */
static void fetch_image(const uint8_t *p, int64_t n)
{
    enum { LINE = 64 };
    for (int64_t j = 0; j < n; j += LINE)
        __builtin_prefetch(p + j);
}

int64_t data_batch_images(const data_set *d, const data_draw *w, int64_t i0, int64_t n,
                          float *x, int32_t *label)
{
    assert(d->kind == DATA_IMAGES && i0 >= 0 && n >= 0 && i0 + n <= w->batch);
    const int64_t size = d->h * d->w * d->c;
    const data_images *im = &d->images[w->split];
    sampler s = sampler_make(d, w);
    int64_t at = n ? sample_at(&s, w, i0) : -1;
    for (int64_t i = 0; i < n; i++) {
        if (at < 0)
            return i;
        const int64_t next = i + 1 < n ? sample_at(&s, w, i0 + i + 1) : -1;
        if (next >= 0)
            fetch_image(im->at + next * size, size);
        copy_image(im->at + at * size, size, d->scale, d->shift, x + i * size);
        label[i] = im->label[at];
        at = next;
    }
    return n;
}
