// What a kernel of one token's products knows (matvec.cu): the matrices that meet x, and a lane's part of
// their rows, which stream through shared memory.
#pragma once
#include <climits>

#include "cuda_backend.h"

namespace stief {

constexpr int MOST_PROJECTIONS = 3;
constexpr int SLOTS = 8;     // copies of a lane on their way: of 32 warps 128 KB a multiprocessor
constexpr int PASS = 128;    // rows whose sums over the warps are made at once

// A norm on the way: the row's weight and ε. The factor 1 / √(mean(x²) + ε) is of all sums alike.
template <class E>
struct NormOf {
    const E* w;
    float eps;
};

// Up to three matrices (N_i, K) that meet the same x, one below the other.
template <class E>
struct Matrices {
    float* out[MOST_PROJECTIONS];
    const E* w[MOST_PROJECTIONS];
    int N[MOST_PROJECTIONS];
    int count, rows;  // rows: Σ N

    // Of block b its first row, and the end of those of the block before. rows · blocks < 2^32.
    template <bool GATED>
    __device__ __forceinline__ int first(int b) const {
        unsigned unit = GATED ? 2 : 1;
        return int(unsigned(rows) / unit * unsigned(b) / gridDim.x * unit);
    }

    // f(w, out, row of it) of row i; without an index that only the device knows, which would put the
    // struct into local memory.
    template <class F>
    __device__ __forceinline__ void at(int i, const F& f) const {
        const E* from = w[0];
        float* to = out[0];
        int above = N[0];
#pragma unroll
        for (int n = 1; n < MOST_PROJECTIONS; n++) {
            if (n >= count || i < above) break;
            i -= above, from = w[n], to = out[n], above = N[n];
        }
        f(from, to, i);
    }
};

// Rows one after the other, N at a time: where a lane's part of each lies. GATED: those of w[0] and w[1] in
// turn.
template <class E, bool GATED>
class RowCursor {
    const Matrices<E>& all;
    const E *from = nullptr, *other = nullptr;  // of row i, if it is ahead of turn; GATED: of row i + 1
    int i, turn = 0;                            // the first row of the next matrix
    const int K, column;

    __device__ __forceinline__ void find() {
        all.at(i, [&](const E* w, float*, int j) { from = w + size_t(j) * size_t(K) + column; });
        turn = i < all.N[0] ? all.N[0] : i < all.N[0] + all.N[1] ? all.N[0] + all.N[1] : INT_MAX;
    }

  public:
    __device__ __forceinline__ RowCursor(const Matrices<E>& matrices, int first, int width, int lane_column)
        : all(matrices), i(first), K(width), column(lane_column) {
        if constexpr (GATED) {
            size_t at = size_t(first / 2) * size_t(K) + size_t(column);
            from = all.w[0] + at, other = all.w[1] + at;
        } else {
            find();
        }
    }
    __device__ __forceinline__ int row() const { return i; }
    // Of rows i … i + N − 1, those beyond the last anywhere; i goes on behind them.
    template <int N>
    __device__ __forceinline__ void take(const E* (&at)[N]) {
        if constexpr (GATED) {
#pragma unroll
            for (int n = 0; n < N; n++) {
                at[n] = from;
                const E* gone = from;
                from = other, other = gone + K;
            }
            i += N;
            return;
        }
        if (i + N <= turn) {
#pragma unroll
            for (int n = 0; n < N; n++) at[n] = from, from += K;
            i += N;
        } else {
#pragma unroll
            for (int n = 0; n < N; n++, i++) find(), at[n] = from;
            find();
        }
    }
};

// Warps of a block: as many as registers hold with C chunks of x each.
constexpr int most_warps(int C) {
    return C <= 2 ? 32 : 16;
}
// Of the widest rows the norm is made before, and gate and up meet behind their products.
constexpr bool takes_more(int C) {
    return C <= 2;
}

// A lane's part of every row, C times 16 bytes: of x in registers, of the rows of w in its ring.
template <class E, int C>
struct LanePart {
    static constexpr int EACH = 16 / sizeof(E), CHUNK = WARP * EACH;
    static constexpr int AHEAD = SLOTS / C;  // rows
    const int K, column;
    char* ring;         // shared (SLOTS, lanes, 16)
    float x[C][EACH];

    __device__ __forceinline__ explicit LanePart(int width)
        : K(width),
          column(int(threadIdx.x) / WARP * C * CHUNK + int(threadIdx.x) % WARP * EACH),
          ring(dynamic_shared() + (threadIdx.x / WARP * SLOTS * WARP + threadIdx.x % WARP) * 16) {
        for (int c = 0; c < C; c++)  // beyond a row's end are zeros, for good
            for (int n = 0; n < AHEAD && !there(c); n++)
                *reinterpret_cast<uint4*>(ring + (n * C + c) * WARP * 16) = uint4{};
    }

    __device__ __forceinline__ bool there(int c) const { return column + c * CHUNK < K; }
    // Chunk c of a row, whose chunk 0 is at `row`, begins to come to a slot; or nothing does.
    __device__ __forceinline__ void ask(bool copies, const E* row, int slot, int c) const {
        if (copies && there(c)) copy_async_16(ring + slot * WARP * 16, row + c * CHUNK, true);
        copy_async_commit();
    }
    // sum + x · the chunk c that came first of those on their way. A lane reads only what it asked for.
    __device__ __forceinline__ float take(float sum, int slot, int c) const {
        float right[EACH];
        copy_async_wait<SLOTS - 1>();
        unpack<E>(right, *reinterpret_cast<const uint4*>(ring + slot * WARP * 16));
        for (int e = 0; e < EACH; e++) sum = fmaf(x[c][e], right[e], sum);
        return sum;
    }
    __device__ __forceinline__ void load(const float* from) {
#pragma unroll
        for (int c = 0; c < C; c++)
            for (int e = 0; e < EACH; e += 4) {
                float4 four = make_float4(0, 0, 0, 0);
                if (there(c)) four = load_4(from + column + c * CHUNK + e);
                x[c][e] = four.x, x[c][e + 1] = four.y, x[c][e + 2] = four.z, x[c][e + 3] = four.w;
            }
    }
    // x ← x ⊙ weight. Returns Σ x² of what it was.
    __device__ __forceinline__ float weigh(const uint4 (&weight)[C]) {
        float square = 0;
#pragma unroll
        for (int c = 0; c < C; c++) {
            float by[EACH];
            unpack<E>(by, weight[c]);
            for (int e = 0; e < EACH; e++)
                square = fmaf(x[c][e], x[c][e], square), x[c][e] *= by[e];
        }
        return square;
    }
};

}  // namespace stief
