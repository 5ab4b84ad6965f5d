// One warp's part of decode attention over whole rows of 16 bits, and up to 8 query heads of a kv head:
// the plain cache (attention_whole.cu), and the windows of whole rows beside rows of codes
// (attention_tensor.cu). What a warp does for 16 keys is some 170 instructions (tools/measurements.md).
#pragma once
#include "attention_tensor.cuh"

namespace stief {

constexpr int WHOLE_WARPS = 4, WHOLE_BLOCK = WHOLE_WARPS * WARP, WHOLE_HEADS = 8;
constexpr int WHOLE_BLOCKS = 2;  // a multiprocessor has

// 16 keys at a time, as attention_warp.cuh says it for rows of any kind.
template <class E, int D>
struct WholeWarp {
    static constexpr int FRAGMENTS = D / 16, STRIDE = D + 8;
    static constexpr int TILE = STEP * STRIDE, STAGE = 2 * TILE;  // elements: keys, then values
    static constexpr int STAGES = 3 * 128 / D;  // steps: one at hand, the others on their way
    static constexpr int PER = D / 8, ROWS_ON = WARP / PER;       // copies of a row; rows of one turn
    const E *keys, *values;  // this lane's part of position 0's row
    E* stages;               // (STAGES, 2, STEP, STRIDE)
    int lane, g, t, row, to; // row, to: of this lane's first copy; elements
    uint32_t query[FRAGMENTS][2];
    float acc[FRAGMENTS][4], max[2], sum[2];  // (coordinates g, g + 8) x (heads 2t, 2t + 1)

    __device__ WholeWarp(const void* k, const void* v, E* memory) : WholeWarp(memory) {
        keys = static_cast<const E*>(k) + lane * 8, values = static_cast<const E*>(v) + lane * 8;
    }
    __device__ explicit WholeWarp(E* memory) : stages(memory) {  // of rows that lie elsewhere
        lane = int(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
        row = lane / PER, to = row * STRIDE + lane % PER * 8;
        max[0] = max[1] = -INFINITY, sum[0] = sum[1] = 0;
        for (int f = 0; f < FRAGMENTS; f++)
            for (int i = 0; i < 4; i++) acc[f][i] = 0;
    }
    // angle: of the position, (2, D/2), by which q is yet to be rotated; or null.
    __device__ void load_queries(const float* q, int R, const float* angle = nullptr) {
        float scale = LOG2_E / sqrtf(float(D));
#pragma unroll
        for (int f = 0; f < FRAGMENTS / 2; f++)
            for (int i = 0; i < 2; i++) {
                int j = 16 * f + 8 * i + 2 * t;
                float2 low = make_float2(0, 0), high = low;
                if (g < R) low = load_pair(q + g * D + j), high = load_pair(q + g * D + D / 2 + j);
                if (angle) {
                    float2 cos = load_pair(angle + j), sin = load_pair(angle + D / 2 + j);
                    turn_pair(low.x, high.x, cos.x, sin.x), turn_pair(low.y, high.y, cos.y, sin.y);
                }
                query[f][i] = pack2<E>(scale * low.x, scale * low.y);
                query[FRAGMENTS / 2 + f][i] = pack2<E>(scale * high.x, scale * high.y);
            }
    }

    // Positions s … s + 15 begin to come, those from `end` on as zeros.
    __device__ __forceinline__ void begin(int stage, int s, int end) {
        E* k = stages + stage * STAGE + to;
        const E *from = keys + size_t(s) * D, *from_v = values + size_t(s) * D;
        auto copy = [&](auto there) {  // constants beside two addresses, where all of them are
#pragma unroll
            for (int i = 0; i < STEP / ROWS_ON; i++) {
                bool one = there(row + i * ROWS_ON);
                int at = one ? i * WARP * 8 : 0;
                copy_async_16(k + i * ROWS_ON * STRIDE, from + at, one);
                copy_async_16(k + TILE + i * ROWS_ON * STRIDE, from_v + at, one);
            }
        };
        if (s + STEP <= end)
            copy([](int) { return true; });
        else
            copy([&](int y) { return s + y < end; });
    }

    // Scores become weights; max and sum take them in.
    __device__ __forceinline__ void softmax(float (&s)[4]) {
        bool larger = s[0] > max[0] + SCORE_SLACK || s[2] > max[0] + SCORE_SLACK ||
                      s[1] > max[1] + SCORE_SLACK || s[3] > max[1] + SCORE_SLACK;
        if (__ballot_sync(~0u, larger)) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float most = fmaxf(s[i], s[2 + i]);
                for (int mask = 4; mask < WARP; mask *= 2)
                    most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
                most = fmaxf(max[i], most);
                float keep = exp2f(max[i] - most);
                max[i] = most, sum[i] *= keep;
#pragma unroll
                for (int f = 0; f < FRAGMENTS; f++) acc[f][i] *= keep, acc[f][2 + i] *= keep;
            }
        }
        for (int i = 0; i < 4; i++) s[i] = exp2f(s[i] - max[i % 2]);
        sum[0] += s[0] + s[2], sum[1] += s[1] + s[3];
    }

    // count keys of a stage that has come
    __device__ __forceinline__ void step(int stage, int count) {
        const E* k = stages + stage * STAGE;
        float part[2][4] = {};  // two sums, as each waits for its last product
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++) {
            uint32_t a[4];
            load_a(a, k, STRIDE, 0, 16 * f);
            mma_16x8x16<E>(part[f % 2], a, query[f]);
        }
        float s[4];
        for (int i = 0; i < 4; i++)
            s[i] = g + i / 2 * 8 < count ? part[0][i] + part[1][i] : -INFINITY;
        softmax(s);
        uint32_t p[2];
        for (int i = 0; i < 2; i++) p[i] = transpose_8x8(pack2<E>(s[2 * i], s[2 * i + 1]));
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++) {
            uint32_t a[4];
            load_a_transposed(a, k + TILE, STRIDE, 0, 16 * f);
            mma_16x8x16<E>(acc[f], a, p);
        }
    }

    // Whether position s, of those from `first` on, is in a step of this warp.
    __device__ __forceinline__ static bool has(int first, int s) {
        return (s - first) / STEP % WHOLE_WARPS == int(threadIdx.x) / WARP;
    }
    // This warp's steps of positions first … end − 1, of which the cache has those below `stored`, all or all
    // but the last. `ready`: what the queries need once copies are on their way; put(key, value): that last
    // row's elements, by all lanes.
    template <class Ready, class Put>
    __device__ __forceinline__ void run(int first, int end, int stored, const Ready& ready, const Put& put) {
        constexpr int ON = WHOLE_WARPS * STEP;
        int s0 = first + int(threadIdx.x) / WARP * STEP, now = 0;
        stored = min(stored, end);
        for (int i = 0; i < STAGES - 1; i++) {
            if (s0 + i * ON < end) begin(i, s0 + i * ON, stored);
            copy_async_commit();
        }
        ready();
        for (int s = s0; s < end; s += ON) {
            copy_async_wait<STAGES - 2>();
            __syncwarp();  // every lane's copies of this step are there; the last step was read
            int next = now == 0 ? STAGES - 1 : now - 1, then = s + (STAGES - 1) * ON;
            if (then < end) begin(next, then, stored);
            copy_async_commit();
            if (stored < end && s + STEP >= end) {
                E* own = stages + now * STAGE + (stored - s) * STRIDE;
                put(own, own + TILE);
                __syncwarp();  // all lanes' elements of it are there
            }
            step(now, min(STEP, end - s));
            now = now + 1 == STAGES ? 0 : now + 1;
        }
    }
};

}  // namespace stief
