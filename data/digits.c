/*
 * digits.c -- drawn 28 x 28 digits: stroke skeletons, bent, turned, shifted and inked at random.
 *
 * Image i is a function of (seed, i).  Training and validation images are different i.
 */
#include "autograd/base/rng.h"
#include "data/internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE = 28, PIXELS = SIDE * SIDE, STROKES = 4, POINTS = 14, DEFAULT_SIZE = 11000 };

/* An arc of an ellipse: centre, radii, from and to in degrees (0 right, 90 down); with rx < 0 a
 * line from (x, y) to (a, b).  The digit fills the unit square, y down. */
typedef struct stroke { float x, y, rx, ry, a, b; } stroke;
#define ARC(x, y, rx, ry, from, to) {x, y, rx, ry, from, to}
#define LINE(x0, y0, x1, y1) {x0, y0, -1, 0, x1, y1}

static const struct { int n; stroke s[STROKES]; } shape[10] = {
    {1, {ARC(.50f, .50f, .28f, .42f, -90, 270)}},
    {2, {LINE(.36f, .26f, .54f, .08f), LINE(.54f, .08f, .54f, .92f)}},
    {3, {ARC(.50f, .32f, .26f, .24f, 190, 400), LINE(.70f, .47f, .24f, .92f),
         LINE(.24f, .92f, .80f, .92f)}},
    {2, {ARC(.46f, .29f, .26f, .21f, 200, 450), ARC(.46f, .71f, .28f, .21f, -90, 160)}},
    {3, {LINE(.60f, .08f, .20f, .62f), LINE(.20f, .62f, .84f, .62f), LINE(.62f, .30f, .62f, .92f)}},
    {3, {LINE(.76f, .08f, .34f, .08f), LINE(.34f, .08f, .30f, .46f),
         ARC(.47f, .66f, .27f, .26f, 230, 510)}},
    {2, {ARC(.72f, .64f, .47f, .56f, 180, 262), ARC(.50f, .68f, .25f, .24f, 180, 540)}},
    {3, {LINE(.22f, .10f, .78f, .10f), LINE(.78f, .10f, .44f, .92f), LINE(.42f, .50f, .74f, .50f)}},
    {2, {ARC(.50f, .29f, .21f, .20f, 90, 450), ARC(.50f, .71f, .26f, .22f, -90, 270)}},
    {2, {ARC(.50f, .32f, .25f, .24f, 0, 360), ARC(.35f, .34f, .40f, .58f, 0, 75)}},
};

/* Random numbers of one image, taken in order. */
typedef struct dice { uint64_t seed, next; uint32_t image, word[4]; } dice;

static uint32_t roll(dice *r)
{
    if (r->next % 4 == 0)
        ag_philox(r->seed, r->image, AG_SITE_DATA + 1, r->next / 4, r->word);
    return r->word[r->next++ % 4];
}

static float between(dice *r, float a, float b) { return a + (b - a) * ag_uniform(roll(r)); }

/* Where a point of the unit square lies on the page, in pixels: x = m[0] u + m[1] v + m[2], y
 * likewise. */
typedef struct page {
    float m[6];
    float pen;
} page; /* pen: half the stroke width, pixels */

static page page_roll(dice *r)
{
    const float turn = between(r, -.26f, .26f), slant = between(r, -.25f, .25f);
    const float w = between(r, 17, 22), h = between(r, 18, 22), cs = cosf(turn), sn = sinf(turn);
    page p = {{w * cs, h * (slant * cs - sn), 0, w * sn, h * (slant * sn + cs), 0},
              between(r, .7f, 1.6f)};
    p.m[2] = SIDE / 2.0f + between(r, -2, 2) - (p.m[0] + p.m[1]) / 2;
    p.m[5] = SIDE / 2.0f + between(r, -2, 2) - (p.m[3] + p.m[4]) / 2;
    return p;
}

static inline float clamp(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }

/* Inks the line from (x0, y0) to (x1, y1): each pixel keeps its squared distance to
 * the nearest line. */
