// What the two ways of a token's row into its stores share, a block a head: at once (append_one.cu), and
// its codes behind the step (append_later.cu).
#pragma once
#include "append.cuh"
#include "dispatch.cuh"

namespace stief {

constexpr int ONE_BLOCK = 256;

// What a block shares besides the head's numbers and the basis.
struct OneShared {
    EncoderTables tables;
    alignas(16) Levels levels;
    float tried[2][7];
};

// A head's square basis on its way to shared memory, by the whole block; waits for no kernel.
__device__ __forceinline__ void fetch_basis(float* basis, const float* M, int d) {
    for (int i = int(threadIdx.x); i < d * d / 4; i += ONE_BLOCK)
        copy_async_16(basis + 4 * i, M + 4 * i, true);
}

// The row of position s ← c (width), shared, in all stores that have codes. By the whole block.
template <class E, int EACH>
__device__ __forceinline__ void store_codes(OneShared& shared, const float* c, int s) {
#pragma unroll 1
    for (int i = 0; i < MOST_STORES; i++) {
        if (shared.tables.kinds[i] != EncoderTables::CODES) continue;
        const RowStore& store = shared.tables.head.store[i];
        RowEncoder<EACH>(shared.levels, shared.tables.widths[i], store.format, c, shared.tables.weight)
            .template pack_by_block<E>(row_at(store, s), store.bytes, shared.tried);
    }
}

// Shared memory of a block: with its basis, where that has room.
struct OneRoom {
    size_t bytes;
    bool staged;

    OneRoom(const CudaBackend& gpu, int d, bool bases) {
        constexpr size_t MOST_STAGED = 64 << 10;  // leaves room for a block of the product before
        check(d <= ONE_BLOCK, "--backend cuda: heads of %d coordinates, expected at most %d", d, ONE_BLOCK);
        size_t square = size_t(d) * size_t(d) * sizeof(float);
        bytes = sizeof(OneShared) + size_t(product_sums(ONE_BLOCK) + 4 * d) * sizeof(float);
        staged = bases && square <= MOST_STAGED && d % 4 == 0 && square + bytes <= gpu.shared_limit;
        if (staged) bytes += square;
    }
};

// f<E, EACH>() of a cache's elements, and of the coordinates that a lane has of a head.
template <class F>
void for_row(DType dtype, int d, const F& f) {
    for_dtype(dtype, [&]<class E>(E) {
        d <= 2 * WARP   ? f.template operator()<E, 2>()
        : d <= 4 * WARP ? f.template operator()<E, 4>()
                        : f.template operator()<E, RowWidths::MOST / WARP>();
    });
}

}  // namespace stief
