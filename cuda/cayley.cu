// The retraction of README §3 (9) for many bases at once: with the skew X = τ/2 W
//     Q ← (I + X)⁻¹ (I − X) Q = 2 (I + X)⁻¹ Q − Q
//     Q ← Q − ½ Q (QᵀQ − I)                                            one Newton-Schulz step
//
// Elimination needs no pivoting: after any of its steps what is left of I + X is a Schur complement
//     I + X₂₂ + X₁₂ᵀ (I + X₁₁)⁻¹ X₁₂,
// whose symmetric part is I and a positive semi-definite rest, as that of (I + X₁₁)⁻¹ is. So every
// pivot is at least 1, and nothing grows (Golub and Van Loan 2013, 4.3.2 on positive definite A).
//
// Unlike the CPU's this is in f32. The Newton-Schulz step squares what an orthonormal Q has lost,
// so that errors do not add up over the steps; QᵀQ is summed in double, for Q is then off by no
// more than its own rounding, 4e-7 at d = 128. Twin: cayley() in src/base/linalg.cpp.
#include <algorithm>

#include "cuda_backward.h"

namespace stief {

// ---- device helpers ----------------------------------------------------------------------------

// Rows of (d, d) matrices go to warps, columns to lanes: shared memory is read along its banks.
struct Where {
    int warp, warps, lane;
};
__device__ __forceinline__ Where where() {
    return {int(threadIdx.x) / WARP, int(blockDim.x) / WARP, int(threadIdx.x) % WARP};
}

// A ← U of A = L U, B ← L⁻¹ B. Multipliers are not kept: B goes along.
__device__ __forceinline__ void eliminate(float* A, float* B, int d) {
    Where w = where();
    for (int j = 0; j + 1 < d; j++) {
        __syncthreads();  // row j is finished before others are reduced by it
        const float *pivot = A + j * d, *right = B + j * d;
        float inverse = 1.0f / pivot[j];
        for (int i = j + 1 + w.warp; i < d; i += w.warps) {
            float *a = A + i * d, *b = B + i * d, factor = a[j] * inverse;
            for (int c = j + 1 + w.lane; c < d; c += WARP) a[c] = fmaf(-factor, pivot[c], a[c]);
            for (int c = w.lane; c < d; c += WARP) b[c] = fmaf(-factor, right[c], b[c]);
        }
    }
}

// B ← U⁻¹ B
__device__ __forceinline__ void back_substitute(const float* U, float* B, int d) {
    Where w = where();
    for (int j = d - 1; j > 0; j--) {
        __syncthreads();  // row j is finished, but for its pivot, before others are reduced by it
        const float* right = B + j * d;
        float inverse = 1.0f / U[j * d + j];
        for (int i = w.warp; i < j; i += w.warps) {
            float *b = B + i * d, factor = U[i * d + j] * inverse;
            for (int c = w.lane; c < d; c += WARP) b[c] = fmaf(-factor, right[c], b[c]);
        }
    }
    __syncthreads();  // a row is divided by its pivot after the last that needs it undivided
    for (int i = w.warp; i < d; i += w.warps)
        for (int c = w.lane; c < d; c += WARP) B[i * d + c] /= U[i * d + i];
}

// ---- kernels -----------------------------------------------------------------------------------

// grid a basis, block 1024. Shared: two (d, d) matrices, 128 KB at d = 128. Traffic: Q and X once,
// Q twice more for what is not kept.
__global__ void __launch_bounds__(1024)
    cayley_kernel(float* out, const float* Qs, const float* Xs, int d) {
    size_t square = size_t(d) * size_t(d);
    float *A = reinterpret_cast<float*>(dynamic_shared()), *B = A + square;
    const float *Q = Qs + blockIdx.x * square, *X = Xs + blockIdx.x * square;
    out += blockIdx.x * square;
    Where w = where();
    for (int i = w.warp; i < d; i += w.warps)
        for (int c = w.lane; c < d; c += WARP) {
            A[i * d + c] = X[i * d + c] + (i == c ? 1.0f : 0.0f);
            B[i * d + c] = Q[i * d + c];
        }
    eliminate(A, B, d);
    back_substitute(A, B, d);
    for (int i = w.warp; i < d; i += w.warps)
        for (int c = w.lane; c < d; c += WARP) B[i * d + c] = 2 * B[i * d + c] - Q[i * d + c];

    __syncthreads();  // the new Q is whole, and U no longer needed
    for (int i = w.warp; i < d; i += w.warps)
        for (int c = w.lane; c < d; c += WARP) {  // A ← QᵀQ − I
            double sum = i == c ? -1.0 : 0.0;
            for (int k = 0; k < d; k++) sum += double(B[k * d + i]) * double(B[k * d + c]);
            A[i * d + c] = float(sum);
        }
    __syncthreads();  // A is whole
    for (int i = w.warp; i < d; i += w.warps)
        for (int c = w.lane; c < d; c += WARP) {
            float sum = 0;
            for (int k = 0; k < d; k++) sum = fmaf(B[i * d + k], A[k * d + c], sum);
            out[i * d + c] = B[i * d + c] - 0.5f * sum;
        }
}

// ---- launchers ---------------------------------------------------------------------------------

// Momentum and the directions W are in double on the host; Q and X go to the GPU as floats, 2 MB a
// layer of 8 heads of 128. Heads too wide for a block's shared memory are the host's.
void CudaBackward::cayley(std::span<const Turn> all) {
    if (all.empty()) return;
    size_t d = all[0].Q->rows, square = d * d, shared = 2 * square * sizeof(float);
    if (shared > gpu.shared_limit) {
        for (const Turn& one : all) *one.Q = stief::cayley(*one.Q, *one.W, one.tau);
        return;
    }
    size_t count = all.size() * square;
    std::vector<float> host(2 * count);
    for (size_t u = 0; u < all.size(); u++)
        for (size_t i = 0; i < square; i++) {
            host[u * square + i] = float(all[u].Q->data[i]);
            host[count + u * square + i] = float(0.5 * all[u].tau * all[u].W->data[i]);
        }
    float* memory = static_cast<float*>(
        gpu.scratch(CudaBackend::Scratch::Reduction, 3 * count * sizeof(float)));
    gpu.upload(memory, host.data(), 2 * count * sizeof(float));
    float* turned = memory + 2 * count;
    launch(cayley_kernel, dim3(unsigned(all.size())), 1024, shared, gpu.queue, turned, memory,
           memory + count, int(d));
    gpu.download(host.data(), turned, count * sizeof(float));
    for (size_t u = 0; u < all.size(); u++)
        std::copy_n(host.begin() + ptrdiff_t(u * square), square, all[u].Q->data.begin());
}

}  // namespace stief
