// Prefill attention on tensor cores: rows of 16 bits or of codes, heads of 64 or 128. How tiles of the
// cache come to a block, whose warps each do with them what attention_flash_rows.cuh says.
//
// A block has 64 query rows, 16 a warp; a tile has 64 keys. Rows of codes are unpacked once a tile by
// the whole block. Keys before rotation are
// rebuilt and rotated once a tile, 16 a warp, by the angle of their 16's first position plus the
// distance from it. Positions are taken by stretches, as attention_tiles.cpp says, with two tiles in
// flight where they fit.
#pragma once
#include <algorithm>

#include "attention_flash_rows.cuh"

namespace stief {

template <class E, int D, bool ROTATED>
struct Flash : FlashRows<E, D> {
    using Tiles = RowTiles<E, D, FLASH_KEYS>;
    using Rows = FlashRows<E, D>;
    using Rows::lane, Rows::g, Rows::t, Rows::TILES;
    static constexpr int WIDE = D + 8;
    // What a block shares but for its rows.
    struct Shared {
        StretchTables<D> tables;
        LevelTables levels;
        float rho[2][FLASH_KEYS];  // scales of a tile's keys, of its values
    };
    Shared& shared;
    const float* rotation;
    const Rebuild<E, D>& basis;
    E *rebuilt;                      // shared (KEYS, WIDE), where keys are rebuilt
    char* memory;                    // shared: tiles of what is codes, then stages
    Tiles k, v;                      // of the stretch at hand
    int warp;

    static __host__ __device__ size_t tile_bytes(const RowStore& keys, const RowStore& values) {
        return Tiles::tile_bytes(keys) + Tiles::tile_bytes(values);
    }
    static __host__ __device__ size_t stage_bytes(const RowStore& keys, const RowStore& values) {
        return Tiles::stage_bytes(keys) + Tiles::stage_bytes(values);
    }
    // `stages` of the oldest rows, most of all, and of the others one at least.
    static size_t row_bytes(const CacheRows& keys, const CacheRows& values, const Seen& seen,
                            int stages) {
        size_t most = 0;
        for (const Stretch& one : seen) {
            const RowStore &k = keys.store[one.k], &v = values.store[one.v];
            size_t count = &one == &seen.oldest() ? size_t(stages) : 1;
            most = std::max(most, tile_bytes(k, v) + count * stage_bytes(k, v));
        }
        return most;
    }
    static __host__ __device__ size_t rebuild_bytes(int width) {
        return ROTATED ? 0 : FLASH_KEYS * WIDE * sizeof(E) + Rebuild<E, D>::shared_bytes(width);
    }

    __device__ __forceinline__ Flash(Shared& all, const float* angles, const Rebuild<E, D>& rebuild,
                                     char* own)
        : shared(all),
          rotation(angles),
          basis(rebuild),
          k{all.tables.shape[0], all.tables.group[0], 0},
          v{all.tables.shape[1], all.tables.group[1], 0} {
        rebuilt = reinterpret_cast<E*>(own);
        memory = own + (ROTATED ? 0 : FLASH_KEYS * WIDE * sizeof(E));
        warp = int(threadIdx.x) / WARP;
    }

    // rebuilt ← the tile's keys, rotated to their positions, in scales.
    __device__ __forceinline__ void rebuild(const E* latents, int first, int count) {
        constexpr int HALF = D / 2;
        int row = STEP * warp;
        const float* from = rotation + size_t(first + (row < count ? row : 0)) * D;
        float rho[2] = {1, 1};
        for (int i = 0; k.shape.groups && i < 2; i++) rho[i] = shared.rho[0][row + g + 8 * i];
#pragma unroll 1
        for (int c = 0; c < HALF; c += 16) {
            float lo[2][4], hi[2][4];
            basis.keys(lo, hi, latents, k, rho, row, c);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                int column = c + 8 * n + 2 * t;
                float2 cos0 = load_pair(from + column), sin0 = load_pair(from + HALF + column);
#pragma unroll
                for (int i = 0; i < 2; i++) {  // keys g, g + 8
                    const float* by = basis.angles + (g + 8 * i) * basis.STRIDE + column;
                    float2 cos1 = load_pair(by), sin1 = load_pair(by + HALF);
                    float cx = cos0.x * cos1.x - sin0.x * sin1.x;
                    float sx = sin0.x * cos1.x + cos0.x * sin1.x;
                    float cy = cos0.y * cos1.y - sin0.y * sin1.y;
                    float sy = sin0.y * cos1.y + cos0.y * sin1.y;
                    float *x = lo[n] + 2 * i, *y = hi[n] + 2 * i;
                    E* to = rebuilt + (row + g + 8 * i) * WIDE + column;
                    *reinterpret_cast<uint32_t*>(to) =
                        pack2<E>(x[0] * cx - y[0] * sx, x[1] * cy - y[1] * sy);
                    *reinterpret_cast<uint32_t*>(to + HALF) =
                        pack2<E>(y[0] * cx + x[0] * sx, y[1] * cy + x[1] * sy);
                }
            }
        }
        __syncthreads();  // the keys are whole
    }

