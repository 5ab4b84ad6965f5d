// Prefill attention on tensor cores: rows of 16 bits, heads of 64 or 128. What attention_tiles.cu
// does for the rest. attention_flash.cuh says what a block does with a tile.
#include <algorithm>

#include "attention_flash.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// grid tiles of `tokens` tokens · (G · chunks of heads), block 128. Bound by the products: 4·d flops
// for each query row and key, and 2·r·d / 64 more where keys are rebuilt, which 64 rows share.
// Reads K and V once for each tile of queries, mostly from the second cache.
//
// Shared: two tiles of rows, for d = 128 at full rank 2 · 64 · 2 · 136 · 2 = 70 KB; keys before
// rotation: D, 16 rotations and a tile of keys besides, 61 KB at most. Registers, from ptxas for d
// = 128: 240 after rotation, 255 before, none spilled: 2 blocks, 8 warps, a multiprocessor; the
// registers are the limit.
template <class E, int D, bool ROTATED>
__global__ void __launch_bounds__(FLASH_BLOCK, 2)
    attend_tiles_tensor_kernel(float* out, CacheView cache, const float* q, const float* rotation,
                               const int* pos, int T, int tokens, int heads, int chunks) {
    using One = Flash<E, D, ROTATED>;
    int each = cache.G * chunks, m = cache.H / cache.G;
    int g = int(blockIdx.x) % each / chunks, h0 = int(blockIdx.x) % each % chunks * heads;
    int t0 = (int(gridDim.x) - 1 - int(blockIdx.x)) / each * tokens;  // the longest go first
    heads = min(heads, m - h0), tokens = min(tokens, T - t0);
    int R = tokens * heads, first = *pos + t0;
    const CacheRows &k = cache.k(g), &v = cache.v(g);

    char* memory = dynamic_shared();
    Rebuild<E, D> basis = {};
    if constexpr (!ROTATED) memory = basis.fill(memory, cache, k, rotation);
    One one(cache, k, v, rotation, basis, reinterpret_cast<E*>(memory));
    uint32_t* words = reinterpret_cast<uint32_t*>(one.tiles);
    for (int i = int(threadIdx.x); i < int(One::tile_bytes(k, v) / 4); i += FLASH_BLOCK)
        words[i] = 0;
    size_t at[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = one.warp * 16 + one.g + 8 * i, own = min(row, R - 1);
        at[i] = (size_t(t0 + own / heads) * size_t(cache.H) + size_t(g * m + h0 + own % heads)) * D;
        one.token[i] = first + own / heads;
        one.set_row(i, row < R ? q + at[i] : nullptr);
    }
    __syncthreads();  // columns that no copy writes are zero, before the first copy

    one.all(cache.seen(g), first, first + tokens - 1);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float sum = one.sum[i];
        for (int mask = 1; mask < 4; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
        if (one.warp * 16 + one.g + 8 * i >= R) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *reinterpret_cast<float2*>(out + at[i] + size_t(8 * n + 2 * one.t)) =
                make_float2(one.acc[n][2 * i] / sum, one.acc[n][2 * i + 1] / sum);
    }
}

// ---- launchers ---------------------------------------------------------------------------------

template <class E, int D>
static bool run(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                const CacheLayer& cache, int T) {
    int m = cache.H / cache.G, heads = std::min(m, FLASH_ROWS), chunks = (m + heads - 1) / heads;
    int tokens = FLASH_ROWS / heads, tiles = (T + tokens - 1) / tokens;
    size_t shared = 0;
    for (size_t g = 0; g < size_t(cache.G); g++)
        shared = std::max(shared, cache.rotated
                                      ? Flash<E, D, true>::shared_bytes(cache.k[g], cache.v[g])
                                      : Flash<E, D, false>::shared_bytes(cache.k[g], cache.v[g]));
    if (shared > gpu.shared_limit) return false;
    auto kernel = cache.rotated ? attend_tiles_tensor_kernel<E, D, true>
                                : attend_tiles_tensor_kernel<E, D, false>;
    launch(kernel, dim3(unsigned(tiles * cache.G * chunks)), FLASH_BLOCK, shared, gpu.queue, out,
           CacheView(cache), q, rotation, gpu.pos, T, tokens, heads, chunks);
    return true;
}

bool attend_tiles_tensor(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                         const CacheLayer& cache, int T) {
    bool wide = cache.d == 128;
    if (cache.dtype == DType::F16)
        return wide ? run<f16, 128>(gpu, out, q, rotation, cache, T)
                    : run<f16, 64>(gpu, out, q, rotation, cache, T);
    return wide ? run<bf16, 128>(gpu, out, q, rotation, cache, T)
                : run<bf16, 64>(gpu, out, q, rotation, cache, T);
}

}  // namespace stief
