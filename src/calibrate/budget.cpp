#include "calibrate/budget.h"

#include <cmath>

#include "calibrate/compare.h"

namespace stief {

size_t coordinates(const Ranks& ranks) {
    size_t sum = 0;
    for (const LayerRanks& layer : ranks)
        for (const std::vector<int>* side : {&layer.k, &layer.v})
            for (int r : *side) sum += size_t(r);
    return sum;
}

Ranks threshold_ranks(const Config& config, const std::vector<LearnedLayer>& layers, double share) {
    Ranks ranks;
    for (const LearnedLayer& layer : layers) {
        LayerRanks& of = ranks.emplace_back();
        for (int g = 0; g < config.G; g++) {
            of.k.push_back(rank_of_share(layer.unit(false, g).spectrum, share, RANK_STEP));
            of.v.push_back(rank_of_share(layer.unit(true, g).spectrum, share, RANK_STEP));
        }
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
                               size_t most) {
    double low = 0, high = 1;
    Ranks full = threshold_ranks(config, layers, 1);
    if (coordinates(full) <= most) return full;
    for (int i = 0; i < 40; i++) {
        double middle = 0.5 * (low + high);
        bool fits = coordinates(threshold_ranks(config, layers, middle)) <= most;
        (fits ? low : high) = middle;
    }
    return threshold_ranks(config, layers, low);
}

// Units in the order layer, head, keys, values.
static Ranks greedy_ranks(const Config& config, const std::vector<LearnedLayer>& layers,
                          DType cache, size_t budget) {
    std::vector<Choices> hulls;
    for (const LearnedLayer& layer : layers)
        for (int g = 0; g < config.G; g++)
            for (bool values : {false, true})
                hulls.push_back(rank_choices(layer.curve(values, g), layer.weight, cache));
    std::vector<size_t> at = choose_within(hulls, budget);
    Ranks ranks(layers.size());
    for (size_t u = 0; u < at.size(); u++) {
        LayerRanks& layer = ranks[u / 2 / size_t(config.G)];
        (u % 2 ? layer.v : layer.k).push_back(hulls[u][at[u]].format.kept());
    }
    return ranks;
}

Ranks ranks_within(const Config& config, const std::vector<LearnedLayer>& layers,
                   const CalibrationOptions& options, size_t budget) {
    if (options.method == "eigen")
        return largest_threshold(config, layers, budget / size_of(options.cache));
    return greedy_ranks(config, layers, options.cache, budget);
}

Ranks cheapest_ranks(const Config& config, const std::vector<LearnedLayer>& layers,
                     const CalibrationOptions& options,
                     const std::function<bool(const Ranks&)>& hold) {
    bool eigen = options.method == "eigen";
    constexpr size_t THRESHOLDS = 1024;
    size_t step = size_t(RANK_STEP) * size_of(options.cache);
    size_t full = 2 * layers.size() * size_t(config.G) * size_t(config.d) * size_of(options.cache);
    size_t most = eigen ? THRESHOLDS : (full + step - 1) / step;
    auto at = [&](size_t n) {
        if (!eigen) return greedy_ranks(config, layers, options.cache, n * step);
        return threshold_ranks(config, layers, n == most ? 2 : 1 - std::exp2(-double(n) / 64));
    };
    return at(first_that_holds(most, [&](size_t n) { return hold(at(n)); }));
}

void meet_error_budget(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l,
                       const CalibrationOptions& options) {
    const Config& c = pass.c;
    auto fits = [&](const Ranks& ranks) {
        LayerCuts cuts = cuts_at(c, bases, ranks[0], Which::Best);
        return std::sqrt(held_out_error(pass, inputs, l, cuts)) <= options.error_budget;
    };
    if (options.method != "eigen") {
        bases.ranks = cheapest_ranks(c, {bases}, options, fits)[0];
        return;
    }
    bases.ranks = threshold_ranks(c, {bases}, 2)[0];  // all of the spectrum
    for (int i = 1; i < 50; i++) {
        Ranks next = threshold_ranks(c, {bases}, 1 - 0.02 * i);
        if (!fits(next)) break;
        bases.ranks = next[0];
    }
}

static Ranks own_ranks(const CalibrationResult& result) {
    Ranks ranks;
    for (const LearnedLayer& layer : result.layer) ranks.push_back(layer.ranks);
    return ranks;
}

// The cheapest ranks whose measured perplexity rises by at most that many per cent.
static Ranks within_perplexity(CalibrationRun& run, const CalibrationResult& result) {
    const CalibrationOptions& o = run.options;
    return cheapest_ranks(run.model.config, result.layer, o, [&](const Ranks& ranks) {
        Measured measured = measure_cache(run, bases_at(run, result, ranks));
        return measured.loss.perplexity <= measured.reference.perplexity * (1 + o.ppl_budget / 100);
    });
}

Ranks allocate(CalibrationRun& run, const CalibrationResult& result) {
    const CalibrationOptions& o = run.options;
    size_t budget = size_t(o.keep * double(result.full_bytes_per_token) + 1e-9);
    Ranks ranks = o.error_budget > 0 ? own_ranks(result)
                  : o.ppl_budget > 0 ? within_perplexity(run, result)
                                     : ranks_within(run.model.config, result.layer, o, budget);
    if (coordinates(ranks) > 0) return ranks;
    if (o.keep > 0)
        fail("--keep %g is %zu bytes a token, too few for the smallest ranks of --method %s; use a "
             "larger one",
             o.keep, budget, o.method.c_str());
    fail("the budget (%s %g) lets every head go down to rank 0: a cache of nothing but its whole "
         "window; use a smaller one",
         o.ppl_budget > 0 ? "--ppl-budget" : "--error-budget",
         o.ppl_budget > 0 ? o.ppl_budget : o.error_budget);
}

Bases bases_at(const CalibrationRun& run, const CalibrationResult& result, const Ranks& ranks) {
    Bases bases;
    bases.sinks = run.options.sinks, bases.recent = run.options.recent;
    for (int l = 0; l < run.model.config.L; l++) {
        size_t i = size_t(l);
        bases.layer.push_back(
            finished_layer(run.model.config, result.layer[i], l, ranks[i]));
    }
    return bases;
}

}  // namespace stief
