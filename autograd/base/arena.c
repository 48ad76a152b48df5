#include "arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

enum { HUGE = 2 << 20 };

struct ag_chunk {
    struct ag_chunk *next;
    size_t size, used;
    unsigned char *mem;
};

/* What is not handed out: AddressSanitizer reports its use.  It knows nothing of a GPU. */
static void hide(const ag_arena *a, void *p, size_t n)
{
    if (!a->memory) ASAN_POISON_MEMORY_REGION(p, n);
}

static void show(const ag_arena *a, void *p, size_t n)
{
    if (!a->memory) ASAN_UNPOISON_MEMORY_REGION(p, n);
}

static long fault_countdown;
static int fault_for_good;

void ag_fault_after(long n, int for_good)
{
    fault_countdown = n;
    fault_for_good = for_good;
}

int ag_fault_now(void)
{
    if (fault_countdown <= 0) return 0;
    if (fault_countdown > 1) {
        fault_countdown--;
        return 0;
    }
    if (!fault_for_good) fault_countdown = 0;
    return 1;
}

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

void *ag_block_alloc(size_t bytes)
{
    if (ag_fault_now() || bytes > SIZE_MAX / 2) return NULL;
    if (bytes < HUGE) {
        void *p = aligned_alloc(AG_ALIGN, round_up(bytes ? bytes : 1, AG_ALIGN));
        return p ? memset(p, 0, round_up(bytes ? bytes : 1, AG_ALIGN)) : NULL;
    }
    /* map one huge page more than needed and give back what lies outside the aligned part */
    const size_t size = round_up(bytes, HUGE), more = size + HUGE;
    unsigned char *raw = mmap(NULL, more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                              0);
    if (raw == MAP_FAILED) return NULL;
    unsigned char *p = raw + (HUGE - (uintptr_t)raw % HUGE) % HUGE;
    if (p > raw) munmap(raw, (size_t)(p - raw));
    if (p + size < raw + more) munmap(p + size, (size_t)(raw + more - (p + size)));
    madvise(p, size, MADV_HUGEPAGE);             /* a wish: where it is refused, small pages do */
    return p;
}

void ag_block_free(void *p, size_t bytes)
{
    if (!p) return;
    if (bytes < HUGE) free(p);
    else munmap(p, round_up(bytes, HUGE));
}

static void *memory_alloc(const ag_memory *m, size_t bytes)
{
    if (!m) return ag_block_alloc(bytes);
    return ag_fault_now() || bytes > SIZE_MAX / 2 ? NULL : m->alloc(bytes);
}

static struct ag_chunk *chunk_new(const ag_arena *a, size_t size)
{
    struct ag_chunk *c = malloc(sizeof *c);
    if (!c) return NULL;
    *c = (struct ag_chunk){ .size = size, .mem = memory_alloc(a->memory, size) };
    if (!c->mem) {
        free(c);
        return NULL;
    }
    hide(a, c->mem, size);
    return c;
}

static void chunks_free(const ag_arena *a, struct ag_chunk *c)
{
    while (c) {
        struct ag_chunk *next = c->next;
        show(a, c->mem, c->size);
        if (a->memory) a->memory->free(c->mem, c->size);
        else ag_block_free(c->mem, c->size);
        free(c);
        c = next;
    }
}

void *ag_arena_alloc(ag_arena *a, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 4) return NULL;
    if (bytes == 0) bytes = 1;
    const size_t want = round_up(bytes, AG_ALIGN);

    if (!a->head || a->head->size - a->head->used < want) {
        const size_t least = a->chunk_min ? a->chunk_min : (size_t)1 << 16;
        struct ag_chunk *c = chunk_new(a, want > least ? want : least);
        if (!c) return NULL;
        c->next = a->head;
        a->head = c;
    } else if (ag_fault_now()) {
        return NULL;
    }
    void *p = a->head->mem + a->head->used;
    a->head->used += want;
    a->used += want;
    if (a->used > a->peak) a->peak = a->used;
    show(a, p, bytes);
    return p;
}

ag_mark ag_arena_mark(const ag_arena *a)
{
    return (ag_mark){ a->head, a->head ? a->head->used : 0, a->used };
}

void ag_arena_rewind(ag_arena *a, ag_mark m)
{
    /* Chunks newer than the mark go: keeping them empty in the middle of the chain would lose
     * them. */
    while (a->head && a->head != m.chunk && a->head->next) {
        struct ag_chunk *c = a->head;
        a->head = c->next;
        c->next = NULL;
        chunks_free(a, c);
    }
    if (a->head) {
        a->head->used = a->head == m.chunk ? m.chunk_used : 0;
        hide(a, a->head->mem + a->head->used, a->head->size - a->head->used);
    }
    a->used = m.used;
}

int ag_arena_is_after(const ag_arena *a, ag_mark m, const void *p)
{
    const unsigned char *at = p;
    for (const struct ag_chunk *c = a->head; c; c = c->next) {
        const unsigned char *from = c->mem + (c == m.chunk ? m.chunk_used : 0);
        if (at >= from && at < c->mem + c->used) return 1;
        if (c == m.chunk) return 0;
    }
    return 0;
}

void ag_arena_reset(ag_arena *a)
{
    if (a->head && (a->head->next || a->head->size < a->peak)) {
        /* it grew: one chunk instead of the chain; none if there is no memory */
        chunks_free(a, a->head);
        a->head = chunk_new(a, round_up(a->peak, AG_ALIGN));
    }
    if (a->head) {
        a->head->used = 0;
        hide(a, a->head->mem, a->head->size);
    }
    a->used = 0;
}

void ag_arena_release(ag_arena *a)
{
    chunks_free(a, a->head);
    *a = (ag_arena){ .chunk_min = a->chunk_min, .memory = a->memory };
}

size_t ag_arena_reserved(const ag_arena *a)
{
    size_t n = 0;
    for (const struct ag_chunk *c = a->head; c; c = c->next) n += c->size;
    return n;
}
