// Packed rows made whole, keys rebuilt and rotated, or given back R_s μ E, joint values made each head's own,
// once for all tiles of queries that meet them:
// attention_tiles_whole.cu reads them as it reads whole ones. A coordinate is scale · step · level or an
// element, zero beyond a row's own; it, or the rotated key that comes of them, is rounded to the cache's own
// type.
#include <algorithm>

#include "attention.cuh"
#include "coded_tile.cuh"
#include "tile_product.cuh"

namespace stief {

constexpr int EXPAND_BLOCK = 256, EXPAND_ROWS = 64;

// ---- kernels -----------------------------------------------------------------------------------

template <class E>
__device__ __forceinline__ uint32_t pack_finite(float x, float y) {
    constexpr float MOST = std::is_same_v<E, f16> ? 65504 : 3e38f;
    return pack2<E>(fminf(fmaxf(x, -MOST), MOST), fminf(fmaxf(y, -MOST), MOST));
}

// Eight levels + 128, a byte each, by what they count in, as elements that are all finite.
template <class E>
__device__ __forceinline__ void put_levels(E* to, uint2 levels, float by) {
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t two = (i < 2 ? levels.x : levels.y) >> i % 2 * 16;
        float x = by * float(int(two & 255) - 128), y = by * float(int(two >> 8 & 255) - 128);
        pair[i] = pack_finite<E>(x, y);
    }
    reinterpret_cast<uint2*>(to)[0] = make_uint2(pair[0], pair[1]);  // at a multiple of 4
    reinterpret_cast<uint2*>(to)[1] = make_uint2(pair[2], pair[3]);
}

// What a block knows of its rows' format.
template <int D>
struct ExpandTables {
    LevelTables levels;
    CodeGroup group[D / ROW_GROUP];
};

// grid (tiles of 64 positions, keys and values of each stretch, kv heads), block 256: a thread has a
// group of codes. Reads each row once and writes 2 D bytes for it, which is the bound. Shared: 1 KB.
template <class E, int D>
__global__ void __launch_bounds__(EXPAND_BLOCK)
    expand_rows_kernel(ExpandedRows to, CacheView cache, const int* pos, int T) {
    constexpr int PER = D / ROW_GROUP;
    int head = int(blockIdx.z), g = to.g0 + head, n = int(blockIdx.y) / 2, side = int(blockIdx.y) % 2;
    const Seen& seen = cache.seen(g);
    if (n >= seen.count) return;
    const Stretch& one = seen.stretch[n];
    const RowStore& store = side ? cache.v(g).store[one.v] : cache.k(g).store[one.k];
    int pos0 = *pos, last = pos0 + T - 1, tid = int(threadIdx.x);
    int from = int(blockIdx.x) * EXPAND_ROWS, s = one.begin_for(pos0) + from;
    int count = min(EXPAND_ROWS, one.end_for(last) - s);
    bool rebuilt = side ? cache.joint : !cache.rotated || cache.k(g).mean;
    if (rebuilt || lies_whole(store, D) || count <= 0) return;

    auto& tables = *reinterpret_cast<ExpandTables<D>*>(dynamic_shared());
    int groups = groups_of(store.format), elements = elements_of(store);
    tables.levels.fill(tid, EXPAND_BLOCK);
    if (tid < groups) tables.group[tid] = CodeGroup::of(store.format, int(sizeof(E)), tid);
    __syncthreads();  // the tables are there
    size_t ahead = to.each * size_t(head) + size_t(from) +
                   expanded_ahead(seen, cache.k(g), cache.v(g), cache, pos0, last, n, side);
    E* rows = static_cast<E*>(to.memory) + ahead * D;
    int lane = tid % PER;
    for (int row = tid / PER; row < count; row += EXPAND_BLOCK / PER) {
        const char* packed = row_at(store, s + row);
        E* whole = rows + row * D;
        if (lane < groups) {
            const CodeGroup group = tables.group[lane];
            float by = group.step * scale_of(uint8_t(packed[store.bytes - 1]));
            put_levels(whole + elements + ROW_GROUP * lane,
                       levels_of(tables.levels, group, packed + group.byte), by);
        }
        for (int j = lane; j < elements; j += PER)  // at any address
            memcpy(whole + j, packed + size_t(j) * sizeof(E), sizeof(E));
        for (int j = elements + ROW_GROUP * groups + 4 * lane; j < D; j += 4 * PER)
            *reinterpret_cast<uint2*>(whole + j) = make_uint2(0, 0);
    }
}