    // s ← q · k̃, for rows that are there.
    __device__ __forceinline__ void score(float (&s)[TILES][4], const E* keys, int first,
                                          int count) {
#pragma unroll
        for (int n = 0; n < TILES; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
        if constexpr (!ROTATED) {
            rebuild(keys, first, count);
            Rows::score_columns(s, rebuilt, WIDE, 0, D);
        } else {
            if (k.shape.groups) {
                Rows::score_columns(s, keys, WIDE, k.shape.elements, k.shape.columns);
                Rows::by_scales(s, shared.rho[0]);
            }
            Rows::score_columns(s, keys, k.stride(), 0, k.shape.elements);
        }
    }

    // ---- stretches

    // A stretch begins: its memory; then, once the tables are there, this thread's copies.
    __device__ __forceinline__ void clear(const RowStore& keys, const RowStore& values, int bytes) {
        // Columns that nobody writes are zero, and rows of codes that are not there: a product must
        // not meet what is no number.
        bool zero = coded(keys.format) || coded(values.format) || elements_of(keys) % 16 ||
                    elements_of(values) % 16;
        for (int i = int(threadIdx.x); zero && i < bytes / 16; i += FLASH_BLOCK)
            reinterpret_cast<uint4*>(memory)[i] = make_uint4(0, 0, 0, 0);
    }

    // One side of a tile that has arrived: its levels and scales.
    __device__ __forceinline__ void unpack(const Tiles& rows, int side, const char* from, int first,
                                           int count) {
        if (!rows.shape.groups) return;
        int i = int(threadIdx.x);
        rows.unpack(reinterpret_cast<E*>(memory + (side ? k.shape.tile : 0)), from, first, count,
                    shared.levels, i, FLASH_BLOCK);
        if (i < FLASH_KEYS)
            shared.rho[side][i] = i < count ? rows.scale(from, first, i) : 1;
    }

    // The tile of positions first … first + count − 1.
    __device__ __forceinline__ void add_tile(const Stretch& one, const char* keys, int first,
                                             int count, bool masked) {
        const char* values = keys + k.shape.stage;
        if (k.shape.groups || v.shape.groups) {
            unpack(k, 0, keys, first, count);
            unpack(v, 1, values, first, count);
            __syncthreads();  // the tiles are whole
        }
        float s[TILES][4];
        score(s, k.read(keys, reinterpret_cast<const E*>(memory)), first, count);
        Rows::softmax(s, one, first, count, masked);
        const E* read = v.read(values, reinterpret_cast<const E*>(memory + k.shape.tile));
        Rows::add_columns(s, read, v.stride(), 0, v.shape.elements);
        if (!v.shape.groups) return;
        Rows::by_scales(s, shared.rho[1]);
        Rows::add_columns(s, read, v.stride(), v.shape.elements, v.shape.columns);
    }

    // Positions begin … end − 1, which lie one behind the other; all tokens see those from all0 to
    // all1 − 1. As many tiles in flight as memory holds.
    __device__ __forceinline__ void run(const Stretch& one, int begin, int end, int all0, int all1,
                                        int bytes) {
        int tiles = k.shape.tile + v.shape.tile, stage = k.shape.stage + v.shape.stage;
        bool two = tiles + 2 * stage <= bytes;
        char* stages = memory + tiles;
        auto stage_of = [&](int first) {
            return stages + (two ? (first - begin) / FLASH_KEYS % 2 * stage : 0);
        };
        auto copy = [&](int first) {
            if (first < end) {
                char* to = stage_of(first);
                int count = min(FLASH_KEYS, end - first), i = int(threadIdx.x);
                k.begin(to, first, count, i, FLASH_BLOCK);
                v.begin(to + k.shape.stage, first, count, i, FLASH_BLOCK);
            }
            copy_async_commit();
        };
        if (two) copy(begin);
        for (int first = begin; first < end; first += FLASH_KEYS) {
            copy(two ? first + FLASH_KEYS : first);
            if (two)
                copy_async_wait<1>();
            else
                copy_async_wait<0>();
            __syncthreads();  // every thread's copies of this tile are there
            int count = min(FLASH_KEYS, end - first);
            add_tile(one, stage_of(first), first, count, first < all0 || first + count > all1);
            __syncthreads();  // the tile was read
        }
    }
};

}  // namespace stief
