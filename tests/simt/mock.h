/*
 * mock.h -- what tests ask of the machine that stands in for a GPU: the scheduler (simt.cpp) and
 * the CUDA runtime (runtime.cpp).
 *
 * Memory of the device is out of reach while no kernel and no copy runs, so host code that follows
 * a pointer of the device crashes at once, as it would beside a GPU.
 */
#ifndef TESTS_SIMT_MOCK_H
#define TESTS_SIMT_MOCK_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The order of threads and blocks from now on.  0: that of their indices, and what is launched runs
 * at once.  Others: a random order, and what is launched or copied runs when the host waits for it,
 * as late as a GPU could.  At first it is the number in TULLE_SIMT_SEED.
 */
void simt_seed(unsigned seed);
unsigned simt_seed_now(void);
long simt_switches(void);            /* between threads, so far */

/* The n-th call of the runtime from now fails (1: the next; 0: none), with all after it or alone:
 * an allocation with cudaErrorMemoryAllocation, others with cudaErrorLaunchFailure.  A launch is a
 * call.  At first it is the number in TULLE_SIMT_FAIL, alone. */
void simt_fail_call(long n);
void simt_fail_from(long n);
long simt_calls(void);               /* of the runtime, so far */

/* Bytes that the device has from now on.  At first: those in TULLE_SIMT_MEMORY, or 8 GB. */
void simt_memory_limit(size_t bytes);
/* What is not given back: blocks of device memory, their bytes; streams, events, pinned blocks. */
long simt_blocks(void);
size_t simt_bytes(void);
long simt_handles(void);
/* Is p in a block of device memory? */
int simt_is_device(const void *p);

#ifdef __cplusplus
}

#include <functional>

/* For what stands in for other libraries of CUDA. */
namespace simt {
/* Counts a call; false: it is to fail. */
bool call_works(void);
/* The same for a launch; keeps the error for cudaGetLastError. */
bool may_launch(void);
/* Bytes of shared memory that a block can have: those in TULLE_SIMT_SHARED, or as an H100. */
size_t most_shared(void);
/* Runs what, now or later (simt_seed), with the memory of the device in reach. */
void enqueue(std::function<void()> what);
}
#endif
#endif
