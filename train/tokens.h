/*
 * tokens.h -- tokens as people write them: the text of the tokenizer, or where a model has none
 * (token files, generated sequences) their numbers, separated by blanks.
 */
#ifndef TRAIN_TOKENS_H
#define TRAIN_TOKENS_H

#include "train/session.h"

/* Are its tokens written as numbers?  Not those of images and sound, which are drawn (media.h). */
bool train_tokens_are_numbers(const train_session *s);

/* The tokens of `text`, which errors call `what`; *ret_ids is malloc'ed.  AG_EINPUT: it has none
 * for a part of the text. */
int train_tokens_read(const train_session *s, const char *text, const char *what,
                      int32_t **ret_ids, int64_t *ret_n, ag_err *err);

/* What ids[n] are written as, malloc'ed, with a NUL behind its *ret_size bytes. */
int train_tokens_write(const train_session *s, const int32_t *ids, int64_t n, char **ret_text,
                       size_t *ret_size, ag_err *err);

#endif
