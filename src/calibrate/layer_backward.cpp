// The way back: README.md §2, from the top.
//
//     dŶ = 2 (Ŷ − Y) · scale
//     dh = dŶ W_down,  (dgate, dup) by silu(gate) ⊙ up,  dxn = dgate W_gate + dup W_up
//     dx1 = dŶ + the norm's way back,  datt = dx1 W_o
//     dP = dO ṽᵀ,  dS = P ⊙ (dP − rowsum(dP ⊙ P)) / √d,  dk̃ = dSᵀ q,  dṽ = Pᵀ dO
//
// dk̃ and dṽ add up over the m query heads of a kv head.
#include <algorithm>
#include <cmath>

#include "calibrate/layer_loss.h"

namespace stief {

void LayerPass::backward(const LayerCuts& cuts, const float* Y, double scale,
                         LayerGradient& gradient) {
    size_t count = size_t(T) * size_t(c.D);
    ops_back->scaled_difference(dy, out, target(Y), float(2 * scale), count);
    pull_back();
    to_gradient(cuts, gradient);
}

// dy: in dŶ, out dx1; dk of rotated keys, dv; with queries dheads: of rotated queries.
void LayerPass::pull_back(bool queries) {
    back_through_mlp();
    model.backend->matmul_transposed(datt, dy, model.layer[size_t(l)].wo, T);
    for (int g = 0; g < c.G; g++) back_through_attention(g, queries);
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

void LayerPass::back_through_attention(int g, bool queries) {
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
        Weight keys{k_cut + side, DType::F32, b.seen, c.d};
        float* dq = att;  // free on the way back
        if (queries) model.backend->matmul_transposed(dq, dp, keys, rows);
        split_block(g, b, here);
        if (queries) ops_back->copy(dheads_g + first, dq, size_t(rows) * d);
    });
}

// What is asked of keys and values from each distance on: p and dp lose what is nearer.
void LayerPass::split_block(int g, const Block& b, size_t here) {
    float* pb = p + size_t(g) * block_floats(T, m) + b.offset;
    size_t side = size_t(g) * size_t(T) * size_t(c.d);
    int rows = b.tokens * m;
    for (size_t i = 0; i < distances.size(); i++) {
        for (float* of : {pb, dp})
            ops_back->zero_near(of, b.tokens, m, b.seen, b.first, distances[i]);
        ops_back->add_transposed_product(dv_from[i] + side, pb, dheads + here, rows, b.seen, c.d);
        ops_back->add_transposed_product(dk_from[i] + side, dp, q + here, rows, b.seen, c.d);
    }
}

void LayerPass::split_by_distance(const std::vector<int>& from) {
    distances = from;
    size_t each = size_t(c.G) * size_t(most) * size_t(c.d);
    split = Buffer(*model.backend, 2 * from.size() * each * sizeof(float), "gradients by distance");
    dk_from.clear(), dv_from.clear();
    for (size_t i = 0; i < from.size(); i++) {
        dk_from.push_back(split.f32() + 2 * i * each);
        dv_from.push_back(split.f32() + (2 * i + 1) * each);
    }
}

// dx ← dx (E_r D_r)ᵀ for the tokens that are cut to the first r coordinates.
// latents: scratch (T, width).
void LayerPass::back_through_cut(float* dx, const Cut& cut, int sinks, int width, float* latents) {
    size_t d = size_t(width), whole = size_t(std::min(T, sinks)), count = (size_t(T) - whole) * d;
    int r = cut.format.kept();
    if (cut.encode.empty() || (cut.lossless && r == width)) return;
    ops_back->zero(latents, count);
    if (r == 0) return ops_back->copy(dx + whole * d, latents, count);
    Weight D{decode_staged.read(cut.decode.data(), d * d), DType::F32, r, width};
    std::vector<float> stored(d * size_t(r));  // E_r
    for (size_t i = 0; i < d; i++)
        std::copy_n(cut.encode.data() + i * d, r, stored.data() + i * size_t(r));
    Weight E{cut_staged.read(stored.data(), stored.size()), DType::F32, width, r};
    model.backend->matmul(latents, dx + whole * d, D, T - int(whole), false);
    model.backend->matmul(dx + whole * d, latents, E, T - int(whole), false);
}

