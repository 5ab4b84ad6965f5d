// The layer pass where one basis serves the values of all heads of a layer: their rows are brought
// together, (T, G·d), cut as one, and taken apart again.
#include <algorithm>

#include "calibrate/layer_loss.h"

namespace stief {

void LayerPass::together(float* to, const float* from) {
    size_t d = size_t(c.d), G = size_t(c.G), t = size_t(T);
    for (size_t g = 0; g < G; g++) ops_back->copy_rows(to + g * d, G * d, from + g * t * d, d, t, d);
}

void LayerPass::apart(float* to, const float* from) {
    size_t d = size_t(c.d), G = size_t(c.G), t = size_t(T);
    for (size_t g = 0; g < G; g++) ops_back->copy_rows(to + g * t * d, d, from + g * d, G * d, t, d);
}

// v_cut ← unpack(pack(v E)) D. Scratch: dkv.
void LayerPass::cut_joint_values(const LayerCuts& cuts) {
    size_t d = size_t(c.d), G = size_t(c.G), t = size_t(T);
    const Cut& cut = cuts.v[0];
    if (cut.nothing()) return ops_back->copy(v_cut, v, G * t * d);
    float *rows = dkv, *latents = dkv + G * t * d;
    int width = c.G * c.d;
    together(rows, v);
    store(latents, rows, cut, cuts, width);
    Weight D{decode_staged.read(cut.decode.data(), cut.decode.size()), DType::F32, width, width};
    model.backend->matmul_transposed(rows, latents, D, T);
    apart(v_cut, rows);
    size_t whole = cut.lossless ? 0 : size_t(std::min(T, cuts.sinks));
    for (size_t g = 0; g < G && whole; g++)
        ops_back->copy(v_cut + g * t * d, v + g * t * d, whole * d);
}

// dv (G, T, d) in place. Scratch: att, heads.
void LayerPass::back_through_joint_values(float* dv_all, const LayerCuts& cuts) {
    together(att, dv_all);
    back_through_cut(att, cuts.v[0], cuts.sinks, c.G * c.d, heads);
    apart(dv_all, att);
}

// Scratch: att, datt, heads.
void LayerPass::add_joint_gradient(const LayerCuts& cuts, LayerGradient& gradient) {
    const Cut& cut = cuts.v[0];
    if (cut.nothing() || cut.format.kept() == 0) return;
    int width = c.G * c.d, whole = std::min(T, cuts.sinks), count = T - whole;
    size_t skip = size_t(whole) * size_t(width);
    together(att, v), together(datt, dv);
    store(heads, att, cut, cuts, width);
    ops_back->add_grams({{{&gradient.v[0], att + skip, datt + skip, count, width},
                          {&gradient.stored_v[0], heads + skip, datt + skip, count, width}}});
}

}  // namespace stief
