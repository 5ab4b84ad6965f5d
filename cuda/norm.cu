// RMSNorm: out = x ⊙ w / √(mean(x²) + ε)  (Zhang and Sennrich 2019). Twin:
// src/backend/cpu/norm.cpp.
#include "cuda_backend.h"
#include "dispatch.cuh"

namespace stief {

// grid T, block up to 1024. Shared: one float a warp. A thread has PER times 4 elements of the row,
// which it reads once, x and w together, before the sum: one round trip. D ≤ 4 · PER · block, whole
// float4; all of them at aligned addresses.
template <class To, class E, int PER>
__global__ void __launch_bounds__(1024)
    rmsnorm_kernel(To* out, const float* x, const E* w, float eps, int D) {
    float* partial = reinterpret_cast<float*>(dynamic_shared());
    size_t row = size_t(blockIdx.x) * size_t(D);
    float4 own[PER], weight[PER];
    float sum = 0;
#pragma unroll
    for (int n = 0; n < PER; n++) {
        int i = 4 * (int(threadIdx.x) + n * int(blockDim.x));
        own[n] = i < D ? *reinterpret_cast<const float4*>(x + row + i) : make_float4(0, 0, 0, 0);
        weight[n] = i < D ? load_4(w + i) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int n = 0; n < PER; n++)
        sum +=
            own[n].x * own[n].x + own[n].y * own[n].y + own[n].z * own[n].z + own[n].w * own[n].w;
    sum = block_sum(sum, partial);
    float factor = 1.0f / sqrtf(sum / float(D) + eps);
#pragma unroll
    for (int n = 0; n < PER; n++) {
        int i = 4 * (int(threadIdx.x) + n * int(blockDim.x));
        if (i < D)
            store_4(out + row + i,
                    make_float4(own[n].x * factor * weight[n].x, own[n].y * factor * weight[n].y,
                                own[n].z * factor * weight[n].z, own[n].w * factor * weight[n].w));
    }
}

// The same for any D and any addresses. grid T, block 256. Reads x twice, element by element.
template <class To, class E>
__global__ void __launch_bounds__(256)
    rmsnorm_any_kernel(To* out, const float* x, const E* w, float eps, int D) {
    float* partial = reinterpret_cast<float*>(dynamic_shared());
    size_t row = size_t(blockIdx.x) * size_t(D);
    x += row, out += row;
    float sum = 0;
    for (int i = int(threadIdx.x); i < D; i += int(blockDim.x)) sum += x[i] * x[i];
    sum = block_sum(sum, partial);
    float factor = 1.0f / sqrtf(sum / float(D) + eps);
    for (int i = int(threadIdx.x); i < D; i += int(blockDim.x))
        out[i] = to_element<To>(x[i] * factor * to_float(w[i]));
}

template <class To>
static void norm_rows(CudaBackend& gpu, To* out, const float* x, const Weight& w, float eps, int T) {
    constexpr int BLOCK = 256, MOST = 1024, MOST_EACH = 4;
    int D = w.N;
    for_dtype(w.dtype, [&]<class E>(E) {
        const E* weight = static_cast<const E*>(w.data);
        auto run = [&](auto kernel, int block) {
            launch(kernel, dim3(unsigned(T)), block, size_t(block / WARP) * sizeof(float),
                   gpu.queue, out, x, weight, eps, D);
        };
        if (D % 4 || D > 4 * MOST_EACH * MOST || !whole_4(out) || !whole_4(x) || !whole_4(weight))
            return run(rmsnorm_any_kernel<To, E>, BLOCK);
        int block = BLOCK;
        while (D > 4 * MOST_EACH * block) block *= 2;
        if (D <= 4 * block)
            run(rmsnorm_kernel<To, E, 1>, block);
        else if (D <= 8 * block)
            run(rmsnorm_kernel<To, E, 2>, block);
        else
            run(rmsnorm_kernel<To, E, 4>, block);
    });
}

void CudaBackend::rmsnorm(float* out, const float* x, const Weight& w, float eps, int T) {
    norm_rows(*this, out, x, w, eps, T);
}

void CudaBackend::norm_rounded(bf16* out, const float* x, const Weight& w, float eps, int T) {
    norm_rows(*this, out, x, w, eps, T);
}

}  // namespace stief
