/*
 * embedding.h -- tokens to features, with what tells the model where a token stands.
 *
 *     y_i = token[x_i] + sum over axes a of table_a[(i / step_a) mod rows_a]
 *
 * (Sparse Transformers, 1904.10509 section 5.3), i the position in the sequence:
 *
 *   table    one axis, table[i]
 *   none     no axis
 *   grid     row[i / stride] and column[i mod stride], for text and audio
 *   image    row, column and channel of an image whose bytes lie row by row, channels together
 *
 * With a start vector a sequence begins with the token `vocab`, one past the last.  It is the
 * learned vector `start`, without a position, and the token behind it has position 0: what predicts
 * x_i has seen the token and the position of i - 1, as in the released code.
 */
#ifndef NN_EMBEDDING_H
#define NN_EMBEDDING_H

#include "autograd/ops.h"
#include "layers/params.h"

typedef enum nn_position {
    NN_POSITION_TABLE, NN_POSITION_NONE, NN_POSITION_GRID, NN_POSITION_IMAGE
} nn_position;

typedef struct nn_embedding_config {
    int64_t vocab, context, d_model;
    nn_position position;
    int64_t stride;                  /* grid: 1 .. context */
    int64_t width, channels;         /* image: pixels of a row, bytes of a pixel */
    bool    start;
    double  token_std, position_std; /* 0: Glorot */
    ag_tensor *shared;               /* [vocab,d_model], the token table of another embedding; NULL:
                                      * its own */
} nn_embedding_config;

typedef struct nn_axis {
    ag_tensor *table;                /* [rows,d_model] */
    int64_t    step;                 /* positions that share a row, in a row */
} nn_axis;

enum { NN_AXES = 3 };

typedef struct nn_embedding {
    nn_embedding_config config;
    ag_tensor *token;                /* [vocab,d_model] */
    ag_tensor *start;                /* [1,d_model] or NULL */
    nn_axis    axis[NN_AXES];
    int        n_axes;
} nn_embedding;

/* AG_ECONFIG names the fields that do not fit. */
int nn_embedding_check(const nn_embedding_config *c, ag_err *err);
int nn_position_axes(nn_position p);             /* 0 .. NN_AXES */
void nn_embedding_build(nn_embedding *l, nn_params *p, const char *name,
                        const nn_embedding_config *c);
/* ids int32 [b,t], columns column0 .. column0 + t - 1 of their sequences -> [b,t,d_model].  A
 * position is its column, less one with a start vector.  AG_ERANGE for one beyond the context. */
ag_tensor *nn_embedding_forward(const nn_embedding *l, ag_tape *t, ag_tensor *ids,
                                int64_t column0);

/* Parameters that a token does not read; `tied`: the output layer reads the token table. */
int64_t nn_embedding_unread(const nn_embedding *l, bool tied);

#endif
