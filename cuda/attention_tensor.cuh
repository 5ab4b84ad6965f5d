// Parts of attention on tensor cores: rows of the cache on their way to shared memory, fragments,
// and keys rebuilt and rotated. D: the head width; E: the rows' type of 16 bits; g = lane / 4, t =
// lane % 4.
//
// Rows lie in shared memory `stride` elements apart: whole fragments of 16 columns, and 8 more,
// which put the eight rows of a matrix into different banks. Columns beyond a row's own are zero.
// Rows of codes are unpacked there; a stretch of positions has one format of keys and one of values.
#pragma once
#include "attention.cuh"
#include "coded_tile.cuh"

namespace stief {

constexpr int STEP = 16;  // keys that a warp takes at once: the rows of one fragment

__host__ __device__ constexpr int stride_of(int width) {
    return (width + 15) / 16 * 16 + 8;
}

// ---- fragments ---------------------------------------------------------------------------------

// a (16, 16) ← rows r … r + 15, columns c … c + 15.
template <class E>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const E* rows, int stride, int r, int c) {
    int lane = int(threadIdx.x) % WARP;
    load_matrix_x4(a, rows + (r + lane % 16) * stride + c + lane / 16 * 8);
}

// a (16, 16) ← the transpose of rows r … r + 15, columns c … c + 15: columns are the fragment's
// rows.
template <class E>
__device__ __forceinline__ void load_a_transposed(uint32_t (&a)[4], const E* rows, int stride,
                                                  int r, int c) {
    int lane = int(threadIdx.x) % WARP, i = lane / 8;
    load_matrix_x4_transposed(a, rows + (r + i / 2 * 8 + lane % 8) * stride + c + i % 2 * 8);
}

// b[0…1], b[2…3] (16, 8) each ← rows r … r + 15 and columns from c and from c + apart on.
template <class E>
__device__ __forceinline__ void load_b_pair(uint32_t (&b)[4], const E* rows, int stride, int r,
                                            int c, int apart) {
    int lane = int(threadIdx.x) % WARP, i = lane / 8;
    load_matrix_x4_transposed(b, rows + (r + i % 2 * 8 + lane % 8) * stride + c + i / 2 * apart);
}

template <class E>
__device__ __forceinline__ void mma_half(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[4], int half) {
    const uint32_t two[2] = {b[2 * half], b[2 * half + 1]};
    mma_16x8x16<E>(d, a, two);
}

__device__ __forceinline__ float2 load_pair(const float* x) {
    return *reinterpret_cast<const float2*>(x);
}

// ---- rows --------------------------------------------------------------------------------------

// The first position from s on whose row does not lie behind the one before it.
__device__ __forceinline__ int run_end(const RowStore& store, int s) {
    if (store.ring == 0) return INT_MAX;
    return s < store.fixed ? store.fixed : s + store.ring - (s - store.fixed) % store.ring;
}

// How the keys or the values of a stretch lie, and how so many threads copy them. In shared memory:
// read where it is needed, as registers are few. Columns: [0, elements) elements, [elements,
// columns) levels, to be multiplied by their group's step and the row's scale, and beyond them
// anything finite; where there are no codes, elements are whole fragments, zero beyond the row's
// own.
//
// Rows of 20 elements by 32 threads: copies of 4 elements, 5 a row. Thread 13 begins in row 13 / 5 = 2 (13 ·
// over >> 16) with element 4 · (13 % 5) = 12. 32 copies on are 6 rows and 2 copies: its next is in row 8 at
// element 12 + 8 = 20, which is row 9, element 0.
struct RowShape {
    const char* data;
    int bytes, elements, columns;
    int groups, lanes;         // of codes; log2 of lanes a row that take them apart. 0: no codes
    int width, each, rows_on;  // of rows of elements: elements; of one copy; rows from a thread's
    int c_on;                  //   copy to its next, and elements
    int per, over;             // copies of a row; 2^16 / that, rounded up
    int tile, stage;           // bytes

    __device__ static RowShape of(const RowStore& store, int threads, size_t tile, size_t stage) {
        RowShape shape;
        int width = elements_of(store), groups = groups_of(store.format), lanes = 0;
        while (1 << lanes < groups) lanes++;
        shape.data = static_cast<const char*>(store.data), shape.bytes = store.bytes;
        shape.elements = groups ? width : (width + 15) / 16 * 16;
        shape.columns = shape.elements + ROW_GROUP * groups;
        shape.groups = groups, shape.lanes = lanes;
        shape.width = width, shape.each = width % 8 ? 4 : 8;
        int per = max(1, width / shape.each);
        shape.per = per, shape.over = (65535 + per) / per;
        shape.rows_on = threads / per, shape.c_on = threads % per * shape.each;
        shape.tile = int(tile), shape.stage = int(stage);
        return shape;
    }
};

