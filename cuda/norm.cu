// RMSNorm: out = x ⊙ w / √(mean(x²) + ε)  (Zhang and Sennrich 2019). Twin:
// src/backend/cpu/norm.cpp.
#include "cuda_backend.h"
#include "dispatch.cuh"

namespace stief {

// grid T, block 256. Shared: one float a warp. Reads x twice, the second time from the cache.
template <class E>
__global__ void rmsnorm_kernel(float* out, const float* x, const E* w, float eps, int D) {
    float* partial = reinterpret_cast<float*>(dynamic_shared());
    size_t row = size_t(blockIdx.x) * size_t(D);
    x += row, out += row;
    float sum = 0;
    for (int i = int(threadIdx.x); i < D; i += int(blockDim.x)) sum += x[i] * x[i];
    sum = block_sum(sum, partial);
    float factor = 1.0f / sqrtf(sum / float(D) + eps);
    for (int i = int(threadIdx.x); i < D; i += int(blockDim.x))
        out[i] = x[i] * factor * to_float(w[i]);
}

void CudaBackend::rmsnorm(float* out, const float* x, const Weight& w, float eps, int T) {
    constexpr int BLOCK = 256;
    for_dtype(w.dtype, [&]<class E>(E) {
        launch(rmsnorm_kernel<E>, dim3(unsigned(T)), BLOCK, BLOCK / WARP * sizeof(float), queue,
               out, x, static_cast<const E*>(w.data), eps, w.N);
    });
}

}  // namespace stief
