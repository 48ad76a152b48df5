/* command.c -- what the commands share: flags, configurations, checkpoints as arguments. */
#include "train/command.h"

#include "train/environment.h"
#include "train/rundir.h"
#include "train/state.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* name: as it was given, "--length" or "-n". */
static int set_number(const train_flag *f, const char *name, const char *text, ag_err *err)
{
    char *end;
    errno = 0;
    const double x = strtod(text, &end);
    if (*end || end == text || errno || !isfinite(x) ||
        (f->kind == TRAIN_FLAG_INT && x != floor(x)))
        return ag_err_set(err, AG_ECONFIG, "%s: '%s' is no %s", name, text,
                          f->kind == TRAIN_FLAG_INT ? "whole number" : "number");
    if (x < f->least || x > f->most)
        return ag_err_set(err, AG_ECONFIG, "%s: %s is not between %g and %g", name, text,
                          f->least, f->most);
    if (f->kind == TRAIN_FLAG_INT) *(int64_t *)f->value = (int64_t)x;
    else *(double *)f->value = x;
    return AG_OK;
}

static int add_word(const train_flag *f, const char *text, ag_err *err)
{
    train_flag_words *w = f->value;
    if (w->n == TRAIN_FLAG_WORDS_MAX)
        return ag_err_set(err, AG_ECONFIG, "--%s: more than %d times", f->name,
                          TRAIN_FLAG_WORDS_MAX);
    w->word[w->n++] = text;
    return AG_OK;
}

static int set_value(const train_flag *f, const char *name, const char *text, ag_err *err)
{
    if (f->kind == TRAIN_FLAG_WORDS) return add_word(f, text, err);
    if (f->kind != TRAIN_FLAG_TEXT) return set_number(f, name, text, err);
    *(const char **)f->value = text;
    return AG_OK;
}

static const train_flag *find_flag(const train_flag *flags, const char *arg)
{
    const size_t n = strcspn(arg + 2, "=");
    for (const train_flag *f = flags; f->name; f++) {
        if (arg[1] == '-' && strlen(f->name) == n && !strncmp(f->name, arg + 2, n)) return f;
        if (arg[1] != '-' && f->letter && arg[1] == f->letter && !arg[2]) return f;
    }
    return NULL;
}

int train_flags_read(const train_flag *flags, int *argc, char **argv, ag_err *err)
{
    int kept = 1, i = 1;
    for (; i < *argc; i++) {
        const char *arg = argv[i];
        if (!strcmp(arg, "--")) break;
        if (arg[0] != '-' || !arg[1]) {
            argv[kept++] = argv[i];
            continue;
        }
        const train_flag *f = find_flag(flags, arg);
        if (!f)
            return ag_err_set(err, AG_ECONFIG, "%s: no flag '%s'; `tulle %s --help` lists them",
                              argv[0], arg, argv[0]);
        const char *value = arg[1] == '-' && strchr(arg, '=') ? strchr(arg, '=') + 1 : NULL;
        if (f->kind == TRAIN_FLAG_ON) {
            if (value) return ag_err_set(err, AG_ECONFIG, "--%s takes no value", f->name);
            *(bool *)f->value = true;
            continue;
        }
        if (!value && ++i == *argc)
            return ag_err_set(err, AG_ECONFIG, "%s wants a value", arg);
        if (!value) value = argv[i];
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(arg, "="), arg);
        if (set_value(f, name, value, err) < 0) return AG_ECONFIG;
    }
    for (i++; i < *argc; i++) argv[kept++] = argv[i];
    *argc = kept;
    return AG_OK;
}

int train_config_args(int argc, char **argv, train_config *ret_c, ag_err *err)
{
    train_config_init(ret_c);
    int r = argc > 1 ? train_config_load(ret_c, argv[1], err) : AG_OK;
    for (int i = 2; i < argc && r == AG_OK; i++) r = train_config_override(ret_c, argv[i], err);
    return r == AG_OK ? train_config_check(ret_c, err) : r;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void train_sort_times(double *t, int64_t n) { qsort(t, (size_t)n, sizeof *t, by_value); }

int train_checkpoint_arg(const char *arg, bool best, train_ckpt_file **ret_file,
                         char ret_warning[1024], ag_err *err)
{
    struct stat st;
    ret_warning[0] = '\0';
    if (stat(arg, &st) < 0) return ag_err_set(err, AG_EINPUT, "'%s': %s", arg, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return train_ckpt_open(arg, ret_file, err);
    char path[PATH_MAX];
    int r = train_rundir_path(arg, "best.h5", path, err);
    if (r < 0) return r;
    const bool only = !train_rundir_has_checkpoint(arg) && ag_path_exists(path);
    if (!best && !only) return train_rundir_load(arg, ret_file, ret_warning, err);
    r = train_ckpt_open(path, ret_file, err);
    if (r == AG_OK && !best)
        snprintf(ret_warning, 1024, "'%.400s' has no last.h5: using best.h5 (step %lld)", arg,
                 (long long)train_ckpt_file_head(*ret_file)->step);
    return r;
}

static int set_device(train_config *c, const char *word, ag_err *err)
{
    char text[64];
    snprintf(text, sizeof text, "train.device=%s", word);
    const int r = train_config_override(c, text, err);
    return r < 0 && err ? ag_err_prefix(err, "--device: ") : r;
}

int train_open_arg(const char *arg, bool best, const train_open *what, train_session **ret_s,
                   ag_err *err)
{
    train_ckpt_file *f = NULL;
    char warning[1024];
    train_config c;
    int r = train_checkpoint_arg(arg, best, &f, warning, err);
    if (r == AG_OK && warning[0]) fprintf(stderr, "tulle: warning: %s\n", warning);
    if (r == AG_OK) r = train_state_config(f, &c, err);
    if (r == AG_OK && what->device) r = set_device(&c, what->device, err);
    if (r == AG_OK) r = train_threads_set(c.train.threads, err);
    if (r == AG_OK) r = train_state_load(f, &c, what, ret_s, err);
    train_ckpt_close(f);
    return r;
}

void train_put_json_text(FILE *f, const char *text)
{
    fputc('"', f);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p < ' ') fprintf(f, "\\u%04x", *p);
        else fprintf(f, *p == '"' || *p == '\\' ? "\\%c" : "%c", *p);
    }
    fputc('"', f);
}
