// Attention of T > 1 tokens by tiles (Dao et al. 2022, FlashAttention): some tiles of keys come out of
// their rows for all queries (key_tiles.h), then every tile of queries, `tokens` tokens times the m heads
// of one kv head, goes over those that it sees, up to its last token's own position; and so on with the
// next tiles of keys. After every tile, for each query row:
//     max = max s,  sum = Σ e^(s − max),  acc = Σ e^(s − max) ṽ    over the keys seen
// Both products are the blocked product, over panels. Where the backend is not exact, rows have 16 bits
// and the processor multiplies pairs, q, k̃, p and ṽ are rounded to bf16 for it.
//
// A key may lie in one format for some tokens of the tile and in another for others: the tile goes
// over every stretch that any of them sees, and of each a row takes the keys of its own band.
#include <cmath>
#include <limits>

#include "backend/cpu/key_tiles.h"

namespace stief {

constexpr int QUERY_ROWS = 60, KEYS = KeyTiles::KEYS;   // of 60 no product of 10 or 12 has a tail
constexpr size_t EXPANDED = size_t(4) << 20;            // bytes of tiles at a time, or one tile a head

// One thread's arrays; strides in floats.
struct QueryTile {
    const CpuBackend& cpu;
    const Kernels& kernels;
    const CacheLayer& cache;
    const KeyTiles& tiles;
    int g, pos, tokens, m, R;       // kv head, position of the first token; heads a token; query rows
    size_t d, values, lanes, q_stride, v_stride;
    float *q, *scores, *acc;        // (R, q_stride), (R, KEYS), (R, v_stride)
    float *max, *sum;               // (R)
    float *half_q, *half_p;         // pairs, bf16: (R, 2 q_stride), (R, KEYS)

    QueryTile(const KeyTiles& keys, int head, int first, int count)
        : cpu(keys.cpu),
          kernels(cpu.kernels),
          cache(keys.cache),
          tiles(keys),
          g(head),
          pos(first),
          tokens(count),
          m(cache.H / cache.G),
          R(tokens * m),
          d(size_t(cache.d)),
          values(size_t(cache.values_width())),
          lanes(size_t(kernels.lanes)),
          q_stride(padded_row(d * 4) / 4),
          v_stride(tiles.value_stride()) {
        size_t rs = size_t(R), all = 0;
        float** arrays[] = {&q, &scores, &acc, &max, &sum, &half_q, &half_p};
        size_t counts[] = {rs * q_stride, rs * KEYS, rs * v_stride, rs, rs,
                           tiles.pairs ? rs * q_stride : 0, tiles.pairs ? rs * KEYS / 2 : 0};
        for (size_t n : counts) all += (n + 15) / 16 * 16;
        float* next = reinterpret_cast<float*>(thread_scratch(all * 4));
        for (int i = 0; i < 7; i++) {
            *arrays[i] = next;
            next += (counts[i] + 15) / 16 * 16;
        }
    }

    void to_bf16(void* to, const float* from, size_t n) const {
        kernels.narrow[int(DType::BF16)](to, from, n);
    }

    // Of (T, H), the tile's tokens first.
    size_t head_row(int row) const {
        return size_t(row / m) * size_t(cache.H) + size_t(g * m + row % m);
    }

    void take_queries(const float* from) {
        float scale = float(1.0 / std::sqrt(double(d)));
        uint16_t* rounded = reinterpret_cast<uint16_t*>(half_q);
        for (int row = 0; row < R; row++, rounded += 2 * q_stride) {
            const float* x = from + head_row(row) * d;
            float* to = q + size_t(row) * q_stride;
            for (size_t i = 0; i < d; i++) to[i] = x[i] * scale;
            if (!tiles.pairs) continue;
            to_bf16(rounded, to, d);
            std::fill(rounded + d, rounded + 2 * q_stride, uint16_t(0));
        }
    }