static void ink_line(float *dist, float pen, float x0, float y0, float x1, float y1)
{
    const float dx = x1 - x0, dy = y1 - y0, per_len2 = 1 / (dx * dx + dy * dy + 1e-12f);
    const float far = pen + 1, edge = SIDE - 1;
    const int left = (int)clamp((x0 < x1 ? x0 : x1) - far, 0, edge);
    const int right = (int)clamp((x0 < x1 ? x1 : x0) + far, 0, edge);
    const int top = (int)clamp((y0 < y1 ? y0 : y1) - far, 0, edge);
    const int bottom = (int)clamp((y0 < y1 ? y1 : y0) + far, 0, edge);
    for (int y = top; y <= bottom; y++)
        for (int x = left; x <= right; x++) {
            const float px = (float)x - x0, py = (float)y - y0;
            const float t = clamp((px * dx + py * dy) * per_len2, 0, 1);
            const float ex = px - t * dx, ey = py - t * dy, d2 = ex * ex + ey * ey;
            float *d = &dist[y * SIDE + x];
            *d = d2 < *d ? d2 : *d;
        }
}

static void ink_stroke(float *dist, const page *p, const stroke *s, dice *r)
{
    const bool line = s->rx < 0;
    const float jx = between(r, -.035f, .035f), jy = between(r, -.035f, .035f);
    const float kx = between(r, -.035f, .035f), ky = between(r, -.035f, .035f);
    const float sx = between(r, .9f, 1.1f), sy = between(r, .9f, 1.1f);
    const int n = line ? 2 : POINTS;
    float x0 = 0, y0 = 0;
    for (int i = 0; i < n; i++) {
        const float t = (float)i / (float)(n - 1);
        const float angle = (s->a + (s->b - s->a) * t) * 0.01745329252f;
        const float u = (line ? s->x + (s->a - s->x) * t : s->x + s->rx * sx * cosf(angle)) + jx
                        + (kx - jx) * t;
        const float v = (line ? s->y + (s->b - s->y) * t : s->y + s->ry * sy * sinf(angle)) + jy
                        + (ky - jy) * t;
        const float x = p->m[0] * u + p->m[1] * v + p->m[2],
                    y = p->m[3] * u + p->m[4] * v + p->m[5];
        if (i > 0)
            ink_line(dist, p->pen, x0, y0, x, y);
        x0 = x;
        y0 = y;
    }
}

/* Draws image i of the set: pixels [28, 28], 0 paper, 255 ink. */
static int32_t draw(uint64_t seed, int64_t i, uint8_t *pixel)
{
    float dist[PIXELS];                                  /* squared distance to the nearest line */
    dice r = {.seed = seed, .image = (uint32_t)i};
    const int32_t digit = (int32_t)((uint64_t)roll(&r) * 10 >> 32);
    const page p = page_roll(&r);
    int n = shape[digit].n;
    n -= digit == 7 && between(&r, 0, 1) < .7f;          /* most sevens have no bar */
    for (int k = 0; k < PIXELS; k++)
        dist[k] = 1e9f;
    for (int k = 0; k < n; k++)
        ink_stroke(dist, &p, &shape[digit].s[k], &r);
    const float grain = between(&r, 0, .25f);
    for (int k = 0; k < PIXELS; k++) {
        const float out = p.pen + .5f;                   /* where the ink ends */
        const float ink = dist[k] < out * out ? clamp(out - sqrtf(dist[k]), 0, 1) : 0;
        pixel[k] = ink <= 0 ? 0 : (uint8_t)(255 * ink * (1 - grain * ag_uniform(roll(&r))) + .5f);
    }
    return digit;
}

int data_open_digits(const data_options *o, data_set *d, ag_err *err)
{
    const int64_t n = o->size ? o->size : DEFAULT_SIZE;
    if (n > INT32_MAX)
        return ag_err_set(err, AG_ECONFIG, "data: %lld digits are more than 2^31 - 1",
                          (long long)n);
    uint8_t *at = malloc((size_t)n * PIXELS);
    int rc = data_own(d, at, (size_t)n * PIXELS, err);
    if (rc)
        return rc;
    int32_t *label = malloc((size_t)n * sizeof *label);
    if ((rc = data_own(d, label, (size_t)n * sizeof *label, err)))
        return rc;
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++)
        label[i] = draw(o->seed, i, at + i * PIXELS);
    d->kind = DATA_IMAGES;
    d->h = d->w = SIDE;
    d->c = 1;
    d->n_classes = 10;
    d->images[DATA_TRAIN] = (data_images){at, label, n};
    data_split_images(d, o->val_fraction, o->test_fraction);
    return AG_OK;
}
