// Joint values into the cache: the product with a basis as wide as all heads, and rows of up to MOST_KEPT
// coordinates of codes. append_one.cu and append_tiles.cu have the keys. Twin:
// src/backend/cpu/cache_rows.cpp.
#include "joint_values.cuh"

#include "append.cuh"
#include "dispatch.cuh"
#include "tile_product.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

constexpr int JOINT_BLOCK = 256, JOINT_WIDE = 128;
constexpr int PRODUCT_BLOCK = 512, PRODUCT_PIECE = 32;  // threads; columns of a block

struct ProductLayout {
    float *partial, *product, *x;  // sums, (PRODUCT_PIECE), (G·d)  shared
    size_t bytes;

    __host__ __device__ __forceinline__ ProductLayout(char* memory, int width) {
        Carve carve{memory};
        partial = carve.take<float>(product_sums(PRODUCT_BLOCK));
        product = carve.take<float>(PRODUCT_PIECE), x = carve.take<float>(width);
        bytes = carve.bytes;
    }
};

// As joint_product says. grid (pieces of columns, vectors), block 512. Shared: ProductLayout. Bound by the
// bytes of a basis, (G·d)²·4.
__global__ void __launch_bounds__(PRODUCT_BLOCK, 1)
    joint_product_kernel(float* out, const float* from, CacheView cache, JointBasis basis) {
    bool decode = basis == JointBasis::Decode;
    int i = int(blockIdx.y), column = int(blockIdx.x) * PRODUCT_PIECE;
    const CacheRows& head = cache.v(decode ? i / (cache.H / cache.G) : 0);
    int n = decode ? cache.d : cache.joint, K = decode ? head.width : cache.joint;
    int columns = min(PRODUCT_PIECE, n - column);
    auto [partial, product, x, bytes] = ProductLayout(dynamic_shared(), cache.joint);
    const float* M = (decode ? head.decode : head.encode) + column;
    let_next_begin();
    await_kernels();
    from += size_t(i) * size_t(cache.joint);
    for (int k = int(threadIdx.x); k < K; k += PRODUCT_BLOCK) x[k] = from[k];
    __syncthreads();  // x is there
    row_product(product, x, M, size_t(n), K, columns, partial);
    for (int j = int(threadIdx.x); j < columns; j += PRODUCT_BLOCK)
        out[size_t(i) * size_t(n) + size_t(column + j)] = product[j];
}

// c (T, G·d) ← v E of several tokens. grid (tiles, pieces of 128 columns), block 256. Shared: the tile.
// Reads E once for each tile; 2 (G·d)² flops a token, six times over.
__global__ void __launch_bounds__(JOINT_BLOCK, 2)
    encode_joint_kernel(float* c, const float* v, CacheView cache, int T) {
    using Tile = TileProduct<JOINT_WIDE>;
    static_assert(Tile::THREADS == JOINT_BLOCK);
    int width = cache.joint, first = int(blockIdx.x) * Tile::TOKENS, count = min(Tile::TOKENS, T - first);
    int column = int(blockIdx.y) * JOINT_WIDE, columns = min(JOINT_WIDE, width - column);
    let_next_begin();
    await_kernels();
    v += size_t(first) * size_t(width);
    Tile tile(dynamic_shared(), cache.v(0).encode + column, width, columns, width);
    typename Tile::Sums sum;
    tile.sums_by_pieces(sum, count, [&](int from) {
        constexpr int TOGETHER = JOINT_BLOCK / JOINT_WIDE;
        int j = tile.tid % JOINT_WIDE;
#pragma unroll 8
        for (int t = tile.tid / JOINT_WIDE; t < count; t += TOGETHER)
            if (j < tile.padded())
                tile.put(t, j, j < tile.K ? v[size_t(t) * size_t(width) + size_t(from + j)] : 0);
    });
    tile.each(sum, [&](int t, int j, float a, float b) {
        if (t < count && j < columns)
            *reinterpret_cast<float2*>(c + size_t(first + t) * size_t(width) + size_t(column + j)) =
                make_float2(a, b);
    });
}

// What a block that stores rows shares besides a row.
struct StoreShared {
    TablesOf<JointWidths> tables;
    alignas(16) Levels levels;
    float sums[JOINT_BLOCK / WARP];
};

