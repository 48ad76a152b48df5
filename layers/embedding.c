#include "layers/embedding.h"

#include "autograd/op.h"

int nn_embedding_check(const nn_embedding_config *c, ag_err *err)
{
    return nn_position_check(&c->position, err);
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
    nn_position_build(&l->position, p, &c->position);
    if (c->start)
        l->start = nn_param(p, "start", AG_SHAPE(1, d), nn_matrix_init(c->token_std, 1, d, 1));
    nn_pop(p, at);
}

/* --- forward ---------------------------------------------------------------------------------- */

/* a [k,m,d] before b [k,n,d] -> [k,m+n,d] */
static ag_tensor *joined(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    const int64_t *from = a->shape.dim, k = from[0], m = from[1], n = b->shape.dim[1], d = from[2];
    ag_tensor *y = ag_module_concat(t, ag_reshape(t, a, AG_SHAPE(k, m * d)),
                                    ag_reshape(t, b, AG_SHAPE(k, n * d)), 1);
    return ag_reshape(t, y, AG_SHAPE(k, m + n, d));
}

/* ids of a table [v,d], and pos [1,n,d], [b,n,d] or NULL. */
static ag_tensor *sum(const nn_embedding *l, ag_tape *t, ag_tensor *ids, ag_tensor *table,
                      ag_tensor *pos)
{
    if (pos && pos->shape.dim[0] != 1)
        return ag_add(t, ag_embedding(t, ids, table, NULL, 0), pos);
    const ag_shape rows = AG_SHAPE(ids->shape.dim[1], l->config.d_model);
    return ag_embedding(t, ids, table, pos ? ag_reshape(t, pos, rows) : NULL, 0);
}

/* A sequence from its start on: the start is a further token, whose position is a row of zeros. */
static ag_tensor *from_start(const nn_embedding *l, ag_tape *t, ag_tensor *ids, nn_mode mode)
{
    const int64_t d = l->config.d_model, v = l->config.vocab, n = ids->shape.dim[1];
    ag_tensor *table = joined(t, ag_reshape(t, l->token, AG_SHAPE(1, v, d)),
                              ag_reshape(t, l->start, AG_SHAPE(1, 1, d)));
    ag_tensor *pos = nn_position_forward(&l->position, t, ids->shape.dim[0], 0, n - 1, mode);
    if (pos) {
        const int64_t k = pos->shape.dim[0];
        float *zeros = ag_tape_meta(t, (size_t)(k * d) * sizeof *zeros);
        for (int64_t i = 0; zeros && i < k * d; i++) zeros[i] = 0;
        pos = joined(t, ag_input(t, AG_SHAPE(k, 1, d), zeros, false), pos);
    }
    return sum(l, t, ids, ag_reshape(t, table, AG_SHAPE(v + 1, d)), pos);
}

ag_tensor *nn_embedding_forward(const nn_embedding *l, ag_tape *t, ag_tensor *ids, int64_t column0,
                                nn_mode mode)
{
    if (l->start && column0 == 0) return from_start(l, t, ids, mode);
    const int64_t first = column0 - (l->start ? 1 : 0);
    ag_tensor *table = nn_position_table(&l->position, mode);
    if (table) return ag_embedding(t, ids, l->token, table, first);
    ag_tensor *pos = nn_position_forward(&l->position, t, ids->shape.dim[0], first,
                                         ids->shape.dim[1], mode);
    return sum(l, t, ids, l->token, pos);
}

int64_t nn_embedding_unread(const nn_embedding *l, bool tied)
{
    const int64_t rows = (tied ? 0 : l->config.vocab - 1) + (l->start ? 1 : 0);
    return rows * l->config.d_model + nn_position_unread(&l->position);
}

int64_t nn_embedding_products(const nn_embedding *l) { return nn_position_products(&l->position); }
