// The stretches of positions that a block of decode attention meets (attention_tensor.cu): what it knows of
// its kv head, which of the stretches are its own, and how it goes from one to the next.
#pragma once
#include "attention_warp.cuh"

namespace stief {

// The windows of whole rows beside codes, by stretch: those without codes, where the oldest has some.
__host__ __device__ inline uint32_t windows_of(const CacheRows& k, const CacheRows& v, const Seen& seen) {
    auto codes = [&](const Stretch& one) {
        return coded(k.store[one.k].format) || coded(v.store[one.v].format);
    };
    uint32_t windows = 0;
    bool beside = codes(seen.oldest());
    for (int i = 0; beside && i < seen.count; i++) windows |= uint32_t(!codes(seen.stretch[i])) << i;
    return windows;
}
// Whether there are such, and all of their rows are d elements.
__host__ __device__ inline bool whole_windows(const CacheRows& k, const CacheRows& v, const Seen& seen,
                                              uint32_t windows, int d) {
    bool all = windows;
    for (int i = 0; i < seen.count; i++) {
        const Stretch& one = seen.stretch[i];
        if (windows >> i & 1) all = all && lies_whole(k.store[one.k], d) && lies_whole(v.store[one.v], d);
    }
    return all;
}

// What describes a kv head, the same for every step.
struct alignas(16) HeadShared {
    CacheRows k, v;
    Seen seen;
    uint32_t windows;    // of whole rows beside codes, by stretch
    int whole_windows;   // whether there are such, and all of their rows are d elements

    // By a whole block; barriers must follow each. Without values their rows are nothing.
    template <bool VALUES>
    __device__ __forceinline__ void fill(const CacheView& cache, int g) {
        int i = int(threadIdx.x), threads = int(blockDim.x);
        copy_words(&k, &cache.k(g), i, threads);
        if constexpr (VALUES)
            copy_words(&v, &cache.v(g), i, threads);
        else
            for (int word = i; word < int(sizeof(v) / sizeof(uint32_t)); word += threads)
                reinterpret_cast<uint32_t*>(&v)[word] = 0;
        copy_words(&seen, &cache.seen(g), i, threads);
    }
    __device__ __forceinline__ void find_windows(int d) {
        if (threadIdx.x > 0) return;
        windows = windows_of(k, v, seen), whole_windows = stief::whole_windows(k, v, seen, windows, d);
    }
};
static_assert(sizeof(HeadShared) % 16 == 0);

// A block's query heads and share of the positions: kept in shared memory, as registers are few.
struct alignas(16) BlockShare {
    int first, R;
    int S, begin, end;  // positions, and the block's share of them
};

// Which stretches a block has. Where there are windows of whole rows beside codes, they are the first
// split's, which has nothing else: beginning a stretch costs as much time as hundreds of its positions,
// and so no block waits for one that has three. Windows of whole rows are met all at once
// (window_warp.cuh).
struct Task {
    uint32_t windows;  // by stretch
    bool apart, mine;      // windows are apart; this block has them

