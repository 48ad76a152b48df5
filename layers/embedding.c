#include "layers/embedding.h"

#include "autograd/op.h"

int nn_embedding_check(const nn_embedding_config *c, ag_err *err)
{
    const long long context = (long long)c->context;
    if (c->position == NN_POSITION_GRID && (c->stride < 1 || c->stride > c->context))
        return ag_err_set(err, AG_ECONFIG, "embedding: position.stride = %lld must be in [1, "
                          "context = %lld]", (long long)c->stride, context);
    if (c->position == NN_POSITION_IMAGE &&
        (c->width < 1 || c->channels < 1 || c->width > c->context / c->channels))
        return ag_err_set(err, AG_ECONFIG, "embedding: a row of an image has position.width = %lld "
                          "times position.channels = %lld bytes; that must be in [1, context = "
                          "%lld]", (long long)c->width, (long long)c->channels, context);
    return AG_OK;
}

int nn_position_axes(nn_position p)
{
    static const int axes[] = { [NN_POSITION_TABLE] = 1, [NN_POSITION_NONE] = 0,
                                [NN_POSITION_GRID] = 2, [NN_POSITION_IMAGE] = 3 };
    return axes[p];
}

static void axis_build(nn_embedding *l, nn_params *p, const char *name, int64_t rows, int64_t step)
{
    const nn_embedding_config *c = &l->config;
    const nn_init init = nn_matrix_init(c->position_std, rows, c->d_model, 1);
    l->axis[l->n_axes++] = (nn_axis){ nn_param(p, name, AG_SHAPE(rows, c->d_model), init), step };
}

/* How often `step` begins in the context. */
static int64_t steps(const nn_embedding_config *c, int64_t step)
{
    return (c->context + step - 1) / step;
}

void nn_embedding_build(nn_embedding *l, nn_params *p, const char *name,
                        const nn_embedding_config *c)
{
    const int64_t d = c->d_model;
    const size_t at = nn_push(p, "%s", name);
    *l = (nn_embedding){ .config = *c };
    l->token = c->shared ? c->shared
                         : nn_param(p, "token", AG_SHAPE(c->vocab, d),
                                    nn_matrix_init(c->token_std, c->vocab, d, 1));
    if (c->position == NN_POSITION_TABLE) axis_build(l, p, "position", c->context, 1);
    if (c->position == NN_POSITION_GRID) {
        axis_build(l, p, "row", steps(c, c->stride), c->stride);
        axis_build(l, p, "column", c->stride, 1);
    }
    if (c->position == NN_POSITION_IMAGE) {
        axis_build(l, p, "row", steps(c, c->width * c->channels), c->width * c->channels);
        axis_build(l, p, "column", c->width, c->channels);
        axis_build(l, p, "channel", c->channels, 1);
    }
    if (c->start)
        l->start = nn_param(p, "start", AG_SHAPE(1, d), nn_matrix_init(c->token_std, 1, d, 1));
    nn_pop(p, at);
}

/* --- forward ---------------------------------------------------------------------------------- */

/* table[(i / step) mod rows] for the n positions i from first on: [n,d] */
static ag_tensor *axis_forward(const nn_axis *a, ag_tape *t, int64_t first, int64_t n)
{
    int32_t *index = ag_scratch(t, (size_t)n * sizeof *index);
    for (int64_t i = 0; index && i < n; i++)
        index[i] = (int32_t)((first + i) / a->step % a->table->shape.dim[0]);
    return ag_gather(t, a->table, ag_input_i32(t, AG_SHAPE(n), index));
}

/* What is added to the tokens at n positions from first on, [n,d]; NULL: nothing. */
static ag_tensor *positions(const nn_embedding *l, ag_tape *t, int64_t first, int64_t n)
{
    const int64_t context = l->config.context;
    ag_tensor *sum = NULL;
    if (n < 1) return NULL;
    if (first + n > context)
        ag_fail(t, AG_ERANGE, "embedding: positions %lld to %lld, but only %lld are known "
                "(model.context)", (long long)first, (long long)(first + n - 1),
                (long long)context);
    for (int i = 0; i < l->n_axes; i++) {
        ag_tensor *x = axis_forward(&l->axis[i], t, first, n);
        sum = sum ? ag_add(t, sum, x) : x;
    }
    return sum;
}

/* a [m,d] above b [n,d] */
static ag_tensor *stacked(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    const int64_t d = ag_cols(a), rows = ag_rows(a) + ag_rows(b);
    ag_tensor *y = ag_module_concat(t, ag_reshape(t, a, AG_SHAPE(1, a->size)),
                                    ag_reshape(t, b, AG_SHAPE(1, b->size)), 1);
    return ag_reshape(t, y, AG_SHAPE(rows, d));
}

/* A sequence from its start on: the start is a further token, whose position is a row of zeros. */
static ag_tensor *from_start(const nn_embedding *l, ag_tape *t, ag_tensor *ids)
{
    const int64_t d = l->config.d_model, n = ids->shape.dim[1];
    ag_tensor *table = stacked(t, l->token, l->start), *pos = positions(l, t, 0, n - 1);
    if (pos) {
        float *zeros = ag_scratch(t, (size_t)d * sizeof *zeros);
        for (int64_t i = 0; zeros && i < d; i++) zeros[i] = 0;
        pos = stacked(t, ag_input(t, AG_SHAPE(1, d), zeros, false), pos);
    }
    return ag_embedding(t, ids, table, pos, 0);
}

ag_tensor *nn_embedding_forward(const nn_embedding *l, ag_tape *t, ag_tensor *ids,
                                int64_t column0)
{
    if (l->start && column0 == 0) return from_start(l, t, ids);
    const int64_t first = column0 - (l->start ? 1 : 0);
    if (l->config.position == NN_POSITION_TABLE)
        return ag_embedding(t, ids, l->token, l->axis[0].table, first);
    return ag_embedding(t, ids, l->token, positions(l, t, first, ids->shape.dim[1]), 0);
}

int64_t nn_embedding_unread(const nn_embedding *l, bool tied)
{
    int64_t rows = (tied ? 0 : l->config.vocab - 1) + (l->start ? 1 : 0);
    for (int i = 0; i < l->n_axes; i++) rows += l->axis[i].table->shape.dim[0] - 1;
    return rows * l->config.d_model;
}
