/*
 * main.c -- the program: finds the command, prints errors, chooses the exit status.
 */
#include "train/command.h"
#include "train/environment.h"
#include "train/trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const train_command commands[] = {
    { "train", "CONFIG [key=value ...] [--quiet]", "start a run", train_cmd_train, true },
    { "resume", "RUN [key=value ...] [--quiet]", "go on with a run that was stopped or killed",
      train_cmd_resume, true },
    { "sample", "RUN [--prompt TEXT] [-n N] [--temperature T] [--top-k K] [--top-p P] [--seed S] "
      "[--no-ema] [--best] [--device cpu|cuda] [-c COUNT] [-o FILE] | RUN --source TEXT [--beam N] "
      "[--alpha A] [--no-ema] [--best] [--device cpu|cuda]",
      "draw text from a trained model, or images (PNG) or sound (WAV); answer a source",
      train_cmd_sample, true },
    { "eval", "RUN [--split val|test|train] [--batches N] [--last N] [--no-ema] [--best] "
      "[--device cpu|cuda] [--json] [--decode [--beam N] [--alpha A] [--count N]]",
      "loss and accuracy of a trained model; of pairs what it answers: exact matches and ROUGE",
      train_cmd_eval, false },
    { "ablate", "FILE [key=value ...] [--dir DIR] [--jobs N] [--seeds K] [--arms A,B] [--json]",
      "run every arm of an ablation for every seed, and compare them", train_cmd_ablate, true },
    { "data", "list | get NAME [--to DIR] | verify NAME | import FILE -o FILE.h5 [--tokenizer "
      "char|byte]", "find, fetch, check and convert data sets", train_cmd_data, false },
    { "config", "print [CONFIG] [key=value ...] | explain KEY | reference | diff A B",
      "show what can be set, and what is", train_cmd_config, false },
    { "inspect", "RUN|FILE.h5", "what is in a checkpoint", train_cmd_inspect, false },
    { "show", "ops [CONFIG] | memory CONFIG [key=value ...] [--vocab N] [--run] [--json] | pattern "
      "CONFIG [key=value ...] [-o FILE.svg] [--block N] [--json]",
      "the ops of a step; parameters and where memory goes; which keys queries see",
      train_cmd_show, false },
    { "bench", "CONFIG [key=value ...] [--vary KEY=VALUE,VALUE,...] [--rounds N] [--steps N] "
      "[--warm N] [--json] | decode CONFIG|RUN [key=value ...] "
      "[--tokens N] [--prompt N] [--batch N,N,...] [--vocab N] [--json]",
      "time the steps of a configuration and of its variants (--vary train.device=cpu,cuda) in one "
      "table, or a token with each of its sparse parts or arms",
      train_cmd_bench, false },
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void usage(FILE *out)
{
    fputs("tulle " TULLE_VERSION ": trains small sparse networks\n\n", out);
    for (int i = 0; i < COMMANDS; i++)
        fprintf(out, "  tulle %s %s\n      %s\n", commands[i].name, commands[i].usage,
                commands[i].help);
    fputs("\nRUN is the directory of a run, CONFIG a YAML file such as configs/quickstart.yaml; "
          "key=value sets one key of it\n"
          "(`tulle config explain KEY`).  Exit status: 0 fine, 1 failure, 2 usage or config, 3 out "
          "of memory, 4 bad input,\n"
          "5 I/O error, 6 run directory in use, 7 diverged, 75 stopped and resumable, 130 "
          "interrupted and resumable.\n", out);
}

/*
 * The first signal asks for a save and an end, another one ends at once.  Wrappers such as
 * timeout pass a Ctrl-C on that the terminal has sent to all of them: what comes within a second is
 * the same request.
 */
static void on_stop(int signal)
{
    static volatile time_t first;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!train_stop_signal) {
        train_stop_signal = signal;
        first = now.tv_sec;
    } else if (now.tv_sec > first + 1) {
        _exit(ag_exit_status(AG_EINTR));
    }
}

static void on_save(int signal)
{
    (void)signal;
    train_save_signal = 1;
}

/* A signal that was ignored when the program started (nohup, `&` in a script) stays so. */
static void catch_signals(bool stops)
{
    static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
    struct sigaction stop = { .sa_handler = on_stop, .sa_flags = SA_RESTART }, was;
    struct sigaction save = { .sa_handler = on_save, .sa_flags = SA_RESTART };
    struct sigaction ignore = { .sa_handler = SIG_IGN };
    for (size_t i = 0; stops && i < sizeof signals / sizeof *signals; i++)
        if (sigaction(signals[i], NULL, &was) == 0 && was.sa_handler != SIG_IGN)
            sigaction(signals[i], &stop, NULL);
    if (stops) sigaction(SIGUSR1, &save, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
    sigaction(SIGXFSZ, &ignore, NULL);    /* a file too large is an error of write(), not a death */
}

/*
 * GCC's OpenMP lets a thread that waits spin for some 20 ms before it sleeps.  Where another
 * program wants the core, that is 20 ms lost at each of the hundreds of waits of a step.  Its
 * patience can only be set in the environment, and only before the program starts: so, unless the
 * user has set it, set it and start again.
 */
static void shorten_spinning(char **argv)
{
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    if (setenv("GOMP_SPINCOUNT", "3000", 1)) return;
    cpu_set_t mine;                  /* OMP_PROC_BIND has bound this thread to one of them */
    train_processors(&mine);
    sched_setaffinity(0, sizeof mine, &mine);
    execv("/proc/self/exe", argv);   /* returns only where it fails: then it spins */
}

static int run(int argc, char **argv, ag_err *err)
{
    if (argc < 2) {
        usage(stderr);
        return AG_ECONFIG;
    }
    if (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        usage(stdout);
        return AG_OK;
    }
    if (!strcmp(argv[1], "version") || !strcmp(argv[1], "--version")) {
        puts("tulle " TULLE_VERSION);
        return AG_OK;
    }
    for (int i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name)) continue;
        if (argc > 2 && (!strcmp(argv[2], "--help") || !strcmp(argv[2], "-h"))) {
            printf("tulle %s %s\n    %s\n", commands[i].name, commands[i].usage, commands[i].help);
            return AG_OK;
        }
        catch_signals(commands[i].ends_itself);
        const int r = commands[i].run(argc - 1, argv + 1, err);
        if (r == AG_ECONFIG && !err->code)
            return ag_err_set(err, r, "usage: tulle %s %s", commands[i].name, commands[i].usage);
        return r;
    }
    return ag_err_set(err, AG_ECONFIG, "no command '%s'; `tulle help` lists them", argv[1]);
}

int main(int argc, char **argv)
{
    ag_err err = { 0 };
    shorten_spinning(argv);
    int r = run(argc, argv, &err);
    if ((fflush(stdout) || ferror(stdout)) && r == AG_OK)
        r = ag_err_set(&err, AG_EIO, "not all of the output could be written");
    if (err.code) fprintf(stderr, "tulle: %s\n", err.msg);
    return ag_exit_status(r);
}
