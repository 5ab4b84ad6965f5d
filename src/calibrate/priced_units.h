// All units of a model with their prices, bits for a budget by these, and which layers' keys are stored
// after rotation: README.md §7.
#pragma once
#include "calibrate/prices.h"

namespace stief {

// A format for each unit at each age.
struct Formats {
    std::vector<std::vector<RowFormat>> format;  // (units, ages)
    std::vector<size_t> bytes;                   // (ages)  of a token
    double predicted = 0;                        // Σ prices: nats a token
};

// What every unit may cost, and how bits are given out by that.
struct Hulls {
    std::vector<std::vector<Choices>> hull;  // (ages, units)
    std::vector<double> scale;               // (units) of all prices, by measurement

    Formats within(const std::vector<size_t>& budget) const;  // (ages)  bytes of a token
};

struct PricedUnits : Hulls {
    std::vector<PricedUnit> unit;

    void set_hulls(Threads& threads, DType dtype);
    // What unit u costs at those formats, all ages: nats a token.
    double predicted(size_t u, const Formats& formats) const;
};

PricedUnits price(const PriceSamples& samples, bool coded, bool rotated, Threads& threads, DType dtype);

// --keys auto: keys after rotation are met as they are packed, those before it rebuilt first. So they go
// after it in layer after layer, those first that alone cost least, as long as all together are predicted
// to cost no more than `more` of what is predicted without. Not in layer 0, whose keys are functions of the
// token alone. rotated: the same units, priced after rotation.
void rotate_cheap_layers(PricedUnits& priced, PricedUnits rotated, const Units& units,
                         const std::vector<size_t>& budget, double more);

// at(l, first head, values, unit)
template <class F>
void for_units(const Units& units, const F& at) {
    for (size_t u = 0; u < units.count(); u++) {
        auto [l, g, values] = units.at(u);
        at(l, g, values, u);
    }
}

}  // namespace stief
