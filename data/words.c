/*
 * words.c -- the tokenizer of words: the most frequent ones of a text, in order of their bytes, so
 * that a word is found by halving.  Why not in order of frequency: the order has no meaning to a
 * model, and one that follows from the words alone needs no second table.
 */
#include "data/internal.h"
#include <stdlib.h>
#include <string.h>

enum { RESERVED = DATA_UNKNOWN + 1, MOST_WORDS = 1 << 24 };

typedef struct span { const char *at; size_t n; int64_t count; } span;

static bool is_blank(unsigned char c) { return c <= ' ' || c == 127; }

static bool is_letter(unsigned char c)
{
    return c >= 128 || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

size_t data_word_next(const char **p, const char *end, const char **ret_word)
{
    const char *at = *p;
    while (at < end && is_blank((unsigned char)*at))
        at++;
    *ret_word = at;
    if (at < end && !is_letter((unsigned char)*at))
        at++;
    else
        while (at < end && is_letter((unsigned char)*at))
            at++;
    *p = at;
    return (size_t)(at - *ret_word);
}

static int compare(const char *a, size_t n, const char *b, size_t m)
{
    const int order = memcmp(a, b, n < m ? n : m);
    return order ? order : (n > m) - (n < m);
}

static int by_bytes(const void *a, const void *b)
{
    const span *x = a, *y = b;
    return compare(x->at, x->n, y->at, y->n);
}

static int by_count(const void *a, const void *b)
{
    const span *x = a, *y = b;
    return x->count != y->count ? (x->count < y->count) - (x->count > y->count) : by_bytes(a, b);
}

/* All words of a text in list (malloc), each once, with how often it is there. */
static int count_words(const char *text, size_t size, const char *name, span **ret_list,
                       size_t *ret_n, ag_err *err)
{
    const char *p = text, *word;
    size_t all = 0, n = 0;
    for (size_t m; (m = data_word_next(&p, text + size, &word));)
        all++;
    span *list = malloc((all ? all : 1) * sizeof *list);
    if (!list)
        return ag_err_set(err, AG_ENOMEM, "no memory for the %zu words of '%s'", all, name);
    p = text;
    for (size_t i = 0; i < all; i++) {
        const size_t m = data_word_next(&p, text + size, &word);
        list[i] = (span){word, m, 1};
    }
    qsort(list, all, sizeof *list, by_bytes);
    for (size_t i = 0; i < all; i++) {
        if (n && by_bytes(&list[n - 1], &list[i]) == 0)
            list[n - 1].count++;
        else
            list[n++] = list[i];
    }
    *ret_list = list;
    *ret_n = n;
    return AG_OK;
}

/* A tokenizer of n words in order. */
static int words_new(const span *list, size_t n, data_tokenizer **ret_tok, ag_err *err)
{
    size_t bytes = 0;
    data_tokenizer *t = NULL;
    int rc = data_tokenizer_new(DATA_TOKENIZER_WORD, n + RESERVED, &t, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < n; i++)
        bytes += list[i].n + 1;
    t->reserved = RESERVED;
    t->word = malloc(n * sizeof *t->word + bytes + 1);
    if (!t->word) {
        data_tokenizer_free(t);
        return ag_err_set(err, AG_ENOMEM, "no memory for %zu words", n);
    }
    char *at = (char *)(t->word + n);
    for (size_t i = 0; i < n; i++) {
        t->word[i] = memcpy(at, list[i].at, list[i].n);
        at[list[i].n] = '\0';
        at += list[i].n + 1;
    }
    *ret_tok = t;
    return AG_OK;
}

int data_tokenizer_words(const char *text, size_t size, int64_t limit, const char *name,
                         data_tokenizer **ret_tok, ag_err *err)
{
    span *list;
    size_t n;
    if (limit && limit <= RESERVED)
        return ag_err_set(err, AG_ECONFIG, "data.vocab: a vocabulary of %lld tokens has no word, as"
                          " %d are reserved", (long long)limit, RESERVED);
    int rc = count_words(text, size, name, &list, &n, err);
    if (rc)
        return rc;
    const size_t most = limit ? (size_t)(limit - RESERVED) : MOST_WORDS;
    if (n > most) {
        qsort(list, n, sizeof *list, by_count);
        n = most;
        qsort(list, n, sizeof *list, by_bytes);
    }
    rc = words_new(list, n, ret_tok, err);
    free(list);
    return rc;
}

int data_tokenizer_load_words(const uint8_t *bytes, size_t size, uint32_t n,
                              data_tokenizer **ret_tok, ag_err *err)
{
    const char *p = (const char *)bytes, *end = p + size;
    const size_t words = n < RESERVED || n - RESERVED > size ? 0 : n - RESERVED;
    span *list = malloc((words + 1) * sizeof *list);
    size_t k = 0;
    if (!list)
        return ag_err_set(err, AG_ENOMEM, "no memory for a tokenizer of %u words", n);
    for (; k < words && p < end; k++) {
        list[k] = (span){p, strnlen(p, (size_t)(end - p)), 0};
        p += list[k].n + 1;
        const char *whole = list[k].at, *word;
        const bool one = data_word_next(&whole, list[k].at + list[k].n, &word) == list[k].n;
        if (!one || list[k].n == 0 || (k && by_bytes(&list[k - 1], &list[k]) >= 0))
            break;
    }
    const bool fine = n >= RESERVED && k == n - RESERVED && p == end;
    const int rc = fine ? words_new(list, k, ret_tok, err)
                        : ag_err_set(err, AG_EINPUT, "the tokenizer is damaged: word %zu of %u in"
                                     " %zu bytes", k, n, size);
    free(list);
    return rc;
}

int32_t data_word_token(const data_tokenizer *tok, const char *word, size_t n)
{
    int32_t lo = 0, hi = tok->n - tok->reserved;
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo) / 2;
        const int order = compare(tok->word[mid], strlen(tok->word[mid]), word, n);
        if (order == 0)
            return mid + tok->reserved;
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return DATA_UNKNOWN;
}

/* What stands for a token in a text; "" for what is no text. */
static const char *text_of(const data_tokenizer *tok, int32_t token)
{
    return token >= tok->reserved ? tok->word[token - tok->reserved]
           : token == DATA_UNKNOWN ? "\xEF\xBF\xBD" : "";
}

int data_decode_words(const data_tokenizer *tok, const int32_t *tokens, int64_t n, char **ret_text,
                      size_t *ret_size, ag_err *err)
{
    size_t size = 0;
    for (int64_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= tok->n)
            return ag_err_set(err, AG_EINPUT, "token %d at %lld is outside the vocabulary of %d",
                              tokens[i], (long long)i, tok->n);
        size += strlen(text_of(tok, tokens[i])) + 1;
    }
    char *out = malloc(size + 1), *at = out;
    if (!out)
        return ag_err_set(err, AG_ENOMEM, "no memory for a text of %lld tokens", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        const char *text = text_of(tok, tokens[i]);
        const size_t length = strlen(text);
        if (length && at > out)
            *at++ = ' ';
        memcpy(at, text, length);
        at += length;
    }
    *at = '\0';
    *ret_text = out;
    *ret_size = (size_t)(at - out);
    return AG_OK;
}
