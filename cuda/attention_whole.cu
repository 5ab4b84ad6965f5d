// Decode attention over the plain cache: rows of 16 bits, whole, one behind the other, and up to 8 query
// heads of a kv head. Bound by the bytes of the rows, with no address that is not the lane's own plus a
// constant. attention_tensor.cu does all else.
#include <algorithm>

#include "attention_merge.cuh"
#include "dispatch.cuh"
#include "whole_warp.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

// grid (G, splits), block 128. Shared: stages of each warp, for d = 128 and f16 4 · 3 · 8.5 = 102 KB;
// then the merging of warps in their place. Reads K and V once: S·G·4 d bytes, which is the bound.
template <class E, int D>
__global__ void __launch_bounds__(WHOLE_BLOCK, WHOLE_BLOCKS)
    attend_one_whole(Partial partials, CacheView cache, const float* q, const int* pos) {
    using One = WholeWarp<E, D>;
    int g = int(blockIdx.x), m = cache.H / cache.G, h0 = g * m, warp = int(threadIdx.x) / WARP;
    E* stages = reinterpret_cast<E*>(dynamic_shared());
    One one(cache.k(g).store[0].data, cache.v(g).store[0].data,
            stages + warp * One::STAGES * One::STAGE);
    let_next_begin();
    await_kernels();

    Share share(*pos + 1, int(blockIdx.y), int(gridDim.y), STEP);
    if (share.first >= share.end) return merge_nothing(partials, h0, m);
    one.run(share.first, share.end, [&] { one.load_queries(q + size_t(h0) * D, m); });

    __syncthreads();  // every warp has read its last step
    float* memory = reinterpret_cast<float*>(dynamic_shared());  // (4, 8, D + 2)
    put_tile<D>(memory + warp * WHOLE_HEADS * (D + 2), one.max, one.sum, one.acc);
    __syncthreads();  // all warps' are there
    merge_warps<WHOLE_WARPS, WHOLE_HEADS, D>(partials, memory, h0, m, D);
}

// ---- launchers ---------------------------------------------------------------------------------

template <class E, int D>
static size_t whole_bytes() {
    return std::max(size_t(WHOLE_WARPS * WholeWarp<E, D>::STAGES * WholeWarp<E, D>::STAGE) * sizeof(E),
                    size_t(WHOLE_WARPS * WHOLE_HEADS * (D + 2)) * sizeof(float));
}

bool plain_rows(const CudaBackend& gpu, const CacheLayer& cache) {
    if (!cache.rotated || cache.H / cache.G > WHOLE_HEADS) return false;
    if (whole_bytes<f16, 128>() > gpu.shared_limit) return false;
    for (size_t g = 0; g < size_t(cache.G); g++) {
        if (cache.seen[g].count > 1) return false;
        for (const CacheRows* head : {&cache.k[g], &cache.v[g]}) {
            const RowStore& store = head->store[0];
            if (!store.data || store.ring || store.format != RowFormat::whole(cache.d)) return false;
        }
        const Stretch& all = cache.seen[g].stretch[0];
        if (all.k || all.v) return false;
    }
    return true;
}

Splits attend_splits_whole(CudaBackend& gpu, const float* q, const CacheLayer& cache, int most) {
    Splits splits(gpu, cache, cache.G, WHOLE_BLOCKS, STEP, most);
    auto run = [&]<class E, int D>() {
        launch_ahead(attend_one_whole<E, D>, dim3(unsigned(cache.G), unsigned(splits.count)),
                     WHOLE_BLOCK, whole_bytes<E, D>(), gpu.queue, splits.partials, CacheView(cache), q,
                     gpu.pos);
    };
    auto width = [&]<class E>() {
        cache.d == 128 ? run.template operator()<E, 128>() : run.template operator()<E, 64>();
    };
    cache.dtype == DType::F16 ? width.template operator()<f16>() : width.template operator()<bf16>();
    return splits;
}

}  // namespace stief
