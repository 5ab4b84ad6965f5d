// The cache's rows: append rotates, encodes and packs; queries in latent coordinates; values out of
// them; attend. Twin: src/backend/cpu/cache_rows.cpp.
#include "cache_rows.cuh"

#include <utility>

#include "append.cuh"
#include "attention.cuh"
#include "dispatch.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

constexpr int PRODUCT_BLOCK = 256;
constexpr int PLAIN_TOKENS = 32;

// c (count, d) into the stores of a head, at positions from s on; by the whole block. Codes by a warp a
// row.
template <class E, bool CODES>
__device__ __forceinline__ void store_heads(const EncoderTables& tables, const float* c, int s,
                                            int count, int d) {
    const CacheRows& head = tables.head;
    for (int n = 0; n < MOST_STORES; n++) {
        const RowStore& store = head.store[n];
        if (tables.kinds[n] != EncoderTables::WHOLE) continue;
        int width = elements_of(store);
        for (int i = int(threadIdx.x); i < count * width; i += int(blockDim.x))
            elements_at<E>(store, s + i / width)[i % width] =
                to_element<E>(c[i / width * d + i % width]);
    }
    int warps = int(blockDim.x) / WARP;
    for (int i = int(threadIdx.x) / WARP; CODES && i < count * MOST_STORES; i += warps) {
        int n = i % MOST_STORES, t = i / MOST_STORES;
        if (tables.kinds[n] == EncoderTables::CODES)
            RowEncoder<RowWidths::MOST / WARP>(tables.levels, tables.widths[n], head.store[n].format, c + t * d,
                       tables.weight)
                .template pack<E>(row_at(head.store[n], s + t), head.store[n].bytes);
    }
}

// Of a query head: q rotated, and q Dᵀ. Of a kv head's keys and of its values: rotated where that is
// kept, c = k E, and c into all of the head's stores, coordinates rounded, codes packed by a warp a row.
// grid (tiles of TOKENS tokens, queries + 2G), block 256. Shared: the tile of x, of c, and the slices'
// sums; how a head's rows are stored, with codes the encoder's tables. Reads E or Dᵀ once for each tile.
// Tiles of PLAIN_TOKENS are for whole rows that meet no basis.
template <class E, int TOKENS>
__global__ void __launch_bounds__(PRODUCT_BLOCK, TOKENS == PLAIN_TOKENS ? 6 : 2)
    append_kernel(CacheView cache, HeadsIn in, const int* pos, int T) {
    int h = int(blockIdx.y), d = cache.d, first = int(blockIdx.x) * TOKENS;
    int count = min(TOKENS, T - first), side = h < in.queries ? 0 : (h - in.queries) / cache.G;
    bool query = h < in.queries;
    int g = query ? h / (cache.H / cache.G) : (h - in.queries) % cache.G;
    const CacheRows& head = side ? cache.v(g) : cache.k(g);
    constexpr bool PLAIN = TOKENS == PLAIN_TOKENS;
    float* x = reinterpret_cast<float*>(dynamic_shared());  // (TOKENS, d)
    float *c = PLAIN ? x : x + TOKENS * d, *partial = c + TOKENS * d;
    size_t heads = size_t(query ? cache.H : cache.G), stride = heads * size_t(d);
    size_t at = size_t(first) * stride + size_t(query ? h : g) * size_t(d);
    const float* from = query ? in.q : side ? in.v : in.k;
    const float* M = PLAIN ? nullptr : !query ? head.encode : in.latent ? head.decode_t : nullptr;
    EncoderTables& tables =
        *reinterpret_cast<EncoderTables*>(PLAIN ? partial : partial + TOKENS * PRODUCT_BLOCK);
    if (!query) tables.fetch(head, !PLAIN);
    copy_async_commit();
    __syncthreads();  // the head's description is there
    if (!query) tables.describe(!PLAIN);
    let_next_begin();
    await_kernels();
    bool turns = in.rotation && (query || (side == 0 && cache.rotated));
    const float* angle = turns ? in.rotation + size_t(*pos + first) * size_t(d) : nullptr;
    load_heads(x, from + at, query && turns ? in.q + at : nullptr, stride, count, d, angle);

    if (query && !M) return;
    copy_async_wait<0>();
    __syncthreads();  // x is there, and the tables
    int n = head.width;
    if (!PLAIN && M) block_product<TOKENS>(c, d, x, d, M, size_t(d), count, d, n, partial);
    if (query) {
        for (int i = int(threadIdx.x); i < count * d; i += int(blockDim.x))
            in.latent[at + size_t(i / d) * stride + size_t(i % d)] = i % d < n ? c[i] : 0;
        return;
    }
    store_heads<E, !PLAIN>(tables, M ? c : x, *pos + first, count, d);
}

