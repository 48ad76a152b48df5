/* gpu.h -- which GPU a test runs on: a real one (-DTEST_REAL_GPU), or the CPU in its place. */
#ifndef TESTS_GPU_H
#define TESTS_GPU_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

/* Is case i one of those to run?  TULLE_SIMT_PART=p/n: every n-th from the p-th on; else all. */
static inline bool gpu_takes(long i)
{
    static long part, parts;
    if (!parts) {
        const char *some = getenv("TULLE_SIMT_PART");
        parts = 1;
        if (some && (sscanf(some, "%ld/%ld", &part, &parts) != 2 || parts < 1)) {
            fprintf(stderr, "TULLE_SIMT_PART=%s: want PART/PARTS\n", some);
            exit(2);
        }
    }
    return i % parts == part % parts;
}

/* The same for cases that have no number: each asks once. */
static inline bool gpu_takes_next(void)
{
    static long turn;
    return gpu_takes(turn++);
}

/* What no order of threads changes runs in one part: that which sanitizers have, too. */
static inline bool gpu_takes_once(void) { return gpu_takes(1); }

#ifdef TEST_REAL_GPU
static inline bool gpu_is_real(void) { return true; }
static inline void gpu_order(unsigned seed) { (void)seed; }
static inline long gpu_calls(void) { return 0; }
#else
#include "simt/mock.h"
static inline bool gpu_is_real(void) { return false; }
/* The order in which threads run, from now on: the seed of the run and this. */
static inline void gpu_order(unsigned seed)
{
    static unsigned first;
    static bool known;
    if (!known) first = simt_seed_now(), known = true;
    simt_seed(seed ? first + seed : first);
}
/* Calls of the runtime, so far; a launch is one.  0 on a real GPU. */
static inline long gpu_calls(void) { return simt_calls(); }
#endif
#endif
