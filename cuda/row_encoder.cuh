// How coordinates become codes: a row by a warp, its scale searched. What a row waits for is the chain of
// its reads and sums, so scales are tried seven, two and two at a time, a lane has its coordinates in
// registers, whatever their widths, and tables lie in shared memory. Twin: src/backend/row_format.cpp.
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

// A row's coordinates in registers: lane i has those of codes i, i + 32, …, up to EACH. All 32 lanes
// together.
template <int EACH>
struct RowEncoder {
    const Levels& levels;
    const RowWidths& widths;
    const float* c;  // (kept)
    int whole, codes, lane;
    float x[EACH], cost[EACH];  // a coordinate; what an error in it costs
    int w[EACH];                // its width's number

    // weight (kept): the costs; null: 1
    __device__ RowEncoder(const Levels& table, const RowWidths& by, const RowFormat& format,
                          const float* row, const float* weight)
        : levels(table),
          widths(by),
          c(row),
          whole(int(format.count[0])),
          codes(ROW_GROUP * groups_of(format)),
          lane(int(threadIdx.x) % WARP) {
        each([&](int i, int j) {
            bool there = j < codes;
            x[i] = there ? c[whole + j] : 0, w[i] = there ? widths.of[whole + j] : 1;
            cost[i] = !there ? 0 : weight ? weight[whole + j] : 1;
        });
    }

    // f(i, j) for this lane's number i and code j, also where j is beyond the last.
    template <class F>
    __device__ __forceinline__ void each(const F& f) const {
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (i * WARP < codes) f(i, i * WARP + lane);
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

    // sum_n ← Σ cost (ẑ − z)² under scale n, the same for all lanes. By 1 / ρΔ instead of a division: a
    // coordinate that so falls to the other side of a cell's edge costs the same there.
    template <int N>
    __device__ __forceinline__ void costs(float (&sum)[N], const int (&scale)[N]) const {
        float rho[N], per[N];
#pragma unroll
        for (int n = 0; n < N; n++)
            sum[n] = 0, rho[n] = scale_of(scale[n]), per[n] = scale_of(256 - scale[n]);
        each([&](int i, int) {
            float step = widths.step[w[i]], steps = x[i] * widths.per_step[w[i]];
#pragma unroll
            for (int n = 0; n < N; n++) {
                float error = rho[n] * step * level(code_of(steps * per[n], w[i]), w[i]) - x[i];
                sum[n] += cost[i] * error * error;
            }
        });
#pragma unroll
        for (int n = 0; n < N; n++) sum[n] = warp_sum(sum[n]);
    }

    // The scale nearest to the root of the codes' weighted mean square.
    __device__ int first_scale() const {
        double square = 0, all = 0;  // as the twin's: few rows lie near a rounding's edge
        each([&](int i, int) {
            double by = double(cost[i]);
            square += by * double(x[i]) * double(x[i]), all += by;
        });
        square = warp_sum(square), all = warp_sum(all);
        float mean = float(square / all), exponent = mean > 0 ? 255 : 0;
        if (mean > 0 && mean < 1e38f) exponent = fminf(fmaxf(4 * log2f(mean) + 128, 0.0f), 255.0f);
        return int(lroundf(exponent));
    }

    __device__ int search() const {
        int best = 0;
        float least = INFINITY;
        auto offer = [&]<int N>(const int (&scale)[N]) {
            float sum[N];
            costs(sum, scale);
#pragma unroll
            for (int n = 0; n < N; n++)
                if (scale[n] >= 0 && scale[n] <= 255 && sum[n] < least)
                    least = sum[n], best = scale[n];
        };
        int s = first_scale();
        best = s;  // where no cost is a number
        offer({s, s - 8, s - 4, s + 4, s + 8, s + 12, s + 16});
        for (int near = 2; near > 0; near--) offer({best - near, best + near});
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
            float sum[1];
            const int one[1] = {scale};
            costs(sum, one);
            if (lane == 0) *to = sum[0];
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

    // This lane's code i under ρ.
    __device__ __forceinline__ int code(int i, float rho) const {
        return code_of(x[i] / (rho * widths.step[w[i]]), w[i]);
    }

    // row ← the codes and the scale, and elements E before them.
    template <class E>
    __device__ void pack(char* row, int bytes) const {
        for (int j = lane; j < whole; j += WARP) store_bytes<E>(row + size_t(j) * sizeof(E), c[j]);
        if (!codes) return;
        int scale = search(), n = lane % ROW_GROUP;
        float rho = scale_of(scale);
        char* to = row + size_t(whole) * sizeof(E);
        each([&](int i, int j) {
            int bits = bits_of(w[i]);
            uint64_t word = uint64_t(code(i, rho)) << (n * bits);
            for (int mask = 1; mask < ROW_GROUP; mask *= 2) word |= __shfl_xor_sync(~0u, word, mask);
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
        float steps = (j < codes ? c[whole + j] : 0) / (scale_of(scale) * widths.step[width]);
        int bits = bits_of(width);
        uint64_t word = uint64_t(code_of(steps, width)) << (n * bits);
        for (int mask = 1; mask < ROW_GROUP; mask *= 2) word |= __shfl_xor_sync(~0u, word, mask);
        char* to = row + size_t(whole) * sizeof(E) + n;
        if (j < codes && n < bits) to[widths.byte[j / ROW_GROUP]] = char(word >> (8 * n));
    }
};

}  // namespace stief
