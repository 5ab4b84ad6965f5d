#include "calibrate/output_metric.h"

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
    Backend& ops = *model.backend;
    ops.upload(dy, u, size_t(T) * size_t(c.D) * sizeof(float));
    pull_back(LayerCuts(c, false));
    size_t d = size_t(c.d), count = size_t(T) * d, all = size_t(c.G) * count;
    std::vector<float> g(all), rows(all);
    auto add_side = [&](std::vector<ProbedSide>& side, const float* gradient, const float* of) {
        ops.download(g.data(), gradient, all * sizeof(float));
        ops.download(rows.data(), of, all * sizeof(float));
        threads.run(side.size(), [&](size_t i) {
            add_tokens(side[i], g.data() + i * count, rows.data() + i * count, size_t(T), d);
        });
    };
    add_side(sums.v, dv, v);
    add_side(sums.k_rotated, dk, k_rotated);
    for (size_t i = 0; i < size_t(c.G); i++)
        model.backend->rope(dk + i * count, turns, 1, c.d, at, true);
    add_side(sums.k, dk, k);
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
