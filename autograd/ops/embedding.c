/* embedding.c -- y[b,t] = table[ids[b,t]] + pos[pos0 + t];  the gradients are the sums of the rows
 * of dy. */
#include "../device.h"
#include "../op.h"
#include "../ops.h"

enum { IDS, TABLE, POS };

static int embedding_shape(ag_call *c, ag_shape *out)
{
    const ag_shape *ids = &c->in[IDS]->shape, *table = &c->in[TABLE]->shape;
    char a[96], b[96];
    if (ids->ndim != 2 || table->ndim != 2)
        return ag_fail(c->tape, AG_ESHAPE, "embedding: wanted ids [b,t] and table [v,d], got %s "
                       "and %s", ag_shape_text(ids, a), ag_shape_text(table, b));
    const ag_shape *pos = c->in[POS] ? &c->in[POS]->shape : NULL;
    if (pos && (pos->ndim != 2 || pos->dim[1] != table->dim[1]))
        return ag_fail(c->tape, AG_ESHAPE, "embedding: positions %s do not fit the table %s",
                       ag_shape_text(pos, a), ag_shape_text(table, b));
    const int64_t pos0 = c->attr.embedding.pos0;
    if (pos && (pos0 < 0 || pos0 + ids->dim[1] > pos->dim[0]))
        return ag_fail(c->tape, AG_ERANGE,
                       "embedding: positions %lld to %lld, but only %lld are known "
                       "(model.context)", (long long)pos0, (long long)(pos0 + ids->dim[1] - 1),
                       (long long)pos->dim[0]);
    out[0] = AG_SHAPE(ids->dim[0], ids->dim[1], table->dim[1]);
    return AG_OK;
}

/* One token, whose position is another in each run: the same sums. */
static void embed_token(const ag_call *c, const ag_turn *token)
{
    const int64_t d = ag_cols(c->in[TABLE]);
    const size_t bytes = (size_t)d * ag_real_size(c);
    void *row = ag_scratch(c->tape, bytes);
    if (c->in[IDS]->size != 1) ag_fail(c->tape, AG_EFAIL, "embedding: more than one token");
    if (!row || ag_error(c->tape)) return;
    c->k->embedding_fwd(1, d, c->in[IDS]->data, c->in[TABLE]->data, NULL, 1, 0, c->out[0]->data);
    c->k->device->copy_shifted(row, 0, (const char *)c->in[POS]->data +
                               (size_t)c->attr.embedding.pos0 * bytes, bytes, bytes,
                               &token->positions);
    c->k->add(d, row, c->out[0]->data);
}

static void embedding_forward(ag_call *c)
{
    const ag_tensor *ids = c->in[IDS], *table = c->in[TABLE];
    const ag_turn *token = ag_token_turn(c->tape);
    if (ag_check_index(c, IDS, 0, table->shape.dim[0]) < 0) return;
    if (token && c->in[POS]) {
        embed_token(c, token);
        return;
    }
    c->k->embedding_fwd(ids->size, ag_cols(table), ids->data, table->data,
                        c->in[POS] ? c->in[POS]->data : NULL,
                        ids->shape.dim[1], c->attr.embedding.pos0, c->out[0]->data);
}

static void embedding_backward(ag_call *c)
{
    void *dtable = ag_grad_add(c, TABLE), *dpos = ag_grad_add(c, POS);
    c->k->embedding_bwd(c->in[IDS]->size, ag_rows(c->in[TABLE]), ag_cols(c->in[TABLE]),
                        c->in[IDS]->data, c->out[0]->grad, c->in[IDS]->shape.dim[1],
                        c->attr.embedding.pos0, dtable, dpos);
}

static bool embedding_half(const ag_call *c, const ag_kernels *k)
{
    (void)c;
    return k->embedding_fwd && k->embedding_bwd;
}

static bool embedding_sample(int64_t i, ag_sample *s)
{
    static const int64_t B[] = { 1, 3, 0 }, T[] = { 1, 5 }, V[] = { 1, 7 }, D[] = { 1, 4, 33 };
    const bool absent = ag_digit(&i, 2);
    const int64_t b = B[ag_digit(&i, 3)], t = T[ag_digit(&i, 2)], v = V[ag_digit(&i, 2)],
        d = D[ag_digit(&i, 3)];
    *s = (ag_sample){ .in = { AG_SHAPE(b, t), AG_SHAPE(v, d), AG_SHAPE(t + 2, d) }, .lo = -1,
                      .hi = 1,
                      .absent = absent ? 1u << POS : 0, .int_lo = 0, .int_hi = (int32_t)v };
    if (i == 1) s->attr.embedding.pos0 = 2;
    if (i == 2) {
        s->in[absent ? TABLE : POS] = absent ? AG_SHAPE(v) : AG_SHAPE(t + 2, d + 1);
        s->bad = AG_ESHAPE;
    }
    if (i == 3) {
        s->attr.embedding.pos0 = 3;
        s->int_lo = absent && b ? (int32_t)v : 0;
        s->int_hi = (int32_t)v + 1;
        s->bad = absent && !b ? 0 : AG_ERANGE;
    }
    return i < 4;
}

const ag_op ag_op_embedding = {
    .name = "embedding", .doc = "y[b,t,d] = table[ids[b,t], d] + pos[pos0 + t, d]",
    .n_in = 3, .n_out = 1, .optional = 1u << POS, .integer_in = 1u << IDS,
    .shape = embedding_shape, .forward = embedding_forward, .backward = embedding_backward,
    .unread = ag_unread_out,
    .half = embedding_half, .weights = 1u << TABLE | 1u << POS,
    .sample = embedding_sample,
};

ag_tensor *ag_embedding(ag_tape *t, ag_tensor *ids, ag_tensor *table, ag_tensor *pos, int64_t pos0)
{
    return ag_apply(t, &ag_op_embedding, (ag_tensor *[AG_MAX_IN]){ ids, table, pos },
                    &(ag_attr){ .embedding = { pos0 } }, NULL);
}
