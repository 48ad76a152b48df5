/*
 * command.h -- the subcommands of the program.  Each returns 0 or an AG_E* code with its message in
 * err; results go to stdout.  main() prints errors and chooses the exit status.
 */
#ifndef TRAIN_COMMAND_H
#define TRAIN_COMMAND_H

#include "autograd/base/error.h"
#include "train/config.h"

#include <stdbool.h>
#include <stdio.h>

typedef struct train_command {
    const char *name, *usage, *help;
    int (*run)(int argc, char **argv, ag_err *err);      /* argv[0] is the command's name */
    bool ends_itself;                /* asked to stop by a signal it saves first, others just die */
} train_command;

int train_cmd_train(int argc, char **argv, ag_err *err);
int train_cmd_resume(int argc, char **argv, ag_err *err);
int train_cmd_sample(int argc, char **argv, ag_err *err);
int train_cmd_eval(int argc, char **argv, ag_err *err);
int train_cmd_ablate(int argc, char **argv, ag_err *err);
int train_cmd_data(int argc, char **argv, ag_err *err);
int train_cmd_config(int argc, char **argv, ag_err *err);
int train_cmd_inspect(int argc, char **argv, ag_err *err);
int train_cmd_show(int argc, char **argv, ag_err *err);
int train_cmd_show_pattern(int argc, char **argv, ag_err *err);      /* of train_cmd_show */
int train_cmd_bench(int argc, char **argv, ag_err *err);
int train_cmd_bench_decode(int argc, char **argv, ag_err *err);      /* of train_cmd_bench */

/* What a flag that may be given several times was given. */
enum { TRAIN_FLAG_WORDS_MAX = 8 };
typedef struct train_flag_words {
    const char *word[TRAIN_FLAG_WORDS_MAX];
    int n;
} train_flag_words;

/* One --flag of a command. */
typedef struct train_flag {
    const char *name;                /* "prompt"; NULL behind the last */
    enum { TRAIN_FLAG_ON, TRAIN_FLAG_TEXT, TRAIN_FLAG_INT, TRAIN_FLAG_REAL, TRAIN_FLAG_WORDS } kind;
    void *value;                     /* bool, const char *, int64_t, double or train_flag_words */
    char letter;                     /* -n; 0: none */
    double least, most;              /* of a number */
} train_flag;

/* Reads the flags out of argv; what is left are the arguments argv[1 .. *ret_argc - 1].
 * AG_ECONFIG. */
int train_flags_read(const train_flag *flags, int *argc, char **argv, ag_err *err);

/* The configuration CONFIG key=value ...: argv[1] is a file, the rest are overrides; checked. */
int train_config_args(int argc, char **argv, train_config *ret_c, ag_err *err);

/* With its quotes. */
void train_put_json_text(FILE *f, const char *text);

/* The shortest first: their median is t[n / 2]. */
void train_sort_times(double *t, int64_t n);

/* The checkpoint of a run directory or the file itself; best.h5 also where there is no other, as
 * ret_warning then says. */
struct train_ckpt_file;
int train_checkpoint_arg(const char *arg, bool best, struct train_ckpt_file **ret_file,
                         char ret_warning[1024], ag_err *err);
/* The session of that, without an optimizer. */
struct train_session;
struct train_open;
int train_open_arg(const char *arg, bool best, const struct train_open *what,
                   struct train_session **ret_s, ag_err *err);

/* The answer to a source, and what a whole split is answered: exact matches and ROUGE. */
struct train_beam;
int train_print_answer(struct train_session *s, const char *source, const struct train_beam *b,
                       ag_err *err);
int train_print_answers(struct train_session *s, const char *word, int split, int64_t count,
                        const struct train_beam *b, bool json, ag_err *err);

#endif
