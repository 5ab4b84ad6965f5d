// The way back: README.md §2, from the top.
//
//     dŶ = 2 (Ŷ − Y) · scale
//     dh = dŶ W_down,  (dgate, dup) by silu(gate) ⊙ up,  dxn = dgate W_gate + dup W_up
//     dx1 = dŶ + the norm's way back,  datt = dx1 W_o
//     dP = dO ṽᵀ,  dS = P ⊙ (dP − rowsum(dP ⊙ P)) / √d,  dk̃ = dSᵀ q,  dṽ = Pᵀ dO
//
// dk̃ and dṽ add up over the m query heads of a kv head.
#include <cmath>

#include "calibrate/layer_blocks.h"
#include "calibrate/layer_loss.h"

namespace stief {

void LayerPass::backward(const LayerCuts& cuts, const float* Y, double scale,
                         LayerGradient& gradient) {
    size_t count = size_t(T) * size_t(c.D);
    ops_back->scaled_difference(dy, out, target(Y), float(2 * scale), count);
    pull_back();
    to_gradient(cuts, gradient);
}

// dy: in dŶ; out dk of rotated keys, dv.
void LayerPass::pull_back() {
    back_through_mlp();
    model.backend->matmul_transposed(datt, dy, model.layer[size_t(l)].wo, T);
    for (int g = 0; g < c.G; g++) back_through_attention(g);
}

// dy: in dŶ, out dx1.
void LayerPass::back_through_mlp() {
    Backend& ops = *model.backend;
    const Model::Layer& w = model.layer[size_t(l)];
    ops.matmul_transposed(dh, dy, w.w_down, T);  // (T, F)
    ops_back->swiglu_backward(dgate, dup, dh, gate, up, T, c.F);
    ops.matmul_transposed(dxn, dgate, w.w_gate, T);  // (T, D)
    ops.matmul_transposed(xn, dup, w.w_up, T);
    ops_back->add(dxn, xn, size_t(T) * size_t(c.D));
    ops_back->rmsnorm_backward(dy, dxn, x1, w.ffn_norm, c.norm_eps, T);
}

void LayerPass::back_through_attention(int g) {
    size_t d = size_t(c.d), t = size_t(T), wide = size_t(m) * d, side = size_t(g) * t * d;
    float* dheads_g = dheads + size_t(g) * t * wide;
    ops_back->copy_rows(dheads_g, wide, datt + size_t(g) * wide, size_t(c.H) * d, t, wide);
    ops_back->zero(dk + side, t * d);
    ops_back->zero(dv + side, t * d);
    float scale = float(1 / std::sqrt(double(c.d)));

    for_blocks(T, m, [&](const Block& b) {
        int rows = b.tokens * m;
        size_t first = size_t(b.first) * wide, here = size_t(g) * t * wide + first;
        const float* pb = p + size_t(g) * block_floats(T, m) + b.offset;
        Weight values{v_cut + side, DType::F32, b.seen, c.d};
        model.backend->matmul(dp, dheads_g + first, values, rows, false);  // dP = dO ṽᵀ
        ops_back->causal_softmax_backward(dp, pb, heads + here, dheads_g + first, b.tokens, m,
                                          b.seen, b.first, c.d, scale);
        ops_back->add_transposed_product(dv + side, pb, dheads_g + first, rows, b.seen, c.d);
        ops_back->add_transposed_product(dk + side, dp, q + here, rows, b.seen, c.d);
    });
}

void LayerPass::to_gradient(const LayerCuts& cuts, LayerGradient& gradient) {
    size_t each = size_t(T) * size_t(c.d);
    const float* keys = cuts.rotated ? k_rotated : k;
    std::vector<Gram> all;
    for (size_t g = 0; g < size_t(c.G); g++) {
        size_t side = g * each;
        if (!cuts.rotated) ops_back->rope_backward(dk + side, turns, 1, c.d, at);
        all.push_back({&gradient.k[g], keys + side, dk + side, T, c.d});
        all.push_back({&gradient.v[g], v + side, dv + side, T, c.d});
    }
    ops_back->add_grams(all);
}

}  // namespace stief
