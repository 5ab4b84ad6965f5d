// out = x wᵀ, and out = x w for gradients. One token of x wᵀ: inner products with the rows of w as
// they lie, at the speed of memory. All else: cuBLAS, exact in f32 or, not exact, on tensor cores
// with x rounded to bf16 where w is bf16, and to TF32 (11 bits) where it is not. Twin:
// src/backend/cpu/matmul.cpp.
#include "cuda_backend.h"
#include "dispatch.cuh"

namespace stief {

// ---- device helpers ----------------------------------------------------------------------------

// sum_r += x[lane's part] · row_r for R rows of K elements, by the lanes of one warp. ALIGNED: rows
// begin at multiples of 16 bytes and K is whole loads. A lane has UNROLL · R = 4 loads of weights
// and two of x in flight, 16 bytes each: make sass demands the four. The compiler keeps them only
// where the kernel may have 64 registers: four blocks of 256 threads a multiprocessor.
template <class E, int R, bool ALIGNED>
__device__ __forceinline__ void dot_rows(float (&sum)[R], const float* x, const E* const (&rows)[R],
                                         int K) {
    int lane = int(threadIdx.x) % WARP;
    if constexpr (ALIGNED) {
        constexpr int EACH = 16 / sizeof(E), UNROLL = 4 / R;
        for (int i = lane * EACH; i < K; i += UNROLL * WARP * EACH) {
            uint4 loaded[UNROLL][R];
            for (int u = 0; u < UNROLL; u++)
                for (int r = 0; r < R; r++) {
                    int at = i + u * WARP * EACH;
                    loaded[u][r] = at < K ? load_16_stream(rows[r] + at) : uint4{0, 0, 0, 0};
                }
            for (int u = 0; u < UNROLL; u++) {
                int at = i + u * WARP * EACH;
                if (at >= K) break;
                float left[EACH];
                for (int e = 0; e < EACH; e += 4)
                    unpack<float>(reinterpret_cast<float(&)[4]>(left[e]), load_16(x + at + e));
                for (int r = 0; r < R; r++) {
                    float right[EACH];
                    unpack<E>(right, loaded[u][r]);
                    for (int e = 0; e < EACH; e++) sum[r] = fmaf(left[e], right[e], sum[r]);
                }
            }
        }
    } else {
        for (int i = lane; i < K; i += WARP)
            for (int r = 0; r < R; r++) sum[r] = fmaf(x[i], to_float(rows[r][i]), sum[r]);
    }
    for (int r = 0; r < R; r++) sum[r] = warp_sum(sum[r]);
}

// ---- kernels -----------------------------------------------------------------------------------

constexpr int MOST_PROJECTIONS = 3, MATVEC_BLOCK = 256, MATVEC_WARPS = MATVEC_BLOCK / WARP;

// Up to three matrices that meet the same x; a warp's R rows never lie in two of them.
template <class E>
struct Matrices {
    float* out[MOST_PROJECTIONS];
    const E* w[MOST_PROJECTIONS];
    int N[MOST_PROJECTIONS];
    int count;
};

// out_j (+)= w_j · x. grid: a warp for R rows. Reads every weight once, N·K·size bytes; x comes
// from the first cache.
template <class E, int R, bool ALIGNED>
__global__ void __launch_bounds__(MATVEC_BLOCK, 4)
    matvec_kernel(Matrices<E> all, const float* x, int K, bool add) {
    int unit = int(blockIdx.x) * MATVEC_WARPS + int(threadIdx.x) / WARP;
    float* out = all.out[0];
    const E* w = all.w[0];
    int N = all.N[0];
    // Chosen without an index that only the device knows: that would put the struct into local memory.
#pragma unroll
    for (int i = 1; i < MOST_PROJECTIONS; i++) {
        int units = (N + R - 1) / R;
        if (i >= all.count || unit < units) break;
        unit -= units, out = all.out[i], w = all.w[i], N = all.N[i];
    }
    int j = unit * R;
    if (j >= N) return;
    const E* rows[R];
    float sum[R] = {};
    for (int r = 0; r < R; r++) rows[r] = w + size_t(min(j + r, N - 1)) * size_t(K);
    dot_rows<E, R, ALIGNED>(sum, x, rows, K);
    int lane = int(threadIdx.x) % WARP;
    if (lane == 0)
        for (int r = 0; r < R && j + r < N; r++) {
            float* to = out + j + r;
            *to = add ? *to + sum[r] : sum[r];
        }
}

// gate_j ← silu(w_gate,j · x) (w_up,j · x). grid: a warp for one row of each.
template <class E, bool ALIGNED>
__global__ void __launch_bounds__(MATVEC_BLOCK, 4)
    gated_kernel(float* gate, const float* x, const E* w_gate, const E* w_up, int N, int K) {
    int j = int(blockIdx.x) * MATVEC_WARPS + int(threadIdx.x) / WARP;
    if (j >= N) return;
    const E* rows[2] = {w_gate + size_t(j) * size_t(K), w_up + size_t(j) * size_t(K)};
    float sum[2] = {};
    dot_rows<E, 2, ALIGNED>(sum, x, rows, K);
    if (threadIdx.x % WARP == 0) gate[j] = sum[0] / (1.0f + expf(-sum[0])) * sum[1];
}

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

template <class E>
static bool whole_loads(const void* x, const E* w, int K) {
    return size_t(K) * sizeof(E) % 16 == 0 && K % 4 == 0 &&
           reinterpret_cast<uintptr_t>(x) % 16 == 0 && reinterpret_cast<uintptr_t>(w) % 16 == 0;
}

// Two rows a warp, unless the machine would then hold fewer than 16 warps a multiprocessor.
template <class E>
static void matvec(CudaBackend& gpu, const Matrices<E>& all, const float* x, int K, bool add) {
    bool aligned = true;
    size_t rows = 0;
    for (int i = 0; i < all.count; i++) {
        aligned = aligned && whole_loads(x, all.w[i], K);
        rows += size_t(all.N[i]);
    }
    int R = rows / 2 >= size_t(gpu.multiprocessors) * 16 ? 2 : 1;
    size_t units = 0;
    for (int i = 0; i < all.count; i++) units += size_t((all.N[i] + R - 1) / R);
    dim3 grid(unsigned((units + MATVEC_WARPS - 1) / MATVEC_WARPS));
    auto run = [&](auto kernel) {
        launch(kernel, grid, MATVEC_BLOCK, 0, gpu.queue, all, x, K, add);
    };
    if (R == 2)
        aligned ? run(matvec_kernel<E, 2, true>) : run(matvec_kernel<E, 2, false>);
    else
        aligned ? run(matvec_kernel<E, 1, true>) : run(matvec_kernel<E, 1, false>);
}

// One token: products of one dtype go together, in the order in which they come.
static void matvecs(CudaBackend& gpu, std::span<const Projection> all, const float* x, bool add) {
    for (size_t i = 0; i < all.size();) {
        DType dtype = all[i].w.dtype;
        for_dtype(dtype, [&]<class E>(E) {
            Matrices<E> together = {};
            for (; i < all.size() && all[i].w.dtype == dtype && together.count < MOST_PROJECTIONS;
                 i++) {
                int n = together.count++;
                together.out[n] = all[i].out, together.N[n] = all[i].w.N;
                together.w[n] = static_cast<const E*>(all[i].w.data);
            }
            matvec(gpu, together, x, all[i - 1].w.K, add);
        });
    }
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

// x (T, K) rounded to bf16.
static const void* stage_activations(CudaBackend& gpu, const float* x, int T, int K) {
    size_t n = size_t(T) * size_t(K);
    bf16* staged =
        static_cast<bf16*>(gpu.scratch(CudaBackend::Scratch::Activations, n * sizeof(bf16)));
    convert(gpu, staged, x, n);
    return staged;
}

void CudaBackend::matmul(std::span<const Projection> all, const float* x, int T, bool add) {
    if (T == 1) return matvecs(*this, all, x, add);
    const void* staged = nullptr;
    for (const Projection& one : all) {
        const Weight& w = one.w;
        size_t N = size_t(w.N), K = size_t(w.K);
        Product p{one.out, N, x, w.data, K, K, T, w.N, w.K, true, add};
        if (exact || w.dtype != DType::BF16) {
            multiply_widened(*this, p, w.dtype);
            continue;
        }
        if (!staged) staged = stage_activations(*this, x, T, w.K);
        p.x = staged;
        multiply(*this, p, CUDA_R_16BF, CUBLAS_COMPUTE_32F);
    }
}

void CudaBackend::matmul_transposed(float* out, const float* x, const Weight& w, int T) {
    size_t N = size_t(w.N), K = size_t(w.K);
    Product p{out, K, x, w.data, N, K, T, w.K, w.N, false, false};
    if (exact || T == 1 || w.dtype != DType::BF16) return multiply_widened(*this, p, w.dtype);
    p.x = stage_activations(*this, x, T, w.N);
    multiply(*this, p, CUDA_R_16BF, CUBLAS_COMPUTE_32F);
}

void CudaBackend::gated(float* gate, float* up, const float* x, const Weight& w_gate,
                        const Weight& w_up, int T) {
    if (T > 1 || w_gate.dtype != w_up.dtype) {
        Projection both[] = {{gate, w_gate}, {up, w_up}};
        matmul(both, x, T, false);
        return swiglu(gate, up, T, w_gate.N);
    }
    for_dtype(w_gate.dtype, [&]<class E>(E) {
        const E *g = static_cast<const E*>(w_gate.data), *u = static_cast<const E*>(w_up.data);
        bool aligned = whole_loads(x, g, w_gate.K) && whole_loads(x, u, w_gate.K);
        auto kernel = aligned ? gated_kernel<E, true> : gated_kernel<E, false>;
        launch(kernel, dim3(unsigned((w_gate.N + MATVEC_WARPS - 1) / MATVEC_WARPS)), MATVEC_BLOCK,
               0, queue, gate, x, g, u, w_gate.N, w_gate.K);
    });
}

}  // namespace stief
