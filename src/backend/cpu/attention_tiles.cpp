// Attention of T > 1 tokens by tiles (Dao et al. 2022, FlashAttention): a piece is a tile of
// queries, `tokens` tokens times the m heads of one kv head; it goes over tiles of keys up to its
// last token's own position. After every tile, for each query row:
//     max = max s,  sum = Σ e^(s − max),  acc = Σ e^(s − max) ṽ    over the keys seen
// Both products are the blocked product: keys are packed as panels, widened values are panels as
// they are. Memory is one tile of each, whatever T and S. Where the backend is not exact, rows have
// 16 bits and the processor multiplies pairs, q, k̃, p and ṽ are rounded to bf16 for it.
//
// Keys after rotation that are less R_s μ: their rows have the angles of their positions ahead of them,
// and queries what meets those (cache_rows.cpp).
//
// A key may lie in one format for some tokens of the tile and in another for others: the tile goes
// over every stretch that any of them sees, and of each a row takes the keys of its own band.
#include <cmath>
#include <limits>
#include <optional>

#include "backend/cpu/rebuilt_keys.h"

namespace stief {

constexpr int QUERY_ROWS = 64, KEYS = 128;

// One thread's arrays; strides in floats.
struct AttentionTile {
    const CpuBackend& cpu;
    const Kernels& kernels;
    const CacheLayer& cache;
    const CacheRows &k, &v;
    const float* rotation;
    std::optional<RebuiltKeys> rebuilt;  // where keys are stored before rotation
    bool pairs;     // products in bf16
    int R, m, pos;  // query rows; heads a token; position of the first token
    size_t d, values, lanes, q_stride, v_stride;
    size_t angles, widest;          // d where angles go ahead of coordinates, else 0; of a row
    float *q, *scores, *acc;        // (R, q_stride), (R, KEYS), (R, v_stride)
    float *rows, *panels;           // (KEYS, widest), (KEYS / lanes, widest, lanes)
    float *max, *sum;               // (R)
    float *half_q, *half_p, *half;  // pairs, bf16: (R, 2 q_stride), (R, KEYS), (KEYS, widest)

    AttentionTile(const CpuBackend& backend, const CacheLayer& layer, int g, int tokens,
                  int first_pos, const float* turns)
        : cpu(backend),
          kernels(backend.kernels),
          cache(layer),
          k(layer.k[size_t(g)]),
          v(layer.v[size_t(g)]),
          rotation(turns) {
        pairs = kernels.pair_rows && !cpu.exact && cache.dtype != DType::F32;
        m = cache.H / cache.G, R = tokens * m, pos = first_pos;
        d = size_t(cache.d), values = size_t(cache.values_width());  // values >= d
        lanes = size_t(kernels.lanes);
        angles = cache.less_turned_mean(size_t(g)) ? d : 0;
        q_stride = padded_row((angles + d) * 4) / 4;
        v_stride = (values + lanes - 1) / lanes * lanes;
        widest = std::max(v_stride, angles + d);
        size_t rs = size_t(R), sizes = 0;
        float** arrays[] = {&q, &scores, &acc, &rows, &panels, &max, &sum, &half_q, &half_p, &half};
        size_t counts[] = {rs * q_stride, rs * KEYS, rs * v_stride, KEYS * widest,
                           (KEYS + lanes) * std::max(widest, size_t(PAIRS_K)), rs, rs,
                           pairs ? rs * q_stride : 0, pairs ? rs * KEYS / 2 : 0,
                           pairs ? KEYS * widest / 2 : 0};
        for (size_t count : counts) sizes += (count + 15) / 16 * 16;
        size_t more = cache.rotated ? 0 : RebuiltKeys::bytes(cpu, cache, size_t(g));
        float* next = reinterpret_cast<float*>(thread_scratch(sizes * 4 + more));
        for (int i = 0; i < 10; i++) {
            *arrays[i] = next;
            next += (counts[i] + 15) / 16 * 16;
        }
        if (!cache.rotated) rebuilt.emplace(cpu, cache, size_t(g), reinterpret_cast<char*>(next));
    }

    void to_bf16(void* to, const float* from, size_t n) const {
        kernels.narrow[int(DType::BF16)](to, from, n);
    }

