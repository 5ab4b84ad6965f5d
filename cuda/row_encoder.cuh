// How coordinates become codes: a row by a warp or by a block, its scale searched. What a row
// waits for is the chain of its reads and sums, so scales are tried seven, two and two at a time,
// a lane has its coordinates in registers, whatever their widths, and tables lie in shared memory.
// Twin: src/backend/row_format.cpp.
#pragma once
#include "coded_rows.cuh"
#include "cuda_backend.h"

namespace stief {

// Of each coordinate of a format its width's number, and of each group of codes its first byte, counted
// from that of the first group. Shared memory.
template <int WIDEST>
struct WidthsOf {
    static constexpr int MOST = WIDEST;
    float cell[RowFormat::WIDTHS], per_cell[RowFormat::WIDTHS];  // δ_b, 1 / δ_b
    uint16_t byte[MOST / ROW_GROUP];
    uint8_t of[MOST];

    // By so many threads of which this is number i; a barrier must follow.
    __device__ void fill(const RowFormat& format, int i, int threads) {
        for (int w = i; w < RowFormat::WIDTHS; w += threads)
            cell[w] = unit_of<Unit::Cell>(w), per_cell[w] = unit_of<Unit::PerCell>(w);
        for (; i < MOST; i += threads) {
            int w = 0, first = int(format.count[0]), behind = first, bytes = 0;
#pragma unroll
            for (int next = 1; next < RowFormat::WIDTHS; next++) {
                if (i < behind) continue;
                int count = int(format.count[next]);
                bytes += min(i - behind, count) / ROW_GROUP * bits_of(next);
                w = next, behind += count;
            }
            of[i] = uint8_t(w);
            if (i >= first && (i - first) % ROW_GROUP == 0)
                byte[(i - first) / ROW_GROUP] = uint16_t(bytes);
        }
    }
};
using RowWidths = WidthsOf<CudaBackend::WIDEST_HEAD>;
using JointWidths = WidthsOf<MOST_KEPT>;  // of joint values

// One element at any address. By way of pack2's 32 bits: where a register of 16 is stored by bytes,
// ptxas 13.0 takes its lower one for the number converted to an integer (tools/sass.py looks for it).
template <class E>
__device__ __forceinline__ void store_bytes(char* to, float x) {
    uint32_t bits;
    if constexpr (sizeof(E) == 4) bits = __float_as_uint(x);
    else bits = pack2<E>(x, 0);
    for (size_t b = 0; b < sizeof(E); b++) to[b] = char(bits >> (8 * b));
}

// A row's coordinates in registers: of LANES, a warp or a whole block, lane i has those of codes i,
// i + LANES, …, up to EACH. All lanes together.
template <int EACH = RowWidths::MOST / WARP, class Widths = RowWidths, int LANES = WARP>
struct RowEncoder {
    const Levels& levels;
    const Widths& widths;
    const float* c;  // (kept)
    int whole, codes, lane;
    float x[EACH], y[EACH];  // a coordinate, and in steps of its width
    float cost[EACH];        // what an error of a step in it costs
    int w[EACH];             // its width's number
    float by_weight;         // 1 / Σ weight
    float* scratch;          // (LANES / 32)  of a block, shared

    // weight (kept): the costs; null: 1
    __device__ RowEncoder(const Levels& table, const Widths& by, const RowFormat& format,
                          const float* row, const float* weight, float* memory = nullptr)
        : levels(table),
          widths(by),
          whole(int(format.count[0])),
          codes(__shfl_sync(~0u, ROW_GROUP * groups_of(format), 0)),  // known to be the warp's
          lane(int(threadIdx.x) % LANES),
          scratch(memory) {
        float sum = 0;
        each([&](int i, int j) {
            bool there = j < codes;
            float one = !there ? 0 : weight ? weight[whole + j] : 1;
            w[i] = there ? widths.of[whole + j] : 1, sum += one;
            cost[i] = one * widths.cell[w[i]] * widths.cell[w[i]];
        });
        by_weight = 1 / sum_of(sum);
        take(row);
    }

    // Goes on to another row (kept) of the same format.
    __device__ __forceinline__ void take(const float* row) {
        c = row;
        each([&](int i, int j) {
            x[i] = j < codes ? c[whole + j] : 0, y[i] = x[i] * widths.per_cell[w[i]];
        });
    }

    // f(i, j) for this lane's number i and code j, also where j is beyond the last: half of the numbers
    // whatever there is, so that they are worked on at once.
    template <class F>
    __device__ __forceinline__ void each(const F& f) const {
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (i < EACH / 2 || i * LANES < codes) f(i, i * LANES + lane);
    }
    // Σ x over the lanes, the same to all.
    __device__ __forceinline__ float sum_of(float one) const {
        if constexpr (LANES == WARP) return warp_sum(one);
        else return block_sum(one, scratch);
    }

