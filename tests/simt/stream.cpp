// Streams, graphs, events and launches of cuda_runtime.h. A stream does its work when somebody
// waits for it, and not before: what reads a result too early finds what was there. Only the null
// stream, in which tests of the harness launch, works at once, after all streams that were made to
// wait for it.
#include "stream.h"

#include <chrono>
#include <cstring>
#include <deque>
#include <exception>
#include <vector>

using Work = std::vector<std::function<void()>>;

struct CUgraph_st {
    Work work;
};
struct CUgraphExec_st {
    Work work;
};
struct CUstream_st {
    CUgraph_st* graph = nullptr;  // while it is being captured
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    bool invalid = false;
    bool blocking = true;  // the null stream waits for it
    std::deque<std::function<void()>> pending;
};
struct CUevent_st {
    std::chrono::steady_clock::time_point time;
    cudaStream_t stream = nullptr;
    bool recorded = false;
};

namespace stief::simt {

struct Delivery {
    cudaStream_t stream;
    void* to;
    std::vector<char> bytes;
};
static std::vector<Delivery> deliveries;
static std::vector<cudaStream_t> captured;  // streams that are being captured
static cudaStream_t working = nullptr;
static std::vector<cudaStream_t> streams;
static std::exception_ptr lost;  // what was thrown where it could not be: in cudaFree

void deliver_later(void* to, const void* from, size_t bytes) {
    const char* first = static_cast<const char*>(from);
    deliveries.push_back({working, to, {first, first + bytes}});
    std::memset(to, 0xFF, bytes);
}

void deliver(cudaStream_t stream, bool all) {
    std::vector<Delivery> rest;
    for (Delivery& one : deliveries)
        if (all || one.stream == stream)
            std::memcpy(one.to, one.bytes.data(), one.bytes.size());
        else
            rest.push_back(std::move(one));
    deliveries = std::move(rest);
}

// What never arrives: nobody waited for it, or in vain, and its host memory may be gone.
static void forget(cudaStream_t stream) {
    if (stream) stream->pending.clear();
    std::erase_if(deliveries, [=](const Delivery& one) { return one.stream == stream; });
}

bool is_captured(cudaStream_t stream) {
    return stream && stream->graph;
}

bool invalidate_captures() {
    bool any = false;
    for (cudaStream_t stream : captured)
        if (stream->mode != cudaStreamCaptureModeRelaxed) any = stream->invalid = true;
    return any;
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
    if (stream && stream->graph) {
        stream->graph->work.push_back(std::move(work));
        return;
    }
    if (stream) {
        stream->pending.push_back(std::move(work));
        return;
    }
    for (cudaStream_t one : streams)
        if (one->blocking) finish(one);
    working = nullptr;
    work();
}

static void finish(cudaStream_t stream, const CUevent_st* until) {
    if (lost) std::rethrow_exception(std::exchange(lost, nullptr));
    while (stream && !stream->pending.empty() && !(until && until->recorded)) {
        std::function<void()> work = std::move(stream->pending.front());
        stream->pending.pop_front();
        working = stream;
        try {
            work();
        } catch (...) {
            stream->pending.clear();  // after a failure the device does nothing more
            throw;
        }
    }
}

void finish(cudaStream_t stream) {
    finish(stream, nullptr);
}

void finish_until(cudaEvent_t event) {
    finish(event->stream, event);
}

void finish_all() {
    for (cudaStream_t one : std::vector<cudaStream_t>(streams)) finish(one);
}

void finish_quietly() {
    try {
        finish_all();
    } catch (...) {
        lost = std::current_exception();
    }
}

void launch(dim3 grid, int count, size_t shared_bytes, cudaStream_t stream, const void* function,
            std::function<void()> kernel, bool ahead) {
    statistics.launches++;
    if (failure(Call::Launch) != cudaSuccess) return;
    constexpr unsigned MOST = 65535;  // blocks in y and z
    bool possible = grid.x >= 1 && grid.x <= unsigned(INT32_MAX) && grid.y >= 1 && grid.y <= MOST &&
                    grid.z >= 1 && grid.z <= MOST && count >= 1 && count <= 1024;
    if (!possible || shared_bytes > machine.shared_bytes) {
        result(possible ? cudaErrorInvalidValue : cudaErrorInvalidConfiguration);
        return;
    }
    enqueue(stream, [grid, count, shared_bytes, function, ahead, kernel = std::move(kernel)] {
        play(grid, unsigned(count), shared_bytes, kernel, function, ahead);
    });
}

}  // namespace stief::simt

using namespace stief;
using namespace stief::simt;

// ---- streams ----------------------------------------------------------------------------------

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    *stream = new CUstream_st;
    (*stream)->blocking = flags != cudaStreamNonBlocking;
    streams.push_back(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (!stream) return result(cudaErrorInvalidValue);
    forget(stream);
    std::erase(captured, stream);
    std::erase(streams, stream);
    delete stream->graph;
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (invalidate_captures()) return result(cudaErrorStreamCaptureUnsupported);
    if (cudaError_t error = failure(Call::Synchronize)) {
        forget(stream);
        return error;
    }
    finish(stream);
    deliver(stream, false);
    return cudaSuccess;
}

// ---- graphs -----------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    if (!stream || stream->graph) return result(cudaErrorStreamCaptureUnsupported);
    stream->graph = new CUgraph_st;
    stream->mode = mode, stream->invalid = false;
    captured.push_back(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    *graph = nullptr;
    if (!stream || !stream->graph) return result(cudaErrorInvalidValue);
    std::erase(captured, stream);
    *graph = std::exchange(stream->graph, nullptr);
    if (!stream->invalid) return cudaSuccess;
    delete std::exchange(*graph, nullptr);
    return result(cudaErrorStreamCaptureInvalidated);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    *status = !stream || !stream->graph ? cudaStreamCaptureStatusNone
              : stream->invalid         ? cudaStreamCaptureStatusInvalidated
                                        : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    if (!graph) return result(cudaErrorInvalidValue);
    *exec = new CUgraphExec_st{graph->work};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    if (!exec) return result(cudaErrorInvalidValue);
    if (cudaError_t error = failure(Call::Launch)) return error;
    for (const auto& work : exec->work) enqueue(stream, work);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

// ---- events -----------------------------------------------------------------------------------

cudaError_t cudaEventCreate(cudaEvent_t* event) {
    *event = new CUevent_st;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return cudaEventCreate(event);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    event->stream = stream, event->recorded = false;
    enqueue(stream, [=] {
        event->time = std::chrono::steady_clock::now();
        event->recorded = true;
    });
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (invalidate_captures()) return result(cudaErrorStreamCaptureUnsupported);
    if (cudaError_t error = failure(Call::Synchronize)) return error;
    finish_until(event);
    deliver(event->stream, false);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    if (!start->recorded || !end->recorded) return result(cudaErrorInvalidValue);
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    enqueue(stream, [=] {
        finish_until(event);
    });
    return cudaSuccess;
}
