/*
 * test_simt_blocks.c -- attention under patterns of keys on the tables of the GPU against an oracle
 * in f64, which asks the definition of the pattern; the tiles that its kernels walk over.
 *
 *   test_simt_blocks [TEST]      TULLE_SIMT_PART=p/n: see gpu.h
 */
#include "simt_attention_check.h"

#include "autograd/cuda/tiles.h"

enum { N = 200, L = 24 };                /* positions, stride */

static const int32_t pairs[][2] = {
    { 0, 0 }, { 1, 0 }, { 1, 1 }, { 3, 0 }, { 3, 3 }, { 4, 1 }, { 9, 2 }, { 9, 5 }, { 9, 8 },
    { 12, 0 }, { 12, 12 }
};
#define F(...) { __VA_ARGS__ }
#define LOCAL(l) { .kind = AG_FACTOR_LOCAL, .stride = (l) }
#define STRIDED(l) { .kind = AG_FACTOR_STRIDED, .stride = (l) }
#define CHUNK(l) { .kind = AG_FACTOR_CHUNK, .stride = (l) }
#define SUMMARY(l, c, i) { .kind = AG_FACTOR_SUMMARY, .stride = (l), .width = (c), .index = (i) }
#define PAIRS { .kind = AG_FACTOR_PAIRS, .width = 16, .pair = pairs, \
                .n_pairs = sizeof pairs / sizeof *pairs }
#define ALL { .kind = AG_FACTOR_ALL }

static const struct spec { int count; ag_pattern_layout layout[3]; } specs[] = {
    { 1, { { .n_factors = 1, .factor = F(LOCAL(L)) } } },
    { 1, { { .n_factors = 1, .factor = F(STRIDED(L)) } } },
    { 1, { { .n_factors = 1, .factor = F(STRIDED(3)) } } },
    { 1, { { .n_factors = 1, .factor = F(SUMMARY(L, 8, 0)) } } },
    { 1, { { .n_factors = 2, .factor = F(LOCAL(70), STRIDED(70)) } } },
    { 1, { { .n_factors = 2, .factor = F(CHUNK(64), SUMMARY(64, 8, 0)) } } },
    { 1, { { .n_factors = 4, .factor = F(STRIDED(7), STRIDED(5), SUMMARY(L, 3, 2), LOCAL(2)) } } },
    { 1, { { .n_factors = 1, .factor = F(PAIRS) } } },
    { 1, { { .n_factors = 1, .factor = F(ALL) } } },
    { 3, { { .n_factors = 2, .factor = F(CHUNK(L), SUMMARY(L, 8, 0)) },
           { .n_factors = 2, .factor = F(CHUNK(L), SUMMARY(L, 8, 1)) },
           { .n_factors = 2, .factor = F(CHUNK(L), SUMMARY(L, 8, 2)) } } },
    { 2, { { .n_factors = 1, .factor = F(STRIDED(L)) },
           { .n_factors = 2, .factor = F(PAIRS, STRIDED(64)) } } },
};
enum { SPECS = sizeof specs / sizeof *specs };

static ag_pattern *made(int i)
{
    ag_pattern *p = NULL;
    ag_err err = { 0 };
    if (ag_pattern_new(&p, N, specs[i].count, specs[i].layout, &err) < 0) fail_msg("%s", err.msg);
    return p;
}


/* A problem under pattern i, which is freed again: the next may have its place in memory. */
static void run_now(int i, const shape *s, bool back)
{
    ag_pattern *p = made(i);
    shown = p;
    run_all(s, NULL, back);
    shown = NULL;
    ag_pattern_free(p);
}

static void run_pattern(int i, const shape *s, bool back)
{
    if (gpu_takes_next()) run_now(i, s, back);
}

/* The paper's strided attention: tiles of several steps in both parts. */
static void local_and_strided(void **state)
{
    (void)state;
    run_now(4, &(shape){ 1, 1, 150, 150, 16, 24, true, 0, 0, true }, true);
}

static void a_token(void **state)
{
    (void)state;
    run_now(4, &(shape){ 1, 1, 1, 170, 32, 24, true, 169, 0, false }, false);
}

static void patterns(void **state)
{
    (void)state;
    for (int i = 0; i < SPECS; i++) {
        run_pattern(i, &(shape){ 1, specs[i].count + 1, N, N, 16, 24, true, 0, 0, true }, true);
        run_pattern(i, &(shape){ 2, 1, 131, 131, 32, 8, true, 0, 0, false }, true);
        run_pattern(i, &(shape){ 1, 2, 1 + i, 1 + i, 8, 8, true, 0, 0, true }, true);
    }
}

static void patterns_of_any_width(void **state)
{
    static const int64_t d[][2] = { { 64, 64 }, { 128, 80 }, { 40, 128 }, { 17, 3 }, { 130, 64 } };
    (void)state;
    for (int i = 0; i < 5; i++)
        run_pattern(4 + i % 3, &(shape){ 1, 1, 100, 100, d[i][0], d[i][1], true, 0, 0, false },
                    true);
    row_gap = 3;
    run_pattern(4, &(shape){ 1, 2, 90, 90, 64, 32, true, 0, 0, true }, true);
    run_pattern(9, &(shape){ 1, 3, 90, 90, 33, 100, true, 0, 0, true }, true);
    run_pattern(10, &(shape){ 1, 2, 3, 90, 32, 32, true, 87, 0, false }, false);
    row_gap = 8;
}