    // The code of the level nearest to so many steps of width number `width`.
    __device__ __forceinline__ int code_of(float steps, int width) const {
        constexpr int EDGE = Levels::HALVES / 2;
        float half = fmaxf(-float(EDGE), fminf(floorf(2 * steps), float(EDGE - 1)));
        return levels.nearest[width][int(half) + EDGE];
    }
    __device__ __forceinline__ float level(int code, int width) const {
        return float(levels.of[width][code]);
    }

    // sum_n ← Σ cost (ẑ − z)² over this lane's coordinates under ρ_n, of which per_n is the inverse. By it
    // instead of a division, and in steps: a coordinate that so falls to the other side of a cell's edge
    // costs the same there.
    template <int N>
    __device__ __forceinline__ void lane_costs(float* sum, const float (&rho)[N],
                                               const float (&per)[N]) const {
        constexpr uint32_t ROW = sizeof(levels.rounded[0]);
        const int8_t* rounded = levels.rounded[0];
        float part[N];
#pragma unroll
        for (int n = 0; n < N; n++) sum[n] = 0, part[n] = per[n] * (2.0f / Levels::HALVES);
        each([&](int i, int) {
#pragma unroll
            for (int n = 0; n < N; n++) {
                uint32_t at = place_of(y[i], part[n], Levels::HALVES, uint32_t(w[i]) * ROW);
                float error = rho[n] * float_of(rounded[at]) - y[i];
                sum[n] += cost[i] * error * error;
            }
        });
    }
    // Σ cost (ẑ − z)² of the row under a scale, the same for all lanes.
    __device__ __forceinline__ float cost_under(int scale) const {
        const float rho[] = {scale_of(scale)}, per[] = {scale_of(256 - scale)};
        float sum[1];
        lane_costs(sum, rho, per);
        return sum_of(sum[0]);
    }

    // The scale nearest to the root of the codes' weighted mean square. In floats: their sums move it by
    // less than its own rounding to a float does.
    __device__ int first_scale() const {
        float square = 0;
        each([&](int i, int) { square += cost[i] * y[i] * y[i]; });
        float mean = sum_of(square) * by_weight, exponent = mean > 0 ? 255 : 0;
        if (mean > 0 && mean < 1e38f) exponent = fminf(fmaxf(4 * log2f(mean) + 128, 0.0f), 255.0f);
        return int(exponent + 0.5f);
    }

    // best and least ← where it is less the first least of the costs of lanes' scales; which is NaN or of
    // no scale counts for nothing.
    __device__ __forceinline__ void offer(int& best, float& least, float sum, int scale) const {
        const uint32_t none = __float_as_uint(INFINITY);  // of numbers ≥ 0 the bits are in their order
        uint32_t mine = scale >= 0 && scale <= 255 && sum < least ? __float_as_uint(sum) : none;
        uint32_t all = warp_least(mine);
        int first = __shfl_sync(~0u, scale, lowest_bit(__ballot_sync(~0u, mine == all)));
        if (all != none) least = __uint_as_float(all), best = first;
    }

    // First seven scales, 2^(1/8) ^ {0, −8, −4, 4, 8, 12, 16} of the first one, then two and two.
    __device__ int search() const {
        constexpr float ROOT = 1.41421356f, HALF_ROOT = 0.70710678f;
        int s = first_scale(), best = s;  // where no cost is a number
        float least = INFINITY, r = scale_of(s), p = scale_of(256 - s);
        const float rho[] = {r, r / 2, r * HALF_ROOT, r * ROOT, r * 2, r * (2 * ROOT), r * 4};
        const float per[] = {p, p * 2, p * ROOT, p * HALF_ROOT, p / 2, p * (HALF_ROOT / 2), p / 4};
        float sums[8];
        lane_costs(sums, rho, per);
        sums[7] = INFINITY;
        int n = lane / 4;
        offer(best, least, warp_sums(sums), n == 0 ? s : n < 3 ? s + 4 * (n - 3) : s + 4 * (n - 2));
        for (int near = 2; near > 0; near--) {
            const float two_rho[] = {scale_of(best - near), scale_of(best + near)};
            const float two_per[] = {scale_of(256 - best + near), scale_of(256 - best - near)};
            float two[2];
            lane_costs(two, two_rho, two_per);
            offer(best, least, warp_sums(two), lane < WARP / 2 ? best - near : best + near);
        }
        return best;
    }
    // The same by a block of at least 7 warps, which all have the row: a warp tries one scale.
    //   tried: shared, the scales' costs; both barriers are the block's
    __device__ int search_by_block(float (&tried)[2][7]) const {
        int warp = int(threadIdx.x) / WARP, s = first_scale(), best = s;
        float least = INFINITY;
        auto offer = [&](int scale, float sum) {
            if (scale >= 0 && scale <= 255 && sum < least) least = sum, best = scale;
        };
        auto try_one = [&](float* to, int scale) {
            float sum = cost_under(scale);
            if (lane == 0) *to = sum;
        };
        auto far = [&](int i) { return i == 0 ? s : s + 4 * i - (i < 3 ? 12 : 8); };
        if (warp < 7) try_one(&tried[0][warp], far(warp));
        __syncthreads();  // the scales around the first were tried
        for (int i = 0; i < 7; i++) offer(far(i), tried[0][i]);
        int middle = best;  // what is two away, and one away from the best of these three
        if (warp < 6) try_one(&tried[1][warp], middle - 3 + warp + (warp >= 3));
        __syncthreads();  // all that may be wanted around the best was tried
        for (int near = 2, by = 0; near > 0; near--, by = best - middle)
            for (int i = by - near; i <= by + near; i += 2 * near)
                offer(middle + i, tried[1][i + 3 - (i > 0)]);
        return best;
    }

