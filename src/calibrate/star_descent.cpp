// calibrate --method star: moments → thresholds → ranks → measure. README.md §9.
#include <algorithm>
#include <cmath>

#include "calibrate/compare.h"
#include "calibrate/model_descent.h"
#include "calibrate/star.h"
#include "calibrate/stiefel.h"

namespace stief {

namespace {

constexpr double GAMMA = 0.1, RATE = 0.02, STEER = 0.1;
constexpr int BATCH = 2;  // sequences of a step

// Mean kᵀk of every unit over the tokens that a cache does not keep whole anyway.
std::vector<Matrix> mean_moments(std::vector<Matrix> sums, size_t tokens) {
    for (Matrix& one : sums) {
        require_finite(one, "second moments");
        for (double& x : one.data) x /= double(tokens);
    }
    return sums;
}

struct StarDescent {
    CalibrationRun& run;
    ModelBackward back;
    Units units;
    int sinks;
    std::vector<Matrix> moment;  // (units)
    Activations full;

    StarDescent(CalibrationRun& of, const Units& all, const std::string& folder)
        : run(of),
          back(of.pass, of.options.sequence),
          units(all),
          sinks(std::min(of.options.sinks, of.options.sequence - 1)),
          full(full_outputs(back, of.learn, folder, [&] { run.ticker(size_t(units.L)); },
                            [&](int l) { add_moments(l); })) {
        size_t tokens = run.learn.count() * size_t(run.learn.T - sinks);
        moment = mean_moments(std::move(moment), tokens);
    }

    void add_moments(int l) {
        LayerPass& pass = run.pass;
        size_t d = size_t(units.d), T = size_t(pass.T);
        for (size_t u = moment.size(); u < units.count(); u++)
            moment.emplace_back(units.width(u), units.width(u));
        std::vector<Gram> all;
        auto add = [&](size_t u, const float* rows) {
            size_t width = units.width(u);
            const float* from = rows + size_t(sinks) * width;
            all.push_back({&moment[u], from, from, int(T) - sinks, int(width)});
        };
        const float* keys = run.options.keys == "post" ? pass.k_rotated : pass.k;
        for (int g = 0; g < units.G; g++) {
            add(units.of(l, g, false), keys + size_t(g) * T * d);
            if (!units.joint) add(units.of(l, g, true), pass.v + size_t(g) * T * d);
        }
        if (units.joint) pass.together(pass.att, pass.v), add(units.of(l, 0, true), pass.att);
        pass.ops_back->add_grams(all);
    }

    // The coordinates that fit where every row has its share of the budget.
    double share_within(bool coded, int d) const {
        int r = 0, step = coded ? ROW_GROUP : 1;
        DType cache = run.options.cache;
        double most = run.options.keep * double(RowFormat::whole(d).bytes(cache));
        while (r < d && double(star_format(r + step, coded).bytes(cache)) <= most) r += step;
        return double(r) / d;
    }

    // ∂KL/∂α, nats a token, over some of the sequences.
    std::vector<double> gradient(const Star& star, Random& random) {
        const CalibrationOptions& o = run.options;
        const Config& c = run.model.config;
        size_t each = size_t(run.learn.T) * size_t(c.D);
        std::vector<LayerCuts> cuts = star.gated_cuts(c, o.keys == "post", sinks, o.cache);
        std::vector<std::vector<LayerGradient>> of(size_t(c.L), {LayerGradient(c, units.joint)});
        for (int i = 0; i < BATCH; i++) {
            size_t s = random.below(run.learn.count());
            back.run_divergence(run.learn.ids[s], run.learn.step(s), cuts, full.data + s * each,
                                [&](int l) {
                                    run.pass.add_basis_gradient(cuts[size_t(l)], of[size_t(l)]);
                                });
            run.ticker(3 * size_t(c.L));
        }
        std::vector<double> all(star.alpha.size());
        for (size_t u = 0; u < units.count(); u++) {
            Units::Unit at = units.at(u);
            LayerGradient& layer = of[size_t(at.l)][0];
            star.add_gradient(all, u, (at.values ? layer.stored_v : layer.stored_k)[size_t(at.g)]);
        }
        for (double& one : all) one /= double(BATCH) * double(run.learn.T);
        return all;
    }

