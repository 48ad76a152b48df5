#include "train/media.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CHANNELS = 4, GAP = 2, GAP_GRAY = 128 };      /* between images, pixels */

const char *train_media_suffix(const train_session *s)
{
    if (s->form.height) return s->form.channels <= MAX_CHANNELS ? "png" : NULL;
    return s->form.rate ? "wav" : NULL;
}

/* d->length tokens of a new sequence. */
static int draw(train_session *s, const train_draw *d, train_token *told, int32_t *ret_tokens,
                ag_err *err)
{
    const int32_t before = s->form.rate ? DATA_SILENCE : 0;
    const int64_t n = train_generate(s->model, s->decoder, s->context, d, &before,
                                     s->model->start ? 0 : 1, ret_tokens, told, NULL, err);
    if (n < 0) return (int)n;
    return n < d->length ? ag_err_set(err, AG_EINTR, "interrupted in a sample") : AG_OK;
}

/* Tokens [h,w,c] to their place in a picture `wide` pixels wide. */
static void place(const train_session *s, const int32_t *token, uint8_t *at, int64_t wide)
{
    const int64_t h = s->form.height, row = s->form.width * s->form.channels;
    const int64_t top = s->model->classes - 1;           /* the brightest level */
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < row; x++)
            at[y * wide * s->form.channels + x] = (uint8_t)(token[y * row + x] * 255 / top);
}

static int draw_images(train_session *s, const train_draw *how, int64_t count, train_token *told,
                       uint8_t **ret_file, size_t *ret_size, ag_err *err)
{
    const int64_t h = s->form.height, w = s->form.width, c = s->form.channels;
    int64_t columns = 1;
    while (columns * columns < count) columns++;
    const int64_t rows = (count + columns - 1) / columns;
    const int64_t high = rows * (h + GAP) - GAP, wide = columns * (w + GAP) - GAP;
    int32_t *token = malloc((size_t)(h * w * c) * sizeof *token);
    uint8_t *picture = malloc((size_t)(high * wide * c));
    int r = token && picture ? AG_OK : ag_err_set(err, AG_ENOMEM, "out of memory for a picture");
    if (r == AG_OK) memset(picture, GAP_GRAY, (size_t)(high * wide * c));
    for (int64_t k = 0; k < count && r == AG_OK; k++) {
        train_draw d = *how;
        d.length = h * w * c;
        d.seed += (uint64_t)k * 0x9E3779B97F4A7C15u;
        r = draw(s, &d, told, token, err);
        const int64_t at = k / columns * (h + GAP) * wide + k % columns * (w + GAP);
        if (r == AG_OK) place(s, token, picture + at * c, wide);
    }
    if (r == AG_OK) r = data_png(picture, high, wide, c, ret_file, ret_size, err);
    free(token);
    free(picture);
    return r;
}

static int draw_sound(train_session *s, const train_draw *d, train_token *told, uint8_t **ret_file,
                      size_t *ret_size, ag_err *err)
{
    int32_t *token = malloc((size_t)d->length * sizeof *token);
    int r = token ? draw(s, d, told, token, err)
                  : ag_err_set(err, AG_ENOMEM, "out of memory for a sound");
    if (r == AG_OK) r = data_wav(token, d->length, s->form.rate, ret_file, ret_size, err);
    free(token);
    return r;
}

int train_media_draw(train_session *s, const train_draw *d, int64_t count, train_token *told,
                     uint8_t **ret_file, size_t *ret_size, char about[80], ag_err *err)
{
    if (s->form.height) {
        snprintf(about, 80, "%lld images of %lld x %lld", (long long)count,
                 (long long)s->form.height, (long long)s->form.width);
        return draw_images(s, d, count, told, ret_file, ret_size, err);
    }
    snprintf(about, 80, "%.2f seconds of sound", (double)d->length / (double)s->form.rate);
    return draw_sound(s, d, told, ret_file, ret_size, err);
}
