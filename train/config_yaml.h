/*
 * config_yaml.h -- YAML as a row of events, each with its place, and the faults found in it.
 *
 * Shared by the files of train/config*.  There is no document in between: each key and value brings
 * its line and column, so a fault can be shown where it stands, and reading goes on behind it to
 * find the next.
 */
#ifndef TRAIN_CONFIG_YAML_H
#define TRAIN_CONFIG_YAML_H

#include "train/schema.h"

struct train_ablation;

typedef enum train_yaml_kind {
    TRAIN_YAML_END,                  /* of the text, or where reading cannot go on */
    TRAIN_YAML_MARK,                 /* begin or end of the text or of a document */
    TRAIN_YAML_SCALAR, TRAIN_YAML_ALIAS,
    TRAIN_YAML_MAP, TRAIN_YAML_MAP_CLOSE, TRAIN_YAML_LIST, TRAIN_YAML_LIST_CLOSE,
} train_yaml_kind;

typedef struct train_yaml_event {
    train_yaml_kind kind;
    int  line, col;                  /* from 1 */
    bool quoted, null;               /* of a scalar: in quotes; not there at all */
    bool whole;                      /* text is all of the scalar: not cut, no NUL in it */
    char text[2 * TRAIN_TEXT_MAX];
} train_yaml_event;

typedef struct train_yaml {
    struct fy_parser *parser;
    struct fy_diag   *diag;
    const char *name, *text;         /* of the file, as messages name it; its bytes */
    size_t size;
    int  depth;                      /* mappings and lists that are open */
    bool stop;                       /* no more events: the end, or a fault */
    int  faults;
    char report[sizeof ((ag_err *)0)->msg - 32];
    size_t used;
} train_yaml;

/* Begins to read text[size], which must stay.  AG_ENOMEM; damage is a fault, and ends it. */
int train_yaml_open(train_yaml *y, const char *text, size_t size, const char *name, ag_err *err);
/* AG_ECONFIG with the report if there were faults. */
int train_yaml_close(train_yaml *y, ag_err *err);

/* The next event.  One without a place of its own (an absent value) keeps the place that e held
 * before. */
void train_yaml_next(train_yaml *y, train_yaml_event *e);
/* Passes over the rest of the value that began with e. */
void train_yaml_skip(train_yaml *y, const train_yaml_event *begin);
const char *train_yaml_noun(const train_yaml_event *e);         /* "a list" */

/* Adds a fault to the report; line 0 = of the file as a whole. */
void train_yaml_report(train_yaml *y, int line, int col, const train_fault *f);
void train_yaml_fault(train_yaml *y, int line, int col, const char *hint, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

/* Sets the key of "key=value" and its origin.  False fills the fault and leaves c as it was. */
bool train_config_assign(train_config *c, const char *arg, train_origin origin,
                         train_fault *ret_fault);
/* train_config_load; `ablation:`, which e is the value of, goes to a (NULL: a fault). */
int  train_config_load_with(train_config *c, const char *path, struct train_ablation *a,
                            ag_err *err);
void train_ablation_read(train_yaml *y, const train_yaml_event *e, struct train_ablation *a);

#endif
