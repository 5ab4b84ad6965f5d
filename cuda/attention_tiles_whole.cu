// Prefill attention over whole rows: keys after rotation, 16 bits, a row as wide as a head and right
// behind the one before it; packed rows and keys before rotation are made such for it
// (expand_rows.cu). Bound by the tensor cores: a warp has two other instructions beside each product,
// none of which finds out an address or asks what is there. attention_tall.cuh says what a block
// does; attention_tiles_tensor.cu does all else.
#include <algorithm>

#include "attention_tall.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// grid tiles of `tokens` tokens · (kv heads · chunks of heads), block 128. Bound by the products: 4·d
// flops for each query row and key. Reads K and V once for each tile of queries, from the second cache.
// Shared: queries, and two tiles of keys and values, for d = 128 34 + 2 · 34 KB, and 5 KB of what the
// block knows. Registers are the limit: 2 blocks a multiprocessor. With one tile, 73 KB, where a block may
// have no more than 99.
template <class E, int D, int STAGES>
__global__ void __launch_bounds__(TALL_BLOCK, STAGES)
    attend_tiles_whole_kernel(HeadsOut out, CacheView cache, ExpandedRows rows, const float* q,
                              const int* pos, int T, int tokens, int heads, int chunks) {
    TallBlock& block = *reinterpret_cast<TallBlock*>(dynamic_shared());
    block.fill<E, D>(cache, rows, pos, T, tokens, heads, chunks);
    __syncthreads();  // what the block knows is there
    TallRows<E, D, STAGES> one(block);
    one.load_queries(q);  // the first tile's barrier orders them
#pragma unroll 1
    for (int i = 0; i < block.seen.count; i++) {
        const Stretch& stretch = block.seen.stretch[i];
        block.enter(i, pos, cache.H);
        int s = stretch.begin_for(block.first), end = stretch.end_for(block.last);
        for (int until; s < end; s = until) {
            until = min(end, min(block.end(i, 0, s), block.end(i, 1, s)));
            one.run(block.row<E, D>(i, 0, s), block.row<E, D>(i, 1, s), s, until);
        }
    }
    one.put(out);
}

// ---- launchers ---------------------------------------------------------------------------------

static int tokens_of(const CacheLayer& cache) {
    return TALL_ROWS / std::min(cache.H / cache.G, TALL_ROWS);
}

static size_t shared_bytes(const CacheLayer& cache, int stages) {
    size_t bytes = 0;
    for_tensor_rows(cache, [&]<class E, int D>() {
        bytes = stages == 1 ? TallRows<E, D, 1>::BYTES : TallRows<E, D, 2>::BYTES;
    });
    return bytes;
}

bool whole_tiles_fit(const CudaBackend& gpu, const CacheLayer& cache) {
    return shared_bytes(cache, 1) <= gpu.shared_limit;
}

bool whole_tiles(const CudaBackend& gpu, const CacheLayer& cache, const Step& step) {
    bool whole = true, codes = false;
    if (!whole_tiles_fit(gpu, cache)) return false;
    // Rows as they are lack what expand_rows gives back, or are no head's own.
    if (cache.joint || less_turned_means(cache)) return true;
    for (size_t g = 0; g < size_t(cache.G); g++)
        for (const Stretch& one : cache.seen[g])
            for (const RowStore* store : {&cache.k[g].store[one.k], &cache.v[g].store[one.v]}) {
                if (!store->data) return false;
                whole = whole && lies_whole(*store, cache.d), codes = codes || coded(store->format);
            }
    if (whole && cache.rotated) return true;
    // Where one tile of queries meets them, packed rows and keys before rotation are no sooner expanded
    // than read; rows that are narrow, and no more than that, have fewer products as they are.
    return (codes || !cache.rotated) && step.T > tokens_of(cache) &&
           expanded_rows(gpu, cache, step).heads > 0;
}

void attend_tiles_whole(CudaBackend& gpu, const HeadsOut& out, const float* q, const float* rotation,
                        const CacheLayer& cache, const Step& step) {
    int m = cache.H / cache.G, heads = std::min(m, TALL_ROWS), chunks = (m + heads - 1) / heads;
    int tokens = tokens_of(cache), tiles = (step.T + tokens - 1) / tokens;
    int stages = shared_bytes(cache, 2) <= gpu.shared_limit ? 2 : 1;
    ExpandedRows rows = expanded_rows(gpu, cache, step);
    for (; rows.g0 < cache.G; rows.g0 += rows.heads) {
        if (rows.each) expand_rows(gpu, rows, rotation, cache, step);
        dim3 grid(unsigned(tiles * std::min(rows.heads, cache.G - rows.g0) * chunks));
        for_tensor_rows(cache, [&]<class E, int D>() {
            auto run = [&](auto kernel) {
                launch(kernel, grid, TALL_BLOCK, shared_bytes(cache, stages), gpu.queue, out,
                       CacheView(cache), rows, q, gpu.pos, step.T, tokens, heads, chunks);
            };
            stages == 1 ? run(attend_tiles_whole_kernel<E, D, 1>) : run(attend_tiles_whole_kernel<E, D, 2>);
        });
    }
}

}  // namespace stief
