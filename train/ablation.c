/*
 * ablation.c -- the runs of an ablation: which are to be done, several at a time, each a process.
 */
#include "train/ablation.h"

#include "autograd/base/io.h"
#include "train/environment.h"
#include "train/schema.h"
#include "train/session.h"
#include "train/trainer.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct job {                 /* job i of several has processor i */
    pid_t pid;                       /* 0: none, the place is free */
    int   trial;
} job;

typedef struct series {
    const train_ablation *a;
    const char *dir;
    train_config *config;            /* [n_arms] */
    nn_cost      *cost;              /* [n_arms] */
    train_trial  *trial;             /* [n], seeds outermost */
    job          *job;               /* [jobs] */
    int           n, jobs, running, ended;
    cpu_set_t     mine;              /* processors of this process */
    FILE         *out;
    char          base[PATH_MAX];    /* the configuration that all arms change */
} series;

/* ---- processors ---- */

/*
 * Jobs of one thread each get a processor of their own: left to OMP_PROC_BIND, all of them would be
 * bound to the first, and two runs that move about do not compare in time.
 */
static void bind_job(const series *s, int slot)
{
    cpu_set_t one;
    int skip = slot % CPU_COUNT(&s->mine), cpu = 0;
    while (!CPU_ISSET(cpu, &s->mine) || skip-- > 0) cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, s->jobs > 1 ? &one : &s->mine);     /* a wish */
}

/* ---- one job ---- */

static int arm_of(const series *s, int trial) { return trial % s->a->n_arms; }
static int64_t seed_of(const series *s, int trial) { return s->a->seed[trial / s->a->n_arms]; }

static void error_path(const train_trial *t, char path[PATH_MAX + 8])
{
    snprintf(path, PATH_MAX + 8, "%s.err", t->dir);
}

static const int stops[] = { SIGINT, SIGTERM, SIGHUP };
enum { STOPS = sizeof stops / sizeof *stops };

/* In the child: does not return.  A signal that comes before the program catches it ends it; one
 * that is ignored stays so.  Should this process die, the runs save and stop. */
static void become(const series *s, int slot, int errors, char *const *argv, const sigset_t *mask)
{
    struct sigaction was, usual = { .sa_handler = SIG_DFL };
    for (int i = 0; i < STOPS; i++)
        if (!sigaction(stops[i], NULL, &was) && was.sa_handler != SIG_IGN)
            sigaction(stops[i], &usual, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    bind_job(s, slot);
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    dup2(errors, STDERR_FILENO);
    sigprocmask(SIG_SETMASK, mask, NULL);
    execv("/proc/self/exe", argv);
    kill(getpid(), SIGKILL);         /* what the parent then says is near enough */
}

static pid_t launch(const series *s, int slot, int errors, char *const *argv)
{
    sigset_t all, mask;
    sigemptyset(&all);
    for (int i = 0; i < STOPS; i++) sigaddset(&all, stops[i]);
    sigprocmask(SIG_BLOCK, &all, &mask);
    const pid_t pid = fork();
    if (pid == 0) become(s, slot, errors, argv, &mask);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    return pid;
}

/* Starts a trial, or goes on with it where its directory holds a configuration. */
static void start(series *s, int slot, int i)
{
    train_trial *t = &s->trial[i];
    const train_arm *arm = &s->a->arm[arm_of(s, i)];
    const train_config *c = &s->config[arm_of(s, i)];
    char dir[PATH_MAX + 8], seed[64], threads[64], path[PATH_MAX + 32];
    const char *argv[TRAIN_SETTINGS_MAX + 16] = { "tulle" };
    int n = 1;
    snprintf(path, sizeof path, "%s/config.yaml", t->dir);
    if (ag_path_exists(path)) {
        argv[n++] = "resume";
        argv[n++] = t->dir;
    } else {
        argv[n++] = "train";
        argv[n++] = s->base;
        for (int k = 0; k < arm->n; k++) argv[n++] = arm->set[k].text;
        snprintf(seed, sizeof seed, "run.seed=%" PRId64, seed_of(s, i));
        snprintf(dir, sizeof dir, "run.dir=%s", t->dir);
        argv[n++] = seed;
        argv[n++] = dir;
    }
    snprintf(threads, sizeof threads, "train.threads=%" PRId64,
             s->jobs > 1 ? 1 : c->train.threads);
    argv[n++] = threads;
    argv[n++] = "--quiet";
    error_path(t, path);
    const int errors = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);
    const pid_t pid = errors < 0 ? -1 : launch(s, slot, errors, (char *const *)argv);
    if (pid < 0) snprintf(t->error, sizeof t->error, "cannot be started: %s", strerror(errno));
    else s->job[slot].pid = pid, s->job[slot].trial = i, s->running++;
    if (errors >= 0) close(errors);
}

