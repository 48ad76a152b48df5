/*
 * schema.h -- the table of keys that config.def describes, and what can be done to one value.
 *
 * Shared by the files of train/config*; the rest of the program uses config.h.
 */
#ifndef TRAIN_SCHEMA_H
#define TRAIN_SCHEMA_H

#include "train/config.h"

typedef enum train_type {
    TRAIN_GROUP, TRAIN_BOOL, TRAIN_INT, TRAIN_REAL, TRAIN_TEXT, TRAIN_WORD
} train_type;

typedef struct train_key {
    const char *path;                /* "model.ff.block" */
    train_type  type;
    size_t      offset;              /* of the field in train_config */
    const char *init;                /* default, as in a file */
    const char *limits;              /* "[1, 64]"; the list of choices; TEXT: of its forms, or "" */
    const char *unit;
    bool        free;                /* may change on resume */
    const char *help;
} train_key;

typedef struct train_word {          /* indexed by enum train_choice */
    const char *list, *word, *help;
} train_word;

extern const train_key  train_keys[TRAIN_KEYS];
extern const train_word train_words[TRAIN_CHOICES];

typedef struct train_fault {         /* one complaint */
    char what[320];                  /* what is wrong */
    char hint[768];                  /* what would be right; may be empty */
} train_fault;

enum { TRAIN_VALUE_MAX = 6 * TRAIN_TEXT_MAX };   /* bytes of a value written by train_value_text */

int  train_key_find(const char *path);                          /* index, or -1 */
bool train_key_is_child(const train_key *k, const char *group); /* directly in group, "" = top */
const char *train_key_leaf(const train_key *k);                 /* "block" */
void train_key_unknown(const char *path, train_fault *ret_fault);

const char *train_key_noun(const train_key *k);                 /* "an integer" */
/* "integer in [1, 64], units" */
void train_key_domain(const train_key *k, char *buf, size_t size);

/* Sets a key from its text.  False fills the fault and leaves c as it was. */
bool train_value_set(train_config *c, int key, const char *text, bool quoted,
                     train_fault *ret_fault);

/* The value as it stands in a file: 0.001, true, "text".  Reading it back gives the same bits. */
void train_value_text(const train_config *c, int key, char buf[TRAIN_VALUE_MAX]);
bool train_value_equal(const train_config *a, const train_config *b, int key);

/* "default", "a.yaml:7" or "command line" */
void train_value_origin(const train_config *c, int key, char *buf, size_t size);

typedef struct train_idle { const char *key, *relation, *other; } train_idle;

/* The next key, from *at (0 at first) on, that was set though it says nothing beside the value of
 * another one: "KEY RELATION OTHER".  False: there is none. */
bool train_idle_next(const train_config *c, int *at, train_idle *ret_idle);

/* Offset of the first byte that is not UTF-8; size if there is none. */
size_t train_utf8_check(const char *text, size_t size);
/* Bytes of the character at text[0], 1 if it is damaged; its code point, or U+FFFD. */
size_t train_utf8_next(const char *text, size_t size, uint32_t *ret_point);

/* Copies text for a terminal: control characters and damaged bytes become '?', and what does not
 * fit ends in "...". */
void train_text_clean(const char *text, char *buf, size_t size);

#endif
