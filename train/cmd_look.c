/* cmd_look.c -- tulle config, inspect: what can be set, what is set, what is in a checkpoint. */
#include "train/command.h"
#include "train/checkpoint.h"
#include "train/rundir.h"
#include "train/state.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Prints a text that r says is there, and frees it. */
static int put(int r, char *text)
{
    if (r < 0) return r;
    fputs(text, stdout);
    if (text[0] && text[strlen(text) - 1] != '\n') putchar('\n');
    free(text);
    return AG_OK;
}

int train_cmd_config(int argc, char **argv, ag_err *err)
{
    char *text = NULL;
    bool plain = false, changed = false;
    const train_flag flags[] = { { "plain", TRAIN_FLAG_ON, &plain, 0, 0, 0 },
                                 { "changed", TRAIN_FLAG_ON, &changed, 0, 0, 0 }, { 0 } };
    int r = train_flags_read(flags, &argc, argv, err);
    if (r < 0) return r;
    if (argc == 3 && !strcmp(argv[1], "explain")) {
        r = train_config_explain(argv[2], &text, err);
        return put(r, text);
    }
    if (argc == 2 && !strcmp(argv[1], "reference")) {
        r = train_config_markdown(&text, err);
        return put(r, text);
    }
    if (argc == 4 && !strcmp(argv[1], "diff")) {
        train_config a, b;
        r = train_config_args(2, (char *[]){ argv[0], argv[2] }, &a, err);
        if (r == AG_OK) r = train_config_args(2, (char *[]){ argv[0], argv[3] }, &b, err);
        if (r == AG_OK) r = train_config_diff(&a, &b, &text, err);
        return put(r, text);
    }
    if (argc < 2 || strcmp(argv[1], "print")) return AG_ECONFIG;
    train_config c;
    r = train_config_args(argc - 1, argv + 1, &c, err);
    if (r == AG_OK)
        r = train_config_dump(&c, changed ? TRAIN_DUMP_CHANGED : plain
                              ? TRAIN_DUMP_PLAIN : TRAIN_DUMP_ANNOTATED, &text, err);
    return put(r, text);
}

static int print_tensors(const train_ckpt_file *f, ag_err *err)
{
    int n;
    const train_ckpt_info *info = train_ckpt_file_tensors(f, &n);
    int64_t total = 0;
    printf("%-52s %-20s %12s %8s\n", "tensor", "shape", "rms", "zeros");
    for (int i = 0; i < n; i++) {
        train_ckpt_stats st;
        const int r = train_ckpt_stat(f, i, &st, err);
        if (r < 0) return r;
        char shape[96] = "[";
        size_t at = 1;
        for (int d = 0; d < info[i].ndim; d++)
            at += (size_t)snprintf(shape + at, sizeof shape - at, "%s%" PRId64, d ? "," : "",
                                   info[i].dim[d]);
        snprintf(shape + at, sizeof shape - at, "]");
        printf("%-52s %-20s %12.6g %7.2f%%", info[i].path, shape, st.rms, 100 * st.zeros);
        if (st.nonfinite) printf("  %" PRId64 " not finite", st.nonfinite);
        putchar('\n');
        if (!strncmp(info[i].path, "model/", 6)) total += info[i].count;
    }
    printf("%" PRId64 " parameters\n", total);
    return AG_OK;
}

/* The scale of the loss, where it is scaled. */
static int print_scaler(const train_ckpt_file *f, ag_err *err)
{
    double scale;
    int64_t skipped;
    if (!train_ckpt_has_attr(f, "train/scaler", "scale")) return AG_OK;
    int r = train_ckpt_get_f64(f, "train/scaler", "scale", &scale, err);
    if (r == AG_OK) r = train_ckpt_get_i64(f, "train/scaler", "skipped", &skipped, err);
    if (r == AG_OK) printf("loss scale %g, %" PRId64 " steps skipped\n", scale, skipped);
    return r;
}

/* The files of its attention pattern, where it names some; AG_EINPUT where they do not fit it. */
static int print_patterns(const train_ckpt_file *f, ag_err *err)
{
    train_config c;
    nn_pattern_files p = { 0 };
    if (!train_ckpt_has(f, "patterns")) return AG_OK;
    int r = train_state_config(f, &c, err);
    if (r == AG_OK) r = train_state_patterns(f, &c, &p, err);
    for (int i = 0; i < p.n && r == AG_OK; i++)
        printf("attention pattern: the %zu bytes that '%s' had\n", p.file[i].size, p.file[i].path);
    nn_pattern_files_release(&p);
    return r;
}

int train_cmd_inspect(int argc, char **argv, ag_err *err)
{
    bool best = false, config = false;
    const train_flag flags[] = { { "best", TRAIN_FLAG_ON, &best, 0, 0, 0 },
                                 { "config", TRAIN_FLAG_ON, &config, 0, 0, 0 }, { 0 } };
    int r = train_flags_read(flags, &argc, argv, err);
    if (r < 0) return r;
    if (argc != 2) return AG_ECONFIG;
    train_ckpt_file *f = NULL;
    char warning[1024], *yaml;
    r = train_checkpoint_arg(argv[1], best, &f, warning, err);
    if (r < 0) return r;
    if (warning[0]) fprintf(stderr, "tulle: warning: %s\n", warning);
    if (config) {
        r = train_ckpt_read_text(f, "config", "yaml", &yaml, err);
        r = put(r, r == AG_OK ? yaml : NULL);
    } else {
        const train_ckpt_head *h = train_ckpt_file_head(f);
        printf("step %" PRId64 ", %" PRId64
               " tokens or images seen, seed %" PRIu64, h->step, h->tokens_seen, h->seed);
        if (isfinite(h->best_metric))
            printf(", best validation loss %.4f at step %" PRId64, h->best_metric, h->best_step);
        putchar('\n');
        r = print_scaler(f, err);
        if (r == AG_OK) r = print_patterns(f, err);
        if (r == AG_OK) r = print_tensors(f, err);
    }
    train_ckpt_close(f);
    return r;
}
