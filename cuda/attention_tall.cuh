// One block of prefill attention over whole rows: what it knows, how tiles of rows come to it, and what
// each warp does with them (Dao 2023, FlashAttention-2). attention_flash.cuh is the same for any rows,
// with half the query rows a warp.
#pragma once
#include "attention_tensor.cuh"

namespace stief {

constexpr int TALL_WARPS = 4, TALL_BLOCK = TALL_WARPS * WARP;
constexpr int TALL_ROWS = TALL_WARPS * 32, TALL_KEYS = 64;
constexpr float NOTHING = -1e30f;  // largest score of a row that has met no key: 2^(−∞ − that) = 0

// What a block knows of its rows and of the cache, in shared memory: registers are few.
struct alignas(16) TallBlock {
    CacheRows k, v;
    Seen seen;
    int first, last;       // positions of its first and its last token
    const char* expanded[MOST_STORES + 1][2];  // a stretch's keys, values, as if from position 0 on;
                                               //   null: they are read where they lie
    int place[TALL_ROWS];  // t H + h of a row's query and output; −1: there is none
    int2 sees[TALL_ROWS];  // a row's positions of a stretch: first, end
    float max[2][2][TALL_BLOCK];  // of each thread's rows: of scores, or more than those less SCORE_SLACK

    // By the whole block; a barrier must follow.
    template <class E, int D>
    __device__ void fill(const CacheView& cache, const ExpandedRows& rows, const int* pos, int T,
                         int tokens, int heads, int chunks) {
        int each = min(rows.heads, cache.G - rows.g0) * chunks, m = cache.H / cache.G;
        int row = int(threadIdx.x), h0 = int(blockIdx.x) % chunks * heads;
        int g = rows.g0 + int(blockIdx.x) % each / chunks;
        int t0 = (int(gridDim.x) - 1 - int(blockIdx.x)) / each * tokens;  // the longest go first
        heads = min(heads, m - h0), tokens = min(tokens, T - t0);
        copy_words(&k, &cache.k(g), row, TALL_BLOCK), copy_words(&v, &cache.v(g), row, TALL_BLOCK);
        copy_words(&seen, &cache.seen(g), row, TALL_BLOCK);
        place[row] = row < tokens * heads
                         ? (t0 + row / heads) * cache.H + g * m + h0 + row % heads
                         : -1;
        for (int i = 0; i < 4; i++) max[i / 2][i % 2][row] = NOTHING;
        if (row == 0) first = *pos + t0, last = first + tokens - 1;
        if (row < 2 * cache.seen(g).count)
            expanded[row / 2][row % 2] =
                find_expanded<E, D>(cache, rows, g, *pos, T, row / 2, row % 2);
    }
    template <class E, int D>
    __device__ static const char* find_expanded(const CacheView& cache, const ExpandedRows& rows,
                                                int g, int pos, int T, int stretch, int side) {
        const CacheRows &keys = cache.k(g), &values = cache.v(g);
        const Stretch& one = cache.seen(g).stretch[stretch];
        const RowStore& store = side ? values.store[one.v] : keys.store[one.k];
        if (!rows.memory || InPlace(cache)(store, side)) return nullptr;
        size_t ahead = rows.each * size_t(g - rows.g0) +
                       expanded_ahead(cache.seen(g), keys, values, cache, pos, pos + T - 1, stretch, side);
        return static_cast<const char*>(rows.memory) +
               (ptrdiff_t(ahead) - one.begin_for(pos)) * ptrdiff_t(D * sizeof(E));
    }
    // Of a stretch's keys or values: the row of position s, and the first one not behind it.
    template <class E, int D>
    __device__ const E* row(int stretch, int side, int s) const {
        const char* all = expanded[stretch][side];
        if (!all) return elements_at<E>(store(stretch, side), s);
        return reinterpret_cast<const E*>(all) + ptrdiff_t(s) * D;
    }
    __device__ int end(int stretch, int side, int s) const {
        return expanded[stretch][side] ? INT_MAX : run_end(store(stretch, side), s);
    }
    __device__ const RowStore& store(int stretch, int side) const {
        const Stretch& one = seen.stretch[stretch];
        return side ? v.store[one.v] : k.store[one.k];
    }
    // What a row sees of a stretch, from its own thread; H: heads of a token. A block's barrier follows.
    __device__ void enter(int stretch, const int* pos, int H) {
        const Stretch& one = seen.stretch[stretch];
        int row = int(threadIdx.x), token = place[row] < 0 ? last : *pos + place[row] / H;
        bool none = place[row / WARP * WARP] < 0;  // a warp without rows
        __syncwarp();  // the warp's lanes have met the last stretch
        sees[row] = none ? make_int2(0, 0) : make_int2(one.begin_for(token), one.end_for(token));
    }
};
static_assert(TALL_ROWS == TALL_BLOCK);

// One warp's 32 query rows in registers, over tiles of 64 keys in shared memory: each fragment of keys
// and of values serves two products. Queries come from shared memory, once a tile. Row 16 m + 8 i + g
// has, after every tile,
//     max ≥ max s − SCORE_SLACK,  sum = Σ 2^(s − max) (this lane's keys),  acc = Σ 2^(s − max) c
template <class E, int D, int STAGES>
struct TallRows {
    static constexpr int FRAGMENTS = D / 16, TILES = TALL_KEYS / 8, STRIDE = D + 8;
    static constexpr int SIDE = TALL_KEYS * STRIDE, STAGE = 2 * SIDE;  // elements: keys, then values
    static_assert(STAGES == 1 || STAGES == 2);  // tiles: one at hand and, of two, the next on its way
    static constexpr int PER = D / 8, ROWS_ON = TALL_BLOCK / PER;  // copies of a row; rows of one turn
    static constexpr size_t BYTES =
        size_t(TALL_ROWS * STRIDE + STAGES * STAGE) * sizeof(E) + sizeof(TallBlock);
    TallBlock& block;     // shared, and behind it
    E *queries, *stages;  // (TALL_ROWS, STRIDE), (STAGES, 2, TALL_KEYS, STRIDE)
    int stage = 0;
    float acc[2][2 * FRAGMENTS][4], sum[2][2];

