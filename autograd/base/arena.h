/*
 * arena.h -- bump memory that is freed all at once.
 *
 * A step of training allocates thousands of small things (records, shapes) and dozens of large ones
 * (activations) and drops all of them together.  So they come from an arena: allocation is an
 * addition, freeing is ag_arena_reset().
 *
 * While it grows the arena is a chain of chunks, so no size need be known in advance.  The first
 * reset replaces the chain by one chunk of the high-water size; from then on the same program gets
 * the same addresses every step.  Chunks of 2 MiB and more are on huge pages: first touch of 4 kB
 * pages costs six times as much.
 */
#ifndef AG_BASE_ARENA_H
#define AG_BASE_ARENA_H

#include <stddef.h>

enum { AG_ALIGN = 64 };              /* bytes: one cache line, one AVX-512 load */

/* Where chunks come from. */
typedef struct ag_memory {
    void *(*alloc)(size_t bytes);    /* NULL: out of memory; aligned to AG_ALIGN */
    void  (*free)(void *p, size_t bytes);
} ag_memory;

typedef struct ag_arena {
    struct ag_chunk *head;           /* newest chunk first; NULL when empty */
    size_t used, peak;               /* bytes handed out now / at most since init */
    size_t chunk_min;                /* bytes of the smallest chunk; 0: 64 KiB */
    const ag_memory *memory;         /* of a device; NULL: the host's */
} ag_arena;

typedef struct ag_mark { struct ag_chunk *chunk; size_t chunk_used, used; } ag_mark;

/* Memory for n*size bytes, AG_ALIGN-aligned, its contents garbage.  NULL if out of memory. */
void *ag_arena_alloc(ag_arena *a, size_t n, size_t size);

/* Everything allocated since the mark is forgotten. */
ag_mark ag_arena_mark(const ag_arena *a);
void    ag_arena_rewind(ag_arena *a, ag_mark m);
int     ag_arena_is_after(const ag_arena *a, ag_mark m, const void *p);  /* allocated since m? */
void    ag_arena_reset(ag_arena *a);     /* keeps the memory, forgets the contents */
void    ag_arena_release(ag_arena *a);   /* gives the memory back */
size_t  ag_arena_reserved(const ag_arena *a);            /* bytes taken from the system */

/* Long-lived blocks: zeroed, on huge pages where large.  NULL if out of memory. */
void *ag_block_alloc(size_t bytes);
void  ag_block_free(void *p, size_t bytes);              /* NULL is fine */

/* Tests only: the n-th allocation from now fails, and with `for_good` all after it (0: never). */
void ag_fault_after(long n, int for_good);
int  ag_fault_now(void);                 /* for other allocators: is this one to fail? */

#endif
