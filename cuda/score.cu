// The score of predicted tokens: their loss under one or two models, and how far the two diverge.
// Twin: src/backend/cpu/score.cpp. Sums are in double.
#include <climits>

#include "cuda_backend.h"

namespace stief {

// ---- device helpers ----------------------------------------------------------------------------

// softmax(z)_j = e^(z_j − most) / sum
struct Row {
    int top;  // the first of the largest
    float most;
    double sum, log_sum;
};

// By all threads of a block, the same to all; partial: one double a warp.
__device__ __forceinline__ Row read_row(const float* z, int V, double* partial) {
    float most = -INFINITY;
    int first = INT_MAX;
    for (int j = int(threadIdx.x); j < V; j += int(blockDim.x))
        if (z[j] > most || first == INT_MAX) most = z[j], first = j;
    Row row;
    row.most = block_max(most, reinterpret_cast<float*>(partial));
    int lowest = most == row.most && first != INT_MAX ? -first : -INT_MAX;
    row.top = -block_max(lowest, reinterpret_cast<int*>(partial));
    double sum = 0;
    for (int j = int(threadIdx.x); j < V; j += int(blockDim.x))
        sum += double(expf(z[j] - row.most));
    row.sum = block_sum(sum, partial);
    row.log_sum = double(row.most) + log(row.sum);
    return row;
}

// p (e^δ − 1 − δ) = q − p − p δ; by its series where that would cancel.
__device__ __forceinline__ float excess(float p, float q, float delta) {
    if (!(fabsf(delta) < 0.25f)) return q - p - p * delta;
    float series = delta * (1.0f / 5040) + 1.0f / 720;
    series = series * delta + 1.0f / 120;
    series = series * delta + 1.0f / 24;
    series = series * delta + 1.0f / 6;
    series = series * delta + 0.5f;
    return p * delta * delta * series;
}

// ---- kernels -----------------------------------------------------------------------------------

// grid a row, block 512. Shared: one double a warp. Reads each row three times.
__global__ void score_kernel(RowScore* out, const float* logits, const float* full,
                             const int32_t* next, int V) {
    double* partial = reinterpret_cast<double*>(dynamic_shared());
    size_t at = blockIdx.x;
    const float* zq = logits + at * size_t(V);
    Row q = read_row(zq, V, partial);
    RowScore score = {};
    score.loss = q.log_sum - double(zq[next[at]]);
    if (full) {
        const float* zp = full + at * size_t(V);
        Row p = read_row(zp, V, partial);
        float shift = float(log(q.sum) - log(p.sum));
        float scale_p = float(1 / p.sum), scale_q = float(1 / q.sum);
        double sum = 0;
        for (int j = int(threadIdx.x); j < V; j += int(blockDim.x)) {
            float a = zp[j] - p.most, b = zq[j] - q.most;
            sum += double(excess(expf(a) * scale_p, expf(b) * scale_q, b - a - shift));
        }
        score.loss_full = p.log_sum - double(zp[next[at]]);
        score.divergence = block_sum(sum, partial);
        score.same_top = p.top == q.top, score.top_full = p.top;
        auto swing = [&](int token) {
            if (max(p.top, q.top) >= V) return double(NAN);  // a row of nothing but NaN
            return (double(p.most) - zp[token]) - (double(zq[p.top]) - zq[token]);
        };
        score.swing = swing(q.top), score.swing_next = swing(next[at]);
    }
    if (threadIdx.x == 0) out[at] = score;
}

// ---- launchers ---------------------------------------------------------------------------------

void CudaBackend::score(RowScore* out, const float* logits, const float* full, const int32_t* next,
                        int rows, int V) {
    constexpr int BLOCK = 512;
    if (rows == 0) return;
    size_t count = size_t(rows), results = count * sizeof(RowScore);
    char* memory =
        static_cast<char*>(scratch(Scratch::Reduction, results + count * sizeof(int32_t)));
    RowScore* scores = reinterpret_cast<RowScore*>(memory);
    int32_t* next_ids = reinterpret_cast<int32_t*>(memory + results);
    upload(next_ids, next, count * sizeof(int32_t));
    launch(score_kernel, dim3(unsigned(rows)), BLOCK, BLOCK / WARP * sizeof(double), queue, scores,
           logits, full, next_ids, V);
    download(out, scores, results);
}

}  // namespace stief