// put(row, j − first, x) of coordinates j = first … first + columns − 1 of `count` rows from position s on,
// zero beyond a row's own.   group: of all that a row has
template <class E, int PER, class Put>
__device__ __forceinline__ void unpack_columns(const CodeGroup* group, const LevelTables& tables,
                                               const RowStore& store, int s, int count, int first,
                                               int columns, const Put& put) {
    int groups = groups_of(store.format), elements = elements_of(store), tid = int(threadIdx.x);
    int lane = tid % PER, end = first + columns, first_group = max(0, first - elements) / ROW_GROUP;
    for (int row = tid / PER; row < count; row += EXPAND_BLOCK / PER) {
        const char* packed = row_at(store, s + row);
        for (int n = first_group + lane; n < groups && elements + ROW_GROUP * n < end; n += PER) {
            const CodeGroup one = group[n];
            float by = one.step * scale_of(uint8_t(packed[store.bytes - 1]));
            uint2 levels = levels_of(tables, one, packed + one.byte);
#pragma unroll
            for (int i = 0; i < ROW_GROUP; i++) {
                uint32_t four = i < 4 ? levels.x : levels.y;
                int j = elements + ROW_GROUP * n + i;
                if (j >= first && j < end)
                    put(row, j - first, by * float(int(four >> i % 4 * 8 & 255) - 128));
            }
        }
        for (int j = first + lane; j < min(elements, end); j += PER) {  // at any address
            E one;
            memcpy(&one, packed + size_t(j) * sizeof(E), sizeof(E));
            put(row, j - first, to_float(one));
        }
        for (int j = max(first, elements + ROW_GROUP * groups) + lane; j < end; j += PER)
            put(row, j - first, 0);
    }
}
template <class E, int D, class Put>
__device__ __forceinline__ void unpack_keys(const ExpandTables<D>& tables, const RowStore& store, int s,
                                            int count, const Put& put) {
    unpack_columns<E, D / ROW_GROUP>(tables.group, tables.levels, store, s, count, 0, D, put);
}

// x (count, D) of a tile ← R_s μ of positions s ….
template <int D>
__device__ __forceinline__ void turn_mean(const TileProduct<D>& tile, const float* mean,
                                          const float* angle, int count) {
    constexpr int HALF = D / 2;
    for (int i = tile.tid; i < count * HALF; i += EXPAND_BLOCK) {
        int row = i / HALF, j = i % HALF;
        float low = mean[j], high = mean[j + HALF];
        turn_pair(low, high, angle[row * D + j], angle[row * D + j + HALF]);
        tile.put(row, j, low), tile.put(row, j + HALF, high);
    }
}

