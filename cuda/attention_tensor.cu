// Decode attention on tensor cores: rows of 16 bits or of codes, heads of 64 or 128. What
// attention.cu does for the rest. Blocks and what they share; attention_warp.cuh says what a warp does.
#include <algorithm>
#include <optional>

#include "attention_merge.cuh"
#include "attention_stretch.cuh"
#include "dispatch.cuh"
#include "window_warp.cuh"

namespace stief {

// ---- device helpers ----------------------------------------------------------------------------

// Where a block keeps what: its head, queries, tables, how the rows of each stretch lie, each warp's
// memory and in its place the merging of warps after it, the basis.
template <class E, int D, int Q, bool ROTATED>
struct TensorShared {
    using One = Warp<E, D, Q, ROTATED>;
    static constexpr int ROWS = 8 * Q;
    static constexpr size_t QUERIES = ROWS * One::Q_STRIDE * sizeof(float);
    static constexpr size_t HEAD = (sizeof(HeadShared) + 15) / 16 * 16;
    static constexpr size_t MERGING = TENSOR_WARPS * ROWS * (D + 2) * sizeof(float);
    // Windows of whole rows are met as such: not of keys to be rotated, nor by two tiles of heads.
    static constexpr bool SHORT_WINDOWS = ROTATED && Q == 1;

