// calibrate --objective model: prices → allocate → what groups of layers cost alone corrects the
// prices → allocate again → measure. README.md §6 and §7.
#include <algorithm>
#include <cmath>

#include "calibrate/compare.h"
#include "calibrate/model_descent.h"
#include "calibrate/priced_units.h"

namespace stief {

namespace {

constexpr size_t MEASURED_ALONE = 2;  // sequences that each group of layers alone is measured on
constexpr int MOST_GROUPS = 6;
constexpr double MORE_ROTATED = 0.25;  // what --keys auto may cost, of what is predicted without it

// KL on held-out text of these units at these formats.
using MeasuredKl = std::function<double(const PricedUnits&, const Formats&)>;

Units units_of(const CalibrationRun& run) {
    return Units(run.model.config, run.options.joint_values);
}

// Where the formats of LayerPass::split_by_distance begin; none: one format for all.
std::vector<int> ages_of(const CalibrationOptions& o) {
    if (o.recent == 0 && o.ages.empty()) return {};
    std::vector<int> begins = {o.recent};
    begins.insert(begins.end(), o.ages.begin(), o.ages.end());
    return begins;
}

// Bytes of a token of each age, where the last keeps that share of the full cache.
std::vector<size_t> budgets(const CalibrationRun& run, const CalibrationResult& result,
                            double keep) {
    std::vector<size_t> all;
    double full = double(result.full_bytes_per_token);
    for (double bits : run.options.age_bits)
        all.push_back(size_t(bits / (8 * double(size_of(run.options.cache))) * full + 1e-9));
    all.push_back(size_t(keep * full + 1e-9));
    return all;
}

Bases bases_of(const CalibrationRun& run, const PricedUnits& priced, const Formats& formats) {
    const Config& c = run.model.config;
    Bases bases;
    bases.sinks = run.options.sinks, bases.recent = run.options.recent;
    bases.ages = run.options.ages;
    bases.layer.assign(size_t(c.L), {false, {}, {}, run.options.joint_values});
    for_units(units_of(run), [&](int l, int, bool values, size_t u) {
        const PricedUnit& unit = priced.unit[u];
        Bases::Layer& layer = bases.layer[size_t(l)];
        if (!values) layer.rotated = unit.rotated;
        (values ? layer.v : layer.k)
            .push_back({formats.format[u], weights_of(unit), to_floats(unit.Q), unit.encode,
                        unit.decode, unit.mean});
    });
    return bases;
}

std::vector<LayerCuts> cuts_of(const CalibrationRun& run, const PricedUnits& priced,
                               const Formats& formats) {
    const CalibrationOptions& o = run.options;
    return cuts_of(bases_of(run, priced, formats), run.model.config, o.sinks, o.cache);
}

// What the full cache is asked for.
PriceSamples samples_of(CalibrationRun& run, ModelBackward& back, const std::string& folder) {
    const CalibrationOptions& o = run.options;
    return collect_samples(back, units_of(run), run.learn, o.keys == "post",
                           std::min(o.sinks, o.sequence - 1), o.seed, folder,
                           [&] { run.ticker(3 * size_t(run.model.config.L)); });
}

// README §3 at these formats; kept where held-out text is better for it. Bases that were turned are
// priced again, for the encoder's weights and for other sizes; the formats stay.
CalibrationResult::Descent descend(CalibrationRun& run, ModelBackward& back,
                                   const std::string& folder, const MeasuredKl& divergence,
                                   PricedUnits& priced, Formats& formats) {
    const CalibrationOptions& o = run.options;
    size_t passes = size_t(run.model.config.L);
    ModelDescent descent(back, run.learn, folder, [&] { run.ticker(passes); });
    PricedUnits moved = priced;
    descent.run(units_of(run), moved.unit, formats.format, [&] { return cuts_of(run, moved, formats); },
                {o.steps, o.batch, o.tau, o.seed}, [&] { run.ticker(3 * passes); });
    CalibrationResult::Descent found{divergence(priced, formats), divergence(moved, formats)};
    if (!found.taken()) return found;
    priced = std::move(moved);
    PriceSamples samples = samples_of(run, back, folder);
    run.model.threads->run(samples.units.count(),
                           [&](size_t u) { price_again(priced.unit[u], samples, u, o.cache); });
    priced.set_hulls(*run.model.threads, o.cache);
    formats.predicted = 0;
    for (size_t u = 0; u < priced.unit.size(); u++) formats.predicted += priced.predicted(u, formats);
    return found;
}

// Neighbouring layers that are measured together.
std::vector<int> group_ends(int L) {
    std::vector<int> ends;
    for (int i = 1, groups = std::min(L, MOST_GROUPS); i <= groups; i++)
        ends.push_back(i * L / groups);
    return ends;
}

// Errors of different tokens are taken as uncorrelated, which they are not in the first layers:
// keys and values are functions of few tokens there and attention averages over many; and the
// second order is one. So the keys and the values of each group of layers are cut alone, at the
// formats that the budget gives, and what is measured corrects the prices.
void correct(const Units& units, EndToEnd& learnt, const std::vector<LayerCuts>& cuts,
             const Formats& formats, PricedUnits& priced,
             std::vector<CalibrationResult::Foretold>& foretold) {
    const std::vector<int>& ends = learnt.ends;
    std::vector<std::array<double, 2>> measured = learnt.each_alone(cuts);
    auto for_group = [&](size_t i, bool values, const auto& at) {
        for_units(units, [&](int l, int, bool of_values, size_t u) {
            if (of_values == values && l >= (i ? ends[i - 1] : 0) && l < ends[i]) at(u);
        });
    };
    for (size_t i = 0; i < ends.size(); i++)
        for (bool values : {false, true}) {
            double predicted = 0;
            for_group(i, values, [&](size_t u) { predicted += priced.predicted(u, formats); });
            foretold.push_back({i ? size_t(ends[i - 1]) : 0, size_t(ends[i]) - 1, values, predicted,
                                measured[i][values]});
            double ratio = predicted > 0 ? measured[i][values] / predicted : 1;
            for_group(i, values,
                      [&](size_t u) { priced.scale[u] *= std::clamp(ratio, 0.25, 16.0); });
        }
}

// The least share of which that holds: bisection.
double least_share(const std::function<bool(double keep)>& holds) {
    constexpr size_t STEPS = 256;
    auto keep = [&](size_t n) { return double(std::max<size_t>(n, 1)) / STEPS; };
    return keep(first_that_holds(STEPS, [&](size_t n) { return holds(keep(n)); }));
}

// The least share whose perplexity rises by at most that many per cent: as prices foretell it, by as
// many nats as the divergence; and as it is measured.
double share_foretold(const CalibrationRun& run, const CalibrationResult& result,
                      const PricedUnits& priced) {
    return least_share([&](double keep) {
        return priced.within(budgets(run, result, keep)).predicted <=
               std::log1p(run.options.ppl_budget / 100);
    });
}
double share_measured(CalibrationRun& run, const CalibrationResult& result, const PricedUnits& priced) {
    return least_share([&](double keep) {
        Formats formats = priced.within(budgets(run, result, keep));
        Measured m = measure_cache(run, bases_of(run, priced, formats));
        return m.loss.perplexity <= m.reference.perplexity * (1 + run.options.ppl_budget / 100);
    });
}

// That something is kept.
void check_budget(const CalibrationOptions& o, const PricedUnits& priced,
                  const std::vector<size_t>& budget) {
    if (priced.within(budget).bytes.back() > 0) return;
    if (o.ppl_budget > 0)
        fail("the budget (--ppl-budget %g) lets every head go down to rank 0: a cache of nothing but "
             "its whole window; use a smaller one",
             o.ppl_budget);
    fail("--keep %g is %zu bytes a token, too few for the smallest format of one head; use a larger "
         "one",
         o.keep, budget.back());
}

// Other sizes of the last age, each with the formats that these prices give it.
void measure_sizes(CalibrationRun& run, const PricedUnits& priced, CalibrationResult& result) {
    std::vector<Bases> ways;
    for (double bits : {4.0, 3.0, 2.5, 2.0, 1.5, 1.0}) {
        double keep = bits / (8 * double(size_of(run.options.cache)));
        Formats formats = priced.within(budgets(run, result, keep));
        ways.push_back(bases_of(run, priced, formats));
        result.sizes.push_back({keep, formats.bytes.back(), 0, 0, formats.predicted});
    }
    std::vector<Measured> all = measure_caches(run, ways);
    fill_in(result.sizes, all);
    result.perplexity_full = all[0].reference.perplexity;
}

// Held-out sequences that a choice between two ways is made on, both on the same ones.
size_t chosen_on(const CalibrationRun& run) {
    constexpr size_t FEW = 2;  // a descent's few per cent take more
    return run.options.steps > 0 ? run.compared_windows() : std::min(FEW, run.compared_windows());
}

// Of correct_by_groups, and of the full model on the text that it measures on: through all layers once
// for each sequence, from each group on twice; both prices' formats on the held-out text.
size_t passes_of_groups(const CalibrationRun& run) {
    std::vector<int> ends = group_ends(run.model.config.L);
    size_t L = size_t(run.model.config.L), from_groups = 0;
    for (size_t i = 0; i < ends.size(); i++) from_groups += 2 * (L - size_t(i ? ends[i - 1] : 0));
    return std::min(MEASURED_ALONE, run.learn.count()) * (L + from_groups) +
           3 * std::min(chosen_on(run), run.held_out.count()) * L;
}

// Each group of layers alone; what that corrects stays where held-out text is better for it. (Once
// more gains nothing where rows have ages: tools/measurements.md.)
void correct_by_groups(CalibrationRun& run, const std::vector<size_t>& budget,
                       const MeasuredKl& divergence, PricedUnits& priced, CalibrationResult& result) {
    EndToEnd learnt(run.pass, run.learn, MEASURED_ALONE, group_ends(run.model.config.L),
                    [&](int layers) { run.ticker(size_t(layers)); });
    Formats formats = priced.within(budget);
    PricedUnits corrected = priced;
    correct(units_of(run), learnt, cuts_of(run, priced, formats), formats, corrected, result.foretold);
    if (divergence(corrected, corrected.within(budget)) < divergence(priced, formats))
        priced = std::move(corrected);
}

// What is kept of the phases that are done, and taken up again by --resume.
struct Kept {
    const CalibrationRun& run;
    const Partial& partial;
    CalibrationResult& result;
    PricedState state;
    int done = 0;  // phases

