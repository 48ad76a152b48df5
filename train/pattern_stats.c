#include "train/pattern_stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- blocks ----------------------------------------------------------------------------------- */

/* Blocks of a row of them: pairs seen in each, and which are not 0. */
typedef struct block_row {
    train_pattern_stats *to;
    int64_t *pairs, *used;           /* [blocks in a row] */
    int64_t  row, n_used;            /* row -1: none yet */
} block_row;

static void row_end(block_row *r, int64_t row)
{
    for (int64_t u = 0; u < r->n_used; u++) {
        int64_t *pairs = &r->pairs[r->used[u]];
        if (*pairs == r->to->block * r->to->block) r->to->full++;
        else r->to->partial++;
        *pairs = 0;
    }
    r->n_used = 0;
    r->row = row;
}

/* Where position i stands in an order by residues mod step. */
static int64_t rank_of(int64_t i, int64_t step, int64_t n)
{
    const int64_t residue = i % step, rows = n / step, longer = n % step;
    return residue * rows + (residue < longer ? residue : longer) + i / step;
}

/* The pairs of queries [r0, r1) of a tile, which lie in one row of blocks. */
static void add_rows(block_row *b, const ag_pattern_part *part, const ag_pattern_tile *t, int r0,
                     int r1)
{
    const uint64_t below = r1 == 64 ? ~UINT64_C(0) : (UINT64_C(1) << r1) - 1;
    const uint64_t rows = below & ~((UINT64_C(1) << r0) - 1);
    for (int64_t e = 0; e < t->n_runs; e++) {
        const ag_key_run *run = &part->run[t->first + e];
        const int pairs = __builtin_popcountll(run->seen & rows);
        for (int64_t i = 0; pairs && i < ag_run_length(part, t, e); i++) {
            const int64_t key = run->key + i * t->step,
                at = rank_of(key, t->step, b->to->n) / b->to->block;
            if (!b->pairs[at]) b->used[b->n_used++] = at;
            b->pairs[at] += pairs;
        }
    }
}

static void add_part(block_row *b, const ag_pattern_part *part)
{
    b->row = -1;
    for (int64_t x = 0; x < part->n_tiles; x++) {
        const ag_pattern_tile *t = &part->tile[x];
        const int64_t first = rank_of(t->query0, t->step, b->to->n);
        for (int r = 0, end; r < t->n; r = end) {
            const int64_t row = (first + r) / b->to->block;
            const int64_t last = (row + 1) * b->to->block - first;
            end = last < t->n ? (int)last : t->n;
            if (row != b->row) row_end(b, row);
            add_rows(b, part, t, r, end);
        }
    }
    row_end(b, -1);
}

/* Tiles, and which queries see something. */
static void add_tiles(train_pattern_stats *s, const ag_pattern_part *part, bool *sees)
{
    s->tiles += part->n_tiles;
    for (int64_t x = 0; x < part->n_tiles; x++) {
        const ag_pattern_tile *t = &part->tile[x];
        uint64_t rows = 0;
        s->places += t->n * t->n_keys;
        for (int64_t e = 0; e < t->n_runs; e++) {
            const uint64_t seen = part->run[t->first + e].seen;
            rows |= seen;
            s->pairs += __builtin_popcountll(seen) * ag_run_length(part, t, e);
        }
        for (int r = 0; r < t->n; r++)
            if (rows >> r & 1) sees[t->query0 + r * t->step] = true;
    }
}

static int64_t triangle(int64_t n) { return n * (n + 1) / 2; }

