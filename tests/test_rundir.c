/*
 * test_rundir.c -- who may use a run directory, which generation loads, which metrics stay.
 */
#include "train/rundir.h"

#include "tests/ckpt_sample.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

static int wipe(void **state)
{
    char command[PATH_MAX + 16];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'/*", dir);
    return system(command);
}

static void open_run(train_rundir *r, train_rundir_mode mode)
{
    ag_err err = { 0 };
    if (train_rundir_open(r, in_dir("run"), mode, &err)) fail_msg("%s", err.msg);
}

static void assert_text(const char *name, const char *want)
{
    char *data;
    size_t size;
    assert_int_equal(ag_file_read(in_dir(name), 1 << 20, &data, &size, NULL), AG_OK);
    assert_string_equal(data, want);
    free(data);
}

static void save_step(train_rundir *r, int64_t step)
{
    ag_err err = { 0 };
    const train_ckpt c = contents(step);
    if (train_rundir_save_last(r, &c, &err)) fail_msg("%s", err.msg);
}

static void flip(const char *path)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, 3000, SEEK_SET);
    const int c = fgetc(f);
    fseek(f, 3000, SEEK_SET);
    fputc(c ^ 1, f);
    assert_int_equal(fclose(f), 0);
}

static void test_modes(void **state)
{
    (void)state;
    train_rundir r, other;
    ag_err err = { 0 };
    assert_int_equal(train_rundir_open(&r, in_dir("run"), TRAIN_RUNDIR_RESUME, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "holds no run"));
    assert_false(ag_path_exists(in_dir("run")));
    open_run(&r, TRAIN_RUNDIR_NEW);
    assert_int_equal(train_rundir_write(&r, "config.yaml", "a: 1\n", NULL), AG_OK);
    assert_int_equal(train_rundir_sample(&r, 100, "txt", "To be", 5, NULL), AG_OK);
    assert_text("run/samples/step-00000100.txt", "To be");
    assert_int_equal(train_rundir_sample(&r, 200, "png", "P", 1, NULL), AG_OK);
    assert_int_equal(train_rundir_sample(&r, 300, "wav", "W", 1, NULL), AG_OK);
    err = (ag_err){ 0 };
    assert_int_equal(train_rundir_open(&other, in_dir("run"), TRAIN_RUNDIR_RESUME, &err),
                     AG_ELOCKED);
    err = (ag_err){ 0 };
    assert_int_equal(train_rundir_open(&other, in_dir("run"), TRAIN_RUNDIR_NEW, &err), AG_ELOCKED);
    train_rundir_release(&r);
    err = (ag_err){ 0 };
    assert_int_equal(train_rundir_open(&r, in_dir("run"), TRAIN_RUNDIR_NEW, &err), AG_ECONFIG);
    assert_non_null(strstr(err.msg, "`tulle resume /tmp"));
    assert_non_null(strstr(err.msg, "run.overwrite=true"));
    open_run(&r, TRAIN_RUNDIR_RESUME);
    assert_text("run/config.yaml", "a: 1\n");
    train_rundir_release(&r);
    assert_int_equal(ag_file_replace(in_dir("run/notes"), "mine", 4, NULL), AG_OK);
    assert_int_equal(ag_file_replace(in_dir("run/samples/step-1-mine.png"), "x", 1, NULL), AG_OK);
    open_run(&r, TRAIN_RUNDIR_OVERWRITE);
    assert_false(ag_path_exists(in_dir("run/config.yaml")));
    assert_false(ag_path_exists(in_dir("run/samples/step-00000100.txt")));
    assert_false(ag_path_exists(in_dir("run/samples/step-00000200.png")));
    assert_false(ag_path_exists(in_dir("run/samples/step-00000300.wav")));
    assert_text("run/samples/step-1-mine.png", "x");
    assert_text("run/notes", "mine");
    train_rundir_release(&r);
}

/* A folder that holds something else is left as it is. */
static void test_foreign_folder(void **state)
{
    (void)state;
    train_rundir r;
    ag_err err = { 0 };
    assert_int_equal(ag_dir_make(in_dir("run"), NULL), AG_OK);
    assert_int_equal(ag_file_replace(in_dir("run/thesis.tex"), "x", 1, NULL), AG_OK);
    assert_int_equal(train_rundir_open(&r, in_dir("run"), TRAIN_RUNDIR_NEW, &err), AG_ECONFIG);
    assert_non_null(strstr(err.msg, "holds no run"));
    assert_false(ag_path_exists(in_dir("run/LOCK")));
    assert_int_equal(train_rundir_open(&r, "", TRAIN_RUNDIR_NEW, NULL), AG_ECONFIG);
    assert_int_equal(train_rundir_open(&r, in_dir("run/thesis.tex"), TRAIN_RUNDIR_NEW, NULL),
                     AG_EIO);
}

static int64_t loaded(train_rundir *r, char warning[1024])
{
    train_ckpt_file *f;
    ag_err err = { 0 };
    if (train_rundir_resume(r, &f, warning, &err)) return -1;
    const int64_t step = train_ckpt_file_head(f)->step;
    train_ckpt_close(f);
    return step;
}

