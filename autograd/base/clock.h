/* clock.h -- seconds, for status lines and benchmarks. */
#ifndef AG_BASE_CLOCK_H
#define AG_BASE_CLOCK_H

#include <time.h>

/* Seconds of a clock that never goes back. */
static inline double ag_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
