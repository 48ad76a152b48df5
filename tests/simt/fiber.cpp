/* fiber.cpp -- stacks that take turns, with what the sanitizers want to know of them. */
#include "fiber.h"

#include <cstddef>

#include <sys/mman.h>

#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT 1
#endif
#ifdef SIMT_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

struct fiber {
    void (*main)(void);
    char *stack;                     /* its lowest byte */
    size_t stack_size;
#ifdef SIMT_UCONTEXT
    ucontext_t context;
#else
    void *stack_pointer;             /* while it does not run */
#endif
    void *tsan, *fake_stack;         /* the sanitizers' */
};

#if defined(SIMT_TSAN) || defined(__SANITIZE_ADDRESS__)
static const size_t STACK = 256 << 10;                   /* bytes: sanitizers want room */
#else
static const size_t STACK = 64 << 10;
#endif
static const size_t GUARD = 64 << 10;                    /* bytes that trap, a multiple of pages */

static fiber host, *current = &host, *came_from;
static long n_switches;

fiber *fiber_running(void) { return current; }
fiber *fiber_host(void) { return &host; }
long fiber_switches(void) { return n_switches; }

#ifndef SIMT_UCONTEXT
/* Saves the registers that calls preserve and the stack pointer, and goes on with another stack. */
extern "C" void simt_switch(void **ret_stack_pointer, void *stack_pointer);
asm(".text\n.type simt_switch, @function\nsimt_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size simt_switch, .-simt_switch\n");
#endif

/* The running fiber has just been gone to. */
static void arrive(void)
{
#ifdef __SANITIZE_ADDRESS__
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(current->fake_stack, &bottom, &size);
    if (came_from == &host) {
        host.stack = (char *)bottom;
        host.stack_size = size;
    }
#endif
}

void fiber_go_to(fiber *to)
{
    fiber *me = current;
    came_from = me;
    current = to;
    n_switches++;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&me->fake_stack, to->stack, to->stack_size);
#endif
#ifdef SIMT_TSAN
    if (!me->tsan) me->tsan = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to->tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef SIMT_UCONTEXT
    swapcontext(&me->context, &to->context);
#else
    simt_switch(&me->stack_pointer, to->stack_pointer);
#endif
    arrive();
}

static void enter(void)
{
    arrive();
    current->main();
}

fiber *fiber_new(void (*main)(void), unsigned number)
{
    char *p = (char *)mmap(nullptr, STACK + GUARD, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, GUARD, PROT_NONE)) return nullptr;
    fiber *f = new fiber();
    f->main = main;
    f->stack = p + GUARD;
    f->stack_size = STACK - number * 320 % 16384;
#ifdef SIMT_UCONTEXT
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = f->stack_size;
    makecontext(&f->context, enter, 0);
#else
    void **top = (void **)(f->stack + f->stack_size);
    top[-1] = nullptr;               /* nobody has called enter() */
    top[-2] = (void *)enter;
    for (int i = 3; i <= 8; i++) top[-i] = nullptr;
    f->stack_pointer = top - 8;
#endif
#ifdef SIMT_TSAN
    f->tsan = __tsan_create_fiber(0);
#endif
    return f;
}

}