struct StoreLayout {
    StoreShared* shared;
    float* c;  // (G·d)
    size_t bytes;

    __host__ __device__ __forceinline__ StoreLayout(char* memory, int width) {
        Carve carve{memory};
        shared = carve.take<StoreShared>(), c = carve.take<float>(width);
        bytes = carve.bytes;
    }
};

// c (T, G·d) into all of the layer's stores. grid T in pieces of ROWS, block 256, which has one row at a
// time. Shared: StoreLayout.
template <class E>
__global__ void __launch_bounds__(JOINT_BLOCK, 2)
    store_joint_kernel(CacheView cache, const float* from, const int* pos, int T, int rows, bool codes) {
    using Encoder = RowEncoder<MOST_KEPT / JOINT_BLOCK, JointWidths, JOINT_BLOCK>;
    StoreLayout own(dynamic_shared(), cache.joint);
    StoreShared& shared = *own.shared;
    float* c = own.c;
    int width = cache.joint, tid = int(threadIdx.x), first = int(blockIdx.x) * rows;
    if (codes) EncoderTables::fetch_levels(&shared.levels);
    copy_async_commit();
    shared.tables.fetch(cache.v(0));
    __syncthreads();  // the description is there
    shared.tables.describe(codes);
    copy_async_wait<0>();
    let_next_begin();
    __syncthreads();  // the tables are there; a row of elements is each thread's own, of codes the sums over
                      // the block come between what one thread writes and others read
    await_kernels();
    for (int t = first; t < min(T, first + rows); t++) {
        for (int j = tid; j < width; j += JOINT_BLOCK) c[j] = from[size_t(t) * size_t(width) + size_t(j)];
#pragma unroll 1
        for (int n = 0; n < MOST_STORES; n++) {
            int kind = shared.tables.kinds[n];
            const RowStore& store = shared.tables.head.store[n];
            if (kind == EncoderTables::CODES)
                Encoder(shared.levels, shared.tables.widths[n], store.format, c, shared.tables.weight,
                        shared.sums)
                    .template pack<E>(row_at(store, *pos + t), store.bytes);
            else if (kind == EncoderTables::WHOLE)
                for (int j = tid; j < elements_of(store); j += JOINT_BLOCK)
                    elements_at<E>(store, *pos + t)[j] = to_element<E>(c[j]);
        }
    }
}

// ---- launchers ---------------------------------------------------------------------------------

void joint_product(CudaBackend& gpu, float* out, const float* x, const CacheLayer& cache, JointBasis basis,
                   int count) {
    int n = basis == JointBasis::Decode ? cache.d : cache.joint;
    dim3 grid(unsigned((n + PRODUCT_PIECE - 1) / PRODUCT_PIECE), unsigned(count));
    launch_ahead(joint_product_kernel, grid, PRODUCT_BLOCK, ProductLayout(nullptr, cache.joint).bytes,
                 gpu.queue, out, x, CacheView(cache), basis);
}

void append_joint(CudaBackend& gpu, const CacheLayer& cache, const float* v, int T) {
    constexpr int ROWS = 4;  // of a block, where there are many
    using Tile = TileProduct<JOINT_WIDE>;
    size_t n = size_t(T) * size_t(cache.joint);
    float* c = static_cast<float*>(gpu.scratch(CudaBackend::Scratch::Partials, n * sizeof(float)));
    if (T == 1) {
        joint_product(gpu, c, v, cache, JointBasis::Encode, 1);
    } else {
        dim3 grid(unsigned((T + Tile::TOKENS - 1) / Tile::TOKENS),
                  unsigned((cache.joint + JOINT_WIDE - 1) / JOINT_WIDE));
        launch_ahead(encode_joint_kernel, grid, Tile::THREADS, Tile::BYTES, gpu.queue, c, v,
                     CacheView(cache), T);
    }
    int rows = T < gpu.multiprocessors ? 1 : ROWS;
    size_t bytes = StoreLayout(nullptr, cache.joint).bytes;
    for_dtype(cache.dtype, [&]<class E>(E) {
        launch_ahead(store_joint_kernel<E>, dim3(unsigned((T + rows - 1) / rows)), JOINT_BLOCK, bytes,
                     gpu.queue, CacheView(cache), c, gpu.pos, T, rows, !whole_rows(cache));
    });
}

}  // namespace stief