// From dq, dk and dv to dy, which has dx1 so far: out ∂/∂x. Scratch: datt, att, heads.
void LayerPass::back_through_projections(const LayerCuts& cuts) {
    Backend& ops = *model.backend;
    const Model::Layer& w = model.layer[size_t(l)];
    size_t d = size_t(c.d), t = size_t(T), wide = size_t(m) * d, G = size_t(c.G);
    float *keys = att, *values = heads;  // (T, G, d) ×2
    ops_back->copy(dkv, dk, G * t * d);
    ops_back->copy(dkv + G * t * d, dv, G * t * d);
    if (cuts.joint) back_through_joint_values(dkv + G * t * d, cuts);
    for (size_t g = 0; g < G; g++) {
        float *dq_g = dheads + g * t * wide, *dk_g = dkv + g * t * d, *dv_g = dk_g + G * t * d;
        ops_back->rope_backward(dq_g, turns, m, c.d, at);
        back_through_cut(dk_g, cuts.k[g], cuts.sinks, c.d, latent);
        if (cuts.rotated) ops_back->rope_backward(dk_g, turns, 1, c.d, at);
        if (!cuts.joint) back_through_cut(dv_g, cuts.v[g], cuts.sinks, c.d, latent);
        ops_back->copy_rows(datt + g * wide, size_t(c.H) * d, dq_g, wide, t, wide);
        ops_back->copy_rows(keys + g * d, G * d, dk_g, d, t, d);
        ops_back->copy_rows(values + g * d, G * d, dv_g, d, t, d);
    }
    ops.matmul_transposed(dxn, datt, w.wq, T);
    ops.matmul_transposed(xn, keys, w.wk, T);
    ops_back->add(dxn, xn, t * size_t(c.D));
    ops.matmul_transposed(xn, values, w.wv, T);
    ops_back->add(dxn, xn, t * size_t(c.D));
    ops_back->rmsnorm_backward(dy, dxn, x, w.attn_norm, c.norm_eps, T);
}

void LayerPass::back_to_input(const LayerCuts& cuts, float* dx) {
    size_t rows = size_t(T) * size_t(c.D), each = size_t(T) * size_t(c.d);
    ops_back->copy(dy, dx, rows);
    pull_back(true);
    for (size_t g = 0; g < size_t(c.G) && !cuts.rotated; g++) {
        ops_back->rope_backward(dk + g * each, turns, 1, c.d, at);
        for (float* far : dk_from) ops_back->rope_backward(far + g * each, turns, 1, c.d, at);
    }
    back_through_projections(cuts);
    ops_back->copy(dx, dy, rows);
}

// Tokens whose rows are whole in any case ask nothing of the basis.
void LayerPass::add_basis_gradient(const LayerCuts& cuts, LayerGradient& gradient) {
    size_t d = size_t(c.d), each = size_t(T) * d, G = size_t(c.G);
    int whole = std::min(T, cuts.sinks);
    size_t skip = size_t(whole) * d;
    std::vector<Gram> all;
    for (bool values : {false, true})
        for (size_t g = 0; g < G && !(values && cuts.joint); g++) {
            const Cut& cut = (values ? cuts.v : cuts.k)[g];
            if (cut.encode.empty() || cut.format.kept() == 0) continue;
            const float* from = (values ? v : cuts.rotated ? k_rotated : k) + g * each;
            const float* asked = (values ? dv : dk) + g * each + skip;
            float* latents = dkv + (g + (values ? G : 0)) * each;
            store(latents, from, cut, cuts, c.d);
            all.push_back({&(values ? gradient.v : gradient.k)[g], from + skip, asked, T - whole, c.d});
            all.push_back({&(values ? gradient.stored_v : gradient.stored_k)[g], latents + skip, asked,
                           T - whole, c.d});
        }
    ops_back->add_grams(all);
    if (cuts.joint) add_joint_gradient(cuts, gradient);
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
