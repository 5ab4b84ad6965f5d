// What a unit's basis, spread and prices are made of: prices.h over samples that are known.
#include "calibrate/priced_units.h"

#include "backends.h"
#include "calibration_lab.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

constexpr int TOKENS = 500, WIDE = 16;

// One layer of one kv head whose keys and values have different spreads in every coordinate, as
// have their gradients; `shift` is added to every row of both. All are multiples of 2⁻¹⁰, so that
// the shift loses nothing.
PriceSamples samples(float shift) {
    Config config;
    config.L = 1, config.G = 1, config.d = WIDE;
    PriceSamples all(Units(config, false), TOKENS, 1, "");
    Random random(5);
    for (size_t u = 0; u < 2; u++)
        for (size_t t = 0; t < TOKENS; t++)
            for (size_t i = 0; i < WIDE; i++) {
                size_t at = t * WIDE + i;
                double spread = std::pow(1.4, double((3 * i + u) % WIDE) - 8);
                all.k(u)[at] = float(std::round(1024 * spread * random.normal()) / 1024) + shift;
                all.g_of_age(u, 0)[at] = float(std::pow(1.2, double(i)) * random.normal());
            }
    return all;
}

double off(const std::vector<double>& a, const std::vector<double>& b) {
    Floats x(a.begin(), a.end());
    return nmse(x.data(), b.data(), b.size());
}
double off(const Floats& a, const Floats& b) {
    return nmse(a.data(), Doubles(b.begin(), b.end()).data(), b.size());
}

}  // namespace

TEST_CASE("what all keys of a head have in common costs no bits") {
    PriceSamples plain = samples(0), moved = samples(8);
    PricedUnit a = price_unit(plain, 0, true, false, DType::F16);
    PricedUnit b = price_unit(moved, 0, true, false, DType::F16);
    REQUIRE(a.mean.size() == WIDE);
    REQUIRE(b.mean.size() == WIDE);
    for (size_t i = 0; i < WIDE; i++) CHECK(std::fabs(b.mean[i] - a.mean[i] - 8) <= 8 * 0x1p-23);
    // μ is rounded to float once more: 2⁻²⁴ of 8 in rows of 2⁻⁴ at least.
    constexpr double ROUNDED = 0x1p-34;
    CHECK(off(b.spread, a.spread) <= ROUNDED);
    CHECK(off(b.encode, a.encode) <= ROUNDED);
    CHECK(off(b.compressed.noise, a.compressed.noise) <= ROUNDED);
    CHECK(off(b.compressed.dropped, a.compressed.dropped) <= ROUNDED);
    Choices of_a = formats_of(a, a.age[0], DType::F16), of_b = formats_of(b, b.age[0], DType::F16);
    REQUIRE(of_a.size() == of_b.size());
    for (size_t i = 0; i < of_a.size(); i++) CHECK(of_a[i].format == of_b[i].format);
}

TEST_CASE("values, and keys that are cut by rank alone, keep what they have in common") {
    PriceSamples moved = samples(8);
    CHECK(price_unit(moved, 1, true, false, DType::F16).mean.empty());
    CHECK(price_unit(moved, 0, false, false, DType::F16).mean.empty());
}

TEST_CASE("keys that are turned to be priced are priced as those that come turned") {
    PriceSamples before = samples(4), after = samples(4);
    Random random(6);
    for (size_t t = 0; t < TOKENS; t++)
        for (bool sine : {false, true})
            for (size_t j = 0; j < WIDE / 2; j++) {
                double angle = double(t) * std::pow(0.5, double(j));
                before.turns.push_back(float(sine ? std::sin(angle) : std::cos(angle)));
            }
    for (float* rows : {after.k(0), after.g_of_age(0, 0)})
        for (size_t t = 0; t < TOKENS; t++)
            for (size_t j = 0; j < WIDE / 2; j++) {
                float *x = rows + t * WIDE + j, a = x[0], b = x[WIDE / 2];
                const float* angle = &before.turns[t * WIDE + j];
                x[0] = a * angle[0] - b * angle[WIDE / 2];
                x[WIDE / 2] = b * angle[0] + a * angle[WIDE / 2];
            }
    PricedUnit a = price_unit(before, 0, false, true, DType::F16);  // by rank alone: with their mean
    PricedUnit b = price_unit(after, 0, false, false, DType::F16);
    CHECK(a.rotated);
    CHECK(off(b.spread, a.spread) <= TOL_F32);
    CHECK(off(b.compressed.dropped, a.compressed.dropped) <= TOL_F32);
    // What is coded is less R_s μ: of μ alone nothing is left, whatever it is.
    PriceSamples moved = samples(8);
    moved.turns = before.turns;
    PricedUnit c = price_unit(before, 0, true, true, DType::F16);
    PricedUnit d = price_unit(moved, 0, true, true, DType::F16);
    for (size_t i = 0; i < WIDE; i++) CHECK(std::fabs(c.mean[i] - 4) <= 1);  // 2 σ of 500 at most
    CHECK(off(d.spread, c.spread) <= TOL_F32);
    CHECK(off(d.compressed.noise, c.compressed.noise) <= TOL_F32);
    CHECK_FALSE(price_unit(before, 1, true, true, DType::F16).rotated);  // values
}

