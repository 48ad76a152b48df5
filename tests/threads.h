/*
 * threads.h -- how many threads the kernels of a test use.
 */
#ifndef TESTS_THREADS_H
#define TESTS_THREADS_H

#ifdef _OPENMP
#include <omp.h>
#endif

static inline void set_threads(int n)
{
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

#endif
