/* config_ablation.c -- the key `ablation:` of a file, and the configurations of its arms. */
#include "train/ablation.h"
#include "train/config_yaml.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* The name in a folder's name: what a shell or a file system may take amiss becomes '_'. */
static void folder_of(const char *name, char folder[TRAIN_ARM_NAME_MAX])
{
    size_t i = 0;
    for (; name[i]; i++) {
        const unsigned char c = (unsigned char)name[i];
        const bool plain = c < 128 && (isalnum(c) || c == '_' || (i && strchr("=.+-", c)));
        folder[i] = plain ? name[i] : '_';
    }
    folder[i] = '\0';
}

/* A scalar that must be there and fit; a fault if it does not. */
static bool is_text(train_yaml *y, const train_yaml_event *e, const char *what, size_t max)
{
    if (e->kind != TRAIN_YAML_SCALAR || e->null || !e->text[0])
        train_yaml_fault(y, e->line, e->col, "", "%s expects a text, found %s", what,
                         e->kind == TRAIN_YAML_SCALAR ? "nothing" : train_yaml_noun(e));
    else if (!e->whole || strlen(e->text) >= max)
        train_yaml_fault(y, e->line, e->col, "", "%s is longer than %zu bytes or holds a NUL", what,
                         max - 1);
    else
        return true;
    train_yaml_skip(y, e);
    return false;
}

/* A list, whose elements are to be read next; a fault if it is none. */
static bool is_list(train_yaml *y, const train_yaml_event *e, const char *what, const char *hint)
{
    if (e->kind == TRAIN_YAML_LIST) return true;
    train_yaml_fault(y, e->line, e->col, hint, "%s expects a list, found %s", what,
                     train_yaml_noun(e));
    train_yaml_skip(y, e);
    return false;
}

/* Whether there is a further element in the list. */
static bool next_element(train_yaml *y, train_yaml_event *e)
{
    train_yaml_next(y, e);
    return e->kind != TRAIN_YAML_LIST_CLOSE && e->kind != TRAIN_YAML_END;
}

/* ---- seeds ---- */

static void read_seed(train_yaml *y, const train_yaml_event *e, train_ablation *a)
{
    train_config c;
    train_fault f;
    if (!is_text(y, e, "a seed", 32)) return;
    if (!train_value_set(&c, train_key_find("run.seed"), e->text, e->quoted, &f)) {
        train_yaml_report(y, e->line, e->col, &f);
        return;
    }
    for (int i = 0; i < a->n_seeds; i++) {
        if (a->seed[i] != c.run.seed) continue;
        train_yaml_fault(y, e->line, e->col, "", "seed %s stands here twice", e->text);
        return;
    }
    if (a->n_seeds < TRAIN_SEEDS_MAX) a->seed[a->n_seeds++] = c.run.seed;
    else train_yaml_fault(y, e->line, e->col, "", "more than %d seeds", TRAIN_SEEDS_MAX);
}

static void read_seeds(train_yaml *y, train_yaml_event *e, train_ablation *a)
{
    const int line = e->line, col = e->col;
    if (!is_list(y, e, "ablation.seeds", "seeds: [1, 2, 3]")) return;
    while (next_element(y, e)) read_seed(y, e, a);
    if (!a->n_seeds && !y->faults)
        train_yaml_fault(y, line, col, "seeds: [1, 2, 3]", "ablation.seeds is empty");
}

/* ---- arms ---- */

static void read_setting(train_yaml *y, const train_yaml_event *e, train_arm *arm)
{
    train_config scratch;
    train_fault f;
    if (!is_text(y, e, "a setting of an arm", sizeof arm->set[0].text)) return;
    if (!strncmp(e->text, "run.", 4)) {
        train_yaml_fault(y, e->line, e->col, "seeds stand in ablation.seeds; "
                         "the folders are named after the arms", "an arm cannot set %s", e->text);
        return;
    }
    train_config_init(&scratch);
    if (!train_config_assign(&scratch, e->text, (train_origin){TRAIN_FROM_FILE, e->line}, &f)) {
        train_yaml_report(y, e->line, e->col, &f);
    } else if (arm->n == TRAIN_SETTINGS_MAX) {
        train_yaml_fault(y, e->line, e->col, "", "more than %d settings", TRAIN_SETTINGS_MAX);
    } else {
        train_setting *s = &arm->set[arm->n++];
        memcpy(s->text, e->text, strlen(e->text) + 1);
        s->line = e->line;
    }
}

/* Whether the name that e holds may be that of a further arm; a fault if not. */
static bool name_is_free(train_yaml *y, const train_yaml_event *e, const train_ablation *a)
{
    char folder[TRAIN_ARM_NAME_MAX];
    folder_of(e->text, folder);
    for (int i = 0; i < a->n_arms; i++) {
        if (strcmp(a->arm[i].folder, folder)) continue;
        if (!strcmp(a->arm[i].name, e->text))
            train_yaml_fault(y, e->line, e->col, "", "arm '%s' stands here twice, first in line %d",
                             e->text, a->arm[i].line);
        else
            train_yaml_fault(y, e->line, e->col, "choose names that differ in letters or digits",
                             "arm '%s' would have the folder of '%s', %s-sSEED", e->text,
                             a->arm[i].name, folder);
        return false;
    }
    if (strchr(e->text, ','))
        train_yaml_fault(y, e->line, e->col, "--arms A,B could not name it",
                         "arm '%s' has a comma in its name", e->text);
    else if (a->n_arms == TRAIN_ARMS_MAX)
        train_yaml_fault(y, e->line, e->col, "", "more than %d arms", TRAIN_ARMS_MAX);
    else
        return true;
    return false;
}

