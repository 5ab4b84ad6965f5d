#include "calibrate/price_samples.h"

#include <algorithm>
#include <unordered_map>

#include "base/limits.h"

namespace stief {

static bool too_large(size_t floats) {
    return floats * sizeof(float) > available_memory() / 2;
}

PriceSamples::PriceSamples(const Config& c, size_t of_tokens, size_t of_ages,
                           const std::string& folder)
    : units(2 * size_t(c.L) * size_t(c.G)),
      tokens(of_tokens),
      d(size_t(c.d)),
      ages(of_ages),
      data(units * (1 + ages) * tokens * d, folder, too_large(units * (1 + ages) * tokens * d)) {}

std::vector<float> PriceSamples::g_compressed(size_t unit) const {
    size_t n = tokens * d;
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
    size_t first, T;
    std::vector<float> rows;  // (G, T, d)

    Collector(LayerPass& from, PriceSamples& to, size_t sinks, size_t tokens)
        : pass(from), samples(to), first(sinks), T(tokens) {
        rows.resize(size_t(pass.c.G) * T * samples.d);
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
    template <class F>
    void write(size_t at, const F& of_head) const {
        for (int g = 0; g < pass.c.G; g++)
            std::copy_n(rows.data() + (size_t(g) * T + first) * samples.d, (T - first) * samples.d,
                        of_head(g) + at * samples.d);
    }
};

}  // namespace

PriceSamples collect_samples(ModelBackward& model, const Sequences& sequences,
                             bool rotated, int sinks, uint64_t seed, const std::string& folder,
                             const std::function<void()>& progress) {
    LayerPass& pass = model.pass;
    const Config& c = pass.c;
    size_t T = size_t(sequences.T), first = size_t(sinks), at = 0;
    PriceSamples samples(c, sequences.count() * (T - first), pass.ages(), folder);
    Collector collector(pass, samples, first, T);
    Random seeds(seed);
    std::vector<LayerCuts> none(size_t(c.L), LayerCuts(c, rotated));
    for (size_t s = 0; s < sequences.count(); s++, at += T - first) {
        auto visit = [&](int l, bool values) {
            bool of_the_token = l == 0 && (values || !rotated);
            collector.read(values ? pass.v : rotated ? pass.k_rotated : pass.k, nullptr);
            collector.write(at, [&](int g) { return samples.k(unit_of(c, l, g, values)); });
            const std::vector<float*>& from = values ? pass.dv_from : pass.dk_from;
            for (size_t age = 0; age < samples.ages; age++) {
                auto of_head = [&](int g) { return samples.g_of_age(unit_of(c, l, g, values), age); };
                if (from.empty())
                    collector.read(values ? pass.dv : pass.dk, nullptr);
                else
                    collector.read(from[age], age + 1 < samples.ages ? from[age + 1] : nullptr);
                collector.write(at, of_head);
                for (int g = 0; g < c.G && of_the_token; g++)
                    join_equal_tokens(of_head(g) + at * samples.d, sequences.ids[s], first, samples.d);
            }
        };
        model.run(sequences.ids[s], sequences.step(s), none, seeds.next(),
                  [&](int l) { visit(l, false), visit(l, true); });
        progress();
    }
    return samples;
}

}  // namespace stief
