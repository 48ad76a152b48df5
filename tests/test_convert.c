/*
 * test_convert.c -- bf16 and f16 in memory: every pattern of 16 bits, every tie between two
 * neighbours and what lies next to it, on every table; lengths around the vectors; threads.
 *
 * What a pattern means is computed here from its fields, in double precision.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "autograd/kernels.h"
#include "tests/threads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ALL = 1 << 16, MAX_TABLES = 8 };

static const struct format { ag_dtype dtype; int exponent_bits, fraction_bits; } formats[] = {
    { AG_BF16, 8, 7 }, { AG_F16, 5, 10 },
};

/* The value of a pattern; NaN and infinities included. */
static double value_of(const struct format *f, uint16_t h)
{
    const int bias = (1 << (f->exponent_bits - 1)) - 1, top = (1 << f->exponent_bits) - 1;
    const int e = h >> f->fraction_bits & top, m = h & ((1 << f->fraction_bits) - 1);
    const double sign = h >> 15 ? -1 : 1;
    if (e == top) return m ? (double)NAN : sign * (double)INFINITY;
    return sign * (e ? ldexp((1 << f->fraction_bits) + m, e - bias - f->fraction_bits)
                     : ldexp(m, 1 - bias - f->fraction_bits));
}

static uint16_t infinity_of(const struct format *f)
{
    return (uint16_t)(((1 << f->exponent_bits) - 1) << f->fraction_bits);
}

static uint16_t narrow_one(const ag_kernels *k, float x)
{
    uint16_t h;
    k->narrow(1, &x, &h);
    return h;
}

typedef void table_test(const struct format *f, const ag_kernels *k);

static void on_every_table(table_test *test)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        const ag_kernels *table[MAX_TABLES];
        const int n = ag_kernels_all(formats[i].dtype, table, MAX_TABLES);
        assert_true(n >= 2);
        for (int k = 0; k < n; k++) test(&formats[i], table[k]);
    }
}

static void patterns(const struct format *f, const ag_kernels *k)
{
    static uint16_t h[ALL], back[ALL];
    static float x[ALL];
    for (int i = 0; i < ALL; i++) h[i] = (uint16_t)i;
    k->widen(ALL, h, x);
    k->narrow(ALL, x, back);
    for (int i = 0; i < ALL; i++) {
        const double want = value_of(f, h[i]);
        if (isnan(want)) {           /* quiet, of the same sign */
            assert_true(isnan(x[i]) && isnan(value_of(f, back[i])));
            assert_int_equal(back[i] >> 15, h[i] >> 15);
            continue;
        }
        if ((double)x[i] != want || !signbit(x[i]) != !(h[i] >> 15) || back[i] != h[i])
            fail_msg("%s %s: pattern %04x widens to %.9g, should be %.9g, and comes back as %04x",
                     k->name, ag_dtype_name(f->dtype), (unsigned)h[i], (double)x[i], want,
                     (unsigned)back[i]);
    }
}

static void check_round(const struct format *f, const ag_kernels *k, float x, uint16_t want)
{
    for (int s = 0; s < 2; s++, x = -x, want |= 0x8000)
        if (narrow_one(k, x) != want)
            fail_msg("%s %s: %.9g becomes %04x, should be %04x", k->name, ag_dtype_name(f->dtype),
                     (double)x, (unsigned)narrow_one(k, x), (unsigned)want);
}

/* Between neighbours a < b: a tie goes to the even one, all else to the nearer.  Above the largest
 * number stands what would be next, and becomes infinity. */
static void ties(const struct format *f, const ag_kernels *k)
{
    const uint16_t inf = infinity_of(f);
    for (uint16_t a = 0; a < inf; a++) {
        const double low = value_of(f, a), step = a ? low - value_of(f, a - 1) : value_of(f, 1);
        const double high = a + 1 < inf ? value_of(f, a + 1) : low + step;
        const float tie = (float)((low + high) / 2);
        assert_true((double)tie == (low + high) / 2 || (a == 0 && f->dtype == AG_BF16));
        check_round(f, k, tie, (uint16_t)(a + (a & 1)));
        check_round(f, k, nextafterf(tie, 0), a);
        check_round(f, k, nextafterf(tie, INFINITY), (uint16_t)(a + 1));
    }
}

