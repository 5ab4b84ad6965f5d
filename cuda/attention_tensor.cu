// Decode attention on tensor cores: rows of 16 bits or of codes, heads of 64 or 128. What attention.cu
// does for the rest. Blocks; attention_room.cuh says what they share, attention_warp.cuh what a warp does.
#include <algorithm>
#include <optional>

#include "attention_merge.cuh"
#include "attention_tables.cuh"
#include "dispatch.cuh"

namespace stief {

// ---- device helpers ----------------------------------------------------------------------------

// The block's R queries on their way, ROWS with zeros, a warp a row: all of a thread's loads at once.
template <int D, int ROWS>
struct ComingQueries {
    static constexpr int EACH = ROWS / TENSOR_WARPS, OWN = D / WARP;
    float x[EACH][OWN];

    __device__ __forceinline__ static int row(int n) {
        return int(threadIdx.x) / WARP + n * TENSOR_WARPS;
    }
    __device__ __forceinline__ void fetch(const float* q, int R) {
        int lane = int(threadIdx.x) % WARP;
#pragma unroll
        for (int n = 0; n < EACH; n++)
#pragma unroll
            for (int i = 0; i < OWN; i++) x[n][i] = q[min(row(n), R - 1) * D + i * WARP + lane];
    }
    // to (ROWS, stride) ← them, scaled, and of each its largest |q|; a barrier must follow.
    __device__ __forceinline__ void put(float* to, int stride, float* largest, int R) const {
        float scale = LOG2_E / sqrtf(float(D));
        int lane = int(threadIdx.x) % WARP;
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            float most = 0;
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                float one = row(n) < R ? scale * x[n][i] : 0;
                to[row(n) * stride + i * WARP + lane] = one, most = fmaxf(most, fabsf(one));
            }
            for (int mask = 1; mask < WARP; mask *= 2)
                most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
            if (lane == 0) largest[row(n)] = most;
        }
    }
};

// The block's windows by the short way, and its partial of them.
template <class E, int D>
__device__ void attend_windows(const Partial& partials, const HeadShared& head, const BlockShare& share,
                               char* memory, int stages, const float* q, int last) {
    using One = WindowWarp<E, D>;
    static_assert(WHOLE_WARPS == TENSOR_WARPS);
    int warp = int(threadIdx.x) / WARP;
    One one(reinterpret_cast<E*>(memory + size_t(warp * stages) * One::STAGE_BYTES));
    one.run({head, head.windows, last}, stages,
            [&] { one.load_queries(q + size_t(share.first) * D, share.R); });
    __syncthreads();  // every warp has read its last step
    float* merging = reinterpret_cast<float*>(memory);  // (4, 8, D + 2)
    put_tile<D>(merging + warp * WHOLE_HEADS * (D + 2), one.max, one.sum, one.acc);
    __syncthreads();  // all warps' are there
    merge_warps<WHOLE_WARPS, WHOLE_HEADS, D>(partials, merging, share.first, share.R, head.v.width);
}

// ---- kernels -----------------------------------------------------------------------------------

