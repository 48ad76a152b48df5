/* gpu.h -- which GPU a test runs on: a real one (-DTEST_REAL_GPU), or the CPU in its place. */
#ifndef TESTS_GPU_H
#define TESTS_GPU_H

#include <stdbool.h>

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
