// From the warps of a block of decode attention to the block's partial: each warp has met other keys, with
// its own running max and sum.
#pragma once
#include "attention.cuh"

namespace stief {

// What a warp has of 8 query heads, in the fragments of its products: lane (g, t) two rows of each fragment
// f, of heads 2t, 2t + 1; sum: of this lane's keys. to: (8, D + 2), its own.
//   coordinate(f, i)  of row i of the lane's two
//   by(f)             what the fragment is multiplied by
template <int D, class Coordinate, class By>
__device__ __forceinline__ void put_tile(float* to, const float (&max)[2], const float (&sum)[2],
                                         const float (&acc)[D / 16][4], const Coordinate& coordinate,
                                         const By& by) {
    int lane = int(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float all = sum[i], *head = to + (2 * t + i) * (D + 2);
        for (int mask = 4; mask < WARP; mask *= 2) all += __shfl_xor_sync(~0u, all, mask);
        if (g == 0) head[0] = max[i], head[1] = all;
#pragma unroll
        for (int f = 0; f < D / 16; f++)
            for (int row = 0; row < 2; row++)
                head[2 + coordinate(f, row)] = by(f) * acc[f][2 * row + i];
    }
}
// The same in the order of coordinates: rows g and g + 8 of 16.
template <int D>
__device__ __forceinline__ void put_tile(float* to, const float (&max)[2], const float (&sum)[2],
                                         const float (&acc)[D / 16][4]) {
    int g = int(threadIdx.x) % WARP / 4;
    put_tile<D>(to, max, sum, acc, [&](int f, int row) { return 16 * f + 8 * row + g; },
                [](int) { return 1.0f; });
}

// The block's partial of R query heads from h0 on ← what its warps have put: memory (WARPS, ROWS, D + 2),
// shared; their maxima become weights. All of it is there; `width` coordinates are wanted. A barrier inside.
// out: null; or (H, D), of a block that has met every key: no partial, but what attention gives.
template <int WARPS, int ROWS, int D>
__device__ __forceinline__ void merge_warps(const Partial& partials, float* memory, int h0, int R,
                                            int width, float* out = nullptr) {
    constexpr int EACH = ROWS * (D + 2), TOGETHER = WARP / WARPS;
    static_assert(ROWS % TOGETHER == 0);
    int tid = int(threadIdx.x), lane = tid % WARP;
    // A row's maxima become weights, those of some rows by a warp.
    for (int row = tid / WARP * TOGETHER + lane % TOGETHER; row < ROWS; row += WARPS * TOGETHER) {
        float* one = memory + lane / TOGETHER * EACH + row * (D + 2);
        float max = one[0], most = max, sum = one[1];
        for (int mask = TOGETHER; mask < WARP; mask *= 2)
            most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
        float weight = max > -INFINITY ? power_of_two(max - most) : 0;  // of a warp without keys
        sum *= weight;
        for (int mask = TOGETHER; mask < WARP; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
        one[0] = out ? weight / sum : weight;
        float* to = partials.of(int(blockIdx.y), h0 + row);
        if (!out && row < R && lane < TOGETHER) to[0] = most, to[1] = sum;
    }
    __syncthreads();  // the weights are there
    for (int i = tid; i < R * D; i += WARPS * WARP) {
        int row = i / D, j = i % D;
        const float* from = memory + row * (D + 2);
        float value = 0;
        for (int w = 0; w < WARPS; w++) value += from[w * EACH] * from[w * EACH + 2 + j];
        if (out) out[size_t(h0 + row) * D + j] = value;
        else if (j < width) partials.of(int(blockIdx.y), h0 + row)[2 + j] = value;
    }
}

// The same of a block without keys.
__device__ __forceinline__ void merge_nothing(const Partial& partials, int h0, int R) {
    for (int i = int(threadIdx.x); i < R; i += int(blockDim.x)) {
        float* to = partials.of(int(blockIdx.y), h0 + i);
        to[0] = -INFINITY, to[1] = 0;
    }
}

// The weights of the splits of head h, 2^(max_i − max) / Σ, by each warp for itself: no barrier of the
// block. weight: shared (splits), this warp's.
__device__ __forceinline__ void split_weights(float* weight, const Partial& partials, int splits,
                                              int h) {
    constexpr int LOADS = 4;  // of a lane, on their way at once: nothing is stored between them
    int lane = int(threadIdx.x) % WARP;
    float most = -INFINITY, sum = 0;
#pragma unroll 1
    for (int first = lane; first < splits; first += LOADS * WARP) {
        float max[LOADS], part[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            bool there = first + i * WARP < splits;
            const float* one = partials.of(there ? first + i * WARP : 0, h);
            max[i] = there ? one[0] : -INFINITY, part[i] = there ? one[1] : 0;
        }
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            float old = most;
            if (first + i * WARP < splits) weight[first + i * WARP] = max[i];
            most = fmaxf(most, max[i]);
            if (max[i] > -INFINITY) sum = sum * exp2f(old - most) + part[i] * exp2f(max[i] - most);
        }
    }
    float all = warp_max(most);
    sum = warp_sum(most == -INFINITY ? 0 : sum * exp2f(most - all));
    for (int i = lane; i < splits; i += WARP)
        weight[i] = weight[i] == -INFINITY ? 0 : exp2f(weight[i] - all) / sum;
    __syncwarp();  // this warp's weights are there
}

}  // namespace stief
