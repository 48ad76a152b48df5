/*
 * test_simt_attention.c -- attention on the tables of the GPU against an oracle in f64: edges of
 * tiles, strides, causal, lengths, offsets, dropout, few queries of many keys, heads of any size.
 */
#include "simt_attention_check.h"

static void run_keys(const shape *s, const int32_t *lengths)
{
    if (gpu_takes_next()) run_all(s, lengths, true);
}

static void run_case(const shape *s) { run_keys(s, NULL); }

static void run_forward(const shape *s, const int32_t *lengths)
{
    if (gpu_takes_next()) run_all(s, lengths, false);
}

/* --- tests ------------------------------------------------------------------------------------ */

static void edges_of_tiles(void **state)
{
    static const int64_t t[] = { 1, 16, 63, 64, 65, 129 };
    (void)state;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        run_case(&(shape){ 1, 1, t[i], t[i], 32, 32, i % 2, 0, 0, true });
        run_case(&(shape){ 1, 2, t[i], t[5 - i], 16, 8, false, 0, i % 2 * 0.3, false });
    }
    run_case(&(shape){ 2, 2, 70, 70, 64, 64, true, 0, 0, true });
}

static void widths(void **state)
{
    static const int64_t d[][2] = { { 1, 8 }, { 17, 1 }, { 24, 48 }, { 64, 64 }, { 80, 33 },
                                    { 96, 96 }, { 128, 128 }, { 128, 16 }, { 40, 128 } };
    (void)state;
    for (size_t i = 0; i < sizeof d / sizeof *d; i++)
        run_case(&(shape){ 1, 2, 33, 67, d[i][0], d[i][1], i % 2, 20, i % 3 * 0.2, false });
}

/* Heads that are too large for tiles. */
static void any_width(void **state)
{
    static const int32_t lengths[] = { 40, 0 };
    (void)state;
    run_case(&(shape){ 1, 2, 35, 35, 129, 17, true, 0, 0.3, true });
    run_case(&(shape){ 1, 1, 5, 40, 64, 300, true, 30, 0, false });
    run_keys(&(shape){ 2, 1, 3, 70, 257, 64, false, 0, 0, false }, lengths);
}

/* Rows that begin anywhere. */
static void unaligned(void **state)
{
    (void)state;
    row_gap = 3;
    for (int again = 0; again < 2; again++) {            /* bf16, f16 */
        run_case(&(shape){ 1, 2, 66, 66, 64, 32, true, 0, 0.3, true });
        run_case(&(shape){ 1, 1, 3, 260, 32, 32, true, 257, 0, false });
        run_case(&(shape){ 1, 1, 20, 70, 128, 128, false, 0, 0, false });
    }
    row_gap = 8;
}

static void offsets(void **state)
{
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        run_case(&(shape){ 1, 1, 65, 130, 32, 32, causal, 65, 0, false });
        run_case(&(shape){ 2, 1, 130, 70, 32, 16, causal, 5, 0.3, false });
        run_case(&(shape){ 1, 2, 5, 77, 17, 33, causal, 72, 0.3, false });
    }
}

static void rows_without_keys(void **state)
{
    (void)state;
    run_case(&(shape){ 1, 1, 130, 130, 32, 32, true, -70, 0, false });
    run_case(&(shape){ 1, 2, 20, 20, 32, 32, true, -3, 0.3, true });
    run_case(&(shape){ 1, 2, 3, 300, 32, 32, true, -2, 0, false });
    run_case(&(shape){ 1, 1, 30, 40, 32, 32, true, -100, 0, false });
    run_case(&(shape){ 2, 2, 3, 0, 32, 32, false, 0, 0, false });
    run_case(&(shape){ 1, 2, 70, 0, 32, 32, true, 0, 0, false });
    run_case(&(shape){ 2, 2, 0, 5, 32, 32, true, 0, 0, false });
    run_case(&(shape){ 0, 2, 5, 5, 32, 32, true, 0, 0, false });
}

static void lengths_of_items(void **state)
{
    static const int32_t n[] = { 0, 1, 64, 65, 130 };
    (void)state;
    run_keys(&(shape){ 5, 1, 70, 130, 32, 17, true, 60, 0.3, false }, n);
    run_keys(&(shape){ 5, 1, 66, 130, 32, 32, false, 0, 0, false }, n);
    run_keys(&(shape){ 5, 2, 1, 130, 32, 32, false, 0, 0, false }, n);
    run_keys(&(shape){ 5, 1, 9, 130, 64, 64, false, 0, 0, false }, n);
}

/* Few queries of many keys: these are cut into parts. */
static void decoding(void **state)
{
    static const int32_t many[] = { 0, 511, 700 };
    static const int64_t tq[] = { 1, 2, 4, 5, 16 };
    (void)state;
    for (size_t i = 0; i < sizeof tq / sizeof *tq; i++) {
        run_forward(&(shape){ 1, 2, tq[i], 700, 64, 64, true, 700 - tq[i], 0, false }, NULL);
        run_forward(&(shape){ 3, 1, tq[i], 700, 32, 24, true, 600, 0, false }, many);
        run_forward(&(shape){ 1, 1, tq[i], 600, 128, 80, false, 0, 0, false }, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(edges_of_tiles), cmocka_unit_test(widths), cmocka_unit_test(any_width),
        cmocka_unit_test(unaligned), cmocka_unit_test(offsets),
        cmocka_unit_test(rows_without_keys),
        cmocka_unit_test(lengths_of_items), cmocka_unit_test(decoding),
    };
    if (!open_gpu()) return 1;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    ag_cuda_close();
    return failed;
}
