/*
 * pattern_svg.c -- attention patterns as pictures: queries downwards, keys to the right, a colour
 * for the reason why a key is seen, paler where a cell stands for many pairs of which few are.
 */
#include "train/pattern_stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OWN, NEAR, STRIDED, SUMMARY, LISTED, DENSE, REASONS };
/* Cells of a side at most; pixels; panels in a row. */
enum { SIDE = 96, SIZE = 288, GAP = 36, TEXT = 28, TOP = 96, COLUMNS = 4 };

static const struct { const char *name, *colour; } reasons[REASONS] = {
    { "own query", "#111827" }, { "local: window or chunk", "#2563eb" },
    { "strided", "#ea580c" }, { "summary", "#15803d" }, { "file", "#9333ea" },
    { "dense", "#6b7280" },
};

typedef struct grid {
    int64_t n, cell, side;           /* positions, of a cell, cells of a side */
    int64_t seen[REASONS][SIDE][SIDE];
} grid;

static int reason_of(const ag_pattern_layout *l, int64_t i, int64_t j)
{
    static const int of[] = { DENSE, NEAR, STRIDED, NEAR, SUMMARY, LISTED };
    int best = REASONS;
    if (i == j) return OWN;
    for (int f = 0; f < l->n_factors; f++)
        if (of[l->factor[f].kind] < best && ag_factor_has(&l->factor[f], i, j))
            best = of[l->factor[f].kind];
    return best;
}

static void fill_run(grid *g, const ag_pattern_layout *l, const ag_pattern_tile *t,
                     const ag_key_run *run, int64_t length)
{
    for (int64_t j = run->key; j < run->key + length * t->step; j += t->step)
        for (uint64_t left = run->seen; left; left &= left - 1) {
            const int64_t i = t->query0 + __builtin_ctzll(left) * t->step;
            g->seen[reason_of(l, i, j)][i / g->cell][j / g->cell]++;
        }
}

/* All pairs that the tiles have. */
static void fill(grid *g, const ag_pattern_layout *l)
{
    for (int q = 0; q < l->n_parts; q++)
        for (int64_t x = 0; x < l->part[q].n_tiles; x++) {
            const ag_pattern_part *part = &l->part[q];
            const ag_pattern_tile *t = &part->tile[x];
            for (int64_t e = 0; e < t->n_runs; e++)
                fill_run(g, l, t, &part->run[t->first + e], ag_run_length(part, t, e));
        }
}

static int64_t cell_end(const grid *g, int64_t at)
{
    return (at + 1) * g->cell < g->n ? (at + 1) * g->cell : g->n;
}

/* Pairs j <= i of a cell. */
static int64_t pairs_of(const grid *g, int64_t a, int64_t b)
{
    const int64_t rows = cell_end(g, a) - a * g->cell, columns = cell_end(g, b) - b * g->cell;
    return a == b ? rows * (rows + 1) / 2 : rows * columns;
}

static void fill_dense(grid *g)
{
    for (int64_t a = 0; a < g->side; a++)
        for (int64_t b = 0; b <= a; b++) {
            g->seen[DENSE][a][b] = pairs_of(g, a, b) - (a == b ? cell_end(g, a) - a * g->cell : 0);
            if (a == b) g->seen[OWN][a][a] = cell_end(g, a) - a * g->cell;
        }
}

/* A line of text (ASCII), with what does not fit above a panel cut off. */
static void put_line(FILE *f, int y, const char *text)
{
    enum { MOST = 50 };
    const bool cut = strlen(text) > MOST;
    fprintf(f, "<text y=\"%d\">%.*s%s</text>\n", y, cut ? MOST - 4 : MOST, text,
            cut ? " ..." : "");
}

/* The cells for one reason with one strength, of LEVELS, as one path. */
enum { LEVELS = 5 };

static int level_of(const grid *g, int reason, int64_t a, int64_t b)
{
    const int64_t seen = g->seen[reason][a][b];
    if (!seen) return 0;
    const int64_t pairs = pairs_of(g, a, b);
    int64_t rest = 0;                /* the most frequent reason gives the colour */
    for (int r = 0; r < REASONS; r++) {
        if (g->seen[r][a][b] > seen || (r < reason && g->seen[r][a][b] == seen)) return 0;
        rest += g->seen[r][a][b];
    }
    return 1 + (int)(rest * (LEVELS - 1) / pairs);
}