/* e names an arm; behind it stands the list of its settings. */
static void read_arm(train_yaml *y, train_yaml_event *e, train_ablation *a)
{
    train_arm arm = { .line = e->line };
    bool fine = is_text(y, e, "the name of an arm", sizeof arm.name);
    if (fine) {
        memcpy(arm.name, e->text, strlen(e->text) + 1);
        folder_of(arm.name, arm.folder);
        fine = name_is_free(y, e, a);
    }
    char what[TRAIN_ARM_NAME_MAX + 16];
    snprintf(what, sizeof what, "arm '%s'", arm.name);
    train_yaml_next(y, e);
    if (!is_list(y, e, what, "key=value settings in brackets: [model.ff.type=sparse]; [] for none"))
        return;
    while (next_element(y, e)) read_setting(y, e, &arm);
    if (fine) a->arm[a->n_arms++] = arm;
}

static void read_arms(train_yaml *y, train_yaml_event *e, train_ablation *a)
{
    const int line = e->line, col = e->col, faults = y->faults;
    const char *hint = "arms:\n      dense: []\n      sparse: [model.ff.type=sparse]";
    if (e->kind == TRAIN_YAML_MAP) {
        for (;;) {
            train_yaml_next(y, e);
            if (e->kind == TRAIN_YAML_MAP_CLOSE || e->kind == TRAIN_YAML_END) break;
            read_arm(y, e, a);
        }
        if (a->n_arms || y->faults > faults) return;
    }
    train_yaml_fault(y, line, col, hint, "ablation.arms expects at least one arm");
    if (e->kind != TRAIN_YAML_MAP_CLOSE) train_yaml_skip(y, e);
}

/* ---- the group ---- */

enum { ABOUT, SEEDS, ARMS, KEYS };

static int find_key(train_yaml *y, const train_yaml_event *e, int seen[KEYS])
{
    static const char *const names[KEYS] = { "about", "seeds", "arms" };
    int near = -1;
    for (int i = 0; i < KEYS && e->kind == TRAIN_YAML_SCALAR; i++) {
        if (!strcmp(e->text, names[i])) {
            if (!seen[i]) return seen[i] = e->line, i;
            train_yaml_fault(y, e->line, e->col, "", "ablation.%s is set twice, first in line %d",
                             names[i], seen[i]);
            return -1;
        }
        if (!strncmp(e->text, names[i], 2)) near = i;
    }
    char hint[64] = "keys of ablation: about, seeds, arms";
    if (near >= 0) snprintf(hint, sizeof hint, "did you mean '%s'?", names[near]);
    train_yaml_fault(y, e->line, e->col, hint, "unknown key 'ablation.%.100s'",
                     e->kind == TRAIN_YAML_SCALAR ? e->text : "");
    return -1;
}

void train_ablation_read(train_yaml *y, const train_yaml_event *begin, train_ablation *a)
{
    const int faults = y->faults;
    int seen[KEYS] = { 0 };
    train_yaml_event e = *begin;
    while (begin->kind == TRAIN_YAML_MAP) {
        train_yaml_next(y, &e);
        if (e.kind == TRAIN_YAML_MAP_CLOSE || e.kind == TRAIN_YAML_END) break;
        const int key = find_key(y, &e, seen);
        train_yaml_skip(y, &e);
        train_yaml_next(y, &e);
        if (key < 0) train_yaml_skip(y, &e);
        else if (key == SEEDS) read_seeds(y, &e, a);
        else if (key == ARMS) read_arms(y, &e, a);
        else if (is_text(y, &e, "ablation.about", sizeof a->about))
            memcpy(a->about, e.text, strlen(e.text) + 1);
    }
    if (begin->kind != TRAIN_YAML_MAP) train_yaml_skip(y, begin);
    if (!seen[ARMS] && y->faults == faults && !y->stop)
        train_yaml_fault(y, begin->line, begin->col, "keys of ablation: about, seeds, arms",
                         "ablation has no arms");
}

int train_ablation_load(const char *path, train_config *c, train_ablation *ret_a, ag_err *err)
{
    *ret_a = (train_ablation){ .n_arms = 0 };
    const int r = train_config_load_with(c, path, ret_a, err);
    if (r < 0 || ret_a->n_arms) return r;
    return ag_err_set(err, AG_ECONFIG, "%s: holds no `ablation:`\n  `tulle train` runs a "
                      "configuration of one run", path);
}

int train_ablation_config(const train_arm *arm, const train_config *base, train_config *ret_c,
                          ag_err *err)
{
    train_config c = *base;
    train_fault f;
    for (int i = 0; i < arm->n; i++)
        if (!train_config_assign(&c, arm->set[i].text,
                                 (train_origin){TRAIN_FROM_FILE, arm->set[i].line}, &f))
            return ag_err_set(err, AG_ECONFIG, "%s:%d: %s", base->file, arm->set[i].line, f.what);
    const int r = train_config_check(&c, err);
    if (r < 0) return ag_err_prefix(err, "arm '%s': ", arm->name);
    *ret_c = c;
    return AG_OK;
}
