// Products of one token: inner products with the rows of w as they lie, at the speed of memory, with
// the RMSNorm of x on the way where one is asked for. What matmul.cu does for several.
#include "matvec.cuh"

#include "dispatch.cuh"

namespace stief {

// ---- device helpers ----------------------------------------------------------------------------

// A norm on the way: the row's weight and ε. The factor 1 / √(mean(x²) + ε) is of all sums alike, so
// that a warp finds it while it reads x for its products.
template <class E>
struct NormOf {
    const E* w;
    float eps;
};

// sum_r += x[lane's part] · row_r for R rows of K elements, by the lanes of one warp; NORM: of
// RMSNorm(x) instead of x. ALIGNED: rows begin at multiples of 16 bytes and K is whole loads. A lane
// has UNROLL · R = 4 loads of weights and two of x in flight, 16 bytes each: make sass demands the
// four. The compiler keeps them only where the kernel may have 64 registers: four blocks of 256
// threads a multiprocessor.
template <class E, int R, bool ALIGNED, bool NORM>
__device__ __forceinline__ void dot_rows(float (&sum)[R], const float* x, const E* const (&rows)[R],
                                         int K, const NormOf<E>& norm) {
    static_assert(ALIGNED || !NORM);
    int lane = int(threadIdx.x) % WARP;
    if constexpr (ALIGNED) {
        float square = 0;
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
                // Not load_16: the kernel before may still have been writing x when this one began.
                for (int e = 0; e < EACH; e += 4) {
                    float4 four = load_4(x + at + e);
                    left[e] = four.x, left[e + 1] = four.y, left[e + 2] = four.z, left[e + 3] = four.w;
                }
                if constexpr (NORM) {
                    float weight[EACH];
                    unpack<E>(weight, load_16(norm.w + at));
                    for (int e = 0; e < EACH; e++)
                        square = fmaf(left[e], left[e], square), left[e] *= weight[e];
                }
                for (int r = 0; r < R; r++) {
                    float right[EACH];
                    unpack<E>(right, loaded[u][r]);
                    for (int e = 0; e < EACH; e++) sum[r] = fmaf(left[e], right[e], sum[r]);
                }
            }
        }
        if constexpr (NORM) {
            float factor = 1.0f / sqrtf(warp_sum(square) / float(K) + norm.eps);
            for (int r = 0; r < R; r++) sum[r] *= factor;
        }
    } else {
        for (int i = lane; i < K; i += WARP)
            for (int r = 0; r < R; r++) sum[r] = fmaf(x[i], to_float(rows[r][i]), sum[r]);
    }
    for (int r = 0; r < R; r++) sum[r] = warp_sum(sum[r]);
}

