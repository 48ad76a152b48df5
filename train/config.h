/*
 * config.h -- the configuration of a run: read, checked, explained, written back.
 *
 * config.def lists the keys; this struct, its defaults and its checks follow from it.  A
 * configuration comes from defaults, then one YAML file, then `key=value` arguments, and each
 * value remembers which.  Nothing is guessed from how a value looks: the key's type decides what
 * its text means, so `lr: 1e-3` is a number and `prompt: no` a text.  YAML here is mappings and
 * scalars: no anchors, no tags, no lists, no second document.
 *
 * A train_config owns no memory: it is copied by assignment.
 */
#ifndef TRAIN_CONFIG_H
#define TRAIN_CONFIG_H

#include "autograd/base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TRAIN_TEXT_MAX = 1024 };      /* bytes of a text value, with the NUL */

/* TRAIN_SOURCE_LANGUAGE, TRAIN_MODEL_GPT, ...: the values of WORD keys. */
enum train_choice {
#define CHOICE(list, name, word, help) TRAIN_##list##_##name,
#include "train/config.def"
    TRAIN_CHOICES
};

enum {                               /* number of keys, groups counted too */
    TRAIN_KEYS = 0
#define BEGIN(path, name, help) + 1
#define KEY(type, group, name, init, limits, unit, resume, help) + 1
#include "train/config.def"
};

typedef enum train_from { TRAIN_FROM_DEFAULT, TRAIN_FROM_FILE, TRAIN_FROM_COMMAND } train_from;

typedef struct train_origin {
    train_from from;
    int line;                        /* in train_config.file, counted from 1 */
} train_origin;

#define TRAIN_FIELD_BOOL(name) bool name
#define TRAIN_FIELD_INT(name)  int64_t name
#define TRAIN_FIELD_REAL(name) double name
#define TRAIN_FIELD_TEXT(name) char name[TRAIN_TEXT_MAX]
#define TRAIN_FIELD_WORD(name) int name      /* enum train_choice */

typedef struct train_config {
#define BEGIN(path, name, help) struct {
#define END(name) } name;
#define KEY(type, group, name, init, limits, unit, resume, help) TRAIN_FIELD_##type(name);
#include "train/config.def"
    char file[TRAIN_TEXT_MAX];       /* the file read last, for messages */
    train_origin origin[TRAIN_KEYS]; /* where each value came from */
} train_config;

/* All defaults. */
void train_config_init(train_config *c);

/* Reads a file on top of c.  Every fault, up to ten, is reported at once as
 *     file:line:col: what is wrong
 *         the line
 *             ^
 *       what would be right
 * AG_ECONFIG for all of them, a missing file too; AG_ENOMEM.  c is untouched on failure. */
int train_config_load(train_config *c, const char *path, ag_err *err);

/* The same from text[size] in memory, such as the copy in a checkpoint, under the name of name. */
int train_config_parse(train_config *c, const char *text, size_t size, const char *name,
                       ag_err *err);

/* One `key=value` argument; the value is taken as it is, without quotes.  AG_ECONFIG. */
int train_config_override(train_config *c, const char *arg, ag_err *err);

/* What must hold between keys.  A message names both keys and where they were set.  AG_ECONFIG. */
int train_config_check(const train_config *c, ag_err *err);
/* The same with the files of the attention pattern as layers/pattern.h; NULL: those on disk. */
struct nn_pattern_files;
int train_config_check_with(const train_config *c, struct nn_pattern_files *files, ag_err *err);

/* A key with its value and where that came from: "model.d_model = 100 (a.yaml:5)". */
void train_config_cite(const train_config *c, const char *path, char *buf, size_t size);

/* Whether a run with configuration `was` may go on with `now`: AG_ECONFIG names each key that
 * differs and may not change on resume. */
int train_config_resumable(const train_config *was, const train_config *now, ag_err *err);

typedef struct train_difference {    /* of two configurations */
    const char *key;
    char was[160], is[160];          /* its values, fit for a terminal */
} train_difference;

/* The first key whose value differs, of those that may change on resume (free), or of those that
 * may not; false: none does. */
bool train_config_differs(const train_config *was, const train_config *is, bool free,
                          train_difference *ret);

typedef enum train_dump {
    TRAIN_DUMP_ANNOTATED,            /* meaning, type, default and origin above each key */
    TRAIN_DUMP_PLAIN,                /* keys and values only */
    TRAIN_DUMP_CHANGED,              /* only keys whose value is not the default */
} train_dump;

/* The configuration as YAML that train_config_parse reads back exactly.  The functions below return
 * text in malloc'ed memory, which the caller frees.  AG_ENOMEM. */
int train_config_dump(const train_config *c, train_dump how, char **ret_text, ag_err *err);

/* One line `key: a -> b` for each key whose value differs; empty where none does. */
int train_config_diff(const train_config *a, const train_config *b, char **ret_text, ag_err *err);

/* Help of a key or a group; AG_ECONFIG with a suggestion if there is no such key. */
int train_config_explain(const char *key, char **ret_text, ag_err *err);

/* The reference of all keys as Markdown. */
int train_config_markdown(char **ret_text, ag_err *err);

/* The word of a choice as it stands in a file: TRAIN_SOURCE_FASHION_MNIST is "fashion-mnist". */
const char *train_choice_word(int choice);

/* Inner width of the feed-forward, with the rule for 0 applied. */
int64_t train_config_d_ff(const train_config *c);
/* Inner width of the sparse feed-forward's controller, the same. */
int64_t train_config_d_lowrank(const train_config *c);
/* The least scale of the loss, the same. */
double train_config_loss_scale_floor(const train_config *c);
/* Bytes of "500MB", "2GiB" or "1e9"; -1: that is none. */
double train_bytes(const char *text);
/* Whether the model sees whole images, not tokens. */
bool train_config_has_images(const train_config *c);
/* Whether it reads a source apart from the target that it writes. */
bool train_config_has_source(const train_config *c);
/* Tokens that the model predicts of a sample: its context, or the longest target. */
int64_t train_config_context(const train_config *c);
/* Are q, k and v made by sparse maps of modules? */
bool train_config_sparse_attention(const train_config *c);

#endif
