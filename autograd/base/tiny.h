/*
 * tiny.h -- numbers below 1.2e-38 taken for zero, for a while and by this thread.
 *
 * Arithmetic on them is twenty times slower, and they come in crowds: the moments of a weight
 * without gradient decay into them and stay there for good, and a softmax that has become sure
 * makes them.
 */
#ifndef AG_BASE_TINY_H
#define AG_BASE_TINY_H

#ifdef __SSE__
#include <xmmintrin.h>

enum { AG_FLUSH_RESULTS = 0x8000, AG_FLUSH_INPUTS = 0x0040 };    /* bits of MXCSR */

/* Returns what ag_tiny_restore() wants. */
static inline unsigned ag_tiny_flush(void)
{
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | AG_FLUSH_RESULTS | AG_FLUSH_INPUTS);
    return before;
}

static inline void ag_tiny_restore(unsigned before) { _mm_setcsr(before); }
#else
static inline unsigned ag_tiny_flush(void) { return 0; }
static inline void ag_tiny_restore(unsigned before) { (void)before; }
#endif

#endif
