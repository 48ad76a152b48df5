/*
 * guard.c -- runs a parser of untrusted files in a child process with limits.
 *
 * libhdf5 dies on some damaged files (by signal, by assertion, or by eating memory), and no check
 * beforehand finds them all.  So it works in a child that may not write, grow or run on, and
 * answers through a pipe with a struct of fixed size; whatever kills the child is an ordinary error
 * of the parent.
 */
#include "data/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void limit(int what, rlim_t most)
{
    struct rlimit r;
    if (getrlimit(what, &r) == 0 && (r.rlim_max == RLIM_INFINITY || most < r.rlim_max)) {
        r.rlim_cur = r.rlim_max = most;
        setrlimit(what, &r);
    }
}

#ifndef __SANITIZE_ADDRESS__         /* whose shadow memory is larger than any limit */
static void limit_memory(int64_t more)
{
    long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%lld", &pages) == 1)
        limit(RLIMIT_AS, (rlim_t)(pages * sysconf(_SC_PAGESIZE) + more));
    if (f)
        fclose(f);
}
#else
static void limit_memory(int64_t more) { (void)more; }
#endif

static void child(const data_guard *g, data_guard_work *work, void *arg, void *reply, size_t size,
                  int out)
{
    const int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3 && null >= 0; fd++)
        dup2(null, fd);
    for (int sig = 1; sig < 32; sig++)
        signal(sig, SIG_DFL);
    limit_memory(g->memory);
    limit(RLIMIT_CPU, (rlim_t)ceil(g->seconds));
    limit(RLIMIT_FSIZE, (rlim_t)g->file_size);
    limit(RLIMIT_NOFILE, 64);
    limit(RLIMIT_CORE, 0);
    work(arg, reply);
    _exit(write(out, reply, size) == (ssize_t)size ? 0 : 1);
}

/* Reads size bytes before the time is up; the number read otherwise. */
static size_t read_reply(int fd, char *to, size_t size, double until)
{
    size_t got = 0;
    while (got < size) {
        const double left = until - now();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        const int ready = left > 0 ? poll(&p, 1, (int)(left * 1e3) + 1) : 0;
        if (ready == 0 || (ready < 0 && errno != EINTR))
            break;
        if (ready < 0)
            continue;
        const ssize_t n = read(fd, to + got, size - got);
        if (n == 0 || (n < 0 && errno != EINTR))
            break;
        got += n > 0 ? (size_t)n : 0;
    }
    return got;
}

static int judge(size_t got, size_t size, bool late, int status, const char *name, ag_err *err)
{
    if (got == size)
        return AG_OK;
    if (late)
        return ag_err_set(err, AG_EINPUT, "'%s' is damaged: its reader did not come to an end",
                          name);
    if (WIFSIGNALED(status))
        return ag_err_set(err, AG_EINPUT, "'%s' is damaged: its reader was ended by signal %d (%s)",
                          name, WTERMSIG(status), strsignal(WTERMSIG(status)));
    return ag_err_set(err, AG_EINPUT, "'%s' is damaged: its reader gave up", name);
}

int data_guard_run(const data_guard *g, data_guard_work *work, void *arg, void *reply, size_t size,
                   const char *name, ag_err *err)
{
    int fd[2], status = 0;
    if (pipe2(fd, O_CLOEXEC))
        return ag_err_set(err, AG_EIO, "cannot make a pipe to read '%s': %s", name,
                          strerror(errno));
    fflush(NULL);
    const pid_t pid = fork();
    if (pid < 0) {
        const int e = errno;
        close(fd[0]);
        close(fd[1]);
        return ag_err_set(err, AG_EIO, "cannot start a process to read '%s': %s", name,
                          strerror(e));
    }
    if (pid == 0) {
        close(fd[0]);
        child(g, work, arg, reply, size, fd[1]);
    }
    close(fd[1]);
    const double until = now() + g->seconds;
    const size_t got = read_reply(fd[0], reply, size, until);
    const bool late = got < size && now() >= until;
    close(fd[0]);
    if (got < size)
        kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    return judge(got, size, late, status, name, err);
}
