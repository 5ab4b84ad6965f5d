// What decode attention on tensor cores knows ahead of a step: how each kv head's rows lie, and the angles
// near a position, and where keys are rebuilt their basis. It is the same for every step, and found out in
// long chains of reads; so it is found out once and kept in the device's memory, from where a block copies
// it while other kernels run.
#pragma once
#include "attention_room.cuh"

namespace stief {

template <int D>
struct alignas(16) HeadTables {
    HeadShared head;
    LevelTables levels;
    StretchRows<D> rows[MOST_STORES + 1];  // of each stretch
};
static_assert(sizeof(NearAngles<64>) % 16 == 0 && sizeof(NearAngles<128>) % 16 == 0);
// Of a layer: (G) heads, then NearAngles, and where keys are rebuilt D of each head's stretches (G,
// stretches), as a block keeps it (Rebuild::decode), so many bytes each.
template <int D>
struct LayerTables {
    const HeadTables<D>* heads;
    int stretches, basis_bytes;

    size_t bytes(int G) const {
        return size_t(G) * (sizeof(HeadTables<D>) + size_t(stretches) * size_t(basis_bytes)) +
               sizeof(NearAngles<D>);
    }
    __host__ __device__ const NearAngles<D>* near(int G) const {
        return reinterpret_cast<const NearAngles<D>*>(heads + G);
    }
    __device__ const char* basis(int G, int g, int stretch) const {
        return reinterpret_cast<const char*>(near(G) + 1) +
               size_t(g * stretches + stretch) * size_t(basis_bytes);
    }
};

// to ← D of a stretch with such rows. By the whole block.
template <class E, int D>
__device__ __forceinline__ void describe_basis(char* to, const CacheRows& k, const StretchRows<D>& lying) {
    Rebuild<E, D> basis = {};
    basis.decode = reinterpret_cast<E*>(to);
    const RowShape& shape = lying.rows.shape[0];
    if (shape.groups)
        fill_coded_basis(basis, k, shape.elements, shape.groups, lying.slots.slot[0]);
    else
        basis.fill(k, RowTiles<E, D, STEP>{shape, lying.rows.group[0], 0});
}

// grid G, block 128. Shared: a head's description and levels. rotation: null where no key is less a turned
// mean.
template <class E, int D, int Q, bool ROTATED, bool SCORES>
__global__ void __launch_bounds__(TENSOR_BLOCK)
    describe_heads(HeadTables<D>* to, LayerTables<D> known, CacheView cache, const float* rotation) {
    using One = Warp<E, D, Q, ROTATED, SCORES>;
    int g = int(blockIdx.x), tid = int(threadIdx.x);
    HeadShared& head = *reinterpret_cast<HeadShared*>(dynamic_shared());
    LevelTables& levels = *reinterpret_cast<LevelTables*>(&head + 1);
    levels.fill(tid, TENSOR_BLOCK);
    head.template fill<!SCORES>(cache, g);
    __syncthreads();  // the head's description is there, and the levels
    head.find_windows(D);
    __syncthreads();  // and its windows
    describe_rows<One>(to[g].rows, head, levels);
    copy_words(&to[g].head, &head, tid, TENSOR_BLOCK);
    copy_words(&to[g].levels, &levels, tid, TENSOR_BLOCK);
    if (g == 0 && rotation) reinterpret_cast<NearAngles<D>*>(to + cache.G)->fill(rotation, cache.capacity);
    if constexpr (!ROTATED) {
        __syncthreads();  // it is known how rows lie
        for (int i = 0; i < head.seen.count; i++)
            describe_basis<E, D>(const_cast<char*>(known.basis(cache.G, g, i)), head.k, to[g].rows[i]);
    }
}

// What is known of the layer, found out now if it was not before.
template <class E, int D, int Q, bool ROTATED, bool SCORES>
LayerTables<D> tables_of(CudaBackend& gpu, const CacheLayer& cache, const float* rotation) {
    const float* near = less_turned_means(cache) ? rotation : nullptr;
    LayerTables<D> known = {};
    for (size_t g = 0; g < size_t(cache.G); g++) {
        known.stretches = std::max(known.stretches, int(cache.seen[g].count));
        for (const Stretch& one : cache.seen[g])
            if (!ROTATED)
                known.basis_bytes =
                    std::max(known.basis_bytes, int(Rebuild<E, D>::basis_bytes(
                                                    basis_rows(cache.k[g].store[one.k].format))));
    }
    void* memory = gpu.described(cache, near, known.bytes(cache.G), [&](void* to) {
        known.heads = static_cast<const HeadTables<D>*>(to);
        launch(describe_heads<E, D, Q, ROTATED, SCORES>, dim3(unsigned(cache.G)), TENSOR_BLOCK,
               sizeof(HeadShared) + sizeof(LevelTables), gpu.queue, static_cast<HeadTables<D>*>(to), known,
               CacheView(cache), near);
    });
    known.heads = static_cast<const HeadTables<D>*>(memory);
    return known;
}

// to ← from by cp.async, by the whole block.
template <class T>
__device__ __forceinline__ void copy_table(T* to, const T* from, int count = 1) {
    static_assert(sizeof(T) % 16 == 0);
    for (int i = int(threadIdx.x); i < count * int(sizeof(T) / 16); i += int(blockDim.x))
        copy_async_16(reinterpret_cast<uint4*>(to) + i, reinterpret_cast<const uint4*>(from) + i, true);
}

}  // namespace stief
