// Attention of T > 1 tokens by tiles (Dao et al. 2022, FlashAttention): a block has a tile of query
// rows, tokens times the heads of one kv head, and goes over tiles of keys up to its last token's
// own position. Memory is one tile of each, whatever T and S. Twin:
// src/backend/cpu/attention_tiles.cpp.
#include "attention_plain.cuh"
#include "dispatch.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// grid (tiles of `tokens` tokens, G · chunks of heads), block 256. Shared: as PlainTile says.
template <class E>
__global__ void __launch_bounds__(PLAIN_BLOCK)
    attend_tiles_plain(HeadsOut out, CacheView cache, const float* q, const float* rotation,
                       const int* pos, int T, int tokens, int heads, int chunks) {
    int g = int(blockIdx.y) / chunks, m = cache.H / cache.G, d = cache.d;
    int h0 = int(blockIdx.y) % chunks * heads;
    heads = min(heads, m - h0);
    int t0 = (int(gridDim.x) - 1 - int(blockIdx.x)) * tokens;  // the longest go first
    tokens = min(tokens, T - t0);
    int R = tokens * heads, first = *pos + t0;
    auto row_at = [&](int row) {
        return (size_t(t0 + row / heads) * size_t(cache.H) + size_t(g * m + h0 + row % heads)) *
               size_t(d);
    };
    PlainTile<E> tile(cache, g, rotation);
    tile.token = first + min(tile.row, R - 1) / heads;
    float scale = LOG2_E / sqrtf(float(d));
    for (int j = tile.lane; j < d; j += 16)
        tile.q[tile.row * d + j] = tile.row < R ? scale * q[row_at(tile.row) + size_t(j)] : 0;
    // Its first barrier orders q.
    tile.add_range(cache.seen(g), 0, first + tokens, first, first + tokens - 1);

    if (tile.row >= R) return;
    int width = cache.values_of(g);
#pragma unroll
    for (int n = 0; n < PLAIN_WIDTH / 16; n++) {
        int j = tile.lane + 16 * n;
        if (j < d)
            out.put(size_t(t0 + tile.row / heads), (g * m + h0 + tile.row % heads) * d + j,
                    j < width ? tile.acc[n] / tile.sum : 0);
    }
}

// ---- launchers ---------------------------------------------------------------------------------

void attend_tiles(CudaBackend& gpu, const HeadsOut& out, const float* q, const float* rotation,
                  const CacheLayer& cache, const Step& step) {
    bool tensor = tensor_cores(gpu, cache);
    if (tensor && whole_tiles(gpu, cache, step))
        return attend_tiles_whole(gpu, out, q, rotation, cache, step);
    if (tensor && !cache.joint && !less_turned_means(cache) && tensor_tiles_fit(gpu, cache))
        return attend_tiles_tensor(gpu, out, q, rotation, cache, step.T);
    int m = cache.H / cache.G, heads = std::min(m, PLAIN_ROWS), chunks = (m + heads - 1) / heads;
    int tokens = PLAIN_ROWS / heads;
    dim3 grid(unsigned((step.T + tokens - 1) / tokens), unsigned(cache.G * chunks));
    for_dtype(cache.dtype, [&]<class E>(E) {
        launch(attend_tiles_plain<E>, grid, PLAIN_BLOCK, PlainTile<E>::shared_bytes(cache.d),
               gpu.queue, out, CacheView(cache), q, rotation, gpu.pos, step.T, tokens, heads,
               chunks);
    });
}

}  // namespace stief
