/*
 * clones.h -- AG_CLONES in front of a function: the compiler builds it for several instruction sets
 * and the loader picks one.  For elementwise loops outside the kernel tables; as products and sums
 * are never contracted there, all copies give the same bits.
 */
#ifndef AG_BASE_CLONES_H
#define AG_BASE_CLONES_H

#if defined __x86_64__ && defined __gnu_linux__ && defined __GNUC__ && !defined __clang__
#define AG_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define AG_CLONES
#endif

#endif
