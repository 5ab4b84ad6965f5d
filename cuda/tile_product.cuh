// A tile of tokens times a head's basis, in f32 and yet on tensor cores: what several tokens at once need of
// append, keys on their way back out of their coordinates, and values.
//
// A float is the sum of three bf16, each the nearest to what the ones before have left: 3 · 8 bits of
// significand are its 24 (but for what is too small for a bf16). Of the nine products of two such sums' parts
// six are taken; the others together are at most about 2^-24 of it.
#pragma once
#include "cuda.cuh"

namespace stief {

// Tiles of at most 128 columns in the shared memory of a multiprocessor: 163 KB before sm_90, then 227.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int TILE_BLOCKS = 2;
#else
constexpr int TILE_BLOCKS = 3;
#endif

// x (TOKENS, K) M (K, n) for K and n of at most WIDEST, by 256 threads, a warp 32 tokens and 32 columns.
// The tile is 8192 sums whatever its width, as are about x and c.
template <int WIDEST>
struct TileProduct {
    static constexpr int THREADS = 256, PARTS = 3, TOKENS = 8192 / WIDEST;
    static constexpr int BLOCKS = WIDEST <= 128 ? TILE_BLOCKS : 2;  // that a multiprocessor has room for
    static constexpr int PIECE = 16;                             // rows of M at once
    static constexpr int STRIDE = WIDEST + 8, C_STRIDE = WIDEST + 4;
    static constexpr int X_PART = TOKENS * STRIDE, M_PART = PIECE * STRIDE;
    static constexpr size_t BYTES = PARTS * (X_PART + M_PART) * sizeof(bf16);
    static constexpr int SIDE = 32, ACROSS = WIDEST / SIDE;      // a warp's; warps side by side
    static constexpr int PAIRS = PIECE * WIDEST / 2 / THREADS;   // of M, of a thread in each piece
    static constexpr size_t C_BYTES = TOKENS * C_STRIDE * sizeof(float);
    static constexpr size_t BEHIND_C = PARTS * X_PART * sizeof(bf16) - C_BYTES;  // free once x was read
    static_assert(C_BYTES % 16 == 0);
    static_assert(TOKENS / SIDE * ACROSS * WARP == THREADS);

    using Sums = float[2][4][4];  // 16 tokens, 8 columns

    bf16 *x, *stage;  // (PARTS, TOKENS, STRIDE), (PARTS, PIECE, STRIDE)  shared
    float* c;         // (TOKENS, C_STRIDE)  in the place of x
    const float* M;   // (K, columns), rows M_stride apart, aligned to 8 bytes; null: none, and put is for c
    int K, columns, M_stride;  // columns, stride: even
    int tid, row, column;  // of this warp's first sum
    float2 next[PAIRS];    // of the piece on its way

    // shared (BYTES), aligned to 16 bytes
    __device__ TileProduct(char* shared, const float* basis, int rows, int wide, int stride)
        : x(reinterpret_cast<bf16*>(shared)),
          stage(x + PARTS * X_PART),
          c(reinterpret_cast<float*>(shared)),
          M(basis),
          K(rows),
          columns(wide),
          M_stride(stride),
          tid(int(threadIdx.x)),
          row(tid / WARP / ACROSS * SIDE),
          column(tid / WARP % ACROSS * SIDE) {}

    __device__ TileProduct(char* shared, const float* basis, int rows, int wide)
        : TileProduct(shared, basis, rows, wide, wide) {}

    // Columns that are to be put: zeros from K on.
    __device__ __forceinline__ int padded() const { return (K + PIECE - 1) / PIECE * PIECE; }
    // x[token][j] ← value, or c[token][j].
    __device__ __forceinline__ void put(int token, int j, float value) const {
        if (!M) {
            c[token * C_STRIDE + j] = value;
            return;
        }
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            bf16 one = to_bf16(value);
            x[part * X_PART + token * STRIDE + j] = one, value -= to_float(one);
        }
    }

    __device__ __forceinline__ char* behind_c() const {
        return reinterpret_cast<char*>(c) + C_BYTES;
    }

