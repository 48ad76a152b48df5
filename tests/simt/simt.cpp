/*
 * simt.cpp -- the scheduler behind autograd/cuda/simt.h: runs kernels on the CPU, for tests.
 *
 * A block's threads are fibers.  One runs until it waits for its block or warp, or returns; then
 * the next one that is ready goes on, in the order of the indices or, with a seed, in one of many
 * random orders.  A thread that never waits costs no switch: its fiber goes on as the next thread.
 *
 * What no GPU promises ends the program with a message: threads at different barriers, a return
 * before a barrier, a shuffle that a lane of the warp does not take part in.
 *
 * With ThreadSanitizer each thread is a fiber that the sanitizer knows, and only barriers order
 * accesses; shuffles do not, as in CUDA.  Blocks are unordered too: SETS blocks have fibers of
 * their own, and only the block that takes over a set of fibers comes after the one before.  This
 * file is then built without the sanitizer and with SIMT_TSAN, so that it sees the kernels only.
 */
#include "autograd/cuda/simt.h"
#include "fiber.h"
#include "mock.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

namespace simt {

uint3 thread_index, block_index;
dim3 block_size, grid_size;
unsigned char *shared;

namespace {

#ifdef SIMT_TSAN
const bool OWN_FIBERS = true;        /* each thread has a fiber of its own */
const int SETS = 2;
#else
const bool OWN_FIBERS = false;
const int SETS = 1;
#endif
const unsigned MOST_THREADS = 1024, LANES = 32, MOST_BYTES = 64;

struct thread {
    fiber *on;                       /* NULL: not started */
    uint3 index;
};

/* Where some threads, a block or a warp, wait for each other. */
struct meeting {
    unsigned first, count;           /* threads that take part */
    unsigned here, left;             /* of them: wait, have returned */
    unsigned turn;                   /* how many times they have met */
    const char *where, *what;        /* of the first that waits */
    const thread *who;
    order *met;                      /* [2] */
};

/* What a launch is doing now; the process runs one at a time. */
const char *kernel;
const std::function<void()> *body;
thread threads[MOST_THREADS], *running;
meeting block, warps[LANES];
const thread *at_barrier[LANES];     /* per warp: one that waits for the block */
const char *at_barrier_where;
unsigned char given[LANES][2][LANES * MOST_BYTES];       /* per warp and turn: what lanes give */
unsigned ready[MOST_THREADS], n_ready;                   /* numbers of threads, the next one last */
int set;                             /* of fibers, of this block */

fiber *fibers[SETS][MOST_THREADS], *idle[MOST_THREADS];
unsigned n_fibers[SETS], n_idle;
int n_blocks;                        /* of this launch, that have begun */
order started, ended[SETS], block_met[SETS][2], warp_met[SETS][LANES][2];

unsigned seed, random_state;
bool has_seed;

unsigned number_of(const thread *t) { return (unsigned)(t - threads); }

void stop(const std::string &what)
{
    fprintf(stderr, "simt: kernel %s, block (%u,%u,%u): %s\n", kernel, block_index.x,
            block_index.y, block_index.z, what.c_str());
    abort();
}

std::string name_of(const thread *t) { return "thread " + std::to_string(number_of(t)); }

unsigned random_below(unsigned n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return (unsigned)((uint64_t)random_state * n >> 32);
}

/* Copies that ThreadSanitizer does not hear of: what it calls memcpy it checks. */
#ifdef SIMT_TSAN
__attribute__((optimize("no-tree-loop-distribute-patterns")))
void copy(void *to, const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) ((unsigned char *)to)[i] = ((const unsigned char *)from)[i];
}
__attribute__((optimize("no-tree-loop-distribute-patterns")))
void fill(void *to, unsigned char byte, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) ((unsigned char *)to)[i] = byte;
}
#else
void copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
void fill(void *to, unsigned char byte, size_t bytes) { memset(to, byte, bytes); }
#endif

/* ---- the order of threads ---- */

void fiber_main(void);

void fibers_grow(unsigned n)
{
    while (n_fibers[set] < n) {
        fibers[set][n_fibers[set]] = fiber_new(fiber_main, n_fibers[set]);
        if (!fibers[set][n_fibers[set]]) stop("no memory for stacks");
        n_fibers[set]++;
    }
}

fiber *fiber_for(const thread *t)
{
    if (OWN_FIBERS) return fibers[set][number_of(t)];
    if (!n_idle) {
        fibers_grow(n_fibers[set] + 1);
        return fibers[set][n_fibers[set] - 1];
    }
    return idle[--n_idle];
}

/* Not that of the library, which another file may have with ThreadSanitizer in it. */
void swap(unsigned &a, unsigned &b)
{
    const unsigned was = a;
    a = b;
    b = was;
}