int train_pattern_count(const ag_pattern *keys, int64_t head, int64_t n, int64_t block,
                        train_pattern_stats *ret, ag_err *err)
{
    const int64_t side = (n + block - 1) / block, whole = n / block;
    train_pattern_stats s = { .n = n, .block = block, .blocks = triangle(side) };
    if (!keys) {
        s.pairs = triangle(n);
        s.full = block == 1 ? triangle(n) : triangle(whole) - whole;
        s.partial = s.blocks - s.full;
        *ret = s;
        return AG_OK;
    }
    int64_t *room = calloc(2 * (size_t)side + 1, sizeof *room);
    bool *sees = calloc((size_t)n + 1, sizeof *sees);
    if (room && sees) {
        block_row b = { .to = &s, .pairs = room, .used = room + side };
        const ag_pattern_layout *l = ag_pattern_of(keys, head);
        for (int q = 0; q < l->n_parts; q++) {
            add_tiles(&s, &l->part[q], sees);
            add_part(&b, &l->part[q]);
        }
        for (int64_t i = 0; i < n; i++) s.empty += !sees[i];
        *ret = s;
    }
    const bool fine = room && sees;
    free(room);
    free(sees);
    return fine ? AG_OK : ag_err_set(err, AG_ENOMEM, "out of memory to count a pattern");
}

/* --- reach ------------------------------------------------------------------------------------ */

typedef struct reach {
    int64_t   n, words;
    uint64_t *from, *to, *keys;      /* [n,words] before and after a layer; [words] of one query */
} reach;

/* The keys of query i in a layer, of all heads. */
static void keys_of(reach *r, const ag_pattern *p, int64_t i)
{
    memset(r->keys, 0, (size_t)r->words * sizeof *r->keys);
    for (int h = 0; p && h < p->layouts; h++)
        for (int64_t from = 0, b, e; ag_pattern_run(p, h, i, from, &b, &e); from = e)
            for (int64_t j = b; j < e; j++) r->keys[j / 64] |= UINT64_C(1) << j % 64;
    for (int64_t j = 0; !p && j <= i; j++) r->keys[j / 64] |= UINT64_C(1) << j % 64;
}

/* One more layer; the number of pairs then. */
static int64_t add_layer(reach *r, const ag_pattern *p, bool residual)
{
    int64_t pairs = 0;
    for (int64_t i = 0; i < r->n; i++) {
        uint64_t *to = r->to + i * r->words;
        keys_of(r, p, i);
        if (residual) r->keys[i / 64] |= UINT64_C(1) << i % 64;
        memset(to, 0, (size_t)r->words * sizeof *to);
        for (int64_t w = 0; w < r->words; w++)
            for (uint64_t left = r->keys[w]; left; left &= left - 1) {
                const int64_t a = 64 * w + __builtin_ctzll(left);
                const uint64_t *row = r->from + a * r->words;
                for (int64_t k = 0; k <= a / 64; k++) to[k] |= row[k];
            }
        for (int64_t w = 0; w < r->words; w++) pairs += __builtin_popcountll(to[w]);
    }
    uint64_t *swap = r->from;
    r->from = r->to;
    r->to = swap;
    return pairs;
}

int train_pattern_reach(const nn_patterns *p, int64_t n, int64_t n_layers, train_reach *ret,
                        ag_err *err)
{
    enum { MOST = 2048 };
    reach r = { .n = n < MOST ? n : MOST };
    r.words = (r.n + 63) / 64;
    const size_t size = (size_t)(r.n * r.words);
    uint64_t *room = calloc(2 * size + (size_t)r.words + 1, sizeof *room);
    if (!room) return ag_err_set(err, AG_ENOMEM, "out of memory to follow a pattern");
    r.keys = room + 2 * size;
    *ret = (train_reach){ .n = r.n, .pairs = triangle(r.n) };
    ret->layers = n_layers < TRAIN_REACH_LAYERS ? (int)n_layers : TRAIN_REACH_LAYERS;
    for (int residual = 0; residual < 2; residual++) {
        r.from = room;
        r.to = room + size;
        memset(r.from, 0, size * sizeof *room);
        for (int64_t i = 0; i < r.n; i++) r.from[i * r.words + i / 64] |= UINT64_C(1) << i % 64;
        for (int layer = 0; layer < ret->layers; layer++) {
            const int64_t pairs = add_layer(&r, nn_patterns_of(p, layer)->keys, residual);
            if (residual) ret->residual[layer] = pairs;
            else ret->plain[layer] = pairs;
        }
    }
    free(room);
    return AG_OK;
}

