/*
 * pairs.c -- how pairs of a source and a target lie in memory: see data.h for the two forms.
 *
 * Apart, a pair is S + T tokens, zeros behind source and target; a target has no zero in it, so
 * that what follows it can be told.  In a row it is what a language model sees, and `scored` marks
 * the target and its end.
 */
#include "data/internal.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int check_lengths(const data_options *o, const data_set *d, const data_pairs *p, ag_err *err)
{
    const int64_t row = p->source + 1 + p->target;
    if (p->source < 1 || p->target < 1)
        return ag_err_set(err, AG_ECONFIG, "data: a source of %" PRId64 " and a target of %" PRId64
                          " tokens are no pair: both lengths must be at least 1", p->source,
                          p->target);
    if (!o->apart && row > o->context)
        return ag_err_set(err, AG_ECONFIG, "data: a pair of %s takes %" PRId64 " tokens in a row"
                          " (source %" PRId64 ", 1, target with its end %" PRId64 "), but the"
                          " context is %" PRId64 ": set model.context=%" PRId64 ", or shorter"
                          " data.source_length and data.target_length",
                          d->name, row, p->source, p->target, o->context, row);
    return AG_OK;
}

int data_pairs_begin(const data_options *o, int64_t count, int64_t longest_source,
                     int64_t longest_target, data_set *d, data_pairs *ret_pairs, ag_err *err)
{
    data_pairs p = {.source = o->source_length ? o->source_length : longest_source,
                    .target = o->target_length ? o->target_length : longest_target,
                    .bytes = data_token_bytes(d->vocab)};
    int rc = check_lengths(o, d, &p, err);
    if (rc)
        return rc;
    d->kind = DATA_TOKENS;
    d->pairs = true;
    if (o->apart) {
        d->source = p.source;
        d->context = p.target;
        d->start = false;
    }
    d->sequence = d->source + d->context;
    if (count > INT32_MAX || count > (INT64_C(1) << 40) / d->sequence)
        return ag_err_set(err, AG_ECONFIG, "data: %" PRId64 " pairs of %" PRId64 " tokens are too"
                          " many", count, d->sequence);
    const size_t n = (size_t)(count * d->sequence), bytes = n * (size_t)p.bytes;
    p.at = calloc(bytes ? bytes : 1, 1);
    if ((rc = data_own(d, p.at, bytes, err)))
        return rc;
    p.scored = o->apart ? NULL : calloc(n ? n : 1, 1);
    if (!o->apart && (rc = data_own(d, p.scored, n, err)))
        return rc;
    data_split_sequences(d, o, p.at, p.bytes, p.scored, count);
    *ret_pairs = p;
    return AG_OK;
}

static int64_t put_all(const data_pairs *p, int64_t at, const int32_t *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        data_put_token(p->at, p->bytes, at + i, x[i]);
    return at + n;
}

void data_pairs_put(const data_set *d, const data_pairs *p, int64_t i, const int32_t *source,
                    int64_t n_source, const int32_t *target, int64_t n_target)
{
    const bool whole = n_target < p->target;             /* with room for its end */
    const int64_t begin = i * d->sequence;
    const int64_t m = whole ? n_target : p->target;
    int64_t at = put_all(p, begin, source, n_source < p->source ? n_source : p->source);
    if (p->scored)
        data_put_token(p->at, p->bytes, at++, DATA_END);
    else
        at = begin + p->source;
    if (p->scored)
        memset(p->scored + at, 1, (size_t)(m + whole));
    at = put_all(p, at, target, m);
    if (whole)
        data_put_token(p->at, p->bytes, at, DATA_END);
}

/* The tokens of t from *at on, up to an end, padding or `until`; *at then stands there. */
static int64_t take(const data_tokens *t, int64_t *at, int64_t until, int32_t *out)
{
    int64_t n = 0;
    for (; *at < until; ++*at) {
        const int32_t token = data_token_at(t, *at);
        if (token == DATA_END || token == DATA_PADDING)
            break;
        out[n++] = token;
    }
    return n;
}

void data_pair_at(const data_set *d, int split, int64_t i, int32_t *source, int64_t *ret_n_source,
                  int32_t *target, int64_t *ret_n_target)
{
    const data_tokens *t = &d->tokens[split];
    const int64_t begin = i * d->sequence, end = begin + d->sequence;
    int64_t at = begin;
    *ret_n_source = take(t, &at, d->source ? begin + d->source : end, source);
    at = d->source ? begin + d->source : at + 1;
    *ret_n_target = take(t, &at, end, target);
}
