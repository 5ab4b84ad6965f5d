// The shared memory of a block of decode attention on tensor cores (attention_tensor.cu): what lies where,
// and how much of it a cache wants.
#pragma once
#include <algorithm>

#include "attention_stretch.cuh"
#include "window_warp.cuh"

namespace stief {

// Where a block keeps what. A block of windows has its rows where `warps` begins.
template <class E, int D, int Q, class One>
struct TensorLayout {
    static constexpr int MERGING = TENSOR_WARPS * 8 * Q * (D + 2);

    HeadShared* head;
    BlockShare* share;
    float* queries;              // (8 Q, Q_STRIDE)
    BlockTables<E, D, Q>* tables;
    StretchRows<D>* lying;       // how the rows of each stretch lie
    char* warps;                 // each warp's memory; in its place (4, 8 Q, D + 2) the merging of warps
    size_t ahead, rest;          // bytes ahead of that; and of the basis, or what a turned mean needs

    __host__ __device__ __forceinline__ TensorLayout(char* memory, int stretches, size_t warp_bytes) {
        Carve carve{memory};
        head = carve.take<HeadShared>(), share = carve.take<BlockShare>();
        queries = carve.take<float>(8 * Q * One::Q_STRIDE);
        tables = carve.take<BlockTables<E, D, Q>>();
        lying = carve.take<StretchRows<D>>(size_t(stretches));
        ahead = carve.bytes;
        size_t merging = MERGING * sizeof(float), all = TENSOR_WARPS * warp_bytes;
        warps = carve.take<char>(all < merging ? merging : all);
        rest = carve.bytes;
    }
};

// And how much of it a cache wants.
template <class E, int D, int Q, bool ROTATED, bool SCORES = false>
struct TensorShared {
    using One = Warp<E, D, Q, ROTATED, SCORES>;
    using Layout = TensorLayout<E, D, Q, One>;
    static constexpr int ROWS = 8 * Q;
    // Windows of whole rows are met as such: not of keys to be rotated, nor by two tiles of heads.
    static constexpr bool SHORT_WINDOWS = ROTATED && Q == 1 && !SCORES;

    // `stages` of the oldest rows, most of all, and of the others one at least; but for windows that take
    // the short way.
    static size_t warp_bytes(const CacheRows& k, const CacheRows& v, const Seen& seen, int stages) {
        size_t most = One::ORDERING;
        bool windows = short_way(k, v, seen);
        for (const Stretch& one : seen) {
            const RowStore &keys = k.store[one.k], &values = v.store[one.v];
            if (windows && !coded(keys.format) && !coded(values.format)) continue;
            size_t count = &one == &seen.oldest() ? size_t(stages) : 1;
            most = std::max(most, One::front_bytes(keys, values) +
                                      count * One::stage_bytes(keys, values, k.mean));
        }
        return most;
    }
    // Whether there are windows beside codes, all of whole rows: then two splits there are at least, and the
    // first has them (Task).
    static bool short_way(const CacheRows& k, const CacheRows& v, const Seen& seen) {
        return SHORT_WINDOWS && whole_windows(k, v, seen, windows_of(k, v, seen), D);
    }
    static size_t bytes(const CacheRows& k, const CacheRows& v, const Seen& seen, int stretches, size_t warp,
                        [[maybe_unused]] bool means) {
        int rows = 0;  // of D
        for (const Stretch& one : seen) rows = std::max(rows, basis_rows(k.store[one.k].format));
        Layout layout(nullptr, stretches, warp);
        size_t all = layout.rest + (!ROTATED ? Rebuild<E, D>::shared_bytes(rows)
                                            : means  ? sizeof(TurnedMean<D, Q>)
                                                     : 0);
        size_t windows = layout.ahead + TENSOR_WARPS * WindowWarp<E, D>::STAGE_BYTES;
        return short_way(k, v, seen) ? std::max(all, windows) : all;
    }
};

// Blocks that the registers of a multiprocessor hold: fewer where keys are rebuilt, and with two tiles of
// query heads.
constexpr int most_blocks(int Q, bool rotated) {
    return Q == 2 ? 2 : rotated ? 4 : 3;
}

// Bytes of shared memory: of a block, and of each warp's rows; and where windows take the short way, which
// wants two splits, the steps of them that a warp has room for; the positions of the least share; and the
// most stretches of a head.
struct Room {
    size_t block, warp;
    int window_stages, least_splits, share, stretches;
};

template <class E, int D, int Q, bool ROTATED, bool SCORES>
inline Room room_with(const CacheLayer& cache, int stages) {
    using Shared = TensorShared<E, D, Q, ROTATED, SCORES>;
    const CacheRows none;
    auto values = [&](size_t g) -> const CacheRows& { return SCORES ? none : cache.v[g]; };
    Room room = {};
    for (size_t g = 0; g < size_t(cache.G); g++) {
        size_t warp = Shared::warp_bytes(cache.k[g], values(g), cache.seen[g], stages);
        room.warp = std::max(room.warp, warp), room.stretches = std::max(room.stretches, cache.seen[g].count);
    }
    for (size_t g = 0; g < size_t(cache.G); g++)
        room.block = std::max(room.block, Shared::bytes(cache.k[g], values(g), cache.seen[g], room.stretches,
                                                        room.warp, less_turned_means(cache)));
    size_t ahead = typename Shared::Layout(nullptr, room.stretches, room.warp).ahead;
    size_t left = room.block;  // behind what a block of windows has ahead
    room.least_splits = 1, room.share = INT_MAX;
    for (size_t g = 0; g < size_t(cache.G); g++) {
        const Stretch& oldest = cache.seen[g].oldest();
        room.share = std::min(room.share, Shared::One::share_of(cache.k[g].store[oldest.k],
                                                                values(g).store[oldest.v]));
        if (!Shared::short_way(cache.k[g], values(g), cache.seen[g])) continue;
        room.least_splits = 2, left = std::min(left, room.block - ahead);
    }
    room.window_stages = int(left / TENSOR_WARPS / WindowWarp<E, D>::STAGE_BYTES);
    return room;
}
// The blocks that a multiprocessor has: shared_limit is what it gives one, and it keeps 1 KB of each.
template <int Q, bool ROTATED>
inline int blocks_of(const Room& room, size_t limit) {
    return std::min(int(limit / (room.block + 1024)), most_blocks(Q, ROTATED));
}
// The most stages with which a multiprocessor has the most blocks; one alone where no more fit in a block.
template <class E, int D, int Q, bool ROTATED, bool SCORES = false>
inline Room room_for(const CacheLayer& cache, size_t limit) {
    Room best = {limit + 1, 0, 0, 1, 1, 0};
    for (int stages = TensorShared<E, D, Q, ROTATED>::One::MOST_STAGES; stages > 0; stages--) {
        Room room = room_with<E, D, Q, ROTATED, SCORES>(cache, stages);
        if (best.block > limit ||
            (stages > 1 && blocks_of<Q, ROTATED>(room, limit) > blocks_of<Q, ROTATED>(best, limit)))
            best = room;
    }
    return best;
}

}  // namespace stief