/* --- in words --------------------------------------------------------------------------------- */

enum { RANGES = 512 };               /* of 1000 layers, of 1024 heads */

typedef struct numbers {             /* ascending */
    int n;
    struct range { int64_t first, last; } range[RANGES];
} numbers;

static void add_number(numbers *x, int64_t i)
{
    if (x->n && x->range[x->n - 1].last == i - 1) x->range[x->n - 1].last = i;
    else if (x->n < RANGES) x->range[x->n++] = (struct range){ i, i };
}

/* Do all ranges lie at equal distances and have one length?  The last may be cut. */
static bool is_even(const numbers *x)
{
    for (int i = 1; i < x->n; i++) {
        const struct range *a = &x->range[i - 1], *b = &x->range[i];
        const int64_t shorter = (a->last - a->first) - (b->last - b->first);
        if (b->first - a->first != x->range[1].first - x->range[0].first) return false;
        if (i + 1 < x->n ? shorter != 0 : shorter < 0) return false;
    }
    return true;
}

/* "0-3, 8", "0, 4, ..., 124" */
static void numbers_text(const numbers *x, char *buf, size_t size)
{
    const bool brief = x->n > 4 && is_even(x);
    size_t n = 0;
    buf[0] = '\0';
    for (int i = 0; i < x->n && n < size; i++) {
        const struct range *r = &x->range[i];
        const char *gap = !i ? "" : brief && i == x->n - 1 ? ", ..., " : ", ";
        if (brief && i > 1 && i < x->n - 1) continue;
        n += (size_t)snprintf(buf + n, size - n, "%s%lld", gap, (long long)r->first);
        if (r->last > r->first && n < size)
            n += (size_t)snprintf(buf + n, size - n, "-%lld", (long long)r->last);
    }
}

void train_pattern_layers(const nn_patterns *p, int m, int64_t n_layers, char *buf, size_t size)
{
    numbers x = { .n = 0 };
    for (int64_t i = 0; i < n_layers; i++)
        if (nn_patterns_of(p, i) == &p->made[m]) add_number(&x, i);
    numbers_text(&x, buf, size);
}

void train_pattern_heads(const ag_pattern *keys, int layout, int64_t n_heads, char *buf,
                         size_t size)
{
    numbers x = { .n = 0 };
    for (int64_t h = layout; h < n_heads; h += keys ? keys->layouts : 1) add_number(&x, h);
    numbers_text(&x, buf, size);
}

void train_pattern_factors(const ag_pattern *keys, int layout, char *buf, size_t size)
{
    static const char *const names[] = { "dense", "local", "strided", "chunk", "summary", "file" };
    snprintf(buf, size, "%s", keys ? "" : "dense");
    for (int i = 0; keys && i < keys->layout[layout].n_factors; i++) {
        const ag_factor *f = &keys->layout[layout].factor[i];
        const size_t n = strlen(buf);
        char sizes[96] = "";
        if (f->kind == AG_FACTOR_SUMMARY)
            snprintf(sizes, sizeof sizes, "(%lld, %lld, %lld)", (long long)f->stride,
                     (long long)f->width, (long long)f->index);
        else if (f->kind == AG_FACTOR_PAIRS)
            snprintf(sizes, sizeof sizes, "(%lld pairs of blocks of %lld)", (long long)f->n_pairs,
                     (long long)f->width);
        else if (f->kind != AG_FACTOR_ALL)
            snprintf(sizes, sizeof sizes, "(%lld)", (long long)f->stride);
        snprintf(buf + n, size - n, "%s%s%s", i ? " + " : "", names[f->kind], sizes);
    }
}
