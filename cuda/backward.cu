// calibrate/README.md §2, all but its products with weights. Twin: src/backend/cpu/backward.cpp.
#include "cuda_backward.h"
#include "dispatch.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// grid a row, block 256. Shared: one float a warp. Reads a row three times, twice from the cache,
// and writes it once.
__global__ void causal_softmax_kernel(float* p, int m, int S, int first, float scale) {
    float* partial = reinterpret_cast<float*>(dynamic_shared());
    int visible = first + int(blockIdx.x) / m + 1;
    p += size_t(blockIdx.x) * size_t(S);
    float most = -INFINITY, total = 0;
    for (int s = int(threadIdx.x); s < visible; s += int(blockDim.x)) most = fmaxf(most, p[s]);
    most = block_max(most, partial);
    for (int s = int(threadIdx.x); s < visible; s += int(blockDim.x))
        total += expf((p[s] - most) * scale);
    float inverse = 1.0f / block_sum(total, partial);
    for (int s = int(threadIdx.x); s < S; s += int(blockDim.x))
        p[s] = s < visible ? expf((p[s] - most) * scale) * inverse : 0.0f;
}

// grid a row, block 256. Shared: one double a warp. Reads p, dp and writes dp once.
__global__ void causal_softmax_backward_kernel(float* dp, const float* p, const float* out,
                                               const float* dout, int m, int S, int first, int d,
                                               float scale) {
    double* partial = reinterpret_cast<double*>(dynamic_shared());
    int visible = first + int(blockIdx.x) / m + 1;
    size_t row = blockIdx.x;
    out += row * size_t(d), dout += row * size_t(d);
    p += row * size_t(S), dp += row * size_t(S);
    double inner = 0;  // double: dP − inner cancels where one key has all the weight
    for (int i = int(threadIdx.x); i < d; i += int(blockDim.x))
        inner += double(out[i]) * double(dout[i]);
    float shift = float(block_sum(inner, partial));
    for (int s = int(threadIdx.x); s < S; s += int(blockDim.x))
        dp[s] = s < visible ? p[s] * (dp[s] - shift) * scale : 0.0f;
}

// grid a row, block 256.
__global__ void copy_distances_kernel(Scores to, Scores from, int m, int first, int lo, int hi,
                                      bool zero_others) {
    int query = first + int(blockIdx.x) / m;
    float* out = to.data + size_t(blockIdx.x) * size_t(to.count);
    const float* in = from.data + size_t(blockIdx.x) * size_t(from.count);
    for (int i = int(threadIdx.x); i < to.count; i += int(blockDim.x)) {
        int distance = query - to.first - i, there = to.first + i - from.first;
        bool taken = lo <= distance && distance < hi && there >= 0 && there < from.count;
        if (taken)
            out[i] = in[there];
        else if (zero_others)
            out[i] = 0;
    }
}

// One thread an element.
__global__ void swiglu_backward_kernel(float* dgate, float* dup, const float* dh, const float* gate,
                                       const float* up, size_t n) {
    size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float z = gate[i], h = dh[i], sigma = 1.0f / (1.0f + expf(-z));
    dgate[i] = h * up[i] * sigma * (1.0f + z * (1.0f - sigma));
    dup[i] = h * z * sigma;
}

// grid T, block 256. Shared: one double a warp. Reads x and dz twice, the second time from the
// cache.
template <class E>
__global__ void rmsnorm_backward_kernel(float* dx, const float* dz, const float* x, const E* w,
                                        float eps, int D) {
    double* partial = reinterpret_cast<double*>(dynamic_shared());
    size_t row = size_t(blockIdx.x) * size_t(D);
    dx += row, dz += row, x += row;
    double squares = 0, inner = 0;
    for (int i = int(threadIdx.x); i < D; i += int(blockDim.x)) {
        squares += double(x[i]) * double(x[i]);
        inner += double(dz[i]) * double(to_float(w[i])) * double(x[i]);
    }
    squares = block_sum(squares, partial), inner = block_sum(inner, partial);
    double rho = 1 / sqrt(squares / double(D) + double(eps));
    float factor = float(rho), along = float(rho * rho * rho * inner / double(D));
    for (int i = int(threadIdx.x); i < D; i += int(blockDim.x))
        dx[i] += dz[i] * to_float(w[i]) * factor - x[i] * along;
}

// ---- launchers ---------------------------------------------------------------------------------

constexpr int BLOCK = 256;
constexpr size_t A_DOUBLE_A_WARP = BLOCK / WARP * sizeof(double);

void CudaBackward::causal_softmax(float* p, int T, int m, int S, int first, float scale) {
    launch(causal_softmax_kernel, dim3(unsigned(T * m)), BLOCK, BLOCK / WARP * sizeof(float),
           gpu.queue, p, m, S, first, scale);
}

void CudaBackward::causal_softmax_backward(float* dp, const float* p, const float* out,
                                           const float* dout, int T, int m, int S, int first, int d,
                                           float scale) {
    launch(causal_softmax_backward_kernel, dim3(unsigned(T * m)), BLOCK, A_DOUBLE_A_WARP, gpu.queue,
           dp, p, out, dout, m, S, first, d, scale);
}

void CudaBackward::copy_distances(const Scores& to, const Scores& from, int T, int m, int first,
                                  int lo, int hi, bool zero_others) {
    launch(copy_distances_kernel, dim3(unsigned(T * m)), BLOCK, 0, gpu.queue, to, from, m, first, lo,
           hi, zero_others);
}

void CudaBackward::swiglu_backward(float* dgate, float* dup, const float* dh, const float* gate,
                                   const float* up, int T, int F) {
    size_t n = size_t(T) * size_t(F);
    launch(swiglu_backward_kernel, dim3(unsigned((n + BLOCK - 1) / BLOCK)), BLOCK, 0, gpu.queue,
           dgate, dup, dh, gate, up, n);
}

void CudaBackward::rmsnorm_backward(float* dx, const float* dz, const float* x, const Weight& w,
                                    float eps, int T) {
    for_dtype(w.dtype, [&]<class E>(E) {
        launch(rmsnorm_backward_kernel<E>, dim3(unsigned(T)), BLOCK, A_DOUBLE_A_WARP, gpu.queue, dx,
               dz, x, static_cast<const E*>(w.data), eps, w.N);
    });
}

// Neither factor is a weight: cuBLAS reads a by its columns, and nothing is transposed. To it the
// row-major out (N, K) is (K, N) = bᵀ a.
void CudaBackward::add_transposed_product(float* out, const float* a, const float* b, int T, int N,
                                          int K) {
    float one = 1;
    cublasComputeType_t how = gpu.exact ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_FAST_TF32;
    CUBLAS_CHECK(cublasGemmEx(gpu.cublas, CUBLAS_OP_N, CUBLAS_OP_T, K, N, T, &one, b, CUDA_R_32F, K,
                              a, CUDA_R_32F, N, &one, out, CUDA_R_32F, K, how,
                              CUBLAS_GEMM_DEFAULT));
}

std::unique_ptr<Backward> make_cuda_backward(Backend& backend) {
    return std::make_unique<CudaBackward>(static_cast<CudaBackend&>(backend));
}

}  // namespace stief
