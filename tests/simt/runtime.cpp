/*
 * runtime.cpp -- the CUDA runtime (autograd/cuda/runtime.h) without a GPU, for tests.
 *
 * Device memory is host memory that may be touched only while a kernel or a copy runs, so a host
 * that follows a pointer of the device crashes.  A new block is full of NaN.  What is written behind
 * its end ends the program; with AddressSanitizer reading there does too.  Addresses of freed blocks
 * are not used again for long, and what still uses them crashes.
 */
#include "autograd/cuda/launch.cuh"
#include "autograd/cuda/runtime.h"
#include "mock.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <iterator>
#include <map>
#include <vector>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

using namespace simt;

namespace {

const size_t SPACE = (size_t)64 << 30;                   /* of addresses */
const size_t PAGE = 4096, HUGE_PAGE = 2 << 20;           /* the latter cost less to take away */
const size_t BEHIND = 256;           /* bytes behind a block that nobody may touch, at least */
const unsigned char MARK = 0xff;     /* what they hold: NaN */

struct block { size_t bytes, room; };                    /* room: whole pages, with BEHIND */
typedef unsigned char *address;

address space, next_address;
std::map<address, block> blocks;
std::map<address, size_t> ranges;    /* blocks that touch each other, as one */
size_t n_bytes, limit;

std::map<address, size_t> pinned;
std::deque<std::function<void()>> queue;

cudaError_t last_error;
long n_calls, fail_at;               /* the call that fails; 0: none */
bool fail_for_good, has_begun;

void stop(const char *what, size_t number)
{
    fprintf(stderr, "simt: ");
    fprintf(stderr, what, number);
    fprintf(stderr, "\n");
    abort();
}

void begin(void)
{
    if (has_begun) return;
    has_begun = true;
    const char *fail = getenv("TULLE_SIMT_FAIL"), *memory = getenv("TULLE_SIMT_MEMORY");
    if (fail) fail_at = atol(fail);
    if (!limit) limit = memory ? (size_t)atoll(memory) : (size_t)8 << 30;
    space = (address)mmap(NULL, SPACE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) stop("no %zu bytes of addresses", SPACE);
    next_address = space;
}

/* --- memory of the device --------------------------------------------------------------------- */

void protect(address p, size_t bytes, int how)
{
    if (mprotect(p, bytes, how)) stop("mprotect of %zu bytes failed", bytes);
}

/* The pages go, their addresses stay ours.  ThreadSanitizer, which keeps twice the bytes for what
 * is seen of each address, learns of the former only. */
void give_back(address p, size_t bytes)
{
#ifdef SIMT_TSAN
    const int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (munmap(p, bytes) || (address)syscall(SYS_mmap, p, bytes, PROT_NONE, how, -1, 0) != p)
        stop("%zu bytes of addresses are lost", bytes);
#else
    protect(p, bytes, PROT_NONE);
    madvise(p, bytes, MADV_DONTNEED);
#endif
}

void find_ranges(void)
{
    ranges.clear();
    for (const auto &b : blocks) {
        auto last = ranges.empty() ? ranges.end() : --ranges.end();
        const bool joins = last != ranges.end() && last->first + last->second == b.first;
        if (joins) last->second += b.second.room;
        else ranges[b.first] = b.second.room;
    }
}

/* A block that was written behind its end, if there is one, ends the program. */
void check_ends(void)
{
#ifndef __SANITIZE_ADDRESS__
    for (const auto &b : blocks)
        for (size_t i = b.second.bytes; i < b.second.bytes + BEHIND; i++)
            if (b.first[i] != MARK)
                stop("a kernel wrote behind a block of %zu bytes of the device", b.second.bytes);
#endif
}

address aligned(address p, size_t to) { return (address)(((uintptr_t)p + to - 1) / to * to); }

/* The next free addresses, a multiple of page; NULL: there are none. */
address place(size_t room, size_t page)
{
    for (int around = 0; around < 2; around++) {
        address p = aligned(next_address, page);
        for (const auto &b : blocks) {
            if (b.first + b.second.room <= p) continue;
            if (p + room <= b.first) break;
            p = aligned(b.first + b.second.room, page);
        }
        if (p + room <= space + SPACE) return p;
        next_address = space;
    }
    return NULL;
}

/* The block that holds these bytes; NULL: none. */
const block *block_of(const void *p, size_t bytes)
{
    auto b = blocks.upper_bound((address)p);
    if (b == blocks.begin()) return NULL;
    --b;
    const size_t at = (size_t)((address)p - b->first);
    return at <= b->second.bytes && bytes <= b->second.bytes - at ? &b->second : NULL;
}

bool has_device(void)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return !visible || (*visible && strcmp(visible, "-1"));
}

}

