// What storing does to rows, and the direction of the model's own score.
// Twin: src/backend/cpu/backward_rows.cpp; the quantiser is row_encoder.cuh's.
#include "cuda_backward.h"
#include "dispatch.cuh"
#include "row_encoder.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

constexpr int BLOCK = 256;

// How a row is rounded: by a warp, or by a block where it may be of joint values.
template <int LANES>
struct Rounding {
    static constexpr int ROWS = BLOCK / LANES;
    using Widths = std::conditional_t<LANES == WARP, RowWidths, JointWidths>;
    using Encoder = RowEncoder<Widths::MOST / LANES, Widths, LANES>;
    Widths widths;
    float sums[BLOCK / WARP];
};

// grid rows / ROWS, block 256. Shared: Rounding. Reads and writes a row once.
template <class E, int LANES>
__global__ void __launch_bounds__(BLOCK, 1)
    round_rows_kernel(float* c, const float* weight, RowFormat format, int rows, int d, int kept) {
    using Shared = Rounding<LANES>;
    int tid = int(threadIdx.x), row = int(blockIdx.x) * Shared::ROWS + tid / LANES, lane = tid % LANES;
    Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared());
    shared.widths.fill(format, tid, BLOCK);
    __syncthreads();  // the widths are there
    if (row >= rows) return;
    c += size_t(row) * size_t(d);
    int whole = int(format.count[0]);
    if (kept > whole) {
        typename Shared::Encoder encoder(DEVICE_LEVELS, shared.widths, format, c, weight, shared.sums);
        int scale = encoder.best_scale();
        float rho = scale_of(scale), per = scale_of(256 - scale);
        encoder.each([&](int i, int j) {
            float step = rho * step_of(encoder.w[i]);
            if (whole + j < kept)
                c[whole + j] = step * encoder.level(encoder.code(i, rho, per), encoder.w[i]);
        });
    }
    for (int j = lane; j < whole; j += LANES) c[j] = to_float(to_element<E>(c[j]));
    for (int j = kept + lane; j < d; j += LANES) c[j] = 0;
}

// ln Σ eᶻ of a row, by a block.
__device__ double block_log_sum(const float* z, int V, double* partial) {
    float most = -INFINITY;
    for (int i = int(threadIdx.x); i < V; i += int(blockDim.x)) most = fmaxf(most, z[i]);
    most = block_max(most, reinterpret_cast<float*>(partial));
    double sum = 0;
    for (int i = int(threadIdx.x); i < V; i += int(blockDim.x)) sum += double(expf(z[i] - most));
    return double(most) + log(block_sum(sum, partial));
}

// grid a row, block 256. Shared: one double a warp. Reads three times, writes once.
__global__ void divergence_gradient_kernel(float* z, const float* reference, int V) {
    double* partial = reinterpret_cast<double*>(dynamic_shared());
    z += size_t(blockIdx.x) * size_t(V), reference += size_t(blockIdx.x) * size_t(V);
    float mine = float(block_log_sum(z, V, partial));
    float theirs = float(block_log_sum(reference, V, partial));
    for (int i = int(threadIdx.x); i < V; i += int(blockDim.x))
        z[i] = expf(z[i] - mine) - expf(reference[i] - theirs);
}

// grid a row, block 256. Shared: one double a warp. Reads and writes a row three times.
__global__ void score_direction_kernel(float* z, uint64_t seed, int V) {
    double* partial = reinterpret_cast<double*>(dynamic_shared());
    uint64_t row = blockIdx.x;
    z += size_t(row) * size_t(V);
    float half = float(0.5 * block_log_sum(z, V, partial));
    double inner = 0;
    for (int i = int(threadIdx.x); i < V; i += int(blockDim.x)) {
        bool up = score_signs(seed, row, uint64_t(i) / 64) >> (i % 64) & 1;
        float root = expf(z[i] * 0.5f - half);
        z[i] = up ? root : -root;
        inner += double(z[i]);
    }
    float shift = float(block_sum(inner, partial));
    for (int i = int(threadIdx.x); i < V; i += int(blockDim.x)) z[i] -= z[i] * z[i] * shift;
}

// ---- launchers ---------------------------------------------------------------------------------

void CudaBackward::round_rows(float* c, const float* weight, const RowFormat& format, DType dtype,
                              int rows, int d) {
    if (rows == 0) return;
    size_t kept = size_t(format.kept());
    float* weights = nullptr;
    if (weight) {
        weights = static_cast<float*>(
            gpu.scratch(CudaBackend::Scratch::Reduction, kept * sizeof(float)));
        gpu.upload(weights, weight, kept * sizeof(float));
    }
    auto round = [&]<class E, int LANES>() {
        constexpr int ROWS = Rounding<LANES>::ROWS;
        launch(round_rows_kernel<E, LANES>, dim3(unsigned((rows + ROWS - 1) / ROWS)), BLOCK,
               sizeof(Rounding<LANES>), gpu.queue, c, static_cast<const float*>(weights), format, rows, d,
               int(kept));
    };
    for_dtype(dtype, [&]<class E>(E) {
        d <= RowWidths::MOST ? round.template operator()<E, WARP>() : round.template operator()<E, BLOCK>();
    });
}

void CudaBackward::score_direction(float* z, uint64_t seed, int rows, int V) {
    launch(score_direction_kernel, dim3(unsigned(rows)), BLOCK, BLOCK / WARP * sizeof(double),
           gpu.queue, z, seed, V);
}

void CudaBackward::divergence_gradient(float* z, const float* reference, int rows, int V) {
    launch(divergence_gradient_kernel, dim3(unsigned(rows)), BLOCK, BLOCK / WARP * sizeof(double),
           gpu.queue, z, reference, V);
}

}  // namespace stief
