// The harness itself: what it must let pass, and what it must catch.
#include <cstring>

#include "base/random.h"
#include "cuda.cuh"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

// n elements that the device sees.
template <class T>
struct Memory {
    T* data = nullptr;
    size_t n;
    explicit Memory(size_t count) : n(count) { CUDA_CHECK(cudaMalloc(&data, n * sizeof(T))); }
    explicit Memory(const std::vector<T>& from) : Memory(from.size()) {
        std::copy(from.begin(), from.end(), data);
    }
    Memory(const Memory&) = delete;
    ~Memory() { simt::release(data, false); }
    std::vector<T> values() const { return {data, data + n}; }
};

std::vector<float> normals(size_t n) {
    Random random(n);
    std::vector<float> x(n);
    for (float& one : x) one = float(random.normal());
    return x;
}

// grid (n), block any. Shared: one float a warp. out[i] = Σ x[i], with or without the barrier.
template <bool BARRIER>
__global__ void sum_kernel(float* out, const float* x, int n) {
    float* scratch = reinterpret_cast<float*>(dynamic_shared());
    float sum = 0;
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x))
        sum += x[size_t(blockIdx.x) * size_t(n) + size_t(i)];
    if constexpr (BARRIER) {
        sum = block_sum(sum, scratch);
    } else {
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = sum;
        sum = 0;
        for (unsigned w = 0; w < blockDim.x / WARP; w++) sum += scratch[w];
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

}  // namespace

TEST_SUITE_BEGIN("simt");

TEST_CASE("a block's sum is the same in every order") {
    for (int block : {32, 64, 128, 1024}) {
        CAPTURE(block);
        Memory<float> x(normals(5 * 1000)), out(5);
        std::vector<float> first;
        simt::in_every_order([&] {
            launch(sum_kernel<true>, 5, block, size_t(block) / 8, nullptr, out.data, x.data, 1000);
            if (first.empty()) first = out.values();
            CHECK(!std::memcmp(first.data(), out.data, 5 * sizeof(float)));
        });
        std::vector<double> want(5);
        for (size_t i = 0; i < 5000; i++) want[i / 1000] += double(x.data[i]);
        CHECK(nmse(first, want) <= TOL_F32);
    }
}

TEST_CASE("a missing barrier gives NaN or other sums in another order") {
    Memory<float> x(normals(1000)), out(1);
    std::vector<float> sums;
    simt::in_every_order([&] {
        launch(sum_kernel<false>, 1, 128, 16, nullptr, out.data, x.data, 1000);
        sums.push_back(out.data[0]);
    });
    CHECK(std::isnan(sums[0]));
    CHECK(sums[0] != sums[1]);
}

TEST_SUITE_END();
