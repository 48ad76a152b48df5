/*
 * stream.cpp -- streams, events and graphs of the CUDA runtime without a GPU.
 *
 * While a stream captures, what it is told is kept with the arguments of then, and nothing runs.
 * To wait, to take memory or to give it back is an error, after which the capture is invalid: all
 * that it is told is an error, and it ends without a graph.  A graph that is launched does what was
 * kept, copies from and to the memory of the host too, as it then is.
 */
#include <memory>                    /* before simt.h, whose macros these do not bear */
#include <set>
#include <vector>

#include "mock.h"

#include <time.h>

using namespace simt;

typedef std::vector<std::function<void()>> work;

struct CUstream_st { int unused; };
struct CUevent_st { double time; bool captured; };       /* seconds; when the device came past it */
struct CUgraph_st { std::shared_ptr<work> nodes; };
struct CUgraphExec_st { std::shared_ptr<work> nodes; };

namespace {

std::set<cudaStream_t> streams;
std::set<cudaEvent_t> events;
std::set<cudaGraph_t> graphs;
std::set<cudaGraphExec_t> execs;
std::shared_ptr<work> captured;      /* NULL: nothing is captured */
bool invalid;
long launches;

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

}

bool simt::is_stream(cudaStream_t s) { return !s || streams.count(s); }
long simt_graph_launches(void) { return launches; }

long simt::stream_handles(void)
{
    return (long)(streams.size() + events.size() + graphs.size() + execs.size());
}

/* --- capture ---------------------------------------------------------------------------------- */

bool simt::capture(const std::function<void()> &what)
{
    if (captured) captured->push_back(what);
    return captured != nullptr;
}

cudaError_t simt::captured_ok(void)
{
    return keep(captured && invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
}

cudaError_t simt::unless_captured(void)
{
    if (!captured) return cudaSuccess;
    invalid = true;
    return keep(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode)
{
    CALL();
    if (!s || !is_stream(s) || captured || mode != cudaStreamCaptureModeThreadLocal)
        return keep(cudaErrorInvalidValue);
    captured = std::make_shared<work>();
    invalid = false;
    return cudaSuccess;
}

/* The capture ends also where this fails. */
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *ret)
{
    *ret = NULL;
    const std::shared_ptr<work> nodes = captured;
    captured = nullptr;
    CALL();
    if (!is_stream(s) || !nodes) return keep(cudaErrorInvalidValue);
    if (invalid) return keep(cudaErrorStreamCaptureInvalidated);
    *ret = new CUgraph_st{ nodes };
    graphs.insert(*ret);
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *ret, cudaGraph_t g,
                                          unsigned long long flags)
{
    *ret = NULL;
    CALL(cudaErrorMemoryAllocation);
    if (!graphs.count(g) || flags) return keep(cudaErrorInvalidValue);
    *ret = new CUgraphExec_st{ g->nodes };
    execs.insert(*ret);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    CALL();
    if (!graphs.erase(g)) return keep(cudaErrorInvalidValue);
    delete g;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    CALL();
    UNLESS_CAPTURED();
    if (!execs.count(x) || !is_stream(s)) return keep(cudaErrorInvalidValue);
    const std::shared_ptr<work> nodes = x->nodes;
    launches++;
    enqueue([=] {
        for (const auto &node : *nodes) node();
    });
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x)
{
    CALL();
    if (!execs.erase(x)) return keep(cudaErrorInvalidValue);
    delete x;
    return cudaSuccess;
}

/* --- streams and events ----------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *ret, unsigned flags)
{
    *ret = NULL;
    CALL();
    if (flags > cudaStreamNonBlocking) return keep(cudaErrorInvalidValue);
    *ret = new CUstream_st();
    streams.insert(*ret);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    CALL();
    UNLESS_CAPTURED();
    if (!streams.count(s)) return keep(cudaErrorInvalidValue);
    run_queue();
    streams.erase(s);
    delete s;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    CALL();
    UNLESS_CAPTURED();
    if (!is_stream(s)) return keep(cudaErrorInvalidValue);
    run_queue();
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret, unsigned flags)
{
    *ret = NULL;
    CALL();
    if (flags & ~(unsigned)cudaEventDisableTiming) return keep(cudaErrorInvalidValue);
    *ret = new CUevent_st();
    events.insert(*ret);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    CALL();
    if (!events.count(e)) return keep(cudaErrorInvalidValue);
    run_queue();
    events.erase(e);
    delete e;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    CALL();
    if (!events.count(e) || !is_stream(s)) return keep(cudaErrorInvalidValue);
    CAPTURED_OK();
    e->captured = captured != nullptr;
    enqueue([=] { e->time = now(); });
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    CALL();
    if (!events.count(e)) return keep(cudaErrorInvalidValue);
    if (e->captured) {
        invalid = true;
        return keep(cudaErrorCapturedEvent);
    }
    run_queue();
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ret_ms, cudaEvent_t from, cudaEvent_t to)
{
    CALL();
    if (!events.count(from) || !events.count(to)) return keep(cudaErrorInvalidValue);
    run_queue();
    *ret_ms = (float)(1e3 * (to->time - from->time));
    return cudaSuccess;
}
