// The cache's rows: append encodes and packs; queries in latent coordinates; values out of them;
// attend. Twin: src/backend/cpu/cache_rows.cpp.
#include "cache_rows.cuh"

#include "attention.cuh"
#include "coded_rows.cuh"
#include "dispatch.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

constexpr int PRODUCT_BLOCK = 256, PRODUCT_PIECE = 64;  // threads; columns of one block

// c = k E, as many coordinates as each store of whole rows keeps.
// grid (tiles of TOKENS tokens, 2G, pieces of columns), block 256. Shared: the tile of x, of c, and
// the slices' sums. Reads E once for each tile: with one token the bytes are E's, d²·4 a head.
template <class E, int TOKENS>
__global__ void append_kernel(CacheView cache, const float* k, const float* v, const int* pos,
                              int T) {
    int side = int(blockIdx.y) / cache.G, g = int(blockIdx.y) % cache.G, d = cache.d;
    const CacheRows& head = cache.rows[blockIdx.y];
    int first = int(blockIdx.x) * TOKENS, count = min(TOKENS, T - first);
    int column = int(blockIdx.z) * PRODUCT_PIECE, n = min(PRODUCT_PIECE, head.width - column);
    if (n <= 0) return;
    float* x = reinterpret_cast<float*>(dynamic_shared());  // (TOKENS, d)
    float *c = x + TOKENS * d, *partial = c + TOKENS * PRODUCT_PIECE;
    const float* from = (side ? v : k) + size_t(g) * size_t(d);
    for (int i = int(threadIdx.x); i < count * d; i += int(blockDim.x)) {
        size_t t = size_t(first + i / d);
        x[i] = from[t * size_t(cache.G) * size_t(d) + size_t(i % d)];
    }
    __syncthreads();  // x is there
    if (head.encode)
        block_product<TOKENS>(c, PRODUCT_PIECE, x, d, head.encode + column, size_t(d), count, d, n,
                              partial);
    for (int i = int(threadIdx.x); i < count * n; i += int(blockDim.x)) {
        int t = i / n, j = i % n, s = *pos + first + t;
        E stored = to_element<E>(head.encode ? c[t * PRODUCT_PIECE + j] : x[t * d + column + j]);
        for (const RowStore& store : head.store)
            if (store.data && !coded(store.format) && column + j < elements_of(store))
                elements_at<E>(store, s)[column + j] = stored;
    }
}

// The stores of codes: c = k E once more, and each row packed by a warp.
// grid (tiles of TOKENS tokens, 2G), block 256. Shared: the tile of x, of c, and the slices' sums.
template <class E, int TOKENS>
__global__ void append_codes_kernel(CacheView cache, const float* k, const float* v, const int* pos,
                                    int T) {
    int side = int(blockIdx.y) / cache.G, g = int(blockIdx.y) % cache.G, d = cache.d;
    const CacheRows& head = cache.rows[blockIdx.y];
    int first = int(blockIdx.x) * TOKENS, count = min(TOKENS, T - first);
    bool any = false;
    for (const RowStore& store : head.store) any |= store.data && coded(store.format);
    if (!any) return;
    float* x = reinterpret_cast<float*>(dynamic_shared());  // (TOKENS, d)
    float *c = x + TOKENS * d, *partial = c + TOKENS * d;
    const float* from = (side ? v : k) + size_t(g) * size_t(d);
    for (int i = int(threadIdx.x); i < count * d; i += int(blockDim.x)) {
        size_t t = size_t(first + i / d);
        x[i] = from[t * size_t(cache.G) * size_t(d) + size_t(i % d)];
    }
    __syncthreads();  // x is there
    if (head.encode)
        block_product<TOKENS>(c, d, x, d, head.encode, size_t(d), count, d, d, partial);
    for (int t = int(threadIdx.x) / WARP; t < count; t += int(blockDim.x) / WARP)
        for (const RowStore& store : head.store)
            if (store.data && coded(store.format))
                pack_row<E>(row_at(store, *pos + first + t), (head.encode ? c : x) + t * d,
                            head.weight, store);
}

