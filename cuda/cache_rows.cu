// The cache's rows: append rotates, encodes and packs; queries in latent coordinates; values out of
// them; attend. Twin: src/backend/cpu/cache_rows.cpp.
#include "cache_rows.cuh"

#include <utility>

#include "attention.cuh"
#include "dispatch.cuh"
#include "row_encoder.cuh"
#include "tile_product.cuh"

namespace stief {

// ---- kernels -----------------------------------------------------------------------------------

constexpr int PRODUCT_BLOCK = 256;
constexpr int PLAIN_TOKENS = 32;

// What a step's heads are on their way into the cache and attention.
struct HeadsIn {
    float* q;               // (T, H, d)  null: no queries
    float* latent;          // (T, H, d)  q in the keys' coordinates; null: not wanted
    const float *k, *v;     // (T, G, d)
    const float* rotation;  // null: nothing is rotated
    int queries;            // heads of q: H, or 0
};

// x (count, d) of shared memory ← rows `stride` apart, rotated where there is an angle (2, d/2) for the
// first of them; and back to where they were where `in_place`.
__device__ __forceinline__ void load_heads(float* x, const float* from, float* in_place,
                                           size_t stride, int count, int d, const float* angle) {
    int half = d / 2;
#pragma unroll 4
    for (int i = int(threadIdx.x); i < count * half; i += int(blockDim.x)) {
        int t = i / half, j = i % half;
        float a = from[size_t(t) * stride + size_t(j)], b = from[size_t(t) * stride + size_t(j + half)];
        if (angle) {
            float cos = angle[size_t(t) * size_t(d) + size_t(j)];
            float sin = angle[size_t(t) * size_t(d) + size_t(j + half)], low = a;
            a = low * cos - b * sin, b = b * cos + low * sin;
        }
        x[t * d + j] = a, x[t * d + j + half] = b;
        if (in_place)
            in_place[size_t(t) * stride + size_t(j)] = a,
            in_place[size_t(t) * stride + size_t(j + half)] = b;
    }
}

// What storing a head's rows reads again and again.
struct alignas(16) EncoderTables {
    CacheRows head;
    int kinds[MOST_STORES];  // NONE, WHOLE or CODES
    float weight[RowWidths::MOST];
    Levels levels;
    RowWidths widths[MOST_STORES];
    enum { NONE, WHOLE, CODES };

    // By the whole block, and waits for no kernel; a barrier must follow.
    __device__ void fill(const CacheRows& from) {
        int tid = int(threadIdx.x), threads = int(blockDim.x);
        copy_words(&head, &from, tid, threads);
        bool any = false;
        for (int i = 0; i < MOST_STORES; i++) {
            const RowStore& store = from.store[i];
            int kind = !store.data ? NONE : coded(store.format) ? CODES : WHOLE;
            if (tid == 0) kinds[i] = kind;
            if (kind == CODES) widths[i].fill(store.format, tid, threads);
            any |= kind == CODES;
        }
        if (!any) return;
        copy_words(&levels, &DEVICE_LEVELS, tid, threads);
        for (int i = tid; i < from.width; i += threads) weight[i] = from.weight ? from.weight[i] : 1;
    }
};

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
            RowEncoder(tables.levels, tables.widths[n], head.store[n].format, c + t * d,
                       tables.weight)
                .template pack<E>(row_at(head.store[n], s + t), head.store[n].bytes);
    }
}

// Of a query head: q rotated, and q Dᵀ. Of a kv head's keys and of its values: rotated where that is
// kept, c = k E, and c into all of the head's stores, coordinates rounded, codes packed by a warp a row.
// grid (tiles of TOKENS tokens, queries + 2G), block 256. Shared: the tile of x, of c, and the slices'
// sums; how a head's rows are stored, with codes the encoder's tables; and where `staged` the basis,
// which has come before the kernels before this one are through. Reads E or Dᵀ once for each tile: with
// one token the bytes are theirs, d²·4 a head. Tiles of PLAIN_TOKENS are for whole rows that meet no
// basis.
template <class E, int TOKENS>
__global__ void __launch_bounds__(PRODUCT_BLOCK, TOKENS == PLAIN_TOKENS ? 6 : 2)
    append_kernel(CacheView cache, HeadsIn in, const int* pos, int T, bool staged) {
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
    float* basis = reinterpret_cast<float*>(&tables + 1);  // (d, d)
    for (int i = int(threadIdx.x); M && staged && i < d * d / 4; i += int(blockDim.x))
        copy_async_16(basis + 4 * i, M + 4 * i, true);
    copy_async_commit();
    if (!query) tables.fill(head);
    let_next_begin();
    await_kernels();
    bool turns = in.rotation && (query || (side == 0 && cache.rotated));
    const float* angle = turns ? in.rotation + size_t(*pos + first) * size_t(d) : nullptr;
    load_heads(x, from + at, query && turns ? in.q + at : nullptr, stride, count, d, angle);

    if (query && !M) return;
    copy_async_wait<0>();
    __syncthreads();  // x is there, the tables, and the basis
    int n = head.width;
    if constexpr (!PLAIN) {
        if (M && staged)
            block_product<TOKENS>(c, d, x, d, basis, size_t(d), count, d, n, partial);
        else if (M)
            block_product<TOKENS>(c, d, x, d, M, size_t(d), count, d, n, partial);
    }
    if (query) {
        for (int i = int(threadIdx.x); i < count * d; i += int(blockDim.x))
            in.latent[at + size_t(i / d) * stride + size_t(i % d)] = i % d < n ? c[i] : 0;
        return;
    }
    store_heads<E, !PLAIN>(tables, M ? c : x, *pos + first, count, d);
}

