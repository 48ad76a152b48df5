#include "train/batch.h"

void train_batch_ahead(train_session *s, const data_draw *w, int64_t i0)
{
    const int64_t micro = s->config.train.micro_batch;
    train_ahead *a = &s->ahead;
    a->w = *w;
    if (i0 >= w->batch) a->w.step++;
    a->i0 = i0 < w->batch ? i0 : 0;
    a->n = w->batch - a->i0 < micro ? w->batch - a->i0 : micro;
    if (s->d_in) data_batch_images(s->data, &a->w, a->i0, a->n, a->pixels, a->targets);
    else data_batch_tokens(s->data, &a->w, a->i0, a->n, a->ids, a->targets);
}

/* The session's samples become those drawn ahead, if they are the wanted ones. */
static bool take_ahead(train_session *s, const data_draw *w, int64_t i0, int64_t n)
{
    train_ahead *a = &s->ahead, was = *a;
    if (a->n != n || a->i0 != i0 || a->w.step != w->step || a->w.split != w->split ||
        a->w.order != w->order || a->w.seed != w->seed || a->w.batch != w->batch)
        return false;
    *a = (train_ahead){ .ids = s->ids, .targets = s->targets, .pixels = s->pixels };
    s->ids = was.ids, s->targets = was.targets, s->pixels = was.pixels;
    return true;
}

int64_t train_batch_fetch(train_session *s, const data_draw *w, int64_t i0, int64_t n,
                          ag_tensor **ret_x, ag_tensor **ret_targets)
{
    ag_tape *t = s->tape;
    ag_tape_reset(t);
    const bool drawn = take_ahead(s, w, i0, n);
    if (s->d_in) {
        if (!drawn) n = data_batch_images(s->data, w, i0, n, s->pixels, s->targets);
        if (n) {
            *ret_x = ag_input(t, AG_SHAPE(n, s->d_in), s->pixels, false);
            *ret_targets = ag_input_i32(t, AG_SHAPE(n), s->targets);
        }
        return n;
    }
    if (!drawn) n = data_batch_tokens(s->data, w, i0, n, s->ids, s->targets);
    if (n) {
        *ret_x = ag_input_i32(t, AG_SHAPE(n, s->source + s->context), s->ids);
        *ret_targets = ag_input_i32(t, AG_SHAPE(n, s->context), s->targets);
    }
    return n;
}

int64_t train_batch_count(const int32_t *targets, int64_t rows)
{
    int64_t scored = 0;
    for (int64_t r = 0; r < rows; r++) scored += targets[r] >= 0;
    return scored;
}

int64_t train_batch_scored(train_session *s, const data_draw *w)
{
    const int64_t micro = s->config.train.micro_batch;
    int64_t scored = 0;
    for (int64_t i = 0; i < w->batch; i += micro) {
        const int64_t n = w->batch - i < micro ? w->batch - i : micro;
        data_batch_tokens(s->data, w, i, n, s->ids, s->targets);
        scored += train_batch_count(s->targets, n * s->context);
    }
    return scored;
}
