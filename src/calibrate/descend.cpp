// README.md §3: every step draws a mini-batch of sequences, goes there and back once, and moves every
// basis of the layer. Every second step cuts each head at the rank that it will have, the others
// RANK_STEP below or above: what is learned serves the budget at hand and the ones near it. What is
// better at other ranks is up to the curves of both (LearnedLayer::best).
//
// Unlike the method's tau = 0.05 a step is 0.1: in 150 steps of parlour from the query metric's
// eigenbases it ends lower (KL at 1/4 of the bytes 0.144 against 0.151, at 1/2 0.0323 against
// 0.0336; with ranks drawn from d/8 … 7d/8).
#include <algorithm>

#include "calibrate/learned_layer.h"
#include "calibrate/stiefel.h"

namespace stief {

double held_out_error(LayerPass& pass, const LayerInputs& inputs, int l, const LayerCuts& cuts) {
    double error = 0, energy = 0;
    for (size_t s = 0; s < inputs.held_out.count(); s++) {
        pass.begin(l, inputs.held_x(s), inputs.held_out.step(s));
        pass.forward(cuts);
        error += pass.squared_error(inputs.held_y(s));
        energy += inputs.held_energy(s);
    }
    return error / energy;
}

static LayerGradient batch_gradient(LayerPass& pass, const LayerInputs& inputs, int l,
                                    const LayerCuts& cuts, const std::vector<size_t>& batch,
                                    const std::function<void()>& progress) {
    LayerGradient gradient(pass.c);
    double energy = 0;
    for (size_t s : batch) energy += inputs.learn_energy(s);
    for (size_t s : batch) {
        pass.begin(l, inputs.learn_x(s), inputs.learn.step(s));
        pass.forward(cuts);
        pass.backward(cuts, inputs.learn_y(s), 1 / energy, gradient);
        progress();
    }
    return gradient;
}

// ∂Δ/∂Q of a unit; heads that share a basis add up.
static Matrix unit_gradient(const BasisUnit& unit, const Matrix& Q, const LayerGradient& gradient,
                            const LayerRanks& ranks) {
    Matrix sum(Q.rows, Q.cols);
    for (int g = unit.first; g < unit.first + unit.count; g++) {
        const Matrix& moment = (unit.values ? gradient.v : gradient.k)[size_t(g)];
        Matrix AtB = times(times(unit.metric.S, moment), unit.metric.S_inverse);
        add_scaled(sum, 1, stiefel_gradient(Q, AtB, size_t(ranks.at(unit.values, g))));
    }
    return sum;
}

// The retraction of every unit at once.
static void turn_all(Backward& backward, std::vector<StiefelState>& states,
                     const std::vector<StiefelTurn>& turns) {
    std::vector<Turn> all;
    for (size_t u = 0; u < states.size(); u++)
        if (turns[u].tau != 0) all.push_back({&states[u].Q, &turns[u].W, turns[u].tau});
    backward.cayley(all);
}

// At every second step the ranks themselves.
static LayerRanks ranks_near(const LayerRanks& ranks, int d, int t, Random& random) {
    LayerRanks near = ranks;
    if (t % 2)
        for (std::vector<int>* side : {&near.k, &near.v})
            for (int& r : *side)
                r = std::clamp(r + (random.below(2) ? RANK_STEP : -RANK_STEP), 0, d);
    return near;
}

void descend(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l,
             const LayerRanks& ranks, const CalibrationOptions& options,
             const std::function<void()>& progress) {
    const Config& c = pass.c;
    Random random(options.seed * 1000003 + uint64_t(l) + 1);
    std::vector<StiefelState> states;
    for (const BasisUnit& unit : bases.units) states.emplace_back(unit.warm);

    for (int t = 0; t < options.steps; t++) {
        std::vector<size_t> batch;
        for (int i = 0; i < options.batch; i++) batch.push_back(random.below(inputs.learn.count()));
        LayerRanks now = ranks_near(ranks, c.d, t, random);
        LayerCuts cuts = cuts_at(c, bases, now, Which::Learned);
        LayerGradient gradient = batch_gradient(pass, inputs, l, cuts, batch, progress);
        double tau = annealed(options.tau, t, options.steps);
        std::vector<StiefelTurn> turns(states.size());
        pass.threads.run(states.size(), [&](size_t u) {
            Matrix G = unit_gradient(bases.units[u], states[u].Q, gradient, now);
            turns[u] = stiefel_turn(states[u], G, tau);
        });
        turn_all(*pass.ops_back, states, turns);
        for (size_t u = 0; u < states.size(); u++) bases.units[u].Q = states[u].Q;
    }
    for (BasisUnit& unit : bases.units) unit.Q = finished(unit.Q, "descent");
    bases.descended = options.steps > 0;
}

}  // namespace stief
