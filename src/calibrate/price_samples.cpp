#include "calibrate/price_samples.h"

#include <algorithm>
#include <unordered_map>

#include "base/limits.h"

namespace stief {

static bool too_large(size_t floats) {
    return floats * sizeof(float) > available_memory() / 2;
}

static size_t floats_for(const Units& units, size_t tokens, size_t ages) {
    return 2 * size_t(units.L) * size_t(units.G) * size_t(units.d) * tokens * (1 + ages);
}

PriceSamples::PriceSamples(const Units& all, size_t of_tokens, size_t of_ages,
                           const std::string& folder)
    : units(all),
      tokens(of_tokens),
      ages(of_ages),
      data(floats_for(all, tokens, ages), folder, too_large(floats_for(all, tokens, ages))) {}

std::vector<float> PriceSamples::g_compressed(size_t unit) const {
    size_t n = tokens * units.width(unit);
    std::vector<float> sum(g_of_age(unit, 0), g_of_age(unit, 0) + n);
    for (size_t age = 1; age < ages; age++)
        for (size_t i = 0; i < n; i++) sum[i] += g_of_age(unit, age)[i];
    return sum;
}

// The first layer's keys before rotation and its values are functions of the token alone: equal
// tokens of a sequence are rounded to the same error, and what is asked of it is the sum of what is
// asked of each. It goes to the first of them.
static void join_equal_tokens(float* g, const std::vector<Token>& ids, size_t first, size_t d) {
    std::unordered_map<Token, size_t> seen;
    for (size_t t = 0; t + first < ids.size(); t++) {
        size_t one = seen.emplace(ids[t + first], t).first->second;
        if (one == t) continue;
        for (size_t i = 0; i < d; i++) g[one * d + i] += g[t * d + i];
        std::fill_n(g + t * d, d, 0.0f);
    }
}

namespace {

// Copies rows of all heads of one layer to the samples of one sequence, from its token `first` on.
struct Collector {
    LayerPass& pass;
    PriceSamples& samples;
    size_t first, T, d;
    std::vector<float> rows;  // (G, T, d)

    Collector(LayerPass& from, PriceSamples& to, size_t sinks, size_t tokens)
        : pass(from), samples(to), first(sinks), T(tokens), d(size_t(from.c.d)) {
        rows.resize(size_t(pass.c.G) * T * d);
    }
    // rows ← from (G, T, d) on the backend, less `less` if there is any
    void read(const float* from, const float* less) {
        size_t bytes = rows.size() * sizeof(float);
        pass.model.backend->download(rows.data(), from, bytes);
        if (!less) return;
        std::vector<float> nearer(rows.size());
        pass.model.backend->download(nearer.data(), less, bytes);
        for (size_t i = 0; i < rows.size(); i++) rows[i] -= nearer[i];
    }
    // The layer's rows to those of its units, from row `at` on.
    template <class F>
    void write(size_t at, int l, bool values, const F& of_unit) const {
        for (int g = 0; g < pass.c.G; g++) {
            size_t u = samples.units.of(l, g, values), width = samples.units.width(u);
            size_t column = (size_t(g) - size_t(samples.units.at(u).g)) * d;
            for (size_t t = first; t < T; t++)
                std::copy_n(rows.data() + (size_t(g) * T + t) * d, d,
                            of_unit(u) + (at + t - first) * width + column);
        }
    }
};

}  // namespace

PriceSamples collect_samples(ModelBackward& model, const Units& units, const Sequences& sequences,
                             bool rotated, int sinks, uint64_t seed, const std::string& folder,
                             const std::function<void()>& progress) {
    LayerPass& pass = model.pass;
    size_t T = size_t(sequences.T), first = size_t(sinks), at = 0;
    PriceSamples samples(units, sequences.count() * (T - first), pass.ages(), folder);
    Collector collector(pass, samples, first, T);
    Random seeds(seed), positions(~seed);
    std::vector<LayerCuts> none(size_t(pass.c.L), LayerCuts(pass.c, false));
    for (size_t t = 0; t < samples.tokens; t++) {
        const float* angles = pass.rotation + positions.below(uint64_t(pass.c.context)) * collector.d;
        samples.turns.insert(samples.turns.end(), angles, angles + collector.d);
    }
    for (size_t s = 0; s < sequences.count(); s++, at += T - first) {
        auto visit = [&](int l, bool values) {
            bool of_the_token = l == 0 && (values || !rotated);
            collector.read(values ? pass.v : pass.k, nullptr);
            collector.write(at, l, values, [&](size_t u) { return samples.k(u); });
            const std::vector<float*>& from = values ? pass.dv_from : pass.dk_from;
            for (size_t age = 0; age < samples.ages; age++) {
                if (from.empty())
                    collector.read(values ? pass.dv : pass.dk, nullptr);
                else
                    collector.read(from[age], age + 1 < samples.ages ? from[age + 1] : nullptr);
                auto of_unit = [&](size_t u) { return samples.g_of_age(u, age); };
                collector.write(at, l, values, of_unit);
                for (size_t u = 0; u < units.of_layer() && of_the_token; u++)
                    if (units.at(u).values == values)
                        join_equal_tokens(of_unit(u) + at * units.width(u), sequences.ids[s], first,
                                          units.width(u));
            }
        };
        model.run(sequences.ids[s], sequences.step(s), none, seeds.next(),
                  [&](int l) { visit(l, false), visit(l, true); });
        progress();
    }
    return samples;
}

}  // namespace stief
