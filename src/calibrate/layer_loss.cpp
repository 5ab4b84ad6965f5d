// The way there. Queries of one kv head's group lie together, (T, m, d), so that a block of them is
// one matrix of (tokens · m) rows; of the scores only the blocks below the diagonal are computed.
#include "calibrate/layer_loss.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "calibrate/elementwise.h"
#include "calibrate/layer_blocks.h"

namespace stief {

Cut cut_to_rank(const Matrix& Q, const Metric& metric, size_t r) {
    if (r >= Q.cols) return {};
    Matrix Qr = first_columns(Q, r);
    Matrix P = times(times(metric.S, Qr), transposed_times(Qr, metric.S_inverse));
    return {to_floats(transpose(P))};
}

LayerGradient::LayerGradient(const Config& config)
    : k(size_t(config.G), Matrix(size_t(config.d), size_t(config.d))), v(k) {}

// Angles in double: at position 131,071 a float angle is off by 4e-3.
std::vector<float> rotation_table(const Config& config, int positions) {
    std::vector<double> frequencies = rope_frequencies(config);
    std::vector<float> table;
    table.reserve(size_t(positions) * size_t(config.d));
    for (int pos = 0; pos < positions; pos++) {
        for (double theta : frequencies) table.push_back(float(std::cos(double(pos) * theta)));
        for (double theta : frequencies) table.push_back(float(std::sin(double(pos) * theta)));
    }
    return table;
}

LayerPass::LayerPass(Model& owner, int most, const std::vector<float>& rotation_of)
    : model(owner),
      c(owner.config),
      threads(*owner.threads),
      T(most),
      rotation(rotation_of),
      m(c.H / c.G) {
    size_t t = size_t(most), D = size_t(c.D), F = size_t(c.F);
    size_t Hd = t * size_t(c.H) * size_t(c.d), Gd = t * size_t(c.G) * size_t(c.d);
    for (std::vector<float>* one : {&q, &heads, &att, &datt, &dheads}) one->resize(Hd);
    for (std::vector<float>* one : {&k, &v, &k_rotated, &k_cut, &v_cut, &dk, &dv}) one->resize(Gd);
    for (std::vector<float>* one : {&out, &xn, &x1, &dy, &dxn}) one->resize(t * D);
    for (std::vector<float>* one : {&gate, &up, &h, &dh, &dgate, &dup}) one->resize(t * F);
    p.resize(size_t(c.G) * block_floats(most, m));
    dp.resize(size_t(BLOCK) * size_t(m) * t);
    turned.resize((size_t(BLOCK) * size_t(m) + t) * size_t(c.d));
    ffn_norm.resize(D);
}

// Rows first … first + count − 1 of a weight matrix.
static Weight rows_of(const Weight& w, int first, int count) {
    const char* from =
        static_cast<const char*>(w.data) + size_t(first) * size_t(w.K) * size_of(w.dtype);
    return {from, w.dtype, count, w.K};
}

void LayerPass::begin(int layer, const float* input, const Step& step) {
    Backend& ops = *model.backend;
    const Model::Layer& w = model.layer[size_t(layer)];
    l = layer, x = input, at = step, T = step.T;
    size_t d = size_t(c.d), t = size_t(T);
    assert((size_t(at.pos) + t) * d <= rotation.size());

    ops.rmsnorm(xn.data(), x, w.attn_norm, c.norm_eps, T);
    for (int g = 0; g < c.G; g++) {
        float* qg = q.data() + size_t(g) * t * size_t(m) * d;
        size_t side = size_t(g) * t * d;
        ops.matmul(qg, xn.data(), rows_of(w.wq, g * m * c.d, m * c.d), T, false);  // (T, m, d)
        ops.matmul(k.data() + side, xn.data(), rows_of(w.wk, g * c.d, c.d), T, false);
        ops.matmul(v.data() + side, xn.data(), rows_of(w.wv, g * c.d, c.d), T, false);
        std::copy_n(k.data() + side, t * d, k_rotated.data() + side);
        ops.rope(qg, nullptr, rotation.data(), m, 0, c.d, at);
        ops.rope(k_rotated.data() + side, nullptr, rotation.data(), 1, 0, c.d, at);
    }
}

void LayerPass::cut_head(const LayerCuts& cuts, int g) {
    Backend& ops = *model.backend;
    size_t count = size_t(T) * size_t(c.d), side = size_t(g) * count;
    const Cut &cut_k = cuts.k[size_t(g)], &cut_v = cuts.v[size_t(g)];
    const float* from = cuts.rotated ? k_rotated.data() : k.data();
    if (cut_k.transposed.empty()) {
        std::copy_n(k_rotated.data() + side, count, k_cut.data() + side);
    } else {
        Weight P{cut_k.transposed.data(), DType::F32, c.d, c.d};
        ops.matmul(k_cut.data() + side, from + side, P, T, false);
        if (!cuts.rotated) ops.rope(k_cut.data() + side, nullptr, rotation.data(), 1, 0, c.d, at);
    }
    if (cut_v.transposed.empty()) {
        std::copy_n(v.data() + side, count, v_cut.data() + side);
    } else {
        Weight P{cut_v.transposed.data(), DType::F32, c.d, c.d};
        ops.matmul(v_cut.data() + side, v.data() + side, P, T, false);
    }
}

// heads_g = softmax(q_g k̃_gᵀ / √d) ṽ_g, and its columns of att.
void LayerPass::attend(int g) {
    Backend& ops = *model.backend;
    size_t d = size_t(c.d), t = size_t(T), wide = size_t(m) * d;
    const float *qg = q.data() + size_t(g) * t * wide, *kg = k_cut.data() + size_t(g) * t * d;
    float* heads_g = heads.data() + size_t(g) * t * wide;
    float scale = float(1 / std::sqrt(double(c.d)));
    for_blocks(T, m, [&](const Block& b) {
        float* pb = p.data() + size_t(g) * block_floats(T, m) + b.offset;
        size_t first = size_t(b.first) * wide;
        Weight keys{kg, DType::F32, b.seen, c.d};
        Weight values{v_cut.data() + size_t(g) * t * d, DType::F32, b.seen, c.d};
        ops.matmul(pb, qg + first, keys, b.tokens * m, false);
        causal_softmax(threads, pb, b.tokens, m, b.seen, b.first, scale);
        ops.matmul_transposed(heads_g + first, pb, values, b.tokens * m);
    });
    size_t row = size_t(c.H) * d;
    for (size_t i = 0; i < t; i++)
        std::copy_n(heads_g + i * wide, wide, att.data() + i * row + size_t(g) * wide);
}

// From the heads to the layer's output.
void LayerPass::finish() {
    Backend& ops = *model.backend;
    const Model::Layer& w = model.layer[size_t(l)];
    size_t rows = size_t(T) * size_t(c.D);
    std::copy_n(x, rows, x1.data());
    ops.matmul(x1.data(), att.data(), w.wo, T, true);  // x1 = x + att Woᵀ

    ops.rmsnorm(xn.data(), x1.data(), w.ffn_norm, c.norm_eps, T);
    ops.matmul(gate.data(), xn.data(), w.w_gate, T, false);  // (T, F)
    ops.matmul(up.data(), xn.data(), w.w_up, T, false);      // (T, F)
    std::copy_n(gate.data(), size_t(T) * size_t(c.F), h.data());
    ops.swiglu(h.data(), up.data(), T, c.F);
    std::copy_n(x1.data(), rows, out.data());
    ops.matmul(out.data(), h.data(), w.w_down, T, true);  // Ŷ = x1 + (silu(gate) ⊙ up) W_downᵀ
}

void LayerPass::forward(const LayerCuts& cuts) {
    for (int g = 0; g < c.G; g++) {
        cut_head(cuts, g);
        attend(g);
    }
    finish();
}

void LayerPass::change(const LayerCuts& cuts, int g) {
    cut_head(cuts, g);
    attend(g);
    finish();
}

}  // namespace stief
