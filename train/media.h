/*
 * media.h -- images and sound drawn from a model of sequences: a picture of several images side by
 * side as PNG, sound as WAV.
 *
 * An image begins with nothing: the start vector, or the token 0 that stood before every image in
 * training.  Image k is a function of (seed, k).
 */
#ifndef TRAIN_MEDIA_H
#define TRAIN_MEDIA_H

#include "train/generate.h"
#include "train/session.h"

/* "png", "wav", or NULL where what the model learned can be neither seen nor heard. */
const char *train_media_suffix(const train_session *s);

/* Draws `count` images as d says but for its length, or one sound of d->length samples, with the
 * session's weights as they are.  The file is malloc'ed; about[80] says what it is.  Errors of
 * train_generate; AG_EINTR where told (may be NULL, see there) ended it early. */
int train_media_draw(train_session *s, const train_draw *d, int64_t count, train_token *told,
                     uint8_t **ret_file, size_t *ret_size, char about[80], ag_err *err);

#endif
