#include "layers/match.h"

#include <stdlib.h>

/* A count that grows with d_ff, and what it is asked of. */
typedef struct counter {
    int (*count)(const struct counter *k, int64_t d_ff, int64_t *ret_n, ag_err *err);
    const nn_gpt_config *gpt;
    const nn_ff_config  *ff;
    int64_t d_model;
} counter;

/* The multiple of `step` whose count is nearest to `want`; of two equally near the lower one. */
static int nearest(const counter *k, int64_t step, int64_t want, int64_t *ret_d_ff, ag_err *err)
{
    enum { MOST = 1 << 20 };
    int64_t lo = 1, hi = MOST / step > 1 ? MOST / step : 1, n, below;
    while (lo < hi) {                /* lo: the least that reaches it */
        const int64_t mid = lo + (hi - lo) / 2;
        const int r = k->count(k, mid * step, &n, err);
        if (r) return r;
        if (n < want) lo = mid + 1;
        else hi = mid;
    }
    int r = k->count(k, lo * step, &n, err);
    if (!r && lo > 1) {
        r = k->count(k, (lo - 1) * step, &below, err);
        if (!r && want - below <= llabs(n - want)) lo--;
    }
    *ret_d_ff = lo * step;
    return r;
}

static int count_params(const counter *k, int64_t d_ff, int64_t *ret_n, ag_err *err)
{
    nn_gpt_config c = *k->gpt;
    nn_cost cost;
    c.ff.d_ff = d_ff;
    c.pattern = NULL;                /* it has no parameters */
    const int r = nn_gpt_cost(&c, &cost, err);
    if (!r) *ret_n = cost.params;
    return r;
}

int nn_match_params(nn_gpt_config *c, int64_t multiple, const nn_gpt_config *like, ag_err *err)
{
    const counter k = { .count = count_params, .gpt = c };
    nn_cost want;
    const int r = nn_gpt_cost(like, &want, err);
    return r ? r : nearest(&k, multiple, want.params, &c->ff.d_ff, err);
}

static int count_touched(const counter *k, int64_t d_ff, int64_t *ret_n, ag_err *err)
{
    nn_ff_config c = *k->ff;
    nn_ff l;
    c.d_ff = d_ff;
    int r = nn_ff_check(&c, k->d_model, err);
    if (r) return r;
    nn_params *p = nn_params_new(AG_F32);
    if (!p) return ag_err_set(err, AG_ENOMEM, "out of memory for the model");
    nn_ff_build(&l, p, "ff", k->d_model, &c);
    if (p->err.code) r = ag_err_set(err, p->err.code, "%s", p->err.msg);
    else *ret_n = nn_ff_touched(&l);
    nn_params_free(p);
    return r;
}

int nn_match_touched(nn_ff_config *c, const nn_ff_config *like, int64_t d_model, ag_err *err)
{
    const counter k = { .count = count_touched, .ff = c, .d_model = d_model },
        other = { .count = count_touched, .ff = like, .d_model = d_model };
    int64_t want;
    const int r = other.count(&other, like->d_ff, &want, err);
    return r ? r : nearest(&k, 1, want, &c->d_ff, err);
}
