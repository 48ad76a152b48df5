/*
 * pattern_picture.h -- which keys queries see, drawn from the paper's words (1904.10509, section
 * 4.1) into a square of bytes, and patterns checked against it.
 */
#ifndef PATTERN_PICTURE_H
#define PATTERN_PICTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "autograd/pattern.h"

#include <stdlib.h>

/* --- sets, drawn ------------------------------------------------------------------------------ */

typedef struct picture { int64_t n; unsigned char *sees; } picture;      /* [n,n], query by key */

static picture picture_new(int64_t n)
{
    picture p = { n, calloc((size_t)(n * n) + 1, 1) };
    assert_non_null(p.sees);
    return p;
}

static void dot(picture p, int64_t i, int64_t j)
{
    if (j >= 0 && j <= i && i < p.n) p.sees[i * p.n + j] = 1;
}

static void draw_dense(picture p)
{
    for (int64_t i = 0; i < p.n; i++)
        for (int64_t j = 0; j <= i; j++) dot(p, i, j);
}

static void draw_local(picture p, int64_t l)
{
    for (int64_t i = 0; i < p.n; i++)
        for (int64_t back = 0; back < l; back++) dot(p, i, i - back);
}

static void draw_strided(picture p, int64_t l)
{
    for (int64_t j = 0; j < p.n; j++)
        for (int64_t i = j; i < p.n; i += l) dot(p, i, j);
}

static void draw_chunk(picture p, int64_t l)
{
    for (int64_t start = 0; start < p.n; start += l)
        for (int64_t i = start; i < start + l; i++)
            for (int64_t j = start; j <= i; j++) dot(p, i, j);
}

static void draw_summary(picture p, int64_t l, int64_t c, int64_t index)
{
    for (int64_t end = l - index * c; end - c < p.n; end += l)
        for (int64_t j = end - c; j < end; j++)
            for (int64_t i = j; i < p.n; i++) dot(p, i, j);
}

static void draw_blocks(picture p, int64_t block, const int32_t (*pair)[2], int64_t n)
{
    for (int64_t e = 0; e < n; e++)
        for (int64_t i = 0; i < block; i++)
            for (int64_t j = 0; j < block; j++)
                dot(p, pair[e][0] * block + i, pair[e][1] * block + j);
}

static void draw(picture p, const ag_factor *f)
{
    switch (f->kind) {
    case AG_FACTOR_ALL:     draw_dense(p); break;
    case AG_FACTOR_LOCAL:   draw_local(p, f->stride); break;
    case AG_FACTOR_STRIDED: draw_strided(p, f->stride); break;
    case AG_FACTOR_CHUNK:   draw_chunk(p, f->stride); break;
    case AG_FACTOR_SUMMARY: draw_summary(p, f->stride, f->width, f->index); break;
    case AG_FACTOR_PAIRS:   draw_blocks(p, f->width, f->pair, f->n_pairs); break;
    case AG_FACTOR_COUNT:   fail();
    }
}

/* --- a pattern against its picture ------------------------------------------------------------ */

/* Adds the pairs of one tile, whose keys ascend; returns how many. */
static int64_t draw_tile(const ag_pattern_part *part, const ag_pattern_tile *t, picture got)
{
    int64_t seen = 0, keys = 0, last = -1;
    for (int64_t e = 0; e < t->n_runs; e++) {
        const ag_key_run *run = &part->run[t->first + e];
        assert_true(run->seen != 0 && run->before == keys && ag_run_length(part, t, e) > 0);
        for (int64_t c = 0, j = run->key; c < ag_run_length(part, t, e); c++, j += t->step) {
            assert_true(j > last);
            last = j;
            keys++;
            for (int r = 0; r < AG_PATTERN_TILE; r++) {
                if (!(run->seen >> r & 1)) continue;
                const int64_t i = t->query0 + r * t->step;
                assert_true(r < t->n && i < got.n && j <= i);
                if (got.sees[i * got.n + j]++)
                    fail_msg("query %d has key %d twice", (int)i, (int)j);
                seen++;
            }
        }
    }
    assert_int_equal(keys, t->n_keys);
    return seen;
}

/* The tiles have each pair once, in one part. */
static void check_tiles(const ag_pattern *k, int head, picture want)
{
    const ag_pattern_layout *l = ag_pattern_of(k, head);
    picture got = picture_new(want.n);
    int64_t seen = 0;
    for (int q = 0; q < l->n_parts; q++) {
        const ag_pattern_part *part = &l->part[q];
        for (int64_t x = 0; x < part->n_tiles; x++) {
            const ag_pattern_tile *t = &part->tile[x];
            assert_true(t->n >= 1 && t->n <= AG_PATTERN_TILE && t->n_keys > 0);
            assert_true(t->first + t->n_runs <= part->n_runs);
            seen += draw_tile(part, t, got);
        }
    }
    assert_int_equal(seen, l->n_seen);
    assert_memory_equal(got.sees, want.sees, (size_t)(want.n * want.n));
    free(got.sees);
}

static void check_sets(const ag_pattern *k, int head, picture want)
{
    for (int64_t i = 0; i < want.n; i++) {
        int64_t from = 0, begin, end, j = 0;
        for (; ag_pattern_run(k, head, i, from, &begin, &end); from = end) {
            assert_true(begin >= from && end > begin && end <= i + 1);
            for (; j < begin; j++) assert_false(want.sees[i * want.n + j]);
            for (; j < end; j++) assert_true(want.sees[i * want.n + j]);
        }
        for (; j < want.n; j++) assert_false(want.sees[i * want.n + j]);
        for (j = -1; j <= want.n; j++) {
            const bool sees = j >= 0 && j < want.n && want.sees[i * want.n + j];
            assert_int_equal(ag_pattern_has(k, head, i, j), sees);
        }
    }
}

#endif
