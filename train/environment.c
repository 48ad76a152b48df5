#include "train/environment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#ifdef _OPENMP
#include <omp.h>
#endif

static void find_processors(cpu_set_t *ret_mine)
{
    CPU_ZERO(ret_mine);
#ifdef _OPENMP
    for (int p = 0; p < omp_get_num_places(); p++) {
        int id[CPU_SETSIZE];
        const int n = omp_get_place_num_procs(p);
        if (n > CPU_SETSIZE) continue;
        omp_get_place_proc_ids(p, id);
        for (int i = 0; i < n; i++) CPU_SET((size_t)id[i], ret_mine);
    }
#endif
    if (!CPU_COUNT(ret_mine) && sched_getaffinity(0, sizeof *ret_mine, ret_mine))
        CPU_SET(0, ret_mine);
}

/* Asked once, before this thread is bound to one of them. */
void train_processors(cpu_set_t *ret_mine)
{
    static cpu_set_t mine;
    if (!CPU_COUNT(&mine)) find_processors(&mine);
    *ret_mine = mine;
}

int train_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

#ifdef _OPENMP
/*
 * Where the threads are as many as the processors, each gets one of its own: left to itself, Linux
 * may keep two threads that wake each other on one processor for seconds while another is idle.
 */
static void bind_threads(const cpu_set_t *mine)
{
    if (getenv("OMP_PROC_BIND") || omp_get_max_threads() != CPU_COUNT(mine)) return;
#pragma omp parallel
    {
        int skip = omp_get_thread_num(), cpu = 0;
        while (!CPU_ISSET(cpu, mine) || skip-- > 0) cpu++;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one);  /* a wish: refused, the thread goes where it may */
    }
}
#endif

int train_threads_set(int64_t n, ag_err *err)
{
#ifdef _OPENMP
    (void)err;
    cpu_set_t mine;
    train_processors(&mine);
    if (n > 0) omp_set_num_threads((int)n);
    else if (!getenv("OMP_NUM_THREADS")) omp_set_num_threads(CPU_COUNT(&mine));
    bind_threads(&mine);
    return AG_OK;
#else
    return n > 1 ? ag_err_set(err, AG_ECONFIG, "train.threads is %lld, but this tulle was built "
                              "without OpenMP", (long long)n) : AG_OK;
#endif
}

/* The "model name" of /proc/cpuinfo, without characters that JSON would escape. */
static void processor(char buf[128])
{
    snprintf(buf, 128, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, "model name", 10) || !strchr(line, ':')) continue;
        snprintf(buf, 128, "%.*s", (int)strcspn(strchr(line, ':') + 2, "\n"),
                 strchr(line, ':') + 2);
        break;
    }
    if (f) fclose(f);
    for (char *p = buf; *p; p++)
        if (*p == '"' || *p == '\\' || (unsigned char)*p < ' ') *p = ' ';
}

int train_environment(const ag_device *device, const char *kernels, char **ret_json, ag_err *err)
{
    char cpu[128], gpu[256] = "none";
    size_t total, unused;
    struct utsname u = { .sysname = "unknown" };
    processor(cpu);
    if (device) device->about(gpu, sizeof gpu, &total, &unused);
    uname(&u);
    char *json = NULL;
    if (asprintf(&json, "{\n  \"version\": \"" TULLE_VERSION "\",\n  \"compiler\": \"%s\",\n"
                 "  \"kernels\": \"%s\",\n"
                 "  \"processor\": \"%s\",\n  \"gpu\": \"%s\",\n  \"threads\": %d,\n"
                 "  \"system\": \"%s %s %s\"\n}\n",
                 __VERSION__, kernels, cpu, gpu, train_threads(), u.sysname, u.release,
                 u.machine) < 0)
        return ag_err_set(err, AG_ENOMEM, "out of memory");
    *ret_json = json;
    return AG_OK;
}
