/*
 * schema.c -- the table of keys and choices, and single values: from text, to text, compared.
 */
#include "train/schema.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIXED, FREE };

const train_key train_keys[TRAIN_KEYS] = {
#define BEGIN(path, name, help) {#path, TRAIN_GROUP, 0, "", "", "", true, help},
#define KEY(type, group, name, init, limits, unit, resume, help) \
    {#group "." #name, TRAIN_##type, offsetof(train_config, group.name), init, limits, unit, \
     resume == FREE, help},
#include "train/config.def"
};

const train_word train_words[TRAIN_CHOICES] = {
#define CHOICE(list, name, word, help) {#list, word, help},
#include "train/config.def"
};

static const struct { const char *word, *path; } aliases[] = {
#define ALIAS(word, key) {word, #key},
#include "train/config.def"
};

const char *train_choice_word(int choice) { return train_words[choice].word; }

/* ---- keys ---- */

int train_key_find(const char *path)
{
    for (int i = 0; i < TRAIN_KEYS; i++)
        if (strcmp(train_keys[i].path, path) == 0) return i;
    return -1;
}

const char *train_key_leaf(const train_key *k)
{
    const char *dot = strrchr(k->path, '.');
    return dot ? dot + 1 : k->path;
}

bool train_key_is_child(const train_key *k, const char *group)
{
    const size_t n = strlen(group);
    const size_t head = (size_t)(train_key_leaf(k) - k->path);
    return n == 0 ? head == 0 : head == n + 1 && strncmp(k->path, group, n) == 0;
}

/* Edits between two words, a swap of neighbours counting as one (optimal string alignment); words
 * longer than the table are far from everything. */