    // What the tiles of keys before have left: acc in out (tokens, H, values), max and sum in state
    // (tokens, H, 2).
    void begin(const float* out, const float* state, bool first) {
        for (int row = 0; row < R; row++) {
            float* to = acc + size_t(row) * v_stride;
            const float *from = out + head_row(row) * values, *both = state + 2 * head_row(row);
            max[row] = first ? -std::numeric_limits<float>::infinity() : both[0];
            sum[row] = first ? 0 : both[1];
            if (first) std::fill(to, to + v_stride, 0.0f);
            else std::fill(std::copy(from, from + values, to), to + v_stride, 0.0f);
        }
    }
    void end(float* out, float* state, bool last) const {
        size_t width = size_t(cache.v[size_t(g)].width);
        for (int row = 0; row < R; row++) {
            const float* from = acc + size_t(row) * v_stride;
            float *to = out + head_row(row) * values, *both = state + 2 * head_row(row);
            float by = last ? sum[row] : 1;
            for (size_t i = 0; i < values; i++) to[i] = i < width ? from[i] / by : 0;
            both[0] = max[row], both[1] = sum[row];
        }
    }

    // scores (R, from … end − 1) ← q · k̃ of one tile; from: a multiple of lanes
    void score(const KeyTile& tile, const char* panel, int from, int end) {
        size_t width = tiles.key_width(size_t(g), tile);
        if (tiles.pairs) {
            size_t steps = whole_steps(width);
            return kernels.product_pairs(scores + from, KEYS, half_q, 2 * q_stride,
                                         panel + size_t(from) * steps * 2, R, end - from, int(steps),
                                         false);
        }
        for (int c = from; c < end; c += int(lanes))
            kernels.product(scores + c, KEYS, q, q_stride,
                            reinterpret_cast<const float*>(panel) + size_t(c) * width, lanes, R,
                            std::min(int(lanes), end - c), int(width), false);
    }

    // scores ← e^(s − max) for the keys begin … end − 1, which the row sees, else 0 from `from` to
    // `until`; rescales what the row has so far.
    void softmax(int row, int from, int begin, int end, int until) {
        float* p = scores + size_t(row) * KEYS;
        if (begin >= end) return std::fill(p + from, p + until, 0.0f);
        size_t visible = size_t(end - begin);
        float most = std::max(max[row], kernels.largest(p + begin, visible));
        float keep = std::exp(max[row] - most);
        max[row] = most;
        sum[row] = sum[row] * keep + kernels.exp_sum(p + begin, visible, most);
        if (keep != 1) kernels.scale(acc + size_t(row) * v_stride, v_stride, keep);
        std::fill(p + from, p + begin, 0.0f);
        std::fill(p + end, p + until, 0.0f);
    }

    // acc (R, ·) += scores (R, from … end − 1) ṽ; from: a multiple of PAIRS_K
    void add_values(const KeyTile& tile, const char* panel, int from, int end) {
        size_t width = tiles.value_width(size_t(g), tile), count = size_t(end - from);
        if (!tiles.pairs) {
            const float* rows = reinterpret_cast<const float*>(panel) + size_t(from) * v_stride;
            for (size_t c = 0; c < width; c += lanes)
                kernels.product(acc + c, v_stride, scores + from, KEYS, rows + c, v_stride, R,
                                int(std::min(lanes, width - c)), int(count), true);
            return;
        }
        size_t filled = whole_steps(count);
        uint16_t* weights = reinterpret_cast<uint16_t*>(half_p);
        for (int row = 0; row < R; row++, weights += KEYS) {
            to_bf16(weights, scores + size_t(row) * KEYS + from, count);
            std::fill(weights + count, weights + filled, uint16_t(0));
        }
        panel += size_t(from) * lanes * 2;
        for (size_t c = 0; c < width; c += lanes, panel += KEYS * lanes * 2)
            kernels.product_pairs(acc + c, v_stride, half_p, KEYS, panel, R,
                                  int(std::min(lanes, width - c)), int(filled), true);
    }

