/* cmd_pattern.c -- tulle show pattern: which keys each layer and head sees, in numbers and as a
 * picture, from the tiles that the kernels run over. */
#include "train/command.h"
#include "train/pattern_stats.h"

#include "autograd/base/io.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct view {
    const train_config *c;
    nn_patterns *p;
    int64_t      block;
    bool         json;
} view;

static double share(int64_t part, int64_t whole)
{
    return whole ? (double)part / (double)whole : 0;
}

static void print_layout(const train_pattern_stats *s, const char *heads, const char *factors)
{
    printf("  heads %s: %s\n", heads, factors);
    printf("    %" PRId64 " pairs of %" PRId64 ", density %.2f%%; keys per query %.1f; queries "
           "without a key: %" PRId64 "\n", s->pairs, s->n * (s->n + 1) / 2,
           100 * share(s->pairs, s->n * (s->n + 1) / 2), share(s->pairs, s->n), s->empty);
    if (s->tiles)
        printf("    %" PRId64 " tiles, %.1f%% of their places seen\n", s->tiles,
               100 * share(s->pairs, s->places));
    printf("    blocks of %" PRId64 "%s: %" PRId64 " full + %" PRId64 " partial = %" PRId64
           " of %" PRId64 ", density %.2f%%\n", s->block,
           strstr(factors, "strided") ? " (strided: of the transposed sequence)" : "", s->full,
           s->partial, s->full + s->partial, s->blocks,
           100 * share(s->full + s->partial, s->blocks));
}

static void json_layout(const view *v, const ag_pattern *keys, int layout,
                        const train_pattern_stats *s, const char *factors)
{
    printf("{\"heads\": [");
    for (int64_t h = layout; h < v->c->model.n_heads; h += keys ? keys->layouts : 1)
        printf("%s%" PRId64, h > layout ? ", " : "", h);
    printf("], \"factors\": ");
    train_put_json_text(stdout, factors);
    printf(", \"pairs\": %" PRId64 ", \"density\": %.9g, \"keys_per_query\": %.9g, "
           "\"empty\": %" PRId64 ", \"tiles\": %" PRId64 ", \"fill\": %.9g, \"block\": %" PRId64
           ", \"full\": %" PRId64 ", \"partial\": %" PRId64 ", \"blocks\": %" PRId64 "}", s->pairs,
           share(s->pairs, s->n * (s->n + 1) / 2), share(s->pairs, s->n), s->empty, s->tiles,
           s->tiles ? share(s->pairs, s->places) : 1, s->block, s->full, s->partial, s->blocks);
}

static void json_pattern(const view *v, int m)
{
    const nn_pattern *one = &v->p->made[m];
    bool any = false;
    printf("%s\n  {\"layers\": [", m ? "," : "");
    for (int64_t i = 0; i < v->c->model.n_layers; i++) {
        if (nn_patterns_of(v->p, i) != one) continue;
        printf("%s%" PRId64, any ? ", " : "", i);
        any = true;
    }
    printf("], \"text\": ");
    train_put_json_text(stdout, one->text);
    printf(", \"bytes\": %zu, \"heads\": [", one->keys ? ag_pattern_bytes(one->keys) : 0);
}

static void print_pattern(const view *v, int m)
{
    char layers[TRAIN_PATTERN_TEXT];
    const nn_pattern *one = &v->p->made[m];
    train_pattern_layers(v->p, m, v->c->model.n_layers, layers, sizeof layers);
    printf("layers %s: %s", layers, one->text);
    if (one->keys) printf("  (%.2f MB of tiles)", 1e-6 * (double)ag_pattern_bytes(one->keys));
    putchar('\n');
}

static int show_one(const view *v, int m, ag_err *err)
{
    char heads[TRAIN_PATTERN_TEXT], factors[512];
    const ag_pattern *keys = v->p->made[m].keys;
    if (v->json) json_pattern(v, m);
    else print_pattern(v, m);
    for (int l = 0; l < (keys ? keys->layouts : 1); l++) {
        train_pattern_stats s;
        const int r = train_pattern_count(keys, l, v->c->model.context, v->block, &s, err);
        if (r < 0) return r;
        train_pattern_heads(keys, l, v->c->model.n_heads, heads, sizeof heads);
        train_pattern_factors(keys, l, factors, sizeof factors);
        if (v->json && l) printf(",\n    ");
        if (v->json) json_layout(v, keys, l, &s, factors);
        else print_layout(&s, heads, factors);
    }
    if (v->json) printf("]}");
    return AG_OK;
}

