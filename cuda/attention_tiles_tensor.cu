// Prefill attention on tensor cores: rows of 16 bits or of codes, heads of 64 or 128, that are neither
// whole nor worth being made so (attention_tiles_whole.cu). What attention_tiles.cu does
// for the rest. attention_flash.cuh says what a block does with a tile.
#include <algorithm>

#include "attention_flash.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// grid tiles of `tokens` tokens · (G · chunks of heads), block 128. Bound by the products: 4·d flops
// for each query row and key, and 2·r·d / 64 more where keys are rebuilt, which 64 rows share.
// Reads K and V once for each tile of queries, mostly from the second cache.
//
// Shared: two tiles of rows, for d = 128 at full rank 2 · 64 · 2 · 136 · 2 = 70 KB; of codes as they
// lie, 2 · 64 · 74 = 9 KB, and one tile of each side, 35 KB; keys before rotation: D, 16 rotations
// and a tile of keys besides, 61 KB at most. Registers are the limit: 2 blocks, 8 warps, a
// multiprocessor (tools/measurements.md).
template <class E, int D, bool ROTATED>
__global__ void __launch_bounds__(FLASH_BLOCK, 2)
    attend_tiles_tensor_kernel(HeadsOut out, CacheView cache, const float* q, const float* rotation,
                               const int* pos, int T, int tokens, int heads, int chunks,
                               int row_bytes) {
    using One = Flash<E, D, ROTATED>;
    int each = cache.G * chunks, m = cache.H / cache.G;
    int g = int(blockIdx.x) % each / chunks, h0 = int(blockIdx.x) % each % chunks * heads;
    int t0 = (int(gridDim.x) - 1 - int(blockIdx.x)) / each * tokens;  // the longest go first
    heads = min(heads, m - h0), tokens = min(tokens, T - t0);
    int R = tokens * heads, first = *pos + t0, last = first + tokens - 1;
    const CacheRows &k = cache.k(g), &v = cache.v(g);

    typename One::Shared& shared = *reinterpret_cast<typename One::Shared*>(dynamic_shared());
    char* memory = dynamic_shared() + sizeof(shared);
    Rebuild<E, D> basis = {};
    // Older than the first tile's copies, which run() waits for, are those of the angles.
    if constexpr (!ROTATED) memory = basis.fetch_angles(memory, cache, k, rotation);
    shared.levels.fill(int(threadIdx.x), FLASH_BLOCK);
    One one(shared, rotation, basis, memory);
    auto row_of = [&](int i) { return one.warp * 16 + one.g + 8 * i; };
    auto at = [&](int i) {  // where the row's query is, and its output
        int own = min(row_of(i), R - 1);
        return (size_t(t0 + own / heads) * size_t(cache.H) + size_t(g * m + h0 + own % heads)) * D;
    };
    for (int i = 0; i < 2; i++) one.token[i] = first + min(row_of(i), R - 1) / heads;

    const Seen& seen = cache.seen(g);
#pragma unroll 1
    for (int i = 0; i < seen.count; i++) {
        const Stretch& stretch = seen.stretch[i];
        int s = stretch.begin_for(first), end = stretch.end_for(last);
        if (s >= end) continue;
        const RowStore &keys = k.store[stretch.k], &values = v.store[stretch.v];
        __syncthreads();  // what the last stretch had in shared memory was read
        shared.tables.template fill<typename One::Tiles>(keys, values, FLASH_BLOCK,
                                                         int(sizeof(E)), FLASH_KEYS,
                                                         int(threadIdx.x), FLASH_BLOCK);
        one.clear(keys, values, row_bytes);
        __syncthreads();  // the tables are there
        if constexpr (!ROTATED) basis.fill(k, one.k);  // run()'s first barrier orders it
#pragma unroll
        for (int row = 0; row < 2; row++)
            one.set_row(row, row_of(row) < R ? q + at(row) : nullptr,
                        [&](int column) { return ROTATED ? one.k.step(column) : 1.0f; });
        one.count_in(one.v, true);
        for (int until; s < end; s = until) {
            until = min(end, min(run_end(keys, s), run_end(values, s)));
            one.k.enter_run(keys, s), one.v.enter_run(values, s);
            one.run(stretch, s, until, stretch.begin_for(last), stretch.end_for(first), row_bytes);
        }
        one.count_in(one.v, false);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float sum = one.sum[i];
        for (int mask = 1; mask < 4; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
        if (row_of(i) >= R) continue;
        size_t t = size_t(t0 + row_of(i) / heads);
        int h = g * m + h0 + row_of(i) % heads;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            out.put_pair(t, h * D + 8 * n + 2 * one.t, one.acc[n][2 * i] / sum,
                         one.acc[n][2 * i + 1] / sum);
    }
}

// ---- launchers ---------------------------------------------------------------------------------

// Bytes of shared memory: of a block, and of its rows.
struct Room {
    size_t block, rows;
};

// Two stages of the oldest rows, or one where a block of this device has no room for two.
template <class E, int D, bool ROTATED>
static Room room_for(const CacheLayer& cache, size_t limit) {
    using One = Flash<E, D, ROTATED>;
    Room room;
    int stages = 3;
    do {
        stages--, room = {};
        size_t rebuild = 0;
        for (size_t g = 0; g < size_t(cache.G); g++) {
            room.rows = std::max(room.rows,
                                 One::row_bytes(cache.k[g], cache.v[g], cache.seen[g], stages));
            rebuild = std::max(rebuild, One::rebuild_bytes(cache.k[g].width));
        }
        room.block = sizeof(typename One::Shared) + rebuild + room.rows;
    } while (room.block > limit && stages > 1);
    return room;
}

// f<E, D, ROTATED>() of the kernel that such a cache takes.
template <class F>
static void for_kernel(const CacheLayer& cache, const F& f) {
    auto rest = [&]<class E, int D>() {
        cache.rotated ? f.template operator()<E, D, true>() : f.template operator()<E, D, false>();
    };
    auto width = [&]<class E>() {
        cache.d == 128 ? rest.template operator()<E, 128>() : rest.template operator()<E, 64>();
    };
    cache.dtype == DType::F16 ? width.template operator()<f16>() : width.template operator()<bf16>();
}

bool tensor_tiles_fit(const CudaBackend& gpu, const CacheLayer& cache) {
    bool fits = false;
    for_kernel(cache, [&]<class E, int D, bool ROTATED>() {
        fits = room_for<E, D, ROTATED>(cache, gpu.shared_limit).block <= gpu.shared_limit;
    });
    return fits;
}

void attend_tiles_tensor(CudaBackend& gpu, const HeadsOut& out, const float* q, const float* rotation,
                         const CacheLayer& cache, int T) {
    int m = cache.H / cache.G, heads = std::min(m, FLASH_ROWS), chunks = (m + heads - 1) / heads;
    int tokens = FLASH_ROWS / heads, tiles = (T + tokens - 1) / tokens;
    for_kernel(cache, [&]<class E, int D, bool ROTATED>() {
        Room room = room_for<E, D, ROTATED>(cache, gpu.shared_limit);
        launch(attend_tiles_tensor_kernel<E, D, ROTATED>, dim3(unsigned(tiles * cache.G * chunks)),
               FLASH_BLOCK, room.block, gpu.queue, out, CacheView(cache), q, rotation, gpu.pos, T,
               tokens, heads, chunks, int(room.rows));
    });
}

}  // namespace stief
