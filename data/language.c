/*
 * language.c -- a small formal language whose entropy rate is known exactly.
 *
 * Sentences such as "the cats that see a dog hear some birds." come from a probabilistic automaton:
 * a state is a list of words with weights, each word leads to one state.  Verbs agree in number
 * with a noun that may lie a relative clause (or two, one inside the other) back, so that there is
 * something for attention to find.
 *
 * The words of a state are prefix-free and lead to one state each, so text and path determine each
 * other, and the chain rule gives the entropy rate per character exactly (Cover and Thomas,
 * Elements of Information Theory, 4.2):
 *     h = sum_s mu_s H_s / sum_s mu_s L_s,
 * with mu the stationary distribution over the word steps, H_s the entropy of the choice in state
 * s, and L_s the mean length of its words.  No model has a lower loss, however long its context.
 */
#include "autograd/base/rng.h"
#include "data/internal.h"
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = 16, WORD_LENGTH = 24, DEFAULT_SIZE = 1000000 };

/* States; + n: the number of the subject (0 singular, 1 plural) that the main verb has to agree
 * with, and for two of them + 2 m: that of the noun which an inner clause is about.  OBJECT is
 * SUBJECT with a full stop, the last state. */
enum {
    SUBJECT = 0, AFTER = 1, CLAUSE = 3, INSIDE = 5, AFTER_INSIDE = 7, DEEP = 11, DEEPEST = 15,
    MAIN = 17, OBJECT = 19, STATES = 20,
};

typedef struct word { char text[WORD_LENGTH]; int weight, next; } word;
typedef struct state { word word[WORDS]; int n, total; } state;
typedef struct grammar { state state[STATES]; } grammar;

static void add(state *s, int weight, int next, const char *a, const char *b, const char *c)
{
    assert(s->n < WORDS && strlen(a) + strlen(b) + strlen(c) < WORD_LENGTH);
    word *w = &s->word[s->n++];
    snprintf(w->text, sizeof w->text, "%s%s%s", a, b, c);
    w->weight = weight;
    w->next = next;
    s->total += weight;
}

static void add_nouns(state *s, const char *end, int next_singular, int next_plural)
{
    static const char *const noun[4] = {"cat", "dog", "bird", "king"};
    static const int weight[4] = {12, 6, 4, 3};
    char tail[4];
    for (int i = 0; i < 4; i++) {
        add(s, 2 * weight[i], next_singular, "the ", noun[i], end);
        add(s, weight[i], next_singular, "a ", noun[i], end);
        snprintf(tail, sizeof tail, "s%s", end);
        add(s, weight[i], next_plural, "the ", noun[i], tail);
        add(s, weight[i], next_plural, "some ", noun[i], tail);
    }
}

static void add_verbs(state *s, int weight, int number, int next)
{
    static const char *const verb[5] = {"see", "hear", "like", "want", "follow"};
    static const int share[5] = {5, 4, 3, 2, 1};
    for (int i = 0; i < 5; i++)
        add(s, weight * share[i], next, verb[i], number ? " " : "s ", "");
}

static void grammar_make(grammar *g)
{
    state *s = g->state;
    memset(g, 0, sizeof *g);
        add_nouns(&s[SUBJECT], " ", AFTER, AFTER + 1);
    add_nouns(&s[OBJECT], ".\n", SUBJECT, SUBJECT);
    for (int n = 0; n < 2; n++) {
        add(&s[AFTER + n], 10, CLAUSE + n, "that ", "", "");
        add_verbs(&s[AFTER + n], 1, n, OBJECT);
        add_verbs(&s[CLAUSE + n], 1, n, INSIDE + n);
        add_nouns(&s[INSIDE + n], " ", AFTER_INSIDE + n, AFTER_INSIDE + n + 2);
        for (int m = 0; m < 2; m++) {
            add(&s[AFTER_INSIDE + n + 2 * m], 5, DEEP + n + 2 * m, "that ", "", "");
            add_verbs(&s[AFTER_INSIDE + n + 2 * m], 1, n, OBJECT);
            add_verbs(&s[DEEP + n + 2 * m], 1, m, DEEPEST + n);
        }
        add_nouns(&s[DEEPEST + n], " ", MAIN + n, MAIN + n);
        add_verbs(&s[MAIN + n], 1, n, OBJECT);
    }
}

