/*
 * sequences.c -- images as sequences of tokens: a token for each channel of each pixel, row by row,
 * pixel by pixel, the channel fastest (Sparse Transformers, arXiv 1904.10509, section 5.3).
 *
 * An image becomes data_options.image_size high and wide: with zeros around it, as many on each
 * side (28 x 28 digits in 32 x 32, so that rows are whole blocks of a pattern), or as rounded means
 * of blocks where that divides it.  Fewer levels than 256 are pixel * levels / 256, rounded down.
 * The pixels of a set that stays as it is are the tokens as they lie.
 */
#include "data/internal.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct form {                /* what an image is made into; side: height and width */
    int64_t h, w, c, high, wide;     /* as it was; as it becomes */
    int64_t levels;
} form;

static int check_form(const data_options *o, const data_set *d, form *ret, ag_err *err)
{
    form f = {d->h, d->w, d->c, d->h, d->w, o->levels ? o->levels : 256};
    const int64_t side = o->image_size;
    const bool around = side >= f.h && side >= f.w;
    if (f.levels < 2 || f.levels > 256)
        return ag_err_set(err, AG_ECONFIG, "data: levels is %" PRId64 ", not 2 to 256", f.levels);
    if (side && !around && (side < 0 || f.h != f.w || f.h % side))
        return ag_err_set(err, AG_ECONFIG,
                          "data: images of %" PRId64 " x %" PRId64 " cannot become %" PRId64
                          " x %" PRId64 ": image_size must be at least their height and width, or"
                          " divide both",
                          f.h, f.w, side, side);
    if (side)
        f.high = f.wide = side;
    if (f.high * f.wide * f.c != o->context)
        return ag_err_set(err, AG_ECONFIG,
                          "data: an image of %s is a sequence of %" PRId64 " tokens (%" PRId64
                          " x %" PRId64 " x %" PRId64 "), but the context is %" PRId64
                          ": set model.context=%" PRId64,
                          d->name, f.high * f.wide * f.c, f.high, f.wide, f.c, o->context,
                          f.high * f.wide * f.c);
    *ret = f;
    return AG_OK;
}

/* p [h, w, c] in the middle of zeros, q [high, wide, c]. */
static void put_around(const form *f, const uint8_t *p, uint8_t *q)
{
    const int64_t top = (f->high - f->h) / 2, left = (f->wide - f->w) / 2;
    memset(q, 0, (size_t)(f->high * f->wide * f->c));
    for (int64_t y = 0; y < f->h; y++)
        memcpy(q + ((top + y) * f->wide + left) * f->c, p + y * f->w * f->c,
               (size_t)(f->w * f->c));
}

/* Each pixel of q [high, wide, c] is the mean of a block of p [h, w, c], halves rounded up. */
static void put_means(const form *f, const uint8_t *p, uint8_t *q)
{
    const int64_t k = f->h / f->high, all = k * k;
    for (int64_t y = 0; y < f->high; y++)
        for (int64_t x = 0; x < f->wide; x++)
            for (int64_t c = 0; c < f->c; c++) {
                int64_t sum = 0;
                for (int64_t i = 0; i < all; i++)
                    sum += p[((y * k + i / k) * f->w + x * k + i % k) * f->c + c];
                q[(y * f->wide + x) * f->c + c] = (uint8_t)((2 * sum + all) / (2 * all));
            }
}

static int make_split(const form *f, data_set *d, int split, ag_err *err)
{
    const data_images *im = &d->images[split];
    const int64_t size = f->high * f->wide * f->c, from = f->h * f->w * f->c;
    data_tokens *t = &d->tokens[split];
    *t = (data_tokens){.at = im->at, .n = im->n * size, .bytes = 1};
    if (!im->n || (size == from && f->levels == 256))
        return AG_OK;
    uint8_t *at = malloc((size_t)t->n);
    const int rc = data_own(d, at, (size_t)t->n, err);
    if (rc)
        return rc;
#pragma omp parallel for
    for (int64_t i = 0; i < im->n; i++) {
        uint8_t *q = at + i * size;
        if (f->high < f->h)
            put_means(f, im->at + i * from, q);
        else
            put_around(f, im->at + i * from, q);
        for (int64_t j = 0; j < size && f->levels < 256; j++)
            q[j] = (uint8_t)(q[j] * f->levels / 256);
    }
    t->at = at;
    return AG_OK;
}

int data_make_sequences(const data_options *o, data_set *d, ag_err *err)
{
    form f = {0};
    int rc = check_form(o, d, &f, err);
    for (int s = 0; s < DATA_SPLITS && rc == AG_OK; s++)
        rc = make_split(&f, d, s, err);
    d->kind = DATA_TOKENS;
    d->h = f.high;
    d->w = f.wide;
    d->sequence = o->context;
    d->vocab = f.levels;
    d->n_classes = 0;
    memset(d->images, 0, sizeof d->images);
    return rc;
}