/* Threads first .. first + count - 1 may go on. */
void make_ready(unsigned first, unsigned count)
{
    const unsigned at = n_ready;
    for (unsigned i = count; i-- > 0;) ready[n_ready++] = first + i;
    if (!seed) return;
    if (count > LANES && (seed & 1)) {      /* whole warps change places, then lanes in them */
        const unsigned n = count / LANES;
        for (unsigned i = n; i-- > 1;) {
            const unsigned j = random_below(i + 1);
            for (unsigned l = 0; l < LANES; l++)
                swap(ready[at + i * LANES + l], ready[at + j * LANES + l]);
        }
    }
    for (unsigned i = 0; i < count; i++) {
        const unsigned run = seed & 1 ? i / LANES * LANES : 0;
        swap(ready[at + i], ready[at + run + random_below(i - run + 1)]);
    }
}

/* The next thread.  Odd seeds run a warp as far as it gets, even ones change at each chance. */
thread *take_ready(void)
{
    if (seed && !(seed & 1)) swap(ready[n_ready - 1], ready[random_below(n_ready)]);
    return &threads[ready[--n_ready]];
}

void run(thread *t)
{
    running = t;
    thread_index = t->index;
}

/* The running thread waits; returns when it is its turn again. */
void let_others_run(void)
{
    thread *t = take_ready();
    if (!t->on) t->on = fiber_for(t);
    run(t);
    if (t->on != fiber_running()) fiber_go_to(t->on);
}

void check_place(const meeting &m, const char *what, const char *where)
{
    if (m.left) stop(name_of(running) + " waits for its " + what + " at " + where + ", but " +
                     std::to_string(m.left) + " of " + std::to_string(m.count) +
                     " threads have returned from the kernel");
    if (m.here && m.where != where && strcmp(m.where, where))
        stop(name_of(running) + " waits at " + where + ", but " + name_of(m.who) + " at " +
             m.where);
}

/* Waits until all that take part are here; returns how many times they had met before. */
unsigned meet(meeting &m, const char *what, const char *where)
{
    const unsigned turn = m.turn;
    check_place(m, what, where);
    if (!m.here++) {
        m.where = where;
        m.what = what;
        m.who = running;
    }
    if (m.here == m.count) {
        m.here = 0;
        m.turn++;
        if (&m == &block)
            for (const thread *&t : at_barrier) t = NULL;
        make_ready(m.first, m.count);
    }
    let_others_run();
    return turn;
}

meeting &warp_of(const thread *t) { return warps[number_of(t) / LANES]; }

unsigned meet_warp(const char *what, const char *where)
{
    const thread *other = at_barrier[number_of(running) / LANES];
    if (other) stop(name_of(running) + " waits for its warp at " + where + ", but " +
                    name_of(other) + " for the block at " + at_barrier_where);
    return meet(warp_of(running), what, where);
}

/* The running thread has returned from the kernel. */
void leave(void)
{
    meeting &warp = warp_of(running);
    for (const meeting *m : { &warp, &block })
        if (m->here) stop(name_of(running) + " has returned from the kernel, but " +
                          name_of(m->who) + " waits for its " + m->what + " at " + m->where);
    warp.left++;
    block.left++;
}

/* What each fiber does, for ever: run a thread, then go on as the next or let another fiber run. */
void fiber_main(void)
{
    for (;;) {
        if (n_blocks <= SETS) started.after();
        else ended[set].after();
        (*body)();
        ended[set].before();
        leave();
        if (!n_ready) {              /* whoever waited for this thread has stopped the program */
            if (!OWN_FIBERS) idle[n_idle++] = fiber_running();
            fiber_go_to(fiber_host());
            continue;
        }
        thread *t = take_ready();
        run(t);
        if (!t->on && !OWN_FIBERS) {
            t->on = fiber_running();
            continue;
        }
        if (!OWN_FIBERS) idle[n_idle++] = fiber_running();
        if (!t->on) t->on = fiber_for(t);
        fiber_go_to(t->on);
    }
}

/* ---- blocks ---- */

/*
 * Shared memory, for each set of fibers.  It ends where nothing may be touched: AddressSanitizer
 * knows the byte, a page that traps comes less than 16 bytes later.
 */
unsigned char *shared_of[SETS];

#ifdef __SANITIZE_ADDRESS__
unsigned char *shared_new(int which, size_t bytes)
{
    free(shared_of[which]);
    return (unsigned char *)malloc(bytes);
}
#else
unsigned char *shared_new(int which, size_t bytes)
{
    static unsigned char *pages[SETS];
    static size_t room[SETS];        /* bytes of pages, before one that traps */
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), need = (bytes + page - 1) / page * page;
    if (!pages[which] || need > room[which]) {
        if (pages[which]) munmap(pages[which], room[which] + page);
        room[which] = need;
        void *p = mmap(NULL, need + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        pages[which] = (unsigned char *)p;
        if (p == MAP_FAILED || mprotect(pages[which] + need, page, PROT_NONE))
            stop("no memory for shared memory");
    }
    return pages[which] + room[which] - (bytes + 15) / 16 * 16;
}
#endif