    // Adam (Kingma and Ba 2015) on KL + μ Σ e^−α; μ begins at γ and grows while more bytes are
    // kept than the budget has, and shrinks while fewer are.
    void learn(Star& star, size_t budget) {
        const CalibrationOptions& o = run.options;
        std::vector<double> M(star.alpha.size()), nu(M);
        Random random(o.seed);
        double mu = GAMMA;
        star.start_at(share_within(star.coded, units.d));
        std::vector<double> most = star.limits();
        for (int t = 0; t < o.steps; t++) {
            std::vector<double> G = gradient(star, random);
            for (size_t a = 0; a < G.size(); a++) {
                check(std::isfinite(G[a]), "the gradient of threshold %zu is not finite", a);
                double g = G[a] - mu * std::exp(-star.alpha[a]);
                M[a] = BETA1 * M[a] + (1 - BETA1) * g, nu[a] = BETA2 * nu[a] + (1 - BETA2) * g * g;
                double mean = M[a] / (1 - std::pow(BETA1, t + 1));
                double square = nu[a] / (1 - std::pow(BETA2, t + 1));
                if (square > 0)
                    star.alpha[a] = std::clamp(
                        star.alpha[a] - annealed(RATE, t, o.steps) * mean / std::sqrt(square), 0.0,
                        most[a]);
            }
            double over = std::log(double(star.bytes(o.cache)) / double(budget));
            mu *= std::exp(STEER * std::clamp(over, -1.0, 1.0));
        }
    }
};

Bases bases_of(const CalibrationRun& run, const Star& star, const std::vector<RowFormat>& formats) {
    Bases bases;
    bases.sinks = run.options.sinks, bases.recent = run.options.recent;
    bases.layer.assign(size_t(star.units.L), {run.options.keys == "post", {}, {}, star.units.joint});
    for (size_t u = 0; u < formats.size(); u++) {
        Units::Unit at = star.units.at(u);
        PricedUnit unit = star.stored(u, formats[u]);
        Bases::Layer& layer = bases.layer[size_t(at.l)];
        (at.values ? layer.v : layer.k)
            .push_back({{formats[u]}, weights_of(unit), to_floats(unit.Q), unit.encode, unit.decode});
    }
    return bases;
}

// Other sizes by the same thresholds, all moved by one amount.
void measure_sizes(CalibrationRun& run, const Star& star, CalibrationResult& result) {
    std::vector<Bases> ways;
    for (double bits : {8.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.0}) {
        DType cache = run.options.cache;
        double keep = bits / (8 * double(size_of(cache)));
        size_t budget = size_t(keep * double(result.full_bytes_per_token) + 1e-9);
        Bases bases = bases_of(run, star, star.formats_within(budget, cache));
        size_t bytes = bases.bytes_per_token(cache);
        bool all = !result.sizes.empty() && result.sizes.back().bytes_per_token == bytes;
        if (bytes == 0 || all) continue;  // of codes there are no more than 3.2 bits
        ways.push_back(std::move(bases)), result.sizes.push_back({keep, bytes, 0, 0});
    }
    std::vector<Measured> measured = measure_caches(run, ways);
    fill_in(result.sizes, measured);
    result.perplexity_full = measured[0].reference.perplexity;
}

}  // namespace

void calibrate_star(CalibrationRun& run, CalibrationResult& result, const Partial& partial) {
    const CalibrationOptions& o = run.options;
    const Config& c = run.model.config;
    Clock clock{result};
    size_t budget = size_t(o.keep * double(result.full_bytes_per_token) + 1e-9);
    Units units(c, o.joint_values);
    PricedState state;
    bool learned = o.resume && partial.load(state) > 0;
    result.resumed = learned;
    std::vector<Matrix> moment;
    for (const PricedUnit& unit : state.unit) moment.push_back(unit.moment);
    std::unique_ptr<StarDescent> descent;
    if (!learned) {
        run.ticker.begin("eigenbases", run.learn.count() * size_t(c.L));
        descent = std::make_unique<StarDescent>(run, units, partial.folder);
        moment = descent->moment;
    }
    Star star(units, std::move(moment), o.bits == "mixed");
    for (size_t u = 0; u < units.count(); u++)
        star.unit[u].rotated = o.keys == "post" && !units.at(u).values;
    clock.phase("eigenbases");
    if (!learned) {
        run.ticker.begin("thresholds", 3 * size_t(o.steps) * size_t(BATCH) * size_t(c.L));
        descent->learn(star, budget);
    } else {
        star.alpha = state.scale;
    }
    state.unit = star.unit, state.scale = star.alpha, state.budget = {budget};
    partial.save(1, state);
    clock.phase("thresholds");
    std::vector<RowFormat> formats = star.formats_within(budget, o.cache);
    result.bases = bases_of(run, star, formats);
    result.bytes_per_token = result.bases.bytes_per_token(o.cache);
    check(result.bytes_per_token > 0,
          "--keep %g is %zu bytes a token, too few for the smallest format of one head; use a "
          "larger one",
          o.keep, budget);
    result.thresholds = star.alpha;
    run.ticker.begin("what it costs", 0);
    if (o.compares) {
        measure_sizes(run, star, result);
        clock.phase("sizes", true);
        compare(run, eigen_layers(run, units, star.unit),
                [&](const auto& ways) { return measure_caches(run, ways); }, result);
        clock.phase("other methods", true);
    }
    result.measured = measure_cache(run, result.bases);
    clock.phase("measure", true);
}

}  // namespace stief