cudaError_t simt::keep(cudaError_t e)
{
    if (e != cudaSuccess) last_error = e;
    return e;
}

cudaError_t simt::call(cudaError_t failure)
{
    begin();
    n_calls++;
    const bool fails = fail_at && (fail_for_good ? n_calls >= fail_at : n_calls == fail_at);
    return keep(fails ? failure : cudaSuccess);
}

void simt::run_queue(void)
{
    if (queue.empty()) return;
    begin();
    for (const auto &r : ranges) protect(r.first, r.second, PROT_READ | PROT_WRITE);
    while (!queue.empty()) {
        queue.front()();
        queue.pop_front();
    }
    check_ends();
    for (const auto &r : ranges) protect(r.first, r.second, PROT_NONE);
}

void simt_fail_call(long n)
{
    begin();
    fail_at = n ? n_calls + n : 0;
    fail_for_good = false;
}

void simt_fail_from(long n)
{
    simt_fail_call(n);
    fail_for_good = true;
}

long simt_calls(void) { return n_calls; }
void simt_memory_limit(size_t bytes) { limit = bytes; }
long simt_blocks(void) { return (long)blocks.size(); }
size_t simt_bytes(void) { return n_bytes; }
long simt_handles(void) { return simt::stream_handles() + (long)pinned.size(); }
int simt_is_device(const void *p) { return block_of(p, 0) != NULL; }

bool simt::call_works(void) { return call() == cudaSuccess; }
bool simt::may_launch(void) { return call() == cudaSuccess && captured_ok() == cudaSuccess; }

void simt::enqueue(std::function<void()> what)
{
    if (capture(what)) return;
    queue.push_back(std::move(what));
    if (!simt_seed_now()) run_queue();
}

/* --- errors, devices -------------------------------------------------------------------------- */

