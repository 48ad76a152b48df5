/*
 * pair_tasks.c -- three generated tasks of a source and a target that follows from it, so that the
 * best possible loss is 0.  Pair i is a function of (seed, i), and every token a character.
 *
 *   copy_pairs   1 to L letters of 16, each drawn evenly; the target is the same.  L is as much as
 *                fits: 32 where no length is given.  Guessing costs ln 16 = 2.773 a letter.
 *   addition     "x+y" in decimal digits, the lowest first; the target is their sum, likewise (the
 *                task of arXiv 2111.12763, section 4.3, in trax's form).  Both have n digits
 *                together, n drawn evenly from 2 .. data.digits, x from 1 to n - 1 of them; the
 *                last digit of a number of several is not 0.  In the test part n is drawn from
 *                data.test_least .. data.test_digits: longer than what was trained on.
 *   long_recall  A long list that few things are asked of: P pairs of a key A .. Z, each key once,
 *                and its value 0 .. 9 lie anywhere among letters a .. z that mean nothing; behind ?
 *                stand some of the keys, and the target has their values.  S tokens in all (256,
 *                or what the context of a row has room for), T - 1 questions (4),
 *                P = min(26, (S - T) / 3).  Guessing costs ln 10 = 2.303 each.
 */
#include "data/dice.h"
#include "data/internal.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    SITE = AG_SITE_DATA + 3, DEFAULT_TOKENS = 1 << 24, LEAST_PAIRS = 1000, LETTERS = 16, KEYS = 26,
    VALUES = 10, DEFAULT_COPY = 32, DEFAULT_LIST = 256, DEFAULT_QUESTIONS = 4,
    MOST_DIGITS = 1 << 20,
};

typedef struct task {
    const data_options *o;
    const data_set *d;
    data_pairs pairs;
    int64_t first_test;              /* number of the first pair of the test part */
} task;

typedef struct pair {                /* in tokens */
    int32_t *source, *target;
    int64_t n_source, n_target;
} pair;

static int32_t token(const task *k, int c) { return k->d->tokenizer->ascii[c]; }

static void make_copy(const task *k, data_dice *r, pair *p)
{
    const int64_t s = k->pairs.source, t = k->pairs.target - 1, most = s < t ? s : t;
    p->n_source = p->n_target = 1 + data_below(r, most);
    for (int64_t i = 0; i < p->n_source; i++)
        p->source[i] = p->target[i] = token(k, 'a' + (int)data_below(r, LETTERS));
}

/* n digits as characters, the lowest first. */
static void make_number(data_dice *r, int64_t n, int32_t *digit)
{
    for (int64_t i = 0; i < n; i++) {
        const int32_t least = i == n - 1 && n > 1;
        digit[i] = least + (int32_t)data_below(r, 10 - least);
    }
}

static void make_addition(const task *k, bool test, data_dice *r, pair *p)
{
    const data_options *o = k->o;
    const bool longer = test && o->test_digits;
    const int64_t most = longer ? o->test_digits : o->digits;
    const int64_t least = !longer ? 2 : o->test_least ? o->test_least : o->digits + 1;
    const int64_t n = least + data_below(r, most - least + 1), nx = 1 + data_below(r, n - 1);
    const int64_t ny = n - nx;
    int32_t *x = p->source, *y = p->source + nx + 1;
    make_number(r, nx, x);
    make_number(r, ny, y);
    int32_t carry = 0;
    p->n_source = n + 1;
    p->n_target = 0;
    for (int64_t i = 0; i < nx || i < ny || carry; i++) {
        carry += (i < nx ? x[i] : 0) + (i < ny ? y[i] : 0);
        p->target[p->n_target++] = token(k, '0' + carry % 10);
        carry /= 10;
    }
    for (int64_t i = 0; i < n + 1; i++)
        x[i] = i == nx ? token(k, '+') : token(k, '0' + x[i]);
}

static void make_list(const task *k, data_dice *r, pair *p)
{
    const int64_t s = k->pairs.source, asked = k->pairs.target - 1, list = s - asked - 1;
    const int64_t most = list / 3, pairs = most < KEYS ? most : KEYS;
    int32_t key[KEYS], value[KEYS], ask[KEYS];
    int64_t left = pairs, at = 0;
    data_draw_some(r, key, KEYS, pairs);
    for (int64_t slots = list - pairs; slots > 0; slots--) {   /* each pair is in one, in order */
        if (data_below(r, slots) >= left) {
            p->source[at++] = token(k, 'a' + (int)data_below(r, 26));
            continue;
        }
        left--;
        value[left] = (int32_t)data_below(r, VALUES);
        p->source[at++] = token(k, 'A' + key[left]);
        p->source[at++] = token(k, '0' + value[left]);
    }
    p->source[at++] = token(k, '?');
    data_draw_some(r, ask, pairs, asked);
    for (int64_t i = 0; i < asked; i++) {
        p->source[at++] = token(k, 'A' + key[ask[i]]);
        p->target[i] = token(k, '0' + value[ask[i]]);
    }
    p->n_source = at;
    p->n_target = asked;
}

