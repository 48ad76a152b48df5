/*
 * test_config.c -- the configuration: its table, its values, its dump and what reads it back.
 *
 * Files, their messages and damage to them are in test_config_files.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "autograd/base/rng.h"
#include "train/schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int parse(train_config *c, const char *text, ag_err *err)
{
    *err = (ag_err){0};
    return train_config_parse(c, text, strlen(text), "t.yaml", err);
}

static bool same_values(const train_config *a, const train_config *b)
{
    for (int i = 0; i < TRAIN_KEYS; i++)
        if (train_keys[i].type != TRAIN_GROUP && !train_value_equal(a, b, i)) return false;
    return true;
}

/* ---- the table ---- */

static void test_table(void **state)
{
    (void)state;
    for (int i = 0; i < TRAIN_KEYS; i++) {
        const train_key *k = &train_keys[i];
        assert_int_equal(train_key_find(k->path), i);            /* no path twice */
        const size_t n = strlen(k->help);
        assert_true(n > 5 && n < 200);
        if (k->type != TRAIN_GROUP) assert_int_equal(k->help[n - 1], '.');
        if (k->type == TRAIN_INT || k->type == TRAIN_REAL) {
            double lo, hi;
            char open, close;
            assert_int_equal(sscanf(k->limits, "%c%lf, %lf%c", &open, &lo, &hi, &close), 4);
            assert_true((open == '[' || open == '(') && (close == ']' || close == ')') && lo < hi);
        }
        int words = 0;
        for (int w = 0; w < TRAIN_CHOICES; w++)
            words += k->type == TRAIN_WORD && strcmp(train_words[w].list, k->limits) == 0;
        assert_true((k->type == TRAIN_WORD) == (words > 0) ||
                    (k->type == TRAIN_TEXT && k->limits[0]));
    }
    assert_int_equal(train_key_find("model.f"), -1);
    assert_int_equal(train_key_find(""), -1);
}

static void test_defaults(void **state)
{
    (void)state;
    train_config c;
    ag_err err = {0};
    memset(&c, 0xa5, sizeof c);
    train_config_init(&c);
    assert_int_equal(train_config_check(&c, &err), AG_OK);
    assert_int_equal(c.model.d_model, 384);
    assert_int_equal(c.model.type, TRAIN_MODEL_GPT);
    assert_string_equal(train_choice_word(TRAIN_SOURCE_FASHION_MNIST), "fashion-mnist");
    assert_true(c.model.ff.quant_prob == 0.3);
    assert_true(c.optim.lr == 1e-3);
    assert_true(c.model.ff.controller_bias);
    assert_string_equal(c.sample.prompt, "\n");
    assert_int_equal(train_config_d_ff(&c), 1536);
    assert_int_equal(train_config_d_lowrank(&c), 24);
    c.model.ff.lowrank_rule = TRAIN_RANK_D_MODEL;
    assert_int_equal(train_config_d_lowrank(&c), 6);
    c.model.ff.block = 1024;
    assert_int_equal(train_config_d_lowrank(&c), 1);
    c.model.ff.d_lowrank = 5;
    assert_int_equal(train_config_d_lowrank(&c), 5);
    c.model.d_ff = 7;
    assert_int_equal(train_config_d_ff(&c), 7);
    for (int i = 0; i < TRAIN_KEYS; i++) assert_int_equal(c.origin[i].from, TRAIN_FROM_DEFAULT);
}

static void test_explain(void **state)
{
    (void)state;
    char *text;
    ag_err err = {0};
    for (int i = 0; i < TRAIN_KEYS; i++) {
        assert_int_equal(train_config_explain(train_keys[i].path, &text, &err), AG_OK);
        assert_memory_equal(text, train_keys[i].path, strlen(train_keys[i].path));
        assert_non_null(strstr(text, train_keys[i].help));
        free(text);
    }
    text = NULL;
    assert_int_equal(train_config_explain("model.dmodel", &text, &err), AG_ECONFIG);
    assert_string_equal(err.msg, "unknown key 'model.dmodel'\n  did you mean 'model.d_model'?");
    assert_null(text);
    err = (ag_err){0};
    assert_int_equal(train_config_explain("optim.type", &text, &err), AG_OK);
    assert_string_equal(text,
        "optim.type\n  Update rule.\n  one of: adamw, adam, sgd, adafactor\n  default: adamw\n"
        "  may change on resume: no\n"
        "    adamw         Adam with decoupled weight decay on matrices\n"
        "    adam          Adam; weight decay is added to the gradient\n"
        "    sgd           stochastic gradient descent with momentum\n"
        "    adafactor     moments of rows and columns alone, steps relative to the weights "
        "(trax)\n");
    free(text);
}

