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

// to (G, T, d) ← unpack(pack(v E)) D at an age; −1: whole. Scratch: dkv.
void LayerPass::cut_joint_to(float* to, const LayerCuts& cuts, int age) {
    size_t d = size_t(c.d), G = size_t(c.G), t = size_t(T);
    const Cut& cut = cuts.v[0];
    if (cut.nothing() || (age < 0 && !cut.lossless)) return ops_back->copy(to, v, G * t * d);
    float *rows = dkv, *latents = dkv + G * t * d;
    int width = c.G * c.d;
    together(rows, v);
    store(latents, rows, cut, age < 0 ? RowFormat::whole(width) : cut.format[size_t(age)], cuts, width);
    Weight D{decode_staged.read(cut.decode.data(), cut.decode.size()), DType::F32, width, width};
    model.backend->matmul_transposed(rows, latents, D, T);
    apart(to, rows);
    size_t whole = cut.lossless ? 0 : size_t(std::min(T, cuts.sinks));
    for (size_t g = 0; g < G && whole; g++)
        ops_back->copy(to + g * t * d, v + g * t * d, whole * d);
}

void LayerPass::cut_joint_values(const LayerCuts& cuts) {
    cut_joint_to(v_cut, cuts, int(ages()) - 1);
    for (size_t i = 0; i < near.size(); i++) cut_joint_to(near[i].v, cuts, int(i) - 1);
}

// dv (G, T, d) in place. Scratch: att, heads, part.
void LayerPass::back_through_joint_values(float* dv_all, const LayerCuts& cuts) {
    const Cut& cut = cuts.v[0];
    size_t count = size_t(c.G) * size_t(T) * size_t(c.d);
    if (cut.nothing()) return;
    auto through = [&](float* dx, size_t age) {
        together(att, dx);
        back_through_cut(att, cut, cut.format[age], cuts.sinks, c.G * c.d, heads);
        apart(dx, att);
    };
    if (distances.empty()) return through(dv_all, 0);
    ops_back->scaled_difference(dv_all, dv_all, dv_from[0], 1, count);
    for (size_t age = 0; age < ages(); age++) {
        of_age(part, dv_from, age, 0, count);
        through(part, age);
        ops_back->add(dv_all, part, count);
    }
}

// Scratch: att, datt, heads, part.
void LayerPass::add_joint_gradient(const LayerCuts& cuts, LayerGradient& gradient, size_t age) {
    const Cut& cut = cuts.v[0];
    if (cut.nothing() || cut.format[age].kept() == 0) return;
    int width = c.G * c.d, whole = std::min(T, cuts.sinks), count = T - whole;
    size_t skip = size_t(whole) * size_t(width);
    if (!distances.empty()) of_age(part, dv_from, age, 0, size_t(T) * size_t(width));
    together(att, v), together(datt, distances.empty() ? dv : part);
    store(heads, att, cut, cut.format[age], cuts, width);
    ops_back->add_grams({{{&gradient.v[0], att + skip, datt + skip, count, width},
                          {&gradient.stored_v[0], heads + skip, datt + skip, count, width}}});
}

}  // namespace stief