static void test_generations(void **state)
{
    (void)state;
    train_rundir r;
    train_ckpt_file *f;
    char warning[1024];
    ag_err err = { 0 };
    open_run(&r, TRAIN_RUNDIR_NEW);
    assert_int_equal(train_rundir_load(in_dir("run"), &f, warning, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "holds no checkpoint"));
    for (int64_t step = 1; step <= 3; step++) save_step(&r, step);
    assert_int_equal(loaded(&r, warning), 3);
    assert_string_equal(warning, "");
    flip(in_dir("run/last.h5"));
    assert_int_equal(loaded(&r, warning), 2);
    assert_non_null(strstr(warning, "damaged: checksum differs"));
    assert_non_null(strstr(warning, "prev.h5' (step 2)"));
    save_step(&r, 5);                /* the damaged one must not push out the good one */
    assert_int_equal(whole_step(in_dir("run/last.h5")), 5);
    assert_int_equal(whole_step(in_dir("run/prev.h5")), 2);
    save_step(&r, 6);
    assert_int_equal(whole_step(in_dir("run/prev.h5")), 5);
    assert_int_equal(unlink(in_dir("run/last.h5")), 0);
    assert_int_equal(loaded(&r, warning), 5);
    save_step(&r, 7);
    flip(in_dir("run/last.h5"));
    flip(in_dir("run/prev.h5"));
    err = (ag_err){ 0 };
    assert_int_equal(train_rundir_load(in_dir("run"), &f, warning, &err), AG_EINPUT);
    assert_non_null(strstr(err.msg, "last.h5': damaged"));
    assert_non_null(strstr(err.msg, "prev.h5': damaged"));
    const train_ckpt c = contents(8);
    assert_int_equal(train_rundir_save_best(&r, &c, NULL), AG_OK);
    assert_int_equal(whole_step(in_dir("run/best.h5")), 8);
    train_rundir_release(&r);
}

static void test_metrics(void **state)
{
    (void)state;
    train_rundir r;
    char line[64];
    open_run(&r, TRAIN_RUNDIR_NEW);
    assert_int_equal(train_rundir_metrics_begin(&r, -1, true, NULL), AG_OK);
    assert_int_equal(train_rundir_metrics_line(&r, "{\"run\":\"a\"}", NULL), AG_OK);
    for (int s = 1; s <= 12; s++) {
        snprintf(line, sizeof line, "{\"best_step\":99,\"step\"%s%d}", s % 2 ? ":" : " : ", s);
        assert_int_equal(train_rundir_metrics_line(&r, line, NULL), AG_OK);
    }
    const char *path = in_dir("run/metrics.jsonl");
    FILE *f = fopen(path, "ab");
    assert_non_null(f);
    fputs("{\"step\":2,\"cut o", f);
    fclose(f);
    assert_int_equal(train_rundir_metrics_begin(&r, 3, true, NULL), AG_OK);
    static const char three[] = "{\"run\":\"a\"}\n{\"best_step\":99,\"step\":1}\n"
        "{\"best_step\":99,\"step\" : 2}\n{\"best_step\":99,\"step\":3}\n";
    assert_text("run/metrics.jsonl", three);
    assert_int_equal(train_rundir_metrics_begin(&r, 3, true, NULL), AG_OK);
    assert_text("run/metrics.jsonl", three);
    assert_int_equal(train_rundir_metrics_line(&r, "{\"step\":3,\"val_loss\":1}", NULL), AG_OK);
    assert_int_equal(train_rundir_metrics_begin(&r, 3, false, NULL), AG_OK);
    assert_text("run/metrics.jsonl", three);     /* the evaluation of step 3 is to come again */
    assert_int_equal(train_rundir_metrics_begin(&r, -1, true, NULL), AG_OK);
    assert_text("run/metrics.jsonl", "");
    train_rundir_release(&r);
}

static int metrics_limited(train_rundir *r)
{
    const struct rlimit limit = { 25, 25 };
    ag_err err = { 0 };
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit)) return 98;
    if (train_rundir_metrics_line(r, "{\"step\":1}", NULL)) return 1;
    if (train_rundir_metrics_line(r, "{\"step\":2,\"loss\":1}", &err) != AG_EIO) return 2;
    if (!strstr(err.msg, "metrics.jsonl': File too large")) return 3;
    return train_rundir_metrics_line(r, "{\"step\":3}", NULL) ? 4 : 0;
}

/* A line that does not fit leaves no half of itself. */
static void test_metrics_full(void **state)
{
    (void)state;
    train_rundir r;
    int status;
    open_run(&r, TRAIN_RUNDIR_NEW);
    assert_int_equal(train_rundir_metrics_begin(&r, -1, true, NULL), AG_OK);
    const pid_t pid = fork();
    if (pid == 0) _exit(metrics_limited(&r));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_text("run/metrics.jsonl", "{\"step\":1}\n{\"step\":3}\n");
    train_rundir_release(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_modes, wipe),
        cmocka_unit_test_teardown(test_foreign_folder, wipe),
        cmocka_unit_test_teardown(test_generations, wipe),
        cmocka_unit_test_teardown(test_metrics, wipe),
        cmocka_unit_test_teardown(test_metrics_full, wipe),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
