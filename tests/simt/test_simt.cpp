/*
 * test_simt.cpp -- what runs kernels on the CPU does what a GPU does, and finds what a GPU does not
 * promise: the kernels here are small, and each of the second half has a fault.
 *
 * A fault runs in a child process; `seen` says which of the three builds must end it, by a message,
 * a report of a sanitizer or a wrong result, in every order of threads that is tried.
 */
#include "autograd/cuda/launch.cuh"
#include "faults.cuh"
#include "mock.h"

#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>

extern "C" {
#include <cmocka.h>
}

#include <sys/wait.h>
#include <unistd.h>

#define RUN(kernel, g, b, s, ...) simt::launch(#kernel, g, b, s, [=] { kernel(__VA_ARGS__); })

enum { SEEDS = 5 };

/* Ints of device memory, n of them; what they hold afterwards is read with fetch(). */
static int *device_ints(int n)
{
    void *p;
    assert_int_equal(cudaMalloc(&p, (size_t)n * sizeof(int)), cudaSuccess);
    assert_int_equal(cudaMemsetAsync(p, 0, (size_t)n * sizeof(int), NULL), cudaSuccess);
    return (int *)p;
}

static void fetch(int *to, const int *from, int n)
{
    assert_int_equal(cudaMemcpyAsync(to, from, (size_t)n * sizeof(int), cudaMemcpyDeviceToHost,
                                     NULL), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(NULL), cudaSuccess);
}

static void release(void *p) { assert_int_equal(cudaFree(p), cudaSuccess); }

/* --- the scheduler ---------------------------------------------------------------------------- */

static __global__ void count_run(int *y)
{
    const int b = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    const int t = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    atomicAdd(&y[b * (int)(blockDim.x * blockDim.y * blockDim.z) + t], 1 + b * 100 + t);
}

static void each_thread_of_each_block_runs_once(void **)
{
    for (unsigned seed = 0; seed < SEEDS; seed++) {
        int y[6 * 30], *d = device_ints(6 * 30);
        simt_seed(seed);
        RUN(count_run, dim3(3, 1, 2), dim3(5, 3, 2), 0, d);
        fetch(y, d, 6 * 30);
        for (int i = 0; i < 6 * 30; i++) assert_int_equal(y[i], 1 + i / 30 * 100 + i % 30);
        release(d);
    }
}

static __global__ void warp_run(int *y)
{
    const int t = (int)threadIdx.x, l = t & 31;
    int v = t;
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(AG_WARP, v, o);
    y[t * 6] = v;
    y[t * 6 + 1] = __shfl_sync(AG_WARP, t, 3);
    y[t * 6 + 2] = __shfl_up_sync(AG_WARP, t, 2);
    y[t * 6 + 3] = __shfl_down_sync(AG_WARP, t, 5);
    y[t * 6 + 4] = (int)__ballot_sync(AG_WARP, l % 3 == 0);
    y[t * 6 + 5] = __any_sync(AG_WARP, t == 40) + 2 * __all_sync(AG_WARP, t < 64);
}

/* The last warp has 8 lanes; those that do not exist give zeros. */
static void shuffles_and_votes(void **)
{
    for (unsigned seed = 0; seed < SEEDS; seed++) {
        int y[72 * 6], *d = device_ints(72 * 6);
        simt_seed(seed);
        RUN(warp_run, 1, 72, 0, d);
        fetch(y, d, 72 * 6);
        for (int t = 0; t < 72; t++) {
            const int w = t & ~31, l = t & 31, *r = y + t * 6, full = w < 64;
            unsigned thirds = 0;
            for (int i = 0; i < (full ? 32 : 8); i++) thirds |= (unsigned)(i % 3 == 0) << i;
            if (full) assert_int_equal(r[0], 32 * w + 31 * 16);
            if (!full) assert_int_equal(r[0], 8 * 64 + 7 * 4);
            assert_int_equal(r[1], w + 3);
            assert_int_equal(r[2], l < 2 ? t : t - 2);
            assert_int_equal(r[3], l + 5 > 31 ? t : l + 5 < 8 || full ? t + 5 : 0);
            assert_int_equal(r[4], thirds);
            assert_int_equal(r[5], (w == 32) + 2 * full);
        }
        release(d);
    }
}