static int show_reach(const view *v, ag_err *err)
{
    train_reach reach;
    const int64_t n = v->c->model.context;
    const int r = train_pattern_reach(v->p, n, v->c->model.n_layers, &reach, err);
    if (r < 0) return r;
    if (v->json) {
        printf("],\n \"reach\": {\"n\": %" PRId64 ", \"pairs\": %" PRId64 ", \"layers\": [",
               reach.n, reach.pairs);
        for (int i = 0; i < reach.layers; i++)
            printf("%s{\"plain\": %" PRId64 ", \"residual\": %" PRId64 "}", i ? ", " : "",
                   reach.plain[i], reach.residual[i]);
        printf("]}}\n");
        return AG_OK;
    }
    printf("pairs j <= i with a path from j to i, all heads together%s\n",
           reach.n < n ? "; counted for the first positions only:" : ":");
    if (reach.n < n) printf("  %" PRId64 " of %" PRId64 " positions\n", reach.n, n);
    printf("  %6s  %21s  %21s\n", "layers", "by keys alone", "and residual streams");
    for (int i = 0; i < reach.layers; i++)
        printf("  %6d  %12" PRId64 " %7.2f%%  %12" PRId64 " %7.2f%%\n", i + 1, reach.plain[i],
               100 * share(reach.plain[i], reach.pairs), reach.residual[i],
               100 * share(reach.residual[i], reach.pairs));
    return AG_OK;
}

static int write_picture(const view *v, const char *path, ag_err *err)
{
    char *svg;
    int r = train_pattern_svg(v->p, v->c->model.context, v->c->model.n_layers, v->c->model.n_heads,
                              &svg, err);
    if (r < 0) return r;
    r = ag_file_replace(path, svg, strlen(svg), err);
    free(svg);
    return r;
}

static bool is_svg(const char *path)
{
    const size_t n = strlen(path);
    return n > 4 && !strcmp(path + n - 4, ".svg");
}

static int show_all(const view *v, ag_err *err)
{
    const train_config *c = v->c;
    if (v->json)
        printf("{\"context\": %" PRId64 ", \"n_layers\": %" PRId64 ", \"n_heads\": %" PRId64
               ", \"patterns\": [", c->model.context, c->model.n_layers, c->model.n_heads);
    else
        printf("context %" PRId64 ", %" PRId64 " layers, %" PRId64 " heads\n", c->model.context,
               c->model.n_layers, c->model.n_heads);
    int r = AG_OK;
    for (int m = 0; m < v->p->n && r == AG_OK; m++) r = show_one(v, m, err);
    return r == AG_OK ? show_reach(v, err) : r;
}

int train_cmd_show_pattern(int argc, char **argv, ag_err *err)
{
    const char *path = NULL;
    view v = { .block = 32 };
    const train_flag flags[] = { { "output", TRAIN_FLAG_TEXT, &path, 'o', 0, 0 },
                                 { "block", TRAIN_FLAG_INT, &v.block, 0, 1, 1 << 20 },
                                 { "json", TRAIN_FLAG_ON, &v.json, 0, 0, 0 }, { 0 } };
    int r = train_flags_read(flags, &argc, argv, err);
    if (r < 0) return r;
    if (argc < 2) return AG_ECONFIG;
    if (path && !is_svg(path))
        return ag_err_set(err, AG_ECONFIG, "--output: the picture is SVG, so a name such as p.svg, "
                          "not '%s'", path);
    train_config c;
    if ((r = train_config_args(argc, argv, &c, err)) < 0) return r;
    if (c.model.type != TRAIN_MODEL_GPT)
        return ag_err_set(err, AG_ECONFIG, "patterns are for a gpt: set model.type = gpt");
    r = nn_patterns_new(&v.p, c.model.attention.pattern, c.model.context, c.model.n_layers,
                        c.model.n_heads, NULL, err);
    if (r < 0) return r;
    v.c = &c;
    r = show_all(&v, err);
    if (r == AG_OK && path) r = write_picture(&v, path, err);
    nn_patterns_free(v.p);
    return r;
}
