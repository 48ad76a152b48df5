/*
 * tokenizer.c -- see tokenizer.h.
 */
#include "data/internal.h"
#include <stdlib.h>
#include <string.h>

enum { CODE_POINTS = 0x110000 };

int data_utf8_next(const unsigned char *p, const unsigned char *end, uint32_t *ret_code_point)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const int n = *p < 0x80 ? 1 : *p >= 0xC2 && *p < 0xE0 ? 2 : (*p & 0xF0) == 0xE0 ? 3
                : *p >= 0xF0 && *p < 0xF5 ? 4 : 0;
    if (n == 0 || end - p < n)
        return 0;
    uint32_t c = n == 1 ? *p : *p & (0x7Fu >> n);
    for (int i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3Fu);
    }
    if (c < least[n] || c >= CODE_POINTS || (c >= 0xD800 && c < 0xE000))
        return 0;
    *ret_code_point = c;
    return n;
}

static size_t utf8_put(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    const int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)((0xF00u >> n & 0xFF) | c);
    return (size_t)n;
}

static int bad_utf8(const unsigned char *p, size_t at, const char *name, ag_err *err)
{
    return ag_err_set(err, AG_EINPUT,
                      "'%s' is not UTF-8: byte 0x%02X at offset %zu; use the byte tokenizer"
                      " (data.tokenizer=byte) or convert the file",
                      name, *p, at);
}

int data_tokenizer_new(data_tokenizer_kind kind, size_t n, data_tokenizer **ret_tok, ag_err *err)
{
    data_tokenizer *t = calloc(1, sizeof *t);
    if (t && kind == DATA_TOKENIZER_CHAR) {
        t->code_point = calloc(n ? n : 1, sizeof *t->code_point);
        t->by_code_point = calloc(n ? n : 1, sizeof *t->by_code_point);
    }
    if (!t || (kind == DATA_TOKENIZER_CHAR && (!t->code_point || !t->by_code_point))) {
        data_tokenizer_free(t);
        return ag_err_set(err, AG_ENOMEM, "no memory for a tokenizer of %zu tokens", n);
    }
    t->kind = kind;
    t->n = (int32_t)n;
    memset(t->ascii, -1, sizeof t->ascii);
    *ret_tok = t;
    return AG_OK;
}

int data_tokenizer_bytes(data_tokenizer **ret_tok, ag_err *err)
{
    return data_tokenizer_new(DATA_TOKENIZER_BYTE, 256, ret_tok, err);
}

