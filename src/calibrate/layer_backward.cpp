// The way back: README §2, from the top.
//
//     dŶ = 2 (Ŷ − Y) · scale
//     dh = dŶ W_down,  (dgate, dup) by silu(gate) ⊙ up,  dxn = dgate W_gate + dup W_up
//     dx1 = dŶ + the norm's way back,  datt = dx1 W_o
//     dP = dO ṽᵀ,  dS = P ⊙ (dP − rowsum(dP ⊙ P)) / √d,  dk̃ = dSᵀ q,  dṽ = Pᵀ dO     (m heads add
//     up)
#include <algorithm>
#include <cmath>

#include "calibrate/elementwise.h"
#include "calibrate/layer_blocks.h"
#include "calibrate/layer_loss.h"

namespace stief {

void LayerPass::backward(const LayerCuts& cuts, const float* y, double scale,
                         LayerGradient& gradient) {
    size_t count = size_t(T) * size_t(c.D);
    scaled_difference(threads, dy.data(), out.data(), y, float(2 * scale), count);
    pull_back();
    to_gradient(cuts, gradient);
}

// dy: in dŶ; out dk of rotated keys, dv.
void LayerPass::pull_back() {
    back_through_mlp();
    model.backend->matmul_transposed(datt.data(), dy.data(), model.layer[size_t(l)].wo, T);
    for (int g = 0; g < c.G; g++) back_through_attention(g);
}

// dy: in dŶ, out dx1.
void LayerPass::back_through_mlp() {
    Backend& ops = *model.backend;
    const Model::Layer& w = model.layer[size_t(l)];
    size_t count = size_t(T) * size_t(c.D);
    ops.matmul_transposed(dh.data(), dy.data(), w.w_down, T);  // (T, F)
    swiglu_backward(threads, dgate.data(), dup.data(), dh.data(), gate.data(), up.data(), T, c.F);
    ops.matmul_transposed(dxn.data(), dgate.data(), w.w_gate, T);  // (T, D)
    ops.matmul_transposed(xn.data(), dup.data(), w.w_up, T);
    add_to(threads, dxn.data(), xn.data(), count);
    widen(ffn_norm.data(), w.ffn_norm);
    rmsnorm_backward(threads, dy.data(), dxn.data(), x1.data(), ffn_norm.data(), c.norm_eps, T,
                     c.D);
}

// to (columns, rows) ← from (rows, columns)
static void transpose_into(float* to, const float* from, size_t rows, size_t columns) {
    for (size_t j = 0; j < columns; j++)
        for (size_t i = 0; i < rows; i++) to[j * rows + i] = from[i * columns + j];
}

// to_s += from_.,s for the first seen rows of to.
static void add_transposed(float* to, const float* from, size_t seen, size_t d) {
    for (size_t s = 0; s < seen; s++)
        for (size_t i = 0; i < d; i++) to[s * d + i] += from[i * seen + s];
}

void LayerPass::back_through_attention(int g) {
    Backend& ops = *model.backend;
    size_t d = size_t(c.d), t = size_t(T), wide = size_t(m) * d, row = size_t(c.H) * d;
    float* dheads_g = dheads.data() + size_t(g) * t * wide;
    for (size_t i = 0; i < t; i++)
        std::copy_n(datt.data() + i * row + size_t(g) * wide, wide, dheads_g + i * wide);
    float *dkg = dk.data() + size_t(g) * t * d, *dvg = dv.data() + size_t(g) * t * d;
    std::fill_n(dkg, t * d, 0.0f);
    std::fill_n(dvg, t * d, 0.0f);
    float scale = float(1 / std::sqrt(double(c.d)));

    for_blocks(T, m, [&](const Block& b) {
        int rows = b.tokens * m;
        size_t first = size_t(b.first) * wide, here = size_t(g) * t * wide + first;
        const float* pb = p.data() + size_t(g) * block_floats(T, m) + b.offset;
        Weight values{v_cut.data() + size_t(g) * t * d, DType::F32, b.seen, c.d};
        ops.matmul(dp.data(), dheads_g + first, values, rows, false);  // dP = dO ṽᵀ
        causal_softmax_backward(threads, dp.data(), pb, heads.data() + here, dheads_g + first,
                                b.tokens, m, b.seen, b.first, c.d, scale);

        // dṽᵀ = dOᵀ P, then dk̃ᵀ = qᵀ dS: the transposed side is the narrow one.
        float *left = turned.data(), *product = turned.data() + size_t(rows) * d;
        transpose_into(left, dheads_g + first, size_t(rows), d);
        ops.matmul_transposed(product, left, {pb, DType::F32, rows, b.seen}, c.d);
        add_transposed(dvg, product, size_t(b.seen), d);
        transpose_into(left, q.data() + here, size_t(rows), d);
        ops.matmul_transposed(product, left, {dp.data(), DType::F32, rows, b.seen}, c.d);
        add_transposed(dkg, product, size_t(b.seen), d);
    });
}

// Heads are independent: one piece each.
void LayerPass::to_gradient(const LayerCuts& cuts, LayerGradient& gradient) {
    size_t d = size_t(c.d), count = size_t(T) * d;
    if (!cuts.rotated)
        for (size_t g = 0; g < size_t(c.G); g++)
            rope_backward(threads, dk.data() + g * count, rotation.data(), 1, c.d, at);
    const std::vector<float>& keys = cuts.rotated ? k_rotated : k;
    threads.run(2 * size_t(c.G), [&](size_t i) {
        size_t g = i / 2, side = g * count;
        if (i % 2 == 0)
            add_gram(gradient.k[g], keys.data() + side, d, dk.data() + side, d, size_t(T));
        else
            add_gram(gradient.v[g], v.data() + side, d, dv.data() + side, d, size_t(T));
    });
}

}  // namespace stief