// grid (G · chunks of 8 Q query heads, splits), block 128. Reads K and V once for each chunk,
// S·G·(bytes of a row of keys and one of values), which is the bound, and D, where keys are rebuilt,
// once for each block and stretch. A chunk is the whole group up to 16 query heads (Q = 2);
// larger groups read rows again, from the second cache.
//
// Shared: queries, tables (5 KB), up to 3 steps of each warp's rows, for d = 128 at full rank
// 4 · 3 · 16 · 2 · 136 · 2 = 104 KB, at a quarter 31 KB; of codes, 36 bytes a row, 4 · 3 · 32 · 2 · 36
// = 28 KB; with windows a stage of whole rows a warp, 34 KB with what follows. Keys less a turned mean:
// 10 KB and 512 bytes a step. Keys before rotation: D as E, 16 rotations, and of codes 16 KB of their
// fragments.
// tools/measurements.md has what the machine code says. What a reader needs, in this order: cache_rows.cuh
// (rows), attention_stretch.cuh (a block's stretches), attention_warp.cuh (a warp's steps) and its keys and
// values (attention_warp_keys.cuh, _values.cuh), coded_fragments.cuh (codes), turned_mean.cuh; what is known
// ahead: attention_tables.cuh; how partials become one: attention_merge.cuh.
// SCORES: of keys alone, to `scores` (attention_joint.cu); nothing is summed.
template <class E, int D, int Q, bool ROTATED, bool SCORES>
__global__ void __launch_bounds__(TENSOR_BLOCK, most_blocks(Q, ROTATED))
    attend_one_tensor(Partial partials, HeadScores scores, CacheView cache, LayerTables<D> known,
                      const float* q, const float* against_mean, const float* rotation, const int* pos,
                      int chunks, int stretches, int warp_bytes, int window_stages) {
    using Shared = TensorShared<E, D, Q, ROTATED, SCORES>;
    using One = typename Shared::One;
    constexpr int ROWS = Shared::ROWS;
    int g = int(blockIdx.x) / chunks, h0 = int(blockIdx.x) % chunks * ROWS;
    typename Shared::Layout own(dynamic_shared(), stretches, size_t(warp_bytes));
    HeadShared& head = *own.head;
    BlockShare& block = *own.share;
    BlockTables<E, D, Q>& tables = *own.tables;
    StretchRows<D>* lying = own.lying;
    float* queries = own.queries;
    char* memory = own.warps;
    int warp = int(threadIdx.x) / WARP, behind = int(own.rest);
    copy_table(&head, &known.heads[g].head);
    copy_table(&tables.levels, &known.heads[g].levels);
    copy_table(lying, known.heads[g].rows, stretches);
    if (ROTATED && against_mean) copy_table(&TurnedMean<D, Q>::at(behind).near, known.near(cache.G));
    copy_async_commit();
    if (threadIdx.x == 0)
        block.first = cache.H / cache.G * g + h0, block.R = min(ROWS, cache.H / cache.G - h0);
    Rebuild<E, D> basis = {};
    One one(rotation, queries, basis, tables, memory + warp * warp_bytes);
    one.clear(warp_bytes);
    copy_async_wait<0>();
    __syncthreads();  // what is known is there
    const CacheRows &k = head.k, &v = head.v;
    const Seen& seen = head.seen;
    Task task(head);
    if constexpr (Shared::SHORT_WINDOWS)
        if (task.mine && head.whole_windows) {
            let_next_begin();
            await_kernels();
            return attend_windows<E, D>(partials, head, block, memory, window_stages, q, *pos);
        }
    if constexpr (!ROTATED) basis.fetch_angles(dynamic_shared() + behind, cache, k, rotation);
    int mean = ROTATED && k.mean ? behind : 0;
    if (threadIdx.x == 0) tables.mean = mean;
    if constexpr (SCORES) one.scores = {scores.of(block.first), scores.stride}, one.heads = block.R;
    // The stretch whose tables, and basis, are there; and whether its queries' fragments are.
    int prepared = -1;
    bool turned = false, clean = true;
    auto prepare = [&](int i) {
        prepared = i, turned = false;
        prepare_stretch<ROTATED>(tables, basis, lying[i], known.basis(cache.G, g, i));
    };
    auto load = [&] {  // one round trip, that of *pos
        ComingQueries<D, ROWS> coming;
        typename TurnedMean<D, Q>::template Coming<TENSOR_BLOCK> w;
        if (mean) w.fetch(against_mean + size_t(block.first) * D, block.R);
        coming.fetch(q + size_t(block.first) * D, block.R);
        if (mean) TurnedMean<D, Q>::at(mean).put(w);
        coming.put(queries, One::Q_STRIDE, tables.queries.largest, block.R);
    };
    auto ready = [&] {
        if constexpr (ROTATED) {
            if (!turned) prepare_queries(one, tables, queries);
            if (one.k.shape.groups) one.enter_queries();
            turned = true;
        }
    };
    prepare(task.likely(seen));  // waits for no kernel
    let_next_begin();
    await_kernels();

    int S = *pos + 1;
    load();
    if constexpr (!ROTATED) copy_async_wait<0>();  // the basis
    const Stretch& oldest = seen.oldest();
    Share share = task.share(seen, S, One::share_of(k.store[oldest.k], v.store[oldest.v]));
    if (SCORES && share.first >= share.end) return;
    if (share.first >= share.end) return merge_nothing(partials, block.first, block.R);
    if (threadIdx.x == 0) block.S = S, block.begin = share.first, block.end = share.end;
    __syncthreads();  // the share is there, the queries and the basis
    if constexpr (!SCORES) one.begin_sums();
#pragma unroll 1
    for (int i = 0; i < seen.count; i++) {
        const Stretch& stretch = seen.stretch[i];
        int s = max(block.begin, stretch.begin_for(block.S - 1));
        int end = min(block.end, stretch.end_for(block.S - 1));
        if (s >= end || !task.has(i)) continue;
        if (!seen.stretch[prepared].lies_like(stretch)) {
            if constexpr (!SCORES) one.leave();
            __syncthreads();  // what the last stretch had was read
            prepare(i);
            if constexpr (!ROTATED) {
                copy_async_wait<0>();
                __syncthreads();  // the basis is there
            }
        }
        attend_stretch(one, k.store[stretch.k], v.store[stretch.v], s, end, warp_bytes, clean, ready);
    }
    if constexpr (SCORES) return;
    __syncthreads();  // every warp has read its last step
    float* merging = reinterpret_cast<float*>(memory);  // (4, ROWS, D + 2)
#pragma unroll
    for (int n = 0; n < Q; n++) one.put(merging + (warp * ROWS + 8 * n) * (D + 2), n);
    __syncthreads();  // all warps' are there
    merge_warps<TENSOR_WARPS, ROWS, D>(partials, merging, block.first, block.R, v.width);
}

