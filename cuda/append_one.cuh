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

// Shared memory of a block: with its basis where that is staged.
struct OneLayout {
    OneShared* shared;
    float *partial, *x, *c;    // the product's sums; (d) each
    float *whole_x, *whole_c;  // (d) each, of keys that are stored whole and lose no mean
    float* basis;              // (d, d)
    size_t bytes;

    __host__ __device__ __forceinline__ OneLayout(char* memory, int d, bool staged) {
        Carve carve{memory};
        shared = carve.take<OneShared>();
        partial = carve.take<float>(product_sums(ONE_BLOCK));
        x = carve.take<float>(d), c = carve.take<float>(d);
        whole_x = carve.take<float>(d), whole_c = carve.take<float>(d);
        basis = carve.take<float>(staged ? d * d : 0);
        bytes = carve.bytes;
    }
};
// Whether a basis has room there.
struct OneRoom {
    bool staged;
    size_t bytes;

    OneRoom(const CudaBackend& gpu, int d, bool bases) {
        constexpr int MOST_STAGED = 64 << 10;  // bytes; leaves room for a block of the product before
        check(d <= ONE_BLOCK, "--backend cuda: heads of %d coordinates, expected at most %d", d, ONE_BLOCK);
        staged = bases && d * d * int(sizeof(float)) <= MOST_STAGED && d % 4 == 0 &&
                 OneLayout(nullptr, d, true).bytes <= gpu.shared_limit;
        bytes = OneLayout(nullptr, d, staged).bytes;
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