static void test_markdown(void **state)
{
    (void)state;
    char *text, row[128];
    ag_err err = {0};
    assert_int_equal(train_config_markdown(&text, &err), AG_OK);
    for (int i = 0; i < TRAIN_KEYS; i++) {
        const bool group = train_keys[i].type == TRAIN_GROUP;
        snprintf(row, sizeof row, group ? "## `%s`: " : "\n| `%s` | ", train_keys[i].path);
        assert_non_null(strstr(text, row));
    }
    for (const char *p = text; *p; p = strchr(p, '\n') + 1) {    /* six bars in each row */
        int bars = 0;
        for (const char *q = p; *q != '\n'; q++) bars += *q == '|';
        assert_true(bars == 0 || bars == 6);
    }
    free(text);
}

/* ---- values ---- */

static void test_numbers(void **state)
{
    (void)state;
    train_config c;
    ag_err err;
    static const struct { const char *text; double lr; } good[] = {
        {"1e-3", 1e-3}, {"1E-3", 1e-3}, {".5", 0.5}, {"1.", 1.0}, {"+0.25", 0.25},
        {"1_0.2_5", 10.25},
        {"0.1", 0.1}, {"3.0000000000000004e-4", 3.0000000000000004e-4},
        {"007", 7}, {"4.9e-324", 4.9e-324},
    };
    static const char *const bad[] = {"1e", "e3", "--1", "1_", "_1", "1__0", "1._5",
                                      "1 2", "0x1p-3", "inf", "nan", "1e-3f", "1.2.3", "+", "1k",
                                      "0", "-0.1", "1e400"};
    char text[128];
    train_config_init(&c);
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        snprintf(text, sizeof text, "optim:\n  lr: %s\n", good[i].text);
        assert_int_equal(parse(&c, text, &err), AG_OK);
        assert_true(c.optim.lr == good[i].lr);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const train_config before = c;
        snprintf(text, sizeof text, "optim:\n  lr: %s\n", bad[i]);
        assert_int_equal(parse(&c, text, &err), AG_ECONFIG);
        assert_memory_equal(&before, &c, sizeof c);              /* untouched on failure */
        snprintf(text, sizeof text, "optim.lr=%s", bad[i]);
        assert_int_equal(train_config_override(&c, text, NULL), AG_ECONFIG);
    }
    assert_int_equal(parse(&c, "train: {steps: 3_000}\nrun: {seed: 9223372036854775807}", &err),
                     AG_OK);
    assert_int_equal(c.train.steps, 3000);
    assert_true(c.run.seed == INT64_MAX);
    assert_int_equal(parse(&c, "run:\n  seed: 9223372036854775808", &err), AG_ECONFIG);
    assert_int_equal(parse(&c, "run:\n  seed: -9223372036854775808", &err), AG_ECONFIG);
}

static void test_texts(void **state)
{
    (void)state;
    train_config c;
    ag_err err;
    train_config_init(&c);
    assert_int_equal(parse(&c, "run: {name: no}\nsample:\n  prompt: \"a\\n\\\"b\\\" \\u00e9\"\n",
                           &err), AG_OK);
    assert_string_equal(c.run.name, "no");
    assert_string_equal(c.sample.prompt, "a\n\"b\" \xc3\xa9");
    assert_int_equal(parse(&c, "run: {name: 3, dir: \"\"}\n", &err), AG_OK);
    assert_string_equal(c.run.name, "3");
    assert_int_equal(parse(&c, "\xef\xbb\xbfmodel:\r\n  d_model: 64\r\n  type: \"gpt\"\r\n", &err),
                     AG_OK);
    assert_int_equal(c.model.d_model, 64);
    assert_int_equal(parse(&c, "model:\n  # nothing set\ntrain:\n  steps: 7\n", &err), AG_OK);
    assert_int_equal(c.train.steps, 7);
    assert_int_equal(c.origin[train_key_find("train.steps")].line, 4);
}