// The keys or the values of a stretch, in tiles of ROWS positions: copied as they lie to a stage of
// shared memory, from where rows of elements are read as they are and rows of codes unpacked to a
// tile (ROWS, WIDE). All of it by a number of threads of which this is number i.
template <class E, int D, int ROWS>
struct RowTiles {
    static constexpr int WIDE = D + 8;
    const RowShape& shape;
    const CodeGroup* group;  // (D / 8)
    int ahead;               // slots − positions, in this run

    // A stage of all rows of a tile, or of so many.
    static __host__ __device__ size_t stage_bytes(const RowStore& store, int rows = ROWS) {
        if (!coded(store.format))
            return size_t(rows * stride_of(elements_of(store))) * sizeof(E);
        // up to 15 bytes before the first row, up to 15 after the last, a word that is read beyond
        return size_t(rows * store.bytes + 30) / 16 * 16 + 16;
    }
    static __host__ __device__ size_t tile_bytes(const RowStore& store) {
        return coded(store.format) ? size_t(ROWS * WIDE) * sizeof(E) : 0;
    }

    __device__ __forceinline__ void enter_run(const RowStore& store, int s) {
        ahead = store.ring && s >= store.fixed
                    ? store.fixed + (s - store.fixed) % store.ring - s
                    : 0;
    }
    __device__ __forceinline__ const char* row_of(int s) const {
        return shape.data + size_t(s + ahead) * size_t(shape.bytes);
    }
    __device__ __forceinline__ int stride() const {
        return shape.groups ? WIDE : shape.columns + 8;
    }

    // Begins to copy positions s … s + count − 1 of as many as `rows`; rows of elements from there on
    // become zero.
    __device__ __forceinline__ void begin(char* stage, int s, int count, int i, int threads,
                                          int rows = ROWS) const {
        const char* from = row_of(s);
        if (shape.groups) {
            int lead = int(reinterpret_cast<uintptr_t>(from) % 16);
            int left = lead + count * shape.bytes - 16 * i;
            stage += 16 * i, from += 16 * i - lead;
#pragma unroll 1
            for (; left > 0; left -= 64 * threads, stage += 64 * threads, from += 64 * threads)
#pragma unroll
                for (int at = 0; at < 64 * threads; at += 16 * threads)
                    if (at < left) copy_async_16(stage + at, from + at, true);
            return;
        }
        E* to = reinterpret_cast<E*>(stage);
        const E* first = reinterpret_cast<const E*>(from);
        int stride = shape.columns + 8, width = shape.width, each = shape.each;
        int rows_on = shape.rows_on, c_on = shape.c_on, y = i * shape.over >> 16;
        if (width == 0) return;
#pragma unroll 1
        for (int x = (i - y * shape.per) * each; y < rows;) {
            bool there = y < count;
            const E* source = first + (there ? y * width + x : 0);
            if (each == 8)
                copy_async_16(to + y * stride + x, source, there);
            else
                copy_async_8(to + y * stride + x, source, there);
            y += rows_on, x += c_on;
            if (x >= width) x -= width, y++;
        }
    }
    // A stage that such copies arrived in, as coded rows lie there.
    __device__ __forceinline__ const char* codes_at(const char* stage, int s) const {
        return stage + reinterpret_cast<uintptr_t>(row_of(s)) % 16;
    }
    // Rows of elements where they are; rows of codes once unpack() has been there.
    __device__ __forceinline__ const E* read(const char* stage, const E* tile) const {
        return shape.groups ? tile : reinterpret_cast<const E*>(stage);
    }
    __device__ __forceinline__ void unpack(E* tile, const char* stage, int s, int count,
                                           const LevelTables& levels, int i, int threads) const {
        unpack_tile<E>(tile, WIDE, codes_at(stage, s), shape.bytes, shape.elements, shape.groups,
                       shape.lanes, group, levels, count, i, threads);
    }
    // ρ of a row of codes, the last byte.
    __device__ __forceinline__ float scale(const char* stage, int s, int row_of_tile) const {
        return scale_of(uint8_t(codes_at(stage, s)[(row_of_tile + 1) * shape.bytes - 1]));
    }
    // Δ of a column; 1 of elements and of what is not kept.
    __device__ __forceinline__ float step(int column) const {
        int one = (column - shape.elements) / ROW_GROUP;
        return column >= shape.elements && one < shape.groups ? group[one].step : 1;
    }
};

