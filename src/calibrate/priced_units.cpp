#include "calibrate/priced_units.h"

#include <algorithm>

namespace stief {

Formats Hulls::within(const std::vector<size_t>& budget) const {
    Formats all;
    all.format.resize(scale.size());
    for (size_t age = 0; age < hull.size(); age++) {
        std::vector<Choices> scaled = hull[age];
        for (size_t u = 0; u < scale.size(); u++)
            for (Choice& one : scaled[u]) one.error *= scale[u];
        std::vector<size_t> at = choose_within(scaled, budget[age]);
        all.bytes.push_back(0);
        for (size_t u = 0; u < at.size(); u++) {
            const Choice& one = scaled[u][at[u]];
            all.format[u].push_back(one.format);
            all.bytes.back() += one.bytes, all.predicted += one.error;
        }
    }
    return all;
}

void PricedUnits::set_hulls(Threads& threads, DType dtype) {
    hull.assign(unit[0].age.size(), std::vector<Choices>(unit.size()));
    scale.resize(unit.size(), 1);
    threads.run(unit.size(), [&](size_t u) {
        for (size_t age = 0; age < hull.size(); age++)
            hull[age][u] = lower_hull(formats_of(unit[u], unit[u].age[age], dtype));
    });
}

double PricedUnits::predicted(size_t u, const Formats& formats) const {
    double sum = 0;
    for (size_t age = 0; age < unit[u].age.size(); age++)
        sum += scale[u] * price_of(unit[u], unit[u].age[age], formats.format[u][age]);
    return sum;
}

PricedUnits price(const PriceSamples& samples, bool coded, bool rotated, Threads& threads, DType dtype) {
    PricedUnits priced;
    priced.unit.resize(samples.units.count());
    threads.run(samples.units.count(), [&](size_t u) {
        priced.unit[u] = price_unit(samples, u, coded, rotated, dtype);
    });
    priced.set_hulls(threads, dtype);
    return priced;
}

void rotate_cheap_layers(PricedUnits& priced, PricedUnits rotated, const Units& units,
                         const std::vector<size_t>& budget, double more) {
    auto for_keys = [&](int layer, const auto& at) {
        for_units(units, [&](int l, int, bool values, size_t u) {
            if (l == layer && !values) at(u);
        });
    };
    auto with = [&](Hulls some, int layer) {
        for_keys(layer, [&](size_t u) {
            for (size_t age = 0; age < some.hull.size(); age++) some.hull[age][u] = rotated.hull[age][u];
        });
        return some;
    };
    double most = (1 + more) * priced.within(budget).predicted;
    std::vector<std::pair<double, int>> alone;
    for (int l = 1; l < units.L; l++) alone.push_back({with(priced, l).within(budget).predicted, l});
    std::sort(alone.begin(), alone.end());
    for (auto [cost, l] : alone) {
        Hulls next = with(priced, l);
        if (next.within(budget).predicted > most) return;
        static_cast<Hulls&>(priced) = std::move(next);
        for_keys(l, [&](size_t u) { priced.unit[u] = std::move(rotated.unit[u]); });
    }
}

}  // namespace stief