/* Many barriers: a prefix sum of the block, by doubling. */
static __global__ void scan_run(int *y)
{
    AG_SHARED(int, s);
    const int t = (int)threadIdx.x, n = (int)blockDim.x;
    s[t] = t * t;
    __syncthreads();
    for (int d = 1; d < n; d *= 2) {
        const int v = t >= d ? s[t - d] : 0;
        __syncthreads();
        s[t] += v;
        __syncthreads();
    }
    y[blockIdx.x * blockDim.x + threadIdx.x] = s[t];
}

static void barriers(void **)
{
    for (unsigned seed = 0; seed < SEEDS; seed++) {
        int y[3 * 100], *d = device_ints(3 * 100);
        simt_seed(seed);
        RUN(scan_run, 3, 100, 100 * sizeof(int), d);
        fetch(y, d, 3 * 100);
        for (int i = 0; i < 3 * 100; i++) {
            const int t = i % 100;
            assert_int_equal(y[i], t * (t + 1) * (2 * t + 1) / 6);
        }
        release(d);
    }
}

/* __syncwarp orders a warp's use of shared memory. */
static __global__ void warp_rotate_run(int *y)
{
    AG_SHARED(int, s);
    const int t = (int)threadIdx.x;
    for (int i = 0; i < 3; i++) {
        s[t] = i ? s[t] : t;
        __syncwarp();
        const int v = s[(t & ~31) + ((t + 1) & 31)];
        __syncwarp();
        s[t] = v;
    }
    y[t] = s[t];
}

static void warp_barriers(void **)
{
    for (unsigned seed = 0; seed < SEEDS; seed++) {
        int y[64], *d = device_ints(64);
        simt_seed(seed);
        RUN(warp_rotate_run, 1, 64, 64 * sizeof(int), d);
        fetch(y, d, 64);
        for (int t = 0; t < 64; t++) assert_int_equal(y[t], (t & ~31) + ((t + 3) & 31));
        release(d);
    }
}

static __global__ void order_run(int *n, int *y)
{
    y[atomicAdd(n, 1)] = (int)(blockIdx.x * blockDim.x + threadIdx.x);
}

static void order_of(unsigned seed, int *y)
{
    int *d = device_ints(1 + 4 * 64);
    simt_seed(seed);
    RUN(order_run, 4, 64, 0, d, d + 1);
    fetch(y, d + 1, 4 * 64);
    release(d);
}

static void seeds_are_orders(void **)
{
    enum { N = 4 * 64 };
    int y[SEEDS][N], again[N];
    for (unsigned s = 0; s < SEEDS; s++) order_of(s, y[s]);
    for (int i = 0; i < N; i++) assert_int_equal(y[0][i], i);
    for (int s = 0; s < SEEDS; s++)
        for (int r = 0; r < s; r++) assert_memory_not_equal(y[s], y[r], sizeof y[s]);
    order_of(3, again);
    assert_memory_equal(again, y[3], sizeof again);
}

static __global__ void poison_run(int *y)
{
    AG_SHARED(int, s);
    y[blockIdx.x * blockDim.x + threadIdx.x] = s[threadIdx.x];
    s[threadIdx.x] = 5;
}

static void shared_memory_is_new_in_each_block(void **)
{
    for (unsigned seed = 0; seed < SEEDS; seed++) {
        int y[8 * 10], *d = device_ints(8 * 10);
        simt_seed(seed);
        RUN(poison_run, 8, 10, 10 * sizeof(int), d);
        fetch(y, d, 8 * 10);
        for (int i = 0; i < 8 * 10; i++) assert_int_equal(y[i], -1);
        release(d);
    }
}

/* A thread that waits for nobody runs where the one before ran; else each waiting is a switch. */
static void waiting_costs_switches(void **)
{
#ifndef __SANITIZE_THREAD__
    simt_seed(0);
    int *d = device_ints(3 * 100);
    long before = simt_switches();
    RUN(count_run, 1, 256, 0, d);
    assert_int_equal(simt_switches() - before, 2);
    before = simt_switches();
    RUN(scan_run, 1, 100, 100 * sizeof(int), d);
    assert_in_range(simt_switches() - before, 15 * 99, 15 * 100 + 102);
    release(d);
#endif
}

