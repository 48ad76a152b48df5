#include "layers/reversible.h"

#include "autograd/op.h"
#include "autograd/segment.h"

#include <stdlib.h>

int nn_streams_check(const nn_streams_config *c, ag_err *err)
{
    if (c->kind == NN_STREAMS_REBUILT && (c->point < 0 || c->point > 30))
        return ag_err_set(err, AG_ECONFIG, "streams: reversible_bits = %d must be in [0, 30]",
                          c->point);
    return AG_OK;
}

void nn_second_build(nn_second *l, nn_params *p, const nn_attention_config *c, double norm_eps)
{
    nn_norm_build(&l->norm, p, "norm_second", c->d_model, c->bias, norm_eps);
    nn_attention_build(&l->attention, p, "second", c);
}

/* One half residual: an attention, or else the feed-forward and its unit. */
typedef struct branch {
    const nn_norm *norm;
    const nn_attention *attention;
    const nn_block *block;
    nn_pass pass;
    int index, layer;                /* of the block; of the cache */
} branch;

static ag_tensor *attention_of(const branch *f, ag_tape *t, ag_tensor *x)
{
    const nn_pass *p = &f->pass;
    x = nn_norm_forward(f->norm, t, x);
    return p->encoder ? nn_attention_encode(f->attention, t, x, p->lengths, NULL, p->mode)
                      : nn_attention_forward(f->attention, t, x, NULL, p->mode, p->cache,
                                             f->layer);
}

static ag_tensor *units_of(const branch *f, ag_tape *t, ag_tensor *x)
{
    ag_tensor *y =
        nn_ff_forward(&f->block->ff, t, nn_norm_forward(f->norm, t, x), NULL, f->pass.mode);
    return nn_sru_forward(&f->block->sru, t, x, y, f->pass.cache, f->layer);
}

static ag_tensor *run(const void *arg, ag_tape *t, ag_tensor *const *x)
{
    const branch *f = arg;
    ag_scope(t, f->pass.encoder ? "encoder" : "block", f->index);
    ag_tensor *y = f->attention ? attention_of(f, t, x[0]) : units_of(f, t, x[0]);
    ag_scope_end(t);
    return y;
}

/* The branches of all blocks in their order. */
static void fill(const nn_reversible *r, const nn_pass *pass, branch *f, ag_half *half)
{
    const int attentions = r->second ? 2 : 1;
    for (int i = 0; i < r->n; i++) {
        const nn_block *l = &r->block[i];
        const branch of = { .block = l, .pass = *pass, .index = i, .layer = attentions * i };
        for (int j = 0; j <= attentions; j++, f++, half++) {
            const bool last = j == attentions;
            *f = of;
            f->norm = last ? &l->norm2 : j ? &r->second[i].norm : &l->norm1;
            f->attention = last ? NULL : j ? &r->second[i].attention : &l->attention;
            f->layer += last ? 0 : j;
            *half = (ag_half){ run, f, !last || r->streams.two_swaps };
        }
    }
}

static ag_tensor *stored(const ag_half *half, int n, ag_tape *t, ag_tensor *a, ag_tensor *b,
                         ag_tensor **ret_b)
{
    for (int i = 0; i < n; i++) {
        ag_tensor *sum = ag_add(t, a, half[i].f(half[i].arg, t, &b));
        a = half[i].swap ? b : sum;
        b = half[i].swap ? sum : b;
    }
    *ret_b = b;
    return a;
}

ag_tensor *nn_reversible_forward(const nn_reversible *r, ag_tape *t, const nn_pass *pass,
                                 ag_tensor *a, ag_tensor *b, ag_tensor **ret_b)
{
    const int n = r->n * (r->second ? 3 : 2);
    *ret_b = b;
    branch *f = ag_error(t) ? NULL : ag_tape_meta(t, (size_t)n * sizeof *f);
    ag_half *half = f ? ag_tape_meta(t, (size_t)n * sizeof *half) : NULL;
    if (!half) return a;
    fill(r, pass, f, half);
    return r->streams.kind == NN_STREAMS_STORED
               ? stored(half, n, t, a, b, ret_b)
               : ag_reversible(t, half, n, r->streams.point, a, b, ret_b);
}
