// A tile of tokens times a head's basis, on CUDA cores in f32: what several tokens at once need of
// append, and values on their way out of their coordinates. For four rows of the basis a thread reads
// them and four coordinates of each of its 8 tokens, 12 loads of 16 bytes for 128 multiplications: with
// fewer outputs a thread, shared memory would be the limit.
#pragma once
#include "cuda.cuh"

namespace stief {

// x (TOKENS, K) M (K, n) for K and n of at most WIDEST, by 256 threads, a thread 8 tokens and four
// neighbouring columns. The tile is 8192 sums whatever its width, as are about x and two stages of M.
template <int WIDEST>
struct TileProduct {
    static constexpr int THREADS = 256, MOST = 8;                // tokens of a thread
    static constexpr int ACROSS = WIDEST / 4, GROUPS = THREADS / ACROSS;
    static constexpr int TOKENS = MOST * GROUPS, FEW = 2 * GROUPS;
    static constexpr int PIECE = 2048 / WIDEST;                  // rows of M in a stage
    static constexpr int STRIDE = WIDEST + 4;                    // of x: two tokens' are in other banks
    static constexpr int FLOATS = TOKENS * STRIDE + 2 * PIECE * WIDEST;
    static_assert(TOKENS * WIDEST == 8192 && PIECE % 4 == 0);

    float* x;        // (TOKENS, STRIDE)  shared; zeros from K on to whole pieces
    float* stages;   // (2, PIECE, WIDEST)  shared
    const float* M;  // (K, columns)  aligned to 16 bytes; null: there is none
    int K, columns;  // columns: even
    int tid, group, column;

    // shared (FLOATS), aligned to 16 bytes
    __device__ TileProduct(float* shared, const float* basis, int rows, int wide)
        : x(shared),
          stages(shared + TOKENS * STRIDE),
          M(basis),
          K(rows),
          columns(wide),
          tid(int(threadIdx.x)),
          group(tid / ACROSS),
          column(tid % ACROSS * 4) {}

    // A piece of M on its way to its stage; zeros beyond M.
    __device__ __forceinline__ void fetch(int piece) const {
        auto copy = [&]<int FLOATS_EACH>() {
            constexpr int TOGETHER = THREADS * FLOATS_EACH / WIDEST;  // rows
            int k = FLOATS_EACH * tid / WIDEST, j = FLOATS_EACH * tid % WIDEST;
            float* to = stages + piece % 2 * (PIECE * WIDEST) + FLOATS_EACH * tid;
            k += piece * PIECE;
            const float* from = M + k * columns + j;
#pragma unroll
            for (int i = 0; i < PIECE / TOGETHER; i++, k += TOGETHER) {
                bool there = k < K && j < columns;
                const float* row = there ? from + i * TOGETHER * columns : M;
                if constexpr (FLOATS_EACH == 4) copy_async_16(to + i * TOGETHER * WIDEST, row, there);
                else copy_async_8(to + i * TOGETHER * WIDEST, row, there);
            }
        };
        columns % 4 == 0 ? copy.template operator()<4>() : copy.template operator()<2>();
        copy_async_commit();
    }

    __device__ __forceinline__ int whole_pieces() const { return (K + PIECE - 1) / PIECE * PIECE; }
    // The thread's token number r.
    __device__ __forceinline__ int token(int r) const { return r * GROUPS + group; }

    // sum_r ← x M for tokens token(r) and columns column … column + 3. By the whole block, behind
    // fetch(0); x may be written until all threads come here, and from when all are back.
    template <int R>
    __device__ __forceinline__ void sums(float (&sum)[R][4]) const {
        for (int piece = 0; piece * PIECE < K; piece++) {
            copy_async_wait<0>();
            __syncthreads();  // x and this piece are there, and all are through with the one before
            if ((piece + 1) * PIECE < K) fetch(piece + 1);
            const float* m = stages + piece % 2 * (PIECE * WIDEST) + column;
            const float* row = x + group * STRIDE + piece * PIECE;
#pragma unroll 1
            for (int k = 0; k < PIECE; k += 4) add(sum, m + k * WIDEST, row + k);
        }
    }

  private:
    template <int R>
    __device__ static __forceinline__ void add(float (&sum)[R][4], const float* m, const float* row) {
        float4 w[4];
#pragma unroll
        for (int k = 0; k < 4; k++) w[k] = *reinterpret_cast<const float4*>(m + k * WIDEST);
#pragma unroll
        for (int r = 0; r < R; r++) {
            float4 y = *reinterpret_cast<const float4*>(row + r * GROUPS * STRIDE);
            const float by[] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int k = 0; k < 4; k++) {
                sum[r][0] = fmaf(by[k], w[k].x, sum[r][0]), sum[r][1] = fmaf(by[k], w[k].y, sum[r][1]);
                sum[r][2] = fmaf(by[k], w[k].z, sum[r][2]), sum[r][3] = fmaf(by[k], w[k].w, sum[r][3]);
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
