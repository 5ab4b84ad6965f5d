// Ranks for the budget, and what the result does to the model, measured on held-out text: the
// layers' errors, and perplexity and KL divergence through the real cache with its exact window.
#include <cmath>

#include "calibrate/calibration_run.h"

namespace stief {

static std::vector<LayerCuts> all_cuts(const Config& c, const CalibrationResult& result,
                                       const Ranks& ranks, bool warm = false) {
    std::vector<LayerCuts> cuts;
    for (size_t l = 0; l < result.layer.size(); l++)
        cuts.push_back(cuts_at(c, result.layer[l], ranks.k[l], ranks.v[l], warm));
    return cuts;
}

static Ranks own_ranks(const CalibrationResult& result) {
    Ranks ranks;
    for (const LearnedLayer& layer : result.layer) {
        ranks.k.push_back(layer.rank_k);
        ranks.v.push_back(layer.rank_v);
    }
    return ranks;
}

Measured measure_cache(CalibrationRun& run, const Bases& bases) {
    Model& model = run.model;
    const CalibrationOptions& o = run.options;
    Transformer transformer(model, o.sequence);
    KvCache cut(*model.backend, model.config, o.sequence, o.cache, &bases);
    KvCache full(*model.backend, model.config, o.sequence, o.cache);
    bool exact = model.backend->exact;
    Runner tested{transformer, cut, exact}, reference{transformer, full, exact};
    Protocol protocol{.name = Protocol::Chunks, .context = o.sequence, .limit = o.measured_windows};
    Measured measured = measure(tested, &reference, run.text.held_out, protocol, {});
    model.backend->exact = exact;
    return measured;
}

// The cheapest point of the greedy path (eigen: of the thresholds) whose measured perplexity rises
// by at most that many per cent, by bisection.
static Ranks within_perplexity(CalibrationRun& run, const CalibrationResult& result) {
    const Config& c = run.model.config;
    const CalibrationOptions& o = run.options;
    GreedyPath path = path_of(c, result.layer, o.cache);
    bool eigen = o.method == "eigen";
    constexpr size_t THRESHOLDS = 1024;  // of an exponential scale: 1 − share = 2^(−n/64)
    auto at = [&](size_t n) {
        if (!eigen) return ranks_of(c, path, n);
        double share = n == THRESHOLDS ? 2 : 1 - std::exp2(-double(n) / 64);
        return threshold_ranks(c, result.layer, share);
    };
    size_t n = first_that_holds(eigen ? THRESHOLDS : path.steps.size(), [&](size_t i) {
        Measured measured = measure_cache(run, bases_at(run, result, at(i)));
        return measured.loss.perplexity <= measured.reference.perplexity * (1 + o.ppl_budget / 100);
    });
    return at(n);
}

Ranks allocate(CalibrationRun& run, const CalibrationResult& result) {
    const CalibrationOptions& o = run.options;
    size_t budget = size_t(o.keep * double(result.full_bytes_per_token) + 1e-9);
    Ranks ranks = o.error_budget > 0 ? own_ranks(result)
                  : o.ppl_budget > 0 ? within_perplexity(run, result)
                                     : ranks_within(run.model.config, result.layer, o, budget);
    if (ranks.coordinates() > 0) return ranks;
    if (o.keep > 0)
        fail("--keep %g is %zu bytes a token, too few for the smallest ranks of --method %s; use a "
             "larger one",
             o.keep, budget, o.method.c_str());
    fail("the budget (%s %g) lets every head go down to rank 0: a cache of nothing but its exact "
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
            finished_layer(run.model.config, result.layer[i], l, ranks.k[i], ranks.v[i]));
    }
    return bases;
}

// √Δ_l at the chosen ranks, by the learned bases and by the eigenbases.
static void verify_layers(CalibrationRun& run, CalibrationResult& result) {
    const Config& c = run.model.config;
    Sequences none;
    none.T = run.held_out.T;
    LayerInputs inputs(run.model, none, run.held_out, "");
    for (int l = 0; l < c.L; l++, inputs.next()) {
        collect(run.pass, inputs, l);
        const LearnedLayer& layer = result.layer[size_t(l)];
        const std::vector<int>&k = result.ranks.k[size_t(l)], &v = result.ranks.v[size_t(l)];
        for (bool warm : {false, true})
            (warm ? result.error_warm : result.error)
                .push_back(
                    std::sqrt(held_out_error(run.pass, inputs, l, cuts_at(c, layer, k, v, warm))));
    }
}

// The same bases at other sizes, without an exact window.
static void measure_sizes(CalibrationRun& run, CalibrationResult& result) {
    const Config& c = run.model.config;
    EndToEnd end_to_end(run.pass, run.windows, run.windows.count());
    size_t full = result.full_bytes_per_token;
    for (double keep : {0.125, 0.25, 0.375, 0.5, 0.75}) {
        Ranks ranks = ranks_within(c, result.layer, run.options, size_t(keep * double(full)));
        if (ranks.coordinates() == 0) continue;
        for (bool warm : {false, true}) {
            Measured m = end_to_end.measure(all_cuts(c, result, ranks, warm));
            (warm ? result.sizes_eigen : result.sizes)
                .push_back({keep, ranks.coordinates() * size_of(run.options.cache),
                            m.loss.perplexity, m.divergence.mean});
            result.perplexity_full = m.reference.perplexity;
        }
    }
}

void verify(CalibrationRun& run, CalibrationResult& result) {
    verify_layers(run, result);
    measure_sizes(run, result);
    result.measured = measure_cache(run, bases_at(run, result, result.ranks));
}

}  // namespace stief
