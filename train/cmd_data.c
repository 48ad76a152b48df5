/* cmd_data.c -- tulle data: which sets there are, fetch, verify, convert. */
#include "train/command.h"

#include "autograd/base/io.h"
#include "data/data.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int list(void)
{
    puts("named sets");
    for (const data_named *s = data_catalog(); s->name; s++) {
        char *path = NULL;
        ag_err none = { 0 };
        const bool found = data_find(s->name, NULL, &path, &none) == AG_OK;
        printf("  %-14s %s\n  %-14s %s%s\n", s->name, s->about, "",
               found ? "found: " : "not found: tulle data get ", found ? path : s->name);
        free(path);
    }
    puts("generated, no file needed\n"
         "  language       a formal language whose entropy rate is known exactly\n"
         "  digits         drawn 28 x 28 digits\n"
         "  grid           a texture of rows: each token repeats the one above and to the left\n"
         "  recall         pairs of a key and a value, asked for later at any distance\n"
         "  copy           sequences whose second half repeats the first\n"
         "  copy_pairs     pairs: the target is the source\n"
         "  addition       pairs: two numbers and their sum\n"
         "  long_recall    pairs: a long list, a few questions and their answers\n"
         "your own (data.path)\n  text, idx, hdf5, wav, pairs");
    return AG_OK;
}

typedef struct bar { bool tty; long long shown; } bar;

static int show_progress(void *arg, const char *file, int64_t done, int64_t total)
{
    bar *b = arg;
    if (!b->tty) return 0;
    if (done >> 20 == b->shown && done != total) return 0;
    b->shown = done >> 20;
    fprintf(stderr, "\r%s: %.1f MB", file, 1e-6 * (double)done);
    if (total > 0)
        fprintf(stderr, " of %.1f MB%s", 1e-6 * (double)total, done == total ? "\n" : "");
    return 0;
}

static void show_file(void *arg, const char *file, int state)
{
    (void)arg;
    printf("  %-32s %s\n", file, state > 0 ? "good" : state < 0 ? "WRONG CHECKSUM" : "not there");
}

static int verify(const char *name, ag_err *err)
{
    const data_named *set = data_catalog_find(name);
    char *path = NULL;
    if (!set)
        return ag_err_set(err, AG_ECONFIG, "no data set '%s'; `tulle data list` names them", name);
    int r = data_find(name, NULL, &path, err);
    if (r < 0) return r;
    /* found as its one file */
    if (!set->file[1].name && strrchr(path, '/')) *strrchr(path, '/') = '\0';
    printf("%s in %s\n", name, path);
    r = data_verify(set, path, show_file, NULL, err);
    free(path);
    return r;
}

static int import(const char *file, const char *out, const char *tokenizer, double val_fraction,
                  ag_err *err)
{
    data_options o = data_options_default();
    o.source = "text";
    o.path = file;
    o.tokenizer = tokenizer;
    o.val_fraction = val_fraction;
    data_set *d;
    if (!ag_path_exists(file)) return ag_err_set(err, AG_EINPUT, "'%s' does not exist", file);
    int r = data_open(&o, &d, err);
    if (r < 0) return r;
    r = data_export_hdf5(d, out, err);
    if (r == AG_OK) printf("wrote %s: %s\n", out, d->about);
    data_close(d);
    return r;
}

int train_cmd_data(int argc, char **argv, ag_err *err)
{
    const char *to = NULL, *out = NULL, *tokenizer = "";
    double val_fraction = 0.1;
    const train_flag flags[] = {
        { "to", TRAIN_FLAG_TEXT, &to, 0, 0, 0 },
        { "output", TRAIN_FLAG_TEXT, &out, 'o', 0, 0 },
        { "tokenizer", TRAIN_FLAG_TEXT, &tokenizer, 0, 0, 0 },
        { "val-fraction", TRAIN_FLAG_REAL, &val_fraction, 0, 0, 0.999 },
        { 0 },
    };
    const int r = train_flags_read(flags, &argc, argv, err);
    if (r < 0) return r;
    bar b = { .tty = isatty(2), .shown = -1 };
    if (argc == 2 && !strcmp(argv[1], "list")) return list();
    if (argc == 3 && !strcmp(argv[1], "get")) return data_get(argv[2], to, show_progress, &b, err);
    if (argc == 3 && !strcmp(argv[1], "verify")) return verify(argv[2], err);
    if (argc == 3 && !strcmp(argv[1], "import") && out)
        return import(argv[2], out, tokenizer, val_fraction, err);
    return AG_ECONFIG;
}