    // The same by all lanes of a block, which try one scale after the other.
    __device__ int search_together() const {
        int s = first_scale(), best = s;
        float least = INFINITY;
        auto offer = [&](int scale) {
            if (scale < 0 || scale > 255) return;
            float sum = cost_under(scale);
            if (sum < least) least = sum, best = scale;
        };
#pragma unroll 1
        for (int i = 0; i < 7; i++) offer(i == 0 ? s : s + 4 * i - (i < 3 ? 12 : 8));
#pragma unroll 1
        for (int near = 2; near > 0; near--) {
            int middle = best;
            offer(middle - near), offer(middle + near);
        }
        return best;
    }

    __device__ __forceinline__ int best_scale() const {
        if constexpr (LANES == WARP) return search();
        else return search_together();
    }

    // This lane's code i under ρ: of x / (ρ δ) as it is rounded, a product with the inverse and what that
    // misses.
    __device__ __forceinline__ int code(int i, float rho, float per) const {
        float step = rho * widths.cell[w[i]], by = per * widths.per_cell[w[i]], q = x[i] * by;
        if (fabsf(q) < Levels::HALVES) q = fmaf(fmaf(-q, step, x[i]), by, q);  // else it is clipped
        return code_of(q, w[i]);
    }

    // row ← the codes and the scale, and elements E before them.
    template <class E>
    __device__ void pack(char* row, int bytes) const {
        for (int j = lane; j < whole; j += LANES) store_bytes<E>(row + size_t(j) * sizeof(E), c[j]);
        if (!codes) return;
        int scale = best_scale(), n = lane % ROW_GROUP;
        float rho = scale_of(scale), per = scale_of(256 - scale);
        char* to = row + size_t(whole) * sizeof(E);
        each([&](int i, int j) {
            int bits = bits_of(w[i]);
            uint32_t half = uint32_t(code(i, rho, per)) << (n % 4 * bits);
            half |= __shfl_xor_sync(~0u, half, 1), half |= __shfl_xor_sync(~0u, half, 2);
            uint32_t other = __shfl_xor_sync(~0u, half, 4);  // the group's codes 4 … 7, or 0 … 3
            uint64_t word = uint64_t(n < 4 ? other : half) << (4 * bits) | (n < 4 ? half : other);
            if (j < codes && n < bits) to[widths.byte[j / ROW_GROUP] + n] = char(word >> (8 * n));
        });
        if (lane == 0) row[bytes - 1] = char(scale);
    }

    // The same by a block of at least 7 warps and as many threads as codes.
    template <class E>
    __device__ void pack_by_block(char* row, int bytes, float (&tried)[2][7]) const {
        int j = int(threadIdx.x), n = j % ROW_GROUP;
        if (j < whole) store_bytes<E>(row + size_t(j) * sizeof(E), c[j]);
        if (!codes) return;
        int scale = search_by_block(tried), width = j < codes ? widths.of[whole + j] : 1;
        if (j == 0) row[bytes - 1] = char(scale);
        if (j - lane >= codes) return;  // the whole warp
        float steps = (j < codes ? c[whole + j] : 0) / (scale_of(scale) * widths.cell[width]);
        int bits = bits_of(width);
        uint64_t word = uint64_t(code_of(steps, width)) << (n * bits);
        for (int mask = 1; mask < ROW_GROUP; mask *= 2) word |= __shfl_xor_sync(~0u, word, mask);
        char* to = row + size_t(whole) * sizeof(E) + n;
        if (j < codes && n < bits) to[widths.byte[j / ROW_GROUP]] = char(word >> (8 * n));
    }
};

}  // namespace stief
