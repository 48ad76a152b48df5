/* cmd_ablate.c -- tulle ablate: every arm of a file, for every seed, and a table of them. */
#include "train/ablation.h"
#include "train/command.h"
#include "train/trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Keeps the arms that `words`, A,B, names, in the order of the file. */
static int choose_arms(train_ablation *a, const char *words, ag_err *err)
{
    bool keep[TRAIN_ARMS_MAX] = { false };
    char all[800] = "";
    for (int i = 0; i < a->n_arms; i++) {
        const size_t n = strlen(all);
        snprintf(all + n, sizeof all - n, "%s%s", i ? ", " : "", a->arm[i].name);
    }
    for (const char *p = words; *p; p += strspn(p, ",")) {
        const size_t n = strcspn(p, ",");
        int i = 0;
        while (i < a->n_arms && (strlen(a->arm[i].name) != n || memcmp(a->arm[i].name, p, n))) i++;
        if (i == a->n_arms)
            return ag_err_set(err, AG_ECONFIG, "--arms: no arm '%.*s'\n  arms: %s",
                              n > 200 ? 200 : (int)n, p, all);
        keep[i] = true;
        p += n;
    }
    int n = 0;
    for (int i = 0; i < a->n_arms; i++)
        if (keep[i]) a->arm[n++] = a->arm[i];
    a->n_arms = n;
    return n ? AG_OK : ag_err_set(err, AG_ECONFIG, "--arms names no arm\n  arms: %s", all);
}

static int choose_seeds(train_ablation *a, int64_t seeds, int64_t usual, ag_err *err)
{
    if (!a->n_seeds) a->seed[a->n_seeds++] = usual;
    if (seeds > a->n_seeds)
        return ag_err_set(err, AG_ECONFIG, "--seeds %lld: the file has %d", (long long)seeds,
                          a->n_seeds);
    if (seeds) a->n_seeds = (int)seeds;
    return AG_OK;
}

static int read_file(int argc, char **argv, train_config *c, train_ablation *a, ag_err *err)
{
    train_config_init(c);
    int r = train_ablation_load(argv[1], c, a, err);
    for (int i = 2; i < argc && r == AG_OK; i++) r = train_config_override(c, argv[i], err);
    return r;
}

int train_cmd_ablate(int argc, char **argv, ag_err *err)
{
    const char *dir = NULL, *arms = NULL;
    int64_t jobs = 0, seeds = 0;
    bool json = false;
    const train_flag flags[] = {
        { "dir", TRAIN_FLAG_TEXT, &dir, 0, 0, 0 },
        { "jobs", TRAIN_FLAG_INT, &jobs, 'j', 1, 1024 },
        { "seeds", TRAIN_FLAG_INT, &seeds, 0, 1, TRAIN_SEEDS_MAX },
        { "arms", TRAIN_FLAG_TEXT, &arms, 0, 0, 0 },
        { "json", TRAIN_FLAG_ON, &json, 0, 0, 0 },
        { 0 },
    };
    train_config c;
    char usual[PATH_MAX], *table = NULL, *object = NULL;
    int r = train_flags_read(flags, &argc, argv, err);
    if (r < 0) return r;
    if (argc < 2) return AG_ECONFIG;
    train_ablation *a = malloc(sizeof *a);
    if (!a) return ag_err_set(err, AG_ENOMEM, "out of memory");
    r = read_file(argc, argv, &c, a, err);
    if (r == AG_OK && arms) r = choose_arms(a, arms, err);
    if (r == AG_OK) r = choose_seeds(a, seeds, c.run.seed, err);
    if (r == AG_OK) {
        train_run_dir(&c, usual, sizeof usual);
        r = train_ablation_run(a, &c, dir ? dir : usual, (int)jobs, stderr, &table, &object, err);
    }
    if (table) fputs(json ? object : table, stdout);
    free(table);
    free(object);
    free(a);
    return r;
}