    void round_queries() {
        uint16_t* to = reinterpret_cast<uint16_t*>(half_q);
        for (int row = 0; row < R; row++, to += 2 * q_stride) {
            to_bf16(to, q + size_t(row) * q_stride, angles + d);
            std::fill(to + angles + d, to + 2 * q_stride, uint16_t(0));
        }
    }

    // to (R, count) ← q · row over `width` coordinates, of q from `from` on.
    void score_pairs(float* to, int count, size_t from, size_t width) {
        to_bf16(half, rows, size_t(count) * width);
        char* panel = reinterpret_cast<char*>(panels);
        for (size_t c = 0; c < size_t(count); c += lanes, panel += whole_steps(width) * lanes * 2)
            kernels.pack_pairs(panel, reinterpret_cast<char*>(half) + c * width * 2, width,
                               int(std::min(lanes, size_t(count) - c)), int(width));
        const uint16_t* queries = reinterpret_cast<const uint16_t*>(half_q) + from;
        kernels.product_pairs(to, KEYS, queries, 2 * q_stride, panels, R, count,
                              int(whole_steps(width)), false);
    }

    // acc (R, ·) += p (R, count) rows (count, width)
    void add_pairs(const float* p, int count, size_t width) {
        size_t filled = whole_steps(size_t(count));
        uint16_t* weights = reinterpret_cast<uint16_t*>(half_p);
        for (int row = 0; row < R; row++, weights += KEYS) {
            to_bf16(weights, p + size_t(row) * KEYS, size_t(count));
            std::fill(weights + count, weights + filled, uint16_t(0));
        }
        to_bf16(half, rows, size_t(count) * width);
        char* panel = reinterpret_cast<char*>(panels);
        for (size_t c = 0; c < width; c += lanes, panel += filled * lanes * 2)
            kernels.pair_rows(panel, reinterpret_cast<char*>(half) + c * 2, width,
                              int(std::min(lanes, width - c)), count);
        kernels.product_pairs(acc, v_stride, half_p, KEYS, panels, R, int(width), int(filled),
                              true);
    }

    // scores (R, count) ← q · k̃ over one tile of keys.
    void score_keys(const RowStore& store, int first, int count) {
        size_t ahead = store.format.keeps_all(cache.d) ? 0 : angles, skipped = angles - ahead;
        size_t width = rebuilt ? d : ahead + size_t(store.format.kept());
        DType type = DType::F32;
        const char* from = reinterpret_cast<const char*>(rows);
        bool as_it_lies = !rebuilt && !pairs && !ahead && store.format.is_whole();
        for_runs(store, first, first + count, [&](const Run& run) {
            float* row = rows + size_t(run.first - first) * width;
            if (rebuilt) {
                rebuilt->rebuild(row, run);
                for (size_t s = 0; s < size_t(run.count); s++)
                    kernels.rotate(row + s * d, rotation + (size_t(run.first) + s) * d, d / 2);
            } else if (as_it_lies && run.count == count) {
                from = run.rows, type = cache.dtype;  // packed from where it is
            } else {
                unpack(cpu, row + ahead, width, run, cache.dtype);
                for (size_t s = 0; s < size_t(run.count) && ahead; s++)
                    std::copy_n(rotation + (size_t(run.first) + s) * d, d, row + s * width);
            }
        });
        if (pairs) return score_pairs(scores, count, skipped, width);
        for (int c = 0; c < count; c += int(lanes)) {
            int n = std::min(int(lanes), count - c);
            float* panel = panels + size_t(c) * width;
            kernels.pack[int(type)](panel, from + size_t(c) * width * size_of(type), width, n,
                                    int(width));
            kernels.product(scores + c, KEYS, q + skipped, q_stride, panel, lanes, R, n, int(width),
                            false);
        }
    }

    // scores ← e^(s − max) for the keys begin … end − 1 of the tile, which the row sees, else 0;
    // rescales what the row has so far.
    void softmax(int row, int count, int begin, int end) {
        float* p = scores + size_t(row) * KEYS;
        if (begin >= end) return std::fill(p, p + count, 0.0f);
        size_t visible = size_t(end - begin);
        float most = std::max(max[row], kernels.largest(p + begin, visible));
        float keep = std::exp(max[row] - most);
        max[row] = most;
        sum[row] = sum[row] * keep + kernels.exp_sum(p + begin, visible, most);
        if (keep != 1) kernels.scale(acc + size_t(row) * v_stride, v_stride, keep);
        std::fill(p, p + begin, 0.0f);
        std::fill(p + end, p + count, 0.0f);
    }