    __device__ __forceinline__ explicit TallRows(TallBlock& own) : block(own) {
        queries = reinterpret_cast<E*>(&block + 1);
        stages = queries + TALL_ROWS * STRIDE;
#pragma unroll
        for (int m = 0; m < 2; m++) {
            sum[m][0] = sum[m][1] = 0;
#pragma unroll
            for (int n = 0; n < 2 * FRAGMENTS; n++)
                for (int i = 0; i < 4; i++) acc[m][n][i] = 0;
        }
    }
    // This warp's rows of q (T, H, D)
    __device__ __forceinline__ void load_queries(const float* q) {
        constexpr int FOURS = D / 4, ON = WARP / FOURS;
        int lane = int(threadIdx.x) % WARP, warp = int(threadIdx.x) / WARP;
        float scale = LOG2_E / sqrtf(float(D));
#pragma unroll 8
        for (int i = 0; i < 32; i += ON) {
            int row = 32 * warp + i + lane / FOURS, column = 4 * (lane % FOURS);
            int place = block.place[row];
            float4 x = make_float4(0, 0, 0, 0);
            if (place >= 0) x = load_4(q + size_t(place) * D + size_t(column));
            store_4(queries + row * STRIDE + column,
                    make_float4(scale * x.x, scale * x.y, scale * x.z, scale * x.w));
        }
    }

    // The tile of the rows from k and v on begins to come, `count` of them and zeros behind.
    __device__ __forceinline__ void begin(int to, const E* k, const E* v, int count) {
        unsigned i = thread_again(), row = i / PER;
        E* at = stages + to * STAGE + row * STRIDE + i % PER * 8;
        k += i * 8, v += i * 8;
        auto copy = [&](auto there) {  // constants beside three addresses, where all of them are
#pragma unroll
            for (int n = 0; n < TALL_KEYS / ROWS_ON; n++) {
                bool one = there(row + n * ROWS_ON);
                int from = one ? n * TALL_BLOCK * 8 : 0;
                copy_async_16(at + n * ROWS_ON * STRIDE, k + from, one);
                copy_async_16(at + SIDE + n * ROWS_ON * STRIDE, v + from, one);
            }
        };
        if (count >= TALL_KEYS)
            copy([](unsigned) { return true; });
        else
            copy([&](unsigned y) { return int(y) < count; });
    }

