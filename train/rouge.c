#include "train/rouge.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct word { const char *at; size_t n; } word;

typedef struct text {
    const char *at;
    word    *word;                   /* [n] */
    int32_t *id;                     /* [n], the same for the same word of both texts */
    int64_t *sentence;               /* [n_sentences + 1]: where each begins, among the words */
    int64_t  n, n_sentences;
} text;

/* --- words and sentences ---------------------------------------------------------------------- */

static bool is_word(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool ends_sentence(const char *p)
{
    return *p == '\n' || ((*p == '.' || *p == '!' || *p == '?') && (p[1] == ' ' || p[1] == '\t'));
}

static int text_read(text *t, const char *at)
{
    const size_t most = strlen(at) + 2;
    *t = (text){ .at = at, .word = malloc(most * sizeof *t->word),
                 .id = malloc(most * sizeof *t->id),
                 .sentence = malloc(most * sizeof *t->sentence) };
    if (!t->word || !t->id || !t->sentence) return AG_ENOMEM;
    t->sentence[0] = 0;
    for (const char *p = at; *p;) {
        if (is_word(*p)) {
            const char *begin = p;
            while (is_word(*p)) p++;
            t->word[t->n++] = (word){ begin, (size_t)(p - begin) };
            continue;
        }
        if (ends_sentence(p) && t->n > t->sentence[t->n_sentences])
            t->sentence[++t->n_sentences] = t->n;
        p++;
    }
    if (t->n > t->sentence[t->n_sentences]) t->sentence[++t->n_sentences] = t->n;
    return AG_OK;
}

static void text_release(text *t)
{
    free(t->word);
    free(t->id);
    free(t->sentence);
}

static int lower(char c) { return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c; }

static int by_letters(const void *a, const void *b)
{
    const word *x = a, *y = b;
    for (size_t i = 0; i < x->n && i < y->n; i++)
        if (lower(x->at[i]) != lower(y->at[i])) return lower(x->at[i]) - lower(y->at[i]);
    return (x->n > y->n) - (x->n < y->n);
}

/* Numbers the words of both texts; *ret_kinds: how many different ones there are. */
static int number_words(text *a, text *b, int64_t *ret_kinds)
{
    const int64_t n = a->n + b->n;
    int64_t kinds = 0;
    word *all = malloc((size_t)(n + 1) * sizeof *all);
    if (!all) return AG_ENOMEM;
    memcpy(all, a->word, (size_t)a->n * sizeof *all);
    memcpy(all + a->n, b->word, (size_t)b->n * sizeof *all);
    qsort(all, (size_t)n, sizeof *all, by_letters);
    for (int64_t i = 0; i < n; i++)
        if (kinds == 0 || by_letters(&all[kinds - 1], &all[i])) all[kinds++] = all[i];
    for (int k = 0; k < 2; k++) {
        text *t = k ? b : a;
        for (int64_t i = 0; i < t->n; i++) {
            const word *at = bsearch(&t->word[i], all, (size_t)kinds, sizeof *all, by_letters);
            t->id[i] = (int32_t)(at - all);
        }
    }
    free(all);
    *ret_kinds = kinds;
    return AG_OK;
}

static train_rouge_score score(int64_t hits, int64_t candidate, int64_t reference)
{
    train_rouge_score s = { candidate > 0 ? (double)hits / (double)candidate : 0,
                            reference > 0 ? (double)hits / (double)reference : 0, 0 };
    if (hits > 0) s.f1 = 2 * s.precision * s.recall / (s.precision + s.recall);
    return s;
}

/* --- n-grams ---------------------------------------------------------------------------------- */

/* A single word is its number, two are both numbers in one. */
static int64_t grams(const text *t, int n, int64_t *ret_gram)
{
    const int64_t count = t->n - n + 1 > 0 ? t->n - n + 1 : 0;
    for (int64_t i = 0; i < count; i++)
        ret_gram[i] = n == 1 ? t->id[i] : (int64_t)t->id[i] << 32 | t->id[i + 1];
    return count;
}

static int by_value(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int rouge_n(const text *c, const text *r, int n, train_rouge_score *ret)
{
    int64_t *a = malloc((size_t)(c->n + r->n + 1) * sizeof *a), hits = 0;
    if (!a) return AG_ENOMEM;
    const int64_t na = grams(c, n, a);
    int64_t *b = a + na;
    const int64_t nb = grams(r, n, b);
    qsort(a, (size_t)na, sizeof *a, by_value);
    qsort(b, (size_t)nb, sizeof *b, by_value);
    for (int64_t i = 0, j = 0; i < na && j < nb;) {
        hits += a[i] == b[j];
        const bool left = a[i] <= b[j], right = b[j] <= a[i];
        i += left;
        j += right;
    }
    *ret = score(hits, na, nb);
    free(a);
    return AG_OK;
}

/* --- longest common subsequences -------------------------------------------------------------- */

/* Row [m + 1] by row: longest[j] of what was seen of a and the first j of b. */
static int64_t common(const int32_t *a, int64_t n, const int32_t *b, int64_t m, int32_t *longest)
{
    memset(longest, 0, (size_t)(m + 1) * sizeof *longest);
    for (int64_t i = 0; i < n; i++) {
        int32_t corner = 0;          /* of the row before, one to the left */
        for (int64_t j = 0; j < m; j++) {
            const int32_t above = longest[j + 1];
            longest[j + 1] = a[i] == b[j] ? corner + 1 : above > longest[j] ? above : longest[j];
            corner = above;
        }
    }
    return longest[m];
}

static int rouge_l(const text *c, const text *r, train_rouge_score *ret)
{
    int32_t *longest = malloc((size_t)(c->n + 1) * sizeof *longest);
    if (!longest) return AG_ENOMEM;
    *ret = score(common(r->id, r->n, c->id, c->n, longest), c->n, r->n);
    free(longest);
    return AG_OK;
}

/* Marks in hit[n] the words of a that a longest common subsequence with b has; table
 * [n + 1, m + 1]. */
static void mark_common(const int32_t *a, int64_t n, const int32_t *b, int64_t m, int32_t *table,
                        bool *hit)
{
    const int64_t w = m + 1;
    memset(table, 0, (size_t)w * sizeof *table);
    for (int64_t i = 1; i <= n; i++) {
        int32_t *row = table + i * w;
        const int32_t *above = row - w;
        row[0] = 0;
        for (int64_t j = 1; j <= m; j++)
            row[j] = a[i - 1] == b[j - 1] ? above[j - 1] + 1
                     : above[j] > row[j - 1] ? above[j] : row[j - 1];
    }
    for (int64_t i = n, j = m; i > 0 && j > 0;) {
        if (a[i - 1] == b[j - 1]) {
            hit[i - 1] = true;
            i--;
            j--;
        } else if (table[i * w + j - 1] > table[(i - 1) * w + j]) {
            j--;
        } else {
            i--;
        }
    }
}

static int64_t longest_sentence(const text *t)
{
    int64_t most = 0;
    for (int64_t i = 0; i < t->n_sentences; i++) {
        const int64_t n = t->sentence[i + 1] - t->sentence[i];
        most = n > most ? n : most;
    }
    return most;
}

static int rouge_lsum(const text *c, const text *r, int64_t kinds, train_rouge_score *ret)
{
    const size_t cells = (size_t)((longest_sentence(r) + 1) * (longest_sentence(c) + 1));
    int32_t *table = malloc(cells * sizeof *table);
    int64_t *left = calloc((size_t)(kinds + 1), sizeof *left), hits = 0;
    bool *hit = calloc((size_t)(r->n + 1), sizeof *hit);
    if (!table || !left || !hit) {
        free(table);
        free(left);
        free(hit);
        return AG_ENOMEM;
    }
    for (int64_t i = 0; i < c->n; i++) left[c->id[i]]++;
    for (int64_t i = 0; i < r->n_sentences; i++)
        for (int64_t j = 0; j < c->n_sentences; j++)
            mark_common(r->id + r->sentence[i], r->sentence[i + 1] - r->sentence[i],
                        c->id + c->sentence[j], c->sentence[j + 1] - c->sentence[j], table,
                        hit + r->sentence[i]);
    for (int64_t i = 0; i < r->n; i++) {
        if (!hit[i] || left[r->id[i]] == 0) continue;
        left[r->id[i]]--;            /* a word of the candidate counts once */
        hits++;
    }
    *ret = score(hits, c->n, r->n);
    free(table);
    free(left);
    free(hit);
    return AG_OK;
}

int train_rouge_of(const char *candidate, const char *reference, train_rouge *ret_rouge,
                   ag_err *err)
{
    text c = { 0 }, r = { 0 };
    train_rouge all;
    int64_t kinds = 0;
    int code = text_read(&c, candidate);
    if (code == AG_OK) code = text_read(&r, reference);
    if (code == AG_OK) code = number_words(&c, &r, &kinds);
    if (code == AG_OK) code = rouge_n(&c, &r, 1, &all.n1);
    if (code == AG_OK) code = rouge_n(&c, &r, 2, &all.n2);
    if (code == AG_OK) code = rouge_l(&c, &r, &all.l);
    if (code == AG_OK) code = rouge_lsum(&c, &r, kinds, &all.lsum);
    text_release(&c);
    text_release(&r);
    if (code < 0) return ag_err_set(err, code, "out of memory for the words of two texts");
    *ret_rouge = all;
    return AG_OK;
}
