/*
 * device.cu -- the GPU: its memory, the one stream that all work goes through, and its errors.
 *
 * What the host sends or fetches passes through a few pinned buffers: a write copies into one and
 * returns, the GPU takes it from there when its turn comes; a buffer is used again when the GPU is
 * done with it.
 */
#include "blocks.cuh"
#include "cublas.h"
#include "cuda.h"
#include "launch.cuh"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STAGES = 4, LEAST_MAJOR = 8 };
static const size_t STAGE_BYTES = (size_t)4 << 20;

static struct {
    bool open;
    bool wait_always;                /* TULLE_CUDA_SYNC: after each kernel, to find the one that
                                      * fails */
    cudaStream_t stream;
    cudaDeviceProp about;
    void *stage[STAGES];             /* pinned, [STAGE_BYTES] */
    cudaEvent_t taken[STAGES];       /* the GPU is done with it */
    int next;                        /* which stage is next */
    void *workspace;
    size_t workspace_bytes;
    long changes;                    /* how often memory was taken or given back */
    char error[512];                 /* the first one; "": none */
    char told[512];
} gpu;

/* --- errors ----------------------------------------------------------------------------------- */

void ag_cuda_fail(const char *fmt, ...)
{
    if (gpu.error[0]) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(gpu.error, sizeof gpu.error, fmt, ap);
    va_end(ap);
}

bool ag_cuda_works(void) { return !gpu.error[0]; }

bool ag_cuda_ok(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return true;
    cudaGetLastError();              /* it is kept here from now on */
    ag_cuda_fail("%s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e));
    return false;
}

void ag_cuda_launched(const char *kernel)
{
    cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess && gpu.wait_always) e = cudaStreamSynchronize(gpu.stream);
    if (e == cudaSuccess) return;
    char what[200];                  /* the first launch after a failure hears of it, too */
    snprintf(what, sizeof what, gpu.wait_always ? "%.120s" : "%.120s, or what ran before it "
             "(TULLE_CUDA_SYNC=1 tells which)", kernel);
    ag_cuda_ok(e, what);
}

static const char *check(void)
{
    if (!gpu.error[0]) return NULL;
    memcpy(gpu.told, gpu.error, sizeof gpu.told);
    gpu.error[0] = '\0';
    return gpu.told;
}

/* Is what is asked captured (graph.cu)?  What the host does then is an error. */
static bool is_captured(const char *what)
{
    if (ag_cuda_captures()) ag_cuda_fail("the host %s in the middle, which no graph can do", what);
    return ag_cuda_captures();
}

/* Waits for the GPU.  An error here is of a kernel that ran since the last time. */
static bool waited(void)
{
    return !is_captured("waits") &&
           ag_cuda_ok(cudaStreamSynchronize(gpu.stream), gpu.wait_always ? "waiting for the GPU" :
                      "an earlier kernel failed; TULLE_CUDA_SYNC=1 tells which");
}

/* --- memory ----------------------------------------------------------------------------------- */

static void *memory_alloc(size_t bytes)
{
    void *p = NULL;
    if (is_captured("takes memory")) return NULL;
    gpu.changes++;
    if (cudaMalloc(&p, bytes) == cudaSuccess) return p;
    cudaGetLastError();              /* told by who asked: as out of memory */
    return NULL;
}

static void memory_free(void *p, size_t bytes)
{
    (void)bytes;
    if (is_captured("gives memory back")) return;
    gpu.changes++;
    ag_cuda_ok(cudaFree(p), "cudaFree");
}

/* The next stage, once the GPU is done with it; -1: an error. */
static int stage_next(void)
{
    const int s = gpu.next;
    gpu.next = (s + 1) % STAGES;
    return ag_cuda_ok(cudaEventSynchronize(gpu.taken[s]), "waiting for a copy") ? s : -1;
}