static void test_override(void **state)
{
    (void)state;
    train_config c;
    train_config_init(&c);
    assert_int_equal(train_config_override(&c, "model.d_model=1_024", NULL), AG_OK);
    assert_int_equal(c.model.d_model, 1024);
    assert_int_equal(c.origin[train_key_find("model.d_model")].from, TRAIN_FROM_COMMAND);
    assert_int_equal(train_config_override(&c, "sample.prompt=a = b", NULL), AG_OK);
    assert_string_equal(c.sample.prompt, "a = b");
    assert_int_equal(train_config_override(&c, "sample.prompt=", NULL), AG_OK);
    assert_string_equal(c.sample.prompt, "");
    static const char *const bad[][2] = {
        {"model.d_modle=3", "command line: 'model.d_modle=3': unknown key 'model.d_modle'\n"
                            "  did you mean 'model.d_model'?"},
        {"train.lr=3", "command line: 'train.lr=3': unknown key 'train.lr'\n"
                       "  did you mean 'optim.lr'?"},
        {"model.d_model", "command line: 'model.d_model' is not key=value"},
        {"model=gpt", "command line: 'model=gpt': 'model' is a group of keys, not a key"},
        {"=3", "command line: '=3': unknown key ''\n"
               "  groups: run, data, model, optim, schedule, train, checkpoint, sample"},
        {"optim.lr=", "command line: 'optim.lr=': optim.lr expects a number, found nothing\n"
                      "  range: (0, 100]"},
        {"train.batch=0", "command line: 'train.batch=0': train.batch = 0 is out of range\n"
                          "  range: [1, 1048576] sequences or images"},
        {"train.steps=5k", "command line: 'train.steps=5k': train.steps expects an integer, "
                           "found '5k'\n"
                           "  numbers take no suffix: write 5000"},
        {"model.bias=True", "command line: 'model.bias=True': model.bias expects true or false, "
                            "found 'True'"},
        {"optim.type=adm", "command line: 'optim.type=adm': optim.type expects one of its choices, "
                           "found 'adm'\n  choices: adamw, adam, sgd, adafactor; "
                           "did you mean 'adam'?"},
        {"run.name=\xff", "command line: 'run.name=?': run.name is not UTF-8"},
        {"run.\033[2Jx=1", "command line: 'run.?[2Jx=1': unknown key 'run.?[2Jx'\n"
                           "  keys of run: name, dir, seed, overwrite"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ag_err err = {0};
        const train_config before = c;
        assert_int_equal(train_config_override(&c, bad[i][0], &err), AG_ECONFIG);
        assert_string_equal(err.msg, bad[i][1]);
        assert_memory_equal(&before, &c, sizeof c);
    }
}

/* ---- dump and read back ---- */

/* A random legal value of a key, from the bits of (seed, key). */
static void randomize(train_config *c, int key, uint64_t seed)
{
    const train_key *k = &train_keys[key];
    char *field = (char *)c + k->offset;
    const uint64_t a = ag_noise_bits(seed, 0, 0, (uint64_t)key);
    const uint64_t b = ag_noise_bits(seed, 0, 1, (uint64_t)key);
    if (k->type == TRAIN_BOOL) *(bool *)field = a & 1;
    if (k->type == TRAIN_INT || k->type == TRAIN_REAL) {
        double lo, hi;
        assert_int_equal(sscanf(k->limits + 1, "%lf, %lf", &lo, &hi), 2);
        const double u = (double)(a << 20 ^ b) / 0x1p52 * (a & 1 ? 1 : 1e-6);
        const double v = lo + (hi - lo) * u;
        if (k->type == TRAIN_REAL) *(double *)field = v;
        else *(int64_t *)field = v >= 0x1p63 ? INT64_MAX : (int64_t)v;
    }
    if (k->type == TRAIN_WORD) {
        int w = (int)(a % TRAIN_CHOICES);
        while (strcmp(train_words[w].list, k->limits) != 0) w = (w + 1) % TRAIN_CHOICES;
        *(int *)field = w;
    }
    if (k->type == TRAIN_TEXT) {
        static const char *const parts[] = {"a", " ", "\n", "\"", "\\", "#", ": ", "'", "\t",
            "\xc3\xa9", "\xe2\x80\xa8", "\xef\xbb\xbf", "\xf0\x9f\x8c\x8d", "\x01", "\x7f",
            "\xc2\x85", "%", "-", "0"};
        const uint32_t count = sizeof parts / sizeof parts[0];
        memset(field, 0, TRAIN_TEXT_MAX);
        for (uint64_t i = 0; i < a % 200; i++)
            strcat(field, parts[ag_noise_bits(seed, 1, (uint32_t)key, i) % count]);
    }
}

static void test_round_trip(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        train_config c, back;
        ag_err err = {0};
        char *text, *diff;
        train_config_init(&c);
        for (int i = 0; seed && i < TRAIN_KEYS; i++) randomize(&c, i, seed);
        for (int how = TRAIN_DUMP_ANNOTATED; how <= TRAIN_DUMP_CHANGED; how++) {
            assert_int_equal(train_config_dump(&c, (train_dump)how, &text, &err), AG_OK);
            train_config_init(&back);
            if (text[0] && parse(&back, text, &err)) fail_msg("%s\n%s", err.msg, text);
            assert_true(same_values(&c, &back));
            assert_int_equal(train_config_diff(&c, &back, &diff, &err), AG_OK);
            assert_string_equal(diff, "");
            free(diff);
            free(text);
        }
    }
}

