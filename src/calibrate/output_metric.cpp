#include "calibrate/output_metric.h"

#include <algorithm>

#include "calibrate/elementwise.h"

namespace stief {

OutputMoments::OutputMoments(const Config& config)
    : k(size_t(config.G),
        {Matrix(size_t(config.d), size_t(config.d)), Matrix(size_t(config.d), size_t(config.d))}),
      k_rotated(k),
      v(k) {}

static void add_tokens(ProbedSide& side, const float* g, const float* k, size_t T, size_t d) {
    std::vector<float> weighted(T * d);
    for (size_t t = 0; t < T; t++) {
        double weight = 0;  // ‖g_t‖²
        for (size_t i = t * d; i < (t + 1) * d; i++) weight += double(g[i]) * double(g[i]);
        for (size_t i = t * d; i < (t + 1) * d; i++) weighted[i] = float(weight) * k[i];
    }
    add_gram(side.energy, g, d, g, d, T);
    add_gram(side.moment, weighted.data(), d, k, d, T);
}

void LayerPass::probe(const float* u, OutputMoments& sums) {
    std::copy_n(u, size_t(T) * size_t(c.D), dy.data());
    pull_back();
    size_t count = size_t(T) * size_t(c.d);
    threads.run(size_t(c.G), [&](size_t g) {
        size_t side = g * count;
        add_tokens(sums.v[g], dv.data() + side, v.data() + side, size_t(T), size_t(c.d));
        add_tokens(sums.k_rotated[g], dk.data() + side, k_rotated.data() + side, size_t(T),
                   size_t(c.d));
    });
    for (size_t g = 0; g < size_t(c.G); g++)
        rope_backward(threads, dk.data() + g * count, rotation.data(), 1, c.d, at);
    threads.run(size_t(c.G), [&](size_t g) {
        add_tokens(sums.k[g], dk.data() + g * count, k.data() + g * count, size_t(T), size_t(c.d));
    });
}

OutputMoments probe_output(LayerPass& pass, const LayerInputs& inputs, int l, uint64_t seed,
                           const std::function<void()>& progress) {
    OutputMoments sums(pass.c);
    LayerCuts whole(pass.c, false);
    Random random(seed * 1000003 + uint64_t(l) + (uint64_t(1) << 32));  // not the descent's stream
    std::vector<float> u(inputs.floats());
    for (size_t s = 0; s < inputs.learn.count(); s++) {
        pass.begin(l, inputs.learn_x(s), inputs.learn.step(s));
        pass.forward(whole);
        for (float& x : u) x = float(random.normal());
        pass.probe(u.data(), sums);
        progress();
    }
    return sums;
}

}  // namespace stief
