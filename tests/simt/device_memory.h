// n elements from cudaMalloc, for tests that look into them from the host (which only tests may).
#pragma once
#include <vector>

#include "base/random.h"
#include "cuda.cuh"

namespace stief::testing {

template <class T>
struct DeviceMemory {
    T* data = nullptr;
    size_t n;

    explicit DeviceMemory(size_t count) : n(count) { CUDA_CHECK(cudaMalloc(&data, n * sizeof(T))); }
    explicit DeviceMemory(const std::vector<T>& from) : DeviceMemory(from.size()) {
        std::copy(from.begin(), from.end(), data);
    }
    DeviceMemory(const DeviceMemory&) = delete;
    ~DeviceMemory() { simt::release(data, false); }
    std::vector<T> values() const { return {data, data + n}; }
};

inline std::vector<float> normal_floats(size_t n, uint64_t seed) {
    Random random(seed);
    std::vector<float> x(n);
    for (float& one : x) one = float(random.normal());
    return x;
}

}  // namespace stief::testing