// What a block knows of the rows of a stretch, in shared memory.
template <int D>
struct StretchTables {
    CodeGroup group[2][D / ROW_GROUP];  // of keys, of values
    RowShape shape[2];

    // For copies by so many threads of as many rows. By `by` threads of which this is number i; a
    // barrier must follow.
    template <class Tiles>
    __device__ void fill(const RowStore& keys, const RowStore& values, int threads, int element,
                         int rows, int i, int by) {
        for (; i < 2 * D / ROW_GROUP; i += by) {
            int side = i / (D / ROW_GROUP), one = i % (D / ROW_GROUP);
            const RowStore& store = side ? values : keys;
            if (one < groups_of(store.format))
                group[side][one] = CodeGroup::of(store.format, element, one);
            if (one == 0)
                shape[side] = RowShape::of(store, threads, Tiles::tile_bytes(store),
                                           Tiles::stage_bytes(store, rows));
        }
    }
};

// The columns that a part of a fragment has, of those from `from` to `end`: all, or zero instead.
__device__ __forceinline__ uint32_t within(uint32_t x, int column, int from, int end) {
    return column >= from && column < end ? x : 0;
}

// ---- keys before rotation ----------------------------------------------------------------------

// R_pᵀ x of pairs (j, j + half), (j + 1, …), (j + 8, …) and (j + 9, …), as fragments b[0] of the columns
// from j on and b[1] of those from j + half on.   angle: cosines, sines of p
template <class E>
__device__ __forceinline__ void turned_pairs(uint32_t (&b)[2][2], const float* x, const float* angle,
                                             int half, int j) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float2 low = load_pair(x + j + 8 * i), high = load_pair(x + half + j + 8 * i);
        float2 cos = load_pair(angle + j + 8 * i), sin = load_pair(angle + half + j + 8 * i);
        b[0][i] = pack2<E>(low.x * cos.x + high.x * sin.x, low.y * cos.y + high.y * sin.y);
        b[1][i] = pack2<E>(high.x * cos.x - low.x * sin.x, high.y * cos.y - low.y * sin.y);
    }
}

// What a block keeps to rebuild keys: the rotations of 0 … 15 positions, the keys' mean and, for the
// stretch at hand, D as E, its rows multiplied by their columns' steps.
template <class E, int D>
struct Rebuild {
    static constexpr int STRIDE = D + 8;
    E* decode;      // shared (width, rounded up to 16, STRIDE)
    float* angles;  // shared (STEP, STRIDE)  cosines, sines
    __device__ __forceinline__ float* mean() const { return angles + STEP * STRIDE; }  // shared (D)