    // The keys of a tile that any of the tokens sees.
    void add(const KeyTile& tile, const char* keys, const char* rows) {
        const Stretch& stretch = cache.seen[size_t(g)].stretch[tile.stretch];
        int begin = std::max(stretch.begin_for(pos) - tile.first, 0);
        int end = std::min(stretch.end_for(pos + tokens - 1) - tile.first, tile.count);
        if (begin >= end) return;
        int from = begin / KEYS_ALIGNED * KEYS_ALIGNED;
        score(tile, keys, from, end);
        for (int row = 0; row < R; row++) {
            int token = pos + row / m;
            softmax(row, from, std::max(stretch.begin_for(token) - tile.first, begin),
                    std::min(stretch.end_for(token) - tile.first, end), end);
        }
        add_values(tile, rows, from, end);
    }
    static constexpr int KEYS_ALIGNED = PAIRS_K;
};

void CpuBackend::attend_tiles(float* out, const float* q, const float* latent, const float* rotation,
                              const CacheLayer& cache, const Step& step) {
    int G = cache.G, m = cache.H / G, most = std::max(1, QUERY_ROWS / m);
    int pieces = (step.T + most - 1) / most;
    int each = (step.T + pieces - 1) / pieces;  // alike, so that no thread waits for another
    size_t H = size_t(cache.H), width = H * size_t(cache.d), values = H * size_t(cache.values_width());
    KeyTiles tiles(*this, cache, rotation);
    std::vector<std::vector<KeyTile>> of;  // (G)
    size_t longest = 0;
    for (int g = 0; g < G; g++) {
        of.push_back(tiles.of(size_t(g), step.pos, step.pos + step.T - 1));
        longest = std::max(longest, of.back().size());
    }
    size_t bytes = tiles.key_bytes + tiles.value_bytes;
    size_t chunk = std::clamp<size_t>(EXPANDED / (bytes * size_t(G)), 1, longest);
    expanded.resize(chunk * size_t(G) * bytes + 64);
    attended.resize(2 * H * size_t(step.T));
    char* memory = expanded.data() + 64 - reinterpret_cast<uintptr_t>(expanded.data()) % 64;
    auto at = [&](size_t g, size_t i) { return memory + (g * chunk + i) * bytes; };

    for (size_t first = 0; first < longest; first += chunk) {
        auto end_of = [&](size_t g) { return std::min(of[g].size(), first + chunk); };
        threads.run(2 * chunk * size_t(G), [&](size_t piece) {
            size_t g = piece / 2 % size_t(G), i = piece / 2 / size_t(G);
            if (first + i >= end_of(g)) return;
            const KeyTile& tile = of[g][first + i];
            if (piece % 2) tiles.expand_values(at(g, i) + tiles.key_bytes, g, tile);
            else tiles.expand_keys(at(g, i), g, tile);
        });
        threads.run(size_t(pieces * G), [&](size_t piece) {
            // The last tiles see the most keys: they go first, so that no long piece is left for the
            // end.
            int t = (pieces - 1 - int(piece) / G) * each, g = int(piece) % G;
            if (t >= step.T) return;
            QueryTile tile(tiles, g, step.pos + t, std::min(each, step.T - t));
            float *to = out + size_t(t) * values, *state = attended.data() + 2 * H * size_t(t);
            tile.take_queries((tiles.plain(size_t(g)) ? q : latent) + size_t(t) * width);
            tile.begin(to, state, first == 0);
            for (size_t i = first; i < end_of(size_t(g)); i++) {
                const char* panels = at(size_t(g), i - first);
                tile.add(of[size_t(g)][i], panels, panels + tiles.key_bytes);
            }
            tile.end(to, state, first + chunk >= longest);
        });
    }
}

}  // namespace stief