static void put_cells(FILE *f, const grid *g, int reason, int level)
{
    bool any = false;
    for (int64_t a = 0; a < g->side; a++)
        for (int64_t b = 0; b <= a; b++) {
            if (level_of(g, reason, a, b) != level) continue;
            if (!any) fprintf(f, "<path fill=\"%s\" fill-opacity=\"%.2g\" d=\"",
                              reasons[reason].colour, 0.2 + 0.8 * level / LEVELS);
            any = true;
            fprintf(f, "M%lld %lldh1v1h-1z", (long long)b, (long long)a);
        }
    if (any) fputs("\"/>\n", f);
}

static void put_panel(FILE *f, const grid *g)
{
    fprintf(f, "<g transform=\"scale(%.6g)\">\n", (double)SIZE / (double)g->side);
    fprintf(f, "<path fill=\"#e5e7eb\" d=\"M0 0");
    for (int64_t a = 0; a < g->side; a++) fputs("h1v1", f);
    fprintf(f, "H0z\"/>\n");
    for (int r = 0; r < REASONS; r++)
        for (int level = 1; level <= LEVELS; level++) put_cells(f, g, r, level);
    fputs("</g>\n", f);
}

static void put_legend(FILE *f, int64_t cell)
{
    for (int r = 0; r < REASONS; r++)
        fprintf(f, "<rect x=\"%d\" y=\"12\" width=\"12\" height=\"12\" fill=\"%s\"/>"
                "<text x=\"%d\" y=\"22\">%s</text>\n", GAP + 170 * r, reasons[r].colour,
                GAP + 170 * r + 17, reasons[r].name);
    fprintf(f, "<text x=\"%d\" y=\"40\">rows: queries, columns: keys; a cell is %lld x %lld "
            "positions, grey: earlier keys that are not seen</text>\n", GAP, (long long)cell,
            (long long)cell);
}

static int layouts_of(const nn_pattern *m) { return m->keys ? m->keys->layouts : 1; }

static void put_pattern(FILE *f, grid *g, const nn_patterns *p, int m, int64_t n_layers,
                        int64_t n_heads, int *at)
{
    char text[TRAIN_PATTERN_TEXT];
    const ag_pattern *keys = p->made[m].keys;
    for (int l = 0; l < layouts_of(&p->made[m]); l++, (*at)++) {
        const int64_t n = g->n, cell = g->cell, side = g->side;
        *g = (grid){ .n = n, .cell = cell, .side = side };
        if (keys) fill(g, &keys->layout[l]);
        else fill_dense(g);
        fprintf(f, "<g transform=\"translate(%d %d)\">\n", GAP + *at % COLUMNS * (SIZE + GAP),
                TOP + *at / COLUMNS * (SIZE + GAP + TEXT));
        memcpy(text, "layers ", 8);
        train_pattern_layers(p, m, n_layers, text + 7, sizeof text - 7);
        put_line(f, -34, text);
        memcpy(text, "heads ", 7);
        train_pattern_heads(keys, l, n_heads, text + 6, sizeof text - 6);
        put_line(f, -20, text);
        train_pattern_factors(keys, l, text, sizeof text);
        put_line(f, -6, text);
        put_panel(f, g);
        fputs("</g>\n", f);
    }
}

int train_pattern_svg(const nn_patterns *p, int64_t n, int64_t n_layers, int64_t n_heads,
                      char **ret_svg, ag_err *err)
{
    char *text = NULL;
    size_t size = 0;
    grid *g = malloc(sizeof *g);
    FILE *f = g ? open_memstream(&text, &size) : NULL;
    if (!f) {
        free(g);
        return ag_err_set(err, AG_ENOMEM, "out of memory for a picture");
    }
    g->n = n;
    g->cell = (n + SIDE - 1) / SIDE;
    g->side = (n + g->cell - 1) / g->cell;
    int panels = 0, at = 0;
    for (int m = 0; m < p->n; m++) panels += layouts_of(&p->made[m]);
    fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"11\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            GAP + COLUMNS * (SIZE + GAP),
            TOP + (panels + COLUMNS - 1) / COLUMNS * (SIZE + GAP + TEXT));
    put_legend(f, g->cell);
    for (int m = 0; m < p->n; m++) put_pattern(f, g, p, m, n_layers, n_heads, &at);
    fputs("</svg>\n", f);
    const bool bad = ferror(f);
    free(g);
    if (fclose(f) || bad) {
        free(text);
        return ag_err_set(err, AG_ENOMEM, "out of memory for a picture");
    }
    *ret_svg = text;
    return AG_OK;
}
