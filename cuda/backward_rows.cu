// What storing does to rows, and the direction of the model's own score.
// Twin: src/backend/cpu/backward_rows.cpp; the quantiser is src/backend/row_format.cpp's.
#include <algorithm>

#include "backend/buffer.h"
#include "cuda_backward.h"
#include "dispatch.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

constexpr int BLOCK = 256, ROWS = 64;  // threads; rows a block, a thread each

struct Widths {
    int count[RowFormat::WIDTHS], bits[RowFormat::WIDTHS];
    float step[RowFormat::WIDTHS];
};

__device__ inline float rounded(float x, float step, int bits) {
    float half = float(1 << (bits - 1));
    float cell = fmaxf(-half, fminf(floorf(x / step), half - 1));
    return step * (cell + 0.5f);
}

__device__ inline float cost_of(const float* c, const float* weight, const Widths& widths,
                                float rho) {
    float sum = 0;
    int i = widths.count[0];
    for (int w = 1; w < RowFormat::WIDTHS; w++)
        for (int n = 0; n < widths.count[w]; n++, i++) {
            float error = rounded(c[i], rho * widths.step[w], widths.bits[w]) - c[i];
            sum += (weight ? weight[i] : 1.0f) * error * error;
        }
    return sum;
}

// The scale that pack_row finds, by the same steps.
__device__ inline int search_scale(const float* c, const float* weight, const Widths& widths,
                                   const float* scales, int first, int kept) {
    double square = 0, all = 0;
    for (int i = first; i < kept; i++) {
        double w = weight ? double(weight[i]) : 1;
        square += w * double(c[i]) * double(c[i]), all += w;
    }
    double rms = sqrt(square / all);
    double exponent = rms > 0 ? fmin(fmax(8 * log2(rms) + 128, 0.0), 255.0) : 0;
    int start = int(lround(exponent)), best = start;
    float least = INFINITY;
    auto offer = [&](int scale) {
        if (scale < 0 || scale > 255) return;
        float cost = cost_of(c, weight, widths, scales[scale]);
        if (cost < least) least = cost, best = scale;
    };
    for (int away : {0, -8, -4, 4, 8, 12, 16}) offer(start + away);
    for (int near : {2, 1}) {
        int middle = best;
        offer(middle - near), offer(middle + near);
    }
    return best;
}

// grid rows / ROWS, block ROWS: a thread a row.
template <class E>
__global__ void round_rows_kernel(float* c, const float* weight, const float* scales,
                                  Widths widths, int rows, int d, int kept) {
    int row = int(blockIdx.x) * ROWS + int(threadIdx.x);
    if (row >= rows) return;
    c += size_t(row) * size_t(d);
    int first = widths.count[0], i = first;
    if (kept > first) {
        float rho = scales[search_scale(c, weight, widths, scales, first, kept)];
        for (int w = 1; w < RowFormat::WIDTHS; w++)
            for (int n = 0; n < widths.count[w]; n++, i++)
                c[i] = rounded(c[i], rho * widths.step[w], widths.bits[w]);
    }
    for (i = 0; i < first; i++) c[i] = to_float(to_element<E>(c[i]));
    for (i = kept; i < d; i++) c[i] = 0;
}

// grid a row, block 256. Shared: one double a warp. Reads and writes a row three times.
__global__ void score_direction_kernel(float* z, uint64_t seed, int V) {
    double* partial = reinterpret_cast<double*>(dynamic_shared());
    uint64_t row = blockIdx.x;
    z += size_t(row) * size_t(V);
    float most = -INFINITY;
    for (int i = int(threadIdx.x); i < V; i += int(blockDim.x)) most = fmaxf(most, z[i]);
    most = block_max(most, reinterpret_cast<float*>(partial));
    double sum = 0;
    for (int i = int(threadIdx.x); i < V; i += int(blockDim.x)) sum += double(expf(z[i] - most));
    sum = block_sum(sum, partial);
    float half = float(0.5 * (double(most) + log(sum)));
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
    Widths widths;
    for (size_t w = 0; w < size_t(RowFormat::WIDTHS); w++)
        widths.count[w] = format.count[w], widths.bits[w] = RowFormat::BITS[w],
        widths.step[w] = RowFormat::STEP[w];
    size_t kept = size_t(format.kept());
    std::vector<float> host(256 + kept, 1.0f);  // every scale's ρ, then the weights
    for (int s = 0; s < 256; s++) host[size_t(s)] = row_scale(uint8_t(s));
    if (weight) std::copy_n(weight, kept, host.begin() + 256);
    Buffer table(gpu, host.size() * sizeof(float), "scales of rows");
    gpu.upload(table.data, host.data(), host.size() * sizeof(float));
    for_dtype(dtype, [&]<class E>(E) {
        launch(round_rows_kernel<E>, dim3(unsigned((rows + ROWS - 1) / ROWS)), ROWS, 0, gpu.queue,
               c, static_cast<const float*>(table.f32() + 256),
               static_cast<const float*>(table.f32()), widths, rows, d, int(kept));
    });
}

void CudaBackward::score_direction(float* z, uint64_t seed, int rows, int V) {
    launch(score_direction_kernel, dim3(unsigned(rows)), BLOCK, BLOCK / WARP * sizeof(double),
           gpu.queue, z, seed, V);
}

}  // namespace stief