/* All pairs; false when out of memory. */
static bool make_all(const task *k, int64_t count)
{
    const size_t room = (size_t)(k->pairs.source + k->pairs.target + 1);
    bool ok = true;
#pragma omp parallel
    {
        int32_t *scratch = malloc(2 * room * sizeof *scratch);
        pair p = {scratch, scratch ? scratch + room : NULL, 0, 0};
        if (!scratch) {
#pragma omp atomic write
            ok = false;
        }
#pragma omp for
        for (int64_t i = 0; i < count; i++) {
            data_dice r = {.seed = k->o->seed, .site = SITE, .sample = (uint32_t)i};
            if (!scratch)
                continue;
            if (k->d->name[0] == 'c')
                make_copy(k, &r, &p);
            else if (k->d->name[0] == 'a')
                make_addition(k, i >= k->first_test, &r, &p);
            else
                make_list(k, &r, &p);
            data_pairs_put(k->d, &k->pairs, i, p.source, p.n_source, p.target, p.n_target);
        }
        free(scratch);
    }
    return ok;
}

static int make_tokenizer(data_set *d, ag_err *err)
{
    const char *text = d->name[0] == 'c'   ? "abcdefghijklmnop"
                       : d->name[0] == 'a' ? "+0123456789"
                                           : "0123456789?ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                             "abcdefghijklmnopqrstuvwxyz";
    const int rc = data_tokenizer_train(text, strlen(text), d->name, &d->tokenizer, err);
    if (rc)
        return rc;
    data_tokenizer_reserve(d->tokenizer);
    d->vocab = d->tokenizer->n;
    return AG_OK;
}

static int check_digits(const data_options *o, ag_err *err)
{
    const int64_t least = o->test_least ? o->test_least : o->digits + 1;
    if (o->digits < 2 || o->digits > MOST_DIGITS || o->test_digits > MOST_DIGITS)
        return ag_err_set(err, AG_ECONFIG, "data: addition of %" PRId64 " digits: from 2 to %d are"
                          " possible", o->digits < 2 ? o->digits : o->test_digits, MOST_DIGITS);
    if (o->test_digits && (least < 2 || least > o->test_digits))
        return ag_err_set(err, AG_ECONFIG, "data: the test part cannot have from %" PRId64 " to %"
                          PRId64 " digits (data.test_least, data.test_digits)", least,
                          o->test_digits);
    if (o->test_digits && !(o->test_fraction > 0))
        return ag_err_set(err, AG_ECONFIG, "data: test_digits %" PRId64 " is for a test part, but"
                          " data.test_fraction is 0", o->test_digits);
    return AG_OK;
}

/* The lengths that the task has where none are given, and whether those given will do. */
static int choose_lengths(const data_options *o, const data_set *d, int64_t *s, int64_t *t,
                          ag_err *err)
{
    const char kind = d->name[0];
    const int64_t digits = o->digits > o->test_digits ? o->digits : o->test_digits;
    *t = o->target_length ? o->target_length : kind == 'l' ? DEFAULT_QUESTIONS + 1 : digits + 1;
    *s = o->source_length ? o->source_length : kind != 'l' ? digits + 1
         : o->apart || o->context > DEFAULT_LIST + *t ? DEFAULT_LIST : o->context - 1 - *t;
    if (kind == 'c') {
        const int64_t room = o->apart ? DEFAULT_COPY : (o->context - 2) / 2;
        *s = o->source_length ? o->source_length : o->target_length ? o->target_length - 1 : room;
        *t = o->target_length ? o->target_length : *s + 1;
        if (*s < 1 || *t < 2)
            return ag_err_set(err, AG_ECONFIG, "data: copy_pairs needs a source of 1 token and a"
                              " target of 2, its end one of them, or more");
    } else if (kind == 'a') {
        const int rc = check_digits(o, err);
        if (rc)
            return rc;
        if (*s < digits + 1 || *t < digits + 1)
            return ag_err_set(err, AG_ECONFIG, "data: addition of %" PRId64 " digits needs"
                              " data.source_length and data.target_length of at least %" PRId64,
                              digits, digits + 1);
    } else if (*t < 2 || *t - 1 > KEYS || (*s - *t) / 3 < *t - 1) {
        return ag_err_set(err, AG_ECONFIG, "data: long_recall cannot ask %" PRId64 " questions of"
                          " a source of %" PRId64 " tokens: 1 to %d, each with 4 tokens or more of"
                          " data.source_length", *t - 1, *s, KEYS);
    }
    return AG_OK;
}

int data_open_pair_task(const data_options *o, data_set *d, ag_err *err)
{
    task k = {.o = o, .d = d};
    int64_t s, t;
    int rc = choose_lengths(o, d, &s, &t, err);
    if (rc == AG_OK)
        rc = make_tokenizer(d, err);
    if (rc)
        return rc;
    const int64_t usual = DEFAULT_TOKENS / (s + t);
    const int64_t count = o->size ? o->size : usual > LEAST_PAIRS ? usual : LEAST_PAIRS;
    if ((rc = data_pairs_begin(o, count, s, t, d, &k.pairs, err)))
        return rc;
    k.first_test = (d->tokens[DATA_TRAIN].n + d->tokens[DATA_VAL].n) / d->sequence;
    d->entropy_rate = 0;
    if (!make_all(&k, count))
        return ag_err_set(err, AG_ENOMEM, "no memory for the pairs of %s", d->name);
    return AG_OK;
}
