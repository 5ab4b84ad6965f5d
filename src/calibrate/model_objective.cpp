// calibrate --objective model: prices → allocate → prices again at that cache → the better of both
// → measure. README.md §6 and §7.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "calibrate/calibration_run.h"
#include "calibrate/prices.h"

namespace stief {

namespace {

constexpr size_t MEASURED_ALONE = 3;  // sequences that each layer alone is measured on

struct Clock {
    CalibrationResult& result;
    std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();

    void phase(const std::string& name) {  // of what went on since the last one
        auto now = std::chrono::steady_clock::now();
        result.time.push_back({name, std::chrono::duration<double>(now - last).count()});
        last = now;
    }
};

// A format for each unit.
struct Formats {
    std::vector<RowFormat> format;
    std::vector<double> price;
    size_t bytes = 0;      // a token
    double predicted = 0;  // Σ prices: nats a token
};

struct Priced {
    std::vector<PricedUnit> unit;
    std::vector<Choices> hull;
    std::vector<double> scale;  // (units) of the hull's errors, by measurement

    Formats within(size_t budget) const {
        Formats all;
        std::vector<Choices> scaled = hull;
        for (size_t u = 0; u < hull.size(); u++)
            for (Choice& one : scaled[u]) one.error *= scale[u];
        std::vector<size_t> at = choose_within(scaled, budget);
        for (size_t u = 0; u < at.size(); u++) {
            const Choice& one = scaled[u][at[u]];
            all.format.push_back(one.format), all.price.push_back(one.error);
            all.bytes += one.bytes, all.predicted += one.error;
        }
        return all;
    }
};

template <class F>
void for_units(const Config& c, const F& at) {
    for (int l = 0; l < c.L; l++)
        for (int g = 0; g < c.G; g++)
            for (bool values : {false, true}) at(l, g, values, unit_of(c, l, g, values));
}

std::vector<LayerCuts> cuts_of(const CalibrationRun& run, const Priced& priced,
                               const Formats& formats) {
    const Config& c = run.model.config;
    const CalibrationOptions& o = run.options;
    std::vector<LayerCuts> cuts(size_t(c.L), LayerCuts(c, o.keys == "post"));
    for (LayerCuts& one : cuts) one.sinks = o.sinks, one.dtype = o.cache;
    for_units(c, [&](int l, int g, bool values, size_t u) {
        LayerCuts& layer = cuts[size_t(l)];
        (values ? layer.v : layer.k)[size_t(g)] = cut_of(priced.unit[u], formats.format[u]);
    });
    return cuts;
}

Bases bases_of(const CalibrationRun& run, const Priced& priced, const Formats& formats) {
    const Config& c = run.model.config;
    Bases bases;
    bases.sinks = run.options.sinks, bases.recent = run.options.recent;
    bases.layer.assign(size_t(c.L), {run.options.keys == "post", {}, {}});
    for_units(c, [&](int l, int, bool values, size_t u) {
        const PricedUnit& unit = priced.unit[u];
        Bases::Layer& layer = bases.layer[size_t(l)];
        (values ? layer.v : layer.k)
            .push_back({{formats.format[u]},
                        weights_of(unit),
                        to_floats(unit.Q),
                        unit.encode,
                        unit.decode});
    });
    return bases;
}

// The hulls of all units, from samples at the cuts; bases are found where there are none yet.
void price(CalibrationRun& run, ModelBackward& back, const std::vector<LayerCuts>& cuts,
           uint64_t round, const std::string& folder, Priced& priced) {
    const Config& c = run.model.config;
    const CalibrationOptions& o = run.options;
    int sinks = std::min(o.sinks, o.sequence - 1);
    PriceSamples samples(c, run.learn.count() * size_t(o.sequence - sinks), folder);
    collect_samples(back, run.learn, samples, cuts, sinks, o.seed * 2 + round,
                    [&] { run.ticker(3 * size_t(c.L)); });
    bool first = priced.unit.empty();
    priced.unit.resize(samples.units), priced.hull.resize(samples.units);
    priced.scale.resize(samples.units, 1);
    run.model.threads->run(samples.units, [&](size_t u) {
        if (first)
            priced.unit[u] = price_unit(samples, u, {Covariance::Weighted, o.bits == "mixed"});
        else
            price_again(priced.unit[u], samples, u);
        priced.hull[u] = lower_hull(formats_of(priced.unit[u], samples, u, o.cache));
    });
}

// Errors of different tokens are taken as uncorrelated, which they are not in the first layers:
// keys and values are functions of few tokens there and attention averages over many. So each
// layer's keys and its values are cut alone, at the formats that the budget gives, and what is
// measured corrects the prices.
void correct(const Config& c, EndToEnd& learnt, const std::vector<LayerCuts>& cuts,
             const Formats& formats, Priced& priced) {
    std::vector<std::array<double, 2>> measured = learnt.each_alone(cuts);
    for (int l = 0; l < c.L; l++)
        for (bool values : {false, true}) {
            double predicted = 0;
            for (int g = 0; g < c.G; g++) predicted += formats.price[unit_of(c, l, g, values)];
            double ratio = predicted > 0 ? measured[size_t(l)][values] / predicted : 1;
            for (int g = 0; g < c.G; g++)
                priced.scale[unit_of(c, l, g, values)] *= std::clamp(ratio, 0.25, 16.0);
        }
}

// The least budget whose measured perplexity rises by at most that many per cent: bisection.
size_t within_perplexity(CalibrationRun& run, const Priced& priced, size_t full) {
    constexpr size_t STEPS = 256;
    size_t n = first_that_holds(STEPS, [&](size_t i) {
        Measured m = measure_cache(
            run, bases_of(run, priced, priced.within(full * std::max<size_t>(i, 1) / STEPS)));
        return m.loss.perplexity <= m.reference.perplexity * (1 + run.options.ppl_budget / 100);
    });
    return full * std::max<size_t>(n, 1) / STEPS;
}

// Some sizes without a recent window, each with the formats that these prices give it.
void measure_sizes(CalibrationRun& run, EndToEnd& windows, const Priced& priced,
                   CalibrationResult& result) {
    for (double bits : {4.0, 3.0, 2.5, 2.0, 1.5, 1.0}) {
        double keep = bits / (8 * double(size_of(run.options.cache)));
        Formats formats = priced.within(size_t(keep * double(result.full_bytes_per_token) + 1e-9));
        Measured m = windows.measure(cuts_of(run, priced, formats));
        result.sizes.push_back(
            {keep, formats.bytes, m.loss.perplexity, m.divergence.mean, formats.predicted});
        result.perplexity_full = m.reference.perplexity;
    }
}

}  // namespace

void calibrate_model(CalibrationRun& run, CalibrationResult& result, const std::string& folder) {
    const Config& c = run.model.config;
    const CalibrationOptions& o = run.options;
    Clock clock{result};
    run.ticker.total = 2 * run.learn.count() * 3 * size_t(c.L);
    run.ticker.phase = "prices of the full cache";
    Priced priced;
    ModelBackward back(run.pass, o.sequence);
    std::vector<LayerCuts> none(size_t(c.L), LayerCuts(c, o.keys == "post"));
    price(run, back, none, 0, folder, priced);
    clock.phase("prices");

    size_t budget = o.ppl_budget > 0 ? within_perplexity(run, priced, result.full_bytes_per_token)
                                     : size_t(o.keep * double(result.full_bytes_per_token) + 1e-9);
    Formats formats = priced.within(budget);
    check(formats.bytes > 0,
          "--keep %g is %zu bytes a token, too few for the smallest format of one head; use a "
          "larger one",
          o.keep, budget);
    EndToEnd held_out(run.pass, run.held_out, run.held_out.count());
    auto divergence = [&](const Priced& by, const Formats& of) {
        return held_out.measure(cuts_of(run, by, of)).divergence.mean;
    };
    run.ticker.phase = "layers alone";
    double best = divergence(priced, formats);
    EndToEnd learnt(run.pass, run.learn, MEASURED_ALONE);
    for (int round = 0; round < 2; round++) {
        Priced corrected = priced;
        correct(c, learnt, cuts_of(run, priced, formats), formats, corrected);
        Formats other = corrected.within(budget);
        double now = divergence(corrected, other);
        if (!(now < best)) break;
        best = now, priced = std::move(corrected), formats = std::move(other);
    }
    clock.phase("layers alone");

    run.ticker.phase = "prices of the compressed cache";
    Priced again = priced;
    price(run, back, cuts_of(run, priced, formats), 1, folder, again);
    Formats other = again.within(budget);
    if (divergence(again, other) < best)
        priced = std::move(again), formats = std::move(other);
    clock.phase("prices at the compressed cache");
    EndToEnd windows(run.pass, run.windows, run.windows.count());
    measure_sizes(run, windows, priced, result);
    clock.phase("sizes");

    result.bases = bases_of(run, priced, formats);
    result.bytes_per_token = formats.bytes;
    result.predicted = formats.predicted;
    result.measured = measure_cache(run, result.bases);
    clock.phase("measure");
}

}  // namespace stief