TEST_CASE("keys go after rotation in the layers that lose least by it, as long as little is lost") {
    Config config;
    config.L = 4, config.G = 1, config.d = 8;
    Units units(config, false);
    // A unit costs as much as it has no bytes: 1 a coordinate, once rotated more in layers 1, 3 and 2.
    auto priced = [&](std::array<double, 4> more) {
        PricedUnits all;
        all.unit.resize(units.count()), all.scale.assign(units.count(), 1);
        all.hull.resize(1);
        for_units(units, [&](int l, int, bool values, size_t u) {
            double cost = 10 * (1 + (values ? 0 : more[size_t(l)]));
            all.hull[0].push_back({{0, cost, {}}, {8, cost / 10, RowFormat::whole(4)}});
            all.unit[u].rotated = !values && more[0] > 0;
        });
        return all;
    };
    std::vector<size_t> budget = {units.count() * 8};  // enough for each: 8 units at 1 are 8
    auto rotated_within = [&](double more) {
        PricedUnits some = priced({0, 0, 0, 0});
        rotate_cheap_layers(some, priced({0.01, 0.5, 2.0, 1.0}), units, budget, more);
        std::string layers;
        for_units(units, [&](int l, int, bool values, size_t u) {
            if (!values && some.unit[u].rotated) layers += char('0' + l);
            CHECK_FALSE((values && some.unit[u].rotated));
        });
        CHECK(some.within(budget).predicted <= (1 + more) * 8 + 1e-9);
        return layers;
    };
    CHECK(rotated_within(0.0) == "");
    CHECK(rotated_within(0.07) == "1");
    CHECK(rotated_within(0.2) == "13");
    CHECK(rotated_within(0.43) == "13");
    CHECK(rotated_within(0.44) == "123");  // 3.5 / 8; never layer 0
    CHECK(rotated_within(9) == "123");
}

TEST_CASE("coordinates of coded keys have unit spread about their mean, and E D = I") {
    PriceSamples moved = samples(3);
    PricedUnit unit = price_unit(moved, 0, true, false, DType::F16);
    for (size_t i = 0; i < WIDE; i++) {
        double square = 0;
        for (size_t t = 0; t < TOKENS; t++) {
            double c = 0;
            for (size_t j = 0; j < WIDE; j++)
                c += double(moved.k(0)[t * WIDE + j] - unit.mean[j]) * double(unit.encode[j * WIDE + i]);
            square += c * c / TOKENS;
        }
        CHECK(std::fabs(square - 1) <= 1e-5);  // E is in f32: 2⁻²⁴ of each of 16 terms
        for (size_t j = 0; j < WIDE; j++) {
            double one = 0, size = 0;
            for (size_t m = 0; m < WIDE; m++) {
                double x = double(unit.encode[i * WIDE + m]) * double(unit.decode[m * WIDE + j]);
                one += x, size += std::fabs(x);
            }
            CHECK(std::fabs(one - (i == j)) <= 1e-6 * size);
        }
    }
}

TEST_CASE("a unit that was turned is priced again in the order of its coordinates") {
    PriceSamples all = samples(3);
    PricedUnit unit = price_unit(all, 0, true, false, DType::F16), turned = unit;
    Matrix Q = unit.Q;
    for (size_t i = 0; i < WIDE; i++) std::swap(Q(i, 0), Q(i, 5));
    turned.turn_to(Q);
    price_again(turned, all, 0, DType::F16);
    auto swapped = [](std::vector<double> x) { return std::swap(x[0], x[5]), x; };
    REQUIRE(turned.age.size() == unit.age.size());
    CHECK(off(turned.compressed.noise, swapped(unit.compressed.noise)) <= TOL_F32);
    CHECK(off(turned.compressed.dropped, swapped(unit.compressed.dropped)) <= TOL_F32);
    CHECK(off(turned.age[0].noise, turned.compressed.noise) <= TOL_F32);
    std::vector<float> weight = weights_of(turned);
    CHECK(weight[5] == 1);  // of the dearest
    CHECK(weight[0] < 1);
}

TEST_SUITE_END();
