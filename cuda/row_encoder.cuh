// How coordinates become codes: a row by a warp, its scale searched. What a row waits for is the chain of
// its reads and sums, so scales are tried seven, two and two at a time, a lane has a coordinate and not a
// width, and tables lie in shared memory. Twin: src/backend/row_format.cpp.
#pragma once
#include "coded_rows.cuh"
#include "cuda_backend.h"

namespace stief {

// Of each coordinate of a format its width's number, and of each group of codes its first byte, counted
// from that of the first group. Shared memory.
struct RowWidths {
    static constexpr int MOST = CudaBackend::WIDEST_HEAD;
    float step[RowFormat::WIDTHS], per_step[RowFormat::WIDTHS];  // Δ_b, 1 / Δ_b
    uint16_t byte[MOST / ROW_GROUP];
    uint8_t of[MOST];

    // By so many threads of which this is number i; a barrier must follow.
    __device__ void fill(const RowFormat& format, int i, int threads) {
        for (int w = i; w < RowFormat::WIDTHS; w += threads)
            step[w] = step_of(w), per_step[w] = by_step_of(w);
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

// One element at any address. By way of pack2's 32 bits: where a register of 16 is stored by bytes,
// ptxas 13.0 takes its lower one for the number converted to an integer (tools/sass.py looks for it).
template <class E>
__device__ __forceinline__ void store_bytes(char* to, float x) {
    uint32_t bits;
    if constexpr (sizeof(E) == 4) bits = __float_as_uint(x);
    else bits = pack2<E>(x, 0);
    for (size_t b = 0; b < sizeof(E); b++) to[b] = char(bits >> (8 * b));
}

// A row's coordinates c (kept), the first `whole` of them elements; weight (kept): what an error in each
// costs, null: 1. All 32 lanes together.
struct RowEncoder {
    const Levels& levels;
    const RowWidths& widths;
    const float *c, *weight;
    int whole, kept, lane;

    __device__ RowEncoder(const Levels& table, const RowWidths& by, const RowFormat& format,
                          const float* row, const float* costs)
        : levels(table),
          widths(by),
          c(row),
          weight(costs),
          whole(int(format.count[0])),
          kept(0),
          lane(int(threadIdx.x) % WARP) {
        for (int w = 0; w < RowFormat::WIDTHS; w++) kept += int(format.count[w]);
    }

    // The code of the level nearest to x, which is in steps of width number w.
    __device__ __forceinline__ int code_of(float x, int w) const {
        constexpr int EDGE = Levels::HALVES / 2;
        float half = fmaxf(-float(EDGE), fminf(floorf(2 * x), float(EDGE - 1)));
        return levels.nearest[w][int(half) + EDGE];
    }
    __device__ __forceinline__ float level(int code, int w) const {
        return float(levels.of[w][code]);
    }

    // cost_n ← Σ w (ẑ − z)² under scale n, the same for all lanes. By 1 / ρΔ instead of a division: a
    // coordinate that so falls to the other side of a cell's edge costs the same there.
    template <int N>
    __device__ __forceinline__ void costs(float (&cost)[N], const int (&scale)[N]) const {
        float rho[N], per[N];
#pragma unroll
        for (int n = 0; n < N; n++)
            cost[n] = 0, rho[n] = scale_of(scale[n]), per[n] = scale_of(256 - scale[n]);
        for (int j = whole + lane; j < kept; j += WARP) {
            int w = widths.of[j];
            float x = c[j], by = weight ? weight[j] : 1;
            float step = widths.step[w], steps = x * widths.per_step[w];
#pragma unroll
            for (int n = 0; n < N; n++) {
                float error = rho[n] * step * level(code_of(steps * per[n], w), w) - x;
                cost[n] += by * error * error;
            }
        }
#pragma unroll
        for (int n = 0; n < N; n++) cost[n] = warp_sum(cost[n]);
    }

    // The scale nearest to the root of the codes' weighted mean square.
    __device__ int first_scale() const {
        double square = 0, all = 0;  // as the twin's: few rows lie near a rounding's edge
        for (int j = whole + lane; j < kept; j += WARP) {
            double w = weight ? double(weight[j]) : 1;
            square += w * double(c[j]) * double(c[j]), all += w;
        }
        square = warp_sum(square), all = warp_sum(all);
        float mean = float(square / all), exponent = mean > 0 ? 255 : 0;
        if (mean > 0 && mean < 1e38f) exponent = fminf(fmaxf(4 * log2f(mean) + 128, 0.0f), 255.0f);
        return int(lroundf(exponent));
    }

    __device__ int search() const {
        int best = 0;
        float least = INFINITY;
        auto offer = [&]<int N>(const int (&scale)[N]) {
            float cost[N];
            costs(cost, scale);
#pragma unroll
            for (int n = 0; n < N; n++)
                if (scale[n] >= 0 && scale[n] <= 255 && cost[n] < least)
                    least = cost[n], best = scale[n];
        };
        int s = first_scale();
        best = s;  // where no cost is a number
        offer({s, s - 8, s - 4, s + 4, s + 8, s + 12, s + 16});
        for (int near = 2; near > 0; near--) offer({best - near, best + near});
        return best;
    }

    // row ← the codes and the scale, and elements E before them. A lane has a code, eight of them a group.
    template <class E>
    __device__ void pack(char* row, int bytes) const {
        for (int j = lane; j < whole; j += WARP) store_bytes<E>(row + size_t(j) * sizeof(E), c[j]);
        if (kept == whole) return;
        int scale = search(), n = lane % ROW_GROUP, codes = kept - whole;
        float rho = scale_of(scale);
        char* to = row + size_t(whole) * sizeof(E);
        for (int i = lane; i / WARP * WARP < codes; i += WARP) {  // lanes without a code come along
            int w = i < codes ? widths.of[whole + i] : RowFormat::WIDTHS - 1, bits = bits_of(w);
            int code = i < codes ? code_of(c[whole + i] / (rho * widths.step[w]), w) : 0;
            uint64_t word = uint64_t(code) << (n * bits);
            for (int mask = 1; mask < ROW_GROUP; mask *= 2) word |= __shfl_xor_sync(~0u, word, mask);
            if (i < codes && n < bits) to[widths.byte[i / ROW_GROUP] + n] = char(word >> (8 * n));
        }
        if (lane == 0) row[bytes - 1] = char(scale);
    }
};

}  // namespace stief