static void specials(const struct format *f, const ag_kernels *k)
{
    const uint16_t inf = infinity_of(f);
    check_round(f, k, INFINITY, inf);
    check_round(f, k, 3.4028234663852886e38f, inf);
    check_round(f, k, 0.0f, 0);
    check_round(f, k, 0x1p-149f, 0);
    if (f->dtype == AG_F16) {
        check_round(f, k, 65504.0f, 0x7bff);
        check_round(f, k, 65519.0f, 0x7bff);
        check_round(f, k, 65520.0f, 0x7c00);
        check_round(f, k, 0x1p-25f, 0);
        check_round(f, k, 0x1.8p-24f, 2);
    }
    for (uint32_t m = 1; m < 1u << 23; m = m * 3 + 1) {  /* NaN of any payload */
        const uint32_t bits = 0x7f800000u | m;
        float nan;
        memcpy(&nan, &bits, sizeof nan);
        assert_true(isnan(value_of(f, narrow_one(k, nan))));
    }
}

/* Lengths around the vectors, nothing written behind. */
static void lengths(const struct format *f, const ag_kernels *k)
{
    uint16_t h[80], y[80], kept[80];
    float x[80];
    for (int n = 0; n <= 67; n++) {
        for (int i = 0; i < 80; i++) {
            x[i] = (float)(i + 1);
            h[i] = narrow_one(k, -x[i]);
            y[i] = kept[i] = 0xabcd;
        }
        k->narrow(n, x, y);
        assert_memory_equal(y + n, kept, (size_t)(80 - n) * 2);
        for (int i = 0; i < n; i++) assert_int_equal(y[i], h[i] ^ 0x8000);
        k->scale(n, -0.5, h, y, true);               /* y = x + x / 2 */
        assert_memory_equal(y + n, kept, (size_t)(80 - n) * 2);
        for (int i = 0; i < n; i++)
            assert_true(value_of(f, y[i]) == 1.5 * (double)x[i]);
        k->fill(n, -2, y);
        assert_memory_equal(y + n, kept, (size_t)(80 - n) * 2);
        for (int i = 0; i < n; i++) assert_true(value_of(f, y[i]) == -2);
        k->scale(n, 2, h, y, false);
        for (int i = 0; i < n; i++) assert_true(value_of(f, y[i]) == -2 * (double)x[i]);
        for (int i = 0; i < 80; i++) x[i] = -7;
        k->widen(n, h, x);
        for (int i = 0; i < 80; i++) assert_true((double)x[i] == (i < n ? -(i + 1.0) : -7));
    }
}

static void many_threads(const struct format *f, const ag_kernels *k)
{
    enum { N = 100003 };
    static float x[N];
    static uint16_t one[N], many[N];
    (void)f;
    for (int i = 0; i < N; i++) x[i] = (float)i * 0.37f - 9000.0f;
    set_threads(1);
    k->narrow(N, x, one);
    k->scale(N, 0.3, one, one, true);
    for (int t = 2; t < 8; t++) {
        set_threads(t);
        k->narrow(N, x, many);
        k->scale(N, 0.3, many, many, true);
        assert_memory_equal(one, many, sizeof one);
    }
    set_threads(1);
}

#define ON_EVERY_TABLE(name)              \
    static void name##_hold(void **state) \
    {                                     \
        (void)state;                      \
        on_every_table(name);             \
    }
ON_EVERY_TABLE(patterns)
ON_EVERY_TABLE(ties)
ON_EVERY_TABLE(specials)
ON_EVERY_TABLE(lengths)
ON_EVERY_TABLE(many_threads)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns_hold), cmocka_unit_test(ties_hold),
        cmocka_unit_test(specials_hold), cmocka_unit_test(lengths_hold),
        cmocka_unit_test(many_threads_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
