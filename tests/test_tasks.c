/*
 * test_tasks.c -- the generated tasks: what is scored is what can be known, and the best loss is
 * the one that is promised.
 */
#include "data_util.h"
#include <math.h>

static data_options task(const char *name, int64_t n, int64_t size)
{
    data_options o = options(name, NULL, n);
    o.size = size;
    o.seed = 11;
    return o;
}

/* Every sequence of all parts: token t, and whether it is scored. */
static const uint8_t *part(const data_set *d, int s, const uint8_t **ret_scored, int64_t *ret_n)
{
    *ret_scored = d->tokens[s].scored;
    *ret_n = data_samples(d, s);
    return d->tokens[s].at;
}

/* The loss of the model that knows the rule, on the tokens themselves. */
static void grid(void **state)
{
    static const int64_t width[2] = {16, 37};
    (void)state;
    for (int k = 0; k < 2; k++) {
        data_options o = task("grid", 256, 2000);
        o.width = width[k];
        data_set *d = open_ok(&o);
        double nats = 0, count = 0, ones[8] = {0};
        assert_int_equal(d->vocab, 8);
        assert_true(fabs(d->entropy_rate - 0.4670) < 5e-5);
        for (int s = 0; s < 2; s++) {
            int64_t n;
            const uint8_t *scored, *x = part(d, s, &scored, &n);
            for (int64_t i = 0; i < n * 256; i++) {
                const int64_t t = i % 256;
                ones[x[i]]++;
                assert_int_equal(scored[i], t > width[k]);
                if (t <= width[k])
                    continue;
                const bool rule = x[i] == x[i - width[k] - 1];
                nats -= log(rule ? 0.9 + 0.1 / 8 : 0.1 / 8);
                count++;
            }
        }
        assert_true(fabs(nats / count - d->entropy_rate) < 0.01);
        for (int v = 0; v < 8; v++)                      /* no symbol is likelier */
            assert_true(fabs(ones[v] / 512000 - 0.125) < 0.008); /* a diagonal repeats itself */
        data_close(d);
    }
}

/* Token t is blank, stores (key, value) or asks for a key with the value behind. */
static void recall(void **state)
{
    data_options o = task("recall", 64, 500);
    int64_t far = 0, count[4] = {0};
    (void)state;
    data_set *d = open_ok(&o);
    assert_int_equal(d->vocab, 85);
    assert_true(d->entropy_rate == 0);
    for (int s = 0; s < 2; s++) {
        int64_t n;
        const uint8_t *scored, *x = part(d, s, &scored, &n);
        for (int64_t i = 0; i < n; i++, x += 64, scored += 64) {
            int64_t seen[16], asked = 0, blank = 0;      /* place of a key's token */
            for (int k = 0; k < 16; k++)
                seen[k] = -1;
            for (int64_t t = 0; t < 64; t++) {
                assert_false(scored[t]);
                if (x[t] == 0) {
                    blank++;
                } else if (x[t] <= 64) {
                    assert_int_equal(seen[(x[t] - 1) / 4], -1);
                    seen[(x[t] - 1) / 4] = t;
                } else {
                    assert_in_range(x[t], 65, 80);
                    const int64_t from = seen[x[t] - 65];
                    assert_in_range(from, 0, t - 1);
                    assert_true(++t < 64 && scored[t]);
                    assert_int_equal(x[t], 81 + (x[from] - 1) % 4);
                    seen[x[t - 1] - 65] = 64;          /* not to be asked for again */
                    count[x[t] - 81]++;
                    far += t - from > 32;
                    asked++;
                }
            }
            assert_int_equal(asked, 16);                 /* as many in each: parts of a batch weigh
                                                          * alike */
            assert_int_equal(blank, 64 - 3 * 16);
        }
    }
    assert_true(far > 500 * 16 / 5 && far < 500 * 16 * 3 / 10); /* 1 in 4, were n endless */
    for (int v = 0; v < 4; v++)
        assert_true(fabs((double)count[v] / (500 * 16) - 0.25) < 0.02);
    data_close(d);
}

static void copy(void **state)
{
    int32_t x[2 * 65], y[2 * 65];
    (void)state;
    for (int64_t n = 64; n <= 65; n++) {
        const data_options o = task("copy", n, 100);
        data_set *d = open_ok(&o);
        const data_draw w = {.split = DATA_TRAIN, .order = DATA_SHUFFLED, .seed = 1, .batch = 2};
        assert_int_equal(data_batch_tokens(d, &w, 0, 2, x, y), 2);
        for (int64_t i = 0; i < 2; i++) {
            const int32_t *a = x + i * n, *b = y + i * n;
            assert_int_equal(a[0], 0);
            for (int64_t t = 0; t < n; t++)              /* x is one place later than y */
                assert_int_equal(b[t], t < n / 2 ? -1 : a[t - n / 2 + 1]);
        }
        assert_true(d->entropy_rate == 0);
        data_close(d);
    }
}

/* Sequence i depends on the seed and i alone; the parts do not overlap. */
static void the_same_again(void **state)
{
    static const char *const name[3] = {"grid", "recall", "copy"};
    char hex[3][65];
    (void)state;
    for (int k = 0; k < 3; k++) {
        data_options o = task(name[k], 128, 200);
        for (int i = 0; i < 3; i++) {
            o.seed = i == 2 ? 12 : 11;
            data_set *d = open_ok(&o);
            strcpy(hex[i], data_fingerprint(d));
            data_close(d);
        }
        assert_string_equal(hex[0], hex[1]);
        assert_string_not_equal(hex[0], hex[2]);
        o.test_fraction = 0.2;
        data_set *d = open_ok(&o);
        assert_int_equal(data_samples(d, DATA_TRAIN), 140);
        assert_int_equal(data_samples(d, DATA_VAL), 20);
        assert_int_equal(data_samples(d, DATA_TEST), 40);
        assert_memory_not_equal(d->tokens[0].at, d->tokens[1].at, 128);
        data_close(d);
    }
}

static void refused(void **state)
{
    data_options o = task("grid", 64, 10);
    (void)state;
    o.width = 63;
    open_bad(&o, AG_ECONFIG, "a grid of width 63 does not fit into sequences of 64 tokens");
    o = task("recall", 2, 10);
    open_bad(&o, AG_ECONFIG, "recall needs a context of at least 3 tokens");
    o = task("copy", 1, 10);
    open_bad(&o, AG_ECONFIG, "copy needs a context of at least 2 tokens");
    o = task("copy", 1 << 20, 1 << 30);
    open_bad(&o, AG_ECONFIG, "are too many");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid), cmocka_unit_test(recall), cmocka_unit_test(copy),
        cmocka_unit_test(the_same_again), cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_remove);
}
