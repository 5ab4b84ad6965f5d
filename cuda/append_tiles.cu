// Append of several tokens, by tiles: rotated, into latent coordinates, stored. append_one.cu has one token.
#include "append.cuh"
#include "attention.cuh"
#include "dispatch.cuh"
#include "tile_product.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

constexpr int TILE_BLOCK = 256, PLAIN_TOKENS = 32;
static_assert(CudaBackend::WIDEST_HEAD == 256);  // for_tiles has no wider one

struct PlainLayout {
    CacheRows* head;
    float* x;  // (PLAIN_TOKENS, d)  shared
    size_t bytes;

    __host__ __device__ __forceinline__ PlainLayout(char* memory, int d) {
        Carve carve{memory};
        head = carve.take<CacheRows>(), x = carve.take<float>(PLAIN_TOKENS * d);
        bytes = carve.bytes;
    }
};

// A pair (low, high) of a head, half its width apart, and the angle that it turns by.
struct Pair {
    float low = 0, high = 0, cos = 1, sin = 0;
    // angle: of this pair, sines half a head behind cosines; null: stays as it is
    __device__ __forceinline__ void read(const float* row, const float* angle, int half) {
        low = row[0], high = row[half];
        if (angle) cos = angle[0], sin = angle[half];
    }
    __device__ __forceinline__ void write(float* row, int half) const {
        row[0] = low, row[half] = high;
    }
};
constexpr int BATCH = 4;  // pairs that a thread reads before it writes any, maybe to where they were

// x (count, d) of shared memory ← rows `stride` apart, rotated where there is an angle (2, d/2) for the
// first of them; and back to where they were where `in_place`.
__device__ __forceinline__ void load_heads(float* x, const float* from, float* in_place,
                                           size_t stride, int count, int d, const float* angle) {
    int half = d / 2, all = count * half, threads = int(blockDim.x);
    for (int first = int(threadIdx.x); first < all; first += BATCH * threads) {
        Pair pair[BATCH];
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            int i = first + n * threads, t = i / half, j = i % half;
            if (i < all)
                pair[n].read(from + size_t(t) * stride + size_t(j),
                             angle ? angle + t * d + j : nullptr, half);
        }
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            int i = first + n * threads, t = i / half, j = i % half;
            if (i >= all) break;
            if (angle) turn_pair(pair[n].low, pair[n].high, pair[n].cos, pair[n].sin);
            pair[n].write(x + t * d + j, half);
            if (in_place) pair[n].write(in_place + size_t(t) * stride + size_t(j), half);
        }
    }
}

// Of a query head: q rotated. Of a kv head's keys and of its values: rotated where that is kept, and into all
// of the head's stores, which are whole rows and meet no basis.
// grid (tiles of PLAIN_TOKENS tokens, queries + 2G), block 256. Shared: the tile, the head's description.
template <class E>
__global__ void __launch_bounds__(TILE_BLOCK, 5)
    append_plain_kernel(CacheView cache, HeadsIn in, const int* pos, int T) {
    int h = int(blockIdx.y), d = cache.d, first = int(blockIdx.x) * PLAIN_TOKENS;
    int count = min(PLAIN_TOKENS, T - first), side = h < in.queries ? 0 : (h - in.queries) / cache.G;
    bool query = h < in.queries;
    int g = query ? h : (h - in.queries) % cache.G;
    PlainLayout own(dynamic_shared(), d);
    CacheRows& head = *own.head;
    float* x = own.x;
    if (!query) copy_words(&head, side ? &cache.v(g) : &cache.k(g), int(threadIdx.x), TILE_BLOCK);
    let_next_begin();
    await_kernels();
    size_t stride = size_t(query ? cache.H : cache.G) * size_t(d);
    size_t at = size_t(first) * stride + size_t(g) * size_t(d);
    bool turns = in.rotation && (query || (side == 0 && cache.rotated));
    load_heads(x, (query ? in.q : side ? in.v : in.k) + at, query && turns ? in.q + at : nullptr, stride,
               count, d, turns ? in.rotation + size_t(*pos + first) * size_t(d) : nullptr);
    if (query) return;
    __syncthreads();  // x is there, and the description
    int s = *pos + first;
    for (int n = 0; n < MOST_STORES; n++) {
        const RowStore& store = head.store[n];
        int width = store.data ? elements_of(store) : 0;
        for (int i = int(threadIdx.x); i < count * width; i += TILE_BLOCK)
            elements_at<E>(store, s + i / width)[i % width] =
                to_element<E>(x[i / width * d + i % width]);
    }
}

