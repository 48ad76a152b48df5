#include "layers/head.h"

#include "autograd/op.h"

int nn_head_check(const nn_head_config *c, ag_err *err)
{
    if (c->type == NN_HEAD_DENSE) return AG_OK;
    if (c->type == NN_HEAD_MULT && (c->modules < 1 || c->modules > c->vocab))
        return ag_err_set(err, AG_ECONFIG, "head: head.modules = %lld must be in [1, %lld], the "
                          "number of tokens", (long long)c->modules, (long long)c->vocab);
    if (c->type == NN_HEAD_LOWRANK && c->d_lowrank < 1)
        return ag_err_set(err, AG_ECONFIG, "head: head.d_lowrank = %lld must be at least 1",
                          (long long)c->d_lowrank);
    if (!(c->prob_sparse >= 0 && c->prob_sparse <= 1))
        return ag_err_set(err, AG_ECONFIG, "head: head.prob_sparse = %g must be in [0, 1]",
                          c->prob_sparse);
    return AG_OK;
}

/* Is there a dense layer beside a sparse one? */
static bool has_beside(const nn_head_config *c)
{
    return c->type != NN_HEAD_DENSE && c->prob_sparse < 1;
}

void nn_head_build(nn_head *l, nn_params *p, const char *name, const nn_head_config *c,
                   ag_tensor *tied)
{
    const nn_init init =
        c->zero ? nn_constant(0) : nn_matrix_init(c->init_std, c->d_model, c->vocab, 1);
    *l = (nn_head){ .config = *c };
    if (c->type == NN_HEAD_DENSE) {
        if (tied) l->dense.weight = tied;
        else nn_linear_build(&l->dense, p, name, c->d_model, c->vocab, false, init);
        return;
    }
    const size_t at = nn_push(p, "%s", name);
    if (c->type == NN_HEAD_MULT)
        nn_mult_build(&l->mult, p, "mult", c->d_model, c->vocab, c->modules, true);
    else
        nn_map_build(&l->lowrank, p, "lowrank",
                     &(nn_map_config){ .kind = NN_MAP_LOWRANK, .d_in = c->d_model,
                                       .d_out = c->vocab, .modules = 1, .rank = c->d_lowrank });
    if (has_beside(c))
        nn_linear_build(&l->dense, p, "beside", c->d_model, c->vocab, true, init);
    l->coin_site = nn_site(p);
    nn_pop(p, at);
}

static bool toss(const void *head, const ag_noise_key *key)
{
    const nn_head *l = head;
    return (double)ag_uniform(ag_noise_bits(key->seed, key->step, l->coin_site, 0)) <
           l->config.prob_sparse;
}

static bool step_is_sparse(const nn_head *l, ag_tape *t, nn_mode mode)
{
    return mode != NN_TRAIN || !has_beside(&l->config) || ag_decide(t, toss, l);
}

ag_tensor *nn_head_forward(const nn_head *l, ag_tape *t, ag_tensor *x, nn_mode mode)
{
    ag_scope(t, "head", -1);
    ag_tensor *y = l->config.type == NN_HEAD_DENSE || !step_is_sparse(l, t, mode)
                       ? nn_linear_forward(&l->dense, t, x, AG_ACT_NONE, NULL)
                   : l->config.type == NN_HEAD_MULT ? nn_mult_forward(&l->mult, t, x)
                                                    : nn_map_forward(&l->lowrank, t, x, NULL);
    ag_scope_end(t);
    return y;
}

int64_t nn_head_beside(const nn_head *l)
{
    return has_beside(&l->config) ? (l->config.d_model + 1) * l->config.vocab : 0;
}

int64_t nn_head_products(const nn_head *l)
{
    switch (l->config.type) {
    case NN_HEAD_MULT:    return nn_mult_products(&l->mult);
    case NN_HEAD_LOWRANK: return nn_map_products(&l->lowrank);
    default:              return l->config.d_model * l->config.vocab;
    }
}