// out (T, H, d) ← x (T, H, d) M of each head's group, for the first k coordinates of x.
// Queries: M = Dᵀ of keys, k = d. Values: M = D, k = the coordinates there are; may be in place.
// grid (tiles of TOKENS tokens, H), block 256. Reads M once for each tile.
template <int TOKENS, bool VALUES>
__global__ void head_product_kernel(float* out, const float* in, CacheView cache, int T) {
    int h = int(blockIdx.y), g = h / (cache.H / cache.G), d = cache.d;
    const CacheRows& head = VALUES ? cache.v(g) : cache.k(g);
    int first = int(blockIdx.x) * TOKENS, count = min(TOKENS, T - first);
    float* x = reinterpret_cast<float*>(dynamic_shared());  // (TOKENS, d)
    float *to = x + TOKENS * d, *partial = to + TOKENS * d;
    auto at = [&](int i) {
        return (size_t(first + i / d) * size_t(cache.H) + size_t(h)) * size_t(d) + size_t(i % d);
    };
    for (int i = int(threadIdx.x); i < count * d; i += int(blockDim.x)) x[i] = in[at(i)];
    __syncthreads();  // x is there
    block_product<TOKENS>(to, d, x, d, VALUES ? head.decode : head.decode_t, size_t(d), count,
                          VALUES ? head.width : d, d, partial);
    for (int i = int(threadIdx.x); i < count * d; i += int(blockDim.x)) out[at(i)] = to[i];
}

// ---- launchers ---------------------------------------------------------------------------------

template <int TOKENS>
static void launch_append(CudaBackend& gpu, const CacheLayer& cache, const float* k, const float* v,
                          int T) {
    dim3 grid(unsigned((T + TOKENS - 1) / TOKENS), unsigned(2 * cache.G),
              unsigned((cache.d + PRODUCT_PIECE - 1) / PRODUCT_PIECE));
    size_t floats = size_t(TOKENS) * size_t(cache.d + PRODUCT_PIECE + PRODUCT_BLOCK);
    for_dtype(cache.dtype, [&]<class E>(E) {
        launch(append_kernel<E, TOKENS>, grid, PRODUCT_BLOCK, floats * sizeof(float), gpu.queue,
               CacheView(cache), k, v, gpu.pos, T);
        if (whole_rows(cache)) return;
        launch(append_codes_kernel<E, TOKENS>, dim3(grid.x, grid.y), PRODUCT_BLOCK,
               size_t(TOKENS) * size_t(2 * cache.d + PRODUCT_BLOCK) * sizeof(float), gpu.queue,
               CacheView(cache), k, v, gpu.pos, T);
    });
}

void CudaBackend::append(const CacheLayer& cache, const float* k, const float* v,
                         const Step& step) {
    check(step.pos + step.T <= cache.capacity, "position %d does not fit a cache of %d",
          step.pos + step.T - 1, cache.capacity);
    check(cache.batch == 0 || step.T <= cache.batch,
          "%d tokens at once do not fit the rings of a cache for %d", step.T, cache.batch);
    if (step.T == 1)
        launch_append<1>(*this, cache, k, v, 1);
    else if (step.T > 1)
        launch_append<8>(*this, cache, k, v, step.T);
}

template <bool VALUES>
static void head_product(CudaBackend& gpu, float* out, const float* in, const CacheLayer& cache,
                         int T) {
    constexpr int TOKENS = 8;
    dim3 grid(unsigned((T + TOKENS - 1) / TOKENS), unsigned(cache.H));
    size_t floats = size_t(TOKENS) * size_t(2 * cache.d + PRODUCT_BLOCK);
    launch(head_product_kernel<TOKENS, VALUES>, grid, PRODUCT_BLOCK, floats * sizeof(float),
           gpu.queue, out, in, CacheView(cache), T);
}

std::string CudaBackend::plain_attention(const CacheLayer& cache) const {
    const char* slow = "attention on CUDA cores, several times slower than on tensor cores: ";
    if (exact) return "";
    if (cache.dtype == DType::F32) return std::string(slow) + "they take no --cache f32";
    if (!tensor_cores(*this, cache))
        return slow + format("they take heads of 64 and 128, not of %d", cache.d);
    bool one = tensor_splits_fit(*this, cache), many = tensor_tiles_fit(*this, cache);
    if (one && many) return "";
    return slow + format("a block's %zu KiB of shared memory do not hold the rows%s",
                         shared_limit >> 10, one ? " of several tokens" : many ? " of one" : "");
}

// One token: two launches, which turn queries and values themselves. More: q Dᵀ, attention, out D.
void CudaBackend::attend(float* out, const float* q, const float* rotation, const CacheLayer& cache,
                         const Step& step) {
    check(cache.d <= WIDEST_HEAD, "--backend cuda: heads of %d coordinates, expected at most %d",
          cache.d, WIDEST_HEAD);
    if (step.T == 1) return attend_one(*this, out, q, rotation, cache);
    if (step.T == 0) return;
    if (cache.rotated && cache.k[0].decode_t) {
        size_t n = size_t(step.T) * size_t(cache.H) * size_t(cache.d);
        float* latent = static_cast<float*>(scratch(Scratch::Queries, n * sizeof(float)));
        head_product<false>(*this, latent, q, cache, step.T);
        q = latent;
    }
    attend_tiles(*this, out, q, rotation, cache, step);
    if (cache.v[0].decode) head_product<true>(*this, out, out, cache, step.T);
}

}  // namespace stief