    // A piece of M is asked for: it waits for no barrier.
    __device__ __forceinline__ void fetch(int piece) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            int k = piece * PIECE + pair_row(i), j = pair_column(i);
            next[i] = make_float2(0, 0);
            if (k < K && j < columns) next[i] = *reinterpret_cast<const float2*>(M + k * M_stride + j);
        }
    }
    // sum ← x M of this warp. By the whole block; x may be written until all threads come here, and from
    // when all are back. AHEAD, behind fetch(0): each piece is asked for while the one before is multiplied.
    template <bool AHEAD>
    __device__ __forceinline__ void sums(Sums& sum, int count) {
        clear(sum);
        add_sums<AHEAD>(sum, count);
    }
    // The same for a K of any size, by pieces of WIDEST columns of x: fill(first) puts those from there on,
    // padded() of them.
    template <class F>
    __device__ __forceinline__ void sums_by_pieces(Sums& sum, int count, const F& fill) {
        clear(sum);
        int all = K;
#pragma unroll 1
        for (int first = 0; first < all; first += WIDEST, M += size_t(WIDEST) * size_t(M_stride)) {
            K = min(WIDEST, all - first);
            __syncthreads();  // the columns before were read
            fill(first);
            add_sums<false>(sum, count);
        }
    }
    __device__ __forceinline__ static void clear(Sums& sum) {
        for (auto& tile : sum)
            for (auto& one : tile) one[0] = one[1] = one[2] = one[3] = 0;
    }
    // sum += x M.
    template <bool AHEAD>
    __device__ __forceinline__ void add_sums(Sums& sum, int count) {
#pragma unroll 1
        for (int piece = 0; piece * PIECE < K; piece++) {
            if (!AHEAD) fetch(piece);
            __syncthreads();  // all are through with the piece before
            land();
            if (AHEAD && (piece + 1) * PIECE < K) fetch(piece + 1);
            __syncthreads();  // x and this piece are there
            if (row < count) add(sum, piece * PIECE);
        }
    }
    // f(token, column, sum, its neighbour's) of what this lane has.
    template <class F>
    __device__ __forceinline__ void each(const Sums& sum, const F& f) const {
        int g = tid % WARP / 4, t = tid % 4;
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < 4; n++)
                for (int i = 0; i < 2; i++)
                    f(row + 16 * m + 8 * i + g, column + 8 * n + 2 * t, sum[m][n][2 * i],
                      sum[m][n][2 * i + 1]);
    }
    // c[token][column] ← sum, which is no more read from x.
    __device__ __forceinline__ void store(const Sums& sum) const {
        each(sum, [&](int token, int j, float a, float b) {
            *reinterpret_cast<float2*>(c + token * C_STRIDE + j) = make_float2(a, b);
        });
    }

private:
    __device__ __forceinline__ int pair_row(int i) const { return (tid + i * THREADS) / (WIDEST / 2); }
    __device__ __forceinline__ int pair_column(int i) const {
        return (tid + i * THREADS) % (WIDEST / 2) * 2;
    }
    __device__ __forceinline__ void land() const {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            float2 pair = next[i];
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                uint32_t two = pack2<bf16>(pair.x, pair.y);
                *reinterpret_cast<uint32_t*>(stage + part * M_PART + pair_row(i) * STRIDE +
                                             pair_column(i)) = two;
                pair.x -= __uint_as_float(two << 16), pair.y -= __uint_as_float(two & 0xffff0000);
            }
        }
    }
    // sum += columns k … k + 15 of x times the piece at hand.
    __device__ __forceinline__ void add(Sums& sum, int k) const {
        int lane = tid % WARP;
        const bf16* from = x + (row + lane % 16) * STRIDE + k + lane / 16 * 8;
        const bf16* piece = stage + lane % 16 * STRIDE + column + lane / 16 * 8;
#pragma unroll
        for (int two = 0; two < 2; two++) {  // of the columns, 16 at once
            uint32_t b[PARTS][4];
#pragma unroll
            for (int part = 0; part < PARTS; part++)
                load_matrix_x4_transposed(b[part], piece + part * M_PART + 16 * two);
#pragma unroll
            for (int m = 0; m < 2; m++) {
#pragma unroll
                for (int i = PARTS - 1; i >= 0; i--) {
                    uint32_t a[4];
                    load_matrix_x4(a, from + i * X_PART + 16 * m * STRIDE);
#pragma unroll
                    for (int j = PARTS - 1 - i; j >= 0; j--)
#pragma unroll
                        for (int n = 0; n < 2; n++) {
                            const uint32_t half[2] = {b[j][2 * n], b[j][2 * n + 1]};
                            mma_16x8x16<bf16>(sum[m][2 * two + n], a, half);
                        }
                }
            }
        }
    }
};

// Calls f.operator()<WIDEST>() for the width of tiles that heads of d coordinates take.
template <class F>
void for_tiles(int d, const F& f) {
    if (d <= 64) f.template operator()<64>();
    else if (d <= 128) f.template operator()<128>();
    else f.template operator()<256>();
}

}  // namespace stief