    // The first of this thread's rows.
    static __device__ __forceinline__ unsigned row_of(unsigned thread) {
        return thread / WARP * 32 + thread % WARP / 4;
    }
    // Where this thread's row of a fragment (16, 16) begins: of queries, and of values, which are
    // transposed on their way.
    static __device__ __forceinline__ unsigned fragment_of(unsigned thread) {
        return thread % 16 * STRIDE + thread % WARP / 16 * 8;
    }
    // s ← q · k̃
    __device__ __forceinline__ void score(float (&s)[2][TILES][4], const E* keys) {
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < TILES; n++)
                for (int i = 0; i < 4; i++) s[m][n][i] = 0;
        unsigned thread = thread_again();
        const E* q = queries + thread / WARP * 32 * STRIDE + fragment_of(thread);
        keys += (thread % WARP / 16 * 8 + thread % 8) * STRIDE + thread / 8 % 2 * 8;
#pragma unroll 2  // all of them, and registers do not suffice
        for (int f = 0; f < FRAGMENTS; f++) {
            uint32_t a[2][4];
            for (int m = 0; m < 2; m++) load_matrix_x4(a[m], q + 16 * m * STRIDE + 16 * f);
#pragma unroll
            for (int n = 0; n < TILES; n += 2) {
                uint32_t b[4];
                load_matrix_x4(b, keys + 8 * n * STRIDE + 16 * f);
                for (int m = 0; m < 2; m++)
                    mma_half<E>(s[m][n], a[m], b, 0), mma_half<E>(s[m][n + 1], a[m], b, 1);
            }
        }
    }
    // Of half the rows: max becomes the largest that they have met, and sums are counted from there.
    __device__ __forceinline__ void raise(float (&max)[2], const float (&most)[2], int m) {
        unsigned thread = thread_again();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float now = fmaxf(max[i], most[i]);
            for (int mask = 1; mask < 4; mask *= 2)
                now = fmaxf(now, __shfl_xor_sync(~0u, now, mask));
            float keep = power_of_two(max[i] - now);
            max[i] = now, sum[m][i] *= keep;
            block.max[m][i][thread] = now;
#pragma unroll
            for (int n = 0; n < 2 * FRAGMENTS; n++)
                acc[m][n][2 * i] *= keep, acc[m][n][2 * i + 1] *= keep;
        }
    }
    // max ← the rows', raised where a score is larger by more than SCORE_SLACK.
    __device__ __forceinline__ void check_max(float (&max)[2][2], const float (&s)[2][TILES][4]) {
        unsigned thread = thread_again();
#pragma unroll
        for (int m = 0; m < 2; m++) {
            float most[2];
            bool larger = false;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                max[m][i] = block.max[m][i][thread];
                most[i] = fmaxf(s[m][0][2 * i], s[m][0][2 * i + 1]);
#pragma unroll
                for (int n = 1; n < TILES; n++)
                    most[i] = fmaxf(most[i], fmaxf(s[m][n][2 * i], s[m][n][2 * i + 1]));
                larger = larger || most[i] > max[m][i] + SCORE_SLACK;
            }
            if (__ballot_sync(~0u, larger)) raise(max[m], most, m);
        }
    }
    // a ← 2^(s − max) of 16 keys from 8 n on, which sum takes in
    __device__ __forceinline__ void weigh(uint32_t (&a)[2][4], const float (&s)[2][TILES][4],
                                          const float (&max)[2][2], int n) {
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float x = power_of_two(s[m][n + j][2 * i] - max[m][i]);
                    float y = power_of_two(s[m][n + j][2 * i + 1] - max[m][i]);
                    sum[m][i] += x + y;
                    a[m][2 * j + i] = pack2<E>(x, y);
                }
    }
    // acc += 2^(s − max) c
    __device__ __forceinline__ void add(const float (&s)[2][TILES][4], const float (&max)[2][2],
                                        const E* values) {
        values += fragment_of(thread_again());
#pragma unroll
        for (int n = 0; n < TILES; n += 2) {
            uint32_t a[2][4];
            weigh(a, s, max, n);
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++) {
                uint32_t b[4];
                load_matrix_x4_transposed(b, values + 8 * n * STRIDE + 16 * f);
                for (int m = 0; m < 2; m++)
                    mma_half<E>(acc[m][2 * f], a[m], b, 0),
                        mma_half<E>(acc[m][2 * f + 1], a[m], b, 1);
            }
        }
    }

    // The tile that has come; hide(s): what some rows do not see of it becomes −∞.
    template <class Hide>
    __device__ __forceinline__ void step(const Hide& hide) {
        const E* keys = stages + stage * STAGE;
        float s[2][TILES][4], max[2][2];
        score(s, keys);
        hide(s);
        check_max(max, s);
        add(s, max, keys + SIDE);
    }
    // s ← −∞ where a row does not see the key: the tile has positions first … end − 1 at most.
    __device__ __forceinline__ void hide(float (&s)[2][TILES][4], int first, int end) const {
        unsigned thread = thread_again();
        int t = int(thread % 4);
        const int2* own = block.sees + row_of(thread);
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int2 row = own[16 * m + 8 * i];
                int from = row.x - first - 2 * t, to = min(row.y, end) - first - 2 * t;
#pragma unroll
                for (int n = 0; n < TILES; n++)
                    for (int j = 0; j < 2; j++)
                        if (8 * n + j < from || 8 * n + j >= to) s[m][n][2 * i + j] = -INFINITY;
            }
    }

    // Positions first … end − 1, whose rows lie one behind the other from k and v on. The stage that
    // the first tile goes to was read before the last barrier.
    __device__ __forceinline__ void run(const E* k, const E* v, int first, int end) {
        if constexpr (STAGES > 1) begin(stage, k, v, end - first);
        copy_async_commit();
        for (; first < end; first += TALL_KEYS) {
            if constexpr (STAGES == 1) {
                __syncthreads();  // the last tile was read
                begin(0, k, v, end - first);
                copy_async_commit();
            }
            copy_async_wait<0>();
            __syncthreads();  // every thread's copies of this tile are there; of two, the last was read
            int next = first + TALL_KEYS;
            k += TALL_KEYS * D, v += TALL_KEYS * D;
            if constexpr (STAGES > 1) {
                if (next < end) begin(1 - stage, k, v, end - next);
                copy_async_commit();
            }
            // What the warp's first row sees, and its last one: all others lie between them.
            const int2* rows = block.sees + thread_again() / WARP * 32;
            int2 low = rows[0], high = rows[31];
            if (first >= high.x && next <= min(low.y, end))
                step([](auto&) {});
            else if (first < high.y && next > low.x)
                step([&](auto& s) { hide(s, first, end); });
            if constexpr (STAGES > 1) stage = 1 - stage;
        }
    }
    __device__ __forceinline__ void put(const HeadsOut& out) const {
        int H = out.width / D, t = int(threadIdx.x) % 4, row = int(row_of(threadIdx.x));
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float all = sum[m][i];
                for (int mask = 1; mask < 4; mask *= 2) all += __shfl_xor_sync(~0u, all, mask);
                int place = block.place[row + 16 * m + 8 * i];
                if (place < 0) continue;
                float by = 1 / all;
#pragma unroll
                for (int n = 0; n < D / 8; n++)
                    out.put_pair(size_t(place / H), place % H * D + 8 * n + 2 * t,
                                 by * acc[m][n][2 * i], by * acc[m][n][2 * i + 1]);
            }
    }
};

}  // namespace stief