/* What the run said before it ended, in one line. */
static void read_error(train_trial *t, int status)
{
    char path[PATH_MAX + 8], *text = NULL, line[sizeof t->error];
    size_t size = 0, n = 0;
    error_path(t, path);
    if (ag_file_read(path, 1 << 20, &text, &size, NULL) < 0) size = 0;
    const char *p = text;
    if (size > 7 && !strncmp(p, "tulle: ", 7)) p += 7;
    for (; size && *p && n + 1 < sizeof line; p++) {
        if (!isspace((unsigned char)*p)) line[n++] = *p;
        else if (n && line[n - 1] != ' ') line[n++] = ' ';
    }
    while (n && line[n - 1] == ' ') n--;
    line[n] = '\0';
    free(text);
    if (n) train_text_clean(line, t->error, sizeof t->error);
    else if (WIFSIGNALED(status))
        snprintf(t->error, sizeof t->error, "ended by signal %d", WTERMSIG(status));
    else
        snprintf(t->error, sizeof t->error, "ended with status %d and no last evaluation",
                 WEXITSTATUS(status));
}

static int read_trial(series *s, int i, ag_err *err)
{
    const train_config *c = &s->config[arm_of(s, i)];
    const int64_t context = train_config_has_images(c) ? 1 : train_config_context(c);
    return train_trial_read(&s->trial[i], c->train.steps, c->train.batch * context, err);
}

/* Whether the end of a process is that of a run that was asked to stop, by us or beside us. */
static bool was_stopped(int status)
{
    return train_stop_signal && (WIFSIGNALED(status) ||
                                 WEXITSTATUS(status) == ag_exit_status(AG_EINTR) ||
                                 WEXITSTATUS(status) == ag_exit_status(AG_ESTOPPED));
}

static int job_ended(series *s, job *j, int status, ag_err *err)
{
    const int i = j->trial;
    train_trial *t = &s->trial[i];
    char path[PATH_MAX + 8];
    j->pid = 0;
    s->running--;
    const int r = read_trial(s, i, err);
    if (r < 0) return r;
    const bool fine = WIFEXITED(status) && WEXITSTATUS(status) == 0 && t->done;
    if (!fine && !was_stopped(status)) {
        t->done = false;
        read_error(t, status);
    } else {
        error_path(t, path);
        unlink(path);
        if (!t->done) return AG_OK;
    }
    s->ended++;
    if (!s->out) return AG_OK;
    fprintf(s->out, "[%d/%d] %s seed %" PRId64 ": ", s->ended, s->n, s->a->arm[arm_of(s, i)].name,
            seed_of(s, i));
    if (!t->done) fprintf(s->out, "failed: %s\n", t->error);
    else fprintf(s->out, "val loss %.4f, trained %.1f s\n", t->point[t->n - 1].loss, t->seconds);
    fflush(s->out);
    return AG_OK;
}

/* ---- all jobs ---- */

static void signal_all(const series *s, int signal)
{
    for (int i = 0; i < s->jobs; i++)
        if (s->job[i].pid) kill(s->job[i].pid, signal);
}