// x (count, d) of a tile ← heads' rows, as load_heads, less `mean` (d) if there is one; rotated ones less R_s
// μ.
template <int WIDEST>
__device__ __forceinline__ void load_tile(const TileProduct<WIDEST>& tile, const float* from,
                                          float* in_place, size_t stride, int count, int d,
                                          const float* angle, const float* mean) {
    constexpr int PAIRS = WIDEST / 2, TOGETHER = TileProduct<WIDEST>::THREADS / PAIRS;
    int half = d / 2, j = tile.tid % PAIRS;
    if (j >= half) {
        for (int t = tile.tid / PAIRS; 2 * j < tile.padded() && t < count; t += TOGETHER)
            tile.put(t, 2 * j, 0), tile.put(t, 2 * j + 1, 0);
        return;
    }
    float mean_low = mean ? mean[j] : 0, mean_high = mean ? mean[j + half] : 0;
    for (int first = tile.tid / PAIRS; first < count; first += BATCH * TOGETHER) {
        Pair pair[BATCH];
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            int t = first + n * TOGETHER;
            if (t < count)
                pair[n].read(from + size_t(t) * stride + size_t(j),
                             angle ? angle + t * d + j : nullptr, half);
        }
#pragma unroll
        for (int n = 0; n < BATCH && first + n * TOGETHER < count; n++) {
            int t = first + n * TOGETHER;
            float cos = pair[n].cos, sin = pair[n].sin, low = mean_low, high = mean_high;
            if (angle) turn_pair(pair[n].low, pair[n].high, cos, sin), turn_pair(low, high, cos, sin);
            tile.put(t, j, pair[n].low - low);
            tile.put(t, j + half, pair[n].high - high);
            if (in_place) pair[n].write(in_place + size_t(t) * stride + size_t(j), half);
        }
    }
}

// c (count, ·) of a tile into the stores of a head, a warp a row.
template <class E, int EACH>
__device__ __forceinline__ void store_tile(const EncoderTables& tables, const Levels& levels,
                                           const float* c, int stride, int s, int count) {
    const CacheRows& head = tables.head;
    constexpr int WARPS = TILE_BLOCK / WARP;
    int warp = __shfl_sync(~0u, int(threadIdx.x) / WARP, 0), lane = int(threadIdx.x) % WARP;
#pragma unroll 1
    for (int n = 0; n < MOST_STORES; n++) {
        const RowStore& store = head.store[n];
        if (tables.kinds[n] == EncoderTables::WHOLE)
            for (int t = warp; t < count; t += WARPS)
                for (int j = lane; j < elements_of(store); j += WARP)
                    elements_at<E>(store, s + t)[j] = to_element<E>(c[t * stride + j]);
        if (tables.kinds[n] != EncoderTables::CODES || warp >= count) continue;
        RowEncoder<EACH> encoder(levels, tables.widths[n], store.format, c + warp * stride,
                                 tables.weight);
#pragma unroll 1
        for (int t = warp; t < count; t += WARPS) {
            encoder.take(c + t * stride);
            encoder.template pack<E>(row_at(store, s + t), store.bytes);
        }
    }
}

// Of kv heads, with bases or codes: keys rotated where that is kept, c = (x − μ) E, a tile's product at
// once, and c into all of the head's stores. Rotated keys less R_s μ go to the stores of codes alone, and a
// third part of the grid has k E for those of whole rows.
// grid (tiles, 2G or 3G; those of values are nobody's where they are joint), block 256. Shared: the tile,
// in which c and the levels take the place of x, and the encoder's tables, which come before the kernels
// before this one are through. Reads E once for each tile; other blocks fill the time in which a piece
// comes, as registers are few.
template <class E, int WIDEST>
__global__ void __launch_bounds__(TILE_BLOCK, TileProduct<WIDEST>::BLOCKS)
    append_tiles_kernel(CacheView cache, HeadsIn in, const int* pos, int T) {
    using Tile = TileProduct<WIDEST>;
    int part = int(blockIdx.y) / cache.G, side = part == 1, g = int(blockIdx.y) % cache.G, d = cache.d;
    int first = int(blockIdx.x) * Tile::TOKENS, count = min(Tile::TOKENS, T - first);
    const CacheRows& head = side ? cache.v(g) : cache.k(g);
    bool turns = in.rotation && side == 0 && cache.rotated;
    bool comes_so = cache.rotated && !in.rotation;  // less its mean
    const float* mean = part == 2 || comes_so ? nullptr : head.mean;
    bool apart = head.mean && turns;  // keys' whole rows differ from the others
    if (part == 2 ? !apart : side && cache.joint) return await_kernels();
    Tile tile(dynamic_shared(), head.encode, d, d);
    EncoderTables& tables = *reinterpret_cast<EncoderTables*>(dynamic_shared() + Tile::BYTES);
    Levels* levels = reinterpret_cast<Levels*>(tile.behind_c());
    static_assert(sizeof(Levels) <= Tile::BEHIND_C);
    tables.fetch(head);
    __syncthreads();  // the head's description is there
    tables.describe(true);
    for (int n = int(threadIdx.x); apart && n < MOST_STORES; n += TILE_BLOCK)
        if (lies_whole(tables.head.store[n], d) != (part == 2)) tables.kinds[n] = EncoderTables::NONE;
    let_next_begin();
    await_kernels();
    size_t stride = size_t(cache.G) * size_t(d), at = size_t(first) * stride + size_t(g * d);
    load_tile(tile, (side ? in.v : in.k) + at, nullptr, stride, count, d,
              turns ? in.rotation + size_t(*pos + first) * size_t(d) : nullptr, mean);
    if (tile.M) {
        typename Tile::Sums sum;
        tile.template sums<false>(sum, count);
        __syncthreads();  // x has been read, c and the levels take its place
        tile.store(sum);
    }
    EncoderTables::fetch_levels(levels);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();  // c is there, and the levels
    store_tile<E, WIDEST / WARP>(tables, *levels, tile.c, Tile::C_STRIDE, *pos + first, count);
}

