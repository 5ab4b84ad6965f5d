// The runtime and cuBLAS as the harness plays them: graphs, arrival of copies, failures.
#include <cstring>

#include "device_memory.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

// cache[position] ← x[0] + step, position ← position + 1.
__global__ void append_kernel(float* cache, int* position, const float* x, float step) {
    cache[*position] = *x + step;
    __syncthreads();
    if (threadIdx.x == 0) ++*position;
}

struct Stream {
    cudaStream_t stream;
    Stream() { CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); }
    ~Stream() { cudaStreamDestroy(stream); }
    operator cudaStream_t() const { return stream; }
};

struct Handle {
    cublasHandle_t handle;
    Handle() { CUBLAS_CHECK(cublasCreate(&handle)); }
    ~Handle() { cublasDestroy(handle); }
    operator cublasHandle_t() const { return handle; }
};

}  // namespace

TEST_SUITE_BEGIN("simt");

TEST_CASE("a graph is captured once and replayed with the position read from memory") {
    DeviceMemory<float> cache(8), x(1), copy(1), y(1);
    DeviceMemory<int> position(1);
    Stream stream;
    Handle handle;
    CUBLAS_CHECK(cublasSetStream(handle, stream));
    CUDA_CHECK(cudaMemsetAsync(position.data, 0, sizeof(int), stream));
    x.data[0] = 10;
    float host = 0, two = 2, zero = 0, step = 1;

    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    CUDA_CHECK(cudaMemcpyAsync(copy.data, x.data, 4, cudaMemcpyDeviceToDevice, stream));
    launch(append_kernel, 1, 64, 0, stream, cache.data, position.data, copy.data, step);
    CUBLAS_CHECK(cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 1, &two, x.data, 1, copy.data,
                             1, &zero, y.data, 1));
    CUDA_CHECK(cudaMemcpyAsync(&host, y.data, 4, cudaMemcpyDeviceToHost, stream));
    two = step = 77;  // was copied when it was captured
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    CHECK(position.data[0] == -1);  // nothing has run yet, not even what was before the capture

    for (int i = 0; i < 3; i++) {
        x.data[0] = float(10 * (i + 1));
        float before = host;
        CUDA_CHECK(cudaGraphLaunch(exec, stream));
        CHECK(host == before);  // has not been waited for
        CHECK(position.data[0] == (i ? i : -1));
        CUDA_CHECK(cudaStreamSynchronize(stream));
        CHECK(host == 2 * x.data[0] * x.data[0]);
    }
    CUDA_CHECK(cudaGraphExecDestroy(exec));
    CHECK(position.data[0] == 3);
    CHECK(std::equal(cache.data, cache.data + 3, std::vector<float>{11, 21, 31}.begin()));
    CHECK(std::isnan(cache.data[3]));
}

