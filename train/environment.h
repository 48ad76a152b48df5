/* environment.h -- what a run ran on: threads, processor, compiler; written to env.json. */
#ifndef TRAIN_ENVIRONMENT_H
#define TRAIN_ENVIRONMENT_H

#include "autograd/base/error.h"
#include "autograd/device.h"
#include <sched.h>
#include <stdint.h>

/* The processors that this process may use.  With OMP_PROC_BIND the calling thread has been bound
 * to one of them before main() began; OpenMP knows the others. */
void train_processors(cpu_set_t *ret_mine);
int train_threads(void);             /* that parallel loops use */
/* n threads; 0: as many as this process may use processors, unless OMP_NUM_THREADS says
 * otherwise.  If that makes one thread for each processor, every thread is bound to its own. */
int train_threads_set(int64_t n, ag_err *err);

/* A JSON object (malloc): version, compiler, kernels (instruction set), processor, GPU, threads,
 * system; device NULL: no GPU.  AG_ENOMEM. */
int train_environment(const ag_device *device, const char *kernels, char **ret_json, ag_err *err);

#endif