/* mu = mu P with sum 1, by repeated (I + P) / 2, which converges for every automaton that comes
 * back. */
static void stationary(const grammar *g, double mu[STATES])
{
    for (int i = 0; i < STATES; i++)
        mu[i] = 1.0 / STATES;
    for (int round = 0; round < 2000; round++) {
        double next[STATES];
        for (int i = 0; i < STATES; i++)
            next[i] = mu[i] / 2;
        for (int i = 0; i < STATES; i++)
            for (int j = 0; j < g->state[i].n; j++) {
                const word *w = &g->state[i].word[j];
                next[w->next] += mu[i] / 2 * w->weight / g->state[i].total;
            }
        memcpy(mu, next, sizeof next);
    }
}

static double entropy_rate(const grammar *g)
{
    double mu[STATES], nats = 0, chars = 0;
    stationary(g, mu);
    for (int i = 0; i < STATES; i++)
        for (int j = 0; j < g->state[i].n; j++) {
            const word *w = &g->state[i].word[j];
            const double p = (double)w->weight / g->state[i].total;
            nats -= mu[i] * p * log(p);
            chars += mu[i] * p * (double)strlen(w->text);
        }
    return nats / chars;
}

/* Word k of the text is a function of (seed, k) and of the state that word k - 1 led to. */
static void write_text(const grammar *g, uint64_t seed, char *text, size_t size)
{
    size_t at = 0;
    int s = SUBJECT;
    for (uint64_t k = 0; at < size; k++) {
        const uint64_t u = ag_noise_bits(seed, 0, AG_SITE_DATA, k);
        int pick = (int)(u * (uint64_t)g->state[s].total >> 32), j = 0;
        while (pick >= g->state[s].word[j].weight)
            pick -= g->state[s].word[j++].weight;
        const word *w = &g->state[s].word[j];
        const size_t n = strlen(w->text), take = n < size - at ? n : size - at;
        memcpy(text + at, w->text, take);
        at += take;
        s = w->next;
    }
}

/* The characters that the language has, whether or not a short text shows them all. */
static int make_tokenizer(const grammar *g, data_tokenizer **ret_tok, ag_err *err)
{
    char all[(STATES) * WORDS * WORD_LENGTH];
    size_t n = 0;
    for (int i = 0; i < STATES; i++)
        for (int j = 0; j < g->state[i].n; j++) {
            const size_t len = strlen(g->state[i].word[j].text);
            memcpy(all + n, g->state[i].word[j].text, len);
            n += len;
        }
    return data_tokenizer_train(all, n, "language", ret_tok, err);
}

int data_open_language(const data_options *o, data_set *d, ag_err *err)
{
    const size_t size = (size_t)(o->size ? o->size : DEFAULT_SIZE);
    void *at;
    int64_t n;
    int bytes, rc;
    grammar *g = malloc(sizeof *g);
    char *text = malloc(size);
    if ((rc = data_own(d, g, sizeof *g, err)) || (rc = data_own(d, text, size, err))) {
        if (!g)
            free(text);
        return rc;
    }
    grammar_make(g);
    write_text(g, o->seed, text, size);
    d->kind = DATA_TOKENS;
    d->entropy_rate = entropy_rate(g);
    if ((rc = make_tokenizer(g, &d->tokenizer, err))
        || (rc = data_encode_packed(d->tokenizer, text, size, "language", &at, &n, &bytes, err))
        || (rc = data_own(d, at, size, err)))
        return rc;
    d->vocab = d->tokenizer->n;
    data_split_tokens(d, at, n, bytes, o->val_fraction, o->test_fraction);
    return AG_OK;
}