static void memory_write(void *to, const void *host, size_t bytes)
{
    if (bytes && is_captured("sends numbers")) return;
    for (size_t at = 0; at < bytes; at += STAGE_BYTES) {
        const size_t n = bytes - at < STAGE_BYTES ? bytes - at : STAGE_BYTES;
        const int s = stage_next();
        if (s < 0) return;
        memcpy(gpu.stage[s], (const char *)host + at, n);
        if (!ag_cuda_ok(cudaMemcpyAsync((char *)to + at, gpu.stage[s], n, cudaMemcpyHostToDevice,
                                        gpu.stream), "copy to the GPU") ||
            !ag_cuda_ok(cudaEventRecord(gpu.taken[s], gpu.stream), "cudaEventRecord"))
            return;
    }
}

static void memory_read(void *host, const void *from, size_t bytes)
{
    if (bytes && is_captured("reads numbers")) {
        memset(host, 0, bytes);
        return;
    }
    for (size_t at = 0; at < bytes; at += STAGE_BYTES) {
        const size_t n = bytes - at < STAGE_BYTES ? bytes - at : STAGE_BYTES;
        const int s = stage_next();
        if (s < 0 || !ag_cuda_ok(cudaMemcpyAsync(gpu.stage[s], (const char *)from + at, n,
                                                 cudaMemcpyDeviceToHost, gpu.stream),
                                 "copy from the GPU") || !waited()) {
            memset((char *)host + at, 0, bytes - at);    /* an error is kept; nothing random */
            return;
        }
        memcpy((char *)host + at, gpu.stage[s], n);
    }
}

static void memory_copy(void *to, const void *from, size_t bytes)
{
    if (bytes)
        ag_cuda_ok(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, gpu.stream),
                   "copy on the GPU");
}

static void memory_clear(void *p, size_t bytes)
{
    if (bytes) ag_cuda_ok(cudaMemsetAsync(p, 0, bytes, gpu.stream), "clearing memory");
}

static void wait_for_all(void) { waited(); }
static long changes(void) { return gpu.changes; }

static void about(char *buf, size_t size, size_t *ret_total, size_t *ret_free)
{
    *ret_total = *ret_free = 0;
    ag_cuda_ok(cudaMemGetInfo(ret_free, ret_total), "cudaMemGetInfo");
    snprintf(buf, size, "%s (compute capability %d.%d, %d processors)", gpu.about.name,
             gpu.about.major, gpu.about.minor, gpu.about.multiProcessorCount);
}

cudaStream_t ag_cuda_stream(void) { return gpu.stream; }
int ag_cuda_processors(void) { return gpu.about.multiProcessorCount; }
int ag_cuda_major(void) { return gpu.about.major; }
size_t ag_cuda_shared_most(void) { return gpu.about.sharedMemPerBlockOptin; }

bool ag_cuda_room(const void *kernel, size_t shared_bytes)
{
    enum { ALL_HAVE = 48 << 10 };
    if (shared_bytes <= ALL_HAVE) return true;
    return ag_cuda_ok(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           (int)shared_bytes), "shared memory of a kernel");
}

void *ag_cuda_workspace(size_t bytes)
{
    if (bytes <= gpu.workspace_bytes) return gpu.workspace;
    if (is_captured("takes memory")) return NULL;
    if (gpu.workspace) memory_free(gpu.workspace, gpu.workspace_bytes);
    gpu.workspace = memory_alloc(bytes);
    gpu.workspace_bytes = gpu.workspace ? bytes : 0;
    if (!gpu.workspace)
        ag_cuda_fail("out of memory for %.1f MB of workspace", 1e-6 * (double)bytes);
    return gpu.workspace;
}

/* --- time ------------------------------------------------------------------------------------- */

static cudaEvent_t began, ended;

void ag_cuda_time_begin(void)
{
    if (!began && (!ag_cuda_ok(cudaEventCreateWithFlags(&began, cudaEventDefault), "an event") ||
                   !ag_cuda_ok(cudaEventCreateWithFlags(&ended, cudaEventDefault), "an event")))
        return;
    ag_cuda_ok(cudaEventRecord(began, gpu.stream), "cudaEventRecord");
}

double ag_cuda_time_end(void)
{
    float ms = 0;
    if (began && ag_cuda_ok(cudaEventRecord(ended, gpu.stream), "cudaEventRecord") &&
        ag_cuda_ok(cudaEventSynchronize(ended), "cudaEventSynchronize"))
        ag_cuda_ok(cudaEventElapsedTime(&ms, began, ended), "cudaEventElapsedTime");
    return 1e-3 * (double)ms;
}

