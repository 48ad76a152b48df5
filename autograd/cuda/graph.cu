/*
 * graph.cu -- what the GPU is asked, kept as a CUDA graph.
 *
 * To launch a kernel takes the host some 2 us, however little the kernel does; a graph of hundreds
 * takes about as long as a few of them.  What is captured are the launches, copies on the GPU and
 * products of the stream, with the arguments of then: their pointers must stay, and what changes
 * from run to run must lie in memory (ag_turn).  Nobody but the host that captures uses the GPU, so
 * only its calls are watched (thread-local).
 */
#include "launch.cuh"

static bool captures;

bool ag_cuda_captures(void) { return captures; }

static bool graph_begin(void)
{
    captures = ag_cuda_works() &&
               ag_cuda_ok(cudaStreamBeginCapture(ag_cuda_stream(),
                                                 cudaStreamCaptureModeThreadLocal),
                          "cudaStreamBeginCapture");
    return captures;
}

/* Also after an error: only this ends a capture. */
static ag_graph *graph_end(void)
{
    cudaGraph_t g = NULL;
    cudaGraphExec_t x = NULL;
    captures = false;
    if (ag_cuda_ok(cudaStreamEndCapture(ag_cuda_stream(), &g), "cudaStreamEndCapture") &&
        ag_cuda_works())
        ag_cuda_ok(cudaGraphInstantiateWithFlags(&x, g, 0), "cudaGraphInstantiate");
    if (g) ag_cuda_ok(cudaGraphDestroy(g), "cudaGraphDestroy");
    return (ag_graph *)x;
}

static bool graph_run(ag_graph *g)
{
    return ag_cuda_works() &&
           ag_cuda_ok(cudaGraphLaunch((cudaGraphExec_t)g, ag_cuda_stream()), "cudaGraphLaunch");
}

static void graph_free(ag_graph *g)
{
    if (g) ag_cuda_ok(cudaGraphExecDestroy((cudaGraphExec_t)g), "cudaGraphExecDestroy");
}

/* n words; steps in words too. */
static __global__ void shift_run(int64_t n, uint32_t *to, int64_t to_step, const uint32_t *from,
                                 int64_t from_step, const int32_t *shift)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[*shift * to_step + i] = from[*shift * from_step + i];
}

static void copy_shifted(void *to, size_t to_step, const void *from, size_t from_step, size_t bytes,
                         const int32_t *shift)
{
    const size_t word = sizeof(uint32_t);
    const int64_t n = (int64_t)(bytes / word);
    AG_LAUNCH(shift_run, blocks_for(n, 256), 256, 0, n, (uint32_t *)to, (int64_t)(to_step / word),
              (const uint32_t *)from, (int64_t)(from_step / word), shift);
}

void graph_table(ag_device *d)
{
    d->graph_begin = graph_begin;
    d->graph_end = graph_end;
    d->graph_run = graph_run;
    d->graph_free = graph_free;
    d->copy_shifted = copy_shifted;
}
