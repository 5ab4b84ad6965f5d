// What coded keys after rotation have lost, R_s μ, and scores get back: q · R_s μ = w · (cos, sin)_s, where w
// (against_mean of HeadsIn) is the query against the mean. A step's positions are p, p + 1, … 31 at most
// beyond p, so w is turned to p, as angles are linear in the position, and meets those of 0 … 31, which a
// block has as a tile: a product of tensor cores, and a row of angles from memory for 32 keys.
#pragma once
#include "attention_tensor.cuh"

namespace stief {

template <int D, int Q>
struct TurnedMean {
    static constexpr int ROWS = 32, STRIDE = D + 8, HALF = D / 2;
    alignas(16) f16 near[ROWS * STRIDE];  // cosines, sines of positions 0 … 31
    float w[8 * Q * STRIDE];              // as queries: scaled by log₂ e / √d
    float largest[8 * Q];                 // |w| of a head
    float unit, back;                     // what w is multiplied by as its turned pairs become f16; 1 / unit

    // By the whole block, waits for no kernel; a barrier must follow.
    __device__ void fill_near(const float* rotation, int capacity) {
        for (int i = int(threadIdx.x); i < ROWS * HALF; i += int(blockDim.x)) {
            int row = i / HALF, j = i % HALF * 2;
            float2 x = load_pair(rotation + size_t(min(row, capacity - 1)) * D + size_t(j));
            *reinterpret_cast<uint32_t*>(near + row * STRIDE + j) = pack2<f16>(x.x, x.y);
        }
    }
    // By one thread, once w is there; a barrier must follow. The largest turned pair is below 2^15.
    __device__ __forceinline__ void set_unit() {
        float most = 0;
        for (float one : largest) most = fmaxf(most, one);
        int log = min(max(140 - int(__float_as_uint(most) >> 23), -100), 100);
        unit = power_of_two(float(log)), back = power_of_two(float(-log));
    }
    // s += w · (cos, sin) of 16 T keys from the position of `angle` on; s counts in w's units meanwhile, as
    // registers are few.   angle: shared (D)
    template <int T>
    __device__ __forceinline__ void add_to(float (&s)[T][Q][4], const float* angle) const {
        int lane = int(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
        scale(s, unit);
#pragma unroll 1
        for (int c = 0; c < HALF; c += 16) {
            uint32_t b[Q][2][2];
#pragma unroll
            for (int n = 0; n < Q; n++)
                turned_pairs<f16>(b[n], w + (8 * n + g) * STRIDE, angle, HALF, c + 2 * t, unit);
#pragma unroll
            for (int i = 0; i < 2 * T; i++) {
                uint32_t a[4];
                load_a(a, near, STRIDE, i / 2 * 16, i % 2 * HALF + c);
#pragma unroll
                for (int n = 0; n < Q; n++) mma_16x8x16<f16>(s[i / 2][n], a, b[n][i % 2]);
            }
        }
        scale(s, back);
    }

private:
    template <int T>
    __device__ __forceinline__ static void scale(float (&s)[T][Q][4], float by) {
#pragma unroll
        for (int i = 0; i < 4 * T * Q; i++) s[i / 4 / Q][i / 4 % Q][i % 4] *= by;
    }
};

}  // namespace stief
