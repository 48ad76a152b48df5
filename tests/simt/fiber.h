/*
 * fiber.h -- stacks that take turns: what the scheduler (simt.cpp) makes threads of.
 *
 * A switch saves six registers.  AddressSanitizer is told of each stack, ThreadSanitizer of each
 * fiber; to it fibers are threads that nothing orders but `order`.  It must not look at the
 * scheduler itself: built for it, the scheduler is not instrumented and has SIMT_TSAN instead.
 */
#ifndef TESTS_SIMT_FIBER_H
#define TESTS_SIMT_FIBER_H

#ifdef SIMT_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace simt {

struct fiber;

/* Runs main, which never returns, from the first switch to it on.  Stacks of different numbers
 * begin at different lines of the cache.  NULL: no memory. */
fiber *fiber_new(void (*main)(void), unsigned number);
fiber *fiber_running(void);
fiber *fiber_host(void);             /* what the program started with */
/* Returns when somebody goes to this fiber again. */
void fiber_go_to(fiber *to);
long fiber_switches(void);           /* so far */

/* What is done before() comes before what is done after(), says this to ThreadSanitizer. */
struct order {
    long it;
#ifdef SIMT_TSAN
    void before() { __tsan_release(&it); }
    void after() { __tsan_acquire(&it); }
#else
    void before() {}
    void after() {}
#endif
};

}
#endif
