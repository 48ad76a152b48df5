/*
 * pattern.h -- the language in which a model says which keys its queries see (Sparse Transformers,
 * 1904.10509, section 4; autograd/pattern.h has the sets).
 *
 *     layers = entry { ";" entry }     layer r has entry r mod count: interleaved
 *     entry  = list { "|" list } [ "*" number ]    head h has list h mod count; *3: three layers
 *     list   = factor { "+" factor }   the union: merged
 *     factor = dense | local(l) | strided(l) | chunk(l) | summary(l, c[, index])
 *            | fixed(l, c[, k]) | file("path")
 *
 * fixed(l, c, k) is chunk(l) + summary(l, c, i): k different parts of a stride, each c wide, among
 * the heads of the list, its r-th head i = r mod k.  Without k it is l / c, all parts there are,
 * where that divides the number of those heads, so that together they see every earlier key, and
 * otherwise 1, the last part for all.  Sizes are positions.
 *
 * A file lists pairs: a line "blocks B" or "elements", then lines "query key", numbers of blocks of
 * B positions or of positions, of which later keys are left out.  Lines behind "head H" are for
 * that head alone, those before the first such line for all.  # begins a comment.
 *
 *     strided(64); local(64)*3         one layer with the second factor, three with the first
 *     fixed(128, 32)                   "fixed" as trained on text
 *     local(32) | dense                every other head sees all
 *
 * A model is made again from the texts that its files had (nn_pattern_files), whatever became of
 * the files: they are part of the model, as its weights are.
 */
#ifndef NN_PATTERN_H
#define NN_PATTERN_H

#include "autograd/base/error.h"
#include "autograd/pattern.h"

#include <stdbool.h>

typedef struct nn_pattern_file {
    char  *path;                     /* as the pattern has it */
    char  *text;                     /* [size], and a NUL that size does not count */
    size_t size;                     /* bytes */
} nn_pattern_file;

typedef struct nn_pattern_files {    /* zeroed: none */
    int n;
    nn_pattern_file *file;           /* [n], no two of one path */
    bool closed;                     /* no other is read from disk */
} nn_pattern_files;

/* Adds a file; takes text over, on failure too.  AG_ENOMEM. */
int  nn_pattern_files_add(nn_pattern_files *s, const char *path, char *text, size_t size,
                          ag_err *err);
/* The file of that path, which is read and added unless it is here.  AG_EINPUT: not here, and s is
 * closed; AG_EIO, AG_ENOMEM. */
int  nn_pattern_files_find(nn_pattern_files *s, const char *path, const nn_pattern_file **ret,
                           ag_err *err);
/* Whether there is a file of that path now, and another text in it. */
bool nn_pattern_file_changed(const nn_pattern_file *f);
void nn_pattern_files_release(nn_pattern_files *s);

typedef struct nn_pattern {          /* what one or more layers see */
    char       *text;                /* as it was written */
    ag_pattern *keys;                /* NULL: every query all earlier keys */
} nn_pattern;

typedef struct nn_patterns {
    int         n;
    nn_pattern *made;                /* [n], no two equal */
    int         period;              /* layer r has made[of[r % period]] */
    int        *of;
} nn_patterns;

/* The patterns of a model of n_layers, n_heads and at most n positions; files: those that the text
 * names are taken from there, and added where they were read; NULL: read, and forgotten.
 * AG_ECONFIG says where the text, or a file that it names, is wrong, and what it may be; the codes
 * of nn_pattern_files_find(). */
int  nn_patterns_new(nn_patterns **ret, const char *text, int64_t n, int64_t n_layers,
                     int64_t n_heads, nn_pattern_files *files, ag_err *err);
void nn_patterns_free(nn_patterns *p);       /* NULL is fine */
/* The same check alone. */
int  nn_patterns_check(const char *text, int64_t n, int64_t n_heads, nn_pattern_files *files,
                       ag_err *err);

const nn_pattern *nn_patterns_of(const nn_patterns *p, int64_t layer);
size_t nn_patterns_bytes(const nn_patterns *p);

/* Pairs of a file, for all heads in turn: those of head -1 are for all. */
typedef struct nn_pairs {
    int64_t block, n, room;
    struct nn_pair { int32_t head, query, key; } *pair;      /* [n], ascending, no two equal */
} nn_pairs;
/* AG_ECONFIG with the line of the file, AG_ENOMEM.  The caller releases ret, on errors too. */
int  nn_pairs_read(nn_pairs *ret, const nn_pattern_file *f, int64_t n, int64_t n_heads,
                   ag_err *err);
void nn_pairs_release(nn_pairs *p);

#endif
