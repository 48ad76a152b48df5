#include "train/resume.h"

#include "train/state.h"

#include <stdio.h>

static int read_stored(train_rundir *dir, train_resumed *x, ag_err *err)
{
    char path[PATH_MAX];
    int code;
    if (train_rundir_has_checkpoint(dir->dir)) {
        code = train_rundir_resume(dir, &x->file, x->warning, err);
        if (code == AG_OK) code = train_state_config(x->file, &x->was, err);
        return code;
    }
    train_config_init(&x->was);
    code = train_rundir_path(dir->dir, "config.yaml", path, err);
    return code == AG_OK ? train_config_load(&x->was, path, err) : code;
}

int train_resumed_read(train_rundir *dir, char *const *settings, int n, train_resumed *ret,
                       ag_err *err)
{
    nn_pattern_files patterns = { 0 };
    *ret = (train_resumed){ .file = NULL };
    int code = read_stored(dir, ret, err);
    ret->now = ret->was;
    for (int i = 0; i < n && code == AG_OK; i++)
        code = train_config_override(&ret->now, settings[i], err);
    if (code == AG_OK) code = train_config_resumable(&ret->was, &ret->now, err);
    if (code == AG_OK && ret->file)
        code = train_state_patterns(ret->file, &ret->was, &patterns, err);
    if (code == AG_OK)
        code = train_config_check_with(&ret->now, ret->file ? &patterns : NULL, err);
    nn_pattern_files_release(&patterns);
    return code;
}
