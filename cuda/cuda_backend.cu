// A device, opened, and its memory. steps.cu has its steps.
#include <bit>
#include <cstring>

#include "base/limits.h"
#include "cuda_impl.h"

namespace stief {

constexpr size_t MOST_LANDING = size_t(4) << 20;  // bytes: a few rows of logits
constexpr size_t RESERVE = size_t(256) << 20;     // left for cuBLAS, graphs and the driver

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
    widest_head = WIDEST_HEAD, most_singly = MOST_SINGLY, singly_together = 8;
    multiprocessors = properties.multiProcessorCount;
    shared_limit = properties.sharedMemPerBlockOptin;
    CUDA_CHECK(cudaStreamCreateWithFlags(&queue, cudaStreamNonBlocking));
    CUBLAS_CHECK(cublasCreate(&cublas));
    CUBLAS_CHECK(cublasSetStream(cublas, queue));
    CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&impl->step),
                          (1 + MOST_IDS + MOST_SINGLY) * sizeof(int32_t)));
    impl->owned.push_back(impl->step);
    pos = impl->step, ids = impl->step + 1;
}

CudaBackend::~CudaBackend() {
    for (const Impl::Graph& one : impl->graphs)
        if (one.exec) cudaGraphExecDestroy(one.exec);
    for (void* memory : impl->owned) cudaFree(memory);
    for (const auto& [rows, one] : impl->descriptions) cudaFree(one.memory);
    cudaFree(impl->brought.memory), cudaFree(impl->brought.rows);
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
    std::erase_if(impl->descriptions, [=](const auto& one) {
        bool gone = lies_in(one.first, memory, bytes);
        if (gone) cudaFree(one.second.memory);
        return gone;
    });
    std::erase_if(impl->coming,
                  [=](const Impl::Coming& one) { return lies_in(one.from, memory, bytes); });
    if (impl->cold.erase(static_cast<char*>(memory))) {
        cudaStreamSynchronize(queue);  // copies into it may be on their way
        cudaFreeHost(memory);
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
    for (auto& [rows, one] : impl->descriptions) one.whole = one.whole && !lies_in(rows, to, bytes);
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

// Kernels read it before they wait for others: it comes from the host, like a weight; no kernel writes it.
void* CudaBackend::described(const CacheLayer& cache, const float* rotation, size_t bytes,
                             const std::function<void(void*)>& describe) {
    Impl::Description& one = impl->descriptions[cache.rows];
    if (one.whole && one.rotation == rotation) return one.memory;
    check(!impl->capturing, "a cache's rows were described anew within a step that is captured");
    if (bytes > one.bytes) {
        cudaFree(std::exchange(one.memory, nullptr));  // waits for the work that uses it
        one.bytes = 0;
        CUDA_CHECK(cudaMalloc(&one.memory, bytes));
        one.bytes = bytes;
    }
    void* made = scratch(Scratch::Reduction, bytes);
    CUDA_CHECK(cudaMemsetAsync(made, 0, bytes, queue));
    describe(made);
    std::vector<char> host(bytes);
    download(host.data(), made, bytes);
    upload(one.memory, host.data(), bytes);
    one.rotation = rotation, one.whole = true;
    return one.memory;
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
    return std::make_unique<CudaBackend>(options);
}

}  // namespace stief