    __device__ __forceinline__ explicit Task(const HeadShared& head)
        : windows(head.windows),
          apart(windows && gridDim.y > 1),
          mine(apart && blockIdx.y == 0) {}
    __device__ __forceinline__ bool has(int i) const {
        return !apart || (windows >> i & 1) == uint32_t(mine);
    }
    // The stretch, of its own, that this block is most likely to begin with.
    __device__ __forceinline__ int likely(const Seen& seen) const {
        if (mine) return lowest_bit(windows);
        return int(&seen.oldest() - seen.stretch);
    }
    // The positions of its stretches; of others', too. Shares are multiples of `tile`.
    __device__ __forceinline__ Share share(const Seen& seen, int S, int tile) const {
        int first = S, end = 0;
#pragma unroll 1
        for (int i = 0; i < seen.count; i++) {
            int from = seen.stretch[i].begin_for(S - 1), to = seen.stretch[i].end_for(S - 1);
            if (from < to && has(i)) first = min(first, from), end = max(end, to);
        }
        if (mine) return Share(first, end);
        Share share(max(end - first, 0), int(blockIdx.y) - apart, int(gridDim.y) - apart, tile);
        return Share(share.first + first, share.end + first);
    }
};

// How the rows of each of a head's stretches lie, half of that a warp.
template <class One, int D>
__device__ __forceinline__ void describe_rows(StretchRows<D>* lying, const HeadShared& head,
                                              const LevelTables& levels) {
    int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP, element = One::ELEMENT;
    for (int i = warp; i < 2 * head.seen.count; i += TENSOR_WARPS) {
        const Stretch& one = head.seen.stretch[i / 2];
        const RowStore &keys = head.k.store[one.k], &values = head.v.store[one.v];
        if (i % 2)
            lying[i / 2].slots.fill(keys, values, levels, element);
        else
            lying[i / 2].rows.template fill<typename One::Tiles>(
                keys, values, WARP, element, One::step_of(keys, values), lane, WARP);
    }
}

// What a stretch with such rows wants of the block: its tables, and where keys are rebuilt D, which is on
// its way from where it is kept.
template <bool ROTATED, class E, int D, int Q>
__device__ __forceinline__ void prepare_stretch(BlockTables<E, D, Q>& tables,
                                                [[maybe_unused]] const Rebuild<E, D>& basis,
                                                const StretchRows<D>& rows,
                                                [[maybe_unused]] const char* kept) {
    if constexpr (!ROTATED) {
        const RowShape& shape = rows.rows.shape[0];
        int lines = coded_columns(shape.groups) + (shape.elements + 15) / 16 * 16;
        char* decode = reinterpret_cast<char*>(basis.decode);
        for (int i = int(threadIdx.x) * 16; i < lines * basis.STRIDE * int(sizeof(E)); i += 16 * TENSOR_BLOCK)
            copy_async_16(decode + i, kept + i, true);
        copy_async_commit();
    }
    static_assert(sizeof(StretchRows<D>) % sizeof(uint4) == 0 && alignof(StretchRows<D>) >= alignof(uint4));
    uint4* to = reinterpret_cast<uint4*>(static_cast<StretchRows<D>*>(&tables));
    for (int i = int(threadIdx.x); i < int(sizeof(rows) / sizeof(uint4)); i += TENSOR_BLOCK)
        to[i] = reinterpret_cast<const uint4*>(&rows)[i];
    __syncthreads();  // the tables are there
}
// And where they are not, the queries' fragments.
template <class One, class E, int D, int Q>
__device__ __forceinline__ void prepare_queries(const One& one, BlockTables<E, D, Q>& tables,
                                                const float* queries) {
    const RowShape& shape = one.k.shape;
    if (shape.groups)
        tables.queries.fill_coded(queries, One::Q_STRIDE, shape.elements, shape.groups,
                                  tables.slots.slot[0]);
    else
        tables.queries.fill(queries, One::Q_STRIDE, shape.columns);
    __syncthreads();  // the queries' fragments are there
}

// A warp's part of positions s … end − 1 of a stretch. `ready`: by the whole block, what it needs of the
// queries, once its first copies are on their way. clean: its memory is zero.
template <class One, class Ready>
__device__ __forceinline__ void attend_stretch(One& one, const RowStore& keys, const RowStore& values,
                                               int s, int end, int warp_bytes, bool& clean,
                                               const Ready& ready) {
    bool entered = false, first = true;
#pragma unroll 1
    for (int until; s < end; s = until) {
        until = min(end, min(run_end(keys, s), run_end(values, s)));
        bool mine = one.first_step(s) < until;  // a step of these is this warp's
        if (mine) {
            if (!entered) {
                one.enter();
                if (!clean) one.clear(warp_bytes);
                entered = true, clean = false;
            }
            one.k.enter_run(keys, s), one.v.enter_run(values, s);
            one.start(s, until, warp_bytes);
        }
        if (first) ready();
        first = false;
        if (mine) one.run(s, until, warp_bytes);
    }
}

}  // namespace stief