// The first line of each lane's part of a row that the kernel will read once it may: weights do not
// wait for the kernels before.
template <class E>
__device__ __forceinline__ void prefetch_row(const E* row, int K) {
    int at = int(threadIdx.x) % WARP * int(128 / sizeof(E));
    if (at < K) prefetch_line(row + at);
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

// out_j (+)= w_j · x, or w_j · RMSNorm(x). grid: a warp for R rows. Reads every weight once, N·K·size
// bytes; x comes from the first cache, and with a norm its weight, K·size.
template <class E, int R, bool ALIGNED, bool NORM>
__global__ void __launch_bounds__(MATVEC_BLOCK, 4)
    matvec_kernel(Matrices<E> all, const float* x, NormOf<E> norm, int K, bool add) {
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
    const E* rows[R];
    float sum[R] = {};
    for (int r = 0; r < R; r++) {
        rows[r] = w + size_t(min(j + r, N - 1)) * size_t(K);
        prefetch_row(rows[r], K);
    }
    let_next_begin();
    await_kernels();
    if (j >= N) return;
    dot_rows<E, R, ALIGNED, NORM>(sum, x, rows, K, norm);
    int lane = int(threadIdx.x) % WARP;
    if (lane == 0)
        for (int r = 0; r < R && j + r < N; r++) {
            float* to = out + j + r;
            *to = add ? *to + sum[r] : sum[r];
        }
}

// gate_j ← silu(w_gate,j · x) (w_up,j · x), or of RMSNorm(x). grid: a warp for one row of each.
template <class E, bool ALIGNED, bool NORM>
__global__ void __launch_bounds__(MATVEC_BLOCK, 4)
    gated_kernel(float* gate, const float* x, NormOf<E> norm, const E* w_gate, const E* w_up, int N,
                 int K) {
    int j = int(blockIdx.x) * MATVEC_WARPS + int(threadIdx.x) / WARP;
    size_t row = size_t(min(j, N - 1)) * size_t(K);
    const E* rows[2] = {w_gate + row, w_up + row};
    float sum[2] = {};
    for (const E* one : rows) prefetch_row(one, K);
    let_next_begin();
    await_kernels();
    if (j >= N) return;
    dot_rows<E, 2, ALIGNED, NORM>(sum, x, rows, K, norm);
    if (threadIdx.x % WARP == 0) gate[j] = sum[0] / (1.0f + expf(-sum[0])) * sum[1];
}

// ---- launchers ---------------------------------------------------------------------------------

template <class E>
static bool whole_loads(const void* x, const E* w, int K) {
    return size_t(K) * sizeof(E) % 16 == 0 && K % 4 == 0 &&
           reinterpret_cast<uintptr_t>(x) % 16 == 0 && reinterpret_cast<uintptr_t>(w) % 16 == 0;
}

// x as one token's products of weights of type E read it: its norm on the way where that can be,
// aligned and with a weight of the same type; or made before.
template <class E>
struct OneToken {
    const float* x;
    NormOf<E> norm = {};
    bool fused, aligned;

    OneToken(CudaBackend& gpu, const Input& input, bool whole, int K) : x(input.x) {
        fused = input.norm && whole && input.norm->dtype == DTYPE_OF<E> &&
                whole_loads(x, static_cast<const E*>(input.norm->data), K);
        if (fused) norm = {static_cast<const E*>(input.norm->data), input.eps};
        else if (input.norm) gpu.rmsnorm(input.normed, x, *input.norm, input.eps, 1), x = input.normed;
        aligned = whole && reinterpret_cast<uintptr_t>(x) % 16 == 0;
    }
};

// Two rows a warp, unless the machine would then hold fewer than 16 warps a multiprocessor.
template <class E>
static void matvec(CudaBackend& gpu, const Matrices<E>& all, const Input& input, int K, bool add) {
    bool whole = true;
    size_t rows = 0;
    for (int i = 0; i < all.count; i++) {
        whole = whole && whole_loads(input.x, all.w[i], K);
        rows += size_t(all.N[i]);
    }
    OneToken<E> token(gpu, input, whole, K);
    int R = rows / 2 >= size_t(gpu.multiprocessors) * 16 ? 2 : 1;
    size_t units = 0;
    for (int i = 0; i < all.count; i++) units += size_t((all.N[i] + R - 1) / R);
    dim3 grid(unsigned((units + MATVEC_WARPS - 1) / MATVEC_WARPS));
    auto run = [&]<int ROWS>() {
        auto kernel = token.fused     ? matvec_kernel<E, ROWS, true, true>
                      : token.aligned ? matvec_kernel<E, ROWS, true, false>
                                      : matvec_kernel<E, ROWS, false, false>;
        launch_ahead(kernel, grid, MATVEC_BLOCK, 0, gpu.queue, all, token.x, token.norm, K, add);
    };
    R == 2 ? run.template operator()<2>() : run.template operator()<1>();
}

// One token: products of one dtype go together, in the order in which they come.
void matvecs(CudaBackend& gpu, std::span<const Projection> all, const Input& x, bool add) {
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

void gated_one(CudaBackend& gpu, float* gate, const Input& x, const Weight& w_gate,
               const Weight& w_up) {
    for_dtype(w_gate.dtype, [&]<class E>(E) {
        const E *g = static_cast<const E*>(w_gate.data), *u = static_cast<const E*>(w_up.data);
        bool whole = whole_loads(x.x, g, w_gate.K) && whole_loads(x.x, u, w_gate.K);
        OneToken<E> token(gpu, x, whole, w_gate.K);
        auto kernel = token.fused     ? gated_kernel<E, true, true>
                      : token.aligned ? gated_kernel<E, true, false>
                                      : gated_kernel<E, false, false>;
        launch_ahead(kernel, dim3(unsigned((w_gate.N + MATVEC_WARPS - 1) / MATVEC_WARPS)),
                     MATVEC_BLOCK, 0, gpu.queue, gate, token.x, token.norm, g, u, w_gate.N,
                     w_gate.K);
    });
}

}  // namespace stief
