/*
 * token_order.c -- the tokens of characters in another order than that of their code points.
 */
#include "data/dice.h"
#include "data/internal.h"
#include <stdlib.h>

enum { SITE = AG_SITE_DATA + 4 };

typedef struct entry {
    int64_t count;
    int32_t token;
} entry;

static int no_memory(const data_tokenizer *t, ag_err *err)
{
    return ag_err_set(err, AG_ENOMEM, "no memory for a tokenizer of %d tokens", (int)t->n);
}

/* Token i becomes the character that was token from[i]. */
static int reorder(data_tokenizer **tok, const int32_t *from, ag_err *err)
{
    const size_t n = (size_t)(*tok)->n;
    data_tokenizer *other;
    uint32_t *c = malloc(n * sizeof *c);
    if (!c)
        return no_memory(*tok, err);
    for (size_t i = 0; i < n; i++)
        c[i] = (*tok)->code_point[from[i]];
    const int rc = data_tokenizer_chars(c, n, &other, err);
    free(c);
    if (rc)
        return rc;
    data_tokenizer_free(*tok);
    *tok = other;
    return AG_OK;
}

static int more_first(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    return x->count != y->count ? (x->count < y->count) - (x->count > y->count)
                                : x->token - y->token;
}

int data_tokenizer_by_frequency(data_tokenizer **tok, const char *text, size_t size, ag_err *err)
{
    const size_t n = (size_t)(*tok)->n;
    entry *e = calloc(n, sizeof *e);
    int32_t *from = malloc(n * sizeof *from), *tokens = NULL;
    int64_t n_tokens = 0;
    int rc = e && from ? data_encode(*tok, text, size, "text", &tokens, &n_tokens, err)
                       : no_memory(*tok, err);
    if (rc == AG_OK) {
        for (size_t i = 0; i < n; i++)
            e[i].token = (int32_t)i;
        for (int64_t i = 0; i < n_tokens; i++)
            e[tokens[i]].count++;
        qsort(e, n, sizeof *e, more_first);
        for (size_t i = 0; i < n; i++)
            from[i] = e[i].token;
        rc = reorder(tok, from, err);
    }
    free(e);
    free(from);
    free(tokens);
    return rc;
}

int data_tokenizer_shuffled(data_tokenizer **tok, uint64_t seed, ag_err *err)
{
    const int64_t n = (*tok)->n;
    data_dice dice = { .seed = seed, .site = SITE };
    int32_t *from = malloc((size_t)n * sizeof *from);
    if (!from)
        return no_memory(*tok, err);
    data_draw_some(&dice, from, n, n);
    const int rc = reorder(tok, from, err);
    free(from);
    return rc;
}