    // acc (R, ·) += scores (R, count) ṽ
    void add_values(const RowStore& store, int first, int count) {
        size_t width = size_t(store.format.kept()), stride = pairs ? width : v_stride;
        for_runs(store, first, first + count, [&](const Run& run) {
            float* to = rows + size_t(run.first - first) * stride;
            unpack(cpu, to, stride, run, cache.dtype);
            for (int s = 0; s < run.count && width < stride; s++, to += stride)
                std::fill(to + width, to + stride, 0.0f);
        });
        if (pairs) return add_pairs(scores, count, width);
        for (size_t c = 0; c < width; c += lanes)
            kernels.product(acc + c, v_stride, scores, KEYS, rows + c, v_stride, R,
                            int(std::min(lanes, width - c)), count, true);
    }

    // One tile of keys, positions first … first + count − 1 of a stretch.
    void add_keys(const Stretch& stretch, int first, int count) {
        score_keys(k.store[stretch.k], first, count);
        for (int row = 0; row < R; row++) {
            int token = pos + row / m;
            int begin = std::max(stretch.begin_for(token), first) - first;
            int end = std::min(stretch.end_for(token) - first, count);
            softmax(row, count, begin, end);
        }
        add_values(v.store[stretch.v], first, count);
    }
};

// The queries of `tokens` tokens from position pos on, and the heads of kv head g.
// out (tokens, H, values_width)
static void attend_queries(const CpuBackend& cpu, float* out, const Queries& q,
                           const float* rotation, const CacheLayer& cache, int g, int pos,
                           int tokens) {
    AttentionTile tile(cpu, cache, g, tokens, pos, rotation);
    size_t d = tile.d, values = tile.values, H = size_t(cache.H);
    float scale = float(1.0 / std::sqrt(double(cache.d)));
    auto head_row = [&](int row) {  // of (T, H)
        return size_t(row / tile.m) * H + size_t(g * tile.m + row % tile.m);
    };

    for (int row = 0; row < tile.R; row++) {
        Queries from = q.from(head_row(row) * d);
        float* to = tile.q + size_t(row) * tile.q_stride;
        for (size_t i = 0; i < tile.angles; i++) to[i] = from.against_mean[i] * scale;
        for (size_t i = 0; i < d; i++) to[tile.angles + i] = from.latent[i] * scale;
        tile.max[row] = -std::numeric_limits<float>::infinity();
        tile.sum[row] = 0;
    }
    std::fill(tile.acc, tile.acc + size_t(tile.R) * tile.v_stride, 0.0f);
    if (tile.pairs) tile.round_queries();

    for (const Stretch& stretch : cache.seen[size_t(g)]) {
        int end = stretch.end_for(pos + tokens - 1);
        for (int first = stretch.begin_for(pos); first < end; first += KEYS)
            tile.add_keys(stretch, first, std::min(KEYS, end - first));
    }
    for (int row = 0; row < tile.R; row++) {
        float* to = out + head_row(row) * values;
        const float* acc = tile.acc + size_t(row) * tile.v_stride;
        for (size_t i = 0; i < values; i++)
            to[i] = i < size_t(tile.v.width) ? acc[i] / tile.sum[row] : 0;
    }
}

void CpuBackend::attend_tiles(float* out, const Queries& q, const float* rotation,
                              const CacheLayer& cache, const Step& step) {
    int G = cache.G, m = cache.H / G, most = std::max(1, QUERY_ROWS / m);
    size_t width = size_t(cache.H) * size_t(cache.d), tiles = size_t((step.T + most - 1) / most);
    int each = (step.T + int(tiles) - 1) / int(tiles);  // alike, so that no thread waits for another
    size_t values = size_t(cache.H) * size_t(cache.values_width());
    threads.run(tiles * size_t(G), [&](size_t piece) {
        // The last tiles see the most keys: they go first, so that no long piece is left for the
        // end.
        int t = int(tiles - 1 - piece / size_t(G)) * each, g = int(piece % size_t(G));
        attend_queries(*this, out + size_t(t) * values, q.from(size_t(t) * width), rotation, cache, g,
                       step.pos + t, std::min(each, step.T - t));
    });
}

}  // namespace stief
