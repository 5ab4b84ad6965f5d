// What kernels of one token's products (matvec.cu) and of a few tokens' (matvec_few.cu) know: the matrices
// that meet x, a lane's part of their rows, which stream through shared memory, and the order of all sums:
//
//     over a lane's columns of a slice, then the lanes of a warp, then the slices
//
// which is the same in both, so that a token's results are the same to the last bit.
#pragma once
#include <algorithm>
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

// Of `count` rows the first of block b's share, and the end of the block's before. count · blocks < 2^32.
__device__ __forceinline__ int first_of(int count, int b) {
    return int(unsigned(count) * unsigned(b) / gridDim.x);
}

// Up to three matrices (N_i, K) that meet the same x, one below the other.
template <class E>
struct Matrices {
    float* out[MOST_PROJECTIONS];
    const E* w[MOST_PROJECTIONS];
    int N[MOST_PROJECTIONS];
    int count, rows;  // rows: Σ N

    // Of block b its first row, and the end of those of the block before.
    template <bool GATED>
    __device__ __forceinline__ int first(int b) const {
        int unit = GATED ? 2 : 1;
        return first_of(rows / unit, b) * unit;
    }

    // f(w, out, row of it, N) of row i; without an index that only the device knows, which would put the
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
        f(from, to, i, above);
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
        all.at(i, [&](const E* w, float*, int j, int) { from = w + size_t(j) * size_t(K) + column; });
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

// A lane's columns of a slice: C times 16 bytes of a row of w, a chunk of the warp apart.
template <class E, int C>
struct LaneColumns {
    static constexpr int EACH = 16 / sizeof(E), CHUNK = WARP * EACH;
    const int K, column;

    __device__ __forceinline__ LaneColumns(int width, int slice)
        : K(width), column(slice * C * CHUNK + int(threadIdx.x) % WARP * EACH) {}
    __device__ __forceinline__ bool there(int c) const { return column + c * CHUNK < K; }
    // x ← the activations there, zeros beyond a row's end.
    __device__ __forceinline__ void load(float (&x)[C][EACH], const float* from) const {
#pragma unroll
        for (int c = 0; c < C; c++)
            for (int e = 0; e < EACH; e += 4) {
                float4 four = make_float4(0, 0, 0, 0);
                if (there(c)) four = load_4(from + column + c * CHUNK + e);
                x[c][e] = four.x, x[c][e + 1] = four.y, x[c][e + 2] = four.z, x[c][e + 3] = four.w;
            }
    }
    // The same of a norm's weight, as it lies.
    __device__ __forceinline__ void load(uint4 (&weight)[C], const E* from) const {
        for (int c = 0; c < C; c++)
            if (there(c)) weight[c] = load_16(from + column + c * CHUNK);
    }
};

// What comes to them of one row after the other, through a ring of the lane's own.
template <class E, int C>
struct LanePart : LaneColumns<E, C> {
    using Columns = LaneColumns<E, C>;
    using Columns::there, Columns::EACH, Columns::CHUNK;
    static constexpr int AHEAD = SLOTS / C;  // rows
    char* ring;        // shared (SLOTS, lanes, 16)
    float x[C][EACH];  // of a token: here, or ring's address is made anew for each copy