static int ascending(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Fills what finds the token of a code point. */
static int index_chars(data_tokenizer *t, ag_err *err)
{
    const size_t n = (size_t)t->n;
    uint64_t *both = malloc(n * sizeof *both);       /* code point, token */
    int rc = AG_OK;
    if (!both)
        return ag_err_set(err, AG_ENOMEM, "no memory for a tokenizer of %zu tokens", n);
    for (size_t i = 0; i < n; i++)
        both[i] = (uint64_t)t->code_point[i] << 32 | i;
    qsort(both, n, sizeof *both, ascending);
    for (size_t i = 0; i < n && rc == AG_OK; i++) {
        const uint32_t c = (uint32_t)(both[i] >> 32);
        t->by_code_point[i] = (int32_t)both[i];
        if (c < 128)
            t->ascii[c] = (int32_t)both[i];
        if (i > 0 && c == both[i - 1] >> 32)
            rc = ag_err_set(err, AG_EINPUT, "the tokenizer is damaged: U+%04X is entry %u and"
                            " entry %u", c, (uint32_t)both[i - 1], (uint32_t)both[i]);
    }
    free(both);
    return rc;
}

int data_tokenizer_chars(const uint32_t *code_point, size_t n, data_tokenizer **ret_tok,
                         ag_err *err)
{
    if (n == 0 || n > CODE_POINTS)
        return ag_err_set(err, AG_EINPUT, "a character tokenizer cannot have %zu characters", n);
    for (size_t i = 0; i < n; i++) {
        const uint32_t c = code_point[i];
        if (c >= CODE_POINTS || (c >= 0xD800 && c < 0xE000))
            return ag_err_set(err, AG_EINPUT,
                              "the tokenizer is damaged: entry %zu is U+%04X, no character", i, c);
    }
    data_tokenizer *t = NULL;
    int rc = data_tokenizer_new(DATA_TOKENIZER_CHAR, n, &t, err);
    if (rc)
        return rc;
    memcpy(t->code_point, code_point, n * sizeof *code_point);
    rc = index_chars(t, err);
    if (rc) {
        data_tokenizer_free(t);
        return rc;
    }
    *ret_tok = t;
    return AG_OK;
}

int data_tokenizer_train(const char *text, size_t size, const char *name, data_tokenizer **ret_tok,
                         ag_err *err)
{
    const unsigned char *begin = (const unsigned char *)text, *end = begin + size;
    uint8_t *seen = calloc(CODE_POINTS / 8, 1);
    uint32_t *list = NULL;
    size_t n = 0;
    if (!seen)
        return ag_err_set(err, AG_ENOMEM, "no memory for the characters of '%s'", name);
    for (const unsigned char *p = begin; p < end;) {
        uint32_t c;
        const int step = data_utf8_next(p, end, &c);
        if (step == 0) {
            free(seen);
            return bad_utf8(p, (size_t)(p - begin), name, err);
        }
        n += !(seen[c / 8] >> c % 8 & 1);
        seen[c / 8] |= (uint8_t)(1u << c % 8);
        p += step;
    }
    int rc = AG_ENOMEM;
    if ((list = malloc((n ? n : 1) * sizeof *list))) {
        n = 0;
        for (uint32_t c = 0; c < CODE_POINTS; c++)
            if (seen[c / 8] >> c % 8 & 1)
                list[n++] = c;
        rc = data_tokenizer_chars(list, n, ret_tok, err);
    } else {
        ag_err_set(err, rc, "no memory for the characters of '%s'", name);
    }
    free(list);
    free(seen);
    return rc;
}

void data_tokenizer_reserve(data_tokenizer *tok)
{
    tok->reserved = DATA_END + 1;
    tok->n += tok->reserved;
    for (int i = 0; i < 128; i++)
        tok->ascii[i] += tok->ascii[i] >= 0 ? tok->reserved : 0;
}

int data_tokenizer_copy(const data_tokenizer *tok, data_tokenizer **ret_tok, ag_err *err)
{
    uint8_t *bytes;
    size_t size;
    int rc = data_tokenizer_save(tok, &bytes, &size, err);
    if (rc)
        return rc;
    rc = data_tokenizer_load(bytes, size, ret_tok, err);
    free(bytes);
    return rc;
}

void data_tokenizer_free(data_tokenizer *tok)
{
    if (tok) {
        free(tok->code_point);
        free(tok->by_code_point);
        free(tok->word);
    }
    free(tok);
}

const char *data_tokenizer_name(const data_tokenizer *tok)
{
    return tok->kind == DATA_TOKENIZER_BYTE ? "byte"
           : tok->kind == DATA_TOKENIZER_CHAR ? "char" : "word";
}

static void put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

int data_tokenizer_save(const data_tokenizer *tok, uint8_t **ret_bytes, size_t *ret_size,
                        ag_err *err)
{
    const bool words = tok->kind == DATA_TOKENIZER_WORD;
    const size_t n = tok->kind == DATA_TOKENIZER_BYTE ? 0 : (size_t)(tok->n - tok->reserved);
    const size_t text = words && n ? (size_t)(tok->word[n - 1] - tok->word[0])
                                     + strlen(tok->word[n - 1]) + 1 : 0;
    const size_t size = 8 + (words ? text : 4 * n);
    uint8_t *b = malloc(size);
    if (!b)
        return ag_err_set(err, AG_ENOMEM, "no memory for %zu bytes of tokenizer", size);
    put_u32(b, (uint32_t)tok->kind + (words ? 0 : (uint32_t)tok->reserved << 8));
    put_u32(b + 4, (uint32_t)tok->n);
    for (size_t i = 0; i < n && !words; i++)
        put_u32(b + 8 + 4 * i, tok->code_point[i]);
    if (text)
        memcpy(b + 8, tok->word[0], text);
    *ret_bytes = b;
    *ret_size = size;
    return AG_OK;
}

static int load_chars(const uint8_t *bytes, uint32_t n, data_tokenizer **ret_tok, ag_err *err)
{
    uint32_t *list = malloc((n ? n : 1) * sizeof *list);
    if (!list)
        return ag_err_set(err, AG_ENOMEM, "no memory for a tokenizer of %u tokens", n);
    for (uint32_t i = 0; i < n; i++)
        list[i] = get_u32(bytes + 4 * (size_t)i);
    const int rc = data_tokenizer_chars(list, n, ret_tok, err);
    free(list);
    return rc;
}

int data_tokenizer_load(const uint8_t *bytes, size_t size, data_tokenizer **ret_tok, ag_err *err)
{
    const uint32_t form = size >= 8 ? get_u32(bytes) : 0, all = size >= 8 ? get_u32(bytes + 4) : 0;
    const uint32_t kind = form & 0xFF, reserved = form >> 8, n = all - reserved;
    if (kind == DATA_TOKENIZER_WORD && !reserved)
        return data_tokenizer_load_words(bytes + 8, size - 8, all, ret_tok, err);
    const bool known = all >= reserved && (reserved == 0 || reserved == DATA_END + 1);
    int rc;
    if (known && kind == DATA_TOKENIZER_BYTE && n == 256 && size == 8)
        rc = data_tokenizer_bytes(ret_tok, err);
    else if (known && kind == DATA_TOKENIZER_CHAR && n <= CODE_POINTS && size == 8 + 4 * (size_t)n)
        rc = load_chars(bytes + 8, n, ret_tok, err);
    else
        return ag_err_set(err, AG_EINPUT,
                          "the tokenizer is damaged: kind %u, %u tokens in %zu bytes", form, all,
                          size);
    if (rc == AG_OK && reserved)
        data_tokenizer_reserve(*ret_tok);
    return rc;
}

static int32_t token_of(const data_tokenizer *tok, uint32_t c)
{
    if (c < 128)
        return tok->ascii[c];
    const int32_t *const by = tok->by_code_point, n = tok->n - tok->reserved;
    int32_t lo = 0, hi = n;
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (tok->code_point[by[mid]] < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && tok->code_point[by[lo]] == c ? by[lo] + tok->reserved : -1;
}

static int no_token(const unsigned char *text, const unsigned char *p, int step, uint32_t c,
                    const char *name, ag_err *err)
{
    size_t line = 1, col = 1;
    for (const unsigned char *q = text; q < p; q++) {
        col = *q == '\n' ? 1 : col + ((*q & 0xC0) != 0x80);
        line += *q == '\n';
    }
    return ag_err_set(
        err, AG_EINPUT,
        "%s:%zu:%zu: the tokenizer has no token for '%.*s' (U+%04X): leave the"
        " character out, or train with a text that has it or with data.tokenizer=byte",
        name, line, col, c < 32 ? 0 : step, (const char *)p, c);
}

static int64_t encode_words(const data_tokenizer *tok, const char *at, const char *end, int bytes,
                            void *out)
{
    const char *word;
    int64_t n = 0;
    for (size_t size; (size = data_word_next(&at, end, &word)); n++)
        data_put_token(out, bytes, n, data_word_token(tok, word, size));
    return n;
}

/* Tokens of text[at .. size), of the given width, into out, which has room for size - at. */
static int encode(const data_tokenizer *tok, const char *text, size_t at, size_t size,
                  const char *name, int bytes, void *out, int64_t *ret_n, ag_err *err)
{
    const unsigned char *begin = (const unsigned char *)text, *end = begin + size;
    int64_t n = 0;
    if (tok->kind == DATA_TOKENIZER_WORD) {
        *ret_n = encode_words(tok, text + at, text + size, bytes, out);
        return AG_OK;
    }
    for (const unsigned char *p = begin + at; p < end; n++) {
        uint32_t c = *p;
        const int step = tok->kind == DATA_TOKENIZER_BYTE ? 1 : data_utf8_next(p, end, &c);
        if (step == 0)
            return bad_utf8(p, (size_t)(p - begin), name, err);
        const int32_t t = tok->kind == DATA_TOKENIZER_BYTE ? (int32_t)c + tok->reserved
                                                           : token_of(tok, c);
        if (t < 0)
            return no_token(begin, p, step, c, name, err);
        data_put_token(out, bytes, n, t);
        p += step;
    }
    *ret_n = n;
    return AG_OK;
}

static int encode_new(const data_tokenizer *tok, const char *text, size_t size, const char *name,
                      int bytes, void **ret_at, int64_t *ret_n, ag_err *err)
{
    void *out = size < SIZE_MAX / 8 ? malloc(((size ? size : 1)) * (size_t)bytes) : NULL;
    if (!out)
        return ag_err_set(err, AG_ENOMEM, "no memory for the tokens of '%s' (%zu bytes of text)",
                          name, size);
    const int rc = encode(tok, text, 0, size, name, bytes, out, ret_n, err);
    if (rc) {
        free(out);
        return rc;
    }
    *ret_at = out;
    return AG_OK;
}

int data_encode_part(const data_tokenizer *tok, const char *begin, const char *at, const char *end,
                     const char *name, int32_t *out, int64_t *ret_n, ag_err *err)
{
    return encode(tok, begin, (size_t)(at - begin), (size_t)(end - begin), name, sizeof *out, out,
                  ret_n, err);
}

int data_encode(const data_tokenizer *tok, const char *text, size_t size, const char *name,
                int32_t **ret_tokens, int64_t *ret_n, ag_err *err)
{
    void *at = NULL;
    const int rc = encode_new(tok, text, size, name, 4, &at, ret_n, err);
    if (rc == AG_OK)
        *ret_tokens = at;
    return rc;
}

int data_encode_packed(const data_tokenizer *tok, const char *text, size_t size, const char *name,
                       void **ret_at, int64_t *ret_n, int *ret_bytes, ag_err *err)
{
    const int bytes = data_token_bytes(tok->n);
    const int rc = encode_new(tok, text, size, name, bytes, ret_at, ret_n, err);
    if (rc == AG_OK)
        *ret_bytes = bytes;
    return rc;
}

int data_decode(const data_tokenizer *tok, const int32_t *tokens, int64_t n, char **ret_text,
                size_t *ret_size, ag_err *err)
{
    if (tok->kind == DATA_TOKENIZER_WORD)
        return data_decode_words(tok, tokens, n, ret_text, ret_size, err);
    char *out = n >= 0 && (uint64_t)n < SIZE_MAX / 8 ? malloc((size_t)n * 4 + 1) : NULL;
    size_t size = 0;
    if (!out)
        return ag_err_set(err, AG_ENOMEM, "no memory for a text of %lld tokens", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= tok->n) {
            free(out);
            return ag_err_set(err, AG_EINPUT, "token %d at %lld is outside the vocabulary of %d",
                              tokens[i], (long long)i, tok->n);
        }
        const int32_t t = tokens[i] - tok->reserved;
        if (t < 0)
            continue;
        if (tok->kind == DATA_TOKENIZER_BYTE)
            out[size++] = (char)t;
        else
            size += utf8_put(tok->code_point[t], out + size);
    }
    out[size] = '\0';
    *ret_text = out;
    *ret_size = size;
    return AG_OK;
}