// row[j …] ← four numbers, as far as they are of d, an even number.
__device__ __forceinline__ void put_4(float* row, int j, int d, const float (&x)[4]) {
    if (d % 4 == 0) {
        store_4(row + j, make_float4(x[0], x[1], x[2], x[3]));
    } else {
        *reinterpret_cast<float2*>(row + j) = make_float2(x[0], x[1]);
        if (j + 2 < d) *reinterpret_cast<float2*>(row + j + 2) = make_float2(x[2], x[3]);
    }
}

// x (count, d) of a tile ← heads' rows, as load_heads.
template <int WIDEST>
__device__ __forceinline__ void load_tile(const TileProduct<WIDEST>& tile, const float* from,
                                          float* in_place, size_t stride, int count, int d,
                                          const float* angle) {
    constexpr int PAIRS = WIDEST / 2, TOGETHER = TileProduct<WIDEST>::THREADS / PAIRS;
    int half = d / 2, j = tile.tid % PAIRS;
    if (j >= half) {
        for (int t = tile.tid / PAIRS; 2 * j < tile.whole_pieces() && t < count; t += TOGETHER)
            tile.x[t * tile.STRIDE + 2 * j] = tile.x[t * tile.STRIDE + 2 * j + 1] = 0;
        return;
    }
    constexpr int BATCH = 4;  // tokens read before any is written: `in_place` may be where they are
    for (int first = tile.tid / PAIRS; first < count; first += BATCH * TOGETHER) {
        float a[BATCH], b[BATCH], cos[BATCH], sin[BATCH];
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            int t = first + n * TOGETHER;
            a[n] = b[n] = sin[n] = 0, cos[n] = 1;
            if (t >= count) continue;
            const float* row = from + size_t(t) * stride + size_t(j);
            a[n] = row[0], b[n] = row[half];
            if (!angle) continue;
            const float* turn = angle + size_t(t) * size_t(d) + size_t(j);
            cos[n] = turn[0], sin[n] = turn[half];
        }
#pragma unroll
        for (int n = 0; n < BATCH && first + n * TOGETHER < count; n++) {
            int t = first + n * TOGETHER;
            float* x = tile.x + t * tile.STRIDE + j;
            float low = angle ? a[n] * cos[n] - b[n] * sin[n] : a[n];
            float high = angle ? b[n] * cos[n] + a[n] * sin[n] : b[n];
            x[0] = low, x[half] = high;
            if (!in_place) continue;
            float* back = in_place + size_t(t) * stride + size_t(j);
            back[0] = low, back[half] = high;
        }
    }
}

// c (count, ·) of a tile into the stores of a head, as store_heads; a warp a row.
template <class E, int EACH>
__device__ __forceinline__ void store_tile(const EncoderTables& tables, const float* c, int stride,
                                           int s, int count) {
    const CacheRows& head = tables.head;
    constexpr int WARPS = PRODUCT_BLOCK / WARP;
    int warp = __shfl_sync(~0u, int(threadIdx.x) / WARP, 0), lane = int(threadIdx.x) % WARP;
#pragma unroll 1
    for (int n = 0; n < MOST_STORES; n++) {
        const RowStore& store = head.store[n];
        if (tables.kinds[n] == EncoderTables::WHOLE)
            for (int t = warp; t < count; t += WARPS)
                for (int j = lane; j < elements_of(store); j += WARP)
                    elements_at<E>(store, s + t)[j] = to_element<E>(c[t * stride + j]);
        if (tables.kinds[n] != EncoderTables::CODES || warp >= count) continue;
        RowEncoder<EACH> encoder(tables.levels, tables.widths[n], store.format, c + warp * stride,
                                 tables.weight);
#pragma unroll 1
        for (int t = warp; t < count; t += WARPS) {
            encoder.take(c + t * stride);
            encoder.template pack<E>(row_at(store, s + t), store.bytes);
        }
    }
}

