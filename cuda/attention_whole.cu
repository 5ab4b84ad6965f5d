// Decode attention over the plain cache: rows of 16 bits, whole, one behind the other, and up to 8 query
// heads of a kv head. Bound by the bytes of the rows, with no address that is not the lane's own plus a
// constant. attention_tensor.cu does all else.
#include <algorithm>

#include "attention_merge.cuh"
#include "dispatch.cuh"
#include "whole_warp.cuh"

namespace stief {

// ---- device helpers ----------------------------------------------------------------------------

// A token's own key, rotated, and value: lane's coordinates lane, lane + 32, … of each half.
template <class E, int D>
struct OwnRow {
    static constexpr int N = D / 2 / WARP;
    float k[2][N], v[2][N];

    __device__ __forceinline__ void load(const float* key, const float* value, const float* angle) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            int j = int(threadIdx.x) % WARP + i * WARP;
            k[0][i] = key[j], k[1][i] = key[j + D / 2];
            turn_pair(k[0][i], k[1][i], angle[j], angle[j + D / 2]);
            v[0][i] = value[j], v[1][i] = value[j + D / 2];
        }
    }
    __device__ __forceinline__ void put(E* key, E* value) const {
#pragma unroll
        for (int i = 0; i < N; i++)
            for (int half = 0; half < 2; half++) {
                int j = int(threadIdx.x) % WARP + i * WARP + half * (D / 2);
                key[j] = to_element<E>(k[half][i]), value[j] = to_element<E>(v[half][i]);
            }
    }
};

// ---- kernels -----------------------------------------------------------------------------------

// grid (G, splits), block 128. Shared: stages of each warp, for d = 128 and f16 4 · 3 · 8.5 = 102 KB;
// then the merging of warps in their place. Reads K and V once: S·G·4 d bytes, which is the bound. With
// in.k the cache gets the token's own row from the warp that meets it, which has it without the way through
// memory. out: null, or of one split, where nothing is left to merge.
template <class E, int D>
__global__ void __launch_bounds__(WHOLE_BLOCK, WHOLE_BLOCKS)
    attend_one_whole(Partial partials, CacheView cache, float* out, const float* q, NewRow in,
                     const int* pos) {
    using One = WholeWarp<E, D>;
    int g = int(blockIdx.x), m = cache.H / cache.G, h0 = g * m, warp = int(threadIdx.x) / WARP;
    E *stages = reinterpret_cast<E*>(dynamic_shared()), *keys = static_cast<E*>(cache.k(g).store[0].data),
      *values = static_cast<E*>(cache.v(g).store[0].data);
    One one(keys, values, stages + warp * One::STAGES * One::STAGE);
    let_next_begin();
    await_kernels();

    int s = *pos;
    Share share(s + 1, int(blockIdx.y), int(gridDim.y), STEP);
    if (share.first >= share.end) return merge_nothing(partials, h0, m);
    const float* angle = in.k ? in.rotation + size_t(s) * D : nullptr;
    OwnRow<E, D> own;
    auto ready = [&] {
        bool mine = in.k && share.end > s && One::has(share.first, s);
        if (mine) own.load(in.k + size_t(g) * D, in.v + size_t(g) * D, angle);
        one.load_queries(q + size_t(h0) * D, m, angle);
        if (mine) own.put(keys + size_t(s) * D, values + size_t(s) * D);  // behind all loads
    };
    one.run(share.first, share.end, in.k ? s : s + 1, ready, [&](E* k, E* v) { own.put(k, v); });

    __syncthreads();  // every warp has read its last step
    float* memory = reinterpret_cast<float*>(dynamic_shared());  // (4, 8, D + 2)
    put_tile<D>(memory + warp * WHOLE_HEADS * (D + 2), one.max, one.sum, one.acc);
    __syncthreads();  // all warps' are there
    merge_warps<WHOLE_WARPS, WHOLE_HEADS, D>(partials, memory, h0, m, D, out);
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

bool plain_cache(const CudaBackend& gpu, const CacheLayer& cache) {
    if (!tensor_cores(gpu, cache) || cache.joint || !plain_rows(gpu, cache)) return false;
    for (size_t g = 0; g < size_t(cache.G); g++)
        for (const CacheRows* head : {&cache.k[g], &cache.v[g]})
            if (head->encode || head->decode || head->decode_t || head->mean) return false;
    return true;
}

static Splits attend_splits(CudaBackend& gpu, float* out, const float* q, const NewRow& in,
                            const CacheLayer& cache, int most) {
    Splits splits(gpu, cache, cache.G, WHOLE_BLOCKS, STEP, most);
    auto run = [&]<class E, int D>() {
        launch_ahead(attend_one_whole<E, D>, dim3(unsigned(cache.G), unsigned(splits.count)),
                     WHOLE_BLOCK, whole_bytes<E, D>(), gpu.queue, splits.partials, CacheView(cache),
                     splits.count > 1 ? nullptr : out, q, in, gpu.pos);
    };
    auto width = [&]<class E>() {
        cache.d == 128 ? run.template operator()<E, 128>() : run.template operator()<E, 64>();
    };
    cache.dtype == DType::F16 ? width.template operator()<f16>() : width.template operator()<bf16>();
    return splits;
}

Splits attend_splits_whole(CudaBackend& gpu, const float* q, const CacheLayer& cache, int most) {
    return attend_splits(gpu, nullptr, q, {}, cache, most);
}

void attend_plain_cache(CudaBackend& gpu, float* out, const float* q, const NewRow& in,
                        const CacheLayer& cache, int reach) {
    // Positions that a block meets sooner than a kernel merges: a bound of CudaBackend::reach.
    constexpr int ALONE = 256;
    Splits splits = attend_splits(gpu, out, q, in, cache, reach > ALONE ? most_splits(reach) : 1);
    if (splits.count > 1) merge_splits(gpu, out, splits, cache);
}

}  // namespace stief