TEST_CASE(
    "memory is born NaN; copies check both ends; a copy to the host arrives when waited for") {
    DeviceMemory<float> x(6);
    for (float one : x.values()) CHECK(std::isnan(one));
    float host[6] = {1, 2, 3, 4, 5, 6}, back[6] = {};
    CUDA_CHECK(cudaMemcpy(x.data, host, sizeof host, cudaMemcpyHostToDevice));
    Stream stream, other;
    CUDA_CHECK(cudaMemcpyAsync(back, x.data, sizeof back, cudaMemcpyDeviceToHost, stream));
    CUDA_CHECK(cudaStreamSynchronize(other));
    CHECK(std::isnan(back[0]));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    CHECK(!std::memcmp(back, host, sizeof host));
    // Column 1 and 2 of (2, 3) to (2, 2).
    CUDA_CHECK(cudaMemcpy2DAsync(back, 8, x.data + 1, 12, 8, 2, cudaMemcpyDeviceToHost, stream));
    CUDA_CHECK(cudaDeviceSynchronize());
    CHECK(std::vector<float>(back, back + 4) == std::vector<float>{2, 3, 5, 6});

    CHECK(cudaMemcpy(x.data, host, 28, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(back, x.data + 1, 24, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, x.data, 24, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemset(x.data + 5, 0, 8) == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE(
    "a stream works when it is waited for, in order; events and the null stream wait for it") {
    DeviceMemory<float> cache(8), x(1);
    DeviceMemory<int> position(1);
    x.data[0] = 1, position.data[0] = 0;
    Stream stream, other;
    cudaStream_t blocking;
    CUDA_CHECK(cudaStreamCreate(&blocking));
    cudaEvent_t event;
    CUDA_CHECK(cudaEventCreate(&event));
    auto append = [&](cudaStream_t to, float step) {
        launch(append_kernel, 1, 1, 0, to, cache.data, position.data, x.data, step);
    };
    append(stream, 1), append(stream, 2);
    CUDA_CHECK(cudaEventRecord(event, stream));
    CHECK(position.data[0] == 0);
    CUDA_CHECK(cudaStreamSynchronize(other));
    CHECK(position.data[0] == 0);
    CUDA_CHECK(cudaStreamWaitEvent(other, event));
    append(other, 3);
    CUDA_CHECK(cudaStreamSynchronize(other));
    CHECK(std::vector<float>(cache.data, cache.data + 3) == std::vector<float>{2, 3, 4});
    append(stream, 4), append(blocking, 5),
        append(nullptr, 6);  // stream does not block the null one
    CHECK(std::vector<float>(cache.data + 3, cache.data + 5) == std::vector<float>{6, 7});
    CUDA_CHECK(cudaDeviceSynchronize());
    CHECK(cache.data[5] == 5);
    CUDA_CHECK(cudaEventDestroy(event));
    CUDA_CHECK(cudaStreamDestroy(blocking));
}

TEST_CASE("the machine: too little memory, no device, an old driver") {
    simt::Restore restore;
    simt::machine.memory = 1000;
    DeviceMemory<char> most(900);
    size_t free, total;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    CHECK(free == 100);
    CHECK(total == 1000);
    void* more = most.data;
    CHECK(cudaMalloc(&more, 101) == cudaErrorMemoryAllocation);
    CHECK_THROWS_WITH_AS(CUDA_CHECK(cudaMalloc(&more, 101)),
                         doctest::Contains("CUDA: out of memory ("), Error);
    int count = 5;
    simt::machine.devices = 0;
    CHECK(cudaGetDeviceCount(&count) == cudaErrorNoDevice);
    CHECK(count == 0);
    simt::machine.devices = 2;
    CHECK(cudaSetDevice(1) == cudaSuccess);
    CHECK(cudaSetDevice(2) == cudaErrorInvalidDevice);
    simt::machine.driver = 11040;
    CHECK(cudaGetDeviceCount(&count) == cudaErrorInsufficientDriver);
}

TEST_CASE("failures on request, once or for good") {
    simt::Restore restore;
    DeviceMemory<int> x(1);
    auto run = [&] { launch(append_kernel, 1, 1, 0, nullptr, nullptr, x.data, nullptr, 0); };
    simt::fail_at(simt::Call::Launch, cudaErrorIllegalAddress, 0);
    CHECK_THROWS_WITH_AS(run(), doctest::Contains("illegal memory access"), Error);
    CHECK(cudaGetLastError() == cudaSuccess);
    void* memory = nullptr;
    simt::fail_at(simt::Call::Malloc, cudaErrorMemoryAllocation, 1);
    CHECK(cudaMalloc(&memory, 10) == cudaSuccess);
    CHECK(cudaFree(memory) == cudaSuccess);
    CHECK(cudaMalloc(&memory, 10) == cudaErrorMemoryAllocation);
    simt::fail_at(simt::Call::Synchronize, cudaErrorLaunchFailure, 0, true);
    for (int i = 0; i < 3; i++) CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
}

TEST_CASE("launches that a device refuses") {
    simt::Restore restore;
    auto run = [](dim3 grid, int block, size_t shared) {
        launch(append_kernel, grid, block, shared, nullptr, nullptr, nullptr, nullptr, 0.0f);
    };
    CHECK_THROWS_WITH_AS(run(0, 32, 0), doctest::Contains("invalid configuration"), Error);
    CHECK_THROWS_WITH_AS(run(1, 1025, 0), doctest::Contains("invalid configuration"), Error);
    CHECK_THROWS_WITH_AS(run(dim3(1, 65536), 32, 0), doctest::Contains("invalid config"), Error);
    CHECK_THROWS_WITH_AS(run(1, 32, 164 << 10), doctest::Contains("invalid argument"), Error);
}

TEST_CASE("a capture forbids what would have to wait, and is lost by it") {
    simt::Restore restore;
    Stream stream;
    void* memory = nullptr;
    cudaGraph_t graph;
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    CHECK(cudaMalloc(&memory, 4) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
}

TEST_CASE("cuBLAS: transposes, types, α and β, leading dimensions, batches") {
    const int m = 5, n = 7, k = 6, batches = 3, ld = 9;
    Handle handle;
    const cudaDataType_t types[] = {CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF};
    for (cudaDataType_t type : types)
        for (int transposes = 0; transposes < 4; transposes++) {
            CAPTURE(type);
            CAPTURE(transposes);
            bool ta = transposes & 1, tb = transposes & 2;
            size_t size = ld * 8, element = type == CUDA_R_32F ? 4 : 2;
            std::vector<float> x = normal_floats(2 * batches * size, 1);
            DeviceMemory<char> A(batches * size * element), B(batches * size * element);
            DeviceMemory<float> C(normal_floats(batches * size, 2));
            for (size_t i = 0; i < x.size(); i++) {
                char* to = (i % 2 ? A : B).data + i / 2 * element;
                f16 h = to_f16(x[i]);
                bf16 b = to_bf16(x[i]);
                if (type == CUDA_R_32F) std::memcpy(to, &x[i], 4);
                if (type == CUDA_R_16F) std::memcpy(to, &h, 2), x[i] = to_float(h);
                if (type == CUDA_R_16BF) std::memcpy(to, &b, 2), x[i] = to_float(b);
            }
            for (float beta : {0.0f, 0.5f}) {
                float alpha = 2;
                std::vector<double> want;
                for (size_t s = 0; s < batches; s++)
                    for (int j = 0; j < n; j++)
                        for (int i = 0; i < m; i++) {
                            float& old = C.data[s * size + size_t(j * ld + i)];
                            double sum = double(beta) * double(old);
                            if (beta == 0) old = NaN;  // must not be read
                            for (int l = 0; l < k; l++) {
                                size_t a = s * size + size_t(ta ? i * ld + l : l * ld + i);
                                size_t b = s * size + size_t(tb ? l * ld + j : j * ld + l);
                                sum += 2 * double(x[2 * a + 1]) * double(x[2 * b]);
                            }
                            want.push_back(sum);
                        }
                CUBLAS_CHECK(cublasGemmStridedBatchedEx(
                    handle, ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N, m, n, k,
                    &alpha, A.data, type, ld, size, B.data, type, ld, size, &beta, C.data,
                    CUDA_R_32F, ld, size, batches, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
                std::vector<float> got;
                for (size_t i = 0; i < batches * size; i++)
                    if (i % ld < m && i % size / ld < n) got.push_back(C.data[i]);
                CHECK(nmse(got, want) <= TOL_F32);
            }
        }
}

TEST_CASE("cuBLAS refuses sizes that cannot be, and matrices that end outside their memory") {
    Handle handle;
    DeviceMemory<float> x(std::vector<float>(12, 1.0f)), out(9);
    float one = 1, zero = 0;
    auto gemm = [&](int m, int n, int k, int lda) {
        return cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &one, x.data, lda, x.data, 4,
                           &zero, out.data, 3);
    };
    CUBLAS_CHECK(gemm(3, 3, 4, 3));
    CHECK(out.data[8] == 4);
    CHECK(gemm(3, 3, 4, 2) == CUBLAS_STATUS_INVALID_VALUE);
    CHECK_THROWS_WITH_AS(gemm(3, 3, 4, 4), doctest::Contains("A reaches outside"), Error);
    CHECK_THROWS_WITH_AS(gemm(3, 4, 3, 3), doctest::Contains("B reaches outside"), Error);
}

TEST_SUITE_END();