/* The job that has ended, NULL for none yet. */
static job *ended_job(series *s, int *ret_status)
{
    for (int i = 0; i < s->jobs; i++)
        if (s->job[i].pid && waitpid(s->job[i].pid, ret_status, WNOHANG) == s->job[i].pid)
            return &s->job[i];
    return NULL;
}

/* Fills free places with what is left to do, from *next on. */
static void start_jobs(series *s, int *next)
{
    for (int i = 0; i < s->jobs && !train_stop_signal; i++) {
        while (*next < s->n && s->trial[*next].done) ++*next;
        if (*next == s->n) return;
        if (!s->job[i].pid) start(s, i, (*next)++);
    }
}

static int run_jobs(series *s, ag_err *err)
{
    int code = AG_OK, next = 0, status;
    bool told = false;
    for (;;) {
        if (code == AG_OK) start_jobs(s, &next);
        if (!s->running) {
            if (code < 0 || train_stop_signal || next == s->n) return code;
            continue;                /* none of them could be started */
        }
        if ((train_stop_signal || code < 0) && !told) {
            signal_all(s, train_stop_signal ? train_stop_signal : SIGTERM);
            told = true;
        }
        job *j = ended_job(s, &status);
        const int r = j ? job_ended(s, j, status, err) : AG_OK;
        if (code == AG_OK) code = r;
        if (!j) nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
    }
}

/* ---- before the first job ---- */

/* Every arm is opened once: what is wrong with it is said before anything runs, data are fetched
 * once, and the sizes of the models are known. */
static int measure(series *s, const train_config *base, ag_err *err)
{
    for (int i = 0; i < s->a->n_arms; i++) {
        int r = train_ablation_config(&s->a->arm[i], base, &s->config[i], err);
        if (r < 0) return r;
    }
    for (int i = 0; i < s->a->n_arms; i++) {
        const train_open what = { .data = true };
        train_session *session = NULL;
        if (train_session_new(&s->config[i], &what, &session, err) < 0)
            return ag_err_prefix(err, "arm '%s': ", s->a->arm[i].name);
        s->cost[i] = session->model->cost;
        train_session_free(session);
    }
    return AG_OK;
}

/* A run that is there must be one of this configuration. */
static int check_run(const series *s, int i, ag_err *err)
{
    char path[PATH_MAX + 16], *text;
    train_config was;
    const train_config *now = &s->config[arm_of(s, i)];
    snprintf(path, sizeof path, "%s/config.yaml", s->trial[i].dir);
    if (!ag_path_exists(path)) return AG_OK;
    train_config_init(&was);
    int r = train_config_load(&was, path, err);
    if (r < 0) return r;
    was.run = now->run;
    was.train.threads = now->train.threads;
    if (!now->train.micro_batch) was.train.micro_batch = 0;      /* chosen by the run */
    r = train_config_diff(&was, now, &text, err);
    if (r < 0) return r;
    if (text[0])
        r = ag_err_set(err, AG_ECONFIG, "%s is of another configuration than arm '%s' has now; "
                       "remove it, or choose another --dir:\n%.1200s", s->trial[i].dir,
                       s->a->arm[arm_of(s, i)].name, text);
    free(text);
    return r;
}

static int find_finished(series *s, ag_err *err)
{
    for (int i = 0; i < s->n; i++) {
        const int n = snprintf(s->trial[i].dir, PATH_MAX, "%s/%s-s%" PRId64, s->dir,
                               s->a->arm[arm_of(s, i)].folder, seed_of(s, i));
        if (n >= PATH_MAX / 2)
            return ag_err_set(err, AG_ECONFIG, "the path %.200s... is too long", s->trial[i].dir);
        int r = check_run(s, i, err);
        if (r == AG_OK) r = read_trial(s, i, err);
        if (r < 0) return r;
        s->ended += s->trial[i].done;
    }
    return AG_OK;
}

static int write_file(const char *dir, const char *name, const char *text, ag_err *err)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return ag_file_replace(path, text, strlen(text), err);
}

