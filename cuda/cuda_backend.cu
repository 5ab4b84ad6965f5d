#include "cuda_backend.h"

#include <bit>
#include <cstring>
#include <deque>
#include <utility>

#include "base/limits.h"

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

// ---- launchers ---------------------------------------------------------------------------------

constexpr int MOST_IDS = 1 << 18;  // tokens of one step
constexpr size_t MOST_GRAPHS = 16;
constexpr size_t MOST_LANDING = size_t(4) << 20;  // bytes: a few rows of logits
constexpr size_t RESERVE = size_t(256) << 20;     // left for cuBLAS, graphs and the driver

struct CudaBackend::Impl {
    int32_t* step = nullptr;   // (1 + MOST_IDS)  pos, ids
    std::vector<void*> owned;  // weights and scratch
    std::map<const char*, size_t> cold;  // of alloc_cold, page-locked; bytes
    void* scratch[int(Scratch::Count)] = {};
    size_t scratch_bytes[int(Scratch::Count)] = {};
    void* landing = nullptr;  // pinned: what is downloaded arrives here
    size_t landing_bytes = 0;

    // Numbers on their way home (Step::home), oldest first. Each has its own place and event, so that
    // who waits for one does not wait for the steps behind it.
    static constexpr int MOST_COMING = 2;
    struct Coming {
        const void* from;
        int place;
    };
    std::deque<Coming> coming;
    const int32_t* home = nullptr;  // of the step at hand
    int32_t* places = nullptr;      // (MOST_COMING)  pinned
    cudaEvent_t there[MOST_COMING] = {};
    int next_place = 0;

    bool page_locked(const void* host, size_t bytes) const {
        const char* first = static_cast<const char*>(host);
        auto behind = cold.upper_bound(first);
        if (behind == cold.begin()) return false;
        auto [begin, size] = *std::prev(behind);
        return first + bytes <= begin + size;
    }

    // A step is issued when its number is new, captured when it comes again, then replayed: by then
    // every kernel is loaded and all scratch is there.
    struct Graph {
        uint64_t replay;
        cudaGraphExec_t exec;  // null: came once
    };
    std::vector<Graph> graphs;   // oldest first
    Graph* capturing = nullptr;  // the step at hand, while it is captured
    cudaGraphExec_t replaying = nullptr;
};

static std::string describe(const cudaDeviceProp& properties) {
    return format("%s, %.0f GiB", properties.name, double(properties.totalGlobalMem) * 0x1p-30);
}

// Checked before anything else is asked of the device, so that each failure has its own words.
static void require_device() {
    int driver = 0, runtime = 0, devices = 0;
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    check(driver > 0, "--backend cuda: no NVIDIA driver is loaded; use --backend cpu");
    check(driver / 1000 >= runtime / 1000,
          "--backend cuda: the driver knows CUDA %d.%d, this build needs %d.%d; update the driver, "
          "or use --backend cpu",
          driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    cudaError_t status = cudaGetDeviceCount(&devices);
    check(status == cudaSuccess && devices > 0,
          "--backend cuda: no CUDA device (%s); use --backend cpu", cudaGetErrorString(status));
}

CudaBackend::CudaBackend(const BackendOptions& options) : impl(std::make_unique<Impl>()) {
    check(options.isa == "auto", "--isa %s is for --backend cpu", options.isa.c_str());
    require_device();
    cudaDeviceProp properties;
    CUDA_CHECK(cudaSetDevice(0));
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    check(
        properties.major >= 8,
        "--backend cuda: %s has compute capability %d.%d, expected 8.0 or later; use --backend cpu",
        properties.name, properties.major, properties.minor);
    name = "cuda";
    device = describe(properties);
    copies_weights = runs_ahead = cold_apart = true;
    widest_head = WIDEST_HEAD;
    multiprocessors = properties.multiProcessorCount;
    shared_limit = properties.sharedMemPerBlockOptin;
    CUDA_CHECK(cudaStreamCreateWithFlags(&queue, cudaStreamNonBlocking));
    CUBLAS_CHECK(cublasCreate(&cublas));
    CUBLAS_CHECK(cublasSetStream(cublas, queue));
    CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&impl->step), (1 + MOST_IDS) * sizeof(int32_t)));
    impl->owned.push_back(impl->step);
    pos = impl->step, ids = impl->step + 1;
}

CudaBackend::~CudaBackend() {
    for (const Impl::Graph& one : impl->graphs)
        if (one.exec) cudaGraphExecDestroy(one.exec);
    for (void* memory : impl->owned) cudaFree(memory);
    if (impl->landing) cudaFreeHost(impl->landing);
    if (impl->places) cudaFreeHost(impl->places);
    for (cudaEvent_t one : impl->there)
        if (one) cudaEventDestroy(one);
    if (cublas) cublasDestroy(cublas);
    if (queue) cudaStreamDestroy(queue);
}

size_t CudaBackend::available() const {
    size_t free = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return free > RESERVE ? free - RESERVE : 0;
}

void* CudaBackend::alloc(size_t bytes, const char* what) {
    drop_capture();
    size_t free = available();
    if (bytes > free)
        fail("%s needs %.2f GiB, %.2f GiB of the device's memory are available; use a smaller "
             "--context",
             what, double(bytes) * 0x1p-30, double(free) * 0x1p-30);
    void* memory = nullptr;
    CUDA_CHECK(cudaMalloc(&memory, bytes ? bytes : 1));
    CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, queue));
    return memory;
}

