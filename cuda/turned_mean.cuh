// What coded keys after rotation have lost, R_s μ, and scores get back: q · R_s μ = w · (cos, sin)_s, where w
// (against_mean of HeadsIn) is the query against the mean. A step's positions are p, p + 1, … 31 at most
// beyond p, so w is turned to p, as angles are linear in the position, and meets those of 0 … 31, which a
// block has as fragments: a product of tensor cores, and a row of angles from memory for 32 keys.
//
// The pairs c + 4t … c + 4t + 3 of sixteen (t = lane % 4) are columns 2t, 2t + 1, 2t + 8 and 2t + 9 of a
// product, which does not ask for the order of what it sums: so a lane's angles lie together. All in f16:
// w, the angles of p, both of turning and the near angles are rounded by at most a part in 2^11 each. w is
// divided by 2^8 and the near angles multiplied by it, which puts terms of 2^-6 … 2^22 in range (those
// below are off by 2^-16 or so; scores are log₂ of weights).
#pragma once
#include "attention_tensor.cuh"

namespace stief {

// The angles of positions 0 … 31 as fragments of 16 positions: cosines, sines of sixteen pairs after sixteen.
template <int D>
struct alignas(16) NearAngles {
    static constexpr int FRAGMENTS = D / 16;
    static constexpr float UNIT = 256;
    uint4 of[2][FRAGMENTS][WARP];

    // By the whole block.
    __device__ void fill(const float* rotation, int capacity) {
        for (int i = int(threadIdx.x); i < 2 * FRAGMENTS * WARP; i += int(blockDim.x)) {
            int lane = i % WARP, f = i / WARP % FRAGMENTS, sixteen = i / WARP / FRAGMENTS;
            int position = 16 * sixteen + lane / 4;
            const float* from = rotation + f % 2 * (D / 2) + f / 2 * 16 + lane % 4 * 4;
            float4 low = load_4(from + size_t(min(position, capacity - 1)) * D);
            float4 high = load_4(from + size_t(min(position + 8, capacity - 1)) * D);
            of[sixteen][f][lane] = make_uint4(pair(low.x, low.y, UNIT), pair(high.x, high.y, UNIT),
                                              pair(low.z, low.w, UNIT), pair(high.z, high.w, UNIT));
        }
    }
    __device__ __forceinline__ static uint32_t pair(float x, float y, float by) {
        return pack2<f16>(by * x, by * y);
    }
};

template <int D, int Q>
struct TurnedMean {
    static constexpr int HALF = D / 2, SIXTEENS = HALF / 16;
    NearAngles<D> near;
    uint4 w[SIXTEENS][Q][WARP];  // of head g: w of a lane's four pairs, those of cosines, of sines

    // In the block's memory, so many bytes from its beginning.
    __device__ __forceinline__ static TurnedMean& at(int bytes) {
        return *reinterpret_cast<TurnedMean*>(dynamic_shared() + bytes);
    }
    // What a thread of a block of so many has of w on its way: of R heads, zeros beyond.
    template <int THREADS>
    struct Coming {
        static constexpr int ALL = SIXTEENS * Q * WARP, EACH = (ALL + THREADS - 1) / THREADS;
        float4 low[EACH], high[EACH];

        __device__ __forceinline__ void fetch(const float* against_mean, int R) {
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                int i = min(int(threadIdx.x) + n * THREADS, ALL - 1), lane = i % WARP;
                int head = i / WARP % Q * 8 + lane / 4, c = i / WARP / Q;
                const float* from = against_mean + min(head, R - 1) * D + 16 * c + lane % 4 * 4;
                low[n] = load_four(from), high[n] = load_four(from + HALF);
                if (head >= R) low[n] = high[n] = make_float4(0, 0, 0, 0);
            }
        }
    };
    // w, scaled as queries are. By the whole block; a barrier must follow.
    template <int THREADS>
    __device__ __forceinline__ void put(const Coming<THREADS>& x) {
        float by = LOG2_E / sqrtf(float(D)) / NearAngles<D>::UNIT;
#pragma unroll
        for (int n = 0; n < x.EACH; n++) {
            int i = int(threadIdx.x) + n * THREADS;
            if (i >= x.ALL) break;
            const float4 &low = x.low[n], &high = x.high[n];
            (&w[0][0][0])[i] = make_uint4(pair(low.x, low.y, by), pair(low.z, low.w, by),
                                          pair(high.x, high.y, by), pair(high.z, high.w, by));
        }
    }
    // s += w · (cos, sin) of 16 T keys from the position of `angle` on.   angle: shared (D)
    template <int T>
    __device__ __forceinline__ void add_to(float (&s)[T][Q][4], const float* angle) const {
        int lane = int(threadIdx.x) % WARP;
        angle += lane % 4 * 4;
#pragma unroll 1
        for (int c = 0; c < SIXTEENS; c++) {
            float4 x = load_four(angle + 16 * c), y = load_four(angle + HALF + 16 * c);
            const uint32_t cos[2] = {pair(x.x, x.y, 1), pair(x.z, x.w, 1)};
            const uint32_t sin[2] = {pair(y.x, y.y, 1), pair(y.z, y.w, 1)};
            uint32_t b[Q][2][2];
#pragma unroll
            for (int n = 0; n < Q; n++) {
                uint4 one = w[c][n][lane];
                const uint32_t low[2] = {one.x, one.y}, high[2] = {one.z, one.w};
                for (int i = 0; i < 2; i++) {
                    b[n][0][i] = multiply_add2(low[i], cos[i], multiply2(high[i], sin[i]));
                    b[n][1][i] = multiply_add2(high[i], cos[i], negate2(multiply2(low[i], sin[i])));
                }
            }
#pragma unroll
            for (int i = 0; i < 2 * T; i++) {
                uint4 one = near.of[i / 2][2 * c + i % 2][lane];
                const uint32_t a[4] = {one.x, one.y, one.z, one.w};
#pragma unroll
                for (int n = 0; n < Q; n++) mma_16x8x16<f16>(s[i / 2][n], a, b[n][i % 2]);
            }
        }
    }

private:
    __device__ __forceinline__ static uint32_t pair(float x, float y, float by) {
        return NearAngles<D>::pair(x, y, by);
    }
    __device__ __forceinline__ static float4 load_four(const float* x) {
        return *reinterpret_cast<const float4*>(x);
    }
};

}  // namespace stief
