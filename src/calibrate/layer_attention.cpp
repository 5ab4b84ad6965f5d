// Attention of one kv head's group over rows as the cache has them, there and back. Where rows have
// ages the scores of near keys are taken again from the rows of their age, and values are added up
// age by age; what is near is a band of few keys for each block of queries.
#include <algorithm>
#include <climits>
#include <cmath>

#include "calibrate/layer_loss.h"

namespace stief {

void LayerPass::split_by_distance(const std::vector<int>& from) {
    distances = from;
    size_t each = size_t(c.G) * size_t(most) * size_t(c.d);
    split = Buffer(*model.backend, 4 * from.size() * each * sizeof(float), "rows by distance");
    near.clear(), dk_from.clear(), dv_from.clear();
    float* rows = split.f32();
    for (size_t i = 0; i < from.size(); i++, rows += 4 * each) {
        near.push_back({i ? from[i - 1] : 0, from[i], rows, rows + each});
        dk_from.push_back(rows + 2 * each), dv_from.push_back(rows + 3 * each);
    }
}

bool LayerPass::has_near(const LayerCuts& cuts, int g) const {
    return !near.empty() && !(cuts.k[size_t(g)].nothing() && cuts.of_values(g).nothing());
}

// f(near, its keys as columns of `part`) of each age that the block's queries see.
template <class F>
void LayerPass::for_near(const Block& b, const F& f) {
    for (const Near& one : near) {
        int begin = std::max(0, b.first - one.hi + 1), end = b.first + b.tokens - one.lo;
        if (begin < end && one.lo < one.hi) f(one, Scores{part, begin, end - begin});
    }
}

// to (tokens · m, d) ← p ṽ, each key's value at its age
void LayerPass::add_up_values(float* to, const float* p_of_block, const Block& b, int g) {
    Backend& ops = *model.backend;
    size_t side = size_t(g) * size_t(T) * size_t(c.d), count = size_t(b.tokens * m) * size_t(c.d);
    Scores all{const_cast<float*>(p_of_block), 0, b.seen};
    auto of_rows = [&](float* sum, const float* v_rows, const Scores& keys, int lo, int hi) {
        ops_back->copy_distances(keys, all, b.tokens, m, b.first, lo, hi, true);
        const float* from = v_rows + side + size_t(keys.first) * size_t(c.d);
        ops.matmul_transposed(sum, part, {from, DType::F32, keys.count, c.d}, b.tokens * m);
    };
    int old = std::max(0, b.seen - distances.back());
    if (old > 0)
        of_rows(to, v_cut, {part, 0, old}, distances.back(), INT_MAX);
    else
        ops_back->zero(to, count);
    for_near(b, [&](const Near& one, const Scores& keys) {
        of_rows(dheads, one.v, keys, one.lo, one.hi);  // free on the way there
        ops_back->add(to, dheads, count);
    });
}

// heads_g = softmax(q_g k̃_gᵀ / √d) ṽ_g, and its columns of att.
void LayerPass::attend(const LayerCuts& cuts, int g) {
    Backend& ops = *model.backend;
    size_t d = size_t(c.d), t = size_t(T), wide = size_t(m) * d, side = size_t(g) * t * d;
    const float* qg = q + size_t(g) * t * wide;
    float* heads_g = heads + size_t(g) * t * wide;
    float scale = float(1 / std::sqrt(double(c.d)));
    bool aged = has_near(cuts, g);
    for_blocks(T, m, [&](const Block& b) {
        float* pb = p + size_t(g) * block_floats(T, m) + b.offset;
        size_t first = size_t(b.first) * wide;
        auto score = [&](float* to, const float* rows, int from, int count) {
            ops.matmul(to, qg + first, {rows + side + size_t(from) * d, DType::F32, count, c.d},
                       b.tokens * m, false);
        };
        score(pb, k_cut, 0, b.seen);
        if (aged)
            for_near(b, [&](const Near& one, const Scores& keys) {
                score(part, one.k, keys.first, keys.count);
                ops_back->copy_distances({pb, 0, b.seen}, keys, b.tokens, m, b.first, one.lo,
                                         one.hi, false);
            });
        ops_back->causal_softmax(pb, b.tokens, m, b.seen, b.first, scale);
        Weight values{v_cut + side, DType::F32, b.seen, c.d};
        if (aged)
            add_up_values(heads_g + first, pb, b, g);
        else
            ops.matmul_transposed(heads_g + first, pb, values, b.tokens * m);
    });
    ops_back->copy_rows(att + size_t(g) * wide, size_t(c.H) * d, heads_g, wide, t, wide);
}

void LayerPass::back_through_attention(const LayerCuts& cuts, int g, bool queries) {
    Backend& ops = *model.backend;
    size_t d = size_t(c.d), t = size_t(T), wide = size_t(m) * d, side = size_t(g) * t * d;
    float* dheads_g = dheads + size_t(g) * t * wide;
    ops_back->copy_rows(dheads_g, wide, datt + size_t(g) * wide, size_t(c.H) * d, t, wide);
    ops_back->zero(dk + side, t * d);
    ops_back->zero(dv + side, t * d);
    for (size_t i = 0; i < distances.size(); i++) {
        ops_back->zero(dk_from[i] + side, t * d);
        ops_back->zero(dv_from[i] + side, t * d);
    }
    float scale = float(1 / std::sqrt(double(c.d)));
    bool aged = has_near(cuts, g);

    for_blocks(T, m, [&](const Block& b) {
        int rows = b.tokens * m;
        size_t first = size_t(b.first) * wide, here = size_t(g) * t * wide + first;
        const float* pb = p + size_t(g) * block_floats(T, m) + b.offset;
        Scores all{dp, 0, b.seen};
        ops.matmul(dp, dheads_g + first, {v_cut + side, DType::F32, b.seen, c.d}, rows, false);
        if (aged)
            for_near(b, [&](const Near& one, const Scores& keys) {
                const float* from = one.v + side + size_t(keys.first) * d;
                ops.matmul(part, dheads_g + first, {from, DType::F32, keys.count, c.d}, rows, false);
                ops_back->copy_distances(all, keys, b.tokens, m, b.first, one.lo, one.hi, false);
            });
        ops_back->causal_softmax_backward(dp, pb, heads + here, dheads_g + first, b.tokens, m,
                                          b.seen, b.first, c.d, scale);
        ops_back->add_transposed_product(dv + side, pb, dheads_g + first, rows, b.seen, c.d);
        ops_back->add_transposed_product(dk + side, dp, q + here, rows, b.seen, c.d);
        float *dq = att, *dq_near = heads + here;  // free on the way back
        Weight keys{k_cut + side, DType::F32, b.seen, c.d};
        if (queries && !aged) ops.matmul_transposed(dq, dp, keys, rows);
        if (aged) ops_back->zero(dq, size_t(rows) * d);
        if (aged && queries)
            for_near(b, [&](const Near& one, const Scores& of) {
                ops_back->copy_distances(of, all, b.tokens, m, b.first, one.lo, one.hi, true);
                const float* from = one.k + side + size_t(of.first) * d;
                ops.matmul_transposed(dq_near, part, {from, DType::F32, of.count, c.d}, rows);
                ops_back->add(dq, dq_near, size_t(rows) * d);
            });
        split_block(g, b, here);  // leaves the oldest age in dp
        if (aged && queries) {
            ops.matmul_transposed(dq_near, dp, keys, rows);
            ops_back->add(dq, dq_near, size_t(rows) * d);
        }
        if (queries) ops_back->copy(dheads_g + first, dq, size_t(rows) * d);
    });
}

// What is asked of keys and values from each distance on: p and dp lose what is nearer.
void LayerPass::split_block(int g, const Block& b, size_t here) {
    float* pb = p + size_t(g) * block_floats(T, m) + b.offset;
    size_t side = size_t(g) * size_t(T) * size_t(c.d);
    int rows = b.tokens * m;
    for (size_t i = 0; i < distances.size(); i++) {
        for (float* of : {pb, dp}) {
            Scores all{of, 0, b.seen};
            ops_back->copy_distances(all, all, b.tokens, m, b.first, distances[i], INT_MAX, true);
        }
        ops_back->add_transposed_product(dv_from[i] + side, pb, dheads + here, rows, b.seen, c.d);
        ops_back->add_transposed_product(dk_from[i] + side, dp, q + here, rows, b.seen, c.d);
    }
}

}  // namespace stief
