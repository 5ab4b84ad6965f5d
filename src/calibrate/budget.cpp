#include "calibrate/budget.h"

#include <cmath>

namespace stief {

size_t Ranks::coordinates() const {
    size_t sum = 0;
    for (const std::vector<std::vector<int>>* side : {&k, &v})
        for (const std::vector<int>& layer : *side)
            for (int r : layer) sum += size_t(r);
    return sum;
}

// Units in the order layer, head, keys, values.
GreedyPath path_of(const Config& config, const std::vector<LearnedLayer>& layers, DType cache) {
    std::vector<RankUnit> units;
    for (size_t l = 0; l < layers.size(); l++)
        for (size_t g = 0; g < size_t(config.G); g++)
            for (bool values : {false, true}) {
                std::string name =
                    format("layers.%zu head %zu %s", l, g, values ? "values" : "keys");
                const std::vector<RankPoint>& curve = (values ? layers[l].v : layers[l].k)[g];
                units.push_back({name, curve, layers[l].weight, int64_t(size_of(cache))});
            }
    return greedy_path(units);
}

Ranks ranks_of(const Config& config, const GreedyPath& path, size_t steps) {
    std::vector<int> flat = ranks_after(path, steps);
    Ranks ranks;
    size_t G = size_t(config.G), L = flat.size() / (2 * G);
    ranks.k.assign(L, std::vector<int>(G));
    ranks.v = ranks.k;
    for (size_t l = 0; l < L; l++)
        for (size_t g = 0; g < G; g++) {
            ranks.k[l][g] = flat[(l * G + g) * 2];
            ranks.v[l][g] = flat[(l * G + g) * 2 + 1];
        }
    return ranks;
}

Ranks threshold_ranks(const Config& config, const std::vector<LearnedLayer>& layers, double share) {
    Ranks ranks;
    for (const LearnedLayer& layer : layers) {
        std::vector<int> k, v;
        for (int g = 0; g < config.G; g++) {
            k.push_back(rank_of_share(layer.unit(false, g).spectrum, share, RANK_STEP));
            v.push_back(rank_of_share(layer.unit(true, g).spectrum, share, RANK_STEP));
        }
        ranks.k.push_back(k);
        ranks.v.push_back(v);
    }
    return ranks;
}

size_t first_that_holds(size_t most, const std::function<bool(size_t)>& holds) {
    size_t low = 0, high = most;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (holds(middle))
            high = middle;
        else
            low = middle + 1;
    }
    return high;
}

// The largest share whose ranks fit, to 1e-9 of the spectrum: thresholds near 1 matter.
static Ranks largest_threshold(const Config& config, const std::vector<LearnedLayer>& layers,
                               size_t coordinates) {
    double low = 0, high = 1;
    Ranks full = threshold_ranks(config, layers, 1);
    if (full.coordinates() <= coordinates) return full;
    for (int i = 0; i < 40; i++) {
        double middle = 0.5 * (low + high);
        (threshold_ranks(config, layers, middle).coordinates() <= coordinates ? low : high) =
            middle;
    }
    return threshold_ranks(config, layers, low);
}

Ranks ranks_within(const Config& config, const std::vector<LearnedLayer>& layers,
                   const CalibrationOptions& options, size_t budget) {
    size_t element = size_of(options.cache);
    Ranks ranks;
    if (options.method == "eigen") {
        ranks = largest_threshold(config, layers, budget / element);
    } else {
        GreedyPath path = path_of(config, layers, options.cache);
        ranks = ranks_of(config, path, steps_within(path, int64_t(budget)));
    }
    return ranks;
}

// Δ_l of one layer at ranks[0].
static double error_of(LayerPass& pass, const LayerInputs& inputs, const LearnedLayer& bases, int l,
                       const Ranks& ranks) {
    return std::sqrt(
        held_out_error(pass, inputs, l, cuts_at(pass.c, bases, ranks.k[0], ranks.v[0])));
}

void meet_error_budget(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l,
                       const CalibrationOptions& options) {
    const Config& c = pass.c;
    std::vector<LearnedLayer> alone = {bases};
    auto fits = [&](const Ranks& ranks) {
        return error_of(pass, inputs, bases, l, ranks) <= options.error_budget;
    };
    Ranks chosen;
    if (options.method == "eigen") {
        chosen = threshold_ranks(c, alone, 2);  // all of the spectrum
        for (int i = 1; i < 50; i++) {
            Ranks next = threshold_ranks(c, alone, 1 - 0.02 * i);
            if (!fits(next)) break;
            chosen = next;
        }
    } else {
        GreedyPath path = path_of(c, alone, options.cache);
        size_t steps = first_that_holds(path.steps.size(),
                                        [&](size_t n) { return fits(ranks_of(c, path, n)); });
        chosen = ranks_of(c, path, steps);
    }
    bases.rank_k = chosen.k[0];
    bases.rank_v = chosen.v[0];
}

}  // namespace stief