/* --- opening ---------------------------------------------------------------------------------- */

static ag_device device;

static bool open_stages(void)
{
    bool ok = ag_cuda_ok(cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking),
                         "making a stream");
    for (int i = 0; i < STAGES && ok; i++)
        ok = ag_cuda_ok(cudaMallocHost(&gpu.stage[i], STAGE_BYTES), "pinned memory") &&
             ag_cuda_ok(cudaEventCreateWithFlags(&gpu.taken[i], cudaEventDisableTiming),
                        "making an event");
    return ok;
}

void ag_cuda_close(void)
{
    if (gpu.stream) waited();
    ag_cublas_close();
    block_tables_close();
    if (gpu.workspace) memory_free(gpu.workspace, gpu.workspace_bytes);
    for (int i = 0; i < STAGES; i++) {
        if (gpu.taken[i]) cudaEventDestroy(gpu.taken[i]);
        if (gpu.stage[i]) cudaFreeHost(gpu.stage[i]);
    }
    if (began) cudaEventDestroy(began);
    if (ended) cudaEventDestroy(ended);
    began = ended = NULL;
    if (gpu.stream) cudaStreamDestroy(gpu.stream);
    memset(&gpu, 0, sizeof gpu);
}

static int no_gpu(cudaError_t e, ag_err *err)
{
    cudaGetLastError();
    if (e == cudaErrorInsufficientDriver)
        return ag_err_set(err, AG_EFAIL, "train.device = cuda: there is no NVIDIA driver here, "
                          "or one older than this program's CUDA; the CPU does without: "
                          "train.device=cpu, or --device cpu");
    if (e == cudaErrorNoDevice || e == cudaSuccess) {
        const char *visible = getenv("CUDA_VISIBLE_DEVICES");
        return ag_err_set(err, AG_EFAIL, "train.device = cuda: there is no GPU%s%s; the CPU does "
                          "without: train.device=cpu, or --device cpu",
                          visible ? " among CUDA_VISIBLE_DEVICES=" : "", visible ? visible : "");
    }
    return ag_err_set(err, AG_EFAIL, "train.device = cuda: %s (%s)", cudaGetErrorString(e),
                      cudaGetErrorName(e));
}

extern "C" int ag_cuda_open(const ag_device **ret, ag_err *err)
{
    int n = 0;
    *ret = &device;
    if (gpu.open) return AG_OK;
    *ret = NULL;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n > 0) e = cudaSetDevice(0);
    if (e == cudaSuccess && n > 0) e = cudaGetDeviceProperties(&gpu.about, 0);
    if (e != cudaSuccess || n == 0) return no_gpu(e, err);
    if (gpu.about.major < LEAST_MAJOR)
        return ag_err_set(err, AG_EFAIL, "train.device = cuda: %s has compute capability %d.%d, "
                          "and %d.0 is needed; the CPU does without: train.device=cpu, or --device "
                          "cpu", gpu.about.name, gpu.about.major, gpu.about.minor, LEAST_MAJOR);
    const char *sync = getenv("TULLE_CUDA_SYNC");
    gpu.wait_always = sync && *sync && strcmp(sync, "0");
    if (!open_stages()) {
        const char *why = check();
        ag_err_set(err, AG_EFAIL, "train.device = cuda: %s", why);
        ag_cuda_close();
        return AG_EFAIL;
    }
    device = ag_device();
    device.name = "cuda";
    device.memory.alloc = memory_alloc;
    device.memory.free = memory_free;
    device.write = memory_write;
    device.read = memory_read;
    device.copy = memory_copy;
    device.clear = memory_clear;
    device.wait = wait_for_all;
    device.check = check;
    device.about = about;
    device.changes = changes;
    if (!gpu.wait_always) graph_table(&device);
    device.flat = flat_table();
    gpu.open = true;
    *ret = &device;
    return AG_OK;
}

bool ag_cuda_is_open(void) { return gpu.open; }
const ag_device *ag_cuda_device(void) { return &device; }
