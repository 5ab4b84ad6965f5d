// README.md §3: every step draws a mini-batch of sequences and one pair of ranks (r_K, r_V)
// from the grid d/8 … 7d/8 for all heads, goes there and back once, and moves every basis of the
// layer.
//
// Keep or revert: bases nest, one Q serves every rank, so the choice is made once for a layer's
// keys and once for its values, by the sum over the grid of held-out errors with that side alone
// cut.
//
// Unlike the method's tau = 0.05 a step is 0.1: in 150 steps of parlour from the query metric's
// eigenbases it ends lower (KL at 1/4 of the bytes 0.144 against 0.151, at 1/2 0.0323 against
// 0.0336).
#include <algorithm>

#include "calibrate/learned_layer.h"
#include "calibrate/stiefel.h"

namespace stief {

// d/8, 2d/8 … 7d/8, in multiples of RANK_STEP where d/8 is less.
static std::vector<int> rank_grid(int d) {
    int step = std::max(d / 8, 1);
    std::vector<int> ranks;
    for (int r = step; r < d; r += step) ranks.push_back(r);
    return ranks;
}

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

// Σ_r Δ_l with one side cut, at the ranks of the grid.
static double side_error(LayerPass& pass, const LayerInputs& inputs, const LearnedLayer& bases,
                         int l, bool values, bool warm) {
    const Config& c = pass.c;
    std::vector<int> whole(size_t(c.G), c.d);
    double sum = 0;
    for (int r : rank_grid(c.d)) {
        std::vector<int> ranks(size_t(c.G), r);
        LayerCuts cuts =
            values ? cuts_at(c, bases, whole, ranks, warm) : cuts_at(c, bases, ranks, whole, warm);
        sum += held_out_error(pass, inputs, l, cuts);
    }
    return sum;
}

static void keep_what_is_better(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases,
                                int l) {
    for (bool values : {false, true}) {
        double warm = side_error(pass, inputs, bases, l, values, true);
        double learned = side_error(pass, inputs, bases, l, values, false);
        if (learned < warm) continue;
        (values ? bases.kept_warm_v : bases.kept_warm_k) = true;
        for (BasisUnit& unit : bases.units)
            if (unit.values == values) unit.Q = unit.warm;
    }
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
                            int rank) {
    Matrix sum(Q.rows, Q.cols);
    for (int g = unit.first; g < unit.first + unit.count; g++)
        add_scaled(sum, 1, (unit.values ? gradient.v : gradient.k)[size_t(g)]);
    Matrix AtB = times(times(unit.metric.S, sum), unit.metric.S_inverse);
    return stiefel_gradient(Q, AtB, size_t(rank));
}

// The retraction of every unit at once.
static void turn_all(Backward& backward, std::vector<StiefelState>& states,
                     const std::vector<StiefelTurn>& turns) {
    std::vector<Turn> all;
    for (size_t u = 0; u < states.size(); u++)
        if (turns[u].tau != 0) all.push_back({&states[u].Q, &turns[u].W, turns[u].tau});
    backward.cayley(all);
}

void descend(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l,
             const CalibrationOptions& options, const std::function<void()>& progress) {
    const Config& c = pass.c;
    Random random(options.seed * 1000003 + uint64_t(l) + 1);
    std::vector<StiefelState> states;
    for (const BasisUnit& unit : bases.units) states.emplace_back(unit.warm);
    std::vector<int> grid = rank_grid(c.d);

    for (int t = 0; t < options.steps; t++) {
        std::vector<size_t> batch;
        for (int i = 0; i < options.batch; i++) batch.push_back(random.below(inputs.learn.count()));
        int rk = grid[random.below(grid.size())], rv = grid[random.below(grid.size())];
        std::vector<int> rank_k(size_t(c.G), rk), rank_v(size_t(c.G), rv);
        LayerCuts cuts = cuts_at(c, bases, rank_k, rank_v);
        LayerGradient gradient = batch_gradient(pass, inputs, l, cuts, batch, progress);
        double tau = annealed(options.tau, t, options.steps);
        std::vector<StiefelTurn> turns(states.size());
        pass.threads.run(states.size(), [&](size_t u) {
            BasisUnit& unit = bases.units[u];
            Matrix G = unit_gradient(unit, states[u].Q, gradient, unit.values ? rv : rk);
            turns[u] = stiefel_turn(states[u], G, tau);
        });
        turn_all(*pass.ops_back, states, turns);
        for (size_t u = 0; u < states.size(); u++) bases.units[u].Q = states[u].Q;
    }
    for (BasisUnit& unit : bases.units) unit.Q = finished(unit.Q, "descent");
    if (options.steps > 0) keep_what_is_better(pass, inputs, bases, l);
}

}  // namespace stief