/* Keys and values that no query sees are NaN. */
static void hide_unseen(problem *p)
{
    const ag_attention *a = &p->a;
    for (int64_t j = 0; j < a->tk; j++)
        for (int64_t h = 0; h < a->heads; h++) {
            bool seen = false;
            for (int64_t i = 0; i < a->tq; i++) seen |= shows(a, h, i, j);
            for (int64_t b = 0; b < a->batch && !seen; b++) {
                fill_guard(row_of(p, K, 0, b, j) + h * a->d_qk, (size_t)a->d_qk);
                fill_guard(row_of(p, V, 0, b, j) + h * a->d_v, (size_t)a->d_v);
            }
        }
}

/* Queries over a cache: a few take the keys of each alone, and read no others; more of them take
 * tiles. */
static void patterns_decoding(void **state)
{
    static const int64_t tq[] = { 1, 2, 4, 5, 18 };
    (void)state;
    for (int i = 0; i < SPECS; i++)
        for (int k = 0; k < 5; k++) {
            const int64_t at = (37 * i + 61 * k) % (N - tq[k] + 1), d = k % 2 ? 64 : 32;
            prepare = tq[k] <= 4 ? hide_unseen : NULL;
            run_pattern(i, &(shape){ 2, 3, tq[k], at + tq[k], d, d - 8 * k, true, at, 0, false },
                        false);
        }
    run_pattern(4, &(shape){ 1, 2, 3, N, 128, 128, true, N - 3, 0, false }, false);
    prepare = NULL;
}

/* The pairs of the tiles of one side, drawn into [N][N]. */
static void draw_side(const pattern_tiles *y, const pattern_part *part, int side, char *sees)
{
    const pattern_side *s = &part->side[side];
    for (int i = 0; i < s->n_tiles; i++) {
        const pattern_tile *t = &y->tile[s->tile + i];
        for (int32_t e = t->begin; e < t->end; e++)
            for (int r = 0; r < t->n; r++)
                for (int c = 0; c < y->step[e].n; c++) {
                    const pattern_step *x = &y->step[e];
                    if (x->mask >= 0 && !(y->mask[(int64_t)x->mask * 64 + r] >> c & 1)) continue;
                    const int32_t row = t->step ? t->first + r * t->step : y->list[t->first + r];
                    const int32_t col = x->step ? x->first + c * x->step : y->list[x->first + c];
                    sees[side == TILES_OF_QUERIES ? row * N + col : col * N + row]++;
                }
    }
}

/* Tiles have each pair of the pattern once, and no other. */
static void tiles_are_the_pattern(void **state)
{
    (void)state;
    char *sees = get((size_t)N * N);
    for (int i = 0; i < SPECS; i++) {
        ag_pattern *p = made(i);
        pattern_tiles y;
        assert_true(pattern_tiles_new(&y, p));
        for (int h = 0; h < p->layouts; h++)
            for (int side = 0; side < TILE_SIDES; side++) {
                memset(sees, 0, (size_t)N * N);
                const pattern_part *part = y.part + h * y.parts;
                for (int q = 0; q < part->n_parts; q++) draw_side(&y, part + q, side, sees);
                for (int64_t at = 0; at < N * N; at++)
                    if (sees[at] != ag_pattern_has(p, h, at / N, at % N))
                        fail_msg("pattern %d, layout %d, side %d: query %d, key %d: %d", i, h,
                                 side, (int)(at / N), (int)(at % N), sees[at]);
            }
        pattern_tiles_free(&y);
        ag_pattern_free(p);
    }
    free(sees);
}

/* No more steps than the paper's blocks need: n = 4096, stride 128. */
static void tiles_do_not_waste(void **state)
{
    static const struct { ag_pattern_layout layout; int64_t most; } wanted[] = {
        /* 64 tiles of 3 steps; the first two have fewer */
        { { .n_factors = 1, .factor = F(LOCAL(128)) }, 64 * 3 },
        /* 128 residues of 32 queries, 2 of them in a tile: 64 tiles of a step */
        { { .n_factors = 1, .factor = F(STRIDED(128)) }, 64 },
        /* a tile of queries: up to 128 keys of its chunk, and 8 of each before it */
        { { .n_factors = 2, .factor = F(CHUNK(128), SUMMARY(128, 8, 0)) }, 2 * (32 * 2 + 32 * 3) +
          64 * 4 / 2 } };
    (void)state;
    for (int i = 0; i < 3; i++) {
        ag_pattern *p = NULL;
        pattern_tiles y;
        assert_int_equal(ag_pattern_new(&p, 4096, 1, &wanted[i].layout, NULL), AG_OK);
        assert_true(pattern_tiles_new(&y, p));
        for (int side = 0; side < TILE_SIDES; side++) {
            const pattern_side *s = &y.part[0].side[side];
            int64_t steps = 0;
            for (int t = 0; t < s->n_tiles; t++)
                steps += y.tile[s->tile + t].end - y.tile[s->tile + t].begin;
            printf("pattern %d, side %d: %d steps in %d tiles; %d masks, %d lists\n", i, side,
                   (int)steps, s->n_tiles, (int)y.n_mask / 64, (int)y.n_list / 64);
            assert_true(steps <= wanted[i].most);
        }
        pattern_tiles_free(&y);
        ag_pattern_free(p);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiles_are_the_pattern), cmocka_unit_test(tiles_do_not_waste),
        cmocka_unit_test(local_and_strided), cmocka_unit_test(a_token), cmocka_unit_test(patterns),
        cmocka_unit_test(patterns_of_any_width), cmocka_unit_test(patterns_decoding),
    };
    if (!open_gpu()) return 1;
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    ag_cuda_close();
    return failed;
}
