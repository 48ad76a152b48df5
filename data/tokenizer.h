/*
 * tokenizer.h -- text to token numbers and back: characters (Unicode code points), bytes or words.
 *
 * The character tokenizer is nanoGPT's: the sorted set of the characters of the training text, or
 * the same in another order, for sparse output layers, which tokens share by their numbers.  It
 * travels in the checkpoint as a flat list of bytes, so that a run can be sampled without its text.
 *
 * For pairs of texts the first tokens stand for no text: padding and the end of a target.  Words,
 * which are for pairs alone, have one more for all that are unknown.  A word is a run of letters,
 * digits and bytes beyond ASCII, or any other visible character by itself; it is written back with
 * a blank in front, so that what lay between words is not kept.
 */
#ifndef DATA_TOKENIZER_H
#define DATA_TOKENIZER_H

#include "autograd/base/error.h"
#include <stddef.h>
#include <stdint.h>

typedef enum data_tokenizer_kind {
    DATA_TOKENIZER_BYTE = 1,
    DATA_TOKENIZER_CHAR = 2,
    DATA_TOKENIZER_WORD = 3
} data_tokenizer_kind;

enum { DATA_PADDING, DATA_END, DATA_UNKNOWN };           /* reserved tokens */

typedef struct data_tokenizer {
    data_tokenizer_kind kind;
    int32_t   n;                     /* vocabulary size, with the reserved tokens */
    int32_t   reserved;              /* of a text alone 0, of pairs 2, of words 3 */
    uint32_t *code_point;            /* char: [n - reserved], each once */
    int32_t  *by_code_point;         /* char: their places in there, by ascending code point */
    int32_t   ascii[128];            /* token of a code point below 128, -1 if it has none */
    char    **word;                  /* word: [n - reserved], ascending as bytes, in one block */
} data_tokenizer;

/* All new tokenizers are the caller's to free.  AG_ENOMEM. */
int  data_tokenizer_bytes(data_tokenizer **ret_tok, ag_err *err);
/* The characters of a text.  AG_EINPUT names the offset of what is no UTF-8; name is the file's,
 * for messages. */
int  data_tokenizer_train(const char *text, size_t size, const char *name, data_tokenizer **ret_tok,
                          ag_err *err);
/* n code points, in the order of their tokens.  AG_EINPUT names one that is no character or is
 * there twice. */
int data_tokenizer_chars(const uint32_t *code_point, size_t n, data_tokenizer **ret_tok,
                         ag_err *err);
/* Gives the characters of a trained tokenizer, before any are reserved, other tokens: by how often
 * the text has each, those that are as frequent in order; or shuffled from a seed.  AG_ENOMEM. */
int data_tokenizer_by_frequency(data_tokenizer **tok, const char *text, size_t size, ag_err *err);
int data_tokenizer_shuffled(data_tokenizer **tok, uint64_t seed, ag_err *err);
/* The most frequent words of a text, so many that there are at most `limit` tokens (0: all the
 * words); of equally frequent ones the first in order. */
int data_tokenizer_words(const char *text, size_t size, int64_t limit, const char *name,
                         data_tokenizer **ret_tok, ag_err *err);
/* Moves the tokens of bytes or characters up, for DATA_PADDING and DATA_END. */
void data_tokenizer_reserve(data_tokenizer *tok);
/* The same tokenizer once more. */
int  data_tokenizer_copy(const data_tokenizer *tok, data_tokenizer **ret_tok, ag_err *err);
void data_tokenizer_free(data_tokenizer *tok);                     /* NULL is fine */
const char *data_tokenizer_name(const data_tokenizer *tok);        /* "char", "byte" or "word" */

/* Flat form: kind + 256 times the reserved tokens of bytes and characters, n, each a little-endian
 * u32; then a u32 for each code point, or the words, each with a NUL behind it.  AG_EINPUT if it is
 * none. */
int data_tokenizer_save(const data_tokenizer *tok, uint8_t **ret_bytes, size_t *ret_size,
                        ag_err *err);
int  data_tokenizer_load(const uint8_t *bytes, size_t size, data_tokenizer **ret_tok, ag_err *err);

/* Text to tokens [ret_n] (malloc) and back.  AG_EINPUT names a character that has no token, with
 * its line and column, or a token that is no token.  Padding and ends are no text; unknown words
 * are U+FFFD.  The text gets a NUL behind it. */
int  data_encode(const data_tokenizer *tok, const char *text, size_t size, const char *name,
                 int32_t **ret_tokens, int64_t *ret_n, ag_err *err);
int  data_decode(const data_tokenizer *tok, const int32_t *tokens, int64_t n, char **ret_text,
                 size_t *ret_size, ag_err *err);

/* One code point at p (p < end): its bytes, 1 .. 4, or 0 where the bytes are no UTF-8. */
int  data_utf8_next(const unsigned char *p, const unsigned char *end, uint32_t *ret_code_point);

#endif
