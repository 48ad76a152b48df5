/*
 * text.c -- a text file, plain or gzip, as characters or bytes.
 *
 * The parts are nanoGPT's: the first int(n * 0.9) tokens train, the rest validates; enwik8 is cut
 * 90 / 5 / 5 as everywhere (90 M, 5 M and 5 M bytes of the whole file).  Any text has a test part
 * with data_options.test_fraction.
 */
#include "data/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int choose_tokenizer(const data_options *o, const data_bytes *b, const char *path,
                            data_set *d, ag_err *err)
{
    const bool named = o->tokenizer && *o->tokenizer;
    const bool bytes = named ? !strcmp(o->tokenizer, "byte") : !strcmp(d->name, "enwik8");
    if (o->known && o->known->kind == DATA_TOKENIZER_CHAR)
        return data_tokenizer_chars(o->known->code_point, (size_t)o->known->n, &d->tokenizer, err);
    if (o->known || bytes)
        return data_tokenizer_bytes(&d->tokenizer, err);
    const char *text = (const char *)b->at, *order = o->token_order ? o->token_order : "";
    const int rc = data_tokenizer_train(text, b->size, path, &d->tokenizer, err);
    if (rc == AG_OK && !strcmp(order, "frequency"))
        return data_tokenizer_by_frequency(&d->tokenizer, text, b->size, err);
    if (rc == AG_OK && !strcmp(order, "shuffled"))
        return data_tokenizer_shuffled(&d->tokenizer, o->seed, err);
    return rc;
}

/* Takes b over: bytes are tokens as they lie, characters are encoded. */
static int tokens_of(data_bytes *b, const char *path, data_set *d, const void **ret_at,
                     int64_t *ret_n, int *ret_bytes, ag_err *err)
{
    if (d->tokenizer->kind == DATA_TOKENIZER_CHAR) {
        void *at;
        const int rc = data_encode_packed(d->tokenizer, (const char *)b->at, b->size, path, &at,
                                          ret_n, ret_bytes, err);
        if (rc)
            return rc;
        *ret_at = at;
        return data_own(d, at, (size_t)(*ret_n * *ret_bytes), err);
    }
    *ret_at = b->at;
    *ret_n = (int64_t)b->size;
    *ret_bytes = 1;
    if (b->unpacked) {
        void *p = b->unpacked;
        b->unpacked = NULL;
        return data_own(d, p, b->size, err);
    }
    d->map = b->map;
    memset(&b->map, 0, sizeof b->map);
    return AG_OK;
}

int data_open_text(const data_options *o, const char *path, data_set *d, ag_err *err)
{
    const bool enwik8 = !strcmp(d->name, "enwik8");
    data_bytes b;
    const void *at;
    int64_t n;
    int bytes, rc = data_bytes_load(path, &b, err);
    if (rc)
        return rc;
    d->kind = DATA_TOKENS;
    if (b.size == 0)
        rc = ag_err_set(err, AG_EINPUT, "'%s' is empty: there is nothing to learn from", path);
    if (rc == AG_OK)
        rc = choose_tokenizer(o, &b, path, d, err);
    if (rc == AG_OK)
        rc = tokens_of(&b, path, d, &at, &n, &bytes, err);
    data_bytes_release(&b);
    if (rc)
        return rc;
    d->vocab = d->tokenizer->n;
    if (enwik8)
        data_split_tokens(d, at, n, bytes, 0.05, 0.05);
    else
        data_split_tokens(d, at, n, bytes, o->val_fraction, o->test_fraction);
    return data_add_file(d, path, err);
}