// Keys before rotation: μ + c D, rotated to their positions. Rotated ones that are less R_s μ: c + R_s μ E.
// grid (tiles of positions, stretches, kv heads), block 256. Shared: a tile, 1 KB of tables. Reads D once
// (E of rotated ones) for a tile of 64 positions, or of 128 where heads have 64; 2 D² flops a key, six times
// over.
template <class E, int D, bool ROTATED>
__global__ void __launch_bounds__(EXPAND_BLOCK, TileProduct<D>::BLOCKS)
    rebuild_keys_kernel(ExpandedRows to, CacheView cache, const float* rotation, const int* pos, int T) {
    using Tile = TileProduct<D>;
    constexpr int HALF = D / 2, PAIRS = HALF / 2;
    static_assert(Tile::THREADS == EXPAND_BLOCK);
    int head = int(blockIdx.z), g = to.g0 + head, n = int(blockIdx.y);
    const Seen& seen = cache.seen(g);
    if (n >= seen.count) return;
    const Stretch& one = seen.stretch[n];
    const CacheRows& keys = cache.k(g);
    const RowStore& store = keys.store[one.k];
    if (ROTATED && (!keys.mean || lies_whole(store, D))) return;
    int pos0 = *pos, last = pos0 + T - 1, from = int(blockIdx.x) * Tile::TOKENS;
    int s = one.begin_for(pos0) + from, count = min(Tile::TOKENS, one.end_for(last) - s);
    if (count <= 0) return;

    Tile tile(dynamic_shared(), ROTATED ? keys.encode : keys.decode, ROTATED ? D : keys.width, D);
    auto& tables = *reinterpret_cast<ExpandTables<D>*>(dynamic_shared() + Tile::BYTES);
    tables.levels.fill(tile.tid, EXPAND_BLOCK);
    if (tile.tid < groups_of(store.format))
        tables.group[tile.tid] = CodeGroup::of(store.format, int(sizeof(E)), tile.tid);
    __syncthreads();  // the tables are there
    if (ROTATED)
        turn_mean(tile, keys.mean, rotation + size_t(s) * D, count);
    else
        unpack_keys<E>(tables, store, s, count, [&](int row, int j, float x) { tile.put(row, j, x); });
    if (tile.M) {
        typename Tile::Sums sum;
        tile.template sums<false>(sum, count);
        __syncthreads();  // the coordinates have been read, keys take their place
        tile.store(sum);
    }
    __syncthreads();  // the keys are there
    if (ROTATED) {
        unpack_keys<E>(tables, store, s, count,
                       [&](int row, int j, float x) { tile.c[row * Tile::C_STRIDE + j] += x; });
        __syncthreads();  // and what their codes say
    }
    E* rows = static_cast<E*>(to.memory);
    rows += (to.each * size_t(head) + size_t(from) +
             expanded_ahead(seen, keys, cache.v(g), cache, pos0, last, n, 0)) * D;
    for (int i = tile.tid; i < count * PAIRS; i += EXPAND_BLOCK) {
        int row = i / PAIRS, j = i % PAIRS * 2;
        const float* x = tile.c + row * Tile::C_STRIDE + j;
        const float* angle = rotation + size_t(s + row) * D + j;
        float2 a = *reinterpret_cast<const float2*>(x), b = *reinterpret_cast<const float2*>(x + HALF);
        uint32_t* key = reinterpret_cast<uint32_t*>(rows + size_t(row) * D + j);
        if (ROTATED) {
            key[0] = pack_finite<E>(a.x, a.y), key[HALF / 2] = pack_finite<E>(b.x, b.y);
            continue;
        }
        if (const float* mean = keys.mean) {
            a.x += mean[j], a.y += mean[j + 1];
            b.x += mean[j + HALF], b.y += mean[j + HALF + 1];
        }
        float2 cos = *reinterpret_cast<const float2*>(angle);
        float2 sin = *reinterpret_cast<const float2*>(angle + HALF);
        key[0] = pack2<E>(a.x * cos.x - b.x * sin.x, a.y * cos.y - b.y * sin.y);
        key[HALF / 2] = pack2<E>(b.x * cos.x + a.x * sin.x, b.y * cos.y + a.y * sin.y);
    }
}