    static __host__ __device__ size_t basis_bytes(int rows) { return size_t(rows) * STRIDE * sizeof(E); }
    static __host__ __device__ size_t shared_bytes(int width) {
        return basis_bytes((width + 15) / 16 * 16) + (STEP * STRIDE + D) * sizeof(float);
    }
    // By the whole block, with cp.async: to be waited for, and a barrier must follow.
    __device__ char* fetch_angles(char* memory, const CacheView& cache, const CacheRows& k,
                                  const float* rotation) {
        constexpr int FOURS = D / 4;  // copies of a row
        angles = reinterpret_cast<float*>(memory);
        decode = reinterpret_cast<E*>(mean() + D);
        const float* from = k.mean ? k.mean : rotation;
        for (int i = int(threadIdx.x); i < FOURS; i += int(blockDim.x))
            copy_async_16(mean() + 4 * i, from + 4 * i, k.mean);
        for (int i = int(threadIdx.x); i < STEP * FOURS; i += int(blockDim.x)) {
            size_t row = size_t(min(i / FOURS, cache.capacity - 1));
            copy_async_16(angles + i / FOURS * STRIDE + i % FOURS * 4, rotation + row * D + i % FOURS * 4,
                          true);
        }
        copy_async_commit();
        return memory + shared_bytes(k.width);
    }
    template <class Tiles>
    __device__ void fill(const CacheRows& k, const Tiles& rows) const {
        int width = rows.shape.groups ? rows.shape.columns : rows.shape.width;
        fill_rows(k, (rows.shape.columns + 15) / 16 * 16, [&](int row, int& column, float& step) {
            column = row, step = rows.step(row);
            return row < width;
        });
    }
    // decode (rows, STRIDE) ← rows of D, of each by source(row, column, step) which and what it is
    // multiplied by; zero where that says so. By the whole block.
    template <class F>
    __device__ __forceinline__ void fill_rows(const CacheRows& k, int rows, const F& source) const {
        constexpr int FOURS = D / 4, BATCH = 4;  // BATCH loads are on their way before the first is used
        int all = rows * FOURS, threads = int(blockDim.x);
        for (int first = int(threadIdx.x); first < all; first += BATCH * threads) {
            uint4 x[BATCH];
            float step[BATCH];
#pragma unroll
            for (int n = 0; n < BATCH; n++) {
                int i = min(first + n * threads, all - 1), column = 0;
                bool there = source(i / FOURS, column, step[n]);
                x[n] = load_16(k.decode + (there ? column * D : 0) + i % FOURS * 4);
                if (!there) step[n] = 0;
            }
#pragma unroll
            for (int n = 0; n < BATCH && first + n * threads < all; n++) {
                int i = first + n * threads;
                const float by = step[n];
                *reinterpret_cast<uint2*>(decode + i / FOURS * STRIDE + i % FOURS * 4) =
                    make_uint2(pack2<E>(by * __uint_as_float(x[n].x), by * __uint_as_float(x[n].y)),
                               pack2<E>(by * __uint_as_float(x[n].z), by * __uint_as_float(x[n].w)));
            }
        }
    }
    // lo, hi (16 keys, 8) += the products of latents (16 keys, 16) with rows from `row` on of D, columns
    // c … c + 7 and D/2 + c ….
    __device__ __forceinline__ void add(float (&lo)[4], float (&hi)[4], const uint32_t (&latents)[4],
                                        int row, int c) const {
        uint32_t b[4];
        load_b_pair(b, decode, STRIDE, row, c, D / 2);
        mma_half<E>(lo, latents, b, 0);
        mma_half<E>(hi, latents, b, 1);
    }
    // lo[n], hi[n] += the mean's columns c + 8n … and D/2 + c + 8n … for n of 0 and 1.
    __device__ __forceinline__ void add_mean(float (*lo)[4], float (*hi)[4], int c) const {
        const float* from = mean() + c + int(threadIdx.x) % 4 * 2;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            float2 a = load_pair(from + 8 * n), b = load_pair(from + D / 2 + 8 * n);
            lo[n][0] += a.x, lo[n][1] += a.y, lo[n][2] += a.x, lo[n][3] += a.y;
            hi[n][0] += b.x, hi[n][1] += b.y, hi[n][2] += b.x, hi[n][3] += b.y;
        }
    }
    // The same of a warp's 16 keys, which begin at row r of latents, columns from … end − 1 of them,
    // and of columns of D N times: lo[n] and hi[n] from 8n on.
    template <int N>
    __device__ __forceinline__ void product(float (&lo)[N][4], float (&hi)[N][4], const E* latents,
                                            int stride, int r, int c, int from, int end) const {
        int t = int(threadIdx.x) % 4;
        for (int k = from / 16 * 16; k < end; k += 16) {
            uint32_t a[4];
            load_a(a, latents, stride, r, k);
            if (k < from || k + 16 > end)
#pragma unroll
                for (int i = 0; i < 4; i++) a[i] = within(a[i], k + i / 2 * 8 + 2 * t, from, end);
            for (int n = 0; n < N; n++) add(lo[n], hi[n], a, k, c + 8 * n);
        }
    }
    // The 16 keys of a tile in whole, ρ (2): scales of keys g, g + 8.
    template <class Tiles>
    __device__ __forceinline__ void keys(float (&lo)[2][4], float (&hi)[2][4], const E* latents,
                                         const Tiles& rows, const float (&rho)[2], int r,
                                         int c) const {
        for (int n = 0; n < 2; n++)
            for (int i = 0; i < 4; i++) lo[n][i] = hi[n][i] = 0;
        if (rows.shape.groups) {
            product(lo, hi, latents, rows.stride(), r, c, rows.shape.elements, rows.shape.columns);
            for (int n = 0; n < 2; n++)
                for (int i = 0; i < 4; i++) lo[n][i] *= rho[i / 2], hi[n][i] *= rho[i / 2];
        }
        product(lo, hi, latents, rows.stride(), r, c, 0, rows.shape.elements);
        add_mean(lo, hi, c);
    }
};

}  // namespace stief
