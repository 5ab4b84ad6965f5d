// Decode attention on tensor cores: rows of 16 bits, heads of 64 or 128. What attention.cu does for
// the rest. Blocks and what they share; attention_warp.cuh says what a warp does.
#include <algorithm>

#include "attention_warp.cuh"
#include "dispatch.cuh"

namespace stief {

// ---- device helpers ----------------------------------------------------------------------------

// Where a block keeps what: queries, basis, each warp's stages; and in their place the turning of
// queries before them and the merging of warps after them.
template <class E, int D, int Q, bool ROTATED>
struct TensorShared {
    using One = Warp<E, D, Q, ROTATED>;
    static constexpr int ROWS = 8 * Q;
    static constexpr size_t QUERIES = ROWS * One::Q_STRIDE * sizeof(float);
    static constexpr size_t TURNING = (ROWS * D + 8 * TENSOR_BLOCK) * sizeof(float);
    static constexpr size_t MERGING = TENSOR_WARPS * ROWS * (D + 2) * sizeof(float);

    static __host__ __device__ size_t warp_bytes(const CacheRows& k, const CacheRows& v,
                                                 const Seen& seen, int stages) {
        const Oldest old(k, v);
        size_t stage = One::stage_bytes(stride_of(elements_of(old.k)), stride_of(elements_of(old.v)));
        size_t all = size_t(stages) * stage;
        size_t mixed = seen.count > 1 ? One::stage_bytes(D + 8, D + 8) : 0;
        return all > mixed ? all : mixed;
    }
    static size_t bytes(const CacheRows& k, const CacheRows& v, const Seen& seen, int stages) {
        size_t rebuild = ROTATED ? 0 : Rebuild<E, D>::shared_bytes(k.width);
        return QUERIES + rebuild + std::max({TENSOR_WARPS * warp_bytes(k, v, seen, stages),
                                             size_t(TURNING), size_t(MERGING)});
    }
};

// to (8 Q, Q_STRIDE) ← the block's R queries, scaled and, where the keys are rotated, q Dᵀ.
template <class E, int D, int Q, bool ROTATED>
__device__ void turn_queries(float* to, float* scratch, const float* q, const CacheRows& k, int R) {
    constexpr int ROWS = 8 * Q, STRIDE = Warp<E, D, Q, ROTATED>::Q_STRIDE;
    bool turned = ROTATED && k.decode_t;
    float *from = turned ? scratch : to, scale = LOG2_E / sqrtf(float(D));
    int stride = turned ? D : STRIDE, width = turned ? k.width : D;
    for (int i = int(threadIdx.x); i < ROWS * D; i += TENSOR_BLOCK)
        from[i / D * stride + i % D] = i < R * D ? scale * q[i] : 0;
    if (turned)
        for (int i = int(threadIdx.x); i < ROWS * D; i += TENSOR_BLOCK)
            if (i % D >= width || i >= R * D) to[i / D * STRIDE + i % D] = 0;
    __syncthreads();  // the queries are there
    if (turned)
        block_product<8>(to, STRIDE, from, D, k.decode_t, D, R, D, width, scratch + ROWS * D);
}

// The block's partial ← those of its warps. memory: shared (4, ROWS, D + 2), free once all are
// here.
template <class E, int D, int Q, bool ROTATED>
__device__ void merge_warps(const Partial& partials, const Warp<E, D, Q, ROTATED>& one,
                            float* memory, int h0, int R, int width) {
    constexpr int ROWS = 8 * Q, EACH = D + 2;
    int warp = int(threadIdx.x) / WARP;
    __syncthreads();  // every warp has read its last step
    float* mine = memory + warp * ROWS * EACH;
#pragma unroll
    for (int n = 0; n < Q; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float sum = one.sum[n][i], *to = mine + (8 * n + 2 * one.t + i) * EACH;
            for (int mask = 4; mask < WARP; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
            if (one.g == 0) to[0] = one.max[n][i], to[1] = sum;
#pragma unroll
            for (int f = 0; f < D / 16; f++) {
                to[2 + 16 * f + one.g] = one.acc[n][f][i];
                to[2 + 16 * f + 8 + one.g] = one.acc[n][f][2 + i];
            }
        }
    __syncthreads();  // all warps' are there
    for (int i = int(threadIdx.x); i < R * D; i += TENSOR_BLOCK) {
        int row = i / D, j = i % D;
        const float* from = memory + row * EACH;
        float most = from[0], sum = 0, value = 0;
        for (int w = 1; w < TENSOR_WARPS; w++) most = fmaxf(most, from[w * ROWS * EACH]);
        for (int w = 0; w < TENSOR_WARPS; w++, from += ROWS * EACH) {
            float weight = exp2f(from[0] - most);
            sum += weight * from[1], value += weight * from[2 + j];
        }
        float* to = partials.of(int(blockIdx.y), h0 + row);
        if (j == 0) to[0] = most, to[1] = sum;
        if (j < width) to[2 + j] = value;
    }
}

// Blocks that the registers of a multiprocessor hold: with two tiles of query heads one less.
constexpr int most_blocks(int Q) {
    return Q == 1 ? 3 : 2;
}

// ---- kernels -----------------------------------------------------------------------------------

// grid (G · chunks of 8 Q query heads, splits), block 128. Reads K and V once for each chunk,
// S·G·(r_K + r_V)·2 bytes, which is the bound, and D or Dᵀ once for each block. A chunk is the
// whole group up to 16 query heads (Q = 2); larger groups read rows again, from the second cache.
//
// Shared: queries, 3 steps of each warp's rows (2 where that does not fit), for d = 128 at full
// rank 4 · 3 · 16 · 2 · 136 · 2 = 104 KB, at a quarter 31 KB; keys before rotation: D as E, 16
// rotations. Registers, from ptxas for d = 128: 128 (keys after rotation), 143 (before), 186 where
// Q is 2. So 2 or 3 blocks a multiprocessor, with 8 warps · 2 steps · 8 KB or 12 · 2 · 2 KB of rows
// on their way. Instructions of a step of 16 keys, counted in the code for sm_90, Q = 1: at most 278
// and two short loops of copies after rotation; before it 254 and, for each of 4 pieces of
// columns, 235 and 39 for every 16 coordinates of the rank: some 1,500 at a quarter, where the
// memory of an H100 leaves about 560 to each scheduler. Before rotation instructions are the limit.
template <class E, int D, int Q, bool ROTATED>
__global__ void __launch_bounds__(TENSOR_BLOCK, most_blocks(Q))
    attend_one_tensor(Partial partials, CacheView cache, const float* q, const float* rotation,
                      const int* pos, int chunks, int stages) {
    using Shared = TensorShared<E, D, Q, ROTATED>;
    constexpr int ROWS = Shared::ROWS;
    int g = int(blockIdx.x) / chunks, m = cache.H / cache.G, h0 = int(blockIdx.x) % chunks * ROWS;
    int R = min(ROWS, m - h0), S = *pos + 1, warp = int(threadIdx.x) / WARP;
    Share share(S, int(blockIdx.y), int(gridDim.y), SHARE);
    const CacheRows &k = cache.k(g), &v = cache.v(g);
    const Seen& seen = cache.seen(g);
    if (share.first >= share.end) {
        for (int i = int(threadIdx.x); i < R; i += TENSOR_BLOCK) {
            float* to = partials.of(int(blockIdx.y), g * m + h0 + i);
            to[0] = -INFINITY, to[1] = 0;
        }
        return;
    }

    float* queries = reinterpret_cast<float*>(dynamic_shared());
    char* memory = dynamic_shared() + Shared::QUERIES;
    Rebuild<E, D> basis = {};
    if constexpr (!ROTATED) memory = basis.fill(memory, cache, k, rotation);
    turn_queries<E, D, Q, ROTATED>(queries, reinterpret_cast<float*>(memory),
                                   q + size_t(g * m + h0) * D, k, R);

    // Columns that no copy writes are zero: a product must not meet what is no number.
    size_t warp_bytes = Shared::warp_bytes(k, v, seen, stages);
    uint32_t* words = reinterpret_cast<uint32_t*>(memory);
    for (int i = int(threadIdx.x); i < int(TENSOR_WARPS * warp_bytes / 4); i += TENSOR_BLOCK)
        words[i] = 0;
    __syncthreads();  // and are so before the first copy

    // The oldest rows, most of them: whole steps by position, if they do not share one with others.
    int old0 = share.first, old1 = share.end;
    if (seen.count > 1) {
        const Stretch& old = seen.oldest();
        bool whole = by_position(k, v, old);
        int begin = (old.begin_for(S - 1) + STEP - 1) / STEP * STEP;
        old0 = min(share.end, max(share.first, begin));
        old1 = whole ? min(share.end, max(old0, old.end_for(S - 1) / STEP * STEP)) : old0;
    }
    auto own = [&](int from) {  // the warp's first step from there on
        int behind = (from - share.first) / STEP % TENSOR_WARPS;
        return from + (warp - behind + TENSOR_WARPS) % TENSOR_WARPS * STEP;
    };
    Warp<E, D, Q, ROTATED> one(cache, k, v, rotation, queries, basis);
    char* own_memory = memory + size_t(warp) * warp_bytes;
    one.old_steps(own_memory, stages, own(old0), old1);
#pragma unroll 1
    for (int side = 0; side < 2; side++)
        one.mixed_steps(own_memory, seen, own(side ? old1 : share.first), side ? share.end : old0,
                        S - 1);
    merge_warps(partials, one, reinterpret_cast<float*>(memory), g * m + h0, R, v.width);
}

// ---- launchers ---------------------------------------------------------------------------------

template <class E, int D, int Q, bool ROTATED>
static Splits run(CudaBackend& gpu, const float* q, const float* rotation, const CacheLayer& cache,
                  int most) {
    using Shared = TensorShared<E, D, Q, ROTATED>;
    int m = cache.H / cache.G, chunks = (m + 8 * Q - 1) / (8 * Q), blocks = cache.G * chunks;
    size_t shared = 0;
    int stages = 4;
    do {
        stages--, shared = 0;
        for (size_t g = 0; g < size_t(cache.G); g++)
            shared = std::max(shared, Shared::bytes(cache.k[g], cache.v[g], cache.seen[g], stages));
    } while (shared > gpu.shared_limit && stages > 2);
    if (shared > gpu.shared_limit) return attend_splits_plain(gpu, q, rotation, cache, most);
    int each = int(gpu.shared_limit / (shared + 1024));  // blocks a multiprocessor has at once
    Splits splits(gpu, cache, blocks, std::clamp(each, 1, most_blocks(Q)), SHARE, most);
    launch(attend_one_tensor<E, D, Q, ROTATED>, dim3(unsigned(blocks), unsigned(splits.count)),
           TENSOR_BLOCK, shared, gpu.queue, splits.partials, CacheView(cache), q, rotation, gpu.pos,
           chunks, stages);
    return splits;
}

template <class E, int D>
static Splits run(CudaBackend& gpu, const float* q, const float* rotation, const CacheLayer& cache,
                  int most) {
    if (cache.H / cache.G > 8)
        return cache.rotated ? run<E, D, 2, true>(gpu, q, rotation, cache, most)
                             : run<E, D, 2, false>(gpu, q, rotation, cache, most);
    return cache.rotated ? run<E, D, 1, true>(gpu, q, rotation, cache, most)
                         : run<E, D, 1, false>(gpu, q, rotation, cache, most);
}

Splits attend_splits_tensor(CudaBackend& gpu, const float* q, const float* rotation,
                            const CacheLayer& cache, int most) {
    bool wide = cache.d == 128;
    if (cache.dtype == DType::F16)
        return wide ? run<f16, 128>(gpu, q, rotation, cache, most)
                    : run<f16, 64>(gpu, q, rotation, cache, most);
    return wide ? run<bf16, 128>(gpu, q, rotation, cache, most)
                : run<bf16, 64>(gpu, q, rotation, cache, most);
}

}  // namespace stief
