#include "train/resume.h"

#include "train/state.h"

#include <stdio.h>

/* Whether the checkpoint is of the run that config.yaml describes. */
static int check_own(const train_rundir *dir, train_resumed *x, ag_err *err)
{
    char path[PATH_MAX];
    train_config mine;
    train_difference d;
    ag_err why = { 0 };
    const char *name = dir->last_is_bad ? "prev.h5" : "last.h5";
    int code = train_rundir_path(dir->dir, "config.yaml", path, err);
    if (code < 0 || !ag_path_exists(path)) return code;
    train_config_init(&mine);
    code = train_config_load(&mine, path, &why);
    if (code < 0)
        return ag_err_set(err, code, "%s\n  mend '%s', or remove it: it is written anew from %s",
                          why.msg, path, name);
    if (train_config_differs(&mine, &x->was, false, &d))
        return ag_err_set(err, AG_EINPUT, "%s%s'%s/%s' is not of the run of '%s': %s is %s there, "
                          "but %s in config.yaml\n  bring back the run's own checkpoint; or, if "
                          "config.yaml was edited, undo that or remove it: it is written anew "
                          "from %s", x->warning, x->warning[0] ? "\n" : "", dir->dir, name, path,
                          d.key, d.is, d.was, name);
    if (train_config_differs(&mine, &x->was, true, &d))
        snprintf(x->note, sizeof x->note, "%s is %s as in %s, not %s as in config.yaml: to change "
                 "it, give %s=... as an argument", d.key, d.is, name, d.was, d.key);
    return AG_OK;
}

static int read_stored(train_rundir *dir, train_resumed *x, ag_err *err)
{
    char path[PATH_MAX];
    int code;
    if (train_rundir_has_checkpoint(dir->dir)) {
        code = train_rundir_resume(dir, &x->file, x->warning, err);
        if (code == AG_OK) code = train_state_config(x->file, &x->was, err);
        return code == AG_OK ? check_own(dir, x, err) : code;
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
    if (n) ret->note[0] = '\0';      /* settings are known to come as arguments */
    if (code == AG_OK) code = train_config_resumable(&ret->was, &ret->now, err);
    if (code == AG_OK && ret->file)
        code = train_state_patterns(ret->file, &ret->was, &patterns, err);
    if (code == AG_OK)
        code = train_config_check_with(&ret->now, ret->file ? &patterns : NULL, err);
    nn_pattern_files_release(&patterns);
    return code;
}
