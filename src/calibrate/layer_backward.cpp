// The way back: README.md §2, from the top.
//
//     dŶ = 2 (Ŷ − Y) · scale
//     dh = dŶ W_down,  (dgate, dup) by silu(gate) ⊙ up,  dxn = dgate W_gate + dup W_up
//     dx1 = dŶ + the norm's way back,  datt = dx1 W_o
//     dP = dO ṽᵀ,  dS = P ⊙ (dP − rowsum(dP ⊙ P)) / √d,  dk̃ = dSᵀ q,  dṽ = Pᵀ dO
//
// dk̃ and dṽ add up over the m query heads of a kv head.
#include <algorithm>

#include "calibrate/layer_loss.h"

namespace stief {

void LayerPass::backward(const LayerCuts& cuts, const float* Y, double scale,
                         LayerGradient& gradient) {
    size_t count = size_t(T) * size_t(c.D);
    ops_back->scaled_difference(dy, out, target(Y), float(2 * scale), count);
    pull_back(cuts);
    to_gradient(cuts, gradient);
}

// dy: in dŶ, out dx1; dk of rotated keys, dv; with queries dheads: of rotated queries.
void LayerPass::pull_back(const LayerCuts& cuts, bool queries) {
    back_through_mlp();
    model.backend->matmul_transposed(datt, dy, model.layer[size_t(l)].wo, T);
    for (int g = 0; g < c.G; g++) back_through_attention(cuts, g, queries);
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

// dx ← dx (E_r D_r)ᵀ for the tokens that are cut to the first r coordinates.
// latents: scratch (T, width).
void LayerPass::back_through_cut(float* dx, const Cut& cut, const RowFormat& format, int sinks,
                                 int width, float* latents) {
    size_t d = size_t(width), whole = size_t(std::min(T, sinks)), count = (size_t(T) - whole) * d;
    int r = format.kept();
    if (cut.lossless && r == width) return;
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

// to ← what queries ask that find head rows at that age; from: dk_from or dv_from
void LayerPass::of_age(float* to, const std::vector<float*>& from, size_t age, size_t side,
                       size_t count) {
    if (age + 1 == from.size()) return ops_back->copy(to, from[age] + side, count);
    ops_back->scaled_difference(to, from[age] + side, from[age + 1] + side, 1, count);
}

// dx: of all queries. What each age does not store passes nothing on.
void LayerPass::back_through_cuts(float* dx, const std::vector<float*>& from, size_t side,
                                  const Cut& cut, int sinks) {
    if (cut.nothing()) return;
    if (distances.empty()) return back_through_cut(dx, cut, cut.oldest(), sinks, c.d, latent);
    size_t count = size_t(T) * size_t(c.d);
    ops_back->scaled_difference(dx, dx, from[0] + side, 1, count);
    for (size_t age = 0; age < ages(); age++) {
        of_age(part, from, age, side, count);
        back_through_cut(part, cut, cut.format[age], sinks, c.d, latent);
        ops_back->add(dx, part, count);
    }
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
        model.backend->rope(dq_g, turns, m, c.d, at, true);
        back_through_cuts(dk_g, dk_from, g * t * d, cuts.k[g], cuts.sinks);
        if (cuts.rotated) model.backend->rope(dk_g, turns, 1, c.d, at, true);
        if (!cuts.joint) back_through_cuts(dv_g, dv_from, g * t * d, cuts.v[g], cuts.sinks);
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
    pull_back(cuts, true);
    for (size_t g = 0; g < size_t(c.G) && !cuts.rotated; g++) {
        model.backend->rope(dk + g * each, turns, 1, c.d, at, true);
        for (float* far : dk_from) model.backend->rope(far + g * each, turns, 1, c.d, at, true);
    }
    back_through_projections(cuts);
    ops_back->copy(dx, dy, rows);
}

// Tokens whose rows are whole in any case ask nothing of the basis.
void LayerPass::add_basis_gradient(const LayerCuts& cuts, std::vector<LayerGradient>& gradient) {
    size_t d = size_t(c.d), each = size_t(T) * d;
    int whole = std::min(T, cuts.sinks);
    size_t skip = size_t(whole) * d;
    auto add = [&](bool values, size_t g, const Cut& cut, size_t age) {
        const float* from = (values ? v : cuts.rotated ? k_rotated : k) + g * each;
        const float* asked = (values ? dv : dk) + g * each;
        if (!distances.empty()) {
            of_age(part, values ? dv_from : dk_from, age, g * each, each);
            asked = part;
        }
        store(dkv, from, cut, cut.format[age], cuts, c.d);
        if (!cut.mean.empty()) from = centred;  // as store left them
        LayerGradient& sum = gradient[age];
        Gram both[] = {
            {&(values ? sum.v : sum.k)[g], from + skip, asked + skip, T - whole, c.d},
            {&(values ? sum.stored_v : sum.stored_k)[g], dkv + skip, asked + skip, T - whole, c.d}};
        ops_back->add_grams(both);
    };
    for (bool values : {false, true})
        for (size_t g = 0; g < size_t(c.G) && !(values && cuts.joint); g++) {
            const Cut& cut = (values ? cuts.v : cuts.k)[g];
            for (size_t age = 0; !cut.nothing() && age < ages(); age++)
                if (cut.format[age].kept() > 0) add(values, g, cut, age);
        }
    for (size_t age = 0; cuts.joint && age < ages(); age++) add_joint_gradient(cuts, gradient[age], age);
}

void LayerPass::to_gradient(const LayerCuts& cuts, LayerGradient& gradient) {
    size_t each = size_t(T) * size_t(c.d);
    const float* keys = cuts.rotated ? k_rotated : k;
    std::vector<Gram> all;
    for (size_t g = 0; g < size_t(c.G); g++) {
        size_t side = g * each;
        if (!cuts.rotated) model.backend->rope(dk + side, turns, 1, c.d, at, true);
        all.push_back({&gradient.k[g], keys + side, dk + side, T, c.d});
        all.push_back({&gradient.v[g], v + side, dv + side, T, c.d});
    }
    ops_back->add_grams(all);
}

}  // namespace stief