// Joint values made a head's own: c D. grid (tiles of positions, stretches, kv heads), block 256. Shared: a
// tile, 5 KB of tables. Reads D once for a tile; 2 r d flops a value and head, six times over, and unpacks
// each row once a head.
template <class E, int D>
__global__ void __launch_bounds__(EXPAND_BLOCK, 2)
    rebuild_values_kernel(ExpandedRows to, CacheView cache, const int* pos, int T) {
    using Tile = TileProduct<D>;
    using Tables = ExpandTables<MOST_KEPT>;
    int head = int(blockIdx.z), g = to.g0 + head, n = int(blockIdx.y);
    const Seen& seen = cache.seen(g);
    if (n >= seen.count) return;
    const Stretch& one = seen.stretch[n];
    const CacheRows& values = cache.v(g);
    const RowStore& store = values.store[one.v];
    int pos0 = *pos, last = pos0 + T - 1, from = int(blockIdx.x) * Tile::TOKENS;
    int s = one.begin_for(pos0) + from, count = min(Tile::TOKENS, one.end_for(last) - s);
    if (count <= 0) return;

    Tile tile(dynamic_shared(), values.decode, kept_of(store.format), D, D);
    auto& tables = *reinterpret_cast<Tables*>(dynamic_shared() + Tile::BYTES);
    tables.levels.fill(tile.tid, EXPAND_BLOCK);
    for (int i = tile.tid; i < groups_of(store.format); i += EXPAND_BLOCK)
        tables.group[i] = CodeGroup::of(store.format, int(sizeof(E)), i);
    typename Tile::Sums sum;  // whose first barrier orders the tables
    tile.sums_by_pieces(sum, count, [&](int first) {
        unpack_columns<E, D / ROW_GROUP>(tables.group, tables.levels, store, s, count, first, tile.padded(),
                                         [&](int row, int j, float x) { tile.put(row, j, x); });
    });
    E* rows = static_cast<E*>(to.memory);
    rows += (to.each * size_t(head) + size_t(from) +
             expanded_ahead(seen, cache.k(g), values, cache, pos0, last, n, 1)) * D;
    tile.each(sum, [&](int row, int j, float a, float b) {
        if (row < count) *reinterpret_cast<uint32_t*>(rows + size_t(row) * D + j) = pack_finite<E>(a, b);
    });
}

// ---- launchers ---------------------------------------------------------------------------------

ExpandedRows expanded_rows(const CudaBackend& gpu, const CacheLayer& cache, const Step& step) {
    ExpandedRows rows;
    int last = step.pos + step.T - 1;
    for (size_t g = 0; g < size_t(cache.G); g++)
        rows.each = std::max(rows.each,
                             expanded_ahead(cache.seen[g], cache.k[g], cache.v[g], CacheView(cache),
                                            step.pos, last, cache.seen[g].count, 0));
    size_t bytes = rows.each * size_t(cache.d) * size_of(cache.dtype);
    rows.heads = bytes ? int(std::min(size_t(cache.G), gpu.most_expanded / bytes)) : cache.G;
    if (cache.joint || less_turned_means(cache)) rows.heads = std::max(rows.heads, 1);  // no other way
    return rows;
}

void expand_rows(CudaBackend& gpu, ExpandedRows& rows, const float* rotation, const CacheLayer& cache,
                 const Step& step) {
    int stretches = 0, heads = std::min(rows.heads, cache.G - rows.g0);
    for (const Seen& seen : cache.seen) stretches = std::max(stretches, seen.count);
    size_t bytes = rows.each * size_t(cache.d) * size_of(cache.dtype);
    rows.memory = gpu.scratch(CudaBackend::Scratch::Rows, size_t(rows.heads) * bytes);
    auto grid = [&](int tile, int count) {
        return dim3(unsigned((step.pos + step.T + tile - 1) / tile), unsigned(count), unsigned(heads));
    };
    for_tensor_rows(cache, [&]<class E, int D>() {
        launch(expand_rows_kernel<E, D>, grid(EXPAND_ROWS, 2 * stretches), EXPAND_BLOCK,
               sizeof(ExpandTables<D>), gpu.queue, rows, CacheView(cache), gpu.pos, step.T);
        using Tile = TileProduct<D>;
        if (cache.joint)
            launch(rebuild_values_kernel<E, D>, grid(Tile::TOKENS, stretches), EXPAND_BLOCK,
                   Tile::BYTES + sizeof(ExpandTables<MOST_KEPT>), gpu.queue, rows, CacheView(cache), gpu.pos,
                   step.T);
        auto rebuild = [&](auto kernel) {
            launch(kernel, grid(Tile::TOKENS, stretches), EXPAND_BLOCK,
                   Tile::BYTES + sizeof(ExpandTables<D>), gpu.queue, rows, CacheView(cache), rotation,
                   gpu.pos, step.T);
        };
        if (!cache.rotated) rebuild(rebuild_keys_kernel<E, D, false>);
        else if (less_turned_means(cache)) rebuild(rebuild_keys_kernel<E, D, true>);
    });
}

}  // namespace stief
