// Attention of T > 1 tokens by tiles (Dao et al. 2022, FlashAttention): a piece is a tile of queries,
// `tokens` tokens times the m heads of one kv head; it goes over tiles of keys up to its last token's
// own position. After every tile, for each query row:
//     max = max s,  sum = Σ e^(s − max),  acc = Σ e^(s − max) v    over the keys seen
// Both products are the exact blocked product: keys are packed as panels, widened values are panels as
// they are. Memory is one tile of each, whatever T and S.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/cpu_backend.h"

namespace stief {

constexpr int QUERY_ROWS = 64, KEYS = 128;

// One thread's arrays; strides in floats.
struct AttentionTile {
    size_t rk, rv, lanes;           // coordinates of keys and values; outputs of a panel
    size_t q_stride, v_stride;      // padded r_K; r_V rounded up to panels
    float *q, *scores, *acc;        // (rows, q_stride), (rows, KEYS), (rows, v_stride)
    float *k_panels, *v_panel;      // (KEYS / lanes, r_K, lanes), (KEYS, v_stride)
    float *max, *sum;               // (rows)

    AttentionTile(const Kernels& kernels, const CacheLayer& cache, int g, int rows) {
        rk = size_t(cache.k[size_t(g)].r), rv = size_t(cache.v[size_t(g)].r);
        lanes = size_t(kernels.lanes);
        q_stride = padded_row(std::max<size_t>(rk, 1) * 4) / 4;
        v_stride = (rv + lanes - 1) / lanes * lanes;
        size_t R = size_t(rows), padded_keys = KEYS + lanes, sizes = 0;
        float** arrays[] = {&q, &scores, &acc, &k_panels, &v_panel, &max, &sum};
        size_t counts[] = {R * q_stride, R * KEYS, R * v_stride, padded_keys * rk, KEYS * v_stride, R, R};
        for (size_t count : counts) sizes += (count + 15) / 16 * 16;
        float* next = reinterpret_cast<float*>(thread_scratch(sizes * 4));
        for (int i = 0; i < 7; i++) {
            *arrays[i] = next;
            next += (counts[i] + 15) / 16 * 16;
        }
    }
};

// scores (R, count) = q · k over one tile of keys.
static void tile_scores(const Kernels& kernels, AttentionTile& tile, const char* rows, DType dtype,
                        int R, int count) {
    for (int c = 0; c < count; c += int(tile.lanes)) {
        int n = std::min(int(tile.lanes), count - c);
        float* panel = tile.k_panels + size_t(c) * tile.rk;
        const char* from = rows + size_t(c) * tile.rk * size_of(dtype);
        kernels.pack[int(dtype)](panel, from, tile.rk, n, int(tile.rk));
        kernels.product(tile.scores + c, KEYS, tile.q, tile.q_stride, panel, tile.lanes, R, n,
                        int(tile.rk), false);
    }
}

// scores ← e^(s − max) where the row sees the key, else 0; rescales what the row has so far.
static void tile_softmax(const Kernels& kernels, AttentionTile& tile, int row, int count, int visible) {
    float* p = tile.scores + size_t(row) * KEYS;
    if (visible > 0) {
        float most = std::max(tile.max[row], kernels.largest(p, size_t(visible)));
        float keep = std::exp(tile.max[row] - most);
        tile.max[row] = most;
        tile.sum[row] = tile.sum[row] * keep + kernels.exp_sum(p, size_t(visible), most);
        if (keep != 1) kernels.scale(tile.acc + size_t(row) * tile.v_stride, tile.v_stride, keep);
    }
    std::fill(p + std::max(visible, 0), p + count, 0.0f);
}

// acc (R, r_V) += scores (R, count) v
static void tile_values(const Kernels& kernels, AttentionTile& tile, const char* rows, DType dtype,
                        int R, int count) {
    for (int s = 0; s < count; s++) {
        float* to = tile.v_panel + size_t(s) * tile.v_stride;
        kernels.widen[int(dtype)](to, rows + size_t(s) * tile.rv * size_of(dtype), tile.rv);
        std::fill(to + tile.rv, to + tile.v_stride, 0.0f);
    }
    for (size_t c = 0; c < tile.rv; c += tile.lanes)
        kernels.product(tile.acc + c, tile.v_stride, tile.scores, KEYS, tile.v_panel + c,
                        tile.v_stride, R, int(std::min(tile.lanes, tile.rv - c)), count, true);
}

// The queries of tokens first … first + tokens − 1 (of the call) and the heads of kv head g.
static void attend_queries(const Kernels& kernels, float* out, const float* q, const CacheLayer& cache,
                           int g, int pos, int tokens) {
    int m = cache.H / cache.G, R = tokens * m;
    size_t d = size_t(cache.d), width = size_t(cache.H) * d, element = size_of(cache.dtype);
    AttentionTile tile(kernels, cache, g, R);
    float scale = float(1.0 / std::sqrt(double(cache.d)));
    auto head_row = [&](int row) { return size_t(row / m) * width + size_t(g * m + row % m) * d; };

    for (int row = 0; row < R; row++) {
        const float* from = q + head_row(row);
        float* to = tile.q + size_t(row) * tile.q_stride;
        for (size_t i = 0; i < tile.rk; i++) to[i] = from[i] * scale;
        tile.max[row] = -std::numeric_limits<float>::infinity();
        tile.sum[row] = 0;
    }
    std::fill(tile.acc, tile.acc + size_t(R) * tile.v_stride, 0.0f);

    const char* k = static_cast<const char*>(cache.k[size_t(g)].data);
    const char* v = static_cast<const char*>(cache.v[size_t(g)].data);
    for (int s = 0; s < pos + tokens; s += KEYS) {
        int count = std::min(KEYS, pos + tokens - s);
        tile_scores(kernels, tile, k + size_t(s) * tile.rk * element, cache.dtype, R, count);
        for (int row = 0; row < R; row++)
            tile_softmax(kernels, tile, row, count, std::min(count, pos + row / m + 1 - s));
        tile_values(kernels, tile, v + size_t(s) * tile.rv * element, cache.dtype, R, count);
    }
    for (int row = 0; row < R; row++) {
        float* to = out + head_row(row);
        const float* acc = tile.acc + size_t(row) * tile.v_stride;
        for (size_t i = 0; i < d; i++) to[i] = i < tile.rv ? acc[i] / tile.sum[row] : 0;
    }
}

void CpuBackend::attend_tiles(float* out, const float* q, const CacheLayer& cache, const Step& step) {
    int G = cache.G, m = cache.H / G, each = std::max(1, QUERY_ROWS / m);
    size_t width = size_t(cache.H) * size_t(cache.d), tiles = size_t((step.T + each - 1) / each);
    threads.run(tiles * size_t(G), [&](size_t piece) {
        // The last tiles see the most keys: they go first, so that no long piece is left for the end.
        int t = int(tiles - 1 - piece / size_t(G)) * each, g = int(piece % size_t(G));
        attend_queries(kernels, out + size_t(t) * width, q + size_t(t) * width, cache, g, step.pos + t,
                       std::min(each, step.T - t));
    });
}

}  // namespace stief
