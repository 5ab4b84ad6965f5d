// What the result does to the model, measured on held-out text: the layers' errors, and perplexity and
// KL divergence through the real cache with its whole window.
#include <algorithm>
#include <cmath>

#include "calibrate/compare.h"

namespace stief {

static std::vector<LayerCuts> all_cuts(const Config& c, const CalibrationResult& result,
                                       const Ranks& ranks, Which which) {
    std::vector<LayerCuts> cuts;
    for (size_t l = 0; l < result.layer.size(); l++) {
        const LearnedLayer& layer = result.layer[l];
        cuts.push_back(cuts_at(c, layer, ranks[l], layer.kept_warm ? Which::Warm : which));
    }
    return cuts;
}

Measured measure_cache(CalibrationRun& run, const Bases& bases) {
    Model& model = run.model;
    const CalibrationOptions& o = run.options;
    Transformer transformer(model, o.sequence);
    KvCache cut(*model.backend, model.config, o.sequence, o.cache, &bases);
    KvCache full(*model.backend, model.config, o.sequence, o.cache);
    bool exact = model.backend->exact;
    Runner tested{transformer, cut, exact}, reference{transformer, full, exact};
    Protocol protocol{.name = Protocol::Chunks, .context = o.sequence};
    std::vector<Token> ids;
    for (const std::vector<Token>& window : run.windows.ids)
        ids.insert(ids.end(), window.begin(), window.end());
    Measured measured = measure(tested, &reference, ids, protocol, {});
    model.backend->exact = exact;
    return measured;
}

// √Δ_l at the chosen ranks, by the eigenbases and by the learned bases. Where each unit's better
// one do not do better together, the eigenbases stay.
static void verify_layers(CalibrationRun& run, CalibrationResult& result) {
    const Config& c = run.model.config;
    Sequences none;
    none.T = run.held_out.T;
    LayerInputs inputs(run.model, none, run.held_out, "");
    for (int l = 0; l < c.L; l++, inputs.next()) {
        collect(run.pass, inputs, l);
        LearnedLayer& layer = result.layer[size_t(l)];
        auto error = [&](Which which) {
            LayerCuts cuts = cuts_at(c, layer, result.ranks[size_t(l)], which);
            return std::sqrt(held_out_error(run.pass, inputs, l, cuts));
        };
        double warm = error(Which::Warm), best = layer.descended ? error(Which::Best) : warm;
        layer.kept_warm = layer.descended && !(best < warm);
        result.error_warm.push_back(warm), result.error.push_back(std::min(warm, best));
    }
}

// The same bases at other sizes, without a whole window.
static void measure_sizes(CalibrationRun& run, EndToEnd& windows, CalibrationResult& result) {
    const Config& c = run.model.config;
    size_t full = result.full_bytes_per_token;
    CalibrationResult::Compared warm{"warm start", {}};
    for (double keep : {0.125, 0.25, 0.375, 0.5, 0.75}) {
        Ranks ranks = ranks_within(c, result.layer, run.options, size_t(keep * double(full)));
        if (coordinates(ranks) == 0) continue;
        std::vector<std::vector<LayerCuts>> ways = {all_cuts(c, result, ranks, Which::Best)};
        bool both = run.options.method == "stiefel" && run.options.steps > 0;
        if (both) ways.push_back(all_cuts(c, result, ranks, Which::Warm));
        std::vector<Measured> all = windows.measure(ways);
        for (size_t i = 0; i < all.size(); i++)
            (i ? warm.points : result.sizes)
                .push_back({keep, coordinates(ranks) * size_of(run.options.cache),
                            all[i].loss.perplexity, all[i].divergence.mean});
        result.perplexity_full = all[0].reference.perplexity;
    }
    if (!warm.points.empty()) result.compared.push_back(warm);
}

// Errors of single units add up to first order.
static void foretell(const Config& c, CalibrationResult& result) {
    for (size_t l = 0; l < result.layer.size(); l++) {
        double sum = 0;
        for (int g = 0; g < c.G; g++)
            for (bool values : {false, true})
                sum += result.layer[l].error_of(values, g, result.ranks[l]);
        result.foretold.push_back({l, l, false, sum, result.error[l] * result.error[l]});
    }
}

void verify(CalibrationRun& run, const std::vector<LearnedLayer>& eigen, CalibrationResult& result) {
    verify_layers(run, result);
    foretell(run.model.config, result);
    if (run.options.compares) {
        EndToEnd windows(run.pass, run.windows, run.compared_windows());
        measure_sizes(run, windows, result);
        auto without_window = [&](const std::vector<Bases>& bases) {
            std::vector<std::vector<LayerCuts>> ways;
            for (const Bases& one : bases)
                ways.push_back(cuts_of(one, run.model.config, 0, run.options.cache));
            return windows.measure(ways);
        };
        compare(run, eigen, without_window, result);
    }
    result.measured = measure_cache(run, bases_at(run, result, result.ranks));
}

}  // namespace stief