static int edit_distance(const char *a, const char *b)
{
    enum { MAX = 48 };
    int d[3][MAX + 1];
    const size_t m = strlen(a), n = strlen(b);
    if (m > MAX || n > MAX) return MAX;
    for (size_t j = 0; j <= n; j++) d[0][j] = (int)j;
    for (size_t i = 1; i <= m; i++) {
        int *now = d[i % 3], *was = d[(i + 2) % 3], *before = d[(i + 1) % 3];
        now[0] = (int)i;
        for (size_t j = 1; j <= n; j++) {
            int best = was[j - 1] + (a[i - 1] != b[j - 1]);
            if (was[j] + 1 < best) best = was[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            const bool swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swap && before[j - 2] + 1 < best) best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return d[m % 3][n];
}

/* The most edits that still look like a slip of the finger in this word. */
static int edit_limit(const char *word)
{
    const size_t n = strlen(word);
    return n < 3 ? 1 : n < 6 ? 2 : 3;
}

/* The key that somebody who wrote path may have meant, or NULL: a near miss in the same group, the
 * right name in another group, or another program's name for it. */
static const char *key_suggest(const char *path)
{
    const char *dot = strrchr(path, '.'), *leaf = dot ? dot + 1 : path, *found = NULL;
    const size_t head = (size_t)(leaf - path);
    int best = edit_limit(leaf) + 1;
    for (int i = 0; i < TRAIN_KEYS; i++) {
        const char *name = train_key_leaf(&train_keys[i]);
        const bool same = (size_t)(name - train_keys[i].path) == head &&
                          strncmp(train_keys[i].path, path, head) == 0;
        const int d = same ? edit_distance(leaf, name)
                           : strcmp(leaf, name) == 0 ? 1 : edit_distance(path, train_keys[i].path);
        if (d < best) best = d, found = train_keys[i].path;
    }
    for (size_t i = 0; !found && i < sizeof aliases / sizeof aliases[0]; i++)
        if (strcmp(aliases[i].word, leaf) == 0) found = aliases[i].path;
    return found;
}

void train_key_unknown(const char *path, train_fault *f)
{
    const char *dot = strrchr(path, '.'), *meant = key_suggest(path);
    char group[256] = "";
    if (dot && (size_t)(dot - path) < sizeof group) memcpy(group, path, (size_t)(dot - path));
    snprintf(f->what, sizeof f->what, "unknown key '%.*s'", 200, path);
    if (meant) {
        snprintf(f->hint, sizeof f->hint, "did you mean '%s'?", meant);
        return;
    }
    const int g = train_key_find(group);
    if (g < 0 || train_keys[g].type != TRAIN_GROUP) group[0] = 0;
    int used = snprintf(f->hint, sizeof f->hint, "%s%s: ", group[0] ? "keys of " : "groups", group);
    const char *gap = "";
    for (int i = 0; i < TRAIN_KEYS; i++) {
        if (!train_key_is_child(&train_keys[i], group)) continue;
        if (used < 0 || (size_t)used >= sizeof f->hint) break;
        used += snprintf(f->hint + used, sizeof f->hint - (size_t)used, "%s%s", gap,
                         train_key_leaf(&train_keys[i]));
        gap = ", ";
    }
}

static void list_words(const char *list, char *buf, size_t size)
{
    size_t used = 0;
    for (int i = 0; i < TRAIN_CHOICES && used < size; i++) {
        if (strcmp(train_words[i].list, list) != 0) continue;
        used += (size_t)snprintf(buf + used, size - used, "%s%s", used ? ", " : "",
                                 train_words[i].word);
    }
}

const char *train_key_noun(const train_key *k)
{
    static const char *const nouns[] = {"keys", "true or false", "an integer", "a number", "a text",
                                        "one of its choices"};
    return nouns[k->type];
}

void train_key_domain(const train_key *k, char *buf, size_t size)
{
    static const char *const nouns[] = {"group", "true or false", "integer in ", "number in ",
                                        "text", "one of: "};
    char words[512] = "";
    if (k->type == TRAIN_WORD) list_words(k->limits, words, sizeof words);
    const char *limits = k->type == TRAIN_WORD ? words : k->type == TRAIN_TEXT ? "" : k->limits;
    snprintf(buf, size, "%s%s%s%s", nouns[k->type], limits,
             k->unit[0] ? ", " : "", k->unit);
}

/* ---- from text ---- */

static bool complain(train_fault *f, const train_key *k, const char *text)
{
    const bool all = strlen(text) <= 60;
    snprintf(f->what, sizeof f->what, "%s expects %s, found %s%.*s%s", k->path,
             train_key_noun(k), !text[0] ? "nothing" : "'", 60, text,
             !text[0] ? "" : all ? "'" : "...'");
    return false;
}

/* Copies a number without its underscores, which must stand between digits. */
static bool strip_underscores(const char *text, char *buf, size_t size)
{
    size_t n = 0;
    for (const char *p = text; *p; p++) {
        const bool digits = p > text && p[-1] >= '0' && p[-1] <= '9' && p[1] >= '0' && p[1] <= '9';
        if (*p == '_' && digits) continue;
        if (!strchr("+-.0123456789eE", *p) || n + 1 >= size) return false;
        buf[n++] = *p;
    }
    buf[n] = 0;
    return n > 0 && strpbrk(buf, "0123456789") != NULL;
}

static bool parse_real(const char *text, double *ret)
{
    char buf[128], *end;
    if (!strip_underscores(text, buf, sizeof buf) || buf[0] == 'e' || buf[0] == 'E') return false;
    *ret = strtod(buf, &end);
    return *end == 0;
}

static bool parse_int(const char *text, int64_t *ret)
{
    char buf[128], *end;
    if (!strip_underscores(text, buf, sizeof buf) || strpbrk(buf, ".eE")) return false;
    errno = 0;
    const long long v = strtoll(buf, &end, 10);
    if (*end || errno) return false;
    *ret = v;
    return true;
}

/* The number that "64k" or "1.5M" stands for, or false. */
static bool parse_suffixed(const char *text, double *ret)
{
    char buf[64];
    const size_t n = strlen(text);
    if (n < 2 || n >= sizeof buf) return false;
    const char *hit = strchr("kKmMgG", text[n - 1]);
    memcpy(buf, text, n - 1);
    buf[n - 1] = 0;
    if (!hit || !parse_real(buf, ret)) return false;
    *ret *= (*hit | 32) == 'k' ? 1e3 : (*hit | 32) == 'm' ? 1e6 : 1e9;
    return true;
}

/* "[1, 64)": whether v lies in the interval. */
static bool in_interval(const char *limits, long double v)
{
    char *end;
    const long double lo = strtold(limits + 1, &end), hi = strtold(end + 1, &end);
    return (limits[0] == '[' ? v >= lo : v > lo) && (*end == ']' ? v <= hi : v < hi);
}

/* How to write a number that was meant, for "64k" and, where an integer is wanted, "1e4". */
static void hint_number(const train_key *k, const char *text, train_fault *f)
{
    double v;
    if (parse_suffixed(text, &v) && fabs(v) < 1e15)
        snprintf(f->hint, sizeof f->hint, "numbers take no suffix: write %.15g", v);
    else if (k->type == TRAIN_INT && parse_real(text, &v) && v == floor(v) && fabs(v) < 1e15)
        snprintf(f->hint, sizeof f->hint, "write %.0f", v);
    else
        snprintf(f->hint, sizeof f->hint, "range: %s", k->limits);
}

static bool set_number(const train_key *k, const char *text, void *field, train_fault *f)
{
    int64_t i = 0;
    double r = 0;
    const bool whole = k->type == TRAIN_INT;
    if (whole ? !parse_int(text, &i) : !parse_real(text, &r)) {
        double big;
        hint_number(k, text, f);
        if (whole && !strpbrk(text, ".eE") && parse_real(text, &big)) goto out_of_range;
        return complain(f, k, text);
    }
    if (!in_interval(k->limits, whole ? (long double)i : (long double)r)) goto out_of_range;
    if (whole) memcpy(field, &i, sizeof i);
    else memcpy(field, &r, sizeof r);
    return true;
out_of_range:
    snprintf(f->what, sizeof f->what, "%s = %.*s is out of range", k->path, 60, text);
    snprintf(f->hint, sizeof f->hint, "range: %s%s%s", k->limits, k->unit[0] ? " " : "", k->unit);
    return false;
}

static bool set_word(const train_key *k, const char *text, void *field, train_fault *f)
{
    const char *meant = NULL;
    int best = edit_limit(text) + 1;
    for (int i = 0; i < TRAIN_CHOICES; i++) {
        if (strcmp(train_words[i].list, k->limits) != 0) continue;
        const int d = edit_distance(text, train_words[i].word);
        if (d == 0) {
            memcpy(field, &i, sizeof i);
            return true;
        }
        if (d < best) best = d, meant = train_words[i].word;
    }
    char words[512] = "";
    list_words(k->limits, words, sizeof words);
    snprintf(f->hint, sizeof f->hint, "choices: %s%s%s%s", words, meant ? "; did you mean '" : "",
             meant ? meant : "", meant ? "'?" : "");
    return complain(f, k, text);
}

static bool set_text(const train_key *k, const char *text, char *field, train_fault *f)
{
    const size_t n = strlen(text);
    if (n >= TRAIN_TEXT_MAX) {
        snprintf(f->what, sizeof f->what, "%s is longer than %d bytes", k->path,
                 TRAIN_TEXT_MAX - 1);
        return false;
    }
    if (train_utf8_check(text, n) < n) {
        snprintf(f->what, sizeof f->what, "%s is not UTF-8", k->path);
        return false;
    }
    memset(field, 0, TRAIN_TEXT_MAX);
    memcpy(field, text, n);
    return true;
}

bool train_value_set(train_config *c, int key, const char *text, bool quoted, train_fault *f)
{
    const train_key *k = &train_keys[key];
    void *field = (char *)c + k->offset;
    f->what[0] = f->hint[0] = 0;
    if (quoted && (k->type == TRAIN_BOOL || k->type == TRAIN_INT || k->type == TRAIN_REAL)) {
        snprintf(f->what, sizeof f->what, "%s expects %s, found a quoted text", k->path,
                 train_key_noun(k));
        snprintf(f->hint, sizeof f->hint, "write it without quotes");
        return false;
    }
    switch (k->type) {
    case TRAIN_BOOL: {
        const bool yes = strcmp(text, "true") == 0;
        if (!yes && strcmp(text, "false") != 0) return complain(f, k, text);
        memcpy(field, &yes, sizeof yes);
        return true;
    }
    case TRAIN_INT:
    case TRAIN_REAL: return set_number(k, text, field, f);
    case TRAIN_WORD: return set_word(k, text, field, f);
    case TRAIN_TEXT: return set_text(k, text, field, f);
    case TRAIN_GROUP: break;
    }
    snprintf(f->what, sizeof f->what, "'%s' is a group of keys, not a key", k->path);
    return false;
}

/* ---- to text ---- */

/* The shortest decimal that reads back as the same bits. */
static void write_real(double v, char *buf, size_t size)
{
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(buf, size, "%.*g", digits, v);
        if (strtod(buf, NULL) == v) return;
    }
}

/* Characters that YAML would fold, refuse or hide stand as escapes. */
static void write_text(const char *text, char *buf)
{
    const size_t size = strlen(text);
    char *p = buf;
    *p++ = '"';
    for (size_t i = 0, n; i < size; i += n) {
        uint32_t u;
        n = train_utf8_next(text + i, size - i, &u);
        const bool hidden = u < 0x20 || (u >= 0x7f && u < 0xa0) || u == 0x2028 || u == 0x2029 ||
                            u == 0xfeff || u == 0xfffe || u == 0xffff;
        if (u == '"' || u == '\\') p += sprintf(p, "\\%c", (char)u);
        else if (u == '\n') p += sprintf(p, "\\n");
        else if (u == '\t') p += sprintf(p, "\\t");
        else if (hidden) p += sprintf(p, u < 0x100 ? "\\x%02x" : "\\u%04x", (unsigned)u);
        else memcpy(p, text + i, n), p += n;
    }
    *p++ = '"';
    *p = 0;
}

void train_value_text(const train_config *c, int key, char buf[TRAIN_VALUE_MAX])
{
    const void *field = (const char *)c + train_keys[key].offset;
    switch (train_keys[key].type) {
    case TRAIN_BOOL: strcpy(buf, *(const bool *)field ? "true" : "false"); break;
    case TRAIN_INT:  sprintf(buf, "%lld", (long long)*(const int64_t *)field); break;
    case TRAIN_REAL: write_real(*(const double *)field, buf, TRAIN_VALUE_MAX); break;
    case TRAIN_TEXT: write_text(field, buf); break;
    case TRAIN_WORD: strcpy(buf, train_words[*(const int *)field].word); break;
    case TRAIN_GROUP: buf[0] = 0; break;
    }
}

bool train_value_equal(const train_config *a, const train_config *b, int key)
{
    static const size_t sizes[] = {0, sizeof(bool), sizeof(int64_t), sizeof(double),
                                   TRAIN_TEXT_MAX, sizeof(int)};
    const train_key *k = &train_keys[key];
    return memcmp((const char *)a + k->offset, (const char *)b + k->offset, sizes[k->type]) == 0;
}

void train_value_origin(const train_config *c, int key, char *buf, size_t size)
{
    const train_origin *o = &c->origin[key];
    if (o->from == TRAIN_FROM_FILE) snprintf(buf, size, "%s:%d", c->file, o->line);
    else snprintf(buf, size, "%s", o->from == TRAIN_FROM_COMMAND ? "command line" : "default");
}

/* ---- UTF-8 (RFC 3629) ---- */

size_t train_utf8_next(const char *text, size_t size, uint32_t *ret_point)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)text;
    const size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc0 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    *ret_point = 0xfffd;
    if (n == 0 || n > size || s[0] > 0xf4) return 1;
    uint32_t u = n == 1 ? s[0] : s[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) return 1;
        u = u << 6 | (s[i] & 0x3f);
    }
    if (u < least[n] || u > 0x10ffff || (u >= 0xd800 && u < 0xe000)) return 1;
    *ret_point = u;
    return n;
}

size_t train_utf8_check(const char *text, size_t size)
{
    for (size_t i = 0, n; i < size; i += n) {
        uint32_t u;
        n = train_utf8_next(text + i, size - i, &u);
        if (n == 1 && u == 0xfffd) return i;
    }
    return size;
}

void train_text_clean(const char *text, char *buf, size_t size)
{
    const size_t end = strlen(text);
    size_t n = 0;
    for (size_t i = 0, bytes; i < end; i += bytes) {
        uint32_t u;
        bytes = train_utf8_next(text + i, end - i, &u);
        const bool plain = u >= 0x20 && !(u >= 0x7f && u < 0xa0) && u != 0xfffd;
        if (n + bytes + 4 > size) {
            n += (size_t)sprintf(buf + n, "...");
            break;
        }
        if (plain) memcpy(buf + n, text + i, bytes), n += bytes;
        else buf[n++] = '?';
    }
    buf[n] = 0;
}