meeting meeting_of(unsigned first, unsigned count, order *met)
{
    meeting m = {};
    m.first = first;
    m.count = count;
    m.met = met;
    return m;
}

void run_block(unsigned n, size_t shared_bytes)
{
    shared = shared_of[set];
    fill(shared, 0xff, shared_bytes);
    block = meeting_of(0, n, block_met[set]);
    for (unsigned w = 0; w * LANES < n; w++) {
        const unsigned first = w * LANES, count = n - first < LANES ? n - first : LANES;
        warps[w] = meeting_of(first, count, warp_met[set][w]);
        at_barrier[w] = NULL;
    }
    for (unsigned i = 0; i < n; i++) {
        const unsigned y = i / block_size.x;
        threads[i].on = NULL;
        threads[i].index = { i % block_size.x, y % block_size.y, y / block_size.y };
    }
    if (OWN_FIBERS) fibers_grow(n);  /* made by the host, as if none knew of another */
    make_ready(0, n);
    thread *t = take_ready();
    t->on = fiber_for(t);
    run(t);
    fiber_go_to(t->on);
    if (block.left != n) stop("threads are lost");
}

/* Numbers of the blocks in the order in which they run. */
std::vector<unsigned> block_order(size_t n)
{
    std::vector<unsigned> all(n);
    for (size_t i = 0; i < n; i++) all[i] = (unsigned)i;
    for (size_t i = n; seed && i-- > 1;)
        swap(all[i], all[random_below((unsigned)i + 1)]);
    return all;
}

void check_launch(dim3 grid, dim3 size, size_t shared_bytes)
{
    const size_t n = (size_t)size.x * size.y * size.z;
    block_index = { 0, 0, 0 };
    if (fiber_running() != fiber_host()) stop("a kernel launches a kernel");
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        stop("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
             std::to_string(grid.z) + " blocks");
    if (!n || n > MOST_THREADS || size.z > 64)
        stop("a block of " + std::to_string(size.x) + " x " + std::to_string(size.y) + " x " +
             std::to_string(size.z) + " threads");
    if (shared_bytes > simt::most_shared())
        stop(std::to_string(shared_bytes) + " bytes of shared memory");
}

void run_grid(size_t shared_bytes)
{
    for (int i = 0; i < SETS; i++) shared_of[i] = shared_new(i, shared_bytes);
    started.before();
    n_blocks = 0;
    for (unsigned number : block_order((size_t)grid_size.x * grid_size.y * grid_size.z)) {
        block_index.x = number % grid_size.x;
        block_index.y = number / grid_size.x % grid_size.y;
        block_index.z = number / grid_size.x / grid_size.y;
        set = n_blocks++ % SETS;
        run_block(block_size.x * block_size.y * block_size.z, shared_bytes);
    }
    for (order &o : ended) o.after();
}

}

void launch(const char *name, dim3 grid, dim3 size, size_t shared_bytes,
            const std::function<void()> &what)
{
    kernel = name;
    check_launch(grid, size, shared_bytes);
    if (!may_launch()) return;
    enqueue([=] {
        kernel = name;
        body = &what;
        grid_size = grid;
        block_size = size;
        run_grid(shared_bytes);
    });
}

void barrier(const char *where)
{
    const unsigned w = number_of(running) / LANES, turn = block.turn;
    const meeting &warp = warps[w];
    if (warp.here) stop(name_of(running) + " waits for the block at " + where + ", but " +
                        name_of(warp.who) + " for its warp at " + warp.where);
    at_barrier[w] = running;
    at_barrier_where = where;
    block.met[turn & 1].before();
    meet(block, "block", where);
    block.met[turn & 1].after();
}

void warp_barrier(const char *where)
{
    meeting &warp = warp_of(running);
    order &met = warp.met[warp.turn & 1];
    met.before();
    meet_warp("warp", where);
    met.after();
}

void exchange(const char *where, const void *mine, size_t bytes, void *all)
{
    const thread *me = running;
    const unsigned w = number_of(me) / LANES, lane = number_of(me) % LANES;
    if (bytes > MOST_BYTES) stop(std::string("too many bytes are exchanged at ") + where);
    unsigned char *slots = given[w][warps[w].turn & 1];
    copy(slots + lane * bytes, mine, bytes);
    meet_warp("warp", where);
    copy(all, slots, warps[w].count * bytes);
    fill((unsigned char *)all + warps[w].count * bytes, 0, (LANES - warps[w].count) * bytes);
}

}

void simt_seed(unsigned seed)
{
    simt::seed = seed;
    simt::random_state = (seed + 1) * 2654435761u;
    simt::has_seed = true;
}

unsigned simt_seed_now(void)
{
    const char *text = getenv("TULLE_SIMT_SEED");
    if (!simt::has_seed) simt_seed(text ? (unsigned)atoi(text) : 0);
    return simt::seed;
}

long simt_switches(void) { return simt::fiber_switches(); }