static void test_dump(void **state)
{
    (void)state;
    train_config c;
    ag_err err = {0};
    char *text;
    train_config_init(&c);
    assert_int_equal(parse(&c, "model:\n  ff:\n    block: 32\n", &err), AG_OK);
    assert_int_equal(train_config_override(&c, "optim.lr=3e-4", &err), AG_OK);
    assert_int_equal(train_config_dump(&c, TRAIN_DUMP_CHANGED, &text, &err), AG_OK);
    assert_string_equal(text, "model:\n  ff:\n    block: 32\noptim:\n  lr: 0.0003\n");
    free(text);
    assert_int_equal(train_config_dump(&c, TRAIN_DUMP_ANNOTATED, &text, &err), AG_OK);
    assert_non_null(strstr(text,
        "    # sparse: block size N; block, switch: number of slices N; d_ff / N units are live.\n"
        "    # integer in [1, 65536], units; default 64; from: t.yaml:3\n    block: 32\n"));
    assert_non_null(strstr(text, "  # Highest learning rate.\n"
        "  # number in (0, 100]; default 0.001; from: command line\n  lr: 0.0003\n"));
    assert_non_null(strstr(text, "  # Architecture.\n"
        "  # one of: gpt, transformer, terraformer, mlp; default gpt; from: default\n"
        "  type: gpt\n"));
    free(text);
}

static void test_resume(void **state)
{
    (void)state;
    train_config a, b;
    ag_err err = {0};
    char *diff;
    train_config_init(&a);
    b = a;
    assert_int_equal(train_config_override(&b, "train.steps=20000", &err), AG_OK);
    assert_int_equal(train_config_resumable(&a, &b, &err), AG_OK);
    assert_int_equal(train_config_diff(&a, &b, &diff, &err), AG_OK);
    assert_string_equal(diff, "train.steps: 5000 -> 20000\n");
    free(diff);
    assert_int_equal(train_config_override(&b, "model.d_model=64", &err), AG_OK);
    assert_int_equal(train_config_override(&b, "optim.lr=1", &err), AG_OK);
    assert_int_equal(train_config_resumable(&a, &b, &err), AG_ECONFIG);
    assert_string_equal(err.msg,
        "these keys may not change when a run is resumed; start a new run:\n"
        "model.d_model: 384 -> 64 (command line)\noptim.lr: 0.001 -> 1 (command line)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_explain),
        cmocka_unit_test(test_markdown),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_override),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_dump),
        cmocka_unit_test(test_resume),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