// Page-locked, so that kernels read and write it where it lies (unified addresses).
void* CudaBackend::alloc_cold(size_t bytes, const char* what, const std::string& path) {
    check(path.empty(), "%s: a device keeps cold rows in host memory; use --cold ram", path.c_str());
    drop_capture();
    size_t free = available_memory();
    if (bytes > free)
        fail("%s needs %.2f GiB of host memory, %.2f GiB are available; use a smaller --context",
             what, double(bytes) * 0x1p-30, double(free) * 0x1p-30);
    void* memory = nullptr;
    CUDA_CHECK(cudaMallocHost(&memory, bytes ? bytes : 1));
    std::memset(memory, 0, bytes);
    impl->cold[static_cast<char*>(memory)] = bytes;
    return memory;
}

void CudaBackend::release(void* memory, size_t bytes) {
    std::erase_if(impl->coming,
                  [=](const Impl::Coming& one) { return lies_in(one.from, memory, bytes); });
    if (impl->cold.erase(static_cast<char*>(memory))) {
        cudaFreeHost(memory);  // waits as well
        cudaGetLastError();
        return;
    }
    cudaFree(memory);  // waits for the work that uses it
    cudaGetLastError();
}

Weight CudaBackend::bind(const Tensor& tensor) {
    Weight w = view_of(tensor);
    void* memory = alloc(w.bytes(), "a weight");
    impl->owned.push_back(memory);
    upload(memory, tensor.data, w.bytes());
    w.data = memory;
    return w;
}

void CudaBackend::upload(void* to, const void* host, size_t bytes) {
    drop_capture();
    if (!bytes) return;
    CUDA_CHECK(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, queue));
    CUDA_CHECK(cudaStreamSynchronize(queue));
}

// Into page-locked memory a copy is one transfer, into any other the driver copies by pieces of its
// own: what comes to ordinary memory lands in a page-locked block first. Where none can be had, and
// for what is long, the driver's way will do.
void CudaBackend::download(void* host, const void* from, size_t bytes) {
    drop_capture();
    if (!bytes) return;
    if (!impl->coming.empty() && impl->coming.front().from == from) {
        int place = impl->coming.front().place;
        impl->coming.pop_front();
        CUDA_CHECK(cudaEventSynchronize(impl->there[place]));
        std::memcpy(host, impl->places + place, sizeof(int32_t));
        return;
    }
    if (impl->page_locked(host, bytes)) {
        CUDA_CHECK(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, queue));
        CUDA_CHECK(cudaStreamSynchronize(queue));
        return;
    }
    if (bytes <= MOST_LANDING && bytes > impl->landing_bytes) {
        if (impl->landing) cudaFreeHost(impl->landing);
        impl->landing = nullptr, impl->landing_bytes = 0;
        if (cudaMallocHost(&impl->landing, std::bit_ceil(bytes)) == cudaSuccess)
            impl->landing_bytes = std::bit_ceil(bytes);
        else
            impl->landing = nullptr, cudaGetLastError();
    }
    bool lands = bytes <= impl->landing_bytes;
    CUDA_CHECK(
        cudaMemcpyAsync(lands ? impl->landing : host, from, bytes, cudaMemcpyDeviceToHost, queue));
    CUDA_CHECK(cudaStreamSynchronize(queue));
    if (lands) std::memcpy(host, impl->landing, bytes);
}

// Powers of two, so that outgrown blocks add up to no more than the last.
void* CudaBackend::scratch(Scratch purpose, size_t bytes) {
    int i = int(purpose);
    if (bytes > impl->scratch_bytes[i]) {
        void* memory = nullptr;
        bytes = std::bit_ceil(bytes);
        CUDA_CHECK(cudaMalloc(&memory, bytes));
        impl->owned.push_back(memory);
        impl->scratch[i] = memory, impl->scratch_bytes[i] = bytes;
    }
    return impl->scratch[i];
}

// pos, then the ids, in as many words as there are.
static void send_step(int32_t* to, const Step& step, cudaStream_t queue) {
    int total = 1 + (step.ids ? step.T : 0);
    for (int first = 0; first < total; first += Words::MOST) {
        Words words{first, std::min(Words::MOST, total - first), {}};
        for (int i = 0; i < words.count; i++)
            words.word[i] = first + i == 0 ? step.pos : step.ids[first + i - 1];
        launch(set_words, dim3(1), Words::MOST, 0, queue, to, words);
    }
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
    drop_capture();
    impl->home = step.home, turned = nullptr;
    send_step(impl->step, step, queue);
    impl->replaying = nullptr;
    if (!step.replay) return true;
    for (Impl::Graph& one : impl->graphs) {
        if (one.replay != step.replay) continue;
        impl->replaying = one.exec;
        if (one.exec) return false;
        // Relaxed: an operation may still take scratch memory.
        CUDA_CHECK(cudaStreamBeginCapture(queue, cudaStreamCaptureModeRelaxed));
        impl->capturing = &one;
        return true;
    }
    if (impl->graphs.size() == MOST_GRAPHS) {
        if (impl->graphs.front().exec) CUDA_CHECK(cudaGraphExecDestroy(impl->graphs.front().exec));
        impl->graphs.erase(impl->graphs.begin());
    }
    impl->graphs.push_back({step.replay, nullptr});
    return true;
}

void CudaBackend::end_step() {
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
    CUDA_CHECK(cudaMemcpyAsync(all.places + place, from, sizeof(int32_t), cudaMemcpyDeviceToHost,
                               queue));
    CUDA_CHECK(cudaEventRecord(all.there[place], queue));
    all.coming.push_back({from, place});
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
    return std::make_unique<CudaBackend>(options);
}

}  // namespace stief