// append_kernel for several tokens, with bases or codes: of kv heads, a tile's product at once.
// grid (tiles, 2G), block 256. Shared: the tile and the encoder's tables. Reads E once for each tile; its
// first piece and the tables come before the kernels before this one are through.
template <class E, int WIDEST>
__global__ void __launch_bounds__(PRODUCT_BLOCK, WIDEST == 128 ? 3 : 2)
    append_tiles_kernel(CacheView cache, HeadsIn in, const int* pos, int T) {
    using Tile = TileProduct<WIDEST>;
    int side = int(blockIdx.y) / cache.G, g = int(blockIdx.y) % cache.G, d = cache.d;
    int first = int(blockIdx.x) * Tile::TOKENS, count = min(Tile::TOKENS, T - first);
    const CacheRows& head = side ? cache.v(g) : cache.k(g);
    Tile tile(reinterpret_cast<float*>(dynamic_shared()), head.encode, d, d);
    EncoderTables& tables = *reinterpret_cast<EncoderTables*>(tile.x + Tile::FLOATS);
    if (tile.M) tile.fetch(0);
    tables.fill(head);
    let_next_begin();
    await_kernels();
    size_t stride = size_t(cache.G) * size_t(d), at = size_t(first) * stride + size_t(g * d);
    bool turns = in.rotation && side == 0 && cache.rotated;
    load_tile(tile, (side ? in.v : in.k) + at, nullptr, stride, count, d,
              turns ? in.rotation + size_t(*pos + first) * size_t(d) : nullptr);
    auto multiply = [&]<int R>() {
        float sum[R][4] = {};
        tile.sums(sum);
        __syncthreads();  // x has been read, c takes its place
#pragma unroll
        for (int r = 0; r < R; r++)
            if (tile.token(r) < count)
                store_4(tile.x + tile.token(r) * Tile::STRIDE + tile.column,
                        make_float4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
    };
    if (tile.M && count > Tile::FEW) multiply.template operator()<Tile::MOST>();
    else if (tile.M) multiply.template operator()<2>();
    __syncthreads();  // c is there, and the tables
    store_tile<E, WIDEST / WARP>(tables, tile.x, Tile::STRIDE, *pos + first, count);
}

// The same of query heads: q rotated, and q Dᵀ. grid (tiles, H), block 256. Shared: the tile.
template <int WIDEST>
__global__ void __launch_bounds__(PRODUCT_BLOCK, 2)
    turn_tiles_kernel(CacheView cache, HeadsIn in, const int* pos, int T) {
    using Tile = TileProduct<WIDEST>;
    int h = int(blockIdx.y), d = cache.d;
    int first = int(blockIdx.x) * Tile::TOKENS, count = min(Tile::TOKENS, T - first);
    const CacheRows& head = cache.k(h / (cache.H / cache.G));
    Tile tile(reinterpret_cast<float*>(dynamic_shared()), in.latent ? head.decode_t : nullptr, d, d);
    if (tile.M) tile.fetch(0);
    int width = head.width;
    let_next_begin();
    await_kernels();
    size_t stride = size_t(cache.H) * size_t(d), at = size_t(first) * stride + size_t(h * d);
    load_tile(tile, in.q + at, in.rotation ? in.q + at : nullptr, stride, count, d,
              in.rotation ? in.rotation + size_t(*pos + first) * size_t(d) : nullptr);
    if (!tile.M) return;
    auto multiply = [&]<int R>() {
        float sum[R][4] = {};
        tile.sums(sum);
        float* to = in.latent + at + size_t(tile.group) * stride;
#pragma unroll
        for (int r = 0; r < R; r++, to += Tile::GROUPS * stride) {
            if (tile.token(r) >= count || tile.column >= d) continue;
            for (int j = 0; j < 4; j++)
                if (tile.column + j >= width) sum[r][j] = 0;
            put_4(to, tile.column, d, sum[r]);
        }
    };
    if (count > Tile::FEW) multiply.template operator()<Tile::MOST>();
    else multiply.template operator()<2>();
}

// out (T, H, d) ← x (T, H, d) D of each head's group: values out of their coordinates.
// grid (tiles, H), block 256. Shared: the tile. Reads D once for each tile.
template <int WIDEST>
__global__ void __launch_bounds__(PRODUCT_BLOCK, 2)
    decode_tiles_kernel(HeadsOut out, const float* in, CacheView cache, int T) {
    using Tile = TileProduct<WIDEST>;
    int h = int(blockIdx.y), d = cache.d;
    int first = int(blockIdx.x) * Tile::TOKENS, count = min(Tile::TOKENS, T - first);
    const CacheRows& head = cache.v(h / (cache.H / cache.G));
    int width = head.width;
    Tile tile(reinterpret_cast<float*>(dynamic_shared()), head.decode, width, d);
    if (width > 0) tile.fetch(0);
    constexpr int TOGETHER = Tile::THREADS / WIDEST;
    int j = tile.tid % WIDEST, whole = tile.whole_pieces();
#pragma unroll 8
    for (int t = tile.tid / WIDEST; j < whole && t < count; t += TOGETHER) {
        size_t row = size_t(first + t) * size_t(cache.H) + size_t(h);
        tile.x[t * Tile::STRIDE + j] = j < width ? in[row * size_t(d) + size_t(j)] : 0;
    }
    auto multiply = [&]<int R>() {
        float sum[R][4] = {};
        tile.sums(sum);
#pragma unroll
        for (int r = 0; r < R; r++) {
            int t = tile.token(r), left = d - tile.column;
            if (t >= count || left <= 0) continue;
            size_t to = size_t(first + t);
            out.put_pair(to, h * d + tile.column, sum[r][0], sum[r][1]);
            if (left > 2) out.put_pair(to, h * d + tile.column + 2, sum[r][2], sum[r][3]);
        }
    };
    if (count > Tile::FEW) multiply.template operator()<Tile::MOST>();
    else multiply.template operator()<2>();
}

// ---- launchers ---------------------------------------------------------------------------------

// Calls f.operator()<WIDEST>() for the width of tiles that heads of d coordinates take.
template <class F>
static void for_tiles(int d, const F& f) {
    if (d <= 64) f.template operator()<64>();
    else if (d <= 128) f.template operator()<128>();
    else f.template operator()<CudaBackend::WIDEST_HEAD>();
}

// Several tokens, bases or codes.
static void launch_append_tiles(CudaBackend& gpu, const CacheLayer& cache, const HeadsIn& in, int T) {
    for_tiles(cache.d, [&]<int WIDEST>() {
        using Tile = TileProduct<WIDEST>;
        unsigned tiles = unsigned((T + Tile::TOKENS - 1) / Tile::TOKENS);
        size_t bytes = Tile::FLOATS * sizeof(float);
        if (in.k)
            for_dtype(cache.dtype, [&]<class E>(E) {
                launch_ahead(append_tiles_kernel<E, WIDEST>, dim3(tiles, unsigned(2 * cache.G)),
                             Tile::THREADS, bytes + sizeof(EncoderTables), gpu.queue, CacheView(cache),
                             in, gpu.pos, T);
            });
        if (in.queries)
            launch_ahead(turn_tiles_kernel<WIDEST>, dim3(tiles, unsigned(in.queries)), Tile::THREADS,
                         bytes, gpu.queue, CacheView(cache), in, gpu.pos, T);
    });
}

// One token: the basis comes ahead where a block has room for it.
static void launch_append(CudaBackend& gpu, const CacheLayer& cache, const HeadsIn& in, int heads,
                          int T) {
    constexpr size_t MOST_STAGED = 64 << 10;  // leaves room for a block of the product before
    bool bases = cache.k[0].encode || cache.v[0].encode || cache.k[0].decode_t;
    if (T > 1 && (bases || !whole_rows(cache)))
        return launch_append_tiles(gpu, cache, in, T);
    size_t square = size_t(cache.d) * size_t(cache.d) * sizeof(float);
    size_t one = size_t(2 * cache.d + PRODUCT_BLOCK) * sizeof(float) + sizeof(EncoderTables);
    bool staged = bases && T == 1 && square <= MOST_STAGED && cache.d % 4 == 0 &&
                  square + one <= gpu.shared_limit;
    for_dtype(cache.dtype, [&]<class E>(E) {
        auto run = [&]<int TOKENS>() {
            dim3 grid(unsigned((T + TOKENS - 1) / TOKENS), unsigned(heads));
            bool plain = TOKENS == PLAIN_TOKENS;
            size_t floats = size_t(TOKENS) * size_t(plain ? cache.d : 2 * cache.d + PRODUCT_BLOCK);
            size_t bytes = floats * sizeof(float) + sizeof(EncoderTables) + (staged ? square : 0);
            launch_ahead(append_kernel<E, TOKENS>, grid, PRODUCT_BLOCK, bytes, gpu.queue,
                         CacheView(cache), in, gpu.pos, T, staged);
        };
        T == 1 ? run.template operator()<1>() : run.template operator()<PLAIN_TOKENS>();
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
    for_tiles(cache.d, [&]<int WIDEST>() {
        using Tile = TileProduct<WIDEST>;
        dim3 grid(unsigned((T + Tile::TOKENS - 1) / Tile::TOKENS), unsigned(cache.H));
        launch(decode_tiles_kernel<WIDEST>, grid, Tile::THREADS, Tile::FLOATS * sizeof(float), gpu.queue,
               out, in, CacheView(cache), T);
    });
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