    Kept(const CalibrationRun& of, const Partial& in, CalibrationResult& to)
        : run(of), partial(in), result(to) {
        if (run.options.resume) done = partial.load(state);
        result.resumed = done;
        std::vector<int> ends = group_ends(run.model.config.L);
        for (size_t i = 0; i < state.foretold.size() / 2; i++)
            result.foretold.push_back({i < 2 ? 0 : size_t(ends[i / 2 - 1]), size_t(ends[i / 2]) - 1,
                                       i % 2 != 0, state.foretold[2 * i], state.foretold[2 * i + 1]});
    }
    PricedUnits priced() const {
        PricedUnits all;
        all.unit = state.unit, all.scale = state.scale;
        all.set_hulls(*run.model.threads, run.options.cache);
        return all;
    }
    void save(int phase, const PricedUnits& priced) {
        state.unit = priced.unit, state.scale = priced.scale, state.foretold.clear();
        for (const CalibrationResult::Foretold& one : result.foretold)
            state.foretold.insert(state.foretold.end(), {one.predicted, one.measured});
        partial.save(phase, state);
    }
};

}  // namespace

void calibrate_model(CalibrationRun& run, CalibrationResult& result, const Partial& partial) {
    const CalibrationOptions& o = run.options;
    Clock clock{result};
    size_t L = size_t(run.model.config.L);
    run.ticker.begin("prices", 3 * run.learn.count() * L);
    Kept kept(run, partial, result);
    run.pass.split_by_distance(ages_of(o));
    ModelBackward back(run.pass, o.sequence);
    PricedUnits priced;
    std::vector<size_t>& budget = kept.state.budget;
    if (kept.done) {
        priced = kept.priced();
    } else {
        PriceSamples samples = samples_of(run, back, partial.folder);
        auto prices = [&](bool rotated) {
            return price(samples, o.bits == "mixed", rotated, *run.model.threads, o.cache);
        };
        priced = prices(o.keys == "post");
        auto share = [&] { return o.ppl_budget > 0 ? share_foretold(run, result, priced) : o.keep; };
        budget = budgets(run, result, share());
        if (o.keys == "auto") {
            rotate_cheap_layers(priced, prices(true), units_of(run), budget, MORE_ROTATED);
            budget = budgets(run, result, share());
        }
        kept.save(1, priced);
    }
    clock.phase("prices");
    check_budget(o, priced, budget);
    run.ticker.begin("groups of layers", kept.done < 2 ? passes_of_groups(run) : 0);
    auto ticks = [&](int layers) { run.ticker(size_t(layers)); };
    EndToEnd held_out(run.pass, run.held_out, chosen_on(run), {}, ticks);
    MeasuredKl divergence = [&](const PricedUnits& by, const Formats& of) {
        return held_out.measure(cuts_of(run, by, of)).divergence.mean;
    };
    if (kept.done < 2) {
        correct_by_groups(run, budget, divergence, priced, result);
        if (o.ppl_budget > 0) budget = budgets(run, result, share_measured(run, result, priced));
        check_budget(o, priced, budget);
        kept.save(2, priced);
    }
    clock.phase("groups of layers");

    Formats formats = priced.within(budget);
    if (o.steps > 0) {
        run.ticker.begin("descent", (4 * run.learn.count() + 3 * size_t(o.steps) * size_t(o.batch)) * L);
        result.descent = descend(run, back, partial.folder, divergence, priced, formats);
        clock.phase("descent");
    }
    run.ticker.begin("what it costs", 0);
    if (o.compares) {
        measure_sizes(run, priced, result);
        clock.phase("sizes", true);
        compare(run, eigen_layers(run, units_of(run), priced.unit),
                [&](const auto& ways) { return measure_caches(run, ways); }, result);
        clock.phase("other methods", true);
    }

    result.bases = bases_of(run, priced, formats);
    result.bytes_per_token = formats.bytes.back();
    result.predicted = formats.predicted;
    result.measured = measure_cache(run, result.bases);
    clock.phase("measure", true);
}

}  // namespace stief
