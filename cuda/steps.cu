// Steps: position and ids on their way to the device; kernels issued, captured, then replayed; numbers
// on their way home.
#include <utility>

#include "cuda_impl.h"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// Words on their way to the device as the argument of a kernel: ordered like any other work,
// without a copy that would have to wait for its host memory.
struct Words {
    static constexpr int MOST = 512;
    int first, count;
    int32_t word[MOST];
};

// to_first + i ← word_i.   grid 1, block Words::MOST
__global__ void set_words(int32_t* to, Words words) {
    int i = int(threadIdx.x);
    if (i < words.count) to[words.first + i] = words.word[i];
}

// *home ← *from, in page-locked memory of the host; pos goes on to the step that comes next, most often.
// grid 1, block 1
__global__ void bring_home_kernel(int32_t* home, const int32_t* from, int32_t* pos, int T) {
    await_kernels();
    *home = *from, *pos += T;
}

// ---- launchers ---------------------------------------------------------------------------------

constexpr size_t MOST_GRAPHS = 16;

// to_i ← word(i), in as many launches as it takes.
template <class Word>
static void send_words(int32_t* to, int total, cudaStream_t queue, const Word& word) {
    for (int first = 0; first < total; first += Words::MOST) {
        Words words{first, std::min(Words::MOST, total - first), {}};
        for (int i = 0; i < words.count; i++) words.word[i] = word(first + i);
        launch(set_words, dim3(1), Words::MOST, 0, queue, to, words);
    }
}

// pos, then the ids.
static void send_step(int32_t* to, const Step& step, cudaStream_t queue) {
    send_words(to, 1 + (step.ids ? step.T : 0), queue,
               [&](int i) { return i == 0 ? step.pos : step.ids[i - 1]; });
}

// An exception within a captured step leaves the stream capturing: nothing else could run on it.
void CudaBackend::drop_capture() {
    if (!impl->capturing) return;
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(queue, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    impl->capturing = nullptr;
}

bool CudaBackend::begin_step(const Step& step) {
    check(step.T <= MOST_IDS, "%d tokens at once, expected at most %d", step.T, MOST_IDS);
    bool alone = singly && step.T > 1;
    check(!alone || step.T <= MOST_SINGLY, "%d tokens singly, expected at most %d", step.T, MOST_SINGLY);
    drop_capture();
    impl->home = step.home, pos = impl->step, turned = nullptr, impl->waiting.clear();
    if (!step.token || impl->next_pos != step.pos) send_step(impl->step, step, queue);
    if (alone) send_words(impl->own_pos(), step.T, queue, [&](int t) { return step.pos + t; });
    impl->next_pos = -1, impl->end_pos = step.pos + step.T, impl->T = step.T;
    impl->replaying = nullptr, impl->issued.reset();
    if (!step.replay) return true;
    for (Impl::Graph& one : impl->graphs) {
        if (one.replay != step.replay || one.reach != reach(step)) continue;
        impl->replaying = one.exec;
        if (one.exec) return false;
        // Relaxed: an operation may still take scratch memory.
        CUDA_CHECK(cudaStreamBeginCapture(queue, cudaStreamCaptureModeRelaxed));
        impl->capturing = &one;
        return true;
    }
    impl->issued = {step.replay, reach(step), nullptr};
    return true;
}

// Kernels of a step of one read their position at `pos`, wherever that is.
void CudaBackend::each_alone(const Step& step, const std::function<void(const Step&, size_t)>& f) {
    struct Back {
        CudaBackend& gpu;
        ~Back() { gpu.pos = gpu.impl->step; }
    } back{*this};
    for (int t = 0; t < step.T; t++) {
        pos = impl->own_pos() + t;
        f({step.pos + t, 1}, size_t(t));
    }
}

// Not before all of it was issued: a step that failed comes anew.
void CudaBackend::Impl::remember(const Graph& one) {
    if (graphs.size() == MOST_GRAPHS) {
        if (graphs.front().exec) CUDA_CHECK(cudaGraphExecDestroy(graphs.front().exec));
        graphs.erase(graphs.begin());
    }
    graphs.push_back(one);
}

void CudaBackend::end_step() {
    append_waiting();
    if (impl->capturing) {
        cudaGraph_t graph = nullptr;
        Impl::Graph* one = impl->capturing;
        impl->capturing = nullptr;
        CUDA_CHECK(cudaStreamEndCapture(queue, &graph));
        cudaError_t status = cudaGraphInstantiate(&one->exec, graph, 0);
        CUDA_CHECK(cudaGraphDestroy(graph));
        CUDA_CHECK(status);
        impl->replaying = one->exec;
    }
    if (impl->replaying) CUDA_CHECK(cudaGraphLaunch(impl->replaying, queue));
    impl->replaying = nullptr;
    if (impl->issued) impl->remember(*std::exchange(impl->issued, std::nullopt));
    if (impl->home) bring_home(std::exchange(impl->home, nullptr));
}

void CudaBackend::bring_home(const int32_t* from) {
    Impl& all = *impl;
    std::erase_if(all.coming, [=](const Impl::Coming& one) { return one.from != from; });
    check(all.coming.size() < Impl::MOST_COMING, "two numbers are on their way home already");
    if (!all.places) {
        CUDA_CHECK(cudaMallocHost(&all.places, Impl::MOST_COMING * sizeof(int32_t)));
        for (cudaEvent_t& one : all.there)
            CUDA_CHECK(cudaEventCreateWithFlags(&one, cudaEventDisableTiming));
    }
    int place = all.next_place;
    all.next_place = (place + 1) % Impl::MOST_COMING;
    launch_ahead(bring_home_kernel, dim3(1), 1, 0, queue, all.places + place, from, all.step, all.T);
    all.next_pos = all.end_pos;
    CUDA_CHECK(cudaEventRecord(all.there[place], queue));
    all.coming.push_back({from, place});
}

}  // namespace stief