    __device__ __forceinline__ LanePart(int width, int slice)
        : Columns(width, slice),
          ring(dynamic_shared() + (threadIdx.x / WARP * SLOTS * WARP + threadIdx.x % WARP) * 16) {
        for (int c = 0; c < C; c++)  // beyond a row's end are zeros, for good
            for (int n = 0; n < AHEAD && !there(c); n++)
                *reinterpret_cast<uint4*>(ring + (n * C + c) * WARP * 16) = uint4{};
    }
    // Chunk c of a row, whose chunk 0 is at `row`, begins to come to a slot; or nothing does.
    __device__ __forceinline__ void ask(bool copies, const E* row, int slot, int c) const {
        if (copies && there(c)) copy_async_16(ring + slot * WARP * 16, row + c * CHUNK, true);
        copy_async_commit();
    }
    // The chunk that came first of those on their way. A lane reads only what it asked for.
    __device__ __forceinline__ void take(float (&w)[EACH], int slot) const {
        copy_async_wait<SLOTS - 1>();
        unpack<E>(w, *reinterpret_cast<const uint4*>(ring + slot * WARP * 16));
    }
};

// So many rows are met at once, whose sums over the lanes are made together (warp_sums), and slots come again
// after so many.
constexpr int TOGETHER = 4;
template <class Part>
constexpr int TURN = Part::AHEAD > TOGETHER ? Part::AHEAD : TOGETHER;
// Rows whose addresses are made at once.
template <class Part>
constexpr int AT_ONCE = Part::AHEAD < TOGETHER ? Part::AHEAD : TOGETHER;

// The first rows of those before `end` begin to come, as many as there are slots.
template <class E, int C, class Cursor>
__device__ __forceinline__ void ask_first(const LanePart<E, C>& part, Cursor& next, int end) {
    constexpr int N = AT_ONCE<LanePart<E, C>>;
#pragma unroll
    for (int n = 0; n < part.AHEAD; n += N) {
        int row = next.row();
        const E* at[N];
        next.take(at);
#pragma unroll
        for (int i = 0; i < N; i++)
            for (int c = 0; c < C; c++) part.ask(row + i < end, at[i], (n + i) * C + c, c);
    }
}
// meet(n, c, w) for chunk c of row n of TOGETHER, which lie from `offset` on of a turn; into its slot comes
// what is asked for next.
template <class E, int C, class Cursor, class Meet>
__device__ __forceinline__ void meet_rows(const LanePart<E, C>& part, Cursor& next, int offset, int end,
                                          const Meet& meet) {
    constexpr int N = AT_ONCE<LanePart<E, C>>;
    int asked = 0;
    const E* at[N];
#pragma unroll
    for (int n = 0; n < TOGETHER; n++) {
        if (n % N == 0) asked = next.row() - n, next.take(at);
#pragma unroll
        for (int c = 0; c < C; c++) {
            int slot = (offset + n) % part.AHEAD * C + c;
            float w[LanePart<E, C>::EACH];
            part.take(w, slot);
            meet(n, c, w);
            part.ask(asked + n < end, at[n % N], slot, c);
        }
    }
}

// sum + x · w
template <int EACH>
__device__ __forceinline__ float add_products(float sum, const float (&x)[EACH], const float (&w)[EACH]) {
    for (int e = 0; e < EACH; e++) sum = fmaf(x[e], w[e], sum);
    return sum;
}

// x ← x ⊙ weight. Returns Σ x² of what it was.
template <class E, int C, int EACH>
__device__ __forceinline__ float weigh(float (&x)[C][EACH], const uint4 (&weight)[C]) {
    float square = 0;
#pragma unroll
    for (int c = 0; c < C; c++) {
        float by[EACH];
        unpack<E>(by, weight[c]);
        for (int e = 0; e < EACH; e++) square = fmaf(x[c][e], x[c][e], square), x[c][e] *= by[e];
    }
    return square;
}
// 1 / √(mean(x²) + ε) of all lanes' squares. partial: shared, a float a warp.
template <class E>
__device__ __forceinline__ float norm_factor(float square, const NormOf<E>& norm, int K, float* partial) {
    return 1.0f / sqrtf(block_sum(square, partial) / float(K) + norm.eps);
}

// From all slices' sums to what a product gives.
__device__ __forceinline__ float finished(float sum, float factor, float before) {
    return fmaf(factor, sum, before);
}
__device__ __forceinline__ float gated_by(float gate, float up) {
    return gate / (1.0f + expf(-gate)) * up;  // silu(gate) up
}

// Shared memory of a block of matvec_kernel.
struct StreamLayout {
    char* rings;         // (warps, SLOTS, 32, 16)
    float *sums, *norm;  // (PASS, stride), (warps)
    int stride;          // odd: rows of sums in different banks
    size_t bytes;

    __host__ __device__ __forceinline__ StreamLayout(char* memory, int warps) : stride(warps | 1) {
        Carve carve{memory};
        rings = carve.take<char>(warps * SLOTS * WARP * 16);
        sums = carve.take<float>(PASS * stride), norm = carve.take<float>(warps);
        bytes = carve.bytes;
    }
};

// ---- launchers ---------------------------------------------------------------------------------

// The block that takes rows of K elements on this device: C chunks of a lane, so many warps, each of which
// has a slice of the columns. C = 0: none.
struct StreamShape {
    int C = 0, warps = 0;
    size_t bytes = 0;  // shared

    StreamShape(const CudaBackend& gpu, int K, size_t element) {
        int chunks = int((size_t(K) * element + WARP * 16 - 1) / (WARP * 16));
        for (int each : {1, 2, 8}) {
            warps = (chunks + each - 1) / each;
            bytes = StreamLayout(nullptr, warps).bytes;
            if (warps > most_warps(each) || bytes > gpu.shared_limit) continue;
            C = each;
            return;
        }
    }
    // A multiprocessor has; shared memory beyond a block's own is 1 KB each.
    int blocks(const CudaBackend& gpu) const {
        int room = int((gpu.shared_limit + 1024) / (bytes + 1024));
        return std::clamp(most_warps(C) / warps, 1, std::max(1, room));
    }
};

// T tokens at rows that stream, each as matvec.cu has it alone: x (T, K), out_i (T, N_i). With a norm, which
// takes_more says of, normed (T, K) is scratch. GATED: out[0] only.
template <class E, bool GATED>
void matvec_few(CudaBackend& gpu, const StreamShape& shape, const Matrices<E>& all, const float* x,
                const NormOf<E>& norm, float* normed, int K, int T, bool add);

}  // namespace stief
