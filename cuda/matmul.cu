// out = x wᵀ, and out = x w for gradients. One token of x wᵀ, or each as if alone: matvec.cu. All else:
// cuBLAS, exact in f32 or, not exact, on tensor cores with x rounded to bf16 where w is bf16, and to TF32
// (11 bits) where it is not. Twin: src/backend/cpu/matmul.cpp.
#include "dispatch.cuh"
#include "matvec.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// to ← from, one thread an element: activations to bf16, weights to float.
template <class To, class From>
__global__ void convert_kernel(To* to, const From* from, size_t n) {
    size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) to[i] = to_element<To>(to_float(from[i]));
}

// ---- launchers ---------------------------------------------------------------------------------

template <class To, class From>
static void convert(CudaBackend& gpu, To* to, const From* from, size_t n) {
    constexpr size_t BLOCK = 256;
    launch(convert_kernel<To, From>, dim3(unsigned((n + BLOCK - 1) / BLOCK)), BLOCK, 0, gpu.queue,
           to, from, n);
}

// What one cuBLAS product is of: out (T, n) = x (T, k) B, or += where add, B = wᵀ for w (n, k) or w
// for w (k, n). cuBLAS counts by columns: to it every row-major matrix is its own transpose.
struct Product {
    float* out;
    size_t out_stride;
    const void *x, *w;
    size_t x_stride, w_stride;
    int T, n, k;
    bool transposed, add;  // transposed: w is (n, k)
};

static void multiply(CudaBackend& gpu, const Product& p, cudaDataType type,
                     cublasComputeType_t how) {
    float one = 1, beta = p.add ? 1.0f : 0.0f;
    CUBLAS_CHECK(cublasGemmEx(gpu.cublas, p.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N,
                              p.n, p.T, p.k, &one, p.w, type, int(p.w_stride), p.x, type,
                              int(p.x_stride), &beta, p.out, CUDA_R_32F, int(p.out_stride), how,
                              CUBLAS_GEMM_DEFAULT));
}

// In f32, with weights of another dtype widened some rows at a time: 64 MiB of them at most.
static void multiply_widened(CudaBackend& gpu, const Product& p, DType dtype) {
    constexpr size_t MOST = size_t(16) << 20;  // floats
    bool rounded = !gpu.exact && p.T > 1;
    cublasComputeType_t how = rounded ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    if (dtype == DType::F32) return multiply(gpu, p, CUDA_R_32F, how);
    size_t rows = size_t(p.transposed ? p.n : p.k), each = std::max<size_t>(1, MOST / p.w_stride);
    each = std::min(each, rows);
    float* wide = static_cast<float*>(
        gpu.scratch(CudaBackend::Scratch::Weights, each * p.w_stride * sizeof(float)));
    for (size_t first = 0; first < rows; first += each) {
        size_t count = std::min(each, rows - first);
        for_dtype(dtype, [&]<class E>(E) {
            convert(gpu, wide, static_cast<const E*>(p.w) + first * p.w_stride, count * p.w_stride);
        });
        Product part = p;
        part.w = wide;
        if (p.transposed)
            part.out += first, part.n = int(count);
        else
            part.x = static_cast<const float*>(p.x) + first, part.k = int(count),
            part.add |= first > 0;
        multiply(gpu, part, CUDA_R_32F, how);
    }
}

// Several tokens (T, K) as products read them, each form made when the first asks for it.
class Activations {
    CudaBackend& gpu;
    const Input& input;
    int T, K;
    const float* wide = nullptr;
    const bf16* staged = nullptr;

    bf16* memory() const {
        size_t bytes = size_t(T) * size_t(K) * sizeof(bf16);
        return static_cast<bf16*>(gpu.scratch(CudaBackend::Scratch::Activations, bytes));
    }

  public:
    Activations(CudaBackend& backend, const Input& x, int tokens, int width)
        : gpu(backend), input(x), T(tokens), K(width) {}
    bool kept() const { return gpu.rounds(input.meets, T); }

    const float* as_float() {
        check(!kept(), "a product with weights that its operand was not made for");
        if (!wide && input.norm)
            gpu.rmsnorm(input.normed, input.x, *input.norm, input.eps, T), wide = input.normed;
        return wide ? wide : input.x;
    }
    // Rows of an Operand that is kept in bf16 are K floats apart, others K bf16.
    const bf16* rounded() {
        if (kept()) return reinterpret_cast<const bf16*>(input.x);
        if (staged) return staged;
        bf16* to = memory();
        if (input.norm)
            gpu.norm_rounded(to, input.x, *input.norm, input.eps, T);
        else
            convert(gpu, to, input.x, size_t(T) * size_t(K));
        return staged = to;
    }
    size_t rounded_stride() const { return kept() ? 2 * size_t(K) : size_t(K); }
};

// q, k and v are a product each: a grouped one of cuBLAS (12.5 on) gives bf16 for bf16, and their sum
// in f32 is what norms and rotations go on with.
void CudaBackend::matmul(std::span<const Projection> all, const Input& input, int T, bool add) {
    if (T == 1 || singly) return matvecs(*this, all, input, T, add);
    Activations x(*this, input, T, all.empty() ? 0 : all[0].w.K);
    for (const Projection& one : all) {
        const Weight& w = one.w;
        size_t N = size_t(w.N), K = size_t(w.K);
        Product p{one.out, N, nullptr, w.data, K, K, T, w.N, w.K, true, add};
        if (rounds(w.dtype, T)) {
            p.x = x.rounded(), p.x_stride = x.rounded_stride();
            multiply(*this, p, CUDA_R_16BF, CUBLAS_COMPUTE_32F);
        } else {
            p.x = x.as_float();
            multiply_widened(*this, p, w.dtype);
        }
    }
}

void CudaBackend::matmul_transposed(float* out, const float* x, const Weight& w, int T) {
    size_t N = size_t(w.N), K = size_t(w.K);
    Product p{out, K, x, w.data, N, K, T, w.K, w.N, false, false};
    if (!rounds(w.dtype, T)) return multiply_widened(*this, p, w.dtype);
    Input input(x);
    p.x = Activations(*this, input, T, w.N).rounded();
    multiply(*this, p, CUDA_R_16BF, CUBLAS_COMPUTE_32F);
}

void CudaBackend::gated(Operand gate, float* up, const Input& x, const Weight& w_gate,
                        const Weight& w_up, int T) {
    if ((T > 1 && !singly) || w_gate.dtype != w_up.dtype) {
        Projection both[] = {{gate.data, w_gate}, {up, w_up}};
        matmul(both, x, T, false);
        return rounds(gate.meets, T) ? swiglu_rounded(gate.data, up, T, w_gate.N)
                                     : swiglu(gate.data, up, T, w_gate.N);
    }
    gated_singly(*this, gate.data, up, x, w_gate, w_up, T);
}

}  // namespace stief