// ---- launchers ---------------------------------------------------------------------------------

// f<E, D, Q, ROTATED>() of the kernel that such a cache takes.
template <class F>
static void for_kernel(const CacheLayer& cache, const F& f) {
    auto rest = [&]<class E, int D, int Q>() {
        cache.rotated ? f.template operator()<E, D, Q, true>()
                      : f.template operator()<E, D, Q, false>();
    };
    auto heads = [&]<class E, int D>() {
        cache.H / cache.G > 8 ? rest.template operator()<E, D, 2>()
                              : rest.template operator()<E, D, 1>();
    };
    auto width = [&]<class E>() {
        cache.d == 128 ? heads.template operator()<E, 128>() : heads.template operator()<E, 64>();
    };
    cache.dtype == DType::F16 ? width.template operator()<f16>() : width.template operator()<bf16>();
}

bool tensor_splits_fit(const CudaBackend& gpu, const CacheLayer& cache) {
    bool fits = false;
    for_kernel(cache, [&]<class E, int D, int Q, bool ROTATED>() {
        Room room = cache.joint ? room_for<E, D, Q, ROTATED, true>(cache, gpu.shared_limit)
                                : room_for<E, D, Q, ROTATED>(cache, gpu.shared_limit);
        fits = room.block <= gpu.shared_limit;
    });
    return fits;
}

Splits attend_splits_tensor(CudaBackend& gpu, const float* q, const float* rotation,
                            const CacheLayer& cache, int most) {
    if (!tensor_splits_fit(gpu, cache)) return attend_splits_plain(gpu, q, rotation, cache, most);
    const float* against = less_turned_means(cache) ? against_mean(q, cache) : nullptr;
    std::optional<Splits> splits;
    for_kernel(cache, [&]<class E, int D, int Q, bool ROTATED>() {
        int m = cache.H / cache.G, chunks = (m + 8 * Q - 1) / (8 * Q), blocks = cache.G * chunks;
        Room room = room_for<E, D, Q, ROTATED>(cache, gpu.shared_limit);
        int each = std::max(blocks_of<Q, ROTATED>(room, gpu.shared_limit), 1);
        splits.emplace(gpu, cache, blocks, each, room.share, most, room.least_splits);
        launch_ahead(attend_one_tensor<E, D, Q, ROTATED, false>,
                     dim3(unsigned(blocks), unsigned(splits->count)), TENSOR_BLOCK, room.block,
                     gpu.queue, splits->partials, HeadScores{}, CacheView(cache),
                     tables_of<E, D, Q, ROTATED, false>(gpu, cache, rotation), q, against, rotation,
                     gpu.pos, chunks, room.stretches, int(room.warp), room.window_stages);
    });
    return *splits;
}

HeadScores attend_scores(CudaBackend& gpu, const float* q, const float* rotation, const CacheLayer& cache,
                     int most) {
    const float* against = less_turned_means(cache) ? against_mean(q, cache) : nullptr;
    int stride = (cache.capacity + 31) / 32 * 32;  // rows of them begin in a line of memory
    size_t bytes = size_t(cache.H) * size_t(stride) * sizeof(float);
    HeadScores scores = {static_cast<float*>(gpu.scratch(CudaBackend::Scratch::Scores, bytes)), stride};
    for_kernel(cache, [&]<class E, int D, int Q, bool ROTATED>() {
        int m = cache.H / cache.G, chunks = (m + 8 * Q - 1) / (8 * Q), blocks = cache.G * chunks;
        Room room = room_for<E, D, Q, ROTATED, true>(cache, gpu.shared_limit);
        int each = std::max(blocks_of<Q, ROTATED>(room, gpu.shared_limit), 1);
        int splits = splits_for(gpu, cache, blocks, each, room.share, most);
        launch_ahead(attend_one_tensor<E, D, Q, ROTATED, true>, dim3(unsigned(blocks), unsigned(splits)),
                     TENSOR_BLOCK, room.block, gpu.queue, Partial{}, scores, CacheView(cache),
                     tables_of<E, D, Q, ROTATED, true>(gpu, cache, rotation), q, against, rotation, gpu.pos,
                     chunks, room.stretches, int(room.warp), room.window_stages);
    });
    return scores;
}

}  // namespace stief
