// The attentions behind CudaBackend::attend and append_and_attend, and how one kernel is chosen for a call.
#pragma once
#include <algorithm>

#include "cache_rows.cuh"

namespace stief {

// Decode: T = 1, of queries in the coordinates of the cache (attention.cu), at a position below `reach`.
void attend_one(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                const CacheLayer& cache, int reach);

// Heads of several tokens, (T, H·d) of an Operand: float32, or bf16 at the beginning of a token's
// place.
struct HeadsOut {
    float* data;
    int width;  // H·d
    bool rounded;

    __device__ __forceinline__ void put(size_t t, int at, float x) const {
        float* row = data + t * size_t(width);
        if (rounded)
            reinterpret_cast<bf16*>(row)[at] = to_bf16(x);
        else
            row[at] = x;
    }
    __device__ __forceinline__ void put_pair(size_t t, int at, float x, float y) const {  // at even
        float* row = data + t * size_t(width);
        if (rounded)
            reinterpret_cast<uint32_t*>(row)[at / 2] = pack2<bf16>(x, y);
        else
            *reinterpret_cast<float2*>(row + at) = make_float2(x, y);
    }
};

// Whether keys of some head are stored less R_s μ, but for whole rows.
inline bool less_turned_means(const CacheLayer& cache) {
    for (size_t g = 0; g < size_t(cache.G); g++)
        if (cache.less_turned_mean(g)) return true;
    return false;
}
// Of one token, (H, d) behind its latent queries: HeadsIn::against_mean.
template <class Float>
Float* against_mean(Float* latent, const CacheLayer& cache) {
    return latent + cache.H * cache.d;
}

// q in the keys' coordinates, q Dᵀ, where they are kept after rotation and have a basis; else q itself.
// What append has left, if it was given this q.
const float* latent_queries(CudaBackend& gpu, const float* q, const CacheLayer& cache, int T);

// Prefill: T > 1, q and out in the coordinates of the cache (attention_tiles.cu).
void attend_tiles(CudaBackend& gpu, const HeadsOut& out, const float* q, const float* rotation,
                  const CacheLayer& cache, const Step& step);

constexpr float LOG2_E = 1.44269504088896341f;  // queries are scaled by it: e^s = 2^(s log₂ e)
// A larger score than the largest so far by no more than this leaves the accumulators as they are: a
// weight may be up to 2^8.
constexpr float SCORE_SLACK = 8;

// Tensor cores serve rows of 16 bits and of codes and heads of 64 and 128, unless all is to be exact.
inline bool tensor_cores(const CudaBackend& gpu, const CacheLayer& cache) {
    return cache.dtype != DType::F32 && !gpu.exact && (cache.d == 64 || cache.d == 128);
}

// What one split of one query head found: after its keys  max = max s,  sum = Σ 2^(s − max),
// acc = Σ 2^(s − max) c  in latent coordinates. Without keys: −∞, 0, and acc is not written.
struct Partial {
    float* memory;  // (splits, H, d + 2)
    int H, d;
    __device__ float* of(int split, int h) const {
        return memory + (size_t(split) * size_t(H) + size_t(h)) * size_t(d + 2);
    }
};

// How many splits there are of the positions: so many blocks that every multiprocessor has `each`, but
// never more than a full cache has tiles, nor than `most`, and `least` whatever these are. The same for
// all positions below a reach, as a captured step is replayed at others.
inline int splits_for(const CudaBackend& gpu, const CacheLayer& cache, int blocks, int each, int tile,
                      int most, int least = 1) {
    int tiles = (cache.capacity + tile - 1) / tile;
    return std::max(least, std::min({most, tiles, gpu.multiprocessors * each / blocks}));
}
struct Splits {
    Partial partials;
    int count;
    Splits(CudaBackend& gpu, const CacheLayer& cache, int splits, int width) : count(splits) {
        size_t floats = size_t(count) * size_t(cache.H) * size_t(width + 2);
        void* memory = gpu.scratch(CudaBackend::Scratch::Partials, floats * sizeof(float));
        partials = {static_cast<float*>(memory), cache.H, width};
    }
    Splits(CudaBackend& gpu, const CacheLayer& cache, int blocks, int each, int tile, int most,
           int least = 1)
        : Splits(gpu, cache, splits_for(gpu, cache, blocks, each, tile, most, least), cache.d) {}
};
// Scores of every head's query with every key, log₂ e q·k / √d, where values are another kernel's.
struct HeadScores {
    float* memory;  // (H, stride)
    int stride;     // positions
    __device__ float* of(int h) const { return memory + size_t(h) * size_t(stride); }
};

// The share of positions 0 … S − 1 that a split has: whole tiles, the same for every block.
struct Share {
    int first, end;
    __device__ Share(int from, int to) : first(from), end(to) {}
    __device__ Share(int S, int split, int splits, int tile) {
        int each = ((S + splits - 1) / splits + tile - 1) / tile * tile;
        first = min(S, split * each), end = min(S, first + each);
    }
};

// The partials of decode, with tensor cores (attention_tensor.cu; attention_whole.cu where rows are
// plain) and without, and their merging.
constexpr int ANY_SPLITS = 1 << 30;
bool plain_rows(const CudaBackend& gpu, const CacheLayer& cache);
Splits attend_splits_whole(CudaBackend& gpu, const float* q, const CacheLayer& cache,
                           int most = ANY_SPLITS);
// Plain rows that are keys after rotation and values as they are: attention with the token's own row on its
// way into the cache. in.k = null: that is there already, and q rotated.
struct NewRow {
    const float *k, *v;     // (G, d)
    const float* rotation;  // (context, 2, d/2)
};
int most_splits(int reach);  // of positions below it
bool plain_cache(const CudaBackend& gpu, const CacheLayer& cache);
void attend_plain_cache(CudaBackend& gpu, float* out, const float* q, const NewRow& in,
                        const CacheLayer& cache, int reach);
Splits attend_splits_tensor(CudaBackend& gpu, const float* q, const float* rotation,
                            const CacheLayer& cache, int most = ANY_SPLITS);
Splits attend_splits_plain(CudaBackend& gpu, const float* q, const float* rotation,
                           const CacheLayer& cache, int most = ANY_SPLITS);
// Joint values: scores of them all, then attention over them (attention_joint.cu).
HeadScores attend_scores(CudaBackend& gpu, const float* q, const float* rotation,
                         const CacheLayer& cache, int most);
void attend_joint(CudaBackend& gpu, float* out, const HeadScores& scores, const CacheLayer& cache, int reach);
void merge_splits(CudaBackend& gpu, float* out, const Splits& splits, const CacheLayer& cache);

// attend_tiles where tensor_cores, of rows that are whole (attention_tiles_whole.cu) and of any
// (attention_tiles_tensor.cu).
bool whole_tiles(const CudaBackend& gpu, const CacheLayer& cache, const Step& step);
void attend_tiles_whole(CudaBackend& gpu, const HeadsOut& out, const float* q, const float* rotation,
                        const CacheLayer& cache, const Step& step);
void attend_tiles_tensor(CudaBackend& gpu, const HeadsOut& out, const float* q, const float* rotation,
                         const CacheLayer& cache, int T);

// f<E, D>() of the kernel for such rows of 16 bits and such heads.
template <class F>
void for_tensor_rows(const CacheLayer& cache, const F& f) {
    auto width = [&]<class E>() {
        cache.d == 128 ? f.template operator()<E, 128>() : f.template operator()<E, 64>();
    };
    cache.dtype == DType::F16 ? width.template operator()<f16>() : width.template operator()<bf16>();
}

// Rows that attend_tiles_whole does not read where they lie, made whole (expand_rows.cu): packed ones, those
// less a turned mean, keys before rotation, and joint values, which become each head's own. Of kv heads g0
// … g0 + heads − 1 each `each` rows of d elements, stretch by stretch, keys and then values, of all
// positions that the step's tokens see.
struct ExpandedRows {
    void* memory = nullptr;
    int g0 = 0, heads = 0;
    size_t each = 0;
};
// Whether rows are read where they lie; side 1: values.
struct InPlace {
    int d;
    bool rotated, joint;
    __host__ __device__ InPlace(const CacheView& cache)
        : d(cache.d), rotated(cache.rotated), joint(cache.joint) {}
    __host__ __device__ bool operator()(const RowStore& store, int side) const {
        return (side ? !joint : rotated) && lies_whole(store, d);
    }
};
// How many of a head's such rows, for tokens at pos … last, are ahead of those of a stretch's keys or
// values (side 1).
__host__ __device__ inline size_t expanded_ahead(const Seen& seen, const CacheRows& k,
                                                 const CacheRows& v, const InPlace& in_place, int pos,
                                                 int last, int stretch, int side) {
    size_t rows = 0;
    for (int i = 0; i < 2 * stretch + side; i++) {
        const Stretch& one = seen.stretch[i / 2];
        int n = one.end_for(last) - one.begin_for(pos);
        const RowStore& store = i % 2 ? v.store[one.v] : k.store[one.k];
        if (n > 0 && !in_place(store, i % 2)) rows += size_t(n);
    }
    return rows;
}
// How many a head has, and of how many heads there is room for at once: 0 where not even of one.
ExpandedRows expanded_rows(const CudaBackend& gpu, const CacheLayer& cache, const Step& step);
// Those of heads g0 on, in scratch memory.
void expand_rows(CudaBackend& gpu, ExpandedRows& rows, const float* rotation, const CacheLayer& cache,
                 const Step& step);

// Whether a block of this device has the shared memory for them; else decode, or prefill, is plain.
bool tensor_splits_fit(const CudaBackend& gpu, const CacheLayer& cache);
bool joint_fits(const CudaBackend& gpu, const CacheLayer& cache);
// Whether joint rows have their elements ahead of codes in eights, as attend_joint takes them.
bool joint_in_slots(const CacheLayer& cache);
bool tensor_tiles_fit(const CudaBackend& gpu, const CacheLayer& cache);
bool whole_tiles_fit(const CudaBackend& gpu, const CacheLayer& cache);

}  // namespace stief