// out (T, H, d) ← x (T, H, d) D of each head's group: values out of their coordinates.
// grid (tiles of TOKENS tokens, H), block 256. Reads D once for each tile.
template <int TOKENS>
__global__ void decode_kernel(HeadsOut out, const float* in, CacheView cache, int T) {
    int h = int(blockIdx.y), d = cache.d;
    const CacheRows& head = cache.v(h / (cache.H / cache.G));
    int first = int(blockIdx.x) * TOKENS, count = min(TOKENS, T - first);
    float* x = reinterpret_cast<float*>(dynamic_shared());  // (TOKENS, d)
    float *to = x + TOKENS * d, *partial = to + TOKENS * d;
    for (int i = int(threadIdx.x); i < count * d; i += int(blockDim.x))
        x[i] = in[(size_t(first + i / d) * size_t(cache.H) + size_t(h)) * size_t(d) + size_t(i % d)];
    __syncthreads();  // x is there
    block_product<TOKENS>(to, d, x, d, head.decode, size_t(d), count, head.width, d, partial);
    for (int i = int(threadIdx.x); i < count * d; i += int(blockDim.x))
        out.put(size_t(first + i / d), h * d + i % d, to[i]);
}

// ---- launchers ---------------------------------------------------------------------------------

static void launch_append(CudaBackend& gpu, const CacheLayer& cache, const HeadsIn& in, int heads,
                          int T) {
    if (T == 1) return append_one(gpu, cache, in, heads);
    bool bases = cache.k[0].encode || cache.v[0].encode || cache.k[0].decode_t;
    for_dtype(cache.dtype, [&]<class E>(E) {
        auto run = [&]<int TOKENS>() {
            dim3 grid(unsigned((T + TOKENS - 1) / TOKENS), unsigned(heads));
            bool plain = TOKENS == PLAIN_TOKENS;
            size_t floats = size_t(TOKENS) * size_t(plain ? cache.d : 2 * cache.d + PRODUCT_BLOCK);
            size_t bytes = floats * sizeof(float) + sizeof(EncoderTables);
            launch_ahead(append_kernel<E, TOKENS>, grid, PRODUCT_BLOCK, bytes, gpu.queue,
                         CacheView(cache), in, gpu.pos, T);
        };
        bases || !whole_rows(cache) ? run.template operator()<8>()
                                    : run.template operator()<PLAIN_TOKENS>();
    });
}

static float* latent_memory(CudaBackend& gpu, const CacheLayer& cache, int T) {
    size_t n = size_t(T) * size_t(cache.H) * size_t(cache.d);
    return static_cast<float*>(gpu.scratch(CudaBackend::Scratch::Queries, n * sizeof(float)));
}

void CudaBackend::append(const CacheLayer& cache, float* q, float* k, const float* v,
                         const float* rotation, const Step& step) {
    check(step.pos + step.T <= cache.capacity, "position %d does not fit a cache of %d",
          step.pos + step.T - 1, cache.capacity);
    check(cache.batch == 0 || step.T <= cache.batch,
          "%d tokens at once do not fit the rings of a cache for %d", step.T, cache.batch);
    if (step.T < 1) return;
    HeadsIn in{q, nullptr, k, v, rotation, q ? cache.H : 0};
    if (q && cache.rotated && cache.k[0].decode_t)
        in.latent = latent_memory(*this, cache, step.T), turned = q;
    launch_append(*this, cache, in, in.queries + 2 * cache.G, step.T);
}

const float* latent_queries(CudaBackend& gpu, const float* q, const CacheLayer& cache, int T) {
    if (!cache.rotated || !cache.k[0].decode_t) return q;
    float* latent = latent_memory(gpu, cache, T);
    if (std::exchange(gpu.turned, nullptr) == q) return latent;
    launch_append(gpu, cache, {const_cast<float*>(q), latent, nullptr, nullptr, nullptr, cache.H},
                  cache.H, T);  // without a rotation q is not written
    return latent;
}

static void decode_values(CudaBackend& gpu, const HeadsOut& out, const float* in,
                          const CacheLayer& cache, int T) {
    constexpr int TOKENS = 8;
    dim3 grid(unsigned((T + TOKENS - 1) / TOKENS), unsigned(cache.H));
    size_t floats = size_t(TOKENS) * size_t(2 * cache.d + PRODUCT_BLOCK);
    launch(decode_kernel<TOKENS>, grid, PRODUCT_BLOCK, floats * sizeof(float), gpu.queue, out, in,
           CacheView(cache), T);
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

// One token: two launches. More: attention, and out of the values' coordinates.
void CudaBackend::attend(Operand out, const float* q, const float* rotation, const CacheLayer& cache,
                         const Step& step) {
    check(cache.d <= WIDEST_HEAD, "--backend cuda: heads of %d coordinates, expected at most %d",
          cache.d, WIDEST_HEAD);
    if (step.T == 0) return;
    q = latent_queries(*this, q, cache, step.T);
    if (step.T == 1) return attend_one(*this, out.data, q, rotation, cache);
    HeadsOut heads{out.data, cache.H * cache.d, rounds(out.meets, step.T)};
    if (!cache.v[0].decode) return attend_tiles(*this, heads, q, rotation, cache, step);
    size_t n = size_t(step.T) * size_t(cache.H) * size_t(cache.d);
    float* latent = static_cast<float*>(scratch(Scratch::Partials, n * sizeof(float)));
    attend_tiles(*this, {latent, cache.H * cache.d, false}, q, rotation, cache, step);
    decode_values(*this, heads, latent, cache, step.T);
}

}  // namespace stief
