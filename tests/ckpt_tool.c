/*
 * ckpt_tool.c -- saves and verifies a sample checkpoint, for the sweep of tests/cli/faults.py.
 *
 *   ckpt_tool save DIR STEP    last.h5 and prev.h5 as a run writes them
 *   ckpt_tool verify DIR       prints the step that a resumed run would have; 4 if there is none
 */
#include "train/rundir.h"

#include "tests/ckpt_sample.h"

static int do_save(const char *path, int64_t step, ag_err *err)
{
    train_rundir r;
    int rc = train_rundir_open(&r, path, TRAIN_RUNDIR_RESUME, err);
    if (rc) return rc;
    const train_ckpt c = contents(step);
    rc = train_rundir_save_last(&r, &c, err);
    train_rundir_release(&r);
    return rc;
}

static int do_verify(const char *path, ag_err *err)
{
    char warning[1024];
    train_ckpt_file *f;
    const int rc = train_rundir_load(path, &f, warning, err);
    if (rc) return rc;
    const int64_t step = train_ckpt_file_head(f)->step;
    train_ckpt_close(f);
    snprintf(dir, sizeof dir, "%s", path);
    if (whole_step(in_dir(warning[0] ? "prev.h5" : "last.h5")) != step) return AG_EINPUT;
    printf("%lld\n", (long long)step);
    return AG_OK;
}

int main(int argc, char **argv)
{
    ag_err err = { 0 };
    int rc = AG_ECONFIG;
    if (argc == 4 && !strcmp(argv[1], "save")) rc = do_save(argv[2], atoll(argv[3]), &err);
    if (argc == 3 && !strcmp(argv[1], "verify")) rc = do_verify(argv[2], &err);
    if (err.code) fprintf(stderr, "%s\n", err.msg);
    return ag_exit_status(rc);
}
