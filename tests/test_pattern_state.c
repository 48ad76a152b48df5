/*
 * test_pattern_state.c -- the files of an attention pattern in a checkpoint: read once, loaded
 * whatever is on disk, and refused where what is stored does not fit the pattern.
 */
#include "train/session.h"
#include "train/state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char pairs[] = "/tmp/tulle-pairs-XXXXXX", checkpoint[] = "/tmp/tulle-ckpt-XXXXXX";

static void write_pairs(const char *text)
{
    FILE *f = fopen(pairs, "wb");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static train_config config(void)
{
    static const char *const SMALL[] = {
        "data.source=language", "data.size=20000", "model.n_layers=2", "model.n_heads=2",
        "model.d_model=16", "model.context=16", "train.batch=4", "train.micro_batch=2",
        "train.steps=100", "schedule.warmup_steps=2" };
    char pattern[128];
    train_config c;
    ag_err err = { 0 };
    train_config_init(&c);
    for (size_t i = 0; i < sizeof SMALL / sizeof *SMALL; i++)
        if (train_config_override(&c, SMALL[i], &err)) fail_msg("%s", err.msg);
    snprintf(pattern, sizeof pattern, "model.attention.pattern=file('%s');file('%s')+local(2)",
             pairs, pairs);
    if (train_config_override(&c, pattern, &err)) fail_msg("%s", err.msg);
    return c;
}

enum { WHOLE, EARLIER, NO_TEXT, OTHER_PATH, OTHER_TEXT };

/* Saves it as it is, without the group, or with other blobs in it. */
static int save_changed(void *how, const train_ckpt *c, ag_err *err)
{
    train_ckpt_blob blob[8];
    train_ckpt other = *c;
    int n = 0;
    assert_true(c->n_blobs <= 8);
    for (int i = 0; i < c->n_blobs; i++) {
        train_ckpt_blob b = c->blob[i];
        const bool mine = !strcmp(b.group, "patterns/0"), text = !strcmp(b.name, "text");
        if (mine && (*(int *)how == EARLIER || (*(int *)how == NO_TEXT && text))) continue;
        if (mine && *(int *)how == OTHER_PATH && !text) b.data = "other", b.size = 5;
        if (mine && *(int *)how == OTHER_TEXT && text) b.data = "elements\n1 x\n", b.size = 13;
        blob[n++] = b;
    }
    other.blob = blob;
    other.n_blobs = n;
    return train_ckpt_save(checkpoint, NULL, &other, err);
}

static int load(train_session **ret_s, ag_err *err)
{
    train_ckpt_file *f = NULL;
    train_config c;
    *err = (ag_err){ 0 };
    if (train_ckpt_open(checkpoint, &f, err) || train_state_config(f, &c, err))
        fail_msg("%s", err->msg);
    const int r = train_state_load(f, &c, &(train_open){ .data = true, .optimizer = true }, ret_s,
                                   err);
    train_ckpt_close(f);
    return r;
}

static void hash_later(train_session *s, char ret_hex[65])
{
    ag_err err = { 0 };
    double loss, norm;
    for (int i = 0; i < 3; i++)
        if (train_session_step(s, &loss, &norm, &err)) fail_msg("%s", err.msg);
    train_session_hash(s, ret_hex);
    train_session_free(s);
}

static void what_was_read_is_what_counts(void **state)
{
    (void)state;
    static const char *const LATER[] = { "elements\n3 0\n", "no pattern", NULL };
    const train_config c = config();
    train_session *s = NULL;
    ag_err err = { 0 };
    char whole[65], again[65];
    write_pairs("blocks 4\n0 0\n1 0\n2 2\nhead 1\n3 1\n");
    if (train_session_new(&c, &(train_open){ .data = true, .optimizer = true }, &s, &err) ||
        train_state_save(s, save_changed, &(int){ WHOLE }, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(s->patterns.n, 1);
    assert_false(nn_pattern_file_changed(s->patterns.file));
    hash_later(s, whole);
    for (int i = 0; i < 3; i++) {
        if (LATER[i]) write_pairs(LATER[i]);
        else unlink(pairs);
        if (load(&s, &err)) fail_msg("%s", err.msg);
        assert_true(nn_pattern_file_changed(s->patterns.file) == (LATER[i] != NULL));
        assert_int_equal(train_state_save(s, save_changed, &(int){ WHOLE }, &err), AG_OK);
        hash_later(s, again);
        assert_string_equal(again, whole);
    }
}

static void expect(int how, int code, const char *want)
{
    const train_config c = config();
    train_session *s = NULL;
    ag_err err = { 0 };
    write_pairs("elements\n1 0\n");
    if (train_session_new(&c, &(train_open){ .data = true, .optimizer = true }, &s, &err) ||
        train_state_save(s, save_changed, &how, &err))
        fail_msg("%s", err.msg);
    train_session_free(s);
    s = NULL;
    unlink(pairs);
    assert_int_equal(load(&s, &err), code);
    assert_null(s);
    if (!strstr(err.msg, want)) fail_msg("no \"%s\" in \"%s\"", want, err.msg);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    char want[128];
    expect(NO_TEXT, AG_EINPUT, "patterns/0/text");
    snprintf(want, sizeof want,
             "model.attention.pattern of the checkpoint: the text of '%s' is missing", pairs);
    expect(OTHER_PATH, AG_EINPUT, want);
    snprintf(want, sizeof want, "model.attention.pattern of the checkpoint: %s:2: expected", pairs);
    expect(OTHER_TEXT, AG_EINPUT, want);
    snprintf(want, sizeof want, "model.attention.pattern of the checkpoint: cannot open '%s'",
             pairs);
    expect(EARLIER, AG_EINPUT, want);
}

/* A checkpoint of an earlier version has no files; then those on disk count. */
static void earlier_checkpoints_load(void **state)
{
    (void)state;
    expect(EARLIER, AG_EINPUT, "cannot open");
    train_session *s = NULL;
    ag_err err = { 0 };
    write_pairs("elements\n1 0\n");
    if (load(&s, &err)) fail_msg("%s", err.msg);
    assert_int_equal(s->patterns.n, 1);
    train_session_free(s);
}

static int make_files(void **state)
{
    (void)state;
    return close(mkstemp(pairs)) || close(mkstemp(checkpoint));
}

static int remove_files(void **state)
{
    (void)state;
    unlink(pairs);
    return unlink(checkpoint);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_read_is_what_counts),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(earlier_checkpoints_load),
    };
    return cmocka_run_group_tests_name("pattern_state", tests, make_files, remove_files);
}