/* --- faults ----------------------------------------------------------------------------------- */

#ifdef __SANITIZE_ADDRESS__
static const int here = BY_ASAN;
#elif defined(__SANITIZE_THREAD__)
static const int here = BY_TSAN;
#else
static const int here = BY_PLAIN;
#endif

struct run_end { bool fine; std::string said; };

/* What becomes of a fault of the list, `with` it or without, in a process of its own. */
static run_end in_child(int which, int with, unsigned seed)
{
    int io[2], status = 0;
    assert_int_equal(pipe(io), 0);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {                      /* another program: ThreadSanitizer sees nothing after fork */
        const std::string n = std::to_string(which), w = std::to_string(with),
                          s = std::to_string(seed);
        dup2(io[1], 2);
        execl("/proc/self/exe", "test_simt", n.c_str(), w.c_str(), s.c_str(), (char *)NULL);
        _exit(127);
    }
    close(io[1]);
    run_end r = {};
    char buf[4096];
    for (ssize_t n; (n = read(io[0], buf, sizeof buf)) > 0;) r.said.append(buf, (size_t)n);
    close(io[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    r.fine = status == 0;
    return r;
}

static int run_fault(char **argv)
{
    simt_seed((unsigned)atoi(argv[3]));
    return faults[atoi(argv[1])].run[atoi(argv[2])]() ? 0 : 1;
}

static void faults_are_found(void **)
{
    const int n = (int)(sizeof faults / sizeof *faults);
    const unsigned seeds = here == BY_PLAIN ? SEEDS : 1;
    int wrong = 0;
    for (int i = 0; i < n; i++) {
        const fault &f = faults[i];
        for (unsigned seed = 0; seed < seeds; seed++) {
            const run_end good = in_child(i, 0, seed), bad = in_child(i, 1, seed);
            const bool seen = !bad.fine && bad.said.find(f.says) != std::string::npos;
            if (good.fine && (seen || !(f.seen & here))) continue;
            print_message("%s, seed %u: %s\n%s\n", f.name, seed, good.fine ? "not found, or not so"
                          : "ends badly without the fault",
                          (good.fine ? bad : good).said.c_str());
            wrong++;
        }
    }
    assert_int_equal(wrong, 0);
}

/* --- the runtime ------------------------------------------------------------------------------ */

static void memory_is_counted(void **)
{
    void *p, *q, *none;
    const long blocks = simt_blocks();
    const size_t bytes = simt_bytes();
    assert_int_equal(cudaMalloc(&p, 1000), cudaSuccess);
    assert_int_equal(cudaMalloc(&q, 50), cudaSuccess);
    assert_int_equal(cudaMalloc(&none, 0), cudaSuccess);
    assert_null(none);
    assert_int_equal((uintptr_t)p % 256, 0);
    assert_int_equal(simt_blocks() - blocks, 2);
    assert_int_equal(simt_bytes() - bytes, 1050);
    assert_true(simt_is_device((char *)p + 999));
    assert_false(simt_is_device(&p));
    release(p);
    assert_int_equal(cudaFree(p), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaFree((char *)q + 16), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(&p), cudaErrorInvalidValue);
    release(NULL);
    release(q);
    assert_int_equal(simt_blocks(), blocks);
    cudaGetLastError();
}

static void memory_runs_out(void **)
{
    void *p, *q;
    size_t n_free, total;
    simt_memory_limit(simt_bytes() + 10000);
    assert_int_equal(cudaMalloc(&p, 9000), cudaSuccess);
    assert_int_equal(cudaMalloc(&q, 1001), cudaErrorMemoryAllocation);
    assert_null(q);
    assert_int_equal(cudaMemGetInfo(&n_free, &total), cudaSuccess);
    assert_int_equal(n_free, 1000);
    assert_int_equal(cudaMalloc(&q, 1000), cudaSuccess);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    release(p);
    release(q);
    simt_memory_limit((size_t)8 << 30);
}

static void copies_are_checked(void **)
{
    int host[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, *d = device_ints(4);
    assert_int_equal(cudaMemcpyAsync(d, host, 16, cudaMemcpyHostToDevice, NULL), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(d, host, 20, cudaMemcpyHostToDevice, NULL),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpyAsync(d, host, 16, cudaMemcpyDeviceToHost, NULL),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpyAsync(d, host, 16, cudaMemcpyDeviceToDevice, NULL),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemsetAsync(d + 2, 0, 12, NULL), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpyAsync(d + 1, d, 8, cudaMemcpyDeviceToDevice, (cudaStream_t)&host),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    memset(host, 0, sizeof host);
    fetch(host, d, 4);
    for (int i = 0; i < 4; i++) assert_int_equal(host[i], i + 1);
    release(d);
}

/* With a seed the device comes late: it takes from pinned memory what lies there then. */
static void the_device_comes_late(void **)
{
    for (unsigned seed = 0; seed < 2; seed++) {
        int *pinned, *d = device_ints(1), plain = 7;
        assert_int_equal(cudaMallocHost((void **)&pinned, 2 * sizeof(int)), cudaSuccess);
        simt_seed(seed);
        cudaMemcpyAsync(d, &plain, sizeof(int), cudaMemcpyHostToDevice, NULL);
        plain = 8;
        pinned[1] = 0;
        cudaMemcpyAsync(pinned + 1, d, sizeof(int), cudaMemcpyDeviceToHost, NULL);
        assert_int_equal(pinned[1], seed ? 0 : 7);
        cudaStreamSynchronize(NULL);
        assert_int_equal(pinned[1], 7);
        pinned[0] = 1;
        cudaMemcpyAsync(d, pinned, sizeof(int), cudaMemcpyHostToDevice, NULL);
        pinned[0] = 2;
        fetch(&plain, d, 1);
        assert_int_equal(plain, seed ? 2 : 1);
        assert_int_equal(cudaFreeHost(pinned), cudaSuccess);
        assert_int_equal(cudaFreeHost(pinned), cudaErrorInvalidValue);
        release(d);
    }
    cudaGetLastError();
}

static void calls_fail_when_told(void **)
{
    int y = 0, *d = device_ints(1);
    void *p;
    simt_seed(0);
    simt_fail_call(2);
    const long before = simt_calls();
    assert_int_equal(cudaStreamSynchronize(NULL), cudaSuccess);
    assert_int_equal(cudaMalloc(&p, 8), cudaErrorMemoryAllocation);
    assert_null(p);
    assert_int_equal(cudaStreamSynchronize(NULL), cudaSuccess);
    assert_int_equal(simt_calls() - before, 3);
    simt_fail_call(1);
    RUN(count_run, 1, 1, 0, d);
    assert_int_equal(cudaGetLastError(), cudaErrorLaunchFailure);
    fetch(&y, d, 1);
    assert_int_equal(y, 0);
    simt_fail_from(1);
    for (int i = 0; i < 3; i++)
        assert_int_equal(cudaStreamSynchronize(NULL), cudaErrorLaunchFailure);
    simt_fail_call(0);
    release(d);
    cudaGetLastError();
}

static void devices(void **)
{
    int n;
    cudaDeviceProp about;
    assert_int_equal(cudaGetDeviceCount(&n), cudaSuccess);
    assert_int_equal(n, 1);
    assert_int_equal(cudaGetDeviceProperties(&about, 0), cudaSuccess);
    assert_int_equal(cudaSetDevice(1), cudaErrorInvalidDevice);
    for (const char *visible : { "", "-1" }) {
        setenv("CUDA_VISIBLE_DEVICES", visible, 1);
        assert_int_equal(cudaGetDeviceCount(&n), cudaErrorNoDevice);
        assert_int_equal(n, 0);
    }
    setenv("CUDA_VISIBLE_DEVICES", "0", 1);
    assert_int_equal(cudaGetDeviceCount(&n), cudaSuccess);
    unsetenv("CUDA_VISIBLE_DEVICES");
    assert_string_equal(cudaGetErrorName(cudaErrorNoDevice), "cudaErrorNoDevice");
    cudaGetLastError();
}

static void streams_and_events(void **)
{
    cudaStream_t s;
    cudaEvent_t e, f;
    float ms = -1;
    const long handles = simt_handles();
    assert_int_equal(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaEventCreateWithFlags(&e, cudaEventDefault), cudaSuccess);
    assert_int_equal(cudaEventCreateWithFlags(&f, cudaEventDefault), cudaSuccess);
    assert_int_equal(simt_handles() - handles, 3);
    assert_int_equal(cudaEventRecord(e, s), cudaSuccess);
    assert_int_equal(cudaEventRecord(f, s), cudaSuccess);
    assert_int_equal(cudaEventSynchronize(f), cudaSuccess);
    assert_int_equal(cudaEventElapsedTime(&ms, e, f), cudaSuccess);
    assert_true(ms >= 0);
    assert_int_equal(cudaEventDestroy(e), cudaSuccess);
    assert_int_equal(cudaEventRecord(e, s), cudaErrorInvalidValue);
    assert_int_equal(cudaEventDestroy(f), cudaSuccess);
    assert_int_equal(cudaStreamDestroy(s), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(s), cudaErrorInvalidValue);
    assert_int_equal(simt_handles(), handles);
    cudaGetLastError();
}

/* Nothing runs in a capture, all at each launch; what waits spoils it, and its end says so. */
static void graphs(void **)
{
    cudaStream_t s;
    cudaGraph_t g;
    cudaGraphExec_t x;
    void *p;
    int *y = device_ints(4), got[4];
    assert_int_equal(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), cudaSuccess);
    for (int spoilt = 0; spoilt < 3; spoilt++) {
        assert_int_equal(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), cudaSuccess);
        RUN(count_run, 2, 2, 0, y);
        if (spoilt) assert_int_equal(spoilt == 1 ? cudaStreamSynchronize(s) : cudaMalloc(&p, 4),
                                     cudaErrorStreamCaptureUnsupported);
        assert_int_equal(cudaMemsetAsync(y, 0, 4, s), spoilt ? cudaErrorStreamCaptureInvalidated
                                                             : cudaSuccess);
        assert_int_equal(cudaStreamEndCapture(s, &g), spoilt ? cudaErrorStreamCaptureInvalidated
                                                             : cudaSuccess);
        assert_true(!g == (spoilt > 0));
        fetch(got, y, 4);            /* of three launches; the first number is cleared */
        for (int i = 0; i < 4; i++)
            assert_int_equal(got[i], spoilt && i ? 3 * (1 + i % 2 + i / 2 * 100) : 0);
        if (spoilt) continue;
        assert_int_equal(cudaGraphInstantiateWithFlags(&x, g, 0), cudaSuccess);
        assert_int_equal(cudaGraphDestroy(g), cudaSuccess);
        for (int i = 0; i < 3; i++) assert_int_equal(cudaGraphLaunch(x, s), cudaSuccess);
        assert_int_equal(cudaGraphExecDestroy(x), cudaSuccess);
    }
    release(y);
    assert_int_equal(cudaStreamDestroy(s), cudaSuccess);
}

int main(int argc, char **argv)
{
    if (argc == 4) return run_fault(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_thread_of_each_block_runs_once),
        cmocka_unit_test(shuffles_and_votes),
        cmocka_unit_test(barriers),
        cmocka_unit_test(warp_barriers),
        cmocka_unit_test(seeds_are_orders),
        cmocka_unit_test(shared_memory_is_new_in_each_block),
        cmocka_unit_test(waiting_costs_switches),
        cmocka_unit_test(faults_are_found),
        cmocka_unit_test(memory_is_counted),
        cmocka_unit_test(memory_runs_out),
        cmocka_unit_test(copies_are_checked),
        cmocka_unit_test(the_device_comes_late),
        cmocka_unit_test(calls_fail_when_told),
        cmocka_unit_test(devices),
        cmocka_unit_test(streams_and_events),
        cmocka_unit_test(graphs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
