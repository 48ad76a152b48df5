/*
 * position.h -- what tells a model where a token stands: features of a position, to be added to
 * those of the token.  i is the position in the sequence, s where the sequence starts.
 *
 *   table       table[i + s]; or, with `features`, that row times a matrix [d_model,features]
 *   none        nothing
 *   grid        row[i / stride] + column[i mod stride], for text and audio
 *   image       row, column and channel of an image whose bytes lie row by row, channels together,
 *               summed (Sparse Transformers, 1904.10509 section 5.3, as grid)
 *   sin_cos     sin((i + s) w_0), sin((i + s) w_1), .., then the cosines, w_j = 10000^(-2j/d_model)
 *   fixed_base  i + s in bases 11, 13, 14 and 15, 8 digits each from the lowest on: part m of 8 is
 *               the sum over the bases of digit m times a learned vector; and `first` where i = 0
 *   axial       row[i / cols] and column[i mod cols] side by side
 *
 * Of the last three, and of the options of a table, the model is the released code of Scaling
 * Transformers (2111.12763).  In evaluation and decoding s = 0.  In training an example starts at
 * 0 with probability start_from_zero_prob, else at an s drawn evenly from [0, max_offset): so a
 * model meets positions that its training sequences are too short for.  One example in 100 has no
 * digits at all with fixed_base.  Dropout takes away whole positions, not single features (as that
 * code documents it; what it runs takes away a feature from all positions).
 *
 * Starts and drops are drawn for each example, a function of the noise key and the example alone:
 * the same in any micro-batch and in a recomputation.
 */
#ifndef NN_POSITION_H
#define NN_POSITION_H

#include "layers/basic.h"

typedef enum nn_position_type {
    NN_POSITION_TABLE, NN_POSITION_NONE, NN_POSITION_GRID, NN_POSITION_IMAGE, NN_POSITION_SIN_COS,
    NN_POSITION_FIXED_BASE, NN_POSITION_AXIAL
} nn_position_type;

enum {
    NN_POSITION_BASES = 4, NN_POSITION_DIGITS = 8,
    NN_POSITION_NUMBERS = 214358881  /* that 8 digits can write in the lowest base: 11^8 */
};

typedef struct nn_position_config {
    nn_position_type type;
    int64_t context, d_model;
    double  std;                     /* of table, grid and image; 0: Glorot */
    bool    waves;                   /* table: it starts as sines and cosines, interleaved */
    int64_t features;                /* table: its width; 0: d_model, and no matrix */
    int64_t stride;                  /* grid: 1 .. context */
    int64_t width, channels;         /* image: pixels of a row, bytes of a pixel */
    int64_t rows, cols, row_width;   /* axial: of row_width features are those of a row */
    double  dropout;                 /* share of positions, in training */
    double  start_from_zero_prob;
    int64_t max_offset;              /* table, sin_cos, fixed_base; 0: all start at 0; -1: as
                                      * released, 0, 2048, 11^8 - context.  A table has so many rows
                                      * beyond the context */
} nn_position_config;

typedef struct nn_axis {
    ag_tensor *table;                /* [rows,width] */
    int64_t    step;                 /* positions that share a row, in a row */
} nn_axis;

enum { NN_AXES = 3 };

typedef struct nn_position {
    nn_position_config config;       /* with max_offset filled in */
    nn_axis    axis[NN_AXES];
    int        n_axes;
    nn_linear  features;             /* weight NULL: none */
    ag_tensor *digits;               /* fixed_base: [d_model,4], a column for each base */
    ag_tensor *first;                /* fixed_base: [1,d_model] */
    nn_dropout drop;
    uint32_t   site;                 /* of starts and drops of examples */
} nn_position;

/* AG_ECONFIG names the fields that do not fit. */
int nn_position_check(const nn_position_config *c, ag_err *err);
int nn_position_axes(nn_position_type type);     /* tables whose rows are summed: 0 .. NN_AXES */
void nn_position_build(nn_position *l, nn_params *p, const nn_position_config *c);
/* The table [context,d_model] whose row i is all that position i adds; NULL: it is not so simple,
 * ask nn_position_forward. */
ag_tensor *nn_position_table(const nn_position *l, nn_mode mode);
/* Features of positions first .. first + n - 1 of `batch` sequences: [batch,n,d_model], or
 * [1,n,d_model] where all sequences have the same; NULL: nothing is added.  AG_ERANGE for a
 * position beyond the context. */
ag_tensor *nn_position_forward(const nn_position *l, ag_tape *t, int64_t batch, int64_t first,
                               int64_t n, nn_mode mode);

int64_t nn_position_unread(const nn_position *l);    /* parameters that a token does not read */
int64_t nn_position_products(const nn_position *l);  /* multiply-adds for a token */

#endif