// The same of query heads: q rotated, and q Dᵀ. grid (tiles, H), block 256. Shared: the tile.
template <int WIDEST>
__global__ void __launch_bounds__(TILE_BLOCK, 2)
    turn_tiles_kernel(CacheView cache, HeadsIn in, const int* pos, int T) {
    using Tile = TileProduct<WIDEST>;
    int h = int(blockIdx.y), d = cache.d;
    int first = int(blockIdx.x) * Tile::TOKENS, count = min(Tile::TOKENS, T - first);
    const CacheRows& head = cache.k(h / (cache.H / cache.G));
    Tile tile(dynamic_shared(), in.latent ? head.decode_t : nullptr, d, d);
    if (tile.M) tile.fetch(0);
    int width = head.mean ? d : head.width;  // a turned mean has all coordinates
    let_next_begin();
    await_kernels();
    size_t stride = size_t(cache.H) * size_t(d), at = size_t(first) * stride + size_t(h * d);
    load_tile(tile, in.q + at, in.rotation ? in.q + at : nullptr, stride, count, d,
              in.rotation ? in.rotation + size_t(*pos + first) * size_t(d) : nullptr, nullptr);
    if (!tile.M) return;
    typename Tile::Sums sum;
    tile.template sums<true>(sum, count);
    tile.each(sum, [&](int t, int j, float a, float b) {
        if (t < count && j < d)
            *reinterpret_cast<float2*>(in.latent + at + size_t(t) * stride + size_t(j)) =
                make_float2(j < width ? a : 0, j + 1 < width ? b : 0);
    });
}

// ---- launchers ---------------------------------------------------------------------------------

static void append_plain(CudaBackend& gpu, const CacheLayer& cache, const HeadsIn& in, int T) {
    dim3 grid(unsigned((T + PLAIN_TOKENS - 1) / PLAIN_TOKENS),
              unsigned(in.queries + in.heads_of(cache)));
    size_t bytes = PlainLayout(nullptr, cache.d).bytes;
    for_dtype(cache.dtype, [&]<class E>(E) {
        launch_ahead(append_plain_kernel<E>, grid, TILE_BLOCK, bytes, gpu.queue, CacheView(cache), in,
                     gpu.pos, T);
    });
}

void append_tiles(CudaBackend& gpu, const CacheLayer& cache, const HeadsIn& in, int T) {
    bool bases = cache.k[0].encode || cache.v[0].encode || cache.k[0].decode_t;
    if (!bases && whole_rows(cache)) return append_plain(gpu, cache, in, T);
    for_tiles(cache.d, [&]<int WIDEST>() {
        using Tile = TileProduct<WIDEST>;
        unsigned tiles = unsigned((T + Tile::TOKENS - 1) / Tile::TOKENS);
        size_t bytes = Tile::BYTES;
        int parts = in.apart(cache) ? 3 : 2;
        if (in.k)
            for_dtype(cache.dtype, [&]<class E>(E) {
                launch_ahead(append_tiles_kernel<E, WIDEST>, dim3(tiles, unsigned(parts * cache.G)),
                             Tile::THREADS, bytes + sizeof(EncoderTables), gpu.queue, CacheView(cache),
                             in, gpu.pos, T);
            });
        if (in.queries)
            launch_ahead(turn_tiles_kernel<WIDEST>, dim3(tiles, unsigned(in.queries)), Tile::THREADS,
                         bytes, gpu.queue, CacheView(cache), in, gpu.pos, T);
    });
}

}  // namespace stief
