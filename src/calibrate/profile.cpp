// Error against rank, README.md §4: Δ of each head's keys or values alone cut, on held-out
// sequences. What does not change is computed once: projections, and attention of the other heads.
#include <algorithm>
#include <cmath>

#include "calibrate/learned_layer.h"

namespace stief {

// 0, then steps of d/16 up to d/2, where curves bend and budgets end, then of d/8; never below
// RANK_STEP.
static std::vector<int> profile_ranks(int d) {
    std::vector<int> ranks;
    int fine = std::max(d / 16, std::min(RANK_STEP, d)), coarse = std::max(d / 8, fine);
    for (int r = 0; r < d; r += r < d / 2 ? fine : coarse) ranks.push_back(r);
    return ranks;
}

// Of the learned bases; before the descent those are the eigenbases.
static void add_errors(LayerPass& pass, const LayerInputs& inputs, const LearnedLayer& bases,
                       size_t s, int g, bool values, std::vector<RankPoint>& curve) {
    LayerCuts cuts(pass.c, bases.rotated);
    cuts.dtype = bases.cache;
    const BasisUnit& unit = bases.unit(values, g);
    for (RankPoint& point : curve) {
        if (point.rank == pass.c.d) continue;
        (values ? cuts.v : cuts.k)[size_t(g)] =
            cut_to_rank(unit.Q, unit.metric, size_t(point.rank));
        pass.change(cuts, g);
        point.error += pass.squared_error(inputs.held_y(s));
    }
}

static void measure_errors(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l) {
    const Config& c = pass.c;
    bases.errors.clear();
    for (int r : {c.d / 4, c.d / 2}) {
        auto error = [&](Which which) {
            LayerCuts cuts = cuts_at(c, bases, LayerRanks::all(c, r, r), which);
            return std::sqrt(held_out_error(pass, inputs, l, cuts));
        };
        double warm = error(Which::Warm);
        bases.errors.push_back({r, warm, bases.descended ? error(Which::Learned) : warm});
    }
}

size_t curve_sequences(const Config& config, size_t held_out) {
    return std::min(held_out, size_t(std::max(2, 16 / config.G)));
}

void profile(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l,
             const std::function<void()>& progress) {
    const Config& c = pass.c;
    measure_errors(pass, inputs, bases, l);
    std::vector<RankPoint> empty;
    for (int r : profile_ranks(c.d)) empty.push_back({r, 0});
    empty.push_back({c.d, 0});
    bases.k.assign(size_t(c.G), empty);
    bases.v = bases.k;

    double energy = 0;
    LayerCuts whole(c, bases.rotated);
    for (size_t s = 0; s < curve_sequences(c, inputs.held_out.count()); s++) {
        energy += inputs.held_energy(s);
        pass.begin(l, inputs.held_x(s), inputs.held_out.step(s));
        pass.forward(whole);
        for (int g = 0; g < c.G; g++) {
            add_errors(pass, inputs, bases, s, g, false, bases.k[size_t(g)]);
            add_errors(pass, inputs, bases, s, g, true, bases.v[size_t(g)]);
            pass.change(whole, g);
            progress();
        }
    }
    for (Curves* side : {&bases.k, &bases.v})
        for (std::vector<RankPoint>& curve : *side)
            for (RankPoint& point : curve) point.error /= energy;
    if (!bases.descended) bases.warm_k = bases.k, bases.warm_v = bases.v;
}

}  // namespace stief