    // `stages` of the oldest rows, most of all, and of the others one at least.
    static size_t warp_bytes(const CacheRows& k, const CacheRows& v, const Seen& seen, int stages) {
        size_t most = One::ORDERING;
        bool windows = false;
        for (const Stretch& one : seen) {
            const RowStore &keys = k.store[one.k], &values = v.store[one.v];
            size_t count = &one == &seen.oldest() ? size_t(stages) : 1;
            windows |= !coded(keys.format) && !coded(values.format);
            most = std::max(most, One::front_bytes(keys, values) +
                                      count * One::stage_bytes(keys, values, k.mean));
        }
        bool short_way = SHORT_WINDOWS && windows && seen.count > 1;
        return short_way ? std::max(most, WindowWarp<E, D>::STAGE_BYTES) : most;
    }
    static __host__ __device__ size_t warps_bytes(size_t warp) {
        return TENSOR_WARPS * warp < MERGING ? MERGING : TENSOR_WARPS * warp;
    }
    static size_t bytes(const CacheRows& k, const Seen& seen, size_t warp) {
        int rows = 0;  // of D
        for (const Stretch& one : seen) rows = std::max(rows, basis_rows(k.store[one.k].format));
        return HEAD + QUERIES + sizeof(BlockTables<E, D, Q>) + warps_bytes(warp) +
               size_t(seen.count) * sizeof(StretchRows<D>) +
               (!ROTATED ? Rebuild<E, D>::shared_bytes(rows) : k.mean ? sizeof(TurnedMean<D, Q>) : 0);
    }
};

// to (8 Q, stride) ← the block's R queries, scaled, and of each its largest |q|; a barrier must follow.
template <int D>
__device__ void load_queries(float* to, int stride, float* largest, const float* q, int rows, int R) {
    float scale = LOG2_E / sqrtf(float(D));
    int lane = int(threadIdx.x) % WARP;
    for (int row = int(threadIdx.x) / WARP; row < rows; row += TENSOR_WARPS) {
        float most = 0;
#pragma unroll
        for (int j = lane; j < D; j += WARP) {
            float x = row < R ? scale * q[row * D + j] : 0;
            to[row * stride + j] = x, most = fmaxf(most, fabsf(x));
        }
        for (int mask = 1; mask < WARP; mask *= 2)
            most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
        if (lane == 0) largest[row] = most;
    }
}

// Blocks that the registers of a multiprocessor hold: fewer where keys are rebuilt, and with two tiles of
// query heads.
constexpr int most_blocks(int Q, bool rotated) {
    return Q == 2 ? 2 : rotated ? 4 : 3;
}

// The block's windows by the short way, and its partial of them.
template <class E, int D>
__device__ void attend_windows(const Partial& partials, const HeadShared& head, uint32_t windows,
                               char* memory, int warp_bytes, const float* q, int last, int v_width) {
    using One = WindowWarp<E, D>;
    static_assert(WHOLE_WARPS == TENSOR_WARPS);
    int warp = int(threadIdx.x) / WARP;
    One one(reinterpret_cast<E*>(memory + warp * warp_bytes));
    one.run({head, windows, last}, warp_bytes / int(One::STAGE_BYTES),
            [&] { one.load_queries(q + size_t(head.first) * D, head.R); });
    __syncthreads();  // every warp has read its last step
    float* merging = reinterpret_cast<float*>(memory);  // (4, 8, D + 2)
    put_tile<D>(merging + warp * WHOLE_HEADS * (D + 2), one.max, one.sum, one.acc);
    __syncthreads();  // all warps' are there
    merge_warps<WHOLE_WARPS, WHOLE_HEADS, D>(partials, merging, head.first, head.R, v_width);
}

// ---- kernels -----------------------------------------------------------------------------------

// grid (G · chunks of 8 Q query heads, splits), block 128. Reads K and V once for each chunk,
// S·G·(bytes of a row of keys and one of values), which is the bound, and D, where keys are rebuilt,
// once for each block and stretch. A chunk is the whole group up to 16 query heads (Q = 2);
// larger groups read rows again, from the second cache.
//
// Shared: queries, tables (5 KB), up to 3 steps of each warp's rows, for d = 128 at full rank
// 4 · 3 · 16 · 2 · 136 · 2 = 104 KB, at a quarter 31 KB; of codes, 36 bytes a row, 4 · 3 · 32 · 2 · 36
// = 28 KB, with windows a stage of whole rows a warp, 34 KB. Keys less a turned mean: 13 KB and
// 512 bytes a step. Keys before
// rotation: D as E, 16 rotations, and of codes 16 KB of their fragments.
// tools/measurements.md has what the machine code says.
template <class E, int D, int Q, bool ROTATED>
__global__ void __launch_bounds__(TENSOR_BLOCK, most_blocks(Q, ROTATED))
    attend_one_tensor(Partial partials, CacheView cache, const float* q, const float* against_mean,
                      const float* rotation, const int* pos, int chunks, int warp_bytes) {
    using Shared = TensorShared<E, D, Q, ROTATED>;
    using One = typename Shared::One;
    constexpr int ROWS = Shared::ROWS;
    int g = int(blockIdx.x) / chunks, h0 = int(blockIdx.x) % chunks * ROWS;
    HeadShared& head = *reinterpret_cast<HeadShared*>(dynamic_shared());
    float* queries = reinterpret_cast<float*>(dynamic_shared() + Shared::HEAD);
    char* memory = dynamic_shared() + Shared::HEAD + Shared::QUERIES;
    BlockTables<E, D, Q>& tables = *reinterpret_cast<BlockTables<E, D, Q>*>(memory);
    memory += sizeof(BlockTables<E, D, Q>);
    int warp = int(threadIdx.x) / WARP;
    tables.levels.fill(int(threadIdx.x), TENSOR_BLOCK);
    head.fill(cache, g, h0, min(ROWS, cache.H / cache.G - h0));
    __syncthreads();  // the head's description is there, and the levels
    const CacheRows &k = head.k, &v = head.v;
    const Seen& seen = head.seen;
    StretchRows<D>* lying = reinterpret_cast<StretchRows<D>*>(memory);  // of each stretch
    memory += seen.count * int(sizeof(StretchRows<D>));
    if constexpr (Shared::SHORT_WINDOWS)
        if (Task task(head); task.mine && WindowRows::whole<D>(head, task.windows)) {
            let_next_begin();
            await_kernels();
            return attend_windows<E, D>(partials, head, task.windows, memory, warp_bytes, q, *pos, v.width);
        }
    Rebuild<E, D> basis = {};
    if constexpr (!ROTATED)
        basis.fill_angles(memory + Shared::warps_bytes(size_t(warp_bytes)), cache, k, rotation);
    TurnedMean<D, Q>* mean = nullptr;
    if (ROTATED && k.mean) {
        mean = reinterpret_cast<TurnedMean<D, Q>*>(memory + Shared::warps_bytes(size_t(warp_bytes)));
        mean->fill_near(rotation, cache.capacity);
    }
    if (threadIdx.x == 0) tables.mean = mean;
    describe_rows<One>(lying, head, tables.levels);
    let_next_begin();
    __syncthreads();  // how rows lie is there
    Task task(head);
    One one(rotation, queries, basis, tables, memory + warp * warp_bytes);
    // The stretch whose tables, and basis, are there; and whether its queries' fragments are.
    int prepared = -1;
    bool loaded = false, turned = false, clean = true;
    auto prepare = [&](int i) {
        prepared = i, turned = false, prepare_stretch<ROTATED>(one, tables, basis, k, lying[i]);
    };
    auto load = [&] {
        load_queries<D>(queries, One::Q_STRIDE, tables.queries.largest, q + size_t(head.first) * D, ROWS,
                        head.R);
        if (mean)
            load_queries<D>(mean->w, One::Q_STRIDE, mean->largest, against_mean + size_t(head.first) * D,
                            ROWS, head.R);
        __syncthreads();  // the queries are there
        if (mean && threadIdx.x == 0) mean->set_unit();  // before the barrier of their fragments
    };
    auto ready = [&] {
        if constexpr (ROTATED) {
            if (!loaded) load();
            if (!turned) prepare_queries(one, tables, queries);
            if (one.k.shape.groups) one.enter_queries();
            loaded = turned = true;
        }
    };
    one.clear(warp_bytes);
    prepare(task.likely(seen));  // neither waits for a kernel
    await_kernels();

    int S = *pos + 1;
    Share share = task.share(seen, S);
    if (share.first >= share.end) return merge_nothing(partials, head.first, head.R);
    if (threadIdx.x == 0) head.S = S, head.begin = share.first, head.end = share.end;
    __syncthreads();  // the share is there
    if constexpr (!ROTATED) load();
    one.begin_sums();
#pragma unroll 1
    for (int i = 0; i < seen.count; i++) {
        const Stretch& stretch = seen.stretch[i];
        int s = max(head.begin, stretch.begin_for(head.S - 1));
        int end = min(head.end, stretch.end_for(head.S - 1));
        if (s >= end || !task.has(i)) continue;
        if (!seen.stretch[prepared].lies_like(stretch)) {
            one.leave();
            __syncthreads();  // what the last stretch had was read
            prepare(i);
        }
        attend_stretch(one, k.store[stretch.k], v.store[stretch.v], s, end, warp_bytes, clean, ready);
    }
    __syncthreads();  // every warp has read its last step
    float* merging = reinterpret_cast<float*>(memory);  // (4, ROWS, D + 2)
#pragma unroll
    for (int n = 0; n < Q; n++) one.put(merging + (warp * ROWS + 8 * n) * (D + 2), n);
    __syncthreads();  // all warps' are there
    merge_warps<TENSOR_WARPS, ROWS, D>(partials, merging, head.first, head.R, v.width);
}

// ---- launchers ---------------------------------------------------------------------------------

// Bytes of shared memory: of a block, and of each warp's rows.
struct Room {
    size_t block, warp;
};

// As many stages as a block of this device has room for.
template <class E, int D, int Q, bool ROTATED>
static Room room_for(const CacheLayer& cache, size_t limit) {
    using Shared = TensorShared<E, D, Q, ROTATED>;
    Room room;
    int stages = Shared::One::MOST_STAGES + 1;
    do {
        stages--, room = {};
        for (size_t g = 0; g < size_t(cache.G); g++)
            room.warp = std::max(room.warp, Shared::warp_bytes(cache.k[g], cache.v[g],
                                                               cache.seen[g], stages));
        for (size_t g = 0; g < size_t(cache.G); g++)
            room.block = std::max(room.block, Shared::bytes(cache.k[g], cache.seen[g], room.warp));
    } while (room.block > limit && stages > 1);
    return room;
}

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
        fits = room_for<E, D, Q, ROTATED>(cache, gpu.shared_limit).block <= gpu.shared_limit;
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
        int each = int(gpu.shared_limit / (room.block + 1024));  // blocks a multiprocessor has
        splits.emplace(gpu, cache, blocks, std::clamp(each, 1, most_blocks(Q, ROTATED)), SHARE, most);
        launch_ahead(attend_one_tensor<E, D, Q, ROTATED>,
                     dim3(unsigned(blocks), unsigned(splits->count)), TENSOR_BLOCK, room.block,
                     gpu.queue, splits->partials, CacheView(cache), q, against, rotation, gpu.pos, chunks,
                     int(room.warp));
    });
    return *splits;
}

}  // namespace stief
