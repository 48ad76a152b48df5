/*
 * env.h -- what a run ran on, for env.json: enough to explain a difference between two runs,
 * nothing that names the user or the machine.
 */
#ifndef TRAIN_ENV_H
#define TRAIN_ENV_H

#include "autograd/base/error.h"

typedef struct train_env {
    const char *version;             /* of this program */
    const char *flags;               /* of the compiler */
    const char *device;              /* "cpu", "cuda: NVIDIA ..." */
    const char *isa;                 /* "avx512" */
    int threads;
} train_env;

/* A JSON object of these, the compiler, the CPU model, its number of cores, memory and the kernel;
 * malloc'ed.  AG_ENOMEM. */
int train_env_json(const train_env *e, char **ret_json, ag_err *err);

#endif