static int write_base(series *s, const train_config *base, ag_err *err)
{
    char *text;
    snprintf(s->base, sizeof s->base, "%.*s/base.yaml", PATH_MAX / 2, s->dir);
    int r = train_config_dump(base, TRAIN_DUMP_PLAIN, &text, err);
    if (r < 0) return r;
    r = write_file(s->dir, "base.yaml", text, err);
    free(text);
    return r;
}

/* ---- the whole ---- */

static int series_new(series *s, int jobs, ag_err *err)
{
    train_processors(&s->mine);
    s->n = s->a->n_seeds * s->a->n_arms;
    s->jobs = jobs ? jobs : CPU_COUNT(&s->mine);
    s->config = calloc((size_t)s->a->n_arms, sizeof *s->config);
    s->cost = calloc((size_t)s->a->n_arms, sizeof *s->cost);
    s->trial = calloc((size_t)s->n, sizeof *s->trial);
    s->job = calloc((size_t)s->jobs, sizeof *s->job);
    if (s->config && s->cost && s->trial && s->job) return AG_OK;
    return ag_err_set(err, AG_ENOMEM, "out of memory for %d runs", s->n);
}

static void series_release(series *s)
{
    for (int i = 0; s->trial && i < s->n; i++) train_trial_release(&s->trial[i]);
    free(s->config);
    free(s->cost);
    free(s->trial);
    free(s->job);
}

static int results(series *s, char **ret_table, char **ret_json, ag_err *err)
{
    const train_study study = { s->a, s->config, s->cost, s->trial };
    char *table = NULL, *json = NULL;
    int r = train_study_table(&study, &table, err);
    if (r == AG_OK) r = train_study_json(&study, &json, err);
    if (r == AG_OK) r = write_file(s->dir, "result.txt", table, err);
    if (r == AG_OK) r = write_file(s->dir, "result.json", json, err);
    if (r == AG_OK) {
        *ret_table = table;
        *ret_json = json;
        return AG_OK;
    }
    free(table);
    free(json);
    return r;
}

/* How it ended: by a signal, with runs that failed, or well. */
static int verdict(const series *s, ag_err *err)
{
    int done = 0;
    for (int i = 0; i < s->n; i++) done += s->trial[i].done;
    if (train_stop_signal && done < s->n)
        return ag_err_set(err, train_stop_signal == SIGINT ? AG_EINTR : AG_ESTOPPED,
                          "stopped by signal %d: %d of %d runs in %s are finished, the others are "
                          "saved; the same command goes on", (int)train_stop_signal, done, s->n,
                          s->dir);
    if (done < s->n)
        return ag_err_set(err, AG_EFAIL, "%d of %d runs failed; what they said is in %s/*.err",
                          s->n - done, s->n, s->dir);
    return AG_OK;
}

int train_ablation_run(const train_ablation *a, const train_config *base, const char *dir,
                       int jobs, FILE *out, char **ret_table, char **ret_json, ag_err *err)
{
    series s = { .a = a, .dir = dir, .out = out };
    ag_lock lock = { -1 };
    int r = series_new(&s, jobs, err);
    if (r == AG_OK) r = measure(&s, base, err);
    if (r == AG_OK) r = ag_dir_make(dir, err);
    if (r == AG_OK) r = ag_dir_lock(dir, &lock, err);
    if (r == AG_OK) r = find_finished(&s, err);
    if (r == AG_OK) r = write_base(&s, base, err);
    if (r == AG_OK && out)
        fprintf(out, "%s: %d arms x %d seeds, %d of %d runs to do, %d at a time\n", dir, a->n_arms,
                a->n_seeds, s.n - s.ended, s.n, s.jobs);
    if (r == AG_OK) r = run_jobs(&s, err);
    if (r == AG_OK) r = results(&s, ret_table, ret_json, err);
    if (r == AG_OK) r = verdict(&s, err);
    series_release(&s);
    ag_lock_release(&lock);
    return r;
}
