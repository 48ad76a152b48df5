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
/* What is not given back: blocks of device memory, their bytes; streams, events, graphs, pinned
 * blocks. */
long simt_blocks(void);
size_t simt_bytes(void);
long simt_handles(void);
/* Launches of graphs, so far. */
long simt_graph_launches(void);
/* Is p in a block of device memory? */
int simt_is_device(const void *p);

#ifdef __cplusplus
}

#include "autograd/cuda/runtime.h"

#include <functional>

/* For what stands in for other libraries of CUDA, and among the files of this one. */
namespace simt {
/* Counts a call; false: it is to fail. */
bool call_works(void);
/* The same for a launch; keeps the error for cudaGetLastError. */
bool may_launch(void);
/* Bytes of shared memory that a block can have: those in TULLE_SIMT_SHARED, or as an H100. */
size_t most_shared(void);
/* Runs what, now or later (simt_seed), with the memory of the device in reach. */
void enqueue(std::function<void()> what);

/* runtime.cpp.  Counts a call: cudaSuccess, or the error that it shall return. */
cudaError_t call(cudaError_t failure = cudaErrorLaunchFailure);
cudaError_t keep(cudaError_t e);     /* for cudaGetLastError */
void run_queue(void);                /* the device does what it has been told */
bool is_pinned(const void *p);

/* stream.cpp.  A capture keeps `what` instead of the queue; false: there is none. */
bool capture(const std::function<void()> &what);
/* cudaSuccess; or that of a capture that is invalid, where only its end is not an error. */
cudaError_t captured_ok(void);
/* What cannot be captured is an error in a capture, which is invalid from then on. */
cudaError_t unless_captured(void);
bool is_stream(cudaStream_t s);
long stream_handles(void);           /* streams, events, graphs */
}

#define SIMT_TRY(x)                                                                     \
    do {                                                                                \
        const cudaError_t failure_ = x;                                                 \
        if (failure_ != cudaSuccess) return failure_;                                   \
    } while (0)
#define CALL(...) SIMT_TRY(simt::call(__VA_ARGS__))
#define CAPTURED_OK() SIMT_TRY(simt::captured_ok())
#define UNLESS_CAPTURED() SIMT_TRY(simt::unless_captured())
#endif
#endif