static const struct { cudaError_t e; const char *name, *text; } errors[] = {
    { cudaSuccess, "cudaSuccess", "no error" },
    { cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument" },
    { cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory" },
    { cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
      "invalid configuration argument" },
    { cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
      "CUDA driver version is insufficient for CUDA runtime version" },
    { cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected" },
    { cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal" },
    { cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
      "an illegal memory access was encountered" },
    { cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure" },
    { cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
      "operation not permitted when stream is capturing" },
    { cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
      "operation failed due to a previous error during capture" },
    { cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
      "operation not permitted on an event last recorded in a capturing stream" },
};

const char *cudaGetErrorString(cudaError_t e)
{
    for (const auto &x : errors) if (x.e == e) return x.text;
    return "unrecognized error code";
}

const char *cudaGetErrorName(cudaError_t e)
{
    for (const auto &x : errors) if (x.e == e) return x.name;
    return "unrecognized error code";
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}

cudaError_t cudaGetDeviceCount(int *ret)
{
    *ret = 0;
    CALL(cudaErrorInsufficientDriver);
    if (!has_device()) return keep(cudaErrorNoDevice);
    *ret = 1;
    return cudaSuccess;
}

size_t simt::most_shared(void)
{
    const char *bytes = getenv("TULLE_SIMT_SHARED");
    return bytes ? (size_t)atoll(bytes) : (size_t)227 << 10;
}

cudaError_t cudaSetDevice(int device)
{
    CALL();
    return keep(!has_device() ? cudaErrorNoDevice : device ? cudaErrorInvalidDevice : cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *ret, int device)
{
    CALL();
    if (!has_device() || device) return keep(cudaErrorInvalidDevice);
    *ret = cudaDeviceProp();
    snprintf(ret->name, sizeof ret->name, "a CPU in the place of a GPU");
    ret->totalGlobalMem = limit;
    ret->sharedMemPerBlockOptin = simt::most_shared();
    ret->major = 9;
    ret->multiProcessorCount = 4;
    ret->l2CacheSize = 50 << 20;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *ret_free, size_t *ret_total)
{
    CALL();
    *ret_total = limit;
    *ret_free = limit > n_bytes ? limit - n_bytes : 0;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute a, int value)
{
    CALL();
    const bool fine = kernel && a == cudaFuncAttributeMaxDynamicSharedMemorySize && value >= 0 &&
                      (size_t)value <= simt::most_shared();
    return keep(fine ? cudaSuccess : cudaErrorInvalidValue);
}

/* --- memory ----------------------------------------------------------------------------------- */

cudaError_t cudaMalloc(void **ret, size_t bytes)
{
    *ret = NULL;
    CALL(cudaErrorMemoryAllocation);
    UNLESS_CAPTURED();
    if (!bytes) return cudaSuccess;
    const size_t page = bytes < HUGE_PAGE / 2 ? PAGE : HUGE_PAGE;
    const size_t room = (bytes + BEHIND + page - 1) / page * page;
    const address p = bytes <= limit && n_bytes <= limit - bytes ? place(room, page) : NULL;
    if (!p) return keep(cudaErrorMemoryAllocation);
    if (page == HUGE_PAGE) madvise(p, room, MADV_HUGEPAGE);
    protect(p, room, PROT_READ | PROT_WRITE);
    ASAN_UNPOISON_MEMORY_REGION(p, room);
    memset(p, 0xff, bytes);
    memset(p + bytes, MARK, room - bytes);
    ASAN_POISON_MEMORY_REGION(p + bytes, room - bytes);
    protect(p, room, PROT_NONE);
    blocks[p] = { bytes, room };
    n_bytes += bytes;
    next_address = p + room;
    find_ranges();
    *ret = p;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    CALL();
    UNLESS_CAPTURED();
    if (!p) return cudaSuccess;
    const auto b = blocks.find((address)p);
    if (b == blocks.end()) return keep(cudaErrorInvalidValue);
    run_queue();
    const size_t room = b->second.room;
    n_bytes -= b->second.bytes;
    blocks.erase(b);
    find_ranges();
    give_back((address)p, room);
    return cudaSuccess;
}

void simt::check_argument(const char *kernel, const void *p)
{
    const auto b = pinned.upper_bound((address)p);
    const bool host = b != pinned.begin() && (address)p < std::prev(b)->first + std::prev(b)->second;
    if (!p || block_of(p, 0) || host) return;
    fprintf(stderr, "simt: kernel %s is given %p, which is not memory of the device\n", kernel, p);
    abort();
}

cudaError_t cudaMallocHost(void **ret, size_t bytes)
{
    *ret = NULL;
    CALL(cudaErrorMemoryAllocation);
    UNLESS_CAPTURED();
    if (!bytes) return cudaSuccess;
    *ret = malloc(bytes);
    if (!*ret) return keep(cudaErrorMemoryAllocation);
    memset(*ret, 0xff, bytes);
    pinned[(address)*ret] = bytes;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    CALL();
    UNLESS_CAPTURED();
    if (!p) return cudaSuccess;
    if (!pinned.count((address)p)) return keep(cudaErrorInvalidValue);
    run_queue();
    pinned.erase((address)p);
    free(p);
    return cudaSuccess;
}

bool simt::is_pinned(const void *p)
{
    auto b = pinned.upper_bound((address)p);
    if (b == pinned.begin()) return false;
    --b;
    return (size_t)((address)p - b->first) < b->second;
}

/* From ordinary memory the runtime takes what it copies before it returns, and it returns when what
 * it copies there has arrived; from and to pinned memory the device copies when its turn comes, in a
 * graph each time anew. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s)
{
    CALL();
    CAPTURED_OK();
    if (!is_stream(s)) return keep(cudaErrorInvalidValue);
    const void *host = kind == cudaMemcpyHostToDevice ? from : to;
    if (kind != cudaMemcpyDeviceToDevice && !is_pinned(host)) UNLESS_CAPTURED();
    if ((block_of(to, bytes) != NULL) != (kind != cudaMemcpyDeviceToHost) ||
        (block_of(from, bytes) != NULL) != (kind != cudaMemcpyHostToDevice))
        return keep(cudaErrorInvalidValue);
    if (kind == cudaMemcpyHostToDevice && !is_pinned(from)) {
        const std::vector<unsigned char> taken((const unsigned char *)from,
                                               (const unsigned char *)from + bytes);
        simt::enqueue([=] { memcpy(to, taken.data(), bytes); });
        return cudaSuccess;
    }
    simt::enqueue([=] { memmove(to, from, bytes); });
    if (kind == cudaMemcpyDeviceToHost && !is_pinned(to)) run_queue();
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s)
{
    CALL();
    CAPTURED_OK();
    if (!is_stream(s) || !block_of(p, bytes)) return keep(cudaErrorInvalidValue);
    simt::enqueue([=] { memset(p, value, bytes); });
    return cudaSuccess;
}
